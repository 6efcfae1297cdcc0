//! Work that lasts: deleting ranges, and staging what becomes visible later.
//!
//! * A range is deleted by a row that says so. It goes away with the last step, so every restart takes it up.
//! * Staged rows lie where no reader reaches them. A row says where, until the *flip* commit makes them visible
//!   and takes it away. What was not flipped when the store opens is deleted.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::watch;

use crate::store::refused;
use crate::tables::{JOBS, RangeJob, STAGES, Stage};
use crate::{
    Commit, CommitError, Committed, Engine, KeyPart, Order, Progress, Range, Scan, Store, StoreError,
    StreamPosition, Table, Value,
};

/// How many rows are deleted at a time: short, since readers have to wait.
const STEP_ROWS: usize = 250;
/// And how many bytes of them, so that little of the engine's files becomes free at once.
const STEP_BYTES: usize = 64 * 1024;
/// How long to wait when writing is refused.
const RETRY: Duration = Duration::from_secs(10);

/// Works off the jobs until the store is closed.
pub(crate) fn spawn(engine: &Arc<dyn Engine>, done: watch::Sender<()>) {
    let (progress, engine) = (engine.progress().clone(), Arc::downgrade(engine));
    tokio::spawn(async move {
        loop {
            let work = work_off(&engine, &done).await;
            if let Err(StoreError::Closed) = work {
                return;
            }
            let again = async {
                match &work {
                    Ok(()) => progress.job_started().await,
                    Err(error) => {
                        tracing::error!(%error, "deleting rows is put off");
                        tokio::time::sleep(RETRY).await;
                    }
                }
            };
            tokio::select! {
                () = again => (),
                () = progress.closed() => return,
            }
        }
    });
}

async fn work_off(engine: &Weak<dyn Engine>, done: &watch::Sender<()>) -> Result<(), StoreError> {
    loop {
        // Nothing is held between the steps, so that the store can be closed.
        let engine = engine.upgrade().ok_or(StoreError::Closed)?;
        let range = JOBS.all();
        let (start, end) = range.bounds();
        let rows = engine.range(Scan { start, end, order: Order::Forward, limit: 1 }).await?;
        let Some((key, row)) = rows.first() else { return Ok(()) };
        let (id, job) = JOBS.decode_row(key, row)?;
        if delete_some(&*engine, id, &job).await? {
            done.send_replace(());
        }
    }
}

/// One step; true when it was the last.
async fn delete_some(engine: &dyn Engine, id: StreamPosition, job: &RangeJob) -> Result<bool, StoreError> {
    let scan = Scan { start: &job.start, end: &job.end, order: Order::Forward, limit: STEP_ROWS };
    let rows = engine.range(scan).await?;
    let (mut last, mut bytes) = (rows.len() < STEP_ROWS, 0);
    let mut commit = Commit::new();
    for (key, value) in &rows {
        if bytes > STEP_BYTES {
            last = false;
            break;
        }
        bytes += key.len() + value.len();
        commit.delete_raw(key, job.mutable);
    }
    if last {
        commit.delete(&JOBS, &id);
    }
    engine.submit(commit).await.map_err(refused)?;
    Ok(last)
}

/// Deletes what was staged and never flipped.
pub(crate) async fn sweep_stages(engine: &dyn Engine) -> Result<(), StoreError> {
    let range = STAGES.all();
    let (start, end) = range.bounds();
    for (key, row) in engine.range(Scan { start, end, order: Order::Forward, limit: usize::MAX }).await? {
        let (id, stage) = STAGES.decode_row(&key, &row)?;
        tracing::info!(name = stage.name, "deleting what was staged and never finished");
        engine.submit(abandoning(id, &stage)).await.map_err(refused)?;
    }
    Ok(())
}

fn abandoning(id: StreamPosition, stage: &Stage) -> Commit {
    let mut commit = Commit::new();
    commit.expect(&STAGES, &id, stage);
    commit.delete(&STAGES, &id);
    for range in &stage.ranges {
        commit.start_job(range);
    }
    commit
}

/// Where rows will be staged: ranges that no reader reaches yet.
#[derive(Clone, Debug)]
pub struct StagePlan(Stage);

impl StagePlan {
    /// With a name for the log, such as what is being joined.
    pub fn new(name: impl Into<String>) -> Self {
        Self(Stage { name: name.into(), ranges: Vec::new() })
    }

    /// Also in this range: if the work is not finished, it is deleted.
    #[must_use]
    pub fn covering<K: KeyPart, V: Value>(mut self, table: &Table<K, V>, range: &Range<K>) -> Self {
        let (start, end) = range.bounds();
        let mutable = table.is_mutable();
        self.0.ranges.push(RangeJob { start: start.to_vec(), end: end.to_vec(), mutable });
        self
    }
}

/// Work that is being staged. Its rows are written by ordinary commits; [`Staging::flip`] makes them visible.
/// Dropped without a flip, its rows are deleted.
#[derive(Debug)]
pub struct Staging {
    store: Store,
    id: StreamPosition,
    stage: Stage,
    ended: bool,
}

impl Staging {
    /// Makes the staged rows visible by a commit that does so, and keeps them.
    pub async fn flip(mut self, commit: Commit) -> Result<Committed, CommitError> {
        let mut flip = commit;
        flip.expect(&STAGES, &self.id, &self.stage);
        flip.delete(&STAGES, &self.id);
        let flipped = self.store.commit(flip).await?;
        self.ended = true;
        Ok(flipped)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.ended {
            // Queued behind a flip that nobody waited for, it changes nothing if that succeeded.
            drop(self.store.submit(abandoning(self.id, &self.stage)));
        }
    }
}

impl Store {
    /// Begins work whose rows become visible all at once, whatever their number.
    pub async fn stage(&self, plan: StagePlan) -> Result<Staging, CommitError> {
        let StagePlan(stage) = plan;
        let mut commit = Commit::new();
        let slot = commit.position();
        commit.put(&STAGES, &slot, &stage);
        let id = self.commit(commit).await?.resolve(slot);
        Ok(Staging { store: self.clone(), id, stage, ended: false })
    }
}

impl Progress {
    async fn job_started(&self) {
        self.jobs.notified().await;
    }
}
