//! What is held in memory of each destination: its queue, and what it is doing.
//! * A destination has work, or failed, or is forgotten when others need its place.
//! * The queue holds events in the order of the stream. One that grows beyond its bound is written down as rows, as is
//!   that of a destination that fails: from then on the destination is *behind*, and is read for from the store.
//! * A position is held up by a destination until what stands there was sent, or is on the disk as owed.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use hearth_rooms::{RoomSn, serve::Outgoing};
use hearth_store::StreamPosition;
use quick_cache::sync::Cache;
use ruma::{OwnedServerName, ServerName};

use super::{
    PDUS_MAX, SenderStatus,
    behind::Owed,
    edus::{EduKey, EduValue},
    lanes::{LANES, Lane, Lanes},
    missed_receipts::Pass,
};

/// Destinations that are remembered.
const DESTINATIONS_MAX: usize = 20_000;
/// Destinations that find no place before it is looked for one again.
const REFUSED_AT_ONCE: usize = 2_000;
/// Events in the queue of one destination.
pub(super) const QUEUE_MAX: usize = 1_000;
/// Events in all queues, counted once for each destination.
const QUEUED_MAX: usize = 300_000;
/// Bytes of events in queues, each event counted once.
const QUEUED_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Messages that need not arrive, held for one destination. Receipts beyond it are told from the store.
const VOLATILE_MAX: usize = 200;
/// Destinations that are back and are to be told who is there.
const RETURNED_MAX: usize = 10_000;
/// Pairs of destination and room that are known to have a row.
const KNOWN_ROWS: usize = 100_000;

/// An event on its way, shared by all queues that it is in.
pub(super) struct Queued {
    outgoing: Outgoing,
    bytes: usize,
    total: Arc<AtomicUsize>,
}

impl Deref for Queued {
    type Target = Outgoing;

