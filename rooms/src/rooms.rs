//! The rooms of this server: what they are made of, and the numbers of new ones.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use hearth_dag::{LocalServers, RoomRules};
use hearth_store::{Commit, CommitError, Store, StoreError};
use parking_lot::Mutex;
use quick_cache::sync::Cache;
use ruma::{OwnedRoomId, RoomId, UserId};

use crate::events::{Events, RoomInfo};
use crate::ids::{RoomSn, StateKeySn};
use crate::kind::Kind;
use crate::lane::Lanes;
use crate::policy::Verdicts;
use crate::read::Reader;
use crate::seams::{Chance, Clock, SystemChance};
use crate::serve::Serving;
use crate::snapshot::Snapshots;
use crate::tables::{
    HEADS, HeadRow, MEMBERSHIPS, Membership, MembershipRow, NEXT_ROOM, ROOM_NUMBERS, ROOMS, STATE_KEY_NAMES,
    STATE_KEYS, StateKeyRow,
};
use crate::view::Overlay;

/// Room numbers that are taken from the store at once.
const NUMBERS_AT_ONCE: u32 = 32;
/// Rooms and state keys whose numbers are remembered.
const REMEMBERED_ROOMS: usize = 20_000;
const REMEMBERED_KEYS: usize = 50_000;

/// Sizes of caches, in bytes, and chance.
#[derive(Clone, Debug)]
pub struct RoomsOptions {
    pub event_cache_bytes: u64,
    pub state_cache_bytes: u64,
    pub chance: Arc<dyn Chance>,
}

impl Default for RoomsOptions {
    fn default() -> Self {
        let chance = Arc::new(SystemChance);
        RoomsOptions { event_cache_bytes: 8 << 20, state_cache_bytes: 6 << 20, chance }
    }
}

/// What happens in rooms. Cheap to clone; all clones are one. Some know besides what a policy server said of events, for
/// one operation.
#[derive(Clone)]
pub struct Rooms(Arc<Inner>, Option<Arc<Verdicts>>);

/// Does not keep the rooms alive.
pub(crate) struct WeakRooms(Weak<Inner>);

impl WeakRooms {
    pub(crate) fn upgrade(&self) -> Option<Rooms> {
        self.0.upgrade().map(|inner| Rooms(inner, None))
    }
}

struct Inner {
    store: Store,
    servers: LocalServers,
    clock: Arc<dyn Clock>,
    chance: Arc<dyn Chance>,
    overlay: Overlay,
    events: Events,
    snapshots: Snapshots,
    reader: Reader,
    lanes: Lanes,
    sequence: AtomicU64,
    numbers: tokio::sync::Mutex<Range<u32>>,
    entries: Entries,
    infos: Cache<RoomSn, Arc<RoomInfo>>,
    by_id: Cache<OwnedRoomId, RoomSn>,
    keys: Cache<(RoomSn, StateKeySn), Arc<StateKeyRow>>,
    serving: Serving,
}

/// Rooms that are being entered: one answer of a peer is taken in at a time.
#[derive(Default)]
pub(crate) struct Entries(Mutex<HashMap<OwnedRoomId, Arc<tokio::sync::Mutex<()>>>>);

impl Entries {
    pub(crate) async fn of(&self, room: &RoomId) -> tokio::sync::OwnedMutexGuard<()> {
        let entry = {
            let mut entries = self.0.lock();
            entries.retain(|_, entry| Arc::strong_count(entry) > 1);
            entries.entry(room.to_owned()).or_default().clone()
        };
        entry.lock_owned().await
    }
}

impl Rooms {
    pub fn new(store: Store, servers: LocalServers, clock: Arc<dyn Clock>, options: &RoomsOptions) -> Self {
        let overlay = Overlay::default();
        let snapshots = Snapshots::new(store.clone(), overlay.clone(), options.state_cache_bytes);
        let inner = Arc::new(Inner {
            events: Events::new(store.clone(), overlay.clone(), options.event_cache_bytes),
            reader: Reader::new(store.clone(), snapshots.clone()),
            snapshots,
            store,
            servers,
            clock,
            chance: options.chance.clone(),
            overlay,
            lanes: Lanes::default(),
            sequence: AtomicU64::new(0),
            numbers: tokio::sync::Mutex::new(0..0),
            entries: Entries::default(),
            infos: Cache::new(REMEMBERED_ROOMS),
            by_id: Cache::new(REMEMBERED_ROOMS),
            keys: Cache::new(REMEMBERED_KEYS),
            serving: Serving::new(),
        });
        let rooms = Rooms(inner, None);
        rooms.clone().follow_redactions();
        rooms
    }

    pub fn store(&self) -> &Store {
        &self.0.store
    }

    pub(crate) fn chance(&self) -> &dyn Chance {
        &*self.0.chance
    }

    pub fn servers(&self) -> &LocalServers {
        &self.0.servers
    }

    /// Stored events, also those on their way to the disk (their position is a slot).
    pub fn events(&self) -> &Events {
        &self.0.events
    }

    pub fn snapshots(&self) -> &Snapshots {
        &self.0.snapshots
    }

    /// What clients are shown of rooms.
    pub fn reader(&self) -> &Reader {
        &self.0.reader
    }

    pub(crate) fn serving(&self) -> &Serving {
        &self.0.serving
    }

    pub fn now_ms(&self) -> u64 {
        self.0.clock.now_ms()
    }

