//! The data model of rooms on one page: every table, its key, its row.
//! * What belongs to one room is keyed under its number, so that purging a room is a list of ranges.
//! * An event, its place, its index rows and the room's head are written in one commit.
//! * `Table::mutable` marks what caches may hold only until a commit names the key; all else is written once, but for
//!   the body of an event, whose [`EventStatusRow`] says which form is in force.
//! * Values are compact (postcard: small numbers take one byte), as a message is about eight rows.

use hearth_store::{Blob, Positioned, Record, Space, StreamPosition, Table};
use ruma::{OwnedEventId, OwnedRoomId, OwnedServerName, OwnedUserId, RoomVersionId};
use serde::{Deserialize, Serialize};

use crate::event_row::EventRow;
use crate::ids::{EventKey, EventSn, RecordSn, RoomSn, SnapshotId, StateKeySn, TimelineOrder};
use crate::kind::Kind;

// Global

/// The number of a room.
pub const ROOM_NUMBERS: Table<String, RoomSn> = Table::new("room_numbers", Space(0x10));
/// The least number that no room has taken. One row.
pub const NEXT_ROOM: Table<(), u32> = Table::mutable("next_room", Space(0x11));
/// Where an event is stored. In versions 1 and 2 servers choose ids, so that two rooms may hold events of one id.
pub const EVENT_NUMBERS: Table<(EventKey, RoomSn), EventSn> = Table::new("event_numbers", Space(0x12));
/// What happened in rooms, in the order of positions: what followers read (senders to peers, pushes, search…).
pub const STREAM: Table<StreamPosition, StreamRow> = Table::new("room_stream", Space(0x13));
/// The membership of a user in a room, as sync shows it.
pub const MEMBERSHIPS: Table<(OwnedUserIdKey, RoomSn), Positioned<MembershipRow>> =
    Table::mutable("memberships", Space(0x14));
/// The changes of a user's memberships, forgetting included, in order.
pub const MEMBERSHIP_CHANGES: Table<(OwnedUserIdKey, StreamPosition), MembershipChange> =
    Table::new("membership_changes", Space(0x15));
/// What is known of a room through an invite, knock or rejection that came from outside of it.
pub const OUT_OF_BAND: Table<(OwnedUserIdKey, RoomSn), OutOfBandRow> =
    Table::chunked("out_of_band", Space(0x16));
/// Room aliases of our servers.
pub const ALIASES: Table<String, AliasRow> = Table::mutable("aliases", Space(0x17));
/// Rooms that are listed in the public directory.
pub const PUBLIC_ROOMS: Table<RoomSn, PublicRoomRow> = Table::mutable("public_rooms", Space(0x18));
/// Which event a request made, under [`TxnKey`]: repeats find it here.
pub const TRANSACTIONS: Table<TxnKey, TxnRow> = Table::new("room_transactions", Space(0x19));

// Per room

/// What never changes of a room.
pub const ROOMS: Table<RoomSn, RoomRow> = Table::new("rooms", Space(0x20));
/// Grows with every change of [`HEADS`]: the precondition of each of a room's commits.
pub const HEAD_VERSIONS: Table<RoomSn, u64> = Table::mutable("head_versions", Space(0x21));
/// The forward end of a room, and its counters. [`HEAD_VERSIONS`] tells when it changed.
pub const HEADS: Table<RoomSn, Positioned<HeadRow>> = Table::new("heads", Space(0x22));
/// The room's current state from a position on; a row only where it changed.
pub const HEAD_SNAPSHOTS: Table<(RoomSn, StreamPosition), SnapshotRow> =
    Table::new("head_snapshots", Space(0x23));
/// Each event once: what does not change of it, and its body.
pub const EVENTS: Table<(RoomSn, EventSn), EventRow> = Table::new("events", Space(0x24));
/// The bodies that are too large for their row in [`EVENTS`].
pub const LARGE_BODIES: Table<(RoomSn, EventSn), Blob> = Table::chunked("large_bodies", Space(0x25));
/// What changed of an event after it was stored. No row: nothing did.
pub const EVENT_STATUS: Table<(RoomSn, EventSn), EventStatusRow> =
    Table::mutable("event_status", Space(0x26));
