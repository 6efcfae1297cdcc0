//! The shortest story: a room is made, someone joins, both talk, and it is all there after a restart.

use crate::support::World;
use hearth_rooms::Preset;
use hearth_store::{Store, StoreOptions};

#[tokio::test]
async fn a_room_is_made_joined_and_talked_in() {
    let world = World::new().await;
    let room = world.room("alice", Preset::PublicChat).await;
    world.join("bob", &room).await.unwrap();
    world.say("bob", &room, "hello").await.unwrap();
    let kinds: Vec<String> = world.timeline(&room).await.into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(
        kinds,
        [
            "m.room.create",
            "m.room.member",
            "m.room.power_levels",
            "m.room.join_rules",
            "m.room.history_visibility",
            "m.room.member",
            "m.room.message"
        ]
    );
    assert_eq!(world.membership(&room, "bob").await.as_deref(), Some("join"));
    assert!(world.say("carol", &room, "let me in").await.is_err());
}

#[tokio::test]
async fn everything_is_there_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let options = StoreOptions { disk_reserve: 0, ..StoreOptions::default() };
    let room;
    {
        let world = World::on(Store::open_sled(directory.path(), options.clone()).await.unwrap());
        room = world.room("alice", Preset::PublicChat).await;
        world.join("bob", &room).await.unwrap();
        world.say("bob", &room, "before").await.unwrap();
        let World { rooms, store } = world;
        drop(rooms);
        store.close().await;
    }
    let world = World::on(Store::open_sled(directory.path(), options).await.unwrap());
    world.say("bob", &room, "after").await.unwrap();
    let events = world.events(&room).await;
    let bodies: Vec<&str> = events.iter().rev().take(2).map(|event| event.pdu.content_json()).collect();
    assert_eq!(bodies, [r#"{"body":"after","msgtype":"m.text"}"#, r#"{"body":"before","msgtype":"m.text"}"#]);
    let head = world.rooms.room(&room).await.unwrap().unwrap().sn;
    assert_eq!(world.rooms.head(head).await.unwrap().unwrap().value.joined, 2);
}
