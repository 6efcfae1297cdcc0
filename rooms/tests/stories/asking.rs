//! What other servers are told of a room's history.

use hearth_dag::Pdu;
use hearth_rooms::read::Direction;
use hearth_rooms::serve::{Asked, MissingEvents, QueryError};
use hearth_rooms::*;
use ruma::{OwnedEventId, OwnedRoomId, ServerName};
use serde_json::json;

use crate::remote::{closure, ids, of_kind, peer, third};
use crate::support::{World, user};

async fn say(world: &World, room: &OwnedRoomId, text: &str) -> OwnedEventId {
    world.say("alice", room, text).await.unwrap().event_id
}

async fn event(world: &World, origin: &ServerName, event: &OwnedEventId) -> Result<Pdu, QueryError> {
    world.rooms.event_for_peer(origin, event).await.map(|(_, pdu)| pdu)
}

fn is_whole(pdu: &Result<Pdu, QueryError>) -> bool {
    pdu.as_ref().unwrap().content_json() != "{}"
}

fn asked<'a>(origin: &'a ServerName, room: &'a OwnedRoomId, event: &'a OwnedEventId) -> Asked<'a> {
    Asked { origin, room, event }
}

async fn visibility(world: &World, room: &OwnedRoomId, value: &str) {
    let content = json!({ "history_visibility": value });
    world.set("alice", room, "m.room.history_visibility", "", content).await.unwrap();
}

#[tokio::test]
async fn servers_see_what_their_users_may_see() {
    let world = World::new().await;
    let room = world.room("alice", Preset::PublicChat).await;
    let (peer, third) = (peer(), third());
    let shared = say(&world, &room, "shared").await;
    visibility(&world, &room, "joined").await;
    let hidden = say(&world, &room, "joined only").await;
    visibility(&world, &room, "invited").await;
    let before_invite = say(&world, &room, "invited only").await;
    // (As if the other server had signed it.)
    let draft = Invite {
        room: room.clone(),
        sender: user("alice"),
        user: peer.user("bob"),
        profile: Profile::default(),
        reason: None,
        is_direct: false,
    };
    let prepared = world.rooms.prepare_invite(&draft).await.unwrap();
    world.rooms.receive(&hearth_dag::VerifiedPdu::built_here(prepared.pdu)).await.unwrap();
    let while_invited = say(&world, &room, "while bob is invited").await;
    // Nobody of the server was there yet.
    assert!(matches!(event(&world, &peer.name, &shared).await, Err(QueryError::NotInRoom)));
    peer.join(&world, "bob", &room).await;
    let joined = say(&world, &room, "bob is here").await;
    for (which, whole) in
        [(&shared, true), (&hidden, false), (&before_invite, false), (&while_invited, true), (&joined, true)]
    {
        assert_eq!(is_whole(&event(&world, &peer.name, which).await), whole, "{which}");
    }
    // A stretch of history is told in the same way.
    let history = world.rooms.backfill_for_peer(&peer.name, &room, &[joined.clone()], 8).await.unwrap();
    let found = |id: &OwnedEventId| history.iter().find(|pdu| pdu.event_id() == id).unwrap().content_json();
    assert_ne!(found(&joined), "{}");
    assert_eq!(found(&hidden), "{}");

    peer.leave(&world, "bob", &room).await.unwrap();
    let later = say(&world, &room, "bob is gone").await;
    assert!(is_whole(&event(&world, &peer.name, &joined).await), "what they saw they may see again");
    assert!(is_whole(&event(&world, &peer.name, &shared).await));
    assert!(matches!(event(&world, &peer.name, &later).await, Err(QueryError::NotInRoom)));
    assert!(matches!(event(&world, &peer.name, &hidden).await, Err(QueryError::NotInRoom)));
    let gone = world.rooms.state_ids_for_peer(asked(&peer.name, &room, &later)).await;
    assert!(matches!(gone, Err(QueryError::NotInRoom)));
    let history = world.rooms.backfill_for_peer(&peer.name, &room, &[later.clone()], 100).await.unwrap();
    assert!(!ids(&history).contains(&later) && !ids(&history).contains(&hidden));
    // A server that never was there sees nothing, until everybody may.
    assert!(matches!(event(&world, &third.name, &joined).await, Err(QueryError::NotInRoom)));
    visibility(&world, &room, "world_readable").await;
    let open = say(&world, &room, "read all about it").await;
    assert!(is_whole(&event(&world, &third.name, &open).await));
    assert!(matches!(event(&world, &third.name, &joined).await, Err(QueryError::NotInRoom)));
}

