//! Clients of one server without HTTP: what they do to rooms, and what their syncs show.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use hearth::sync::{ClientSync, StateWanted, SyncRequest};
use hearth_dag::{Keypair, LocalServers, Signer};
use hearth_rooms::{
    CreateRoom, InitialState, Invite, Join, Joined, Knock, Preset, Profile, Removal, Remove, Rooms,
    RoomsOptions, Send, SystemClock, Txn,
    read::{Direction, EventFilter, FilterDefinition, PageRequest, TimelineToken},
};
use hearth_store::{Commit, Order, Store, StoreOptions};
use hearth_users::{
    NewAccount, NewDeviceMessages, NewReceipt, NewSession, Options, ReceiptKind, Users, tables::TO_DEVICE,
};
use ruma::{
    OwnedEventId, OwnedRoomId, OwnedServerName, OwnedUserId, RoomId,
    events::{TimelineEventType, receipt::ReceiptThread},
    presence::PresenceState,
};
use serde_json::{Map, Value, json, value::to_raw_value};

pub struct World {
    store: Store,
    rooms: Rooms,
    users: Users,
    sync: ClientSync,
}

#[derive(Clone)]
pub struct Client {
    rooms: Rooms,
    users: Users,
    sync: ClientSync,
    pub user: OwnedUserId,
    device: String,
}

/// A number for whoever needs one of its own.
static NEXT: AtomicU64 = AtomicU64::new(1);

impl World {
    pub async fn new() -> Self {
        Self::of(Store::memory().await)
    }

    pub async fn on_disk(path: &Path) -> Self {
        Self::of(Store::open_sled(path, StoreOptions::default()).await.unwrap())
    }

    fn of(store: Store) -> Self {
        let name: OwnedServerName = "hearth.test".try_into().unwrap();
        let key: Arc<dyn Signer> = Arc::new(Keypair::new(name, "1", &[7; 32]).unwrap());
        let clock = Arc::new(SystemClock);
        let rooms =
            Rooms::new(store.clone(), LocalServers::new([key]), clock.clone(), &RoomsOptions::default());
        let now: hearth_users::Clock = Arc::new(move || hearth_rooms::Clock::now_ms(&*clock));
        let users = Users::open(store.clone(), Options::new(now.clone()));
        let boot = NEXT.fetch_add(1, Ordering::Relaxed) as u32;
        let sync = ClientSync::start(store.clone(), rooms.reader().clone(), users.clone(), now, boot);
        Self { store, rooms, users, sync }
    }

    pub fn client(&self, name: &str) -> Client {
        Client {
            rooms: self.rooms.clone(),
            users: self.users.clone(),
            sync: self.sync.clone(),
            user: OwnedUserId::try_from(format!("@{name}:hearth.test")).unwrap(),
            device: "LAPTOP".to_owned(),
        }
    }

    /// A server brings a message for somebody's device.
    pub async fn brings(&self, id: &str, to: &Client) {
        let (content, sender) = (to_raw_value(&json!({})).unwrap(), "@bob:remote.test".try_into().unwrap());
        let devices = [(to.device.as_str().try_into().unwrap(), &*content)];
        let contents = BTreeMap::from([(to.user.clone(), BTreeMap::from(devices))]);
        let new = NewDeviceMessages { sender, kind: "m.test", contents };
        self.users.keep_device_messages(id, &new).await.unwrap();
    }

    /// How many messages wait for devices.
    pub async fn waiting(&self) -> usize {
        self.store.range(&TO_DEVICE, TO_DEVICE.all(), Order::Forward, 100).await.unwrap().len()
    }

    pub async fn close(self) {
        self.users.close().await.unwrap();
        self.store.close().await;
    }
}

impl Client {
    /// From now on the device is one that messages can be sent to.
    pub async fn logs_in(&self) {
        let account = NewAccount::person(self.user.clone(), None);
        self.users.create_account(account, None).await.unwrap();
        let new = NewSession {
            user_id: self.user.clone(),
            device_id: Some(self.device.as_str().into()),
            display_name: None,
            refreshable: false,
        };
        self.users.start_session(new).await.unwrap();
    }

    pub fn on_device(&self, device: &str) -> Self {
        Self { device: device.to_owned(), ..self.clone() }
    }

