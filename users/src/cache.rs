//! A bounded cache that is never behind the store.
//!
//! A value read before a change and put in after it would stay for ever. So a reader takes a ticket first, and its value
//! goes in only if nothing was dropped under that ticket meanwhile.

use std::hash::{BuildHasher, Hash, RandomState};

use parking_lot::Mutex;

const STRIPES: usize = 64;

/// Values of the store, at most `capacity` of them.
pub(crate) struct Cache<K, V> {
    values: quick_cache::sync::Cache<K, V>,
    hasher: RandomState,
    /// Counts of what was dropped, by part of the keys.
    dropped: [Mutex<u64>; STRIPES],
}

/// What was dropped so far, when it was taken.
pub(crate) struct Ticket(u64);

impl<K: Eq + Hash + Clone, V: Clone> Cache<K, V> {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            values: quick_cache::sync::Cache::new(capacity),
            hasher: RandomState::new(),
            dropped: std::array::from_fn(|_| Mutex::new(0)),
        }
    }

    pub(crate) fn get<Q>(&self, key: &Q) -> Option<V>
    where
        Q: Hash + quick_cache::Equivalent<K> + ?Sized,
    {
        self.values.get(key)
    }

    /// Taken before the store is read.
    pub(crate) fn ticket(&self, key: &K) -> Ticket {
        Ticket(*self.stripe(key).lock())
    }

    /// What the store said after `ticket` was taken.
    pub(crate) fn fill(&self, key: K, value: V, ticket: Ticket) {
        let dropped = self.stripe(&key).lock();
        if *dropped == ticket.0 {
            self.values.insert(key, value);
        }
    }

    /// After the store was changed, before anybody is told.
    pub(crate) fn drop(&self, key: &K) {
        let mut dropped = self.stripe(key).lock();
        *dropped += 1;
        self.values.remove(key);
    }

    fn stripe(&self, key: &K) -> &Mutex<u64> {
        &self.dropped[self.hasher.hash_one(key) as usize % STRIPES]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // What was read before a change does not enter after it.
    #[test]
    fn a_stale_value_stays_out() {
        let cache: Cache<u32, &str> = Cache::new(10);
        let ticket = cache.ticket(&1);
        cache.drop(&1);
        cache.fill(1, "old", ticket);
        assert_eq!(cache.get(&1), None);
        let ticket = cache.ticket(&1);
        cache.fill(1, "new", ticket);
        assert_eq!(cache.get(&1), Some("new"));
    }
}
