//! State resolution of room versions 2 to 11 (version 2) and 12 (version 2.1).
//!
//! 1. Power events of the full conflicted set, with what authorizes them within it, in reverse topological power
//!    order, are applied one after the other as far as the rules allow.
//! 2. All other events follow, in the order of the power levels events that they stand on (mainline order).
//!
//! Version 2 begins with the unconflicted state, version 2.1 with an empty one and a larger conflicted set.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use ruma::{
    EventId, Int, OwnedEventId,
    events::{
        StateEventType, TimelineEventType,
        room::{member::MembershipState, power_levels::UserPowerLevel},
    },
    state_res::{
        reverse_topological_power_sort,
        utils::{event_id_map::EventIdMap, event_id_set::EventIdSet},
    },
};

use super::{Answer, Conflict, Known, Needs, Step, auth_keys, check, is_power_levels};
use crate::{
    Create, Level, Pdu, PowerLevels, RoomRules, StateKey, StateResolution, pdu::create_event_of_room,
};

/// The state while it is being resolved, over the unconflicted one.
type State = HashMap<StateKey, OwnedEventId>;

/// How far it has come.
#[derive(Default)]
pub(super) struct Progress {
    partial: Option<Partial>,
}

/// After the power events.
struct Partial {
    state: State,
    remaining: Vec<OwnedEventId>,
    /// The mainline as far as it is known, newest first, and where it goes on.
    mainline: Vec<OwnedEventId>,
    mainline_next: Option<OwnedEventId>,
    /// Mainline positions that were found: the larger, the newer; 0 is off the mainline.
    positions: HashMap<OwnedEventId, usize>,
}

impl Progress {
    /// Whether answers are only needed for their auth events from now on.
    pub(super) fn needs_only_references(&self) -> bool {
        self.partial.is_some()
    }

    /// Goes as far as the answers reach.
    pub(super) fn resolve(
        &mut self,
        rules: &RoomRules,
        conflict: &Conflict,
        known: &mut Known,
    ) -> Needs<BTreeMap<StateKey, OwnedEventId>> {
        let partial = match &mut self.partial {
            Some(partial) => partial,
            None => self.partial.insert(apply_power_events(rules, conflict, known)?),
        };
        partial.walk_mainline(known)?;
        let sorted = partial.mainline_order(known)?;
        let mut state = partial.state.clone();
        iterative_auth_checks(rules, &sorted, &mut state, known);
        let resolved = conflict.keys.keys().filter_map(|key| Some((key.clone(), state.get(key)?.clone())));
        Ok(resolved.collect())
    }
}

fn apply_power_events(rules: &RoomRules, conflict: &Conflict, known: &Known) -> Needs<Partial> {
    let conflicted = full_conflicted_set(rules, conflict, known)?;
    let mut state = State::new();
    if rules.state_resolution == StateResolution::V2 {
        state = unconflicted_state(rules, conflict, known, &conflicted)?;
    }
    let power_events = sort_power_events(rules, &conflicted, known);
    iterative_auth_checks(rules, &power_events, &mut state, known);
    let applied: HashSet<&OwnedEventId> = power_events.iter().collect();
    let remaining = conflicted.iter().filter(|id| !applied.contains(*id)).cloned().collect();
    let mainline_next = state.get(&(StateEventType::RoomPowerLevels, String::new())).cloned();
    Ok(Partial { state, remaining, mainline: Vec::new(), mainline_next, positions: HashMap::new() })
}

/// The full conflicted set, as far as its events exist. Its events and their auth events are known afterwards.
fn full_conflicted_set(
    rules: &RoomRules,
    conflict: &Conflict,
    known: &Known,
) -> Needs<BTreeSet<OwnedEventId>> {
    let mut ids: BTreeSet<&OwnedEventId> =
        conflict.keys.values().flatten().chain(&conflict.auth_difference).collect();
    if rules.state_resolution == StateResolution::V2_1 {
        ids.extend(&conflict.subgraph);
    }
    known.need_events(ids.iter().copied())?;
    let events: Vec<&Pdu> =
        ids.iter().filter_map(|id| known.event(id)).filter(|event| event.state_key().is_some()).collect();
    let create = events.first().filter(|_| rules.room_id_is_create_event);
    let create = create.and_then(|event| create_event_of_room(event.room_id()));
    known.need_events(events.iter().flat_map(|event| event.auth_events()).chain(&create))?;
    Ok(events.into_iter().map(|event| event.event_id().to_owned()).collect())
}

