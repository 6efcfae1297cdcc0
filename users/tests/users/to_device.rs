//! Messages to devices, and what is kept of other servers' devices.

use std::collections::BTreeMap;

use hearth_store::{Commit, Positioned, StreamPosition};
use hearth_users::{
    DEVICE_MESSAGE_MAX, DeviceListUpdate, DeviceMessages, INBOX_BYTES, NewDeviceMessages, SHOWN_AT_ONCE,
    tables::{REMOTE_DEVICE_LISTS, RemoteDeviceList},
};
use ruma::{DeviceId, OwnedDeviceId, OwnedUserId, UserId, to_device::DeviceIdOrAllDevices, user_id};
use serde_json::{Value, json, value::RawValue};

use crate::World;

struct Inbox<'a> {
    world: &'a World,
    user: OwnedUserId,
    device: OwnedDeviceId,
}

impl World {
    async fn device<'a>(&'a self, user: &UserId, device: &str) -> Inbox<'a> {
        self.log_in(user, Some(device), false).await;
        Inbox { world: self, user: user.to_owned(), device: device.into() }
    }

    /// A server brings one message.
    async fn is_brought(&self, id: &str, from: &UserId, to: &UserId, device: &str, content: Value) {
        let content: Box<RawValue> = serde_json::value::to_raw_value(&content).unwrap();
        let device = DeviceIdOrAllDevices::try_from(device).unwrap();
        let contents = BTreeMap::from([(to.to_owned(), BTreeMap::from([(device, &*content)]))]);
        let new = NewDeviceMessages { sender: from, kind: "m.test", contents };
        self.users.keep_device_messages(id, &new).await.unwrap();
    }
}

impl Inbox<'_> {
    async fn after(&self, since: Option<StreamPosition>) -> DeviceMessages {
        let upto = self.world.store.watermark();
        self.world.users.device_messages(&self.user, &self.device, since, upto).await.unwrap()
    }
}

fn contents(told: &DeviceMessages) -> Vec<Value> {
    let shown = told.messages.iter().map(|message| serde_json::from_slice::<Value>(message).unwrap());
    shown.map(|message| message["content"]["n"].clone()).collect()
}

fn bob() -> &'static UserId {
    user_id!("@bob:b.test")
}

#[tokio::test]
async fn a_message_waits_until_the_device_has_it() {
    let world = World::new().await;
    let alice = world.alice().await;
    let (phone, desk) = (world.device(&alice, "PHONE").await, world.device(&alice, "DESK").await);
    world.is_brought("1", bob(), &alice, "PHONE", json!({ "n": 1 })).await;
    world.is_brought("2", bob(), &alice, "*", json!({ "n": 2 })).await;
    world.is_brought("3", bob(), &alice, "NONE", json!({ "n": 3 })).await;
    let told = phone.after(None).await;
    let first: Value = serde_json::from_slice(&told.messages[0]).unwrap();
    assert_eq!(first, json!({ "type": "m.test", "sender": bob(), "content": { "n": 1 } }));
    assert_eq!(contents(&told), [1, 2]);
    assert_eq!(contents(&phone.after(None).await), [1, 2], "the answer may not have arrived");
    assert_eq!(contents(&desk.after(None).await), [2]);

    world.is_brought("4", bob(), &alice, "PHONE", json!({ "n": 4 })).await;
    assert_eq!(contents(&phone.after(Some(told.upto)).await), [4]);
    assert_eq!(contents(&phone.after(None).await), [4], "what had arrived is gone");
    world.users.delete_devices(&alice, &["PHONE".into()]).await.unwrap();
    let phone = world.device(&alice, "PHONE").await;
    assert_eq!(phone.after(None).await.messages.len(), 0, "another device with the same name");
}

#[tokio::test]
async fn what_comes_twice_is_kept_once_and_for_a_day() {
    let world = World::new().await;
    let alice = world.alice().await;
    let phone = world.device(&alice, "PHONE").await;
    for _ in 0..2 {
        world.is_brought("same", bob(), &alice, "PHONE", json!({ "n": 1 })).await;
    }
    world.is_brought("same", user_id!("@c:c.test"), &alice, "PHONE", json!({ "n": 2 })).await;
    let told = phone.after(None).await;
    assert_eq!(contents(&told), [1, 2], "another server has ids of its own");
}

