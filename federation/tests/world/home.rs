//! A server of ours with rooms, users and a sender in the world of fakes, and fakes that join its rooms.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use hearth_dag::{
    Draft, Keypair, Pdu, Place, ReceivedPdu, RoomRules, ServerKeys, Signer as _, VerifyKey, auth_keys,
    canonical::Object, content_hash, countersign, reference_hash,
};
use hearth_federation::{Clock, Federation, Patience, Sender};
use hearth_rooms::{
    CreateRoom, Join, Kind, Preset, Profile, Removal, Remove, RoomInfo, Rooms, RoomsOptions, Send, Status,
    serve::Submitted,
};
use hearth_store::{Commit, Store};
use hearth_users::Users;
use parking_lot::Mutex;
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, OwnedServerName, OwnedUserId, UInt, UserId,
    events::TimelineEventType,
};
use serde_json::{Map, Value, json, value::to_raw_value};

use super::{
    NOW, World, key, name, ok,
    server::{Plan, Server},
};

pub struct Home {
    pub world: Arc<World>,
    pub store: Store,
    pub rooms: Rooms,
    pub users: Users,
    pub federation: Federation,
    pub sender: Sender,
}

pub fn user(name: &str) -> OwnedUserId {
    UserId::parse(format!("@{name}:home.test")).unwrap()
}

impl Home {
    pub async fn new(world: &Arc<World>) -> Self {
        Self::on(world, Store::memory().await)
    }

    /// Starts on a store that may hold something.
    pub fn on(world: &Arc<World>, store: Store) -> Self {
        // It goes on over a restart.
        let started = world.started;
        let clock: Clock = Arc::new(move || NOW + started.elapsed().as_millis() as u64);
        let patience = Patience { first: Duration::from_secs(30), longest: Duration::from_secs(3600) };
        let plan = Plan {
            name: "home.test".to_owned(),
            store,
            network: world.clone(),
            clock,
            patience,
            rooms: RoomsOptions::default(),
        };
        let Server { store, rooms, users, federation, sender, .. } = Server::start(plan);
        Self { world: world.clone(), store, rooms, users, federation, sender }
    }

    pub async fn room(&self) -> OwnedRoomId {
        let create = CreateRoom { preset: Preset::PublicChat, ..CreateRoom::new(user("alice")) };
        self.rooms.create(&create, Commit::new()).await.unwrap().room_id
    }

    pub async fn join(&self, who: &str, room: &OwnedRoomId) {
        let profile = Profile { display_name: None, avatar_url: None };
        let join = Join { room: room.clone(), user: user(who), profile, reason: None, custom: Map::new() };
        self.rooms.join(&join, Commit::new()).await.unwrap();
    }

    pub async fn say(&self, room: &OwnedRoomId, text: &str) -> OwnedEventId {
        let send = Send {
            room: room.clone(),
            sender: user("alice"),
            kind: TimelineEventType::RoomMessage,
            state_key: None,
            content: to_raw_value(&json!({ "msgtype": "m.text", "body": text })).unwrap(),
            redacts: None,
            txn: None,
            timestamp_ms: None,
        };
        self.rooms.send(&send, Commit::new()).await.unwrap().event_id
    }

    pub async fn kick(&self, who: &UserId, room: &OwnedRoomId) -> OwnedEventId {
        let remove = Remove {
            room: room.clone(),
            sender: user("alice"),
            user: who.to_owned(),
            removal: Removal::Kick,
            reason: None,
        };
        self.rooms.remove(&remove, Commit::new()).await.unwrap().unwrap().event_id
    }
}

/// What a server holds of its rooms.
impl Home {
    pub async fn info(&self, room: &OwnedRoomId) -> Arc<RoomInfo> {
        self.rooms.room(room).await.unwrap().unwrap()
    }

    /// An event of the current state.
    pub async fn state(&self, room: &OwnedRoomId, kind: &str, state_key: &str) -> Option<Pdu> {
        let info = self.info(room).await;
        let head = self.rooms.head(info.sn).await.unwrap().unwrap().value;
        let key = self.rooms.state_key(info.sn, &Kind::new(kind), state_key).await.unwrap()?;
        let event = self.rooms.snapshots().lookup(info.sn, head.snapshot, key).await.unwrap()?;
        Some(self.rooms.events().load(&info, event).await.unwrap().pdu.clone())
    }

    pub async fn status(&self, event: &Pdu) -> Option<Status> {
        let info = self.info(&event.room_id().to_owned()).await;
        let held = self.rooms.events().by_id(&info, event.event_id()).await.unwrap();
        held.map(|held| held.status())
    }

    /// Messages of a user of another server that nobody has yet, each after the one before.
    pub async fn messages(&self, room: &OwnedRoomId, sender: &UserId, texts: &[&str]) -> Vec<Pdu> {
        let info = self.info(room).await;
        let head = self.rooms.head(info.sn).await.unwrap().unwrap().value;
        let mut after = self.rooms.events().load(&info, head.extremities[0]).await.unwrap().pdu.clone();
        let kind = TimelineEventType::RoomMessage;
        let mut auth_events = Vec::new();
        for (kind, state_key) in auth_keys(info.rules, &kind, sender, None, "{}").unwrap() {
            let event = self.state(room, &kind.to_string(), &state_key).await;
            auth_events.extend(event.map(|event| event.event_id().to_owned()));
        }
        let mut all = Vec::new();
        for (number, text) in texts.iter().enumerate() {
            let content = to_raw_value(&json!({ "msgtype": "m.text", "body": text })).unwrap();
            let (sender, kind) = (sender.to_owned(), kind.clone());
            let draft = Draft { sender: sender.clone(), kind, state_key: None, content, redacts: None };
            let ts = NOW + 1_000 + number as u64;
            let place = Place {
                room_id: Some(room),
                prev_events: &[after.event_id().to_owned()],
                auth_events: &auth_events,
                depth: after.depth() + 1,
                origin_server_ts: MilliSecondsSinceUnixEpoch(UInt::new_saturating(ts)),
                hashes: None,
            };
            after = draft.build(info.rules, &place, &*key(sender.server_name().as_str(), "1")).unwrap();
            all.push(after.clone());
        }
        all
    }
}