/// What the unconflicted state has at the keys that authorize events of the full conflicted set.
fn unconflicted_state(
    rules: &RoomRules,
    conflict: &Conflict,
    known: &Known,
    conflicted: &BTreeSet<OwnedEventId>,
) -> Needs<State> {
    let events = conflicted.iter().filter_map(|id| known.event(id));
    let mut keys: BTreeSet<StateKey> = events.flat_map(|event| auth_keys(rules, event)).collect();
    keys.insert((StateEventType::RoomPowerLevels, String::new()));
    keys.retain(|key| !conflict.keys.contains_key(key));
    known.need_unconflicted(&keys)?;
    Ok(keys
        .into_iter()
        .filter_map(|key| {
            let event_id = known.unconflicted.get(&key)?.clone()?;
            Some((key, event_id))
        })
        .collect())
}

/// A power event is a power levels or join rules event, or a member event that removes someone else: what may take
/// away another's ability to do something.
fn is_power_event(event: &Pdu) -> bool {
    match event.kind() {
        TimelineEventType::RoomPowerLevels
        | TimelineEventType::RoomJoinRules
        | TimelineEventType::RoomCreate => event.state_key() == Some(""),
        TimelineEventType::RoomMember => {
            matches!(event.membership(), Some(MembershipState::Leave | MembershipState::Ban))
                && event.state_key() != Some(event.sender().as_str())
        }
        _ => false,
    }
}

/// The power events and those events of their auth chains that are in conflict too, in reverse topological power
/// order.
fn sort_power_events(
    rules: &RoomRules,
    conflicted: &BTreeSet<OwnedEventId>,
    known: &Known,
) -> Vec<OwnedEventId> {
    let is_power = |id: &&OwnedEventId| known.event(id).is_some_and(is_power_event);
    let mut open: Vec<OwnedEventId> = conflicted.iter().filter(is_power).cloned().collect();
    let mut graph: EventIdMap<OwnedEventId, EventIdSet<OwnedEventId>> = EventIdMap::new();
    let mut seen: HashSet<OwnedEventId> = open.iter().cloned().collect();
    let mut levels: HashMap<OwnedEventId, UserPowerLevel> = HashMap::new();
    let mut readings = Readings::default();
    while let Some(event_id) = open.pop() {
        let Some(event) = known.event(&event_id) else { continue };
        levels.insert(event_id.clone(), readings.level_of_sender(rules, event, known));
        let within: EventIdSet<OwnedEventId> =
            event.auth_events().iter().filter(|id| conflicted.contains(*id)).cloned().collect();
        open.extend(
            event
                .auth_events()
                .iter()
                .filter(|id| conflicted.contains(*id) && seen.insert((*id).clone()))
                .cloned(),
        );
        graph.insert(event_id, within);
    }
    let details = |event_id: &EventId| {
        let event = known.event(event_id);
        let level = levels.get(event_id).copied();
        event
            .zip(level)
            .map(|(event, level)| (level, event.origin_server_ts()))
            .ok_or_else(|| ruma::state_res::Error::NotFound(event_id.to_owned()))
    };
    // Every event of the graph is known, so the order is always found.
    reverse_topological_power_sort(&graph, details).unwrap_or_default()
}

/// Power levels events that were read already: many events stand on the same.
#[derive(Default)]
struct Readings(HashMap<(Option<OwnedEventId>, Option<OwnedEventId>), Option<PowerLevels>>);

impl Readings {
    /// The sender's power by the event's own auth events.
    fn level_of_sender(&mut self, rules: &RoomRules, event: &Pdu, known: &Known) -> UserPowerLevel {
        let of_kind = |kind: TimelineEventType| {
            let mut auth_events = event.auth_events().iter().filter_map(|id| known.event(id));
            auth_events.find(move |auth_event| auth_event.is_state(&kind, ""))
        };
        let power_levels = of_kind(TimelineEventType::RoomPowerLevels);
        let create = match rules.room_id_is_create_event {
            true => create_event_of_room(event.room_id()).and_then(|id| known.event(&id).cloned()),
            false => of_kind(TimelineEventType::RoomCreate).cloned(),
        };
        let id = |event: Option<&Pdu>| event.map(|event| event.event_id().to_owned());
        let reading = self.0.entry((id(create.as_ref()), id(power_levels))).or_insert_with(|| {
            let create = Create::of(rules, create.as_ref()?).ok()?;
            PowerLevels::of(rules, &create, power_levels).ok()
        });
        match reading.as_ref().map(|power| power.user(event.sender())) {
            Some(Level::Infinite) => UserPowerLevel::Infinite,
            Some(Level::Finite(level)) => UserPowerLevel::Int(Int::new_saturating(level)),
            None => UserPowerLevel::Int(Int::from(0_i8)),
        }
    }
}

