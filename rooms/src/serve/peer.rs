//! One server looking at one room: which of its events it may see in full.
//! * A server sees what one of its users may see: `m.room.history_visibility` and their memberships at the event.
//! * Only what the visibility leaves open is looked up: where it is `shared` and the server is in the room, nothing.
//! * Looking has bounds; where they are met, the server sees the redacted form.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use hearth_dag::{Pdu, redact};
use hearth_store::StoreError;
use quick_cache::{Weighter, sync::Cache};
use ruma::{OwnedServerName, RoomId, ServerName, UserId};
use serde::Deserialize;

use super::QueryError;
use crate::events::{RoomInfo, StoredEvent};
use crate::ids::{EventSn, NodeRef, RoomSn, SnapshotId, StateKeySn, TimelineOrder};
use crate::kind::Kind;
use crate::read::{AtEvent, HistoryVisibility, Presence};
use crate::rooms::Rooms;
use crate::tables::{Membership, Status};

/// Users of a server that are kept, those who are joined first.
const USERS_KEPT: usize = 10_000;
/// Users of a server whose membership at one event is looked up.
const USERS_LOOKED_AT: usize = 500;
/// Users of a server that left the room among whom the last to leave is looked for.
const FORMER_LOOKED_AT: usize = 50;
/// Bytes of lists of users that are kept.
const CACHE_BYTES: u64 = 2 * 1024 * 1024;

/// A server that asks about a room.
pub(super) struct Peer<'a> {
    rooms: &'a Rooms,
    pub(super) room: Arc<RoomInfo>,
    server: &'a ServerName,
    presence: Presence,
    visibility_key: Option<StateKeySn>,
    users: Option<Arc<Users>>,
    decided: HashMap<SnapshotId, AtEvent>,
    visibilities: HashMap<EventSn, HistoryVisibility>,
}

/// The users of a server that had to do with a room, in one state of it.
pub(super) struct Users {
    members: NodeRef,
    keys: Vec<StateKeySn>,
    /// Those who left or were banned, the last ones first.
    former: Vec<String>,
    /// One of them has an invite.
    pub(super) invited: bool,
}

pub(super) type MembersCache = Cache<(RoomSn, OwnedServerName), Arc<Users>, ByBytes>;

pub(super) fn new_cache() -> MembersCache {
    Cache::with_weighter(1_000, CACHE_BYTES, ByBytes)
}

#[derive(Clone)]
pub(super) struct ByBytes;

impl Weighter<(RoomSn, OwnedServerName), Arc<Users>> for ByBytes {
    fn weight(&self, _: &(RoomSn, OwnedServerName), users: &Arc<Users>) -> u64 {
        (200 + users.keys.len() * 4 + users.former.len() * 80) as u64
    }
}

impl Rooms {
    /// A server that asks about a room that we are in. One that never was there is refused, unless everybody may read
    /// the room.
    pub(super) async fn peer<'a>(
        &'a self,
        room: &RoomId,
        server: &'a ServerName,
    ) -> Result<Peer<'a>, QueryError> {
        let room = self.resident_room(room).await?.ok_or(QueryError::UnknownRoom)?;
        let present = self.is_server_in_room(&room, server).await?;
        let visibility_key = self.state_key(room.sn, &Kind::new("m.room.history_visibility"), "").await?;
        let mut peer = Peer {
            rooms: self,
            room,
            server,
            presence: if present { Presence::Joined } else { Presence::Never },
            visibility_key,
            users: None,
            decided: HashMap::new(),
            visibilities: HashMap::new(),
        };
        if !present {
            peer.presence = peer.former_presence().await?;
        }
        if peer.presence == Presence::Never && !peer.is_open_to_all().await? {
            return Err(QueryError::NotInRoom);
        }
        Ok(peer)
    }
}

