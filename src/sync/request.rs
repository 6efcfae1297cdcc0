//! What a client asks of `/sync`.

use std::{sync::Arc, time::Duration};

use hearth_rooms::read::{FilterDefinition, SyncToken};
use ruma::{OwnedDeviceId, OwnedUserId, presence::PresenceState};

/// A sync that waits for longer is answered empty-handed.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(300);

/// A request of `/sync`, read and checked.
#[derive(Clone, Debug)]
pub struct SyncRequest {
    pub user: OwnedUserId,
    pub device: OwnedDeviceId,
    pub filter: Arc<FilterDefinition>,
    pub since: Option<SyncToken>,
    pub full_state: bool,
    pub set_presence: PresenceState,
    pub timeout: Duration,
    pub state: StateWanted,
    /// Messages to the device are told, and those that the token names were received. Otherwise they wait on.
    pub to_device: bool,
}

/// Which state of a room goes with its timeline, and under which name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateWanted {
    /// `state`: as it was before the timeline.
    Before,
    /// `state_after`: as it is behind the timeline.
    After,
    /// The same, by the name that it had as a proposal.
    AfterUnstable,
}

impl StateWanted {
    pub fn is_after(self) -> bool {
        self != Self::Before
    }

    /// The field's name.
    pub fn key(self) -> &'static str {
        match self {
            Self::Before => "state",
            Self::After => "state_after",
            Self::AfterUnstable => "org.matrix.msc4222.state_after",
        }
    }
}
