//! Other servers come in, leave and knock, through us: a template first, then the event that they signed.

use std::sync::Arc;

use axum::extract::State;
use hearth_dag::ReceivedPdu;
use hearth_federation::{Federation, Inbound, KeyNeeds, Policy};
use hearth_rooms::{
    RoomInfo, Rooms,
    serve::{AcceptedJoin, Submitted, Template},
};
use http::Method;
use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, RoomVersionId};
use serde::Deserialize;
use serde_json::json;

use super::gate::{list_of, room_for};
use crate::{
    config::Config,
    http::{
        Auth, JsonResult, MatrixError, PathArgs, Query, RawBody, RawJson, RemoteServer, Route, Routes,
        Specimen,
    },
};

/// Versions that a server may say it knows.
const VERSIONS_MAX: usize = 100;

/// The chapter's endpoints.
pub fn routes(routes: &mut Routes) {
    let make = |path| {
        Route::at(Method::GET, path, Auth::Server)
            .specimen(Specimen::path("$room @new:$remote").query("ver=12"))
    };
    routes.add(make("/_matrix/federation/v1/make_join/{room_id}/{user_id}").to(make_join));
    routes.add(make("/_matrix/federation/v1/make_leave/{room_id}/{user_id}").to(make_leave));
    routes.add(make("/_matrix/federation/v1/make_knock/{room_id}/{user_id}").to(make_knock));
    let send = |path| {
        let specimen = Specimen::path("$room $event").body("{}", "[]");
        Route::at(Method::PUT, path, Auth::Server).specimen(specimen)
    };
    routes.add(send("/_matrix/federation/v2/send_join/{room_id}/{event_id}").to(send_join));
    routes.add(send("/_matrix/federation/v1/send_join/{room_id}/{event_id}").to(send_join_v1));
    routes.add(send("/_matrix/federation/v2/send_leave/{room_id}/{event_id}").to(send_leave));
    routes.add(send("/_matrix/federation/v1/send_leave/{room_id}/{event_id}").to(send_leave_v1));
    routes.add(send("/_matrix/federation/v1/send_knock/{room_id}/{event_id}").to(send_knock));
}

/// The versions that a request for a template names; a server that names none knows version 1.
fn versions(query: Vec<(String, String)>) -> Result<Vec<RoomVersionId>, MatrixError> {
    let named = query.into_iter().filter(|(name, _)| name == "ver").take(VERSIONS_MAX);
    let versions: Result<Vec<_>, _> =
        named.map(|(_, version)| RoomVersionId::try_from(version.as_str())).collect();
    let versions = versions.map_err(|error| MatrixError::invalid_param(error.to_string()))?;
    Ok(if versions.is_empty() { vec![RoomVersionId::V1] } else { versions })
}

fn template(template: Template) -> JsonResult {
    RawJson::of(&json!({ "room_version": template.room_version, "event": template.event }))
}

/// `GET /_matrix/federation/v1/make_join/{roomId}/{userId}`
async fn make_join(
    State(rooms): State<Rooms>,
    server: RemoteServer,
    PathArgs((room, user)): PathArgs<(OwnedRoomId, OwnedUserId)>,
    Query(query): Query<Vec<(String, String)>>,
) -> JsonResult {
    let versions = versions(query)?;
    room_for(&rooms, &room, &server.origin).await?;
    template(rooms.make_join(&server.origin, &room, &user, &versions).await?)
}

/// `GET /_matrix/federation/v1/make_leave/{roomId}/{userId}`
async fn make_leave(
    State(rooms): State<Rooms>,
    server: RemoteServer,
    PathArgs((room, user)): PathArgs<(OwnedRoomId, OwnedUserId)>,
) -> JsonResult {
    room_for(&rooms, &room, &server.origin).await?;
    template(rooms.make_leave(&server.origin, &room, &user).await?)
}

/// `GET /_matrix/federation/v1/make_knock/{roomId}/{userId}`
async fn make_knock(
    State(rooms): State<Rooms>,
    server: RemoteServer,
    PathArgs((room, user)): PathArgs<(OwnedRoomId, OwnedUserId)>,
    Query(query): Query<Vec<(String, String)>>,
) -> JsonResult {
    let versions = versions(query)?;
    room_for(&rooms, &room, &server.origin).await?;
    template(rooms.make_knock(&server.origin, &room, &user, &versions).await?)
}

/// A member event that a server hands over: read, with the keys to check it with.
struct Handed {
    server: RemoteServer,
    room: Arc<RoomInfo>,
    event: OwnedEventId,
    pdu: ReceivedPdu,
    keys: hearth_dag::ServerKeys,
}

impl Handed {
    async fn read(
        rooms: &Rooms,
        federation: &Federation,
        server: RemoteServer,
        (room, event): (OwnedRoomId, OwnedEventId),
        body: &[u8],
    ) -> Result<Self, MatrixError> {
        let room = room_for(rooms, &room, &server.origin).await?;
        let text = std::str::from_utf8(body).map_err(|_| MatrixError::not_json("the event is not UTF-8"))?;
        let pdu = ReceivedPdu::parse(room.rules, text);
        let pdu = pdu.map_err(|rejection| MatrixError::bad_json(rejection.to_string()))?;
        let mut needs = KeyNeeds::new().because_of(&server.origin);
        needs.add_pdu(room.rules, &pdu);
        let keys = federation.keys().keys_for(&needs).await?;
        Ok(Self { server, room, event, pdu, keys })
    }

