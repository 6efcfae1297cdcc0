//! Invites that two servers sign.

use hearth_dag::{Keypair, ReceivedPdu, RoomRules};
use hearth_rooms::serve::{HandshakeError, InviteRefusal, PreparedInvite, ReceivedInvite, SignedInvite};
use hearth_rooms::*;
use hearth_store::Commit;
use ruma::{EventId, OwnedRoomId, OwnedUserId, RoomId, RoomVersionId, ServerName};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};

use crate::remote::{all_versions, keys, peer, third};
use crate::support::{World, profile, user};

fn invite(room: &OwnedRoomId, who: OwnedUserId) -> Invite {
    Invite {
        room: room.clone(),
        sender: user("alice"),
        user: who,
        profile: profile("bob"),
        reason: Some("tea".to_owned()),
        is_direct: true,
    }
}

/// The request that brings a prepared invite to the other server.
fn request(prepared: &PreparedInvite) -> (ReceivedPdu, Vec<Box<RawValue>>) {
    let raw = |json: &str| RawValue::from_string(json.to_owned()).unwrap();
    let state = prepared.invite_room_state.iter().map(|pdu| raw(pdu.json())).collect();
    (ReceivedPdu::parse(prepared.room.rules, prepared.pdu.json()).unwrap(), state)
}

/// The other server signs.
async fn sign(prepared: &PreparedInvite) -> Result<SignedInvite, InviteRefusal> {
    let (pdu, room_state) = request(prepared);
    peer().rooms().await.sign_invite(ReceivedInvite {
        origin: ruma::server_name!("hearth.test"),
        room: &prepared.room.room_id,
        event: prepared.pdu.event_id(),
        rules: prepared.room.rules,
        pdu,
        room_state: &room_state,
        keys: &keys(),
    })
}

fn received(prepared: &PreparedInvite, signed: &SignedInvite) -> ReceivedPdu {
    ReceivedPdu::parse(prepared.room.rules, signed.pdu.json()).unwrap()
}

#[tokio::test]
async fn both_servers_sign_an_invite_in_every_version() {
    for version in all_versions() {
        let world = World::new().await;
        let create = CreateRoom { version: version.clone(), ..CreateRoom::new(user("alice")) };
        let room = world.rooms.create(&create, Commit::new()).await.unwrap().room_id;
        let bob = peer().user("bob");
        let prepared = world.rooms.prepare_invite(&invite(&room, bob.clone())).await.unwrap();
        let kinds: Vec<String> =
            prepared.invite_room_state.iter().map(|pdu| pdu.kind().to_string()).collect();
        assert_eq!(kinds, ["m.room.create", "m.room.join_rules", "m.room.member"]);
        assert_eq!(world.state(&room, "m.room.member", bob.as_str()).await, None, "nothing is written yet");
        let signed = sign(&prepared).await.unwrap();
        assert_eq!(signed.user, bob);
        assert_eq!(signed.stripped_state.len(), 3);
        let create: Value = serde_json::from_str(&signed.stripped_state[0]).unwrap();
        let mut fields: Vec<&String> = create.as_object().unwrap().keys().collect();
        fields.sort();
        assert_eq!(fields, ["content", "sender", "state_key", "type"]);
        // The room goes on while the other server thinks.
        world.say("alice", &room, "he will come").await.unwrap();
        let mark = world.store.watermark();
        let answer = received(&prepared, &signed);
        let sent = world.rooms.append_invite(&prepared, &answer, &keys(), Commit::new()).await.unwrap();
        let event = world.by_id(&room, &sent.event_id).await;
        for server in ["hearth.test", "peer.test"] {
            let server = ruma::ServerName::parse(server).unwrap();
            keys().verify_event(&server, prepared.room.rules, &event.pdu).unwrap();
        }
        let member = world.state(&room, "m.room.member", bob.as_str()).await.unwrap();
        assert_eq!(member["membership"], "invite");
        assert_eq!(member["is_direct"], true);
        // The invited server has it; nobody else is there.
        let page = world.rooms.stream_after(mark, 10).await.unwrap();
        assert!(page.events.is_empty(), "{version}: {page:?}");
        // Now he comes in.
        peer().join(&world, "bob", &room).await;
        let info = world.rooms.room(&room).await.unwrap().unwrap();
        assert!(world.rooms.is_server_in_room(&info, &peer().name).await.unwrap());
    }
}

