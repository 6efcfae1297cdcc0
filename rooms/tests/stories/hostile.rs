//! Events that are made to be in the way: none of them stops a room, or takes anything from it.

use hearth_dag::Pdu;
use hearth_rooms::*;
use ruma::OwnedRoomId;
use serde_json::{Value, json};

use crate::gate::Gate;
use crate::peers::*;
use crate::support::{TestClock, World, servers, user};

/// A room of a peer that our user has entered, with its last event and its state.
async fn entered() -> (World, Peer, OwnedRoomId, Pdu, State) {
    let (world, peer) = (World::new().await, Peer::new("peer.test").await);
    let room = peer.room("bob", Preset::PublicChat).await;
    let enter = peer.let_in(&room, &user("alice")).await;
    let join = enter.join.pdu().clone();
    world.rooms.enter_room(enter).await.unwrap();
    let state = state_of(&peer.rooms, &room).await;
    (world, peer, room, join, state)
}

fn no_key_has_space_for_it(peer: &Peer, room: &OwnedRoomId, last: &Pdu, state: &State) -> Pdu {
    let (bob, zeroes) = (peer.user("bob"), "\0".repeat(255));
    forge(room, rules(), Say::state(&bob, &zeroes, &zeroes, json!({})), &[last], state)
}

fn rules() -> &'static hearth_dag::RoomRules {
    hearth_dag::RoomRules::of(&ruma::RoomVersionId::V12).unwrap()
}

#[tokio::test]
async fn text_of_any_length_is_taken_in() {
    let (world, peer, room, join, state) = entered().await;
    let (bob, carol) = (peer.user("bob"), peer.user("carol"));
    let message = |relates: Value| {
        let content = json!({ "body": "hi", "msgtype": "m.text", "m.relates_to": relates });
        Say { sender: &bob, kind: "m.room.message", state_key: None, content }
    };
    let profile =
        json!({ "membership": "join", "displayname": "ä".repeat(9_000), "avatar_url": "x".repeat(9_000) });
    let redaction = json!({ "redacts": format!("${}", "r".repeat(9_000)) });
    let all = [
        Say::state(&carol, "m.room.member", carol.as_str(), profile),
        message(json!({ "rel_type": "x".repeat(9_000), "event_id": join.event_id() })),
        message(json!({ "rel_type": "m.thread", "event_id": format!("${}", "e".repeat(9_000)) })),
        Say { sender: &bob, kind: "m.room.redaction", state_key: None, content: redaction },
        Say {
            content: json!({ "body": "hi", "m.mentions": { "user_ids": ["@".repeat(9_000)] } }),
            ..message(json!({}))
        },
    ];
    for say in all {
        let kind = say.kind.to_owned();
        let pdu = forge(&room, rules(), say, &[&join], &state);
        let received = world.rooms.receive(&built(&pdu)).await;
        assert!(matches!(received, Ok(Received::Accepted(_))), "{kind}: {received:?}");
    }
    let info = world.rooms.room(&room).await.unwrap().unwrap();
    let row = world.store.get(&tables::MEMBERS, &(info.sn, carol.to_string())).await.unwrap().unwrap().value;
    let name = row.display_name.unwrap();
    assert!(row.avatar_url.is_none() && name.len() <= 1_000 && name.chars().all(|letter| letter == 'ä'));
}

#[tokio::test]
async fn an_event_that_cannot_be_kept_stops_no_other() {
    let (world, peer, room, join, state) = entered().await;
    let bad = no_key_has_space_for_it(&peer, &room, &join, &state);
    let bob = peer.user("bob");
    let first = forge(&room, rules(), Say::message(&bob, "first"), &[&join], &state);
    let second = forge(&room, rules(), Say::message(&bob, "second"), &[&first], &state);
    for pdu in [&bad, &second, &first] {
        assert!(world.rooms.enqueue(&built(pdu), &peer.name).await.unwrap());
    }
    let decided = world.rooms.receive_queued(&room).await.unwrap();
    let decided: Vec<_> = decided.into_iter().map(|(event, _)| event).collect();
    assert_eq!(decided, ids(&[first, second]));
    assert!(world.rooms.rooms_with_queues().await.unwrap().is_empty());
    world.say("alice", &room, "all is well").await.unwrap();
}

