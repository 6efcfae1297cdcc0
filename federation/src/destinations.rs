//! Which servers cannot be reached, since when, and when each is tried again.
//! * A row per failing server; it survives a restart, so that a restart is no storm. A server in order has no row.
//! * An answer from there removes it. A request from there has it tried early, but not each time: who asks us and does not
//!   answer is no cheaper for us than one who is silent. Of both, [`Destinations::revived`] tells.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
    time::Duration,
};

use hearth_store::{Commit, CommitError, Order, Store, StoreError};
use quick_cache::sync::Cache;
use ruma::{OwnedServerName, ServerName};
use tokio::sync::broadcast;

use crate::{
    key_store::Clock,
    tables::{DESTINATIONS, FailingRow},
};

/// Revivals that a follower may lag behind; then it looks at all destinations.
const REVIVALS_KEPT: usize = 1024;
/// How often at most a server that fails is tried early because it asked us something.
pub const EARLY_EVERY: Duration = Duration::from_secs(10);
/// Servers of which it is known when they were last tried early; who is forgotten may be tried early again.
const EARLY_KEPT: usize = 20_000;
/// How much of what went wrong is kept, in bytes.
const PROBLEM_BYTES: usize = 300;
/// How often a commit is tried that others get ahead of.
const COMMIT_TRIES: usize = 5;

/// How long to wait after failures.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// After the first.
    pub first: Duration,
    /// At most, however many there were.
    pub longest: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { first: Duration::from_secs(30), longest: Duration::from_secs(24 * 3600) }
    }
}

/// The servers that this one talks to, as far as they fail. Cheap to clone.
#[derive(Clone)]
pub struct Destinations(Arc<Inner>);

struct Inner {
    store: Store,
    clock: Clock,
    patience: Patience,
    /// server → for when it was last brought forward.
    early: Cache<OwnedServerName, u64>,
    revived: broadcast::Sender<OwnedServerName>,
}

impl Destinations {
    /// As the store knows them.
    pub fn new(store: Store, clock: Clock, patience: Patience) -> Self {
        let (early, revived) = (Cache::new(EARLY_KEPT), broadcast::Sender::new(REVIVALS_KEPT));
        Self(Arc::new(Inner { store, clock, patience, early, revived }))
    }

    /// What is wrong with a server, if something is.
    pub async fn failing(&self, server: &ServerName) -> Result<Option<FailingRow>, StoreError> {
        self.0.store.get(&DESTINATIONS, &server.to_string()).await
    }

    /// Not before this time (milliseconds since 1970) is the server to be tried; `None`: at once.
    pub async fn not_before(&self, server: &ServerName) -> Result<Option<u64>, StoreError> {
        let row = self.failing(server).await?;
        Ok(row.map(|row| row.next_try_ms).filter(|next_try_ms| *next_try_ms > (self.0.clock)()))
    }

    /// The failing servers behind `after` in the order of their names, at most `limit`.
    pub async fn all_failing(
        &self,
        after: Option<&ServerName>,
        limit: usize,
    ) -> Result<Vec<(String, FailingRow)>, StoreError> {
        let mut range = DESTINATIONS.all();
        if let Some(after) = after {
            range = range.after(&after.to_string());
        }
        self.0.store.range(&DESTINATIONS, range, Order::Forward, limit).await
    }

    /// It did not work. Gives when to try again. Failures of requests that were sent at once count as one.
    pub async fn failed(&self, server: &ServerName, problem: &str) -> Result<u64, StoreError> {
        let name = server.to_string();
        for _ in 0..COMMIT_TRIES {
            let before = self.failing(server).await?;
            let now_ms = (self.0.clock)();
            if let Some(before) = before.as_ref().filter(|before| before.next_try_ms > now_ms) {
                return Ok(before.next_try_ms);
            }
            let failures = before.as_ref().map_or(0, |before| before.failures).saturating_add(1);
            let wait_ms = self.wait_ms(&name, now_ms, failures);
            let row = FailingRow {
                since_ms: before.as_ref().map_or(now_ms, |before| before.since_ms),
                failures,
                next_try_ms: now_ms.saturating_add(wait_ms),
                problem: shortened(problem),
            };
            let mut commit = Commit::new();
            match &before {
                Some(before) => commit.expect(&DESTINATIONS, &name, before),
                None => commit.expect_absent(&DESTINATIONS, &name),
            }
            commit.put(&DESTINATIONS, &name, &row);
            match self.0.store.commit(commit).await {
                Ok(_) => {
                    let since_early = self.0.early.get(server).map(|last| now_ms.saturating_sub(last));
                    if since_early.is_some_and(|since| since < 2 * ms(EARLY_EVERY)) {
                        // It goes on asking, and was just tried.
                        self.0.early.insert(server.to_owned(), now_ms);
                    }
                    tracing::debug!(%server, failures, wait_ms, problem, "a server cannot be reached");
                    return Ok(row.next_try_ms);
                }
                Err(CommitError::Conflict) => {}
                Err(CommitError::Store(error)) => return Err(error),
            }
        }
        // Others have just written the same.
        Ok((self.0.clock)())
    }

