//! Events as bytes: hashes and signatures against the specification's vectors and ruma, limits at the limit and one
//! past, everything that a peer may send wrong.
#![allow(clippy::unwrap_used)]

mod common;

use common::{
    Numbers, Room, build, keypair, keys_of, message, rules, signed_again, value_of, version_of, versions,
};
use hearth_dag::{
    BuildError, Draft, Keypair, KeypairError, LocalServers, MalformedPdu, Pdu, Place, ReceivedPdu, Rejection,
    RoomRules, ServerKeys, Signer, VerifyKey,
    canonical::{NotCanonical, Object},
    content_hash, countersign, redact, redact_object, redaction_applies, reference_hash, required_signatures,
    sign_json,
};
use hearth_dag::{Create, PowerLevels};
use ruma::{
    CanonicalJsonObject, MilliSecondsSinceUnixEpoch, OwnedEventId, RoomId, ServerName, UInt, UserId,
    canonical_json, server_name, signatures,
};
use serde_json::{Value, json, value::to_raw_value};

mod vectors {
    use super::*;

    fn key() -> Keypair {
        let seed = "YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1";
        Keypair::from_base64(server_name!("domain").to_owned(), "1", seed).unwrap()
    }

    #[test]
    fn signing_json() {
        for (json, signature) in [
            ("{}", "K8280/U9SSy9IVtjBuVeLr+HpOB4BQFWbg+UZaADMtTdGYI7Geitb76LTrr5QV/7Xg4ahLwYGYZzuHGZKM5ZAQ"),
            (
                r#"{"one": 1, "two": "Two"}"#,
                "KqmLSbO39/Bzb0QIYE82zqLwsA+PDzYIpIRA2sRQ4sL53+sN6/fpNSoqE7BP7vBZhG6kYdD13EIMJpvhJI+6Bw",
            ),
        ] {
            let mut object = Object::parse(json, true).unwrap();
            sign_json(&key(), &mut object);
            let signed: Value = serde_json::from_str(&object.to_canonical()).unwrap();
            assert_eq!(signed["signatures"]["domain"]["ed25519:1"], signature);
        }
    }

    #[test]
    fn signing_events() {
        let minimal = json!({
            "room_id": "!x:domain", "sender": "@a:domain", "origin": "domain", "origin_server_ts": 1000000,
            "signatures": {}, "hashes": {}, "type": "X", "content": {}, "prev_events": [], "auth_events": [],
            "depth": 3, "unsigned": { "age_ts": 1000000 }
        });
        let redactable = json!({
            "content": { "body": "Here is the message content" }, "event_id": "$0:domain", "origin": "domain",
            "origin_server_ts": 1000000, "type": "m.room.message", "room_id": "!r:domain",
            "sender": "@u:domain", "signatures": {}, "unsigned": { "age_ts": 1000000 }
        });
        for (event, hash, signature) in [
            (
                minimal,
                "5jM4wQpv6lnBo7CLIghJuHdW+s2CMBJPUOGOC89ncos",
                "KxwGjPSDEtvnFgU00fwFz+l6d2pJM6XBIaMEn81SXPTRl16AqLAYqfIReFGZlHi5KLjAWbOoMszkwsQma+lYAg",
            ),
            (
                redactable,
                "onLKD1bGljeBWQhWZ1kaP9SorVmRQNdN5aM2JYU2n/g",
                "Wm+VzmOUOz08Ds+0NTWb1d4CZrVsJSikkeRxh6aCcUwu6pNC78FunoD7KNWzqFn241eYHYMGCA5McEiVPdhzBA",
            ),
        ] {
            let text = event.to_string();
            let object = Object::parse(&text, true).unwrap();
            assert_eq!(content_hash(&object), hash);
            let mut event = event.clone();
            event["hashes"] = json!({ "sha256": hash });
            let text = event.to_string();
            let mut object = Object::parse(&text, true).unwrap();
            redact_object(rules("1"), &mut object);
            sign_json(&key(), &mut object);
            let signed: Value = serde_json::from_str(&object.to_canonical()).unwrap();
            assert_eq!(signed["signatures"]["domain"]["ed25519:1"], signature);
        }
    }

