//! Rooms for tests: events with real hashes and signatures, forks at will, no storage and no network.
#![allow(dead_code, clippy::unwrap_used)]

pub mod random;

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap},
};

use hearth_dag::{
    BuildError, Draft, Keypair, Pdu, Place, Rejection, RoomRules, ServerKeys, Signer, StateKey,
    StateResolution, VerifyKey, auth_keys,
    canonical::Object,
    check, content_hash, redact_object,
    resolve::{Conflict, Resolution, Step},
    sign_json,
};
use ruma::{
    EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, OwnedServerName, RoomId, RoomVersionId,
    ServerName, UInt, UserId,
    events::{StateEventType, TimelineEventType},
};
use serde_json::{Value, json, value::to_raw_value};

pub type StateMap = BTreeMap<StateKey, OwnedEventId>;

pub fn rules(version: &str) -> &'static RoomRules {
    RoomRules::of(&RoomVersionId::try_from(version).unwrap()).unwrap()
}

/// A key for a server, the same each time.
pub fn keypair(server_name: &ServerName) -> Keypair {
    let mut seed = [7; 32];
    for (index, byte) in server_name.as_str().bytes().enumerate() {
        seed[index % 32] ^= byte.rotate_left(index as u32 / 32);
    }
    Keypair::new(server_name.to_owned(), "1", &seed).unwrap()
}

/// A room whose events refer to each other as told.
pub struct Room {
    pub rules: &'static RoomRules,
    pub room_id: Option<OwnedRoomId>,
    pub events: HashMap<OwnedEventId, Pdu>,
    /// The state after each event.
    pub states: HashMap<OwnedEventId, StateMap>,
    pub rejected: BTreeSet<OwnedEventId>,
    pub clock: u64,
    keys: RefCell<HashMap<OwnedServerName, std::rc::Rc<Keypair>>>,
}

impl Room {
    pub fn new(version: &str) -> Self {
        let rules = rules(version);
        let room_id = (!rules.room_id_is_create_event).then(|| OwnedRoomId::try_from("!room:a").unwrap());
        Self {
            rules,
            room_id,
            events: HashMap::new(),
            states: HashMap::new(),
            rejected: BTreeSet::new(),
            clock: 1_000,
            keys: RefCell::default(),
        }
    }

    pub fn key(&self, server_name: &ServerName) -> std::rc::Rc<Keypair> {
        let mut keys = self.keys.borrow_mut();
        keys.entry(server_name.to_owned()).or_insert_with(|| keypair(server_name).into()).clone()
    }

    /// Alice's public room with her in it; returns its last event.
    pub fn found(&mut self) -> OwnedEventId {
        let create = self.create(json!({}));
        let join = self.member("@alice:a", "@alice:a", "join", &[&create]);
        let power = match self.rules.creators_have_infinite_power {
            true => json!({ "users": {} }),
            false => json!({ "users": { "@alice:a": 100 } }),
        };
        let power = self.state("@alice:a", "m.room.power_levels", "", power, &[&join]);
        self.state("@alice:a", "m.room.join_rules", "", json!({ "join_rule": "public" }), &[&power])
    }

    pub fn create(&mut self, extra: Value) -> OwnedEventId {
        let mut content = json!({ "room_version": self.rules.version.as_str() });
        if !self.rules.inner.authorization.use_room_create_sender {
            content["creator"] = "@alice:a".into();
        }
        content.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let create = self.state("@alice:a", "m.room.create", "", content, &[]);
        if self.rules.room_id_is_create_event {
            self.room_id = Some(self.events[&create].room_id().to_owned());
        }
        create
    }

    pub fn member(
        &mut self,
        sender: &str,
        target: &str,
        membership: &str,
        after: &[&OwnedEventId],
    ) -> OwnedEventId {
        self.state(sender, "m.room.member", target, json!({ "membership": membership }), after)
    }

    pub fn state(
        &mut self,
        sender: &str,
        kind: &str,
        state_key: &str,
        content: Value,
        after: &[&OwnedEventId],
    ) -> OwnedEventId {
        self.send(sender, kind, Some(state_key), content, after)
    }

    /// Makes an event on the state after its prev events. One that the rules forbid there is kept as rejected.
    pub fn send(
        &mut self,
        sender: &str,
        kind: &str,
        state_key: Option<&str>,
        content: Value,
        after: &[&OwnedEventId],
    ) -> OwnedEventId {
        let before = self.state_before(after);
        let pdu = self.build(sender, kind, state_key, content, after, &before);
        let verdict = self.verdict(&pdu, &before);
        self.add(pdu, before, verdict.is_ok())
    }

