//! The disk of a simulated server, and its power: whoever runs on it when the power goes does nothing any more.
//! * What was committed stays, whether or not anybody was told; what was not is not there.
//! * A commit takes its time: others happen between the act and its answer.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use hearth_store::{Answer, Commit, Data, Engine, Pending, Progress, Scan, StoreError};
use parking_lot::Mutex;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

/// How long a commit takes at most.
const COMMIT_MS: u64 = 4;

/// A disk as one run of a server sees it.
pub struct Power {
    disk: Arc<dyn Engine>,
    is_off: AtomicBool,
    gone: Notify,
    commits: Mutex<Commits>,
}

struct Commits {
    rng: StdRng,
    /// Answers come in the order of the commits.
    last: Instant,
    /// Whoever waits for these waits for ever.
    unanswered: Vec<Answer>,
}

impl Power {
    pub fn on(disk: Arc<dyn Engine>, seed: u64) -> Arc<Self> {
        let commits =
            Commits { rng: StdRng::seed_from_u64(seed), last: Instant::now(), unanswered: Vec::new() };
        let (is_off, gone) = (AtomicBool::new(false), Notify::new());
        Arc::new(Self { disk, is_off, gone, commits: Mutex::new(commits) })
    }

    pub fn goes(&self) {
        self.is_off.store(true, Ordering::SeqCst);
        self.gone.notify_waiters();
    }

    pub fn is_off(&self) -> bool {
        self.is_off.load(Ordering::SeqCst)
    }

    /// Returns when the power is gone.
    pub async fn gone(&self) {
        let gone = self.gone.notified();
        if !self.is_off() {
            gone.await;
        }
    }

    /// Never returns where there is no power.
    pub async fn is_needed(&self) {
        if self.is_off() {
            std::future::pending::<()>().await;
        }
    }
}

#[async_trait]
impl Engine for Power {
    async fn get(&self, key: &[u8]) -> Result<Option<Data>, StoreError> {
        self.is_needed().await;
        self.disk.get(key).await
    }

    async fn multi_get(&self, keys: &[Vec<u8>]) -> Result<Vec<Option<Data>>, StoreError> {
        self.is_needed().await;
        self.disk.multi_get(keys).await
    }

    async fn range(&self, scan: Scan<'_>) -> Result<Vec<(Data, Data)>, StoreError> {
        self.is_needed().await;
        self.disk.range(scan).await
    }

    fn submit(&self, commit: Commit) -> Pending {
        let (answer, pending) = Pending::channel();
        let mut commits = self.commits.lock();
        if self.is_off() {
            commits.unanswered.push(answer);
            return pending;
        }
        let written = self.disk.submit(commit);
        let takes = Duration::from_millis(commits.rng.random_range(0..=COMMIT_MS));
        let due = commits.last.max(Instant::now() + takes);
        commits.last = due;
        tokio::spawn(async move {
            sleep_until(due).await;
            let _ = answer.send(written.await);
        });
        pending
    }

    fn progress(&self) -> &Arc<Progress> {
        self.disk.progress()
    }

    async fn finish(&self) {}

    async fn close(self: Arc<Self>) {}
}
