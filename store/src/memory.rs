//! The memory engine: a sorted map, for tests and for trying things out. Durable as long as the process.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::RwLock;

use crate::group::{Disk, Rows};
use crate::{Data, Order, Scan, StoreError};

#[derive(Default)]
pub(crate) struct Memory(RwLock<BTreeMap<Bytes, Bytes>>);

impl Disk for Memory {
    fn get(&self, key: &[u8]) -> Result<Option<Data>, StoreError> {
        Ok(self.0.read().get(key).cloned().map(Data::from))
    }

    fn range(&self, scan: Scan<'_>) -> Result<Vec<(Data, Data)>, StoreError> {
        if scan.start >= scan.end {
            return Ok(Vec::new());
        }
        let map = self.0.read();
        let rows = map.range::<[u8], _>((Bound::Included(scan.start), Bound::Excluded(scan.end)));
        let read = |(key, value): (&Bytes, &Bytes)| (Data::from(key.clone()), Data::from(value.clone()));
        Ok(match scan.order {
            Order::Forward => rows.take(scan.limit).map(read).collect(),
            Order::Backward => rows.rev().take(scan.limit).map(read).collect(),
        })
    }

    fn write(&self, _: u64, batches: &[Rows<'_>]) -> Result<Duration, StoreError> {
        for rows in batches {
            let mut map = self.0.write();
            for (key, value) in rows {
                match value {
                    Some(value) => map.insert(Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)),
                    None => map.remove(key.as_ref()),
                };
            }
        }
        Ok(Duration::ZERO)
    }

    fn check_reached(&self, _: u64) -> Result<(), StoreError> {
        Ok(())
    }

    fn writable(&self) -> Result<(), StoreError> {
        Ok(())
    }
}
