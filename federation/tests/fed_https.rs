//! Real connections: whose certificate is accepted, where requests may go, and how much of an answer is read.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use hearth_federation::{
    Https, HttpsOptions, Limits, Network, NetworkError, REDIRECTS_MAX,
    dns::{Dns, DnsError, Service},
};
use http::{Request, Response};
use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use ruma::OwnedServerName;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

const LIMITS: Limits = Limits::new(20, 1000);
const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Names on this machine.
#[derive(Default)]
struct Names {
    addresses: Mutex<HashMap<String, Vec<IpAddr>>>,
    services: Mutex<HashMap<String, Service>>,
}

#[async_trait]
impl Dns for Names {
    async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, DnsError> {
        let found = self.addresses.lock().get(host).cloned();
        found.ok_or_else(|| DnsError { name: host.to_owned(), problem: "no such name".to_owned() })
    }

    async fn services(&self, name: &str) -> Result<Vec<Service>, DnsError> {
        Ok(self.services.lock().get(name).cloned().into_iter().collect())
    }
}

/// A certificate authority, names, and a client that knows both.
struct Stage {
    ca: CertifiedIssuer<'static, KeyPair>,
    names: Arc<Names>,
    folder: tempfile::TempDir,
}

/// What a server does with a connection that has sent a request.
#[derive(Clone)]
enum Does {
    Answers(String),
    /// Sends this for ever.
    Floods(&'static str),
    /// Sends this and then nothing.
    Stalls(&'static str),
}

struct Server {
    port: u16,
    connections: Arc<AtomicUsize>,
    /// The heads of the requests.
    heads: Arc<Mutex<Vec<String>>>,
}

fn answer(status: &str, headers: &str, body: &str) -> Does {
    Does::Answers(format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{headers}\r\n{body}", body.len()))
}

fn hello() -> Does {
    answer("200 OK", "X-A: b\r\n", "hello")
}

impl Stage {
    fn set() -> Self {
        Self { ca: authority(), names: Arc::default(), folder: tempfile::tempdir().unwrap() }
    }

    fn client(&self, allow_private_addresses: bool) -> Https {
        let path: PathBuf = self.folder.path().join("ca.pem");
        std::fs::write(&path, self.ca.pem()).unwrap();
        let options = HttpsOptions { extra_root_certificates: vec![path], allow_private_addresses };
        Https::new(&options, self.names.clone()).unwrap()
    }

    fn name(&self, host: &str) {
        self.names.addresses.lock().insert(host.to_owned(), vec![HERE]);
    }

    /// A server whose certificate is good for these names.
    async fn server(&self, names: &[&str], does: Does) -> Server {
        let mut params =
            CertificateParams::new(names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>()).unwrap();
        params.use_authority_key_identifier_extension = true;
        serve(params, &self.ca, does).await
    }
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

async fn serve(params: CertificateParams, ca: &CertifiedIssuer<'static, KeyPair>, does: Does) -> Server {
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, ca).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        )
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((HERE, 0)).await.unwrap();
    let server = Server {
        port: listener.local_addr().unwrap().port(),
        connections: Arc::default(),
        heads: Arc::default(),
    };
    let (connections, heads) = (server.connections.clone(), server.heads.clone());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, heads, does) = (acceptor.clone(), heads.clone(), does.clone());
            connections.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                // A client that has enough goes away.
                let _ = connection(stream, &heads, &does).await;
            });
        }
    });
    server
}

async fn connection(
    mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    heads: &Mutex<Vec<String>>,
    does: &Does,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    loop {
        head.push(stream.read_u8().await?);
        if !head.ends_with(b"\r\n\r\n") {
            continue;
        }
        heads.lock().push(String::from_utf8(std::mem::take(&mut head)).unwrap());
        match does {
            Does::Answers(answer) => stream.write_all(answer.as_bytes()).await?,
            Does::Floods(text) => loop {
                stream.write_all(text.as_bytes()).await?;
            },
            Does::Stalls(text) => {
                stream.write_all(text.as_bytes()).await?;
                stream.flush().await?;
                std::future::pending::<()>().await;
            }
        }
        stream.flush().await?;
    }
}

async fn get(client: &Https, server: &str, limits: Limits) -> Result<Response<Bytes>, NetworkError> {
    let name: OwnedServerName = server.try_into().unwrap();
    let request = Request::get("/_matrix/a%2Fb?c=%20").body(Bytes::new()).unwrap();
    client.send(&name, request, limits).await
}

#[track_caller]
fn is_tls_error(answer: Result<Response<Bytes>, NetworkError>) {
    assert!(matches!(answer, Err(NetworkError::Tls(_))), "{answer:?}");
}

