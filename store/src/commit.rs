//! Commits: values that say what is to be written, and what must hold for it.
//!
//! * All of a commit happens or nothing.
//! * A commit is small: at most [`COMMIT_ROWS`] rows and [`COMMIT_BYTES`] bytes. What is larger is staged.
//! * Going past a bound spoils the commit, never half of it: the error is told when it is submitted.

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::codec::Slot;
use crate::tables::{self, RangeJob};
use crate::{Encoder, KeyPart, Malformed, Range, Space, StoreError, StreamPosition, Table, Value, chunk};

/// The most bytes of one value. 17 of them, a full page of sled, stay below a quarter of its segments.
pub const VALUE_MAX: usize = 6 * 1024;
/// The most bytes of one key.
pub const KEY_MAX: usize = 1024;
/// The most rows of one commit. sled stops all readers while it applies them.
pub const COMMIT_ROWS: usize = 1000;
/// The most bytes of one commit.
pub const COMMIT_BYTES: usize = 1024 * 1024;

/// What a commit wakes: watchers learn it together with the position.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Topic(SmallVec<[u8; 32]>);

impl Topic {
    /// The thing `id` of the kind `tag`.
    pub fn new(tag: u8, id: &[u8]) -> Self {
        let mut bytes = SmallVec::with_capacity(1 + id.len());
        bytes.push(tag);
        bytes.extend_from_slice(id);
        Self(bytes)
    }

    /// Its kind.
    pub fn tag(&self) -> u8 {
        self.0.first().copied().unwrap_or_default()
    }

    /// Which one.
    pub fn id(&self) -> &[u8] {
        self.0.get(1..).unwrap_or_default()
    }
}

impl std::fmt::Debug for Topic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Topic({:?} {})", char::from(self.tag()), String::from_utf8_lossy(self.id()))
    }
}

/// Bytes of the commit's arena.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Span {
    start: u32,
    end: u32,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Op {
    pub(crate) key: Span,
    pub(crate) value: Option<Span>,
    pub(crate) mutable: bool,
    /// For the head of a chunked value, how many pieces follow: older ones beyond them go.
    pub(crate) pieces: Option<u8>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Expect {
    pub(crate) key: Span,
    pub(crate) value: Option<Span>,
}

/// What is to be written, all or nothing.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Commit {
    arena: Vec<u8>,
    slots: Vec<Slot>,
    pub(crate) ops: Vec<Op>,
    pub(crate) expects: Vec<Expect>,
    pub(crate) topics: Vec<Topic>,
    positions: u32,
    pub(crate) starts_job: bool,
    pub(crate) skips_to: u64,
    #[serde(skip)]
    fault: Option<StoreError>,
}

impl Commit {
    /// One that writes nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The commit's next stream position, as a slot to be written into keys and values.
    pub fn position(&mut self) -> StreamPosition {
        self.positions += 1;
        StreamPosition::slot(self.positions - 1)
    }

    /// Writes a row, over whatever was there. Of several writes to a key the last one holds.
    pub fn put<K: KeyPart, V: Value>(&mut self, table: &Table<K, V>, key: &K, value: &V) {
        let key = self.key(table, key);
        if table.is_chunked() {
            return self.put_chunked(table, key, value);
        }
        let value = self.encode(table.name(), |out| value.encode(out));
        self.check_value(table.name(), value);
        self.ops.push(Op { key, value: Some(value), mutable: table.is_mutable(), pieces: None });
    }

    /// Writes a row whose key has never held anything. For chunked tables cheaper than [`Commit::put`], since no
    /// older pieces are looked for; otherwise the same.
    pub fn put_new<K: KeyPart, V: Value>(&mut self, table: &Table<K, V>, key: &K, value: &V) {
        let from = self.ops.len();
        self.put(table, key, value);
        for op in &mut self.ops[from..] {
            op.pieces = None;
        }
    }

