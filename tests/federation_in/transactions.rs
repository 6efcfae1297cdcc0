//! Transactions: events that come in order, out of order, with gaps, again; and what is not kept.

use hearth::testing::{TestServer, TestUser, encoded};
use hearth_store::{Order, Store};
use hearth_users::tables::{REMOTE_DEVICES, REMOTE_SIGNING_KEYS};
use ruma::UserId;
use serde_json::{Value, json};

use crate::world::*;

/// A room of Bob's server, in which Alice of ours is. Bob's server does not send by itself what a story sends.
async fn story() -> (TestServer, TestServer, TestUser, TestUser, String) {
    let (here, there) = two().await;
    let (alice, bob) = (here.user("alice").await, there.user("bob").await);
    let room = bob.creates_a_public_room().await;
    joins(&alice, &room, &there).await;
    (here, there, alice, bob, room)
}

/// Hands events of a room from one server to another.
async fn hands(from: &TestServer, to: &TestServer, room: &str, events: &[&String]) -> Value {
    let mut pdus = Vec::new();
    for event in events {
        pdus.push(pdu(from, room, event).await);
    }
    let body =
        format!(r#"{{"origin":"{}","origin_server_ts":5,"pdus":[{}]}}"#, name_of(from), pdus.join(","));
    let txn = format!("hand{}", to.fresh());
    let answer = from.app.federation.client().send_transaction(name_of(to), &txn, &body).await.unwrap();
    let errors =
        answer.pdus.into_iter().filter_map(|(event, done)| Some((event.to_string(), json!(done.error?))));
    Value::Object(errors.collect())
}

async fn says(bob: &TestUser, room: &str, count: usize) -> Vec<String> {
    let mut said = Vec::new();
    for number in 0..count {
        said.push(bob.says(room, &number.to_string()).await);
    }
    said
}

#[tokio::test]
async fn events_are_taken_in_whatever_order_a_transaction_has_them() {
    let (here, there, alice, bob, room) = story().await;
    let said = says(&bob, &room, 6).await;
    let order = [2, 0, 1, 5, 4, 3].map(|place| &said[place]);
    assert_eq!(hands(&there, &here, &room, &order).await, json!({}));
    until("all events are there", async || has_all(&here, &room, &said).await).await;
    let shown =
        alice.get(&format!("/_matrix/client/v3/rooms/{}/messages?dir=b&limit=3", encoded(&room))).await.ok();
    assert_eq!(shown["chunk"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn what_lies_between_is_fetched() {
    let (here, there, _, bob, room) = story().await;
    let said = says(&bob, &room, 30).await;
    assert_eq!(hands(&there, &here, &room, &[&said[29]]).await, json!({}));
    until("the gap is closed", async || has_all(&here, &room, &said).await).await;
    assert_eq!(here.app.rooms.rooms_with_queues().await.unwrap(), Vec::<ruma::OwnedRoomId>::new());
}

#[tokio::test]
async fn behind_a_deep_gap_a_room_goes_on_with_its_state() {
    let (here, there, _, bob, room) = story().await;
    bob.sets(&room, "m.room.topic", "", json!({ "topic": "before" })).await;
    // So many that it is cheaper to ask for the whole state than for each event that is lacking.
    for number in 0..120 {
        there.user(&format!("guest{number}")).await.joins(&room).await;
    }
    let said = says(&bob, &room, 300).await;
    bob.sets(&room, "m.room.topic", "", json!({ "topic": "after" })).await;
    let carol = there.user("carol").await;
    carol.joins(&room).await;
    let last = carol.says(&room, "last").await;
    assert_eq!(hands(&there, &here, &room, &[&last]).await, json!({}));
    until("the last event is there", async || has(&here, &room, &last).await).await;
    until("the state is the same", async || state_of(&here, &room).await == state_of(&there, &room).await)
        .await;
    assert!(!has(&here, &room, &said[0]).await, "nobody fetches all of it at once");
}

/// Members come, go and come again while the other server is not heard; then the newest event comes first and older ones
/// after it. Whatever was in force in between, in the end both know the same members, also where these are kept in lists.
#[tokio::test]
async fn after_a_gap_the_members_are_those_of_the_other_server() {
    let (here, there, alice, bob, room) = story().await;
    let mut said = Vec::new();
    for number in 0..24 {
        let guest = there.user(&format!("guest{number}")).await;
        guest.joins(&room).await;
        said.push(bob.says(&room, &number.to_string()).await);
        if number % 2 == 0 {
            guest.leaves(&room).await;
        }
        if number % 6 == 0 {
            guest.joins(&room).await;
        }
        said.push(bob.says(&room, &format!("after {number}")).await);
    }
    for event in [&said[47], &said[10], &said[30], &said[20], &said[46]] {
        assert_eq!(hands(&there, &here, &room, &[event]).await, json!({}));
    }
    until("the newest event is there", async || has(&here, &room, &said[47]).await).await;
    until("nothing waits any more", async || {
        here.app.rooms.rooms_with_queues().await.unwrap().is_empty()
            && state_of(&here, &room).await == state_of(&there, &room).await
    })
    .await;
    let members = async |user: &TestUser| {
        let path = format!("/_matrix/client/v3/rooms/{}/joined_members", encoded(&room));
        let joined = user.get(&path).await.ok()["joined"].clone();
        joined.as_object().unwrap().keys().cloned().collect::<Vec<_>>()
    };
    assert_eq!(members(&alice).await, members(&bob).await);
    assert_eq!(members(&alice).await.len(), 2 + 12 + 4);
    let counted = alice.get("/_matrix/client/v3/sync").await.ok();
    assert_eq!(counted["rooms"]["join"][&room]["summary"]["m.joined_member_count"], 2 + 12 + 4);
}

#[tokio::test]
async fn what_waits_is_taken_up_after_a_restart() {
    let network = hearth::testing::TestNetwork::default();
    let there = server_in(&network, "there.test").await;
    let store = Store::memory().await;
    let here = server_on(&network, "here.test", store.clone()).await;
    let (alice, bob) = (here.user("alice").await, there.user("bob").await);
    let room = bob.creates_a_public_room().await;
    joins(&alice, &room, &there).await;
    let said = says(&bob, &room, 3).await;
    let rules = here.app.rooms.room(room.as_str().try_into().unwrap()).await.unwrap().unwrap().rules;
    let last = hearth_dag::ReceivedPdu::parse(rules, &pdu(&there, &room, &said[2]).await).unwrap();
    here.app.rooms.enqueue(&last.trust_signatures(rules), name_of(&there)).await.unwrap();
    drop((alice, here));

    let here = server_on(&network, "here.test", store).await;
    here.app.inbound.resume().await.unwrap();
    until("the gap is closed", async || has_all(&here, &room, &said).await).await;
}

#[tokio::test]
async fn a_transaction_counts_once() {
    let (here, _) = two().await;
    let alice = here.user("alice").await;
    let remote = Remote::new(&here, "remote.test");
    let room = alice.creates_a_public_room().await;
    let mut seen = remote.joins("bob", &room).await;
    let (one, two) = (remote.says(&mut seen, "bob", "one"), remote.says(&mut seen, "bob", "two"));
    let body = |pdu: &Value| json!({ "origin": "remote.test", "origin_server_ts": 5, "pdus": [pdu] });
    let path = "/_matrix/federation/v1/send/same";
    let (body_one, body_two) = (body(&one), body(&two));
    let asked = [remote.put(path, &body_one), remote.put(path, &body_one)];
    let answers = futures_util::future::join_all(asked).await;
    assert_eq!(answers[0].ok(), answers[1].ok());
    assert_eq!(answers[0].ok(), json!({ "pdus": { seen.id_of(&one): {} } }));
    assert_eq!(remote.put(path, &body_two).await.ok(), answers[0].ok(), "it is the same transaction");
    assert!(!has(&here, &room, &seen.id_of(&two)).await);
    // Ids are each server's own.
    let other = Remote::new(&here, "other.test");
    let body = json!({ "origin": "other.test", "origin_server_ts": 5, "pdus": [] });
    assert_eq!(other.put(path, &body).await.ok(), json!({ "pdus": {} }));
}

#[tokio::test]
async fn rooms_with_many_forks_are_joined() {
    let (here, _) = two().await;
    let alice = here.user("alice").await;
    let remote = Remote::new(&here, "remote.test");
    let room = alice.creates_a_public_room().await;
    let mut seen = remote.joins("bob", &room).await;
    let base = (seen.last.clone(), seen.depth);
    let mut forks = Vec::new();
    for number in 0..15 {
        (seen.last, seen.depth) = base.clone();
        forks.push(remote.says(&mut seen, "bob", &number.to_string()));
    }
    remote.sends(&forks, &[]).await.ok();
    let info = here.app.rooms.room(room.as_str().try_into().unwrap()).await.unwrap().unwrap();
    until("there is one end", async || {
        here.app.rooms.head(info.sn).await.unwrap().unwrap().value.extremities.len() == 1
    })
    .await;
}

#[tokio::test]
async fn edus_of_a_servers_own_users_are_shown() {
    let (here, _) = two().await;
    let alice = here.user("alice").await;
    let remote = Remote::new(&here, "remote.test");
    let room = alice.creates_a_public_room().await;
    remote.joins("bob", &room).await;
    let said = alice.says(&room, "hello").await;
    let typing = |room: &str, user: &str, typing: bool| json!({ "edu_type": "m.typing", "content": { "room_id": room, "user_id": user, "typing": typing } });
    let receipt = |user: &str, event: &str| {
        let of_user = json!({ user: { "event_ids": [event], "data": { "ts": 7 } } });
        json!({ "edu_type": "m.receipt", "content": { &room: { "m.read": of_user } } })
    };
    let presence = |user: &str| {
        let one =
            json!({ "user_id": user, "presence": "online", "last_active_ago": 3, "status_msg": "here" });
        json!({ "edu_type": "m.presence", "content": { "push": [one] } })
    };
    let bob = "@bob:remote.test";
    let edus = [
        typing(&room, bob, true),
        typing(&room, "@stranger:remote.test", true),
        typing(&room, "@alice:here.test", true),
        typing("!none:here.test", bob, true),
        receipt(bob, &said),
        receipt("@alice:here.test", &said),
        receipt("@stranger:remote.test", &said),
        presence(bob),
        presence("@alice:here.test"),
        json!({ "edu_type": "m.unheard_of", "content": {} }),
        json!({ "edu_type": "m.typing", "content": [] }),
        json!({ "edu_type": 5 }),
        json!("no EDU"),
    ];
    remote.sends(&[], &edus).await.ok();
    let users = &here.app.users;
    let room_id = room.as_str().try_into().unwrap();
    assert_eq!(users.typing().users(room_id), [bob]);
    let watermark = here.app.store.watermark();
    let receipts = users.receipts_since(room_id, &alice.user_id, None, watermark).await.unwrap();
    let of: Vec<_> =
        receipts.iter().map(|receipt| (receipt.user_id.as_str(), receipt.event_id.as_str())).collect();
    assert_eq!(of, [(bob, said.as_str())]);
    let bobs = users.presence().of(<&UserId>::try_from(bob).unwrap());
    assert_eq!((bobs.presence.as_str(), bobs.status_msg.as_deref()), ("online", Some("here")));
    assert_eq!(users.presence().of(&alice.user_id).status_msg, None);

    remote.sends(&[], &[typing(&room, bob, false)]).await.ok();
    assert!(users.typing().users(room_id).is_empty());
    // What the room keeps out is not shown either.
    alice.sets(&room, "m.room.server_acl", "", json!({ "allow": ["here.test"] })).await;
    remote.sends(&[], &[typing(&room, bob, true)]).await.ok();
    assert!(users.typing().users(room_id).is_empty());
}

#[tokio::test]
async fn what_is_told_for_encryption_is_kept_and_messages_reach_the_device() {
    let (here, _) = two().await;
    let alice = here.user("alice").await;
    let desk = here.device(&alice.user_id, "DESK").await;
    let remote = Remote::new(&here, "remote.test");
    let room = alice.creates_a_public_room().await;
    remote.joins("bob", &room).await;
    let sync = async |since: &str| desk.get(&format!("/_matrix/client/v3/sync?since={since}")).await.ok();
    let first = desk.get("/_matrix/client/v3/sync").await.ok();

    let message = |sender: &str, id: &str, n: u8| {
        let messages = json!({
            alice.user_id.as_str(): { "DESK": { "n": n }, "NONE": {} },
            "@x:elsewhere.test": { "*": {} },
        });
        let content = json!({ "sender": sender, "type": "m.test", "message_id": id, "messages": messages });
        json!({ "edu_type": "m.direct_to_device", "content": content })
    };
    let device = |user: &str, id: &str, stream_id: u64, prev_id: &[u64]| {
        let keys = json!({ "user_id": user, "device_id": id, "keys": {} });
        let mut content = json!({ "user_id": user, "device_id": id, "keys": keys });
        content["stream_id"] = json!(stream_id);
        content["prev_id"] = json!(prev_id);
        json!({ "edu_type": "m.device_list_update", "content": content })
    };
    let signing = |user: &str| {
        let content = json!({ "user_id": user, "master_key": { "user_id": user, "usage": ["master"] } });
        json!({ "edu_type": "m.signing_key_update", "content": content })
    };
    let bob = "@bob:remote.test";
    let edus = [
        message(bob, "1", 1),
        message(bob, "1", 1),
        message("@bob:elsewhere.test", "2", 2),
        json!({ "edu_type": "m.direct_to_device", "content": { "sender": bob } }),
        device(bob, "TABLET", 3, &[]),
        device(bob, "PHONE", 4, &[3]),
        device("@stranger:remote.test", "PHONE", 1, &[]),
        device("@bob:elsewhere.test", "PHONE", 1, &[]),
        signing(bob),
        signing("@stranger:remote.test"),
    ];
    remote.sends(&[], &edus).await.ok();
    let told = sync(first["next_batch"].as_str().unwrap()).await;
    let shown = json!([{ "type": "m.test", "sender": bob, "content": { "n": 1 } }]);
    assert_eq!(told["to_device"]["events"], shown);
    let again = sync(told["next_batch"].as_str().unwrap()).await;
    assert_eq!(again.get("to_device"), None);

    let store = &here.app.store;
    let rows = store.range(&REMOTE_DEVICES, REMOTE_DEVICES.all(), Order::Forward, 10).await.unwrap();
    let devices: Vec<_> = rows.iter().map(|((user, device), _)| (user.as_str(), device.as_str())).collect();
    assert_eq!(devices, [(bob, "PHONE"), (bob, "TABLET")]);
    let list = here.app.users.remote_device_list(bob.try_into().unwrap()).await.unwrap().unwrap();
    assert_eq!((list.stream_id, list.devices), (4, 2));
    assert!(list.is_stale, "the first change names none before it");
    let keys =
        store.range(&REMOTE_SIGNING_KEYS, REMOTE_SIGNING_KEYS.all(), Order::Forward, 10).await.unwrap();
    assert_eq!(keys.len(), 1);
}

#[tokio::test]
async fn users_without_keys_have_none_to_tell() {
    let (here, _) = two().await;
    let alice = here.user("alice").await;
    let remote = Remote::new(&here, "remote.test");
    let asked = json!({ "device_keys": { alice.user_id.as_str(): [], "@nobody:here.test": [] } });
    let told = remote.post("/_matrix/federation/v1/user/keys/query", &asked).await.ok();
    assert_eq!(told, json!({ "device_keys": { alice.user_id.as_str(): {} } }));
    let claim = json!({ "one_time_keys": { alice.user_id.as_str(): { "DESK": "signed_curve25519" } } });
    let told = remote.post("/_matrix/federation/v1/user/keys/claim", &claim).await.ok();
    assert_eq!(told, json!({ "one_time_keys": {} }));
    let others = json!({ "device_keys": { "@x:elsewhere.test": [] } });
    let refused = remote.post("/_matrix/federation/v1/user/keys/query", &others).await;
    refused.refused(400, "M_INVALID_PARAM");
}
