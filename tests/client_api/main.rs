//! The client-server API, endpoint by endpoint, on whole servers in this process.

mod account;
mod bodies;
mod devices;
mod directory;
mod discovery;
mod endpoints;
mod history;
mod legacy_sync;
mod login;
mod long_polls;
mod media;
mod membership;
mod people;
mod presence;
mod profile;
mod receipts;
mod registration;
mod rooms;
mod settings;
mod sync;
mod uia;
