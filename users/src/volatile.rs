//! What changes in memory only, and how its readers are woken.

use ruma::{OwnedRoomId, OwnedUserId};

/// A change that is not in the store: the counters of `Typing` and `Presence` say what is newer than what was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Volatile {
    /// Who types in this room changed.
    Typing(OwnedRoomId),
    /// This user's presence changed.
    Presence(OwnedUserId),
}

/// Changes that a slow reader may be behind; one that is further behind is told so and looks at everything.
pub const VOLATILE_BACKLOG: usize = 1024;
