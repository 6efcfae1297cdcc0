//! Reading what was said: pages, single events, surroundings, relations, threads.

use hearth::testing::{TestServer, TestUser, encoded};
use serde_json::{Value, json};

fn room_path(version: &str, room: &str, rest: &str) -> String {
    format!("/_matrix/client/{version}/rooms/{}/{rest}", encoded(room))
}

fn bodies(events: &Value) -> Vec<String> {
    let events = events.as_array().unwrap().iter();
    events.filter_map(|event| event["content"]["body"].as_str()).map(str::to_owned).collect()
}

async fn messages(user: &TestUser, room: &str, query: &str) -> Value {
    user.get(&room_path("v3", room, &format!("messages?{query}"))).await.ok()
}

#[tokio::test]
async fn pages_lead_to_the_beginning_and_back() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let room = alice.creates_a_room(json!({})).await;
    for n in 0..25 {
        alice.says(&room, &format!("{n}")).await;
    }
    let mut seen = Vec::new();
    let mut from = String::new();
    loop {
        let page = messages(&alice, &room, &format!("dir=b&limit=7{from}")).await;
        let chunk = page["chunk"].as_array().unwrap();
        assert!(chunk.len() <= 7);
        assert!(chunk.iter().all(|event| event["room_id"] == json!(room)));
        seen.extend(chunk.iter().map(|event| event["event_id"].as_str().unwrap().to_owned()));
        match page["end"].as_str() {
            Some(end) => from = format!("&from={end}"),
            None => break,
        }
    }
    let mut forward = Vec::new();
    let mut from = String::new();
    loop {
        let page = messages(&alice, &room, &format!("dir=f&limit=9{from}")).await;
        let chunk = page["chunk"].as_array().unwrap();
        forward.extend(chunk.iter().map(|event| event["event_id"].as_str().unwrap().to_owned()));
        match page["end"].as_str() {
            Some(end) if !chunk.is_empty() => from = format!("&from={end}"),
            _ => break,
        }
    }
    forward.reverse();
    assert_eq!(seen, forward);
    assert!(seen.len() >= 25 + 5);
    let path = room_path("v3", &room, "messages");
    let unasked = alice.get(&path).await.ok();
    assert_eq!(bodies(&unasked["chunk"]), bodies(&messages(&alice, &room, "dir=b").await["chunk"]));
    assert_eq!(bodies(&unasked["chunk"])[0], "24");
    alice.get(&format!("{path}?dir=x")).await.refused(400, "M_INVALID_PARAM");
    alice.get(&format!("{path}?dir=b&from=bogus")).await.refused(400, "M_INVALID_PARAM");
    alice.get(&format!("{path}?dir=b&filter=%7B")).await.refused(400, "M_INVALID_PARAM");
}

#[tokio::test]
async fn filters_choose_events_and_lazy_members_come_along() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = alice.creates_a_public_room().await;
    bob.joins(&room).await;
    alice.says(&room, "by alice").await;
    bob.says(&room, "by bob").await;
    let filter =
        json!({ "types": ["m.room.message"], "not_senders": [alice.user_id], "lazy_load_members": true });
    let page = messages(&alice, &room, &format!("dir=b&filter={}", encoded(&filter.to_string()))).await;
    assert_eq!(bodies(&page["chunk"]), ["by bob"]);
    let state = page["state"].as_array().unwrap();
    assert_eq!(state.len(), 1);
    assert_eq!(state[0]["state_key"], "@bob:hearth.test");
}

#[tokio::test]
async fn history_ends_at_its_beginning_not_where_a_filter_hid_the_rest() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let room = alice.creates_a_room(json!({})).await;
    alice.says(&room, "hidden").await;
    let file = json!({ "msgtype": "m.file", "body": "a file", "url": "mxc://hearth.test/file" });
    alice.sends(&room, "m.room.message", file).await;
    let with = |filter: Value| format!("dir=b&filter={}", encoded(&filter.to_string()));
    let files = with(json!({ "contains_url": true }));
    let page = messages(&alice, &room, &files).await;
    assert_eq!(bodies(&page["chunk"]), ["a file"]);
    let end = page["end"].as_str().expect("what came before is hidden, and there");
    let rest = messages(&alice, &room, &format!("{files}&from={end}")).await;
    assert_eq!((&rest["chunk"], &rest["end"]), (&json!([]), &Value::Null));
    // Nothing comes before the room itself.
    let first = messages(&alice, &room, &with(json!({ "types": ["m.room.create"] }))).await;
    assert_eq!((first["chunk"].as_array().unwrap().len(), &first["end"]), (1, &Value::Null));
}

