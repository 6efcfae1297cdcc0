//! The room's state as events change it: of several forks together, and as the head holds it.
//! * Members that differ get their rows in the commit that changes the state. Where there are more than a commit
//!   holds, the rows of other servers' users are written first ([`Rooms::write_members`]), and the change comes after;
//!   those of our users follow (`late_members.rs`).

use async_trait::async_trait;
use hearth_store::{COMMIT_BYTES, COMMIT_ROWS, Commit, Positioned, StreamPosition};
use ruma::UserId;
use std::sync::Arc;

use crate::errors::WriteError;
use crate::events::{RoomInfo, StoredEvent};
use crate::ids::{EventSn, SnapshotId};
use crate::lane::Act;
use crate::late_members::LOCAL_MEMBERS_AT_ONCE;
use crate::rooms::Rooms;
use crate::snapshot::StateChange;
use crate::tables::*;
use crate::turn::Turn;

/// Members of other servers whose rows are written in the commit that changes the state.
const MEMBERS_AT_ONCE: usize = 100;
/// More rows and bytes than a member has, of ours too.
const ROWS_OF_A_MEMBER: usize = 3;
const BYTES_OF_A_MEMBER: usize = 3_500;
// The other half is for what changes the state.
const _: () = {
    let members = MEMBERS_AT_ONCE + LOCAL_MEMBERS_AT_ONCE;
    assert!(members * ROWS_OF_A_MEMBER <= COMMIT_ROWS / 2);
    assert!(members * BYTES_OF_A_MEMBER <= COMMIT_BYTES / 2 + 1_000);
};

impl Turn {
    /// The current state becomes that of all extremities together.
    pub(crate) async fn resolve_head(&mut self, slot: StreamPosition) -> Result<(), WriteError> {
        self.merge_surplus().await?;
        let mut forks = self.states_after(&self.head.row.extremities.clone()).await?;
        forks.extend(self.head.merged.as_ref().map(|merged| merged.snapshot));
        let after = self.resolve(forks).await?;
        self.set_state(after, slot).await
    }

    /// The state after several events together.
    pub(crate) async fn state_of(&mut self, events: &[EventSn]) -> Result<SnapshotId, WriteError> {
        let forks = self.states_after(events).await?;
        self.resolve(forks).await
    }

    async fn states_after(&mut self, events: &[EventSn]) -> Result<Vec<SnapshotId>, WriteError> {
        let mut forks = Vec::with_capacity(events.len() + 1);
        for event in events {
            let event = self.event(*event).await?;
            forks.push(self.state_after(&event).await?);
        }
        Ok(forks)
    }

    /// The room's state after an event that was checked.
    pub(crate) async fn state_after(&mut self, event: &StoredEvent) -> Result<SnapshotId, WriteError> {
        let before = event.snapshot_before().unwrap_or(SnapshotId::EMPTY);
        match event.header.state_key {
            Some(key) if event.status() != Status::Rejected => {
                Ok(self.snapshots.apply(before, &[(key, Some(event.sn))]).await?)
            }
            _ => Ok(before),
        }
    }

    /// Another state becomes the current one: members that differ get their rows.
    pub(crate) async fn set_state(
        &mut self,
        after: SnapshotId,
        slot: StreamPosition,
    ) -> Result<(), WriteError> {
        let room = self.head.room.sn;
        let before = self.head.row.snapshot;
        if after == before {
            return Ok(());
        }
        let changes = self.snapshots.diff(before, after).await?;
        if changes.is_empty() {
            // The same state under another id: the old one stays, so that less is written and cached.
            return Ok(());
        }
        let members: Vec<StateChange> = changes.into_iter().filter(|change| change.key.is_member()).collect();
        let are_many = members.len() > MEMBERS_AT_ONCE;
        if are_many {
            let unwritten = self.unwritten(&members).await?;
            if unwritten.len() > MEMBERS_AT_ONCE {
                self.members_first = unwritten;
                return Err(WriteError::Busy);
            }
        }
        let partial = self.head.row.partial_state;
        self.commit.put(&HEAD_SNAPSHOTS, &(room, slot), &SnapshotRow { snapshot: after, partial });
        let head = self.change_head();
        head.row.snapshot = after;
        head.forget_state();
        let (mut told, mut late) = (0, Vec::new());
        for change in members {
            let was = match change.before {
                Some(event) => Membership::of(&self.event(event).await?.pdu),
                None => None,
            };
            let Some(event) = change.after.or(change.before) else { continue };
            let event = self.event(event).await?;
            let is_local = self.is_of_local_user(&event);
            told += usize::from(is_local);
            let is_late = are_many && is_local && told > LOCAL_MEMBERS_AT_ONCE;
            if is_late || (are_many && !is_local && self.row_of(&event).await? == change.after) {
                let is = change.after.and_then(|_| Membership::of(&event.pdu));
                self.count(was, is.unwrap_or(Membership::Leave));
                late.extend(is_late.then_some(change.key));
                continue;
            }
            match change.after {
                Some(_) => self.set_member(change.key, &event, was, slot).await?,
                None => self.unset_member(change.before, was, slot).await?,
            }
        }
        self.add_late_members(late).await
    }

