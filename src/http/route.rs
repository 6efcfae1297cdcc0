//! The table of endpoints. An entry says all that is the same for every request to it: method, paths, who may ask,
//! how much body, what it counts against, and a specimen from which the tests make it refuse.

use std::{future::Future, pin::Pin, sync::Arc};

use axum::{extract::Request, handler::Handler, response::Response};
use http::Method;
use ruma::api::{
    IncomingRequest,
    auth_scheme::{AccessToken, AccessTokenOptional, AuthScheme, NoAccessToken, NoAuthentication},
    federation::authentication::ServerSignatures,
    path_builder::PathBuilder,
};

use super::RateClass;
use crate::app::App;

/// Who may call an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Auth {
    /// Anybody; a token is not even looked at.
    None,
    /// Anybody; a token that is there must be good.
    Optional,
    /// Local users with a good token.
    Token,
    /// Other servers, by a signature over the whole request.
    Server,
}

/// How much of a body an endpoint reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyLimit {
    /// An ordinary JSON request.
    Json,
    /// A request whose whole is one event.
    Event,
    /// A file.
    Upload,
    /// A transaction of another server.
    Transaction,
}

/// Bytes of a transaction: twice what its events may have, and as much again for the rest.
pub const TRANSACTION_BYTES: usize = 16 * 1024 * 1024;

/// What becomes of a suspended account's request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenSuspended {
    /// Served as always.
    Served,
    /// 403 `M_USER_SUSPENDED`.
    Refused,
}

/// From what a test makes a request that is right in every respect, and then wrong in one.
///
/// In `path`, `query` and `body` a test replaces `$me`, `$other` (a second local user), `$room` (a room that `$me`
/// made), `$event` (a message in it), `$alias` (its alias), `$server`, `$remote` (another server, which signs the requests
/// that only servers may make), `$device`, `$txn` (fresh each time).
#[derive(Debug, Clone, Copy, Default)]
pub struct Specimen {
    /// Values for the path's parameters, a blank between them.
    pub path: &'static str,
    /// The query string, without its question mark.
    pub query: &'static str,
    /// A good JSON body, if the endpoint reads one.
    pub body: Option<&'static str>,
    /// A JSON body of a wrong type, to be refused with 400.
    pub wrong: Option<&'static str>,
    /// What a local user who is not in `$room` gets.
    pub outsider: Option<(u16, &'static str)>,
    /// What a member of `$room` without any power gets.
    pub powerless: Option<(u16, &'static str)>,
}

impl Specimen {
    /// A request with these path parameters and nothing else.
    pub const fn path(path: &'static str) -> Self {
        Self { path, query: "", body: None, wrong: None, outsider: None, powerless: None }
    }

    /// With this query string.
    pub const fn query(mut self, query: &'static str) -> Self {
        self.query = query;
        self
    }

    /// With this JSON body, and one of a wrong type.
    pub const fn body(mut self, body: &'static str, wrong: &'static str) -> Self {
        self.body = Some(body);
        self.wrong = Some(wrong);
        self
    }

    /// With a JSON body that has nothing which could be wrong in itself.
    pub const fn any_body(mut self, body: &'static str) -> Self {
        self.body = Some(body);
        self
    }

    /// Refused so to those who are not in the room.
    pub const fn outsider(mut self, status: u16, errcode: &'static str) -> Self {
        self.outsider = Some((status, errcode));
        self
    }

    /// Refused so to members without power.
    pub const fn powerless(mut self, status: u16, errcode: &'static str) -> Self {
        self.powerless = Some((status, errcode));
        self
    }
}

type Answer = Pin<Box<dyn Future<Output = Response> + Send>>;
type Call = dyn Fn(Request, App) -> Answer + Send + Sync;

/// One endpoint.
pub struct Route {
    /// The HTTP method.
    pub method: Method,
    /// All paths that lead here, old versions and unstable prefixes included.
    pub paths: Vec<String>,
    /// Who may ask.
    pub auth: Auth,
    /// What it counts against.
    pub rate: RateClass,
    /// How much body it reads.
    pub body_limit: BodyLimit,
    /// Whether a locked account still gets here: only to log out.
    pub when_locked: bool,
    /// What a suspended account gets.
    pub when_suspended: WhenSuspended,
    /// What the refusal tests build on. `None` fails them.
    pub specimen: Option<Specimen>,
    call: Option<Box<Call>>,
}

impl std::fmt::Debug for Route {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{} {}", self.method, self.paths.first().map_or("", String::as_str))
    }
}

/// ruma's authentication schemes in our words.
pub trait RouteAuth {
    /// Who may ask.
    const AUTH: Auth;
}

impl RouteAuth for NoAuthentication {
    const AUTH: Auth = Auth::None;
}

impl RouteAuth for NoAccessToken {
    const AUTH: Auth = Auth::None;
}

impl RouteAuth for AccessToken {
    const AUTH: Auth = Auth::Token;
}

impl RouteAuth for AccessTokenOptional {
    const AUTH: Auth = Auth::Optional;
}

impl RouteAuth for ServerSignatures {
    const AUTH: Auth = Auth::Server;
}

impl Route {
    /// The endpoint of a ruma request: method, all paths and authentication as ruma knows them.
    pub fn of<R>() -> Self
    where
        R: IncomingRequest,
        R::Authentication: AuthScheme + RouteAuth,
    {
        let paths = R::PATH_BUILDER.all_paths().map(str::to_owned).collect();
        Self::with(R::METHOD, paths, <R::Authentication as RouteAuth>::AUTH)
    }