    fn deref(&self) -> &Outgoing {
        &self.outgoing
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.total.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Queued {
    /// The event as it is sent.
    pub(super) fn json(&self) -> &str {
        self.outgoing.event.pdu.json()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Nothing to do.
    Idle,
    /// Waits for a worker; `last`: there is nothing but presence for it.
    Ready { last: bool },
    /// Has one.
    Sending,
    /// Failed, or waits for its turn after a start; it is not tried before this time.
    Resting { until_ms: u64 },
}

/// A room in which a destination is being caught up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Catching {
    /// Where its row begins.
    oldest: StreamPosition,
    /// The newest event that came meanwhile.
    pub(super) newest: Option<StreamPosition>,
    /// The room's row is being removed: whatever comes now needs a new one.
    pub(super) closing: bool,
}

impl Catching {
    pub(super) fn from(oldest: StreamPosition) -> Self {
        Self { oldest, newest: None, closing: false }
    }
}

pub(super) struct Destination {
    /// Tells it from one of the same name that was forgotten.
    number: u64,
    pub(super) stage: Stage,
    /// Whose places it takes.
    lane: Lane,
    /// It has a place among the last of these lanes, needed or not.
    stands_last: [bool; LANES],
    /// The store was asked what it has for this destination.
    pub(super) looked_up: bool,
    pub(super) queue: VecDeque<Arc<Queued>>,
    /// How many of the queue are being sent.
    pub(super) in_flight: usize,
    /// There are rows, or may be.
    pub(super) behind: bool,
    /// It is behind because it could not be reached, not because it is slow.
    pub(super) was_down: bool,
    pub(super) catching: HashMap<RoomSn, Catching>,
    /// Rows that were begun to be written, ever, and those under way.
    pub(super) rows_begun: u64,
    rows_under_way: u64,
    /// The oldest event whose row is under way.
    hold: Option<StreamPosition>,
    /// There are messages that must arrive, or may be.
    pub(super) messages: bool,
    pub(super) volatile: BTreeMap<Arc<EduKey>, EduValue>,
    /// Receipts that are being told from the store.
    pub(super) missed_receipts: Option<Pass>,
    /// Others after this position found no place, and are told from there next.
    receipts_after: Option<StreamPosition>,
    /// It was not told of some user's presence.
    missed_presence: bool,
    /// Events of a transaction: fewer while the peer refuses transactions as a whole.
    pub(super) batch: usize,
}

impl Destination {
    fn new(number: u64) -> Self {
        Self {
            number,
            stage: Stage::Idle,
            lane: Lane::New,
            stands_last: [false; LANES],
            looked_up: false,
            queue: VecDeque::new(),
            in_flight: 0,
            behind: false,
            was_down: false,
            catching: HashMap::new(),
            rows_begun: 0,
            rows_under_way: 0,
            hold: None,
            messages: false,
            volatile: BTreeMap::new(),
            missed_receipts: None,
            receipts_after: None,
            missed_presence: false,
            batch: PDUS_MAX,
        }
    }

    /// Whether it failed, and is left alone.
    fn rests_on_trial(&self) -> bool {
        matches!(self.stage, Stage::Resting { .. }) && self.is_on_trial()
    }

    /// Whether it is tried among those that failed.
    pub(super) fn is_on_trial(&self) -> bool {
        self.lane == Lane::Trial
    }

    fn is_idle(&self) -> bool {
        self.stage == Stage::Idle && !self.has_work() && self.rows_under_way == 0
    }

    /// Whether it failed, and everything of it is in the store.
    fn is_owed_only(&self) -> bool {
        self.rests_on_trial() && self.queue.is_empty() && self.rows_under_way == 0
    }

    pub(super) fn has_work(&self) -> bool {
        let events = !self.queue.is_empty() || self.behind || self.messages;
        events || !self.volatile.is_empty() || self.misses_receipts()
    }

    /// Whether there is nothing for it but presence.
    fn has_only_presence(&self) -> bool {
        let others = !self.queue.is_empty() || self.behind || self.messages || self.misses_receipts();
        // Presence is last in the order.
        !others && self.volatile.first_key_value().is_some_and(|(key, _)| key.is_presence())
    }

    /// What need not arrive is dropped; that it is presence is remembered.
    pub(super) fn drop_volatile(&mut self) {
        self.missed_presence |= self.volatile.last_key_value().is_some_and(|(key, _)| key.is_presence());
        self.volatile.clear();
        self.missed_receipts = None;
        self.receipts_after = None;
    }

    /// Whether receipts are told from the store. Until that is done, all others wait behind them.
    fn misses_receipts(&self) -> bool {
        self.missed_receipts.is_some() || self.receipts_after.is_some()
    }

    fn note_receipts(&mut self, after: StreamPosition) {
        self.receipts_after = Some(self.receipts_after.map_or(after, |noted| noted.min(after)));
    }

    /// The receipts that are to be told from the store, up to `watermark` where that begins now.
    pub(super) fn receipts_to_tell(&mut self, watermark: impl FnOnce() -> StreamPosition) -> Option<Pass> {
        if self.missed_receipts.is_none() {
            self.missed_receipts = self.receipts_after.take().map(|after| Pass::new(after, watermark()));
        }
        self.missed_receipts.clone()
    }

    /// How many messages there are that need not arrive, but for presence.
    pub(super) fn volatile_before_presence(&self) -> usize {
        self.volatile.keys().take_while(|key| !key.is_presence()).count()
    }

    pub(super) fn misses_presence(&mut self) {
        self.missed_presence = true;
    }

    pub(super) fn rows_under_way(&self) -> bool {
        self.rows_under_way > 0
    }

    /// Positions from here on are not settled.
    fn holds(&self) -> Option<StreamPosition> {
        let front = self.queue.front().map(|queued| queued.position);
        [front, self.hold].into_iter().flatten().min()
    }

    /// Whether the queue's front may be sent: it has not all been written down.
    pub(super) fn sends_queue(&self) -> bool {
        !self.behind && !self.queue.is_empty()
    }
}

pub(super) struct State {
    destinations: HashMap<OwnedServerName, Destination>,
    pub(super) lanes: Lanes,
    /// Destinations that missed presence and are back.
    returned: BTreeSet<OwnedServerName>,
    /// When destinations that rest are due.
    pub(super) timers: BTreeSet<(u64, OwnedServerName)>,
    /// The stream was read up to here.
    pub(super) fanned_out: StreamPosition,
    /// What the cursor on the disk says.
    pub(super) written: StreamPosition,
    /// Something was sent, or is to be, since the cursor was written.
    pub(super) touched: bool,
    /// There are destinations with rows that are not remembered here.
    pub(super) more_in_store: bool,
    /// Transactions that were sent, for their IDs.
    pub(super) transactions: u64,
    /// For so many more destinations there is no place.
    refused: usize,
    queued: usize,
    queued_bytes: Arc<AtomicUsize>,
    next_number: u64,
    known_rows: Cache<(u64, RoomSn), ()>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            destinations: HashMap::new(),
            lanes: Lanes::default(),
            returned: BTreeSet::new(),
            timers: BTreeSet::new(),
            fanned_out: StreamPosition::ZERO,
            written: StreamPosition::ZERO,
            touched: false,
            more_in_store: false,
            transactions: 0,
            refused: 0,
            queued: 0,
            queued_bytes: Arc::default(),
            next_number: 0,
            known_rows: Cache::new(KNOWN_ROWS),
        }
    }
}

