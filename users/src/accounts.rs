//! Accounts.
//! * A name is given out once: the row of a deactivated account stays.
//! * Guests, bots and the users of application services are accounts with a kind and a scope.
//! * A change of an account is in force for its running sessions at once.

use std::sync::Arc;

use hearth_store::{Commit, CommitError, Order, Record, StoreError};
use ruma::{OwnedUserId, UserId};
use serde::{Deserialize, Serialize};

use crate::{
    Users, UsersError,
    passwords::{PasswordError, PasswordHash},
    sessions::{NewSession, Session},
    tables::{ACCOUNTS, PASSWORDS},
    users::ATTEMPTS,
};

/// What kind of user an account is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A person.
    Person,
    /// Somebody without a password, who may only do what guests may.
    Guest,
    /// A user of an application service.
    Appservice,
    /// A program.
    Bot,
}

/// An account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// What kind of user it is.
    pub kind: Kind,
    /// What the account is confined to, in the words of whoever made it (an application service's id, a group).
    pub scope: Option<String>,
    /// When it was made, in milliseconds since 1970.
    pub created_at_ms: u64,
    /// Whether it may administer the server.
    pub admin: bool,
    /// Locked: nothing but logging out.
    pub locked: bool,
    /// Suspended: reading and leaving only.
    pub suspended: bool,
    /// Closed for good.
    pub deactivated: bool,
    /// Closed with the wish to be forgotten.
    pub erased: bool,
}
impl Record for Account {}

/// An account to be made.
#[derive(Clone, Debug)]
pub struct NewAccount {
    /// Its id: 255 bytes at most, the grammar of new ids unless it is an application service's.
    pub user_id: OwnedUserId,
    /// What kind of user it is.
    pub kind: Kind,
    /// What it is confined to.
    pub scope: Option<String>,
    /// Whether it may administer the server.
    pub admin: bool,
    /// Without one, nobody can log in by password.
    pub password: Option<PasswordHash>,
    /// The registration token that permits this; it is used up with it.
    pub registration_token: Option<String>,
    /// The first display name.
    pub displayname: Option<String>,
}

impl NewAccount {
    /// A person.
    pub fn person(user_id: OwnedUserId, password: Option<PasswordHash>) -> Self {
        Self {
            user_id,
            kind: Kind::Person,
            scope: None,
            admin: false,
            password,
            registration_token: None,
            displayname: None,
        }
    }
}

