//! Reading a room's history: pages, single events, and the event nearest to a time.

use axum::extract::State;
use hearth_federation::RemoteRooms;
use hearth_rooms::{
    Rooms,
    read::{Direction, EventFilter, Page, PageRequest, Reader, TimelineToken, Viewer},
};
use hearth_users::Users;
use ruma::{
    OwnedEventId, OwnedRoomId, RoomId,
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
    /// Required, but servers never insisted.
    #[serde(default)]
    dir: Dir,
    limit: Option<u64>,
    filter: Option<String>,
}

/// `GET /_matrix/client/v3/rooms/{roomId}/messages`
async fn messages(
    State(remote): State<RemoteRooms>,
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
        past_gap: false,
    };
    let mut viewer = reading::reading_viewer(&reader, &users, &user, &room_id).await?;
    let page = whole_page(&remote, &reader, &mut viewer, (&user, &room_id), request, &filter).await?;
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

/// How often history is fetched for one page.
const FETCHES_MAX: usize = 3;

/// A page with what other servers have of it, as far as that can be had; past a gap that stays open it goes on.
async fn whole_page(
    remote: &RemoteRooms,
    reader: &Reader,
    viewer: &mut Viewer,
    (user, room_id): (&LocalUser, &RoomId),
    mut request: PageRequest,
    filter: &EventFilter,
) -> Result<Page, MatrixError> {
    // Where the first read begins, so do those after it: what comes meanwhile is not part of this page.
    request.from.get_or_insert_with(|| match request.direction {
        Direction::Backward => TimelineToken::at(reader.now()),
        Direction::Forward => TimelineToken::start(),
    });
    for _ in 0..FETCHES_MAX {
        let page = reader.page(viewer, &request, filter).await?;
        let Some(gap) = &page.gap else { return Ok(page) };
        if page.events.len() >= request.limit || request.direction == Direction::Forward {
            return Ok(page);
        }
        if !remote.fill_in(room_id, &user.user_id, gap).await? {
            break;
        }
    }
    let page = reader.page(viewer, &request, filter).await?;
    if page.gap.is_none() || !page.events.is_empty() {
        return Ok(page);
    }
    // Nothing is here of what comes next, and nobody gives it.
    request.past_gap = true;
    Ok(reader.page(viewer, &request, filter).await?)
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
    State(remote): State<RemoteRooms>,
    State(rooms): State<Rooms>,
    State(reader): State<Reader>,
    State(users): State<Users>,
    user: LocalUser,
    PathArgs((room_id,)): PathArgs<(OwnedRoomId,)>,
    Query(query): Query<TimestampQuery>,
) -> JsonResult {
    let mut viewer = reading::reading_viewer(&reader, &users, &user, &room_id).await?;
    let direction = Direction::from(query.dir);
    let found = reader.event_at(&mut viewer, query.ts, direction).await?;
    let mut nearest = found.map(|event| (event.client.event_id.to_string(), event.client.origin_server_ts));
    // Where history is missing here, another server may know a nearer one.
    if rooms.last_gap(&room_id, TimelineToken::at(reader.now()).0).await?.is_some() {
        let forwards = direction == Direction::Forward;
        let theirs = remote.event_near(&room_id, &user.user_id, query.ts, forwards).await?;
        let theirs = theirs.map(|event| (event.event_id.to_string(), event.origin_server_ts));
        let distance = |at: &(String, u64)| at.1.abs_diff(query.ts);
        nearest = nearest.into_iter().chain(theirs).min_by_key(distance);
    }
    let (event_id, origin_server_ts) =
        nearest.ok_or_else(|| MatrixError::not_found("there is no event in that direction of that time"))?;
    RawJson::of(&serde_json::json!({ "event_id": event_id, "origin_server_ts": origin_server_ts }))
}
