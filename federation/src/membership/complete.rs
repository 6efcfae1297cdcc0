//! Members that were left out of a join, fetched and taken in.
//! * What is to be done is in the store (`partial_rooms`); this loop only remembers when to try again what failed.
//! * The server that let us in is asked first, then others of the room. A round that brings nothing is followed by
//!   another, later each time, for as long as we are in the room.

use std::{collections::HashMap, time::Duration};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use hearth_dag::{ReceivedPdu, RoomRules, VerifiedPdu};
use hearth_rooms::{CompleteError, PartialRoom, WriteError, on_a_thread};
use hearth_store::StoreError;
use ruma::{OwnedRoomId, OwnedServerName, ServerName};
use tokio::time::Instant;

use super::Parts;
use crate::client::{Json, RequestError};

/// Rooms that are completed at the same time.
pub const COMPLETIONS_AT_ONCE: usize = 4;
/// How long to wait after the first round that brought nothing.
pub const RETRY_FIRST: Duration = Duration::from_secs(5);
/// How long to wait at most.
pub const RETRY_LONGEST: Duration = Duration::from_secs(600);
/// Servers that are asked in one round.
const SERVERS_OF_A_ROUND: usize = 5;
/// The store is looked at anew after this time, even if nobody says that there is anything.
const LOOK_AGAIN: Duration = Duration::from_secs(300);

/// A room that could not be completed yet.
#[derive(Clone, Copy)]
struct Failed {
    rounds: u32,
    next: Instant,
}

impl Failed {
    fn after(rounds: u32) -> Self {
        let wait = RETRY_FIRST.saturating_mul(1 << (rounds - 1).min(16)).min(RETRY_LONGEST);
        Self { rounds, next: Instant::now() + wait }
    }
}

