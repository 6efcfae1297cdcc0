//! Joining, inviting, knocking, leaving, kicking and banning.

use hearth::testing::{TestServer, TestUser, encoded};
use serde_json::{Value, json};

fn room_path(room: &str, rest: &str) -> String {
    format!("/_matrix/client/v3/rooms/{}/{rest}", encoded(room))
}

async fn member(asker: &TestUser, room: &str, user: &TestUser) -> Value {
    let key = encoded(user.user_id.as_str());
    asker.get(&room_path(room, &format!("state/m.room.member/{key}"))).await.ok()
}

#[tokio::test]
async fn only_the_invited_come_into_a_private_room() {
    let server = TestServer::start().await;
    let (alice, bob, eve) = (server.user("alice").await, server.user("bob").await, server.user("eve").await);
    let room = alice.creates_a_room(json!({})).await;
    let join = room_path(&room, "join");
    eve.post(&join, json!({})).await.refused(403, "M_FORBIDDEN");
    eve.post(&room_path(&room, "invite"), json!({ "user_id": eve.user_id }))
        .await
        .refused(403, "M_FORBIDDEN");
    let invite = json!({ "user_id": bob.user_id, "reason": "come" });
    alice.post(&room_path(&room, "invite"), invite.clone()).await.ok();
    assert_eq!(member(&alice, &room, &bob).await["reason"], "come");
    bob.post(&join, json!({ "reason": "here" })).await.ok();
    assert_eq!(member(&alice, &room, &bob).await["membership"], "join");
    alice.post(&room_path(&room, "invite"), invite).await.refused(403, "M_FORBIDDEN");
    let rooms = bob.get("/_matrix/client/v3/joined_rooms").await.ok();
    assert_eq!(rooms["joined_rooms"], json!([room]));
    // Joining again changes nothing.
    bob.joins(&room).await;
    let nobody = json!({ "user_id": "@nobody:hearth.test" });
    alice.post(&room_path(&room, "invite"), nobody).await.refused(404, "M_NOT_FOUND");
    let by_mail = json!({ "medium": "email", "address": "a@b.c", "id_server": "x", "id_access_token": "y" });
    alice.post(&room_path(&room, "invite"), by_mail).await.refused(403, "M_THREEPID_DENIED");
    alice.post(&room_path(&room, "invite"), json!({})).await.refused(400, "M_MISSING_PARAM");
}

#[tokio::test]
async fn who_blocks_invites_gets_none() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = alice.creates_a_room(json!({})).await;
    let bobs = encoded(bob.user_id.as_str());
    let path = format!("/_matrix/client/v3/user/{bobs}/account_data/m.invite_permission_config");
    bob.put(&path, json!({ "default_action": "block" })).await.ok();
    let invite = json!({ "user_id": bob.user_id });
    alice.post(&room_path(&room, "invite"), invite).await.refused(403, "M_INVITE_BLOCKED");
}

#[tokio::test]
async fn rooms_are_joined_by_alias_and_unknown_ones_are_not_found() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    alice.creates_a_room(json!({ "preset": "public_chat", "room_alias_name": "tea/1" })).await;
    bob.joins("#tea/1:hearth.test").await;
    for (unknown, via, status, errcode) in [
        ("#none:hearth.test", "elsewhere.test", 404, "M_NOT_FOUND"),
        ("!none:hearth.test", "hearth.test", 404, "M_NOT_FOUND"),
        ("!none", "hearth.test", 404, "M_NOT_FOUND"),
        // Servers that could know are asked, and cannot be reached.
        ("!none:hearth.test", "elsewhere.test", 502, "M_UNKNOWN"),
        ("!none:elsewhere.test", "hearth.test", 502, "M_UNKNOWN"),
        ("#none:elsewhere.test", "hearth.test", 502, "M_UNKNOWN"),
    ] {
        let path = format!("/_matrix/client/v3/join/{}?via={via}", encoded(unknown));
        bob.post(&path, json!({})).await.refused(status, errcode);
    }
    bob.post("/_matrix/client/v3/join/nonsense", json!({})).await.refused(400, "M_INVALID_PARAM");
}

#[tokio::test]
async fn what_a_client_adds_to_a_join_is_in_the_event_and_means_nothing_to_the_server() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = alice.creates_a_room(json!({ "preset": "public_chat", "room_alias_name": "tea" })).await;
    bob.joins(&room).await;
    let plain = member(&alice, &room, &bob).await;
    bob.leaves(&room).await;
    let mut body = json!({
        "membership": "ban", "displayname": "Alice", "avatar_url": "mxc://a/b", "is_direct": true,
        "third_party_signed": {
            "sender": alice.user_id, "mxid": bob.user_id, "token": "t", "signatures": { "x": { "ed25519:1": "y" } },
        },
        "third_party_invite": { "display_name": "b" }, "join_authorised_via_users_server": alice.user_id,
    });
    let by_alias = encoded("#tea:hearth.test");
    for path in ["rooms/{room}/join", "join/{room}", "join/{alias}"] {
        let path = path.replace("{room}", &encoded(&room)).replace("{alias}", &by_alias);
        body["org.example.from"] = json!({ "path": path, "n": [1, null] });
        body["reason"] = json!("tea");
        bob.post(&format!("/_matrix/client/v3/{path}"), body.clone()).await.ok();
        let mut expected = plain.clone();
        expected["org.example.from"] = body["org.example.from"].clone();
        expected["reason"] = json!("tea");
        assert_eq!(member(&alice, &room, &bob).await, expected);
        bob.leaves(&room).await;
    }
    let join = room_path(&room, "join");
    bob.post(&join, json!({ "x": 1.5 })).await.refused(400, "M_BAD_JSON");
    bob.post(&join, json!({ "x": "x".repeat(40_000) })).await.refused(413, "M_TOO_LARGE");
    assert_eq!(member(&alice, &room, &bob).await["membership"], "leave");
}

