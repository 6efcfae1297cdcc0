//! State resolution: one state from the states of several forks, the same on every server.
//! * A step machine: it asks for events and for places of the unconflicted state until it is done, and does no I/O.
//! * It works on what is in conflict and on the auth difference, never on whole states or whole auth chains.
//! * It depends on nothing but the events: neither on the order of forks nor on that of answers.

use std::collections::BTreeMap;

use ruma::OwnedEventId;

use crate::{Pdu, RoomRules, StateKey};

/// What is to be resolved.
#[derive(Debug, Clone, Default)]
pub struct Conflict {
    /// For each key on which the forks disagree, the different events that the forks have there. A fork without
    /// the key adds nothing, but makes the key conflicted.
    pub keys: BTreeMap<StateKey, Vec<OwnedEventId>>,
    /// Events that are in the auth chain of some forks' states but not of all (not for version 1).
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

/// A resolution in progress.
pub struct Resolution {
    rules: &'static RoomRules,
    conflict: Conflict,
}

impl Resolution {
    /// Begins.
    pub fn new(rules: &'static RoomRules, conflict: Conflict) -> Self {
        Self { rules, conflict }
    }

    /// Answers a need: an event, and whether it was rejected.
    pub fn event(&mut self, _event: Pdu, _rejected: bool) {}

    /// Answers a need: there is no such event here.
    pub fn missing(&mut self, _event_id: OwnedEventId) {}

    /// Answers a need: what the unconflicted state has at a key.
    pub fn unconflicted(&mut self, _key: StateKey, _event_id: Option<OwnedEventId>) {}

    /// Goes as far as possible.
    pub fn step(&mut self) -> Step {
        let _ = (self.rules, &self.conflict);
        Step::Done(BTreeMap::new())
    }
}
