//! Users of this server in rooms of others: joining, leaving, knocking, being invited, between whole servers.

use std::{sync::atomic::Ordering, time::Duration};

use hearth::{
    config::Config,
    testing::{Answer, TestNetwork, TestPeer, TestServer, TestUser, encoded},
};
use hearth_dag::{Keypair, ReceivedPdu, RoomRules, countersign};
use hearth_federation::{FILLS_OF_A_USER, GAP_RESTS};
use hearth_store::Store;
use ruma::OwnedServerName;
use serde_json::{Value, json};

const FAR: &str = "far.test";
const NEAR: &str = "near.test";

fn name(name: &str) -> OwnedServerName {
    name.try_into().unwrap()
}

async fn server_in(network: &TestNetwork, server: &str) -> TestServer {
    on(network, server, Store::memory().await).await
}

async fn on(network: &TestNetwork, server: &str, store: Store) -> TestServer {
    let mut config = Config { server_name: name(server), ..Config::default() };
    config.rate_limits.enabled = false;
    TestServer::on(config, store, network.clone()).await
}

/// Two servers that can reach each other.
async fn two() -> (TestServer, TestServer) {
    let network = TestNetwork::default();
    (server_in(&network, FAR).await, server_in(&network, NEAR).await)
}

async fn join(user: &TestUser, room: &str, via: &[&str]) -> Answer {
    let via: Vec<String> = via.iter().map(|server| format!("via={server}")).collect();
    user.post(&format!("/_matrix/client/v3/join/{}?{}", encoded(room), via.join("&")), json!({})).await
}

async fn state(user: &TestUser, room: &str, kind: &str, key: &str) -> Answer {
    user.get(&format!("/_matrix/client/v3/rooms/{}/state/{kind}/{}", encoded(room), encoded(key))).await
}

async fn members(user: &TestUser, room: &str) -> Vec<(String, String)> {
    let answer = user.get(&format!("/_matrix/client/v3/rooms/{}/members", encoded(room))).await.ok();
    let chunk = answer["chunk"].as_array().unwrap().clone();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let mut members: Vec<_> = chunk
        .iter()
        .map(|member| (text(&member["state_key"]), text(&member["content"]["membership"])))
        .collect();
    members.sort();
    members
}

/// Asks again until it is so; what never becomes so fails the test.
async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    for _ in 0..500 {
        if is_so().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not so in time: {what}");
}

async fn is_complete(server: &TestServer) -> bool {
    server.app.rooms.partial_rooms().await.unwrap().is_empty()
}

#[tokio::test]
async fn a_user_joins_a_room_of_another_server_and_all_its_members_follow() {
    let (far, near) = two().await;
    let (alice, bob) = (far.user("alice").await, near.user("bob").await);
    let room = alice.creates_a_public_room().await;
    alice.sets(&room, "m.room.topic", "", json!({ "topic": "tea" })).await;
    for name in ["carol", "dave"] {
        far.user(name).await.joins(&room).await;
    }
    assert_eq!(join(&bob, &room, &["far.test"]).await.ok()["room_id"], *room);
    assert_eq!(state(&bob, &room, "m.room.topic", "").await.ok()["topic"], "tea");
    until("all members are known", async || is_complete(&near).await).await;
    let expected = ["@alice:far.test", "@bob:near.test", "@carol:far.test", "@dave:far.test"]
        .map(|user| (user.to_owned(), "join".to_owned()));
    assert_eq!(members(&bob, &room).await, expected);
    assert_eq!(members(&alice, &room).await, expected);
    let shown = state(&alice, &room, "m.room.member", "@bob:near.test").await.ok();
    assert_eq!((&shown["membership"], &shown["displayname"]), (&json!("join"), &json!("bob")));
    // The next one from there finds the room here.
    far.network.cut(&name(FAR));
    near.user("erin").await.joins(&room).await;
}

