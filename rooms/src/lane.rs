//! A lane per room: its events are decided one at a time, on a head that may be ahead of the disk.
//! * Whoever holds the lane decides, submits one commit, and lets the next one in before that commit is durable;
//!   it is answered after.
//! * The lane is for speed; each commit's precondition on the head's version is for truth, also between nodes. If one
//!   fails, all that were built on it fail, and each decides again.
//! * A head that was lost (refused commit, cancelled request, failed read) is read again when all commits are done.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use hearth_store::{Commit, CommitError, Committed, Pending, StoreError};
use parking_lot::Mutex;
use ruma::EventId;
use tokio::sync::{MutexGuard, watch};

use crate::errors::WriteError;
use crate::events::{Events, RoomInfo};
use crate::head::Head;
use crate::ids::{EventKey, EventSn, RoomSn};
use crate::rooms::Rooms;
use crate::tables::{GAPS, MISSING, REDACTIONS_WAITING, RELATIONS_WAITING};
use crate::turn::Turn;
use crate::view::Overlay;

/// Lanes that are kept, with their heads. More only while they are in use.
const LANES_MAX: usize = 1024;
/// How often a decision is made again because of a conflict.
const TRIES: usize = 8;

pub(crate) struct Lane {
    head: tokio::sync::Mutex<Option<Head>>,
    submitted: AtomicU64,
    /// The last submitted commit whose rows may be looked for by range, see [`Waits`].
    ranged: AtomicU64,
    done: watch::Sender<u64>,
    /// A commit was refused: the head in memory is not what the store has.
    broken: AtomicBool,
    used: AtomicBool,
}

impl Lane {
    fn new(head: Option<Head>) -> Arc<Self> {
        Arc::new(Lane {
            head: tokio::sync::Mutex::new(head),
            submitted: AtomicU64::new(0),
            ranged: AtomicU64::new(0),
            done: watch::Sender::new(0),
            broken: AtomicBool::new(false),
            used: AtomicBool::new(true),
        })
    }

    /// Waits until all that was submitted is durable or refused.
    pub(crate) async fn settled(&self) {
        self.reached(self.submitted.load(Ordering::SeqCst)).await;
    }

    async fn reached(&self, goal: u64) {
        // The sender lives as long as this lane.
        let _ = self.done.subscribe().wait_for(|done| *done >= goal).await;
    }

    fn is_idle(&self) -> bool {
        *self.done.borrow() >= self.submitted.load(Ordering::SeqCst)
    }
}

/// All lanes.
#[derive(Default)]
pub(crate) struct Lanes {
    lanes: Mutex<HashMap<RoomSn, Arc<Lane>>>,
}

impl Lanes {
    fn of(&self, room: RoomSn) -> Arc<Lane> {
        let mut lanes = self.lanes.lock();
        if let Some(lane) = lanes.get(&room) {
            lane.used.store(true, Ordering::Relaxed);
            return lane.clone();
        }
        self.make_space(&mut lanes);
        lanes.entry(room).or_insert_with(|| Lane::new(None)).clone()
    }

    pub(crate) fn add(&self, head: Head) -> Arc<Lane> {
        let mut lanes = self.lanes.lock();
        self.make_space(&mut lanes);
        let room = head.room.sn;
        let lane = Lane::new(Some(head));
        lanes.insert(room, lane.clone());
        lane
    }

    /// Drops lanes that nobody uses and that were not used since the last time.
    fn make_space(&self, lanes: &mut HashMap<RoomSn, Arc<Lane>>) {
        if lanes.len() < LANES_MAX {
            return;
        }
        lanes.retain(|_, lane| {
            Arc::strong_count(lane) > 1 || !lane.is_idle() || lane.used.swap(false, Ordering::Relaxed)
        });
    }
}

/// What a lane decides: an operation with all that it needs.
///
/// Its future is boxed, and so are the two of [`Rooms::decide`] around it: an async function is compiled where it is
/// called, so that without them every package above, and every test, would compile the whole of this one again.
#[async_trait]
pub(crate) trait Act: Sync {
    type Output: Send;
    type Error: From<WriteError> + Send;

    /// Decides on the turn's head. Writes nothing: no commit. Before its first write it may refuse; the head stays.
    async fn decide(&self, turn: &mut Turn) -> Result<Self::Output, Self::Error>;

    /// Whether it also runs where we are not resident.
    fn anywhere(&self) -> bool {
        false
    }

