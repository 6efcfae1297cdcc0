//! What others send to one server: events that lack others, whose keys cannot be had, or that come before their room does.
#![allow(clippy::unwrap_used)]

#[path = "simulation/answering.rs"]
mod answering;
mod world;

use std::{sync::Arc, time::Duration};

use answering::Answering;
use async_trait::async_trait;
use bytes::Bytes;
use hearth_dag::Pdu;
use hearth_federation::{
    Inbound, Limits, Network, NetworkError, Patience,
    inbound::{FETCHING_AT_ONCE, GIVEN_UP_AFTER, UNCHECKED_TIME_MS},
    tables::UNCHECKED,
};
use hearth_rooms::{Join, Profile, RoomsOptions, Status, serve::Asked};
use hearth_store::{Order, Store};
use http::{Request, Response};
use parking_lot::Mutex;
use ruma::{OwnedRoomId, ServerName, UserId, user_id};
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use world::{
    HOUR, World,
    home::{Fake, Home, transaction},
    key, name, ok,
    server::{Plan, Server, tokio_clock},
};

const BOB: &str = "@bob:peer.test";

async fn here(world: &Arc<World>) -> (Home, Inbound) {
    let home = Home::new(world).await;
    let inbound = Inbound::new(home.federation.clone(), home.rooms.clone(), home.users.clone());
    (home, inbound)
}

/// A room of ours with Bob in it.
async fn room_with_bob(world: &Arc<World>, home: &Home) -> OwnedRoomId {
    let room = home.room().await;
    Fake::new(world, "peer.test").join(home, "bob", &room).await;
    world.publishes("peer.test", "1", &[]);
    room
}

async fn hands_over(inbound: &Inbound, origin: &str, txn: &str, events: &[Pdu]) -> Value {
    let answer = inbound.transaction(&name(origin), txn, transaction(origin, events)).await.unwrap();
    serde_json::from_slice(&answer).unwrap()
}