    pub fn build(
        &mut self,
        sender: &str,
        kind: &str,
        state_key: Option<&str>,
        content: Value,
        after: &[&OwnedEventId],
        before: &StateMap,
    ) -> Pdu {
        let sender = UserId::parse(sender).unwrap();
        let kind = TimelineEventType::from(kind);
        let content = to_raw_value(&content).unwrap();
        let keys = auth_keys(self.rules, &kind, &sender, state_key, content.get()).unwrap_or_default();
        let auth_events: Vec<_> = keys.iter().filter_map(|key| before.get(key).cloned()).collect();
        let prev_events: Vec<_> = after.iter().map(|id| (*id).clone()).collect();
        let depth = prev_events.iter().map(|id| self.events[id].depth()).max().unwrap_or(0) + 1;
        self.clock += 1;
        let place = Place {
            room_id: self.room_id.as_deref(),
            prev_events: &prev_events,
            auth_events: &auth_events,
            depth,
            origin_server_ts: MilliSecondsSinceUnixEpoch(UInt::try_from(self.clock).unwrap()),
            hashes: None,
        };
        let key = self.key(sender.server_name());
        let draft = Draft { sender, kind, state_key: state_key.map(str::to_owned), content, redacts: None };
        draft.build(self.rules, &place, &*key as &dyn Signer).unwrap()
    }

    pub fn verdict(&self, pdu: &Pdu, state: &StateMap) -> Result<(), Rejection> {
        check(self.rules, pdu, |kind: &StateEventType, key: &str| self.lookup(state, kind, key))
    }

    pub fn lookup(&self, state: &StateMap, kind: &StateEventType, key: &str) -> Option<Pdu> {
        self.events.get(state.get(&(kind.clone(), key.to_owned()))?).cloned()
    }

    pub fn add(&mut self, pdu: Pdu, before: StateMap, accepted: bool) -> OwnedEventId {
        let event_id = pdu.event_id().to_owned();
        let mut after = before;
        match pdu.state_entry() {
            Some(key) if accepted => drop(after.insert(key, event_id.clone())),
            _ => {}
        }
        if !accepted {
            self.rejected.insert(event_id.clone());
        }
        self.states.insert(event_id.clone(), after);
        self.events.insert(event_id.clone(), pdu);
        event_id
    }

    pub fn state_before(&self, after: &[&OwnedEventId]) -> StateMap {
        let forks: Vec<&StateMap> = after.iter().map(|id| &self.states[*id]).collect();
        self.resolve(&forks)
    }

    /// Resolves whole states by way of the conflict between them.
    pub fn resolve(&self, forks: &[&StateMap]) -> StateMap {
        let (unconflicted, conflict) = self.conflict(forks);
        if conflict.keys.is_empty() {
            return unconflicted;
        }
        let mut resolution = Resolution::new(self.rules, conflict);
        let mut state = unconflicted.clone();
        state.extend(self.run(&mut resolution, &unconflicted));
        state
    }

    /// Answers a resolution's needs until it is done.
    pub fn run(&self, resolution: &mut Resolution, unconflicted: &StateMap) -> StateMap {
        for _ in 0..10_000 {
            match resolution.step() {
                Step::Events(ids) => {
                    for id in ids {
                        match self.events.get(&id) {
                            Some(pdu) => resolution.event(pdu.clone(), self.rejected.contains(&id)),
                            None => resolution.missing(id),
                        }
                    }
                }
                Step::Unconflicted(keys) => {
                    for key in keys {
                        let held = unconflicted.get(&key).cloned();
                        resolution.unconflicted(key, held);
                    }
                }
                Step::Done(resolved) => return resolved,
            }
        }
        panic!("the resolution does not end");
    }

    /// What the states agree on, and their conflict.
    pub fn conflict(&self, forks: &[&StateMap]) -> (StateMap, Conflict) {
        let mut unconflicted = StateMap::new();
        let mut conflict = Conflict::default();
        let keys: BTreeSet<&StateKey> = forks.iter().flat_map(|state| state.keys()).collect();
        for key in keys {
            let held: Vec<_> = forks.iter().map(|state| state.get(key)).collect();
            let different: BTreeSet<_> = held.iter().flatten().map(|id| (*id).clone()).collect();
            if different.len() == 1 && held.iter().all(Option::is_some) {
                unconflicted.insert(key.clone(), different.into_iter().next().unwrap());
            } else {
                conflict.keys.insert(key.clone(), different.into_iter().collect());
            }
        }
        let chains: Vec<BTreeSet<OwnedEventId>> = forks.iter().map(|state| self.auth_chain(state)).collect();
        let all: BTreeSet<_> = chains.iter().flatten().collect();
        let differs = |id: &&&OwnedEventId| !chains.iter().all(|chain| chain.contains(**id));
        conflict.auth_difference = all.iter().filter(differs).map(|id| (**id).clone()).collect();
        if self.rules.state_resolution == StateResolution::V2_1 {
            conflict.subgraph = self.subgraph(&conflict);
        }
        (unconflicted, conflict)
    }

