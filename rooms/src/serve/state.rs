//! State for peers: of a room at one of its events, with the auth chain; and the few events that tell which room it is.

use std::sync::Arc;

use hearth_dag::Pdu;
use hearth_store::StoreError;
use ruma::{OwnedEventId, UserId};

use super::{Asked, QueryError};
use crate::events::{RoomInfo, StoredEvent};
use crate::ids::{EventSn, RoomSn, SnapshotId};
use crate::kind::Kind;
use crate::rooms::Rooms;
use crate::tables::{EVENTS, Status};

/// Events read at a time.
const BATCH: usize = 500;
/// What tells a user who is not in a room which room it is.
const DESCRIBING: [&str; 8] = [
    "m.room.create",
    "m.room.join_rules",
    "m.room.canonical_alias",
    "m.room.avatar",
    "m.room.name",
    "m.room.encryption",
    "m.room.topic",
    "m.room.tombstone",
];

/// The state before an event, and what it rests on.
#[derive(Clone, Debug)]
pub struct PeerState {
    pub pdus: Vec<Pdu>,
    pub auth_chain: Vec<Pdu>,
}

/// The same, as ids.
#[derive(Clone, Debug)]
pub struct PeerStateIds {
    pub pdu_ids: Vec<OwnedEventId>,
    pub auth_chain_ids: Vec<OwnedEventId>,
}

impl Rooms {
    /// `state`: the room's state before an event of it.
    pub async fn state_for_peer(&self, asked: Asked<'_>) -> Result<PeerState, QueryError> {
        let (room, state, chain) = self.state_before(asked).await?;
        Ok(PeerState { pdus: self.pdus(&room, &state).await?, auth_chain: self.pdus(&room, &chain).await? })
    }

    /// `state_ids`.
    pub async fn state_ids_for_peer(&self, asked: Asked<'_>) -> Result<PeerStateIds, QueryError> {
        let (room, state, chain) = self.state_before(asked).await?;
        Ok(PeerStateIds {
            pdu_ids: self.event_ids(room.sn, &state).await?,
            auth_chain_ids: self.event_ids(room.sn, &chain).await?,
        })
    }

    /// `event_auth`: what an event rests on.
    pub async fn event_auth_for_peer(&self, asked: Asked<'_>) -> Result<Vec<Pdu>, QueryError> {
        let (room, event) = self.event_asked_for(asked).await?;
        let chain = self.auth_chain(&room, &[event.sn]).await?;
        Ok(self.pdus(&room, &chain).await?)
    }

    async fn state_before(
        &self,
        asked: Asked<'_>,
    ) -> Result<(Arc<RoomInfo>, Vec<EventSn>, Vec<EventSn>), QueryError> {
        let (room, event) = self.event_asked_for(asked).await?;
        let incomplete = event.header.partial && !event.changes.completed;
        let snapshot = match event.status() {
            Status::Accepted | Status::SoftFailed if !incomplete => event.snapshot_before(),
            _ => None,
        };
        let snapshot = snapshot.ok_or(QueryError::NoPlace)?;
        let state = self.snapshots().all(room.sn, snapshot).await?;
        let state: Vec<EventSn> = state.into_iter().map(|(_, event)| event).collect();
        let chain = self.auth_chain(&room, &state).await?;
        Ok((room, state, chain))
    }

    /// An event that was not refused, of a room whose peers may ask for it. Servers that left the room are answered
    /// about what they could see.
    async fn event_asked_for(
        &self,
        asked: Asked<'_>,
    ) -> Result<(Arc<RoomInfo>, Arc<StoredEvent>), QueryError> {
        let mut peer = self.peer(asked.room, asked.origin).await?;
        let event = self.events().by_id(&peer.room, asked.event).await?.ok_or(QueryError::UnknownEvent)?;
        if event.status() == Status::Rejected {
            return Err(QueryError::NoPlace);
        }
        if !peer.is_present() && !peer.sees(&event).await? {
            return Err(QueryError::NotInRoom);
        }
        Ok((peer.room, event))
    }

    /// Events as they are sent.
    pub(super) async fn pdus(&self, room: &RoomInfo, events: &[EventSn]) -> Result<Vec<Pdu>, StoreError> {
        let mut pdus = Vec::with_capacity(events.len());
        for events in events.chunks(BATCH) {
            let events = self.events().load_many(room, events).await?;
            pdus.extend(events.iter().map(|event| event.pdu.clone()));
        }
        Ok(pdus)
    }

    async fn event_ids(&self, room: RoomSn, events: &[EventSn]) -> Result<Vec<OwnedEventId>, StoreError> {
        let mut ids = Vec::with_capacity(events.len());
        for events in events.chunks(BATCH) {
            let keys: Vec<(RoomSn, EventSn)> = events.iter().map(|event| (room, *event)).collect();
            let rows = self.store().multi_get(&EVENTS, &keys).await?;
            ids.extend(rows.into_iter().flatten().map(|row| row.header.event_id));
        }
        Ok(ids)
    }

    /// The events of a state that tell a user which room it is, and who sent them there.
    pub(super) async fn describing_state(
        &self,
        room: &RoomInfo,
        snapshot: SnapshotId,
        inviter: Option<&UserId>,
    ) -> Result<Vec<Pdu>, StoreError> {
        let mut keys = Vec::with_capacity(DESCRIBING.len() + 1);
        for kind in DESCRIBING {
            keys.extend(self.state_key(room.sn, &Kind::new(kind), "").await?);
        }
        if let Some(inviter) = inviter {
            keys.extend(self.state_key(room.sn, &Kind::new("m.room.member"), inviter.as_str()).await?);
        }
        let found = self.snapshots().lookup_many(room.sn, snapshot, &keys).await?;
        let found: Vec<EventSn> = found.into_iter().flatten().collect();
        self.pdus(room, &found).await
    }
}
