//! Inviting a user of another server: our event, signed by that server too before it is part of the room.

use hearth_dag::ReceivedPdu;
use hearth_rooms::{Invite, Rooms, Sent};
use hearth_store::Commit;
use serde_json::value::RawValue;

use super::{Parts, RemoteRoomError, RemoteRooms, asking::Failures};
use crate::key_store::KeyNeeds;

impl RemoteRooms {
    /// Invites a user, of this server or another. Nothing if they are invited already.
    pub async fn invite(&self, invite: Invite) -> Result<Option<Sent>, RemoteRoomError> {
        if self.parts.rooms.is_local(&invite.user) {
            let invite = &invite;
            let here = |rooms: Rooms| async move { rooms.invite(invite, Commit::new()).await };
            return Ok(self.parts.policy.signing(here).await?);
        }
        let parts = self.parts.clone();
        self.run(async move { parts.invite_elsewhere(&invite).await.map(Some) }).await
    }
}

impl Parts {
    async fn invite_elsewhere(&self, invite: &Invite) -> Result<Sent, RemoteRoomError> {
        let prepare = |rooms: Rooms| async move { rooms.prepare_invite(invite).await };
        let prepared = self.policy.signing(prepare).await?;
        let (pdu, rules, server) = (&prepared.pdu, prepared.room.rules, invite.user.server_name());
        let state = prepared.invite_room_state.iter();
        let state: Vec<Box<RawValue>> =
            state.filter_map(|event| RawValue::from_string(event.json().to_owned()).ok()).collect();
        let client = self.client_for(invite.sender.server_name());
        let answer = client
            .invite(server, &invite.room, pdu.event_id(), pdu.json(), &prepared.room.version, &state)
            .await;
        let mut failures = Failures::default();
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                failures.note(server, error);
                return Err(failures.into_error());
            }
        };
        let signed = match ReceivedPdu::parse(rules, answer.get()) {
            Ok(signed) => signed,
            Err(why) => {
                tracing::info!(%server, %why, "an invite came back as something else");
                failures.unusable(server, &super::Unusable::Answer("not the invite"));
                return Err(failures.into_error());
            }
        };
        let mut needs = KeyNeeds::new().asked_of(server);
        let at_ms = match rules.inner.enforce_key_validity {
            true => u64::from(pdu.origin_server_ts().0),
            false => 0,
        };
        needs.add_signed(server, &signed.pdu().to_object(), at_ms);
        let keys = self.federation.keys().keys_for(&needs).await?;
        Ok(self.rooms.append_invite(&prepared, &signed, &keys, Commit::new()).await?)
    }
}
