//! Which servers are in a room, which may be, and what is sent to them.

use hearth_dag::{Draft, Place, VerifiedPdu};
use hearth_rooms::serve::Acl;
use hearth_rooms::*;
use hearth_store::{Store, StreamPosition};
use ruma::{OwnedRoomId, ServerName, server_name};
use serde_json::json;

use crate::gate::Gate;
use crate::remote::{peer, third};
use crate::support::{World, event, user};

async fn servers(world: &World, room: &OwnedRoomId) -> Vec<String> {
    let room = world.rooms.room(room).await.unwrap().unwrap();
    let servers = world.rooms.servers_in_room(&room).await.unwrap();
    servers.iter().map(ToString::to_string).collect()
}

#[tokio::test]
async fn the_servers_of_a_room_follow_each_change() {
    let world = World::new().await;
    let room = world.room("alice", Preset::PublicChat).await;
    assert_eq!(servers(&world, &room).await, ["hearth.test"]);
    for name in ["bob", "ben"] {
        peer().join(&world, name, &room).await;
        assert_eq!(servers(&world, &room).await, ["hearth.test", "peer.test"]);
    }
    third().join(&world, "dora", &room).await;
    assert_eq!(servers(&world, &room).await, ["hearth.test", "peer.test", "third.test"]);
    peer().leave(&world, "bob", &room).await.unwrap();
    assert_eq!(
        servers(&world, &room).await,
        ["hearth.test", "peer.test", "third.test"],
        "ben is still there"
    );
    peer().leave(&world, "ben", &room).await.unwrap();
    assert_eq!(servers(&world, &room).await, ["hearth.test", "third.test"]);
    let ban = json!({ "membership": "ban" });
    world.set("alice", &room, "m.room.member", third().user("dora").as_str(), ban).await.unwrap();
    assert_eq!(servers(&world, &room).await, ["hearth.test"]);
    // Counted anew, by somebody who has no cache.
    peer().join(&world, "ben", &room).await;
    let again = World::on(world.store.clone());
    assert_eq!(servers(&again, &room).await, ["hearth.test", "peer.test"]);
    // A new name is no change of servers.
    let renamed = Profile { display_name: Some("Al".into()), avatar_url: None };
    let sn = world.rooms.room(&room).await.unwrap().unwrap().sn;
    world.rooms.update_profile(&user("alice"), sn, &renamed).await.unwrap();
    assert_eq!(servers(&world, &room).await, ["hearth.test", "peer.test"]);
}

#[tokio::test]
async fn each_event_goes_to_those_who_were_there_then() {
    let world = World::new().await;
    let room = world.room("alice", Preset::PublicChat).await;
    world.say("alice", &room, "alone").await.unwrap();
    peer().join(&world, "bob", &room).await;
    world.say("alice", &room, "one").await.unwrap();
    third().join(&world, "dora", &room).await;
    world.say("alice", &room, "two").await.unwrap();
    peer().leave(&world, "bob", &room).await.unwrap();
    world.say("alice", &room, "three").await.unwrap();
    // The room has gone on; each event still goes where it belongs.
    let mut found = Vec::new();
    let (mut after, mut pages) = (StreamPosition::ZERO, 0);
    loop {
        let page = world.rooms.stream_after(after, 3).await.unwrap();
        for outgoing in &page.events {
            assert!(outgoing.position > after && outgoing.position <= page.upto);
            let to: Vec<&str> =
                outgoing.destinations(world.rooms.servers()).map(ServerName::as_str).collect();
            let what = outgoing.event.pdu.content_as::<serde_json::Value>().unwrap();
            let what = what["body"].as_str().unwrap_or("member").to_owned();
            found.push(format!("{what}: {}", to.join(" ")));
        }
        after = page.upto;
        pages += 1;
        if !page.more {
            break;
        }
    }
    assert!(pages > 2);
    assert_eq!(after, world.store.watermark());
    assert_eq!(
        found,
        [
            "one: peer.test",
            "member: peer.test",
            "two: peer.test third.test",
            "member: third.test",
            "three: third.test",
        ]
    );
    // One list serves all events between two changes.
    for n in 0..3 {
        world.say("alice", &room, &n.to_string()).await.unwrap();
    }
    let page = world.rooms.stream_after(after, 100).await.unwrap();
    assert_eq!(page.events.len(), 3);
    let again = world.rooms.stream_after(page.upto, 100).await.unwrap();
    assert!(again.events.is_empty() && again.upto == page.upto && !again.more);
}

