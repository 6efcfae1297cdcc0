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
use crate::{
    ids::{RoomSn, SnapshotId, TimelineOrder},
    missing::Gap,
    tables::GAPS,
};

/// What page is asked for.
#[derive(Clone, Debug)]
pub struct PageRequest {
    /// Where to begin; the newest or the oldest end of the room if absent, by the direction.
    pub from: Option<TimelineToken>,
    /// Where to stop.
    pub to: Option<TimelineToken>,
    pub direction: Direction,
    pub limit: usize,
    /// Goes on behind a gap right at its beginning, because what is missing there cannot be had.
    pub past_gap: bool,
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
    /// What would follow is missing here: other servers may have it. `end` is the place of the gap.
    pub gap: Option<Gap>,
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
        if request.direction == Direction::Backward
            && !request.past_gap
            && let Some(gap) = self.gap_at(viewer.room, stretch.up_to).await?
        {
            return Ok(Page {
                start,
                end: Some(start),
                events: Vec::new(),
                state: Vec::new(),
                gap: Some(gap),
            });
        }
        let walked = self.walk(viewer, stretch, request.direction, request.limit, filter).await?;
        let gap = match walked.end {
            WalkEnd::Gap => self.gap_row(viewer.room, stretch).await?,
            WalkEnd::Exhausted | WalkEnd::More => None,
        };
        // The event behind a gap may be one that is not shown.
        let last = walked.last.or(gap.as_ref().map(|gap| gap.at));
        // Behind what the filter hid there is history that the client may have without it.
        let is_last = walked.end == WalkEnd::Exhausted && !walked.unwanted;
        let end = last.filter(|_| !is_last).map(|last| match request.direction {
            Direction::Backward => TimelineToken::before(last),
            Direction::Forward => TimelineToken::after(last),
        });
        let state = match filter.lazy_load_members {
            true => self.lazy_members(viewer.room, &walked.events).await?,
            false => Vec::new(),
        };
        Ok(Page { start, end, events: walked.events, state, gap })
    }

    /// The gap that lies right behind a place: no event stands between them.
    async fn gap_at(&self, room: RoomSn, place: TimelineOrder) -> Result<Option<Gap>, StoreError> {
        let range = GAPS.prefix(&(room,)).after(&(room, place));
        let Some(((_, at), row)) = self.store().first(&GAPS, range).await? else { return Ok(None) };
        let between = Stretch { after: place, up_to: TimelineToken::before(at).0 };
        let rows = self.timeline_rows(room, between, Direction::Forward, 1).await?;
        Ok(rows.is_empty().then_some(Gap { at, missing: row.missing }))
    }

    /// The last gap of a stretch, with what is missing there.
    async fn gap_row(&self, room: RoomSn, stretch: Stretch) -> Result<Option<Gap>, StoreError> {
        let Some(at) = self.gap(room, stretch).await? else { return Ok(None) };
        let row = self.store().get(&GAPS, &(room, at)).await?;
        Ok(row.map(|row| Gap { at, missing: row.missing }))
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