/// A server that publishes its keys, and tells this event where one is missing.
fn tells_missing(world: &Arc<World>, server: &str, event: &Pdu) {
    let (event, key, world_too) = (event.json().to_owned(), key(server, "1"), world.clone());
    world.answers(server, move |request| match request.uri().path() {
        path if path.contains("get_missing_events") => ok(format!(r#"{{"events":[{event}]}}"#)),
        path if path.contains("/key/") => ok(hearth_federation::server_keys(&key, &[], world_too.now_ms())),
        _ => world::status(404, r#"{"errcode":"M_NOT_FOUND"}"#),
    });
}

#[tokio::test(start_paused = true)]
async fn the_slow_rooms_of_one_server_leave_places_to_those_of_others() {
    let world = World::new();
    let (home, inbound) = here(&world).await;
    let bob = <&UserId>::try_from(BOB).unwrap();
    let mut slow = Vec::new();
    for _ in 0..FETCHING_AT_ONCE + 4 {
        // Rooms of the same moment are the same room.
        tokio::time::sleep(Duration::from_millis(1)).await;
        let room = room_with_bob(&world, &home).await;
        slow.push(home.messages(&room, bob, &["never given", "after it"]).await);
    }
    // Its keys are known from here on.
    hands_over(&inbound, "peer.test", "first", &slow[0][..1]).await;
    world.delays.lock().insert("peer.test".into(), Duration::from_secs(20));
    for (number, events) in slow[1..].iter().enumerate() {
        hands_over(&inbound, "peer.test", &number.to_string(), &events[1..]).await;
    }
    tokio::time::sleep(Duration::from_millis(10)).await;
    let room = home.room().await;
    Fake::new(&world, "quick.test").join(&home, "carol", &room).await;
    let events = home.messages(&room, user_id!("@carol:quick.test"), &["1", "2"]).await;
    tells_missing(&world, "quick.test", &events[0]);
    hands_over(&inbound, "quick.test", "1", &events[1..]).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    for event in &events {
        assert_eq!(home.status(event).await, Some(Status::Accepted));
    }
}

/// What can be had comes in, and what cannot is given up in its time, however much happens in the room meanwhile.
#[tokio::test(start_paused = true)]
async fn an_event_that_lacks_another_is_given_up_alone_and_not_before_its_time() {
    let world = World::new();
    let (home, inbound) = here(&world).await;
    let room = room_with_bob(&world, &home).await;
    let bob = <&UserId>::try_from(BOB).unwrap();
    let lacking = home.messages(&room, bob, &["never given", "after it"]).await;
    let began = Instant::now();
    hands_over(&inbound, "peer.test", "lacking", &lacking[1..]).await;
    for number in 0..60 {
        let events = home.messages(&room, bob, &[&number.to_string()]).await;
        hands_over(&inbound, "peer.test", &number.to_string(), &events).await;
        assert_eq!(home.status(&events[0]).await, Some(Status::Accepted));
        tokio::time::sleep(GIVEN_UP_AFTER / 61).await;
    }
    let late = home.messages(&room, bob, &["late", "later"]).await;
    hands_over(&inbound, "peer.test", "late", &late[1..]).await;
    let waiting = home.rooms.queued_events(&room).await.unwrap();
    assert_eq!(waiting.len(), 2, "{:?}", began.elapsed());
    tokio::time::sleep(GIVEN_UP_AFTER / 3).await;
    let waiting = home.rooms.queued_events(&room).await.unwrap();
    assert_eq!(waiting.len(), 1);
    assert_eq!(waiting[0].0.pdu().event_id(), late[1].event_id());
    tokio::time::sleep(GIVEN_UP_AFTER).await;
    assert!(home.rooms.queued_events(&room).await.unwrap().is_empty());
}

/// Where an event between is none that the room's version knows, what follows it comes in with the state behind it.
#[tokio::test(start_paused = true)]
async fn an_event_between_that_is_none_is_passed_over() {
    let world = World::new();
    let (home, inbound) = here(&world).await;
    let room = room_with_bob(&world, &home).await;
    let bob = <&UserId>::try_from(BOB).unwrap();
    let events = home.messages(&room, bob, &["a number that is none", "after it"]).await;
    let mut bad: Value = serde_json::from_str(events[0].json()).unwrap();
    bad["content"]["number"] = json!(1.5);
    let peer = name("peer.test");
    let info = home.info(&room).await;
    let head = home.rooms.head(info.sn).await.unwrap().unwrap().value;
    let head = home.rooms.events().load(&info, head.extremities[0]).await.unwrap();
    let asked = Asked { origin: &peer, room: &room, event: head.pdu.event_id() };
    let state = home.rooms.state_ids_for_peer(asked).await.unwrap();
    // The state behind Bob's join is that before it, and the join.
    let mut ids: Vec<_> = state.pdu_ids.iter().map(ToString::to_string).collect();
    ids.push(head.pdu.event_id().to_string());
    let state = json!({ "pdu_ids": ids, "auth_chain_ids": state.auth_chain_ids });
    let (peer_key, clock) = (key("peer.test", "1"), world.clone());
    world.answers("peer.test", move |request| match request.uri().path() {
        path if path.contains("get_missing_events") => ok(json!({ "events": [bad] }).to_string()),
        path if path.contains("state_ids") => ok(state.to_string()),
        path if path.contains("/key/") => ok(hearth_federation::server_keys(&peer_key, &[], clock.now_ms())),
        _ => world::status(404, r#"{"errcode":"M_NOT_FOUND"}"#),
    });
    hands_over(&inbound, "peer.test", "1", &events[1..]).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(home.status(&events[0]).await, None);
    assert_eq!(home.status(&events[1]).await, Some(Status::Accepted));
}

#[tokio::test(start_paused = true)]
async fn an_event_that_cannot_be_checked_is_given_up_a_day_after_it_first_came() {
    let world = World::new();
    let (home, inbound) = here(&world).await;
    let room = room_with_bob(&world, &home).await;
    Fake::new(&world, "lost.test").join(&home, "dora", &room).await;
    world.gone("lost.test");
    let events = home.messages(&room, user_id!("@dora:lost.test"), &["who knows"]).await;
    let waiting = async || {
        let rows = home.rooms.store().range(&UNCHECKED, UNCHECKED.all(), Order::Forward, 9).await.unwrap();
        rows.len()
    };
    let kept = json!({ events[0].event_id().as_str(): {} });
    let hour = Duration::from_secs(3600);
    let day = Duration::from_millis(UNCHECKED_TIME_MS);
    for number in 0..4 {
        let answer = hands_over(&inbound, "peer.test", &number.to_string(), &events).await;
        assert_eq!(answer["pdus"], kept);
        assert_eq!(waiting().await, 1);
        tokio::time::sleep((day - hour) / 4).await;
    }
    tokio::time::sleep(hour * 2).await;
    assert_eq!(waiting().await, 0, "its time went on while it was sent again");
    let answer = hands_over(&inbound, "peer.test", "again", &events).await;
    assert_ne!(answer["pdus"], kept, "its sender hears that it is not taken");
    assert_eq!(waiting().await, 0);
    // Unless the keys can be had.
    world.passes(26 * HOUR);
    world.publishes("lost.test", "1", &[]);
    tokio::time::sleep(hour).await;
    let answer = hands_over(&inbound, "peer.test", "at last", &events).await;
    assert_eq!(answer["pdus"], kept);
    assert_eq!(home.status(&events[0]).await, Some(Status::Accepted));
}

#[tokio::test(start_paused = true)]
async fn a_bad_copy_of_what_cannot_be_checked_keeps_out_no_good_one() {
    let world = World::new();
    let (home, inbound) = here(&world).await;
    let room = room_with_bob(&world, &home).await;
    Fake::new(&world, "lost.test").join(&home, "dora", &room).await;
    Fake::new(&world, "other.test").join(&home, "eve", &room).await;
    world.publishes("other.test", "1", &[]);
    world.gone("lost.test");
    let events = home.messages(&room, user_id!("@dora:lost.test"), &["hello"]).await;
    let mut garbled: Value = serde_json::from_str(events[0].json()).unwrap();
    garbled["signatures"]["lost.test"]["ed25519:1"] = json!("A".repeat(86));
    let body = json!({ "origin": "peer.test", "origin_server_ts": 1, "pdus": [garbled] }).to_string();
    inbound.transaction(&name("peer.test"), "1", Bytes::from(body)).await.unwrap();
    let answer = hands_over(&inbound, "other.test", "1", &events).await;
    assert_eq!(answer["pdus"], json!({ events[0].event_id().as_str(): {} }));
    world.passes(3 * HOUR);
    world.publishes("lost.test", "1", &[]);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(home.status(&events[0]).await, Some(Status::Accepted));
}

/// A network in which the server that lets another one in is faster with what comes next than with its answer.
struct Hasty {
    home: Home,
    room: OwnedRoomId,
    answers: Answering,
    joiner: Mutex<Option<Inbound>>,
}

#[async_trait]
impl Network for Hasty {
    async fn send(
        &self,
        to: &ServerName,
        request: Request<Bytes>,
        _: Limits,
    ) -> Result<Response<Bytes>, NetworkError> {
        if to != "home.test" {
            return Err(NetworkError::Timeout);
        }
        let answer = self.answers.answers("here.test", &request).await;
        let joiner = self.joiner.lock().clone();
        if let Some(joiner) = joiner.filter(|_| request.uri().path().contains("send_join")) {
            let said = self.home.say(&self.room, "welcome").await;
            let info = self.home.info(&self.room).await;
            let said = self.home.rooms.events().by_id(&info, &said).await;
            hands_over(&joiner, "home.test", "welcome", &[said.unwrap().unwrap().pdu.clone()]).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        Ok(answer)
    }

    async fn fetch(&self, _: &str, _: Limits) -> Result<Response<Bytes>, NetworkError> {
        Err(NetworkError::Timeout)
    }
}

fn plan(server: &str, store: Store, network: Arc<dyn Network>) -> Plan {
    let (clock, patience) = (tokio_clock(), Patience::default());
    Plan { name: server.to_owned(), store, network, clock, patience, rooms: RoomsOptions::default() }
}

#[tokio::test(start_paused = true)]
async fn what_comes_before_the_answer_to_our_join_is_not_lost() {
    let (world, store) = (World::new(), Store::memory().await);
    let home = Home::on(&world, store.clone());
    let room = home.room().await;
    // Its endpoints, on the same store.
    let resident = Server {
        key: key("home.test", "1"),
        clock: tokio_clock(),
        store: store.clone(),
        rooms: home.rooms.clone(),
        users: home.users.clone(),
        federation: world.federation("home.test", &store, |_| ()),
        inbound: Inbound::new(home.federation.clone(), home.rooms.clone(), home.users.clone()),
        remote_rooms: hearth_federation::RemoteRooms::start(home.federation.clone(), home.rooms.clone()),
        sender: home.sender.clone(),
    };
    world.publishes("here.test", "1", &[]);
    let answers = Answering::of(&resident);
    let network = Arc::new(Hasty { home, room: room.clone(), answers, joiner: Mutex::default() });
    let here = Server::start(plan("here.test", Store::memory().await, network.clone()));
    *network.joiner.lock() = Some(here.inbound.clone());
    let user = user_id!("@erin:here.test").to_owned();
    let profile = Profile::default();
    let join = Join { room: room.clone(), user, profile, reason: None, custom: Map::new() };
    here.remote_rooms.join(join, vec![name("home.test")]).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let info = here.rooms.room(&room).await.unwrap().unwrap();
    let head = here.rooms.head(info.sn).await.unwrap().unwrap().value;
    let last = here.rooms.events().load(&info, head.extremities[0]).await.unwrap();
    assert!(last.pdu.json().contains("welcome"), "{}", last.pdu.json());
}
