//! Events that relate to another: replies, edits, reactions, threads.

use axum::extract::State;
use hearth_rooms::read::{Reader, RelationsRequest};
use hearth_users::Users;
use ruma::{
    OwnedEventId, OwnedRoomId,
    api::client::relations::{
        get_relating_events, get_relating_events_with_rel_type,
        get_relating_events_with_rel_type_and_event_type,
    },
};
use serde::Deserialize;

use super::{
    messages::{Dir, page_limit},
    reading::{self, EventWriter, push_field},
};
use crate::http::{JsonResult, LocalUser, PathArgs, Query, RawJson, Route, Routes, Specimen};

/// The chapter's endpoints.
pub fn routes(routes: &mut Routes) {
    let specimen = |path| Specimen::path(path).outsider(404, "M_NOT_FOUND");
    routes.add(Route::of::<get_relating_events::v1::Request>().specimen(specimen("$room $event")).to(all));
    routes.add(
        Route::of::<get_relating_events_with_rel_type::v1::Request>()
            .specimen(specimen("$room $event m.annotation"))
            .to(of_rel_type),
    );
    routes.add(
        Route::of::<get_relating_events_with_rel_type_and_event_type::v1::Request>()
            .specimen(specimen("$room $event m.annotation m.reaction"))
            .to(of_rel_type_and_event_type),
    );
}

/// Relations of a page if the client does not say.
const DEFAULT_LIMIT: u64 = 50;

#[derive(Deserialize)]
struct RelationsQuery {
    from: Option<String>,
    to: Option<String>,
    #[serde(default)]
    dir: Dir,
    limit: Option<u64>,
    #[serde(default, alias = "org.matrix.msc3981.recurse")]
    recurse: bool,
}

/// `GET /_matrix/client/v1/rooms/{roomId}/relations/{eventId}`
async fn all(
    reader: State<Reader>,
    users: State<Users>,
    user: LocalUser,
    PathArgs((room_id, event_id)): PathArgs<(OwnedRoomId, OwnedEventId)>,
    Query(query): Query<RelationsQuery>,
) -> JsonResult {
    page(reader, users, user, room_id, event_id, query, None, None).await
}

/// `GET /_matrix/client/v1/rooms/{roomId}/relations/{eventId}/{relType}`
async fn of_rel_type(
    reader: State<Reader>,
    users: State<Users>,
    user: LocalUser,
    PathArgs((room_id, event_id, rel_type)): PathArgs<(OwnedRoomId, OwnedEventId, String)>,
    Query(query): Query<RelationsQuery>,
) -> JsonResult {
    page(reader, users, user, room_id, event_id, query, Some(rel_type), None).await
}

/// `GET /_matrix/client/v1/rooms/{roomId}/relations/{eventId}/{relType}/{eventType}`
async fn of_rel_type_and_event_type(
    reader: State<Reader>,
    users: State<Users>,
    user: LocalUser,
    PathArgs((room_id, event_id, rel_type, kind)): PathArgs<(OwnedRoomId, OwnedEventId, String, String)>,
    Query(query): Query<RelationsQuery>,
) -> JsonResult {
    page(reader, users, user, room_id, event_id, query, Some(rel_type), Some(kind)).await
}

#[allow(clippy::too_many_arguments, reason = "the sum of three requests' parts")]
async fn page(
    State(reader): State<Reader>,
    State(users): State<Users>,
    user: LocalUser,
    room_id: OwnedRoomId,
    event_id: OwnedEventId,
    query: RelationsQuery,
    rel_type: Option<String>,
    kind: Option<String>,
) -> JsonResult {
    let request = RelationsRequest {
        rel_type,
        kind,
        from: reading::optional_token(query.from.as_deref())?,
        to: reading::optional_token(query.to.as_deref())?,
        direction: query.dir.into(),
        limit: page_limit(query.limit, &Default::default(), DEFAULT_LIMIT).max(1),
        recurse: query.recurse,
    };
    let viewer = reading::viewer(&reader, &users, &user, &room_id).await?;
    let mut viewer = viewer.ok_or_else(reading::no_such_event)?;
    let page = reader.relations(&mut viewer, &event_id, &request).await?;
    let page = page.ok_or_else(reading::no_such_event)?;
    let writer = EventWriter::new(&user, &room_id);
    let bundles = writer.bundles(&reader, &viewer, &page.events).await?;
    let mut out = Vec::with_capacity(64 + 640 * page.events.len());
    out.extend_from_slice(b"{\"chunk\":");
    writer.list(&page.events, &bundles, &mut out);
    if let Some(next) = page.next {
        push_field(&mut out, "next_batch", &next.to_string());
    }
    if let Some(prev) = page.prev {
        push_field(&mut out, "prev_batch", &prev.to_string());
    }
    if let Some(depth) = page.depth {
        out.extend_from_slice(format!(",\"recursion_depth\":{depth}").as_bytes());
    }
    out.push(b'}');
    Ok(RawJson::from(out))
}
