//! The path of an event from a peer into a room.
//! * The specification's checks in their order, each giving the next one its type: nothing is skipped.
//! * One commit per event; nothing is visible to readers before it.
//! * A rejected event is stored, to be known again, and is never a forward extremity; nor is a soft-failed one.
//! * Rooms do not fetch: what is missing is said, and the caller comes again.

use hearth_dag::{Pdu, Rejection, VerifiedPdu, check, check_auth_events};
use hearth_store::{Commit, StreamPosition};
use ruma::events::StateEventType;
use ruma::{EventId, OwnedEventId};
use std::collections::HashMap;
use std::sync::Arc;

use crate::append::NewEvent;
use crate::errors::WriteError;
use crate::events::{RoomInfo, StoredEvent};
use crate::head::kind_of;
use crate::ids::{EventSn, SnapshotId};
use crate::kind::Kind;
use crate::lane::{Act, Done};
use crate::rooms::Rooms;
use crate::tables::*;
use crate::turn::Turn;

/// Forward extremities that a head keeps. The oldest are dropped: their events stay in the timeline.
const EXTREMITIES_MAX: usize = 100;

/// What became of an event that a peer handed us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    Accepted(StreamPosition),
    /// Held beside the room, because others refer to it.
    Outlier,
    SoftFailed(Option<Rejection>),
    Rejected(Option<Rejection>),
    /// Come again when these are here.
    Missing {
        prev: Vec<OwnedEventId>,
        auth: Vec<OwnedEventId>,
    },
}

impl Rooms {
    /// Takes an event into its room. One that is here already is answered as it was the first time.
    pub async fn receive(&self, pdu: &VerifiedPdu) -> Result<Received, WriteError> {
        self.take_in(pdu, false).await
    }

    /// Keeps an event beside its room: one that others name as an auth event, or as a part of their state.
    pub async fn receive_outlier(&self, pdu: &VerifiedPdu) -> Result<Received, WriteError> {
        self.take_in(pdu, true).await
    }

    async fn take_in(&self, pdu: &VerifiedPdu, as_outlier: bool) -> Result<Received, WriteError> {
        let room = self.room(pdu.pdu().room_id()).await?.ok_or(WriteError::UnknownRoom)?;
        let receive = Receive {
            pdu: pdu.pdu().clone(),
            hash_failed: pdu.is_redacted(),
            as_outlier,
            ours_to_send: false,
        };
        self.take(&room, &receive, &Commit::new()).await
    }

    /// Takes an event in that is ours to send to the room's other servers: one that a peer submitted through us, or
    /// one of ours that others had to sign. If it is refused, nothing of it is kept.
    pub(crate) async fn receive_to_send(
        &self,
        pdu: &VerifiedPdu,
        also: &Commit,
    ) -> Result<Received, WriteError> {
        let room = self.room(pdu.pdu().room_id()).await?.ok_or(WriteError::UnknownRoom)?;
        let receive = Receive {
            pdu: pdu.pdu().clone(),
            hash_failed: pdu.is_redacted(),
            as_outlier: false,
            ours_to_send: true,
        };
        self.take(&room, &receive, also).await
    }

    async fn take(
        &self,
        room: &Arc<RoomInfo>,
        receive: &Receive,
        also: &Commit,
    ) -> Result<Received, WriteError> {
        let Done { output, committed } = self.decide(room, receive, also).await?;
        Ok(match (output, committed) {
            (Received::Accepted(slot), Some(committed)) if slot.is_slot() => {
                Received::Accepted(committed.resolve(slot))
            }
            (output, _) => output,
        })
    }
}

struct Receive {
    pdu: Pdu,
    hash_failed: bool,
    as_outlier: bool,
    /// It goes on from here to the room's other servers.
    ours_to_send: bool,
}

/// All events that it refers to are here.
struct Connected {
    prev: Vec<Arc<StoredEvent>>,
    auth: Vec<Arc<StoredEvent>>,
}

/// Allowed by its own auth events.
struct Authorised {
    prev: Vec<Arc<StoredEvent>>,
    auth: Vec<EventSn>,
}

/// Allowed by the state before it.
struct Allowed {
    prev: Vec<EventSn>,
    auth: Vec<EventSn>,
    before: SnapshotId,
}

