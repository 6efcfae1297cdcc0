//! Hearth users.
