//! Work that lasts: deleting ranges, staging.

use hearth_store::{Blob, Commit, Order, StagePlan, Store};

use super::{HEADS, Here, PAIRS};

pub async fn fill(store: &Store, first: u64, rows: u64) {
    for start in (0..rows).step_by(500) {
        let mut commit = Commit::new();
        for n in start..(start + 500).min(rows) {
            commit.put(&PAIRS, &(first, n), &Blob(vec![7; 20].into()));
        }
        store.commit(commit).await.unwrap();
    }
}

pub async fn count(store: &Store, first: u64) -> usize {
    store.range(&PAIRS, PAIRS.prefix(&first), Order::Forward, usize::MAX).await.unwrap().len()
}

pub async fn a_deleted_range_is_gone_and_its_neighbours_are_not(here: Here) {
    let store = here.store;
    for first in 1..=3 {
        fill(&store, first, 1200).await;
    }
    store.delete_range(&PAIRS, &PAIRS.prefix(&2_u64)).await.unwrap();
    assert_eq!((count(&store, 1).await, count(&store, 2).await, count(&store, 3).await), (1200, 0, 1200));
    store.delete_range(&PAIRS, &PAIRS.prefix(&9_u64)).await.unwrap();
    let mut watch = store.watch();
    let mut commit = Commit::new();
    commit.put(&HEADS, &1, &1);
    store.commit(commit).await.unwrap();
    store.delete_range(&HEADS, &HEADS.all()).await.unwrap();
    let mut told = 0;
    while told < 2 {
        told += watch.next().await.unwrap().unwrap().keys.len();
    }
}

pub async fn a_range_is_deleted_with_the_commit_that_says_so(here: Here) {
    let store = here.store;
    fill(&store, 1, 700).await;
    let mut refused = Commit::new();
    refused.delete_range_later(&PAIRS, &PAIRS.prefix(&1_u64));
    refused.expect(&HEADS, &1, &1);
    store.commit(refused).await.unwrap_err();
    store.jobs_finished().await.unwrap();
    assert_eq!(count(&store, 1).await, 700);
    let mut commit = Commit::new();
    commit.put(&HEADS, &1, &1);
    commit.delete_range_later(&PAIRS, &PAIRS.prefix(&1_u64));
    store.commit(commit).await.unwrap();
    store.jobs_finished().await.unwrap();
    assert_eq!(count(&store, 1).await, 0);
    assert_eq!(store.get(&HEADS, &1).await.unwrap(), Some(1));
}

pub async fn staged_rows_stay_after_the_flip(here: Here) {
    let store = here.store;
    let staging =
        store.stage(StagePlan::new("a room").covering(&PAIRS, &PAIRS.prefix(&5_u64))).await.unwrap();
    fill(&store, 5, 1500).await;
    let mut flip = Commit::new();
    flip.put(&HEADS, &5, &1500);
    staging.flip(flip).await.unwrap();
    store.jobs_finished().await.unwrap();
    assert_eq!((count(&store, 5).await, store.get(&HEADS, &5).await.unwrap()), (1500, Some(1500)));
}

pub async fn what_is_staged_and_dropped_is_deleted(here: Here) {
    let store = here.store;
    let plan = StagePlan::new("a room").covering(&PAIRS, &PAIRS.prefix(&5_u64));
    let staging = store.stage(plan.covering(&PAIRS, &PAIRS.prefix(&7_u64))).await.unwrap();
    for first in 5..=7 {
        fill(&store, first, 600).await;
    }
    drop(staging);
    store.commit(Commit::new()).await.unwrap();
    store.jobs_finished().await.unwrap();
    assert_eq!((count(&store, 5).await, count(&store, 6).await, count(&store, 7).await), (0, 600, 0));
}

pub async fn a_flip_that_conflicts_leaves_nothing_behind(here: Here) {
    let store = here.store;
    let staging =
        store.stage(StagePlan::new("a room").covering(&PAIRS, &PAIRS.prefix(&5_u64))).await.unwrap();
    fill(&store, 5, 600).await;
    let mut flip = Commit::new();
    flip.expect(&HEADS, &5, &1);
    flip.put(&HEADS, &5, &2);
    staging.flip(flip).await.unwrap_err();
    store.commit(Commit::new()).await.unwrap();
    store.jobs_finished().await.unwrap();
    assert_eq!((count(&store, 5).await, store.get(&HEADS, &5).await.unwrap()), (0, None));
}
