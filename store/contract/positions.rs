//! Stream positions: late-bound, only growing, and the watermark.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use hearth_store::{
    Commit, CommitError, Desc, Order, Positioned, Record, Space, Store, StoreError, StreamPosition, Table,
};
use serde::{Deserialize, Serialize};

use super::{HEADS, Here, MARKS, STREAM};

fn streamed(n: u64) -> Commit {
    let mut commit = Commit::new();
    let position = commit.position();
    commit.put(&STREAM, &position, &n);
    commit
}

async fn stream(store: &Store, upto: StreamPosition) -> Vec<(StreamPosition, u64)> {
    store.range(&STREAM, STREAM.all().up_to(&upto), Order::Forward, usize::MAX).await.unwrap()
}

pub async fn positions_only_grow_in_the_order_of_submission(here: Here) {
    let pending: Vec<_> = (0..300).map(|n| here.store.submit(streamed(n))).collect();
    let mut last = StreamPosition::ZERO;
    for pending in pending {
        let done = pending.await.unwrap();
        assert!(done.first > last);
        assert_eq!(done.count, 1);
        last = done.last();
    }
    let numbers: Vec<_> =
        stream(&here.store, StreamPosition::MAX).await.into_iter().map(|(_, n)| n).collect();
    assert_eq!(numbers, (0..300).collect::<Vec<_>>());
}

pub async fn slots_are_filled_in_keys_and_values(here: Here) {
    let mut commit = Commit::new();
    let (one, two) = (commit.position(), commit.position());
    commit.put(&STREAM, &two, &2);
    commit.put(&STREAM, &one, &1);
    commit.put(&MARKS, &5, &Positioned { position: two, value: 5 });
    let done = here.store.commit(commit).await.unwrap();
    assert_eq!(done.count, 2);
    assert_eq!(stream(&here.store, done.last()).await, [(done.resolve(one), 1), (done.resolve(two), 2)]);
    let mark = here.store.get(&MARKS, &5).await.unwrap().unwrap();
    assert_eq!(mark, Positioned { position: done.resolve(two), value: 5 });
    // A position that is known is as good as any other bytes.
    let mut commit = Commit::new();
    commit.expect(&MARKS, &5, &mark);
    here.store.commit(commit).await.unwrap();
}

pub async fn descending_slots_are_filled(here: Here) {
    const NEWEST: Table<(u64, Desc<StreamPosition>), u64> = Table::new("newest", Space(0x31));
    for n in 0..5_u64 {
        let mut commit = Commit::new();
        let position = commit.position();
        let mut other = Commit::new();
        let others = other.position();
        other.put(&NEWEST, &(1, Desc(others)), &(n + 100));
        commit.put(&NEWEST, &(1, Desc(position)), &n);
        commit.merge(other);
        here.store.commit(commit).await.unwrap();
    }
    let rows = here.store.range(&NEWEST, NEWEST.prefix(&1_u64), Order::Forward, 3).await.unwrap();
    assert_eq!(rows.iter().map(|(_, n)| *n).collect::<Vec<_>>(), [104, 4, 103]);
    assert_eq!(rows[0].0.1.0, here.store.watermark());
}

pub async fn a_refused_commit_shows_no_position(here: Here) {
    let first = here.store.commit(streamed(1)).await.unwrap();
    let mut refused = streamed(2);
    refused.expect(&HEADS, &1, &1);
    here.store.commit(refused).await.unwrap_err();
    assert!(here.store.watermark() >= first.last());
    let second = here.store.commit(streamed(3)).await.unwrap();
    assert!(second.first > first.first);
    assert_eq!(stream(&here.store, StreamPosition::MAX).await, [(first.first, 1), (second.first, 3)]);
    assert_eq!(here.store.watermark(), second.last());
}

