//! Commits: all or nothing, preconditions, bounds.

use hearth_store::{
    Blob, COMMIT_BYTES, COMMIT_ROWS, Commit, CommitError, KEY_MAX, Order, StoreError, StreamPosition, Topic,
    VALUE_MAX,
};

use super::{HEADS, Here, MARKS, PAIRS, STREAM, WORDS};

fn is_conflict<T: std::fmt::Debug>(outcome: Result<T, CommitError>) -> bool {
    matches!(outcome, Err(CommitError::Conflict))
}

pub async fn all_of_a_commit_happens_or_nothing(here: Here) {
    let store = here.store;
    let mut commit = Commit::new();
    commit.put(&HEADS, &1, &1);
    commit.put(&WORDS, &"one".into(), &1);
    store.commit(commit).await.unwrap();
    let mut commit = Commit::new();
    commit.put(&HEADS, &1, &2);
    commit.delete(&WORDS, &"one".into());
    commit.put(&WORDS, &"two".into(), &2);
    commit.expect_absent(&HEADS, &1);
    assert!(is_conflict(store.commit(commit).await));
    assert_eq!(store.get(&HEADS, &1).await.unwrap(), Some(1));
    assert_eq!(store.get(&WORDS, &"one".into()).await.unwrap(), Some(1));
    assert_eq!(store.get(&WORDS, &"two".into()).await.unwrap(), None);
}

pub async fn the_last_write_to_a_key_holds(here: Here) {
    let mut commit = Commit::new();
    commit.put(&HEADS, &1, &1);
    commit.put(&HEADS, &1, &2);
    commit.put(&HEADS, &2, &1);
    commit.delete(&HEADS, &2);
    commit.delete(&HEADS, &3);
    here.store.commit(commit).await.unwrap();
    assert_eq!(here.store.multi_get(&HEADS, &[1, 2, 3]).await.unwrap(), [Some(2), None, None]);
}

pub async fn a_precondition_that_fails_is_a_conflict(here: Here) {
    let store = here.store;
    let step = async |from: Option<u64>, to: u64| {
        let mut commit = Commit::new();
        match from {
            Some(from) => commit.expect(&HEADS, &1, &from),
            None => commit.expect_absent(&HEADS, &1),
        }
        commit.put(&HEADS, &1, &to);
        store.commit(commit).await
    };
    step(None, 5).await.unwrap();
    assert!(is_conflict(step(None, 6).await));
    assert!(is_conflict(step(Some(4), 6).await));
    step(Some(5), 6).await.unwrap();
    assert_eq!(store.get(&HEADS, &1).await.unwrap(), Some(6));
    let stats = store.stats();
    assert_eq!(stats.conflicts, 2);
}

pub async fn preconditions_see_what_was_submitted_before(here: Here) {
    let pending: Vec<_> = (0..200_u64)
        .map(|n| {
            let mut commit = Commit::new();
            match n {
                0 => commit.expect_absent(&HEADS, &1),
                _ => commit.expect(&HEADS, &1, &n),
            }
            commit.put(&HEADS, &1, &(n + 1));
            here.store.submit(commit)
        })
        .collect();
    for pending in pending {
        pending.await.unwrap();
    }
    assert_eq!(here.store.get(&HEADS, &1).await.unwrap(), Some(200));
}

pub async fn what_builds_on_a_refused_commit_is_refused(here: Here) {
    let mut wrong = Commit::new();
    wrong.expect(&HEADS, &1, &77);
    wrong.put(&HEADS, &1, &1);
    let mut on_top = Commit::new();
    on_top.expect(&HEADS, &1, &1);
    on_top.put(&HEADS, &1, &2);
    let (wrong, on_top) = (here.store.submit(wrong), here.store.submit(on_top));
    assert!(is_conflict(wrong.await));
    assert!(is_conflict(on_top.await));
    assert_eq!(here.store.get(&HEADS, &1).await.unwrap(), None);
}

pub async fn merged_commits_are_one(here: Here) {
    let store = here.store;
    let write = |n: u64| {
        let mut commit = Commit::new();
        let slot = commit.position();
        commit.put(&STREAM, &slot, &n);
        commit.put(&HEADS, &n, &n);
        commit.touch(Topic::new(b't', &[1]));
        (commit, slot)
    };
    let ((mut one, first), (two, second)) = (write(1), write(2));
    let second = one.shift(second);
    one.merge(two);
    assert_eq!((one.rows(), one.positions()), (4, 2));
    let done = store.commit(one).await.unwrap();
    let stream = store.range(&STREAM, STREAM.all(), Order::Forward, 10).await.unwrap();
    assert_eq!(stream, [(done.resolve(first), 1), (done.resolve(second), 2)]);
    assert!(done.resolve(first) < done.resolve(second));

    let ((mut one, _), (mut two, _)) = (write(3), write(4));
    two.expect_absent(&HEADS, &1);
    one.merge(two);
    assert!(is_conflict(store.commit(one).await));
    assert_eq!(store.get(&HEADS, &3).await.unwrap(), None);
}