    async fn creates(&self, preset: Preset, initial: Vec<(&str, Value)>) -> String {
        let create = CreateRoom {
            preset,
            initial_state: initial
                .into_iter()
                .map(|(kind, content)| InitialState {
                    kind: kind.to_owned(),
                    state_key: String::new(),
                    content: to_raw_value(&content).unwrap(),
                })
                .collect(),
            ..CreateRoom::new(self.user.clone())
        };
        self.rooms.create(&create, Commit::new()).await.unwrap().room_id.to_string()
    }

    pub async fn creates_a_public_room(&self) -> String {
        self.creates(Preset::PublicChat, Vec::new()).await
    }

    pub async fn creates_a_private_room(&self) -> String {
        self.creates(Preset::PrivateChat, Vec::new()).await
    }

    pub async fn creates_a_room_to_knock_at(&self) -> String {
        self.creates(Preset::PrivateChat, vec![("m.room.join_rules", json!({"join_rule": "knock"}))]).await
    }

    pub async fn joins(&self, room: &str) {
        let (user, profile) = (self.user.clone(), Profile::default());
        let join = Join { room: id(room), user, profile, reason: None, custom: Map::new() };
        assert_eq!(self.rooms.join(&join, Commit::new()).await.unwrap(), Joined::Here(id(room)));
    }

    pub async fn invites(&self, room: &str, other: &Client) {
        let invite = Invite {
            room: id(room),
            sender: self.user.clone(),
            user: other.user.clone(),
            profile: Profile::default(),
            reason: None,
            is_direct: false,
        };
        self.rooms.invite(&invite, Commit::new()).await.unwrap();
    }

    pub async fn removes(&self, room: &str, other: &Client, removal: Removal) {
        let remove = Remove {
            room: id(room),
            sender: self.user.clone(),
            user: other.user.clone(),
            removal,
            reason: None,
        };
        self.rooms.remove(&remove, Commit::new()).await.unwrap();
    }

    pub async fn leaves(&self, room: &str) {
        self.removes(room, self, Removal::Leave).await;
    }

    pub async fn knocks(&self, room: &str) {
        let knock =
            Knock { room: id(room), user: self.user.clone(), profile: Profile::default(), reason: None };
        self.rooms.knock(&knock, Commit::new()).await.unwrap();
    }

    pub async fn forgets(&self, room: &str) {
        self.rooms.forget(&self.user, &id(room)).await.unwrap();
    }

    pub async fn says(&self, room: &str, body: &str) -> String {
        self.sends(room, json!({"msgtype": "m.text", "body": body})).await
    }

    pub async fn sends(&self, room: &str, content: Value) -> String {
        self.send(room, "m.room.message", None, content, None).await
    }

    pub async fn sets(&self, room: &str, kind: &str, key: &str, content: Value) -> String {
        self.send(room, kind, Some(key), content, None).await
    }

    pub async fn redacts(&self, room: &str, event: &str) -> String {
        self.send(room, "m.room.redaction", None, json!({}), Some(event)).await
    }

    async fn send(
        &self,
        room: &str,
        kind: &str,
        state_key: Option<&str>,
        content: Value,
        redacts: Option<&str>,
    ) -> String {
        let txn = state_key.is_none().then(|| Txn {
            user: self.user.clone(),
            device: self.device.clone(),
            path: format!("/rooms/{room}/send/{kind}"),
            id: format!("t{}", NEXT.fetch_add(1, Ordering::Relaxed)),
        });
        let send = Send {
            room: id(room),
            sender: self.user.clone(),
            kind: TimelineEventType::from(kind),
            state_key: state_key.map(str::to_owned),
            content: to_raw_value(&content).unwrap(),
            redacts: redacts.map(|event| OwnedEventId::try_from(event).unwrap()),
            txn,
            timestamp_ms: None,
        };
        self.rooms.send(&send, Commit::new()).await.unwrap().event_id.to_string()
    }

    pub async fn reads(&self, room: &str, event: &str) {
        let receipt = NewReceipt {
            kind: ReceiptKind::Read,
            event_id: OwnedEventId::try_from(event).unwrap(),
            thread: ReceiptThread::Unthreaded,
            ts: 1,
            order: None,
        };
        self.users.set_receipts(&id(room), &self.user, &[receipt], None).await.unwrap();
    }

    pub fn types(&self, room: &str, on: bool) {
        self.users.typing().set(&id(room), &self.user, on.then_some(Duration::from_secs(30)));
    }

