//! Events whose signatures cannot be judged yet, because nobody who has the keys can be reached.
//! * Their sender hears that they arrived, and need not keep them: they are in the store until they are judged. To let
//!   the whole transaction fail instead would hold up all of that server's events for the sake of a third one's keys.
//! * They are tried again, all together: later each time, and soon again when another one comes. One that could not be
//!   judged in [`UNCHECKED_TIME_MS`] since it first came is given up, however often it was sent meanwhile.
//! * There are so many in all, and so many that one server gave us: who sends more hears that they were not taken.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use hearth_store::{Blob, Commit, CommitError, Order, StoreError};
use parking_lot::Mutex;
use quick_cache::sync::Cache;
use ruma::{EventId, OwnedServerName, RoomId, ServerName};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::Notify;

use super::{Inbound, TransactionError};
use crate::{client::Json, tables::UNCHECKED};

/// Events that wait for keys, of all servers: at the size that an event may have, 128 MiB on the disk.
pub const UNCHECKED_MAX: usize = 2_000;
/// Events that wait for keys, of those that one server gave us.
pub const UNCHECKED_OF_A_SERVER: usize = 200;
/// Given up after this time, in milliseconds: keys that cannot be had for a day are those of a server that is gone.
pub const UNCHECKED_TIME_MS: u64 = 24 * 60 * 60 * 1000;
/// How long until they are tried again for the first time; twice as long after each time in vain.
pub const UNCHECKED_FIRST: Duration = Duration::from_secs(30);
/// How long at most.
const UNCHECKED_LONGEST: Duration = Duration::from_secs(15 * 60);
/// Events of which it is remembered that they were given up: sent again, they are not kept again.
const GIVEN_UP_KEPT: usize = UNCHECKED_MAX;
/// Events that are tried in one go: as many as a transaction has.
const AT_ONCE: usize = 50;

/// By room, event and the server that gave it to us: one that cannot be checked must not keep out the same event of others.
type Key = (String, String, String);

/// Those that wait, by whom they were given.
pub(super) struct Unchecked {
    waiting: Mutex<Waiting>,
    given_up: Cache<Key, ()>,
    more: Arc<Notify>,
}

impl Default for Unchecked {
    fn default() -> Self {
        Self { waiting: Mutex::default(), given_up: Cache::new(GIVEN_UP_KEPT), more: Arc::default() }
    }
}

#[derive(Default)]
struct Waiting {
    by_key: BTreeMap<Key, OwnedServerName>,
    by_server: HashMap<OwnedServerName, usize>,
    is_worked_on: bool,
}

impl Waiting {
    /// Says whether there is room for it.
    fn add(&mut self, key: Key, server: &ServerName) -> bool {
        if self.by_key.contains_key(&key) {
            return true;
        }
        let of_server = self.by_server.get(server).copied().unwrap_or(0);
        if self.by_key.len() >= UNCHECKED_MAX || of_server >= UNCHECKED_OF_A_SERVER {
            return false;
        }
        self.by_server.insert(server.to_owned(), of_server + 1);
        self.by_key.insert(key, server.to_owned());
        true
    }

    fn remove(&mut self, key: &Key) {
        let Some(server) = self.by_key.remove(key) else { return };
        if let Some(count) = self.by_server.get_mut(&server) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.by_server.remove(&server);
            }
        }
    }
}

/// A row of [`UNCHECKED`] as JSON.
#[derive(Serialize, Deserialize)]
struct Row<'a> {
    origin: OwnedServerName,
    since_ms: u64,
    #[serde(borrow)]
    pdu: &'a RawValue,
}

impl Inbound {
    /// Keeps an event until it can be judged. Says whether there was room for it.
    pub(super) async fn keep_unchecked(
        &self,
        origin: &ServerName,
        room: &RoomId,
        event: &EventId,
        pdu: &Json,
    ) -> Result<bool, StoreError> {
        let key = (room.to_string(), event.to_string(), origin.to_string());
        let unchecked = &self.0.unchecked;
        if unchecked.given_up.get(&key).is_some() || !unchecked.waiting.lock().add(key.clone(), origin) {
            return Ok(false);
        }
        if let Some(Blob(row)) = self.0.rooms.store().get(&UNCHECKED, &key).await?
            && serde_json::from_slice::<Row<'_>>(&row).is_ok()
        {
            // Its time goes on.
            return Ok(true);
        }
        let since_ms = self.0.federation.keys().now_ms();
        let pdu: &RawValue = pdu.parse().map_err(corrupt)?;
        let row = serde_json::to_vec(&Row { origin: origin.to_owned(), since_ms, pdu }).map_err(corrupt)?;
        let mut commit = Commit::new();
        commit.put(&UNCHECKED, &key, &Blob(row.into()));
        if let Err(error) = self.write(commit).await {
            unchecked.waiting.lock().remove(&key);
            return Err(error);
        }
        tracing::debug!(%origin, room_id = %room, event_id = %event, "an event waits for keys to check it with");
        // The row of one that was sent before may have been done with just now.
        unchecked.waiting.lock().add(key, origin);
        unchecked.more.notify_one();
        self.try_unchecked();
        Ok(true)
    }

