//! Who is typing where. In memory only: another boot starts with nobody typing.
//! * Each change of a room raises one counter; a reader that has seen counter `c` asks for what changed after it.
//! * A user who does not renew stops typing at the timeout, and that is a change like any other.
//! * At most `MAX_TYPING_USERS` users of a room and `MAX_TYPING_ROOMS` rooms are held; who comes later is not shown.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use ruma::{OwnedRoomId, OwnedUserId, RoomId, UserId};
use tokio::{
    sync::{Notify, broadcast},
    time::Instant,
};

use crate::volatile::Volatile;

/// The longest time a user types without saying so again.
pub const MAX_TYPING_TIMEOUT: Duration = Duration::from_secs(120);
/// Users typing in one room at a time.
pub const MAX_TYPING_USERS: usize = 100;
/// Rooms remembered with the counter of their last change.
pub const MAX_TYPING_ROOMS: usize = 10_000;

/// The users typing in each room.
pub struct Typing {
    state: Mutex<State>,
    sooner: Notify,
    changes: broadcast::Sender<Volatile>,
}

#[derive(Default)]
struct State {
    counter: u64,
    /// A room that is not listed has not changed after this counter.
    floor: u64,
    rooms: HashMap<OwnedRoomId, TypingRoom>,
    /// Rooms by the counter of their last change.
    order: BTreeMap<u64, OwnedRoomId>,
    deadlines: BTreeMap<Instant, Vec<(OwnedRoomId, OwnedUserId)>>,
}

#[derive(Default)]
struct TypingRoom {
    changed: u64,
    until: HashMap<OwnedUserId, Instant>,
}

impl Typing {
    pub(crate) fn new(changes: broadcast::Sender<Volatile>) -> Self {
        Self { state: Mutex::default(), sooner: Notify::new(), changes }
    }

    /// `user` types in `room` for the next `timeout` (bounded), or, with `None`, no longer does.
    pub fn set(&self, room: &RoomId, user: &UserId, timeout: Option<Duration>) {
        let changed = {
            let mut state = self.state.lock();
            match timeout {
                Some(timeout) => state.start(room, user, Instant::now() + timeout.min(MAX_TYPING_TIMEOUT)),
                None => state.stop(room, user),
            }
        };
        if timeout.is_some() {
            self.sooner.notify_one();
        }
        if changed {
            _ = self.changes.send(Volatile::Typing(room.to_owned()));
        }
    }

    /// The counter of the newest change.
    pub fn counter(&self) -> u64 {
        self.state.lock().counter
    }

    /// Whether who types in `room` changed after `since`.
    pub fn changed_since(&self, room: &RoomId, since: u64) -> bool {
        let state = self.state.lock();
        match state.rooms.get(room) {
            Some(typing) => typing.changed > since,
            None => state.floor > since,
        }
    }

    /// The rooms that changed after `since`; `None` where too much has happened to tell.
    pub fn rooms_since(&self, since: u64) -> Option<Vec<OwnedRoomId>> {
        let state = self.state.lock();
        (state.floor <= since)
            .then(|| state.order.range(since.saturating_add(1)..).map(|(_, room)| room.clone()).collect())
    }

    /// Who types in `room` now, sorted.
    pub fn users(&self, room: &RoomId) -> Vec<OwnedUserId> {
        let state = self.state.lock();
        let mut users: Vec<_> =
            state.rooms.get(room).map(|typing| typing.until.keys().cloned().collect()).unwrap_or_default();
        users.sort();
        users
    }

    /// Ends what ran out, for ever. One task of the server runs this.
    pub(crate) async fn expire(self: Arc<Self>) {
        loop {
            let next = self.state.lock().deadlines.first_key_value().map(|(at, _)| *at);
            match next {
                None => self.sooner.notified().await,
                Some(at) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(at) => self.expire_until(Instant::now()),
                        () = self.sooner.notified() => {}
                    }
                }
            }
        }
    }

    fn expire_until(&self, now: Instant) {
        let mut changed = Vec::new();
        {
            let mut state = self.state.lock();
            while let Some(entry) = state.deadlines.first_entry()
                && *entry.key() <= now
            {
                for (room, user) in entry.remove() {
                    let over = state
                        .rooms
                        .get(&room)
                        .and_then(|typing| typing.until.get(&user))
                        .is_some_and(|until| *until <= now);
                    if over && state.stop(&room, &user) {
                        changed.push(room);
                    }
                }
            }
        }
        for room in changed {
            _ = self.changes.send(Volatile::Typing(room));
        }
    }
}

