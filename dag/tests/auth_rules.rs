//! The authorization rules, one case of `data/auth_rules.json` at a time, in each version that it names, and each
//! verdict beside ruma's.
//!
//! The room of a case: Alice created it (and has power 100), Bob has 50, Carol nothing; all three are joined. `create`
//! and `power` are merged into those events' content (`null` for no power levels), `join_rule` is the room's rule,
//! `members` adds members. `$same` in power levels begins with the room's current ones; there `null` takes away.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;

use common::{Room, StateMap};
use hearth_dag::{
    Create, Draft, Pdu, Place, PowerLevels, Rejection, Signer, auth_keys, check_auth_events, check_with,
};
use ruma::{
    EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, UserId, events::StateEventType, state_res, uint,
};
use serde::Deserialize;
use serde_json::{Map, Value, json, value::to_raw_value};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    #[serde(default)]
    versions: Option<String>,
    #[serde(default)]
    create: Map<String, Value>,
    #[serde(default = "some_levels")]
    power: Option<Map<String, Value>>,
    #[serde(default = "public")]
    join_rule: Value,
    #[serde(default)]
    members: BTreeMap<String, String>,
    event: (String, String, Option<String>, Map<String, Value>),
    #[serde(default)]
    redacts: Option<String>,
    #[serde(default)]
    rejection: Option<String>,
    /// What ruma does where it decides otherwise.
    #[serde(default)]
    ruma: Option<String>,
}

fn some_levels() -> Option<Map<String, Value>> {
    Some(Map::new())
}

fn public() -> Value {
    "public".into()
}

/// `into` with the values of `changes`; objects within are merged too, `null` removes.
fn merge(into: &mut Map<String, Value>, changes: &Map<String, Value>) {
    for (key, change) in changes {
        match (into.get_mut(key), change) {
            (Some(Value::Object(old)), Value::Object(new)) => merge(old, new),
            (_, Value::Null) => drop(into.remove(key)),
            _ => drop(into.insert(key.clone(), change.clone())),
        }
    }
}

/// The state of a case: each event stands, whatever the rules would say to it.
fn state_of(case: &Case, room: &mut Room) -> (StateMap, Map<String, Value>) {
    let create = room.create(Value::Object(case.create.clone()));
    let mut state = room.states[&create].clone();
    let mut put = |room: &mut Room, sender: &str, kind: &str, key: &str, content: Value| {
        let pdu = room.build(sender, kind, Some(key), content, &[&create], &state);
        state.insert(pdu.state_entry().unwrap(), pdu.event_id().to_owned());
        room.events.insert(pdu.event_id().to_owned(), pdu);
    };
    let mut members: BTreeMap<String, String> =
        ["@alice:a", "@bob:b", "@carol:c"].map(|user| (user.to_owned(), "join".to_owned())).into();
    members.extend(case.members.clone());
    for (user, membership) in members {
        put(room, &user, "m.room.member", &user, json!({ "membership": membership }));
    }
    let mut levels = Map::new();
    if let Some(changes) = &case.power {
        let users = match room.rules.creators_have_infinite_power {
            true => json!({ "@bob:b": 50 }),
            false => json!({ "@alice:a": 100, "@bob:b": 50 }),
        };
        levels = json!({ "users": users }).as_object().unwrap().clone();
        merge(&mut levels, changes);
        put(room, "@alice:a", "m.room.power_levels", "", Value::Object(levels.clone()));
    }
    if !case.join_rule.is_null() {
        put(room, "@alice:a", "m.room.join_rules", "", json!({ "join_rule": case.join_rule }));
    }
    (state, levels)
}

fn event_of(case: &Case, room: &Room, state: &StateMap, levels: &Map<String, Value>) -> Pdu {
    let (sender, kind, state_key, content) = &case.event;
    let mut content = content.clone();
    if content.remove("$same").is_some() {
        let changes = std::mem::replace(&mut content, levels.clone());
        merge(&mut content, &changes);
    }
    // A second event, so that a join is not the one that follows the create event.
    let prev_events: Vec<OwnedEventId> = state.values().take(2).cloned().collect();
    let place = Place {
        room_id: room.room_id.as_deref(),
        prev_events: &prev_events,
        auth_events: &[],
        depth: 9,
        origin_server_ts: MilliSecondsSinceUnixEpoch(uint!(9)),
        hashes: None,
    };
    let sender = UserId::parse(sender.as_str()).unwrap();
    let key = room.key(sender.server_name());
    let draft = Draft {
        sender,
        kind: kind.as_str().into(),
        state_key: state_key.clone(),
        content: to_raw_value(&content).unwrap(),
        redacts: case.redacts.as_deref().map(|id| OwnedEventId::try_from(id).unwrap()),
    };
    draft.build(room.rules, &place, &*key as &dyn Signer).unwrap()
}

