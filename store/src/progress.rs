//! How far the store has come, and who waits for it.
//!
//! * The watermark W is the last position that is on the disk. What has a larger one may be visible already.
//! * A watcher that falls behind is told so; it never holds up the store.
//! * Who says what it waits for is woken by that only: a task that is woken for nothing costs as much as a small one.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

use bytes::Bytes;
use tokio::sync::{Notify, broadcast, watch};

use crate::{StreamPosition, Topic};

/// How many groups a watcher may be behind.
const WAKES_KEPT: usize = 256;

/// What one durable group of commits changed.
#[derive(Debug)]
pub struct Wake {
    /// The watermark, now.
    pub upto: StreamPosition,
    /// What the commits touched, and the last position of the commit that did. In order of the commits.
    pub touched: Vec<(Topic, StreamPosition)>,
    /// The keys of mutable tables that were written, as bytes: see [`crate::Table::key_of`].
    pub keys: Vec<Bytes>,
}

impl Wake {
    /// Whether a commit touched something of this kind, see [`Topic::tag`].
    pub fn touches(&self, kind: u8) -> bool {
        self.touched.iter().any(|(topic, _)| topic.tag() == kind)
    }
}

/// The watcher was too slow and has missed some wake-ups: whatever it keeps is to be read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the watcher fell behind and has missed {missed} groups of commits")]
pub struct Lagged {
    /// How many groups of commits it has not seen.
    pub missed: u64,
}

/// Follows the durable groups of commits, from when it was made.
#[derive(Debug)]
pub struct Watch(broadcast::Receiver<Arc<Wake>>);

impl Watch {
    /// What the next group changed; `None` once the store is closed.
    pub async fn next(&mut self) -> Option<Result<Arc<Wake>, Lagged>> {
        match self.0.recv().await {
            Ok(wake) => Some(Ok(wake)),
            Err(broadcast::error::RecvError::Lagged(missed)) => Some(Err(Lagged { missed })),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

/// What somebody waits for. Asked for each group, by the thread that writes them.
type Wanted = Box<dyn Fn(&Wake) -> bool + Send + Sync>;

/// Those who follow groups of commits.
struct Watchers {
    all: broadcast::Sender<Arc<Wake>>,
    /// Each with its only receiver. Those who are gone go with the next group, or the next who comes.
    some: Vec<(Wanted, broadcast::Sender<Arc<Wake>>)>,
}

impl fmt::Debug for Watchers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Watchers({} of all, {} of some)", self.all.receiver_count(), self.some.len())
    }
}

impl Watchers {
    fn forget_gone(&mut self) {
        self.some.retain(|(_, sender)| sender.receiver_count() > 0);
    }
}

/// Counts since the store was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Commits that became durable.
    pub commits: u64,
    /// Commits refused for a precondition.
    pub conflicts: u64,
    /// Groups written: flushes of the disk.
    pub flushes: u64,
    /// Rows written and deleted.
    pub rows: u64,
    /// Bytes of keys and values of the commits.
    pub bytes: u64,
    /// Time spent applying groups, in microseconds.
    pub apply_us: u64,
    /// Time spent waiting for the disk, in microseconds.
    pub flush_us: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) commits: AtomicU64,
    pub(crate) conflicts: AtomicU64,
    pub(crate) flushes: AtomicU64,
    pub(crate) rows: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) apply_us: AtomicU64,
    pub(crate) flush_us: AtomicU64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Durable {
    watermark: u64,
    batch: u64,
    closed: bool,
}

/// The watermark, wake-ups and counts of an engine.
#[derive(Debug)]
pub struct Progress {
    watermark: AtomicU64,
    /// The newest batch that readers may have seen; raised before it is applied.
    visible: AtomicU64,
    durable: watch::Sender<Durable>,
    /// Apart from `durable`, so that who waits for the end is not woken by each group.
    end: watch::Sender<()>,
    watchers: parking_lot::Mutex<Option<Watchers>>,
    pub(crate) counters: Counters,
    /// A commit started a job.
    pub(crate) jobs: Notify,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            watermark: AtomicU64::new(0),
            visible: AtomicU64::new(0),
            durable: watch::Sender::new(Durable::default()),
            end: watch::Sender::new(()),
            watchers: parking_lot::Mutex::new(Some(Watchers {
                all: broadcast::Sender::new(WAKES_KEPT),
                some: Vec::new(),
            })),
            counters: Counters::default(),
            jobs: Notify::new(),
        }
    }
}

