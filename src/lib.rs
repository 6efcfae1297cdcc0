//! The top layer of Hearth, a Matrix homeserver: configuration, HTTP, and what needs rooms and users at once.
//! `main.rs` only calls [`cli::main`]; everything is a library so that tests start whole servers in one process.

pub mod app;
pub mod cli;
pub mod client_api;
pub mod clock;
pub mod config;
pub mod federation_api;
pub mod http;
pub mod media;
pub mod push;
pub mod server;
pub mod summaries;
pub mod sync;
pub mod tables;
#[doc(hidden)]
pub mod testing;
pub mod tls;
