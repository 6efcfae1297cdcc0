//! Copies of other servers' media, kept for a while.
//! * All copies together take at most so many bytes, and none stays longer than so long without being asked for: those
//!   that were asked for longest ago go first. They count towards nobody's quota.
//! * A copy never changes, and one that went is fetched again when it is wanted.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use hearth_store::{Commit, CommitError, Order, StoreError};

use super::{
    About, COUNT_TRIES, Media, NAME_MAX, UploadError,
    files::Received,
    ids::MediaKey,
    tables::{Content, File, MEDIA, Medium, OWNED, USAGE, Usage},
    thumbnails,
};

/// Whose the copies are: nobody, as no user id looks like this.
pub const COPIES: &str = "*";
/// That a copy was asked for is written down at most this often.
const ASKED_AGAIN: Duration = Duration::from_secs(24 * 3600);
/// Copies that go at once.
const EVICTED_AT_ONCE: usize = 100;
/// How often so many go in a row.
const EVICTIONS_MAX: usize = 10_000;

impl Media {
    /// The copy of another server's media, if there is one.
    pub async fn copy_of(&self, key: &MediaKey) -> Result<Option<File>, StoreError> {
        let Some(medium) = self.0.store.get(&MEDIA, key).await? else { return Ok(None) };
        let Content::Stored(file) = &medium.content else { return Ok(None) };
        let now_ms = (self.0.clock)();
        if medium.created_ms + ASKED_AGAIN.as_millis() as u64 <= now_ms {
            let mut commit = Commit::new();
            commit.expect(&MEDIA, key, &medium);
            commit.delete(&OWNED, &(COPIES.to_owned(), medium.created_ms, key.clone()));
            commit.put(&OWNED, &(COPIES.to_owned(), now_ms, key.clone()), &());
            commit.put(&MEDIA, key, &Medium { created_ms: now_ms, ..medium.clone() });
            match self.0.store.commit(commit).await {
                // Another request wrote it down, or it has just gone; its file can still be read or not.
                Ok(_) | Err(CommitError::Conflict) => {}
                Err(CommitError::Store(error)) => return Err(error),
            }
        }
        Ok(Some(file.clone()))
    }

    /// Keeps a copy.
    pub async fn keep_copy(&self, key: &MediaKey, about: About, bytes: Bytes) -> Result<File, UploadError> {
        let whole = stream::iter([Ok::<_, std::io::Error>(bytes)]);
        let received = self.0.files.receive(whole, self.0.options.file_max).await?;
        let Received { id, size, checksum, .. } = received;
        let short = |text: String| Some(text).filter(|text| !text.is_empty() && text.len() <= NAME_MAX);
        let (content_type, name) = (about.content_type.and_then(short), about.name.and_then(short));
        let file = File { id, size, checksum, content_type, name };
        let kept = self.keep_row(key, &file).await;
        if !matches!(&kept, Ok(kept) if kept.id == id) {
            self.0.files.remove(id).await;
        }
        let kept = kept?;
        self.evict().await?;
        Ok(kept)
    }

    /// The row of a copy: this one's, or that of another which came meanwhile.
    async fn keep_row(&self, key: &MediaKey, file: &File) -> Result<File, UploadError> {
        let owner = COPIES.to_owned();
        let created_ms = (self.0.clock)();
        let medium = Medium { owner: owner.clone(), created_ms, content: Content::Stored(file.clone()) };
        let _counting = self.0.counting.lock().await;
        for _ in 0..COUNT_TRIES {
            if let Some(Medium { content: Content::Stored(held), .. }) = self.0.store.get(&MEDIA, key).await?
            {
                return Ok(held);
            }
            let mut commit = Commit::new();
            commit.expect_absent(&MEDIA, key);
            commit.put(&MEDIA, key, &medium);
            commit.put(&OWNED, &(owner.clone(), created_ms, key.clone()), &());
            self.count(&mut commit, 1, file.size as i64).await?;
            match self.0.store.commit(commit).await {
                Ok(_) => return Ok(file.clone()),
                Err(CommitError::Conflict) => {}
                Err(CommitError::Store(error)) => return Err(error.into()),
            }
        }
        Err(UploadError::Busy)
    }

    async fn count(&self, commit: &mut Commit, files: i64, bytes: i64) -> Result<(), StoreError> {
        let owner = COPIES.to_owned();
        let sum = self.0.store.get(&USAGE, &owner).await?;
        match &sum {
            None => commit.expect_absent(&USAGE, &owner),
            Some(sum) => commit.expect(&USAGE, &owner, sum),
        }
        let sum = sum.unwrap_or_default();
        let sum = Usage {
            files: sum.files.saturating_add_signed(files),
            bytes: sum.bytes.saturating_add_signed(bytes),
        };
        commit.put(&USAGE, &owner, &sum);
        Ok(())
    }

    /// Lets copies go that are too old, and as many as are too much.
    pub async fn evict(&self) -> Result<(), StoreError> {
        let options = &self.0.options;
        for _ in 0..EVICTIONS_MAX {
            let sum = self.0.store.get(&USAGE, &COPIES.to_owned()).await?.unwrap_or_default();
            let old_ms = (self.0.clock)().saturating_sub(options.copies_age.as_millis() as u64);
            let mut excess = sum.bytes.saturating_sub(options.copies_max);
            let range = OWNED.prefix(&COPIES.to_owned());
            let oldest = self.0.store.range(&OWNED, range, Order::Forward, EVICTED_AT_ONCE).await?;
            let mut gone = 0;
            for ((_, asked_ms, key), ()) in &oldest {
                if excess == 0 && *asked_ms >= old_ms {
                    break;
                }
                excess = excess.saturating_sub(self.let_go(key, *asked_ms).await?);
                gone += 1;
            }
            if gone < EVICTED_AT_ONCE {
                break;
            }
        }
        Ok(())
    }

    /// Lets one copy go, and says how large it was.
    async fn let_go(&self, key: &MediaKey, asked_ms: u64) -> Result<u64, StoreError> {
        let _counting = self.0.counting.lock().await;
        for _ in 0..COUNT_TRIES {
            let mut commit = Commit::new();
            commit.delete(&OWNED, &(COPIES.to_owned(), asked_ms, key.clone()));
            let medium = self.0.store.get(&MEDIA, key).await?;
            let file = match &medium {
                Some(medium @ Medium { content: Content::Stored(file), .. })
                    if medium.owner == COPIES && medium.created_ms == asked_ms =>
                {
                    commit.expect(&MEDIA, key, medium);
                    commit.delete(&MEDIA, key);
                    self.count(&mut commit, -1, -(file.size as i64)).await?;
                    Some(file.clone())
                }
                // It was asked for meanwhile, and stands elsewhere in the order.
                _ => None,
            };
            match self.0.store.commit(commit).await {
                Ok(_) => {
                    let Some(file) = file else { return Ok(0) };
                    self.0.files.remove(file.id).await;
                    thumbnails::remove(&self.0.files, file.id).await;
                    return Ok(file.size);
                }
                Err(CommitError::Conflict) => {}
                Err(CommitError::Store(error)) => return Err(error),
            }
        }
        Ok(0)
    }
}
