//! `Users`: the handle, its options, and what all parts of the crate share.

use std::{sync::Arc, time::Duration};

use hearth_store::{Commit, CommitError, Committed, Store, StoreError, StreamPosition, Topic};
use ruma::{RoomId, UserId, push::Ruleset};
use serde_json::Value as Json;
use tokio::sync::broadcast;

use crate::{
    accounts::Account,
    cache::Cache,
    changes::LastChanges,
    endings::Endings,
    last_seen::Seen,
    openid::OpenIdTokens,
    passwords::{Hasher, PasswordCost},
    presence::{Presence, PresenceOptions},
    profiles::Profile,
    sessions::CachedToken,
    to_device::Inboxes,
    tokens::TokenHash,
    typing::Typing,
    uia::UiaSessions,
    volatile::{VOLATILE_BACKLOG, Volatile},
};

/// Milliseconds since 1970.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// How often a decision is taken anew because another writer was first.
pub(crate) const ATTEMPTS: usize = 16;
const CACHED_TOKENS: usize = 20_000;
const CACHED_ACCOUNTS: usize = 20_000;
const CACHED_PROFILES: usize = 4_000;
const CACHED_PUSH_RULES: usize = 4_000;
const CACHED_IGNORES: usize = 20_000;
const CACHED_FILTERS: usize = 2_000;
const REMEMBERED_USERS: usize = 50_000;
const REMEMBERED_ROOMS: usize = 50_000;

/// What is to be chosen when the users are opened.
#[derive(Clone)]
pub struct Options {
    /// What time it is.
    pub clock: Clock,
    /// How long an access token is good that comes with a refresh token.
    pub access_token_lifetime: Duration,
    /// How long a refresh token is good; `None`: until it is used.
    pub refresh_token_lifetime: Option<Duration>,
    /// How long a login token is good.
    pub login_token_lifetime: Duration,
    /// How long user-interactive authentication may take.
    pub uia_lifetime: Duration,
    /// Registration tokens beside the kept ones: good at any time for any number.
    pub registration_tokens: Vec<String>,
    /// Passwords hashed at one time; each takes 19 MiB and a core.
    pub hashing_threads: usize,
    /// What hashing a password costs.
    pub password_cost: PasswordCost,
    /// How presence behaves.
    pub presence: PresenceOptions,
}

impl Options {
    /// The defaults, with this clock.
    pub fn new(clock: Clock) -> Self {
        Self {
            clock,
            access_token_lifetime: Duration::from_secs(15 * 60),
            refresh_token_lifetime: None,
            login_token_lifetime: Duration::from_secs(120),
            uia_lifetime: Duration::from_secs(30 * 60),
            registration_tokens: Vec::new(),
            hashing_threads: std::thread::available_parallelism().map_or(1, usize::from),
            password_cost: PasswordCost::default(),
            presence: PresenceOptions::default(),
        }
    }
}

/// An operation whose only trouble can be the store, or writers that never let it through.
#[derive(Debug, thiserror::Error)]
pub enum UsersError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Others changed the same thing again and again.
    #[error("too many writers at once")]
    Busy,
}

impl From<CommitError> for UsersError {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Conflict => Self::Busy,
            CommitError::Store(error) => Self::Store(error),
        }
    }
}

/// All users of this server. Cheap to clone.
#[derive(Clone)]
pub struct Users {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) store: Store,
    pub(crate) options: Options,
    pub(crate) hasher: Hasher,
    pub(crate) uia: UiaSessions,
    pub(crate) endings: Endings,
    pub(crate) tokens: Cache<TokenHash, Arc<CachedToken>>,
    pub(crate) accounts: Cache<Arc<str>, Arc<Account>>,
    pub(crate) profiles: Cache<Arc<str>, Arc<Profile>>,
    pub(crate) push_rules: Cache<Arc<str>, (Arc<Ruleset>, bool)>,
    pub(crate) ignores: Cache<Arc<str>, Arc<std::collections::BTreeSet<ruma::OwnedUserId>>>,
    pub(crate) filters: Cache<(Arc<str>, Arc<str>), Arc<Json>>,
    pub(crate) user_changes: LastChanges,
    pub(crate) receipt_changes: LastChanges,
    pub(crate) seen: Seen,
    pub(crate) openid_tokens: OpenIdTokens,
    pub(crate) inboxes: Inboxes,
    typing: Arc<Typing>,
    presence: Arc<Presence>,
    volatile: broadcast::Sender<Volatile>,
}

impl Users {
    /// The users that `store` holds. Starts the tasks that let typing and presence run out, that write down when
    /// devices were last seen and that remove expired login tokens; they end with the last clone.
    pub fn open(store: Store, options: Options) -> Self {
        let (volatile, _) = broadcast::channel(VOLATILE_BACKLOG);
        let floor = store.watermark();
        let users = Self {
            inner: Arc::new(Inner {
                hasher: Hasher::new(options.hashing_threads, options.password_cost),
                uia: UiaSessions::new(options.uia_lifetime),
                endings: Endings::default(),
                tokens: Cache::new(CACHED_TOKENS),
                accounts: Cache::new(CACHED_ACCOUNTS),
                profiles: Cache::new(CACHED_PROFILES),
                push_rules: Cache::new(CACHED_PUSH_RULES),
                ignores: Cache::new(CACHED_IGNORES),
                filters: Cache::new(CACHED_FILTERS),
                user_changes: LastChanges::new(floor, REMEMBERED_USERS),
                receipt_changes: LastChanges::new(floor, REMEMBERED_ROOMS),
                seen: Seen::default(),
                openid_tokens: OpenIdTokens::default(),
                inboxes: Inboxes::default(),
                typing: Arc::new(Typing::new(volatile.clone())),
                presence: Arc::new(Presence::new(options.presence.clone(), volatile.clone())),
                volatile,
                store,
                options,
            }),
        };
        users.start_tasks();
        users
    }

