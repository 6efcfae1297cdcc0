//! Who types, told to the servers of the room, again while they go on. Nothing of it is kept over a restart.
//! * It waits for nothing else: receipts and presence have tasks of their own.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use hearth_users::Volatile;
use ruma::{OwnedRoomId, OwnedUserId, RoomId};
use tokio::{
    sync::broadcast::error::RecvError,
    time::{Instant, MissedTickBehavior},
};

use super::{
    Inner,
    edus::{EduKey, EduValue},
};

/// Who goes on typing is told again after this time: other servers forget it.
const TYPING_AGAIN: Duration = Duration::from_secs(25);
/// How often it is looked who that is.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Rooms in which our users type, remembered.
const TYPING_ROOMS_MAX: usize = 10_000;

/// What was told of who types in a room.
struct Told {
    users: BTreeSet<OwnedUserId>,
    at: Instant,
}

impl Inner {
    /// Tells who types, again while they go on.
    pub(super) async fn follow_typing(self: Arc<Self>) {
        let mut changes = self.users.volatile_changes();
        let mut seen = self.users.typing().counter();
        let mut told: HashMap<OwnedRoomId, Told> = HashMap::new();
        let mut tick = tokio::time::interval(LOOK_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                change = changes.recv() => match change {
                    Ok(Volatile::Typing(room)) => self.tell_typing(&room, &mut told, false).await,
                    Ok(Volatile::Presence(_)) => continue,
                    Err(RecvError::Lagged(_)) => {
                        let counter = self.users.typing().counter();
                        for room in self.users.typing().rooms_since(seen).unwrap_or_default() {
                            self.tell_typing(&room, &mut told, false).await;
                        }
                        seen = counter;
                    }
                    Err(RecvError::Closed) => return,
                },
                _ = tick.tick() => {
                    if changes.is_empty() {
                        seen = self.users.typing().counter();
                    }
                    let again = |told: &Told| told.at.elapsed() >= TYPING_AGAIN;
                    let due: Vec<OwnedRoomId> =
                        told.iter().filter(|(_, told)| again(told)).map(|(room, _)| room.clone()).collect();
                    for room in due {
                        self.tell_typing(&room, &mut told, true).await;
                    }
                }
            }
        }
    }

    async fn tell_typing(
        self: &Arc<Self>,
        room: &RoomId,
        told: &mut HashMap<OwnedRoomId, Told>,
        again: bool,
    ) {
        let local = self.federation.local_servers();
        let users = self.users.typing().users(room).into_iter();
        let now: BTreeSet<OwnedUserId> = users.filter(|user| local.is_local(user.server_name())).collect();
        let before = told.get(room).map(|told| told.users.clone()).unwrap_or_default();
        if now == before && !again {
            return;
        }
        let mut items: Vec<(Arc<EduKey>, EduValue)> = Vec::new();
        let mut say = |user: &OwnedUserId, types: bool| {
            let key = EduKey::Typing(room.to_owned(), user.clone());
            items.push((Arc::new(key), Arc::new(types.into())));
        };
        before.difference(&now).for_each(|user| say(user, false));
        now.iter().filter(|user| again || !before.contains(*user)).for_each(|user| say(user, true));
        if now.is_empty() {
            told.remove(room);
        } else if told.len() < TYPING_ROOMS_MAX || told.contains_key(room) {
            told.insert(room.to_owned(), Told { users: now, at: Instant::now() });
        }
        match self.servers_of(room).await {
            Ok(servers) => self.tell(&servers, &items),
            Err(error) => tracing::warn!(%error, %room, "who is in a room cannot be read"),
        }
    }
}
