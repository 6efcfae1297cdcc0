//! Login, logout, refreshing, and login tokens.

use hearth::testing::{Answer, TestServer, TestUser};
use http::Method;
use serde_json::{Value, json};

const LOGIN: &str = "/_matrix/client/v3/login";
const WHOAMI: &str = "/_matrix/client/v3/account/whoami";

async fn post(server: &TestServer, path: &str, body: Value) -> Answer {
    server.request(Method::POST, path, None, Some(body)).await
}

async fn whoami(server: &TestServer, token: &Value) -> Answer {
    server.request(Method::GET, WHOAMI, token.as_str(), None).await
}

/// Alice, whose password is "secret".
async fn alice(server: &TestServer) -> TestUser {
    let alice = server.user("alice").await;
    let hash = server.app.users.hash_password("secret").await.unwrap();
    server.app.users.set_password(&alice.user_id, hash).await.unwrap();
    alice
}

fn by_password(user: &str, password: &str) -> Value {
    let identifier = json!({ "type": "m.id.user", "user": user });
    json!({ "type": "m.login.password", "identifier": identifier, "password": password })
}

#[tokio::test]
async fn a_login_makes_a_device_or_takes_one_over() {
    let server = TestServer::start().await;
    let alice = alice(&server).await;
    let flows = server.request(Method::GET, LOGIN, None, None).await.ok();
    let kinds: Vec<_> = flows["flows"].as_array().unwrap().iter().map(|flow| &flow["type"]).collect();
    assert_eq!(kinds, ["m.login.password", "m.login.token"]);

    let mut first = by_password("alice", "secret");
    first["device_id"] = "TABLET".into();
    first["initial_device_display_name"] = "a tablet".into();
    let session = post(&server, LOGIN, first.clone()).await.ok();
    assert_eq!((&session["user_id"], &session["device_id"]), (&json!(alice.user_id), &json!("TABLET")));
    first["initial_device_display_name"] = "another name".into();
    let again = post(&server, LOGIN, first).await.ok();
    whoami(&server, &session["access_token"]).await.refused(401, "M_UNKNOWN_TOKEN");
    assert_eq!(whoami(&server, &again["access_token"]).await.ok()["device_id"], "TABLET");
    let device = alice.get("/_matrix/client/v3/devices/TABLET").await.ok();
    assert_eq!(device["display_name"], "a tablet", "only a new device takes the name");

    let fresh = post(&server, LOGIN, by_password("@Alice:hearth.test", "secret")).await.ok();
    assert_ne!(fresh["device_id"], "TABLET");
    let old_style = json!({ "type": "m.login.password", "user": "alice", "password": "secret" });
    post(&server, LOGIN, old_style).await.ok();
}

#[tokio::test]
async fn a_login_is_refused_without_saying_more_than_need_be() {
    let server = TestServer::start().await;
    let alice = alice(&server).await;
    let wrong = post(&server, LOGIN, by_password("alice", "wrong")).await.refused(403, "M_FORBIDDEN");
    let nobody = post(&server, LOGIN, by_password("nobody", "secret")).await.refused(403, "M_FORBIDDEN");
    assert_eq!(wrong, nobody);
    let elsewhere = by_password("@alice:elsewhere.test", "secret");
    post(&server, LOGIN, elsewhere).await.refused(403, "M_FORBIDDEN");
    let email = json!({ "type": "m.id.thirdparty", "medium": "email", "address": "a@b.test" });
    let by_email = json!({ "type": "m.login.password", "identifier": email, "password": "secret" });
    post(&server, LOGIN, by_email).await.refused(403, "M_FORBIDDEN");
    let nameless = json!({ "type": "m.login.password", "password": "secret" });
    post(&server, LOGIN, nameless).await.refused(400, "M_MISSING_PARAM");
    post(&server, LOGIN, json!({ "type": "org.example.magic" })).await.refused(400, "M_UNKNOWN");
    post(&server, LOGIN, json!({})).await.refused(400, "M_MISSING_PARAM");
    let mut odd = by_password("alice", "secret");
    odd["device_id"] = "".into();
    post(&server, LOGIN, odd).await.refused(400, "M_INVALID_PARAM");

    server.app.users.set_locked(&alice.user_id, true).await.unwrap();
    let locked = post(&server, LOGIN, by_password("alice", "secret")).await.refused(401, "M_USER_LOCKED");
    assert_eq!(locked["soft_logout"], true);
    server.app.users.set_locked(&alice.user_id, false).await.unwrap();
    hearth::client_api::account::close_account(&server.app, &alice.user_id, false).await.unwrap();
    post(&server, LOGIN, by_password("alice", "secret")).await.refused(403, "M_USER_DEACTIVATED");
}

#[tokio::test]
async fn guesses_are_slowed_down_for_the_account_they_are_about() {
    let server = TestServer::with(|config| {
        config.rate_limits.enabled = true;
        config.rate_limits.login_account.burst = 2.0;
        config.rate_limits.login_account.per_second = 0.01;
    })
    .await;
    alice(&server).await;
    for _ in 0..2 {
        post(&server, LOGIN, by_password("alice", "wrong")).await.refused(403, "M_FORBIDDEN");
    }
    let slow = post(&server, LOGIN, by_password("alice", "secret")).await.refused(429, "M_LIMIT_EXCEEDED");
    assert!(slow["retry_after_ms"].as_u64().unwrap() > 1_000);
    post(&server, LOGIN, by_password("bob", "wrong")).await.refused(403, "M_FORBIDDEN");
}

