//! Rooms with a policy server: events that it has to sign, its answer brought by whoever asked it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use hearth_dag::{Draft, Keypair, Pdu, Place, Rejection, Signer, VerifiedPdu, auth_keys, countersign};
use hearth_rooms::serve::HandshakeError;
use hearth_rooms::*;
use hearth_store::{Commit, Data, Engine, Pending, Progress, Scan, Store, StoreError};
use ruma::{MilliSecondsSinceUnixEpoch, OwnedRoomId, UInt};
use serde_json::{Value, json};

use crate::remote::{peer, third};
use crate::support::{World, event, message, txn, user};

/// The key with which `peer.test` recommends events; its other key is published.
fn policy() -> Keypair {
    Keypair::new(peer().name, "policy_server", &[42; 32]).unwrap()
}

fn names(via: &str, key: &str) -> Value {
    json!({ "via": via, "public_keys": { "ed25519": key } })
}

/// A room of Alice's in which `peer.test` is the policy server.
async fn guarded() -> (World, OwnedRoomId) {
    let world = World::new().await;
    let room = world.room("alice", Preset::PublicChat).await;
    peer().join(&world, "bob", &room).await;
    let content = names("peer.test", &policy().public_key_base64());
    world.set("alice", &room, "m.room.policy", "", content).await.unwrap();
    (world, room)
}

fn unsigned<T: std::fmt::Debug, E: MayLackSignature + std::fmt::Debug>(done: Result<T, E>) -> Unsigned {
    done.unwrap_err().unsigned().unwrap().clone()
}

/// What a key makes of an event.
fn signature(unsigned: &Unsigned, rules: &hearth_dag::RoomRules, key: &dyn Signer) -> String {
    let signed: Value = serde_json::from_str(countersign(rules, &unsigned.event, key).json()).unwrap();
    signed["signatures"][key.server_name().as_str()][key.key_id()].as_str().unwrap().to_owned()
}

async fn signed(world: &World, room: &OwnedRoomId, unsigned: &Unsigned) -> Pdu {
    let info = world.rooms.room(room).await.unwrap().unwrap();
    unsigned.signed(&signature(unsigned, info.rules, &policy())).unwrap()
}

/// The rooms, knowing that the policy server recommends an event.
async fn recommended(world: &World, room: &OwnedRoomId, unsigned: &Unsigned) -> Rooms {
    let mut verdicts = Verdicts::default();
    verdicts.recommend(signed(world, room, unsigned).await);
    world.rooms.with_verdicts(verdicts)
}

fn refused(world: &World, event: &VerifiedPdu) -> Rooms {
    let mut verdicts = Verdicts::default();
    verdicts.refuse(event.pdu().event_id().to_owned());
    world.rooms.with_verdicts(verdicts)
}

/// A message of the peer's, after some events or at the head of the room.
async fn from_peer(world: &World, room: &OwnedRoomId, text: &str, after: Option<&Pdu>) -> VerifiedPdu {
    let info = world.rooms.room(room).await.unwrap().unwrap();
    let message = message("alice", room, text);
    let sender = peer().user("bob");
    let mut auth_events = Vec::new();
    for (kind, state_key) in
        auth_keys(info.rules, &message.kind, &sender, None, message.content.get()).unwrap()
    {
        let held = world.state_event(room, &kind.to_string(), &state_key).await;
        auth_events.extend(held.map(|event| event.header.event_id.clone()));
    }
    let head = world.events(room).await.last().unwrap().pdu.clone();
    let after = after.unwrap_or(&head);
    let draft =
        Draft { sender, kind: message.kind, state_key: None, content: message.content, redacts: None };
    let place = Place {
        room_id: Some(room),
        prev_events: &[after.event_id().to_owned()],
        auth_events: &auth_events,
        depth: after.depth() + 1,
        origin_server_ts: MilliSecondsSinceUnixEpoch(UInt::new_saturating(1_700_000_500_000)),
        hashes: None,
    };
    let key = Keypair::new(peer().name, "1", &[9; 32]).unwrap();
    VerifiedPdu::built_here(draft.build(info.rules, &place, &key).unwrap())
}

