//! `/sync` over HTTP: its parameters, and that answers stay what they were for who asks again.

use std::time::{Duration, Instant};

use hearth::testing::{TestServer, TestUser, encoded};
use serde_json::{Value, json};

async fn sync(user: &TestUser, query: &str) -> Value {
    user.get(&format!("/_matrix/client/v3/sync?{query}")).await.ok()
}

fn token(answer: &Value) -> String {
    format!("since={}", answer["next_batch"].as_str().unwrap_or_default())
}

#[tokio::test]
async fn parameters_are_checked() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    for since in ["bogus", "s1_", "s2_1_1_1_1_1", "t1_4_5", "123"] {
        let answer = alice.get(&format!("/_matrix/client/v3/sync?since={since}")).await;
        answer.refused(400, "M_INVALID_PARAM");
    }
    let path = |filter: &str| format!("/_matrix/client/v3/sync?filter={}", encoded(filter));
    alice.get(&path("{")).await.refused(400, "M_NOT_JSON");
    alice.get(&path(r#"{"room":7}"#)).await.refused(400, "M_BAD_JSON");
    alice.get(&path("nosuchfilter")).await.refused(400, "M_INVALID_PARAM");
    alice.get("/_matrix/client/v3/sync?timeout=soon").await.refused(400, "M_INVALID_PARAM");
}

#[tokio::test]
async fn a_poll_ends_with_its_time_or_with_news() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = alice.creates_a_public_room().await;
    bob.joins(&room).await;
    let first = sync(&bob, "set_presence=offline").await;
    let started = Instant::now();
    let quiet = sync(&bob, &format!("set_presence=offline&timeout=300&{}", token(&first))).await;
    assert!(started.elapsed() >= Duration::from_millis(250));
    assert_eq!(quiet["rooms"], Value::Null);
    let waiting = format!("set_presence=offline&timeout=20000&{}", token(&quiet));
    let (news, said) = tokio::join!(sync(&bob, &waiting), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        alice.says(&room, "hello").await
    });
    let events = news["rooms"]["join"][&room]["timeline"]["events"].as_array().unwrap();
    assert_eq!(events[0]["event_id"], json!(said));
    assert!(started.elapsed() < Duration::from_secs(15));
}

#[tokio::test]
async fn a_filter_is_taken_by_its_id_with_all_of_its_fields() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let room = alice.creates_a_room(json!({})).await;
    let root = alice.says(&room, "root").await;
    let reaction = json!({"m.relates_to": {"rel_type": "m.annotation", "event_id": root, "key": "+"}});
    alice.sends(&room, "m.reaction", reaction).await;
    let filter = json!({"room": {"timeline": {"related_by_rel_types": ["m.annotation"]}}});
    let path = format!("/_matrix/client/v3/user/{}/filter", encoded(alice.user_id.as_str()));
    let id = alice.post(&path, filter).await.ok()["filter_id"].as_str().unwrap().to_owned();
    let answer = sync(&alice, &format!("filter={id}")).await;
    let events = answer["rooms"]["join"][&room]["timeline"]["events"].as_array().unwrap();
    assert_eq!(events.len(), 1);
    assert_eq!(events[0]["event_id"], json!(root));
}
