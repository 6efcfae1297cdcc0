//! Users of ours, for other servers: who holds an OpenID token, on which devices somebody is, and the keys of these.
//! * A device is told of once it has keys. There is no way yet for a client to bring any, so nobody has.

use std::collections::BTreeMap;

use axum::extract::State;
use hearth_dag::LocalServers;
use hearth_users::Users;
use http::Method;
use ruma::{OneTimeKeyAlgorithm, OwnedDeviceId, OwnedUserId, api::federation::openid::get_openid_userinfo};
use serde::Deserialize;
use serde_json::json;

use crate::http::{
    Auth, JsonBody, JsonResult, MatrixError, PathArgs, RateClass, RawJson, RemoteServer, Route, Routes, Ruma,
    Specimen,
};

/// Users that are asked for at once.
const ASKED_MAX: usize = 1_000;

/// `{"device_keys": …}`
#[derive(Debug, Deserialize)]
struct KeysWanted {
    device_keys: BTreeMap<OwnedUserId, Vec<OwnedDeviceId>>,
}

/// `{"one_time_keys": …}`
#[derive(Debug, Deserialize)]
struct KeysClaimed {
    one_time_keys: BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, OneTimeKeyAlgorithm>>,
}

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
    let query = Route::at(Method::POST, "/_matrix/federation/v1/user/keys/query", Auth::Server);
    routes.add(
        query
            .specimen(Specimen::path("").body(r#"{"device_keys":{}}"#, r#"{"device_keys":[]}"#))
            .to(query_keys),
    );
    let claim = Route::at(Method::POST, "/_matrix/federation/v1/user/keys/claim", Auth::Server);
    routes.add(
        claim
            .specimen(Specimen::path("").body(r#"{"one_time_keys":{}}"#, r#"{"one_time_keys":5}"#))
            .to(claim_keys),
    );
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

/// `POST /_matrix/federation/v1/user/keys/query`
async fn query_keys(
    State(users): State<Users>,
    State(local): State<LocalServers>,
    _: RemoteServer,
    JsonBody(wanted): JsonBody<KeysWanted>,
) -> JsonResult {
    let users = known(&users, &local, wanted.device_keys.into_keys()).await?;
    let none: BTreeMap<_, _> = users.into_iter().map(|user| (user, json!({}))).collect();
    RawJson::of(&json!({ "device_keys": none }))
}

/// `POST /_matrix/federation/v1/user/keys/claim`
async fn claim_keys(
    State(users): State<Users>,
    State(local): State<LocalServers>,
    _: RemoteServer,
    JsonBody(claimed): JsonBody<KeysClaimed>,
) -> JsonResult {
    known(&users, &local, claimed.one_time_keys.into_keys()).await?;
    RawJson::of(&json!({ "one_time_keys": {} }))
}

/// Those of the users who are here; refuses to be asked about others' users.
async fn known(
    users: &Users,
    local: &LocalServers,
    asked: impl ExactSizeIterator<Item = OwnedUserId>,
) -> Result<Vec<OwnedUserId>, MatrixError> {
    if asked.len() > ASKED_MAX {
        return Err(MatrixError::too_large(format!("at most {ASKED_MAX} users can be asked for at once")));
    }
    let mut found = Vec::new();
    for user in asked {
        if !local.is_local(user.server_name()) {
            return Err(MatrixError::invalid_param(format!("{user} is not a user of this server")));
        }
        if users.is_active(&user).await? {
            found.push(user);
        }
    }
    Ok(found)
}
