//! Devices and signing keys of other servers' users, as their servers tell of them.
//! * A list of devices is built from changes with numbers. Where a change was missed, or more came than is kept, the list
//!   is marked stale: whoever needs it asks the user's server for all of it first.
//! * A list goes on only while a room is shared with the user: whether that is so, the caller has to know. When it ends, all
//!   that was kept of the user goes ([`Users::forget_remote_user`]).
//! * What is kept of all users of a server is counted, in the same commit: beyond [`REMOTE_ROWS_OF_SERVER`] and
//!   [`REMOTE_BYTES_OF_SERVER`] no more is kept of that server.
//! * Nothing here is believed to be true: signatures are checked by the clients that use the keys.

use hearth_store::{Blob, Commit, CommitError, Order, Positioned, StoreError};
use ruma::{DeviceId, UserId};
use serde_json::{json, value::RawValue};

use crate::{
    Users, UsersError,
    devices::shortened,
    tables::{
        REMOTE_DEVICE_LISTS, REMOTE_DEVICES, REMOTE_KEPT, REMOTE_SIGNING_KEYS, RemoteDeviceList, RemoteKept,
    },
    users::ATTEMPTS,
};

/// Devices that are kept of one user of another server.
pub const REMOTE_DEVICES_MAX: u32 = 1_000;
/// Rows that are kept of all users of one server.
pub const REMOTE_ROWS_OF_SERVER: u64 = 500_000;
/// Bytes of them.
pub const REMOTE_BYTES_OF_SERVER: u64 = 256 * 1024 * 1024;
/// What a list is counted as, beside its devices.
const LIST_BYTES: usize = 100;
/// Rows that are removed in one commit.
const ROWS_AT_ONCE: usize = 100;
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

/// What is kept of a server's users, and what a commit changes of it.
struct Budget {
    server: String,
    before: Option<RemoteKept>,
    now: RemoteKept,
}

impl Budget {
    /// Counts that a row with so many bytes is there instead of another one, if that fits.
    fn replace(&mut self, old: Option<usize>, new: Option<usize>) -> bool {
        let mut then = self.now;
        if let Some(old) = old {
            then.rows = then.rows.saturating_sub(1);
            then.bytes = then.bytes.saturating_sub(old as u64);
        }
        if let Some(new) = new {
            then.rows += 1;
            then.bytes += new as u64;
        }
        let is_too_much = then.rows > REMOTE_ROWS_OF_SERVER || then.bytes > REMOTE_BYTES_OF_SERVER;
        if is_too_much && (then.rows > self.now.rows || then.bytes > self.now.bytes) {
            return false;
        }
        self.now = then;
        true
    }

