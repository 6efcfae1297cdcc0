//! The way of a request: path, method, token, rate, then the endpoint's handler.
//! * A known path with a wrong method is 405, an unknown path 404, both `M_UNRECOGNIZED`: clients choose their
//!   fall-backs by that code.
//! * `OPTIONS` is answered on every path and runs no logic; every answer carries the CORS headers.
//! * The token is checked before the body is read, a server's signature as soon as it has been. After a refusal the body is read on within bounds, so that the
//!   client gets to the answer, see [`super::body`].
//! * No span, no id, no log line is made at the default log level unless something went wrong.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    body::{Body, Bytes, HttpBody as _},
    extract::Request,
    response::{IntoResponse, Response},
};
use hearth_federation::Claim;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header, request::Parts};
use percent_encoding::percent_decode_str;

use super::{
    MatrixError, RateClass, RequestFacts,
    auth::{LocalUser, RemoteServer, access_token, claim_of_server},
    body::{self, ReadOn},
    client_address::ClientAddress,
    error::InternalCause,
    rate_limit::Asker,
    route::{Auth, BodyLimit, Route, Routes, TRANSACTION_BYTES, WhenSuspended},
    unsigned::Unsigned,
};
use crate::app::App;

/// The endpoints of one path, by method.
type Endpoints = Vec<Arc<Route>>;

/// Leads every request to its endpoint.
pub struct Dispatcher {
    app: App,
    paths: matchit::Router<Endpoints>,
    unsigned: Unsigned,
    next_request_id: std::sync::atomic::AtomicU64,
}

/// Two entries of the route table claim the same method and path, or a path is malformed: a programming error that
/// the first test, and the first start, finds.
#[derive(Debug, thiserror::Error)]
#[error("route {method} {path}: {problem}")]
pub struct RouteConflict {
    method: Method,
    path: String,
    problem: String,
}

impl Dispatcher {
    /// A dispatcher over these endpoints.
    pub fn new(app: App, routes: &Routes) -> Result<Self, RouteConflict> {
        let mut by_path: std::collections::BTreeMap<String, Endpoints> = std::collections::BTreeMap::new();
        for route in &routes.0 {
            for path in &route.paths {
                let endpoints = by_path.entry(numbered(path)).or_default();
                if endpoints.iter().any(|other| other.method == route.method) {
                    return Err(RouteConflict {
                        method: route.method.clone(),
                        path: path.clone(),
                        problem: "is there twice".into(),
                    });
                }
                endpoints.push(route.clone());
            }
        }
        let mut paths = matchit::Router::new();
        for (path, endpoints) in by_path {
            let method = endpoints.first().map(|route| route.method.clone()).unwrap_or_default();
            paths.insert(path.clone(), endpoints).map_err(|error| RouteConflict {
                method,
                path,
                problem: error.to_string(),
            })?;
        }
        let unsigned = Unsigned::default();
        Ok(Self { app, paths, unsigned, next_request_id: std::sync::atomic::AtomicU64::new(1) })
    }

    /// The server's parts.
    pub fn app(&self) -> &App {
        &self.app
    }

    /// Answers one request.
    pub async fn handle(&self, request: Request, peer: SocketAddr) -> Response {
        if tracing::enabled!(tracing::Level::DEBUG) {
            return self.handle_logged(request, peer).await;
        }
        let about = (request.method().clone(), request.uri().clone());
        let id_given = request.headers().get(&REQUEST_ID).cloned();
        let mut response = self.answer(request, peer).await.unwrap_or_else(IntoResponse::into_response);
        if let Some(InternalCause(cause)) = response.extensions_mut().remove::<InternalCause>() {
            let id = self.request_id(id_given.as_ref());
            report(&about.0, &about.1, &id, &*cause);
            set_request_id(&mut response, &id);
        } else if let Some(id) = id_given {
            response.headers_mut().insert(REQUEST_ID, id);
        }
        add_cors(response.headers_mut());
        response
    }

