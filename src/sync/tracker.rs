//! What changed for whom: the rooms of users who sync, each with its last change, kept in memory.
//! * "What is new since t" is a range of a user's own list of changes. No room is visited that did not change, and an
//!   idle user costs no read of the store.
//! * The list is complete up to [`Tracker::caught_up`]: a sync reads up to there and never past it, so that no change
//!   can fall between two syncs.
//! * Who waits has subscribed before reading ([`Active::wakening`]), so no wake-up is lost. One change of a room wakes
//!   those of its members who wait, and nobody else.
//! * Everything here can be forgotten at any time and is read again from the store: that bounds it.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
};

use hearth_rooms::{Membership, RoomSn, read::Reader};
use hearth_store::{Lagged, Store, StoreError, StreamPosition, Topic};
use parking_lot::Mutex;
use ruma::{OwnedUserId, RoomId, UserId};
use tokio::sync::{Notify, futures::Notified, watch};

/// Rooms of all active users together, each counted once for each of its users.
const MAX_PLACES: usize = 200_000;
/// Users whose rooms are held.
const MAX_USERS: usize = 20_000;
/// The changes that those see who are being loaded meanwhile.
const LOG_LENGTH: usize = 4096;

/// Follows the store for all who sync.
#[derive(Clone)]
pub struct Tracker {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    rooms: Reader,
    /// Where the store was when the tracker began.
    started_at: StreamPosition,
    progress: watch::Sender<StreamPosition>,
    clock: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    users: HashMap<OwnedUserId, Arc<Active>>,
    by_room: HashMap<RoomSn, Vec<Arc<Active>>>,
    places: usize,
    /// The latest changes; complete after `log_floor`.
    log: VecDeque<(StreamPosition, Change)>,
    log_floor: StreamPosition,
}

enum Change {
    Room(RoomSn),
    User(OwnedUserId),
}

/// A user who synced lately.
pub struct Active {
    pub user: OwnedUserId,
    wake: Notify,
    waiting: AtomicU32,
    used: AtomicU64,
    /// Given up: whoever holds this asks the tracker again.
    stale: AtomicBool,
    view: Mutex<View>,
}

#[derive(Default)]
struct View {
    rooms: HashMap<RoomSn, Place>,
    /// Every room by its last change.
    recent: BTreeSet<(StreamPosition, RoomSn)>,
    /// The last change of what is the user's own: memberships, account data, devices.
    own: StreamPosition,
    memberships_until: StreamPosition,
}

/// A user's place in a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub membership: Membership,
    /// When it became so.
    pub since: StreamPosition,
    /// The last change of the room that the user can see.
    pub changed: StreamPosition,
}

impl Tracker {
    /// Begins to follow the store.
    pub fn start(store: Store, rooms: Reader) -> Self {
        // Subscribed before the watermark is read: what comes between is seen twice, not missed.
        let mut watched = store.watch();
        let start = store.watermark();
        let state = State { log_floor: start, ..State::default() };
        let tracker = Self {
            inner: Arc::new(Inner {
                store,
                rooms,
                started_at: start,
                progress: watch::Sender::new(start),
                clock: AtomicU64::new(0),
                state: Mutex::new(state),
            }),
        };
        let inner = Arc::downgrade(&tracker.inner);
        tokio::spawn(async move {
            while let Some(wake) = watched.next().await {
                // Held only while something happens, so that a server that was dropped is gone.
                let Some(follower) = inner.upgrade().map(|inner| Self { inner }) else { return };
                match wake {
                    Ok(wake) => follower.follow(wake.upto, &wake.touched).await,
                    Err(lagged) => follower.start_over(&lagged),
                }
            }
        });
        tracker
    }

    /// Where the store was when the tracker began: receipts from before are in nobody's list.
    pub fn started_at(&self) -> StreamPosition {
        self.inner.started_at
    }

    /// Everything up to the answer is in the users' lists, and on the disk. At least what was durable when asked.
    pub async fn caught_up(&self) -> StreamPosition {
        let durable = self.inner.store.watermark();
        let followed = *self.inner.progress.borrow();
        if followed >= durable {
            return followed;
        }
        let mut progress = self.inner.progress.subscribe();
        match progress.wait_for(|upto| *upto >= durable).await {
            Ok(upto) => *upto,
            // The sender lives as long as we do.
            Err(_) => durable,
        }
    }

    /// The user's list of changes, read from the store if need be.
    pub async fn active(&self, user: &UserId) -> Result<Arc<Active>, StoreError> {
        let now = self.inner.clock.fetch_add(1, Ordering::Relaxed);
        loop {
            if let Some(active) = self.inner.state.lock().users.get(user) {
                active.used.store(now, Ordering::Relaxed);
                return Ok(active.clone());
            }
            let from = *self.inner.progress.borrow();
            let view = self.load(user, from).await?;
            if let Some(active) = self.inner.state.lock().insert(user, view, from, now) {
                return Ok(active);
            }
        }
    }

