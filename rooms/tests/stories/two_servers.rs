//! Two servers and nothing between them but what each hands to the other: one lets in, the other enters.

use std::collections::BTreeMap;

use hearth_dag::{ReceivedPdu, VerifiedPdu};
use hearth_rooms::serve::{AcceptedJoin, Asked, QueryError};
use hearth_rooms::*;
use hearth_store::{Commit, StreamPosition};
use ruma::{OwnedEventId, OwnedRoomId, OwnedServerName, OwnedUserId, UserId, server_name};
use serde_json::json;
use serde_json::value::RawValue;

use crate::remote::{Remote, keys, peer};
use crate::support::{World, profile, user};

/// Alice's server, Bob's, and how far each has sent what is its to send.
struct Two {
    alices: World,
    bobs: Rooms,
    remote: Remote,
    sent: [StreamPosition; 2],
}

/// As it comes over the network: read anew, and verified.
fn arrived(room: &RoomInfo, pdu: &hearth_dag::Pdu) -> VerifiedPdu {
    ReceivedPdu::parse(room.rules, pdu.json()).unwrap().verify(room.rules, &keys()).unwrap()
}

impl Two {
    async fn new() -> Self {
        let remote = peer();
        let bobs = remote.rooms().await;
        Two { alices: World::new().await, bobs, remote, sent: [StreamPosition::ZERO; 2] }
    }

    fn bob(&self) -> OwnedUserId {
        self.remote.user("bob")
    }

    /// Bob joins through Alice's server.
    async fn bob_joins(&self, room: &OwnedRoomId, omit_members: bool) -> AcceptedJoin {
        let template = self.remote.make_join(&self.alices, "bob", room).await.unwrap();
        let pdu = self.remote.complete(&template);
        let answer = self.remote.submit_join(&self.alices, room, pdu, omit_members).await.unwrap();
        let info = self.alices.rooms.room(room).await.unwrap().unwrap();
        let all = |pdus: &[hearth_dag::Pdu]| pdus.iter().map(|pdu| arrived(&info, pdu)).collect();
        let servers: Vec<OwnedServerName> = answer.servers_in_room.iter().map(ToOwned::to_owned).collect();
        let enter = EnterRoom {
            room_id: room.clone(),
            version: answer.room_version.clone(),
            join: arrived(&info, &answer.event),
            state: all(&answer.state),
            auth_chain: all(&answer.auth_chain),
            origin: server_name!("hearth.test").to_owned(),
            members_omitted: answer.members_omitted.then_some(servers),
        };
        let entered = self.bobs.enter_room(enter).await.unwrap();
        assert_eq!(entered.dropped, 0);
        assert_eq!(entered.is_partial, omit_members);
        answer
    }

    /// Each hands to the other what is its to send. Says how many events there were.
    async fn talk(&mut self) -> usize {
        let mut count = 0;
        let home = server_name!("hearth.test").to_owned();
        let sides =
            [(&self.alices.rooms, &self.bobs, &self.remote.name), (&self.bobs, &self.alices.rooms, &home)];
        let mut pages = Vec::new();
        for ((from, ..), sent) in sides.iter().zip(&mut self.sent) {
            let page = from.stream_after(*sent, 1_000).await.unwrap();
            *sent = page.upto;
            pages.push(page);
        }
        for ((from, to, name), page) in sides.iter().zip(pages) {
            for outgoing in page.events {
                if outgoing.destinations(from.servers()).any(|server| server == *name) {
                    let received = to.receive(&arrived(&outgoing.room, &outgoing.event.pdu)).await.unwrap();
                    assert!(matches!(received, Received::Accepted(_)), "{received:?}");
                    count += 1;
                }
            }
        }
        count
    }

    async fn bob_says(&self, room: &OwnedRoomId, text: &str) -> OwnedEventId {
        let said = Send { sender: self.bob(), ..crate::support::message("bob", room, text) };
        self.bobs.send(&said, Commit::new()).await.unwrap().event_id
    }