    /// Removes a row, if it is there.
    pub fn delete<K: KeyPart, V: Value>(&mut self, table: &Table<K, V>, key: &K) {
        let key = self.key(table, key);
        let pieces = table.is_chunked().then_some(0);
        self.ops.push(Op { key, value: None, mutable: table.is_mutable(), pieces });
    }

    /// Only if the row holds exactly this value.
    pub fn expect<K: KeyPart, V: Value>(&mut self, table: &Table<K, V>, key: &K, value: &V) {
        let (ops, slots) = (self.ops.len(), self.slots.len());
        self.put(table, key, value);
        if self.slots.len() > slots {
            self.spoil(StoreError::Invalid(format!(
                "table {}: a precondition on an open position",
                table.name()
            )));
        }
        // A chunked value is several rows, and each must be as expected.
        let expected = self.ops.drain(ops..).map(|op| Expect { key: op.key, value: op.value });
        self.expects.extend(expected);
    }

    /// Only if there is no such row.
    pub fn expect_absent<K: KeyPart, V: Value>(&mut self, table: &Table<K, V>, key: &K) {
        let slots = self.slots.len();
        let key = self.key(table, key);
        if self.slots.len() > slots {
            self.spoil(StoreError::Invalid(format!(
                "table {}: a precondition on an open position",
                table.name()
            )));
        }
        self.expects.push(Expect { key, value: None });
    }

    /// Wakes those who watch for this, once the commit is durable.
    pub fn touch(&mut self, topic: Topic) {
        if !self.topics.contains(&topic) {
            self.topics.push(topic);
        }
    }

    /// Lets the store delete all rows of `range` once the commit is durable, in steps, and over restarts. Rows
    /// that are written into the range meanwhile may or may not survive.
    pub fn delete_range_later<K: KeyPart, V: Value>(&mut self, table: &Table<K, V>, range: &Range<K>) {
        let (start, end) = range.bounds();
        self.start_job(&RangeJob { start: start.to_vec(), end: end.to_vec(), mutable: table.is_mutable() });
    }

    /// Takes in all of `other`: both happen or neither. The other's slots follow ours, see [`Commit::shift`].
    pub fn merge(&mut self, other: Self) {
        let (offset, behind) = (self.arena.len() as u32, self.positions);
        self.arena.extend_from_slice(&other.arena);
        let moved = |span: Span| Span { start: span.start + offset, end: span.end + offset };
        for slot in other.slots {
            let slot = Slot { at: slot.at + offset, ..slot };
            let own = read_slot(&self.arena, slot);
            write_slot(&mut self.arena, slot, own + u64::from(behind));
            self.slots.push(slot);
        }
        let ops = other.ops.into_iter();
        self.ops.extend(ops.map(|op| Op { key: moved(op.key), value: op.value.map(moved), ..op }));
        let expects = other.expects.into_iter();
        self.expects.extend(expects.map(|e| Expect { key: moved(e.key), value: e.value.map(moved) }));
        for topic in other.topics {
            self.touch(topic);
        }
        self.positions += other.positions;
        self.starts_job |= other.starts_job;
        self.skips_to = self.skips_to.max(other.skips_to);
        if let Some(fault) = other.fault {
            self.spoil(fault);
        }
    }

    /// What a slot of a commit becomes that is merged into this one as it now is.
    pub fn shift(&self, slot: StreamPosition) -> StreamPosition {
        slot.slot_index().map_or(slot, |n| StreamPosition::slot(n + self.positions))
    }

    /// All positions from here on are larger than `position`: for stores that continue another one.
    pub fn skip_positions(&mut self, position: StreamPosition) {
        self.skips_to = self.skips_to.max(StreamPosition::new(position.get()).get());
    }

