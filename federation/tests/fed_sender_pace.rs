//! The sender and those who are slow, silent or many, on a network of fakes and a paused clock: who waits for whom, what goes
//! together, and what is told again.
#![allow(clippy::unwrap_used)]

mod world;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;

use hearth_federation::{
    EARLY_EVERY,
    sender::{EDUS_MAX, QUICK_WITHIN, SENDING_AT_ONCE, must_arrive},
};
use hearth_store::{Commit, Data, Engine, Pending, Progress, Scan, Store, StoreError};
use hearth_users::{NewReceipt, ReceiptKind};
use ruma::{OwnedEventId, OwnedRoomId, events::receipt::ReceiptThread, presence::PresenceState};
use serde_json::json;
use tokio::time::{Instant, sleep};
use world::{
    World,
    home::{Fake, Home, user},
};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
/// What an event takes to a server in order: the network takes a millisecond.
const NORMAL: Duration = Duration::from_millis(5);

/// A room with peers in it, which have heard nothing yet.
async fn room_of(world: &Arc<World>, home: &Home, names: &[String]) -> (OwnedRoomId, Vec<Fake>) {
    let room = home.room().await;
    let peers: Vec<Fake> = names.iter().map(|name| Fake::new(world, name)).collect();
    for peer in &peers {
        peer.join(home, "bob", &room).await;
    }
    sleep(SECOND).await;
    peers.iter().for_each(Fake::forgets);
    (room, peers)
}

/// Rooms of fifty servers each, together more than are sent to at once.
async fn more_than_there_are_places(
    world: &Arc<World>,
    home: &Home,
    name: &str,
) -> (Vec<OwnedRoomId>, Vec<Fake>) {
    let (mut rooms, mut all) = (Vec::new(), Vec::new());
    while all.len() <= SENDING_AT_ONCE {
        let names: Vec<String> = (0..50).map(|n| format!("{name}{n}.r{}.test", rooms.len())).collect();
        let (room, peers) = room_of(world, home, &names).await;
        rooms.push(room);
        all.extend(peers);
    }
    (rooms, all)
}

/// A disk whose ranges cannot be read at times.
struct Disk {
    store: Store,
    fails: AtomicBool,
}

impl Disk {
    async fn before(store: &Store) -> (Arc<Self>, Store) {
        let disk = Arc::new(Self { store: store.clone(), fails: AtomicBool::new(false) });
        (disk.clone(), Store::on(disk).await.unwrap())
    }
}

#[async_trait]
impl Engine for Disk {
    async fn get(&self, key: &[u8]) -> Result<Option<Data>, StoreError> {
        self.store.engine().get(key).await
    }

    async fn multi_get(&self, keys: &[Vec<u8>]) -> Result<Vec<Option<Data>>, StoreError> {
        self.store.engine().multi_get(keys).await
    }