    async fn agree(&self, room: &OwnedRoomId) {
        assert_eq!(state_of(&self.alices.rooms, room).await, state_of(&self.bobs, room).await);
    }
}

async fn state_of(rooms: &Rooms, room: &OwnedRoomId) -> BTreeMap<(String, String), OwnedEventId> {
    let info = rooms.room(room).await.unwrap().unwrap();
    let head = rooms.head(info.sn).await.unwrap().unwrap().value;
    let mut state = BTreeMap::new();
    for (key, event) in rooms.snapshots().all(info.sn, head.snapshot).await.unwrap() {
        let name = rooms.state_key_name(info.sn, key).await.unwrap();
        let event = rooms.events().load(&info, event).await.unwrap();
        state.insert((name.kind.as_str().to_owned(), name.state_key.clone()), event.header.event_id.clone());
    }
    state
}

#[tokio::test]
async fn two_servers_are_in_one_room_until_one_leaves() {
    let mut two = Two::new().await;
    let room = two.alices.room("alice", Preset::PublicChat).await;
    two.alices.say("alice", &room, "before").await.unwrap();
    two.talk().await;
    two.bob_joins(&room, false).await;
    assert_eq!(two.talk().await, 0, "the join came with the answer");
    two.agree(&room).await;
    // By turns, then at once.
    two.alices.say("alice", &room, "hello bob").await.unwrap();
    assert_eq!(two.talk().await, 1);
    two.bob_says(&room, "hello alice").await;
    assert_eq!(two.talk().await, 1);
    two.alices.set("alice", &room, "m.room.topic", "", json!({ "topic": "tea" })).await.unwrap();
    two.bob_says(&room, "coffee").await;
    assert_eq!(two.talk().await, 2);
    let end = two.bob_says(&room, "both").await;
    assert_eq!(two.talk().await, 1);
    two.agree(&room).await;
    // Each tells the other about the state at the other's events.
    let asked = Asked { origin: server_name!("hearth.test"), room: &room, event: &end };
    let told = two.bobs.state_ids_for_peer(asked).await.unwrap();
    let mut expected: Vec<OwnedEventId> = state_of(&two.alices.rooms, &room).await.into_values().collect();
    let mut pdu_ids = told.pdu_ids;
    expected.sort();
    pdu_ids.sort();
    assert_eq!(pdu_ids, expected);

    let bob = two.bob();
    let leave = Remove {
        room: room.clone(),
        sender: bob.clone(),
        user: bob.clone(),
        removal: Removal::Leave,
        reason: None,
    };
    two.bobs.remove(&leave, Commit::new()).await.unwrap();
    assert_eq!(two.talk().await, 1, "that he left is told");
    assert_eq!(two.alices.state(&room, "m.room.member", bob.as_str()).await.unwrap()["membership"], "leave");
    two.alices.say("alice", &room, "gone?").await.unwrap();
    assert_eq!(two.talk().await, 0);
    // Who is not there any more answers for nothing.
    let asked = Asked { origin: server_name!("hearth.test"), room: &room, event: &end };
    assert!(matches!(two.bobs.state_ids_for_peer(asked).await, Err(QueryError::UnknownRoom)));
    // And comes back.
    two.bob_joins(&room, false).await;
    two.agree(&room).await;
    two.alices.say("alice", &room, "again").await.unwrap();
    assert_eq!(two.talk().await, 1);
}

