//! Every way in and out.

use hearth_rooms::*;
use hearth_store::Commit;
use serde_json::json;

use crate::support::{World, profile, user};

async fn knock(world: &World, name: &str, room: &ruma::OwnedRoomId) -> Result<Option<Sent>, MembershipError> {
    let knock =
        Knock { room: room.clone(), user: user(name), profile: profile(name), reason: Some("please".into()) };
    world.rooms.knock(&knock, Commit::new()).await
}

fn is_forbidden<T: std::fmt::Debug>(result: Result<T, MembershipError>) -> bool {
    matches!(result, Err(MembershipError::Write(WriteError::Forbidden(_))))
}

#[tokio::test]
async fn from_invite_to_ban_and_back() {
    let world = World::new().await;
    let room = world.room("alice", Preset::PrivateChat).await;
    assert!(is_forbidden(world.join("bob", &room).await));
    assert!(is_forbidden(world.invite("bob", "carol", &room).await));
    world.invite("alice", "bob", &room).await.unwrap();
    assert_eq!(world.membership(&room, "bob").await.as_deref(), Some("invite"));
    world.join("bob", &room).await.unwrap();
    assert!(matches!(world.invite("alice", "bob", &room).await, Err(MembershipError::AlreadyJoined(_))));
    let before = world.timeline(&room).await.len();
    world.join("bob", &room).await.unwrap();
    assert_eq!(world.timeline(&room).await.len(), before, "joining twice makes no event");
    assert!(is_forbidden(world.remove(Removal::Kick, "bob", "alice", &room).await));
    world.remove(Removal::Kick, "alice", "bob", &room).await.unwrap();
    assert_eq!(world.membership(&room, "bob").await.as_deref(), Some("leave"));
    assert!(matches!(
        world.remove(Removal::Kick, "alice", "bob", &room).await,
        Err(MembershipError::NotInRoom(_))
    ));
    world.remove(Removal::Ban, "alice", "bob", &room).await.unwrap();
    assert_eq!(world.remove(Removal::Ban, "alice", "bob", &room).await.unwrap(), None);
    assert!(matches!(world.join("bob", &room).await, Err(MembershipError::Banned(_))));
    assert!(matches!(world.invite("alice", "bob", &room).await, Err(MembershipError::Banned(_))));
    world.remove(Removal::Unban, "alice", "bob", &room).await.unwrap();
    assert!(world.remove(Removal::Unban, "alice", "bob", &room).await.is_err());
    world.invite("alice", "bob", &room).await.unwrap();
    world.remove(Removal::Leave, "bob", "bob", &room).await.unwrap();
    assert_eq!(world.remove(Removal::Leave, "bob", "bob", &room).await.unwrap(), None);
    let sn = world.rooms.room(&room).await.unwrap().unwrap().sn;
    let row = world.rooms.membership_row(&user("bob"), sn).await.unwrap().unwrap();
    assert_eq!((row.membership, row.before), (Membership::Leave, Some(Membership::Invite)));
    let head = world.rooms.head(sn).await.unwrap().unwrap().value;
    assert_eq!((head.joined, head.invited), (1, 0));
}

#[tokio::test]
async fn forgetting_comes_after_leaving_and_ends_with_an_invite() {
    let world = World::new().await;
    let room = world.room("alice", Preset::PublicChat).await;
    world.join("bob", &room).await.unwrap();
    let forget = async |name: &str| world.rooms.forget(&user(name), &room).await;
    assert!(matches!(forget("bob").await, Err(MembershipError::StillJoined)));
    assert!(matches!(forget("carol").await, Err(MembershipError::NeverThere)));
    world.remove(Removal::Leave, "bob", "bob", &room).await.unwrap();
    forget("bob").await.unwrap();
    forget("bob").await.unwrap();
    let sn = world.rooms.room(&room).await.unwrap().unwrap().sn;
    assert!(world.rooms.membership_row(&user("bob"), sn).await.unwrap().unwrap().forgotten);
    world.invite("alice", "bob", &room).await.unwrap();
    assert!(!world.rooms.membership_row(&user("bob"), sn).await.unwrap().unwrap().forgotten);
}

