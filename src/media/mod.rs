//! The content repository: files that local users upload, copies of other servers' files, and thumbnails of both.
//! * A file exists once its row is in the store; its bytes are on the disk before that.
//! * An address is filled once, by whom it was made for, and then never changes.
//! * Sizes are bounded for a file, for a user and in total; what a user may reserve is bounded in number.

mod buffers;
pub mod cache;
pub mod disposition;
pub mod files;
pub mod ids;
pub mod range;
pub mod reading;
pub mod remote;
mod sweep;
pub mod tables;
pub mod thumbnails;
pub mod wanted;
mod writing;

#[cfg(test)]
mod tests;

use std::{path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::Stream;
use hearth_pictures::{Frame, PictureError};
use hearth_store::{Commit, CommitError, Order, Store, StoreError};
use ruma::UserId;
use tokio::sync::{Mutex, Notify};

use self::{
    files::{Files, ReceiveError, Received},
    ids::MediaKey,
    reading::Reader,
    tables::{Content, File, MEDIA, Medium, OWNED, RESERVED, USAGE, Usage},
    thumbnails::{Thumbnail, Thumbnailer},
};

/// How long a reserved address waits for its file.
pub const RESERVATION: Duration = Duration::from_secs(24 * 3600);
/// Addresses that one user may have reserved at a time.
pub const RESERVED_MAX: usize = 100;
/// How often an upload is counted again after another node counted one.
const COUNT_TRIES: usize = 10;
/// Longer names and types of files are not kept.
const NAME_MAX: usize = 255;

/// Tells the milliseconds since 1970.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// Settings.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder for the files.
    pub folder: PathBuf,
    /// The most bytes of one file.
    pub file_max: u64,
    /// The most bytes of all files of one user.
    pub user_quota: Option<u64>,
    /// The most bytes of all files.
    pub total_quota: Option<u64>,
    /// Uploads are refused while less than this is free on the disk, in bytes.
    pub disk_reserve: u64,
    /// The most bytes of all copies of other servers' files.
    pub copies_max: u64,
    /// How long a copy stays that nobody asks for.
    pub copies_age: Duration,
}

/// What an uploader says of a file.
#[derive(Clone, Debug, Default)]
pub struct About {
    pub content_type: Option<String>,
    pub name: Option<String>,
}

/// An address that waits for its file.
#[derive(Clone, Debug)]
pub struct Reservation {
    pub key: MediaKey,
    pub expires_ms: u64,
}

/// Why a file was not taken.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    #[error(transparent)]
    Receive(#[from] ReceiveError),
    #[error("the files of this user would take more than {0} bytes")]
    UserQuota(u64),
    #[error("the files of this server would take more than {0} bytes")]
    TotalQuota(u64),
    #[error("there are {RESERVED_MAX} addresses that wait for their files")]
    TooManyReserved,
    #[error("there is no such address, or it has lapsed")]
    NoSuchAddress,
    #[error("the address was made for somebody else")]
    NotYours,
    #[error("the address has its file already")]
    AlreadyFilled,
    #[error("too many uploads at once")]
    Busy,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<CommitError> for UploadError {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Conflict => Self::AlreadyFilled,
            CommitError::Store(error) => Self::Store(error),
        }
    }
}

/// Why there is nothing to read.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    #[error("there is no such media here")]
    NotFound,
    #[error("the file has not been uploaded yet")]
    NotYetUploaded,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The content repository. Cheap to clone.
#[derive(Clone)]
pub struct Media(Arc<Inner>);

struct Inner {
    store: Store,
    files: Arc<Files>,
    thumbnailer: Thumbnailer,
    options: Options,
    clock: Clock,
    /// Held while a file is counted, so that two uploads do not count on the same sum.
    counting: Mutex<()>,
    /// Tells those who wait for a reserved address that some address was filled.
    filled: Notify,
}

impl Media {
    /// Runs within a runtime: from time to time it sweeps up what crashes left.
    pub fn open(store: Store, options: Options, clock: Clock) -> std::io::Result<Self> {
        let files = Arc::new(Files::open(options.folder.clone(), options.disk_reserve)?);
        let media = Self(Arc::new(Inner {
            store,
            files,
            thumbnailer: Thumbnailer::default(),
            options,
            clock,
            counting: Mutex::new(()),
            filled: Notify::new(),
        }));
        media.sweep_daily();
        Ok(media)
    }