#[tokio::test]
async fn rooms_of_every_version_are_joined() {
    let (far, near) = two().await;
    let (alice, bob) = (far.user("alice").await, near.user("bob").await);
    for version in 1..=12 {
        let room = alice
            .creates_a_room(json!({ "preset": "public_chat", "room_version": version.to_string() }))
            .await;
        assert_eq!(join(&bob, &room, &["far.test"]).await.ok()["room_id"], *room, "version {version}");
        until("all members are known", async || is_complete(&near).await).await;
        assert_eq!(members(&bob, &room).await.len(), 2, "version {version}");
    }
}

#[tokio::test]
async fn a_room_is_found_by_its_alias() {
    let (far, near) = two().await;
    let (alice, bob) = (far.user("alice").await, near.user("bob").await);
    let room = alice.creates_a_room(json!({ "preset": "public_chat", "room_alias_name": "tea" })).await;
    let path = format!("/_matrix/client/v3/directory/room/{}", encoded("#tea:far.test"));
    let found = bob.get(&path).await.ok();
    assert_eq!((&found["room_id"], &found["servers"][0]), (&json!(room), &json!("far.test")));
    assert_eq!(join(&bob, "#tea:far.test", &[]).await.ok()["room_id"], *room);
    join(&bob, "#coffee:far.test", &[]).await.refused(404, "M_NOT_FOUND");
    join(&bob, "#coffee:gone.test", &[]).await.refused(502, "M_UNKNOWN");
}

#[tokio::test]
async fn servers_that_cannot_help_are_passed_over() {
    let network = TestNetwork::default();
    let (far, near) = (server_in(&network, FAR).await, server_in(&network, NEAR).await);
    server_in(&network, "elsewhere.test").await;
    let (alice, bob) = (far.user("alice").await, near.user("bob").await);
    let room = alice.creates_a_public_room().await;
    let via = ["gone.test", "elsewhere.test", "near.test", "far.test"];
    assert_eq!(join(&bob, &room, &via).await.ok()["room_id"], *room);
}

#[tokio::test]
async fn who_may_not_come_in_hears_why() {
    let (far, near) = two().await;
    let (alice, bob) = (far.user("alice").await, near.user("bob").await);
    let private = alice.creates_a_room(json!({ "preset": "private_chat" })).await;
    let refused = join(&bob, &private, &["far.test"]).await.refused(403, "M_FORBIDDEN");
    assert!(refused["error"].as_str().unwrap().starts_with("far.test refuses: "), "{refused}");
    // Nobody is in a room that is not there, and nobody is known for one without any name.
    join(&bob, "!none", &["far.test"]).await.refused(404, "M_NOT_FOUND");
    join(&bob, "!none", &[]).await.refused(404, "M_NOT_FOUND");
    join(&bob, "!none:gone.test", &[]).await.refused(502, "M_UNKNOWN");
    assert!(near.app.rooms.joined_rooms(&bob.user_id).await.unwrap().is_empty());
}

#[tokio::test]
async fn what_a_client_adds_to_a_join_reaches_the_other_server() {
    let (far, near) = two().await;
    let (alice, bob) = (far.user("alice").await, near.user("bob").await);
    let room = alice.creates_a_public_room().await;
    let body = json!({ "org.example.from": "a link", "membership": "leave", "displayname": "Alice" });
    bob.post(&format!("/_matrix/client/v3/rooms/{}/join?via=far.test", encoded(&room)), body).await.ok();
    let said = state(&alice, &room, "m.room.member", bob.user_id.as_str()).await.ok();
    assert_eq!(said, json!({ "membership": "join", "displayname": "bob", "org.example.from": "a link" }));
}

#[tokio::test]
async fn users_who_join_at_once_are_all_in() {
    let (far, near) = two().await;
    let alice = far.user("alice").await;
    let room = alice.creates_a_public_room().await;
    let mut users = Vec::new();
    for number in 0..6 {
        users.push(near.user(&format!("user{number}")).await);
    }
    let joins = users.iter().map(|user| join(user, &room, &["far.test"]));
    for answer in futures_util::future::join_all(joins).await {
        assert_eq!(answer.ok()["room_id"], *room);
    }
    until("all members are known", async || is_complete(&near).await).await;
    assert_eq!(members(&users[0], &room).await.len(), 7);
}

