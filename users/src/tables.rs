//! What this crate keeps, on one page. Spaces 0x60 to 0x9f.
//!
//! User, room, device and event ids are the strings of the specification. Secrets are kept as SHA-256 (`TokenHash`).

use hearth_store::{Blob, Positioned, Record, Space, StreamPosition, Table};
use serde::{Deserialize, Serialize};

use crate::{accounts::Account, registration_tokens::RegistrationToken, tokens::TokenHash};

/// user → account. A row stays for ever, so that a name is never given out twice.
pub const ACCOUNTS: Table<String, Account> = Table::mutable("accounts", Space(0x60));
/// user → password hash in PHC form. No row: nobody can log in by password.
pub const PASSWORDS: Table<String, String> = Table::mutable("passwords", Space(0x61));
/// Access tokens.
pub const ACCESS_TOKENS: Table<TokenHash, AccessToken> = Table::mutable("access_tokens", Space(0x62));
/// Refresh tokens.
pub const REFRESH_TOKENS: Table<TokenHash, RefreshToken> = Table::new("refresh_tokens", Space(0x63));
/// (user, device) → device with the hashes of all its tokens.
pub const DEVICES: Table<(String, String), DeviceRecord> = Table::new("devices", Space(0x64));
/// (user, device) → where and when it was last seen; written behind, every few minutes.
pub const LAST_SEEN: Table<(String, String), LastSeen> = Table::new("devices_last_seen", Space(0x65));
/// Login tokens: good once.
pub const LOGIN_TOKENS: Table<TokenHash, LoginToken> = Table::new("login_tokens", Space(0x66));
/// token → how often and how long it lets people register.
pub const REGISTRATION_TOKENS: Table<String, RegistrationToken> =
    Table::new("registration_tokens", Space(0x67));
/// user → what is still to be done for an account that was closed.
pub const DEACTIVATIONS: Table<String, DeactivationRecord> = Table::new("deactivations", Space(0x68));

/// user → profile, a JSON object.
pub const PROFILES: Table<String, Blob> = Table::chunked_mutable("profiles", Space(0x70));
/// (word, user) → (): words of user ids and display names of local users, folded.
pub const DIRECTORY_WORDS: Table<(String, String), ()> = Table::new("user_directory", Space(0x71));

/// (user, room or "", type) → content, a JSON object.
pub const ACCOUNT_DATA: Table<(String, String, String), Positioned<Blob>> =
    Table::chunked_mutable("account_data", Space(0x78));
/// (user, position, room or "", type) → (). Exactly one row for each row of `ACCOUNT_DATA`, unless writers raced:
/// then older ones may be left, which say again what a later one says.
pub const ACCOUNT_DATA_CHANGES: Table<(String, StreamPosition, String, String), ()> =
    Table::new("account_data_changes", Space(0x79));
/// (user, filter id) → filter, JSON.
pub const FILTERS: Table<(String, String), Blob> = Table::chunked("filters", Space(0x7a));
/// user → ids of the filters, oldest first.
pub const FILTER_IDS: Table<String, FilterIds> = Table::new("filter_ids", Space(0x7b));

/// (room, user, type, thread) → receipt.
pub const RECEIPTS: Table<(String, String, u8, String), Positioned<ReceiptRecord>> =
    Table::mutable("receipts", Space(0x80));
/// (room, position, user, type, thread) → (), as `ACCOUNT_DATA_CHANGES`.
pub const RECEIPT_CHANGES: Table<(String, StreamPosition, String, u8, String), ()> =
    Table::new("receipt_changes", Space(0x81));

/// (user, device, position) → a message to the device, as it is shown: JSON with type, sender and content.
pub const TO_DEVICE: Table<(String, String, StreamPosition), Blob> = Table::chunked("to_device", Space(0x88));
/// (server, its id of messages to devices) → when they came.
pub const TO_DEVICE_SEEN: Table<(String, String), u64> = Table::new("to_device_seen", Space(0x89));
/// (when, server, id) → (). One row for each of `TO_DEVICE_SEEN`.
pub const TO_DEVICE_SEEN_AT: Table<(u64, String, String), ()> = Table::new("to_device_seen_at", Space(0x8a));

/// user of another server → how far their list of devices is known.
pub const REMOTE_DEVICE_LISTS: Table<String, Positioned<RemoteDeviceList>> =
    Table::mutable("remote_device_lists", Space(0x8b));
/// (user of another server, device) → the device as its server told it, JSON.
pub const REMOTE_DEVICES: Table<(String, String), Blob> = Table::chunked("remote_devices", Space(0x8c));
/// (user of another server, usage) → the cross-signing key, JSON.
pub const REMOTE_SIGNING_KEYS: Table<(String, String), Positioned<Blob>> =
    Table::chunked_mutable("remote_signing_keys", Space(0x8d));

/// another server → how much is kept of its users in the three tables above. No row: nothing.
pub const REMOTE_KEPT: Table<String, RemoteKept> = Table::new("remote_kept", Space(0x8e));

/// An access token's row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessToken {
    pub user_id: String,
    pub device_id: String,
    pub expires_at_ms: Option<u64>,
    /// The refresh token that goes with it.
    pub refresh: Option<TokenHash>,
    /// Not used yet since a refresh made it: until then the tokens before it are good too.
    pub unconfirmed: bool,
}
impl Record for AccessToken {}

/// A refresh token's row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefreshToken {
    pub user_id: String,
    pub device_id: String,
    pub expires_at_ms: Option<u64>,
    /// The access token that goes with it.
    pub access: TokenHash,
}
impl Record for RefreshToken {}

/// A device's row.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRecord {
    pub display_name: Option<String>,
    pub created_at_ms: u64,
    pub access: Vec<TokenHash>,
    pub refresh: Vec<TokenHash>,
}
impl Record for DeviceRecord {}

/// Where and when a device was last seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastSeen {
    pub ip: String,
    pub at_ms: u64,
}
impl Record for LastSeen {}

/// A login token's row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoginToken {
    pub user_id: String,
    pub expires_at_ms: u64,
}
impl Record for LoginToken {}

/// A deactivation under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeactivationRecord {
    pub erase: bool,
}
impl Record for DeactivationRecord {}

/// The ids of a user's filters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilterIds(pub Vec<String>);
impl Record for FilterIds {}

/// A receipt's row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiptRecord {
    pub event_id: String,
    pub ts: u64,
    /// Where the event stands in its room, as far as the caller knew.
    pub order: Option<(u64, u64)>,
}
impl Record for ReceiptRecord {}

/// How far the devices of a user of another server are known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteDeviceList {
    /// The number of the last change that was told.
    pub stream_id: u64,
    /// Changes were missed: the list is to be asked for anew before it is believed.
    pub is_stale: bool,
    /// How many devices there are rows of.
    pub devices: u32,
}
impl Record for RemoteDeviceList {}

/// How much is kept of the users of another server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteKept {
    pub rows: u64,
    pub bytes: u64,
}
impl Record for RemoteKept {}
