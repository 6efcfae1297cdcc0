//! The list of a room's members, read page by page.

use std::ops::ControlFlow;

use hearth_store::{Order, Positioned, StoreError};

use crate::ids::RoomSn;
use crate::rooms::Rooms;
use crate::tables::{MEMBERS, MemberRow};

/// Members read at a time.
const BATCH: usize = 1000;

impl Rooms {
    /// Shows each member of a room, all memberships, in the order of their ids, until `each` breaks off.
    pub(crate) async fn each_member<B>(
        &self,
        room: RoomSn,
        mut each: impl FnMut(String, Positioned<MemberRow>) -> ControlFlow<B>,
    ) -> Result<ControlFlow<B>, StoreError> {
        let mut range = MEMBERS.prefix(&(room,));
        loop {
            let rows = self.store().range(&MEMBERS, range.clone(), Order::Forward, BATCH).await?;
            let is_full = rows.len() == BATCH;
            let last = rows.last().filter(|_| is_full).map(|(key, _)| key.clone());
            for ((_, user), row) in rows {
                if let ControlFlow::Break(found) = each(user, row) {
                    return Ok(ControlFlow::Break(found));
                }
            }
            match last {
                Some(last) => range = range.after(&last),
                None => return Ok(ControlFlow::Continue(())),
            }
        }
    }
}
