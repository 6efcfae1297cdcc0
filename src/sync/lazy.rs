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
    devices: Cache<(OwnedUserId, OwnedDeviceId), Arc<Mutex<Sent>>>,
}

#[derive(Default)]
struct Sent {
    token: Option<SyncToken>,
    members: Members,
}

type Members = HashMap<(RoomSn, StateKeySn), EventSn>;

/// What one answer sends to its device, and what the device was sent before.
pub struct Sending {
    device: Arc<Mutex<Sent>>,
    now: Mutex<Members>,
}

impl LazyMembers {
    pub fn new() -> Self {
        Self { devices: Cache::new(DEVICES) }
    }

    /// For an answer to a device that syncs from this token.
    pub fn of(&self, device: &(OwnedUserId, OwnedDeviceId), since: Option<SyncToken>) -> Sending {
        let sent = match self.devices.get(device) {
            Some(sent) => sent,
            None => {
                let sent = Arc::new(Mutex::new(Sent::default()));
                self.devices.insert(device.clone(), sent.clone());
                sent
            }
        };
        let mut state = sent.lock();
        if since.is_none() || state.token != since {
            state.members.clear();
            state.token = since;
        }
        drop(state);
        Sending { device: sent, now: Mutex::default() }
    }
}

impl Sending {
    /// A look begins: what the one before it found is not sent.
    pub fn begin(&self) {
        self.now.lock().clear();
    }

    /// Notes a member event; whether it is news to the device.
    pub fn is_new(&self, room: RoomSn, key: StateKeySn, event: EventSn) -> bool {
        let is_known = self.device.lock().members.get(&(room, key)) == Some(&event);
        !is_known && self.now.lock().insert((room, key), event) != Some(event)
    }

    /// The answer is given, with this token.
    pub fn answered(&self, token: SyncToken) {
        let mut sent = self.device.lock();
        let now = std::mem::take(&mut *self.now.lock());
        if sent.members.len() + now.len() > MEMBERS {
            sent.members.clear();
        }
        sent.members.extend(now);
        sent.token = Some(token);
    }
}
