//! An engine: an ordered map of bytes with atomic commits. What sled, a PostgreSQL table and FoundationDB have in
//! common.

use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::oneshot;

use crate::{Commit, CommitError, Committed, Progress, StoreError};

/// Bytes that an engine read.
#[derive(Clone, Debug)]
pub struct Data(Repr);

#[derive(Clone, Debug)]
enum Repr {
    Shared(Bytes),
    Sled(sled::IVec),
}

impl Deref for Data {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Repr::Shared(bytes) => bytes,
            Repr::Sled(bytes) => bytes,
        }
    }
}

impl From<Bytes> for Data {
    fn from(bytes: Bytes) -> Self {
        Self(Repr::Shared(bytes))
    }
}

impl From<sled::IVec> for Data {
    fn from(bytes: sled::IVec) -> Self {
        Self(Repr::Sled(bytes))
    }
}

/// From which end a range is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Smallest key first.
    Forward,
    /// Largest key first.
    Backward,
}

/// A piece of the keyspace to be read.
#[derive(Clone, Copy, Debug)]
pub struct Scan<'a> {
    /// The first key that belongs to it.
    pub start: &'a [u8],
    /// The first key that does not.
    pub end: &'a [u8],
    /// The end to begin with.
    pub order: Order,
    /// How many rows at most.
    pub limit: usize,
}

/// An ordered map of bytes with atomic commits.
///
/// Two reads do not see one moment, nor need one scan; see [`crate::Store::watermark`].
#[async_trait]
pub trait Engine: Send + Sync + 'static {
    /// The value of `key`, if there is one.
    async fn get(&self, key: &[u8]) -> Result<Option<Data>, StoreError>;

    /// The values of `keys`, in their order.
    async fn multi_get(&self, keys: &[Vec<u8>]) -> Result<Vec<Option<Data>>, StoreError>;

    /// Up to `scan.limit` rows in key order, from either end.
    async fn range(&self, scan: Scan<'_>) -> Result<Vec<(Data, Data)>, StoreError>;

    /// Queues a commit behind those that were submitted before. Its preconditions are checked against all of
    /// them. What is returned resolves when it is durable, or refused.
    fn submit(&self, commit: Commit) -> Pending;

    /// How far it has come.
    fn progress(&self) -> &Arc<Progress>;

    /// Refuses further commits, and returns when the queued ones are done.
    async fn finish(&self);

    /// The same, and then waits until nobody else holds the engine any more: its files are free.
    async fn close(self: Arc<Self>);
}

/// A commit on its way to the disk. Dropping it changes nothing about the commit.
#[derive(Debug)]
pub struct Pending(oneshot::Receiver<Result<Committed, CommitError>>);

/// Where an engine says what became of a commit.
pub type Answer = oneshot::Sender<Result<Committed, CommitError>>;

impl Pending {
    /// One that resolves when it is answered.
    pub fn channel() -> (Answer, Self) {
        let (answer, pending) = oneshot::channel();
        (answer, Self(pending))
    }

    pub(crate) fn refused(error: impl Into<CommitError>) -> Self {
        let (answer, pending) = Self::channel();
        let _ = answer.send(Err(error.into()));
        pending
    }
}

impl Future for Pending {
    type Output = Result<Committed, CommitError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|answer| answer.unwrap_or(Err(StoreError::Closed.into())))
    }
}
