//! What this server is to other servers. For now: its signing keys.
//! It answers in values and JSON; HTTP is the top layer's.

mod keys;

pub use keys::{KeyError, OldKeyError, OldVerifyKey, load_or_create_key, published_keys, server_keys};