    /// The most bytes of one file.
    pub fn file_max(&self) -> u64 {
        self.0.options.file_max
    }

    /// Takes a file under a new address on the owner's server.
    pub async fn upload<E>(
        &self,
        owner: &UserId,
        about: About,
        pieces: impl Stream<Item = Result<Bytes, E>> + Send,
    ) -> Result<MediaKey, UploadError>
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let limit = self.room_left(owner).await?;
        let received = self.receive(pieces, limit).await?;
        let key = MediaKey::random(owner.server_name());
        self.store_file(None, &key, owner, about, received).await?;
        Ok(key)
    }

    /// Makes an address whose file comes later.
    pub async fn reserve(&self, owner: &UserId) -> Result<Reservation, UploadError> {
        let now_ms = (self.0.clock)();
        let waiting = RESERVED.prefix(&owner.to_string());
        let waiting = self.0.store.range(&RESERVED, waiting, Order::Forward, RESERVED_MAX + 1).await?;
        let mut commit = Commit::new();
        let mut open = 0;
        for (key @ (_, expires_ms, _), ()) in &waiting {
            if *expires_ms > now_ms {
                open += 1;
                continue;
            }
            commit.delete(&RESERVED, key);
            commit.delete(&MEDIA, &key.2);
        }
        if open >= RESERVED_MAX {
            return Err(UploadError::TooManyReserved);
        }
        let key = MediaKey::random(owner.server_name());
        let expires_ms = now_ms + RESERVATION.as_millis() as u64;
        let content = Content::Reserved { expires_ms };
        commit.expect_absent(&MEDIA, &key);
        commit.put(&MEDIA, &key, &Medium { owner: owner.to_string(), created_ms: now_ms, content });
        commit.put(&RESERVED, &(owner.to_string(), expires_ms, key.clone()), &());
        self.0.store.commit(commit).await?;
        Ok(Reservation { key, expires_ms })
    }

    /// Takes the file for an address that was reserved.
    pub async fn fill<E>(
        &self,
        owner: &UserId,
        key: &MediaKey,
        about: About,
        pieces: impl Stream<Item = Result<Bytes, E>> + Send,
    ) -> Result<(), UploadError>
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let medium = self.0.store.get(&MEDIA, key).await?.ok_or(UploadError::NoSuchAddress)?;
        if medium.owner != *owner.as_str() {
            return Err(UploadError::NotYours);
        }
        let Content::Reserved { expires_ms } = medium.content else {
            return Err(UploadError::AlreadyFilled);
        };
        if expires_ms <= (self.0.clock)() {
            return Err(UploadError::NoSuchAddress);
        }
        let limit = self.room_left(owner).await?;
        let received = self.receive(pieces, limit).await?;
        self.store_file(Some(&medium), key, owner, about, received).await?;
        self.0.filled.notify_waiters();
        Ok(())
    }

    /// The file behind an address. If it has not come yet, waits for it, at most `patience`.
    pub async fn find(&self, key: &MediaKey, patience: Duration) -> Result<File, FindError> {
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            let filled = self.0.filled.notified();
            let mut filled = std::pin::pin!(filled);
            // Registered before the row is read: a file that comes in between is not missed.
            filled.as_mut().enable();
            match self.0.store.get(&MEDIA, key).await?.ok_or(FindError::NotFound)?.content {
                Content::Stored(file) => return Ok(file),
                Content::Reserved { expires_ms } if expires_ms <= (self.0.clock)() => {
                    return Err(FindError::NotFound);
                }
                Content::Reserved { .. } => {}
            }
            if tokio::time::timeout_at(deadline, filled).await.is_err() {
                return Err(FindError::NotYetUploaded);
            }
        }
    }

    /// The bytes of a file.
    pub async fn read(&self, file: &File) -> std::io::Result<Reader> {
        self.0.files.read(file.id).await
    }

    /// A file's thumbnail.
    pub async fn thumbnail(&self, file: &File, frame: Frame) -> Result<Thumbnail, PictureError> {
        self.0.thumbnailer.thumbnail(&self.0.files, file.id, frame).await
    }

    /// What a user's files take.
    pub async fn usage(&self, owner: &UserId) -> Result<Usage, StoreError> {
        Ok(self.0.store.get(&USAGE, &owner.to_string()).await?.unwrap_or_default())
    }

    /// How large a further file of this user may be. The sums are checked again when it is there.
    async fn room_left(&self, owner: &UserId) -> Result<u64, UploadError> {
        let options = &self.0.options;
        if options.user_quota.is_none() && options.total_quota.is_none() {
            return Ok(options.file_max);
        }
        let sums = self.0.store.multi_get(&USAGE, &[owner.to_string(), String::new()]).await?;
        let mut sums = sums.into_iter().map(|sum| sum.unwrap_or_default().bytes + 1);
        Self::check_user(options, sums.next().unwrap_or_default())?;
        Self::check_total(options, sums.next().unwrap_or_default())?;
        Ok(options.file_max)
    }

    async fn receive<E>(
        &self,
        pieces: impl Stream<Item = Result<Bytes, E>> + Send,
        limit: u64,
    ) -> Result<Received, ReceiveError>
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.0.files.receive(pieces, limit).await
    }

    /// Makes the row of a received file; only if that row is still what it `was`.
    async fn store_file(
        &self,
        was: Option<&Medium>,
        key: &MediaKey,
        owner: &UserId,
        about: About,
        received: Received,
    ) -> Result<(), UploadError> {
        let Received { id, size, checksum, .. } = received;
        let short = |text: String| Some(text).filter(|text| !text.is_empty() && text.len() <= NAME_MAX);
        let (content_type, name) = (about.content_type.and_then(short), about.name.and_then(short));
        let content = Content::Stored(File { id, size, checksum, content_type, name });
        let becomes = Medium { owner: owner.to_string(), created_ms: (self.0.clock)(), content };
        let stored = self.count_and_commit(was, key, becomes, size).await;
        if stored.is_err() {
            self.0.files.remove(id).await;
        }
        stored
    }

    async fn count_and_commit(
        &self,
        was: Option<&Medium>,
        key: &MediaKey,
        becomes: Medium,
        size: u64,
    ) -> Result<(), UploadError> {
        let of_user = becomes.owner.clone();
        let rows = [of_user, String::new()];
        // One at a time on this node; another node's uploads show as a conflict.
        let _counting = self.0.counting.lock().await;
        for _ in 0..COUNT_TRIES {
            let mut commit = Commit::new();
            match was {
                None => commit.expect_absent(&MEDIA, key),
                Some(was) => commit.expect(&MEDIA, key, was),
            }
            if let Some(Medium { owner, content: Content::Reserved { expires_ms }, .. }) = was {
                commit.delete(&RESERVED, &(owner.clone(), *expires_ms, key.clone()));
            }
            commit.put(&MEDIA, key, &becomes);
            commit.put(&OWNED, &(becomes.owner.clone(), becomes.created_ms, key.clone()), &());
            let sums = self.0.store.multi_get(&USAGE, &rows).await?;
            for ((row, sum), check) in rows.iter().zip(sums).zip([Self::check_user, Self::check_total]) {
                match &sum {
                    None => commit.expect_absent(&USAGE, row),
                    Some(sum) => commit.expect(&USAGE, row, sum),
                }
                let sum = sum.unwrap_or_default();
                let sum = Usage { files: sum.files + 1, bytes: sum.bytes + size };
                check(&self.0.options, sum.bytes)?;
                commit.put(&USAGE, row, &sum);
            }
            match self.0.store.commit(commit).await {
                Ok(_) => return Ok(()),
                Err(CommitError::Store(error)) => return Err(error.into()),
                Err(CommitError::Conflict) if self.0.store.get(&MEDIA, key).await?.as_ref() != was => {
                    return Err(UploadError::AlreadyFilled);
                }
                Err(CommitError::Conflict) => {}
            }
        }
        Err(UploadError::Busy)
    }

    fn check_user(options: &Options, bytes: u64) -> Result<(), UploadError> {
        match options.user_quota {
            Some(quota) if bytes > quota => Err(UploadError::UserQuota(quota)),
            _ => Ok(()),
        }
    }

    fn check_total(options: &Options, bytes: u64) -> Result<(), UploadError> {
        match options.total_quota {
            Some(quota) if bytes > quota => Err(UploadError::TotalQuota(quota)),
            _ => Ok(()),
        }
    }
}
