//! Messages to single devices: kept until the device has them.
//! * A message is on the disk before whoever brought it is answered, and stays until the device syncs from a point behind
//!   it: a device may be shown it twice, and never not at all.
//! * What another server brings twice under the same id is kept once, for a day and over restarts.
//! * Each device has room for [`INBOX_MAX`] messages of [`INBOX_BYTES`]. A server gets no more once
//!   it holds as much as half of what is free: nobody can fill up somebody's inbox for all others. What is beyond that is dropped.
//! * What has arrived is forgotten with the next sync, also where nothing new is for it; a sync that only waits costs nothing.
//! * A message is written only if its device is still there, and who removes a device looks again for what came meanwhile:
//!   nothing waits for a device that is not there.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use bytes::Bytes;
use hearth_store::{Blob, Commit, CommitError, Order, StoreError, StreamPosition, Topic};
use parking_lot::Mutex;
use ruma::{DeviceId, OwnedServerName, OwnedUserId, ServerName, UserId, to_device::DeviceIdOrAllDevices};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{
    Users, UsersError,
    tables::{DEVICES, TO_DEVICE, TO_DEVICE_SEEN, TO_DEVICE_SEEN_AT},
    users::ATTEMPTS,
};

/// Messages that wait for one device.
pub const INBOX_MAX: usize = 20_000;
/// Bytes of them.
pub const INBOX_BYTES: usize = 32 * 1024 * 1024;
/// Bytes of one message's content.
pub const DEVICE_MESSAGE_MAX: usize = 64 * 1024;
/// Messages that a device is shown at once.
pub const SHOWN_AT_ONCE: usize = 100;
/// Bytes of messages after which a device is shown no more at once.
const SHOWN_BYTES: usize = 1024 * 1024;
/// Bytes of the id under which another server sends a message.
const MESSAGE_ID_MAX: usize = 255;
/// Bytes of a message's type.
const TYPE_MAX: usize = 255;
/// How long it is remembered which messages came.
const SEEN_MS: u64 = 24 * 3600 * 1000;
/// Rows of a commit, and bytes.
const ROWS_AT_ONCE: usize = 100;
const BYTES_AT_ONCE: usize = 512 * 1024;
/// Devices of a user that "all devices" means.
const DEVICES_OF_USER: usize = 1_000;
/// Messages that one EDU or request becomes, one for each device.
const COPIES_MAX: usize = 2_000;
/// Inboxes whose fill is remembered.
const COUNTED_MAX: usize = 10_000;
/// Devices of which it is remembered that nothing waits for them that has arrived.
const CLEARED_MAX: usize = 50_000;
/// A full inbox is counted again after so many milliseconds.
const COUNTED_FOR_MS: u64 = 60_000;

/// Messages from one sender, as a server or a client hands them in.
#[derive(Debug)]
pub struct NewDeviceMessages<'a> {
    /// Who sends them.
    pub sender: &'a UserId,
    /// Their type.
    pub kind: &'a str,
    /// To whom: the content for each device.
    pub contents: BTreeMap<OwnedUserId, BTreeMap<DeviceIdOrAllDevices, &'a RawValue>>,
}

/// What waits for a device.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct DeviceMessages {
    /// Each as JSON, the oldest first.
    pub messages: Vec<Bytes>,
    /// Everything up to here is among them.
    pub upto: StreamPosition,
}

/// What is known of the inboxes that were looked at last.
#[derive(Default)]
pub(crate) struct Inboxes {
    fills: Mutex<HashMap<Key, Fill>>,
    cleared: Mutex<Cleared>,
    /// What a process left behind that ended in the middle was looked for.
    pub(crate) is_swept: std::sync::atomic::AtomicBool,
}

type Key = (String, String);

/// The devices of which nothing was shown that was not forgotten.
#[derive(Default)]
struct Cleared {
    devices: HashSet<Key>,
    /// How often something was shown to any.
    shown: u64,
}

#[derive(Default)]
struct Fill {
    total: Held,
    by_server: BTreeMap<OwnedServerName, Held>,
    counted_ms: u64,
}

#[derive(Clone, Copy, Default)]
struct Held {
    messages: usize,
    bytes: usize,
}

#[derive(Serialize, Deserialize)]
struct Shown<'a> {
    #[serde(rename = "type")]
    kind: std::borrow::Cow<'a, str>,
    sender: std::borrow::Cow<'a, UserId>,
    #[serde(borrow)]
    content: &'a RawValue,
}

impl Fill {
    /// Counts one more from a server, if there is room.
    fn take(&mut self, server: &ServerName, bytes: usize) -> bool {
        let held = self.by_server.get(server).copied().unwrap_or_default();
        let left = |bound: usize, taken: usize| bound.saturating_sub(taken) / 2;
        if held.messages >= left(INBOX_MAX, self.total.messages)
            || held.bytes + bytes > left(INBOX_BYTES, self.total.bytes)
        {
            return false;
        }
        self.add(server, bytes);
        true
    }

