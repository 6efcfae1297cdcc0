//! A note beside the files, of the last batch that reached the disk.
//!
//! * It is written when a group is on the disk and never synced by itself, so it may be behind the files, never ahead of them.
//! * Files that are behind it have lost something, and are not opened as if nothing had happened.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::StoreError;
use crate::sled::damaged;

/// The number, then its complement: a number torn in writing is not believed.
const LENGTH: usize = 16;

pub(crate) struct Reached {
    path: PathBuf,
    file: File,
}

impl Reached {
    pub(crate) const NAME: &str = "reached";

    pub(crate) fn open(directory: &Path) -> Result<Self, StoreError> {
        let path = directory.join(Self::NAME);
        let options = fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).to_owned();
        let file = options.open(&path).map_err(|error| StoreError::io(&path, "opening", error))?;
        Ok(Self { path, file })
    }

    /// For a store that is made anew.
    pub(crate) fn forget(directory: &Path) -> Result<(), StoreError> {
        let path = directory.join(Self::NAME);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(StoreError::io(&path, "clearing", error))
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn note(&self, batch: u64) -> Result<(), StoreError> {
        let mut bytes = [0; LENGTH];
        bytes[..8].copy_from_slice(&batch.to_be_bytes());
        bytes[8..].copy_from_slice(&(!batch).to_be_bytes());
        self.file.write_all_at(&bytes, 0).map_err(|error| StoreError::io(&self.path, "writing", error))
    }

    pub(crate) fn check(&self, batch: u64) -> Result<(), StoreError> {
        let mut bytes = [0; LENGTH];
        if self.file.read_exact_at(&mut bytes, 0).is_err() {
            return Ok(());
        }
        let half =
            |at: usize| bytes[at..at + 8].iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
        let (reached, complement) = (half(0), half(8));
        if reached != !complement || reached <= batch {
            return Ok(());
        }
        let lost = format!(
            "it ends with group {batch} of commits, but had reached {reached}: its files have lost what came between; \
             restore a backup, or remove {} to go on without",
            self.path.display()
        );
        Err(damaged(self.path.parent().unwrap_or(&self.path), &lost))
    }
}
