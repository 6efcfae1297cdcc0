//! Messages, state, redactions, relations, transaction ids.

use hearth_rooms::*;
use hearth_store::{Commit, Order, Store, StoreOptions};
use ruma::OwnedEventId;
use serde_json::json;

use crate::gate::Gate;
use crate::remote::peer;
use crate::support::{World, event, message, txn, user};

fn is_forbidden<T>(result: &Result<T, SendError>) -> bool {
    matches!(result, Err(SendError::Write(WriteError::Forbidden(_))))
}

#[tokio::test]
async fn a_repeated_transaction_is_the_same_event() {
    let world = World::new().await;
    let room = world.room("alice", Preset::PublicChat).await;
    let once = Send { txn: txn("alice", "t1"), ..message("alice", &room, "once") };
    let first = world.rooms.send(&once, Commit::new()).await.unwrap();
    let again = world.rooms.send(&once, Commit::new()).await.unwrap();
    assert_eq!(first.event_id, again.event_id);
    assert!(first.position.is_some() && again.position.is_none());
    let stored = world.by_id(&room, &first.event_id).await;
    let sent_by = stored.header.transaction.clone().unwrap();
    assert_eq!((sent_by.device_id.as_str(), sent_by.transaction_id.as_str()), ("PHONE", "t1"));
    let elsewhere = Send { txn: txn("bob", "t1"), ..message("alice", &room, "other user") };
    assert_ne!(world.rooms.send(&elsewhere, Commit::new()).await.unwrap().event_id, first.event_id);
}

#[tokio::test]
async fn concurrent_repeats_make_one_event_and_none_waits_for_the_disk_of_another() {
    let (gate, store) = Gate::before(&Store::memory().await).await;
    let world = World::on(store);
    let room = world.room("alice", Preset::PublicChat).await;
    let before = world.events(&room).await.len();
    let sends: Vec<Send> = (0..400)
        .map(|n| Send { txn: txn("alice", &format!("t{}", n / 4)), ..message("alice", &room, "hi") })
        .collect();
    gate.close();
    let all = futures_util::future::join_all(sends.iter().map(|send| world.rooms.send(send, Commit::new())));
    let mut all = std::pin::pin!(all);
    for _ in 0..10_000 {
        assert!(futures_util::poll!(&mut all).is_pending(), "nothing is answered before it is on the disk");
        tokio::task::yield_now().await;
    }
    // All are decided, a commit for each event and none for a repeat, before the first is on the disk.
    assert_eq!(gate.held(), 100);
    assert_eq!(world.events(&room).await.len(), before);
    gate.let_through(100).await;
    let sent = all.await;
    assert_eq!(gate.held(), 0);
    let ids: Vec<OwnedEventId> = sent.into_iter().map(|sent| sent.unwrap().event_id).collect();
    for repeats in ids.chunks(4) {
        assert!(repeats.iter().all(|id| *id == repeats[0]));
    }
    assert_eq!(world.events(&room).await.len(), before + 100);
    // Each event follows the one before it: a chain, no forks.
    let events = world.events(&room).await;
    for pair in events.windows(2) {
        assert_eq!(pair[1].pdu.prev_events(), [pair[0].header.event_id.clone()]);
    }
}

#[tokio::test]
async fn other_facts_are_written_with_the_event() {
    const NOTES: hearth_store::Table<String, String> =
        hearth_store::Table::new("notes", hearth_store::Space(0xf0));
    let world = World::new().await;
    let room = world.room("alice", Preset::PublicChat).await;
    let mut also = Commit::new();
    also.put(&NOTES, &"draft".into(), &"sent".into());
    world.rooms.send(&message("alice", &room, "hi"), also.clone()).await.unwrap();
    assert_eq!(world.store.get(&NOTES, &"draft".into()).await.unwrap().as_deref(), Some("sent"));
    also.expect_absent(&NOTES, &"draft".into());
    let events = world.events(&room).await.len();
    assert!(world.rooms.send(&message("alice", &room, "never"), also).await.is_err());
    assert_eq!(world.events(&room).await.len(), events);
    world.say("alice", &room, "goes on").await.unwrap();
}

#[tokio::test]
async fn power_levels_are_kept() {
    let world = World::new().await;
    let room = world.room("alice", Preset::PublicChat).await;
    world.join("bob", &room).await.unwrap();
    assert!(is_forbidden(&world.set("bob", &room, "m.room.name", "", json!({ "name": "Bob's" })).await));
    let mut levels = world.state(&room, "m.room.power_levels", "").await.unwrap();
    levels["users"][user("bob").as_str()] = json!(50);
    world.set("alice", &room, "m.room.power_levels", "", levels.clone()).await.unwrap();
    world.set("bob", &room, "m.room.name", "", json!({ "name": "Bob's" })).await.unwrap();
    levels["users"][user("bob").as_str()] = json!(100);
    assert!(is_forbidden(&world.set("bob", &room, "m.room.power_levels", "", levels).await));
    let state_key = user("alice");
    assert!(is_forbidden(&world.set("bob", &room, "org.example", state_key.as_str(), json!({})).await));
}

