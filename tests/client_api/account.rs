//! The own account: passwords, deactivation, and the e-mail addresses that there are none of.

use std::time::Duration;

use hearth::testing::{Answer, TestServer, TestUser, encoded};
use http::Method;
use serde_json::{Value, json};

const WHOAMI: &str = "/_matrix/client/v3/account/whoami";
const PASSWORD: &str = "/_matrix/client/v3/account/password";
const DEACTIVATE: &str = "/_matrix/client/v3/account/deactivate";

async fn with_password(server: &TestServer, name: &str) -> TestUser {
    let user = server.user(name).await;
    let hash = server.app.users.hash_password("secret").await.unwrap();
    server.app.users.set_password(&user.user_id, hash).await.unwrap();
    user
}

/// Does what wants the password: asks, and comes back with it.
async fn confirmed(user: &TestUser, path: &str, mut body: Value, password: &str) -> Answer {
    let asked = user.post(path, body.clone()).await;
    assert_eq!(asked.status, 401, "{}", asked.json());
    body["auth"] = json!({
        "type": "m.login.password", "session": asked.json()["session"], "password": password,
        "identifier": { "type": "m.id.user", "user": user.user_id },
    });
    user.post(path, body).await
}

async fn log_in(server: &TestServer, name: &str, password: &str) -> Answer {
    let identifier = json!({ "type": "m.id.user", "user": name });
    let body = json!({ "type": "m.login.password", "identifier": identifier, "password": password });
    server.request(Method::POST, "/_matrix/client/v3/login", None, Some(body)).await
}

#[tokio::test]
async fn a_new_password_ends_the_other_sessions_unless_they_are_to_stay() {
    let server = TestServer::start().await;
    let alice = with_password(&server, "alice").await;
    let phone = server.device(&alice.user_id, "PHONE").await;
    let keeping = json!({ "new_password": "second", "logout_devices": false });
    let wrong = confirmed(&alice, PASSWORD, keeping.clone(), "wrong").await;
    assert_eq!((wrong.status.as_u16(), &wrong.json()["errcode"]), (401, &json!("M_FORBIDDEN")));
    log_in(&server, "alice", "secret").await.ok();
    confirmed(&alice, PASSWORD, keeping, "secret").await.ok();
    phone.get(WHOAMI).await.ok();
    log_in(&server, "alice", "secret").await.refused(403, "M_FORBIDDEN");
    log_in(&server, "alice", "second").await.ok();

    // Without a word about it, they end.
    confirmed(&alice, PASSWORD, json!({ "new_password": "third" }), "second").await.ok();
    phone.get(WHOAMI).await.refused(401, "M_UNKNOWN_TOKEN");
    alice.get(WHOAMI).await.ok();
    let long = json!({ "new_password": "x".repeat(5_000) });
    confirmed(&alice, PASSWORD, long, "third").await.refused(400, "M_INVALID_PARAM");
    log_in(&server, "alice", "third").await.ok();
    alice.post(PASSWORD, json!({})).await.refused(400, "M_MISSING_PARAM");
}

#[tokio::test]
async fn a_deactivated_account_leaves_nothing_but_its_name() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, with_password(&server, "bob").await);
    let joined = alice.creates_a_public_room().await;
    bob.joins(&joined).await;
    let invited = alice.creates_a_room(json!({ "invite": [bob.user_id] })).await;
    let bobs = encoded(bob.user_id.as_str());
    let done = confirmed(&bob, DEACTIVATE, json!({ "erase": true }), "secret").await.ok();
    assert_eq!(done, json!({ "id_server_unbind_result": "no-support" }));
    bob.get(WHOAMI).await.refused(401, "M_UNKNOWN_TOKEN");
    log_in(&server, "bob", "secret").await.refused(403, "M_USER_DEACTIVATED");
    for room in [&joined, &invited] {
        let member = format!("/_matrix/client/v3/rooms/{}/state/m.room.member/{bobs}", encoded(room));
        assert_eq!(alice.get(&member).await.ok()["membership"], "leave");
    }
    let profile = format!("/_matrix/client/v3/profile/{bobs}");
    server.request(Method::GET, &profile, None, None).await.refused(404, "M_NOT_FOUND");
    let search = json!({ "search_term": "bob" });
    let found = alice.post("/_matrix/client/v3/user_directory/search", search).await.ok();
    assert_eq!(found, json!({ "limited": false, "results": [] }));
    let again = json!({ "username": "bob", "password": "x", "auth": { "type": "m.login.dummy" } });
    let register = "/_matrix/client/v3/register";
    server.request(Method::POST, register, None, Some(again)).await.refused(400, "M_USER_IN_USE");
    assert!(server.app.users.account(&bob.user_id).await.unwrap().unwrap().erased);
    assert_eq!(server.app.users.unfinished_deactivations(None, 10).await.unwrap(), []);
}

