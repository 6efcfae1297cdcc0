//! Login, refreshing and logout.

use std::sync::Arc;

use axum::extract::{FromRequest, Request, State};
use hearth_dag::LocalServers;
use hearth_users::{NewSession, Session, SessionEnd, Users};
use http::{Method, StatusCode};
use ruma::{
    OwnedUserId, UserId,
    api::client::{
        session::{get_login_token, get_login_types, login, logout, logout_all, refresh_token},
        uiaa::UserIdentifier,
    },
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::uia::{self, UiaResult, WithBody, confirm_by_password};
use crate::{
    config::Config,
    http::{
        ApiResult, Auth, JsonResult, LocalUser, MatrixError, RateClass, RawJson, Route, Routes, Ruma,
        Specimen,
        rate_limit::{Asker, RateLimits},
    },
};

/// The chapter's endpoints.
pub fn routes(routes: &mut Routes) {
    const NOTHING: Specimen = Specimen::path("");
    routes.add(
        Route::of::<get_login_types::v3::Request>().rate(RateClass::Login).specimen(NOTHING).to(login_types),
    );
    // ruma leaves the token to application services, whose logins come with them.
    routes.add(
        Route::at(Method::POST, "/_matrix/client/v3/login", Auth::None)
            .rate(RateClass::Login)
            .specimen(NOTHING.body(
                r#"{"type":"m.login.password","identifier":{"type":"m.id.user","user":"$me"},"password":"password of $me"}"#,
                r#"{"type":"m.login.password","identifier":{"type":"m.id.user","user":"$me"},"password":1}"#,
            ))
            .to(log_in),
    );
    routes.add(
        Route::of::<get_login_token::v1::Request>()
            .rate(RateClass::Login)
            .specimen(NOTHING.body("{}", r#"{"auth":1}"#))
            .to(login_token),
    );
    routes.add(
        Route::of::<refresh_token::v3::Request>()
            .rate(RateClass::Login)
            .specimen(NOTHING.body(r#"{"refresh_token":"nobody's"}"#, r#"{"refresh_token":1}"#))
            .to(refresh),
    );
    routes.add(Route::of::<logout::v3::Request>().when_locked().specimen(NOTHING).to(log_out));
    routes.add(Route::of::<logout_all::v3::Request>().when_locked().specimen(NOTHING).to(log_out_everywhere));
}

/// `GET /_matrix/client/v3/login`
async fn login_types() -> JsonResult {
    RawJson::of(&json!({ "flows": [
        { "type": "m.login.password" },
        { "type": "m.login.token", "get_login_token": true },
    ] }))
}

/// `POST /_matrix/client/v3/login`
async fn log_in(
    State(users): State<Users>,
    State(config): State<Arc<Config>>,
    State(local): State<LocalServers>,
    State(limits): State<Arc<RateLimits>>,
    Wanted(request): Wanted,
) -> ApiResult<login::v3::Response> {
    let user_id = match &request.login_info {
        login::v3::LoginInfo::Password(shown) => {
            let user = named_user(shown, &config, &local)?;
            by_password(&users, &limits, user, &shown.password).await?
        }
        login::v3::LoginInfo::Token(shown) => users
            .redeem_login_token(&shown.token)
            .await?
            .ok_or_else(|| MatrixError::forbidden("invalid login token"))?,
        other => {
            return Err(MatrixError::unknown(format!("unknown login type {}", other.login_type())));
        }
    };
    let account = users.account(&user_id).await?;
    if account.is_some_and(|account| account.locked) {
        return Err(SessionEnd::Locked.into());
    }
    let session = users
        .start_session(NewSession {
            user_id,
            device_id: request.device_id,
            display_name: request.initial_device_display_name,
            refreshable: request.refresh_token,
        })
        .await?;
    Ok(Ruma(logged_in(session, &config)))
}

/// The request. ruma cannot do without a type, which whoever asks may leave out.
struct Wanted(login::v3::Request);

impl<S: Sync> FromRequest<S> for Wanted {
    type Rejection = MatrixError;

    async fn from_request(request: Request, state: &S) -> Result<Self, MatrixError> {
        #[derive(Deserialize)]
        struct Typed {
            #[serde(rename = "type")]
            _kind: String,
        }
        let (request, body) = uia::with_body(request, state).await?;
        let body: &[u8] = if body.is_empty() { b"{}" } else { &body };
        let _: Map<String, Value> = parsed(body)?;
        let _: Typed = parsed(body)?;
        Ruma::from_request(request, state).await.map(|Ruma(request)| Self(request))
    }
}

fn parsed<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, MatrixError> {
    serde_json::from_slice(body).map_err(|error| MatrixError::from_json(&error))
}

fn logged_in(session: Session, config: &Config) -> login::v3::Response {
    let mut response = login::v3::Response::new(session.user_id, session.access_token, session.device_id);
    response.refresh_token = session.refresh_token;
    response.expires_in = session.expires_in_ms.map(std::time::Duration::from_millis);
    response.well_known = config
        .public_base_url
        .as_ref()
        .map(|url| login::v3::DiscoveryInfo::new(login::v3::HomeserverInfo::new(url.clone())));
    response
}

/// Whom a client means, by a whole id or by its local part.
#[allow(deprecated)]
fn named_user(
    shown: &login::v3::Password,
    config: &Config,
    local: &LocalServers,
) -> Result<OwnedUserId, MatrixError> {
    let name = match (&shown.identifier, &shown.user) {
        (Some(UserIdentifier::Matrix(id)), _) => id.user.as_str(),
        (Some(_), _) => return Err(MatrixError::forbidden("nobody is known by that identifier")),
        (None, Some(user)) => user.as_str(),
        (None, None) => return Err(MatrixError::missing_param("identifier is missing")),
    };
    let user = UserId::parse_with_server_name(name, &config.server_name)
        .map_err(|_| MatrixError::forbidden("invalid user name or password"))?;
    if !local.is_local(user.server_name()) {
        return Err(MatrixError::forbidden("this user is not of this server"));
    }
    Ok(user)
}

async fn by_password(
    users: &Users,
    limits: &RateLimits,
    user: OwnedUserId,
    password: &str,
) -> Result<OwnedUserId, MatrixError> {
    let user = as_registered(users, user).await?;
    if users.account(&user).await?.is_some_and(|account| account.deactivated) {
        let message = "this account has been deactivated";
        return Err(MatrixError::new(StatusCode::FORBIDDEN, "M_USER_DEACTIVATED", message));
    }
    // Attempts, good or bad: so that the answer to a refused one says nothing about the password.
    limits.take(RateClass::LoginAccount, Asker::Account(user.to_string()))?;
    if users.verify_password(&user, password).await? {
        Ok(user)
    } else {
        Err(MatrixError::forbidden("invalid user name or password"))
    }
}

/// People write their name with capitals; names are given out without. Historical names may have some.
async fn as_registered(users: &Users, user: OwnedUserId) -> Result<OwnedUserId, MatrixError> {
    let lower = user.localpart().to_lowercase();
    if lower == user.localpart() || users.account(&user).await?.is_some() {
        return Ok(user);
    }
    Ok(UserId::parse_with_server_name(lower, user.server_name()).unwrap_or(user))
}

/// `POST /_matrix/client/v1/login/get_token`
async fn login_token(
    State(users): State<Users>,
    user: LocalUser,
    WithBody { request, body }: WithBody<get_login_token::v1::Request>,
) -> UiaResult<get_login_token::v1::Response> {
    const ENDPOINT: &str = "POST login/get_token";
    confirm_by_password(&users, ENDPOINT, &user.user_id, body, request.auth.as_ref()).await?;
    let (token, lifetime_ms) = users.issue_login_token(&user.user_id).await?;
    let lifetime = std::time::Duration::from_millis(lifetime_ms);
    Ok(Ruma(get_login_token::v1::Response::new(lifetime, token)))
}

/// `POST /_matrix/client/v3/refresh`
async fn refresh(
    State(users): State<Users>,
    Ruma(request): Ruma<refresh_token::v3::Request>,
) -> ApiResult<refresh_token::v3::Response> {
    let session = users.refresh(&request.refresh_token).await?;
    let mut response = refresh_token::v3::Response::new(session.access_token);
    response.refresh_token = session.refresh_token;
    response.expires_in_ms = session.expires_in_ms.map(std::time::Duration::from_millis);
    Ok(Ruma(response))
}

/// `POST /_matrix/client/v3/logout`
async fn log_out(State(users): State<Users>, user: LocalUser) -> JsonResult {
    users.delete_devices(&user.user_id, &[user.device_id]).await?;
    Ok(RawJson::EMPTY)
}

/// `POST /_matrix/client/v3/logout/all`
async fn log_out_everywhere(State(users): State<Users>, user: LocalUser) -> JsonResult {
    users.delete_devices_except(&user.user_id, None).await?;
    Ok(RawJson::EMPTY)
}
