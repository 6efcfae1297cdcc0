//! Which rooms a server may be told of: for the list of public rooms and for the rooms of a space.

use std::collections::BTreeMap;
use std::sync::Arc;

use hearth_dag::{Create, Pdu};
use hearth_store::{Order, StoreError};
use ruma::{OwnedRoomId, RoomId, ServerName};
use serde::Deserialize;
use serde_json::Value;

use super::QueryError;
use crate::events::RoomInfo;
use crate::ids::SnapshotId;
use crate::kind::Kind;
use crate::restricted::allowing_rooms;
use crate::rooms::Rooms;
use crate::tables::PUBLIC_ROOMS;

/// Rooms of the public list that are looked at.
const LISTED_MAX: usize = 50_000;
/// Rooms of a space that are looked at.
const CHILDREN_MAX: usize = 500;
/// Entries of a space's state that are looked at.
const STATE_MAX: usize = 10_000;

/// A space and its rooms, as far as a server may know of them.
#[derive(Clone, Debug)]
pub struct SpaceChildren {
    pub room: Arc<RoomInfo>,
    /// The `m.space.child` events that name a server to join through.
    pub children_state: Vec<Pdu>,
    /// Rooms that we are in and that the server may be told of.
    pub accessible: Vec<Arc<RoomInfo>>,
    /// Rooms that we are in and that the server may not be told of.
    pub inaccessible: Vec<OwnedRoomId>,
}

impl Rooms {
    /// Whether users of other servers may take part in a room at all.
    pub async fn is_federated(&self, room: &RoomInfo) -> Result<bool, StoreError> {
        let Some(head) = self.head(room.sn).await? else { return Ok(false) };
        let create = self.state_pdu(room, head.value.snapshot, "m.room.create", "").await?;
        let create = create.and_then(|create| Create::of(room.rules, &create).ok());
        Ok(create.is_some_and(|create| create.federate))
    }

    /// The rooms of the public list that are open to other servers.
    pub async fn listed_for_peers(&self) -> Result<Vec<Arc<RoomInfo>>, StoreError> {
        let listed =
            self.store().range(&PUBLIC_ROOMS, PUBLIC_ROOMS.all(), Order::Forward, LISTED_MAX).await?;
        let mut rooms = Vec::with_capacity(listed.len());
        for (room, _) in listed {
            if let Some(room) = self.room_of(room).await?
                && self.is_federated(&room).await?
            {
                rooms.push(room);
            }
        }
        Ok(rooms)
    }

    /// Whether a server may be told of a room: it is there, or its users could come in, or read it from outside.
    pub async fn may_server_know(&self, room: &RoomInfo, server: &ServerName) -> Result<bool, StoreError> {
        let Some(head) = self.head(room.sn).await? else { return Ok(false) };
        if self.is_server_in_room(room, server).await? {
            return Ok(true);
        }
        if !self.is_federated(room).await? || !self.acl(room).await?.allows(server) {
            return Ok(false);
        }
        let snapshot = head.value.snapshot;
        if self.reader().is_world_readable(room.sn, snapshot).await? {
            return Ok(true);
        }
        if let Some(rules) = self.state_pdu(room, snapshot, "m.room.join_rules", "").await? {
            #[derive(Deserialize)]
            struct Content {
                join_rule: String,
            }
            let rule = rules.content_as::<Content>().map(|content| content.join_rule).unwrap_or_default();
            if matches!(rule.as_str(), "public" | "knock" | "knock_restricted") {
                return Ok(true);
            }
            if let Some((_, allowing)) = allowing_rooms(room.rules, &rules) {
                for other in allowing {
                    if let Some(other) = self.resident_room(&other).await?
                        && self.is_server_in_room(&other, server).await?
                    {
                        return Ok(true);
                    }
                }
            }
        }
        Ok(head.value.invited > 0 && self.users_of_server(room, server).await?.invited)
    }

    /// `hierarchy`: the rooms of a space.
    pub async fn space_for_peer(
        &self,
        origin: &ServerName,
        room: &RoomId,
        suggested_only: bool,
    ) -> Result<SpaceChildren, QueryError> {
        let room = self.resident_room(room).await?.ok_or(QueryError::UnknownRoom)?;
        if !self.may_server_know(&room, origin).await? {
            return Err(QueryError::NotInRoom);
        }
        let Some(head) = self.head(room.sn).await? else { return Err(QueryError::UnknownRoom) };
        let mut answer = SpaceChildren {
            room: room.clone(),
            children_state: Vec::new(),
            accessible: Vec::new(),
            inaccessible: Vec::new(),
        };
        if !self.is_space(&room, head.value.snapshot).await? {
            return Ok(answer);
        }
        for (child, pdu) in self.children(&room, head.value.snapshot, suggested_only).await? {
            answer.children_state.push(pdu);
            match self.resident_room(&child).await? {
                Some(child) if self.may_server_know(&child, origin).await? => answer.accessible.push(child),
                Some(_) => answer.inaccessible.push(child),
                // Whoever is there may tell.
                None => {}
            }
        }
        Ok(answer)
    }

    async fn is_space(&self, room: &RoomInfo, snapshot: SnapshotId) -> Result<bool, StoreError> {
        let create = self.state_pdu(room, snapshot, "m.room.create", "").await?;
        let content: Option<Value> = create.and_then(|create| create.content_as().ok());
        Ok(content.is_some_and(|content| content["type"] == "m.space"))
    }

    /// The children of a space in the order of the specification.
    async fn children(
        &self,
        room: &RoomInfo,
        snapshot: SnapshotId,
        suggested_only: bool,
    ) -> Result<Vec<(OwnedRoomId, Pdu)>, StoreError> {
        let rest = self.snapshots().rest(room.sn, snapshot).await?;
        let mut children = BTreeMap::new();
        for (key, event) in rest.into_iter().take(STATE_MAX) {
            let name = self.state_key_name(room.sn, key).await?;
            if name.kind != "m.space.child" {
                continue;
            }
            let Ok(child) = RoomId::parse(name.state_key.as_str()) else { continue };
            let event = self.events().load(room, event).await?;
            let content: Value = event.pdu.content_as().unwrap_or_default();
            // A child without a server to join through is none.
            let via = content["via"].as_array().is_some_and(|via| !via.is_empty());
            if !via || (suggested_only && content["suggested"] != Value::Bool(true)) {
                continue;
            }
            let order = content["order"].as_str().filter(|order| is_order(order)).map(str::to_owned);
            let rank = (order.is_none(), order, event.header.origin_server_ts, child.clone());
            children.insert(rank, (child, event.pdu.clone()));
        }
        Ok(children.into_values().take(CHILDREN_MAX).collect())
    }

    /// One state event of a state.
    pub(super) async fn state_pdu(
        &self,
        room: &RoomInfo,
        snapshot: SnapshotId,
        kind: &str,
        state_key: &str,
    ) -> Result<Option<Pdu>, StoreError> {
        let Some(key) = self.state_key(room.sn, &Kind::new(kind), state_key).await? else { return Ok(None) };
        match self.snapshots().lookup(room.sn, snapshot, key).await? {
            Some(event) => Ok(Some(self.events().load(room, event).await?.pdu.clone())),
            None => Ok(None),
        }
    }
}

/// At most fifty characters between space and tilde.
fn is_order(order: &str) -> bool {
    order.len() <= 50 && order.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}
