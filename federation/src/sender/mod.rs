//! The sender: what happened here reaches the servers that it concerns.
//! * It follows the rooms' stream, and nothing calls it: what a commit left behind is read, fanned out to a queue per
//!   destination, and sent, one transaction at a time to each destination and many destinations at once.
//! * One durable cursor says how far everything was sent. What a destination was not sent has a row per room instead,
//!   with the oldest event that is missing there: a server that is down costs one row per room, whatever is said in it.
//! * Messages that must arrive have rows of their own until they were taken. Typing, receipts and presence are held in
//!   memory only, the newest of each kind, and are dropped where a destination fails; presence is told again when it is back.
//!   Receipts that do not fit are told from the store when there is room again.
//! * After a crash, some things are sent again: peers know events by their IDs.
//! * Everything held in memory has a bound: destinations, events in queues by number and bytes, transactions under way.
//!   What does not fit is read from the store again.

mod behind;
mod edus;
mod fan_out;
mod history;
mod lanes;
mod missed_receipts;
mod must_arrive;
mod presence;
mod receipts;
mod rest;
mod state;
mod strangers;
mod transaction;
mod turn;
mod typing;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use hearth_rooms::Rooms;
use hearth_store::{Store, StreamPosition};
use hearth_users::Users;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use self::{
    lanes::{Crowds, Lane, Place},
    state::State,
};
use crate::{federation::Federation, key_store::Clock};

pub use behind::rooms_behind;
pub use lanes::{QUICK_WITHIN, SENDING_AT_ONCE};
pub use must_arrive::must_arrive;

/// Events of one transaction, as the specification has it.
pub const PDUS_MAX: usize = 50;
/// Other messages of one transaction, as the specification has it.
pub const EDUS_MAX: usize = 100;
/// Bytes of one transaction, about: the last event may go beyond.
pub const TRANSACTION_BYTES: usize = 4 * 1024 * 1024;
/// How long the end of the sender waits for transactions under way.
const GRACE: Duration = Duration::from_secs(3);
/// How long after a failure of the store it is asked again.
const STORE_PAUSE: Duration = Duration::from_secs(1);

/// What the sender is made of.
pub struct SenderOptions {
    /// Where the cursor and what is owed to servers are kept.
    pub store: Store,
    /// What happens in rooms.
    pub rooms: Rooms,
    /// Who types, reads, and is there.
    pub users: Users,
    /// Who can be reached, and how.
    pub federation: Federation,
    /// The time.
    pub clock: Clock,
    /// Tells this process from others in the IDs of transactions.
    pub boot: u64,
}

/// Sends what happens here to other servers. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Sender(Arc<Inner>);

struct Inner {
    store: Store,
    rooms: Rooms,
    users: Users,
    federation: Federation,
    clock: Clock,
    boot: u64,
    state: Mutex<State>,
    /// The first time of [`State::timers`] changed.
    sooner: Notify,
    /// Others wait for the places of transactions that take long.
    crowds: Crowds,
    /// A worker has ended.
    ended: Notify,
    phase: watch::Sender<Phase>,
    started: AtomicBool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Running,
    /// No new transaction begins.
    Closing,
    /// Transactions under way are given up.
    Closed,
}

/// What the sender has to do, for tests and whoever looks after a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SenderStatus {
    /// Destinations that are remembered.
    pub destinations: usize,
    /// Those that are being sent to, or wait for a free place.
    pub busy: usize,
    /// Those that wait for their time: they failed, or the sender has just started.
    pub resting: usize,
    /// Events in queues, counted once for each destination.
    pub queued: usize,
    /// Everything up to here was sent, or is noted as owed.
    pub settled: StreamPosition,
}

impl Sender {
    /// A sender that does nothing before it is started.
    pub fn new(options: SenderOptions) -> Self {
        let SenderOptions { store, rooms, users, federation, clock, boot } = options;
        Self(Arc::new(Inner {
            store,
            rooms,
            users,
            federation,
            clock,
            boot,
            state: Mutex::new(State::default()),
            sooner: Notify::new(),
            crowds: Crowds::default(),
            ended: Notify::new(),
            phase: watch::Sender::new(Phase::Running),
            started: AtomicBool::new(false),
        }))
    }

    /// Begins to send, where the last run ended. Once; further calls and switched-off federation do nothing.
    pub fn start(&self) {
        if !self.0.federation.access().is_on() || self.0.started.swap(true, Ordering::SeqCst) {
            return;
        }
        let inner = &self.0;
        inner.spawn(inner.clone().follow_rooms());
        inner.spawn(inner.clone().follow_messages());
        inner.spawn(inner.clone().keep_cursor());
        inner.spawn(inner.clone().wait_for_times());
        inner.spawn(inner.clone().follow_revivals());
        inner.spawn(inner.clone().wake_up());
        inner.spawn(inner.clone().follow_receipts());
        inner.spawn(inner.clone().follow_typing());
        inner.spawn(inner.clone().follow_presence());
        inner.spawn(inner.clone().forget_strangers());
    }

    /// Ends: transactions under way get some seconds, and the cursor is written down.
    pub async fn close(&self) {
        let inner = &self.0;
        inner.phase.send_replace(Phase::Closing);
        let all_ended = async {
            loop {
                let ended = inner.ended.notified();
                if inner.state.lock().lanes.running() == 0 {
                    break;
                }
                ended.await;
            }
        };
        // Who is still sending then is sent to again after the next start.
        let _ = tokio::time::timeout(GRACE, all_ended).await;
        inner.phase.send_replace(Phase::Closed);
        if inner.started.load(Ordering::SeqCst) {
            inner.write_cursor().await;
        }
    }

    /// What there is to do.
    pub fn status(&self) -> SenderStatus {
        self.0.state.lock().status()
    }
}

impl Inner {
    /// A task that ends with the sender.
    fn spawn(self: &Arc<Self>, task: impl Future<Output = ()> + Send + 'static) {
        let mut phase = self.phase.subscribe();
        tokio::spawn(async move {
            tokio::select! {
                biased;
                // An error: the sender is gone.
                _ = phase.wait_for(|phase| *phase >= Phase::Closing) => {}
                () = task => {}
            }
        });
    }

    fn is_closing(&self) -> bool {
        *self.phase.borrow() >= Phase::Closing
    }

    fn now_ms(&self) -> u64 {
        (self.clock)()
    }

    /// Starts as many workers as there is work and room for.
    fn start_workers(self: &Arc<Self>) {
        if self.is_closing() {
            return;
        }
        let new = {
            let mut state = self.state.lock();
            let new = state.lanes.starting();
            state.lanes.crowded().for_each(|(lane, count)| self.crowds.want(lane, count));
            new
        };
        for lane in new {
            let inner = self.clone();
            tokio::spawn(async move { inner.work(lane).await });
        }
    }

    /// Sends to one destination after the other while there are any that are ready.
    async fn work(self: Arc<Self>, lane: Lane) {
        let mut place = Place::new(self.clone(), lane);
        while let Some(server) = place.next() {
            let mut phase = self.phase.subscribe();
            tokio::select! {
                biased;
                _ = phase.wait_for(|phase| *phase == Phase::Closed) => break,
                () = self.turn(&server, &mut place) => {}
            }
        }
        drop(place);
        self.ended.notify_waiters();
    }
}
