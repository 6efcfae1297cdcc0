//! Account data, global and by room.
//! * A change has a position and one index row, so that "what changed for this user after t" is one range.
//! * Some types have rules of their own: `m.push_rules` and `m.fully_read` are written by what they belong to.
//! * Nothing here is read from a cache except the ignored users, which the writer drops.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use bytes::Bytes;
use hearth_store::{Blob, Commit, CommitError, Order, Positioned, StoreError, StreamPosition};
use ruma::{OwnedRoomId, OwnedUserId, RoomId, UserId};
use serde_json::{Value as Json, value::RawValue};

use crate::{
    Users, UsersError,
    tables::{ACCOUNT_DATA, ACCOUNT_DATA_CHANGES},
    users::ATTEMPTS,
};

/// The largest content of one type.
pub const ACCOUNT_DATA_MAX: usize = 256 * 1024;
/// The type that holds the push rules.
pub const PUSH_RULES: &str = "m.push_rules";
/// The type that holds the read marker of a room.
pub const FULLY_READ: &str = "m.fully_read";
/// The type that lists ignored users.
pub const IGNORED_USERS: &str = "m.ignored_user_list";
const TYPE_MAX: usize = 255;
/// Ignored users that are minded.
const IGNORED_MAX: usize = 10_000;
/// Rows read at a time.
const PAGE: usize = 500;

/// JSON as it was written.
pub type RawJson = Box<RawValue>;

/// Account data that changed, newest content: by type, and by room and type.
#[derive(Clone, Debug, Default)]
pub struct AccountDataChanges {
    /// Global ones.
    pub global: BTreeMap<String, RawJson>,
    /// Those of rooms.
    pub rooms: BTreeMap<OwnedRoomId, BTreeMap<String, RawJson>>,
}

/// Why account data could not be written.
#[derive(Debug, thiserror::Error)]
pub enum AccountDataError {
    /// The type belongs to another endpoint.
    #[error("account data of the type {0} cannot be written directly")]
    Reserved(String),
    /// The content is too large, or the type too long.
    #[error("the account data is too large")]
    TooLarge,
    /// The content is not a JSON object.
    #[error("account data must be a JSON object")]
    NotAnObject,
    /// The store.
    #[error(transparent)]
    Users(#[from] UsersError),
}

/// Why a user cannot be invited.
#[derive(Debug, thiserror::Error)]
pub enum NotInvitable {
    /// Nobody is called that here, or not any more.
    #[error("there is no user {0}")]
    Unknown(OwnedUserId),
    /// They want no invites.
    #[error("{0} does not accept invites")]
    WantsNone(OwnedUserId),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<StoreError> for AccountDataError {
    fn from(error: StoreError) -> Self {
        Self::Users(error.into())
    }
}

type Row = Positioned<Blob>;

impl Users {
    /// The content of one type: of `room`, or global.
    pub async fn account_data(
        &self,
        user: &UserId,
        room: Option<&RoomId>,
        kind: &str,
    ) -> Result<Option<RawJson>, StoreError> {
        if kind == PUSH_RULES && room.is_none() {
            return self.push_rules_content(user).await.map(Some);
        }
        let row = self.inner.store.get(&ACCOUNT_DATA, &key(user, room, kind)).await?;
        Ok(row.and_then(|row| raw(&row.value)))
    }

    /// Whether the user wants no invites at all, by `m.invite_permission_config`.
    pub async fn blocks_invites(&self, user: &UserId) -> Result<bool, StoreError> {
        #[derive(serde::Deserialize)]
        struct Content {
            default_action: Option<String>,
        }
        let content = self.account_data(user, None, "m.invite_permission_config").await?;
        let content = content.and_then(|content| serde_json::from_str::<Content>(content.get()).ok());
        Ok(content.is_some_and(|content| content.default_action.as_deref() == Some("block")))
    }

    /// Refuses invites to those who are not here or want none.
    pub async fn check_invitable(&self, user: &UserId) -> Result<(), NotInvitable> {
        if !self.is_active(user).await? {
            return Err(NotInvitable::Unknown(user.to_owned()));
        }
        match self.blocks_invites(user).await? {
            true => Err(NotInvitable::WantsNone(user.to_owned())),
            false => Ok(()),
        }
    }