#[tokio::test]
async fn what_was_left_undone_is_taken_up_after_a_restart() {
    let network = TestNetwork::default();
    let far = server_in(&network, FAR).await;
    let store = Store::memory().await;
    let near = on(&network, NEAR, store.clone()).await;
    let (alice, bob) = (far.user("alice").await, near.user("bob").await);
    let room = alice.creates_a_public_room().await;
    for name in ["dave", "erin"] {
        far.user(name).await.joins(&room).await;
    }
    // The other server answers the join and nothing after it.
    network.refuse(&name(FAR), "/_matrix/federation/v1/state");
    join(&bob, &room, &["far.test"]).await.ok();
    assert!(!is_complete(&near).await);
    let since = bob.get("/_matrix/client/v3/sync").await.ok()["next_batch"].as_str().unwrap().to_owned();
    let user_id = bob.user_id.clone();
    drop((bob, near));
    network.refuse_nothing();
    let again = on(&network, NEAR, store).await;
    until("all members are known", async || is_complete(&again).await).await;
    let bob = again.device(&user_id, "AGAIN").await;
    assert_eq!(members(&bob, &room).await.len(), 4);
    // Who asks for the members of a time when they were not known gets those that are known now.
    let path = format!("/_matrix/client/v3/rooms/{}/members?at={since}", encoded(&room));
    assert_eq!(bob.get(&path).await.ok()["chunk"].as_array().unwrap().len(), 4);
}

#[tokio::test]
async fn invites_go_to_users_of_other_servers_and_can_be_taken_or_rejected() {
    let (far, near) = two().await;
    let (alice, bob) = (far.user("alice").await, near.user("bob").await);
    let carol = near.user("carol").await;
    let room = alice
        .creates_a_room(json!({
            "preset": "private_chat", "name": "tea", "is_direct": true,
            "invite": ["@bob:near.test", "@nobody:near.test", "@gone:gone.test"],
        }))
        .await;
    let invited = bob.get("/_matrix/client/v3/sync").await.ok();
    let events = invited["rooms"]["invite"][&room]["invite_state"]["events"].as_array().unwrap().clone();
    assert!(events.iter().any(|event| event["content"]["name"] == "tea"), "{invited}");
    assert!(events.iter().any(|event| event["content"]["is_direct"] == true), "{invited}");
    let path = format!("/_matrix/client/v3/rooms/{}/invite", encoded(&room));
    alice.post(&path, json!({ "user_id": carol.user_id })).await.ok();
    alice.post(&path, json!({ "user_id": "@nobody:near.test" })).await.refused(404, "M_NOT_FOUND");
    alice.post(&path, json!({ "user_id": "@x:gone.test" })).await.refused(502, "M_UNKNOWN");
    let before = carol.get("/_matrix/client/v3/sync").await.ok();
    carol.leaves(&room).await;
    let since = before["next_batch"].as_str().unwrap();
    let left = carol.get(&format!("/_matrix/client/v3/sync?since={since}")).await.ok();
    let leave = &left["rooms"]["leave"][&room]["timeline"]["events"][0];
    assert_eq!(
        (&leave["type"], &leave["state_key"]),
        (&json!("m.room.member"), &json!(carol.user_id)),
        "{left}"
    );
    assert_eq!(leave["content"]["membership"], "leave");
    let filter = encoded(&json!({ "event_fields": ["type"] }).to_string());
    let left = carol.get(&format!("/_matrix/client/v3/sync?since={since}&filter={filter}")).await.ok();
    let leave = &left["rooms"]["leave"][&room]["timeline"]["events"][0];
    assert_eq!(leave, &json!({ "type": "m.room.member" }), "a filter holds for this one too");
    let rejected = state(&alice, &room, "m.room.member", "@carol:near.test").await.ok();
    assert_eq!(rejected["membership"], "leave");
    let left = carol.get("/_matrix/client/v3/sync").await.ok();
    assert!(left["rooms"]["invite"].get(&room).is_none(), "{left}");
    join(&carol, &room, &["far.test"]).await.refused(403, "M_FORBIDDEN");
    // The inviting server is asked, though nobody names it.
    join(&bob, &room, &[]).await.ok();
}

