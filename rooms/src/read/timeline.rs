//! Walking a room's timeline, both ways, past what a viewer may not see and a filter does not want.
//! * One range of the timeline and one batch of events at a time; what is looked at for one answer is bounded, and
//!   the answer says where the walk stopped, so that the next one goes on there.
//! * A walk backwards ends at a gap: what lies behind it is not next to what lies before it.

use std::sync::Arc;

use hearth_store::{Order, StoreError, StreamPosition};

use super::{
    events::{Reader, RoomEvent},
    filter::EventFilter,
    token::TimelineToken,
    viewer::Viewer,
};
use crate::{
    ids::{EventSn, RoomSn, TimelineOrder},
    tables::{GAPS, RELATIONS, TIMELINE, TimelineRow},
};

/// Events looked at for one answer.
const MAX_LOOKED_AT: usize = 5_000;
/// Events read at a time, at least.
const MIN_BATCH: usize = 16;
/// Relations looked at for one event.
const MAX_RELATIONS: usize = 500;

/// An event at its place in the timeline.
#[derive(Clone, Debug)]
pub struct Placed {
    pub order: TimelineOrder,
    pub row: TimelineRow,
    pub event: Arc<RoomEvent>,
}

/// An event that a viewer may see.
#[derive(Clone, Debug)]
pub struct Shown {
    pub order: TimelineOrder,
    pub event: Arc<RoomEvent>,
    /// The viewer's membership at the event.
    pub membership: &'static str,
}

/// Which way to walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Forward,
    Backward,
}

/// A stretch of the timeline. Both ends are places between events: after the event of that order.
#[derive(Clone, Copy, Debug)]
pub struct Stretch {
    pub after: TimelineOrder,
    pub up_to: TimelineOrder,
}

/// Where a walk ended, and what it met.
#[derive(Debug)]
pub struct Walked {
    /// In the direction of the walk.
    pub events: Vec<Shown>,
    /// The last event looked at; none if there was none.
    pub last: Option<TimelineOrder>,
    /// After the last of the events there were some that the filter did not want.
    pub unwanted: bool,
    pub end: WalkEnd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkEnd {
    /// There is no event left in the stretch.
    Exhausted,
    /// As many as were wanted were found, or the bound of looking was met.
    More,
    /// Events are missing beyond this point.
    Gap,
}

impl Stretch {
    /// Everything up to a position.
    pub fn up_to(position: StreamPosition) -> Self {
        Self { after: TimelineOrder::START, up_to: TimelineOrder::live(position) }
    }
}

impl Reader {
    /// Up to `limit` rows of the timeline.
    pub async fn timeline_rows(
        &self,
        room: RoomSn,
        stretch: Stretch,
        direction: Direction,
        limit: usize,
    ) -> Result<Vec<(TimelineOrder, TimelineRow)>, StoreError> {
        if stretch.after >= stretch.up_to || limit == 0 {
            return Ok(Vec::new());
        }
        let range = TIMELINE.prefix(&(room,)).after(&(room, stretch.after)).up_to(&(room, stretch.up_to));
        let order = match direction {
            Direction::Forward => Order::Forward,
            Direction::Backward => Order::Backward,
        };
        let rows = self.store().range(&TIMELINE, range, order, limit).await?;
        Ok(rows.into_iter().map(|((_, order), row)| (order, row)).collect())
    }

    /// The last gap in a stretch: events are missing right before the event that stands there.
    pub async fn gap(&self, room: RoomSn, stretch: Stretch) -> Result<Option<TimelineOrder>, StoreError> {
        if stretch.after >= stretch.up_to {
            return Ok(None);
        }
        let range = GAPS.prefix(&(room,)).after(&(room, stretch.after)).up_to(&(room, stretch.up_to));
        let rows = self.store().range(&GAPS, range, Order::Backward, 1).await?;
        Ok(rows.into_iter().next().map(|((_, order), _)| order))
    }