impl State {
    pub(super) fn status(&self) -> SenderStatus {
        let count = |is: fn(&Stage) -> bool| self.destinations.values().filter(|d| is(&d.stage)).count();
        SenderStatus {
            destinations: self.destinations.len(),
            busy: count(|stage| matches!(stage, Stage::Ready { .. } | Stage::Sending)),
            resting: count(|stage| matches!(stage, Stage::Resting { .. })),
            queued: self.queued,
            settled: self.settled(),
        }
    }

    /// Everything up to here was sent, or is on the disk as owed.
    pub(super) fn settled(&self) -> StreamPosition {
        let held = self.destinations.values().filter_map(Destination::holds).min();
        match held {
            Some(held) => self.fanned_out.min(StreamPosition::new(held.get().saturating_sub(1))),
            None => self.fanned_out,
        }
    }

    /// The next destination to send to in a lane.
    pub(super) fn next_ready(&mut self, lane: Lane) -> Option<OwnedServerName> {
        while let Some((server, last)) = self.lanes.pop(lane) {
            let Some(destination) = self.destinations.get_mut(&server) else { continue };
            if last {
                destination.stands_last[lane as usize] = false;
                // Something more important came, and it went forward, or it belongs elsewhere by now.
                if destination.stage != (Stage::Ready { last }) || destination.lane != lane {
                    continue;
                }
            }
            destination.stage = Stage::Sending;
            return Some(server);
        }
        None
    }

    /// Where a destination waits from now on.
    pub(super) fn belongs_to(&mut self, server: &ServerName, lane: Lane) {
        if let Some(destination) = self.destinations.get_mut(server) {
            destination.lane = lane;
        }
    }

    pub(super) fn get(&mut self, server: &ServerName) -> Option<&mut Destination> {
        self.destinations.get_mut(server)
    }

    /// The destination, remembered from now on; none where there are too many.
    pub(super) fn remembered(&mut self, server: &ServerName) -> Option<&mut Destination> {
        if !self.destinations.contains_key(server) {
            if self.destinations.len() >= DESTINATIONS_MAX {
                // Nobody became idle or failed since there was last no place to be found: looked for rarely.
                if self.refused > 0 {
                    self.refused -= 1;
                    self.more_in_store = true;
                    return None;
                }
                // Those who are needed again are looked up again.
                self.destinations.retain(|_, destination| !destination.is_idle());
                let is_full =
                    |state: &Self| state.destinations.len() >= DESTINATIONS_MAX - DESTINATIONS_MAX / 10;
                if is_full(self) {
                    self.forget_dead();
                }
                if is_full(self) {
                    self.more_in_store = true;
                    self.refused = REFUSED_AT_ONCE;
                    return None;
                }
            }
            self.next_number += 1;
            self.destinations.insert(server.to_owned(), Destination::new(self.next_number));
        }
        self.destinations.get_mut(server)
    }

    /// Those that failed hold no place of others for ever, however many they are: the ones that are tried last are forgotten.
    /// The store has what they are owed, and when they may be tried.
    fn forget_dead(&mut self) {
        let is_owed_only =
            |server: &OwnedServerName| self.destinations.get(server).is_some_and(Destination::is_owed_only);
        let dead = self.timers.iter().rev().filter(|(_, server)| is_owed_only(server));
        let dead: Vec<_> = dead.take(DESTINATIONS_MAX / 5).cloned().collect();
        for timer in dead {
            self.destinations.remove(&timer.1);
            self.timers.remove(&timer);
            self.more_in_store = true;
        }
    }

