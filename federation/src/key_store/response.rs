//! An answer to `/_matrix/key/v2/server`, from whomever it came: checked by itself, before anything is believed.

use std::collections::BTreeSet;

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use hearth_dag::{
    VerifyKey,
    canonical::{Object, Value},
};
use ruma::ServerName;

use crate::tables::{KnownKey, ServerKeysRow};

/// The largest answer that is read.
pub const KEY_RESPONSE_BYTES: usize = 64 * 1024;
/// Keys of one server that are kept. Those in use come first, then the old ones by how lately they expired.
pub const KEYS_PER_SERVER: usize = 32;
/// The longest key ID that is kept: as long as any identifier may be.
pub const KEY_ID_BYTES: usize = 255;
/// However long an answer says that it is good, it is believed no longer than this after it was fetched.
pub const VALID_AT_MOST_MS: u64 = 7 * 24 * 3600 * 1000;

/// Why an answer is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadKeys {
    /// Not JSON, or too deep.
    #[error("the keys are not JSON: {0}")]
    Json(String),
    /// Keys of another server than was asked for.
    #[error("these are keys of another server")]
    OtherServer,
    /// A field is not there or is something else.
    #[error("the field {0} is missing or wrong")]
    Field(&'static str),
    /// No key of it has signed it, or one has not really.
    #[error("the keys are not signed by themselves")]
    Signature,
}

/// A believable answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyResponse {
    /// When it was fetched, until when it says to be good, its keys.
    pub row: ServerKeysRow,
    /// The answer with its signatures, canonical JSON.
    pub json: String,
}

impl KeyResponse {
    /// Reads the keys of `server`, and checks that they signed themselves.
    pub fn read(json: &str, server: &ServerName, now_ms: u64) -> Result<Self, BadKeys> {
        let object = Object::parse(json, false).map_err(|error| BadKeys::Json(error.to_string()))?;
        Self::of_object(&object, server, now_ms)
    }

    /// The same of JSON that was parsed already.
    pub fn of_object(object: &Object<'_>, server: &ServerName, now_ms: u64) -> Result<Self, BadKeys> {
        if object.get("server_name").and_then(Value::as_str) != Some(server.as_str()) {
            return Err(BadKeys::OtherServer);
        }
        let valid_until_ms = time(object, "valid_until_ts").ok_or(BadKeys::Field("valid_until_ts"))?;
        let verify_keys = object.get("verify_keys").and_then(Value::as_object);
        let verify_keys = verify_keys.ok_or(BadKeys::Field("verify_keys"))?;
        let until = valid_until_ms.min(now_ms.saturating_add(VALID_AT_MOST_MS));
        let mut keys = Vec::new();
        for (key_id, entry) in verify_keys.iter().take(KEYS_PER_SERVER) {
            keys.extend(known_key(key_id, entry, until, false)?);
        }
        check_signatures(object, server, &keys)?;
        let mut old = Vec::new();
        let in_use: BTreeSet<&str> = keys.iter().map(|key| key.key_id.as_str()).collect();
        let old_keys = object.get("old_verify_keys").and_then(Value::as_object);
        for (key_id, entry) in old_keys.into_iter().flat_map(Object::iter) {
            let fields = entry.as_object().ok_or(BadKeys::Field("old_verify_keys"))?;
            let expired_ms = time(fields, "expired_ts").ok_or(BadKeys::Field("expired_ts"))?;
            if !in_use.contains(key_id) {
                old.extend(known_key(key_id, entry, expired_ms.min(now_ms), true)?);
            }
        }
        keys.append(&mut old);
        limit(&mut keys);
        let row = ServerKeysRow { fetched_ms: now_ms, valid_until_ms, keys };
        Ok(Self { row, json: object.to_canonical() })
    }
}

fn time(object: &Object<'_>, field: &str) -> Option<u64> {
    match object.get(field)? {
        Value::Integer(ms) => u64::try_from(*ms).ok(),
        Value::LargeInteger(ms) => ms.parse().ok(),
        _ => None,
    }
}

