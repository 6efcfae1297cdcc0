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

#[tokio::test]
async fn a_state_that_does_not_let_our_user_in_is_not_believed() {
    let (world, peer, room, full) = entered().await;
    let info = peer.rooms.room(&room).await.unwrap().unwrap();
    let (bob, alice) = (peer.user("bob"), user("alice"));
    let mut before = state_of(&peer.rooms, &room).await;
    before.remove(&("m.room.member".to_owned(), alice.to_string()));
    let last = peer.timeline(&room).await[5].clone();
    let ban = forge(&room, info.rules, Say::member(&bob, &alice, "ban"), &[&last], &before);
    let mut lie = full.state.clone();
    lie.push(built(&ban));
    let refused = world.rooms.complete_state(&room, lie, full.auth_chain.clone()).await;
    assert!(matches!(refused, Err(CompleteError::Refused(_))), "{refused:?}");
    let mut twice = full.state.clone();
    let topic = |text: &str| {
        let say = Say::state(&bob, "m.room.topic", "", json!({ "topic": text }));
        built(&forge(&room, info.rules, say, &[&last], &before))
    };
    twice.extend([topic("one"), topic("two")]);
    let refused = world.rooms.complete_state(&room, twice, full.auth_chain.clone()).await;
    assert!(matches!(refused, Err(CompleteError::TwoEventsForOneKey(_))), "{refused:?}");
    let head = world.head(&room).await;
    assert!(head.partial_state && head.extremities.len() == 1);
    world.say("alice", &room, "still here").await.unwrap();
    // Another server tells the truth.
    world.rooms.complete_state(&room, full.state.clone(), full.auth_chain.clone()).await.unwrap();
    let head = world.head(&room).await;
    assert_eq!((head.residency, head.extremities.len()), (Residency::Resident, 1));
    assert_eq!(world.membership(&room, "alice").await.unwrap(), "join");
}

/// A room in which Dora, of whom we do not know that she is banned, kicks Carol, who goes on elsewhere.
async fn kicked_by_nobody() -> (World, OwnedRoomId, EnterRoom, [hearth_dag::Pdu; 3]) {
    let (world, peer) = (World::new().await, Peer::new("peer.test").await);
    let room = peer.room("bob", Preset::PublicChat).await;
    peer.join("carol", &room).await;
    peer.join("dora", &room).await;
    let (bob, carol, dora) = (peer.user("bob"), peer.user("carol"), peer.user("dora"));
    let mut levels: serde_json::Value = {
        let event =
            state_of(&peer.rooms, &room).await[&("m.room.power_levels".into(), String::new())].clone();
        serde_json::from_str(peer.pdu(&room, &event).await.content_json()).unwrap()
    };
    levels["users"] = json!({ &dora: 50 });
    peer.send(&room, Say::state(&bob, "m.room.power_levels", "", levels)).await;
    let joins: Vec<_> = peer.timeline(&room).await;
    let join_of = |user: &ruma::UserId| {
        joins.iter().find(|event| event.state_key() == Some(user.as_str())).unwrap().clone()
    };
    let (carols, doras) = (join_of(&carol), join_of(&dora));
    peer.send(&room, Say::member(&bob, &dora, "ban")).await;
    let full = peer.let_in(&room, &user("alice")).await;
    let mut answer = full.clone();
    answer.state.retain(|event| event.pdu().kind().to_string() != "m.room.member");
    answer.members_omitted = Some(vec![peer.name.clone()]);
    world.rooms.enter_room(answer).await.unwrap();
    for join in [&carols, &doras] {
        world.rooms.receive_outlier(&built(join)).await.unwrap();
    }
    let info = peer.rooms.room(&room).await.unwrap().unwrap();
    let state = with(&state_of(&peer.rooms, &room).await, &doras);
    let kick = forge(&room, info.rules, Say::member(&dora, &carol, "leave"), &[full.join.pdu()], &state);
    assert!(matches!(world.rooms.receive(&built(&kick)).await.unwrap(), Received::Accepted(_)));
    let said = forge(&room, info.rules, Say::message(&carol, "hello"), &[full.join.pdu()], &state);
    assert!(matches!(world.rooms.receive(&built(&said)).await.unwrap(), Received::SoftFailed(Some(_))));
    let after = forge(&room, info.rules, Say::message(&bob, "welcome"), &[&said], &state);
    (world, room, full, [kick, said, after])
}