/// The room's timeline in this server's order; late history is filled in before its anchor.
pub const TIMELINE: Table<(RoomSn, TimelineOrder), TimelineRow> = Table::new("timeline", Space(0x27));
/// Right before this place of the timeline, events are missing.
pub const GAPS: Table<(RoomSn, TimelineOrder), GapRow> = Table::mutable("gaps", Space(0x28));
/// References of stored events to such as we do not hold: (missing, who refers).
pub const MISSING: Table<(RoomSn, EventKey, EventSn), MissingRow> =
    Table::mutable("missing_events", Space(0x29));
/// Events that wait for others, or for their turn.
pub const QUEUE: Table<(RoomSn, u64), QueuedRow> = Table::chunked("receive_queue", Space(0x2a));

/// The number of a state key.
pub const STATE_KEYS: Table<(RoomSn, Kind, String), StateKeySn> = Table::new("state_keys", Space(0x2b));
/// The state key of a number.
pub const STATE_KEY_NAMES: Table<(RoomSn, StateKeySn), StateKeyRow> =
    Table::new("state_key_names", Space(0x2c));
/// Nodes of state trees, several to a record.
pub const STATE_NODES: Table<(RoomSn, RecordSn), Blob> = Table::new("state_nodes", Space(0x2d));

/// The current members of a room, all memberships.
pub const MEMBERS: Table<(RoomSn, OwnedUserIdKey), Positioned<MemberRow>> =
    Table::mutable("members", Space(0x30));
/// Aliases of our servers that lead to a room.
pub const ROOM_ALIASES: Table<(RoomSn, String), ()> = Table::mutable("room_aliases", Space(0x31));

/// Redactions whose target is not here, by its id and by what they may redact: everything, or what is of the named server.
pub const REDACTIONS_WAITING: Table<(RoomSn, EventKey, String, EventSn), ()> =
    Table::mutable("redactions_waiting", Space(0x48));
/// Redactions by the id of their target, once both are here.
pub const REDACTIONS: Table<(RoomSn, EventKey, EventSn), RedactionRow> =
    Table::mutable("redactions", Space(0x38));
/// Events that relate to an event, in the order of the timeline.
pub const RELATIONS: Table<(RoomSn, EventSn, TimelineOrder), RelationRow> =
    Table::new("relations", Space(0x39));
/// Events that relate to one we do not hold; moved to [`RELATIONS`] when it comes.
pub const RELATIONS_WAITING: Table<(RoomSn, EventKey, EventSn), ()> =
    Table::mutable("relations_waiting", Space(0x3a));
/// Annotations in force, by (target, [`annotation_key`](crate::relations::annotation_key)).
pub const ANNOTATIONS: Table<(RoomSn, EventSn, u64, u64), EventSn> =
    Table::mutable("annotations", Space(0x3b));
/// A thread's root and what its summary needs.
pub const THREADS: Table<(RoomSn, EventSn), Positioned<ThreadRow>> = Table::mutable("threads", Space(0x3c));
/// Threads by their replies, in timeline order. A row that is not of the thread's last reply is passed over
/// (some are removed when a newer reply comes, not all).
pub const THREAD_ORDER: Table<(RoomSn, TimelineOrder), EventSn> = Table::new("thread_order", Space(0x3d));
/// Who took part in a thread: (root, user).
pub const THREAD_PARTICIPANTS: Table<(RoomSn, EventSn, OwnedUserIdKey), ()> =
    Table::new("thread_participants", Space(0x3e));
/// Redactions in force whose target's body is still to be replaced by its redacted form.
pub const TO_REDACT: Table<(RoomSn, EventSn), ()> = Table::new("bodies_to_redact", Space(0x43));
/// Rooms whose members we were not told when we joined: what is needed until we are.
pub const PARTIAL_ROOMS: Table<RoomSn, PartialRoomRow> = Table::chunked("partial_rooms", Space(0x44));
/// Events that were decided on a partial state, in the order of deciding.
pub const PARTIAL_EVENTS: Table<(RoomSn, u64), EventSn> = Table::new("partial_events", Space(0x45));
/// The state after extremities that were too many for the head: it counts until they are all followed.
pub const MERGED_FORKS: Table<RoomSn, MergedRow> = Table::mutable("merged_forks", Space(0x46));
/// Members of ours whose rows do not yet say what the room's state says: too many changed at once. Those whose keys are
/// near each other share a row.
pub const LATE_MEMBERS: Table<(RoomSn, u32), LateMembersRow> = Table::chunked("late_members", Space(0x47));
/// Runs of events of one minute: (minutes since 1970, the first event of the run). A run goes on to the first event
/// of another minute.
pub const MINUTES: Table<(RoomSn, u32, EventSn), ()> = Table::new("minutes", Space(0x3f));

