//! The newest end of each room's timeline, read once for all who receive it.
//! * A tail never changes: a newer one takes its place. It is good for a request if the room has not changed after
//!   the position up to which the tail was read.
//! * One task at a time reads a room's tail; the others wait for what it finds.

use std::sync::Arc;

use hearth_store::{StoreError, StreamPosition};
use quick_cache::{Weighter, sync::Cache};
use tokio::sync::Mutex;

use super::{
    events::Reader,
    timeline::{Direction, Placed, Stretch},
    token::TimelineToken,
};
use crate::{
    ids::{RoomSn, SnapshotId, TimelineOrder},
    tables::HEADS,
};

/// Events of a tail.
const TAIL_EVENTS: usize = 40;
/// Bytes of events that tails keep from being forgotten.
const TAIL_CACHE_BYTES: u64 = 16 * 1024 * 1024;
/// Tails read at the same time.
const TURNS: usize = 64;

pub(super) struct LiveRooms {
    tails: Cache<RoomSn, Arc<Tail>, Weight>,
    turns: Vec<Mutex<()>>,
}

#[derive(Clone)]
struct Weight;

impl Weighter<RoomSn, Arc<Tail>> for Weight {
    fn weight(&self, _: &RoomSn, tail: &Arc<Tail>) -> u64 {
        256 + tail.events.iter().map(|placed| 64 + placed.event.client.weight() as u64).sum::<u64>()
    }
}

/// The newest events of a room, and its state.
#[derive(Debug)]
pub struct Tail {
    /// Everything up to here is in it.
    pub upto: StreamPosition,
    /// The newest events, the oldest first, without a gap between them.
    pub events: Vec<Placed>,
    /// All events after this place are in `events`.
    pub complete_after: TimelineOrder,
    /// Whether something is missing right before the first of `events`.
    pub gap: bool,
    /// The room's state.
    pub snapshot: SnapshotId,
    /// Since when.
    pub state_changed: StreamPosition,
    pub joined: u32,
    pub invited: u32,
}

impl LiveRooms {
    pub(super) fn new() -> Self {
        Self {
            tails: Cache::with_weighter(4_000, TAIL_CACHE_BYTES, Weight),
            turns: (0..TURNS).map(|_| Mutex::new(())).collect(),
        }
    }
}

impl Reader {
    /// The newest events of a room as of `upto`. `changed` is when the room last changed. None for a room whose state
    /// we do not hold.
    pub async fn tail(
        &self,
        room: RoomSn,
        changed: StreamPosition,
        upto: StreamPosition,
    ) -> Result<Option<Arc<Tail>>, StoreError> {
        let live = &self.inner.live;
        let good = |tail: &Arc<Tail>| tail.upto >= changed.min(upto);
        if let Some(tail) = live.tails.get(&room).filter(good) {
            return Ok(Some(tail));
        }
        let _turn = live.turns[room.0 as usize % TURNS].lock().await;
        let held = live.tails.get(&room);
        if let Some(tail) = held.as_ref().filter(|tail| good(tail)) {
            return Ok(Some(tail.clone()));
        }
        let Some(tail) = self.read_tail(room, held, upto).await? else { return Ok(None) };
        let tail = Arc::new(tail);
        live.tails.insert(room, tail.clone());
        Ok(Some(tail))
    }

    async fn read_tail(
        &self,
        room: RoomSn,
        held: Option<Arc<Tail>>,
        upto: StreamPosition,
    ) -> Result<Option<Tail>, StoreError> {
        let Some((state_changed, snapshot)) = self.snapshot_row_at(room, upto).await? else {
            return Ok(None);
        };
        let Some(head) = self.store().get(&HEADS, &room).await? else { return Ok(None) };
        let whole = Stretch::up_to(upto);
        let mut complete_after = TimelineOrder::START;
        let mut events = match &held {
            Some(held) => self.go_on_from(room, held, whole).await?,
            None => Vec::new(),
        };
        match &held {
            Some(held) if !events.is_empty() => complete_after = held.complete_after,
            _ => {
                let mut rows = self.timeline_rows(room, whole, Direction::Backward, TAIL_EVENTS).await?;
                rows.reverse();
                if let Some((order, _)) = rows.first()
                    && rows.len() == TAIL_EVENTS
                {
                    complete_after = TimelineToken::before(*order).0;
                }
                events = self.placed(room, rows).await?;
            }
        }
        if events.len() > TAIL_EVENTS {
            events.drain(..events.len() - TAIL_EVENTS);
            complete_after = TimelineToken::before(events[0].order).0;
        }
        let first = events.first().map_or(TimelineOrder::START, |first| TimelineToken::before(first.order).0);
        let gap = self.gap(room, Stretch { after: first, up_to: whole.up_to }).await?;
        if let Some(gap) = gap {
            events.retain(|placed| placed.order >= gap);
            complete_after = TimelineToken::before(gap).0;
        }
        Ok(Some(Tail {
            upto,
            events,
            complete_after,
            gap: gap.is_some(),
            snapshot,
            state_changed,
            joined: head.value.joined,
            invited: head.value.invited,
        }))
    }

    /// What stands in a room's timeline changed without an event behind it: history was filled in, or events were
    /// decided again.
    pub(crate) fn forget_tail(&self, room: RoomSn) {
        self.inner.live.tails.remove(&room);
    }

    /// The events of a tail and those that came after it; nothing if that is too much, and everything is to be read.
    /// Of what the tail holds only redactions change the form, and those stand in the timeline.
    async fn go_on_from(&self, room: RoomSn, held: &Tail, whole: Stretch) -> Result<Vec<Placed>, StoreError> {
        let since = Stretch { after: TimelineOrder::live(held.upto), up_to: whole.up_to };
        let rows = self.timeline_rows(room, since, Direction::Forward, TAIL_EVENTS).await?;
        if rows.len() == TAIL_EVENTS {
            return Ok(Vec::new());
        }
        let new = self.placed(room, rows).await?;
        if new.iter().any(|placed| *placed.event.client.kind == *"m.room.redaction") {
            return Ok(Vec::new());
        }
        Ok(held.events.iter().cloned().chain(new).collect())
    }
}

impl Tail {
    /// The place of the room's last event.
    pub fn last_order(&self) -> Option<TimelineOrder> {
        self.events.last().map(|placed| placed.order)
    }
}
