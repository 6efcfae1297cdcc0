//! Forks and what becomes of them: hand-made disputes, random rooms against ruma, every order of arrival.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;

use common::{Room, StateMap, random::random_room};
use hearth_dag::{
    Pdu, StateKey, StateResolution,
    resolve::{Resolution, Step},
};
use ruma::{
    EventId, OwnedEventId,
    events::StateEventType,
    room_version_rules::StateResolutionVersion,
    state_res::{self, utils::event_id_set::EventIdSet},
};
use serde_json::json;

const VERSIONS: [&str; 12] = ["1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12"];

fn key(kind: &str, state_key: &str) -> StateKey {
    (StateEventType::from(kind), state_key.to_owned())
}

/// What ruma makes of the same states.
fn resolve_with_ruma(room: &Room, forks: &[&StateMap]) -> StateMap {
    let StateResolutionVersion::V2(v2) = &room.rules.inner.state_res else { panic!("not for version 1") };
    let maps: Vec<state_res::StateMap<OwnedEventId>> =
        forks.iter().map(|fork| fork.iter().map(|(k, v)| (k.clone(), v.clone())).collect()).collect();
    let chains =
        forks.iter().map(|fork| room.auth_chain(fork).into_iter().collect::<EventIdSet<_>>()).collect();
    let (_, conflict) = room.conflict(forks);
    let resolved = state_res::resolve(
        &room.rules.inner.authorization,
        v2,
        &maps,
        chains,
        |id: &EventId| room.events.get(id).cloned(),
        |_| Some(conflict.subgraph.iter().cloned().collect()),
    );
    resolved.unwrap().into_iter().collect()
}

#[test]
fn a_ban_wins_over_what_the_banned_user_did_meanwhile() {
    for version in VERSIONS {
        let mut room = Room::new(version);
        let base = room.found();
        let bob = room.member("@bob:b", "@bob:b", "join", &[&base]);
        let power = room.state(
            "@alice:a",
            "m.room.power_levels",
            "",
            json!({ "users": match version { "12" => json!({ "@bob:b": 50 }), _ => json!({ "@alice:a": 100, "@bob:b": 50 }) } }),
            &[&bob],
        );
        let ban = room.member("@alice:a", "@bob:b", "ban", &[&power]);
        let topic = room.state("@bob:b", "m.room.topic", "", json!({ "topic": "mine" }), &[&power]);
        assert!(room.rejected.is_empty(), "version {version}");
        let state = room.state_before(&[&ban, &topic]);
        assert_eq!(state[&key("m.room.member", "@bob:b")], ban, "version {version}");
        // Version 1 does not know of power events, and a key that one fork only has is not in conflict there.
        let topic_stands = version == "1";
        assert_eq!(state.contains_key(&key("m.room.topic", "")), topic_stands, "version {version}");
    }
}

#[test]
fn the_change_by_the_more_powerful_user_comes_first() {
    for version in &VERSIONS[1..] {
        let mut room = Room::new(version);
        let base = room.found();
        let bob = room.member("@bob:b", "@bob:b", "join", &[&base]);
        let creator = if *version == "12" { json!({}) } else { json!({ "@alice:a": 100 }) };
        let with = |extra: serde_json::Value| {
            let mut users = creator.clone();
            users.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            json!({ "users": users })
        };
        let power = room.state("@alice:a", "m.room.power_levels", "", with(json!({ "@bob:b": 50 })), &[&bob]);
        let demote = room.state("@alice:a", "m.room.power_levels", "", with(json!({})), &[&power]);
        let promote = room.state(
            "@bob:b",
            "m.room.power_levels",
            "",
            with(json!({ "@bob:b": 50, "@carol:c": 50 })),
            &[&power],
        );
        assert!(room.rejected.is_empty());
        for forks in [[&demote, &promote], [&promote, &demote]] {
            let state = room.state_before(&forks);
            assert_eq!(state[&key("m.room.power_levels", "")], demote, "version {version}");
        }
    }
}

#[test]
fn version_1_lets_the_deepest_allowed_event_win_and_follows_power_levels_upwards() {
    let mut room = Room::new("1");
    let base = room.found();
    let shallow = room.state("@alice:a", "m.room.topic", "", json!({ "topic": "shallow" }), &[&base]);
    let name = room.state("@alice:a", "m.room.name", "", json!({ "name": "only here" }), &[&base]);
    let deep = room.state("@alice:a", "m.room.topic", "", json!({ "topic": "deep" }), &[&name]);
    let state = room.state_before(&[&shallow, &deep]);
    assert_eq!(state[&key("m.room.topic", "")], deep);
    assert_eq!(state[&key("m.room.name", "")], name, "what one fork only has is not in conflict");

    let first = json!({ "users": { "@alice:a": 100, "@bob:b": 60 } });
    let second = json!({ "users": { "@alice:a": 100, "@bob:b": 70 } });
    let low = room.state("@alice:a", "m.room.power_levels", "", first, &[&base]);
    let high = room.state("@alice:a", "m.room.power_levels", "", second, &[&deep]);
    let state = room.state_before(&[&low, &high]);
    assert_eq!(state[&key("m.room.power_levels", "")], high, "the shallow one allows the deep one");
}