/// Auth index: where a state event stands in the chain cover of the auth graph.
pub const AUTH_CHAINS: Table<(RoomSn, EventSn), ChainPlace> = Table::new("auth_chains", Space(0x40));
/// Auth index: the event at a place of a chain.
pub const AUTH_CHAIN_EVENTS: Table<(RoomSn, u32, u32), EventSn> =
    Table::new("auth_chain_events", Space(0x41));
/// Auth index: from a place (chain, sequence), what can be reached in other chains.
pub const AUTH_CHAIN_LINKS: Table<(RoomSn, u32, u32), ChainLinks> =
    Table::new("auth_chain_links", Space(0x42));

/// User ids as keys are their text.
pub type OwnedUserIdKey = String;

/// What happened at a stream position.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamRow {
    pub room: RoomSn,
    pub event: EventSn,
    pub what: StreamWhat,
    /// Servers to send to beside those of the room, such as that of a user who was kicked.
    pub also_to: Vec<OwnedServerName>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StreamWhat {
    /// An event that is ours to send to the room's other servers, now in the timeline: one of our users', or one that
    /// a peer submitted through us.
    Local,
    /// Any other event of a peer, now in the timeline.
    Remote,
    /// The room's state changed without an event of the timeline: after a resolution, or when a partial state was
    /// completed. `event` is what caused it.
    State,
    /// A redaction came into force later than it was stored. `event` is the target.
    Redacted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Membership {
    Join,
    Invite,
    Knock,
    Leave,
    Ban,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MembershipRow {
    pub membership: Membership,
    /// The member event in this room; none for one that came out of band ([`OUT_OF_BAND`] holds it).
    pub event: Option<EventSn>,
    /// Who made it so: the inviter, the one who kicked, the user.
    pub sender: OwnedUserId,
    /// What it was before: a leave after a join shows the room's timeline, a rejected invite does not.
    pub before: Option<Membership>,
    pub forgotten: bool,
    /// The invite says so.
    pub is_direct: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MembershipChange {
    pub room: RoomSn,
    pub membership: Membership,
    pub before: Option<Membership>,
    pub forgotten: bool,
}

/// A membership event that is not in the room as we hold it, and what came with it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OutOfBandRow {
    pub event_id: OwnedEventId,
    pub pdu: String,
    /// Stripped state events, JSON each.
    pub stripped_state: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AliasRow {
    pub room: RoomSn,
    pub creator: OwnedUserId,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicRoomRow {
    pub published_by: Option<OwnedUserId>,
}

/// Hash of user, device, path and transaction id.
pub type TxnKey = [u8; 16];

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TxnRow {
    pub room: RoomSn,
    pub event: EventSn,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoomRow {
    pub room_id: OwnedRoomId,
    pub version: RoomVersionId,
}

/// Whether we take part in a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Residency {
    /// We hold its state and decide.
    Resident,
    /// We joined, and do not hold all of its state yet.
    Partial,
    /// None of our users is in it any more; what is held ends here.
    Left,
    /// Known only by invites, knocks or single events.
    Outside,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadRow {
    pub residency: Residency,
    /// The room's current state.
    pub snapshot: SnapshotId,
    pub partial_state: bool,
    /// Forward extremities.
    pub extremities: Vec<EventSn>,
    /// The largest depth of an extremity.
    pub depth: u64,
    pub joined: u32,
    pub invited: u32,
    /// Minute of the last stored event's timestamp, as in [`MINUTES`].
    pub minute: u32,
    pub next_event: u32,
    pub next_member_key: u32,
    pub next_other_key: u32,
    pub next_record: u32,
    pub next_chain: u32,
    pub next_queued: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRow {
    pub snapshot: SnapshotId,
    pub partial: bool,
}

/// Extremities that the head does not keep.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MergedRow {
    /// The state after them together.
    pub snapshot: SnapshotId,
    /// Those that nothing follows yet.
    pub events: Vec<EventSn>,
    /// There are more than these.
    pub has_more: bool,
}

/// What the server thinks of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Status {
    /// In the room.
    Accepted,
    /// Held because others refer to it; it was never checked against the state before it.
    Outlier,
    /// Refused by the rules; kept to be known again.
    Rejected,
    /// Allowed where it was made, not in the room as it is now.
    SoftFailed,
}

/// The changes of an event since it was stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventStatusRow {
    pub status: Option<Status>,
    /// The redaction in force.
    pub redacted_by: Option<EventSn>,
    /// The body in [`EVENTS`] is the redacted form.
    pub body_redacted: bool,
    /// It became part of the timeline later than it was stored.
    pub order: Option<TimelineOrder>,
    /// The state before it became known, or other, later.
    pub snapshot_before: Option<SnapshotId>,
    /// That state was partial and is complete now.
    pub completed: bool,
}

/// One event of a timeline: all that counting and lazy members need, without the event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineRow {
    pub event: EventSn,
    /// The membership key of the sender.
    pub sender: StateKeySn,
    pub note: Note,
    /// The thread it is in.
    pub thread: Option<EventSn>,
}

/// What the predefined push rules ask of an event.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    pub kind: NoteKind,
    /// It mentions the whole room and its sender may.
    pub mentions_room: bool,
    /// The membership keys of users whom it mentions.
    pub mentions: Vec<StateKeySn>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum NoteKind {
    /// Nothing that a predefined rule notifies of.
    #[default]
    Quiet,
    /// `m.room.message` other than a notice.
    Message,
    /// `m.room.message` of type `m.notice`.
    Notice,
    Encrypted,
    /// `m.room.member`.
    Member,
    Tombstone,
    Reaction,
    ServerAcl,
    /// A replacement of another event (`m.replace`).
    Edit,
    Call,
    /// An event that is judged only by looking at it (polls and what clients add).
    Other,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GapRow {
    pub missing: Vec<OwnedEventId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingRow {
    pub as_prev: bool,
    pub as_auth: bool,
}

/// An event on its way into the room.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct QueuedRow {
    pub event_id: OwnedEventId,
    pub origin: OwnedServerName,
    pub pdu: String,
}

/// A room whose state is not fully known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartialRoomRow {
    /// Our join: the state before it is to be asked for.
    pub join: EventSn,
    /// The server that let us in.
    pub origin: OwnedServerName,
    /// The servers in the room, as that one told.
    pub servers: Vec<OwnedServerName>,
}

/// Membership keys whose rows are to be brought to the room's state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LateMembersRow {
    pub keys: Vec<StateKeySn>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateKeyRow {
    pub kind: Kind,
    pub state_key: String,
}

/// A user's current membership in a room.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberRow {
    pub membership: Membership,
    pub event: EventSn,
    pub key: StateKeySn,
    pub display_name: Option<String>,
    pub avatar_url: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RedactionRow {
    InForce,
    /// Its sender had no right to it.
    Refused,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelationRow {
    pub event: EventSn,
    pub rel_type: RelType,
    pub kind: Kind,
    pub sender: OwnedUserId,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RelType {
    Annotation,
    Replace,
    Thread,
    Reference,
    Other(String),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadRow {
    /// The last reply that is not redacted.
    pub latest: EventSn,
    /// Replies.
    pub count: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ChainPlace {
    pub chain: u32,
    pub sequence: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainLinks {
    pub to: Vec<ChainPlace>,
}

impl Record for StreamRow {}
impl Record for MembershipRow {}
impl Record for MembershipChange {}
impl Record for OutOfBandRow {}
impl Record for AliasRow {}
impl Record for PublicRoomRow {}
impl Record for TxnRow {}
impl Record for RoomRow {}
impl Record for HeadRow {}
impl Record for SnapshotRow {}
impl Record for MergedRow {}
impl Record for EventStatusRow {}
impl Record for TimelineRow {}
impl Record for GapRow {}
impl Record for MissingRow {}
impl Record for QueuedRow {}
impl Record for PartialRoomRow {}
impl Record for LateMembersRow {}
impl Record for StateKeyRow {}
impl Record for MemberRow {}
impl Record for RedactionRow {}
impl Record for RelationRow {}
impl Record for ThreadRow {}
impl Record for ChainPlace {}
impl Record for ChainLinks {}
impl Record for EventSn {}
impl Record for RoomSn {}
impl Record for StateKeySn {}
