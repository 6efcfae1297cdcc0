//! OpenID: a token with which a third party may ask this server who a user is, and nothing else.

use std::sync::Arc;

use axum::extract::State;
use hearth_users::{OPENID_TOKEN_LIFETIME, Users};
use ruma::{OwnedUserId, api::client::account::request_openid_token};
use serde_json::json;

use super::account_data::only_own;
use crate::{
    config::Config,
    http::{JsonBody, JsonResult, LocalUser, PathArgs, RateClass, RawJson, Route, Routes, Specimen},
};

/// The chapter's endpoints.
pub fn routes(routes: &mut Routes) {
    routes.add(
        Route::of::<request_openid_token::v3::Request>()
            .rate(RateClass::Other)
            .specimen(Specimen::path("$me").any_body("{}").outsider(403, "M_FORBIDDEN"))
            .to(request_token),
    );
}

/// `POST /_matrix/client/v3/user/{userId}/openid/request_token`
async fn request_token(
    State(users): State<Users>,
    State(config): State<Arc<Config>>,
    user: LocalUser,
    PathArgs((whose,)): PathArgs<(OwnedUserId,)>,
    _: JsonBody<serde_json::Value>,
) -> JsonResult {
    only_own(&user, &whose)?;
    RawJson::of(&json!({
        "access_token": users.issue_openid_token(&whose),
        "token_type": "Bearer",
        "matrix_server_name": config.server_name,
        "expires_in": OPENID_TOKEN_LIFETIME.as_secs(),
    }))
}
