//! Events that wait for others: a durable queue for each room.
//! * An event waits until what it refers to is here; then it is decided, in whatever order they all came.
//! * The queue is bounded in events and bytes; the oldest make room, and are asked for again when others name them.
//! * Deciding an event twice changes nothing: it leaves the queue after its decision.
//! * No event stands in the way of another: one that cannot be decided or kept at all leaves the queue too.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::future::join_all;
use hearth_dag::{Pdu, ReceivedPdu, VerifiedPdu};
use hearth_store::{Commit, Order, StoreError};
use ruma::{EventId, OwnedEventId, OwnedRoomId, OwnedServerName, RoomId, ServerName};

use crate::errors::WriteError;
use crate::events::RoomInfo;
use crate::ids::RoomSn;
use crate::lane::{Act, Waits};
use crate::receive::Received;
use crate::rooms::Rooms;
use crate::tables::{QUEUE, QueuedRow};
use crate::turn::Turn;

/// Events that wait in one room.
pub const QUEUED_EVENTS_MAX: usize = 200;
/// Bytes of events that wait in one room.
pub const QUEUED_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Events that are decided before the first of them is on the disk.
const DECIDED_AT_ONCE: usize = 32;
/// Rooms that are named as having events that wait.
const ROOMS_MAX: usize = 10_000;

/// An event that others wait for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub event_id: OwnedEventId,
    /// Named as a prev event: it has to be received. Otherwise it is enough to hold it as an outlier.
    pub as_prev: bool,
    pub as_auth: bool,
    /// The events that wait for it.
    pub by: Vec<OwnedEventId>,
    /// The servers that handed us those.
    pub origins: Vec<OwnedServerName>,
}

impl Rooms {
    /// Lets an event wait in its room's queue until what it refers to is here. False if it waits already.
    pub async fn enqueue(&self, pdu: &VerifiedPdu, origin: &ServerName) -> Result<bool, WriteError> {
        let room = self.room(pdu.pdu().room_id()).await?.ok_or(WriteError::UnknownRoom)?;
        let row = QueuedRow {
            event_id: pdu.pdu().event_id().to_owned(),
            origin: origin.to_owned(),
            pdu: pdu.pdu().json().to_owned(),
        };
        Ok(self.decide(&room, &Enqueue(row), &Commit::new()).await?.output)
    }

    /// What the queue of a room waits for: events that are neither here nor waiting themselves.
    pub async fn wanted(&self, room: &RoomId) -> Result<Vec<Wanted>, WriteError> {
        let Some(room) = self.room(room).await? else { return Ok(Vec::new()) };
        let queued = self.queued(&room).await?;
        let waiting: BTreeSet<OwnedEventId> = queued.iter().map(|(_, row, _)| row.event_id.clone()).collect();
        let mut wanted: BTreeMap<OwnedEventId, Wanted> = BTreeMap::new();
        for (_, row, pdu) in &queued {
            let pdu = pdu.pdu();
            let prev = pdu.prev_events().iter().map(|event| (event, true));
            let auth = pdu.auth_events().iter().map(|event| (event, false));
            for (event, as_prev) in prev.chain(auth) {
                if waiting.contains(event) || self.is_here(&room, event, as_prev).await? {
                    continue;
                }
                let wanted = wanted.entry(event.clone()).or_insert_with(|| Wanted {
                    event_id: event.clone(),
                    as_prev: false,
                    as_auth: false,
                    by: Vec::new(),
                    origins: Vec::new(),
                });
                wanted.as_prev |= as_prev;
                wanted.as_auth |= !as_prev;
                if wanted.by.last() != Some(&row.event_id) {
                    wanted.by.push(row.event_id.clone());
                }
                if !wanted.origins.contains(&row.origin) {
                    wanted.origins.push(row.origin.clone());
                }
            }
        }
        Ok(wanted.into_values().collect())
    }

