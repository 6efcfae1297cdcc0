//! Aliases, and which rooms are in the public list.

use std::sync::Arc;

use axum::extract::State;
use hearth_federation::{Asker, RemoteRooms};
use hearth_rooms::{AliasError, Rooms, read::Reader};
use hearth_users::Users;
use http::StatusCode;
use ruma::{
    OwnedRoomAliasId, OwnedRoomId, OwnedRoomOrAliasId, OwnedServerName, RoomAliasId,
    api::client::{
        alias::{create_alias, delete_alias, get_alias},
        directory::{get_room_visibility, set_room_visibility},
        room::{Visibility, aliases},
    },
};

use super::{
    public_rooms::may_publish,
    reading::{self, not_in_room},
};
use crate::{
    config::Config,
    http::{
        ApiResult, LocalUser, MatrixError, PathArgs, RateClass, RequestFacts, Route, Routes, Ruma, Specimen,
    },
};

/// Servers of a room that are told with its alias.
const SERVERS_TOLD: usize = 50;

/// The chapter's endpoints.
pub fn routes(routes: &mut Routes) {
    const NO_ROOM: &str = r#"{"room_id":5}"#;
    routes.add(
        Route::of::<get_alias::v3::Request>()
            .rate(RateClass::Other)
            .specimen(Specimen::path("$alias"))
            .to(resolve),
    );
    routes.add(
        Route::of::<create_alias::v3::Request>()
            .rate(RateClass::Other)
            .not_when_suspended()
            .specimen(
                Specimen::path("#other:$server")
                    .body(r#"{"room_id":"$room"}"#, NO_ROOM)
                    .outsider(403, "M_FORBIDDEN"),
            )
            .to(set),
    );
    routes.add(
        Route::of::<delete_alias::v3::Request>()
            .rate(RateClass::Other)
            .not_when_suspended()
            .specimen(Specimen::path("$alias").outsider(403, "M_FORBIDDEN").powerless(403, "M_FORBIDDEN"))
            .to(remove),
    );
    routes.add(
        Route::of::<aliases::v3::Request>()
            .specimen(Specimen::path("$room").outsider(403, "M_FORBIDDEN"))
            .to(of_room),
    );
    routes.add(
        Route::of::<get_room_visibility::v3::Request>().specimen(Specimen::path("$room")).to(visibility),
    );
    routes.add(
        Route::of::<set_room_visibility::v3::Request>()
            .rate(RateClass::Other)
            .not_when_suspended()
            .specimen(
                Specimen::path("$room")
                    .body(r#"{"visibility":"public"}"#, r#"{"visibility":5}"#)
                    .outsider(403, "M_FORBIDDEN")
                    .powerless(403, "M_FORBIDDEN"),
            )
            .to(set_visibility),
    );
}

/// The room that an id or an alias means, wherever it is, and servers that may be in it: those that were named, and
/// those that the alias's server tells.
pub async fn locate(
    rooms: &Rooms,
    remote: &RemoteRooms,
    user: &LocalUser,
    named: OwnedRoomOrAliasId,
    mut via: Vec<OwnedServerName>,
) -> Result<(OwnedRoomId, Vec<OwnedServerName>), MatrixError> {
    let alias = match OwnedRoomId::try_from(named) {
        Ok(room) => return Ok((room, via)),
        Err(alias) => alias,
    };
    if rooms.servers().is_local(alias.server_name()) {
        return Ok((room_of_alias(rooms, &alias).await?, via));
    }
    let found = remote.resolve_alias(&Asker::User(user.user_id.clone()), &alias).await?;
    for server in found.servers {
        if !via.contains(&server) {
            via.push(server);
        }
    }
    Ok((found.room_id, via))
}

/// The room that an id or an alias of this server means.
pub async fn room_of(rooms: &Rooms, named: OwnedRoomOrAliasId) -> Result<OwnedRoomId, MatrixError> {
    match OwnedRoomId::try_from(named) {
        Ok(room) => Ok(room),
        Err(alias) => room_of_alias(rooms, &alias).await,
    }
}

async fn room_of_alias(rooms: &Rooms, alias: &RoomAliasId) -> Result<OwnedRoomId, MatrixError> {
    let room = rooms.resolve_alias(alias).await?;
    room.ok_or_else(|| MatrixError::not_found(format!("there is no room {alias}")))
}

/// Refuses to list rooms where only administrators may.
pub fn check_may_publish(config: &Config, user: &LocalUser) -> Result<(), MatrixError> {
    if may_publish(config, user) {
        Ok(())
    } else {
        Err(MatrixError::forbidden("only administrators of this server list rooms"))
    }
}

/// `GET /_matrix/client/v3/directory/room/{roomAlias}`
async fn resolve(
    State(rooms): State<Rooms>,
    State(remote): State<RemoteRooms>,
    State(config): State<Arc<Config>>,
    facts: RequestFacts,
    PathArgs((alias,)): PathArgs<(OwnedRoomAliasId,)>,
) -> ApiResult<get_alias::v3::Response> {
    if !rooms.servers().is_local(alias.server_name()) {
        let found = remote.resolve_alias(&Asker::Address(facts.client.0), &alias).await?;
        return Ok(Ruma(get_alias::v3::Response::new(found.room_id, found.servers)));
    }
    let room = room_of_alias(&rooms, &alias).await?;
    let mut servers = vec![config.server_name.clone()];
    if let Some(held) = rooms.room(&room).await? {
        let others = rooms.servers_in_room(&held).await?;
        let others = others.iter().filter(|server| *server != config.server_name);
        servers.extend(others.take(SERVERS_TOLD - 1).map(ToOwned::to_owned));
    }
    Ok(Ruma(get_alias::v3::Response::new(room, servers)))
}

/// `PUT /_matrix/client/v3/directory/room/{roomAlias}`
async fn set(
    State(rooms): State<Rooms>,
    user: LocalUser,
    Ruma(request): Ruma<create_alias::v3::Request>,
) -> ApiResult<create_alias::v3::Response> {
    let room = rooms.room(&request.room_id).await?.ok_or_else(not_in_room)?;
    if !user.is_admin && !rooms.is_joined(&user.user_id, room.sn).await? {
        return Err(not_in_room());
    }
    rooms.set_alias(&request.room_alias, &request.room_id, &user.user_id).await?;
    Ok(Ruma(create_alias::v3::Response::new()))
}

/// `DELETE /_matrix/client/v3/directory/room/{roomAlias}`
async fn remove(
    State(rooms): State<Rooms>,
    user: LocalUser,
    Ruma(request): Ruma<delete_alias::v3::Request>,
) -> ApiResult<delete_alias::v3::Response> {
    rooms.delete_alias(&request.room_alias, &user.user_id, user.is_admin).await?;
    Ok(Ruma(delete_alias::v3::Response::new()))
}

/// `GET /_matrix/client/v3/rooms/{roomId}/aliases`
async fn of_room(
    State(rooms): State<Rooms>,
    State(reader): State<Reader>,
    State(users): State<Users>,
    user: LocalUser,
    PathArgs((room_id,)): PathArgs<(OwnedRoomId,)>,
) -> ApiResult<aliases::v3::Response> {
    let viewer = reading::viewer(&reader, &users, &user, &room_id).await?.ok_or_else(not_in_room)?;
    if !viewer.is_joined() {
        let snapshot = reader.head_snapshot(viewer.room).await?.ok_or_else(not_in_room)?;
        if !reader.is_world_readable(viewer.room, snapshot).await? {
            return Err(not_in_room());
        }
    }
    Ok(Ruma(aliases::v3::Response::new(rooms.aliases(viewer.room).await?)))
}

/// `GET /_matrix/client/v3/directory/list/room/{roomId}`
async fn visibility(
    State(rooms): State<Rooms>,
    PathArgs((room_id,)): PathArgs<(OwnedRoomId,)>,
) -> ApiResult<get_room_visibility::v3::Response> {
    let room = rooms.room(&room_id).await?;
    let room = room.ok_or_else(|| MatrixError::not_found("there is no such room here"))?;
    let visibility = match rooms.is_listed(room.sn).await? {
        true => Visibility::Public,
        false => Visibility::Private,
    };
    Ok(Ruma(get_room_visibility::v3::Response::new(visibility)))
}

/// `PUT /_matrix/client/v3/directory/list/room/{roomId}`
async fn set_visibility(
    State(rooms): State<Rooms>,
    State(config): State<Arc<Config>>,
    user: LocalUser,
    Ruma(request): Ruma<set_room_visibility::v3::Request>,
) -> ApiResult<set_room_visibility::v3::Response> {
    let listed = match request.visibility {
        Visibility::Public => true,
        Visibility::Private => false,
        other => {
            return Err(MatrixError::invalid_param(format!("there is no visibility {}", other.as_str())));
        }
    };
    if listed {
        check_may_publish(&config, &user)?;
    }
    rooms.set_listed(&request.room_id, listed, &user.user_id, user.is_admin).await?;
    Ok(Ruma(set_room_visibility::v3::Response::new()))
}

impl From<AliasError> for MatrixError {
    fn from(error: AliasError) -> Self {
        let message = error.to_string();
        match error {
            AliasError::Unknown => Self::not_found(message),
            AliasError::Taken => Self::new(StatusCode::CONFLICT, "M_UNKNOWN", message),
            AliasError::Elsewhere => Self::invalid_param(message),
            AliasError::TooMany => Self::unknown(message),
            AliasError::NotAllowed => Self::forbidden(message),
            AliasError::Write(error) => error.into(),
        }
    }
}
