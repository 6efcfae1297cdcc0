//! State resolution of room version 1: keys that others depend on first, each by its own kind of vote.
//! * Power levels, join rules and members: from the shallowest event on, as long as each is allowed by the one before.
//! * All other keys: the deepest event that is allowed.
//! * A key that only some forks have is not in conflict.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
};

use ruma::{OwnedEventId, events::StateEventType};
use sha1::{Digest, Sha1};

use super::{Conflict, Known, Needs, auth_keys, check};
use crate::{Pdu, RoomRules, StateKey};

/// Goes as far as the answers reach.
pub(super) fn resolve(
    rules: &RoomRules,
    conflict: &Conflict,
    known: &Known,
) -> Needs<BTreeMap<StateKey, OwnedEventId>> {
    known.need_events(conflict.keys.values().flatten())?;
    let mut resolved: BTreeMap<StateKey, Pdu> = BTreeMap::new();
    let mut conflicted: BTreeMap<&StateKey, Vec<&Pdu>> = BTreeMap::new();
    for (key, event_ids) in &conflict.keys {
        let event_ids: BTreeSet<_> = event_ids.iter().collect();
        let events: Vec<&Pdu> = event_ids.into_iter().filter_map(|id| known.event(id)).collect();
        match &*events {
            [] => {}
            [only] => drop(resolved.insert(key.clone(), (*only).clone())),
            _ => drop(conflicted.insert(key, ordered(events))),
        }
    }
    let state = base_state(rules, conflict, known, &conflicted)?;
    let mut state: HashMap<StateKey, Pdu> = state.into_iter().chain(resolved.clone()).collect();

    // Power levels, join rules and members in this order: those of one kind do not see each other's results.
    let first = [StateEventType::RoomPowerLevels, StateEventType::RoomJoinRules, StateEventType::RoomMember];
    for kind in &first {
        let winners: Vec<(StateKey, Pdu)> = conflicted
            .iter()
            .filter(|(key, _)| is_of_kind(key, kind))
            .map(|(key, events)| ((*key).clone(), resolve_auth_events(rules, known, events, &state)))
            .collect();
        state.extend(winners.iter().cloned());
        resolved.extend(winners);
    }
    for (key, events) in conflicted.iter().filter(|(key, _)| !first.iter().any(|kind| is_of_kind(key, kind)))
    {
        resolved.insert((*key).clone(), resolve_normal_events(rules, known, events, &state));
    }
    Ok(resolved.into_iter().map(|(key, event)| (key, event.event_id().to_owned())).collect())
}

fn is_of_kind(key: &StateKey, kind: &StateEventType) -> bool {
    // A power levels event with another state key is an event like any other.
    key.0 == *kind && (*kind != StateEventType::RoomPowerLevels || key.1.is_empty())
}

/// What the unconflicted state has at the keys that authorize the conflicted events.
fn base_state(
    rules: &RoomRules,
    conflict: &Conflict,
    known: &Known,
    conflicted: &BTreeMap<&StateKey, Vec<&Pdu>>,
) -> Needs<HashMap<StateKey, Pdu>> {
    let events = conflicted.values().flatten();
    let keys: BTreeSet<StateKey> = events
        .flat_map(|event| auth_keys(rules, event))
        .filter(|key| !conflict.keys.contains_key(key))
        .collect();
    known.need_unconflicted(&keys)?;
    let held = keys.into_iter().filter_map(|key| {
        let event = known.event(known.unconflicted.get(&key)?.as_ref()?)?.clone();
        Some((key, event))
    });
    Ok(held.collect())
}

/// Deepest first; of the same depth by the SHA-1 of the event ID.
fn ordered(mut events: Vec<&Pdu>) -> Vec<&Pdu> {
    events.sort_by_cached_key(|event| (Reverse(event.depth()), Sha1::digest(event.event_id().as_str())));
    events
}

/// Beginning with the shallowest, each event that the one before it allows takes its place; the first that is not
/// allowed ends it.
fn resolve_auth_events(
    rules: &RoomRules,
    known: &Known,
    events: &[&Pdu],
    state: &HashMap<StateKey, Pdu>,
) -> Pdu {
    let keys = events.iter().flat_map(|event| auth_keys(rules, event));
    let mut auth_events: HashMap<StateKey, Pdu> =
        keys.filter_map(|key| state.get(&key).cloned().map(|event| (key, event))).collect();
    let mut winner = events[events.len() - 1];
    for event in events.iter().rev().skip(1) {
        auth_events.extend(winner.state_entry().map(|key| (key, winner.clone())));
        if check(rules, event, known, &auth_events).is_err() {
            break;
        }
        winner = event;
    }
    winner.clone()
}

/// The deepest event that is allowed; the shallowest if none is.
fn resolve_normal_events(
    rules: &RoomRules,
    known: &Known,
    events: &[&Pdu],
    state: &HashMap<StateKey, Pdu>,
) -> Pdu {
    let allowed = events.iter().find(|event| check(rules, event, known, state).is_ok());
    let winner: &Pdu = allowed.unwrap_or(&events[events.len() - 1]);
    winner.clone()
}
