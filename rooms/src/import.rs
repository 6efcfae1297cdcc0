//! Taking in many events and a whole state that a peer told, in commits of bounded size.
//! * Events come in as outliers, each after its auth events: nobody is shown an outlier. What is here already stays.
//! * A state becomes a snapshot by its difference to the room's held one; nothing names it before all of it is written.
//! * What a crash leaves behind is known again by the next attempt.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use async_trait::async_trait;
use hearth_dag::{Pdu, Rejection, RoomRules, StateKey, VerifiedPdu, check, check_auth_events};
use hearth_store::{Blob, Commit, KEY_MAX};
use ruma::events::{StateEventType, TimelineEventType};
use ruma::{EventId, OwnedEventId, OwnedUserId, RoomId, UserId};

use crate::append::NewEvent;
use crate::errors::WriteError;
use crate::events::RoomInfo;
use crate::ids::{EventSn, RecordSn, SnapshotId, StateKeySn};
use crate::judge::create_event_id;
use crate::lane::Act;
use crate::rooms::Rooms;
use crate::tables::*;
use crate::turn::Turn;

/// Events of one answer of a peer.
pub const TOLD_EVENTS_MAX: usize = 500_000;
/// More rows and bytes than one event has as an outlier.
const ROWS_OF_AN_EVENT: usize = 30;
const BYTES_OF_AN_EVENT: usize = 90_000;
/// Records of state nodes that are written at once, of up to 4 KiB each and a node more.
const RECORDS_AT_ONCE: usize = 100;
/// Events that are loaded at once.
const LOADED_AT_ONCE: usize = 256;

/// What a peer told of a room, after the checks that need nothing but the events themselves.
pub(crate) struct CheckedEvents {
    /// Each after its auth events, all allowed by them.
    pub(crate) events: Vec<VerifiedPdu>,
    /// Events that were dropped, and those that built on them.
    pub(crate) dropped: usize,
    by_id: HashMap<OwnedEventId, usize>,
}

impl CheckedEvents {
    pub(crate) fn get(&self, event: &EventId) -> Option<&Pdu> {
        self.by_id.get(event).map(|place| self.events[*place].pdu())
    }

    /// Checks an event by its auth events, which are among these.
    pub(crate) fn check(&self, rules: &RoomRules, pdu: &Pdu) -> Result<(), Rejection> {
        let fetch = |event: &EventId| self.get(event).map(|pdu| (pdu.clone(), false));
        check_auth_events(rules, pdu, fetch)?;
        check(rules, pdu, |kind: &StateEventType, state_key: &str| {
            if *kind == StateEventType::RoomCreate && rules.room_id_is_create_event {
                return self.get(&create_event_id(pdu.room_id())?).cloned();
            }
            let of_key =
                |pdu: &&Pdu| pdu.state_key() == Some(state_key) && pdu.state_kind().as_ref() == Some(kind);
            pdu.auth_events().iter().filter_map(|event| self.get(event)).find(of_key).cloned()
        })
    }

    /// Puts events in the order of their references and checks each. Those of another room, those that no row has
    /// space for, those whose auth events are missing, in a loop or refused, and those that are refused themselves are
    /// dropped.
    pub(crate) fn of(rules: &RoomRules, room: &RoomId, told: Vec<VerifiedPdu>) -> Self {
        let total = told.len();
        let mut by_id: HashMap<OwnedEventId, VerifiedPdu> = HashMap::with_capacity(total);
        let mut repeats = 0;
        let is_kept = |event: &VerifiedPdu| event.pdu().room_id() == room && has_keys(event.pdu());
        for event in told.into_iter().filter(is_kept) {
            let id = event.pdu().event_id().to_owned();
            // A copy whose content hash holds is the better one.
            match by_id.get(&id).is_none_or(|held| held.is_redacted()) {
                true => repeats += usize::from(by_id.insert(id, event).is_some()),
                false => repeats += 1,
            }
        }
        let mut checked =
            CheckedEvents { events: Vec::with_capacity(total), dropped: 0, by_id: HashMap::new() };
        for id in in_order(&by_id) {
            let Some(event) = by_id.remove(&id) else { continue };
            match checked.check(rules, event.pdu()) {
                Ok(()) => {
                    checked.by_id.insert(id, checked.events.len());
                    checked.events.push(event);
                }
                Err(why) => tracing::debug!(room_id = %room, event_id = %id, %why, "a told event is dropped"),
            }
        }
        checked.dropped = total - repeats - checked.events.len();
        checked
    }
}

