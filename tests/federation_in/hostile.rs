//! Peers that do what they must not: each is refused within bounds, and harms nobody else.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use hearth::{
    http::{TRANSACTION_BYTES, unsigned::UNSIGNED_BYTES},
    testing::{TestNetwork, TestServer, TestUser, encoded},
};
use hearth_dag::limits;
use hearth_federation::{
    inbound::{ANSWER_BYTES_AT_ONCE, ANSWERS_OF_A_SERVER},
    tables::{SERVER_KEYS, UNCHECKED},
};
use hearth_store::{Commit, Order, Store};
use http::Method;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::world::*;

/// A room of ours, with a remote in it.
async fn story() -> (TestServer, TestUser, Remote, String, Seen) {
    let (here, _) = two().await;
    let alice = here.user("alice").await;
    let remote = Remote::new(&here, "remote.test");
    let room = alice.creates_a_public_room().await;
    let seen = remote.joins("bob", &room).await;
    (here, alice, remote, room, seen)
}

/// What became of one event of a transaction.
fn error_of<'a>(answer: &'a Value, event: &str) -> Option<&'a str> {
    answer["pdus"][event]["error"].as_str()
}

#[tokio::test]
async fn a_bad_event_spoils_no_other() {
    let (here, alice, remote, room, mut seen) = story().await;
    let other = Remote::new(&here, "other.test");
    let elsewhere = alice.creates_a_public_room().await;
    let foreign = alice.says(&elsewhere, "of another room").await;

    let base = (seen.last.clone(), seen.depth);
    let mut unsigned = remote.says(&mut seen, "bob", "unsigned");
    unsigned["signatures"] = json!({});
    (seen.last, seen.depth) = base.clone();
    let mut forged = remote.says(&mut seen, "bob", "forged");
    forged["signatures"]["remote.test"]["ed25519:peer"] = json!("AAAA");
    (seen.last, seen.depth) = base.clone();
    // The key has the id of the one that the server publishes, and is another.
    let other_key = remote.draft(&mut seen, "bob", "m.room.message", None, json!({ "body": "other key" }));
    let key = hearth_dag::Keypair::new(remote.name.clone(), "peer", &[77; 32]).unwrap();
    let other_key: Value = serde_json::from_str(sign(&key, seen.rules, other_key).pdu().json()).unwrap();
    // Another server speaks for a user who is not its own.
    let theirs = remote.draft(&mut seen, "bob", "m.room.message", None, json!({ "body": "theirs" }));
    let theirs = other.sign(&seen, theirs);
    let mut other_room = remote.draft(&mut seen, "bob", "m.room.message", None, json!({ "body": "x" }));
    other_room["auth_events"].as_array_mut().unwrap().push(json!(foreign));
    let other_room = remote.sign(&seen, other_room);
    let good = remote.says(&mut seen, "bob", "good");
    let eve = remote.draft(&mut seen, "eve", "m.room.message", None, json!({ "body": "not in the room" }));
    let eve = remote.sign(&seen, eve);
    let mut huge = remote.draft(&mut seen, "bob", "m.room.message", None, json!({}));
    huge["content"]["body"] = json!("x".repeat(limits::MAX_EVENT_BYTES));
    let mut many = remote.draft(&mut seen, "bob", "m.room.message", None, json!({ "body": "x" }));
    many["prev_events"] = json!((0..=limits::MAX_PREV_EVENTS).map(|n| format!("$p{n}")).collect::<Vec<_>>());
    let events = [
        unsigned.clone(),
        forged.clone(),
        other_key.clone(),
        theirs.clone(),
        other_room.clone(),
        good.clone(),
        eve.clone(),
        huge,
        many,
        json!({}),
        json!("event"),
        json!({ "room_id": room }),
        json!({ "room_id": 5 }),
        json!(null),
    ];
    let answer = remote.sends(&events, &[]).await.ok();
    for bad in [&unsigned, &forged, &other_key, &theirs, &eve] {
        let id = seen.id_of(bad);
        assert!(error_of(&answer, &id).is_some(), "{bad} {answer}");
        assert!(!has(&here, &room, &id).await);
    }
    assert_eq!(answer["pdus"][&seen.id_of(&good)], json!({}), "{answer}");
    assert!(has(&here, &room, &seen.id_of(&good)).await);
    // What it names is of another room, and so is missing in this one: it never counts.
    assert!(!has(&here, &room, &seen.id_of(&other_room)).await);
    // The room goes on.
    alice.says(&room, "still here").await;
}

