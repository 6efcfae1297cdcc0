//! What is not here: references of stored events to others, and the gaps in the timeline that this makes.
//! * A gap stands at the first event of its anchor: right before that event, others are missing. There is at most one
//!   gap for an anchor, and history is filled in below it.
//! * When a missing event comes, every gap that named it forgets it; a gap that names nothing is gone.
//! * What a gap names is bounded: an event has few prev events, but those of many filled-in events come together.

use hearth_store::{Order, StoreError, StreamPosition};
use ruma::{OwnedEventId, RoomId};

use crate::errors::WriteError;
use crate::events::StoredEvent;
use crate::ids::{EventKey, EventSn, RoomSn, TimelineOrder};
use crate::rooms::Rooms;
use crate::tables::{GAPS, GapRow, MISSING, MissingRow, Status};
use crate::turn::Turn;

/// Bytes of event ids that a gap names. Of more than fit, those at the end are not looked for.
const GAP_BYTES_MAX: usize = 4000;
/// Events that refer to one missing event and are told that it came; a gap that others made names it still, until it
/// is filled in.
const REFERRERS_MAX: usize = 50;

/// A place of the timeline before which events are missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The event behind the gap.
    pub at: TimelineOrder,
    /// The last of the missing events: prev events of what follows.
    pub missing: Vec<OwnedEventId>,
}

impl Rooms {
    /// The last gap of a room that lies at `up_to` or before it.
    pub async fn last_gap(&self, room: &RoomId, up_to: TimelineOrder) -> Result<Option<Gap>, StoreError> {
        let Some(room) = self.room(room).await? else { return Ok(None) };
        let range = GAPS.prefix(&(room.sn,)).up_to(&(room.sn, up_to));
        let rows = self.store().range(&GAPS, range, Order::Backward, 1).await?;
        Ok(rows.into_iter().next().map(|((_, at), row)| Gap { at, missing: row.missing }))
    }

    /// The gap of an anchor as the store has it.
    pub(crate) async fn gap_of(
        &self,
        room: RoomSn,
        anchor: StreamPosition,
    ) -> Result<Option<(TimelineOrder, GapRow)>, StoreError> {
        let range = GAPS
            .prefix(&(room,))
            .from(&(room, TimelineOrder { anchor, sub: 0 }))
            .up_to(&(room, TimelineOrder::live(anchor)));
        Ok(self.store().first(&GAPS, range).await?.map(|((_, at), row)| (at, row)))
    }
}

impl Turn {
    /// Notes that a stored event has prev events that are not here.
    pub(crate) fn note_missing(&mut self, event: EventSn, missing: &[OwnedEventId]) {
        let room = self.head.room.sn;
        for prev in missing {
            let row = MissingRow { as_prev: true, as_auth: false };
            self.put(&MISSING, &(room, EventKey::new(prev), event), row);
        }
    }

    /// Events are missing right before this place.
    pub(crate) fn open_gap(&mut self, at: TimelineOrder, missing: &[OwnedEventId]) {
        let room = self.head.room.sn;
        let mut bytes = 0;
        let mut named: Vec<OwnedEventId> = Vec::with_capacity(missing.len());
        for event in missing {
            bytes += event.as_str().len() + 2;
            if bytes > GAP_BYTES_MAX {
                tracing::warn!(room_id = %self.head.room.room_id, "a gap with too many missing events");
                break;
            }
            if !named.contains(event) {
                named.push(event.clone());
            }
        }
        let gap = GapRow { missing: named };
        match at.anchor.is_slot() {
            // The place of a live event is not known yet, so that nobody can ask for it.
            true => self.commit.put(&GAPS, &(room, at), &gap),
            false => self.put(&GAPS, &(room, at), gap),
        }
    }

    /// The gap of an anchor.
    pub(crate) async fn gap_of(
        &self,
        anchor: StreamPosition,
    ) -> Result<Option<(TimelineOrder, GapRow)>, StoreError> {
        let room = self.head.room.sn;
        let Some((at, _)) = self.rooms.gap_of(room, anchor).await? else { return Ok(None) };
        // As this turn has left it.
        Ok(self.get(&GAPS, &(room, at)).await?.map(|row| (at, row)))
    }

    /// An event is in the room, or refused: nobody misses it any more. Says whether an event that is in the room names
    /// it as a prev event. The gap of the anchor `except` is left to the caller.
    pub(crate) async fn arrived(
        &mut self,
        event: &StoredEvent,
        except: Option<StreamPosition>,
    ) -> Result<bool, WriteError> {
        let room: RoomSn = self.head.room.sn;
        let range = MISSING.prefix(&(room, EventKey::new(&event.header.event_id)));
        let rows = self.rooms.store().range(&MISSING, range, Order::Forward, REFERRERS_MAX).await?;
        let mut is_prev = false;
        for (key, row) in rows {
            self.delete(&MISSING, &key);
            if !row.as_prev {
                continue;
            }
            let referrer = self.event(key.2).await?;
            is_prev |= referrer.status() == Status::Accepted;
            let Some(order) = referrer.order().filter(|order| Some(order.anchor) != except) else { continue };
            if order.anchor.is_slot() {
                continue;
            }
            if let Some((at, mut gap)) = self.gap_of(order.anchor).await? {
                gap.missing.retain(|missing| *missing != event.header.event_id);
                match gap.missing.is_empty() {
                    true => self.delete(&GAPS, &(room, at)),
                    false => self.put(&GAPS, &(room, at), gap),
                }
            }
        }
        Ok(is_prev)
    }
}
