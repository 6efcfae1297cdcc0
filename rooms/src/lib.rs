//! What happens in rooms: events, state, timelines, membership.
//! * Writing decides in a lane per room (`lane.rs`) and is answered when durable; the data model is `tables.rs`.
//! * Reading (`read`) goes by positions and snapshots, and never waits for a lane.
//! * Serving (`serve`) is what other servers ask of us: each gets what it may see, and in only by the rules.
//! * Rooms do not fetch and do not send: `receive` says what is missing, followers read what a commit left.
//! * Facts of users (profiles, who ignores whom) come in as values.

mod append;
mod auth_index;
mod backfill;
mod content;
mod create;
mod current_state;
mod directory;
mod enter;
mod errors;
mod event_row;
mod events;
mod forks;
mod head;
mod ids;
mod import;
mod judge;
mod kind;
mod lane;
mod late_members;
mod members;
mod membership;
mod missing;
mod out_of_band;
mod partial;
mod policy;
mod queue;
pub mod read;
mod receive;
mod redaction;
mod relations;
mod residency;
mod resolve;
mod restricted;
mod rooms;
mod seams;
mod send;
pub mod serve;
mod snapshot;
pub mod tables;
mod transactions;
mod turn;
mod view;

pub use backfill::{BACKFILL_MAX, Filled, Filling};
pub use content::MemberContent;
pub use create::{CreateError, CreateRoom, CreatedRoom, InitialState, Preset};
pub use directory::{ALIASES_MAX, AliasError};
pub use enter::{EnterError, EnterRoom, Entered};
pub use errors::WriteError;
pub use event_row::{EventHeader, EventRow, Relation, SentBy};
pub use events::{Events, RoomInfo, StoredEvent};
pub use forks::{DUMMY_EVENT, EXTREMITIES_LEFT_ALONE};
pub use ids::{
    EventKey, EventSn, NodeRef, RecordSn, RoomSn, SnapshotId, StateKeySn, TimelineOrder, user_topic,
};
pub use import::TOLD_EVENTS_MAX;
pub use kind::Kind;
pub use membership::{Invite, Join, Joined, Knock, MembershipError, Profile, Removal, Remove};
pub use missing::Gap;
pub use out_of_band::{OutOfBand, OutOfBandError};
pub use partial::{CompleteError, PartialRoom};
pub use policy::{MayLackSignature, PolicyRefusal, PolicyServer, Unsigned, Verdicts};
pub use queue::{QUEUED_BYTES_MAX, QUEUED_EVENTS_MAX, Wanted};
pub use receive::Received;
pub use redaction::redacted_because;
pub use relations::annotation_key;
pub use rooms::{Rooms, RoomsOptions};
pub use seams::{Chance, Clock, SystemChance, SystemClock, on_a_thread};
pub use send::{Send, SendError, Sent, Txn};
pub use snapshot::{Snapshots, StateChange};
pub use tables::{Membership, RelType, Residency, Status};
pub use transactions::TRANSACTIONS_KEPT;
