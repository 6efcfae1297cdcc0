//! State: of now, at an event, at a token.
//! * Answers are lists of events; who may see them is the caller's question, which [`StateAt`] answers for clients.

use std::{collections::BTreeMap, sync::Arc};

use hearth_store::{Order, StoreError, StreamPosition};
use ruma::UserId;

use super::{
    events::{Reader, RoomEvent},
    token::TimelineToken,
    viewer::Viewer,
};
use crate::{
    ids::{EventSn, RoomSn, SnapshotId, StateKeySn, TimelineOrder},
    tables::{HEAD_SNAPSHOTS, MEMBERS, MemberRow, Membership},
};

/// After so many users a room is called.
const HEROES: usize = 5;
/// Members among whom heroes are looked for.
const HEROES_LOOKED_AT: usize = 200;
/// The first states of a room, among which one with members is looked for: the creator comes right after the room.
const BEGINNING: usize = 5;

/// Which members are wanted.
#[derive(Clone, Debug, Default)]
pub struct MemberFilter {
    pub membership: Option<String>,
    pub not_membership: Option<String>,
}

impl MemberFilter {
    /// Whether a membership passes. Both conditions together mean either, as in the specification.
    pub fn wants(&self, membership: Membership) -> bool {
        let membership = membership.as_str();
        match (&self.membership, &self.not_membership) {
            (None, None) => true,
            (Some(wanted), None) => wanted == membership,
            (None, Some(unwanted)) => unwanted != membership,
            (Some(wanted), Some(unwanted)) => wanted == membership || unwanted != membership,
        }
    }
}

impl Reader {
    /// The room's current state; none if we never held one.
    pub async fn head_snapshot(&self, room: RoomSn) -> Result<Option<SnapshotId>, StoreError> {
        self.snapshot_at(room, StreamPosition::MAX).await
    }

    /// The room's current state as it was at a position.
    pub async fn snapshot_at(
        &self,
        room: RoomSn,
        position: StreamPosition,
    ) -> Result<Option<SnapshotId>, StoreError> {
        Ok(self.snapshot_row_at(room, position).await?.map(|(_, snapshot)| snapshot))
    }

    /// The memberships at a place of the timeline, if a viewer may see them and all of them were known then. Before anybody
    /// was in the room there was nobody to ask: that place stands for the first one with members.
    async fn members_at(
        &self,
        viewer: &Viewer,
        place: TimelineOrder,
    ) -> Result<Option<Vec<(StateKeySn, EventSn)>>, StoreError> {
        let room = viewer.room;
        // Before the event that came at the anchor, also its change of the state is yet to come.
        let position = match place == TimelineOrder::live(place.anchor) {
            true => place.anchor,
            false => StreamPosition::new(place.anchor.get().saturating_sub(1)),
        };
        let until = HEAD_SNAPSHOTS.prefix(&(room,)).up_to(&(room, position));
        let then = self.store().last(&HEAD_SNAPSHOTS, until).await?;
        let later = HEAD_SNAPSHOTS.prefix(&(room,)).after(&(room, position));
        let later = self.store().range(&HEAD_SNAPSHOTS, later, Order::Forward, BEGINNING).await?;
        for (_, row) in then.into_iter().chain(later) {
            if row.partial || !self.sees_at(viewer, row.snapshot, place).await? {
                break;
            }
            let members = self.members_of(room, row.snapshot).await?;
            if !members.is_empty() {
                return Ok(Some(members));
            }
        }
        Ok(None)
    }

    /// The same, with the position from which it held.
    pub(super) async fn snapshot_row_at(
        &self,
        room: RoomSn,
        position: StreamPosition,
    ) -> Result<Option<(StreamPosition, SnapshotId)>, StoreError> {
        let range = HEAD_SNAPSHOTS.prefix(&(room,)).up_to(&(room, position));
        let rows = self.store().range(&HEAD_SNAPSHOTS, range, Order::Backward, 1).await?;
        Ok(rows.into_iter().next().map(|((_, position), row)| (position, row.snapshot)))
    }