#[tokio::test]
async fn members_that_were_left_out_are_asked_for_later() {
    let mut two = Two::new().await;
    let room = two.alices.room("alice", Preset::PublicChat).await;
    two.alices.set("alice", &room, "m.room.name", "", json!({ "name": "Tea" })).await.unwrap();
    for n in 0..20 {
        two.alices.join(&format!("user{n}"), &room).await.unwrap();
    }
    two.talk().await;
    let answer = two.bob_joins(&room, true).await;
    assert_eq!(answer.servers_in_room.len(), 1);
    // The room works meanwhile: what Bob says goes to the servers that he was told of.
    two.bob_says(&room, "who is here?").await;
    assert_eq!(two.talk().await, 1);
    let late = two.bob_says(&room, "anyone?").await;
    let join = answer.event.event_id().to_owned();
    let asked = Asked { origin: &two.remote.name, room: &room, event: &join };
    let full = two.alices.rooms.state_for_peer(asked).await.unwrap();
    let info = two.alices.rooms.room(&room).await.unwrap().unwrap();
    let all = |pdus: &[hearth_dag::Pdu]| pdus.iter().map(|pdu| arrived(&info, pdu)).collect();
    two.bobs.complete_state(&room, all(&full.pdus), all(&full.auth_chain)).await.unwrap();
    two.agree(&room).await;
    // What was said before and not sent yet goes to those who are there now.
    two.alices.say("alice", &room, "all of us").await.unwrap();
    assert_eq!(two.talk().await, 2);
    assert_eq!(two.alices.by_id(&room, &late).await.status(), Status::Accepted);
}

#[tokio::test]
async fn an_invite_is_turned_down_and_given_again() {
    let mut two = Two::new().await;
    let room = two.alices.room("alice", Preset::PrivateChat).await;
    let bob = two.bob();
    let membership = async |rooms: &Rooms, who: &UserId| {
        let info = rooms.room(&room).await.unwrap().unwrap();
        rooms.membership_row(who, info.sn).await.unwrap().unwrap().membership
    };
    for comes in [false, true] {
        let invite = Invite {
            room: room.clone(),
            sender: user("alice"),
            user: bob.clone(),
            profile: profile("bob"),
            reason: None,
            is_direct: false,
        };
        let prepared = two.alices.rooms.prepare_invite(&invite).await.unwrap();
        let raw = |json: &str| RawValue::from_string(json.to_owned()).unwrap();
        let state: Vec<Box<RawValue>> =
            prepared.invite_room_state.iter().map(|pdu| raw(pdu.json())).collect();
        let request = serve::ReceivedInvite {
            origin: server_name!("hearth.test"),
            room: &room,
            event: prepared.pdu.event_id(),
            rules: prepared.room.rules,
            pdu: ReceivedPdu::parse(prepared.room.rules, prepared.pdu.json()).unwrap(),
            room_state: &state,
            keys: &keys(),
        };
        let signed = two.bobs.sign_invite(request).unwrap();
        let told = OutOfBand {
            room_id: room.clone(),
            version: prepared.room.version.clone(),
            event: VerifiedPdu::built_here(signed.pdu.clone()),
            state: signed.stripped_state.iter().map(|json| raw(json)).collect(),
        };
        two.bobs.receive_out_of_band(&told).await.unwrap();
        let answer = ReceivedPdu::parse(prepared.room.rules, signed.pdu.json()).unwrap();
        two.alices.rooms.append_invite(&prepared, &answer, &keys(), Commit::new()).await.unwrap();
        assert_eq!(membership(&two.bobs, &bob).await, Membership::Invite);
        assert_eq!(membership(&two.alices.rooms, &bob).await, Membership::Invite);
        if comes {
            two.bob_joins(&room, false).await;
            two.agree(&room).await;
        } else {
            two.remote.leave(&two.alices, "bob", &room).await.unwrap();
            two.bobs.leave_out_of_band(&bob, &room).await.unwrap();
            assert_eq!(membership(&two.bobs, &bob).await, Membership::Leave);
            assert_eq!(membership(&two.alices.rooms, &bob).await, Membership::Leave);
        }
    }
    two.talk().await;
    two.alices.say("alice", &room, "welcome").await.unwrap();
    assert_eq!(two.talk().await, 1);
}
