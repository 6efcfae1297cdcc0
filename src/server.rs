//! A server's life: bind the listeners, open the store, serve, stop.
//! * Listeners answer before the store is open: `/health` says "starting" and `/versions` what there is; everything else
//!   waits for the store, or is asked to come back if that takes long.
//! * On the way down no new connection is taken, long polls end at once, running requests get some seconds, and the
//!   store is closed last.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    body::Body,
    response::{IntoResponse as _, Response},
};
use http::{Method, Request, StatusCode, header};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, SetOnce},
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use crate::{
    config::Config,
    http::{Dispatcher, MatrixError, Shutdown, dispatch::add_cors, json_response},
    tls::{BadTls, Tls},
};

/// Why a server could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// Which address.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// A certificate or its key cannot be used.
    #[error(transparent)]
    Tls(#[from] BadTls),
    /// The server's parts do not come up.
    #[error(transparent)]
    Open(#[from] crate::app::OpenError),
    /// Two endpoints claim one path.
    #[error(transparent)]
    Routes(#[from] crate::http::dispatch::RouteConflict),
}

/// All endpoints of a server.
pub fn routes() -> crate::http::Routes {
    let mut routes = crate::client_api::routes();
    crate::federation_api::routes(&mut routes);
    routes
}

/// Whom a listener is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serves {
    /// Clients, and other servers too: one port may do for both.
    Everybody,
    /// Other servers only.
    Servers,
}

impl Serves {
    /// Whether such a listener answers on this path.
    fn covers(self, path: &str) -> bool {
        const FOR_SERVERS: &[&str] =
            &["/_matrix/federation/", "/_matrix/key/", "/.well-known/matrix/", "/health"];
        match self {
            Self::Everybody => true,
            Self::Servers => FOR_SERVERS.iter().any(|beginning| path.starts_with(beginning)),
        }
    }
}

/// How long a request waits for a server that is starting: mostly that is over sooner than a client would ask again. As
/// many wait as connections are let in.
const START_PATIENCE: Duration = Duration::from_secs(5);

/// What listeners talk to: nothing yet, then the dispatcher.
#[derive(Clone, Default)]
pub struct Front(Arc<SetOnce<Dispatcher>>);

impl Front {
    /// A front whose server is there already.
    pub fn over(dispatcher: Dispatcher) -> Self {
        let front = Self::default();
        front.open(dispatcher);
        front
    }

    /// The server is there.
    pub fn open(&self, dispatcher: Dispatcher) {
        // Only the first counts; there is no second.
        let _ = self.0.set(dispatcher);
    }

    /// Answers one request.
    pub async fn handle(&self, request: Request<Body>, peer: SocketAddr) -> Response {
        let is_health = request.uri().path() == "/health" && request.method() != Method::OPTIONS;
        match self.0.get() {
            Some(_) if is_health => finished(json_response(StatusCode::OK, &br#"{"status":"ok"}"#[..])),
            Some(dispatcher) => dispatcher.handle(request, peer).await,
            None if is_health => {
                finished(json_response(StatusCode::SERVICE_UNAVAILABLE, &br#"{"status":"starting"}"#[..]))
            }
            None if request.uri().path() == "/_matrix/client/versions" => {
                finished(json_response(StatusCode::OK, crate::client_api::discovery::versions_json()))
            }
            None => {
                if let Ok(dispatcher) = timeout(START_PATIENCE, self.0.wait()).await {
                    return dispatcher.handle(request, peer).await;
                }
                let starting = MatrixError::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "M_UNKNOWN",
                    "the server is starting; try again in a moment",
                );
                let mut response = starting.into_response();
                response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("2"));
                finished(response)
            }
        }
    }
}

fn finished(mut response: Response) -> Response {
    add_cors(response.headers_mut());
    response
}

/// Bound listeners, not yet served.
pub struct Listeners {
    all: Vec<Listener>,
    certificates: Vec<Tls>,
}

struct Listener {
    socket: TcpListener,
    tls: Option<Tls>,
    serves: Serves,
}

/// The server, as those see it who come in by one listener.
#[derive(Clone)]
struct Door {
    front: Front,
    serves: Serves,
}

impl Door {
    async fn handle(&self, request: Request<Body>, peer: SocketAddr) -> Response {
        if self.serves.covers(request.uri().path()) {
            return self.front.handle(request, peer).await;
        }
        finished(
            MatrixError::unrecognized("unrecognized request: this port is for other servers").into_response(),
        )
    }
}

impl Listeners {
    /// Binds all addresses of the configuration.
    pub async fn bind(config: &Config) -> Result<Self, StartError> {
        let (mut listeners, mut certificates) = (Vec::new(), Vec::new());
        for address in &config.bind {
            listeners.push(Listener { socket: bind(*address).await?, tls: None, serves: Serves::Everybody });
        }
        if let (Some(certificate), Some(key)) = (&config.tls.certificate, &config.tls.key) {
            let tls = Tls::read(certificate, key)?;
            certificates.push(tls.clone());
            for address in &config.tls.bind {
                let (socket, tls) = (bind(*address).await?, Some(tls.clone()));
                listeners.push(Listener { socket, tls, serves: Serves::Everybody });
            }
        }
        let tls = match (&config.federation.certificate, &config.federation.key) {
            (Some(certificate), Some(key)) => Some(Tls::read(certificate, key)?),
            _ => None,
        };
        certificates.extend(tls.clone());
        for address in &config.federation.bind {
            let (socket, tls) = (bind(*address).await?, tls.clone());
            listeners.push(Listener { socket, tls, serves: Serves::Servers });
        }
        Ok(Self { all: listeners, certificates })
    }

    /// The addresses that were really bound (port 0 becomes a number).
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.all.iter().filter_map(|listener| listener.socket.local_addr().ok()).collect()
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|source| StartError::Bind { address, source })
}

/// How long running requests may go on after the end was asked for.
const GRACE: Duration = Duration::from_secs(10);
/// How long a connection may be silent between two requests or while it sends a request's head.
const IDLE: Duration = Duration::from_secs(120);
/// The longest head of a request, in bytes.
const HEAD: usize = 64 * 1024;
/// Bytes that a connection reads at once, at most: as many as come, beginning with 8 KiB.
const BUFFER: usize = 256 * 1024;

/// Serves until `shutdown` begins and all connections have ended, or the grace is over.
pub async fn serve(listeners: Listeners, front: Front, connections: usize, shutdown: Shutdown) {
    let places = Arc::new(Semaphore::new(connections.max(1)));
    let mut accepting = JoinSet::new();
    for tls in listeners.certificates {
        tokio::spawn(tls.follow(shutdown.clone()));
    }
    for listener in listeners.all {
        accepting.spawn(accept(listener, front.clone(), places.clone(), shutdown.clone()));
    }
    while accepting.join_next().await.is_some() {}
}

async fn accept(listener: Listener, front: Front, places: Arc<Semaphore>, shutdown: Shutdown) {
    let Listener { socket, tls, serves } = listener;
    let (door, mut running) = (Door { front, serves }, JoinSet::new());
    loop {
        while running.try_join_next().is_some() {}
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            () = shutdown.begun() => break,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of files, most often: let some connections end before the next try.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(place) = places.clone().acquire_owned().await else { break };
        let tls = tls.as_ref().map(Tls::acceptor);
        let (door, shutdown) = (door.clone(), shutdown.clone());
        running.spawn(async move {
            let _place = place;
            connection(stream, peer, tls, door, shutdown).await;
        });
    }
    drop(socket);
    let ended = async { while running.join_next().await.is_some() {} };
    if tokio::time::timeout(GRACE, ended).await.is_err() {
        tracing::warn!("some requests did not end in time and are dropped");
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    tls: Option<TlsAcceptor>,
    door: Door,
    shutdown: Shutdown,
) {
    // A delayed answer is worse than a small packet; if it cannot be set, nothing is lost but time.
    let _ = stream.set_nodelay(true);
    let Some(tls) = tls else {
        return requests(stream, peer, door, shutdown).await;
    };
    match tokio::time::timeout(Duration::from_secs(10), tls.accept(stream)).await {
        Ok(Ok(stream)) => requests(stream, peer, door, shutdown).await,
        Ok(Err(error)) => tracing::debug!(%peer, %error, "no TLS connection"),
        Err(_) => tracing::debug!(%peer, "no TLS connection in time"),
    }
}

async fn requests<S>(stream: S, peer: SocketAddr, door: Door, shutdown: Shutdown)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let door = door.clone();
        async move { Ok::<_, Infallible>(door.handle(request.map(Body::new), peer).await) }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(IDLE).max_header_size(HEAD).max_buf_size(BUFFER);
    let connection = http.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        biased;
        ended = connection.as_mut() => ended,
        () = shutdown.begun() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "a connection ended early");
    }
}
