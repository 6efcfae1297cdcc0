//! Whole servers in one process, for tests: on the memory store, callable without sockets or with them.
//! Nothing here is reachable from the binary.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use axum::body::{Body, Bytes};
use hearth_dag::{Keypair, Signer as _};
use hearth_federation::{
    Limits, Network, NetworkError, published_keys,
    tables::SENT_UP_TO,
    x_matrix::{SignedParts, signed_content},
};
use hearth_store::{Order, Scan, Store};
use hearth_users::{NewAccount, NewSession};
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use ruma::{OwnedDeviceId, OwnedServerName, OwnedUserId, ServerName, UserId, server_name};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::{
    app::App,
    clock::now_ms,
    config::Config,
    http::{Dispatcher, Shutdown},
    server::{self, Front, Listeners},
};

/// A server that nobody else can reach. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct TestServer {
    front: Front,
    /// Its parts.
    pub app: App,
    /// The servers that it can reach.
    pub network: TestNetwork,
    next: Arc<std::sync::atomic::AtomicU64>,
}

/// An answer, read to its end.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

/// A local user on one device.
#[derive(Clone)]
pub struct TestUser {
    /// Where.
    pub server: TestServer,
    /// Who.
    pub user_id: OwnedUserId,
    /// On which device.
    pub device_id: OwnedDeviceId,
    /// The access token.
    pub token: String,
}

impl Answer {
    /// The body as JSON; null if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// The JSON of a 200 answer.
    #[track_caller]
    pub fn ok(&self) -> Value {
        assert_eq!(self.status, StatusCode::OK, "{}", String::from_utf8_lossy(&self.body));
        self.json()
    }

    /// Checks that it is this refusal, and gives its JSON.
    #[track_caller]
    pub fn refused(&self, status: u16, errcode: &str) -> Value {
        let json = self.json();
        let got = (self.status.as_u16(), json["errcode"].as_str().unwrap_or_default());
        assert_eq!(got, (status, errcode), "{}", String::from_utf8_lossy(&self.body));
        json
    }
}

impl TestServer {
    /// A server named `hearth.test` with open registration and no rate limits.
    pub async fn start() -> Self {
        Self::with(|_| ()).await
    }