#[test]
fn version_1_falls_back_to_the_shallowest_event_if_none_is_allowed() {
    let mut room = Room::new("1");
    let base = room.found();
    let bob = room.member("@bob:b", "@bob:b", "join", &[&base]);
    let users = json!({ "users": { "@alice:a": 100, "@bob:b": 50 } });
    let power = room.state("@alice:a", "m.room.power_levels", "", users, &[&bob]);
    let low = room.state("@bob:b", "m.room.topic", "", json!({ "topic": "1" }), &[&power]);
    let more = room.send("@bob:b", "m.room.message", None, json!({}), &[&power]);
    let high = room.state("@bob:b", "m.room.topic", "", json!({ "topic": "2" }), &[&more]);
    // Both topics stand on Bob's power, which the other fork of the same depth as nothing takes away.
    let (mut a, mut b) = (room.states[&low].clone(), room.states[&high].clone());
    let ban = room.member("@alice:a", "@bob:b", "ban", &[&power]);
    a.insert(key("m.room.member", "@bob:b"), ban.clone());
    b.insert(key("m.room.member", "@bob:b"), ban);
    assert_eq!(room.resolve(&[&a, &b])[&key("m.room.topic", "")], low);
}

#[test]
fn floats_as_power_levels_do_not_stop_old_rooms() {
    let mut room = Room::new("4");
    let base = room.found();
    let a = json!({ "users": { "@alice:a": 100.7 }, "ban": 50.5 });
    let b = json!({ "users": { "@alice:a": " 100 " }, "ban": "+40" });
    let a = room.state("@alice:a", "m.room.power_levels", "", a, &[&base]);
    let b = room.state("@alice:a", "m.room.power_levels", "", b, &[&base]);
    assert!(room.rejected.is_empty());
    assert_eq!(room.state_before(&[&a, &b])[&key("m.room.power_levels", "")], b, "the later one stands");
}

#[test]
fn random_rooms_resolve_as_with_ruma() {
    let mut disputes = 0;
    for version in ["2", "6", "10", "11", "12"] {
        for seed in 0..16 {
            let (room, forks) = random_room(version, seed, 60);
            let states: Vec<&StateMap> = forks.iter().map(|fork| &room.states[fork]).collect();
            disputes += room.conflict(&states).1.keys.len();
            assert_eq!(
                room.resolve(&states),
                resolve_with_ruma(&room, &states),
                "version {version} seed {seed}"
            );
        }
    }
    assert!(disputes > 100, "the rooms hardly disagree: {disputes}");
}

#[test]
fn every_order_of_forks_and_answers_gives_one_state() {
    for version in VERSIONS {
        for seed in 100..103 {
            let (room, forks) = random_room(version, seed, 40);
            let states: Vec<&StateMap> = forks.iter().map(|fork| &room.states[fork]).collect();
            let expected = room.resolve(&states);
            for order in permutations(states.len()) {
                let permuted: Vec<&StateMap> = order.iter().map(|index| states[*index]).collect();
                assert_eq!(
                    room.resolve(&permuted),
                    expected,
                    "version {version} seed {seed} order {order:?}"
                );
            }
            let (unconflicted, conflict) = room.conflict(&states);
            if conflict.keys.is_empty() {
                continue;
            }
            // All events of the room given at once and backwards, before anyone asked.
            let mut eager = Resolution::new(room.rules, conflict.clone());
            let mut events: Vec<_> = room.events.values().cloned().collect();
            events.sort_by(|a, b| b.event_id().cmp(a.event_id()));
            events.into_iter().for_each(|event| eager.event(event, false));
            let mut state = unconflicted.clone();
            state.extend(room.run(&mut eager, &unconflicted));
            assert_eq!(state, expected, "version {version} seed {seed} eager");
        }
    }
}

#[test]
fn events_of_a_fork_are_decided_alike_in_every_order_of_arrival() {
    // Three events on one base, merged pairwise in each order: the state of all three is the same.
    for version in &VERSIONS[1..] {
        for seed in 200..210 {
            let (mut room, forks) = random_room(version, seed, 30);
            if forks.len() < 3 {
                continue;
            }
            let mut results = Vec::new();
            for order in permutations(3) {
                let picked: Vec<&OwnedEventId> = order.iter().map(|index| &forks[*index]).collect();
                let message =
                    room.send("@alice:a", "m.room.message", None, json!({ "order": order }), &picked);
                results.push(room.states[&message].clone());
            }
            assert!(results.windows(2).all(|pair| pair[0] == pair[1]), "version {version} seed {seed}");
        }
    }
}

