//! One decision in a lane: the head it is made on, what it wants to write, and what it would then read.
//! * Reads see this turn's own writes, then those on their way, then the store.
//! * Nothing leaves a turn before [`Turn::finish`]: a turn that is dropped has not happened.
//! * A state that is too large for the turn's commit is written ahead of it: nothing names it before that commit does.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use hearth_dag::{Create, PowerLevels};
use hearth_store::{
    Blob, Commit, CommitError, KeyPart, Positioned, StoreError, StreamPosition, Table, Value,
};
use ruma::UserId;

use crate::errors::WriteError;
use crate::events::{RoomInfo, StoredEvent};
use crate::head::{Facts, Head, StateKey, read_facts};
use crate::ids::{EventKey, EventSn, StateKeySn};
use crate::kind::Kind;
use crate::queue::Waiting;
use crate::rooms::Rooms;
use crate::snapshot::{SnapshotWriter, StateChange};
use crate::tables::{
    EVENT_NUMBERS, EVENT_STATUS, EVENTS, EventStatusRow, HEAD_VERSIONS, HEADS, HeadRow, Membership,
    STATE_KEY_NAMES, STATE_KEYS, STATE_NODES, StateKeyRow,
};
use crate::view::{self, Rows};

/// What the end of a turn may need of its commit: the records of the state, the head, an event's own rows.
const ROWS_KEPT_FREE: usize = 120;
const BYTES_KEPT_FREE: usize = 250_000;
/// Records of the state, of up to 4 KiB each and a node more, that a turn's own commit writes. More are written ahead.
const RECORDS_MAX: usize = 30;

pub(crate) struct Turn {
    pub(crate) rooms: Rooms,
    pub(crate) head: Head,
    /// The head's row as it was when the turn began.
    row_before: HeadRow,
    pub(crate) commit: Commit,
    pub(crate) snapshots: SnapshotWriter,
    pub(crate) now_ms: u64,
    /// What this turn wrote and may be read again.
    rows: Rows,
    /// Events of this turn.
    made: HashMap<EventSn, Arc<StoredEvent>>,
    /// Stored events of which this turn changed what is known.
    changed: HashSet<EventSn>,
    /// Member rows that have to be written before this turn's change of the state fits into a commit.
    pub(crate) members_first: Vec<StateChange>,
    /// The room's queue as this turn leaves it, if it looked.
    pub(crate) queue: Option<VecDeque<Waiting>>,
    /// Members of ours are to be told after this turn's commit.
    pub(crate) leaves_late_members: bool,
    /// Who of us or others is joined changed: whether we are still in the room is to be seen.
    pub(crate) joins_changed: bool,
    head_changed: bool,
}

impl Turn {
    pub(crate) fn new(rooms: Rooms, head: Head) -> Self {
        let snapshots = SnapshotWriter::new(rooms.snapshots().clone(), head.room.sn, head.row.next_record);
        let now_ms = rooms.now_ms();
        Turn {
            rooms,
            row_before: head.row.clone(),
            head,
            commit: Commit::new(),
            snapshots,
            now_ms,
            rows: Rows::new(),
            made: HashMap::new(),
            changed: HashSet::new(),
            members_first: Vec::new(),
            queue: None,
            leaves_late_members: false,
            joins_changed: false,
            head_changed: false,
        }
    }

    pub(crate) fn room(&self) -> Arc<RoomInfo> {
        self.head.room.clone()
    }

    /// Whether rows that may be written or left still fit, beside those that have to be.
    pub(crate) fn has_room(&self) -> bool {
        self.commit.has_room_for(ROWS_KEPT_FREE, BYTES_KEPT_FREE)
    }

    pub(crate) fn has_written(&self) -> bool {
        self.head_changed || !self.commit.is_empty()
    }

    /// From here on the head differs from what the store will have without this turn.
    pub(crate) fn change_head(&mut self) -> &mut Head {
        self.head_changed = true;
        &mut self.head
    }

    /// Writes a row that lanes may read again.
    pub(crate) fn put<K, V>(&mut self, table: &Table<K, V>, key: &K, value: V)
    where
        K: KeyPart,
        V: Value + Send + Sync + 'static,
    {
        self.commit.put(table, key, &value);
        let (key, row) = view::row(table, key, value);
        self.rows.insert(key, row);
    }

    /// Removes a row that lanes may read again.
    pub(crate) fn delete<K: KeyPart, V: Value>(&mut self, table: &Table<K, V>, key: &K) {
        self.commit.delete(table, key);
        self.rows.insert(table.key_bytes(key), None);
    }

