//! What users keep for themselves: account data, tags, filters, push rules.

use hearth::testing::{TestServer, TestUser, encoded};
use serde_json::{Value, json};

fn own(user: &TestUser, rest: &str) -> String {
    format!("/_matrix/client/v3/user/{}/{rest}", encoded(user.user_id.as_str()))
}

async fn sync(user: &TestUser, since: Option<&Value>) -> Value {
    let since = since.and_then(Value::as_str).map(|since| format!("&since={since}")).unwrap_or_default();
    user.get(&format!("/_matrix/client/v3/sync?set_presence=offline{since}")).await.ok()
}

fn of_type<'a>(events: &'a Value, kind: &str) -> &'a Value {
    let events = events["events"].as_array();
    let found = events.and_then(|events| events.iter().find(|event| event["type"] == kind));
    found.map_or(&Value::Null, |event| &event["content"])
}

#[tokio::test]
async fn account_data_is_the_owners_and_reaches_their_sync() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = alice.creates_a_public_room().await;
    bob.joins(&room).await;
    let since = sync(&alice, None).await["next_batch"].clone();
    let global = own(&alice, "account_data/org.example.colour");
    let of_room = own(&alice, &format!("rooms/{}/account_data/org.example.colour", encoded(&room)));
    for (path, colour) in [(&global, "green"), (&of_room, "blue")] {
        alice.get(path).await.refused(404, "M_NOT_FOUND");
        alice.put(path, json!({ "colour": colour })).await.ok();
        assert_eq!(alice.get(path).await.ok(), json!({ "colour": colour }));
        bob.get(path).await.refused(403, "M_FORBIDDEN");
        bob.put(path, json!({})).await.refused(403, "M_FORBIDDEN");
        for wrong in [json!([]), json!("x"), json!(1), Value::Null] {
            alice.put(path, wrong).await.refused(400, "M_BAD_JSON");
        }
        let huge = json!({ "x": "x".repeat(256 * 1024) });
        alice.put(path, huge).await.refused(413, "M_TOO_LARGE");
        assert_eq!(alice.get(path).await.ok(), json!({ "colour": colour }));
    }
    let news = sync(&alice, Some(&since)).await;
    assert_eq!(of_type(&news["account_data"], "org.example.colour"), &json!({ "colour": "green" }));
    let joined = &news["rooms"]["join"][&room]["account_data"];
    assert_eq!(of_type(joined, "org.example.colour"), &json!({ "colour": "blue" }));
    assert_eq!(of_type(&sync(&bob, None).await["account_data"], "org.example.colour"), &Value::Null);
    // These have endpoints of their own.
    alice.put(&own(&alice, "account_data/m.push_rules"), json!({})).await.refused(405, "M_BAD_JSON");
    let marker = own(&alice, &format!("rooms/{}/account_data/m.fully_read", encoded(&room)));
    alice.put(&marker, json!({})).await.refused(405, "M_BAD_JSON");
}

#[tokio::test]
async fn tags_are_put_on_rooms_and_taken_off() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = alice.creates_a_room(json!({})).await;
    let tags = own(&alice, &format!("rooms/{}/tags", encoded(&room)));
    assert_eq!(alice.get(&tags).await.ok(), json!({ "tags": {} }));
    let since = sync(&alice, None).await["next_batch"].clone();
    for (tag, info) in [
        ("m.favourite", json!({ "order": 0 })),
        ("m.lowpriority", json!({ "order": 1.0 })),
        ("u.work", json!({ "order": 0.25, "org.example.colour": "red" })),
        ("u.no order", json!({})),
    ] {
        let path = format!("{tags}/{}", encoded(tag));
        alice.put(&path, info.clone()).await.ok();
        assert_eq!(alice.get(&tags).await.ok()["tags"][tag], info);
        bob.put(&path, info).await.refused(403, "M_FORBIDDEN");
        bob.delete(&path).await.refused(403, "M_FORBIDDEN");
        for wrong in [json!({ "order": {} }), json!({ "order": true }), json!([])] {
            alice.put(&path, wrong).await.refused(400, "M_BAD_JSON");
        }
    }
    alice.delete(&format!("{tags}/u.work")).await.ok();
    alice.delete(&format!("{tags}/u.work")).await.ok();
    let news = sync(&alice, Some(&since)).await;
    let told = of_type(&news["rooms"]["join"][&room]["account_data"], "m.tag");
    assert_eq!(told, &alice.get(&tags).await.ok());
    assert_eq!(told["tags"].as_object().unwrap().len(), 3);
    bob.get(&tags).await.refused(403, "M_FORBIDDEN");
}