#[test]
fn missing_and_malformed_events_are_left_out() {
    for version in VERSIONS {
        let mut room = Room::new(version);
        let base = room.found();
        let a = room.state("@alice:a", "m.room.topic", "", json!({ "topic": "a" }), &[&base]);
        let b = room.state("@alice:a", "m.room.topic", "", json!({ "topic": "b" }), &[&base]);
        let (unconflicted, conflict) = room.conflict(&[&room.states[&a], &room.states[&b]]);
        room.events.remove(&b);
        let mut resolution = Resolution::new(room.rules, conflict.clone());
        let resolved = room.run(&mut resolution, &unconflicted);
        assert_eq!(resolved, BTreeMap::from([(key("m.room.topic", ""), a.clone())]), "version {version}");
        room.events.clear();
        let resolved = room.run(&mut Resolution::new(room.rules, conflict), &unconflicted);
        assert_eq!(resolved, BTreeMap::new(), "version {version}");
    }
}

#[test]
fn a_long_history_of_power_levels_is_asked_for_step_by_step() {
    let mut room = Room::new("10");
    let mut last = room.found();
    for level in 0..200 {
        let content = json!({ "users": { "@alice:a": 100 }, "invite": level % 7 });
        last = room.state("@alice:a", "m.room.power_levels", "", content, &[&last]);
    }
    let a = room.state("@alice:a", "m.room.topic", "", json!({ "topic": "a" }), &[&last]);
    let b = room.state("@alice:a", "m.room.topic", "", json!({ "topic": "b" }), &[&last]);
    let (unconflicted, conflict) = room.conflict(&[&room.states[&a], &room.states[&b]]);
    let mut resolution = Resolution::new(room.rules, conflict);
    let (mut steps, mut largest) = (0, 0);
    let resolved = loop {
        steps += 1;
        match resolution.step() {
            Step::Events(ids) => {
                largest = largest.max(ids.len());
                ids.iter().for_each(|id| resolution.event(room.events[id].clone(), false));
            }
            Step::Unconflicted(keys) => {
                keys.into_iter().for_each(|key| {
                    let held = unconflicted.get(&key).cloned();
                    resolution.unconflicted(key, held);
                });
            }
            Step::Done(resolved) => break resolved,
        }
    };
    assert_eq!(resolved[&key("m.room.topic", "")], b);
    assert!(steps <= 210 && largest <= 10, "{steps} steps, {largest} events at once");
}

#[test]
fn each_version_has_its_algorithm() {
    for version in VERSIONS {
        let expected = match version {
            "1" => StateResolution::V1,
            "12" => StateResolution::V2_1,
            _ => StateResolution::V2,
        };
        assert_eq!(common::rules(version).state_resolution, expected);
    }
}

fn permutations(length: usize) -> Vec<Vec<usize>> {
    if length == 0 {
        return vec![Vec::new()];
    }
    let shorter = permutations(length - 1);
    let insert = |order: &Vec<usize>, at: usize| {
        let mut order = order.clone();
        order.insert(at, length - 1);
        order
    };
    shorter.iter().flat_map(|order| (0..length).map(move |at| insert(order, at))).collect()
}

/// Rooms that another implementation resolved to the same state (tests/interop/resolution), the smallest in which the
/// rules decide and not the clock.
#[test]
fn the_corpus_resolves_as_it_did() {
    let corpus = include_str!("data/resolution.jsonl");
    let mut rooms = 0;
    for line in corpus.lines() {
        let told: serde_json::Value = serde_json::from_str(line).unwrap();
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        let mut room = Room::new(&text(&told["room_version"]));
        for event in told["events"].as_array().unwrap() {
            let id = OwnedEventId::try_from(text(&event["event_id"])).unwrap();
            let json = event["pdu"].to_string().into();
            room.events.insert(id.clone(), Pdu::from_stored(room.rules, id, json).unwrap());
        }
        let state = |rows: &serde_json::Value| -> StateMap {
            let rows = rows.as_array().unwrap().iter();
            rows.map(|row| (key(&text(&row[0]), &text(&row[1])), text(&row[2]).try_into().unwrap())).collect()
        };
        let states: Vec<StateMap> = told["states"].as_array().unwrap().iter().map(state).collect();
        let resolved = room.resolve(&states.iter().collect::<Vec<_>>());
        assert_eq!(
            resolved,
            state(&told["resolved"]),
            "version {} seed {}",
            told["room_version"],
            told["seed"]
        );
        rooms += 1;
    }
    assert!(rooms >= 20, "{rooms} rooms");
}