    pub(crate) async fn get<K, V>(&self, table: &Table<K, V>, key: &K) -> Result<Option<V>, StoreError>
    where
        K: KeyPart + Sync,
        V: Value + Clone + Send + Sync + 'static,
    {
        match self.rows.get(&table.key_bytes(key)) {
            Some(row) => Ok(view::read(row)),
            None => self.rooms.overlay().get(self.rooms.store(), table, key).await,
        }
    }

    /// Whether this turn itself wrote the row.
    pub(crate) fn has_own<K: KeyPart, V: Value>(&self, table: &Table<K, V>, key: &K) -> bool {
        self.rows.contains_key(&table.key_bytes(key))
    }

    /// The keys of a table's rows that are on their way, this turn's own too.
    pub(crate) fn keys_on_their_way<K: KeyPart, V: Value>(&self, table: &Table<K, V>) -> Vec<K> {
        let own = self.rows.keys().filter_map(|key| table.key_of(key)?.ok());
        own.chain(self.rooms.overlay().keys_of(table)).collect()
    }

    pub(crate) async fn event(&self, event: EventSn) -> Result<Arc<StoredEvent>, StoreError> {
        if let Some(made) = self.made.get(&event) {
            return Ok(made.clone());
        }
        let stored = self.rooms.events().load(&self.head.room, event).await?;
        if !self.changed.contains(&event) {
            return Ok(stored);
        }
        Ok(Arc::new(self.with_changes(&stored, self.status(event).await?)))
    }

    fn with_changes(&self, stored: &StoredEvent, changes: EventStatusRow) -> StoredEvent {
        let pdu = match changes.redacted_by {
            Some(_) => hearth_dag::redact(self.head.room.rules, &stored.pdu),
            None => stored.pdu.clone(),
        };
        StoredEvent { pdu, changes, ..stored.clone() }
    }

    pub(crate) async fn event_number(&self, event: &ruma::EventId) -> Result<Option<EventSn>, StoreError> {
        self.get(&EVENT_NUMBERS, &(EventKey::new(event), self.head.room.sn)).await
    }

    pub(crate) fn add_made(&mut self, event: Arc<StoredEvent>) {
        self.made.insert(event.sn, event);
    }

    pub(crate) async fn status(&self, event: EventSn) -> Result<EventStatusRow, StoreError> {
        Ok(self.get(&EVENT_STATUS, &(self.head.room.sn, event)).await?.unwrap_or_default())
    }

    /// Changes what is known of a stored event.
    pub(crate) fn put_status(&mut self, event: EventSn, status: EventStatusRow) {
        let room = self.head.room.sn;
        self.change_head();
        if let Some(made) = self.made.get(&event) {
            let changed = self.with_changes(made, status.clone());
            self.made.insert(event, Arc::new(changed));
        }
        self.put(&EVENT_STATUS, &(room, event), status);
        self.changed.insert(event);
        self.rooms.events().forget(room, event);
        self.head.state.retain(|_, held| held.as_ref().is_none_or(|held| held.sn != event));
    }

    /// Stored events of which this turn changes what is known.
    pub(crate) fn changed_events(&self) -> Vec<EventSn> {
        self.changed.iter().copied().collect()
    }

    /// The current state event at a place.
    pub(crate) async fn state(
        &mut self,
        kind: &Kind,
        state_key: &str,
    ) -> Result<Option<Arc<StoredEvent>>, StoreError> {
        let key: StateKey = (kind.clone(), state_key.to_owned());
        if let Some(held) = self.head.state.get(&key) {
            return Ok(held.clone());
        }
        let found = match self.key_number(&key).await? {
            Some(number) => self.snapshots.lookup(self.head.row.snapshot, number).await?,
            None => None,
        };
        let event = match found {
            Some(event) => Some(self.event(event).await?),
            None => None,
        };
        self.head.remember_state(key, event.clone());
        Ok(event)
    }

    /// The current membership of a user.
    pub(crate) async fn membership(&mut self, user: &UserId) -> Result<Option<Membership>, StoreError> {
        let member = self.state(&Kind::new("m.room.member"), user.as_str()).await?;
        Ok(member.and_then(|member| Membership::of(&member.pdu)))
    }

