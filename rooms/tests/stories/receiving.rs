//! Events from peers, in every order in which they can come.

use std::collections::BTreeMap;

use hearth_dag::{Draft, Keypair, Pdu, Place, RoomRules, VerifiedPdu, auth_keys};
use hearth_rooms::*;
use ruma::events::TimelineEventType;
use ruma::{MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, OwnedUserId, UInt, UserId};
use serde_json::{Value, json, value::to_raw_value};

use crate::support::{World, user};

/// A server that makes events as it likes.
struct Peer {
    key: Keypair,
    room: OwnedRoomId,
    rules: &'static RoomRules,
    ts: u64,
}

/// A state as a peer sees it: what its events name as auth events.
type Known = BTreeMap<(String, String), OwnedEventId>;

fn remote(name: &str) -> OwnedUserId {
    UserId::parse(format!("@{name}:peer.test")).unwrap()
}

impl Peer {
    fn new(room: &OwnedRoomId) -> Self {
        Peer {
            key: Keypair::new(ruma::server_name!("peer.test").to_owned(), "1", &[9; 32]).unwrap(),
            room: room.clone(),
            rules: RoomRules::of(&ruma::RoomVersionId::V12).unwrap(),
            ts: 1_700_000_100_000,
        }
    }

    fn event(
        &mut self,
        sender: &UserId,
        kind: &str,
        state_key: Option<&str>,
        content: Value,
        prev: &[&Pdu],
        known: &Known,
    ) -> Pdu {
        let kind = TimelineEventType::from(kind);
        let content = to_raw_value(&content).unwrap();
        let keys = auth_keys(self.rules, &kind, sender, state_key, content.get()).unwrap();
        let auth: Vec<OwnedEventId> = keys
            .iter()
            .filter_map(|(kind, key)| known.get(&(kind.to_string(), key.clone())).cloned())
            .collect();
        let prev_events: Vec<OwnedEventId> = prev.iter().map(|event| event.event_id().to_owned()).collect();
        let depth = prev.iter().map(|event| event.depth()).max().unwrap_or(0) + 1;
        self.ts += 1000;
        let place = Place {
            room_id: Some(&self.room),
            prev_events: &prev_events,
            auth_events: &auth,
            depth,
            origin_server_ts: MilliSecondsSinceUnixEpoch(UInt::new_saturating(self.ts)),
            hashes: None,
        };
        let draft = Draft {
            sender: sender.to_owned(),
            kind,
            state_key: state_key.map(str::to_owned),
            content,
            redacts: None,
        };
        draft.build(self.rules, &place, &self.key).unwrap()
    }
}

/// A room whose ids are the same each time, as clock and key are.
async fn base() -> (World, OwnedRoomId, Pdu, Known) {
    let world = World::new().await;
    let room = world.room("alice", Preset::PublicChat).await;
    let mut levels = world.state(&room, "m.room.power_levels", "").await.unwrap();
    levels["users"] = json!({ remote("bob"): 100, remote("carol"): 50 });
    world.set("alice", &room, "m.room.power_levels", "", levels).await.unwrap();
    let mut known = Known::new();
    let mut last = None;
    for event in world.events(&room).await {
        if let Some(state_key) = event.pdu.state_key() {
            known.insert((event.pdu.kind().to_string(), state_key.to_owned()), event.header.event_id.clone());
        }
        last = Some(event.pdu.clone());
    }
    (world, room, last.unwrap(), known)
}

fn with(known: &Known, event: &Pdu) -> Known {
    let mut known = known.clone();
    known.insert(
        (event.kind().to_string(), event.state_key().unwrap().to_owned()),
        event.event_id().to_owned(),
    );
    known
}

/// Two forks that disagree about a name, a topic and a ban, then joined by a message.
fn story(room: &OwnedRoomId, last: &Pdu, known: &Known) -> Vec<Pdu> {
    let mut peer = Peer::new(room);
    let (bob, carol) = (remote("bob"), remote("carol"));
    let join = json!({ "membership": "join" });
    let bob_joins = peer.event(&bob, "m.room.member", Some(bob.as_str()), join.clone(), &[last], known);
    let known = with(known, &bob_joins);
    let carol_joins = peer.event(&carol, "m.room.member", Some(carol.as_str()), join, &[&bob_joins], &known);
    let known = with(&known, &carol_joins);
    // One side: Carol renames the room and talks.
    let name =
        peer.event(&carol, "m.room.name", Some(""), json!({ "name": "Carol's" }), &[&carol_joins], &known);
    let talk = peer.event(
        &carol,
        "m.room.message",
        None,
        json!({ "body": "hi", "msgtype": "m.text" }),
        &[&name],
        &known,
    );
    // The other: Bob bans her, and sets a name and a topic.
    let ban = peer.event(
        &bob,
        "m.room.member",
        Some(carol.as_str()),
        json!({ "membership": "ban" }),
        &[&carol_joins],
        &known,
    );
    let known = with(&known, &ban);
    let topic = peer.event(&bob, "m.room.topic", Some(""), json!({ "topic": "order" }), &[&ban], &known);
    let end = peer.event(
        &bob,
        "m.room.message",
        None,
        json!({ "body": "end", "msgtype": "m.text" }),
        &[&topic],
        &known,
    );
    vec![bob_joins, carol_joins, name, talk, ban, topic, end]
}

