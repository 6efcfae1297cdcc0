//! Into rooms, out of them, and inviting: the endpoints of the specification's chapters on joining, leaving, knocking
//! and inviting.

use std::borrow::Cow;

use ruma::{EventId, OwnedServerName, RoomId, RoomVersionId, ServerName, UserId};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Call, Client, HEAVY, JOIN, Json, RequestError, path, to_json, with_query};
use crate::network::Limits;

/// Events of a room's state, and of all that it rests on, that a join takes over at most.
pub const JOIN_EVENTS_MAX: usize = 500_000;
/// Servers in the room that a join takes over at most.
const JOIN_SERVERS_MAX: usize = 100_000;
/// Events of stripped state.
const STRIPPED_MAX: usize = 100;

/// An event to be filled in, signed and sent back.
#[derive(Debug, Clone, Deserialize)]
pub struct Template {
    /// The version of the room. Without one it is version 1 (`make_join` of old servers).
    pub room_version: Option<RoomVersionId>,
    /// The event without hashes and signatures.
    pub event: Box<RawValue>,
}

/// What a resident server gives to who joins.
#[derive(Debug, Clone)]
pub struct JoinAnswer {
    /// The join event as it stands in the room: in restricted rooms with the resident server's signature.
    pub event: Option<Json>,
    /// The state before the join, without members if they were left out.
    pub state: Vec<Json>,
    /// What that state rests on.
    pub auth_chain: Vec<Json>,
    /// Whether members were left out of the state.
    pub members_omitted: bool,
    /// The servers in the room; must be there if members were left out.
    pub servers_in_room: Option<Vec<OwnedServerName>>,
}

impl Client {
    /// `GET make_join`: a join event to sign.
    pub async fn make_join(
        &self,
        server: &ServerName,
        room: &RoomId,
        user: &UserId,
        versions: &[RoomVersionId],
    ) -> Result<Template, RequestError> {
        let path = path("/_matrix/federation/v1/make_join", &[room.as_str(), user.as_str()]);
        let versions = versions.iter().map(|version| ("ver", version.as_str()));
        self.read(server, Call::get(with_query(path, versions))).await
    }

    /// `PUT send_join` (v2): the signed join event for the state of the room.
    pub async fn send_join(
        &self,
        server: &ServerName,
        room: &RoomId,
        event: &EventId,
        pdu: &str,
        omit_members: bool,
    ) -> Result<JoinAnswer, RequestError> {
        self.send_join_within(server, room, event, pdu, omit_members, JOIN).await
    }

