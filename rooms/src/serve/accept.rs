//! Member events that other servers submit through us: joins, leaves, knocks.
//! * What is submitted must be the event that the endpoint is for, of a user of the server that asks.
//! * It goes in like every received event; what is refused leaves no trace. What is accepted is ours to send on.
//! * The answer to a join is made from the state before it: a repeated request is answered the same.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use hearth_dag::{Pdu, ReceivedPdu, ServerKeys, VerifiedPdu};
use hearth_store::Commit;
use ruma::events::TimelineEventType;
use ruma::{EventId, OwnedUserId, RoomId, RoomVersionId, ServerName, UserId};
use serde::Deserialize;

use super::{HandshakeError, QueryError, RoomServers};
use crate::events::{RoomInfo, StoredEvent};
use crate::ids::{EventSn, SnapshotId};
use crate::lane::Act;
use crate::receive::Received;
use crate::rooms::Rooms;
use crate::tables::Membership;
use crate::turn::Turn;

/// A member event that a server submits, as the request names it.
#[derive(Clone, Debug)]
pub struct Submitted<'a> {
    pub origin: &'a ServerName,
    pub room: &'a RoomId,
    pub event: &'a EventId,
    pub pdu: ReceivedPdu,
    /// Those of the servers that must have signed; ours are not needed where we sign.
    pub keys: &'a ServerKeys,
}

/// A server is in the room: what it needs to go on.
#[derive(Clone, Debug)]
pub struct AcceptedJoin {
    pub room_version: RoomVersionId,
    /// The join as it is sent to others, with our signature if one of our users let the user in.
    pub event: Pdu,
    /// The room's state before the join.
    pub state: Vec<Pdu>,
    pub auth_chain: Vec<Pdu>,
    pub members_omitted: bool,
    /// Those of the room before the join.
    pub servers_in_room: RoomServers,
}

/// A user asks to be let in.
#[derive(Clone, Debug)]
pub struct AcceptedKnock {
    pub room_version: RoomVersionId,
    /// What tells the user which room it is.
    pub knock_room_state: Vec<Pdu>,
}

impl Rooms {
    /// `send_join`.
    pub async fn accept_join(
        &self,
        submitted: Submitted<'_>,
        omit_members: bool,
    ) -> Result<AcceptedJoin, HandshakeError> {
        let (room, join) = self.accept(submitted, Membership::Join).await?;
        let before = join.snapshot_before().unwrap_or(SnapshotId::EMPTY);
        let state = self.state_to_join(&room, before, omit_members.then_some(join.pdu.sender())).await?;
        let mut rests_on = state.clone();
        rests_on.push(join.sn);
        let mut chain = self.auth_chain(&room, &rests_on).await.map_err(too_large)?;
        if omit_members {
            let sent: BTreeSet<EventSn> = state.iter().copied().collect();
            chain.retain(|event| !sent.contains(event));
        }
        Ok(AcceptedJoin {
            room_version: room.version.clone(),
            event: join.pdu.clone(),
            state: self.pdus(&room, &state).await?,
            auth_chain: self.pdus(&room, &chain).await?,
            members_omitted: omit_members,
            servers_in_room: self.servers_of(&room, before).await?,
        })
    }

    /// `send_leave`.
    pub async fn accept_leave(&self, submitted: Submitted<'_>) -> Result<(), HandshakeError> {
        self.accept(submitted, Membership::Leave).await.map(drop)
    }

    /// `send_knock`.
    pub async fn accept_knock(&self, submitted: Submitted<'_>) -> Result<AcceptedKnock, HandshakeError> {
        let (room, knock) = self.accept(submitted, Membership::Knock).await?;
        let before = knock.snapshot_before().unwrap_or(SnapshotId::EMPTY);
        let knock_room_state = self.describing_state(&room, before, None).await?;
        Ok(AcceptedKnock { room_version: room.version.clone(), knock_room_state })
    }

    async fn accept(
        &self,
        submitted: Submitted<'_>,
        membership: Membership,
    ) -> Result<(Arc<RoomInfo>, Arc<StoredEvent>), HandshakeError> {
        let room = self.resident_room(submitted.room).await?.ok_or(HandshakeError::UnknownRoom)?;
        check_submitted(&submitted, membership)?;
        let Submitted { pdu, keys, event, .. } = submitted;
        let authoriser = match membership {
            Membership::Join => self.check_authoriser(&room, pdu.pdu()).await?,
            _ => None,
        };
        let signer = authoriser.and_then(|user| self.servers().signer_for(user.server_name()));
        let verified = match signer {
            Some(signer) => pdu.verify_and_countersign(room.rules, keys, signer),
            None => pdu.verify(room.rules, keys),
        };
        let verified = verified.map_err(|rejection| HandshakeError::Invalid(rejection.to_string()))?;
        self.take_submitted(&verified).await?;
        let stored = self.events().by_id(&room, event).await?;
        Ok((room, stored.ok_or(HandshakeError::UnknownReferences)?))
    }