    /// As Python makes it of the text, for rooms before version 6.
    #[test]
    fn integers_of_any_size_hash_as_elsewhere() {
        let text = r#"{"content":{"n":18446744073709551616,"z":-0,"f":1e5,"big":-100000000000000000000000000000},"type":"m.x"}"#;
        let object = Object::parse(text, false).unwrap();
        assert_eq!(content_hash(&object), "pO0oIrEN69LQTb5/vjaFuDvLN5vlGh45D9n5oa/gBio");
        // What was read is read again as it was written.
        let canonical = object.to_canonical();
        assert_eq!(content_hash(&Object::parse(&canonical, false).unwrap()), content_hash(&object));
        assert!(Object::parse(text, true).is_err());
    }

    #[test]
    fn keys_that_are_none() {
        let server = || server_name!("a").to_owned();
        for version in ["", "a b", "a:b", "ä", "a-b"] {
            let error = Keypair::new(server(), version, &[0; 32]).unwrap_err();
            assert_eq!(error, KeypairError::BadVersion(version.to_owned()));
        }
        for seed in ["", "AAAA", "????"] {
            assert_eq!(Keypair::from_base64(server(), "a", seed).unwrap_err(), KeypairError::BadSeed);
        }
        let key = key();
        let again = Keypair::from_base64(server(), "1", &key.seed_base64()).unwrap();
        assert_eq!(again.public_key(), key.public_key());
        assert!(!format!("{key:?}").contains(&key.seed_base64()));
    }
}

