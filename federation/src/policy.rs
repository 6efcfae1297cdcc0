//! Rooms with a policy server: what it signs goes on, what it does not sign is not sent, and soft-failed if it comes.
//! * Rooms say which event lacks a signature; here it is asked for, outside of every lane, and the operation comes again
//!   with the answer. A room without a policy server never gets here.
//! * An event of ours whose policy server says no, or cannot be reached, is not sent; the client hears why.
//! * Events that others sent wait in their room's queue meanwhile; they are asked about a few at a time. A policy server that does not answer about the first one is
//!   not asked about the others of a batch, and none waits longer than [`JUDGING_TIME`].

use std::{future::Future, time::Duration};

use futures_util::{StreamExt as _, stream};
use hearth_dag::Pdu;
use hearth_rooms::{MayLackSignature, PolicyRefusal, Rooms, Unsigned, Verdicts, WriteError};
use ruma::EventId;
use tokio::time::Instant;

use crate::{
    client::{RemoteError, RequestError},
    federation::Federation,
};

/// How often an operation is brought back with a signature: the room's policy may change meanwhile, or the user's event.
const SIGNED_MAX: usize = 3;
/// Events of others about which one policy server is asked at a time.
pub const ASKED_AT_ONCE: usize = 10;
/// A batch of events of others is judged in this time; what is not judged by then is not recommended.
pub const JUDGING_TIME: Duration = Duration::from_secs(60);

/// Between two questions to a policy server that is asked too often, at least.
const PAUSE: Duration = Duration::from_secs(2);

/// Asks the policy servers of rooms. Cheap to clone.
#[derive(Clone)]
pub struct Policy {
    federation: Federation,
    rooms: Rooms,
}

impl Policy {
    /// For these rooms.
    pub fn new(federation: Federation, rooms: Rooms) -> Self {
        Self { federation, rooms }
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
            let signed = self.ask(unsigned).await.map_err(WriteError::from)?;
            let mut verdicts = Verdicts::default();
            verdicts.recommend(signed);
            rooms = self.rooms.with_verdicts(verdicts);
        }
        Err(WriteError::Busy.into())
    }

    /// What the policy server says of an event that came from others, and of those that came with it.
    pub async fn judge<'a>(&self, first: &Unsigned, batch: impl Iterator<Item = &'a Pdu>) -> Verdicts {
        let end = Instant::now() + JUDGING_TIME;
        let mut verdicts = Verdicts::default();
        let of_first = tokio::time::timeout_at(end, self.ask_patiently(first)).await;
        let answers = !matches!(of_first, Err(_) | Ok(Err(PolicyRefusal::Unreachable(_))));
        note(&mut verdicts, first.event.event_id(), of_first.ok());
        let others: Vec<Unsigned> = batch
            .filter(|event| event.event_id() != first.event.event_id())
            .filter_map(|event| first.beside(event))
            .collect();
        for event in &others {
            verdicts.refuse(event.event.event_id().to_owned());
        }
        if answers {
            let mut asked = Vec::with_capacity(others.len());
            for event in &others {
                asked.push(async move { (event, self.ask_patiently(event).await) });
            }
            let mut asked = stream::iter(asked).buffer_unordered(ASKED_AT_ONCE);
            while let Ok(Some((event, said))) = tokio::time::timeout_at(end, asked.next()).await {
                note(&mut verdicts, event.event.event_id(), Some(said));
            }
        }
        verdicts
    }

    /// As long as the policy server only wants to be asked more slowly, it is asked again.
    async fn ask_patiently(&self, unsigned: &Unsigned) -> Result<Pdu, PolicyRefusal> {
        loop {
            match self.ask(unsigned).await {
                Err(PolicyRefusal::Refused { errcode: Some(code), retry_after_ms, .. })
                    if code == "M_LIMIT_EXCEEDED" =>
                {
                    let pause = retry_after_ms.map_or(PAUSE, Duration::from_millis);
                    tokio::time::sleep(pause.clamp(PAUSE, JUDGING_TIME)).await;
                }
                said => return said,
            }
        }
    }

    async fn ask(&self, unsigned: &Unsigned) -> Result<Pdu, PolicyRefusal> {
        let (server, event) = (&unsigned.server.name, &unsigned.event);
        // Somebody waits for it, and an event that is soft-failed by mistake stays so.
        let mut client = self.federation.client().even_if_failing();
        let sender = event.sender().server_name();
        if self.federation.local_servers().is_local(sender) {
            client = client.speaking_as(sender);
        }
        let answer = client.policy_sign(server, event.json()).await;
        let refusal = match answer {
            Ok(Some(signature)) => match unsigned.signed(&signature) {
                Ok(signed) => return Ok(signed),
                Err(why) => {
                    tracing::info!(%server, event_id = %event.event_id(), %why, "a policy server's signature is of no use");
                    PolicyRefusal::BadSignature(server.clone())
                }
            },
            Ok(None) => PolicyRefusal::BadSignature(server.clone()),
            Err(RequestError::Remote(error)) if !error.status.is_server_error() => refused(server, &error),
            Err(error) => {
                tracing::info!(%server, room_id = %event.room_id(), %error, "a room's policy server gives no answer");
                PolicyRefusal::Unreachable(server.clone())
            }
        };
        tracing::debug!(event_id = %event.event_id(), %refusal, "an event lacks its policy server's signature");
        Err(refusal)
    }
}

fn note(verdicts: &mut Verdicts, event: &EventId, said: Option<Result<Pdu, PolicyRefusal>>) {
    match said {
        Some(Ok(signed)) => verdicts.recommend(signed),
        Some(Err(_)) | None => verdicts.refuse(event.to_owned()),
    }
}

fn refused(server: &ruma::ServerName, error: &RemoteError) -> PolicyRefusal {
    PolicyRefusal::Refused {
        server: server.to_owned(),
        errcode: error.errcode.clone(),
        error: error.error.clone(),
        retry_after_ms: error.body.get("retry_after_ms").and_then(serde_json::Value::as_u64),
    }
}