    /// What of the room has to be in the store before it decides.
    fn waits(&self) -> Waits {
        Waits::Never
    }

    /// The one event whose rows it looks for by range, if that is all: then it waits only while such rows are on their
    /// way.
    fn looks_for(&self) -> Option<&EventId> {
        None
    }
}

/// Rows are looked up by key also while they are on their way; a range shows only what is in the store.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waits {
    Never,
    /// It looks by range for rows that only others who do so write.
    ForItsKind,
    /// It looks by range for rows that everybody writes.
    ForAll,
}

/// A decision that is durable.
pub(crate) struct Done<T> {
    pub(crate) output: T,
    /// None if nothing had to be written.
    pub(crate) committed: Option<Committed>,
}

/// A lane that is held, and the turn in it.
struct Open<'a> {
    lane: &'a Arc<Lane>,
    held: MutexGuard<'a, Option<Head>>,
    turn: Turn,
    waits: Waits,
}

/// How a turn ended that was not refused.
enum Ended {
    Durable(Option<Committed>),
    /// Another writer was first, or a commit before it failed.
    Again,
}

impl Rooms {
    /// Lets `act` decide in the room's lane, until its commit is durable or it refuses.
    pub(crate) async fn decide<A: Act>(
        &self,
        room: &Arc<RoomInfo>,
        act: &A,
        also: &Commit,
    ) -> Result<Done<A::Output>, A::Error> {
        let lane = self.lanes().of(room.sn);
        // An event that was signed elsewhere may go in as one that is received.
        let (waits, looks_for) = match (act.waits(), self.verdicts()) {
            (Waits::Never, Some(verdicts)) => (Waits::ForItsKind, verdicts.only_one()),
            (waits, _) => (waits, act.looks_for()),
        };
        for _ in 0..TRIES {
            let Some(mut open) = self.begin(&lane, room, act.anywhere(), waits, looks_for).await? else {
                continue;
            };
            let output = match act.decide(&mut open.turn).await {
                Ok(output) => output,
                Err(refusal) => {
                    if !open.turn.has_written() {
                        *open.held = Some(open.turn.head);
                    }
                    return Err(refusal);
                }
            };
            match open.turn.write_records_ahead().await {
                Ok(()) => {}
                Err(CommitError::Conflict) => continue,
                Err(CommitError::Store(error)) => return Err(WriteError::from(error).into()),
            }
            if let Ended::Durable(committed) = self.end(open, also).await? {
                return Ok(Done { output, committed });
            }
        }
        Err(WriteError::Busy.into())
    }