    fn add(&mut self, server: &ServerName, bytes: usize) {
        let of_server = self.by_server.entry(server.to_owned()).or_default();
        for held in [&mut self.total, of_server] {
            held.messages += 1;
            held.bytes += bytes;
        }
    }
}

/// Whose server sent a kept message.
fn server_of(message: &[u8]) -> Option<OwnedServerName> {
    let shown = serde_json::from_slice::<Shown<'_>>(message).ok()?;
    Some(shown.sender.server_name().to_owned())
}

impl Users {
    /// Keeps messages for devices of this server's users; devices that do not exist are passed over. `id` is what the
    /// sender's server names the messages by.
    pub async fn keep_device_messages(
        &self,
        id: &str,
        new: &NewDeviceMessages<'_>,
    ) -> Result<(), UsersError> {
        let server = new.sender.server_name();
        if id.len() > MESSAGE_ID_MAX || new.kind.len() > TYPE_MAX {
            return Ok(());
        }
        let seen = (server.to_string(), id.to_owned());
        if self.inner.store.get(&TO_DEVICE_SEEN, &seen).await?.is_some() {
            return Ok(());
        }
        let (mut part, mut copies) = (Part::default(), 0);
        for (user, devices) in &new.contents {
            for (key, content) in self.receivers(user, devices).await? {
                let shown =
                    Shown { kind: new.kind.into(), sender: std::borrow::Cow::Borrowed(new.sender), content };
                let fits = content.get().len() <= DEVICE_MESSAGE_MAX && copies < COPIES_MAX;
                let Some(message) = fits.then(|| serde_json::to_vec(&shown).ok()).flatten() else { continue };
                if !self.has_room(&key, server, message.len()).await? {
                    tracing::warn!(user = key.0, device = key.1, %server, "too much waits for a device, a message is dropped");
                    continue;
                }
                copies += 1;
                part.add(key, message);
                if part.is_full() {
                    self.write_part(&std::mem::take(&mut part), None).await?;
                }
            }
        }
        if copies == 0 {
            return Ok(());
        }
        // With the last of them: what was cut off by a crash comes again.
        self.write_part(&part, Some(&seen)).await
    }

    /// What a device is to be shown after `since`, up to `upto` or, where that is too much at once, not so far. What has
    /// arrived is forgotten by [`Users::device_messages_arrived`].
    pub async fn device_messages(
        &self,
        user: &UserId,
        device: &DeviceId,
        since: Option<StreamPosition>,
        upto: StreamPosition,
    ) -> Result<DeviceMessages, StoreError> {
        let mut told = DeviceMessages { messages: Vec::new(), upto };
        if since.is_some_and(|since| !self.changed_since(user, since)) {
            return Ok(told);
        }
        let key = crate::sessions::device_key(user, device);
        let since = since.unwrap_or(StreamPosition::ZERO);
        let (from, to) = ((key.0.clone(), key.1.clone(), since), (key.0.clone(), key.1.clone(), upto));
        let range = TO_DEVICE.prefix(&key).after(&from).up_to(&to);
        // One more says whether these are all.
        let rows = self.inner.store.range(&TO_DEVICE, range, Order::Forward, SHOWN_AT_ONCE + 1).await?;
        if !rows.is_empty() {
            // Shown, and forgotten once that has arrived.
            let mut cleared = self.inner.inboxes.cleared.lock();
            cleared.devices.remove(&key);
            cleared.shown += 1;
        }
        let (mut bytes, mut reached) = (0, since);
        for ((_, _, position), Blob(message)) in rows {
            if told.messages.len() == SHOWN_AT_ONCE || bytes >= SHOWN_BYTES {
                told.upto = reached;
                break;
            }
            bytes += message.len();
            reached = position;
            told.messages.push(message);
        }
        Ok(told)
    }

    /// A device has what it was shown up to a position: that is forgotten. Reads nothing where there is nothing to forget.
    pub async fn device_messages_arrived(
        &self,
        user: &UserId,
        device: &DeviceId,
        upto: StreamPosition,
    ) -> Result<(), StoreError> {
        let key = crate::sessions::device_key(user, device);
        let shown = {
            let cleared = self.inner.inboxes.cleared.lock();
            if cleared.devices.contains(&key) {
                return Ok(());
            }
            cleared.shown
        };
        self.forget_arrived(&key, upto).await?;
        let mut cleared = self.inner.inboxes.cleared.lock();
        // What was shown meanwhile, by another request of the device, is not forgotten yet.
        if cleared.shown == shown {
            if cleared.devices.len() >= CLEARED_MAX {
                cleared.devices.clear();
            }
            cleared.devices.insert(key);
        }
        Ok(())
    }

