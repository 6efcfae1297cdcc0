//! Other servers come in, leave and knock, through us.

use hearth_dag::{Pdu, ReceivedPdu, RoomRules};
use hearth_rooms::serve::{HandshakeError, Submitted};
use hearth_rooms::*;
use hearth_store::{Commit, StreamPosition};
use ruma::{EventId, OwnedRoomId, RoomVersionId, ServerName, UserId, room_id};
use serde_json::{Value, json};

use crate::remote::{all_versions, closure, ids, keys, of_kind, peer, third};
use crate::support::{World, user};

async fn room_of_version(world: &World, version: RoomVersionId, preset: Preset) -> OwnedRoomId {
    let create = CreateRoom { preset, version, ..CreateRoom::new(user("alice")) };
    world.rooms.create(&create, Commit::new()).await.unwrap().room_id
}

/// What the sender would send, as (type, destinations).
async fn sent(world: &World, after: StreamPosition) -> Vec<(String, Vec<String>)> {
    let page = world.rooms.stream_after(after, 1000).await.unwrap();
    let to = |outgoing: &serve::Outgoing| {
        outgoing.destinations(world.rooms.servers()).map(ToString::to_string).collect()
    };
    page.events.iter().map(|event| (event.event.header.kind.as_str().to_owned(), to(event))).collect()
}

#[tokio::test]
async fn a_server_comes_in_through_us_in_every_version() {
    for version in all_versions() {
        let world = World::new().await;
        let room = room_of_version(&world, version.clone(), Preset::PublicChat).await;
        world.join("carol", &room).await.unwrap();
        world.remove(Removal::Ban, "alice", "mallory", &room).await.unwrap();
        third().join(&world, "dora", &room).await;
        let mark = world.store.watermark();
        let template = peer().make_join(&world, "bob", &room).await.unwrap();
        assert_eq!(template.room_version, version);
        let pdu = peer().complete(&template);
        let joined = peer().submit_join(&world, &room, pdu.clone(), false).await.unwrap();
        assert_eq!(joined.event.event_id(), pdu.pdu().event_id());
        let members: Vec<String> = of_kind(&joined.state, "m.room.member").into_iter().collect();
        let expected = [user("alice"), user("carol"), third().user("dora"), user("mallory")];
        assert_eq!(members, expected.map(|user| user.to_string()), "before the join, {version}");
        // All that state and join rest on is there, and nothing else.
        let mut pool = joined.state.clone();
        pool.extend(joined.auth_chain.clone());
        let mut from = joined.state.clone();
        from.push(joined.event.clone());
        pool.push(joined.event.clone());
        let mut all = ids(&joined.state);
        all.extend(ids(&joined.auth_chain));
        all.insert(joined.event.event_id().to_owned());
        assert_eq!(closure(&pool, &from), all);
        let servers: Vec<&str> = joined.servers_in_room.iter().map(|server| server.as_str()).collect();
        assert_eq!(servers, ["hearth.test", "third.test"]);

        // The others hear of it from us; the server that joined has it.
        assert_eq!(sent(&world, mark).await, [("m.room.member".to_owned(), vec!["third.test".to_owned()])]);
        assert_eq!(sent(&world, world.store.watermark()).await, []);
        let info = world.rooms.room(&room).await.unwrap().unwrap();
        assert!(world.rooms.is_server_in_room(&info, &peer().name).await.unwrap());
        // Asked again: answered again, and nothing happens.
        let before = world.store.watermark();
        let again = peer().submit_join(&world, &room, pdu, false).await.unwrap();
        assert_eq!(ids(&again.state), ids(&joined.state));
        assert_eq!(world.store.watermark(), before);
        // What we say now goes to both.
        world.say("alice", &room, "welcome").await.unwrap();
        let both = vec!["peer.test".to_owned(), "third.test".to_owned()];
        assert_eq!(sent(&world, before).await, [("m.room.message".to_owned(), both)]);
    }
}

