//! The promises of the store, each a story that runs on every engine.

pub mod chunks;
pub mod commits;
pub mod jobs;
pub mod persistence;
pub mod positions;
pub mod reads;
pub mod wakes;

use hearth_store::{Blob, Positioned, Space, Store, StoreOptions, StreamPosition, Table};

pub const WORDS: Table<String, u64> = Table::new("words", Space(0x20));
pub const HEADS: Table<u64, u64> = Table::mutable("heads", Space(0x21));
pub const STREAM: Table<StreamPosition, u64> = Table::new("stream", Space(0x22));
pub const PAIRS: Table<(u64, u64), Blob> = Table::new("pairs", Space(0x23));
pub const MARKS: Table<u64, Positioned<u64>> = Table::new("marks", Space(0x24));
pub const LONG: Table<(u64, String), Blob> = Table::chunked("long", Space(0x25));

/// Where a store lies, and what keeps it there.
pub enum Place {
    Memory,
    Directory(tempfile::TempDir),
}

/// A store in its place, which goes away with it.
pub struct Here {
    pub store: Store,
    pub place: Place,
}

impl Place {
    pub fn directory() -> Self {
        Self::Directory(tempfile::tempdir().unwrap())
    }

    pub async fn open(self) -> Here {
        let store = match &self {
            Self::Memory => Store::memory().await,
            Self::Directory(dir) => Store::open_sled(dir.path().join("store"), options()).await.unwrap(),
        };
        Here { store, place: self }
    }
}

impl Here {
    /// Closes the store and opens it again.
    pub async fn reopen(self) -> Self {
        self.store.close().await;
        self.place.open().await
    }
}

/// Small, and without a reserve: whoever runs the tests may be short of disk.
pub fn options() -> StoreOptions {
    StoreOptions { cache_bytes: 4 * 1024 * 1024, disk_reserve: 0 }
}

/// Numbers that look random and are the same each time.
pub struct Seeded(u64);

impl Seeded {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 11) % bound
    }

    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next() as u8).collect()
    }
}
