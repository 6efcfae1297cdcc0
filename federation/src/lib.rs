//! What this server is to other servers: how they are found, asked and believed.
//! * [`Network`] brings a request to a server name; [`Https`] is the real one. Nothing else knows addresses.
//! * [`Federation`] holds the parts: [`KeyStore`] knows servers' keys, [`Client`] asks, [`Destinations`] knows who fails,
//!   [`Access`] with whom we talk at all; [`Federation::verify`] is the gate for what others ask.
//! * [`RemoteRooms`] is what our users do in rooms of other servers: joining, leaving, knocking, inviting.
//! * [`Policy`] asks the policy servers of rooms that have one.
//! * It answers in values and JSON; HTTP is the top layer's.

mod access;
pub mod addresses;
pub mod allowance;
pub mod client;
mod destinations;
pub mod discovery;
pub mod dns;
pub mod doctor;
mod federation;
mod history;
mod https;
pub mod inbound;
mod joining;
mod key_store;
mod keys;
mod lookups;
pub mod membership;
pub mod network;
mod policy;
pub mod sender;
pub mod server_name;
pub mod shares;
pub mod tables;
pub mod turns;
pub mod verify;
pub mod well_known;
pub mod x_matrix;

pub use access::{Access, AccessDenied};
pub use client::{Client, Json, RemoteError, RequestError};
pub use destinations::{Destinations, EARLY_EVERY, Patience};
pub use federation::{Claim, Federation, FederationOptions, Refused, SIGNATURES_MAX};
pub use history::{
    FILL_TIME, FILLS_AT_ONCE, FILLS_BEGUN_BY_A_USER, FILLS_MAX, FILLS_OF_A_USER, GAP_RESTS, HISTORY_TIME,
    STATES_MAX,
};
pub use https::{Https, HttpsError, HttpsOptions, REDIRECTS_MAX, REQUESTS_AT_ONCE, WELL_KNOWN_LIMITS};
pub use inbound::Inbound;
pub use key_store::{
    ASKED_AGAIN_MS, BadKeys, BadQuery, Clock, KEY_ID_BYTES, KEY_RESPONSE_BYTES, KEYS_PER_SERVER, KEYS_TIME,
    KeyLookupError, KeyNeeds, KeyQuery, KeyResponse, KeyStore, KeyStoreOptions, LearnError, OwnKeys,
    QUERY_FETCHES_MAX, QUERY_SERVERS_MAX, QUERY_TIME, SERVERS_IN_MEMORY, SIGNATURES_PER_SERVER,
    STRANGERS_AT_ONCE, VALID_AT_MOST_MS,
};
pub use keys::{KeyError, OldKeyError, OldVerifyKey, load_or_create_key, published_keys, server_keys};
pub use lookups::{Asker, LOOKUP_PATIENCE, LOOKUPS_AT_ONCE, LOOKUPS_WAITING, PROFILE_TIME, UNREACHABLE_TIME};
pub use membership::{RemoteRoomError, RemoteRooms};
pub use network::{Limits, Network, NetworkError};
pub use policy::{ASKED_AT_ONCE, JUDGING_TIME, Policy};
pub use sender::{Sender, SenderOptions};
pub use verify::BadPdu;
