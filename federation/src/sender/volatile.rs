//! Where typing, receipts and presence are noticed and fanned out. Nothing of it is kept over a restart.
//! * Only what our users do, and only what others may see: private receipts never leave.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use hearth_store::{StoreError, StreamPosition};
use hearth_users::{PresenceView, ReceiptKind, Volatile};
use ruma::{OwnedRoomId, OwnedServerName, OwnedUserId, RoomId, UserId};
use serde_json::json;
use tokio::{
    sync::broadcast::error::RecvError,
    time::{Instant, MissedTickBehavior},
};

use super::{
    Inner,
    edus::{EduKey, EduValue},
};

/// Receipts of this long go together.
const RECEIPTS_EVERY: Duration = Duration::from_millis(200);
/// Changes of presence of this long go together.
const PRESENCE_EVERY: Duration = Duration::from_secs(1);
/// Who goes on typing is told again after this time: other servers forget it.
const TYPING_AGAIN: Duration = Duration::from_secs(25);
/// Rooms in which our users type, remembered.
const TYPING_ROOMS_MAX: usize = 10_000;
/// Users whose presence changed, remembered until it is told.
const PRESENT_MAX: usize = 10_000;
/// Rooms whose receipts are read at a time.
const ROOMS_MAX: usize = 10_000;
/// Rooms of a user that are looked at to find who sees their presence.
const ROOMS_OF_A_USER: usize = 1_000;

/// What was told of who types in a room.
struct Told {
    users: BTreeSet<OwnedUserId>,
    at: Instant,
}

impl Inner {
    /// Sends to servers what need not arrive.
    fn tell(self: &Arc<Self>, servers: &[OwnedServerName], items: &[(Arc<EduKey>, EduValue)]) {
        for server in servers {
            let mut state = self.state.lock();
            for (key, value) in items {
                state.push_volatile(server, key, value);
            }
        }
        self.start_workers();
    }

    /// The other servers in a room; none if it is not known.
    async fn servers_of(&self, room: &RoomId) -> Result<Vec<OwnedServerName>, StoreError> {
        match self.rooms.room(room).await? {
            Some(info) => self.others_in(&info).await,
            None => Ok(Vec::new()),
        }
    }

    /// Tells of receipts as they change.
    pub(super) async fn follow_receipts(self: Arc<Self>) {
        let mut watch = self.store.watch();
        let mut since = self.store.watermark();
        loop {
            loop {
                match watch.next().await {
                    None => return,
                    // Receipts touch their room by its ID.
                    Some(Ok(wake)) if !wake.touched.iter().any(|(topic, _)| topic.tag() == b'c') => {}
                    Some(_) => break,
                }
            }
            tokio::time::sleep(RECEIPTS_EVERY).await;
            let upto = self.store.watermark();
            let rooms = self.users.rooms_with_receipts_since(since, ROOMS_MAX).unwrap_or_default();
            for room in rooms {
                let Ok(room) = <&RoomId>::try_from(&*room) else { continue };
                if let Err(error) = self.tell_receipts(room, since, upto).await {
                    tracing::warn!(%error, %room, "receipts cannot be read");
                }
            }
            since = upto;
        }
    }

    async fn tell_receipts(
        self: &Arc<Self>,
        room: &RoomId,
        since: StreamPosition,
        upto: StreamPosition,
    ) -> Result<(), StoreError> {
        let servers = self.servers_of(room).await?;
        if servers.is_empty() {
            return Ok(());
        }
        let receipts = self.users.public_receipts_since(room, since, upto).await?;
        let local = self.federation.local_servers();
        let ours = receipts.into_iter().filter(|receipt| {
            receipt.kind == ReceiptKind::Read && local.is_local(receipt.user_id.server_name())
        });
        let items: Vec<(Arc<EduKey>, EduValue)> = ours
            .map(|receipt| {
                let mut data = json!({ "ts": receipt.ts });
                if let Some(thread) = receipt.thread.as_str() {
                    data["thread_id"] = thread.into();
                }
                let thread = receipt.thread.as_str().map(str::to_owned);
                let key = EduKey::Receipt(room.to_owned(), receipt.user_id, thread);
                (Arc::new(key), Arc::new(json!({ "data": data, "event_ids": [receipt.event_id] })))
            })
            .collect();
        self.tell(&servers, &items);
        Ok(())
    }

    /// Tells who types, again while they go on, and who is there.
    pub(super) async fn follow_typing_and_presence(self: Arc<Self>) {
        let mut changes = self.users.volatile_changes();
        let mut told: HashMap<OwnedRoomId, Told> = HashMap::new();
        let mut present: HashSet<OwnedUserId> = HashSet::new();
        let mut tick = tokio::time::interval(PRESENCE_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                change = changes.recv() => match change {
                    Ok(Volatile::Typing(room)) => self.tell_typing(&room, &mut told, false).await,
                    Ok(Volatile::Presence(user)) => {
                        let is_ours = self.federation.local_servers().is_local(user.server_name());
                        if is_ours && present.len() < PRESENT_MAX {
                            present.insert(user);
                        }
                    }
                    // Who still types is told of again in some seconds.
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return,
                },
                _ = tick.tick() => {
                    for user in present.drain() {
                        self.tell_presence(&user).await;
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

    async fn tell_presence(self: &Arc<Self>, user: &UserId) {
        let view = self.users.presence().of(user);
        match self.servers_that_see(user).await {
            Ok(servers) if servers.is_empty() => {}
            Ok(servers) => {
                let servers: Vec<OwnedServerName> = servers.into_iter().collect();
                let key = Arc::new(EduKey::Presence(user.to_owned()));
                self.tell(&servers, &[(key, Arc::new(presence_json(user, &view)))]);
            }
            Err(error) => tracing::warn!(%error, %user, "who sees a user cannot be read"),
        }
    }

    /// The other servers of the rooms that a user is in.
    async fn servers_that_see(&self, user: &UserId) -> Result<BTreeSet<OwnedServerName>, StoreError> {
        let mut servers = BTreeSet::new();
        for room in self.rooms.joined_rooms(user).await?.into_iter().take(ROOMS_OF_A_USER) {
            if let Some(info) = self.rooms.room_of(room).await? {
                servers.extend(self.others_in(&info).await?);
            }
        }
        Ok(servers)
    }
}

fn presence_json(user: &UserId, view: &PresenceView) -> serde_json::Value {
    let mut json = json!({
        "user_id": user,
        "presence": view.presence.as_str(),
        "currently_active": view.currently_active,
        "last_active_ago": view.last_active_ago_ms.unwrap_or_default(),
    });
    if let Some(message) = &view.status_msg {
        json["status_msg"] = message.as_str().into();
    }
    json
}
