//! The one shape in which a request is refused.
//! * Every error leaves as JSON with `errcode` and `error`.
//! * What went wrong inside the server is logged once, by the dispatcher, and leaves as a bare `M_UNKNOWN`.

use std::{error::Error as StdError, fmt, sync::Arc, time::Duration};

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use ruma::api::error::{DeserializationError, FromHttpRequestError, IntoHttpError};
use serde_json::{Map, Value};

use super::json_response;

/// A refusal as the specification words it: a status, an error code, a sentence, and for a few codes more fields.
#[derive(Debug, Clone)]
pub struct MatrixError {
    /// The HTTP status.
    pub status: StatusCode,
    /// The error code, such as `M_FORBIDDEN`.
    pub errcode: &'static str,
    /// A sentence for people, lower case and without a full stop.
    pub message: String,
    /// Fields beside `errcode` and `error`.
    pub extra: Map<String, Value>,
    /// What really happened, for the log and never for the client.
    pub cause: Option<Arc<dyn StdError + Send + Sync>>,
}

macro_rules! refusals {
    ($($(#[$doc:meta])* $name:ident: $status:ident $code:literal;)*) => {$(
        $(#[$doc])*
        pub fn $name(message: impl Into<String>) -> Self {
            Self::new(StatusCode::$status, $code, message)
        }
    )*};
}

impl MatrixError {
    /// A refusal without further fields.
    pub fn new(status: StatusCode, errcode: &'static str, message: impl Into<String>) -> Self {
        Self { status, errcode, message: message.into(), extra: Map::new(), cause: None }
    }

    /// The same with one more field in its JSON.
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.extra.insert(key.to_owned(), value.into());
        self
    }

    refusals! {
        /// The request is understood, and not allowed.
        forbidden: FORBIDDEN "M_FORBIDDEN";
        /// The thing asked for does not exist, or must not be known to the asker.
        not_found: NOT_FOUND "M_NOT_FOUND";
        /// This server knows no such endpoint.
        unrecognized: NOT_FOUND "M_UNRECOGNIZED";
        /// The body is not JSON.
        not_json: BAD_REQUEST "M_NOT_JSON";
        /// The body is JSON of another shape than wanted.
        bad_json: BAD_REQUEST "M_BAD_JSON";
        /// A parameter that must be there is not.
        missing_param: BAD_REQUEST "M_MISSING_PARAM";
        /// A parameter has a value that it cannot have.
        invalid_param: BAD_REQUEST "M_INVALID_PARAM";
        /// The request, or the event it would make, is too large.
        too_large: PAYLOAD_TOO_LARGE "M_TOO_LARGE";
        /// The request needs an access token.
        missing_token: UNAUTHORIZED "M_MISSING_TOKEN";
        /// The access token is unknown or no longer good.
        unknown_token: UNAUTHORIZED "M_UNKNOWN_TOKEN";
        /// Another server's request is not signed as it must be.
        unauthorized: UNAUTHORIZED "M_UNAUTHORIZED";
        /// Refused for a reason that has no code of its own.
        unknown: BAD_REQUEST "M_UNKNOWN";
        /// The change does not fit the present state.
        bad_state: FORBIDDEN "M_BAD_STATE";
        /// The alias is not acceptable where it was used.
        bad_alias: BAD_REQUEST "M_BAD_ALIAS";
        /// The alias is taken.
        room_in_use: BAD_REQUEST "M_ROOM_IN_USE";
        /// The initial state of a room contradicts itself.
        invalid_room_state: BAD_REQUEST "M_INVALID_ROOM_STATE";
        /// Rooms of that version cannot be made here.
        unsupported_room_version: BAD_REQUEST "M_UNSUPPORTED_ROOM_VERSION";
        /// The same reaction is there already.
        duplicate_annotation: BAD_REQUEST "M_DUPLICATE_ANNOTATION";
    }

    /// The server itself failed. `cause` is logged; the client learns nothing of it.
    pub fn internal(cause: impl StdError + Send + Sync + 'static) -> Self {
        let mut error = Self::new(StatusCode::INTERNAL_SERVER_ERROR, "M_UNKNOWN", "internal server error");
        error.cause = Some(Arc::new(cause));
        error
    }

    /// Too many requests: try again after `wait`.
    pub fn limit_exceeded(wait: Duration) -> Self {
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1);
        Self::new(StatusCode::TOO_MANY_REQUESTS, "M_LIMIT_EXCEEDED", "too many requests")
            .with("retry_after_ms", wait_ms)
    }

    fn body(&self) -> Vec<u8> {
        let mut fields = self.extra.clone();
        fields.insert("errcode".into(), self.errcode.into());
        fields.insert("error".into(), self.message.clone().into());
        serde_json::to_vec(&Value::Object(fields)).unwrap_or_else(|_| br#"{"errcode":"M_UNKNOWN"}"#.to_vec())
    }
}

impl fmt::Display for MatrixError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {}: {}", self.status.as_u16(), self.errcode, self.message)
    }
}

impl StdError for MatrixError {}

/// What went wrong inside the server, handed to the dispatcher beside the response.
#[derive(Clone)]
pub(super) struct InternalCause(pub Arc<dyn StdError + Send + Sync>);

impl IntoResponse for MatrixError {
    fn into_response(self) -> Response {
        let mut response = json_response(self.status, self.body());
        if let Some(wait_ms) = self.extra.get("retry_after_ms").and_then(Value::as_u64) {
            let seconds = wait_ms.div_ceil(1000).max(1);
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(cause) = self.cause {
            response.extensions_mut().insert(InternalCause(cause));
        }
        response
    }
}

/// A request that ruma could not read.
impl From<DeserializationError> for MatrixError {
    fn from(error: DeserializationError) -> Self {
        match error {
            DeserializationError::Json(error) => Self::from_json(&error),
            DeserializationError::Query(error) => Self::from_query(&error.to_string()),
            error => Self::invalid_param(error.to_string()),
        }
    }
}

impl From<FromHttpRequestError> for MatrixError {
    fn from(error: FromHttpRequestError) -> Self {
        match error {
            FromHttpRequestError::Deserialization(error) => error.into(),
            error => Self::unrecognized(error.to_string()),
        }
    }
}

/// A response that ruma could not write.
impl From<IntoHttpError> for MatrixError {
    fn from(error: IntoHttpError) -> Self {
        Self::internal(error)
    }
}

/// The store failed: nobody's fault outside.
impl From<hearth_store::StoreError> for MatrixError {
    fn from(error: hearth_store::StoreError) -> Self {
        Self::internal(error)
    }
}

impl MatrixError {
    /// The refusal of a body that could not be read, by what is wrong with it.
    pub fn from_json(error: &serde_json::Error) -> Self {
        use serde_json::error::Category;
        let message = error.to_string();
        match error.classify() {
            Category::Syntax | Category::Eof | Category::Io => Self::not_json(message),
            Category::Data if message.starts_with("missing field") => Self::missing_param(message),
            Category::Data if message.starts_with("invalid type") => Self::bad_json(message),
            Category::Data => Self::invalid_param(message),
        }
    }

    /// The refusal of a query string that could not be read.
    pub fn from_query(message: &str) -> Self {
        if message.starts_with("missing field") {
            Self::missing_param(message)
        } else {
            Self::invalid_param(message)
        }
    }
}
