//! Account data, global and of rooms. Users touch only their own.

use axum::extract::State;
use hearth_users::Users;
use ruma::{
    OwnedRoomId, OwnedUserId, UserId,
    api::client::config::{
        get_global_account_data, get_room_account_data, set_global_account_data, set_room_account_data,
    },
};
use serde_json::value::RawValue;

use crate::http::{JsonBody, JsonResult, LocalUser, MatrixError, PathArgs, RawJson, Route, Routes, Specimen};

/// The chapter's endpoints.
pub fn routes(routes: &mut Routes) {
    let global = Specimen::path("$me org.example.settings").outsider(403, "M_FORBIDDEN");
    let room = Specimen::path("$me $room org.example.settings").outsider(403, "M_FORBIDDEN");
    routes.add(Route::of::<get_global_account_data::v3::Request>().specimen(global).to(read));
    routes.add(
        Route::of::<set_global_account_data::v3::Request>()
            .specimen(global.body(r#"{"shown":true}"#, "[]"))
            .to(write),
    );
    routes.add(Route::of::<get_room_account_data::v3::Request>().specimen(room).to(read_of_room));
    routes.add(
        Route::of::<set_room_account_data::v3::Request>()
            .specimen(room.body(r#"{"shown":true}"#, "[]"))
            .to(write_of_room),
    );
}

/// Refuses what is somebody else's.
pub fn only_own(user: &LocalUser, whose: &UserId) -> Result<(), MatrixError> {
    if user.user_id == whose { Ok(()) } else { Err(MatrixError::forbidden("this belongs to somebody else")) }
}

/// `GET /_matrix/client/v3/user/{userId}/account_data/{type}`
async fn read(
    State(users): State<Users>,
    user: LocalUser,
    PathArgs((whose, kind)): PathArgs<(OwnedUserId, String)>,
) -> JsonResult {
    only_own(&user, &whose)?;
    found(users.account_data(&whose, None, &kind).await?)
}

/// `PUT /_matrix/client/v3/user/{userId}/account_data/{type}`
async fn write(
    State(users): State<Users>,
    user: LocalUser,
    PathArgs((whose, kind)): PathArgs<(OwnedUserId, String)>,
    JsonBody(content): JsonBody<Box<RawValue>>,
) -> JsonResult {
    only_own(&user, &whose)?;
    users.set_account_data(&whose, None, &kind, &content).await?;
    Ok(RawJson::EMPTY)
}

/// `GET /_matrix/client/v3/user/{userId}/rooms/{roomId}/account_data/{type}`
async fn read_of_room(
    State(users): State<Users>,
    user: LocalUser,
    PathArgs((whose, room, kind)): PathArgs<(OwnedUserId, OwnedRoomId, String)>,
) -> JsonResult {
    only_own(&user, &whose)?;
    found(users.account_data(&whose, Some(&room), &kind).await?)
}

/// `PUT /_matrix/client/v3/user/{userId}/rooms/{roomId}/account_data/{type}`
async fn write_of_room(
    State(users): State<Users>,
    user: LocalUser,
    PathArgs((whose, room, kind)): PathArgs<(OwnedUserId, OwnedRoomId, String)>,
    JsonBody(content): JsonBody<Box<RawValue>>,
) -> JsonResult {
    only_own(&user, &whose)?;
    users.set_account_data(&whose, Some(&room), &kind, &content).await?;
    Ok(RawJson::EMPTY)
}

fn found(content: Option<Box<RawValue>>) -> JsonResult {
    let content = content.ok_or_else(|| MatrixError::not_found("there is no such account data"))?;
    Ok(RawJson::from(content.get().to_owned()))
}
