//! Events of rooms that a user of ours is joining at the moment: whoever let us in may be faster with what comes next
//! than with the answer to the join.
//! * They wait in memory until the join has ended, and are then taken in like others. If the server stops before that,
//!   the join is lost too, and what follows names them.
//! * So many wait for one room, some of each server, and so many bytes in all, of which each server has a share. What is beyond that is passed
//!   over, like events of rooms that are not known here.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use hearth_rooms::{RoomInfo, tables::Residency};
use hearth_store::StoreError;
use parking_lot::Mutex;
use ruma::{OwnedRoomId, OwnedServerName, RoomId, ServerName};
use tokio::sync::watch;

use super::{Inbound, transactions::PDUS_MAX};
use crate::{
    client::Json,
    shares::{Share, Shares},
};

/// Events that wait for the join of one room.
pub const EARLY_OF_A_ROOM: usize = 200;
/// Of these, from one server.
pub const EARLY_OF_A_SERVER: usize = 50;
/// Bytes of all events that wait for joins.
pub const EARLY_BYTES: usize = 16 * 1024 * 1024;
/// How long until it is tried again to take them in, and after which pause no more.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(32);

/// Events that wait for joins.
pub(super) struct Early {
    rooms: Mutex<HashMap<OwnedRoomId, Vec<Waiting>>>,
    bytes: Shares<OwnedServerName>,
}

struct Waiting {
    origin: OwnedServerName,
    pdu: Json,
    _bytes: Share<OwnedServerName>,
}

impl Default for Early {
    fn default() -> Self {
        Self { rooms: Mutex::default(), bytes: Shares::new(EARLY_BYTES) }
    }
}

impl Inbound {
    /// Keeps an event whose room is being joined, if it is. Says whether it was kept.
    pub(super) async fn keep_early(
        &self,
        origin: &ServerName,
        room: &RoomId,
        known: Option<&RoomInfo>,
        pdu: &Json,
    ) -> Result<bool, StoreError> {
        let Some(under_way) = self.0.federation.joining().under_way(room) else { return Ok(false) };
        if let Some(known) = known {
            let head = self.0.rooms.head(known.sn).await?;
            let residency = head.map(|head| head.value.residency);
            if matches!(residency, Some(Residency::Resident | Residency::Partial)) {
                return Ok(false);
            }
        }
        let early = &self.0.early;
        let Some(share) = early.bytes.take(origin.to_owned(), pdu.bytes().len()) else { return Ok(false) };
        // Not a part of the transaction, which would be kept whole.
        let Ok(pdu) = Json::read(Bytes::copy_from_slice(pdu.bytes())) else { return Ok(false) };
        let mut rooms = early.rooms.lock();
        let waiting = rooms.entry(room.to_owned()).or_default();
        let of_server = waiting.iter().filter(|waiting| waiting.origin == origin).count();
        if waiting.len() >= EARLY_OF_A_ROOM || of_server >= EARLY_OF_A_SERVER {
            return Ok(false);
        }
        let is_first = waiting.is_empty();
        waiting.push(Waiting { origin: origin.to_owned(), pdu, _bytes: share });
        drop(rooms);
        tracing::debug!(%origin, room_id = %room, "an event waits for its room to be joined");
        if is_first {
            self.take_after(room.to_owned(), under_way);
        }
        Ok(true)
    }

    /// Takes in what waits for a join when that has ended.
    fn take_after(&self, room: OwnedRoomId, mut under_way: watch::Receiver<()>) {
        let inner = std::sync::Arc::downgrade(&self.0);
        tokio::spawn(async move {
            // It ends when its sender is dropped.
            let _ = under_way.changed().await;
            let Some(inner) = inner.upgrade() else { return };
            let inbound = Self(inner);
            let waiting = inbound.0.early.rooms.lock().remove(&room).unwrap_or_default();
            for some in waiting.chunk_by(|one, next| one.origin == next.origin) {
                let Some(Waiting { origin, .. }) = some.first() else { continue };
                for some in some.chunks(PDUS_MAX) {
                    let pdus: Vec<_> = some.iter().map(|waiting| waiting.pdu.clone()).collect();
                    let mut pause = FIRST_PAUSE;
                    // Their servers were told that they arrived. Right after a join a room has much to do.
                    while let Err(error) = inbound.take_events(origin, pdus.clone()).await {
                        if pause > LONGEST_PAUSE {
                            tracing::warn!(%origin, room_id = %room, %error, "events that waited for a join are lost");
                            break;
                        }
                        tokio::time::sleep(pause).await;
                        pause *= 2;
                    }
                }
            }
        });
    }
}
