//! Members of ours whose rows come after the state that they belong to, because too many changed at once.
//! * Their keys are kept in the commit that changes the state, and go with the commits that bring the rows. Who made the
//!   change brings them, and a follower does what is left by that: it is woken by the change, begins with what a process
//!   before this one left, and comes again after a failure.
//! * What is written is what the room's state says by then. The room's counts are right before.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use hearth_store::{Commit, StoreError, StreamPosition};
use ruma::UserId;

use crate::errors::WriteError;
use crate::events::RoomInfo;
use crate::ids::{EventSn, RoomSn, StateKeySn, late_members_topic};
use crate::lane::{Act, Waits};
use crate::rooms::Rooms;
use crate::tables::{LATE_MEMBERS, LateMembersRow, MEMBERSHIPS, Membership};
use crate::turn::Turn;

/// Users of ours whose rows are written in one commit, where many members change.
pub(crate) const LOCAL_MEMBERS_AT_ONCE: usize = 50;
/// Users of ours whose rows come later. Further ones are told when their membership changes again.
const LATE_MEMBERS_MAX: usize = 50_000;
/// Members whose keys are in one row, at most: so much is written again with each commit that brings rows.
const KEYS_OF_A_ROW: u32 = 2048;

impl Rooms {
    /// Writes the rows of a room's late members. What fails is left to the follower: the change itself is made.
    pub(crate) async fn tell_late_members(&self, room: &Arc<RoomInfo>) {
        if let Err(error) = self.tell_late_members_of(room).await {
            tracing::warn!(room_id = %room.room_id, %error, "members of ours are told later what a room says of them");
        }
    }

    async fn tell_late_members_of(&self, room: &Arc<RoomInfo>) -> Result<(), WriteError> {
        while !self.decide(room, &TellSome, &Commit::new()).await?.output {}
        Ok(())
    }

    /// Writes the rows of all late members. Each room is tried, whatever becomes of others; the first failure is told.
    pub(crate) async fn tell_all_late_members(&self) -> Result<(), WriteError> {
        let (mut range, mut failed) = (LATE_MEMBERS.all(), Ok(()));
        while let Some(((room, _), _)) = self.store().first(&LATE_MEMBERS, range.clone()).await? {
            if let Some(room) = self.room_of(room).await? {
                failed = failed.and(self.tell_late_members_of(&room).await);
            }
            let Some(next) = room.0.checked_add(1) else { break };
            range = range.from(&(RoomSn(next),));
        }
        failed
    }
}

/// Writes as many rows as fit. Says whether none are left.
struct TellSome;

#[async_trait]
impl Act for TellSome {
    type Output = bool;
    type Error = WriteError;

    fn anywhere(&self) -> bool {
        true
    }

    fn waits(&self) -> Waits {
        // It looks for the first row.
        Waits::ForAll
    }

    async fn decide(&self, turn: &mut Turn) -> Result<bool, WriteError> {
        let range = LATE_MEMBERS.prefix(&(turn.head.room.sn,));
        let Some((place, LateMembersRow { mut keys })) =
            turn.rooms.store().first(&LATE_MEMBERS, range).await?
        else {
            return Ok(true);
        };
        turn.change_head();
        if turn.head.is_resident() {
            let slot = turn.commit.position();
            for key in keys.drain(..keys.len().min(LOCAL_MEMBERS_AT_ONCE)) {
                turn.tell_member(key, slot).await?;
            }
        } else {
            // What the state says is not for them any more.
            keys.clear();
        }
        match keys.is_empty() {
            true => turn.delete(&LATE_MEMBERS, &place),
            false => turn.put(&LATE_MEMBERS, &place, LateMembersRow { keys }),
        }
        let are_all_told = !turn.has_late_members().await?;
        if are_all_told {
            turn.joins_changed = true;
            turn.settle_residency().await?;
        }
        Ok(are_all_told)
    }
}

impl Turn {
    /// Notes members of ours whose rows are to come later.
    pub(crate) async fn add_late_members(&mut self, late: Vec<StateKeySn>) -> Result<(), WriteError> {
        if late.is_empty() {
            return Ok(());
        }
        let room = self.head.room.sn;
        if late.len() > LATE_MEMBERS_MAX {
            tracing::warn!(room_id = %self.head.room.room_id, "too many members of ours changed at once");
        }
        let mut rows: BTreeMap<u32, BTreeSet<StateKeySn>> = BTreeMap::new();
        for key in late.into_iter().take(LATE_MEMBERS_MAX) {
            rows.entry(key.index() / KEYS_OF_A_ROW).or_default().insert(key);
        }
        for (place, mut keys) in rows {
            let held = self.get(&LATE_MEMBERS, &(room, place)).await?.unwrap_or_default();
            keys.extend(held.keys);
            let row = LateMembersRow { keys: keys.into_iter().collect() };
            self.put(&LATE_MEMBERS, &(room, place), row);
        }
        self.commit.touch(late_members_topic());
        self.leaves_late_members = true;
        Ok(())
    }

    /// Whether members of ours are still to be told, after this turn.
    pub(crate) async fn has_late_members(&self) -> Result<bool, StoreError> {
        let room = self.head.room.sn;
        let mut range = LATE_MEMBERS.prefix(&(room,));
        // What is on its way is in no range, and what is in one may be on its way out.
        for place in self.keys_on_their_way(&LATE_MEMBERS) {
            if place.0 == room && self.get(&LATE_MEMBERS, &place).await?.is_some() {
                return Ok(true);
            }
        }
        while let Some((place, _)) = self.rooms.store().first(&LATE_MEMBERS, range.clone()).await? {
            if self.get(&LATE_MEMBERS, &place).await?.is_some() {
                return Ok(true);
            }
            range = range.after(&place);
        }
        Ok(false)
    }

    async fn tell_member(&mut self, key: StateKeySn, slot: StreamPosition) -> Result<(), WriteError> {
        let (_, user) = self.key_name(key).await?;
        let Ok(user) = UserId::parse(user) else { return Ok(()) };
        match self.snapshots.lookup(self.head.row.snapshot, key).await? {
            Some(event) => self.tell_local_member(&user, key, event, slot).await,
            None => {
                let row = self.get(&MEMBERSHIPS, &(user.to_string(), self.head.room.sn)).await?;
                if let Some(row) = row {
                    self.forget_member(&user, Some(row.value.membership), slot);
                }
                Ok(())
            }
        }
    }

    /// The rows of a user of ours, where the state says something new of them. The counts are the caller's.
    pub(crate) async fn tell_local_member(
        &mut self,
        user: &UserId,
        key: StateKeySn,
        event: EventSn,
        slot: StreamPosition,
    ) -> Result<(), WriteError> {
        let event = self.event(event).await?;
        let row = self.get(&MEMBERSHIPS, &(user.to_string(), self.head.room.sn)).await?;
        let before = row.map(|row| row.value.membership);
        let membership = Membership::of(&event.pdu).unwrap_or(Membership::Leave);
        if before.unwrap_or(Membership::Leave) == membership {
            self.put_member(user, key, &event, slot);
            return Ok(());
        }
        let (joined, invited) = (self.head.row.joined, self.head.row.invited);
        self.set_member(key, &event, before, slot).await?;
        let head = &mut self.change_head().row;
        (head.joined, head.invited) = (joined, invited);
        Ok(())
    }
}
