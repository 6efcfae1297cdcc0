//! An event as it lies in its row: when it came, a header that answers most questions, and its bytes.

use std::borrow::Cow;

use bytes::Bytes;
use hearth_store::{Decoder, Encoder, Malformed, StreamPosition, Value};
use ruma::{OwnedEventId, OwnedUserId};
use serde::{Deserialize, Serialize};

use crate::ids::{EventSn, SnapshotId, StateKeySn, TimelineOrder};
use crate::kind::Kind;
use crate::tables::{RelType, Status};

/// A body above this many bytes lies in [`LARGE_BODIES`](crate::tables::LARGE_BODIES), its row's body is empty.
pub const MAX_INLINE_BODY: usize = 4096;

const FORMAT: u8 = 1;

/// A row of [`EVENTS`](crate::tables::EVENTS).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventRow {
    /// When it was stored; the place in the timeline of a live event.
    pub position: StreamPosition,
    pub header: EventHeader,
    /// Canonical JSON as received.
    pub body: Bytes,
}

/// What is known of an event when it is stored, and stays. Later changes are in
/// [`EVENT_STATUS`](crate::tables::EVENT_STATUS).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventHeader {
    #[serde(with = "compact_id")]
    pub event_id: OwnedEventId,
    pub status: Status,
    /// It stands in the timeline at [`EventRow::position`].
    pub live: bool,
    /// The body is not in the row.
    pub large: bool,
    /// The state before it is not fully known.
    pub partial: bool,
    /// The content hash failed: this is the redacted form, a good copy may come.
    pub hash_failed: bool,
    pub kind: Kind,
    pub state_key: Option<StateKeySn>,
    pub sender: OwnedUserId,
    pub origin_server_ts: u64,
    pub depth: u64,
    /// Those of the prev and auth events that were held when it was stored.
    pub prev_events: Vec<EventSn>,
    pub auth_events: Vec<EventSn>,
    /// The room's state before it; none for an outlier.
    pub snapshot_before: Option<SnapshotId>,
    /// The event that it relates to.
    pub relation: Option<Relation>,
    /// The state event that it replaced.
    pub replaces: Option<EventSn>,
    /// The transaction that sent it, for the device that did.
    pub transaction: Option<SentBy>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relation {
    pub rel_type: RelType,
    /// None if we did not hold it.
    pub target: Option<EventSn>,
}

/// Whose request made an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SentBy {
    pub device_id: String,
    pub transaction_id: String,
}

impl EventRow {
    /// Where a live event stands; an event of filled-in history has its order in its status row.
    pub fn live_order(&self) -> Option<TimelineOrder> {
        self.header.live.then(|| TimelineOrder::live(self.position))
    }
}

impl Value for EventRow {
    fn encode(&self, out: &mut Encoder) {
        out.position(self.position);
        out.raw(&[FORMAT]);
        match postcard::to_stdvec(&self.header) {
            Ok(header) => out.raw(&header),
            Err(error) => out.fail(Malformed(Cow::Owned(format!("an event header: {error}")))),
        }
        out.raw(&self.body);
    }

    fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut input = Decoder::new(bytes);
        let position = input.position()?;
        if input.array::<1>()? != [FORMAT] {
            return Err(Malformed::new("an event row of an unknown format"));
        }
        let (header, body) = postcard::take_from_bytes(input.rest())
            .map_err(|error| Malformed(Cow::Owned(format!("an event header: {error}"))))?;
        Ok(EventRow { position, header, body: Bytes::copy_from_slice(body) })
    }
}

/// Event ids in values, as short as in keys.
mod compact_id {
    use ruma::{EventId, OwnedEventId};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use crate::ids::EventKey;

    pub fn serialize<S: Serializer>(id: &EventId, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&EventKey::new(id).to_compact())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<OwnedEventId, D::Error> {
        let bytes = <&[u8]>::deserialize(deserializer)?;
        EventKey::from_compact(bytes).map(EventKey::into_id).map_err(D::Error::custom)
    }
}