#[tokio::test]
async fn members_are_omitted_where_that_is_asked_for() {
    let world = World::new().await;
    let room = world.room("alice", Preset::PublicChat).await;
    for n in 0..10 {
        world.join(&format!("user{n}"), &room).await.unwrap();
    }
    let template = peer().make_join(&world, "bob", &room).await.unwrap();
    let joined = peer().submit_join(&world, &room, peer().complete(&template), true).await.unwrap();
    assert!(joined.members_omitted);
    // A room without a name is called after five of its members.
    assert_eq!(of_kind(&joined.state, "m.room.member").len(), 5);
    assert!(ids(&joined.state).is_disjoint(&ids(&joined.auth_chain)), "nothing is sent twice");
    let mut pool = joined.state.clone();
    pool.extend(joined.auth_chain.clone());
    pool.push(joined.event.clone());
    assert_eq!(closure(&pool, &pool), ids(&pool));

    world.set("alice", &room, "m.room.name", "", json!({ "name": "Tea" })).await.unwrap();
    let template = third().make_join(&world, "dora", &room).await.unwrap();
    let joined = third().submit_join(&world, &room, third().complete(&template), true).await.unwrap();
    assert!(of_kind(&joined.state, "m.room.member").is_empty());
    assert_eq!(of_kind(&joined.state, "m.room.name").len(), 1);
    let servers: Vec<&str> = joined.servers_in_room.iter().map(|server| server.as_str()).collect();
    assert_eq!(servers, ["hearth.test", "peer.test"]);
}

#[tokio::test]
async fn who_gets_no_template_hears_why() {
    let world = World::new().await;
    let (bob, name) = (peer().user("bob"), peer().name);
    let rooms = &world.rooms;
    let public = world.room("alice", Preset::PublicChat).await;
    let private = world.room("alice", Preset::PrivateChat).await;
    let versions = all_versions();
    let unknown = rooms.make_join(&name, room_id!("!nowhere:hearth.test"), &bob, &versions).await;
    assert!(matches!(unknown, Err(HandshakeError::UnknownRoom)));
    let old = rooms.make_join(&name, &public, &bob, &[RoomVersionId::V1, RoomVersionId::V11]).await;
    let Err(HandshakeError::IncompatibleVersion { room_version }) = old else { panic!("{old:?}") };
    assert_eq!(room_version, RoomVersionId::V12);
    let forbidden = |refused| matches!(refused, Err(HandshakeError::Forbidden(_)));
    assert!(forbidden(rooms.make_join(&name, &private, &bob, &versions).await));
    assert!(forbidden(rooms.make_knock(&name, &private, &bob, &versions).await));
    assert!(forbidden(rooms.make_leave(&name, &public, &bob).await));
    for foreign in [user("alice"), third().user("dora")] {
        for refused in [
            rooms.make_join(&name, &public, &foreign, &versions).await,
            rooms.make_leave(&name, &public, &foreign).await,
            rooms.make_knock(&name, &public, &foreign, &versions).await,
        ] {
            assert!(matches!(refused, Err(HandshakeError::UserOfOtherServer)));
        }
    }
    let banned = json!({ "membership": "ban" });
    world.set("alice", &public, "m.room.member", bob.as_str(), banned).await.unwrap();
    assert!(forbidden(rooms.make_join(&name, &public, &bob, &versions).await));

    let closed = CreateRoom {
        preset: Preset::PublicChat,
        creation_content: json!({ "m.federate": false }).as_object().unwrap().clone(),
        ..CreateRoom::new(user("alice"))
    };
    let closed = rooms.create(&closed, Commit::new()).await.unwrap().room_id;
    assert!(forbidden(rooms.make_join(&name, &closed, &bob, &versions).await));
    // A version that does not know of knocking.
    let old = room_of_version(&world, RoomVersionId::V6, Preset::PublicChat).await;
    assert!(forbidden(rooms.make_knock(&name, &old, &bob, &versions).await));
}

/// A room that members of `club` may join.
async fn restricted(world: &World, club: &Value) -> OwnedRoomId {
    let room = room_of_version(world, RoomVersionId::V11, Preset::PrivateChat).await;
    let allow = json!([{ "type": "m.room_membership", "room_id": club }]);
    let rules = json!({ "join_rule": "restricted", "allow": allow });
    world.set("alice", &room, "m.room.join_rules", "", rules).await.unwrap();
    room
}

