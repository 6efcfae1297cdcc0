//! What the chapters that read rooms share: who may read, and events as JSON.
//! * A room that the asker may not read and one that does not exist are refused alike.
//! * Events are written by concatenating what is cached; nothing is parsed on the way out.

use std::sync::Arc;

use hearth_rooms::read::{Bundles, Copy, Device, Reader, RoomEvent, Shown, TimelineToken, Viewer};
use hearth_users::Users;
use ruma::RoomId;

use crate::{
    clock,
    http::{LocalUser, MatrixError},
};

/// The asker in a room that is held here, without any right checked.
pub async fn viewer(
    reader: &Reader,
    users: &Users,
    user: &LocalUser,
    room_id: &RoomId,
) -> Result<Option<Viewer>, MatrixError> {
    let Some(room) = reader.room_sn(room_id).await? else { return Ok(None) };
    let ignored = users.ignored_users(&user.user_id).await?;
    Ok(Some(reader.viewer(room, &user.user_id, ignored).await?))
}

/// The asker in a room of which they may read something: they are or were in it, or everybody may.
pub async fn reading_viewer(
    reader: &Reader,
    users: &Users,
    user: &LocalUser,
    room_id: &RoomId,
) -> Result<Viewer, MatrixError> {
    let viewer = viewer(reader, users, user, room_id).await?.ok_or_else(not_in_room)?;
    if viewer.is_joined() || reader.visible_snapshot(&viewer).await?.is_some() {
        return Ok(viewer);
    }
    Err(not_in_room())
}

/// What those get who are not in the room.
pub fn not_in_room() -> MatrixError {
    MatrixError::forbidden("you are not in this room")
}

/// What those get who ask for an event that is not there or not for them.
pub fn no_such_event() -> MatrixError {
    MatrixError::not_found("there is no such event")
}

/// A token that a client got from us.
pub fn token(text: &str) -> Result<TimelineToken, MatrixError> {
    text.parse().map_err(|_| MatrixError::invalid_param("not a pagination token of this server"))
}

/// A token that may be missing.
pub fn optional_token(text: Option<&str>) -> Result<Option<TimelineToken>, MatrixError> {
    text.filter(|text| !text.is_empty()).map(token).transpose()
}

/// Writes events for one device.
#[derive(Clone, Copy)]
pub struct EventWriter<'a> {
    copy: Copy<'a>,
}

impl<'a> EventWriter<'a> {
    /// For the asker's device, with the room's id in each event.
    pub fn new(user: &'a LocalUser, room_id: &'a RoomId) -> Self {
        let device = Device { user: user.user_id.as_str(), device: user.device_id.as_str() };
        let room_id = Some(room_id.as_str());
        Self { copy: Copy { room_id, now_ms: clock::now_ms(), device: Some(device), ..Copy::default() } }
    }

    /// What is bundled with these events.
    pub async fn bundles<'e>(
        &self,
        reader: &Reader,
        viewer: &Viewer,
        events: impl IntoIterator<Item = &'e Shown>,
    ) -> Result<Bundles, MatrixError> {
        let events: Vec<Arc<RoomEvent>> = events.into_iter().map(|shown| shown.event.clone()).collect();
        Ok(reader.bundles(viewer, &events, self.copy).await?)
    }

    /// Writes one event of the timeline.
    pub fn shown(&self, shown: &Shown, bundles: &Bundles, out: &mut Vec<u8>) {
        let relations = bundles.get(&shown.event.sn).map(Vec::as_slice);
        shown.event.client.write(out, Copy { membership: Some(shown.membership), relations, ..self.copy });
    }

    /// Writes a list of events of the timeline.
    pub fn list<'e>(
        &self,
        events: impl IntoIterator<Item = &'e Shown>,
        bundles: &Bundles,
        out: &mut Vec<u8>,
    ) {
        array(events, out, |shown, out| self.shown(shown, bundles, out));
    }

    /// Writes one event by itself.
    pub fn event(&self, event: &RoomEvent, out: &mut Vec<u8>) {
        event.client.write(out, self.copy);
    }

    /// Writes a list of state events.
    pub fn state<'e>(&self, events: impl IntoIterator<Item = &'e Arc<RoomEvent>>, out: &mut Vec<u8>) {
        array(events, out, |event, out| self.event(event, out));
    }

    /// How events are written, for those who write them elsewhere.
    pub fn copy(&self) -> Copy<'a> {
        self.copy
    }
}

/// Writes a JSON array.
pub fn array<T>(
    items: impl IntoIterator<Item = T>,
    out: &mut Vec<u8>,
    mut write: impl FnMut(T, &mut Vec<u8>),
) {
    out.push(b'[');
    for (place, item) in items.into_iter().enumerate() {
        if place > 0 {
            out.push(b',');
        }
        write(item, out);
    }
    out.push(b']');
}

/// Writes `,"name":"text"`.
pub fn push_field(out: &mut Vec<u8>, name: &str, text: &str) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
    hearth_rooms::read::push_str(out, text);
}
