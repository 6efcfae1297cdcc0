//! A request to a server name: the seam between what servers say to each other and how it gets there.
//! In production it is [`crate::Https`]; tests put a network of their own here.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response};
use ruma::ServerName;

use crate::{dns::DnsError, server_name::BadServerName};

/// How long a request may take as a whole, and how large its answer may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// From looking up the name to the last byte.
    pub timeout: Duration,
    /// Bytes of the answer's body.
    pub max_bytes: usize,
}

impl Limits {
    /// So many seconds, so many bytes.
    pub const fn new(seconds: u64, max_bytes: usize) -> Self {
        Self { timeout: Duration::from_secs(seconds), max_bytes }
    }
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// The name, or the one it delegates to, is none.
    #[error("the server name cannot be used: {0}")]
    Name(#[from] BadServerName),
    /// A name has no address.
    #[error(transparent)]
    Dns(#[from] DnsError),
    /// All addresses are private ones, which are not allowed here.
    #[error("{host} is in a private network, where requests may not go (allow_private_addresses)")]
    PrivateAddress {
        /// Which host.
        host: String,
    },
    /// The certificate is not one for the wanted name, or there is no TLS.
    #[error("no secure connection: {0}")]
    Tls(String),
    /// Nobody takes the connection.
    #[error("no connection: {0}")]
    Connect(String),
    /// It took too long.
    #[error("no answer in time")]
    Timeout,
    /// We have too many requests under way ourselves: nobody was asked.
    #[error("too many requests are under way")]
    Busy,
    /// The answer is larger than is read.
    #[error("the answer is larger than {max_bytes} bytes")]
    TooLarge {
        /// How much is read.
        max_bytes: usize,
    },
    /// Redirected too often, or to something else than HTTPS.
    #[error("a redirect that is not followed: {0}")]
    Redirect(String),
    /// The address of the request cannot be sent as it was signed.
    #[error("the request's path cannot be sent")]
    BadTarget,
    /// The connection broke, or what came is not HTTP.
    #[error("the connection failed: {0}")]
    Broken(String),
}

/// Brings requests to servers and answers back.
#[async_trait]
pub trait Network: Send + Sync + 'static {
    /// Sends a request to a server, found by its name. The request's URI is path and query only. Redirects are not
    /// followed: whoever has the server's name answers.
    async fn send(
        &self,
        to: &ServerName,
        request: Request<Bytes>,
        limits: Limits,
    ) -> Result<Response<Bytes>, NetworkError>;

    /// Gets what lies at an `https://` address, with redirects followed; for media that a server keeps elsewhere.
    async fn fetch(&self, url: &str, limits: Limits) -> Result<Response<Bytes>, NetworkError>;
}
