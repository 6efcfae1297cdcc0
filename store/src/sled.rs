//! The sled engine: one tree behind a journal of our own.
//!
//! * A group is on the disk when it is in the journal; only then sled learns it, row by row, without a flush. One that
//!   finds the journal full waits until sled has all of it on the disk, and begins it anew. What is too long for the
//!   journal is made durable by sled itself: one batch per step, then a flush.
//! * After a crash sled has what it had when it was last flushed, and maybe some of what came later, but not always in order:
//!   of one page it may have an older state than of another. So all is applied again that the journal has beyond the last
//!   flush of everything, also what sled seems to have.
//! * sled takes what it wrote for durable, and soon writes over what it has no use for any more. So its log is made
//!   durable after each row for which it wrote any of it, and flushed after each part of a segment that it got.
//! * sled's own `flush` does not reach the disk; ours adds an `fdatasync` of its log file.
//! * sled never syncs the names of its files; after opening we do. What it was killed over it takes for damage; we remove
//!   that before.
//! * sled takes a damaged log for one that ends there. What had been reached is noted beside it, so that we see it.
//! * Values are bounded so that a page never becomes a file of its own, which nobody would sync.

use std::borrow::Cow;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use sled::{Batch, Db, IVec};

use crate::directory::{Content, Directory, sync};
use crate::group::{Disk, Rows, last_of};
use crate::journal::{self, Appended, Gap, Journal, Record, needed};
use crate::log::Log;
use crate::reached::Reached;
use crate::tables::{ABOUT, LAST};
use crate::{Data, FORMAT, Order, Scan, StoreError, StoreOptions};

const KIND: &str = "sled";
/// How long sled's lock may outlast the store that this process has just closed.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
/// After so many bytes of rows that are written, written over or removed, all of sled's log is written and made durable.
/// sled frees a segment when all that took its place is written, and writes over it a segment later at the earliest: in
/// between there has to be a sync. With the pages that it writes anew on the way, its log grows by several times these
/// bytes, and a segment has 512 KiB.
const UNSYNCED_MAX: usize = 64 * 1024;
/// After so many rows a scan lets a waiting batch pass.
const ROWS_AT_ONCE: usize = 64;

/// Fields are dropped in order: the directory's lock goes last.
pub(crate) struct Sled {
    db: Db,
    log: Log,
    journal: Mutex<Journal>,
    /// What the rows since then weigh, see [`UNSYNCED_MAX`].
    unsynced: AtomicUsize,
    /// Held while a batch is applied, so that nobody sees half of it.
    whole: RwLock<()>,
    reached: Reached,
    directory: Directory,
    #[cfg(test)]
    flushes: AtomicUsize,
}

impl Sled {
    pub(crate) fn open(path: &Path, options: &StoreOptions) -> Result<Self, StoreError> {
        let (directory, content) = Directory::take(path, KIND, options.disk_reserve)?;
        let files = path.join(KIND);
        if content == Content::Nothing {
            directory.writable()?;
            directory.begin(KIND)?;
            Reached::forget(path)?;
            if files.exists() {
                fs::remove_dir_all(&files).map_err(|error| StoreError::io(&files, "clearing", error))?;
            }
        }
        // Before sled touches anything.
        let (journal, records) = match content {
            Content::Nothing | Content::Older => (Journal::create(path)?, Vec::new()),
            // Whether commits have gone with it, the note of what had been reached tells.
            Content::Store => {
                Journal::open(path)?.map_or_else(|| Ok((Journal::create(path)?, Vec::new())), Ok)?
            }
        };
        clear_unfinished(&files)?;
        let db = open(&files, options)?;
        for name in ["conf", "db", "blobs", "."] {
            sync(&files.join(name))?;
        }
        sync(path)?;
        let log = Log::open(&files.join("db"));
        let log = log.map_err(|error| StoreError::io(&files, "opening the log", error))?;
        let (journal, whole) = (Mutex::new(journal), RwLock::default());
        let unsynced = AtomicUsize::new(0);
        let reached = Reached::open(path)?;
        let sled = Self {
            db,
            log,
            journal,
            unsynced,
            whole,
            reached,
            directory,
            #[cfg(test)]
            flushes: AtomicUsize::new(0),
        };
        match content {
            Content::Nothing => sled.make()?,
            Content::Older => {
                sled.check()?;
                sled.settle(last_of(&sled)?.batch)?;
                sled.directory.finish(KIND)?;
            }
            Content::Store => {
                sled.check()?;
                sled.replay(&records)?;
            }
        }
        Ok(sled)
    }

    /// Applies what the journal has and sled may not have, then starts the journal anew.
    fn replay(&self, records: &[Record]) -> Result<(), StoreError> {
        let mut last = last_of(self)?.batch;
        let gap = journal::gap(records, self.journal.lock().marked(), last);
        match gap {
            Some(gap) if gap.is_covered => self.warn(gap),
            // What sled seems to have it may have in part only, and nothing older may be put over it.
            Some(Gap { first, next, at, .. }) if last >= first => {
                return Err(self.lost(first - 1, next, Some(at)));
            }
            _ => {}
        }
        let (batches, missing) = needed(records, last);
        for (number, rows) in batches {
            self.sync_log()?;
            let rows = rows
                .iter()
                .map(|(key, value)| (Cow::Borrowed(key.as_slice()), value.as_deref().map(Cow::Borrowed)));
            self.apply_by_rows(&rows.collect())?;
            last = number;
        }
        if let Some(next) = missing {
            return Err(self.lost(last, next, gap.map(|gap| gap.at)));
        }
        self.settle(last)?;
        self.journal.lock().mark()
    }

