//! A room with a policy server on a network of fakes: what it is asked, and what becomes of events when it signs, signs
//! wrongly, refuses, is slow, or is gone.
#![allow(clippy::unwrap_used)]

mod world;

use std::{sync::Arc, time::Duration};

use hearth_dag::{
    Draft, Keypair, Place, ReceivedPdu, RoomRules, Signer, auth_keys, countersign, is_policy_event,
};
use hearth_federation::{Inbound, JUDGING_TIME, Policy, client::POLICY};
use hearth_rooms::{Kind, PolicyRefusal, Rooms, Send, SendError, Status, WriteError};
use hearth_store::Commit;
use http::Request;
use ruma::{MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, UInt, events::TimelineEventType};
use serde_json::{Value, json, value::to_raw_value};
use tokio::time::Instant;
use world::{
    NOW, World,
    home::{Home, user},
    key, name, ok, status,
};

const SIGN: &str = "POST /_matrix/policy/v1/sign";

struct Guarded {
    world: Arc<World>,
    home: Home,
    room: OwnedRoomId,
    inbound: Inbound,
    policy: Policy,
}

/// The key with which events are recommended, and another one.
fn policy_key() -> Keypair {
    Keypair::new(name("guard.test"), "policy_server", &[42; 32]).unwrap()
}

fn other_key() -> Keypair {
    Keypair::new(name("guard.test"), "policy_server", &[43; 32]).unwrap()
}

fn rules() -> &'static RoomRules {
    RoomRules::of(&ruma::RoomVersionId::V12).unwrap()
}

/// The answer of a policy server with this key.
fn signs(key: &Keypair, request: &Request<bytes::Bytes>) -> world::Answer {
    let event = ReceivedPdu::parse(rules(), std::str::from_utf8(request.body()).unwrap()).unwrap();
    let signed: Value = serde_json::from_str(countersign(rules(), event.pdu(), key).json()).unwrap();
    let signature = &signed["signatures"]["guard.test"]["ed25519:policy_server"];
    ok(json!({ "guard.test": { "ed25519:policy_server": signature } }).to_string())
}

impl Guarded {
    /// A room of Alice's with users of `guard.test`, its policy server, and of `peer.test`.
    async fn new() -> Self {
        let world = World::new();
        let home = Home::new(&world).await;
        let room = home.room().await;
        let guard = world::home::Fake::new(&world, "guard.test");
        guard.join(&home, "guard", &room).await;
        let peer = world::home::Fake::new(&world, "peer.test");
        peer.join(&home, "bob", &room).await;
        world.publishes("peer.test", "1", &[]);
        let inbound = Inbound::new(home.federation.clone(), home.rooms.clone(), home.users.clone());
        let policy = Policy::new(home.federation.clone(), home.rooms.clone());
        let guarded = Self { world, home, room, inbound, policy };
        let key = policy_key().public_key_base64();
        let names = json!({ "via": "guard.test", "public_keys": { "ed25519": key } });
        guarded.send("m.room.policy", Some(""), names).await.unwrap();
        guarded
    }

    /// From now on the policy server answers so.
    fn answers(
        &self,
        answer: impl Fn(&Request<bytes::Bytes>) -> world::Answer + std::marker::Send + Sync + 'static,
    ) {
        self.world.answers("guard.test", move |request| match request.uri().path() {
            "/_matrix/policy/v1/sign" => answer(request),
            _ => ok("{\"pdus\":{}}"),
        });
    }

    fn signs(&self) {
        self.answers(|request| signs(&policy_key(), request));
    }

    async fn send(
        &self,
        kind: &str,
        state_key: Option<&str>,
        content: Value,
    ) -> Result<OwnedEventId, SendError> {
        let send = &Send {
            room: self.room.clone(),
            sender: user("alice"),
            kind: TimelineEventType::from(kind),
            state_key: state_key.map(str::to_owned),
            content: to_raw_value(&content).unwrap(),
            redacts: None,
            txn: None,
            timestamp_ms: None,
        };
        let sent = self.policy.signing(|rooms: Rooms| async move { rooms.send(send, Commit::new()).await });
        sent.await.map(|sent| sent.event_id)
    }

    async fn say(&self, text: &str) -> Result<OwnedEventId, SendError> {
        self.send("m.room.message", None, json!({ "msgtype": "m.text", "body": text })).await
    }

