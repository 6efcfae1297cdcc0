//! Filters: which events a client wants to see, as stored or given inline with a request.
//! * Parsed once, then matched against the few facts of an event that a filter can ask about.
//! * `related_by_*` need an index of the room: matching tells that they are asked, the reader looks them up.
//! * `event_fields` cut a serialised event down; all else of a filter only chooses between events.

use std::collections::BTreeMap;

use ruma::{OwnedRoomId, OwnedUserId};
use serde::Deserialize;
use serde_json::value::RawValue;

/// More events than this are never returned at once, whatever a filter asks for.
pub const MAX_LIMIT: usize = 1000;
/// Events in the timeline of a room in `/sync` when the filter does not say.
pub const DEFAULT_TIMELINE_LIMIT: usize = 10;

/// Why a filter cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    #[error("the filter is not JSON")]
    NotJson,
    #[error("the filter is malformed: {0}")]
    BadJson(String),
}

/// The filter of `/sync`, as `POST /user/{userId}/filter` takes it.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct FilterDefinition {
    #[serde(default)]
    event_fields: Option<Vec<String>>,
    #[serde(default)]
    pub event_format: EventFormat,
    #[serde(default)]
    pub presence: EventFilter,
    #[serde(default)]
    pub account_data: EventFilter,
    #[serde(default)]
    pub room: RoomFilter,
    #[serde(skip)]
    fields: Option<EventFields>,
}

/// How events are written.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum EventFormat {
    #[default]
    Client,
    Federation,
}

/// What of the rooms is wanted.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct RoomFilter {
    #[serde(default)]
    pub include_leave: bool,
    #[serde(default)]
    pub account_data: EventFilter,
    #[serde(default)]
    pub ephemeral: EventFilter,
    #[serde(default)]
    pub state: EventFilter,
    #[serde(default)]
    pub timeline: EventFilter,
    #[serde(default)]
    rooms: Option<Vec<OwnedRoomId>>,
    #[serde(default)]
    not_rooms: Vec<OwnedRoomId>,
}

/// Which events of one kind are wanted: `RoomEventFilter`, and the smaller `EventFilter` of the specification.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct EventFilter {
    #[serde(default)]
    limit: Option<u64>,
    #[serde(default)]
    types: Option<Vec<Pattern>>,
    #[serde(default)]
    not_types: Vec<Pattern>,
    #[serde(default)]
    senders: Option<Vec<OwnedUserId>>,
    #[serde(default)]
    not_senders: Vec<OwnedUserId>,
    #[serde(default)]
    rooms: Option<Vec<OwnedRoomId>>,
    #[serde(default)]
    not_rooms: Vec<OwnedRoomId>,
    #[serde(default)]
    contains_url: Option<bool>,
    #[serde(default, alias = "io.element.relation_senders")]
    related_by_senders: Option<Vec<OwnedUserId>>,
    #[serde(default, alias = "io.element.relation_types")]
    related_by_rel_types: Option<Vec<String>>,
    #[serde(default)]
    pub lazy_load_members: bool,
    #[serde(default)]
    pub include_redundant_members: bool,
    #[serde(default, alias = "org.matrix.msc3773.unread_thread_notifications")]
    pub unread_thread_notifications: bool,
}

/// The facts of an event that a filter can ask about.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    pub kind: &'a str,
    pub sender: &'a str,
    /// Whether `content.url` is a string.
    pub contains_url: bool,
}

/// What a wanted event must be the target of.
#[derive(Clone, Copy, Debug)]
pub struct RelatedBy<'a> {
    pub senders: Option<&'a [OwnedUserId]>,
    pub rel_types: Option<&'a [String]>,
}

impl FilterDefinition {
    /// Reads a filter from its JSON.
    pub fn parse(json: &str) -> Result<Self, FilterError> {
        let mut filter: Self = from_json(json)?;
        filter.fields = filter.event_fields.take().map(EventFields::new);
        Ok(filter)
    }

    /// The fields to which events are cut down, if any were named.
    pub fn fields(&self) -> Option<&EventFields> {
        self.fields.as_ref()
    }
}

impl RoomFilter {
    /// Whether anything of this room is wanted.
    pub fn wants_room(&self, room: &str) -> bool {
        room_wanted(self.rooms.as_deref(), &self.not_rooms, room)
    }
}

impl EventFilter {
    /// Reads a filter from its JSON, as `/messages` and `/context` take it.
    pub fn parse(json: &str) -> Result<Self, FilterError> {
        from_json(json)
    }

    /// How many events are wanted, within [`MAX_LIMIT`].
    pub fn limit_or(&self, default: usize) -> usize {
        self.limit.map_or(default, |limit| usize::try_from(limit).unwrap_or(MAX_LIMIT)).min(MAX_LIMIT)
    }

