//! Ends of sessions, for those who wait with one: a long poll ends with its session, not at its time-out.
//! * Waiters are woken by part of the tokens' hashes and look again: bounded, whoever waits for what.
//! * Whoever ends a session wakes after the cache has forgotten it.

use std::pin::pin;

use tokio::sync::Notify;

use crate::{AuthenticateError, Authenticated, TokenHash, Users};

/// A waiter is woken for nothing by the end of one session in so many.
const STRIPES: usize = 256;

pub(crate) struct Endings([Notify; STRIPES]);

impl Default for Endings {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Notify::new()))
    }
}

impl Endings {
    fn of(&self, token: &TokenHash) -> &Notify {
        &self.0[usize::from(token.first_byte())]
    }

    /// The token may have ended.
    pub(crate) fn wake(&self, token: &TokenHash) {
        self.of(token).notify_waiters();
    }

    /// Any token may have ended.
    pub(crate) fn wake_all(&self) {
        self.0.iter().for_each(Notify::notify_waiters);
    }
}

/// Why a session that somebody waited with is over.
#[derive(Debug, thiserror::Error)]
pub enum SessionEnd {
    /// Its token is no longer accepted.
    #[error(transparent)]
    Token(#[from] AuthenticateError),
    /// Its account was locked.
    #[error("the account is locked")]
    Locked,
}

impl Users {
    /// Waits until the session is over: logged out, replaced, its device removed, its account closed or locked.
    pub async fn session_end(&self, who: &Authenticated) -> SessionEnd {
        let token = who.token_hash();
        loop {
            let mut woken = pin!(self.inner.endings.of(&token).notified());
            woken.as_mut().enable();
            match self.authenticate_hash(token).await {
                Ok(now) if now.account().locked => return SessionEnd::Locked,
                Ok(_) => {}
                Err(error) => return error.into(),
            }
            woken.await;
        }
    }

    /// No request with this token is served any more.
    pub(crate) fn forget_token(&self, token: &TokenHash) {
        self.inner.tokens.drop(token);
        self.inner.endings.wake(token);
    }
}
