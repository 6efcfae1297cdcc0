//! A server of a simulation: what it is started with, and what its users do. It may end at any moment and go on later
//! with what is on its disk.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use hearth_dag::{Pdu, RoomRules, Signer as _, canonical::Object, content_hash, countersign, reference_hash};
use hearth_federation::{Clock, Patience};
use hearth_rooms::{
    Chance, CreateRoom, EventSn, Join, Membership, Preset, Profile, Residency, RoomInfo, RoomsOptions, Send,
    Status, StoredEvent,
};
use hearth_store::{Commit, Engine, Store};
use parking_lot::Mutex;
use rand::{Rng as _, SeedableRng as _, distr::Alphanumeric, rngs::StdRng};
use ruma::{
    OwnedEventId, OwnedRoomId, OwnedServerName, OwnedUserId, RoomId, RoomVersionId, ServerName, UserId,
    events::TimelineEventType,
};
use serde_json::{Map, Value, json, value::to_raw_value};
use tokio::task::JoinHandle;

use crate::{
    answering::Answering,
    disk::Power,
    network::{Net, Wire},
    world::server::{Plan, Server},
};

/// How long a server that fails is left alone.
const PATIENCE: Patience = Patience { first: Duration::from_secs(1), longest: Duration::from_secs(10) };

/// Chance that comes from a seed.
#[derive(Debug)]
struct Seeded(Mutex<StdRng>);

impl Chance for Seeded {
    fn text(&self, length: usize) -> String {
        (&mut *self.0.lock()).sample_iter(Alphanumeric).take(length).map(char::from).collect()
    }
}

pub type State = BTreeMap<(String, String), OwnedEventId>;

pub struct Node {
    pub name: OwnedServerName,
    net: Arc<Net>,
    clock: Clock,
    disk: Arc<dyn Engine>,
    rng: StdRng,
    running: Option<Running>,
    joining: Option<JoinHandle<bool>>,
    /// The join with which its stay in the room began, as it last said.
    stay: Option<OwnedEventId>,
}

struct Running {
    power: Arc<Power>,
    server: Server,
}

impl Node {
    pub async fn new(net: &Arc<Net>, clock: &Clock, name: &str, seed: u64) -> Self {
        let mut node = Self {
            name: name.try_into().unwrap(),
            net: net.clone(),
            clock: clock.clone(),
            disk: Store::memory().await.engine().clone(),
            rng: StdRng::seed_from_u64(seed),
            running: None,
            joining: None,
            stay: None,
        };
        node.starts().await;
        node
    }

    /// Begins, on what the disk has.
    pub async fn starts(&mut self) {
        let power = Power::on(self.disk.clone(), self.rng.random());
        let name = self.name.to_string();
        let wire = Wire { net: self.net.clone(), name: name.clone(), power: power.clone() };
        let chance = Arc::new(Seeded(Mutex::new(StdRng::seed_from_u64(self.rng.random()))));
        let server = Server::start(Plan {
            name: name.clone(),
            store: Store::on(power.clone()).await.unwrap(),
            network: Arc::new(wire),
            clock: self.clock.clone(),
            patience: PATIENCE,
            rooms: RoomsOptions { chance, ..RoomsOptions::default() },
        });
        self.net.listens(&name, Answering::of(&server), power.clone());
        server.inbound.resume().await.unwrap();
        self.running = Some(Running { power, server });
    }

    /// Ends, either as it is told to or at once.
    pub async fn ends(&mut self, is_told: bool, room: &RoomId) {
        self.stay(room).await;
        let Some(Running { power, server }) = self.running.take() else { return };
        if is_told {
            server.sender.close().await;
        }
        power.goes();
        if let Some(joining) = self.joining.take() {
            joining.abort();
        }
    }

    pub fn is_up(&self) -> bool {
        self.running.is_some()
    }

    pub fn server(&self) -> &Server {
        &self.running.as_ref().unwrap().server
    }

    /// Fetches the keys of the others, as they are there for whoever has talked with a server before: its requests were
    /// believed by them.
    pub async fn knows_the_keys_of(&self, others: &[&str]) {
        for name in others.iter().filter(|name| self.name != **name) {
            let name = OwnedServerName::try_from(*name).unwrap();
            let keys = self.server().federation.keys();
            let id = self.server().key.key_id();
            keys.request_key(std::net::Ipv4Addr::LOCALHOST.into(), &name, id).await.unwrap();
        }
    }

    pub fn user(&self, name: &str) -> OwnedUserId {
        UserId::parse(format!("@{name}:{}", self.name)).unwrap()
    }

