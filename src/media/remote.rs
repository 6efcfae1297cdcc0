//! Media of other servers, for our users: the copy that is here, or fetched now.
//! * One fetch for an address, however many ask; so many at once, and of one server so many. A fetch goes on when those
//!   who asked have left.
//! * What could not be had is not asked for again for a moment; of a server that several times in a row could not be
//!   reached, nothing is.

use std::{collections::HashMap, sync::Arc, time::Duration};

use hearth_federation::{Client, NetworkError, RequestError};
use http::StatusCode;
use parking_lot::Mutex;
use quick_cache::sync::Cache;
use ruma::{OwnedServerName, ServerName, http_headers::ContentDisposition};
use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
    time::Instant,
};

use super::{About, Media, ids::MediaKey, tables::File};

/// Media that are fetched at the same time; each may hold a whole file in memory.
pub const FETCHES_AT_ONCE: usize = 8;
/// Of these, from one server.
pub const FETCHES_OF_A_SERVER: usize = 3;
/// Addresses that wait for their fetch.
const WAITING_MAX: usize = 1000;
/// What could not be had is not asked for again so long.
pub const FAILED_TIME: Duration = Duration::from_secs(30);
/// A server that could not be reached so many times in a row is not asked for anything for [`FAILED_TIME`]: whoever
/// names many files of it makes us wait for none of them.
pub const UNREACHABLE_TIMES: u32 = 3;
/// Failures that are remembered, of addresses and of servers.
const FAILURES_KEPT: usize = 2000;

/// Why there is nothing to show.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    #[error("the other server has no such media")]
    NotFound,
    #[error("the other server does not allow it")]
    Forbidden,
    #[error("the other server has not received the file yet")]
    NotYetUploaded,
    #[error("the file is larger than this server takes")]
    TooLarge,
    #[error("this server does not federate with that server")]
    Denied,
    #[error("the other server did not give the file: {0}")]
    Unreachable(String),
    #[error("too many media are being fetched")]
    Busy,
    #[error("it takes longer than the request waits")]
    Timeout,
    #[error("the file could not be kept: {0}")]
    Kept(String),
}

/// Media of other servers. Cheap to clone; fetches end with the last clone.
#[derive(Clone)]
pub struct RemoteMedia {
    inner: Arc<Inner>,
    tasks: Arc<Mutex<JoinSet<()>>>,
}

struct Inner {
    media: Media,
    client: Client,
    fetching: Mutex<HashMap<MediaKey, watch::Receiver<Option<Fetched>>>>,
    places: Semaphore,
    of_servers: Mutex<HashMap<OwnedServerName, Arc<Semaphore>>>,
    failed: Cache<MediaKey, (Instant, FetchError)>,
    /// Servers that could not be reached: since when, how many times in a row, and why.
    unreachable: Cache<OwnedServerName, (Instant, u32, String)>,
}

type Fetched = Result<File, FetchError>;

impl RemoteMedia {
    /// Fetched by this client, kept beside the files of local users.
    pub fn new(media: Media, client: Client) -> Self {
        let inner = Inner {
            media,
            client: client.even_if_failing(),
            fetching: Mutex::default(),
            places: Semaphore::new(FETCHES_AT_ONCE),
            of_servers: Mutex::default(),
            failed: Cache::new(FAILURES_KEPT),
            unreachable: Cache::new(FAILURES_KEPT),
        };
        Self { inner: Arc::new(inner), tasks: Arc::default() }
    }

    /// The file behind an address of another server. Waits for it, at most `patience`.
    pub async fn find(&self, key: &MediaKey, patience: Duration) -> Result<File, FetchError> {
        if let Some(file) = self.inner.copy_of(key).await? {
            return Ok(file);
        }
        self.inner.check_reachable(key.server())?;
        let failure = self.inner.failed.get(key).filter(|(since, _)| since.elapsed() < FAILED_TIME);
        if let Some((_, failure)) = failure {
            return Err(failure);
        }
        let mut fetching = self.fetching(key)?;
        let fetched = tokio::time::timeout(patience, fetching.wait_for(Option::is_some)).await;
        match fetched {
            Err(_) => Err(FetchError::Timeout),
            Ok(Ok(fetched)) => fetched.clone().unwrap_or(Err(FetchError::Timeout)),
            Ok(Err(_)) => Err(FetchError::Unreachable("the server is stopping".to_owned())),
        }
    }

