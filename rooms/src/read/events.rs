//! Loading events in the form that is in force, and the caches behind it.
//! * The status rows decide which form an event has, and are read each time (one short range); the caches hold forms,
//!   which never change.
//! * `prev_content` of a state event is part of its form only as long as the replaced event keeps its own: caches key
//!   on that too, so that a redacted name does not live on in the event that replaced it.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use bytes::Bytes;
use hearth_dag::{Pdu, RoomRules};
use hearth_store::{Order, Store, StoreError, StreamPosition};
use quick_cache::{Weighter, sync::Cache};
use ruma::{EventId, OwnedRoomId, RoomId};

use super::{
    client_event::{ClientEvent, Source},
    visibility::AtEvent,
};
use crate::{
    event_row::EventRow,
    ids::{EventKey, EventSn, RoomSn, SnapshotId, StateKeySn, TimelineOrder},
    kind::Kind,
    snapshot::Snapshots,
    tables::{
        EVENT_NUMBERS, EVENT_STATUS, EVENTS, EventStatusRow, LARGE_BODIES, Membership, ROOM_NUMBERS, ROOMS,
        RelType, RoomRow, STATE_KEYS, Status,
    },
};

/// Bytes of serialised events that are kept.
const EVENT_CACHE_BYTES: u64 = 16 * 1024 * 1024;
/// Rooms and state keys whose numbers are kept.
const NAME_CACHE_ENTRIES: usize = 20_000;
/// A status range may be this many times as long as the list of events it is read for.
const SPARSE: u32 = 8;
/// From so many events on a range is read where they lie side by side.
const DENSE_MIN: usize = 4;

/// Reads rooms. Cheap to clone; all clones share their caches.
#[derive(Clone)]
pub struct Reader {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) store: Store,
    pub(super) snapshots: Snapshots,
    events: Cache<Form, Arc<RoomEvent>, Weight>,
    rooms: Cache<RoomSn, Arc<RoomRow>>,
    numbers: Cache<OwnedRoomId, RoomSn>,
    state_keys: Cache<(RoomSn, Kind, String), StateKeySn>,
    /// What member and visibility events decide.
    pub(super) deciding: Cache<(RoomSn, EventSn), AtEvent>,
    /// What a state says to the user of a member key.
    pub(super) sights: Cache<(RoomSn, SnapshotId, Option<StateKeySn>), AtEvent>,
    pub(super) live: super::live::LiveRooms,
}

/// One form of an event: the redactions of itself and of the event it replaced.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Form {
    room: RoomSn,
    event: EventSn,
    redacted_by: Option<EventSn>,
    replaced_redacted_by: Option<EventSn>,
}

#[derive(Clone)]
struct Weight;

impl Weighter<Form, Arc<RoomEvent>> for Weight {
    fn weight(&self, _: &Form, event: &Arc<RoomEvent>) -> u64 {
        event.client.weight() as u64
    }
}

/// An event of a room in one form.
#[derive(Debug)]
pub struct RoomEvent {
    pub sn: EventSn,
    /// When it was stored.
    pub position: StreamPosition,
    /// Its place in the timeline, if it has one.
    pub order: Option<TimelineOrder>,
    pub status: Status,
    pub depth: u64,
    pub state_key: Option<StateKeySn>,
    pub snapshot_before: Option<SnapshotId>,
    pub replaces: Option<EventSn>,
    /// The related event, if we hold it.
    pub relates_to: Option<(RelType, EventSn)>,
    /// Of a member event.
    pub membership: Option<Membership>,
    pub client: ClientEvent,
}