/// Keys of other algorithms are none of ours; a damaged one of ours spoils the answer.
fn known_key(
    key_id: &str,
    entry: &Value<'_>,
    valid_until_ms: u64,
    old: bool,
) -> Result<Option<KnownKey>, BadKeys> {
    let Some(version) = key_id.strip_prefix("ed25519:") else { return Ok(None) };
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if version.is_empty() || key_id.len() > KEY_ID_BYTES || !version.bytes().all(valid) {
        return Ok(None);
    }
    let text = entry.as_object().and_then(|entry| entry.get("key")).and_then(Value::as_str);
    let public_key = text.and_then(decode).ok_or(BadKeys::Field("key"))?;
    Ok(Some(KnownKey { key_id: key_id.to_owned(), public_key, valid_until_ms, old }))
}

fn decode(text: &str) -> Option<[u8; 32]> {
    const ENGINE: GeneralPurpose = GeneralPurpose::new(
        &alphabet::STANDARD,
        GeneralPurposeConfig::new()
            .with_decode_padding_mode(DecodePaddingMode::Indifferent)
            .with_decode_allow_trailing_bits(true),
    );
    let key: [u8; 32] = ENGINE.decode(text).ok()?.try_into().ok()?;
    // Not every 32 bytes are a key.
    VerifyKey::new(&key, None).map(|_| key)
}

/// Each signature by a key of the answer must hold, and there must be one.
fn check_signatures(object: &Object<'_>, server: &ServerName, keys: &[KnownKey]) -> Result<(), BadKeys> {
    let signatures = object.get("signatures").and_then(Value::as_object);
    let signatures = signatures.and_then(|all| all.get(server.as_str())).and_then(Value::as_object);
    let signatures = signatures.ok_or(BadKeys::Signature)?;
    let mut message = String::new();
    object.write_without(&["signatures", "unsigned"], &mut message);
    let mut signed = false;
    for key in keys {
        let Some(signature) = signatures.get(&key.key_id) else { continue };
        let public = VerifyKey::new(&key.public_key, None).ok_or(BadKeys::Field("key"))?;
        let holds = signature.as_str().is_some_and(|text| public.verifies(message.as_bytes(), text));
        if !holds {
            return Err(BadKeys::Signature);
        }
        signed = true;
    }
    if signed { Ok(()) } else { Err(BadKeys::Signature) }
}

/// At most [`KEYS_PER_SERVER`], the ones in use first, then the latest.
pub(super) fn limit(keys: &mut Vec<KnownKey>) {
    keys.sort_by_key(|key| (key.old, std::cmp::Reverse(key.valid_until_ms)));
    keys.truncate(KEYS_PER_SERVER);
}

#[cfg(test)]
mod tests {
    use hearth_dag::{Keypair, Signer as _, sign_json};
    use ruma::server_name;
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::keys::{OldVerifyKey, server_keys};

    const NOW: u64 = 1_700_000_000_000;

    fn key(version: &str, seed: u8) -> Keypair {
        Keypair::new(server_name!("a.test").to_owned(), version, &[seed; 32]).unwrap()
    }

    fn read(json: &str) -> Result<KeyResponse, BadKeys> {
        KeyResponse::read(json, server_name!("a.test"), NOW)
    }

    /// An answer as the key's owner writes it, changed and then signed.
    fn changed(change: impl FnOnce(&mut Json)) -> String {
        let key = key("1", 1);
        let mut json: Json = serde_json::from_str(&server_keys(&key, &[], NOW)).unwrap();
        change(&mut json);
        let text = json.to_string();
        let mut object = Object::parse(&text, false).unwrap();
        object.remove("signatures");
        sign_json(&key, &mut object);
        object.to_canonical()
    }

    #[test]
    fn what_a_server_publishes_is_read() {
        let old = OldVerifyKey::new("ed25519:0", &key("0", 9).public_key_base64(), NOW - 5).unwrap();
        let response = read(&server_keys(&key("1", 1), &[old], NOW)).unwrap();
        let day = 24 * 3600 * 1000;
        assert_eq!(response.row.valid_until_ms, NOW + day);
        assert_eq!(response.row.fetched_ms, NOW);
        let keys: Vec<_> = response.row.keys.iter().map(|k| (&*k.key_id, k.valid_until_ms, k.old)).collect();
        assert_eq!(keys, [("ed25519:1", NOW + day, false), ("ed25519:0", NOW - 5, true)]);
        assert_eq!(response.row.keys[0].public_key, key("1", 1).public_key());
        assert_eq!(read(&response.json), Ok(response), "what is kept can be read again");
    }