fn name_of(rejection: &Rejection) -> String {
    let debug = format!("{rejection:?}");
    debug.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap().to_owned()
}

#[test]
fn each_case_in_each_version_and_beside_ruma() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("data/auth_rules.json")).unwrap();
    let mut tried = 0;
    for case in &cases {
        let (first, last) = case.versions.as_deref().unwrap_or("1-12").split_once('-').unwrap();
        for version in first.parse::<u32>().unwrap()..=last.parse().unwrap() {
            let about = format!("{} (version {version})", case.name);
            let mut room = Room::new(&version.to_string());
            let (state, levels) = state_of(case, &mut room);
            let event = event_of(case, &room, &state, &levels);
            let verdict = room.verdict(&event, &state);
            let name = verdict.as_ref().err().map(name_of);
            assert_eq!(name, case.rejection, "{about}: {verdict:?}");
            if let Err(rejection) = &verdict {
                assert!(rejection.to_string().len() > 15, "{about}: {rejection}");
            }

            // The same with what callers keep at hand.
            let create = room.lookup(&state, &StateEventType::RoomCreate, "").unwrap();
            let create = Create::of(room.rules, &create).unwrap();
            let power = room.lookup(&state, &StateEventType::RoomPowerLevels, "");
            let levels = PowerLevels::of(room.rules, &create, power.as_ref()).unwrap();
            let lookup = |kind: &StateEventType, key: &str| {
                assert!(!matches!(kind, StateEventType::RoomCreate | StateEventType::RoomPowerLevels));
                room.lookup(&state, kind, key)
            };
            let with = check_with(room.rules, &event, &create, &levels, power.is_some(), lookup);
            assert_eq!(with, verdict, "{about}");

            let ruma = state_res::check_state_dependent_auth_rules(
                &room.rules.inner.authorization,
                &event,
                |kind, key| room.lookup(&state, kind, key),
            );
            let differs = case.ruma.as_deref() == Some("refuses");
            assert_eq!(ruma.is_ok(), verdict.is_ok() && !differs, "{about}: ruma says {ruma:?}");
            tried += 1;
        }
    }
    assert!(tried > 1_000, "{tried}");
}

#[test]
fn the_creator_joins_right_after_creating() {
    for version in 1..=12 {
        let mut room = Room::new(&version.to_string());
        let create = room.create(json!({}));
        let join = room.member("@alice:a", "@alice:a", "join", &[&create]);
        assert!(!room.rejected.contains(&join), "version {version}");
        let other = room.member("@bob:b", "@bob:b", "join", &[&create]);
        assert!(room.rejected.contains(&other), "version {version}");
    }
}

#[test]
fn the_selection_of_auth_events() {
    for version in 1..=12 {
        let rules = common::rules(&version.to_string());
        let sender = UserId::parse("@bob:b").unwrap();
        let keys = |kind: &str, state_key: Option<&str>, content: Value| -> Vec<String> {
            let keys = auth_keys(rules, &kind.into(), &sender, state_key, &content.to_string()).unwrap();
            let mut keys: Vec<_> = keys
                .into_iter()
                .map(|(kind, key)| format!("{} {key}", kind.to_string().trim_start_matches("m.room.")))
                .filter(|key| key != "power_levels " && key != "member @bob:b")
                .collect();
            // In version 12 the create event is never among them, before it always is, except for itself.
            let create = keys.iter().position(|key| key == "create ");
            assert_eq!(create.is_some(), version < 12 && kind != "m.room.create", "version {version} {kind}");
            create.map(|index| keys.remove(index));
            keys
        };
        let none: [&str; 0] = [];
        assert_eq!(keys("m.room.create", Some(""), json!({})), none);
        assert_eq!(keys("m.room.message", None, json!({})), none);
        let member = |target: &str, content: Value| keys("m.room.member", Some(target), content);
        assert_eq!(member("@bob:b", json!({ "membership": "join" })), ["join_rules "]);
        assert_eq!(member("@bob:b", json!({ "membership": "leave" })), none);
        assert_eq!(member("@eve:e", json!({ "membership": "ban" })), ["member @eve:e"]);
        assert_eq!(member("@eve:e", json!({ "membership": "invite" })), ["member @eve:e", "join_rules "]);
        let third = json!({ "membership": "invite", "third_party_invite": { "signed": { "token": "t" } } });
        assert_eq!(member("@eve:e", third), ["member @eve:e", "join_rules ", "third_party_invite t"]);
        let restricted = json!({ "membership": "join", "join_authorised_via_users_server": "@eve:e" });
        let expected: &[&str] =
            if version >= 8 { &["join_rules ", "member @eve:e"] } else { &["join_rules "] };
        assert_eq!(member("@bob:b", restricted), expected, "version {version}");
        let malformed = [
            json!({}),
            json!({ "membership": 1 }),
            json!({ "membership": "invite", "third_party_invite": {} }),
            json!({ "membership": "invite", "third_party_invite": { "signed": {} } }),
        ];
        for content in malformed {
            let keys =
                auth_keys(rules, &"m.room.member".into(), &sender, Some("@bob:b"), &content.to_string());
            assert!(keys.is_err(), "{content}");
        }
        let keyless = auth_keys(rules, &"m.room.member".into(), &sender, None, "{\"membership\":\"join\"}");
        assert!(keyless.is_err());
    }
}

