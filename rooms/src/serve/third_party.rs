//! Third-party invites: somebody was invited by an address, and their server now says which user that is.
//! * Only a server that speaks for its own user, about an invite of a user of ours, is listened to.
//! * Of the request only what the identity server signed is taken; the rest comes from the room.

use async_trait::async_trait;
use hearth_dag::{Pdu, Rejection};
use hearth_store::Commit;
use ruma::{OwnedRoomId, OwnedUserId, RoomId, ServerName};
use serde::Deserialize;
use serde_json::value::to_raw_value;
use serde_json::{Value, json};

use super::accept::invalid;
use super::{HandshakeError, PreparedInvite};
use crate::ids::SnapshotId;
use crate::kind::Kind;
use crate::lane::{Act, Done};
use crate::rooms::Rooms;
use crate::tables::Membership;
use crate::turn::Turn;

/// The partial member event of a request.
#[derive(Clone, Debug, Deserialize)]
pub struct ThirdPartyInvite {
    #[serde(rename = "type")]
    kind: String,
    room_id: OwnedRoomId,
    sender: OwnedUserId,
    state_key: OwnedUserId,
    content: Content,
}

#[derive(Clone, Debug, Deserialize)]
struct Content {
    membership: String,
    third_party_invite: Invitation,
}

#[derive(Clone, Debug, Deserialize)]
struct Invitation {
    #[serde(default)]
    display_name: Option<String>,
    signed: Value,
}

impl Rooms {
    /// `exchange_third_party_invite`: makes the invite, to be signed by the user's server and then appended.
    pub async fn exchange_third_party_invite(
        &self,
        origin: &ServerName,
        room: &RoomId,
        request: &ThirdPartyInvite,
    ) -> Result<PreparedInvite, HandshakeError> {
        if request.kind != "m.room.member" || request.content.membership != "invite" {
            return Err(invalid("the event is not an invite"));
        }
        if request.room_id != room {
            return Err(invalid("the event belongs to another room"));
        }
        if request.state_key.server_name() != origin || !self.is_local(&request.sender) {
            return Err(HandshakeError::UserOfOtherServer);
        }
        let room = self.resident_room(room).await?.ok_or(HandshakeError::UnknownRoom)?;
        let Done { output: (pdu, snapshot), .. } =
            self.decide(&room, &Exchange(request), &Commit::new()).await?;
        let invite_room_state = self.describing_state(&room, snapshot, Some(&request.sender)).await?;
        Ok(PreparedInvite { room, user: request.state_key.clone(), pdu, invite_room_state })
    }
}

struct Exchange<'a>(&'a ThirdPartyInvite);

#[async_trait]
impl Act for Exchange<'_> {
    type Output = (Pdu, SnapshotId);
    type Error = HandshakeError;

    async fn decide(&self, turn: &mut Turn) -> Result<(Pdu, SnapshotId), HandshakeError> {
        let ThirdPartyInvite { sender, state_key: user, content, .. } = self.0;
        // The rules have no word about whoever is in the room already.
        if turn.membership(user).await? == Some(Membership::Join) {
            return Err(HandshakeError::Forbidden(Rejection::AlreadyJoined(user.clone())));
        }
        let signed = &content.third_party_invite.signed;
        let token = signed["token"].as_str();
        let token = token.ok_or(HandshakeError::Forbidden(Rejection::MalformedThirdPartyInvite))?;
        let invitation = turn.state(&Kind::new("m.room.third_party_invite"), token).await?;
        let invitation = invitation.ok_or(HandshakeError::Forbidden(Rejection::UnknownThirdPartyInvite))?;
        let said: Value = invitation.pdu.content_as().unwrap_or_default();
        let name = said["display_name"].as_str().or(content.third_party_invite.display_name.as_deref());
        let content = json!({
            "membership": "invite",
            "third_party_invite": { "display_name": name.unwrap_or_default(), "signed": signed },
        });
        let content = to_raw_value(&content).map_err(|_| invalid("the event is not JSON"))?;
        let pdu = turn.make_invite(sender, user, content).await?;
        Ok((pdu, turn.head.row.snapshot))
    }
}