    /// The fetch of an address, begun if there is none.
    fn fetching(&self, key: &MediaKey) -> Result<watch::Receiver<Option<Fetched>>, FetchError> {
        let mut all = self.inner.fetching.lock();
        if let Some(fetching) = all.get(key) {
            return Ok(fetching.clone());
        }
        if all.len() >= WAITING_MAX {
            return Err(FetchError::Busy);
        }
        let (done, fetching) = watch::channel(None);
        all.insert(key.clone(), fetching.clone());
        let (inner, key) = (self.inner.clone(), key.clone());
        let mut tasks = self.tasks.lock();
        while tasks.try_join_next().is_some() {}
        tasks.spawn(async move {
            let _entry = Entry(inner.clone(), key.clone());
            let fetched = inner.fetch(&key).await;
            if let Err(failure) = &fetched {
                tracing::debug!(server = %key.server(), id = key.id(), %failure, "media could not be fetched");
                inner.failed.insert(key, (Instant::now(), failure.clone()));
            }
            done.send_replace(Some(fetched));
        });
        Ok(fetching)
    }
}

/// That an address is being fetched.
struct Entry(Arc<Inner>, MediaKey);

impl Drop for Entry {
    fn drop(&mut self) {
        self.0.fetching.lock().remove(&self.1);
    }
}

impl Inner {
    async fn copy_of(&self, key: &MediaKey) -> Result<Option<File>, FetchError> {
        self.media.copy_of(key).await.map_err(|error| FetchError::Kept(error.to_string()))
    }

    async fn fetch(&self, key: &MediaKey) -> Fetched {
        let of_server = self.places_of(key.server());
        let _of_server = of_server.acquire().await;
        let _place = self.places.acquire().await;
        // Another fetch may have ended between the look and this one.
        if let Some(file) = self.copy_of(key).await? {
            return Ok(file);
        }
        let max_bytes = usize::try_from(self.media.file_max()).unwrap_or(usize::MAX);
        // It may have failed for others while this one waited for its turn.
        self.check_reachable(key.server())?;
        let medium = self.client.download(key.server(), key.id(), max_bytes).await.map_err(failure);
        self.note(key.server(), &medium);
        let medium = medium?;
        let name = medium.content_disposition.as_deref().and_then(name_in);
        let about = About { content_type: medium.content_type, name };
        let kept = self.media.keep_copy(key, about, medium.bytes).await;
        kept.map_err(|error| FetchError::Kept(error.to_string()))
    }

    fn check_reachable(&self, server: &ServerName) -> Result<(), FetchError> {
        match self.unreachable.get(server) {
            Some((since, times, why)) if times >= UNREACHABLE_TIMES && since.elapsed() < FAILED_TIME => {
                Err(FetchError::Unreachable(why))
            }
            _ => Ok(()),
        }
    }

    /// Remembers whether a server answers.
    fn note<T>(&self, server: &ServerName, fetched: &Result<T, FetchError>) {
        if let Err(FetchError::Unreachable(why)) = fetched {
            let times = self.unreachable.get(server).map_or(0, |(_, times, _)| times).saturating_add(1);
            self.unreachable.insert(server.to_owned(), (Instant::now(), times, why.clone()));
        } else {
            self.unreachable.remove(server);
        }
    }

    fn places_of(&self, server: &ServerName) -> Arc<Semaphore> {
        let mut all = self.of_servers.lock();
        all.retain(|_, places| Arc::strong_count(places) > 1);
        let new = || Arc::new(Semaphore::new(FETCHES_OF_A_SERVER));
        all.entry(server.to_owned()).or_insert_with(new).clone()
    }
}

/// What the other server calls the file.
fn name_in(disposition: &str) -> Option<String> {
    ContentDisposition::try_from(disposition.as_bytes()).ok()?.filename
}

fn failure(error: RequestError) -> FetchError {
    match &error {
        RequestError::Remote(said) => match (said.errcode.as_deref(), said.status) {
            (Some("M_NOT_YET_UPLOADED"), _) => FetchError::NotYetUploaded,
            (Some("M_TOO_LARGE"), _) => FetchError::TooLarge,
            (_, StatusCode::NOT_FOUND) => FetchError::NotFound,
            (_, StatusCode::FORBIDDEN) => FetchError::Forbidden,
            _ => FetchError::Unreachable(error.to_string()),
        },
        RequestError::Network(NetworkError::TooLarge { .. }) => FetchError::TooLarge,
        RequestError::Access(_) => FetchError::Denied,
        _ => FetchError::Unreachable(error.to_string()),
    }
}