#[tokio::test]
async fn knocking_where_it_is_allowed() {
    let world = World::new().await;
    let room = world.room("alice", Preset::PrivateChat).await;
    assert!(is_forbidden(knock(&world, "bob", &room).await));
    world.set("alice", &room, "m.room.join_rules", "", json!({ "join_rule": "knock" })).await.unwrap();
    knock(&world, "bob", &room).await.unwrap().unwrap();
    assert_eq!(knock(&world, "bob", &room).await.unwrap(), None);
    assert_eq!(world.state(&room, "m.room.member", user("bob").as_str()).await.unwrap()["reason"], "please");
    world.remove(Removal::Leave, "bob", "bob", &room).await.unwrap();
    knock(&world, "bob", &room).await.unwrap().unwrap();
    assert!(is_forbidden(world.join("bob", &room).await));
    world.invite("alice", "bob", &room).await.unwrap();
    world.join("bob", &room).await.unwrap();
    assert!(knock(&world, "bob", &room).await.is_err());
}

#[tokio::test]
async fn members_of_one_room_may_join_another() {
    let world = World::new().await;
    let club = world.room("alice", Preset::PublicChat).await;
    let inner = world.room("alice", Preset::PrivateChat).await;
    for rule in ["restricted", "knock_restricted"] {
        let allow = json!([{ "type": "m.room_membership", "room_id": club }]);
        world
            .set("alice", &inner, "m.room.join_rules", "", json!({ "join_rule": rule, "allow": allow }))
            .await
            .unwrap();
        let name = format!("bob-{rule}").replace('_', "-");
        assert!(is_forbidden(world.join(&name, &inner).await));
        world.join(&name, &club).await.unwrap();
        world.join(&name, &inner).await.unwrap();
        let member = world.state(&inner, "m.room.member", user(&name).as_str()).await.unwrap();
        assert_eq!(member["join_authorised_via_users_server"], user("alice").as_str());
        // A new name is not a new join.
        let sn = world.rooms.room(&inner).await.unwrap().unwrap().sn;
        let renamed = Profile { display_name: Some("Robert".into()), avatar_url: None };
        world.rooms.update_profile(&user(&name), sn, &renamed).await.unwrap().unwrap();
        assert_eq!(world.rooms.update_profile(&user(&name), sn, &renamed).await.unwrap(), None);
        let member = world.state(&inner, "m.room.member", user(&name).as_str()).await.unwrap();
        assert_eq!(member, json!({ "membership": "join", "displayname": "Robert" }));
    }
}

#[tokio::test]
async fn where_we_are_in_the_room_nobody_leaves_it_behind_its_back() {
    let world = World::new().await;
    let room = world.room("alice", Preset::PrivateChat).await;
    world.invite("alice", "bob", &room).await.unwrap();
    for name in ["alice", "bob"] {
        let refused = world.rooms.leave_out_of_band(&user(name), &room).await;
        assert!(matches!(refused, Err(MembershipError::InRoom)));
    }
    let sn = world.rooms.room(&room).await.unwrap().unwrap().sn;
    let row = world.rooms.membership_row(&user("bob"), sn).await.unwrap().unwrap();
    assert!(row.membership == Membership::Invite && row.event.is_some());
    world.remove(Removal::Leave, "bob", "bob", &room).await.unwrap();
    assert_eq!(world.membership(&room, "bob").await.unwrap(), "leave");
    assert_eq!(world.rooms.joined_rooms(&user("alice")).await.unwrap(), [sn]);
}

#[tokio::test]
async fn many_join_at_once() {
    let world = World::new().await;
    let room = world.room("alice", Preset::PublicChat).await;
    let names: Vec<String> = (0..100).map(|n| format!("user{n}")).collect();
    let joins = names.iter().map(|name| world.join(name, &room));
    for joined in futures_util::future::join_all(joins).await {
        joined.unwrap();
    }
    let sn = world.rooms.room(&room).await.unwrap().unwrap().sn;
    assert_eq!(world.rooms.head(sn).await.unwrap().unwrap().value.joined, 101);
    let snapshot = world.rooms.head(sn).await.unwrap().unwrap().value.snapshot;
    assert_eq!(world.rooms.snapshots().members(sn, snapshot).await.unwrap().len(), 101);
}
