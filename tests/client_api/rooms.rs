//! Making rooms, sending into them, and their state.

use hearth::testing::{TestServer, encoded};
use http::Method;
use serde_json::{Value, json};

fn room_path(room: &str, rest: &str) -> String {
    format!("/_matrix/client/v3/rooms/{}/{rest}", encoded(room))
}

fn of_type<'a>(state: &'a Value, kind: &str) -> &'a Value {
    let state = state.as_array().unwrap();
    state.iter().find(|event| event["type"] == kind).unwrap_or(&Value::Null)
}

#[tokio::test]
async fn presets_decide_who_may_come_in() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    for (request, rule, guests) in [
        (json!({}), "invite", true),
        (json!({ "preset": "private_chat" }), "invite", true),
        (json!({ "preset": "trusted_private_chat" }), "invite", true),
        (json!({ "preset": "public_chat" }), "public", false),
        (json!({ "visibility": "public" }), "public", false),
    ] {
        let room = alice.creates_a_room(request).await;
        let state = alice.get(&room_path(&room, "state")).await.ok();
        assert_eq!(of_type(&state, "m.room.join_rules")["content"]["join_rule"], rule);
        let access = room_path(&room, "state/m.room.guest_access");
        match guests {
            true => assert_eq!(alice.get(&access).await.ok()["guest_access"], "can_join"),
            false => drop(alice.get(&access).await.refused(404, "M_NOT_FOUND")),
        }
        assert_eq!(of_type(&state, "m.room.create")["content"]["room_version"], "12");
        assert_eq!(of_type(&state, "m.room.member")["content"]["displayname"], "alice");
    }
}

#[tokio::test]
async fn rooms_of_every_version_can_be_made() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let bob = server.user("bob").await;
    for version in 1..=12 {
        let request = json!({ "preset": "public_chat", "room_version": version.to_string() });
        let room = alice.creates_a_room(request).await;
        bob.joins(&room).await;
        let event = bob.says(&room, "hello").await;
        let path = room_path(&room, &format!("event/{}", encoded(&event)));
        assert_eq!(alice.get(&path).await.ok()["content"]["body"], "hello", "version {version}");
    }
    let create = "/_matrix/client/v3/createRoom";
    for unknown in ["99", "", " ", "1 2", "ä", &"1".repeat(33), &"1".repeat(100_000)] {
        let unknown = json!({ "room_version": unknown });
        alice.post(create, unknown).await.refused(400, "M_UNSUPPORTED_ROOM_VERSION");
    }
    for wrong in [json!(12), json!(["12"]), json!({}), json!(true)] {
        alice.post(create, json!({ "room_version": wrong })).await.refused(400, "M_BAD_JSON");
    }
    alice.post(create, json!({ "room_version": null })).await.ok();
}

#[tokio::test]
async fn a_room_begins_with_what_was_asked_for() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let request = json!({
        "name": "Tea", "topic": "Leaves", "room_alias_name": "tea", "invite": [bob.user_id], "is_direct": true,
        "creation_content": { "type": "m.space", "m.federate": false },
        "power_level_content_override": { "events_default": 10 },
        "initial_state": [{ "type": "m.room.encryption", "content": { "algorithm": "m.megolm.v1.aes-sha2" } }],
    });
    let room = alice.creates_a_room(request.clone()).await;
    let get = async |rest: &str| alice.get(&room_path(&room, rest)).await.ok();
    assert_eq!(get("state/m.room.name").await, json!({ "name": "Tea" }));
    assert_eq!(get("state/m.room.name/").await, json!({ "name": "Tea" }));
    assert_eq!(get("state/m.room.topic").await["topic"], "Leaves");
    assert_eq!(get("state/m.room.canonical_alias").await["alias"], "#tea:hearth.test");
    assert_eq!(get("state/m.room.create").await["type"], "m.space");
    assert_eq!(get("state/m.room.power_levels").await["events_default"], 10);
    assert_eq!(get("state/m.room.encryption").await["algorithm"], "m.megolm.v1.aes-sha2");
    let invite = get(&format!("state/m.room.member/{}", encoded(bob.user_id.as_str()))).await;
    assert_eq!((&invite["membership"], &invite["is_direct"]), (&json!("invite"), &json!(true)));
    let event = get("state/m.room.name?format=event").await;
    assert_eq!((&event["type"], &event["room_id"]), (&json!("m.room.name"), &json!(room)));

    let create = "/_matrix/client/v3/createRoom";
    alice.post(create, request).await.refused(400, "M_ROOM_IN_USE");
    alice.post(create, json!({ "preset": "nonsense" })).await.refused(400, "M_INVALID_PARAM");
    alice.post(create, json!({ "room_alias_name": "a:b" })).await.refused(400, "M_INVALID_PARAM");
    alice.post(create, json!({ "initial_state": [{ "type": "x" }] })).await.refused(400, "M_BAD_JSON");
    let nobody = json!({ "invite": ["@nobody:hearth.test"] });
    alice.post(create, nobody).await.refused(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn a_transaction_is_sent_once() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let room = alice.creates_a_room(json!({})).await;
    let path = room_path(&room, "send/m.room.message/t1");
    let content = json!({ "msgtype": "m.text", "body": "once" });
    let first = alice.put(&path, content.clone()).await.ok();
    let repeats = (0..8).map(|_| alice.put(&path, content.clone()));
    for again in futures_util::future::join_all(repeats).await {
        assert_eq!(again.ok(), first);
    }
    // Another device's transaction of that name is another one.
    let phone = server.device(&alice.user_id, "PHONE").await;
    assert_ne!(phone.put(&path, content).await.ok(), first);

    let event = first["event_id"].as_str().unwrap();
    let event = room_path(&room, &format!("event/{}", encoded(event)));
    assert_eq!(alice.get(&event).await.ok()["unsigned"]["transaction_id"], "t1");
    assert_eq!(phone.get(&event).await.ok()["unsigned"]["transaction_id"], Value::Null);
}

