//! The data model of media. Files lie beside the store, see [`super::files`]; a row is what makes one exist.

use hearth_store::{Record, Space, Table};
use serde::{Deserialize, Serialize};

use super::{files::FileId, ids::MediaKey};

/// What stands behind an `mxc://` address.
pub const MEDIA: Table<MediaKey, Medium> = Table::new("media", Space(0xa0));

/// Addresses that a user reserved and has not filled: (owner, when it lapses, address).
pub const RESERVED: Table<(String, u64, MediaKey), ()> = Table::new("media_reserved", Space(0xa1));

/// The media of a user, by age: (owner, when it was made, address).
pub const OWNED: Table<(String, u64, MediaKey), ()> = Table::new("media_owned", Space(0xa2));

/// What a user's files take on the disk; behind the empty name, all files together.
pub const USAGE: Table<String, Usage> = Table::new("media_usage", Space(0xa3));

/// An `mxc://` address and what is known of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Medium {
    /// The local user who made it.
    pub owner: String,
    /// Milliseconds since 1970.
    pub created_ms: u64,
    pub content: Content,
}

impl Record for Medium {}

/// Whether the file has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// Not yet; if it has not by then, the address lapses.
    Reserved {
        expires_ms: u64,
    },
    Stored(File),
}

/// A file that was received whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    pub id: FileId,
    /// In bytes.
    pub size: u64,
    /// CRC-32 over its bytes, so that damage can be found.
    pub checksum: u32,
    /// As its uploader called it.
    pub content_type: Option<String>,
    /// As its uploader called it.
    pub name: Option<String>,
}

/// How much there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    pub files: u64,
    pub bytes: u64,
}

impl Record for Usage {}