#[tokio::test]
async fn filters_are_kept_as_they_were_given() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let filters = own(&alice, "filter");
    let filter = json!({ "room": { "timeline": { "limit": 1, "types": ["m.room.message"] } } });
    let id = alice.post(&filters, filter.clone()).await.ok()["filter_id"].as_str().unwrap().to_owned();
    // An id never looks like a filter.
    assert!(!id.starts_with('{'));
    let path = format!("{filters}/{}", encoded(&id));
    assert_eq!(alice.get(&path).await.ok(), filter);
    assert_eq!(alice.post(&filters, filter).await.ok()["filter_id"], id);
    alice.get(&format!("{filters}/none")).await.refused(404, "M_NOT_FOUND");
    bob.get(&path).await.refused(403, "M_FORBIDDEN");
    bob.post(&filters, json!({})).await.refused(403, "M_FORBIDDEN");
    for wrong in [json!([]), json!({ "room": 1 }), json!({ "room": { "timeline": { "types": "x" } } })] {
        alice.post(&filters, wrong).await.refused(400, "M_BAD_JSON");
    }
    let room = alice.creates_a_room(json!({ "name": "Tea" })).await;
    alice.says(&room, "one").await;
    alice.says(&room, "two").await;
    let shown = alice.get(&format!("/_matrix/client/v3/sync?filter={id}")).await.ok();
    let timeline = shown["rooms"]["join"][&room]["timeline"].clone();
    let bodies: Vec<_> =
        timeline["events"].as_array().unwrap().iter().map(|e| &e["content"]["body"]).collect();
    assert_eq!(bodies, ["two"]);
}

const RULES: &str = "/_matrix/client/v3/pushrules/global";

#[tokio::test]
async fn push_rules_are_made_ordered_switched_and_removed() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let since = sync(&alice, None).await["next_batch"].clone();
    let rule = |word: &str| json!({ "pattern": word, "actions": ["notify"] });
    let path = |id: &str| format!("{RULES}/content/{}", encoded(id));
    for id in ["tea", "cake", "milk"] {
        alice.put(&path(id), rule(id)).await.ok();
    }
    alice.put(&format!("{}?after=tea", path("sugar")), rule("sugar")).await.ok();
    alice.put(&format!("{}?before=tea", path("lemon")), rule("lemon")).await.ok();
    let order = async || {
        let all = alice.get(&format!("{RULES}/")).await.ok();
        let content = all["content"].as_array().unwrap().clone();
        let own = content.into_iter().filter(|rule| rule["default"] == false);
        own.map(|rule| rule["rule_id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    // A new rule without a neighbour goes to the front.
    assert_eq!(order().await, ["milk", "cake", "lemon", "tea", "sugar"]);
    let made = alice.get(&path("tea")).await.ok();
    let wanted = json!({
        "rule_id": "tea", "default": false, "enabled": true, "pattern": "tea", "actions": ["notify"],
    });
    assert_eq!(made, wanted);
    alice.put(&format!("{}/enabled", path("tea")), json!({ "enabled": false })).await.ok();
    assert_eq!(alice.get(&format!("{}/enabled", path("tea"))).await.ok(), json!({ "enabled": false }));
    let actions = json!({ "actions": ["notify", { "set_tweak": "sound", "value": "default" }] });
    alice.put(&format!("{}/actions", path("tea")), actions.clone()).await.ok();
    assert_eq!(alice.get(&format!("{}/actions", path("tea"))).await.ok(), actions);
    alice.delete(&path("tea")).await.ok();
    alice.get(&path("tea")).await.refused(404, "M_NOT_FOUND");
    alice.delete(&path("tea")).await.refused(404, "M_NOT_FOUND");
    assert_eq!(order().await, ["milk", "cake", "lemon", "sugar"]);
    bob.get(&path("cake")).await.refused(404, "M_NOT_FOUND");
    let news = sync(&alice, Some(&since)).await;
    let told = of_type(&news["account_data"], "m.push_rules");
    assert_eq!(told["global"], alice.get(&format!("{RULES}/")).await.ok());
}

#[tokio::test]
async fn push_rules_that_cannot_be_are_refused() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let before = alice.get(&format!("{RULES}/")).await.ok();
    let rule = json!({ "pattern": "x", "actions": ["notify"] });
    alice.put(&format!("{RULES}/content/.m.rule.mine"), rule.clone()).await.refused(400, "M_INVALID_PARAM");
    alice.put(&format!("{RULES}/content/x?before=none"), rule.clone()).await.refused(400, "M_UNKNOWN");
    alice.put(&format!("{RULES}/content/x"), json!({ "pattern": "x" })).await.refused(400, "M_MISSING_PARAM");
    alice.put(&format!("{RULES}/nonsense/x"), rule.clone()).await.refused(400, "M_INVALID_PARAM");
    let no_pattern = json!({ "actions": ["notify"] });
    alice.put(&format!("{RULES}/content/x"), no_pattern).await.refused(400, "M_MISSING_PARAM");
    let master = format!("{RULES}/override/.m.rule.master");
    alice.delete(&master).await.refused(400, "M_INVALID_PARAM");
    alice
        .put(&format!("{RULES}/content/none/enabled"), json!({ "enabled": true }))
        .await
        .refused(404, "M_NOT_FOUND");
    alice.get(&format!("{RULES}/content/none/actions")).await.refused(404, "M_NOT_FOUND");
    assert_eq!(alice.get(&format!("{RULES}/")).await.ok(), before);
    // A rule that comes with the server can be switched off.
    alice.put(&format!("{master}/enabled"), json!({ "enabled": true })).await.ok();
    assert_eq!(alice.get(&master).await.ok()["enabled"], true);
}
