//! Accounts, sessions, devices, profiles, account data, receipts; typing and presence in memory.
//! * `Users` is the one entry; it is cheap to clone. No HTTP, no network, no rooms: what of a room is needed comes as a
//!   value.
//! * Every change that `/sync` shows, except typing and presence, has a stream position and is found by
//!   "(user or room) changes after t, up to W".
//! * Secrets are kept as hashes only; what is revoked is refused from the moment the revocation is answered.
//! * Each cache is bounded by a named number of entries or bytes.

mod account_data;
mod accounts;
mod cache;
mod changes;
mod deactivation;
mod devices;
mod directory;
mod endings;
mod filters;
mod last_seen;
mod openid;
mod passwords;
mod presence;
mod profiles;
mod push_rules;
mod receipts;
mod registration_tokens;
mod remote_keys;
mod sessions;
pub mod tables;
mod tags;
mod to_device;
mod tokens;
mod typing;
mod uia;
mod users;
mod volatile;

pub use account_data::{
    ACCOUNT_DATA_MAX, AccountDataChanges, AccountDataError, FULLY_READ, IGNORED_USERS, NotInvitable,
    PUSH_RULES, RawJson,
};
pub use accounts::{Account, AccountError, CreateAccountError, Kind, NewAccount};
pub use deactivation::Deactivation;
pub use devices::{DISPLAY_NAME_MAX, Device, DeviceError};
pub use directory::{CANDIDATES_MAX, Found, Person, SEARCH_LIMIT_MAX};
pub use endings::SessionEnd;
pub use filters::{FILTER_MAX, FILTERS_PER_USER, FilterError};
pub use openid::{OPENID_TOKEN_LIFETIME, OPENID_TOKENS_MAX, OPENID_TOKENS_OF_USER};
pub use passwords::{PasswordCost, PasswordError, PasswordHash};
pub use presence::{Presence, PresenceOptions, PresenceView, Syncing};
pub use profiles::{PROFILE_KEY_MAX, PROFILE_MAX, Profile, ProfileChange, ProfileError};
pub use push_rules::{PushRuleError, PushRules, ShownPushRules, ShownRuleset};
pub use receipts::{NewReceipt, Receipt, ReceiptKind, ReceiptOrder, receipt_content};
pub use registration_tokens::RegistrationToken;
pub use remote_keys::{
    DeviceListUpdate, REMOTE_BYTES_OF_SERVER, REMOTE_DEVICES_MAX, REMOTE_ROWS_OF_SERVER, SigningKeyUpdate,
};
pub use sessions::{
    AuthenticateError, Authenticated, NewSession, RefreshError, Session, SessionError, is_device_id,
};
pub use tags::TagInfo;
pub use to_device::{
    DEVICE_MESSAGE_MAX, DeviceMessages, INBOX_BYTES, INBOX_MAX, NewDeviceMessages, SHOWN_AT_ONCE,
};
pub use tokens::{TokenHash, random_name};
pub use typing::{MAX_TYPING_TIMEOUT, Typing};
pub use uia::{BodyDigest, UiaDone, UiaError, UiaRequest, UiaStage, UiaStageError};
pub use users::{Clock, Options, Users, UsersError};
pub use volatile::Volatile;
