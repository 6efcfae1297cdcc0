//! Coming in, leaving, knocking, being invited; lists; tokens.

use hearth::testing::{Answer, TestServer, encoded};
use hearth_dag::{Pdu, ReceivedPdu, RoomRules, VerifiedPdu};
use hearth_federation::inbound::{
    INVITES_AT_ONCE_OF_A_SERVER, INVITES_AT_ONCE_TO_A_USER, PENDING_INVITES_MAX,
};
use hearth_rooms::OutOfBand;
use ruma::RoomVersionId;
use serde_json::{Value, json, value::RawValue};

use crate::world::*;

const ACL: &str = "m.room.server_acl";

#[tokio::test]
async fn a_user_of_another_server_joins_and_both_servers_have_one_room() {
    for version in ["6", "10", "12"] {
        let (here, there) = two().await;
        let (alice, bob) = (here.user("alice").await, there.user("bob").await);
        let room = alice.creates_a_room(json!({ "preset": "public_chat", "room_version": version })).await;
        joins(&bob, &room, &here).await;
        assert_eq!(state_of(&here, &room).await, state_of(&there, &room).await, "version {version}");
        let members =
            alice.get(&format!("/_matrix/client/v3/rooms/{}/joined_members", encoded(&room))).await.ok();
        assert!(members["joined"]["@bob:there.test"].is_object());
    }
}

#[tokio::test]
async fn who_may_not_join_hears_why() {
    let (here, _) = two().await;
    let alice = here.user("alice").await;
    let remote = Remote::new(&here, "remote.test");
    let private = alice.creates_a_room(json!({ "preset": "private_chat" })).await;
    let restricted = json!({ "type": "m.room.join_rules", "state_key": "", "content": {
        "join_rule": "restricted", "allow": [{ "type": "m.room_membership", "room_id": "!elsewhere:other.test" }] } });
    let restricted = alice.creates_a_room(json!({ "initial_state": [restricted] })).await;
    let public = alice.creates_a_public_room().await;
    let make = |room: &str, user: &str, versions: &str| {
        format!("/_matrix/federation/v1/make_join/{}/{}?{versions}", encoded(room), encoded(user))
    };
    let bob = "@bob:remote.test";
    remote.get(&make(&private, bob, "ver=12")).await.refused(403, "M_FORBIDDEN");
    remote.get(&make("!no:where.test", bob, "ver=12")).await.refused(404, "M_NOT_FOUND");
    remote.get(&make(&public, "@alice:here.test", "ver=12")).await.refused(403, "M_FORBIDDEN");
    let refused = remote.get(&make(&public, bob, "ver=1&ver=9")).await;
    assert_eq!(refused.refused(400, "M_INCOMPATIBLE_ROOM_VERSION")["room_version"], "12");
    remote.get(&make(&public, bob, "")).await.refused(400, "M_INCOMPATIBLE_ROOM_VERSION");
    remote.get(&make(&restricted, bob, "ver=12")).await.refused(400, "M_UNABLE_TO_AUTHORISE_JOIN");
    remote.get(&make(&public, "no-user", "ver=12")).await.refused(400, "M_INVALID_PARAM");

    // What is submitted has to be the join that the path names, by a user of the server that asks.
    let mut seen = remote.joins("carol", &public).await;
    let base = (seen.last.clone(), seen.depth);
    let message = remote.says(&mut seen, "carol", "no join");
    (seen.last, seen.depth) = base;
    let send =
        |event: &str| format!("/_matrix/federation/v2/send_join/{}/{}", encoded(&public), encoded(event));
    remote.put(&send(&seen.id_of(&message)), &message).await.refused(400, "M_BAD_JSON");
    let join = remote.draft(&mut seen, "bob", "m.room.member", Some(bob), json!({ "membership": "join" }));
    let join = remote.sign(&seen, join);
    remote.put(&send("$another"), &join).await.refused(400, "M_BAD_JSON");
    let other = Remote::new(&here, "other.test");
    other.put(&send(&seen.id_of(&join)), &join).await.refused(400, "M_BAD_JSON");
    remote.put(&send(&seen.id_of(&join)), &join).await.ok();
}