    pub async fn creates_a_room(&self, version: &str) -> OwnedRoomId {
        let mut create = CreateRoom { preset: Preset::PublicChat, ..CreateRoom::new(self.user("u0")) };
        create.version = RoomVersionId::try_from(version).unwrap();
        self.server().rooms.create(&create, Commit::new()).await.unwrap().room_id
    }

    /// A user begins to join, through one of these servers if nobody is there yet.
    pub fn joins(&mut self, who: &str, room: &OwnedRoomId, via: Vec<OwnedServerName>) {
        let profile = Profile { display_name: None, avatar_url: None };
        let user = self.user(who);
        let join = Join { room: room.clone(), user, profile, reason: None, custom: Map::new() };
        let remote = self.server().remote_rooms.clone();
        self.joining = Some(tokio::spawn(async move { remote.join(join, via).await.is_ok() }));
    }

    pub fn is_joining(&self) -> bool {
        self.joining.as_ref().is_some_and(|joining| !joining.is_finished())
    }

    /// What became of the join that was begun.
    pub async fn joined(&mut self) -> Option<bool> {
        Some(self.joining.take()?.await.unwrap())
    }

    /// The event, if it was allowed.
    pub async fn sends(
        &self,
        who: &UserId,
        room: &OwnedRoomId,
        kind: &str,
        state_key: &str,
        content: Value,
    ) -> Option<OwnedEventId> {
        let send = Send {
            room: room.clone(),
            sender: who.to_owned(),
            kind: TimelineEventType::from(kind),
            state_key: (kind != "m.room.message").then(|| state_key.to_owned()),
            content: to_raw_value(&content).unwrap(),
            redacts: None,
            txn: None,
            timestamp_ms: None,
        };
        self.server().rooms.send(&send, Commit::new()).await.ok().map(|sent| sent.event_id)
    }

    /// An event of a user who never was in the room, signed and sent all the same.
    pub async fn forges(&self, room: &RoomId, text: &str, to: &[OwnedServerName]) -> Option<OwnedEventId> {
        let info = self.info(room).await?;
        let server = self.server();
        let head = server.rooms.head(info.sn).await.unwrap()?.value;
        let ends = server.rooms.events().load_many(&info, &head.extremities).await.unwrap();
        let ends: Vec<_> = ends.iter().map(|event| event.header.event_id.clone()).collect();
        let state = self.state(room).await;
        let of = |kind: &str| state.get(&(kind.to_owned(), String::new()));
        let auth: Vec<_> = match info.rules.room_id_is_create_event {
            true => of("m.room.power_levels").into_iter().collect(),
            false => of("m.room.create").into_iter().chain(of("m.room.power_levels")).collect(),
        };
        let event = json!({
            "type": "m.room.topic", "state_key": "", "sender": self.user("mallory"), "room_id": room,
            "content": { "topic": text }, "depth": head.depth + 1, "prev_events": ends, "auth_events": auth,
            "origin": self.name, "origin_server_ts": (self.clock)(),
        });
        let pdu = self.signed(info.rules, event);
        let id = pdu.event_id().to_owned();
        let body = format!(
            r#"{{"origin":"{}","origin_server_ts":{},"pdus":[{}]}}"#,
            self.name,
            (self.clock)(),
            pdu.json()
        );
        for other in to.iter().filter(|other| **other != self.name) {
            let (client, other) = (server.federation.client().clone(), other.clone());
            let (txn, body) = (format!("forged-{id}"), body.clone());
            tokio::spawn(async move {
                let _ = client.send_transaction(&other, &txn, &body).await;
            });
        }
        Some(id)
    }

    fn signed(&self, rules: &'static RoomRules, mut event: Value) -> Pdu {
        event["hashes"] =
            json!({ "sha256": content_hash(&Object::parse(&event.to_string(), false).unwrap()) });
        event["signatures"] = json!({});
        let json = event.to_string();
        let object = Object::parse(&json, false).unwrap();
        let id = OwnedEventId::try_from(format!("${}", reference_hash(rules, &object))).unwrap();
        let pdu = Pdu::from_stored(rules, id, Bytes::from(object.to_canonical())).unwrap();
        countersign(rules, &pdu, &*self.server().key)
    }

    async fn info(&self, room: &RoomId) -> Option<Arc<RoomInfo>> {
        self.server().rooms.room(room).await.unwrap()
    }

    pub async fn event(&self, room: &RoomId, event: &OwnedEventId) -> Option<Arc<StoredEvent>> {
        let info = self.info(room).await?;
        self.server().rooms.events().by_id(&info, event).await.unwrap()
    }

    pub async fn status(&self, room: &RoomId, event: &OwnedEventId) -> Option<Status> {
        self.event(room, event).await.map(|event| event.status())
    }

