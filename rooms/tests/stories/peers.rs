//! Other servers: each with rooms of its own, whose events it hands over.
#![allow(dead_code, reason = "each story uses a part of it")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use hearth_dag::{Draft, Keypair, LocalServers, Pdu, Place, Signer, VerifiedPdu, auth_keys};
use hearth_rooms::*;
use hearth_store::{Commit, Store};
use ruma::events::TimelineEventType;
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, OwnedServerName, OwnedUserId, RoomId,
    RoomVersionId, ServerName, UInt, UserId,
};
use serde_json::value::to_raw_value;
use serde_json::{Map, Value, json};

use crate::support::{TestClock, World};

/// A server with its own store and key.
pub struct Peer {
    pub rooms: Rooms,
    pub store: Store,
    pub name: OwnedServerName,
    pub key: Arc<Keypair>,
}

/// The key of a server: the same each time.
pub fn key_of(server: &str) -> Keypair {
    let seed = if server == "hearth.test" { 7 } else { server.bytes().fold(40, u8::wrapping_add) };
    Keypair::new(ServerName::parse(server).unwrap(), "1", &[seed; 32]).unwrap()
}

/// An event with what it takes to make it.
pub struct Say<'a> {
    pub sender: &'a UserId,
    pub kind: &'a str,
    pub state_key: Option<&'a str>,
    pub content: Value,
}

impl<'a> Say<'a> {
    pub fn message(sender: &'a UserId, text: &str) -> Self {
        let content = json!({ "body": text, "msgtype": "m.text" });
        Say { sender, kind: "m.room.message", state_key: None, content }
    }

    pub fn state(sender: &'a UserId, kind: &'a str, state_key: &'a str, content: Value) -> Self {
        Say { sender, kind, state_key: Some(state_key), content }
    }

    pub fn member(sender: &'a UserId, user: &'a UserId, membership: &str) -> Self {
        Say::state(sender, "m.room.member", user.as_str(), json!({ "membership": membership }))
    }
}

impl Peer {
    pub async fn new(name: &str) -> Self {
        let store = Store::memory().await;
        let key = Arc::new(key_of(name));
        let signer: Arc<dyn Signer> = key.clone();
        let clock = Arc::new(TestClock(AtomicU64::new(1_700_000_000_000)));
        let servers = LocalServers::new([signer]);
        let rooms = Rooms::new(store.clone(), servers, clock, &RoomsOptions::default());
        Peer { rooms, store, name: ServerName::parse(name).unwrap(), key }
    }

    pub fn user(&self, name: &str) -> OwnedUserId {
        UserId::parse(format!("@{name}:{}", self.name)).unwrap()
    }

    pub async fn room(&self, creator: &str, preset: Preset) -> OwnedRoomId {
        self.room_of(creator, preset, RoomVersionId::V12).await
    }

    pub async fn room_of(&self, creator: &str, preset: Preset, version: RoomVersionId) -> OwnedRoomId {
        let create = CreateRoom { preset, version, ..CreateRoom::new(self.user(creator)) };
        self.rooms.create(&create, Commit::new()).await.unwrap().room_id
    }

    pub async fn join(&self, name: &str, room: &OwnedRoomId) {
        let user = self.user(name);
        let (profile, custom) = (Profile::default(), Map::new());
        let join = Join { room: room.clone(), user, profile, reason: None, custom };
        assert!(matches!(self.rooms.join(&join, Commit::new()).await.unwrap(), Joined::Here(_)));
    }

    pub async fn leave(&self, name: &str, room: &OwnedRoomId) {
        let user = self.user(name);
        let remove =
            Remove { room: room.clone(), sender: user.clone(), user, removal: Removal::Leave, reason: None };
        self.rooms.remove(&remove, Commit::new()).await.unwrap();
    }

    /// Sends an event of one of the server's own users.
    pub async fn send(&self, room: &OwnedRoomId, say: Say<'_>) -> OwnedEventId {
        let send = Send {
            room: room.clone(),
            sender: say.sender.to_owned(),
            kind: TimelineEventType::from(say.kind),
            state_key: say.state_key.map(str::to_owned),
            content: to_raw_value(&say.content).unwrap(),
            redacts: None,
            txn: None,
            timestamp_ms: None,
        };
        self.rooms.send(&send, Commit::new()).await.unwrap().event_id
    }

