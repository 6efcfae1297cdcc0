//! Messages to devices, and what is kept of other servers' devices.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use hearth_store::{
    Commit, Data, Engine, Order, Pending, Positioned, Progress, Scan, Space, Store, StoreError,
    StreamPosition,
};
use hearth_users::{
    DEVICE_MESSAGE_MAX, DeviceListUpdate, DeviceMessages, INBOX_BYTES, NewDeviceMessages,
    REMOTE_BYTES_OF_SERVER, REMOTE_ROWS_OF_SERVER, SHOWN_AT_ONCE, SigningKeyUpdate,
    tables::{DEVICES, REMOTE_DEVICE_LISTS, REMOTE_KEPT, RemoteDeviceList, RemoteKept, TO_DEVICE},
};
use ruma::{DeviceId, OwnedDeviceId, OwnedUserId, UserId, to_device::DeviceIdOrAllDevices, user_id};
use serde_json::{Value, json, value::RawValue};

use crate::World;

type Meanwhile = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A store in which something happens behind somebody's back: right after some read.
struct Between {
    store: Store,
    /// After the next read of this space, single rows or a range.
    meanwhile: std::sync::Mutex<Option<(Space, bool, Meanwhile)>>,
    reads: AtomicUsize,
}

impl Between {
    async fn new() -> (Arc<Self>, World) {
        let store = Store::memory().await;
        let between = Arc::new(Self { store, meanwhile: Default::default(), reads: AtomicUsize::default() });
        let store = Store::on(between.clone()).await.unwrap();
        (between, World::on(store))
    }

    fn after_the_next(
        &self,
        space: Space,
        range: bool,
        meanwhile: impl Future<Output = ()> + Send + 'static,
    ) {
        *self.meanwhile.lock().unwrap() = Some((space, range, Box::pin(meanwhile)));
    }

    async fn was_read(&self, key: Option<&[u8]>, range: bool) {
        self.reads.fetch_add(1, Ordering::SeqCst);
        let meanwhile = {
            let mut slot = self.meanwhile.lock().unwrap();
            let is_meant = |(space, of_range, _): &mut (Space, bool, Meanwhile)| {
                key.and_then(|key| key.first()) == Some(&space.0) && *of_range == range
            };
            slot.take_if(is_meant)
        };
        if let Some((_, _, meanwhile)) = meanwhile {
            meanwhile.await;
        }
    }

    fn has_happened(&self) -> bool {
        self.meanwhile.lock().unwrap().is_none()
    }
}

#[async_trait]
impl Engine for Between {
    async fn get(&self, key: &[u8]) -> Result<Option<Data>, StoreError> {
        let found = self.store.engine().get(key).await;
        self.was_read(Some(key), false).await;
        found
    }

    async fn multi_get(&self, keys: &[Vec<u8>]) -> Result<Vec<Option<Data>>, StoreError> {
        let found = self.store.engine().multi_get(keys).await;
        self.was_read(keys.first().map(Vec::as_slice), false).await;
        found
    }

    async fn range(&self, scan: Scan<'_>) -> Result<Vec<(Data, Data)>, StoreError> {
        let start = scan.start.to_vec();
        let found = self.store.engine().range(scan).await;
        self.was_read(Some(&start), true).await;
        found
    }

    fn submit(&self, commit: Commit) -> Pending {
        self.store.submit(commit)
    }

    fn progress(&self) -> &Arc<Progress> {
        self.store.engine().progress()
    }

    async fn finish(&self) {}

    async fn close(self: Arc<Self>) {}
}

async fn waiting(between: &Between, world: &World) -> usize {
    // Either of the stores does the work.
    tokio::select! {
        done = world.store.jobs_finished() => done.unwrap(),
        done = between.store.jobs_finished() => done.unwrap(),
    }
    world.store.range(&TO_DEVICE, TO_DEVICE.all(), Order::Forward, 100).await.unwrap().len()
}

struct Inbox<'a> {
    world: &'a World,
    user: OwnedUserId,
    device: OwnedDeviceId,
}