    /// The user of ours who lets a user in, if the join names one and they may.
    async fn check_authoriser(
        &self,
        room: &Arc<RoomInfo>,
        join: &Pdu,
    ) -> Result<Option<OwnedUserId>, HandshakeError> {
        #[derive(Deserialize)]
        struct Content {
            join_authorised_via_users_server: OwnedUserId,
        }
        if !room.rules.restricted_join_rule {
            return Ok(None);
        }
        let named = join.content_as::<Content>().ok().map(|content| content.join_authorised_via_users_server);
        let Some(named) = named.filter(|named| self.is_local(named)) else { return Ok(None) };
        self.decide(room, &LetIn { user: join.sender().to_owned() }, &Commit::new()).await?;
        Ok(Some(named))
    }

    pub(super) async fn take_submitted(&self, verified: &VerifiedPdu) -> Result<(), HandshakeError> {
        if verified.is_redacted() {
            return Err(invalid("the event's content hash does not hold"));
        }
        match self.receive_to_send(verified, &Commit::new()).await? {
            Received::Accepted(_) => Ok(()),
            Received::Rejected(Some(why)) | Received::SoftFailed(Some(why)) => {
                Err(HandshakeError::Forbidden(why))
            }
            Received::Rejected(None) | Received::SoftFailed(None) => {
                Err(invalid("the event was refused before"))
            }
            Received::Missing { .. } | Received::Outlier | Received::NeedsPolicySignature(_) => {
                Err(HandshakeError::UnknownReferences)
            }
        }
    }

    /// The state that a joining server gets: all of it, or what is no membership and the members that the room is
    /// called after.
    async fn state_to_join(
        &self,
        room: &RoomInfo,
        before: SnapshotId,
        omit_for: Option<&UserId>,
    ) -> Result<Vec<EventSn>, HandshakeError> {
        let Some(user) = omit_for else {
            let all = self.snapshots().all(room.sn, before).await?;
            return Ok(all.into_iter().map(|(_, event)| event).collect());
        };
        let rest = self.snapshots().rest(room.sn, before).await?;
        let mut state: Vec<EventSn> = rest.into_iter().map(|(_, event)| event).collect();
        let heroes = self.reader().heroes(room.sn, before, user).await?;
        let heroes = heroes.iter().map(String::as_str);
        state.extend(self.reader().members_named(room.sn, before, heroes).await?.into_values());
        Ok(state)
    }
}

struct LetIn {
    user: OwnedUserId,
}

#[async_trait]
impl Act for LetIn {
    type Output = ();
    type Error = HandshakeError;

    async fn decide(&self, turn: &mut Turn) -> Result<(), HandshakeError> {
        turn.let_in(&self.user).await.map(drop)
    }
}

/// Whether the event is what the endpoint is for.
fn check_submitted(submitted: &Submitted<'_>, membership: Membership) -> Result<(), HandshakeError> {
    let pdu = submitted.pdu.pdu();
    if *pdu.kind() != TimelineEventType::RoomMember || Membership::of(pdu) != Some(membership) {
        return Err(HandshakeError::Invalid(format!(
            "the event's membership is not {}",
            membership.as_str()
        )));
    }
    if pdu.room_id() != submitted.room {
        return Err(invalid("the event belongs to another room"));
    }
    if pdu.state_key() != Some(pdu.sender().as_str()) {
        return Err(invalid("the event's state key is not its sender"));
    }
    if pdu.sender().server_name() != submitted.origin {
        return Err(invalid("the event's sender is not a user of the asking server"));
    }
    if pdu.event_id() != submitted.event {
        return Err(invalid("the event has another id than the request says"));
    }
    Ok(())
}

pub(super) fn invalid(why: &str) -> HandshakeError {
    HandshakeError::Invalid(why.to_owned())
}

fn too_large(error: QueryError) -> HandshakeError {
    match error {
        QueryError::Store(error) => error.into(),
        other => HandshakeError::Invalid(other.to_string()),
    }
}
