//! What other servers send us: transactions, the events in them, and what has to be fetched for those.
//! * A transaction is answered when each of its events is decided, or waits durably for what is missing. A bad event
//!   never fails its transaction; only our own store does.
//! * Events of one room are decided in their order, several on their way to the disk at once; rooms beside each other.
//! * What an event lacks is fetched by a worker per room, for each server that handed us such events by itself, and while
//!   others are decided, see [`workers`] and [`rounds`]. One whose keys cannot be had waits for them, see [`unchecked`].
//!   A restart takes up what waits.
//! * Whatever a peer sends is bounded: events, bytes, transactions at a time, rounds of fetching, invites; so is what it
//!   makes us tell, see [`answers`].

mod answers;
mod early;
mod edus;
mod efforts;
mod encryption;
mod events;
mod fetch;
mod invites;
mod place;
mod rounds;
mod silence;
mod third_party;
mod transactions;
mod unchecked;
mod workers;

use std::sync::Arc;

use hearth_rooms::Rooms;
use hearth_users::Users;

use crate::{federation::Federation, policy::Policy};

pub use self::{
    answers::{
        ANSWER_BYTES_AT_ONCE, ANSWER_BYTES_LEAST, ANSWER_BYTES_PER_SECOND, ANSWERS_AT_ONCE,
        ANSWERS_OF_A_SERVER, ANSWERS_WAITING_OF_A_SERVER, AnswerError, Answering,
    },
    early::{EARLY_BYTES, EARLY_OF_A_ROOM, EARLY_OF_A_SERVER},
    edus::{PRESENCE_MAX, RECEIPTS_MAX},
    efforts::{FETCHES_OF_A_ROOM, GIVEN_UP_AFTER, ROUNDS_MAX},
    invites::{
        INVITES_AT_ONCE_OF_A_SERVER, INVITES_AT_ONCE_TO_A_USER, INVITES_PER_SECOND_OF_A_SERVER,
        INVITES_PER_SECOND_TO_A_USER, InviteLimit, PENDING_INVITES_MAX,
    },
    silence::{ASKED_AGAIN, POLICY_PATIENCE},
    third_party::{BoundInvite, ThirdPartyError},
    transactions::{BYTES_WAITING_MAX, EDUS_MAX, PDUS_MAX, TransactionError, WAITING_PER_ORIGIN},
    unchecked::{UNCHECKED_FIRST, UNCHECKED_MAX, UNCHECKED_OF_A_SERVER, UNCHECKED_TIME_MS},
    workers::FETCHING_AT_ONCE,
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
    answers: answers::Answers,
    invites: invites::Invites,
    unchecked: unchecked::Unchecked,
    early: early::Early,
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
            answers: answers::Answers::new(),
            invites: invites::Invites::new(),
            unchecked: unchecked::Unchecked::default(),
            early: early::Early::default(),
        }))
    }

    /// Goes on with the events that waited when the server was stopped.
    pub async fn resume(&self) -> Result<(), hearth_store::StoreError> {
        for room in self.0.rooms.rooms_with_queues().await? {
            self.wake(&room);
        }
        self.resume_unchecked().await
    }
}