/// Whether an event's type and state key fit into a key of the store, where each zero byte counts twice. Hardly any
/// event does not; the room of one that does not must be entered all the same.
pub(crate) fn has_keys(pdu: &Pdu) -> bool {
    let length = |text: &str| text.len() + text.bytes().filter(|byte| *byte == 0).count();
    length(&pdu.kind().to_string()) + length(pdu.state_key().unwrap_or_default()) <= KEY_MAX - 32
}

/// The ids of events in an order in which each comes after its auth events, but for those in a loop.
fn in_order(events: &HashMap<OwnedEventId, VerifiedPdu>) -> Vec<OwnedEventId> {
    // The same whatever the order in which they were told. The create event comes first: since version 12 all events
    // are allowed by it without naming it, and its creator's join names nothing at all.
    let mut ids: Vec<&OwnedEventId> = events.keys().collect();
    let is_other = |id: &OwnedEventId| *events[id].pdu().kind() != TimelineEventType::RoomCreate;
    ids.sort_unstable_by_key(|id| (is_other(id), *id));
    let mut order = Vec::with_capacity(events.len());
    let mut seen: HashSet<&EventId> = HashSet::with_capacity(events.len());
    for start in ids {
        let mut open = vec![(start, false)];
        while let Some((id, is_done)) = open.pop() {
            if is_done {
                order.push(id.clone());
                continue;
            }
            if !seen.insert(id) {
                continue;
            }
            open.push((id, true));
            let auth = events.get(id).map(|event| event.pdu().auth_events()).unwrap_or_default();
            let further = auth.iter().filter(|id| events.contains_key(*id) && !seen.contains(&***id));
            open.extend(further.map(|id| (id, false)));
        }
    }
    order
}

/// A state that a peer told, as it is held.
pub(crate) struct HeldState {
    pub(crate) snapshot: SnapshotId,
    pub(crate) entries: Vec<HeldEntry>,
}

#[derive(Clone, Debug)]
pub(crate) struct HeldEntry {
    pub(crate) key: StateKeySn,
    pub(crate) event: EventSn,
    /// Of a member event.
    pub(crate) membership: Option<Membership>,
    /// The user of a member event, if it is one of ours.
    pub(crate) local_user: Option<OwnedUserId>,
}

impl Rooms {
    /// Keeps events as outliers that passed the checks by their auth events. They come in the order of these.
    pub(crate) async fn import(
        &self,
        room: &Arc<RoomInfo>,
        events: &[VerifiedPdu],
    ) -> Result<(), WriteError> {
        let mut rest = events;
        while !rest.is_empty() {
            let taken = self.decide(room, &ImportSome(rest), &Commit::new()).await?.output;
            rest = &rest[taken..];
        }
        Ok(())
    }

    /// Makes a snapshot of a state whose events are held. Rejected ones are left out, and all but the first for a key.
    /// Names those that are not held. Where members were omitted, those of the room as we have it are kept.
    pub(crate) async fn hold_state(
        &self,
        room: &Arc<RoomInfo>,
        state: &[OwnedEventId],
        members: Members,
    ) -> Result<Result<HeldState, Vec<OwnedEventId>>, WriteError> {
        let mut numbers = Vec::with_capacity(state.len().min(TOLD_EVENTS_MAX));
        let mut missing = Vec::new();
        for event in state.iter().take(TOLD_EVENTS_MAX) {
            match self.events().number(room.sn, event).await? {
                Some(number) => numbers.push(number),
                None => missing.push(event.clone()),
            }
        }
        if !missing.is_empty() {
            return Ok(Err(missing));
        }
        let mut entries: BTreeMap<StateKeySn, HeldEntry> = BTreeMap::new();
        for numbers in numbers.chunks(LOADED_AT_ONCE) {
            for event in self.events().load_many(room, numbers).await? {
                let Some(key) = event.header.state_key else { continue };
                if event.status() == Status::Rejected {
                    continue;
                }
                let user = event.pdu.state_key().and_then(|user| <&UserId>::try_from(user).ok());
                let user = user.filter(|user| key.is_member() && self.is_local(user));
                entries.entry(key).or_insert_with(|| HeldEntry {
                    key,
                    event: event.sn,
                    membership: key.is_member().then(|| Membership::of(&event.pdu)).flatten(),
                    local_user: user.map(ToOwned::to_owned),
                });
            }
        }
        let entries: Vec<HeldEntry> = entries.into_values().collect();
        let state: Vec<(StateKeySn, EventSn)> =
            entries.iter().map(|entry| (entry.key, entry.event)).collect();
        let (snapshot, mut records) =
            self.decide(room, &KeepState { state: &state, members }, &Commit::new()).await?.output;
        while !records.is_empty() {
            let rest = records.split_off(records.len().min(RECORDS_AT_ONCE));
            self.decide(room, &KeepRecords(records), &Commit::new()).await?;
            records = rest;
        }
        Ok(Ok(HeldState { snapshot, entries }))
    }
}

