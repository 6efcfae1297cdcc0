//! The real network: HTTPS to servers found by their names.
//! * The certificate is checked for the host that the discovery names; an SRV record only moves the connection. That is
//!   why there are two clients: one connects to its URL's host, one to what that host's SRV records name.
//! * Addresses are checked after resolution and are then the ones that are connected to.
//! * Time and size of an answer are bounded by the caller, requests at once and redirects here.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use http::{Request, Response, StatusCode, Uri, header};
use reqwest::{Url, dns::Addrs, redirect::Policy};
use ruma::ServerName;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use tokio::sync::Semaphore;

use crate::{
    addresses::is_public,
    discovery::{Discovery, Reach, Route},
    dns::{ADDRESSES_MAX, Dns},
    network::{Limits, Network, NetworkError},
    server_name::{self, Host},
    well_known::{FetchWellKnown, WellKnown},
};

/// Requests at once; who comes later waits for a place.
pub const REQUESTS_AT_ONCE: usize = 512;
/// Redirects that are followed where they are followed at all.
pub const REDIRECTS_MAX: usize = 5;
/// The largest `.well-known/matrix/server`, and the time for it.
pub const WELL_KNOWN_LIMITS: Limits = Limits::new(10, 64 * 1024);
/// How long a host has to take a connection.
const CONNECT_TIME: Duration = Duration::from_secs(10);
/// How long a connection is kept for the next request, and how many to one host.
const IDLE_TIME: Duration = Duration::from_secs(90);
const IDLE_PER_HOST: usize = 4;
/// Headers of an answer.
const HEADERS_MAX: usize = 100;
/// What is reserved for an answer before its first byte, at most.
const FIRST_BYTES: usize = 64 * 1024;
const USER_AGENT: &str = concat!("Hearth/", env!("CARGO_PKG_VERSION"));

/// What an operator says of outgoing connections.
#[derive(Debug, Clone, Default)]
pub struct HttpsOptions {
    /// PEM files of certificate authorities beside the usual ones.
    pub extra_root_certificates: Vec<PathBuf>,
    /// Whether requests may go to private addresses.
    pub allow_private_addresses: bool,
}

/// Why there can be no connections.
#[derive(Debug, thiserror::Error)]
pub enum HttpsError {
    /// A file of certificates cannot be used.
    #[error("the certificates in {} cannot be used: {problem}", path.display())]
    Certificates {
        /// Which file.
        path: PathBuf,
        /// Why not.
        problem: String,
    },
    /// The TLS library does not come up.
    #[error("TLS does not come up: {0}")]
    Tls(#[from] rustls::Error),
    /// The HTTP client does not come up.
    #[error("the HTTP client does not come up: {0}")]
    Client(#[from] reqwest::Error),
}

/// Connections to other servers.
pub struct Https {
    discovery: Discovery,
    connections: Arc<Connections>,
    /// Connects to the hosts of SRV records.
    services: reqwest::Client,
}

/// What asks no server name: connections to the hosts of URLs.
struct Connections {
    direct: reqwest::Client,
    allow_private_addresses: bool,
    places: Semaphore,
    /// Apart, as a request may need one before its own place.
    well_known_places: Semaphore,
}

impl Https {
    /// With the name servers and the certificate authorities of this machine.
    pub fn new(options: &HttpsOptions, dns: Arc<dyn Dns>) -> Result<Self, HttpsError> {
        let tls = tls_config(&options.extra_root_certificates)?;
        let addresses =
            Addresses { dns: dns.clone(), allow_private_addresses: options.allow_private_addresses };
        let connections = Arc::new(Connections {
            direct: client(tls.clone(), DirectResolver(addresses.clone()))?,
            allow_private_addresses: options.allow_private_addresses,
            places: Semaphore::new(REQUESTS_AT_ONCE),
            well_known_places: Semaphore::new(REQUESTS_AT_ONCE),
        });
        let discovery = Discovery::new(dns, WellKnown::new(connections.clone()));
        let services = client(tls, ServiceResolver { discovery: discovery.clone(), addresses })?;
        Ok(Self { discovery, connections, services })
    }

    /// How servers are found.
    pub fn discovery(&self) -> &Discovery {
        &self.discovery
    }

    /// Where a request goes, and by which client.
    async fn way(
        &self,
        to: &ServerName,
        uri: &http::Uri,
    ) -> Result<(&reqwest::Client, Url, Route), NetworkError> {
        let route = self.discovery.route(to).await?;
        let url = url_of(&route, uri)?;
        if let Host::Ip(address) = route.host {
            self.connections.check(address)?;
        }
        let client = match route.reach {
            Reach::Port(_) => &self.connections.direct,
            Reach::Services => &self.services,
        };
        Ok((client, url, route))
    }
}

/// Waits for a place. What is waited is nobody's fault, so it does not count as time of the request.
async fn place(places: &Semaphore, time: Duration) -> Result<tokio::sync::SemaphorePermit<'_>, NetworkError> {
    let place = tokio::time::timeout(time, places.acquire()).await;
    place.ok().and_then(Result::ok).ok_or(NetworkError::Busy)
}

#[async_trait]
impl Network for Https {
    async fn send(
        &self,
        to: &ServerName,
        request: Request<Bytes>,
        limits: Limits,
    ) -> Result<Response<Bytes>, NetworkError> {
        let started = tokio::time::Instant::now();
        let way = tokio::time::timeout(limits.timeout, self.way(to, request.uri())).await;
        let (client, url, route) = way.unwrap_or(Err(NetworkError::Timeout))?;
        let left = limits.timeout.saturating_sub(started.elapsed());
        let _place = place(&self.connections.places, limits.timeout).await?;
        let answer = async {
            let (parts, body) = request.into_parts();
            let request = client.request(parts.method, url).headers(parts.headers);
            let response = request.header(header::HOST, route.host_header).body(body).send().await;
            read(response.map_err(|error| network_error(&error))?, limits.max_bytes).await
        };
        tokio::time::timeout(left, answer).await.unwrap_or(Err(NetworkError::Timeout))
    }