    #[test]
    fn the_id_of_a_key_may_hold_a_digest() {
        let version = format!("server_{}", "0123456789abcdef".repeat(4));
        let response = read(&server_keys(&key(&version, 1), &[], NOW)).unwrap();
        assert_eq!(response.row.keys[0].key_id, format!("ed25519:{version}"));
    }

    #[test]
    fn validity_is_capped_at_a_week() {
        let response = read(&changed(|json| json["valid_until_ts"] = json!(u64::MAX))).unwrap();
        assert_eq!(response.row.keys[0].valid_until_ms, NOW + VALID_AT_MOST_MS);
        let old = json!({ "ed25519:0": { "key": key("0", 9).public_key_base64(), "expired_ts": NOW * 2 } });
        let response = read(&changed(|json| json["old_verify_keys"] = old)).unwrap();
        assert_eq!(response.row.keys[1].valid_until_ms, NOW, "an old key cannot expire in the future");
    }

    #[test]
    fn a_key_in_use_is_not_old() {
        let old = json!({ "ed25519:1": { "key": key("1", 1).public_key_base64(), "expired_ts": 1 } });
        let response = read(&changed(|json| json["old_verify_keys"] = old)).unwrap();
        assert_eq!(response.row.keys.len(), 1);
        assert!(!response.row.keys[0].old);
    }

    #[test]
    fn what_is_not_believable_is_refused() {
        let good = server_keys(&key("1", 1), &[], NOW);
        let tampered = good.replace(&format!("{}", NOW + 24 * 3600 * 1000), &format!("{}", NOW + 1));
        assert_eq!(read(&tampered), Err(BadKeys::Signature));
        assert_eq!(KeyResponse::read(&good, server_name!("b.test"), NOW), Err(BadKeys::OtherServer));
        assert!(matches!(read("{"), Err(BadKeys::Json(_))));
        assert!(matches!(read("[]"), Err(BadKeys::Json(_))));
        for (change, why) in [
            (json!({ "valid_until_ts": "soon" }), BadKeys::Field("valid_until_ts")),
            (json!({ "valid_until_ts": -1 }), BadKeys::Field("valid_until_ts")),
            (json!({ "verify_keys": [] }), BadKeys::Field("verify_keys")),
            (json!({ "verify_keys": {} }), BadKeys::Signature),
            (json!({ "verify_keys": { "ed25519:1": { "key": "short" } } }), BadKeys::Field("key")),
            (json!({ "verify_keys": { "ed25519:1": {} } }), BadKeys::Field("key")),
            (json!({ "old_verify_keys": { "ed25519:0": {} } }), BadKeys::Field("expired_ts")),
            // Somebody else's key under its ID: the signature is not that key's.
            (
                json!({ "verify_keys": { "ed25519:1": { "key": key("1", 2).public_key_base64() } } }),
                BadKeys::Signature,
            ),
        ] {
            let text = changed(|json| {
                for (field, value) in change.as_object().unwrap() {
                    json[field] = value.clone();
                }
            });
            assert_eq!(read(&text), Err(why), "{change}");
        }
    }

    #[test]
    fn keys_that_nobody_can_use_are_left_out() {
        let public = key("1", 1).public_key_base64();
        let response = read(&changed(|json| {
            json["verify_keys"]["rsa:1"] = json!({ "key": "whatever" });
            json["verify_keys"]["ed25519:"] = json!({ "key": public });
            json["verify_keys"]["ed25519:a b"] = json!({ "key": public });
            json["verify_keys"][format!("ed25519:{}", "a".repeat(KEY_ID_BYTES))] = json!({ "key": public });
        }));
        assert_eq!(response.unwrap().row.keys.len(), 1);
    }

    #[test]
    fn the_number_of_keys_is_bounded_and_those_in_use_stay() {
        let public = key("1", 1).public_key_base64();
        let old = (0..100).map(|n| (format!("ed25519:o{n}"), json!({ "key": public, "expired_ts": n })));
        let response = read(&changed(|json| json["old_verify_keys"] = old.collect())).unwrap();
        assert_eq!(response.row.keys.len(), KEYS_PER_SERVER);
        assert_eq!(response.row.keys[0].key_id, key("1", 1).key_id());
        assert_eq!(response.row.keys[1].key_id, "ed25519:o99", "the latest of the old ones");
    }
}
