//! Rooms of all presets and versions.

use hearth_rooms::*;
use hearth_store::Commit;
use ruma::{RoomVersionId, room_alias_id};
use serde_json::{json, value::to_raw_value};

use crate::support::{World, profile, user};

fn versions() -> impl Iterator<Item = RoomVersionId> {
    (1..=12).map(|version| RoomVersionId::try_from(version.to_string()).unwrap())
}

#[tokio::test]
async fn rooms_of_every_version_work() {
    let world = World::new().await;
    for version in versions() {
        let create = CreateRoom {
            version: version.clone(),
            preset: Preset::PublicChat,
            name: Some("Hall".into()),
            ..CreateRoom::new(user("alice"))
        };
        let room = world.rooms.create(&create, Commit::new()).await.unwrap().room_id;
        world.join("bob", &room).await.unwrap();
        let sent = world.say("bob", &room, "hello").await.unwrap();
        let event = world.state_event(&room, "m.room.create", "").await.unwrap();
        let content = world.state(&room, "m.room.create", "").await.unwrap();
        assert_eq!(content["room_version"], version.as_str());
        let number: u32 = version.as_str().parse().unwrap();
        assert_eq!(content.get("creator").is_some(), number < 11, "version {version}");
        let has_host = room.as_str().contains(':');
        assert_eq!(has_host, version != RoomVersionId::V12, "{room}");
        if !has_host {
            assert_eq!(room.as_str()[1..], event.header.event_id.as_str()[1..]);
        }
        let redaction = Send {
            redacts: Some(sent.event_id.clone()),
            ..crate::support::event("bob", &room, "m.room.redaction", json!({}))
        };
        world.rooms.send(&redaction, Commit::new()).await.unwrap();
        assert!(world.by_id(&room, &sent.event_id).await.is_redacted(), "version {version}");
    }
}

#[tokio::test]
async fn presets_decide_who_comes_in() {
    let world = World::new().await;
    for (preset, join_rule, guests) in [
        (Preset::PrivateChat, "invite", Some("can_join")),
        (Preset::TrustedPrivateChat, "invite", Some("can_join")),
        (Preset::PublicChat, "public", None),
    ] {
        let room = world.room("alice", preset).await;
        assert_eq!(world.state(&room, "m.room.join_rules", "").await.unwrap()["join_rule"], join_rule);
        let access = world.state(&room, "m.room.guest_access", "").await;
        assert_eq!(access.as_ref().map(|access| access["guest_access"].as_str().unwrap()), guests);
        let visibility = world.state(&room, "m.room.history_visibility", "").await.unwrap();
        assert_eq!(visibility["history_visibility"], "shared");
    }
}

#[tokio::test]
async fn trusted_guests_are_as_powerful_as_the_creator() {
    let world = World::new().await;
    let with = |version| CreateRoom {
        version,
        preset: Preset::TrustedPrivateChat,
        invite: vec![(user("bob"), profile("bob"))],
        is_direct: true,
        ..CreateRoom::new(user("alice"))
    };
    let old = world.rooms.create(&with(RoomVersionId::V11), Commit::new()).await.unwrap().room_id;
    let levels = world.state(&old, "m.room.power_levels", "").await.unwrap();
    assert_eq!(levels["users"], json!({ user("alice").as_str(): 100, user("bob").as_str(): 100 }));
    assert_eq!(levels["events"]["m.room.tombstone"], 100);
    let new = world.rooms.create(&with(RoomVersionId::V12), Commit::new()).await.unwrap().room_id;
    let levels = world.state(&new, "m.room.power_levels", "").await.unwrap();
    assert_eq!(levels["users"], json!({}));
    assert_eq!(levels["events"]["m.room.tombstone"], 150);
    let create = world.state(&new, "m.room.create", "").await.unwrap();
    assert_eq!(create["additional_creators"], json!([user("bob")]));
    let invite = world.state(&new, "m.room.member", user("bob").as_str()).await.unwrap();
    assert_eq!(invite["is_direct"], true);
    let row = world.rooms.membership_row(&user("bob"), RoomSn(2)).await.unwrap().unwrap();
    assert!(row.is_direct && row.membership == Membership::Invite && row.sender == user("alice"));
}

