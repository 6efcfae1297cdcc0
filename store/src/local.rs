//! An engine on this machine: a disk, and the group commit before it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use crate::group::{Committer, Disk, Request};
use crate::{Commit, Data, Engine, Pending, Progress, Scan, StoreError};

/// How many bytes of commits may wait.
const QUEUE_BYTES: usize = 64 * 1024 * 1024;
/// How long closing waits for others to let go of the engine.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);

/// Reads go straight to the disk; commits are queued for one thread, or written by the caller.
pub(crate) struct Local<D: Disk> {
    disk: Arc<Held<D>>,
    progress: Arc<Progress>,
    writer: Writer<D>,
    released: Mutex<Option<oneshot::Receiver<()>>>,
}

enum Writer<D: Disk> {
    Thread { queue: Arc<Queue>, ended: Mutex<Option<oneshot::Receiver<()>>> },
    Caller(Mutex<Option<Committer<Held<D>>>>),
}

#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    filled: Condvar,
}

#[derive(Default)]
struct Waiting {
    requests: VecDeque<Request>,
    bytes: usize,
    closed: bool,
}

impl<D: Disk> Local<D> {
    /// With a thread of its own that writes.
    pub(crate) fn with_thread(disk: D) -> Result<Self, StoreError> {
        let (disk, progress, released) = hold(disk);
        let mut committer = Committer::open(disk.clone(), progress.clone())?;
        let queue = Arc::new(Queue::default());
        let (end, ended) = oneshot::channel();
        let (queue_of_thread, progress_of_thread) = (queue.clone(), progress.clone());
        let write = move || {
            // A panic in here means the same as a failed flush.
            let run = std::panic::AssertUnwindSafe(|| queue_of_thread.write_all(&mut committer));
            if std::panic::catch_unwind(run).is_err() {
                crate::group::die("the storage engine panicked while it wrote", &"see the panic above");
            }
            drop(committer);
            progress_of_thread.close();
            let _ = end.send(());
        };
        let spawned = std::thread::Builder::new().name("store-commit".into()).spawn(write);
        spawned.map_err(|error| StoreError::Engine(format!("no thread for the group commit: {error}")))?;
        let writer = Writer::Thread { queue, ended: Mutex::new(Some(ended)) };
        Ok(Self { disk, progress, writer, released: Mutex::new(Some(released)) })
    }

    /// Where each commit is written at once by who submits it: nothing to wait for, and tests with a paused clock
    /// see no other thread.
    pub(crate) fn inline(disk: D) -> Result<Self, StoreError> {
        let (disk, progress, released) = hold(disk);
        let committer = Committer::open(disk.clone(), progress.clone())?;
        let writer = Writer::Caller(Mutex::new(Some(committer)));
        Ok(Self { disk, progress, writer, released: Mutex::new(Some(released)) })
    }

    fn stop(&self) {
        match &self.writer {
            Writer::Thread { queue, .. } => {
                queue.waiting.lock().closed = true;
                queue.filled.notify_one();
            }
            Writer::Caller(committer) => {
                committer.lock().take();
                self.progress.close();
            }
        }
    }
}

impl<D: Disk> Drop for Local<D> {
    fn drop(&mut self) {
        self.stop();
    }
}

#[async_trait]
impl<D: Disk> Engine for Local<D> {
    async fn get(&self, key: &[u8]) -> Result<Option<Data>, StoreError> {
        self.disk.get(key)
    }

    async fn multi_get(&self, keys: &[Vec<u8>]) -> Result<Vec<Option<Data>>, StoreError> {
        keys.iter().map(|key| self.disk.get(key)).collect()
    }

    async fn range(&self, scan: Scan<'_>) -> Result<Vec<(Data, Data)>, StoreError> {
        self.disk.range(scan)
    }

    fn submit(&self, commit: Commit) -> Pending {
        if let Err(error) = commit.check() {
            return Pending::refused(error);
        }
        let (answer, pending) = Pending::channel();
        let request = Request { commit, answer };
        match &self.writer {
            Writer::Thread { queue, .. } => queue.push(request),
            Writer::Caller(committer) => {
                if let Some(committer) = &mut *committer.lock() {
                    committer.run(vec![request]);
                }
            }
        }
        pending
    }

    fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    async fn finish(&self) {
        self.stop();
        if let Writer::Thread { ended, .. } = &self.writer {
            let ended = ended.lock().take();
            if let Some(ended) = ended {
                let _ = ended.await;
            }
        }
    }

    async fn close(self: Arc<Self>) {
        self.finish().await;
        let released = self.released.lock().take();
        drop(self);
        if let Some(released) = released
            && tokio::time::timeout(RELEASE_TIMEOUT, released).await.is_err()
        {
            tracing::warn!("the store is still in use somewhere; its files stay locked until that ends");
        }
    }
}

