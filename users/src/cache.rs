//! A bounded cache that is never behind the store.
//!
//! A value read before a change and put in after it would stay for ever. So a reader takes a ticket first, and its value
//! goes in only if nothing was dropped under that ticket meanwhile. Where somebody who waits for the change reads as soon
//! as the store has it, before the writer itself is told, the writer keeps values out from before it writes.

use std::hash::{BuildHasher, Hash, RandomState};

use parking_lot::Mutex;

const STRIPES: usize = 64;

/// Values of the store, at most `capacity` of them.
pub(crate) struct Cache<K, V> {
    values: quick_cache::sync::Cache<K, V>,
    hasher: RandomState,
    /// By part of the keys.
    stripes: [Mutex<Stripe>; STRIPES],
}

#[derive(Default)]
struct Stripe {
    /// How often something was dropped.
    dropped: u64,
    /// How many are changing the store now.
    writers: usize,
}

/// Keeps a key's value out as long as it lives.
pub(crate) struct Changing<'a, K: Eq + Hash + Clone, V: Clone> {
    cache: &'a Cache<K, V>,
    key: K,
}

impl<K: Eq + Hash + Clone, V: Clone> Drop for Changing<'_, K, V> {
    fn drop(&mut self) {
        self.cache.stripe(&self.key).lock().writers -= 1;
        self.cache.drop(&self.key);
    }
}

/// What was dropped so far, when it was taken.
pub(crate) struct Ticket(u64);

impl<K: Eq + Hash + Clone, V: Clone> Cache<K, V> {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            values: quick_cache::sync::Cache::new(capacity),
            hasher: RandomState::new(),
            stripes: std::array::from_fn(|_| Mutex::new(Stripe::default())),
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
        Ticket(self.stripe(key).lock().dropped)
    }

    /// What the store said after `ticket` was taken.
    pub(crate) fn fill(&self, key: K, value: V, ticket: Ticket) {
        let stripe = self.stripe(&key).lock();
        if stripe.dropped == ticket.0 && stripe.writers == 0 {
            self.values.insert(key, value);
        }
    }

    /// Before the store is changed, until it has been.
    pub(crate) fn changing(&self, key: K) -> Changing<'_, K, V> {
        self.stripe(&key).lock().writers += 1;
        self.drop(&key);
        Changing { cache: self, key }
    }

    /// After the store was changed, before anybody is told.
    pub(crate) fn drop(&self, key: &K) {
        let mut stripe = self.stripe(key).lock();
        stripe.dropped += 1;
        self.values.remove(key);
    }

    fn stripe(&self, key: &K) -> &Mutex<Stripe> {
        &self.stripes[self.hasher.hash_one(key) as usize % STRIPES]
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

    // Whoever is woken by a change reads it, even before the writer knows that it is done.
    #[test]
    fn nothing_stays_in_during_a_change() {
        let cache: Cache<u32, &str> = Cache::new(10);
        cache.fill(1, "old", cache.ticket(&1));
        let changing = cache.changing(1);
        assert_eq!(cache.get(&1), None);
        cache.fill(1, "old", cache.ticket(&1));
        assert_eq!(cache.get(&1), None);
        drop(changing);
        cache.fill(1, "new", cache.ticket(&1));
        assert_eq!(cache.get(&1), Some("new"));
    }
}
