//! How much an asker may have in the long run: an account for each, filled steadily up to a bound.
//! * What something costs may be known only when it is done: then the account may go below nothing, and the asker waits
//!   until it is above it again.
//! * Accounts are in memory and bounded in number; a full one is forgotten first, it says nothing.

use std::{collections::HashMap, hash::Hash, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

/// Accounts that are kept for one kind of thing.
pub const ACCOUNTS_KEPT: usize = 10_000;
/// Nobody is told to wait longer.
const WAIT_MAX: Duration = Duration::from_secs(3600);

/// What each asker may have of something.
#[derive(Debug)]
pub struct Allowance<K> {
    per_second: f64,
    at_most: f64,
    accounts: Mutex<HashMap<K, Account>>,
}

#[derive(Debug, Clone, Copy)]
struct Account {
    left: f64,
    since: Instant,
}

impl<K: Eq + Hash> Allowance<K> {
    /// So much a second, and so much at once.
    pub fn new(per_second: f64, at_most: f64) -> Self {
        Self { per_second, at_most, accounts: Mutex::default() }
    }

    /// Takes `amount`, or says how long to wait for it.
    pub fn take(&self, who: K, amount: f64) -> Result<(), Duration> {
        self.change(who, amount, amount)
    }

    /// Whether anything is left, or how long to wait for that.
    pub fn check(&self, who: K) -> Result<(), Duration> {
        self.change(who, f64::MIN_POSITIVE, 0.0)
    }

    /// Takes `amount` whether or not it is left.
    pub fn charge(&self, who: K, amount: f64) {
        // Who owes as much as there could ever be owes enough.
        let _ = self.change(who, f64::NEG_INFINITY, amount.min(self.at_most));
    }

    fn change(&self, who: K, needs: f64, takes: f64) -> Result<(), Duration> {
        let now = Instant::now();
        let mut accounts = self.accounts.lock();
        if accounts.len() >= ACCOUNTS_KEPT && !accounts.contains_key(&who) {
            accounts.retain(|_, account| self.level(account, now) < self.at_most);
            if accounts.len() >= ACCOUNTS_KEPT {
                accounts.clear();
            }
        }
        let account = accounts.entry(who).or_insert(Account { left: self.at_most, since: now });
        let level = self.level(account, now);
        let enough = level >= needs;
        *account = Account { left: if enough { level - takes } else { level }, since: now };
        if enough {
            return Ok(());
        }
        let seconds = (needs - level) / self.per_second;
        Err(Duration::try_from_secs_f64(seconds).unwrap_or(WAIT_MAX).min(WAIT_MAX))
    }

    fn level(&self, account: &Account, now: Instant) -> f64 {
        let passed = now.saturating_duration_since(account.since).as_secs_f64();
        (account.left + passed * self.per_second).min(self.at_most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn so_much_at_once_then_the_rate_and_each_apart() {
        let allowance = Allowance::new(2.0, 3.0);
        for _ in 0..3 {
            allowance.take("a", 1.0).unwrap();
        }
        assert_eq!(allowance.take("a", 1.0), Err(Duration::from_millis(500)));
        allowance.take("b", 1.0).unwrap();
        tokio::time::advance(Duration::from_millis(500)).await;
        allowance.take("a", 1.0).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn who_got_more_than_was_left_waits_longer() {
        let allowance = Allowance::new(1.0, 10.0);
        allowance.check("a").unwrap();
        allowance.charge("a", 8.0);
        allowance.check("a").unwrap();
        allowance.charge("a", 1e9);
        let wait = allowance.check("a").unwrap_err();
        assert!((7.9..8.1).contains(&wait.as_secs_f64()), "{wait:?}");
        tokio::time::advance(Duration::from_millis(8_100)).await;
        allowance.check("a").unwrap();
    }
}
