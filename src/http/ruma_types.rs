//! Handlers speak ruma: [`Ruma`] reads a request into ruma's type and writes ruma's response.
//! An empty body counts as `{}`, wherever JSON is wanted: clients differ in what they send to a POST without fields.

use std::sync::Arc;

use axum::{
    body::{Body, Bytes},
    extract::{FromRequest, FromRequestParts, Request},
    response::{IntoResponse, Response},
};
use http::{StatusCode, header, request::Parts};
use ruma::api::{IncomingRequest, IncomingRequestExt as _, OutgoingResponse, OutgoingResponseExt as _};
use serde::de::{DeserializeOwned, value::SeqDeserializer};

use super::{APPLICATION_JSON, MatrixError, body, client_address::ClientAddress, route::Route};

/// A request or a response in ruma's types.
#[derive(Debug, Clone)]
pub struct Ruma<T>(pub T);

/// What most handlers answer.
pub type ApiResult<T> = Result<Ruma<T>, MatrixError>;

/// What the dispatcher knows of a request, beside the request itself.
#[derive(Clone)]
pub struct RequestFacts {
    /// The entry of the route table.
    pub route: Arc<Route>,
    /// The path's parameters in their order, percent-decoded.
    pub path_args: Vec<String>,
    /// Where the request came from, trusted proxies taken into account.
    pub client: ClientAddress,
}

impl<S: Sync> FromRequestParts<S> for RequestFacts {
    type Rejection = MatrixError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, MatrixError> {
        facts(parts).cloned()
    }
}

fn facts(parts: &Parts) -> Result<&RequestFacts, MatrixError> {
    parts.extensions.get::<RequestFacts>().ok_or_else(|| MatrixError::unrecognized("unrecognized request"))
}

impl<S, T> FromRequest<S> for Ruma<T>
where
    S: Sync,
    T: IncomingRequest + Send,
{
    type Rejection = MatrixError;

    async fn from_request(request: Request, _: &S) -> Result<Self, MatrixError> {
        let (mut parts, body) = request.into_parts();
        let facts = parts
            .extensions
            .remove::<RequestFacts>()
            .ok_or_else(|| MatrixError::unrecognized("unrecognized request"))?;
        // Answers to GET and HEAD never depend on a body, whatever a client attaches.
        let reads_body = parts.method != http::Method::GET && parts.method != http::Method::HEAD;
        let body = if reads_body { body::whole(body).await? } else { Bytes::new() };
        // Fields that nobody reads are not looked at by the parser.
        if std::str::from_utf8(&body).is_err() {
            return Err(MatrixError::not_json("the request's body is not UTF-8"));
        }
        let path_args: Vec<&str> = facts.path_args.iter().map(String::as_str).collect();
        let bodiless = (reads_body && body.is_empty()).then(|| parts.clone());
        let request = http::Request::from_parts(parts, &body[..]);
        match (T::try_from_http_request(request, &path_args), bodiless) {
            (Ok(request), _) => Ok(Ruma(request)),
            // Only what wants JSON refuses an empty body, and has it count as `{}`.
            (Err(_), Some(parts)) => {
                let request = http::Request::from_parts(parts, &b"{}"[..]);
                T::try_from_http_request(request, &path_args).map(Ruma).map_err(MatrixError::from)
            }
            (Err(error), None) => Err(refine(error.into(), &body)),
        }
    }
}

/// ruma reports the first thing that it stumbles over, which may be a wrong type in a body that is not JSON further on.
fn refine(error: MatrixError, body: &[u8]) -> MatrixError {
    let json_is_fine = body.is_empty() || serde_json::from_slice::<serde::de::IgnoredAny>(body).is_ok();
    if json_is_fine { error } else { MatrixError::not_json("the request's body is not JSON") }
}

impl<T: OutgoingResponse> IntoResponse for Ruma<T> {
    fn into_response(self) -> Response {
        match self.0.try_into_http_response::<Vec<u8>>() {
            Ok(response) => {
                let mut response = response.map(Body::from);
                if !response.headers().contains_key(header::CONTENT_TYPE)
                    && response.status() != StatusCode::NO_CONTENT
                {
                    response.headers_mut().insert(header::CONTENT_TYPE, APPLICATION_JSON);
                }
                response
            }
            Err(error) => MatrixError::from(error).into_response(),
        }
    }
}

/// The path's parameters, where ruma's request is not used: a tuple of ids and strings.
#[derive(Debug, Clone)]
pub struct PathArgs<T>(pub T);

impl<S: Sync, T: DeserializeOwned> FromRequestParts<S> for PathArgs<T> {
    type Rejection = MatrixError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, MatrixError> {
        let args = facts(parts)?.path_args.iter().map(String::as_str);
        let args = SeqDeserializer::<_, serde::de::value::Error>::new(args);
        T::deserialize(args).map(PathArgs).map_err(|error| MatrixError::invalid_param(error.to_string()))
    }
}

/// The query string, where ruma's request is not used.
#[derive(Debug, Clone)]
pub struct Query<T>(pub T);

impl<S: Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = MatrixError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, MatrixError> {
        let query = parts.uri.query().unwrap_or_default();
        serde_html_form::from_str(query)
            .map(Query)
            .map_err(|error| MatrixError::from_query(&error.to_string()))
    }
}

/// A JSON body of our own shape, for the few requests that ruma has no type for.
#[derive(Debug, Clone)]
pub struct JsonBody<T>(pub T);

impl<S: Sync, T: DeserializeOwned> FromRequest<S> for JsonBody<T> {
    type Rejection = MatrixError;

    async fn from_request(request: Request, state: &S) -> Result<Self, MatrixError> {
        let RawBody(bytes) = RawBody::from_request(request, state).await?;
        let json: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        serde_json::from_slice(json)
            .map(JsonBody)
            .map_err(|error| refine(MatrixError::from_json(&error), json))
    }
}

/// The body as it is, within the route's limit.
#[derive(Debug, Clone)]
pub struct RawBody(pub Bytes);

impl<S: Sync> FromRequest<S> for RawBody {
    type Rejection = MatrixError;

    async fn from_request(request: Request, _: &S) -> Result<Self, MatrixError> {
        body::whole(request.into_body()).await.map(RawBody)
    }
}
