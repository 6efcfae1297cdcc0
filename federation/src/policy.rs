//! Rooms with a policy server: what it signs goes on, what it does not sign is not sent, and soft-failed if it comes.
//! * Rooms say which event lacks a signature; here it is asked for, outside of every lane, and the operation comes again
//!   with the answer. A room without a policy server never gets here.
//! * An event of ours whose policy server says no, or cannot be reached, is not sent; the client hears why.
//! * Events that others sent wait in their room's queue meanwhile; they are asked about a few at a time. Of those about
//!   which a policy server could not say anything for the moment nothing is decided here: they are named ([`Unheard`]).
//! * Questions about events of others are bounded, and each policy server has a share of them: one that does not answer
//!   holds up its own rooms.

use std::{
    future::Future,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use hearth_dag::Pdu;
use hearth_rooms::{MayLackSignature, PolicyRefusal, Rooms, Unsigned, Verdicts, WriteError};
use http::StatusCode;
use ruma::{OwnedEventId, OwnedServerName};
use tokio::time::Instant;

use crate::{
    client::{RemoteError, RequestError},
    federation::Federation,
    shares::Shares,
};

/// How often an operation is brought back with a signature: the room's policy may change meanwhile, or the user's event.
const SIGNED_MAX: usize = 3;
/// Events of others about which the policy server of one room is asked at a time.
pub const ASKED_AT_ONCE: usize = 10;
/// Questions about events of others that are open at a time, to all policy servers.
pub const QUESTIONS_AT_ONCE: usize = 64;
/// It is asked about a batch of events of others for so long; of the rest nothing is heard this time.
pub const JUDGING_TIME: Duration = Duration::from_secs(60);
/// A question that is cut off sooner than this says nothing of the policy server.
const ANSWERED_WITHIN: Duration = Duration::from_secs(10);

/// What a policy server says of events of others.
#[derive(Debug, Default)]
pub(crate) struct Judgement {
    /// Those that it signed, with the signature, or refused.
    pub(crate) heard: Vec<(OwnedEventId, Option<Pdu>)>,
    /// Those of which it has said nothing for the moment.
    pub(crate) unheard: Vec<(OwnedEventId, Unheard)>,
}

/// Why nothing was heard of an event for the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unheard {
    /// It was not asked about this one, as it gave no answer about another.
    NotAsked,
    /// It was not asked about this one, or only just now: our questions to policy servers took up the time.
    PutOff,
    /// It wants to be asked more slowly, after this time if it says so; or it is too slow for so many questions.
    Limited(Option<Duration>),
    /// It failed over the question, or gave no answer.
    Failed,
}

/// Why an event has no signature.
struct Unanswered {
    refusal: PolicyRefusal,
    /// It may have one when it is asked for again.
    for_now: Option<Unheard>,
    /// Nobody is there at all.
    is_silent: bool,
}

/// Asks the policy servers of rooms. Cheap to clone.
#[derive(Clone)]
pub struct Policy {
    federation: Federation,
    rooms: Rooms,
    questions: Shares<OwnedServerName>,
}

impl Policy {
    /// For these rooms.
    pub fn new(federation: Federation, rooms: Rooms) -> Self {
        Self { federation, rooms, questions: Shares::new(QUESTIONS_AT_ONCE) }
    }

    /// Does something that makes an event of ours, or takes one in that is ours to send. If a policy server has to sign
    /// that, it is asked, and the same is done again with the signed event.
    pub async fn signing<T, E, F>(&self, act: impl Fn(Rooms) -> F) -> Result<T, E>
    where
        E: MayLackSignature,
        F: Future<Output = Result<T, E>>,
    {
        let mut rooms = self.rooms.clone();
        for _ in 0..=SIGNED_MAX {
            let error = match act(rooms).await {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            let Some(unsigned) = error.unsigned() else { return Err(error) };
            let signed = self.ask(unsigned).await.map_err(|no| WriteError::from(no.refusal))?;
            let mut verdicts = Verdicts::default();
            verdicts.recommend(signed);
            rooms = self.rooms.with_verdicts(verdicts);
        }
        Err(WriteError::Busy.into())
    }

    /// What the policy server of a room says of these events of others, as far as they lack its signature. The first is
    /// asked about alone: whoever does not answer about it is not asked about the others.
    pub(crate) async fn judge<'a>(&self, of: &Unsigned, events: impl Iterator<Item = &'a Pdu>) -> Judgement {
        let end = Instant::now() + JUDGING_TIME;
        let all: Vec<Unsigned> = events.filter_map(|event| of.beside(event)).collect();
        let (mut judgement, is_over) = (Judgement::default(), &AtomicBool::new(false));
        let Some((first, others)) = all.split_first() else { return judgement };
        judgement.note(first, self.ask_until(end, is_over, first).await);
        let mut asked = Vec::with_capacity(others.len());
        for event in others {
            asked.push(async move { (event, self.ask_until(end, is_over, event).await) });
        }
        let mut asked = stream::iter(asked).buffer_unordered(ASKED_AT_ONCE);
        while let Some((event, said)) = asked.next().await {
            judgement.note(event, said);
        }
        judgement
    }

