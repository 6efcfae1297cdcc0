//! Rooms of servers that do not hear of each other in time, the same for each seed.

use ruma::OwnedEventId;
use serde_json::json;

use super::{Numbers, Room};

/// A room in which servers act on forks, each as an honest server would.
pub fn random_room(version: &str, seed: u64, actions: usize) -> (Room, Vec<OwnedEventId>) {
    let mut numbers = Numbers(seed);
    let mut room = Room::new(version);
    let users = ["@alice:a", "@bob:b", "@carol:c", "@dave:d"];
    let mut last = room.found();
    for user in &users[1..] {
        last = room.member(user, user, "join", &[&last]);
    }
    let creators_listed = version != "12";
    let mut users_map = json!({ "@bob:b": 50, "@carol:c": 50 });
    if creators_listed {
        users_map["@alice:a"] = 100.into();
    }
    let mut forks =
        vec![room.state("@alice:a", "m.room.power_levels", "", json!({ "users": users_map }), &[&last])];
    for _ in 0..actions {
        let sender = numbers.pick::<str>(&users);
        let target = numbers.pick::<str>(&users);
        let from = forks[numbers.below(forks.len())].clone();
        let mut after = vec![from.clone()];
        if numbers.below(5) == 0 {
            after.push(forks[numbers.below(forks.len())].clone());
            after.dedup();
        }
        // Clocks of different servers disagree.
        room.clock = 2_000 + numbers.next() % 50;
        let after: Vec<&OwnedEventId> = after.iter().collect();
        let (kind, state_key, content) = match numbers.below(9) {
            0 => ("m.room.topic", "", json!({ "topic": numbers.below(1000) })),
            1 => ("m.room.name", "", json!({ "name": numbers.below(1000) })),
            2 => ("m.room.member", target, json!({ "membership": "ban" })),
            3 => ("m.room.member", target, json!({ "membership": "leave" })),
            4 => ("m.room.member", sender, json!({ "membership": "join" })),
            5 => ("m.room.member", target, json!({ "membership": "invite" })),
            6 => {
                let rule = numbers.pick::<str>(&["public", "invite"]);
                ("m.room.join_rules", "", json!({ "join_rule": rule }))
            }
            _ => {
                let default = [0, 25, 50][numbers.below(3)];
                let mut levels = json!({ "users": users_map, "state_default": default });
                for user in &users[1..] {
                    levels["users"][*user] = [0, 25, 50, 50, 60][numbers.below(5)].into();
                }
                ("m.room.power_levels", "", levels)
            }
        };
        let before = room.state_before(&after);
        let pdu = room.build(sender, kind, Some(state_key), content, &after, &before);
        if room.verdict(&pdu, &before).is_err() || room.events.contains_key(pdu.event_id()) {
            continue;
        }
        let event_id = room.add(pdu, before, true);
        if forks.len() < 4 && numbers.below(3) == 0 {
            forks.push(event_id);
        } else {
            let replaced = forks.iter().position(|fork| *fork == from).unwrap();
            forks[replaced] = event_id;
        }
    }
    (room, forks)
}