    /// Writes the content of one type, which `/sync` then shows.
    pub async fn set_account_data(
        &self,
        user: &UserId,
        room: Option<&RoomId>,
        kind: &str,
        content: &RawValue,
    ) -> Result<StreamPosition, AccountDataError> {
        if kind == FULLY_READ || (kind == PUSH_RULES && room.is_none()) {
            return Err(AccountDataError::Reserved(kind.to_owned()));
        }
        self.put_account_data(user, room, kind, content).await
    }

    /// What changed after `since` up to `upto`; without `since` all there is, push rules included.
    pub async fn account_data_changes(
        &self,
        user: &UserId,
        since: Option<StreamPosition>,
        upto: StreamPosition,
    ) -> Result<AccountDataChanges, StoreError> {
        let mut changes = AccountDataChanges::default();
        if since.is_some_and(|since| !self.changed_since(user, since)) {
            return Ok(changes);
        }
        let after = since.unwrap_or(StreamPosition::ZERO);
        let id = user.as_str().to_owned();
        let mut range =
            ACCOUNT_DATA_CHANGES.prefix(&id).after(&(id.clone(), after)).up_to(&(id.clone(), upto));
        let mut done = HashSet::new();
        loop {
            let store = &self.inner.store;
            let rows = store.range(&ACCOUNT_DATA_CHANGES, range.clone(), Order::Forward, PAGE).await?;
            let Some((last, ())) = rows.last() else { break };
            range = range.after(last);
            let full = rows.len() == PAGE;
            let keys: Vec<_> = rows
                .into_iter()
                .map(|((user, _, room, kind), ())| (user, room, kind))
                .filter(|key| done.insert((key.1.clone(), key.2.clone())))
                .collect();
            let contents = store.multi_get(&ACCOUNT_DATA, &keys).await?;
            for ((_, room, kind), row) in keys.into_iter().zip(contents) {
                if let Some(content) = row.and_then(|row| raw(&row.value)) {
                    changes.add(&room, kind, content);
                }
            }
            if !full {
                break;
            }
        }
        // Push rules are shown as they are in force: with the rules that this version adds.
        if since.is_none() || changes.global.contains_key(PUSH_RULES) {
            changes.global.insert(PUSH_RULES.to_owned(), self.push_rules_content(user).await?);
        }
        Ok(changes)
    }

    /// All account data of one room, for a room that the user is shown for the first time.
    pub async fn room_account_data(
        &self,
        user: &UserId,
        room: &RoomId,
    ) -> Result<BTreeMap<String, RawJson>, StoreError> {
        let prefix = (user.as_str().to_owned(), room.as_str().to_owned());
        let range = ACCOUNT_DATA.prefix(&prefix);
        let rows = self.inner.store.range(&ACCOUNT_DATA, range, Order::Forward, PAGE).await?;
        Ok(rows.into_iter().filter_map(|((_, _, kind), row)| Some((kind, raw(&row.value)?))).collect())
    }

    /// Whom the user ignores.
    pub async fn ignored_users(&self, user: &UserId) -> Result<Arc<BTreeSet<OwnedUserId>>, StoreError> {
        let cache_key: Arc<str> = user.as_str().into();
        if let Some(ignored) = self.inner.ignores.get(&cache_key) {
            return Ok(ignored);
        }
        let ticket = self.inner.ignores.ticket(&cache_key);
        let row = self.inner.store.get(&ACCOUNT_DATA, &key(user, None, IGNORED_USERS)).await?;
        let content: Json =
            row.and_then(|row| serde_json::from_slice(&row.value.0).ok()).unwrap_or(Json::Null);
        let listed = content["ignored_users"].as_object();
        let ids = listed.into_iter().flat_map(|users| users.keys()).take(IGNORED_MAX);
        let ignored: Arc<BTreeSet<_>> = Arc::new(ids.filter_map(|id| UserId::parse(id).ok()).collect());
        self.inner.ignores.fill(cache_key, ignored.clone(), ticket);
        Ok(ignored)
    }

    pub(crate) async fn put_account_data(
        &self,
        user: &UserId,
        room: Option<&RoomId>,
        kind: &str,
        content: &RawValue,
    ) -> Result<StreamPosition, AccountDataError> {
        let bytes = object(kind, content.get())?;
        self.edit_account_data(user, room, kind, |_| Ok::<_, AccountDataError>(Some(bytes.clone())))
            .await
            .map(|position| position.unwrap_or_default())
    }

