//! Sessions: access tokens, refresh tokens and login tokens.
//! * An access token that was revoked is refused from when the revocation is answered: the cache drops it before that.
//! * Refreshing keeps the old pair good until the new one is first used; asking again meanwhile replaces the new one.
//! * All tokens of a device stand in its row, so that removing it removes them in one commit.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use hearth_store::{Commit, CommitError, Order, StoreError};
use ruma::{DeviceId, OwnedDeviceId, OwnedUserId, UserId};

use crate::{
    Account, TokenHash, Users, UsersError,
    tables::{
        ACCESS_TOKENS, AccessToken, DEVICES, DeviceRecord, LOGIN_TOKENS, LoginToken, REFRESH_TOKENS,
        RefreshToken,
    },
    tokens::{new_token, random_device_id},
    users::ATTEMPTS,
};

/// What the cache holds of an access token.
pub(crate) struct CachedToken {
    pub(crate) user_id: OwnedUserId,
    pub(crate) device_id: OwnedDeviceId,
    pub(crate) expires_at_ms: Option<u64>,
    /// When a request with it was last noted down.
    pub(crate) noted_at_ms: AtomicU64,
}

/// Who makes a request. Cheap to clone.
#[derive(Clone)]
pub struct Authenticated {
    token: Arc<CachedToken>,
    account: Arc<Account>,
    hash: TokenHash,
}

impl Authenticated {
    /// The user.
    pub fn user_id(&self) -> &OwnedUserId {
        &self.token.user_id
    }

    /// The device.
    pub fn device_id(&self) -> &OwnedDeviceId {
        &self.token.device_id
    }

    /// The account; whether it is locked or suspended is for the caller to mind.
    pub fn account(&self) -> &Arc<Account> {
        &self.account
    }

    /// The access token's hash.
    pub fn token_hash(&self) -> TokenHash {
        self.hash
    }

    pub(crate) fn token(&self) -> &CachedToken {
        &self.token
    }
}

impl std::fmt::Debug for Authenticated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} on {}", self.token.user_id, self.token.device_id)
    }
}

/// Why an access token is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum AuthenticateError {
    /// Nobody's, or no longer somebody's.
    #[error("unknown access token")]
    Unknown,
    /// It has expired: the client refreshes, or logs in again and keeps its data (`soft_logout`).
    #[error("the access token has expired")]
    Expired,
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A session to be started.
#[derive(Clone, Debug)]
pub struct NewSession {
    /// Whose.
    pub user_id: OwnedUserId,
    /// On which device: one that the user has loses its tokens and keeps the rest; `None` makes one.
    pub device_id: Option<OwnedDeviceId>,
    /// The name of a new device.
    pub display_name: Option<String>,
    /// Whether the client can refresh: then the access token is short-lived.
    pub refreshable: bool,
}

/// A session that was started, with its secrets.
#[derive(Clone)]
pub struct Session {
    /// Whose.
    pub user_id: OwnedUserId,
    /// On which device.
    pub device_id: OwnedDeviceId,
    /// What the client shows with each request.
    pub access_token: String,
    /// What it shows to get the next one.
    pub refresh_token: Option<String>,
    /// How long the access token is good.
    pub expires_in_ms: Option<u64>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "session of {} on {}", self.user_id, self.device_id)
    }
}

/// Why no session was started.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The user has no account, or a deactivated one.
    #[error("there is no such account")]
    Unknown,
    /// The device id is empty or longer than 255 bytes.
    #[error("not a device id")]
    InvalidDeviceId,
    /// The store.
    #[error(transparent)]
    Users(#[from] UsersError),
}

/// Why a refresh token is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum RefreshError {
    /// Nobody's, used up, or expired.
    #[error("unknown refresh token")]
    Unknown,
    /// The store.
    #[error(transparent)]
    Users(#[from] UsersError),
}

impl From<StoreError> for SessionError {
    fn from(error: StoreError) -> Self {
        Self::Users(error.into())
    }
}

impl From<StoreError> for RefreshError {
    fn from(error: StoreError) -> Self {
        Self::Users(error.into())
    }
}

/// A pair of new tokens: the secrets, and the rows that are kept.
struct NewTokens {
    access_token: String,
    access: (TokenHash, AccessToken),
    refresh_token: Option<String>,
    refresh: Option<(TokenHash, RefreshToken)>,
    expires_in_ms: Option<u64>,
}

impl Users {
    /// Whose request this is.
    pub async fn authenticate(&self, access_token: &str) -> Result<Authenticated, AuthenticateError> {
        self.authenticate_hash(TokenHash::of(access_token)).await
    }