#[tokio::test]
async fn state_that_is_there_makes_no_event() {
    let world = World::new().await;
    let room = world.room("alice", Preset::PublicChat).await;
    let first = world.set("alice", &room, "m.room.name", "", json!({ "name": "A", "x": 1 })).await.unwrap();
    let same = world.set("alice", &room, "m.room.name", "", json!({ "x": 1, "name": "A" })).await.unwrap();
    assert_eq!((same.event_id, same.position), (first.event_id.clone(), None));
    let other = world.set("alice", &room, "m.room.name", "", json!({ "name": "B" })).await.unwrap();
    let stored = world.by_id(&room, &other.event_id).await;
    assert_eq!(stored.header.replaces, Some(world.by_id(&room, &first.event_id).await.sn));
}

#[tokio::test]
async fn canonical_aliases_must_lead_here() {
    let world = World::new().await;
    let room = world.room("alice", Preset::PublicChat).await;
    let set = async |content| world.set("alice", &room, "m.room.canonical_alias", "", content).await;
    let unknown = set(json!({ "alias": "#nowhere:hearth.test" })).await;
    assert!(matches!(unknown, Err(SendError::BadAlias(_))), "{unknown:?}");
    assert!(matches!(set(json!({ "alt_aliases": ["hash"] })).await, Err(SendError::MalformedAlias(_))));
    set(json!({})).await.unwrap();
}

#[tokio::test]
async fn redactions_hold_at_once_and_later_in_the_bytes() {
    let world = World::new().await;
    let room = world.room("alice", Preset::PublicChat).await;
    world.join("bob", &room).await.unwrap();
    world.join("carol", &room).await.unwrap();
    let secret = world.say("bob", &room, "secret").await.unwrap().event_id;
    let redact = |by: &str, target: &OwnedEventId| Send {
        redacts: Some(target.clone()),
        ..event(by, &room, "m.room.redaction", json!({ "reason": "no" }))
    };
    let by_carol = world.rooms.send(&redact("carol", &secret), Commit::new()).await;
    assert!(matches!(by_carol, Err(SendError::CannotRedact)), "{by_carol:?}");
    let unknown = OwnedEventId::try_from("$unknown").unwrap();
    assert!(matches!(
        world.rooms.send(&redact("alice", &unknown), Commit::new()).await,
        Err(SendError::UnknownTarget)
    ));
    // In a shared room another server may have what is not here, and who may redact anything may redact that.
    let shared = world.room("alice", Preset::PublicChat).await;
    world.join("carol", &shared).await.unwrap();
    peer().join(&world, "ben", &shared).await;
    let redact_there = |by: &str| Send {
        redacts: Some(unknown.clone()),
        ..event(by, &shared, "m.room.redaction", json!({ "reason": "no" }))
    };
    world.rooms.send(&redact_there("alice"), Commit::new()).await.unwrap();
    let by_carol = world.rooms.send(&redact_there("carol"), Commit::new()).await;
    assert!(matches!(by_carol, Err(SendError::UnknownTarget)), "{by_carol:?}");
    let redaction = world.rooms.send(&redact("alice", &secret), Commit::new()).await.unwrap();
    let event = world.by_id(&room, &secret).await;
    assert_eq!(event.pdu.content_json(), "{}");
    let info = world.rooms.room(&room).await.unwrap().unwrap();
    let because = redacted_because(&world.rooms, &info, &event).await.unwrap().unwrap();
    assert_eq!(because.header.event_id, redaction.event_id);
    world.rooms.replace_redacted().await.unwrap();
    let row = world.store.get(&tables::EVENTS, &(info.sn, event.sn)).await.unwrap().unwrap();
    assert!(!std::str::from_utf8(&row.body).unwrap().contains("secret"));
    let waiting =
        world.store.range(&tables::TO_REDACT, tables::TO_REDACT.all(), Order::Forward, 9).await.unwrap();
    assert!(waiting.is_empty());
    assert_eq!(world.by_id(&room, &secret).await.pdu.content_json(), "{}");
    world.say("bob", &room, "goes on").await.unwrap();
}

#[tokio::test]
async fn a_redacted_name_leaves_the_list_of_members() {
    let world = World::new().await;
    let room = world.room("alice", Preset::PublicChat).await;
    world.join("bob", &room).await.unwrap();
    let member = world.state_event(&room, "m.room.member", user("bob").as_str()).await.unwrap();
    let redaction = Send {
        redacts: Some(member.header.event_id.clone()),
        ..event("alice", &room, "m.room.redaction", json!({}))
    };
    world.rooms.send(&redaction, Commit::new()).await.unwrap();
    let info = world.rooms.room(&room).await.unwrap().unwrap();
    let row = world.store.get(&tables::MEMBERS, &(info.sn, user("bob").to_string())).await.unwrap().unwrap();
    assert_eq!((row.value.membership, row.value.display_name), (Membership::Join, None));
    world.say("bob", &room, "still here").await.unwrap();
}

