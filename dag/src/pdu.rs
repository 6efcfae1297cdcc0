//! An event of a room as servers exchange it.
//! * Immutable and cheap to clone. Its bytes are canonical JSON without `unsigned`.
//! * What lists and authorization need is read at once; the references to other events when first asked for.
//! * A [`Pdu`] by itself says nothing about trust: it was built here, verified, or stored after that.

use std::{
    borrow::Cow,
    fmt,
    ops::Range,
    sync::{Arc, Mutex, OnceLock, PoisonError, Weak},
};

use bytes::Bytes;
use ruma::{
    EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, UInt, UserId,
    events::{StateEventType, TimelineEventType, room::member::MembershipState},
};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{Rejection, RoomRules, canonical::Object, hash, power_levels::Listed};

/// A type and a state key: the place of an event in the room's state.
pub type StateKey = (StateEventType, String);

/// An event; see the module's description.
#[derive(Clone)]
pub struct Pdu(Arc<Inner>);

struct Inner {
    json: Bytes,
    event_id: OwnedEventId,
    room_id: OwnedRoomId,
    sender: OwnedUserId,
    kind: TimelineEventType,
    state_key: Option<Box<str>>,
    origin_server_ts: i64,
    depth: i64,
    redacts: Option<OwnedEventId>,
    content: Range<usize>,
    prev_events: Range<usize>,
    auth_events: Range<usize>,
    references: OnceLock<References>,
    raw_content: OnceLock<Box<RawValue>>,
    /// For as long as somebody holds it: it is several times as large as its JSON.
    power_levels: Mutex<Weak<Listed>>,
}

#[derive(Default)]
struct References {
    prev_events: Vec<OwnedEventId>,
    auth_events: Vec<OwnedEventId>,
}

/// Bytes that were to be an event, but are not.
#[derive(Debug, Clone, thiserror::Error)]
#[error("not an event: {0}")]
pub struct MalformedPdu(pub(crate) String);

#[derive(Deserialize)]
struct Header<'a> {
    #[serde(borrow)]
    auth_events: &'a RawValue,
    #[serde(borrow)]
    content: &'a RawValue,
    depth: i64,
    origin_server_ts: i64,
    #[serde(borrow)]
    prev_events: &'a RawValue,
    #[serde(default)]
    redacts: Option<&'a RawValue>,
    #[serde(default, borrow)]
    room_id: Option<&'a str>,
    #[serde(borrow)]
    sender: Cow<'a, str>,
    state_key: Option<Box<str>>,
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
}

