//! Rooms on a store in memory, with a clock that stands still until it is moved.
#![allow(dead_code, reason = "each story uses a part of it")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hearth_dag::{Keypair, LocalServers, Signer};
use hearth_rooms::*;
use hearth_store::{Commit, Store};
use ruma::events::TimelineEventType;
use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, UserId};
use serde_json::value::to_raw_value;
use serde_json::{Map, Value, json};

pub struct TestClock(pub AtomicU64);

impl Clock for TestClock {
    fn now_ms(&self) -> u64 {
        self.0.fetch_add(1, Ordering::SeqCst)
    }
}

/// A user comes in by themselves.
pub fn join_of(name: &str, room: &OwnedRoomId) -> Join {
    let (room, user, profile) = (room.clone(), user(name), profile(name));
    Join { room, user, profile, reason: None, custom: Map::new() }
}

pub struct World {
    pub rooms: Rooms,
    pub store: Store,
}

pub fn servers() -> LocalServers {
    let name = ruma::server_name!("hearth.test").to_owned();
    let key: Arc<dyn Signer> = Arc::new(Keypair::new(name, "1", &[7; 32]).unwrap());
    LocalServers::new([key])
}

pub fn user(name: &str) -> OwnedUserId {
    UserId::parse(format!("@{name}:hearth.test")).unwrap()
}

impl World {
    pub async fn new() -> Self {
        Self::on(Store::memory().await)
    }

    pub fn on(store: Store) -> Self {
        let clock = Arc::new(TestClock(AtomicU64::new(1_700_000_000_000)));
        World { rooms: Rooms::new(store.clone(), servers(), clock, &RoomsOptions::default()), store }
    }

    pub async fn room(&self, creator: &str, preset: Preset) -> OwnedRoomId {
        let create = CreateRoom { preset, ..CreateRoom::new(user(creator)) };
        self.rooms.create(&create, Commit::new()).await.unwrap().room_id
    }

    pub async fn join(&self, name: &str, room: &OwnedRoomId) -> Result<Joined, MembershipError> {
        let join = join_of(name, room);
        self.rooms.join(&join, Commit::new()).await
    }

    pub async fn invite(
        &self,
        by: &str,
        name: &str,
        room: &OwnedRoomId,
    ) -> Result<Option<Sent>, MembershipError> {
        let invite = Invite {
            room: room.clone(),
            sender: user(by),
            user: user(name),
            profile: profile(name),
            reason: None,
            is_direct: false,
        };
        self.rooms.invite(&invite, Commit::new()).await
    }

    pub async fn remove(
        &self,
        removal: Removal,
        by: &str,
        name: &str,
        room: &OwnedRoomId,
    ) -> Result<Option<Sent>, MembershipError> {
        let remove = Remove { room: room.clone(), sender: user(by), user: user(name), removal, reason: None };
        self.rooms.remove(&remove, Commit::new()).await
    }

    pub async fn say(&self, name: &str, room: &OwnedRoomId, text: &str) -> Result<Sent, SendError> {
        self.rooms.send(&message(name, room, text), Commit::new()).await
    }

    pub async fn set(
        &self,
        name: &str,
        room: &OwnedRoomId,
        kind: &str,
        state_key: &str,
        content: Value,
    ) -> Result<Sent, SendError> {
        let send = Send { state_key: Some(state_key.to_owned()), ..event(name, room, kind, content) };
        self.rooms.send(&send, Commit::new()).await
    }

    pub async fn send(
        &self,
        name: &str,
        room: &OwnedRoomId,
        kind: &str,
        content: Value,
    ) -> Result<Sent, SendError> {
        self.rooms.send(&event(name, room, kind, content), Commit::new()).await
    }

    /// The current state event as JSON.
    pub async fn state(&self, room: &OwnedRoomId, kind: &str, state_key: &str) -> Option<Value> {
        let event = self.state_event(room, kind, state_key).await?;
        Some(serde_json::from_str(event.pdu.content_json()).unwrap())
    }

    pub async fn state_event(
        &self,
        room: &OwnedRoomId,
        kind: &str,
        state_key: &str,
    ) -> Option<Arc<StoredEvent>> {
        let room = self.rooms.room(room).await.unwrap().unwrap();
        let head = self.rooms.head(room.sn).await.unwrap().unwrap().value;
        let key = self.rooms.state_key(room.sn, &Kind::new(kind), state_key).await.unwrap()?;
        let event = self.rooms.snapshots().lookup(room.sn, head.snapshot, key).await.unwrap()?;
        Some(self.rooms.events().load(&room, event).await.unwrap())
    }

    pub async fn membership(&self, room: &OwnedRoomId, name: &str) -> Option<String> {
        let content = self.state(room, "m.room.member", user(name).as_str()).await?;
        Some(content["membership"].as_str().unwrap().to_owned())
    }

    /// All events of the timeline, oldest first, as (type, state key).
    pub async fn timeline(&self, room: &OwnedRoomId) -> Vec<(String, Option<String>)> {
        let events = self.events(room).await;
        events
            .iter()
            .map(|event| (event.pdu.kind().to_string(), event.pdu.state_key().map(str::to_owned)))
            .collect()
    }

    pub async fn events(&self, room: &OwnedRoomId) -> Vec<Arc<StoredEvent>> {
        let room = self.rooms.room(room).await.unwrap().unwrap();
        let range = tables::TIMELINE.prefix(&room.sn);
        let rows =
            self.store.range(&tables::TIMELINE, range, hearth_store::Order::Forward, 10_000).await.unwrap();
        let events: Vec<EventSn> = rows.iter().map(|(_, row)| row.event).collect();
        self.rooms.events().load_many(&room, &events).await.unwrap()
    }

    /// Whether members of ours are still to be told what the room says of them.
    pub async fn has_late_members(&self, room: &OwnedRoomId) -> bool {
        let room = self.rooms.room(room).await.unwrap().unwrap();
        let range = tables::LATE_MEMBERS.prefix(&(room.sn,));
        self.store.first(&tables::LATE_MEMBERS, range).await.unwrap().is_some()
    }

    pub async fn by_id(&self, room: &OwnedRoomId, event: &OwnedEventId) -> Arc<StoredEvent> {
        let room = self.rooms.room(room).await.unwrap().unwrap();
        self.rooms.events().by_id(&room, event).await.unwrap().unwrap()
    }
}

pub fn profile(name: &str) -> Profile {
    Profile { display_name: Some(name.to_owned()), avatar_url: None }
}

pub fn event(name: &str, room: &OwnedRoomId, kind: &str, content: Value) -> Send {
    Send {
        room: room.clone(),
        sender: user(name),
        kind: TimelineEventType::from(kind),
        state_key: None,
        content: to_raw_value(&content).unwrap(),
        redacts: None,
        txn: None,
        timestamp_ms: None,
    }
}

pub fn message(name: &str, room: &OwnedRoomId, text: &str) -> Send {
    event(name, room, "m.room.message", json!({ "msgtype": "m.text", "body": text }))
}

pub fn txn(name: &str, id: &str) -> Option<Txn> {
    Some(Txn { user: user(name), device: "PHONE".into(), path: "/send".into(), id: id.into() })
}
