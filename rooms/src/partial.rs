//! Rooms that were entered without being told all members, until they are.
//! * Events are decided on what is known meanwhile, and each carries the mark.
//! * The full state has to let our user in: a state that does not is not believed.
//! * Completion decides events again in order on the full state, then makes it current at a new position. An event that
//!   the full state refuses leaves the timeline. One that only the current state refused waits in the queue, and is
//!   judged by the complete one.
//! * It can be taken up again at any time: what was done of it stays done. It ends when we leave the room.

use std::collections::BTreeSet;

use async_trait::async_trait;
use hearth_dag::{Pdu, Rejection, RoomRules, StateKey, VerifiedPdu, check};
use hearth_store::{Commit, Order, StoreError, StreamPosition};
use parking_lot::Mutex;
use ruma::events::StateEventType;
use ruma::{OwnedEventId, OwnedRoomId, OwnedServerName, RoomId};

use crate::errors::WriteError;
use crate::events::{RoomInfo, StoredEvent};
use crate::ids::{EventSn, SnapshotId};
use crate::import::{CheckedEvents, Members, TOLD_EVENTS_MAX, by_place};
use crate::lane::{Act, Done, Waits};
use crate::rooms::Rooms;
use crate::seams::on_a_thread;
use crate::snapshot::StateChange;
use crate::tables::*;
use crate::turn::Turn;

/// Events that are decided again in one commit.
const DECIDED_AT_ONCE: usize = 50;
/// More rows and bytes than deciding one of them takes.
const ROWS_OF_A_DECISION: usize = 30;
const BYTES_OF_A_DECISION: usize = 90_000;
/// How often completion is tried while the room goes on.
const ROUNDS_MAX: usize = 100_000;
/// Rooms that are named as partial.
const ROOMS_MAX: usize = 10_000;

/// A room whose state is not fully known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartialRoom {
    pub room_id: OwnedRoomId,
    /// Our join: the state before it is to be asked for.
    pub join: OwnedEventId,
    /// The server that let us in.
    pub origin: OwnedServerName,
    /// The servers in the room, as that one told.
    pub servers: Vec<OwnedServerName>,
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum CompleteError {
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("the state has no create event of this room that is allowed")]
    NoCreateEvent,
    #[error("the state has two events for {0:?}")]
    TwoEventsForOneKey(StateKey),
    #[error("more than {TOLD_EVENTS_MAX} events")]
    TooManyEvents,
    /// Another server may tell another state; the room stays partial.
    #[error("the state does not let our user in: {0}")]
    Refused(Rejection),
}

impl From<StoreError> for CompleteError {
    fn from(error: StoreError) -> Self {
        CompleteError::Write(error.into())
    }
}

impl Rooms {
    /// What is to be asked for a room whose state is partial.
    pub async fn partial_room(&self, room: &RoomId) -> Result<Option<PartialRoom>, StoreError> {
        let Some(room) = self.room(room).await? else { return Ok(None) };
        let Some(row) = self.store().get(&PARTIAL_ROOMS, &room.sn).await? else { return Ok(None) };
        let join = self.events().load(&room, row.join).await?.header.event_id.clone();
        let PartialRoomRow { origin, servers, .. } = row;
        Ok(Some(PartialRoom { room_id: room.room_id.clone(), join, origin, servers }))
    }

    /// Rooms whose state is partial: what is to be taken up after a restart.
    pub async fn partial_rooms(&self) -> Result<Vec<OwnedRoomId>, StoreError> {
        let rows = self.store().range(&PARTIAL_ROOMS, PARTIAL_ROOMS.all(), Order::Forward, ROOMS_MAX).await?;
        let mut rooms = Vec::with_capacity(rows.len());
        for (room, _) in rows {
            rooms.extend(self.room_of(room).await?.map(|room| room.room_id.clone()));
        }
        Ok(rooms)
    }

