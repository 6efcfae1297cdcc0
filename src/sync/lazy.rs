//! Which member events a device has been sent, so that lazily loaded members come once.
//! * What is remembered holds for the token that was answered last: a device that syncs from another one (an answer
//!   was lost, a client starts anew) is sent its members again.

use std::{collections::HashMap, sync::Arc};

use hearth_rooms::{EventSn, RoomSn, StateKeySn, read::SyncToken};
use parking_lot::Mutex;
use quick_cache::sync::Cache;
use ruma::{OwnedDeviceId, OwnedUserId};

/// Devices that are remembered.
const DEVICES: usize = 10_000;
/// Members remembered for one device; beyond it all are forgotten and sent again.
const MEMBERS: usize = 5_000;

/// What all devices were sent.
pub struct LazyMembers {
    devices: Cache<(OwnedUserId, OwnedDeviceId), Arc<SentMembers>>,
}

/// What one device was sent.
#[derive(Default)]
pub struct SentMembers {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    token: Option<SyncToken>,
    members: HashMap<(RoomSn, StateKeySn), EventSn>,
}

impl LazyMembers {
    pub fn new() -> Self {
        Self { devices: Cache::new(DEVICES) }
    }

    /// What the device was sent when it syncs from this token.
    pub fn of(&self, device: &(OwnedUserId, OwnedDeviceId), since: Option<SyncToken>) -> Arc<SentMembers> {
        let sent = match self.devices.get(device) {
            Some(sent) => sent,
            None => {
                let sent = Arc::new(SentMembers::default());
                self.devices.insert(device.clone(), sent.clone());
                sent
            }
        };
        let mut state = sent.state.lock();
        if since.is_none() || state.token != since {
            state.members.clear();
        }
        drop(state);
        sent
    }
}

impl SentMembers {
    /// Notes a member event; whether it is news to the device.
    pub fn is_new(&self, room: RoomSn, key: StateKeySn, event: EventSn) -> bool {
        let mut state = self.state.lock();
        if state.members.len() >= MEMBERS {
            state.members.clear();
        }
        state.members.insert((room, key), event) != Some(event)
    }

    /// The token that the answer carries.
    pub fn answered(&self, token: SyncToken) {
        self.state.lock().token = Some(token);
    }
}