// The power fails right after the account was closed: the next start does the rest.
#[tokio::test]
async fn an_interrupted_deactivation_goes_on_at_the_next_start() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, with_password(&server, "bob").await);
    let room = alice.creates_a_public_room().await;
    bob.joins(&room).await;
    server.app.users.deactivate(&bob.user_id, true).await.unwrap();
    bob.get(WHOAMI).await.refused(401, "M_UNKNOWN_TOKEN");

    let config = (*server.app.config).clone();
    let next = TestServer::on(config, server.app.store.clone(), server.network.clone()).await;
    let finished = async {
        while !next.app.users.unfinished_deactivations(None, 10).await.unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), finished).await.expect("it is not gone on with");
    assert!(next.app.users.devices(&bob.user_id).await.unwrap().is_empty());
    assert!(next.app.users.profile(&bob.user_id).await.unwrap().fields().is_empty());
    let member = format!("/_matrix/client/v3/rooms/{}/joined_members", encoded(&room));
    let members = next.request(Method::GET, &member, Some(&alice.token), None).await.ok();
    assert_eq!(members["joined"].as_object().unwrap().keys().collect::<Vec<_>>(), ["@alice:hearth.test"]);
}

#[tokio::test]
async fn an_account_has_no_third_party_ids_and_gets_none() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let own = "/_matrix/client/v3/account/3pid";
    assert_eq!(alice.get(own).await.ok(), json!({ "threepids": [] }));
    let email = json!({ "client_secret": "s", "email": "a@b.test", "send_attempt": 1 });
    let phone =
        json!({ "client_secret": "s", "country": "GB", "phone_number": "7700900001", "send_attempt": 1 });
    for (path, status, errcode) in [
        ("account/3pid", 403, "M_THREEPID_DENIED"),
        ("register", 403, "M_THREEPID_DENIED"),
        ("account/password", 400, "M_THREEPID_NOT_FOUND"),
    ] {
        for (medium, body) in [("email", &email), ("msisdn", &phone)] {
            let path = format!("/_matrix/client/v3/{path}/{medium}/requestToken");
            let answer = server.request(Method::POST, &path, None, Some(body.clone())).await;
            answer.refused(status, errcode);
        }
    }
    let validated = json!({ "client_secret": "s", "sid": "1" });
    alice.post(&format!("{own}/add"), validated).await.refused(403, "M_THREEPID_DENIED");
    let old = json!({ "three_pid_creds": {
        "client_secret": "s", "sid": "1", "id_server": "i.test", "id_access_token": "t",
    } });
    alice.post(own, old).await.refused(403, "M_THREEPID_DENIED");
    let address = json!({ "medium": "email", "address": "a@b.test" });
    alice.post(&format!("{own}/delete"), address.clone()).await.refused(400, "M_THREEPID_NOT_FOUND");
    let unbound = alice.post(&format!("{own}/unbind"), address).await.ok();
    assert_eq!(unbound, json!({ "id_server_unbind_result": "no-support" }));
    let capabilities = alice.get("/_matrix/client/v3/capabilities").await.ok();
    assert_eq!(capabilities["capabilities"]["m.3pid_changes"]["enabled"], false);
}