    /// Whether every event passes, in every room.
    pub fn passes_all(&self) -> bool {
        self.types.is_none()
            && self.not_types.is_empty()
            && self.senders.is_none()
            && self.not_senders.is_empty()
            && self.rooms.is_none()
            && self.not_rooms.is_empty()
            && self.contains_url.is_none()
            && self.related_by().is_none()
    }

    /// Whether no event can pass, so that nothing need be read.
    pub fn passes_none(&self) -> bool {
        let empty = |list: Option<usize>| list == Some(0);
        empty(self.types.as_ref().map(Vec::len))
            || empty(self.senders.as_ref().map(Vec::len))
            || empty(self.rooms.as_ref().map(Vec::len))
            || self.not_types.iter().any(|pattern| pattern.0 == "*")
    }

    /// Whether events of this room can pass.
    pub fn wants_room(&self, room: &str) -> bool {
        room_wanted(self.rooms.as_deref(), &self.not_rooms, room)
    }

    /// Whether events of this type can pass.
    pub fn wants_type(&self, kind: &str) -> bool {
        self.types.as_ref().is_none_or(|types| types.iter().any(|pattern| pattern.matches(kind)))
            && !self.not_types.iter().any(|pattern| pattern.matches(kind))
    }

    /// Whether events of this sender can pass.
    pub fn wants_sender(&self, sender: &str) -> bool {
        self.senders.as_ref().is_none_or(|senders| senders.iter().any(|wanted| wanted == sender))
            && !self.not_senders.iter().any(|unwanted| unwanted == sender)
    }

    /// Whether this event passes, but for its room and for [`related_by`](Self::related_by).
    pub fn wants(&self, event: Facts<'_>) -> bool {
        self.wants_type(event.kind)
            && self.wants_sender(event.sender)
            && self.contains_url.is_none_or(|wanted| wanted == event.contains_url)
    }

    /// What the events that pass must be related to by others.
    pub fn related_by(&self) -> Option<RelatedBy<'_>> {
        let senders = self.related_by_senders.as_deref();
        let rel_types = self.related_by_rel_types.as_deref();
        (senders.is_some() || rel_types.is_some()).then_some(RelatedBy { senders, rel_types })
    }

    /// The types that pass when they are few and without wildcards, so that state can be looked up by key.
    pub fn exact_types(&self) -> Option<impl Iterator<Item = &str>> {
        let types = self.types.as_ref()?;
        types.iter().all(|pattern| !pattern.0.contains('*')).then(|| types.iter().map(|t| t.0.as_str()))
    }
}

impl RelatedBy<'_> {
    /// Whether a relation of this sender and type is one that was asked for.
    pub fn wants(&self, sender: &str, rel_type: &str) -> bool {
        self.senders.is_none_or(|senders| senders.iter().any(|wanted| wanted == sender))
            && self.rel_types.is_none_or(|types| types.iter().any(|wanted| wanted == rel_type))
    }
}

/// An event type in which `*` stands for any sequence of characters.
#[derive(Clone, Debug, Deserialize)]
struct Pattern(String);

impl Pattern {
    fn matches(&self, text: &str) -> bool {
        let Some((first, rest)) = self.0.split_once('*') else {
            return self.0 == text;
        };
        let Some(mut text) = text.strip_prefix(first) else { return false };
        let mut rest = rest;
        // Each part between two stars is taken where it comes first; the last one must end the text.
        while let Some((part, after)) = rest.split_once('*') {
            let Some(at) = text.find(part) else { return false };
            text = &text[at + part.len()..];
            rest = after;
        }
        text.ends_with(rest)
    }
}

/// The fields that are kept of each event.
#[derive(Clone, Debug)]
pub struct EventFields(Vec<Vec<String>>);

impl EventFields {
    fn new(fields: Vec<String>) -> Self {
        Self(fields.iter().map(|field| split_field(field)).collect())
    }

    /// Cuts a JSON object down to the fields. What is no JSON object stays as it is.
    pub fn cut(&self, event: &[u8]) -> Vec<u8> {
        let paths: Vec<&[String]> = self.0.iter().map(Vec::as_slice).collect();
        let text = std::str::from_utf8(event).unwrap_or_default();
        cut_object(text, &paths).map_or_else(|| event.to_vec(), String::into_bytes)
    }
}

fn cut_object(json: &str, paths: &[&[String]]) -> Option<String> {
    let object: BTreeMap<String, &RawValue> = serde_json::from_str(json).ok()?;
    let mut out = String::from("{");
    for (key, value) in object {
        let below: Vec<&[String]> =
            paths.iter().filter(|path| path.first() == Some(&key)).map(|path| &path[1..]).collect();
        if below.is_empty() {
            continue;
        }
        let kept = if below.iter().any(|path| path.is_empty()) {
            value.get().to_owned()
        } else {
            match cut_object(value.get(), &below) {
                Some(kept) if kept != "{}" => kept,
                _ => continue,
            }
        };
        if out.len() > 1 {
            out.push(',');
        }
        out.push_str(&serde_json::to_string(&key).ok()?);
        out.push(':');
        out.push_str(&kept);
    }
    out.push('}');
    Some(out)
}

