//! What happens in rooms, told as stories on a store in memory.

mod creating;
mod membership;
mod receiving;
mod sending;
mod support;
mod thin_path;