/// What a check says: go on, or what becomes of the event.
enum Checked<T> {
    Ok(T),
    Refused(Rejection, Refused),
}

/// What is known of an event that was refused.
struct Refused {
    prev: Vec<EventSn>,
    auth: Vec<EventSn>,
    before: Option<SnapshotId>,
}

impl Act for Receive {
    type Output = Received;
    type Error = WriteError;

    async fn decide(&self, turn: &mut Turn) -> Result<Received, WriteError> {
        let held = match turn.event_number(self.pdu.event_id()).await? {
            Some(number) => Some(turn.event(number).await?),
            None => None,
        };
        if let Some(held) = &held {
            self.take_good_copy(turn, held).await?;
            match held.status() {
                Status::Outlier if !self.as_outlier => {}
                Status::Outlier => return Ok(Received::Outlier),
                Status::Accepted => return Ok(Received::Accepted(held.position)),
                Status::SoftFailed => return Ok(Received::SoftFailed(None)),
                Status::Rejected => return Ok(Received::Rejected(None)),
            }
        }
        let known = held.map(|held| held.sn);
        let connected = match self.connect(turn).await? {
            Ok(connected) => connected,
            Err(missing) => return Ok(missing),
        };
        let authorised = match self.authorise(turn, connected).await? {
            Checked::Ok(authorised) => authorised,
            Checked::Refused(why, refused) => return self.reject(turn, known, why, refused).await,
        };
        if self.as_outlier {
            return self.keep_outlier(turn, authorised).await;
        }
        let allowed = match self.allow(turn, authorised).await? {
            Checked::Ok(allowed) => allowed,
            Checked::Refused(why, refused) => return self.reject(turn, known, why, refused).await,
        };
        // Otherwise, passes authorization rules based on the current state of the room, otherwise it is soft failed.
        let current = turn.head.row.snapshot;
        if current != allowed.before
            && let Err(why) = self.check_at(turn, current).await?
        {
            return self.soft_fail(turn, known, why, allowed).await;
        }
        self.accept(turn, known, allowed).await
    }
}

impl Receive {
    /// Finds all that the event refers to, or says what is missing.
    async fn connect(&self, turn: &mut Turn) -> Result<Result<Connected, Received>, WriteError> {
        let (mut prev, mut missing_prev) = (Vec::new(), Vec::new());
        if !self.as_outlier {
            for event in self.pdu.prev_events() {
                match held(turn, event).await? {
                    // An outlier's place is not known: what is before it has to come first.
                    Some(event) if event.status() != Status::Outlier => prev.push(event),
                    _ => missing_prev.push(event.clone()),
                }
            }
        }
        let (mut auth, mut missing_auth) = (Vec::new(), Vec::new());
        for event in self.pdu.auth_events() {
            match held(turn, event).await? {
                Some(event) => auth.push(event),
                None => missing_auth.push(event.clone()),
            }
        }
        if missing_prev.is_empty() && missing_auth.is_empty() {
            return Ok(Ok(Connected { prev, auth }));
        }
        Ok(Err(Received::Missing { prev: missing_prev, auth: missing_auth }))
    }

    /// Passes authorization rules based on the event's auth events, otherwise it is rejected.
    async fn authorise(
        &self,
        turn: &mut Turn,
        connected: Connected,
    ) -> Result<Checked<Authorised>, WriteError> {
        let room = turn.room();
        let create = turn.state(&Kind::new("m.room.create"), "").await?;
        let Connected { prev, auth } = connected;
        let fetch = |event_id: &EventId| {
            let found = auth.iter().chain(&create).find(|event| event.header.event_id == event_id)?;
            Some((found.pdu.clone(), found.status() == Status::Rejected))
        };
        let numbers: Vec<EventSn> = auth.iter().map(|event| event.sn).collect();
        let verdict = check_auth_events(room.rules, &self.pdu, fetch).and_then(|()| {
            check(room.rules, &self.pdu, |kind: &StateEventType, state_key: &str| {
                if *kind == StateEventType::RoomCreate && room.rules.room_id_is_create_event {
                    return create.as_ref().map(|create| create.pdu.clone());
                }
                let of_key = |event: &&Arc<StoredEvent>| {
                    event.pdu.state_key() == Some(state_key) && event.header.kind == kind_of(kind)
                };
                auth.iter().find(of_key).map(|event| event.pdu.clone())
            })
        });
        Ok(match verdict {
            Ok(()) => Checked::Ok(Authorised { prev, auth: numbers }),
            Err(why) => {
                let prev = prev.iter().map(|event| event.sn).collect();
                Checked::Refused(why, Refused { prev, auth: numbers, before: None })
            }
        })
    }