    async fn fetch(&self, url: &str, limits: Limits) -> Result<Response<Bytes>, NetworkError> {
        let _place = place(&self.connections.places, limits.timeout).await?;
        self.connections.fetch(url, limits).await
    }
}

/// The URL of a request: what was signed must be what is sent.
fn url_of(route: &Route, target: &Uri) -> Result<Url, NetworkError> {
    let target = target.path_and_query().ok_or(NetworkError::BadTarget)?.as_str();
    let url = match route.reach {
        Reach::Port(port) => format!("https://{}:{port}{target}", route.host),
        Reach::Services => format!("https://{}{target}", route.host),
    };
    let url = Url::parse(&url).map_err(|_| NetworkError::BadTarget)?;
    let written = match url.query() {
        Some(query) => format!("{}?{query}", url.path()),
        None => url.path().to_owned(),
    };
    // An address may be written differently, and is the same.
    let host = url.host_str().and_then(|host| server_name::parse(host).ok()).map(|address| address.host);
    let same_host = host.as_ref() == Some(&route.host);
    if same_host && written == target { Ok(url) } else { Err(NetworkError::BadTarget) }
}

impl Connections {
    fn check(&self, address: IpAddr) -> Result<(), NetworkError> {
        if self.allow_private_addresses || is_public(address) {
            return Ok(());
        }
        Err(NetworkError::PrivateAddress { host: address.to_string() })
    }

    async fn fetch(&self, url: &str, limits: Limits) -> Result<Response<Bytes>, NetworkError> {
        let answer = self.fetch_now(url, limits.max_bytes);
        tokio::time::timeout(limits.timeout, answer).await.unwrap_or(Err(NetworkError::Timeout))
    }

