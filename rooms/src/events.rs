//! Stored events, read through a cache that counts bytes.

use std::sync::Arc;

use bytes::Bytes;
use hearth_dag::{Pdu, RoomRules, redact};
use hearth_store::{Blob, Store, StoreError, StreamPosition};
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use ruma::{EventId, OwnedRoomId, RoomVersionId};

use crate::event_row::{EventHeader, EventRow};
use crate::ids::{EventKey, EventSn, RoomSn, SnapshotId, TimelineOrder};
use crate::tables::{EVENT_NUMBERS, EVENT_STATUS, EVENTS, EventStatusRow, LARGE_BODIES, Status};
use crate::view::Overlay;

/// What never changes of a room.
#[derive(Debug)]
pub struct RoomInfo {
    pub sn: RoomSn,
    pub room_id: OwnedRoomId,
    pub version: RoomVersionId,
    pub rules: &'static RoomRules,
}

/// An event of the store in the form that is in force: redacted, if a redaction is.
#[derive(Clone, Debug)]
pub struct StoredEvent {
    pub sn: EventSn,
    pub position: StreamPosition,
    pub header: EventHeader,
    pub changes: EventStatusRow,
    pub pdu: Pdu,
}

impl StoredEvent {
    pub fn status(&self) -> Status {
        self.changes.status.unwrap_or(self.header.status)
    }

    pub fn is_redacted(&self) -> bool {
        self.changes.redacted_by.is_some()
    }

    /// Its place in the timeline, if it is there.
    pub fn order(&self) -> Option<TimelineOrder> {
        self.changes.order.or_else(|| self.header.live.then(|| TimelineOrder::live(self.position)))
    }

    /// The room's state before it, if that is known.
    pub fn snapshot_before(&self) -> Option<SnapshotId> {
        self.changes.snapshot_before.or(self.header.snapshot_before)
    }
}

/// Reads events. Cheap to clone.
#[derive(Clone)]
pub struct Events {
    store: Store,
    cache: Arc<Cache<(RoomSn, EventSn), Arc<StoredEvent>, ByBytes>>,
    overlay: Overlay,
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<(RoomSn, EventSn), Arc<StoredEvent>> for ByBytes {
    fn weight(&self, _: &(RoomSn, EventSn), event: &Arc<StoredEvent>) -> u64 {
        (EVENT_OVERHEAD + event.pdu.bytes().len()) as u64
    }
}

/// What an event takes beside its body, about.
const EVENT_OVERHEAD: usize = 700;

impl Events {
    pub(crate) fn new(store: Store, overlay: Overlay, cache_bytes: u64) -> Self {
        let entries = cache_bytes as usize / (2 * EVENT_OVERHEAD);
        Events { store, cache: Arc::new(Cache::with_weighter(entries, cache_bytes, ByBytes)), overlay }
    }

    /// The number of an event in a room, if it is held.
    pub async fn number(&self, room: RoomSn, event: &EventId) -> Result<Option<EventSn>, StoreError> {
        self.overlay.get(&self.store, &EVENT_NUMBERS, &(EventKey::new(event), room)).await
    }

    /// An event by its number. One that is missing is damage: numbers are only given to stored events.
    pub async fn load(&self, room: &RoomInfo, event: EventSn) -> Result<Arc<StoredEvent>, StoreError> {
        if let Some(held) = self.cache.get(&(room.sn, event)) {
            return Ok(held);
        }
        let key = (room.sn, event);
        let row = self.overlay.get(&self.store, &EVENTS, &key).await?;
        let status = self.overlay.get(&self.store, &EVENT_STATUS, &key).await?;
        self.assemble(room, event, row, status).await
    }

    /// Many events by their numbers, in that order.
    pub async fn load_many(
        &self,
        room: &RoomInfo,
        events: &[EventSn],
    ) -> Result<Vec<Arc<StoredEvent>>, StoreError> {
        let held: Vec<Option<Arc<StoredEvent>>> =
            events.iter().map(|event| self.cache.get(&(room.sn, *event))).collect();
        let missing: Vec<(RoomSn, EventSn)> = events
            .iter()
            .zip(&held)
            .filter(|(_, held)| held.is_none())
            .map(|(event, _)| (room.sn, *event))
            .collect();
        if missing.is_empty() {
            return Ok(held.into_iter().flatten().collect());
        }
        let rows = self.overlay.multi_get(&self.store, &EVENTS, &missing).await?;
        let statuses = self.overlay.multi_get(&self.store, &EVENT_STATUS, &missing).await?;
        let mut read = rows.into_iter().zip(statuses);
        let mut loaded = Vec::with_capacity(events.len());
        for (event, held) in events.iter().zip(held) {
            loaded.push(match held {
                Some(held) => held,
                None => {
                    let (row, status) = read.next().unwrap_or_default();
                    self.assemble(room, *event, row, status).await?
                }
            });
        }
        Ok(loaded)
    }

    /// An event by its id, if it is held in this room.
    pub async fn by_id(
        &self,
        room: &RoomInfo,
        event: &EventId,
    ) -> Result<Option<Arc<StoredEvent>>, StoreError> {
        match self.number(room.sn, event).await? {
            Some(number) => self.load(room, number).await.map(Some),
            None => Ok(None),
        }
    }

    /// The event of a row that was read, as it is in a scan of [`EVENTS`] with its row of [`EVENT_STATUS`].
    pub async fn assemble(
        &self,
        room: &RoomInfo,
        event: EventSn,
        row: Option<EventRow>,
        status: Option<EventStatusRow>,
    ) -> Result<Arc<StoredEvent>, StoreError> {
        let damaged = |reason: String| StoreError::Corrupt {
            table: EVENTS.name(),
            key: format!("{} {}", room.room_id, event),
            reason,
        };
        let row = row.ok_or_else(|| damaged("the event is missing".to_owned()))?;
        let body = if row.header.large { self.large_body(room.sn, event).await? } else { row.body };
        let changes = status.unwrap_or_default();
        let pdu = Pdu::from_stored(room.rules, row.header.event_id.clone(), body)
            .map_err(|malformed| damaged(malformed.to_string()))?;
        let pdu = if changes.redacted_by.is_some() && !changes.body_redacted {
            redact(room.rules, &pdu)
        } else {
            pdu
        };
        let stored =
            Arc::new(StoredEvent { sn: event, position: row.position, header: row.header, changes, pdu });
        // A slot means that the commit is on its way: only later is it known where it stands.
        if !stored.position.is_slot() {
            self.cache.insert((room.sn, event), stored.clone());
        }
        Ok(stored)
    }

    /// Its status or body changed.
    pub(crate) fn forget(&self, room: RoomSn, event: EventSn) {
        self.cache.remove(&(room, event));
    }

    async fn large_body(&self, room: RoomSn, event: EventSn) -> Result<Bytes, StoreError> {
        let body = self.overlay.get(&self.store, &LARGE_BODIES, &(room, event)).await?;
        Ok(body.map(|Blob(body)| body).unwrap_or_default())
    }
}
