//! Push rules: whether an event notifies a user, and whether it highlights.
//!
//! * Pure: JSON and values in, a [`Decision`] out; no store, no network, no clock.
//! * The predefined rules give the same answer for everyone but for mentions and invites, so an event is
//!   judged once (its [`Summary`]) and shared by all who left their rules as they are. Rules that a user has
//!   changed are evaluated one by one.
//! * A user's own events never notify.

mod rules;
mod summary;

pub use self::{
    rules::{Event, Room, Rules},
    summary::{Everyone, Summary},
};

/// What the push rules say about one event for one user.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// It counts as unread, and pushers are told.
    pub notify: bool,
    /// It is marked as a mention. Only ever true together with `notify`.
    pub highlight: bool,
}

impl Decision {
    pub const SILENT: Self = Self { notify: false, highlight: false };
    pub const NOTIFY: Self = Self { notify: true, highlight: false };
    pub const HIGHLIGHT: Self = Self { notify: true, highlight: true };
}
