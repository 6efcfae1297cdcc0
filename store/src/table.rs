//! Typed tables: a name, a key codec that sorts as the data should be read, a value codec.
//!
//! All tables share one keyspace; each owns the keys behind its own first byte, its [`Space`]. Each crate declares
//! its tables in one file, `tables.rs`.

use std::marker::PhantomData;

use crate::{Decoder, Encoder, KeyPart, KeyPrefix, StoreError, Value, chunk};

/// The first byte of all keys of a table. 0xff is not to be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Space(pub u8);

/// A table of the data model.
pub struct Table<K, V> {
    name: &'static str,
    space: Space,
    mutable: bool,
    chunked: bool,
    types: PhantomData<fn() -> (K, V)>,
}

impl<K, V> Clone for Table<K, V> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<K, V> Copy for Table<K, V> {}

impl<K: KeyPart, V: Value> Table<K, V> {
    /// A table whose rows are written once, or are read from the store whenever they are needed.
    pub const fn new(name: &'static str, space: Space) -> Self {
        Self { name, space, mutable: false, chunked: false, types: PhantomData }
    }

    /// A table whose rows are overwritten and cached: each change of a key is told to those who watch.
    pub const fn mutable(name: &'static str, space: Space) -> Self {
        Self { mutable: true, ..Self::new(name, space) }
    }

    /// A table whose values may be longer than [`crate::VALUE_MAX`]. They are kept in pieces, which only shows in
    /// an additional byte per value.
    pub const fn chunked(name: &'static str, space: Space) -> Self {
        Self { chunked: true, ..Self::new(name, space) }
    }

    /// A chunked table whose changes are told to those who watch.
    pub const fn chunked_mutable(name: &'static str, space: Space) -> Self {
        Self { chunked: true, ..Self::mutable(name, space) }
    }

    /// The table's name, for messages and `inspect`.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Its part of the keyspace.
    pub const fn space(&self) -> Space {
        self.space
    }

    /// Whether its changes are told to those who watch.
    pub const fn is_mutable(&self) -> bool {
        self.mutable
    }

    /// Whether its values are kept in pieces.
    pub const fn is_chunked(&self) -> bool {
        self.chunked
    }

    /// All rows.
    pub fn all(&self) -> Range<K> {
        Range::covering(vec![self.space.0])
    }

    /// The rows whose keys begin with `prefix`.
    pub fn prefix(&self, prefix: &impl KeyPrefix) -> Range<K> {
        Range::covering(beginning(self.space, prefix))
    }

    /// The rows from `start` on, up to but not including `end`. Both may be beginnings of a key.
    pub fn from_to(&self, start: &impl KeyPrefix, end: &impl KeyPrefix) -> Range<K> {
        self.all().from(start).before(end)
    }

    /// The bytes of a key.
    pub fn key_bytes(&self, key: &K) -> Vec<u8> {
        beginning(self.space, key)
    }

    /// Which key of this table these bytes are, if they are of this table: for the keys that a
    /// [`crate::Wake`] carries.
    pub fn key_of(&self, bytes: &[u8]) -> Option<Result<K, StoreError>> {
        (bytes.first() == Some(&self.space.0)).then(|| self.decode_key(bytes))
    }

    /// Reads a row of this table (of a chunked one: of a value that fits one piece).
    pub fn decode_row(&self, key: &[u8], value: &[u8]) -> Result<(K, V), StoreError> {
        let value = match (self.chunked, chunk::head(value)) {
            (true, Some(head)) if head.pieces == 0 => head.value,
            _ => value,
        };
        Ok((self.decode_key(key)?, self.decode_value(key, value)?))
    }

    pub(crate) fn decode_key(&self, key: &[u8]) -> Result<K, StoreError> {
        let decode = || {
            let mut input = Decoder::new(key.get(1..).unwrap_or_default());
            let decoded = K::decode(&mut input)?;
            input.finish()?;
            Ok(decoded)
        };
        decode().map_err(|malformed| StoreError::corrupt(self.name, key, &malformed))
    }

    /// Of the bytes that [`Value::encode`] wrote.
    pub(crate) fn decode_value(&self, key: &[u8], value: &[u8]) -> Result<V, StoreError> {
        V::decode(value).map_err(|malformed| StoreError::corrupt(self.name, key, &malformed))
    }
}

pub(crate) fn beginning(space: Space, prefix: &impl KeyPrefix) -> Vec<u8> {
    let mut out = Encoder { bytes: Vec::with_capacity(32), ..Encoder::default() };
    out.raw(&[space.0]);
    prefix.encode_prefix(&mut out);
    out.bytes
}

/// Rows between two keys of one table.
#[derive(Debug)]
pub struct Range<K> {
    space: Space,
    pub(crate) start: Vec<u8>,
    pub(crate) end: Vec<u8>,
    keys: PhantomData<fn() -> K>,
}

impl<K> Clone for Range<K> {
    fn clone(&self) -> Self {
        Self { space: self.space, start: self.start.clone(), end: self.end.clone(), keys: PhantomData }
    }
}

/// Bounds may be beginnings of keys: then they mean all keys that begin so. A later bound only narrows.
impl<K> Range<K> {
    fn covering(prefix: Vec<u8>) -> Self {
        Self { space: Space(prefix[0]), end: after_all(&prefix), start: prefix, keys: PhantomData }
    }

    /// Only from `key` on.
    #[must_use]
    pub fn from(mut self, key: &impl KeyPrefix) -> Self {
        self.start = self.start.max(beginning(self.space, key));
        self
    }

    /// Only what is behind `key` and all that begins with it.
    #[must_use]
    pub fn after(mut self, key: &impl KeyPrefix) -> Self {
        self.start = self.start.max(after_all(&beginning(self.space, key)));
        self
    }

    /// Only what lies before `key`.
    #[must_use]
    pub fn before(mut self, key: &impl KeyPrefix) -> Self {
        self.end = self.end.min(beginning(self.space, key));
        self
    }

    /// Only up to `key` and all that begins with it.
    #[must_use]
    pub fn up_to(mut self, key: &impl KeyPrefix) -> Self {
        self.end = self.end.min(after_all(&beginning(self.space, key)));
        self
    }

    /// Whether the key with these bytes belongs to it.
    pub fn contains(&self, key: &[u8]) -> bool {
        self.start.as_slice() <= key && key < self.end.as_slice()
    }

    /// The bounds as bytes: the first key that belongs to it, the first that does not.
    pub fn bounds(&self) -> (&[u8], &[u8]) {
        (&self.start, &self.end)
    }
}

/// The first key behind all that begin with `prefix`. The space byte, never 0xff, ends the search.
fn after_all(prefix: &[u8]) -> Vec<u8> {
    let kept = prefix.iter().rposition(|&byte| byte != 0xff).map_or(0, |at| at + 1);
    let mut end = prefix[..kept].to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}
