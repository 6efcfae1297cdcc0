//! The own devices: listed, renamed, removed with the password.

use hearth::testing::{Answer, TestServer, TestUser};
use http::Method;
use serde_json::{Value, json};

const DEVICES: &str = "/_matrix/client/v3/devices";
const DELETE_SEVERAL: &str = "/_matrix/client/v3/delete_devices";
const WHOAMI: &str = "/_matrix/client/v3/account/whoami";

async fn alice(server: &TestServer) -> TestUser {
    let alice = server.user("alice").await;
    let hash = server.app.users.hash_password("secret").await.unwrap();
    server.app.users.set_password(&alice.user_id, hash).await.unwrap();
    alice
}

fn auth(asked: &Answer, user: &str, password: &str) -> Value {
    assert_eq!(asked.status, 401, "{}", asked.json());
    json!({
        "type": "m.login.password", "session": asked.json()["session"], "password": password,
        "identifier": { "type": "m.id.user", "user": user },
    })
}

async fn delete(user: &TestUser, device: &str, auth: Option<Value>) -> Answer {
    let body = auth.map(|auth| json!({ "auth": auth }));
    user.server.request(Method::DELETE, &format!("{DEVICES}/{device}"), Some(&user.token), body).await
}

#[tokio::test]
async fn devices_are_listed_and_renamed() {
    let server = TestServer::start().await;
    let (desk, bob) = (alice(&server).await, server.user("bob").await);
    server.device(&desk.user_id, "PHONE").await;
    let list = desk.get(DEVICES).await.ok();
    let ids: Vec<_> = list["devices"].as_array().unwrap().iter().map(|device| &device["device_id"]).collect();
    assert_eq!(ids, ["ALICEDEVICE", "PHONE"]);
    let phone = format!("{DEVICES}/PHONE");
    assert_eq!(desk.put(&phone, json!({ "display_name": "a phone" })).await.ok(), json!({}));
    assert_eq!(desk.get(&phone).await.ok()["display_name"], "a phone");
    // Nothing said, nothing changed.
    desk.put(&phone, json!({})).await.ok();
    assert_eq!(desk.get(&phone).await.ok()["display_name"], "a phone");
    let own = desk.get(&format!("{DEVICES}/ALICEDEVICE")).await.ok();
    assert_eq!(own["last_seen_ip"], "127.0.0.1");
    assert!(own["last_seen_ts"].is_u64());

    for body in [json!({}), json!({ "display_name": "mine" })] {
        desk.put(&format!("{DEVICES}/NOBODYS"), body.clone()).await.refused(404, "M_NOT_FOUND");
        bob.put(&phone, body).await.refused(404, "M_NOT_FOUND");
    }
    bob.get(&phone).await.refused(404, "M_NOT_FOUND");
    desk.put(&phone, json!({ "display_name": 1 })).await.refused(400, "M_BAD_JSON");
}

#[tokio::test]
async fn a_device_is_removed_with_the_password_only() {
    let server = TestServer::start().await;
    let (desk, bob) = (alice(&server).await, server.user("bob").await);
    let phone = server.device(&desk.user_id, "PHONE").await;
    let asked = delete(&desk, "PHONE", None).await;
    let wrong = delete(&desk, "PHONE", Some(auth(&asked, "alice", "wrong"))).await;
    assert_eq!((wrong.status.as_u16(), &wrong.json()["errcode"]), (401, &json!("M_FORBIDDEN")));
    let not_me = delete(&desk, "PHONE", Some(auth(&asked, "bob", "secret"))).await;
    assert_eq!((not_me.status.as_u16(), &not_me.json()["errcode"]), (403, &json!("M_FORBIDDEN")));
    // The session was begun for this device, not for another one.
    delete(&desk, "ALICEDEVICE", Some(auth(&asked, "alice", "secret"))).await.refused(403, "M_FORBIDDEN");
    phone.get(WHOAMI).await.ok();
    assert_eq!(delete(&desk, "PHONE", Some(auth(&asked, "alice", "secret"))).await.ok(), json!({}));
    phone.get(WHOAMI).await.refused(401, "M_UNKNOWN_TOKEN");
    desk.get(&format!("{DEVICES}/PHONE")).await.refused(404, "M_NOT_FOUND");
    bob.get(WHOAMI).await.ok();
}

#[tokio::test]
async fn several_devices_are_removed_at_once_unknown_ones_passed_over() {
    let server = TestServer::start().await;
    let desk = alice(&server).await;
    let others = [server.device(&desk.user_id, "A").await, server.device(&desk.user_id, "B").await];
    let mut body = json!({ "devices": ["A", "B", "NOBODYS"] });
    let asked = desk.post(DELETE_SEVERAL, body.clone()).await;
    body["auth"] = auth(&asked, "alice", "secret");
    let mut other = body.clone();
    other["devices"] = json!(["ALICEDEVICE"]);
    desk.post(DELETE_SEVERAL, other).await.refused(403, "M_FORBIDDEN");
    desk.post(DELETE_SEVERAL, body).await.ok();
    for other in &others {
        other.get(WHOAMI).await.refused(401, "M_UNKNOWN_TOKEN");
    }
    assert_eq!(desk.get(DEVICES).await.ok()["devices"].as_array().unwrap().len(), 1);
    let many: Vec<String> = (0..1_001).map(|number| number.to_string()).collect();
    desk.post(DELETE_SEVERAL, json!({ "devices": many })).await.refused(400, "M_INVALID_PARAM");
    desk.post(DELETE_SEVERAL, json!({})).await.refused(400, "M_MISSING_PARAM");
}