/// A transaction of a server with these events.
pub fn transaction(origin: &str, events: &[Pdu]) -> Bytes {
    let pdus: Vec<&str> = events.iter().map(Pdu::json).collect();
    format!(r#"{{"origin":"{origin}","pdus":[{}]}}"#, pdus.join(",")).into()
}

/// A server that joins our rooms, and remembers what it was sent.
pub struct Fake {
    pub name: OwnedServerName,
    key: Arc<Keypair>,
    world: Arc<World>,
    /// The transactions, with the time in milliseconds since the test began.
    taken: Arc<Mutex<Vec<(u64, Value)>>>,
}

impl Fake {
    pub fn new(world: &Arc<World>, server: &str) -> Self {
        let fake =
            Self { name: name(server), key: key(server, "1"), world: world.clone(), taken: Arc::default() };
        fake.is_up();
        fake
    }

    /// From now on it takes all it is sent.
    pub fn is_up(&self) {
        self.answers(|_| ok("{\"pdus\":{}}"));
    }

    /// From now on it answers so; what it answers with 200 it takes.
    pub fn answers(&self, answer: impl Fn(&Value) -> super::Answer + std::marker::Send + Sync + 'static) {
        let taken = self.taken.clone();
        let start = self.world.started;
        self.world.answers(self.name.as_str(), move |request| {
            let transaction: Value = serde_json::from_slice(request.body()).unwrap();
            let answer = answer(&transaction);
            if answer.as_ref().is_ok_and(|answer| answer.status() == 200) {
                taken.lock().push((start.elapsed().as_millis() as u64, transaction));
            }
            answer
        });
    }

    pub fn is_down(&self) {
        self.world.gone(self.name.as_str());
    }

    pub fn user(&self, name: &str) -> OwnedUserId {
        UserId::parse(format!("@{name}:{}", self.name)).unwrap()
    }

    pub fn transactions(&self) -> Vec<(u64, Value)> {
        self.taken.lock().clone()
    }

    /// The texts of the messages that it got, in order.
    pub fn heard(&self) -> Vec<String> {
        let taken = self.taken.lock();
        let pdus = taken.iter().flat_map(|(_, transaction)| transaction["pdus"].as_array().unwrap().clone());
        pdus.filter_map(|pdu| pdu["content"]["body"].as_str().map(str::to_owned)).collect()
    }

    /// The same by room.
    pub fn heard_in(&self, room: &OwnedRoomId) -> Vec<String> {
        let taken = self.taken.lock();
        let pdus = taken.iter().flat_map(|(_, transaction)| transaction["pdus"].as_array().unwrap().clone());
        let here = pdus.filter(|pdu| pdu["room_id"] == room.as_str());
        here.filter_map(|pdu| pdu["content"]["body"].as_str().map(str::to_owned)).collect()
    }

    /// The messages beside events, by type.
    pub fn edus(&self) -> Vec<(String, Value)> {
        let taken = self.taken.lock();
        let edus = taken.iter().filter_map(|(_, transaction)| transaction["edus"].as_array().cloned());
        edus.flatten()
            .map(|edu| (edu["edu_type"].as_str().unwrap().to_owned(), edu["content"].clone()))
            .collect()
    }

    pub fn forgets(&self) {
        self.taken.lock().clear();
    }

    fn sign(&self, rules: &RoomRules, event: &Value) -> ReceivedPdu {
        let mut event = event.clone();
        let object = event.to_string();
        event["hashes"] = json!({ "sha256": content_hash(&Object::parse(&object, false).unwrap()) });
        event["signatures"] = json!({});
        let json = event.to_string();
        let object = Object::parse(&json, false).unwrap();
        let id = OwnedEventId::try_from(format!("${}", reference_hash(rules, &object))).unwrap();
        let pdu = Pdu::from_stored(rules, id, Bytes::from(object.to_canonical())).unwrap();
        ReceivedPdu::parse(rules, countersign(rules, &pdu, &*self.key).json()).unwrap()
    }

    fn keys(&self) -> ServerKeys {
        let mut keys = ServerKeys::default();
        for key in [key("home.test", "1"), self.key.clone()] {
            let public = VerifyKey::new(&key.public_key(), None).unwrap();
            keys.insert(key.server_name().to_owned(), key.key_id().to_owned(), public);
        }
        keys
    }

    /// One of its users joins a room of ours.
    pub async fn join(&self, home: &Home, who: &str, room: &OwnedRoomId) {
        let versions: Vec<_> = RoomRules::all().iter().map(|rules| rules.version.clone()).collect();
        let template = home.rooms.make_join(&self.name, room, &self.user(who), &versions).await.unwrap();
        let rules = RoomRules::of(&template.room_version).unwrap();
        let event: Value = serde_json::from_str(template.event.get()).unwrap();
        let pdu = self.sign(rules, &event);
        let id = pdu.pdu().event_id().to_owned();
        let submitted = Submitted { origin: &self.name, room, event: &id, pdu, keys: &self.keys() };
        home.rooms.accept_join(submitted, false).await.unwrap();
    }
}

/// How often each text came.
pub fn counted(texts: &[String]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for text in texts {
        *counts.entry(text.as_str()).or_default() += 1;
    }
    counts
}
