//! Rooms that are entered through another server.

use hearth_dag::{Pdu, VerifiedPdu};
use hearth_rooms::read::{Direction, EventFilter, PageRequest};
use hearth_rooms::*;
use ruma::{OwnedEventId, OwnedRoomId, UserId};
use serde_json::json;
use std::collections::BTreeSet;
use std::sync::Arc;

use crate::gate::Gate;
use crate::peers::*;
use crate::support::{World, user};

async fn enter(world: &World, enter: &EnterRoom) -> Entered {
    world.rooms.enter_room(enter.clone()).await.unwrap()
}

#[tokio::test]
async fn our_user_is_in_a_room_of_another_server() {
    let (world, peer) = (World::new().await, Peer::new("peer.test").await);
    let room = peer.room("bob", Preset::PublicChat).await;
    peer.join("carol", &room).await;
    peer.say(&room, "bob", "before").await;
    let answer = peer.let_in(&room, &user("alice")).await;
    let entered = enter(&world, &answer).await;
    assert!(!entered.is_partial && entered.dropped == 0 && entered.position.is_some());
    assert_eq!(state_of(&world.rooms, &room).await, state_of(&peer.rooms, &room).await);
    let head = world.head(&room).await;
    assert_eq!((head.residency, head.joined, head.invited), (Residency::Resident, 3, 0));
    assert_eq!(world.member_rows(&room).await.len(), 3);
    assert!(world.rooms.is_joined(&user("alice"), entered.room).await.unwrap());
    assert!(world.rooms.is_joined(&peer.user("carol"), entered.room).await.unwrap());

    // What came before is missing, and readers are told so.
    let gap = world.last_gap(&room).await.unwrap();
    assert_eq!(gap.missing, answer.join.pdu().prev_events());
    let reader = world.rooms.reader();
    let upto = entered.position.unwrap();
    let tail = reader.tail(entered.room, upto, upto).await.unwrap().unwrap();
    assert!(tail.gap && tail.events.len() == 1, "a sync is limited there");
    let mut viewer = reader.viewer(entered.room, &user("alice"), Arc::new(BTreeSet::new())).await.unwrap();
    let mut request =
        PageRequest { from: None, to: None, direction: Direction::Backward, limit: 10, past_gap: false };
    let page = reader.page(&mut viewer, &request, &EventFilter::default()).await.unwrap();
    assert_eq!((page.events.len(), page.gap.as_ref()), (1, Some(&gap)));
    request.from = page.end;
    let page = reader.page(&mut viewer, &request, &EventFilter::default()).await.unwrap();
    assert_eq!((page.events.len(), page.gap.as_ref(), page.end), (0, Some(&gap), request.from));
    request.past_gap = true;
    let page = reader.page(&mut viewer, &request, &EventFilter::default()).await.unwrap();
    assert_eq!((page.events.len(), page.gap, page.end), (0, None, None));

    // Both sides go on.
    let said = world.say("alice", &room, "hello").await.unwrap();
    let said = world.by_id(&room, &said.event_id).await.pdu.clone();
    assert!(matches!(peer.rooms.receive(&built(&said)).await.unwrap(), Received::Accepted(_)));
    let reply = peer.say(&room, "bob", "hello, alice").await;
    let reply = built(&peer.pdu(&room, &reply).await);
    assert!(matches!(world.rooms.receive(&reply).await.unwrap(), Received::Accepted(_)));
    assert_eq!(world.head(&room).await.extremities.len(), 1);
}

#[tokio::test]
async fn entering_again_or_at_once_changes_nothing() {
    let (world, peer) = (World::new().await, Peer::new("peer.test").await);
    let room = peer.room("bob", Preset::PublicChat).await;
    let alice = peer.let_in(&room, &user("alice")).await;
    let dave = peer.let_in(&room, &user("dave")).await;
    let (first, again, other) = tokio::join!(
        world.rooms.enter_room(alice.clone()),
        world.rooms.enter_room(alice.clone()),
        world.rooms.enter_room(dave.clone()),
    );
    let (first, again, other) = (first.unwrap(), again.unwrap(), other.unwrap());
    assert_eq!(first.position.is_some(), again.position.is_none(), "one of both was first");
    assert_eq!(first.room, other.room);
    let later = enter(&world, &dave).await;
    assert_eq!(later.position, None);
    assert_eq!(state_of(&world.rooms, &room).await, state_of(&peer.rooms, &room).await);
    assert_eq!(world.head(&room).await.joined, 3);
    assert_eq!(world.events(&room).await.len(), 2, "each join once");
}

