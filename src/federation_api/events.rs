//! Events and state for other servers: what they missed, as far as they may see it.

use std::sync::Arc;

use axum::extract::State;
use hearth_dag::Pdu;
use hearth_federation::Inbound;
use hearth_rooms::{
    Rooms,
    read::Direction,
    serve::{Asked, MissingEvents},
};
use http::Method;
use ruma::{OwnedEventId, OwnedRoomId};
use serde::Deserialize;
use serde_json::json;

use super::gate::{list_of, room_for};
use crate::{
    clock::now_ms,
    config::Config,
    http::{
        Auth, JsonBody, JsonResult, MatrixError, PathArgs, Query, RawJson, RemoteServer, Route, Routes,
        Specimen,
    },
};

/// Events of an answer to `get_missing_events` where nobody says how many.
const MISSING_DEFAULT: u64 = 10;
/// An event that is told by its id counts as so many bytes: it is looked for like the event itself.
const ID_WEIGHS: usize = 256;

/// The chapter's endpoints.
pub fn routes(routes: &mut Routes) {
    let get = |path| Route::at(Method::GET, path, Auth::Server);
    let event = get("/_matrix/federation/v1/event/{event_id}");
    routes.add(event.specimen(Specimen::path("$event")).to(self::event));
    let of_event = Specimen::path("$room").query("event_id=$event");
    routes.add(get("/_matrix/federation/v1/state/{room_id}").specimen(of_event).to(state));
    routes.add(get("/_matrix/federation/v1/state_ids/{room_id}").specimen(of_event).to(state_ids));
    let auth = get("/_matrix/federation/v1/event_auth/{room_id}/{event_id}");
    routes.add(auth.specimen(Specimen::path("$room $event")).to(event_auth));
    let backfill = get("/_matrix/federation/v1/backfill/{room_id}");
    routes.add(backfill.specimen(Specimen::path("$room").query("v=$event&limit=5")).to(self::backfill));
    let missing =
        Route::at(Method::POST, "/_matrix/federation/v1/get_missing_events/{room_id}", Auth::Server);
    let body = Specimen::path("$room").body(
        r#"{"earliest_events":[],"latest_events":["$event"],"limit":5}"#,
        r#"{"earliest_events":[],"latest_events":"$event"}"#,
    );
    routes.add(missing.specimen(body).to(missing_events));
    let near = get("/_matrix/federation/v1/timestamp_to_event/{room_id}");
    routes.add(near.specimen(Specimen::path("$room").query("ts=5&dir=f")).to(event_near));
}

/// `GET /_matrix/federation/v1/event/{eventId}`
async fn event(
    State(rooms): State<Rooms>,
    State(config): State<Arc<Config>>,
    server: RemoteServer,
    PathArgs((event,)): PathArgs<(OwnedEventId,)>,
) -> JsonResult {
    let (_, pdu) = rooms.event_for_peer(&server.origin, &event).await?;
    Ok(transaction(&config, &[pdu]))
}

#[derive(Deserialize)]
struct AtEvent {
    event_id: OwnedEventId,
}

