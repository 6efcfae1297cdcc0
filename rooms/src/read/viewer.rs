//! One user looking at one room: which events they may see, and what their membership was at each.
//! * Decisions are made once per snapshot: a page of messages between two state changes costs one.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use hearth_store::StoreError;
use ruma::{OwnedUserId, UserId};

use super::{
    events::{Reader, RoomEvent},
    visibility::{AtEvent, HistoryVisibility, Presence},
};
use crate::{
    ids::{EventSn, RoomSn, SnapshotId, StateKeySn, TimelineOrder},
    tables::{MEMBERSHIPS, Membership},
};

/// A member event that came this many changes ago is not looked for.
const MAX_STINTS: usize = 200;

/// A user who reads a room.
pub struct Viewer {
    pub user: OwnedUserId,
    pub room: RoomSn,
    /// The user's membership as sync shows it.
    pub membership: Option<Membership>,
    pub forgotten: bool,
    presence: Presence,
    member_key: Option<StateKeySn>,
    visibility_key: Option<StateKeySn>,
    ignored: Arc<BTreeSet<OwnedUserId>>,
    decided: HashMap<SnapshotId, AtEvent>,
}

/// An event as one user sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    pub visible: bool,
    /// The user's membership at the event, for `unsigned`.
    pub membership: &'static str,
}

impl Reader {
    /// A user who reads a room. `ignored` are those whose messages they do not want to see.
    pub async fn viewer(
        &self,
        room: RoomSn,
        user: &UserId,
        ignored: Arc<BTreeSet<OwnedUserId>>,
    ) -> Result<Viewer, StoreError> {
        let row = self.store().get(&MEMBERSHIPS, &(user.to_string(), room)).await?;
        let (membership, forgotten) =
            row.as_ref().map_or((None, false), |row| (Some(row.value.membership), row.value.forgotten));
        let presence = match &row {
            Some(row) if row.value.membership == Membership::Join => Presence::Joined,
            Some(row) if row.value.before == Some(Membership::Join) => {
                Presence::Until(TimelineOrder::live(row.position))
            }
            _ => self.last_stint(room, user).await?,
        };
        self.viewer_with(room, user, membership, forgotten, presence, ignored).await
    }

    /// A user whom the caller knows to be joined.
    pub async fn joined_viewer(
        &self,
        room: RoomSn,
        user: &UserId,
        ignored: Arc<BTreeSet<OwnedUserId>>,
    ) -> Result<Viewer, StoreError> {
        self.viewer_with(room, user, Some(Membership::Join), false, Presence::Joined, ignored).await
    }

    async fn viewer_with(
        &self,
        room: RoomSn,
        user: &UserId,
        membership: Option<Membership>,
        forgotten: bool,
        presence: Presence,
        ignored: Arc<BTreeSet<OwnedUserId>>,
    ) -> Result<Viewer, StoreError> {
        Ok(Viewer {
            user: user.to_owned(),
            room,
            membership,
            forgotten,
            presence,
            member_key: self.state_key(room, "m.room.member", user.as_str()).await?,
            visibility_key: self.state_key(room, "m.room.history_visibility", "").await?,
            ignored,
            decided: HashMap::new(),
        })
    }

    /// Where the user's last time in the room ended: the member events back to the last that followed a join.
    async fn last_stint(&self, room: RoomSn, user: &UserId) -> Result<Presence, StoreError> {
        let Some(snapshot) = self.head_snapshot(room).await? else { return Ok(Presence::Never) };
        let mut next = self.state_event_sn(room, snapshot, "m.room.member", user.as_str()).await?;
        let mut after: Option<TimelineOrder> = None;
        for _ in 0..MAX_STINTS {
            let Some(event) = next else { break };
            let Some(event) = self.event(room, event).await? else { break };
            if event.membership == Some(Membership::Join) {
                return Ok(after.map_or(Presence::Joined, Presence::Until));
            }
            after = Some(TimelineOrder::live(event.position));
            next = event.replaces;
        }
        Ok(Presence::Never)
    }

    /// What a viewer sees of an event that stands at `order`.
    pub async fn sees(
        &self,
        viewer: &mut Viewer,
        event: &RoomEvent,
        order: TimelineOrder,
    ) -> Result<Seen, StoreError> {
        let Some(snapshot) = event.snapshot_before else {
            return Ok(Seen { visible: false, membership: "leave" });
        };
        let before = match viewer.decided.get(&snapshot) {
            Some(decided) => *decided,
            None => {
                let decided = self.at_snapshot(viewer, snapshot).await?;
                viewer.decided.insert(snapshot, decided);
                decided
            }
        };
        let after = viewer.after(event, before);
        let membership = after.membership.map_or("leave", Membership::as_str);
        if viewer.ignores(event) {
            return Ok(Seen { visible: false, membership });
        }
        let visible = before.is_visible(viewer.presence, order) || after.is_visible(viewer.presence, order);
        Ok(Seen { visible, membership })
    }