#[tokio::test]
async fn what_the_rules_refuse_is_dropped_with_all_that_builds_on_it() {
    let (world, peer) = (World::new().await, Peer::new("peer.test").await);
    let room = peer.room("bob", Preset::PublicChat).await;
    let elsewhere = peer.room("bob", Preset::PublicChat).await;
    let (bob, eve) = (peer.user("bob"), UserId::parse("@eve:evil.test").unwrap());
    let honest = peer.let_in(&room, &user("alice")).await;
    let state = state_of(&peer.rooms, &room).await;
    let info = peer.rooms.room(&room).await.unwrap().unwrap();
    let join = honest.join.pdu().clone();
    // Eve was never let in, and yet sets power levels, and a topic by them.
    let levels = json!({ "users": { eve.to_string(): 100 } });
    let eve_joins = Say::member(&eve, &eve, "invite");
    let eve_joins = forge(&room, info.rules, eve_joins, &[&join], &state);
    let known = with(&state, &eve_joins);
    let say = Say::state(&eve, "m.room.power_levels", "", levels);
    let levels = forge(&room, info.rules, say, &[&eve_joins], &known);
    let known = with(&known, &levels);
    let say = Say::state(&eve, "m.room.topic", "", json!({ "topic": "mine" }));
    let topic = forge(&room, info.rules, say, &[&levels], &known);
    // An event that names auth events of another room, and one of another room itself.
    let other_state = state_of(&peer.rooms, &elsewhere).await;
    let say = Say::state(&bob, "m.room.name", "", json!({ "name": "mixed" }));
    let mixed = forge(&room, info.rules, say, &[&join], &other_state);
    let foreign = peer.timeline(&elsewhere).await;
    let mut answer = honest.clone();
    answer.state.extend([&topic, &mixed].map(built));
    answer.state.extend(foreign.iter().map(built));
    answer.auth_chain.extend([&eve_joins, &levels, &eve_joins].map(built));
    let entered = enter(&world, &answer).await;
    assert_eq!(entered.dropped, 4 + foreign.len());
    assert_eq!(state_of(&world.rooms, &room).await, state);
    let here = world.rooms.room(&room).await.unwrap().unwrap();
    for refused in [&eve_joins, &levels, &topic, &mixed] {
        assert!(world.rooms.events().by_id(&here, refused.event_id()).await.unwrap().is_none());
    }
}

#[tokio::test]
async fn answers_that_cannot_be_a_room_are_refused_and_leave_nothing() {
    let (world, peer) = (World::new().await, Peer::new("peer.test").await);
    let room = peer.room_of("bob", Preset::PublicChat, ruma::RoomVersionId::V10).await;
    let answer = peer.let_in(&room, &user("alice")).await;
    let refused = async |answer: EnterRoom| world.rooms.enter_room(answer).await.unwrap_err();
    let is_create = |event: &VerifiedPdu| event.pdu().kind().to_string() == "m.room.create";

    let mut without = answer.clone();
    without.state.retain(|event| !is_create(event));
    assert!(matches!(refused(without).await, EnterError::NoCreateEvent));
    let other_version = EnterRoom { version: ruma::RoomVersionId::V9, ..answer.clone() };
    assert!(matches!(refused(other_version).await, EnterError::NoCreateEvent | EnterError::Refused(_)));
    let mut of_bob = answer.clone();
    of_bob.join = answer
        .state
        .iter()
        .find(|event| event.pdu().state_key() == Some(peer.user("bob").as_str()))
        .unwrap()
        .clone();
    assert!(matches!(refused(of_bob).await, EnterError::NotOurJoin));
    let elsewhere = EnterRoom { room_id: ruma::owned_room_id!("!other:peer.test"), ..answer.clone() };
    assert!(matches!(refused(elsewhere).await, EnterError::NotOurJoin));
    let unknown = EnterRoom { version: "org.example.none".try_into().unwrap(), ..answer.clone() };
    assert!(matches!(refused(unknown).await, EnterError::UnsupportedVersion(_)));

    // Two events for one place.
    let bob = peer.user("bob");
    let say = Say::state(&bob, "m.room.join_rules", "", json!({ "join_rule": "invite" }));
    let rules = peer.make(&room, say).await;
    let mut two = answer.clone();
    two.state.push(built(&rules));
    assert!(matches!(refused(two).await, EnterError::TwoEventsForOneKey(_)));

    // The state does not let the user in.
    let mut closed = answer.clone();
    closed.state.retain(|event| event.pdu().kind().to_string() != "m.room.join_rules");
    closed.state.push(built(&rules));
    assert!(matches!(refused(closed).await, EnterError::Refused(_)));
    assert!(world.rooms.room(&room).await.unwrap().is_none(), "nothing is left of it");
    enter(&world, &answer).await;
}