    /// Goes on with those that waited when the server was stopped.
    pub(super) async fn resume_unchecked(&self) -> Result<(), StoreError> {
        let rows = self.rows(UNCHECKED_MAX).await?;
        for (key, Blob(row)) in rows {
            if let Ok(row) = serde_json::from_slice::<Row<'_>>(&row) {
                self.0.unchecked.waiting.lock().add(key, &row.origin);
            }
        }
        self.try_unchecked();
        Ok(())
    }

    /// Sees to it that somebody tries them again, if there are any.
    fn try_unchecked(&self) {
        let mut waiting = self.0.unchecked.waiting.lock();
        if waiting.by_key.is_empty() || std::mem::replace(&mut waiting.is_worked_on, true) {
            return;
        }
        drop(waiting);
        let (inner, more) = (Arc::downgrade(&self.0), self.0.unchecked.more.clone());
        tokio::spawn(async move {
            let mut pause = UNCHECKED_FIRST;
            loop {
                if tokio::time::timeout(pause, more.notified()).await.is_ok() {
                    // What just came was just tried: its time is the first pause.
                    pause = UNCHECKED_FIRST;
                    tokio::time::sleep(pause).await;
                }
                let Some(inner) = inner.upgrade() else { return };
                let inbound = Inbound(inner);
                match inbound.round_of_unchecked().await {
                    Ok(true) => pause = UNCHECKED_FIRST,
                    Ok(false) => pause = pause.saturating_mul(2).min(UNCHECKED_LONGEST),
                    Err(error) => tracing::warn!(%error, "events that wait for keys cannot be tried"),
                }
                let mut waiting = inbound.0.unchecked.waiting.lock();
                if waiting.by_key.is_empty() {
                    waiting.is_worked_on = false;
                    return;
                }
            }
        });
    }

    /// Tries all of them once. Says whether any was judged.
    async fn round_of_unchecked(&self) -> Result<bool, TransactionError> {
        let rows = self.rows(UNCHECKED_MAX).await?;
        let mut by_server: BTreeMap<OwnedServerName, Vec<(Key, Json)>> = BTreeMap::new();
        let mut done = Vec::new();
        let now_ms = self.0.federation.keys().now_ms();
        for (key, Blob(row)) in rows {
            let Ok(json) = Json::read(row) else {
                done.push(key);
                continue;
            };
            match json.parse::<Row<'_>>() {
                Ok(row) if now_ms < row.since_ms.saturating_add(UNCHECKED_TIME_MS) => {
                    let pdu = json.part(row.pdu);
                    by_server.entry(row.origin).or_default().push((key, pdu));
                }
                Ok(_) => {
                    tracing::info!(room_id = key.0, event_id = key.1, "the keys of an event cannot be had");
                    self.0.unchecked.given_up.insert(key.clone(), ());
                    done.push(key);
                }
                Err(_) => done.push(key),
            }
        }
        for (server, events) in by_server {
            for some in events.chunks(AT_ONCE) {
                let pdus = some.iter().map(|(_, pdu)| pdu.clone()).collect();
                let judged = match self.judge(&server, pdus).await {
                    Ok(judged) => judged,
                    // The next time; what others sent can be tried now.
                    Err(error) => {
                        tracing::warn!(%server, %error, "events that wait for keys cannot be judged");
                        continue;
                    }
                };
                let unsure: HashSet<String> =
                    judged.unsure.iter().map(|(_, event, _)| event.to_string()).collect();
                done.extend(some.iter().map(|(key, _)| key).filter(|key| !unsure.contains(&key.1)).cloned());
            }
        }
        let any = !done.is_empty();
        for some in done.chunks(AT_ONCE) {
            let mut commit = Commit::new();
            some.iter().for_each(|key| commit.delete(&UNCHECKED, key));
            self.write(commit).await?;
            let mut waiting = self.0.unchecked.waiting.lock();
            some.iter().for_each(|key| waiting.remove(key));
        }
        Ok(any)
    }

    async fn rows(&self, limit: usize) -> Result<Vec<(Key, Blob)>, StoreError> {
        self.0.rooms.store().range(&UNCHECKED, UNCHECKED.all(), Order::Forward, limit).await
    }

    async fn write(&self, commit: Commit) -> Result<(), StoreError> {
        match self.0.rooms.store().commit(commit).await {
            // It has no preconditions.
            Ok(_) | Err(CommitError::Conflict) => Ok(()),
            Err(CommitError::Store(error)) => Err(error),
        }
    }
}

fn corrupt(error: serde_json::Error) -> StoreError {
    StoreError::Invalid(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_so_many_of_one_server_and_of_all() {
        let mut waiting = Waiting::default();
        let key =
            |server: usize, event: usize| ("!r".to_owned(), format!("${event}"), format!("s{server}.test"));
        let name = |server: usize| OwnedServerName::try_from(format!("s{server}.test")).unwrap();
        for event in 0..UNCHECKED_OF_A_SERVER {
            assert!(waiting.add(key(0, event), &name(0)));
        }
        assert!(!waiting.add(key(0, UNCHECKED_OF_A_SERVER), &name(0)));
        assert!(waiting.add(key(0, 0), &name(0)), "it waits already");
        assert!(waiting.add(key(1, 0), &name(1)), "others have room");
        waiting.remove(&key(0, 0));
        assert!(waiting.add(key(0, UNCHECKED_OF_A_SERVER), &name(0)));
        for server in 2.. {
            for event in 0..UNCHECKED_OF_A_SERVER {
                if !waiting.add(key(server, event), &name(server)) {
                    assert_eq!(waiting.by_key.len(), UNCHECKED_MAX);
                    return;
                }
            }
        }
    }
}
