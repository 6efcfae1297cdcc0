//! Copying a store into a new one: what was deleted is then gone from the disk, and its space free.

use std::path::{Path, PathBuf};

use crate::directory::sync;
use crate::store::refused;
use crate::tables::LAST;
use crate::{Commit, Order, Scan, Store, StoreError, StoreOptions};

const STEP_ROWS: usize = 500;
/// Of the rows gathered for one commit, before the last one is added.
const STEP_BYTES: usize = 512 * 1024;

/// What was copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compacted {
    /// How many rows.
    pub rows: u64,
    /// How many bytes of keys and values.
    pub bytes: u64,
}

impl Store {
    /// Copies the sled store in `from`, which nobody may have open, into the new directory `to`. When this is
    /// interrupted, `to` is not there. `from` stays; the caller swaps them and deletes the old one.
    pub async fn compact(
        from: impl AsRef<Path>,
        to: impl AsRef<Path>,
        options: StoreOptions,
    ) -> Result<Compacted, StoreError> {
        let (from, to) = (from.as_ref(), to.as_ref());
        if to.exists() {
            return Err(StoreError::Foreign {
                path: to.to_owned(),
                found: "the copy wants a new one".into(),
            });
        }
        let unfinished = beside(to);
        if unfinished.exists() {
            let cleared = std::fs::remove_dir_all(&unfinished);
            cleared.map_err(|error| StoreError::io(&unfinished, "clearing an earlier attempt", error))?;
        }
        let (source, target) =
            (Self::open_sled(from, options.clone()).await?, Self::open_sled(&unfinished, options).await?);
        let copied = copy(&source, &target).await;
        source.close().await;
        target.close().await;
        let copied = copied?;
        std::fs::rename(&unfinished, to).map_err(|error| StoreError::io(to, "naming the copy", error))?;
        sync(to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")))?;
        Ok(copied)
    }
}

fn beside(to: &Path) -> PathBuf {
    let mut name = to.file_name().unwrap_or_default().to_owned();
    name.push(".unfinished");
    to.with_file_name(name)
}

async fn copy(source: &Store, target: &Store) -> Result<Compacted, StoreError> {
    source.jobs_finished().await?;
    let mut first = Commit::new();
    first.skip_positions(source.watermark());
    target.commit(first).await.map_err(refused)?;
    let (mut start, mut copied) = (vec![0], Compacted::default());
    loop {
        let scan = Scan { start: &start, end: &[0xff], order: Order::Forward, limit: STEP_ROWS };
        let rows = source.scan(scan).await?;
        let Some((last, _)) = rows.last() else { return Ok(copied) };
        start = [last, &[0][..]].concat();
        let mut commit = Commit::new();
        for (key, value) in &rows {
            // How far the copy has come is its own affair.
            if LAST.all().contains(key) {
                continue;
            }
            if commit.bytes() > STEP_BYTES {
                target.commit(std::mem::take(&mut commit)).await.map_err(refused)?;
            }
            commit.put_raw(key, value);
            copied.rows += 1;
            copied.bytes += (key.len() + value.len()) as u64;
        }
        target.commit(commit).await.map_err(refused)?;
    }
}
