//! Reading rooms: what clients are shown of them.
//! * Events come out as [`ClientEvent`]s, serialised once and shared; nothing here parses an event twice.
//! * What a user may not see does not leave this module: each way of reading events takes the [`Viewer`] it is for.
//! * Reads take a position first and go up to it, so that an answer never holds half of a commit.

mod client_event;
mod context;
mod events;
mod filter;
mod live;
mod memberships;
mod messages;
mod relations;
mod state;
mod threads;
mod timeline;
mod token;
mod viewer;
mod visibility;
mod words;

pub use client_event::{ClientEvent, Copy, Device, MalformedEvent, push_number, push_str};
pub use context::Context;
pub use events::{Reader, RoomEvent};
pub use filter::{
    DEFAULT_TIMELINE_LIMIT, EventFields, EventFilter, EventFormat, Facts, FilterDefinition, FilterError,
    MAX_LIMIT, RelatedBy, RoomFilter,
};
pub use live::Tail;
pub use messages::{Page, PageRequest};
pub use relations::{Bundles, RelationsPage, RelationsRequest};
pub use state::MemberFilter;
pub use threads::Threads;
pub use timeline::{Direction, Placed, Shown, Stretch, WalkEnd, Walked};
pub use token::{BadToken, SyncToken, TimelineToken};
pub use viewer::{Seen, Viewer};
pub use visibility::{AtEvent, HistoryVisibility, Presence};