    /// Adds to a commit that what waits for a device goes that came up to a position.
    pub(crate) async fn drop_device_messages(
        &self,
        key: &Key,
        upto: StreamPosition,
        commit: &mut Commit,
    ) -> Result<(), StoreError> {
        // A device that comes anew under the same id keeps what it is sent then.
        let upto = (key.0.clone(), key.1.clone(), upto);
        let range = TO_DEVICE.prefix(key).up_to(&upto);
        if !self.inner.store.range(&TO_DEVICE, range.clone(), Order::Forward, 1).await?.is_empty() {
            commit.delete_range_later(&TO_DEVICE, &range);
        }
        Ok(())
    }

    /// Removes what came for devices while they were being removed, up to the position of that.
    pub(crate) async fn clear_inboxes(&self, keys: &[Key], upto: StreamPosition) -> Result<(), UsersError> {
        let mut commit = Commit::new();
        for key in keys {
            self.drop_device_messages(key, upto, &mut commit).await?;
        }
        if !commit.is_empty() {
            self.inner.store.commit(commit).await?;
        }
        Ok(())
    }

    /// The same for all devices that are not there, once: a process may have ended before it could.
    pub(crate) async fn sweep_inboxes(&self) -> Result<(), UsersError> {
        use std::sync::atomic::Ordering;
        if self.inner.inboxes.is_swept.load(Ordering::Relaxed) {
            return Ok(());
        }
        let upto = self.inner.store.watermark();
        let mut range = TO_DEVICE.all();
        while let Some(((user, device, _), _)) = self.inner.store.first(&TO_DEVICE, range).await? {
            let key = (user, device);
            if self.inner.store.get(&DEVICES, &key).await?.is_none() {
                self.clear_inboxes(std::slice::from_ref(&key), upto).await?;
            }
            range = TO_DEVICE.all().after(&(key.0, key.1));
        }
        self.inner.inboxes.is_swept.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// What was counted of these devices' inboxes holds no more.
    pub(crate) fn recount_device_messages(&self, keys: &[Key]) {
        let mut inboxes = self.inner.inboxes.fills.lock();
        keys.iter().for_each(|key| drop(inboxes.remove(key)));
    }

    /// Forgets the ids of messages that came long ago.
    pub(crate) async fn sweep_seen_messages(&self) -> Result<(), UsersError> {
        const BATCH: usize = 400;
        let until = self.now_ms().saturating_sub(SEEN_MS);
        loop {
            let range = TO_DEVICE_SEEN_AT.all().before(&(until,));
            let rows = self.inner.store.range(&TO_DEVICE_SEEN_AT, range, Order::Forward, BATCH).await?;
            let mut commit = Commit::new();
            for (key, ()) in &rows {
                commit.delete(&TO_DEVICE_SEEN_AT, key);
                commit.delete(&TO_DEVICE_SEEN, &(key.1.clone(), key.2.clone()));
            }
            if !commit.is_empty() {
                self.inner.store.commit(commit).await?;
            }
            if rows.len() < BATCH {
                return Ok(());
            }
        }
    }

    /// The devices that are meant, each with its content.
    async fn receivers<'a>(
        &self,
        user: &UserId,
        devices: &BTreeMap<DeviceIdOrAllDevices, &'a RawValue>,
    ) -> Result<Vec<(Key, &'a RawValue)>, StoreError> {
        let store = &self.inner.store;
        let mut found = Vec::new();
        for (device, content) in devices {
            match device {
                DeviceIdOrAllDevices::AllDevices => {
                    let range = DEVICES.prefix(&user.as_str().to_owned());
                    let rows = store.range(&DEVICES, range, Order::Forward, DEVICES_OF_USER).await?;
                    found.extend(rows.into_iter().map(|(key, _)| (key, *content)));
                }
                DeviceIdOrAllDevices::DeviceId(device) => {
                    let key = crate::sessions::device_key(user, device);
                    if store.get(&DEVICES, &key).await?.is_some() {
                        found.push((key, *content));
                    }
                }
            }
        }
        Ok(found)
    }