    /// A state's events, their auth events, theirs, and so on.
    pub fn auth_chain(&self, state: &StateMap) -> BTreeSet<OwnedEventId> {
        let mut chain = BTreeSet::new();
        let mut open: Vec<OwnedEventId> = state.values().cloned().collect();
        while let Some(id) = open.pop() {
            if chain.insert(id.clone()) {
                open.extend(self.events[&id].auth_events().iter().cloned());
            }
        }
        chain
    }

    /// Events on a path of auth events from one conflicted event to another, those included.
    pub fn subgraph(&self, conflict: &Conflict) -> Vec<OwnedEventId> {
        let conflicted: BTreeSet<&OwnedEventId> = conflict.keys.values().flatten().collect();
        let mut leads: HashMap<OwnedEventId, bool> = HashMap::new();
        let mut reached = BTreeSet::new();
        for start in &conflicted {
            let mut open = vec![(*start).clone()];
            let mut seen = BTreeSet::new();
            while let Some(id) = open.pop() {
                if !seen.insert(id.clone()) || !self.leads_to(&id, &conflicted, &mut leads) {
                    continue;
                }
                reached.insert(id.clone());
                open.extend(self.events[&id].auth_events().iter().cloned());
            }
        }
        reached.into_iter().collect()
    }

    fn leads_to(
        &self,
        id: &EventId,
        conflicted: &BTreeSet<&OwnedEventId>,
        known: &mut HashMap<OwnedEventId, bool>,
    ) -> bool {
        if let Some(leads) = known.get(id) {
            return *leads;
        }
        let below = self.events[id].auth_events().to_vec();
        let leads = conflicted.contains(&id.to_owned())
            | below.iter().fold(false, |leads, below| self.leads_to(below, conflicted, known) | leads);
        known.insert(id.to_owned(), leads);
        leads
    }
}

/// Numbers that look random and are the same in each run.
pub struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut number = self.0;
        number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        number ^ (number >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }
}

pub fn versions() -> impl Iterator<Item = &'static RoomRules> {
    RoomRules::all().into_iter()
}

pub fn version_of(rules: &RoomRules) -> u32 {
    rules.version.as_str().parse().unwrap()
}

/// A draft by Alice with everything else given.
pub fn build(
    rules: &RoomRules,
    kind: &str,
    state_key: Option<&str>,
    content: Value,
    change: impl FnOnce(&mut Draft),
) -> Result<Pdu, BuildError> {
    let mut draft = Draft {
        sender: UserId::parse("@alice:a").unwrap(),
        kind: kind.into(),
        state_key: state_key.map(str::to_owned),
        content: to_raw_value(&content).unwrap(),
        redacts: None,
    };
    change(&mut draft);
    let prev = [OwnedEventId::try_from("$prev:a").unwrap()];
    let auth = [OwnedEventId::try_from("$auth:a").unwrap(), OwnedEventId::try_from("$more:a").unwrap()];
    let create = kind == "m.room.create";
    let room_id = RoomId::parse("!room:a").unwrap();
    let place = Place {
        room_id: (!create || !rules.room_id_is_create_event).then_some(&*room_id),
        prev_events: if create { &[] } else { &prev },
        auth_events: if create { &[] } else { &auth },
        depth: 12,
        origin_server_ts: MilliSecondsSinceUnixEpoch(UInt::from(1_000_000_u32)),
        hashes: None,
    };
    draft.build(rules, &place, &keypair(draft.sender.server_name()))
}

pub fn message(rules: &RoomRules) -> Pdu {
    build(rules, "m.room.message", None, json!({ "body": "hello", "msgtype": "m.text" }), |_| {}).unwrap()
}

pub fn value_of(pdu: &Pdu) -> Value {
    serde_json::from_str(pdu.json()).unwrap()
}

/// Keys of some servers, as they sign in these tests.
pub fn keys_of(servers: &[&str]) -> ServerKeys {
    let mut keys = ServerKeys::default();
    for server in servers {
        let server = ServerName::parse(*server).unwrap();
        let key = keypair(&server);
        let public = VerifyKey::new(&key.public_key(), None).unwrap();
        keys.insert(server, key.key_id().to_owned(), public);
    }
    keys
}

/// The JSON signed again by some servers, with a right content hash.
pub fn signed_again(rules: &RoomRules, mut event: Value, servers: &[&str]) -> String {
    event.as_object_mut().unwrap().remove("signatures");
    event.as_object_mut().unwrap().remove("hashes");
    let text = event.to_string();
    let hash = content_hash(&Object::parse(&text, false).unwrap());
    event["hashes"] = json!({ "sha256": hash });
    let text = event.to_string();
    let mut redacted = Object::parse(&text, false).unwrap();
    redact_object(rules, &mut redacted);
    for server in servers {
        sign_json(&keypair(&ServerName::parse(*server).unwrap()), &mut redacted);
    }
    event["signatures"] =
        redacted.get("signatures").map_or(json!({}), |all| serde_json::from_str(&all.to_string()).unwrap());
    event.to_string()
}
