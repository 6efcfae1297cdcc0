//! OpenID tokens: with one, a user lets a third party ask this server who they are, and nothing else.
//! * In memory only, for an hour: a restart ends them.
//! * A user has a few at a time; the oldest of them makes room. Where all users together have too many, the user who has
//!   most loses the oldest, so that nobody's are crowded out by somebody else's.
//! * Kept as hashes; a token of somebody who is deactivated names nobody.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use parking_lot::Mutex;
use ruma::{OwnedUserId, UserId};

use crate::{
    Users,
    tokens::{TokenHash, new_token},
};
use hearth_store::StoreError;

/// Tokens that are good at a time.
pub const OPENID_TOKENS_MAX: usize = 10_000;
/// Tokens of one user that are good at a time.
pub const OPENID_TOKENS_OF_USER: usize = 50;
/// How long a token is good.
pub const OPENID_TOKEN_LIFETIME: Duration = Duration::from_secs(3600);

/// The tokens that were given out.
#[derive(Default)]
pub(crate) struct OpenIdTokens(Mutex<Tokens>);

#[derive(Default)]
struct Tokens {
    by_hash: HashMap<TokenHash, (OwnedUserId, u64)>,
    /// Of each user, the oldest first.
    by_user: HashMap<OwnedUserId, VecDeque<TokenHash>>,
    /// How many each user has.
    counts: BTreeSet<(usize, OwnedUserId)>,
    /// With the time until when it is good, the oldest first. Some may be gone already.
    by_age: VecDeque<(u64, TokenHash)>,
}

impl Tokens {
    fn add(&mut self, hash: TokenHash, user: OwnedUserId, until_ms: u64, now_ms: u64) {
        while let Some((until_ms, hash)) = self.by_age.front().copied() {
            if until_ms > now_ms && self.by_hash.contains_key(&hash) {
                break;
            }
            self.by_age.pop_front();
            self.remove(&hash);
        }
        if self.by_user.get(&user).is_some_and(|own| own.len() >= OPENID_TOKENS_OF_USER) {
            self.remove_oldest_of(&user);
        }
        if self.by_hash.len() >= OPENID_TOKENS_MAX
            && let Some((_, user)) = self.counts.last().cloned()
        {
            self.remove_oldest_of(&user);
        }
        // Of tokens that made room something is left here.
        if self.by_age.len() > 2 * OPENID_TOKENS_MAX {
            let by_hash = &self.by_hash;
            self.by_age.retain(|(_, held)| by_hash.contains_key(held));
        }
        self.by_age.push_back((until_ms, hash));
        self.by_hash.insert(hash, (user.clone(), until_ms));
        self.change(&user, |own| own.push_back(hash));
    }

    fn remove_oldest_of(&mut self, user: &UserId) {
        let oldest = self.by_user.get(user).and_then(|own| own.front().copied());
        if let Some(oldest) = oldest {
            self.remove(&oldest);
        }
    }

    fn remove(&mut self, hash: &TokenHash) {
        if let Some((user, _)) = self.by_hash.remove(hash) {
            self.change(&user, |own| own.retain(|held| held != hash));
        }
    }

    fn change(&mut self, user: &UserId, change: impl FnOnce(&mut VecDeque<TokenHash>)) {
        let mut own = self.by_user.remove(user).unwrap_or_default();
        self.counts.remove(&(own.len(), user.to_owned()));
        change(&mut own);
        if !own.is_empty() {
            self.counts.insert((own.len(), user.to_owned()));
            self.by_user.insert(user.to_owned(), own);
        }
    }
}

impl Users {
    /// A token that names this user to whoever shows it to us, good for [`OPENID_TOKEN_LIFETIME`].
    pub fn issue_openid_token(&self, user: &UserId) -> String {
        let (token, hash) = new_token("hoi_");
        let lifetime_ms = u64::try_from(OPENID_TOKEN_LIFETIME.as_millis()).unwrap_or(u64::MAX);
        let now_ms = self.now_ms();
        let until_ms = now_ms.saturating_add(lifetime_ms);
        self.inner.openid_tokens.0.lock().add(hash, user.to_owned(), until_ms, now_ms);
        token
    }

    /// Whom a token names.
    pub async fn user_of_openid_token(&self, token: &str) -> Result<Option<OwnedUserId>, StoreError> {
        let hash = TokenHash::of(token);
        let user = {
            let mut tokens = self.inner.openid_tokens.0.lock();
            let Some((user, until_ms)) = tokens.by_hash.get(&hash).cloned() else { return Ok(None) };
            if until_ms <= self.now_ms() {
                tokens.remove(&hash);
                return Ok(None);
            }
            user
        };
        Ok(self.is_active(&user).await?.then_some(user))
    }
}