/// A message with chosen auth events in a room whose events are known; ruma must agree on whether it may stand.
fn verdict_on_auth_events(room: &Room, auth_events: &[&OwnedEventId]) -> Option<String> {
    let auth_events: Vec<_> = auth_events.iter().map(|id| (*id).clone()).collect();
    let place = Place {
        room_id: room.room_id.as_deref(),
        prev_events: &auth_events[..1],
        auth_events: &auth_events,
        depth: 9,
        origin_server_ts: MilliSecondsSinceUnixEpoch(uint!(9)),
        hashes: None,
    };
    let sender = UserId::parse("@alice:a").unwrap();
    let key = room.key(sender.server_name());
    let content = to_raw_value(&json!({})).unwrap();
    let draft = Draft { sender, kind: "m.room.message".into(), state_key: None, content, redacts: None };
    let pdu = draft.build(room.rules, &place, &*key as &dyn Signer).unwrap();
    let fetch = |id: &EventId| Some((room.events.get(id)?.clone(), room.rejected.contains(id)));
    let verdict = check_auth_events(room.rules, &pdu, fetch);
    let ruma = state_res::check_state_independent_auth_rules(&room.rules.inner.authorization, &pdu, |id| {
        // Our events do not know whether they were rejected.
        room.events.get(id).filter(|_| !room.rejected.contains(id)).cloned()
    });
    assert_eq!(verdict.is_ok(), ruma.is_ok(), "{verdict:?} {ruma:?}");
    verdict.err().map(|rejection| name_of(&rejection))
}

#[test]
fn auth_events_that_do_not_belong() {
    for version in 1..=12 {
        let mut room = Room::new(&version.to_string());
        let create = room.create(json!({}));
        let join = room.member("@alice:a", "@alice:a", "join", &[&create]);
        let power = room.state("@alice:a", "m.room.power_levels", "", json!({ "ban": 0 }), &[&join]);
        let again = room.state("@alice:a", "m.room.power_levels", "", json!({ "ban": 1 }), &[&power]);
        let topic = room.state("@alice:a", "m.room.topic", "", json!({}), &[&power]);
        let bad = room.state("@alice:a", "m.room.power_levels", "", json!({ "ban": "x" }), &[&power]);
        let message = room.send("@alice:a", "m.room.message", None, json!({}), &[&power]);
        assert!(room.rejected.contains(&bad));
        let mut elsewhere = Room::new(&version.to_string());
        elsewhere.room_id = (version < 12).then(|| "!other:a".try_into().unwrap());
        let other = elsewhere.create(json!({ "org.x": 1 }));
        let foreign = elsewhere.member("@alice:a", "@alice:a", "join", &[&other]);
        room.events.extend(elsewhere.events.clone());
        let unknown = OwnedEventId::try_from("$unknown:a").unwrap();

        let with = |more: &[&OwnedEventId]| {
            let mut auth_events = if version < 12 { vec![&create] } else { vec![] };
            auth_events.extend(more);
            verdict_on_auth_events(&room, &auth_events)
        };
        let name = |name: &str| Some(name.to_owned());
        assert_eq!(with(&[&power, &join]), None, "version {version}");
        assert_eq!(with(&[&join]), None, "version {version}");
        assert_eq!(with(&[&power, &again]), name("DuplicateAuthEvent"));
        assert_eq!(with(&[&join, &topic]), name("UnexpectedAuthEvent"));
        assert_eq!(with(&[&join, &message]), name("UnexpectedAuthEvent"));
        assert_eq!(with(&[&bad, &join]), name("RejectedAuthEvent"));
        assert_eq!(with(&[&unknown]), name("UnknownAuthEvent"));
        assert_eq!(with(&[&join, &foreign]), name("AuthEventOfOtherRoom"));
        if version < 12 {
            assert_eq!(verdict_on_auth_events(&room, &[&join]), name("NoCreateEvent"));
        } else {
            assert_eq!(verdict_on_auth_events(&room, &[&join, &create]), name("UnexpectedAuthEvent"));
            room.rejected.insert(create.clone());
            assert_eq!(verdict_on_auth_events(&room, &[&join]), name("RejectedCreateEvent"));
            room.events.remove(&create);
            assert_eq!(verdict_on_auth_events(&room, &[&join]), name("NoCreateEvent"));
        }
    }
}

