//! Values longer than a row may be.

use hearth_store::{
    Blob, Commit, CommitError, Order, Positioned, Scan, Space, Store, StreamPosition, Table, VALUE_MAX,
};

use super::{Here, LONG, Seeded};

fn key(n: u64) -> (u64, String) {
    (n, format!("k{n}"))
}

async fn put(store: &Store, n: u64, value: &[u8]) {
    let mut commit = Commit::new();
    commit.put(&LONG, &key(n), &Blob(value.to_vec().into()));
    store.commit(commit).await.unwrap();
}

async fn rows(store: &Store) -> usize {
    let scan = Scan { start: &[0x25], end: &[0x26], order: Order::Forward, limit: usize::MAX };
    store.scan(scan).await.unwrap().len()
}

pub async fn a_long_value_comes_back(here: Here) {
    let mut random = Seeded::new(3);
    for length in [0, 1, VALUE_MAX - 2, VALUE_MAX - 1, VALUE_MAX, VALUE_MAX + 1, 65_536, 300_000] {
        let value = random.bytes(length);
        put(&here.store, length as u64, &value).await;
        let found = here.store.get(&LONG, &key(length as u64)).await.unwrap().unwrap();
        assert!(found.0 == value, "a value of {length} bytes");
        let keys = [key(length as u64), key(7)];
        let found = here.store.multi_get(&LONG, &keys).await.unwrap();
        assert_eq!(found[0].as_ref().unwrap().0, value);
        assert_eq!(found[1], None);
    }
    let scan = Scan { start: &[0x25], end: &[0x26], order: Order::Forward, limit: 2 };
    let rows = here.store.scan(scan).await.unwrap();
    assert_eq!(LONG.decode_row(&rows[1].0, &rows[1].1).unwrap().1.0.len(), 1, "a value of one piece");
    const MARKED: Table<u64, Positioned<Blob>> = Table::chunked("marked", Space(0x26));
    let mut commit = Commit::new();
    let position = commit.position();
    let value = Blob(random.bytes(20_000).into());
    commit.put(&MARKED, &1, &Positioned { position, value: value.clone() });
    let done = here.store.commit(commit).await.unwrap();
    let found = here.store.get(&MARKED, &1).await.unwrap().unwrap();
    assert_eq!(found, Positioned { position: done.last(), value });
}

pub async fn long_values_lie_where_their_positions_put_them(here: Here) {
    const STREAM: Table<(u64, StreamPosition), Blob> = Table::chunked("stream", Space(0x27));
    let mut random = Seeded::new(4);
    let mut written = Vec::new();
    for round in 0..3 {
        let mut commit = Commit::new();
        let values = [random.bytes(20_000), random.bytes(10), random.bytes(7_000)];
        for value in &values {
            let position = commit.position();
            commit.put_new(&STREAM, &(9, position), &Blob(value.clone().into()));
        }
        let done = here.store.commit(commit).await.unwrap();
        assert_eq!(done.last().get(), 3 * (round + 1));
        written.extend(values);
    }
    let found = here.store.range(&STREAM, STREAM.prefix(&9_u64), Order::Forward, 100).await.unwrap();
    let found: Vec<_> = found.into_iter().map(|((_, position), value)| (position.get(), value.0)).collect();
    let expected: Vec<_> = (1..).zip(written.into_iter().map(Into::into)).collect();
    assert!(found == expected);
    let last = here.store.get(&STREAM, &(9, StreamPosition::new(7))).await.unwrap();
    assert_eq!(last.unwrap().0.len(), 20_000);
}

pub async fn a_shorter_value_leaves_no_pieces_behind(here: Here) {
    put(&here.store, 1, &[1; 40_000]).await;
    assert_eq!(rows(&here.store).await, 7);
    put(&here.store, 1, &[2; 10_000]).await;
    assert_eq!(rows(&here.store).await, 2);
    assert_eq!(here.store.get(&LONG, &key(1)).await.unwrap().unwrap().0, vec![2; 10_000]);
    put(&here.store, 1, &[3; 10]).await;
    assert_eq!(rows(&here.store).await, 1);
    put(&here.store, 1, &[4; 40_000]).await;
    let mut commit = Commit::new();
    commit.put(&LONG, &key(1), &Blob(vec![5; 30_000].into()));
    commit.delete(&LONG, &key(1));
    here.store.commit(commit).await.unwrap();
    assert_eq!(rows(&here.store).await, 0);
    assert_eq!(here.store.get(&LONG, &key(1)).await.unwrap(), None);
}

pub async fn ranges_see_long_values_once(here: Here) {
    for n in 0..10 {
        put(&here.store, n, &vec![n as u8; n as usize * 4000]).await;
    }
    for limit in [1, 2, 3, 7, 10, 100] {
        let forward = here.store.range(&LONG, LONG.all(), Order::Forward, limit).await.unwrap();
        let numbers: Vec<_> = forward.iter().map(|((n, _), _)| *n).collect();
        assert_eq!(numbers, (0..10).take(limit).collect::<Vec<_>>());
        assert!(forward.iter().all(|((n, _), value)| value.0.len() == *n as usize * 4000));
        let backward = here.store.range(&LONG, LONG.all(), Order::Backward, limit).await.unwrap();
        let numbers: Vec<_> = backward.iter().map(|((n, _), _)| *n).collect();
        assert_eq!(numbers, (0..10).rev().take(limit).collect::<Vec<_>>());
    }
}

pub async fn a_long_value_can_be_a_precondition(here: Here) {
    put(&here.store, 1, &[1; 20_000]).await;
    let step = async |expected: Vec<u8>| {
        let mut commit = Commit::new();
        commit.expect(&LONG, &key(1), &Blob(expected.into()));
        commit.put(&LONG, &key(1), &Blob(vec![2; 20_000].into()));
        here.store.commit(commit).await
    };
    let mut other = vec![1; 20_000];
    other[19_999] = 0;
    assert!(matches!(step(other).await, Err(CommitError::Conflict)));
    step(vec![1; 20_000]).await.unwrap();
    assert!(matches!(step(vec![1; 20_000]).await, Err(CommitError::Conflict)));
}

pub async fn a_reader_never_sees_half_of_an_overwriting(here: Here) {
    put(&here.store, 1, &[0; 30_000]).await;
    let writer = tokio::spawn({
        let store = here.store.clone();
        async move {
            for n in 1..100_u64 {
                put(&store, 1, &vec![n as u8; 12_000 + (n as usize * 7919) % 30_000]).await;
            }
        }
    });
    while !writer.is_finished() {
        let value = here.store.get(&LONG, &key(1)).await.unwrap().unwrap().0;
        assert!(value.iter().all(|byte| *byte == value[0]));
        tokio::task::yield_now().await;
    }
    writer.await.unwrap();
}
