//! Filters that clients keep here.
//! * A filter's id follows from its content: the same filter has the same id, whenever it is uploaded.
//! * A user has at most `FILTERS_PER_USER`; the oldest one makes room.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use hearth_store::{Blob, Commit, CommitError, StoreError};
use ruma::UserId;
use serde_json::Value as Json;
use sha2::{Digest, Sha256};

use crate::{
    Users, UsersError,
    tables::{FILTER_IDS, FILTERS},
    users::ATTEMPTS,
};

/// The largest filter.
pub const FILTER_MAX: usize = 64 * 1024;
/// Filters of one user.
pub const FILTERS_PER_USER: usize = 200;
/// Bytes of the hash in an id: enough that a user never has two filters of one id.
const ID_BYTES: usize = 9;

/// Why a filter was not kept.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// Larger than `FILTER_MAX`.
    #[error("the filter is larger than {FILTER_MAX} bytes")]
    TooLarge,
    /// The store.
    #[error(transparent)]
    Users(#[from] UsersError),
}

impl From<StoreError> for FilterError {
    fn from(error: StoreError) -> Self {
        Self::Users(error.into())
    }
}

impl Users {
    /// Keeps a filter and answers its id. That it is one is the caller's to check.
    pub async fn add_filter(&self, user: &UserId, filter: &Json) -> Result<String, FilterError> {
        let bytes = Bytes::from(filter.to_string());
        if bytes.len() > FILTER_MAX {
            return Err(FilterError::TooLarge);
        }
        let digest = Sha256::digest(&bytes);
        let id = URL_SAFE_NO_PAD.encode(&digest[..ID_BYTES]);
        let owner = user.as_str().to_owned();
        for _ in 0..ATTEMPTS {
            let before = self.inner.store.get(&FILTER_IDS, &owner).await?;
            let mut ids = before.clone().unwrap_or_default();
            if ids.0.contains(&id) {
                return Ok(id);
            }
            let mut commit = Commit::new();
            while ids.0.len() >= FILTERS_PER_USER {
                let oldest = ids.0.remove(0);
                commit.delete(&FILTERS, &(owner.clone(), oldest.clone()));
                self.inner.filters.drop(&(owner.as_str().into(), oldest.as_str().into()));
            }
            ids.0.push(id.clone());
            match &before {
                Some(before) => commit.expect(&FILTER_IDS, &owner, before),
                None => commit.expect_absent(&FILTER_IDS, &owner),
            }
            commit.put(&FILTER_IDS, &owner, &ids);
            commit.put(&FILTERS, &(owner.clone(), id.clone()), &Blob(bytes.clone()));
            match self.inner.store.commit(commit).await {
                Ok(_) => return Ok(id),
                Err(CommitError::Conflict) => {}
                Err(CommitError::Store(error)) => return Err(error.into()),
            }
        }
        Err(UsersError::Busy.into())
    }

    /// A filter that the user keeps here.
    pub async fn filter(&self, user: &UserId, id: &str) -> Result<Option<Arc<Json>>, StoreError> {
        let cache_key: (Arc<str>, Arc<str>) = (user.as_str().into(), id.into());
        if let Some(filter) = self.inner.filters.get(&cache_key) {
            return Ok(Some(filter));
        }
        let ticket = self.inner.filters.ticket(&cache_key);
        let row = self.inner.store.get(&FILTERS, &(user.as_str().to_owned(), id.to_owned())).await?;
        let Some(filter) = row.and_then(|row| serde_json::from_slice::<Json>(&row.0).ok()) else {
            return Ok(None);
        };
        let filter = Arc::new(filter);
        self.inner.filters.fill(cache_key, filter.clone(), ticket);
        Ok(Some(filter))
    }
}