async fn says(world: &World, room: &OwnedRoomId) -> Vec<String> {
    let events = world.events(room).await;
    let bodies = events.iter().map(|event| event.pdu.content_as::<Value>().unwrap()["body"].clone());
    bodies.filter_map(|body| body.as_str().map(str::to_owned)).collect()
}

fn signatures(event: &Pdu) -> Value {
    serde_json::from_str::<Value>(event.json()).unwrap()["signatures"].clone()
}

#[tokio::test]
async fn what_we_send_is_signed_before_it_is_in_the_room() {
    let (world, room) = guarded().await;
    let hello = message("alice", &room, "hello");
    let lacks = unsigned(world.rooms.send(&hello, Commit::new()).await);
    assert_eq!(lacks.server.name, "peer.test");
    assert!(says(&world, &room).await.is_empty(), "nothing is written before");
    let rooms = recommended(&world, &room, &lacks).await;
    let sent = rooms.send(&hello, Commit::new()).await.unwrap();
    assert_eq!(sent.event_id, lacks.event.event_id(), "it is the very event that was signed");
    let stored = world.by_id(&room, &sent.event_id).await;
    let all = signatures(&stored.pdu);
    assert!(
        all["hearth.test"]["ed25519:1"].is_string() && all["peer.test"]["ed25519:policy_server"].is_string()
    );
    // What was signed is good for one event, not for the next one that says the same.
    let again = unsigned(rooms.send(&hello, Commit::new()).await);
    assert_ne!(again.event.event_id(), sent.event_id);
    // All events are signed, but for the one that names the policy server.
    for (kind, state_key) in
        [("m.room.topic", Some("")), ("m.room.policy", None), ("m.room.policy", Some("x"))]
    {
        let send = Send { state_key: state_key.map(str::to_owned), ..event("alice", &room, kind, json!({})) };
        unsigned(world.rooms.send(&send, Commit::new()).await);
    }
    let join = world.join("carol", &room).await;
    unsigned(join);
    let kick = world.remove(Removal::Kick, "alice", "carol", &room).await;
    assert!(matches!(kick, Err(MembershipError::NotInRoom(_))), "what is refused anyway is shown to nobody");
    world.set("alice", &room, "m.room.policy", "", json!({})).await.unwrap();
    world.say("alice", &room, "free").await.unwrap();
}

#[tokio::test]
async fn an_event_keeps_its_place_while_it_is_signed() {
    let (world, room) = guarded().await;
    let slow = Send { txn: txn("alice", "1"), ..message("alice", &room, "slow") };
    let lacks = unsigned(world.rooms.send(&slow, Commit::new()).await);
    let fast = message("alice", &room, "fast");
    let rooms = recommended(&world, &room, &unsigned(world.rooms.send(&fast, Commit::new()).await)).await;
    let fast = rooms.send(&fast, Commit::new()).await.unwrap();
    let rooms = recommended(&world, &room, &lacks).await;
    let sent = rooms.send(&slow, Commit::new()).await.unwrap();
    assert_eq!(sent.event_id, lacks.event.event_id());
    assert!(sent.position > fast.position);
    assert_eq!(says(&world, &room).await, ["fast", "slow"]);
    let info = world.rooms.room(&room).await.unwrap().unwrap();
    assert_eq!(world.rooms.head(info.sn).await.unwrap().unwrap().value.extremities.len(), 2);
    // It came from a transaction, as ever: the client that repeats it makes no second one.
    let again = world.rooms.send(&slow, Commit::new()).await.unwrap();
    assert_eq!(again, Sent { event_id: sent.event_id.clone(), position: None });
    let stored = world.by_id(&room, &sent.event_id).await;
    assert_eq!(stored.header.transaction.as_ref().unwrap().transaction_id, "1");
    let page = world.rooms.stream_after(fast.position.unwrap(), 10).await.unwrap();
    assert_eq!(page.events.len(), 1, "and it is ours to send");
    // Who lost the right to speak meanwhile does not.
    let join = unsigned(world.join("carol", &room).await);
    let joining = recommended(&world, &room, &join).await;
    let as_carol = crate::support::join_of("carol", &room);
    joining.join(&as_carol, Commit::new()).await.unwrap();
    let late = message("carol", &room, "late");
    let lacks = unsigned(world.rooms.send(&late, Commit::new()).await);
    let ban = Remove {
        room: room.clone(),
        sender: user("alice"),
        user: user("carol"),
        removal: Removal::Ban,
        reason: None,
    };
    let banning = unsigned(world.rooms.remove(&ban, Commit::new()).await);
    recommended(&world, &room, &banning).await.remove(&ban, Commit::new()).await.unwrap();
    let done = recommended(&world, &room, &lacks).await.send(&late, Commit::new()).await;
    assert!(matches!(done, Err(SendError::Write(WriteError::Forbidden(_)))), "{done:?}");
    assert_eq!(says(&world, &room).await, ["fast", "slow"]);
}