    /// The same with a span around it and a line after it.
    async fn handle_logged(&self, request: Request, peer: SocketAddr) -> Response {
        use tracing::Instrument as _;
        let (method, uri) = (request.method().clone(), request.uri().clone());
        let id = self.request_id(request.headers().get(&REQUEST_ID));
        let span = tracing::debug_span!("request", %id, %method, path = uri.path());
        let started = std::time::Instant::now();
        let mut response = self
            .answer(request, peer)
            .instrument(span.clone())
            .await
            .unwrap_or_else(IntoResponse::into_response);
        span.in_scope(|| {
            if let Some(InternalCause(cause)) = response.extensions_mut().remove::<InternalCause>() {
                report(&method, &uri, &id, &*cause);
            }
            let status = response.status().as_u16();
            let elapsed_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
            tracing::debug!(status, elapsed_us, "answered");
        });
        set_request_id(&mut response, &id);
        add_cors(response.headers_mut());
        response
    }

    async fn answer(&self, request: Request, peer: SocketAddr) -> Result<Response, MatrixError> {
        if request.method() == Method::OPTIONS {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::NO_CONTENT;
            return Ok(response);
        }
        let waits = request.headers().contains_key(header::EXPECT);
        let (mut parts, body) = request.into_parts();
        let (route, limit, read_on) = match self.admit(&mut parts, peer).await {
            Ok(admitted) => admitted,
            Err(refusal) => {
                body::divide(body, 0).1.discard(ReadOn::STRANGER, waits).await;
                return Err(refusal);
            }
        };
        if body.is_end_stream() {
            return self.call(&route, Request::from_parts(parts, body)).await;
        }
        let is_too_long = body.size_hint().lower() > limit as u64;
        let (body, rest) = body::divide(body, limit);
        if is_too_long {
            rest.discard(read_on.and(limit), waits).await;
            return Err(body::too_long());
        }
        let answer = self.call(&route, Request::from_parts(parts, body)).await;
        let refused = answer.as_ref().map_or(true, |response| {
            response.status().is_client_error() || response.status().is_server_error()
        });
        if refused {
            rest.discard(read_on, waits).await;
        }
        answer
    }

    /// All that is checked before the body is looked at: the route, its limit, and how far a refused body is read on.
    async fn admit(
        &self,
        parts: &mut Parts,
        peer: SocketAddr,
    ) -> Result<(Arc<Route>, usize, ReadOn), MatrixError> {
        let (route, path_args) = self.find(&parts.method, &parts.uri)?;
        let client = ClientAddress::of(peer, &parts.headers, &self.app.config.trusted_proxies);
        let mut read_on = ReadOn::STRANGER;
        if route.auth == Auth::Server {
            parts.extensions.insert(claim_of_server(&self.app.federation, client, &parts.headers).await?);
        }
        if let Some(user) = self.authenticate(route, &parts.headers, &parts.uri, client).await? {
            self.charge(route, Asker::User(user.user_id.clone()), &user)?;
            parts.extensions.insert(user);
            read_on = ReadOn::of(route.body_limit);
        } else if self.app.rate_limits.applies(route.rate) {
            self.app.rate_limits.take(route.rate, Asker::Address(client.0))?;
        }
        let limits = &self.app.config.limits;
        let limit = match route.body_limit {
            BodyLimit::Json => limits.request_size.bytes(),
            BodyLimit::Event => limits.event_request_size.bytes(),
            BodyLimit::Upload => limits.upload_size.bytes(),
            BodyLimit::Transaction => TRANSACTION_BYTES,
        };
        parts.extensions.insert(RequestFacts { route: route.clone(), path_args, client });
        Ok((route.clone(), limit, read_on))
    }

    async fn call(&self, route: &Route, mut request: Request) -> Result<Response, MatrixError> {
        if let Some(claim) = request.extensions_mut().remove::<Claim>() {
            request = self.verify(&claim, request).await?;
        }
        match route.call(request, self.app.clone()) {
            Some(answer) => Ok(answer.await),
            None => Err(MatrixError::unrecognized("unrecognized request")),
        }
    }

    /// Reads a server's request whole, for its signature covers the body, and checks it.
    async fn verify(&self, claim: &Claim, request: Request) -> Result<Request, MatrixError> {
        let (mut parts, body) = request.into_parts();
        let has_body = parts.method != Method::GET && parts.method != Method::HEAD;
        let from = parts.extensions.get::<RequestFacts>().map(|facts| facts.client);
        let (body, _unchecked) = match from.filter(|_| has_body) {
            Some(from) => self.unsigned.whole(body, from).await.map(|(body, share)| (body, Some(share)))?,
            None => (Bytes::new(), None),
        };
        let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
        let origin = self.app.federation.verify(claim, parts.method.as_str(), target, &body).await?;
        parts.extensions.insert(RemoteServer { origin });
        Ok(Request::from_parts(parts, Body::from(body)))
    }

