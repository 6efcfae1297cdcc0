//! The sled engine.
use std::path::Path;

use crate::group::{Disk, Rows};
use crate::{Data, Scan, StoreError, StoreOptions};

pub(crate) struct Sled(crate::memory::Memory);

impl Sled {
    pub(crate) fn open(path: &Path, _options: &StoreOptions) -> Result<Self, StoreError> {
        Err(StoreError::NotYet(path.to_owned()))
    }
}

impl Disk for Sled {
    fn get(&self, key: &[u8]) -> Result<Option<Data>, StoreError> {
        self.0.get(key)
    }
    fn range(&self, scan: Scan<'_>) -> Result<Vec<(Data, Data)>, StoreError> {
        self.0.range(scan)
    }
    fn apply(&self, rows: &Rows<'_>) -> Result<(), StoreError> {
        self.0.apply(rows)
    }
    fn flush(&self) -> Result<(), StoreError> {
        Ok(())
    }
    fn writable(&self) -> Result<(), StoreError> {
        Ok(())
    }
}