pub async fn a_reader_up_to_the_watermark_misses_nothing(here: Here) {
    let (store, stop) = (here.store.clone(), Arc::new(AtomicBool::new(false)));
    let writers: Vec<_> = (0..8_u64)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                for n in 0..100 {
                    store.commit(streamed(writer * 1000 + n)).await.unwrap();
                }
            })
        })
        .collect();
    let reader = tokio::spawn({
        let (store, stop) = (store.clone(), stop.clone());
        async move {
            let mut seen = Vec::new();
            let mut before = StreamPosition::ZERO;
            while !stop.load(SeqCst) {
                let upto = store.watermark();
                assert!(upto >= before);
                let range = STREAM.all().after(&before).up_to(&upto);
                seen.extend(store.range(&STREAM, range, Order::Forward, usize::MAX).await.unwrap());
                before = upto;
                tokio::task::yield_now().await;
            }
            (before, seen)
        }
    });
    for writer in writers {
        writer.await.unwrap();
    }
    stop.store(true, SeqCst);
    let (upto, seen) = reader.await.unwrap();
    assert_eq!(seen, stream(&store, upto).await, "read in steps and read at once are the same");
    let all = stream(&store, StreamPosition::MAX).await;
    assert_eq!(all.len(), 800);
    assert_eq!(all.iter().map(|(position, _)| *position).collect::<BTreeSet<_>>().len(), 800);
}

pub async fn what_is_answered_is_below_the_watermark(here: Here) {
    for n in 0..20 {
        let done = here.store.commit(streamed(n)).await.unwrap();
        assert!(here.store.watermark() >= done.last());
    }
}

pub async fn waiting_for_a_position_ends_when_it_is_durable(here: Here) {
    let next = here.store.watermark().next();
    let waiting = tokio::spawn({
        let store = here.store.clone();
        async move {
            store.durable(next).await;
            assert!(store.watermark() >= next);
        }
    });
    tokio::task::yield_now().await;
    let done = here.store.commit(streamed(1)).await.unwrap();
    assert!(done.last() >= next);
    waiting.await.unwrap();
    here.store.durable(done.last()).await;

    // What is visible is durable after a moment, whether it carries a position or not.
    let mut commit = Commit::new();
    commit.put(&HEADS, &1, &1);
    let mut pending = here.store.submit(commit);
    while here.store.get(&HEADS, &1).await.unwrap().is_none() {
        tokio::task::yield_now().await;
    }
    here.store.settled().await;
    // The answer follows at once.
    tokio::time::timeout(std::time::Duration::from_secs(5), &mut pending).await.unwrap().unwrap();
    here.store.settled().await;
}

pub async fn a_precondition_on_an_open_position_is_refused(here: Here) {
    let invalid = |outcome| matches!(outcome, Err(CommitError::Store(StoreError::Invalid(_))));
    let mut commit = Commit::new();
    let position = commit.position();
    commit.expect(&MARKS, &1, &Positioned { position, value: 1 });
    assert!(invalid(here.store.commit(commit).await));
    let mut commit = Commit::new();
    let position = commit.position();
    commit.expect_absent(&STREAM, &position);
    assert!(invalid(here.store.commit(commit).await));
}

pub async fn a_slot_inside_a_record_is_refused(here: Here) {
    #[derive(Serialize, Deserialize)]
    struct Cursor {
        at: StreamPosition,
    }
    impl Record for Cursor {}
    const CURSORS: Table<u64, Cursor> = Table::new("cursors", Space(0x32));
    let mut commit = Commit::new();
    let at = commit.position();
    commit.put(&CURSORS, &1, &Cursor { at });
    let error = here.store.commit(commit).await.unwrap_err();
    assert!(
        matches!(&error, CommitError::Store(StoreError::Invalid(reason)) if reason.contains("cursors")),
        "{error}"
    );
    let mut commit = Commit::new();
    commit.put(&CURSORS, &1, &Cursor { at: StreamPosition::new(300) });
    here.store.commit(commit).await.unwrap();
    assert_eq!(here.store.get(&CURSORS, &1).await.unwrap().unwrap().at.get(), 300);
}