impl Reader {
    /// A reader of this store.
    pub fn new(store: Store, snapshots: Snapshots) -> Self {
        let inner = Inner {
            store,
            snapshots,
            events: Cache::with_weighter(EVENT_CACHE_BYTES as usize / 1024, EVENT_CACHE_BYTES, Weight),
            rooms: Cache::new(NAME_CACHE_ENTRIES),
            numbers: Cache::new(NAME_CACHE_ENTRIES),
            state_keys: Cache::new(NAME_CACHE_ENTRIES),
            deciding: Cache::new(NAME_CACHE_ENTRIES),
            sights: Cache::new(NAME_CACHE_ENTRIES),
            live: super::live::LiveRooms::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    pub(super) fn store(&self) -> &Store {
        &self.inner.store
    }

    /// The number of a room that is known here.
    pub async fn room_sn(&self, room_id: &RoomId) -> Result<Option<RoomSn>, StoreError> {
        if let Some(room) = self.inner.numbers.get(room_id) {
            return Ok(Some(room));
        }
        let room = self.store().get(&ROOM_NUMBERS, &room_id.to_string()).await?;
        if let Some(room) = room {
            self.inner.numbers.insert(room_id.to_owned(), room);
        }
        Ok(room)
    }

    /// What never changes of a room.
    pub async fn room(&self, room: RoomSn) -> Result<Option<Arc<RoomRow>>, StoreError> {
        if let Some(row) = self.inner.rooms.get(&room) {
            return Ok(Some(row));
        }
        let Some(row) = self.store().get(&ROOMS, &room).await? else { return Ok(None) };
        let row = Arc::new(row);
        self.inner.rooms.insert(room, row.clone());
        Ok(Some(row))
    }

    /// The number of an event in a room.
    pub async fn event_sn(&self, room: RoomSn, event_id: &EventId) -> Result<Option<EventSn>, StoreError> {
        self.store().get(&EVENT_NUMBERS, &(EventKey::new(event_id), room)).await
    }

    /// The number of a state key in a room; none if the room never had it.
    pub async fn state_key(
        &self,
        room: RoomSn,
        kind: &str,
        key: &str,
    ) -> Result<Option<StateKeySn>, StoreError> {
        let name = (room, Kind::from(kind), key.to_owned());
        if let Some(number) = self.inner.state_keys.get(&name) {
            return Ok(Some(number));
        }
        let number = self.store().get(&STATE_KEYS, &name).await?;
        if let Some(number) = number {
            self.inner.state_keys.insert(name, number);
        }
        Ok(number)
    }

    /// One event in the form that is in force.
    pub async fn event(&self, room: RoomSn, event: EventSn) -> Result<Option<Arc<RoomEvent>>, StoreError> {
        Ok(self.events(room, &[event]).await?.pop().flatten())
    }

    /// Events in the forms that are in force, in the order asked for.
    pub async fn events(
        &self,
        room: RoomSn,
        events: &[EventSn],
    ) -> Result<Vec<Option<Arc<RoomEvent>>>, StoreError> {
        let statuses = self.statuses(room, events).await?;
        let form = |event: EventSn| statuses.get(&event).and_then(|status| status.redacted_by);
        let mut found: Vec<Option<Arc<RoomEvent>>> = Vec::with_capacity(events.len());
        let mut missing = Vec::new();
        let mut replaced = Vec::new();
        for event in events {
            let cached = self.cached(room, *event, form(*event), None);
            let is_as = |cached: &Arc<RoomEvent>| statuses.get(event).is_none_or(|row| cached.is_as(row));
            let cached = cached.filter(is_as);
            match &cached {
                // Held under the plain key whatever was replaced; the form of that is looked at below.
                Some(cached) => replaced.extend(cached.replaces),
                None => missing.push(*event),
            }
            found.push(cached);
        }
        if missing.is_empty() && replaced.is_empty() {
            return Ok(found);
        }
        self.fill(room, events, &statuses, missing, replaced, &mut found).await?;
        Ok(found)
    }

    /// The slower half of [`events`](Self::events): what is not cached, and what depends on other events.
    async fn fill(
        &self,
        room: RoomSn,
        events: &[EventSn],
        statuses: &HashMap<EventSn, EventStatusRow>,
        missing: Vec<EventSn>,
        mut replaced: Vec<EventSn>,
        found: &mut [Option<Arc<RoomEvent>>],
    ) -> Result<(), StoreError> {
        let redacted_by = |event: EventSn| statuses.get(&event).and_then(|status| status.redacted_by);
        let rows = self.rows(room, &missing).await?;
        replaced.extend(rows.values().filter_map(|row| row.header.replaces));
        replaced.sort_unstable();
        replaced.dedup();
        let replaced_statuses = self.statuses(room, &replaced).await?;
        let replaced_form =
            |event: Option<EventSn>| replaced_statuses.get(&event?).and_then(|status| status.redacted_by);

        // What redactions and replaced events say is part of the events that are to be built.
        let mut needed = Vec::new();
        let mut build = Vec::new();
        for (place, event) in events.iter().enumerate() {
            let (replaces, known) = match &found[place] {
                Some(cached) => (cached.replaces, true),
                None => (rows.get(event).and_then(|row| row.header.replaces), false),
            };
            let replaced_by = replaced_form(replaces);
            if known && replaced_by.is_none() {
                continue;
            }
            let is_as = |cached: &Arc<RoomEvent>| statuses.get(event).is_none_or(|row| cached.is_as(row));
            if let Some(cached) = replaced_by
                .and_then(|_| self.cached(room, *event, redacted_by(*event), replaced_by))
                .filter(is_as)
            {
                found[place] = Some(cached);
                continue;
            }
            needed.extend([replaces, redacted_by(*event)].into_iter().flatten());
            build.push((place, *event, replaced_by));
        }
        needed.sort_unstable();
        needed.dedup();
        let needed = self.plain(room, &needed, &replaced_statuses).await?;
        let unread: Vec<EventSn> =
            build.iter().map(|(_, event, _)| *event).filter(|event| !rows.contains_key(event)).collect();
        let mut rows = rows;
        rows.extend(self.rows(room, &unread).await?);
        let rules = self.rules(room).await?;
        for (place, event, replaced_redacted_by) in build {
            let Some(row) = rows.get(&event) else { continue };
            let redacted = redacted_by(event);
            let built = build_event(
                rules,
                event,
                row,
                statuses.get(&event),
                row.header.replaces.and_then(|replaces| needed.get(&replaces)),
                redacted.and_then(|redaction| needed.get(&redaction)),
            )?;
            let built = Arc::new(built);
            let form = Form { room, event, redacted_by: redacted, replaced_redacted_by };
            self.inner.events.insert(form, built.clone());
            found[place] = Some(built);
        }
        Ok(())
    }

    /// Events without what they replaced, for being part of others.
    async fn plain(
        &self,
        room: RoomSn,
        events: &[EventSn],
        known: &HashMap<EventSn, EventStatusRow>,
    ) -> Result<HashMap<EventSn, Arc<RoomEvent>>, StoreError> {
        if events.is_empty() {
            return Ok(HashMap::new());
        }
        let mut statuses = self.statuses(room, events).await?;
        statuses.extend(known.iter().map(|(event, status)| (*event, status.clone())));
        let mut plain = HashMap::new();
        let mut unread = Vec::new();
        for event in events {
            let redacted_by = statuses.get(event).and_then(|status| status.redacted_by);
            match self.cached(room, *event, redacted_by, None) {
                Some(cached) => drop(plain.insert(*event, cached)),
                None => unread.push(*event),
            }
        }
        if unread.is_empty() {
            return Ok(plain);
        }
        let rules = self.rules(room).await?;
        for (event, row) in self.rows(room, &unread).await? {
            let built = build_event(rules, event, &row, statuses.get(&event), None, None)?;
            plain.insert(event, Arc::new(built));
        }
        Ok(plain)
    }

    fn cached(
        &self,
        room: RoomSn,
        event: EventSn,
        redacted_by: Option<EventSn>,
        replaced_redacted_by: Option<EventSn>,
    ) -> Option<Arc<RoomEvent>> {
        self.inner.events.get(&Form { room, event, redacted_by, replaced_redacted_by })
    }

    /// Those of some events that are redacted.
    pub async fn redacted(&self, room: RoomSn, events: &[EventSn]) -> Result<HashSet<EventSn>, StoreError> {
        let statuses = self.statuses(room, events).await?;
        Ok(statuses
            .into_iter()
            .filter(|(_, status)| status.redacted_by.is_some())
            .map(|(event, _)| event)
            .collect())
    }

    /// The bodies of events as servers exchange them, for who asked for that format. Redacted ones are left out.
    pub async fn pdus(
        &self,
        room: RoomSn,
        events: &[EventSn],
    ) -> Result<HashMap<EventSn, Bytes>, StoreError> {
        let statuses = self.statuses(room, events).await?;
        let redacted = |event: &EventSn| {
            statuses.get(event).is_some_and(|status| status.redacted_by.is_some() && !status.body_redacted)
        };
        let rows = self.rows(room, events).await?;
        Ok(rows
            .into_iter()
            .filter(|(event, _)| !redacted(event))
            .map(|(event, row)| (event, row.body))
            .collect())
    }

    /// The rows of events, with their bodies.
    pub(super) async fn rows(
        &self,
        room: RoomSn,
        events: &[EventSn],
    ) -> Result<HashMap<EventSn, EventRow>, StoreError> {
        if events.is_empty() {
            return Ok(HashMap::new());
        }
        let mut rows = self.bare_rows(room, events).await?;
        for (event, row) in &mut rows {
            if row.header.large
                && let Some(body) = self.store().get(&LARGE_BODIES, &(room, *event)).await?
            {
                row.body = body.0;
            }
        }
        Ok(rows)
    }

    /// The rows of events, without the bodies that lie elsewhere. Events of a page of history lie side by side: then
    /// they are one range.
    async fn bare_rows(
        &self,
        room: RoomSn,
        events: &[EventSn],
    ) -> Result<HashMap<EventSn, EventRow>, StoreError> {
        let (Some(first), Some(last)) = (events.iter().min(), events.iter().max()) else {
            return Ok(HashMap::new());
        };
        let span = (last.0 - first.0) as usize + 1;
        if events.len() >= DENSE_MIN && span <= events.len() + events.len() / 4 {
            let range = EVENTS.prefix(&(room,)).from(&(room, *first)).up_to(&(room, *last));
            let rows = self.store().range(&EVENTS, range, Order::Forward, span).await?;
            return Ok(rows.into_iter().map(|((_, event), row)| (event, row)).collect());
        }
        let keys: Vec<_> = events.iter().map(|event| (room, *event)).collect();
        let found = self.store().multi_get(&EVENTS, &keys).await?;
        Ok(events.iter().copied().zip(found).filter_map(|(event, row)| Some((event, row?))).collect())
    }

    /// The status rows of those events that have one.
    pub(super) async fn statuses(
        &self,
        room: RoomSn,
        events: &[EventSn],
    ) -> Result<HashMap<EventSn, EventStatusRow>, StoreError> {
        let (Some(first), Some(last)) = (events.iter().min(), events.iter().max()) else {
            return Ok(HashMap::new());
        };
        let span = last.0 - first.0;
        if span / SPARSE > events.len() as u32 {
            let keys: Vec<_> = events.iter().map(|event| (room, *event)).collect();
            let rows = self.store().multi_get(&EVENT_STATUS, &keys).await?;
            return Ok(events
                .iter()
                .copied()
                .zip(rows)
                .filter_map(|(event, row)| Some((event, row?)))
                .collect());
        }
        let range = EVENT_STATUS.prefix(&(room,)).from(&(room, *first)).up_to(&(room, *last));
        let rows = self.store().range(&EVENT_STATUS, range, Order::Forward, span as usize + 1).await?;
        Ok(rows.into_iter().map(|((_, event), row)| (event, row)).collect())
    }

    /// A room of which nothing was known but what an invite told turned out to have another version.
    pub(crate) fn forget_room(&self, room: RoomSn) {
        self.inner.rooms.remove(&room);
    }

    pub(super) async fn rules(&self, room: RoomSn) -> Result<&'static RoomRules, StoreError> {
        let row = self.room(room).await?.ok_or_else(|| corrupt("rooms", format!("{room:?}"), "not there"))?;
        RoomRules::of(&row.version).ok_or_else(|| corrupt("rooms", format!("{room:?}"), "not there"))
    }
}

impl RoomEvent {
    /// Whether it was read after what a status row tells: an event that was held beside the room may get a place in it.
    fn is_as(&self, row: &EventStatusRow) -> bool {
        row.status.is_none_or(|status| status == self.status)
            && (row.order.is_none() || row.order == self.order)
            && (row.snapshot_before.is_none() || row.snapshot_before == self.snapshot_before)
    }
}

fn build_event(
    rules: &RoomRules,
    sn: EventSn,
    row: &EventRow,
    status: Option<&EventStatusRow>,
    replaced: Option<&Arc<RoomEvent>>,
    redacted_because: Option<&Arc<RoomEvent>>,
) -> Result<RoomEvent, StoreError> {
    let header = &row.header;
    let mut body: Bytes = row.body.clone();
    let redacted = status.is_some_and(|status| status.redacted_by.is_some());
    if redacted && !status.is_some_and(|status| status.body_redacted) {
        let pdu = Pdu::from_stored(rules, header.event_id.clone(), body)
            .map_err(|error| corrupt("events", format!("{sn:?}"), error))?;
        body = hearth_dag::redact(rules, &pdu).bytes().clone();
    }
    let client = ClientEvent::new(Source {
        event_id: header.event_id.as_str(),
        pdu: &body,
        replaced: replaced.map(|event| &event.client),
        redacted,
        redacted_because: redacted_because.map(|event| &event.client),
        transaction: header.transaction.as_ref().map(|sent| (&*sent.device_id, &*sent.transaction_id)),
    })
    .map_err(|error| corrupt("events", format!("{sn:?}"), error))?;
    Ok(RoomEvent {
        sn,
        position: row.position,
        order: status.and_then(|status| status.order).or(row.live_order()),
        status: status.and_then(|status| status.status).unwrap_or(header.status),
        depth: header.depth,
        state_key: header.state_key,
        snapshot_before: status.and_then(|status| status.snapshot_before).or(header.snapshot_before),
        replaces: header.replaces,
        relates_to: header
            .relation
            .as_ref()
            .and_then(|relation| Some((relation.rel_type.clone(), relation.target?))),
        membership: membership(&client),
        client,
    })
}

fn membership(event: &ClientEvent) -> Option<Membership> {
    #[derive(serde::Deserialize)]
    struct Content<'a> {
        #[serde(borrow)]
        membership: std::borrow::Cow<'a, str>,
    }
    if *event.kind != *"m.room.member" {
        return None;
    }
    super::words::membership_of(&event.content_as::<Content<'_>>()?.membership)
}

/// A row that must be there and readable, and is not.
pub(super) fn corrupt(table: &'static str, key: String, reason: impl ToString) -> StoreError {
    StoreError::Corrupt { table, key, reason: reason.to_string() }
}