impl Progress {
    /// The last position that is on the disk.
    pub fn watermark(&self) -> StreamPosition {
        StreamPosition::new(self.watermark.load(SeqCst))
    }

    /// Returns when the watermark has reached `position`, or the store is closed.
    pub async fn reached(&self, position: StreamPosition) {
        if self.watermark() < position {
            let enough = |durable: &Durable| durable.watermark >= position.get() || durable.closed;
            let _ = self.durable.subscribe().wait_for(enough).await;
        }
    }

    /// Returns when all that was visible at the call is durable, or the store is closed.
    pub async fn settled(&self) {
        let visible = self.visible.load(SeqCst);
        if self.durable.borrow().batch < visible {
            let enough = |durable: &Durable| durable.batch >= visible || durable.closed;
            let _ = self.durable.subscribe().wait_for(enough).await;
        }
    }

    /// Follows what becomes durable from now on.
    pub fn watch(&self) -> Watch {
        match &*self.watchers.lock() {
            Some(watchers) => Watch(watchers.all.subscribe()),
            None => Watch(broadcast::Sender::new(1).subscribe()),
        }
    }

    /// The same, of those groups only of which `wanted` holds.
    pub fn watch_for(&self, wanted: impl Fn(&Wake) -> bool + Send + Sync + 'static) -> Watch {
        let (sender, receiver) = broadcast::channel(WAKES_KEPT);
        if let Some(watchers) = &mut *self.watchers.lock() {
            watchers.forget_gone();
            watchers.some.push((Box::new(wanted), sender));
        }
        Watch(receiver)
    }

    /// What was done so far.
    pub fn stats(&self) -> Stats {
        let counters = &self.counters;
        Stats {
            commits: counters.commits.load(Relaxed),
            conflicts: counters.conflicts.load(Relaxed),
            flushes: counters.flushes.load(Relaxed),
            rows: counters.rows.load(Relaxed),
            bytes: counters.bytes.load(Relaxed),
            apply_us: counters.apply_us.load(Relaxed),
            flush_us: counters.flush_us.load(Relaxed),
        }
    }

    pub(crate) async fn closed(&self) {
        let mut end = self.end.subscribe();
        if !self.durable.borrow().closed {
            let _ = end.changed().await;
        }
    }

    pub(crate) fn is_watched(&self) -> bool {
        let watchers = self.watchers.lock();
        watchers
            .as_ref()
            .is_some_and(|watchers| watchers.all.receiver_count() > 0 || !watchers.some.is_empty())
    }

    /// From here on readers may see this batch.
    pub(crate) fn batch_becomes_visible(&self, batch: u64) {
        self.visible.store(batch, SeqCst);
    }

    /// All batches up to this one, and all positions up to this one, are on the disk.
    pub(crate) fn advance(&self, batch: u64, watermark: u64) {
        self.watermark.store(watermark, SeqCst);
        self.durable.send_modify(|durable| *durable = Durable { watermark, batch, ..*durable });
    }

    /// Tells those who watch what became durable.
    pub(crate) fn wake(&self, wake: Wake) {
        let Some(watchers) = &mut *self.watchers.lock() else { return };
        let wake = Arc::new(wake);
        watchers.forget_gone();
        for (_, sender) in watchers.some.iter().filter(|(wanted, _)| wanted(&wake)) {
            let _ = sender.send(wake.clone());
        }
        let _ = watchers.all.send(wake);
    }

    pub(crate) fn close(&self) {
        self.durable.send_modify(|durable| durable.closed = true);
        self.end.send_replace(());
        self.watchers.lock().take();
    }
}
