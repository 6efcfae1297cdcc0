//! Devices and signing keys of other servers' users, as their servers tell of them.
//! * A list of devices is built from changes with numbers. Where a change was missed, or more came than is kept, the list
//!   is marked stale: whoever needs it asks the user's server for all of it first.
//! * A list goes on only while a room is shared with the user: whether that is so, the reader has to know.
//! * Nothing here is believed to be true: signatures are checked by the clients that use the keys.

use hearth_store::{Blob, Commit, CommitError, Positioned, StoreError};
use ruma::{DeviceId, UserId};
use serde_json::{json, value::RawValue};

use crate::{
    Users, UsersError,
    devices::shortened,
    tables::{REMOTE_DEVICE_LISTS, REMOTE_DEVICES, REMOTE_SIGNING_KEYS, RemoteDeviceList},
    users::ATTEMPTS,
};

/// Devices that are kept of one user of another server.
pub const REMOTE_DEVICES_MAX: u32 = 1_000;
/// Bytes of a device's keys, or of a signing key.
const KEYS_MAX: usize = 64 * 1024;
/// Bytes of a device's id.
const DEVICE_ID_MAX: usize = 255;

/// A change of a device, `m.device_list_update`.
#[derive(Debug)]
pub struct DeviceListUpdate<'a> {
    /// Whose device.
    pub user: &'a UserId,
    /// Which.
    pub device: &'a DeviceId,
    /// Its name.
    pub display_name: Option<&'a str>,
    /// The change's number.
    pub stream_id: u64,
    /// The changes that come before it.
    pub prev_ids: &'a [u64],
    /// The device is gone.
    pub deleted: bool,
    /// Its keys, a JSON object.
    pub keys: Option<&'a RawValue>,
}

/// A change of a user's cross-signing keys, `m.signing_key_update`.
#[derive(Debug)]
pub struct SigningKeyUpdate<'a> {
    /// Whose.
    pub user: &'a UserId,
    /// The master key, a JSON object.
    pub master: Option<&'a RawValue>,
    /// The key that signs the user's devices, a JSON object.
    pub self_signing: Option<&'a RawValue>,
}

impl Users {
    /// Notes a change of a device. One that comes late, or that cannot be kept, makes the list stale.
    pub async fn note_remote_device(&self, update: &DeviceListUpdate<'_>) -> Result<(), UsersError> {
        let user = update.user.as_str().to_owned();
        let device = (user.clone(), update.device.as_str().to_owned());
        for _ in 0..ATTEMPTS {
            let before = self.inner.store.get(&REMOTE_DEVICE_LISTS, &user).await?;
            let mut list = before.as_ref().map(|row| row.value.clone()).unwrap_or_default();
            let known = before.as_ref().map(|_| list.stream_id);
            if known == Some(update.stream_id) {
                return Ok(());
            }
            let mut commit = Commit::new();
            // Late, or its server counts anew since it was set back: what holds now, only that server knows.
            if known > Some(update.stream_id) {
                if list.is_stale {
                    return Ok(());
                }
                list.is_stale = true;
            } else {
                // The first change that a server tells us of a user names none before it, whatever devices there are.
                let follows =
                    !update.prev_ids.is_empty() && update.prev_ids.iter().all(|prev| Some(*prev) == known);
                list.is_stale |= !follows;
                list.stream_id = update.stream_id;
                let held = device.1.len() <= DEVICE_ID_MAX
                    && self.inner.store.get(&REMOTE_DEVICES, &device).await?.is_some();
                change_device(&mut list, &mut commit, &device, held, update);
            }
            match &before {
                Some(before) => commit.expect(&REMOTE_DEVICE_LISTS, &user, before),
                None => commit.expect_absent(&REMOTE_DEVICE_LISTS, &user),
            }
            let position = commit.position();
            commit.put(&REMOTE_DEVICE_LISTS, &user, &Positioned { position, value: list });
            match self.inner.store.commit(commit).await {
                Ok(_) => return Ok(()),
                Err(CommitError::Conflict) => {}
                Err(CommitError::Store(error)) => return Err(error.into()),
            }
        }
        Err(UsersError::Busy)
    }

    /// Notes new cross-signing keys. What is too large is passed over.
    pub async fn note_remote_signing_keys(&self, update: &SigningKeyUpdate<'_>) -> Result<(), UsersError> {
        let mut commit = Commit::new();
        for (usage, key) in [("master", update.master), ("self_signing", update.self_signing)] {
            if let Some(key) = key.filter(|key| key.get().len() <= KEYS_MAX) {
                let position = commit.position();
                let value = Blob(key.get().to_owned().into());
                let row = (update.user.as_str().to_owned(), usage.to_owned());
                commit.put(&REMOTE_SIGNING_KEYS, &row, &Positioned { position, value });
            }
        }
        if !commit.is_empty() {
            self.inner.store.commit(commit).await?;
        }
        Ok(())
    }

    /// How far the devices of a user of another server are known.
    pub async fn remote_device_list(&self, user: &UserId) -> Result<Option<RemoteDeviceList>, StoreError> {
        let row = self.inner.store.get(&REMOTE_DEVICE_LISTS, &user.as_str().to_owned()).await?;
        Ok(row.map(|row| row.value))
    }
}

/// The row of a device that changed, and what that does to its list.
fn change_device(
    list: &mut RemoteDeviceList,
    commit: &mut Commit,
    device: &(String, String),
    held: bool,
    update: &DeviceListUpdate<'_>,
) {
    if update.deleted {
        if held {
            commit.delete(&REMOTE_DEVICES, device);
            list.devices = list.devices.saturating_sub(1);
        }
    } else if (held || list.devices < REMOTE_DEVICES_MAX)
        && device.1.len() <= DEVICE_ID_MAX
        && update.keys.is_none_or(|keys| keys.get().len() <= KEYS_MAX)
    {
        let name = update.display_name.map(shortened);
        let shown = json!({ "device_display_name": name, "keys": update.keys });
        commit.put(&REMOTE_DEVICES, device, &Blob(shown.to_string().into()));
        list.devices += u32::from(!held);
    } else {
        list.is_stale = true;
    }
}
