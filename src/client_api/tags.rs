//! Room tags. Users touch only their own.

use axum::extract::State;
use hearth_users::{TagInfo, Users};
use ruma::{
    OwnedRoomId, OwnedUserId,
    api::client::tag::{create_tag, delete_tag, get_tags},
};
use serde_json::json;

use super::account_data::only_own;
use crate::http::{JsonBody, JsonResult, LocalUser, MatrixError, PathArgs, RawJson, Route, Routes, Specimen};

/// The chapter's endpoints.
pub fn routes(routes: &mut Routes) {
    let room = Specimen::path("$me $room").outsider(403, "M_FORBIDDEN");
    let tag = Specimen::path("$me $room u.work").outsider(403, "M_FORBIDDEN");
    routes.add(Route::of::<get_tags::v3::Request>().specimen(room).to(list));
    routes.add(
        Route::of::<create_tag::v3::Request>()
            .specimen(tag.body(r#"{"order":0.5}"#, r#"{"order":{}}"#))
            .to(put),
    );
    routes.add(Route::of::<delete_tag::v3::Request>().specimen(tag).to(remove));
}

/// `GET /_matrix/client/v3/user/{userId}/rooms/{roomId}/tags`
async fn list(
    State(users): State<Users>,
    user: LocalUser,
    PathArgs((whose, room)): PathArgs<(OwnedUserId, OwnedRoomId)>,
) -> JsonResult {
    only_own(&user, &whose)?;
    RawJson::of(&json!({ "tags": users.tags(&whose, &room).await? }))
}

/// `PUT /_matrix/client/v3/user/{userId}/rooms/{roomId}/tags/{tag}`
async fn put(
    State(users): State<Users>,
    user: LocalUser,
    PathArgs((whose, room, tag)): PathArgs<(OwnedUserId, OwnedRoomId, String)>,
    JsonBody(info): JsonBody<TagInfo>,
) -> JsonResult {
    only_own(&user, &whose)?;
    // Some clients send the order as text; it is kept as they wrote it.
    if info.get("order").is_some_and(|order| !(order.is_number() || order.is_string() || order.is_null())) {
        return Err(MatrixError::bad_json("order must be a number"));
    }
    users.set_tag(&whose, &room, &tag, info).await?;
    Ok(RawJson::EMPTY)
}

/// `DELETE /_matrix/client/v3/user/{userId}/rooms/{roomId}/tags/{tag}`
async fn remove(
    State(users): State<Users>,
    user: LocalUser,
    PathArgs((whose, room, tag)): PathArgs<(OwnedUserId, OwnedRoomId, String)>,
) -> JsonResult {
    only_own(&user, &whose)?;
    users.remove_tag(&whose, &room, &tag).await?;
    Ok(RawJson::EMPTY)
}