#[tokio::test]
async fn reactions_count_once_until_redacted() {
    let world = World::new().await;
    let room = world.room("alice", Preset::PublicChat).await;
    let target = world.say("alice", &room, "hi").await.unwrap().event_id;
    let reaction =
        |key: &str| json!({ "m.relates_to": { "rel_type": "m.annotation", "event_id": target, "key": key } });
    let first = world.send("alice", &room, "m.reaction", reaction("👍")).await.unwrap();
    assert!(matches!(
        world.send("alice", &room, "m.reaction", reaction("👍")).await,
        Err(SendError::DuplicateAnnotation)
    ));
    world.send("alice", &room, "m.reaction", reaction("👎")).await.unwrap();
    let redaction =
        Send { redacts: Some(first.event_id), ..event("alice", &room, "m.room.redaction", json!({})) };
    world.rooms.send(&redaction, Commit::new()).await.unwrap();
    world.send("alice", &room, "m.reaction", reaction("👍")).await.unwrap();
}

#[tokio::test]
async fn threads_are_counted_and_do_not_nest() {
    let world = World::new().await;
    let room = world.room("alice", Preset::PublicChat).await;
    let info = world.rooms.room(&room).await.unwrap().unwrap();
    let root = world.say("alice", &room, "root").await.unwrap().event_id;
    let root_sn = world.by_id(&room, &root).await.sn;
    let in_thread = |root: &OwnedEventId| json!({ "msgtype": "m.text", "body": "reply", "m.relates_to": { "rel_type": "m.thread", "event_id": root } });
    let mut replies = Vec::new();
    for _ in 0..3 {
        replies.push(world.send("alice", &room, "m.room.message", in_thread(&root)).await.unwrap().event_id);
    }
    assert!(matches!(
        world.send("alice", &room, "m.room.message", in_thread(&replies[0])).await,
        Err(SendError::ThreadOnRelated)
    ));
    let thread =
        async || world.store.get(&tables::THREADS, &(info.sn, root_sn)).await.unwrap().unwrap().value;
    let last = world.by_id(&room, &replies[2]).await.sn;
    assert_eq!(thread().await, tables::ThreadRow { latest: last, count: 3 });
    let order = tables::THREAD_ORDER.prefix(&info.sn);
    let order = world.store.range(&tables::THREAD_ORDER, order, Order::Forward, 10).await.unwrap();
    assert_eq!(order.len(), 1, "one place for one thread");
    let redaction =
        Send { redacts: Some(replies[2].clone()), ..event("alice", &room, "m.room.redaction", json!({})) };
    world.rooms.send(&redaction, Commit::new()).await.unwrap();
    let last = world.by_id(&room, &replies[1]).await.sn;
    assert_eq!(thread().await, tables::ThreadRow { latest: last, count: 2 });
}

#[tokio::test]
async fn events_that_are_too_large_are_refused_and_large_ones_kept() {
    let world = World::new().await;
    let room = world.room("alice", Preset::PublicChat).await;
    let long = "x".repeat(40_000);
    let sent = world.say("alice", &room, &long).await.unwrap();
    assert!(world.by_id(&room, &sent.event_id).await.pdu.content_json().contains(&long));
    let refused = world.say("alice", &room, &"x".repeat(66_000)).await;
    assert!(matches!(refused, Err(SendError::Write(WriteError::Build(_)))), "{refused:?}");
    let refused = world.set("alice", &room, "org.example", &"k".repeat(256), json!({})).await;
    assert!(matches!(refused, Err(SendError::Write(WriteError::Build(_)))), "{refused:?}");
}

#[tokio::test]
async fn a_message_is_few_and_small_rows() {
    let directory = tempfile::tempdir().unwrap();
    let options = StoreOptions { disk_reserve: 0, ..StoreOptions::default() };
    let world = World::on(Store::open_sled(directory.path(), options).await.unwrap());
    let room = world.room("alice", Preset::PublicChat).await;
    world.say("alice", &room, "warm").await.unwrap();
    let before = world.store.stats();
    const COUNT: u64 = 50;
    let mut body = 0;
    for n in 0..COUNT {
        let send =
            Send { txn: txn("alice", &n.to_string()), ..message("alice", &room, &"words ".repeat(20)) };
        let sent = world.rooms.send(&send, Commit::new()).await.unwrap();
        body += world.by_id(&room, &sent.event_id).await.pdu.bytes().len() as u64;
    }
    let after = world.store.stats();
    let (rows, bytes) = ((after.rows - before.rows) / COUNT, (after.bytes - before.bytes) / COUNT);
    println!("a message of {} bytes is {bytes} bytes in {rows} rows", body / COUNT);
    assert!(bytes <= 1500, "{bytes} bytes");
    assert!(rows <= 12, "{rows} rows");
}
