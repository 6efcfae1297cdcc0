//! Servers that are there, are gone, or lie: a network for tests, with a count of what each was asked.
#![allow(dead_code, clippy::unwrap_used)]

pub mod home;
pub mod server;

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use hearth_dag::{
    Keypair, Signer as _,
    canonical::{Object, Value},
    sign_json,
};
use hearth_federation::{
    Clock, Federation, FederationOptions, Limits, Network, NetworkError, OldVerifyKey, server_keys,
};
use hearth_store::Store;
use http::{Request, Response};
use parking_lot::Mutex;
use ruma::{OwnedServerName, ServerName};

/// Where requests come from.
pub const FROM: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
pub const NOW: u64 = 1_700_000_000_000;
pub const HOUR: u64 = 3_600_000;
pub const DAY: u64 = 24 * HOUR;

pub type Answer = Result<Response<Bytes>, NetworkError>;
type Handler = Arc<dyn Fn(&Request<Bytes>) -> Answer + Send + Sync>;

/// The network. A server without a handler does not answer.
pub struct World {
    servers: Mutex<HashMap<String, Handler>>,
    /// Server, method and path of each request.
    pub asked: Mutex<Vec<String>>,
    /// The time.
    pub now_ms: AtomicU64,
    /// How long servers take to answer; a millisecond if nothing is said.
    pub delays: Mutex<HashMap<String, Duration>>,
    pub started: tokio::time::Instant,
}

#[async_trait]
impl Network for World {
    async fn send(&self, to: &ServerName, request: Request<Bytes>, limits: Limits) -> Answer {
        self.asked.lock().push(format!("{to} {} {}", request.method(), request.uri()));
        if to.as_str().ends_with(".tarpit.test") {
            tokio::time::sleep(limits.timeout).await;
            return Err(NetworkError::Timeout);
        }
        let delay = self.delays.lock().get(to.as_str()).copied();
        tokio::time::sleep(delay.unwrap_or(Duration::from_millis(1))).await;
        let handler = self.servers.lock().get(to.as_str()).cloned();
        handler.map_or(Err(NetworkError::Timeout), |handler| handler(&request))
    }

    async fn fetch(&self, url: &str, _: Limits) -> Answer {
        self.asked.lock().push(url.to_owned());
        let handler = self.servers.lock().get(url).cloned();
        handler.map_or(Err(NetworkError::Timeout), |handler| handler(&Request::new(Bytes::new())))
    }
}

pub fn ok(body: impl Into<Bytes>) -> Answer {
    Ok(Response::new(body.into()))
}

pub fn status(status: u16, body: &'static str) -> Answer {
    Ok(Response::builder().status(status).body(Bytes::from_static(body.as_bytes())).unwrap())
}

pub fn name(text: &str) -> OwnedServerName {
    text.try_into().unwrap()
}

/// A key of a server, the same each time.
pub fn key(server: &str, version: &str) -> Arc<Keypair> {
    let mut seed = [3; 32];
    for (index, byte) in server.bytes().chain(version.bytes()).enumerate() {
        seed[index % 32] ^= byte.rotate_left(index as u32 / 32);
    }
    Arc::new(Keypair::new(name(server), version, &seed).unwrap())
}

pub fn old(key: &Keypair, expired_ts: u64) -> OldVerifyKey {
    OldVerifyKey::new(key.key_id(), &key.public_key_base64(), expired_ts).unwrap()
}

impl World {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            servers: Mutex::default(),
            asked: Mutex::default(),
            now_ms: AtomicU64::new(NOW),
            delays: Mutex::default(),
            started: tokio::time::Instant::now(),
        })
    }

    pub fn now_ms(&self) -> u64 {
        self.now_ms.load(Ordering::Relaxed)
    }

    pub fn passes(&self, ms: u64) {
        self.now_ms.fetch_add(ms, Ordering::Relaxed);
    }

    pub fn clock(self: &Arc<Self>) -> Clock {
        let world = self.clone();
        Arc::new(move || world.now_ms())
    }

    /// From now on, a server answers so.
    pub fn answers(&self, server: &str, handler: impl Fn(&Request<Bytes>) -> Answer + Send + Sync + 'static) {
        self.servers.lock().insert(server.to_owned(), Arc::new(handler));
    }

    /// From now on, a server does not answer.
    pub fn gone(&self, server: &str) {
        self.servers.lock().remove(server);
    }

    /// A server that publishes a key.
    pub fn publishes(self: &Arc<Self>, server: &str, version: &str, old: &[OldVerifyKey]) {
        let (key, old, world) = (key(server, version), old.to_vec(), self.clone());
        self.answers(server, move |_| ok(server_keys(&key, &old, world.now_ms())));
    }

    /// A notary that knows the keys `ed25519:1` of all servers, and signs its answers if it is an honest one.
    pub fn notary(self: &Arc<Self>, server: &str, honest: bool) {
        let (notary, world) = (key(server, "1"), self.clone());
        self.answers(server, move |request| {
            if request.uri().path().ends_with("/server") {
                return ok(server_keys(&notary, &[], world.now_ms()));
            }
            let asked: serde_json::Value = serde_json::from_slice(request.body()).unwrap();
            let all = asked["server_keys"].as_object().unwrap().keys().map(|server| {
                let json = server_keys(&key(server, "1"), &[], world.now_ms());
                let mut object = Object::parse(&json, false).unwrap();
                if honest {
                    sign_json(&*notary, &mut object);
                }
                object.to_canonical()
            });
            ok(format!("{{\"server_keys\":[{}]}}", all.collect::<Vec<_>>().join(",")))
        });
    }

    /// How often a server was asked anything.
    pub fn times_asked(&self, server: &str) -> usize {
        self.asked.lock().iter().filter(|line| line.starts_with(&format!("{server} "))).count()
    }

    /// A server of ours in this world.
    pub fn federation(
        self: &Arc<Self>,
        server: &str,
        store: &Store,
        change: impl FnOnce(&mut FederationOptions),
    ) -> Federation {
        let mut options = server::federation_options(server, store.clone(), self.clone(), self.clock());
        change(&mut options);
        Federation::new(options)
    }
}

/// The servers whose signatures an object has.
pub fn signers(json: &serde_json::Value) -> Vec<String> {
    json["signatures"].as_object().unwrap().keys().cloned().collect()
}

/// Whether a server signed this JSON with its first key.
pub fn is_signed_by(json: &serde_json::Value, server: &str) -> bool {
    let mut keys = hearth_dag::ServerKeys::default();
    let key = key(server, "1");
    let public = hearth_dag::VerifyKey::new(&key.public_key(), None).unwrap();
    keys.insert(name(server), key.key_id().to_owned(), public);
    let text = json.to_string();
    let object = match Value::parse(&text, false).unwrap() {
        Value::Object(object) => object,
        _ => return false,
    };
    keys.verify_json(&name(server), &object).is_ok()
}