#[tokio::test]
async fn a_room_with_an_event_that_cannot_be_kept_is_entered() {
    let (world, peer) = (World::new().await, Peer::new("peer.test").await);
    let room = peer.room("bob", Preset::PublicChat).await;
    let mut enter = peer.let_in(&room, &user("alice")).await;
    let state = state_of(&peer.rooms, &room).await;
    let last = peer.timeline(&room).await[5].clone();
    enter.state.push(built(&no_key_has_space_for_it(&peer, &room, &last, &state)));
    assert_eq!(world.rooms.enter_room(enter).await.unwrap().dropped, 1);
    assert_eq!(state_of(&world.rooms, &room).await, state);
}

#[tokio::test]
async fn forks_take_nothing_from_the_state_and_are_merged() {
    const FORKS: usize = 130;
    let (world, peer, room, join, state) = entered().await;
    let bob = peer.user("bob");
    let keys: Vec<String> = (0..FORKS).map(|number| number.to_string()).collect();
    for key in &keys {
        let fork = Say::state(&bob, "org.example.fork", key, json!({ "is": key }));
        let fork = forge(&room, rules(), fork, &[&join], &state);
        assert!(matches!(world.rooms.receive(&built(&fork)).await.unwrap(), Received::Accepted(_)));
    }
    let has_all = async |world: &World| {
        for key in &keys {
            assert_eq!(world.state(&room, "org.example.fork", key).await, Some(json!({ "is": key })));
        }
    };
    assert!(world.head(&room).await.extremities.len() <= 100);
    has_all(&world).await;
    // A process that comes after knows of all of them too, and one event more does not end them.
    let world = World::on(world.store.clone());
    let last = forge(&room, rules(), Say::message(&bob, "one more"), &[&join], &state);
    assert!(matches!(world.rooms.receive(&built(&last)).await.unwrap(), Received::Accepted(_)));
    has_all(&world).await;

    let before = world.head(&room).await.extremities;
    world.rooms.merge_forks(&room).await.unwrap().unwrap();
    let after = world.head(&room).await.extremities;
    assert!(after.len() <= EXTREMITIES_LEFT_ALONE && after.iter().all(|event| !before.contains(event)));
    let info = world.rooms.room(&room).await.unwrap().unwrap();
    for event in world.rooms.events().load_many(&info, &after).await.unwrap() {
        assert!((1..=20).contains(&event.pdu.prev_events().len()));
        assert_eq!(*event.header.kind.as_str(), *DUMMY_EVENT);
    }
    has_all(&world).await;
    while world.rooms.merge_forks(&room).await.unwrap().is_some() {}
    world.say("alice", &room, "as ever").await.unwrap();
    has_all(&world).await;
    assert!(world.store.get(&tables::MERGED_FORKS, &info.sn).await.unwrap().is_none());
    assert_eq!(world.head(&room).await.extremities.len(), 1);
}

#[tokio::test]
async fn forks_that_others_join_are_merged_no_more() {
    const FORKS: usize = 130;
    let (world, peer, room, join, state) = entered().await;
    let bob = peer.user("bob");
    let keys: Vec<String> = (0..FORKS).map(|number| number.to_string()).collect();
    let mut forks = Vec::new();
    for key in &keys {
        let fork = Say::state(&bob, "org.example.fork", key, json!({ "is": key }));
        forks.push(forge(&room, rules(), fork, &[&join], &state));
    }
    let receive = async |pdu: &Pdu| {
        assert!(matches!(world.rooms.receive(&built(pdu)).await.unwrap(), Received::Accepted(_)));
    };
    for fork in &forks {
        receive(fork).await;
    }
    let info = world.rooms.room(&room).await.unwrap().unwrap();
    let merged = async || world.store.get(&tables::MERGED_FORKS, &info.sn).await.unwrap();
    assert!(merged().await.is_some());
    let joins: Vec<Vec<&Pdu>> = forks.chunks(20).map(|forks| forks.iter().collect()).collect();
    for (place, prev) in joins.iter().enumerate() {
        let dummy = Say { sender: &bob, kind: DUMMY_EVENT, state_key: None, content: json!({}) };
        receive(&forge(&room, rules(), dummy, prev, &state)).await;
        // Those that were merged are the oldest.
        assert_eq!(merged().await.is_some(), (place + 1) * 20 < FORKS - 100, "after {place}");
    }
    assert_eq!(world.head(&room).await.extremities.len(), joins.len());
    for key in &keys {
        assert_eq!(world.state(&room, "org.example.fork", key).await, Some(json!({ "is": key })));
    }
}

