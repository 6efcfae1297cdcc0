//! The store as the other crates see it: typed reads, commits, and waiting.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;

use crate::local::Local;
use crate::memory::Memory;
use crate::tables::{ABOUT, About};
use crate::{
    Commit, CommitError, Committed, Data, Engine, KeyPart, Order, Pending, Range, Scan, Stats, StoreError,
    StreamPosition, Table, Value, Wake, Watch, chunk, jobs,
};

/// The format of what is written. An older one is migrated when it is opened, a newer one is refused. Format 1 had no
/// journal.
pub const FORMAT: u32 = 2;
/// How often a long value is read again when it is overwritten meanwhile.
const REREADS: usize = 16;

/// Settings of a store on this machine.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// What the engine's cache may hold, in bytes. The process takes two to three times as much.
    pub cache_bytes: u64,
    /// Writing stops while less than this is free on the disk, in bytes.
    pub disk_reserve: u64,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self { cache_bytes: 16 * 1024 * 1024, disk_reserve: 256 * 1024 * 1024 }
    }
}

/// An ordered key-value store with typed tables. Cheap to clone; all clones are one store.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    engine: Arc<dyn Engine>,
    epoch: u32,
    jobs_done: watch::Sender<()>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({})", self.watermark())
    }
}

impl Store {
    /// An empty store in memory.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn memory() -> Self {
        let engine = Local::inline(Memory::default()).expect("an empty map has nothing to fail on");
        Self::on(Arc::new(engine)).await.expect("an empty map has nothing to fail on")
    }

    /// The store in the directory `path`, which is made if it is not there.
    pub async fn open_sled(path: impl AsRef<Path>, options: StoreOptions) -> Result<Self, StoreError> {
        let path = path.as_ref().to_owned();
        // Opening reads a good part of the files.
        let open = move || Local::with_thread(crate::sled::Sled::open(&path, &options)?);
        let opened = tokio::task::spawn_blocking(open).await;
        let engine = opened.map_err(|error| StoreError::Engine(error.to_string()))??;
        Self::on(Arc::new(engine)).await
    }

    /// A store on any engine. Takes up what was left undone.
    pub async fn on(engine: Arc<dyn Engine>) -> Result<Self, StoreError> {
        let key = ABOUT.key_bytes(&());
        let epoch = match engine.get(&key).await? {
            Some(row) => ABOUT.decode_value(&key, &row)?.epoch,
            None => {
                let mut first = Commit::new();
                first.put(&ABOUT, &(), &About { format: FORMAT, epoch: 1 });
                engine.submit(first).await.map_err(refused)?;
                1
            }
        };
        jobs::sweep_stages(&*engine).await?;
        let jobs_done = watch::Sender::new(());
        jobs::spawn(&engine, jobs_done.clone());
        Ok(Self(Arc::new(Inner { engine, epoch, jobs_done })))
    }

    /// The value behind a key, if there is one.
    pub async fn get<K: KeyPart, V: Value>(
        &self,
        table: &Table<K, V>,
        key: &K,
    ) -> Result<Option<V>, StoreError> {
        let key = table.key_bytes(key);
        match self.0.engine.get(&key).await? {
            Some(row) => self.value(table, &key, row).await,
            None => Ok(None),
        }
    }

    /// Whether there is a row behind the key.
    pub async fn contains<K: KeyPart, V: Value>(
        &self,
        table: &Table<K, V>,
        key: &K,
    ) -> Result<bool, StoreError> {
        Ok(self.0.engine.get(&table.key_bytes(key)).await?.is_some())
    }

    /// The values behind keys, in their order.
    pub async fn multi_get<K: KeyPart, V: Value>(
        &self,
        table: &Table<K, V>,
        keys: &[K],
    ) -> Result<Vec<Option<V>>, StoreError> {
        let keys: Vec<Vec<u8>> = keys.iter().map(|key| table.key_bytes(key)).collect();
        let rows = self.0.engine.multi_get(&keys).await?;
        let mut values = Vec::with_capacity(rows.len());
        for (key, row) in keys.iter().zip(rows) {
            values.push(match row {
                Some(row) => self.value(table, key, row).await?,
                None => None,
            });
        }
        Ok(values)
    }

    /// Up to `limit` rows of a range, from either end.
    pub async fn range<K: KeyPart, V: Value>(
        &self,
        table: &Table<K, V>,
        range: Range<K>,
        order: Order,
        limit: usize,
    ) -> Result<Vec<(K, V)>, StoreError> {
        if table.is_chunked() {
            return self.range_of_chunked(table, range, order, limit).await;
        }
        let (start, end) = range.bounds();
        let rows = self.0.engine.range(Scan { start, end, order, limit }).await?;
        rows.iter().map(|(key, value)| table.decode_row(key, value)).collect()
    }

    /// The row with the smallest key of a range.
    pub async fn first<K: KeyPart, V: Value>(
        &self,
        table: &Table<K, V>,
        range: Range<K>,
    ) -> Result<Option<(K, V)>, StoreError> {
        Ok(self.range(table, range, Order::Forward, 1).await?.pop())
    }

    /// The row with the largest key of a range.
    pub async fn last<K: KeyPart, V: Value>(
        &self,
        table: &Table<K, V>,
        range: Range<K>,
    ) -> Result<Option<(K, V)>, StoreError> {
        Ok(self.range(table, range, Order::Backward, 1).await?.pop())
    }

    /// Rows as bytes, of all tables.
    pub async fn scan(&self, scan: Scan<'_>) -> Result<Vec<(Data, Data)>, StoreError> {
        self.0.engine.range(scan).await
    }

    /// Writes all of a commit or nothing, and returns when it is on the disk.
    pub async fn commit(&self, commit: Commit) -> Result<Committed, CommitError> {
        self.0.engine.submit(commit).await
    }

    /// Queues a commit, in the order of the calls. Others may be submitted on top at once: their preconditions see
    /// it. What is returned resolves when it is on the disk, or refused.
    pub fn submit(&self, commit: Commit) -> Pending {
        self.0.engine.submit(commit)
    }

    /// The last position that is on the disk. A stream is read up to it, and no further.
    pub fn watermark(&self) -> StreamPosition {
        self.0.engine.progress().watermark()
    }

    /// Returns when `position` is on the disk: before an answer leaves that has seen it.
    pub async fn durable(&self, position: StreamPosition) {
        self.0.engine.progress().reached(position).await;
    }

    /// Returns when all that reads could have seen so far is on the disk. Costs nothing while nobody writes.
    pub async fn settled(&self) {
        self.0.engine.progress().settled().await;
    }

    /// Follows what becomes durable from now on. Subscribe, read, then wait: so nothing is missed.
    pub fn watch(&self) -> Watch {
        self.0.engine.progress().watch()
    }

    /// The same, of those groups of commits only of which `wanted` holds. It is asked by the thread that writes: it may
    /// look at what it is given, no more.
    pub fn watch_for(&self, wanted: impl Fn(&Wake) -> bool + Send + Sync + 'static) -> Watch {
        self.0.engine.progress().watch_for(wanted)
    }

    /// Deletes all rows of a range, in steps, and over restarts; returns when they are gone.
    pub async fn delete_range<K: KeyPart, V: Value>(
        &self,
        table: &Table<K, V>,
        range: &Range<K>,
    ) -> Result<(), CommitError> {
        let mut done = self.0.jobs_done.subscribe();
        let mut commit = Commit::new();
        commit.delete_range_later(table, range);
        let job = self.commit(commit).await?.first;
        while self.contains(&crate::tables::JOBS, &job).await? {
            done.changed().await.map_err(|_| StoreError::Closed)?;
        }
        Ok(())
    }

    /// Returns when no range is being deleted.
    pub async fn jobs_finished(&self) -> Result<(), StoreError> {
        let mut done = self.0.jobs_done.subscribe();
        while self.first(&crate::tables::JOBS, crate::tables::JOBS.all()).await?.is_some() {
            done.changed().await.map_err(|_| StoreError::Closed)?;
        }
        Ok(())
    }

    /// What it keeps its rows in.
    pub fn engine(&self) -> &Arc<dyn Engine> {
        &self.0.engine
    }

    /// Raised when a backup is restored: tokens of an older epoch may be ahead of what the store now holds.
    pub fn epoch(&self) -> u32 {
        self.0.epoch
    }

    /// Counts since the store was opened.
    pub fn stats(&self) -> Stats {
        self.0.engine.progress().stats()
    }

    /// Refuses further commits, and returns when the queued ones are on the disk: the end of a process, whose files are
    /// free when it is gone.
    pub async fn finish(&self) {
        self.0.engine.finish().await;
    }

    /// The same, and waits until the files are free, which they are once all clones are gone.
    pub async fn close(self) {
        let engine = self.0.engine.clone();
        drop(self);
        engine.close().await;
    }

    async fn value<K: KeyPart, V: Value>(
        &self,
        table: &Table<K, V>,
        key: &[u8],
        row: Data,
    ) -> Result<Option<V>, StoreError> {
        if !table.is_chunked() {
            return table.decode_value(key, &row).map(Some);
        }
        let mut row = row;
        for _ in 0..REREADS {
            let damaged = || StoreError::Corrupt {
                table: table.name(),
                key: crate::codec::hex(key),
                reason: "not the beginning of a value in pieces".into(),
            };
            let head = chunk::head(&row).ok_or_else(damaged)?;
            if head.pieces == 0 {
                return table.decode_value(key, head.value).map(Some);
            }
            let keys: Vec<_> = (1..=head.pieces).map(|piece| chunk::piece_key(key, piece)).collect();
            let mut value = head.value.to_vec();
            let pieces = self.0.engine.multi_get(&keys).await?;
            let whole = pieces.iter().all(|piece| {
                let same = piece.as_deref().and_then(|piece| piece.strip_prefix(head.tag));
                same.map(|more| value.extend_from_slice(more)).is_some()
            });
            if whole {
                return table.decode_value(key, &value).map(Some);
            }
            // Overwritten while it was read.
            match self.0.engine.get(key).await? {
                Some(again) => row = again,
                None => return Ok(None),
            }
        }
        let (key, reason) = (crate::codec::hex(key), "its pieces do not belong together".to_owned());
        Err(StoreError::Corrupt { table: table.name(), key, reason })
    }

    async fn range_of_chunked<K: KeyPart, V: Value>(
        &self,
        table: &Table<K, V>,
        range: Range<K>,
        order: Order,
        limit: usize,
    ) -> Result<Vec<(K, V)>, StoreError> {
        let mut found = Vec::new();
        let Range { mut start, mut end, .. } = range;
        while found.len() < limit {
            let wanted = limit - found.len();
            let rows = self.0.engine.range(Scan { start: &start, end: &end, order, limit: wanted }).await?;
            for (key, row) in &rows {
                // A further piece of a value stands at its key with one more byte.
                if let Ok(decoded) = table.decode_key(key)
                    && let Some(value) = self.value(table, key, row.clone()).await?
                {
                    found.push((decoded, value));
                }
            }
            match (rows.last(), order) {
                (Some((last, _)), Order::Forward) if rows.len() == wanted => {
                    start = [last, &[0][..]].concat()
                }
                (Some((last, _)), Order::Backward) if rows.len() == wanted => end = last.to_vec(),
                _ => break,
            }
        }
        Ok(found)
    }
}

pub(crate) fn refused(error: CommitError) -> StoreError {
    match error {
        CommitError::Store(error) => error,
        CommitError::Conflict => StoreError::Invalid("a commit without preconditions was refused".into()),
    }
}