#[tokio::test]
async fn leaving_forgetting_and_coming_back() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = alice.creates_a_public_room().await;
    bob.joins(&room).await;
    bob.post(&room_path(&room, "forget"), json!({})).await.refused(400, "M_UNKNOWN");
    bob.leaves(&room).await;
    bob.leaves(&room).await;
    bob.post(&room_path(&room, "forget"), json!({})).await.ok();
    bob.get(&room_path(&room, "messages?dir=b")).await.refused(403, "M_FORBIDDEN");
    bob.joins(&room).await;
    bob.get(&room_path(&room, "messages?dir=b")).await.ok();
    alice.invites(&alice.creates_a_room(json!({})).await, &bob).await;
    let eve = server.user("eve").await;
    eve.post(&room_path(&room, "leave"), json!({})).await.refused(403, "M_FORBIDDEN");
}

#[tokio::test]
async fn an_invite_can_be_rejected() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = alice.creates_a_room(json!({ "invite": [bob.user_id] })).await;
    bob.leaves(&room).await;
    assert_eq!(member(&alice, &room, &bob).await["membership"], "leave");
    bob.post(&room_path(&room, "join"), json!({})).await.refused(403, "M_FORBIDDEN");
}

#[tokio::test]
async fn power_is_needed_to_put_others_out() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = alice.creates_a_public_room().await;
    bob.joins(&room).await;
    let on = |user: &TestUser| json!({ "user_id": user.user_id, "reason": "why" });
    for act in ["kick", "ban"] {
        bob.post(&room_path(&room, act), on(&alice)).await.refused(403, "M_FORBIDDEN");
    }
    alice.post(&room_path(&room, "kick"), on(&bob)).await.ok();
    assert_eq!(member(&alice, &room, &bob).await["membership"], "leave");
    alice.post(&room_path(&room, "kick"), on(&bob)).await.refused(403, "M_FORBIDDEN");
    alice.post(&room_path(&room, "unban"), on(&bob)).await.refused(403, "M_BAD_STATE");
    bob.joins(&room).await;
    alice.post(&room_path(&room, "ban"), on(&bob)).await.ok();
    assert_eq!(member(&alice, &room, &bob).await["reason"], "why");
    bob.post(&room_path(&room, "join"), json!({})).await.refused(403, "M_FORBIDDEN");
    bob.post(&room_path(&room, "leave"), json!({})).await.refused(403, "M_FORBIDDEN");
    alice.post(&room_path(&room, "invite"), on(&bob)).await.refused(403, "M_FORBIDDEN");
    alice.post(&room_path(&room, "unban"), on(&bob)).await.ok();
    bob.joins(&room).await;
}

#[tokio::test]
async fn knocking_asks_to_be_let_in() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = alice.creates_a_room(json!({})).await;
    let knock = format!("/_matrix/client/v3/knock/{}", encoded(&room));
    bob.post(&knock, json!({})).await.refused(403, "M_FORBIDDEN");
    alice.sets(&room, "m.room.join_rules", "", json!({ "join_rule": "knock" })).await;
    assert_eq!(bob.post(&knock, json!({ "reason": "please" })).await.ok()["room_id"], json!(room));
    assert_eq!(member(&alice, &room, &bob).await["membership"], "knock");
    bob.post(&room_path(&room, "join"), json!({})).await.refused(403, "M_FORBIDDEN");
    bob.leaves(&room).await;
    bob.post(&knock, json!({})).await.ok();
    alice.invites(&room, &bob).await;
    bob.joins(&room).await;
    bob.post(&knock, json!({})).await.refused(403, "M_FORBIDDEN");
    bob.post("/_matrix/client/v3/knock/%21none%3Ahearth.test", json!({})).await.refused(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn members_of_another_room_may_join_a_restricted_one() {
    let server = TestServer::start().await;
    let (alice, bob, eve) = (server.user("alice").await, server.user("bob").await, server.user("eve").await);
    let club = alice.creates_a_public_room().await;
    bob.joins(&club).await;
    for version in ["8", "10", "12"] {
        let rule =
            json!({ "join_rule": "restricted", "allow": [{ "type": "m.room_membership", "room_id": club }] });
        let room = alice
            .creates_a_room(json!({
                "room_version": version,
                "initial_state": [{ "type": "m.room.join_rules", "content": rule }],
            }))
            .await;
        bob.joins(&room).await;
        let join = member(&alice, &room, &bob).await;
        assert_eq!(join["join_authorised_via_users_server"], "@alice:hearth.test");
        eve.post(&room_path(&room, "join"), json!({})).await.refused(403, "M_FORBIDDEN");
    }
}