    /// Whether nothing would be written or checked.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
            && self.expects.is_empty()
            && self.topics.is_empty()
            && self.positions == 0
            && self.skips_to == 0
    }

    /// How many rows are written or deleted.
    pub fn rows(&self) -> usize {
        self.ops.len()
    }

    /// How many bytes of keys and values there are.
    pub fn bytes(&self) -> usize {
        self.arena.len()
    }

    /// How many positions the commit will get.
    pub fn positions(&self) -> u32 {
        self.positions
    }

    /// Whether another commit of this size could still be merged without passing the bounds.
    pub fn has_room_for(&self, rows: usize, bytes: usize) -> bool {
        self.rows() + rows <= COMMIT_ROWS && self.bytes() + bytes <= COMMIT_BYTES
    }

    /// The error that submitting this would give.
    pub fn check(&self) -> Result<(), StoreError> {
        if let Some(fault) = &self.fault {
            return Err(fault.clone());
        }
        let bounds = [("rows", self.rows(), COMMIT_ROWS), ("bytes", self.bytes(), COMMIT_BYTES)];
        for (unit, size, limit) in bounds {
            if size > limit {
                return Err(StoreError::CommitTooLarge { unit, size, limit });
            }
        }
        Ok(())
    }

    /// The commit as bytes, to be kept or sent.
    pub fn to_bytes(&self) -> Result<Vec<u8>, StoreError> {
        self.check()?;
        postcard::to_stdvec(self).map_err(|error| StoreError::Invalid(error.to_string()))
    }

    /// A commit that [`Commit::to_bytes`] wrote.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, StoreError> {
        let commit: Self =
            postcard::from_bytes(bytes).map_err(|error| StoreError::Invalid(error.to_string()))?;
        let end = commit.arena.len() as u32;
        let within = |span: &Span| span.start <= span.end && span.end <= end;
        let slots = commit.slots.iter().all(|slot| slot.at.checked_add(8).is_some_and(|after| after <= end));
        let ops = commit.ops.iter().map(|op| (op.key, op.value));
        let expects = commit.expects.iter().map(|e| (e.key, e.value));
        if slots && ops.chain(expects).all(|(key, value)| within(&key) && value.as_ref().is_none_or(within)) {
            Ok(commit)
        } else {
            Err(StoreError::Invalid("a serialised commit that points outside itself".into()))
        }
    }

    pub(crate) fn slice(&self, span: Span) -> &[u8] {
        &self.arena[span.start as usize..span.end as usize]
    }

    /// Fills in all slots: the first becomes `first`.
    pub(crate) fn bind(&mut self, first: u64) {
        for slot in std::mem::take(&mut self.slots) {
            let n = StreamPosition::from_bits(read_slot(&self.arena, slot)).slot_index().unwrap_or_default();
            write_slot(&mut self.arena, slot, first + u64::from(n));
        }
    }

    pub(crate) fn start_job(&mut self, job: &RangeJob) -> StreamPosition {
        let id = self.position();
        self.put(&tables::JOBS, &id, job);
        self.starts_job = true;
        id
    }

    /// Deletes a row by its bytes.
    pub(crate) fn delete_raw(&mut self, key: &[u8], mutable: bool) {
        let key = self.raw(key);
        self.ops.push(Op { key, value: None, mutable, pieces: None });
    }

    /// Writes a row by its bytes.
    pub(crate) fn put_raw(&mut self, key: &[u8], value: &[u8]) {
        let (key, value) = (self.raw(key), self.raw(value));
        self.ops.push(Op { key, value: Some(value), mutable: false, pieces: None });
    }

    fn raw(&mut self, bytes: &[u8]) -> Span {
        let start = self.arena.len() as u32;
        self.arena.extend_from_slice(bytes);
        Span { start, end: self.arena.len() as u32 }
    }

    fn put_chunked<K: KeyPart, V: Value>(&mut self, table: &Table<K, V>, key: Span, value: &V) {
        let head = self.encode(table.name(), |out| {
            out.raw(&[0]);
            value.encode(out);
        });
        let (start, length) = (head.start as usize, (head.end - head.start) as usize);
        let mutable = table.is_mutable();
        if length <= VALUE_MAX {
            return self.ops.push(Op { key, value: Some(head), mutable, pieces: Some(0) });
        }
        let tail = self.arena.split_off(start + 1 + chunk::HEAD);
        let pieces = tail.len().div_ceil(chunk::TAIL);
        if pieces > chunk::PIECES_MAX {
            let (size, limit) = (length - 1, COMMIT_BYTES);
            return self.spoil(StoreError::TooLarge {
                what: format!("a value of table {}", table.name()),
                size,
                limit,
            });
        }
        if self.slots.last().is_some_and(|slot| slot.at as usize + 8 > self.arena.len()) {
            return self
                .spoil(StoreError::Invalid(format!("table {}: a slot deep inside a value", table.name())));
        }
        let mut content = self.arena[start + 1..].to_vec();
        content.extend_from_slice(&tail);
        let tag = chunk::tag(&content);
        self.arena[start] = pieces as u8;
        self.arena.extend_from_slice(&tag);
        let head = Span { start: head.start, end: self.arena.len() as u32 };
        self.ops.push(Op { key, value: Some(head), mutable, pieces: Some(pieces as u8) });
        let is_in_key = |slot: &&Slot| (key.start..key.end).contains(&slot.at);
        let slots: Vec<Slot> = self.slots.iter().filter(is_in_key).copied().collect();
        let (key, from) = (self.slice(key).to_vec(), key.start);
        for (n, piece) in tail.chunks(chunk::TAIL).enumerate() {
            let key = self.raw(&chunk::piece_key(&key, n as u8 + 1));
            // The pieces lie where the position puts the first of them.
            self.slots.extend(slots.iter().map(|slot| Slot { at: slot.at - from + key.start, ..*slot }));
            let value = self.raw(&tag);
            let value = Span { start: value.start, end: self.raw(piece).end };
            self.ops.push(Op { key, value: Some(value), mutable: false, pieces: None });
        }
    }

    fn key<K: KeyPart, V: Value>(&mut self, table: &Table<K, V>, key: &K) -> Span {
        let Space(space) = table.space();
        let span = self.encode(table.name(), |out| {
            out.raw(&[space]);
            key.encode(out);
        });
        let (size, limit) = ((span.end - span.start) as usize, KEY_MAX);
        if size > limit {
            self.spoil(StoreError::TooLarge {
                what: format!("a key of table {}", table.name()),
                size,
                limit,
            });
        }
        span
    }

    fn encode(&mut self, table: &'static str, write: impl FnOnce(&mut Encoder)) -> Span {
        let start = self.arena.len();
        let mut out = Encoder {
            bytes: std::mem::take(&mut self.arena),
            slots: std::mem::take(&mut self.slots),
            fault: None,
        };
        write(&mut out);
        let Encoder { bytes, slots, fault } = out;
        (self.arena, self.slots) = (bytes, slots);
        if let Some(Malformed(reason)) = fault {
            self.spoil(StoreError::Invalid(format!("table {table}: {reason}")));
        }
        Span { start: start as u32, end: self.arena.len() as u32 }
    }

    fn check_value(&mut self, table: &str, value: Span) {
        let (size, limit) = ((value.end - value.start) as usize, VALUE_MAX);
        if size > limit {
            self.spoil(StoreError::TooLarge { what: format!("a value of table {table}"), size, limit });
        }
    }

    fn spoil(&mut self, fault: StoreError) {
        self.fault.get_or_insert(fault);
    }
}

fn read_slot(arena: &[u8], slot: Slot) -> u64 {
    let at = slot.at as usize;
    let bytes = arena[at..at + 8].try_into().expect("eight bytes were sliced");
    let bits = u64::from_be_bytes(bytes);
    if slot.inverted { !bits } else { bits }
}

fn write_slot(arena: &mut [u8], slot: Slot, bits: u64) {
    let at = slot.at as usize;
    let bits = if slot.inverted { !bits } else { bits };
    arena[at..at + 8].copy_from_slice(&bits.to_be_bytes());
}
