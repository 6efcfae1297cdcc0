//! Leaving a room that is elsewhere: rejecting an invite, or taking a knock back.
//! * The servers of the room are told if one of them answers in time. Otherwise the user leaves all the same, and only
//!   they know: nobody is kept in an invite by a server that is gone.

use std::time::Duration;

use hearth_dag::{RoomRules, VerifiedPdu};
use hearth_rooms::{Membership, MembershipError, OutOfBand, Profile, Remove, Sent, WriteError};
use hearth_store::Commit;

use super::{
    Parts, RemoteRoomError, RemoteRooms, Unusable,
    asking::{Asking, candidates},
    template::CheckedTemplate,
};

/// Others have so much time to take note.
const LEAVE_TIME: Duration = Duration::from_secs(20);

impl RemoteRooms {
    /// A user of ours leaves a room, wherever it is. `remove` is a leave.
    pub async fn leave(&self, remove: Remove) -> Result<(), RemoteRoomError> {
        let mut done = self.parts.remove_here(&remove).await;
        if let Err(MembershipError::NeverThere) = done
            && self.parts.was_partial(&remove.room).await?
        {
            done = self.parts.remove_here(&remove).await;
        }
        match done {
            Err(MembershipError::NeedsOtherServer) => {}
            done => return Ok(done.map(drop)?),
        }
        let parts = self.parts.clone();
        self.run(async move { parts.leave_elsewhere(&remove).await }).await
    }
}

impl Parts {
    async fn remove_here(&self, remove: &Remove) -> Result<Option<Sent>, MembershipError> {
        self.policy.signing(|rooms| async move { rooms.remove(remove, Commit::new()).await }).await
    }

    async fn leave_elsewhere(&self, remove: &Remove) -> Result<(), RemoteRoomError> {
        let room = self.rooms.room(&remove.room).await?.ok_or(MembershipError::NeverThere)?;
        let row = self.rooms.membership_row(&remove.user, room.sn).await?;
        match row.map(|row| row.membership).ok_or(MembershipError::NeverThere)? {
            Membership::Leave => return Ok(()),
            Membership::Ban => return Err(MembershipError::Banned(remove.user.clone()).into()),
            Membership::Invite | Membership::Knock | Membership::Join => {}
        }
        let told = match tokio::time::timeout(LEAVE_TIME, self.tell_leave(remove, room.rules)).await {
            Ok(told) => told?,
            Err(_) => None,
        };
        if let Some(event) = told {
            let version = room.version.clone();
            let left = OutOfBand { room_id: remove.room.clone(), version, event, state: Vec::new() };
            match self.rooms.receive_out_of_band(&left).await {
                Ok(_) => return Ok(()),
                Err(error) => {
                    tracing::debug!(room_id = %remove.room, %error, "a leave is not kept as an event")
                }
            }
        }
        match self.rooms.leave_out_of_band(&remove.user, &remove.room).await {
            // Another user has entered the room meanwhile.
            Err(MembershipError::InRoom) => Ok(self.remove_here(remove).await.map(drop)?),
            done => Ok(done?),
        }
    }

    /// The leave, if a server of the room took it.
    async fn tell_leave(
        &self,
        remove: &Remove,
        rules: &RoomRules,
    ) -> Result<Option<VerifiedPdu>, WriteError> {
        let servers = candidates(&self.federation, &self.rooms, &remove.room, &remove.user, &[]).await?;
        let client = self.client_for(remove.user.server_name());
        let mut asking = Asking::new(servers, |server| {
            let client = &client;
            async move { client.make_leave(&server, &remove.room, &remove.user).await }
        });
        while let Some((server, template)) = asking.next().await {
            let content = Profile::default().member_content("leave", remove.reason.as_deref());
            let made = CheckedTemplate::check(&template, &remove.room, &remove.user, "leave")
                .and_then(|checked| match std::ptr::eq(checked.rules, rules) {
                    true => Ok(checked),
                    false => Err(Unusable::Template("of another version than the room's")),
                })
                .and_then(|checked| checked.build(self, &remove.room, &remove.user, content));
            let pdu = match made {
                Ok(pdu) => pdu,
                Err(why) => {
                    asking.failures.unusable(&server, &why);
                    continue;
                }
            };
            match client.send_leave(&server, &remove.room, pdu.event_id(), pdu.json()).await {
                Ok(()) => return Ok(Some(VerifiedPdu::built_here(pdu))),
                Err(error) => asking.failures.note(&server, error),
            }
        }
        tracing::info!(room_id = %remove.room, user_id = %remove.user, "no server of a room takes note of a leave");
        Ok(None)
    }
}