#[tokio::test]
async fn what_only_a_partial_state_refused_comes_in_when_it_is_complete() {
    let (world, room, full, [kick, said, _]) = kicked_by_nobody().await;
    world.rooms.complete_state(&room, full.state.clone(), full.auth_chain.clone()).await.unwrap();
    assert_eq!(world.by_id(&room, &kick.event_id().to_owned()).await.status(), Status::Rejected);
    let stored = world.by_id(&room, &said.event_id().to_owned()).await;
    assert!(stored.status() == Status::Accepted && stored.order().is_some());
    let shown = ids(&crate::peers::timeline(&world.rooms, &world.store, &room).await);
    assert_eq!(shown, ids(&[full.join.pdu().clone(), said.clone()]));
    assert_eq!(world.head(&room).await.extremities, [stored.sn]);
    assert!(world.rooms.rooms_with_queues().await.unwrap().is_empty());
    let again = world.rooms.receive(&built(&said)).await.unwrap();
    assert!(matches!(again, Received::Accepted(position) if position == stored.position));
}

#[tokio::test]
async fn what_comes_in_late_is_no_end_of_the_room_if_something_follows_it() {
    let (world, room, full, [_, said, after]) = kicked_by_nobody().await;
    assert!(matches!(world.rooms.receive(&built(&after)).await.unwrap(), Received::Accepted(_)));
    world.rooms.complete_state(&room, full.state.clone(), full.auth_chain.clone()).await.unwrap();
    assert_eq!(world.by_id(&room, &said.event_id().to_owned()).await.status(), Status::Accepted);
    let after = world.by_id(&room, &after.event_id().to_owned()).await.sn;
    assert_eq!(world.head(&room).await.extremities, [after]);
}

#[tokio::test]
async fn leaving_ends_what_was_to_be_decided_again() {
    let (world, room, _, _) = kicked_by_nobody().await;
    let info = world.rooms.room(&room).await.unwrap().unwrap();
    let open = async || {
        let range = tables::PARTIAL_EVENTS.prefix(&(info.sn,));
        world
            .store
            .range(&tables::PARTIAL_EVENTS, range, hearth_store::Order::Forward, 100)
            .await
            .unwrap()
            .len()
    };
    assert_eq!(open().await, 3);
    world.remove(Removal::Leave, "alice", "alice", &room).await.unwrap();
    assert_eq!(world.head(&room).await.residency, Residency::Left);
    world.store.jobs_finished().await.unwrap();
    assert_eq!(open().await, 0);
}

#[tokio::test]
async fn however_many_members_come_with_the_full_state_all_have_their_rows() {
    const MANY: usize = 400;
    let (world, peer, room, mut full) = entered().await;
    let info = peer.rooms.room(&room).await.unwrap().unwrap();
    let mut before = state_of(&peer.rooms, &room).await;
    before.remove(&("m.room.member".to_owned(), user("alice").to_string()));
    let last = peer.timeline(&room).await[5].clone();
    let mut users = Vec::new();
    for number in 0..MANY {
        for server in ["many.test", "hearth.test"] {
            let member = ruma::UserId::parse(format!("@user{number}:{server}")).unwrap();
            let content = json!({ "membership": "join", "displayname": "n".repeat(5_000), "avatar_url": "u".repeat(900) });
            let join = Say::state(&member, "m.room.member", member.as_str(), content);
            full.state.push(built(&forge(&room, info.rules, join, &[&last], &before)));
            users.push(member);
        }
    }
    world.rooms.complete_state(&room, full.state, full.auth_chain).await.unwrap();
    let head = world.head(&room).await;
    assert_eq!((head.residency, head.joined as usize), (Residency::Resident, 2 * MANY + 3));
    let info = world.rooms.room(&room).await.unwrap().unwrap();
    let rows = world.member_rows(&room).await;
    for member in &users {
        assert!(world.rooms.is_joined(member, info.sn).await.unwrap(), "{member}");
        assert_eq!(rows[member.as_str()], Membership::Join);
    }
    assert!(!world.has_late_members(&room).await);
}