#[tokio::test]
async fn a_user_leaves_and_another_knocks() {
    let (here, _) = two().await;
    let alice = here.user("alice").await;
    let remote = Remote::new(&here, "remote.test");
    let room = alice.creates_a_public_room().await;
    remote.joins("bob", &room).await;
    let handshake = async |step: &str, version: &str, user: &str| {
        let path = format!("/_matrix/federation/v1/make_{step}/{}/{}?ver=12", encoded(&room), encoded(user));
        let template = remote.get(&path).await.ok();
        let event = RawValue::from_string(template["event"].to_string()).unwrap();
        let event = complete(remote.key(), &RoomVersionId::V12, &event);
        let id = encoded(event.pdu().event_id().as_str());
        let path = format!("/_matrix/federation/{version}/send_{step}/{}/{id}", encoded(&room));
        remote.put(&path, &serde_json::from_str(event.pdu().json()).unwrap()).await.ok()
    };
    assert_eq!(handshake("leave", "v2", "@bob:remote.test").await, json!({}));
    remote.joins("carol", &room).await;
    assert_eq!(handshake("leave", "v1", "@carol:remote.test").await, json!([200, {}]));
    alice.sets(&room, "m.room.join_rules", "", json!({ "join_rule": "knock" })).await;
    let knocked = handshake("knock", "v1", "@dan:remote.test").await;
    let kinds: Vec<&str> = knocked["knock_room_state"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| event["type"].as_str().unwrap())
        .collect();
    assert!(kinds.contains(&"m.room.create") && kinds.contains(&"m.room.join_rules"), "{kinds:?}");
    let member = |user: &str| {
        let path =
            format!("/_matrix/client/v3/rooms/{}/state/m.room.member/{}", encoded(&room), encoded(user));
        let alice = alice.clone();
        async move { alice.get(&path).await.ok()["membership"].clone() }
    };
    assert_eq!(member("@bob:remote.test").await, "leave");
    assert_eq!(member("@dan:remote.test").await, "knock");
}

/// An invite of `@bob:here.test` by a user of the remote, to a room of the remote's own.
fn invite(remote: &Remote, version: &RoomVersionId, invited: &str) -> (String, String, Value) {
    invite_to(remote, version, "!theirs:remote.test", invited)
}

fn invite_to(remote: &Remote, version: &RoomVersionId, room: &str, invited: &str) -> (String, String, Value) {
    let rules = RoomRules::of(version).unwrap();
    let mut event = json!({
        "type": "m.room.member", "room_id": room, "sender": remote.user("eve"), "state_key": invited,
        "content": { "membership": "invite" }, "origin_server_ts": 5, "depth": 3,
        "prev_events": ["$prev"], "auth_events": ["$auth"],
    });
    if rules.event_references_have_hashes {
        let hash = json!({ "sha256": "AAAA" });
        event["prev_events"] = json!([["$p:remote.test", hash]]);
        event["auth_events"] = json!([["$a:remote.test", hash]]);
        event["event_id"] = json!("$invite:remote.test");
    }
    let pdu = sign(remote.key(), rules, event);
    (room.to_owned(), pdu.pdu().event_id().to_string(), serde_json::from_str(pdu.pdu().json()).unwrap())
}

async fn invites_of(here: &TestServer, user: &hearth::testing::TestUser) -> Value {
    let _ = here;
    user.get("/_matrix/client/v3/sync").await.ok()["rooms"]["invite"].clone()
}

#[tokio::test]
async fn a_user_is_invited_to_a_room_that_this_server_is_not_in() {
    let (here, _) = two().await;
    let bob = here.user("bob").await;
    let remote = Remote::new(&here, "remote.test");
    let name = json!({ "type": "m.room.name", "state_key": "", "sender": "@eve:remote.test",
        "content": { "name": "Theirs" } });

    let (room, id, event) = invite(&remote, &RoomVersionId::V11, "@bob:here.test");
    let path = format!("/_matrix/federation/v2/invite/{}/{}", encoded(&room), encoded(&id));
    let body = json!({ "room_version": "11", "event": event, "invite_room_state": [name] });
    let signed = remote.put(&path, &body).await.ok();
    let signatures = signed["event"]["signatures"].as_object().unwrap();
    assert!(signatures.contains_key("here.test") && signatures.contains_key("remote.test"));
    let invites = invites_of(&here, &bob).await;
    let events = invites[&room]["invite_state"]["events"].as_array().unwrap().clone();
    assert!(events.iter().any(|event| event["content"]["name"] == "Theirs"), "{invites}");
    // The same again is answered the same.
    assert_eq!(remote.put(&path, &body).await.ok(), signed);

    // It ends when they say so, though we are not in the room.
    let mut leave = json!({
        "type": "m.room.member", "room_id": room, "sender": remote.user("eve"), "state_key": "@bob:here.test",
        "content": { "membership": "leave" }, "origin_server_ts": 6, "depth": 4,
        "prev_events": [id], "auth_events": [id],
    });
    leave = serde_json::from_str(
        sign(remote.key(), RoomRules::of(&RoomVersionId::V11).unwrap(), leave).pdu().json(),
    )
    .unwrap();
    remote.sends(&[leave], &[]).await.ok();
    assert_eq!(invites_of(&here, &bob).await.get(&room), None);
}

