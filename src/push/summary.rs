//! What the predefined push rules see in an event, found once for all members of the room.

use ruma::{OwnedUserId, UserId};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::Decision;

/// The answer of the predefined rules for a member whom the event does not name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Everyone {
    /// No rule notifies, and being mentioned changes nothing: notices and membership changes.
    SilentAlways,
    /// No rule notifies, unless the event mentions the user: reactions, edits, what no rule knows.
    Silent,
    Notify,
    Highlight,
}

/// An event as the predefined rules see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    pub sender: Box<str>,
    pub everyone: Everyone,
    /// `m.mentions.room` is set: highlights if the sender may notify the room.
    pub mentions_room: bool,
    /// `m.mentions.user_ids`, without repetitions.
    pub mentions: Box<[OwnedUserId]>,
    /// Whom this event invites.
    pub invites: Option<OwnedUserId>,
}

impl Summary {
    /// Reads an event in client or PDU format. JSON that is no event notifies nobody.
    pub fn of(event: &RawValue) -> Self {
        let Ok(event) = serde_json::from_str::<Fields<'_>>(event.get()) else {
            return Self::silent(String::new());
        };
        let sender = string(event.sender).unwrap_or_default();
        let kind = string(event.kind).unwrap_or_default();
        let state_key = string(event.state_key);
        let content: Content<'_> = object(event.content);

        if string(content.msgtype).is_some_and(|msgtype| msgtype.eq_ignore_ascii_case("m.notice")) {
            return Self::silent(sender);
        }
        if kind == "m.room.member" {
            let invites = string(content.membership).filter(|membership| membership == "invite");
            let invites = invites.and(state_key).and_then(|user| OwnedUserId::try_from(user).ok());
            return Self { invites, ..Self::silent(sender) };
        }

        let mentions: Mentions<'_> = object(content.mentions);
        let mentions_room = value::<bool>(mentions.room).unwrap_or(false);
        let relation: Relation<'_> = object(content.relates_to);
        let everyone = match kind.as_str() {
            "m.room.tombstone" if state_key.as_deref() == Some("") => Everyone::Highlight,
            "m.reaction" => Everyone::Silent,
            "m.room.server_acl" if state_key.as_deref() == Some("") => Everyone::Silent,
            _ if string(relation.rel_type).as_deref() == Some("m.replace") => Everyone::Silent,
            "m.call.invite" | "m.room.message" | "m.room.encrypted" => Everyone::Notify,
            _ => Everyone::Silent,
        };
        Self { sender: sender.into(), everyone, mentions_room, mentions: mentions.users(), invites: None }
    }

    /// What the predefined rules say for `user`. `may_notify_room` is asked only where it matters: whether
    /// the event's sender has the power level of `notifications.room`.
    pub fn decide(&self, user: &UserId, may_notify_room: impl FnOnce() -> bool) -> Decision {
        if *self.sender == *user.as_str() {
            return Decision::SILENT;
        }
        if self.invites.as_deref() == Some(user) {
            return Decision::NOTIFY;
        }
        if self.everyone == Everyone::SilentAlways {
            return Decision::SILENT;
        }
        if self.mentions.iter().any(|mentioned| mentioned == user)
            || (self.mentions_room && may_notify_room())
        {
            return Decision::HIGHLIGHT;
        }
        match self.everyone {
            Everyone::SilentAlways | Everyone::Silent => Decision::SILENT,
            Everyone::Notify => Decision::NOTIFY,
            Everyone::Highlight => Decision::HIGHLIGHT,
        }
    }

    /// Nobody is notified whatever the power levels are: such an event need not be looked at again.
    pub fn is_silent(&self) -> bool {
        self.invites.is_none()
            && match self.everyone {
                Everyone::SilentAlways => true,
                Everyone::Silent => self.mentions.is_empty() && !self.mentions_room,
                Everyone::Notify | Everyone::Highlight => false,
            }
    }

    fn silent(sender: String) -> Self {
        Self {
            sender: sender.into(),
            everyone: Everyone::SilentAlways,
            mentions_room: false,
            mentions: Box::default(),
            invites: None,
        }
    }
}

// Every field is read by itself: one of a wrong type must not hide the others.
#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(borrow, rename = "type")]
    kind: Option<&'a RawValue>,
    #[serde(borrow)]
    sender: Option<&'a RawValue>,
    #[serde(borrow)]
    state_key: Option<&'a RawValue>,
    #[serde(borrow)]
    content: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
struct Content<'a> {
    #[serde(borrow)]
    msgtype: Option<&'a RawValue>,
    #[serde(borrow)]
    membership: Option<&'a RawValue>,
    #[serde(borrow, rename = "m.mentions")]
    mentions: Option<&'a RawValue>,
    #[serde(borrow, rename = "m.relates_to")]
    relates_to: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
struct Mentions<'a> {
    #[serde(borrow)]
    user_ids: Option<&'a RawValue>,
    #[serde(borrow)]
    room: Option<&'a RawValue>,
}

impl Mentions<'_> {
    fn users(&self) -> Box<[OwnedUserId]> {
        let list: Vec<&RawValue> = object(self.user_ids);
        let mut users: Vec<OwnedUserId> =
            list.into_iter().filter_map(|id| string(Some(id))?.try_into().ok()).collect();
        users.sort_unstable();
        users.dedup();
        users.into()
    }
}

#[derive(Default, Deserialize)]
struct Relation<'a> {
    #[serde(borrow)]
    rel_type: Option<&'a RawValue>,
}

fn value<'a, T: Deserialize<'a>>(raw: Option<&'a RawValue>) -> Option<T> {
    serde_json::from_str(raw?.get()).ok()
}

fn string(raw: Option<&RawValue>) -> Option<String> {
    value(raw)
}

fn object<'a, T: Deserialize<'a> + Default>(raw: Option<&'a RawValue>) -> T {
    value(raw).unwrap_or_default()
}
