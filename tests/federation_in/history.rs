//! What servers are told of rooms: events, state, what they rest on, what came before.

use hearth::testing::{TestServer, TestUser, encoded};
use serde_json::{Value, json};

use crate::world::*;

/// A room of Alice's with a few messages, in which Bob of another server is.
async fn story() -> (TestServer, TestServer, TestUser, String, Vec<String>) {
    let (here, there) = two().await;
    let (alice, bob) = (here.user("alice").await, there.user("bob").await);
    let room = alice.creates_a_public_room().await;
    joins(&bob, &room, &here).await;
    let mut said = Vec::new();
    for text in ["one", "two", "three", "four"] {
        said.push(alice.says(&room, text).await);
    }
    (here, there, alice, room, said)
}

fn id_of(seen: &Seen, event: &Value) -> String {
    seen.id_of(event)
}

#[tokio::test]
async fn a_server_in_the_room_is_told_everything() {
    let (here, there, _, room, said) = story().await;
    let client = there.app.federation.client();
    let (name, room_id) = (name_of(&here), room.as_str().try_into().unwrap());
    let last: &ruma::EventId = said[3].as_str().try_into().unwrap();
    let event = client.event(name, last).await.unwrap();
    assert_eq!(event.get(), pdu(&here, &room, &said[3]).await);
    let ids = client.state_ids(name, room_id, last).await.unwrap();
    let now: std::collections::BTreeSet<_> = state_of(&here, &room).await.into_values().collect();
    assert_eq!(ids.pdu_ids.iter().cloned().collect::<std::collections::BTreeSet<_>>(), now);
    let state = client.state(name, room_id, last).await.unwrap();
    assert_eq!(state.pdus.len(), ids.pdu_ids.len());
    assert_eq!(state.auth_chain.len(), ids.auth_chain_ids.len());
    let chain = client.event_auth(name, room_id, last).await.unwrap();
    assert!(!chain.is_empty() && chain.len() <= state.auth_chain.len() + state.pdus.len());
    let from = [last.to_owned()];
    let back = client.backfill(name, room_id, &from, 3).await.unwrap();
    let mut texts = Vec::new();
    for event in &back {
        let event: Value = event.parse().unwrap();
        texts.push(event["content"]["body"].as_str().unwrap().to_owned());
    }
    assert_eq!(texts, ["four", "three", "two"]);
    let first = [ruma::OwnedEventId::try_from(said[0].as_str()).unwrap()];
    let between = client.missing_events(name, room_id, &first, &from, 10, 0).await.unwrap();
    assert_eq!(between.len(), 2);
    let near = client.timestamp_to_event(name, room_id, 5, true).await.unwrap();
    assert!(near.origin_server_ts > 5);
}

#[tokio::test]
async fn a_stranger_is_told_nothing() {
    let (here, _, alice, room, said) = story().await;
    let remote = Remote::new(&here, "remote.test");
    let (id, event) = (encoded(&room), encoded(&said[3]));
    for path in [
        format!("state/{id}?event_id={event}"),
        format!("state_ids/{id}?event_id={event}"),
        format!("event_auth/{id}/{event}"),
        format!("backfill/{id}?v={event}&limit=5"),
        format!("timestamp_to_event/{id}?ts=5&dir=f"),
        format!("event/{event}"),
    ] {
        remote.get(&format!("/_matrix/federation/v1/{path}")).await.refused(403, "M_FORBIDDEN");
    }
    let missing = json!({ "earliest_events": [], "latest_events": [said[3]] });
    let path = format!("/_matrix/federation/v1/get_missing_events/{id}");
    remote.post(&path, &missing).await.refused(403, "M_FORBIDDEN");
    // What is not there is not there, for those who may ask.
    remote.joins("bob", &room).await;
    for path in [
        format!("state/{id}?event_id=%24none"),
        format!("event_auth/{id}/%24none"),
        "event/%24none".to_owned(),
        format!("state/%21none%3Ahere.test?event_id={event}"),
    ] {
        remote.get(&format!("/_matrix/federation/v1/{path}")).await.refused(404, "M_NOT_FOUND");
    }
    // An event of another room that the server is in is no event of this one.
    let other = alice.creates_a_public_room().await;
    remote.joins("bob", &other).await;
    let path = format!("/_matrix/federation/v1/state/{}?event_id={event}", encoded(&other));
    remote.get(&path).await.refused(404, "M_NOT_FOUND");
    for (path, errcode) in [
        (format!("backfill/{id}?limit=5"), "M_MISSING_PARAM"),
        (format!("backfill/{id}?v={event}"), "M_MISSING_PARAM"),
        (format!("backfill/{id}?v={event}&limit=x"), "M_INVALID_PARAM"),
        (format!("timestamp_to_event/{id}?ts=5&dir=up"), "M_INVALID_PARAM"),
        (format!("state/{id}"), "M_MISSING_PARAM"),
    ] {
        remote.get(&format!("/_matrix/federation/v1/{path}")).await.refused(400, errcode);
    }
}

#[tokio::test]
async fn what_was_said_before_a_server_came_is_told_redacted_where_the_room_wants_that() {
    let (here, _) = two().await;
    let alice = here.user("alice").await;
    let remote = Remote::new(&here, "remote.test");
    let visibility = json!({ "type": "m.room.history_visibility", "state_key": "", "content": { "history_visibility": "joined" } });
    let room = alice.creates_a_room(json!({ "preset": "public_chat", "initial_state": [visibility] })).await;
    let before = alice.says(&room, "a secret").await;
    let seen = remote.joins("bob", &room).await;
    let after = alice.says(&room, "for all").await;
    let path = format!("/_matrix/federation/v1/backfill/{}?v={}&limit=10", encoded(&room), encoded(&after));
    let told = remote.get(&path).await.ok();
    let texts: std::collections::BTreeMap<String, Value> = told["pdus"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| (id_of(&seen, event), event["content"]["body"].clone()))
        .collect();
    assert_eq!(texts[&after], "for all");
    assert_eq!(texts.get(&before), Some(&Value::Null), "the event is there, and what it says is not");
}

/// A time before the server came: what is told of it is an event that the server may open.
#[tokio::test]
async fn of_a_time_only_events_are_told_that_the_server_may_see() {
    let (here, _) = two().await;
    let alice = here.user("alice").await;
    let remote = Remote::new(&here, "remote.test");
    let visibility = json!({ "type": "m.room.history_visibility", "state_key": "", "content": { "history_visibility": "joined" } });
    let room = alice.creates_a_room(json!({ "preset": "public_chat", "initial_state": [visibility] })).await;
    let before = alice.says(&room, "a secret").await;
    let seen = remote.joins("bob", &room).await;
    let after = alice.says(&room, "for all").await;
    let near = format!("/_matrix/federation/v1/timestamp_to_event/{}", encoded(&room));
    let shown = format!("/_matrix/client/v3/rooms/{}/event/{}", encoded(&room), encoded(&before));
    let ts = alice.get(&shown).await.ok()["origin_server_ts"].as_u64().unwrap();
    let told = remote.get(&format!("{near}?ts={ts}&dir=f")).await.ok();
    assert!(told["event_id"] == *seen.last.as_str() || told["event_id"] == *after, "{told}");
    let told = remote.get(&format!("{near}?ts={ts}&dir=b")).await.ok();
    assert_ne!(told["event_id"], *before);
    // What it is told of is told it whole.
    let id = encoded(told["event_id"].as_str().unwrap());
    let event = remote.get(&format!("/_matrix/federation/v1/event/{id}")).await.ok();
    assert_ne!(event["pdus"][0]["content"], json!({}), "{event}");
}
