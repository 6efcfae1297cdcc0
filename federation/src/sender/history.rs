//! What a server that is behind is sent: read from the store, a room after the other, oldest first.
//! * A server that is only slow is sent everything. One that was down is sent, of a room in which more happened than it
//!   could want to know, the latest events only: it asks for others itself where it needs them.

use std::sync::Arc;

use hearth_rooms::serve::Outgoing;
use hearth_store::{Order, StoreError, StreamPosition};
use ruma::ServerName;

use super::{Inner, TRANSACTION_BYTES, behind::Progress, state::Catching};
use crate::tables::{BEHIND, BehindRow};

/// Rooms that are looked at for one transaction.
const ROOMS_AT_ONCE: usize = 50;
/// Changes of rooms that are looked at for one transaction.
const ROWS_AT_ONCE: usize = 1_000;
/// Changes of a room's timeline that a server which was down is sent all of.
pub(super) const SENT_WHOLE: usize = 1_000;
/// How many of the latest it is sent where there are more.
pub(super) const SENT_OF_MANY: usize = 50;

/// What is to be sent next, and what will be settled by it.
#[derive(Default)]
pub(super) struct Missed {
    pub(super) events: Vec<Outgoing>,
    pub(super) progress: Vec<Progress>,
    /// There was no row at all.
    pub(super) is_empty: bool,
}

impl Inner {
    /// The next events that a server was not sent.
    pub(super) async fn missed(
        self: &Arc<Self>,
        server: &ServerName,
        limit: usize,
        was_down: bool,
    ) -> Result<Missed, StoreError> {
        let range = BEHIND.prefix(&server.to_string());
        let rows = self.store.range(&BEHIND, range, Order::Forward, ROOMS_AT_ONCE).await?;
        let mut missed = Missed { is_empty: rows.is_empty(), ..Missed::default() };
        let (mut looked_at, mut bytes) = (0, 0);
        for ((_, room), row) in rows {
            if missed.events.len() >= limit || looked_at >= ROWS_AT_ONCE || bytes >= TRANSACTION_BYTES {
                break;
            }
            // From now on the fan-out says what comes for this room.
            if let Some(destination) = self.state.lock().get(server) {
                destination.catching.insert(room, Catching::from(row.oldest));
            }
            let mut from = row.oldest;
            if was_down {
                from = self.skipped_to(server, room, row).await?;
            }
            let mut progress = Progress { room, oldest: row.oldest, upto: from, complete: false };
            while missed.events.len() < limit && looked_at < ROWS_AT_ONCE && bytes < TRANSACTION_BYTES {
                let wanted = limit - missed.events.len();
                let page = self.rooms.room_stream_from(room, from, wanted).await?;
                looked_at += wanted;
                progress.upto = page.upto;
                from = page.upto.next();
                for event in page.events {
                    let local = self.federation.local_servers();
                    if event.destinations(local).any(|destination| destination == server) {
                        bytes += event.event.pdu.json().len();
                        missed.events.push(event);
                    }
                }
                if !page.more {
                    progress.complete = true;
                    break;
                }
            }
            missed.progress.push(progress);
        }
        Ok(missed)
    }

    /// Where a server that was down is told of a room from.
    async fn skipped_to(
        &self,
        server: &ServerName,
        room: hearth_rooms::RoomSn,
        row: BehindRow,
    ) -> Result<StreamPosition, StoreError> {
        let Some(info) = self.rooms.room_of(room).await? else { return Ok(row.oldest) };
        let is_there = self.rooms.is_server_in_room(&info, server).await?;
        let end = row.removed_at.filter(|_| !is_there).unwrap_or(StreamPosition::MAX);
        let last = self.rooms.last_of_room(room, (row.oldest, end), SENT_WHOLE, SENT_OF_MANY).await?;
        Ok(last.unwrap_or(row.oldest))
    }
}