#[tokio::test]
async fn who_names_no_server_that_is_there_has_none() {
    let (world, room) = guarded().await;
    let key = policy().public_key_base64();
    let free = [
        json!({}),
        json!({ "via": "peer.test" }),
        json!({ "via": "peer.test", "public_keys": {} }),
        json!({ "via": "peer.test", "public_keys": { "ed25519": 5 } }),
        json!({ "via": 5, "public_keys": { "ed25519": key } }),
        names("no server name", &key),
        names("third.test", &key),
        names("hearth.test", &key),
    ];
    for content in free {
        world.set("alice", &room, "m.room.policy", "", content.clone()).await.unwrap();
        assert!(world.say("alice", &room, "hi").await.is_ok(), "{content}");
    }
    // What is no key verifies nothing; the room has a policy server all the same.
    world.set("alice", &room, "m.room.policy", "", names("peer.test", "no key")).await.unwrap();
    let lacks = unsigned(world.say("alice", &room, "hi").await);
    assert!(matches!(lacks.signed("x"), Err(Rejection::BadSignature { .. })));
    // One that leaves lets the room go, at once, and has it again when it comes back.
    world.set("alice", &room, "m.room.policy", "", names("peer.test", &key)).await.unwrap();
    unsigned(world.say("alice", &room, "hi").await);
    let leave = unsigned(peer().leave(&world, "bob", &room).await);
    let signed = signed(&world, &room, &leave).await;
    world.rooms.receive(&VerifiedPdu::built_here(signed)).await.unwrap();
    assert!(world.say("alice", &room, "hi").await.is_ok());
}