#[tokio::test]
async fn what_the_members_decide_waits_until_they_are_known() {
    let (far, near) = two().await;
    let (alice, bob) = (far.user("alice").await, near.user("bob").await);
    let (carol, dave) = (near.user("carol").await, near.user("dave").await);
    let invited = ["@bob:near.test", "@carol:near.test", "@dave:near.test"];
    let room = alice.creates_a_room(json!({ "preset": "private_chat", "invite": invited })).await;
    join(&bob, &room, &[]).await.ok();
    // The first join told of nobody but the one who joined.
    join(&carol, &room, &[]).await.ok();
    dave.leaves(&room).await;
    let shown = members(&bob, &room).await;
    let memberships: Vec<&str> = shown.iter().map(|(_, membership)| membership.as_str()).collect();
    assert_eq!(memberships, ["join", "join", "join", "leave"], "{shown:?}");
}

#[tokio::test]
async fn an_invite_is_rejected_also_when_the_inviting_server_is_gone() {
    let (far, near) = two().await;
    let (alice, bob) = (far.user("alice").await, near.user("bob").await);
    let room = alice.creates_a_room(json!({ "invite": ["@bob:near.test"] })).await;
    assert!(bob.get("/_matrix/client/v3/sync").await.ok()["rooms"]["invite"].get(&room).is_some());
    far.network.cut(&name(FAR));
    bob.leaves(&room).await;
    bob.leaves(&room).await;
    assert!(bob.get("/_matrix/client/v3/sync").await.ok()["rooms"]["invite"].get(&room).is_none());
    let never = format!("/_matrix/client/v3/rooms/{}/leave", encoded("!other:far.test"));
    bob.post(&never, json!({})).await.refused(403, "M_FORBIDDEN");
}

#[tokio::test]
async fn a_user_knocks_elsewhere_and_takes_it_back() {
    let (far, near) = two().await;
    let (alice, bob) = (far.user("alice").await, near.user("bob").await);
    let rule = json!({ "type": "m.room.join_rules", "content": { "join_rule": "knock" } });
    let room = alice.creates_a_room(json!({ "name": "tea", "initial_state": [rule] })).await;
    let path = format!("/_matrix/client/v3/knock/{}?via=far.test", encoded(&room));
    assert_eq!(bob.post(&path, json!({ "reason": "please" })).await.ok()["room_id"], *room);
    let knock = state(&alice, &room, "m.room.member", "@bob:near.test").await.ok();
    assert_eq!((&knock["membership"], &knock["reason"]), (&json!("knock"), &json!("please")));
    let knocked = bob.get("/_matrix/client/v3/sync").await.ok();
    let events = knocked["rooms"]["knock"][&room]["knock_state"]["events"].as_array().unwrap().clone();
    assert!(events.iter().any(|event| event["content"]["name"] == "tea"), "{knocked}");
    bob.leaves(&room).await;
    let taken_back = state(&alice, &room, "m.room.member", "@bob:near.test").await.ok();
    assert_eq!(taken_back["membership"], "leave");
    let private = alice.creates_a_room(json!({ "preset": "private_chat" })).await;
    let path = format!("/_matrix/client/v3/knock/{}?via=far.test", encoded(&private));
    bob.post(&path, json!({})).await.refused(403, "M_FORBIDDEN");
}

#[tokio::test]
async fn who_is_in_the_right_room_is_let_into_a_restricted_one() {
    let (far, near) = two().await;
    let (alice, bob, carol) = (far.user("alice").await, near.user("bob").await, near.user("carol").await);
    let club = alice.creates_a_public_room().await;
    let allow = json!([{ "type": "m.room_membership", "room_id": club }]);
    let rule = json!({
        "type": "m.room.join_rules", "content": { "join_rule": "restricted", "allow": allow },
    });
    let room = alice.creates_a_room(json!({ "preset": "private_chat", "initial_state": [rule] })).await;
    join(&bob, &room, &["far.test"]).await.refused(403, "M_FORBIDDEN");
    join(&bob, &club, &["far.test"]).await.ok();
    join(&bob, &room, &["far.test"]).await.ok();
    until("all members are known", async || is_complete(&near).await).await;
    let shown = state(&alice, &room, "m.room.member", "@bob:near.test").await.ok();
    assert_eq!(shown["join_authorised_via_users_server"], "@alice:far.test");
    // Now this server is in the room, but nobody of it may let others in.
    join(&carol, &room, &[]).await.refused(403, "M_FORBIDDEN");
}

