//! The rooms of a user, and what changed of them.

use std::sync::Arc;

use hearth_store::{Order, Positioned, StoreError, StreamPosition};
use ruma::UserId;

use super::{
    client_event::{ClientEvent, MalformedEvent, Source},
    events::Reader,
};
use crate::{
    ids::RoomSn,
    tables::{
        HEADS, MEMBERSHIP_CHANGES, MEMBERSHIPS, MembershipChange, MembershipRow, OUT_OF_BAND, OutOfBandRow,
    },
};

/// Rooms read at a time.
const BATCH: usize = 1_000;

impl Reader {
    /// All rooms with which a user has or had to do, in the order of their numbers.
    pub async fn memberships_of(
        &self,
        user: &UserId,
    ) -> Result<Vec<(RoomSn, Positioned<MembershipRow>)>, StoreError> {
        let user = user.to_string();
        let mut range = MEMBERSHIPS.prefix(&(user.clone(),));
        let mut all = Vec::new();
        loop {
            let rows = self.store().range(&MEMBERSHIPS, range.clone(), Order::Forward, BATCH).await?;
            let complete = rows.len() < BATCH;
            all.extend(rows.into_iter().map(|((_, room), row)| (room, row)));
            match all.last() {
                Some((room, _)) if !complete => range = range.after(&(user.clone(), *room)),
                _ => return Ok(all),
            }
        }
    }

    /// A user's membership in a room.
    pub async fn membership_of(
        &self,
        user: &UserId,
        room: RoomSn,
    ) -> Result<Option<Positioned<MembershipRow>>, StoreError> {
        self.store().get(&MEMBERSHIPS, &(user.to_string(), room)).await
    }

    /// What changed of a user's memberships after a position, up to another, in order.
    pub async fn membership_changes(
        &self,
        user: &UserId,
        after: StreamPosition,
        upto: StreamPosition,
    ) -> Result<Vec<(StreamPosition, MembershipChange)>, StoreError> {
        let user = user.to_string();
        let mut after = after;
        let mut all = Vec::new();
        while after < upto {
            let range = MEMBERSHIP_CHANGES
                .prefix(&(user.clone(),))
                .after(&(user.clone(), after))
                .up_to(&(user.clone(), upto));
            let rows = self.store().range(&MEMBERSHIP_CHANGES, range, Order::Forward, BATCH).await?;
            let complete = rows.len() < BATCH;
            all.extend(rows.into_iter().map(|((_, position), change)| (position, change)));
            match all.last() {
                Some((position, _)) if !complete => after = *position,
                _ => break,
            }
        }
        Ok(all)
    }

    /// When each room last changed; the beginning of time for one that we do not hold.
    pub async fn last_changes(&self, rooms: &[RoomSn]) -> Result<Vec<StreamPosition>, StoreError> {
        let mut changes = Vec::with_capacity(rooms.len());
        for rooms in rooms.chunks(BATCH) {
            let heads = self.store().multi_get(&HEADS, rooms).await?;
            changes.extend(
                heads.into_iter().map(|head| head.map_or(StreamPosition::ZERO, |head| head.position)),
            );
        }
        Ok(changes)
    }

    /// What came with an invite or a knock from outside.
    pub async fn out_of_band(
        &self,
        user: &UserId,
        room: RoomSn,
    ) -> Result<Option<Arc<OutOfBandRow>>, StoreError> {
        Ok(self.store().get(&OUT_OF_BAND, &(user.to_string(), room)).await?.map(Arc::new))
    }

    /// The member event that came from outside, as clients see it.
    pub fn event_out_of_band(&self, row: &OutOfBandRow) -> Result<ClientEvent, MalformedEvent> {
        ClientEvent::new(Source {
            event_id: row.event_id.as_str(),
            pdu: row.pdu.as_bytes(),
            replaced: None,
            redacted: false,
            redacted_because: None,
            transaction: None,
        })
    }
}
