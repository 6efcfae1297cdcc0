//! Registration: the ways to it, names, and what a new account gets.

use hearth::testing::{Answer, TestServer};
use http::Method;
use serde_json::{Value, json};

const REGISTER: &str = "/_matrix/client/v3/register";

async fn post(server: &TestServer, path: &str, body: Value) -> Answer {
    server.request(Method::POST, path, None, Some(body)).await
}

async fn get(server: &TestServer, path: &str) -> Answer {
    server.request(Method::GET, path, None, None).await
}

fn dummy(name: &str) -> Value {
    json!({ "username": name, "password": "secret", "auth": { "type": "m.login.dummy" } })
}

#[tokio::test]
async fn a_new_account_is_logged_in_unless_it_does_not_want_to() {
    let server = TestServer::start().await;
    let mut wanted = dummy("alice");
    wanted["device_id"] = "DESK".into();
    wanted["initial_device_display_name"] = "a desk".into();
    let made = post(&server, REGISTER, wanted).await.ok();
    assert_eq!((&made["user_id"], &made["device_id"]), (&json!("@alice:hearth.test"), &json!("DESK")));
    assert_eq!((&made["refresh_token"], &made["expires_in_ms"]), (&Value::Null, &Value::Null));
    let token = made["access_token"].as_str();
    let device = server.request(Method::GET, "/_matrix/client/v3/devices/DESK", token, None).await.ok();
    assert_eq!(device["display_name"], "a desk");
    let name = get(&server, "/_matrix/client/v3/profile/@alice:hearth.test").await.ok();
    assert_eq!(name, json!({ "displayname": "alice" }));

    let mut quiet = dummy("bob");
    quiet["inhibit_login"] = true.into();
    assert_eq!(post(&server, REGISTER, quiet).await.ok(), json!({ "user_id": "@bob:hearth.test" }));
    let mut refreshing = dummy("carol");
    refreshing["refresh_token"] = true.into();
    let made = post(&server, REGISTER, refreshing).await.ok();
    assert!(made["refresh_token"].is_string() && made["expires_in_ms"].is_u64(), "{made}");

    let nameless = json!({ "password": "secret", "auth": { "type": "m.login.dummy" } });
    let made = post(&server, REGISTER, nameless).await.ok();
    assert!(made["user_id"].as_str().unwrap().ends_with(":hearth.test"));
}

#[tokio::test]
async fn names_are_checked_before_anybody_authenticates() {
    let server = TestServer::start().await;
    server.user("taken").await;
    let available = |name: &str| {
        let name = hearth::testing::encoded(name);
        format!("/_matrix/client/v3/register/available?username={name}")
    };
    let long = "x".repeat(250);
    for (name, errcode) in [
        ("taken", "M_USER_IN_USE"),
        ("TAKEN", "M_USER_IN_USE"),
        ("", "M_INVALID_USERNAME"),
        ("two words", "M_INVALID_USERNAME"),
        ("ümlaut", "M_INVALID_USERNAME"),
        ("a:b", "M_INVALID_USERNAME"),
        ("@a:hearth.test", "M_INVALID_USERNAME"),
        (&long, "M_INVALID_USERNAME"),
    ] {
        get(&server, &available(name)).await.refused(400, errcode);
        let wanted = json!({ "username": name, "password": "secret" });
        post(&server, REGISTER, wanted).await.refused(400, errcode);
    }
    assert_eq!(get(&server, &available("a-z0=_./+")).await.ok(), json!({ "available": true }));
    get(&server, "/_matrix/client/v3/register/available").await.refused(400, "M_MISSING_PARAM");
    assert_eq!(post(&server, REGISTER, dummy("Alice")).await.ok()["user_id"], "@alice:hearth.test");
}