#[tokio::test]
async fn what_comes_without_a_signature_is_asked_about_and_soft_failed_if_refused() {
    let (world, room) = guarded().await;
    let info = world.rooms.room(&room).await.unwrap().unwrap();
    let good = from_peer(&world, &room, "good", None).await;
    let Received::NeedsPolicySignature(lacks) = world.rooms.receive(&good).await.unwrap() else {
        panic!("it needs a signature")
    };
    assert!(world.rooms.events().by_id(&info, good.pdu().event_id()).await.unwrap().is_none());
    let wrong = signature(&lacks, info.rules, &Keypair::new(peer().name, "policy_server", &[1; 32]).unwrap());
    assert!(matches!(lacks.signed(&wrong), Err(Rejection::BadSignature { .. })));
    // A copy that says to be signed, by another key, is no better.
    let wrongly =
        countersign(info.rules, good.pdu(), &Keypair::new(peer().name, "policy_server", &[1; 32]).unwrap());
    let received = world.rooms.receive(&VerifiedPdu::built_here(wrongly)).await.unwrap();
    assert!(matches!(received, Received::NeedsPolicySignature(_)));
    let rooms = recommended(&world, &room, &lacks).await;
    assert!(matches!(rooms.receive(&good).await.unwrap(), Received::Accepted(_)));
    let stored = world.by_id(&room, &good.pdu().event_id().to_owned()).await;
    let all = signatures(&stored.pdu);
    assert!(all["peer.test"]["ed25519:1"].is_string(), "its own signature stays");
    assert!(all["peer.test"]["ed25519:policy_server"].is_string(), "others need not ask again");
    // One that is signed when it comes is asked about by nobody.
    let next = from_peer(&world, &room, "next", None).await;
    let next = VerifiedPdu::built_here(countersign(info.rules, next.pdu(), &policy()));
    assert!(matches!(world.rooms.receive(&next).await.unwrap(), Received::Accepted(_)));
    let spam = from_peer(&world, &room, "spam", None).await;
    let received = refused(&world, &spam).receive(&spam).await.unwrap();
    assert_eq!(received, Received::SoftFailed(Some(Rejection::NotRecommended)));
    assert_eq!(world.rooms.receive(&spam).await.unwrap(), Received::SoftFailed(None));
    assert_eq!(says(&world, &room).await, ["good", "next"]);
    let head = world.rooms.head(info.sn).await.unwrap().unwrap().value;
    assert_eq!(head.extremities.len(), 1, "what is soft-failed is no extremity");
    // What the rules refuse is shown to nobody.
    let stranger = third().user("eve");
    let mut eve: Value =
        serde_json::from_str(from_peer(&world, &room, "eve", None).await.pdu().json()).unwrap();
    eve["sender"] = json!(stranger);
    let eve = third().sign(info.rules, &eve).trust_signatures(info.rules);
    assert!(matches!(world.rooms.receive(&eve).await.unwrap(), Received::Rejected(_)));
    // What follows a soft-failed event is in the room if it is recommended itself.
    let after = from_peer(&world, &room, "after", Some(spam.pdu())).await;
    let after = VerifiedPdu::built_here(countersign(info.rules, after.pdu(), &policy()));
    assert!(matches!(world.rooms.receive(&after).await.unwrap(), Received::Accepted(_)));
}

#[tokio::test]
async fn events_that_wait_for_others_wait_for_the_policy_server_too() {
    let (world, room) = guarded().await;
    let first = from_peer(&world, &room, "first", None).await;
    let second = from_peer(&world, &room, "second", Some(first.pdu())).await;
    for pdu in [&second, &first] {
        assert!(world.rooms.enqueue(pdu, &peer().name).await.unwrap());
    }
    let decided = world.rooms.receive_queued(&room).await.unwrap();
    let [(event, Received::NeedsPolicySignature(lacks))] = &decided[..] else { panic!("{decided:?}") };
    assert_eq!(event, first.pdu().event_id());
    assert_eq!(world.rooms.queued_events(&room).await.unwrap().len(), 2, "both still wait");
    let mut verdicts = Verdicts::default();
    verdicts.recommend(signed(&world, &room, lacks).await);
    verdicts.refuse(second.pdu().event_id().to_owned());
    let decided = world.rooms.with_verdicts(verdicts).receive_queued(&room).await.unwrap();
    assert!(matches!(decided[..], [(_, Received::Accepted(_)), (_, Received::SoftFailed(_))]), "{decided:?}");
    assert!(world.rooms.queued_events(&room).await.unwrap().is_empty());
    assert_eq!(says(&world, &room).await, ["first"]);
}

#[tokio::test]
async fn who_comes_in_through_us_is_shown_to_the_policy_server() {
    let (world, room) = guarded().await;
    let template = third().make_join(&world, "dora", &room).await.unwrap();
    let pdu = third().complete(&template);
    let lacks = unsigned(third().submit_join(&world, &room, pdu.clone(), false).await.map(drop));
    assert_eq!(lacks.event.event_id(), pdu.pdu().event_id());
    let guarded = World { rooms: recommended(&world, &room, &lacks).await, store: world.store.clone() };
    let joined = third().submit_join(&guarded, &room, pdu, false).await.unwrap();
    assert!(signatures(&joined.event)["peer.test"]["ed25519:policy_server"].is_string());
    // One that is refused leaves no trace.
    let template = third().make_join(&world, "eve", &room).await.unwrap();
    let pdu = third().complete(&template);
    let event = pdu.clone().trust_signatures(world.rooms.room(&room).await.unwrap().unwrap().rules);
    let strict = World { rooms: refused(&world, &event), store: world.store.clone() };
    let done = third().submit_join(&strict, &room, pdu, false).await.map(drop);
    assert!(matches!(done, Err(HandshakeError::Forbidden(Rejection::NotRecommended))), "{done:?}");
    let info = world.rooms.room(&room).await.unwrap().unwrap();
    assert!(world.rooms.events().by_id(&info, event.pdu().event_id()).await.unwrap().is_none());
}