    /// Asks about one event of a batch, unless the time or the patience of the policy server is over.
    async fn ask_until(
        &self,
        end: Instant,
        is_over: &AtomicBool,
        unsigned: &Unsigned,
    ) -> Result<Option<Pdu>, Unheard> {
        let server = &unsigned.server.name;
        let place = match is_over.load(Ordering::Relaxed) || Instant::now() >= end {
            true => None,
            false => tokio::time::timeout_at(end, self.questions.wait(server.clone(), 1)).await.ok(),
        };
        if is_over.load(Ordering::Relaxed) {
            return Err(Unheard::NotAsked);
        }
        let Some(_place) = place else { return Err(Unheard::PutOff) };
        let began = Instant::now();
        let said = match tokio::time::timeout_at(end, self.ask(unsigned)).await {
            Ok(Ok(signed)) => return Ok(Some(signed)),
            Ok(Err(no)) => no,
            Err(_) if began.elapsed() < ANSWERED_WITHIN => return Err(Unheard::PutOff),
            Err(_) => return Err(Unheard::Limited(None)),
        };
        let Some(unheard) = said.for_now else { return Ok(None) };
        if said.is_silent || matches!(unheard, Unheard::Limited(_)) {
            is_over.store(true, Ordering::Relaxed);
        }
        Err(unheard)
    }

    async fn ask(&self, unsigned: &Unsigned) -> Result<Pdu, Unanswered> {
        let (server, event) = (&unsigned.server.name, &unsigned.event);
        // Somebody waits for it. And it may be nothing but a policy server: that what else is sent to it fails says little.
        let mut client = self.federation.client().even_if_failing();
        let sender = event.sender().server_name();
        if self.federation.local_servers().is_local(sender) {
            client = client.speaking_as(sender);
        }
        let no = match client.policy_sign(server, event.json()).await {
            Ok(Some(signature)) => match unsigned.signed(&signature) {
                Ok(signed) => return Ok(signed),
                Err(why) => {
                    tracing::info!(%server, event_id = %event.event_id(), %why, "a policy server's signature is of no use");
                    Unanswered::of(PolicyRefusal::BadSignature(server.clone()))
                }
            },
            Ok(None) => Unanswered::of(PolicyRefusal::BadSignature(server.clone())),
            Err(error) => {
                let no = Unanswered::read(server, &error);
                if no.is_silent {
                    tracing::info!(%server, room_id = %event.room_id(), %error, "a room's policy server gives no answer");
                }
                no
            }
        };
        tracing::debug!(event_id = %event.event_id(), refusal = %no.refusal, "an event lacks its policy server's signature");
        Err(no)
    }
}

impl Judgement {
    fn note(&mut self, unsigned: &Unsigned, said: Result<Option<Pdu>, Unheard>) {
        let event = unsigned.event.event_id().to_owned();
        match said {
            Ok(said) => self.heard.push((event, said)),
            Err(why) => self.unheard.push((event, why)),
        }
    }
}

impl Unanswered {
    /// It was asked, and will say the same again.
    fn of(refusal: PolicyRefusal) -> Self {
        Self { refusal, for_now: None, is_silent: false }
    }

    /// What an error says of the event, and of the policy server.
    fn read(server: &OwnedServerName, error: &RequestError) -> Self {
        let unreachable = PolicyRefusal::Unreachable(server.clone());
        match error {
            RequestError::Remote(error) => {
                let refusal =
                    if error.status.is_server_error() { unreachable } else { refused(server, error) };
                // A proxy speaks for a server that is not there; one that is says why it fails.
                let is_silent = error.status.is_server_error() && error.errcode.is_none();
                Self { refusal, for_now: for_now(error), is_silent }
            }
            // That will not change with time.
            RequestError::Local(_) | RequestError::Access(_) | RequestError::Body(_) => Self::of(unreachable),
            _ => Self { refusal: unreachable, for_now: Some(Unheard::Failed), is_silent: true },
        }
    }
}

/// Whether an error says nothing of the event: the policy server has not looked at it.
fn for_now(error: &RemoteError) -> Option<Unheard> {
    let is_limit = error.errcode.as_deref() == Some("M_LIMIT_EXCEEDED");
    if is_limit || error.status == StatusCode::TOO_MANY_REQUESTS {
        return Some(Unheard::Limited(retry_after_ms(error).map(Duration::from_millis)));
    }
    // All else is said by whatever stands before it, or by one that could not check who asks.
    let is_refusal = error.errcode.is_some()
        && error.status.is_client_error()
        && !matches!(error.status, StatusCode::UNAUTHORIZED | StatusCode::REQUEST_TIMEOUT);
    (!is_refusal).then_some(Unheard::Failed)
}

fn refused(server: &OwnedServerName, error: &RemoteError) -> PolicyRefusal {
    PolicyRefusal::Refused {
        server: server.clone(),
        errcode: error.errcode.clone(),
        error: error.error.clone(),
        retry_after_ms: retry_after_ms(error),
    }
}

fn retry_after_ms(error: &RemoteError) -> Option<u64> {
    error.body.get("retry_after_ms").and_then(serde_json::Value::as_u64)
}
