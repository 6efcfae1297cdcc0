//! What other servers are told at length: state, auth chains, history, joins.
//! * So many such answers are made at once, few of them for one server; others wait in a short line, and who finds no
//!   place in it comes again later.
//! * What a server is told is counted, so that nobody has the same large room read out to them all day long.

use std::{sync::Arc, time::Duration};

use ruma::{OwnedServerName, ServerName};

use super::Inbound;
use crate::{
    allowance::Allowance,
    turns::{Crowded, Turn, TurnLimits, Turns},
};

/// Long answers that are made at once, for all servers: each may hold a whole state in memory.
pub const ANSWERS_AT_ONCE: usize = 12;
/// Of these, for one server.
pub const ANSWERS_OF_A_SERVER: usize = 4;
/// Questions of one server that wait for their turn: as many as one of its transactions may make it ask us.
pub const ANSWERS_WAITING_OF_A_SERVER: usize = 50;
/// Questions of all servers that wait.
const ANSWERS_WAITING: usize = 1_000;
/// How long a question waits; whoever asks has given up soon after.
const PATIENCE: Duration = Duration::from_secs(15);
/// Bytes a second that one server is told in the long run.
pub const ANSWER_BYTES_PER_SECOND: f64 = 4.0 * 1024.0 * 1024.0;
/// Bytes that it is told at once, before it has to wait: the states of some very large rooms, as after an outage.
pub const ANSWER_BYTES_AT_ONCE: f64 = 512.0 * 1024.0 * 1024.0;
/// A short answer counts as one of so many bytes, as looking for it costs too.
pub const ANSWER_BYTES_LEAST: usize = 32 * 1024;

/// Who is being told something.
#[derive(Debug)]
pub(super) struct Answers {
    turns: Turns<OwnedServerName>,
    told: Arc<Allowance<OwnedServerName>>,
}

/// A long answer that is being made, until this is dropped.
#[derive(Debug)]
pub struct Answering {
    _turn: Turn<OwnedServerName>,
    told: Arc<Allowance<OwnedServerName>>,
    origin: OwnedServerName,
}

impl Answers {
    pub(super) fn new() -> Self {
        let turns = Turns::new(TurnLimits {
            at_once: ANSWERS_AT_ONCE,
            each: ANSWERS_OF_A_SERVER,
            waiting_each: ANSWERS_WAITING_OF_A_SERVER,
            waiting: ANSWERS_WAITING,
            patience: PATIENCE,
        });
        Self { turns, told: Arc::new(Allowance::new(ANSWER_BYTES_PER_SECOND, ANSWER_BYTES_AT_ONCE)) }
    }
}

impl Inbound {
    /// A place for making a long answer for a server.
    pub async fn answering(&self, origin: &ServerName) -> Result<Answering, Crowded> {
        let answers = &self.0.answers;
        let told = answers.told.clone();
        told.check(origin.to_owned()).map_err(|retry_after| Crowded { retry_after })?;
        let turn = answers.turns.take(origin.to_owned()).await?;
        told.charge(origin.to_owned(), ANSWER_BYTES_LEAST as f64);
        Ok(Answering { _turn: turn, told, origin: origin.to_owned() })
    }
}

impl Answering {
    /// So many bytes are told.
    pub fn weighs(&self, bytes: usize) {
        self.told.charge(self.origin.clone(), bytes.saturating_sub(ANSWER_BYTES_LEAST) as f64);
    }
}