#[tokio::test]
async fn members_of_another_room_are_let_in_with_our_signature() {
    let world = World::new().await;
    let club = world.room("alice", Preset::PublicChat).await;
    let room = restricted(&world, &json!(club)).await;
    let refused = peer().make_join(&world, "bob", &room).await;
    assert!(matches!(refused, Err(HandshakeError::Forbidden(_))), "{refused:?}");

    peer().join(&world, "bob", &club).await;
    let template = peer().make_join(&world, "bob", &room).await.unwrap();
    let event: Value = serde_json::from_str(template.event.get()).unwrap();
    assert_eq!(event["content"]["join_authorised_via_users_server"], user("alice").as_str());
    let joined = peer().submit_join(&world, &room, peer().complete(&template), false).await.unwrap();
    let rules = RoomRules::of(&RoomVersionId::V11).unwrap();
    for server in ["peer.test", "hearth.test"] {
        let server = ruma::ServerName::parse(server).unwrap();
        keys().verify_event(&server, rules, &joined.event).unwrap();
    }
    assert_eq!(world.by_id(&room, &joined.event.event_id().to_owned()).await.pdu, joined.event);
    // The authorising user is in the auth chain.
    let state = [joined.state.as_slice(), joined.auth_chain.as_slice()].concat();
    assert!(of_kind(&state, "m.room.member").contains(user("alice").as_str()));

    // Whoever is not in the club does not get our signature by naming one of us.
    let forged = third().complete_with(&template, |event| {
        let dora = third().user("dora");
        (event["sender"], event["state_key"]) = (json!(dora), json!(dora));
    });
    let refused = third().submit_join(&world, &room, forged, false).await;
    assert!(matches!(refused, Err(HandshakeError::Forbidden(_))), "{refused:?}");
}

#[tokio::test]
async fn who_cannot_let_others_in_says_who_might() {
    let world = World::new().await;
    let elsewhere = restricted(&world, &json!("!club:elsewhere.test")).await;
    let refused = peer().make_join(&world, "bob", &elsewhere).await;
    assert!(matches!(refused, Err(HandshakeError::UnableToAuthorise)), "{refused:?}");

    let club = world.room("alice", Preset::PublicChat).await;
    peer().join(&world, "bob", &club).await;
    let room = restricted(&world, &json!(club)).await;
    // Not even Alice may invite any more.
    let mut levels = world.state(&room, "m.room.power_levels", "").await.unwrap();
    levels["invite"] = json!(100);
    levels["users"] = json!({ user("alice"): 99 });
    world.set("alice", &room, "m.room.power_levels", "", levels).await.unwrap();
    let refused = peer().make_join(&world, "bob", &room).await;
    assert!(matches!(refused, Err(HandshakeError::UnableToGrant)), "{refused:?}");
}