#[tokio::test]
async fn an_invite_to_the_policy_servers_own_user_has_both_of_its_signatures() {
    let (world, room) = guarded().await;
    let invite = Invite {
        room: room.clone(),
        sender: user("alice"),
        user: peer().user("ben"),
        profile: Profile::default(),
        reason: None,
        is_direct: false,
    };
    let lacks = unsigned(world.rooms.prepare_invite(&invite).await);
    let prepared = recommended(&world, &room, &lacks).await.prepare_invite(&invite).await.unwrap();
    assert_eq!(prepared.pdu.event_id(), lacks.event.event_id());
    let own = Keypair::new(peer().name, "1", &[9; 32]).unwrap();
    let back = countersign(prepared.room.rules, &prepared.pdu, &own);
    let back = hearth_dag::ReceivedPdu::parse(prepared.room.rules, back.json()).unwrap();
    let sent =
        world.rooms.append_invite(&prepared, &back, &crate::remote::keys(), Commit::new()).await.unwrap();
    let all = signatures(&world.by_id(&room, &sent.event_id).await.pdu);
    assert!(
        all["peer.test"]["ed25519:1"].is_string() && all["peer.test"]["ed25519:policy_server"].is_string()
    );
}

/// Counts how often the first room is asked whether it ever had a policy.
struct Counting {
    store: Store,
    looked: AtomicUsize,
}

impl Counting {
    fn look(&self, key: &[u8]) {
        let policy = (RoomSn(1), Kind::new("m.room.policy"), String::new());
        let is_it = key == tables::STATE_KEYS.key_bytes(&policy);
        self.looked.fetch_add(usize::from(is_it), Ordering::SeqCst);
    }
}

#[async_trait]
impl Engine for Counting {
    async fn get(&self, key: &[u8]) -> Result<Option<Data>, StoreError> {
        self.look(key);
        self.store.engine().get(key).await
    }

    async fn multi_get(&self, keys: &[Vec<u8>]) -> Result<Vec<Option<Data>>, StoreError> {
        keys.iter().for_each(|key| self.look(key));
        self.store.engine().multi_get(keys).await
    }

    async fn range(&self, scan: Scan<'_>) -> Result<Vec<(Data, Data)>, StoreError> {
        self.store.engine().range(scan).await
    }

    fn submit(&self, commit: Commit) -> Pending {
        self.store.submit(commit)
    }

    fn progress(&self) -> &Arc<Progress> {
        self.store.engine().progress()
    }

    async fn finish(&self) {}

    async fn close(self: Arc<Self>) {}
}

#[tokio::test]
async fn a_room_without_a_policy_server_is_not_asked_for_one_again() {
    let counting = Arc::new(Counting { store: Store::memory().await, looked: AtomicUsize::new(0) });
    let world = World::on(Store::on(counting.clone()).await.unwrap());
    let room = world.room("alice", Preset::PublicChat).await;
    peer().join(&world, "bob", &room).await;
    for n in 0..150 {
        let name = format!("user{n}");
        world.join(&name, &room).await.unwrap();
        world.say(&name, &room, "hi").await.unwrap();
    }
    for n in 0..5 {
        let event = from_peer(&world, &room, &n.to_string(), None).await;
        assert!(matches!(world.rooms.receive(&event).await.unwrap(), Received::Accepted(_)));
    }
    let looked = counting.looked.load(Ordering::SeqCst);
    assert_eq!(looked, 2, "when it was made, and when a state came from elsewhere");
}
