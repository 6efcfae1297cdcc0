//! Snapshots and the event stream of old.

use std::time::Duration;

use hearth::testing::{TestServer, encoded};
use serde_json::json;

#[tokio::test]
async fn a_snapshot_holds_the_rooms_and_the_stream_goes_on_from_it() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = alice.creates_a_room(json!({ "preset": "public_chat", "name": "Old" })).await;
    let said = alice.says(&room, "hello").await;
    bob.creates_a_room(json!({ "invite": [alice.user_id] })).await;
    let snapshot = alice.get("/_matrix/client/r0/initialSync?limit=5").await.ok();
    let rooms = snapshot["rooms"].as_array().unwrap();
    assert_eq!(rooms.len(), 2);
    let joined = rooms.iter().find(|room| room["membership"] == "join").unwrap();
    assert_eq!(joined["room_id"], json!(room));
    let messages = joined["messages"]["chunk"].as_array().unwrap();
    assert_eq!(messages.last().unwrap()["event_id"], json!(said));
    let invited = rooms.iter().find(|room| room["membership"] == "invite").unwrap();
    assert_eq!(invited["invite"]["state_key"], "@alice:hearth.test");

    let end = snapshot["end"].as_str().unwrap();
    let stream = format!("/_matrix/client/v3/events?from={end}&timeout=20000");
    let (news, said) = tokio::join!(alice.get(&stream), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        alice.says(&room, "news").await
    });
    let news = news.ok();
    let chunk = news["chunk"].as_array().unwrap();
    assert!(chunk.iter().any(|event| event["event_id"] == json!(said) && event["room_id"] == json!(room)));

    let one = format!("/_matrix/client/v3/events/{}", encoded(&said));
    assert_eq!(alice.get(&one).await.ok()["content"]["body"], "news");
    bob.get(&one).await.refused(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn a_world_readable_room_can_be_looked_into() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = alice.creates_a_room(json!({})).await;
    let stream = format!("/_matrix/client/v3/events?room_id={}&timeout=20000", encoded(&room));
    let snapshot = format!("/_matrix/client/v3/rooms/{}/initialSync", encoded(&room));
    bob.get(&stream).await.refused(403, "M_FORBIDDEN");
    bob.get(&snapshot).await.refused(403, "M_FORBIDDEN");
    alice
        .sets(&room, "m.room.history_visibility", "", json!({ "history_visibility": "world_readable" }))
        .await;
    alice.says(&room, "open").await;
    let seen = bob.get(&snapshot).await.ok();
    let messages = seen["messages"]["chunk"].as_array().unwrap();
    assert_eq!(messages.last().unwrap()["content"]["body"], "open");
    assert!(seen["state"].as_array().unwrap().iter().any(|event| event["type"] == "m.room.create"));
    let (news, _) = tokio::join!(bob.get(&stream), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        alice.says(&room, "news").await
    });
    assert_eq!(news.ok()["chunk"][0]["content"]["body"], "news");
}

#[tokio::test]
async fn a_long_poll_ends_when_the_server_does() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let since = alice.get("/_matrix/client/v3/sync").await.ok()["next_batch"].as_str().unwrap().to_owned();
    let path = format!("/_matrix/client/v3/sync?since={since}&timeout=60000");
    let (answer, ()) = tokio::join!(alice.get(&path), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        server.app.shutdown.begin();
    });
    assert!(answer.ok()["next_batch"].is_string());
}

#[tokio::test]
async fn a_new_name_goes_into_the_rooms_and_a_closed_account_out_of_them() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = alice.creates_a_public_room().await;
    bob.joins(&room).await;
    let bobs = encoded(bob.user_id.as_str());
    let name = format!("/_matrix/client/v3/profile/{bobs}/displayname");
    bob.put(&name, json!({ "displayname": "Robert" })).await.ok();
    let member = format!("/_matrix/client/v3/rooms/{}/state/m.room.member/{bobs}", encoded(&room));
    assert_eq!(alice.get(&member).await.ok()["displayname"], "Robert");
    hearth::client_api::account::close_account(&server.app, &bob.user_id, false).await.unwrap();
    assert_eq!(alice.get(&member).await.ok()["membership"], "leave");
    bob.get("/_matrix/client/v3/joined_rooms").await.refused(401, "M_UNKNOWN_TOKEN");
}
