//! Commits a second and flush group sizes, with one and with many committers, on sled; and what lone commits cost
//! that come now and then, as on a server that is not busy.
//!
//! `cargo bench -p hearth-store` with `TMPDIR` on the disk to be measured. `CACHE_MIB` sets another cache size;
//! `COMMITTERS=64 SECONDS=10` runs only that, `PACE=200 SECONDS=10` only that many lone commits a second.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hearth_store::{
    Blob, Commit, Order, Positioned, Space, Store, StoreOptions, StreamPosition, Table, Topic,
};

// As in the server.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const BODIES: Table<(u64, u64), Positioned<Blob>> = Table::chunked("bodies", Space(0x10));
const HEADS: Table<u64, u64> = Table::mutable("heads", Space(0x11));
const STREAM: Table<StreamPosition, (u64, u64)> = Table::new("stream", Space(0x12));
const INDEX: Table<(u64, u8, u64), ()> = Table::new("index", Space(0x13));

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let dir = tempfile::tempdir().expect("a directory");
        let mut options = StoreOptions::default();
        if let Some(mib) = setting("CACHE_MIB") {
            options.cache_bytes = mib * 1024 * 1024;
        }
        let store = Store::open_sled(dir.path(), options).await.expect("a store");
        println!("idle after opening: {} KiB resident", resident_kib());
        flush_alone(dir.path());
        match (setting("COMMITTERS"), setting("PACE")) {
            (Some(committers), _) => commits(&store, committers).await,
            (None, Some(pace)) => paced(&store, pace).await,
            (None, None) => {
                paced(&store, 200).await;
                for committers in [1, 8, 64, 256] {
                    commits(&store, committers).await;
                }
                reads(&store).await;
            }
        }
        println!("at the end: {} KiB resident", resident_kib());
    });
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// What the disk takes for a small write by itself.
fn flush_alone(dir: &std::path::Path) {
    use std::io::Write;
    let mut file = std::fs::File::create(dir.join("probe")).expect("a file");
    let mut took = Vec::new();
    for _ in 0..200 {
        let start = Instant::now();
        file.write_all(&[7; 2000]).expect("space");
        file.sync_data().expect("a disk");
        took.push(start.elapsed());
    }
    took.sort();
    println!("write and fdatasync alone: p50 {:?}", took[100]);
}

/// One commit at a time, so many a second.
async fn paced(store: &Store, pace: u64) {
    const ROOM: u64 = u64::MAX;
    let count = pace * setting("SECONDS").unwrap_or(4);
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / pace as u32);
    let (before, mut took) = (cpu_of_threads(), Vec::new());
    for n in 0..count {
        ticks.tick().await;
        let began = Instant::now();
        store.commit(message(ROOM, n)).await.expect("a commit");
        took.push(began.elapsed());
    }
    took.sort();
    let after = cpu_of_threads();
    let spent = |names: &dyn Fn(&str) -> bool| {
        let sum = |times: &BTreeMap<(u64, String), Duration>| -> Duration {
            times.iter().filter(|((_, name), _)| names(name)).map(|(_, time)| *time).sum()
        };
        (sum(&after) - sum(&before)).as_secs_f64() * 1e6 / count as f64
    };
    println!(
        "{pace} lone commits/s: p50 {:?}, p99 {:?}, max {:?}, {:.0} µs CPU each, of which committing {:.0}, sled {:.0}",
        took[took.len() / 2],
        took[took.len() * 99 / 100],
        took[took.len() - 1],
        spent(&|_| true),
        spent(&|name| name.starts_with("store-")),
        spent(&|name| name.starts_with("sled-")),
    );
}

async fn commits(store: &Store, committers: u64) {
    let (before, cpu) = (store.stats(), cpu_time());
    let start = Instant::now();
    let tasks: Vec<_> = (0..committers)
        .map(|room| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut took = Vec::new();
                let room = committers * 1000 + room;
                for n in 0.. {
                    if start.elapsed() > Duration::from_secs(setting("SECONDS").unwrap_or(4)) {
                        break;
                    }
                    let began = Instant::now();
                    store.commit(message(room, n)).await.expect("a commit");
                    took.push(began.elapsed());
                }
                took
            })
        })
        .collect();
    let mut took = Vec::new();
    for task in tasks {
        took.extend(task.await.expect("a task"));
    }
    took.sort();
    let (stats, elapsed, cpu) = (store.stats(), start.elapsed(), cpu_time() - cpu);
    let commits = stats.commits - before.commits;
    let flushes = stats.flushes - before.flushes;
    println!(
        "{committers:3} committers: {:6.0} commits/s, {:5.1} a flush, p50 {:?}, p99 {:?}, {:.0} µs CPU each; apply {} µs, flush {} µs a group",
        commits as f64 / elapsed.as_secs_f64(),
        commits as f64 / flushes as f64,
        took[took.len() / 2],
        took[took.len() * 99 / 100],
        cpu.as_secs_f64() * 1e6 / commits as f64,
        (stats.apply_us - before.apply_us) / flushes,
        (stats.flush_us - before.flush_us) / flushes,
    );
}

/// Eight rows, about 1.5 KB, as a message makes them.
fn message(room: u64, n: u64) -> Commit {
    let mut commit = Commit::new();
    let position = commit.position();
    match n {
        0 => commit.expect_absent(&HEADS, &room),
        _ => commit.expect(&HEADS, &room, &n),
    }
    commit.put(&HEADS, &room, &(n + 1));
    let value = Blob(Bytes::from(vec![b'x'; 1100]));
    commit.put_new(&BODIES, &(room, n), &Positioned { position, value });
    commit.put(&STREAM, &position, &(room, n));
    for kind in 0..5 {
        commit.put(&INDEX, &(room, kind, n), &());
    }
    commit.touch(Topic::new(b'r', &room.to_be_bytes()));
    commit
}

async fn reads(store: &Store) {
    let keys: Vec<_> = (0..100_u64).flat_map(|n| (64_000..64_064).map(move |room| (room, n))).collect();
    let start = Instant::now();
    for key in &keys {
        assert!(store.get(&BODIES, key).await.expect("a read").is_some());
    }
    println!("get: {:.2} µs", start.elapsed().as_secs_f64() * 1e6 / keys.len() as f64);
    let start = Instant::now();
    let mut rows = 0;
    for room in 64_000..64_064_u64 {
        rows += store.range(&BODIES, BODIES.prefix(&room), Order::Backward, 50).await.expect("a read").len();
    }
    println!("range: {:.2} µs a row, 50 rows each", start.elapsed().as_secs_f64() * 1e6 / rows as f64);
}

fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|ticks| ticks.parse::<u64>().ok()).unwrap_or_default();
    Duration::from_millis((ticks(11) + ticks(12)) * 10)
}

/// The time on a processor of each thread, by its number and name.
fn cpu_of_threads() -> BTreeMap<(u64, String), Duration> {
    let read = |entry: std::fs::DirEntry| {
        let number = entry.file_name().to_str()?.parse().ok()?;
        let name = std::fs::read_to_string(entry.path().join("comm")).ok()?;
        let times = std::fs::read_to_string(entry.path().join("schedstat")).ok()?;
        let nanos = times.split_whitespace().next()?.parse().ok()?;
        Some(((number, name), Duration::from_nanos(nanos)))
    };
    std::fs::read_dir("/proc/self/task").expect("Linux").flatten().filter_map(read).collect()
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap_or_default()
}
