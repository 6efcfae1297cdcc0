//! The client-server API, endpoint by endpoint, on whole servers in this process.

mod directory;
mod discovery;
mod history;
mod legacy_sync;
mod media;
mod membership;
mod rooms;
mod sync;
