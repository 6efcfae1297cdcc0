//! What is kept of other servers' users for encryption goes when no room is shared with them any more.
//! * Whether a room is shared is asked of the rooms, now and then for everybody of whom something is kept: it may end by an
//!   event, by a resolution, or because the last of our users left.
//! * Their servers tell us nothing from then on. What comes after all is marked as incomplete, since nothing is before it.

use std::{sync::Arc, time::Duration};

use hearth_store::StoreError;
use hearth_users::UsersError;
use ruma::UserId;

use super::Inner;

/// Users who are looked at together,
const USERS_AT_ONCE: usize = 100;
/// and how long it rests then,
const BETWEEN: Duration = Duration::from_secs(1);
/// and when it is through.
const AGAIN_AFTER: Duration = Duration::from_secs(10 * 60);

impl Inner {
    /// Forgets strangers.
    pub(super) async fn forget_strangers(self: Arc<Self>) {
        loop {
            tokio::time::sleep(AGAIN_AFTER).await;
            if let Err(error) = self.look_for_strangers().await {
                tracing::warn!(%error, "whose devices are kept in vain cannot be found");
            }
        }
    }

    async fn look_for_strangers(&self) -> Result<(), UsersError> {
        let mut after: Option<String> = None;
        loop {
            let users = self.users.remote_users(after.as_deref(), USERS_AT_ONCE).await?;
            for user in &users {
                let Ok(user) = <&UserId>::try_from(user.as_str()) else { continue };
                if !self.shares_a_room(user).await? {
                    self.users.forget_remote_user(user).await?;
                }
            }
            after = users.last().cloned();
            if users.len() < USERS_AT_ONCE {
                return Ok(());
            }
            tokio::time::sleep(BETWEEN).await;
        }
    }

    /// Whether a user is in any room with one of ours.
    async fn shares_a_room(&self, user: &UserId) -> Result<bool, StoreError> {
        let local = self.federation.local_servers();
        for room in self.rooms.joined_rooms(user).await? {
            let Some(info) = self.rooms.room_of(room).await? else { continue };
            if self.rooms.servers_in_room(&info).await?.iter().any(|server| local.is_local(server)) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