#[tokio::test]
async fn of_an_event_with_a_wrong_hash_only_the_redacted_form_is_kept() {
    let (here, alice, remote, room, mut seen) = story().await;
    let mut event = remote.says(&mut seen, "bob", "what was signed");
    event["content"]["body"] = json!("what was not");
    let id = seen.id_of(&event);
    remote.sends(&[event], &[]).await.ok();
    let shown =
        alice.get(&format!("/_matrix/client/v3/rooms/{}/event/{}", encoded(&room), encoded(&id))).await.ok();
    assert_eq!(shown["content"], json!({}));
    drop(here);
}

#[tokio::test]
async fn a_transaction_is_bounded_and_its_own() {
    let (here, _, remote, _, mut seen) = story().await;
    let pdus: Vec<Value> = (0..51).map(|n| remote.says(&mut seen, "bob", &n.to_string())).collect();
    let before = here.digest().await;
    remote.sends(&pdus, &[]).await.refused(400, "M_INVALID_PARAM");
    remote
        .sends(&[], &vec![json!({ "edu_type": "m.x", "content": {} }); 101])
        .await
        .refused(400, "M_INVALID_PARAM");
    let forged = json!({ "origin": "other.test", "origin_server_ts": 5, "pdus": [pdus[0]] });
    remote.put("/_matrix/federation/v1/send/forged", &forged).await.refused(400, "M_BAD_JSON");
    let long = format!("/_matrix/federation/v1/send/{}", "x".repeat(300));
    remote.put(&long, &json!({ "pdus": [] })).await.refused(400, "M_BAD_JSON");
    for (body, status, errcode) in [
        (&b"{\"pdus\":[\"\xff\"]}"[..], 400, "M_NOT_JSON"),
        (b"{\"pdus\":", 400, "M_NOT_JSON"),
        (b"[]", 400, "M_BAD_JSON"),
    ] {
        remote.ask(Method::PUT, "/_matrix/federation/v1/send/bad", body).await.refused(status, errcode);
    }
    let giant = vec![b' '; TRANSACTION_BYTES + 1];
    remote.ask(Method::PUT, "/_matrix/federation/v1/send/giant", &giant).await.refused(413, "M_TOO_LARGE");
    assert_eq!(here.digest().await, before);
}

#[tokio::test]
async fn deep_json_ends_nothing() {
    let (here, alice, remote, room, mut seen) = story().await;
    let deep = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    for depth in [100, 10_000, 200_000] {
        let body = format!(
            r#"{{"origin":"remote.test","pdus":[{{"room_id":"{room}","content":{}}}]}}"#,
            deep(depth)
        );
        let path = format!("/_matrix/federation/v1/send/deep{depth}");
        let answer = remote.ask(Method::PUT, &path, body.as_bytes()).await;
        assert!(answer.status == 200 || answer.status == 400, "{}", answer.status);
    }
    let good = remote.says(&mut seen, "bob", "shallow");
    remote.sends(std::slice::from_ref(&good), &[]).await.ok();
    assert!(has(&here, &room, &seen.id_of(&good)).await);
    alice.says(&room, "still here").await;
}

#[tokio::test]
async fn an_event_that_comes_again_changes_nothing() {
    let (here, _, remote, _, mut seen) = story().await;
    let good = remote.says(&mut seen, "bob", "once");
    let eve = remote.draft(&mut seen, "eve", "m.room.message", None, json!({ "body": "never" }));
    let eve = remote.sign(&seen, eve);
    let first = remote.sends(&[good.clone(), eve.clone(), good.clone()], &[]).await.ok();
    assert_eq!(first["pdus"].as_object().unwrap().len(), 2);
    let before = here.digest().await;
    let again = remote.sends(&[good, eve.clone()], &[]).await.ok();
    assert_eq!(here.digest().await, before);
    assert!(error_of(&again, &seen.id_of(&eve)).is_some());
}

