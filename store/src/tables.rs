//! The store's own rows, spaces 0x00 to 0x0f. Space 0x02 was the first formats' list of the mutable keys of each batch,
//! which wake-ups carry: rows that are still there are read by nobody.

use serde::{Deserialize, Serialize};

use crate::{Decoder, Encoder, Malformed, Record, Space, StreamPosition, Table, Value};

/// What the store knows about itself: one row.
pub(crate) const ABOUT: Table<(), About> = Table::new("store_about", Space(0x00));
/// How far the store has come: one row, written with every batch.
pub(crate) const LAST: Table<(), Last> = Table::new("store_last", Space(0x01));
/// Ranges that are being deleted.
pub(crate) const JOBS: Table<StreamPosition, RangeJob> = Table::new("store_jobs", Space(0x03));
/// Work that is being staged: what must go if it never becomes visible.
pub(crate) const STAGES: Table<StreamPosition, Stage> = Table::new("store_stages", Space(0x04));

/// Eight bytes each, so that the row always has the same length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Last {
    /// The last position given out.
    pub(crate) position: StreamPosition,
    /// The number of the batch.
    pub(crate) batch: u64,
}

impl Value for Last {
    fn encode(&self, out: &mut Encoder) {
        out.position(self.position);
        out.raw(&self.batch.to_be_bytes());
    }

    fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut input = Decoder::new(bytes);
        let last = Self { position: input.position()?, batch: u64::from_be_bytes(input.array()?) };
        input.finish()?;
        Ok(last)
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct About {
    pub(crate) format: u32,
    pub(crate) epoch: u32,
}
impl Record for About {}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RangeJob {
    pub(crate) start: Vec<u8>,
    pub(crate) end: Vec<u8>,
    pub(crate) mutable: bool,
}
impl Record for RangeJob {}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stage {
    pub(crate) name: String,
    pub(crate) ranges: Vec<RangeJob>,
}
impl Record for Stage {}