#[tokio::test]
async fn an_answer_that_is_not_our_invite_is_refused() {
    let world = World::new().await;
    let room = world.room("alice", Preset::PrivateChat).await;
    let bob = peer().user("bob");
    let prepared = world.rooms.prepare_invite(&invite(&room, bob.clone())).await.unwrap();
    let append = async |answer: &ReceivedPdu| {
        world.rooms.append_invite(&prepared, answer, &keys(), Commit::new()).await
    };
    let (unsigned, _) = request(&prepared);
    assert!(matches!(append(&unsigned).await, Err(HandshakeError::Invalid(_))));
    // Another invite of ours, signed.
    let other = world.rooms.prepare_invite(&invite(&room, peer().user("eve"))).await.unwrap();
    let other = received(&other, &sign(&other).await.unwrap());
    assert!(matches!(append(&other).await, Err(HandshakeError::Invalid(_))));
    let signed = received(&prepared, &sign(&prepared).await.unwrap());
    let mut forged: Value = serde_json::from_str(signed.pdu().json()).unwrap();
    forged["content"]["displayname"] = json!("Admin");
    let forged = ReceivedPdu::parse(prepared.room.rules, &forged.to_string()).unwrap();
    assert!(matches!(append(&forged).await, Err(HandshakeError::Invalid(_))));
    let mut forged: Value = serde_json::from_str(signed.pdu().json()).unwrap();
    forged["signatures"]["peer.test"] = forged["signatures"]["hearth.test"].clone();
    let forged = ReceivedPdu::parse(prepared.room.rules, &forged.to_string()).unwrap();
    assert!(matches!(append(&forged).await, Err(HandshakeError::Invalid(_))));
    assert_eq!(world.state(&room, "m.room.member", bob.as_str()).await, None);
    // What became impossible meanwhile is refused and not kept.
    let ban = json!({ "membership": "ban" });
    world.set("alice", &room, "m.room.member", bob.as_str(), ban).await.unwrap();
    assert!(matches!(append(&signed).await, Err(HandshakeError::Forbidden(_))));
    let info = world.rooms.room(&room).await.unwrap().unwrap();
    assert!(world.rooms.events().by_id(&info, signed.pdu().event_id()).await.unwrap().is_none());
    let again = world.rooms.prepare_invite(&invite(&room, bob)).await;
    assert!(matches!(again, Err(MembershipError::Banned(_))));
}