#[tokio::test]
async fn a_request_arrives_as_it_was_made_at_the_server_with_the_right_certificate() {
    let stage = Stage::set();
    stage.name("a.test");
    let server = stage.server(&["a.test"], hello()).await;
    let client = stage.client(true);
    let name = format!("A.test:{}", server.port);
    for _ in 0..3 {
        let response = get(&client, &name, LIMITS).await.unwrap();
        assert_eq!((response.status().as_u16(), &response.body()[..]), (200, &b"hello"[..]));
        assert_eq!(response.headers()["x-a"], "b");
    }
    let head = server.heads.lock()[0].to_lowercase();
    assert!(head.starts_with("get /_matrix/a%2fb?c=%20 http/1.1\r\n"), "{head}");
    assert!(head.contains(&format!("\r\nhost: a.test:{}\r\n", server.port)), "{head}");
    assert!(server.heads.lock()[0].contains(&name), "as the name is written");
    assert_eq!(server.connections.load(Ordering::Relaxed), 1, "a connection is used again");
}

#[tokio::test]
async fn certificates_of_others_are_refused() {
    let stage = Stage::set();
    stage.name("a.test");
    let client = stage.client(true);
    let other = stage.server(&["b.test"], hello()).await;
    is_tls_error(get(&client, &format!("a.test:{}", other.port), LIMITS).await);
    let params = CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
    let unknown = serve(params.clone(), &authority(), hello()).await;
    is_tls_error(get(&client, &format!("a.test:{}", unknown.port), LIMITS).await);
    let mut ended = params;
    ended.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let ended = serve(ended, &stage.ca, hello()).await;
    is_tls_error(get(&client, &format!("a.test:{}", ended.port), LIMITS).await);
    for server in [other, unknown, ended] {
        assert_eq!(*server.heads.lock(), [""; 0], "nothing was sent to it");
    }
}

#[tokio::test]
async fn an_address_needs_a_certificate_of_that_address() {
    let stage = Stage::set();
    let client = stage.client(true);
    let good = stage.server(&["127.0.0.1"], hello()).await;
    let name = format!("127.0.0.1:{}", good.port);
    assert_eq!(get(&client, &name, LIMITS).await.unwrap().status(), 200);
    assert!(good.heads.lock()[0].contains(&name));
    let bad = stage.server(&["localhost"], hello()).await;
    is_tls_error(get(&client, &format!("127.0.0.1:{}", bad.port), LIMITS).await);
}

#[tokio::test]
async fn service_records_move_the_connection_and_not_the_certificate() {
    let stage = Stage::set();
    stage.name("a.test");
    stage.name("target.test");
    let client = stage.client(true);
    for (certificate, good) in [("a.test", true), ("target.test", false)] {
        let server = stage.server(&[certificate], hello()).await;
        let service = Service { host: "target.test".into(), port: server.port, priority: 0, weight: 0 };
        stage.names.services.lock().insert("_matrix-fed._tcp.a.test".to_owned(), service);
        let client = if good { &client } else { &stage.client(true) };
        let answer = get(client, "a.test", LIMITS).await;
        if good {
            assert_eq!(answer.unwrap().status(), 200);
            assert!(server.heads.lock()[0].to_lowercase().contains("\r\nhost: a.test\r\n"));
        } else {
            is_tls_error(answer);
        }
    }
    // A record that leads nowhere.
    let service = Service { host: "nowhere.test".into(), port: 1, priority: 0, weight: 0 };
    stage.names.services.lock().insert("_matrix-fed._tcp.a.test".to_owned(), service);
    assert!(matches!(get(&stage.client(true), "a.test", LIMITS).await, Err(NetworkError::Dns(_))));
}

