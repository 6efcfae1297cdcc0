//! Hearth federation.
