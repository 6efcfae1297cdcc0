//! `/messages`: pages of a room's history, both ways.

use std::{collections::BTreeSet, sync::Arc};

use hearth_store::{StoreError, StreamPosition};

use super::{
    events::{Reader, RoomEvent},
    filter::EventFilter,
    timeline::{Direction, Shown, Stretch, WalkEnd},
    token::TimelineToken,
    viewer::Viewer,
};
use crate::ids::{RoomSn, SnapshotId, TimelineOrder};

/// What page is asked for.
#[derive(Clone, Debug)]
pub struct PageRequest {
    /// Where to begin; the newest or the oldest end of the room if absent, by the direction.
    pub from: Option<TimelineToken>,
    /// Where to stop.
    pub to: Option<TimelineToken>,
    pub direction: Direction,
    pub limit: usize,
}

/// A page of history.
#[derive(Debug)]
pub struct Page {
    pub start: TimelineToken,
    /// Where the next page begins; none when nothing is left.
    pub end: Option<TimelineToken>,
    pub events: Vec<Shown>,
    /// The member events of the senders, when they are loaded lazily.
    pub state: Vec<Arc<RoomEvent>>,
    /// The events that follow are missing here and may be had from other servers.
    pub at_gap: bool,
}

impl Reader {
    /// A page of a room's history as a viewer sees it. The caller has checked that they may see anything.
    pub async fn page(
        &self,
        viewer: &mut Viewer,
        request: &PageRequest,
        filter: &EventFilter,
    ) -> Result<Page, StoreError> {
        let now = self.store().watermark();
        let start = request.from.unwrap_or_else(|| match request.direction {
            Direction::Backward => TimelineToken::at(now),
            Direction::Forward => TimelineToken::start(),
        });
        let to = request.to.map(|token| token.0);
        // Nothing that is not durable leaves, and who left sees nothing of what came later.
        let newest = TimelineOrder::live(now);
        let stretch = match request.direction {
            Direction::Backward => {
                Stretch { after: to.unwrap_or(TimelineOrder::START), up_to: start.0.min(newest) }
            }
            Direction::Forward => Stretch { after: start.0, up_to: to.unwrap_or(newest).min(newest) },
        };
        let walked = self.walk(viewer, stretch, request.direction, request.limit, filter).await?;
        let end =
            walked.last.filter(|_| walked.end != WalkEnd::Exhausted).map(|last| match request.direction {
                Direction::Backward => TimelineToken::before(last),
                Direction::Forward => TimelineToken::after(last),
            });
        let state = match filter.lazy_load_members {
            true => self.lazy_members(viewer.room, &walked.events).await?,
            false => Vec::new(),
        };
        Ok(Page { start, end, events: walked.events, state, at_gap: walked.end == WalkEnd::Gap })
    }

    /// The member events of the senders of some events, as of the newest of these.
    async fn lazy_members(&self, room: RoomSn, events: &[Shown]) -> Result<Vec<Arc<RoomEvent>>, StoreError> {
        let Some(newest) = events.iter().max_by_key(|shown| shown.order) else { return Ok(Vec::new()) };
        let Some(snapshot) = newest.event.snapshot_before else { return Ok(Vec::new()) };
        let senders: BTreeSet<&str> = events.iter().map(|shown| &*shown.event.client.sender).collect();
        self.member_events(room, snapshot, senders).await
    }

    /// The member events of some users in a snapshot.
    pub async fn member_events<'a>(
        &self,
        room: RoomSn,
        snapshot: SnapshotId,
        users: impl IntoIterator<Item = &'a str>,
    ) -> Result<Vec<Arc<RoomEvent>>, StoreError> {
        let mut events = Vec::new();
        for user in users {
            events.extend(self.state_event_sn(room, snapshot, "m.room.member", user).await?);
        }
        self.existing(room, events).await
    }

    /// The token of now: after everything that is durable.
    pub fn now(&self) -> StreamPosition {
        self.store().watermark()
    }
}