    pub(crate) async fn authenticate_hash(
        &self,
        hash: TokenHash,
    ) -> Result<Authenticated, AuthenticateError> {
        let token = match self.inner.tokens.get(&hash) {
            Some(token) => token,
            None => self.load_token(hash).await?,
        };
        let account = self.account(&token.user_id).await?;
        let account = account.filter(|account| !account.deactivated).ok_or(AuthenticateError::Unknown)?;
        if token.expires_at_ms.is_some_and(|at| self.now_ms() >= at) {
            return Err(AuthenticateError::Expired);
        }
        Ok(Authenticated { token, account, hash })
    }

    /// Starts a session (login). The checks that the user may are the caller's.
    pub async fn start_session(&self, new: NewSession) -> Result<Session, SessionError> {
        if new.device_id.as_ref().is_some_and(|id| !is_device_id(id)) {
            return Err(SessionError::InvalidDeviceId);
        }
        for _ in 0..ATTEMPTS {
            if !self.is_active(&new.user_id).await? {
                return Err(SessionError::Unknown);
            }
            let mut commit = Commit::new();
            let known = match &new.device_id {
                Some(device) => self.inner.store.get(&DEVICES, &device_key(&new.user_id, device)).await?,
                None => None,
            };
            let session = match &known {
                None => self.new_device(&new, &mut commit),
                Some(known) => self.replace_tokens(&new, known, &mut commit),
            };
            let ended = known.map_or_else(Vec::new, |known| known.access);
            let done = self.commit_then(commit, move |users, _| {
                ended.iter().for_each(|hash| users.forget_token(hash));
            });
            match done.await {
                Ok(_) => return Ok(session),
                Err(CommitError::Conflict) => {}
                Err(CommitError::Store(error)) => return Err(error.into()),
            }
        }
        Err(UsersError::Busy.into())
    }

    /// Trades a refresh token for the next pair.
    pub async fn refresh(&self, refresh_token: &str) -> Result<Session, RefreshError> {
        let hash = TokenHash::of(refresh_token);
        for _ in 0..ATTEMPTS {
            let Some(old) = self.inner.store.get(&REFRESH_TOKENS, &hash).await? else {
                return Err(RefreshError::Unknown);
            };
            let (Ok(user_id), device_id) =
                (UserId::parse(&*old.user_id), OwnedDeviceId::from(&*old.device_id))
            else {
                return Err(RefreshError::Unknown);
            };
            let key = (old.user_id.clone(), old.device_id.clone());
            let device = self.inner.store.get(&DEVICES, &key).await?;
            let Some(device) = device.filter(|device| device.refresh.contains(&hash)) else {
                return Err(RefreshError::Unknown);
            };
            if old.expires_at_ms.is_some_and(|at| self.now_ms() >= at) || !self.is_active(&user_id).await? {
                return Err(RefreshError::Unknown);
            }
            let new = self.new_tokens(&user_id, &device_id, true, true);
            let mut commit = Commit::new();
            commit.expect(&DEVICES, &key, &device);
            // Whatever was made before in this one's stead goes; the pair that is shown stays until the new one is used.
            let mut dropped = Vec::new();
            for access in device.access.iter().filter(|access| **access != old.access) {
                commit.delete(&ACCESS_TOKENS, access);
                dropped.push(*access);
            }
            for refresh in device.refresh.iter().filter(|refresh| **refresh != hash) {
                commit.delete(&REFRESH_TOKENS, refresh);
            }
            let mut after = DeviceRecord { access: Vec::new(), refresh: vec![hash], ..device.clone() };
            if let Some(access) = self.inner.store.get(&ACCESS_TOKENS, &old.access).await? {
                after.access.push(old.access);
                // Showing its refresh token is using it: from now on it ends nothing.
                commit.put(&ACCESS_TOKENS, &old.access, &AccessToken { unconfirmed: false, ..access });
            }
            put_tokens(&new, &mut after, &mut commit);
            commit.put(&DEVICES, &key, &after);
            let done = self.commit_then(commit, move |users, _| {
                dropped.iter().for_each(|hash| users.forget_token(hash));
            });
            match done.await {
                Ok(_) => return Ok(new.session(user_id, device_id)),
                Err(CommitError::Conflict) => {}
                Err(CommitError::Store(error)) => return Err(error.into()),
            }
        }
        Err(UsersError::Busy.into())
    }

    /// A token with which the user can log in once, soon, and for how many milliseconds.
    pub async fn issue_login_token(&self, user_id: &UserId) -> Result<(String, u64), UsersError> {
        let (token, hash) = new_token("hlt_");
        let lifetime_ms = millis(self.inner.options.login_token_lifetime);
        let row = LoginToken {
            user_id: user_id.as_str().to_owned(),
            expires_at_ms: self.now_ms().saturating_add(lifetime_ms),
        };
        let mut commit = Commit::new();
        commit.put(&LOGIN_TOKENS, &hash, &row);
        self.inner.store.commit(commit).await?;
        Ok((token, lifetime_ms))
    }

