//! Servers' keys: fetched once, kept, renewed, had from notaries, and given to others as a notary.

mod world;

use hearth_dag::{Draft, Keypair, Place, ReceivedPdu, RoomRules};
use hearth_federation::{
    ASKED_AGAIN_MS, Access, Federation, KeyLookupError, KeyNeeds, KeyQuery, STRANGERS_AT_ONCE,
};
use hearth_store::Store;
use ruma::{MilliSecondsSinceUnixEpoch, RoomVersionId, UInt};
use serde_json::{Value, json};

use world::{DAY, FROM, HOUR, NOW, World, is_signed_by, key, name, ok, old, signers};

async fn has_key(federation: &Federation, server: &str, version: &str) -> bool {
    match federation.keys().request_key(FROM, &name(server), &format!("ed25519:{version}")).await {
        Ok(_) => true,
        Err(KeyLookupError::Unknown { .. }) => false,
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test(start_paused = true)]
async fn keys_are_fetched_once_and_survive_a_restart() {
    let (world, store) = (World::new(), Store::memory().await);
    world.publishes("a.test", "1", &[]);
    let here = world.federation("here.test", &store, |_| ());
    let many = futures_util::future::join_all((0..100).map(|_| has_key(&here, "a.test", "1"))).await;
    assert!(many.iter().all(|known| *known));
    assert_eq!(*world.asked.lock(), ["a.test GET /_matrix/key/v2/server"]);
    world.gone("a.test");
    let again = world.federation("here.test", &store, |_| ());
    assert!(has_key(&again, "a.test", "1").await);
    assert_eq!(world.times_asked("a.test"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_fetch_goes_on_when_nobody_waits_any_more() {
    let (world, store) = (World::new(), Store::memory().await);
    world.publishes("a.test", "1", &[]);
    let here = world.federation("here.test", &store, |_| ());
    let wait = tokio::time::timeout(std::time::Duration::from_micros(1), has_key(&here, "a.test", "1"));
    assert!(wait.await.is_err());
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    world.gone("a.test");
    assert!(has_key(&here, "a.test", "1").await);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_fails_is_left_alone_for_longer_and_longer() {
    let (world, store) = (World::new(), Store::memory().await);
    let here = world.federation("here.test", &store, |_| ());
    let mut waits = Vec::new();
    for _ in 0..8 {
        let (before, mut seconds) = (world.times_asked("a.test"), 0);
        while world.times_asked("a.test") == before {
            assert!(!has_key(&here, "a.test", "1").await);
            tokio::time::advance(std::time::Duration::from_secs(5)).await;
            world.passes(5_000);
            seconds += 5;
        }
        waits.push(seconds - 5);
    }
    // Ten seconds, doubled, ten minutes at most; looked at every five seconds.
    assert_eq!(waits, [0, 10, 20, 40, 80, 160, 320, 600].map(|wait| if wait == 0 { 0 } else { wait - 5 }));
    world.publishes("a.test", "1", &[]);
    tokio::time::advance(std::time::Duration::from_secs(600)).await;
    assert!(has_key(&here, "a.test", "1").await);
}

#[tokio::test(start_paused = true)]
async fn a_new_key_is_asked_for_and_the_one_before_it_signs_no_requests() {
    let (world, store) = (World::new(), Store::memory().await);
    world.publishes("a.test", "1", &[]);
    let here = world.federation("here.test", &store, |_| ());
    assert!(has_key(&here, "a.test", "1").await);
    world.passes(ASKED_AGAIN_MS);
    world.publishes("a.test", "2", &[old(&key("a.test", "1"), NOW + 1)]);
    assert!(has_key(&here, "a.test", "2").await);
    assert_eq!(world.times_asked("a.test"), 2);
    assert!(!has_key(&here, "a.test", "1").await, "it is old");
    // Made-up key IDs do not make us ask each time.
    for version in 0..100 {
        assert!(!has_key(&here, "a.test", &format!("nonsense{version}")).await);
    }
    assert_eq!(world.times_asked("a.test"), 2);
    world.passes(ASKED_AGAIN_MS);
    assert!(!has_key(&here, "a.test", "nonsense").await);
    assert_eq!(world.times_asked("a.test"), 3);
}

#[tokio::test(start_paused = true)]
async fn a_key_is_renewed_when_its_validity_ends() {
    let (world, store) = (World::new(), Store::memory().await);
    world.publishes("a.test", "1", &[]);
    let here = world.federation("here.test", &store, |_| ());
    assert!(has_key(&here, "a.test", "1").await);
    world.passes(DAY);
    assert!(has_key(&here, "a.test", "1").await, "published keys are good for a day");
    assert_eq!(world.times_asked("a.test"), 1);
    world.passes(1);
    assert!(has_key(&here, "a.test", "1").await);
    assert_eq!(world.times_asked("a.test"), 2);
    world.passes(2 * DAY);
    world.gone("a.test");
    assert!(!has_key(&here, "a.test", "1").await, "nobody says that it still holds");
}

#[tokio::test(start_paused = true)]
async fn what_is_not_a_servers_keys_is_not_believed() {
    let (world, store) = (World::new(), Store::memory().await);
    let here = world.federation("here.test", &store, |_| ());
    let others = world.clock();
    world.answers("a.test", move |_| ok(hearth_federation::server_keys(&key("b.test", "1"), &[], others())));
    world.answers("b.test", |_| world::status(500, "{}"));
    world.answers("c.test", |_| ok(&b"\xff"[..]));
    for server in ["a.test", "b.test", "c.test"] {
        assert!(!has_key(&here, server, "1").await, "{server}");
    }
}

#[tokio::test(start_paused = true)]
async fn servers_that_are_denied_are_not_asked() {
    let (world, store) = (World::new(), Store::memory().await);
    world.publishes("a.test", "1", &[]);
    let here = world.federation("here.test", &store, |options| {
        options.access = Access::new(true, &[], &["a.test".to_owned()]);
    });
    assert!(!has_key(&here, "a.test", "1").await);
    assert!(!has_key(&here, "here.test", "2").await, "nor are we ourselves");
    assert_eq!(*world.asked.lock(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_notary_helps_where_a_server_is_gone() {
    let (world, store) = (World::new(), Store::memory().await);
    world.notary("notary.test", true);
    let here = world.federation("here.test", &store, |options| {
        options.trusted_key_servers = vec![name("gone.test"), name("notary.test")];
    });
    assert!(has_key(&here, "a.test", "1").await);
    assert_eq!(
        *world.asked.lock(),
        [
            "a.test GET /_matrix/key/v2/server",
            "gone.test GET /_matrix/key/v2/server",
            "notary.test GET /_matrix/key/v2/server",
            "notary.test POST /_matrix/key/v2/query",
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_notary_that_does_not_sign_is_not_believed() {
    let (world, store) = (World::new(), Store::memory().await);
    world.notary("notary.test", false);
    let here = world.federation("here.test", &store, |options| {
        options.trusted_key_servers = vec![name("notary.test")];
    });
    assert!(!has_key(&here, "a.test", "1").await);
    assert_eq!(world.times_asked("notary.test"), 2);
}

fn pdu(rules: &RoomRules, server: &str, signed_with: &Keypair, at_ms: u64) -> ReceivedPdu {
    let draft = Draft {
        sender: format!("@alice:{server}").try_into().unwrap(),
        kind: "m.room.message".into(),
        state_key: None,
        content: serde_json::value::to_raw_value(&json!({ "body": "hello" })).unwrap(),
        redacts: None,
    };
    let place = Place {
        room_id: Some(<&ruma::RoomId>::try_from("!r:a.test").unwrap()),
        prev_events: &[],
        auth_events: &[],
        depth: 1,
        origin_server_ts: MilliSecondsSinceUnixEpoch(UInt::new(at_ms).unwrap()),
        hashes: None,
    };
    let pdu = draft.build(rules, &place, signed_with).unwrap();
    ReceivedPdu::parse(rules, pdu.json()).unwrap()
}

fn rules(version: RoomVersionId) -> &'static RoomRules {
    RoomRules::of(&version).unwrap()
}

#[tokio::test(start_paused = true)]
async fn the_events_of_many_servers_need_few_questions() {
    let (world, store) = (World::new(), Store::memory().await);
    world.notary("notary.test", true);
    let here = world.federation("here.test", &store, |options| {
        options.trusted_key_servers = vec![name("notary.test")];
    });
    let rules = rules(RoomVersionId::V11);
    let servers: Vec<String> = (0..250).map(|n| format!("s{n}.test")).collect();
    let pdus: Vec<_> = servers.iter().map(|server| pdu(rules, server, &key(server, "1"), NOW)).collect();
    let mut needs = KeyNeeds::new();
    pdus.iter().for_each(|pdu| needs.add_pdu(rules, pdu));
    let keys = here.keys().keys_for(&needs).await.unwrap();
    for pdu in pdus {
        pdu.verify(rules, &keys).unwrap();
    }
    assert_eq!(world.asked.lock().len(), 4, "the notary's own keys, and a hundred servers each time");
}

#[tokio::test(start_paused = true)]
async fn old_events_are_checked_with_old_keys() {
    let (world, store) = (World::new(), Store::memory().await);
    let (before, now) = (key("a.test", "1"), key("a.test", "2"));
    world.publishes("a.test", "2", &[old(&before, NOW - DAY)]);
    let here = world.federation("here.test", &store, |_| ());
    let check = async |version: RoomVersionId, signed_with: &Keypair, at_ms: u64| {
        let rules = rules(version);
        let pdu = pdu(rules, "a.test", signed_with, at_ms);
        let mut needs = KeyNeeds::new();
        needs.add_pdu(rules, &pdu);
        let keys = here.keys().keys_for(&needs).await.unwrap();
        pdu.verify(rules, &keys).is_ok()
    };
    assert!(check(RoomVersionId::V11, &before, NOW - 2 * DAY).await);
    assert!(!check(RoomVersionId::V11, &before, NOW - DAY + 1).await, "not in use any more by then");
    assert!(check(RoomVersionId::V4, &before, NOW).await, "before version 5 that did not matter");
    assert!(check(RoomVersionId::V11, &now, NOW + HOUR).await);
    assert!(!check(RoomVersionId::V11, &now, NOW + 2 * DAY).await, "nobody knows what is in two days");
    assert!(!check(RoomVersionId::V11, &key("a.test", "3"), NOW).await);
    assert!(check(RoomVersionId::V11, &key("a.test", "2"), NOW - 99 * DAY).await);
    // What a server once signed stays signed when it is gone.
    world.gone("a.test");
    world.passes(30 * DAY);
    assert!(check(RoomVersionId::V11, &before, NOW - 2 * DAY).await);
    assert!(check(RoomVersionId::V11, &now, NOW + HOUR).await);
}

#[tokio::test(start_paused = true)]
async fn our_own_events_need_nobody() {
    let (world, store) = (World::new(), Store::memory().await);
    let here = world.federation("here.test", &store, |options| {
        options.own_keys[0].old = vec![old(&key("here.test", "0"), NOW - DAY)];
    });
    let rules = rules(RoomVersionId::V11);
    for (version, at_ms, good) in [("1", NOW, true), ("0", NOW - DAY, true), ("0", NOW, false)] {
        let pdu = pdu(rules, "here.test", &key("here.test", version), at_ms);
        let mut needs = KeyNeeds::new();
        needs.add_pdu(rules, &pdu);
        let keys = here.keys().keys_for(&needs).await.unwrap();
        assert_eq!(pdu.verify(rules, &keys).is_ok(), good, "{version} {at_ms}");
    }
    assert_eq!(*world.asked.lock(), [""; 0]);
}

async fn answer(federation: &Federation, query: &KeyQuery) -> Vec<Value> {
    let answer: Value = serde_json::from_str(&federation.keys().answer(query).await.unwrap()).unwrap();
    answer["server_keys"].as_array().unwrap().clone()
}

#[tokio::test(start_paused = true)]
async fn as_a_notary_we_sign_what_servers_published() {
    let (world, store) = (World::new(), Store::memory().await);
    world.publishes("a.test", "1", &[]);
    let here = world.federation("here.test", &store, |_| ());
    let query = KeyQuery::parse(&json!({ "a.test": {}, "here.test": {}, "gone.test": {} })).unwrap();
    let answer = answer(&here, &query).await;
    assert_eq!(answer.len(), 2, "who cannot be reached is left out");
    assert_eq!(signers(&answer[0]), ["a.test", "here.test"]);
    assert!(is_signed_by(&answer[0], "a.test") && is_signed_by(&answer[0], "here.test"));
    assert_eq!(answer[1]["server_name"], "here.test");
    // Two servers that trust each other do not ask in circles.
    assert_eq!(world.times_asked("gone.test"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_notary_renews_what_it_knows_and_remembers_who_is_gone() {
    let (world, store) = (World::new(), Store::memory().await);
    world.publishes("a.test", "1", &[]);
    let here = world.federation("here.test", &store, |_| ());
    let until = |minimum| KeyQuery::of_server(name("a.test"), minimum);
    assert_eq!(answer(&here, &until(None)).await[0]["valid_until_ts"], NOW + DAY);
    world.passes(HOUR);
    answer(&here, &until(None)).await;
    assert_eq!(world.times_asked("a.test"), 1);
    assert_eq!(answer(&here, &until(Some(NOW + DAY + 1))).await[0]["valid_until_ts"], NOW + HOUR + DAY);
    assert_eq!(world.times_asked("a.test"), 2);
    world.passes(10 * DAY);
    world.gone("a.test");
    let stale = answer(&here, &until(None)).await;
    assert_eq!(stale[0]["valid_until_ts"], NOW + HOUR + DAY, "so that old events can still be checked");
    assert_eq!(world.times_asked("a.test"), 3);
}

#[tokio::test(start_paused = true)]
async fn our_notary_satisfies_another_of_us() {
    let world = World::new();
    world.publishes("a.test", "1", &[]);
    let notary = world.federation("notary.test", &Store::memory().await, |_| ());
    assert!(has_key(&notary, "a.test", "1").await);
    let query = KeyQuery::parse(&json!({ "a.test": {} })).unwrap();
    let given = notary.keys().answer(&query).await.unwrap();
    let published = notary.keys().published(&name("notary.test")).unwrap();
    world.gone("a.test");
    world.answers("notary.test", move |request| match request.uri().path() {
        "/_matrix/key/v2/server" => ok(published.clone()),
        _ => ok(given.clone()),
    });
    let here = world.federation("here.test", &Store::memory().await, |options| {
        options.trusted_key_servers = vec![name("notary.test")];
    });
    assert!(has_key(&here, "a.test", "1").await);
}

#[tokio::test(start_paused = true)]
async fn servers_that_never_answer_hold_up_only_those_who_name_them() {
    let world = World::new();
    world.publishes("a.test", "1", &[]);
    let federation = world.federation("here.test", &Store::memory().await, |_| ());
    let (keys, patient) = (federation.keys(), std::time::Duration::from_secs(5));
    let tarpits: Vec<_> =
        (0..STRANGERS_AT_ONCE * 2).map(|number| name(&format!("n{number}.tarpit.test"))).collect();
    let asked = tarpits.iter().map(|server| keys.request_key(FROM, server, "ed25519:1"));
    let asked = futures_util::future::join_all(asked);
    let others = async {
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        // Whoever asks from there has to come again; the server itself is not to blame for that.
        let same = keys.request_key(FROM, &name("a.test"), "ed25519:1").await;
        assert!(matches!(same, Err(KeyLookupError::Busy)), "{same:?}");
        let server = name("a.test");
        let other = keys.request_key([192, 0, 2, 9].into(), &server, "ed25519:1");
        tokio::time::timeout(patient, other).await.expect("it does not wait").unwrap();
    };
    let (refused, ()) = futures_util::future::join(asked, others).await;
    let busy = refused.iter().filter(|answer| matches!(answer, Err(KeyLookupError::Busy))).count();
    assert_eq!(busy, tarpits.len() - STRANGERS_AT_ONCE / 2);
}

/// Checks that use up the share of whoever makes us do them: what they need are keys of servers that never answer.
async fn uses_up_a_share(
    federation: &Federation,
    whose: impl Fn(KeyNeeds) -> KeyNeeds,
) -> tokio::task::JoinSet<()> {
    let mut busy = tokio::task::JoinSet::new();
    for number in 0..4 {
        let mut needs = KeyNeeds::new();
        for tarpit in 0..25 {
            let server = name(&format!("n{number}-{tarpit}.tarpit.test"));
            needs.add(&server, vec!["ed25519:1".to_owned()], NOW);
        }
        check(&mut busy, federation, whose(needs)).await;
    }
    busy
}

async fn check(busy: &mut tokio::task::JoinSet<()>, federation: &Federation, needs: KeyNeeds) {
    let keys = federation.keys().clone();
    busy.spawn(async move { keys.keys_for(&needs).await.map(drop).unwrap() });
    tokio::time::sleep(std::time::Duration::from_millis(10)).await;
}

fn of_good() -> KeyNeeds {
    let mut needs = KeyNeeds::new();
    needs.add(&name("good.test"), vec!["ed25519:1".to_owned()], NOW);
    needs
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_fetch_of_somebody_else_does_not_wait_for_their_turn() {
    let world = World::new();
    world.publishes("good.test", "1", &[]);
    let federation = world.federation("here.test", &Store::memory().await, |_| ());
    let bad = |needs: KeyNeeds| needs.because_of(&name("bad.test"));
    let mut busy = uses_up_a_share(&federation, bad).await;
    check(&mut busy, &federation, bad(of_good())).await;
    assert_eq!(world.times_asked("good.test"), 0, "it waits for its turn");
    let began = tokio::time::Instant::now();
    federation.keys().keys_for(&of_good().because_of(&name("other.test"))).await.unwrap();
    assert_eq!(world.times_asked("good.test"), 1);
    assert!(began.elapsed() < std::time::Duration::from_secs(1), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_request_of_a_server_does_not_wait_because_somebody_else_named_it() {
    let world = World::new();
    world.publishes("good.test", "1", &[]);
    let federation = world.federation("here.test", &Store::memory().await, |_| ());
    let bad = |needs: KeyNeeds| needs.because_of(&name("bad.test"));
    let mut busy = uses_up_a_share(&federation, bad).await;
    check(&mut busy, &federation, bad(of_good())).await;
    let began = tokio::time::Instant::now();
    assert!(has_key(&federation, "good.test", "1").await);
    assert!(began.elapsed() < std::time::Duration::from_secs(1), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn what_a_server_sends_does_not_wait_for_what_it_answered_us() {
    let world = World::new();
    for good in ["good.test", "better.test"] {
        world.publishes(good, "1", &[]);
    }
    let federation = world.federation("here.test", &Store::memory().await, |_| ());
    let peer = name("peer.test");
    let _busy = uses_up_a_share(&federation, |needs| needs.asked_of(&peer)).await;
    let mut of_better = KeyNeeds::new();
    of_better.add(&name("better.test"), vec!["ed25519:1".to_owned()], NOW);
    // Nor does what we asked of another.
    for needs in [of_good().because_of(&peer), of_better.asked_of(&name("other.test"))] {
        let began = tokio::time::Instant::now();
        federation.keys().keys_for(&needs).await.unwrap();
        assert!(began.elapsed() < std::time::Duration::from_secs(1), "{:?}", began.elapsed());
    }
    assert_eq!(world.times_asked("good.test") + world.times_asked("better.test"), 2);
}

#[tokio::test(start_paused = true)]
async fn a_fetch_for_which_nobody_waits_any_more_leaves_the_line() {
    let world = World::new();
    world.publishes("good.test", "1", &[]);
    let federation = world.federation("here.test", &Store::memory().await, |_| ());
    let bad = |needs: KeyNeeds| needs.because_of(&name("bad.test"));
    let _busy = uses_up_a_share(&federation, bad).await;
    let mut left = tokio::task::JoinSet::new();
    for _ in 0..2 {
        check(&mut left, &federation, bad(of_good())).await;
    }
    left.shutdown().await;
    tokio::time::sleep(std::time::Duration::from_secs(60)).await;
    assert_eq!(world.times_asked("good.test"), 0, "the places that were freed were for others");
    // Who needs it then asks for it.
    federation.keys().keys_for(&bad(of_good())).await.unwrap();
    assert_eq!(world.times_asked("good.test"), 1);
}
