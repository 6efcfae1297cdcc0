//! A server of a simulation: rooms, users, what comes in and what goes out, on the store in memory.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use hearth_dag::{
    Keypair, LocalServers, Pdu, ReceivedPdu, RoomRules, ServerKeys, Signer, VerifiedPdu, VerifyKey,
    canonical::Object, content_hash, countersign, reference_hash,
};
use hearth_federation::{
    Access, Clock, Federation, FederationOptions, Inbound, OwnKeys, Patience, Sender, SenderOptions,
    published_keys,
};
use hearth_rooms::{
    CreateRoom, EnterRoom, Join, Preset, Profile, Residency, Rooms, RoomsOptions, Send, Status,
    serve::{Asked, MissingEvents, Submitted},
};
use hearth_store::{Commit, Store};
use hearth_users::{Options, Users};
use http::{Request, Response};
use parking_lot::Mutex;
use ruma::{
    OwnedEventId, OwnedRoomId, OwnedServerName, OwnedUserId, RoomVersionId, ServerName, UserId,
    events::TimelineEventType,
};
use serde_json::{Value, json, value::to_raw_value};

use crate::{SERVERS, network::Net};

const NOW: u64 = 1_700_000_000_000;

struct RoomClock(Clock);

impl hearth_rooms::Clock for RoomClock {
    fn now_ms(&self) -> u64 {
        (self.0)()
    }
}

/// What of a server answers others.
#[derive(Clone)]
pub struct Answering {
    key: Arc<Keypair>,
    rooms: Rooms,
    inbound: Inbound,
    clock: Clock,
}

pub struct Node {
    name: OwnedServerName,
    store: Store,
    rooms: Rooms,
    users: Users,
    federation: Federation,
    clock: Clock,
    sender: Mutex<Sender>,
    key: Arc<Keypair>,
}

fn key_of(name: &str) -> Keypair {
    Keypair::new(name.try_into().unwrap(), "1", &[name.as_bytes()[0]; 32]).unwrap()
}

fn all_keys() -> ServerKeys {
    let mut keys = ServerKeys::default();
    for name in SERVERS {
        let key = key_of(name);
        let public = VerifyKey::new(&key.public_key(), None).unwrap();
        keys.insert(name.try_into().unwrap(), key.key_id().to_owned(), public);
    }
    keys
}

fn list_of(pdus: &[Pdu]) -> String {
    format!("[{}]", pdus.iter().map(Pdu::json).collect::<Vec<_>>().join(","))
}

impl Answering {
    pub async fn answers(&self, origin: &str, request: Request<Bytes>) -> Response<Bytes> {
        let (status, body) = match self.answer(origin, &request).await {
            Some(body) => (200, body),
            None => (404, Bytes::from_static(b"{\"errcode\":\"M_NOT_FOUND\",\"error\":\"no\"}")),
        };
        Response::builder().status(status).body(body).unwrap()
    }

