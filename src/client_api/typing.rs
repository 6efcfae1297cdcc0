//! Who is typing.

use std::time::Duration;

use axum::extract::State;
use hearth_rooms::read::Reader;
use hearth_users::Users;
use ruma::{OwnedRoomId, OwnedUserId, api::client::typing::create_typing_event};
use serde::Deserialize;

use super::{account_data::only_own, sharing::joined_room};
use crate::http::{JsonBody, JsonResult, LocalUser, PathArgs, RawJson, Route, Routes, Specimen};

/// How long somebody types who does not say.
const DEFAULT_TIMEOUT_MS: u64 = 30_000;

/// The chapter's endpoints.
pub fn routes(routes: &mut Routes) {
    routes.add(
        Route::of::<create_typing_event::v3::Request>()
            .specimen(
                Specimen::path("$room $me")
                    .body(r#"{"typing":true,"timeout":30000}"#, r#"{"typing":1}"#)
                    .outsider(403, "M_FORBIDDEN"),
            )
            .to(set_typing),
    );
}

#[derive(Deserialize)]
struct TypingBody {
    typing: bool,
    timeout: Option<u64>,
}

/// `PUT /_matrix/client/v3/rooms/{roomId}/typing/{userId}`
async fn set_typing(
    State(users): State<Users>,
    State(reader): State<Reader>,
    user: LocalUser,
    PathArgs((room_id, whose)): PathArgs<(OwnedRoomId, OwnedUserId)>,
    JsonBody(body): JsonBody<TypingBody>,
) -> JsonResult {
    only_own(&user, &whose)?;
    joined_room(&reader, &user.user_id, &room_id).await?;
    let timeout = body.timeout.unwrap_or(DEFAULT_TIMEOUT_MS);
    users.typing().set(&room_id, &user.user_id, body.typing.then(|| Duration::from_millis(timeout)));
    users.presence().active(&user.user_id);
    Ok(RawJson::EMPTY)
}
