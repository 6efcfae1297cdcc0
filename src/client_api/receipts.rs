//! Receipts and read markers: how far a user has read.

use std::sync::Arc;

use axum::extract::State;
use hearth_rooms::{
    RelType, RoomSn,
    read::{Reader, RoomEvent},
};
use hearth_users::{FULLY_READ, NewReceipt, ReceiptKind, ReceiptOrder, Users};
use ruma::{
    EventId, OwnedEventId, OwnedRoomId, RoomId, UserId,
    api::client::{read_marker::set_read_marker, receipt::create_receipt},
    events::receipt::ReceiptThread,
};
use serde::Deserialize;

use super::sharing::joined_room;
use crate::{
    clock::now_ms,
    http::{JsonBody, JsonResult, LocalUser, MatrixError, PathArgs, RawJson, Route, Routes, Specimen},
};

/// The chapter's endpoints.
pub fn routes(routes: &mut Routes) {
    routes.add(
        Route::of::<create_receipt::v3::Request>()
            .specimen(
                Specimen::path("$room m.read $event")
                    .body("{}", r#"{"thread_id":1}"#)
                    .outsider(403, "M_FORBIDDEN"),
            )
            .to(set_receipt),
    );
    routes.add(
        Route::of::<set_read_marker::v3::Request>()
            .specimen(
                Specimen::path("$room")
                    .body(r#"{"m.fully_read":"$event","m.read":"$event"}"#, r#"{"m.read":1}"#)
                    .outsider(403, "M_FORBIDDEN"),
            )
            .to(set_markers),
    );
}

#[derive(Deserialize)]
struct ReceiptBody {
    thread_id: Option<String>,
}

/// `POST /_matrix/client/v3/rooms/{roomId}/receipt/{receiptType}/{eventId}`
async fn set_receipt(
    State(users): State<Users>,
    State(reader): State<Reader>,
    user: LocalUser,
    PathArgs((room_id, kind, event_id)): PathArgs<(OwnedRoomId, String, OwnedEventId)>,
    JsonBody(body): JsonBody<ReceiptBody>,
) -> JsonResult {
    let thread = match body.thread_id.as_deref() {
        None => ReceiptThread::Unthreaded,
        Some(thread) => ReceiptThread::try_from(Some(thread))
            .ok()
            .filter(|thread| matches!(thread, ReceiptThread::Main | ReceiptThread::Thread(_)))
            .ok_or_else(|| MatrixError::invalid_param("thread_id must be main or an event id"))?,
    };
    let room = joined_room(&reader, &user.user_id, &room_id).await?;
    let kind = match &*kind {
        "m.read" => ReceiptKind::Read,
        "m.read.private" => ReceiptKind::ReadPrivate,
        FULLY_READ if thread == ReceiptThread::Unthreaded => {
            return mark(&users, &reader, &user.user_id, (&room_id, room), &[], Some(&event_id)).await;
        }
        FULLY_READ => return Err(MatrixError::invalid_param("a read marker has no thread")),
        _ => return Err(MatrixError::invalid_param("unknown receipt type")),
    };
    let event = event_of(&reader, room, &event_id).await?;
    if !is_in_thread(&reader, room, &event, &event_id, &thread).await? {
        return Err(MatrixError::invalid_param("the event is not in this thread"));
    }
    let receipt = receipt(kind, event_id, thread, &event);
    mark(&users, &reader, &user.user_id, (&room_id, room), &[receipt], None).await
}

#[derive(Deserialize)]
struct Markers {
    #[serde(rename = "m.fully_read")]
    fully_read: Option<OwnedEventId>,
    #[serde(rename = "m.read")]
    read: Option<OwnedEventId>,
    #[serde(rename = "m.read.private")]
    read_private: Option<OwnedEventId>,
}

/// `POST /_matrix/client/v3/rooms/{roomId}/read_markers`
async fn set_markers(
    State(users): State<Users>,
    State(reader): State<Reader>,
    user: LocalUser,
    PathArgs((room_id,)): PathArgs<(OwnedRoomId,)>,
    JsonBody(markers): JsonBody<Markers>,
) -> JsonResult {
    let room = joined_room(&reader, &user.user_id, &room_id).await?;
    let wanted = [(ReceiptKind::Read, markers.read), (ReceiptKind::ReadPrivate, markers.read_private)];
    let mut receipts = Vec::new();
    for (kind, event_id) in wanted {
        let Some(event_id) = event_id else { continue };
        let event = event_of(&reader, room, &event_id).await?;
        receipts.push(receipt(kind, event_id, ReceiptThread::Unthreaded, &event));
    }
    let fully_read = markers.fully_read.as_deref();
    mark(&users, &reader, &user.user_id, (&room_id, room), &receipts, fully_read).await
}

async fn mark(
    users: &Users,
    reader: &Reader,
    user: &UserId,
    (room_id, room): (&RoomId, RoomSn),
    receipts: &[NewReceipt],
    fully_read: Option<&EventId>,
) -> JsonResult {
    let fully_read = match fully_read {
        Some(event) if is_ahead(users, reader, user, (room_id, room), event).await? => Some(event),
        _ => None,
    };
    users.set_receipts(room_id, user, receipts, fully_read).await?;
    users.presence().active(user);
    Ok(RawJson::EMPTY)
}

/// Whether a read marker would move forward.
async fn is_ahead(
    users: &Users,
    reader: &Reader,
    user: &UserId,
    (room_id, room): (&RoomId, RoomSn),
    event_id: &EventId,
) -> Result<bool, MatrixError> {
    #[derive(Deserialize)]
    struct FullyRead {
        event_id: OwnedEventId,
    }
    let new = order(&*event_of(reader, room, event_id).await?);
    let Some(content) = users.account_data(user, Some(room_id), FULLY_READ).await? else { return Ok(true) };
    let Ok(FullyRead { event_id }) = serde_json::from_str(content.get()) else { return Ok(true) };
    let Some(number) = reader.event_sn(room, &event_id).await? else { return Ok(true) };
    Ok(reader.event(room, number).await?.is_none_or(|event| new > order(&event)))
}

async fn event_of(reader: &Reader, room: RoomSn, event_id: &EventId) -> Result<Arc<RoomEvent>, MatrixError> {
    let event = match reader.event_sn(room, event_id).await? {
        Some(number) => reader.event(room, number).await?,
        None => None,
    };
    event.ok_or_else(|| MatrixError::not_found("there is no such event in this room"))
}

/// Whether the event itself says that it belongs elsewhere. One that relates to another (an edit, a reaction) belongs
/// where the other does, which the client knows better.
async fn is_in_thread(
    reader: &Reader,
    room: RoomSn,
    event: &RoomEvent,
    event_id: &EventId,
    thread: &ReceiptThread,
) -> Result<bool, MatrixError> {
    let root = match &event.relates_to {
        Some((RelType::Thread, root)) => Some(*root),
        Some(_) => return Ok(true),
        None => None,
    };
    Ok(match thread {
        ReceiptThread::Main => root.is_none(),
        ReceiptThread::Thread(wanted) if *wanted == event_id => true,
        ReceiptThread::Thread(wanted) => root.is_some() && root == reader.event_sn(room, wanted).await?,
        _ => true,
    })
}

fn receipt(
    kind: ReceiptKind,
    event_id: OwnedEventId,
    thread: ReceiptThread,
    event: &RoomEvent,
) -> NewReceipt {
    NewReceipt { kind, event_id, thread, ts: now_ms(), order: Some(order(event)) }
}

/// Where an event stands in its room.
fn order(event: &RoomEvent) -> ReceiptOrder {
    match event.order {
        Some(order) => (order.anchor.get(), u64::from(order.sub)),
        None => (event.position.get(), u64::from(u32::MAX)),
    }
}
