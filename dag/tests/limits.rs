//! The specification's bounds on events, each at the limit and one past, when building and when receiving.
#![allow(clippy::unwrap_used)]

mod common;

use common::{build, keypair, message, value_of, versions};
use hearth_dag::{
    BuildError, Draft, Pdu, Place, ReceivedPdu, Rejection, RoomRules, canonical::NotCanonical, limits,
};
use ruma::{MilliSecondsSinceUnixEpoch, OwnedEventId, RoomId, UInt, UserId, server_name};
use serde_json::{Value, json, value::to_raw_value};

/// An event of exactly this many bytes.
fn of_size(rules: &RoomRules, bytes: usize) -> Result<Pdu, BuildError> {
    let empty = build(rules, "m.room.message", None, json!({ "body": "" }), |_| {}).unwrap();
    let body = "x".repeat(bytes - empty.json().len());
    build(rules, "m.room.message", None, json!({ "body": body }), |_| {})
}

#[test]
fn whole_events() {
    for rules in versions() {
        let largest = of_size(rules, limits::MAX_EVENT_BYTES).unwrap();
        assert_eq!(largest.json().len(), 65_536);
        assert_eq!(ReceivedPdu::parse(rules, largest.json()).unwrap().pdu(), &largest);
        let error = of_size(rules, limits::MAX_EVENT_BYTES + 1).unwrap_err();
        assert_eq!(error, BuildError::TooLarge { bytes: 65_537 });
        let mut larger = value_of(&largest);
        larger["content"]["body"] = format!("{}x", larger["content"]["body"].as_str().unwrap()).into();
        let error = ReceivedPdu::parse(rules, &larger.to_string()).unwrap_err();
        assert_eq!(error, Rejection::EventTooLarge { bytes: 65_537 });
        // White space and `unsigned` do not count.
        let mut padded = value_of(&largest);
        padded["unsigned"] = json!({ "x": "y".repeat(1000) });
        let padded = serde_json::to_string_pretty(&padded).unwrap();
        assert_eq!(ReceivedPdu::parse(rules, &padded).unwrap().pdu(), &largest);
    }
}

#[test]
fn types_state_keys_and_ids() {
    for rules in versions() {
        let long = |bytes: usize| "é".repeat(bytes / 2) + &"x".repeat(bytes % 2);
        for bytes in [255, 256] {
            let fits = |result: Result<Pdu, BuildError>, field: &'static str| {
                let expected = if bytes == 255 { Ok(()) } else { Err(BuildError::FieldTooLong { field }) };
                assert_eq!(result.map(drop), expected);
            };
            fits(build(rules, &long(bytes), None, json!({}), |_| {}), "type");
            fits(build(rules, "m.x", Some(&long(bytes)), json!({}), |_| {}), "state key");
            for (key, field, value) in [
                ("type", "type", long(bytes)),
                ("state_key", "state key", long(bytes)),
                ("sender", "sender", format!("@{}:a", long(bytes - 3))),
                ("room_id", "room ID", format!("!{}:a", long(bytes - 3))),
                ("event_id", "event ID", format!("${}:a", long(bytes - 3))),
            ] {
                if key == "event_id" && !rules.opaque_event_ids {
                    continue;
                }
                let mut event = value_of(&message(rules));
                event[key] = value.into();
                let result = ReceivedPdu::parse(rules, &event.to_string()).map(drop);
                let expected = if bytes == 255 { Ok(()) } else { Err(Rejection::FieldTooLong { field }) };
                assert_eq!(result, expected, "version {} {key}", rules.version);
            }
        }
    }
}

#[test]
fn references_and_depth() {
    for rules in versions() {
        let ids = |count: usize| -> Vec<OwnedEventId> {
            (0..count).map(|index| format!("${index}:a").try_into().unwrap()).collect()
        };
        let with = |prev: usize, auth: usize, depth: i64| {
            let draft = Draft {
                sender: UserId::parse("@alice:a").unwrap(),
                kind: "m.x".into(),
                state_key: None,
                content: to_raw_value(&json!({})).unwrap(),
                redacts: None,
            };
            let room_id = RoomId::parse("!room:a").unwrap();
            let place = Place {
                room_id: Some(&room_id),
                prev_events: &ids(prev),
                auth_events: &ids(auth),
                depth,
                origin_server_ts: MilliSecondsSinceUnixEpoch(UInt::from(1_u32)),
                hashes: None,
            };
            draft.build(rules, &place, &keypair(server_name!("a")))
        };
        let largest = with(20, 10, i64::MAX).unwrap();
        assert_eq!(largest.depth(), rules.max_depth, "deeper is cut off");
        assert_eq!(with(0, 0, -1).unwrap().depth(), 0);
        assert!(ReceivedPdu::parse(rules, largest.json()).is_ok());
        assert_eq!(with(21, 10, 1).unwrap_err(), BuildError::TooManyPrevEvents);
        assert_eq!(with(20, 11, 1).unwrap_err(), BuildError::TooManyAuthEvents);
        for (key, rejection) in
            [("prev_events", Rejection::TooManyPrevEvents), ("auth_events", Rejection::TooManyAuthEvents)]
        {
            let mut event = value_of(&largest);
            let more = event[key][0].clone();
            event[key].as_array_mut().unwrap().push(more);
            assert_eq!(ReceivedPdu::parse(rules, &event.to_string()).unwrap_err(), rejection);
        }
        let depth = |depth: Value| {
            let mut event = value_of(&message(rules));
            event["depth"] = depth;
            ReceivedPdu::parse(rules, &event.to_string()).map(drop)
        };
        let malformed = Err(Rejection::MalformedField { field: "depth" });
        assert_eq!(depth(json!(rules.max_depth)), Ok(()));
        assert_eq!(depth(json!(-1)), malformed);
        assert_eq!(depth(json!("1")), malformed);
        match rules.strict_canonical_json {
            true => assert_eq!(depth(json!(1_i64 << 53)), Err(NotCanonical::IntegerOutOfRange.into())),
            false => assert_eq!(depth(json!(1_u64 << 63)), malformed),
        }
    }
}

#[test]
fn nesting() {
    let nested = |depth: usize| (0..depth).fold(json!(1), |inner, _| json!([inner]));
    for rules in versions() {
        // The content is one level, in the event's one level.
        let at = |depth: usize| build(rules, "m.x", None, json!({ "x": nested(depth) }), |_| {});
        let deepest = at(limits::MAX_NESTING - 2).unwrap();
        assert!(ReceivedPdu::parse(rules, deepest.json()).is_ok());
        let too_deep = BuildError::NotCanonical(NotCanonical::TooDeep);
        assert_eq!(at(limits::MAX_NESTING).unwrap_err(), too_deep);
        assert_eq!(at(limits::MAX_NESTING - 1).unwrap_err(), too_deep, "as an event it would be too deep");
    }
}