/// A peer whose every answer brings an event that rests on one more: the chain has no end.
#[tokio::test(start_paused = true)]
async fn an_endless_chain_of_prev_events_is_given_up() {
    let (here, alice, remote, room, mut seen) = story().await;
    let asked = Arc::new(AtomicUsize::new(0));
    let key = remote.key().clone();
    let template = remote.draft(&mut seen, "bob", "m.room.message", None, json!({ "body": "endless" }));
    let rules = seen.rules;
    // Events are made from the end: each names one that is made when it is asked for.
    let forge = move |number: usize| {
        let mut event = template.clone();
        event["prev_events"] = json!([format!("$unknown{number}")]);
        event["origin_server_ts"] = json!(1_000 + number);
        let pdu = sign(&key, rules, event);
        serde_json::from_str::<Value>(pdu.pdu().json()).unwrap()
    };
    let first = forge(0);
    let count = asked.clone();
    here.network.fake(&remote.peer, move |request| {
        let number = count.fetch_add(1, Ordering::SeqCst) + 1;
        let body = match request.uri().path() {
            path if path.contains("get_missing_events") => json!({ "events": [forge(number)] }),
            path if path.contains("state_ids") => json!({ "pdu_ids": [], "auth_chain_ids": [] }),
            _ => json!({ "pdus": [forge(number)], "auth_chain": [forge(number)] }),
        };
        http::Response::new(body.to_string().into())
    });
    let id = seen.id_of(&first);
    assert_eq!(remote.sends(&[first], &[]).await.ok()["pdus"][&id], json!({}), "it waits");
    until_paused("it was given up", async || here.app.rooms.rooms_with_queues().await.unwrap().is_empty())
        .await;
    assert!(!has_event(&here, &room, &id).await);
    let asked = asked.load(Ordering::SeqCst);
    assert!(asked > 0 && asked < 500, "{asked} questions");
    alice.says(&room, "still here").await;
}

/// A peer that asks for what is costly all the time: it waits for its own questions, and others do not.
#[tokio::test(start_paused = true)]
async fn who_asks_for_too_much_waits_for_it_and_nobody_else_does() {
    let (here, _, remote, room, seen) = story().await;
    let other = Remote::new(&here, "other.test");
    let there = other.joins("dan", &room).await;
    let mut held = Vec::new();
    for _ in 0..ANSWERS_OF_A_SERVER {
        held.push(here.app.inbound.answering(&remote.name).await.unwrap());
    }
    let (room, last) = (encoded(&room), encoded(seen.last.as_str()));
    let start = "/_matrix/federation";
    let questions = [
        format!("{start}/v1/state/{room}?event_id={last}"),
        format!("{start}/v1/state_ids/{room}?event_id={last}"),
        format!("{start}/v1/event_auth/{room}/{last}"),
        format!("{start}/v1/backfill/{room}?v={last}&limit=5"),
    ];
    let missing = json!({ "earliest_events": [], "latest_events": [seen.last] });
    let missing_at = format!("{start}/v1/get_missing_events/{room}");
    for question in &questions {
        let refused = remote.get(question).await.refused(429, "M_LIMIT_EXCEEDED");
        assert!(refused["retry_after_ms"].as_u64().unwrap() > 0);
        other.get(&question.replace(&last, &encoded(there.last.as_str()))).await.ok();
    }
    remote.post(&missing_at, &missing).await.refused(429, "M_LIMIT_EXCEEDED");
    drop(held);
    for question in &questions {
        remote.get(question).await.ok();
    }
    remote.post(&missing_at, &missing).await.ok();
    // What it was told counts, too.
    let answering = here.app.inbound.answering(&remote.name).await.unwrap();
    answering.weighs(ANSWER_BYTES_AT_ONCE as usize);
    drop(answering);
    let refused = remote.get(&questions[0]).await.refused(429, "M_LIMIT_EXCEEDED");
    let wait = refused["retry_after_ms"].as_u64().unwrap();
    other.get(&questions[1].replace(&last, &encoded(there.last.as_str()))).await.ok();
    tokio::time::sleep(std::time::Duration::from_millis(wait + 100)).await;
    remote.get(&questions[0]).await.ok();
}