    /// Passes authorization rules based on the state before the event, otherwise it is rejected.
    async fn allow(&self, turn: &mut Turn, authorised: Authorised) -> Result<Checked<Allowed>, WriteError> {
        let Authorised { prev, auth } = authorised;
        let mut forks = Vec::with_capacity(prev.len());
        for event in &prev {
            forks.push(turn.state_after(event).await?);
        }
        let before = turn.resolve(forks).await?;
        let prev = prev.iter().map(|event| event.sn).collect();
        Ok(match self.check_at(turn, before).await? {
            Ok(()) => Checked::Ok(Allowed { prev, auth, before }),
            Err(why) => Checked::Refused(why, Refused { prev, auth, before: Some(before) }),
        })
    }

    /// Checks the event against a state of the room.
    async fn check_at(
        &self,
        turn: &mut Turn,
        snapshot: SnapshotId,
    ) -> Result<Result<(), Rejection>, WriteError> {
        let room = turn.room();
        let pdu = &self.pdu;
        let keys =
            hearth_dag::auth_keys(room.rules, pdu.kind(), pdu.sender(), pdu.state_key(), pdu.content_json());
        let mut keys = match keys {
            Ok(keys) => keys,
            Err(why) => return Ok(Err(why)),
        };
        keys.push((StateEventType::RoomCreate, String::new()));
        let mut state: HashMap<(StateEventType, String), Pdu> = HashMap::new();
        for key in keys {
            let Some(number) = turn.key_number(&(kind_of(&key.0), key.1.clone())).await? else { continue };
            if let Some(event) = turn.snapshots.lookup(snapshot, number).await? {
                state.insert(key, turn.event(event).await?.pdu.clone());
            }
        }
        Ok(check(room.rules, pdu, |kind: &StateEventType, state_key: &str| {
            state.get(&(kind.clone(), state_key.to_owned())).cloned()
        }))
    }

    async fn accept(
        &self,
        turn: &mut Turn,
        known: Option<EventSn>,
        allowed: Allowed,
    ) -> Result<Received, WriteError> {
        let Allowed { prev, auth, before } = allowed;
        let new = NewEvent {
            status: Status::Accepted,
            live: true,
            snapshot_before: Some(before),
            ..self.new_event(known, prev.clone(), auth)
        };
        let (stored, slot) = turn.store_event(new).await?;
        let head = turn.change_head();
        let mut kept: Vec<(EventSn, OwnedEventId)> = head
            .row
            .extremities
            .iter()
            .copied()
            .zip(head.extremities.iter().cloned())
            .filter(|(event, _)| !prev.contains(event))
            .collect();
        kept.push((stored.sn, stored.header.event_id.clone()));
        let surplus = kept.len().saturating_sub(EXTREMITIES_MAX);
        kept.drain(..surplus);
        (head.row.extremities, head.extremities) = kept.into_iter().unzip();
        head.row.depth = head.row.depth.max(stored.header.depth);
        turn.resolve_head(slot).await?;
        turn.apply_waiting_redactions(&stored).await?;
        turn.connect_relations(&stored).await?;
        if stored.header.kind == "m.room.redaction" {
            turn.apply_redaction(&stored).await?;
        }
        Ok(Received::Accepted(slot))
    }

    async fn soft_fail(
        &self,
        turn: &mut Turn,
        known: Option<EventSn>,
        why: Rejection,
        allowed: Allowed,
    ) -> Result<Received, WriteError> {
        if self.ours_to_send {
            return Ok(Received::SoftFailed(Some(why)));
        }
        let Allowed { prev, auth, before } = allowed;
        let new = NewEvent {
            status: Status::SoftFailed,
            snapshot_before: Some(before),
            ..self.new_event(known, prev, auth)
        };
        turn.store_event(new).await?;
        Ok(Received::SoftFailed(Some(why)))
    }

