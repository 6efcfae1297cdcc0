//! What a peer or a user can do wrong, each with a name and a sentence.

use ruma::{OwnedEventId, OwnedServerName, OwnedUserId};

use crate::{canonical::NotCanonical, limits};

/// Why an event is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Rejection {
    // Format: such an event is dropped, it is not even an event.
    /// Not JSON, or not canonical where the room version wants that.
    #[error("the event is not valid JSON for this room version: {0}")]
    NotCanonical(#[from] NotCanonical),
    /// A field is missing, or is not what it must be.
    #[error("the event's {field} is missing or malformed")]
    MalformedField {
        /// Which one.
        field: &'static str,
    },
    /// Past [`limits::MAX_EVENT_BYTES`].
    #[error("the event has {bytes} bytes, more than {}", limits::MAX_EVENT_BYTES)]
    EventTooLarge {
        /// How large it is.
        bytes: usize,
    },
    /// Past [`limits::MAX_KEY_BYTES`].
    #[error("the event's {field} is longer than {} bytes", limits::MAX_KEY_BYTES)]
    FieldTooLong {
        /// Which one.
        field: &'static str,
    },
    /// Past [`limits::MAX_PREV_EVENTS`].
    #[error("the event has more than {} prev events", limits::MAX_PREV_EVENTS)]
    TooManyPrevEvents,
    /// Past [`limits::MAX_AUTH_EVENTS`].
    #[error("the event has more than {} auth events", limits::MAX_AUTH_EVENTS)]
    TooManyAuthEvents,
    /// Another room than the one it was handed over for.
    #[error("the event belongs to another room")]
    WrongRoom,

    // Signatures and hashes.
    /// A server that had to sign has not.
    #[error("the event has no signature of {server} by a key that is known and valid")]
    MissingSignature {
        /// Which one.
        server: OwnedServerName,
    },
    /// A signature is wrong.
    #[error("the event's signature of {server} does not verify")]
    BadSignature {
        /// Whose.
        server: OwnedServerName,
    },

    /// The room has a policy server, and it does not recommend the event.
    #[error("the room's policy server does not recommend the event")]
    NotRecommended,

    // Authorization by the event's own auth events.
    /// An auth event is not at hand.
    #[error("the auth event {0} is not known")]
    UnknownAuthEvent(OwnedEventId),
    /// An auth event belongs elsewhere.
    #[error("the auth event {0} belongs to another room")]
    AuthEventOfOtherRoom(OwnedEventId),
    /// Two auth events for one key.
    #[error("the auth event {0} is the second one for its type and state key")]
    DuplicateAuthEvent(OwnedEventId),
    /// An auth event that the selection algorithm does not name.
    #[error("the auth event {0} does not belong among this event's auth events")]
    UnexpectedAuthEvent(OwnedEventId),
    /// An auth event that was itself rejected.
    #[error("the auth event {0} was itself rejected")]
    RejectedAuthEvent(OwnedEventId),
    /// No create event in the auth events or in the state.
    #[error("there is no create event")]
    NoCreateEvent,
    /// The create event that the room ID names was rejected.
    #[error("the room's create event was rejected")]
    RejectedCreateEvent,

    // The create event.
    /// It must be the first event.
    #[error("a create event cannot have prev events")]
    CreateWithPrevEvents,
    /// Its room ID is its own hash.
    #[error("a create event of this room version cannot have a room ID")]
    CreateWithRoomId,
    /// The room ID's server is not the sender's.
    #[error("the room ID's server is not the sender's server")]
    CreateForOtherServer,
    /// `content.creator` is missing.
    #[error("the create event names no creator")]
    NoCreator,
    /// `content.additional_creators` is not a list of user IDs.
    #[error("the additional creators are not a list of user IDs")]
    BadAdditionalCreators,
    /// `content.room_version` names another version.
    #[error("the create event names another or an unknown room version")]
    WrongRoomVersion,
    /// The create event in the state cannot be understood.
    #[error("the create event's content is malformed")]
    MalformedCreate,

    // Rules for all events.
    /// `m.federate` is false.
    #[error("the room is closed to servers other than its creator's")]
    NotFederated,
    /// Aliases of another server.
    #[error("the aliases event is for another server than the sender's")]
    AliasesOfOtherServer,
    /// The sender is not in the room.
    #[error("{0} is not joined to the room")]
    SenderNotJoined(OwnedUserId),
    /// The sender's power level does not suffice.
    #[error("{action} needs a power level of {needed}, the sender has {actual}")]
    NotEnoughPower {
        /// What was tried.
        action: PowerAction,
        /// The level that it needs.
        needed: i64,
        /// The level that the sender has.
        actual: i64,
    },
    /// A state key that is another user's ID.
    #[error("the state key is the ID of another user")]
    StateKeyOfOtherUser,

    // Membership.
    /// `content.membership` is missing or unknown, or the state key is no user ID.
    #[error("the member event's membership or state key is missing or malformed")]
    MalformedMember,
    /// Joining or knocking for someone else.
    #[error("only {0} can do that")]
    NotTheSameUser(OwnedUserId),
    /// The user is banned.
    #[error("{0} is banned from the room")]
    Banned(OwnedUserId),
    /// The join rule does not let the user in.
    #[error("the join rule {join_rule:?} does not let this user in")]
    JoinRuleForbids {
        /// Which one.
        join_rule: String,
    },
    /// Restricted join without an authorising user.
    #[error("joining a restricted room needs an invite or a user who authorises it")]
    NoAuthorisingUser,
    /// The authorising user is not in the room.
    #[error("the authorising user is not joined to the room")]
    AuthorisingUserNotJoined,
    /// Inviting someone who is in the room.
    #[error("{0} is in the room already")]
    AlreadyJoined(OwnedUserId),
    /// Leaving without being there.
    #[error("{0} is not in the room, nor invited, nor knocking")]
    NothingToLeave(OwnedUserId),
    /// The target's power level is not below the sender's.
    #[error("the target's power level is not below the sender's")]
    TargetNotBelowSender,
    /// Knocking is not allowed.
    #[error("the join rule {join_rule:?} does not let anyone knock")]
    CannotKnock {
        /// Which one.
        join_rule: String,
    },
    /// Knocking while invited or joined.
    #[error("{0} is invited or joined and cannot knock")]
    NoNeedToKnock(OwnedUserId),
    /// The join rules event in the state cannot be understood, or there is none.
    #[error("the room has no understandable join rule")]
    NoJoinRule,

    // Third-party invites.
    /// `signed`, its `mxid` or its `token` is missing.
    #[error("the third-party invite is malformed")]
    MalformedThirdPartyInvite,
    /// `mxid` is not the invited user.
    #[error("the third-party invite is for another user")]
    ThirdPartyInviteOfOtherUser,
    /// The state has no event for the token.
    #[error("there is no third-party invite with this token")]
    UnknownThirdPartyInvite,
    /// Someone else made the third-party invite.
    #[error("the third-party invite was made by another user")]
    ThirdPartyInviteOfOtherSender,
    /// No signature matches a key.
    #[error("the third-party invite is not signed by a key that it names")]
    UnsignedThirdPartyInvite,

    // Power levels.
    /// A power level is not a number, or `users` has a key that is no user ID.
    #[error("the power levels' {field} is malformed")]
    MalformedPowerLevels {
        /// Which field.
        field: &'static str,
    },
    /// Creators have unlimited power, a level for them is an error.
    #[error("the power levels name a creator of the room")]
    PowerLevelForCreator,
    /// A change that reaches above the sender's level.
    #[error("the change of {what} reaches above the sender's own power level")]
    PowerLevelAboveSender {
        /// Which entry.
        what: String,
    },

    // Redactions.
    /// Neither power nor the same server.
    #[error("the sender may not redact events of other servers")]
    CannotRedact,
}

/// What someone had not enough power for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PowerAction {
    /// Sending an event of this type.
    Send(String),
    /// Inviting.
    Invite,
    /// Removing someone from the room.
    Kick,
    /// Banning.
    Ban,
    /// Lifting a ban.
    Unban,
    /// Vouching for a restricted join.
    AuthoriseJoin,
}

impl std::fmt::Display for PowerAction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Send(kind) => write!(f, "sending {kind}"),
            Self::Invite => f.write_str("inviting"),
            Self::Kick => f.write_str("removing someone"),
            Self::Ban => f.write_str("banning"),
            Self::Unban => f.write_str("lifting a ban"),
            Self::AuthoriseJoin => f.write_str("authorising a join"),
        }
    }
}

impl Rejection {
    /// Whether this is no event at all, so that it is dropped instead of kept as rejected.
    pub fn is_drop(&self) -> bool {
        matches!(
            self,
            Self::NotCanonical(_)
                | Self::MalformedField { .. }
                | Self::EventTooLarge { .. }
                | Self::FieldTooLong { .. }
                | Self::TooManyPrevEvents
                | Self::TooManyAuthEvents
                | Self::WrongRoom
                | Self::MissingSignature { .. }
                | Self::BadSignature { .. }
        )
    }
}