    fn write(&self, commit: &mut Commit) {
        if self.before.unwrap_or_default() == self.now {
            return;
        }
        match &self.before {
            Some(before) => commit.expect(&REMOTE_KEPT, &self.server, before),
            None => commit.expect_absent(&REMOTE_KEPT, &self.server),
        }
        match self.now == RemoteKept::default() {
            true => commit.delete(&REMOTE_KEPT, &self.server),
            false => commit.put(&REMOTE_KEPT, &self.server, &self.now),
        }
    }
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
            let mut budget = self.budget(update.user).await?;
            let mut commit = Commit::new();
            // A user of whom nothing is known is asked for.
            if before.is_none() && !budget.replace(None, Some(LIST_BYTES)) {
                return Ok(());
            }
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
                let held = match device.1.len() <= DEVICE_ID_MAX {
                    true => self.inner.store.get(&REMOTE_DEVICES, &device).await?,
                    false => None,
                };
                let held = held.map(|Blob(held)| held.len());
                change_device(&mut list, &mut commit, &device, held, update, &mut budget);
            }
            match &before {
                Some(before) => commit.expect(&REMOTE_DEVICE_LISTS, &user, before),
                None => commit.expect_absent(&REMOTE_DEVICE_LISTS, &user),
            }
            let position = commit.position();
            commit.put(&REMOTE_DEVICE_LISTS, &user, &Positioned { position, value: list });
            budget.write(&mut commit);
            match self.inner.store.commit(commit).await {
                Ok(_) => return Ok(()),
                Err(CommitError::Conflict) => {}
                Err(CommitError::Store(error)) => return Err(error.into()),
            }
        }
        Err(UsersError::Busy)
    }

    /// Notes new cross-signing keys. What is too large, or too much of one server, is passed over.
    pub async fn note_remote_signing_keys(&self, update: &SigningKeyUpdate<'_>) -> Result<(), UsersError> {
        for _ in 0..ATTEMPTS {
            let mut budget = self.budget(update.user).await?;
            let mut commit = Commit::new();
            for (usage, key) in [("master", update.master), ("self_signing", update.self_signing)] {
                let Some(key) = key.filter(|key| key.get().len() <= KEYS_MAX) else { continue };
                let row = (update.user.as_str().to_owned(), usage.to_owned());
                let held = self.inner.store.get(&REMOTE_SIGNING_KEYS, &row).await?;
                let length = held.as_ref().map(|held| held.value.0.len());
                if !budget.replace(length, Some(key.get().len())) {
                    continue;
                }
                match &held {
                    Some(held) => commit.expect(&REMOTE_SIGNING_KEYS, &row, held),
                    None => commit.expect_absent(&REMOTE_SIGNING_KEYS, &row),
                }
                let position = commit.position();
                let value = Blob(key.get().to_owned().into());
                commit.put(&REMOTE_SIGNING_KEYS, &row, &Positioned { position, value });
            }
            if commit.is_empty() {
                return Ok(());
            }
            budget.write(&mut commit);
            match self.inner.store.commit(commit).await {
                Ok(_) => return Ok(()),
                Err(CommitError::Conflict) => {}
                Err(CommitError::Store(error)) => return Err(error.into()),
            }
        }
        Err(UsersError::Busy)
    }

    /// How far the devices of a user of another server are known.
    pub async fn remote_device_list(&self, user: &UserId) -> Result<Option<RemoteDeviceList>, StoreError> {
        let row = self.inner.store.get(&REMOTE_DEVICE_LISTS, &user.as_str().to_owned()).await?;
        Ok(row.map(|row| row.value))
    }

    /// The users (ids) of other servers behind `after` of whom something is kept, at most `limit`, in the order of their ids.
    pub async fn remote_users(&self, after: Option<&str>, limit: usize) -> Result<Vec<String>, StoreError> {
        let store = &self.inner.store;
        let (mut users, mut after) = (Vec::new(), after.map(str::to_owned));
        while users.len() < limit {
            let (mut lists, mut devices) = (REMOTE_DEVICE_LISTS.all(), REMOTE_DEVICES.all());
            let mut keys = REMOTE_SIGNING_KEYS.all();
            if let Some(after) = &after {
                (lists, devices, keys) = (lists.after(after), devices.after(after), keys.after(after));
            }
            let list = store.first(&REMOTE_DEVICE_LISTS, lists).await?.map(|(user, _)| user);
            let device = store.first(&REMOTE_DEVICES, devices).await?.map(|((user, _), _)| user);
            let key = store.first(&REMOTE_SIGNING_KEYS, keys).await?.map(|((user, _), _)| user);
            let Some(user) = [list, device, key].into_iter().flatten().min() else { break };
            users.push(user.clone());
            after = Some(user);
        }
        Ok(users)
    }

    /// No room is shared with a user of another server any more: all that was kept of them goes.
    pub async fn forget_remote_user(&self, user: &UserId) -> Result<(), UsersError> {
        // The list first: from then on nothing is believed of the devices.
        while !self.forget_some(user).await? {}
        Ok(())
    }

    /// Whether nothing is left.
    async fn forget_some(&self, user: &UserId) -> Result<bool, UsersError> {
        let (store, id) = (&self.inner.store, user.as_str().to_owned());
        for _ in 0..ATTEMPTS {
            let mut budget = self.budget(user).await?;
            let mut commit = Commit::new();
            if let Some(list) = store.get(&REMOTE_DEVICE_LISTS, &id).await? {
                budget.replace(Some(LIST_BYTES), None);
                commit.expect(&REMOTE_DEVICE_LISTS, &id, &list);
                commit.delete(&REMOTE_DEVICE_LISTS, &id);
            }
            let range = REMOTE_DEVICES.prefix(&id);
            let devices = store.range(&REMOTE_DEVICES, range, Order::Forward, ROWS_AT_ONCE).await?;
            for (key, Blob(device)) in &devices {
                budget.replace(Some(device.len()), None);
                commit.delete(&REMOTE_DEVICES, key);
            }
            let range = REMOTE_SIGNING_KEYS.prefix(&id);
            for (key, held) in store.range(&REMOTE_SIGNING_KEYS, range, Order::Forward, ROWS_AT_ONCE).await? {
                budget.replace(Some(held.value.0.len()), None);
                commit.delete(&REMOTE_SIGNING_KEYS, &key);
            }
            if commit.is_empty() {
                return Ok(true);
            }
            budget.write(&mut commit);
            match store.commit(commit).await {
                Ok(_) => return Ok(devices.len() < ROWS_AT_ONCE),
                Err(CommitError::Conflict) => {}
                Err(CommitError::Store(error)) => return Err(error.into()),
            }
        }
        Err(UsersError::Busy)
    }

    async fn budget(&self, user: &UserId) -> Result<Budget, StoreError> {
        let server = user.server_name().to_string();
        let before = self.inner.store.get(&REMOTE_KEPT, &server).await?;
        Ok(Budget { server, before, now: before.unwrap_or_default() })
    }
}

/// The row of a device that changed, and what that does to its list. `held`: the bytes of the row that is there.
fn change_device(
    list: &mut RemoteDeviceList,
    commit: &mut Commit,
    device: &(String, String),
    held: Option<usize>,
    update: &DeviceListUpdate<'_>,
    budget: &mut Budget,
) {
    if update.deleted {
        if held.is_some() {
            budget.replace(held, None);
            commit.delete(&REMOTE_DEVICES, device);
            list.devices = list.devices.saturating_sub(1);
        }
        return;
    }
    let name = update.display_name.map(shortened);
    let shown = json!({ "device_display_name": name, "keys": update.keys }).to_string();
    if (held.is_some() || list.devices < REMOTE_DEVICES_MAX)
        && device.1.len() <= DEVICE_ID_MAX
        && update.keys.is_none_or(|keys| keys.get().len() <= KEYS_MAX)
        && budget.replace(held, Some(shown.len()))
    {
        list.devices += u32::from(held.is_none());
        commit.put(&REMOTE_DEVICES, device, &Blob(shown.into()));
    } else {
        list.is_stale = true;
    }
}