    /// Wakes those who are joined to a room, for what is not in the store.
    pub fn wake_room(&self, room: RoomSn) {
        let state = self.inner.state.lock();
        for active in state.by_room.get(&room).into_iter().flatten() {
            active.wake.notify_waiters();
        }
    }

    /// Wakes a user and those who share a room with them, for what is not in the store.
    pub fn wake_around(&self, user: &UserId, rooms: &[RoomSn]) {
        let state = self.inner.state.lock();
        let around = rooms.iter().filter_map(|room| state.by_room.get(room)).flatten();
        let mut woken = BTreeSet::new();
        for active in around.chain(state.users.get(user)) {
            if active.waiting.load(Ordering::Relaxed) > 0 && woken.insert(active.user.clone()) {
                active.wake.notify_waiters();
            }
        }
    }

    /// The rooms to which an active user is joined; `None` for others.
    pub fn joined_rooms(&self, user: &UserId) -> Option<Vec<RoomSn>> {
        let active = self.inner.state.lock().users.get(user).cloned()?;
        let view = active.view.lock();
        Some(view.rooms.iter().filter(|(_, place)| place.is_joined()).map(|(room, _)| *room).collect())
    }

    /// Wakes everyone, for when it is not known what changed.
    pub fn wake_all(&self) {
        for active in self.inner.state.lock().users.values() {
            active.wake.notify_waiters();
        }
    }

    async fn load(&self, user: &UserId, upto: StreamPosition) -> Result<View, StoreError> {
        let rooms = self.inner.rooms.memberships_of(user).await?;
        let joined: Vec<RoomSn> = rooms
            .iter()
            .filter(|(_, row)| row.value.membership == Membership::Join)
            .map(|(room, _)| *room)
            .collect();
        let changed: HashMap<RoomSn, StreamPosition> =
            joined.iter().copied().zip(self.inner.rooms.last_changes(&joined).await?).collect();
        let mut view = View { own: upto, memberships_until: upto, ..View::default() };
        for (room, row) in rooms {
            let (membership, since) = (row.value.membership, row.position);
            let changed = changed.get(&room).map_or(since, |changed| since.max(*changed));
            if !row.value.forgotten {
                view.put(room, Place { membership, since, changed });
            }
        }
        Ok(view)
    }

    async fn follow(&self, upto: StreamPosition, topics: &[(Topic, StreamPosition)]) {
        let mut changes = Vec::new();
        for (topic, position) in topics {
            changes.extend(self.change_of(topic).await.map(|change| (*position, change)));
        }
        // A join comes before the changes of its room in the same group.
        for (_, change) in &changes {
            if let Change::User(user) = change {
                self.follow_memberships(user, upto).await;
            }
        }
        let woken = self.inner.state.lock().apply(changes);
        self.inner.progress.send_if_modified(|progress| {
            let moved = upto > *progress;
            *progress = upto.max(*progress);
            moved
        });
        for active in woken {
            active.wake.notify_waiters();
        }
    }

    /// Whom a topic concerns.
    async fn change_of(&self, topic: &Topic) -> Option<Change> {
        if let Some(room) = RoomSn::from_topic(topic) {
            return Some(Change::Room(room));
        }
        let text = std::str::from_utf8(topic.id()).ok()?;
        match topic.tag() {
            b'u' => <&UserId>::try_from(text).ok().map(|user| Change::User(user.to_owned())),
            // Receipts of a room.
            b'c' => {
                let room = self.inner.rooms.room_sn(<&RoomId>::try_from(text).ok()?).await;
                room.inspect_err(|error| tracing::error!(%error, "a room cannot be found"))
                    .ok()?
                    .map(Change::Room)
            }
            _ => None,
        }
    }

    async fn follow_memberships(&self, user: &UserId, upto: StreamPosition) {
        let Some(active) = self.inner.state.lock().users.get(user).cloned() else { return };
        let after = active.view.lock().memberships_until;
        match self.inner.rooms.membership_changes(user, after, upto).await {
            Ok(changes) => {
                let mut state = self.inner.state.lock();
                for (position, change) in changes {
                    let place = Place { membership: change.membership, since: position, changed: position };
                    state.place(&active, change.room, (!change.forgotten).then_some(place), position);
                }
                active.view.lock().memberships_until = upto;
            }
            Err(error) => {
                tracing::error!(%user, %error, "memberships cannot be read");
                self.inner.state.lock().give_up(user);
            }
        }
    }

