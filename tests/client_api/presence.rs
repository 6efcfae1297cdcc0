//! Presence: said, seen by those who share a room, and over when its user is gone.

use hearth::testing::{TestServer, TestUser, encoded};
use serde_json::{Value, json};

fn status(user: &TestUser) -> String {
    format!("/_matrix/client/v3/presence/{}/status", encoded(user.user_id.as_str()))
}

/// What `watcher` is told of `user` in a sync, and the token after it.
async fn told(watcher: &TestUser, user: &TestUser, since: &str) -> (Value, String) {
    let since = if since.is_empty() { String::new() } else { format!("&since={since}") };
    let answer = watcher.get(&format!("/_matrix/client/v3/sync?set_presence=offline{since}")).await.ok();
    let events = answer["presence"]["events"].as_array().cloned().unwrap_or_default();
    let event = events.into_iter().find(|event| event["sender"] == user.user_id.as_str());
    let next = answer["next_batch"].as_str().unwrap().to_owned();
    (event.map_or(Value::Null, |event| event["content"].clone()), next)
}

#[tokio::test]
async fn presence_is_seen_by_those_who_share_a_room() {
    let server = TestServer::start().await;
    let (alice, bob, eve) = (server.user("alice").await, server.user("bob").await, server.user("eve").await);
    let room = alice.creates_a_public_room().await;
    bob.joins(&room).await;
    let (_, since) = told(&alice, &bob, "").await;
    bob.put(&status(&bob), json!({ "presence": "unavailable", "status_msg": "lunch" })).await.ok();
    let seen = alice.get(&status(&bob)).await.ok();
    assert_eq!((&seen["presence"], &seen["status_msg"]), (&json!("unavailable"), &json!("lunch")));
    let (news, since) = told(&alice, &bob, &since).await;
    assert_eq!((&news["presence"], &news["status_msg"]), (&json!("unavailable"), &json!("lunch")));
    assert_eq!(told(&alice, &bob, &since).await.0, Value::Null, "told twice");
    assert_eq!(told(&eve, &bob, "").await.0, Value::Null);
    eve.get(&status(&bob)).await.refused(403, "M_FORBIDDEN");
    assert_eq!(bob.get(&status(&bob)).await.ok()["presence"], "unavailable");

    alice.put(&status(&bob), json!({ "presence": "online" })).await.refused(403, "M_FORBIDDEN");
    bob.put(&status(&bob), json!({ "presence": "asleep" })).await.refused(400, "M_INVALID_PARAM");
    bob.put(&status(&bob), json!({})).await.refused(400, "M_MISSING_PARAM");
    let long = json!({ "presence": "online", "status_msg": "x".repeat(3_000) });
    bob.put(&status(&bob), long).await.refused(400, "M_INVALID_PARAM");
}

#[tokio::test]
async fn who_meets_in_a_room_is_told_of_each_other() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    alice.put(&status(&alice), json!({ "presence": "online", "status_msg": "first" })).await.ok();
    bob.put(&status(&bob), json!({ "presence": "unavailable", "status_msg": "second" })).await.ok();
    let room = alice.creates_a_public_room().await;
    let (_, alices) = told(&alice, &bob, "").await;
    let (news, bobs) = told(&bob, &alice, "").await;
    assert_eq!(news, Value::Null, "they share no room yet");
    bob.joins(&room).await;
    let (news, alices) = told(&alice, &bob, &alices).await;
    assert_eq!(news["status_msg"], "second", "somebody came into a room of hers");
    let (news, bobs) = told(&bob, &alice, &bobs).await;
    assert_eq!(news["status_msg"], "first", "he came into a room");
    alice.says(&room, "hello").await;
    assert_eq!(told(&alice, &bob, &alices).await.0, Value::Null, "told twice");
    assert_eq!(told(&bob, &alice, &bobs).await.0, Value::Null, "told twice");
}

#[tokio::test]
async fn who_is_logged_out_or_closed_is_offline_to_others_at_once() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = alice.creates_a_public_room().await;
    bob.joins(&room).await;
    bob.put(&status(&bob), json!({ "presence": "online", "status_msg": "here" })).await.ok();
    let (news, since) = told(&alice, &bob, "").await;
    assert_eq!((&news["presence"], &news["currently_active"]), (&json!("online"), &json!(true)));
    bob.post("/_matrix/client/v3/logout/all", json!({})).await.ok();
    let (news, since) = told(&alice, &bob, &since).await;
    assert_eq!((&news["presence"], &news["currently_active"]), (&json!("offline"), &json!(false)));

    let bob = server.device(&bob.user_id, "AGAIN").await;
    bob.put(&status(&bob), json!({ "presence": "online", "status_msg": "back" })).await.ok();
    let (_, since) = told(&alice, &bob, &since).await;
    server.app.users.deactivate(&bob.user_id, false).await.unwrap();
    server.app.users.clear_account(&bob.user_id).await.unwrap();
    let (news, _) = told(&alice, &bob, &since).await;
    assert_eq!((&news["presence"], &news["status_msg"]), (&json!("offline"), &Value::Null));
}

#[tokio::test]
async fn switched_off_nobody_is_online() {
    let server = TestServer::with(|config| config.presence = false).await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = alice.creates_a_public_room().await;
    bob.joins(&room).await;
    bob.put(&status(&bob), json!({ "presence": "online" })).await.ok();
    assert_eq!(alice.get(&status(&bob)).await.ok()["presence"], "offline");
    assert_eq!(told(&alice, &bob, "").await.0, Value::Null);
}