#[tokio::test]
async fn what_is_submitted_must_be_what_was_asked_for() {
    let world = World::new().await;
    let room = world.room("alice", Preset::PublicChat).await;
    let other = world.room("alice", Preset::PublicChat).await;
    let template = peer().make_join(&world, "bob", &room).await.unwrap();
    let last = world.say("alice", &room, "hello").await.unwrap().event_id;
    let (bob, eve) = (peer().user("bob"), peer().user("eve"));
    let good = peer().complete(&template);
    let good_id = good.pdu().event_id().to_owned();
    type Change = Box<dyn Fn(&mut Value)>;
    let changes: Vec<(&str, Change)> = vec![
        ("a message", Box::new(|event| event["type"] = json!("m.room.message"))),
        ("a leave", Box::new(|event| event["content"]["membership"] = json!("leave"))),
        ("no membership", Box::new(|event| event["content"] = json!({}))),
        ("somebody else", Box::new(move |event| event["state_key"] = json!(eve))),
        ("no state", Box::new(|event| drop(event.as_object_mut().unwrap().remove("state_key")))),
        ("a user of ours", {
            Box::new(|event| {
                (event["sender"], event["state_key"]) = (json!(user("carol")), json!(user("carol")))
            })
        }),
        ("another room", Box::new(move |event| event["room_id"] = json!(other))),
    ];
    for (what, change) in &changes {
        let pdu = peer().complete_with(&template, change);
        let id = pdu.pdu().event_id().to_owned();
        let refused = peer().submit_join(&world, &room, pdu, false).await;
        assert!(matches!(refused, Err(HandshakeError::Invalid(_))), "{what}: {refused:?}");
        let info = world.rooms.room(&room).await.unwrap().unwrap();
        assert!(world.rooms.events().by_id(&info, &id).await.unwrap().is_none(), "{what} leaves no trace");
    }
    let submit = async |origin: &ServerName, event: &EventId, pdu: ReceivedPdu| {
        let submitted = Submitted { origin, room: &room, event, pdu, keys: &keys() };
        world.rooms.accept_join(submitted, false).await
    };
    let invalid = |refused| matches!(refused, Err(HandshakeError::Invalid(_)));
    assert!(invalid(submit(&third().name, &good_id, good.clone()).await), "handed over by another server");
    assert!(invalid(submit(&peer().name, &last, good.clone()).await), "under another id");
    // Signed by somebody else in the name of Bob's server.
    let forged = third().complete(&template);
    let forged_id = forged.pdu().event_id().to_owned();
    assert!(invalid(submit(&peer().name, &forged_id, forged).await));
    // Changed after it was signed.
    let mut changed: Value = serde_json::from_str(good.pdu().json()).unwrap();
    changed["content"]["displayname"] = json!("Robert");
    let changed = ReceivedPdu::parse(RoomRules::of(&RoomVersionId::V12).unwrap(), &changed.to_string());
    assert!(invalid(submit(&peer().name, &good_id, changed.unwrap()).await));
    let unknown = format!("${}", "x".repeat(43));
    let rootless = peer().complete_with(&template, |event| event["prev_events"] = json!([unknown]));
    let refused = peer().submit_join(&world, &room, rootless, false).await;
    assert!(matches!(refused, Err(HandshakeError::UnknownReferences)), "{refused:?}");
    // A leave is not taken for a join's endpoint, nor a join for a leave's.
    let submitted =
        Submitted { origin: &peer().name, room: &room, event: &good_id, pdu: good.clone(), keys: &keys() };
    assert!(matches!(world.rooms.accept_leave(submitted).await, Err(HandshakeError::Invalid(_))));
    // Banned between template and join.
    let ban = json!({ "membership": "ban" });
    world.set("alice", &room, "m.room.member", bob.as_str(), ban).await.unwrap();
    let refused = peer().submit_join(&world, &room, good, false).await;
    assert!(matches!(refused, Err(HandshakeError::Forbidden(_))), "{refused:?}");
    let info = world.rooms.room(&room).await.unwrap().unwrap();
    assert!(world.rooms.events().by_id(&info, &good_id).await.unwrap().is_none());
    assert!(!world.rooms.is_server_in_room(&info, &peer().name).await.unwrap());
}

#[tokio::test]
async fn leaving_is_told_to_those_who_stay() {
    let world = World::new().await;
    let room = world.room("alice", Preset::PublicChat).await;
    peer().join(&world, "bob", &room).await;
    third().join(&world, "dora", &room).await;
    let mark = world.store.watermark();
    peer().leave(&world, "bob", &room).await.unwrap();
    assert_eq!(sent(&world, mark).await, [("m.room.member".to_owned(), vec!["third.test".to_owned()])]);
    let info = world.rooms.room(&room).await.unwrap().unwrap();
    assert!(!world.rooms.is_server_in_room(&info, &peer().name).await.unwrap());
    assert!(matches!(peer().leave(&world, "bob", &room).await, Err(HandshakeError::Forbidden(_))));

    // Whom we put out hears it from us, though their server is not in the room any more.
    let mark = world.store.watermark();
    let dora = third().user("dora");
    let kick = json!({ "membership": "leave", "reason": "bye" });
    world.set("alice", &room, "m.room.member", dora.as_str(), kick).await.unwrap();
    assert_eq!(sent(&world, mark).await, [("m.room.member".to_owned(), vec!["third.test".to_owned()])]);
    // And what comes after goes nowhere.
    let mark = world.store.watermark();
    world.say("alice", &room, "alone").await.unwrap();
    assert_eq!(sent(&world, mark).await, []);
}

