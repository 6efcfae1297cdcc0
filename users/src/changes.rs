//! Who or what changed last, in memory, so that an idle `/sync` reads nothing from the store.
//! * `changed_since` never answers `false` for a change at or below the store's watermark: a key is marked before its
//!   commit is submitted and stays marked until the commit's position is known.
//! * It may answer `true` for nothing: after a start, and for keys that were forgotten to stay within the bound.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use hearth_store::StreamPosition;
use parking_lot::Mutex;

/// The last position at which each key (a user, a room) changed; the oldest ones are forgotten.
pub(crate) struct LastChanges {
    capacity: usize,
    state: Mutex<State>,
}

struct State {
    /// A key that is not listed has not changed after this position.
    floor: u64,
    at: HashMap<Arc<str>, u64>,
    order: BTreeSet<(u64, Arc<str>)>,
    /// Keys whose commits are under way, with their number.
    pending: HashMap<Arc<str>, u32>,
}

impl LastChanges {
    /// `floor` is the position up to which nothing is known: the newest one of the store when it was opened.
    pub(crate) fn new(floor: StreamPosition, capacity: usize) -> Self {
        let state =
            State { floor: floor.get(), at: HashMap::new(), order: BTreeSet::new(), pending: HashMap::new() };
        Self { capacity, state: Mutex::new(state) }
    }

    /// Whether `key` may have changed after `since`.
    pub(crate) fn changed_since(&self, key: &str, since: StreamPosition) -> bool {
        let state = self.state.lock();
        state.pending.contains_key(key)
            || match state.at.get(key) {
                Some(at) => *at > since.get(),
                None => state.floor > since.get(),
            }
    }

    /// The keys that may have changed after `since`; `None` where only asking for each one can tell.
    pub(crate) fn keys_since(&self, since: StreamPosition, limit: usize) -> Option<Vec<Arc<str>>> {
        let state = self.state.lock();
        if state.floor > since.get() {
            return None;
        }
        let mut keys: Vec<Arc<str>> = state.pending.keys().cloned().collect();
        let after = (since.get().saturating_add(1), Arc::from(""));
        for (_, key) in state.order.range(after..) {
            if keys.len() > limit {
                return None;
            }
            if !state.pending.contains_key(key) {
                keys.push(key.clone());
            }
        }
        Some(keys)
    }

    /// Marks `key` as changing. Before the commit is submitted.
    pub(crate) fn begin(&self, key: &Arc<str>) {
        *self.state.lock().pending.entry(key.clone()).or_default() += 1;
    }

    /// What became of the change: its position, or nothing where the commit failed.
    pub(crate) fn finish(&self, key: &Arc<str>, position: Option<StreamPosition>) {
        let mut state = self.state.lock();
        if let Some(position) = position {
            state.moved(key, position.get());
        }
        if let Some(count) = state.pending.get_mut(key) {
            *count -= 1;
            if *count == 0 {
                state.pending.remove(key);
            }
        }
        while state.at.len() > self.capacity {
            let Some((position, key)) = state.order.pop_first() else { break };
            state.at.remove(&key);
            state.floor = state.floor.max(position);
        }
    }
}

impl State {
    fn moved(&mut self, key: &Arc<str>, position: u64) {
        let before = self.at.get(key).copied();
        if before.is_some_and(|before| before >= position) {
            return;
        }
        if let Some(before) = before {
            self.order.remove(&(before, key.clone()));
        }
        self.at.insert(key.clone(), position);
        self.order.insert((position, key.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(position: u64) -> StreamPosition {
        StreamPosition::new(position)
    }

    // A key has changed since all positions below its last change, and is marked while its commit is under way.
    #[test]
    fn a_change_is_seen_from_its_begin_on() {
        let changes = LastChanges::new(at(10), 8);
        let key: Arc<str> = "@alice:a".into();
        assert!(!changes.changed_since(&key, at(10)));
        changes.begin(&key);
        assert!(changes.changed_since(&key, at(10)));
        changes.finish(&key, Some(at(12)));
        assert!(changes.changed_since(&key, at(11)));
        assert!(!changes.changed_since(&key, at(12)));
        assert_eq!(changes.keys_since(at(11), 10), Some(vec![key]));
        assert_eq!(changes.keys_since(at(12), 10), Some(vec![]));
    }

    // What a failed commit would have changed is unchanged.
    #[test]
    fn a_failed_commit_changes_nothing() {
        let changes = LastChanges::new(at(0), 8);
        let key: Arc<str> = "k".into();
        changes.begin(&key);
        changes.finish(&key, None);
        assert!(!changes.changed_since(&key, at(0)));
    }

    // Forgotten keys count as changed for everyone who last looked before they changed.
    #[test]
    fn forgotten_keys_count_as_changed() {
        let changes = LastChanges::new(at(0), 2);
        for n in 1..=4u64 {
            let key: Arc<str> = format!("k{n}").into();
            changes.begin(&key);
            changes.finish(&key, Some(at(n)));
        }
        assert!(changes.changed_since("k1", at(1)), "forgotten at position 2, so unknown before it");
        assert!(!changes.changed_since("k1", at(2)));
        assert!(changes.changed_since("k4", at(3)));
        assert_eq!(changes.keys_since(at(1), 10), None);
        assert_eq!(changes.keys_since(at(2), 10).map(|keys| keys.len()), Some(2));
    }
}
