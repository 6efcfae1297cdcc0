//! Rooms in which we are not: invites, knocks, and the last one who leaves.

use hearth_dag::Pdu;
use hearth_rooms::*;
use hearth_store::StreamPosition;
use ruma::{OwnedRoomId, UserId};
use serde_json::json;
use serde_json::value::{RawValue, to_raw_value};

use crate::peers::*;
use crate::support::{World, user};

fn told(room: &OwnedRoomId, event: &Pdu) -> OutOfBand {
    let name = json!({
        "type": "m.room.name", "state_key": "", "sender": "@bob:peer.test",
        "content": { "name": "Club" }, "origin_server_ts": 7, "hashes": {},
    });
    let state: Vec<Box<RawValue>> =
        vec![to_raw_value(&name).unwrap(), to_raw_value(&json!({ "type": "m.room.topic" })).unwrap()];
    OutOfBand { room_id: room.clone(), version: ruma::RoomVersionId::V12, event: built(event), state }
}

async fn invited() -> (World, Peer, OwnedRoomId, Pdu) {
    let (world, peer) = (World::new().await, Peer::new("peer.test").await);
    let room = peer.room("bob", Preset::PrivateChat).await;
    let (bob, alice) = (peer.user("bob"), user("alice"));
    let content = json!({ "membership": "invite", "is_direct": true });
    let invite = peer.take(&room, Say::state(&bob, "m.room.member", alice.as_str(), content)).await;
    world.rooms.receive_out_of_band(&told(&room, &invite)).await.unwrap();
    (world, peer, room, invite)
}

async fn row(world: &World, room: &OwnedRoomId) -> tables::MembershipRow {
    let info = world.rooms.room(room).await.unwrap().unwrap();
    world.rooms.membership_row(&user("alice"), info.sn).await.unwrap().unwrap()
}

#[tokio::test]
async fn an_invite_is_shown_with_what_came_along() {
    let (world, peer, room, invite) = invited().await;
    let row = row(&world, &room).await;
    assert_eq!((row.membership, row.event, row.before), (Membership::Invite, None, None));
    assert!(row.is_direct && row.sender == peer.user("bob"));
    let info = world.rooms.room(&room).await.unwrap().unwrap();
    let kept = world.rooms.reader().out_of_band(&user("alice"), info.sn).await.unwrap().unwrap();
    assert_eq!(kept.event_id, invite.event_id());
    let stripped: serde_json::Value = serde_json::from_str(&kept.stripped_state[0]).unwrap();
    assert_eq!(kept.stripped_state.len(), 1, "what is no state event is left out");
    assert_eq!(stripped.as_object().unwrap().len(), 4, "only what clients may see");
    let changes = world
        .rooms
        .reader()
        .membership_changes(&user("alice"), StreamPosition::ZERO, world.store.watermark())
        .await
        .unwrap();
    assert_eq!(changes.len(), 1);
    // Again, as peers repeat themselves.
    let again = world.rooms.receive_out_of_band(&told(&room, &invite)).await.unwrap();
    assert_eq!(again, changes[0].0);
    assert!(matches!(world.join("alice", &room).await.unwrap(), Joined::NotResident));
    assert!(matches!(world.say("alice", &room, "hi").await, Err(SendError::Write(WriteError::NotResident))));
}

#[tokio::test]
async fn an_invite_ends_by_entering_by_declining_or_by_being_taken_back() {
    // Entering.
    let (world, peer, room, _) = invited().await;
    world.rooms.enter_room(peer.let_in(&room, &user("alice")).await).await.unwrap();
    let entered = row(&world, &room).await;
    assert!(entered.membership == Membership::Join && entered.event.is_some());
    let info = world.rooms.room(&room).await.unwrap().unwrap();
    assert!(world.rooms.reader().out_of_band(&user("alice"), info.sn).await.unwrap().is_none());
    let refused = world.rooms.leave_out_of_band(&user("alice"), &room).await;
    assert!(matches!(refused, Err(MembershipError::InRoom)));

    // Declining, by an event that the other server took, or alone.
    let (world, peer, room, _) = invited().await;
    let alice = user("alice");
    let decline = peer.take(&room, Say::member(&alice, &alice, "leave")).await;
    world.rooms.receive_out_of_band(&told(&room, &decline)).await.unwrap();
    let left = row(&world, &room).await;
    assert_eq!((left.membership, left.before), (Membership::Leave, Some(Membership::Invite)));
    let twice = world.rooms.receive_out_of_band(&told(&room, &decline)).await;
    assert!(matches!(twice, Ok(_) | Err(OutOfBandError::NothingToEnd)));
    let (world, _, room, _) = invited().await;
    world.rooms.leave_out_of_band(&alice, &room).await.unwrap();
    world.rooms.leave_out_of_band(&alice, &room).await.unwrap();
    assert_eq!(row(&world, &room).await.membership, Membership::Leave);

    // Taken back: by who names it, not by a stranger.
    let (world, peer, room, _) = invited().await;
    let eve = UserId::parse("@eve:evil.test").unwrap();
    let info = peer.rooms.room(&room).await.unwrap().unwrap();
    let forged = forge(&room, info.rules, Say::member(&eve, &alice, "leave"), &[], &State::new());
    let refused = world.rooms.receive_out_of_band(&told(&room, &forged)).await;
    assert!(matches!(refused, Err(OutOfBandError::NothingToEnd)));
    let bob = peer.user("bob");
    let kick = peer.take(&room, Say::member(&bob, &alice, "leave")).await;
    world.rooms.receive_out_of_band(&told(&room, &kick)).await.unwrap();
    assert_eq!(row(&world, &room).await.membership, Membership::Leave);
}