    /// Takes the full state before our join, then decides what waits in the queue. Nothing if the room's state is
    /// complete.
    pub async fn complete_state(
        &self,
        room: &RoomId,
        state: Vec<VerifiedPdu>,
        auth_chain: Vec<VerifiedPdu>,
    ) -> Result<(), CompleteError> {
        let room = self.room(room).await?.ok_or(WriteError::UnknownRoom)?;
        if state.len() + auth_chain.len() > TOLD_EVENTS_MAX {
            return Err(CompleteError::TooManyEvents);
        }
        let _entry = self.entries().of(&room.room_id).await;
        let Some(row) = self.store().get(&PARTIAL_ROOMS, &room.sn).await? else { return Ok(()) };
        let join = self.events().load(&room, row.join).await?.pdu.clone();
        let ids: Vec<OwnedEventId> = state.iter().map(|event| event.pdu().event_id().to_owned()).collect();
        let checked = check_told(room.rules, &room.room_id, join, state, auth_chain).await?;
        let ids: Vec<OwnedEventId> = ids.into_iter().filter(|id| checked.get(id).is_some()).collect();
        self.import(&room, &checked.events).await?;
        let full =
            self.hold_state(&room, &ids, Members::Told).await?.map_err(|_| CompleteError::NoCreateEvent)?;
        let act = Complete { full: full.snapshot, members_first: Mutex::default() };
        for _ in 0..ROUNDS_MAX {
            let done = self.decide(&room, &act, &Commit::new()).await;
            let members = std::mem::take(&mut *act.members_first.lock());
            match done {
                Err(WriteError::Busy) if !members.is_empty() => {
                    self.write_members(&room, &members, false).await?;
                }
                done => {
                    let Done { output: is_complete, .. } = done?;
                    self.reader().forget_tail(room.sn);
                    if is_complete {
                        self.tell_late_members(&room).await;
                        self.receive_queued(&room.room_id).await?;
                        return Ok(());
                    }
                }
            }
        }
        Err(WriteError::Busy.into())
    }
}

/// All checks of a told state that need nothing but itself and our join.
async fn check_told(
    rules: &'static RoomRules,
    room: &RoomId,
    join: Pdu,
    state: Vec<VerifiedPdu>,
    auth_chain: Vec<VerifiedPdu>,
) -> Result<CheckedEvents, CompleteError> {
    let room = room.to_owned();
    let check = move || {
        let ids: Vec<OwnedEventId> = state.iter().map(|event| event.pdu().event_id().to_owned()).collect();
        let checked = CheckedEvents::of(rules, &room, state.into_iter().chain(auth_chain).collect());
        let allowed = ids.iter().filter_map(|event| checked.get(event));
        let places = by_place(allowed).map_err(CompleteError::TwoEventsForOneKey)?;
        if !places.contains_key(&(StateEventType::RoomCreate, String::new())) {
            return Err(CompleteError::NoCreateEvent);
        }
        let at = |kind: &StateEventType, key: &str| places.get(&(kind.clone(), key.to_owned())).cloned();
        check(rules, &join, at).map_err(CompleteError::Refused)?;
        Ok(checked)
    };
    on_a_thread(check).await?
}

/// Decides some events again, or makes the full state current if there are none left. Says whether it did.
struct Complete {
    full: SnapshotId,
    members_first: Mutex<Vec<StateChange>>,
}

#[async_trait]
impl Act for Complete {
    type Output = bool;
    type Error = WriteError;

    fn waits(&self) -> Waits {
        Waits::ForAll
    }

    async fn decide(&self, turn: &mut Turn) -> Result<bool, WriteError> {
        let room = turn.room();
        let Some(row) = turn.rooms.store().get(&PARTIAL_ROOMS, &room.sn).await? else { return Ok(true) };
        let range = PARTIAL_EVENTS.prefix(&(room.sn,));
        let open = turn.rooms.store().range(&PARTIAL_EVENTS, range, Order::Forward, DECIDED_AT_ONCE).await?;
        if open.is_empty() {
            let done = self.finish(turn, &room, &row).await;
            *self.members_first.lock() = std::mem::take(&mut turn.members_first);
            return done.map(|()| true);
        }
        // Our join is the first event of this stay. Of one before it the store may still be deleting what is left.
        let mut is_of_this_stay = turn.event(row.join).await?.changes.completed;
        for (key, event) in open {
            if !turn.commit.has_room_for(ROWS_OF_A_DECISION, BYTES_OF_A_DECISION) {
                break;
            }
            is_of_this_stay |= event == row.join;
            if !is_of_this_stay {
                turn.commit.delete(&PARTIAL_EVENTS, &key);
                turn.change_head();
                continue;
            }
            let event = turn.event(event).await?;
            let full = (event.sn == row.join).then_some(self.full);
            turn.decide_again(&event, full).await?;
            turn.commit.delete(&PARTIAL_EVENTS, &key);
        }
        Ok(false)
    }
}