    /// Whether there is place for many more destinations.
    pub(super) fn has_room(&self) -> bool {
        self.destinations.len() < DESTINATIONS_MAX / 2
    }

    /// An event that queues may share.
    pub(super) fn share(&self, outgoing: Outgoing) -> Arc<Queued> {
        let bytes = outgoing.event.pdu.json().len();
        let total = self.queued_bytes.clone();
        total.fetch_add(bytes, Ordering::Relaxed);
        Arc::new(Queued { outgoing, bytes, total })
    }

    /// An event for a destination: into its queue, or as a row where it is behind. Rows are the caller's to write.
    pub(super) fn push(&mut self, server: &ServerName, event: &Arc<Queued>, owed: &mut Vec<Owed>) {
        let is_full =
            self.queued >= QUEUED_MAX || self.queued_bytes.load(Ordering::Relaxed) > QUEUED_BYTES_MAX;
        let (position, room) = (event.position, event.room.sn);
        let removed_at = (!event.servers.contains(server)).then_some(position);
        let new = Owed {
            server: server.to_owned(),
            room,
            oldest: position,
            removed_at,
            anew: false,
            counted: false,
        };
        if self.remembered(server).is_none() {
            owed.push(new);
            return;
        }
        let Some(destination) = self.destinations.get_mut(server) else { return };
        if !destination.behind {
            let limit = if is_full { PDUS_MAX } else { QUEUE_MAX };
            if destination.queue.len() < limit {
                destination.queue.push_back(event.clone());
                self.queued += 1;
                self.make_ready(server);
                return;
            }
            let in_flight = destination.in_flight;
            self.write_down_from(server, in_flight, owed);
        }
        let Some(destination) = self.destinations.get_mut(server) else { return };
        let key = (destination.number, room);
        let write = match destination.catching.get_mut(&room) {
            Some(Catching { closing: true, .. }) => Some(true),
            // Read again after a start, and not in the row, which does not end before it was sent too.
            Some(catching) if position < catching.oldest => {
                catching.newest = Some(StreamPosition::MAX);
                Some(false)
            }
            Some(catching) => {
                catching.newest = catching.newest.max(Some(position));
                removed_at.map(|_| false)
            }
            None if removed_at.is_none() && self.known_rows.get(&key).is_some() => None,
            None => {
                self.known_rows.insert(key, ());
                Some(false)
            }
        };
        if let Some(anew) = write {
            destination.begin_rows(1);
            owed.push(Owed { anew, counted: true, ..new });
        }
        self.make_ready(server);
    }

    /// Turns a destination's queue into rows, which the caller writes: from now on it is behind.
    pub(super) fn write_down(&mut self, server: &ServerName, owed: &mut Vec<Owed>) {
        self.write_down_from(server, 0, owed);
    }

    /// The same, but for the first of the queue.
    fn write_down_from(&mut self, server: &ServerName, kept: usize, owed: &mut Vec<Owed>) {
        let Some(destination) = self.destinations.get_mut(server) else { return };
        let events = destination.queue.split_off(kept);
        self.queued -= events.len();
        destination.in_flight = kept;
        destination.behind = true;
        let front = events.front().map(|event| event.position);
        destination.hold = [front, destination.hold].into_iter().flatten().min();
        let mut rooms: BTreeMap<RoomSn, (StreamPosition, Option<StreamPosition>)> = BTreeMap::new();
        for event in &events {
            let (_, removed_at) = rooms.entry(event.room.sn).or_insert((event.position, None));
            if !event.servers.contains(server) {
                *removed_at = Some(event.position);
            }
        }
        destination.begin_rows(rooms.len() as u64);
        for (room, (oldest, removed_at)) in rooms {
            self.known_rows.insert((destination.number, room), ());
            // What is in flight may be of a room whose row is being removed.
            let anew = destination.catching.get(&room).is_some_and(|catching| catching.closing);
            let server = server.to_owned();
            owed.push(Owed { server, room, oldest, removed_at, anew, counted: true });
        }
    }