    fn warn(&self, Gap { at, first, next, .. }: Gap) {
        let path = self.journal.lock().path().to_owned();
        tracing::warn!(
            path = %path.display(), offset = at, from = first, before = next,
            "the journal is damaged where it is not needed any more: the disk may be failing, or a write was cut off"
        );
    }

    fn lost(&self, last: u64, next: u64, at: Option<usize>) -> StoreError {
        let (path, directory) = (self.journal.lock().path().to_owned(), self.directory.path());
        let place = at.map_or_else(String::new, |at| format!(" (damaged at byte {at})"));
        let lost = format!(
            "the store is whole up to group {last} of commits, and the journal goes on with {next}{place}: what came \
             between is lost; restore a backup, or remove {} and {} to go on without",
            path.display(),
            directory.join(Reached::NAME).display(),
        );
        damaged(&path, &lost)
    }

    /// Returns when sled has on the disk all that it was given, up to the batch `last`. Then the journal is not needed any
    /// more.
    fn settle(&self, last: u64) -> Result<(), StoreError> {
        self.flush()?;
        self.journal.lock().rewind(last);
        Ok(())
    }

    /// Returns when sled has on the disk all that it was given.
    fn flush(&self) -> Result<(), StoreError> {
        #[cfg(test)]
        self.flushes.fetch_add(1, Relaxed);
        self.sync_log()?;
        self.db.flush().map_err(|error| self.failed(error))?;
        self.sync_log()?;
        self.unsynced.store(0, Relaxed);
        Ok(())
    }

    fn sync_log(&self) -> Result<(), StoreError> {
        let synced = self.log.sync();
        synced.map_err(|error| StoreError::io(self.directory.path(), "waiting for the disk", error))
    }

