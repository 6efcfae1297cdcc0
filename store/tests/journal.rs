//! After a crash the journal has what the engine had not on its disk yet.
//!
//! A copy of the files of an open store is what a killed process leaves behind.

#![allow(clippy::unwrap_used, reason = "a test that fails may panic")]

use std::path::{Path, PathBuf};

use hearth_store::{Blob, Commit, Order, Space, Store, StoreError, StoreOptions, Table};

const ROWS: Table<u64, Blob> = Table::new("rows", Space(0x40));
const MORE: Table<u64, Blob> = Table::new("more", Space(0x42));
const NUMBER: Table<(), u64> = Table::new("number", Space(0x41));
const BLOCK: usize = 4096;

/// Each step overwrites what the one before wrote, and deletes what an older one did.
fn step(n: u64, length: usize) -> Commit {
    let mut commit = Commit::new();
    commit.position();
    commit.put(&NUMBER, &(), &n);
    commit.put(&ROWS, &n, &Blob(vec![n as u8; length].into()));
    if n > 10 {
        commit.delete(&ROWS, &(n - 10));
    }
    commit
}

async fn steps(store: &Store, numbers: std::ops::RangeInclusive<u64>) {
    for n in numbers {
        store.commit(step(n, 100)).await.unwrap();
    }
}

/// That all steps up to `last` happened, each whole, and nothing else.
async fn is_at(store: &Store, last: u64) {
    assert_eq!(store.get(&NUMBER, &()).await.unwrap(), Some(last));
    assert_eq!(store.watermark().get(), last);
    let rows = store.range(&ROWS, ROWS.all(), Order::Forward, 1000).await.unwrap();
    let numbers: Vec<u64> = rows.iter().map(|(n, _)| *n).collect();
    assert_eq!(numbers, (last.saturating_sub(9).max(1)..=last).collect::<Vec<_>>());
    assert!(rows.iter().all(|(n, value)| value.0.iter().all(|byte| *byte == *n as u8)));
}

async fn open(path: &Path) -> Result<Store, StoreError> {
    Store::open_sled(path, StoreOptions { cache_bytes: 4 * 1024 * 1024, disk_reserve: 0 }).await
}

/// Where the store is, and where its copies go.
struct Disk(tempfile::TempDir);

impl Disk {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn store(&self) -> PathBuf {
        self.0.path().join("store")
    }

    /// What a crash now would leave behind.
    fn crash(&self, name: &str) -> PathBuf {
        let to = self.0.path().join(name);
        copy(&self.store(), &to);
        to
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to.join(entry.file_name())),
            false => _ = std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap(),
        }
    }
}

/// Flips a bit in the nth record of a journal with records of one block.
fn damage(path: &Path, record: usize) {
    let journal = path.join("journal");
    let mut bytes = std::fs::read(&journal).unwrap();
    bytes[record * BLOCK + 30] ^= 1;
    std::fs::write(journal, bytes).unwrap();
}

#[tokio::test]
async fn what_only_the_journal_has_is_there_after_a_crash() {
    let disk = Disk::new();
    let store = open(&disk.store()).await.unwrap();
    steps(&store, 1..=50).await;
    let crashed = disk.crash("crashed");
    let log = std::fs::read(crashed.join("sled/db")).unwrap();
    assert!(!log.windows(100).any(|window| window == [50; 100]), "sled has not been flushed");
    let again = open(&crashed).await.unwrap();
    is_at(&again, 50).await;
    steps(&again, 51..=60).await;
    is_at(&again, 60).await;
    again.close().await;
    is_at(&open(&crashed).await.unwrap(), 60).await;
}

#[tokio::test]
async fn crashes_that_follow_each_other_lose_nothing() {
    let disk = Disk::new();
    open(&disk.store()).await.unwrap().close().await;
    for round in 0..5 {
        let store = open(&disk.store()).await.unwrap();
        if round > 0 {
            is_at(&store, round * 7).await;
        }
        steps(&store, round * 7 + 1..=round * 7 + 7).await;
        let crashed = disk.crash("crashed");
        store.close().await;
        std::fs::remove_dir_all(disk.store()).unwrap();
        std::fs::rename(crashed, disk.store()).unwrap();
    }
}

#[tokio::test]
async fn a_journal_that_the_engine_is_ahead_of_changes_nothing() {
    let disk = Disk::new();
    let store = open(&disk.store()).await.unwrap();
    steps(&store, 1..=30).await;
    let crashed = disk.crash("crashed");
    steps(&store, 31..=40).await;
    store.close().await;
    // As if the process had died between the flush of the engine and the next record.
    std::fs::copy(crashed.join("journal"), disk.store().join("journal")).unwrap();
    is_at(&open(&disk.store()).await.unwrap(), 40).await;
}

