//! Hearth rooms.
