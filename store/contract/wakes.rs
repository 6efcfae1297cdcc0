//! Wake-ups: what a durable group tells.

use std::time::Duration;

use hearth_store::{Commit, Order, Scan, Topic};
use tokio::time::timeout;

use super::{HEADS, Here, STREAM};

const PATIENCE: Duration = Duration::from_secs(10);

fn room(n: u64) -> Topic {
    Topic::new(b'r', &n.to_be_bytes())
}

pub async fn a_watcher_learns_topics_and_positions_in_order(here: Here) {
    let mut watch = here.store.watch();
    let mut expected = Vec::new();
    let pending: Vec<_> = (0..50_u64)
        .map(|n| {
            let mut commit = Commit::new();
            let position = commit.position();
            commit.put(&STREAM, &position, &n);
            commit.touch(room(n % 7));
            commit.touch(room(n % 7));
            commit.touch(Topic::new(b'u', b"@a:b"));
            here.store.submit(commit)
        })
        .collect();
    for (n, pending) in pending.into_iter().enumerate() {
        let position = pending.await.unwrap().last();
        expected.push((room(n as u64 % 7), position));
        expected.push((Topic::new(b'u', b"@a:b"), position));
    }
    let mut told = Vec::new();
    while told.len() < expected.len() {
        let wake = timeout(PATIENCE, watch.next()).await.unwrap().unwrap().unwrap();
        assert!(wake.touched.iter().all(|(_, position)| *position <= wake.upto));
        assert!(here.store.watermark() >= wake.upto, "what is told is durable");
        told.extend(wake.touched.iter().cloned());
    }
    assert_eq!(told, expected);
    assert_eq!((told[1].0.tag(), told[1].0.id()), (b'u', &b"@a:b"[..]));
}

pub async fn who_says_what_it_waits_for_learns_only_that(here: Here) {
    let gone = here.store.watch_for(|_| panic!("nobody waits for it any more"));
    drop(gone);
    let mut watch = here.store.watch_for(|wake| wake.touched.iter().any(|(topic, _)| *topic == room(3)));
    let mut told = Vec::new();
    for n in 0..20_u64 {
        let mut commit = Commit::new();
        commit.put(&HEADS, &n, &1);
        commit.touch(room(n % 7));
        let position = here.store.commit(commit).await.unwrap().last();
        if n % 7 == 3 {
            let wake = timeout(PATIENCE, watch.next()).await.unwrap().unwrap().unwrap();
            assert_eq!(wake.touched, [(room(3), position)]);
            told.push(n);
        }
    }
    assert_eq!(told, [3, 10, 17]);
    here.store.close().await;
    assert!(timeout(PATIENCE, watch.next()).await.unwrap().is_none(), "nothing else, and the end");
}

pub async fn a_refused_commit_wakes_nobody(here: Here) {
    let mut watch = here.store.watch();
    let mut refused = Commit::new();
    refused.touch(room(1));
    refused.put(&HEADS, &1, &1);
    refused.expect(&HEADS, &1, &1);
    here.store.commit(refused).await.unwrap_err();
    let mut done = Commit::new();
    done.touch(room(2));
    done.put(&HEADS, &2, &1);
    here.store.commit(done).await.unwrap();
    loop {
        let wake = timeout(PATIENCE, watch.next()).await.unwrap().unwrap().unwrap();
        assert!(wake.touched.iter().all(|(topic, _)| *topic == room(2)));
        if !wake.touched.is_empty() {
            let keys: Vec<_> = wake.keys.iter().map(|key| HEADS.key_of(key).unwrap().unwrap()).collect();
            assert_eq!(keys, [2]);
            break;
        }
    }
}

pub async fn mutable_keys_are_told(here: Here) {
    let mut watch = here.store.watch();
    let mut commit = Commit::new();
    commit.put(&HEADS, &3, &1);
    commit.put(&HEADS, &4, &1);
    commit.put(&HEADS, &3, &2);
    commit.delete(&HEADS, &5);
    let position = commit.position();
    commit.put(&STREAM, &position, &1);
    here.store.commit(commit).await.unwrap();
    let wake = timeout(PATIENCE, watch.next()).await.unwrap().unwrap().unwrap();
    let mut keys: Vec<_> = wake.keys.iter().map(|key| HEADS.key_of(key).unwrap().unwrap()).collect();
    keys.sort_unstable();
    assert_eq!(keys, [3, 4, 5]);
    assert!(STREAM.key_of(&wake.keys[0]).is_none());
}

pub async fn the_keys_of_mutable_rows_are_carried_and_not_stored(here: Here) {
    let own_rows = async || {
        let scan = Scan { start: &[0], end: &[0x10], order: Order::Forward, limit: usize::MAX };
        here.store.scan(scan).await.unwrap().into_iter().map(|(key, _)| key.to_vec()).collect::<Vec<_>>()
    };
    here.store.commit(heads(0, 900)).await.unwrap();
    let before = own_rows().await;
    let mut watch = here.store.watch();
    for n in 0..20 {
        here.store.commit(heads(n, 1)).await.unwrap();
        let wake = timeout(PATIENCE, watch.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(HEADS.key_of(&wake.keys[0]).unwrap().unwrap(), n);
    }
    assert_eq!(own_rows().await, before);
}

fn heads(first: u64, count: u64) -> Commit {
    let mut commit = Commit::new();
    for n in first..first + count {
        commit.put(&HEADS, &n, &1);
    }
    commit
}

pub async fn a_slow_watcher_is_told_that_it_missed_something(here: Here) {
    let mut slow = here.store.watch();
    for n in 0..400 {
        let mut commit = Commit::new();
        commit.put(&HEADS, &n, &1);
        commit.touch(room(n));
        here.store.commit(commit).await.unwrap();
    }
    let lagged = timeout(PATIENCE, slow.next()).await.unwrap().unwrap().unwrap_err();
    assert!(lagged.missed > 0);
    assert!(timeout(PATIENCE, slow.next()).await.unwrap().unwrap().is_ok(), "then it goes on");
}

pub async fn a_watcher_ends_with_the_store(here: Here) {
    let mut watch = here.store.watch();
    here.store.close().await;
    assert!(timeout(PATIENCE, watch.next()).await.unwrap().is_none());
}
