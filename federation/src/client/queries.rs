//! Questions about rooms, users and devices of another server.

use ruma::{OwnedRoomId, OwnedServerName, RoomAliasId, RoomId, ServerName, UserId};
use serde::Deserialize;

use super::{Call, Client, Json, RequestError, path, with_query};

/// Where a room is.
#[derive(Debug, Clone, Deserialize)]
pub struct DirectoryAnswer {
    /// The room.
    pub room_id: OwnedRoomId,
    /// Servers in it. Names that are none are left out.
    #[serde(default, deserialize_with = "server_names")]
    pub servers: Vec<OwnedServerName>,
}

fn server_names<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<OwnedServerName>, D::Error> {
    let names = Vec::<String>::deserialize(from)?;
    Ok(names.into_iter().filter_map(|name| ServerName::parse(name).ok()).collect())
}

impl Client {
    /// `GET query/directory`: the room behind an alias.
    pub async fn query_directory(
        &self,
        server: &ServerName,
        alias: &RoomAliasId,
    ) -> Result<DirectoryAnswer, RequestError> {
        let path = "/_matrix/federation/v1/query/directory".to_owned();
        self.read(server, Call::get(with_query(path, [("room_alias", alias.as_str())]))).await
    }

    /// `GET query/profile`: a user's profile, or one field of it.
    pub async fn query_profile(
        &self,
        server: &ServerName,
        user: &UserId,
        field: Option<&str>,
    ) -> Result<Json, RequestError> {
        let path = "/_matrix/federation/v1/query/profile".to_owned();
        let field = field.map(|field| ("field", field));
        let pairs = [("user_id", user.as_str())].into_iter().chain(field);
        self.json(server, Call::get(with_query(path, pairs))).await
    }

    /// `POST publicRooms`: the list of public rooms; `filter` is the body of the question.
    pub async fn public_rooms(&self, server: &ServerName, filter: &str) -> Result<Json, RequestError> {
        let path = "/_matrix/federation/v1/publicRooms".to_owned();
        self.json(server, Call::post(path, filter)).await
    }

    /// `GET hierarchy`: one level of a space.
    pub async fn hierarchy(
        &self,
        server: &ServerName,
        room: &RoomId,
        suggested_only: bool,
    ) -> Result<Json, RequestError> {
        let path = path("/_matrix/federation/v1/hierarchy", &[room.as_str()]);
        let suggested = suggested_only.then_some(("suggested_only", "true"));
        self.json(server, Call::get(with_query(path, suggested))).await
    }

    /// `GET user/devices`: the devices of a user.
    pub async fn user_devices(&self, server: &ServerName, user: &UserId) -> Result<Json, RequestError> {
        self.json(server, Call::get(path("/_matrix/federation/v1/user/devices", &[user.as_str()]))).await
    }

    /// `POST user/keys/query`: device and cross-signing keys of users.
    pub async fn user_keys(&self, server: &ServerName, question: &str) -> Result<Json, RequestError> {
        let path = "/_matrix/federation/v1/user/keys/query".to_owned();
        self.json(server, Call::post(path, question)).await
    }

    /// `POST user/keys/claim`: one-time keys of users.
    pub async fn claim_user_keys(&self, server: &ServerName, question: &str) -> Result<Json, RequestError> {
        let path = "/_matrix/federation/v1/user/keys/claim".to_owned();
        self.json(server, Call::post(path, question)).await
    }

    /// `GET openid/userinfo`: whose OpenID token this is.
    pub async fn openid_userinfo(&self, server: &ServerName, token: &str) -> Result<Json, RequestError> {
        let path = "/_matrix/federation/v1/openid/userinfo".to_owned();
        self.json(server, Call::get(with_query(path, [("access_token", token)]))).await
    }
}
