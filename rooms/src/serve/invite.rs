//! Invites between servers: two servers sign one event.
//! * Ours to a user elsewhere is made in two steps: *prepare* fixes the event on the room's head without writing it;
//!   the other server signs it; *append* takes it in, as a fork if the room went on meanwhile.
//! * From elsewhere to our user: what is asked to be signed must be an invite to a user of ours and nothing else.
//! * Of what the other server answers only a signature of its that holds is taken.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use hearth_dag::canonical::{Object, Value as Canonical};
use hearth_dag::limits::check_size;
use hearth_dag::{Draft, Pdu, ReceivedPdu, Rejection, RoomRules, ServerKeys, VerifiedPdu, countersign};
use hearth_store::Commit;
use ruma::events::TimelineEventType;
use ruma::{EventId, OwnedUserId, RoomId, ServerName, UserId};
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

use super::HandshakeError;
use super::accept::invalid;
use crate::events::RoomInfo;
use crate::ids::SnapshotId;
use crate::lane::{Act, Done};
use crate::membership::{Invite, MembershipError};
use crate::receive::Received;
use crate::rooms::Rooms;
use crate::send::Sent;
use crate::tables::Membership;
use crate::turn::Turn;

/// State events that come with an invite and are looked at.
const INVITE_STATE_MAX: usize = 50;

/// An invite that the invited user's server has yet to sign.
#[derive(Clone, Debug)]
pub struct PreparedInvite {
    pub room: Arc<RoomInfo>,
    pub user: OwnedUserId,
    /// With our signature. Its prev events are fixed.
    pub pdu: Pdu,
    /// What tells the user which room it is; the create event is among them.
    pub invite_room_state: Vec<Pdu>,
}

/// An invite to a user of ours, as the request brings it.
#[derive(Clone, Debug)]
pub struct ReceivedInvite<'a> {
    pub origin: &'a ServerName,
    pub room: &'a RoomId,
    pub event: &'a EventId,
    /// Of the room version that the request names.
    pub rules: &'static RoomRules,
    pub pdu: ReceivedPdu,
    pub room_state: &'a [Box<RawValue>],
    /// Those of the sender's server, and of the servers of `room_state`.
    pub keys: &'a ServerKeys,
}

/// An invite to a user of ours with our signature: the answer to the request, and what is to be kept of it.
#[derive(Clone, Debug)]
pub struct SignedInvite {
    pub user: OwnedUserId,
    pub pdu: Pdu,
    /// JSON of stripped state events.
    pub stripped_state: Vec<String>,
}

/// Why an invite to a user of ours is not signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InviteRefusal {
    /// It is not what the endpoint is for.
    #[error("{0}")]
    Invalid(String),
    #[error("{0} is not a user of this server")]
    NotOurUser(String),
}

impl Rooms {
    /// Makes an invite for a user of another server, to be signed there. The room does not change.
    pub async fn prepare_invite(&self, invite: &Invite) -> Result<PreparedInvite, MembershipError> {
        let room = self.room(&invite.room).await?.ok_or(crate::WriteError::UnknownRoom)?;
        let Done { output: (pdu, snapshot), .. } =
            self.decide(&room, &Prepare(invite), &Commit::new()).await?;
        let invite_room_state = self.describing_state(&room, snapshot, Some(&invite.sender)).await?;
        Ok(PreparedInvite { room, user: invite.user.clone(), pdu, invite_room_state })
    }

    /// Takes in a prepared invite that the invited user's server signed. `also` is written in the same commit.
    pub async fn append_invite(
        &self,
        prepared: &PreparedInvite,
        signed: &ReceivedPdu,
        keys: &ServerKeys,
        also: Commit,
    ) -> Result<Sent, HandshakeError> {
        let pdu = with_signature_of(prepared, signed, keys)?;
        let event_id = pdu.event_id().to_owned();
        match self.receive_to_send(&VerifiedPdu::built_here(pdu), &also).await? {
            Received::Accepted(position) => Ok(Sent { event_id, position: Some(position) }),
            Received::Rejected(Some(why)) | Received::SoftFailed(Some(why)) => {
                Err(HandshakeError::Forbidden(why))
            }
            Received::Rejected(None) | Received::SoftFailed(None) => {
                Err(invalid("the invite was refused before"))
            }
            Received::Missing { .. } | Received::Outlier | Received::NeedsPolicySignature(_) => {
                Err(HandshakeError::UnknownReferences)
            }
        }
    }

