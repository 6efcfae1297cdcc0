//! The Hearth server: what its binary and its tests are made of.

pub mod push;
