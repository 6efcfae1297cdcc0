//! Users of ours, for other servers: who holds an OpenID token, and on which devices somebody is.

use axum::extract::State;
use hearth_dag::LocalServers;
use hearth_users::Users;
use http::Method;
use ruma::{OwnedUserId, api::federation::openid::get_openid_userinfo};
use serde_json::json;

use crate::http::{
    Auth, JsonResult, MatrixError, PathArgs, RateClass, RawJson, RemoteServer, Route, Routes, Ruma, Specimen,
};

/// The chapter's endpoints.
pub fn routes(routes: &mut Routes) {
    routes.add(
        Route::of::<get_openid_userinfo::v1::Request>()
            .rate(RateClass::Other)
            .specimen(Specimen::path("").query("access_token=nobodys"))
            .to(open_id),
    );
    let devices = Route::at(Method::GET, "/_matrix/federation/v1/user/devices/{user_id}", Auth::Server);
    routes.add(devices.specimen(Specimen::path("$me")).to(devices_of));
}

/// `GET /_matrix/federation/v1/openid/userinfo`
async fn open_id(
    State(users): State<Users>,
    Ruma(request): Ruma<get_openid_userinfo::v1::Request>,
) -> JsonResult {
    let user = users.user_of_openid_token(&request.access_token).await?;
    let user =
        user.ok_or_else(|| MatrixError::unknown_token("the OpenID token is not known or has expired"))?;
    RawJson::of(&json!({ "sub": user }))
}

/// `GET /_matrix/federation/v1/user/devices/{userId}`: the devices that have keys, of which there are none yet.
async fn devices_of(
    State(users): State<Users>,
    State(local): State<LocalServers>,
    _: RemoteServer,
    PathArgs((user,)): PathArgs<(OwnedUserId,)>,
) -> JsonResult {
    if !local.is_local(user.server_name()) || !users.is_active(&user).await? {
        return Err(MatrixError::not_found("there is no such user here"));
    }
    RawJson::of(&json!({ "user_id": user, "stream_id": 0, "devices": [] }))
}
