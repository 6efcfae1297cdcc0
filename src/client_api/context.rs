//! An event and what surrounds it.

use axum::extract::State;
use hearth_rooms::read::Reader;
use hearth_users::Users;
use ruma::{OwnedEventId, OwnedRoomId, api::client::context::get_context};
use serde::Deserialize;

use super::{
    messages::{filter, page_limit},
    reading::{self, EventWriter, push_field},
};
use crate::http::{JsonResult, LocalUser, PathArgs, Query, RawJson, Route, Routes, Specimen};

/// The chapter's endpoints.
pub fn routes(routes: &mut Routes) {
    routes.add(
        Route::of::<get_context::v3::Request>()
            .specimen(Specimen::path("$room $event").outsider(404, "M_NOT_FOUND"))
            .to(context),
    );
}

/// Events around the one asked for, if the client does not say.
const DEFAULT_LIMIT: u64 = 10;

#[derive(Deserialize)]
struct ContextQuery {
    limit: Option<u64>,
    filter: Option<String>,
}

/// `GET /_matrix/client/v3/rooms/{roomId}/context/{eventId}`
async fn context(
    State(reader): State<Reader>,
    State(users): State<Users>,
    user: LocalUser,
    PathArgs((room_id, event_id)): PathArgs<(OwnedRoomId, OwnedEventId)>,
    Query(query): Query<ContextQuery>,
) -> JsonResult {
    let filter = filter(query.filter.as_deref())?;
    let limit = page_limit(query.limit, &filter, DEFAULT_LIMIT);
    let viewer = reading::viewer(&reader, &users, &user, &room_id).await?;
    let mut viewer = viewer.ok_or_else(reading::no_such_event)?;
    let context = reader.context(&mut viewer, &event_id, limit, &filter).await?;
    let context = context.ok_or_else(reading::no_such_event)?;
    let writer = EventWriter::new(&user, &room_id);
    let shown = context.before.iter().chain([&context.event]).chain(&context.after);
    let bundles = writer.bundles(&reader, &viewer, shown).await?;
    let mut out = Vec::with_capacity(16 * 1024);
    out.extend_from_slice(b"{\"event\":");
    writer.shown(&context.event, &bundles, &mut out);
    out.extend_from_slice(b",\"events_before\":");
    writer.list(&context.before, &bundles, &mut out);
    out.extend_from_slice(b",\"events_after\":");
    writer.list(&context.after, &bundles, &mut out);
    out.extend_from_slice(b",\"state\":");
    writer.state(&context.state, &mut out);
    push_field(&mut out, "start", &context.start.to_string());
    push_field(&mut out, "end", &context.end.to_string());
    out.push(b'}');
    Ok(RawJson::from(out))
}