/// Splits at dots; a backslash makes a dot or a backslash part of the name.
fn split_field(field: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = field.chars().peekable();
    while let Some(c) = chars.next() {
        let last = parts.len() - 1;
        match c {
            '\\' if matches!(chars.peek(), Some('.' | '\\')) => parts[last].extend(chars.next()),
            '.' => parts.push(String::new()),
            c => parts[last].push(c),
        }
    }
    parts
}

fn room_wanted(rooms: Option<&[OwnedRoomId]>, not_rooms: &[OwnedRoomId], room: &str) -> bool {
    rooms.is_none_or(|rooms| rooms.iter().any(|wanted| wanted == room))
        && !not_rooms.iter().any(|unwanted| unwanted == room)
}

fn from_json<T: serde::de::DeserializeOwned>(json: &str) -> Result<T, FilterError> {
    serde_json::from_str(json).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => FilterError::BadJson(error.to_string()),
        _ => FilterError::NotJson,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts<'a>(kind: &'a str, sender: &'a str) -> Facts<'a> {
        Facts { kind, sender, contains_url: false }
    }

    #[test]
    fn a_star_matches_any_sequence() {
        let matches = |pattern: &str, text: &str| Pattern(pattern.to_owned()).matches(text);
        assert!(matches("m.room.*", "m.room.message"));
        assert!(matches("*", ""));
        assert!(matches("*message", "m.room.message"));
        assert!(matches("m.*.mess*e", "m.room.message"));
        assert!(!matches("m.*.mess*x", "m.room.message"));
        assert!(!matches("m.room", "m.room.message"));
        assert!(!matches("ab*ba", "aba"));
        assert!(matches("a*a*a", "aaa"));
        assert!(!matches("a*a*a", "aa"));
    }

    #[test]
    fn what_is_excluded_wins_over_what_is_included() {
        let filter = EventFilter::parse(
            r#"{"types":["m.room.*"],"not_types":["m.room.member"],"senders":["@a:x","@b:x"],"not_senders":["@b:x"]}"#,
        )
        .unwrap();
        assert!(filter.wants(facts("m.room.message", "@a:x")));
        assert!(!filter.wants(facts("m.room.member", "@a:x")));
        assert!(!filter.wants(facts("m.room.message", "@b:x")));
        assert!(!filter.wants(facts("m.room.message", "@c:x")));
        assert!(!filter.wants(facts("m.reaction", "@a:x")));
    }

    #[test]
    fn empty_lists_let_nothing_pass_and_absent_ones_everything() {
        assert!(EventFilter::parse(r#"{"types":[]}"#).unwrap().passes_none());
        assert!(EventFilter::parse(r#"{"not_types":["*"]}"#).unwrap().passes_none());
        assert!(EventFilter::parse(r#"{"types":null,"limit":3}"#).unwrap().passes_all());
        assert!(!EventFilter::parse(r#"{"contains_url":true}"#).unwrap().passes_all());
        assert!(EventFilter::parse(r#"{"unknown":1}"#).unwrap().passes_all());
    }

    #[test]
    fn rooms_are_chosen_on_both_levels() {
        let filter = FilterDefinition::parse(
            r#"{"room":{"not_rooms":["!a:x"],"timeline":{"rooms":["!b:x"],"limit":5000}}}"#,
        )
        .unwrap();
        assert!(!filter.room.wants_room("!a:x"));
        assert!(filter.room.wants_room("!c:x"));
        assert!(!filter.room.timeline.wants_room("!c:x"));
        assert_eq!(filter.room.timeline.limit_or(10), MAX_LIMIT);
    }

    #[test]
    fn broken_filters_are_told_apart() {
        assert!(matches!(FilterDefinition::parse("{"), Err(FilterError::NotJson)));
        assert!(matches!(FilterDefinition::parse(r#"{"room":[3]}"#), Err(FilterError::BadJson(_))));
        assert!(matches!(
            FilterDefinition::parse(r#"{"room":{"timeline":{"senders":["nobody"]}}}"#),
            Err(FilterError::BadJson(_))
        ));
    }

    #[test]
    fn events_are_cut_down_to_the_named_fields() {
        let filter =
            FilterDefinition::parse(r#"{"event_fields":["type","content.body","content.a\\.b"]}"#).unwrap();
        let event = br#"{"content":{"a.b":1,"body":"hi","msgtype":"m.text"},"sender":"@a:x","type":"m"}"#;
        let cut = filter.fields().unwrap().cut(event);
        assert_eq!(String::from_utf8(cut).unwrap(), r#"{"content":{"a.b":1,"body":"hi"},"type":"m"}"#);
    }
}
