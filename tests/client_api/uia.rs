//! User-interactive authentication: how a session begins, goes on, and ends; its stages as web pages.

use axum::body::Body;
use hearth::testing::{Answer, TestServer, encoded};
use http::{Method, Request, header};
use serde_json::{Value, json};

const REGISTER: &str = "/_matrix/client/v3/register";

async fn post(server: &TestServer, path: &str, body: Value) -> Answer {
    server.request(Method::POST, path, None, Some(body)).await
}

/// Checks that this asks for authentication, and gives the session.
#[track_caller]
fn session(answer: &Answer) -> String {
    let json = answer.json();
    assert_eq!(answer.status, 401, "{json}");
    assert!(json["flows"].is_array() && json["params"].is_object(), "{json}");
    let session = json["session"].as_str().unwrap_or_default().to_owned();
    assert!(!session.is_empty(), "{json}");
    session
}

#[tokio::test]
async fn an_auth_that_says_nothing_begins_a_session() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let hash = server.app.users.hash_password("secret").await.unwrap();
    server.app.users.set_password(&alice.user_id, hash).await.unwrap();
    for (number, auth) in
        [json!({}), json!({ "type": null }), json!({ "session": null, "x": 1 }), Value::Null]
            .into_iter()
            .enumerate()
    {
        let name = format!("bob{number}");
        let wanted = json!({ "username": name, "password": "secret", "auth": auth });
        let begun = session(&post(&server, REGISTER, wanted).await);
        let shown = json!({ "type": "m.login.dummy", "session": begun });
        // The body is part of the operation, the empty `auth` is not.
        let other = json!({ "username": name, "password": "other", "auth": shown });
        post(&server, REGISTER, other).await.refused(403, "M_FORBIDDEN");
        let same = json!({ "username": name, "password": "secret", "auth": shown });
        post(&server, REGISTER, same).await.ok();

        let devices = json!({ "devices": ["X"], "auth": auth });
        let asked = alice.post("/_matrix/client/v3/delete_devices", devices).await;
        let auth = json!({
            "type": "m.login.password", "session": session(&asked), "password": "secret",
            "identifier": { "type": "m.id.user", "user": "alice" },
        });
        let devices = json!({ "devices": ["X"], "auth": auth });
        alice.post("/_matrix/client/v3/delete_devices", devices).await.ok();
    }
    for auth in [json!(1), json!("x"), json!([]), json!({ "session": 1 }), json!({ "type": 1 })] {
        let wrong = json!({ "username": "bob", "password": "secret", "auth": auth });
        post(&server, REGISTER, wrong).await.refused(400, "M_BAD_JSON");
    }
    let bob = "/_matrix/client/v3/register/available?username=bob";
    server.request(Method::GET, bob, None, None).await.ok();
}

#[tokio::test]
async fn nobody_confirms_what_another_user_does() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    for user in [&alice, &bob] {
        let hash = server.app.users.hash_password("secret").await.unwrap();
        server.app.users.set_password(&user.user_id, hash).await.unwrap();
    }
    let asked = alice.post("/_matrix/client/v3/delete_devices", json!({ "devices": ["X"] })).await;
    let mut auth = json!({
        "type": "m.login.password", "session": session(&asked), "password": "secret",
        "identifier": { "type": "m.id.user", "user": bob.user_id },
    });
    let confirmed = |auth: &Value| json!({ "devices": ["X"], "auth": auth });
    let refused = alice.post("/_matrix/client/v3/delete_devices", confirmed(&auth)).await;
    refused.refused(403, "M_FORBIDDEN");
    auth["identifier"]["user"] = json!(alice.user_id);
    alice.post("/_matrix/client/v3/delete_devices", confirmed(&auth)).await.ok();
}

#[tokio::test]
async fn an_unknown_session_begins_a_new_one_and_is_told_so() {
    let server = TestServer::start().await;
    let ask = |auth: Value| json!({ "username": "bob", "password": "secret", "auth": auth });
    for auth in [json!({ "session": "nobodys" }), json!({ "type": "m.login.dummy", "session": "nobodys" })] {
        let answer = post(&server, REGISTER, ask(auth)).await;
        assert_eq!(answer.json()["errcode"], "M_UNKNOWN");
        assert_ne!(session(&answer), "nobodys");
    }
    // Asking how far a session is keeps it.
    let begun = session(&post(&server, REGISTER, ask(json!({}))).await);
    let again = post(&server, REGISTER, ask(json!({ "session": begun }))).await;
    assert_eq!(session(&again), begun);
    let unknown = ask(json!({ "type": "org.example.stage", "session": begun }));
    let answer = post(&server, REGISTER, unknown).await;
    assert_eq!(answer.json()["errcode"], "M_UNRECOGNIZED");
    assert_eq!(session(&answer), begun);
    let done = ask(json!({ "type": "m.login.dummy", "session": begun }));
    assert_eq!(post(&server, REGISTER, done.clone()).await.ok()["user_id"], "@bob:hearth.test");
    post(&server, REGISTER, done).await.refused(400, "M_USER_IN_USE");
}

