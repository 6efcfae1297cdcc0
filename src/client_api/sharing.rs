//! Who is in which room with whom: what chapters about users ask of the rooms.

use std::collections::HashSet;

use hearth_rooms::{Membership, RoomSn, read::Reader};
use hearth_store::StoreError;
use ruma::{RoomId, UserId};

use crate::http::MatrixError;

/// The rooms in which a user is joined.
pub async fn joined_rooms(reader: &Reader, user: &UserId) -> Result<Vec<RoomSn>, StoreError> {
    let memberships = reader.memberships_of(user).await?;
    let joined = memberships.into_iter().filter(|(_, row)| row.value.membership == Membership::Join);
    Ok(joined.map(|(room, _)| room).collect())
}

/// The rooms in which both users are joined.
pub async fn shared_rooms(reader: &Reader, one: &UserId, other: &UserId) -> Result<Vec<RoomSn>, StoreError> {
    let theirs: HashSet<RoomSn> = joined_rooms(reader, other).await?.into_iter().collect();
    if theirs.is_empty() {
        return Ok(Vec::new());
    }
    let mine = joined_rooms(reader, one).await?;
    Ok(mine.into_iter().filter(|room| theirs.contains(room)).collect())
}

/// The room's number, where the user is joined in it.
pub async fn joined_room(reader: &Reader, user: &UserId, room_id: &RoomId) -> Result<RoomSn, MatrixError> {
    if let Some(room) = reader.room_sn(room_id).await? {
        let row = reader.membership_of(user, room).await?;
        if row.is_some_and(|row| row.value.membership == Membership::Join) {
            return Ok(room);
        }
    }
    Err(MatrixError::forbidden("you are not in this room"))
}