#[tokio::test]
async fn state_that_says_the_same_is_the_same_event() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = alice.creates_a_public_room().await;
    bob.joins(&room).await;
    let first = alice.sets(&room, "m.room.topic", "", json!({ "topic": "a" })).await;
    assert_eq!(alice.sets(&room, "m.room.topic", "", json!({ "topic": "a" })).await, first);
    assert_ne!(alice.sets(&room, "m.room.topic", "", json!({ "topic": "b" })).await, first);
    let odd_key = "a/b c#%é";
    alice.sets(&room, "org.example.odd", odd_key, json!({ "x": 1 })).await;
    let odd = format!("state/org.example.odd/{}", encoded(odd_key));
    assert_eq!(alice.get(&room_path(&room, &odd)).await.ok(), json!({ "x": 1 }));

    let topic = room_path(&room, "state/m.room.topic");
    bob.put(&topic, json!({ "topic": "mine" })).await.refused(403, "M_FORBIDDEN");
    bob.get(&room_path(&room, "state/m.room.nothing")).await.refused(404, "M_NOT_FOUND");
    let own_member = room_path(&room, &format!("state/m.room.member/{}", encoded(bob.user_id.as_str())));
    bob.put(&own_member, json!({ "membership": "join", "displayname": "Bob here" })).await.ok();
    let alias = json!({ "alias": "#nowhere:hearth.test" });
    alice.put(&room_path(&room, "state/m.room.canonical_alias"), alias).await.refused(400, "M_BAD_ALIAS");
}

#[tokio::test]
async fn events_have_a_size() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let room = alice.creates_a_room(json!({})).await;
    let send = |kind: &str| room_path(&room, &format!("send/{kind}/t{}", server.fresh()));
    let long = json!({ "body": "x".repeat(66_000) });
    alice.put(&send("m.room.message"), long).await.refused(413, "M_TOO_LARGE");
    alice.put(&send(&"k".repeat(256)), json!({})).await.refused(413, "M_TOO_LARGE");
    let longest = json!({ "msgtype": "m.text", "body": "x".repeat(60_000) });
    alice.put(&send("m.room.message"), longest).await.ok();
    alice.put(&send("m.room.message"), json!({ "body": 1.5 })).await.refused(400, "M_BAD_JSON");
    alice.put(&send("m.room.create"), json!({})).await.refused(403, "M_FORBIDDEN");
}

#[tokio::test]
async fn redaction_takes_the_content_away() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    for version in ["10", "12"] {
        let room = alice.creates_a_room(json!({ "preset": "public_chat", "room_version": version })).await;
        bob.joins(&room).await;
        let secret = bob.says(&room, "secret").await;
        let other = alice.says(&room, "kept").await;
        let redact = |event: &str, txn: &str| room_path(&room, &format!("redact/{}/{txn}", encoded(event)));
        bob.put(&redact(&other, "1"), json!({})).await.refused(403, "M_FORBIDDEN");
        alice.put(&redact("$nothing", "1"), json!({})).await.refused(404, "M_NOT_FOUND");
        let done = alice.put(&redact(&secret, "2"), json!({ "reason": "spam" })).await.ok();
        assert_eq!(alice.put(&redact(&secret, "2"), json!({ "reason": "spam" })).await.ok(), done);
        let event = alice.get(&room_path(&room, &format!("event/{}", encoded(&secret)))).await.ok();
        assert_eq!(event["content"], json!({}));
        let because = &event["unsigned"]["redacted_because"];
        assert_eq!((&because["redacts"], &because["content"]["redacts"]), (&json!(secret), &json!(secret)));
        assert_eq!(because["content"]["reason"], "spam");
        // In every version a redaction may also be sent like any event.
        let through_send = bob.sends(&room, "m.room.redaction", json!({ "redacts": secret })).await;
        assert!(through_send.starts_with('$'));
    }
}

