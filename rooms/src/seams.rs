//! What comes from outside of the program: the time and chance. Passed in, so that tests can replace them.

use rand::Rng;
use rand::distr::Alphanumeric;

/// Tells the time.
pub trait Clock: Send + Sync + 'static {
    /// Milliseconds since 1970.
    fn now_ms(&self) -> u64;
}

/// The time of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods, reason = "the home of the clock")]
    fn now_ms(&self) -> u64 {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        since.map_or(0, |since| since.as_millis() as u64)
    }
}

/// Letters and digits that nobody can guess.
#[allow(clippy::disallowed_methods, reason = "the home of chance")]
pub(crate) fn random_text(length: usize) -> String {
    rand::rng().sample_iter(Alphanumeric).take(length).map(char::from).collect()
}

#[allow(clippy::disallowed_methods, reason = "the home of chance")]
pub(crate) fn random_number() -> u32 {
    rand::rng().random()
}
