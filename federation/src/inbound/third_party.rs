//! Third-party invites that become real ones: an identity server says whose address it is, the room's rules check what
//! it signed.
//! * For another server's user, that server asks us to make the invite, and signs it like any other.
//! * For a user of ours, the identity server tells us; we make the invite, or ask the server of who invited.

use hearth_dag::{LocalServers, ReceivedPdu, Rejection};
use hearth_rooms::{
    Rooms,
    serve::{HandshakeError, PreparedInvite, ThirdPartyInvite},
};
use hearth_store::{Commit, StoreError};
use ruma::{OwnedRoomId, OwnedUserId, RoomId, ServerName};
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};

use super::Inbound;
use crate::{client::RequestError, key_store::KeyNeeds};

/// Why there is no invite.
#[derive(Debug, thiserror::Error)]
pub enum ThirdPartyError {
    /// By the room's rules, or because the request is wrong.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// The other server did not sign it, or cannot be reached.
    #[error("the user's server did not sign the invite: {0}")]
    Request(#[from] RequestError),
    /// What the other server signed is no event.
    #[error("the user's server did not sign the invite: {0}")]
    Answer(Rejection),
}

impl From<StoreError> for ThirdPartyError {
    fn from(error: StoreError) -> Self {
        HandshakeError::from(error).into()
    }
}

/// An invite that waited for somebody to own the address.
#[derive(Debug, Clone, Deserialize)]
pub struct BoundInvite {
    /// Whose address it is.
    pub mxid: OwnedUserId,
    /// Where to.
    pub room_id: OwnedRoomId,
    /// Who invited.
    pub sender: OwnedUserId,
    /// What the identity server signed.
    pub signed: Value,
}

impl BoundInvite {
    /// The partial event that the server of who invited is asked with.
    fn event(&self) -> Value {
        json!({
            "type": "m.room.member",
            "room_id": self.room_id,
            "sender": self.sender,
            "state_key": self.mxid,
            "content": { "membership": "invite", "third_party_invite": { "signed": self.signed } },
        })
    }
}

impl Inbound {
    /// `exchange_third_party_invite`: another server asks for the invite of its user.
    pub async fn exchange_third_party_invite(
        &self,
        origin: &ServerName,
        room: &RoomId,
        invite: &ThirdPartyInvite,
    ) -> Result<(), ThirdPartyError> {
        let exchange =
            |rooms: Rooms| async move { rooms.exchange_third_party_invite(origin, room, invite).await };
        let prepared = self.0.policy.signing(exchange).await?;
        self.complete(&prepared).await
    }

    /// `3pid/onbind`: an address turned out to be that of a user of ours.
    pub async fn third_party_bound(&self, invite: &BoundInvite) -> Result<(), ThirdPartyError> {
        let (event, local): (_, &LocalServers) = (invite.event(), self.0.federation.local_servers());
        let (of_user, of_sender) = (invite.mxid.server_name(), invite.sender.server_name());
        if !local.is_local(of_sender) {
            let client = self.0.federation.client().speaking_as(of_user);
            let event = event.to_string();
            return Ok(client.exchange_third_party_invite(of_sender, &invite.room_id, &event).await?);
        }
        let invite_event: ThirdPartyInvite =
            serde_json::from_value(event).map_err(|error| HandshakeError::Invalid(error.to_string()))?;
        self.exchange_third_party_invite(of_user, &invite.room_id, &invite_event).await
    }

    /// Has an invite signed by the user's server, and takes it into the room.
    async fn complete(&self, prepared: &PreparedInvite) -> Result<(), ThirdPartyError> {
        let (room, pdu) = (&prepared.room, &prepared.pdu);
        let server = prepared.user.server_name();
        let signed = match self.0.federation.local_servers().is_local(server) {
            true => ReceivedPdu::parse(room.rules, pdu.json()),
            false => {
                let state = prepared.invite_room_state.iter();
                let state: Result<Vec<_>, _> =
                    state.map(|pdu| RawValue::from_string(pdu.json().to_owned())).collect();
                let state = state.map_err(|error| HandshakeError::Invalid(error.to_string()))?;
                let client = self.0.federation.client().even_if_failing();
                let answer = client
                    .invite(server, &room.room_id, pdu.event_id(), pdu.json(), &room.version, &state)
                    .await?;
                ReceivedPdu::parse(room.rules, answer.get())
            }
        };
        let signed = signed.map_err(ThirdPartyError::Answer)?;
        let mut needs = KeyNeeds::new().asked_of(server);
        needs.add_pdu(room.rules, &signed);
        needs.add_signed(server, &signed.pdu().to_object(), u64::from(pdu.origin_server_ts().0));
        let keys = self.0.federation.keys().keys_for(&needs).await?;
        self.0.rooms.append_invite(prepared, &signed, &keys, Commit::new()).await?;
        Ok(())
    }
}