#[tokio::test]
async fn members_are_listed_to_those_who_may_know() {
    let server = TestServer::start().await;
    let (alice, bob, eve) = (server.user("alice").await, server.user("bob").await, server.user("eve").await);
    let room = alice.creates_a_public_room().await;
    bob.joins(&room).await;
    let members = |query: &str| room_path(&room, &format!("members{query}"));
    let names = |answer: Value| -> Vec<String> {
        let chunk = answer["chunk"].as_array().unwrap().clone();
        let mut names: Vec<_> =
            chunk.iter().map(|event| event["state_key"].as_str().unwrap().to_owned()).collect();
        names.sort();
        names
    };
    assert_eq!(names(alice.get(&members("")).await.ok()), ["@alice:hearth.test", "@bob:hearth.test"]);
    let joined = alice.get(&room_path(&room, "joined_members")).await.ok();
    let bobs = json!({ "display_name": "bob", "avatar_url": null });
    assert_eq!(joined["joined"]["@bob:hearth.test"], bobs);
    bob.leaves(&room).await;
    alice.sets(&room, "m.room.name", "", json!({ "name": "without bob" })).await;
    assert_eq!(names(alice.get(&members("?membership=leave")).await.ok()), ["@bob:hearth.test"]);
    assert_eq!(names(alice.get(&members("?not_membership=leave")).await.ok()), ["@alice:hearth.test"]);
    // Who left sees the room as they left it.
    bob.get(&room_path(&room, "state/m.room.name")).await.refused(404, "M_NOT_FOUND");
    bob.get(&room_path(&room, "joined_members")).await.refused(403, "M_FORBIDDEN");
    eve.get(&members("")).await.refused(403, "M_FORBIDDEN");
    eve.get(&room_path(&room, "state")).await.refused(403, "M_FORBIDDEN");
    eve.get(&room_path("!nowhere:hearth.test", "state")).await.refused(403, "M_FORBIDDEN");
    alice
        .sets(&room, "m.room.history_visibility", "", json!({ "history_visibility": "world_readable" }))
        .await;
    eve.get(&room_path(&room, "state")).await.ok();
}

#[tokio::test]
async fn a_suspended_user_reads_and_leaves_and_a_locked_one_logs_out() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = alice.creates_a_public_room().await;
    bob.joins(&room).await;
    server.app.users.set_suspended(&bob.user_id, true).await.unwrap();
    let send = room_path(&room, "send/m.room.message/x");
    bob.put(&send, json!({ "body": "x" })).await.refused(403, "M_USER_SUSPENDED");
    bob.post(&room_path(&room, "join"), json!({})).await.refused(403, "M_USER_SUSPENDED");
    bob.get(&room_path(&room, "messages?dir=b")).await.ok();
    bob.leaves(&room).await;
    server.app.users.set_locked(&bob.user_id, true).await.unwrap();
    let locked = bob.get("/_matrix/client/v3/joined_rooms").await.refused(401, "M_USER_LOCKED");
    assert_eq!(locked["soft_logout"], true);
    bob.post("/_matrix/client/v3/logout", json!({})).await.ok();
}

#[tokio::test]
async fn tokens_may_come_in_the_query_string_only_where_that_is_allowed() {
    for (allowed, status) in [(true, 200), (false, 401)] {
        let server = TestServer::with(|config| config.query_access_tokens = allowed).await;
        let alice = server.user("alice").await;
        let path = format!("/_matrix/client/v3/joined_rooms?access_token={}", alice.token);
        assert_eq!(server.request(Method::GET, &path, None, None).await.status, status);
    }
}

#[tokio::test]
async fn too_many_messages_are_slowed_down() {
    let server = TestServer::with(|config| {
        config.rate_limits.enabled = true;
        config.rate_limits.messages.burst = 2.0;
        config.rate_limits.messages.per_second = 0.5;
    })
    .await;
    let alice = server.user("alice").await;
    let room = alice.creates_a_room(json!({})).await;
    alice.says(&room, "1").await;
    alice.says(&room, "2").await;
    let path = room_path(&room, "send/m.room.message/t3");
    let refused = alice.put(&path, json!({ "body": "3" })).await;
    let json = refused.refused(429, "M_LIMIT_EXCEEDED");
    assert!(json["retry_after_ms"].as_u64().unwrap() > 1000);
    assert_eq!(refused.headers["retry-after"], "2");
    let admin = server.admin("root").await;
    let room = admin.creates_a_room(json!({})).await;
    for text in ["1", "2", "3"] {
        admin.says(&room, text).await;
    }
}
