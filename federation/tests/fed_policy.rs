//! A room with a policy server on a network of fakes: what it is asked, and what becomes of events when it signs, signs
//! wrongly, refuses, is slow, or is gone.
#![allow(clippy::unwrap_used)]

mod world;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hearth_dag::{Keypair, ReceivedPdu, RoomRules, Signer, countersign, is_policy_event};
use hearth_federation::{
    Inbound, Policy,
    client::POLICY,
    inbound::{ANSWERS_OF_A_SERVER, FETCHING_AT_ONCE, POLICY_PATIENCE, ROUNDS_MAX},
};
use hearth_rooms::{
    EXTREMITIES_LEFT_ALONE, PolicyRefusal, QUEUED_EVENTS_MAX, Rooms, Send, SendError, Status, WriteError,
};
use hearth_store::Commit;
use http::Request;
use ruma::{OwnedEventId, OwnedRoomId, events::TimelineEventType};
use serde_json::{Value, json, value::to_raw_value};
use tokio::time::Instant;
use world::{
    World,
    home::{Home, transaction, user},
    key, name, ok, status,
};

const SIGN: &str = "POST /_matrix/policy/v1/sign";

struct Guarded {
    world: Arc<World>,
    home: Arc<Home>,
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
        let inbound = Inbound::new(home.federation.clone(), home.rooms.clone(), home.users.clone());
        Self::on(world, Arc::new(home), inbound).await
    }

    /// The same on a server that is there already.
    async fn on(world: Arc<World>, home: Arc<Home>, inbound: Inbound) -> Self {
        let room = home.room().await;
        let guard = world::home::Fake::new(&world, "guard.test");
        guard.join(&home, "guard", &room).await;
        let peer = world::home::Fake::new(&world, "peer.test");
        peer.join(&home, "bob", &room).await;
        world.publishes("peer.test", "1", &[]);
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

    /// Messages of Bob's, each after the one before.
    async fn messages(&self, texts: &[&str]) -> Vec<hearth_dag::Pdu> {
        self.home.messages(&self.room, ruma::user_id!("@bob:peer.test"), texts).await
    }

    /// Bob's server sends events. Says what it is answered.
    async fn hands_over(&self, txn: &str, events: &[hearth_dag::Pdu]) -> Value {
        let began = Instant::now();
        let body = transaction("peer.test", events);
        let answer = self.inbound.transaction(&name("peer.test"), txn, body).await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(1), "no transaction waits for a policy server");
        serde_json::from_slice(&answer).unwrap()
    }

    /// The same, and they are decided.
    async fn receives(&self, txn: &str, events: &[hearth_dag::Pdu]) -> Value {
        let answer = self.hands_over(txn, events).await;
        self.are_decided().await;
        answer
    }

    async fn are_decided(&self) {
        while !self.home.rooms.queued_events(&self.room).await.unwrap().is_empty() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    async fn status(&self, event: &hearth_dag::Pdu) -> Option<Status> {
        self.home.status(event).await
    }

    async fn statuses(&self, events: &[hearth_dag::Pdu]) -> Vec<Option<Status>> {
        let mut all = Vec::new();
        for event in events {
            all.push(self.status(event).await);
        }
        all
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
async fn what_others_send_waits_for_a_policy_server_that_is_gone_but_not_for_ever() {
    let guarded = Guarded::new().await;
    guarded.world.gone("guard.test");
    let events = guarded.messages(&["1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12"]).await;
    let began = Instant::now();
    guarded.receives("1", &events).await;
    let passed = began.elapsed();
    assert!(passed >= POLICY_PATIENCE && passed < POLICY_PATIENCE * 3 / 2, "{passed:?}");
    assert_eq!(guarded.statuses(&events).await, vec![Some(Status::SoftFailed); 12]);
    let asked = guarded.asked();
    assert!((5..30).contains(&asked), "it is asked now and then, and once for all of a batch: {asked}");
}

#[tokio::test(start_paused = true)]
async fn what_others_send_comes_in_when_the_policy_server_is_back() {
    let guarded = Guarded::new().await;
    type Answer = (u16, &'static str);
    let answers: [Option<Answer>; 5] = [
        None,
        Some((502, "<html>")),
        Some((500, r#"{"errcode":"M_UNKNOWN","error":"oh"}"#)),
        Some((429, r#"{"errcode":"M_LIMIT_EXCEEDED","error":"slow","retry_after_ms":30000}"#)),
        Some((429, "slow")),
    ];
    for (number, answer) in answers.into_iter().enumerate() {
        match answer {
            None => guarded.world.gone("guard.test"),
            Some((code, body)) => guarded.answers(move |_| status(code, body)),
        }
        let events = guarded.messages(&["one", "two", "three"]).await;
        guarded.hands_over(&number.to_string(), &events).await;
        let before = guarded.asked();
        tokio::time::sleep(Duration::from_secs(25)).await;
        if number == 3 {
            assert!(guarded.asked() <= before + 1, "it said when to come again");
        }
        tokio::time::sleep(Duration::from_secs(275)).await;
        assert_eq!(guarded.statuses(&events).await, [None, None, None], "{answer:?}");
        guarded.signs();
        let back = Instant::now();
        guarded.are_decided().await;
        assert!(back.elapsed() < Duration::from_secs(180), "{:?}", back.elapsed());
        assert_eq!(guarded.statuses(&events).await, vec![Some(Status::Accepted); 3], "{answer:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_over_which_a_policy_server_fails_holds_up_no_other() {
    let guarded = Guarded::new().await;
    guarded.answers(|request| {
        let event: Value = serde_json::from_slice(request.body()).unwrap();
        match event["content"]["body"].as_str() {
            Some("poison") => status(500, r#"{"errcode":"M_UNKNOWN","error":"oh"}"#),
            Some("hemlock") => Err(hearth_federation::NetworkError::Timeout),
            _ => signs(&policy_key(), request),
        }
    });
    // Beside one another.
    let mut events = Vec::new();
    for text in ["poison", "hemlock", "fine", "good"] {
        events.extend(guarded.messages(&[text]).await);
    }
    guarded.hands_over("1", &events).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    use Status::{Accepted, SoftFailed};
    assert_eq!(guarded.statuses(&events).await, [None, None, Some(Accepted), Some(Accepted)]);
    guarded.are_decided().await;
    assert_eq!(guarded.statuses(&events[..2]).await, [Some(SoftFailed), Some(SoftFailed)]);
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_a_policy_server_crowds_nothing_out_of_the_queue() {
    let guarded = Guarded::new().await;
    guarded.world.gone("guard.test");
    let texts: Vec<_> = (0..QUEUED_EVENTS_MAX + 50).map(|number| number.to_string()).collect();
    let texts: Vec<_> = texts.iter().map(String::as_str).collect();
    let events = guarded.messages(&texts).await;
    for (number, some) in events.chunks(40).enumerate() {
        guarded.hands_over(&number.to_string(), some).await;
        tokio::time::sleep(POLICY.timeout * 5).await;
    }
    guarded.are_decided().await;
    assert_eq!(guarded.statuses(&events).await, vec![Some(Status::SoftFailed); events.len()]);
}

#[tokio::test(start_paused = true)]
async fn nothing_of_a_busy_room_is_lost_while_its_policy_server_is_asked() {
    let guarded = Guarded::new().await;
    guarded.signs();
    guarded.world.delays.lock().insert("guard.test".into(), Duration::from_secs(2));
    let texts: Vec<_> = (0..ROUNDS_MAX * 6).map(|number| number.to_string()).collect();
    let texts: Vec<_> = texts.iter().map(String::as_str).collect();
    let events = guarded.messages(&texts).await;
    // The queue is never empty, for more rounds than are made at a stretch.
    for (number, event) in events.iter().enumerate() {
        guarded.hands_over(&number.to_string(), std::slice::from_ref(event)).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    guarded.are_decided().await;
    assert_eq!(guarded.statuses(&events).await, vec![Some(Status::Accepted); events.len()]);
    assert_eq!(guarded.asked(), events.len());
    let lacking = guarded.world.asked.lock().iter().filter(|line| line.contains("missing_events")).count();
    assert_eq!(lacking, 0, "nothing was asked for again");
}

#[tokio::test(start_paused = true)]
async fn a_policy_server_that_is_silent_holds_up_no_other_room() {
    let guarded = Guarded::new().await;
    for number in 0..FETCHING_AT_ONCE + 4 {
        // Rooms of the same moment are the same room.
        tokio::time::sleep(Duration::from_millis(1)).await;
        let (world, home) = (guarded.world.clone(), guarded.home.clone());
        let other = Guarded::on(world, home, guarded.inbound.clone()).await;
        let events = other.messages(&["in vain"]).await;
        guarded.world.delays.lock().insert("guard.test".into(), POLICY.timeout);
        other.hands_over(&format!("silent {number}"), &events).await;
    }
    // In a room without one, an event lacks another.
    tokio::time::sleep(Duration::from_millis(1)).await;
    let room = guarded.home.room().await;
    world::home::Fake::new(&guarded.world, "quick.test").join(&guarded.home, "carol", &room).await;
    let events = guarded.home.messages(&room, ruma::user_id!("@carol:quick.test"), &["1", "2"]).await;
    let (first, quick, world) = (events[0].json().to_owned(), key("quick.test", "1"), guarded.world.clone());
    guarded.world.answers("quick.test", move |request| match request.uri().path() {
        path if path.contains("get_missing_events") => ok(format!(r#"{{"events":[{first}]}}"#)),
        _ => ok(hearth_federation::server_keys(&quick, &[], world.now_ms())),
    });
    let body = transaction("quick.test", &events[1..]);
    guarded.inbound.transaction(&name("quick.test"), "1", body).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(guarded.statuses(&events).await, vec![Some(Status::Accepted); 2]);
}

#[tokio::test(start_paused = true)]
async fn long_answers_are_made_while_a_policy_server_is_asked() {
    let guarded = Guarded::new().await;
    guarded.signs();
    guarded.world.delays.lock().insert("guard.test".into(), Duration::from_secs(20));
    let (peer, inbound) = (name("peer.test"), &guarded.inbound);
    let message = |number: usize| Send {
        room: guarded.room.clone(),
        sender: user("alice"),
        kind: TimelineEventType::RoomMessage,
        state_key: None,
        content: to_raw_value(&json!({ "body": number.to_string() })).unwrap(),
        redacts: None,
        txn: None,
        timestamp_ms: None,
    };
    let messages: Vec<_> = (0..ANSWERS_OF_A_SERVER).map(message).collect();
    let peer = &peer;
    let asking = messages.iter().map(|message| async move {
        let act = |rooms: Rooms| async move { rooms.send(message, Commit::new()).await };
        inbound.answering_signed(peer, act).await.map(drop)
    });
    let other = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let began = Instant::now();
        drop(inbound.answering(peer).await.unwrap());
        began.elapsed()
    };
    let (done, waited) = tokio::join!(futures_util::future::join_all(asking), other);
    assert!(done.iter().all(Result::is_ok), "{done:?}");
    assert!(waited < Duration::from_secs(1), "{waited:?}");
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

#[tokio::test(start_paused = true)]
async fn what_follows_an_event_that_lacks_another_is_not_asked_about() {
    let guarded = Guarded::new().await;
    guarded.signs();
    let lacking = guarded.messages(&["never given", "lacks it", "follows"]).await;
    guarded.hands_over("lacking", &lacking[1..]).await;
    for text in ["1", "2", "3"] {
        let ready = guarded.messages(&[text]).await;
        guarded.hands_over(text, &ready).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(guarded.statuses(&ready).await, [Some(Status::Accepted)]);
    }
    assert_eq!(guarded.asked(), 3);
    assert_eq!(guarded.statuses(&lacking).await, [None, None, None]);
}

#[tokio::test(start_paused = true)]
async fn nobody_is_asked_again_about_an_event_that_was_signed_and_waits_for_another() {
    let guarded = Guarded::new().await;
    let about_good = Arc::new(AtomicUsize::new(0));
    let counted = about_good.clone();
    guarded.answers(move |request| {
        let event: Value = serde_json::from_slice(request.body()).unwrap();
        if event["content"]["body"] == "poison" {
            return status(500, r#"{"errcode":"M_UNKNOWN","error":"oh"}"#);
        }
        counted.fetch_add(1, Ordering::Relaxed);
        signs(&policy_key(), request)
    });
    let events = guarded.messages(&["poison", "good"]).await;
    guarded.receives("1", &events).await;
    assert_eq!(guarded.statuses(&events).await, [Some(Status::SoftFailed), Some(Status::Accepted)]);
    assert_eq!(about_good.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_policy_server_that_is_silent_is_not_asked_at_once_again_to_join_forks() {
    let guarded = Guarded::new().await;
    guarded.world.gone("guard.test");
    let mut forks = Vec::new();
    for number in 0..EXTREMITIES_LEFT_ALONE + 20 {
        let fork = guarded.messages(&[&number.to_string()]).await.remove(0);
        forks.push(countersign(rules(), &fork, &policy_key()));
    }
    for (number, fork) in forks.iter().enumerate() {
        guarded.hands_over(&number.to_string(), std::slice::from_ref(fork)).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let asked = guarded.asked();
    assert!((2..6).contains(&asked), "it is asked now and then: {asked}");
    let ends = async || {
        let info = guarded.home.info(&guarded.room).await;
        guarded.home.rooms.head(info.sn).await.unwrap().unwrap().value.extremities.len()
    };
    assert_eq!(ends().await, forks.len());
    guarded.signs();
    tokio::time::sleep(Duration::from_secs(150)).await;
    assert!(ends().await <= EXTREMITIES_LEFT_ALONE);
}