#[tokio::test]
async fn profiles_and_room_lists_of_other_servers_are_shown() {
    let (far, near) = two().await;
    let (alice, bob) = (far.user("alice").await, near.user("bob").await);
    let room = alice.creates_a_room(json!({ "visibility": "public", "name": "tea" })).await;
    alice.creates_a_room(json!({ "visibility": "public", "name": "coffee" })).await;
    let profile = bob.get("/_matrix/client/v3/profile/%40alice%3Afar.test").await.ok();
    assert_eq!(profile["displayname"], "alice");
    let field = bob.get("/_matrix/client/v3/profile/%40alice%3Afar.test/displayname").await.ok();
    assert_eq!(field, json!({ "displayname": "alice" }));
    bob.get("/_matrix/client/v3/profile/%40nobody%3Afar.test").await.refused(404, "M_NOT_FOUND");
    bob.get("/_matrix/client/v3/profile/%40x%3Agone.test").await.refused(502, "M_UNKNOWN");
    let all = bob.get("/_matrix/client/v3/publicRooms?server=far.test&limit=1").await.ok();
    assert_eq!((all["chunk"].as_array().unwrap().len(), &all["total_room_count_estimate"]), (1, &json!(2)));
    let filter = json!({ "filter": { "generic_search_term": "tea" } });
    let found = bob.post("/_matrix/client/v3/publicRooms?server=far.test", filter).await.ok();
    assert_eq!(found["chunk"].as_array().unwrap().len(), 1);
    assert_eq!(found["chunk"][0]["room_id"], *room);
    bob.get("/_matrix/client/v3/publicRooms?server=gone.test").await.refused(502, "M_UNKNOWN");
    bob.get("/_matrix/client/v3/publicRooms?server=no%20name").await.refused(400, "M_INVALID_PARAM");
}

async fn messages(user: &TestUser, room: &str, from: Option<&str>, limit: usize) -> Value {
    let from = from.map(|from| format!("&from={from}")).unwrap_or_default();
    user.get(&format!("/_matrix/client/v3/rooms/{}/messages?dir=b&limit={limit}{from}", encoded(room)))
        .await
        .ok()
}

fn bodies(page: &Value) -> Vec<String> {
    let chunk = page["chunk"].as_array().unwrap().iter();
    chunk.filter_map(|event| event["content"]["body"].as_str().map(str::to_owned)).collect()
}

#[tokio::test]
async fn history_of_before_the_join_is_fetched_by_who_reads_it() {
    let (far, near) = two().await;
    let (alice, bob) = (far.user("alice").await, near.user("bob").await);
    let room = alice.creates_a_public_room().await;
    for number in 0..230 {
        alice.says(&room, &number.to_string()).await;
    }
    join(&bob, &room, &["far.test"]).await.ok();
    let first = messages(&bob, &room, None, 20).await;
    assert_eq!(first["chunk"][0]["type"], "m.room.member");
    let newest: Vec<String> = (211..230).rev().map(|number| number.to_string()).collect();
    assert_eq!(bodies(&first), newest);
    let (mut from, mut seen, mut kinds) = (first["end"].clone(), newest, Vec::new());
    while let Some(token) = from.as_str() {
        let page = messages(&bob, &room, Some(token), 50).await;
        seen.extend(bodies(&page));
        kinds.extend(page["chunk"].as_array().unwrap().iter().map(|event| event["type"].clone()));
        from = page["end"].clone();
        assert!(kinds.len() < 500, "it ends");
    }
    let all: Vec<String> = (0..230).rev().map(|number| number.to_string()).collect();
    assert_eq!(seen, all);
    assert_eq!(kinds.last(), Some(&json!("m.room.create")));
}

