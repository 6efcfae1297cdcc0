//! How often who may do what: a token bucket per class of request and per asker.
//! * Buckets live in memory and are bounded in number; a full bucket is forgotten first, it says nothing.
//! * One key of the configuration switches all of them off.

use std::{
    collections::HashMap,
    hash::Hash,
    net::IpAddr,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use ruma::OwnedUserId;
use serde::{Deserialize, Serialize};

use super::MatrixError;

/// What a request counts against.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RateClass {
    /// Never refused for its frequency.
    Unlimited,
    /// New accounts, by address.
    Registration,
    /// Attempts to log in: by address here, by account where the name is known.
    Login,
    /// Attempts to log in to one account.
    LoginAccount,
    /// Messages, state and redactions.
    Message,
    /// Joins and knocks.
    Join,
    /// Invites.
    Invite,
    /// New rooms.
    RoomCreation,
    /// Uploads, downloads, thumbnails.
    Media,
    /// Questions that cost the server much: directories, summaries, profile changes and the like.
    Other,
}

/// So many a second on average, so many at once.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Rate {
    /// Requests a second, in the long run.
    pub per_second: f64,
    /// Requests that may come at once.
    pub burst: f64,
}

/// Rates of all classes.
#[derive(Debug, Clone, PartialEq)]
pub struct Rates(HashMap<RateClass, Rate>);

impl Rates {
    /// Rates by class; a class that is not there is not limited.
    pub fn new(rates: impl IntoIterator<Item = (RateClass, Rate)>) -> Self {
        Self(rates.into_iter().collect())
    }

    /// No limits at all.
    pub fn off() -> Self {
        Self(HashMap::new())
    }
}

/// Whom a bucket belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Asker {
    /// A local user, on whichever device.
    User(OwnedUserId),
    /// Nobody known: the address the request came from.
    Address(IpAddr),
    /// The account that somebody tries to get into.
    Account(String),
}

struct Bucket {
    tokens: f64,
    filled: Instant,
}

/// More askers than this are not remembered at once.
const MAX_BUCKETS: usize = 65_536;

/// All buckets of this process.
pub struct RateLimits {
    rates: Rates,
    buckets: Mutex<HashMap<(RateClass, Asker), Bucket>>,
}

impl RateLimits {
    /// Limits by these rates.
    pub fn new(rates: Rates) -> Self {
        Self { rates, buckets: Mutex::default() }
    }

    /// Whether anything of this class is limited at all.
    pub fn applies(&self, class: RateClass) -> bool {
        self.rates.0.contains_key(&class)
    }

    /// Takes one token, or says how long to wait for it.
    pub fn take(&self, class: RateClass, asker: Asker) -> Result<(), MatrixError> {
        self.take_at(class, asker, Instant::now())
    }

    fn take_at(&self, class: RateClass, asker: Asker, now: Instant) -> Result<(), MatrixError> {
        let Some(&rate) = self.rates.0.get(&class) else { return Ok(()) };
        let mut buckets = self.buckets.lock();
        if buckets.len() >= MAX_BUCKETS {
            self.forget_idle(&mut buckets, now);
        }
        let bucket =
            buckets.entry((class, asker)).or_insert(Bucket { tokens: rate.burst.max(1.0), filled: now });
        bucket.tokens = level(bucket, rate, now);
        bucket.filled = now;
        if bucket.tokens >= 1.0 {
            bucket.tokens -= 1.0;
            return Ok(());
        }
        let missing = 1.0 - bucket.tokens;
        let seconds = if rate.per_second > 0.0 { missing / rate.per_second } else { 3600.0 };
        Err(MatrixError::limit_exceeded(Duration::from_secs_f64(seconds.min(86_400.0))))
    }

    /// Drops the buckets that are full again; if that is not enough, all of them.
    fn forget_idle(&self, buckets: &mut HashMap<(RateClass, Asker), Bucket>, now: Instant) {
        buckets.retain(|(class, _), bucket| {
            self.rates.0.get(class).is_some_and(|rate| level(bucket, *rate, now) < rate.burst)
        });
        if buckets.len() >= MAX_BUCKETS {
            buckets.clear();
        }
    }
}

fn level(bucket: &Bucket, rate: Rate, now: Instant) -> f64 {
    let passed = now.saturating_duration_since(bucket.filled).as_secs_f64();
    (bucket.tokens + passed * rate.per_second).min(rate.burst.max(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_the_rate_and_each_asker_apart() {
        let limits =
            RateLimits::new(Rates::new([(RateClass::Message, Rate { per_second: 2.0, burst: 3.0 })]));
        let start = Instant::now();
        let alice = || Asker::Account("alice".into());
        for _ in 0..3 {
            limits.take_at(RateClass::Message, alice(), start).unwrap();
        }
        let refused = limits.take_at(RateClass::Message, alice(), start).unwrap_err();
        assert_eq!(refused.errcode, "M_LIMIT_EXCEEDED");
        assert_eq!(refused.extra["retry_after_ms"], 500);
        limits.take_at(RateClass::Message, Asker::Account("bob".into()), start).unwrap();
        limits.take_at(RateClass::Message, alice(), start + Duration::from_millis(501)).unwrap();
        limits.take_at(RateClass::Join, alice(), start).unwrap();
    }
}