    pub async fn state(&self, room: &RoomId) -> State {
        let mut state = State::new();
        let Some(info) = self.info(room).await else { return state };
        let rooms = &self.server().rooms;
        let Some(head) = rooms.head(info.sn).await.unwrap() else { return state };
        for (key, event) in rooms.snapshots().all(info.sn, head.value.snapshot).await.unwrap() {
            let name = rooms.state_key_name(info.sn, key).await.unwrap();
            let event = rooms.events().load(&info, event).await.unwrap();
            let name = (name.kind.as_str().to_owned(), name.state_key.clone());
            state.insert(name, event.header.event_id.clone());
        }
        state
    }

    /// The event that says whether a user is in the room, and what it says.
    pub async fn member(&self, room: &RoomId, user: &UserId) -> Option<(OwnedEventId, Membership)> {
        let state = self.state(room).await;
        let event = state.get(&("m.room.member".to_owned(), user.to_string()))?;
        let stored = self.event(room, event).await.unwrap();
        Some((event.clone(), Membership::of(&stored.pdu).unwrap()))
    }

    /// The power levels as they are here, with another level of a user.
    pub async fn power_levels(&self, room: &RoomId, user: &UserId, level: i64) -> Option<Value> {
        let state = self.state(room).await;
        let event = state.get(&("m.room.power_levels".to_owned(), String::new()))?;
        let event = self.event(room, event).await.unwrap();
        let mut content: Value = serde_json::from_str(event.pdu.content_json()).unwrap();
        content["users"][user.as_str()] = level.into();
        Some(content)
    }

    /// The room's forward extremities.
    pub async fn ends_of(&self, room: &RoomId) -> usize {
        let Some(info) = self.info(room).await else { return 0 };
        let head = self.server().rooms.head(info.sn).await.unwrap();
        head.map_or(0, |head| head.value.extremities.len())
    }

    /// Whether it is in the room, as it sees it, and knows all of its state.
    pub async fn residency(&self, room: &RoomId) -> (Residency, bool) {
        let Some(info) = self.info(room).await else { return (Residency::Outside, true) };
        let head = self.server().rooms.head(info.sn).await.unwrap();
        head.map_or((Residency::Outside, true), |head| (head.value.residency, !head.value.partial_state))
    }

    pub async fn is_resident(&self, room: &RoomId) -> bool {
        matches!(self.residency(room).await.0, Residency::Resident | Residency::Partial)
    }

    /// The join with which its present stay began. Where it is down: as it was when it ended.
    pub async fn stay(&mut self, room: &RoomId) -> Option<OwnedEventId> {
        if self.is_up() {
            self.stay = match self.is_resident(room).await {
                true => self.member(room, &self.user("u0")).await.map(|(event, _)| event),
                false => None,
            };
        }
        self.stay.clone()
    }

    pub async fn sees(&self, room: &RoomId, server: &ServerName) -> bool {
        let Some(info) = self.info(room).await else { return false };
        self.server().rooms.is_server_in_room(&info, server).await.unwrap()
    }

    /// All events of the room that it holds, in the order in which they came.
    pub async fn events(&self, room: &RoomId) -> Vec<Arc<StoredEvent>> {
        let Some(info) = self.info(room).await else { return Vec::new() };
        let mut events = Vec::new();
        for number in 1.. {
            match self.server().rooms.events().load(&info, EventSn(number)).await {
                Ok(event) => events.push(event),
                Err(_) => break,
            }
        }
        events
    }

    /// How many events wait in the room for others.
    pub async fn waiting(&self, room: &RoomId) -> usize {
        self.server().rooms.queued_events(room).await.unwrap().len()
    }

    /// Prints what helps to understand a seed that fails.
    pub async fn tells(&self, room: &RoomId) {
        use hearth_federation::tables::{BEHIND, DESTINATIONS};
        use hearth_store::Order;
        let (store, status) = (&self.server().store, self.server().sender.status());
        println!("{}: {:?}, {status:?}", self.name, self.residency(room).await);
        let behind = store.range(&BEHIND, BEHIND.all(), Order::Forward, 100).await.unwrap();
        let failing = store.range(&DESTINATIONS, DESTINATIONS.all(), Order::Forward, 100).await.unwrap();
        println!("  behind: {behind:?}\n  failing: {failing:?}\n  waiting: {}", self.waiting(room).await);
        for event in self.events(room).await {
            let (pdu, id) = (&event.pdu, event.pdu.event_id());
            let (kind, content) = (pdu.kind(), pdu.content_json());
            let content = &content[..content.len().min(90)];
            println!(
                "  {} {:?} {id} {} {kind} {:?} {content} prev {:?}",
                event.sn.0,
                event.status(),
                pdu.sender(),
                pdu.state_key(),
                pdu.prev_events()
            );
        }
    }
}
