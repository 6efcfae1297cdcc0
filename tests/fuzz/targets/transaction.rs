//! Any body of a transaction is taken in or refused, with an answer that is JSON: by the server's own way through rooms
//! and users on the memory store, with one room that the events may name. Nobody else can be reached.
//!
//! The first byte says what the rest is: a body, or a part of one, so that the inner forms are met soon.
#![no_main]

use std::sync::{
    Arc, LazyLock,
    atomic::{AtomicU64, Ordering},
};

use async_trait::async_trait;
use bytes::Bytes;
use hearth_dag::{Keypair, LocalServers, Signer};
use hearth_federation::{
    Access, Federation, FederationOptions, Inbound, Limits, Network, NetworkError, OwnKeys, Patience,
    inbound::TransactionError,
};
use hearth_rooms::{CreateRoom, Preset, Rooms, RoomsOptions, SystemClock};
use hearth_store::{Commit, Store};
use hearth_users::{Options, Users};
use http::{Request, Response};
use libfuzzer_sys::fuzz_target;
use ruma::{OwnedServerName, ServerName, server_name, user_id};
use tokio::runtime::{Builder, Runtime};

/// Stands for the room in what the fuzzer makes up.
const ROOM: &str = "!r";

struct Nobody;

#[async_trait]
impl Network for Nobody {
    async fn send(
        &self,
        _: &ServerName,
        _: Request<Bytes>,
        _: Limits,
    ) -> Result<Response<Bytes>, NetworkError> {
        Err(NetworkError::Connect("there is nobody".to_owned()))
    }

    async fn fetch(&self, _: &str, _: Limits) -> Result<Response<Bytes>, NetworkError> {
        Err(NetworkError::Connect("there is nobody".to_owned()))
    }
}

struct World {
    runtime: Runtime,
    inbound: Inbound,
    room: String,
    next: AtomicU64,
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (inbound, room) = runtime.block_on(async {
        let name: OwnedServerName = server_name!("here.test").to_owned();
        let key = Arc::new(Keypair::new(name, "1", &[7; 32]).expect("a key"));
        let store = Store::memory().await;
        let local_servers = LocalServers::new([key.clone() as Arc<dyn Signer>]);
        let rooms = Rooms::new(
            store.clone(),
            local_servers.clone(),
            Arc::new(SystemClock),
            &RoomsOptions::default(),
        );
        let create = CreateRoom {
            preset: Preset::PublicChat,
            ..CreateRoom::new(user_id!("@alice:here.test").to_owned())
        };
        let room = rooms.create(&create, Commit::new()).await.expect("a room").room_id;
        let clock: hearth_federation::Clock = Arc::new(|| 1_700_000_000_000);
        let users = Users::open(store.clone(), Options::new(clock.clone()));
        let federation = Federation::new(FederationOptions {
            store,
            network: Arc::new(Nobody),
            local_servers,
            own_keys: vec![OwnKeys { key, old: Vec::new() }],
            access: Access::open(),
            trusted_key_servers: Vec::new(),
            patience: Patience::default(),
            clock,
        });
        (Inbound::new(federation, rooms, users), room.to_string())
    });
    World { runtime, inbound, room, next: AtomicU64::new(0) }
});

fuzz_target!(|data: &[u8]| {
    let Some((form, rest)) = data.split_first() else { return };
    let (before, after) = match form % 6 {
        0 => ("", ""),
        1 => (r#"{"origin":"peer.test","pdus":["#, "]}"),
        2 => (r#"{"pdus":[{"room_id":"!r","sender":"@a:peer.test","#, "}]}"),
        3 => (r#"{"edus":[{"edu_type":"m.typing","content":"#, "}]}"),
        4 => (r#"{"edus":[{"edu_type":"m.receipt","content":{"!r":{"m.read":{"@a:peer.test":"#, "}}}}]}"),
        _ => (r#"{"edus":[{"edu_type":"m.presence","content":{"push":["#, "]}}]}"),
    };
    let world = &*WORLD;
    let body = match std::str::from_utf8(rest) {
        Ok(text) => format!("{before}{text}{after}").replace(ROOM, &world.room).into(),
        // Bytes that are no text may come, too.
        Err(_) => Bytes::copy_from_slice(rest),
    };
    let txn = world.next.fetch_add(1, Ordering::Relaxed).to_string();
    let answer = world.inbound.transaction(server_name!("peer.test"), &txn, body);
    match world.runtime.block_on(answer) {
        Ok(answer) => {
            let answer: serde_json::Value = serde_json::from_slice(&answer).expect("an answer is JSON");
            assert!(answer["pdus"].is_object());
        }
        Err(
            TransactionError::Malformed(_) | TransactionError::TooMany | TransactionError::OtherOrigin,
        ) => {}
        Err(error) => panic!("a body made the server fail: {error}"),
    }
});
