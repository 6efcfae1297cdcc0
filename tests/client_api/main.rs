//! The client-server API, endpoint by endpoint, on whole servers in this process.

mod discovery;
mod media;
