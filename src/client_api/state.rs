//! The state of rooms: reading it as of now or as the asker left, and changing it.

use axum::extract::State;
use hearth_federation::{Policy, RemoteRooms};
use hearth_rooms::{
    Send,
    read::{MemberFilter, Reader, push_str},
};
use hearth_users::Users;
use http::Method;
use ruma::{
    OwnedRoomId,
    api::client::{
        membership::{get_member_events, joined_members},
        state::get_state_events,
    },
    events::TimelineEventType,
};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    reading::{self, EventWriter, not_in_room},
    rooms::{content, sent},
    writing::send_event,
};
use crate::http::{
    Auth, BodyLimit, JsonBody, JsonResult, LocalUser, MatrixError, PathArgs, Query, RateClass, RawJson,
    Route, Routes, Specimen,
};

/// The chapter's endpoints.
pub fn routes(routes: &mut Routes) {
    const OUTSIDER: (u16, &str) = (403, "M_FORBIDDEN");
    let read = |path| Specimen::path(path).outsider(OUTSIDER.0, OUTSIDER.1);
    routes.add(Route::of::<get_state_events::v3::Request>().specimen(read("$room")).to(whole));
    routes.add(Route::of::<get_member_events::v3::Request>().specimen(read("$room")).to(members));
    routes.add(Route::of::<joined_members::v3::Request>().specimen(read("$room")).to(joined));
    let write = |path| read(path).body(r#"{"name":"a room"}"#, r#"["a room"]"#).powerless(403, "M_FORBIDDEN");
    // A state key may be empty: then clients leave it out, with or without the slash. ruma's paths always have it.
    let empty_key = "/_matrix/client/v3/rooms/{room_id}/state/{event_type}";
    let without_key = |method| Route::at(method, empty_key, Auth::Token).also_at(&format!("{empty_key}/"));
    let with_key = |method| Route::at(method, &format!("{empty_key}/{{state_key}}"), Auth::Token);
    routes.add(with_key(Method::GET).specimen(read("$room m.room.member $me")).to(one));
    routes.add(without_key(Method::GET).specimen(read("$room m.room.create")).to(one_with_empty_key));
    let changes =
        |route: Route| route.rate(RateClass::Message).body_limit(BodyLimit::Event).not_when_suspended();
    routes.add(changes(with_key(Method::PUT)).specimen(write("$room m.room.name x")).to(set));
    routes.add(changes(without_key(Method::PUT)).specimen(write("$room m.room.name")).to(set_with_empty_key));
}

/// `GET /_matrix/client/v3/rooms/{roomId}/state`
async fn whole(
    State(remote): State<RemoteRooms>,
    State(reader): State<Reader>,
    State(users): State<Users>,
    user: LocalUser,
    PathArgs((room_id,)): PathArgs<(OwnedRoomId,)>,
) -> JsonResult {
    let viewer = reading::viewer(&reader, &users, &user, &room_id).await?.ok_or_else(not_in_room)?;
    remote.all_members(&room_id).await?;
    let snapshot = reader.visible_snapshot(&viewer).await?.ok_or_else(not_in_room)?;
    let state = reader.full_state(viewer.room, snapshot).await?;
    let mut out = Vec::with_capacity(64 + 512 * state.len());
    EventWriter::new(&user, &room_id).state(&state, &mut out);
    Ok(RawJson::from(out))
}

#[derive(Deserialize, Default, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Format {
    #[default]
    Content,
    Event,
}

#[derive(Deserialize)]
struct StateQuery {
    #[serde(default)]
    format: Format,
}

/// `GET /_matrix/client/v3/rooms/{roomId}/state/{eventType}/{stateKey}`
async fn one(
    reader: State<Reader>,
    users: State<Users>,
    user: LocalUser,
    PathArgs((room_id, kind, state_key)): PathArgs<(OwnedRoomId, String, String)>,
    Query(query): Query<StateQuery>,
) -> JsonResult {
    state_event(reader, users, user, room_id, &kind, &state_key, query.format).await
}

/// The same with an empty state key.
async fn one_with_empty_key(
    reader: State<Reader>,
    users: State<Users>,
    user: LocalUser,
    PathArgs((room_id, kind)): PathArgs<(OwnedRoomId, String)>,
    Query(query): Query<StateQuery>,
) -> JsonResult {
    state_event(reader, users, user, room_id, &kind, "", query.format).await
}

async fn state_event(
    State(reader): State<Reader>,
    State(users): State<Users>,
    user: LocalUser,
    room_id: OwnedRoomId,
    kind: &str,
    state_key: &str,
    format: Format,
) -> JsonResult {
    let viewer = reading::viewer(&reader, &users, &user, &room_id).await?.ok_or_else(not_in_room)?;
    let snapshot = reader.visible_snapshot(&viewer).await?.ok_or_else(not_in_room)?;
    let event = reader.state_event(viewer.room, snapshot, kind, state_key).await?;
    let event = event.ok_or_else(|| MatrixError::not_found("the room has no such state"))?;
    match format {
        Format::Content => Ok(RawJson::from(event.client.content().to_owned())),
        Format::Event => {
            let mut out = Vec::with_capacity(1024);
            EventWriter::new(&user, &room_id).event(&event, &mut out);
            Ok(RawJson::from(out))
        }
    }
}