    /// The same with its configuration changed.
    pub async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config { server_name: server_name!("hearth.test").to_owned(), ..Config::default() };
        config.registration.open = true;
        config.rate_limits.enabled = false;
        change(&mut config);
        Self::on(config, Store::memory().await, TestNetwork::default()).await
    }

    /// A server on a store that may hold something already, in a network that may have others.
    pub async fn on(config: Config, store: Store, network: TestNetwork) -> Self {
        let server_name = config.server_name.clone();
        let key =
            Keypair::new(config.server_name.clone(), "test", &[7; 32]).expect("the version is a good one");
        let app = App::on(Arc::new(config), store, key, Arc::new(network.clone()), Shutdown::default());
        let app = app.await.expect("the store is good");
        crate::client_api::resume(app.clone());
        crate::federation_api::resume(app.clone());
        let dispatcher = Dispatcher::new(app.clone(), &server::routes()).expect("the route table is good");
        let front = Front::over(dispatcher);
        network.0.lock().insert(server_name, Peer::Server(front.clone()));
        Self { front, app, network, next: Arc::default() }
    }

    /// Sends a request as it is.
    pub async fn send(&self, request: Request<Body>) -> Answer {
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        let response = self.front.handle(request, peer).await;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.expect("answers are read whole").to_bytes();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    /// Sends a request with a token and a JSON body, either or none.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: Option<Value>,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        self.send(request.body(Body::from(body)).expect("the path is a good one")).await
    }

    /// Listens on a free port of 127.0.0.1 until the server is stopped.
    pub async fn listen(&self) -> SocketAddr {
        let config = Config { bind: vec![SocketAddr::from(([127, 0, 0, 1], 0))], ..Config::default() };
        let listeners = Listeners::bind(&config).await.expect("there is a free port");
        let address = listeners.addresses()[0];
        let (front, shutdown) = (self.front.clone(), self.app.shutdown.clone());
        tokio::spawn(server::serve(listeners, front, 1024, shutdown));
        address
    }

    /// A new user with a session; no password is hashed.
    pub async fn user(&self, localpart: &str) -> TestUser {
        self.make_user(localpart, false).await
    }

    /// A new administrator.
    pub async fn admin(&self, localpart: &str) -> TestUser {
        self.make_user(localpart, true).await
    }

    async fn make_user(&self, localpart: &str, admin: bool) -> TestUser {
        let user_id = UserId::parse(format!("@{localpart}:{}", self.app.config.server_name));
        let user_id = user_id.expect("the localpart is a good one");
        let mut account = NewAccount::person(user_id.clone(), None);
        account.admin = admin;
        account.displayname = Some(localpart.to_owned());
        self.app.users.create_account(account, None).await.expect("the name is free");
        self.device(&user_id, &format!("{}DEVICE", localpart.to_uppercase())).await
    }

    /// A session of a user on a device.
    pub async fn device(&self, user_id: &UserId, device_id: &str) -> TestUser {
        let new = NewSession {
            user_id: user_id.to_owned(),
            device_id: Some(device_id.into()),
            display_name: None,
            refreshable: false,
        };
        let session = self.app.users.start_session(new).await.expect("the user is there");
        TestUser {
            server: self.clone(),
            user_id: session.user_id,
            device_id: session.device_id,
            token: session.access_token,
        }
    }

    /// A number that was not given out before.
    pub fn fresh(&self) -> u64 {
        self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
    }

    /// What stands for all that the store holds: equal before and after a refusal.
    pub async fn digest(&self) -> String {
        self.app.store.settled().await;
        let mut hash = Sha256::new();
        let mut start: Vec<u8> = Vec::new();
        loop {
            let scan = Scan { start: &start, end: &[0xff; 8], order: Order::Forward, limit: 1000 };
            let rows = self.app.store.scan(scan).await.expect("the store can be read");
            // How far other servers were told is written when there is time for it.
            let rows_hashed = rows.iter().filter(|(key, _)| SENT_UP_TO.key_of(key).is_none());
            for (key, value) in rows_hashed {
                hash.update(key.len().to_be_bytes());
                hash.update(&key[..]);
                hash.update(value.len().to_be_bytes());
                hash.update(&value[..]);
            }
            match rows.last() {
                Some((last, _)) if rows.len() == 1000 => start = [last, &[0][..]].concat(),
                _ => break,
            }
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Servers that can reach each other, in this process. Cheap to clone; all clones are one.
#[derive(Clone, Default)]
pub struct TestNetwork(
    Arc<Mutex<HashMap<OwnedServerName, Peer>>>,
    Arc<Mutex<Vec<(OwnedServerName, String)>>>,
    Arc<Mutex<Vec<(OwnedServerName, String, Arc<Slow>)>>>,
);

/// How often something was asked of a server that takes its time, and how often at once.
#[derive(Default)]
pub struct Slow {
    by: Duration,
    now: AtomicUsize,
    /// Questions in all.
    pub asked: AtomicUsize,
    /// Questions at once, at most.
    pub at_once: AtomicUsize,
}

enum Peer {
    /// A whole server.
    Server(Front),
    /// One that does nothing but publish its key.
    Keys(Arc<Keypair>),
    /// One that publishes its key, and answers everything else as a story wants it.
    Fake(Arc<Keypair>, Arc<FakeAnswers>),
}

/// What a fake server answers.
pub type FakeAnswers = dyn Fn(&Request<Bytes>) -> http::Response<Bytes> + Send + Sync;

/// A server that is nothing but a name and a key: it asks, and cannot be asked.
#[derive(Clone)]
pub struct TestPeer(Arc<Keypair>);

impl TestNetwork {
    /// A new server that publishes its key.
    pub fn peer(&self, name: &ServerName) -> TestPeer {
        let key = TestPeer::stranger(name).0;
        self.0.lock().insert(name.to_owned(), Peer::Keys(key.clone()));
        TestPeer(key)
    }

    /// From now on, a server does nothing but publish this key.
    pub fn publishes(&self, key: Keypair) {
        self.0.lock().insert(key.server_name().to_owned(), Peer::Keys(Arc::new(key)));
    }

    /// From now on, that server answers requests to paths that start so as if it knew no such endpoint.
    pub fn refuse(&self, name: &ServerName, path: &str) {
        self.1.lock().push((name.to_owned(), path.to_owned()));
    }

    /// From now on, all servers answer everything again.
    pub fn refuse_nothing(&self) {
        self.1.lock().clear();
    }

    /// From now on, that server takes so long for requests to paths that start so, and they are counted.
    pub fn slow(&self, name: &ServerName, path: &str, by: Duration) -> Arc<Slow> {
        let slow = Arc::new(Slow { by, ..Slow::default() });
        self.2.lock().push((name.to_owned(), path.to_owned(), slow.clone()));
        slow
    }

    /// The server answers so from now on.
    pub fn fake(
        &self,
        peer: &TestPeer,
        answers: impl Fn(&Request<Bytes>) -> http::Response<Bytes> + Send + Sync + 'static,
    ) {
        let name = peer.0.server_name().to_owned();
        self.0.lock().insert(name, Peer::Fake(peer.0.clone(), Arc::new(answers)));
    }

    /// From now on, nobody reaches that server.
    pub fn cut(&self, name: &ServerName) {
        self.0.lock().remove(name);
    }
}

impl TestNetwork {
    /// A server that was cut off can be reached again.
    pub fn mend(&self, server: &TestServer) {
        self.0.lock().insert(server.app.config.server_name.clone(), Peer::Server(server.front.clone()));
    }
}

impl TestPeer {
    /// A server that nobody can reach.
    pub fn stranger(name: &ServerName) -> Self {
        let key = Keypair::new(name.to_owned(), "peer", &[9; 32]).expect("the version is a good one");
        Self(Arc::new(key))
    }

    /// The key that it signs with.
    pub fn key(&self) -> &Arc<Keypair> {
        &self.0
    }

    /// The `Authorization` header of a request to a server.
    pub fn signs(&self, to: &ServerName, method: &Method, target: &str, body: &[u8]) -> String {
        // What is no JSON cannot be signed, and is to be refused for that.
        let content = signed_content(body).unwrap_or_default();
        let parts = SignedParts { method: method.as_str(), target, content: content.as_deref() };
        parts.sign(&*self.0, to)
    }
}

#[async_trait]
impl Network for TestNetwork {
    async fn send(
        &self,
        to: &ServerName,
        request: Request<Bytes>,
        limits: Limits,
    ) -> Result<http::Response<Bytes>, NetworkError> {
        let path = request.uri().path();
        let slow = self
            .2
            .lock()
            .iter()
            .find(|(name, start, _)| name == to && path.starts_with(start.as_str()))
            .cloned();
        if let Some((_, _, slow)) = slow {
            slow.asked.fetch_add(1, Ordering::SeqCst);
            slow.at_once.fetch_max(slow.now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(slow.by).await;
            slow.now.fetch_sub(1, Ordering::SeqCst);
        }
        if self.1.lock().iter().any(|(name, start)| name == to && path.starts_with(start.as_str())) {
            let answer = http::Response::builder().status(StatusCode::NOT_FOUND);
            let body = Bytes::from_static(br#"{"errcode":"M_UNRECOGNIZED","error":"refused"}"#);
            return answer.body(body).map_err(|error| NetworkError::Broken(error.to_string()));
        }
        let front = match self.0.lock().get(to) {
            None => return Err(NetworkError::Connect("there is no such server".to_owned())),
            Some(Peer::Keys(key)) => return Ok(http::Response::new(published_keys(key, now_ms()).into())),
            Some(Peer::Fake(key, _)) if request.uri().path().starts_with("/_matrix/key/") => {
                return Ok(http::Response::new(published_keys(key, now_ms()).into()));
            }
            Some(Peer::Fake(_, answers)) => {
                let answers = answers.clone();
                return Ok(answers(&request));
            }
            Some(Peer::Server(front)) => front.clone(),
        };
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        let answer = tokio::time::timeout(limits.timeout, front.handle(request.map(Body::from), peer)).await;
        let (parts, body) = answer.map_err(|_| NetworkError::Timeout)?.into_parts();
        let body = body.collect().await.map_err(|error| NetworkError::Broken(error.to_string()))?.to_bytes();
        if body.len() > limits.max_bytes {
            return Err(NetworkError::TooLarge { max_bytes: limits.max_bytes });
        }
        Ok(http::Response::from_parts(parts, body))
    }

    async fn fetch(&self, _: &str, _: Limits) -> Result<http::Response<Bytes>, NetworkError> {
        Err(NetworkError::Connect("there is nothing but servers".to_owned()))
    }
}

/// A path's part, percent-encoded.
pub fn encoded(part: &str) -> String {
    percent_encoding::utf8_percent_encode(part, percent_encoding::NON_ALPHANUMERIC).to_string()
}

impl TestUser {
    /// `GET` with the user's token.
    pub async fn get(&self, path: &str) -> Answer {
        self.server.request(Method::GET, path, Some(&self.token), None).await
    }

    /// `PUT` with the user's token.
    pub async fn put(&self, path: &str, body: Value) -> Answer {
        self.server.request(Method::PUT, path, Some(&self.token), Some(body)).await
    }

    /// `POST` with the user's token.
    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.server.request(Method::POST, path, Some(&self.token), Some(body)).await
    }

    /// `DELETE` with the user's token.
    pub async fn delete(&self, path: &str) -> Answer {
        self.server.request(Method::DELETE, path, Some(&self.token), None).await
    }

    /// Makes a room and gives its id.
    pub async fn creates_a_room(&self, body: Value) -> String {
        let created = self.post("/_matrix/client/v3/createRoom", body).await.ok();
        created["room_id"].as_str().unwrap_or_default().to_owned()
    }

    /// Makes a room that everybody may join.
    pub async fn creates_a_public_room(&self) -> String {
        self.creates_a_room(json!({ "preset": "public_chat" })).await
    }

    /// Joins a room by id or alias.
    pub async fn joins(&self, room: &str) {
        self.post(&format!("/_matrix/client/v3/join/{}", encoded(room)), json!({})).await.ok();
    }

    /// Invites another user.
    pub async fn invites(&self, room: &str, other: &TestUser) {
        let path = format!("/_matrix/client/v3/rooms/{}/invite", encoded(room));
        self.post(&path, json!({ "user_id": other.user_id })).await.ok();
    }

    /// Leaves a room.
    pub async fn leaves(&self, room: &str) {
        self.post(&format!("/_matrix/client/v3/rooms/{}/leave", encoded(room)), json!({})).await.ok();
    }

    /// Sends an event and gives its id.
    pub async fn sends(&self, room: &str, kind: &str, content: Value) -> String {
        let txn = self.server.fresh();
        let path = format!("/_matrix/client/v3/rooms/{}/send/{kind}/t{txn}", encoded(room));
        let sent = self.put(&path, content).await.ok();
        sent["event_id"].as_str().unwrap_or_default().to_owned()
    }

    /// Sends a text message and gives its event id.
    pub async fn says(&self, room: &str, text: &str) -> String {
        self.sends(room, "m.room.message", json!({ "msgtype": "m.text", "body": text })).await
    }

    /// Sets state and gives the event id.
    pub async fn sets(&self, room: &str, kind: &str, state_key: &str, content: Value) -> String {
        let (room, state_key) = (encoded(room), encoded(state_key));
        let path = format!("/_matrix/client/v3/rooms/{room}/state/{kind}/{state_key}");
        let sent = self.put(&path, content).await.ok();
        sent["event_id"].as_str().unwrap_or_default().to_owned()
    }
}
