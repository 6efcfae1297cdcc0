//! What every question about a room is asked first: do we know the room, and does its ACL let the server ask?

use std::sync::Arc;

use hearth_dag::Pdu;
use hearth_rooms::{RoomInfo, Rooms};
use ruma::{RoomId, ServerName};

use crate::http::MatrixError;

/// The room that a server asks about.
pub(super) async fn room_for(
    rooms: &Rooms,
    room: &RoomId,
    origin: &ServerName,
) -> Result<Arc<RoomInfo>, MatrixError> {
    let unknown = || MatrixError::not_found("this server is not in that room");
    let room = rooms.room(room).await?.ok_or_else(unknown)?;
    check_acl(rooms, &room, origin).await?;
    Ok(room)
}

/// Refuses servers that the room keeps out.
pub(super) async fn check_acl(
    rooms: &Rooms,
    room: &RoomInfo,
    origin: &ServerName,
) -> Result<(), MatrixError> {
    match rooms.acl(room).await?.allows(origin) {
        true => Ok(()),
        false => Err(MatrixError::forbidden("the room's server ACL keeps that server out")),
    }
}

/// Events as a JSON list. They are JSON already, so nothing is read or written anew.
pub(super) fn list_of(pdus: &[Pdu]) -> String {
    let mut list = String::with_capacity(2 + pdus.iter().map(|pdu| pdu.json().len() + 1).sum::<usize>());
    list.push('[');
    for (place, pdu) in pdus.iter().enumerate() {
        if place > 0 {
            list.push(',');
        }
        list.push_str(pdu.json());
    }
    list.push(']');
    list
}