async fn knock(world: &World, room: &OwnedRoomId, who: &UserId) -> Result<Vec<Pdu>, HandshakeError> {
    let template = world.rooms.make_knock(&peer().name, room, who, &all_versions()).await?;
    let pdu = peer().complete(&template);
    let event = pdu.pdu().event_id().to_owned();
    let submitted = Submitted { origin: &peer().name, room, event: &event, pdu, keys: &keys() };
    Ok(world.rooms.accept_knock(submitted).await?.knock_room_state)
}

#[tokio::test]
async fn knocking_tells_what_room_it_is() {
    let world = World::new().await;
    let room = world.room("alice", Preset::PrivateChat).await;
    world.set("alice", &room, "m.room.join_rules", "", json!({ "join_rule": "knock" })).await.unwrap();
    world.set("alice", &room, "m.room.name", "", json!({ "name": "Tea" })).await.unwrap();
    world.set("alice", &room, "com.example.secret", "", json!({ "plan": "B" })).await.unwrap();
    let bob = peer().user("bob");
    let state = knock(&world, &room, &bob).await.unwrap();
    let kinds: Vec<String> = state.iter().map(|pdu| pdu.kind().to_string()).collect();
    assert_eq!(kinds, ["m.room.create", "m.room.join_rules", "m.room.name"]);
    // Who knocks is not in the room.
    let info = world.rooms.room(&room).await.unwrap().unwrap();
    assert!(!world.rooms.is_server_in_room(&info, &peer().name).await.unwrap());
    assert!(peer().make_join(&world, "bob", &room).await.is_err());
    // Sent away: their server hears it.
    let mark = world.store.watermark();
    let no = json!({ "membership": "leave" });
    world.set("alice", &room, "m.room.member", bob.as_str(), no).await.unwrap();
    assert_eq!(sent(&world, mark).await, [("m.room.member".to_owned(), vec!["peer.test".to_owned()])]);
    // Or they think better of it themselves.
    knock(&world, &room, &bob).await.unwrap();
    let mark = world.store.watermark();
    peer().leave(&world, "bob", &room).await.unwrap();
    assert_eq!(sent(&world, mark).await, []);
}

#[tokio::test]
async fn our_signature_may_not_make_a_join_too_large() {
    let world = World::new().await;
    let club = world.room("alice", Preset::PublicChat).await;
    let room = restricted(&world, &json!(club)).await;
    peer().join(&world, "bob", &club).await;
    let template = peer().make_join(&world, "bob", &room).await.unwrap();
    let with_reason = |length: usize| {
        peer().complete_with(&template, |event| event["content"]["reason"] = json!("r".repeat(length)))
    };
    let length = hearth_dag::limits::MAX_EVENT_BYTES - with_reason(1).pdu().bytes().len() - 20;
    let refused = peer().submit_join(&world, &room, with_reason(length), false).await;
    assert!(matches!(refused, Err(HandshakeError::Invalid(_))), "{refused:?}");
    peer().submit_join(&world, &room, with_reason(length - 200), false).await.unwrap();
}

#[tokio::test]
async fn a_room_whose_members_are_not_known_yet_lets_our_own_users_into_others() {
    let (world, peers) = (World::new().await, crate::peers::Peer::new("peer.test").await);
    let club = peers.room("bob", Preset::PublicChat).await;
    let mut answer = peers.let_in(&club, &user("carol")).await;
    answer.state.retain(|event| event.pdu().kind().to_string() != "m.room.member");
    answer.members_omitted = Some(vec![peers.name.clone()]);
    assert!(world.rooms.enter_room(answer).await.unwrap().is_partial);
    let room = restricted(&world, &json!(club)).await;
    assert!(matches!(world.join("carol", &room).await.unwrap(), Joined::Here(_)));
    assert!(matches!(world.join("dave", &room).await, Err(MembershipError::Write(WriteError::Forbidden(_)))));
    // Of Bob nobody here can tell.
    let refused = peer().make_join(&world, "bob", &room).await;
    assert!(matches!(refused, Err(HandshakeError::UnableToAuthorise)), "{refused:?}");
}
