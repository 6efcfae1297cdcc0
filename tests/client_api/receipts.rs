//! Receipts, read markers, typing.

use hearth::testing::{TestServer, TestUser, encoded};
use serde_json::{Value, json};

fn in_room(room: &str, rest: &str) -> String {
    format!("/_matrix/client/v3/rooms/{}/{rest}", encoded(room))
}

fn receipt(room: &str, kind: &str, event: &str) -> String {
    in_room(room, &format!("receipt/{kind}/{}", encoded(event)))
}

async fn room_news(user: &TestUser, room: &str) -> Value {
    let answer = user.get("/_matrix/client/v3/sync?set_presence=offline").await.ok();
    answer["rooms"]["join"][room].clone()
}

fn content<'a>(events: &'a Value, kind: &str) -> &'a Value {
    let events = events["events"].as_array();
    let found = events.and_then(|events| events.iter().find(|event| event["type"] == kind));
    found.map_or(&Value::Null, |event| &event["content"])
}

#[tokio::test]
async fn receipts_are_shown_to_those_they_are_for() {
    let server = TestServer::start().await;
    let (alice, bob, eve) = (server.user("alice").await, server.user("bob").await, server.user("eve").await);
    let room = alice.creates_a_public_room().await;
    bob.joins(&room).await;
    let (first, second) = (alice.says(&room, "one").await, alice.says(&room, "two").await);
    assert_eq!(room_news(&bob, &room).await["unread_notifications"]["notification_count"], 2);
    bob.post(&receipt(&room, "m.read", &first), json!({})).await.ok();
    bob.post(&receipt(&room, "m.read.private", &second), json!({})).await.ok();
    let bobs = room_news(&bob, &room).await;
    assert_eq!(bobs["unread_notifications"]["notification_count"], 0);
    let seen = content(&bobs["ephemeral"], "m.receipt");
    assert!(seen[&first]["m.read"]["@bob:hearth.test"]["ts"].is_u64(), "{seen}");
    assert!(seen[&second]["m.read.private"]["@bob:hearth.test"]["ts"].is_u64(), "{seen}");
    let alices = room_news(&alice, &room).await;
    let seen = content(&alices["ephemeral"], "m.receipt");
    assert!(seen[&first]["m.read"]["@bob:hearth.test"]["ts"].is_u64(), "{seen}");
    assert_eq!(seen[&second]["m.read.private"]["@bob:hearth.test"], Value::Null);

    eve.post(&receipt(&room, "m.read", &first), json!({})).await.refused(403, "M_FORBIDDEN");
    bob.post(&receipt(&room, "m.seen", &first), json!({})).await.refused(400, "M_INVALID_PARAM");
    for thread in ["", "nonsense"] {
        let threaded = json!({ "thread_id": thread });
        bob.post(&receipt(&room, "m.read", &first), threaded).await.refused(400, "M_INVALID_PARAM");
    }
    bob.post(&receipt(&room, "m.read", &first), json!({ "thread_id": 1 })).await.refused(400, "M_BAD_JSON");
    // The event is not in that thread.
    let elsewhere = json!({ "thread_id": second });
    bob.post(&receipt(&room, "m.read", &first), elsewhere).await.refused(400, "M_INVALID_PARAM");
    let marker = json!({ "thread_id": "main" });
    bob.post(&receipt(&room, "m.fully_read", &first), marker).await.refused(400, "M_INVALID_PARAM");
}

#[tokio::test]
async fn of_two_receipts_for_an_event_the_one_for_all_threads_is_shown() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = alice.creates_a_public_room().await;
    bob.joins(&room).await;
    let event = alice.says(&room, "one").await;
    for first in [json!({}), json!({ "thread_id": "main" })] {
        let second = if first["thread_id"].is_null() { json!({ "thread_id": "main" }) } else { json!({}) };
        bob.post(&receipt(&room, "m.read", &event), first).await.ok();
        bob.post(&receipt(&room, "m.read", &event), second).await.ok();
        let news = room_news(&alice, &room).await;
        let seen = &content(&news["ephemeral"], "m.receipt")[&event]["m.read"]["@bob:hearth.test"];
        assert!(seen["ts"].is_u64() && seen["thread_id"].is_null(), "{seen}");
    }
}

#[tokio::test]
async fn a_read_marker_is_the_users_own_and_moves_with_receipts() {
    let server = TestServer::start().await;
    let (alice, bob, eve) = (server.user("alice").await, server.user("bob").await, server.user("eve").await);
    let room = alice.creates_a_public_room().await;
    bob.joins(&room).await;
    let event = alice.says(&room, "one").await;
    let markers = in_room(&room, "read_markers");
    bob.post(&markers, json!({ "m.fully_read": event, "m.read": event })).await.ok();
    let bobs = room_news(&bob, &room).await;
    assert_eq!(content(&bobs["account_data"], "m.fully_read"), &json!({ "event_id": event }));
    assert!(content(&bobs["ephemeral"], "m.receipt")[&event]["m.read"]["@bob:hearth.test"].is_object());
    assert_eq!(content(&room_news(&alice, &room).await["account_data"], "m.fully_read"), &Value::Null);
    let next = alice.says(&room, "two").await;
    bob.post(&receipt(&room, "m.fully_read", &next), json!({})).await.ok();
    let bobs = room_news(&bob, &room).await;
    assert_eq!(content(&bobs["account_data"], "m.fully_read"), &json!({ "event_id": next }));
    eve.post(&markers, json!({ "m.read": event })).await.refused(403, "M_FORBIDDEN");
    bob.post(&markers, json!({ "m.read": 5 })).await.refused(400, "M_BAD_JSON");
}

#[tokio::test]
async fn who_types_is_shown_until_they_stop_or_send() {
    let server = TestServer::start().await;
    let (alice, bob, eve) = (server.user("alice").await, server.user("bob").await, server.user("eve").await);
    let room = alice.creates_a_public_room().await;
    bob.joins(&room).await;
    let typing = |user: &TestUser| in_room(&room, &format!("typing/{}", encoded(user.user_id.as_str())));
    let seen = async || {
        let news = room_news(&alice, &room).await;
        content(&news["ephemeral"], "m.typing")["user_ids"].clone()
    };
    for stop in ["say so", "send"] {
        bob.put(&typing(&bob), json!({ "typing": true, "timeout": 30_000 })).await.ok();
        assert_eq!(seen().await, json!(["@bob:hearth.test"]));
        match stop {
            "send" => drop(bob.says(&room, "typed").await),
            _ => drop(bob.put(&typing(&bob), json!({ "typing": false })).await.ok()),
        }
        let left = seen().await;
        assert!(left.is_null() || left == json!([]), "{stop}: {left}");
    }
    bob.put(&typing(&alice), json!({ "typing": true })).await.refused(403, "M_FORBIDDEN");
    eve.put(&typing(&eve), json!({ "typing": true })).await.refused(403, "M_FORBIDDEN");
    bob.put(&typing(&bob), json!({})).await.refused(400, "M_MISSING_PARAM");
    bob.put(&typing(&bob), json!({ "typing": "yes" })).await.refused(400, "M_BAD_JSON");
}
