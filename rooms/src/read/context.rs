//! Single events, what surrounds them, and the event nearest to a time.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use hearth_store::{Order, StoreError};
use ruma::EventId;

use super::{
    events::{Reader, RoomEvent},
    filter::EventFilter,
    timeline::{Direction, Shown, Stretch},
    token::TimelineToken,
    viewer::Viewer,
};
use crate::{
    ids::{EventSn, StateKeySn, TimelineOrder},
    tables::{MINUTES, Status},
};

/// Runs of one minute looked at for one time.
const MAX_RUNS: usize = 200;
/// Events looked at in one run.
const MAX_RUN: u32 = 2_000;
/// Events read at a time.
const BATCH: u32 = 64;

/// An event and what surrounds it.
#[derive(Debug)]
pub struct Context {
    pub event: Shown,
    /// The nearest first.
    pub before: Vec<Shown>,
    /// The nearest first.
    pub after: Vec<Shown>,
    pub start: TimelineToken,
    pub end: TimelineToken,
    /// The room's state at the last of these events.
    pub state: Vec<Arc<RoomEvent>>,
}

impl Reader {
    /// An event, if the viewer may see it.
    pub async fn visible_event(
        &self,
        viewer: &mut Viewer,
        event_id: &EventId,
    ) -> Result<Option<Shown>, StoreError> {
        let Some(sn) = self.event_sn(viewer.room, event_id).await? else { return Ok(None) };
        self.visible(viewer, sn).await
    }

    /// An event by number, if the viewer may see it. What never became part of the room is not shown.
    pub(super) async fn visible(
        &self,
        viewer: &mut Viewer,
        sn: EventSn,
    ) -> Result<Option<Shown>, StoreError> {
        let Some(event) = self.event(viewer.room, sn).await? else { return Ok(None) };
        if matches!(event.status, Status::Rejected | Status::SoftFailed) {
            return Ok(None);
        }
        let order = event.order.unwrap_or(TimelineOrder::live(event.position));
        if order > TimelineOrder::live(self.now()) {
            return Ok(None);
        }
        let seen = self.sees(viewer, &event, order).await?;
        Ok(seen.visible.then_some(Shown { order, event, membership: seen.membership }))
    }

    /// `/context`: an event with up to `limit` others around it. None if the viewer may not see it.
    pub async fn context(
        &self,
        viewer: &mut Viewer,
        event_id: &EventId,
        limit: usize,
        filter: &EventFilter,
    ) -> Result<Option<Context>, StoreError> {
        let Some(event) = self.visible_event(viewer, event_id).await? else { return Ok(None) };
        let (at, now) = (event.order, TimelineOrder::live(self.now()));
        let earlier = Stretch { after: TimelineOrder::START, up_to: TimelineToken::before(at).0 };
        let later = Stretch { after: at, up_to: now };
        let before = self.walk(viewer, earlier, Direction::Backward, limit / 2, filter).await?;
        let after = self.walk(viewer, later, Direction::Forward, limit - limit / 2, filter).await?;
        let start = before.last.map_or(TimelineToken::before(at), TimelineToken::before);
        let end = after.last.map_or(TimelineToken::after(at), TimelineToken::after);
        let (before, after) = (before.events, after.events);
        let state = self.state_around(viewer, &event, &before, &after, filter).await?;
        Ok(Some(Context { event, before, after, start, end, state }))
    }

    /// The state at the last event shown; of the members only those who sent one of them, if that is asked for.
    async fn state_around(
        &self,
        viewer: &Viewer,
        event: &Shown,
        before: &[Shown],
        after: &[Shown],
        filter: &EventFilter,
    ) -> Result<Vec<Arc<RoomEvent>>, StoreError> {
        let last = after.last().unwrap_or(event);
        let Some(snapshot) = last.event.snapshot_before else { return Ok(Vec::new()) };
        let room = viewer.room;
        let mut state: BTreeMap<StateKeySn, EventSn> =
            self.inner.snapshots.rest(room, snapshot).await?.into_iter().collect();
        if filter.lazy_load_members {
            let shown = before.iter().chain(after).chain([event]);
            let senders: BTreeSet<&str> = shown.map(|shown| &*shown.event.client.sender).collect();
            state.extend(self.members_named(room, snapshot, senders).await?);
        } else {
            state.extend(self.inner.snapshots.members(room, snapshot).await?);
        }
        if let Some(key) = last.event.state_key {
            state.insert(key, last.event.sn);
        }
        self.existing(room, state.into_values().collect()).await
    }

    /// `/timestamp_to_event`: the first event at or after a time, or the last one at or before it, that the viewer
    /// may see.
    pub async fn event_at(
        &self,
        viewer: &mut Viewer,
        timestamp_ms: u64,
        direction: Direction,
    ) -> Result<Option<Arc<RoomEvent>>, StoreError> {
        let room = viewer.room;
        let minute = u32::try_from(timestamp_ms / 60_000).unwrap_or(u32::MAX);
        let (range, order) = match direction {
            Direction::Forward => (MINUTES.prefix(&(room,)).from(&(room, minute)), Order::Forward),
            Direction::Backward => (MINUTES.prefix(&(room,)).up_to(&(room, minute)), Order::Backward),
        };
        let runs = self.store().range(&MINUTES, range, order, MAX_RUNS).await?;
        let mut best: Option<(u32, Arc<RoomEvent>)> = None;
        for ((_, run_minute, first), ()) in runs {
            // Runs of one minute may lie apart; all of them are looked at before the best of that minute is known.
            if best.as_ref().is_some_and(|(best_minute, _)| *best_minute != run_minute) {
                break;
            }
            if let Some(event) =
                self.nearest_in_run(viewer, first, run_minute, timestamp_ms, direction).await?
            {
                let key = |event: &RoomEvent| event.client.origin_server_ts.abs_diff(timestamp_ms);
                if best.as_ref().is_none_or(|(_, held)| key(&event) < key(held)) {
                    best = Some((run_minute, event));
                }
            }
        }
        Ok(best.map(|(_, event)| event))
    }

    async fn nearest_in_run(
        &self,
        viewer: &mut Viewer,
        first: EventSn,
        minute: u32,
        timestamp_ms: u64,
        direction: Direction,
    ) -> Result<Option<Arc<RoomEvent>>, StoreError> {
        let mut best: Option<Arc<RoomEvent>> = None;
        let mut next = first.0;
        while next < first.0.saturating_add(MAX_RUN) {
            let batch: Vec<EventSn> = (next..next + BATCH).map(EventSn).collect();
            next += BATCH;
            for event in self.events(viewer.room, &batch).await? {
                let Some(event) = event else { return Ok(best) };
                let time = event.client.origin_server_ts;
                if u32::try_from(time / 60_000).unwrap_or(u32::MAX) != minute {
                    return Ok(best);
                }
                let fits = match direction {
                    Direction::Forward => time >= timestamp_ms,
                    Direction::Backward => time <= timestamp_ms,
                };
                let distance = time.abs_diff(timestamp_ms);
                // Of events of one time the outermost is next to it: looking back, the last one.
                let nearer = best.as_ref().is_none_or(|best| {
                    let held = best.client.origin_server_ts.abs_diff(timestamp_ms);
                    distance < held || (direction == Direction::Backward && distance == held)
                });
                let Some(order) = event.order.filter(|_| fits && nearer) else { continue };
                if event.status == Status::Accepted && self.sees(viewer, &event, order).await?.visible {
                    best = Some(event);
                }
            }
        }
        Ok(best)
    }
}
