//! OpenID tokens: with one, a user lets a third party ask this server who they are, and nothing else.
//! * In memory only, for an hour: a restart ends them. The oldest make room.
//! * Kept as hashes; a token of somebody who is deactivated names nobody.

use std::time::Duration;

use quick_cache::sync::Cache;
use ruma::{OwnedUserId, UserId};

use crate::{
    Users,
    tokens::{TokenHash, new_token},
};
use hearth_store::StoreError;

/// Tokens that are good at a time.
pub const OPENID_TOKENS_MAX: usize = 10_000;
/// How long a token is good.
pub const OPENID_TOKEN_LIFETIME: Duration = Duration::from_secs(3600);

/// The tokens that were given out.
pub(crate) struct OpenIdTokens(Cache<TokenHash, (OwnedUserId, u64)>);

impl Default for OpenIdTokens {
    fn default() -> Self {
        Self(Cache::new(OPENID_TOKENS_MAX))
    }
}

impl Users {
    /// A token that names this user to whoever shows it to us, good for [`OPENID_TOKEN_LIFETIME`].
    pub fn issue_openid_token(&self, user: &UserId) -> String {
        let (token, hash) = new_token("hoi_");
        let lifetime_ms = u64::try_from(OPENID_TOKEN_LIFETIME.as_millis()).unwrap_or(u64::MAX);
        let until_ms = self.now_ms().saturating_add(lifetime_ms);
        self.inner.openid_tokens.0.insert(hash, (user.to_owned(), until_ms));
        token
    }

    /// Whom a token names.
    pub async fn user_of_openid_token(&self, token: &str) -> Result<Option<OwnedUserId>, StoreError> {
        let hash = TokenHash::of(token);
        let Some((user, until_ms)) = self.inner.openid_tokens.0.get(&hash) else { return Ok(None) };
        if until_ms <= self.now_ms() {
            self.inner.openid_tokens.0.remove(&hash);
            return Ok(None);
        }
        Ok(self.is_active(&user).await?.then_some(user))
    }
}