#[tokio::test]
async fn private_addresses_are_refused_however_they_are_named() {
    let stage = Stage::set();
    stage.name("a.test");
    let server = stage.server(&["a.test", "127.0.0.1"], hello()).await;
    let client = stage.client(false);
    let port = server.port;
    let service = Service { host: "a.test".into(), port, priority: 0, weight: 0 };
    stage.names.services.lock().insert("_matrix-fed._tcp.b.test".to_owned(), service);
    for name in [
        format!("a.test:{port}"),
        format!("127.0.0.1:{port}"),
        format!("[::ffff:127.0.0.1]:{port}"),
        "b.test".to_owned(),
    ] {
        let refused = get(&client, &name, LIMITS).await;
        assert!(matches!(refused, Err(NetworkError::PrivateAddress { .. })), "{name}: {refused:?}");
    }
    for host in ["a.test", "127.0.0.1", "[::1]", "localhost.a.test"] {
        let refused = client.fetch(&format!("https://{host}:{port}/"), LIMITS).await;
        assert!(refused.is_err(), "{host}");
    }
    // Ways to write an address that are no server names, but that URLs know.
    for url in ["https://2130706433/", "https://127.1/", "https://0x7f.1/", "https://0177.0.0.1/"] {
        let refused = client.fetch(url, LIMITS).await;
        assert!(matches!(refused, Err(NetworkError::PrivateAddress { .. })), "{url}: {refused:?}");
    }
    assert_eq!(server.connections.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn no_more_of_an_answer_is_read_than_is_wanted() {
    let stage = Stage::set();
    stage.name("a.test");
    let client = stage.client(true);
    let flood = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n400\r\n";
    for does in [
        answer("200 OK", "", &"a".repeat(1001)),
        Does::Stalls("HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n"),
        Does::Stalls(Box::leak(format!("{flood}{}\r\n", "a".repeat(0x400)).into_boxed_str())),
    ] {
        let server = stage.server(&["a.test"], does).await;
        let answer = get(&client, &format!("a.test:{}", server.port), LIMITS).await;
        assert_eq!(answer.unwrap_err(), NetworkError::TooLarge { max_bytes: 1000 });
    }
    let exactly = stage.server(&["a.test"], answer("200 OK", "", &"a".repeat(1000))).await;
    assert_eq!(get(&client, &format!("a.test:{}", exactly.port), LIMITS).await.unwrap().body().len(), 1000);
    // Headers without end.
    let headers = stage.server(&["a.test"], Does::Floods("HTTP/1.1 200 OK\r\nA: b\r\nA: b\r\n")).await;
    let answer = get(&client, &format!("a.test:{}", headers.port), LIMITS).await;
    assert!(matches!(answer, Err(NetworkError::Broken(_))), "{answer:?}");
}

#[tokio::test]
async fn nobody_is_waited_for_longer_than_is_wanted() {
    let stage = Stage::set();
    stage.name("a.test");
    let client = stage.client(true);
    let limits = Limits { timeout: Duration::from_millis(200), max_bytes: 1000 };
    for text in ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"] {
        let server = stage.server(&["a.test"], Does::Stalls(text)).await;
        let answer = get(&client, &format!("a.test:{}", server.port), limits).await;
        assert_eq!(answer.unwrap_err(), NetworkError::Timeout, "{text}");
    }
}

#[tokio::test]
async fn redirects_are_followed_where_they_should_be() {
    let stage = Stage::set();
    stage.name("a.test");
    let client = stage.client(true);
    let end = stage.server(&["a.test"], hello()).await;
    let redirect = |to: String| answer("302 Found", &format!("Location: {to}\r\n"), "");
    let one = stage.server(&["a.test"], redirect(format!("https://a.test:{}/x", end.port))).await;
    let url = format!("https://a.test:{}/start", one.port);
    assert_eq!(&client.fetch(&url, LIMITS).await.unwrap().body()[..], b"hello");
    assert!(end.heads.lock()[0].starts_with("GET /x HTTP/1.1"));
    // A server answers for its name itself.
    let answer = get(&client, &format!("a.test:{}", one.port), LIMITS).await.unwrap();
    assert_eq!(answer.status(), 302);
    for (to, tries) in
        [("/again", REDIRECTS_MAX + 1), ("http://a.test/", 1), ("https://user@a.test/", 1), ("ftp:x", 1)]
    {
        let server = stage.server(&["a.test"], redirect(to.to_owned())).await;
        let refused = client.fetch(&format!("https://a.test:{}/", server.port), LIMITS).await;
        assert!(matches!(refused, Err(NetworkError::Redirect(_))), "{to}: {refused:?}");
        assert_eq!(server.heads.lock().len(), tries, "{to}");
    }
}

#[tokio::test]
async fn failures_are_told_apart() {
    let stage = Stage::set();
    let client = stage.client(true);
    assert!(matches!(get(&client, "unknown.test:1", LIMITS).await, Err(NetworkError::Dns(_))));
    // A port that was free a moment ago.
    let listener = TcpListener::bind((HERE, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let refused = get(&client, &format!("127.0.0.1:{port}"), LIMITS).await;
    assert!(matches!(refused, Err(NetworkError::Connect(_))), "{refused:?}");
    // No TLS at all.
    let listener = TcpListener::bind((HERE, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    is_tls_error(get(&client, &format!("127.0.0.1:{port}"), LIMITS).await);
}