impl Queue {
    fn push(&self, request: Request) {
        let mut waiting = self.waiting.lock();
        if waiting.closed {
            let _ = request.answer.send(Err(StoreError::Closed.into()));
            return;
        }
        let size = request.commit.bytes();
        if waiting.bytes + size > QUEUE_BYTES {
            let error = StoreError::Overloaded { queued: waiting.bytes, limit: QUEUE_BYTES };
            let _ = request.answer.send(Err(error.into()));
            return;
        }
        waiting.bytes += size;
        waiting.requests.push_back(request);
        let first = waiting.requests.len() == 1;
        drop(waiting);
        if first {
            self.filled.notify_one();
        }
    }

    /// Writes what comes until the queue is closed and empty.
    fn write_all<D: Disk>(&self, committer: &mut Committer<D>) {
        while let Some(group) = self.next_group::<D>() {
            committer.run(group);
        }
    }

    fn next_group<D: Disk>(&self) -> Option<Vec<Request>> {
        let mut waiting = self.waiting.lock();
        while waiting.requests.is_empty() {
            if waiting.closed {
                return None;
            }
            self.filled.wait(&mut waiting);
        }
        let group = Committer::<D>::gather(&mut waiting.requests);
        waiting.bytes -= group.iter().map(|request| request.commit.bytes()).sum::<usize>();
        Some(group)
    }
}

/// A disk that tells when it is gone. Fields are dropped in order.
pub(crate) struct Held<D> {
    disk: D,
    _release: oneshot::Sender<()>,
}

type HeldParts<D> = (Arc<Held<D>>, Arc<Progress>, oneshot::Receiver<()>);

fn hold<D>(disk: D) -> HeldParts<D> {
    let (release, released) = oneshot::channel();
    (Arc::new(Held { disk, _release: release }), Arc::default(), released)
}

