//! How often users of ours are invited from elsewhere, and how many invites they have that they did not answer.
//! * A server invites so often, and a user is invited so often, by whomever.
//! * Beyond so many open invites of other servers a user gets no more until some are answered: what comes with them is
//!   kept for as long.

use hearth_rooms::{Membership, Rooms};
use hearth_store::StoreError;
use ruma::{OwnedServerName, OwnedUserId, RoomId, ServerName, UserId};

use super::Inbound;
use crate::{allowance::Allowance, turns::Crowded};

/// Invites a second that one server sends in the long run.
pub const INVITES_PER_SECOND_OF_A_SERVER: f64 = 1.0;
/// Invites that it sends at once: a bot that brings a whole team into its rooms.
pub const INVITES_AT_ONCE_OF_A_SERVER: f64 = 200.0;
/// Invites a second that one user gets in the long run: three a minute.
pub const INVITES_PER_SECOND_TO_A_USER: f64 = 0.05;
/// Invites that one user gets at once: all rooms of a new project.
pub const INVITES_AT_ONCE_TO_A_USER: f64 = 30.0;
/// Invites from rooms in which this server is not that a user has at the same time.
pub const PENDING_INVITES_MAX: usize = 200;
/// When to come again where too many wait: their user has to do something first.
const ANSWERED_AFTER: std::time::Duration = std::time::Duration::from_secs(3600);

/// Who invited, and who was invited.
#[derive(Debug)]
pub(super) struct Invites {
    of_servers: Allowance<OwnedServerName>,
    to_users: Allowance<OwnedUserId>,
}

/// Why an invite is not taken now.
#[derive(Debug, thiserror::Error)]
pub enum InviteLimit {
    /// Too many.
    #[error(transparent)]
    Crowded(#[from] Crowded),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Invites {
    pub(super) fn new() -> Self {
        Self {
            of_servers: Allowance::new(INVITES_PER_SECOND_OF_A_SERVER, INVITES_AT_ONCE_OF_A_SERVER),
            to_users: Allowance::new(INVITES_PER_SECOND_TO_A_USER, INVITES_AT_ONCE_TO_A_USER),
        }
    }
}

impl Inbound {
    /// A server invites: asked before anything of the invite is looked at.
    pub fn may_invite(&self, origin: &ServerName) -> Result<(), Crowded> {
        let invited = self.0.invites.of_servers.take(origin.to_owned(), 1.0);
        invited.map_err(|retry_after| Crowded { retry_after })
    }

    /// A user of ours, who exists, is invited to a room.
    pub async fn may_be_invited(&self, user: &UserId, room: &RoomId) -> Result<(), InviteLimit> {
        let invited = self.0.invites.to_users.take(user.to_owned(), 1.0);
        invited.map_err(|retry_after| Crowded { retry_after })?;
        if pending(&self.0.rooms, user, room).await? >= PENDING_INVITES_MAX {
            return Err(Crowded { retry_after: ANSWERED_AFTER }.into());
        }
        Ok(())
    }
}

/// Open invites of a user that came from outside, but for one to this room.
async fn pending(rooms: &Rooms, user: &UserId, room: &RoomId) -> Result<usize, StoreError> {
    let this = rooms.room(room).await?.map(|room| room.sn);
    let memberships = rooms.memberships(user).await?;
    let open = memberships.iter().filter(|(room, row)| {
        row.value.membership == Membership::Invite && row.value.event.is_none() && Some(*room) != this
    });
    Ok(open.count())
}
