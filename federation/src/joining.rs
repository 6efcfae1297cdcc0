//! Rooms that users of ours are joining through other servers at the moment. What others already send us for such a room
//! waits until that has ended, one way or the other.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use ruma::{OwnedRoomId, RoomId};
use tokio::sync::watch;

/// Who joins which room. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Joining(Arc<Mutex<HashMap<OwnedRoomId, watch::Sender<()>>>>);

/// A join that is under way, until this is dropped. Those of one room go one after another.
#[derive(Debug)]
pub(crate) struct UnderWay {
    of: Joining,
    room: OwnedRoomId,
}

impl Joining {
    /// A join begins.
    pub(crate) fn begin(&self, room: &RoomId) -> UnderWay {
        self.0.lock().insert(room.to_owned(), watch::Sender::new(()));
        UnderWay { of: self.clone(), room: room.to_owned() }
    }

    /// Whether a room is being joined: what is returned changes no more when that has ended.
    pub(crate) fn under_way(&self, room: &RoomId) -> Option<watch::Receiver<()>> {
        self.0.lock().get(room).map(watch::Sender::subscribe)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.of.0.lock().remove(&self.room);
    }
}
