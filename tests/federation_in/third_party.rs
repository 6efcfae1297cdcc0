//! People who were invited by an address, and turn out to be users of another server, or of ours.

use hearth::testing::{TestUser, encoded};
use hearth_dag::{Keypair, ReceivedPdu, canonical::Object, countersign, sign_json};
use http::Method;
use serde_json::{Value, json};

use crate::world::*;

/// What an identity server signs: this user owns the address that the token stands for.
fn signed(identity: &Keypair, user: &str) -> Value {
    let json = json!({ "mxid": user, "sender": "@alice:here.test", "token": "abc" }).to_string();
    let mut object = Object::parse(&json, false).unwrap();
    sign_json(identity, &mut object);
    serde_json::from_str(&object.to_canonical()).unwrap()
}

async fn membership(alice: &TestUser, room: &str, user: &str) -> Value {
    let path = format!("/_matrix/client/v3/rooms/{}/state/m.room.member/{}", encoded(room), encoded(user));
    alice.get(&path).await.json()["membership"].clone()
}

/// A private room in which an address was invited.
async fn invited(alice: &TestUser, identity: &Keypair) -> String {
    let room = alice.creates_a_room(json!({ "preset": "private_chat" })).await;
    let key = identity.public_key_base64();
    let content = json!({ "display_name": "b...@example.org", "key_validity_url": "https://id.test/valid",
        "public_key": key, "public_keys": [{ "public_key": key }] });
    alice.sets(&room, "m.room.third_party_invite", "abc", content).await;
    room
}

#[tokio::test]
async fn another_servers_user_gets_the_invite_that_waited() {
    let (here, _) = two().await;
    let alice = here.user("alice").await;
    let remote = Remote::new(&here, "remote.test");
    let identity = Keypair::new("id.test".try_into().unwrap(), "0", &[5; 32]).unwrap();
    let room = invited(&alice, &identity).await;
    let key = remote.key().clone();
    here.network.fake(&remote.peer, move |request| {
        let body: Value = serde_json::from_slice(request.body()).unwrap_or_default();
        let version = body["room_version"].as_str().unwrap_or("12").try_into().unwrap();
        let rules = hearth_dag::RoomRules::of(&version).unwrap();
        let pdu = ReceivedPdu::parse(rules, &body["event"].to_string()).unwrap();
        let event = countersign(rules, pdu.pdu(), &*key);
        http::Response::new(format!(r#"{{"event":{}}}"#, event.json()).into())
    });
    let bob = "@bob:remote.test";
    let ask = |user: &str, signed: Value| {
        json!({ "type": "m.room.member", "room_id": room, "sender": "@alice:here.test", "state_key": user,
            "content": { "membership": "invite", "third_party_invite": { "signed": signed } } })
    };
    let path = format!("/_matrix/federation/v1/exchange_third_party_invite/{}", encoded(&room));
    let other = Keypair::new("id.test".try_into().unwrap(), "0", &[6; 32]).unwrap();
    remote.put(&path, &ask(bob, signed(&other, bob))).await.refused(403, "M_FORBIDDEN");
    remote.put(&path, &ask("@eve:remote.test", signed(&identity, bob))).await.refused(403, "M_FORBIDDEN");
    remote.put(&path, &ask("@carol:here.test", signed(&identity, bob))).await.refused(403, "M_FORBIDDEN");
    assert_eq!(membership(&alice, &room, bob).await, Value::Null);
    remote.put(&path, &ask(bob, signed(&identity, bob))).await.ok();
    assert_eq!(membership(&alice, &room, bob).await, "invite");
}

#[tokio::test]
async fn a_user_of_ours_gets_the_invite_that_waited() {
    let (here, _) = two().await;
    let (alice, carol) = (here.user("alice").await, here.user("carol").await);
    let identity = Keypair::new("id.test".try_into().unwrap(), "0", &[5; 32]).unwrap();
    let room = invited(&alice, &identity).await;
    let bound = |user: &str| {
        json!({ "medium": "email", "address": "b@example.org", "mxid": user, "invites": [{
            "medium": "email", "address": "b@example.org", "mxid": user, "room_id": room,
            "sender": "@alice:here.test", "signed": signed(&identity, user) }] })
    };
    let path = "/_matrix/federation/v1/3pid/onbind";
    let nobody = here.request(Method::PUT, path, None, Some(bound("@nobody:here.test"))).await;
    nobody.refused(404, "M_NOT_FOUND");
    // Identity servers use the other method.
    here.request(Method::POST, path, None, Some(bound(carol.user_id.as_str()))).await.ok();
    assert_eq!(membership(&alice, &room, "@carol:here.test").await, "invite");
    carol.joins(&room).await;
}
