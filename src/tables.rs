//! The rows of the top layer itself, spaces 0xb0 to 0xbf; chapters with rows of their own have their own file.

use hearth_store::{Record, Space, Table};
use serde::{Deserialize, Serialize};

/// What this data belongs to: one row, written when the data is made.
pub const SERVER: Table<(), ServerRecord> = Table::new("server", Space(0xb0));

/// Whose data this is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ServerRecord {
    /// The server name in all its user ids.
    pub server_name: String,
}

impl Record for ServerRecord {}