    /// Too far behind to know what changed: everyone is read again.
    fn start_over(&self, lagged: &Lagged) {
        tracing::warn!(%lagged, "those who sync are read again");
        let upto = self.inner.store.watermark();
        let mut state = self.inner.state.lock();
        let users: Vec<OwnedUserId> = state.users.keys().cloned().collect();
        state.log.clear();
        state.log_floor = upto;
        // Before anybody is told of the position: whoever has seen it knows that the old lists are stale.
        for user in users {
            state.give_up(&user);
        }
        self.inner.progress.send_replace(upto);
    }
}

impl State {
    /// Notes the changes in the lists of those whom they concern, whom the caller then wakes. Whose memberships have not
    /// been followed so far came into being meanwhile, and is read again.
    fn apply(&mut self, changes: Vec<(StreamPosition, Change)>) -> Vec<Arc<Active>> {
        let mut woken = Vec::new();
        for (position, change) in &changes {
            let Change::User(user) = change else { continue };
            let is_behind = |active: &Arc<Active>| active.view.lock().memberships_until < *position;
            if self.users.get(user).is_some_and(is_behind) {
                self.give_up(user);
            }
        }
        for (position, change) in &changes {
            match change {
                Change::Room(room) => {
                    for active in self.by_room.get(room).into_iter().flatten() {
                        active.view.lock().touch(*room, *position);
                        woken.push(active.clone());
                    }
                }
                Change::User(user) => {
                    if let Some(active) = self.users.get(user) {
                        let mut view = active.view.lock();
                        view.own = view.own.max(*position);
                        woken.push(active.clone());
                    }
                }
            }
        }
        self.log.extend(changes);
        while self.log.len() > LOG_LENGTH {
            if let Some((position, _)) = self.log.pop_front() {
                self.log_floor = self.log_floor.max(position);
            }
        }
        woken
    }

    /// Adds a user who was read when everything up to `from` had been followed. `None` if what happened since must be
    /// read again.
    fn insert(
        &mut self,
        user: &UserId,
        mut view: View,
        from: StreamPosition,
        now: u64,
    ) -> Option<Arc<Active>> {
        if let Some(active) = self.users.get(user) {
            return Some(active.clone());
        }
        if self.log_floor > from {
            return None;
        }
        for (position, change) in self.log.iter().filter(|(position, _)| *position > from) {
            match change {
                Change::Room(room) => view.touch(*room, *position),
                Change::User(changed) if changed == user => return None,
                Change::User(_) => {}
            }
        }
        self.make_space(view.rooms.len());
        let joined: Vec<RoomSn> =
            view.rooms.iter().filter(|(_, place)| place.is_joined()).map(|(room, _)| *room).collect();
        self.places += view.rooms.len();
        let active = Arc::new(Active {
            user: user.to_owned(),
            wake: Notify::new(),
            waiting: AtomicU32::new(0),
            used: AtomicU64::new(now),
            stale: AtomicBool::new(false),
            view: Mutex::new(view),
        });
        for room in joined {
            self.by_room.entry(room).or_default().push(active.clone());
        }
        self.users.insert(user.to_owned(), active.clone());
        Some(active)
    }

    /// Changes a user's place in a room at a position; `None` forgets it.
    fn place(&mut self, active: &Arc<Active>, room: RoomSn, place: Option<Place>, at: StreamPosition) {
        let mut view = active.view.lock();
        // Who finds no room there knows that something happened.
        view.own = view.own.max(at);
        let before = view.rooms.get(&room).copied();
        // Read before it was followed.
        if before.zip(place).is_some_and(|(before, place)| before.since >= place.since) {
            return;
        }
        let was_joined = before.is_some_and(|place| place.is_joined());
        let is_joined = place.is_some_and(|place| place.is_joined());
        self.places = self.places + usize::from(place.is_some()) - usize::from(before.is_some());
        match place {
            Some(place) => view.put(room, place),
            None => view.remove(room),
        }
        drop(view);
        if is_joined && !was_joined {
            self.by_room.entry(room).or_default().push(active.clone());
        } else if was_joined && !is_joined {
            self.leave(active, room);
        }
    }

    fn leave(&mut self, active: &Arc<Active>, room: RoomSn) {
        if let Some(members) = self.by_room.get_mut(&room) {
            members.retain(|member| !Arc::ptr_eq(member, active));
            if members.is_empty() {
                self.by_room.remove(&room);
            }
        }
    }

    fn give_up(&mut self, user: &UserId) {
        let Some(active) = self.users.remove(user) else { return };
        let rooms: Vec<RoomSn> = active.view.lock().rooms.keys().copied().collect();
        self.places -= rooms.len();
        for room in rooms {
            self.leave(&active, room);
        }
        active.stale.store(true, Ordering::SeqCst);
        active.wake.notify_waiters();
    }

