//! Files that no row names go: a crash, or a client that goes away, may come between writing a file and its row.
//! * A file that is being received, or that is younger than [`AGE`], is left alone.
//! * It works folder by folder and in steps; at most about [`AT_ONCE`] names are in memory.
//! * Nothing is held between the steps, so that the store can be closed.

use std::{
    collections::HashSet,
    io,
    sync::{Arc, Weak},
    time::Duration,
};

use hearth_store::{Order, StoreError};
use tokio::task::spawn_blocking;

use super::{
    Inner, Media,
    files::FileId,
    tables::{Content, MEDIA},
};

/// How long a file may be without a row.
pub const AGE: Duration = Duration::from_secs(3600);
/// When the first sweep begins, after the start.
const FIRST: Duration = Duration::from_secs(10 * 60);
/// How long it is to the next one.
const EVERY: Duration = Duration::from_secs(24 * 3600);
/// Names that are held against the rows at once.
const AT_ONCE: usize = 250_000;
/// Rows that are read at once.
const ROWS: usize = 500;

/// Why a sweep ended early.
#[derive(Debug, thiserror::Error)]
pub(super) enum SweepError {
    #[error("the server stops")]
    Stopped,
    #[error("a folder cannot be read")]
    Folder(#[from] io::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Media {
    /// Sweeps from time to time, as long as there is a clone of these media.
    pub(super) fn sweep_daily(&self) {
        let media = Arc::downgrade(&self.0);
        tokio::spawn(async move {
            tokio::time::sleep(FIRST).await;
            loop {
                match sweep(&media).await {
                    Ok(0) => {}
                    Ok(removed) => tracing::info!(removed, "media files that nothing names were removed"),
                    Err(SweepError::Stopped | SweepError::Store(StoreError::Closed)) => return,
                    Err(error) => tracing::warn!(%error, "media files that nothing names were not removed"),
                }
                let Some(inner) = media.upgrade() else { return };
                if let Err(error) = Media(inner).evict().await {
                    tracing::warn!(%error, "old copies of media were not removed");
                }
                tokio::time::sleep(EVERY).await;
            }
        });
    }
}

/// One sweep over all folders; how many files went.
pub(super) async fn sweep(media: &Weak<Inner>) -> Result<usize, SweepError> {
    let before_ms = (open(media)?.clock)().saturating_sub(AGE.as_millis() as u64);
    let (mut folders, mut removed) = (0..=u8::MAX, 0);
    loop {
        let mut nameless = HashSet::new();
        while nameless.len() < AT_ONCE
            && let Some(folder) = folders.next()
        {
            let files = open(media)?.files.clone();
            let settled = spawn_blocking(move || files.settled(folder, before_ms, AT_ONCE));
            nameless.extend(settled.await.map_err(io::Error::other)??);
        }
        if nameless.is_empty() {
            return Ok(removed);
        }
        // Listed first, looked up second: a row that came in between is seen.
        keep_named(media, &mut nameless).await?;
        for id in nameless {
            open(media)?.files.remove(id).await;
            removed += 1;
        }
    }
}

/// Takes out of `files` all that have a row.
async fn keep_named(media: &Weak<Inner>, files: &mut HashSet<FileId>) -> Result<(), SweepError> {
    let mut range = MEDIA.all();
    loop {
        let rows = open(media)?.store.range(&MEDIA, range, Order::Forward, ROWS).await?;
        for (_, medium) in &rows {
            if let Content::Stored(file) = &medium.content {
                files.remove(&file.id);
            }
        }
        match rows.last() {
            Some((last, _)) if rows.len() == ROWS && !files.is_empty() => range = MEDIA.all().after(last),
            _ => return Ok(()),
        }
    }
}

fn open(media: &Weak<Inner>) -> Result<Arc<Inner>, SweepError> {
    media.upgrade().ok_or(SweepError::Stopped)
}
