//! Events as clients see them: serialised once, shared by all who receive them.
//! * The shared part is everything but `room_id` and `unsigned`; what differs between receivers (`age`,
//!   `transaction_id`, `membership`, bundled relations) is spliced in behind it while writing.
//! * The shared part belongs to one form of an event, as it is or redacted: caches key on both.
//! * `redacts` stands in both places, at the top and in `content`, whatever the room version.

use std::{borrow::Cow, ops::Range};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

/// A stored event cannot be read: the store is damaged or was written by a newer version.
#[derive(Debug, Clone, thiserror::Error)]
#[error("event {event_id} is stored malformed: {reason}")]
pub struct MalformedEvent {
    pub event_id: String,
    pub reason: String,
}

/// What the shared part of an event is made of.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    pub event_id: &'a str,
    /// The form that is in force, as stored.
    pub pdu: &'a [u8],
    /// The event that held the same state key before.
    pub replaced: Option<&'a ClientEvent>,
    /// Whether `pdu` is the redacted form.
    pub redacted: bool,
    /// The redaction that brought the event into this form, if it is to be shown.
    pub redacted_because: Option<&'a ClientEvent>,
    /// Who of our devices sent it, and under which transaction ID.
    pub transaction: Option<(&'a str, &'a str)>,
}

/// The shared part of an event, and the facts that filters, visibility and push rules ask for.
#[derive(Debug, Clone)]
pub struct ClientEvent {
    pub event_id: Box<str>,
    pub sender: Box<str>,
    pub kind: Box<str>,
    pub state_key: Option<Box<str>>,
    pub origin_server_ts: u64,
    pub contains_url: bool,
    pub redacted: bool,
    pub relation: Option<Relation>,
    transaction: Option<Box<(Box<str>, Box<str>)>>,
    /// `{"content":…,"type":"…"`, without the closing brace.
    open: Bytes,
    content: Range<usize>,
    /// Fields of `unsigned` that all receivers share, each followed by a comma.
    unsigned: Box<str>,
}

/// `m.relates_to` of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation {
    pub rel_type: Box<str>,
    pub event_id: Box<str>,
}

/// What one receiver's copy of an event holds beside the shared part.
#[derive(Clone, Copy, Default)]
pub struct Copy<'a> {
    /// Everywhere but in `/sync`, where the room is the key.
    pub room_id: Option<&'a str>,
    pub now_ms: u64,
    /// The device that receives it: the transaction ID is for the sending device only.
    pub device: Option<Device<'a>>,
    /// The receiver's membership when the event was sent.
    pub membership: Option<&'a str>,
    /// The value of `m.relations`.
    pub relations: Option<&'a [u8]>,
}

/// A user's device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device<'a> {
    pub user: &'a str,
    pub device: &'a str,
}

#[derive(Deserialize)]
struct Pdu<'a> {
    #[serde(borrow)]
    content: &'a RawValue,
    origin_server_ts: i64,
    #[serde(borrow)]
    redacts: Option<Cow<'a, str>>,
    #[serde(borrow)]
    sender: Cow<'a, str>,
    #[serde(borrow)]
    state_key: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
}

#[derive(Deserialize)]
struct ContentFacts<'a> {
    #[serde(borrow)]
    url: Option<&'a RawValue>,
    #[serde(borrow)]
    redacts: Option<&'a RawValue>,
    #[serde(borrow, rename = "m.relates_to")]
    relates_to: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct RelatesTo<'a> {
    #[serde(borrow)]
    rel_type: Cow<'a, str>,
    #[serde(borrow)]
    event_id: Cow<'a, str>,
}

