//! User-interactive authentication as HTTP: what several chapters ask for before they do something grave.

use axum::{
    body::{Body, Bytes},
    extract::{FromRequest, Request},
    response::{IntoResponse, Response},
};
use hearth_users::{BodyDigest, UiaDone, UiaError, UiaRequest, Users};
use http::StatusCode;
use ruma::{
    UserId,
    api::{
        IncomingRequest,
        client::uiaa::{AuthData, AuthFlow, AuthType, UiaaInfo},
    },
};
use serde_json::{Value as Json, value::RawValue};

use crate::http::{MatrixError, RawBody, RequestFacts, Ruma, json_response};

/// What an operation under user-interactive authentication answers.
pub type UiaResult<T> = Result<Ruma<T>, UiaRefusal>;

/// Why an operation does not go on.
#[derive(Debug)]
pub enum UiaRefusal {
    /// More is to be shown.
    Challenge(Box<UiaaInfo>),
    /// Something else.
    Error(MatrixError),
}

impl<T: Into<MatrixError>> From<T> for UiaRefusal {
    fn from(error: T) -> Self {
        Self::Error(error.into())
    }
}

impl IntoResponse for UiaRefusal {
    fn into_response(self) -> Response {
        match self {
            Self::Error(error) => error.into_response(),
            Self::Challenge(info) => match serde_json::to_vec(&info) {
                Ok(body) => json_response(StatusCode::UNAUTHORIZED, body),
                Err(error) => MatrixError::internal(error).into_response(),
            },
        }
    }
}

/// A request in ruma's type, with its body as it has to stay while its user authenticates.
pub struct WithBody<T> {
    /// The request.
    pub request: T,
    /// Its body without `auth`.
    pub body: BodyDigest,
}

impl<S: Sync, T: IncomingRequest + Send> FromRequest<S> for WithBody<T> {
    type Rejection = MatrixError;

    async fn from_request(request: Request, state: &S) -> Result<Self, MatrixError> {
        let (request, bytes) = with_body(request, state).await?;
        let mut json: Json =
            serde_json::from_slice(&bytes).unwrap_or_else(|_| Json::Object(Default::default()));
        if !matches!(json.get("auth"), None | Some(Json::Null | Json::Object(_))) {
            return Err(MatrixError::bad_json("auth must be an object"));
        }
        let request = match drop_empty_auth(&mut json) {
            true => request.map(|_| Body::from(json.to_string())),
            false => request,
        };
        let Ruma(request) = Ruma::<T>::from_request(request, state).await?;
        Ok(Self { request, body: BodyDigest::of(&json) })
    }
}

/// A request and its body, for those who look at it before ruma does.
pub async fn with_body<S: Sync>(request: Request, state: &S) -> Result<(Request, Bytes), MatrixError> {
    let (parts, body) = request.into_parts();
    let facts = parts.extensions.get::<RequestFacts>().cloned();
    let mut copy = Request::new(body);
    if let Some(facts) = facts {
        copy.extensions_mut().insert(facts);
    }
    let RawBody(bytes) = RawBody::from_request(copy, state).await?;
    Ok((Request::from_parts(parts, Body::from(bytes.clone())), bytes))
}

/// An `auth` that names neither a stage nor a session says nothing: the request counts as one without it, which
/// begins a session. Whether it was there.
fn drop_empty_auth(body: &mut Json) -> bool {
    let says_nothing = |auth: &Json| auth.is_object() && auth["type"].is_null() && auth["session"].is_null();
    let Some(fields) = body.as_object_mut() else { return false };
    fields.get("auth").is_some_and(says_nothing) && fields.remove("auth").is_some()
}

/// Lets `user` prove with the password that the operation is theirs.
pub async fn confirm_by_password(
    users: &Users,
    endpoint: &str,
    user: &UserId,
    body: BodyDigest,
    auth: Option<&AuthData>,
) -> Result<UiaDone, UiaRefusal> {
    let flows = [AuthFlow::new(vec![AuthType::Password])];
    let request = UiaRequest { endpoint, body, user: Some(user), flows: &flows, params: None, auth };
    authenticate(users, request).await
}

/// Whether the operation may go on.
pub async fn authenticate(users: &Users, request: UiaRequest<'_>) -> Result<UiaDone, UiaRefusal> {
    users.uia(request).await.map_err(|error| match error {
        UiaError::Challenge(info) => UiaRefusal::Challenge(info),
        UiaError::OtherOperation => {
            MatrixError::forbidden("the operation has changed during its authentication").into()
        }
        error @ UiaError::OtherUser => MatrixError::forbidden(error.to_string()).into(),
        UiaError::Account(error) => MatrixError::from(error).into(),
        UiaError::Users(error) => MatrixError::from(error).into(),
    })
}

/// The `params` of a challenge.
pub fn params(params: &Json) -> Option<Box<RawValue>> {
    serde_json::value::to_raw_value(params).ok()
}
