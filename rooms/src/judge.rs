//! The checks that an event from outside has to pass, each by itself.
//! * By its own auth events, and by a state of the room: the state before it, and the current one.
//! * On a partial state, members whom it lacks are those that the event itself names.

use hearth_dag::{Pdu, Rejection, check, check_auth_events};
use ruma::events::{StateEventType, TimelineEventType};
use ruma::{EventId, OwnedEventId, RoomId};
use std::collections::HashMap;
use std::sync::Arc;

use crate::errors::WriteError;
use crate::events::StoredEvent;
use crate::head::kind_of;
use crate::ids::SnapshotId;
use crate::kind::Kind;
use crate::tables::Status;
use crate::turn::Turn;

/// What a check says: the outer error is ours.
pub(crate) type Verdict = Result<Result<(), Rejection>, WriteError>;

/// The prev events of an event: those that are here with the state before them, and the others.
pub(crate) struct Prev {
    pub(crate) held: Vec<Arc<StoredEvent>>,
    pub(crate) missing: Vec<OwnedEventId>,
}

impl Turn {
    /// An event of this room by its id.
    pub(crate) async fn held(&self, event: &EventId) -> Result<Option<Arc<StoredEvent>>, WriteError> {
        match self.event_number(event).await? {
            Some(number) => Ok(Some(self.event(number).await?)),
            None => Ok(None),
        }
    }

    /// Finds the prev events of an event that comes now. One that has no place counts as missing.
    pub(crate) async fn prev_events(&self, pdu: &Pdu) -> Result<Prev, WriteError> {
        self.prev_events_that(pdu, has_place).await
    }

    /// Finds the prev events of an event: those of which `is_here` holds, and the others.
    pub(crate) async fn prev_events_that(
        &self,
        pdu: &Pdu,
        is_here: impl Fn(&StoredEvent) -> bool,
    ) -> Result<Prev, WriteError> {
        let mut prev = Prev { held: Vec::new(), missing: Vec::new() };
        for event in pdu.prev_events() {
            match self.held(event).await? {
                Some(event) if is_here(&event) => prev.held.push(event),
                _ => prev.missing.push(event.clone()),
            }
        }
        Ok(prev)
    }

    /// Finds the auth events of an event, or says which are missing.
    pub(crate) async fn auth_events(
        &self,
        pdu: &Pdu,
    ) -> Result<Result<Vec<Arc<StoredEvent>>, Vec<OwnedEventId>>, WriteError> {
        let (mut auth, mut missing) = (Vec::new(), Vec::new());
        for event in pdu.auth_events() {
            match self.held(event).await? {
                Some(event) => auth.push(event),
                None => missing.push(event.clone()),
            }
        }
        Ok(if missing.is_empty() { Ok(auth) } else { Err(missing) })
    }

    /// Passes authorization rules based on the event's auth events, otherwise it is rejected.
    pub(crate) async fn judge_by_auth_events(&mut self, pdu: &Pdu, auth: &[Arc<StoredEvent>]) -> Verdict {
        let room = self.room();
        let create = match create_event_id(&room.room_id).filter(|_| room.rules.room_id_is_create_event) {
            Some(create) => self.held(&create).await?,
            None => self.state(&Kind::new("m.room.create"), "").await?,
        };
        let fetch = |event_id: &EventId| {
            let found = auth.iter().chain(&create).find(|event| event.header.event_id == event_id)?;
            Some((found.pdu.clone(), found.status() == Status::Rejected))
        };
        Ok(check_auth_events(room.rules, pdu, fetch).and_then(|()| {
            check(room.rules, pdu, |kind: &StateEventType, state_key: &str| {
                if *kind == StateEventType::RoomCreate && room.rules.room_id_is_create_event {
                    return create.as_ref().map(|create| create.pdu.clone());
                }
                event_at(auth, kind, state_key)
            })
        }))
    }