#[test]
fn create_events() {
    for version in 1..=12_u32 {
        let verdict = |sender: &str, content: Value, prev: &[OwnedEventId]| {
            let room = Room::new(&version.to_string());
            let place = Place {
                room_id: room.room_id.as_deref(),
                prev_events: prev,
                auth_events: &[],
                depth: 1,
                origin_server_ts: MilliSecondsSinceUnixEpoch(uint!(9)),
                hashes: None,
            };
            let sender = UserId::parse(sender).unwrap();
            let key = room.key(sender.server_name());
            let content = to_raw_value(&content).unwrap();
            let state_key = Some(String::new());
            let draft = Draft { sender, kind: "m.room.create".into(), state_key, content, redacts: None };
            let pdu = draft.build(room.rules, &place, &*key as &dyn Signer).unwrap();
            let verdict = check_auth_events(room.rules, &pdu, |_| None);
            verdict.err().map(|rejection| name_of(&rejection))
        };
        let good = json!({ "room_version": version.to_string(), "creator": "@alice:a" });
        let with = |key: &str, value: Value| {
            let mut content = good.clone();
            content[key] = value;
            content
        };
        let name = |name: &str| Some(name.to_owned());
        assert_eq!(verdict("@alice:a", good.clone(), &[]), None, "version {version}");
        let prev = [OwnedEventId::try_from("$before:a").unwrap()];
        assert_eq!(verdict("@alice:a", good.clone(), &prev), name("CreateWithPrevEvents"));
        let elsewhere = if version < 12 { name("CreateForOtherServer") } else { None };
        assert_eq!(verdict("@bob:b", good.clone(), &[]), elsewhere, "version {version}");
        let mut anonymous = good.clone();
        anonymous.as_object_mut().unwrap().remove("creator");
        let needed = if version < 11 { name("NoCreator") } else { None };
        assert_eq!(verdict("@alice:a", anonymous, &[]), needed, "version {version}");
        let mut bare = good.clone();
        bare.as_object_mut().unwrap().remove("room_version");
        let one = if version == 1 { None } else { name("WrongRoomVersion") };
        assert_eq!(verdict("@alice:a", bare, &[]), one, "version {version}");
        assert_eq!(verdict("@alice:a", with("room_version", "org.x".into()), &[]), name("WrongRoomVersion"));
        assert_eq!(verdict("@alice:a", with("room_version", json!(1)), &[]), name("WrongRoomVersion"));
        for bad in [json!("@bob:b"), json!([1]), json!(["bob"]), json!({})] {
            let expected = if version == 12 { name("BadAdditionalCreators") } else { None };
            assert_eq!(
                verdict("@alice:a", with("additional_creators", bad), &[]),
                expected,
                "version {version}"
            );
        }
        assert_eq!(verdict("@alice:a", with("additional_creators", json!(["@bob:b"])), &[]), None);
    }
}

mod third_party_invites {
    use super::*;
    use hearth_dag::{Keypair, canonical::Object};

    fn signed(key: &Keypair, mxid: &str) -> Value {
        let text = json!({ "mxid": mxid, "token": "t", "sender": "@bob:b" }).to_string();
        let mut object = Object::parse(&text, true).unwrap();
        hearth_dag::sign_json(key, &mut object);
        serde_json::from_str(&object.to_canonical()).unwrap()
    }

