//! How many rooms are joined at once, by whom, through whom, and how much memory their answers may take.
//! * A user has few places and a server has few: servers that never come to an end tie down their part and no more.
//! * Most answers come without members and are small. The few that are not are asked for again with the bytes that they
//!   may need, fewer at a time: all joins together hold at most [`JOIN_BYTES_IN_ALL`] of answers.

use std::time::Duration;

use hearth_dag::Pdu;
use ruma::{OwnedServerName, OwnedUserId, RoomId, ServerName, UserId};

use super::{JOIN_TIME, JOINS_AT_ONCE};
use crate::{
    client::{Client, JOIN, JoinAnswer, RequestError},
    network::{Limits, NetworkError},
    turns::{Crowded, Turn, TurnLimits, Turns},
};

/// Rooms that one user enters at the same time; more wait for those.
pub const JOINS_OF_A_USER: usize = 2;
/// Rooms that are entered through one server at the same time.
pub const JOINS_THROUGH_A_SERVER: usize = 3;
/// How long a place at a server is waited for before the next server is tried: there has to be time left for that one.
const SERVER_PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of an ordinary answer: the state of a room without its members.
pub const JOIN_BYTES: usize = 32 * 1024 * 1024;
/// Answers that are larger, up to what a join may bring at all; of one server one.
pub const LARGE_JOINS_AT_ONCE: usize = 2;
/// How long such an answer waits for its turn.
const LARGE_PATIENCE: Duration = Duration::from_secs(120);
/// Bytes of the answers to all joins together.
pub const JOIN_BYTES_IN_ALL: usize =
    (JOINS_AT_ONCE - LARGE_JOINS_AT_ONCE) * JOIN_BYTES + LARGE_JOINS_AT_ONCE * JOIN.max_bytes;
/// An ordinary answer.
const ORDINARY_JOIN: Limits = Limits { timeout: JOIN.timeout, max_bytes: JOIN_BYTES };

const OF_USERS: TurnLimits = TurnLimits {
    // All that wait for a place at a server; each is little but a question.
    at_once: 1_000,
    each: JOINS_OF_A_USER,
    waiting_each: 20,
    waiting: 1_000,
    patience: JOIN_TIME,
};

const THROUGH_SERVERS: TurnLimits = TurnLimits {
    at_once: JOINS_AT_ONCE,
    each: JOINS_THROUGH_A_SERVER,
    waiting_each: 200,
    waiting: 1_000,
    patience: SERVER_PATIENCE,
};

const LARGE: TurnLimits = TurnLimits {
    at_once: LARGE_JOINS_AT_ONCE,
    each: 1,
    waiting_each: JOINS_THROUGH_A_SERVER,
    waiting: JOINS_AT_ONCE,
    patience: LARGE_PATIENCE,
};

/// The places of all joins.
#[derive(Debug)]
pub(crate) struct Places {
    users: Turns<OwnedUserId>,
    servers: Turns<OwnedServerName>,
    large: Turns<OwnedServerName>,
}

impl Default for Places {
    fn default() -> Self {
        Self { users: Turns::new(OF_USERS), servers: Turns::new(THROUGH_SERVERS), large: Turns::new(LARGE) }
    }
}

impl Places {
    /// For a user who wants to join something.
    pub(super) async fn of_user(&self, user: &UserId) -> Result<Turn<OwnedUserId>, Crowded> {
        self.users.take(user.to_owned()).await
    }

    /// For a join through a server.
    pub(super) async fn through(&self, server: &ServerName) -> Result<Turn<OwnedServerName>, Crowded> {
        self.servers.take(server.to_owned()).await
    }

    /// Asks a server to let us in. With a large answer comes the place that it has, for as long as it is held.
    pub(super) async fn ask(
        &self,
        client: &Client,
        server: &ServerName,
        room: &RoomId,
        pdu: &Pdu,
    ) -> Result<(JoinAnswer, Option<Turn<OwnedServerName>>), RequestError> {
        let ask = |limits| client.send_join_within(server, room, pdu.event_id(), pdu.json(), true, limits);
        match ask(ORDINARY_JOIN).await {
            Err(RequestError::Network(NetworkError::TooLarge { .. })) => {}
            answer => return Ok((answer?, None)),
        }
        tracing::info!(room_id = %room, %server, "the answer to a join is a large one");
        let turn = self.large.take(server.to_owned()).await.map_err(|_| NetworkError::Busy)?;
        Ok((ask(JOIN).await?, Some(turn)))
    }
}