    /// Checks an event against a state of the room. `auth` are its auth events, which passed.
    pub(crate) async fn judge_at(
        &mut self,
        pdu: &Pdu,
        snapshot: SnapshotId,
        auth: &[Arc<StoredEvent>],
    ) -> Verdict {
        let named = if self.head.row.partial_state { auth } else { &[] };
        self.judge_with(pdu, snapshot, named).await
    }

    /// The same where the state is known to be complete, though that of the room is not.
    pub(crate) async fn judge_complete(&mut self, pdu: &Pdu, snapshot: SnapshotId) -> Verdict {
        self.judge_with(pdu, snapshot, &[]).await
    }

    /// `named` stand in for members whom the state lacks.
    async fn judge_with(&mut self, pdu: &Pdu, snapshot: SnapshotId, named: &[Arc<StoredEvent>]) -> Verdict {
        // Mostly these are the power levels of the state too: while they are held here, nobody reads them again.
        let _kept = self.facts().await;
        let room = self.room();
        let keys =
            hearth_dag::auth_keys(room.rules, pdu.kind(), pdu.sender(), pdu.state_key(), pdu.content_json());
        let mut keys = match keys {
            Ok(keys) => keys,
            Err(why) => return Ok(Err(why)),
        };
        // A room is not created again: where there is a state, it has a create event.
        if *pdu.kind() == TimelineEventType::RoomCreate && snapshot != SnapshotId::EMPTY {
            return Ok(Err(Rejection::CreateWithPrevEvents));
        }
        keys.push((StateEventType::RoomCreate, String::new()));
        let mut state: HashMap<(StateEventType, String), Pdu> = HashMap::new();
        for key in keys {
            let number = self.key_number(&(kind_of(&key.0), key.1.clone())).await?;
            let found = match number {
                Some(number) => self.snapshots.lookup(snapshot, number).await?,
                None => None,
            };
            let event = match found {
                Some(event) => Some(self.event(event).await?.pdu.clone()),
                None if key.0 == StateEventType::RoomMember => event_at(named, &key.0, &key.1),
                None => None,
            };
            if let Some(event) = event {
                state.insert(key, event);
            }
        }
        Ok(check(room.rules, pdu, |kind: &StateEventType, state_key: &str| {
            state.get(&(kind.clone(), state_key.to_owned())).cloned()
        }))
    }

    /// The state before an event: of those prev events that are here, and what a peer told of the others.
    pub(crate) async fn state_before(
        &mut self,
        prev: &[Arc<StoredEvent>],
        told: Option<SnapshotId>,
    ) -> Result<SnapshotId, WriteError> {
        let mut forks = Vec::with_capacity(prev.len() + 1);
        for event in prev {
            forks.push(self.state_after(event).await?);
        }
        forks.extend(told);
        self.resolve(forks).await
    }
}

/// Whether an event is decided, and stands in the timeline if it is in the room.
pub(crate) fn has_place(event: &StoredEvent) -> bool {
    is_decided(event) && (event.status() != Status::Accepted || event.order().is_some())
}

/// Whether the state before an event is known.
pub(crate) fn is_decided(event: &StoredEvent) -> bool {
    match event.status() {
        Status::Outlier => false,
        Status::Rejected => event.snapshot_before().is_some(),
        Status::Accepted | Status::SoftFailed => true,
    }
}

fn event_at(events: &[Arc<StoredEvent>], kind: &StateEventType, state_key: &str) -> Option<Pdu> {
    let of_key = |event: &&Arc<StoredEvent>| {
        event.pdu.state_key() == Some(state_key) && event.header.kind == kind_of(kind)
    };
    events.iter().find(of_key).map(|event| event.pdu.clone())
}

/// The create event that a room id is made of, where it is.
pub(crate) fn create_event_id(room: &RoomId) -> Option<OwnedEventId> {
    EventId::parse(format!("${}", room.as_str().strip_prefix('!')?)).ok()
}
