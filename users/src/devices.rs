//! Devices of a user.
//! * Removing a device removes its tokens and what waits for it in the same commit, and is in force when it is answered.
//!   What came for it meanwhile goes right after.

use hearth_store::{Commit, CommitError, Order, StoreError};
use ruma::{DeviceId, OwnedDeviceId, UserId};

use crate::{
    Users, UsersError,
    sessions::{delete_tokens, device_key},
    tables::{DEVICES, DeviceRecord, LAST_SEEN, LastSeen},
    users::ATTEMPTS,
};

/// The longest display name that is kept of a device; what is longer is cut.
pub const DISPLAY_NAME_MAX: usize = 255;
/// Devices listed of one user.
pub const DEVICES_MAX: usize = 5_000;
/// Devices removed in one commit.
const BATCH: usize = 50;

/// A device as its owner sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its id.
    pub device_id: OwnedDeviceId,
    /// Its name.
    pub display_name: Option<String>,
    /// The address it last came from.
    pub last_seen_ip: Option<String>,
    /// When, in milliseconds since 1970.
    pub last_seen_ts: Option<u64>,
}

/// Why a device could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The user has no such device.
    #[error("there is no such device")]
    Unknown,
    /// The store.
    #[error(transparent)]
    Users(#[from] UsersError),
}

impl From<StoreError> for DeviceError {
    fn from(error: StoreError) -> Self {
        Self::Users(error.into())
    }
}

impl Users {
    /// The user's devices.
    pub async fn devices(&self, user: &UserId) -> Result<Vec<Device>, StoreError> {
        let rows = self.device_rows(user, DEVICES_MAX).await?;
        let keys: Vec<_> = rows.iter().map(|(key, _)| key.clone()).collect();
        let seen = self.last_seen(&keys).await?;
        let devices = rows.into_iter().zip(seen);
        Ok(devices.map(|((key, record), seen)| shown(key, record, seen)).collect())
    }

    /// One device of the user.
    pub async fn device(&self, user: &UserId, device: &DeviceId) -> Result<Option<Device>, StoreError> {
        let key = device_key(user, device);
        let Some(record) = self.inner.store.get(&DEVICES, &key).await? else { return Ok(None) };
        let seen = self.last_seen(std::slice::from_ref(&key)).await?.pop().flatten();
        Ok(Some(shown(key, record, seen)))
    }

    /// Renames a device.
    pub async fn rename_device(
        &self,
        user: &UserId,
        device: &DeviceId,
        display_name: Option<&str>,
    ) -> Result<(), DeviceError> {
        let key = device_key(user, device);
        for _ in 0..ATTEMPTS {
            let Some(before) = self.inner.store.get(&DEVICES, &key).await? else {
                return Err(DeviceError::Unknown);
            };
            let after = DeviceRecord { display_name: display_name.map(shortened), ..before.clone() };
            let mut commit = Commit::new();
            commit.expect(&DEVICES, &key, &before);
            commit.put(&DEVICES, &key, &after);
            match self.inner.store.commit(commit).await {
                Ok(_) => return Ok(()),
                Err(CommitError::Conflict) => {}
                Err(CommitError::Store(error)) => return Err(error.into()),
            }
        }
        Err(UsersError::Busy.into())
    }

    /// Logs devices out and removes them. Unknown ones are passed over. Without any device a user is offline.
    pub async fn delete_devices(&self, user: &UserId, devices: &[OwnedDeviceId]) -> Result<(), UsersError> {
        for batch in devices.chunks(BATCH) {
            self.delete_batch(user, batch).await?;
        }
        if self.device_rows(user, 1).await?.is_empty() {
            self.presence().gone(user);
        }
        Ok(())
    }

    /// Logs the user out everywhere, but on `kept`.
    pub async fn delete_devices_except(
        &self,
        user: &UserId,
        kept: Option<&DeviceId>,
    ) -> Result<(), UsersError> {
        loop {
            let rows = self.device_rows(user, DEVICES_MAX).await?;
            let devices: Vec<OwnedDeviceId> = rows
                .into_iter()
                .map(|((_, device), _)| OwnedDeviceId::from(device))
                .filter(|device| Some(&**device) != kept)
                .collect();
            if devices.is_empty() {
                return Ok(());
            }
            self.delete_devices(user, &devices).await?;
        }
    }

    async fn delete_batch(&self, user: &UserId, devices: &[OwnedDeviceId]) -> Result<(), UsersError> {
        let mut keys: Vec<_> = devices.iter().map(|device| device_key(user, device)).collect();
        keys.sort();
        keys.dedup();
        for _ in 0..ATTEMPTS {
            let rows = self.inner.store.multi_get(&DEVICES, &keys).await?;
            let watermark = self.inner.store.watermark();
            let mut commit = Commit::new();
            let mut tokens = Vec::new();
            for (key, row) in keys.iter().zip(rows) {
                let Some(row) = row else { continue };
                commit.expect(&DEVICES, key, &row);
                commit.delete(&DEVICES, key);
                commit.delete(&LAST_SEEN, key);
                self.drop_device_messages(key, watermark, &mut commit).await?;
                delete_tokens(&row, &mut commit);
                tokens.extend(row.access);
            }
            if commit.is_empty() {
                return Ok(());
            }
            // Where the removal stands among the messages.
            commit.position();
            let removed = keys.clone();
            let done = self.commit_then(commit, move |users, outcome| {
                tokens.iter().for_each(|hash| users.forget_token(hash));
                users.recount_device_messages(&removed);
                if outcome.is_ok() {
                    removed.iter().for_each(|key| users.inner.seen.forget(key));
                }
            });
            match done.await {
                Ok(committed) => return self.clear_inboxes(&keys, committed.last()).await,
                Err(CommitError::Conflict) => {}
                Err(CommitError::Store(error)) => return Err(error.into()),
            }
        }
        Err(UsersError::Busy)
    }

    async fn device_rows(
        &self,
        user: &UserId,
        limit: usize,
    ) -> Result<Vec<((String, String), DeviceRecord)>, StoreError> {
        let range = DEVICES.prefix(&user.as_str().to_owned());
        self.inner.store.range(&DEVICES, range, Order::Forward, limit).await
    }

    /// When devices were last seen. What is noted is asked for first: it stays so until it is written.
    async fn last_seen(&self, keys: &[(String, String)]) -> Result<Vec<Option<LastSeen>>, StoreError> {
        let noted: Vec<_> = keys.iter().map(|key| self.inner.seen.of(key)).collect();
        let written = self.inner.store.multi_get(&LAST_SEEN, keys).await?;
        Ok(noted.into_iter().zip(written).map(|(noted, written)| noted.or(written)).collect())
    }
}

fn shown(key: (String, String), record: DeviceRecord, seen: Option<LastSeen>) -> Device {
    Device {
        device_id: key.1.into(),
        display_name: record.display_name,
        last_seen_ts: seen.as_ref().map(|seen| seen.at_ms),
        last_seen_ip: seen.map(|seen| seen.ip),
    }
}

/// A display name of at most `DISPLAY_NAME_MAX` bytes.
pub(crate) fn shortened(name: &str) -> String {
    name[..name.floor_char_boundary(DISPLAY_NAME_MAX)].to_owned()
}
