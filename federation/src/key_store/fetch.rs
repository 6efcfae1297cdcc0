//! Asking for keys: the server itself first, notaries where it does not answer, and notaries first where very many
//! servers are to be asked, as for the events of a large room.

use std::{net::IpAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use hearth_dag::{
    ServerKeys, VerifyKey,
    canonical::{Object, Value},
};
use hearth_store::StoreError;
use http::{Method, Request, StatusCode, header};
use ruma::{OwnedServerName, ServerName};
use serde_json::json;
use tokio::{sync::watch, time::Instant};

use super::{
    ASKED_AGAIN_MS, Inner, KEY_RESPONSE_BYTES, KEYS_TIME, KeyLookupError, KeyNeeds, KeyResponse, KeyStore,
    Source, strangers::Visit,
};
use crate::{
    network::{Limits, NetworkError},
    shares::Share,
};

/// Fetches at once; whoever makes us need keys has a share of them, see [`Shares`](crate::shares::Shares).
pub const FETCHES_AT_ONCE: usize = 100;
/// Fetches at once for one check: many servers that do not answer hold up those who asked for them, and nobody else.
pub const FETCHES_PER_CHECK: usize = 25;
/// Fetches that wait for their turn; beyond it, keys count as not to be had.
pub const FETCHES_WAITING: usize = 5_000;
/// Those who wait for the same fetch of whom it is known because of whom they do.
const CAUSES_MAX: usize = 20;
/// How long a server has for its keys.
const DIRECT_LIMITS: Limits = Limits::new(10, KEY_RESPONSE_BYTES);
/// How long a notary has, and how much it may answer.
const NOTARY_LIMITS: Limits = Limits::new(20, 8 * 1024 * 1024);
/// Servers that a notary is asked about at once.
const SERVERS_PER_QUERY: usize = 100;
/// From so many servers on, notaries are asked first.
const MANY_SERVERS: usize = 20;
/// A server that failed is not asked again for this long; doubled after each further failure.
const FAILED_FIRST: Duration = Duration::from_secs(10);
const FAILED_MAX: Duration = Duration::from_secs(600);

/// Who makes us fetch keys: places are shared among these.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Cause {
    /// This server itself, where no other has a part in it.
    Us,
    /// Those who ask us as a notary.
    Notary,
    /// What a server sent.
    Server(OwnedServerName),
    /// What a server answered when we asked it something.
    Asked(OwnedServerName),
}

/// A server whose keys could not be had.
#[derive(Debug, Clone, Copy)]
pub(super) struct Failed {
    failures: u32,
    until: Instant,
}