#[tokio::test]
async fn only_memberships_of_our_users_in_rooms_of_others_are_taken() {
    let (world, peer, room, invite) = invited().await;
    let (bob, alice) = (peer.user("bob"), user("alice"));
    let refused = async |event: &Pdu| world.rooms.receive_out_of_band(&told(&room, event)).await.unwrap_err();
    let info = peer.rooms.room(&room).await.unwrap().unwrap();
    let state = state_of(&peer.rooms, &room).await;
    let make = |say: Say<'_>| forge(&room, info.rules, say, &[&invite], &state);
    assert!(matches!(refused(&make(Say::member(&bob, &bob, "invite"))).await, OutOfBandError::NotForUs));
    assert!(matches!(refused(&make(Say::member(&alice, &alice, "join"))).await, OutOfBandError::NotForUs));
    assert!(matches!(refused(&make(Say::message(&bob, "hi"))).await, OutOfBandError::NotForUs));
    let knock = make(Say::member(&alice, &alice, "knock"));
    world.rooms.receive_out_of_band(&told(&room, &knock)).await.unwrap();
    assert_eq!(row(&world, &room).await.membership, Membership::Knock);
    world.rooms.enter_room(peer.let_in(&room, &alice).await).await.unwrap();
    assert!(matches!(refused(&invite).await, OutOfBandError::InRoom));
}

#[tokio::test]
async fn an_invite_that_lies_about_the_version_does_not_keep_anyone_out() {
    let (world, peer) = (World::new().await, Peer::new("peer.test").await);
    let room = peer.room_of("bob", Preset::PublicChat, ruma::RoomVersionId::V11).await;
    let (bob, alice) = (peer.user("bob"), user("alice"));
    let invite = peer.take(&room, Say::member(&bob, &alice, "invite")).await;
    let lie = OutOfBand { version: ruma::RoomVersionId::V12, ..told(&room, &invite) };
    world.rooms.receive_out_of_band(&lie).await.unwrap();
    world.rooms.enter_room(peer.let_in(&room, &alice).await).await.unwrap();
    assert_eq!(state_of(&world.rooms, &room).await, state_of(&peer.rooms, &room).await);
    assert_eq!(world.rooms.room(&room).await.unwrap().unwrap().version, ruma::RoomVersionId::V11);
    world.say("alice", &room, "here").await.unwrap();
}

#[tokio::test]
async fn when_the_last_of_us_leaves_the_room_goes_on_without_us() {
    let (world, peer) = (World::new().await, Peer::new("peer.test").await);
    let room = peer.room("bob", Preset::PublicChat).await;
    world.rooms.enter_room(peer.let_in(&room, &user("alice")).await).await.unwrap();
    world.join("dave", &room).await.unwrap();
    world.remove(Removal::Leave, "alice", "alice", &room).await.unwrap();
    assert_eq!(world.head(&room).await.residency, Residency::Resident, "Dave is still there");
    // The other server removes him.
    for event in world.events(&room).await.iter().skip(1) {
        peer.rooms.receive(&built(&event.pdu)).await.unwrap();
    }
    let (bob, dave) = (peer.user("bob"), user("dave"));
    let kick = peer.take(&room, Say::member(&bob, &dave, "leave")).await;
    world.rooms.receive(&built(&kick)).await.unwrap();
    assert_eq!(world.head(&room).await.residency, Residency::Left);
    assert!(matches!(world.join("dave", &room).await.unwrap(), Joined::NotResident));
    let bob_says = peer.pdu(&room, &peer.say(&room, "bob", "alone").await).await;
    assert!(matches!(world.rooms.receive(&built(&bob_says)).await, Err(WriteError::NotResident)));
}