async fn invites_once(remote: &Remote, user: &str) -> Answer {
    let room = format!("!r{}:{}", remote.of.fresh(), remote.name);
    let (room, id, event) = invite_to(remote, &RoomVersionId::V11, &room, user);
    let path = format!("/_matrix/federation/v2/invite/{}/{}", encoded(&room), encoded(&id));
    let body = json!({ "room_version": "11", "event": event, "invite_room_state": [] });
    remote.put(&path, &body).await
}

/// Whoever has a server, or many, can invite a user of ours only so often, and so can one server all of them.
#[tokio::test]
async fn users_are_invited_only_so_often() {
    let (here, _) = two().await;
    here.user("bob").await;
    here.user("carol").await;
    let (remote, other) = (Remote::new(&here, "remote.test"), Remote::new(&here, "other.test"));
    for _ in 0..INVITES_AT_ONCE_TO_A_USER as usize {
        invites_once(&remote, "@bob:here.test").await.ok();
    }
    let refused = invites_once(&other, "@bob:here.test").await;
    assert!(refused.refused(429, "M_LIMIT_EXCEEDED")["retry_after_ms"].as_u64().unwrap() > 0);
    invites_once(&other, "@carol:here.test").await.ok();
    // Also those that are for nobody count.
    for _ in INVITES_AT_ONCE_TO_A_USER as usize..INVITES_AT_ONCE_OF_A_SERVER as usize {
        let answer = invites_once(&remote, "@nobody:here.test").await;
        if answer.status == 429 {
            break;
        }
        answer.refused(404, "M_NOT_FOUND");
    }
    // The account of the server fills up meanwhile, a little.
    let mut more = 0;
    while invites_once(&remote, "@nobody:here.test").await.status != 429 {
        more += 1;
        assert!(more < 50, "it never ends");
    }
    invites_once(&other, "@carol:here.test").await.ok();
}

#[tokio::test]
async fn open_invites_of_other_servers_are_bounded() {
    let (here, _) = two().await;
    let bob = here.user("bob").await;
    let remote = Remote::new(&here, "remote.test");
    for _ in 0..PENDING_INVITES_MAX {
        let room = format!("!r{}:remote.test", here.fresh());
        let (room, _, event) = invite_to(&remote, &RoomVersionId::V11, &room, "@bob:here.test");
        let rules = RoomRules::of(&RoomVersionId::V11).unwrap();
        let id = ReceivedPdu::parse(rules, &event.to_string()).unwrap().pdu().event_id().to_owned();
        let pdu = Pdu::from_stored(rules, id, event.to_string().into()).unwrap();
        let told = OutOfBand {
            room_id: room.try_into().unwrap(),
            version: RoomVersionId::V11,
            event: VerifiedPdu::built_here(pdu),
            state: Vec::new(),
        };
        here.app.rooms.receive_out_of_band(&told).await.unwrap();
    }
    invites_once(&remote, "@bob:here.test").await.refused(429, "M_LIMIT_EXCEEDED");
    let invites = invites_of(&here, &bob).await;
    let room = invites.as_object().unwrap().keys().next().unwrap().clone();
    bob.post(&format!("/_matrix/client/v3/rooms/{}/leave", encoded(&room)), json!({})).await.ok();
    invites_once(&remote, "@bob:here.test").await.ok();
}

