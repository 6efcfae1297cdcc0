//! Who is online. In memory only, so that a client's poll never costs a write; another boot starts with everyone offline.
//! * Each visible change of a user raises one counter; a reader that has seen `c` asks for what changed after it.
//! * Without activity an online user becomes unavailable, and without any sync offline.
//! * Switched off, nothing is recorded and everyone is offline.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use ruma::{OwnedUserId, UserId, presence::PresenceState};
use tokio::{
    sync::broadcast,
    time::{Instant, MissedTickBehavior},
};

use crate::volatile::Volatile;

/// Users whose presence is held; the one that changed longest ago is forgotten first.
pub const MAX_PRESENT_USERS: usize = 50_000;
/// Activity that is younger than this is shown as `currently_active`.
pub const CURRENTLY_ACTIVE: Duration = Duration::from_secs(60);
/// Of those who changed longest ago, so many are looked at for one to forget.
const LOOKED_AT: usize = 64;
/// Servers repeat what their users are every twenty-five minutes or so: who was not heard of for this long is offline.
const REMOTE_OFFLINE_AFTER: Duration = Duration::from_secs(45 * 60);
const SWEEP_EVERY: Duration = Duration::from_secs(5);

/// How presence behaves.
#[derive(Clone, Debug)]
pub struct PresenceOptions {
    /// Whether there is presence at all.
    pub enabled: bool,
    /// Without activity for this long, who is online becomes unavailable.
    pub idle_after: Duration,
    /// Without a sync for this long, a user is offline.
    pub offline_after: Duration,
}

impl Default for PresenceOptions {
    fn default() -> Self {
        Self { enabled: true, idle_after: Duration::from_secs(300), offline_after: Duration::from_secs(45) }
    }
}

/// A user's presence as others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PresenceView {
    /// Online, unavailable or offline.
    pub presence: PresenceState,
    /// What the user says about it.
    pub status_msg: Option<String>,
    /// Milliseconds since the user last did something; `None` where that is not known.
    pub last_active_ago_ms: Option<u64>,
    /// Whether the user did something just now.
    pub currently_active: bool,
}

impl PresenceView {
    fn offline() -> Self {
        Self {
            presence: PresenceState::Offline,
            status_msg: None,
            last_active_ago_ms: None,
            currently_active: false,
        }
    }
}

/// The presence of all users that were seen since the start.
pub struct Presence {
    options: PresenceOptions,
    state: Mutex<State>,
    changes: broadcast::Sender<Volatile>,
}

#[derive(Default)]
struct State {
    counter: u64,
    floor: u64,
    users: HashMap<OwnedUserId, Present>,
    order: BTreeMap<u64, OwnedUserId>,
}

struct Present {
    presence: PresenceState,
    status_msg: Option<String>,
    /// The user's own wish, kept while the idle timer shows something else.
    last_active: Option<Instant>,
    last_sync: Instant,
    /// Another server's user: that one says when they are idle.
    is_remote: bool,
    /// Syncs that wait right now: who waits is there.
    waiting: u32,
    currently_active: bool,
    changed: u64,
}

impl Presence {
    pub(crate) fn new(options: PresenceOptions, changes: broadcast::Sender<Volatile>) -> Self {
        Self { options, state: Mutex::default(), changes }
    }

    /// Whether there is presence at all.
    pub fn enabled(&self) -> bool {
        self.options.enabled
    }

    /// The user says what they are (`PUT /presence/{userId}/status`).
    pub fn set(&self, user: &UserId, presence: PresenceState, status_msg: Option<String>) {
        let active = presence == PresenceState::Online;
        self.update(user, |present, now| {
            present.presence = presence;
            present.status_msg = status_msg;
            present.last_sync = now;
            if active {
                present.last_active = Some(now);
            }
        });
    }

    /// A sync with `set_presence`: it keeps the user there, and `Online` counts as activity.
    /// While the answer is kept, the user does not go offline.
    pub fn syncing(self: &Arc<Self>, user: &UserId, set_presence: &PresenceState) -> Syncing {
        if !self.options.enabled || *set_presence == PresenceState::Offline {
            return Syncing { presence: None };
        }
        self.update(user, |present, now| {
            present.last_sync = now;
            present.waiting += 1;
            if *set_presence == PresenceState::Online {
                if present.presence == PresenceState::Offline || present.last_active.is_none() {
                    present.last_active = Some(now);
                }
                // An unavailable user comes back by doing something, not by a poll.
                if present.presence == PresenceState::Offline {
                    present.presence = PresenceState::Online;
                }
            } else if present.presence != PresenceState::Unavailable {
                present.presence = PresenceState::Unavailable;
            }
        });
        Syncing { presence: Some((self.clone(), user.to_owned())) }
    }