/// Applies those events that the rules allow. What the state does not have is taken from the event's own auth events.
fn iterative_auth_checks(rules: &RoomRules, events: &[OwnedEventId], state: &mut State, known: &Known) {
    for event in events.iter().filter_map(|id| known.event(id)) {
        let Some(key) = event.state_entry() else { continue };
        let own = event.auth_events().iter().filter_map(|id| known.accepted(id));
        let mut auth_events: HashMap<StateKey, Pdu> =
            own.filter_map(|auth_event| Some((auth_event.state_entry()?, auth_event.clone()))).collect();
        for key in auth_keys(rules, event) {
            if let Some(auth_event) = state.get(&key).and_then(|id| known.accepted(id)) {
                auth_events.insert(key, auth_event.clone());
            }
        }
        if check(rules, event, known, &auth_events).is_ok() {
            state.insert(key, event.event_id().to_owned());
        }
    }
}

impl Partial {
    /// From the power levels event to the one in its auth events, and so on to the first of the room.
    fn walk_mainline(&mut self, known: &Known) -> Needs<()> {
        let mut seen: HashSet<OwnedEventId> = self.mainline.iter().cloned().collect();
        while let Some(event_id) = self.mainline_next.clone() {
            let next = power_levels_below(&event_id, known)?;
            seen.insert(event_id.clone());
            self.mainline.push(event_id);
            // A hash cannot refer to itself, but versions 1 and 2 have IDs of the sender's choice.
            self.mainline_next = next.filter(|next| !seen.contains(next));
        }
        for (index, event_id) in self.mainline.iter().rev().enumerate() {
            self.positions.insert(event_id.clone(), index + 1);
        }
        Ok(())
    }

    /// The remaining events: first those that stand on none of the mainline, then on its oldest, and so on.
    fn mainline_order(&mut self, known: &Known) -> Needs<Vec<OwnedEventId>> {
        let mut needed = BTreeSet::new();
        for event_id in &self.remaining {
            if let Err(Step::Events(more)) = find_position(event_id, known, &mut self.positions) {
                needed.extend(more);
            }
        }
        if !needed.is_empty() {
            return Err(Step::Events(needed.into_iter().collect()));
        }
        let position = |event: &Pdu| self.positions.get(event.event_id()).copied().unwrap_or(0);
        let mut events: Vec<&Pdu> = self.remaining.iter().filter_map(|id| known.event(id)).collect();
        events.sort_by_cached_key(|event| {
            (position(event), event.origin_server_ts(), event.event_id().to_owned())
        });
        Ok(events.into_iter().map(|event| event.event_id().to_owned()).collect())
    }
}

/// Goes from power levels event to power levels event until it meets the mainline.
fn find_position(
    event_id: &OwnedEventId,
    known: &Known,
    positions: &mut HashMap<OwnedEventId, usize>,
) -> Needs<()> {
    let mut path: HashSet<OwnedEventId> = HashSet::new();
    let mut current = Some(event_id.clone());
    let position = loop {
        let Some(id) = current.filter(|id| !path.contains(id)) else { break 0 };
        if let Some(position) = positions.get(&id) {
            break *position;
        }
        current = power_levels_below(&id, known)?;
        path.insert(id);
    };
    positions.extend(path.into_iter().map(|id| (id, position)));
    Ok(())
}

/// The power levels event among an event's auth events.
fn power_levels_below(event_id: &EventId, known: &Known) -> Needs<Option<OwnedEventId>> {
    known.need_events([&event_id.to_owned()])?;
    let auth_events: &[OwnedEventId] = match known.events.get(event_id) {
        Some(Answer::Event(event, _)) => event.auth_events(),
        Some(Answer::References { auth_events, .. }) => auth_events,
        _ => &[],
    };
    known.need_events(auth_events)?;
    let found = auth_events.iter().find(|id| match known.events.get(*id) {
        Some(Answer::Event(event, _)) => is_power_levels(event),
        Some(Answer::References { is_power_levels, .. }) => *is_power_levels,
        _ => false,
    });
    Ok(found.cloned())
}