#[tokio::test]
async fn a_full_journal_is_written_from_its_beginning() {
    let disk = Disk::new();
    let store = open(&disk.store()).await.unwrap();
    // As long as a record gets: more than forty of them do not fit.
    for n in 1..=60 {
        let mut commit = step(n, 100);
        for row in 0..20 {
            commit.put(&MORE, &row, &Blob(vec![n as u8; 5000].into()));
        }
        store.commit(commit).await.unwrap();
        if n % 7 == 0 {
            let again = open(&disk.crash(&format!("crashed{n}"))).await.unwrap();
            is_at(&again, n).await;
            let more = again.range(&MORE, MORE.all(), Order::Forward, 100).await.unwrap();
            assert!(more.len() == 20 && more.iter().all(|(_, value)| value.0 == vec![n as u8; 5000]));
        }
    }
    // Longer than any record: the engine takes it by itself, and the journal goes on behind it.
    for n in 61..=62 {
        let mut commit = step(n, 100);
        for row in 0..100 {
            commit.put(&MORE, &row, &Blob(vec![n as u8; 5000].into()));
        }
        store.commit(commit).await.unwrap();
        is_at(&open(&disk.crash(&format!("crashed{n}"))).await.unwrap(), n).await;
    }
    steps(&store, 63..=70).await;
    is_at(&open(&disk.crash("last")).await.unwrap(), 70).await;
    let length = std::fs::metadata(disk.store().join("journal")).unwrap().len();
    assert!(
        length > 4_000_000 && length <= 4 * 1024 * 1024,
        "it was full, and stays within its bound: {length}"
    );
}

#[tokio::test]
async fn a_torn_end_is_cut() {
    let disk = Disk::new();
    let store = open(&disk.store()).await.unwrap();
    steps(&store, 1..=12).await;
    let crashed = disk.crash("crashed");
    damage(&crashed, 12);
    // It had been acknowledged: that is noticed.
    let error = open(&crashed).await.unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
    assert!(error.to_string().contains(&*crashed.to_string_lossy()), "{error}");
    // In a power cut it was not, and the note is older.
    std::fs::remove_file(crashed.join("reached")).unwrap();
    let again = open(&crashed).await.unwrap();
    is_at(&again, 11).await;
    steps(&again, 12..=20).await;
    again.close().await;
    is_at(&open(&crashed).await.unwrap(), 20).await;
}

#[tokio::test]
async fn what_is_damaged_before_the_last_record_is_an_error_that_names_the_file() {
    let disk = Disk::new();
    let store = open(&disk.store()).await.unwrap();
    steps(&store, 1..=12).await;
    let crashed = disk.crash("crashed");
    damage(&crashed, 5);
    std::fs::remove_file(crashed.join("reached")).unwrap();
    for _ in 0..2 {
        let error = open(&crashed).await.unwrap_err();
        assert!(
            matches!(&error, StoreError::Damaged { path, .. } if *path == crashed.join("journal")),
            "{error}"
        );
        assert!(error.to_string().contains(&format!("byte {}", 5 * BLOCK)), "{error}");
    }
    // As the message says.
    std::fs::remove_file(crashed.join("journal")).unwrap();
    is_at(&open(&crashed).await.unwrap(), 4).await;
}

/// sled says that it has all, but nobody has seen to it that it is on the disk.
#[tokio::test]
async fn what_is_damaged_before_the_last_record_is_an_error_also_where_the_engine_seems_to_have_it() {
    let disk = Disk::new();
    let store = open(&disk.store()).await.unwrap();
    steps(&store, 1..=12).await;
    store.close().await;
    let journal = disk.store().join("journal");
    let whole = std::fs::read(&journal).unwrap();
    damage(&disk.store(), 5);
    for _ in 0..2 {
        let error = open(&disk.store()).await.unwrap_err();
        assert!(matches!(&error, StoreError::Damaged { path, .. } if *path == journal), "{error}");
        assert!(error.to_string().contains(&format!("byte {}", 5 * BLOCK)), "{error}");
    }
    std::fs::write(&journal, whole).unwrap();
    let store = open(&disk.store()).await.unwrap();
    is_at(&store, 12).await;
    // From then on sled has it on the disk, and the journal is not needed.
    store.close().await;
    damage(&disk.store(), 5);
    let store = open(&disk.store()).await.unwrap();
    is_at(&store, 12).await;
    steps(&store, 13..=20).await;
    store.close().await;
    is_at(&open(&disk.store()).await.unwrap(), 20).await;
}

#[tokio::test]
async fn a_journal_of_somebody_else_is_an_error_that_names_the_file() {
    let disk = Disk::new();
    let store = open(&disk.store()).await.unwrap();
    steps(&store, 1..=3).await;
    store.close().await;
    let journal = disk.store().join("journal");
    std::fs::write(&journal, "dear diary").unwrap();
    let error = open(&disk.store()).await.unwrap_err();
    assert!(matches!(&error, StoreError::Damaged { path, .. } if *path == journal), "{error}");
    assert_eq!(std::fs::read(&journal).unwrap(), b"dear diary");
}

#[tokio::test]
async fn a_journal_that_is_gone_with_commits_is_noticed() {
    let disk = Disk::new();
    let store = open(&disk.store()).await.unwrap();
    steps(&store, 1..=3).await;
    let crashed = disk.crash("crashed");
    std::fs::remove_file(crashed.join("journal")).unwrap();
    let error = open(&crashed).await.unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
    // After closing there is nothing in it that is needed.
    store.close().await;
    std::fs::remove_file(disk.store().join("journal")).unwrap();
    is_at(&open(&disk.store()).await.unwrap(), 3).await;
}
