//! Servers that answer a join with something else than they should: nobody is let in by them, nothing is signed for them,
//! and the next server is asked.

mod world;

use std::{sync::Arc, time::Duration};

use hearth_dag::{LocalServers, Signer};
use hearth_federation::{
    RemoteRoomError, RemoteRooms,
    membership::{JOIN_BYTES, JOINS_AT_ONCE, JOINS_OF_A_USER, JOINS_THROUGH_A_SERVER},
};
use hearth_rooms::{Join, Profile, Rooms, RoomsOptions, SystemClock};
use hearth_store::Store;
use http::Request;
use ruma::{room_id, user_id};
use serde_json::{Map, Value, json};

use world::{World, key, name, ok, status};

/// A server without rooms of its own in this world, and what its user wants.
async fn here(world: &Arc<World>) -> (RemoteRooms, Join) {
    let store = Store::memory().await;
    let federation = world.federation("here.test", &store, |_| ());
    let servers = LocalServers::new([key("here.test", "1") as Arc<dyn Signer>]);
    let rooms = Rooms::new(store, servers, Arc::new(SystemClock), &RoomsOptions::default());
    let join = Join {
        room: room_id!("!r:far.test").to_owned(),
        user: user_id!("@alice:here.test").to_owned(),
        profile: Profile::default(),
        reason: None,
        custom: Map::new(),
    };
    (RemoteRooms::start(federation, rooms), join)
}

fn template() -> Value {
    json!({
        "room_version": "11",
        "event": {
            "type": "m.room.member", "sender": "@alice:here.test", "state_key": "@alice:here.test",
            "room_id": "!r:far.test", "content": { "membership": "join" },
            "depth": 5, "prev_events": ["$prev"], "auth_events": ["$create"],
        },
    })
}