    /// Rows of a destination are on the disk.
    pub(super) fn rows_written(&mut self, server: &ServerName) {
        let Some(destination) = self.destinations.get_mut(server) else { return };
        destination.rows_under_way = destination.rows_under_way.saturating_sub(1);
        if destination.rows_under_way == 0 {
            destination.hold = None;
            self.make_ready(server);
        }
    }

    /// The row of a room of a destination is being removed.
    pub(super) fn forget_row(&mut self, server: &ServerName, room: RoomSn) {
        if let Some(destination) = self.destinations.get_mut(server) {
            self.known_rows.remove(&(destination.number, room));
        }
    }

    /// Events of the queue's front have arrived.
    pub(super) fn delivered(&mut self, server: &ServerName) {
        let Some(destination) = self.destinations.get_mut(server) else { return };
        destination.queue.drain(..destination.in_flight);
        self.queued -= destination.in_flight;
        destination.in_flight = 0;
        self.returns(server);
    }

    /// A destination is back: it is told who is there, if it missed that. Of one that has yet to be tried that is known
    /// afterwards.
    pub(super) fn returns(&mut self, server: &ServerName) {
        let Some(destination) = self.destinations.get_mut(server) else { return };
        let tried = matches!(destination.stage, Stage::Idle | Stage::Sending);
        if tried && destination.missed_presence && self.returned.len() < RETURNED_MAX {
            destination.missed_presence = false;
            self.returned.insert(server.to_owned());
        }
    }

    /// Destinations that missed presence and are back; they are given once.
    pub(super) fn take_returned(&mut self) -> BTreeSet<OwnedServerName> {
        std::mem::take(&mut self.returned)
    }

    /// An idle destination with work waits for a worker from now on. One that waits with the last goes forward when there
    /// is more for it than presence.
    pub(super) fn make_ready(&mut self, server: &ServerName) {
        let Some(destination) = self.destinations.get_mut(server) else { return };
        let last = destination.has_only_presence();
        match destination.stage {
            Stage::Idle if destination.has_work() => {}
            Stage::Ready { last: true } if !last => {}
            _ => return,
        }
        destination.stage = Stage::Ready { last };
        let stands_last = &mut destination.stands_last[destination.lane as usize];
        if !(last && *stands_last) {
            *stands_last |= last;
            self.lanes.push(destination.lane, server.to_owned(), last);
        }
    }

    /// A resting destination is tried now.
    pub(super) fn wake(&mut self, server: &ServerName) {
        let Some(destination) = self.destinations.get_mut(server) else { return };
        if let Stage::Resting { until_ms } = destination.stage {
            self.timers.remove(&(until_ms, server.to_owned()));
            destination.stage = Stage::Idle;
            self.make_ready(server);
        }
    }

    /// A resting destination is tried at another time.
    pub(super) fn rest_until(&mut self, server: &ServerName, until_ms: u64) {
        if self.destinations.get(server).is_some_and(|found| matches!(found.stage, Stage::Resting { .. })) {
            self.rest(server, until_ms);
        }
    }

    /// The turn is over: back in the row if there is more to do.
    pub(super) fn end_turn(&mut self, server: &ServerName) {
        let Some(destination) = self.destinations.get_mut(server) else { return };
        if destination.stage == Stage::Sending {
            destination.stage = Stage::Idle;
            // While rows are being written there is nothing to be read; that they are there makes it ready.
            if !(destination.behind && destination.rows_under_way > 0) {
                self.make_ready(server);
            }
            self.refused = 0;
        }
    }

    /// The destination failed, and is not tried before that time.
    pub(super) fn rest(&mut self, server: &ServerName, until_ms: u64) {
        self.wait(server, until_ms);
        self.belongs_to(server, Lane::Trial);
    }

    /// The destination is not tried before that time, for no fault of its own.
    pub(super) fn wait(&mut self, server: &ServerName, until_ms: u64) {
        let Some(destination) = self.destinations.get_mut(server) else { return };
        if let Stage::Resting { until_ms } = destination.stage {
            self.timers.remove(&(until_ms, server.to_owned()));
        }
        destination.stage = Stage::Resting { until_ms };
        self.refused = 0;
        self.timers.insert((until_ms, server.to_owned()));
    }