impl ClientEvent {
    /// Serialises a stored event.
    pub fn new(source: Source<'_>) -> Result<Self, MalformedEvent> {
        let malformed = |error: serde_json::Error| MalformedEvent {
            event_id: source.event_id.to_owned(),
            reason: error.to_string(),
        };
        let pdu: Pdu<'_> = serde_json::from_slice(source.pdu).map_err(malformed)?;
        let facts: Option<ContentFacts<'_>> = serde_json::from_str(pdu.content.get()).ok();
        let text = |raw: &RawValue| serde_json::from_str::<String>(raw.get()).ok();
        let in_content = facts.as_ref().and_then(|facts| facts.redacts).and_then(text);
        let contains_url = facts.as_ref().and_then(|facts| facts.url).is_some_and(|url| text(url).is_some());
        let relation = facts.as_ref().and_then(|facts| facts.relates_to).and_then(relation);

        let mut open = Vec::with_capacity(source.pdu.len());
        open.extend_from_slice(b"{\"content\":");
        let start = open.len();
        let mut redacts = None;
        if pdu.kind == "m.room.redaction" {
            redacts = pdu.redacts.as_deref().map(str::to_owned).or_else(|| in_content.clone());
        }
        match &redacts {
            Some(redacts) if in_content.is_none() => push_with_redacts(&mut open, pdu.content.get(), redacts),
            _ => open.extend_from_slice(pdu.content.get().as_bytes()),
        }
        let content = start..open.len();
        open.extend_from_slice(b",\"event_id\":");
        push_str(&mut open, source.event_id);
        open.extend_from_slice(b",\"origin_server_ts\":");
        push_number(&mut open, pdu.origin_server_ts);
        if let Some(redacts) = &redacts {
            open.extend_from_slice(b",\"redacts\":");
            push_str(&mut open, redacts);
        }
        open.extend_from_slice(b",\"sender\":");
        push_str(&mut open, &pdu.sender);
        if let Some(state_key) = &pdu.state_key {
            open.extend_from_slice(b",\"state_key\":");
            push_str(&mut open, state_key);
        }
        open.extend_from_slice(b",\"type\":");
        push_str(&mut open, &pdu.kind);

        Ok(Self {
            event_id: source.event_id.into(),
            sender: pdu.sender.as_ref().into(),
            kind: pdu.kind.as_ref().into(),
            state_key: pdu.state_key.as_deref().map(Into::into),
            origin_server_ts: u64::try_from(pdu.origin_server_ts).unwrap_or(0),
            contains_url,
            redacted: source.redacted,
            relation,
            transaction: source.transaction.map(|(device, id)| Box::new((device.into(), id.into()))),
            open: open.into(),
            content,
            unsigned: shared_unsigned(&source).into(),
        })
    }

    /// The value of `content`.
    pub fn content(&self) -> &str {
        // The whole of it was written from `str`s.
        std::str::from_utf8(&self.open[self.content.clone()]).unwrap_or("{}")
    }

    /// Reads `content` as a type; `None` where it does not fit.
    pub fn content_as<'a, T: Deserialize<'a>>(&'a self) -> Option<T> {
        serde_json::from_str(self.content()).ok()
    }

    /// Whether this is the event of that state key.
    pub fn is_state(&self, kind: &str, state_key: &str) -> bool {
        *self.kind == *kind && self.state_key.as_deref() == Some(state_key)
    }

