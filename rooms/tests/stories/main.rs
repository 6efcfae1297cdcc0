//! What happens in rooms, told as stories on a store in memory.
#![allow(clippy::unwrap_used, reason = "a story that cannot go on fails")]

mod asking;
mod at_once;
mod backfilling;
mod creating;
mod entering;
mod gate;
mod handshakes;
mod hostile;
mod invites;
mod membership;
mod orders;
mod outgoing;
mod outside;
mod partial;
mod peers;
mod policy;
mod receiving;
mod remote;
mod sending;
mod support;
mod thin_path;
mod two_servers;
mod upkeep;
mod waiting;
