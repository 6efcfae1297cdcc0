//! The numbers and orders by which rows refer to each other.
//! * Events, state keys and records are numbered per room, so that all of a room lies in ranges of its number.
//! * A state key's number says which of the room's two state trees it belongs to.

use std::fmt;

use hearth_store::{Decoder, Encoder, KeyPart, Malformed, StreamPosition};
use ruma::{EventId, OwnedEventId};
use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub u32);

        impl KeyPart for $name {
            fn encode(&self, out: &mut Encoder) {
                self.0.encode(out);
            }
            fn decode(input: &mut Decoder<'_>) -> Result<Self, Malformed> {
                Ok($name(u32::decode(input)?))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// A room's number on this server.
    RoomSn
);
number!(
    /// An event's number in its room, in the order of storing.
    EventSn
);
number!(
    /// The number of a (type, state key) pair in its room. The lowest bit says "membership".
    StateKeySn
);
number!(
    /// A record of state-tree nodes in its room.
    RecordSn
);

impl StateKeySn {
    /// The `index`-th membership key.
    pub const fn member(index: u32) -> Self {
        StateKeySn(index << 1 | 1)
    }

    /// The `index`-th key of everything else.
    pub const fn other(index: u32) -> Self {
        StateKeySn(index << 1)
    }

    pub const fn is_member(self) -> bool {
        self.0 & 1 == 1
    }

    /// Its number within its tree; dense.
    pub const fn index(self) -> u32 {
        self.0 >> 1
    }
}

impl RoomSn {
    /// The topic that each change of the room touches.
    pub fn topic(self) -> hearth_store::Topic {
        hearth_store::Topic::new(b'r', &u64::from(self.0).to_be_bytes())
    }

    /// The room of a topic made by [`RoomSn::topic`].
    pub fn from_topic(topic: &hearth_store::Topic) -> Option<Self> {
        if topic.tag() != b'r' {
            return None;
        }
        let number = u64::from_be_bytes(topic.id().try_into().ok()?);
        u32::try_from(number).ok().map(RoomSn)
    }
}

/// The topic of commits that leave members of ours to be told.
pub(crate) fn late_members_topic() -> hearth_store::Topic {
    hearth_store::Topic::new(b'l', b"members")
}

/// The topic that each change of a user's memberships touches.
pub fn user_topic(user: &ruma::UserId) -> hearth_store::Topic {
    hearth_store::Topic::new(b'u', user.as_bytes())
}

/// One node of a state tree: its record and its place therein. Record 0 does not exist: it is the empty tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeRef {
    pub record: RecordSn,
    pub index: u8,
}

impl NodeRef {
    pub const EMPTY: NodeRef = NodeRef { record: RecordSn(0), index: 0 };

    pub fn is_empty(self) -> bool {
        self.record.0 == 0
    }
}

/// A state of a room: the roots of its two trees. Equal ids mean equal states; equal states may have several ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SnapshotId {
    pub members: NodeRef,
    pub rest: NodeRef,
}

impl SnapshotId {
    pub const EMPTY: SnapshotId = SnapshotId { members: NodeRef::EMPTY, rest: NodeRef::EMPTY };
}

/// Where an event stands in this server's order of its room: a live event has its position and the largest `sub`;
/// history that came later stands before its anchor, with falling `sub`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TimelineOrder {
    pub anchor: StreamPosition,
    pub sub: u32,
}

impl TimelineOrder {
    /// Before all events.
    pub const START: TimelineOrder = TimelineOrder { anchor: StreamPosition::new(0), sub: 0 };

    /// The order of a live event at `position`.
    pub const fn live(position: StreamPosition) -> Self {
        TimelineOrder { anchor: position, sub: u32::MAX }
    }

    pub const fn is_live(self) -> bool {
        self.sub == u32::MAX
    }

    /// The least order after this one.
    pub fn next(self) -> Self {
        match self.sub.checked_add(1) {
            Some(sub) => TimelineOrder { anchor: self.anchor, sub },
            None => {
                TimelineOrder { anchor: StreamPosition::new(self.anchor.get().saturating_add(1)), sub: 0 }
            }
        }
    }
}

impl KeyPart for TimelineOrder {
    fn encode(&self, out: &mut Encoder) {
        self.anchor.encode(out);
        self.sub.encode(out);
    }
    fn decode(input: &mut Decoder<'_>) -> Result<Self, Malformed> {
        Ok(TimelineOrder { anchor: StreamPosition::decode(input)?, sub: u32::decode(input)? })
    }
}

/// An event id as a key: 33 bytes where the id is `$` and the Base64 of a hash, else its text.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventKey(OwnedEventId);

impl EventKey {
    pub fn new(id: &EventId) -> Self {
        EventKey(id.to_owned())
    }

    pub fn id(&self) -> &EventId {
        &self.0
    }

    pub fn into_id(self) -> OwnedEventId {
        self.0
    }

    /// The id for the inside of values, as short as in keys.
    pub fn to_compact(&self) -> Vec<u8> {
        let forms = [(URL_SAFE_HASH, URL_SAFE), (STANDARD_HASH, STANDARD)];
        let hashed =
            forms.into_iter().find_map(|(tag, alphabet)| Some((tag, unbase64(self.0.as_str(), alphabet)?)));
        match &hashed {
            Some((tag, hash)) => [std::slice::from_ref(tag), hash].concat(),
            None => [&[TEXT], self.0.as_bytes()].concat(),
        }
    }

