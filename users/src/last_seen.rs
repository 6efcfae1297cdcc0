//! Where and when devices were last seen: noted in memory, written every few minutes.

use std::{collections::HashMap, time::Duration};

use hearth_store::{Commit, CommitError};
use parking_lot::Mutex;

use crate::{
    Authenticated, Users, UsersError,
    sessions::device_key,
    tables::{DEVICES, LAST_SEEN, LastSeen},
    users::ATTEMPTS,
};

/// How often what was noted is written.
pub(crate) const WRITE_EVERY: Duration = Duration::from_secs(300);
/// A device that makes many requests is noted once in this time.
const NOTE_EVERY_MS: u64 = 30_000;
/// Devices noted and not yet written; beyond that they wait for their next request.
const NOTED_MAX: usize = 50_000;
const ROWS_PER_COMMIT: usize = 400;

/// What was noted and not yet written, by (user, device).
#[derive(Default)]
pub(crate) struct Seen(Mutex<HashMap<(String, String), LastSeen>>);

impl Seen {
    pub(crate) fn of(&self, key: &(String, String)) -> Option<LastSeen> {
        self.0.lock().get(key).cloned()
    }

    pub(crate) fn forget(&self, key: &(String, String)) {
        self.0.lock().remove(key);
    }
}

impl Users {
    /// Notes that a device made a request from this address. Costs nothing but once in a while.
    pub fn seen(&self, who: &Authenticated, ip: std::net::IpAddr) {
        let now_ms = self.now_ms();
        if !who.token().is_due(now_ms, NOTE_EVERY_MS) {
            return;
        }
        let mut noted = self.inner.seen.0.lock();
        let key = device_key(who.user_id(), who.device_id());
        if noted.len() < NOTED_MAX || noted.contains_key(&key) {
            noted.insert(key, LastSeen { ip: ip.to_string(), at_ms: now_ms });
        }
    }

    /// Writes what was noted. Until it is written, it stays noted and is what is told.
    pub(crate) async fn write_last_seen(&self) -> Result<(), UsersError> {
        let noted: Vec<_> =
            self.inner.seen.0.lock().iter().map(|(key, seen)| (key.clone(), seen.clone())).collect();
        for batch in noted.chunks(ROWS_PER_COMMIT) {
            self.write_batch(batch).await?;
            let mut noted = self.inner.seen.0.lock();
            for (key, seen) in batch {
                if noted.get(key) == Some(seen) {
                    noted.remove(key);
                }
            }
        }
        Ok(())
    }

    async fn write_batch(&self, batch: &[((String, String), LastSeen)]) -> Result<(), UsersError> {
        let keys: Vec<_> = batch.iter().map(|(key, _)| key.clone()).collect();
        for _ in 0..ATTEMPTS {
            let devices = self.inner.store.multi_get(&DEVICES, &keys).await?;
            let mut commit = Commit::new();
            for ((key, seen), device) in batch.iter().zip(devices) {
                // One that was removed meanwhile stays removed.
                if let Some(device) = device {
                    commit.expect(&DEVICES, key, &device);
                    commit.put(&LAST_SEEN, key, seen);
                }
            }
            if commit.is_empty() {
                return Ok(());
            }
            match self.inner.store.commit(commit).await {
                Ok(_) => return Ok(()),
                Err(CommitError::Conflict) => {}
                Err(CommitError::Store(error)) => return Err(error.into()),
            }
        }
        Err(UsersError::Busy)
    }
}