#[tokio::test]
async fn of_a_room_that_is_ours_alone_no_event_is_read() {
    let store = Store::memory().await;
    let world = World::on(store.clone());
    let alone = world.room("alice", Preset::PublicChat).await;
    let shared = world.room("alice", Preset::PublicChat).await;
    peer().join(&world, "bob", &shared).await;
    let mark = world.store.watermark();
    for n in 0..50 {
        world.say("alice", &alone, &n.to_string()).await.unwrap();
        world.say("alice", &shared, &n.to_string()).await.unwrap();
    }
    // Nothing is remembered from before.
    let (gate, gated) = Gate::before(&store).await;
    let world = World::on(gated);
    let page = world.rooms.stream_after(mark, 1_000).await.unwrap();
    assert_eq!(page.events.len(), 50);
    let key = tables::EVENTS.key_bytes(&(RoomSn(0), EventSn(0)));
    assert_eq!(gate.reads(&key), 50);
    // Who is put out is told, although nobody else is left.
    let ban = json!({ "membership": "ban" });
    world.set("alice", &shared, "m.room.member", peer().user("bob").as_str(), ban).await.unwrap();
    world.say("alice", &shared, "alone now").await.unwrap();
    let page = world.rooms.stream_after(page.upto, 1_000).await.unwrap();
    let [ban] = &page.events[..] else { panic!("{:?}", page.events) };
    let to: Vec<&str> = ban.destinations(world.rooms.servers()).map(ServerName::as_str).collect();
    assert_eq!((to, ban.event.pdu.kind().to_string()), (vec!["peer.test"], "m.room.member".to_owned()));
}

#[tokio::test]
async fn what_others_send_is_not_ours_to_send() {
    let world = World::new().await;
    let room = world.room("alice", Preset::PublicChat).await;
    third().join(&world, "dora", &room).await;
    let joined = peer().join(&world, "bob", &room).await;
    let mark = world.store.watermark();
    let info = world.rooms.room(&room).await.unwrap().unwrap();
    let auth: Vec<_> =
        ["m.room.power_levels"].into_iter().map(|kind| world.state_event(&room, kind, "")).collect();
    let mut auth: Vec<_> = futures_util::future::join_all(auth)
        .await
        .into_iter()
        .map(|event| event.unwrap().header.event_id.clone())
        .collect();
    auth.push(joined.event.event_id().to_owned());
    let message = event("bob", &room, "m.room.message", json!({ "body": "hi", "msgtype": "m.text" }));
    let draft = Draft {
        sender: peer().user("bob"),
        kind: message.kind,
        state_key: None,
        content: message.content,
        redacts: None,
    };
    let place = Place {
        room_id: Some(&room),
        prev_events: &[joined.event.event_id().to_owned()],
        auth_events: &auth,
        depth: joined.event.depth() + 1,
        origin_server_ts: joined.event.origin_server_ts(),
        hashes: None,
    };
    let key = hearth_dag::Keypair::new(peer().name, "1", &[9; 32]).unwrap();
    let pdu = draft.build(info.rules, &place, &key).unwrap();
    let received = world.rooms.receive(&VerifiedPdu::built_here(pdu)).await.unwrap();
    assert!(matches!(received, Received::Accepted(_)), "{received:?}");
    let page = world.rooms.stream_after(mark, 100).await.unwrap();
    assert!(page.events.is_empty());
    assert!(page.upto > mark, "it was looked at and passed over");
}

#[tokio::test]
async fn the_acl_is_that_of_the_room_as_it_is() {
    let world = World::new().await;
    let room = world.room("alice", Preset::PublicChat).await;
    let info = world.rooms.room(&room).await.unwrap().unwrap();
    let evil = server_name!("evil.test");
    let allows = async || world.rooms.acl(&info).await.unwrap().allows(evil);
    assert!(allows().await);
    let content = json!({ "allow": ["*"], "deny": ["evil.*"] });
    let denied = world.set("alice", &room, "m.room.server_acl", "", content).await.unwrap();
    assert!(!allows().await);
    let first: std::sync::Arc<Acl> = world.rooms.acl(&info).await.unwrap();
    world.say("alice", &room, "nothing changed").await.unwrap();
    world.set("alice", &room, "m.room.topic", "", json!({ "topic": "nor this" })).await.unwrap();
    assert!(std::sync::Arc::ptr_eq(&first, &world.rooms.acl(&info).await.unwrap()), "read once");
    world.set("alice", &room, "m.room.server_acl", "", json!({ "allow": ["*"] })).await.unwrap();
    assert!(allows().await);
    // A redacted ACL allows nobody, as one without lists does.
    let last = world.state_event(&room, "m.room.server_acl", "").await.unwrap().header.event_id.clone();
    assert_ne!(last, denied.event_id);
    let mut redact = event("alice", &room, "m.room.redaction", json!({}));
    redact.redacts = Some(last);
    world.rooms.send(&redact, hearth_store::Commit::new()).await.unwrap();
    assert!(!allows().await);
    assert!(!world.rooms.acl(&info).await.unwrap().allows(server_name!("hearth.test")));
}
