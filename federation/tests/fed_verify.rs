//! Events that peers hand over: read, and believed only with the signatures of those who had to sign.

mod world;

use hearth_dag::{Draft, Keypair, Pdu, Place, Rejection, RoomRules};
use hearth_federation::{BadPdu, Json};
use hearth_store::Store;
use ruma::{MilliSecondsSinceUnixEpoch, RoomVersionId, UInt};
use serde_json::{json, value::RawValue};

use world::{NOW, World, key, name};

fn rules(version: RoomVersionId) -> &'static RoomRules {
    RoomRules::of(&version).unwrap()
}

fn pdu(rules: &RoomRules, server: &str, signed_with: &Keypair, body: &str) -> Pdu {
    let draft = Draft {
        sender: format!("@alice:{server}").try_into().unwrap(),
        kind: "m.room.message".into(),
        state_key: None,
        content: serde_json::value::to_raw_value(&json!({ "body": body })).unwrap(),
        redacts: None,
    };
    let place = Place {
        room_id: Some(<&ruma::RoomId>::try_from("!r:a.test").unwrap()),
        prev_events: &[],
        auth_events: &[],
        depth: 1,
        origin_server_ts: MilliSecondsSinceUnixEpoch(UInt::new(NOW).unwrap()),
        hashes: None,
    };
    draft.build(rules, &place, signed_with).unwrap()
}

fn json_of(json: &str) -> Json {
    RawValue::from_string(json.to_owned()).unwrap().into()
}

#[tokio::test(start_paused = true)]
async fn each_event_is_judged_for_itself_and_keeps_its_place() {
    let (world, store) = (World::new(), Store::memory().await);
    world.publishes("a.test", "1", &[]);
    let here = world.federation("here.test", &store, |_| ());
    let rules = rules(RoomVersionId::V11);
    let good = pdu(rules, "a.test", &key("a.test", "1"), "hello");
    let forged = pdu(rules, "a.test", &key("b.test", "1"), "forged");
    let of_nobody = pdu(rules, "gone.test", &key("gone.test", "1"), "hello");
    let mut changed: serde_json::Value = serde_json::from_str(good.json()).unwrap();
    changed["content"]["body"] = json!("changed");
    let mut broken: serde_json::Value = serde_json::from_str(good.json()).unwrap();
    broken["signatures"]["a.test"]["ed25519:1"] = json!("A".repeat(86));
    let events =
        [good.json(), "7", forged.json(), &changed.to_string(), of_nobody.json(), &broken.to_string()];
    let verified = here.verify_answer(&name("a.test"), rules, events.map(json_of).to_vec()).await.unwrap();
    assert_eq!(verified.len(), events.len());
    assert_eq!(verified[0].as_ref().unwrap().pdu(), &good);
    assert!(matches!(&verified[1], Err(BadPdu { event_id: None, .. })));
    let bad = |at: usize| verified[at].clone().unwrap_err();
    let unsigned = |server: &str| Rejection::MissingSignature { server: name(server) };
    let forged = Some(forged.event_id().to_owned());
    assert_eq!(bad(2), BadPdu { event_id: forged, why: unsigned("a.test"), unsure: false });
    assert!(verified[3].as_ref().unwrap().is_redacted(), "what was not signed is gone from it");
    assert_eq!(verified[3].as_ref().unwrap().pdu().content_json(), "{}");
    assert_eq!(bad(4).why, unsigned("gone.test"));
    assert!(bad(4).unsure, "nobody could be asked");
    assert_eq!(bad(5).why, Rejection::BadSignature { server: name("a.test") });
}

#[tokio::test(start_paused = true)]
async fn many_events_are_checked_in_order_and_need_few_questions() {
    let (world, store) = (World::new(), Store::memory().await);
    world.publishes("a.test", "1", &[]);
    world.publishes("b.test", "1", &[]);
    let here = world.federation("here.test", &store, |_| ());
    let rules = rules(RoomVersionId::V12);
    let all: Vec<Pdu> = (0..300)
        .map(|number| {
            let server = if number % 2 == 0 { "a.test" } else { "b.test" };
            // Every tenth is signed by the wrong server.
            let signer = if number % 10 == 9 { "a.test" } else { server };
            pdu(rules, server, &key(signer, "1"), &number.to_string())
        })
        .collect();
    let verified = here
        .verify_answer(&name("a.test"), rules, all.iter().map(|pdu| json_of(pdu.json())).collect())
        .await
        .unwrap();
    assert_eq!(verified.len(), all.len());
    for (number, (verified, pdu)) in verified.iter().zip(&all).enumerate() {
        assert_eq!(verified.is_ok(), number % 10 != 9, "{number}");
        match verified {
            Ok(verified) => assert_eq!(verified.pdu(), pdu),
            Err(bad) => assert_eq!(bad.event_id.as_deref(), Some(pdu.event_id())),
        }
    }
    assert_eq!((world.times_asked("a.test"), world.times_asked("b.test")), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn events_of_rooms_of_several_versions_go_together() {
    let (world, store) = (World::new(), Store::memory().await);
    world.publishes("a.test", "1", &[]);
    let here = world.federation("here.test", &store, |_| ());
    let all: Vec<(&'static RoomRules, Pdu)> = [RoomVersionId::V1, RoomVersionId::V4, RoomVersionId::V11]
        .into_iter()
        .map(|version| (rules(version.clone()), pdu(rules(version), "a.test", &key("a.test", "1"), "x")))
        .collect();
    let each = all.iter().map(|(rules, pdu)| (*rules, json_of(pdu.json()))).collect();
    for (verified, (_, pdu)) in here.verify_each_of(&name("a.test"), each).await.unwrap().iter().zip(&all) {
        assert_eq!(verified.as_ref().unwrap().pdu(), pdu);
    }
    assert_eq!(world.times_asked("a.test"), 1);
}

/// Servers that send events of servers which never answer: the keys of others are fetched all the same.
#[tokio::test(start_paused = true)]
async fn whose_events_need_keys_of_silent_servers_holds_up_no_other() {
    let (world, store) = (World::new(), Store::memory().await);
    world.publishes("a.test", "1", &[]);
    let here = world.federation("here.test", &store, |_| ());
    let rules = rules(RoomVersionId::V11);
    let mut checking = tokio::task::JoinSet::new();
    for origin in 0..5 {
        let events = (0..50).map(|number| {
            let server = format!("n{number}o{origin}.tarpit.test");
            (rules, json_of(pdu(rules, &server, &key(&server, "1"), "x").json()))
        });
        let (here, events) = (here.clone(), events.collect());
        checking.spawn(async move { here.verify_each_of(&name(&format!("o{origin}.test")), events).await });
    }
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    let good = vec![(rules, json_of(pdu(rules, "a.test", &key("a.test", "1"), "x").json()))];
    let other = name("other.test");
    let checked = tokio::time::timeout(std::time::Duration::from_secs(5), here.verify_each_of(&other, good));
    assert!(checked.await.expect("it does not wait for them").unwrap()[0].is_ok());
    while let Some(checked) = checking.join_next().await {
        let checked = checked.unwrap().unwrap();
        assert!(checked.iter().all(|event| event.as_ref().is_err_and(|bad| bad.unsure)));
    }
}