    pub async fn notes(&self, kind: &str, room: Option<&str>, content: Value) {
        let room = room.map(id);
        let content = to_raw_value(&content).unwrap();
        self.users.set_account_data(&self.user, room.as_deref(), kind, &content).await.unwrap();
    }

    pub async fn ignores(&self, other: &Client) {
        let ignored: BTreeMap<_, _> = [(other.user.to_string(), json!({}))].into();
        self.notes("m.ignored_user_list", None, json!({"ignored_users": ignored})).await;
    }

    fn request(&self, since: Option<&Value>, filter: Value, timeout: Duration) -> SyncRequest {
        SyncRequest {
            user: self.user.clone(),
            device: self.device.as_str().into(),
            filter: Arc::new(FilterDefinition::parse(&filter.to_string()).unwrap()),
            since: since.map(|answer| answer["next_batch"].as_str().unwrap().parse().unwrap()),
            full_state: false,
            set_presence: PresenceState::Offline,
            timeout,
            state: StateWanted::Before,
            to_device: true,
        }
    }

    pub async fn syncs(&self, since: Option<&Value>, filter: Value) -> Value {
        self.syncs_with(since, filter, |_| {}).await
    }

    pub async fn syncs_with(
        &self,
        since: Option<&Value>,
        filter: Value,
        change: impl FnOnce(&mut SyncRequest),
    ) -> Value {
        let mut request = self.request(since, filter, Duration::ZERO);
        change(&mut request);
        let answer = self.sync.sync(&request).await.unwrap();
        serde_json::from_slice(&answer)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&answer)))
    }

    pub async fn waits(&self, since: &Value, timeout: Duration) -> Value {
        let filter = json!({"room": {"timeline": {"limit": 1000}}});
        let request = self.request(Some(since), filter, timeout);
        serde_json::from_slice(&self.sync.sync(&request).await.unwrap()).unwrap()
    }

    pub async fn is_refused(&self, since: &Value) -> bool {
        self.sync.sync(&self.request(Some(since), json!({}), Duration::ZERO)).await.is_err()
    }

    /// The events before a sync's timeline, the oldest first, back to what is known already.
    pub async fn pages_back(
        &self,
        room: &str,
        answer: &Value,
        known: Option<&BTreeSet<String>>,
    ) -> Vec<String> {
        let from = room_of(answer, "join", room)["timeline"]["prev_batch"].as_str().unwrap().parse().unwrap();
        let mut found = Vec::new();
        let mut next = Some(from);
        'pages: while let Some(from) = next {
            let (events, end) = self.page(room, Some(from), Direction::Backward, 3).await;
            for event in events {
                if known.is_some_and(|known| known.contains(&event)) {
                    break 'pages;
                }
                found.push(event);
            }
            next = end;
        }
        found.reverse();
        found
    }

    pub async fn whole_history(&self, room: &str) -> Vec<String> {
        self.walks(room, Direction::Forward, 100).await
    }

    pub async fn walks(&self, room: &str, direction: Direction, limit: usize) -> Vec<String> {
        let mut found = Vec::new();
        let mut from = None;
        loop {
            let (events, end) = self.page(room, from, direction, limit).await;
            found.extend(events);
            match end {
                Some(_) => from = end,
                None => return found,
            }
        }
    }

    async fn page(
        &self,
        room: &str,
        from: Option<TimelineToken>,
        direction: Direction,
        limit: usize,
    ) -> (Vec<String>, Option<TimelineToken>) {
        let reader = self.rooms.reader();
        let room = reader.room_sn(&id(room)).await.unwrap().unwrap();
        let ignored = self.users.ignored_users(&self.user).await.unwrap();
        let mut viewer = reader.viewer(room, &self.user, ignored).await.unwrap();
        let request = PageRequest { from, to: None, direction, limit, past_gap: true };
        let page = reader.page(&mut viewer, &request, &EventFilter::default()).await.unwrap();
        (page.events.iter().map(|shown| shown.event.client.event_id.to_string()).collect(), page.end)
    }
}

fn id(room: &str) -> OwnedRoomId {
    RoomId::parse(room).unwrap()
}

/// A room's section of an answer.
pub fn room_of(answer: &Value, section: &str, room: &str) -> Value {
    answer["rooms"][section][room].clone()
}

/// The ids of events.
pub fn ids(events: &Value) -> Vec<String> {
    let events = events.as_array().cloned().unwrap_or_default();
    events.iter().map(|event| event["event_id"].as_str().unwrap_or_default().to_owned()).collect()
}
