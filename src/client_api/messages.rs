//! Reading a room's history: pages, single events, and the event nearest to a time.

use axum::extract::State;
use hearth_rooms::read::{Direction, EventFilter, PageRequest, Reader};
use hearth_users::Users;
use ruma::{
    OwnedEventId, OwnedRoomId,
    api::client::{
        message::get_message_events,
        room::{get_event_by_timestamp, get_room_event},
    },
};
use serde::Deserialize;

use super::reading::{self, EventWriter, push_field};
use crate::http::{
    JsonResult, LocalUser, MatrixError, PathArgs, Query, RateClass, RawJson, Route, Routes, Specimen,
};

/// The chapter's endpoints.
pub fn routes(routes: &mut Routes) {
    routes.add(
        Route::of::<get_message_events::v3::Request>()
            .specimen(Specimen::path("$room").query("dir=b").outsider(403, "M_FORBIDDEN"))
            .to(messages),
    );
    routes.add(
        Route::of::<get_room_event::v3::Request>()
            .specimen(Specimen::path("$room $event").outsider(404, "M_NOT_FOUND"))
            .to(event),
    );
    routes.add(
        Route::of::<get_event_by_timestamp::v1::Request>()
            .rate(RateClass::Other)
            .specimen(Specimen::path("$room").query("ts=1&dir=f").outsider(403, "M_FORBIDDEN"))
            .to(event_by_timestamp),
    );
}

/// Events of a page if the client does not say.
const DEFAULT_PAGE: u64 = 10;
/// Events of a page at most.
const MAX_PAGE: u64 = 1000;

/// `b` or `f`.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub enum Dir {
    /// Towards older events.
    #[default]
    #[serde(rename = "b")]
    Backward,
    /// Towards newer events.
    #[serde(rename = "f")]
    Forward,
}

impl From<Dir> for Direction {
    fn from(dir: Dir) -> Self {
        match dir {
            Dir::Backward => Self::Backward,
            Dir::Forward => Self::Forward,
        }
    }
}

/// The filter of `/messages` and `/context`, JSON in the query string.
pub fn filter(json: Option<&str>) -> Result<EventFilter, MatrixError> {
    match json.filter(|json| !json.is_empty()) {
        Some(json) => EventFilter::parse(json)
            .map_err(|error| MatrixError::invalid_param(format!("the filter cannot be read: {error}"))),
        None => Ok(EventFilter::default()),
    }
}

/// How many events a page has.
pub fn page_limit(asked: Option<u64>, filter: &EventFilter, default: u64) -> usize {
    let asked = asked.unwrap_or(default).min(MAX_PAGE);
    let asked = usize::try_from(asked).unwrap_or_default();
    filter.limit_or(asked).min(asked)
}

#[derive(Deserialize)]
struct MessagesQuery {
    from: Option<String>,
    to: Option<String>,
    dir: Dir,
    limit: Option<u64>,
    filter: Option<String>,
}

/// `GET /_matrix/client/v3/rooms/{roomId}/messages`
async fn messages(
    State(reader): State<Reader>,
    State(users): State<Users>,
    user: LocalUser,
    PathArgs((room_id,)): PathArgs<(OwnedRoomId,)>,
    Query(query): Query<MessagesQuery>,
) -> JsonResult {
    let filter = filter(query.filter.as_deref())?;
    let request = PageRequest {
        from: reading::optional_token(query.from.as_deref())?,
        to: reading::optional_token(query.to.as_deref())?,
        direction: query.dir.into(),
        limit: page_limit(query.limit, &filter, DEFAULT_PAGE).max(1),
        past_gap: true,
    };
    let mut viewer = reading::reading_viewer(&reader, &users, &user, &room_id).await?;
    let page = reader.page(&mut viewer, &request, &filter).await?;
    let writer = EventWriter::new(&user, &room_id);
    let bundles = writer.bundles(&reader, &viewer, &page.events).await?;
    let mut out = Vec::with_capacity(64 + 640 * page.events.len());
    out.extend_from_slice(b"{\"chunk\":");
    writer.list(&page.events, &bundles, &mut out);
    push_field(&mut out, "start", &page.start.to_string());
    if let Some(end) = page.end {
        push_field(&mut out, "end", &end.to_string());
    }
    if filter.lazy_load_members {
        out.extend_from_slice(b",\"state\":");
        writer.state(&page.state, &mut out);
    }
    out.push(b'}');
    Ok(RawJson::from(out))
}

/// `GET /_matrix/client/v3/rooms/{roomId}/event/{eventId}`
async fn event(
    State(reader): State<Reader>,
    State(users): State<Users>,
    user: LocalUser,
    PathArgs((room_id, event_id)): PathArgs<(OwnedRoomId, OwnedEventId)>,
) -> JsonResult {
    let viewer = reading::viewer(&reader, &users, &user, &room_id).await?;
    let mut viewer = viewer.ok_or_else(reading::no_such_event)?;
    let shown = reader.visible_event(&mut viewer, &event_id).await?.ok_or_else(reading::no_such_event)?;
    let writer = EventWriter::new(&user, &room_id);
    let bundles = writer.bundles(&reader, &viewer, [&shown]).await?;
    let mut out = Vec::with_capacity(1024);
    writer.shown(&shown, &bundles, &mut out);
    Ok(RawJson::from(out))
}

#[derive(Deserialize)]
struct TimestampQuery {
    ts: u64,
    dir: Dir,
}

/// `GET /_matrix/client/v1/rooms/{roomId}/timestamp_to_event`
async fn event_by_timestamp(
    State(reader): State<Reader>,
    State(users): State<Users>,
    user: LocalUser,
    PathArgs((room_id,)): PathArgs<(OwnedRoomId,)>,
    Query(query): Query<TimestampQuery>,
) -> JsonResult {
    let mut viewer = reading::reading_viewer(&reader, &users, &user, &room_id).await?;
    let found = reader.event_at(&mut viewer, query.ts, query.dir.into()).await?;
    let found =
        found.ok_or_else(|| MatrixError::not_found("there is no event in that direction of that time"))?;
    RawJson::of(&serde_json::json!({
        "event_id": found.client.event_id,
        "origin_server_ts": found.client.origin_server_ts,
    }))
}
