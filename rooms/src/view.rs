//! Rows of commits that are on their way: a room goes on from them before the store shows them.
//! * Every row that a lane may read again is here from before its commit is submitted until it is applied.
//! * Look here first, then in the store: a row that leaves here is in the store by then.
//! * Bounded by what the store lets wait.

use std::any::Any;
use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use hearth_store::{KeyPart, Range, Store, StoreError, Table, Value};
use parking_lot::RwLock;

use crate::tables::{GAPS, MISSING, REDACTIONS_WAITING, RELATIONS_WAITING};

/// A row, or the mark of its removal.
type Row = Option<Arc<dyn Any + Send + Sync>>;

/// Rows under the bytes of their keys, the table's first.
pub(crate) type Rows = HashMap<Vec<u8>, Row>;

/// Which commit put a row here; a later one may have put another in its place.
type Sequence = u64;

#[derive(Clone, Default)]
pub(crate) struct Overlay(Arc<RwLock<Held>>);

#[derive(Default)]
struct Held {
    rows: HashMap<Vec<u8>, (Sequence, Row)>,
    /// The keys of tables whose rows are looked for by range, in order.
    ordered: BTreeSet<Vec<u8>>,
}

/// Whether a key's table is one whose rows are looked for by range.
fn is_ordered(key: &[u8]) -> bool {
    let spaces = [MISSING.space(), GAPS.space(), REDACTIONS_WAITING.space(), RELATIONS_WAITING.space()];
    key.first().is_some_and(|first| spaces.iter().any(|space| space.0 == *first))
}

impl Overlay {
    pub(crate) async fn get<K, V>(
        &self,
        store: &Store,
        table: &Table<K, V>,
        key: &K,
    ) -> Result<Option<V>, StoreError>
    where
        K: KeyPart + Sync,
        V: Value + Clone + Send + Sync + 'static,
    {
        match self.row(&table.key_bytes(key)) {
            Some(row) => Ok(row.and_then(|row| row.downcast_ref::<V>().cloned())),
            None => store.get(table, key).await,
        }
    }

    /// The row if it is on its way; the inner `None` if its removal is.
    pub(crate) fn peek<K, V>(&self, table: &Table<K, V>, key: &K) -> Option<Option<V>>
    where
        K: KeyPart,
        V: Value + Clone + 'static,
    {
        self.row(&table.key_bytes(key)).map(|row| row.and_then(|row| row.downcast_ref::<V>().cloned()))
    }

    pub(crate) async fn multi_get<K, V>(
        &self,
        store: &Store,
        table: &Table<K, V>,
        keys: &[K],
    ) -> Result<Vec<Option<V>>, StoreError>
    where
        K: KeyPart + Clone + Sync,
        V: Value + Clone + Send + Sync + 'static,
    {
        let held: Vec<Option<Row>> = keys.iter().map(|key| self.row(&table.key_bytes(key))).collect();
        let wanted: Vec<K> =
            keys.iter().zip(&held).filter(|(_, held)| held.is_none()).map(|(key, _)| key.clone()).collect();
        let mut read =
            if wanted.is_empty() { Vec::new() } else { store.multi_get(table, &wanted).await? }.into_iter();
        Ok(held
            .into_iter()
            .map(|held| match held {
                Some(row) => row.and_then(|row| row.downcast_ref::<V>().cloned()),
                None => read.next().flatten(),
            })
            .collect())
    }

    pub(crate) fn insert(&self, sequence: Sequence, rows: Rows) -> Vec<Vec<u8>> {
        let keys = rows.keys().cloned().collect();
        let mut held = self.0.write();
        for (key, row) in rows {
            if is_ordered(&key) {
                held.ordered.insert(key.clone());
            }
            held.rows.insert(key, (sequence, row));
        }
        keys
    }

    pub(crate) fn remove(&self, sequence: Sequence, keys: &[Vec<u8>]) {
        let mut held = self.0.write();
        for key in keys {
            if held.rows.get(key).is_some_and(|(put_by, _)| *put_by == sequence) {
                held.rows.remove(key);
                if is_ordered(key) {
                    held.ordered.remove(key);
                }
            }
        }
    }

    /// The keys of all rows of a table that are here.
    pub(crate) fn keys_of<K: KeyPart, V: Value>(&self, table: &Table<K, V>) -> Vec<K> {
        self.0.read().rows.keys().filter_map(|key| table.key_of(key)?.ok()).collect()
    }

    fn row(&self, key: &[u8]) -> Option<Row> {
        self.0.read().rows.get(key).map(|(_, row)| row.clone())
    }

    /// Whether rows of a range, or their removals, are here. Only for the tables of [`is_ordered`].
    pub(crate) fn has_any<K>(&self, range: &Range<K>) -> bool {
        let (start, end) = range.bounds();
        let bounds = (Bound::Included(start), Bound::Excluded(end));
        self.0.read().ordered.range::<[u8], _>(bounds).next().is_some()
    }
}

/// The key and the row as [`Rows`] keep them.
pub(crate) fn row<K, V>(table: &Table<K, V>, key: &K, value: V) -> (Vec<u8>, Row)
where
    K: KeyPart,
    V: Value + Send + Sync + 'static,
{
    (table.key_bytes(key), Some(Arc::new(value)))
}

/// The value of a row that is kept in [`Rows`].
pub(crate) fn read<V: Clone + 'static>(row: &Row) -> Option<V> {
    row.as_ref()?.downcast_ref::<V>().cloned()
}