#[tokio::test]
async fn invites_that_are_not_for_us_are_refused() {
    let (here, _) = two().await;
    let bob = here.user("bob").await;
    let remote = Remote::new(&here, "remote.test");
    let other = Remote::new(&here, "other.test");
    for server in [&remote, &other] {
        // Their keys are fetched once.
        server.get("/_matrix/federation/v1/publicRooms").await.ok();
    }
    let before = here.digest().await;
    let put = async |remote: &Remote, invited: &str, version: &str, id: Option<&str>| {
        let (room, own, event) = invite(remote, &RoomVersionId::V11, invited);
        let path =
            format!("/_matrix/federation/v2/invite/{}/{}", encoded(&room), encoded(id.unwrap_or(&own)));
        remote.put(&path, &json!({ "room_version": version, "event": event, "invite_room_state": [] })).await
    };
    put(&remote, "@nobody:here.test", "11", None).await.refused(404, "M_NOT_FOUND");
    put(&remote, "@bob:elsewhere.test", "11", None).await.refused(404, "M_NOT_FOUND");
    put(&remote, "@bob:here.test", "11", Some("$other")).await.refused(400, "M_BAD_JSON");
    let refused = put(&remote, "@bob:here.test", "99", None).await;
    assert_eq!(refused.refused(400, "M_INCOMPATIBLE_ROOM_VERSION")["room_version"], "99");
    // Somebody else's invite.
    let (room, id, event) = invite(&remote, &RoomVersionId::V11, "@bob:here.test");
    let path = format!("/_matrix/federation/v2/invite/{}/{}", encoded(&room), encoded(&id));
    let body = json!({ "room_version": "11", "event": event, "invite_room_state": [] });
    other.put(&path, &body).await.refused(400, "M_BAD_JSON");
    // A signature that does not hold.
    let mut forged = body.clone();
    forged["event"]["content"]["reason"] = json!("changed");
    forged["event"]["sender"] = json!("@mallory:remote.test");
    assert!(remote.put(&path, &forged).await.status.is_client_error());
    assert_eq!(here.digest().await, before);
    assert_eq!(invites_of(&here, &bob).await, Value::Null);

    // The first form is for rooms of the first versions.
    let (room, id, event) = invite(&remote, &RoomVersionId::V1, "@bob:here.test");
    let path = format!("/_matrix/federation/v1/invite/{}/{}", encoded(&room), encoded(&id));
    let signed = remote.put(&path, &event).await.ok();
    assert!(signed[0] == 200 && signed[1]["event"]["signatures"]["here.test"].is_object(), "{signed}");
    assert!(invites_of(&here, &bob).await[&room].is_object());
}

#[tokio::test]
async fn a_server_that_the_acl_keeps_out_gets_nothing_of_the_room() {
    let (here, _) = two().await;
    let alice = here.user("alice").await;
    let remote = Remote::new(&here, "remote.test");
    let room = alice.creates_a_public_room().await;
    let mut seen = remote.joins("bob", &room).await;
    let event = alice.says(&room, "hello").await;
    alice.sets(&room, ACL, "", json!({ "allow": ["*"], "deny": ["REMOTE.*"] })).await;
    let (id, of_event) = (encoded(&room), encoded(&event));
    let get = |path: &str| format!("/_matrix/federation/v1/{path}");
    for path in [
        get(&format!("make_join/{id}/%40new%3Aremote.test?ver=12")),
        get(&format!("make_leave/{id}/%40bob%3Aremote.test")),
        get(&format!("make_knock/{id}/%40new%3Aremote.test?ver=12")),
        get(&format!("state/{id}?event_id={of_event}")),
        get(&format!("state_ids/{id}?event_id={of_event}")),
        get(&format!("event_auth/{id}/{of_event}")),
        get(&format!("backfill/{id}?v={of_event}&limit=5")),
        get(&format!("timestamp_to_event/{id}?ts=5&dir=f")),
    ] {
        remote.get(&path).await.refused(403, "M_FORBIDDEN");
    }
    let missing = json!({ "earliest_events": [], "latest_events": [event] });
    remote.post(&get(&format!("get_missing_events/{id}")), &missing).await.refused(403, "M_FORBIDDEN");
    let message = remote.says(&mut seen, "bob", "hello?");
    for path in ["v1/send_join", "v2/send_join", "v1/send_leave", "v2/send_leave", "v1/send_knock"] {
        let path = format!("/_matrix/federation/{path}/{id}/{of_event}");
        remote.put(&path, &message).await.refused(403, "M_FORBIDDEN");
    }
    let invite = json!({ "room_version": "12", "event": message, "invite_room_state": [] });
    let path = format!("/_matrix/federation/v2/invite/{id}/{of_event}");
    remote.put(&path, &invite).await.refused(403, "M_FORBIDDEN");
    let message_id = seen.id_of(&message);
    let answer = remote.sends(&[message], &[]).await.ok();
    assert!(answer["pdus"][&message_id]["error"].is_string(), "{answer}");
    assert!(!has(&here, &room, &message_id).await);
}

