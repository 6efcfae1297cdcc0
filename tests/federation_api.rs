//! What other servers ask of this one, over HTTP: keys, as their owner and as a notary, and signed questions.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
};

use axum::body::Body;
use hearth::{
    app::App,
    config::{Config, OldSigningKey},
    http::{Dispatcher, Shutdown},
    server::{self, Front, Listeners},
    testing::{Answer, TestNetwork, TestServer},
};
use hearth_dag::Keypair;
use hearth_federation::{Https, HttpsOptions, RequestError, dns::SystemDns};
use hearth_store::Store;
use http::{Method, Request};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use ruma::{OwnedUserId, ServerName, room_alias_id, server_name, user_id};
use serde_json::json;

async fn server_in(network: &TestNetwork, name: &ServerName, change: impl FnOnce(&mut Config)) -> TestServer {
    let mut config = Config { server_name: name.to_owned(), ..Config::default() };
    config.rate_limits.enabled = false;
    change(&mut config);
    TestServer::on(config, Store::memory().await, network.clone()).await
}

async fn get(server: &TestServer, path: &str) -> Answer {
    server.request(Method::GET, path, None, None).await
}

#[tokio::test]
async fn old_keys_of_the_configuration_are_published() {
    let server = TestServer::with(|config| {
        config.federation.old_signing_keys = vec![OldSigningKey {
            key_id: "ed25519:before".to_owned(),
            public_key: "XGX0JRS2Af3be3knz2fBiRbApjm2Dh61gXDJA8kcJNI".to_owned(),
            expired_ts: 5,
        }];
    });
    let keys = get(&server.await, "/_matrix/key/v2/server").await.ok();
    assert_eq!(keys["old_verify_keys"]["ed25519:before"]["expired_ts"], 5);
    assert!(keys["verify_keys"]["ed25519:test"]["key"].is_string());
}

#[tokio::test]
async fn a_notary_gives_what_it_can_get() {
    let network = TestNetwork::default();
    let notary = server_in(&network, server_name!("notary.test"), |_| ()).await;
    network.peer(server_name!("a.test"));
    let one = get(&notary, "/_matrix/key/v2/query/a.test?minimum_valid_until_ts=5").await.ok();
    let signatures = &one["server_keys"][0]["signatures"];
    assert!(signatures["a.test"].is_object() && signatures["notary.test"].is_object(), "{one}");
    let question =
        json!({ "server_keys": { "a.test": { "ed25519:peer": {} }, "gone.test": {}, "notary.test": {} } });
    let many = notary.request(Method::POST, "/_matrix/key/v2/query", None, Some(question)).await.ok();
    let names: Vec<_> =
        many["server_keys"].as_array().unwrap().iter().map(|keys| &keys["server_name"]).collect();
    assert_eq!(names, ["a.test", "notary.test"]);
    let none = get(&notary, "/_matrix/key/v2/query/gone.test").await.ok();
    assert_eq!(none, json!({ "server_keys": [] }));
    get(&notary, "/_matrix/key/v2/query/no%20name").await.refused(400, "M_INVALID_PARAM");
    get(&notary, "/_matrix/key/v2/query/a.test?minimum_valid_until_ts=x")
        .await
        .refused(400, "M_INVALID_PARAM");
}