#[tokio::test]
async fn a_room_that_everybody_left_stays_here() {
    let world = World::new().await;
    let room = world.room("alice", Preset::PublicChat).await;
    world.join("dave", &room).await.unwrap();
    world.remove(Removal::Leave, "dave", "dave", &room).await.unwrap();
    world.remove(Removal::Leave, "alice", "alice", &room).await.unwrap();
    assert_eq!(world.head(&room).await.residency, Residency::Resident);
    assert!(matches!(world.join("dave", &room).await.unwrap(), Joined::Here(_)));
}

#[tokio::test]
async fn nobody_else_ends_an_invite_or_a_knock() {
    let (world, peer, room, invite) = invited().await;
    let info = peer.rooms.room(&room).await.unwrap().unwrap();
    let alice = user("alice");
    let state = state_of(&peer.rooms, &room).await;
    let eve = UserId::parse("@eve:evil.test").unwrap();
    // She names the invite, as the rules ask.
    let mut forged = Vec::new();
    for membership in ["leave", "ban"] {
        let pdu = forge(&room, info.rules, Say::member(&eve, &alice, membership), &[&invite], &state);
        assert!(pdu.auth_events().contains(&invite.event_id().to_owned()));
        forged.push(pdu);
    }
    for pdu in &forged {
        let refused = world.rooms.receive_out_of_band(&told(&room, pdu)).await;
        assert!(matches!(refused, Err(OutOfBandError::NothingToEnd)), "{refused:?}");
    }
    assert_eq!(row(&world, &room).await.membership, Membership::Invite);
    // Another user of the inviter's server may; here nobody can tell their power.
    let moderator = peer.user("moderator");
    let back = forge(&room, info.rules, Say::member(&moderator, &alice, "leave"), &[&invite], &state);
    world.rooms.receive_out_of_band(&told(&room, &back)).await.unwrap();
    assert_eq!(row(&world, &room).await.membership, Membership::Leave);

    let knock = forge(&room, info.rules, Say::member(&alice, &alice, "knock"), &[&invite], &state);
    world.rooms.receive_out_of_band(&told(&room, &knock)).await.unwrap();
    let state = with(&state, &knock);
    let make = |by: &UserId| forge(&room, info.rules, Say::member(by, &alice, "leave"), &[&knock], &state);
    let refused = world.rooms.receive_out_of_band(&told(&room, &make(&eve))).await;
    assert!(matches!(refused, Err(OutOfBandError::NothingToEnd)), "{refused:?}");
    // The state that came along shows that Bob's server is in the room.
    world.rooms.receive_out_of_band(&told(&room, &make(&peer.user("bob")))).await.unwrap();
    assert_eq!(row(&world, &room).await.membership, Membership::Leave);
}

#[tokio::test]
async fn only_servers_with_power_in_the_room_end_what_they_did_not_begin() {
    let (peer, alice) = (Peer::new("peer.test").await, user("alice"));
    let (bob, carol) = (peer.user("bob"), UserId::parse("@carol:far.test").unwrap());
    let eve = UserId::parse("@eve:evil.test").unwrap();
    let of_eve = json!({ "type": "m.room.member", "state_key": eve, "sender": eve, "content": { "membership": "join" } });
    let topic =
        json!({ "type": "m.room.topic", "state_key": "", "sender": eve, "content": { "topic": "mine" } });
    let levels = |kick: i64| {
        let users = json!({ bob.to_string(): 100, carol.to_string(): 50, eve.to_string(): 20 });
        let content = json!({ "users": users, "kick": kick, "ban": 60 });
        json!({ "type": "m.room.power_levels", "state_key": "", "sender": bob, "content": content })
    };
    let cases = [
        // Everybody has a membership.
        (vec![of_eve.clone()], &eve, "leave", false),
        // Where nothing is known of power, who changed the state may have some.
        (vec![topic.clone()], &eve, "leave", true),
        (vec![topic.clone(), levels(50)], &eve, "leave", false),
        (vec![topic.clone(), levels(20)], &eve, "leave", true),
        (vec![levels(50)], &carol, "leave", true),
        (vec![levels(50)], &carol, "ban", false),
    ];
    for (state, who, membership, ends) in cases {
        let world = World::new().await;
        let room = peer.room("bob", Preset::PrivateChat).await;
        let info = peer.rooms.room(&room).await.unwrap().unwrap();
        let invite = peer.take(&room, Say::member(&bob, &alice, "invite")).await;
        let described = format!("{state:?}, {who}, {membership}");
        let state = state.iter().map(|event| to_raw_value(event).unwrap()).collect();
        world.rooms.receive_out_of_band(&OutOfBand { state, ..told(&room, &invite) }).await.unwrap();
        let of_room = state_of(&peer.rooms, &room).await;
        let end = forge(&room, info.rules, Say::member(who, &alice, membership), &[&invite], &of_room);
        let ended = world.rooms.receive_out_of_band(&told(&room, &end)).await;
        assert_eq!(ended.is_ok(), ends, "{described}: {ended:?}");
    }
}