/// What a round came to.
#[derive(Debug, thiserror::Error)]
enum Incomplete {
    #[error("no server of the room gave its members: {0}")]
    Nobody(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Completes rooms for as long as the server runs.
pub(super) async fn complete_rooms(parts: Parts) {
    let mut failed: HashMap<OwnedRoomId, Failed> = HashMap::new();
    let mut busy: Vec<OwnedRoomId> = Vec::new();
    let mut work = FuturesUnordered::new();
    loop {
        let open = match parts.rooms.partial_rooms().await {
            Ok(open) => open,
            Err(error) => {
                tracing::warn!(%error, "rooms without all members cannot be read");
                Vec::new()
            }
        };
        failed.retain(|room, _| open.contains(room));
        let now = Instant::now();
        for room in &open {
            let is_due = failed.get(room).is_none_or(|failed| failed.next <= now);
            if is_due && !busy.contains(room) && work.len() < COMPLETIONS_AT_ONCE {
                busy.push(room.clone());
                let (parts, room) = (parts.clone(), room.clone());
                let rounds = failed.get(&room).map_or(0, |failed| failed.rounds);
                // Of its own, so that reading a large answer keeps nobody waiting.
                work.push(async move {
                    let done = AbortOnDrop(tokio::spawn({
                        let room = room.clone();
                        async move { parts.complete(&room, rounds as usize).await }
                    }));
                    (room, done.done().await)
                });
            }
        }
        let waiting = failed.iter().filter(|(room, _)| !busy.contains(room));
        let next = waiting.map(|(_, failed)| failed.next).min();
        let next = next.unwrap_or(now + LOOK_AGAIN).min(now + LOOK_AGAIN);
        tokio::select! {
            biased;
            Some((room, done)) = work.next() => {
                busy.retain(|busy| *busy != room);
                parts.completed.notify_waiters();
                match done {
                    Some(Ok(())) => drop(failed.remove(&room)),
                    Some(Err(error)) => {
                        let again = Failed::after(failed.get(&room).map_or(0, |failed| failed.rounds).saturating_add(1));
                        tracing::info!(room_id = %room, rounds = again.rounds, %error, "a room still lacks members");
                        failed.insert(room, again);
                    }
                    None => drop(failed.insert(room, Failed::after(u32::MAX))),
                }
            }
            () = parts.partial.notified() => {}
            () = tokio::time::sleep_until(next), if work.len() < COMPLETIONS_AT_ONCE => {}
        }
    }
}

/// A task that ends with whoever waits for it.
struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> AbortOnDrop<T> {
    /// None if it panicked.
    async fn done(mut self) -> Option<T> {
        (&mut self.0).await.ok()
    }
}

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Parts {
    /// One round: asks servers for the members of a room until one gives them.
    async fn complete(&self, room: &OwnedRoomId, round: usize) -> Result<(), Incomplete> {
        let Some(partial) = self.rooms.partial_room(room).await? else { return Ok(()) };
        let mut problem = String::from("nobody is known to be there");
        for server in self.servers_of_round(&partial, round) {
            match self.complete_by(&partial, &server).await {
                Ok(()) => {
                    tracing::debug!(room_id = %room, %server, "all members of a room are known");
                    return Ok(());
                }
                Err(ByServer::Store(error)) => return Err(error.into()),
                Err(error) => {
                    tracing::debug!(room_id = %room, %server, %error, "a server did not give a room's members");
                    problem = format!("{server}: {error}");
                }
            }
        }
        Err(Incomplete::Nobody(problem))
    }

    /// The server that let us in, and others, other ones in each round.
    fn servers_of_round(&self, partial: &PartialRoom, round: usize) -> Vec<OwnedServerName> {
        let others: Vec<&OwnedServerName> = partial
            .servers
            .iter()
            .filter(|server| {
                **server != partial.origin
                    && !self.federation.local_servers().is_local(server)
                    && self.federation.access().check(server).is_ok()
            })
            .collect();
        let some = SERVERS_OF_A_ROUND - 1;
        let skip = if others.is_empty() { 0 } else { round.saturating_mul(some) % others.len() };
        let turned = others[skip..].iter().chain(&others[..skip]).take(some);
        std::iter::once(partial.origin.clone()).chain(turned.map(|server| (*server).clone())).collect()
    }

    async fn complete_by(&self, partial: &PartialRoom, server: &OwnedServerName) -> Result<(), ByServer> {
        let Some(info) = self.rooms.room(&partial.room_id).await? else { return Ok(()) };
        let answer = self.federation.client().state(server, &partial.room_id, &partial.join).await?;
        let state = self.believed(&info, server, answer.pdus).await?;
        let auth_chain = self.believed(&info, server, answer.auth_chain).await?;
        match self.rooms.complete_state(&partial.room_id, state, auth_chain).await {
            Ok(()) => Ok(()),
            Err(CompleteError::Write(WriteError::Store(error))) => Err(error.into()),
            Err(error) => Err(error.into()),
        }
    }

    /// Those events that can be believed of what a server told. What is held already was checked when it came.
    pub(crate) async fn believed(
        &self,
        info: &hearth_rooms::RoomInfo,
        server: &ServerName,
        told: Vec<Json>,
    ) -> Result<Vec<VerifiedPdu>, StoreError> {
        let rules: &'static RoomRules = info.rules;
        let read = on_a_thread(move || {
            told.iter().filter_map(|pdu| ReceivedPdu::parse(rules, pdu.get()).ok()).collect::<Vec<_>>()
        });
        let read = read.await?;
        let (mut believed, mut new) = (Vec::with_capacity(read.len()), Vec::new());
        for pdu in read {
            match self.rooms.events().by_id(info, pdu.pdu().event_id()).await? {
                Some(held) => believed.push(VerifiedPdu::built_here(held.pdu.clone())),
                None => new.push((rules, pdu)),
            }
        }
        for verified in self.federation.verify_received(server, new).await? {
            match verified {
                Ok(verified) => believed.push(verified),
                Err(error) => {
                    tracing::debug!(event_id = ?error.event_id, why = %error.why, "a state event is not believed");
                }
            }
        }
        Ok(believed)
    }
}

/// Why a server's answer does not complete a room.
#[derive(Debug, thiserror::Error)]
enum ByServer {
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error(transparent)]
    Complete(#[from] CompleteError),
    #[error(transparent)]
    Store(#[from] StoreError),
}