    /// Checks an invite to a user of ours and signs it. Nothing is kept.
    pub fn sign_invite(&self, invite: ReceivedInvite<'_>) -> Result<SignedInvite, InviteRefusal> {
        let ReceivedInvite { origin, room, event, rules, pdu, room_state, keys } = invite;
        let refuse = |why: &str| InviteRefusal::Invalid(why.to_owned());
        if *pdu.pdu().kind() != TimelineEventType::RoomMember
            || Membership::of(pdu.pdu()) != Some(Membership::Invite)
        {
            return Err(refuse("the event is not an invite"));
        }
        if pdu.pdu().sender().server_name() != origin {
            return Err(refuse("the event's sender is not a user of the asking server"));
        }
        let user = pdu.pdu().state_key().and_then(|user| UserId::parse(user).ok());
        let user = user.ok_or_else(|| refuse("the event's state key is not a user id"))?;
        let signer = self.servers().signer_for(user.server_name());
        let signer = signer.ok_or_else(|| InviteRefusal::NotOurUser(user.to_string()))?;
        if pdu.pdu().room_id() != room {
            return Err(refuse("the event belongs to another room"));
        }
        if pdu.pdu().event_id() != event {
            return Err(refuse("the event has another id than the request says"));
        }
        // An invite after a third-party one need not be signed by its sender; here it is the sender's server that asks.
        keys.verify_event(origin, rules, pdu.pdu()).map_err(|why| refuse(&why.to_string()))?;
        let verified = pdu.verify(rules, keys).map_err(|why| refuse(&why.to_string()))?;
        if verified.is_redacted() {
            return Err(refuse("the event's content hash does not hold"));
        }
        let stripped_state = check_room_state(room, rules, room_state, keys)?;
        let pdu = countersign(rules, verified.pdu(), signer);
        check_size(pdu.bytes().len()).map_err(|why| refuse(&why.to_string()))?;
        Ok(SignedInvite { user, pdu, stripped_state })
    }
}

/// The prepared event with one signature that the invited user's server put on its copy, and that holds. Whatever else
/// came with it stays out.
fn with_signature_of(
    prepared: &PreparedInvite,
    signed: &ReceivedPdu,
    keys: &ServerKeys,
) -> Result<Pdu, HandshakeError> {
    let (ours, theirs) = (prepared.pdu.to_object(), signed.pdu().to_object());
    let (mut expected, mut got) = (String::new(), String::new());
    ours.write_without(&["signatures", "unsigned"], &mut expected);
    theirs.write_without(&["signatures", "unsigned"], &mut got);
    if expected != got {
        return Err(invalid("the invite came back changed"));
    }
    let (server, rules) = (prepared.user.server_name(), prepared.room.rules);
    let of_server = theirs
        .get("signatures")
        .and_then(Canonical::as_object)
        .and_then(|all| all.get(server.as_str()))
        .and_then(Canonical::as_object);
    let of_server = of_server.ok_or_else(|| invalid("the invite came back without a signature"))?;
    let mut why = invalid("the invite came back without a signature by a key that is known");
    for (key_id, _) in keys.of(server) {
        let Some(signature) = of_server.get(key_id) else { continue };
        let pdu = with_signature(prepared, key_id, signature)?;
        match keys.verify_event(server, rules, &pdu) {
            Ok(()) => {
                check_size(pdu.bytes().len()).map_err(invalid_because)?;
                return Ok(pdu);
            }
            Err(rejection) => why = invalid_because(rejection),
        }
    }
    Err(why)
}

