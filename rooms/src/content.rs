//! What an event's content says to the indexes: its relation, whom it mentions, what push rules ask first.
//! * Text that a row copies is bounded here: no content is too large for its rows.

use hearth_dag::Pdu;
use hearth_dag::limits::MAX_KEY_BYTES;
use ruma::{EventId, OwnedEventId};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::tables::{NoteKind, RelType};

#[derive(Debug, Default)]
pub struct ContentFacts {
    pub relation: Option<RelatesTo>,
    pub note: NoteKind,
    pub mentions_room: bool,
    pub mentioned: Vec<String>,
}

#[derive(Debug, Clone)]
pub struct RelatesTo {
    pub rel_type: RelType,
    pub event_id: OwnedEventId,
    /// Of an annotation.
    pub key: Option<String>,
}

/// Users that are noted as mentioned; a message with more is judged by its content.
const MENTIONS_MAX: usize = 50;
/// Bytes of a display name that the list of members keeps; of a longer one it keeps the beginning.
const DISPLAY_NAME_MAX: usize = 1000;
/// Bytes of the address of a picture in the list of members; a longer one is left out, as a part of it leads nowhere.
const AVATAR_URL_MAX: usize = 1000;

#[derive(Deserialize)]
struct Content<'a> {
    #[serde(rename = "m.relates_to", borrow, default)]
    relates_to: Option<&'a RawValue>,
    #[serde(rename = "m.mentions", borrow, default)]
    mentions: Option<&'a RawValue>,
    #[serde(borrow, default)]
    msgtype: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Relates {
    #[serde(default)]
    rel_type: Option<String>,
    #[serde(default)]
    event_id: Option<String>,
    #[serde(default)]
    key: Option<String>,
}

#[derive(Deserialize)]
struct Mentions {
    #[serde(default)]
    user_ids: Vec<String>,
    #[serde(default)]
    room: bool,
}

impl RelType {
    pub fn of(name: &str) -> Self {
        match name {
            "m.annotation" => RelType::Annotation,
            "m.replace" => RelType::Replace,
            "m.thread" => RelType::Thread,
            "m.reference" => RelType::Reference,
            other => RelType::Other(other.to_owned()),
        }
    }

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

/// Reads a content. Parts that are not what they should be are as if absent: nothing is refused here.
pub fn facts(kind: &str, content: &str) -> ContentFacts {
    let Ok(content) = serde_json::from_str::<Content<'_>>(content) else { return ContentFacts::default() };
    let relation = content.relates_to.and_then(|raw| relates_to(raw.get()));
    let mentions = content.mentions.and_then(|raw| serde_json::from_str::<Mentions>(raw.get()).ok());
    let is_edit = relation.as_ref().is_some_and(|relation| relation.rel_type == RelType::Replace);
    let mut note = match kind {
        _ if is_edit => NoteKind::Edit,
        "m.room.message" => match content.msgtype.map(RawValue::get) {
            Some("\"m.notice\"") => NoteKind::Notice,
            _ => NoteKind::Message,
        },
        "m.room.encrypted" => NoteKind::Encrypted,
        "m.room.member" => NoteKind::Member,
        "m.room.tombstone" => NoteKind::Tombstone,
        "m.reaction" => NoteKind::Reaction,
        "m.room.server_acl" => NoteKind::ServerAcl,
        "m.call.invite" => NoteKind::Call,
        // State of rooms, of which no predefined rule speaks.
        "m.room.redaction"
        | "m.room.create"
        | "m.room.power_levels"
        | "m.room.join_rules"
        | "m.room.topic"
        | "m.room.name"
        | "m.room.avatar"
        | "m.room.history_visibility"
        | "m.room.guest_access"
        | "m.room.canonical_alias"
        | "m.room.pinned_events"
        | "m.room.encryption"
        | "m.space.child"
        | "m.space.parent" => NoteKind::Quiet,
        _ => NoteKind::Other,
    };
    let (mut mentioned, mentions_room) = mentions.map_or((Vec::new(), false), |it| (it.user_ids, it.room));
    if mentioned.len() > MENTIONS_MAX {
        mentioned.clear();
        note = NoteKind::Other;
    }
    mentioned.retain(|user| user.len() <= MAX_KEY_BYTES);
    ContentFacts { relation, note, mentions_room, mentioned }
}

fn relates_to(json: &str) -> Option<RelatesTo> {
    let relates: Relates = serde_json::from_str(json).ok()?;
    let (event_id, rel_type) = (relates.event_id?, relates.rel_type?);
    if event_id.len() > MAX_KEY_BYTES || rel_type.len() > MAX_KEY_BYTES {
        return None;
    }
    let event_id = EventId::parse(event_id).ok()?;
    Some(RelatesTo { rel_type: RelType::of(&rel_type), event_id, key: relates.key })
}

/// The fields of a member event's content that lists of members show.
#[derive(Debug, Default, Deserialize)]
pub struct MemberContent {
    #[serde(default)]
    pub membership: Option<String>,
    #[serde(default)]
    pub displayname: Option<String>,
    #[serde(default)]
    pub avatar_url: Option<String>,
    #[serde(default)]
    pub is_direct: Option<bool>,
}

impl MemberContent {
    pub fn of(pdu: &Pdu) -> Self {
        // A display name that is not text must not hide the membership.
        let mut read: MemberContent = pdu.content_as().unwrap_or_default();
        if read.membership.is_none() {
            read.membership = pdu.membership().map(|membership| membership.to_string());
        }
        if let Some(name) = &mut read.displayname {
            name.truncate(name.floor_char_boundary(DISPLAY_NAME_MAX));
        }
        read.avatar_url = read.avatar_url.filter(|url| url.len() <= AVATAR_URL_MAX);
        read
    }
}
