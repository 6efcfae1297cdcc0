//! Building an event of our own: content in, hashed and signed PDU out.
//! * The canonical form is written directly, each part once, because this is done for every message.
//! * Size limits are those of the specification, checked on the very bytes that are stored and sent.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use bytes::Bytes;
use ruma::{
    EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedUserId, RoomId, UserId, events::TimelineEventType,
};
use serde_json::value::RawValue;

use crate::{
    Pdu, RoomRules, Signer,
    canonical::{NotCanonical, Object, Value, push_display, write_string},
    hash, limits,
    redact::{empties_content, redact_content},
};

/// What someone wants to say, before it has a place in a room.
#[derive(Debug, Clone)]
pub struct Draft {
    /// Who says it.
    pub sender: OwnedUserId,
    /// The event's type.
    pub kind: TimelineEventType,
    /// The state key, if it is a state event.
    pub state_key: Option<String>,
    /// The content, a JSON object.
    pub content: Box<RawValue>,
    /// For redactions, the event to redact. It is written where the room version wants it.
    pub redacts: Option<OwnedEventId>,
}

/// Where an event goes.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The room; `None` for the create event of a version that makes the room ID from it.
    pub room_id: Option<&'a RoomId>,
    /// The room's forward extremities.
    pub prev_events: &'a [OwnedEventId],
    /// The state events that allow it, as [`crate::auth_keys`] selects them.
    pub auth_events: &'a [OwnedEventId],
    /// One more than the largest depth of the prev events; capped at what the room version can carry.
    pub depth: i64,
    /// The time.
    pub origin_server_ts: MilliSecondsSinceUnixEpoch,
    /// Versions 1 and 2: [`Pdu::reference_hash`] of the prev and auth events. Unknown ones are left out.
    pub hashes: Option<&'a BTreeMap<OwnedEventId, String>>,
}

/// Why no event can be made of a draft.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// The content is not JSON as this room version wants it.
    #[error("the content is not valid for this room version: {0}")]
    NotCanonical(#[from] NotCanonical),
    /// Past [`limits::MAX_EVENT_BYTES`].
    #[error("the event would have {bytes} bytes, more than {}", limits::MAX_EVENT_BYTES)]
    TooLarge {
        /// How large it would be.
        bytes: usize,
    },
    /// Past [`limits::MAX_KEY_BYTES`].
    #[error("the {field} is longer than {} bytes", limits::MAX_KEY_BYTES)]
    FieldTooLong {
        /// Which one.
        field: &'static str,
    },
    /// Past [`limits::MAX_PREV_EVENTS`].
    #[error("more than {} prev events", limits::MAX_PREV_EVENTS)]
    TooManyPrevEvents,
    /// Past [`limits::MAX_AUTH_EVENTS`].
    #[error("more than {} auth events", limits::MAX_AUTH_EVENTS)]
    TooManyAuthEvents,
}

impl Draft {
    /// A membership: what `sender` says of `user`.
    pub fn member(sender: &UserId, user: &UserId, content: Box<RawValue>) -> Self {
        Draft {
            sender: sender.to_owned(),
            kind: TimelineEventType::RoomMember,
            state_key: Some(user.to_string()),
            content,
            redacts: None,
        }
    }

    /// Hashes and signs the event in the name of the signer's server.
    pub fn build(
        &self,
        rules: &RoomRules,
        place: &Place<'_>,
        signer: &dyn Signer,
    ) -> Result<Pdu, BuildError> {
        self.check_limits(place)?;
        let parts = Parts::of(self, rules, place)?;
        let opaque_id = rules.opaque_event_ids.then(|| {
            // The server chooses these IDs. A hash over all of the event is as unique as the event.
            let hash = hash::content_hash_of(&parts.json(false, None, None, None));
            format!("${}:{}", hash.replace('+', "-").replace('/', "_"), signer.server_name())
        });
        let opaque_id = opaque_id.as_deref();
        let hash = hash::content_hash_of(&parts.json(false, opaque_id, None, None));
        let signed = parts.json(true, opaque_id, Some(&hash), None);
        let signature = STANDARD_NO_PAD.encode(signer.sign(signed.as_bytes()));
        let signatures = (signer.server_name().as_str(), signer.key_id(), &*signature);
        let json = parts.json(false, opaque_id, Some(&hash), Some(signatures));
        if json.len() > limits::MAX_EVENT_BYTES {
            return Err(BuildError::TooLarge { bytes: json.len() });
        }
        let event_id = match opaque_id {
            Some(id) => id.to_owned(),
            None => format!("${}", hash::reference_hash_of(rules, &signed)),
        };
        if event_id.len() > limits::MAX_KEY_BYTES {
            return Err(BuildError::FieldTooLong { field: "event ID" });
        }
        let event_id = EventId::parse(event_id).expect("a sigil and a hash or a server name");
        Ok(Pdu::from_stored(rules, event_id, Bytes::from(json)).expect("this function writes all fields"))
    }

    fn check_limits(&self, place: &Place<'_>) -> Result<(), BuildError> {
        let fields = [
            ("sender", self.sender.as_str()),
            ("room ID", place.room_id.map_or("", RoomId::as_str)),
            ("type", &self.kind.to_string()),
            ("state key", self.state_key.as_deref().unwrap_or_default()),
        ];
        for (field, value) in fields {
            if value.len() > limits::MAX_KEY_BYTES {
                return Err(BuildError::FieldTooLong { field });
            }
        }
        if place.prev_events.len() > limits::MAX_PREV_EVENTS {
            return Err(BuildError::TooManyPrevEvents);
        }
        if place.auth_events.len() > limits::MAX_AUTH_EVENTS {
            return Err(BuildError::TooManyAuthEvents);
        }
        Ok(())
    }
}