    fn submitted(&self) -> Submitted<'_> {
        Submitted {
            origin: &self.server.origin,
            room: &self.room.room_id,
            event: &self.event,
            pdu: self.pdu.clone(),
            keys: &self.keys,
        }
    }
}

#[derive(Deserialize)]
struct Omit {
    #[serde(default)]
    omit_members: bool,
}

/// `PUT /_matrix/federation/v2/send_join/{roomId}/{eventId}`
async fn send_join(
    State(rooms): State<Rooms>,
    (State(federation), State(inbound)): (State<Federation>, State<Inbound>),
    State(config): State<Arc<Config>>,
    server: RemoteServer,
    PathArgs(args): PathArgs<(OwnedRoomId, OwnedEventId)>,
    Query(omit): Query<Omit>,
    RawBody(body): RawBody,
) -> JsonResult {
    let handed = &Handed::read(&rooms, &federation, server, args, &body).await?;
    let accept = |rooms: Rooms| async move { rooms.accept_join(handed.submitted(), omit.omit_members).await };
    let (joined, answering) = inbound.answering_signed(&handed.server.origin, accept).await?;
    let parts = parts(&config, &joined);
    answering.weighs(parts.len());
    let (event, omitted) = (joined.event.json(), joined.members_omitted);
    let servers: Vec<_> = joined.servers_in_room.iter().collect();
    let servers = json!(servers);
    let more = format!(r#""event":{event},"members_omitted":{omitted},"servers_in_room":{servers}"#);
    Ok(format!("{{{parts},{more}}}").into())
}

/// `PUT /_matrix/federation/v1/send_join/{roomId}/{eventId}`
async fn send_join_v1(
    State(rooms): State<Rooms>,
    (State(federation), State(inbound)): (State<Federation>, State<Inbound>),
    State(config): State<Arc<Config>>,
    server: RemoteServer,
    PathArgs(args): PathArgs<(OwnedRoomId, OwnedEventId)>,
    RawBody(body): RawBody,
) -> JsonResult {
    let handed = &Handed::read(&rooms, &federation, server, args, &body).await?;
    let accept = |rooms: Rooms| async move { rooms.accept_join(handed.submitted(), false).await };
    let (joined, answering) = inbound.answering_signed(&handed.server.origin, accept).await?;
    let parts = parts(&config, &joined);
    answering.weighs(parts.len());
    Ok(format!("[200,{{{parts}}}]").into())
}

/// What both forms of the answer to a join have.
fn parts(config: &Config, joined: &AcceptedJoin) -> String {
    let (state, chain) = (list_of(&joined.state), list_of(&joined.auth_chain));
    format!(r#""origin":{},"state":{state},"auth_chain":{chain}"#, json!(config.server_name))
}

/// `PUT /_matrix/federation/v2/send_leave/{roomId}/{eventId}`
async fn send_leave(
    State(rooms): State<Rooms>,
    State(federation): State<Federation>,
    State(policy): State<Policy>,
    server: RemoteServer,
    PathArgs(args): PathArgs<(OwnedRoomId, OwnedEventId)>,
    RawBody(body): RawBody,
) -> JsonResult {
    let handed = &Handed::read(&rooms, &federation, server, args, &body).await?;
    let accept = |rooms: Rooms| async move { rooms.accept_leave(handed.submitted()).await };
    policy.signing(accept).await?;
    Ok(RawJson::EMPTY)
}

/// `PUT /_matrix/federation/v1/send_leave/{roomId}/{eventId}`
async fn send_leave_v1(
    rooms: State<Rooms>,
    federation: State<Federation>,
    policy: State<Policy>,
    server: RemoteServer,
    args: PathArgs<(OwnedRoomId, OwnedEventId)>,
    body: RawBody,
) -> JsonResult {
    send_leave(rooms, federation, policy, server, args, body).await?;
    Ok("[200,{}]".to_owned().into())
}

/// `PUT /_matrix/federation/v1/send_knock/{roomId}/{eventId}`
async fn send_knock(
    State(rooms): State<Rooms>,
    State(federation): State<Federation>,
    State(policy): State<Policy>,
    server: RemoteServer,
    PathArgs(args): PathArgs<(OwnedRoomId, OwnedEventId)>,
    RawBody(body): RawBody,
) -> JsonResult {
    let handed = &Handed::read(&rooms, &federation, server, args, &body).await?;
    let accept = |rooms: Rooms| async move { rooms.accept_knock(handed.submitted()).await };
    let knocked = policy.signing(accept).await?;
    Ok(format!(r#"{{"knock_room_state":{}}}"#, list_of(&knocked.knock_room_state)).into())
}