/// Why no keys came.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error("the answer has the status {0}")]
    Status(StatusCode),
    #[error(transparent)]
    Keys(#[from] super::BadKeys),
    #[error("the answer is no JSON text")]
    Text,
    #[error("the notary did not sign its answer")]
    Unsigned,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl KeyStore {
    /// Asks for what is missing of these keys, and waits until it is there or cannot be had, but not longer than
    /// `time`.
    pub(super) async fn fetch_missing(&self, needs: &KeyNeeds, time: Duration) -> Result<(), StoreError> {
        let missing = self.missing(needs).await?;
        if missing.is_empty() {
            return Ok(());
        }
        let cause = needs.cause();
        let fetching = async {
            if missing.len() < MANY_SERVERS || self.0.notaries.is_empty() {
                self.fetch_all(&missing, true, &cause).await;
                return Ok(());
            }
            self.ask_notaries(&missing).await;
            let missing = self.missing(needs).await?;
            // The notaries have just been asked.
            self.fetch_all(&missing, false, &cause).await;
            Ok(())
        };
        tokio::time::timeout(time, fetching).await.unwrap_or(Ok(()))
    }

    /// The same for a request that nobody can believe yet.
    pub(super) async fn fetch_for_stranger(
        &self,
        from: IpAddr,
        server: &ServerName,
        needs: &KeyNeeds,
    ) -> Result<(), KeyLookupError> {
        if self.missing(needs).await?.is_empty() {
            return Ok(());
        }
        let visit = self.0.strangers.enter(from);
        // Where others have asked for that server already, there is nothing to wait for in line.
        let is_running = self.0.fetching.lock().contains_key(server);
        if visit.is_none() && !is_running {
            return Err(KeyLookupError::Busy);
        }
        if let Some(mut started) = self.start(server, true, Place::Taken(visit)) {
            let _ = tokio::time::timeout(KEYS_TIME, started.changed()).await;
        }
        Ok(())
    }

    /// Whether some of these keys are not known only because nobody could be asked since `since_ms`: then what they
    /// signed can be judged later. A server that has answered since, and did not name them, has no such keys.
    pub(crate) async fn could_come_later(&self, needs: &KeyNeeds, since_ms: u64) -> Result<bool, StoreError> {
        let now_ms = (self.0.clock)();
        for server in needs.servers() {
            if self.0.own(server).is_some() || self.0.access.check(server).is_err() {
                continue;
            }
            let known = self.0.known(server).await?;
            let open = !needs.are_met(server, &known) && needs.could_be_met(server, &known, now_ms);
            if open && known.fetched_ms < since_ms {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The time, as keys go by it.
    pub(crate) fn now_ms(&self) -> u64 {
        (self.0.clock)()
    }

    /// The servers of whom something is missing that asking could bring.
    async fn missing(&self, needs: &KeyNeeds) -> Result<Vec<OwnedServerName>, StoreError> {
        let now_ms = (self.0.clock)();
        let mut missing = Vec::new();
        for server in needs.servers() {
            if self.0.own(server).is_some() {
                continue;
            }
            let known = self.0.known(server).await?;
            let rested = now_ms >= known.fetched_ms.saturating_add(ASKED_AGAIN_MS);
            if rested && !needs.are_met(server, &known) && needs.could_be_met(server, &known, now_ms) {
                missing.push(server.clone());
            }
        }
        Ok(missing)
    }

    /// Asks each of these servers, and returns when all have answered or failed.
    pub(super) async fn fetch_all(&self, servers: &[OwnedServerName], also_notaries: bool, cause: &Cause) {
        let servers = stream::iter(servers.to_vec());
        let fetches = servers.map(|server| async move {
            if let Some(mut started) = self.start(&server, also_notaries, Place::Wanted(cause.clone())) {
                // It ends when its sender is dropped.
                let _ = started.changed().await;
            }
        });
        fetches.buffer_unordered(FETCHES_PER_CHECK).collect::<()>().await;
    }

    /// Starts to fetch the keys of a server, or joins in where that is under way: if it still waits for a place, then for
    /// one of those who join in too.
    fn start(&self, server: &ServerName, also_notaries: bool, place: Place) -> Option<watch::Receiver<()>> {
        let inner = &self.0;
        if inner.own(server).is_some() || inner.access.check(server).is_err() {
            return None;
        }
        let mut fetching = inner.fetching.lock();
        if let Some(running) = fetching.get(server) {
            running.wanted.send_if_modified(|wanted| wanted.also(place));
            return Some(running.done.subscribe());
        }
        let resting = inner.failed.get(server).is_some_and(|failed| failed.until > Instant::now());
        if resting || fetching.len() >= FETCHES_WAITING {
            return None;
        }
        let mut wanted = Wanted::default();
        if !wanted.also(place) {
            // It wanted to join in, and there is nothing any more.
            return None;
        }
        let (done, waits) = watch::channel(());
        let (done, wanted) = (Arc::new(done), Arc::new(watch::Sender::new(wanted)));
        fetching.insert(server.to_owned(), Fetching { done: done.clone(), wanted: wanted.clone() });
        let running = Running { inner: inner.clone(), server: server.to_owned(), done };
        tokio::spawn(async move {
            let inner = &running.inner;
            let place = loop {
                tokio::select! {
                    biased;
                    place = inner.place(&wanted) => break place,
                    () = running.done.closed() => if running.is_left() { return },
                }
            };
            inner.fetch(&running.server, also_notaries).await;
            drop(place);
        });
        Some(waits)
    }

    /// Asks the notaries about many servers, one after the other until nothing is missing.
    async fn ask_notaries(&self, servers: &[OwnedServerName]) {
        let inner = &self.0;
        let mut missing: Vec<&OwnedServerName> =
            servers.iter().filter(|server| inner.access.check(server).is_ok()).collect();
        for notary in &inner.notaries {
            let mut got = Vec::new();
            for some in missing.chunks(SERVERS_PER_QUERY) {
                match inner.ask_notary(notary, some).await {
                    Ok(servers) => got.extend(servers),
                    Err(error) => {
                        tracing::debug!(%notary, %error, "a key server did not answer");
                        break;
                    }
                }
            }
            missing.retain(|server| !got.contains(server));
            if missing.is_empty() {
                return;
            }
        }
    }
}

/// Where a fetch has its place.
enum Place {
    /// Among those of strangers; none where it joins in.
    Taken(Option<Visit>),
    /// To be found among those of whoever caused it.
    Wanted(Cause),
}

/// Who wants the same fetch: it begins with the first place that one of them has.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    causes: Vec<Cause>,
    visit: Option<Visit>,
    has_begun: bool,
}

impl Wanted {
    /// Somebody else wants it. Says whether that makes a difference.
    fn also(&mut self, place: Place) -> bool {
        match place {
            _ if self.has_begun => return false,
            Place::Taken(Some(visit)) if self.visit.is_none() => self.visit = Some(visit),
            Place::Wanted(cause) if self.causes.len() < CAUSES_MAX && !self.causes.contains(&cause) => {
                self.causes.push(cause);
            }
            _ => return false,
        }
        true
    }
}

/// A fetch that others can join in.
#[derive(Debug)]
pub(super) struct Fetching {
    /// Nothing is sent: those who wait hear that it is gone.
    done: Arc<watch::Sender<()>>,
    wanted: Arc<watch::Sender<Wanted>>,
}

/// A fetch that is under way. When it ends, however it ends, those who wait are told.
struct Running {
    inner: Arc<Inner>,
    server: OwnedServerName,
    done: Arc<watch::Sender<()>>,
}

impl Running {
    /// Whether nobody waits for it any more: then nobody can join in either.
    fn is_left(&self) -> bool {
        let mut fetching = self.inner.fetching.lock();
        let is_left = self.done.receiver_count() == 0;
        if is_left {
            fetching.remove(&self.server);
        }
        is_left
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut fetching = self.inner.fetching.lock();
        // Where it was left, another one may have begun since.
        if fetching.get(&self.server).is_some_and(|running| Arc::ptr_eq(&running.done, &self.done)) {
            fetching.remove(&self.server);
        }
    }
}

impl Inner {
    /// A place for a fetch, as soon as one of those who want it has one. A stranger's is theirs already.
    async fn place(&self, wanted: &watch::Sender<Wanted>) -> (Option<Visit>, Option<Share<Cause>>) {
        let mut changes = wanted.subscribe();
        let share = loop {
            let causes = {
                let wanted = changes.borrow_and_update();
                if wanted.visit.is_some() {
                    break None;
                }
                wanted.causes.clone()
            };
            tokio::select! {
                share = self.places.wait_for_any(&causes, 1) => break Some(share),
                // This end of it is held here.
                _ = changes.changed() => {}
            }
        };
        let mut visit = None;
        wanted.send_modify(|wanted| {
            wanted.has_begun = true;
            visit = wanted.visit.take();
        });
        (visit, share)
    }

    async fn fetch(&self, server: &ServerName, also_notaries: bool) {
        match self.fetch_direct(server).await {
            Ok(()) => {
                self.failed.remove(server);
                return;
            }
            // Nobody was asked, so nobody failed.
            Err(FetchError::Network(NetworkError::Busy)) => return,
            Err(error) => tracing::debug!(%server, %error, "no keys from the server itself"),
        }
        for notary in self.notaries.iter().filter(|notary| also_notaries && *notary != server) {
            match self.ask_notary(notary, &[&server.to_owned()]).await {
                Ok(got) if !got.is_empty() => return,
                Ok(_) => {}
                Err(error) => tracing::debug!(%notary, %error, "a key server did not answer"),
            }
        }
        let failures = self.failed.get(server).map_or(0, |failed| failed.failures).saturating_add(1);
        let wait = FAILED_FIRST.saturating_mul(1 << (failures - 1).min(16)).min(FAILED_MAX);
        self.failed.insert(server.to_owned(), Failed { failures, until: Instant::now() + wait });
    }

    async fn fetch_direct(&self, server: &ServerName) -> Result<(), FetchError> {
        let request = Request::get("/_matrix/key/v2/server").body(Bytes::new());
        let request = request.map_err(|_| NetworkError::BadTarget)?;
        let answer = self.network.send(server, request, DIRECT_LIMITS).await?;
        if answer.status() != StatusCode::OK {
            return Err(FetchError::Status(answer.status()));
        }
        let text = std::str::from_utf8(answer.body()).map_err(|_| FetchError::Text)?;
        let response = KeyResponse::read(text, server, (self.clock)())?;
        Ok(self.learn(server, response, Source::Direct).await?)
    }

    /// Asks a notary, and gives the servers of which it knew something.
    async fn ask_notary(
        &self,
        notary: &ServerName,
        servers: &[&OwnedServerName],
    ) -> Result<Vec<OwnedServerName>, FetchError> {
        let now_ms = (self.clock)();
        // Its own keys, to check its signature with.
        if !self.known(notary).await?.keys.iter().any(|key| !key.old && key.valid_until_ms >= now_ms) {
            self.fetch_direct(notary).await?;
        }
        let mut notary_keys = ServerKeys::default();
        for key in self.known(notary).await?.keys.iter().filter(|key| !key.old) {
            if let Some(public) = VerifyKey::new(&key.public_key, None) {
                notary_keys.insert(notary.to_owned(), key.key_id.clone(), public);
            }
        }
        let wanted: serde_json::Map<_, _> =
            servers.iter().map(|server| (server.to_string(), json!({}))).collect();
        let request = Request::builder()
            .method(Method::POST)
            .uri("/_matrix/key/v2/query")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Bytes::from(json!({ "server_keys": wanted }).to_string()))
            .map_err(|_| NetworkError::BadTarget)?;
        let answer = self.network.send(notary, request, NOTARY_LIMITS).await?;
        if answer.status() != StatusCode::OK {
            return Err(FetchError::Status(answer.status()));
        }
        let text = std::str::from_utf8(answer.body()).map_err(|_| FetchError::Text)?;
        let answer = Object::parse(text, false).map_err(|_| FetchError::Text)?;
        let all = answer.get("server_keys").and_then(Value::as_array).ok_or(FetchError::Text)?;
        let mut got = Vec::new();
        for object in all.iter().filter_map(Value::as_object) {
            let name = object.get("server_name").and_then(Value::as_str);
            let Some(server) = servers.iter().find(|server| Some(server.as_str()) == name) else { continue };
            notary_keys.verify_json(notary, object).map_err(|_| FetchError::Unsigned)?;
            match KeyResponse::of_object(object, server, now_ms) {
                Ok(response) => {
                    self.learn(server, response, Source::Notary).await?;
                    got.push((*server).clone());
                }
                Err(error) => {
                    tracing::debug!(%server, %notary, %error, "keys that a notary gave are not good")
                }
            }
        }
        Ok(got)
    }
}
