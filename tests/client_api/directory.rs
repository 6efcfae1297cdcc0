//! Aliases, the public list, and summaries.

use hearth::{
    config::Publishers,
    testing::{TestServer, encoded},
};
use http::Method;
use serde_json::{Value, json};

fn alias_path(alias: &str) -> String {
    format!("/_matrix/client/v3/directory/room/{}", encoded(alias))
}

#[tokio::test]
async fn an_alias_leads_to_one_room() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = alice.creates_a_public_room().await;
    bob.joins(&room).await;
    let path = alias_path("#té a:hearth.test");
    let to_room = json!({ "room_id": room });
    alice.put(&path, to_room.clone()).await.ok();
    alice.put(&path, to_room.clone()).await.refused(409, "M_UNKNOWN");
    let found = server.request(Method::GET, &path, None, None).await.ok();
    assert_eq!(found, json!({ "room_id": room, "servers": ["hearth.test"] }));
    alice.put(&alias_path("#a:elsewhere.test"), to_room.clone()).await.refused(400, "M_INVALID_PARAM");
    alice.get(&alias_path("#none:hearth.test")).await.refused(404, "M_NOT_FOUND");
    let aliases = format!("/_matrix/client/v3/rooms/{}/aliases", encoded(&room));
    assert_eq!(bob.get(&aliases).await.ok()["aliases"], json!(["#té a:hearth.test"]));

    let canonical = json!({ "alias": "#té a:hearth.test", "alt_aliases": [] });
    alice.sets(&room, "m.room.canonical_alias", "", canonical).await;
    bob.delete(&path).await.refused(403, "M_FORBIDDEN");
    alice.delete(&path).await.ok();
    alice.delete(&path).await.refused(404, "M_NOT_FOUND");
    let state = format!("/_matrix/client/v3/rooms/{}/state/m.room.canonical_alias", encoded(&room));
    assert_eq!(alice.get(&state).await.ok(), json!({ "alt_aliases": [] }));
    // What one made oneself one may take back without power.
    bob.put(&path, to_room).await.ok();
    bob.delete(&path).await.ok();
}

#[tokio::test]
async fn public_rooms_are_listed_by_size_and_found_by_words() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let tea = json!({ "visibility": "public", "name": "Tea", "topic": "leaves", "room_alias_name": "tea" });
    let small = alice.creates_a_room(tea).await;
    let space = json!({ "visibility": "public", "name": "Space", "creation_content": { "type": "m.space" } });
    let large = alice.creates_a_room(space).await;
    let hidden = alice.creates_a_public_room().await;
    bob.joins(&large).await;
    let list = "/_matrix/client/v3/publicRooms";
    let all = server.request(Method::GET, list, None, None).await.ok();
    let ids = |answer: &Value| -> Vec<String> {
        let chunk = answer["chunk"].as_array().unwrap();
        chunk.iter().map(|room| room["room_id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(ids(&all), [large.clone(), small.clone()]);
    assert_eq!(all["total_room_count_estimate"], 2);
    let described = &all["chunk"][1];
    assert_eq!(described["canonical_alias"], "#tea:hearth.test");
    assert_eq!((&described["num_joined_members"], &described["join_rule"]), (&json!(1), &json!("public")));
    assert_eq!((&described["world_readable"], &described["guest_can_join"]), (&json!(false), &json!(false)));

    let first = alice.get(&format!("{list}?limit=1")).await.ok();
    assert_eq!(ids(&first), [large.clone()]);
    let next = first["next_batch"].as_str().unwrap();
    let second = alice.get(&format!("{list}?limit=1&since={next}")).await.ok();
    assert_eq!(ids(&second), [small.clone()]);
    assert_eq!(second["next_batch"], Value::Null);
    assert!(second["prev_batch"].is_string());
    alice.get(&format!("{list}?since=nonsense")).await.refused(400, "M_INVALID_PARAM");

    let search = async |filter: Value| ids(&alice.post(list, json!({ "filter": filter })).await.ok());
    assert_eq!(search(json!({ "generic_search_term": "LEAV" })).await, [small.clone()]);
    assert_eq!(search(json!({ "room_types": ["m.space"] })).await, [large.clone()]);
    assert_eq!(search(json!({ "room_types": [null] })).await, [small.clone()]);
    assert_eq!(search(json!({ "generic_search_term": "coffee" })).await, Vec::<String>::new());

    let visibility = |room: &str| format!("/_matrix/client/v3/directory/list/room/{}", encoded(room));
    assert_eq!(alice.get(&visibility(&hidden)).await.ok()["visibility"], "private");
    bob.put(&visibility(&large), json!({ "visibility": "private" })).await.refused(403, "M_FORBIDDEN");
    alice.put(&visibility(&hidden), json!({ "visibility": "public" })).await.ok();
    assert_eq!(alice.get(&visibility(&hidden)).await.ok()["visibility"], "public");
    alice.put(&visibility(&large), json!({ "visibility": "private" })).await.ok();
    assert_eq!(alice.get(list).await.ok()["total_room_count_estimate"], 2);
    alice.get(&visibility("!none:hearth.test")).await.refused(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn the_operator_may_keep_the_list_for_administrators() {
    let server = TestServer::with(|config| config.directory.publishers = Publishers::Admins).await;
    let (alice, root) = (server.user("alice").await, server.admin("root").await);
    let public = json!({ "visibility": "public" });
    alice.post("/_matrix/client/v3/createRoom", public.clone()).await.refused(403, "M_FORBIDDEN");
    root.post("/_matrix/client/v3/createRoom", public).await.ok();
}

#[tokio::test]
async fn a_summary_is_for_those_who_could_come_in() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let summary = |room: &str| format!("/_matrix/client/v1/room_summary/{}", encoded(room));
    let open =
        alice.creates_a_room(json!({ "preset": "public_chat", "room_alias_name": "open", "name": "Open" }));
    let open = open.await;
    let strangers = server.request(Method::GET, &summary("#open:hearth.test"), None, None).await.ok();
    assert_eq!((&strangers["room_id"], &strangers["name"]), (&json!(open), &json!("Open")));
    assert_eq!(strangers["room_version"], "12");
    assert_eq!(strangers["membership"], Value::Null);
    assert_eq!(bob.get(&summary(&open)).await.ok()["membership"], "leave");
    let old = format!("/_matrix/client/unstable/im.nheko.summary/summary/{}", encoded(&open));
    assert_eq!(alice.get(&old).await.ok()["membership"], "join");

    let closed = alice.creates_a_room(json!({})).await;
    bob.get(&summary(&closed)).await.refused(404, "M_NOT_FOUND");
    alice.invites(&closed, &bob).await;
    assert_eq!(bob.get(&summary(&closed)).await.ok()["membership"], "invite");
    bob.get(&summary("!none:hearth.test")).await.refused(404, "M_NOT_FOUND");
}