    async fn range(&self, scan: Scan<'_>) -> Result<Vec<(Data, Data)>, StoreError> {
        match self.fails.load(Ordering::SeqCst) {
            true => Err(StoreError::Engine("a bad sector".to_owned())),
            false => self.store.engine().range(scan).await,
        }
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

/// Alice has read a room up to an event.
async fn reads(home: &Home, room: &OwnedRoomId, event_id: OwnedEventId) {
    let (kind, thread) = (ReceiptKind::Read, ReceiptThread::Unthreaded);
    let read = NewReceipt { kind, event_id, thread, ts: 5, order: None };
    home.users.set_receipts(room, &user("alice"), &[read], None).await.unwrap();
}

/// How many messages with receipts a fake was sent.
fn receipts(peer: &Fake) -> usize {
    peer.edus().into_iter().filter(|(kind, _)| kind == "m.receipt").count()
}

/// The receipts that a fake was told, in order: of which room and user, and the event.
fn receipts_by_user(peer: &Fake) -> Vec<((String, String), String)> {
    let mut all = Vec::new();
    for (_, content) in peer.edus().into_iter().filter(|(kind, _)| kind == "m.receipt") {
        for (room, receipts) in content.as_object().unwrap() {
            for (user, receipt) in receipts["m.read"].as_object().unwrap() {
                let event = receipt["event_ids"][0].as_str().unwrap();
                all.push(((room.clone(), user.clone()), event.to_owned()));
            }
        }
    }
    all
}

/// The presences that a fake was told, as user and state.
fn presences(peer: &Fake) -> Vec<(String, String)> {
    let told = peer.edus().into_iter().filter(|(kind, _)| kind == "m.presence");
    let all = told.flat_map(|(_, content)| content["push"].as_array().unwrap().clone());
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    all.map(|one| (text(&one["user_id"]), text(&one["presence"]))).collect()
}

#[tokio::test(start_paused = true)]
async fn those_who_never_answer_hold_no_place_of_those_who_do() {
    let world = World::new();
    let home = Home::new(&world).await;
    let (rooms, silent) = more_than_there_are_places(&world, &home, "silent").await;
    let (room, good) = room_of(&world, &home, &["good.test".to_owned()]).await;
    let good = &good[0];
    // All of them answered until now. They still accept connections, and ask us things, but never answer.
    for peer in &silent {
        peer.is_down();
        world.delays.lock().insert(peer.name.to_string(), MINUTE);
    }
    let asked = world.asked.lock().len();
    let start = Instant::now();
    for room in &rooms {
        home.say(room, "hello").await;
    }
    home.say(&room, "first").await;
    // Nobody could know; but this is found out quickly.
    sleep(3 * QUICK_WITHIN).await;
    assert_eq!(good.heard(), ["first"]);
    good.forgets();
    for round in 0..120 {
        for room in rooms.iter().filter(|_| round % 12 == 0) {
            home.say(room, "hello again").await;
        }
        for peer in silent.iter().filter(|_| round % 2 == 0) {
            home.federation.destinations().heard_from(&peer.name).await.unwrap();
        }
        home.say(&room, &round.to_string()).await;
        sleep(NORMAL).await;
        assert_eq!(good.heard().len(), round + 1, "at once, each time");
        sleep(5 * SECOND).await;
    }
    // And each of them was tried now and then, not for each sign of life.
    let intervals = start.elapsed().as_secs() / EARLY_EVERY.as_secs();
    let asked = world.asked.lock()[asked..].to_vec();
    for peer in &silent {
        let tries = asked.iter().filter(|line| line.starts_with(&format!("{} ", peer.name))).count();
        assert!(tries >= 1 && tries as u64 <= intervals, "{}: {tries}", peer.name);
    }
}

#[tokio::test(start_paused = true)]
async fn who_asks_all_the_time_and_cannot_be_reached_is_tried_now_and_then() {
    let world = World::new();
    let home = Home::new(&world).await;
    let (room, peers) = room_of(&world, &home, &["peer.test".to_owned()]).await;
    peers[0].is_down();
    let asked = world.times_asked("peer.test");
    for n in 0..600 {
        home.say(&room, &n.to_string()).await;
        home.federation.destinations().heard_from(&peers[0].name).await.unwrap();
        sleep(SECOND).await;
    }
    let tries = world.times_asked("peer.test") - asked;
    let expected = 600 / usize::try_from(EARLY_EVERY.as_secs()).unwrap();
    assert!((expected - 1..=expected + 2).contains(&tries), "{tries}");
    peers[0].is_up();
    home.federation.destinations().heard_from(&peers[0].name).await.unwrap();
    sleep(EARLY_EVERY).await;
    assert_eq!(peers[0].heard().last().unwrap(), "599");
}

#[tokio::test(start_paused = true)]
async fn who_takes_long_is_sent_everything_without_being_in_the_way() {
    let world = World::new();
    let home = Home::new(&world).await;
    let (rooms, slow) = more_than_there_are_places(&world, &home, "slow").await;
    let (room, good) = room_of(&world, &home, &["good.test".to_owned()]).await;
    for peer in &slow {
        world.delays.lock().insert(peer.name.to_string(), 20 * SECOND);
    }
    let said = |n: usize| format!("to the slow {n}");
    for n in 0..40 {
        for room in &rooms {
            home.say(room, &said(n)).await;
        }
        home.say(&room, &n.to_string()).await;
        sleep(if n == 0 { 3 * QUICK_WITHIN } else { NORMAL }).await;
        assert_eq!(good[0].heard().len(), n + 1);
        sleep(SECOND).await;
    }
    // With 60 places, each comes to its turn every three minutes.
    sleep(15 * MINUTE).await;
    let wanted: Vec<String> = (0..40).map(said).collect();
    for peer in &slow {
        let mut heard = peer.heard();
        heard.dedup();
        assert_eq!(heard, wanted, "{}", peer.name);
    }
    assert!(slow.iter().all(|peer| peer.transactions().len() < 10), "and what waits goes together");
}

#[tokio::test(start_paused = true)]
async fn after_a_start_nobody_waits_for_those_who_are_dead() {
    let world = World::new();
    let home = Home::new(&world).await;
    // Their names come first.
    let (rooms, dead) = more_than_there_are_places(&world, &home, "dead").await;
    let (room, quick) = room_of(&world, &home, &["quick.test".to_owned()]).await;
    let (_, slow) = room_of(&world, &home, &["slow.test".to_owned()]).await;
    for peer in &dead {
        peer.is_down();
        world.delays.lock().insert(peer.name.to_string(), MINUTE);
    }
    for room in &rooms {
        home.say(room, "nobody hears this").await;
    }
    sleep(30 * MINUTE).await;
    home.sender.close().await;
    world.delays.lock().insert("slow.test".to_owned(), 20 * SECOND);
    let mut commit = Commit::new();
    must_arrive(&mut commit, &slow[0].name, r#"{"edu_type":"m.x","content":{}}"#);
    home.store.commit(commit).await.unwrap();
    // All times have come.
    sleep(120 * MINUTE).await;
    let home = Home::on(&world, home.store.clone());
    for room in &rooms {
        home.say(room, "nor this").await;
    }
    home.say(&room, "hello").await;
    sleep(SECOND).await;
    assert_eq!(quick[0].heard(), ["hello"]);
    sleep(MINUTE).await;
    assert_eq!(slow[0].edus().len(), 1, "owed to it since before the start");
}

#[tokio::test(start_paused = true)]
async fn who_is_there_is_told_again_before_others_take_them_for_gone() {
    let world = World::new();
    let home = Home::new(&world).await;
    let (room, peers) = room_of(&world, &home, &["peer.test".to_owned()]).await;
    home.join("carol", &room).await;
    let _sync = home.users.presence().syncing(&user("alice"), &PresenceState::Online);
    drop(home.users.presence().syncing(&user("carol"), &PresenceState::Online));
    sleep(10 * MINUTE).await;
    // Both have come to rest: one is idle, one is gone.
    let told = presences(&peers[0]);
    let last = |name: &str| told.iter().rev().find(|(user, _)| user.contains(name)).unwrap().1.clone();
    assert_eq!((last("alice"), last("carol")), ("unavailable".into(), "offline".into()));
    peers[0].forgets();
    sleep(100 * MINUTE).await;
    let again = vec![(user("alice").to_string(), "unavailable".to_owned()); 4];
    assert_eq!(presences(&peers[0]), again);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_back_is_told_who_is_there() {
    let world = World::new();
    let home = Home::new(&world).await;
    let (room, peers) = room_of(&world, &home, &["peer.test".to_owned(), "other.test".to_owned()]).await;
    let [peer, other] = &peers[..] else { panic!("two") };
    let away = user("away");
    for name in ["carol", "away"] {
        home.join(name, &room).await;
    }
    let presence = home.users.presence();
    let _away = presence.syncing(&away, &PresenceState::Online);
    sleep(2 * SECOND).await;
    // In one case there are events for it, too; in the other not.
    for with_events in [true, false] {
        peer.is_down();
        if with_events {
            home.say(&room, "you miss this").await;
            sleep(SECOND).await;
        }
        let _here = presence.syncing(&user("alice"), &PresenceState::Online);
        presence.set(&user("carol"), PresenceState::Unavailable, Some("lunch".into()));
        presence.set(&away, PresenceState::Offline, None);
        sleep(5 * SECOND).await;
        peer.is_up();
        for fake in &peers {
            fake.forgets();
        }
        home.federation.destinations().heard_from(&peer.name).await.unwrap();
        sleep(5 * SECOND).await;
        let mut told = presences(peer);
        told.sort();
        told.dedup();
        let wanted = [("alice", "online"), ("away", "offline"), ("carol", "unavailable")];
        assert_eq!(told, wanted.map(|(name, state)| (user(name).to_string(), state.to_owned())));
        assert!(presences(peer).len() <= 6, "and not more often than twice");
        assert!(presences(other).is_empty(), "who missed nothing is told nothing");
        for name in ["alice", "carol"] {
            presence.forget(&user(name));
        }
        presence.set(&away, PresenceState::Online, None);
        sleep(3 * MINUTE).await;
    }
}

#[tokio::test(start_paused = true)]
async fn receipts_of_a_large_room_go_together() {
    let world = World::new();
    let home = Home::new(&world).await;
    let names: Vec<String> = (0..100).map(|n| format!("p{n}.test")).collect();
    let (room, peers) = room_of(&world, &home, &names).await;
    let mut last = None;
    let mut events = Vec::new();
    for n in 0..30 {
        events.push(home.say(&room, &n.to_string()).await);
    }
    sleep(SECOND).await;
    peers.iter().for_each(Fake::forgets);
    for event_id in events {
        last = Some(event_id.clone());
        reads(&home, &room, event_id).await;
        sleep(SECOND / 2).await;
        assert!(receipts(&peers[0]) > 0, "the first one at once");
    }
    sleep(3 * SECOND).await;
    for peer in &peers {
        // Fifteen seconds; a hundred servers at fifty transactions a second are two seconds from one to the next.
        assert!((7..=9).contains(&receipts(peer)), "{}", receipts(peer));
        let (_, newest) = peer.edus().pop().unwrap();
        assert_eq!(newest[room.as_str()]["m.read"][user("alice").as_str()]["event_ids"], json!([last]));
    }
    // In a small room nothing waits.
    let (small, pair) = room_of(&world, &home, &["pair.test".to_owned()]).await;
    for n in 0..5 {
        let event_id = home.say(&small, &n.to_string()).await;
        reads(&home, &small, event_id).await;
        sleep(SECOND / 2).await;
        assert_eq!(receipts(&pair[0]), n + 1);
    }
}

#[tokio::test(start_paused = true)]
async fn receipts_that_find_no_place_are_told_when_there_is_room() {
    let world = World::new();
    let home = Home::new(&world).await;
    let (first, peers) = room_of(&world, &home, &["peer.test".to_owned()]).await;
    let peer = &peers[0];
    let second = home.room().await;
    peer.join(&home, "bob", &second).await;
    let names: Vec<String> = (0..450).map(|n| format!("u{n}")).collect();
    for room in [&first, &second] {
        for name in &names {
            home.join(name, room).await;
        }
    }
    let (early, late) = (home.say(&first, "early").await, home.say(&first, "late").await);
    let other = home.say(&second, "other").await;
    sleep(MINUTE).await;
    peer.forgets();
    world.delays.lock().insert("peer.test".into(), 5 * SECOND);
    // All at once, then elsewhere while those are under way, and one of the first again.
    for (room, event_id, names) in
        [(&first, &early, &names[..]), (&second, &other, &names), (&first, &late, &names[..1])]
    {
        for name in names {
            let (kind, thread) = (ReceiptKind::Read, ReceiptThread::Unthreaded);
            let read = NewReceipt { kind, event_id: event_id.clone(), thread, ts: 5, order: None };
            home.users.set_receipts(room, &user(name), &[read], None).await.unwrap();
        }
        sleep(SECOND).await;
    }
    sleep(5 * MINUTE).await;
    let told = receipts_by_user(peer);
    let wanted = |room: &OwnedRoomId, event: &OwnedEventId| {
        let of = |name: &String| ((room.to_string(), user(name).to_string()), event.to_string());
        names.iter().map(of).collect::<Vec<_>>()
    };
    let mut all: BTreeMap<_, _> = wanted(&first, &early).into_iter().chain(wanted(&second, &other)).collect();
    all.insert((first.to_string(), user("u0").to_string()), late.to_string());
    let last: BTreeMap<_, _> = told.iter().cloned().collect();
    assert_eq!(last, all, "each, and the newest last");
    assert!(told.len() <= all.len() + 250, "and few of them twice: {}", told.len());
    let sizes = peer.transactions().into_iter().map(|(_, all)| all["edus"].as_array().unwrap().len());
    assert!(sizes.into_iter().all(|size| size <= EDUS_MAX));
    // Then all is as before, and at once.
    world.delays.lock().clear();
    sleep(MINUTE).await;
    peer.forgets();
    reads(&home, &first, late).await;
    sleep(SECOND).await;
    assert_eq!(receipts_by_user(peer).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_receipt_that_cannot_be_read_is_told_when_it_can() {
    let world = World::new();
    let (disk, store) = Disk::before(&Store::memory().await).await;
    let home = Home::on(&world, store);
    let (room, peers) = room_of(&world, &home, &["peer.test".to_owned()]).await;
    let said = home.say(&room, "hello").await;
    sleep(SECOND).await;
    disk.fails.store(true, Ordering::SeqCst);
    reads(&home, &room, said).await;
    sleep(5 * SECOND).await;
    assert_eq!(receipts(&peers[0]), 0);
    disk.fails.store(false, Ordering::SeqCst);
    sleep(2 * SECOND).await;
    assert_eq!(receipts(&peers[0]), 1);
}

#[tokio::test(start_paused = true)]
async fn typing_and_receipts_do_not_wait_behind_presence() {
    let world = World::new();
    let home = Home::new(&world).await;
    let (room, peers) = room_of(&world, &home, &["peer.test".to_owned()]).await;
    let peer = &peers[0];
    let names: Vec<String> = (0..400).map(|n| format!("u{n}")).collect();
    for name in &names {
        home.join(name, &room).await;
    }
    let said = home.say(&room, "hello").await;
    sleep(SECOND).await;
    peer.forgets();
    world.delays.lock().insert("peer.test".into(), 5 * SECOND);
    for name in &names {
        home.users.presence().set(&user(name), PresenceState::Online, None);
    }
    // A transaction is under way, and more presence waits than is held.
    sleep(2 * SECOND).await;
    home.users.typing().set(&room, &user("alice"), Some(MINUTE));
    reads(&home, &room, said).await;
    sleep(10 * SECOND).await;
    let [_, (_, next), ..] = &peer.transactions()[..] else { panic!("two transactions") };
    let kinds: Vec<&str> =
        next["edus"].as_array().unwrap().iter().map(|edu| edu["edu_type"].as_str().unwrap()).collect();
    assert_eq!(kinds[..2], ["m.typing", "m.receipt"], "before all presence");
}