    /// The same with an answer of bounds of the caller's.
    pub async fn send_join_within(
        &self,
        server: &ServerName,
        room: &RoomId,
        event: &EventId,
        pdu: &str,
        omit_members: bool,
        limits: Limits,
    ) -> Result<JoinAnswer, RequestError> {
        #[derive(Deserialize)]
        struct Answer<'a> {
            #[serde(borrow)]
            event: Option<&'a RawValue>,
            #[serde(borrow)]
            state: Vec<&'a RawValue>,
            #[serde(borrow)]
            auth_chain: Vec<&'a RawValue>,
            #[serde(default)]
            members_omitted: bool,
            #[serde(borrow)]
            servers_in_room: Option<Vec<Cow<'a, str>>>,
        }
        let path = path("/_matrix/federation/v2/send_join", &[room.as_str(), event.as_str()]);
        let omit = omit_members.then_some(("omit_members", "true"));
        let json = self.json(server, Call::put(with_query(path, omit), pdu).limits(limits)).await?;
        let answer: Answer<'_> = json.parse().map_err(RequestError::malformed)?;
        if answer.servers_in_room.as_ref().is_some_and(|servers| servers.len() > JOIN_SERVERS_MAX) {
            return Err(RequestError::malformed("too many servers in the room"));
        }
        // Old rooms have members whose server no longer has a name that could be asked.
        let names = |names: Vec<Cow<'_, str>>| -> Vec<OwnedServerName> {
            names.into_iter().filter_map(|name| ServerName::parse(name).ok()).collect()
        };
        let parts = |parts: &[&RawValue]| json.parts(parts, JOIN_EVENTS_MAX).map_err(RequestError::malformed);
        Ok(JoinAnswer {
            event: answer.event.map(|event| json.part(event)),
            state: parts(&answer.state)?,
            auth_chain: parts(&answer.auth_chain)?,
            members_omitted: answer.members_omitted,
            servers_in_room: answer.servers_in_room.map(names),
        })
    }

    /// `GET make_leave`: a leave event to sign, also to reject an invite.
    pub async fn make_leave(
        &self,
        server: &ServerName,
        room: &RoomId,
        user: &UserId,
    ) -> Result<Template, RequestError> {
        let path = path("/_matrix/federation/v1/make_leave", &[room.as_str(), user.as_str()]);
        self.read(server, Call::get(path)).await
    }

    /// `PUT send_leave` (v2).
    pub async fn send_leave(
        &self,
        server: &ServerName,
        room: &RoomId,
        event: &EventId,
        pdu: &str,
    ) -> Result<(), RequestError> {
        let path = path("/_matrix/federation/v2/send_leave", &[room.as_str(), event.as_str()]);
        self.call(server, Call::put(path, pdu).limits(HEAVY)).await.map(drop)
    }

    /// `GET make_knock`: a knock event to sign.
    pub async fn make_knock(
        &self,
        server: &ServerName,
        room: &RoomId,
        user: &UserId,
        versions: &[RoomVersionId],
    ) -> Result<Template, RequestError> {
        let path = path("/_matrix/federation/v1/make_knock", &[room.as_str(), user.as_str()]);
        let versions = versions.iter().map(|version| ("ver", version.as_str()));
        self.read(server, Call::get(with_query(path, versions))).await
    }

    /// `PUT send_knock`; gives the stripped state of the room.
    pub async fn send_knock(
        &self,
        server: &ServerName,
        room: &RoomId,
        event: &EventId,
        pdu: &str,
    ) -> Result<Vec<Json>, RequestError> {
        #[derive(Deserialize)]
        struct Answer<'a> {
            #[serde(borrow)]
            knock_room_state: Vec<&'a RawValue>,
        }
        let path = path("/_matrix/federation/v1/send_knock", &[room.as_str(), event.as_str()]);
        let json = self.json(server, Call::put(path, pdu).limits(HEAVY)).await?;
        let answer: Answer<'_> = json.parse().map_err(RequestError::malformed)?;
        json.parts(&answer.knock_room_state, STRIPPED_MAX).map_err(RequestError::malformed)
    }

    /// `PUT invite`: the invite with the signature of the invited user's server. In its second form, or, where that is
    /// unknown and the room's version allows it, in the first.
    pub async fn invite(
        &self,
        server: &ServerName,
        room: &RoomId,
        event: &EventId,
        pdu: &str,
        version: &RoomVersionId,
        invite_room_state: &[Box<RawValue>],
    ) -> Result<Json, RequestError> {
        match self.invite_v2(server, room, event, pdu, version, invite_room_state).await {
            Err(RequestError::Remote(error))
                if error.is_unrecognized() && matches!(version, RoomVersionId::V1 | RoomVersionId::V2) =>
            {
                self.invite_v1(server, room, event, pdu, invite_room_state).await
            }
            answer => answer,
        }
    }

    async fn invite_v2(
        &self,
        server: &ServerName,
        room: &RoomId,
        event: &EventId,
        pdu: &str,
        version: &RoomVersionId,
        invite_room_state: &[Box<RawValue>],
    ) -> Result<Json, RequestError> {
        #[derive(Deserialize)]
        struct Answer<'a> {
            #[serde(borrow)]
            event: &'a RawValue,
        }
        let state = to_json(&invite_room_state)?;
        let version = to_json(version)?;
        let body = format!(r#"{{"event":{pdu},"invite_room_state":{state},"room_version":{version}}}"#);
        let path = path("/_matrix/federation/v2/invite", &[room.as_str(), event.as_str()]);
        let json = self.json(server, Call::put(path, &body)).await?;
        let answer: Answer<'_> = json.parse().map_err(RequestError::malformed)?;
        Ok(json.part(answer.event))
    }

    /// The first form: stripped state within the event, and the answer is `[200, {"event": …}]`.
    async fn invite_v1(
        &self,
        server: &ServerName,
        room: &RoomId,
        event: &EventId,
        pdu: &str,
        invite_room_state: &[Box<RawValue>],
    ) -> Result<Json, RequestError> {
        #[derive(Deserialize)]
        struct Answer<'a> {
            #[serde(borrow)]
            event: &'a RawValue,
        }
        let mut body: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(pdu).map_err(RequestError::malformed)?;
        body.insert("unsigned".to_owned(), serde_json::json!({ "invite_room_state": invite_room_state }));
        let body = to_json(&body)?;
        let path = path("/_matrix/federation/v1/invite", &[room.as_str(), event.as_str()]);
        let json = self.json(server, Call::put(path, &body)).await?;
        let (_, answer): (u16, Answer<'_>) = json.parse().map_err(RequestError::malformed)?;
        Ok(json.part(answer.event))
    }

    /// `PUT exchange_third_party_invite`: a resident server makes the invite that a third-party invite stands for.
    pub async fn exchange_third_party_invite(
        &self,
        server: &ServerName,
        room: &RoomId,
        event: &str,
    ) -> Result<(), RequestError> {
        let path = path("/_matrix/federation/v1/exchange_third_party_invite", &[room.as_str()]);
        self.call(server, Call::put(path, event).limits(HEAVY)).await.map(drop)
    }
}
