//! The sled engine: one tree, one batch per step of a group, one flush per group.
//!
//! * sled's own `flush` does not reach the disk; ours adds an `fdatasync` of its log file.
//! * sled never syncs the names of its files; after opening we do.
//! * sled takes a damaged log for one that ends there. What had been reached is noted beside it, so that we see it.
//! * Values are bounded so that a page never becomes a file of its own, which nobody would sync.

use std::fs::{self, File};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use sled::{Batch, Db, IVec};

use crate::directory::{Content, Directory, sync};
use crate::group::{Disk, Rows};
use crate::reached::Reached;
use crate::tables::ABOUT;
use crate::{Data, FORMAT, Order, Scan, StoreError, StoreOptions};

const KIND: &str = "sled";
/// How long sled's lock may outlast the store that this process has just closed.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// Fields are dropped in order: the directory's lock goes last.
pub(crate) struct Sled {
    db: Db,
    log: File,
    reached: Reached,
    directory: Directory,
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
        let db = open(&files, options)?;
        for name in ["conf", "db", "blobs", "."] {
            sync(&files.join(name))?;
        }
        sync(path)?;
        let log =
            File::open(files.join("db")).map_err(|error| StoreError::io(&files, "opening the log", error))?;
        let reached = Reached::open(path)?;
        let sled = Self { db, log, reached, directory };
        match content {
            Content::Nothing => sled.make()?,
            Content::Store => sled.check()?,
        }
        Ok(sled)
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
        self.flush(0)?;
        self.directory.finish(KIND)
    }

    /// A store that was in use has its first row. sled takes an emptied log for a new one.
    fn check(&self) -> Result<(), StoreError> {
        let key = ABOUT.key_bytes(&());
        let row = self.get(&key)?;
        let about = row.and_then(|row| ABOUT.decode_value(&key, &row).ok());
        match about {
            Some(about) if about.format == FORMAT => Ok(()),
            _ => Err(damaged(self.directory.path(), "its first row is missing")),
        }
    }
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
        Ok(self.db.get(key).map_err(|error| self.failed(error))?.map(Data::from))
    }

    fn range(&self, scan: Scan<'_>) -> Result<Vec<(Data, Data)>, StoreError> {
        if scan.start >= scan.end {
            return Ok(Vec::new());
        }
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
        }
        Ok(found)
    }

    fn apply(&self, rows: &Rows<'_>) -> Result<(), StoreError> {
        let mut batch = Batch::default();
        for (key, value) in rows {
            match value {
                Some(value) => batch.insert(IVec::from(key.as_ref()), IVec::from(value.as_ref())),
                None => batch.remove(IVec::from(key.as_ref())),
            }
        }
        self.db.apply_batch(batch).map_err(|error| self.failed(error))
    }

    fn flush(&self, batch: u64) -> Result<(), StoreError> {
        self.db.flush().map_err(|error| self.failed(error))?;
        let synced = self.log.sync_data();
        synced.map_err(|error| StoreError::io(self.directory.path(), "waiting for the disk", error))?;
        self.reached.note(batch)
    }

    fn check_reached(&self, batch: u64) -> Result<(), StoreError> {
        self.reached.check(batch)
    }

    fn writable(&self) -> Result<(), StoreError> {
        self.directory.writable()
    }
}
