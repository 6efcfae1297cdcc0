//! What a store on a disk keeps over a restart.

use hearth_store::{Blob, Commit, CommitError, Order, StagePlan, Store, StoreError, StreamPosition};

use super::jobs::{count, fill};
use super::{HEADS, PAIRS, Place, STREAM, Seeded};

fn streamed(n: u64) -> Commit {
    let mut commit = Commit::new();
    let position = commit.position();
    commit.put(&STREAM, &position, &n);
    commit.put(&HEADS, &0, &n);
    commit
}

pub async fn what_was_committed_is_there_after_reopening() {
    let mut here = Place::directory().open().await;
    let mut random = Seeded::new(5);
    let mut rows = std::collections::BTreeMap::new();
    for _ in 0..4 {
        for _ in 0..50 {
            let mut commit = Commit::new();
            for _ in 0..20 {
                let key = (random.below(10), random.below(100));
                if random.below(4) == 0 {
                    commit.delete(&PAIRS, &key);
                    rows.remove(&key);
                } else {
                    let length = random.below(2000) as usize;
                    let value = Blob(random.bytes(length).into());
                    commit.put(&PAIRS, &key, &value);
                    rows.insert(key, value);
                }
            }
            here.store.commit(commit).await.unwrap();
        }
        here = here.reopen().await;
        let found = here.store.range(&PAIRS, PAIRS.all(), Order::Forward, usize::MAX).await.unwrap();
        assert!(found.iter().map(|(key, value)| (key, value)).eq(rows.iter()));
    }
    assert_eq!(here.store.epoch(), 1);
}

pub async fn positions_go_on_after_reopening() {
    let mut here = Place::directory().open().await;
    let mut last = StreamPosition::ZERO;
    for _ in 0..5 {
        for n in 0..20 {
            let done = here.store.commit(streamed(n)).await.unwrap();
            assert!(done.first > last);
            last = done.last();
        }
        here = here.reopen().await;
        assert_eq!(here.store.watermark(), last);
    }
    let stream = here.store.range(&STREAM, STREAM.all(), Order::Forward, 1000).await.unwrap();
    assert_eq!(stream.len(), 100);
}

pub async fn deleting_goes_on_after_reopening() {
    let mut here = Place::directory().open().await;
    fill(&here.store, 1, 20_000).await;
    fill(&here.store, 2, 10).await;
    let mut commit = Commit::new();
    commit.delete_range_later(&PAIRS, &PAIRS.prefix(&1_u64));
    here.store.commit(commit).await.unwrap();
    here = here.reopen().await;
    assert!(count(&here.store, 1).await > 0, "the store was closed before all was deleted");
    here.store.jobs_finished().await.unwrap();
    assert_eq!((count(&here.store, 1).await, count(&here.store, 2).await), (0, 10));
}

pub async fn staged_rows_without_a_flip_are_swept_on_opening() {
    let mut here = Place::directory().open().await;
    let staging =
        here.store.stage(StagePlan::new("a room").covering(&PAIRS, &PAIRS.prefix(&1_u64))).await.unwrap();
    fill(&here.store, 1, 2000).await;
    fill(&here.store, 2, 10).await;
    // As after a crash: nobody drops it.
    std::mem::forget(staging);
    let Place::Directory(dir) = &here.place else { panic!("a store on a disk") };
    let copy = tempfile::tempdir().unwrap();
    copy_directory(&dir.path().join("store"), &copy.path().join("store"));
    here = Place::Directory(copy).open().await;
    here.store.jobs_finished().await.unwrap();
    assert_eq!((count(&here.store, 1).await, count(&here.store, 2).await), (0, 10));
}

pub async fn closing_finishes_what_is_queued_and_refuses_the_rest() {
    let here = Place::directory().open().await;
    let pending: Vec<_> = (0..100).map(|n| here.store.submit(streamed(n))).collect();
    let clone = here.store.clone();
    let here = here.reopen_beside(clone).await;
    for pending in pending {
        pending.await.unwrap();
    }
    let stream = here.store.range(&STREAM, STREAM.all(), Order::Forward, 1000).await.unwrap();
    assert_eq!(stream.len(), 100);
}

impl super::Here {
    /// Closes the store while somebody still holds it, then opens it again.
    async fn reopen_beside(self, held: Store) -> Self {
        self.store.close().await;
        let refused = held.commit(streamed(1)).await;
        assert!(matches!(refused, Err(CommitError::Store(StoreError::Closed))), "{refused:?}");
        assert!(held.get(&HEADS, &0).await.unwrap().is_some(), "reads go on");
        drop(held);
        self.place.open().await
    }
}

pub fn copy_directory(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_directory(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