    /// Decides the events of a room's queue whose references are here, those first that others wait for. Says what
    /// became of each; those that still wait are not named, nor is one that was dropped because it can never be kept. One
    /// that the room's policy server has to sign is named and waits.
    pub async fn receive_queued(&self, room: &RoomId) -> Result<Vec<(OwnedEventId, Received)>, WriteError> {
        let Some(room) = self.room(room).await? else { return Ok(Vec::new()) };
        let queued = self.queued(&room).await?;
        let (mut decided, mut done, mut failed) = (Vec::new(), Vec::new(), None);
        let order = references_first(queued.len(), |place| queued[place].2.pdu());
        let in_order: Vec<&VerifiedPdu> = order.iter().map(|place| &queued[*place].2).collect();
        let received = self.receive_in_order(&in_order).await;
        for (place, received) in order.into_iter().zip(received) {
            let (number, row, _) = &queued[place];
            match received {
                Ok(Received::Missing { .. }) => {}
                Ok(received @ Received::NeedsPolicySignature(_)) => {
                    decided.push((row.event_id.clone(), received));
                }
                Ok(received) => {
                    decided.push((row.event_id.clone(), received));
                    done.push(*number);
                }
                // We have left the room: nothing waits there any more.
                Err(WriteError::NotResident) => done.push(*number),
                Err(error) if error.is_final() => {
                    tracing::warn!(
                        room_id = %room.room_id, event_id = %row.event_id, %error,
                        "an event that cannot be kept is dropped"
                    );
                    done.push(*number);
                }
                // It waits for the next time, and so does what follows it.
                Err(WriteError::Busy | WriteError::Store(StoreError::CommitTooLarge { .. })) => {}
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        if !done.is_empty() {
            self.decide(&room, &Dequeue(done), &Commit::new()).await?;
        }
        match failed {
            Some(error) => Err(error),
            None => Ok(decided),
        }
    }

    /// Takes events in, each after those before it. Several are decided before the first of them is on the disk.
    async fn receive_in_order(&self, events: &[&VerifiedPdu]) -> Vec<Result<Received, WriteError>> {
        let mut all = Vec::with_capacity(events.len());
        for events in events.chunks(DECIDED_AT_ONCE) {
            // They come into the lane in the order in which they are polled first.
            let mut received = join_all(events.iter().map(|event| self.receive(event))).await;
            for place in 0..events.len() {
                let Ok(Received::Missing { prev, auth }) = &received[place] else { continue };
                let mut lacking = prev.iter().chain(auth);
                // One before it had to be decided again, and lost its place in the lane.
                if lacking
                    .any(|lacking| events[..place].iter().any(|event| event.pdu().event_id() == lacking))
                {
                    received[place] = self.receive(events[place]).await;
                }
            }
            let is_over = received.iter().any(is_no_matter_of_the_event);
            all.extend(received);
            if is_over {
                break;
            }
        }
        all
    }

    /// Lets an event wait no longer, whether or not it was decided.
    pub async fn unqueue(&self, room: &RoomId, event: &EventId) -> Result<(), WriteError> {
        let Some(room) = self.room(room).await? else { return Ok(()) };
        let queued = self.queued(&room).await?;
        let named = queued.iter().filter(|(_, row, _)| row.event_id == event);
        let numbers = named.map(|(number, ..)| *number).collect();
        self.decide(&room, &Dequeue(numbers), &Commit::new()).await.map(drop)
    }

    /// The events that wait in a room, the oldest first, with the servers that handed us them.
    pub async fn queued_events(
        &self,
        room: &RoomId,
    ) -> Result<Vec<(VerifiedPdu, OwnedServerName)>, WriteError> {
        let Some(room) = self.room(room).await? else { return Ok(Vec::new()) };
        let queued = self.queued(&room).await?;
        Ok(queued.into_iter().map(|(_, row, pdu)| (pdu, row.origin)).collect())
    }

    /// Rooms in which events wait: what is to be taken up after a restart.
    pub async fn rooms_with_queues(&self) -> Result<Vec<OwnedRoomId>, StoreError> {
        let mut rooms = Vec::new();
        let mut range = QUEUE.all();
        while rooms.len() < ROOMS_MAX {
            let Some(((room, _), _)) = self.store().first(&QUEUE, range.clone()).await? else { break };
            rooms.extend(self.room_of(room).await?.map(|room| room.room_id.clone()));
            range = range.from(&(RoomSn(room.0.saturating_add(1)),));
        }
        Ok(rooms)
    }

    async fn queued(&self, room: &Arc<RoomInfo>) -> Result<Vec<(u64, QueuedRow, VerifiedPdu)>, WriteError> {
        self.settled(room.sn).await;
        let range = QUEUE.prefix(&(room.sn,));
        let rows = self.store().range(&QUEUE, range, Order::Forward, QUEUED_EVENTS_MAX).await?;
        let (mut queued, mut unreadable) = (Vec::with_capacity(rows.len()), Vec::new());
        for ((_, number), row) in rows {
            match ReceivedPdu::parse(room.rules, &row.pdu) {
                Ok(pdu) => queued.push((number, row, pdu.trust_signatures(room.rules))),
                Err(why) => {
                    tracing::warn!(
                        room_id = %room.room_id, event_id = %row.event_id, %why,
                        "an event that cannot be read again is dropped"
                    );
                    unreadable.push(number);
                }
            }
        }
        if !unreadable.is_empty() {
            self.decide(room, &Dequeue(unreadable), &Commit::new()).await?;
        }
        Ok(queued)
    }

    async fn is_here(
        &self,
        room: &Arc<RoomInfo>,
        event: &EventId,
        as_prev: bool,
    ) -> Result<bool, StoreError> {
        let Some(held) = self.events().by_id(room, event).await? else { return Ok(false) };
        Ok(!as_prev || crate::judge::has_place(&held))
    }
}

/// Whether no further event is to be tried for now.
fn is_no_matter_of_the_event(received: &Result<Received, WriteError>) -> bool {
    match received {
        Ok(_) | Err(WriteError::Busy | WriteError::NotResident) => false,
        Err(WriteError::Store(StoreError::CommitTooLarge { .. })) => false,
        Err(error) => !error.is_final(),
    }
}

/// The order in which events are decided: what others refer to comes first.
pub(crate) fn references_first<'a>(count: usize, pdu: impl Fn(usize) -> &'a Pdu) -> Vec<usize> {
    let places: HashMap<&EventId, usize> = (0..count).map(|place| (pdu(place).event_id(), place)).collect();
    let mut order = Vec::with_capacity(count);
    let mut seen = vec![false; count];
    for start in 0..count {
        let mut open = vec![(start, false)];
        while let Some((place, is_done)) = open.pop() {
            if is_done {
                order.push(place);
                continue;
            }
            if std::mem::replace(&mut seen[place], true) {
                continue;
            }
            open.push((place, true));
            let references = pdu(place).prev_events().iter().chain(pdu(place).auth_events());
            let given = references.filter_map(|event| places.get(&**event));
            open.extend(given.filter(|place| !seen[**place]).map(|place| (*place, false)));
        }
    }
    order
}

struct Enqueue(QueuedRow);

#[async_trait]
impl Act for Enqueue {
    type Output = bool;
    type Error = WriteError;