    pub async fn say(&self, room: &OwnedRoomId, name: &str, text: &str) -> OwnedEventId {
        self.send(room, Say::message(&self.user(name), text)).await
    }

    /// An event on top of this server's room, signed by the sender's server. It is not sent.
    pub async fn make(&self, room: &OwnedRoomId, say: Say<'_>) -> Pdu {
        let state = state_of(&self.rooms, room).await;
        let info = self.rooms.room(room).await.unwrap().unwrap();
        let head = self.rooms.head(info.sn).await.unwrap().unwrap().value;
        let extremities = self.rooms.events().load_many(&info, &head.extremities).await.unwrap();
        let prev: Vec<&Pdu> = extremities.iter().map(|event| &event.pdu).collect();
        forge(room, info.rules, say, &prev, &state)
    }

    /// The same, taken in by this server too.
    pub async fn take(&self, room: &OwnedRoomId, say: Say<'_>) -> Pdu {
        let pdu = self.make(room, say).await;
        let received = self.rooms.receive(&built(&pdu)).await.unwrap();
        assert!(matches!(received, Received::Accepted(_)), "{received:?}");
        pdu
    }

    pub async fn pdu(&self, room: &RoomId, event: &OwnedEventId) -> Pdu {
        let info = self.rooms.room(room).await.unwrap().unwrap();
        self.rooms.events().by_id(&info, event).await.unwrap().unwrap().pdu.clone()
    }

    /// All events of the timeline, oldest first.
    pub async fn timeline(&self, room: &RoomId) -> Vec<Pdu> {
        timeline(&self.rooms, &self.store, room).await
    }

    /// The state before an event.
    pub async fn state_before(&self, room: &RoomId, event: &OwnedEventId) -> Vec<Pdu> {
        let info = self.rooms.room(room).await.unwrap().unwrap();
        let event = self.rooms.events().by_id(&info, event).await.unwrap().unwrap();
        let snapshot = event.snapshot_before().unwrap();
        let all = self.rooms.snapshots().all(info.sn, snapshot).await.unwrap();
        let numbers: Vec<EventSn> = all.into_iter().map(|(_, event)| event).collect();
        let events = self.rooms.events().load_many(&info, &numbers).await.unwrap();
        events.iter().map(|event| event.pdu.clone()).collect()
    }

    /// The auth events of some events, theirs, and so on.
    pub async fn auth_chain(&self, room: &RoomId, events: &[Pdu]) -> Vec<Pdu> {
        let mut open: Vec<OwnedEventId> =
            events.iter().flat_map(|event| event.auth_events().to_vec()).collect();
        let (mut seen, mut chain) = (BTreeSet::new(), Vec::new());
        while let Some(id) = open.pop() {
            if seen.insert(id.clone()) {
                let pdu = self.pdu(room, &id).await;
                open.extend(pdu.auth_events().to_vec());
                chain.push(pdu);
            }
        }
        chain
    }

    /// Lets a user of another server in, as `send_join` does.
    pub async fn let_in(&self, room: &OwnedRoomId, user: &UserId) -> EnterRoom {
        let join = self.take(room, Say::member(user, user, "join")).await;
        self.answer(room, join).await
    }

    /// The answer to a join that this server accepted.
    pub async fn answer(&self, room: &OwnedRoomId, join: Pdu) -> EnterRoom {
        let info = self.rooms.room(room).await.unwrap().unwrap();
        let state = self.state_before(room, &join.event_id().to_owned()).await;
        let mut all = state.clone();
        all.push(join.clone());
        let auth_chain = self.auth_chain(room, &all).await;
        EnterRoom {
            room_id: room.clone(),
            version: info.version.clone(),
            join: built(&join),
            state: state.iter().map(built).collect(),
            auth_chain: auth_chain.iter().map(built).collect(),
            origin: self.name.clone(),
            members_omitted: None,
        }
    }
}

pub fn built(pdu: &Pdu) -> VerifiedPdu {
    VerifiedPdu::built_here(pdu.clone())
}

/// What a state holds, as event ids.
pub type State = BTreeMap<(String, String), OwnedEventId>;

/// The current state.
pub async fn state_of(rooms: &Rooms, room: &RoomId) -> State {
    let info = rooms.room(room).await.unwrap().unwrap();
    let head = rooms.head(info.sn).await.unwrap().unwrap().value;
    let mut state = State::new();
    for (key, event) in rooms.snapshots().all(info.sn, head.snapshot).await.unwrap() {
        let name = rooms.state_key_name(info.sn, key).await.unwrap();
        let event = rooms.events().load(&info, event).await.unwrap();
        state.insert((name.kind.as_str().to_owned(), name.state_key.clone()), event.header.event_id.clone());
    }
    state
}

