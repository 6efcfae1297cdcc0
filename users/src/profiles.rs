//! Profiles: any fields, of which `displayname` and `avatar_url` show in rooms.
//! * A profile is one JSON object of at most `PROFILE_MAX` bytes; a key has at most `PROFILE_KEY_MAX`.
//! * The words by which the user directory finds a user change in the commit that changes the name.

use std::sync::Arc;

use bytes::Bytes;
use hearth_store::{Blob, Commit, CommitError, StoreError};
use ruma::UserId;
use serde_json::{Map, Value as Json, json};

use crate::{
    Users, UsersError,
    directory::words,
    tables::{DIRECTORY_WORDS, PROFILES},
    users::ATTEMPTS,
};

/// The largest profile, as JSON.
pub const PROFILE_MAX: usize = 64 * 1024;
/// The longest key of a field.
pub const PROFILE_KEY_MAX: usize = 255;

const DISPLAYNAME: &str = "displayname";
const AVATAR_URL: &str = "avatar_url";

/// A user's profile.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Profile(Map<String, Json>);

impl Profile {
    /// The name that rooms show.
    pub fn displayname(&self) -> Option<&str> {
        self.0.get(DISPLAYNAME)?.as_str()
    }

    /// The picture that rooms show, an `mxc:` URI.
    pub fn avatar_url(&self) -> Option<&str> {
        self.0.get(AVATAR_URL)?.as_str()
    }

    /// One field.
    pub fn field(&self, key: &str) -> Option<&Json> {
        self.0.get(key)
    }

    /// All fields.
    pub fn fields(&self) -> &Map<String, Json> {
        &self.0
    }
}

/// What a change of a profile left.
#[derive(Clone, Debug)]
pub struct ProfileChange {
    /// The profile now.
    pub profile: Arc<Profile>,
    /// Whether rooms show something else than before: the member events of joined rooms are to follow.
    pub rooms_follow: bool,
}