    /// The number of a state key, if the room knows it.
    pub(crate) async fn key_number(&mut self, key: &StateKey) -> Result<Option<StateKeySn>, StoreError> {
        if let Some(number) = self.head.keys.get(key) {
            return Ok(Some(*number));
        }
        let row = (self.head.room.sn, key.0.clone(), key.1.clone());
        let number = self.get(&STATE_KEYS, &row).await?;
        if let Some(number) = number {
            self.head.remember_key(key.clone(), number);
        }
        Ok(number)
    }

    /// The number of a state key, a new one if need be.
    pub(crate) async fn intern(&mut self, key: &StateKey) -> Result<StateKeySn, StoreError> {
        if let Some(number) = self.key_number(key).await? {
            return Ok(number);
        }
        let row = &mut self.change_head().row;
        let number = if key.0 == "m.room.member" {
            row.next_member_key += 1;
            StateKeySn::member(row.next_member_key - 1)
        } else {
            row.next_other_key += 1;
            StateKeySn::other(row.next_other_key - 1)
        };
        let room = self.head.room.sn;
        let name = StateKeyRow { kind: key.0.clone(), state_key: key.1.clone() };
        self.put(&STATE_KEY_NAMES, &(room, number), name);
        self.put(&STATE_KEYS, &(room, key.0.clone(), key.1.clone()), number);
        self.head.remember_key(key.clone(), number);
        Ok(number)
    }

    /// What the create event and the power levels say.
    pub(crate) async fn facts(&mut self) -> Result<(Arc<Create>, Arc<PowerLevels>, bool), WriteError> {
        if let Facts { create: Some(create), power: Some(power), has_power_event } = &self.head.facts {
            return Ok((create.clone(), power.clone(), *has_power_event));
        }
        let create = self.state(&Kind::new("m.room.create"), "").await?;
        let power = self.state(&Kind::new("m.room.power_levels"), "").await?;
        let facts = read_facts(&self.head.room, create.as_deref(), power.as_deref())?;
        self.head.facts = facts.clone();
        match facts {
            Facts { create: Some(create), power: Some(power), has_power_event } => {
                Ok((create, power, has_power_event))
            }
            _ => Err(WriteError::Forbidden(hearth_dag::Rejection::NoCreateEvent)),
        }
    }

    /// Writes the records of the state if there are more than the turn's commit has space for. Their numbers are taken
    /// with the first of them, so that they mean nothing else if the turn then does not happen. To be called once its
    /// decision stands.
    pub(crate) async fn write_records_ahead(&mut self) -> Result<(), CommitError> {
        let are_many = self.has_written() && self.snapshots.records_made() > RECORDS_MAX;
        let Some(mut version) = self.head.version.filter(|_| are_many) else { return Ok(()) };
        let room = self.head.room.sn;
        let records = self.snapshots.take_records();
        for (part, records) in records.chunks(RECORDS_MAX).enumerate() {
            let mut commit = Commit::new();
            for (record, nodes) in records {
                commit.put(&STATE_NODES, &(room, *record), &Blob(nodes.to_bytes().into()));
            }
            if part == 0 {
                commit.expect(&HEAD_VERSIONS, &room, &version);
                version = self.head.next_version();
                commit.put(&HEAD_VERSIONS, &room, &version);
                let value = HeadRow { next_record: self.snapshots.next_record, ..self.row_before.clone() };
                let position = commit.position();
                commit.put(&HEADS, &room, &Positioned { position, value });
            }
            self.rooms.store().commit(commit).await?;
            self.change_head().version = Some(version);
        }
        Ok(())
    }

    /// The head as it is after the commit, the commit, and its rows that lanes may read before it is applied.
    pub(crate) fn finish(mut self) -> (Head, Commit, Rows) {
        let room = self.head.room.sn;
        for (record, nodes) in self.snapshots.take_records() {
            self.put(&STATE_NODES, &(room, record), Blob(nodes.to_bytes().into()));
        }
        self.head.row.next_record = self.snapshots.next_record;
        let version = self.head.next_version();
        match self.head.version {
            Some(version) => self.commit.expect(&HEAD_VERSIONS, &room, &version),
            None => self.commit.expect_absent(&HEAD_VERSIONS, &room),
        }
        self.commit.put(&HEAD_VERSIONS, &room, &version);
        let position = self.last_position();
        self.commit.put(&HEADS, &room, &Positioned { position, value: self.head.row.clone() });
        self.commit.touch(room.topic());
        self.head.version = Some(version);
        (self.head, self.commit, self.rows)
    }

    fn last_position(&mut self) -> StreamPosition {
        match self.commit.positions() {
            0 => self.commit.position(),
            given => StreamPosition::slot(given - 1),
        }
    }

