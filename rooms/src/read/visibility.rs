//! Who may see which event: `m.room.history_visibility` at the event, and the viewer's membership then and later.
//! * What decides is the state *before* the event. Where the event itself changes the visibility or the viewer's
//!   membership, both values count, and the more permissive one wins.
//! * Whoever left sees what they saw when they left; what came later is hidden but in a world-readable room.

use crate::{ids::TimelineOrder, tables::Membership};

/// The values of `m.room.history_visibility`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum HistoryVisibility {
    Joined,
    Invited,
    /// Also where the room has no such event, or one that is malformed.
    #[default]
    Shared,
    WorldReadable,
}

impl HistoryVisibility {
    /// The value as events write it.
    pub fn from_value(value: &str) -> Self {
        match value {
            "joined" => Self::Joined,
            "invited" => Self::Invited,
            "world_readable" => Self::WorldReadable,
            _ => Self::Shared,
        }
    }
}

/// What decides about one event, before it and, where it changes one of them, after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AtEvent {
    pub visibility: HistoryVisibility,
    pub membership: Option<Membership>,
}

/// How far the viewer's time in the room reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Joined now.
    Joined,
    /// Was joined until this order.
    Until(TimelineOrder),
    /// Was never joined.
    Never,
}

impl Presence {
    /// Whether the viewer was joined at some time after an event.
    pub fn is_joined_after(self, order: TimelineOrder) -> bool {
        match self {
            Presence::Joined => true,
            Presence::Until(end) => order < end,
            Presence::Never => false,
        }
    }
}

impl AtEvent {
    /// Whether a viewer with these facts may see the event at `order`.
    pub fn is_visible(self, presence: Presence, order: TimelineOrder) -> bool {
        match self.visibility {
            HistoryVisibility::WorldReadable => true,
            _ if self.membership == Some(Membership::Join) => true,
            HistoryVisibility::Shared => presence.is_joined_after(order),
            HistoryVisibility::Invited => {
                // Being invited is not enough for ever: an invite that was turned down shows nothing.
                self.membership == Some(Membership::Invite) && presence.is_joined_after(order)
            }
            HistoryVisibility::Joined => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use hearth_store::StreamPosition;

    use super::*;

    fn order(position: u64) -> TimelineOrder {
        TimelineOrder::live(StreamPosition::new(position))
    }

    #[test]
    fn the_matrix_of_visibility_and_membership() {
        use HistoryVisibility as V;
        use Membership as M;
        let left_later = Presence::Until(order(20));
        let left_before = Presence::Until(order(5));
        // (visibility, membership at the event, presence, visible)
        let cases = [
            (V::WorldReadable, None, Presence::Never, true),
            (V::WorldReadable, Some(M::Ban), left_before, true),
            (V::Shared, None, Presence::Never, false),
            (V::Shared, None, Presence::Joined, true),
            (V::Shared, None, left_later, true),
            (V::Shared, Some(M::Leave), left_before, false),
            (V::Shared, Some(M::Join), left_later, true),
            (V::Shared, Some(M::Invite), Presence::Never, false),
            (V::Invited, None, Presence::Joined, false),
            (V::Invited, Some(M::Invite), Presence::Joined, true),
            (V::Invited, Some(M::Invite), Presence::Never, false),
            (V::Invited, Some(M::Join), left_later, true),
            (V::Joined, Some(M::Invite), Presence::Joined, false),
            (V::Joined, Some(M::Join), Presence::Joined, true),
            (V::Joined, None, Presence::Joined, false),
        ];
        for (visibility, membership, presence, visible) in cases {
            let at = AtEvent { visibility, membership };
            assert_eq!(at.is_visible(presence, order(10)), visible, "{at:?} {presence:?}");
        }
    }
}
