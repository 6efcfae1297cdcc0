//! A worker for each room in which events wait: it decides them and fetches what they lack, until nothing waits any more.
//! * There is none for a room in which nothing waits. A few decide at a time, and a few fetch; the others wait for their
//!   turn. Of the places of those who fetch each server has a share, as it made us need one.
//! * Whatever comes for the room is looked at soon, while it is fetched for what came before.
//! * What waits stays in its room's queue, on the disk, for as long as it takes. When it is given up is said in
//!   `efforts.rs`.

use std::{
    collections::HashMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use ruma::{OwnedRoomId, OwnedServerName, RoomId};
use tokio::sync::{Notify, Semaphore};

use super::{
    Inbound, Inner,
    rounds::{Step, Work},
};
use crate::shares::Shares;

/// Turns of fetching at a time, for a room and a server that handed us events of it.
pub const FETCHING_AT_ONCE: usize = 16;
/// Rooms whose queues are gone through at a time.
const DECIDING_AT_ONCE: usize = 16;
/// Whole states that are fetched at a time, as they may be very large; of one server one.
const STATES_AT_ONCE: usize = 2;
/// Rooms that have a worker.
const WORKERS_MAX: usize = 10_000;
/// However often something comes, steps in vain are so far apart.
pub(super) const PAUSE_AT_LEAST: Duration = Duration::from_millis(500);

/// All workers.
pub(super) struct Workers {
    rooms: Mutex<HashMap<OwnedRoomId, Arc<Bell>>>,
    /// Those who decide: they wait for nobody but the store.
    pub(super) deciding: Semaphore,
    /// Those who fetch, by the servers because of which they do.
    pub(super) places: Shares<OwnedServerName>,
    /// Those who fetch a whole state, by the servers that are asked for it.
    pub(super) states: Shares<OwnedServerName>,
}

/// Tells a worker that there is something new for its room.
#[derive(Default)]
pub(super) struct Bell {
    rung: AtomicBool,
    notify: Notify,
}

impl Bell {
    /// There is something to look at.
    pub(super) fn ring(&self) {
        self.rung.store(true, Ordering::SeqCst);
        self.notify.notify_one();
    }

    /// Waits until it rings; at once if it has since the last time.
    pub(super) async fn rings(&self) {
        self.notify.notified().await;
    }
}

impl Workers {
    pub(super) fn new() -> Self {
        Self {
            rooms: Mutex::default(),
            deciding: Semaphore::new(DECIDING_AT_ONCE),
            places: Shares::new(FETCHING_AT_ONCE),
            states: Shares::new(STATES_AT_ONCE),
        }
    }
}

impl Inbound {
    /// Something waits in a room, or what others wait for may have come.
    pub(super) fn wake(&self, room: &RoomId) {
        let mut rooms = self.0.workers.rooms.lock();
        if let Some(bell) = rooms.get(room) {
            bell.ring();
            return;
        }
        if rooms.len() >= WORKERS_MAX {
            tracing::warn!(room_id = %room, "events wait in too many rooms; those of this one wait for others to come");
            return;
        }
        let bell = Arc::new(Bell::default());
        rooms.insert(room.to_owned(), bell.clone());
        let worker = Worker { inner: Arc::downgrade(&self.0), room: room.to_owned(), bell };
        tokio::spawn(async move { worker.work().await });
    }

    /// Whether a room has a worker.
    pub(super) fn is_worked_on(&self, room: &RoomId) -> bool {
        self.0.workers.rooms.lock().contains_key(room)
    }

    /// Says that nothing is left to do, unless the bell rang meanwhile.
    fn may_leave(&self, room: &RoomId, bell: &Bell) -> bool {
        let mut rooms = self.0.workers.rooms.lock();
        if bell.rung.load(Ordering::SeqCst) {
            return false;
        }
        rooms.remove(room);
        true
    }
}

/// A worker. However it ends, the room has it no more.
struct Worker {
    inner: Weak<Inner>,
    room: OwnedRoomId,
    bell: Arc<Bell>,
}

impl Worker {
    async fn work(&self) {
        let mut work = Work::new(self.room.clone(), self.bell.clone());
        while let Some(inner) = self.inner.upgrade() {
            let inbound = Inbound(inner);
            self.bell.rung.store(false, Ordering::SeqCst);
            let step = inbound.step(&mut work).await.unwrap_or_else(|error| {
                tracing::warn!(room_id = %self.room, %error, "the events that wait in a room cannot be decided");
                Step::Wait(work.next_try())
            });
            match step {
                Step::Empty if inbound.may_leave(&self.room, &self.bell) => return,
                Step::Empty => work = Work::new(self.room.clone(), self.bell.clone()),
                Step::Again => {}
                Step::Wait(until) => {
                    drop(inbound);
                    work.wait(until).await;
                }
            }
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let Some(inner) = self.inner.upgrade() else { return };
        let mut rooms = inner.workers.rooms.lock();
        if rooms.get(&self.room).is_some_and(|bell| Arc::ptr_eq(bell, &self.bell)) {
            rooms.remove(&self.room);
        }
    }
}
