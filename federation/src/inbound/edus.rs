//! What is not kept as events: who types, who has read what, who is there.
//! * Only what a server says of its own users counts, and of a room only if they are in it and its ACL lets the server.
//! * What cannot be read is passed over: nobody sends an EDU twice, and none fails its transaction.
//! * What is told for encryption is kept: see [`super::encryption`].

use std::{borrow::Cow, collections::BTreeMap, collections::HashSet, sync::Arc, time::Duration};

use futures_util::future::join_all;
use hearth_rooms::{Membership, RoomInfo, StoredEvent, tables::MEMBERS};
use hearth_store::StoreError;
use hearth_users::{NewReceipt, PresenceView, ReceiptKind, ReceiptOrder, UsersError};
use parking_lot::Mutex;
use quick_cache::sync::Cache;
use ruma::{
    OwnedEventId, OwnedRoomId, OwnedServerName, OwnedUserId, ServerName, UserId,
    events::receipt::ReceiptThread, presence::PresenceState,
};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::Inbound;

/// Receipts of one transaction.
pub const RECEIPTS_MAX: usize = 1_000;
/// Users of one server whose presence is taken.
pub const PRESENCE_MAX: usize = 5_000;
/// Servers of which it is remembered whose presence they told.
const SERVERS_MAX: usize = 1_000;
/// Events that one receipt names.
const EVENTS_OF_A_RECEIPT: usize = 10;
/// Receipts that are written at once.
const WRITTEN_AT_ONCE: usize = 50;
/// Who types is said again before this time is over.
const TYPING_TIME: Duration = Duration::from_secs(60);
/// Characters of what a user says about their presence.
const STATUS_CHARACTERS: usize = 500;

/// Whose presence each server told.
pub(super) struct Told(Cache<OwnedServerName, Arc<Mutex<HashSet<OwnedUserId>>>>);

impl Told {
    pub(super) fn new() -> Self {
        Self(Cache::new(SERVERS_MAX))
    }

    /// Whether a server may tell of one more user.
    fn may_tell(&self, server: &ServerName, user: &UserId) -> bool {
        let users = match self.0.get(server) {
            Some(users) => users,
            None => {
                let users = Arc::<Mutex<HashSet<OwnedUserId>>>::default();
                self.0.insert(server.to_owned(), users.clone());
                users
            }
        };
        let mut users = users.lock();
        if users.len() >= PRESENCE_MAX && !users.contains(user) {
            return false;
        }
        users.insert(user.to_owned());
        true
    }
}

#[derive(Deserialize)]
struct Edu<'a> {
    #[serde(borrow)]
    edu_type: Cow<'a, str>,
    #[serde(borrow)]
    content: &'a RawValue,
}

#[derive(Deserialize)]
struct Typing {
    room_id: OwnedRoomId,
    user_id: OwnedUserId,
    typing: bool,
}

#[derive(Deserialize)]
struct OfRoom<'a> {
    #[serde(borrow, rename = "m.read", default)]
    read: BTreeMap<OwnedUserId, &'a RawValue>,
}

#[derive(Deserialize)]
struct Receipt {
    event_ids: Vec<OwnedEventId>,
    data: ReceiptData,
}

#[derive(Deserialize)]
struct ReceiptData {
    ts: u64,
    thread_id: Option<String>,
}

#[derive(Deserialize)]
struct Presences<'a> {
    #[serde(borrow)]
    push: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct Presence {
    user_id: OwnedUserId,
    presence: PresenceState,
    status_msg: Option<String>,
    last_active_ago: Option<u64>,
    #[serde(default)]
    currently_active: bool,
}

impl Inbound {
    /// Takes what can be taken; fails only with the store.
    pub(super) async fn take_edus(&self, origin: &ServerName, edus: &[&RawValue]) -> Result<(), StoreError> {
        let mut receipts = Vec::new();
        for edu in edus {
            let Ok(edu) = serde_json::from_str::<Edu<'_>>(edu.get()) else { continue };
            match &*edu.edu_type {
                "m.typing" => self.take_typing(origin, edu.content).await?,
                "m.receipt" => self.read_receipts(origin, edu.content, &mut receipts).await?,
                "m.presence" => self.take_presence(origin, edu.content),
                "m.direct_to_device" => self.take_device_messages(origin, edu.content).await?,
                "m.device_list_update" => self.take_device_list(origin, edu.content).await?,
                "m.signing_key_update" => self.take_signing_keys(origin, edu.content).await?,
                other => tracing::debug!(%origin, edu_type = other, "an EDU is passed over"),
            }
        }
        self.write_receipts(&receipts).await
    }

    async fn take_typing(&self, origin: &ServerName, content: &RawValue) -> Result<(), StoreError> {
        let Ok(typing) = serde_json::from_str::<Typing>(content.get()) else { return Ok(()) };
        if typing.user_id.server_name() != origin {
            return Ok(());
        }
        if let Some(room) = self.room_of_edu(origin, &typing.room_id).await?
            && self.is_joined(origin, &room, &typing.user_id).await?
        {
            let time = typing.typing.then_some(TYPING_TIME);
            self.0.users.typing().set(&typing.room_id, &typing.user_id, time);
        }
        Ok(())
    }

