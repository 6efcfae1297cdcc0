//! The list of public rooms, and short descriptions of single rooms for those who are not in them.

use axum::extract::{FromRef, State};
use hearth_federation::Asker;
use hearth_rooms::{Membership, Rooms, read::Reader, tables::PUBLIC_ROOMS};
use hearth_store::{Order, Store};
use ruma::{
    OwnedRoomOrAliasId, ServerName,
    api::client::{
        directory::{get_public_rooms, get_public_rooms_filtered},
        room::get_summary,
    },
};
use serde::{Deserialize, Serialize};

use super::directory;
use crate::{
    app::App,
    config::Config,
    http::{
        JsonBody, JsonResult, LocalUser, MatrixError, PathArgs, Query, RateClass, RawJson, RequestFacts,
        Route, Routes, Specimen,
    },
    summaries::{Filter, Page, Summaries, Summary},
};

/// The chapter's endpoints.
pub fn routes(routes: &mut Routes) {
    routes.add(
        Route::of::<get_public_rooms::v3::Request>()
            .rate(RateClass::Other)
            .specimen(Specimen::path(""))
            .to(public_rooms),
    );
    routes.add(
        Route::of::<get_public_rooms_filtered::v3::Request>()
            .rate(RateClass::Other)
            .specimen(Specimen::path("").body(
                r#"{"filter":{"generic_search_term":"tea"}}"#,
                r#"{"filter":{"generic_search_term":1}}"#,
            ))
            .to(search_public_rooms),
    );
    routes.add(
        Route::of::<get_summary::v1::Request>()
            .also_at("/_matrix/client/unstable/im.nheko.summary/rooms/{room_id_or_alias}/summary")
            .also_at("/_matrix/client/unstable/im.nheko.summary/summary/{room_id_or_alias}")
            .rate(RateClass::Other)
            .specimen(Specimen::path("$room").outsider(404, "M_NOT_FOUND"))
            .to(summary),
    );
}

#[derive(Deserialize, Default)]
struct ListQuery {
    limit: Option<u64>,
    since: Option<String>,
    server: Option<String>,
}

#[derive(Deserialize)]
struct SearchBody {
    limit: Option<u64>,
    since: Option<String>,
    #[serde(default)]
    filter: Filter,
    third_party_instance_id: Option<String>,
}

/// `GET /_matrix/client/v3/publicRooms`
async fn public_rooms(app: State<App>, facts: RequestFacts, Query(query): Query<ListQuery>) -> JsonResult {
    list(&app, &Asker::Address(facts.client.0), query, &Filter::default()).await
}

/// `POST /_matrix/client/v3/publicRooms`
async fn search_public_rooms(
    app: State<App>,
    user: LocalUser,
    Query(query): Query<ListQuery>,
    JsonBody(body): JsonBody<SearchBody>,
) -> JsonResult {
    if body.third_party_instance_id.is_some() {
        // No other network is bridged here.
        return RawJson::of(&serde_json::json!({ "chunk": [], "total_room_count_estimate": 0 }));
    }
    let query = ListQuery { limit: body.limit, since: body.since, server: query.server };
    list(&app, &Asker::User(user.user_id), query, &body.filter).await
}

/// Published rooms looked at.
const MAX_LISTED: usize = 50_000;

async fn list(app: &App, asker: &Asker, query: ListQuery, filter: &Filter) -> JsonResult {
    if let Some(server) = query.server.as_deref().filter(|server| !server.is_empty()) {
        let server = ServerName::parse(server)
            .map_err(|error| MatrixError::invalid_param(format!("server: {error}")))?;
        if !app.local_servers.is_local(&server) {
            return list_of(app, asker, &server, &query, filter).await;
        }
    }
    let store = Store::from_ref(app);
    let summaries = Summaries::from_ref(app);
    let published = store.range(&PUBLIC_ROOMS, PUBLIC_ROOMS.all(), Order::Forward, MAX_LISTED).await?;
    let mut found = Vec::new();
    for (room, _) in published {
        found.extend(summaries.of(room).await?.filter(|summary| filter.matches(summary)));
    }
    let page = Page::of(&mut found, query.since.as_deref(), query.limit);
    RawJson::of(&page.ok_or_else(|| MatrixError::invalid_param("not a pagination token of this server"))?)
}

/// The list of another server, as that one gives it.
async fn list_of(
    app: &App,
    asker: &Asker,
    server: &ServerName,
    query: &ListQuery,
    filter: &Filter,
) -> JsonResult {
    #[derive(Serialize)]
    struct Question<'a> {
        #[serde(skip_serializing_if = "Option::is_none")]
        limit: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        since: Option<&'a str>,
        filter: &'a Filter,
    }
    let question = Question { limit: query.limit, since: query.since.as_deref(), filter };
    let question = serde_json::to_string(&question).map_err(MatrixError::internal)?;
    let answer = app.remote_rooms.public_rooms(asker, server, &question).await?;
    Ok(answer.get().to_owned().into())
}

#[derive(Serialize)]
struct RoomSummary<'a> {
    #[serde(flatten)]
    summary: &'a Summary,
    room_version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    encryption: Option<&'a str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    allowed_room_ids: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    membership: Option<&'static str>,
}

/// `GET /_matrix/client/v1/room_summary/{roomIdOrAlias}`
async fn summary(
    State(rooms): State<Rooms>,
    State(reader): State<Reader>,
    State(summaries): State<Summaries>,
    user: Option<LocalUser>,
    PathArgs((room,)): PathArgs<(OwnedRoomOrAliasId,)>,
) -> JsonResult {
    let unknown = || MatrixError::not_found("there is no such room, or it is not for you");
    let room_id = directory::room_of(&rooms, room).await?;
    let room = reader.room_sn(&room_id).await?.ok_or_else(unknown)?;
    let row = reader.room(room).await?.ok_or_else(unknown)?;
    let summary = summaries.of(room).await?.ok_or_else(unknown)?;
    let membership = match &user {
        Some(user) => rooms.membership_row(&user.user_id, room).await?.map(|row| row.membership),
        None => None,
    };
    let is_member = matches!(membership, Some(Membership::Join | Membership::Invite | Membership::Knock));
    let is_open = summary.world_readable
        || matches!(summary.join_rule.as_str(), "public" | "knock" | "knock_restricted");
    if !is_member && !is_open && !is_allowed(&rooms, user.as_ref(), &summary).await? {
        return Err(unknown());
    }
    RawJson::of(&RoomSummary {
        room_version: row.version.to_string(),
        encryption: summary.encryption.as_deref(),
        allowed_room_ids: &summary.allowed_room_ids,
        membership: user.map(|_| membership.map_or("leave", Membership::as_str)),
        summary: &summary,
    })
}

/// Whether a user is in one of the rooms from which a restricted room may be joined.
async fn is_allowed(rooms: &Rooms, user: Option<&LocalUser>, summary: &Summary) -> Result<bool, MatrixError> {
    let Some(user) = user.filter(|_| summary.join_rule == "restricted") else { return Ok(false) };
    for room_id in &summary.allowed_room_ids {
        let Ok(room_id) = ruma::RoomId::parse(room_id.as_str()) else { continue };
        let Some(room) = rooms.room(&room_id).await? else { continue };
        if rooms.is_joined(&user.user_id, room.sn).await? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whose rooms may be listed.
pub fn may_publish(config: &Config, user: &LocalUser) -> bool {
    user.is_admin || config.directory.publishers == crate::config::Publishers::Everyone
}