    /// Takes the lane and its head. None if a commit failed that it had to wait for.
    fn begin<'a>(
        &'a self,
        lane: &'a Arc<Lane>,
        room: &'a Arc<RoomInfo>,
        anywhere: bool,
        waits: Waits,
        looks_for: Option<&'a EventId>,
    ) -> BoxFuture<'a, Result<Option<Open<'a>>, WriteError>> {
        Box::pin(async move {
            let mut held = lane.head.lock().await;
            if lane.broken.swap(false, Ordering::SeqCst) {
                *held = None;
            }
            // Taken out: whatever ends this turn early leaves none behind.
            let head = match held.take() {
                Some(head) => head,
                None => {
                    lane.settled().await;
                    lane.broken.store(false, Ordering::SeqCst);
                    let head = Head::load(self.store(), self.events(), room.clone()).await;
                    head?.ok_or(WriteError::UnknownRoom)?
                }
            };
            if !anywhere && !head.is_resident() {
                *held = Some(head);
                return Err(WriteError::NotResident);
            }
            let is_alone = looks_for.is_some_and(|event| !self.is_looked_for(room.sn, event));
            if waits != Waits::Never && !is_alone {
                let goal = match waits {
                    Waits::ForAll => &lane.submitted,
                    Waits::ForItsKind | Waits::Never => &lane.ranged,
                };
                lane.reached(goal.load(Ordering::SeqCst)).await;
                if lane.broken.load(Ordering::SeqCst) {
                    return Ok(None);
                }
            }
            Ok(Some(Open { lane, held, turn: Turn::new(self.clone(), head), waits }))
        })
    }

    /// Submits what the turn decided, lets the next one into the lane, and waits for the disk.
    fn end<'a>(&'a self, open: Open<'a>, also: &'a Commit) -> BoxFuture<'a, Result<Ended, WriteError>> {
        Box::pin(async move {
            let Open { lane, mut held, turn, waits } = open;
            let ended = if turn.has_written() {
                let (head, settling) = self.submit(turn, also.clone(), lane);
                if waits != Waits::Never {
                    lane.ranged.store(lane.submitted.load(Ordering::SeqCst), Ordering::SeqCst);
                }
                *held = Some(head);
                drop(held);
                settling.await_done().await
            } else {
                *held = Some(turn.head);
                drop(held);
                // What it saw may not be durable yet.
                lane.settled().await;
                if lane.broken.load(Ordering::SeqCst) {
                    return Ok(Ended::Again);
                }
                if also.is_empty() {
                    return Ok(Ended::Durable(None));
                }
                self.store().commit(also.clone()).await
            };
            match ended {
                Ok(committed) => Ok(Ended::Durable(Some(committed))),
                Err(CommitError::Conflict) => Ok(Ended::Again),
                Err(CommitError::Store(error)) => Err(error.into()),
            }
        })
    }

    /// Makes a new room of a turn that nobody else knows of.
    pub(crate) async fn found(&self, turn: Turn, also: Commit) -> Result<Committed, CommitError> {
        let room = turn.head.room.sn;
        let lane = Lane::new(None);
        let (head, settling) = self.submit(turn, also, &lane);
        let committed = settling.await_done().await?;
        drop(lane);
        debug_assert_eq!(head.room.sn, room);
        self.lanes().add(head);
        Ok(committed)
    }

    /// Whether rows are on their way that somebody finds by range who decides about this event: what waits for it, and
    /// the room's gaps.
    fn is_looked_for(&self, room: RoomSn, event: &EventId) -> bool {
        let key = (room, EventKey::new(event));
        let overlay = self.overlay();
        overlay.has_any(&MISSING.prefix(&key))
            || overlay.has_any(&REDACTIONS_WAITING.prefix(&key))
            || overlay.has_any(&RELATIONS_WAITING.prefix(&key))
            || overlay.has_any(&GAPS.prefix(&(room,)))
    }

    fn submit(&self, turn: Turn, also: Commit, lane: &Arc<Lane>) -> (Head, Settling) {
        let changed = turn.changed_events();
        let (head, mut commit, rows) = turn.finish();
        if !also.is_empty() {
            commit.merge(also);
        }
        let sequence = self.next_sequence();
        let keys = self.overlay().insert(sequence, rows);
        let stale = Stale { events: self.events().clone(), room: head.room.sn, changed };
        stale.forget();
        lane.submitted.fetch_add(1, Ordering::SeqCst);
        let pending = self.store().submit(commit);
        let after = After { lane: lane.clone(), overlay: self.overlay().clone(), sequence, keys, stale };
        (head, Settling(Some((pending, after))))
    }

    /// Waits until nothing of a room is on its way to the disk.
    pub(crate) async fn settled(&self, room: RoomSn) {
        self.lanes().of(room).settled().await;
    }
}

/// What is to be done when a commit is durable or refused.
struct After {
    lane: Arc<Lane>,
    overlay: Overlay,
    sequence: u64,
    keys: Vec<Vec<u8>>,
    stale: Stale,
}

/// Events of which a commit changes what is known. Whoever reads one while that is decided remembers it as it was:
/// it is forgotten when the change can be read, and again when it is in the store or refused.
struct Stale {
    events: Events,
    room: RoomSn,
    changed: Vec<EventSn>,
}

impl Stale {
    fn forget(&self) {
        for event in &self.changed {
            self.events.forget(self.room, *event);
        }
    }
}

impl After {
    fn run(self, result: &Result<Committed, CommitError>) {
        if result.is_err() {
            self.lane.broken.store(true, Ordering::SeqCst);
        }
        self.overlay.remove(self.sequence, &self.keys);
        self.stale.forget();
        self.lane.done.send_modify(|done| *done += 1);
    }
}

/// A commit on its way. If the one who waits goes away, a task takes over.
struct Settling(Option<(Pending, After)>);

impl Settling {
    async fn await_done(mut self) -> Result<Committed, CommitError> {
        let result = match &mut self.0 {
            Some((pending, _)) => pending.await,
            None => Err(StoreError::Closed.into()),
        };
        if let Some((_, after)) = self.0.take() {
            after.run(&result);
        }
        result
    }
}

impl Drop for Settling {
    fn drop(&mut self) {
        let Some((pending, after)) = self.0.take() else { return };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(async move {
                let result = pending.await;
                after.run(&result);
            })),
            Err(_) => after.run(&Err(StoreError::Closed.into())),
        }
    }
}