/// Large bodies whose senders never come to the end, from one address.
#[tokio::test]
async fn bodies_that_nobody_signed_yet_have_a_budget() {
    use std::convert::Infallible;

    use axum::body::{Body, Bytes};
    use futures_util::{StreamExt as _, stream};

    let (here, _, remote, _, mut seen) = story().await;
    let path = "/_matrix/federation/v1/send/endless";
    let piece = Bytes::from(vec![b' '; 1 << 20]);
    let mut sending = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let pieces = stream::repeat(piece.clone()).take(15).map(Ok::<_, Infallible>);
        let body = Body::from_stream(pieces.chain(stream::pending()));
        let authorization = remote.peer.signs(name_of(&here), &Method::PUT, path, b"{}");
        let request =
            http::Request::builder().method(Method::PUT).uri(path).header("authorization", authorization);
        let (here, request) = (here.clone(), request.body(body).unwrap());
        sending.spawn(async move { here.send(request).await });
    }
    // Of what is free one address has half at most: the bodies beyond it are refused.
    let most = UNSIGNED_BYTES / 2 / (15 << 20);
    for _ in most..8 {
        sending.join_next().await.unwrap().unwrap().refused(429, "M_LIMIT_EXCEEDED");
    }
    assert!(sending.try_join_next().is_none());
    // When they are gone, there is room again.
    sending.shutdown().await;
    let event = remote.says(&mut seen, "bob", "good");
    assert_eq!(
        remote.sends(std::slice::from_ref(&event), &[]).await.ok()["pdus"][seen.id_of(&event)],
        json!({})
    );
}

/// Events whose server cannot be reached for its keys: they are neither lost nor believed.
#[tokio::test(start_paused = true)]
async fn an_event_waits_for_keys_that_cannot_be_had() {
    let store = Store::memory().await;
    let network = TestNetwork::default();
    let here = server_on(&network, "here.test", store.clone()).await;
    let alice = here.user("alice").await;
    let remote = Remote::new(&here, "remote.test");
    let third = Remote::new(&here, "third.test");
    let room = alice.creates_a_public_room().await;
    remote.joins("bob", &room).await;
    let mut seen = third.joins("carol", &room).await;
    // It has a new key, of which nobody has heard yet, and cannot be reached.
    let key = hearth_dag::Keypair::new(third.name.clone(), "new", &[7; 32]).unwrap();
    let draft = third.draft(&mut seen, "carol", "m.room.message", None, json!({ "body": "later" }));
    let event: Value = serde_json::from_str(sign(&key, seen.rules, draft).pdu().json()).unwrap();
    let draft = third.draft(&mut seen, "carol", "m.room.message", None, json!({ "body": "forged" }));
    let other = hearth_dag::Keypair::new(third.name.clone(), "other", &[8; 32]).unwrap();
    let forged: Value = serde_json::from_str(sign(&other, seen.rules, draft).pdu().json()).unwrap();
    let (id, forged_id) = (seen.id_of(&event), seen.id_of(&forged));
    network.cut(&third.name);
    drop((here, alice));
    let mut forget = Commit::new();
    forget.delete(&SERVER_KEYS, &third.name.to_string());
    store.commit(forget).await.unwrap();
    let here = server_on(&network, "here.test", store.clone()).await;
    let remote = Remote { of: here.clone(), ..remote };
    let answer = remote.sends(&[event, forged], &[]).await.ok();
    assert_eq!(answer["pdus"], json!({ &id: {}, &forged_id: {} }), "they wait");
    assert!(!has_event(&here, &room, &id).await);
    // Also over a restart.
    drop((here, remote));
    let here = server_on(&network, "here.test", store).await;
    here.app.inbound.resume().await.unwrap();
    network.publishes(key);
    until_paused("it was judged", async || has_event(&here, &room, &id).await).await;
    assert!(has(&here, &room, &id).await);
    until_paused("all were judged", async || {
        let rows = here.app.store.range(&UNCHECKED, UNCHECKED.all(), Order::Forward, 1).await.unwrap();
        rows.is_empty()
    })
    .await;
    assert!(!has_event(&here, &room, &forged_id).await, "no such key is published");
}