    async fn refusal(&self) -> PolicyRefusal {
        match self.say("hello").await {
            Err(SendError::Write(WriteError::Policy(refusal))) => refusal,
            other => panic!("{other:?}"),
        }
    }

    /// How often the policy server was asked.
    fn asked(&self) -> usize {
        self.world.asked.lock().iter().filter(|line| line.contains(SIGN)).count()
    }

    async fn event(&self, kind: &str, state_key: &str) -> Option<hearth_dag::Pdu> {
        let info = self.home.rooms.room(&self.room).await.unwrap().unwrap();
        let head = self.home.rooms.head(info.sn).await.unwrap().unwrap().value;
        let key = self.home.rooms.state_key(info.sn, &Kind::new(kind), state_key).await.unwrap()?;
        let event = self.home.rooms.snapshots().lookup(info.sn, head.snapshot, key).await.unwrap()?;
        Some(self.home.rooms.events().load(&info, event).await.unwrap().pdu.clone())
    }

    /// Messages of Bob's, each after the one before.
    async fn messages(&self, texts: &[&str]) -> Vec<hearth_dag::Pdu> {
        let info = self.home.rooms.room(&self.room).await.unwrap().unwrap();
        let head = self.home.rooms.head(info.sn).await.unwrap().unwrap().value;
        let after = self.home.rooms.events().load(&info, head.extremities[0]).await.unwrap().pdu.clone();
        let (mut after, mut all) = (after, Vec::new());
        let sender = ruma::UserId::parse("@bob:peer.test").unwrap();
        for (n, text) in texts.iter().enumerate() {
            let content = to_raw_value(&json!({ "msgtype": "m.text", "body": text })).unwrap();
            let kind = TimelineEventType::RoomMessage;
            let mut auth_events = Vec::new();
            for (kind, state_key) in auth_keys(info.rules, &kind, &sender, None, content.get()).unwrap() {
                let event = self.event(&kind.to_string(), &state_key).await;
                auth_events.extend(event.map(|event| event.event_id().to_owned()));
            }
            let draft = Draft { sender: sender.clone(), kind, state_key: None, content, redacts: None };
            let ts = NOW + 1_000 + n as u64;
            let place = Place {
                room_id: Some(&self.room),
                prev_events: &[after.event_id().to_owned()],
                auth_events: &auth_events,
                depth: after.depth() + 1,
                origin_server_ts: MilliSecondsSinceUnixEpoch(UInt::new_saturating(ts)),
                hashes: None,
            };
            after = draft.build(info.rules, &place, &*key("peer.test", "1")).unwrap();
            all.push(after.clone());
        }
        all
    }

    /// Bob's server sends events, and they are decided. Says what it is answered.
    async fn receives(&self, txn: &str, events: &[hearth_dag::Pdu]) -> Value {
        let pdus: Vec<&str> = events.iter().map(hearth_dag::Pdu::json).collect();
        let body = format!(r#"{{"origin":"peer.test","pdus":[{}]}}"#, pdus.join(","));
        let began = Instant::now();
        let answer = self.inbound.transaction(&name("peer.test"), txn, body.into()).await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(1), "no transaction waits for a policy server");
        while !self.home.rooms.queued_events(&self.room).await.unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        serde_json::from_slice(&answer).unwrap()
    }

    async fn status(&self, event: &hearth_dag::Pdu) -> Option<Status> {
        let info = self.home.rooms.room(&self.room).await.unwrap().unwrap();
        let held = self.home.rooms.events().by_id(&info, event.event_id()).await.unwrap();
        held.map(|held| held.status())
    }
}

#[tokio::test(start_paused = true)]
async fn what_we_send_goes_out_with_the_policy_servers_signature() {
    let guarded = Guarded::new().await;
    assert_eq!(guarded.asked(), 0, "naming a policy server is nothing that it has to agree to");
    guarded.signs();
    let sent = guarded.say("hello").await.unwrap();
    assert_eq!(guarded.asked(), 1);
    let info = guarded.home.rooms.room(&guarded.room).await.unwrap().unwrap();
    let stored = guarded.home.rooms.events().by_id(&info, &sent).await.unwrap().unwrap();
    let json: Value = serde_json::from_str(stored.pdu.json()).unwrap();
    assert!(json["signatures"]["guard.test"]["ed25519:policy_server"].is_string());
    assert!(json["signatures"]["home.test"]["ed25519:1"].is_string());
    // Another key than the room's.
    guarded.answers(|request| signs(&other_key(), request));
    assert_eq!(guarded.refusal().await, PolicyRefusal::BadSignature(name("guard.test")));
    guarded.answers(|_| ok("{}"));
    assert_eq!(guarded.refusal().await, PolicyRefusal::BadSignature(name("guard.test")));
    guarded.answers(|_| ok("{\"guard.test\":[]}"));
    assert_eq!(guarded.refusal().await, PolicyRefusal::BadSignature(name("guard.test")));
}

