//! What servers tell for encryption: messages to devices, changes of devices and of signing keys.
//! * All of it is on the disk before the transaction is answered.
//! * A server speaks for its own users only. Of a user who is in none of our rooms nothing is kept but messages.

use std::{borrow::Cow, collections::BTreeMap};

use hearth_rooms::Membership;
use hearth_store::StoreError;
use hearth_users::{DeviceListUpdate, NewDeviceMessages, SigningKeyUpdate, UsersError};
use ruma::{OwnedDeviceId, OwnedUserId, ServerName, UserId, to_device::DeviceIdOrAllDevices};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::Inbound;

/// Users whom messages of one EDU go to.
const RECEIVERS_MAX: usize = 1_000;
/// Changes of one device that an EDU names as those before it.
const PREVIOUS_MAX: usize = 100;

#[derive(Deserialize)]
struct DirectToDevice<'a> {
    sender: OwnedUserId,
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    message_id: Cow<'a, str>,
    #[serde(borrow)]
    messages: BTreeMap<OwnedUserId, BTreeMap<DeviceIdOrAllDevices, &'a RawValue>>,
}

#[derive(Deserialize)]
struct DeviceList<'a> {
    user_id: OwnedUserId,
    device_id: OwnedDeviceId,
    device_display_name: Option<String>,
    stream_id: u64,
    #[serde(default)]
    prev_id: Vec<u64>,
    #[serde(default)]
    deleted: bool,
    #[serde(borrow, default)]
    keys: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct SigningKeys<'a> {
    user_id: OwnedUserId,
    #[serde(borrow, default)]
    master_key: Option<&'a RawValue>,
    #[serde(borrow, default)]
    self_signing_key: Option<&'a RawValue>,
}

impl Inbound {
    /// `m.direct_to_device`
    pub(super) async fn take_device_messages(
        &self,
        origin: &ServerName,
        content: &RawValue,
    ) -> Result<(), StoreError> {
        let Ok(edu) = serde_json::from_str::<DirectToDevice<'_>>(content.get()) else { return Ok(()) };
        if edu.sender.server_name() != origin {
            return Ok(());
        }
        let rooms = &self.0.rooms;
        let ours = edu.messages.into_iter().filter(|(user, _)| rooms.is_local(user));
        let contents = ours
            .take(RECEIVERS_MAX)
            .map(|(user, devices)| {
                (user, devices.into_iter().filter(|(_, content)| is_object(content)).collect())
            })
            .collect();
        let new = NewDeviceMessages { sender: &edu.sender, kind: &edu.kind, contents };
        match self.0.users.keep_device_messages(&edu.message_id, &new).await {
            Ok(()) => Ok(()),
            Err(UsersError::Store(error)) => Err(error),
            // Devices that change all the time. The transaction comes again; some may then have a message twice.
            Err(UsersError::Busy) => Err(StoreError::Invalid("others got ahead of every try".to_owned())),
        }
    }

    /// `m.device_list_update`
    pub(super) async fn take_device_list(
        &self,
        origin: &ServerName,
        content: &RawValue,
    ) -> Result<(), StoreError> {
        let Ok(edu) = serde_json::from_str::<DeviceList<'_>>(content.get()) else { return Ok(()) };
        if edu.user_id.server_name() != origin
            || edu.prev_id.len() > PREVIOUS_MAX
            || !self.is_in_a_room(&edu.user_id).await?
        {
            return Ok(());
        }
        let update = DeviceListUpdate {
            user: &edu.user_id,
            device: &edu.device_id,
            display_name: edu.device_display_name.as_deref(),
            stream_id: edu.stream_id,
            prev_ids: &edu.prev_id,
            deleted: edu.deleted,
            keys: edu.keys.filter(|keys| is_object(keys)),
        };
        unless_busy(self.0.users.note_remote_device(&update).await)
    }

    /// `m.signing_key_update`
    pub(super) async fn take_signing_keys(
        &self,
        origin: &ServerName,
        content: &RawValue,
    ) -> Result<(), StoreError> {
        let Ok(edu) = serde_json::from_str::<SigningKeys<'_>>(content.get()) else { return Ok(()) };
        if edu.user_id.server_name() != origin || !self.is_in_a_room(&edu.user_id).await? {
            return Ok(());
        }
        let update = SigningKeyUpdate {
            user: &edu.user_id,
            master: edu.master_key.filter(|key| is_object(key)),
            self_signing: edu.self_signing_key.filter(|key| is_object(key)),
        };
        unless_busy(self.0.users.note_remote_signing_keys(&update).await)
    }

    /// Whether a user is joined to any room that is known here.
    async fn is_in_a_room(&self, user: &UserId) -> Result<bool, StoreError> {
        let rooms = self.0.rooms.reader().memberships_of(user).await?;
        Ok(rooms.iter().any(|(_, row)| row.value.membership == Membership::Join))
    }
}

fn is_object(json: &RawValue) -> bool {
    json.get().trim_start().starts_with('{')
}

/// Only the store's failures are failures of a transaction: what is noted of devices is asked for again where it matters.
fn unless_busy(done: Result<(), UsersError>) -> Result<(), StoreError> {
    match done {
        Err(UsersError::Store(error)) => Err(error),
        Ok(()) | Err(UsersError::Busy) => Ok(()),
    }
}