    /// We do not talk to the destination any more. What the store has for it stays.
    pub(super) fn give_up(&mut self, server: &ServerName) {
        let Some(destination) = self.destinations.get_mut(server) else { return };
        self.queued -= destination.queue.len();
        destination.queue = VecDeque::new();
        destination.in_flight = 0;
        destination.behind = false;
        destination.messages = false;
        destination.volatile.clear();
        destination.missed_receipts = None;
        destination.receipts_after = None;
        destination.looked_up = false;
    }

    /// All destinations that rest.
    pub(super) fn resting(&self) -> Vec<OwnedServerName> {
        self.timers.iter().map(|(_, server)| server.clone()).collect()
    }

    /// A message that need not arrive; it takes the place of an older one of its kind, or where there are too many, that
    /// of somebody's presence. False: it found no place, though it should have one.
    pub(super) fn push_volatile(&mut self, server: &ServerName, key: &Arc<EduKey>, value: &EduValue) -> bool {
        let Some(destination) = self.remembered(server) else { return true };
        if destination.rests_on_trial() {
            destination.missed_presence |= key.is_presence();
            return true;
        }
        if destination.volatile.len() >= VOLATILE_MAX && !destination.volatile.contains_key(key) {
            // Told when the destination is through with what it has.
            destination.missed_presence |= key.is_presence();
            match destination.volatile.last_entry() {
                Some(last) if last.key().is_presence() && !key.is_presence() => {
                    destination.missed_presence = true;
                    drop(last.remove());
                }
                _ => return false,
            }
        }
        destination.volatile.insert(key.clone(), value.clone());
        self.make_ready(server);
        true
    }

    /// Receipts of a room after a position. Those that find no place are told from the store.
    pub(super) fn push_receipts(
        &mut self,
        server: &ServerName,
        items: &[(Arc<EduKey>, EduValue)],
        after: StreamPosition,
    ) {
        let waits =
            |destination: &Destination| destination.misses_receipts() && !destination.rests_on_trial();
        let waits = self.get(server).is_some_and(|destination| waits(destination));
        if !waits && items.iter().all(|(key, value)| self.push_volatile(server, key, value)) {
            return;
        }
        if let Some(destination) = self.get(server) {
            destination.note_receipts(after);
            self.make_ready(server);
        }
    }
}

impl Destination {
    fn begin_rows(&mut self, count: u64) {
        self.rows_begun += count;
        self.rows_under_way += count;
    }
}

#[cfg(test)]
mod tests {
    use ruma::{room_id, server_name, user_id};

    use super::*;

    #[test]
    fn who_waits_for_no_fault_of_its_own_misses_nothing() {
        let (mut state, server) = (State::default(), server_name!("a.test"));
        let typing = EduKey::Typing(room_id!("!r:x").to_owned(), user_id!("@u:x").to_owned());
        let (typing, value): (_, EduValue) = (Arc::new(typing), Arc::new(true.into()));
        state.remembered(server).unwrap();
        state.wait(server, 5);
        state.push_volatile(server, &typing, &value);
        assert_eq!(state.next_ready(Lane::New), None, "its time has not come");
        state.wake(server);
        assert_eq!(state.next_ready(Lane::New).as_deref(), Some(server));
        assert_eq!(state.get(server).unwrap().volatile.len(), 1);
        // One that failed is not told who typed meanwhile.
        state.get(server).unwrap().drop_volatile();
        state.rest(server, 7);
        state.push_volatile(server, &typing, &value);
        assert!(!state.get(server).unwrap().has_work());
    }

