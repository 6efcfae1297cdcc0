//! Writing answers as bytes: events are copied out of what was serialised once.

use std::collections::HashMap;

use bytes::Bytes;
use hearth_rooms::{
    EventSn, RoomSn,
    read::{Bundles, ClientEvent, Copy, Device, EventFormat, FilterDefinition, Reader, RoomEvent, push_str},
};
use hearth_store::StoreError;

/// How events are written for one request.
#[derive(Clone, Copy)]
pub struct Style<'a> {
    pub filter: &'a FilterDefinition,
    pub device: Device<'a>,
    pub now_ms: u64,
}

/// An event with what only this receiver is told of it.
#[derive(Clone, Copy)]
pub struct Written<'a> {
    pub event: &'a RoomEvent,
    pub membership: Option<&'static str>,
}

impl<'a> Style<'a> {
    /// The receiver's copy of an event of the room whose section is written.
    pub fn copy(&self) -> Copy<'a> {
        Copy { now_ms: self.now_ms, device: Some(self.device), ..Copy::default() }
    }

    /// Writes `{"events":[…]}`.
    pub async fn events(
        &self,
        reader: &Reader,
        room: RoomSn,
        events: impl Iterator<Item = Written<'_>> + Clone,
        bundles: &Bundles,
        out: &mut Vec<u8>,
    ) -> Result<(), StoreError> {
        let mut pdus: HashMap<EventSn, Bytes> = HashMap::new();
        if self.filter.event_format == EventFormat::Federation {
            let wanted: Vec<EventSn> = events.clone().map(|written| written.event.sn).collect();
            pdus = reader.pdus(room, &wanted).await?;
        }
        out.extend_from_slice(b"{\"events\":[");
        let mut list = List::new(out);
        for Written { event, membership } in events {
            let out = list.next();
            let bundle = bundles.get(&event.sn).map(Vec::as_slice);
            if let Some(pdu) = pdus.get(&event.sn) {
                out.extend_from_slice(pdu);
                continue;
            }
            self.event(&event.client, Copy { membership, relations: bundle, ..self.copy() }, out);
        }
        out.extend_from_slice(b"]}");
        Ok(())
    }

    /// Writes an event with the fields that the receiver wants.
    pub fn event(&self, event: &ClientEvent, copy: Copy<'_>, out: &mut Vec<u8>) {
        let start = out.len();
        event.write(out, copy);
        if let Some(fields) = self.filter.fields() {
            let cut = fields.cut(&out[start..]);
            out.truncate(start);
            out.extend_from_slice(&cut);
        }
    }
}

/// Puts commas between what is written.
pub struct List<'a> {
    out: &'a mut Vec<u8>,
    empty: bool,
}

impl<'a> List<'a> {
    pub fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out, empty: true }
    }

    /// Goes on with a list that may have elements already.
    pub fn going_on(out: &'a mut Vec<u8>) -> Self {
        let empty = out.is_empty();
        Self { out, empty }
    }

    /// Where the next element is written.
    pub fn next(&mut self) -> &mut Vec<u8> {
        if !std::mem::take(&mut self.empty) {
            self.out.push(b',');
        }
        self.out
    }

    /// Writes the name of the next member of an object.
    pub fn key(&mut self, name: &str) -> &mut Vec<u8> {
        let out = self.next();
        push_str(out, name);
        out.push(b':');
        out
    }
}

/// Writes `{"events":[…]}`; whether there was any.
pub fn push_events(out: &mut Vec<u8>, write: impl FnOnce(&mut List<'_>)) -> bool {
    out.extend_from_slice(b"{\"events\":[");
    let empty = out.len();
    write(&mut List::new(out));
    let any = out.len() > empty;
    out.extend_from_slice(b"]}");
    any
}

/// Writes `{"type":…,"content":…}`.
pub fn push_content_event(out: &mut Vec<u8>, kind: &str, content: &str) {
    out.extend_from_slice(b"{\"type\":");
    push_str(out, kind);
    out.extend_from_slice(b",\"content\":");
    out.extend_from_slice(content.as_bytes());
    out.push(b'}');
}