#[tokio::test]
async fn what_is_too_much_at_once_comes_with_the_next() {
    let world = World::new().await;
    let alice = world.alice().await;
    let phone = world.device(&alice, "PHONE").await;
    for n in 0..SHOWN_AT_ONCE + 5 {
        world.is_brought(&n.to_string(), bob(), &alice, "PHONE", json!({ "n": n })).await;
    }
    let first = phone.after(None).await;
    assert!(first.messages.len() == SHOWN_AT_ONCE && first.upto < world.store.watermark());
    let rest = phone.after(Some(first.upto)).await;
    assert_eq!(contents(&rest), [100, 101, 102, 103, 104]);
    assert_eq!(rest.upto, world.store.watermark());
}

#[tokio::test]
async fn one_server_fills_its_part_of_an_inbox_only() {
    let world = World::new().await;
    let alice = world.alice().await;
    let phone = world.device(&alice, "PHONE").await;
    let large = json!({ "n": "x".repeat(DEVICE_MESSAGE_MAX) });
    world.is_brought("large", bob(), &alice, "PHONE", large).await;
    assert_eq!(phone.after(None).await.messages.len(), 0, "too large for a message");
    // A server takes at most half of what others leave of the inbox.
    let piece = "x".repeat(DEVICE_MESSAGE_MAX - 1_000);
    for n in 0..INBOX_BYTES / DEVICE_MESSAGE_MAX {
        world.is_brought(&n.to_string(), bob(), &alice, "PHONE", json!({ "n": n, "x": piece })).await;
    }
    world.is_brought("other", user_id!("@c:c.test"), &alice, "PHONE", json!({ "n": "other" })).await;
    let (mut all, mut since) = (Vec::new(), None);
    loop {
        let told = phone.after(since).await;
        if told.messages.is_empty() {
            break;
        }
        all.extend(contents(&told));
        since = Some(told.upto);
    }
    let third = INBOX_BYTES / DEVICE_MESSAGE_MAX / 3;
    assert!((third..third + 10).contains(&all.len()), "{}", all.len());
    assert_eq!(all.last(), Some(&json!("other")));
    world.is_brought("again", bob(), &alice, "PHONE", json!({ "n": "again" })).await;
    assert_eq!(contents(&phone.after(since).await), ["again"], "there is room again");
}

#[tokio::test]
async fn a_list_of_devices_with_a_gap_is_stale() {
    let world = World::new().await;
    let keys: Box<RawValue> = serde_json::value::to_raw_value(&json!({ "keys": {} })).unwrap();
    let change = async |device: &str, stream_id, prev_ids: &[u64], deleted| {
        let device: &DeviceId = device.into();
        let display_name = Some("a phone");
        let keys = Some(&*keys);
        let update =
            DeviceListUpdate { user: bob(), device, display_name, stream_id, prev_ids, deleted, keys };
        world.users.note_remote_device(&update).await.unwrap();
        let list = world.users.remote_device_list(bob()).await.unwrap().unwrap();
        (list.stream_id, list.devices, list.is_stale)
    };
    assert_eq!(world.users.remote_device_list(bob()).await.unwrap(), None);
    assert_eq!(change("A", 3, &[], false).await, (3, 1, true), "who knows what there was before");
    // As it is once somebody has asked for all of it.
    let whole = async |stream_id, devices| {
        let value = RemoteDeviceList { stream_id, is_stale: false, devices };
        let mut commit = Commit::new();
        let position = commit.position();
        commit.put(&REMOTE_DEVICE_LISTS, &bob().to_string(), &Positioned { position, value });
        world.store.commit(commit).await.unwrap();
    };
    whole(3, 1).await;
    assert_eq!(change("B", 4, &[3], false).await, (4, 2, false));
    assert_eq!(change("B", 4, &[3], true).await, (4, 2, false), "told twice");
    assert_eq!(change("B", 5, &[4], true).await, (5, 1, false));
    assert_eq!(change(&"L".repeat(2_000), 6, &[5], true).await, (6, 1, false), "a device that cannot be");
    assert_eq!(change(&"L".repeat(2_000), 7, &[6], false).await, (7, 1, true));
    whole(7, 1).await;
    assert_eq!(change("C", 9, &[8], false).await, (9, 2, true));
    assert_eq!(change("C", 10, &[9], false).await, (10, 2, true), "what was missed is still missing");
    whole(10, 2).await;
    assert_eq!(change("C", 2, &[1], false).await, (10, 2, true), "their server counts anew");
    whole(10, 2).await;
    assert_eq!(change("C", 11, &[], false).await, (11, 2, true));
}
