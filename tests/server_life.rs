//! A server's life over real sockets: answers before its store is open, TLS, and an orderly end.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use hearth::{
    config::Config,
    http::{Dispatcher, Shutdown},
    server::{self, Front, Listeners},
    testing::TestServer,
};
use ruma::presence::PresenceState;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinHandle,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// Reads an answer until the other side closes.
async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    read(stream).await
}

async fn read(mut stream: impl AsyncRead + Unpin) -> String {
    let mut answer = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    String::from_utf8(answer).unwrap()
}

fn get(path: &str, headers: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: hearth.test\r\nConnection: close\r\n{headers}\r\n")
}

fn body(answer: &str) -> Value {
    serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
}

fn dispatcher(server: &TestServer) -> Dispatcher {
    Dispatcher::new(server.app.clone(), &server::routes()).unwrap()
}

fn any_port() -> Vec<SocketAddr> {
    vec![SocketAddr::from(([127, 0, 0, 1], 0))]
}

async fn serve(config: &Config, front: Front, shutdown: Shutdown) -> (SocketAddr, JoinHandle<()>) {
    let listeners = Listeners::bind(config).await.unwrap();
    let address = listeners.addresses()[0];
    (address, tokio::spawn(server::serve(listeners, front, 64, shutdown)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn before_the_store_is_open_everybody_gets_an_answer() {
    let (front, shutdown) = (Front::default(), Shutdown::default());
    let config = Config { bind: any_port(), ..Config::default() };
    let (address, serving) = serve(&config, front.clone(), shutdown.clone()).await;
    let connect = || async { TcpStream::connect(address).await.unwrap() };

    let health = ask(connect().await, &get("/health", "")).await;
    assert!(health.starts_with("HTTP/1.1 503"), "{health}");
    assert_eq!(body(&health), json!({ "status": "starting" }));
    let versions = ask(connect().await, &get("/_matrix/client/versions", "")).await;
    assert!(versions.starts_with("HTTP/1.1 200"), "{versions}");
    let sync = ask(connect().await, &get("/_matrix/client/v3/sync", "")).await;
    assert!(
        sync.starts_with("HTTP/1.1 503") && sync.contains("retry-after: 2"),
        "waits for long, then: {sync}"
    );
    assert!(sync.contains("access-control-allow-origin: *"), "a web client must be able to read it: {sync}");
    assert_eq!(body(&sync)["errcode"], "M_UNKNOWN");

    let server = TestServer::start().await;
    let mut early = connect().await;
    early.write_all(get("/_matrix/client/v3/capabilities", "").as_bytes()).await.unwrap();
    front.open(dispatcher(&server));
    assert_eq!(body(&read(early).await)["errcode"], "M_MISSING_TOKEN", "who came early is answered");
    let health = ask(connect().await, &get("/health", "")).await;
    assert!(health.starts_with("HTTP/1.1 200"), "{health}");
    let sync = ask(connect().await, &get("/_matrix/client/v3/sync", "")).await;
    assert_eq!(body(&sync)["errcode"], "M_MISSING_TOKEN");
    shutdown.begin();
    tokio::time::timeout(PATIENCE, serving).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_polls_end_at_once_and_running_requests_are_finished() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let config = Config { bind: any_port(), ..Config::default() };
    let shutdown = server.app.shutdown.clone();
    let (address, serving) = serve(&config, Front::over(dispatcher(&server)), shutdown.clone()).await;
    let token = format!("Authorization: Bearer {}\r\n", alice.token);

    let first = ask(
        TcpStream::connect(address).await.unwrap(),
        &get("/_matrix/client/v3/sync?set_presence=offline", &token),
    )
    .await;
    let since = body(&first)["next_batch"].as_str().unwrap().to_owned();
    let mut poll = TcpStream::connect(address).await.unwrap();
    // Her own presence is no news to her.
    let filter = "%7B%22presence%22:%7B%22types%22:%5B%5D%7D%7D";
    let path = format!("/_matrix/client/v3/sync?since={since}&timeout=30000&filter={filter}");
    poll.write_all(get(&path, &token).as_bytes()).await.unwrap();
    // Half of a request: its rest comes when the server is already on its way down.
    let mut half = TcpStream::connect(address).await.unwrap();
    let filter = r#"{"room":{"timeline":{"limit":5}}}"#;
    let (user, length) = (&alice.user_id, filter.len());
    let head = format!(
        "POST /_matrix/client/v3/user/{user}/filter HTTP/1.1\r\nHost: hearth.test\r\n{token}\
         Content-Length: {length}\r\nExpect: 100-continue\r\n\r\n"
    );
    half.write_all(head.as_bytes()).await.unwrap();
    let mut interim = [0; 25];
    half.read_exact(&mut interim).await.unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    // Who polls is online.
    while server.app.users.presence().of(user).presence != PresenceState::Online {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    shutdown.begin();
    let poll = read(poll).await;
    assert!(poll.starts_with("HTTP/1.1 200"), "{poll}");
    assert!(body(&poll)["next_batch"].is_string() && body(&poll)["presence"].is_null(), "{poll}");
    half.write_all(filter.as_bytes()).await.unwrap();
    let half = read(half).await;
    assert!(body(&half)["filter_id"].is_string(), "{half}");
    tokio::time::timeout(PATIENCE, serving).await.unwrap().unwrap();
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
}

/// A certificate for `name` in two PEM files; what a client has to trust.
fn certificate(folder: &Path, name: &str) -> CertificateDer<'static> {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    std::fs::write(folder.join("certificate.pem"), made.cert.pem()).unwrap();
    std::fs::write(folder.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    made.cert.der().clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tls_listener_shows_its_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let trusted = certificate(folder.path(), "hearth.test");
    let server = TestServer::start().await;
    let mut config = Config { bind: Vec::new(), ..Config::default() };
    config.tls.bind = any_port();
    config.tls.certificate = Some(folder.path().join("certificate.pem"));
    config.tls.key = Some(folder.path().join("key.pem"));
    let shutdown = server.app.shutdown.clone();
    let (address, serving) = serve(&config, Front::over(dispatcher(&server)), shutdown.clone()).await;

    let mut roots = rustls::RootCertStore::empty();
    roots.add(trusted).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
    let connect = |name: &'static str| {
        let connector = connector.clone();
        async move {
            let tcp = TcpStream::connect(address).await.unwrap();
            connector.connect(ServerName::try_from(name).unwrap(), tcp).await
        }
    };
    let answer = ask(connect("hearth.test").await.unwrap(), &get("/_matrix/client/versions", "")).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(connect("elsewhere.test").await.is_err(), "the certificate is for one name");
    // Who speaks no TLS, or nothing at all, keeps nobody else from being served.
    let silent = TcpStream::connect(address).await.unwrap();
    let mut plain = TcpStream::connect(address).await.unwrap();
    plain.write_all(get("/health", "").as_bytes()).await.unwrap();
    let answer = ask(connect("hearth.test").await.unwrap(), &get("/health", "")).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    drop((silent, plain));
    shutdown.begin();
    tokio::time::timeout(PATIENCE, serving).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_for_servers_serves_no_clients() {
    let server = TestServer::start().await;
    let mut config = Config { bind: Vec::new(), ..Config::default() };
    config.federation.bind = any_port();
    let shutdown = server.app.shutdown.clone();
    let (address, serving) = serve(&config, Front::over(dispatcher(&server)), shutdown.clone()).await;
    for (path, status) in [
        ("/_matrix/key/v2/server", 200),
        ("/_matrix/federation/v1/version", 200),
        ("/health", 200),
        ("/_matrix/client/versions", 404),
        ("/_matrix/client/v3/sync", 404),
        ("/_matrix/media/v3/config", 404),
        ("/_matrix/federation/v1/nothing", 404),
    ] {
        let answer = ask(TcpStream::connect(address).await.unwrap(), &get(path, "")).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{path}: {answer}");
        assert!(status == 200 || body(&answer)["errcode"] == "M_UNRECOGNIZED", "{path}: {answer}");
    }
    shutdown.begin();
    tokio::time::timeout(PATIENCE, serving).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_certificate_that_cannot_be_used_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = Config { bind: Vec::new(), ..Config::default() };
    config.tls.bind = any_port();
    config.tls.certificate = Some(folder.path().join("missing.pem"));
    config.tls.key = Some(folder.path().join("key.pem"));
    let error = Listeners::bind(&config).await.err().unwrap().to_string();
    assert!(error.contains("missing.pem"), "{error}");
    certificate(folder.path(), "hearth.test");
    config.tls.certificate = Some(folder.path().join("key.pem"));
    let error = Listeners::bind(&config).await.err().unwrap().to_string();
    assert!(error.contains("key.pem"), "{error}");
}