    /// The state that a viewer may ask for: of now while they are joined or the room is world-readable, as they left
    /// it afterwards. None for everybody else.
    pub async fn visible_snapshot(&self, viewer: &Viewer) -> Result<Option<SnapshotId>, StoreError> {
        if viewer.is_joined() {
            return self.head_snapshot(viewer.room).await;
        }
        if let Some(left) = viewer.left_at()
            && !viewer.forgotten
        {
            return self.snapshot_at(viewer.room, left.anchor).await;
        }
        let Some(head) = self.head_snapshot(viewer.room).await? else { return Ok(None) };
        Ok(self.is_world_readable(viewer.room, head).await?.then_some(head))
    }

    /// Whether everyone may read a room in this state.
    pub async fn is_world_readable(&self, room: RoomSn, snapshot: SnapshotId) -> Result<bool, StoreError> {
        #[derive(serde::Deserialize)]
        struct Content {
            history_visibility: String,
        }
        let event = self.state_event(room, snapshot, "m.room.history_visibility", "").await?;
        let content: Option<Content> = event.and_then(|event| event.client.content_as());
        Ok(content.is_some_and(|content| content.history_visibility == "world_readable"))
    }

    /// One state event of a snapshot, by its number.
    pub async fn state_event_sn(
        &self,
        room: RoomSn,
        snapshot: SnapshotId,
        kind: &str,
        state_key: &str,
    ) -> Result<Option<EventSn>, StoreError> {
        match self.state_key(room, kind, state_key).await? {
            Some(key) => self.lookup(room, snapshot, key).await,
            None => Ok(None),
        }
    }

    /// One state event of a snapshot.
    pub async fn state_event(
        &self,
        room: RoomSn,
        snapshot: SnapshotId,
        kind: &str,
        state_key: &str,
    ) -> Result<Option<Arc<RoomEvent>>, StoreError> {
        match self.state_event_sn(room, snapshot, kind, state_key).await? {
            Some(event) => self.event(room, event).await,
            None => Ok(None),
        }
    }

    /// All state events of a snapshot, in the order of their keys' first appearance: what is no membership first.
    pub async fn full_state(
        &self,
        room: RoomSn,
        snapshot: SnapshotId,
    ) -> Result<Vec<Arc<RoomEvent>>, StoreError> {
        let mut events = self.other_state(room, snapshot).await?;
        events.extend(self.members(room, snapshot).await?);
        Ok(events)
    }

    /// The entries of a snapshot that are no memberships.
    pub async fn rest_of(
        &self,
        room: RoomSn,
        snapshot: SnapshotId,
    ) -> Result<Vec<(StateKeySn, EventSn)>, StoreError> {
        self.inner.snapshots.rest(room, snapshot).await
    }

    /// The memberships of a snapshot.
    pub async fn members_of(
        &self,
        room: RoomSn,
        snapshot: SnapshotId,
    ) -> Result<Vec<(StateKeySn, EventSn)>, StoreError> {
        self.inner.snapshots.members(room, snapshot).await
    }

    /// Up to five users after whom a room without a name is called: members, or those who were members.
    pub async fn heroes(
        &self,
        room: RoomSn,
        snapshot: SnapshotId,
        me: &UserId,
    ) -> Result<Vec<String>, StoreError> {
        for (kind, field) in [("m.room.name", "name"), ("m.room.canonical_alias", "alias")] {
            let event = self.state_event(room, snapshot, kind, "").await?;
            let content: Option<serde_json::Map<String, serde_json::Value>> =
                event.and_then(|event| event.client.content_as());
            if content.is_some_and(|content| {
                content.get(field).is_some_and(|name| name.as_str().is_some_and(|name| !name.is_empty()))
            }) {
                return Ok(Vec::new());
            }
        }
        let range = MEMBERS.prefix(&(room,));
        let rows = self.store().range(&MEMBERS, range, Order::Forward, HEROES_LOOKED_AT).await?;
        let mut members: Vec<_> = rows
            .into_iter()
            .filter(|((_, user), _)| *user != me.as_str())
            .map(|((_, user), row)| (user, row.value))
            .collect();
        // In the order in which they came.
        members.sort_unstable_by_key(|(_, row)| row.key);
        let present = |row: &MemberRow| matches!(row.membership, Membership::Join | Membership::Invite);
        let anyone_present = members.iter().any(|(_, row)| present(row));
        let heroes = members.into_iter().filter(|(_, row)| {
            present(row) || (!anyone_present && matches!(row.membership, Membership::Leave | Membership::Ban))
        });
        Ok(heroes.take(HEROES).map(|(user, _)| user).collect())
    }