/// The values of an event's top-level keys as canonical JSON.
struct Parts {
    auth_events: String,
    content: String,
    redacted_content: String,
    depth: i64,
    origin_server_ts: u64,
    prev_events: String,
    redacts: Option<String>,
    room_id: Option<String>,
    sender: String,
    state_key: Option<String>,
    kind: String,
    capacity: usize,
}

impl Parts {
    fn of(draft: &Draft, rules: &RoomRules, place: &Place<'_>) -> Result<Self, BuildError> {
        let quoted = |text: &str| {
            let mut out = String::with_capacity(text.len() + 2);
            write_string(text, &mut out);
            out
        };
        let kind = draft.kind.to_string();
        let mut object = Object::parse_content(draft.content.get(), rules.strict_canonical_json)?;
        let mut redacts = draft.redacts.as_ref().map(|event_id| quoted(event_id.as_str()));
        if rules.redacts_in_content
            && redacts.take().is_some()
            && let Some(event_id) = &draft.redacts
        {
            object.insert("redacts", Value::String(event_id.as_str().into()));
        }
        let mut content = String::with_capacity(draft.content.get().len() + 64);
        object.write(&mut content);
        let redacted_content = if empties_content(&kind) {
            "{}".to_owned()
        } else {
            redact_content(rules, &kind, &mut object);
            object.to_canonical()
        };
        let parts = Self {
            capacity: content.len() + 1024,
            auth_events: references(rules, place.auth_events, place.hashes),
            content,
            redacted_content,
            depth: place.depth.clamp(0, rules.max_depth),
            origin_server_ts: place.origin_server_ts.get().into(),
            prev_events: references(rules, place.prev_events, place.hashes),
            redacts,
            room_id: place.room_id.map(|room_id| quoted(room_id.as_str())),
            sender: quoted(draft.sender.as_str()),
            state_key: draft.state_key.as_deref().map(quoted),
            kind: quoted(&kind),
        };
        Ok(parts)
    }

    /// The event with these parts, keys in canonical order.
    fn json(
        &self,
        redacted: bool,
        event_id: Option<&str>,
        hash: Option<&str>,
        signature: Option<(&str, &str, &str)>,
    ) -> String {
        let mut out = String::with_capacity(self.capacity);
        out.push_str("{\"auth_events\":");
        out.push_str(&self.auth_events);
        out.push_str(",\"content\":");
        out.push_str(if redacted { &self.redacted_content } else { &self.content });
        out.push_str(",\"depth\":");
        push_display(&mut out, &self.depth);
        if let Some(event_id) = event_id {
            out.push_str(",\"event_id\":");
            write_string(event_id, &mut out);
        }
        if let Some(hash) = hash {
            push_display(&mut out, &format_args!(",\"hashes\":{{\"sha256\":\"{hash}\"}}"));
        }
        out.push_str(",\"origin_server_ts\":");
        push_display(&mut out, &self.origin_server_ts);
        out.push_str(",\"prev_events\":");
        out.push_str(&self.prev_events);
        if let Some(redacts) = self.redacts.as_ref().filter(|_| !redacted) {
            out.push_str(",\"redacts\":");
            out.push_str(redacts);
        }
        if let Some(room_id) = &self.room_id {
            out.push_str(",\"room_id\":");
            out.push_str(room_id);
        }
        out.push_str(",\"sender\":");
        out.push_str(&self.sender);
        if let Some((server_name, key_id, signature)) = signature {
            out.push_str(",\"signatures\":{");
            write_string(server_name, &mut out);
            out.push_str(":{");
            write_string(key_id, &mut out);
            push_display(&mut out, &format_args!(":\"{signature}\"}}}}"));
        }
        if let Some(state_key) = &self.state_key {
            out.push_str(",\"state_key\":");
            out.push_str(state_key);
        }
        out.push_str(",\"type\":");
        out.push_str(&self.kind);
        out.push('}');
        out
    }
}

/// References to other events, in the format of the room version.
fn references(
    rules: &RoomRules,
    events: &[OwnedEventId],
    hashes: Option<&BTreeMap<OwnedEventId, String>>,
) -> String {
    let mut out = String::with_capacity(2 + events.len() * 48);
    out.push('[');
    for (index, event_id) in events.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        if rules.event_references_have_hashes {
            out.push('[');
            write_string(event_id.as_str(), &mut out);
            match hashes.and_then(|hashes| hashes.get(event_id)) {
                Some(hash) => push_display(&mut out, &format_args!(",{{\"sha256\":\"{hash}\"}}]")),
                None => out.push_str(",{}]"),
            }
        } else {
            write_string(event_id.as_str(), &mut out);
        }
    }
    out.push(']');
    out
}

/// Adds our signature to an event that another server made: an invite to one of our users, a restricted join that
/// one of our users authorises, or an event that we judge as a policy server. It may be too large then.
pub fn countersign(rules: &RoomRules, pdu: &Pdu, signer: &dyn Signer) -> Pdu {
    let mut object = pdu.to_object();
    let message = hash::signed_form(rules, &object);
    crate::sign::add_signature(signer, message.as_bytes(), &mut object);
    let json = Bytes::from(object.to_canonical());
    Pdu::from_stored(rules, pdu.event_id().to_owned(), json).expect("only a signature was added")
}

/// The canonical form of a draft's content: what equality of two state events compares.
pub fn canonical_content(rules: &RoomRules, content: &RawValue) -> Result<String, NotCanonical> {
    Ok(Object::parse_content(content.get(), rules.strict_canonical_json)?.to_canonical())
}
