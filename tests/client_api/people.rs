//! The user directory, and the rooms shared with somebody.

use hearth::testing::{TestServer, TestUser, encoded};
use serde_json::{Value, json};

async fn search(user: &TestUser, body: Value) -> (Vec<String>, bool) {
    let answer = user.post("/_matrix/client/v3/user_directory/search", body).await.ok();
    let results = answer["results"].as_array().unwrap();
    let ids = results.iter().map(|person| person["user_id"].as_str().unwrap().to_owned()).collect();
    (ids, answer["limited"].as_bool().unwrap())
}

async fn found(user: &TestUser, term: &str) -> Vec<String> {
    let (mut ids, limited) = search(user, json!({ "search_term": term })).await;
    assert!(!limited);
    ids.sort();
    ids
}

#[tokio::test]
async fn people_are_found_who_share_a_room_or_are_in_a_public_one() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let [friend, guest, host, hermit, reader] =
        ["ann.friend", "ann.guest", "ann.host", "ann.hermit", "ann.reader"].map(|name| server.user(name));
    let (friend, guest, host, hermit, reader) =
        (friend.await, guest.await, host.await, hermit.await, reader.await);
    let private = alice.creates_a_room(json!({ "invite": [friend.user_id, guest.user_id] })).await;
    friend.joins(&private).await;
    // Nobody else is in it, but anybody might be.
    host.creates_a_public_room().await;
    let open =
        json!({ "type": "m.room.history_visibility", "content": { "history_visibility": "world_readable" } });
    reader.creates_a_room(json!({ "initial_state": [open] })).await;
    hermit.creates_a_room(json!({})).await;
    assert_eq!(
        found(&alice, "ann").await,
        ["@ann.friend:hearth.test", "@ann.host:hearth.test", "@ann.reader:hearth.test"]
    );
    // An invite is no membership.
    assert_eq!(found(&guest, "alice").await, Vec::<String>::new());
    // Whoever searches is found like others: by who is in a public room.
    assert_eq!(found(&hermit, "hermit").await, Vec::<String>::new());
    assert_eq!(found(&host, "host").await, ["@ann.host:hearth.test"]);
    guest.joins(&private).await;
    assert_eq!(found(&guest, "alice").await, ["@alice:hearth.test"]);
    friend.leaves(&private).await;
    assert_eq!(found(&alice, "friend").await, Vec::<String>::new());
}

#[tokio::test]
async fn an_operator_may_let_everybody_find_everybody() {
    let server = TestServer::with(|config| config.user_directory.search_all_users = true).await;
    let alice = server.user("alice").await;
    for name in ["hermit1", "hermit2", "hermit3"] {
        server.user(name).await;
    }
    assert_eq!(found(&alice, "hermit2").await, ["@hermit2:hearth.test"]);
    assert!(search(&alice, json!({ "search_term": "hermit", "limit": 2 })).await.1);
    assert!(!search(&alice, json!({ "search_term": "hermit", "limit": 3 })).await.1);
}

#[tokio::test]
async fn capitals_do_not_matter_in_names_and_ids() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = alice.creates_a_room(json!({ "invite": [bob.user_id] })).await;
    bob.joins(&room).await;
    let name = format!("/_matrix/client/v3/profile/{}/displayname", encoded(bob.user_id.as_str()));
    bob.put(&name, json!({ "displayname": "Róbert ÉMILE de Vries" })).await.ok();
    for term in
        ["BOB", "Bo", "@bob:hearth.test", "@BOB:HEARTH.test", "róbert", "émile", "VRIES", "de vries róbert"]
    {
        assert_eq!(found(&alice, term).await, ["@bob:hearth.test"], "{term}");
    }
    let results =
        alice.post("/_matrix/client/v3/user_directory/search", json!({ "search_term": "bob" })).await.ok();
    assert_eq!(results["results"][0]["display_name"], "Róbert ÉMILE de Vries");
    for term in ["bert", "", "  ", "nobody", "robert"] {
        assert_eq!(found(&alice, term).await, Vec::<String>::new(), "{term}");
    }
}

#[tokio::test]
async fn limited_says_whether_there_are_more_to_be_seen() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let room = alice.creates_a_public_room().await;
    for number in 0..5 {
        server.user(&format!("tea{number}")).await.joins(&room).await;
        // Those whom alice does not see are not more to be seen.
        server.user(&format!("teahermit{number}")).await;
    }
    let with = |limit: u64| json!({ "search_term": "tea", "limit": limit });
    for (limit, count, limited) in [(4, 4, true), (5, 5, false), (100, 5, false)] {
        let (ids, told) = search(&alice, with(limit)).await;
        assert_eq!((ids.len(), told), (count, limited), "{limit}");
    }
}

#[tokio::test]
async fn shared_rooms_are_told() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let rooms = [alice.creates_a_public_room().await, alice.creates_a_public_room().await];
    for room in &rooms {
        bob.joins(room).await;
    }
    alice.creates_a_room(json!({ "invite": [bob.user_id] })).await;
    let features = server.request(http::Method::GET, "/_matrix/client/versions", None, None).await.ok();
    for path in
        ["/_matrix/client/v1/mutual_rooms", "/_matrix/client/unstable/uk.half-shot.msc2666/user/mutual_rooms"]
    {
        let with = |user: &str| format!("{path}?user_id={}", encoded(user));
        let shared = alice.get(&with("@bob:hearth.test")).await.ok();
        assert_eq!(shared, json!({ "joined": rooms, "count": 2 }));
        let none = json!({ "joined": [], "count": 0 });
        assert_eq!(alice.get(&with("@nobody:hearth.test")).await.ok(), none);
        assert_eq!(alice.get(&with("@x:elsewhere.test")).await.ok(), none);
        alice.get(&with("bob")).await.refused(400, "M_INVALID_PARAM");
        alice.get(&format!("{}&from=x", with("@bob:hearth.test"))).await.refused(400, "M_INVALID_PARAM");
        alice.get(path).await.refused(400, "M_MISSING_PARAM");
    }
    assert_eq!(features["unstable_features"]["uk.half-shot.msc2666.query_mutual_rooms"], true);
    bob.leaves(&rooms[0]).await;
    let path = "/_matrix/client/v1/mutual_rooms?user_id=%40bob%3Ahearth.test";
    assert_eq!(alice.get(path).await.ok()["joined"], json!([rooms[1]]));
}
