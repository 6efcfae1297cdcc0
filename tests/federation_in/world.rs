//! Servers on a network of fakes: whole ones, and peers that sign whatever a story needs.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::body::{Body, Bytes};
use hearth::{
    config::Config,
    testing::{Answer, TestNetwork, TestPeer, TestServer, TestUser, encoded},
};
use hearth_dag::{
    Keypair, Pdu, ReceivedPdu, RoomRules, VerifiedPdu, auth_keys, canonical::Object, content_hash,
    countersign, reference_hash,
};
use hearth_rooms::EnterRoom;
use hearth_store::Store;
use http::{Method, Request};
use ruma::{
    EventId, OwnedEventId, OwnedRoomId, OwnedServerName, OwnedUserId, RoomVersionId, ServerName, UserId,
    events::TimelineEventType,
};
use serde_json::{Value, json, value::RawValue};

pub async fn server_in(network: &TestNetwork, name: &str) -> TestServer {
    server_on(network, name, Store::memory().await).await
}

/// A server that answers, and sends nothing by itself: the stories hand over what is to arrive.
pub async fn server_on(network: &TestNetwork, name: &str, store: Store) -> TestServer {
    let server = talking_on(network, name, store).await;
    server.app.sender.close().await;
    server
}

/// A server that sends what happens on it.
pub async fn talking_on(network: &TestNetwork, name: &str, store: Store) -> TestServer {
    let mut config = Config { server_name: name.try_into().unwrap(), ..Config::default() };
    config.rate_limits.enabled = false;
    TestServer::on(config, store, network.clone()).await
}

/// Two servers that can reach each other.
pub async fn two() -> (TestServer, TestServer) {
    let network = TestNetwork::default();
    (server_in(&network, "here.test").await, server_in(&network, "there.test").await)
}

pub fn name_of(server: &TestServer) -> &ServerName {
    &server.app.config.server_name
}

pub fn all_versions() -> Vec<RoomVersionId> {
    RoomRules::all().iter().map(|rules| rules.version.clone()).collect()
}

/// Hashes and signs an event.
pub fn sign(key: &Keypair, rules: &RoomRules, mut event: Value) -> ReceivedPdu {
    event["hashes"] = json!({ "sha256": content_hash(&Object::parse(&event.to_string(), false).unwrap()) });
    event["signatures"] = json!({});
    sign_as_it_is(key, rules, &event)
}

/// Signs an event whose hash stands in it, right or wrong.
pub fn sign_as_it_is(key: &Keypair, rules: &RoomRules, event: &Value) -> ReceivedPdu {
    let json = event.to_string();
    let object = Object::parse(&json, false).unwrap();
    let id = match event["event_id"].as_str() {
        Some(id) => id.to_owned(),
        None => format!("${}", reference_hash(rules, &object)),
    };
    let id = OwnedEventId::try_from(id).unwrap();
    let pdu = Pdu::from_stored(rules, id, Bytes::from(object.to_canonical())).unwrap();
    ReceivedPdu::parse(rules, countersign(rules, &pdu, key).json()).unwrap()
}

/// A template, completed and signed.
pub fn complete(key: &Keypair, version: &RoomVersionId, event: &RawValue) -> ReceivedPdu {
    let rules = RoomRules::of(version).unwrap();
    let mut event: Value = serde_json::from_str(event.get()).unwrap();
    let server = event["sender"].as_str().unwrap().split_once(':').unwrap().1.to_owned();
    if rules.opaque_event_ids {
        event["event_id"] = json!(format!("$e{}:{server}", event["depth"]));
    }
    event["origin"] = json!(server);
    sign(key, rules, event)
}

