//! What can be asked of other servers: a method per endpoint, signed, bounded, with errors that say what to do next.
//! * A server that failed is left alone until its time has come, unless somebody waits for it
//!   ([`Client::even_if_failing`]). An answer of any kind that speaks Matrix is a sign of life.
//! * Answers come as they are, JSON in slices of the one buffer that was received: whoever takes events over checks them.

mod events;
mod json;
mod media;
mod membership;
mod policy;
mod queries;

use std::sync::Arc;

use bytes::Bytes;
use hearth_dag::{LocalServers, canonical::NotCanonical};
use hearth_store::StoreError;
use http::{Method, Request, StatusCode, header};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use ruma::{OwnedServerName, ServerName};
use serde::{Deserialize, Serialize};

pub use self::{
    events::{EventNear, PDUS_PER_ANSWER, PduAnswer, SendAnswer, State, StateIds},
    json::Json,
    media::{Medium, MediumSource},
    membership::{JOIN_EVENTS_MAX, JoinAnswer, Template},
    policy::POLICY,
    queries::DirectoryAnswer,
};
use crate::{
    access::{Access, AccessDenied},
    destinations::Destinations,
    network::{Limits, Network, NetworkError},
    x_matrix::{SignedParts, signed_content},
};

/// An ordinary question.
pub const ORDINARY: Limits = Limits::new(30, 8 * 1024 * 1024);
/// A question that keeps the other server busy: joins, state, transactions.
pub const HEAVY: Limits = Limits::new(90, 32 * 1024 * 1024);
/// A join is answered with the state of the room and all that it rests on.
pub const JOIN: Limits = Limits::new(300, 256 * 1024 * 1024);
/// A medium; its size is the caller's to say, this is what comes around it.
pub const MEDIA_SECONDS: u64 = 120;
/// Of an error's body so much is looked at.
const ERROR_BYTES: usize = 16 * 1024;
/// Of an error's words so much is kept.
const MESSAGE_CHARACTERS: usize = 500;

/// All but what the specification lets stand in paths and queries.
const ENCODED: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Asks other servers. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
    speaking_as: Option<OwnedServerName>,
    even_if_failing: bool,
}

struct Inner {
    network: Arc<dyn Network>,
    local_servers: LocalServers,
    access: Access,
    destinations: Destinations,
}

/// Another server said no.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{status} {}: {error}", errcode.as_deref().unwrap_or("without a code"))]
pub struct RemoteError {
    /// The HTTP status.
    pub status: StatusCode,
    /// Such as `M_FORBIDDEN`; nothing if the answer is no Matrix error.
    pub errcode: Option<String>,
    /// In words.
    pub error: String,
    /// The whole answer, for the fields that some codes have.
    pub body: serde_json::Value,
}

impl RemoteError {
    fn read(status: StatusCode, body: &[u8]) -> Self {
        let body: serde_json::Value = match body.len() {
            0..=ERROR_BYTES => serde_json::from_slice(body).unwrap_or_default(),
            _ => serde_json::Value::Null,
        };
        let text = |key: &str| body.get(key).and_then(serde_json::Value::as_str);
        let short = |text: &str| text.chars().take(MESSAGE_CHARACTERS).collect::<String>();
        let error = short(text("error").unwrap_or("no reason given"));
        Self { status, errcode: text("errcode").map(short), error, body }
    }

    /// Whether the other server does not know the endpoint at all.
    pub fn is_unrecognized(&self) -> bool {
        let status = matches!(self.status, StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED);
        status && self.errcode.as_deref().is_none_or(|code| code == "M_UNRECOGNIZED")
    }
}

/// Why there is no answer to a request.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// A server of our own: nobody to ask.
    #[error("{0} is this server itself")]
    Local(OwnedServerName),
    /// By the operator's lists.
    #[error(transparent)]
    Access(#[from] AccessDenied),
    /// It failed, and its time has not come.
    #[error("the server could not be reached lately and is not tried yet")]
    Resting {
        /// When it is tried again, milliseconds since 1970.
        next_try_ms: u64,
    },
    /// It cannot be reached.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// It said no.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// It said something that cannot be understood.
    #[error("the answer cannot be understood: {0}")]
    Malformed(String),
    /// What was to be asked is not JSON.
    #[error("the request's body is not JSON: {0}")]
    Body(#[from] NotCanonical),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl RequestError {
    /// What the other server said, if it did.
    pub fn remote(&self) -> Option<&RemoteError> {
        match self {
            Self::Remote(error) => Some(error),
            _ => None,
        }
    }

    fn malformed(error: impl std::fmt::Display) -> Self {
        Self::Malformed(error.to_string())
    }
}

/// A request on its way.
struct Call<'a> {
    method: Method,
    target: String,
    body: Option<&'a str>,
    limits: Limits,
    /// A server that says no counts as one that fails.
    must_succeed: bool,
}

