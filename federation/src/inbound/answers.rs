//! What other servers are told at length: state, auth chains, history, joins.
//! * So many such answers are made at once, few of them for one server; others wait in a short line, and who finds no
//!   place in it comes again later.
//! * A place is held for the work itself, and by nobody who waits for a policy server.
//! * What a server is told is counted, so that nobody has the same large room read out to them all day long.

use std::{future::Future, sync::Arc, time::Duration};

use hearth_rooms::{MayLackSignature, Rooms, Unsigned, WriteError};
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

/// Why a long answer is not made.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError<E> {
    /// Too many are.
    #[error(transparent)]
    Crowded(#[from] Crowded),
    /// The work itself failed.
    #[error("{0}")]
    Work(E),
}

impl<E: From<WriteError>> From<WriteError> for AnswerError<E> {
    fn from(error: WriteError) -> Self {
        Self::Work(error.into())
    }
}

impl<E: MayLackSignature> MayLackSignature for AnswerError<E> {
    fn unsigned(&self) -> Option<&Unsigned> {
        match self {
            Self::Crowded(_) => None,
            Self::Work(error) => error.unsigned(),
        }
    }
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

    /// Does something that has a long answer and takes an event in that is ours to send. If a policy server has to sign
    /// that first, the place is free for others meanwhile.
    pub async fn answering_signed<T, E, F>(
        &self,
        origin: &ServerName,
        act: impl Fn(Rooms) -> F,
    ) -> Result<(T, Answering), AnswerError<E>>
    where
        E: MayLackSignature,
        F: Future<Output = Result<T, E>>,
    {
        let act = &act;
        let in_turn = |rooms| async move {
            let answering = self.answering(origin).await?;
            let done = act(rooms).await.map_err(AnswerError::Work)?;
            Ok((done, answering))
        };
        self.0.policy.signing(in_turn).await
    }
}

impl Answering {
    /// So many bytes are told.
    pub fn weighs(&self, bytes: usize) {
        self.told.charge(self.origin.clone(), bytes.saturating_sub(ANSWER_BYTES_LEAST) as f64);
    }
}
