//! The own devices: listed, renamed, removed with the password; and messages to them.

use std::collections::BTreeMap;

use hearth::testing::{Answer, TestServer, TestUser, encoded};
use hearth_users::NewDeviceMessages;
use http::Method;
use ruma::user_id;
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

#[tokio::test]
async fn messages_to_a_device_come_with_its_syncs_some_at_a_time() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let desk = server.device(&alice.user_id, "DESK").await;
    let room = alice.creates_a_room(json!({})).await;
    let brings = async |id: usize| {
        let content = serde_json::value::to_raw_value(&json!({ "n": id })).unwrap();
        let to = BTreeMap::from([("DESK".try_into().unwrap(), &*content)]);
        let contents = BTreeMap::from([(alice.user_id.clone(), to)]);
        let sender = user_id!("@bob:far.test");
        let new = NewDeviceMessages { sender, kind: "m.test", contents };
        server.app.users.keep_device_messages(&id.to_string(), &new).await.unwrap();
    };
    let numbers = |answer: &Value| -> Vec<u64> {
        let events = answer["to_device"]["events"].as_array().cloned().unwrap_or_default();
        events.iter().map(|event| event["content"]["n"].as_u64().unwrap()).collect()
    };
    let sync = async |since: &str| desk.get(&format!("/_matrix/client/v3/sync?{since}")).await.ok();
    let since = |answer: &Value| format!("since={}", answer["next_batch"].as_str().unwrap());
    for id in 0..105 {
        brings(id).await;
    }
    let said = alice.says(&room, "after all of them").await;
    // The old endpoints do not show them, and do not take them away.
    let old = desk.get("/_matrix/client/v3/initialSync").await.ok();
    let from = encoded(old["end"].as_str().unwrap());
    brings(105).await;
    let old = desk.get(&format!("/_matrix/client/v3/events?from={from}&timeout=0")).await.ok();
    let behind = sync(&format!("since={}", encoded(old["end"].as_str().unwrap()))).await;
    assert_eq!(numbers(&behind).len(), 100);

    let first = sync("").await;
    assert_eq!(numbers(&first), (0..100).collect::<Vec<_>>());
    assert!(first.to_string().contains(&said), "rooms do not wait for the messages");
    let rest = sync(&since(&first)).await;
    assert_eq!(numbers(&rest), [100, 101, 102, 103, 104, 105]);
    assert_eq!(rest.get("rooms"), None);
    assert_eq!(numbers(&sync(&since(&first)).await), numbers(&rest), "an answer may be lost on its way");
    assert_eq!(numbers(&sync(&since(&rest)).await), [0_u64; 0]);

    let poll = format!("{}&timeout=20000", since(&rest));
    let (told, ()) = tokio::join!(sync(&poll), brings(200));
    assert_eq!(numbers(&told), [200]);
}