pub fn with(state: &State, event: &Pdu) -> State {
    let mut state = state.clone();
    let place = (event.kind().to_string(), event.state_key().unwrap().to_owned());
    state.insert(place, event.event_id().to_owned());
    state
}

/// Any event, signed by its sender's server, with the auth events that a state has for it.
pub fn forge(
    room: &RoomId,
    rules: &'static hearth_dag::RoomRules,
    say: Say<'_>,
    prev: &[&Pdu],
    state: &State,
) -> Pdu {
    let depth = prev.iter().map(|event| event.depth()).max().unwrap_or(0) + 1;
    forge_at(room, rules, say, prev, state, depth)
}

/// The same with any depth.
pub fn forge_at(
    room: &RoomId,
    rules: &'static hearth_dag::RoomRules,
    say: Say<'_>,
    prev: &[&Pdu],
    state: &State,
    depth: i64,
) -> Pdu {
    static TIME: AtomicU64 = AtomicU64::new(1_700_000_500_000);
    let kind = TimelineEventType::from(say.kind);
    let content = to_raw_value(&say.content).unwrap();
    let keys = auth_keys(rules, &kind, say.sender, say.state_key, content.get()).unwrap();
    let named = keys.iter().filter_map(|(kind, key)| state.get(&(kind.to_string(), key.clone())));
    let auth: Vec<OwnedEventId> = named.cloned().collect();
    let prev_events: Vec<OwnedEventId> = prev.iter().map(|event| event.event_id().to_owned()).collect();
    let now = TIME.fetch_add(1000, std::sync::atomic::Ordering::SeqCst);
    let place = Place {
        room_id: Some(room),
        prev_events: &prev_events,
        auth_events: &auth,
        depth,
        origin_server_ts: MilliSecondsSinceUnixEpoch(UInt::new_saturating(now)),
        hashes: None,
    };
    let draft = Draft {
        sender: say.sender.to_owned(),
        kind,
        state_key: say.state_key.map(str::to_owned),
        content,
        redacts: None,
    };
    draft.build(rules, &place, &key_of(say.sender.server_name().as_str())).unwrap()
}

pub async fn timeline(rooms: &Rooms, store: &Store, room: &RoomId) -> Vec<Pdu> {
    let info = rooms.room(room).await.unwrap().unwrap();
    let range = tables::TIMELINE.prefix(&(info.sn,));
    let rows = store.range(&tables::TIMELINE, range, hearth_store::Order::Forward, 100_000).await.unwrap();
    let numbers: Vec<EventSn> = rows.iter().map(|(_, row)| row.event).collect();
    let events = rooms.events().load_many(&info, &numbers).await.unwrap();
    events.iter().map(|event| event.pdu.clone()).collect()
}

pub fn ids(events: &[Pdu]) -> Vec<OwnedEventId> {
    events.iter().map(|event| event.event_id().to_owned()).collect()
}

impl World {
    pub async fn head(&self, room: &RoomId) -> tables::HeadRow {
        let info = self.rooms.room(room).await.unwrap().unwrap();
        self.rooms.head(info.sn).await.unwrap().unwrap().value
    }

    pub async fn last_gap(&self, room: &RoomId) -> Option<Gap> {
        let everything = TimelineOrder::live(hearth_store::StreamPosition::MAX);
        self.rooms.last_gap(room, everything).await.unwrap()
    }

    /// How long the stream of what happened is.
    pub async fn stream_length(&self) -> usize {
        let all = tables::STREAM.all();
        self.store.range(&tables::STREAM, all, hearth_store::Order::Forward, 100_000).await.unwrap().len()
    }

    pub async fn member_rows(&self, room: &RoomId) -> BTreeMap<String, Membership> {
        let info = self.rooms.room(room).await.unwrap().unwrap();
        let range = tables::MEMBERS.prefix(&(info.sn,));
        let rows =
            self.store.range(&tables::MEMBERS, range, hearth_store::Order::Forward, 100_000).await.unwrap();
        rows.into_iter().map(|((_, user), row)| (user, row.value.membership)).collect()
    }
}