    /// Walks through a stretch until `limit` events were found that the viewer may see and the filter wants.
    pub async fn walk(
        &self,
        viewer: &mut Viewer,
        stretch: Stretch,
        direction: Direction,
        limit: usize,
        filter: &EventFilter,
    ) -> Result<Walked, StoreError> {
        let room = viewer.room;
        let mut walked = Walked { events: Vec::new(), last: None, unwanted: false, end: WalkEnd::Exhausted };
        let gap = match direction {
            Direction::Forward => None,
            Direction::Backward => self.gap(room, stretch).await?,
        };
        let mut rest = stretch;
        if let Some(gap) = gap {
            // The event at the gap still belongs to the walk.
            rest.after = TimelineToken::before(gap).0.max(rest.after);
        }
        let mut looked_at = 0;
        loop {
            let batch = (limit - walked.events.len() + 1).max(MIN_BATCH);
            let rows = self.timeline_rows(room, rest, direction, batch).await?;
            let complete = rows.len() < batch;
            looked_at += rows.len();
            for placed in self.placed(room, rows).await? {
                if walked.events.len() == limit {
                    walked.end = WalkEnd::More;
                    return Ok(walked);
                }
                let order = placed.order;
                if !filter.wants(placed.event.client.facts()) {
                    walked.unwanted = true;
                } else if let Some(shown) = self.show_wanted(viewer, placed, filter).await? {
                    walked.events.push(shown);
                    walked.unwanted = false;
                }
                walked.last = Some(order);
                match direction {
                    Direction::Forward => rest.after = order,
                    Direction::Backward => rest.up_to = TimelineToken::before(order).0,
                }
            }
            if complete {
                walked.end = if gap.is_some() { WalkEnd::Gap } else { WalkEnd::Exhausted };
                return Ok(walked);
            }
            if looked_at >= MAX_LOOKED_AT {
                walked.end = WalkEnd::More;
                return Ok(walked);
            }
        }
    }

    /// The events of timeline rows.
    pub(super) async fn placed(
        &self,
        room: RoomSn,
        rows: Vec<(TimelineOrder, TimelineRow)>,
    ) -> Result<Vec<Placed>, StoreError> {
        let events: Vec<EventSn> = rows.iter().map(|(_, row)| row.event).collect();
        let events = self.events(room, &events).await?;
        Ok(rows
            .into_iter()
            .zip(events)
            .filter_map(|((order, row), event)| Some(Placed { order, row, event: event? }))
            .collect())
    }

    /// An event as the viewer sees it, if they may see it and the filter wants it.
    pub async fn show(
        &self,
        viewer: &mut Viewer,
        placed: Placed,
        filter: &EventFilter,
    ) -> Result<Option<Shown>, StoreError> {
        match filter.wants(placed.event.client.facts()) {
            true => self.show_wanted(viewer, placed, filter).await,
            false => Ok(None),
        }
    }

    async fn show_wanted(
        &self,
        viewer: &mut Viewer,
        Placed { order, event, .. }: Placed,
        filter: &EventFilter,
    ) -> Result<Option<Shown>, StoreError> {
        let seen = self.sees(viewer, &event, order).await?;
        if !seen.visible || !self.is_related_by(viewer.room, event.sn, filter).await? {
            return Ok(None);
        }
        Ok(Some(Shown { order, event, membership: seen.membership }))
    }

    /// Whether others relate to an event as the filter asks.
    async fn is_related_by(
        &self,
        room: RoomSn,
        event: EventSn,
        filter: &EventFilter,
    ) -> Result<bool, StoreError> {
        let Some(wanted) = filter.related_by() else { return Ok(true) };
        let range = RELATIONS.prefix(&(room, event));
        let rows = self.store().range(&RELATIONS, range, Order::Forward, MAX_RELATIONS).await?;
        Ok(rows.iter().any(|(_, row)| wanted.wants(row.sender.as_str(), row.rel_type.as_str())))
    }
}
