//! Rooms that are entered before all their members are known.

use hearth_rooms::*;
use ruma::OwnedRoomId;
use serde_json::json;

use crate::peers::*;
use crate::support::{World, user};

/// A room with Bob, Carol and Dora, of whom our user is told none when she enters.
async fn entered() -> (World, Peer, OwnedRoomId, EnterRoom) {
    let (world, peer) = (World::new().await, Peer::new("peer.test").await);
    let room = peer.room("bob", Preset::PublicChat).await;
    peer.join("carol", &room).await;
    peer.join("dora", &room).await;
    let bob = peer.user("bob");
    let dora = peer.user("dora");
    peer.send(&room, Say::member(&bob, &dora, "ban")).await;
    let full = peer.let_in(&room, &user("alice")).await;
    let mut answer = full.clone();
    answer.state.retain(|event| event.pdu().kind().to_string() != "m.room.member");
    answer.members_omitted = Some(vec![peer.name.clone()]);
    let done = world.rooms.enter_room(answer).await.unwrap();
    assert!(done.is_partial);
    (world, peer, room, full)
}

#[tokio::test]
async fn members_are_told_later_and_the_room_works_meanwhile() {
    let (world, peer, room, full) = entered().await;
    let head = world.head(&room).await;
    assert_eq!((head.residency, head.partial_state, head.joined), (Residency::Partial, true, 1));
    let known = world.rooms.partial_room(&room).await.unwrap().unwrap();
    assert_eq!(known.join, full.join.pdu().event_id());
    assert_eq!((known.origin, known.servers), (peer.name.clone(), vec![peer.name.clone()]));
    assert_eq!(world.rooms.partial_rooms().await.unwrap(), [room.clone()]);
    // Carol is unknown to us, her message names her membership.
    let carol = peer.user("carol");
    let timeline = peer.timeline(&room).await;
    let join = timeline.iter().find(|event| event.state_key() == Some(carol.as_str())).unwrap();
    world.rooms.receive_outlier(&built(join)).await.unwrap();
    let said = peer.pdu(&room, &peer.say(&room, "carol", "hello").await).await;
    assert!(matches!(world.rooms.receive(&built(&said)).await.unwrap(), Received::Accepted(_)));
    world.say("alice", &room, "hello").await.unwrap();
    let length = world.stream_length().await;

    // A process that comes after takes it up.
    let world = World::on(world.store.clone());
    let complete = async || {
        world.rooms.complete_state(&room, full.state.clone(), full.auth_chain.clone()).await.unwrap();
    };
    complete().await;
    let head = world.head(&room).await;
    assert_eq!((head.residency, head.partial_state, head.joined), (Residency::Resident, false, 3));
    assert_eq!(state_of(&world.rooms, &room).await, state_of(&peer.rooms, &room).await);
    assert_eq!(world.member_rows(&room).await.len(), 4);
    assert_eq!(world.stream_length().await, length + 1, "those who follow learn that the state changed");
    assert_eq!(world.events(&room).await.len(), 3);
    let stored = world.by_id(&room, &said.event_id().to_owned()).await;
    assert!(stored.changes.completed && stored.status() == Status::Accepted);
    assert!(world.rooms.partial_rooms().await.unwrap().is_empty());
    complete().await;
    assert_eq!(world.stream_length().await, length + 1, "once");
}

#[tokio::test]
async fn what_the_full_state_refuses_leaves_the_room() {
    let (world, peer, room, full) = entered().await;
    let info = peer.rooms.room(&room).await.unwrap().unwrap();
    let (bob, dora) = (peer.user("bob"), peer.user("dora"));
    // Dora is banned; she names her old join, and we do not know better.
    let timeline = peer.timeline(&room).await;
    let is_join = |event: &&hearth_dag::Pdu| event.state_key() == Some(dora.as_str());
    let join = timeline.iter().find(is_join).unwrap();
    let state = with(&state_of(&peer.rooms, &room).await, join);
    world.rooms.receive_outlier(&built(join)).await.unwrap();
    let intruder = forge(&room, info.rules, Say::message(&dora, "hi"), &[full.join.pdu()], &state);
    assert!(matches!(world.rooms.receive(&built(&intruder)).await.unwrap(), Received::Accepted(_)));
    let after = forge(&room, info.rules, Say::message(&bob, "who?"), &[&intruder], &state);
    let topic = Say::state(&bob, "m.room.topic", "", json!({ "topic": "order" }));
    let topic = forge(&room, info.rules, topic, &[&after], &state);
    for event in [&after, &topic] {
        assert!(matches!(world.rooms.receive(&built(event)).await.unwrap(), Received::Accepted(_)));
    }
    let last = forge(&room, info.rules, Say::message(&dora, "bye"), &[&topic], &state);
    assert!(matches!(world.rooms.receive(&built(&last)).await.unwrap(), Received::Accepted(_)));

    world.rooms.complete_state(&room, full.state.clone(), full.auth_chain.clone()).await.unwrap();
    for refused in [&intruder, &last] {
        assert_eq!(world.by_id(&room, &refused.event_id().to_owned()).await.status(), Status::Rejected);
    }
    let shown: Vec<_> = ids(&crate::peers::timeline(&world.rooms, &world.store, &room).await);
    assert_eq!(shown, ids(&[full.join.pdu().clone(), after, topic.clone()]));
    let head = world.head(&room).await;
    assert_eq!(head.extremities, [world.by_id(&room, &topic.event_id().to_owned()).await.sn]);
    assert_eq!(world.member_rows(&room).await[dora.as_str()], Membership::Ban);
    assert_eq!(world.state(&room, "m.room.topic", "").await.unwrap(), json!({ "topic": "order" }));
}

#[tokio::test]
async fn whoever_enters_beside_another_does_not_take_members_away() {
    let (world, peer, room, full) = entered().await;
    let info = world.rooms.room(&room).await.unwrap().unwrap();
    let servers = world.rooms.servers_in_room(&info).await.unwrap();
    assert!(servers.contains(&peer.name) && servers.contains(ruma::server_name!("hearth.test")));
    world.rooms.complete_state(&room, full.state.clone(), full.auth_chain.clone()).await.unwrap();
    // Dave comes through the other server too, which tells no members.
    let mut dave = peer.let_in(&room, &user("dave")).await;
    dave.state.retain(|event| event.pdu().kind().to_string() != "m.room.member");
    dave.members_omitted = Some(vec![peer.name.clone()]);
    let entered = world.rooms.enter_room(dave).await.unwrap();
    assert!(!entered.is_partial && entered.position.is_some());
    assert_eq!(state_of(&world.rooms, &room).await, state_of(&peer.rooms, &room).await);
    assert_eq!(world.head(&room).await.joined, 4);
    // When both have left again, nobody is asked for anything.
    for name in ["alice", "dave"] {
        world.remove(Removal::Leave, name, name, &room).await.unwrap();
    }
    assert_eq!(world.head(&room).await.residency, Residency::Left);
    assert!(world.rooms.partial_rooms().await.unwrap().is_empty());
}