    /// Those changes of other servers' users whose rows say something else.
    async fn unwritten(&self, members: &[StateChange]) -> Result<Vec<StateChange>, WriteError> {
        let mut unwritten = Vec::new();
        for change in members {
            let Some(event) = change.after.or(change.before) else { continue };
            let event = self.event(event).await?;
            if !self.is_of_local_user(&event) && self.row_of(&event).await? != change.after {
                unwritten.push(*change);
            }
        }
        Ok(unwritten)
    }

    /// The member event that a user's row names.
    async fn row_of(&self, event: &StoredEvent) -> Result<Option<EventSn>, WriteError> {
        let user = event.pdu.state_key().unwrap_or_default().to_owned();
        Ok(self.get(&MEMBERS, &(self.head.room.sn, user)).await?.map(|row| row.value.event))
    }

    fn is_of_local_user(&self, event: &StoredEvent) -> bool {
        let user = event.pdu.state_key().and_then(|user| <&UserId>::try_from(user).ok());
        user.is_some_and(|user| self.rooms.is_local(user))
    }

    /// The rows of another server's user, ahead of the state that they belong to.
    async fn write_member(&mut self, change: &StateChange, slot: StreamPosition) -> Result<(), WriteError> {
        let Some(event) = change.after.or(change.before) else { return Ok(()) };
        let event = self.event(event).await?;
        if self.is_of_local_user(&event) || self.row_of(&event).await? == change.after {
            return Ok(());
        }
        let Some(user) = event.pdu.state_key().and_then(|user| UserId::parse(user).ok()) else {
            return Ok(());
        };
        let room = self.head.room.sn;
        let row = |membership, event, sender| MembershipRow {
            membership,
            event,
            sender,
            before: None,
            forgotten: false,
            is_direct: false,
        };
        let row = match change.after {
            Some(_) => {
                let membership = Membership::of(&event.pdu).unwrap_or(Membership::Leave);
                self.put_member(&user, change.key, &event, slot);
                row(membership, Some(event.sn), event.header.sender.clone())
            }
            None => {
                self.delete(&MEMBERS, &(room, user.to_string()));
                row(Membership::Leave, None, event.header.sender.clone())
            }
        };
        self.put(&MEMBERSHIPS, &(user.to_string(), room), Positioned { position: slot, value: row });
        Ok(())
    }
}

impl Rooms {
    /// Writes rows of other servers' users ahead of the state that they belong to, in commits of bounded size.
    pub(crate) async fn write_members(
        &self,
        room: &Arc<RoomInfo>,
        changes: &[StateChange],
        unless_resident: bool,
    ) -> Result<(), WriteError> {
        for changes in changes.chunks(MEMBERS_AT_ONCE) {
            let write = WriteMembers { changes, unless_resident };
            self.decide(room, &write, &Commit::new()).await?;
        }
        Ok(())
    }
}

struct WriteMembers<'a> {
    changes: &'a [StateChange],
    unless_resident: bool,
}

#[async_trait]
impl Act for WriteMembers<'_> {
    type Output = ();
    type Error = WriteError;

    fn anywhere(&self) -> bool {
        true
    }

    async fn decide(&self, turn: &mut Turn) -> Result<(), WriteError> {
        if self.unless_resident && turn.head.is_resident() {
            return Ok(());
        }
        let slot = turn.commit.position();
        for change in self.changes {
            turn.write_member(change, slot).await?;
        }
        Ok(())
    }
}
