//! From what a peer handed over to events whose signatures hold: read, keys gathered and looked up once, checked.
//! * Each event stands for itself: a bad one is named and spoils no other.
//! * A few events are checked at once; many in chunks on threads of their own, as many at a time as there are cores,
//!   whoever asks. Waiting for keys holds no such thread.
//! * Nothing is known of an event that was refused but, where it could be computed, its ID, and whether it was refused
//!   only because nobody could be asked for keys.

use std::sync::Arc;

use futures_util::{StreamExt as _, stream};
use hearth_dag::{ReceivedPdu, Rejection, RoomRules, ServerKeys, VerifiedPdu};
use hearth_rooms::on_a_thread;
use hearth_store::StoreError;
use ruma::{OwnedEventId, ServerName};
use tokio::sync::Semaphore;

use crate::{client::Json, federation::Federation, key_store::KeyNeeds};

/// So many events are checked where they came in: a thread of their own would cost more than it saves.
const CHECKED_AT_ONCE: usize = 4;
/// Events of which one thread takes care in one go, at least.
const CHUNK: usize = 16;
/// Chunks that a large answer is divided into, at least if it has the events for them.
const CHUNKS: usize = 32;

/// An event that is not to be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct BadPdu {
    /// None if what came is no event at all.
    pub event_id: Option<OwnedEventId>,
    /// What is wrong with it.
    pub why: Rejection,
    /// The keys to check it with could not be had at the moment: it may be good, and can be judged later.
    pub unsure: bool,
}

/// An event as it came, with the rules of the room that it says to belong to.
pub type Raw = (&'static RoomRules, Json);

type Read = Result<(&'static RoomRules, ReceivedPdu), BadPdu>;

/// Threads that check events, for a whole server.
#[derive(Debug, Clone)]
pub(crate) struct Checkers(Arc<Semaphore>);

impl Checkers {
    /// As many as there are cores.
    pub(crate) fn new() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self(Arc::new(Semaphore::new(cores)))
    }

    /// Does the same with all items, in chunks where they are many. What comes out has the order of what went in.
    async fn map<A, B>(
        &self,
        items: Vec<A>,
        one: impl Fn(A) -> B + Send + Sync + 'static,
    ) -> Result<Vec<B>, StoreError>
    where
        A: Send + 'static,
        B: Send + 'static,
    {
        if items.len() <= CHECKED_AT_ONCE {
            return Ok(items.into_iter().map(one).collect());
        }
        let size = items.len().div_ceil(CHUNKS).max(CHUNK);
        let (mut chunks, mut items) = (Vec::new(), items.into_iter());
        loop {
            let chunk: Vec<A> = items.by_ref().take(size).collect();
            if chunk.is_empty() {
                break;
            }
            chunks.push(chunk);
        }
        let one = Arc::new(one);
        let work = chunks.into_iter().map(|chunk| {
            let (one, places) = (one.clone(), self.0.clone());
            async move {
                let place = places.acquire_owned().await;
                on_a_thread(move || {
                    let done: Vec<B> = chunk.into_iter().map(|item| one(item)).collect();
                    drop(place);
                    done
                })
                .await
            }
        });
        let mut work = stream::iter(work).buffered(CHUNKS);
        let mut all = Vec::new();
        while let Some(chunk) = work.next().await {
            all.extend(chunk?);
        }
        Ok(all)
    }
}

impl Federation {
    /// Events out of the answer of a server that we asked: reads them, looks up all keys that they need at once, checks
    /// signatures and hashes. What comes out has the order of what went in.
    pub async fn verify_answer(
        &self,
        server: &ServerName,
        rules: &'static RoomRules,
        raw: Vec<Json>,
    ) -> Result<Vec<Result<VerifiedPdu, BadPdu>>, StoreError> {
        let read = self.checkers().map(raw, move |pdu| read(rules, &pdu)).await?;
        self.verify_read(read, KeyNeeds::new().asked_of(server)).await
    }

    /// The same for events that a server gave us: it is because of that one that their keys are looked up.
    pub async fn verify_each_of(
        &self,
        server: &ServerName,
        raw: Vec<Raw>,
    ) -> Result<Vec<Result<VerifiedPdu, BadPdu>>, StoreError> {
        let read = self.checkers().map(raw, |(rules, pdu)| read(rules, &pdu)).await?;
        self.verify_read(read, KeyNeeds::new().because_of(server)).await
    }

    /// The same for the answer of a server that we asked, where it was read already.
    pub async fn verify_received(
        &self,
        server: &ServerName,
        events: Vec<(&'static RoomRules, ReceivedPdu)>,
    ) -> Result<Vec<Result<VerifiedPdu, BadPdu>>, StoreError> {
        let needs = KeyNeeds::new().asked_of(server);
        self.verify_read(events.into_iter().map(Ok).collect(), needs).await
    }

    async fn verify_read(
        &self,
        read: Vec<Read>,
        mut needs: KeyNeeds,
    ) -> Result<Vec<Result<VerifiedPdu, BadPdu>>, StoreError> {
        for (rules, pdu) in read.iter().flatten() {
            needs.add_pdu(rules, pdu);
        }
        let since_ms = self.keys().now_ms();
        let keys = self.keys().keys_for(&needs).await?;
        let mut unsure = Vec::new();
        if self.keys().could_come_later(&needs, since_ms).await? {
            for read in &read {
                let Ok((rules, pdu)) = read else {
                    unsure.push(false);
                    continue;
                };
                let mut needs = KeyNeeds::new();
                needs.add_pdu(rules, pdu);
                unsure.push(self.keys().could_come_later(&needs, since_ms).await?);
            }
        }
        let mut checked = self.checkers().map(read, move |read| check(read, &keys)).await?;
        for (checked, unsure) in checked.iter_mut().zip(unsure) {
            if let Err(bad) = checked {
                bad.unsure = unsure && matches!(bad.why, Rejection::MissingSignature { .. });
            }
        }
        Ok(checked)
    }
}

fn read(rules: &'static RoomRules, pdu: &Json) -> Read {
    match ReceivedPdu::parse(rules, pdu.get()) {
        Ok(pdu) => Ok((rules, pdu)),
        Err(why) => Err(BadPdu { event_id: None, why, unsure: false }),
    }
}

fn check(read: Read, keys: &ServerKeys) -> Result<VerifiedPdu, BadPdu> {
    let (rules, pdu) = read?;
    let event_id = pdu.pdu().event_id().to_owned();
    pdu.verify(rules, keys).map_err(|why| BadPdu { event_id: Some(event_id), why, unsure: false })
}