impl Complete {
    async fn finish(&self, turn: &mut Turn, room: &RoomInfo, row: &PartialRoomRow) -> Result<(), WriteError> {
        let slot: StreamPosition = turn.commit.position();
        turn.leave_refused_extremities(row.join).await?;
        // What was merged was decided on the partial state.
        turn.forget_merged();
        let head = turn.change_head();
        head.row.partial_state = false;
        head.row.residency = Residency::Resident;
        turn.resolve_head(slot).await?;
        let snapshot = SnapshotRow { snapshot: turn.head.row.snapshot, partial: false };
        turn.commit.put(&HEAD_SNAPSHOTS, &(room.sn, slot), &snapshot);
        let what = StreamWhat::State;
        let told = StreamRow { room: room.sn, event: row.join, what, also_to: Vec::new() };
        turn.commit.put(&STREAM, &slot, &told);
        turn.commit.delete(&PARTIAL_ROOMS, &room.sn);
        turn.joins_changed = true;
        turn.settle_residency().await
    }
}

impl Turn {
    /// Decides an event on the full state. `before` is the state before it, if that was told.
    async fn decide_again(
        &mut self,
        event: &StoredEvent,
        before: Option<SnapshotId>,
    ) -> Result<(), WriteError> {
        let is_whole = event.header.prev_events.len() == event.pdu.prev_events().len();
        let before = match before {
            Some(before) => before,
            None if is_whole => self.state_of(&event.header.prev_events.clone()).await?,
            // Its state was told in full by a peer when it came.
            None => event.snapshot_before().unwrap_or(SnapshotId::EMPTY),
        };
        let mut status = self.status(event.sn).await?;
        status.snapshot_before = Some(before);
        status.completed = true;
        if matches!(event.status(), Status::Accepted | Status::SoftFailed) {
            // What the event names does not stand in for what the state lacks any more.
            match self.judge_complete(&event.pdu, before).await? {
                Ok(()) if event.status() == Status::Accepted => {}
                Ok(()) => {
                    status.status = Some(Status::Outlier);
                    let pdu = event.pdu.json().to_owned();
                    let origin = event.header.sender.server_name().to_owned();
                    self.enqueue(QueuedRow { event_id: event.header.event_id.clone(), origin, pdu }).await?;
                }
                Err(why) => {
                    tracing::info!(event_id = %event.header.event_id, %why, "the full state refuses an event");
                    status.status = Some(Status::Rejected);
                    if let Some(order) = event.order() {
                        self.commit.delete(&TIMELINE, &(self.head.room.sn, order));
                    }
                }
            }
        }
        self.put_status(event.sn, status);
        Ok(())
    }

    /// Extremities that were refused make place for what is before them. Our join stays if nothing else does.
    async fn leave_refused_extremities(&mut self, join: EventSn) -> Result<(), WriteError> {
        let mut open = self.head.row.extremities.clone();
        let (mut kept, mut seen) = (Vec::new(), BTreeSet::new());
        let mut passed: BTreeSet<EventSn> = BTreeSet::new();
        while let Some(event) = open.pop() {
            if !seen.insert(event) {
                continue;
            }
            let event = self.event(event).await?;
            match event.status() {
                Status::Accepted => {
                    passed.extend(event.header.prev_events.iter().copied());
                    kept.push((event.sn, event.header.event_id.clone()));
                }
                _ => open.extend(event.header.prev_events.iter().copied()),
            }
        }
        kept.retain(|(event, _)| !passed.contains(event));
        kept.sort_unstable();
        if kept.is_empty() {
            kept.push((join, self.event(join).await?.header.event_id.clone()));
        }
        let head = self.change_head();
        (head.row.extremities, head.extremities) = kept.into_iter().unzip();
        Ok(())
    }
}
