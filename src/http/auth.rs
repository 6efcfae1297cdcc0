//! Who asks: the access token of a user, or the signature of a server, checked by the dispatcher before any handler runs.

use std::time::Duration;

use axum::extract::{FromRequestParts, OptionalFromRequestParts};
use hearth_federation::{Claim, Federation, Refused};
use hearth_users::{AuthenticateError, Authenticated, SessionEnd};
use http::{HeaderMap, StatusCode, Uri, header, request::Parts};
use ruma::{OwnedDeviceId, OwnedServerName, OwnedUserId};

use super::{MatrixError, client_address::ClientAddress};

/// When somebody may come again for whose requests too many keys are being fetched.
const BUSY: Duration = Duration::from_secs(5);

/// A local user with a good access token. A handler that names it is only reached with one.
#[derive(Debug, Clone)]
pub struct LocalUser {
    /// Who asks.
    pub user_id: OwnedUserId,
    /// On which device.
    pub device_id: OwnedDeviceId,
    /// Whether the account may administer the server.
    pub is_admin: bool,
    /// Whether the account is suspended: it may read, leave and redact its own.
    pub is_suspended: bool,
    /// The session, for those who change it.
    pub session: Authenticated,
}

impl LocalUser {
    /// The bearer of a session.
    pub fn of(session: Authenticated) -> Self {
        Self {
            user_id: session.user_id().clone(),
            device_id: session.device_id().clone(),
            is_admin: session.account().admin,
            is_suspended: session.account().suspended,
            session,
        }
    }
}

impl<S: Sync> FromRequestParts<S> for LocalUser {
    type Rejection = MatrixError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, MatrixError> {
        parts.extensions.remove::<Self>().ok_or_else(|| MatrixError::missing_token("missing access token"))
    }
}

/// `Option<LocalUser>`: for endpoints that serve strangers too.
impl<S: Sync> OptionalFromRequestParts<S> for LocalUser {
    type Rejection = MatrixError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, MatrixError> {
        Ok(parts.extensions.remove::<Self>())
    }
}

/// Why a token is not, or no longer, served.
impl From<SessionEnd> for MatrixError {
    fn from(end: SessionEnd) -> Self {
        match end {
            SessionEnd::Token(AuthenticateError::Unknown) => Self::unknown_token("unknown access token"),
            SessionEnd::Token(AuthenticateError::Expired) => {
                Self::unknown_token("the access token has expired").with("soft_logout", true)
            }
            SessionEnd::Token(AuthenticateError::Store(error)) => Self::internal(error),
            SessionEnd::Locked => {
                Self::new(StatusCode::UNAUTHORIZED, "M_USER_LOCKED", "this account is locked")
                    .with("soft_logout", true)
            }
        }
    }
}

/// A server that signed the request, all of it. A handler that names it is only reached by one.
#[derive(Debug, Clone)]
pub struct RemoteServer {
    /// Which one.
    pub origin: OwnedServerName,
}

impl<S: Sync> FromRequestParts<S> for RemoteServer {
    type Rejection = MatrixError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, MatrixError> {
        parts.extensions.remove::<Self>().ok_or_else(|| Refused::Unsigned.into())
    }
}

/// Who says to have sent a request; refuses what can be refused before its body is read.
pub(super) async fn claim_of_server(
    federation: &Federation,
    from: ClientAddress,
    headers: &HeaderMap,
) -> Result<Claim, MatrixError> {
    let headers = headers.get_all(header::AUTHORIZATION).iter().filter_map(|value| value.to_str().ok());
    Ok(federation.claim(from.0, headers).await?)
}

impl From<Refused> for MatrixError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Access(denied) => Self::forbidden(denied.to_string()),
            Refused::Body(error) => Self::not_json(error.to_string()),
            Refused::Busy => Self::limit_exceeded(BUSY),
            Refused::Store(error) => Self::internal(error),
            refused => Self::unauthorized(refused.to_string()),
        }
    }
}

/// The access token of a request: from the `Authorization` header, or, where the operator still allows it, from the
/// query string as clients and bridges did before version 1.11 of the specification.
pub(super) fn access_token<'a>(headers: &'a HeaderMap, uri: &'a Uri, from_query: bool) -> Option<&'a str> {
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let value = value.to_str().ok()?;
        let (scheme, token) = value.split_once(' ')?;
        return scheme.eq_ignore_ascii_case("bearer").then(|| token.trim());
    }
    if !from_query {
        return None;
    }
    uri.query()?.split('&').find_map(|pair| pair.strip_prefix("access_token="))
}
