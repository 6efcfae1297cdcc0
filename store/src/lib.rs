//! Hearth store.
