//! The sender on a network of fakes and a paused clock: what leaves, when, in what order, and what a failing server costs.
#![allow(clippy::unwrap_used)]

mod world;

use std::time::Duration;

use hearth_federation::{
    sender::{EDUS_MAX, PDUS_MAX, must_arrive},
    tables::{BEHIND, MUST_ARRIVE, SENT_UP_TO},
};
use hearth_rooms::{Removal, Remove};
use hearth_store::{Commit, Order, Store};
use hearth_users::{DeviceListUpdate, NewReceipt, ReceiptKind};
use ruma::{events::receipt::ReceiptThread, presence::PresenceState};
use serde_json::json;
use tokio::time::sleep;
use world::{
    World,
    home::{Fake, Home, counted, user},
    status,
};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

async fn rows(store: &Store) -> usize {
    store.range(&BEHIND, BEHIND.all(), Order::Forward, 10_000).await.unwrap().len()
}

fn numbers(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| n.to_string()).collect()
}

/// A room with one peer in it, which has heard nothing yet.
async fn with_peer(world: &std::sync::Arc<World>, home: &Home) -> (ruma::OwnedRoomId, Fake) {
    let (room, peer) = (home.room().await, Fake::new(world, "peer.test"));
    peer.join(home, "bob", &room).await;
    sleep(SECOND).await;
    peer.forgets();
    (room, peer)
}

#[tokio::test(start_paused = true)]
async fn an_event_leaves_at_once_as_it_is_stored() {
    let world = World::new();
    let home = Home::new(&world).await;
    let (room, peer) = with_peer(&world, &home).await;
    let before = world.started.elapsed();
    let said = home.say(&room, "hello").await;
    sleep(Duration::from_millis(2)).await;
    let [(at, transaction)] = &peer.transactions()[..] else { panic!("one transaction") };
    assert!(u128::from(*at) - before.as_millis() <= 1, "the network takes a millisecond, nothing else does");
    let info = home.rooms.room(&room).await.unwrap().unwrap();
    let stored = home.rooms.events().by_id(&info, &said).await.unwrap().unwrap();
    let sent: serde_json::Value = serde_json::from_str(stored.pdu.json()).unwrap();
    assert_eq!(transaction["pdus"], json!([sent]));
    assert_eq!(transaction["origin"], "home.test");
    assert!(transaction.get("edus").is_none() && transaction["origin_server_ts"].is_u64());
    // Nobody is in this one but us.
    let alone = home.room().await;
    home.say(&alone, "to myself").await;
    sleep(SECOND).await;
    assert_eq!(peer.transactions().len(), 1);
    let paths: Vec<String> = world.asked.lock().clone();
    assert!(paths.last().unwrap().starts_with("peer.test PUT /_matrix/federation/v1/send/"));
}

