//! Prints rooms that fell apart, and what we make of the states at their ends: a line of JSON for each, for comparing
//! with other implementations.
//!
//!     cargo build --release --workspace --example random_rooms
//!     target/release/examples/random_rooms VERSION COUNT [FIRST_SEED]
//!
//! Only rooms whose ends are in conflict are printed and counted.
#[path = "../tests/common/mod.rs"]
mod common;

use std::io::Write as _;

use common::{Room, StateMap, random::random_room};
use ruma::OwnedEventId;
use serde_json::{Value, json};

/// What is done in a room: few enough that a difference can be read, enough that forks matter.
const ACTIONS: [usize; 3] = [15, 30, 60];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let version = arguments.next().ok_or("the first argument is a room version")?;
    let mut left: u64 = arguments.next().ok_or("the second argument is a count")?.parse()?;
    let mut seed: u64 = arguments.next().map_or(Ok(0), |seed| seed.parse())?;
    let mut out = std::io::stdout().lock();
    while left > 0 {
        let (room, forks) = random_room(&version, seed, ACTIONS[(seed % 3) as usize]);
        let states: Vec<&StateMap> = forks.iter().map(|fork| &room.states[fork]).collect();
        if !room.conflict(&states).1.keys.is_empty() {
            writeln!(out, "{}", described(&room, seed, &states)?)?;
            left -= 1;
        }
        seed += 1;
    }
    Ok(())
}

fn described(room: &Room, seed: u64, states: &[&StateMap]) -> Result<Value, serde_json::Error> {
    let resolved = room.resolve(states);
    let mut events = Vec::new();
    for (id, pdu) in &room.events {
        events.push(json!({ "event_id": id, "pdu": serde_json::from_str::<Value>(pdu.json())? }));
    }
    Ok(json!({
        "room_version": room.rules.version,
        "room_id": room.room_id,
        "seed": seed,
        "events": events,
        "states": states.iter().map(|state| rows(state)).collect::<Vec<_>>(),
        "differs_from_last_writer_wins": resolved != last_writer_wins(room, states),
        "resolved": rows(&resolved),
    }))
}

fn rows(state: &StateMap) -> Vec<(String, &str, &OwnedEventId)> {
    state.iter().map(|((kind, key), id)| (kind.to_string(), key.as_str(), id)).collect()
}

/// What a server without rules would do.
fn last_writer_wins(room: &Room, states: &[&StateMap]) -> StateMap {
    let mut all = StateMap::new();
    for (key, id) in states.iter().flat_map(|state| state.iter()) {
        let age = |id: &OwnedEventId| (room.events[id].origin_server_ts(), id.clone());
        let newest = all.get(key).is_none_or(|held| age(held) < age(id));
        if newest {
            all.insert(key.clone(), id.clone());
        }
    }
    all
}