#[tokio::test]
async fn auth_events_in_a_loop_are_dropped() {
    // In versions 1 and 2 servers choose ids, so that events can name each other.
    let (world, peer) = (World::new().await, Peer::new("peer.test").await);
    let room = peer.room_of("bob", Preset::PublicChat, ruma::RoomVersionId::V1).await;
    let mut answer = peer.let_in(&room, &user("alice")).await;
    let info = peer.rooms.room(&room).await.unwrap().unwrap();
    let carol = UserId::parse("@carol:evil.test").unwrap();
    let state = state_of(&peer.rooms, &room).await;
    let name = |id: &str| OwnedEventId::try_from(format!("${id}:evil.test")).unwrap();
    let make = |id: &str, auth: &str| {
        let mut state = state.clone();
        state.insert(("m.room.member".into(), carol.to_string()), name(auth));
        let pdu = forge(&room, info.rules, Say::member(&carol, &carol, "join"), &[], &state);
        Pdu::from_stored(info.rules, name(id), pdu.bytes().clone()).unwrap()
    };
    answer.auth_chain.extend([make("a", "b"), make("b", "c"), make("c", "a")].iter().map(built));
    let entered = enter(&world, &answer).await;
    assert_eq!(entered.dropped, 3);
    assert_eq!(state_of(&world.rooms, &room).await, state_of(&peer.rooms, &room).await);
}

#[tokio::test]
async fn a_large_room_comes_in_by_parts_and_is_seen_whole() {
    const MEMBERS: usize = 1500;
    let (world, peer) = (World::new().await, Peer::new("peer.test").await);
    let room = peer.room("bob", Preset::PublicChat).await;
    let info = peer.rooms.room(&room).await.unwrap().unwrap();
    let state = state_of(&peer.rooms, &room).await;
    let mut answer = peer.let_in(&room, &user("alice")).await;
    let last = peer.timeline(&room).await[5].clone();
    for number in 0..MEMBERS {
        let member = UserId::parse(format!("@user{number}:many.test")).unwrap();
        let join = forge(&room, info.rules, Say::member(&member, &member, "join"), &[&last], &state);
        answer.state.push(built(&join));
    }
    let length = world.stream_length().await;
    let entered = enter(&world, &answer).await;
    assert_eq!(entered.dropped, 0);
    let head = world.head(&room).await;
    assert_eq!(head.joined as usize, MEMBERS + 2);
    assert_eq!(world.member_rows(&room).await.len(), MEMBERS + 2);
    assert_eq!(state_of(&world.rooms, &room).await.len(), answer.state.len() + 1);
    assert_eq!(world.stream_length().await, length + 1, "one thing happened");
    let many = UserId::parse("@user1499:many.test").unwrap();
    assert!(world.rooms.is_joined(&many, entered.room).await.unwrap());
}

#[tokio::test]
async fn a_room_that_was_left_goes_on_where_it_is_now() {
    let (world, peer) = (World::new().await, Peer::new("peer.test").await);
    let room = peer.room("bob", Preset::PublicChat).await;
    peer.join("carol", &room).await;
    let first = enter(&world, &peer.let_in(&room, &user("alice")).await).await;
    world.say("alice", &room, "once").await.unwrap();
    world.remove(Removal::Leave, "alice", "alice", &room).await.unwrap();
    assert_eq!(world.head(&room).await.residency, Residency::Left);
    for event in world.events(&room).await.iter().skip(1) {
        peer.rooms.receive(&built(&event.pdu)).await.unwrap();
    }
    // Meanwhile Carol leaves, Erin comes, and a name is set.
    peer.leave("carol", &room).await;
    peer.join("erin", &room).await;
    let bob = peer.user("bob");
    peer.send(&room, Say::state(&bob, "m.room.name", "", json!({ "name": "later" }))).await;
    let late = peer.pdu(&room, &peer.say(&room, "bob", "anybody?").await).await;
    assert!(matches!(world.rooms.receive(&built(&late)).await, Err(WriteError::NotResident)));
    assert!(matches!(
        world.say("alice", &room, "I am gone").await,
        Err(SendError::Write(WriteError::NotResident))
    ));

    let second = enter(&world, &peer.let_in(&room, &user("alice")).await).await;
    assert_eq!(second.room, first.room);
    assert_eq!(state_of(&world.rooms, &room).await, state_of(&peer.rooms, &room).await);
    let members = world.member_rows(&room).await;
    assert_eq!(members[peer.user("carol").as_str()], Membership::Leave);
    assert_eq!(members[peer.user("erin").as_str()], Membership::Join);
    let head = world.head(&room).await;
    assert_eq!((head.residency, head.joined), (Residency::Resident, 3));
    let timeline = world.events(&room).await;
    assert_eq!(timeline.len(), 4, "join, message, leave, join");
    assert_eq!(world.last_gap(&room).await.unwrap().at, timeline[3].order().unwrap());
}

