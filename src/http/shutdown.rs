//! The word that the server is going down: long polls end at once when it is said.

use tokio::sync::watch;

/// Says and hears that the server is to stop. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Sender<bool>);

impl Default for Shutdown {
    fn default() -> Self {
        Self(watch::Sender::new(false))
    }
}

impl Shutdown {
    /// Asks everything to come to an end.
    pub fn begin(&self) {
        self.0.send_replace(true);
    }

    /// Whether the end was asked for.
    pub fn has_begun(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until the end is asked for; at once if it was already.
    pub async fn begun(&self) {
        let mut receiver = self.0.subscribe();
        // The sender lives in `self`, so that waiting cannot fail.
        let _ = receiver.wait_for(|begun| *begun).await;
    }
}