    fn waits(&self) -> Waits {
        Waits::ForItsKind
    }

    async fn decide(&self, turn: &mut Turn) -> Result<bool, WriteError> {
        turn.enqueue(self.0.clone()).await
    }
}

/// An event in the queue as a turn sees it.
pub(crate) struct Waiting {
    number: u64,
    event_id: OwnedEventId,
    origin: OwnedServerName,
    bytes: usize,
}

/// Where the oldest event is of the server that has given most, by bytes: nobody makes room at others' cost.
fn oldest_of_most(waiting: &VecDeque<Waiting>) -> Option<usize> {
    let mut held: BTreeMap<&ServerName, usize> = BTreeMap::new();
    for one in waiting {
        *held.entry(&one.origin).or_default() += one.bytes.max(QUEUED_BYTES_MAX / QUEUED_EVENTS_MAX);
    }
    let most = held.into_iter().max_by_key(|(_, bytes)| *bytes)?.0;
    waiting.iter().position(|one| *one.origin == *most)
}

impl Turn {
    /// Lets an event wait. False if it does already. What others put into the queue has to be in the store.
    pub(crate) async fn enqueue(&mut self, queued: QueuedRow) -> Result<bool, WriteError> {
        let room = self.room();
        // As the events before it in this turn left the queue.
        let mut waiting = match self.queue.take() {
            Some(waiting) => waiting,
            None => self.waiting().await?,
        };
        let is_new = waiting.iter().all(|waiting| waiting.event_id != queued.event_id);
        if is_new {
            let head = &mut self.change_head().row;
            let number = head.next_queued;
            head.next_queued += 1;
            self.commit.put_new(&QUEUE, &(room.sn, number), &queued);
            let (event_id, origin) = (queued.event_id, queued.origin);
            waiting.push_back(Waiting { number, event_id, origin, bytes: queued.pdu.len() });
        }
        let mut bytes: usize = waiting.iter().map(|waiting| waiting.bytes).sum();
        while waiting.len() > QUEUED_EVENTS_MAX || bytes > QUEUED_BYTES_MAX {
            let Some(oldest) = oldest_of_most(&waiting).and_then(|at| waiting.remove(at)) else { break };
            tracing::warn!(
                room_id = %room.room_id, event_id = %oldest.event_id, origin = %oldest.origin,
                "too many events wait in this room, the oldest of the server that gave most is dropped"
            );
            bytes -= oldest.bytes;
            self.commit.delete(&QUEUE, &(room.sn, oldest.number));
        }
        self.queue = Some(waiting);
        Ok(is_new)
    }

    async fn waiting(&self) -> Result<VecDeque<Waiting>, StoreError> {
        let range = QUEUE.prefix(&(self.head.room.sn,));
        let rows = self.rooms.store().range(&QUEUE, range, Order::Forward, QUEUED_EVENTS_MAX + 1).await?;
        let waiting = rows.into_iter().map(|((_, number), row)| Waiting {
            number,
            event_id: row.event_id,
            origin: row.origin,
            bytes: row.pdu.len(),
        });
        Ok(waiting.collect())
    }
}

struct Dequeue(Vec<u64>);

#[async_trait]
impl Act for Dequeue {
    type Output = ();
    type Error = WriteError;

    fn anywhere(&self) -> bool {
        true
    }

    fn waits(&self) -> Waits {
        Waits::ForItsKind
    }

    async fn decide(&self, turn: &mut Turn) -> Result<(), WriteError> {
        let room = turn.head.room.sn;
        for number in &self.0 {
            turn.commit.delete(&QUEUE, &(room, *number));
        }
        Ok(())
    }
}