#[test]
fn built_events_are_byte_for_byte_what_ruma_makes() {
    // A seed in the container that ruma reads.
    let key = keypair(server_name!("a"));
    let seed = Keypair::seed_base64(&key);
    let seed = ruma::serde::Base64::<ruma::serde::base64::Standard>::parse(&seed).unwrap();
    let mut der = vec![0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    der.extend(seed.as_bytes());
    let theirs = signatures::Ed25519KeyPair::from_der(&der, "1".to_owned()).unwrap();
    let nested = json!({ "body": "\u{1}\"\\\n☃ 😀", "z": { "b": [1, -2, null, true], "a": {} }, "": "" });
    let member = json!({
        "membership": "invite", "reason": "x", "join_authorised_via_users_server": "@b:b",
        "third_party_invite": { "display_name": "x", "signed": { "token": "t" } }
    });
    let levels =
        json!({ "users": { "@a:a": 1 }, "invite": 1, "ban": 2, "notifications": { "room": 1 }, "x": 1 });
    for rules in versions() {
        for (kind, state_key, content) in [
            ("m.room.message", None, nested.clone()),
            ("org.example.\"odd\"", Some("ke\"y"), nested.clone()),
            ("m.room.member", Some("@alice:a"), member.clone()),
            ("m.room.power_levels", Some(""), levels.clone()),
            ("m.room.join_rules", Some(""), json!({ "join_rule": "restricted", "allow": [], "x": 1 })),
            ("m.room.history_visibility", Some(""), json!({ "history_visibility": "shared", "x": 1 })),
            ("m.room.aliases", Some("a"), json!({ "aliases": ["#a:a"], "x": 1 })),
            ("m.room.create", Some(""), json!({ "creator": "@a:a", "room_version": "x", "x": 1 })),
            ("m.room.redaction", None, json!({ "reason": "spam" })),
        ] {
            let about = format!("version {} {kind}", rules.version);
            let pdu = build(rules, kind, state_key, content, |draft| {
                if kind == "m.room.redaction" {
                    draft.redacts = Some("$target:a".try_into().unwrap());
                }
            })
            .unwrap();
            let mut object: CanonicalJsonObject = serde_json::from_str(pdu.json()).unwrap();
            object.remove("hashes");
            object.remove("signatures");
            signatures::hash_and_sign_event("a", &theirs, &mut object, &rules.inner.redaction).unwrap();
            assert_eq!(serde_json::to_string(&object).unwrap(), pdu.json(), "{about}");
            if version_of(rules) >= 3 {
                let reference = signatures::reference_hash(&object, &rules.inner).unwrap();
                assert_eq!(pdu.event_id().as_str(), format!("${reference}"), "{about}");
                assert_eq!(pdu.reference_hash(rules), reference, "{about}");
            }
            let mut public = signatures::PublicKeyMap::new();
            let encoded = ruma::serde::Base64::parse(key.public_key_base64()).unwrap();
            public.insert("a".to_owned(), [("ed25519:1".to_owned(), encoded)].into());
            // Others sign what this event says they authorised.
            if kind != "m.room.member" {
                let verified = signatures::verify_event(&public, &object, &rules.inner).unwrap();
                assert_eq!(verified, signatures::Verified::All, "{about}");
            }
            // What we built, we would also take from others, as the very same bytes.
            let received = ReceivedPdu::parse(rules, pdu.json()).unwrap();
            assert_eq!(received.pdu(), &pdu, "{about}");
        }
    }
}

#[test]
fn redaction_in_each_version_is_that_of_ruma() {
    let contents = [
        (
            "m.room.member",
            json!({ "membership": "join", "displayname": "x", "join_authorised_via_users_server": "@b:b",
            "third_party_invite": { "display_name": "x", "signed": { "token": "t" } } }),
        ),
        ("m.room.member", json!({ "membership": "join", "third_party_invite": { "display_name": "x" } })),
        ("m.room.create", json!({ "creator": "@a:a", "room_version": "9", "m.federate": false })),
        ("m.room.join_rules", json!({ "join_rule": "restricted", "allow": [{ "type": "x" }], "x": 1 })),
        (
            "m.room.power_levels",
            json!({ "users": { "@a:a": 1 }, "users_default": 1, "events": { "x": 1 },
            "events_default": 1, "state_default": 1, "ban": 1, "kick": 1, "redact": 1, "invite": 1,
            "notifications": { "room": 1 }, "historical": 1 }),
        ),
        ("m.room.history_visibility", json!({ "history_visibility": "joined", "x": 1 })),
        ("m.room.aliases", json!({ "aliases": ["#a:a"], "x": 1 })),
        ("m.room.redaction", json!({ "redacts": "$x", "reason": "x" })),
        ("m.room.message", json!({ "body": "x" })),
        ("m.room.server_acl", json!({ "allow": ["*"] })),
    ];
    for rules in versions() {
        for (kind, content) in &contents {
            let mut event = value_of(&message(rules));
            event["type"] = (*kind).into();
            event["content"] = content.clone();
            for (key, value) in [
                ("origin", json!("a")),
                ("membership", json!("join")),
                ("prev_state", json!([])),
                ("redacts", json!("$x")),
                ("state_key", json!("")),
                ("org.x", json!(1)),
                ("unsigned", json!({ "age": 1 })),
            ] {
                event[key] = value;
            }
            let text = event.to_string();
            let mut ours = Object::parse(&text, true).unwrap();
            redact_object(rules, &mut ours);
            let theirs: CanonicalJsonObject = serde_json::from_str(&text).unwrap();
            let theirs = canonical_json::redact(theirs, &rules.inner.redaction, None).unwrap();
            let theirs = serde_json::to_string(&theirs).unwrap();
            assert_eq!(ours.to_canonical(), theirs, "version {} {kind}", rules.version);
            let once = ours.to_canonical();
            redact_object(rules, &mut ours);
            assert_eq!(ours.to_canonical(), once, "a second redaction changes nothing");
        }
    }
}

#[test]
fn a_redacted_event_keeps_its_id_and_its_signature() {
    for rules in versions() {
        let pdu = message(rules);
        let redacted = redact(rules, &pdu);
        assert_eq!(redacted.content_json(), "{}");
        assert_eq!(redacted.event_id(), pdu.event_id());
        assert_ne!(redacted, pdu);
        assert_eq!(reference_hash(rules, &redacted.to_object()), pdu.reference_hash(rules));
        let verified = ReceivedPdu::parse(rules, redacted.json()).unwrap().verify(rules, &keys_of(&["a"]));
        let verified = verified.unwrap();
        assert!(verified.is_redacted());
        assert_eq!(verified.pdu(), &redacted);
    }
}

#[test]
fn event_ids_in_each_version() {
    for rules in versions() {
        let pdu = message(rules);
        let id = pdu.event_id().as_str();
        match version_of(rules) {
            1 | 2 => assert!(id.ends_with(":a") && id.len() == 46 && value_of(&pdu)["event_id"] == id),
            3 => assert!(
                id.len() == 44 && !id.contains(['-', '_']) && value_of(&pdu).get("event_id").is_none()
            ),
            _ => assert!(
                id.len() == 44 && !id.contains(['+', '/']) && value_of(&pdu).get("event_id").is_none()
            ),
        }
        let references = &value_of(&pdu)["prev_events"];
        match version_of(rules) {
            1 | 2 => assert_eq!(*references, json!([["$prev:a", {}]])),
            _ => assert_eq!(*references, json!(["$prev:a"])),
        }
        assert_eq!(pdu.prev_events(), ["$prev:a"]);
        assert_eq!(pdu.auth_events(), ["$auth:a", "$more:a"]);
    }
    // The same event has the same ID, another has another.
    assert_eq!(message(rules("1")).event_id(), message(rules("1")).event_id());
    let other = build(rules("1"), "m.room.message", None, json!({}), |_| {}).unwrap();
    assert_ne!(other.event_id(), message(rules("1")).event_id());
}

#[test]
fn references_of_versions_1_and_2_carry_hashes() {
    let rules = rules("2");
    let before = message(rules);
    let hashes = [(before.event_id().to_owned(), before.reference_hash(rules))].into();
    let room_id = RoomId::parse("!room:a").unwrap();
    let references = [before.event_id().to_owned()];
    let place = Place {
        room_id: Some(&room_id),
        prev_events: &references,
        auth_events: &[],
        depth: 1,
        origin_server_ts: before.origin_server_ts(),
        hashes: Some(&hashes),
    };
    let draft = Draft {
        sender: UserId::parse("@alice:a").unwrap(),
        kind: "m.room.message".into(),
        state_key: None,
        content: to_raw_value(&json!({})).unwrap(),
        redacts: None,
    };
    let pdu = draft.build(rules, &place, &keypair(server_name!("a"))).unwrap();
    let expected = json!([[before.event_id(), { "sha256": before.reference_hash(rules) }]]);
    assert_eq!(value_of(&pdu)["prev_events"], expected);
    assert_eq!(pdu.prev_events(), references);
}

#[test]
fn the_create_event_names_the_room_since_version_12() {
    for rules in versions() {
        let content = json!({ "room_version": rules.version, "creator": "@alice:a" });
        let pdu = build(rules, "m.room.create", Some(""), content, |_| {}).unwrap();
        let theirs = ruma::state_res::Event::room_id(&pdu).map(ToString::to_string);
        if version_of(rules) < 12 {
            assert_eq!(pdu.room_id(), "!room:a");
            assert_eq!(theirs.as_deref(), Some("!room:a"));
        } else {
            assert_eq!(pdu.room_id().as_str()[1..], pdu.event_id().as_str()[1..]);
            assert_eq!(theirs, None, "the field itself is not there");
            let mut with_room = value_of(&pdu);
            with_room["room_id"] = "!room:a".into();
            let received = ReceivedPdu::parse(rules, &signed_again(rules, with_room, &["a"]));
            assert_eq!(received.unwrap_err(), Rejection::CreateWithRoomId);
        }
    }
}

#[test]
fn redactions_name_their_target_where_the_version_wants_it() {
    for rules in versions() {
        let target = OwnedEventId::try_from("$target:a").unwrap();
        let pdu = build(rules, "m.room.redaction", None, json!({ "reason": "x" }), |draft| {
            draft.redacts = Some(target.clone());
        })
        .unwrap();
        assert_eq!(pdu.redacts(), Some(&*target));
        let value = value_of(&pdu);
        let (top, inside) = (value.get("redacts"), value["content"].get("redacts"));
        assert_eq!(
            (top.is_some(), inside.is_some()),
            if version_of(rules) < 11 { (true, false) } else { (false, true) }
        );
        // The other place does not count, nor does it with other types.
        let mut wrong = value.clone();
        wrong["redacts"] = json!(null);
        wrong["content"]["redacts"] = json!(7);
        let wrong = ReceivedPdu::parse(rules, &wrong.to_string()).unwrap();
        assert_eq!(wrong.pdu().redacts(), None);
        assert_eq!(message(rules).redacts(), None);
    }
}

#[test]
fn who_may_redact() {
    for rules in versions() {
        let mut room = Room::new(rules.version.as_str());
        let base = room.found();
        let state = room.states[&base].clone();
        let create = room.lookup(&state, &"m.room.create".into(), "").unwrap();
        let create = Create::of(rules, &create).unwrap();
        let power = room.lookup(&state, &"m.room.power_levels".into(), "");
        let power = PowerLevels::of(rules, &create, power.as_ref()).unwrap();
        let target = room.build("@bob:b", "m.room.message", None, json!({}), &[&base], &state);
        let mut redaction = |sender: &str, of: &Pdu| {
            let mut event =
                value_of(&room.build(sender, "m.room.redaction", None, json!({}), &[&base], &state));
            match rules.redacts_in_content {
                true => event["content"]["redacts"] = of.event_id().as_str().into(),
                false => event["redacts"] = of.event_id().as_str().into(),
            }
            ReceivedPdu::parse(rules, &event.to_string()).unwrap().pdu().clone()
        };
        let by = |redaction: Pdu| redaction_applies(rules, &redaction, &target, &power);
        assert!(by(redaction("@alice:a", &target)), "with power");
        assert!(by(redaction("@bob:b", &target)), "one's own");
        assert!(by(redaction("@ben:b", &target)), "of one's own server");
        assert!(!by(redaction("@carol:c", &target)), "of another server");
        let other = redaction("@bob:b", &target);
        assert!(!by(redaction("@alice:a", &other)), "of another event");
    }
}

#[test]
fn content_that_is_not_canonical_json() {
    let raw = |json: &str| serde_json::value::RawValue::from_string(json.to_owned()).unwrap();
    for rules in versions() {
        for (content, error) in [
            (r#"{"x":1.5}"#, NotCanonical::Float),
            (r#"{"x":9007199254740992}"#, NotCanonical::IntegerOutOfRange),
            (r#"{"x":[{"y":-9007199254740992}]}"#, NotCanonical::IntegerOutOfRange),
        ] {
            let built = build(rules, "m.x", None, json!({}), |draft| draft.content = raw(content));
            let mut event = value_of(&message(rules));
            event["content"] = serde_json::from_str(content).unwrap();
            let received = ReceivedPdu::parse(rules, &event.to_string());
            match rules.strict_canonical_json {
                true => {
                    assert_eq!(built.unwrap_err(), BuildError::NotCanonical(error.clone()));
                    assert_eq!(received.unwrap_err(), Rejection::NotCanonical(error));
                }
                false => {
                    let pdu = built.unwrap();
                    assert_eq!(pdu.content_json(), content);
                    let again = ReceivedPdu::parse(rules, pdu.json()).unwrap();
                    assert!(!again.verify(rules, &keys_of(&["a"])).unwrap().is_redacted());
                    assert!(received.is_ok());
                }
            }
        }
        for content in ["[]", "1", "\"x\"", "null"] {
            let built = build(rules, "m.x", None, json!({}), |draft| draft.content = raw(content));
            assert_eq!(built.unwrap_err(), BuildError::NotCanonical(NotCanonical::NotAnObject));
        }
    }
}

#[test]
fn fields_that_are_missing_or_malformed() {
    for rules in versions() {
        let good = value_of(&message(rules));
        let wrong: &[(&str, &str, &[Value])] = &[
            ("type", "type", &[json!(1), json!(null)]),
            ("sender", "sender", &[json!(1), json!("alice"), json!("@alice"), json!("")]),
            ("room_id", "room ID", &[json!(1), json!("room")]),
            ("content", "content", &[json!([]), json!("x"), json!(null)]),
            ("depth", "depth", &[json!("1"), json!(null), json!([])]),
            ("origin_server_ts", "timestamp", &[json!("1"), json!(null)]),
            (
                "prev_events",
                "prev events",
                &[json!({}), json!(["x"]), json!([1]), json!([[1, {}]]), json!([[]])],
            ),
            ("auth_events", "auth events", &[json!("x"), json!(["x"]), json!([{}])]),
            ("hashes", "hashes", &[json!([]), json!({}), json!({ "sha256": 1 })]),
            ("signatures", "signatures", &[json!([]), json!("x")]),
        ];
        for (key, field, values) in wrong {
            let rejected = |event: &Value| ReceivedPdu::parse(rules, &event.to_string()).unwrap_err();
            let expected = Rejection::MalformedField { field };
            let mut event = good.clone();
            event.as_object_mut().unwrap().remove(*key);
            assert_eq!(rejected(&event), expected, "version {} without {key}", rules.version);
            for value in *values {
                event[*key] = value.clone();
                assert_eq!(rejected(&event), expected, "version {} {key} {value}", rules.version);
            }
        }
        let mut event = good.clone();
        event["state_key"] = json!(null);
        let error = ReceivedPdu::parse(rules, &event.to_string()).unwrap_err();
        assert_eq!(error, Rejection::MalformedField { field: "state key" });
        assert!(error.is_drop());
        // References in the other versions' form.
        let mut event = good.clone();
        event["prev_events"] = match rules.event_references_have_hashes {
            true => json!(["$x:a"]),
            false => json!([["$x:a", { "sha256": "x" }]]),
        };
        let error = ReceivedPdu::parse(rules, &event.to_string()).unwrap_err();
        assert_eq!(error, Rejection::MalformedField { field: "prev events" });
        for event_id in [json!(null), json!("x"), json!("$hash")] {
            let mut event = good.clone();
            event["event_id"] = event_id;
            let received =
                ReceivedPdu::parse(rules, &event.to_string()).map(|received| received.pdu().clone());
            match rules.opaque_event_ids {
                true => assert_eq!(received.unwrap_err(), Rejection::MalformedField { field: "event ID" }),
                // Since version 3 it is what it hashes to, whatever it says.
                false => assert_eq!(received.unwrap(), message(rules)),
            }
        }
        for text in ["", "[]", "{", "{}x", "7"] {
            let error = ReceivedPdu::parse(rules, text).unwrap_err();
            assert!(matches!(error, Rejection::NotCanonical(_)), "{text}");
        }
        let other = RoomId::parse("!other:a").unwrap();
        let received = ReceivedPdu::parse(rules, &good.to_string()).unwrap();
        assert_eq!(received.clone().in_room(&other).unwrap_err(), Rejection::WrongRoom);
        assert!(received.in_room(message(rules).room_id()).is_ok());
    }
}

#[test]
fn the_create_event_is_not_among_auth_events_since_version_12() {
    for rules in versions() {
        let mut event = value_of(&message(rules));
        let create = "$abcdefghijklmnopqrstuvwxyzabcdefghijklmnopq";
        event["room_id"] = create.replace('$', "!").into();
        if rules.event_references_have_hashes {
            continue;
        }
        event["auth_events"] = json!([create]);
        let received = ReceivedPdu::parse(rules, &event.to_string()).map(drop);
        let expected = match version_of(rules) {
            12 => Err(Rejection::UnexpectedAuthEvent(create.try_into().unwrap())),
            _ => Ok(()),
        };
        assert_eq!(received, expected, "version {}", rules.version);
    }
}

mod signatures_and_hashes {
    use super::*;

    fn verify(rules: &RoomRules, json: &str, keys: &ServerKeys) -> Result<bool, Rejection> {
        Ok(ReceivedPdu::parse(rules, json)?.verify(rules, keys)?.is_redacted())
    }

    #[test]
    fn right_wrong_and_missing() {
        for rules in versions() {
            let keys = keys_of(&["a", "b"]);
            let pdu = message(rules);
            assert_eq!(verify(rules, pdu.json(), &keys), Ok(false));
            let missing = Err(Rejection::MissingSignature { server: server_name!("a").to_owned() });
            let bad = Err(Rejection::BadSignature { server: server_name!("a").to_owned() });
            assert_eq!(verify(rules, pdu.json(), &keys_of(&["b"])), missing, "no key is known");
            assert_eq!(verify(rules, &signed_again(rules, value_of(&pdu), &["b"]), &keys), missing);
            let both = signed_again(rules, value_of(&pdu), &["a", "b"]);
            assert_eq!(verify(rules, &both, &keys), Ok(false), "more signatures do no harm");

            // What redaction leaves was signed, the rest is covered by the content hash.
            let mut event = value_of(&pdu);
            event["depth"] = json!(13);
            assert_eq!(verify(rules, &event.to_string(), &keys), bad);
            let mut event = value_of(&pdu);
            event["content"]["body"] = "tampered".into();
            assert_eq!(verify(rules, &event.to_string(), &keys), Ok(true));
            let received = ReceivedPdu::parse(rules, &event.to_string()).unwrap();
            let verified = received.clone().verify(rules, &keys).unwrap();
            assert_eq!(verified.pdu().content_json(), "{}");
            assert!(received.trust_signatures(rules).is_redacted());
            let mut event = value_of(&pdu);
            event["hashes"]["sha256"] = "AAAA".into();
            assert_eq!(verify(rules, &event.to_string(), &keys), bad, "hashes are signed");
            for nonsense in [json!("x"), json!(1), json!("AAAA"), json!(null)] {
                let mut event = value_of(&pdu);
                event["signatures"]["a"]["ed25519:1"] = nonsense;
                assert!(verify(rules, &event.to_string(), &keys).is_err());
            }
            // Padding in base64 is tolerated.
            let mut event = value_of(&pdu);
            let signature = event["signatures"]["a"]["ed25519:1"].as_str().unwrap().to_owned();
            event["signatures"]["a"]["ed25519:1"] = format!("{signature}==").into();
            assert_eq!(verify(rules, &event.to_string(), &keys), Ok(false));
        }
    }

    #[test]
    fn keys_are_valid_for_a_time_since_version_5() {
        for rules in versions() {
            let key = keypair(server_name!("a"));
            let until = |ts: u32| {
                let mut keys = ServerKeys::default();
                let until = Some(MilliSecondsSinceUnixEpoch(UInt::from(ts)));
                let public = VerifyKey::from_base64(&key.public_key_base64(), until).unwrap();
                keys.insert(server_name!("a").to_owned(), "ed25519:1".to_owned(), public);
                verify(rules, message(rules).json(), &keys).is_ok()
            };
            assert!(until(1_000_000));
            assert_eq!(until(999_999), version_of(rules) < 5, "version {}", rules.version);
        }
    }

    #[test]
    fn whose_signatures_are_needed() {
        for rules in versions() {
            let version = version_of(rules);
            let servers = |pdu: &Pdu| -> Vec<String> {
                required_signatures(rules, pdu).into_iter().map(|name| name.to_string()).collect()
            };
            assert_eq!(servers(&message(rules)), ["a"]);
            let member =
                |content: Value| build(rules, "m.room.member", Some("@alice:a"), content, |_| {}).unwrap();
            let restricted = json!({ "membership": "join", "join_authorised_via_users_server": "@bob:b" });
            let restricted = member(restricted);
            let expected: &[&str] = if version >= 8 { &["a", "b"] } else { &["a"] };
            assert_eq!(servers(&restricted), expected, "version {version}");
            let both = countersign(rules, &restricted, &keypair(server_name!("b")));
            assert_eq!(both.event_id(), restricted.event_id());
            let keys = keys_of(&["a", "b"]);
            assert_eq!(verify(rules, both.json(), &keys), Ok(false));
            assert_eq!(verify(rules, restricted.json(), &keys).is_ok(), version < 8);
            let third = member(json!({ "membership": "invite", "third_party_invite": { "signed": {} } }));
            // Its event ID's server still signs in the first two versions.
            let expected: &[&str] = if version <= 2 { &["a"] } else { &[] };
            assert_eq!(servers(&third), expected);
            let mut event = value_of(&message(rules));
            event["event_id"] = "$other:b".into();
            let parsed = ReceivedPdu::parse(rules, &event.to_string()).unwrap();
            let expected: &[&str] = if version <= 2 { &["a", "b"] } else { &["a"] };
            assert_eq!(servers(parsed.pdu()), expected);
        }
    }

    #[test]
    fn a_server_adds_its_own_signature_and_checks_all_others() {
        for rules in versions() {
            let content = json!({ "membership": "join", "join_authorised_via_users_server": "@bob:b" });
            let join = build(rules, "m.room.member", Some("@alice:a"), content, |_| {}).unwrap();
            let b = keypair(server_name!("b"));
            let received = |json: &str| ReceivedPdu::parse(rules, json).unwrap();
            let signed = received(join.json()).verify_and_countersign(rules, &keys_of(&["a"]), &b).unwrap();
            assert!(!signed.is_redacted());
            for server in [server_name!("a"), server_name!("b")] {
                assert_eq!(keys_of(&["a", "b"]).verify_event(server, rules, signed.pdu()), Ok(()));
                assert!(keys_of(&[]).verify_event(server, rules, signed.pdu()).is_err());
            }
            assert!(keys_of(&["b"]).verify_event(server_name!("b"), rules, &join).is_err());
            let unsigned = signed_again(rules, value_of(&join), &[]);
            assert!(received(&unsigned).verify_and_countersign(rules, &keys_of(&["a"]), &b).is_err());
            // In the name of its own users a server signs nothing that comes from outside.
            let a = keypair(server_name!("a"));
            assert!(received(&unsigned).verify_and_countersign(rules, &keys_of(&["a", "b"]), &a).is_err());
        }
    }

    #[test]
    fn json_of_servers() {
        let mut object = Object::parse(r#"{"x":1,"unsigned":{"age":1}}"#, true).unwrap();
        sign_json(&keypair(server_name!("a")), &mut object);
        sign_json(&keypair(server_name!("b")), &mut object);
        object.remove("unsigned");
        let keys = keys_of(&["a", "b", "c"]);
        assert_eq!(keys.verify_json(server_name!("a"), &object), Ok(()));
        assert_eq!(keys.verify_json(server_name!("b"), &object), Ok(()));
        assert!(keys.verify_json(server_name!("c"), &object).is_err());
        assert_eq!(keys.of(server_name!("a")).count(), 1);
    }
}

#[test]
fn our_servers() {
    let names = ["b.test", "a.test"];
    let local = LocalServers::new(names.map(|name| {
        let key: std::sync::Arc<dyn Signer> = std::sync::Arc::new(keypair(&ServerName::parse(name).unwrap()));
        key
    }));
    assert!(local.is_local(server_name!("a.test")) && !local.is_local(server_name!("c.test")));
    assert_eq!(local.signer_for(server_name!("b.test")).unwrap().key_id(), "ed25519:1");
    assert!(local.signer_for(server_name!("c.test")).is_none());
    assert_eq!(local.names().collect::<Vec<_>>(), ["a.test", "b.test"]);
}

#[test]
fn stored_bytes_that_are_no_event() {
    let rules = rules("11");
    let event_id = OwnedEventId::try_from("$x").unwrap();
    for bytes in [&b""[..], b"{}", b"\xff", b"[]", b"{\"type\":1}"] {
        let result: Result<Pdu, MalformedPdu> = Pdu::from_stored(rules, event_id.clone(), bytes.into());
        assert!(result.unwrap_err().to_string().starts_with("not an event"));
    }
}

/// A JSON value that looks random.
fn random_value(numbers: &mut Numbers, depth: usize) -> Value {
    let text = |numbers: &mut Numbers| -> String {
        let letters = ["a", "b", "\"", "\\", "\n", "\u{1}", "é", "☃", "😀", "/", " ", "\u{7f}", "\u{2028}"];
        (0..numbers.below(6)).map(|_| numbers.pick::<str>(&letters)).collect()
    };
    match numbers.below(if depth == 0 { 5 } else { 7 }) {
        0 => Value::Null,
        1 => (numbers.below(2) == 0).into(),
        2 | 3 => ((numbers.next() >> 11) as i64 - (1 << 52)).into(),
        4 => text(numbers).into(),
        5 => (0..numbers.below(4)).map(|_| random_value(numbers, depth - 1)).collect(),
        _ => {
            let count = numbers.below(5);
            Value::Object((0..count).map(|_| (text(numbers), random_value(numbers, depth - 1))).collect())
        }
    }
}

#[test]
fn random_events_survive_the_way_through_a_peer() {
    let mut numbers = Numbers(42);
    let all: Vec<_> = versions().collect();
    for round in 0..600 {
        let rules = all[round % all.len()];
        let mut content = json!({});
        for key in ["membership", "body", "users", "x"] {
            content[key] = random_value(&mut numbers, 4);
        }
        let kinds =
            ["m.room.message", "m.room.member", "m.room.power_levels", "m.room.topic", "m.room.create"];
        let kind = numbers.pick::<str>(&kinds);
        let pdu = build(rules, kind, Some("@alice:a"), content.clone(), |_| {}).unwrap();
        assert_eq!(pdu.content_as::<Value>().unwrap(), content);
        let shuffled = serde_json::to_string_pretty(&value_of(&pdu)).unwrap();
        let verified = ReceivedPdu::parse(rules, &shuffled).unwrap().verify(rules, &keys_of(&["a"])).unwrap();
        assert!(!verified.is_redacted());
        assert_eq!(verified.pdu(), &pdu);
        let stored = Pdu::from_stored(rules, pdu.event_id().to_owned(), pdu.bytes().clone()).unwrap();
        assert_eq!(
            (stored.sender(), stored.kind(), stored.state_key()),
            (pdu.sender(), pdu.kind(), pdu.state_key())
        );
        // ruma writes the same canonical JSON.
        let theirs: CanonicalJsonObject = serde_json::from_str(pdu.json()).unwrap();
        assert_eq!(serde_json::to_string(&theirs).unwrap(), pdu.json());
    }
}

#[test]
fn damaged_bytes_never_panic_and_never_verify() {
    let mut numbers = Numbers(7);
    let keys = keys_of(&["a"]);
    for round in 0..4_000 {
        let rules = RoomRules::all()[round % 12];
        let good = message(rules);
        let mut bytes = good.json().as_bytes().to_vec();
        for _ in 0..=numbers.below(3) {
            let at = numbers.below(bytes.len().max(1));
            match numbers.below(4) {
                _ if bytes.is_empty() => {}
                0 => bytes[at] = numbers.next() as u8,
                1 => drop(bytes.remove(at)),
                2 => bytes.insert(at, b"\"{}[],:0-e\\"[numbers.below(11)]),
                _ => bytes.truncate(at.max(1)),
            }
        }
        let Ok(text) = String::from_utf8(bytes) else { continue };
        let Ok(received) = ReceivedPdu::parse(rules, &text) else { continue };
        let again = ReceivedPdu::parse(rules, received.pdu().json()).unwrap();
        assert_eq!(again.pdu(), received.pdu(), "reading is idempotent");
        if let Ok(verified) = received.verify(rules, &keys)
            && !verified.is_redacted()
        {
            assert_eq!(verified.pdu(), &good, "only what was signed verifies");
        }
    }
}
