//! Whether we are still in a room: while one of our users is joined, or nobody at all is.
//! * When the last of our users leaves a room in which others stay, what we hold ends there: they go on without us.
//! * A room that everybody has left is whole here: whoever may join it again is let in by us.

use hearth_store::Order;
use ruma::UserId;

use crate::errors::WriteError;
use crate::rooms::Rooms;
use crate::tables::{MEMBERS, Membership, PARTIAL_EVENTS, PARTIAL_ROOMS, Residency};
use crate::turn::Turn;

/// Members that are read at a time: few at first, as one of ours is often among them.
const FIRST_MEMBERS: usize = 16;
const MEMBERS_AT_ONCE: usize = 1000;

impl Turn {
    /// After all of this turn's changes: ends our part in the room if none of our users is left in it.
    pub(crate) async fn settle_residency(&mut self) -> Result<(), WriteError> {
        if !std::mem::take(&mut self.joins_changed) || !self.head.is_resident() {
            return Ok(());
        }
        if self.has_late_members().await? {
            // Seen again when the rows of all of them are here.
            return Ok(());
        }
        let others_stay = self.head.row.joined > 0 || self.head.row.partial_state;
        if others_stay && !self.is_any_local_user_joined().await? {
            let room = self.head.room.sn;
            let head = &mut self.change_head().row;
            head.residency = Residency::Left;
            if std::mem::take(&mut head.partial_state) {
                // Nobody has to be asked for its members any more, and nothing is decided again: also not if we come
                // back meanwhile.
                let last = head.next_queued.saturating_sub(1);
                self.commit.delete(&PARTIAL_ROOMS, &room);
                let events = PARTIAL_EVENTS.prefix(&(room,)).up_to(&(room, last));
                self.commit.delete_range_later(&PARTIAL_EVENTS, &events);
            }
        }
        Ok(())
    }

    async fn is_any_local_user_joined(&self) -> Result<bool, WriteError> {
        let room = self.head.room.sn;
        // What is on its way is in no range.
        for (of, user) in self.keys_on_their_way(&MEMBERS) {
            if of == room && self.is_local_and_joined(&user).await? {
                return Ok(true);
            }
        }
        let (mut range, mut limit) = (MEMBERS.prefix(&(room,)), FIRST_MEMBERS);
        loop {
            let rows = self.rooms.store().range(&MEMBERS, range.clone(), Order::Forward, limit).await?;
            for ((_, user), row) in &rows {
                if row.value.membership == Membership::Join && self.is_local_and_joined(user).await? {
                    return Ok(true);
                }
            }
            match rows.last() {
                Some((last, _)) if rows.len() == limit => {
                    (range, limit) = (range.after(last), MEMBERS_AT_ONCE);
                }
                _ => return Ok(false),
            }
        }
    }

    async fn is_local_and_joined(&self, user: &str) -> Result<bool, WriteError> {
        if !is_local(&self.rooms, user) {
            return Ok(false);
        }
        let row = self.get(&MEMBERS, &(self.head.room.sn, user.to_owned())).await?;
        Ok(row.is_some_and(|row| row.value.membership == Membership::Join))
    }
}

fn is_local(rooms: &Rooms, user: &str) -> bool {
    <&UserId>::try_from(user).is_ok_and(|user| rooms.is_local(user))
}
