//! Rooms that other servers may be told of: the public list, and the rooms of a space.

use std::sync::Arc;

use axum::extract::State;
use hearth_dag::Pdu;
use hearth_rooms::{RoomInfo, Rooms};
use http::Method;
use ruma::OwnedRoomId;
use serde::{Deserialize, Serialize};
use serde_json::{json, value::RawValue};

use crate::{
    http::{
        Auth, JsonBody, JsonResult, MatrixError, PathArgs, Query, RawJson, RemoteServer, Route, Routes,
        Specimen,
    },
    summaries::{Filter, Page, Summaries, Summary},
};

/// The chapter's endpoints.
pub fn routes(routes: &mut Routes) {
    let list = Route::at(Method::GET, "/_matrix/federation/v1/publicRooms", Auth::Server);
    routes.add(list.specimen(Specimen::path("")).to(public_rooms));
    let search = Route::at(Method::POST, "/_matrix/federation/v1/publicRooms", Auth::Server);
    let body = Specimen::path("")
        .body(r#"{"filter":{"generic_search_term":"tea"}}"#, r#"{"filter":{"generic_search_term":1}}"#);
    routes.add(search.specimen(body).to(search_public_rooms));
    let hierarchy = Route::at(Method::GET, "/_matrix/federation/v1/hierarchy/{room_id}", Auth::Server);
    routes.add(hierarchy.specimen(Specimen::path("$room")).to(space));
}

#[derive(Deserialize)]
struct Listing {
    limit: Option<u64>,
    since: Option<String>,
    #[serde(default)]
    filter: Filter,
    third_party_instance_id: Option<String>,
}

/// `GET /_matrix/federation/v1/publicRooms`
async fn public_rooms(
    rooms: State<Rooms>,
    summaries: State<Summaries>,
    server: RemoteServer,
    Query(listing): Query<Listing>,
) -> JsonResult {
    search_public_rooms(rooms, summaries, server, JsonBody(listing)).await
}

/// `POST /_matrix/federation/v1/publicRooms`
async fn search_public_rooms(
    State(rooms): State<Rooms>,
    State(summaries): State<Summaries>,
    _: RemoteServer,
    JsonBody(listing): JsonBody<Listing>,
) -> JsonResult {
    // No other network is bridged here.
    let listed = match listing.third_party_instance_id {
        None => rooms.listed_for_peers().await?,
        Some(_) => Vec::new(),
    };
    let mut found = Vec::new();
    for room in listed {
        found.extend(summaries.of(room.sn).await?.filter(|summary| listing.filter.matches(summary)));
    }
    let page = Page::of(&mut found, listing.since.as_deref(), listing.limit);
    RawJson::of(&page.ok_or_else(|| MatrixError::invalid_param("not a pagination token of this server"))?)
}

#[derive(Deserialize)]
struct Space {
    #[serde(default)]
    suggested_only: bool,
}

/// A room of a space.
#[derive(Serialize)]
struct Room {
    #[serde(flatten)]
    summary: Arc<Summary>,
    room_version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    encryption: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    allowed_room_ids: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    children_state: Option<Vec<Box<RawValue>>>,
}

/// `GET /_matrix/federation/v1/hierarchy/{roomId}`
async fn space(
    State(rooms): State<Rooms>,
    State(summaries): State<Summaries>,
    server: RemoteServer,
    PathArgs((room,)): PathArgs<(OwnedRoomId,)>,
    Query(query): Query<Space>,
) -> JsonResult {
    let unknown = || MatrixError::not_found("there is no such room, or that server may not know of it");
    let space = rooms.space_for_peer(&server.origin, &room, query.suggested_only).await;
    let space = space.map_err(|error| match error {
        hearth_rooms::serve::QueryError::Store(error) => error.into(),
        // Who may not know of a room need not know that it is there.
        _ => unknown(),
    })?;
    let mut room = of_room(&summaries, &space.room).await?.ok_or_else(unknown)?;
    room.children_state = Some(space.children_state.iter().map(stripped).collect::<Result<_, _>>()?);
    let mut children = Vec::new();
    for child in &space.accessible {
        children.extend(of_room(&summaries, child).await?);
    }
    let inaccessible = space.inaccessible;
    RawJson::of(&json!({ "room": room, "children": children, "inaccessible_children": inaccessible }))
}

async fn of_room(summaries: &Summaries, room: &RoomInfo) -> Result<Option<Room>, MatrixError> {
    Ok(summaries.of(room.sn).await?.map(|summary| Room {
        room_version: room.version.to_string(),
        encryption: summary.encryption.clone(),
        allowed_room_ids: summary.allowed_room_ids.clone(),
        children_state: None,
        summary,
    }))
}

/// An `m.space.child` event as the specification has it in this answer.
fn stripped(pdu: &Pdu) -> Result<Box<RawValue>, MatrixError> {
    let event = json!({
        "type": pdu.kind(),
        "state_key": pdu.state_key(),
        "content": pdu.content(),
        "sender": pdu.sender(),
        "origin_server_ts": pdu.origin_server_ts(),
    });
    serde_json::value::to_raw_value(&event).map_err(MatrixError::internal)
}
