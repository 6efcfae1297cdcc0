//! What happens in rooms, told as stories on a store in memory.
#![allow(clippy::unwrap_used, reason = "a story that cannot go on fails")]

mod creating;
mod membership;
mod receiving;
mod sending;
mod support;
mod thin_path;
