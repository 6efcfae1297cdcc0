//! The specification's words for what rows hold as numbers.

use crate::tables::{Membership, RelType};

impl Membership {
    /// As events write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Membership::Join => "join",
            Membership::Invite => "invite",
            Membership::Knock => "knock",
            Membership::Leave => "leave",
            Membership::Ban => "ban",
        }
    }

    /// The membership that an event writes so.
    pub fn from_value(value: &str) -> Option<Self> {
        let all =
            [Membership::Join, Membership::Invite, Membership::Knock, Membership::Leave, Membership::Ban];
        all.into_iter().find(|membership| membership.as_str() == value)
    }
}

impl RelType {
    /// As `m.relates_to` writes it.
    pub fn as_str(&self) -> &str {
        match self {
            RelType::Annotation => "m.annotation",
            RelType::Replace => "m.replace",
            RelType::Thread => "m.thread",
            RelType::Reference => "m.reference",
            RelType::Other(other) => other,
        }
    }
}