#[tokio::test]
async fn only_invites_to_our_users_are_signed() {
    let world = World::new().await;
    let room = world.room("alice", Preset::PrivateChat).await;
    let prepared = world.rooms.prepare_invite(&invite(&room, peer().user("bob"))).await.unwrap();
    let ours = peer().rooms().await;
    let rules = RoomRules::of(&RoomVersionId::V12).unwrap();
    let (good, state) = request(&prepared);
    let good_id = good.pdu().event_id().to_owned();
    let home = ruma::server_name!("hearth.test");
    let sign = |origin: &ServerName,
                room: &RoomId,
                event: &EventId,
                pdu: &ReceivedPdu,
                room_state: &[Box<RawValue>]| {
        let pdu = pdu.clone();
        ours.sign_invite(ReceivedInvite { origin, room, event, rules, pdu, room_state, keys: &keys() })
    };
    let invalid = |signed| matches!(signed, Err(InviteRefusal::Invalid(_)));
    assert!(sign(home, &room, &good_id, &good, &state).is_ok());
    assert!(invalid(sign(&third().name, &room, &good_id, &good, &state)), "of another server's user");
    assert!(invalid(sign(home, ruma::room_id!("!other"), &good_id, &good, &state)));
    assert!(invalid(sign(home, &room, ruma::event_id!("$other"), &good, &state)));
    // Signed by the home server, but something else.
    let key = Keypair::new(home.to_owned(), "1", &[7; 32]).unwrap();
    let event: Value = serde_json::from_str(good.pdu().json()).unwrap();
    let forge = |change: &dyn Fn(&mut Value)| {
        let mut event = event.clone();
        change(&mut event);
        let json = event.to_string();
        let object = hearth_dag::canonical::Object::parse(&json, false).unwrap();
        event["hashes"]["sha256"] = json!(hearth_dag::content_hash(&object));
        event["signatures"] = json!({});
        let unsigned = ReceivedPdu::parse(rules, &event.to_string()).unwrap();
        let signed = hearth_dag::countersign(rules, unsigned.pdu(), &key);
        ReceivedPdu::parse(rules, signed.json()).unwrap()
    };
    let try_to = |change: &dyn Fn(&mut Value)| {
        let pdu = forge(change);
        sign(home, &room, pdu.pdu().event_id(), &pdu, &state)
    };
    assert!(try_to(&|_| {}).is_ok(), "the forger can sign");
    assert!(invalid(try_to(&|event| event["content"]["membership"] = json!("join"))));
    assert!(invalid(try_to(&|event| event["type"] = json!("m.room.message"))));
    assert!(invalid(try_to(&|event| event["state_key"] = json!("not a user"))));
    let strangers = try_to(&|event| event["state_key"] = json!(third().user("dora")));
    assert!(matches!(strangers, Err(InviteRefusal::NotOurUser(_))));
    // Changed without a new hash.
    let mut changed = event.clone();
    changed["content"]["displayname"] = json!("Admin");
    let changed = ReceivedPdu::parse(rules, &changed.to_string()).unwrap();
    assert!(invalid(sign(home, &room, &good_id, &changed, &state)));
    // The room's state: with the create event, of this room, signed.
    assert!(invalid(sign(home, &room, &good_id, &good, &[])));
    assert!(invalid(sign(home, &room, &good_id, &good, &state[1..])));
    let other = world.room("alice", Preset::PrivateChat).await;
    let foreign = world.rooms.prepare_invite(&invite(&other, peer().user("bob"))).await.unwrap();
    let (_, foreign) = request(&foreign);
    assert!(invalid(sign(home, &room, &good_id, &good, &foreign)));
    let stripped =
        json!({ "type": "m.room.create", "state_key": "", "content": {}, "sender": user("alice") });
    assert!(invalid(sign(home, &room, &good_id, &good, &[to_raw_value(&stripped).unwrap()])));
}

#[tokio::test]
async fn a_third_party_invite_becomes_an_invite() {
    use hearth_dag::canonical::Object;
    let world = World::new().await;
    let room = world.room("alice", Preset::PrivateChat).await;
    let identity = Keypair::new(ruma::server_name!("id.test").to_owned(), "0", &[3; 32]).unwrap();
    let public_key = identity.public_key_base64();
    let content = json!({
        "display_name": "b...@example.org",
        "public_key": public_key,
        "key_validity_url": "https://id.test/valid",
        "public_keys": [{ "public_key": public_key }],
    });
    world.set("alice", &room, "m.room.third_party_invite", "token", content).await.unwrap();
    let bob = peer().user("bob");
    let signed_for = |mxid: &str, token: &str| {
        let plain = json!({ "mxid": mxid, "token": token }).to_string();
        let mut object = Object::parse(&plain, false).unwrap();
        hearth_dag::sign_json(&identity, &mut object);
        serde_json::from_str::<Value>(&object.to_canonical()).unwrap()
    };
    let body = |change: &dyn Fn(&mut Value)| {
        let mut body = json!({
            "type": "m.room.member",
            "room_id": room,
            "sender": user("alice"),
            "state_key": bob,
            "content": {
                "membership": "invite",
                "displayname": "smuggled",
                "third_party_invite": { "display_name": "wrong", "signed": signed_for(bob.as_str(), "token") },
            },
        });
        change(&mut body);
        serde_json::from_value::<serve::ThirdPartyInvite>(body).unwrap()
    };
    let exchange = async |origin: &ServerName, body: serve::ThirdPartyInvite| {
        world.rooms.exchange_third_party_invite(origin, &room, &body).await
    };
    let name = peer().name;
    let forbidden = |refused| matches!(refused, Err(HandshakeError::Forbidden(_)));
    let eve = peer().user("eve");
    assert!(forbidden(exchange(&name, body(&|body| body["state_key"] = json!(eve))).await));
    let unknown = signed_for(bob.as_str(), "other");
    let signed = "signed";
    let unknown = body(&|body| body["content"]["third_party_invite"][signed] = unknown.clone());
    assert!(forbidden(exchange(&name, unknown).await));
    let unsigned = json!({ "mxid": bob, "token": "token", "signatures": {} });
    let unsigned = body(&|body| body["content"]["third_party_invite"][signed] = unsigned.clone());
    assert!(forbidden(exchange(&name, unsigned).await));
    let foreign = |refused| matches!(refused, Err(HandshakeError::UserOfOtherServer));
    assert!(foreign(exchange(&third().name, body(&|_| {})).await), "asked by another server");
    let dora = third().user("dora");
    assert!(foreign(exchange(&name, body(&|body| body["sender"] = json!(dora))).await));
    let invalid = |refused| matches!(refused, Err(HandshakeError::Invalid(_)));
    assert!(invalid(exchange(&name, body(&|body| body["room_id"] = json!("!other:hearth.test"))).await));
    assert!(invalid(exchange(&name, body(&|body| body["content"]["membership"] = json!("join"))).await));

    let prepared = exchange(&name, body(&|_| {})).await.unwrap();
    let answer = received(&prepared, &sign(&prepared).await.unwrap());
    world.rooms.append_invite(&prepared, &answer, &keys(), Commit::new()).await.unwrap();
    let member = world.state(&room, "m.room.member", bob.as_str()).await.unwrap();
    assert_eq!(member["third_party_invite"]["display_name"], "b...@example.org");
    assert!(member.get("displayname").is_none(), "only what was signed is taken");
    peer().join(&world, "bob", &room).await;
    assert!(forbidden(exchange(&name, body(&|_| {})).await), "who is in the room is not invited");
}

