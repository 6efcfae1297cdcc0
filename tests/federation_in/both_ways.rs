//! Two whole servers that send to each other by themselves.

use hearth::testing::{TestNetwork, TestServer, TestUser, encoded};
use hearth_store::Store;
use serde_json::{Value, json};

use crate::world::{has_all, joins, name_of, state_of, talking_on, until};

async fn story() -> (TestServer, TestServer, TestUser, TestUser, String) {
    let network = TestNetwork::default();
    let here = talking_on(&network, "here.test", Store::memory().await).await;
    let there = talking_on(&network, "there.test", Store::memory().await).await;
    let (alice, bob) = (here.user("alice").await, there.user("bob").await);
    let room = alice.creates_a_public_room().await;
    joins(&bob, &room, &here).await;
    (here, there, alice, bob, room)
}

/// What is new for a user in a room, from the beginning.
async fn ephemeral(user: &TestUser, room: &str, kind: &str) -> Option<Value> {
    let sync = user.get("/_matrix/client/v3/sync").await.ok();
    let events = sync["rooms"]["join"][room]["ephemeral"]["events"].as_array()?.clone();
    events.into_iter().find(|event| event["type"] == kind).map(|event| event["content"].clone())
}

#[tokio::test]
async fn what_is_said_arrives_in_both_directions() {
    let (here, there, alice, bob, room) = story().await;
    let mut said = Vec::new();
    for n in 0..5 {
        said.push(alice.says(&room, &n.to_string()).await);
        said.push(bob.says(&room, &n.to_string()).await);
    }
    alice.sets(&room, "m.room.topic", "", json!({ "topic": "tea" })).await;
    for server in [&here, &there] {
        until("all is there", async || has_all(server, &room, &said).await).await;
    }
    until("the state is the same", async || state_of(&here, &room).await == state_of(&there, &room).await)
        .await;
    bob.leaves(&room).await;
    let membership =
        format!("/_matrix/client/v3/rooms/{}/state/m.room.member/{}", encoded(&room), bob.user_id);
    until("he is gone", async || alice.get(&membership).await.json()["membership"] == "leave").await;
}

#[tokio::test]
async fn who_types_and_reads_is_seen_by_the_other_server() {
    let (_here, there, alice, bob, room) = story().await;
    let said = alice.says(&room, "hello").await;
    until("it is there", async || has_all(&there, &room, &[said.clone()]).await).await;
    let typing = format!("/_matrix/client/v3/rooms/{}/typing/{}", encoded(&room), bob.user_id);
    bob.put(&typing, json!({ "typing": true, "timeout": 60_000 })).await.ok();
    let receipt = format!("/_matrix/client/v3/rooms/{}/receipt/m.read/{}", encoded(&room), encoded(&said));
    bob.post(&receipt, json!({})).await.ok();
    until("he types", async || {
        ephemeral(&alice, &room, "m.typing")
            .await
            .is_some_and(|typing| typing["user_ids"] == json!([bob.user_id]))
    })
    .await;
    until("he has read", async || {
        let read = ephemeral(&alice, &room, "m.receipt").await.unwrap_or_default();
        read[&said]["m.read"][bob.user_id.as_str()]["ts"].is_u64()
    })
    .await;
}

#[tokio::test]
async fn after_an_outage_both_know_the_same() {
    let (here, there, alice, bob, room) = story().await;
    let network = here.network.clone();
    let before = alice.says(&room, "before").await;
    until("it is there", async || has_all(&there, &room, &[before.clone()]).await).await;
    network.cut(name_of(&there));
    let mut said = Vec::new();
    for n in 0..60 {
        said.push(alice.says(&room, &n.to_string()).await);
    }
    said.push(bob.says(&room, "anybody?").await);
    alice.sets(&room, "m.room.topic", "", json!({ "topic": "alone" })).await;
    until("she noticed", async || here.app.sender.status().resting == 1).await;
    // It comes back and says something: that wakes the other.
    network.mend(&there);
    said.push(bob.says(&room, "here I am").await);
    for server in [&here, &there] {
        until("all is there", async || has_all(server, &room, &said).await).await;
    }
    until("the state is the same", async || state_of(&here, &room).await == state_of(&there, &room).await)
        .await;
}
