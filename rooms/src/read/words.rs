//! The specification's words for what rows hold as numbers.

use crate::tables::Membership;

/// The membership that an event writes so.
pub(super) fn membership_of(value: &str) -> Option<Membership> {
    Some(match value {
        "join" => Membership::Join,
        "invite" => Membership::Invite,
        "knock" => Membership::Knock,
        "leave" => Membership::Leave,
        "ban" => Membership::Ban,
        _ => return None,
    })
}
