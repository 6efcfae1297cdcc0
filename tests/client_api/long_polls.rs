//! A long poll ends with the session that it was made with, at once and not at its time-out.

use std::time::Duration;

use hearth::testing::{Answer, TestServer, TestUser, encoded};
use serde_json::json;
use tokio::time::timeout;

/// Far longer than a test may take, and far shorter than the polls' time-out.
const SOON: Duration = Duration::from_secs(20);
/// Long enough for a poll to begin its waiting.
const A_MOMENT: Duration = Duration::from_millis(100);

/// What a poll is answered with when `end` has happened while it waited.
async fn poll_while(user: &TestUser, path: &str, end: impl Future<Output = ()>) -> Answer {
    let mut poll = Box::pin(user.get(path));
    assert!(timeout(A_MOMENT, &mut poll).await.is_err(), "{path} has something to tell");
    end.await;
    timeout(SOON, poll).await.expect("the poll goes on although its session is over")
}

/// The polls there are: `/sync`, `/events`, and `/events` of a room that one is not in.
async fn polls(user: &TestUser, readable: &str) -> [String; 3] {
    let sync = "/_matrix/client/v3/sync?set_presence=offline";
    let since = user.get(sync).await.ok()["next_batch"].as_str().unwrap().to_owned();
    [
        format!("{sync}&since={since}&timeout=300000"),
        format!("/_matrix/client/v3/events?from={since}&timeout=100000"),
        format!("/_matrix/client/v3/events?room_id={}&timeout=100000", encoded(readable)),
    ]
}

async fn readable_room(server: &TestServer) -> String {
    let owner = server.user("owner").await;
    let open = json!({
        "type": "m.room.history_visibility", "state_key": "",
        "content": { "history_visibility": "world_readable" },
    });
    owner.creates_a_room(json!({ "preset": "public_chat", "initial_state": [open] })).await
}

#[tokio::test]
async fn a_poll_ends_with_its_session() {
    let server = TestServer::with(|config| config.presence = false).await;
    let room = readable_room(&server).await;
    let bob = server.user("bob").await;
    let users = &server.app.users;
    for number in 0..3 {
        // Logged out.
        let phone = server.device(&bob.user_id, "PHONE").await;
        let path = &polls(&phone, &room).await[number];
        let logout = async { drop(phone.post("/_matrix/client/v3/logout", json!({})).await.ok()) };
        let answer = poll_while(&phone, path, logout).await.refused(401, "M_UNKNOWN_TOKEN");
        assert_ne!(answer["soft_logout"], true);

        // Its device removed from another one.
        let phone = server.device(&bob.user_id, "PHONE").await;
        let path = &polls(&phone, &room).await[number];
        let removal = async { users.delete_devices(&bob.user_id, &["PHONE".into()]).await.unwrap() };
        poll_while(&phone, path, removal).await.refused(401, "M_UNKNOWN_TOKEN");

        // Logged in again under the same device id.
        let phone = server.device(&bob.user_id, "PHONE").await;
        let path = &polls(&phone, &room).await[number];
        let again = async { drop(server.device(&bob.user_id, "PHONE").await) };
        poll_while(&phone, path, again).await.refused(401, "M_UNKNOWN_TOKEN");

        // Locked: the client keeps what it has.
        let phone = server.device(&bob.user_id, "PHONE").await;
        let path = &polls(&phone, &room).await[number];
        let lock = async { users.set_locked(&bob.user_id, true).await.unwrap() };
        let answer = poll_while(&phone, path, lock).await.refused(401, "M_USER_LOCKED");
        assert_eq!(answer["soft_logout"], true);
        users.set_locked(&bob.user_id, false).await.unwrap();
    }
    for number in 0..3 {
        let carol = server.user(&format!("carol{number}")).await;
        let path = &polls(&carol, &room).await[number];
        let close = async { users.deactivate(&carol.user_id, false).await.unwrap() };
        poll_while(&carol, path, close).await.refused(401, "M_UNKNOWN_TOKEN");
    }
}

#[tokio::test]
async fn a_poll_does_not_mind_the_end_of_other_sessions() {
    let server = TestServer::with(|config| config.presence = false).await;
    let room = readable_room(&server).await;
    let bob = server.user("bob").await;
    let path = &polls(&bob, &room).await[0];
    let mut poll = Box::pin(bob.get(path));
    assert!(timeout(A_MOMENT, &mut poll).await.is_err());
    // Enough of them to wake everybody who waits for the end of a session.
    for number in 0..50 {
        let other = server.device(&bob.user_id, &format!("OTHER{number}")).await;
        other.post("/_matrix/client/v3/logout", json!({})).await.ok();
    }
    server.app.users.set_locked(&server.user("eve").await.user_id, true).await.unwrap();
    assert!(timeout(A_MOMENT, &mut poll).await.is_err());
    let content = json!({ "colour": "green" });
    let setting = format!("/_matrix/client/v3/user/{}/account_data/a.b", encoded(bob.user_id.as_str()));
    bob.put(&setting, content.clone()).await.ok();
    let news = timeout(SOON, poll).await.unwrap().ok();
    assert_eq!(news["account_data"]["events"][0]["content"], content);
}

#[tokio::test]
async fn a_poll_goes_on_when_its_token_is_refreshed() {
    let server = TestServer::with(|config| config.presence = false).await;
    let alice = server.user("alice").await;
    let room = alice.creates_a_public_room().await;
    let body = json!({
        "username": "bob", "password": "a long password 1", "refresh_token": true,
        "auth": { "type": "m.login.dummy" },
    });
    let registered =
        server.request(http::Method::POST, "/_matrix/client/v3/register", None, Some(body)).await.ok();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let mut bob = alice.clone();
    bob.user_id = text(&registered["user_id"]).try_into().unwrap();
    bob.token = text(&registered["access_token"]);
    bob.joins(&room).await;
    let since = text(&bob.get("/_matrix/client/v3/sync").await.ok()["next_batch"]);

    let refresh = async {
        let body = json!({ "refresh_token": registered["refresh_token"] });
        let path = "/_matrix/client/v3/refresh";
        let fresh = server.request(http::Method::POST, path, None, Some(body)).await.ok();
        let mut refreshed = bob.clone();
        refreshed.token = text(&fresh["access_token"]);
        // The first use of the new token ends the old one.
        refreshed.get("/_matrix/client/v3/account/whoami").await.ok();
        bob.get("/_matrix/client/v3/account/whoami").await.refused(401, "M_UNKNOWN_TOKEN");
        alice.says(&room, "hello").await;
    };
    let path = format!("/_matrix/client/v3/sync?since={since}&timeout=300000");
    let told = poll_while(&bob, &path, refresh).await.ok();
    assert_eq!(told["rooms"]["join"][&room]["timeline"]["events"][0]["content"]["body"], "hello");
}
