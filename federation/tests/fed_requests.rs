//! Requests between servers: signed by the one, believed or not by the other, and what becomes of failures.

mod world;

use std::sync::Arc;

use bytes::Bytes;
use hearth_dag::Signer as _;
use hearth_federation::{
    Access, AccessDenied, Federation, NetworkError, Refused, RequestError,
    x_matrix::{SignedParts, signed_content},
};
use hearth_store::Store;
use http::{Request, Response, header};
use ruma::{OwnedServerName, event_id, room_id, user_id};
use serde_json::json;

use world::{FROM, World, key, name, ok, status};

async fn two() -> (Arc<World>, Federation, Federation) {
    let world = World::new();
    let a = world.federation("a.test", &Store::memory().await, |_| ());
    let b = world.federation("b.test", &Store::memory().await, |_| ());
    world.publishes("a.test", "1", &[]);
    (world, a, b)
}

const TARGET: &str = "/_matrix/federation/v1/send/1?x=%2F";

fn signed(from: &str, version: &str, to: &str, body: &str) -> String {
    let content = signed_content(body.as_bytes()).unwrap();
    let parts = SignedParts { method: "PUT", target: TARGET, content: content.as_deref() };
    parts.sign(&*key(from, version), &name(to))
}

async fn arrives(at: &Federation, headers: &[String], body: &str) -> Result<OwnedServerName, Refused> {
    let claim = at.claim(FROM, headers.iter().map(String::as_str)).await?;
    at.verify(&claim, "PUT", TARGET, body.as_bytes()).await
}