/// `PUT /_matrix/client/v3/rooms/{roomId}/state/{eventType}/{stateKey}`
async fn set(
    policy: State<Policy>,
    user: LocalUser,
    PathArgs((room, kind, state_key)): PathArgs<(OwnedRoomId, String, String)>,
    JsonBody(json): JsonBody<Box<RawValue>>,
) -> JsonResult {
    set_state(policy, user, room, kind, state_key, json).await
}

/// The same with an empty state key.
async fn set_with_empty_key(
    policy: State<Policy>,
    user: LocalUser,
    PathArgs((room, kind)): PathArgs<(OwnedRoomId, String)>,
    JsonBody(json): JsonBody<Box<RawValue>>,
) -> JsonResult {
    set_state(policy, user, room, kind, String::new(), json).await
}

async fn set_state(
    State(policy): State<Policy>,
    user: LocalUser,
    room: OwnedRoomId,
    kind: String,
    state_key: String,
    json: Box<RawValue>,
) -> JsonResult {
    let send = Send {
        room,
        sender: user.user_id,
        kind: TimelineEventType::from(kind),
        state_key: Some(state_key),
        content: content(json)?,
        redacts: None,
        txn: None,
        timestamp_ms: None,
    };
    let done = send_event(&policy, &send).await?;
    Ok(sent(&done.event_id))
}

#[derive(Deserialize)]
struct MembersQuery {
    at: Option<String>,
    membership: Option<String>,
    not_membership: Option<String>,
}

/// `GET /_matrix/client/v3/rooms/{roomId}/members`
async fn members(
    State(remote): State<RemoteRooms>,
    State(reader): State<Reader>,
    State(users): State<Users>,
    user: LocalUser,
    PathArgs((room_id,)): PathArgs<(OwnedRoomId,)>,
    Query(query): Query<MembersQuery>,
) -> JsonResult {
    let at = reading::optional_token(query.at.as_deref())?;
    let filter = MemberFilter { membership: query.membership, not_membership: query.not_membership };
    let viewer = reading::viewer(&reader, &users, &user, &room_id).await?.ok_or_else(not_in_room)?;
    remote.all_members(&room_id).await?;
    let members = reader.visible_members(&viewer, at, &filter).await?.ok_or_else(not_in_room)?;
    let mut out = Vec::with_capacity(64 + 512 * members.len());
    out.extend_from_slice(b"{\"chunk\":");
    EventWriter::new(&user, &room_id).state(&members, &mut out);
    out.push(b'}');
    Ok(RawJson::from(out))
}

#[derive(Deserialize)]
struct MemberProfile<'a> {
    #[serde(borrow)]
    displayname: Option<&'a RawValue>,
    #[serde(borrow)]
    avatar_url: Option<&'a RawValue>,
}

/// `GET /_matrix/client/v3/rooms/{roomId}/joined_members`
async fn joined(
    State(remote): State<RemoteRooms>,
    State(reader): State<Reader>,
    State(users): State<Users>,
    user: LocalUser,
    PathArgs((room_id,)): PathArgs<(OwnedRoomId,)>,
) -> JsonResult {
    let viewer = reading::viewer(&reader, &users, &user, &room_id).await?.ok_or_else(not_in_room)?;
    if !viewer.is_joined() {
        return Err(not_in_room());
    }
    remote.all_members(&room_id).await?;
    let filter = MemberFilter { membership: Some("join".to_owned()), not_membership: None };
    let members = reader.visible_members(&viewer, None, &filter).await?.ok_or_else(not_in_room)?;
    let mut out = Vec::with_capacity(64 + 128 * members.len());
    out.extend_from_slice(b"{\"joined\":{");
    for (place, member) in members.iter().enumerate() {
        if place > 0 {
            out.push(b',');
        }
        push_str(&mut out, member.client.state_key.as_deref().unwrap_or_default());
        out.push(b':');
        push_profile(&mut out, member.client.content_as());
    }
    out.extend_from_slice(b"}}");
    Ok(RawJson::from(out))
}

/// Both fields are always there: who has no name or no picture has `null`, as clients of old expect.
fn push_profile(out: &mut Vec<u8>, profile: Option<MemberProfile<'_>>) {
    let (name, picture) = profile.map_or((None, None), |profile| (profile.displayname, profile.avatar_url));
    let (name, picture) = (text_or_null(name), text_or_null(picture));
    out.extend_from_slice(format!("{{\"display_name\":{name},\"avatar_url\":{picture}}}").as_bytes());
}

fn text_or_null(value: Option<&RawValue>) -> &str {
    value.map(RawValue::get).filter(|value| value.starts_with('"')).unwrap_or("null")
}