    /// The facts that a filter asks for.
    pub fn facts(&self) -> super::filter::Facts<'_> {
        super::filter::Facts { kind: &self.kind, sender: &self.sender, contains_url: self.contains_url }
    }

    /// Writes one receiver's copy.
    pub fn write(&self, out: &mut Vec<u8>, copy: Copy<'_>) {
        out.extend_from_slice(&self.open);
        if let Some(room_id) = copy.room_id {
            out.extend_from_slice(b",\"room_id\":");
            push_str(out, room_id);
        }
        out.extend_from_slice(b",\"unsigned\":{");
        out.extend_from_slice(self.unsigned.as_bytes());
        if let Some(relations) = copy.relations {
            out.extend_from_slice(b"\"m.relations\":");
            out.extend_from_slice(relations);
            out.push(b',');
        }
        if let Some(membership) = copy.membership {
            out.extend_from_slice(b"\"membership\":");
            push_str(out, membership);
            out.push(b',');
        }
        if let (Some(device), Some(sent)) = (copy.device, &self.transaction)
            && device.user == &*self.sender
            && device.device == &*sent.0
        {
            out.extend_from_slice(b"\"transaction_id\":");
            push_str(out, &sent.1);
            out.push(b',');
        }
        out.extend_from_slice(b"\"age\":");
        push_number(
            out,
            i64::try_from(copy.now_ms.saturating_sub(self.origin_server_ts)).unwrap_or(i64::MAX),
        );
        out.extend_from_slice(b"}}");
    }

    /// Writes the stripped form, which those see who are not in the room.
    pub fn write_stripped(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"content\":");
        out.extend_from_slice(&self.open[self.content.clone()]);
        out.extend_from_slice(b",\"sender\":");
        push_str(out, &self.sender);
        if let Some(state_key) = &self.state_key {
            out.extend_from_slice(b",\"state_key\":");
            push_str(out, state_key);
        }
        out.extend_from_slice(b",\"type\":");
        push_str(out, &self.kind);
        out.push(b'}');
    }

    /// Bytes held, for the bound of the cache.
    pub fn weight(&self) -> usize {
        256 + self.open.len()
            + self.unsigned.len()
            + self.event_id.len()
            + self.sender.len()
            + self.kind.len()
    }
}

fn relation(raw: &RawValue) -> Option<Relation> {
    let relates_to: RelatesTo<'_> = serde_json::from_str(raw.get()).ok()?;
    Some(Relation { rel_type: relates_to.rel_type.into(), event_id: relates_to.event_id.into() })
}

fn shared_unsigned(source: &Source<'_>) -> String {
    let mut out = Vec::new();
    if let Some(replaced) = source.replaced {
        out.extend_from_slice(b"\"prev_content\":");
        out.extend_from_slice(replaced.content().as_bytes());
        out.extend_from_slice(b",\"prev_sender\":");
        push_str(&mut out, &replaced.sender);
        out.extend_from_slice(b",\"replaces_state\":");
        push_str(&mut out, &replaced.event_id);
        out.push(b',');
    }
    if let Some(redaction) = source.redacted_because {
        out.extend_from_slice(b"\"redacted_because\":");
        out.extend_from_slice(&redaction.open);
        out.extend_from_slice(b"},");
    }
    // Written from `str`s only.
    String::from_utf8(out).unwrap_or_default()
}

/// `content` with `redacts` added.
fn push_with_redacts(out: &mut Vec<u8>, content: &str, redacts: &str) {
    let inner = content.trim_start_matches('{').trim_end_matches('}');
    if !content.starts_with('{') {
        return out.extend_from_slice(content.as_bytes());
    }
    out.extend_from_slice(&content.as_bytes()[..content.len() - 1]);
    if !inner.trim().is_empty() {
        out.push(b',');
    }
    out.extend_from_slice(b"\"redacts\":");
    push_str(out, redacts);
    out.push(b'}');
}

/// Writes a JSON string.
pub fn push_str(out: &mut Vec<u8>, text: &str) {
    if text.bytes().all(|byte| byte >= 0x20 && byte != b'"' && byte != b'\\') {
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
    } else {
        // A `str` always serialises, and a `Vec` always takes it.
        let _ = serde_json::to_writer(out, text);
    }
}