    fn verdict(version: u32, change: impl Fn(&mut Value, &mut StateMap, &mut Room)) -> Option<String> {
        let case: Case = serde_json::from_value(json!({
            "name": "third party", "event": ["@bob:b", "m.room.message", null, {}]
        }))
        .unwrap();
        let mut room = Room::new(&version.to_string());
        let (mut state, _) = state_of(&case, &mut room);
        let key = common::keypair("id.example".try_into().unwrap());
        let content = json!({
            "display_name": "b…", "key_validity_url": "https://id.example/valid",
            "public_key": common::keypair("another".try_into().unwrap()).public_key_base64(),
            "public_keys": [{ "public_key": "nonsense" }, { "public_key": key.public_key_base64() }],
        });
        let create = state[&(StateEventType::RoomCreate, String::new())].clone();
        let invite =
            room.build("@bob:b", "m.room.third_party_invite", Some("t"), content, &[&create], &state);
        state.insert(invite.state_entry().unwrap(), invite.event_id().to_owned());
        room.events.insert(invite.event_id().to_owned(), invite);
        let mut event = json!({
            "sender": "@bob:b", "target": "@eve:e",
            "content": { "membership": "invite", "third_party_invite": {
                "display_name": "b…", "signed": signed(&key, "@eve:e") } },
        });
        change(&mut event, &mut state, &mut room);
        let (sender, target) = (event["sender"].as_str().unwrap(), event["target"].as_str().unwrap());
        let content = event["content"].clone();
        let pdu = room.build(sender, "m.room.member", Some(target), content, &[&create], &state);
        let verdict = room.verdict(&pdu, &state);
        let ruma = state_res::check_state_dependent_auth_rules(
            &room.rules.inner.authorization,
            &pdu,
            |kind, key| room.lookup(&state, kind, key),
        );
        assert_eq!(verdict.is_ok(), ruma.is_ok(), "version {version}: {verdict:?} {ruma:?}");
        verdict.err().map(|rejection| name_of(&rejection))
    }

    #[test]
    fn each_rule() {
        for version in 1..=12 {
            let name = |name: &str| Some(name.to_owned());
            assert_eq!(verdict(version, |_, _, _| {}), None, "version {version}");
            let of = |change: fn(&mut Value)| verdict(version, |event, _, _| change(event));
            assert_eq!(
                of(|event| event["sender"] = "@carol:c".into()),
                name("ThirdPartyInviteOfOtherSender")
            );
            assert_eq!(
                of(|event| event["target"] = "@mallory:m".into()),
                name("ThirdPartyInviteOfOtherUser")
            );
            let tampered = |event: &mut Value| {
                event["content"]["third_party_invite"]["signed"]["extra"] = 1.into();
            };
            assert_eq!(of(tampered), name("UnsignedThirdPartyInvite"));
            let unknown = |event: &mut Value| {
                event["content"]["third_party_invite"]["signed"]["token"] = "other".into();
            };
            assert_eq!(of(unknown), name("UnknownThirdPartyInvite"));
            let unsigned = |event: &mut Value| {
                event["content"]["third_party_invite"]["signed"]["signatures"] = json!({});
            };
            assert_eq!(of(unsigned), name("UnsignedThirdPartyInvite"));
            for missing in ["mxid", "token"] {
                let verdict = verdict(version, |event, _, _| {
                    let signed = &mut event["content"]["third_party_invite"]["signed"];
                    signed.as_object_mut().unwrap().remove(missing);
                });
                assert_eq!(verdict, name("MalformedThirdPartyInvite"), "{missing}");
            }
            let without = |event: &mut Value| event["content"]["third_party_invite"] = json!({});
            assert_eq!(of(without), name("MalformedThirdPartyInvite"));
            let banned = verdict(version, |_, state, room| {
                let create = state[&(StateEventType::RoomCreate, String::new())].clone();
                let ban = json!({ "membership": "ban" });
                let ban = room.build("@alice:a", "m.room.member", Some("@eve:e"), ban, &[&create], state);
                state.insert(ban.state_entry().unwrap(), ban.event_id().to_owned());
                room.events.insert(ban.event_id().to_owned(), ban);
            });
            assert_eq!(banned, name("Banned"), "version {version}");
        }
    }
}
