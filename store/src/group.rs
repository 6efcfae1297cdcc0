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
use std::time::Instant;

use bytes::Bytes;

use crate::engine::Answer;
use crate::tables::{LAST, Last, TOUCHED, TOUCHED_KEPT};
use crate::{
    Commit, CommitError, Committed, Data, Encoder, Order, Progress, Scan, StoreError, StreamPosition,
    VALUE_MAX, Value, Wake, chunk,
};

/// How many rows are applied at once, unless a single commit has more: for so long readers may have to wait.
const BATCH_ROWS: usize = 400;
/// How many rows are flushed at once.
const GROUP_ROWS: usize = 4000;

/// What a local engine is made of. Everything is synchronous: only the group commit writes.
pub(crate) trait Disk: Send + Sync + 'static {
    fn get(&self, key: &[u8]) -> Result<Option<Data>, StoreError>;
    fn range(&self, scan: Scan<'_>) -> Result<Vec<(Data, Data)>, StoreError>;
    /// All rows or none, visible at once. `None` deletes.
    fn apply(&self, rows: &Rows<'_>) -> Result<(), StoreError>;
    /// Returns when all that was applied, up to this batch, is on the disk.
    fn flush(&self, batch: u64) -> Result<(), StoreError>;
    /// Whether this is at least the last batch that was ever flushed.
    fn check_reached(&self, batch: u64) -> Result<(), StoreError>;
    /// Whether there is space left to write.
    fn writable(&self) -> Result<(), StoreError>;
}

pub(crate) type Rows<'a> = HashMap<Cow<'a, [u8]>, Option<Cow<'a, [u8]>>>;

/// A commit and who waits for it.
pub(crate) struct Request {
    pub(crate) commit: Commit,
    pub(crate) answer: Answer,
}

struct Decided {
    request: Request,
    committed: Committed,
    refusal: Option<CommitError>,
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
    /// The rows of [`TOUCHED`] on the disk, oldest first.
    touched_rows: VecDeque<Vec<u8>>,
}

impl<D: Disk> Committer<D> {
    /// Goes on where the disk ends.
    pub(crate) fn open(disk: Arc<D>, progress: Arc<Progress>) -> Result<Self, StoreError> {
        let key = LAST.key_bytes(&());
        let last = match disk.get(&key)? {
            Some(row) => LAST.decode_value(&key, &row)?,
            None => Last::default(),
        };
        disk.check_reached(last.batch)?;
        let (last_position, last_batch) = (last.position.get(), last.batch);
        let range = TOUCHED.all();
        let (start, end) = range.bounds();
        let rows = disk.range(Scan { start, end, order: Order::Forward, limit: usize::MAX })?;
        let touched_rows = rows.iter().map(|(key, _)| key.to_vec()).collect();
        progress.batch_becomes_visible(last_batch);
        progress.advance(last_batch, last_position);
        Ok(Self { disk, progress, last_position, written_position: last_position, last_batch, touched_rows })
    }

    /// Takes from the front of the queue what may be flushed together.
    pub(crate) fn gather(queue: &mut VecDeque<Request>) -> Vec<Request> {
        let mut rows = 0;
        let fits = |request: &&Request| {
            rows += request.commit.rows();
            rows <= GROUP_ROWS
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
        let (started, before) = (Instant::now(), self.last_batch);
        let mut group: Vec<Decided> = group.into_iter().map(|request| self.bind(request)).collect();
        let mut keys = Vec::new();
        let mut rest = &mut group[..];
        while !rest.is_empty() {
            let (batch, others) = rest.split_at_mut(batch_size(rest));
            self.apply(batch, &mut keys);
            rest = others;
        }
        let applied = Instant::now();
        if self.last_batch > before {
            if let Err(error) = self.disk.flush(self.last_batch) {
                die("the disk failed while a group of commits was written", &error);
            }
            self.progress.counters.flushes.fetch_add(1, Relaxed);
        }
        // What lies beyond was given only to commits that were refused.
        self.last_position = self.written_position;
        self.count(&group, applied - started, applied.elapsed());
        let wake = self.progress.is_watched().then(|| self.wake(&group, keys));
        self.progress.advance(self.last_batch, self.last_position);
        if group.iter().any(|decided| decided.refusal.is_none() && decided.request.commit.starts_job) {
            self.progress.jobs.notify_one();
        }
        for Decided { request, committed, refusal } in group {
            let _ = request.answer.send(refusal.map_or(Ok(committed), Err));
        }
        // Who asked hears first: a client that gets its own event before the answer to its request is confused.
        if let Some(wake) = wake {
            self.progress.wake(wake);
        }
    }

    /// Gives a commit its positions. One that is refused afterwards leaves a gap.
    fn bind(&mut self, mut request: Request) -> Decided {
        let count = request.commit.positions();
        self.last_position = self.last_position.max(request.commit.skips_to);
        let first = if count > 0 { self.last_position + 1 } else { self.last_position };
        request.commit.bind(first);
        self.last_position += u64::from(count);
        Decided { request, committed: Committed { first: StreamPosition::new(first), count }, refusal: None }
    }

    fn apply(&mut self, batch: &mut [Decided], keys: &mut Vec<Bytes>) {
        let number = self.last_batch + 1;
        let mut rows: Rows<'_> = HashMap::new();
        let mut touched: Vec<&[u8]> = Vec::new();
        let mut accepted = false;
        let last = batch.last().map_or(0, |decided| decided.committed.last().get());
        for Decided { request, refusal, .. } in batch.iter_mut() {
            let commit = &request.commit;
            match self.add(commit, &mut rows) {
                Ok(()) => {
                    accepted = true;
                    touched.extend(commit.ops.iter().filter(|op| op.mutable).map(|op| commit.slice(op.key)));
                }
                Err(error) => *refusal = Some(error),
            }
        }
        if rows.is_empty() && !(accepted && last > self.written_position) {
            return;
        }
        self.written_position = self.written_position.max(last);
        rows.insert(Cow::Owned(LAST.key_bytes(&())), Some(Cow::Owned(self.last_row(number))));
        touched.sort_unstable();
        touched.dedup();
        keys.extend(touched.iter().map(|key| Bytes::copy_from_slice(key)));
        self.last_batch = number;
        for (key, value) in touched_rows(number, &touched) {
            self.touched_rows.push_back(key.clone());
            rows.insert(Cow::Owned(key), Some(Cow::Owned(value)));
        }
        while self.touched_rows.len() > TOUCHED_KEPT {
            rows.extend(self.touched_rows.pop_front().map(|key| (Cow::Owned(key), None)));
        }
        self.progress.batch_becomes_visible(number);
        if let Err(error) = self.disk.apply(&rows) {
            die("the storage engine failed while it applied a group of commits", &error);
        }
        self.progress.counters.rows.fetch_add(rows.len() as u64, Relaxed);
    }

    fn last_row(&self, batch: u64) -> Vec<u8> {
        let mut out = Encoder::new();
        Last { position: StreamPosition::new(self.written_position), batch }.encode(&mut out);
        out.bytes
    }

    /// Adds the rows of a commit to those of the batch, if its preconditions hold.
    fn add<'a>(&self, commit: &'a Commit, rows: &mut Rows<'a>) -> Result<(), CommitError> {
        for expect in &commit.expects {
            let key = commit.slice(expect.key);
            let expected = expect.value.map(|value| commit.slice(value));
            let holds = match rows.get(key) {
                Some(found) => found.as_deref() == expected,
                None => self.disk.get(key)?.as_deref() == expected,
            };
            if !holds {
                return Err(CommitError::Conflict);
            }
        }
        for op in &commit.ops {
            let key = commit.slice(op.key);
            if let Some(pieces) = op.pieces {
                for piece in self.pieces_beyond(pieces, key, rows)? {
                    rows.insert(Cow::Owned(piece), None);
                }
            }
            rows.insert(Cow::Borrowed(key), op.value.map(|value| Cow::Borrowed(commit.slice(value))));
        }
        Ok(())
    }

    /// The keys of the further pieces that a chunked value has now and will not have any more.
    fn pieces_beyond(&self, kept: u8, key: &[u8], rows: &Rows<'_>) -> Result<Vec<Vec<u8>>, StoreError> {
        let count = |row: &[u8]| chunk::head(row).map_or(0, |head| head.pieces);
        let now = match rows.get(key) {
            Some(row) => row.as_deref().map_or(0, count),
            None => self.disk.get(key)?.as_deref().map_or(0, count),
        };
        Ok((kept..now).map(|piece| chunk::piece_key(key, piece + 1)).collect())
    }

    fn wake(&self, group: &[Decided], keys: Vec<Bytes>) -> Wake {
        let done = group.iter().filter(|decided| decided.refusal.is_none());
        let touched = done.flat_map(|decided| {
            let topics = decided.request.commit.topics.iter();
            topics.map(|topic| (topic.clone(), decided.committed.last()))
        });
        Wake { upto: StreamPosition::new(self.last_position), touched: touched.collect(), keys }
    }

    fn count(&self, group: &[Decided], apply: std::time::Duration, flush: std::time::Duration) {
        let counters = &self.progress.counters;
        for decided in group {
            match decided.refusal {
                None => counters.commits.fetch_add(1, Relaxed),
                Some(_) => counters.conflicts.fetch_add(1, Relaxed),
            };
            counters.bytes.fetch_add(decided.request.commit.bytes() as u64, Relaxed);
        }
        counters.apply_us.fetch_add(apply.as_micros() as u64, Relaxed);
        counters.flush_us.fetch_add(flush.as_micros() as u64, Relaxed);
    }
}

/// How many commits from the front are applied at once.
fn batch_size(group: &[Decided]) -> usize {
    let mut rows = 0;
    let fits = |decided: &&Decided| {
        rows += decided.request.commit.rows();
        rows <= BATCH_ROWS
    };
    group.iter().take_while(fits).count().max(1).min(group.len())
}

/// The rows that name the mutable keys of a batch: each key behind its length, as many rows as that needs.
fn touched_rows(batch: u64, keys: &[&[u8]]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut values: Vec<Vec<u8>> = Vec::new();
    for key in keys {
        if values.last().is_none_or(|value| value.len() + 2 + key.len() > VALUE_MAX) {
            values.push(Vec::new());
        }
        if let Some(value) = values.last_mut() {
            value.extend_from_slice(&(key.len() as u16).to_be_bytes());
            value.extend_from_slice(key);
        }
    }
    let rows = values.into_iter().enumerate();
    rows.map(|(part, value)| (TOUCHED.key_bytes(&(batch, part.min(255) as u8)), value)).collect()
}

/// Ends the process: what the disk holds is not known any more, only opening it again tells.
pub(crate) fn die(what: &str, error: &dyn std::fmt::Display) -> ! {
    tracing::error!(%error, "{what}; ending, since what the disk holds is unknown");
    eprintln!("hearth: {what}: {error}; ending, since what the disk holds is unknown");
    std::process::abort()
}
