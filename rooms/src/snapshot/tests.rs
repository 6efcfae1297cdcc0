//! State trees against a plain map, and how much they write.

use std::collections::HashMap;

use hearth_store::{Blob, Commit, Store};

use super::*;
use crate::view::Overlay;

/// Numbers that look random and are the same in each run.
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 33) % u64::from(end)) as u32
    }
}

async fn write(store: &Store, writer: &mut SnapshotWriter) -> usize {
    let mut commit = Commit::new();
    let mut bytes = 0;
    for (record, nodes) in writer.take_records() {
        let row = nodes.to_bytes();
        bytes += row.len();
        commit.put(&STATE_NODES, &(RoomSn(1), record), &Blob(row.into()));
        if !commit.has_room_for(10, 100_000) {
            store.commit(std::mem::take(&mut commit)).await.unwrap();
        }
    }
    store.commit(commit).await.unwrap();
    bytes
}

fn key(index: u32) -> StateKeySn {
    if index.is_multiple_of(3) { StateKeySn::other(index / 3) } else { StateKeySn::member(index) }
}

#[tokio::test]
async fn trees_hold_what_a_map_holds_and_differ_where_maps_differ() {
    let store = Store::memory().await;
    let snapshots = Snapshots::new(store.clone(), Overlay::default(), 1 << 20);
    let mut writer = SnapshotWriter::new(snapshots.clone(), RoomSn(1), 1);
    let mut chance = Chance(11);
    let mut history: Vec<(SnapshotId, HashMap<StateKeySn, EventSn>)> =
        vec![(SnapshotId::EMPTY, HashMap::new())];
    for round in 0..400u32 {
        // Mostly on the newest state, sometimes on an old one.
        let base =
            if round % 7 == 0 { chance.below(history.len() as u32) as usize } else { history.len() - 1 };
        let (snapshot, mut map) = history[base].clone();
        let mut changes = Vec::new();
        for _ in 0..=chance.below(12) {
            let key = key(chance.below(600));
            let event = (chance.below(4) != 0).then(|| EventSn(chance.below(1_000_000)));
            changes.push((key, event));
            match event {
                Some(event) => drop(map.insert(key, event)),
                None => drop(map.remove(&key)),
            }
        }
        let changed = writer.apply(snapshot, &changes).await.unwrap();
        if round % 5 == 0 {
            write(&store, &mut writer).await;
        }
        history.push((changed, map));
    }
    write(&store, &mut writer).await;
    for (snapshot, map) in &history {
        let all: HashMap<_, _> = snapshots.all(RoomSn(1), *snapshot).await.unwrap().into_iter().collect();
        assert_eq!(all, *map);
        let key = key(chance.below(600));
        assert_eq!(snapshots.lookup(RoomSn(1), *snapshot, key).await.unwrap(), map.get(&key).copied());
    }
    for _ in 0..200 {
        let (a, of_a) = &history[chance.below(history.len() as u32) as usize];
        let (b, of_b) = &history[chance.below(history.len() as u32) as usize];
        let mut expected: Vec<StateChange> = of_a
            .keys()
            .chain(of_b.keys().filter(|key| !of_a.contains_key(key)))
            .map(|key| StateChange {
                key: *key,
                before: of_a.get(key).copied(),
                after: of_b.get(key).copied(),
            })
            .filter(|change| change.before != change.after)
            .collect();
        let mut found = snapshots.diff(RoomSn(1), *a, *b).await.unwrap();
        expected.sort();
        found.sort();
        assert_eq!(found, expected);
    }
}

#[tokio::test]
async fn a_change_in_a_large_room_writes_little() {
    const MEMBERS: u32 = 20_000;
    let store = Store::memory().await;
    let snapshots = Snapshots::new(store.clone(), Overlay::default(), 1 << 20);
    let mut writer = SnapshotWriter::new(snapshots.clone(), RoomSn(1), 1);
    let everyone: Vec<_> = (0..MEMBERS).map(|n| (StateKeySn::member(n), Some(EventSn(n + 1)))).collect();
    let mut snapshot = writer.apply(SnapshotId::EMPTY, &everyone).await.unwrap();
    write(&store, &mut writer).await;
    let mut chance = Chance(3);
    let (mut bytes, changes) = (0, 500);
    for n in 0..changes {
        let change = (StateKeySn::member(chance.below(MEMBERS)), Some(EventSn(100_000 + n)));
        snapshot = writer.apply(snapshot, &[change]).await.unwrap();
        bytes += write(&store, &mut writer).await;
    }
    let each = bytes / changes as usize;
    assert!(each <= 1200, "{each} bytes of state tree per change");
    assert!(each >= 50, "{each} bytes of state tree per change cannot be all");
}

#[test]
fn damaged_records_are_errors() {
    let mut chance = Chance(5);
    for length in 0..200 {
        let bytes: Vec<u8> = (0..length).map(|_| chance.below(256) as u8).collect();
        let _ = NodeRecord::from_bytes(&bytes);
    }
    assert!(NodeRecord::from_bytes(&[9, 1, 1]).is_err());
    assert!(NodeRecord::from_bytes(&[1, 0x80]).is_err());
}