/// A user joins a room through a server that is in it, and their server enters it.
pub async fn joins(user: &TestUser, room: &str, through: &TestServer) {
    let there = &user.server.app;
    let room_id = OwnedRoomId::try_from(room).unwrap();
    let client = there.federation.client();
    let template =
        client.make_join(name_of(through), &room_id, &user.user_id, &all_versions()).await.unwrap();
    let version = template.room_version.clone().unwrap();
    let rules = RoomRules::of(&version).unwrap();
    let join = complete(&there.key, &version, &template.event);
    let event_id = join.pdu().event_id().to_owned();
    let answer = client.send_join(name_of(through), &room_id, &event_id, join.pdu().json(), false).await;
    let answer = answer.unwrap();
    let checked = |events| async move {
        let all = there.federation.verify_answer(name_of(through), rules, events).await.unwrap();
        all.into_iter().map(Result::unwrap).collect::<Vec<VerifiedPdu>>()
    };
    let enter = EnterRoom {
        room_id,
        version,
        join: checked(vec![answer.event.unwrap()]).await.remove(0),
        state: checked(answer.state).await,
        auth_chain: checked(answer.auth_chain).await,
        origin: name_of(through).to_owned(),
        members_omitted: None,
    };
    there.rooms.enter_room(enter).await.unwrap();
}

/// An event as its server sends it.
pub async fn pdu(server: &TestServer, room: &str, event: &str) -> String {
    let room = server.app.rooms.room(room.try_into().unwrap()).await.unwrap().unwrap();
    let event = server.app.rooms.events().by_id(&room, event.try_into().unwrap()).await.unwrap().unwrap();
    event.pdu.json().to_owned()
}

/// Whether a server has an event in a room's timeline.
pub async fn has(server: &TestServer, room: &str, event: &str) -> bool {
    let room = server.app.rooms.room(room.try_into().unwrap()).await.unwrap().unwrap();
    let event: &EventId = event.try_into().unwrap();
    let held = server.app.rooms.events().by_id(&room, event).await.unwrap();
    held.is_some_and(|held| held.status() == hearth_rooms::Status::Accepted && held.order().is_some())
}

pub async fn has_all(server: &TestServer, room: &str, events: &[String]) -> bool {
    for event in events {
        if !has(server, room, event).await {
            return false;
        }
    }
    true
}

/// Waits until something holds; a story whose thing never does fails.
pub async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    for _ in 0..1_500 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("it never was so: {what}");
}

/// The current state of a room, as event ids.
pub async fn state_of(server: &TestServer, room: &str) -> BTreeMap<(String, String), OwnedEventId> {
    let rooms = &server.app.rooms;
    let room = rooms.room(room.try_into().unwrap()).await.unwrap().unwrap();
    let head = rooms.head(room.sn).await.unwrap().unwrap().value;
    let mut state = BTreeMap::new();
    for (_, event) in rooms.snapshots().all(room.sn, head.snapshot).await.unwrap() {
        let event = rooms.events().load(&room, event).await.unwrap();
        let place = (event.pdu.kind().to_string(), event.pdu.state_key().unwrap().to_owned());
        state.insert(place, event.header.event_id.clone());
    }
    state
}

/// A server of which only its key is real: it asks as it likes, and makes events as it likes.
pub struct Remote {
    pub peer: TestPeer,
    pub name: OwnedServerName,
    pub of: TestServer,
}

/// A room as a remote knows it.
pub struct Seen {
    pub room: String,
    pub rules: &'static RoomRules,
    pub state: BTreeMap<(String, String), OwnedEventId>,
    pub last: OwnedEventId,
    pub depth: i64,
    pub time: u64,
}

impl Remote {
    pub fn new(of: &TestServer, name: &str) -> Self {
        let name = OwnedServerName::try_from(name).unwrap();
        Remote { peer: of.network.peer(&name), name, of: of.clone() }
    }

    pub fn user(&self, localpart: &str) -> OwnedUserId {
        UserId::parse(format!("@{localpart}:{}", self.name)).unwrap()
    }

    pub async fn ask(&self, method: Method, path: &str, body: &[u8]) -> Answer {
        let authorization = self.peer.signs(name_of(&self.of), &method, path, body);
        let request = Request::builder().method(method).uri(path).header("authorization", authorization);
        self.of.send(request.body(Body::from(body.to_vec())).unwrap()).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.ask(Method::GET, path, b"").await
    }

    pub async fn put(&self, path: &str, body: &Value) -> Answer {
        self.ask(Method::PUT, path, body.to_string().as_bytes()).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.ask(Method::POST, path, body.to_string().as_bytes()).await
    }

