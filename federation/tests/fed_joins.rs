//! Servers that answer a join with something else than they should: nobody is let in by them, nothing is signed for them,
//! and the next server is asked.

mod world;

use std::sync::Arc;

use hearth_dag::{LocalServers, Signer};
use hearth_federation::{RemoteRoomError, RemoteRooms};
use hearth_rooms::{Join, Profile, Rooms, RoomsOptions, SystemClock};
use hearth_store::Store;
use http::Request;
use ruma::{room_id, user_id};
use serde_json::{Value, json};

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
