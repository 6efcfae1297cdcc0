//! Writers whose every acknowledgement can be checked afterwards, in a child process that may die at any moment.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use bytes::Bytes;
use hearth_store::{
    Blob, Commit, CommitError, Order, Positioned, Record, Space, Store, StoreOptions, StreamPosition, Table,
};
use serde::{Deserialize, Serialize};

const HEADS: Table<u64, u64> = Table::mutable("heads", Space(0x20));
const PARTS: Table<(u64, u64, u64), Blob> = Table::new("parts", Space(0x21));
const DONE: Table<(u64, u64), Positioned<Blob>> = Table::chunked("done", Space(0x22));
const STREAM: Table<StreamPosition, Step> = Table::new("stream", Space(0x23));
/// Large rows that come together, and go together: they make whole segments free at once.
const PILES: Table<(u64, u64), Blob> = Table::new("piles", Space(0x24));
/// Whether there are piles. One row.
const WITH_PILES: Table<(), ()> = Table::new("with_piles", Space(0x25));
const WRITERS: u64 = 12;
/// Writers that have a pile, how many rows it has, in how many steps they come, and after how many it goes.
const PILING: u64 = 4;
const PILE: u64 = 120;
const PILE_GROWS: u64 = 3;
const PILE_EVERY: u64 = 7;
const DIRECTORY: &str = "HEARTH_STORE_TEST_DIRECTORY";
const ONLY_OPEN: &str = "HEARTH_STORE_TEST_ONLY_OPEN";
const PILES_TOO: &str = "HEARTH_STORE_TEST_PILES";

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Step {
    writer: u64,
    number: u64,
}
impl Record for Step {}

/// What a child said is on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acknowledged {
    pub writer: u64,
    pub number: u64,
    pub position: StreamPosition,
}

impl Acknowledged {
    pub fn parse(line: &str) -> Option<Self> {
        let mut words = line.strip_prefix("ack ")?.split(' ').map(|word| word.trim().parse().ok());
        let (writer, number, position) = (words.next()??, words.next()??, words.next()??);
        Some(Self { writer, number, position: StreamPosition::new(position) })
    }
}

/// The whole lines of a child's output that are acknowledgements.
pub fn acknowledged(output: &str) -> Vec<Acknowledged> {
    let whole = output.rfind('\n').map_or("", |end| &output[..end]);
    whole.lines().filter_map(Acknowledged::parse).collect()
}

/// This test binary again, as a child that writes into `directory` until it dies. See [`run_if_child`].
pub fn child(directory: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "writer", "--nocapture"]).env(DIRECTORY, directory);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A child that writes much more, and deletes as much.
#[allow(dead_code, reason = "not every test needs one")]
pub fn piling_child(directory: &Path) -> Command {
    let mut command = child(directory);
    command.env(PILES_TOO, "1");
    command
}

/// A child that only opens the store and closes it.
#[allow(dead_code, reason = "not every test needs one")]
pub fn opening_child(directory: &Path) -> Command {
    let mut command = child(directory);
    command.env(ONLY_OPEN, "1");
    command
}

/// Writes for ever, if this process is such a child. Each test binary has a test `writer` that calls this.
pub fn run_if_child() {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let store = Store::open_sled(Path::new(&directory), options()).await.unwrap();
        say("open");
        if std::env::var_os(ONLY_OPEN).is_some() {
            return store.close().await;
        }
        let piles = std::env::var_os(PILES_TOO).is_some();
        if piles {
            let mut commit = Commit::new();
            commit.put(&WITH_PILES, &(), &());
            store.commit(commit).await.unwrap();
        }
        let write = |writer| tokio::spawn(write(store.clone(), writer, piles && writer < PILING));
        let writers: Vec<_> = (0..WRITERS).map(write).collect();
        for writer in writers {
            writer.await.unwrap();
        }
    });
}

pub fn options() -> StoreOptions {
    StoreOptions { cache_bytes: 4 * 1024 * 1024, disk_reserve: 0 }
}

fn say(line: &str) {
    // One write, past the test harness: a line is said whole or not at all.
    std::io::stdout().write_all(format!("{line}\n").as_bytes()).unwrap();
    std::io::stdout().flush().unwrap();
}

async fn write(store: Store, writer: u64, piles: bool) {
    let mut number = store.get(&HEADS, &writer).await.unwrap().unwrap_or(0);
    loop {
        number += 1;
        let mut commit = step(writer, number);
        if piles {
            pile(&mut commit, writer, number);
        }
        match store.commit(commit).await {
            Ok(done) => say(&format!("ack {writer} {number} {}", done.last())),
            Err(CommitError::Store(error)) => return say(&format!("refused {error}")),
            Err(CommitError::Conflict) => panic!("nobody else writes these rows"),
        }
    }
}