impl<'a> Call<'a> {
    fn get(target: String) -> Self {
        Self { method: Method::GET, target, body: None, limits: ORDINARY, must_succeed: false }
    }

    fn put(target: String, body: &'a str) -> Self {
        Self { method: Method::PUT, target, body: Some(body), limits: ORDINARY, must_succeed: false }
    }

    fn post(target: String, body: &'a str) -> Self {
        Self { method: Method::POST, target, body: Some(body), limits: ORDINARY, must_succeed: false }
    }

    fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    fn must_succeed(mut self) -> Self {
        self.must_succeed = true;
        self
    }
}

/// A path from its parts, each encoded.
fn path(start: &str, parts: &[&str]) -> String {
    let mut path = start.to_owned();
    for part in parts {
        path.push('/');
        path.extend(utf8_percent_encode(part, &ENCODED));
    }
    path
}

/// A query string behind a path.
fn with_query<'a>(mut path: String, pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut mark = '?';
    for (name, value) in pairs {
        path.push(mark);
        path.push_str(name);
        path.push('=');
        path.extend(utf8_percent_encode(value, &ENCODED));
        mark = '&';
    }
    path
}

fn to_json(value: &impl Serialize) -> Result<String, RequestError> {
    serde_json::to_string(value).map_err(RequestError::malformed)
}

impl Client {
    pub(crate) fn new(
        network: Arc<dyn Network>,
        local_servers: LocalServers,
        speaking_as: Option<OwnedServerName>,
        access: Access,
        destinations: Destinations,
    ) -> Self {
        let inner = Arc::new(Inner { network, local_servers, access, destinations });
        Self { inner, speaking_as, even_if_failing: false }
    }

    /// The same in the name of another server of ours.
    #[must_use]
    pub fn speaking_as(&self, server: &ServerName) -> Self {
        Self { speaking_as: Some(server.to_owned()), ..self.clone() }
    }

    /// The same for somebody who waits: servers are tried although they failed lately.
    #[must_use]
    pub fn even_if_failing(&self) -> Self {
        Self { even_if_failing: true, ..self.clone() }
    }

    /// In whose name is asked.
    pub fn speaker(&self) -> Option<&ServerName> {
        self.speaking_as.as_deref()
    }

    /// Whether a server may be asked at all, and now.
    pub async fn may_ask(&self, server: &ServerName) -> Result<(), RequestError> {
        if self.inner.local_servers.is_local(server) {
            return Err(RequestError::Local(server.to_owned()));
        }
        self.inner.access.check(server)?;
        if !self.even_if_failing
            && let Some(next_try_ms) = self.inner.destinations.not_before(server).await?
        {
            return Err(RequestError::Resting { next_try_ms });
        }
        Ok(())
    }

    /// Asks, and gives the body of a 200 answer.
    async fn call(&self, server: &ServerName, call: Call<'_>) -> Result<http::Response<Bytes>, RequestError> {
        self.may_ask(server).await?;
        // Canonical, so that what is signed is byte for byte what is sent.
        let content = signed_content(call.body.unwrap_or_default().as_bytes())?;
        let request = self.signed(server, &call, content)?;
        let destinations = &self.inner.destinations;
        let response = match self.inner.network.send(server, request, call.limits).await {
            Ok(response) => response,
            Err(error) => {
                if is_servers_fault(&error) {
                    destinations.failed(server, &error.to_string()).await?;
                }
                return Err(error.into());
            }
        };
        let status = response.status();
        if status == StatusCode::OK {
            destinations.alive(server).await?;
            return Ok(response);
        }
        let error = RemoteError::read(status, response.body());
        // A proxy speaks for a server that is not there; one that is says why it fails.
        if call.must_succeed || (status.is_server_error() && error.errcode.is_none()) {
            destinations.failed(server, &error.to_string()).await?;
        } else {
            destinations.alive(server).await?;
        }
        Err(error.into())
    }