async fn page(server: &TestServer, method: Method, stage: &str, session: &str, form: &str) -> (u16, String) {
    let path = format!("/_matrix/client/v3/auth/{stage}/fallback/web?session={}", encoded(session));
    let request = Request::builder().method(method).uri(path);
    let request = request.header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
    let answer = server.send(request.body(Body::from(form.to_owned())).unwrap()).await;
    if answer.headers[header::CONTENT_TYPE] == "text/html; charset=utf-8" {
        let policy = answer.headers[header::CONTENT_SECURITY_POLICY].to_str().unwrap().to_owned();
        assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"));
    }
    (answer.status.as_u16(), String::from_utf8(answer.body.to_vec()).unwrap())
}

#[tokio::test]
async fn stages_can_be_completed_in_a_web_page() {
    let server = TestServer::with(|config| {
        config.registration.open = false;
        config.registration.tokens = vec!["welcome".into()];
        config.registration.terms_url = Some("https://hearth.test/terms?a=1&b=\"2\"".into());
    })
    .await;
    let ask = |auth: Value| json!({ "username": "bob", "password": "secret", "auth": auth });
    let begun = session(&post(&server, REGISTER, ask(json!({}))).await);
    let token = "m.login.registration_token";

    let (status, html) = page(&server, Method::GET, token, &begun, "").await;
    assert_eq!(status, 200);
    assert!(html.contains("name=\"token\"") && html.contains(&begun), "{html}");
    let (status, html) = page(&server, Method::POST, token, &begun, "token=wrong").await;
    assert_eq!(status, 401);
    assert!(html.contains("name=\"token\"") && !html.contains("onAuthDone"), "{html}");
    let answer = post(&server, REGISTER, ask(json!({ "session": begun }))).await;
    assert!(answer.json()["completed"].as_array().is_none_or(Vec::is_empty));
    let (status, html) = page(&server, Method::POST, token, &begun, "token=welcome").await;
    assert_eq!(status, 200);
    assert!(html.contains("window.onAuthDone()") && html.contains("\"authDone\""), "{html}");
    let answer = post(&server, REGISTER, ask(json!({ "session": begun }))).await;
    assert_eq!((session(&answer), &answer.json()["completed"]), (begun.clone(), &json!([token])));

    let (_, html) = page(&server, Method::GET, "m.login.terms", &begun, "").await;
    assert!(html.contains("https://hearth.test/terms?a=1&amp;b=&quot;2&quot;"), "{html}");
    let form = format!("session={begun}");
    assert_eq!(page(&server, Method::POST, "m.login.terms", &begun, &form).await.0, 200);
    assert!(page(&server, Method::GET, "m.login.terms", &begun, "").await.1.contains("onAuthDone"));
    // The client comes back with the session alone, once.
    let done = ask(json!({ "session": begun }));
    assert_eq!(post(&server, REGISTER, done.clone()).await.ok()["user_id"], "@bob:hearth.test");
    assert_eq!(page(&server, Method::GET, "m.login.terms", &begun, "").await.0, 404);
}

#[tokio::test]
async fn a_page_needs_a_session_that_wants_its_stage() {
    let server = TestServer::start().await;
    let ask = json!({ "username": "bob", "password": "secret" });
    let begun = session(&post(&server, REGISTER, ask).await);
    assert_eq!(page(&server, Method::GET, "m.login.dummy", &begun, "").await.0, 200);
    for stage in ["m.login.terms", "m.login.password", "m.login.registration_token"] {
        assert_eq!(page(&server, Method::GET, stage, &begun, "").await.0, 404, "{stage}");
        assert_eq!(page(&server, Method::POST, stage, &begun, "").await.0, 404, "{stage}");
    }
    let (status, html) = page(&server, Method::GET, "m.login.dummy", "<script>", "").await;
    assert_eq!(status, 404);
    assert!(!html.contains("<script>"), "{html}");
    let unknown = "/_matrix/client/v3/auth/m.login.recaptcha/fallback/web?session=x";
    server.request(Method::GET, unknown, None, None).await.refused(404, "M_UNRECOGNIZED");
    let without = "/_matrix/client/v3/auth/m.login.dummy/fallback/web";
    server.request(Method::GET, without, None, None).await.refused(400, "M_MISSING_PARAM");
    server.request(Method::POST, without, None, None).await.refused(400, "M_MISSING_PARAM");
}

#[tokio::test]
async fn the_password_page_takes_the_password_of_whose_operation_it_is() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    for (user, password) in [(&alice, "hers"), (&bob, "his")] {
        let hash = server.app.users.hash_password(password).await.unwrap();
        server.app.users.set_password(&user.user_id, hash).await.unwrap();
    }
    let tablet = server.device(&alice.user_id, "TABLET").await;
    let path = "/_matrix/client/v3/devices/TABLET";
    let begun = session(&alice.delete(path).await);
    let stage = "m.login.password";
    assert!(page(&server, Method::GET, stage, &begun, "").await.1.contains("@alice:hearth.test"));
    assert_eq!(page(&server, Method::POST, stage, &begun, "password=his").await.0, 401);
    assert_eq!(page(&server, Method::POST, stage, &begun, "password=hers").await.0, 200);
    let auth = json!({ "auth": { "session": begun } });
    // Somebody else's request does not profit from it.
    let others = server.request(Method::DELETE, path, Some(&bob.token), Some(auth.clone())).await;
    others.refused(403, "M_FORBIDDEN");
    server.request(Method::DELETE, path, Some(&alice.token), Some(auth)).await.ok();
    tablet.get("/_matrix/client/v3/account/whoami").await.refused(401, "M_UNKNOWN_TOKEN");
}