impl<D: Disk> Disk for Held<D> {
    fn get(&self, key: &[u8]) -> Result<Option<Data>, StoreError> {
        self.disk.get(key)
    }
    fn range(&self, scan: Scan<'_>) -> Result<Vec<(Data, Data)>, StoreError> {
        self.disk.range(scan)
    }
    fn write(&self, last: u64, batches: &[crate::group::Rows<'_>]) -> Result<Duration, StoreError> {
        self.disk.write(last, batches)
    }
    fn check_reached(&self, batch: u64) -> Result<(), StoreError> {
        self.disk.check_reached(batch)
    }
    fn writable(&self) -> Result<(), StoreError> {
        self.disk.writable()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::group::Rows;
    use crate::journal::{Appended, Journal};
    use crate::memory::Memory;
    use crate::{Blob, CommitError, Space, Table};

    const ROWS: Table<u64, Blob> = Table::new("rows", Space(0x20));

    /// Held while the disk is stuck in a flush.
    type Gate = Arc<Mutex<()>>;

    #[derive(Default)]
    struct Stuck {
        disk: Memory,
        gate: Gate,
        /// What cannot be read.
        unreadable: Mutex<Option<Vec<u8>>>,
    }

    impl Disk for Stuck {
        fn get(&self, key: &[u8]) -> Result<Option<Data>, StoreError> {
            match self.unreadable.lock().as_deref() == Some(key) {
                true => Err(StoreError::Closed),
                false => self.disk.get(key),
            }
        }
        fn range(&self, scan: Scan<'_>) -> Result<Vec<(Data, Data)>, StoreError> {
            self.disk.range(scan)
        }
        fn write(&self, last: u64, batches: &[Rows<'_>]) -> Result<Duration, StoreError> {
            drop(self.gate.lock());
            self.disk.write(last, batches)
        }
        fn check_reached(&self, batch: u64) -> Result<(), StoreError> {
            self.disk.check_reached(batch)
        }
        fn writable(&self) -> Result<(), StoreError> {
            self.disk.writable()
        }
    }

    fn engine() -> (Local<Stuck>, Gate) {
        let gate = Gate::default();
        let disk = Stuck { gate: gate.clone(), ..Stuck::default() };
        (Local::with_thread(disk).unwrap(), gate)
    }

    fn row(n: u64, length: usize) -> Commit {
        let mut commit = Commit::new();
        commit.put(&ROWS, &n, &Blob(vec![0; length].into()));
        commit
    }

    /// Returns when the thread has taken all that was queued.
    fn wait_until_taken(engine: &Local<Stuck>) {
        let Writer::Thread { queue, .. } = &engine.writer else { panic!("an engine with a thread") };
        while !queue.waiting.lock().requests.is_empty() {
            std::thread::yield_now();
        }
    }

    #[tokio::test]
    async fn what_comes_during_a_flush_shares_the_next() {
        let (engine, gate) = engine();
        let stuck = gate.lock();
        let first = engine.submit(row(0, 1));
        wait_until_taken(&engine);
        let others: Vec<_> = (1..64).map(|n| engine.submit(row(n, 1))).collect();
        drop(stuck);
        first.await.unwrap();
        for other in others {
            other.await.unwrap();
        }
        let counters = &engine.progress().counters;
        let load =
            |counter: &std::sync::atomic::AtomicU64| counter.load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!((load(&counters.commits), load(&counters.flushes)), (64, 2));
    }

    /// A disk that is nothing but a journal.
    struct Journaled(Mutex<Journal>, Memory);

    impl Disk for Journaled {
        fn get(&self, key: &[u8]) -> Result<Option<Data>, StoreError> {
            self.1.get(key)
        }
        fn range(&self, scan: Scan<'_>) -> Result<Vec<(Data, Data)>, StoreError> {
            self.1.range(scan)
        }
        fn write(&self, last: u64, batches: &[Rows<'_>]) -> Result<Duration, StoreError> {
            let mut journal = self.0.lock();
            journal.rewind(last - batches.len() as u64);
            assert_eq!(journal.append(last, batches)?, Appended::Durable);
            self.1.write(last, batches)
        }
        fn check_reached(&self, _: u64) -> Result<(), StoreError> {
            Ok(())
        }
        fn writable(&self) -> Result<(), StoreError> {
            Ok(())
        }
    }

    /// Also where it consists of keys, and of hardly anything else.
    #[test]
    fn a_group_fits_into_a_record_of_the_journal() {
        const KEYS: Table<(u64, Vec<u8>), ()> = Table::mutable("keys", Space(0x20));
        let large = |n| row(n, 6000);
        let keys = |n| {
            let mut commit = Commit::new();
            (0..20).for_each(|k| commit.put(&KEYS, &(n, vec![k + 1; 900]), &()));
            commit
        };
        let small = |n| {
            let mut commit = Commit::new();
            (0..20).for_each(|k| commit.put(&KEYS, &(n, vec![k]), &()));
            commit
        };
        for make in [&large as &dyn Fn(u64) -> Commit, &keys, &small] {
            let dir = tempfile::tempdir().unwrap();
            let journal = Mutex::new(Journal::create(dir.path()).unwrap());
            let disk = Arc::new(Journaled(journal, Memory::default()));
            let mut committer = Committer::open(disk, Arc::default()).unwrap();
            let request = |n| Request { commit: make(n), answer: Pending::channel().0 };
            let mut queue: VecDeque<Request> = (0..1000).map(request).collect();
            let mut groups = 0;
            while !queue.is_empty() {
                let before = queue.len();
                let group = Committer::<Journaled>::gather(&mut queue);
                assert_eq!(group.len() + queue.len(), before);
                committer.run(group);
                groups += 1;
            }
            assert!((3..=60).contains(&groups), "{groups}");
        }
    }

    #[tokio::test]
    async fn a_queue_past_its_bound_is_refused() {
        const LENGTH: usize = 6000;
        let (engine, gate) = engine();
        let stuck = gate.lock();
        let first = engine.submit(row(0, LENGTH));
        wait_until_taken(&engine);
        let fit = (QUEUE_BYTES / row(0, LENGTH).bytes()) as u64;
        let waiting: Vec<_> = (0..fit).map(|n| engine.submit(row(n, LENGTH))).collect();
        let refused = engine.submit(row(fit, LENGTH));
        drop(stuck);
        match refused.await {
            Err(CommitError::Store(StoreError::Overloaded { queued, limit: QUEUE_BYTES })) => {
                assert!(queued > QUEUE_BYTES - 2 * LENGTH);
            }
            other => panic!("{other:?}"),
        }
        first.await.unwrap();
        for waiting in waiting {
            waiting.await.unwrap();
        }
        engine.submit(row(fit, LENGTH)).await.unwrap();
    }

    #[tokio::test]
    async fn a_commit_whose_reads_fail_leaves_nothing() {
        const CHUNKED: Table<u64, Blob> = Table::chunked("chunked", Space(0x21));
        let disk = Stuck { unreadable: Mutex::new(Some(CHUNKED.key_bytes(&2))), ..Stuck::default() };
        let engine = Local::with_thread(disk).unwrap();
        let mut both = row(1, 1);
        for key in [1, 2] {
            both.put(&CHUNKED, &key, &Blob(vec![0; 3].into()));
        }
        // In one group, so that the second is decided on what the first left.
        let stuck = engine.disk.disk.gate.lock();
        let first = engine.submit(row(0, 1));
        wait_until_taken(&engine);
        let (refused, next) = (engine.submit(both), engine.submit(row(2, 1)));
        drop(stuck);
        first.await.unwrap();
        assert!(matches!(refused.await, Err(CommitError::Store(StoreError::Closed))));
        next.await.unwrap();
        for (key, is_there) in [(0, true), (1, false), (2, true)] {
            assert_eq!(engine.disk.get(&ROWS.key_bytes(&key)).unwrap().is_some(), is_there, "{key}");
        }
        assert!(engine.disk.get(&CHUNKED.key_bytes(&1)).unwrap().is_none());
    }
}
