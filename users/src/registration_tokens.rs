//! Registration tokens: who shows one may make an account, as often and as long as it says.
//! * A use is counted in the commit that makes the account: of two that want the last one, one gets it.

use hearth_store::{Commit, CommitError, Order, Record, StoreError};
use serde::{Deserialize, Serialize};

use crate::{Users, UsersError, tables::REGISTRATION_TOKENS};

/// The longest token, as in the specification.
pub const TOKEN_MAX: usize = 64;

/// What a registration token permits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistrationToken {
    /// How many accounts may be made with it; `None`: any number.
    pub uses_allowed: Option<u64>,
    /// How many were.
    pub completed: u64,
    /// Until when, in milliseconds since 1970.
    pub expires_at_ms: Option<u64>,
}
impl Record for RegistrationToken {}

impl RegistrationToken {
    fn is_valid(&self, now_ms: u64) -> bool {
        self.uses_allowed.is_none_or(|allowed| self.completed < allowed)
            && self.expires_at_ms.is_none_or(|at| now_ms < at)
    }
}

impl Users {
    /// Adds a token; `false` if it is not one (`A-Za-z0-9._~-`, 1 to 64 bytes) or exists already.
    pub async fn add_registration_token(
        &self,
        token: &str,
        permits: &RegistrationToken,
    ) -> Result<bool, UsersError> {
        let grammar = |byte: u8| byte.is_ascii_alphanumeric() || b"._~-".contains(&byte);
        if token.is_empty() || token.len() > TOKEN_MAX || !token.bytes().all(grammar) {
            return Ok(false);
        }
        let mut commit = Commit::new();
        commit.expect_absent(&REGISTRATION_TOKENS, &token.to_owned());
        commit.put(&REGISTRATION_TOKENS, &token.to_owned(), permits);
        match self.inner.store.commit(commit).await {
            Ok(_) => Ok(true),
            Err(CommitError::Conflict) => Ok(false),
            Err(CommitError::Store(error)) => Err(error.into()),
        }
    }

    /// Removes a token.
    pub async fn remove_registration_token(&self, token: &str) -> Result<(), UsersError> {
        let mut commit = Commit::new();
        commit.delete(&REGISTRATION_TOKENS, &token.to_owned());
        self.inner.store.commit(commit).await?;
        Ok(())
    }

    /// The tokens, up to `limit`.
    pub async fn registration_tokens(
        &self,
        limit: usize,
    ) -> Result<Vec<(String, RegistrationToken)>, StoreError> {
        let range = REGISTRATION_TOKENS.all();
        self.inner.store.range(&REGISTRATION_TOKENS, range, Order::Forward, limit).await
    }

    /// Whether an account could be made with this token now.
    pub async fn registration_token_is_valid(&self, token: &str) -> Result<bool, StoreError> {
        if self.is_fixed_registration_token(token) {
            return Ok(true);
        }
        if token.len() > TOKEN_MAX {
            return Ok(false);
        }
        let kept = self.inner.store.get(&REGISTRATION_TOKENS, &token.to_owned()).await?;
        Ok(kept.is_some_and(|kept| kept.is_valid(self.now_ms())))
    }

    /// Counts a use within `commit`; `None` if the token permits none.
    pub(crate) async fn use_registration_token(
        &self,
        token: &str,
        commit: &mut Commit,
    ) -> Result<Option<()>, StoreError> {
        if self.is_fixed_registration_token(token) {
            return Ok(Some(()));
        }
        let key = token.to_owned();
        let kept = self.inner.store.get(&REGISTRATION_TOKENS, &key).await?;
        let Some(kept) = kept.filter(|kept| kept.is_valid(self.now_ms())) else { return Ok(None) };
        commit.expect(&REGISTRATION_TOKENS, &key, &kept);
        commit.put(
            &REGISTRATION_TOKENS,
            &key,
            &RegistrationToken { completed: kept.completed.saturating_add(1), ..kept },
        );
        Ok(Some(()))
    }

    fn is_fixed_registration_token(&self, token: &str) -> bool {
        self.inner.options.registration_tokens.iter().any(|fixed| fixed == token)
    }
}
