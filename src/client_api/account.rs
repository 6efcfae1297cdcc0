//! The own account: who am I, password, deactivation.

use axum::extract::State;
use hearth_rooms::{Membership, MembershipError, Removal, Remove, Rooms, WriteError};
use hearth_store::Commit;
use hearth_users::{Kind, Users};
use ruma::api::client::account::{ThirdPartyIdRemovalStatus, change_password, deactivate, whoami};
use serde_json::json;

use super::uia::{UiaResult, WithBody, confirm_by_password};
use crate::{
    app::App,
    http::{Auth, JsonResult, LocalUser, MatrixError, RateClass, RawJson, Route, Routes, Ruma, Specimen},
};

/// The chapter's endpoints.
pub fn routes(routes: &mut Routes) {
    const NOTHING: Specimen = Specimen::path("");
    routes.add(Route::of::<whoami::v3::Request>().specimen(NOTHING).to(who_am_i));
    // Without a token these would want an e-mail address, which accounts here do not have.
    routes.add(
        Route::of::<change_password::v3::Request>()
            .auth(Auth::Token)
            .rate(RateClass::Login)
            .specimen(NOTHING.body(r#"{"new_password":"new"}"#, r#"{"new_password":1}"#))
            .to(set_password),
    );
    routes.add(
        Route::of::<deactivate::v3::Request>()
            .auth(Auth::Token)
            .rate(RateClass::Login)
            .specimen(NOTHING.body("{}", r#"{"auth":1}"#))
            .to(deactivate_account),
    );
}

/// `GET /_matrix/client/v3/account/whoami`
async fn who_am_i(State(users): State<Users>, user: LocalUser) -> JsonResult {
    let account = users.account(&user.user_id).await?;
    let is_guest = account.is_some_and(|account| account.kind == Kind::Guest);
    RawJson::of(&json!({ "user_id": user.user_id, "device_id": user.device_id, "is_guest": is_guest }))
}

/// `POST /_matrix/client/v3/account/password`
async fn set_password(
    State(users): State<Users>,
    user: LocalUser,
    WithBody { request, body }: WithBody<change_password::v3::Request>,
) -> UiaResult<change_password::v3::Response> {
    const ENDPOINT: &str = "POST account/password";
    confirm_by_password(&users, ENDPOINT, &user.user_id, body, request.auth.as_ref()).await?;
    let password = users.hash_password(&request.new_password).await?;
    users.set_password(&user.user_id, password).await?;
    if request.logout_devices {
        users.delete_devices_except(&user.user_id, Some(&user.device_id)).await?;
    }
    Ok(Ruma(change_password::v3::Response::new()))
}

/// `POST /_matrix/client/v3/account/deactivate`
async fn deactivate_account(
    State(app): State<App>,
    user: LocalUser,
    WithBody { request, body }: WithBody<deactivate::v3::Request>,
) -> UiaResult<deactivate::v3::Response> {
    const ENDPOINT: &str = "POST account/deactivate";
    confirm_by_password(&app.users, ENDPOINT, &user.user_id, body, request.auth.as_ref()).await?;
    close_account(&app, &user.user_id, request.erase).await?;
    // There is no identity server to ask, and nothing bound with one.
    Ok(Ruma(deactivate::v3::Response::new(ThirdPartyIdRemovalStatus::NoSupport)))
}

/// Closes an account for good, whoever wants it: sessions and settings first, then the rooms. Once begun it goes on
/// without whoever waits for it, and over restarts.
pub async fn close_account(app: &App, user: &ruma::UserId, erase: bool) -> Result<(), MatrixError> {
    let (app, user) = (app.clone(), user.to_owned());
    let closing = tokio::spawn(async move {
        app.users.deactivate(&user, erase).await?;
        finish_closing(&app, &user).await
    });
    closing.await.map_err(MatrixError::internal)?
}

/// Goes on with the deactivations that were under way when the server stopped.
pub async fn resume_deactivations(app: &App) -> Result<(), MatrixError> {
    const BATCH: usize = 100;
    let mut after = None;
    loop {
        let unfinished = app.users.unfinished_deactivations(after.as_deref(), BATCH).await?;
        for deactivation in &unfinished {
            if app.shutdown.has_begun() {
                return Ok(());
            }
            let user = &deactivation.user;
            match finish_closing(app, user).await {
                Ok(()) => tracing::info!(%user, "a deactivation was finished"),
                Err(error) => tracing::warn!(%user, %error, "a deactivation waits for the next start"),
            }
        }
        match unfinished.last() {
            Some(last) if unfinished.len() == BATCH => after = Some(last.user.clone()),
            _ => return Ok(()),
        }
    }
}

/// Each step may have been taken before.
async fn finish_closing(app: &App, user: &ruma::UserId) -> Result<(), MatrixError> {
    app.users.clear_account(user).await?;
    leave_all_rooms(app, user).await?;
    app.users.deactivated(user).await?;
    Ok(())
}

/// Leaves what was joined, rejects invites and takes back knocks. A room that does not let go holds up no other; where
/// it may do so later, that is an error.
async fn leave_all_rooms(app: &App, user: &ruma::UserId) -> Result<(), MatrixError> {
    let mut again = None;
    for (room, row) in app.rooms.memberships(user).await? {
        if matches!(row.value.membership, Membership::Leave | Membership::Ban) {
            continue;
        }
        let Some(room) = app.rooms.room_of(room).await? else { continue };
        let leave = Remove {
            room: room.room_id.clone(),
            sender: user.to_owned(),
            user: user.to_owned(),
            removal: Removal::Leave,
            reason: None,
        };
        let leave = &leave;
        let remove = |rooms: Rooms| async move { rooms.remove(leave, Commit::new()).await };
        let left = match app.policy.signing(remove).await {
            Err(MembershipError::NeedsOtherServer) => app.rooms.leave_out_of_band(user, &room.room_id).await,
            done => done.map(drop),
        };
        if let Err(error) = left {
            tracing::warn!(%user, room_id = %room.room_id, %error, "a closed account stays in a room");
            if matches!(error, MembershipError::Write(WriteError::Busy | WriteError::Store(_))) {
                again = Some(error);
            }
        }
    }
    again.map_or(Ok(()), |error| Err(error.into()))
}