/// Writes a JSON number.
pub fn push_number(out: &mut Vec<u8>, number: i64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    let mut rest = number.unsigned_abs();
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if number < 0 {
        out.push(b'-');
    }
    out.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn event(
        id: &str,
        pdu: Value,
        replaced: Option<&ClientEvent>,
        because: Option<&ClientEvent>,
    ) -> ClientEvent {
        let pdu = pdu.to_string();
        ClientEvent::new(Source {
            event_id: id,
            pdu: pdu.as_bytes(),
            replaced,
            redacted: because.is_some(),
            redacted_because: because,
            transaction: Some(("DEV", "txn\"1")),
        })
        .unwrap()
    }

    fn written(event: &ClientEvent, copy: Copy<'_>) -> Value {
        let mut out = Vec::new();
        event.write(&mut out, copy);
        serde_json::from_slice(&out).unwrap()
    }

    fn message() -> Value {
        json!({"auth_events": ["$a"], "content": {"body": "h\u{1}i \"x\"", "url": "mxc://a/b"}, "depth": 3,
            "hashes": {"sha256": "x"}, "origin_server_ts": 1000, "prev_events": [], "room_id": "!r:x",
            "sender": "@a:x", "signatures": {}, "type": "m.room.message"})
    }

    #[test]
    fn a_copy_holds_what_its_receiver_may_see() {
        let event = event("$e", message(), None, None);
        assert!(event.contains_url);
        let copy = Copy {
            room_id: Some("!r:x"),
            now_ms: 1500,
            device: Some(Device { user: "@a:x", device: "DEV" }),
            membership: Some("join"),
            relations: Some(b"{\"m.reference\":{}}"),
        };
        assert_eq!(
            written(&event, copy),
            json!({"content": {"body": "h\u{1}i \"x\"", "url": "mxc://a/b"}, "event_id": "$e",
                "origin_server_ts": 1000, "room_id": "!r:x", "sender": "@a:x", "type": "m.room.message",
                "unsigned": {"age": 500, "membership": "join", "transaction_id": "txn\"1",
                    "m.relations": {"m.reference": {}}}})
        );
        let other =
            Copy { now_ms: 0, device: Some(Device { user: "@b:x", device: "DEV" }), ..Copy::default() };
        assert_eq!(written(&event, other)["unsigned"], json!({"age": 0}));
    }

    #[test]
    fn state_tells_what_it_replaced() {
        let member = |name: &str| {
            json!({"content": {"membership": "join", "displayname": name}, "origin_server_ts": 1,
                "sender": "@a:x", "state_key": "@a:x", "type": "m.room.member"})
        };
        let first = event("$1", member("one"), None, None);
        let second = event("$2", member("two"), Some(&first), None);
        let json = written(&second, Copy::default());
        assert_eq!(json["state_key"], "@a:x");
        assert_eq!(json["unsigned"]["replaces_state"], "$1");
        assert_eq!(json["unsigned"]["prev_content"]["displayname"], "one");
        let mut stripped = Vec::new();
        second.write_stripped(&mut stripped);
        assert_eq!(
            serde_json::from_slice::<Value>(&stripped).unwrap(),
            json!({"content": {"membership": "join", "displayname": "two"}, "sender": "@a:x",
                "state_key": "@a:x", "type": "m.room.member"})
        );
    }

    #[test]
    fn redacts_stands_in_both_places() {
        for pdu in [
            json!({"content": {"reason": "spam"}, "redacts": "$x", "origin_server_ts": 1, "sender": "@a:x", "type": "m.room.redaction"}),
            json!({"content": {}, "redacts": "$x", "origin_server_ts": 1, "sender": "@a:x", "type": "m.room.redaction"}),
            json!({"content": {"redacts": "$x"}, "origin_server_ts": 1, "sender": "@a:x", "type": "m.room.redaction"}),
        ] {
            let redaction = event("$r", pdu, None, None);
            let json = written(&redaction, Copy::default());
            assert_eq!((&json["redacts"], &json["content"]["redacts"]), (&json!("$x"), &json!("$x")));
            let target = event("$x", message(), None, Some(&redaction));
            assert!(target.redacted);
            assert_eq!(written(&target, Copy::default())["unsigned"]["redacted_because"]["event_id"], "$r");
        }
    }

    #[test]
    fn numbers_are_written_as_json() {
        for number in [0, 7, -7, i64::MAX, i64::MIN] {
            let mut out = Vec::new();
            push_number(&mut out, number);
            assert_eq!(out, number.to_string().into_bytes());
        }
    }
}