#[tokio::test(start_paused = true)]
async fn a_signed_request_is_believed_and_nothing_else() {
    let (_world, _, b) = two().await;
    let good = signed("a.test", "1", "b.test", r#"{"a":1}"#);
    assert_eq!(arrives(&b, &[good.clone()], r#"{"a":1}"#).await.unwrap(), "a.test");
    assert_eq!(
        arrives(&b, &[good.clone()], r#"{ "a" : 1 }"#).await.unwrap(),
        "a.test",
        "however it is written"
    );
    for body in [r#"{"a":2}"#, "", "[]"] {
        assert!(matches!(arrives(&b, &[good.clone()], body).await, Err(Refused::Signature)), "{body}");
    }
    assert!(matches!(arrives(&b, &[good.clone()], "{").await, Err(Refused::Body(_))));
    let claim = b.claim(FROM, [good.as_str()].into_iter()).await.unwrap();
    assert_eq!(claim.origin(), "a.test");
    for (method, target) in [("POST", TARGET), ("PUT", "/_matrix/federation/v1/send/2?x=%2F")] {
        let refused = b.verify(&claim, method, target, br#"{"a":1}"#).await;
        assert!(matches!(refused, Err(Refused::Signature)), "{method} {target}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_before_the_body_is_read() {
    let (world, _, b) = two().await;
    let claim = async |federation: &Federation, headers: &[String]| {
        let claim = federation.claim(FROM, headers.iter().map(String::as_str)).await;
        claim.err().map(|error| error.to_string())
    };
    let good = signed("a.test", "1", "b.test", "");
    assert_eq!(claim(&b, &[good.clone()]).await, None);
    let refused = |error: Refused| Some(error.to_string());
    assert_eq!(claim(&b, &[]).await, refused(Refused::Unsigned));
    assert_eq!(claim(&b, &["Bearer token".to_owned()]).await, refused(Refused::Unsigned));
    assert_eq!(claim(&b, &[signed("a.test", "1", "c.test", "")]).await, refused(Refused::Destination));
    assert_eq!(claim(&b, &[signed("b.test", "1", "b.test", "")]).await, refused(Refused::FromUs));
    let two_origins = [good.clone(), signed("c.test", "1", "b.test", "")];
    assert_eq!(claim(&b, &two_origins).await, refused(Refused::Origins));
    assert!(claim(&b, &["X-Matrix nonsense".to_owned()]).await.unwrap().contains("list of parameters"));
    for (enabled, denied, why) in
        [(false, &[][..], AccessDenied::Off), (true, &["a.*".to_owned()], AccessDenied::Denied)]
    {
        let closed = world.federation("b.test", &Store::memory().await, |options| {
            options.access = Access::new(enabled, &[], denied);
        });
        assert_eq!(claim(&closed, &[good.clone()]).await, refused(why.into()));
    }
    assert_eq!(world.asked.lock().len(), 1, "only the good one made us ask for keys");
}

#[tokio::test(start_paused = true)]
async fn a_signature_by_another_key_is_not_believed() {
    let (world, _, b) = two().await;
    let unknown = arrives(&b, &[signed("a.test", "2", "b.test", "")], "").await;
    assert!(matches!(unknown, Err(Refused::Key(_))));
    let unreachable = arrives(&b, &[signed("c.test", "1", "b.test", "")], "").await;
    assert!(matches!(unreachable, Err(Refused::Key(_))));
    // Another key under the right ID.
    let forged = signed("a.test", "1", "b.test", "").replace("sig=\"", "sig=\"AAAA");
    assert!(matches!(arrives(&b, &[forged], "").await, Err(Refused::Signature)));
    // A server that signs with several keys sends several headers.
    let several = [signed("a.test", "2", "b.test", ""), signed("a.test", "1", "b.test", "")];
    assert_eq!(arrives(&b, &several, "").await.unwrap(), "a.test");
    assert_eq!(world.times_asked("a.test"), 1);
}

#[tokio::test(start_paused = true)]
async fn older_servers_do_not_name_the_destination() {
    let (_world, _, b) = two().await;
    let old = signed("a.test", "1", "b.test", "").replace("destination=\"b.test\",", "");
    assert!(!old.contains("destination"));
    assert_eq!(arrives(&b, &[old], "").await.unwrap(), "a.test");
    let for_another = signed("a.test", "1", "c.test", "").replace("destination=\"c.test\",", "");
    assert!(matches!(arrives(&b, &[for_another], "").await, Err(Refused::Signature)));
}

/// Lets requests of the network arrive at a server, and answers with who sent them.
fn serves(world: &Arc<World>, server: &str, at: Federation) {
    world.answers(server, move |request: &Request<Bytes>| {
        let header = request.headers()[header::AUTHORIZATION].to_str().unwrap();
        let (method, target) = (request.method().as_str(), request.uri().to_string());
        let believing = async {
            let claim = at.claim(FROM, [header].into_iter()).await.unwrap();
            at.verify(&claim, method, &target, request.body()).await.unwrap()
        };
        // The keys are known by now, so that it needs no waiting.
        let origin = futures_util::FutureExt::now_or_never(believing).expect("nothing to wait for");
        ok(json!({ "origin": origin, "target": target, "content_type": request.headers().contains_key("content-type") }).to_string())
    });
}

#[tokio::test(start_paused = true)]
async fn what_the_client_sends_is_believed_by_the_other_side() {
    let (world, a, b) = two().await;
    b.keys().request_key(FROM, &name("a.test"), key("a.test", "1").key_id()).await.unwrap();
    serves(&world, "b.test", b);
    let there = name("b.test");
    let got = a.client().query_profile(&there, user_id!("@b:b.test"), Some("displayname")).await.unwrap();
    let got: serde_json::Value = got.parse().unwrap();
    assert_eq!(
        got,
        json!({
            "origin": "a.test",
            "target": "/_matrix/federation/v1/query/profile?user_id=%40b%3Ab.test&field=displayname",
            "content_type": false,
        })
    );
    let got = a.client().public_rooms(&there, r#"{ "limit": 1, "filter": {"a": "é"} }"#).await.unwrap();
    let got: serde_json::Value = got.parse().unwrap();
    assert_eq!((&got["origin"], &got["content_type"]), (&json!("a.test"), &json!(true)));
    let wrong = a.client().public_rooms(&there, "{").await;
    assert!(matches!(wrong, Err(RequestError::Body(_))));
    assert!(a.client().speaking_as(&name("c.test")).version(&there).await.is_err(), "not our name");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_cannot_be_reached_is_left_alone_until_its_time() {
    let (world, a, _) = two().await;
    let there = name("b.test");
    let asked = async |client: &hearth_federation::Client| client.version(&there).await;
    assert!(matches!(asked(a.client()).await, Err(RequestError::Network(NetworkError::Timeout))));
    let Err(RequestError::Resting { next_try_ms }) = asked(a.client()).await else { panic!("it rests") };
    assert_eq!(world.times_asked("b.test"), 1);
    // Somebody waits.
    assert!(matches!(asked(&a.client().even_if_failing()).await, Err(RequestError::Network(_))));
    assert_eq!(world.times_asked("b.test"), 2);
    world.passes(next_try_ms - world.now_ms());
    world.answers("b.test", |_| ok("{}"));
    asked(a.client()).await.unwrap();
    assert_eq!(a.destinations().failing(&there).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn errors_say_whether_a_server_is_there() {
    let (world, a, _) = two().await;
    let there = name("b.test");
    for (code, body, alive) in [
        (403, r#"{"errcode":"M_FORBIDDEN","error":"no"}"#, true),
        (404, "", true),
        (500, r#"{"errcode":"M_UNKNOWN","error":"oops"}"#, true),
        (502, "<html>bad gateway</html>", false),
        (504, "{}", false),
    ] {
        world.answers("b.test", move |_| status(code, body));
        let client = a.client().even_if_failing();
        let Err(RequestError::Remote(error)) = client.version(&there).await else { panic!("{code}") };
        assert_eq!(error.status.as_u16(), code);
        let failing = a.destinations().failing(&there).await.unwrap();
        assert_eq!(failing.is_none(), alive, "{code} {body}");
    }
    // What our own limits refuse is not the other's fault.
    a.destinations().alive(&there).await.unwrap();
    world.answers("b.test", |_| Err(NetworkError::TooLarge { max_bytes: 1 }));
    assert!(a.client().version(&there).await.is_err());
    assert_eq!(a.destinations().failing(&there).await.unwrap(), None);
    world.answers("b.test", |_| ok("no json"));
    assert!(matches!(a.client().version(&there).await, Err(RequestError::Malformed(_))));
}

#[tokio::test(start_paused = true)]
async fn a_request_from_a_server_shows_that_it_is_there() {
    let (world, _, b) = two().await;
    let a = name("a.test");
    b.destinations().failed(&a, "no connection").await.unwrap();
    let mut revived = b.destinations().revived();
    assert!(
        arrives(&b, &[signed("a.test", "1", "b.test", "").replace("sig=\"", "sig=\"A")], "").await.is_err()
    );
    assert!(revived.try_recv().is_err(), "anybody can say so");
    arrives(&b, &[signed("a.test", "1", "b.test", "")], "").await.unwrap();
    assert_eq!(revived.try_recv().unwrap(), "a.test");
    // It may be tried; whether it answers is to be seen.
    assert_eq!(b.destinations().not_before(&a).await.unwrap(), None);
    assert_eq!(b.destinations().failing(&a).await.unwrap().unwrap().failures, 1);
    // One that asks and does not answer is not tried for each thing that it asks.
    b.destinations().failed(&a, "no connection").await.unwrap();
    for _ in 0..3 {
        arrives(&b, &[signed("a.test", "1", "b.test", "")], "").await.unwrap();
    }
    assert!(b.destinations().not_before(&a).await.unwrap().is_some());
    drop(world);
}

#[tokio::test(start_paused = true)]
async fn nobody_is_asked_who_must_not_be() {
    let (world, a, _) = two().await;
    assert!(matches!(a.client().version(&name("a.test")).await, Err(RequestError::Local(_))));
    let closed = world.federation("a.test", &Store::memory().await, |options| {
        options.access = Access::new(true, &["c.test".to_owned()], &[]);
    });
    let denied = closed.client().version(&name("b.test")).await;
    assert!(matches!(denied, Err(RequestError::Access(AccessDenied::Denied))));
    assert_eq!(*world.asked.lock(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn answers_are_read_into_their_parts() {
    let (world, a, _) = two().await;
    let (there, client) = (name("b.test"), a.client());
    let (room, event, user) = (room_id!("!r:b.test"), event_id!("$e"), user_id!("@u:a.test"));

    world.answers("b.test", |_| ok(r#"{"room_version":"11","event":{"type":"m.room.member"}}"#));
    let template = client.make_join(&there, room, user, &[ruma::RoomVersionId::V11]).await.unwrap();
    assert_eq!(template.room_version, Some(ruma::RoomVersionId::V11));
    assert_eq!(template.event.get(), r#"{"type":"m.room.member"}"#);
    assert!(world.asked.lock().last().unwrap().ends_with("/make_join/%21r%3Ab.test/%40u%3Aa.test?ver=11"));

    world.answers("b.test", |_| {
        ok(r#"{"state":[{"a":1},{"b":2}],"auth_chain":[{"c":3}],"event":{"d":4},"members_omitted":true,"servers_in_room":["b.test"],"new":0}"#)
    });
    let join = client.send_join(&there, room, event, "{}", true).await.unwrap();
    assert_eq!(join.state.iter().map(|pdu| pdu.get()).collect::<Vec<_>>(), [r#"{"a":1}"#, r#"{"b":2}"#]);
    assert_eq!((join.auth_chain.len(), join.members_omitted), (1, true));
    assert_eq!(join.servers_in_room.unwrap(), ["b.test"]);
    assert!(world.asked.lock().last().unwrap().ends_with("/send_join/%21r%3Ab.test/%24e?omit_members=true"));

    world.answers("b.test", |_| ok(r#"{"pdus":[{"a":1}],"auth_chain":[{"b":1}],"origin":"b.test"}"#));
    assert_eq!(client.event(&there, event).await.unwrap().get(), r#"{"a":1}"#);
    let state = client.state(&there, room, event).await.unwrap();
    assert_eq!((state.pdus.len(), state.auth_chain.len()), (1, 1));
    assert_eq!(client.backfill(&there, room, &[event.to_owned()], 10).await.unwrap().len(), 1);
    assert!(world.asked.lock().last().unwrap().ends_with("/backfill/%21r%3Ab.test?v=%24e&limit=10"));

    world.answers("b.test", |_| ok(r#"{"events":[{"a":1}]}"#));
    let missing = client.missing_events(&there, room, &[], &[event.to_owned()], 10, 0).await.unwrap();
    assert_eq!(missing[0].get(), r#"{"a":1}"#);
    world.answers("b.test", |_| ok(r#"{"auth_chain":[{"a":1}]}"#));
    assert_eq!(client.event_auth(&there, room, event).await.unwrap().len(), 1);

    world.answers("b.test", |_| ok(r#"{"pdus":{"$a":{},"$b":{"error":"no"}}}"#));
    let sent = client.send_transaction(&there, "1", r#"{"pdus":[]}"#).await.unwrap();
    assert_eq!(sent.pdus[event_id!("$b")].error.as_deref(), Some("no"));
    world.answers("b.test", |_| ok(r#"{"event_id":"$a","origin_server_ts":5}"#));
    assert_eq!(client.timestamp_to_event(&there, room, 1, true).await.unwrap().origin_server_ts, 5);
    world.answers("b.test", |_| ok(r#"{"room_id":"!r:b.test","servers":["b.test"]}"#));
    let alias = ruma::room_alias_id!("#a:b.test");
    assert_eq!(client.query_directory(&there, alias).await.unwrap().room_id, room);
    world.answers("b.test", |_| ok(r#"{"knock_room_state":[{}]}"#));
    assert_eq!(client.send_knock(&there, room, event, "{}").await.unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_invite_falls_back_to_its_first_form_where_rooms_allow() {
    use ruma::RoomVersionId;
    let (world, a, _) = two().await;
    world.answers("b.test", |request| match request.uri().path().contains("/v2/") {
        true => status(404, r#"{"errcode":"M_UNRECOGNIZED","error":"?"}"#),
        false => ok(r#"[200,{"event":{"signed":true}}]"#),
    });
    let invite = async |version: RoomVersionId| {
        let (room, event) = (room_id!("!r:a.test"), event_id!("$e:a.test"));
        a.client().invite(&name("b.test"), room, event, r#"{"type":"m.room.member"}"#, &version, &[]).await
    };
    assert_eq!(invite(RoomVersionId::V1).await.unwrap().get(), r#"{"signed":true}"#);
    assert!(matches!(invite(RoomVersionId::V11).await, Err(RequestError::Remote(_))));
    world.answers("b.test", |request| {
        let body: serde_json::Value = serde_json::from_slice(request.body()).unwrap();
        assert_eq!(body["room_version"], "11");
        ok(json!({ "event": body["event"] }).to_string())
    });
    assert_eq!(invite(RoomVersionId::V11).await.unwrap().get(), r#"{"type":"m.room.member"}"#);
}

#[tokio::test(start_paused = true)]
async fn media_come_in_parts_from_elsewhere_or_in_the_old_way() {
    let (world, a, _) = two().await;
    let multipart = |part: &str| {
        let body = format!("--b\r\n\r\n{{}}\r\n--b\r\n{part}\r\n--b--");
        let response = Response::builder().header("content-type", "multipart/mixed; boundary=b");
        Ok(response.body(Bytes::from(body)).unwrap())
    };
    let download = async |max: usize| a.client().download(&name("b.test"), "id", max).await;
    world.answers("b.test", move |_| multipart("Content-Type: image/png\r\n\r\nbytes"));
    let medium = download(5).await.unwrap();
    assert_eq!((medium.content_type.as_deref(), &medium.bytes[..]), (Some("image/png"), &b"bytes"[..]));
    assert!(matches!(download(4).await, Err(RequestError::Network(NetworkError::TooLarge { max_bytes: 4 }))));
    world.answers("b.test", move |_| multipart("Location: https://cdn.test/x\r\n\r\n"));
    world.answers("https://cdn.test/x", |_| ok("elsewhere"));
    assert_eq!(&download(100).await.unwrap().bytes[..], b"elsewhere");
    world.answers("b.test", |request| match request.uri().path().starts_with("/_matrix/federation") {
        true => status(404, r#"{"errcode":"M_UNRECOGNIZED"}"#),
        false => ok("the old way"),
    });
    assert_eq!(&download(100).await.unwrap().bytes[..], b"the old way");
    world.answers("b.test", |_| status(404, r#"{"errcode":"M_NOT_FOUND","error":"no such medium"}"#));
    let before = world.times_asked("b.test");
    assert!(matches!(download(100).await, Err(RequestError::Remote(_))));
    assert_eq!(world.times_asked("b.test"), before + 1, "it is not there in the old way either");
}