    /// What [`EventKey::to_compact`] wrote.
    pub fn from_compact(bytes: &[u8]) -> Result<Self, Malformed> {
        let malformed = || Malformed::new("not an event id");
        let (tag, rest) = bytes.split_first().ok_or_else(malformed)?;
        let id = match *tag {
            TEXT => String::from_utf8(rest.to_vec()).map_err(|_| malformed())?,
            URL_SAFE_HASH => base64(rest.try_into().map_err(|_| malformed())?, URL_SAFE),
            STANDARD_HASH => base64(rest.try_into().map_err(|_| malformed())?, STANDARD),
            _ => return Err(malformed()),
        };
        OwnedEventId::try_from(id).map(EventKey).map_err(|_| malformed())
    }
}

/// How the text after `$` is written; the discriminant is the first byte of the key.
const TEXT: u8 = 0;
const URL_SAFE_HASH: u8 = 1;
const STANDARD_HASH: u8 = 2;

impl KeyPart for EventKey {
    fn encode(&self, out: &mut Encoder) {
        for (tag, alphabet) in [(URL_SAFE_HASH, URL_SAFE), (STANDARD_HASH, STANDARD)] {
            if let Some(hash) = unbase64(self.0.as_str(), alphabet) {
                tag.encode(out);
                out.raw(&hash);
                return;
            }
        }
        TEXT.encode(out);
        self.0.as_str().to_owned().encode(out);
    }

    fn decode(input: &mut Decoder<'_>) -> Result<Self, Malformed> {
        let alphabet = match u8::decode(input)? {
            TEXT => {
                let text = String::decode(input)?;
                return Ok(EventKey(
                    OwnedEventId::try_from(text).map_err(|_| Malformed::new("not an event id"))?,
                ));
            }
            URL_SAFE_HASH => URL_SAFE,
            STANDARD_HASH => STANDARD,
            _ => return Err(Malformed::new("an unknown form of event id")),
        };
        Ok(EventKey(
            OwnedEventId::try_from(base64(&input.array()?, alphabet))
                .map_err(|_| Malformed::new("not an event id"))?,
        ))
    }
}

const URL_SAFE: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
const STANDARD: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// The 32 bytes of `$` and 43 Base64 characters, if these are what encoding them again gives.
fn unbase64(id: &str, alphabet: &[u8; 64]) -> Option<[u8; 32]> {
    let text = id.strip_prefix('$')?.as_bytes();
    if text.len() != 43 {
        return None;
    }
    let (mut bytes, mut filled, mut bits, mut held) = ([0u8; 32], 0, 0u32, 0u32);
    for character in text {
        let value = match character {
            b'A'..=b'Z' => character - b'A',
            b'a'..=b'z' => character - b'a' + 26,
            b'0'..=b'9' => character - b'0' + 52,
            other if *other == alphabet[62] => 62,
            other if *other == alphabet[63] => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes[filled] = (bits >> held) as u8;
            filled += 1;
            bits &= (1 << held) - 1;
        }
    }
    if bits != 0 {
        return None;
    }
    Some(bytes)
}

fn base64(hash: &[u8; 32], alphabet: &[u8; 64]) -> String {
    let mut text = String::with_capacity(44);
    text.push('$');
    let (mut bits, mut held) = (0u32, 0u32);
    for &byte in hash {
        bits = bits << 8 | u32::from(byte);
        held += 8;
        while held >= 6 {
            held -= 6;
            text.push(char::from(alphabet[(bits >> held & 63) as usize]));
        }
        bits &= (1 << held) - 1;
    }
    text.push(char::from(alphabet[(bits << (6 - held) & 63) as usize]));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_come_back_as_the_same_text() {
        let id = "$acR1l0raoZnm60CBwAVgqbZqoO/mYU81xysh1u7XcJk";
        assert_eq!(base64(&unbase64(id, STANDARD).unwrap(), STANDARD), id);
        assert!(unbase64(id, URL_SAFE).is_none());
        let id = "$Rqnc-F-dvnEYJTyHq_iKxU2bZ1CI92-kuZq3a5lr5Zg";
        assert_eq!(base64(&unbase64(id, URL_SAFE).unwrap(), URL_SAFE), id);
        // Bits left over: this text is not what the 32 bytes would be written as.
        assert!(unbase64("$Rqnc-F-dvnEYJTyHq_iKxU2bZ1CI92-kuZq3a5lr5Zh", URL_SAFE).is_none());
    }

    #[test]
    fn orders_follow_each_other() {
        let live = TimelineOrder::live(StreamPosition::new(7));
        assert!(TimelineOrder { anchor: StreamPosition::new(7), sub: 5 } < live);
        assert!(live < live.next());
        assert_eq!(live.next().anchor.get(), 8);
    }

    #[test]
    fn state_keys_know_their_tree() {
        assert!(StateKeySn::member(5).is_member() && StateKeySn::member(5).index() == 5);
        assert!(!StateKeySn::other(5).is_member() && StateKeySn::other(5).index() == 5);
    }
}