#[tokio::test]
async fn lists_of_rooms_show_what_a_server_may_know() {
    let (here, there) = two().await;
    let alice = here.user("alice").await;
    let listed =
        alice.creates_a_room(json!({ "visibility": "public", "preset": "public_chat", "name": "Tea" })).await;
    alice
        .creates_a_room(json!({ "visibility": "public", "preset": "public_chat", "name": "Local",
        "creation_content": { "m.federate": false } }))
        .await;
    let private = alice.creates_a_room(json!({ "preset": "private_chat", "name": "Secret" })).await;
    let space = alice
        .creates_a_room(json!({ "preset": "public_chat", "creation_content": { "type": "m.space" } }))
        .await;
    for child in [&listed, &private] {
        alice.sets(&space, "m.space.child", child, json!({ "via": ["here.test"] })).await;
    }
    let remote = Remote::new(&here, "remote.test");
    let rooms = remote.get("/_matrix/federation/v1/publicRooms").await.ok();
    assert_eq!(rooms["total_room_count_estimate"], 1, "{rooms}");
    assert_eq!(rooms["chunk"][0]["room_id"], json!(listed));
    let search = |term: &str| json!({ "filter": { "generic_search_term": term } });
    let found = remote.post("/_matrix/federation/v1/publicRooms", &search("coffee")).await.ok();
    assert_eq!(found["chunk"], json!([]));
    let wrong = remote.get("/_matrix/federation/v1/publicRooms?since=x").await;
    wrong.refused(400, "M_INVALID_PARAM");

    let tree = remote.get(&format!("/_matrix/federation/v1/hierarchy/{}", encoded(&space))).await.ok();
    assert_eq!(tree["room"]["room_type"], "m.space");
    assert_eq!(tree["room"]["children_state"].as_array().unwrap().len(), 2);
    assert_eq!(tree["children"][0]["room_id"], json!(listed));
    assert_eq!(tree["inaccessible_children"], json!([private]));
    let hidden = remote.get(&format!("/_matrix/federation/v1/hierarchy/{}", encoded(&private))).await;
    hidden.refused(404, "M_NOT_FOUND");
    drop(there);
}

#[tokio::test]
async fn an_open_id_token_names_its_user_and_nobody_else() {
    let (here, _) = two().await;
    let (alice, bob) = (here.user("alice").await, here.user("bob").await);
    let path = |user: &str| format!("/_matrix/client/v3/user/{}/openid/request_token", encoded(user));
    let token = alice.post(&path("@alice:here.test"), json!({})).await.ok();
    assert_eq!((&token["token_type"], &token["matrix_server_name"]), (&json!("Bearer"), &json!("here.test")));
    bob.post(&path("@alice:here.test"), json!({})).await.refused(403, "M_FORBIDDEN");
    let info =
        |token: &str| format!("/_matrix/federation/v1/openid/userinfo?access_token={}", encoded(token));
    let get = async |path: String| here.request(http::Method::GET, &path, None, None).await;
    let token = token["access_token"].as_str().unwrap();
    assert_eq!(get(info(token)).await.ok(), json!({ "sub": "@alice:here.test" }));
    get(info("another")).await.refused(401, "M_UNKNOWN_TOKEN");
    // It is no access token, nor the other way round.
    let whoami = "/_matrix/client/v3/account/whoami";
    here.request(http::Method::GET, whoami, Some(token), None).await.refused(401, "M_UNKNOWN_TOKEN");
    get(info(&alice.token)).await.refused(401, "M_UNKNOWN_TOKEN");
}

#[tokio::test]
async fn devices_of_local_users_only() {
    let (here, _) = two().await;
    here.user("alice").await;
    let remote = Remote::new(&here, "remote.test");
    let of = |user: &str| format!("/_matrix/federation/v1/user/devices/{}", encoded(user));
    let devices = remote.get(&of("@alice:here.test")).await.ok();
    assert_eq!((&devices["user_id"], &devices["devices"]), (&json!("@alice:here.test"), &json!([])));
    for unknown in ["@nobody:here.test", "@alice:remote.test"] {
        remote.get(&of(unknown)).await.refused(404, "M_NOT_FOUND");
    }
}
