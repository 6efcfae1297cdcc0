//! Who is in a room: joining, inviting, knocking, leaving, forgetting, kicking and banning.

use axum::extract::State;
use hearth_dag::canonical::to_canonical;
use hearth_federation::{Policy, RemoteRooms};
use hearth_rooms::{Invite, Join, Knock, MembershipError, Profile, Removal, Remove, Rooms, read::Reader};
use hearth_store::Commit;
use hearth_users::Users;
use http::StatusCode;
use ruma::{
    OwnedRoomId, OwnedRoomOrAliasId, OwnedServerName, OwnedUserId, ServerName, UserId,
    api::client::{
        knock::knock_room,
        membership::{
            ban_user, forget_room, invite_user, join_room_by_id, join_room_by_id_or_alias, joined_rooms,
            kick_user, leave_room, unban_user,
        },
    },
};
use serde::Deserialize;
use serde_json::{Map, Value as Json};

use super::{directory, reading::not_in_room};
use crate::http::{
    ApiResult, JsonBody, LocalUser, MatrixError, PathArgs, Query, RateClass, Route, Routes, Ruma, Specimen,
};

/// The chapter's endpoints.
pub fn routes(routes: &mut Routes) {
    const NO_REASON: &str = r#"{"reason":5}"#;
    routes.add(
        Route::of::<join_room_by_id::v3::Request>()
            .rate(RateClass::Join)
            .not_when_suspended()
            .specimen(Specimen::path("$room").body("{}", NO_REASON).outsider(403, "M_FORBIDDEN"))
            .to(join_by_id),
    );
    routes.add(
        Route::of::<join_room_by_id_or_alias::v3::Request>()
            .rate(RateClass::Join)
            .not_when_suspended()
            .specimen(Specimen::path("$room").body("{}", NO_REASON).outsider(403, "M_FORBIDDEN"))
            .to(join),
    );
    routes.add(
        Route::of::<knock_room::v3::Request>()
            .rate(RateClass::Join)
            .not_when_suspended()
            .specimen(Specimen::path("$room").body("{}", NO_REASON).outsider(403, "M_FORBIDDEN"))
            .to(knock),
    );
    routes.add(
        Route::of::<invite_user::v3::Request>()
            .rate(RateClass::Invite)
            .not_when_suspended()
            .specimen(
                Specimen::path("$room")
                    .body(r#"{"user_id":"$third"}"#, r#"{"user_id":5}"#)
                    .outsider(403, "M_FORBIDDEN"),
            )
            .to(invite),
    );
    routes.add(
        Route::of::<leave_room::v3::Request>()
            .specimen(Specimen::path("$room").body("{}", NO_REASON).outsider(403, "M_FORBIDDEN"))
            .to(leave),
    );
    routes.add(Route::of::<forget_room::v3::Request>().specimen(Specimen::path("$room")).to(forget));
    let on_others = |route: Route| {
        route.rate(RateClass::Message).not_when_suspended().specimen(
            Specimen::path("$room")
                .body(r#"{"user_id":"$me"}"#, r#"{"user_id":5}"#)
                .outsider(403, "M_FORBIDDEN")
                .powerless(403, "M_FORBIDDEN"),
        )
    };
    routes.add(on_others(Route::of::<kick_user::v3::Request>()).to(kick));
    routes.add(on_others(Route::of::<ban_user::v3::Request>()).to(ban));
    let unban_specimen = Specimen::path("$room")
        .body(r#"{"user_id":"$me"}"#, r#"{"user_id":5}"#)
        .outsider(403, "M_FORBIDDEN")
        .powerless(403, "M_BAD_STATE");
    routes.add(on_others(Route::of::<unban_user::v3::Request>()).specimen(unban_specimen).to(unban));
    routes.add(Route::of::<joined_rooms::v3::Request>().specimen(Specimen::path("")).to(rooms_joined));
}

/// What a user's member events say of them.
pub async fn profile(users: &Users, user: &UserId) -> Result<Profile, MatrixError> {
    let profile = users.profile(user).await?;
    Ok(Profile {
        display_name: profile.displayname().map(str::to_owned),
        avatar_url: profile.avatar_url().map(str::to_owned),
    })
}

/// Refuses invites to those who are not here or do not want any.
pub async fn check_invitable(
    rooms: &Rooms,
    users: &Users,
    invited: &UserId,
    by: &UserId,
) -> Result<(), MatrixError> {
    if invited == by {
        return Err(MatrixError::forbidden("nobody can invite themselves"));
    }
    if !rooms.is_local(invited) {
        // Their server knows, and is asked to sign the invite.
        return Ok(());
    }
    Ok(users.check_invitable(invited).await?)
}

/// The refusal of invites by e-mail or phone.
pub fn no_third_party_invites() -> MatrixError {
    MatrixError::new(
        StatusCode::FORBIDDEN,
        "M_THREEPID_DENIED",
        "this server cannot invite by e-mail address or phone number",
    )
}

#[derive(Deserialize)]
struct Reason {
    reason: Option<String>,
}

/// Servers that a client names, so that somebody can be asked about a room.
const VIA_MAX: usize = 50;

/// `via`, and what it was called before.
fn via(query: Vec<(String, String)>) -> Vec<OwnedServerName> {
    let named = query.into_iter().filter(|(name, _)| name == "via" || name == "server_name").take(VIA_MAX);
    let mut servers: Vec<OwnedServerName> = Vec::new();
    for server in named.filter_map(|(_, server)| ServerName::parse(server).ok()) {
        if !servers.contains(&server) {
            servers.push(server);
        }
    }
    servers
}

#[derive(Deserialize)]
struct Joining {
    reason: Option<String>,
    #[serde(flatten)]
    custom: Map<String, Json>,
}

/// Bytes of what a join says at most: the event has to hold more than that, here and where it is signed.
const JOIN_MAX: usize = 32 * 1024;

/// `POST /_matrix/client/v3/rooms/{roomId}/join`
async fn join_by_id(
    State(remote): State<RemoteRooms>,
    State(users): State<Users>,
    user: LocalUser,
    PathArgs((room,)): PathArgs<(OwnedRoomId,)>,
    Query(query): Query<Vec<(String, String)>>,
    JsonBody(joining): JsonBody<Joining>,
) -> ApiResult<join_room_by_id::v3::Response> {
    let room = join_room(&remote, &users, user, room, via(query), joining).await?;
    Ok(Ruma(join_room_by_id::v3::Response::new(room)))
}

/// `POST /_matrix/client/v3/join/{roomIdOrAlias}`
async fn join(
    State(remote): State<RemoteRooms>,
    State(rooms): State<Rooms>,
    State(users): State<Users>,
    user: LocalUser,
    PathArgs((room_or_alias,)): PathArgs<(OwnedRoomOrAliasId,)>,
    Query(query): Query<Vec<(String, String)>>,
    JsonBody(joining): JsonBody<Joining>,
) -> ApiResult<join_room_by_id_or_alias::v3::Response> {
    let (room, servers) = directory::locate(&rooms, &remote, &user, room_or_alias, via(query)).await?;
    let room = join_room(&remote, &users, user, room, servers, joining).await?;
    Ok(Ruma(join_room_by_id_or_alias::v3::Response::new(room)))
}

async fn join_room(
    remote: &RemoteRooms,
    users: &Users,
    user: LocalUser,
    room: OwnedRoomId,
    via: Vec<OwnedServerName>,
    Joining { reason, custom }: Joining,
) -> Result<OwnedRoomId, MatrixError> {
    let profile = profile(users, &user.user_id).await?;
    let join = Join { room, user: user.user_id, profile, reason, custom };
    let content = join.content().to_string();
    if content.len() > JOIN_MAX {
        return Err(MatrixError::too_large("a join cannot say that much"));
    }
    // Else the servers that are asked would be blamed.
    to_canonical(&content, true).map_err(|error| MatrixError::bad_json(error.to_string()))?;
    Ok(remote.join(join, via).await?)
}

/// `POST /_matrix/client/v3/knock/{roomIdOrAlias}`
async fn knock(
    State(remote): State<RemoteRooms>,
    State(rooms): State<Rooms>,
    State(users): State<Users>,
    user: LocalUser,
    Query(query): Query<Vec<(String, String)>>,
    Ruma(request): Ruma<knock_room::v3::Request>,
) -> ApiResult<knock_room::v3::Response> {
    let (room, servers) =
        directory::locate(&rooms, &remote, &user, request.room_id_or_alias, via(query)).await?;
    let profile = profile(&users, &user.user_id).await?;
    let knock = Knock { room: room.clone(), user: user.user_id, profile, reason: request.reason };
    remote.knock(knock, servers).await?;
    Ok(Ruma(knock_room::v3::Response::new(room)))
}

#[derive(Deserialize)]
struct Invitation {
    user_id: Option<OwnedUserId>,
    reason: Option<String>,
    medium: Option<String>,
}

/// `POST /_matrix/client/v3/rooms/{roomId}/invite`
async fn invite(
    State(remote): State<RemoteRooms>,
    State(rooms): State<Rooms>,
    State(users): State<Users>,
    user: LocalUser,
    PathArgs((room,)): PathArgs<(OwnedRoomId,)>,
    JsonBody(invitation): JsonBody<Invitation>,
) -> ApiResult<invite_user::v3::Response> {
    if invitation.medium.is_some() {
        return Err(no_third_party_invites());
    }
    let invited = invitation.user_id.ok_or_else(|| MatrixError::missing_param("user_id is missing"))?;
    let known = rooms.room(&room).await?.ok_or_else(not_in_room)?;
    if !rooms.is_joined(&user.user_id, known.sn).await? {
        return Err(not_in_room());
    }
    check_invitable(&rooms, &users, &invited, &user.user_id).await?;
    let profile = profile(&users, &invited).await?;
    let invite = Invite {
        room,
        sender: user.user_id,
        user: invited,
        profile,
        reason: invitation.reason,
        is_direct: false,
    };
    remote.invite(invite).await?;
    Ok(Ruma(invite_user::v3::Response::new()))
}

/// `POST /_matrix/client/v3/rooms/{roomId}/leave`
async fn leave(
    State(remote): State<RemoteRooms>,
    user: LocalUser,
    PathArgs((room,)): PathArgs<(OwnedRoomId,)>,
    JsonBody(Reason { reason }): JsonBody<Reason>,
) -> ApiResult<leave_room::v3::Response> {
    let (sender, user) = (user.user_id.clone(), user.user_id);
    remote.leave(Remove { room, sender, user, removal: Removal::Leave, reason }).await?;
    Ok(Ruma(leave_room::v3::Response::new()))
}

/// `POST /_matrix/client/v3/rooms/{roomId}/forget`
async fn forget(
    State(rooms): State<Rooms>,
    user: LocalUser,
    Ruma(request): Ruma<forget_room::v3::Request>,
) -> ApiResult<forget_room::v3::Response> {
    match rooms.forget(&user.user_id, &request.room_id).await {
        // What one never had to do with is forgotten already.
        Ok(()) | Err(MembershipError::NeverThere) => Ok(Ruma(forget_room::v3::Response::new())),
        Err(error) => Err(error.into()),
    }
}

#[derive(Deserialize)]
struct Target {
    user_id: OwnedUserId,
    reason: Option<String>,
}

/// `POST /_matrix/client/v3/rooms/{roomId}/kick`
async fn kick(
    State(policy): State<Policy>,
    user: LocalUser,
    PathArgs((room,)): PathArgs<(OwnedRoomId,)>,
    JsonBody(target): JsonBody<Target>,
) -> ApiResult<kick_user::v3::Response> {
    remove(&policy, user, room, target, Removal::Kick).await?;
    Ok(Ruma(kick_user::v3::Response::new()))
}

/// `POST /_matrix/client/v3/rooms/{roomId}/ban`
async fn ban(
    State(policy): State<Policy>,
    user: LocalUser,
    PathArgs((room,)): PathArgs<(OwnedRoomId,)>,
    JsonBody(target): JsonBody<Target>,
) -> ApiResult<ban_user::v3::Response> {
    remove(&policy, user, room, target, Removal::Ban).await?;
    Ok(Ruma(ban_user::v3::Response::new()))
}

/// `POST /_matrix/client/v3/rooms/{roomId}/unban`
async fn unban(
    State(policy): State<Policy>,
    user: LocalUser,
    PathArgs((room,)): PathArgs<(OwnedRoomId,)>,
    JsonBody(target): JsonBody<Target>,
) -> ApiResult<unban_user::v3::Response> {
    remove(&policy, user, room, target, Removal::Unban).await?;
    Ok(Ruma(unban_user::v3::Response::new()))
}

async fn remove(
    policy: &Policy,
    user: LocalUser,
    room: OwnedRoomId,
    target: Target,
    removal: Removal,
) -> Result<(), MatrixError> {
    let remove = Remove { room, sender: user.user_id, user: target.user_id, removal, reason: target.reason };
    let act = &remove;
    match policy.signing(|rooms| async move { rooms.remove(act, Commit::new()).await }).await {
        Err(error @ MembershipError::NotInRoom(_)) if removal == Removal::Unban => {
            Err(MatrixError::bad_state(format!("{} is not banned: {error}", remove.user)))
        }
        done => {
            done?;
            Ok(())
        }
    }
}

/// `GET /_matrix/client/v3/joined_rooms`
async fn rooms_joined(
    State(rooms): State<Rooms>,
    State(reader): State<Reader>,
    user: LocalUser,
) -> ApiResult<joined_rooms::v3::Response> {
    let mut ids = Vec::new();
    for room in rooms.joined_rooms(&user.user_id).await? {
        ids.extend(reader.room(room).await?.map(|row| row.room_id.clone()));
    }
    Ok(Ruma(joined_rooms::v3::Response::new(ids)))
}

impl From<MembershipError> for MatrixError {
    fn from(error: MembershipError) -> Self {
        let message = error.to_string();
        match error {
            MembershipError::Write(error) => error.into(),
            MembershipError::AlreadyJoined(_)
            | MembershipError::Banned(_)
            | MembershipError::NotInRoom(_)
            | MembershipError::NeedsOtherServer
            | MembershipError::NeverThere => Self::forbidden(message),
            MembershipError::StillJoined | MembershipError::InRoom => Self::unknown(message),
        }
    }
}
