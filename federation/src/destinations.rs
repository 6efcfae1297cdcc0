//! Which servers cannot be reached, since when, and when each is tried again.
//! * A row per failing server; it survives a restart, so that a restart is no storm. A server in order has no row.
//! * Any sign of life, above all an authenticated request from there, removes it, and [`Destinations::revived`] tells.

use std::{sync::Arc, time::Duration};

use hearth_store::{Commit, CommitError, Order, Store, StoreError};
use rand::Rng as _;
use ruma::{OwnedServerName, ServerName};
use tokio::sync::broadcast;

use crate::{
    key_store::Clock,
    tables::{DESTINATIONS, FailingRow},
};

/// Revivals that a follower may lag behind; then it looks at all destinations.
const REVIVALS_KEPT: usize = 1024;
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
    revived: broadcast::Sender<OwnedServerName>,
}

impl Destinations {
    /// As the store knows them.
    pub fn new(store: Store, clock: Clock, patience: Patience) -> Self {
        Self(Arc::new(Inner { store, clock, patience, revived: broadcast::Sender::new(REVIVALS_KEPT) }))
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
            let wait_ms = self.wait_ms(failures);
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

    /// The server lives: it answered, or it asked us something and proved to be itself.
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
        tracing::debug!(%server, "a server can be reached again");
        // Nobody may be listening.
        let _ = self.0.revived.send(server.to_owned());
        Ok(())
    }

    /// Servers that could not be reached and now can.
    pub fn revived(&self) -> broadcast::Receiver<OwnedServerName> {
        self.0.revived.subscribe()
    }

    /// Doubled after each failure, up to the longest; then shortened by chance, by a fifth at most, so that those who
    /// failed together do not return together.
    #[allow(clippy::disallowed_methods, reason = "retries are spread by chance")]
    fn wait_ms(&self, failures: u32) -> u64 {
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let doubled = ms(self.0.patience.first).saturating_mul(1 << (failures - 1).min(40));
        let wait = doubled.min(ms(self.0.patience.longest));
        wait - rand::rng().random_range(0..=wait / 5)
    }
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
        let now = Arc::new(AtomicU64::new(1_000_000));
        let clock = now.clone();
        let patience = Patience { first: Duration::from_secs(1), longest: Duration::from_secs(60) };
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
}
