//! Questions about things of other servers: neither one who asks nor one server that is slow takes all places.

mod world;

use std::{net::IpAddr, sync::Arc, time::Duration};

use hearth_dag::{LocalServers, Signer};
use hearth_federation::{
    Asker, LOOKUP_PATIENCE, LOOKUPS_AT_ONCE, NetworkError, RemoteRooms, RequestError, UNREACHABLE_TIME,
};
use hearth_rooms::{Rooms, RoomsOptions, SystemClock};
use hearth_store::Store;
use ruma::{OwnedUserId, UserId};
use tokio::{task::JoinSet, time::Instant};

use world::{World, key, ok};

async fn here(world: &Arc<World>) -> RemoteRooms {
    let store = Store::memory().await;
    let federation = world.federation("here.test", &store, |_| ());
    let servers = LocalServers::new([key("here.test", "1") as Arc<dyn Signer>]);
    let rooms = Rooms::new(store, servers, Arc::new(SystemClock), &RoomsOptions::default());
    RemoteRooms::start(federation, rooms)
}

fn address(last: u8) -> Asker {
    Asker::Address(IpAddr::from([192, 0, 2, last]))
}

fn user(name: &str, server: &str) -> OwnedUserId {
    UserId::parse(format!("@{name}:{server}")).unwrap()
}

/// So many questions of one asker to a server, that go on.
async fn asks(remote: &RemoteRooms, who: &Asker, server: &str, times: usize) -> JoinSet<bool> {
    let mut open = JoinSet::new();
    for number in 0..times {
        let (remote, who, user) = (remote.clone(), who.clone(), user(&format!("u{number}"), server));
        open.spawn(async move {
            let answer = remote.profile(&who, &user).await;
            matches!(answer, Err(RequestError::Network(NetworkError::Busy)))
        });
    }
    tokio::time::sleep(Duration::from_millis(10)).await;
    open
}

#[tokio::test(start_paused = true)]
async fn a_slow_server_and_who_asks_for_it_hold_up_nobody_else() {
    let world = World::new();
    world.answers("good.test", |_| ok(r#"{"displayname":"Good"}"#));
    for slow in ["slow.test", "slow2.test", "slow3.test"] {
        world.answers(slow, |_| ok("{}"));
        world.delays.lock().insert(slow.to_owned(), Duration::from_secs(25));
    }
    let remote = here(&world).await;
    // One client, all servers it can think of; then other clients, all for one server.
    let mut open = vec![asks(&remote, &address(1), "slow.test", 2 * LOOKUPS_AT_ONCE).await];
    open.push(asks(&remote, &address(1), "slow2.test", 2 * LOOKUPS_AT_ONCE).await);
    for client in 2..5 {
        open.push(asks(&remote, &address(client), "slow.test", LOOKUPS_AT_ONCE).await);
    }
    assert!(world.times_asked("slow.test") + world.times_asked("slow2.test") < LOOKUPS_AT_ONCE);
    let started = Instant::now();
    let profile = remote.profile(&address(9), &user("bob", "good.test")).await.unwrap();
    assert_eq!(profile["displayname"], "Good");
    assert!(started.elapsed() < Duration::from_secs(1));
    // Whoever found no place in time was refused; the others get their answers.
    let mut busy = 0;
    for mut open in open {
        while let Some(was_busy) = open.join_next().await {
            busy += usize::from(was_busy.unwrap());
        }
    }
    assert!(busy > 0);
    assert!(started.elapsed() < Duration::from_secs(30));
    assert_eq!(asks(&remote, &address(1), "good.test", 1).await.join_next().await.unwrap().ok(), Some(false));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_cannot_be_reached_is_left_alone_for_a_moment() {
    let world = World::new();
    let remote = here(&world).await;
    let alias = ruma::room_alias_id!("#a:gone.test");
    for last in 1..20 {
        remote.resolve_alias(&address(last), alias).await.unwrap_err();
        remote.public_rooms(&address(last), alias.server_name(), "{}").await.unwrap_err();
    }
    assert_eq!(world.times_asked("gone.test"), 1);
    world.answers("gone.test", |_| ok(r##"{"room_id":"!r:gone.test","servers":["gone.test"]}"##));
    tokio::time::sleep(UNREACHABLE_TIME).await;
    remote.resolve_alias(&address(1), alias).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_finds_no_place_waits_for_a_moment_and_looks_again() {
    let world = World::new();
    world.answers("busy.test", |_| ok(r#"{"displayname":"Busy"}"#));
    world.delays.lock().insert("busy.test".to_owned(), LOOKUP_PATIENCE / 2);
    let remote = here(&world).await;
    let mut open = asks(&remote, &address(1), "busy.test", LOOKUPS_AT_ONCE / 2).await;
    let before = world.times_asked("busy.test");
    assert_eq!(before, LOOKUPS_AT_ONCE / 2);
    // What others find out meanwhile is not asked for again; anything else is.
    let (who, held, new) = (address(1), user("u0", "busy.test"), user("new", "busy.test"));
    let (held, new) = tokio::join!(remote.profile(&who, &held), remote.profile(&who, &new));
    assert_eq!(held.unwrap()["displayname"], "Busy");
    assert_eq!(new.unwrap()["displayname"], "Busy");
    assert_eq!(world.times_asked("busy.test"), before + 1);
    while let Some(was_busy) = open.join_next().await {
        assert!(!was_busy.unwrap());
    }
    // Nor is a server asked that could not be reached meanwhile.
    let mut open = asks(&remote, &address(2), "busy.test", LOOKUPS_AT_ONCE).await;
    let before = world.times_asked("busy.test");
    world.gone("busy.test");
    while open.join_next().await.is_some() {}
    assert_eq!(world.times_asked("busy.test"), before);
    // Where no place is free in time, one is told to come again.
    world.answers("slow.test", |_| ok("{}"));
    world.delays.lock().insert("slow.test".to_owned(), LOOKUP_PATIENCE * 3);
    let _open = asks(&remote, &address(3), "slow.test", LOOKUPS_AT_ONCE / 2).await;
    let began = Instant::now();
    let refused = remote.profile(&address(3), &user("late", "slow.test")).await;
    assert!(matches!(refused, Err(RequestError::Network(NetworkError::Busy))), "{refused:?}");
    assert_eq!(began.elapsed(), LOOKUP_PATIENCE);
}
