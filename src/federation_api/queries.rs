//! What servers ask about local users and aliases.

use std::sync::Arc;

use axum::extract::State;
use hearth_dag::LocalServers;
use hearth_rooms::Rooms;
use hearth_users::Users;
use ruma::api::federation::query::{get_profile_information, get_room_information};
use serde_json::json;

use crate::{
    config::Config,
    http::{JsonResult, MatrixError, RawJson, RemoteServer, Route, Routes, Ruma, Specimen},
};

/// The chapter's endpoints.
pub fn routes(routes: &mut Routes) {
    routes.add(
        Route::of::<get_profile_information::v1::Request>()
            .specimen(Specimen::path("").query("user_id=$me"))
            .to(profile),
    );
    routes.add(
        Route::of::<get_room_information::v1::Request>()
            .specimen(Specimen::path("").query("room_alias=%23stage:$server"))
            .to(alias),
    );
}

/// `GET /_matrix/federation/v1/query/profile`
async fn profile(
    State(users): State<Users>,
    State(local): State<LocalServers>,
    _: RemoteServer,
    Ruma(request): Ruma<get_profile_information::v1::Request>,
) -> JsonResult {
    if !local.is_local(request.user_id.server_name()) || !users.is_active(&request.user_id).await? {
        return Err(MatrixError::not_found("there is no such user here"));
    }
    let profile = users.profile(&request.user_id).await?;
    let Some(field) = request.field else { return RawJson::of(profile.fields()) };
    match profile.field(field.as_str()) {
        Some(value) => RawJson::of(&json!({ field.as_str(): value })),
        None => Ok(RawJson::EMPTY),
    }
}

/// `GET /_matrix/federation/v1/query/directory`
async fn alias(
    State(rooms): State<Rooms>,
    State(config): State<Arc<Config>>,
    _: RemoteServer,
    Ruma(request): Ruma<get_room_information::v1::Request>,
) -> JsonResult {
    let room = rooms.resolve_alias(&request.room_alias).await?;
    let room = room.ok_or_else(|| MatrixError::not_found("there is no such alias here"))?;
    RawJson::of(&json!({ "room_id": room, "servers": [config.server_name] }))
}