    /// Sends a transaction of a new id.
    pub async fn sends(&self, pdus: &[Value], edus: &[Value]) -> Answer {
        let path = format!("/_matrix/federation/v1/send/t{}", self.of.fresh());
        self.put(&path, &json!({ "origin": self.name, "origin_server_ts": 5, "pdus": pdus, "edus": edus }))
            .await
    }

    /// Joins a room, in which it then is as far as the server is concerned.
    pub async fn joins(&self, localpart: &str, room: &str) -> Seen {
        let versions: String = all_versions().iter().map(|version| format!("ver={version}&")).collect();
        let user = encoded(self.user(localpart).as_str());
        let path = format!("/_matrix/federation/v1/make_join/{}/{user}?{versions}", encoded(room));
        let template = self.get(&path).await.ok();
        let version = RoomVersionId::try_from(template["room_version"].as_str().unwrap()).unwrap();
        let event = RawValue::from_string(template["event"].to_string()).unwrap();
        let join = complete(self.peer.key(), &version, &event);
        let path = format!(
            "/_matrix/federation/v2/send_join/{}/{}",
            encoded(room),
            encoded(join.pdu().event_id().as_str())
        );
        let answer = self.ask(Method::PUT, &path, join.pdu().json().as_bytes()).await.ok();
        let rules = RoomRules::of(&version).unwrap();
        let mut seen = Seen {
            room: room.to_owned(),
            rules,
            state: BTreeMap::new(),
            last: join.pdu().event_id().to_owned(),
            depth: join.pdu().depth(),
            time: u64::from(join.pdu().origin_server_ts().0),
        };
        for event in answer["state"].as_array().unwrap().iter().chain([&answer["event"]]) {
            seen.has_state(ReceivedPdu::parse(rules, &event.to_string()).unwrap().pdu());
        }
        seen
    }

    /// An event on top of the last one, which it then is itself.
    pub fn makes(
        &self,
        seen: &mut Seen,
        sender: &str,
        kind: &str,
        state_key: Option<&str>,
        content: Value,
    ) -> Value {
        let event = self.draft(seen, sender, kind, state_key, content);
        let pdu = sign(self.peer.key(), seen.rules, event);
        seen.last = pdu.pdu().event_id().to_owned();
        seen.depth += 1;
        if state_key.is_some() {
            seen.has_state(pdu.pdu());
        }
        serde_json::from_str(pdu.pdu().json()).unwrap()
    }

    pub fn says(&self, seen: &mut Seen, sender: &str, text: &str) -> Value {
        self.makes(seen, sender, "m.room.message", None, json!({ "msgtype": "m.text", "body": text }))
    }

    /// An event without hashes and signatures.
    pub fn draft(
        &self,
        seen: &mut Seen,
        sender: &str,
        kind: &str,
        state_key: Option<&str>,
        content: Value,
    ) -> Value {
        let sender = self.user(sender);
        let event_type = TimelineEventType::from(kind);
        let keys = auth_keys(seen.rules, &event_type, &sender, state_key, &content.to_string()).unwrap();
        let auth: Vec<_> =
            keys.iter().filter_map(|(kind, key)| seen.state.get(&(kind.to_string(), key.clone()))).collect();
        seen.time += 1;
        let mut event = json!({
            "auth_events": auth,
            "content": content,
            "depth": seen.depth + 1,
            "origin_server_ts": seen.time,
            "prev_events": [seen.last],
            "room_id": seen.room,
            "sender": sender,
            "type": kind,
        });
        if let Some(state_key) = state_key {
            event["state_key"] = json!(state_key);
        }
        event
    }

    pub fn sign(&self, seen: &Seen, event: Value) -> Value {
        serde_json::from_str(sign(self.peer.key(), seen.rules, event).pdu().json()).unwrap()
    }

    pub fn key(&self) -> &Arc<Keypair> {
        self.peer.key()
    }
}

impl Seen {
    pub fn has_state(&mut self, pdu: &Pdu) {
        if let Some(state_key) = pdu.state_key() {
            self.state.insert((pdu.kind().to_string(), state_key.to_owned()), pdu.event_id().to_owned());
        }
    }

    pub fn id_of(&self, event: &Value) -> String {
        ReceivedPdu::parse(self.rules, &event.to_string()).unwrap().pdu().event_id().to_string()
    }
}