/// Why a profile could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// No account, or a deactivated one.
    #[error("there is no such user")]
    Unknown,
    /// The key is longer than `PROFILE_KEY_MAX`.
    #[error("the key is longer than {PROFILE_KEY_MAX} bytes")]
    KeyTooLarge,
    /// The profile would be larger than `PROFILE_MAX`.
    #[error("the profile would be larger than {PROFILE_MAX} bytes")]
    TooLarge,
    /// Not what the specification says of this field.
    #[error("{0}")]
    Invalid(&'static str),
    /// The store.
    #[error(transparent)]
    Users(#[from] UsersError),
}

impl From<StoreError> for ProfileError {
    fn from(error: StoreError) -> Self {
        Self::Users(error.into())
    }
}

impl Users {
    /// The profile of a local user; empty for those who have none.
    pub async fn profile(&self, user: &UserId) -> Result<Arc<Profile>, StoreError> {
        let key: Arc<str> = user.as_str().into();
        if let Some(profile) = self.inner.profiles.get(&key) {
            return Ok(profile);
        }
        let ticket = self.inner.profiles.ticket(&key);
        let row = self.inner.store.get(&PROFILES, &user.as_str().to_owned()).await?;
        let profile = Arc::new(decoded(row.as_ref()));
        self.inner.profiles.fill(key, profile.clone(), ticket);
        Ok(profile)
    }

    /// Sets a field of the profile; `None` removes it.
    pub async fn set_profile_field(
        &self,
        user: &UserId,
        field: &str,
        value: Option<Json>,
    ) -> Result<ProfileChange, ProfileError> {
        if field.len() > PROFILE_KEY_MAX {
            return Err(ProfileError::KeyTooLarge);
        }
        let value = checked(field, value)?;
        let id = user.as_str().to_owned();
        for _ in 0..ATTEMPTS {
            if !self.is_active(user).await? {
                return Err(ProfileError::Unknown);
            }
            let row = self.inner.store.get(&PROFILES, &id).await?;
            let before = decoded(row.as_ref());
            let mut after = before.clone();
            match &value {
                Some(value) => _ = after.0.insert(field.to_owned(), value.clone()),
                None => _ = after.0.remove(field),
            }
            if before == after {
                return Ok(ProfileChange { profile: Arc::new(after), rooms_follow: false });
            }
            let bytes = encoded(&after);
            if bytes.0.len() > PROFILE_MAX {
                return Err(ProfileError::TooLarge);
            }
            let mut commit = Commit::new();
            match &row {
                Some(row) => commit.expect(&PROFILES, &id, row),
                None => commit.expect_absent(&PROFILES, &id),
            }
            commit.put(&PROFILES, &id, &bytes);
            move_words(user, before.displayname(), after.displayname(), &mut commit);
            let changed = id.clone();
            let done = self.commit_then(commit, move |users, _| {
                users.inner.profiles.drop(&changed.as_str().into());
            });
            match done.await {
                Ok(_) => {
                    let rooms_follow = before.displayname() != after.displayname()
                        || before.avatar_url() != after.avatar_url();
                    return Ok(ProfileChange { profile: Arc::new(after), rooms_follow });
                }
                Err(CommitError::Conflict) => {}
                Err(CommitError::Store(error)) => return Err(error.into()),
            }
        }
        Err(UsersError::Busy.into())
    }

    /// The rows of a new account's profile.
    pub(crate) fn first_profile(&self, user: &UserId, displayname: Option<&str>, commit: &mut Commit) {
        if let Some(name) = displayname {
            let profile = Profile(Map::from_iter([(DISPLAYNAME.to_owned(), json!(name))]));
            commit.put(&PROFILES, &user.as_str().to_owned(), &encoded(&profile));
        }
        for word in words(user, displayname) {
            commit.put(&DIRECTORY_WORDS, &(word, user.as_str().to_owned()), &());
        }
    }

    /// Nobody finds the user any more, and nothing is shown of them.
    pub(crate) async fn remove_profile(&self, user: &UserId) -> Result<(), UsersError> {
        let id = user.as_str().to_owned();
        let row = self.inner.store.get(&PROFILES, &id).await?;
        let mut commit = Commit::new();
        commit.delete(&PROFILES, &id);
        for word in words(user, decoded(row.as_ref()).displayname()) {
            commit.delete(&DIRECTORY_WORDS, &(word, id.clone()));
        }
        self.commit_then(commit, move |users, _| users.inner.profiles.drop(&id.as_str().into())).await?;
        Ok(())
    }
}

fn decoded(row: Option<&Blob>) -> Profile {
    Profile(row.and_then(|row| serde_json::from_slice(&row.0).ok()).unwrap_or_default())
}

fn encoded(profile: &Profile) -> Blob {
    Blob(Bytes::from(Json::Object(profile.0.clone()).to_string()))
}

/// A value as it may be kept: the two fields that rooms show are strings, and empty ones are none.
fn checked(field: &str, value: Option<Json>) -> Result<Option<Json>, ProfileError> {
    match (field, value) {
        ("", _) => Err(ProfileError::Invalid("an empty key")),
        (DISPLAYNAME | AVATAR_URL, Some(Json::Null)) => Ok(None),
        (DISPLAYNAME | AVATAR_URL, Some(Json::String(text))) => {
            Ok((!text.is_empty()).then_some(Json::String(text)))
        }
        (DISPLAYNAME | AVATAR_URL, Some(_)) => Err(ProfileError::Invalid("this field must be a string")),
        (_, value) => Ok(value),
    }
}

fn move_words(user: &UserId, before: Option<&str>, after: Option<&str>, commit: &mut Commit) {
    let (before, after) = (words(user, before), words(user, after));
    for word in before.difference(&after) {
        commit.delete(&DIRECTORY_WORDS, &(word.clone(), user.as_str().to_owned()));
    }
    for word in after.difference(&before) {
        commit.put(&DIRECTORY_WORDS, &(word.clone(), user.as_str().to_owned()), &());
    }
}