/// A server that answers these to the two steps of a join.
fn resident(world: &World, server: &str, make_join: &Value, send_join: &Value) {
    let (make, send) = (make_join.to_string(), send_join.to_string());
    world.answers(server, move |request: &Request<_>| match request.uri().path() {
        path if path.contains("/make_join/") => ok(make.clone()),
        path if path.contains("/send_join/") => ok(send.clone()),
        _ => status(404, r#"{"errcode":"M_NOT_FOUND"}"#),
    });
}

fn asked(world: &World, what: &str) -> usize {
    world.asked.lock().iter().filter(|line| line.contains(what)).count()
}

async fn refused(world: &Arc<World>) -> RemoteRoomError {
    let (remote, join) = here(world).await;
    remote.join(join, vec![name("far.test")]).await.unwrap_err()
}

#[tokio::test(start_paused = true)]
async fn nothing_is_signed_for_a_template_of_something_else() {
    let changes: [(&str, Value); 8] = [
        ("/event/type", json!("m.room.power_levels")),
        ("/event/sender", json!("@bob:here.test")),
        ("/event/state_key", json!("@bob:here.test")),
        ("/event/room_id", json!("!other:far.test")),
        ("/event/content/membership", json!("ban")),
        ("/event/prev_events", json!("$prev")),
        ("/event/auth_events", json!(vec!["$a"; 11])),
        ("/room_version", json!("99")),
    ];
    for (place, value) in changes {
        let world = World::new();
        let mut template = template();
        *template.pointer_mut(place).unwrap() = value;
        resident(&world, "far.test", &template, &json!({}));
        let error = refused(&world).await;
        assert!(matches!(error, RemoteRoomError::NobodyHelps { asked: 1, .. }), "{place}: {error}");
        assert_eq!(asked(&world, "send_join"), 0, "{place}");
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_of_ours_lets_a_user_in_because_another_server_says_so() {
    for authoriser in ["@bob:here.test", "@bob:elsewhere.test"] {
        let world = World::new();
        let mut template = template();
        template["event"]["content"]["join_authorised_via_users_server"] = json!(authoriser);
        resident(&world, "far.test", &template, &json!({}));
        let error = refused(&world).await;
        assert!(matches!(error, RemoteRoomError::NobodyHelps { .. }), "{error}");
        assert_eq!(asked(&world, "send_join"), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_no_room_lets_nobody_in() {
    let event = json!({ "type": "m.room.create", "state_key": "", "content": {} });
    for answer in [
        json!({}),
        json!({ "state": [], "auth_chain": [] }),
        json!({ "state": [event], "auth_chain": [7, "x", null], "event": {} }),
        json!({ "state": [], "auth_chain": [], "members_omitted": true }),
        json!({ "state": [], "auth_chain": [], "members_omitted": true, "servers_in_room": ["far.test"] }),
    ] {
        let world = World::new();
        resident(&world, "far.test", &template(), &answer);
        let error = refused(&world).await;
        assert!(matches!(error, RemoteRoomError::NobodyHelps { asked: 1, .. }), "{answer}: {error}");
        assert_eq!(asked(&world, "send_join"), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_server_that_cannot_be_used_the_next_is_asked() {
    let world = World::new();
    resident(&world, "bad.test", &template(), &json!({ "state": [], "auth_chain": [] }));
    world.answers("far.test", |_| status(403, r#"{"errcode":"M_FORBIDDEN","error":"you are banned"}"#));
    let (remote, join) = here(&world).await;
    let via = ["bad.test", "gone.test", "far.test", "bad.test"].map(name).to_vec();
    let RemoteRoomError::Refused { server, error } = remote.join(join, via).await.unwrap_err() else {
        panic!("the most telling answer is the one that counts");
    };
    assert_eq!((server.as_str(), error.error.as_str()), ("far.test", "you are banned"));
    assert_eq!(asked(&world, "make_join"), 3, "each server once");
}

#[tokio::test(start_paused = true)]
async fn a_join_ends_also_when_nobody_answers() {
    struct Silent;
    #[async_trait::async_trait]
    impl hearth_federation::Network for Silent {
        async fn send(
            &self,
            _: &ruma::ServerName,
            _: Request<bytes::Bytes>,
            limits: hearth_federation::Limits,
        ) -> Result<http::Response<bytes::Bytes>, hearth_federation::NetworkError> {
            tokio::time::sleep(limits.timeout).await;
            Err(hearth_federation::NetworkError::Timeout)
        }

        async fn fetch(
            &self,
            _: &str,
            _: hearth_federation::Limits,
        ) -> Result<http::Response<bytes::Bytes>, hearth_federation::NetworkError> {
            Err(hearth_federation::NetworkError::Timeout)
        }
    }
    let world = World::new();
    let store = Store::memory().await;
    let federation = world.federation("here.test", &store, |options| options.network = Arc::new(Silent));
    let servers = LocalServers::new([key("here.test", "1") as Arc<dyn Signer>]);
    let rooms = Rooms::new(store, servers, Arc::new(SystemClock), &RoomsOptions::default());
    let (_, join) = here(&world).await;
    let via = (0..100).map(|number| name(&format!("s{number}.test"))).collect();
    let start = tokio::time::Instant::now();
    RemoteRooms::start(federation, rooms).join(join, via).await.unwrap_err();
    assert!(start.elapsed().as_secs() <= 60, "{:?}", start.elapsed());
}

/// Rooms of a server that lets joins begin and takes its time to answer them.
#[tokio::test(start_paused = true)]
async fn a_server_that_never_ends_a_join_holds_up_no_other() {
    let world = World::new();
    let (make, slow) = (template().to_string(), Duration::from_secs(40));
    for server in ["slow.test", "slow2.test"] {
        let make = make.clone();
        world.answers(server, move |request: &Request<_>| {
            let path = request.uri().path();
            let user = path.rsplit('/').next().unwrap().replace("%40", "@").replace("%3A", ":");
            let room = path.split('/').nth(5).unwrap().replace("%21", "!").replace("%3A", ":");
            let made = make.replace("@alice:here.test", &user).replace("!r:far.test", &room);
            if path.contains("/make_join/") { ok(made) } else { ok("{}") }
        });
        world.delays.lock().insert(server.to_owned(), slow);
    }
    resident(&world, "far.test", &template(), &json!({}));
    let (remote, join) = here(&world).await;
    let mut joining = tokio::task::JoinSet::new();
    for number in 0..4 * JOINS_AT_ONCE {
        let user = ruma::UserId::parse(format!("@u{number}:here.test")).unwrap();
        let room = ruma::RoomId::parse(format!("!r{number}:slow.test")).unwrap();
        let (remote, join) = (remote.clone(), Join { room, user, ..join.clone() });
        joining.spawn(async move { remote.join(join, vec![name("slow.test")]).await });
    }
    // They have their templates, and some of them wait for the room.
    tokio::time::sleep(slow + Duration::from_secs(5)).await;
    assert_eq!(asked(&world, "send_join"), JOINS_THROUGH_A_SERVER);
    let started = tokio::time::Instant::now();
    let error = remote.join(join.clone(), vec![name("far.test")]).await.unwrap_err();
    assert!(matches!(error, RemoteRoomError::NobodyHelps { asked: 1, .. }), "{error}");
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    joining.shutdown().await;
}

/// One user, very many rooms.
#[tokio::test(start_paused = true)]
async fn a_user_joins_few_rooms_at_once() {
    let world = World::new();
    let (remote, join) = here(&world).await;
    let mut joining = tokio::task::JoinSet::new();
    for number in 0..50 {
        let room = ruma::RoomId::parse(format!("!r{number}:n{number}.tarpit.test")).unwrap();
        let (remote, join) = (remote.clone(), Join { room, ..join.clone() });
        joining.spawn(async move { remote.join(join, Vec::new()).await });
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(asked(&world, "make_join"), JOINS_OF_A_USER);
    let mut busy = 0;
    while let Some(Ok(Err(RemoteRoomError::Busy(_)))) = joining.try_join_next() {
        busy += 1;
    }
    assert!(busy > 0, "the line is bounded");
    joining.shutdown().await;
}

/// An answer that is larger than ordinary ones is asked for again, with a place that few have.
#[tokio::test(start_paused = true)]
async fn a_large_answer_is_asked_for_in_its_turn() {
    let world = World::new();
    let (make, times) = (template().to_string(), Arc::new(std::sync::atomic::AtomicUsize::new(0)));
    world.answers("far.test", move |request: &Request<_>| {
        if request.uri().path().contains("/make_join/") {
            return ok(make.clone());
        }
        match times.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
            0 => Err(hearth_federation::NetworkError::TooLarge { max_bytes: JOIN_BYTES }),
            _ => ok("{}"),
        }
    });
    let (remote, join) = here(&world).await;
    let error = remote.join(join, vec![name("far.test")]).await.unwrap_err();
    assert!(matches!(error, RemoteRoomError::NobodyHelps { asked: 1, .. }), "{error}");
    assert_eq!(asked(&world, "send_join"), 2);
}
