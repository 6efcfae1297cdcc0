//! How clients followed rooms before `/sync`: snapshots by `initialSync`, then `/events`.
//! They are answered from what `/sync` and the readers of rooms say; nobody should build on them, some still do.

use std::time::Duration;

use axum::extract::State;
use hearth_rooms::{
    EventKey,
    read::{Direction, EventFilter, PageRequest, Reader, SyncToken},
    tables::EVENT_NUMBERS,
};
use hearth_store::{Order, Store, StreamPosition};
use hearth_users::Users;
use http::Method;
use ruma::{
    OwnedEventId, OwnedRoomId, RoomId,
    api::client::peeking::{get_current_state, listen_to_new_events},
    presence::PresenceState,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::reading::{self, EventWriter, not_in_room, push_field};
use crate::{
    http::{
        Auth, JsonResult, LocalUser, MatrixError, PathArgs, Query, RawJson, Route, Routes, Shutdown, Specimen,
    },
    sync::{ClientSync, StateWanted, SyncRequest},
};

/// The chapter's endpoints.
pub fn routes(routes: &mut Routes) {
    const NOTHING: Specimen = Specimen::path("");
    let at = |path| Route::at(Method::GET, path, Auth::Token);
    routes.add(at("/_matrix/client/v3/initialSync").specimen(NOTHING).to(initial_sync));
    routes.add(Route::of::<listen_to_new_events::v3::Request>().specimen(NOTHING).to(events));
    routes.add(
        at("/_matrix/client/v3/events/{event_id}")
            .specimen(Specimen::path("$event").outsider(404, "M_NOT_FOUND"))
            .to(single_event),
    );
    routes.add(
        Route::of::<get_current_state::v3::Request>()
            .specimen(Specimen::path("$room").outsider(403, "M_FORBIDDEN"))
            .to(room_initial_sync),
    );
}

/// Events of each room if the client does not say, and at most.
const DEFAULT_LIMIT: u64 = 10;
const MAX_LIMIT: u64 = 100;
/// An `/events` that waits for longer is answered empty-handed.
const MAX_WAIT: Duration = Duration::from_secs(120);

#[derive(Deserialize)]
struct Snapshot {
    limit: Option<u64>,
    #[serde(default)]
    archived: bool,
}

impl Snapshot {
    fn limit(&self) -> u64 {
        self.limit.unwrap_or(DEFAULT_LIMIT).clamp(1, MAX_LIMIT)
    }
}

/// `GET /_matrix/client/v3/initialSync`
async fn initial_sync(
    State(sync): State<ClientSync>,
    user: LocalUser,
    Query(query): Query<Snapshot>,
) -> JsonResult {
    let filter = json!({
        "room": { "timeline": { "limit": query.limit() }, "include_leave": query.archived }
    });
    let answer = look(&sync, user, &filter, None, Duration::ZERO).await?;
    let mut rooms = Vec::new();
    for (membership, section) in [("join", "join"), ("invite", "invite"), ("leave", "leave")] {
        let section = answer["rooms"][section].as_object().cloned().unwrap_or_default();
        rooms.extend(
            section.into_iter().map(|(room_id, room)| old_room(membership, &room_id, &room, &answer)),
        );
    }
    let receipts: Vec<Value> = rooms.iter_mut().flat_map(taken_receipts).collect();
    RawJson::of(&json!({
        "end": answer["next_batch"],
        "rooms": rooms,
        "presence": list(&answer["presence"]),
        "account_data": list(&answer["account_data"]),
        "receipts": receipts,
    }))
}

/// A room of `/sync` in the shape of old.
fn old_room(membership: &str, room_id: &str, room: &Value, answer: &Value) -> Value {
    let with_room = |mut event: Value| {
        event["room_id"] = room_id.into();
        event
    };
    let events = |section: &str| list(&room[section]).into_iter().map(with_room).collect::<Vec<_>>();
    let mut old = json!({ "room_id": room_id, "membership": membership });
    if membership == "invite" {
        let state = events("invite_state");
        let invite = state.iter().rfind(|event| event["type"] == "m.room.member").cloned();
        old["invite"] = invite.unwrap_or_default();
        old["state"] = state.into();
        return old;
    }
    old["messages"] = json!({
        "chunk": events("timeline"),
        "start": room["timeline"]["prev_batch"],
        "end": answer["next_batch"],
    });
    old["state"] = events("state").into();
    old["account_data"] = list(&room["account_data"]).into();
    old["ephemeral"] = events("ephemeral").into();
    old
}

/// Receipts stood beside the rooms.
fn taken_receipts(room: &mut Value) -> Vec<Value> {
    let ephemeral = room.as_object_mut().and_then(|room: &mut Map<_, _>| room.remove("ephemeral"));
    let Some(Value::Array(events)) = ephemeral else { return Vec::new() };
    events.into_iter().filter(|event| event["type"] == "m.receipt").collect()
}

fn list(section: &Value) -> Vec<Value> {
    section["events"].as_array().cloned().unwrap_or_default()
}

async fn look(
    sync: &ClientSync,
    user: LocalUser,
    filter: &Value,
    since: Option<&str>,
    timeout: Duration,
) -> Result<Value, MatrixError> {
    let since = since.filter(|since| !since.is_empty()).map(str::parse).transpose();
    let request = SyncRequest {
        filter: sync.parse_filter(&filter.to_string())?,
        user: user.user_id,
        device: user.device_id,
        since: since.map_err(|_| MatrixError::invalid_param("not a token of this server"))?,
        full_state: false,
        set_presence: PresenceState::Online,
        timeout,
        state: StateWanted::Before,
        // These endpoints have no place for them.
        to_device: false,
    };
    let answer = sync.sync(&request).await?;
    serde_json::from_slice(&answer).map_err(MatrixError::internal)
}

#[derive(Deserialize)]
struct EventsQuery {
    from: Option<String>,
    timeout: Option<u64>,
    room_id: Option<OwnedRoomId>,
}

/// `GET /_matrix/client/v3/events`: of all rooms of the user, or of one that may be read without being in it.
async fn events(
    State(sync): State<ClientSync>,
    State(reader): State<Reader>,
    State(users): State<Users>,
    State(store): State<Store>,
    State(shutdown): State<Shutdown>,
    user: LocalUser,
    Query(query): Query<EventsQuery>,
) -> JsonResult {
    let timeout = Duration::from_millis(query.timeout.unwrap_or(0)).min(MAX_WAIT);
    if let Some(room_id) = &query.room_id {
        let from = query.from.as_deref();
        return events_of_room(&reader, &users, &store, &shutdown, &user, room_id, from, timeout).await;
    }
    let start = match query.from.filter(|from| !from.is_empty()) {
        Some(from) => from,
        None => SyncToken { to_device: StreamPosition::ZERO, ..sync.now().await }.to_string(),
    };
    let filter = json!({ "room": { "timeline": { "limit": MAX_LIMIT } } });
    let look = |timeout| look(&sync, user.clone(), &filter, Some(&start), timeout);
    let answer = tokio::select! {
        biased;
        answer = look(timeout) => answer?,
        end = users.session_end(&user.session) => return Err(end.into()),
        () = shutdown.begun() => look(Duration::ZERO).await?,
    };
    let mut chunk = list(&answer["presence"]);
    for section in ["join", "invite", "leave"] {
        let rooms = answer["rooms"][section].as_object().cloned().unwrap_or_default();
        for (room_id, room) in rooms {
            let parts = ["timeline", "invite_state", "ephemeral"].map(|part| list(&room[part]));
            chunk.extend(parts.into_iter().flatten().map(|mut event| {
                event["room_id"] = room_id.as_str().into();
                event
            }));
        }
    }
    RawJson::of(&json!({ "start": start, "end": answer["next_batch"], "chunk": chunk }))
}

#[allow(clippy::too_many_arguments, reason = "the handler's parts, for one of its two forms")]
async fn events_of_room(
    reader: &Reader,
    users: &Users,
    store: &Store,
    shutdown: &Shutdown,
    user: &LocalUser,
    room_id: &RoomId,
    from: Option<&str>,
    timeout: Duration,
) -> JsonResult {
    let deadline = Instant::now() + timeout;
    let from = reading::optional_token(from)?;
    let from = from.unwrap_or_else(|| hearth_rooms::read::TimelineToken::at(reader.now()));
    let request = PageRequest {
        from: Some(from),
        to: None,
        direction: Direction::Forward,
        limit: usize::try_from(MAX_LIMIT).unwrap_or_default(),
        past_gap: true,
    };
    loop {
        let mut watch = store.watch();
        let mut viewer = reading::reading_viewer(reader, users, user, room_id).await?;
        let page = reader.page(&mut viewer, &request, &EventFilter::default()).await?;
        if !page.events.is_empty() || Instant::now() >= deadline || shutdown.has_begun() {
            let writer = EventWriter::new(user, room_id);
            let bundles = writer.bundles(reader, &viewer, &page.events).await?;
            let mut out = Vec::with_capacity(64 + 640 * page.events.len());
            out.extend_from_slice(b"{\"chunk\":");
            writer.list(&page.events, &bundles, &mut out);
            push_field(&mut out, "start", &page.start.to_string());
            push_field(&mut out, "end", &page.end.unwrap_or(page.start).to_string());
            out.push(b'}');
            return Ok(RawJson::from(out));
        }
        // Whatever is written anywhere wakes this: it is asked for too seldom to deserve better.
        tokio::select! {
            end = users.session_end(&user.session) => return Err(end.into()),
            _ = watch.next() => {}
            () = tokio::time::sleep_until(deadline) => {}
            () = shutdown.begun() => {}
        }
    }
}

/// `GET /_matrix/client/v3/events/{eventId}`
async fn single_event(
    State(reader): State<Reader>,
    State(users): State<Users>,
    State(store): State<Store>,
    user: LocalUser,
    PathArgs((event_id,)): PathArgs<(OwnedEventId,)>,
) -> JsonResult {
    // In the oldest versions servers chose ids: several rooms may hold an event of one id.
    const ROOMS_MAX: usize = 16;
    let range = EVENT_NUMBERS.prefix(&(EventKey::new(&event_id),));
    for ((_, room), _) in store.range(&EVENT_NUMBERS, range, Order::Forward, ROOMS_MAX).await? {
        let Some(row) = reader.room(room).await? else { continue };
        let Some(mut viewer) = reading::viewer(&reader, &users, &user, &row.room_id).await? else { continue };
        if let Some(shown) = reader.visible_event(&mut viewer, &event_id).await? {
            let writer = EventWriter::new(&user, &row.room_id);
            let bundles = writer.bundles(&reader, &viewer, [&shown]).await?;
            let mut out = Vec::with_capacity(1024);
            writer.shown(&shown, &bundles, &mut out);
            return Ok(RawJson::from(out));
        }
    }
    Err(reading::no_such_event())
}

/// `GET /_matrix/client/v3/rooms/{roomId}/initialSync`
async fn room_initial_sync(
    State(reader): State<Reader>,
    State(users): State<Users>,
    user: LocalUser,
    PathArgs((room_id,)): PathArgs<(OwnedRoomId,)>,
    Query(query): Query<Snapshot>,
) -> JsonResult {
    let mut viewer = reading::viewer(&reader, &users, &user, &room_id).await?.ok_or_else(not_in_room)?;
    let snapshot = reader.visible_snapshot(&viewer).await?.ok_or_else(not_in_room)?;
    let request = PageRequest {
        from: None,
        to: None,
        direction: Direction::Backward,
        limit: usize::try_from(query.limit()).unwrap_or_default(),
        past_gap: true,
    };
    let page = reader.page(&mut viewer, &request, &EventFilter::default()).await?;
    let state = reader.full_state(viewer.room, snapshot).await?;
    let writer = EventWriter::new(&user, &room_id);
    let bundles = writer.bundles(&reader, &viewer, &page.events).await?;
    let mut out = Vec::with_capacity(16 * 1024);
    out.extend_from_slice(b"{\"messages\":{\"chunk\":");
    // The oldest first, unlike in a page that goes back.
    writer.list(page.events.iter().rev(), &bundles, &mut out);
    push_field(&mut out, "start", &page.end.unwrap_or(page.start).to_string());
    push_field(&mut out, "end", &page.start.to_string());
    out.extend_from_slice(b"},\"state\":");
    writer.state(&state, &mut out);
    push_field(&mut out, "room_id", room_id.as_str());
    if let Some(membership) = viewer.membership {
        push_field(&mut out, "membership", membership.as_str());
    }
    out.push(b'}');
    Ok(RawJson::from(out))
}