impl State {
    /// Whether the list of those typing changed; a renewal changes nothing.
    fn start(&mut self, room: &RoomId, user: &UserId, until: Instant) -> bool {
        if !self.rooms.contains_key(room) && self.rooms.len() >= MAX_TYPING_ROOMS && !self.forget_a_room() {
            return false;
        }
        let typing = self.rooms.entry(room.to_owned()).or_default();
        if !typing.until.contains_key(user) && typing.until.len() >= MAX_TYPING_USERS {
            return false;
        }
        let before = typing.until.insert(user.to_owned(), until);
        if let Some(before) = before {
            self.forget_deadline(before, room, user);
        }
        self.deadlines.entry(until).or_default().push((room.to_owned(), user.to_owned()));
        if before.is_none() {
            self.changed(room);
        }
        before.is_none()
    }

    fn stop(&mut self, room: &RoomId, user: &UserId) -> bool {
        let Some(until) = self.rooms.get_mut(room).and_then(|typing| typing.until.remove(user)) else {
            return false;
        };
        self.forget_deadline(until, room, user);
        self.changed(room);
        true
    }

    fn forget_deadline(&mut self, at: Instant, room: &RoomId, user: &UserId) {
        if let Some(entries) = self.deadlines.get_mut(&at) {
            entries.retain(|(r, u)| r != room || u != user);
            if entries.is_empty() {
                self.deadlines.remove(&at);
            }
        }
    }

    fn changed(&mut self, room: &RoomId) {
        self.counter += 1;
        let counter = self.counter;
        if let Some(typing) = self.rooms.get_mut(room) {
            self.order.remove(&typing.changed);
            typing.changed = counter;
            self.order.insert(counter, room.to_owned());
        }
    }

    /// Forgets the room that has been quiet for longest.
    fn forget_a_room(&mut self) -> bool {
        let quiet = self
            .order
            .iter()
            .find(|(_, room)| self.rooms.get(*room).is_some_and(|typing| typing.until.is_empty()))
            .map(|(counter, room)| (*counter, room.clone()));
        let Some((counter, room)) = quiet else { return false };
        self.order.remove(&counter);
        self.rooms.remove(&room);
        self.floor = self.floor.max(counter);
        true
    }
}

#[cfg(test)]
mod tests {
    use ruma::{room_id, user_id};

    use super::*;

    fn typing() -> (Arc<Typing>, broadcast::Receiver<Volatile>) {
        let (sender, receiver) = broadcast::channel(16);
        (Arc::new(Typing::new(sender)), receiver)
    }

    // Starting and stopping are changes, renewing is none.
    #[tokio::test(start_paused = true)]
    async fn a_renewal_is_no_change() {
        let (typing, mut changes) = typing();
        let (room, alice) = (room_id!("!r:a"), user_id!("@alice:a"));
        typing.set(room, alice, Some(Duration::from_secs(20)));
        let seen = typing.counter();
        typing.set(room, alice, Some(Duration::from_secs(20)));
        assert!(!typing.changed_since(room, seen));
        typing.set(room, alice, None);
        assert!(typing.changed_since(room, seen));
        assert_eq!(typing.rooms_since(seen), Some(vec![room.to_owned()]));
        assert_eq!(typing.users(room), Vec::<OwnedUserId>::new());
        assert!(matches!(changes.try_recv(), Ok(Volatile::Typing(_))));
        assert!(matches!(changes.try_recv(), Ok(Volatile::Typing(_))));
        assert!(changes.try_recv().is_err());
    }

    // Who does not renew is gone at the timeout, and readers are told.
    #[tokio::test(start_paused = true)]
    async fn typing_ends_at_the_timeout() {
        let (typing, mut changes) = typing();
        tokio::spawn(typing.clone().expire());
        let (room, alice) = (room_id!("!r:a"), user_id!("@alice:a"));
        typing.set(room, alice, Some(Duration::from_secs(5)));
        changes.recv().await.unwrap();
        tokio::time::sleep(Duration::from_secs(3)).await;
        typing.set(room, alice, Some(Duration::from_secs(5)));
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(typing.users(room), [alice], "the renewal moved the end");
        changes.recv().await.unwrap();
        assert_eq!(typing.users(room), Vec::<OwnedUserId>::new());
    }
}
