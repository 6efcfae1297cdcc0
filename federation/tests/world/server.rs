//! A server of ours in a world of tests: its parts, put together as the program does it, on a store that may hold
//! something already.

use std::sync::Arc;

use hearth_dag::{Keypair, LocalServers, Signer};
use hearth_federation::{
    Access, Clock, Federation, FederationOptions, Inbound, Network, OwnKeys, Patience, RemoteRooms, Sender,
    SenderOptions,
};
use hearth_rooms::{Rooms, RoomsOptions};
use hearth_store::Store;
use hearth_users::{Options, Users};
use tokio::time::Instant;

use super::{NOW, key};

/// A clock that goes with the runtime's, which tests pause.
pub fn tokio_clock() -> Clock {
    let start = Instant::now();
    Arc::new(move || NOW + start.elapsed().as_millis() as u64)
}

struct RoomClock(Clock);

impl hearth_rooms::Clock for RoomClock {
    fn now_ms(&self) -> u64 {
        (self.0)()
    }
}

/// What a server is started with.
pub struct Plan {
    pub name: String,
    pub store: Store,
    pub network: Arc<dyn Network>,
    pub clock: Clock,
    pub patience: Patience,
    pub rooms: RoomsOptions,
}

/// The parts of a running server.
pub struct Server {
    pub key: Arc<Keypair>,
    pub clock: Clock,
    pub store: Store,
    pub rooms: Rooms,
    pub users: Users,
    pub federation: Federation,
    pub inbound: Inbound,
    pub remote_rooms: RemoteRooms,
    pub sender: Sender,
}

/// What a server is to others, if nothing else is said.
pub fn federation_options(
    server: &str,
    store: Store,
    network: Arc<dyn Network>,
    clock: Clock,
) -> FederationOptions {
    let key = key(server, "1");
    FederationOptions {
        store,
        network,
        local_servers: LocalServers::new([key.clone() as Arc<dyn Signer>]),
        own_keys: vec![OwnKeys { key, old: Vec::new() }],
        access: Access::open(),
        trusted_key_servers: Vec::new(),
        patience: Patience::default(),
        clock,
    }
}

impl Server {
    pub fn start(plan: Plan) -> Self {
        let Plan { name, store, network, clock, patience, rooms: options } = plan;
        let federation = federation_options(&name, store.clone(), network, clock.clone());
        let local = federation.local_servers.clone();
        let federation = Federation::new(FederationOptions { patience, ..federation });
        let room_clock = Arc::new(RoomClock(clock.clone()));
        let rooms = Rooms::new(store.clone(), local, room_clock, &options);
        let users = Users::open(store.clone(), Options::new(clock.clone()));
        let sender = Sender::new(SenderOptions {
            store: store.clone(),
            rooms: rooms.clone(),
            users: users.clone(),
            federation: federation.clone(),
            clock: clock.clone(),
            boot: clock(),
        });
        sender.start();
        let inbound = Inbound::new(federation.clone(), rooms.clone(), users.clone());
        let remote_rooms = RemoteRooms::start(federation.clone(), rooms.clone());
        let key = key(&name, "1");
        Self { key, clock, store, rooms, users, federation, inbound, remote_rooms, sender }
    }
}
