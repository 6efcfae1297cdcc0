//! What other servers ask of this one and send to it: whole servers in one process, and peers that do as they like.

mod both_ways;
mod history;
mod hostile;
mod rooms;
mod third_party;
mod transactions;
mod world;