#[tokio::test]
async fn a_logout_ends_one_session_or_all() {
    let server = TestServer::start().await;
    let (desk, phone) = {
        let alice = alice(&server).await;
        let phone = server.device(&alice.user_id, "PHONE").await;
        (alice, phone)
    };
    phone.post("/_matrix/client/v3/logout", json!({})).await.ok();
    phone.get(WHOAMI).await.refused(401, "M_UNKNOWN_TOKEN");
    desk.get("/_matrix/client/v3/devices/PHONE").await.refused(404, "M_NOT_FOUND");
    assert_eq!(desk.get(WHOAMI).await.ok()["is_guest"], false);
    let phone = server.device(&desk.user_id, "PHONE").await;
    desk.post("/_matrix/client/v3/logout/all", json!({})).await.ok();
    for device in [&desk, &phone] {
        device.get(WHOAMI).await.refused(401, "M_UNKNOWN_TOKEN");
    }
    let session = post(&server, LOGIN, by_password("alice", "secret")).await.ok();
    let token = session["access_token"].as_str();
    let devices = server.request(Method::GET, "/_matrix/client/v3/devices", token, None).await.ok();
    assert_eq!(devices["devices"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_refresh_rotates_both_tokens() {
    let server = TestServer::start().await;
    alice(&server).await;
    let mut login = by_password("alice", "secret");
    login["refresh_token"] = true.into();
    let first = post(&server, LOGIN, login).await.ok();
    assert_eq!(first["expires_in_ms"], 300_000);
    let refresh = async |token: &Value| {
        post(&server, "/_matrix/client/v3/refresh", json!({ "refresh_token": token })).await
    };
    let second = refresh(&first["refresh_token"]).await.ok();
    assert_eq!(second["expires_in_ms"], 300_000);
    assert_ne!(second["access_token"], first["access_token"]);
    // Until the new pair is used the old one is good: the answer may have been lost.
    whoami(&server, &first["access_token"]).await.ok();
    let third = refresh(&first["refresh_token"]).await.ok();
    whoami(&server, &second["access_token"]).await.refused(401, "M_UNKNOWN_TOKEN");
    assert_eq!(whoami(&server, &third["access_token"]).await.ok()["device_id"], first["device_id"]);
    whoami(&server, &first["access_token"]).await.refused(401, "M_UNKNOWN_TOKEN");
    refresh(&first["refresh_token"]).await.refused(401, "M_UNKNOWN_TOKEN");
    refresh(&json!("nobodys")).await.refused(401, "M_UNKNOWN_TOKEN");
    refresh(&Value::Null).await.refused(400, "M_BAD_JSON");
    post(&server, "/_matrix/client/v3/refresh", json!({})).await.refused(400, "M_MISSING_PARAM");
    refresh(&third["refresh_token"]).await.ok();
}

#[tokio::test]
async fn an_expired_token_is_a_soft_logout() {
    let server = TestServer::with(|config| {
        config.sessions.access_token_lifetime = "1s".parse().unwrap();
    })
    .await;
    alice(&server).await;
    let mut login = by_password("alice", "secret");
    login["refresh_token"] = true.into();
    let first = post(&server, LOGIN, login).await.ok();
    tokio::time::sleep(std::time::Duration::from_millis(1_100)).await;
    let expired = whoami(&server, &first["access_token"]).await.refused(401, "M_UNKNOWN_TOKEN");
    assert_eq!(expired["soft_logout"], true);
    let next = json!({ "refresh_token": first["refresh_token"] });
    let next = post(&server, "/_matrix/client/v3/refresh", next).await.ok();
    assert_ne!(next["access_token"], first["access_token"]);
}

#[tokio::test]
async fn a_login_token_is_good_once() {
    let server = TestServer::start().await;
    let alice = alice(&server).await;
    let path = "/_matrix/client/v1/login/get_token";
    let asked = alice.post(path, json!({})).await;
    assert_eq!(asked.status, 401);
    let mut auth = by_password("alice", "secret");
    auth["session"] = asked.json()["session"].clone();
    let issued = alice.post(path, json!({ "auth": auth })).await.ok();
    assert!(issued["expires_in_ms"].as_u64().unwrap() <= 120_000);
    let login = json!({ "type": "m.login.token", "token": issued["login_token"] });
    let session = post(&server, LOGIN, login.clone()).await.ok();
    assert_eq!(session["user_id"], json!(alice.user_id));
    post(&server, LOGIN, login).await.refused(403, "M_FORBIDDEN");
    // A used session does not authenticate a second time.
    assert_eq!(alice.post(path, json!({ "auth": auth })).await.status, 401);
}

#[tokio::test]
async fn there_is_a_page_to_log_in_with() {
    let server = TestServer::start().await;
    let page = server.request(Method::GET, "/_matrix/static/client/login/?device_id=X", None, None).await;
    assert_eq!(
        (page.status.as_u16(), &page.headers["content-type"]),
        (200, &"text/html; charset=utf-8".parse().unwrap())
    );
    let html = String::from_utf8(page.body.to_vec()).unwrap();
    assert!(html.contains("window.onLogin(json)") && html.contains("/_matrix/client/v3/login"));
    // The browser runs this script and no other.
    let script = html.split_once("<script>").unwrap().1.split_once("</script>").unwrap().0;
    let hash = base64::Engine::encode(
        &base64::prelude::BASE64_STANDARD,
        <sha2::Sha256 as sha2::Digest>::digest(script),
    );
    let policy = page.headers["content-security-policy"].to_str().unwrap();
    assert!(policy.contains(&format!("script-src 'sha256-{hash}'")), "{policy}");
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
}