async fn members(user: &TestUser, room: &str, query: &str) -> Vec<String> {
    let answer = user.get(&room_path("v3", room, &format!("members?membership=join{query}"))).await.ok();
    let events = answer["chunk"].as_array().unwrap().iter();
    let mut users: Vec<String> =
        events.map(|event| event["state_key"].as_str().unwrap().to_owned()).collect();
    users.sort();
    users
}

async fn sync(user: &TestUser) -> Value {
    user.get("/_matrix/client/v3/sync").await.ok()
}

#[tokio::test]
async fn members_are_those_of_a_place_in_the_timeline() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = alice.creates_a_public_room().await;
    alice.says(&room, "hello").await;
    let start = sync(&alice).await["rooms"]["join"][&room]["timeline"]["prev_batch"].clone();
    let start = start.as_str().unwrap();
    bob.joins(&room).await;
    let before_bob = messages(&alice, &room, "dir=b&limit=1").await["end"].clone();
    let before_bob = before_bob.as_str().unwrap();
    for asker in [&alice, &bob] {
        assert_eq!(members(asker, &room, &format!("&at={start}")).await, ["@alice:hearth.test"], "the first");
        assert_eq!(members(asker, &room, &format!("&at={before_bob}")).await, ["@alice:hearth.test"]);
        assert_eq!(members(asker, &room, "").await.len(), 2);
    }
}

#[tokio::test]
async fn members_of_a_hidden_time_are_not_told() {
    let server = TestServer::start().await;
    let (alice, bob, eve) = (server.user("alice").await, server.user("bob").await, server.user("eve").await);
    let joined =
        json!({ "type": "m.room.history_visibility", "content": { "history_visibility": "joined" } });
    let create = json!({ "preset": "public_chat", "initial_state": [joined] });
    let room = alice.creates_a_room(create).await;
    eve.joins(&room).await;
    let then = sync(&alice).await["next_batch"].clone();
    let then = format!("&at={}", then.as_str().unwrap());
    eve.leaves(&room).await;
    bob.joins(&room).await;
    assert_eq!(members(&alice, &room, &then).await, ["@alice:hearth.test", "@eve:hearth.test"]);
    assert_eq!(members(&bob, &room, &then).await, ["@alice:hearth.test", "@bob:hearth.test"], "those of now");
}

#[tokio::test]
async fn who_left_sees_nothing_of_later_and_ignored_users_are_left_out() {
    let server = TestServer::start().await;
    let (alice, bob, eve) = (server.user("alice").await, server.user("bob").await, server.user("eve").await);
    let room = alice.creates_a_public_room().await;
    bob.joins(&room).await;
    eve.joins(&room).await;
    let early = alice.says(&room, "early").await;
    eve.says(&room, "noise").await;
    bob.leaves(&room).await;
    let late = alice.says(&room, "late").await;
    assert_eq!(bodies(&messages(&bob, &room, "dir=b&limit=100").await["chunk"]), ["noise", "early"]);
    let event = |id: &str| room_path("v3", &room, &format!("event/{}", encoded(id)));
    bob.get(&event(&early)).await.ok();
    bob.get(&event(&late)).await.refused(404, "M_NOT_FOUND");
    let context = room_path("v3", &room, &format!("context/{}", encoded(&late)));
    bob.get(&context).await.refused(404, "M_NOT_FOUND");

    let alices = encoded(alice.user_id.as_str());
    let path = format!("/_matrix/client/v3/user/{alices}/account_data/m.ignored_user_list");
    alice.put(&path, json!({ "ignored_users": { eve.user_id.as_str(): {} } })).await.ok();
    assert_eq!(bodies(&messages(&alice, &room, "dir=b&limit=100").await["chunk"]), ["late", "early"]);
}

#[tokio::test]
async fn a_context_continues_in_both_directions() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let room = alice.creates_a_room(json!({})).await;
    let mut events = Vec::new();
    for n in 0..9 {
        events.push(alice.says(&room, &format!("{n}")).await);
    }
    let path = room_path("v3", &room, &format!("context/{}?limit=4", encoded(&events[4])));
    let context = alice.get(&path).await.ok();
    assert_eq!(context["event"]["event_id"], json!(events[4]));
    assert_eq!(bodies(&context["events_before"]), ["3", "2"]);
    assert_eq!(bodies(&context["events_after"]), ["5", "6"]);
    let kinds = context["state"].as_array().unwrap().iter().map(|event| event["type"].as_str().unwrap());
    assert!(
        kinds.clone().any(|kind| kind == "m.room.create")
            && kinds.clone().any(|kind| kind == "m.room.member")
    );
    let (start, end) = (context["start"].as_str().unwrap(), context["end"].as_str().unwrap());
    let before = messages(&alice, &room, &format!("dir=b&limit=2&from={start}")).await;
    assert_eq!(bodies(&before["chunk"]), ["1", "0"]);
    let after = messages(&alice, &room, &format!("dir=f&limit=5&from={end}")).await;
    assert_eq!(bodies(&after["chunk"]), ["7", "8"]);
}

