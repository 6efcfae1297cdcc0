//! Members of ours whose rows come after the state that they belong to, because too many changed at once.
//! * Their keys are kept in the commit that changes the state, and go with the commits that bring the rows: what a crash
//!   leaves is taken up when the rooms are opened.
//! * What is written is what the room's state says by then. The room's counts are right before.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use hearth_store::{Commit, Order, StreamPosition};
use ruma::UserId;

use crate::errors::WriteError;
use crate::events::RoomInfo;
use crate::ids::{EventSn, StateKeySn};
use crate::lane::Act;
use crate::rooms::Rooms;
use crate::tables::{LATE_MEMBERS, LateMembersRow, MEMBERSHIPS, Membership};
use crate::turn::Turn;

/// Users of ours whose rows are written in one commit, where many members change.
pub(crate) const LOCAL_MEMBERS_AT_ONCE: usize = 50;
/// Users of ours whose rows come later. Further ones are told when their membership changes again.
const LATE_MEMBERS_MAX: usize = 50_000;
/// Rooms that are taken up at once.
const ROOMS_AT_ONCE: usize = 100;

impl Rooms {
    /// Writes the rows of a room's late members.
    pub(crate) async fn tell_late_members(&self, room: &Arc<RoomInfo>) -> Result<(), WriteError> {
        while !self.decide(room, &TellSome, &Commit::new()).await?.output {}
        Ok(())
    }

    /// Takes up what a process before this one left.
    pub(crate) async fn tell_all_late_members(&self) -> Result<(), WriteError> {
        let mut range = LATE_MEMBERS.all();
        loop {
            let rows =
                self.store().range(&LATE_MEMBERS, range.clone(), Order::Forward, ROOMS_AT_ONCE).await?;
            let Some((last, _)) = rows.last() else { return Ok(()) };
            range = range.after(last);
            for (room, _) in rows {
                if let Some(room) = self.room_of(room).await? {
                    self.tell_late_members(&room).await?;
                }
            }
        }
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

    async fn decide(&self, turn: &mut Turn) -> Result<bool, WriteError> {
        let room = turn.head.room.sn;
        let Some(LateMembersRow { mut keys }) = turn.get(&LATE_MEMBERS, &room).await? else {
            return Ok(true);
        };
        turn.change_head();
        if !turn.head.is_resident() {
            // What the state says is not for them any more.
            turn.delete(&LATE_MEMBERS, &room);
            return Ok(true);
        }
        let slot = turn.commit.position();
        for key in keys.drain(..keys.len().min(LOCAL_MEMBERS_AT_ONCE)) {
            turn.tell_member(key, slot).await?;
        }
        if !keys.is_empty() {
            turn.put(&LATE_MEMBERS, &room, LateMembersRow { keys });
            return Ok(false);
        }
        turn.delete(&LATE_MEMBERS, &room);
        turn.joins_changed = true;
        turn.settle_residency().await?;
        Ok(true)
    }
}

impl Turn {
    /// Notes members of ours whose rows are to come later.
    pub(crate) async fn add_late_members(&mut self, late: Vec<StateKeySn>) -> Result<(), WriteError> {
        if late.is_empty() {
            return Ok(());
        }
        let room = self.head.room.sn;
        let held = self.get(&LATE_MEMBERS, &room).await?.unwrap_or_default();
        let mut keys: BTreeSet<StateKeySn> = held.keys.into_iter().chain(late).collect();
        while keys.len() > LATE_MEMBERS_MAX {
            tracing::warn!(room_id = %self.head.room.room_id, "too many members of ours changed at once");
            keys.pop_last();
        }
        self.put(&LATE_MEMBERS, &room, LateMembersRow { keys: keys.into_iter().collect() });
        self.has_late_members = true;
        Ok(())
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
