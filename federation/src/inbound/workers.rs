//! A worker for each room in which events wait: it fetches what they lack, until nothing waits any more.
//! * There is none for a room in which nothing waits. A few fetch at a time, the others wait for their turn.
//! * A round that brings nothing is followed by a pause, longer each time; whatever comes for the room ends it.
//! * However much a peer gives, a room is worked on for so many rounds and tries only; then what waits is given up. It
//!   is asked for again when another event names it.

use std::{
    collections::HashMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use hearth_rooms::{Received, Rooms, WriteError};
use parking_lot::Mutex;
use ruma::{EventId, OwnedEventId, OwnedRoomId, RoomId};
use tokio::{
    sync::{Notify, Semaphore},
    time::Instant,
};

use super::{Inbound, Inner};

/// Rooms that are fetched for at a time.
const FETCHING_AT_ONCE: usize = 16;
/// How long a round may take. What came until then stays.
const ROUND_TIME: Duration = Duration::from_secs(180);
/// Whole states that are fetched at a time, as they may be very large.
const STATES_AT_ONCE: usize = 2;
/// Rooms that have a worker.
const WORKERS_MAX: usize = 10_000;
/// Rounds in which something came, without the queue ever being empty.
pub const ROUNDS_MAX: u32 = 20;
/// Rounds in which nothing came, one after another.
pub const TRIES_MAX: u32 = 4;
/// However often something comes meanwhile, what has been waited for in vain for so long is given up.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(15 * 60);
/// How long it is waited after the first round without anything; four times as long after each further one.
const PAUSE: Duration = Duration::from_secs(10);
/// However often something comes, rounds in vain are so far apart.
const PAUSE_AT_LEAST: Duration = Duration::from_millis(500);
/// After so many rounds it is no longer tried to close a gap event by event: the state behind it is asked for.
const DEEP_AFTER: u32 = 1;

/// All workers.
pub(super) struct Workers {
    rooms: Mutex<HashMap<OwnedRoomId, Arc<Bell>>>,
    places: Semaphore,
    pub(super) states: Semaphore,
}

/// Tells a worker that there is something new for its room.
#[derive(Default)]
struct Bell {
    rung: AtomicBool,
    notify: Notify,
}

impl Workers {
    pub(super) fn new() -> Self {
        Self {
            rooms: Mutex::default(),
            places: Semaphore::new(FETCHING_AT_ONCE),
            states: Semaphore::new(STATES_AT_ONCE),
        }
    }
}

/// What a round came to.
pub(super) enum Round {
    /// Nothing waits in the room.
    Empty,
    /// Something came or was decided.
    Progress,
    /// Nothing did.
    Stuck,
}

impl Inbound {
    /// Something waits in a room, or what others wait for may have come.
    pub(super) fn wake(&self, room: &RoomId) {
        let mut rooms = self.0.workers.rooms.lock();
        if let Some(bell) = rooms.get(room) {
            bell.rung.store(true, Ordering::SeqCst);
            bell.notify.notify_one();
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

    /// Decides what can be decided, joins forks, and fetches what is lacking.
    async fn round(&self, room: &RoomId, deep: bool) -> Result<Round, WriteError> {
        let rooms = &self.0.rooms;
        let mut decided = rooms.receive_queued(room).await?;
        if let Some(judged) = self.judge_queued(room, &decided).await? {
            decided = judged.receive_queued(room).await?;
        }
        if let Some(info) = rooms.room(room).await?
            && self.has_many_forks(&info).await?
        {
            let merge = |rooms: Rooms| async move { rooms.merge_forks(room).await };
            match self.0.policy.signing(merge).await {
                Ok(_) => {}
                Err(WriteError::NotResident | WriteError::Forbidden(_) | WriteError::Policy(_)) => {}
                Err(error) => return Err(error),
            }
        }
        let wanted = rooms.wanted(room).await?;
        if wanted.is_empty() {
            let waiting = rooms.queued_events(room).await?;
            return Ok(match (waiting.is_empty(), decided.is_empty()) {
                (true, _) => Round::Empty,
                (false, false) => Round::Progress,
                (false, true) => Round::Stuck,
            });
        }
        let came = self.fetch(room, &wanted, deep).await?;
        Ok(if came || !decided.is_empty() { Round::Progress } else { Round::Stuck })
    }

    /// If events of a queue wait only for the room's policy server, what that says of all that may come in now.
    async fn judge_queued(
        &self,
        room: &RoomId,
        decided: &[(OwnedEventId, Received)],
    ) -> Result<Option<Rooms>, WriteError> {
        let needs = decided.iter().find_map(|(_, received)| match received {
            Received::NeedsPolicySignature(unsigned) => Some(unsigned),
            _ => None,
        });
        let Some(first) = needs else { return Ok(None) };
        let wanted = self.0.rooms.wanted(room).await?;
        let waits = |event: &EventId| wanted.iter().any(|wanted| wanted.by.iter().any(|by| by == event));
        let queued = self.0.rooms.queued_events(room).await?;
        let ready = queued.iter().map(|(pdu, _)| pdu.pdu()).filter(|event| !waits(event.event_id()));
        let verdicts = self.0.policy.judge(first, ready).await;
        Ok(Some(self.0.rooms.with_verdicts(verdicts)))
    }

    async fn give_up(&self, room: &RoomId) -> Result<(), WriteError> {
        let waiting = self.0.rooms.queued_events(room).await?;
        tracing::info!(room_id = %room, events = waiting.len(), "what these events rest on cannot be had");
        for (pdu, _) in waiting {
            self.0.rooms.unqueue(room, pdu.pdu().event_id()).await?;
        }
        Ok(())
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
        let (mut rounds, mut tries) = (0, 0);
        let mut stuck_since: Option<Instant> = None;
        while let Some(inner) = self.inner.upgrade() {
            let inbound = Inbound(inner);
            let round = {
                let _place = inbound.0.workers.places.acquire().await;
                self.bell.rung.store(false, Ordering::SeqCst);
                let round = inbound.round(&self.room, rounds + tries > DEEP_AFTER);
                tokio::time::timeout(ROUND_TIME, round).await.unwrap_or(Ok(Round::Stuck))
            };
            match round {
                Ok(Round::Empty) => {
                    if inbound.may_leave(&self.room, &self.bell) {
                        return;
                    }
                    (rounds, tries, stuck_since) = (0, 0, None);
                    continue;
                }
                Ok(Round::Progress) => (rounds, tries, stuck_since) = (rounds + 1, 0, None),
                Ok(Round::Stuck) => tries += 1,
                Err(error) => {
                    tracing::warn!(room_id = %self.room, %error, "fetching for a room failed");
                    tries += 1;
                }
            }
            if tries > 0 {
                stuck_since.get_or_insert_with(Instant::now);
            }
            let is_stuck = stuck_since.is_some_and(|since| since.elapsed() > GIVEN_UP_AFTER);
            if rounds > ROUNDS_MAX || tries > TRIES_MAX || is_stuck {
                if let Err(error) = inbound.give_up(&self.room).await {
                    tracing::warn!(room_id = %self.room, %error, "what waits in a room could not be given up");
                }
                if inbound.may_leave(&self.room, &self.bell) {
                    return;
                }
                (rounds, tries, stuck_since) = (0, 0, None);
            }
            drop(inbound);
            if tries > 0 && self.pause(tries).await {
                // It was no wait for the servers that failed.
                tries -= 1;
            }
        }
    }

    /// Waits after a round in vain. Says whether something came before the time was over.
    async fn pause(&self, tries: u32) -> bool {
        tokio::time::sleep(PAUSE_AT_LEAST).await;
        let pause = PAUSE.saturating_mul(4u32.saturating_pow(tries - 1));
        tokio::time::timeout(pause, self.bell.notify.notified()).await.is_ok()
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
