//! Receipts that found no place among what waits for a destination, told from the store, which has each user's newest.
//! * Only two positions and a room are held, however many there are: from where on receipts are to be told, up to where, and
//!   how far that has come.
//! * A pass goes through the rooms in the order of their IDs, so that each comes to its turn. What changes meanwhile is told
//!   by the next pass.

use std::sync::Arc;

use hearth_store::{StoreError, StreamPosition};
use ruma::{RoomId, ServerName};

use super::{
    Inner,
    edus::{EduKey, EduValue},
    receipts::ROOMS_MAX,
};

/// Rooms that are looked at for one transaction.
const ROOMS_AT_ONCE: usize = 200;
/// Receipts that are read at a time.
const PAGE: usize = 1_000;

/// How far a destination was told the receipts of some time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pass {
    /// Receipts after this position,
    since: StreamPosition,
    /// up to this one,
    upto: StreamPosition,
    /// of the rooms behind this one,
    after: Option<String>,
    /// and in the first of them only those after this position.
    within: Option<(String, StreamPosition)>,
}

impl Pass {
    pub(super) fn new(since: StreamPosition, upto: StreamPosition) -> Self {
        Self { since, upto, after: None, within: None }
    }

    /// From where on a room is to be told.
    fn from(&self, room: &str) -> StreamPosition {
        match &self.within {
            Some((begun, at)) if begun == room => *at,
            _ => self.since,
        }
    }
}

impl Inner {
    /// The next receipts that a destination was not told, at most `limit`.
    pub(super) async fn receipts_missed_by(
        &self,
        server: &ServerName,
        limit: usize,
    ) -> Result<Vec<(Arc<EduKey>, EduValue)>, StoreError> {
        let pass = match self.state.lock().get(server) {
            Some(destination) if limit > 0 => destination.receipts_to_tell(|| self.store.watermark()),
            _ => None,
        };
        let Some(pass) = pass else { return Ok(Vec::new()) };
        let mut items = Vec::new();
        let rest = self.go_on(server, pass, limit, &mut items).await?;
        if let Some(destination) = self.state.lock().get(server) {
            destination.missed_receipts = rest;
        }
        Ok(items)
    }

    /// What is left of a pass; nothing if it is through.
    async fn go_on(
        &self,
        server: &ServerName,
        mut pass: Pass,
        limit: usize,
        items: &mut Vec<(Arc<EduKey>, EduValue)>,
    ) -> Result<Option<Pass>, StoreError> {
        let rooms = self.next_rooms(&pass).await?;
        let is_last = rooms.len() < ROOMS_AT_ONCE;
        for room in rooms {
            if !self.tell_room(server, &room, &mut pass, limit, items).await? {
                return Ok(Some(pass));
            }
            pass.after = Some(room);
        }
        Ok((!is_last).then_some(pass))
    }

    /// The next rooms of a pass whose receipts may have changed, at most [`ROOMS_AT_ONCE`].
    async fn next_rooms(&self, pass: &Pass) -> Result<Vec<String>, StoreError> {
        let Some(changed) = self.users.rooms_with_receipts_since(pass.since, ROOMS_MAX) else {
            // Too far back to be remembered: whichever has any.
            return self.users.rooms_with_receipts(pass.after.as_deref(), ROOMS_AT_ONCE).await;
        };
        let is_next = |room: &str| pass.after.as_deref().is_none_or(|after| room > after);
        let mut rooms: Vec<String> =
            changed.iter().filter(|room| is_next(room)).map(|room| room.to_string()).collect();
        rooms.sort_unstable();
        rooms.truncate(ROOMS_AT_ONCE);
        Ok(rooms)
    }

    /// Adds a room's receipts; false where there are more than fit.
    async fn tell_room(
        &self,
        server: &ServerName,
        room: &str,
        pass: &mut Pass,
        limit: usize,
        items: &mut Vec<(Arc<EduKey>, EduValue)>,
    ) -> Result<bool, StoreError> {
        let Ok(room_id) = <&RoomId>::try_from(room) else { return Ok(true) };
        let Some(info) = self.rooms.room(room_id).await? else { return Ok(true) };
        if !self.rooms.is_server_in_room(&info, server).await? {
            return Ok(true);
        }
        let mut at = pass.from(room);
        loop {
            let receipts = self.users.public_receipts_since(room_id, at, pass.upto, PAGE).await?;
            let all = receipts.len() < PAGE;
            for receipt in receipts {
                let position = receipt.position;
                if let Some(item) = self.told_as(room_id, receipt) {
                    if items.len() == limit {
                        pass.within = Some((room.to_owned(), at));
                        return Ok(false);
                    }
                    items.push(item);
                }
                at = position;
            }
            if all {
                return Ok(true);
            }
        }
    }
}
