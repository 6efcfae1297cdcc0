//! What a room's other servers ask of us: to come in, to leave, to be invited, and to be told what they missed.
//! * Only rooms that we are in are answered for. Who asks is authenticated by the caller, who also asks the room's
//!   [`Acl`] first.
//! * What a server may not see of a room's history leaves this module in its redacted form only.
//! * Whatever a request names (events, users, limits) is foreign: an event counts only in the room it is asked for in,
//!   and every walk has a bound.

mod accept;
mod acl;
mod auth_chain;
mod history;
mod invite;
mod listing;
mod peer;
mod servers;
mod state;
mod stream;
mod templates;
mod third_party;
mod time;

use std::sync::Arc;

use hearth_dag::Rejection;
use hearth_store::StoreError;
use ruma::{EventId, RoomId, RoomVersionId, ServerName};

use crate::errors::WriteError;
use crate::events::RoomInfo;
use crate::rooms::Rooms;
use crate::tables::Residency;

pub use accept::{AcceptedJoin, AcceptedKnock, Submitted};
pub use acl::Acl;
pub use history::MissingEvents;
pub use invite::{InviteRefusal, PreparedInvite, ReceivedInvite, SignedInvite};
pub use listing::SpaceChildren;
pub use servers::RoomServers;
pub use state::{PeerState, PeerStateIds};
pub use stream::{Outgoing, OutgoingPage};
pub use templates::Template;
pub use third_party::ThirdPartyInvite;

/// What serving remembers.
pub(crate) struct Serving {
    servers: servers::ServersCache,
    acls: acl::AclCache,
    members: peer::MembersCache,
}

impl Serving {
    pub(crate) fn new() -> Self {
        Serving { servers: servers::new_cache(), acls: acl::new_cache(), members: peer::new_cache() }
    }
}

/// Why a server does not get in, out, or a template for it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum HandshakeError {
    /// We do not know the room, or are not in it.
    #[error("this server is not in that room")]
    UnknownRoom,
    #[error("the room has version {room_version}, which the asking server does not know")]
    IncompatibleVersion { room_version: RoomVersionId },
    #[error("whether the user is in a room that lets them in is for another server to tell")]
    UnableToAuthorise,
    #[error("no user of this server may let others into the room")]
    UnableToGrant,
    /// The room's rules.
    #[error("{0}")]
    Forbidden(Rejection),
    /// The user is not one of the asking server's.
    #[error("the user is not one of the asking server")]
    UserOfOtherServer,
    /// What was submitted is not what the endpoint is for, or is not signed as it must be.
    #[error("{0}")]
    Invalid(String),
    /// What was submitted rests on events that we do not hold.
    #[error("the event refers to events that are not known here")]
    UnknownReferences,
    #[error(transparent)]
    Write(WriteError),
}

impl From<WriteError> for HandshakeError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::UnknownRoom | WriteError::NotResident => HandshakeError::UnknownRoom,
            WriteError::Forbidden(rejection) => HandshakeError::Forbidden(rejection),
            other => HandshakeError::Write(other),
        }
    }
}

impl From<StoreError> for HandshakeError {
    fn from(error: StoreError) -> Self {
        HandshakeError::Write(error.into())
    }
}

/// Why a server is not told what it asks.
#[derive(Debug, Clone, thiserror::Error)]
pub enum QueryError {
    /// We do not know the room, or are not in it.
    #[error("this server is not in that room")]
    UnknownRoom,
    /// The asking server never was in the room.
    #[error("the asking server is not in the room")]
    NotInRoom,
    #[error("there is no such event in the room")]
    UnknownEvent,
    /// The event is held, but was refused or never had a place in the room: nothing rests on it here.
    #[error("the event has no place in the room")]
    NoPlace,
    /// There is more than one answer can hold.
    #[error("the answer would be too large")]
    TooLarge,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Rooms {
    /// A room that we are in.
    pub(crate) async fn resident_room(&self, room: &RoomId) -> Result<Option<Arc<RoomInfo>>, StoreError> {
        let Some(room) = self.room(room).await? else { return Ok(None) };
        let head = self.head(room.sn).await?;
        Ok(head.is_some_and(|head| head.value.residency == Residency::Resident).then_some(room))
    }
}

/// Which event of which room a server asks about.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    pub origin: &'a ServerName,
    pub room: &'a RoomId,
    pub event: &'a EventId,
}
