//! Events that are made to be in the way: none of them stops a room, or takes anything from it.

use hearth_dag::Pdu;
use hearth_rooms::*;
use ruma::OwnedRoomId;
use serde_json::{Value, json};

use crate::peers::*;
use crate::support::{World, user};

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