    /// Reads, lets `edit` decide on the content (`None`: leave it) and writes; again if somebody else wrote meanwhile.
    pub(crate) async fn edit_account_data<E: From<UsersError>>(
        &self,
        user: &UserId,
        room: Option<&RoomId>,
        kind: &str,
        edit: impl Fn(Option<&[u8]>) -> Result<Option<Bytes>, E>,
    ) -> Result<Option<StreamPosition>, E> {
        for _ in 0..ATTEMPTS {
            let mut commit = Commit::new();
            let before =
                self.read_account_data(user, room, kind).await.map_err(|error| E::from(error.into()))?;
            let Some(after) = edit(before.as_ref().map(|row| &*row.value.0))? else { return Ok(None) };
            self.write_account_data(user, room, kind, before.as_ref(), after, &mut commit);
            // A waiting /sync is woken by the commit itself, before we are told of it.
            let caching = (
                (kind == IGNORED_USERS).then(|| self.inner.ignores.changing(user.as_str().into())),
                (kind == PUSH_RULES).then(|| self.inner.push_rules.changing(user.as_str().into())),
            );
            // The guards go with a cancelled caller; what was cached meanwhile goes when the change is there.
            let (id, kind) = (Arc::<str>::from(user.as_str()), kind.to_owned());
            let done = self.commit_changes(Some(user), None, commit, move |users| match kind.as_str() {
                IGNORED_USERS => users.inner.ignores.drop(&id),
                PUSH_RULES => users.inner.push_rules.drop(&id),
                _ => {}
            });
            let outcome = done.await;
            drop(caching);
            match outcome {
                Ok(committed) => return Ok(Some(committed.last())),
                Err(CommitError::Conflict) => {}
                Err(CommitError::Store(error)) => return Err(E::from(error.into())),
            }
        }
        Err(E::from(UsersError::Busy))
    }

    pub(crate) async fn read_account_data(
        &self,
        user: &UserId,
        room: Option<&RoomId>,
        kind: &str,
    ) -> Result<Option<Row>, StoreError> {
        self.inner.store.get(&ACCOUNT_DATA, &key(user, room, kind)).await
    }

    /// The rows of a change from `before`, which is a precondition.
    pub(crate) fn write_account_data(
        &self,
        user: &UserId,
        room: Option<&RoomId>,
        kind: &str,
        before: Option<&Row>,
        after: Bytes,
        commit: &mut Commit,
    ) {
        let key = key(user, room, kind);
        let index = |at| (key.0.clone(), at, key.1.clone(), key.2.clone());
        let position = commit.position();
        match before {
            Some(before) => {
                commit.expect(&ACCOUNT_DATA, &key, before);
                commit.delete(&ACCOUNT_DATA_CHANGES, &index(before.position));
            }
            None => commit.expect_absent(&ACCOUNT_DATA, &key),
        }
        commit.put(&ACCOUNT_DATA, &key, &Positioned { position, value: Blob(after) });
        commit.put(&ACCOUNT_DATA_CHANGES, &index(position), &());
    }
}

impl AccountDataChanges {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.global.is_empty() && self.rooms.is_empty()
    }

    fn add(&mut self, room: &str, kind: String, content: RawJson) {
        if room.is_empty() {
            self.global.insert(kind, content);
        } else if let Ok(room) = RoomId::parse(room) {
            self.rooms.entry(room).or_default().insert(kind, content);
        }
    }
}

fn key(user: &UserId, room: Option<&RoomId>, kind: &str) -> (String, String, String) {
    let room = room.map(|room| room.as_str().to_owned()).unwrap_or_default();
    (user.as_str().to_owned(), room, kind.to_owned())
}

fn raw(content: &Blob) -> Option<RawJson> {
    serde_json::from_slice(&content.0).ok()
}

/// The bytes of a content that may be kept.
fn object(kind: &str, content: &str) -> Result<Bytes, AccountDataError> {
    if content.len() > ACCOUNT_DATA_MAX || kind.len() > TYPE_MAX {
        return Err(AccountDataError::TooLarge);
    }
    if !content.trim_start().starts_with('{') {
        return Err(AccountDataError::NotAnObject);
    }
    Ok(Bytes::copy_from_slice(content.trim().as_bytes()))
}