    async fn reject(
        &self,
        turn: &mut Turn,
        known: Option<EventSn>,
        why: Rejection,
        refused: Refused,
    ) -> Result<Received, WriteError> {
        if self.ours_to_send {
            return Ok(Received::Rejected(Some(why)));
        }
        let new = NewEvent {
            status: Status::Rejected,
            snapshot_before: refused.before,
            ..self.new_event(known, refused.prev, refused.auth)
        };
        turn.store_event(new).await?;
        Ok(Received::Rejected(Some(why)))
    }

    async fn keep_outlier(&self, turn: &mut Turn, authorised: Authorised) -> Result<Received, WriteError> {
        let new = NewEvent { status: Status::Outlier, ..self.new_event(None, Vec::new(), authorised.auth) };
        turn.store_event(new).await?;
        Ok(Received::Outlier)
    }

    fn new_event(
        &self,
        known: Option<EventSn>,
        prev_events: Vec<EventSn>,
        auth_events: Vec<EventSn>,
    ) -> NewEvent {
        NewEvent {
            pdu: self.pdu.clone(),
            known,
            status: Status::Outlier,
            live: false,
            is_ours: self.ours_to_send,
            partial: false,
            hash_failed: self.hash_failed,
            prev_events,
            auth_events,
            snapshot_before: None,
            replaces: None,
            sent_by: None,
            also_to: Vec::new(),
            mentions_room_allowed: false,
        }
    }

    /// A copy whose content hash holds takes the place of one whose did not.
    async fn take_good_copy(&self, turn: &mut Turn, held: &StoredEvent) -> Result<(), WriteError> {
        if !held.header.hash_failed || self.hash_failed || held.is_redacted() {
            return Ok(());
        }
        turn.replace_body(held, &self.pdu).await
    }
}

async fn held(turn: &Turn, event: &EventId) -> Result<Option<Arc<StoredEvent>>, WriteError> {
    match turn.event_number(event).await? {
        Some(number) => Ok(Some(turn.event(number).await?)),
        None => Ok(None),
    }
}

impl Turn {
    /// The current state becomes that of all extremities together.
    pub(crate) async fn resolve_head(&mut self, slot: StreamPosition) -> Result<(), WriteError> {
        let after = self.state_of(&self.head.row.extremities.clone()).await?;
        self.set_state(after, slot).await
    }

    /// The state after several events together.
    pub(crate) async fn state_of(&mut self, events: &[EventSn]) -> Result<SnapshotId, WriteError> {
        let mut forks = Vec::with_capacity(events.len());
        for event in events {
            let event = self.event(*event).await?;
            forks.push(self.state_after(&event).await?);
        }
        self.resolve(forks).await
    }

    /// The room's state after an event that was checked.
    pub(crate) async fn state_after(&mut self, event: &StoredEvent) -> Result<SnapshotId, WriteError> {
        let before = event.snapshot_before().unwrap_or(SnapshotId::EMPTY);
        match event.header.state_key {
            Some(key) if event.status() != Status::Rejected => {
                Ok(self.snapshots.apply(before, &[(key, Some(event.sn))]).await?)
            }
            _ => Ok(before),
        }
    }

    /// Another state becomes the current one: members that differ get their rows.
    pub(crate) async fn set_state(
        &mut self,
        after: SnapshotId,
        slot: StreamPosition,
    ) -> Result<(), WriteError> {
        let room = self.head.room.sn;
        let before = self.head.row.snapshot;
        if after == before {
            return Ok(());
        }
        let changes = self.snapshots.diff(before, after).await?;
        if changes.is_empty() {
            // The same state under another id: the old one stays, so that less is written and cached.
            return Ok(());
        }
        let partial = self.head.row.partial_state;
        self.commit.put(&HEAD_SNAPSHOTS, &(room, slot), &SnapshotRow { snapshot: after, partial });
        let head = self.change_head();
        head.row.snapshot = after;
        head.forget_state();
        for change in changes.into_iter().filter(|change| change.key.is_member()) {
            let was = match change.before {
                Some(event) => Membership::of(&self.event(event).await?.pdu),
                None => None,
            };
            match change.after {
                Some(event) => {
                    let event = self.event(event).await?;
                    self.set_member(change.key, &event, was, slot).await?;
                }
                None => self.unset_member(change.before, was, slot).await?,
            }
        }
        Ok(())
    }
}