    async fn answer(&self, origin: &str, request: &Request<Bytes>) -> Option<Bytes> {
        let path = percent_encoding::percent_decode_str(request.uri().path()).decode_utf8().ok()?;
        if path.starts_with("/_matrix/key/") {
            return Some(published_keys(&self.key, (self.clock)()).into());
        }
        let origin = <&ServerName>::try_from(origin).ok()?;
        let mut parts = path.strip_prefix("/_matrix/federation/v1/")?.splitn(3, '/');
        let (what, first, second) = (parts.next()?, parts.next()?, parts.next());
        let query = request.uri().query().unwrap_or_default();
        let at = query.strip_prefix("event_id=").unwrap_or_default();
        let at = percent_encoding::percent_decode_str(at).decode_utf8().ok()?.into_owned();
        let room = OwnedRoomId::try_from(first);
        match what {
            "send" => self.inbound.transaction(origin, first, request.body().clone()).await.ok(),
            "event" => {
                let (_, pdu) = self.rooms.event_for_peer(origin, first.try_into().ok()?).await.ok()?;
                Some(format!(r#"{{"origin":"","origin_server_ts":1,"pdus":{}}}"#, list_of(&[pdu])).into())
            }
            "state_ids" => {
                let (room, event) = (room.ok()?, OwnedEventId::try_from(at).ok()?);
                let state =
                    self.rooms.state_ids_for_peer(Asked { origin, room: &room, event: &event }).await.ok()?;
                let ids = json!({ "auth_chain_ids": state.auth_chain_ids, "pdu_ids": state.pdu_ids });
                Some(ids.to_string().into())
            }
            "state" => {
                let (room, event) = (room.ok()?, OwnedEventId::try_from(at).ok()?);
                let state =
                    self.rooms.state_for_peer(Asked { origin, room: &room, event: &event }).await.ok()?;
                let (chain, pdus) = (list_of(&state.auth_chain), list_of(&state.pdus));
                Some(format!(r#"{{"auth_chain":{chain},"pdus":{pdus}}}"#).into())
            }
            "event_auth" => {
                let (room, event) = (room.ok()?, OwnedEventId::try_from(second?).ok()?);
                let asked = Asked { origin, room: &room, event: &event };
                let chain = self.rooms.event_auth_for_peer(asked).await.ok()?;
                Some(format!(r#"{{"auth_chain":{}}}"#, list_of(&chain)).into())
            }
            "get_missing_events" => {
                let body: Value = serde_json::from_slice(request.body()).ok()?;
                let ids = |name: &str| serde_json::from_value(body[name].clone()).ok();
                let missing = MissingEvents {
                    earliest: ids("earliest_events")?,
                    latest: ids("latest_events")?,
                    limit: body["limit"].as_u64()? as usize,
                    min_depth: 0,
                };
                let pdus = self.rooms.missing_events_for_peer(origin, &room.ok()?, &missing).await.ok()?;
                Some(format!(r#"{{"events":{}}}"#, list_of(&pdus)).into())
            }
            _ => None,
        }
    }
}

impl Node {
    pub async fn start(net: &Arc<Net>, name: &str) -> Self {
        let start = tokio::time::Instant::now();
        let clock: Clock = Arc::new(move || NOW + start.elapsed().as_millis() as u64);
        let (store, key) = (Store::memory().await, Arc::new(key_of(name)));
        let local = LocalServers::new([key.clone() as Arc<dyn Signer>]);
        let room_clock = Arc::new(RoomClock(clock.clone()));
        let rooms = Rooms::new(store.clone(), local.clone(), room_clock, &RoomsOptions::default());
        let users = Users::open(store.clone(), Options::new(clock.clone()));
        let federation = Federation::new(FederationOptions {
            store: store.clone(),
            network: net.clone(),
            local_servers: local,
            own_keys: vec![OwnKeys { key: key.clone(), old: Vec::new() }],
            access: Access::open(),
            trusted_key_servers: Vec::new(),
            patience: Patience { first: Duration::from_secs(1), longest: Duration::from_secs(10) },
            clock: clock.clone(),
        });
        let inbound = Inbound::new(federation.clone(), rooms.clone(), users.clone());
        let answering = Answering { key: key.clone(), rooms: rooms.clone(), inbound, clock: clock.clone() };
        net.adds(name, answering);
        let name = OwnedServerName::try_from(name).unwrap();
        let sender = Mutex::new(sender(&store, &rooms, &users, &federation, &clock));
        Self { name, store, rooms, users, federation, clock, sender, key }
    }

    /// The part that sends ends and begins anew; what the store holds must do.
    pub async fn sender_restarts(&self) {
        let before = self.sender.lock().clone();
        before.close().await;
        let after = sender(&self.store, &self.rooms, &self.users, &self.federation, &self.clock);
        *self.sender.lock() = after;
    }

    /// Fetches the keys of the others, as they are there for whoever has talked with a server before: its requests were
    /// believed by them.
    pub async fn knows_all_keys(&self) {
        for name in SERVERS.iter().filter(|name| self.name != **name) {
            let name = OwnedServerName::try_from(*name).unwrap();
            self.federation
                .keys()
                .request_key(std::net::Ipv4Addr::LOCALHOST.into(), &name, self.key.key_id())
                .await
                .unwrap();
        }
    }

    pub fn user(&self, name: &str) -> OwnedUserId {
        UserId::parse(format!("@{name}:{}", self.name)).unwrap()
    }

    pub async fn creates_a_room(&self, version: &str) -> OwnedRoomId {
        let mut create = CreateRoom { preset: Preset::PublicChat, ..CreateRoom::new(self.user("u0")) };
        create.version = RoomVersionId::try_from(version).unwrap();
        self.rooms.create(&create, Commit::new()).await.unwrap().room_id
    }

    pub async fn joins_here(&self, who: &str, room: &OwnedRoomId) {
        let profile = Profile { display_name: None, avatar_url: None };
        let join = Join { room: room.clone(), user: self.user(who), profile, reason: None };
        self.rooms.join(&join, Commit::new()).await.unwrap();
    }

    fn sign(&self, rules: &RoomRules, mut event: Value) -> ReceivedPdu {
        event["hashes"] =
            json!({ "sha256": content_hash(&Object::parse(&event.to_string(), false).unwrap()) });
        event["signatures"] = json!({});
        let json = event.to_string();
        let object = Object::parse(&json, false).unwrap();
        let id = OwnedEventId::try_from(format!("${}", reference_hash(rules, &object))).unwrap();
        let pdu = Pdu::from_stored(rules, id, Bytes::from(object.to_canonical())).unwrap();
        ReceivedPdu::parse(rules, countersign(rules, &pdu, &*self.key).json()).unwrap()
    }

    /// A user joins through a server that is in the room.
    pub async fn joins_over(&self, who: &str, room: &OwnedRoomId, through: &Node) {
        let versions: Vec<_> = RoomRules::all().iter().map(|rules| rules.version.clone()).collect();
        let template = through.rooms.make_join(&self.name, room, &self.user(who), &versions).await.unwrap();
        let rules = RoomRules::of(&template.room_version).unwrap();
        let mut event: Value = serde_json::from_str(template.event.get()).unwrap();
        event["origin"] = json!(self.name);
        let pdu = self.sign(rules, event);
        let id = pdu.pdu().event_id().to_owned();
        let submitted = Submitted { origin: &self.name, room, event: &id, pdu, keys: &all_keys() };
        let answer = through.rooms.accept_join(submitted, false).await.unwrap();
        let arrived = |pdu: &Pdu| -> VerifiedPdu {
            ReceivedPdu::parse(rules, pdu.json()).unwrap().verify(rules, &all_keys()).unwrap()
        };
        let enter = EnterRoom {
            room_id: room.clone(),
            version: answer.room_version.clone(),
            join: arrived(&answer.event),
            state: answer.state.iter().map(arrived).collect(),
            auth_chain: answer.auth_chain.iter().map(arrived).collect(),
            origin: through.name.clone(),
            members_omitted: None,
        };
        self.rooms.enter_room(enter).await.unwrap();
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
        self.rooms.send(&send, Commit::new()).await.ok().map(|sent| sent.event_id)
    }

    /// The power levels as they are here, with another level of a user.
    pub async fn power_levels(&self, room: &OwnedRoomId, user: &UserId, level: i64) -> Value {
        let state = self.state(room).await;
        let key = ("m.room.power_levels".to_owned(), String::new());
        let info = self.rooms.room(room).await.unwrap().unwrap();
        let event = self.rooms.events().by_id(&info, &state[&key]).await.unwrap().unwrap();
        let mut content: Value = serde_json::from_str(event.pdu.content_json()).unwrap();
        content["users"][user.as_str()] = level.into();
        content
    }

    pub async fn state(&self, room: &OwnedRoomId) -> BTreeMap<(String, String), OwnedEventId> {
        let info = self.rooms.room(room).await.unwrap().unwrap();
        let head = self.rooms.head(info.sn).await.unwrap().unwrap().value;
        let mut state = BTreeMap::new();
        for (key, event) in self.rooms.snapshots().all(info.sn, head.snapshot).await.unwrap() {
            let name = self.rooms.state_key_name(info.sn, key).await.unwrap();
            let event = self.rooms.events().load(&info, event).await.unwrap();
            let name = (name.kind.as_str().to_owned(), name.state_key.clone());
            state.insert(name, event.header.event_id.clone());
        }
        state
    }

    /// Prints what helps to understand a seed that fails.
    pub async fn tells(&self, room: &OwnedRoomId) {
        use hearth_federation::tables::{BEHIND, DESTINATIONS};
        use hearth_store::Order;
        let info = self.rooms.room(room).await.unwrap().unwrap();
        let status = self.sender.lock().status();
        println!("{}: {:?}, {status:?}", self.name, self.residency(room).await);
        println!(
            "  behind: {:?}",
            self.store.range(&BEHIND, BEHIND.all(), Order::Forward, 100).await.unwrap()
        );
        let failing = self.store.range(&DESTINATIONS, DESTINATIONS.all(), Order::Forward, 100).await.unwrap();
        println!("  failing: {failing:?}");
        for number in 1.. {
            let Ok(event) = self.rooms.events().load(&info, hearth_rooms::EventSn(number)).await else {
                break;
            };
            let (pdu, id) = (&event.pdu, event.pdu.event_id());
            let (kind, content) = (pdu.kind(), pdu.content_json());
            let content = &content[..content.len().min(90)];
            println!(
                "  {number} {:?} {id} {} {kind} {:?} {content} prev {:?}",
                event.status(),
                pdu.sender(),
                pdu.state_key(),
                pdu.prev_events()
            );
        }
    }

    pub async fn is_forked(&self, room: &OwnedRoomId) -> bool {
        let info = self.rooms.room(room).await.unwrap().unwrap();
        self.rooms.head(info.sn).await.unwrap().unwrap().value.extremities.len() > 1
    }

    pub async fn residency(&self, room: &OwnedRoomId) -> Residency {
        let info = self.rooms.room(room).await.unwrap().unwrap();
        self.rooms.head(info.sn).await.unwrap().unwrap().value.residency
    }

    pub async fn sees_server(&self, room: &OwnedRoomId, server: &str) -> bool {
        let info = self.rooms.room(room).await.unwrap().unwrap();
        self.rooms.is_server_in_room(&info, server.try_into().unwrap()).await.unwrap()
    }

    pub async fn status(&self, room: &OwnedRoomId, event: &OwnedEventId) -> Option<Status> {
        let info = self.rooms.room(room).await.unwrap().unwrap();
        let event = self.rooms.events().by_id(&info, event).await.unwrap();
        event.map(|event| event.status())
    }
}

fn sender(store: &Store, rooms: &Rooms, users: &Users, federation: &Federation, clock: &Clock) -> Sender {
    let sender = Sender::new(SenderOptions {
        store: store.clone(),
        rooms: rooms.clone(),
        users: users.clone(),
        federation: federation.clone(),
        clock: clock.clone(),
        boot: clock(),
    });
    sender.start();
    sender
}