    /// The server asked us something and proved to be itself. Whether it answers is to be seen: if it is failing, it is
    /// tried at once, or where that was done lately, [`EARLY_EVERY`] later.
    pub async fn heard_from(&self, server: &ServerName) -> Result<(), StoreError> {
        let name = server.to_string();
        for _ in 0..COMMIT_TRIES {
            let Some(before) = self.failing(server).await? else { return Ok(()) };
            let now_ms = (self.0.clock)();
            let early_ms = self
                .0
                .early
                .get(server)
                .map_or(now_ms, |last| now_ms.max(last.saturating_add(ms(EARLY_EVERY))));
            if before.next_try_ms <= early_ms {
                return Ok(());
            }
            let mut commit = Commit::new();
            commit.expect(&DESTINATIONS, &name, &before);
            commit.put(&DESTINATIONS, &name, &FailingRow { next_try_ms: early_ms, ..before });
            match self.0.store.commit(commit).await {
                Ok(_) => {
                    self.0.early.insert(server.to_owned(), early_ms);
                    tracing::debug!(%server, "a failing server asked us something and is tried early");
                    // Nobody may be listening.
                    let _ = self.0.revived.send(server.to_owned());
                    return Ok(());
                }
                Err(CommitError::Conflict) => {}
                Err(CommitError::Store(error)) => return Err(error),
            }
        }
        Ok(())
    }

    /// The server lives: it answered.
    pub async fn alive(&self, server: &ServerName) -> Result<(), StoreError> {
        if self.failing(server).await?.is_none() {
            return Ok(());
        }
        let mut commit = Commit::new();
        commit.delete(&DESTINATIONS, &server.to_string());
        match self.0.store.commit(commit).await {
            Ok(_) | Err(CommitError::Conflict) => {}
            Err(CommitError::Store(error)) => return Err(error),
        }
        self.0.early.remove(server);
        tracing::debug!(%server, "a server can be reached again");
        // Nobody may be listening.
        let _ = self.0.revived.send(server.to_owned());
        Ok(())
    }

    /// Servers that could not be reached and now can, or that are to be tried earlier than was said.
    pub fn revived(&self) -> broadcast::Receiver<OwnedServerName> {
        self.0.revived.subscribe()
    }