    pub fn is_local(&self, user: &UserId) -> bool {
        self.0.servers.is_local(user.server_name())
    }

    pub(crate) fn verdicts(&self) -> Option<&Arc<Verdicts>> {
        self.1.as_ref()
    }

    pub(crate) fn judged(&self, verdicts: Arc<Verdicts>) -> Self {
        Rooms(self.0.clone(), Some(verdicts))
    }

    pub(crate) fn overlay(&self) -> &Overlay {
        &self.0.overlay
    }

    pub(crate) fn lanes(&self) -> &Lanes {
        &self.0.lanes
    }

    pub(crate) fn next_sequence(&self) -> u64 {
        self.0.sequence.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn downgrade(&self) -> WeakRooms {
        WeakRooms(Arc::downgrade(&self.0))
    }

    pub(crate) fn entries(&self) -> &Entries {
        &self.0.entries
    }

    /// What never changes of a room did: nothing was known of it but what an invite told.
    pub(crate) fn forget_room(&self, room: RoomSn) {
        self.0.infos.remove(&room);
        self.0.reader.forget_room(room);
    }

    /// The room of an id, if anything is held of it.
    pub async fn room(&self, room_id: &RoomId) -> Result<Option<Arc<RoomInfo>>, StoreError> {
        let number = match self.0.by_id.get(room_id) {
            Some(number) => number,
            None => {
                let Some(number) = self.0.store.get(&ROOM_NUMBERS, &room_id.as_str().to_owned()).await?
                else {
                    return Ok(None);
                };
                self.0.by_id.insert(room_id.to_owned(), number);
                number
            }
        };
        self.room_of(number).await
    }

    /// The room of a number.
    pub async fn room_of(&self, room: RoomSn) -> Result<Option<Arc<RoomInfo>>, StoreError> {
        if let Some(info) = self.0.infos.get(&room) {
            return Ok(Some(info));
        }
        let Some(row) = self.0.store.get(&ROOMS, &room).await? else { return Ok(None) };
        let rules = RoomRules::of(&row.version).ok_or_else(|| StoreError::Corrupt {
            table: ROOMS.name(),
            key: row.room_id.to_string(),
            reason: format!("a room of version {}", row.version),
        })?;
        let info = Arc::new(RoomInfo { sn: room, room_id: row.room_id, version: row.version, rules });
        self.0.infos.insert(room, info.clone());
        Ok(Some(info))
    }

    /// The head as it is visible in the store, with the position that wrote it.
    pub async fn head(&self, room: RoomSn) -> Result<Option<hearth_store::Positioned<HeadRow>>, StoreError> {
        self.0.store.get(&HEADS, &room).await
    }

    /// The number of a state key in a room, if the room ever had it.
    pub async fn state_key(
        &self,
        room: RoomSn,
        kind: &Kind,
        state_key: &str,
    ) -> Result<Option<StateKeySn>, StoreError> {
        self.0.store.get(&STATE_KEYS, &(room, kind.clone(), state_key.to_owned())).await
    }

    /// The type and state key of a number.
    pub async fn state_key_name(
        &self,
        room: RoomSn,
        key: StateKeySn,
    ) -> Result<Arc<StateKeyRow>, StoreError> {
        if let Some(held) = self.0.keys.get(&(room, key)) {
            return Ok(held);
        }
        let row = self.0.store.get(&STATE_KEY_NAMES, &(room, key)).await?;
        let row = Arc::new(row.ok_or_else(|| StoreError::Corrupt {
            table: STATE_KEY_NAMES.name(),
            key: format!("{room} {key}"),
            reason: "it is missing".to_owned(),
        })?);
        self.0.keys.insert((room, key), row.clone());
        Ok(row)
    }

    /// A user's membership row in a room, forgotten ones too.
    pub async fn membership_row(
        &self,
        user: &UserId,
        room: RoomSn,
    ) -> Result<Option<MembershipRow>, StoreError> {
        let row = self.0.store.get(&MEMBERSHIPS, &(user.to_string(), room)).await?;
        Ok(row.map(|row| row.value))
    }

    /// Whether a user is joined to a room now.
    pub async fn is_joined(&self, user: &UserId, room: RoomSn) -> Result<bool, StoreError> {
        let row = self.membership_row(user, room).await?;
        Ok(row.is_some_and(|row| row.membership == Membership::Join))
    }

    /// A number for a new room. Numbers may be skipped.
    pub(crate) async fn new_room_number(&self) -> Result<RoomSn, StoreError> {
        let mut numbers = self.0.numbers.lock().await;
        if let Some(number) = numbers.next() {
            return Ok(RoomSn(number));
        }
        loop {
            let next = self.0.store.get(&NEXT_ROOM, &()).await?;
            let mut commit = Commit::new();
            match &next {
                Some(next) => commit.expect(&NEXT_ROOM, &(), next),
                None => commit.expect_absent(&NEXT_ROOM, &()),
            }
            let first = next.unwrap_or(1);
            commit.put(&NEXT_ROOM, &(), &(first + NUMBERS_AT_ONCE));
            match self.0.store.commit(commit).await {
                Ok(_) => {
                    *numbers = first + 1..first + NUMBERS_AT_ONCE;
                    return Ok(RoomSn(first));
                }
                // Another node took these.
                Err(CommitError::Conflict) => {}
                Err(CommitError::Store(error)) => return Err(error),
            }
        }
    }
}
