//! What users have and do, on the memory store, and once on sled.

mod accounts;
mod openid;
mod profiles;
mod receipts;
mod sessions;
mod settings;
mod to_device;
mod uia;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use hearth_store::Store;
use hearth_users::{NewAccount, NewSession, Options, PasswordCost, Session, Users};
use ruma::{OwnedUserId, UserId, user_id};

/// Users on a store, with a clock that only the test moves.
struct World {
    users: Users,
    store: Store,
    now_ms: Arc<AtomicU64>,
}

const NOON: u64 = 1_700_000_000_000;

fn options(now_ms: &Arc<AtomicU64>) -> Options {
    let clock = now_ms.clone();
    let mut options = Options::new(Arc::new(move || clock.load(Ordering::Relaxed)));
    options.password_cost = PasswordCost { memory_kib: 64, passes: 1, lanes: 1 };
    options
}

impl World {
    async fn new() -> Self {
        Self::on(Store::memory().await)
    }

    fn on(store: Store) -> Self {
        Self::with(store, |_| ())
    }

    fn with(store: Store, change: impl FnOnce(&mut Options)) -> Self {
        let now_ms = Arc::new(AtomicU64::new(NOON));
        let mut options = options(&now_ms);
        change(&mut options);
        Self { users: Users::open(store.clone(), options), store, now_ms }
    }

    fn pass_ms(&self, ms: u64) {
        self.now_ms.fetch_add(ms, Ordering::Relaxed);
    }

    /// An account without a password.
    async fn user(&self, localpart: &str) -> OwnedUserId {
        let user = UserId::parse(format!("@{localpart}:a.test")).unwrap();
        self.users.create_account(NewAccount::person(user.clone(), None), None).await.unwrap();
        user
    }

    async fn log_in(&self, user: &UserId, device: Option<&str>, refreshable: bool) -> Session {
        let new = NewSession {
            user_id: user.to_owned(),
            device_id: device.map(Into::into),
            display_name: Some("a phone".to_owned()),
            refreshable,
        };
        self.users.start_session(new).await.unwrap()
    }

    async fn alice(&self) -> OwnedUserId {
        self.user("alice").await
    }
}

// What was acknowledged is there after the store was closed and opened again.
#[tokio::test]
async fn everything_survives_a_restart_on_sled() {
    let folder = tempfile::tempdir().unwrap();
    let alice = user_id!("@alice:a.test");
    let token = {
        let store = Store::open_sled(folder.path(), Default::default()).await.unwrap();
        let world = World::on(store);
        world.alice().await;
        let session = world.log_in(alice, Some("PHONE"), false).await;
        let content =
            serde_json::value::to_raw_value(&serde_json::json!({ "a": "x".repeat(20_000) })).unwrap();
        world.users.set_account_data(alice, None, "org.example", &content).await.unwrap();
        world.users.set_profile_field(alice, "displayname", Some("Alice A".into())).await.unwrap();
        world.users.close().await.unwrap();
        let World { users, store, .. } = world;
        drop(users);
        store.close().await;
        session.access_token
    };
    let store = Store::open_sled(folder.path(), Default::default()).await.unwrap();
    let world = World::on(store);
    let who = world.users.authenticate(&token).await.unwrap();
    assert_eq!((who.user_id().as_str(), who.device_id().as_str()), (alice.as_str(), "PHONE"));
    assert_eq!(world.users.profile(alice).await.unwrap().displayname(), Some("Alice A"));
    let content = world.users.account_data(alice, None, "org.example").await.unwrap().unwrap();
    assert_eq!(content.get().len(), 20_000 + r#"{"a":""}"#.len());
    let found = world.users.search_people("ali", &[], 10).await.unwrap();
    assert_eq!(found.people.len(), 1);
}
