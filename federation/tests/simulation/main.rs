//! Several servers in one process, on a network that delays, loses, repeats and parts, on disks that stay when their
//! servers end at any moment, with users who do what they may and what they may not, who come in later and again, and
//! with one who forges. When all is whole again, what was acknowledged is everywhere where it is due, and all servers in
//! the room know the same. A seed decides everything: one that fails says which, and `SIMULATION_SEED` plays it again.
//! `SIMULATION_SEEDS` says how many are played, `SIMULATION_TRACE` prints what goes over the network.
#![allow(clippy::unwrap_used)]

mod answering;
mod checks;
mod counts;
mod disk;
mod network;
mod node;
mod run;
mod stories;
#[path = "../world/mod.rs"]
mod world;

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
};

use counts::Counts;
use parking_lot::Mutex;
use run::Run;

const SEEDS: u64 = 200;
/// Seeds that are played twice.
const REPLAYED: u64 = 12;
/// Runs at a time: each has a thread.
const AT_ONCE: usize = 2;

/// How a run went.
struct Played {
    counts: Counts,
    problems: Vec<String>,
    /// The same of two runs that were the same.
    trace: u64,
}

fn play(seed: u64) -> Played {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let is_alone = number("SIMULATION_SEED").is_some();
        let mut run = Run::begin(seed, is_alone && number("SIMULATION_TRACE").is_some()).await;
        run.play().await;
        let problems = run.ends().await;
        if !problems.is_empty() && is_alone {
            run.tells().await;
        }
        Played { counts: run.counts().await, problems, trace: run.trace() }
    })
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().and_then(|text| text.parse().ok())
}

/// Plays seeds, several beside each other.
fn play_all(seeds: std::ops::Range<u64>) -> BTreeMap<u64, Played> {
    let (next, played) = (AtomicU64::new(seeds.start), Mutex::new(BTreeMap::new()));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        break;
                    }
                    let run = play(seed);
                    played.lock().insert(seed, run);
                }
            });
        }
    });
    played.into_inner()
}

#[test]
fn servers_agree_when_all_is_whole_again() {
    let seeds = match number("SIMULATION_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SIMULATION_SEEDS").unwrap_or(SEEDS),
    };
    let count = seeds.end - seeds.start;
    let (mut total, mut failed) = (Counts::default(), Vec::new());
    for (seed, run) in play_all(seeds) {
        total.add(&run.counts);
        if !run.problems.is_empty() {
            let problems = run.problems.join("\n  ");
            println!("SIMULATION_SEED={seed} failed, trace {:x}:\n  {problems}", run.trace);
            failed.push(seed);
        }
    }
    println!("{count} seeds: {total}");
    assert!(failed.is_empty(), "seeds that failed: {failed:?}");
    if count >= SEEDS {
        total.check(count);
    }
}

#[test]
fn a_seed_is_the_same_run_each_time() {
    let seeds = match number("SIMULATION_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..REPLAYED,
    };
    let (first, second) = (play_all(seeds.clone()), play_all(seeds));
    for (seed, run) in first {
        let again = &second[&seed];
        assert_eq!(run.trace, again.trace, "seed {seed} was another run the second time");
        assert_eq!((run.counts, &run.problems), (again.counts, &again.problems), "seed {seed}");
    }
}
