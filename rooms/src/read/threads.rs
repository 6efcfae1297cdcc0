//! The threads of a room, those with the latest replies first.

use std::sync::Arc;

use hearth_store::{Order, StoreError};

use super::{
    events::{Reader, RoomEvent},
    token::TimelineToken,
    viewer::Viewer,
};
use crate::{
    ids::{EventSn, TimelineOrder},
    tables::{THREAD_ORDER, THREADS},
};

/// Rows looked at for one page.
const MAX_LOOKED_AT: usize = 2_000;
/// Rows read at a time.
const BATCH: usize = 50;

/// A page of threads.
#[derive(Debug)]
pub struct Threads {
    /// The roots.
    pub roots: Vec<Arc<RoomEvent>>,
    pub next: Option<TimelineToken>,
}

impl Reader {
    /// `/threads`: a page of the room's threads, of all or only of those in which the viewer took part.
    pub async fn threads(
        &self,
        viewer: &mut Viewer,
        participated: bool,
        from: Option<TimelineToken>,
        limit: usize,
    ) -> Result<Threads, StoreError> {
        let mut page = Threads { roots: Vec::new(), next: None };
        let mut up_to = from.map_or(TimelineOrder::live(self.now()), |from| from.0);
        let mut looked_at = 0;
        loop {
            let rows = self.thread_rows(viewer, up_to).await?;
            let complete = rows.len() < BATCH;
            looked_at += rows.len();
            for (order, root) in rows {
                if page.roots.len() == limit {
                    page.next = Some(TimelineToken(up_to));
                    return Ok(page);
                }
                up_to = TimelineToken::before(order).0;
                if let Some(root) = self.thread_root(viewer, order, root, participated).await? {
                    page.roots.push(root);
                }
            }
            if complete {
                return Ok(page);
            }
            if looked_at >= MAX_LOOKED_AT {
                page.next = Some(TimelineToken(up_to));
                return Ok(page);
            }
        }
    }

    async fn thread_rows(
        &self,
        viewer: &Viewer,
        up_to: TimelineOrder,
    ) -> Result<Vec<(TimelineOrder, EventSn)>, StoreError> {
        let range = THREAD_ORDER.prefix(&(viewer.room,)).up_to(&(viewer.room, up_to));
        let rows = self.store().range(&THREAD_ORDER, range, Order::Backward, BATCH).await?;
        Ok(rows.into_iter().map(|((_, order), root)| (order, root)).collect())
    }

    /// The root of a thread whose last reply stands at `order`.
    async fn thread_root(
        &self,
        viewer: &mut Viewer,
        order: TimelineOrder,
        root: EventSn,
        participated: bool,
    ) -> Result<Option<Arc<RoomEvent>>, StoreError> {
        let Some(thread) = self.store().get(&THREADS, &(viewer.room, root)).await? else { return Ok(None) };
        let latest = self.event(viewer.room, thread.value.latest).await?;
        if latest.and_then(|latest| latest.order) != Some(order) {
            return Ok(None);
        }
        let Some(shown) = self.visible(viewer, root).await? else { return Ok(None) };
        if participated && !self.took_part(viewer, &shown.event).await? {
            return Ok(None);
        }
        Ok(Some(shown.event))
    }
}
