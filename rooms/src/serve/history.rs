//! Single events and stretches of history for peers.
//! * Only events of the room asked about count; what we refused is not given out.
//! * Every walk over prev events ends at the number of events that an answer may have.

use std::collections::{BTreeSet, BinaryHeap, HashSet, VecDeque};
use std::sync::Arc;

use hearth_dag::Pdu;
use hearth_store::{Order, StoreError};
use ruma::{EventId, OwnedEventId, RoomId, ServerName};

use super::QueryError;
use crate::events::{RoomInfo, StoredEvent};
use crate::ids::{EventKey, EventSn};
use crate::rooms::Rooms;
use crate::tables::{EVENT_NUMBERS, Status};

/// Events of one answer to `backfill`.
const BACKFILL_MAX: usize = 100;
/// Events of one answer to `get_missing_events`.
const MISSING_MAX: usize = 50;
/// Events looked at for one answer: a server that left is told nothing of what came later.
const LOOKED_AT_MAX: usize = 1_000;
/// Events that a request may name to start from, and to stop at.
const STARTS_MAX: usize = 100;
const STOPS_MAX: usize = 1_000;
/// Rooms that may hold events of one id.
const ROOMS_OF_AN_ID: usize = 8;

/// What a server asks in `get_missing_events`.
#[derive(Clone, Debug, Default)]
pub struct MissingEvents {
    /// What the server has: the walk does not go past them.
    pub earliest: Vec<OwnedEventId>,
    /// Whose prev events it misses.
    pub latest: Vec<OwnedEventId>,
    pub limit: usize,
    pub min_depth: u64,
}

impl Rooms {
    /// `event`: one event, in whatever room it is that we and the server share.
    pub async fn event_for_peer(
        &self,
        origin: &ServerName,
        event: &EventId,
    ) -> Result<(Arc<RoomInfo>, Pdu), QueryError> {
        let range = EVENT_NUMBERS.prefix(&(EventKey::new(event),));
        let rows = self.store().range(&EVENT_NUMBERS, range, Order::Forward, ROOMS_OF_AN_ID).await?;
        let mut refusal = QueryError::UnknownEvent;
        for ((_, room), number) in rows {
            let Some(room) = self.room_of(room).await? else { continue };
            let mut peer = match self.peer(&room.room_id, origin).await {
                Ok(peer) => peer,
                Err(QueryError::Store(error)) => return Err(error.into()),
                Err(other) => {
                    refusal = other;
                    continue;
                }
            };
            let event = self.events().load(&room, number).await?;
            if event.status() == Status::Rejected {
                continue;
            }
            if !peer.is_present() && !peer.sees(&event).await? {
                refusal = QueryError::NotInRoom;
                continue;
            }
            let pdu = peer.copy(&event).await?;
            return Ok((room, pdu));
        }
        Err(refusal)
    }

    /// `backfill`: these events and those before them, the deepest first.
    pub async fn backfill_for_peer(
        &self,
        origin: &ServerName,
        room: &RoomId,
        from: &[OwnedEventId],
        limit: usize,
    ) -> Result<Vec<Pdu>, QueryError> {
        let mut peer = self.peer(room, origin).await?;
        let room = peer.room.clone();
        let limit = limit.min(BACKFILL_MAX);
        let mut open: BinaryHeap<(u64, EventSn)> = BinaryHeap::new();
        let mut seen: HashSet<EventSn> = HashSet::new();
        for event in self.placed_events(&room, from.iter().take(STARTS_MAX)).await? {
            if seen.insert(event.sn) {
                open.push((event.header.depth, event.sn));
            }
        }
        let mut pdus = Vec::new();
        let mut looked_at = 0;
        while pdus.len() < limit
            && looked_at < LOOKED_AT_MAX
            && let Some((_, event)) = open.pop()
        {
            looked_at += 1;
            let event = self.events().load(&room, event).await?;
            for before in self.placed_events(&room, event.pdu.prev_events()).await? {
                if seen.insert(before.sn) {
                    open.push((before.header.depth, before.sn));
                }
            }
            if peer.is_present() || peer.sees(&event).await? {
                pdus.push(peer.copy(&event).await?);
            }
        }
        Ok(pdus)
    }

    /// `get_missing_events`: what lies between the events that a server has and those that it got; oldest first.
    pub async fn missing_events_for_peer(
        &self,
        origin: &ServerName,
        room: &RoomId,
        missing: &MissingEvents,
    ) -> Result<Vec<Pdu>, QueryError> {
        let mut peer = self.peer(room, origin).await?;
        let room = peer.room.clone();
        let limit = missing.limit.min(MISSING_MAX);
        let known: BTreeSet<&OwnedEventId> =
            missing.earliest.iter().take(STOPS_MAX).chain(missing.latest.iter().take(STARTS_MAX)).collect();
        let mut seen: HashSet<EventSn> = HashSet::new();
        let mut open: VecDeque<Arc<StoredEvent>> =
            self.placed_events(&room, missing.latest.iter().take(STARTS_MAX)).await?.into();
        let mut found: Vec<Arc<StoredEvent>> = Vec::new();
        while found.len() < limit
            && let Some(event) = open.pop_front()
        {
            for before in self.placed_events(&room, event.pdu.prev_events()).await? {
                if found.len() < limit
                    && !known.contains(&before.header.event_id)
                    && before.header.depth >= missing.min_depth
                    && seen.insert(before.sn)
                {
                    found.push(before.clone());
                    open.push_back(before);
                }
            }
        }
        found.sort_by_key(|event| (event.header.depth, event.sn));
        let mut pdus = Vec::with_capacity(found.len());
        for event in found {
            if peer.is_present() || peer.sees(&event).await? {
                pdus.push(peer.copy(&event).await?);
            }
        }
        Ok(pdus)
    }

    /// Those of some events that have a place in this room.
    async fn placed_events(
        &self,
        room: &RoomInfo,
        events: impl IntoIterator<Item = &OwnedEventId>,
    ) -> Result<Vec<Arc<StoredEvent>>, StoreError> {
        let keys: Vec<_> = events.into_iter().map(|event| (EventKey::new(event), room.sn)).collect();
        let numbers = self.store().multi_get(&EVENT_NUMBERS, &keys).await?;
        let numbers: Vec<EventSn> = numbers.into_iter().flatten().collect();
        let events = self.events().load_many(room, &numbers).await?;
        let placed = |event: &Arc<StoredEvent>| {
            matches!(event.status(), Status::Accepted | Status::SoftFailed) && !event.position.is_slot()
        };
        Ok(events.into_iter().filter(placed).collect())
    }
}