    /// An endpoint that ruma has no type for. Path parameters in braces: `/a/{b}`.
    pub fn at(method: Method, path: &str, auth: Auth) -> Self {
        Self::with(method, vec![path.to_owned()], auth)
    }

    fn with(method: Method, paths: Vec<String>, auth: Auth) -> Self {
        let mut route = Self {
            method,
            paths: Vec::new(),
            auth,
            rate: RateClass::Unlimited,
            body_limit: BodyLimit::Json,
            when_locked: false,
            when_suspended: WhenSuspended::Served,
            specimen: None,
            call: None,
        };
        for path in paths {
            route = route.also_at(&path);
        }
        route
    }

    /// The same endpoint under one more path. A `v3` path also leads here as `r0`, and the other way round.
    pub fn also_at(mut self, path: &str) -> Self {
        let twin = if path.contains("/v3/") {
            Some(path.replacen("/v3/", "/r0/", 1))
        } else if path.contains("/r0/") {
            Some(path.replacen("/r0/", "/v3/", 1))
        } else {
            None
        };
        for path in std::iter::once(path.to_owned()).chain(twin) {
            if !self.paths.contains(&path) {
                self.paths.push(path);
            }
        }
        self
    }

    /// Who may ask, where ruma says otherwise.
    pub fn auth(mut self, auth: Auth) -> Self {
        self.auth = auth;
        self
    }

    /// What a request counts against.
    pub fn rate(mut self, rate: RateClass) -> Self {
        self.rate = rate;
        self
    }

    /// How much body is read.
    pub fn body_limit(mut self, limit: BodyLimit) -> Self {
        self.body_limit = limit;
        self
    }

    /// Locked accounts are served here too.
    pub fn when_locked(mut self) -> Self {
        self.when_locked = true;
        self
    }

    /// Suspended accounts are refused here.
    pub fn not_when_suspended(mut self) -> Self {
        self.when_suspended = WhenSuspended::Refused;
        self
    }

    /// What the refusal tests build on.
    pub fn specimen(mut self, specimen: Specimen) -> Self {
        self.specimen = Some(specimen);
        self
    }

    /// The handler: any axum handler over [`App`].
    pub fn to<H, T>(mut self, handler: H) -> Self
    where
        H: Handler<T, App>,
        T: 'static,
    {
        self.call = Some(Box::new(move |request, app| Box::pin(handler.clone().call(request, app))));
        self
    }

    pub(super) fn call(&self, request: Request, app: App) -> Option<Answer> {
        self.call.as_ref().map(|call| call(request, app))
    }
}

/// All endpoints.
#[derive(Default)]
pub struct Routes(pub Vec<Arc<Route>>);

impl Routes {
    /// Adds an endpoint.
    pub fn add(&mut self, route: Route) {
        self.0.push(Arc::new(route));
    }
}
