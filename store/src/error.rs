//! What can go wrong in the store. Every message about a directory names its path.

use std::path::{Path, PathBuf};

/// An error of the store. Cheap to clone, since one failure may answer many callers.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// A row does not decode: written by something else, or damaged.
    #[error("table {table}: the row {key} does not decode: {reason}")]
    Corrupt { table: &'static str, key: String, reason: String },
    /// A key or value is past its bound. Nothing of the commit was written.
    #[error("{what} has {size}, the limit is {limit}")]
    TooLarge { what: String, size: usize, limit: usize },
    /// Rows that would each fit are too many for one commit. Nothing of it was written.
    #[error("a commit has {size} {unit}, the limit is {limit}")]
    CommitTooLarge { unit: &'static str, size: usize, limit: usize },
    /// The commit itself makes no sense, such as a precondition on a position that is not known yet.
    #[error("not a valid commit: {0}")]
    Invalid(String),
    /// Too much is queued already.
    #[error("the store has {queued} bytes of commits waiting, the limit is {limit}")]
    Overloaded { queued: usize, limit: usize },
    /// Writing stopped because the disk is nearly full. Reading goes on.
    #[error("{}: only {free} bytes are free on this disk, writing stops below {reserve}", path.display())]
    DiskReserve { path: PathBuf, free: u64, reserve: u64 },
    /// Another process holds the directory.
    #[error("{}: another process{} uses this store", path.display(), owner(holder))]
    Locked { path: PathBuf, holder: Option<u32> },
    /// The directory holds something that is not one of our stores.
    #[error("{}: this directory is not empty and not a Hearth store ({found})", path.display())]
    Foreign { path: PathBuf, found: String },
    /// The store has a format that this version does not know.
    #[error("{}: this store has format {found}, this version of Hearth reads format {supported}", path.display())]
    UnknownFormat { path: PathBuf, found: String, supported: u32 },
    /// The files are damaged.
    #[error("{}: the store is damaged: {reason}", path.display())]
    Damaged { path: PathBuf, reason: String },
    /// The operating system refused.
    #[error("{}: {action}: {reason}", path.display())]
    Io { path: PathBuf, action: &'static str, reason: String },
    /// The engine failed.
    #[error("the storage engine failed: {0}")]
    Engine(String),
    /// The store was closed before the operation was done.
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    pub(crate) fn io(path: &Path, action: &'static str, error: impl std::fmt::Display) -> Self {
        Self::Io { path: path.to_owned(), action, reason: error.to_string() }
    }

    pub(crate) fn corrupt(table: &'static str, key: &[u8], malformed: &Malformed) -> Self {
        Self::Corrupt { table, key: crate::codec::hex(key), reason: malformed.to_string() }
    }
}

fn owner(holder: &Option<u32>) -> String {
    holder.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
}

/// Why a commit did not happen.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CommitError {
    /// A precondition no longer holds: load again, decide again.
    #[error("a precondition of the commit no longer holds")]
    Conflict,
    /// The store refused or failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Bytes that are not what their codec writes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub std::borrow::Cow<'static, str>);

impl Malformed {
    /// With a fixed reason.
    pub const fn new(reason: &'static str) -> Self {
        Self(std::borrow::Cow::Borrowed(reason))
    }
}
