//! Requests in, responses out: what every chapter of the API shares.
//! * [`Route`] and [`Routes`]: the table of all endpoints, as data.
//! * [`Ruma`]: a handler's request and response in ruma's types; [`RawJson`]: a response that is JSON already.
//! * [`LocalUser`], [`RemoteServer`]: who asks. The dispatcher has checked the token or the signature before any handler
//!   runs.
//! * [`MatrixError`]: the one shape in which a request is refused.

pub mod auth;
pub mod body;
pub mod client_address;
pub mod dispatch;
pub mod error;
pub mod rate_limit;
pub mod route;
mod ruma_types;
pub mod shutdown;
pub mod unsigned;

use axum::{
    body::{Body, Bytes},
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};

pub use self::{
    auth::{LocalUser, RemoteServer},
    dispatch::Dispatcher,
    error::MatrixError,
    rate_limit::RateClass,
    route::{Auth, BodyLimit, Route, Routes, Specimen, TRANSACTION_BYTES},
    ruma_types::{ApiResult, JsonBody, PathArgs, Query, RawBody, RequestFacts, Ruma},
    shutdown::Shutdown,
};

/// The content type of every JSON answer.
pub const APPLICATION_JSON: HeaderValue = HeaderValue::from_static("application/json");

/// A 200 answer whose body is JSON already: what is served hot is kept as bytes.
#[derive(Debug, Clone)]
pub struct RawJson(pub Bytes);

impl RawJson {
    /// The empty object.
    pub const EMPTY: Self = Self(Bytes::from_static(b"{}"));

    /// Writes `value` as JSON.
    pub fn of(value: &impl serde::Serialize) -> Result<Self, MatrixError> {
        serde_json::to_vec(value).map(Self::from).map_err(MatrixError::internal)
    }
}

impl From<Vec<u8>> for RawJson {
    fn from(json: Vec<u8>) -> Self {
        Self(json.into())
    }
}

impl From<String> for RawJson {
    fn from(json: String) -> Self {
        Self(json.into())
    }
}

impl IntoResponse for RawJson {
    fn into_response(self) -> Response {
        json_response(StatusCode::OK, self.0)
    }
}

/// The answer of a handler that writes its JSON itself.
pub type JsonResult = Result<RawJson, MatrixError>;

/// A JSON answer with a status.
pub fn json_response(status: StatusCode, body: impl Into<Bytes>) -> Response {
    let mut response = Response::new(Body::from(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, APPLICATION_JSON);
    response
}