    /// Doubled after each failure, up to the longest; then shortened by a fifth at most, as name and time have it, so
    /// that those who failed together do not return together.
    fn wait_ms(&self, server: &str, now_ms: u64, failures: u32) -> u64 {
        let doubled = ms(self.0.patience.first).saturating_mul(1 << (failures - 1).min(40));
        let wait = doubled.min(ms(self.0.patience.longest));
        let mut spread = DefaultHasher::new();
        (server, now_ms, failures).hash(&mut spread);
        wait - spread.finish() % (wait / 5 + 1)
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn shortened(text: &str) -> String {
    let mut end = text.len().min(PROBLEM_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use ruma::server_name;

    use super::*;

    async fn destinations(store: &Store) -> (Arc<AtomicU64>, Destinations) {
        let patience = Patience { first: Duration::from_secs(1), longest: Duration::from_secs(60) };
        destinations_with(store, patience).await
    }

    async fn destinations_with(store: &Store, patience: Patience) -> (Arc<AtomicU64>, Destinations) {
        let now = Arc::new(AtomicU64::new(1_000_000));
        let clock = now.clone();
        let clock: Clock = Arc::new(move || clock.load(Ordering::Relaxed));
        (now, Destinations::new(store.clone(), clock, patience))
    }

    #[tokio::test]
    async fn waits_double_up_to_the_longest() {
        let (now, destinations) = destinations(&Store::memory().await).await;
        let server = server_name!("a.test");
        assert_eq!(destinations.not_before(server).await.unwrap(), None);
        for doubled in [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000] {
            let start = now.load(Ordering::Relaxed);
            let next = destinations.failed(server, "no connection").await.unwrap();
            let wait = next - start;
            assert!(wait <= doubled && wait >= doubled * 4 / 5, "{wait} of {doubled}");
            assert_eq!(destinations.failed(server, "at the same time").await.unwrap(), next);
            assert_eq!(destinations.not_before(server).await.unwrap(), Some(next));
            now.store(next, Ordering::Relaxed);
            assert_eq!(destinations.not_before(server).await.unwrap(), None);
        }
        let row = destinations.failing(server).await.unwrap().unwrap();
        assert_eq!((row.since_ms, row.failures, &*row.problem), (1_000_000, 8, "no connection"));
    }

    #[tokio::test]
    async fn failures_survive_a_restart_and_end_with_a_sign_of_life() {
        let store = Store::memory().await;
        let (_, before) = destinations(&store).await;
        before.failed(server_name!("a.test"), &"é".repeat(400)).await.unwrap();
        before.failed(server_name!("b.test"), "").await.unwrap();
        let (_, after) = destinations(&store).await;
        let failing = after.all_failing(None, 10).await.unwrap();
        assert_eq!(failing.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["a.test", "b.test"]);
        assert!(failing[0].1.problem.len() <= PROBLEM_BYTES);
        assert_eq!(after.all_failing(Some(server_name!("a.test")), 10).await.unwrap().len(), 1);
        let mut revived = after.revived();
        after.alive(server_name!("a.test")).await.unwrap();
        after.alive(server_name!("a.test")).await.unwrap();
        assert_eq!(revived.try_recv().unwrap(), "a.test");
        assert!(revived.try_recv().is_err(), "only once");
        assert_eq!(after.failing(server_name!("a.test")).await.unwrap(), None);
    }

    #[tokio::test]
    async fn who_asks_and_does_not_answer_is_tried_early_but_not_each_time() {
        let (now, destinations) = destinations_with(&Store::memory().await, Patience::default()).await;
        let server = server_name!("a.test");
        let start = now.load(Ordering::Relaxed);
        let hours = 10;
        let mut tries = Vec::new();
        // It asks every second, and fails whenever it may be tried.
        while now.load(Ordering::Relaxed) < start + hours * 3_600_000 {
            let now_ms = now.fetch_add(1_000, Ordering::Relaxed) + 1_000;
            if destinations.not_before(server).await.unwrap().is_none() {
                destinations.failed(server, "no answer").await.unwrap();
                tries.push(now_ms);
            }
            destinations.heard_from(server).await.unwrap();
        }
        // The first sign of life has an effect at once.
        assert_eq!(tries[1] - tries[0], 1_000);
        let apart: Vec<u64> = tries.windows(2).skip(1).map(|two| two[1] - two[0]).collect();
        assert!(apart.iter().skip(5).all(|apart| *apart == ms(EARLY_EVERY)), "{apart:?}");
        assert!(apart.iter().all(|apart| *apart >= ms(EARLY_EVERY) * 4 / 5), "{apart:?}");
        let row = destinations.failing(server).await.unwrap().unwrap();
        assert_eq!(u64::from(row.failures), tries.len() as u64, "nothing is forgotten");
        // Silent, it is left alone for as long as its failures say; and one answer ends it all.
        destinations.failed(server, "no answer").await.unwrap();
        now.fetch_add(ms(EARLY_EVERY), Ordering::Relaxed);
        destinations.failed(server, "no answer").await.unwrap();
        assert!(
            destinations.not_before(server).await.unwrap().unwrap() > now.load(Ordering::Relaxed) + 3_600_000
        );
        destinations.alive(server).await.unwrap();
        assert_eq!(destinations.failing(server).await.unwrap(), None);
        // The next time, its first sign of life has an effect at once again.
        destinations.failed(server, "no answer").await.unwrap();
        destinations.heard_from(server).await.unwrap();
        assert_eq!(destinations.not_before(server).await.unwrap(), None);
    }
}