    async fn fetch_now(&self, url: &str, max_bytes: usize) -> Result<Response<Bytes>, NetworkError> {
        let not_followed = |url: &str| NetworkError::Redirect(url.chars().take(200).collect());
        let mut url = Url::parse(url).map_err(|_| NetworkError::BadTarget)?;
        for _ in 0..=REDIRECTS_MAX {
            if url.scheme() != "https" || !url.username().is_empty() || url.password().is_some() {
                return Err(not_followed(url.as_str()));
            }
            // The same reading of hosts as for server names: an address is an address, however it is written.
            let host = url.host_str().unwrap_or_default();
            if let Host::Ip(address) = server_name::parse(host)?.host {
                self.check(address)?;
            }
            let response = self.direct.get(url.clone()).send().await;
            let response = response.map_err(|error| network_error(&error))?;
            let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
            match location.filter(|_| is_redirect(response.status())) {
                Some(location) => {
                    url = url.join(location).map_err(|_| not_followed(location))?;
                }
                None => return read(response, max_bytes).await,
            }
        }
        Err(not_followed(url.as_str()))
    }
}

#[async_trait]
impl FetchWellKnown for Connections {
    async fn fetch_well_known(&self, host: &str) -> Result<Response<Bytes>, NetworkError> {
        let _place = place(&self.well_known_places, WELL_KNOWN_LIMITS.timeout).await?;
        self.fetch(&format!("https://{host}/.well-known/matrix/server"), WELL_KNOWN_LIMITS).await
    }
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Reads an answer to its end, or to its limit.
async fn read(mut response: reqwest::Response, max_bytes: usize) -> Result<Response<Bytes>, NetworkError> {
    let too_large = || NetworkError::TooLarge { max_bytes };
    let announced = response.content_length().unwrap_or_default();
    if announced > max_bytes as u64 {
        return Err(too_large());
    }
    let mut body = BytesMut::with_capacity((announced as usize).min(FIRST_BYTES));
    while let Some(chunk) = response.chunk().await.map_err(|error| network_error(&error))? {
        if body.len() + chunk.len() > max_bytes {
            return Err(too_large());
        }
        body.extend_from_slice(&chunk);
    }
    let mut answer = Response::new(body.freeze());
    *answer.status_mut() = response.status();
    *answer.headers_mut() = std::mem::take(response.headers_mut());
    Ok(answer)
}

/// The certificate authorities of this machine, or, where it has none, those that Mozilla trusts; and the operator's.
fn tls_config(extra: &[PathBuf]) -> Result<ClientConfig, HttpsError> {
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    for error in &native.errors {
        tracing::debug!(%error, "a certificate authority of this machine cannot be read");
    }
    roots.add_parsable_certificates(native.certs);
    if roots.is_empty() {
        tracing::info!("this machine has no certificate authorities: Mozilla's are used");
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    for path in extra {
        add_certificates(&mut roots, path)
            .map_err(|problem| HttpsError::Certificates { path: path.clone(), problem })?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn add_certificates(roots: &mut RootCertStore, path: &Path) -> Result<(), String> {
    let certificates = CertificateDer::pem_file_iter(path).map_err(|error| error.to_string())?;
    let before = roots.len();
    for certificate in certificates {
        let certificate = certificate.map_err(|error| error.to_string())?;
        roots.add(certificate).map_err(|error| error.to_string())?;
    }
    if roots.len() == before { Err("there is no certificate in it".to_owned()) } else { Ok(()) }
}

#[allow(clippy::disallowed_methods, reason = "the one client for requests to other servers")]
fn client(
    tls: ClientConfig,
    resolver: impl reqwest::dns::Resolve + 'static,
) -> Result<reqwest::Client, HttpsError> {
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .dns_resolver(Arc::new(resolver))
        .redirect(Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .no_proxy()
        .https_only(true)
        .http1_only()
        .http1_max_headers(HEADERS_MAX)
        .user_agent(USER_AGENT)
        .connect_timeout(CONNECT_TIME)
        .pool_idle_timeout(IDLE_TIME)
        .pool_max_idle_per_host(IDLE_PER_HOST)
        .build()?;
    Ok(client)
}

/// Resolves names, and holds back addresses that requests may not go to.
#[derive(Clone)]
struct Addresses {
    dns: Arc<dyn Dns>,
    allow_private_addresses: bool,
}

impl Addresses {
    async fn of(&self, host: &str) -> Result<Vec<IpAddr>, NetworkError> {
        let mut addresses = match server_name::parse(host).map(|address| address.host) {
            Ok(Host::Ip(address)) => vec![address],
            _ => self.dns.addresses(host).await?,
        };
        addresses.retain(|address| self.allow_private_addresses || is_public(*address));
        if addresses.is_empty() {
            return Err(NetworkError::PrivateAddress { host: host.to_owned() });
        }
        Ok(addresses)
    }
}

type Resolved = Result<Addrs, Box<dyn std::error::Error + Send + Sync>>;

/// A URL's host is what is connected to; its port is the URL's.
struct DirectResolver(Addresses);

impl reqwest::dns::Resolve for DirectResolver {
    fn resolve(&self, name: reqwest::dns::Name) -> reqwest::dns::Resolving {
        let addresses = self.0.clone();
        Box::pin(async move {
            let found = addresses.of(name.as_str()).await?;
            Resolved::Ok(Box::new(found.into_iter().map(|address| SocketAddr::new(address, 0))))
        })
    }
}

/// A URL's host stands for what its SRV records name; the URL has no port.
struct ServiceResolver {
    discovery: Discovery,
    addresses: Addresses,
}

impl reqwest::dns::Resolve for ServiceResolver {
    fn resolve(&self, name: reqwest::dns::Name) -> reqwest::dns::Resolving {
        let (discovery, addresses) = (self.discovery.clone(), self.addresses.clone());
        Box::pin(async move {
            let mut found: Vec<SocketAddr> = Vec::new();
            let mut refused = NetworkError::Connect("the SRV records are gone".to_owned());
            for service in discovery.services_of(name.as_str()).await {
                match addresses.of(&service.host).await {
                    Ok(of_host) => {
                        found.extend(of_host.into_iter().map(|ip| SocketAddr::new(ip, service.port)));
                    }
                    Err(error) => refused = error,
                }
            }
            found.truncate(ADDRESSES_MAX);
            if found.is_empty() {
                return Err(refused.into());
            }
            Resolved::Ok(Box::new(found.into_iter()))
        })
    }
}

/// What the client's error means: ours, if one lies beneath it.
fn network_error(error: &reqwest::Error) -> NetworkError {
    let mut deepest = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(inner) = next {
        if let Some(ours) = inner.downcast_ref::<NetworkError>() {
            return ours.clone();
        }
        if let Some(tls) = inner.downcast_ref::<rustls::Error>() {
            return NetworkError::Tls(tls.to_string());
        }
        deepest = inner.to_string();
        // An I/O error does not name what it is made of as its source.
        let in_io = inner.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = match in_io {
            Some(in_io) => Some(in_io),
            None => inner.source(),
        };
    }
    if error.is_timeout() {
        NetworkError::Timeout
    } else if error.is_connect() {
        NetworkError::Connect(deepest)
    } else {
        NetworkError::Broken(deepest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(host: &str, reach: Reach) -> Route {
        let host = server_name::parse(host).unwrap().host;
        Route { host_header: host.to_string(), host, reach }
    }

    #[test]
    fn a_url_says_what_was_signed_or_is_refused() {
        let url = |host, reach, target: &str| {
            url_of(&route(host, reach), &target.parse().unwrap()).map(|url| url.to_string())
        };
        let direct = Reach::Port(8448);
        assert_eq!(url("a.test", direct, "/x/%21a?b=%2F&c").unwrap(), "https://a.test:8448/x/%21a?b=%2F&c");
        assert_eq!(url("[::1]", direct, "/x").unwrap(), "https://[::1]:8448/x");
        assert_eq!(url("a.test", Reach::Port(443), "/x").unwrap(), "https://a.test/x");
        assert_eq!(url("a.test", Reach::Services, "/x").unwrap(), "https://a.test/x");
        for changed in ["/x/..", "/x/../y", "/x/%2e%2e/y", "/x/."] {
            assert_eq!(url("a.test", direct, changed), Err(NetworkError::BadTarget), "{changed}");
        }
    }

    #[test]
    fn certificate_files_are_read_or_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        for (content, problem) in [(None, "No such file"), (Some("nothing"), "no certificate")] {
            if let Some(content) = content {
                std::fs::write(&path, content).unwrap();
            }
            let error = tls_config(std::slice::from_ref(&path)).unwrap_err().to_string();
            assert!(error.contains("ca.pem") && error.contains(problem), "{error}");
        }
        assert!(tls_config(&[]).is_ok());
    }
}
