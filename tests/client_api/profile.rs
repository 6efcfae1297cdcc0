//! Profiles: any fields, within limits, of users who are here.

use hearth::testing::{TestServer, TestUser, encoded};
use http::Method;
use serde_json::{Value, json};

fn path(user: &TestUser, field: &str) -> String {
    let field = if field.is_empty() { String::new() } else { format!("/{}", encoded(field)) };
    format!("/_matrix/client/v3/profile/{}{field}", encoded(user.user_id.as_str()))
}

#[tokio::test]
async fn fields_of_any_kind_are_kept_read_and_removed() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    for (field, value) in [
        ("displayname", json!("Alice A")),
        ("avatar_url", json!("mxc://hearth.test/a")),
        ("m.tz", json!("Europe/London")),
        ("org.example.languages", json!(["en", { "also": "cy" }])),
        ("org.example.nothing", Value::Null),
    ] {
        alice.put(&path(&alice, field), json!({ field: value })).await.ok();
        // Strangers read it too.
        let read = server.request(Method::GET, &path(&alice, field), None, None).await.ok();
        assert_eq!(read, json!({ field: value }));
    }
    let whole = bob.get(&path(&alice, "")).await.ok();
    assert_eq!(whole["m.tz"], "Europe/London");
    assert_eq!(whole.as_object().unwrap().len(), 5);
    bob.put(&path(&alice, "m.tz"), json!({ "m.tz": "UTC" })).await.refused(403, "M_FORBIDDEN");
    bob.delete(&path(&alice, "m.tz")).await.refused(403, "M_FORBIDDEN");

    alice.delete(&path(&alice, "m.tz")).await.ok();
    bob.get(&path(&alice, "m.tz")).await.refused(404, "M_NOT_FOUND");
    alice.delete(&path(&alice, "m.tz")).await.ok();
    // An empty name is none.
    alice.put(&path(&alice, "displayname"), json!({ "displayname": "" })).await.ok();
    bob.get(&path(&alice, "displayname")).await.refused(404, "M_NOT_FOUND");
    let unstable = path(&alice, "m.tz").replacen("v3", "unstable/uk.tcpip.msc4133", 1);
    alice.put(&unstable, json!({ "m.tz": "UTC" })).await.ok();
    assert_eq!(bob.get(&path(&alice, "m.tz")).await.ok(), json!({ "m.tz": "UTC" }));
    let nobody = "/_matrix/client/v3/profile/%40nobody%3Ahearth.test";
    bob.get(nobody).await.refused(404, "M_NOT_FOUND");
    bob.get("/_matrix/client/v3/profile/%40x%3Aelsewhere.test").await.refused(502, "M_UNKNOWN");
}

#[tokio::test]
async fn fields_that_cannot_be_are_refused() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let before = alice.get(&path(&alice, "")).await.ok();
    let long = "k".repeat(256);
    for (field, errcode) in [
        (&*long, "M_KEY_TOO_LARGE"),
        ("Capital", "M_INVALID_PARAM"),
        ("1st", "M_INVALID_PARAM"),
        ("a b", "M_INVALID_PARAM"),
        ("ä", "M_INVALID_PARAM"),
    ] {
        alice.put(&path(&alice, field), json!({ field: 1 })).await.refused(400, errcode);
    }
    let tz = path(&alice, "m.tz");
    alice.put(&tz, json!({ "other": "UTC" })).await.refused(400, "M_MISSING_PARAM");
    alice.put(&tz, json!(["UTC"])).await.refused(400, "M_BAD_JSON");
    let name = path(&alice, "displayname");
    for wrong in [json!(1), json!({}), json!(["a"])] {
        alice.put(&name, json!({ "displayname": wrong })).await.refused(400, "M_INVALID_PARAM");
    }
    assert_eq!(alice.get(&path(&alice, "")).await.ok(), before);
}

// 64 KiB are the whole profile's, as canonical JSON.
#[tokio::test]
async fn a_profile_has_a_size() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let big = |length: usize| json!({ "org.example.big": "x".repeat(length) });
    let field = path(&alice, "org.example.big");
    let rest = alice.get(&path(&alice, "")).await.ok().to_string().len();
    let most = 65_536 - rest - r#","org.example.big":"""#.len();
    alice.put(&field, big(most + 1)).await.refused(400, "M_PROFILE_TOO_LARGE");
    alice.get(&field).await.refused(404, "M_NOT_FOUND");
    alice.put(&field, big(most)).await.ok();
    let more = path(&alice, "a");
    alice.put(&more, json!({ "a": 1 })).await.refused(400, "M_PROFILE_TOO_LARGE");
    // A smaller value is welcome.
    alice.put(&field, big(10)).await.ok();
    alice.put(&more, json!({ "a": 1 })).await.ok();
}