impl Peer<'_> {
    /// Whether the server has joined users in the room now.
    pub(super) fn is_present(&self) -> bool {
        self.presence == Presence::Joined
    }

    /// The event as the server may have it.
    pub(super) async fn copy(&mut self, event: &StoredEvent) -> Result<Pdu, StoreError> {
        Ok(match self.sees(event).await? {
            true => event.pdu.clone(),
            false => redact(self.room.rules, &event.pdu),
        })
    }

    /// Whether the server may see all of an event.
    pub(super) async fn sees(&mut self, event: &StoredEvent) -> Result<bool, StoreError> {
        let Some(snapshot) = event.snapshot_before() else {
            // State that we were told and never checked in place: who is in the room gets it with the state anyway.
            return Ok(self.is_present()
                && event.status() == Status::Outlier
                && event.header.state_key.is_some());
        };
        // Its own server knows it.
        if event.header.sender.server_name() == self.server {
            return Ok(true);
        }
        let order = event.order().unwrap_or(TimelineOrder::live(event.position));
        let before = self.at(snapshot, order).await?;
        if before.is_visible(self.presence, order) {
            return Ok(true);
        }
        Ok(self.after(event, before).is_visible(self.presence, order))
    }

    /// Visibility and the strongest membership of the server's users in a state.
    async fn at(&mut self, snapshot: SnapshotId, order: TimelineOrder) -> Result<AtEvent, StoreError> {
        if let Some(decided) = self.decided.get(&snapshot) {
            return Ok(*decided);
        }
        let visibility = self.visibility(snapshot).await?;
        let mut at = AtEvent { visibility, membership: None };
        let undecided = !at.is_visible(self.presence, order) && self.presence != Presence::Never;
        if undecided {
            at.membership = self.membership(snapshot).await?;
        }
        self.decided.insert(snapshot, at);
        Ok(at)
    }

    async fn visibility(&mut self, snapshot: SnapshotId) -> Result<HistoryVisibility, StoreError> {
        let Some(key) = self.visibility_key else { return Ok(HistoryVisibility::default()) };
        let event = self.rooms.snapshots().lookup(self.room.sn, snapshot, key).await?;
        let Some(event) = event else { return Ok(HistoryVisibility::default()) };
        if let Some(known) = self.visibilities.get(&event) {
            return Ok(*known);
        }
        let visibility = visibility_of(&self.rooms.events().load(&self.room, event).await?.pdu);
        self.visibilities.insert(event, visibility);
        Ok(visibility)
    }

    /// The membership in a state that lets the server see most: that of a joined user, else of an invited one.
    async fn membership(&mut self, snapshot: SnapshotId) -> Result<Option<Membership>, StoreError> {
        let users = self.users().await?;
        let mut best = None;
        for key in users.keys.iter().take(USERS_LOOKED_AT) {
            let event = self.rooms.snapshots().lookup(self.room.sn, snapshot, *key).await?;
            let Some(event) = event else { continue };
            match Membership::of(&self.rooms.events().load(&self.room, event).await?.pdu) {
                Some(Membership::Join) => return Ok(Some(Membership::Join)),
                Some(Membership::Invite) => best = Some(Membership::Invite),
                _ => {}
            }
        }
        Ok(best)
    }

    /// What holds after an event that changes the visibility, or a membership of the server's users.
    fn after(&self, event: &StoredEvent, before: AtEvent) -> AtEvent {
        let Some(key) = event.header.state_key else { return before };
        if Some(key) == self.visibility_key {
            return AtEvent { visibility: visibility_of(&event.pdu), ..before };
        }
        let user = event.pdu.state_key().filter(|_| key.is_member());
        let of_server = user
            .and_then(|user| <&UserId>::try_from(user).ok())
            .is_some_and(|user| user.server_name() == self.server);
        match Membership::of(&event.pdu) {
            Some(membership @ (Membership::Join | Membership::Invite)) if of_server => {
                AtEvent { membership: Some(membership), ..before }
            }
            _ => before,
        }
    }

    async fn is_open_to_all(&mut self) -> Result<bool, StoreError> {
        let Some(head) = self.rooms.head(self.room.sn).await? else { return Ok(false) };
        Ok(self.visibility(head.value.snapshot).await? == HistoryVisibility::WorldReadable)
    }

    /// Until when the server had joined users, if it has none now.
    async fn former_presence(&mut self) -> Result<Presence, StoreError> {
        let users = self.users().await?;
        let mut presence = Presence::Never;
        for user in users.former.iter().take(FORMER_LOOKED_AT) {
            let Ok(user) = <&UserId>::try_from(user.as_str()) else { continue };
            let viewer = self.rooms.reader().viewer(self.room.sn, user, Arc::default()).await?;
            if let Some(left) = viewer.left_at() {
                presence = match presence {
                    Presence::Until(end) if end >= left => presence,
                    _ => Presence::Until(left),
                };
            }
        }
        Ok(presence)
    }

    async fn users(&mut self) -> Result<Arc<Users>, StoreError> {
        if let Some(users) = &self.users {
            return Ok(users.clone());
        }
        let users = self.rooms.users_of_server(&self.room, self.server).await?;
        self.users = Some(users.clone());
        Ok(users)
    }
}

impl Rooms {
    /// The users of a server that had to do with a room.
    pub(super) async fn users_of_server(
        &self,
        room: &RoomInfo,
        server: &ServerName,
    ) -> Result<Arc<Users>, StoreError> {
        // The state first: if the members change while they are read, the list is kept for the older state only.
        let members = self.head(room.sn).await?;
        let members = members.map_or(NodeRef::EMPTY, |head| head.value.snapshot.members);
        let cache = &self.serving().members;
        let key = (room.sn, server.to_owned());
        if let Some(held) = cache.get(&key).filter(|held| held.members == members) {
            return Ok(held);
        }
        let read = Arc::new(self.read_users(room.sn, server, members).await?);
        cache.insert(key, read.clone());
        Ok(read)
    }

    async fn read_users(
        &self,
        room: RoomSn,
        server: &ServerName,
        members: NodeRef,
    ) -> Result<Users, StoreError> {
        let mut found = Vec::new();
        let walked = self.each_member(room, |user, row| {
            if user.split_once(':').is_some_and(|(_, of)| of == server.as_str()) {
                found.push((row.value.membership, row.value.key, row.position, user));
            }
            if found.len() < USERS_KEPT { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        let _: ControlFlow<()> = walked.await?;
        // The strongest membership is `Join`; among equals those who came last.
        found
            .sort_unstable_by_key(|(membership, _, position, _)| (*membership, std::cmp::Reverse(*position)));
        let keys = found.iter().map(|(_, key, ..)| *key).collect();
        let invited = found.iter().any(|(membership, ..)| *membership == Membership::Invite);
        let former = found
            .into_iter()
            .filter(|(membership, ..)| matches!(membership, Membership::Leave | Membership::Ban))
            .take(FORMER_LOOKED_AT)
            .map(|(.., user)| user)
            .collect();
        Ok(Users { members, keys, former, invited })
    }
}

fn visibility_of(event: &Pdu) -> HistoryVisibility {
    #[derive(Deserialize)]
    struct Content {
        history_visibility: String,
    }
    let content: Option<Content> = event.content_as().ok();
    content.map_or_else(HistoryVisibility::default, |content| {
        HistoryVisibility::from_value(&content.history_visibility)
    })
}