    /// Writes an event's row so that lanes can read it again.
    pub(crate) fn put_event(&mut self, event: EventSn, row: crate::event_row::EventRow) {
        let room = self.head.room.sn;
        self.put(&EVENTS, &(room, event), row);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use hearth_dag::LocalServers;
    use hearth_store::{Commit, Order, Store};

    use super::*;
    use crate::lane::Act;
    use crate::tables::{QUEUE, QueuedRow};
    use crate::{Clock, CreateRoom, Preset, QUEUED_EVENTS_MAX, RoomsOptions};

    struct Ticks(AtomicU64);

    impl Clock for Ticks {
        fn now_ms(&self) -> u64 {
            self.0.fetch_add(1, Ordering::Relaxed)
        }
    }

    /// The room's state is another one in all these members.
    struct Change(u32, EventSn);

    #[async_trait::async_trait]
    impl Act for Change {
        type Output = ();
        type Error = WriteError;

        async fn decide(&self, turn: &mut Turn) -> Result<(), WriteError> {
            let members = (1..=self.0).map(|index| (StateKeySn::member(index), Some(self.1)));
            let changes: Vec<_> = members.collect();
            let before = turn.head.row.snapshot;
            turn.change_head().row.snapshot = turn.snapshots.apply(before, &changes).await?;
            Ok(())
        }
    }

    /// So many events are to wait, each of them twice.
    struct Wait(usize);

    #[async_trait::async_trait]
    impl Act for Wait {
        type Output = ();
        type Error = WriteError;

        async fn decide(&self, turn: &mut Turn) -> Result<(), WriteError> {
            for number in 0..self.0 {
                for is_new in [true, false] {
                    let event_id = ruma::EventId::parse(format!("${number}")).unwrap();
                    let origin = ruma::server_name!("peer.test").to_owned();
                    let waits = turn.enqueue(QueuedRow { event_id, origin, pdu: "{}".to_owned() }).await?;
                    assert_eq!(waits, is_new);
                }
            }
            Ok(())
        }
    }

    fn rooms(store: &Store) -> Rooms {
        let name = ruma::server_name!("hearth.test").to_owned();
        let key: Arc<dyn hearth_dag::Signer> =
            Arc::new(hearth_dag::Keypair::new(name, "1", &[7; 32]).unwrap());
        let clock = Arc::new(Ticks(AtomicU64::new(1)));
        Rooms::new(store.clone(), LocalServers::new([key]), clock, &RoomsOptions::default())
    }

    async fn room(rooms: &Rooms) -> Arc<RoomInfo> {
        let alice = UserId::parse("@alice:hearth.test").unwrap();
        let create = CreateRoom { preset: Preset::PublicChat, ..CreateRoom::new(alice) };
        let room = rooms.create(&create, Commit::new()).await.unwrap().room_id;
        rooms.room(&room).await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn events_that_are_to_wait_in_one_turn_count_each_other() {
        let store = Store::memory().await;
        let rooms = rooms(&store);
        let info = room(&rooms).await;
        for _ in 0..2 {
            rooms.decide(&info, &Wait(QUEUED_EVENTS_MAX + 5), &Commit::new()).await.unwrap();
            let waiting = store.range(&QUEUE, QUEUE.all(), Order::Forward, 1000).await.unwrap();
            let waiting: Vec<_> = waiting.iter().map(|(_, row)| row.event_id.as_str()).collect();
            let expected: Vec<_> = (5..QUEUED_EVENTS_MAX + 5).map(|number| format!("${number}")).collect();
            assert_eq!(waiting, expected);
        }
    }

    #[tokio::test]
    async fn a_state_of_any_size_is_changed_at_once() {
        const MANY: u32 = 100_000;
        let store = Store::memory().await;
        let rooms = rooms(&store);
        let info = room(&rooms).await;
        // The numbers of records are taken once, whatever is written in one turn or in several.
        for event in [EventSn(1_000_001), EventSn(2_000_002)] {
            rooms.decide(&info, &Change(MANY, event), &Commit::new()).await.unwrap();
            let again = self::rooms(&store);
            for rooms in [&rooms, &again] {
                let snapshot = rooms.head(info.sn).await.unwrap().unwrap().value.snapshot;
                let members = rooms.snapshots().members(info.sn, snapshot).await.unwrap();
                assert_eq!(members.len(), MANY as usize + 1);
                assert!(members[1..].iter().all(|(_, held)| *held == event));
            }
        }
    }
}