/// An answer that lets Alice in to many others of ours, who are in the room already.
async fn many_of_ours() -> (OwnedRoomId, Vec<ruma::OwnedUserId>, EnterRoom) {
    const LOCAL: usize = 180;
    let peer = Peer::new("peer.test").await;
    let room = peer.room("bob", Preset::PublicChat).await;
    let info = peer.rooms.room(&room).await.unwrap().unwrap();
    let state = state_of(&peer.rooms, &room).await;
    let mut answer = peer.let_in(&room, &user("alice")).await;
    let last = peer.timeline(&room).await[5].clone();
    let users: Vec<_> = (0..LOCAL).map(|number| user(&format!("user{number}"))).collect();
    for member in &users {
        let join = forge(&room, info.rules, Say::member(member, member, "join"), &[&last], &state);
        answer.state.push(built(&join));
    }
    (room, users, answer)
}

/// Lets commits through one by one until the room is ours.
async fn until_ours(
    world: &World,
    gate: &Gate,
    room: &OwnedRoomId,
    mut enter: std::pin::Pin<&mut impl Future<Output = Result<Entered, EnterError>>>,
) {
    for step in 0.. {
        assert!(step < 100_000);
        assert!(futures_util::poll!(&mut enter).is_pending());
        tokio::task::yield_now().await;
        if gate.held() == 0 {
            continue;
        }
        if let Some(room) = world.rooms.room(room).await.unwrap()
            && world.rooms.head(room.sn).await.unwrap().unwrap().value.residency == Residency::Resident
        {
            break;
        }
        gate.let_through(1).await;
    }
}

async fn all_are_in(world: &World, room: &OwnedRoomId, users: &[ruma::OwnedUserId]) {
    for _ in 0..100_000 {
        if !world.has_late_members(room).await {
            break;
        }
        tokio::task::yield_now().await;
    }
    let info = world.rooms.room(room).await.unwrap().unwrap();
    for member in users.iter().chain([&user("alice")]) {
        assert!(world.rooms.is_joined(member, info.sn).await.unwrap(), "{member}");
    }
    let head = world.head(room).await;
    assert_eq!((head.residency, head.joined as usize), (Residency::Resident, users.len() + 2));
    assert_eq!(world.member_rows(room).await.len(), users.len() + 2);
}

#[tokio::test]
async fn a_process_that_ends_right_after_entering_leaves_nobody_out() {
    let (room, users, answer) = many_of_ours().await;
    let store = hearth_store::Store::memory().await;
    let (gate, gated) = Gate::before(&store).await;
    {
        let world = World::on(gated);
        gate.close();
        let enter = std::pin::pin!(world.rooms.enter_room(answer));
        until_ours(&world, &gate, &room, enter).await;
    }
    all_are_in(&World::on(store), &room, &users).await;
}

#[tokio::test]
async fn a_request_that_is_given_up_right_after_entering_leaves_nobody_out() {
    let (room, users, answer) = many_of_ours().await;
    let (gate, gated) = Gate::before(&hearth_store::Store::memory().await).await;
    let world = World::on(gated);
    gate.close();
    {
        let enter = std::pin::pin!(world.rooms.enter_room(answer));
        until_ours(&world, &gate, &room, enter).await;
    }
    gate.let_through(usize::MAX).await;
    gate.refuse(false);
    all_are_in(&world, &room, &users).await;
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_fails_right_after_entering_leaves_nobody_out_for_long() {
    let (room, users, answer) = many_of_ours().await;
    let (gate, gated) = Gate::before(&hearth_store::Store::memory().await).await;
    let world = World::on(gated);
    gate.close();
    let mut enter = std::pin::pin!(world.rooms.enter_room(answer));
    until_ours(&world, &gate, &room, enter.as_mut()).await;
    gate.let_through(usize::MAX).await;
    gate.refuse(true);
    // The room is ours, whatever becomes of the rest.
    enter.await.unwrap();
    assert!(world.has_late_members(&room).await);
    tokio::time::sleep(std::time::Duration::from_secs(60)).await;
    gate.refuse(false);
    tokio::time::sleep(std::time::Duration::from_secs(60)).await;
    all_are_in(&world, &room, &users).await;
}

#[tokio::test]
async fn a_list_of_servers_of_any_length_is_taken() {
    let (world, peer) = (World::new().await, Peer::new("peer.test").await);
    let room = peer.room("bob", Preset::PublicChat).await;
    let mut answer = peer.let_in(&room, &user("alice")).await;
    answer.state.retain(|event| event.pdu().kind().to_string() != "m.room.member");
    let server = |number: usize| format!("{}{number}.test", "s".repeat(200));
    let servers = (0..10_000).map(|number| ruma::ServerName::parse(server(number)).unwrap()).collect();
    answer.members_omitted = Some(servers);
    assert!(enter(&world, &answer).await.is_partial);
    let kept = world.rooms.partial_room(&room).await.unwrap().unwrap().servers;
    assert!((1_000..10_000).contains(&kept.len()));
}