    /// The request with its signature.
    fn signed(
        &self,
        server: &ServerName,
        call: &Call<'_>,
        content: Option<String>,
    ) -> Result<Request<Bytes>, RequestError> {
        let mut request = Request::builder().method(call.method.clone()).uri(call.target.as_str());
        if let Some(name) = &self.speaking_as {
            let signer = self.inner.local_servers.signer_for(name);
            let signer = signer.ok_or_else(|| RequestError::malformed("nobody signs for this name"))?;
            let method = call.method.as_str();
            let parts = SignedParts { method, target: &call.target, content: content.as_deref() };
            request = request.header(header::AUTHORIZATION, parts.sign(signer, server));
        }
        if content.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let body = content.map(Bytes::from).unwrap_or_default();
        request.body(body).map_err(|_| NetworkError::BadTarget.into())
    }

    /// Asks, and gives the answer's JSON as it is.
    async fn json(&self, server: &ServerName, call: Call<'_>) -> Result<Json, RequestError> {
        let response = self.call(server, call).await?;
        Json::read(response.into_body()).map_err(RequestError::malformed)
    }

    /// Asks, and reads the answer.
    async fn read<T: for<'de> Deserialize<'de>>(
        &self,
        server: &ServerName,
        call: Call<'_>,
    ) -> Result<T, RequestError> {
        let response = self.call(server, call).await?;
        serde_json::from_slice(response.body()).map_err(RequestError::malformed)
    }

    /// The name and version of the other server's software.
    pub async fn version(&self, server: &ServerName) -> Result<Json, RequestError> {
        self.json(server, Call::get("/_matrix/federation/v1/version".to_owned())).await
    }
}

/// Not where we ourselves are in the way: a private address, a path that cannot be sent, a limit of ours.
fn is_servers_fault(error: &NetworkError) -> bool {
    !matches!(
        error,
        NetworkError::PrivateAddress { .. }
            | NetworkError::BadTarget
            | NetworkError::TooLarge { .. }
            | NetworkError::Busy
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_encoded_part_by_part() {
        assert_eq!(
            path("/_matrix/federation/v1/event_auth", &["!r:a.test", "$a/b+c"]),
            "/_matrix/federation/v1/event_auth/%21r%3Aa.test/%24a%2Fb%2Bc"
        );
        assert_eq!(with_query("/a".to_owned(), [("b", "1 &"), ("b", "ü")]), "/a?b=1%20%26&b=%C3%BC");
        assert_eq!(with_query("/a".to_owned(), []), "/a");
    }

    #[test]
    fn errors_are_read_whatever_they_look_like() {
        let error =
            RemoteError::read(StatusCode::FORBIDDEN, br#"{"errcode":"M_FORBIDDEN","error":"no","x":1}"#);
        assert_eq!((error.errcode.as_deref(), &*error.error), (Some("M_FORBIDDEN"), "no"));
        assert_eq!(error.body["x"], 1);
        assert_eq!(error.to_string(), "403 Forbidden M_FORBIDDEN: no");
        for body in [&b""[..], b"<html>", b"[1]", b"\xff", &[b'['; ERROR_BYTES + 1]] {
            let error = RemoteError::read(StatusCode::BAD_GATEWAY, body);
            assert_eq!((error.errcode, &*error.error), (None, "no reason given"));
        }
        let long = format!(r#"{{"errcode":"{0}","error":"{0}"}}"#, "ü".repeat(2000));
        assert_eq!(
            RemoteError::read(StatusCode::OK, long.as_bytes()).error.chars().count(),
            MESSAGE_CHARACTERS
        );
        let unknown = |status: u16, body: &[u8]| {
            RemoteError::read(StatusCode::from_u16(status).unwrap(), body).is_unrecognized()
        };
        assert!(
            unknown(404, br#"{"errcode":"M_UNRECOGNIZED"}"#) && unknown(404, b"") && unknown(405, b"<html>")
        );
        assert!(
            !unknown(404, br#"{"errcode":"M_NOT_FOUND"}"#)
                && !unknown(400, br#"{"errcode":"M_UNRECOGNIZED"}"#)
        );
    }
}