#[tokio::test]
async fn state_is_told_as_it_was_before_an_event() {
    let world = World::new().await;
    let room = world.room("alice", Preset::PublicChat).await;
    let peer = peer();
    peer.join(&world, "bob", &room).await;
    world.set("alice", &room, "m.room.name", "", json!({ "name": "one" })).await.unwrap();
    world.join("carol", &room).await.unwrap();
    let two = world.set("alice", &room, "m.room.name", "", json!({ "name": "two" })).await.unwrap().event_id;
    let state = world.rooms.state_for_peer(asked(&peer.name, &room, &two)).await.unwrap();
    let name = state.pdus.iter().find(|pdu| pdu.kind().to_string() == "m.room.name").unwrap();
    assert_eq!(name.content_json(), r#"{"name":"one"}"#);
    assert_eq!(of_kind(&state.pdus, "m.room.member").len(), 3);
    let pool = [state.pdus.clone(), state.auth_chain.clone()].concat();
    assert_eq!(closure(&pool, &state.pdus), ids(&pool));
    let by_id = world.rooms.state_ids_for_peer(asked(&peer.name, &room, &two)).await.unwrap();
    assert_eq!(by_id.pdu_ids.into_iter().collect::<std::collections::BTreeSet<_>>(), ids(&state.pdus));
    assert_eq!(by_id.auth_chain_ids.len(), state.auth_chain.len());
    // What one event rests on.
    let auth = world.rooms.event_auth_for_peer(asked(&peer.name, &room, &two)).await.unwrap();
    let itself = world.by_id(&room, &two).await.pdu.clone();
    let pool = [pool, auth.clone(), vec![itself.clone()]].concat();
    let mut expected = closure(&pool, &[itself]);
    assert!(expected.remove(&two));
    assert!(ids(&auth).is_superset(&expected));
    // Since version 12 the create event is implied, and told.
    assert_eq!(of_kind(&auth, "m.room.create").len(), 1);
    assert_eq!(auth.len(), expected.len() + 1);
    let message = say(&world, &room, "hello").await;
    let of_message = world.rooms.event_auth_for_peer(asked(&peer.name, &room, &message)).await.unwrap();
    assert_eq!(ids(&of_message), ids(&auth));
}

#[tokio::test]
async fn events_of_other_rooms_and_refused_ones_are_none() {
    let world = World::new().await;
    let (room, other) =
        (world.room("alice", Preset::PublicChat).await, world.room("alice", Preset::PublicChat).await);
    let peer = peer();
    peer.join(&world, "bob", &room).await;
    let elsewhere = say(&world, &other, "elsewhere").await;
    let rooms = &world.rooms;
    let of_other = asked(&peer.name, &room, &elsewhere);
    assert!(matches!(rooms.state_for_peer(of_other).await, Err(QueryError::UnknownEvent)));
    assert!(matches!(rooms.state_ids_for_peer(of_other).await, Err(QueryError::UnknownEvent)));
    assert!(matches!(rooms.event_auth_for_peer(of_other).await, Err(QueryError::UnknownEvent)));
    assert!(matches!(event(&world, &peer.name, &elsewhere).await, Err(QueryError::NotInRoom)));
    assert_eq!(rooms.backfill_for_peer(&peer.name, &room, &[elsewhere.clone()], 10).await.unwrap(), []);
    let missing = MissingEvents { latest: vec![elsewhere.clone()], limit: 10, ..Default::default() };
    assert_eq!(rooms.missing_events_for_peer(&peer.name, &room, &missing).await.unwrap(), []);
    let refused = rooms.backfill_for_peer(&peer.name, &other, &[elsewhere.clone()], 10).await;
    assert!(matches!(refused, Err(QueryError::NotInRoom)));
    let nowhere = ruma::room_id!("!no:where").to_owned();
    let unknown = rooms.state_for_peer(asked(&peer.name, &nowhere, &elsewhere)).await;
    assert!(matches!(unknown, Err(QueryError::UnknownRoom)));

    // An event that we refused: of a user who is not there.
    let template = peer.make_join(&world, "eve", &room).await.unwrap();
    let message = peer.complete_with(&template, |event| {
        event["type"] = json!("m.room.message");
        event.as_object_mut().unwrap().remove("state_key");
    });
    let info = rooms.room(&room).await.unwrap().unwrap();
    let message = message.trust_signatures(info.rules);
    let id = message.pdu().event_id().to_owned();
    assert!(matches!(rooms.receive(&message).await.unwrap(), Received::Rejected(_)));
    assert!(matches!(event(&world, &peer.name, &id).await, Err(QueryError::UnknownEvent)));
    assert!(matches!(rooms.state_for_peer(asked(&peer.name, &room, &id)).await, Err(QueryError::NoPlace)));
    assert!(matches!(
        rooms.event_auth_for_peer(asked(&peer.name, &room, &id)).await,
        Err(QueryError::NoPlace)
    ));
    assert_eq!(rooms.backfill_for_peer(&peer.name, &room, &[id.clone()], 10).await.unwrap(), []);
    // One that is only held beside the room: given out, but there is no state at it.
    let outlier = peer.complete(&peer.make_join(&world, "fred", &room).await.unwrap());
    let outlier = outlier.trust_signatures(info.rules);
    let id = outlier.pdu().event_id().to_owned();
    rooms.receive_outlier(&outlier).await.unwrap();
    assert!(is_whole(&event(&world, &peer.name, &id).await));
    assert!(matches!(rooms.state_for_peer(asked(&peer.name, &room, &id)).await, Err(QueryError::NoPlace)));
}

#[tokio::test]
async fn history_is_told_up_to_its_bounds() {
    let world = World::new().await;
    let room = world.room("alice", Preset::PublicChat).await;
    let peer = peer();
    peer.join(&world, "bob", &room).await;
    let mut said = Vec::new();
    for n in 0..150 {
        said.push(say(&world, &room, &n.to_string()).await);
    }
    let rooms = &world.rooms;
    let last = said[149].clone();
    let page = rooms.backfill_for_peer(&peer.name, &room, &[last.clone()], usize::MAX).await.unwrap();
    let found: Vec<OwnedEventId> = page.iter().map(|pdu| pdu.event_id().to_owned()).collect();
    let expected: Vec<OwnedEventId> = said.iter().rev().take(100).cloned().collect();
    assert_eq!(found, expected, "the asked one first, then what is before it");
    let few = rooms.backfill_for_peer(&peer.name, &room, &[last.clone(), last.clone()], 3).await.unwrap();
    assert_eq!(few.len(), 3);
    assert_eq!(rooms.backfill_for_peer(&peer.name, &room, &[last.clone()], 0).await.unwrap(), []);
    let many: Vec<OwnedEventId> = (0..10_000)
        .map(|n| OwnedEventId::try_from(format!("${n:x>43}")).unwrap())
        .chain([last.clone()])
        .collect();
    assert_eq!(rooms.backfill_for_peer(&peer.name, &room, &many, 10).await.unwrap(), []);

    let missing = async |earliest: &[OwnedEventId], limit, min_depth| {
        let missing =
            MissingEvents { earliest: earliest.to_vec(), latest: vec![last.clone()], limit, min_depth };
        let found = rooms.missing_events_for_peer(&peer.name, &room, &missing).await.unwrap();
        found.iter().map(|pdu| pdu.event_id().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(missing(&said[140..141], 20, 0).await, said[141..149]);
    assert_eq!(missing(&said[100..101], 10, 0).await, said[139..149], "those next to the latest");
    assert_eq!(missing(&[], usize::MAX, 0).await.len(), 50);
    assert_eq!(missing(&[], 0, 0).await, Vec::<OwnedEventId>::new());
    let depth = world.by_id(&room, &said[146]).await.header.depth;
    assert_eq!(missing(&[], 50, depth).await, said[146..149]);
    assert_eq!(missing(&[], 50, u64::MAX).await, Vec::<OwnedEventId>::new());
}

#[tokio::test]
async fn forks_are_told_whole() {
    let world = World::new().await;
    let room = world.room("alice", Preset::PublicChat).await;
    let peer = peer();
    let fork = peer.make_join(&world, "bob", &room).await.unwrap();
    let ours = say(&world, &room, "on our side").await;
    let theirs = peer.submit_join(&world, &room, peer.complete(&fork), false).await.unwrap();
    let theirs = theirs.event.event_id().to_owned();
    let end = say(&world, &room, "together").await;
    let page = world.rooms.backfill_for_peer(&peer.name, &room, &[end.clone()], 3).await.unwrap();
    assert_eq!(ids(&page), [end.clone(), ours.clone(), theirs.clone()].into());
    assert_eq!(page[0].event_id(), end);
    let missing = MissingEvents { earliest: vec![ours], latest: vec![end], limit: 1, min_depth: 0 };
    let found = world.rooms.missing_events_for_peer(&peer.name, &room, &missing).await.unwrap();
    assert_eq!(ids(&found), [theirs].into());
}

#[tokio::test]
async fn the_event_nearest_to_a_time() {
    let world = World::new().await;
    let room = world.room("alice", Preset::PublicChat).await;
    let peer = peer();
    peer.join(&world, "bob", &room).await;
    let mut at = Vec::new();
    for minutes in [10u64, 20, 30] {
        let mut send = crate::support::message("alice", &room, &minutes.to_string());
        send.timestamp_ms = Some(1_800_000_000_000 + minutes * 60_000);
        let sent = world.rooms.send(&send, hearth_store::Commit::new()).await.unwrap();
        at.push((sent.event_id, 1_800_000_000_000 + minutes * 60_000));
    }
    // Two of one time: whoever looks back meets the second one first.
    let mut twins = Vec::new();
    for text in ["one", "two"] {
        let mut send = crate::support::message("alice", &room, text);
        send.timestamp_ms = Some(at[2].1 + 600_000);
        twins.push(world.rooms.send(&send, hearth_store::Commit::new()).await.unwrap().event_id);
    }
    let mut viewer = world
        .rooms
        .reader()
        .viewer(world.rooms.room(&room).await.unwrap().unwrap().sn, &user("alice"), Default::default())
        .await
        .unwrap();
    for (direction, expected) in [(Direction::Backward, &twins[1]), (Direction::Forward, &twins[0])] {
        let ts = at[2].1 + 600_000;
        let told = world.rooms.event_at_for_peer(&peer.name, &room, ts, direction).await.unwrap();
        assert_eq!(told, (expected.clone(), ts));
        let shown = world.rooms.reader().event_at(&mut viewer, ts, direction).await.unwrap().unwrap();
        assert_eq!(*shown.client.event_id, *expected.as_str());
    }
    let nearest = async |origin: &ServerName, ts, direction| {
        world.rooms.event_at_for_peer(origin, &room, ts, direction).await
    };
    let between = at[1].1 + 1;
    assert_eq!(nearest(&peer.name, between, Direction::Backward).await.unwrap(), at[1]);
    assert_eq!(nearest(&peer.name, between, Direction::Forward).await.unwrap(), at[2]);
    assert_eq!(nearest(&peer.name, at[0].1, Direction::Forward).await.unwrap(), at[0]);
    for (ts, direction) in [(u64::MAX, Direction::Forward), (0, Direction::Backward)] {
        assert!(matches!(nearest(&peer.name, ts, direction).await, Err(QueryError::UnknownEvent)));
    }
    assert!(matches!(nearest(&third().name, 0, Direction::Forward).await, Err(QueryError::NotInRoom)));
}

#[tokio::test]
async fn rooms_are_told_of_to_those_who_could_come_in() {
    let world = World::new().await;
    let rooms = &world.rooms;
    let create = CreateRoom {
        preset: Preset::PublicChat,
        creation_content: json!({ "type": "m.space" }).as_object().unwrap().clone(),
        ..CreateRoom::new(user("alice"))
    };
    let space = rooms.create(&create, hearth_store::Commit::new()).await.unwrap().room_id;
    let public = world.room("alice", Preset::PublicChat).await;
    let private = world.room("alice", Preset::PrivateChat).await;
    let restricted = world.room("alice", Preset::PrivateChat).await;
    let rule = json!({
        "join_rule": "restricted",
        "allow": [{ "type": "m.room_membership", "room_id": space }],
    });
    world.set("alice", &restricted, "m.room.join_rules", "", rule).await.unwrap();
    let via = json!({ "via": ["hearth.test"] });
    let suggested = json!({ "via": ["hearth.test"], "suggested": true, "order": "first" });
    for (child, content) in [
        (public.as_str(), via.clone()),
        (private.as_str(), suggested),
        (restricted.as_str(), via.clone()),
        ("!far:elsewhere.test", via.clone()),
        ("!gone:hearth.test", json!({})),
        ("no room", via),
    ] {
        world.set("alice", &space, "m.space.child", child, content).await.unwrap();
    }
    let peer = peer();
    let told = async |suggested| {
        let told = rooms.space_for_peer(&peer.name, &space, suggested).await.unwrap();
        let accessible: Vec<String> = told.accessible.iter().map(|room| room.room_id.to_string()).collect();
        let inaccessible: Vec<String> = told.inaccessible.iter().map(ToString::to_string).collect();
        (told.children_state.len(), accessible, inaccessible)
    };
    let names = |rooms: &[&OwnedRoomId]| rooms.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(told(false).await, (4, names(&[&public]), names(&[&private, &restricted])));
    assert_eq!(told(true).await, (1, vec![], names(&[&private])));
    peer.join(&world, "bob", &space).await;
    assert_eq!(told(false).await, (4, names(&[&public, &restricted]), names(&[&private])));
    // An invite is a reason to know a room.
    let invite = Invite {
        room: private.clone(),
        sender: user("alice"),
        user: peer.user("bob"),
        profile: Profile::default(),
        reason: None,
        is_direct: false,
    };
    let prepared = rooms.prepare_invite(&invite).await.unwrap();
    rooms.receive(&hearth_dag::VerifiedPdu::built_here(prepared.pdu)).await.unwrap();
    let (_, accessible, inaccessible) = told(false).await;
    assert_eq!((accessible.len(), inaccessible.len()), (3, 0));
    assert!(matches!(rooms.space_for_peer(&third().name, &private, false).await, Err(QueryError::NotInRoom)));
}

#[tokio::test]
async fn the_public_list_leaves_out_what_is_closed_to_others() {
    let world = World::new().await;
    let mut listed = Vec::new();
    for federate in [true, false] {
        let create = CreateRoom {
            preset: Preset::PublicChat,
            listed: true,
            creation_content: json!({ "m.federate": federate }).as_object().unwrap().clone(),
            ..CreateRoom::new(user("alice"))
        };
        listed.push(world.rooms.create(&create, hearth_store::Commit::new()).await.unwrap().room_id);
    }
    world.room("alice", Preset::PublicChat).await;
    let told = world.rooms.listed_for_peers().await.unwrap();
    let told: Vec<&OwnedRoomId> = told.iter().map(|room| &room.room_id).collect();
    assert_eq!(told, [&listed[0]]);
    let closed = world.rooms.room(&listed[1]).await.unwrap().unwrap();
    assert!(!world.rooms.may_server_know(&closed, &peer().name).await.unwrap());
}

#[tokio::test]
async fn a_server_put_out_goes_on_seeing_what_it_saw() {
    let world = World::new().await;
    let room = world.room("alice", Preset::PublicChat).await;
    let peer = peer();
    peer.join(&world, "bob", &room).await;
    let seen = say(&world, &room, "bob is here").await;
    let bob = peer.user("bob");
    for membership in ["leave", "ban"] {
        let out = json!({ "membership": membership });
        world.set("alice", &room, "m.room.member", bob.as_str(), out).await.unwrap();
        assert!(is_whole(&event(&world, &peer.name, &seen).await), "after a {membership}");
    }
    let mut later = seen.clone();
    for n in 0..1_100 {
        later = say(&world, &room, &n.to_string()).await;
    }
    assert!(matches!(event(&world, &peer.name, &later).await, Err(QueryError::NotInRoom)));
    // Looking for what they may see has a bound.
    let history = world.rooms.backfill_for_peer(&peer.name, &room, &[later], 100).await.unwrap();
    assert_eq!(history, []);
    let history = world.rooms.backfill_for_peer(&peer.name, &room, &[seen.clone()], 100).await.unwrap();
    assert!(ids(&history).contains(&seen));
}
