//! What comes from outside of the program: the time, chance, and other threads. Passed in or asked for here, so that
//! tests can replace them.

use hearth_store::StoreError;
use rand::Rng;
use rand::distr::Alphanumeric;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::spawn_blocking;

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

/// Draws what decides about rooms.
pub trait Chance: Send + Sync + std::fmt::Debug + 'static {
    /// Letters and digits that nobody can guess.
    fn text(&self, length: usize) -> String;
}

/// The chance of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemChance;

impl Chance for SystemChance {
    #[allow(clippy::disallowed_methods, reason = "the home of chance")]
    fn text(&self, length: usize) -> String {
        rand::rng().sample_iter(Alphanumeric).take(length).map(char::from).collect()
    }
}

/// Does long work on a thread of its own. A runtime of one thread, on which tests play the same twice, does it in
/// place: when another thread is done is left to chance.
pub async fn on_a_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, StoreError> {
    if Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread {
        return Ok(work());
    }
    // A thread that panics is a fault of this server, not of what it worked on.
    spawn_blocking(work).await.map_err(|error| StoreError::Engine(error.to_string()))
}

#[allow(clippy::disallowed_methods, reason = "the home of chance")]
pub(crate) fn random_number() -> u32 {
    rand::rng().random()
}
