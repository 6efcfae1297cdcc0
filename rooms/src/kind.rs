//! Event types as rows hold them: one byte for those that rooms are full of, text for all others.

use std::borrow::Cow;

use hearth_store::{Decoder, Encoder, KeyPart, Malformed};
use ruma::events::{StateEventType, TimelineEventType};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An event type. In keys and values the well-known ones are one byte.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Kind(Cow<'static, str>);

/// Their place in this list is written to disk: entries are only ever added at the end.
const WELL_KNOWN: &[&str] = &[
    "m.room.message",
    "m.room.encrypted",
    "m.room.member",
    "m.reaction",
    "m.room.redaction",
    "m.room.create",
    "m.room.power_levels",
    "m.room.join_rules",
    "m.room.history_visibility",
    "m.room.guest_access",
    "m.room.name",
    "m.room.topic",
    "m.room.avatar",
    "m.room.canonical_alias",
    "m.room.aliases",
    "m.room.encryption",
    "m.room.server_acl",
    "m.room.tombstone",
    "m.room.pinned_events",
    "m.room.third_party_invite",
    "m.room.policy",
    "m.sticker",
    "m.space.child",
    "m.space.parent",
    "m.call.invite",
    "m.call.candidates",
    "m.call.answer",
    "m.call.hangup",
    "m.call.member",
    "org.matrix.msc3401.call.member",
    "m.call.notify",
    "m.beacon",
    "m.beacon_info",
    "m.poll.start",
    "m.poll.response",
    "m.poll.end",
    "org.matrix.msc3381.poll.start",
    "org.matrix.msc3381.poll.response",
    "org.matrix.msc3381.poll.end",
    "im.vector.modular.widgets",
];

impl Kind {
    pub fn new(kind: impl Into<String>) -> Self {
        let kind = kind.into();
        match WELL_KNOWN.iter().find(|known| **known == kind) {
            Some(known) => Kind(Cow::Borrowed(known)),
            None => Kind(Cow::Owned(kind)),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// 0 for a type that is written as text.
    fn code(&self) -> u8 {
        WELL_KNOWN.iter().position(|known| *known == self.0).map_or(0, |place| place as u8 + 1)
    }

    fn of_code(code: u8) -> Option<Self> {
        WELL_KNOWN.get(usize::from(code).checked_sub(1)?).map(|known| Kind(Cow::Borrowed(known)))
    }
}

impl From<&StateEventType> for Kind {
    fn from(kind: &StateEventType) -> Self {
        Kind::new(kind.to_string())
    }
}

impl From<&TimelineEventType> for Kind {
    fn from(kind: &TimelineEventType) -> Self {
        Kind::new(kind.to_string())
    }
}

impl From<&str> for Kind {
    fn from(kind: &str) -> Self {
        Kind::new(kind)
    }
}

impl PartialEq<str> for Kind {
    fn eq(&self, other: &str) -> bool {
        self.0 == other
    }
}

impl PartialEq<&str> for Kind {
    fn eq(&self, other: &&str) -> bool {
        self.0 == *other
    }
}

impl KeyPart for Kind {
    fn encode(&self, out: &mut Encoder) {
        let code = self.code();
        code.encode(out);
        if code == 0 {
            self.0.as_ref().to_owned().encode(out);
        }
    }

    fn decode(input: &mut Decoder<'_>) -> Result<Self, Malformed> {
        match u8::decode(input)? {
            0 => String::decode(input).map(Kind::new),
            code => Kind::of_code(code).ok_or(Malformed::new("an unknown event type code")),
        }
    }
}

impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let code = self.code();
        (code, if code == 0 { Some(self.as_str()) } else { None }).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Kind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match <(u8, Option<String>)>::deserialize(deserializer)? {
            (0, Some(text)) => Ok(Kind::new(text)),
            (code, _) => {
                Kind::of_code(code).ok_or_else(|| serde::de::Error::custom("unknown event type code"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_well_known_type_has_its_own_byte() {
        for known in WELL_KNOWN {
            assert_eq!(Kind::of_code(Kind::new(*known).code()).unwrap(), *known);
        }
        assert_eq!(Kind::new("org.example.custom").code(), 0);
    }
}