/// A peer that hands over an event and then does not answer: the event waits for a while, others go on.
#[tokio::test(start_paused = true)]
async fn a_silent_peer_holds_up_nobody() {
    let (here, _, remote, room, mut seen) = story().await;
    let base = (seen.last.clone(), seen.depth);
    remote.says(&mut seen, "bob", "never sent");
    let after = remote.says(&mut seen, "bob", "after it");
    here.network.fake(&remote.peer, |_| {
        let mut answer = http::Response::new(axum::body::Bytes::new());
        *answer.status_mut() = http::StatusCode::BAD_GATEWAY;
        answer
    });
    assert_eq!(
        remote.sends(std::slice::from_ref(&after), &[]).await.ok()["pdus"][&seen.id_of(&after)],
        json!({})
    );
    (seen.last, seen.depth) = base;
    let beside = remote.says(&mut seen, "bob", "beside it");
    remote.sends(std::slice::from_ref(&beside), &[]).await.ok();
    assert!(has(&here, &room, &seen.id_of(&beside)).await);
    until_paused("it was given up", async || here.app.rooms.rooms_with_queues().await.unwrap().is_empty())
        .await;
    assert!(!has_event(&here, &room, &seen.id_of(&after)).await);
}

/// A told state with events of another room, with bad signatures and with what the rules refuse.
#[tokio::test]
async fn a_false_state_lets_nobody_in() {
    let (here, alice, remote, room, seen) = story().await;
    let before = state_of(&here, &room).await;
    let mut lies =
        Seen { state: seen.state.clone(), room: room.clone(), ..remote.joins("carol", &room).await };
    let power = json!({ "users": { "@eve:remote.test": 100 } });
    let join = remote.makes(
        &mut lies,
        "eve",
        "m.room.member",
        Some("@eve:remote.test"),
        json!({ "membership": "join" }),
    );
    let levels = remote.makes(&mut lies, "eve", "m.room.power_levels", Some(""), power);
    let topic = remote.makes(&mut lies, "eve", "m.room.topic", Some(""), json!({ "topic": "mine" }));
    let told = Arc::new(Mutex::new(vec![join.clone(), levels.clone()]));
    let (join_id, levels_id) = (lies.id_of(&join), lies.id_of(&levels));
    here.network.fake(&remote.peer, move |request| {
        let told = told.lock().clone();
        let path = request.uri().path();
        let body = if path.contains("state_ids") {
            json!({ "pdu_ids": [join_id, levels_id], "auth_chain_ids": [] })
        } else if path.contains("/event/") {
            let wanted = told.iter().find(|event| path.contains("event") && event.is_object()).cloned();
            json!({ "pdus": [wanted] })
        } else {
            json!({ "events": [], "pdus": told, "auth_chain": told })
        };
        http::Response::new(body.to_string().into())
    });
    remote.sends(std::slice::from_ref(&topic), &[]).await.ok();
    let id = lies.id_of(&topic);
    until("it was decided or given up", async || {
        here.app.rooms.rooms_with_queues().await.unwrap().is_empty() || !has(&here, &room, &id).await
    })
    .await;
    let after = state_of(&here, &room).await;
    for place in [("m.room.power_levels", ""), ("m.room.topic", "")] {
        let place = (place.0.to_owned(), place.1.to_owned());
        assert_eq!(after.get(&place), before.get(&place));
    }
    alice.says(&room, "still here").await;
}

async fn has_event(server: &TestServer, room: &str, event: &str) -> bool {
    let room = server.app.rooms.room(room.try_into().unwrap()).await.unwrap().unwrap();
    server.app.rooms.events().by_id(&room, event.try_into().unwrap()).await.unwrap().is_some()
}

/// As `until`, where time passes by itself.
async fn until_paused(what: &str, holds: impl AsyncFn() -> bool) {
    for _ in 0..100_000 {
        if holds().await {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
    panic!("it never was so: {what}");
}
