//! Making rooms.

use std::sync::Arc;

use axum::extract::{FromRequest, Request, State};
use futures_util::StreamExt as _;
use hearth_federation::RemoteRooms;
use hearth_rooms::{
    CreateError, CreateRoom, CreatedRoom, InitialState, Invite, Preset, Profile, Rooms, WriteError,
};
use hearth_store::Commit;
use hearth_users::Users;
use ruma::{
    OwnedRoomAliasId, RoomAliasId, RoomVersionId, ServerName,
    api::client::room::{
        Visibility,
        create_room::{self, v3::RoomPreset},
    },
    serde::Raw,
};
use serde::Deserialize;
use serde_json::{Map, Value, value::RawValue};

use super::{directory, membership, uia};
use crate::{
    config::Config,
    http::{ApiResult, LocalUser, MatrixError, RateClass, Route, Routes, Ruma, Specimen},
};

/// Servers that are asked at once to sign the invites of a new room.
const INVITES_AT_ONCE: usize = 10;

/// The chapter's endpoints.
pub fn routes(routes: &mut Routes) {
    routes.add(
        Route::of::<create_room::v3::Request>()
            .rate(RateClass::RoomCreation)
            .not_when_suspended()
            .specimen(Specimen::path("").body(r#"{"preset":"private_chat"}"#, r#"{"invite":"$other"}"#))
            .to(create),
    );
}

/// `POST /_matrix/client/v3/createRoom`
async fn create(
    State(rooms): State<Rooms>,
    State(remote): State<RemoteRooms>,
    State(users): State<Users>,
    State(config): State<Arc<Config>>,
    user: LocalUser,
    Wanted(request): Wanted,
) -> ApiResult<create_room::v3::Response> {
    if !request.invite_3pid.is_empty() {
        return Err(membership::no_third_party_invites());
    }
    let listed = request.visibility == Visibility::Public;
    if listed {
        directory::check_may_publish(&config, &user)?;
    }
    let mut create = CreateRoom::new(user.user_id.clone());
    create.version = request.room_version.unwrap_or_else(|| config.default_room_version.clone());
    create.preset = preset(request.preset, listed)?;
    create.listed = listed;
    create.creation_content = object("creation_content", request.creation_content)?;
    create.power_level_content_override =
        object("power_level_content_override", request.power_level_content_override)?;
    create.initial_state = request.initial_state.iter().map(initial_state).collect::<Result<_, _>>()?;
    create.alias = request.room_alias_name.map(|name| alias(&name, &config.server_name)).transpose()?;
    create.name = request.name;
    create.topic = request.topic;
    create.is_direct = request.is_direct;
    create.profile = membership::profile(&users, &user.user_id).await?;
    for invited in request.invite {
        membership::check_invitable(&rooms, &users, &invited, &user.user_id).await?;
        let profile = membership::profile(&users, &invited).await?;
        create.invite.push((invited, profile));
    }
    let created = rooms.create(&create, Commit::new()).await?;
    invite_elsewhere(&remote, &create, &created).await;
    Ok(Ruma(create_room::v3::Response::new(created.room_id)))
}

/// Invites the users of other servers. The room is there whatever becomes of them: who could not be invited is seen to
/// be missing, and can be invited again.
async fn invite_elsewhere(remote: &RemoteRooms, create: &CreateRoom, created: &CreatedRoom) {
    let invites = created.remote_invites.clone().into_iter().map(|user| {
        let invite = Invite {
            room: created.room_id.clone(),
            sender: create.creator.clone(),
            user: user.clone(),
            profile: Profile::default(),
            reason: None,
            is_direct: create.is_direct,
        };
        let remote = remote.clone();
        async move { (user, remote.invite(invite).await) }
    });
    let mut invites = futures_util::stream::iter(invites).buffer_unordered(INVITES_AT_ONCE);
    while let Some((user, invited)) = invites.next().await {
        if let Err(error) = invited {
            tracing::info!(room_id = %created.room_id, %user, %error, "a user is not invited to a new room");
        }
    }
}

/// The request. ruma refuses a room version that breaks the grammar of versions as a malformed parameter; to clients
/// it is one that this server does not have, like any other.
struct Wanted(create_room::v3::Request);

impl<S: Sync> FromRequest<S> for Wanted {
    type Rejection = MatrixError;

    async fn from_request(request: Request, state: &S) -> Result<Self, MatrixError> {
        #[derive(Deserialize)]
        struct Versioned {
            room_version: Option<String>,
        }
        let (request, body) = uia::with_body(request, state).await?;
        if let Ok(Versioned { room_version: Some(version) }) = serde_json::from_slice(&body)
            && let Err(error) = RoomVersionId::try_from(version)
        {
            return Err(MatrixError::unsupported_room_version(format!("room_version: {error}")));
        }
        Ruma::from_request(request, state).await.map(|Ruma(request)| Self(request))
    }
}

fn preset(asked: Option<RoomPreset>, listed: bool) -> Result<Preset, MatrixError> {
    match asked {
        None if listed => Ok(Preset::PublicChat),
        None | Some(RoomPreset::PrivateChat) => Ok(Preset::PrivateChat),
        Some(RoomPreset::PublicChat) => Ok(Preset::PublicChat),
        Some(RoomPreset::TrustedPrivateChat) => Ok(Preset::TrustedPrivateChat),
        Some(other) => Err(MatrixError::invalid_param(format!("there is no preset {}", other.as_str()))),
    }
}

fn object<T>(name: &str, raw: Option<Raw<T>>) -> Result<Map<String, Value>, MatrixError> {
    let Some(raw) = raw else { return Ok(Map::new()) };
    serde_json::from_str(raw.json().get())
        .map_err(|error| MatrixError::bad_json(format!("{name} is not an object: {error}")))
}

fn initial_state<T>(raw: &Raw<T>) -> Result<InitialState, MatrixError> {
    #[derive(Deserialize)]
    struct Event {
        #[serde(rename = "type")]
        kind: String,
        #[serde(default)]
        state_key: String,
        content: Box<RawValue>,
    }
    let event: Event = serde_json::from_str(raw.json().get())
        .map_err(|error| MatrixError::bad_json(format!("an event of initial_state is malformed: {error}")))?;
    let content = super::rooms::content(event.content)?;
    Ok(InitialState { kind: event.kind, state_key: event.state_key, content })
}

fn alias(name: &str, server_name: &ServerName) -> Result<OwnedRoomAliasId, MatrixError> {
    let bad = |problem: &str| MatrixError::invalid_param(format!("room_alias_name {problem}"));
    if name.is_empty() || name.contains([':', '\0']) || name.contains(char::is_whitespace) {
        return Err(bad("is the part between # and : only"));
    }
    RoomAliasId::parse(format!("#{name}:{server_name}")).map_err(|error| bad(&error.to_string()))
}

impl From<CreateError> for MatrixError {
    fn from(error: CreateError) -> Self {
        let message = error.to_string();
        match error {
            CreateError::Write(error) => error.into(),
            CreateError::UnsupportedVersion(_) => Self::unsupported_room_version(message),
            CreateError::AliasTaken(_) => Self::room_in_use(message),
            CreateError::AliasElsewhere(_) => Self::invalid_param(message),
            CreateError::BadRequest(_) => Self::invalid_param(message),
            CreateError::BadState(WriteError::Forbidden(_)) => Self::invalid_room_state(message),
            CreateError::BadState(error) => error.into(),
        }
    }
}