    fn find(&self, method: &Method, uri: &Uri) -> Result<(&Arc<Route>, Vec<String>), MatrixError> {
        let found = self
            .paths
            .at(uri.path())
            .map_err(|_| MatrixError::unrecognized("unrecognized request: no such path"))?;
        let method = if method == Method::HEAD { &Method::GET } else { method };
        let route = found.value.iter().find(|route| route.method == *method).ok_or_else(|| {
            MatrixError::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "M_UNRECOGNIZED",
                "unrecognized request: no such method here",
            )
        })?;
        let decode = |part: &str| percent_decode_str(part).decode_utf8().map(std::borrow::Cow::into_owned);
        let path_args = found.params.iter().map(|(_, value)| decode(value)).collect::<Result<_, _>>();
        let path_args =
            path_args.map_err(|_| MatrixError::invalid_param("a part of the path is not UTF-8"))?;
        Ok((route, path_args))
    }

    async fn authenticate(
        &self,
        route: &Route,
        headers: &HeaderMap,
        uri: &Uri,
        client: ClientAddress,
    ) -> Result<Option<LocalUser>, MatrixError> {
        if matches!(route.auth, Auth::None | Auth::Server) {
            return Ok(None);
        }
        let Some(token) = access_token(headers, uri, self.app.config.query_access_tokens) else {
            return match route.auth {
                Auth::Token => Err(MatrixError::missing_token("missing access token")),
                Auth::Optional | Auth::None | Auth::Server => Ok(None),
            };
        };
        let user = self.app.authenticate(token, client, route.when_locked).await?;
        if user.is_suspended && route.when_suspended == WhenSuspended::Refused {
            return Err(MatrixError::new(
                StatusCode::FORBIDDEN,
                "M_USER_SUSPENDED",
                "this account is suspended",
            ));
        }
        Ok(Some(user))
    }

    /// Administrators are not slowed down.
    fn charge(&self, route: &Route, asker: Asker, user: &LocalUser) -> Result<(), MatrixError> {
        if user.is_admin || route.rate == RateClass::Unlimited {
            return Ok(());
        }
        self.app.rate_limits.take(route.rate, asker)
    }

    fn request_id(&self, given: Option<&HeaderValue>) -> String {
        // A proxy's id is taken over if it is a harmless one.
        let given = given.and_then(|value| value.to_str().ok());
        let harmless = given.filter(|id| id.len() <= 64 && id.bytes().all(|byte| byte.is_ascii_graphic()));
        harmless.map(str::to_owned).unwrap_or_else(|| {
            self.next_request_id.fetch_add(1, std::sync::atomic::Ordering::Relaxed).to_string()
        })
    }
}

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

fn set_request_id(response: &mut Response, id: &str) {
    if let Ok(id) = HeaderValue::from_str(id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
}

fn report(method: &Method, uri: &Uri, id: &str, cause: &(dyn std::error::Error + Send + Sync)) {
    let mut error = cause.to_string();
    let mut source = cause.source();
    while let Some(deeper) = source {
        error = format!("{error}: {deeper}");
        source = deeper.source();
    }
    tracing::error!(%method, path = uri.path(), request_id = id, error, "a request failed inside the server");
}

/// Names of path parameters differ between endpoints; their places do not.
fn numbered(path: &str) -> String {
    let mut index = 0;
    let parts = path.split('/').map(|part| {
        if let Some(name) = part.strip_prefix('{') {
            index += 1;
            let star = if name.starts_with('*') { "*" } else { "" };
            format!("{{{star}p{index}}}")
        } else {
            part.to_owned()
        }
    });
    parts.collect::<Vec<_>>().join("/")
}

/// The specification's CORS headers, so that web clients of any origin can talk to the server.
pub fn add_cors(headers: &mut HeaderMap) {
    const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, POST, PUT, DELETE, OPTIONS");
    const HEADERS: HeaderValue =
        HeaderValue::from_static("X-Requested-With, Content-Type, Authorization, Range");
    const EXPOSED: HeaderValue = HeaderValue::from_static("Content-Range, Retry-After, X-Request-Id, ETag");
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HEADERS);
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
}
