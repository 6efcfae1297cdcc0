//! Transactions: once each, one after another for each server.
//! * A repeat gets the first answer; while that is being worked on, it waits for it. Who asked may go away meanwhile.
//! * Answers are remembered in memory. After a restart a repeat is worked on again, which changes nothing: events that
//!   are held are answered as before.
//! * Transactions that wait are bounded for each server, and for all of them in number and bytes. Of the bytes each server
//!   has a share.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use bytes::Bytes;
use hearth_store::StoreError;
use parking_lot::Mutex;
use quick_cache::sync::Cache;
use ruma::{OwnedEventId, OwnedServerName, ServerName};
use serde::Deserialize;
use serde_json::{json, value::RawValue};
use tokio::sync::watch;

use super::Inbound;
use crate::{
    client::Json,
    shares::{Share, Shares},
};

/// Events of a transaction.
pub const PDUS_MAX: usize = 50;
/// What is not kept of a transaction.
pub const EDUS_MAX: usize = 100;
/// Transactions of one server at a time, those that wait included.
pub const WAITING_PER_ORIGIN: usize = 4;
/// Transactions of all servers at a time.
const WAITING_MAX: usize = 1_000;
/// Bytes of all of them, see [`Shares`].
pub const BYTES_WAITING_MAX: usize = 256 * 1024 * 1024;
/// Answers that are remembered.
const ANSWERS_KEPT: usize = 10_000;
/// Bytes of a transaction's id.
const TXN_ID_BYTES: usize = 255;

/// Why a transaction is not taken. It can be sent again, but for the first three.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TransactionError {
    /// It is no transaction.
    #[error("{0}")]
    Malformed(String),
    /// More than one may hold.
    #[error("a transaction holds at most {PDUS_MAX} events and {EDUS_MAX} EDUs")]
    TooMany,
    /// It says to come from another server than the one that signed the request.
    #[error("the transaction says to come from another server")]
    OtherOrigin,
    /// The server has too many under way, or everybody has.
    #[error("too many transactions are being worked on")]
    Busy,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

type Key = (OwnedServerName, String);
type Answer = Result<Bytes, TransactionError>;

/// Those that are being worked on, and the answers of before.
pub(super) struct Transactions {
    running: Mutex<Running>,
    bytes: Shares<OwnedServerName>,
    answers: Cache<Key, Bytes>,
}

#[derive(Default)]
struct Running {
    by_id: HashMap<Key, watch::Receiver<Option<Answer>>>,
    by_origin: HashMap<OwnedServerName, Turns>,
}

/// Whose turn it is among the transactions of one server.
#[derive(Default)]
struct Turns {
    waiting: usize,
    lane: Arc<tokio::sync::Mutex<()>>,
}

impl Transactions {
    pub(super) fn new() -> Self {
        let (bytes, answers) = (Shares::new(BYTES_WAITING_MAX), Cache::new(ANSWERS_KEPT));
        Self { running: Mutex::default(), bytes, answers }
    }
}

/// The body of a transaction.
#[derive(Deserialize)]
struct Transaction<'a> {
    origin: Option<OwnedServerName>,
    #[serde(borrow, default)]
    pdus: Vec<&'a RawValue>,
    #[serde(borrow, default)]
    edus: Vec<&'a RawValue>,
}

/// What became of the events of a transaction: nothing, or what went wrong.
pub(super) type Results = BTreeMap<OwnedEventId, Option<String>>;

impl Inbound {
    /// Takes a transaction in, and gives the answer to it.
    pub async fn transaction(&self, origin: &ServerName, txn_id: &str, body: Bytes) -> Answer {
        if txn_id.len() > TXN_ID_BYTES {
            return Err(TransactionError::Malformed("the transaction's id is too long".to_owned()));
        }
        let key = (origin.to_owned(), txn_id.to_owned());
        let mut done = {
            let mut running = self.0.transactions.running.lock();
            // Under the lock: an answer is remembered before its transaction is no longer under way.
            if let Some(answer) = self.0.transactions.answers.get(&key) {
                return Ok(answer);
            }
            match running.by_id.get(&key) {
                Some(done) => done.clone(),
                None => self.start(&mut running, key, body)?,
            }
        };
        match done.wait_for(Option::is_some).await {
            Ok(answer) => answer.clone().unwrap_or(Err(TransactionError::Busy)),
            // The task ended without an answer.
            Err(_) => Err(StoreError::Closed.into()),
        }
    }

    fn start(
        &self,
        running: &mut Running,
        key: Key,
        body: Bytes,
    ) -> Result<watch::Receiver<Option<Answer>>, TransactionError> {
        let waiting = running.by_origin.get(&key.0).map_or(0, |turns| turns.waiting);
        if running.by_id.len() >= WAITING_MAX || waiting >= WAITING_PER_ORIGIN {
            return Err(TransactionError::Busy);
        }
        let bytes = self.0.transactions.bytes.take(key.0.clone(), body.len());
        let bytes = bytes.ok_or(TransactionError::Busy)?;
        let turns = running.by_origin.entry(key.0.clone()).or_default();
        turns.waiting += 1;
        let lane = turns.lane.clone();
        let (sender, receiver) = watch::channel(None);
        running.by_id.insert(key.clone(), receiver.clone());
        let under_way = UnderWay { inbound: self.clone(), key, _bytes: bytes };
        tokio::spawn(async move {
            let _turn = lane.lock().await;
            let (inbound, key) = (&under_way.inbound, &under_way.key);
            let answer = inbound.work(&key.0, body).await;
            if let Ok(answer) = &answer {
                inbound.0.transactions.answers.insert(key.clone(), answer.clone());
            }
            sender.send_replace(Some(answer));
        });
        Ok(receiver)
    }

    async fn work(&self, origin: &ServerName, body: Bytes) -> Answer {
        let json = Json::read(body).map_err(|error| TransactionError::Malformed(error.to_string()))?;
        let transaction: Transaction<'_> =
            json.parse().map_err(|error| TransactionError::Malformed(error.to_string()))?;
        if transaction.origin.as_deref().is_some_and(|named| named != origin) {
            return Err(TransactionError::OtherOrigin);
        }
        if transaction.pdus.len() > PDUS_MAX || transaction.edus.len() > EDUS_MAX {
            return Err(TransactionError::TooMany);
        }
        let pdus = transaction.pdus.iter().map(|pdu| json.part(pdu)).collect();
        let results = self.take_events(origin, pdus).await?;
        self.take_edus(origin, &transaction.edus).await?;
        let results: BTreeMap<&OwnedEventId, _> = results
            .iter()
            .map(|(event, error)| match error {
                None => (event, json!({})),
                Some(error) => (event, json!({ "error": error })),
            })
            .collect();
        Ok(json!({ "pdus": results }).to_string().into())
    }
}

/// A transaction that is being worked on; it is not any more when this is dropped.
struct UnderWay {
    inbound: Inbound,
    key: Key,
    _bytes: Share<OwnedServerName>,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut running = self.inbound.0.transactions.running.lock();
        running.by_id.remove(&self.key);
        let Some(turns) = running.by_origin.get_mut(&self.key.0) else { return };
        turns.waiting = turns.waiting.saturating_sub(1);
        if turns.waiting == 0 {
            running.by_origin.remove(&self.key.0);
        }
    }
}