    /// Whether there is room for one more from a server, which is then counted.
    async fn has_room(&self, key: &Key, server: &ServerName, bytes: usize) -> Result<bool, StoreError> {
        let now_ms = self.now_ms();
        if let Some(fill) = self.inner.inboxes.fills.lock().get_mut(key) {
            let taken = fill.take(server, bytes);
            if taken || now_ms < fill.counted_ms.saturating_add(COUNTED_FOR_MS) {
                return Ok(taken);
            }
        }
        let mut fill = Fill { counted_ms: now_ms, ..Fill::default() };
        let mut range = TO_DEVICE.prefix(key);
        loop {
            let rows =
                self.inner.store.range(&TO_DEVICE, range.clone(), Order::Forward, ROWS_AT_ONCE).await?;
            for (_, Blob(message)) in &rows {
                if let Some(server) = server_of(message) {
                    fill.add(&server, message.len());
                }
            }
            match rows.last() {
                Some((last, _)) if rows.len() == ROWS_AT_ONCE => range = range.after(last),
                _ => break,
            }
        }
        let taken = fill.take(server, bytes);
        let mut inboxes = self.inner.inboxes.fills.lock();
        if inboxes.len() >= COUNTED_MAX {
            inboxes.clear();
        }
        inboxes.insert(key.clone(), fill);
        Ok(taken)
    }

    /// Writes messages to those devices that are still there; with the last of them also that they came under an id.
    async fn write_part(&self, part: &Part, seen: Option<&Key>) -> Result<(), UsersError> {
        let store = &self.inner.store;
        let keys: Vec<Key> = part.messages.iter().map(|(key, _)| key.clone()).collect();
        for _ in 0..ATTEMPTS {
            if let Some(seen) = seen
                && store.get(&TO_DEVICE_SEEN, seen).await?.is_some()
            {
                // Brought twice at one time: the other one has kept them.
                self.recount_device_messages(&keys);
                return Ok(());
            }
            let devices = store.multi_get(&DEVICES, &keys).await?;
            let (mut commit, mut users) = (Commit::new(), BTreeSet::new());
            for ((key, message), device) in part.messages.iter().zip(devices) {
                let Some(device) = device else { continue };
                // Who removes the device is either before this, or sees what this wrote.
                commit.expect(&DEVICES, key, &device);
                let position = commit.position();
                let row = (key.0.clone(), key.1.clone(), position);
                commit.put_new(&TO_DEVICE, &row, &Blob(message.clone()));
                users.insert(Arc::from(key.0.as_str()));
            }
            if let Some(seen) = seen {
                let now_ms = self.now_ms();
                commit.expect_absent(&TO_DEVICE_SEEN, seen);
                commit.put(&TO_DEVICE_SEEN, seen, &now_ms);
                commit.put(&TO_DEVICE_SEEN_AT, &(now_ms, seen.0.clone(), seen.1.clone()), &());
            }
            if commit.is_empty() {
                return Ok(());
            }
            match self.commit_messages(commit, users, keys.clone()).await {
                Ok(()) => return Ok(()),
                Err(CommitError::Conflict) => {}
                Err(CommitError::Store(error)) => return Err(error.into()),
            }
        }
        Err(UsersError::Busy)
    }

    async fn commit_messages(
        &self,
        mut commit: Commit,
        users: BTreeSet<Arc<str>>,
        keys: Vec<Key>,
    ) -> Result<(), CommitError> {
        for user in &users {
            commit.touch(Topic::new(b'u', user.as_bytes()));
            self.inner.user_changes.begin(user);
        }
        let done = self.commit_then(commit, move |this, outcome| {
            let position = outcome.as_ref().ok().map(hearth_store::Committed::last);
            for user in &users {
                this.inner.user_changes.finish(user, position);
            }
            // Counted, and not there.
            if outcome.is_err() {
                this.recount_device_messages(&keys);
            }
        });
        done.await.map(|_| ())
    }

    async fn forget_arrived(&self, key: &Key, since: StreamPosition) -> Result<(), StoreError> {
        let upto = (key.0.clone(), key.1.clone(), since);
        loop {
            let range = TO_DEVICE.prefix(key).up_to(&upto);
            let rows = self.inner.store.range(&TO_DEVICE, range, Order::Forward, ROWS_AT_ONCE).await?;
            if rows.is_empty() {
                return Ok(());
            }
            let mut commit = Commit::new();
            rows.iter().for_each(|(row, _)| commit.delete(&TO_DEVICE, row));
            let key = key.clone();
            let done = self.commit_then(commit, move |users, _| users.recount_device_messages(&[key]));
            match done.await {
                Ok(_) | Err(CommitError::Conflict) => {}
                Err(CommitError::Store(error)) => return Err(error),
            }
            if rows.len() < ROWS_AT_ONCE {
                return Ok(());
            }
        }
    }
}

/// What goes into one commit.
#[derive(Default)]
struct Part {
    messages: Vec<(Key, Bytes)>,
    bytes: usize,
}

impl Part {
    fn is_full(&self) -> bool {
        self.messages.len() >= ROWS_AT_ONCE || self.bytes >= BYTES_AT_ONCE
    }

    fn add(&mut self, key: Key, message: Vec<u8>) {
        self.bytes += message.len();
        self.messages.push((key, message.into()));
    }
}
