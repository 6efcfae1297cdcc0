//! What this crate keeps, on one page. Spaces 0xc0 to 0xcf. Server names are strings in the case that they came in.

use hearth_rooms::RoomSn;
use hearth_store::{Blob, Record, Space, StreamPosition, Table};
use serde::{Deserialize, Serialize};

/// server → its signing keys, also those of the past.
pub const SERVER_KEYS: Table<String, ServerKeysRow> = Table::mutable("server_keys", Space(0xc0));
/// server → the newest answer to `/_matrix/key/v2/server` with its signature, to be shown to those who ask us for it.
pub const KEY_RESPONSES: Table<String, Blob> = Table::chunked("key_responses", Space(0xc1));
/// server → since when it cannot be reached. No row: as far as is known, it can.
pub const DESTINATIONS: Table<String, FailingRow> = Table::new("destinations", Space(0xc2));
/// Up to here all events of rooms were sent, or stand in [`BEHIND`]. One row.
pub const SENT_UP_TO: Table<(), StreamPosition> = Table::new("sent_up_to", Space(0xc8));
/// server, room → what the server was not sent of the room, because it could not be reached or is slow.
pub const BEHIND: Table<(String, RoomSn), BehindRow> = Table::new("servers_behind", Space(0xc9));
/// server, when → a message to the server that must arrive, whole as JSON.
pub const MUST_ARRIVE: Table<(String, StreamPosition), Blob> = Table::chunked("must_arrive", Space(0xca));

/// room, event, the server that gave it to us → an event whose keys could not be had yet, that server and since when, as
/// JSON. What one server gave says nothing of what another one did: signatures do not count for an event's id.
pub const UNCHECKED: Table<(String, String, String), Blob> = Table::chunked("events_unchecked", Space(0xcb));

/// What a server was not sent of a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BehindRow {
    /// The oldest event.
    pub oldest: StreamPosition,
    /// The event that put the server out of the room, or told it although it was not in there.
    pub removed_at: Option<StreamPosition>,
}
impl Record for BehindRow {}

/// What is known of a server's keys.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerKeysRow {
    /// When the newest answer came.
    pub fetched_ms: u64,
    /// How long the newest answer says that it is good, not capped.
    pub valid_until_ms: u64,
    /// At most [`crate::KEYS_PER_SERVER`].
    pub keys: Vec<KnownKey>,
}
impl Record for ServerKeysRow {}

/// A public key of a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownKey {
    /// Such as `ed25519:a_AbCd`.
    pub key_id: String,
    /// 32 bytes, a point of the curve.
    pub public_key: [u8; 32],
    /// Signatures of events are good up to this time; for a key in use capped at seven days after it was fetched.
    pub valid_until_ms: u64,
    /// No longer in use: good for events of its time, not for requests.
    pub old: bool,
}

/// A server that cannot be reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailingRow {
    /// Since when.
    pub since_ms: u64,
    /// Failures in a row.
    pub failures: u32,
    /// Not before this time is it tried again.
    pub next_try_ms: u64,
    /// What went wrong last.
    pub problem: String,
}
impl Record for FailingRow {}