/// `GET /_matrix/federation/v1/state/{roomId}`
async fn state(
    State(rooms): State<Rooms>,
    State(inbound): State<Inbound>,
    server: RemoteServer,
    PathArgs((room,)): PathArgs<(OwnedRoomId,)>,
    Query(at): Query<AtEvent>,
) -> JsonResult {
    room_for(&rooms, &room, &server.origin).await?;
    let answering = inbound.answering(&server.origin).await?;
    let asked = Asked { origin: &server.origin, room: &room, event: &at.event_id };
    let state = rooms.state_for_peer(asked).await?;
    let (chain, pdus) = (list_of(&state.auth_chain), list_of(&state.pdus));
    answering.weighs(chain.len() + pdus.len());
    Ok(format!(r#"{{"auth_chain":{chain},"pdus":{pdus}}}"#).into())
}

/// `GET /_matrix/federation/v1/state_ids/{roomId}`
async fn state_ids(
    State(rooms): State<Rooms>,
    State(inbound): State<Inbound>,
    server: RemoteServer,
    PathArgs((room,)): PathArgs<(OwnedRoomId,)>,
    Query(at): Query<AtEvent>,
) -> JsonResult {
    room_for(&rooms, &room, &server.origin).await?;
    let answering = inbound.answering(&server.origin).await?;
    let asked = Asked { origin: &server.origin, room: &room, event: &at.event_id };
    let state = rooms.state_ids_for_peer(asked).await?;
    answering.weighs((state.auth_chain_ids.len() + state.pdu_ids.len()) * ID_WEIGHS);
    RawJson::of(&json!({ "auth_chain_ids": state.auth_chain_ids, "pdu_ids": state.pdu_ids }))
}

/// `GET /_matrix/federation/v1/event_auth/{roomId}/{eventId}`
async fn event_auth(
    State(rooms): State<Rooms>,
    State(inbound): State<Inbound>,
    server: RemoteServer,
    PathArgs((room, event)): PathArgs<(OwnedRoomId, OwnedEventId)>,
) -> JsonResult {
    room_for(&rooms, &room, &server.origin).await?;
    let answering = inbound.answering(&server.origin).await?;
    let asked = Asked { origin: &server.origin, room: &room, event: &event };
    let chain = rooms.event_auth_for_peer(asked).await?;
    let chain = list_of(&chain);
    answering.weighs(chain.len());
    Ok(format!(r#"{{"auth_chain":{chain}}}"#).into())
}

/// `GET /_matrix/federation/v1/backfill/{roomId}`
async fn backfill(
    State(rooms): State<Rooms>,
    State(inbound): State<Inbound>,
    State(config): State<Arc<Config>>,
    server: RemoteServer,
    PathArgs((room,)): PathArgs<(OwnedRoomId,)>,
    Query(query): Query<Vec<(String, String)>>,
) -> JsonResult {
    let mut from = Vec::new();
    let mut limit = None;
    for (name, value) in query {
        match &*name {
            "v" => from.push(
                OwnedEventId::try_from(value)
                    .map_err(|error| MatrixError::invalid_param(error.to_string()))?,
            ),
            "limit" => {
                let number = value.parse::<usize>();
                limit = Some(number.map_err(|_| MatrixError::invalid_param("the limit is not a number"))?);
            }
            _ => {}
        }
    }
    let limit = limit.ok_or_else(|| MatrixError::missing_param("missing field `limit`"))?;
    if from.is_empty() {
        return Err(MatrixError::missing_param("missing field `v`"));
    }
    room_for(&rooms, &room, &server.origin).await?;
    let answering = inbound.answering(&server.origin).await?;
    let pdus = rooms.backfill_for_peer(&server.origin, &room, &from, limit).await?;
    let answer = transaction(&config, &pdus);
    answering.weighs(answer.0.len());
    Ok(answer)
}

#[derive(Deserialize)]
struct Missing {
    earliest_events: Vec<OwnedEventId>,
    latest_events: Vec<OwnedEventId>,
    limit: Option<u64>,
    #[serde(default)]
    min_depth: i64,
}

/// `POST /_matrix/federation/v1/get_missing_events/{roomId}`
async fn missing_events(
    State(rooms): State<Rooms>,
    State(inbound): State<Inbound>,
    server: RemoteServer,
    PathArgs((room,)): PathArgs<(OwnedRoomId,)>,
    JsonBody(missing): JsonBody<Missing>,
) -> JsonResult {
    room_for(&rooms, &room, &server.origin).await?;
    let answering = inbound.answering(&server.origin).await?;
    let missing = MissingEvents {
        earliest: missing.earliest_events,
        latest: missing.latest_events,
        limit: usize::try_from(missing.limit.unwrap_or(MISSING_DEFAULT)).unwrap_or(usize::MAX),
        min_depth: u64::try_from(missing.min_depth).unwrap_or(0),
    };
    let pdus = rooms.missing_events_for_peer(&server.origin, &room, &missing).await?;
    let events = list_of(&pdus);
    answering.weighs(events.len());
    Ok(format!(r#"{{"events":{events}}}"#).into())
}

#[derive(Deserialize)]
struct Near {
    ts: u64,
    dir: Way,
}

#[derive(Deserialize)]
enum Way {
    #[serde(rename = "f")]
    Forwards,
    #[serde(rename = "b")]
    Backwards,
}

/// `GET /_matrix/federation/v1/timestamp_to_event/{roomId}`
async fn event_near(
    State(rooms): State<Rooms>,
    server: RemoteServer,
    PathArgs((room,)): PathArgs<(OwnedRoomId,)>,
    Query(near): Query<Near>,
) -> JsonResult {
    room_for(&rooms, &room, &server.origin).await?;
    let direction = match near.dir {
        Way::Forwards => Direction::Forward,
        Way::Backwards => Direction::Backward,
    };
    let (event, ts) = rooms.event_at_for_peer(&server.origin, &room, near.ts, direction).await?;
    RawJson::of(&json!({ "event_id": event, "origin_server_ts": ts }))
}

/// Events as a transaction of ours.
fn transaction(config: &Config, pdus: &[Pdu]) -> RawJson {
    let (origin, pdus) = (json!(config.server_name), list_of(pdus));
    format!(r#"{{"origin":{origin},"origin_server_ts":{},"pdus":{pdus}}}"#, now_ms()).into()
}
