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
    inbound::{BYTES_WAITING_MAX, FETCHING_AT_ONCE, GIVEN_UP_AFTER, UNCHECKED_TIME_MS, WAITING_PER_ORIGIN},
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

/// A server that publishes its keys, and tells this state before one event, or all of them, but none of its events.
fn tells_state(world: &Arc<World>, server: &str, before: Option<&Pdu>, ids: Value) {
    let (key, world_too) = (key(server, "1"), world.clone());
    // Its first character is written in another way.
    let before = before.map_or_else(String::new, |event| event.event_id().as_str()[1..].to_owned());
    let is_it = move |query: Option<&str>| query.is_some_and(|query| query.contains(&before));
    world.answers(server, move |request| match request.uri().path() {
        path if path.contains("/state_ids/") && is_it(request.uri().query()) => ok(ids.to_string()),
        path if path.contains("/state/") => ok(r#"{"pdus":[],"auth_chain":[]}"#),
        path if path.contains("/key/") => ok(hearth_federation::server_keys(&key, &[], world_too.now_ms())),
        _ => world::status(404, r#"{"errcode":"M_NOT_FOUND"}"#),
    });
}

/// The state behind the last event of a room, which is one of it, and its auth chain.
async fn state_behind_head(home: &Home, room: &OwnedRoomId, origin: &str) -> (Vec<String>, Vec<String>) {
    let info = home.info(room).await;
    let head = home.rooms.head(info.sn).await.unwrap().unwrap().value;
    let head = home.rooms.events().load(&info, head.extremities[0]).await.unwrap();
    let asked = Asked { origin: &name(origin), room, event: head.pdu.event_id() };
    let state = home.rooms.state_ids_for_peer(asked).await.unwrap();
    let before = state.pdu_ids.iter().map(ToString::to_string);
    let behind = before.chain([head.pdu.event_id().to_string()]).collect();
    (behind, state.auth_chain_ids.iter().map(ToString::to_string).collect())
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
    // In a room that has no place, nothing else waits for one.
    let last = slow.last().unwrap();
    hands_over(&inbound, "peer.test", "last", &last[..1]).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    for event in last {
        assert_eq!(home.status(event).await, Some(Status::Accepted));
    }
}

#[tokio::test(start_paused = true)]
async fn what_can_be_decided_is_while_it_is_fetched_for_others() {
    let world = World::new();
    let (home, inbound) = here(&world).await;
    let room = room_with_bob(&world, &home).await;
    Fake::new(&world, "quick.test").join(&home, "carol", &room).await;
    world.publishes("quick.test", "1", &[]);
    let (bob, carol) = (<&UserId>::try_from(BOB).unwrap(), user_id!("@carol:quick.test"));
    // Their keys are known from here on.
    hands_over(&inbound, "peer.test", "first", &home.messages(&room, bob, &["hello"]).await).await;
    hands_over(&inbound, "quick.test", "first", &home.messages(&room, carol, &["hello"]).await).await;
    let lacking = home.messages(&room, bob, &["never given", "after it"]).await;
    let events = home.messages(&room, carol, &["1", "2"]).await;
    for server in ["peer.test", "quick.test"] {
        world.delays.lock().insert(server.into(), Duration::from_secs(25));
    }
    hands_over(&inbound, "peer.test", "lacking", &lacking[1..]).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    hands_over(&inbound, "quick.test", "2", &events[1..]).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    hands_over(&inbound, "quick.test", "1", &events[..1]).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    for event in &events {
        assert_eq!(home.status(event).await, Some(Status::Accepted));
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_server_holds_up_nothing_of_others_in_its_room() {
    let world = World::new();
    let (home, inbound) = here(&world).await;
    let room = room_with_bob(&world, &home).await;
    Fake::new(&world, "quick.test").join(&home, "carol", &room).await;
    let bob = <&UserId>::try_from(BOB).unwrap();
    hands_over(&inbound, "peer.test", "first", &home.messages(&room, bob, &["hello"]).await).await;
    let lacking = home.messages(&room, bob, &["never given", "after it"]).await;
    let events = home.messages(&room, user_id!("@carol:quick.test"), &["1", "2"]).await;
    tells_missing(&world, "quick.test", &events[0]);
    world.delays.lock().insert("peer.test".into(), Duration::from_secs(25));
    hands_over(&inbound, "peer.test", "lacking", &lacking[1..]).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    hands_over(&inbound, "quick.test", "1", &events[1..]).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    for event in &events {
        assert_eq!(home.status(event).await, Some(Status::Accepted));
    }
}

#[tokio::test(start_paused = true)]
async fn a_gap_that_cannot_be_closed_makes_no_other_one_deep() {
    let world = World::new();
    let (home, inbound) = here(&world).await;
    let room = room_with_bob(&world, &home).await;
    let bob = <&UserId>::try_from(BOB).unwrap();
    let hopeless = home.messages(&room, bob, &["never given", "after it"]).await;
    hands_over(&inbound, "peer.test", "hopeless", &hopeless[1..]).await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    let events = home.messages(&room, bob, &["1", "2"]).await;
    tells_missing(&world, "peer.test", &events[0]);
    hands_over(&inbound, "peer.test", "gap", &events[1..]).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    for event in &events {
        assert_eq!(home.status(event).await, Some(Status::Accepted));
    }
    assert_eq!(home.rooms.queued_events(&room).await.unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn who_floods_a_room_takes_nobody_their_turn() {
    let world = World::new();
    let (home, inbound) = here(&world).await;
    let room = room_with_bob(&world, &home).await;
    Fake::new(&world, "quick.test").join(&home, "carol", &room).await;
    world.publishes("quick.test", "1", &[]);
    let state = state_behind_head(&home, &room, "quick.test").await;
    let events = home.messages(&room, user_id!("@carol:quick.test"), &["never given", "after it"]).await;
    hands_over(&inbound, "quick.test", "1", &events[1..]).await;
    for number in 0..30 {
        if number == 6 {
            let (pdu_ids, auth_chain_ids) = &state;
            let state = json!({ "pdu_ids": pdu_ids, "auth_chain_ids": auth_chain_ids });
            tells_state(&world, "quick.test", Some(&events[1]), state);
        }
        let mut flood = Vec::new();
        for one in 0..6 {
            let texts = [format!("never given {number} {one}"), "after it".to_owned()];
            let bob = <&UserId>::try_from(BOB).unwrap();
            flood.push(home.messages(&room, bob, &texts.each_ref().map(String::as_str)).await.remove(1));
        }
        hands_over(&inbound, "peer.test", &number.to_string(), &flood).await;
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
    assert_eq!(home.status(&events[1]).await, Some(Status::Accepted));
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_place_for_a_whole_state_has_their_time_after_it() {
    let world = World::new();
    let (home, inbound) = here(&world).await;
    let mut waiting = Vec::new();
    for server in ["slow1.test", "slow2.test", "quick.test"] {
        // Rooms of the same moment are the same room.
        tokio::time::sleep(Duration::from_millis(1)).await;
        let room = home.room().await;
        let fake = Fake::new(&world, server);
        fake.join(&home, "carol", &room).await;
        let (pdu_ids, _) = state_behind_head(&home, &room, server).await;
        let unknown: Vec<_> = (0..101).map(|number| format!("$unknown{number}")).collect();
        tells_state(&world, server, None, json!({ "pdu_ids": pdu_ids, "auth_chain_ids": unknown }));
        let carol = fake.user("carol");
        hands_over(&inbound, server, "first", &home.messages(&room, &carol, &["hello"]).await).await;
        waiting.push(home.messages(&room, &carol, &["never given", "after it"]).await.remove(1));
    }
    let takes = |server: &str, seconds: u64| {
        world.delays.lock().insert(server.to_owned(), Duration::from_secs(seconds));
    };
    for (server, event) in ["slow1.test", "slow2.test"].iter().zip(&waiting) {
        takes(server, 1);
        hands_over(&inbound, server, "slow", std::slice::from_ref(event)).await;
    }
    // They have told what the states are by then, and are asked for all of them next.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    ["slow1.test", "slow2.test"].iter().for_each(|server| takes(server, 165));
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    takes("quick.test", 20);
    hands_over(&inbound, "quick.test", "quick", &waiting[2..]).await;
    tokio::time::sleep(Duration::from_secs(187)).await;
    assert_eq!(home.status(&waiting[2]).await, Some(Status::Accepted));
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
    let (pdu_ids, auth_chain_ids) = state_behind_head(&home, &room, "peer.test").await;
    let state = json!({ "pdu_ids": pdu_ids, "auth_chain_ids": auth_chain_ids });
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

#[tokio::test(start_paused = true)]
async fn large_transactions_of_some_servers_leave_room_for_those_of_others() {
    let world = World::new();
    let (home, inbound) = here(&world).await;
    let room = room_with_bob(&world, &home).await;
    let of_nobody = home.messages(&room, user_id!("@mallory:n.tarpit.test"), &["hello"]).await;
    let body = |size: usize| format!(r#"{{"pdus":[{}],"more":"{}"}}"#, of_nobody[0].json(), "x".repeat(size));
    // Together they take up all that there is.
    let (servers, around) = (4, body(0).len());
    let body = Bytes::from(body(BYTES_WAITING_MAX / (servers * WAITING_PER_ORIGIN) - around));
    let mut busy = tokio::task::JoinSet::new();
    for server in 0..servers {
        for txn in 0..WAITING_PER_ORIGIN {
            let (inbound, body, server) = (inbound.clone(), body.clone(), name(&format!("o{server}.test")));
            busy.spawn(async move { inbound.transaction(&server, &txn.to_string(), body).await.map(drop) });
        }
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let events = home.messages(&room, <&UserId>::try_from(BOB).unwrap(), &["hello"]).await;
    hands_over(&inbound, "peer.test", "1", &events).await;
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