    /// Whether a viewer may see what was said at a place, in the state of that time.
    pub(super) async fn sees_at(
        &self,
        viewer: &Viewer,
        snapshot: SnapshotId,
        place: TimelineOrder,
    ) -> Result<bool, StoreError> {
        Ok(self.at_snapshot(viewer, snapshot).await?.is_visible(viewer.presence, place))
    }

    /// What a state says about a viewer's sight. Neither ever changes, so that it is looked up once for each user.
    async fn at_snapshot(&self, viewer: &Viewer, snapshot: SnapshotId) -> Result<AtEvent, StoreError> {
        let key = (viewer.room, snapshot, viewer.member_key);
        if let Some(at) = self.inner.sights.get(&key) {
            return Ok(at);
        }
        let mut at = AtEvent { visibility: HistoryVisibility::default(), membership: None };
        if let Some(key) = viewer.visibility_key
            && let Some(event) = self.lookup(viewer.room, snapshot, key).await?
        {
            at.visibility = self.deciding(viewer.room, event).await?.visibility;
        }
        if let Some(key) = viewer.member_key
            && let Some(event) = self.lookup(viewer.room, snapshot, key).await?
        {
            at.membership = self.deciding(viewer.room, event).await?.membership;
        }
        self.inner.sights.insert(key, at);
        Ok(at)
    }

    /// What a state event says about visibility. Redaction leaves both fields as they are, so that this never changes.
    async fn deciding(&self, room: RoomSn, event: EventSn) -> Result<AtEvent, StoreError> {
        if let Some(decided) = self.inner.deciding.get(&(room, event)) {
            return Ok(decided);
        }
        let mut decided = AtEvent { visibility: HistoryVisibility::default(), membership: None };
        if let Some(event) = self.event(room, event).await? {
            decided = AtEvent { visibility: visibility_of(&event), membership: event.membership };
        }
        self.inner.deciding.insert((room, event), decided);
        Ok(decided)
    }

    /// Where the user's present time in a room began: the first of the joins that replaced each other.
    pub async fn joined_at(
        &self,
        room: RoomSn,
        member: EventSn,
    ) -> Result<Option<TimelineOrder>, StoreError> {
        let mut began = None;
        let mut next = Some(member);
        for _ in 0..MAX_STINTS {
            let Some(event) = next else { break };
            let Some(event) = self.event(room, event).await? else { break };
            if event.membership != Some(Membership::Join) {
                break;
            }
            began = Some(TimelineOrder::live(event.position));
            next = event.replaces;
        }
        Ok(began)
    }
}

impl Viewer {
    /// Whether the user is in the room.
    pub fn is_joined(&self) -> bool {
        self.membership == Some(Membership::Join)
    }

    /// Where the user's time in the room ended; none while it lasts, or if it never began.
    pub fn left_at(&self) -> Option<TimelineOrder> {
        match self.presence {
            Presence::Until(end) => Some(end),
            Presence::Joined | Presence::Never => None,
        }
    }

    /// Whether the user was ever joined.
    pub fn was_joined(&self) -> bool {
        self.presence != Presence::Never
    }

    /// Whether this is a message of somebody whom the user ignores. State is shown whoever sent it.
    pub fn ignores(&self, event: &RoomEvent) -> bool {
        !self.ignored.is_empty()
            && event.client.state_key.is_none()
            && self.ignored.iter().any(|ignored| *ignored == *event.client.sender)
    }

    /// Whether the user ignores anyone at all.
    pub fn ignores_anyone(&self) -> bool {
        !self.ignored.is_empty()
    }

    /// Whether the user ignores a sender.
    pub fn ignores_sender(&self, sender: &str) -> bool {
        self.ignored.iter().any(|ignored| ignored == sender)
    }

    fn after(&self, event: &RoomEvent, before: AtEvent) -> AtEvent {
        if event.state_key.is_none() {
            return before;
        }
        if event.state_key == self.member_key && event.membership.is_some() {
            AtEvent { membership: event.membership, ..before }
        } else if event.state_key == self.visibility_key && *event.client.kind == *"m.room.history_visibility"
        {
            AtEvent { visibility: visibility_of(event), ..before }
        } else {
            before
        }
    }
}

fn visibility_of(event: &RoomEvent) -> HistoryVisibility {
    #[derive(serde::Deserialize)]
    struct Content {
        history_visibility: String,
    }
    let content: Option<Content> = event.client.content_as();
    content.map_or_else(HistoryVisibility::default, |content| {
        HistoryVisibility::from_value(&content.history_visibility)
    })
}