    /// All rows or none, also after a crash. sled writes its log for it, in other threads.
    fn apply_at_once<'a>(
        &self,
        rows: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)>,
    ) -> Result<(), StoreError> {
        let mut batch = Batch::default();
        for (key, value) in rows {
            match value {
                Some(value) => batch.insert(IVec::from(key), IVec::from(value)),
                None => batch.remove(IVec::from(key)),
            }
        }
        let _whole = self.whole.write();
        self.db.apply_batch(batch).map_err(|error| self.failed(error))
    }

    /// What a crash leaves of it, the journal repairs. The row with the number of the batch comes last.
    fn apply_by_rows(&self, rows: &Rows<'_>) -> Result<(), StoreError> {
        let last = LAST.key_bytes(&());
        let number = rows.get_key_value(last.as_slice());
        let _whole = self.whole.write();
        for (key, value) in rows.iter().filter(|(key, _)| ***key != *last).chain(number) {
            let applied = match value {
                Some(value) => self.db.insert(key, value.as_ref()),
                None => self.db.remove(key),
            };
            let before = applied.map_err(|error| self.failed(error))?;
            let values =
                before.map_or(0, |before| before.len()) + value.as_ref().map_or(0, |value| value.len());
            let bytes = key.len() + values;
            // However much sled writes anew for a row, it is less than a segment.
            self.sync_log()?;
            if self.unsynced.fetch_add(bytes, Relaxed) + bytes >= UNSYNCED_MAX {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn failed(&self, error: sled::Error) -> StoreError {
        let path = self.directory.path();
        match error {
            sled::Error::Io(error) => StoreError::io(path, "reading or writing", error),
            error => damaged(path, &error.to_string()),
        }
    }

    /// Writes the first row, then notes that the store is made.
    fn make(&self) -> Result<(), StoreError> {
        let mut about = crate::Encoder::new();
        crate::Value::encode(&crate::tables::About { format: FORMAT, epoch: 1 }, &mut about);
        self.db.insert(ABOUT.key_bytes(&()), about.bytes).map_err(|error| self.failed(error))?;
        self.settle(0)?;
        self.directory.finish(KIND)
    }

    /// A store that was in use has its first row. sled takes an emptied log for a new one.
    fn check(&self) -> Result<(), StoreError> {
        let key = ABOUT.key_bytes(&());
        let row = self.get(&key)?;
        let about = row.and_then(|row| ABOUT.decode_value(&key, &row).ok());
        match about {
            // The format that it was made in.
            Some(about) if (1..=FORMAT).contains(&about.format) => Ok(()),
            _ => Err(damaged(self.directory.path(), "its first row is missing")),
        }
    }
}

/// sled reads its newest snapshot when it opens, and takes one for it that it was killed over. Without it, it reads more
/// of its log.
fn clear_unfinished(files: &Path) -> Result<(), StoreError> {
    let clear = || -> std::io::Result<()> {
        if !files.is_dir() {
            return Ok(());
        }
        for entry in fs::read_dir(files)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().ends_with(".generating") {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    };
    clear().map_err(|error| StoreError::io(files, "clearing what was not finished", error))
}

fn open(files: &Path, options: &StoreOptions) -> Result<Db, StoreError> {
    let config = sled::Config::new()
        .path(files)
        .cache_capacity(options.cache_bytes)
        // The group commit flushes.
        .flush_every_ms(None);
    let began = Instant::now();
    loop {
        // sled panics on some damaged files.
        match catch_unwind(AssertUnwindSafe(|| config.open())) {
            Ok(Ok(db)) => return Ok(db),
            Ok(Err(sled::Error::Io(error))) if is_locked(&error) && began.elapsed() < LOCK_PATIENCE => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Ok(Err(sled::Error::Io(error))) => return Err(StoreError::io(files, "opening", error)),
            Ok(Err(error)) => return Err(damaged(files, &error.to_string())),
            Err(panic) => return Err(damaged(files, panic_text(&*panic))),
        }
    }
}

// The directory's lock is ours, so it can only be a thread of this process that is not done yet.
fn is_locked(error: &std::io::Error) -> bool {
    error.to_string().starts_with("could not acquire lock")
}

pub(crate) fn damaged(path: &Path, reason: &str) -> StoreError {
    StoreError::Damaged { path: path.to_owned(), reason: reason.to_owned() }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("sled panicked")
}

impl Disk for Sled {
    fn get(&self, key: &[u8]) -> Result<Option<Data>, StoreError> {
        let _whole = self.whole.read();
        Ok(self.db.get(key).map_err(|error| self.failed(error))?.map(Data::from))
    }

    fn range(&self, scan: Scan<'_>) -> Result<Vec<(Data, Data)>, StoreError> {
        if scan.start >= scan.end {
            return Ok(Vec::new());
        }
        let mut whole = self.whole.read();
        let mut rows = self.db.range(scan.start..scan.end);
        let mut found = Vec::new();
        while found.len() < scan.limit {
            let row = match scan.order {
                Order::Forward => rows.next(),
                Order::Backward => rows.next_back(),
            };
            let Some(row) = row else { break };
            let (key, value) = row.map_err(|error| self.failed(error))?;
            found.push((Data::from(key), Data::from(value)));
            if found.len().is_multiple_of(ROWS_AT_ONCE) {
                RwLockReadGuard::bump(&mut whole);
            }
        }
        Ok(found)
    }

    fn write(&self, last: u64, batches: &[Rows<'_>]) -> Result<Duration, StoreError> {
        let began = Instant::now();
        let mut in_journal = self.journal.lock().append(last, batches)?;
        let before = last - batches.len() as u64;
        if in_journal == Appended::Full {
            self.settle(before)?;
            in_journal = self.journal.lock().append(last, batches)?;
        }
        let mut waited = began.elapsed();
        if in_journal == Appended::Durable {
            for rows in batches {
                self.sync_log()?;
                self.apply_by_rows(rows)?;
            }
        } else {
            for (before, rows) in (before..).zip(batches) {
                let began = Instant::now();
                self.settle(before)?;
                waited += began.elapsed();
                self.apply_at_once(rows.iter().map(|(key, value)| (key.as_ref(), value.as_deref())))?;
            }
            let began = Instant::now();
            self.settle(last)?;
            waited += began.elapsed();
        }
        self.reached.note(last)?;
        Ok(waited)
    }

    fn check_reached(&self, batch: u64) -> Result<(), StoreError> {
        self.reached.check(batch)
    }

    fn writable(&self) -> Result<(), StoreError> {
        self.directory.writable()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_made_durable_while_much_is_applied() {
        const LENGTH: usize = 6000;
        const COUNT: usize = 250;
        let directory = tempfile::tempdir().unwrap();
        let options = StoreOptions { disk_reserve: 0, ..StoreOptions::default() };
        let sled = Sled::open(directory.path(), &options).unwrap();
        let batch = |value: Option<Vec<u8>>| -> Rows<'static> {
            let row = |n: usize| (Cow::Owned(n.to_be_bytes().to_vec()), value.clone().map(Cow::Owned));
            (0..COUNT).map(row).collect()
        };
        let often = COUNT * LENGTH / (UNSYNCED_MAX + 2 * LENGTH)..=COUNT * (LENGTH + 20) / UNSYNCED_MAX + 1;
        for (value, times) in [
            (Some(vec![1; LENGTH]), &often),
            // What is written over counts, and what goes.
            (Some(vec![2; 10]), &often),
            (None, &(0..=1)),
            (Some(vec![1; LENGTH]), &often),
            (None, &often),
        ] {
            let before = sled.flushes.load(Relaxed);
            sled.apply_by_rows(&batch(value.clone())).unwrap();
            let flushed = sled.flushes.load(Relaxed) - before;
            assert!(
                times.contains(&flushed),
                "{flushed} times for {:?} bytes",
                value.map(|value| value.len())
            );
        }
    }
}