/// Why an account could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CreateAccountError {
    /// The id is not one that can be given out.
    #[error("the user id is not allowed: {0}")]
    InvalidUserId(&'static str),
    /// Somebody has it or had it.
    #[error("the user id is taken")]
    InUse,
    /// The registration token is unknown, expired or used up.
    #[error("the registration token is not valid")]
    RegistrationToken,
    /// The store.
    #[error(transparent)]
    Users(#[from] UsersError),
}

/// Why an account could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// There is no such account, or it is deactivated.
    #[error("there is no such account")]
    Unknown,
    /// The password could not be hashed or checked.
    #[error(transparent)]
    Password(#[from] PasswordError),
    /// The store.
    #[error(transparent)]
    Users(#[from] UsersError),
}

impl From<StoreError> for CreateAccountError {
    fn from(error: StoreError) -> Self {
        Self::Users(error.into())
    }
}

impl From<StoreError> for AccountError {
    fn from(error: StoreError) -> Self {
        Self::Users(error.into())
    }
}

impl Users {
    /// Hashes a password, which takes a while: before the account that it is for is made or changed.
    pub async fn hash_password(&self, password: &str) -> Result<PasswordHash, PasswordError> {
        self.inner.hasher.hash(password).await
    }

    /// Whether a new account could have this id.
    pub async fn check_user_id_free(&self, user_id: &UserId) -> Result<(), CreateAccountError> {
        valid_new_id(user_id, Kind::Person)?;
        match self.account(user_id).await? {
            Some(_) => Err(CreateAccountError::InUse),
            None => Ok(()),
        }
    }

    /// Makes an account, in one commit with its profile and, if wanted, its first session.
    pub async fn create_account(
        &self,
        new: NewAccount,
        session: Option<NewSession>,
    ) -> Result<Option<Session>, CreateAccountError> {
        valid_new_id(&new.user_id, new.kind)?;
        let id = new.user_id.as_str().to_owned();
        for _ in 0..ATTEMPTS {
            if self.account(&new.user_id).await?.is_some() {
                return Err(CreateAccountError::InUse);
            }
            let mut commit = Commit::new();
            commit.expect_absent(&ACCOUNTS, &id);
            let account = Account {
                kind: new.kind,
                scope: new.scope.clone(),
                created_at_ms: self.now_ms(),
                admin: new.admin,
                locked: false,
                suspended: false,
                deactivated: false,
                erased: false,
            };
            commit.put(&ACCOUNTS, &id, &account);
            if let Some(password) = &new.password {
                commit.put(&PASSWORDS, &id, &password.clone().into_phc());
            }
            if let Some(token) = &new.registration_token {
                self.use_registration_token(token, &mut commit)
                    .await?
                    .ok_or(CreateAccountError::RegistrationToken)?;
            }
            self.first_profile(&new.user_id, new.displayname.as_deref(), &mut commit);
            let started = session.as_ref().map(|session| self.new_device(session, &mut commit));
            let made = id.clone();
            let done = self.commit_then(commit, move |users, _| {
                users.inner.accounts.drop(&made.as_str().into());
                users.inner.profiles.drop(&made.as_str().into());
            });
            match done.await {
                Ok(_) => return Ok(started),
                Err(CommitError::Conflict) => {}
                Err(CommitError::Store(error)) => return Err(error.into()),
            }
        }
        Err(UsersError::Busy.into())
    }

    /// The account of this user, if there is or was one.
    pub async fn account(&self, user_id: &UserId) -> Result<Option<Arc<Account>>, StoreError> {
        let key: Arc<str> = user_id.as_str().into();
        if let Some(account) = self.inner.accounts.get(&key) {
            return Ok(Some(account));
        }
        let ticket = self.inner.accounts.ticket(&key);
        let Some(account) = self.inner.store.get(&ACCOUNTS, &user_id.as_str().to_owned()).await? else {
            return Ok(None);
        };
        let account = Arc::new(account);
        self.inner.accounts.fill(key, account.clone(), ticket);
        Ok(Some(account))
    }

    /// Whether this is somebody who has an account here that is not deactivated.
    pub async fn is_active(&self, user_id: &UserId) -> Result<bool, StoreError> {
        Ok(self.account(user_id).await?.is_some_and(|account| !account.deactivated))
    }

    /// Whether there is any account at all.
    pub async fn has_accounts(&self) -> Result<bool, StoreError> {
        Ok(!self.inner.store.range(&ACCOUNTS, ACCOUNTS.all(), Order::Forward, 1).await?.is_empty())
    }

    /// Accounts in the order of their ids, after `after`.
    pub async fn accounts(
        &self,
        after: Option<&UserId>,
        limit: usize,
    ) -> Result<Vec<(OwnedUserId, Account)>, StoreError> {
        let mut range = ACCOUNTS.all();
        if let Some(after) = after {
            range = range.after(&after.as_str().to_owned());
        }
        let rows = self.inner.store.range(&ACCOUNTS, range, Order::Forward, limit).await?;
        Ok(rows.into_iter().filter_map(|(id, account)| Some((UserId::parse(id).ok()?, account))).collect())
    }

    /// Whether this is the password of an account that is not deactivated. Takes as long for those who do not exist.
    pub async fn verify_password(&self, user_id: &UserId, password: &str) -> Result<bool, AccountError> {
        let kept = match self.account(user_id).await? {
            Some(account) if !account.deactivated => {
                self.inner.store.get(&PASSWORDS, &user_id.as_str().to_owned()).await?
            }
            _ => None,
        };
        Ok(self.inner.hasher.verify(password, kept).await?)
    }

    /// Sets the password. Sessions are ended by [`Users::delete_devices_except`].
    pub async fn set_password(&self, user_id: &UserId, password: PasswordHash) -> Result<(), AccountError> {
        let id = user_id.as_str().to_owned();
        for _ in 0..ATTEMPTS {
            let account = self.active_account(user_id).await?;
            let mut commit = Commit::new();
            commit.expect(&ACCOUNTS, &id, &account);
            commit.put(&PASSWORDS, &id, &password.clone().into_phc());
            match self.inner.store.commit(commit).await {
                Ok(_) => return Ok(()),
                Err(CommitError::Conflict) => self.inner.accounts.drop(&id.as_str().into()),
                Err(CommitError::Store(error)) => return Err(error.into()),
            }
        }
        Err(UsersError::Busy.into())
    }

    /// Makes somebody an administrator, or no longer one.
    pub async fn set_admin(&self, user_id: &UserId, admin: bool) -> Result<(), AccountError> {
        self.update_account(user_id, |account| account.admin = admin).await.map(drop)
    }

    /// Locks an account, or opens it again.
    pub async fn set_locked(&self, user_id: &UserId, locked: bool) -> Result<(), AccountError> {
        self.update_account(user_id, |account| account.locked = locked).await.map(drop)
    }

    /// Suspends an account, or ends that.
    pub async fn set_suspended(&self, user_id: &UserId, suspended: bool) -> Result<(), AccountError> {
        self.update_account(user_id, |account| account.suspended = suspended).await.map(drop)
    }

    pub(crate) async fn update_account(
        &self,
        user_id: &UserId,
        change: impl Fn(&mut Account),
    ) -> Result<Account, AccountError> {
        let id = user_id.as_str().to_owned();
        for _ in 0..ATTEMPTS {
            let before = self.active_account(user_id).await?;
            let mut after = Account::clone(&before);
            change(&mut after);
            let mut commit = Commit::new();
            commit.expect(&ACCOUNTS, &id, &before);
            commit.put(&ACCOUNTS, &id, &after);
            let changed = id.clone();
            let done = self.commit_then(commit, move |users, _| {
                users.inner.accounts.drop(&changed.as_str().into());
                users.inner.endings.wake_all();
            });
            match done.await {
                Ok(_) => return Ok(after),
                Err(CommitError::Conflict) => {}
                Err(CommitError::Store(error)) => return Err(error.into()),
            }
        }
        Err(UsersError::Busy.into())
    }

    async fn active_account(&self, user_id: &UserId) -> Result<Account, AccountError> {
        match self.account(user_id).await? {
            Some(account) if !account.deactivated => Ok(Account::clone(&account)),
            _ => Err(AccountError::Unknown),
        }
    }
}

/// New ids keep to the grammar of today; application services may hold older ones.
fn valid_new_id(user_id: &UserId, kind: Kind) -> Result<(), CreateAccountError> {
    if user_id.as_str().len() > 255 {
        return Err(CreateAccountError::InvalidUserId("longer than 255 bytes"));
    }
    if user_id.localpart().is_empty() {
        return Err(CreateAccountError::InvalidUserId("an empty name"));
    }
    let allowed = match kind {
        Kind::Appservice => user_id.validate_historical().is_ok(),
        _ => user_id.validate_strict().is_ok(),
    };
    if allowed {
        Ok(())
    } else {
        Err(CreateAccountError::InvalidUserId("only a-z, 0-9 and ._=-/+ may be in it"))
    }
}