    /// The user did something that shows a person at work: sent, typed, read.
    pub fn active(&self, user: &UserId) {
        self.update(user, |present, now| {
            present.last_active = Some(now);
            present.last_sync = now;
            present.presence = PresenceState::Online;
        });
    }

    /// What a peer told of its user.
    pub fn set_remote(&self, user: &UserId, view: PresenceView) {
        self.update(user, |present, now| {
            present.presence = view.presence;
            present.status_msg = view.status_msg;
            present.last_active =
                view.last_active_ago_ms.and_then(|ago| now.checked_sub(Duration::from_millis(ago)));
            present.last_sync = now;
            present.is_remote = true;
        });
    }

    /// The user has no device any more, and is offline at once.
    pub fn gone(&self, user: &UserId) {
        self.update_known(user, |present| present.presence = PresenceState::Offline);
    }

    /// The user is offline for good, and nothing is told of them any more. Those who saw them hear of it.
    pub fn forget(&self, user: &UserId) {
        self.update_known(user, |present| {
            present.presence = PresenceState::Offline;
            present.status_msg = None;
            present.last_active = None;
        });
    }

    /// The counter of the newest change.
    pub fn counter(&self) -> u64 {
        self.state.lock().counter
    }

    /// A user's presence now.
    pub fn of(&self, user: &UserId) -> PresenceView {
        let now = Instant::now();
        self.state.lock().users.get(user).map_or_else(PresenceView::offline, |present| present.view(now))
    }

    /// Who changed after `since` among the users that `wanted` names, with the counter read up to: at most `limit`, the
    /// latest, as what is older says little of who is there now. Where too much has happened to tell, everyone who is
    /// known counts as changed.
    pub fn changes_since(
        &self,
        since: u64,
        limit: usize,
        wanted: impl Fn(&UserId) -> bool,
    ) -> (Vec<(OwnedUserId, PresenceView)>, u64) {
        let now = Instant::now();
        let state = self.state.lock();
        let since = if state.floor > since { 0 } else { since };
        let changed = state.order.range(since.saturating_add(1)..).rev().map(|(_, user)| user);
        let views = changed.filter(|user| wanted(user)).take(limit).filter_map(|user| {
            let present = state.users.get(user)?;
            Some((user.clone(), present.view(now)))
        });
        (views.collect(), state.counter)
    }

    /// Lets time pass over the users, for ever. One task of the server runs this.
    pub(crate) async fn sweep(self: Arc<Self>) {
        if !self.options.enabled {
            return;
        }
        let mut ticks = tokio::time::interval(SWEEP_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            for user in self.state.lock().pass_time(&self.options, Instant::now()) {
                _ = self.changes.send(Volatile::Presence(user));
            }
        }
    }

    fn update(&self, user: &UserId, change: impl FnOnce(&mut Present, Instant)) {
        if !self.options.enabled {
            return;
        }
        if self.state.lock().update(user, Instant::now(), change) {
            _ = self.changes.send(Volatile::Presence(user.to_owned()));
        }
    }

    /// As `update`, for users who have been seen; of others there is nothing to change.
    fn update_known(&self, user: &UserId, change: impl FnOnce(&mut Present)) {
        let differs = {
            let mut state = self.state.lock();
            state.users.contains_key(user) && state.update(user, Instant::now(), |present, _| change(present))
        };
        if differs {
            _ = self.changes.send(Volatile::Presence(user.to_owned()));
        }
    }

    fn sync_ended(&self, user: &UserId) {
        if let Some(present) = self.state.lock().users.get_mut(user) {
            present.waiting = present.waiting.saturating_sub(1);
            present.last_sync = Instant::now();
        }
    }
}

/// A sync under way; its user does not go offline while this lives.
pub struct Syncing {
    presence: Option<(Arc<Presence>, OwnedUserId)>,
}

impl Drop for Syncing {
    fn drop(&mut self) {
        if let Some((presence, user)) = self.presence.take() {
            presence.sync_ended(&user);
        }
    }
}

