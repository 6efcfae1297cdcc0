//! Templates: the member event that a server without the room signs in order to come in, to leave, or to knock.
//! * A template is an event that the rules allow on the room as it is now, without hashes and signatures.
//! * Nothing is written; its prev events are durable when it is given out.

use async_trait::async_trait;
use hearth_dag::canonical::Value as Canonical;
use hearth_dag::{Draft, Rejection};
use hearth_store::Commit;
use ruma::{OwnedUserId, RoomId, RoomVersionId, ServerName, UserId};
use serde_json::json;
use serde_json::value::{RawValue, to_raw_value};

use super::HandshakeError;
use crate::lane::{Act, Done};
use crate::restricted::Restricted;
use crate::rooms::Rooms;
use crate::tables::Membership;
use crate::turn::Turn;

/// An event to be completed and signed by the server that asked for it.
#[derive(Clone, Debug)]
pub struct Template {
    pub room_version: RoomVersionId,
    pub event: Box<RawValue>,
}

impl Rooms {
    /// `make_join`. `versions` are those that the asking server knows.
    pub async fn make_join(
        &self,
        origin: &ServerName,
        room: &RoomId,
        user: &UserId,
        versions: &[RoomVersionId],
    ) -> Result<Template, HandshakeError> {
        self.make_template(origin, room, user, Membership::Join, Some(versions)).await
    }

    /// `make_leave`: out of the room, or out of an invite or a knock.
    pub async fn make_leave(
        &self,
        origin: &ServerName,
        room: &RoomId,
        user: &UserId,
    ) -> Result<Template, HandshakeError> {
        self.make_template(origin, room, user, Membership::Leave, None).await
    }

    /// `make_knock`. `versions` are those that the asking server knows.
    pub async fn make_knock(
        &self,
        origin: &ServerName,
        room: &RoomId,
        user: &UserId,
        versions: &[RoomVersionId],
    ) -> Result<Template, HandshakeError> {
        self.make_template(origin, room, user, Membership::Knock, Some(versions)).await
    }

    async fn make_template(
        &self,
        origin: &ServerName,
        room: &RoomId,
        user: &UserId,
        membership: Membership,
        versions: Option<&[RoomVersionId]>,
    ) -> Result<Template, HandshakeError> {
        if user.server_name() != origin || self.is_local(user) {
            return Err(HandshakeError::UserOfOtherServer);
        }
        let room = self.resident_room(room).await?.ok_or(HandshakeError::UnknownRoom)?;
        if versions.is_some_and(|known| !known.contains(&room.version)) {
            return Err(HandshakeError::IncompatibleVersion { room_version: room.version.clone() });
        }
        let make = MakeTemplate { user: user.to_owned(), membership };
        let Done { output: event, .. } = self.decide(&room, &make, &Commit::new()).await?;
        Ok(Template { room_version: room.version.clone(), event })
    }
}

struct MakeTemplate {
    user: OwnedUserId,
    membership: Membership,
}

#[async_trait]
impl Act for MakeTemplate {
    type Output = Box<RawValue>;
    type Error = HandshakeError;

    async fn decide(&self, turn: &mut Turn) -> Result<Box<RawValue>, HandshakeError> {
        let mut content = json!({ "membership": self.membership.as_str() });
        if self.membership == Membership::Join
            && let Some(authoriser) = turn.let_in(&self.user).await?
        {
            content["join_authorised_via_users_server"] = json!(authoriser);
        }
        let content = to_raw_value(&content).map_err(|_| forbidden(Rejection::MalformedMember))?;
        let draft = Draft::member(&self.user, &self.user, content);
        // The signature is only there because every event has one: a template has none.
        let ours = turn.rooms.servers().names().next().ok_or(HandshakeError::UnknownRoom)?.to_owned();
        let pdu = turn.make(&draft, None, &ours).await?.pdu;
        let mut object = pdu.to_object();
        for field in ["hashes", "signatures", "event_id"] {
            object.remove(field);
        }
        object.insert("origin", Canonical::String(ours.as_str().into()));
        RawValue::from_string(object.to_canonical())
            .map_err(|_| HandshakeError::Invalid("the event is not JSON".to_owned()))
    }
}

fn forbidden(rejection: Rejection) -> HandshakeError {
    HandshakeError::Forbidden(rejection)
}

impl Turn {
    /// Who of ours lets a user into a restricted room, if that is needed.
    pub(super) async fn let_in(&mut self, user: &UserId) -> Result<Option<OwnedUserId>, HandshakeError> {
        // Whoever is banned hears that, and not who else could let them in.
        if self.membership(user).await? == Some(Membership::Ban) {
            return Err(forbidden(Rejection::Banned(user.to_owned())));
        }
        match self.restricted_join(user).await? {
            Restricted::No => Ok(None),
            Restricted::By(authoriser) => Ok(Some(authoriser)),
            Restricted::NobodyMay => Err(HandshakeError::UnableToGrant),
            Restricted::CannotTell { .. } => Err(HandshakeError::UnableToAuthorise),
            Restricted::Forbidden { join_rule } => Err(forbidden(Rejection::JoinRuleForbids { join_rule })),
        }
    }
}
