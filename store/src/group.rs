//! Group commit: what is queued is checked, applied and made durable together.
//!
//! * Commits are decided one at a time, in the order they were submitted, each against the store and all before it.
//! * Positions are bound in that order. The last one given out is written in the same batch, so that none is given
//!   out twice, whenever the process dies.
//! * Nobody is answered before the disk has it. A disk that fails ends the process: what it holds is unknown.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::engine::Answer;
use crate::tables::{LAST, Last};
use crate::{
    Commit, CommitError, Committed, Data, Encoder, Progress, Scan, StoreError, StreamPosition, Value, Wake,
    chunk,
};

/// How many rows are applied at once, unless a single commit has more: for so long readers may have to wait.
const BATCH_ROWS: usize = 400;
/// How many bytes of commits are applied at once, unless a single commit has more.
const BATCH_BYTES: usize = 128 * 1024;
/// How many rows are made durable at once.
const GROUP_ROWS: usize = 4000;
/// How many bytes of commits are made durable at once, unless a single commit has more.
const GROUP_BYTES: usize = 448 * 1024;

/// What a local engine is made of. Everything is synchronous: only the group commit writes.
pub(crate) trait Disk: Send + Sync + 'static {
    fn get(&self, key: &[u8]) -> Result<Option<Data>, StoreError>;
    fn range(&self, scan: Scan<'_>) -> Result<Vec<(Data, Data)>, StoreError>;
    /// Writes batches in their order, each visible whole, and returns when all are on the disk, with the time that
    /// took. `last` is the number of the last one. After a crash there are all or the first of them, each whole.
    fn write(&self, last: u64, batches: &[Rows<'_>]) -> Result<Duration, StoreError>;
    /// Whether this is at least the last batch that was ever on the disk.
    fn check_reached(&self, batch: u64) -> Result<(), StoreError>;
    /// Whether there is space left to write.
    fn writable(&self) -> Result<(), StoreError>;
}

/// What a batch leaves behind, whatever was there before. `None` deletes.
pub(crate) type Rows<'a> = HashMap<Cow<'a, [u8]>, Option<Cow<'a, [u8]>>>;

/// A commit and who waits for it.
pub(crate) struct Request {
    pub(crate) commit: Commit,
    pub(crate) answer: Answer,
}

/// A commit with its positions.
struct Bound {
    request: Request,
    committed: Committed,
}

/// What became of a group.
#[derive(Default)]
struct Decided<'a> {
    batches: Vec<Rows<'a>>,
    /// Of each commit, in order.
    refusals: Vec<Option<CommitError>>,
    /// The mutable keys that were written.
    keys: Vec<Bytes>,
}

/// Decides and writes groups of commits.
pub(crate) struct Committer<D> {
    disk: Arc<D>,
    progress: Arc<Progress>,
    /// The last position given out.
    last_position: u64,
    /// The last position that [`LAST`] names.
    written_position: u64,
    last_batch: u64,
}

impl<D: Disk> Committer<D> {
    /// Goes on where the disk ends.
    pub(crate) fn open(disk: Arc<D>, progress: Arc<Progress>) -> Result<Self, StoreError> {
        let last = last_of(&*disk)?;
        disk.check_reached(last.batch)?;
        let (last_position, last_batch) = (last.position.get(), last.batch);
        progress.batch_becomes_visible(last_batch);
        progress.advance(last_batch, last_position);
        Ok(Self { disk, progress, last_position, written_position: last_position, last_batch })
    }

    /// Takes from the front of the queue what may be flushed together.
    pub(crate) fn gather(queue: &mut VecDeque<Request>) -> Vec<Request> {
        let (mut rows, mut bytes) = (0, 0);
        let fits = |request: &&Request| {
            rows += request.commit.rows();
            bytes += request.commit.bytes();
            rows <= GROUP_ROWS && bytes <= GROUP_BYTES
        };
        let count = queue.iter().take_while(fits).count().max(1);
        queue.drain(..count.min(queue.len())).collect()
    }

    /// Writes a group and answers everyone in it.
    pub(crate) fn run(&mut self, group: Vec<Request>) {
        if let Err(full) = self.disk.writable() {
            for request in group {
                let _ = request.answer.send(Err(full.clone().into()));
            }
            return;
        }
        let started = Instant::now();
        let group: Vec<Bound> = group.into_iter().map(|request| self.bind(request)).collect();
        let Decided { batches, refusals, keys } = self.decide(&group);
        let mut waited = Duration::ZERO;
        if !batches.is_empty() {
            self.progress.batch_becomes_visible(self.last_batch);
            match self.disk.write(self.last_batch, &batches) {
                Ok(time) => waited = time,
                Err(error) => die("the disk failed while a group of commits was written", &error),
            }
            let rows: usize = batches.iter().map(HashMap::len).sum();
            self.progress.counters.rows.fetch_add(rows as u64, Relaxed);
            self.progress.counters.flushes.fetch_add(1, Relaxed);
        }
        // What lies beyond was given only to commits that were refused.
        self.last_position = self.written_position;
        self.count(&group, &refusals, started.elapsed().saturating_sub(waited), waited);
        let wake = self.progress.is_watched().then(|| self.wake(&group, &refusals, keys));
        self.progress.advance(self.last_batch, self.last_position);
        drop(batches);
        let mut accepted = group.iter().zip(&refusals).filter(|(_, refusal)| refusal.is_none());
        if accepted.any(|(bound, _)| bound.request.commit.starts_job) {
            self.progress.jobs.notify_one();
        }
        for (Bound { request, committed }, refusal) in group.into_iter().zip(refusals) {
            let _ = request.answer.send(refusal.map_or(Ok(committed), Err));
        }
        // Who asked hears first: a client that gets its own event before the answer to its request is confused.
        if let Some(wake) = wake {
            self.progress.wake(wake);
        }
    }

    /// Gives a commit its positions. One that is refused afterwards leaves a gap.
    fn bind(&mut self, mut request: Request) -> Bound {
        let count = request.commit.positions();
        self.last_position = self.last_position.max(request.commit.skips_to);
        let first = if count > 0 { self.last_position + 1 } else { self.last_position };
        request.commit.bind(first);
        self.last_position += u64::from(count);
        Bound { request, committed: Committed { first: StreamPosition::new(first), count } }
    }

    /// Decides which commits happen, and what is written for them.
    fn decide<'a>(&mut self, group: &'a [Bound]) -> Decided<'a> {
        let mut decided = Decided::default();
        let mut rest = group;
        while !rest.is_empty() {
            let (batch, others) = rest.split_at(batch_size(rest));
            self.decide_batch(batch, &mut decided);
            rest = others;
        }
        decided
    }

    fn decide_batch<'a>(&mut self, batch: &'a [Bound], decided: &mut Decided<'a>) {
        decided.batches.push(HashMap::new());
        let mut touched: Vec<&[u8]> = Vec::new();
        let mut accepted = false;
        let last = batch.last().map_or(0, |bound| bound.committed.last().get());
        for Bound { request, .. } in batch {
            let commit = &request.commit;
            let refusal = self.add(commit, &mut decided.batches).err();
            if refusal.is_none() {
                accepted = true;
                touched.extend(commit.ops.iter().filter(|op| op.mutable).map(|op| commit.slice(op.key)));
            }
            decided.refusals.push(refusal);
        }
        let Some(mut rows) = decided.batches.pop() else { return };
        if rows.is_empty() && !(accepted && last > self.written_position) {
            return;
        }
        let number = self.last_batch + 1;
        self.last_batch = number;
        self.written_position = self.written_position.max(last);
        rows.insert(Cow::Owned(LAST.key_bytes(&())), Some(Cow::Owned(self.last_row(number))));
        touched.sort_unstable();
        touched.dedup();
        decided.keys.extend(touched.iter().map(|key| Bytes::copy_from_slice(key)));
        decided.batches.push(rows);
    }

    fn last_row(&self, batch: u64) -> Vec<u8> {
        let mut out = Encoder::new();
        Last { position: StreamPosition::new(self.written_position), batch }.encode(&mut out);
        out.bytes
    }

    /// Adds the rows of a commit to those of the last batch, if its preconditions hold.
    fn add<'a>(&self, commit: &'a Commit, batches: &mut Vec<Rows<'a>>) -> Result<(), CommitError> {
        for expect in &commit.expects {
            let expected = expect.value.map(|value| commit.slice(value));
            if !self.with_value(commit.slice(expect.key), batches, |found| found == expected)? {
                return Err(CommitError::Conflict);
            }
        }
        // Only these read while they write: a read that fails then takes back what was added of the commit.
        if !commit.ops.iter().any(|op| op.pieces.is_some()) {
            return self.add_rows(commit, batches);
        }
        batches.push(Rows::new());
        let added = self.add_rows(commit, batches);
        let rows = batches.pop();
        added?;
        if let (Some(batch), Some(rows)) = (batches.last_mut(), rows) {
            batch.extend(rows);
        }
        Ok(())
    }

    fn add_rows<'a>(&self, commit: &'a Commit, batches: &mut [Rows<'a>]) -> Result<(), CommitError> {
        for op in &commit.ops {
            let key = commit.slice(op.key);
            let beyond = match op.pieces {
                Some(pieces) => self.pieces_beyond(pieces, key, batches)?,
                None => Vec::new(),
            };
            if let Some(rows) = batches.last_mut() {
                rows.extend(beyond.into_iter().map(|piece| (Cow::Owned(piece), None)));
                rows.insert(Cow::Borrowed(key), op.value.map(|value| Cow::Borrowed(commit.slice(value))));
            }
        }
        Ok(())
    }

    /// Looks at a value as it is behind the batches that are not written yet.
    fn with_value<T>(
        &self,
        key: &[u8],
        batches: &[Rows<'_>],
        look: impl FnOnce(Option<&[u8]>) -> T,
    ) -> Result<T, StoreError> {
        match batches.iter().rev().find_map(|rows| rows.get(key)) {
            Some(value) => Ok(look(value.as_deref())),
            None => Ok(look(self.disk.get(key)?.as_deref())),
        }
    }

    /// The keys of the further pieces that a chunked value has now and will not have any more.
    fn pieces_beyond(&self, kept: u8, key: &[u8], batches: &[Rows<'_>]) -> Result<Vec<Vec<u8>>, StoreError> {
        let count = |row: Option<&[u8]>| row.and_then(chunk::head).map_or(0, |head| head.pieces);
        let now = self.with_value(key, batches, count)?;
        Ok((kept..now).map(|piece| chunk::piece_key(key, piece + 1)).collect())
    }

    fn wake(&self, group: &[Bound], refusals: &[Option<CommitError>], keys: Vec<Bytes>) -> Wake {
        let done = group.iter().zip(refusals).filter(|(_, refusal)| refusal.is_none());
        let touched = done.flat_map(|(bound, _)| {
            let topics = bound.request.commit.topics.iter();
            topics.map(|topic| (topic.clone(), bound.committed.last()))
        });
        Wake { upto: StreamPosition::new(self.last_position), touched: touched.collect(), keys }
    }

    fn count(&self, group: &[Bound], refusals: &[Option<CommitError>], work: Duration, waited: Duration) {
        let counters = &self.progress.counters;
        for (bound, refusal) in group.iter().zip(refusals) {
            match refusal {
                None => counters.commits.fetch_add(1, Relaxed),
                Some(_) => counters.conflicts.fetch_add(1, Relaxed),
            };
            counters.bytes.fetch_add(bound.request.commit.bytes() as u64, Relaxed);
        }
        counters.apply_us.fetch_add(work.as_micros() as u64, Relaxed);
        counters.flush_us.fetch_add(waited.as_micros() as u64, Relaxed);
    }
}

/// How far a disk has come.
pub(crate) fn last_of(disk: &impl Disk) -> Result<Last, StoreError> {
    let key = LAST.key_bytes(&());
    disk.get(&key)?.map_or(Ok(Last::default()), |row| LAST.decode_value(&key, &row))
}

/// How many commits from the front are applied at once.
fn batch_size(group: &[Bound]) -> usize {
    let (mut rows, mut bytes) = (0, 0);
    let fits = |bound: &&Bound| {
        rows += bound.request.commit.rows();
        bytes += bound.request.commit.bytes();
        rows <= BATCH_ROWS && bytes <= BATCH_BYTES
    };
    group.iter().take_while(fits).count().max(1).min(group.len())
}

/// Ends the process: what the disk holds is not known any more, only opening it again tells.
pub(crate) fn die(what: &str, error: &dyn std::fmt::Display) -> ! {
    tracing::error!(%error, "{what}; ending, since what the disk holds is unknown");
    eprintln!("hearth: {what}: {error}; ending, since what the disk holds is unknown");
    std::process::abort()
}