#[tokio::test]
async fn what_cannot_be_fetched_is_passed_over() {
    let (far, near) = two().await;
    let (alice, bob) = (far.user("alice").await, near.user("bob").await);
    let room = alice.creates_a_public_room().await;
    alice.says(&room, "early").await;
    join(&bob, &room, &["far.test"]).await.ok();
    until("all members are known", async || is_complete(&near).await).await;
    far.network.refuse(&name(FAR), "/_matrix/federation/v1/backfill");
    let page = messages(&bob, &room, None, 20).await;
    assert_eq!(page["chunk"].as_array().unwrap().len(), 1, "the join");
    let after = messages(&bob, &room, page["end"].as_str(), 20).await;
    assert_eq!((after["chunk"].as_array().unwrap().len(), &after["end"]), (0, &Value::Null));
    // When it can be had again, it is: after the time in which nobody is asked a second time.
    far.network.refuse_nothing();
    tokio::time::pause();
    tokio::time::advance(GAP_RESTS).await;
    tokio::time::resume();
    assert_eq!(bodies(&messages(&bob, &room, page["end"].as_str(), 20).await), ["early"]);
}

/// Readers of a room whose history nobody gives: servers are asked for it once, not once for each.
#[tokio::test]
async fn many_who_read_at_one_gap_make_us_ask_once() {
    let (far, near) = two().await;
    let (alice, bob) = (far.user("alice").await, near.user("bob").await);
    let room = alice.creates_a_public_room().await;
    alice.says(&room, "early").await;
    join(&bob, &room, &["far.test"]).await.ok();
    until("all members are known", async || is_complete(&near).await).await;
    let backfill = "/_matrix/federation/v1/backfill";
    let asked = far.network.slow(&name(FAR), backfill, Duration::from_millis(50));
    far.network.refuse(&name(FAR), backfill);
    let readers = (0..20).map(|_| messages(&bob, &room, None, 20));
    for page in futures_util::future::join_all(readers).await {
        assert_eq!(page["chunk"].as_array().unwrap().len(), 1, "what is here is shown");
    }
    messages(&bob, &room, None, 20).await;
    assert_eq!(asked.asked.load(Ordering::SeqCst), 1);
}

/// A user who reads in many rooms at once, whose servers take their time.
#[tokio::test]
async fn one_user_makes_us_fill_in_few_rooms_at_once() {
    let (far, near) = two().await;
    let (alice, bob) = (far.user("alice").await, near.user("bob").await);
    let mut rooms = Vec::new();
    for _ in 0..6 {
        let room = alice.creates_a_public_room().await;
        alice.says(&room, "early").await;
        join(&bob, &room, &["far.test"]).await.ok();
        rooms.push(room);
    }
    until("all members are known", async || is_complete(&near).await).await;
    let backfill = "/_matrix/federation/v1/backfill";
    let asked = far.network.slow(&name(FAR), backfill, Duration::from_millis(100));
    let pages = rooms.iter().map(|room| messages(&bob, room, None, 20));
    for page in futures_util::future::join_all(pages).await {
        assert_eq!(bodies(&page), ["early"]);
    }
    assert_eq!(asked.asked.load(Ordering::SeqCst), rooms.len());
    assert!(asked.at_once.load(Ordering::SeqCst) <= FILLS_OF_A_USER);
}

#[tokio::test]
async fn events_of_a_time_are_found_at_other_servers() {
    let (far, near) = two().await;
    let (alice, bob) = (far.user("alice").await, near.user("bob").await);
    let room = alice.creates_a_public_room().await;
    let early = alice.says(&room, "early").await;
    join(&bob, &room, &["far.test"]).await.ok();
    let event = alice.get(&format!("/_matrix/client/v3/rooms/{}/event/{early}", encoded(&room))).await.ok();
    let ts = event["origin_server_ts"].as_u64().unwrap();
    let path = format!("/_matrix/client/v1/rooms/{}/timestamp_to_event?ts={ts}&dir=b", encoded(&room));
    let found = bob.get(&path).await.ok();
    assert_eq!(found["origin_server_ts"], ts);
    let none = format!("/_matrix/client/v1/rooms/{}/timestamp_to_event?ts=1&dir=b", encoded(&room));
    bob.get(&none).await.refused(404, "M_NOT_FOUND");
}