#[tokio::test]
async fn a_room_is_made_in_the_order_of_the_specification() {
    let world = World::new().await;
    let create = CreateRoom {
        alias: Some(room_alias_id!("#hall:hearth.test").to_owned()),
        listed: true,
        name: Some("Hall".into()),
        topic: Some("talk".into()),
        initial_state: vec![
            InitialState {
                kind: "m.room.encryption".into(),
                state_key: String::new(),
                content: to_raw_value(&json!({ "algorithm": "m.megolm.v1.aes-sha2" })).unwrap(),
            },
            InitialState {
                kind: "m.room.history_visibility".into(),
                state_key: String::new(),
                content: to_raw_value(&json!({ "history_visibility": "joined" })).unwrap(),
            },
        ],
        power_level_content_override: serde_json::from_value(json!({ "events_default": 10 })).unwrap(),
        creation_content: serde_json::from_value(json!({ "type": "m.space", "room_version": "1" })).unwrap(),
        invite: vec![(user("bob"), profile("bob"))],
        ..CreateRoom::new(user("alice"))
    };
    let room = world.rooms.create(&create, Commit::new()).await.unwrap().room_id;
    let kinds: Vec<String> = world.timeline(&room).await.into_iter().map(|(kind, _)| kind).collect();
    let expected = [
        "create",
        "member",
        "power_levels",
        "canonical_alias",
        "join_rules",
        "guest_access",
        "encryption",
        "history_visibility",
        "name",
        "topic",
        "member",
    ];
    assert_eq!(kinds, expected.map(|kind| format!("m.room.{kind}")));
    assert_eq!(world.state(&room, "m.room.power_levels", "").await.unwrap()["events_default"], 10);
    let created = world.state(&room, "m.room.create", "").await.unwrap();
    assert_eq!((created["type"].as_str(), created["room_version"].as_str()), (Some("m.space"), Some("12")));
    let taken = world.rooms.create(&create, Commit::new()).await;
    assert!(matches!(taken, Err(CreateError::AliasTaken(_))), "{taken:?}");
}

#[tokio::test]
async fn what_cannot_stand_makes_no_room() {
    let world = World::new().await;
    let bad = CreateRoom {
        power_level_content_override: serde_json::from_value(
            json!({ "users": { user("alice").as_str(): 100 } }),
        )
        .unwrap(),
        ..CreateRoom::new(user("alice"))
    };
    assert!(world.rooms.create(&bad, Commit::new()).await.is_err(), "a creator in the levels of version 12");
    let unknown = CreateRoom {
        version: RoomVersionId::try_from("org.example.99").unwrap(),
        ..CreateRoom::new(user("alice"))
    };
    assert!(matches!(
        world.rooms.create(&unknown, Commit::new()).await,
        Err(CreateError::UnsupportedVersion(_))
    ));
    let rows = world
        .store
        .range(&tables::ROOMS, tables::ROOMS.all(), hearth_store::Order::Forward, 10)
        .await
        .unwrap();
    assert!(rows.is_empty());
}

#[tokio::test]
async fn many_invites_and_much_state_go_into_several_commits() {
    let world = World::new().await;
    let create = CreateRoom {
        invite: (0..100).map(|n| (user(&format!("guest{n}")), profile("guest"))).collect(),
        initial_state: (0..100)
            .map(|n| InitialState {
                kind: "org.example".into(),
                state_key: n.to_string(),
                content: to_raw_value(&json!({ "long": "x".repeat(20_000) })).unwrap(),
            })
            .collect(),
        ..CreateRoom::new(user("alice"))
    };
    let room = world.rooms.create(&create, Commit::new()).await.unwrap().room_id;
    let info = world.rooms.room(&room).await.unwrap().unwrap();
    let head = world.rooms.head(info.sn).await.unwrap().unwrap().value;
    assert_eq!((head.joined, head.invited), (1, 100));
    assert_eq!(world.timeline(&room).await.len(), 6 + 200);
    world.say("alice", &room, "welcome").await.unwrap();
}