/// Bob's server brings a message for a device of Alice's.
async fn brings(users: &hearth_users::Users, id: &str, device: &str) {
    let content: Box<RawValue> = serde_json::value::to_raw_value(&json!({ "n": 1 })).unwrap();
    let device = DeviceIdOrAllDevices::try_from(device).unwrap();
    let alice = user_id!("@alice:a.test").to_owned();
    let contents = BTreeMap::from([(alice, BTreeMap::from([(device, &*content)]))]);
    let new = NewDeviceMessages { sender: bob(), kind: "m.test", contents };
    users.keep_device_messages(id, &new).await.unwrap();
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
    /// What a sync with this token does: it says what has arrived, and asks for what came after.
    async fn after(&self, since: Option<StreamPosition>) -> DeviceMessages {
        let (users, upto) = (&self.world.users, self.world.store.watermark());
        if let Some(since) = since {
            users.device_messages_arrived(&self.user, &self.device, since).await.unwrap();
        }
        users.device_messages(&self.user, &self.device, since, upto).await.unwrap()
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
async fn nothing_waits_for_a_device_that_is_removed_meanwhile() {
    // Before the message is counted, and before it is written.
    for (space, range) in [(TO_DEVICE.space(), true), (DEVICES.space(), false)] {
        let (between, world) = Between::new().await;
        let alice = world.alice().await;
        for device in ["PHONE", "DESK"] {
            world.log_in(&alice, Some(device), false).await;
        }
        let (users, owner) = (world.users.clone(), alice.clone());
        between.after_the_next(space, range, async move {
            users.delete_devices(&owner, &["PHONE".into()]).await.unwrap();
        });
        brings(&world.users, "1", "*").await;
        assert!(between.has_happened());
        assert_eq!(waiting(&between, &world).await, 1, "of the other device");
        // It came, and is not taken for new.
        brings(&world.users, "1", "*").await;
        assert_eq!(waiting(&between, &world).await, 1);
    }
    // While the device's inbox is looked through.
    let (between, world) = Between::new().await;
    let alice = world.alice().await;
    world.log_in(&alice, Some("PHONE"), false).await;
    let users = world.users.clone();
    between.after_the_next(TO_DEVICE.space(), true, async move { brings(&users, "1", "PHONE").await });
    world.users.delete_devices(&alice, &["PHONE".into()]).await.unwrap();
    assert!(between.has_happened());
    assert_eq!(waiting(&between, &world).await, 0);
}

#[tokio::test]
async fn what_has_arrived_is_forgotten_also_where_nothing_new_is() {
    let (between, world) = Between::new().await;
    let alice = world.alice().await;
    world.log_in(&alice, Some("PHONE"), false).await;
    let phone = Inbox { world: &world, user: alice.clone(), device: "PHONE".into() };
    let arrived =
        async |upto| world.users.device_messages_arrived(&alice, "PHONE".into(), upto).await.unwrap();
    arrived(world.store.watermark()).await;
    brings(&world.users, "1", "PHONE").await;
    let told = phone.after(Some(StreamPosition::ZERO)).await;
    assert_eq!(told.messages.len(), 1);
    arrived(StreamPosition::ZERO).await;
    assert_eq!(waiting(&between, &world).await, 1, "the answer may have been lost");
    assert_eq!(phone.after(Some(StreamPosition::ZERO)).await, told);
    arrived(told.upto).await;
    assert_eq!(waiting(&between, &world).await, 0);
    let reads = between.reads.load(Ordering::SeqCst);
    for _ in 0..5 {
        arrived(told.upto).await;
    }
    assert_eq!(between.reads.load(Ordering::SeqCst), reads, "who only waits costs nothing");
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

#[tokio::test]
async fn of_one_server_only_so_much_is_kept_and_it_can_be_forgotten() {
    let world = World::new().await;
    let raw = |json: Value| -> Box<RawValue> { serde_json::value::to_raw_value(&json).unwrap() };
    let keys = raw(json!({ "keys": "x".repeat(1_000) }));
    let change = async |user: &UserId, device: &str, stream_id, deleted| {
        let update = DeviceListUpdate {
            user,
            device: device.into(),
            display_name: None,
            stream_id,
            prev_ids: &[],
            deleted,
            keys: Some(&*keys),
        };
        world.users.note_remote_device(&update).await.unwrap();
        world.users.remote_device_list(user).await.unwrap().map(|list| list.devices)
    };
    let sign = async |user: &UserId| {
        let update = SigningKeyUpdate { user, master: Some(&*keys), self_signing: Some(&*keys) };
        world.users.note_remote_signing_keys(&update).await.unwrap();
    };
    let kept = async |server: &str| world.store.get(&REMOTE_KEPT, &server.to_owned()).await.unwrap();
    let (dora, carl) = (user_id!("@dora:b.test"), user_id!("@carl:c.test"));
    for n in 0..250 {
        assert_eq!(change(bob(), &n.to_string(), n + 1, false).await, Some(n as u32 + 1));
    }
    change(dora, "A", 1, false).await;
    sign(bob()).await;
    sign(bob()).await;
    change(carl, "A", 1, false).await;
    let of_b = kept("b.test").await.unwrap();
    assert_eq!(of_b.rows, 250 + 1 + 2 + 2, "devices, lists and keys");
    assert!((250_000..350_000).contains(&of_b.bytes), "{of_b:?}");
    assert_eq!(change(dora, "A", 2, true).await, Some(0));
    assert_eq!(world.users.remote_users(None, 2).await.unwrap(), ["@bob:b.test", "@carl:c.test"]);
    assert_eq!(
        world.users.remote_users(Some("@bob:b.test"), 9).await.unwrap(),
        [carl.as_str(), dora.as_str()]
    );

    world.users.forget_remote_user(bob()).await.unwrap();
    assert_eq!(world.users.remote_users(None, 9).await.unwrap(), [carl.as_str(), dora.as_str()]);
    assert_eq!(kept("b.test").await.unwrap().rows, 1);
    world.users.forget_remote_user(dora).await.unwrap();
    assert_eq!((kept("b.test").await, kept("c.test").await.unwrap().rows), (None, 2));

    // As if there were as much as may be.
    for full in [
        RemoteKept { rows: REMOTE_ROWS_OF_SERVER - 1, bytes: 0 },
        RemoteKept { rows: 0, bytes: REMOTE_BYTES_OF_SERVER - 1_000 },
    ] {
        let mut commit = Commit::new();
        commit.put(&REMOTE_KEPT, &"b.test".to_owned(), &full);
        world.store.commit(commit).await.unwrap();
        assert_eq!(change(bob(), "A", 1, false).await, Some(0), "it is known that there is more");
        assert!(world.users.remote_device_list(bob()).await.unwrap().unwrap().is_stale);
        sign(bob()).await;
        assert!(change(carl, &full.rows.to_string(), full.bytes + 2, false).await.unwrap() > 1);
        world.users.forget_remote_user(bob()).await.unwrap();
        assert_eq!(kept("b.test").await, Some(full));
    }
}
