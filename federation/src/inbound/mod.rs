//! What other servers send us: transactions, the events in them, and what has to be fetched for those.
//! * A transaction is answered when each of its events is decided, or waits durably for what is missing. A bad event
//!   never fails its transaction; only our own store does.
//! * Events of one room are decided in their order, several on their way to the disk at once; rooms beside each other.
//! * What an event lacks is fetched by a worker per room, see [`workers`]; a restart takes up what waits.
//! * Whatever a peer sends is bounded: events, bytes, transactions at a time, rounds of fetching.

mod edus;
mod events;
mod fetch;
mod third_party;
mod transactions;
mod workers;

use std::sync::Arc;

use hearth_rooms::Rooms;
use hearth_users::Users;

use crate::{federation::Federation, policy::Policy};

pub use self::{
    edus::{PRESENCE_MAX, RECEIPTS_MAX},
    third_party::{BoundInvite, ThirdPartyError},
    transactions::{BYTES_WAITING_MAX, EDUS_MAX, PDUS_MAX, TransactionError, WAITING_PER_ORIGIN},
    workers::{ROUNDS_MAX, TRIES_MAX},
};

/// What other servers send us. Cheap to clone.
#[derive(Clone)]
pub struct Inbound(Arc<Inner>);

struct Inner {
    federation: Federation,
    rooms: Rooms,
    policy: Policy,
    users: Users,
    transactions: transactions::Transactions,
    told: edus::Told,
    workers: workers::Workers,
}

impl Inbound {
    /// Over these parts. Nothing is taken up before [`resume`](Self::resume).
    pub fn new(federation: Federation, rooms: Rooms, users: Users) -> Self {
        Self(Arc::new(Inner {
            policy: Policy::new(federation.clone(), rooms.clone()),
            federation,
            rooms,
            users,
            transactions: transactions::Transactions::new(),
            told: edus::Told::new(),
            workers: workers::Workers::new(),
        }))
    }

    /// Goes on with the events that waited when the server was stopped.
    pub async fn resume(&self) -> Result<(), hearth_store::StoreError> {
        for room in self.0.rooms.rooms_with_queues().await? {
            self.wake(&room);
        }
        Ok(())
    }
}