#[tokio::test]
async fn a_chain_of_refused_events_is_not_gone_through_for_each_that_follows() {
    const CHAIN: usize = 400;
    let (gate, store) = Gate::before(&hearth_store::Store::memory().await).await;
    let clock = std::sync::Arc::new(TestClock(std::sync::atomic::AtomicU64::new(1_700_000_000_000)));
    let options = RoomsOptions { event_cache_bytes: 1, ..RoomsOptions::default() };
    let world = World { rooms: Rooms::new(store.clone(), servers(), clock, &options), store };
    let peer = Peer::new("peer.test").await;
    let room = peer.room("bob", Preset::PublicChat).await;
    let enter = peer.let_in(&room, &user("alice")).await;
    let join = enter.join.pdu().clone();
    world.rooms.enter_room(enter).await.unwrap();
    let state = state_of(&peer.rooms, &room).await;
    let (bob, eve) = (peer.user("bob"), peer.user("eve"));
    let event = tables::EVENTS.key_bytes(&(RoomSn(1), EventSn(1)));
    let mut last = join;
    for number in 0..CHAIN {
        last = forge(&room, rules(), Say::message(&eve, &number.to_string()), &[&last], &state);
        assert!(matches!(world.rooms.receive(&built(&last)).await.unwrap(), Received::Rejected(_)));
    }
    for text in ["one", "two"] {
        let before = gate.reads(&event);
        let said = forge(&room, rules(), Say::message(&bob, text), &[&last], &state);
        assert!(matches!(world.rooms.receive(&built(&said)).await.unwrap(), Received::Accepted(_)));
        let reads = gate.reads(&event) - before;
        assert!(reads < CHAIN, "{reads} reads");
    }
}

#[tokio::test]
async fn worthless_redactions_hide_no_good_one() {
    let (world, peer, room, join, state) = entered().await;
    let (bob, carol) = (peer.user("bob"), peer.user("carol"));
    let eve = ruma::UserId::parse("@eve:evil.test").unwrap();
    let mut last = join.clone();
    let mut state = state;
    let mut receive = async |say: Say<'_>, state: &State| {
        let pdu = forge(&room, rules(), say, &[&last], state);
        let received = world.rooms.receive(&built(&pdu)).await.unwrap();
        assert!(matches!(received, Received::Accepted(_)), "{received:?}");
        last = pdu.clone();
        pdu
    };
    let joined = receive(Say::member(&carol, &carol, "join"), &state).await;
    state = with(&state, &joined);
    let eves = receive(Say::member(&eve, &eve, "join"), &state).await;
    state = with(&state, &eves);
    // Two messages of Carol are on their way: Bob, who has power, redacts one of them, and she the other.
    let targets =
        ["one", "two"].map(|text| forge(&room, rules(), Say::message(&carol, text), &[&joined], &state));
    for ((target, by), worthless) in targets.iter().zip([&bob, &carol]).zip([1_001, 20]) {
        let redact = |sender| {
            let content = json!({ "redacts": target.event_id() });
            Say { sender, kind: "m.room.redaction", state_key: None, content }
        };
        for _ in 0..worthless {
            receive(redact(&eve), &state).await;
        }
        receive(redact(by), &state).await;
    }
    for target in &targets {
        assert!(matches!(world.rooms.receive(&built(target)).await.unwrap(), Received::Accepted(_)));
        assert!(world.by_id(&room, &target.event_id().to_owned()).await.is_redacted());
    }
    // Those of Eve alone redact nothing.
    let spared = forge(&room, rules(), Say::message(&carol, "three"), &[&joined], &state);
    let content = json!({ "redacts": spared.event_id() });
    receive(Say { sender: &eve, kind: "m.room.redaction", state_key: None, content }, &state).await;
    assert!(matches!(world.rooms.receive(&built(&spared)).await.unwrap(), Received::Accepted(_)));
    assert!(!world.by_id(&room, &spared.event_id().to_owned()).await.is_redacted());
}