fn with_signature(
    prepared: &PreparedInvite,
    key_id: &str,
    signature: &Canonical<'_>,
) -> Result<Pdu, HandshakeError> {
    let mut event = prepared.pdu.to_object();
    if let Some(Canonical::Object(mut signatures)) = event.remove("signatures") {
        // It may have signed before, as the room's policy server.
        let mut of_server = match signatures.remove(prepared.user.server_name().as_str()) {
            Some(Canonical::Object(of_server)) => of_server,
            _ => Object::default(),
        };
        of_server.insert(key_id, signature.clone());
        signatures.insert(prepared.user.server_name().as_str(), Canonical::Object(of_server));
        event.insert("signatures", Canonical::Object(signatures));
    }
    let json = Bytes::from(event.to_canonical());
    Pdu::from_stored(prepared.room.rules, prepared.pdu.event_id().to_owned(), json)
        .map_err(|malformed| HandshakeError::Invalid(malformed.to_string()))
}

fn invalid_because(rejection: Rejection) -> HandshakeError {
    HandshakeError::Invalid(rejection.to_string())
}

/// The invite's room state in stripped form. Where the room's id is made from the create event, that has to be there,
/// and every event has to be whole, of this room, and signed; older versions' peers may send less, which is kept as
/// far as it can be read.
fn check_room_state(
    room: &RoomId,
    rules: &RoomRules,
    state: &[Box<RawValue>],
    keys: &ServerKeys,
) -> Result<Vec<String>, InviteRefusal> {
    let refuse = |why: String| InviteRefusal::Invalid(why);
    let mut stripped = Vec::new();
    let mut has_create = false;
    for event in state.iter().take(INVITE_STATE_MAX) {
        if rules.room_id_is_create_event {
            let checked = ReceivedPdu::parse(rules, event.get())
                .and_then(|pdu| pdu.in_room(room))
                .and_then(|pdu| pdu.verify(rules, keys))
                .map_err(|why| refuse(format!("an event of the invite's room state: {why}")))?;
            has_create |= *checked.pdu().kind() == TimelineEventType::RoomCreate;
        }
        stripped.extend(strip(event.get()));
    }
    if rules.room_id_is_create_event && !has_create {
        return Err(refuse("the invite's room state has no create event".to_owned()));
    }
    Ok(stripped)
}

/// What of a state event somebody outside of the room may see. None if it is no state event.
fn strip(event: &str) -> Option<String> {
    #[derive(Deserialize, Serialize)]
    struct Stripped<'a> {
        #[serde(borrow)]
        content: &'a RawValue,
        sender: OwnedUserId,
        state_key: String,
        #[serde(rename = "type")]
        kind: String,
    }
    let stripped: Stripped<'_> = serde_json::from_str(event).ok()?;
    stripped.content.get().starts_with('{').then(|| serde_json::to_string(&stripped).ok())?
}

/// Decides an invite as [`Invite`] does, and writes nothing.
struct Prepare<'a>(&'a Invite);

#[async_trait]
impl Act for Prepare<'_> {
    type Output = (Pdu, SnapshotId);
    type Error = MembershipError;

    async fn decide(&self, turn: &mut Turn) -> Result<(Pdu, SnapshotId), MembershipError> {
        let content = self.0.content(turn).await?;
        let content = to_raw_value(&content).map_err(|_| Rejection::MalformedMember)?;
        let pdu = turn.make_invite(&self.0.sender, &self.0.user, content).await?;
        Ok((pdu, turn.head.row.snapshot))
    }
}

impl Turn {
    /// An invite on the head, signed by the sender's server. Nothing is written.
    pub(super) async fn make_invite(
        &mut self,
        sender: &UserId,
        user: &UserId,
        content: Box<RawValue>,
    ) -> Result<Pdu, crate::WriteError> {
        let draft = Draft::member(sender, user, content);
        if let Some(signed) = self.signed_for(&draft).await? {
            return Ok(signed);
        }
        let pdu = self.make(&draft, None, sender.server_name()).await?.pdu;
        self.check_policy(&pdu).await?;
        Ok(pdu)
    }
}
