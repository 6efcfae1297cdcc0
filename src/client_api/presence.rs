//! Presence: who is online, seen by those who share a room.

use axum::extract::State;
use hearth_rooms::read::Reader;
use hearth_users::Users;
use ruma::{
    api::client::presence::{get_presence, set_presence},
    presence::PresenceState,
};

use super::{account_data::only_own, sharing::shared_rooms};
use crate::http::{ApiResult, LocalUser, MatrixError, RateClass, Route, Routes, Ruma, Specimen};

/// The longest status message.
const STATUS_MAX: usize = 2_048;

/// The chapter's endpoints.
pub fn routes(routes: &mut Routes) {
    routes.add(
        Route::of::<get_presence::v3::Request>()
            .specimen(Specimen::path("$me").outsider(403, "M_FORBIDDEN"))
            .to(read),
    );
    routes.add(
        Route::of::<set_presence::v3::Request>()
            .rate(RateClass::Other)
            .specimen(
                Specimen::path("$me")
                    .body(r#"{"presence":"online"}"#, r#"{"presence":1}"#)
                    .outsider(403, "M_FORBIDDEN"),
            )
            .to(write),
    );
}

/// `GET /_matrix/client/v3/presence/{userId}/status`
async fn read(
    State(users): State<Users>,
    State(reader): State<Reader>,
    user: LocalUser,
    Ruma(request): Ruma<get_presence::v3::Request>,
) -> ApiResult<get_presence::v3::Response> {
    let seen = request.user_id == user.user_id
        || !shared_rooms(&reader, &user.user_id, &request.user_id).await?.is_empty();
    if !seen {
        return Err(MatrixError::forbidden("only those who share a room see each other's presence"));
    }
    let view = users.presence().of(&request.user_id);
    let mut response = get_presence::v3::Response::new(view.presence);
    response.status_msg = view.status_msg;
    response.currently_active = Some(view.currently_active);
    response.last_active_ago = view.last_active_ago_ms.map(std::time::Duration::from_millis);
    Ok(Ruma(response))
}

/// `PUT /_matrix/client/v3/presence/{userId}/status`
async fn write(
    State(users): State<Users>,
    user: LocalUser,
    Ruma(request): Ruma<set_presence::v3::Request>,
) -> ApiResult<set_presence::v3::Response> {
    only_own(&user, &request.user_id)?;
    let known = [PresenceState::Online, PresenceState::Unavailable, PresenceState::Offline];
    if !known.contains(&request.presence) {
        return Err(MatrixError::invalid_param("presence must be online, unavailable or offline"));
    }
    if request.status_msg.as_ref().is_some_and(|message| message.len() > STATUS_MAX) {
        return Err(MatrixError::invalid_param(format!("a status message has at most {STATUS_MAX} bytes")));
    }
    users.presence().set(&user.user_id, request.presence, request.status_msg);
    Ok(Ruma(set_presence::v3::Response::new()))
}