    /// Uses up a login token; `None` if it is nobody's, expired or was used.
    pub async fn redeem_login_token(&self, token: &str) -> Result<Option<OwnedUserId>, UsersError> {
        let hash = TokenHash::of(token);
        let Some(row) = self.inner.store.get(&LOGIN_TOKENS, &hash).await? else { return Ok(None) };
        let mut commit = Commit::new();
        commit.expect(&LOGIN_TOKENS, &hash, &row);
        commit.delete(&LOGIN_TOKENS, &hash);
        match self.inner.store.commit(commit).await {
            Ok(_) => {}
            Err(CommitError::Conflict) => return Ok(None),
            Err(CommitError::Store(error)) => return Err(error.into()),
        }
        let good = self.now_ms() < row.expires_at_ms;
        Ok(good.then(|| UserId::parse(row.user_id).ok()).flatten())
    }

    /// Removes login tokens that nobody used in their time.
    pub(crate) async fn sweep_login_tokens(&self) -> Result<(), UsersError> {
        const BATCH: usize = 400;
        let mut range = LOGIN_TOKENS.all();
        loop {
            let rows = self.inner.store.range(&LOGIN_TOKENS, range.clone(), Order::Forward, BATCH).await?;
            let mut commit = Commit::new();
            for (hash, row) in &rows {
                if self.now_ms() >= row.expires_at_ms {
                    commit.delete(&LOGIN_TOKENS, hash);
                }
            }
            if !commit.is_empty() {
                self.inner.store.commit(commit).await?;
            }
            match rows.last() {
                Some((last, _)) if rows.len() == BATCH => range = range.after(last),
                _ => return Ok(()),
            }
        }
    }

    /// The rows of a device that does not exist yet.
    pub(crate) fn new_device(&self, new: &NewSession, commit: &mut Commit) -> Session {
        let device_id = new.device_id.clone().unwrap_or_else(|| random_device_id().into());
        let key = device_key(&new.user_id, &device_id);
        let tokens = self.new_tokens(&new.user_id, &device_id, new.refreshable, false);
        let mut record = DeviceRecord {
            display_name: new.display_name.as_deref().map(crate::devices::shortened),
            created_at_ms: self.now_ms(),
            ..DeviceRecord::default()
        };
        put_tokens(&tokens, &mut record, commit);
        commit.expect_absent(&DEVICES, &key);
        commit.put(&DEVICES, &key, &record);
        tokens.session(new.user_id.clone(), device_id)
    }

    fn replace_tokens(&self, new: &NewSession, known: &DeviceRecord, commit: &mut Commit) -> Session {
        let device_id = new.device_id.clone().unwrap_or_else(|| random_device_id().into());
        let key = device_key(&new.user_id, &device_id);
        let tokens = self.new_tokens(&new.user_id, &device_id, new.refreshable, false);
        delete_tokens(known, commit);
        let mut after = DeviceRecord { access: Vec::new(), refresh: Vec::new(), ..known.clone() };
        put_tokens(&tokens, &mut after, commit);
        commit.expect(&DEVICES, &key, known);
        commit.put(&DEVICES, &key, &after);
        tokens.session(new.user_id.clone(), device_id)
    }

    fn new_tokens(
        &self,
        user: &UserId,
        device: &DeviceId,
        refreshable: bool,
        unconfirmed: bool,
    ) -> NewTokens {
        let now_ms = self.now_ms();
        let options = &self.inner.options;
        let (access_token, access) = new_token("hat_");
        let refresh = refreshable.then(|| new_token("hrt_"));
        let expires_in_ms = refreshable.then(|| millis(options.access_token_lifetime));
        let row = AccessToken {
            user_id: user.as_str().to_owned(),
            device_id: device.as_str().to_owned(),
            expires_at_ms: expires_in_ms.map(|lifetime| now_ms.saturating_add(lifetime)),
            refresh: refresh.as_ref().map(|(_, hash)| *hash),
            unconfirmed,
        };
        let refresh_row = RefreshToken {
            user_id: row.user_id.clone(),
            device_id: row.device_id.clone(),
            expires_at_ms: options.refresh_token_lifetime.map(|life| now_ms.saturating_add(millis(life))),
            access,
        };
        let (refresh_token, refresh) = match refresh {
            Some((token, hash)) => (Some(token), Some((hash, refresh_row))),
            None => (None, None),
        };
        NewTokens { access_token, access: (access, row), refresh_token, refresh, expires_in_ms }
    }