/// An answer that another server may give.
fn answer(status: u16, body: impl Into<bytes::Bytes>) -> http::Response<bytes::Bytes> {
    http::Response::builder().status(status).body(body.into()).unwrap()
}

#[tokio::test]
async fn the_policy_server_of_a_room_decides_what_is_sent() {
    let (far, near) = two().await;
    let (alice, bob) = (far.user("alice").await, near.user("bob").await);
    // This server is none, whoever asks.
    let path = "/_matrix/policy/v1/sign";
    near.request(http::Method::POST, path, None, Some(json!({}))).await.refused(404, "M_UNRECOGNIZED");
    let path = "/.well-known/matrix/policy_server";
    assert_eq!(near.request(http::Method::GET, path, None, None).await.status, 404);
    let room = alice.creates_a_public_room().await;
    join(&bob, &room, &["far.test"]).await.ok();
    let key = Keypair::new(name(NEAR), "policy_server", &[42; 32]).unwrap();
    let policy = json!({ "via": NEAR, "public_keys": { "ed25519": key.public_key_base64() } });
    alice.sets(&room, "m.room.policy", "", policy).await;
    let path = format!("/_matrix/client/v3/rooms/{}/send/m.room.message", encoded(&room));
    let hello = json!({ "msgtype": "m.text", "body": "hello" });
    let says = async |txn: &str| alice.put(&format!("{path}/{txn}"), hello.clone()).await;
    says("1").await.refused(403, "M_FORBIDDEN");
    // What it says is told to the user, and nothing of it to the client: this would log it out.
    let guard = TestPeer::stranger(&name(NEAR));
    far.network.fake(&guard, |_| answer(401, r#"{"errcode":"M_UNKNOWN_TOKEN","error":"I do not like it"}"#));
    let refused = says("1").await.refused(403, "M_FORBIDDEN");
    assert!(refused["error"].as_str().unwrap().contains("I do not like it"), "{refused}");
    let slowly = r#"{"errcode":"M_LIMIT_EXCEEDED","error":"slowly","retry_after_ms":5}"#;
    far.network.fake(&guard, move |_| answer(429, slowly));
    assert_eq!(says("1").await.refused(429, "M_LIMIT_EXCEEDED")["retry_after_ms"], 5);
    far.network.cut(&name(NEAR));
    says("1").await.refused(502, "M_UNKNOWN");
    // It signs what it is shown, whichever way the event is made.
    far.network.fake(&guard, move |request| {
        let rules = RoomRules::of(&ruma::RoomVersionId::V12).unwrap();
        let event = ReceivedPdu::parse(rules, std::str::from_utf8(request.body()).unwrap());
        let Ok(event) = event else { return answer(200, "{}") };
        let signed: Value = serde_json::from_str(countersign(rules, event.pdu(), &key).json()).unwrap();
        answer(200, json!({ NEAR: signed["signatures"][NEAR] }).to_string())
    });
    let sent = says("1").await.ok();
    assert_eq!(says("1").await.ok(), sent, "a repeat makes no second event");
    alice.sets(&room, "m.room.topic", "", json!({ "topic": "tea" })).await;
    far.user("carol").await.joins(&room).await;
    let name_path = format!("/_matrix/client/v3/profile/{}/displayname", encoded("@alice:far.test"));
    alice.put(&name_path, json!({ "displayname": "Al" })).await.ok();
    let shown = state(&alice, &room, "m.room.member", "@alice:far.test").await.ok();
    assert_eq!(shown["displayname"], "Al");
    let kick = json!({ "user_id": "@bob:near.test" });
    alice.post(&format!("/_matrix/client/v3/rooms/{}/kick", encoded(&room)), kick).await.ok();
    // With its last user the policy server is gone.
    far.network.cut(&name(NEAR));
    says("2").await.ok();
}