#[tokio::test]
async fn of_an_answer_only_the_signature_that_holds_is_kept() {
    let world = World::new().await;
    let room = world.room("alice", Preset::PrivateChat).await;
    let prepared = world.rooms.prepare_invite(&invite(&room, peer().user("bob"))).await.unwrap();
    let signed = received(&prepared, &sign(&prepared).await.unwrap());
    let mut stuffed: Value = serde_json::from_str(signed.pdu().json()).unwrap();
    stuffed["signatures"]["peer.test"]["ed25519:0"] = json!("x".repeat(10_000));
    stuffed["signatures"]["peer.test"]["junk"] = json!({ "more": "junk" });
    stuffed["signatures"]["evil.test"] = json!({ "ed25519:1": "y" });
    let stuffed = ReceivedPdu::parse(prepared.room.rules, &stuffed.to_string()).unwrap();
    let sent = world.rooms.append_invite(&prepared, &stuffed, &keys(), Commit::new()).await.unwrap();
    assert_eq!(world.by_id(&room, &sent.event_id).await.pdu, *signed.pdu());
}

#[tokio::test]
async fn a_signature_may_not_make_an_event_too_large() {
    let world = World::new().await;
    let room = world.room("alice", Preset::PrivateChat).await;
    let with_reason =
        |length| Invite { reason: Some("r".repeat(length)), ..invite(&room, peer().user("bob")) };
    let small = world.rooms.prepare_invite(&with_reason(1)).await.unwrap();
    let length = hearth_dag::limits::MAX_EVENT_BYTES - small.pdu.bytes().len() - 20;
    let prepared = world.rooms.prepare_invite(&with_reason(length)).await.unwrap();
    let refused = sign(&prepared).await;
    assert!(matches!(refused, Err(InviteRefusal::Invalid(_))), "{refused:?}");
    // A server that signs all the same, and takes our signature away to make room.
    let signer = hearth_dag::Keypair::new(peer().name, "1", &[9; 32]).unwrap();
    let signed = hearth_dag::countersign(prepared.room.rules, &prepared.pdu, &signer);
    let mut event = signed.to_object();
    let signatures = event.remove("signatures").unwrap();
    let signature = signatures.as_object().unwrap().get("peer.test").unwrap().clone();
    let mut only = hearth_dag::canonical::Object::default();
    only.insert("peer.test", signature);
    event.insert("signatures", hearth_dag::canonical::Value::Object(only));
    let answer = ReceivedPdu::parse(prepared.room.rules, &event.to_canonical()).unwrap();
    let refused = world.rooms.append_invite(&prepared, &answer, &keys(), Commit::new()).await;
    assert!(matches!(refused, Err(HandshakeError::Invalid(_))), "{refused:?}");
}
