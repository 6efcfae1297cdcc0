//! The signature of a room's policy server on an event: checking it, and adding it beside those of other servers.
//! * Its key stands in the room's state and is published nowhere; its ID is always [`POLICY_KEY_ID`].
//! * It covers what every signature covers, so it holds for the redacted event too, and changes no event ID.

use bytes::Bytes;
use ruma::{ServerName, events::TimelineEventType};

use crate::{
    Pdu, Rejection, RoomRules, VerifyKey,
    canonical::{Object, Value},
    hash, limits,
};

/// The ID of every policy server's key.
pub const POLICY_KEY_ID: &str = "ed25519:policy_server";

/// The type of the state event that names a room's policy server.
const POLICY: &str = "m.room.policy";

/// Whether an event is the one that names the policy server: the only one that goes unsigned, so that a room can always
/// part with a policy server that does not answer.
pub fn is_policy_event(kind: &TimelineEventType, state_key: Option<&str>) -> bool {
    state_key == Some("") && kind.to_string() == POLICY
}

/// The key that a policy event names. It may be written in either alphabet of base64: the specification's own example is
/// in the one for URLs.
pub fn policy_key(text: &str) -> Option<VerifyKey> {
    VerifyKey::from_base64(&text.replace('-', "+").replace('_', "/"), None)
}

/// Whether an event has the signature of its room's policy server.
pub fn has_policy_signature(rules: &RoomRules, pdu: &Pdu, server: &ServerName, key: &VerifyKey) -> bool {
    let event = pdu.to_object();
    let signatures = event.get("signatures").and_then(Value::as_object);
    let of_server = signatures.and_then(|all| all.get(server.as_str())).and_then(Value::as_object);
    let signature = of_server.and_then(|all| all.get(POLICY_KEY_ID)).and_then(Value::as_str);
    signature.is_some_and(|signature| key.verifies(hash::signed_form(rules, &event).as_bytes(), signature))
}

/// An event with a signature of its policy server, which takes the place of an older one. All other signatures stay, also
/// those of the same server. Refused if it does not hold, or makes the event too large.
pub fn with_policy_signature(
    rules: &RoomRules,
    pdu: &Pdu,
    server: &ServerName,
    key: &VerifyKey,
    signature: &str,
) -> Result<Pdu, Rejection> {
    let mut event = pdu.to_object();
    if !key.verifies(hash::signed_form(rules, &event).as_bytes(), signature) {
        return Err(Rejection::BadSignature { server: server.to_owned() });
    }
    let mut signatures = match event.remove("signatures") {
        Some(Value::Object(signatures)) => signatures,
        _ => Object::default(),
    };
    let mut of_server = match signatures.remove(server.as_str()) {
        Some(Value::Object(of_server)) => of_server,
        _ => Object::default(),
    };
    of_server.insert(POLICY_KEY_ID, Value::String(signature.into()));
    signatures.insert(server.as_str(), Value::Object(of_server));
    event.insert("signatures", Value::Object(signatures));
    let json = event.to_canonical();
    limits::check_size(json.len())?;
    Pdu::from_stored(rules, pdu.event_id().to_owned(), Bytes::from(json))
        .map_err(|_| Rejection::MalformedField { field: "signatures" })
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    use ruma::{MilliSecondsSinceUnixEpoch, RoomVersionId, UserId, room_id, server_name, uint};
    use serde_json::value::RawValue;

    use super::*;
    use crate::{Draft, Keypair, Place, Signer, redact};

    fn event(rules: &RoomRules, signer: &Keypair, body: usize) -> Pdu {
        let content = format!(r#"{{"body":"{}"}}"#, "x".repeat(body));
        let draft = Draft {
            sender: UserId::parse(format!("@a:{}", signer.server_name())).unwrap(),
            kind: "m.room.message".into(),
            state_key: None,
            content: RawValue::from_string(content).unwrap(),
            redacts: None,
        };
        let place = Place {
            room_id: Some(room_id!("!r:a.test")),
            prev_events: &[],
            auth_events: &[],
            depth: 1,
            origin_server_ts: MilliSecondsSinceUnixEpoch(uint!(1)),
            hashes: None,
        };
        draft.build(rules, &place, signer).unwrap()
    }

    #[test]
    fn a_signature_is_added_beside_the_others_and_holds_for_the_redacted_event() {
        let rules = RoomRules::of(&RoomVersionId::V11).unwrap();
        let server = server_name!("p.test");
        let own = Keypair::new(server.to_owned(), "1", &[1; 32]).unwrap();
        let policy = Keypair::new(server.to_owned(), "policy_server", &[2; 32]).unwrap();
        let key = policy_key(&URL_SAFE_NO_PAD.encode(policy.public_key())).unwrap();
        let before = event(rules, &own, 10);
        assert!(!has_policy_signature(rules, &before, server, &key));
        let message = hash::signed_form(rules, &before.to_object());
        let sign = |key: &Keypair| {
            base64::engine::general_purpose::STANDARD_NO_PAD.encode(key.sign(message.as_bytes()))
        };
        let wrong = with_policy_signature(rules, &before, server, &key, &sign(&own));
        assert!(matches!(wrong, Err(Rejection::BadSignature { .. })));
        let after = with_policy_signature(rules, &before, server, &key, &sign(&policy)).unwrap();
        assert!(has_policy_signature(rules, &after, server, &key));
        assert!(!has_policy_signature(rules, &after, server_name!("a.test"), &key));
        let mut keys = crate::ServerKeys::default();
        let public = VerifyKey::new(&own.public_key(), None).unwrap();
        keys.insert(server.to_owned(), "ed25519:1".to_owned(), public);
        assert_eq!(keys.verify_event(server, rules, &after), Ok(()), "the sender's own signature is kept");
        assert_eq!(before.reference_hash(rules), after.reference_hash(rules));
        assert!(has_policy_signature(rules, &redact(rules, &after), server, &key));
    }

    #[test]
    fn an_event_that_the_signature_makes_too_large_is_refused() {
        let rules = RoomRules::of(&RoomVersionId::V11).unwrap();
        let policy = Keypair::new(server_name!("p.test").to_owned(), "policy_server", &[2; 32]).unwrap();
        let key = VerifyKey::new(&policy.public_key(), None).unwrap();
        let empty = event(rules, &policy, 0).bytes().len();
        let full = event(rules, &policy, limits::MAX_EVENT_BYTES - empty);
        let signature = policy.sign(hash::signed_form(rules, &full.to_object()).as_bytes());
        let signature = base64::engine::general_purpose::STANDARD_NO_PAD.encode(signature);
        let other = server_name!("other.test");
        let signed = with_policy_signature(rules, &full, other, &key, &signature);
        assert!(matches!(signed, Err(Rejection::EventTooLarge { .. })));
    }

    #[test]
    fn only_the_state_event_with_an_empty_key_is_the_policy() {
        let kind = TimelineEventType::from(POLICY);
        assert!(is_policy_event(&kind, Some("")));
        assert!(!is_policy_event(&kind, None) && !is_policy_event(&kind, Some("x")));
        assert!(!is_policy_event(&TimelineEventType::RoomMessage, Some("")));
        assert!(policy_key("no key").is_none());
    }
}