    /// Gives up those who have not synced for longest, an eighth at a time, never one who waits.
    fn make_space(&mut self, coming: usize) {
        if self.places + coming <= MAX_PLACES && self.users.len() < MAX_USERS {
            return;
        }
        let mut idle: Vec<(u64, OwnedUserId)> = self
            .users
            .values()
            .filter(|active| active.waiting.load(Ordering::SeqCst) == 0)
            .map(|active| (active.used.load(Ordering::Relaxed), active.user.clone()))
            .collect();
        idle.sort_unstable();
        let count = idle.len().div_ceil(8);
        for (_, user) in idle.into_iter().take(count) {
            self.give_up(&user);
        }
    }
}

impl View {
    fn put(&mut self, room: RoomSn, place: Place) {
        self.remove(room);
        self.recent.insert((place.changed, room));
        self.rooms.insert(room, place);
    }

    fn remove(&mut self, room: RoomSn) {
        if let Some(before) = self.rooms.remove(&room) {
            self.recent.remove(&(before.changed, room));
        }
    }

    /// The room changed for those who are joined to it.
    fn touch(&mut self, room: RoomSn, position: StreamPosition) {
        let Some(place) = self.rooms.get_mut(&room) else { return };
        if place.is_joined() && position > place.changed {
            self.recent.remove(&(place.changed, room));
            place.changed = position;
            self.recent.insert((position, room));
        }
    }
}

impl Place {
    pub fn is_joined(&self) -> bool {
        self.membership == Membership::Join
    }
}

impl Active {
    /// All rooms of the user that are not forgotten.
    pub fn places(&self) -> Vec<(RoomSn, Place)> {
        let view = self.view.lock();
        let mut places: Vec<_> = view.rooms.iter().map(|(room, place)| (*room, *place)).collect();
        drop(view);
        places.sort_unstable_by_key(|(room, _)| *room);
        places
    }

    /// The rooms that changed after `since`, the latest first.
    pub fn changed_after(&self, since: StreamPosition) -> Vec<(RoomSn, Place)> {
        let view = self.view.lock();
        let changed = view.recent.iter().rev().take_while(|(position, _)| *position > since);
        changed.filter_map(|(_, room)| view.rooms.get(room).map(|place| (*room, *place))).collect()
    }

    /// The user's place in a room.
    pub fn place(&self, room: RoomSn) -> Option<Place> {
        self.view.lock().rooms.get(&room).copied()
    }

    /// Whether anything of what is the user's own may have changed after `since`.
    pub fn own_changed_after(&self, since: StreamPosition) -> bool {
        self.view.lock().own > since
    }

    /// Whether anything of the user's, or of a room of theirs, may have changed after `since`.
    pub fn may_have_changed_after(&self, since: StreamPosition) -> bool {
        let view = self.view.lock();
        view.own > since || view.recent.last().is_some_and(|(position, _)| *position > since)
    }

    /// Whether the tracker has forgotten this user and is to be asked again.
    pub fn is_stale(&self) -> bool {
        self.stale.load(Ordering::SeqCst)
    }

    /// Subscribes to changes from now on. Read what there is, then await it.
    pub fn wakening(self: &Arc<Self>) -> Wakening<'_> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let mut notified = Box::pin(self.wake.notified());
        notified.as_mut().enable();
        Wakening { active: self, notified }
    }
}

/// A subscription to one user's next change.
pub struct Wakening<'a> {
    active: &'a Active,
    notified: std::pin::Pin<Box<Notified<'a>>>,
}

impl Wakening<'_> {
    /// Returns at once if something changed after the subscription was made.
    pub async fn wait(&mut self) {
        self.notified.as_mut().await;
    }
}

impl Drop for Wakening<'_> {
    fn drop(&mut self) {
        self.active.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use ruma::user_id;

    use super::*;

    // Read before the change was visible, entered after memberships were followed, before the rest was: the list lacks
    // the room and must not be used.
    #[test]
    fn a_list_that_came_between_is_read_again() {
        let (alice, bob) = (user_id!("@alice:a.test"), user_id!("@bob:a.test"));
        let at = StreamPosition::new;
        let mut state = State::default();
        let until = |position| View { memberships_until: at(position), ..View::default() };
        let behind = state.insert(alice, until(7), at(7), 0).unwrap();
        let followed = state.insert(bob, until(8), at(7), 0).unwrap();
        let change = |user: &UserId| (at(8), Change::User(user.to_owned()));
        let woken = state.apply(vec![change(alice), change(bob)]);
        assert!(behind.is_stale() && !state.users.contains_key(alice));
        assert!(!followed.is_stale() && woken.len() == 1);
    }
}