    #[test]
    fn receipts_without_a_place_are_told_from_the_first_of_them_on() {
        let (mut state, server, at) = (State::default(), server_name!("a.test"), StreamPosition::new);
        let receipt = |n: usize| -> (Arc<EduKey>, EduValue) {
            let user = ruma::UserId::parse(format!("@u{n}:x")).unwrap();
            let key = EduKey::Receipt(room_id!("!r:x").to_owned(), user, None);
            (Arc::new(key), Arc::new(n.into()))
        };
        let receipts = |count: usize| (0..count).map(receipt).collect::<Vec<_>>();
        state.push_receipts(server, &receipts(VOLATILE_MAX), at(3));
        assert_eq!(state.get(server).unwrap().receipts_to_tell(|| at(9)), None, "all have a place");
        state.push_receipts(server, &receipts(VOLATILE_MAX + 1), at(5));
        state.push_receipts(server, &receipts(1), at(4));
        let pass = state.get(server).unwrap().receipts_to_tell(|| at(9));
        assert_eq!(pass, Some(Pass::new(at(4), at(9))));
        // What comes while they are told waits for the next time.
        state.push_receipts(server, &receipts(1), at(9));
        let destination = state.get(server).unwrap();
        assert_eq!(destination.receipts_to_tell(|| at(12)), pass);
        (destination.missed_receipts, destination.volatile) = (None, BTreeMap::new());
        assert!(destination.has_work() && !destination.has_only_presence());
        assert_eq!(destination.receipts_to_tell(|| at(12)), Some(Pass::new(at(9), at(12))));
        destination.missed_receipts = None;
        assert!(!destination.has_work());
        // Nothing is kept for one that failed.
        state.push_receipts(server, &receipts(VOLATILE_MAX + 1), at(12));
        state.get(server).unwrap().drop_volatile();
        state.rest(server, 7);
        state.push_receipts(server, &receipts(VOLATILE_MAX + 1), at(13));
        assert!(!state.get(server).unwrap().has_work());
    }

    #[test]
    fn the_dead_hold_no_place_of_others_for_ever() {
        let mut state = State::default();
        let name = |n: usize| OwnedServerName::try_from(format!("s{n}.test")).unwrap();
        for n in 0..DESTINATIONS_MAX {
            state.remembered(&name(n)).unwrap().behind = true;
        }
        // All of them have work, and may be reached.
        for _ in 0..2 {
            assert!(state.remembered(server_name!("new.test")).is_none() && state.more_in_store);
            state.more_in_store = false;
        }
        for n in 0..DESTINATIONS_MAX {
            state.rest(&name(n), n as u64);
        }
        state.get(&name(DESTINATIONS_MAX - 1)).unwrap().begin_rows(1);
        assert!(state.remembered(server_name!("new.test")).is_some());
        assert!(state.more_in_store, "those who were forgotten are found when there is room");
        assert_eq!(state.destinations.len(), state.timers.len() + 1);
        assert!(state.get(&name(0)).is_some(), "it is tried soon");
        assert!(state.get(&name(DESTINATIONS_MAX - 1)).is_some(), "its rows are not written yet");
        assert!(state.get(&name(DESTINATIONS_MAX - 2)).is_none());
    }

    #[test]
    fn who_becomes_slow_leaves_no_place_among_the_quick() {
        let (mut state, server) = (State::default(), server_name!("a.test"));
        let user = user_id!("@u:x").to_owned();
        let presence = Arc::new(EduKey::Presence(user.clone()));
        let typing = Arc::new(EduKey::Typing(room_id!("!r:x").to_owned(), user));
        let value: EduValue = Arc::new(true.into());
        state.push_volatile(server, &presence, &value);
        state.push_volatile(server, &typing, &value);
        assert_eq!(state.next_ready(Lane::New).as_deref(), Some(server), "with the first");
        state.belongs_to(server, Lane::Slow);
        state.get(server).unwrap().drop_volatile();
        state.end_turn(server);
        // In the other lane its place of before still stands.
        state.push_volatile(server, &presence, &value);
        assert_eq!(state.next_ready(Lane::New), None, "it is slow");
        assert_eq!(state.next_ready(Lane::Slow).as_deref(), Some(server));
        assert_eq!(state.next_ready(Lane::Slow), None, "once");
        // However often it goes to and fro, it stands once in each lane.
        state.end_turn(server);
        for lane in [Lane::New, Lane::Slow, Lane::New, Lane::Slow].into_iter().cycle().take(20) {
            state.push_volatile(server, &typing, &value);
            let own = state.get(server).unwrap().lane;
            assert_eq!(state.next_ready(own).as_deref(), Some(server));
            state.get(server).unwrap().drop_volatile();
            state.belongs_to(server, lane);
            state.end_turn(server);
            state.push_volatile(server, &presence, &value);
        }
        let stands = |lanes: &mut Lanes, lane| std::iter::from_fn(|| lanes.pop(lane)).count();
        let counts = [Lane::New, Lane::Slow].map(|lane| stands(&mut state.lanes, lane));
        assert!(counts.iter().all(|count| *count <= 2), "{counts:?}");
    }
}