impl Present {
    fn is_gone(&self, options: &PresenceOptions, now: Instant) -> bool {
        let limit = if self.is_remote { REMOTE_OFFLINE_AFTER } else { options.offline_after };
        self.waiting == 0 && now.saturating_duration_since(self.last_sync) >= limit
    }

    /// Of others' users their servers say so themselves.
    fn is_inactive(&self, options: &PresenceOptions, now: Instant) -> bool {
        let long_ago = |at| now.saturating_duration_since(at) >= options.idle_after;
        !self.is_remote && self.last_active.is_none_or(long_ago)
    }

    fn view(&self, now: Instant) -> PresenceView {
        PresenceView {
            presence: self.presence.clone(),
            status_msg: self.status_msg.clone(),
            last_active_ago_ms: self
                .last_active
                .map(|at| u64::try_from(now.saturating_duration_since(at).as_millis()).unwrap_or(u64::MAX)),
            currently_active: self.currently_active,
        }
    }

    fn is_currently_active(&self, now: Instant) -> bool {
        self.presence == PresenceState::Online
            && self.last_active.is_some_and(|at| now.saturating_duration_since(at) < CURRENTLY_ACTIVE)
    }
}

impl State {
    /// Whether others see a difference. Mere activity of an active user is none.
    fn update(&mut self, user: &UserId, now: Instant, change: impl FnOnce(&mut Present, Instant)) -> bool {
        if !self.users.contains_key(user) {
            self.make_room();
            let new = Present {
                presence: PresenceState::Offline,
                status_msg: None,
                last_active: None,
                last_sync: now,
                is_remote: false,
                waiting: 0,
                currently_active: false,
                changed: 0,
            };
            self.users.insert(user.to_owned(), new);
        }
        let Some(present) = self.users.get_mut(user) else { return false };
        let before = (present.presence.clone(), present.status_msg.clone(), present.currently_active);
        change(present, now);
        present.currently_active = present.is_currently_active(now);
        let differs =
            before != (present.presence.clone(), present.status_msg.clone(), present.currently_active);
        if differs || present.changed == 0 {
            self.counter += 1;
            self.order.remove(&present.changed);
            present.changed = self.counter;
            self.order.insert(self.counter, user.to_owned());
        }
        differs
    }

    fn pass_time(&mut self, options: &PresenceOptions, now: Instant) -> Vec<OwnedUserId> {
        let due: Vec<OwnedUserId> = self
            .users
            .iter()
            .filter(|(_, present)| {
                let gone = present.is_gone(options, now);
                let inactive = present.is_inactive(options, now);
                (gone && present.presence != PresenceState::Offline)
                    || (inactive && present.presence == PresenceState::Online)
                    || present.currently_active != present.is_currently_active(now)
            })
            .map(|(user, _)| user.clone())
            .collect();
        for user in &due {
            self.update(user, now, |present, now| {
                let (gone, inactive) = (present.is_gone(options, now), present.is_inactive(options, now));
                if gone {
                    present.presence = PresenceState::Offline;
                } else if inactive && present.presence == PresenceState::Online {
                    present.presence = PresenceState::Unavailable;
                }
            });
        }
        due
    }

    fn make_room(&mut self) {
        while self.users.len() >= MAX_PRESENT_USERS {
            // Who is offline is so without being held too; only some are looked at.
            let offline = |user: &OwnedUserId| {
                self.users.get(user).is_none_or(|present| present.presence == PresenceState::Offline)
            };
            let oldest = self.order.iter().take(LOOKED_AT).find(|(_, user)| offline(user));
            let oldest = oldest.or_else(|| self.order.first_key_value());
            let Some((counter, user)) = oldest.map(|(counter, user)| (*counter, user.clone())) else {
                return;
            };
            self.order.remove(&counter);
            self.users.remove(&user);
            self.floor = self.floor.max(counter);
        }
    }
}

#[cfg(test)]
mod tests {
    use ruma::user_id;

    use super::*;

    fn presence(options: PresenceOptions) -> Arc<Presence> {
        let presence = Arc::new(Presence::new(options, broadcast::channel(16).0));
        tokio::spawn(presence.clone().sweep());
        presence
    }

