//! State resolution: one state from the states of several forks, the same on every server.
//! * A step machine: it asks for events and for places of the unconflicted state until it is done, and does no I/O.
//! * It works on what is in conflict and on the auth difference, never on whole states or whole auth chains.
//! * It depends on nothing but the events: neither on the order of forks nor on that of answers.
//! * Its memory is the conflict with one level of auth events, and a few IDs for each power levels event of the room.

mod v1;
mod v2;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ruma::{EventId, OwnedEventId, events::StateEventType};

use crate::{Pdu, Rejection, RoomRules, StateKey, StateResolution, auth, pdu::create_event_of_room};

/// What is to be resolved.
#[derive(Debug, Clone, Default)]
pub struct Conflict {
    /// For each key on which the forks disagree, the different events that the forks have there. A fork without
    /// the key adds nothing, but makes the key conflicted.
    pub keys: BTreeMap<StateKey, Vec<OwnedEventId>>,
    /// Events that are in the auth chain of some forks' states but not of all (not for version 1). The auth chain
    /// of a state holds its events, their auth events, theirs, and so on. (The specification leaves out the state's
    /// own events; Synapse has them, and in one of fifty random rooms that makes another result.)
    pub auth_difference: Vec<OwnedEventId>,
    /// For version 2.1 the conflicted state subgraph: events on a path of auth events from one conflicted event to
    /// another.
    pub subgraph: Vec<OwnedEventId>,
}

/// What the resolution needs next, or its result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Give these with [`Resolution::event`], those that do not exist with [`Resolution::missing`].
    Events(Vec<OwnedEventId>),
    /// Give what the unconflicted state has at these keys with [`Resolution::unconflicted`].
    Unconflicted(Vec<StateKey>),
    /// For each conflicted key the event that holds; keys at which no event may stand are absent.
    Done(BTreeMap<StateKey, OwnedEventId>),
}

/// A resolution in progress. Answers may come in any order, and more may be given than was asked for.
pub struct Resolution {
    rules: &'static RoomRules,
    conflict: Conflict,
    known: Known,
    algorithm: Algorithm,
}

enum Algorithm {
    V1,
    V2(v2::Progress),
}

impl Resolution {
    /// Begins.
    pub fn new(rules: &'static RoomRules, conflict: Conflict) -> Self {
        let algorithm = match rules.state_resolution {
            StateResolution::V1 => Algorithm::V1,
            StateResolution::V2 | StateResolution::V2_1 => Algorithm::V2(v2::Progress::default()),
        };
        Self { rules, conflict, known: Known::default(), algorithm }
    }

    /// Answers a need: an event, and whether it was rejected.
    pub fn event(&mut self, event: Pdu, rejected: bool) {
        let light = matches!(&self.algorithm, Algorithm::V2(progress) if progress.needs_only_references());
        self.known.answer(event, rejected, light);
    }

    /// Answers a need: there is no such event here.
    pub fn missing(&mut self, event_id: OwnedEventId) {
        self.known.events.insert(event_id, Answer::Missing);
    }

    /// Answers a need: what the unconflicted state has at a key.
    pub fn unconflicted(&mut self, key: StateKey, event_id: Option<OwnedEventId>) {
        self.known.unconflicted.insert(key, event_id);
    }

    /// Goes as far as possible.
    pub fn step(&mut self) -> Step {
        let result = match &mut self.algorithm {
            Algorithm::V1 => v1::resolve(self.rules, &self.conflict, &self.known),
            Algorithm::V2(progress) => progress.resolve(self.rules, &self.conflict, &mut self.known),
        };
        result.map_or_else(|need| need, Step::Done)
    }
}

/// Ends a step early: what is needed to go on.
type Needs<T> = Result<T, Step>;

/// What the caller answered so far.
#[derive(Default)]
struct Known {
    events: HashMap<OwnedEventId, Answer>,
    unconflicted: HashMap<StateKey, Option<OwnedEventId>>,
}

enum Answer {
    Missing,
    Event(Pdu, bool),
    /// What remains of an event that is on the way along power levels events only.
    References {
        is_power_levels: bool,
        auth_events: Box<[OwnedEventId]>,
    },
}

impl Known {
    fn answer(&mut self, event: Pdu, rejected: bool, light: bool) {
        let event_id = event.event_id().to_owned();
        if matches!(self.events.get(&event_id), Some(Answer::Event(..))) {
            return;
        }
        let answer = if light {
            let is_power_levels = is_power_levels(&event);
            let auth_events = if is_power_levels { event.auth_events().into() } else { Box::default() };
            Answer::References { is_power_levels, auth_events }
        } else {
            Answer::Event(event, rejected)
        };
        self.events.insert(event_id, answer);
    }

    /// An event that was answered.
    fn event(&self, event_id: &EventId) -> Option<&Pdu> {
        match self.events.get(event_id)? {
            Answer::Event(pdu, _) => Some(pdu),
            _ => None,
        }
    }

    /// An event that was answered and may authorize others.
    fn accepted(&self, event_id: &EventId) -> Option<&Pdu> {
        match self.events.get(event_id)? {
            Answer::Event(pdu, false) => Some(pdu),
            _ => None,
        }
    }

    /// Asks for those events of which nothing is known yet.
    fn need_events<'a>(&self, ids: impl IntoIterator<Item = &'a OwnedEventId>) -> Needs<()> {
        let unknown: BTreeSet<_> = ids.into_iter().filter(|id| !self.events.contains_key(*id)).collect();
        if unknown.is_empty() { Ok(()) } else { Err(Step::Events(unknown.into_iter().cloned().collect())) }
    }

    /// Asks for those places of the unconflicted state of which nothing is known yet, then for their events.
    fn need_unconflicted(&self, keys: &BTreeSet<StateKey>) -> Needs<()> {
        let unknown: Vec<_> =
            keys.iter().filter(|key| !self.unconflicted.contains_key(*key)).cloned().collect();
        if !unknown.is_empty() {
            return Err(Step::Unconflicted(unknown));
        }
        self.need_events(keys.iter().filter_map(|key| self.unconflicted.get(key)?.as_ref()))
    }
}

fn is_power_levels(event: &Pdu) -> bool {
    event.is_state(&ruma::events::TimelineEventType::RoomPowerLevels, "")
}

/// The keys that authorize a state event; none for a malformed one, which no check lets pass.
fn auth_keys(rules: &RoomRules, event: &Pdu) -> Vec<StateKey> {
    auth::auth_keys(rules, event.kind(), event.sender(), event.state_key(), event.content_json())
        .unwrap_or_default()
}

/// Checks an event against some authorizing events.
fn check(
    rules: &RoomRules,
    event: &Pdu,
    known: &Known,
    auth_events: &HashMap<StateKey, Pdu>,
) -> Result<(), Rejection> {
    auth::check(rules, event, |kind: &StateEventType, state_key: &str| {
        // Since version 12 no event names the create event among its auth events; the room ID does.
        if rules.room_id_is_create_event && *kind == StateEventType::RoomCreate {
            return known.accepted(&create_event_of_room(event.room_id())?).cloned();
        }
        auth_events.get(&(kind.clone(), state_key.to_owned())).cloned()
    })
}