    /// Who types where.
    pub fn typing(&self) -> &Arc<Typing> {
        &self.inner.typing
    }

    /// Who is online.
    pub fn presence(&self) -> &Arc<Presence> {
        &self.inner.presence
    }

    /// Wake-ups for typing and presence. Who lags looks at everything.
    pub fn volatile_changes(&self) -> broadcast::Receiver<Volatile> {
        self.inner.volatile.subscribe()
    }

    /// Whether anything of `user` may have changed after `since`: global and room account data, push rules, messages to
    /// their devices.
    /// In memory; `false` is certain for all positions up to the store's watermark.
    pub fn changed_since(&self, user: &UserId, since: StreamPosition) -> bool {
        self.inner.user_changes.changed_since(user.as_str(), since)
    }

    /// Whether receipts of `room` may have changed after `since`, as `changed_since`.
    pub fn receipts_changed_since(&self, room: &RoomId, since: StreamPosition) -> bool {
        self.inner.receipt_changes.changed_since(room.as_str(), since)
    }

    /// The rooms (ids) whose receipts may have changed after `since`; `None` where they are more than `limit` or `since`
    /// is further back than is remembered: then ask for each room.
    pub fn rooms_with_receipts_since(&self, since: StreamPosition, limit: usize) -> Option<Vec<Arc<str>>> {
        self.inner.receipt_changes.keys_since(since, limit)
    }

    /// What is to be written before the process ends.
    pub async fn close(&self) -> Result<(), UsersError> {
        self.write_last_seen().await
    }

    pub(crate) fn now_ms(&self) -> u64 {
        (self.inner.options.clock)()
    }

    /// Commits what `/sync` shows of `user` (and of a room's receipts): marked as changing from before the submission
    /// until the position is known. `then` as in [`Users::commit_then`].
    pub(crate) async fn commit_changes(
        &self,
        user: Option<&UserId>,
        room: Option<&RoomId>,
        mut commit: Commit,
        then: impl FnOnce(&Self) + Send + 'static,
    ) -> Result<Committed, CommitError> {
        let user: Option<Arc<str>> = user.map(|user| user.as_str().into());
        let room: Option<Arc<str>> = room.map(|room| room.as_str().into());
        if let Some(user) = &user {
            commit.touch(Topic::new(b'u', user.as_bytes()));
            self.inner.user_changes.begin(user);
        }
        if let Some(room) = &room {
            commit.touch(Topic::new(b'c', room.as_bytes()));
            self.inner.receipt_changes.begin(room);
        }
        self.commit_then(commit, move |users, outcome| {
            let position = outcome.as_ref().ok().map(Committed::last);
            if let Some(user) = &user {
                users.inner.user_changes.finish(user, position);
            }
            if let Some(room) = &room {
                users.inner.receipt_changes.finish(room, position);
            }
            then(users);
        })
        .await
    }

    /// Commits, and then does in memory what must follow, whatever the outcome: also where the caller is cancelled, as
    /// when a client goes away while its request is answered. A token that has ended on the disk must not live on here.
    pub(crate) async fn commit_then(
        &self,
        commit: Commit,
        then: impl FnOnce(&Self, &Result<Committed, CommitError>) + Send + 'static,
    ) -> Result<Committed, CommitError> {
        let pending = self.inner.store.submit(commit);
        let users = self.clone();
        let outcome = tokio::spawn(async move {
            let outcome = pending.await;
            then(&users, &outcome);
            outcome
        });
        outcome.await.unwrap_or(Err(CommitError::Store(StoreError::Closed)))
    }

    fn start_tasks(&self) {
        let weak = Arc::downgrade(&self.inner);
        let tasks = [
            tokio::spawn(self.inner.typing.clone().expire()),
            tokio::spawn(self.inner.presence.clone().sweep()),
        ];
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(crate::last_seen::WRITE_EVERY).await;
                let Some(inner) = weak.upgrade() else { break };
                let users = Users { inner };
                if let Err(error) = users.write_last_seen().await {
                    tracing::warn!(%error, "when devices were last seen could not be written");
                }
                if let Err(error) = users.sweep_login_tokens().await {
                    tracing::warn!(%error, "expired login tokens could not be removed");
                }
                if let Err(error) = users.sweep_inboxes().await {
                    tracing::warn!(%error, "messages to devices that are gone could not be removed");
                }
                if let Err(error) = users.sweep_seen_messages().await {
                    tracing::warn!(%error, "old ids of messages to devices could not be removed");
                }
            }
            for task in tasks {
                task.abort();
            }
        });
    }
}