    async fn load_token(&self, hash: TokenHash) -> Result<Arc<CachedToken>, AuthenticateError> {
        let ticket = self.inner.tokens.ticket(&hash);
        let row = self.inner.store.get(&ACCESS_TOKENS, &hash).await?.ok_or(AuthenticateError::Unknown)?;
        let user_id = UserId::parse(&*row.user_id).map_err(|_| AuthenticateError::Unknown)?;
        let token = Arc::new(CachedToken {
            user_id,
            device_id: row.device_id.as_str().into(),
            expires_at_ms: row.expires_at_ms,
            noted_at_ms: AtomicU64::new(0),
        });
        let expired = row.expires_at_ms.is_some_and(|at| self.now_ms() >= at);
        if row.unconfirmed && !expired {
            self.confirm(hash, row).await?;
        }
        self.inner.tokens.fill(hash, token.clone(), ticket);
        Ok(token)
    }

    /// The first use of a token that a refresh made: what was before it ends.
    async fn confirm(&self, hash: TokenHash, row: AccessToken) -> Result<(), AuthenticateError> {
        let mut row = row;
        let key = (row.user_id.clone(), row.device_id.clone());
        for _ in 0..ATTEMPTS {
            let device = self.inner.store.get(&DEVICES, &key).await?;
            let Some(device) = device.filter(|device| device.access.contains(&hash)) else {
                return Err(AuthenticateError::Unknown);
            };
            let after = DeviceRecord {
                access: vec![hash],
                refresh: row.refresh.into_iter().collect(),
                ..device.clone()
            };
            let mut commit = Commit::new();
            commit.expect(&DEVICES, &key, &device);
            commit.put(&DEVICES, &key, &after);
            commit.put(&ACCESS_TOKENS, &hash, &AccessToken { unconfirmed: false, ..row.clone() });
            let ended: Vec<_> = device.access.into_iter().filter(|access| *access != hash).collect();
            ended.iter().for_each(|access| commit.delete(&ACCESS_TOKENS, access));
            let others = device.refresh.iter().filter(|refresh| row.refresh != Some(**refresh));
            others.for_each(|refresh| commit.delete(&REFRESH_TOKENS, refresh));
            // A poll that waits with a replaced token goes on: its client would take the end for a logout.
            let done = self.commit_then(commit, move |users, _| {
                ended.iter().for_each(|access| users.inner.tokens.drop(access));
            });
            match done.await {
                Ok(_) => return Ok(()),
                Err(CommitError::Conflict) => {}
                Err(CommitError::Store(error)) => return Err(error.into()),
            }
            row = self.inner.store.get(&ACCESS_TOKENS, &hash).await?.ok_or(AuthenticateError::Unknown)?;
            if !row.unconfirmed {
                return Ok(());
            }
        }
        Err(AuthenticateError::Unknown)
    }
}

impl NewTokens {
    fn session(self, user_id: OwnedUserId, device_id: OwnedDeviceId) -> Session {
        Session {
            user_id,
            device_id,
            access_token: self.access_token,
            refresh_token: self.refresh_token,
            expires_in_ms: self.expires_in_ms,
        }
    }
}

impl CachedToken {
    /// Whether a request at `now_ms` is worth noting down; then it counts as noted.
    pub(crate) fn is_due(&self, now_ms: u64, every_ms: u64) -> bool {
        let noted = self.noted_at_ms.load(Ordering::Relaxed);
        now_ms >= noted.saturating_add(every_ms)
            && self.noted_at_ms.compare_exchange(noted, now_ms, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

/// Whether a device may be called so.
pub fn is_device_id(id: &DeviceId) -> bool {
    (1..=255).contains(&id.as_str().len())
}

pub(crate) fn device_key(user: &UserId, device: &DeviceId) -> (String, String) {
    (user.as_str().to_owned(), device.as_str().to_owned())
}

/// All tokens of a device end.
pub(crate) fn delete_tokens(device: &DeviceRecord, commit: &mut Commit) {
    device.access.iter().for_each(|hash| commit.delete(&ACCESS_TOKENS, hash));
    device.refresh.iter().for_each(|hash| commit.delete(&REFRESH_TOKENS, hash));
}

fn put_tokens(tokens: &NewTokens, device: &mut DeviceRecord, commit: &mut Commit) {
    commit.put(&ACCESS_TOKENS, &tokens.access.0, &tokens.access.1);
    device.access.push(tokens.access.0);
    if let Some((hash, row)) = &tokens.refresh {
        commit.put(&REFRESH_TOKENS, hash, row);
        device.refresh.push(*hash);
    }
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