pub async fn a_commit_survives_as_bytes(here: Here) {
    let mut commit = Commit::new();
    let slot = commit.position();
    commit.put(&STREAM, &slot, &9);
    commit.expect_absent(&HEADS, &1);
    commit.touch(Topic::new(b't', &[1]));
    let bytes = commit.to_bytes().unwrap();
    let done = here.store.commit(Commit::from_bytes(&bytes).unwrap()).await.unwrap();
    assert_eq!(here.store.get(&STREAM, &done.first).await.unwrap(), Some(9));
    for length in 0..bytes.len() {
        // What is cut off is an error, or means nothing dangerous.
        if let Ok(commit) = Commit::from_bytes(&bytes[..length]) {
            let _ = here.store.commit(commit).await;
        }
    }
}

pub async fn past_the_bounds_nothing_is_written(here: Here) {
    let store = here.store;
    let too_large = |outcome: Result<_, CommitError>| match outcome {
        Err(CommitError::Store(StoreError::TooLarge { size, limit, .. })) => (size, limit),
        other => panic!("{other:?}"),
    };
    let too_many = |outcome: Result<_, CommitError>| match outcome {
        Err(CommitError::Store(StoreError::CommitTooLarge { size, limit, .. })) => (size, limit),
        other => panic!("{other:?}"),
    };
    let mut commit = Commit::new();
    commit.put(&HEADS, &1, &1);
    commit.put(&PAIRS, &(1, 1), &Blob(vec![0; VALUE_MAX + 1].into()));
    assert_eq!(too_large(store.commit(commit).await), (VALUE_MAX + 1, VALUE_MAX));

    let mut commit = Commit::new();
    commit.put(&HEADS, &1, &1);
    commit.put(&WORDS, &"k".repeat(KEY_MAX), &1);
    assert_eq!(too_large(store.commit(commit).await).1, KEY_MAX);

    let mut commit = Commit::new();
    for n in 0..=COMMIT_ROWS as u64 {
        commit.put(&HEADS, &n, &1);
    }
    assert_eq!(too_many(store.commit(commit).await), (COMMIT_ROWS + 1, COMMIT_ROWS));

    let mut commit = Commit::new();
    for n in 0..180 {
        commit.put(&PAIRS, &(0, n), &Blob(vec![0; VALUE_MAX].into()));
    }
    assert_eq!(too_many(store.commit(commit).await).1, COMMIT_BYTES);
    assert_eq!(store.get(&HEADS, &1).await.unwrap(), None);

    let mut commit = Commit::new();
    for n in 0..COMMIT_ROWS as u64 - 1 {
        commit.put(&HEADS, &n, &1);
    }
    commit.put(&PAIRS, &(1, 1), &Blob(vec![0; VALUE_MAX].into()));
    assert!(!commit.has_room_for(1, 1));
    store.commit(commit).await.unwrap();
}

pub async fn a_commit_without_rows_checks_its_preconditions(here: Here) {
    here.store.commit(Commit::new()).await.unwrap();
    let mut commit = Commit::new();
    commit.expect_absent(&HEADS, &1);
    here.store.commit(commit.clone()).await.unwrap();
    let mut put = Commit::new();
    put.put(&HEADS, &1, &1);
    here.store.commit(put).await.unwrap();
    assert!(is_conflict(here.store.commit(commit).await));
    let mut positions = Commit::new();
    positions.position();
    let done = here.store.commit(positions).await.unwrap();
    assert!(here.store.watermark() >= done.last());
    assert!(done.first > StreamPosition::ZERO);
}

pub async fn one_of_many_rivals_wins(here: Here) {
    let tasks: Vec<_> = (0..32_u64)
        .map(|rival| {
            let store = here.store.clone();
            tokio::spawn(async move {
                for round in 0..20 {
                    let mut commit = Commit::new();
                    commit.expect_absent(&HEADS, &round);
                    commit.put(&HEADS, &round, &rival);
                    let position = commit.position();
                    commit.put(
                        &MARKS,
                        &(round * 100 + rival),
                        &hearth_store::Positioned { position, value: rival },
                    );
                    let _ = store.commit(commit).await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let heads = here.store.range(&HEADS, HEADS.all(), Order::Forward, 100).await.unwrap();
    let marks = here.store.range(&MARKS, MARKS.all(), Order::Forward, 100).await.unwrap();
    let winners: Vec<_> = heads.iter().map(|(round, rival)| round * 100 + rival).collect();
    assert_eq!(winners.len(), 20);
    assert_eq!(marks.iter().map(|(mark, _)| *mark).collect::<Vec<_>>(), winners);
}