/// Hands over events in an order; what misses others waits for them.
async fn deliver(world: &World, order: Vec<Pdu>) -> BTreeMap<OwnedEventId, Received> {
    let mut waiting = order;
    let mut results = BTreeMap::new();
    for _ in 0..20 {
        let mut later = Vec::new();
        for pdu in waiting {
            match world.rooms.receive(&VerifiedPdu::built_here(pdu.clone())).await.unwrap() {
                Received::Missing { prev, auth } => {
                    assert!(!prev.is_empty() || !auth.is_empty());
                    later.push(pdu);
                }
                received => drop(results.insert(pdu.event_id().to_owned(), received)),
            }
        }
        waiting = later;
    }
    assert!(waiting.is_empty(), "events wait for ever: {waiting:?}");
    results
}

async fn state_of(world: &World, room: &OwnedRoomId) -> BTreeMap<(String, String), OwnedEventId> {
    let info = world.rooms.room(room).await.unwrap().unwrap();
    let head = world.rooms.head(info.sn).await.unwrap().unwrap().value;
    let mut state = BTreeMap::new();
    for (key, event) in world.rooms.snapshots().all(info.sn, head.snapshot).await.unwrap() {
        let name = world.rooms.state_key_name(info.sn, key).await.unwrap();
        let event = world.rooms.events().load(&info, event).await.unwrap();
        state.insert((name.kind.as_str().to_owned(), name.state_key.clone()), event.header.event_id.clone());
    }
    state
}

/// All orders of `count` things.
fn permutations(count: usize) -> Vec<Vec<usize>> {
    if count == 0 {
        return vec![vec![]];
    }
    let mut all = Vec::new();
    for shorter in permutations(count - 1) {
        for place in 0..count {
            let mut order = shorter.clone();
            order.insert(place, count - 1);
            all.push(order);
        }
    }
    all
}

#[tokio::test]
async fn every_order_of_arrival_ends_in_the_same_state() {
    let mut expected = None;
    // The two joins come first; the five that follow come in all 120 orders.
    for order in permutations(5) {
        let (world, room, last, known) = base().await;
        let events = story(&room, &last, &known);
        let mut arrival: Vec<Pdu> = events[..2].to_vec();
        arrival.extend(order.iter().map(|place| events[2 + place].clone()));
        deliver(&world, arrival).await;
        let state = state_of(&world, &room).await;
        let ban = &events[4];
        assert_eq!(state[&("m.room.member".into(), remote("carol").to_string())], ban.event_id());
        match &expected {
            None => expected = Some(state),
            Some(expected) => assert_eq!(state, *expected, "in the order {order:?}"),
        }
        let info = world.rooms.room(&room).await.unwrap().unwrap();
        let head = world.rooms.head(info.sn).await.unwrap().unwrap().value;
        let members = world.rooms.snapshots().members(info.sn, head.snapshot).await.unwrap();
        assert_eq!(members.len(), 3);
        assert_eq!(head.joined, 2, "alice and bob");
        // Our own users go on, on top of all forks.
        world.say("alice", &room, "after all").await.unwrap();
        assert_eq!(world.rooms.head(info.sn).await.unwrap().unwrap().value.extremities.len(), 1);
    }
}

#[tokio::test]
async fn even_backwards_everything_arrives() {
    let (world, room, last, known) = base().await;
    let mut events = story(&room, &last, &known);
    events.reverse();
    let results = deliver(&world, events.clone()).await;
    assert_eq!(results.len(), 7);
    let before = world.events(&room).await.len();
    for pdu in &events {
        let again = world.rooms.receive(&VerifiedPdu::built_here(pdu.clone())).await.unwrap();
        let first = &results[pdu.event_id()];
        match (first, &again) {
            (Received::Accepted(a), Received::Accepted(b)) => assert_eq!(a, b),
            (Received::SoftFailed(_), Received::SoftFailed(_))
            | (Received::Rejected(_), Received::Rejected(_)) => {}
            _ => panic!("{first:?}, then {again:?}"),
        }
    }
    assert_eq!(world.events(&room).await.len(), before, "what is known is not stored again");
}

