//! The event of a room that is nearest to a time, for peers.

use std::sync::Arc;

use hearth_store::{Order, StoreError};
use ruma::{OwnedEventId, RoomId, ServerName};

use super::QueryError;
use super::peer::Peer;
use crate::events::StoredEvent;
use crate::ids::EventSn;
use crate::read::Direction;
use crate::rooms::Rooms;
use crate::tables::{EVENTS, MINUTES, Status};

/// Runs of one minute looked at for one time.
const RUNS_MAX: usize = 200;
/// Events looked at in one run, and read at a time.
const RUN_MAX: u32 = 2_000;
const BATCH: u32 = 64;

impl Rooms {
    /// `timestamp_to_event`: the first event at or after a time, or the last one at or before it, that the server may
    /// see, with its time.
    pub async fn event_at_for_peer(
        &self,
        origin: &ServerName,
        room: &RoomId,
        timestamp_ms: u64,
        direction: Direction,
    ) -> Result<(OwnedEventId, u64), QueryError> {
        let mut peer = self.peer(room, origin).await?;
        let room = peer.room.sn;
        let minute = u32::try_from(timestamp_ms / 60_000).unwrap_or(u32::MAX);
        let (range, order) = match direction {
            Direction::Forward => (MINUTES.prefix(&(room,)).from(&(room, minute)), Order::Forward),
            Direction::Backward => (MINUTES.prefix(&(room,)).up_to(&(room, minute)), Order::Backward),
        };
        let runs = self.store().range(&MINUTES, range, order, RUNS_MAX).await?;
        let mut best: Option<(u32, Arc<StoredEvent>)> = None;
        for ((_, minute, first), ()) in runs {
            // A minute may have several runs: all of them are looked at.
            if best.as_ref().is_some_and(|(of, _)| *of != minute) {
                break;
            }
            let found = self.nearest_of_run(&mut peer, first, minute, timestamp_ms, direction).await?;
            let Some(event) = found else { continue };
            if best.as_ref().is_none_or(|(_, held)| is_nearer(&event, held, timestamp_ms)) {
                best = Some((minute, event));
            }
        }
        let (_, event) = best.ok_or(QueryError::UnknownEvent)?;
        Ok((event.header.event_id.clone(), event.header.origin_server_ts))
    }

    async fn nearest_of_run(
        &self,
        peer: &mut Peer<'_>,
        first: EventSn,
        minute: u32,
        timestamp_ms: u64,
        direction: Direction,
    ) -> Result<Option<Arc<StoredEvent>>, StoreError> {
        let room = peer.room.clone();
        let mut best: Option<Arc<StoredEvent>> = None;
        let mut range = EVENTS.prefix(&(room.sn,)).from(&(room.sn, first));
        let mut looked_at = 0;
        while looked_at < RUN_MAX {
            let rows = self.store().range(&EVENTS, range.clone(), Order::Forward, BATCH as usize).await?;
            let Some(last) = rows.last().map(|(key, _)| *key) else { break };
            looked_at += BATCH;
            range = range.after(&last);
            for ((_, number), row) in rows {
                let time = row.header.origin_server_ts;
                if u32::try_from(time / 60_000).unwrap_or(u32::MAX) != minute {
                    return Ok(best);
                }
                let fits = match direction {
                    Direction::Forward => time >= timestamp_ms,
                    Direction::Backward => time <= timestamp_ms,
                };
                if !fits {
                    continue;
                }
                let event = self.events().load(&room, number).await?;
                let placed = event.status() == Status::Accepted && event.order().is_some();
                // Of events of one time the outermost is next to it: looking back, the last one.
                let nearer = best.as_ref().is_none_or(|held| match direction {
                    Direction::Forward => is_nearer(&event, held, timestamp_ms),
                    Direction::Backward => !is_nearer(held, &event, timestamp_ms),
                });
                if placed && nearer && peer.sees(&event).await? {
                    best = Some(event);
                }
            }
        }
        Ok(best)
    }
}

fn is_nearer(event: &StoredEvent, held: &StoredEvent, timestamp_ms: u64) -> bool {
    let distance = |event: &StoredEvent| event.header.origin_server_ts.abs_diff(timestamp_ms);
    distance(event) < distance(held)
}