#[tokio::test(start_paused = true)]
async fn what_comes_while_one_is_under_way_goes_together_in_order() {
    let world = World::new();
    let home = Home::new(&world).await;
    let (room, peer) = with_peer(&world, &home).await;
    world.delays.lock().insert("peer.test".into(), SECOND);
    for n in 0..120 {
        home.say(&room, &n.to_string()).await;
        tokio::task::yield_now().await;
    }
    sleep(5 * SECOND).await;
    assert_eq!(peer.heard(), numbers(0..120));
    let sizes: Vec<usize> = peer
        .transactions()
        .iter()
        .map(|(_, transaction)| transaction["pdus"].as_array().unwrap().len())
        .collect();
    assert!(sizes.iter().all(|size| *size <= PDUS_MAX), "{sizes:?}");
    assert_eq!(sizes[1..], [50, 50, 120 - 100 - sizes[0]], "{sizes:?}");
    let starts: Vec<u64> = peer.transactions().iter().map(|(at, _)| *at).collect();
    assert!(starts.windows(2).all(|two| two[1] - two[0] >= 1_000), "one at a time: {starts:?}");
    assert_eq!(rows(&home.store).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_down_costs_a_row_per_room_and_the_others_nothing() {
    let world = World::new();
    let home = Home::new(&world).await;
    let (room, peer) = with_peer(&world, &home).await;
    let other = Fake::new(&world, "other.test");
    let second = home.room().await;
    for room in [&room, &second] {
        other.join(&home, "carol", room).await;
    }
    peer.join(&home, "bob", &second).await;
    sleep(SECOND).await;
    peer.is_down();
    for fake in [&peer, &other] {
        fake.forgets();
    }
    let asked = world.times_asked("peer.test");
    for n in 0..20 {
        home.say([&room, &second][n % 2], &n.to_string()).await;
        sleep(Duration::from_millis(3)).await;
        assert_eq!(other.heard().len(), n + 1, "each at once");
    }
    assert_eq!(rows(&home.store).await, 2);
    assert_eq!(world.times_asked("peer.test"), asked + 1, "it is left alone");
    assert_eq!(home.sender.status().resting, 1);
    assert_eq!(home.sender.status().queued, 0);
    // Tried again, less and less often.
    sleep(Duration::from_secs(600)).await;
    let tries = world.times_asked("peer.test") - asked;
    assert!((5..=7).contains(&tries), "after 30 s, 60 s, 120 s, 240 s: {tries}");
    peer.is_up();
    sleep(Duration::from_secs(600)).await;
    let (even, odd): (Vec<_>, Vec<_>) =
        numbers(0..20).into_iter().partition(|n| n.parse::<u8>().unwrap() % 2 == 0);
    assert_eq!((peer.heard_in(&room), peer.heard_in(&second)), (even, odd));
    assert_eq!(rows(&home.store).await, 0);
    assert_eq!(home.federation.destinations().failing(&peer.name).await.unwrap(), None);
    // And goes on as if nothing had been.
    home.say(&room, "back").await;
    sleep(Duration::from_millis(2)).await;
    assert_eq!(peer.heard().last().unwrap(), "back");
    assert_eq!(other.heard(), [numbers(0..20), vec!["back".into()]].concat());
}

#[tokio::test(start_paused = true)]
async fn a_sign_of_life_wakes_a_server_at_once() {
    let world = World::new();
    let home = Home::new(&world).await;
    let (room, peer) = with_peer(&world, &home).await;
    peer.is_down();
    home.say(&room, "are you there?").await;
    sleep(SECOND).await;
    peer.is_up();
    sleep(SECOND).await;
    assert!(peer.heard().is_empty());
    home.federation.destinations().alive(&peer.name).await.unwrap();
    sleep(Duration::from_millis(5)).await;
    assert_eq!(peer.heard(), ["are you there?"]);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_breaks_is_tried_again_at_once() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let world = World::new();
    let home = Home::new(&world).await;
    let (room, peer) = with_peer(&world, &home).await;
    let broken = AtomicBool::new(false);
    peer.answers(move |_| match broken.swap(true, Ordering::SeqCst) {
        false => Err(hearth_federation::NetworkError::Broken("closed".into())),
        true => world::ok("{}"),
    });
    home.say(&room, "hello").await;
    sleep(Duration::from_millis(5)).await;
    assert_eq!(peer.heard(), ["hello"]);
    let asked = world.asked.lock().clone();
    let [.., first, second] = &asked[..] else { panic!("{asked:?}") };
    assert_eq!(first, second, "the same transaction");
    assert_eq!(rows(&home.store).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_restart_goes_on_where_it_ended() {
    let world = World::new();
    let home = Home::new(&world).await;
    let (room, peer) = with_peer(&world, &home).await;
    home.say(&room, "sent").await;
    sleep(Duration::from_millis(5)).await;
    home.sender.close().await;
    home.say(&room, "not yet").await;
    sleep(SECOND).await;
    assert_eq!(peer.heard(), ["sent"]);
    let home = Home::on(&world, home.store);
    sleep(SECOND).await;
    assert_eq!(peer.heard(), ["sent", "not yet"]);
    // What is owed survives as well.
    peer.is_down();
    home.say(&room, "owed").await;
    sleep(SECOND).await;
    home.sender.close().await;
    peer.is_up();
    let home = Home::on(&world, home.store);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(peer.heard(), ["sent", "not yet", "owed"]);
    // The cursor is written without a clean end, too, a little later.
    sleep(2 * SECOND).await;
    assert_eq!(home.store.get(&SENT_UP_TO, &()).await.unwrap(), Some(home.store.watermark()));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_hangs_is_given_up_at_the_end_and_sent_to_again() {
    let world = World::new();
    let home = Home::new(&world).await;
    let (room, peer) = with_peer(&world, &home).await;
    world.delays.lock().insert("peer.test".into(), Duration::from_secs(3_000));
    home.say(&room, "hello?").await;
    sleep(SECOND).await;
    let before = world.started.elapsed();
    home.sender.close().await;
    assert!(world.started.elapsed() - before < 5 * SECOND);
    world.delays.lock().clear();
    let _home = Home::on(&world, home.store);
    sleep(SECOND).await;
    assert_eq!(peer.heard(), ["hello?"]);
}

#[tokio::test(start_paused = true)]
async fn after_a_long_outage_only_the_latest_is_sent() {
    let world = World::new();
    let home = Home::new(&world).await;
    let (room, peer) = with_peer(&world, &home).await;
    peer.is_down();
    for n in 0..1_500 {
        home.say(&room, &n.to_string()).await;
    }
    sleep(SECOND).await;
    peer.is_up();
    sleep(Duration::from_secs(60)).await;
    assert_eq!(peer.heard(), numbers(1_450..1_500));
    assert_eq!(rows(&home.store).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_only_slow_is_sent_everything() {
    let world = World::new();
    let home = Home::new(&world).await;
    let (room, peer) = with_peer(&world, &home).await;
    let other = Fake::new(&world, "other.test");
    other.join(&home, "carol", &room).await;
    sleep(SECOND).await;
    world.delays.lock().insert("peer.test".into(), 5 * SECOND);
    for n in 0..2_500 {
        home.say(&room, &n.to_string()).await;
        tokio::task::yield_now().await;
        assert!(home.sender.status().queued <= 2_000);
    }
    sleep(SECOND).await;
    assert_eq!(other.heard(), numbers(0..2_500));
    sleep(Duration::from_secs(600)).await;
    let heard = peer.heard();
    let wanted = numbers(0..2_500);
    let counts = counted(&heard);
    assert!(wanted.iter().all(|n| counts.contains_key(n.as_str())), "nothing is missing");
    assert!(heard.len() <= 2_500 + PDUS_MAX, "and little is sent twice: {}", heard.len());
    assert_eq!(rows(&home.store).await, 0);
    world.delays.lock().clear();
    home.say(&room, "now").await;
    sleep(6 * SECOND).await;
    assert_eq!(peer.heard().last().unwrap(), "now");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_only_slow_is_sent_everything_also_after_a_start() {
    let world = World::new();
    let home = Home::new(&world).await;
    let (room, peer) = with_peer(&world, &home).await;
    world.delays.lock().insert("peer.test".into(), 5 * SECOND);
    for n in 0..2_500 {
        home.say(&room, &n.to_string()).await;
        tokio::task::yield_now().await;
    }
    sleep(SECOND).await;
    assert_eq!(rows(&home.store).await, 1, "it is behind");
    home.sender.close().await;
    let home = Home::on(&world, home.store);
    sleep(Duration::from_secs(600)).await;
    let heard = peer.heard();
    let counts = counted(&heard);
    let missing: Vec<String> =
        numbers(0..2_500).into_iter().filter(|n| !counts.contains_key(n.as_str())).collect();
    assert!(missing.is_empty(), "{missing:?}");
    assert_eq!(rows(&home.store).await, 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_kept_of_strangers_goes() {
    let world = World::new();
    let home = Home::new(&world).await;
    let (room, peer) = with_peer(&world, &home).await;
    peer.join(&home, "dora", &room).await;
    let (bob, dora, nobody) = (peer.user("bob"), peer.user("dora"), peer.user("nobody"));
    for user in [&bob, &dora, &nobody] {
        let update = DeviceListUpdate {
            user,
            device: "PHONE".into(),
            display_name: None,
            stream_id: 1,
            prev_ids: &[],
            deleted: false,
            keys: None,
        };
        home.users.note_remote_device(&update).await.unwrap();
    }
    let kept = async || home.users.remote_users(None, 10).await.unwrap();
    sleep(11 * MINUTE).await;
    assert_eq!(kept().await, [bob.as_str(), dora.as_str()]);
    home.kick(&bob, &room).await;
    sleep(11 * MINUTE).await;
    assert_eq!(kept().await, [dora.as_str()]);
    // She is still there, and nobody of ours is.
    let (sender, removal) = (user("alice"), Removal::Leave);
    let leave = Remove { room, user: sender.clone(), sender, removal, reason: None };
    home.rooms.remove(&leave, Commit::new()).await.unwrap();
    sleep(11 * MINUTE).await;
    assert!(kept().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn who_is_put_out_is_told_so_even_if_it_was_away() {
    let world = World::new();
    let home = Home::new(&world).await;
    let (room, peer) = with_peer(&world, &home).await;
    home.kick(&peer.user("bob"), &room).await;
    home.say(&room, "he is gone").await;
    sleep(SECOND).await;
    let all = peer.transactions();
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].1["pdus"][0]["content"]["membership"], "leave");
    peer.join(&home, "bob", &room).await;
    sleep(SECOND).await;
    peer.is_down();
    peer.forgets();
    home.say(&room, "before").await;
    sleep(SECOND).await;
    home.kick(&peer.user("bob"), &room).await;
    for n in 0..1_200 {
        home.say(&room, &n.to_string()).await;
    }
    peer.is_up();
    sleep(Duration::from_secs(60)).await;
    let [(_, transaction)] = &peer.transactions()[..] else { panic!("one transaction") };
    assert_eq!(transaction["pdus"][0]["content"]["body"], "before");
    assert_eq!(transaction["pdus"][1]["content"]["membership"], "leave");
    assert_eq!(transaction["pdus"].as_array().unwrap().len(), 2);
    assert_eq!(rows(&home.store).await, 0);
}

#[tokio::test(start_paused = true)]
async fn an_event_that_is_refused_blocks_nothing() {
    let world = World::new();
    let home = Home::new(&world).await;
    let (room, peer) = with_peer(&world, &home).await;
    peer.answers(|transaction| {
        let ids = transaction["pdus"].as_array().unwrap().len();
        assert!(ids > 0);
        world::ok(json!({ "pdus": { "$any": { "error": "no" } } }).to_string())
    });
    for text in ["one", "two"] {
        home.say(&room, text).await;
        sleep(SECOND).await;
    }
    assert_eq!(peer.heard(), ["one", "two"]);
}

#[tokio::test(start_paused = true)]
async fn a_transaction_that_is_refused_is_made_smaller_until_the_culprit_is_found() {
    let world = World::new();
    let home = Home::new(&world).await;
    let (room, peer) = with_peer(&world, &home).await;
    peer.answers(|transaction| match transaction.to_string().contains("poison") {
        true => status(400, r#"{"errcode":"M_BAD_JSON","error":"no"}"#),
        false => world::ok("{}"),
    });
    for n in 0..40 {
        home.say(&room, if n == 17 { "poison" } else { "good" }).await;
    }
    let mut commit = Commit::new();
    for n in 0..5 {
        let content = if n == 3 { "poison".to_owned() } else { n.to_string() };
        must_arrive(&mut commit, &peer.name, &json!({ "edu_type": "m.x", "content": content }).to_string());
    }
    home.store.commit(commit).await.unwrap();
    sleep(Duration::from_secs(120)).await;
    assert_eq!(peer.heard(), vec!["good"; 39]);
    assert_eq!(rows(&home.store).await, 0);
    let messages: Vec<_> = peer.edus().into_iter().map(|(_, content)| content).collect();
    assert_eq!(messages, ["0", "1", "2", "4"]);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_says_no_is_left_alone_for_longer_each_time() {
    let world = World::new();
    let home = Home::new(&world).await;
    let (room, peer) = with_peer(&world, &home).await;
    peer.answers(|_| status(403, r#"{"errcode":"M_FORBIDDEN","error":"no"}"#));
    let asked = world.times_asked("peer.test");
    home.say(&room, "please").await;
    sleep(Duration::from_secs(600)).await;
    let tries = world.times_asked("peer.test") - asked;
    assert!((5..=7).contains(&tries), "{tries}");
    peer.is_up();
    sleep(Duration::from_secs(1_000)).await;
    assert_eq!(peer.heard(), ["please"]);
}

#[tokio::test(start_paused = true)]
async fn messages_that_must_arrive_do() {
    let world = World::new();
    let home = Home::new(&world).await;
    let peer = Fake::new(&world, "peer.test");
    let left = async |count: usize| {
        for n in 0..count {
            let mut commit = Commit::new();
            must_arrive(&mut commit, &peer.name, &json!({ "edu_type": "m.x", "content": n }).to_string());
            home.store.commit(commit).await.unwrap();
        }
    };
    let got = || peer.edus().into_iter().map(|(_, content)| content.as_u64().unwrap()).collect::<Vec<_>>();
    let stored = async |store: &Store| {
        store.range(&MUST_ARRIVE, MUST_ARRIVE.all(), Order::Forward, 1_000).await.unwrap().len()
    };
    sleep(SECOND).await;
    left(3).await;
    sleep(SECOND).await;
    assert_eq!(got(), [0, 1, 2]);
    assert_eq!(stored(&home.store).await, 0);
    peer.is_down();
    peer.forgets();
    left(250).await;
    sleep(SECOND).await;
    assert_eq!(stored(&home.store).await, 250);
    home.sender.close().await;
    peer.is_up();
    let home = Home::on(&world, home.store.clone());
    sleep(Duration::from_secs(60)).await;
    assert_eq!(got(), (0..250).collect::<Vec<u64>>());
    assert_eq!(stored(&home.store).await, 0);
    let sizes = peer.transactions().into_iter().map(|(_, all)| all["edus"].as_array().unwrap().len());
    assert!(sizes.into_iter().all(|size| size <= EDUS_MAX));
}

#[tokio::test(start_paused = true)]
async fn typing_receipts_and_presence_are_told() {
    let world = World::new();
    let home = Home::new(&world).await;
    let (room, peer) = with_peer(&world, &home).await;
    let said = home.say(&room, "hello").await;
    sleep(SECOND).await;
    peer.forgets();
    let alice = user("alice");
    home.users.typing().set(&room, &alice, Some(Duration::from_secs(60)));
    sleep(Duration::from_millis(5)).await;
    let typing =
        |types: bool| ("m.typing".to_owned(), json!({ "room_id": room, "user_id": alice, "typing": types }));
    assert_eq!(peer.edus(), [typing(true)]);
    // While it goes on it is told again, and its end.
    sleep(Duration::from_secs(40)).await;
    assert_eq!(peer.edus(), [typing(true), typing(true)]);
    sleep(Duration::from_secs(30)).await;
    assert_eq!(peer.edus().last().unwrap(), &typing(false));
    // Those of peers are not ours to tell.
    peer.forgets();
    home.users.typing().set(&room, &peer.user("bob"), Some(Duration::from_secs(5)));
    sleep(Duration::from_secs(10)).await;
    assert!(peer.edus().is_empty());

    let receipt = |kind, thread| NewReceipt { kind, event_id: said.clone(), thread, ts: 5, order: None };
    let mine = [
        receipt(ReceiptKind::Read, ReceiptThread::Unthreaded),
        receipt(ReceiptKind::ReadPrivate, ReceiptThread::Unthreaded),
    ];
    home.users.set_receipts(&room, &alice, &mine, None).await.unwrap();
    let bobs = [receipt(ReceiptKind::Read, ReceiptThread::Main)];
    home.users.set_receipts(&room, &peer.user("bob"), &bobs, None).await.unwrap();
    sleep(SECOND).await;
    let read = json!({ (alice.as_str()): { "data": { "ts": 5 }, "event_ids": [said] } });
    assert_eq!(peer.edus(), [("m.receipt".to_owned(), json!({ (room.as_str()): { "m.read": read } }))]);

    peer.forgets();
    home.users.presence().set(&alice, PresenceState::Online, Some("here".into()));
    home.users.presence().set(&peer.user("bob"), PresenceState::Online, None);
    sleep(2 * SECOND).await;
    let [(kind, content)] = &peer.edus()[..] else { panic!("{:?}", peer.edus()) };
    assert_eq!(kind, "m.presence");
    let [told] = &content["push"].as_array().unwrap()[..] else { panic!("{content}") };
    assert_eq!((&told["user_id"], &told["presence"]), (&json!(alice), &json!("online")));
    assert_eq!(told["status_msg"], "here");
}

#[tokio::test(start_paused = true)]
async fn what_need_not_arrive_is_not_kept_for_those_who_are_down() {
    let world = World::new();
    let home = Home::new(&world).await;
    let (room, peer) = with_peer(&world, &home).await;
    peer.is_down();
    let asked = world.times_asked("peer.test");
    for n in 0..10 {
        home.users.typing().set(&room, &user("alice"), (n % 2 == 0).then_some(SECOND));
        sleep(SECOND / 2).await;
    }
    assert_eq!(world.times_asked("peer.test"), asked + 1);
    assert_eq!(rows(&home.store).await, 0);
    peer.is_up();
    home.federation.destinations().alive(&peer.name).await.unwrap();
    sleep(SECOND).await;
    assert!(peer.edus().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_start_does_not_storm() {
    let world = World::new();
    let home = Home::new(&world).await;
    let room = home.room().await;
    let peers: Vec<Fake> = (0..60).map(|n| Fake::new(&world, &format!("p{n}.test"))).collect();
    for peer in &peers {
        peer.join(&home, "bob", &room).await;
    }
    sleep(SECOND).await;
    peers.iter().for_each(Fake::is_down);
    home.say(&room, "wake up").await;
    sleep(SECOND).await;
    assert_eq!(rows(&home.store).await, 60);
    home.sender.close().await;
    // All their times have come.
    sleep(Duration::from_secs(60)).await;
    for peer in &peers {
        peer.forgets();
        peer.is_up();
    }
    let before = world.started.elapsed().as_millis() as u64;
    let _home = Home::on(&world, home.store);
    sleep(Duration::from_secs(60)).await;
    let mut at: Vec<u64> = peers.iter().map(|peer| peer.transactions()[0].0 - before).collect();
    assert!(peers.iter().all(|peer| peer.heard() == ["wake up"]));
    at.sort();
    assert!(at[30] - at[0] >= 500 && at[59] - at[0] >= 1_000, "{at:?}");
}

#[tokio::test(start_paused = true)]
async fn servers_that_never_answer_leave_places_for_the_others() {
    let world = World::new();
    let home = Home::new(&world).await;
    let room = home.room().await;
    let dead: Vec<Fake> = (0..100).map(|n| Fake::new(&world, &format!("dead{n}.test"))).collect();
    let good = Fake::new(&world, "good.test");
    for peer in dead.iter().chain([&good]) {
        peer.join(&home, "bob", &room).await;
    }
    sleep(SECOND).await;
    for peer in &dead {
        peer.is_down();
        world.delays.lock().insert(peer.name.to_string(), Duration::from_secs(60));
    }
    for n in 0..300 {
        home.say(&room, &n.to_string()).await;
        sleep(SECOND).await;
        assert_eq!(good.heard().len(), n + 1);
    }
    assert_eq!(rows(&home.store).await, 100);
    // All of them are known by one row for the room, and nothing is held for them.
    assert_eq!(home.sender.status().queued, 0);
}