#[tokio::test]
async fn profiles_and_aliases_are_told_to_servers() {
    let network = TestNetwork::default();
    let here = server_in(&network, server_name!("here.test"), |_| ()).await;
    let there = server_in(&network, server_name!("there.test"), |_| ()).await;
    let alice = here.user("alice").await;
    let room = alice.creates_a_room(json!({ "room_alias_name": "room" })).await;

    let client = there.app.federation.client();
    let profile = client.query_profile(server_name!("here.test"), &alice.user_id, None).await.unwrap();
    assert_eq!(profile.get(), r#"{"displayname":"alice"}"#);
    for (field, expected) in [("displayname", r#"{"displayname":"alice"}"#), ("avatar_url", "{}")] {
        let answer =
            client.query_profile(server_name!("here.test"), &alice.user_id, Some(field)).await.unwrap();
        assert_eq!(answer.get(), expected);
    }
    for user in [user_id!("@nobody:here.test"), user_id!("@alice:elsewhere.test")] {
        let refused = client.query_profile(server_name!("here.test"), user, None).await.unwrap_err();
        assert_eq!(refused.remote().unwrap().errcode.as_deref(), Some("M_NOT_FOUND"), "{user}");
    }

    let alias = room_alias_id!("#room:here.test");
    let found = client.query_directory(server_name!("here.test"), alias).await.unwrap();
    assert_eq!(
        (found.room_id.as_str(), &found.servers[..]),
        (room.as_str(), &[server_name!("here.test").to_owned()][..])
    );
    let unknown = client.query_directory(server_name!("here.test"), room_alias_id!("#other:here.test")).await;
    assert_eq!(unknown.unwrap_err().remote().unwrap().status.as_u16(), 404);

    network.cut(server_name!("here.test"));
    let gone = client.version(server_name!("here.test")).await;
    assert!(matches!(gone, Err(RequestError::Network(_))));
}

#[tokio::test]
async fn federation_can_be_switched_off() {
    let network = TestNetwork::default();
    let off = server_in(&network, server_name!("off.test"), |config| config.federation.enabled = false).await;
    let on = server_in(&network, server_name!("on.test"), |_| ()).await;
    let alice = off.user("alice").await;
    let refused =
        on.app.federation.client().query_profile(server_name!("off.test"), &alice.user_id, None).await;
    assert_eq!(refused.unwrap_err().remote().unwrap().errcode.as_deref(), Some("M_FORBIDDEN"));
    let asks = off.app.federation.client().version(server_name!("on.test")).await;
    assert!(matches!(asks, Err(RequestError::Access(_))));
    get(&off, "/_matrix/key/v2/query/on.test").await.refused(403, "M_FORBIDDEN");
    // What says who we are stays: it is what others check our old events with.
    get(&off, "/_matrix/key/v2/server").await.ok();
}

#[tokio::test]
async fn the_body_of_a_signed_request_reaches_its_handler_once_checked() {
    let server = TestServer::start().await;
    let remote = server.network.peer(server_name!("remote.test"));
    let path = "/_matrix/federation/v1/query/profile?user_id=%40nobody%3Ahearth.test";
    let sent = |authorization: String| {
        Request::get(path).header("authorization", authorization).body(Body::empty()).unwrap()
    };
    let signed = remote.signs(server_name!("hearth.test"), &Method::GET, path, b"");
    server.send(sent(signed.clone())).await.refused(404, "M_NOT_FOUND");
    // HEAD is another method, and signed as such.
    let mut head = sent(signed);
    *head.method_mut() = Method::HEAD;
    assert_eq!(server.send(head).await.status, 401);
}

/// A server with an address, a certificate and the name that leads there.
async fn real_server(ca: &CertifiedIssuer<'static, KeyPair>, folder: &Path) -> App {
    let folder = tempfile::tempdir_in(folder).unwrap().keep();
    let file = |name: &str, content: String| {
        std::fs::write(folder.join(name), content).unwrap();
        folder.join(name)
    };
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(&key, ca).unwrap();
    let mut config = Config { bind: Vec::new(), data_dir: folder.join("data"), ..Config::default() };
    config.federation.bind = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))];
    config.federation.certificate = Some(file("tls.pem", certificate.pem()));
    config.federation.key = Some(file("tls.key", key.serialize_pem()));
    let listeners = Listeners::bind(&config).await.unwrap();
    config.server_name = format!("localhost:{}", listeners.addresses()[0].port()).try_into().unwrap();
    let options = HttpsOptions {
        extra_root_certificates: vec![file("ca.pem", ca.pem())],
        allow_private_addresses: true,
    };
    let network = Arc::new(Https::new(&options, Arc::new(SystemDns::new())).unwrap());
    let signing_key = Keypair::new(config.server_name.clone(), "1", &[1; 32]).unwrap();
    let (store, shutdown) = (Store::memory().await, Shutdown::default());
    let app = App::on(Arc::new(config), store, signing_key, network, shutdown.clone()).await.unwrap();
    let front = Front::over(Dispatcher::new(app.clone(), &server::routes()).unwrap());
    tokio::spawn(server::serve(listeners, front, 64, shutdown));
    app
}

// By way of the machine's own resolver, sockets, certificates and clock.
#[tokio::test]
async fn two_servers_find_and_believe_each_other_over_tls() {
    let folder = tempfile::tempdir().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let (a, b) = (real_server(&ca, folder.path()).await, real_server(&ca, folder.path()).await);
    for (from, to) in [(&a, &b), (&b, &a)] {
        let user: OwnedUserId = format!("@nobody:{}", to.config.server_name).try_into().unwrap();
        let asked = from.federation.client().query_profile(&to.config.server_name, &user, None).await;
        // It is known who asks, else the answer were that the request is not believed.
        assert_eq!(asked.unwrap_err().remote().unwrap().errcode.as_deref(), Some("M_NOT_FOUND"));
    }
    a.shutdown.begin();
    b.shutdown.begin();
}
