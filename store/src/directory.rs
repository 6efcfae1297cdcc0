//! The directory of a store on this machine: whose it is, which format it has, and whether there is space.
//!
//! * One process at a time, by a lock that ends with the process.
//! * A directory that is not ours, or newer than we know, is not touched.
//! * A store that was never finished being made holds nothing, and is made again.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::fs::{FlockOperation, flock, statvfs};

use crate::{FORMAT, StoreError};

const FORMAT_FILE: &str = "format";
const LOCK_FILE: &str = "lock";
const NEW_SUFFIX: &str = "format.new";
const NAME: &str = "hearth-store";
const CREATING: &str = "unfinished";
/// With so many bytes free beside the reserve, the disk is not asked again for so long: it cannot fill up meanwhile.
const AMPLE: u64 = 1 << 30;
const AMPLE_FOR: Duration = Duration::from_millis(100);

/// A directory that is ours alone while this lives.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    reserve: u64,
    /// When there was last found to be plenty of space.
    ample_at: Mutex<Option<Instant>>,
    _lock: File,
}

/// What is in it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// Nothing, or what is left of an attempt to make a store.
    Nothing,
    /// A store of an older format that was in use.
    Older,
    /// A store that was in use.
    Store,
}

impl Directory {
    /// Takes the directory for the engine named `kind`.
    pub(crate) fn take(path: &Path, kind: &str, reserve: u64) -> Result<(Self, Content), StoreError> {
        // Looked at before the lock is made, so that nothing is left in a directory of somebody else.
        read_format(path, kind)?;
        make_directory(path)?;
        let lock = lock(path)?;
        let content = read_format(path, kind)?;
        Ok((Self { path: path.to_owned(), reserve, ample_at: Mutex::default(), _lock: lock }, content))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Notes that a store is being made here.
    pub(crate) fn begin(&self, kind: &str) -> Result<(), StoreError> {
        self.write_format(&format!("{NAME} {FORMAT} {kind} {CREATING}\n"))
    }

    /// Notes that it is made, once its files are on the disk.
    pub(crate) fn finish(&self, kind: &str) -> Result<(), StoreError> {
        self.write_format(&format!("{NAME} {FORMAT} {kind}\n"))
    }

    fn write_format(&self, line: &str) -> Result<(), StoreError> {
        let (new, path) = (self.path.join(NEW_SUFFIX), self.path.join(FORMAT_FILE));
        let write = || {
            let mut file = File::create(&new)?;
            file.write_all(line.as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, &path)
        };
        write().map_err(|error| StoreError::io(&path, "writing the format", error))?;
        sync(&self.path)
    }

    /// Whether more than the reserve is free on this disk.
    pub(crate) fn writable(&self) -> Result<(), StoreError> {
        if self.reserve == 0 || self.ample_at.lock().is_some_and(|at| at.elapsed() < AMPLE_FOR) {
            return Ok(());
        }
        let found = statvfs(&self.path);
        let disk = found.map_err(|error| StoreError::io(&self.path, "asking for free space", error))?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        let is_ample = free.saturating_sub(self.reserve) > AMPLE;
        *self.ample_at.lock() = is_ample.then(Instant::now);
        if free < self.reserve {
            return Err(StoreError::DiskReserve { path: self.path.clone(), free, reserve: self.reserve });
        }
        Ok(())
    }
}

fn make_directory(path: &Path) -> Result<(), StoreError> {
    if path.is_dir() {
        return Ok(());
    }
    let failed = |error| StoreError::io(path, "making the directory", error);
    let whole = std::path::absolute(path).map_err(failed)?;
    let missing = whole.ancestors().take_while(|ancestor| !ancestor.is_dir()).count();
    fs::create_dir_all(path).map_err(failed)?;
    // Each new name stands in the directory above it.
    whole.ancestors().skip(1).take(missing).try_for_each(sync)
}

fn lock(path: &Path) -> Result<File, StoreError> {
    let failed = |error| StoreError::io(path, "locking", error);
    let options = fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).to_owned();
    let mut file = options.open(path.join(LOCK_FILE)).map_err(failed)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::WouldBlock => {
            let mut pid = String::new();
            let _ = file.read_to_string(&mut pid);
            return Err(StoreError::Locked { path: path.to_owned(), holder: pid.trim().parse().ok() });
        }
        Err(error) => return Err(failed(error.into())),
    }
    // Only for the message above: on a full disk it goes without.
    let _ =
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
    Ok(file)
}

fn read_format(path: &Path, kind: &str) -> Result<Content, StoreError> {
    let foreign = |found: String| Err(StoreError::Foreign { path: path.to_owned(), found });
    let line = match fs::read(path.join(FORMAT_FILE)) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return match others(path)? {
                Some(name) => foreign(format!("it has {name:?}, but no file {FORMAT_FILE:?}")),
                None => Ok(Content::Nothing),
            };
        }
        Err(error) => return Err(StoreError::io(path, "reading the format", error)),
    };
    let mut words = line.split_whitespace();
    if words.next() != Some(NAME) {
        return foreign(format!("its file {FORMAT_FILE:?} does not begin with {NAME}"));
    }
    let (number, found_kind) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let format = number.parse().ok().filter(|format| (1..=FORMAT).contains(format));
    if format.is_none() || found_kind != kind {
        let found = format!("{number} ({found_kind})");
        return Err(StoreError::UnknownFormat { path: path.to_owned(), found, supported: FORMAT });
    }
    Ok(match format {
        _ if words.next() == Some(CREATING) => Content::Nothing,
        Some(FORMAT) => Content::Store,
        _ => Content::Older,
    })
}

/// The name of something in the directory that we would not put into an empty one.
fn others(path: &Path) -> Result<Option<String>, StoreError> {
    let failed = |error| StoreError::io(path, "listing the directory", error);
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    for entry in entries {
        let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
        if name != LOCK_FILE && name != NEW_SUFFIX {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// Waits until a file, or the names in a directory, are on the disk.
pub(crate) fn sync(path: &Path) -> Result<(), StoreError> {
    let synced = File::open(path).and_then(|file| file.sync_all());
    synced.map_err(|error| StoreError::io(path, "waiting for the disk", error))
}