#[tokio::test]
async fn refused_events_are_known_and_never_extremities() {
    let (world, room, last, known) = base().await;
    let mut peer = Peer::new(&room);
    let stranger = remote("stranger");
    let message = json!({ "body": "let me in", "msgtype": "m.text" });
    let uninvited = peer.event(&stranger, "m.room.message", None, message.clone(), &[&last], &known);
    let verified = VerifiedPdu::built_here(uninvited.clone());
    assert!(matches!(world.rooms.receive(&verified).await.unwrap(), Received::Rejected(Some(_))));
    assert_eq!(world.rooms.receive(&verified).await.unwrap(), Received::Rejected(None));
    assert_eq!(world.by_id(&room, &uninvited.event_id().to_owned()).await.status(), Status::Rejected);
    let info = world.rooms.room(&room).await.unwrap().unwrap();
    let extremities = world.rooms.head(info.sn).await.unwrap().unwrap().value.extremities;
    assert_eq!(extremities, [world.by_id(&room, &last.event_id().to_owned()).await.sn]);

    // Banned meanwhile: allowed where it was made, soft-failed here.
    let bob = remote("bob");
    let join = peer.event(
        &bob,
        "m.room.member",
        Some(bob.as_str()),
        json!({ "membership": "join" }),
        &[&last],
        &known,
    );
    world.rooms.receive(&VerifiedPdu::built_here(join.clone())).await.unwrap();
    let known = with(&known, &join);
    let ban = json!({ "membership": "ban" });
    world.set("alice", &room, "m.room.member", bob.as_str(), ban).await.unwrap();
    let late = peer.event(&bob, "m.room.message", None, message, &[&join], &known);
    let late = VerifiedPdu::built_here(late);
    assert!(matches!(world.rooms.receive(&late).await.unwrap(), Received::SoftFailed(Some(_))));
    assert_eq!(world.rooms.receive(&late).await.unwrap(), Received::SoftFailed(None));
    let ids: Vec<OwnedEventId> =
        world.events(&room).await.iter().map(|event| event.header.event_id.clone()).collect();
    assert!(!ids.iter().any(|id| id == late.pdu().event_id()), "it is not shown");
    assert_eq!(world.rooms.head(info.sn).await.unwrap().unwrap().value.extremities.len(), 1);
}

#[tokio::test]
async fn an_outlier_joins_the_room_later() {
    let (world, room, last, known) = base().await;
    let events = story(&room, &last, &known);
    let missing = world.rooms.receive(&VerifiedPdu::built_here(events[1].clone())).await.unwrap();
    assert_eq!(missing, Received::Missing { prev: vec![events[0].event_id().to_owned()], auth: vec![] });
    let outlier = VerifiedPdu::built_here(events[0].clone());
    assert_eq!(world.rooms.receive_outlier(&outlier).await.unwrap(), Received::Outlier);
    assert_eq!(world.rooms.receive_outlier(&outlier).await.unwrap(), Received::Outlier);
    assert_eq!(world.membership(&room, "bob").await, None);
    let sn = world.by_id(&room, &events[0].event_id().to_owned()).await.sn;
    deliver(&world, events).await;
    let held = world.events(&room).await.into_iter().find(|event| event.sn == sn).unwrap();
    assert_eq!(held.status(), Status::Accepted);
    assert!(world.rooms.is_joined(&user("alice"), RoomSn(1)).await.unwrap());
    assert!(world.rooms.is_joined(&remote("bob"), RoomSn(1)).await.unwrap());
}

#[tokio::test]
async fn a_redaction_may_come_before_its_target() {
    let (world, room, last, known) = base().await;
    let mut peer = Peer::new(&room);
    let bob = remote("bob");
    let join = peer.event(
        &bob,
        "m.room.member",
        Some(bob.as_str()),
        json!({ "membership": "join" }),
        &[&last],
        &known,
    );
    let known = with(&known, &join);
    let secret = peer.event(
        &bob,
        "m.room.message",
        None,
        json!({ "body": "secret", "msgtype": "m.text" }),
        &[&join],
        &known,
    );
    let redaction =
        peer.event(&bob, "m.room.redaction", None, json!({ "redacts": secret.event_id() }), &[&join], &known);
    deliver(&world, vec![join, redaction, secret.clone()]).await;
    let event = world.by_id(&room, &secret.event_id().to_owned()).await;
    assert!(event.is_redacted());
    assert_eq!(event.pdu.content_json(), "{}");
}

#[tokio::test]
async fn many_forks_are_joined_by_our_next_events() {
    let (world, room, last, known) = base().await;
    let mut peer = Peer::new(&room);
    let bob = remote("bob");
    let join = json!({ "membership": "join" });
    let join = peer.event(&bob, "m.room.member", Some(bob.as_str()), join, &[&last], &known);
    let known = with(&known, &join);
    let mut events = vec![join.clone()];
    for n in 0..30 {
        let content = json!({ "body": n.to_string(), "msgtype": "m.text" });
        events.push(peer.event(&bob, "m.room.message", None, content, &[&join], &known));
    }
    deliver(&world, events).await;
    let info = world.rooms.room(&room).await.unwrap().unwrap();
    let extremities = async || world.rooms.head(info.sn).await.unwrap().unwrap().value.extremities.len();
    assert_eq!(extremities().await, 30);
    let sent = world.say("alice", &room, "one").await.unwrap();
    assert_eq!(world.by_id(&room, &sent.event_id).await.pdu.prev_events().len(), 20);
    assert_eq!(extremities().await, 11);
    world.say("alice", &room, "two").await.unwrap();
    assert_eq!(extremities().await, 1);
}
