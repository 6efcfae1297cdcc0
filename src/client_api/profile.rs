//! Profiles: any fields; the name and the picture go on into the rooms.

use axum::extract::State;
use futures_util::StreamExt as _;
use hearth_dag::LocalServers;
use hearth_federation::{Asker, RemoteRooms};
use hearth_users::{Profile, ProfileChange, Users};
use http::Method;
use ruma::{
    OwnedUserId, UserId,
    api::client::profile::{get_profile, get_profile_field},
};
use serde_json::{Map, Value as Json, json};

use super::account_data::only_own;
use crate::{
    app::App,
    http::{
        Auth, JsonBody, JsonResult, LocalUser, MatrixError, PathArgs, RateClass, RawJson, RequestFacts,
        Route, Routes, Specimen,
    },
};

/// Rooms that are told of a new name at the same time.
const ROOMS_AT_ONCE: usize = 16;

const FIELD: &str = "/_matrix/client/v3/profile/{user_id}/{field}";
const UNSTABLE_FIELD: &str = "/_matrix/client/unstable/uk.tcpip.msc4133/profile/{user_id}/{field}";

/// The chapter's endpoints.
pub fn routes(routes: &mut Routes) {
    let field = Specimen::path("$me displayname").outsider(403, "M_FORBIDDEN");
    routes.add(Route::of::<get_profile::v3::Request>().specimen(Specimen::path("$me")).to(read));
    routes.add(
        Route::of::<get_profile_field::v3::Request>()
            .also_at(UNSTABLE_FIELD)
            .specimen(Specimen::path("$me displayname"))
            .to(read_field),
    );
    // ruma reads the value by the field's name and has no room for a missing one.
    routes.add(
        Route::at(Method::PUT, FIELD, Auth::Token)
            .also_at(UNSTABLE_FIELD)
            .rate(RateClass::Other)
            .not_when_suspended()
            .specimen(field.body(r#"{"displayname":"Me"}"#, r#"{"displayname":1}"#))
            .to(write_field),
    );
    routes.add(
        Route::at(Method::DELETE, FIELD, Auth::Token)
            .also_at(UNSTABLE_FIELD)
            .rate(RateClass::Other)
            .not_when_suspended()
            .specimen(field)
            .to(remove_field),
    );
}

/// `GET /_matrix/client/v3/profile/{userId}`
async fn read(
    State(users): State<Users>,
    State(remote): State<RemoteRooms>,
    State(local): State<LocalServers>,
    facts: RequestFacts,
    PathArgs((user_id,)): PathArgs<(OwnedUserId,)>,
) -> JsonResult {
    if !local.is_local(user_id.server_name()) {
        return RawJson::of(&*remote.profile(&Asker::Address(facts.client.0), &user_id).await?);
    }
    RawJson::of(profile_of(&users, &user_id).await?.fields())
}

/// `GET /_matrix/client/v3/profile/{userId}/{keyName}`
async fn read_field(
    State(users): State<Users>,
    State(remote): State<RemoteRooms>,
    State(local): State<LocalServers>,
    facts: RequestFacts,
    PathArgs((user_id, field)): PathArgs<(OwnedUserId, String)>,
) -> JsonResult {
    let value = match local.is_local(user_id.server_name()) {
        true => profile_of(&users, &user_id).await?.field(&field).cloned(),
        false => remote.profile(&Asker::Address(facts.client.0), &user_id).await?.get(&field).cloned(),
    };
    match value {
        Some(value) => RawJson::of(&json!({ field: value })),
        None => Err(MatrixError::not_found("the profile has no such field")),
    }
}

/// `PUT /_matrix/client/v3/profile/{userId}/{keyName}`
async fn write_field(
    State(app): State<App>,
    user: LocalUser,
    PathArgs((user_id, field)): PathArgs<(OwnedUserId, String)>,
    JsonBody(mut body): JsonBody<Map<String, Json>>,
) -> JsonResult {
    only_own(&user, &user_id)?;
    well_formed(&field)?;
    let value = match body.remove(&field) {
        Some(value) => Some(value),
        // Clients of old leave the field out to remove it.
        None if matches!(&*field, "displayname" | "avatar_url") => None,
        None => return Err(MatrixError::missing_param(format!("the body has no field {field}"))),
    };
    change(&app, &user, &field, value).await
}

/// `DELETE /_matrix/client/v3/profile/{userId}/{keyName}`
async fn remove_field(
    State(app): State<App>,
    user: LocalUser,
    PathArgs((user_id, field)): PathArgs<(OwnedUserId, String)>,
) -> JsonResult {
    only_own(&user, &user_id)?;
    change(&app, &user, &field, None).await
}

async fn change(app: &App, user: &LocalUser, field: &str, value: Option<Json>) -> JsonResult {
    let change = app.users.set_profile_field(&user.user_id, field, value).await?;
    if change.rooms_follow {
        tell_rooms(app, &user.user_id, &change).await?;
    }
    Ok(RawJson::EMPTY)
}

/// The profile of a user of this server.
async fn profile_of(users: &Users, user_id: &UserId) -> Result<std::sync::Arc<Profile>, MatrixError> {
    match users.is_active(user_id).await? {
        true => Ok(users.profile(user_id).await?),
        false => Err(MatrixError::not_found("there is no such user")),
    }
}

/// The grammar of common namespaced identifiers.
fn well_formed(field: &str) -> Result<(), MatrixError> {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
    let good = field.starts_with(|first: char| first.is_ascii_lowercase()) && field.bytes().all(inner);
    if good { Ok(()) } else { Err(MatrixError::invalid_param("not the name of a profile field")) }
}

/// The joined rooms show the new name and picture. The profile is changed already: a room that does not let its member
/// event be changed keeps the old one.
async fn tell_rooms(app: &App, user: &UserId, change: &ProfileChange) -> Result<(), MatrixError> {
    let profile = hearth_rooms::Profile {
        display_name: change.profile.displayname().map(str::to_owned),
        avatar_url: change.profile.avatar_url().map(str::to_owned),
    };
    let joined = app.rooms.joined_rooms(user).await?;
    let updates = joined.into_iter().map(|room| {
        let profile = &profile;
        app.policy.signing(move |rooms| async move { rooms.update_profile(user, room, profile).await })
    });
    let mut updates = futures_util::stream::iter(updates).buffer_unordered(ROOMS_AT_ONCE);
    while let Some(updated) = updates.next().await {
        if let Err(error) = updated {
            tracing::debug!(%user, %error, "a room does not show a new profile");
        }
    }
    Ok(())
}
