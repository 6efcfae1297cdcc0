//! Hearth dag.