/// Keeps as many events as fit into a commit. Says how many it took.
struct ImportSome<'a>(&'a [VerifiedPdu]);

#[async_trait]
impl Act for ImportSome<'_> {
    type Output = usize;
    type Error = WriteError;

    fn anywhere(&self) -> bool {
        true
    }

    async fn decide(&self, turn: &mut Turn) -> Result<usize, WriteError> {
        let mut taken = 0;
        for event in self.0 {
            if !turn.commit.has_room_for(ROWS_OF_AN_EVENT, BYTES_OF_AN_EVENT) {
                break;
            }
            turn.import(event).await?;
            taken += 1;
        }
        Ok(taken)
    }
}

impl Turn {
    async fn import(&mut self, event: &VerifiedPdu) -> Result<(), WriteError> {
        let pdu = event.pdu();
        if let Some(held) = self.held(pdu.event_id()).await? {
            if held.header.hash_failed && !event.is_redacted() && !held.is_redacted() {
                self.replace_body(&held, pdu).await?;
            }
            return Ok(());
        }
        let mut auth_events = Vec::with_capacity(pdu.auth_events().len());
        for auth in pdu.auth_events() {
            auth_events.extend(self.event_number(auth).await?);
        }
        let new = NewEvent {
            pdu: pdu.clone(),
            known: None,
            status: Status::Outlier,
            live: false,
            is_ours: false,
            partial: false,
            hash_failed: event.is_redacted(),
            prev_events: Vec::new(),
            auth_events,
            snapshot_before: None,
            replaces: None,
            sent_by: None,
            also_to: Vec::new(),
            mentions_room_allowed: false,
        };
        self.store_event(new).await.map(drop)
    }
}

/// Makes a snapshot, and writes as much of it as fits into a commit. Gives it and the records that are left.
struct KeepState<'a> {
    state: &'a [(StateKeySn, EventSn)],
    members: Members,
}

/// Whether a told state speaks of all members.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Members {
    Told,
    Omitted,
}

type Records = Vec<(RecordSn, Blob)>;

#[async_trait]
impl Act for KeepState<'_> {
    type Output = (SnapshotId, Records);
    type Error = WriteError;

    fn anywhere(&self) -> bool {
        true
    }

    async fn decide(&self, turn: &mut Turn) -> Result<(SnapshotId, Records), WriteError> {
        let base = turn.head.row.snapshot;
        let mut held: HashMap<StateKeySn, EventSn> = turn.snapshots.all(base).await?.into_iter().collect();
        let mut changes: Vec<(StateKeySn, Option<EventSn>)> = Vec::new();
        for (key, event) in self.state {
            if held.remove(key) != Some(*event) {
                changes.push((*key, Some(*event)));
            }
        }
        let is_gone = |key: &StateKeySn| self.members == Members::Told || !key.is_member();
        changes.extend(held.into_keys().filter(is_gone).map(|key| (key, None)));
        changes.sort_unstable();
        let snapshot = turn.snapshots.apply(base, &changes).await?;
        let mut records: Records = turn
            .snapshots
            .take_records()
            .into_iter()
            .map(|(number, record)| (number, Blob(record.to_bytes().into())))
            .collect();
        let rest = records.split_off(records.len().min(RECORDS_AT_ONCE));
        if !records.is_empty() {
            // The numbers of all records are taken, also of those that come later.
            turn.change_head();
        }
        let room = turn.head.room.sn;
        for (number, record) in records {
            turn.put(&STATE_NODES, &(room, number), record);
        }
        Ok((snapshot, rest))
    }
}

struct KeepRecords(Records);

#[async_trait]
impl Act for KeepRecords {
    type Output = ();
    type Error = WriteError;

    fn anywhere(&self) -> bool {
        true
    }

    async fn decide(&self, turn: &mut Turn) -> Result<(), WriteError> {
        let room = turn.head.room.sn;
        for (number, record) in &self.0 {
            turn.put(&STATE_NODES, &(room, *number), record.clone());
        }
        Ok(())
    }
}

/// The events of a told state by their places; a second event for a place is an error.
pub(crate) fn by_place<'a>(state: impl Iterator<Item = &'a Pdu>) -> Result<HashMap<StateKey, Pdu>, StateKey> {
    let mut places = HashMap::new();
    for pdu in state {
        let Some(place) = pdu.state_entry() else { continue };
        if let Some(other) = places.insert(place.clone(), pdu.clone())
            && other.event_id() != pdu.event_id()
        {
            return Err(place);
        }
    }
    Ok(places)
}
