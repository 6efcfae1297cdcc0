//! Sending into rooms: messages and redactions.

use axum::extract::State;
use hearth_federation::Policy;
use hearth_rooms::{Send, Txn, read::push_str};
use hearth_users::Users;
use ruma::{
    OwnedEventId, OwnedRoomId,
    api::client::{message::send_message_event, redact::redact_event},
    events::TimelineEventType,
};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::writing::send_event;
use crate::http::{
    BodyLimit, JsonBody, JsonResult, LocalUser, MatrixError, PathArgs, RateClass, RawJson, Route, Routes,
    Specimen,
};

/// The chapter's endpoints.
pub fn routes(routes: &mut Routes) {
    routes.add(
        Route::of::<send_message_event::v3::Request>()
            .rate(RateClass::Message)
            .body_limit(BodyLimit::Event)
            .not_when_suspended()
            .specimen(
                Specimen::path("$room m.room.message $txn")
                    .body(r#"{"msgtype":"m.text","body":"hello"}"#, r#"["hello"]"#)
                    .outsider(403, "M_FORBIDDEN"),
            )
            .to(send),
    );
    routes.add(
        Route::of::<redact_event::v3::Request>()
            .rate(RateClass::Message)
            .body_limit(BodyLimit::Event)
            .specimen(
                Specimen::path("$room $event $txn")
                    .body(r#"{"reason":"spam"}"#, r#"{"reason":5}"#)
                    .outsider(403, "M_FORBIDDEN")
                    .powerless(403, "M_FORBIDDEN"),
            )
            .to(redact),
    );
}

/// The content of an event: an object, whatever is in it.
pub fn content(json: Box<RawValue>) -> Result<Box<RawValue>, MatrixError> {
    if json.get().trim_start().starts_with('{') {
        Ok(json)
    } else {
        Err(MatrixError::bad_json("the content of an event is an object"))
    }
}

/// `{"event_id":"…"}`
pub fn sent(event_id: &OwnedEventId) -> RawJson {
    let mut out = Vec::with_capacity(80);
    out.extend_from_slice(b"{\"event_id\":");
    push_str(&mut out, event_id.as_str());
    out.push(b'}');
    RawJson::from(out)
}

/// `PUT /_matrix/client/v3/rooms/{roomId}/send/{eventType}/{txnId}`
async fn send(
    State(policy): State<Policy>,
    State(users): State<Users>,
    user: LocalUser,
    PathArgs((room, kind, txn_id)): PathArgs<(OwnedRoomId, String, String)>,
    JsonBody(json): JsonBody<Box<RawValue>>,
) -> JsonResult {
    let txn = Txn {
        user: user.user_id.clone(),
        device: user.device_id.to_string(),
        path: format!("/rooms/{room}/send/{kind}"),
        id: txn_id,
    };
    let send = Send {
        room,
        sender: user.user_id,
        kind: TimelineEventType::from(kind),
        state_key: None,
        content: content(json)?,
        redacts: None,
        txn: Some(txn),
        timestamp_ms: None,
    };
    let done = send_event(&policy, &send).await?;
    // Who has sent something has stopped typing it.
    users.typing().set(&send.room, &send.sender, None);
    Ok(sent(&done.event_id))
}

#[derive(Deserialize)]
struct Redaction {
    reason: Option<String>,
}

/// `PUT /_matrix/client/v3/rooms/{roomId}/redact/{eventId}/{txnId}`
async fn redact(
    State(policy): State<Policy>,
    user: LocalUser,
    PathArgs((room, event_id, txn_id)): PathArgs<(OwnedRoomId, OwnedEventId, String)>,
    JsonBody(Redaction { reason }): JsonBody<Redaction>,
) -> JsonResult {
    let txn = Txn {
        user: user.user_id.clone(),
        device: user.device_id.to_string(),
        path: format!("/rooms/{room}/redact/{event_id}"),
        id: txn_id,
    };
    let mut content = serde_json::Map::new();
    if let Some(reason) = reason {
        content.insert("reason".into(), reason.into());
    }
    let send = Send {
        room,
        sender: user.user_id,
        kind: TimelineEventType::RoomRedaction,
        state_key: None,
        content: serde_json::value::to_raw_value(&content).map_err(MatrixError::internal)?,
        redacts: Some(event_id),
        txn: Some(txn),
        timestamp_ms: None,
    };
    // A suspended account may still take back its own events.
    let done = send_event(&policy, &send).await?;
    Ok(sent(&done.event_id))
}
