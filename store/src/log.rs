//! sled's own log file, and what of it is on the disk.
//!
//! * sled writes it when it likes, and believes that what it wrote is on the disk: soon it writes over what it has
//!   copied elsewhere. So whoever lets sled write first syncs what it wrote before.
//! * Whether it wrote anything is seen by the file's time of change, which is set to a mark before each sync. Where a
//!   file system does not keep the mark, each time counts as a change.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;

/// Of a mark, behind the whole second: no clock of a kernel ticks so.
const MARK_NANOS: u32 = 1;

pub(crate) struct Log {
    file: File,
    /// The time of change that shows that nothing was written since the last sync.
    mark: Mutex<Option<Stamp>>,
}

/// Seconds and nanoseconds.
type Stamp = (i64, i64);

impl Log {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { file: File::open(path)?, mark: Mutex::default() })
    }

    /// Returns when all that was written before the call is on the disk. Nearly free when nothing was.
    pub(crate) fn sync(&self) -> io::Result<()> {
        let mut mark = self.mark.lock();
        let found = self.file.metadata()?;
        if *mark == Some(stamp(&found)) {
            return Ok(());
        }
        // Set before the sync: what is written from here on takes it away.
        let wanted = marked(&found).filter(|time| self.file.set_modified(*time).is_ok());
        self.file.sync_data()?;
        let kept = stamp(&self.file.metadata()?);
        *mark = wanted.map(|_| kept).filter(|(_, nanos)| *nanos == i64::from(MARK_NANOS));
        Ok(())
    }
}

fn stamp(found: &Metadata) -> Stamp {
    (found.mtime(), found.mtime_nsec())
}

/// The same second, with the mark.
fn marked(found: &Metadata) -> Option<SystemTime> {
    let seconds = u64::try_from(found.mtime()).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, MARK_NANOS))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn what_was_written_since_is_noticed_however_soon() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let log = Log::open(file.path()).unwrap();
        for n in 0..100 {
            file.as_file().write_all_at(b"written over", 0).unwrap();
            let changed = |log: &Log| *log.mark.lock() != Some(stamp(&log.file.metadata().unwrap()));
            assert!(changed(&log), "write {n}");
            log.sync().unwrap();
            // A file system without nanoseconds has it synced once too often, never too rarely.
            let keeps_marks = log.mark.lock().is_some();
            assert_eq!(changed(&log), !keeps_marks);
        }
    }
}
