//! What keeps rooms in order: forks that are joined, redactions by the right of their time, old transaction ids.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hearth_rooms::*;
use hearth_store::{Commit, Store};
use serde_json::json;

use crate::peers::*;
use crate::support::{TestClock, World, message, servers, txn, user};

#[tokio::test]
async fn many_forks_are_joined_by_an_event_that_nobody_is_shown() {
    let (world, peer) = (World::new().await, Peer::new("peer.test").await);
    let room = peer.room("bob", Preset::PublicChat).await;
    let answer = peer.let_in(&room, &user("alice")).await;
    world.rooms.enter_room(answer.clone()).await.unwrap();
    let info = peer.rooms.room(&room).await.unwrap().unwrap();
    let state = state_of(&peer.rooms, &room).await;
    let bob = peer.user("bob");
    let extremities = async || world.head(&room).await.extremities.len();
    for number in 0..25 {
        let fork =
            forge(&room, info.rules, Say::message(&bob, &number.to_string()), &[answer.join.pdu()], &state);
        world.rooms.receive(&built(&fork)).await.unwrap();
        if number == 9 {
            assert_eq!(world.rooms.merge_forks(&room).await.unwrap(), None, "ten are left alone");
        }
    }
    assert_eq!(extremities().await, 25);
    let shown = world.events(&room).await.len();
    let length = world.stream_length().await;
    let sent = world.rooms.merge_forks(&room).await.unwrap().unwrap();
    let dummy = world.by_id(&room, &sent.event_id).await;
    assert_eq!((dummy.header.kind.as_str(), dummy.pdu.prev_events().len()), (DUMMY_EVENT, 20));
    assert_eq!(extremities().await, 6);
    assert_eq!(world.rooms.merge_forks(&room).await.unwrap(), None);
    assert_eq!(world.events(&room).await.len(), shown, "no timeline has it");
    assert_eq!(world.stream_length().await, length + 1, "the other servers get it");
    // One that a peer made is not shown either.
    let theirs = Say { sender: &bob, kind: DUMMY_EVENT, state_key: None, content: json!({}) };
    let theirs = forge(&room, info.rules, theirs, &[answer.join.pdu()], &state);
    assert!(matches!(world.rooms.receive(&built(&theirs)).await.unwrap(), Received::Accepted(_)));
    assert_eq!(world.events(&room).await.len(), shown);
}

#[tokio::test]
async fn a_redaction_has_the_right_that_its_sender_had_then() {
    let (world, peer) = (World::new().await, Peer::new("peer.test").await);
    let room = peer.room_of("bob", Preset::PublicChat, ruma::RoomVersionId::V11).await;
    let (bob, carol) = (peer.user("bob"), ruma::UserId::parse("@carol:other.test").unwrap());
    let join = peer.take(&room, Say::member(&carol, &carol, "join")).await;
    let mut levels = json!({ "users": { bob.to_string(): 100, carol.to_string(): 50 } });
    peer.send(&room, Say::state(&bob, "m.room.power_levels", "", levels.clone())).await;
    let answer = peer.let_in(&room, &user("alice")).await;
    world.rooms.enter_room(answer.clone()).await.unwrap();
    let info = peer.rooms.room(&room).await.unwrap().unwrap();
    let state = state_of(&peer.rooms, &room).await;
    // Two messages of Bob are on their way while Carol redacts both: one before, one after she loses her power.
    let early = forge(&room, info.rules, Say::message(&bob, "early"), &[answer.join.pdu()], &state);
    let late = forge(&room, info.rules, Say::message(&bob, "late"), &[answer.join.pdu()], &state);
    let redact = |target: &hearth_dag::Pdu| {
        let content = json!({ "redacts": target.event_id() });
        Say { sender: &carol, kind: "m.room.redaction", state_key: None, content }
    };
    let rightly = forge(&room, info.rules, redact(&early), &[answer.join.pdu()], &state);
    levels["users"][carol.as_str()] = json!(0);
    let demotion = Say::state(&bob, "m.room.power_levels", "", levels);
    let demotion = forge(&room, info.rules, demotion, &[&rightly], &state);
    let known = with(&state, &demotion);
    let wrongly = forge(&room, info.rules, redact(&late), &[&demotion], &known);
    for event in [&rightly, &demotion, &wrongly, &early, &late] {
        let received = world.rooms.receive(&built(event)).await.unwrap();
        assert!(matches!(received, Received::Accepted(_)), "{received:?}");
    }
    assert!(world.by_id(&room, &early.event_id().to_owned()).await.is_redacted());
    assert!(!world.by_id(&room, &late.event_id().to_owned()).await.is_redacted());
    assert_eq!(join.sender(), carol);
}

#[tokio::test]
async fn transaction_ids_are_forgotten_after_their_time() {
    let clock = Arc::new(TestClock(AtomicU64::new(1_700_000_000_000)));
    let store = Store::memory().await;
    let rooms = Rooms::new(store.clone(), servers(), clock.clone(), &RoomsOptions::default());
    let world = World { rooms, store };
    let room = world.room("alice", Preset::PrivateChat).await;
    let send = async |id: &str| {
        let send = Send { txn: txn("alice", id), ..message("alice", &room, id) };
        world.rooms.send(&send, Commit::new()).await.unwrap()
    };
    let old = send("old").await;
    clock.0.fetch_add(TRANSACTIONS_KEPT.as_millis() as u64 / 2, Ordering::SeqCst);
    let new = send("new").await;
    assert_eq!(world.rooms.expire_transactions().await.unwrap(), 0);
    assert_eq!(send("old").await.event_id, old.event_id);
    clock.0.fetch_add(TRANSACTIONS_KEPT.as_millis() as u64 / 2, Ordering::SeqCst);
    assert_eq!(world.rooms.expire_transactions().await.unwrap(), 1);
    assert_ne!(send("old").await.event_id, old.event_id);
    assert_eq!(send("new").await.event_id, new.event_id);
}

#[tokio::test]
async fn redactions_and_targets_that_come_at_once_find_each_other() {
    let directory = tempfile::tempdir().unwrap();
    let options = hearth_store::StoreOptions { disk_reserve: 0, ..Default::default() };
    let world = World::on(Store::open_sled(directory.path(), options).await.unwrap());
    let peer = Peer::new("peer.test").await;
    let room = peer.room("bob", Preset::PublicChat).await;
    let answer = peer.let_in(&room, &user("alice")).await;
    world.rooms.enter_room(answer.clone()).await.unwrap();
    let info = peer.rooms.room(&room).await.unwrap().unwrap();
    let state = state_of(&peer.rooms, &room).await;
    let bob = peer.user("bob");
    let (mut events, mut targets) = (Vec::new(), Vec::new());
    for number in 0..20 {
        let target = Say::message(&bob, &number.to_string());
        let target = forge(&room, info.rules, target, &[answer.join.pdu()], &state);
        let content = json!({ "redacts": target.event_id() });
        let redaction = Say { sender: &bob, kind: "m.room.redaction", state_key: None, content };
        events.push(built(&forge(&room, info.rules, redaction, &[answer.join.pdu()], &state)));
        events.push(built(&target));
        targets.push(target.event_id().to_owned());
    }
    let received = events.iter().map(|event| world.rooms.receive(event));
    for received in futures_util::future::join_all(received).await {
        assert!(matches!(received.unwrap(), Received::Accepted(_)));
    }
    for target in &targets {
        assert!(world.by_id(&room, target).await.is_redacted());
    }
}