impl Pdu {
    /// Reads an event that was accepted before: `json` is canonical, `event_id` is right. Nothing is verified.
    pub fn from_stored(rules: &RoomRules, event_id: OwnedEventId, json: Bytes) -> Result<Self, MalformedPdu> {
        let malformed = |error: &dyn fmt::Display| MalformedPdu(error.to_string());
        let text = std::str::from_utf8(&json).map_err(|error| malformed(&error))?;
        let header: Header<'_> = serde_json::from_str(text).map_err(|error| malformed(&error))?;
        let room_id = match header.room_id {
            Some(room_id) => RoomId::parse(room_id).map_err(|error| malformed(&error))?,
            None => room_id_of_create(&event_id).ok_or_else(|| malformed(&"no room ID"))?,
        };
        let sender = UserId::parse(header.sender).map_err(|error| malformed(&error))?;
        let kind = TimelineEventType::from(&*header.kind);
        let redacts = (kind == TimelineEventType::RoomRedaction)
            .then(|| match rules.redacts_in_content {
                true => {
                    #[derive(Deserialize)]
                    struct Content<'a> {
                        #[serde(default, borrow)]
                        redacts: Option<&'a RawValue>,
                    }
                    let content: Content<'_> = serde_json::from_str(header.content.get()).ok()?;
                    content.redacts
                }
                false => header.redacts,
            })
            .flatten()
            .and_then(|raw| serde_json::from_str::<OwnedEventId>(raw.get()).ok());
        let range = |raw: &RawValue| {
            let start = raw.get().as_ptr() as usize - text.as_ptr() as usize;
            start..start + raw.get().len()
        };
        let (content, prev_events, auth_events) =
            (range(header.content), range(header.prev_events), range(header.auth_events));
        Ok(Self(Arc::new(Inner {
            event_id,
            room_id,
            sender,
            kind,
            state_key: header.state_key,
            origin_server_ts: header.origin_server_ts,
            depth: header.depth,
            redacts,
            content,
            prev_events,
            auth_events,
            references: OnceLock::new(),
            raw_content: OnceLock::new(),
            power_levels: Mutex::default(),
            json,
        })))
    }

    /// The event's ID.
    pub fn event_id(&self) -> &EventId {
        &self.0.event_id
    }

    /// The room it belongs to; for a create event of version 12 made from its event ID.
    pub fn room_id(&self) -> &RoomId {
        &self.0.room_id
    }

    /// Who sent it.
    pub fn sender(&self) -> &UserId {
        &self.0.sender
    }

    /// Its type.
    pub fn kind(&self) -> &TimelineEventType {
        &self.0.kind
    }

    /// The state key, if it is a state event.
    pub fn state_key(&self) -> Option<&str> {
        self.0.state_key.as_deref()
    }

    /// Its place in the room's state, if it is a state event.
    pub fn state_entry(&self) -> Option<StateKey> {
        Some((self.state_kind()?, self.state_key()?.to_owned()))
    }

    /// Its type among state events, if it is one.
    pub fn state_kind(&self) -> Option<StateEventType> {
        self.state_key().map(|_| StateEventType::from(self.kind().to_string()))
    }

    /// Whether it is the state event with this type and state key.
    pub fn is_state(&self, kind: &TimelineEventType, state_key: &str) -> bool {
        self.kind() == kind && self.state_key() == Some(state_key)
    }

    /// When its server says it was made.
    pub fn origin_server_ts(&self) -> MilliSecondsSinceUnixEpoch {
        let ts = u64::try_from(self.0.origin_server_ts).unwrap_or(0);
        MilliSecondsSinceUnixEpoch(UInt::new_saturating(ts))
    }

    /// How long the longest path to the create event is said to be.
    pub fn depth(&self) -> i64 {
        self.0.depth
    }

    /// The events before it.
    pub fn prev_events(&self) -> &[OwnedEventId] {
        &self.references().prev_events
    }

    /// The events that allow it.
    pub fn auth_events(&self) -> &[OwnedEventId] {
        &self.references().auth_events
    }

    /// The event that this redaction removes, wherever the room version puts that.
    pub fn redacts(&self) -> Option<&EventId> {
        self.0.redacts.as_deref()
    }

    /// The content as JSON text.
    pub fn content_json(&self) -> &str {
        &self.json()[self.0.content.clone()]
    }

    /// The content as a raw JSON value.
    pub fn content(&self) -> &RawValue {
        self.0.raw_content.get_or_init(|| {
            RawValue::from_string(self.content_json().to_owned()).expect("it was read as a JSON value before")
        })
    }

    /// What a power levels event says; `rules` are those of its room.
    pub(crate) fn power_levels(&self, rules: &RoomRules) -> Result<Arc<Listed>, Rejection> {
        let mut held = self.0.power_levels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(read) = held.upgrade() {
            return Ok(read);
        }
        let read = Arc::new(Listed::parse(rules, self.content_json())?);
        *held = Arc::downgrade(&read);
        Ok(read)
    }

    /// The content read as `T`.
    pub fn content_as<'a, T: Deserialize<'a>>(&'a self) -> Result<T, serde_json::Error> {
        serde_json::from_str(self.content_json())
    }

    /// The membership that a member event gives, `None` for other events and for malformed ones.
    pub fn membership(&self) -> Option<MembershipState> {
        #[derive(Deserialize)]
        struct Content<'a> {
            #[serde(borrow)]
            membership: Cow<'a, str>,
        }
        if *self.kind() != TimelineEventType::RoomMember {
            return None;
        }
        let content: Content<'_> = self.content_as().ok()?;
        Some(MembershipState::from(&*content.membership))
    }

    /// The event as canonical JSON in the federation format, without `unsigned`.
    pub fn json(&self) -> &str {
        std::str::from_utf8(&self.0.json).expect("checked when the event was read")
    }

    /// The same as bytes, as they are stored.
    pub fn bytes(&self) -> &Bytes {
        &self.0.json
    }

    /// The event as an object whose keys can be taken and changed.
    pub fn to_object(&self) -> Object<'_> {
        Object::parse(self.json(), false).expect("checked when the event was read")
    }

    /// The reference hash, in the alphabet of the room version: since version 3 the event ID without its `$`.
    pub fn reference_hash(&self, rules: &RoomRules) -> String {
        hash::reference_hash(rules, &self.to_object())
    }

    fn references(&self) -> &References {
        self.0.references.get_or_init(|| References {
            prev_events: event_ids(&self.json()[self.0.prev_events.clone()]),
            auth_events: event_ids(&self.json()[self.0.auth_events.clone()]),
        })
    }
}