#[tokio::test]
async fn the_event_nearest_to_a_time_is_found() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let room = alice.creates_a_room(json!({})).await;
    let event = alice.says(&room, "now").await;
    let found = alice.get(&room_path("v1", &room, "timestamp_to_event?ts=99999999999999&dir=b")).await.ok();
    assert_eq!(found["event_id"], json!(event));
    assert!(found["origin_server_ts"].is_u64());
    let none = room_path("v1", &room, "timestamp_to_event?ts=99999999999999&dir=f");
    alice.get(&none).await.refused(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn relations_are_listed_and_bundled() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = alice.creates_a_public_room().await;
    bob.joins(&room).await;
    let root = alice.says(&room, "root").await;
    let reaction = json!({ "m.relates_to": { "rel_type": "m.annotation", "event_id": root, "key": "👍" } });
    let liked = bob.sends(&room, "m.reaction", reaction.clone()).await;
    let again = room_path("v3", &room, "send/m.reaction/again");
    bob.put(&again, reaction).await.refused(400, "M_DUPLICATE_ANNOTATION");
    let edit = json!({
        "msgtype": "m.text", "body": "* better", "m.new_content": { "msgtype": "m.text", "body": "better" },
        "m.relates_to": { "rel_type": "m.replace", "event_id": root },
    });
    let edited = alice.sends(&room, "m.room.message", edit).await;
    let reply = |target: &str| {
        json!({
            "msgtype": "m.text", "body": "in thread",
            "m.relates_to": { "rel_type": "m.thread", "event_id": target },
        })
    };
    let in_thread = bob.sends(&room, "m.room.message", reply(&root)).await;
    let on_related = room_path("v3", &room, "send/m.room.message/related");
    bob.put(&on_related, reply(&in_thread)).await.refused(400, "M_UNKNOWN");

    let relations = |rest: &str| room_path("v1", &room, &format!("relations/{}{rest}", encoded(&root)));
    let ids = |answer: &Value| -> Vec<String> {
        let chunk = answer["chunk"].as_array().unwrap();
        chunk.iter().map(|event| event["event_id"].as_str().unwrap().to_owned()).collect()
    };
    let all = alice.get(&relations("")).await.ok();
    assert_eq!(ids(&all), [in_thread.clone(), edited.clone(), liked.clone()]);
    assert_eq!(ids(&alice.get(&relations("/m.annotation")).await.ok()), [liked.clone()]);
    let messages_only = alice.get(&relations("/m.thread/m.room.message")).await.ok();
    assert_eq!(ids(&messages_only), [in_thread.clone()]);
    assert_eq!(ids(&alice.get(&relations("?dir=f&limit=1")).await.ok()), [liked.clone()]);
    let page = alice.get(&relations("?limit=2")).await.ok();
    let next = page["next_batch"].as_str().unwrap();
    assert_eq!(ids(&alice.get(&relations(&format!("?limit=2&from={next}"))).await.ok()), [liked]);
    let deep = alice.get(&relations("?recurse=true")).await.ok();
    assert!(deep["recursion_depth"].is_u64());

    let event = alice.get(&room_path("v3", &room, &format!("event/{}", encoded(&root)))).await.ok();
    let bundled = &event["unsigned"]["m.relations"];
    assert_eq!(bundled["m.replace"]["event_id"], json!(edited));
    assert_eq!(bundled["m.thread"]["count"], 1);
    assert_eq!(bundled["m.thread"]["latest_event"]["event_id"], json!(in_thread));
    assert_eq!(bundled["m.annotation"], Value::Null);

    let threads = room_path("v1", &room, "threads");
    let of_alice = alice.get(&threads).await.ok();
    assert_eq!(ids(&of_alice), [root.clone()]);
    let root_event = &of_alice["chunk"][0];
    assert_eq!(root_event["unsigned"]["m.relations"]["m.thread"]["current_user_participated"], true);
    assert_eq!(ids(&bob.get(&format!("{threads}?include=participated")).await.ok()), [root]);
}