    /// The state events of a snapshot that are no memberships.
    pub async fn other_state(
        &self,
        room: RoomSn,
        snapshot: SnapshotId,
    ) -> Result<Vec<Arc<RoomEvent>>, StoreError> {
        let rest = self.inner.snapshots.rest(room, snapshot).await?;
        self.existing(room, rest.into_iter().map(|(_, event)| event).collect()).await
    }

    /// The member events of a snapshot.
    pub async fn members(
        &self,
        room: RoomSn,
        snapshot: SnapshotId,
    ) -> Result<Vec<Arc<RoomEvent>>, StoreError> {
        let members = self.inner.snapshots.members(room, snapshot).await?;
        self.existing(room, members.into_iter().map(|(_, event)| event).collect()).await
    }

    /// `/members`: the member events that a viewer may see, at a token if one is given. None if they may see none.
    pub async fn visible_members(
        &self,
        viewer: &Viewer,
        at: Option<TimelineToken>,
        filter: &MemberFilter,
    ) -> Result<Option<Vec<Arc<RoomEvent>>>, StoreError> {
        let Some(visible) = self.visible_snapshot(viewer).await? else { return Ok(None) };
        let then = match at {
            None => None,
            Some(at) => {
                let place = viewer.left_at().map_or(at.0, |left| left.min(at.0));
                self.members_at(viewer, place).await?
            }
        };
        // Of a time that is hidden, or when not all members were known, those that are known now.
        let members = match then {
            Some(members) => members,
            None => self.members_of(viewer.room, visible).await?,
        };
        let members = members.into_iter().map(|(_, event)| event).collect();
        let members = self.existing(viewer.room, members).await?;
        Ok(Some(
            members.into_iter().filter(|event| event.membership.is_some_and(|m| filter.wants(m))).collect(),
        ))
    }

    /// The state that differs between two snapshots, as it is in the second one. What is only in the first one is
    /// left out: clients have no word for state that is gone.
    pub async fn state_between(
        &self,
        room: RoomSn,
        from: SnapshotId,
        to: SnapshotId,
    ) -> Result<Vec<(StateKeySn, EventSn)>, StoreError> {
        if from == to {
            return Ok(Vec::new());
        }
        let changes = self.inner.snapshots.diff(room, from, to).await?;
        Ok(changes.into_iter().filter_map(|change| Some((change.key, change.after?))).collect())
    }

    /// The event that a snapshot holds for a key.
    pub(super) async fn lookup(
        &self,
        room: RoomSn,
        snapshot: SnapshotId,
        key: StateKeySn,
    ) -> Result<Option<EventSn>, StoreError> {
        self.inner.snapshots.lookup(room, snapshot, key).await
    }

    /// Events by number; those that are not there are left out.
    pub(super) async fn existing(
        &self,
        room: RoomSn,
        events: Vec<EventSn>,
    ) -> Result<Vec<Arc<RoomEvent>>, StoreError> {
        Ok(self.events(room, &events).await?.into_iter().flatten().collect())
    }

    /// The member events of these users in a snapshot.
    pub async fn members_named(
        &self,
        room: RoomSn,
        snapshot: SnapshotId,
        users: impl IntoIterator<Item = &str>,
    ) -> Result<BTreeMap<StateKeySn, EventSn>, StoreError> {
        let mut members = BTreeMap::new();
        for user in users {
            if let Some(key) = self.state_key(room, "m.room.member", user).await?
                && let Some(event) = self.lookup(room, snapshot, key).await?
            {
                members.insert(key, event);
            }
        }
        Ok(members)
    }
}