/// The room ID that a create event's own ID makes, since version 12.
pub(crate) fn room_id_of_create(event_id: &EventId) -> Option<OwnedRoomId> {
    RoomId::parse(format!("!{}", event_id.as_str().strip_prefix('$')?)).ok()
}

/// The create event's ID that a room ID names, since version 12.
pub(crate) fn create_event_of_room(room_id: &RoomId) -> Option<OwnedEventId> {
    EventId::parse(format!("${}", room_id.as_str().strip_prefix('!')?)).ok()
}

/// Event IDs from a list of IDs, or of `[id, {"sha256": …}]` pairs. What is neither is left out: received events
/// were checked to have none.
fn event_ids(json: &str) -> Vec<OwnedEventId> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Reference<'a> {
        Id(#[serde(borrow)] Cow<'a, str>),
        Pair(#[serde(borrow)] Cow<'a, str>, serde::de::IgnoredAny),
    }
    if let Ok(ids) = serde_json::from_str::<Vec<OwnedEventId>>(json) {
        return ids;
    }
    let references: Vec<Reference<'_>> = serde_json::from_str(json).unwrap_or_default();
    references
        .into_iter()
        .filter_map(|reference| match reference {
            Reference::Id(id) | Reference::Pair(id, _) => EventId::parse(id).ok(),
        })
        .collect()
}

impl fmt::Debug for Pdu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pdu({} {} {:?})", self.event_id(), self.kind(), self.state_key())
    }
}

/// Equal are events with the same ID and the same bytes (a redacted form differs).
impl PartialEq for Pdu {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || (self.0.event_id == other.0.event_id && self.0.json == other.0.json)
    }
}

impl Eq for Pdu {}

impl ruma::state_res::Event for Pdu {
    type Id = OwnedEventId;

    fn event_id(&self) -> &OwnedEventId {
        &self.0.event_id
    }

    fn room_id(&self) -> Option<&RoomId> {
        // What ruma asks for is the field, which the create event of version 12 does not have.
        let implied = self.0.kind == TimelineEventType::RoomCreate && self.0.room_id.server_name().is_none();
        (!implied).then_some(&*self.0.room_id)
    }

    fn sender(&self) -> &UserId {
        &self.0.sender
    }

    fn origin_server_ts(&self) -> MilliSecondsSinceUnixEpoch {
        self.origin_server_ts()
    }

    fn event_type(&self) -> &TimelineEventType {
        &self.0.kind
    }

    fn content(&self) -> &RawValue {
        self.content()
    }

    fn state_key(&self) -> Option<&str> {
        self.state_key()
    }

    fn prev_events(&self) -> Box<dyn DoubleEndedIterator<Item = &OwnedEventId> + '_> {
        Box::new(self.references().prev_events.iter())
    }

    fn auth_events(&self) -> Box<dyn DoubleEndedIterator<Item = &OwnedEventId> + '_> {
        Box::new(self.references().auth_events.iter())
    }

    fn redacts(&self) -> Option<&OwnedEventId> {
        self.0.redacts.as_ref()
    }

    fn rejected(&self) -> bool {
        false
    }
}
