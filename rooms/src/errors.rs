//! What every write to a room can meet. Each operation has its own enum around it.

use hearth_dag::{BuildError, Rejection};
use hearth_store::StoreError;

use crate::policy::{PolicyRefusal, Unsigned};

/// Why nothing was written.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WriteError {
    #[error("there is no such room here")]
    UnknownRoom,
    /// None of our users is joined: a resident server has to be asked.
    #[error("this server is not in the room")]
    NotResident,
    #[error("the room's rules forbid it: {0}")]
    Forbidden(#[from] Rejection),
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The event was made, and is to be shown to the room's policy server first: come again with what that says.
    #[error("the room's policy server has not signed the event")]
    Unsigned(Box<Unsigned>),
    #[error(transparent)]
    Policy(#[from] PolicyRefusal),
    /// Zero bytes count twice in a key of the store, so hardly any event is one of these.
    #[error("the event's type and state key are longer than can be kept")]
    Unstorable,
    /// Others changed the room again and again before we could.
    #[error("the room is too busy")]
    Busy,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl WriteError {
    /// Whether it is about the event itself: it would fail again, whatever happens meanwhile. Where only the commit
    /// grew too large, that is our trouble: what the event brings with it depends on the room.
    pub fn is_final(&self) -> bool {
        use StoreError::{Invalid, TooLarge};
        match self {
            WriteError::Forbidden(_) | WriteError::Build(_) | WriteError::Unstorable => true,
            WriteError::Store(error) => matches!(error, TooLarge { .. } | Invalid(_)),
            WriteError::UnknownRoom
            | WriteError::NotResident
            | WriteError::Unsigned(_)
            | WriteError::Policy(_)
            | WriteError::Busy => false,
        }
    }

    /// Whether it says nothing of other events: what comes after this one can be tried.
    pub fn is_about_one_event(&self) -> bool {
        self.is_final() || matches!(self, WriteError::Store(StoreError::CommitTooLarge { .. }))
    }
}