    async fn read_receipts(
        &self,
        origin: &ServerName,
        content: &RawValue,
        receipts: &mut Vec<(OwnedRoomId, OwnedUserId, NewReceipt)>,
    ) -> Result<(), StoreError> {
        let Ok(rooms) = serde_json::from_str::<BTreeMap<OwnedRoomId, &RawValue>>(content.get()) else {
            return Ok(());
        };
        for (room_id, of_room) in rooms.into_iter().take(RECEIPTS_MAX) {
            let Ok(of_room) = serde_json::from_str::<OfRoom<'_>>(of_room.get()) else { continue };
            if receipts.len() >= RECEIPTS_MAX {
                return Ok(());
            }
            let Some(room) = self.room_of_edu(origin, &room_id).await? else { continue };
            for (user, receipt) in of_room.read {
                let Ok(receipt) = serde_json::from_str::<Receipt>(receipt.get()) else { continue };
                if receipts.len() >= RECEIPTS_MAX {
                    return Ok(());
                }
                if user.server_name() == origin
                    && self.is_joined(origin, &room, &user).await?
                    && let Some(receipt) = self.receipt(&room, receipt).await?
                {
                    receipts.push((room_id.clone(), user, receipt));
                }
            }
        }
        Ok(())
    }

    /// A receipt for the last of the events that it names.
    async fn receipt(&self, room: &RoomInfo, receipt: Receipt) -> Result<Option<NewReceipt>, StoreError> {
        let thread = match receipt.data.thread_id.as_deref() {
            None => ReceiptThread::Unthreaded,
            Some(thread) => match ReceiptThread::try_from(Some(thread)) {
                Ok(thread) => thread,
                Err(_) => return Ok(None),
            },
        };
        let mut last: Option<(Option<ReceiptOrder>, OwnedEventId)> = None;
        for event in receipt.event_ids.into_iter().take(EVENTS_OF_A_RECEIPT) {
            let held = self.0.rooms.events().by_id(room, &event).await?;
            let order = held.map(|held| order_of(&held));
            if last.as_ref().is_none_or(|(last, _)| order > *last) {
                last = Some((order, event));
            }
        }
        Ok(last.map(|(order, event_id)| NewReceipt {
            kind: ReceiptKind::Read,
            event_id,
            thread,
            ts: receipt.data.ts,
            order,
        }))
    }

    async fn write_receipts(
        &self,
        receipts: &[(OwnedRoomId, OwnedUserId, NewReceipt)],
    ) -> Result<(), StoreError> {
        for some in receipts.chunks(WRITTEN_AT_ONCE) {
            let written = some.iter().map(|(room, user, receipt)| {
                self.0.users.set_receipts(room, user, std::slice::from_ref(receipt), None)
            });
            for done in join_all(written).await {
                if let Err(UsersError::Store(error)) = done {
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn take_presence(&self, origin: &ServerName, content: &RawValue) {
        let presence = self.0.users.presence();
        if !presence.enabled() {
            return;
        }
        let Ok(all) = serde_json::from_str::<Presences<'_>>(content.get()) else { return };
        for one in all.push.into_iter().take(PRESENCE_MAX) {
            let Ok(one) = serde_json::from_str::<Presence>(one.get()) else { continue };
            if one.user_id.server_name() != origin || !self.0.told.may_tell(origin, &one.user_id) {
                continue;
            }
            let status_msg = one.status_msg.map(|status| status.chars().take(STATUS_CHARACTERS).collect());
            let view = PresenceView {
                presence: one.presence,
                status_msg,
                last_active_ago_ms: one.last_active_ago,
                currently_active: one.currently_active,
            };
            presence.set_remote(&one.user_id, view);
        }
    }

    /// A room of which a server may tell us something.
    async fn room_of_edu(
        &self,
        origin: &ServerName,
        room: &ruma::RoomId,
    ) -> Result<Option<Arc<RoomInfo>>, StoreError> {
        let Some(room) = self.0.rooms.room(room).await? else { return Ok(None) };
        Ok(self.0.rooms.acl(&room).await?.allows(origin).then_some(room))
    }

    /// Whether a user is in a room; while not all members are known, whether their server is.
    async fn is_joined(
        &self,
        origin: &ServerName,
        room: &RoomInfo,
        user: &UserId,
    ) -> Result<bool, StoreError> {
        let row = self.0.rooms.store().get(&MEMBERS, &(room.sn, user.to_string())).await?;
        if let Some(row) = row {
            return Ok(row.value.membership == Membership::Join);
        }
        let head = self.0.rooms.head(room.sn).await?;
        let partial = head.is_some_and(|head| head.value.partial_state);
        Ok(partial && self.0.rooms.is_server_in_room(room, origin).await?)
    }
}

/// Where an event stands in its room.
fn order_of(event: &StoredEvent) -> ReceiptOrder {
    match event.order() {
        Some(order) => (order.anchor.get(), u64::from(order.sub)),
        None => (event.position.get(), u64::from(u32::MAX)),
    }
}