fn step(writer: u64, number: u64) -> Commit {
    let mut commit = Commit::new();
    match number {
        1 => commit.expect_absent(&HEADS, &writer),
        _ => commit.expect(&HEADS, &writer, &(number - 1)),
    }
    commit.put(&HEADS, &writer, &number);
    let position = commit.position();
    commit.put(&STREAM, &position, &Step { writer, number });
    for (part, value) in parts(writer, number).into_iter().enumerate() {
        commit.put(&PARTS, &(writer, number, part as u64), &value);
    }
    // What is old is cut off, so that segments are used again.
    if number > 40 {
        for part in 0..8 {
            commit.delete(&PARTS, &(writer, number - 40, part));
        }
    }
    commit.put(&DONE, &(writer, number % 7), &Positioned { position, value: long(writer, number) });
    commit
}

fn pile(commit: &mut Commit, writer: u64, number: u64) {
    for row in pile_after(number - 1)..pile_after(number) {
        commit.put(&PILES, &(writer, row), &piled(writer, row));
    }
    for row in pile_after(number)..pile_after(number - 1) {
        commit.delete(&PILES, &(writer, row));
    }
}

fn pile_after(number: u64) -> u64 {
    let step = number % PILE_EVERY;
    if step + 1 == PILE_EVERY { 0 } else { step.min(PILE_GROWS) * (PILE / PILE_GROWS) }
}

fn piled(writer: u64, row: u64) -> Blob {
    bytes(noise(writer, row, 300), 5_000)
}

fn noise(writer: u64, number: u64, part: u64) -> u64 {
    let mixed = (writer << 40 ^ number << 8 ^ part).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 16
}

fn bytes(seed: u64, length: u64) -> Blob {
    Blob((0..length).map(|n| (seed >> (n % 5)) as u8 ^ n as u8).collect::<Vec<_>>().into())
}

fn parts(writer: u64, number: u64) -> Vec<Blob> {
    (0..noise(writer, number, 100) % 7)
        .map(|part| noise(writer, number, part))
        .map(|seed| bytes(seed, seed % 700))
        .collect()
}

fn long(writer: u64, number: u64) -> Blob {
    let seed = noise(writer, number, 200);
    bytes(seed, if seed.is_multiple_of(9) { seed % 30_000 } else { seed % 300 })
}

/// Opens the store, and checks that it holds all that was acknowledged, and every commit whole or not at all.
pub async fn check(directory: &Path, acknowledged: &[Acknowledged]) -> u64 {
    let store = Store::open_sled(directory, options()).await.unwrap();
    let (mut expected, mut total) = (BTreeSet::new(), 0);
    for writer in 0..WRITERS {
        let head = store.get(&HEADS, &writer).await.unwrap().unwrap_or(0);
        total += head;
        for number in head.saturating_sub(39).max(1)..=head {
            for (part, value) in parts(writer, number).into_iter().enumerate() {
                expected.insert(((writer, number, part as u64), value.0));
            }
        }
        for number in head.saturating_sub(6).max(1)..=head {
            let done = store.get(&DONE, &(writer, number % 7)).await.unwrap().unwrap();
            assert_eq!(done.value, long(writer, number), "writer {writer}, number {number}");
            let entry = store.get(&STREAM, &done.position).await.unwrap();
            assert_eq!(entry, Some(Step { writer, number }));
        }
    }
    let found = store.range(&PARTS, PARTS.all(), Order::Forward, usize::MAX).await.unwrap();
    let found: BTreeSet<_> = found.into_iter().map(|(key, value)| (key, value.0)).collect();
    let name = |rows: std::collections::btree_set::Difference<'_, _>| -> Vec<(u64, u64, u64)> {
        rows.map(|(key, _): &((u64, u64, u64), Bytes)| *key).collect()
    };
    let (missing, other) = (name(expected.difference(&found)), name(found.difference(&expected)));
    assert!(missing.is_empty() && other.is_empty(), "lacks {missing:?}, has {other:?}");
    let piling = store.get(&WITH_PILES, &()).await.unwrap().map_or(0, |()| PILING);
    for writer in 0..piling {
        let head = store.get(&HEADS, &writer).await.unwrap().unwrap_or(0);
        let piles = PILES.prefix(&(writer,));
        let found = store.range(&PILES, piles, Order::Forward, usize::MAX).await.unwrap();
        assert_eq!(found.len() as u64, pile_after(head), "the pile of writer {writer} after {head}");
        assert!(found.iter().all(|((_, row), value)| *value == piled(writer, *row)));
    }

    let stream = store.range(&STREAM, STREAM.all(), Order::Forward, usize::MAX).await.unwrap();
    assert_eq!(stream.len() as u64, total);
    let last = stream.last().map_or(StreamPosition::ZERO, |(position, _)| *position);
    assert!(store.watermark() >= last);
    let mut heads = vec![0; WRITERS as usize];
    for (_, step) in &stream {
        heads[step.writer as usize] += 1;
        assert_eq!(heads[step.writer as usize], step.number, "the stream has each writer's steps in order");
    }
    let stream: std::collections::BTreeMap<_, _> = stream.into_iter().collect();
    for ack in acknowledged {
        let Acknowledged { writer, number, position } = *ack;
        assert_eq!(stream.get(&position), Some(&Step { writer, number }), "{ack:?} is lost");
    }
    store.close().await;
    total
}
