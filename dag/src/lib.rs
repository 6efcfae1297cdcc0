//! Room versions, PDUs, authorization rules and state resolution: values in, values out.
//! * No I/O, no async, no clock, no randomness: the same values in give the same values out on every server.
//! * Each check consumes one type and yields the next: [`ReceivedPdu`] → [`VerifiedPdu`] → [`auth::check`].
//! * Room versions are data ([`RoomRules`]); code asks for a rule, never for a version number.
//! * Whatever a peer can do wrong has a name in [`Rejection`].

pub mod auth;
pub mod canonical;
mod create;
mod draft;
mod hash;
pub mod limits;
mod pdu;
mod policy;
mod power_levels;
mod receive;
pub mod redact;
mod rejection;
pub mod resolve;
mod rules;
mod sign;

pub use auth::{auth_keys, check, check_auth_events, check_with};
pub use create::Create;
pub use draft::{BuildError, Draft, Place, canonical_content, countersign};
pub use hash::{content_hash, reference_hash};
pub use pdu::{MalformedPdu, Pdu, StateKey};
pub use policy::{POLICY_KEY_ID, has_policy_signature, is_policy_event, policy_key, with_policy_signature};
pub use power_levels::{Level, PowerLevels};
pub use receive::{ReceivedPdu, ServerKeys, VerifiedPdu, VerifyKey, required_signatures};
pub use redact::{redact, redact_object, redaction_applies};
pub use rejection::{PowerAction, Rejection};
pub use rules::{PowerLevelFormat, RoomRules, StateResolution};
pub use sign::{Keypair, KeypairError, LocalServers, Signer, sign_json};
