//! The bounds that the specification puts on events, each with a name.

use crate::Rejection;

/// A whole event as canonical JSON in its federation format, signatures included.
pub const MAX_EVENT_BYTES: usize = 65_536;
/// `sender`, `room_id`, `event_id`, `type` and `state_key`, each, in bytes.
pub const MAX_KEY_BYTES: usize = 255;
/// Entries of `prev_events`.
pub const MAX_PREV_EVENTS: usize = 20;
/// Entries of `auth_events`.
pub const MAX_AUTH_EVENTS: usize = 10;
/// The largest depth where canonical JSON is enforced (2^53 - 1), also the range of its integers.
pub const MAX_SAFE_INTEGER: i64 = (1 << 53) - 1;
/// How deep arrays and objects may nest, the event itself included. The specification leaves this open; the bound
/// keeps hostile events from exhausting the stack.
pub const MAX_NESTING: usize = 100;

/// Whether an event of so many bytes, as canonical JSON with all its signatures, is within [`MAX_EVENT_BYTES`].
pub fn check_size(bytes: usize) -> Result<(), Rejection> {
    match bytes > MAX_EVENT_BYTES {
        true => Err(Rejection::EventTooLarge { bytes }),
        false => Ok(()),
    }
}