#[tokio::test(start_paused = true)]
async fn what_the_policy_server_refuses_is_not_sent() {
    let guarded = Guarded::new().await;
    let answers: [(u16, &'static str, Option<&str>, Option<u64>); 3] = [
        (400, r#"{"errcode":"M_FORBIDDEN","error":"spam"}"#, Some("M_FORBIDDEN"), None),
        (
            429,
            r#"{"errcode":"M_LIMIT_EXCEEDED","error":"spam","retry_after_ms":7}"#,
            Some("M_LIMIT_EXCEEDED"),
            Some(7),
        ),
        (404, r#"{"errcode":"M_UNRECOGNIZED","error":"spam"}"#, Some("M_UNRECOGNIZED"), None),
    ];
    for (code, body, errcode, retry_after_ms) in answers {
        guarded.answers(move |_| status(code, body));
        let refused = PolicyRefusal::Refused {
            server: name("guard.test"),
            errcode: errcode.map(str::to_owned),
            error: "spam".to_owned(),
            retry_after_ms,
        };
        assert_eq!(guarded.refusal().await, refused);
    }
    assert_eq!(guarded.asked(), 3, "each was asked about once");
    let info = guarded.home.rooms.room(&guarded.room).await.unwrap().unwrap();
    let head = guarded.home.rooms.head(info.sn).await.unwrap().unwrap().value;
    let last = guarded.home.rooms.events().load(&info, head.extremities[0]).await.unwrap();
    assert!(is_policy_event(last.pdu.kind(), last.pdu.state_key()), "nothing came after it");
}

#[tokio::test(start_paused = true)]
async fn a_policy_server_that_is_silent_is_waited_for_in_no_lane_and_not_for_long() {
    let guarded = Guarded::new().await;
    guarded.signs();
    guarded.world.delays.lock().insert("guard.test".into(), POLICY.timeout * 2 / 3);
    let (began, slow) = (Instant::now(), guarded.say("slow"));
    let lane = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        // What needs no signature gets through meanwhile, into the very same room.
        let topic = json!({ "via": "guard.test", "public_keys": {} });
        guarded.send("m.room.policy", Some(""), topic).await.unwrap();
        began.elapsed()
    };
    let (said, through) = tokio::join!(slow, lane);
    said.unwrap();
    assert!(through < Duration::from_secs(2), "{through:?}");
    // One that never answers, and one that fails.
    let key = policy_key().public_key_base64();
    let names = json!({ "via": "guard.test", "public_keys": { "ed25519": key } });
    guarded.send("m.room.policy", Some(""), names).await.unwrap();
    guarded.world.gone("guard.test");
    let began = Instant::now();
    assert_eq!(guarded.refusal().await, PolicyRefusal::Unreachable(name("guard.test")));
    assert!(began.elapsed() <= POLICY.timeout);
    guarded.answers(|_| status(502, "<html>"));
    assert_eq!(guarded.refusal().await, PolicyRefusal::Unreachable(name("guard.test")));
    // It is asked again although it failed: somebody waits.
    guarded.signs();
    guarded.say("back").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_others_send_is_asked_about_in_its_order() {
    let guarded = Guarded::new().await;
    guarded.answers(|request| {
        let event: Value = serde_json::from_slice(request.body()).unwrap();
        match event["content"]["body"].as_str() {
            Some("spam") => status(400, r#"{"errcode":"M_FORBIDDEN","error":"no"}"#),
            Some("forged") => signs(&other_key(), request),
            _ => signs(&policy_key(), request),
        }
    });
    let events = guarded.messages(&["one", "spam", "two", "forged", "three"]).await;
    let answer = guarded.receives("1", &events).await;
    assert!(answer["pdus"].as_object().unwrap().values().all(|said| *said == json!({})), "{answer}");
    let mut became = Vec::new();
    for event in &events {
        became.push(guarded.status(event).await.unwrap());
    }
    use Status::{Accepted, SoftFailed};
    assert_eq!(became, [Accepted, SoftFailed, Accepted, SoftFailed, Accepted]);
    assert_eq!(guarded.asked(), 5);
    // Sent again, they are known.
    guarded.receives("2", &events).await;
    assert_eq!(guarded.asked(), 5);
    // One that brings its signature is asked about by nobody, one with another key's is.
    let [signed, wrong] = &guarded.messages(&["signed", "wrong"]).await[..] else { panic!() };
    let signed = countersign(rules(), signed, &policy_key());
    let wrong = countersign(rules(), wrong, &other_key());
    guarded.receives("3", &[signed.clone(), wrong.clone()]).await;
    assert_eq!(
        (guarded.status(&signed).await, guarded.status(&wrong).await),
        (Some(Accepted), Some(Accepted))
    );
    assert_eq!(guarded.asked(), 6);
    assert!(!guarded.world.asked.lock().iter().any(|line| line.contains("guard.test GET /_matrix/key")));
}

#[tokio::test(start_paused = true)]
async fn what_others_send_is_soft_failed_when_the_policy_server_is_gone() {
    let guarded = Guarded::new().await;
    guarded.world.gone("guard.test");
    let events = guarded.messages(&["1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12"]).await;
    let began = Instant::now();
    guarded.receives("1", &events).await;
    assert!(began.elapsed() < POLICY.timeout + Duration::from_secs(1));
    for event in &events {
        assert_eq!(guarded.status(event).await, Some(Status::SoftFailed));
    }
    assert_eq!(guarded.asked(), 1, "it is asked once for all of a batch");
    // One that wants to be asked more slowly is, and one that always does is given up.
    let times = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = times.clone();
    guarded.answers(move |request| match counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
        0 => status(429, r#"{"errcode":"M_LIMIT_EXCEEDED","error":"slow","retry_after_ms":3000}"#),
        _ => signs(&policy_key(), request),
    });
    let events = guarded.messages(&["patience"]).await;
    guarded.receives("2", &events).await;
    assert_eq!(guarded.status(&events[0]).await, Some(Status::Accepted));
    guarded.answers(|_| status(429, r#"{"errcode":"M_LIMIT_EXCEEDED","error":"slow"}"#));
    let (events, began) = (guarded.messages(&["never"]).await, Instant::now());
    guarded.receives("3", &events).await;
    assert_eq!(guarded.status(&events[0]).await, Some(Status::SoftFailed));
    assert!(began.elapsed() <= JUDGING_TIME + Duration::from_secs(1), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn events_that_waited_for_others_are_asked_about_when_these_are_here() {
    let guarded = Guarded::new().await;
    guarded.signs();
    let events = guarded.messages(&["first", "second", "third"]).await;
    // The one in the middle comes over a server that is asked for it.
    let missing = events[1].json().to_owned();
    let (peer, world) = (key("peer.test", "1"), guarded.world.clone());
    guarded.world.answers("peer.test", move |request| match request.uri().path() {
        path if path.contains("get_missing_events") => ok(format!(r#"{{"events":[{missing}]}}"#)),
        path if path.contains("/key/") => ok(hearth_federation::server_keys(&peer, &[], world.now_ms())),
        _ => ok("{\"pdus\":{}}"),
    });
    guarded.receives("1", &events[..1]).await;
    guarded.receives("2", &events[2..]).await;
    for event in &events {
        assert_eq!(guarded.status(event).await, Some(Status::Accepted), "{}", event.json());
    }
    assert_eq!(guarded.asked(), 3);
}

#[tokio::test(start_paused = true)]
async fn rooms_without_a_policy_server_ask_nobody() {
    let guarded = Guarded::new().await;
    guarded.send("m.room.policy", Some(""), json!({})).await.unwrap();
    let events = guarded.messages(&["one", "two"]).await;
    guarded.receives("1", &events).await;
    guarded.say("three").await.unwrap();
    assert_eq!(guarded.status(&events[1]).await, Some(Status::Accepted));
    assert_eq!(guarded.asked(), 0);
    assert!(policy_key().key_id() == hearth_dag::POLICY_KEY_ID);
}