    // A syncing user is online; without activity unavailable; after the last sync offline.
    #[tokio::test(start_paused = true)]
    async fn a_user_idles_and_leaves() {
        let presence = presence(PresenceOptions::default());
        let alice = user_id!("@alice:a");
        let sync = presence.syncing(alice, &PresenceState::Online);
        assert_eq!(presence.of(alice).presence, PresenceState::Online);
        assert!(presence.of(alice).currently_active);
        let seen = presence.counter();
        tokio::time::sleep(Duration::from_secs(310)).await;
        assert_eq!(presence.of(alice).presence, PresenceState::Unavailable);
        assert_eq!(presence.changes_since(seen, 10, |_| true).0.len(), 1);
        drop(presence.syncing(alice, &PresenceState::Online));
        assert_eq!(presence.of(alice).presence, PresenceState::Unavailable, "a poll is no activity");
        presence.active(alice);
        assert_eq!(presence.of(alice).presence, PresenceState::Online);
        drop(sync);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(presence.of(alice).presence, PresenceState::Offline);
    }

    // A poll that changes nothing visible is no change for others.
    #[tokio::test(start_paused = true)]
    async fn a_poll_is_no_change() {
        let presence = presence(PresenceOptions::default());
        let alice = user_id!("@alice:a");
        drop(presence.syncing(alice, &PresenceState::Online));
        let seen = presence.counter();
        for _ in 0..5 {
            drop(presence.syncing(alice, &PresenceState::Online));
            presence.active(alice);
        }
        assert_eq!(presence.counter(), seen);
        assert_eq!(presence.changes_since(seen, 10, |_| true), (vec![], seen));
    }

    // Those who saw a user hear that they are gone, and of nobody else.
    #[tokio::test(start_paused = true)]
    async fn who_is_gone_is_shown_as_offline() {
        let presence = presence(PresenceOptions::default());
        let (alice, bob) = (user_id!("@alice:a"), user_id!("@bob:a"));
        presence.set(alice, PresenceState::Online, Some("here".to_owned()));
        presence.set(bob, PresenceState::Online, None);
        let seen = presence.counter();
        presence.gone(alice);
        let (changes, seen_now) = presence.changes_since(seen, 10, |_| true);
        let [(user, view)] = &changes[..] else { panic!("{changes:?}") };
        assert_eq!((&**user, &view.presence, view.currently_active), (alice, &PresenceState::Offline, false));
        assert_eq!(view.status_msg.as_deref(), Some("here"));
        presence.forget(alice);
        let (changes, seen) = presence.changes_since(seen_now, 10, |_| true);
        assert_eq!(changes, vec![(alice.to_owned(), PresenceView::offline())]);
        presence.forget(alice);
        presence.gone(user_id!("@never:seen"));
        assert_eq!(presence.counter(), seen);
    }

    // Full, those go who are offline anyway.
    #[tokio::test(start_paused = true)]
    async fn who_is_offline_makes_room_first() {
        let presence = presence(PresenceOptions::default());
        let name = |number: usize| OwnedUserId::try_from(format!("@u{number}:a")).unwrap();
        presence.set(&name(0), PresenceState::Online, None);
        presence.set(&name(1), PresenceState::Offline, Some("out".to_owned()));
        for number in 2..=MAX_PRESENT_USERS {
            presence.set(&name(number), PresenceState::Online, None);
        }
        assert_eq!(presence.of(&name(0)).presence, PresenceState::Online);
        assert_eq!(presence.of(&name(1)), PresenceView::offline());
        assert_eq!(presence.state.lock().users.len(), MAX_PRESENT_USERS);
    }

    // The status message stays until the user says another, and is seen by those who ask.
    #[tokio::test(start_paused = true)]
    async fn a_status_message_is_shown() {
        let presence = presence(PresenceOptions::default());
        let alice = user_id!("@alice:a");
        presence.set(alice, PresenceState::Unavailable, Some("lunch".to_owned()));
        let (changes, _) = presence.changes_since(0, 10, |user| user == alice);
        assert_eq!(changes[0].1.status_msg.as_deref(), Some("lunch"));
        assert_eq!(presence.changes_since(0, 10, |_| false).0, vec![]);
    }

    // Switched off, everyone is offline and nothing is held.
    #[tokio::test(start_paused = true)]
    async fn the_off_switch() {
        let presence = presence(PresenceOptions { enabled: false, ..PresenceOptions::default() });
        let alice = user_id!("@alice:a");
        presence.set(alice, PresenceState::Online, None);
        assert_eq!(presence.of(alice), PresenceView::offline());
        assert_eq!(presence.counter(), 0);
    }
}