#[tokio::test]
async fn what_is_missing_or_wrong_is_told() {
    let server = TestServer::start().await;
    let no_password = json!({ "username": "bob", "auth": { "type": "m.login.dummy" } });
    post(&server, REGISTER, no_password).await.refused(400, "M_MISSING_PARAM");
    let guest = format!("{REGISTER}?kind=guest");
    post(&server, &guest, json!({})).await.refused(403, "M_GUEST_ACCESS_FORBIDDEN");
    post(&server, &format!("{REGISTER}?kind=admin"), dummy("bob")).await.refused(400, "M_INVALID_PARAM");
    let challenge = post(&server, REGISTER, json!({})).await;
    assert_eq!(challenge.status, 401);
    assert_eq!(challenge.json()["flows"], json!([{ "stages": ["m.login.dummy"] }]));
    let mut odd = dummy("bob");
    odd["device_id"] = "x".repeat(300).into();
    post(&server, REGISTER, odd).await.refused(400, "M_INVALID_PARAM");
    let bob = "/_matrix/client/v3/register/available?username=bob";
    get(&server, bob).await.ok();

    let closed = TestServer::with(|config| config.registration.open = false).await;
    post(&closed, REGISTER, dummy("bob")).await.refused(403, "M_FORBIDDEN");
}

#[tokio::test]
async fn a_token_lets_as_many_register_as_it_says() {
    let server = TestServer::with(|config| config.registration.open = false).await;
    let token = hearth_users::RegistrationToken { uses_allowed: Some(1), ..Default::default() };
    server.app.users.add_registration_token("welcome", &token).await.unwrap();
    let validity = |token: &str| {
        format!("/_matrix/client/v1/register/m.login.registration_token/validity?token={token}")
    };
    assert_eq!(get(&server, &validity("welcome")).await.ok(), json!({ "valid": true }));
    assert_eq!(get(&server, &validity("nobodys")).await.ok(), json!({ "valid": false }));
    let with = |name: &str, token: &str| {
        let auth = json!({ "type": "m.login.registration_token", "token": token });
        json!({ "username": name, "password": "secret", "auth": auth })
    };
    let flows = post(&server, REGISTER, json!({})).await.json()["flows"].clone();
    assert_eq!(flows, json!([{ "stages": ["m.login.registration_token"] }]));
    let wrong = post(&server, REGISTER, with("bob", "nobodys")).await;
    assert_eq!((wrong.status.as_u16(), &wrong.json()["errcode"]), (401, &json!("M_FORBIDDEN")));
    let dummy = post(&server, REGISTER, dummy("bob")).await;
    assert_eq!((dummy.status.as_u16(), &dummy.json()["errcode"]), (401, &json!("M_UNRECOGNIZED")));
    post(&server, REGISTER, with("bob", "welcome")).await.ok();
    assert_eq!(get(&server, &validity("welcome")).await.ok(), json!({ "valid": false }));
    let late = post(&server, REGISTER, with("carol", "welcome")).await;
    assert_eq!((late.status.as_u16(), &late.json()["errcode"]), (401, &json!("M_FORBIDDEN")));
    let carol = "/_matrix/client/v3/register/available?username=carol";
    get(&server, carol).await.ok();
}

#[tokio::test]
async fn terms_are_to_be_accepted() {
    let server = TestServer::with(|config| {
        config.registration.terms_url = Some("https://hearth.test/terms".into());
        config.registration.terms_version = "7".into();
    })
    .await;
    let challenge = post(&server, REGISTER, dummy("bob")).await;
    assert_eq!(challenge.status, 401);
    let challenge = challenge.json();
    assert_eq!(challenge["flows"], json!([{ "stages": ["m.login.dummy", "m.login.terms"] }]));
    assert_eq!(challenge["completed"], json!(["m.login.dummy"]));
    let terms = &challenge["params"]["m.login.terms"]["policies"]["terms"];
    assert_eq!((&terms["version"], &terms["en"]["url"]), (&json!("7"), &json!("https://hearth.test/terms")));
    let mut accepting = dummy("bob");
    accepting["auth"] = json!({ "type": "m.login.terms", "session": challenge["session"] });
    post(&server, REGISTER, accepting).await.ok();
}
