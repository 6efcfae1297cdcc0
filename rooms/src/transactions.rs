//! Transaction ids are kept for a while: long enough for any client to repeat a request.
//! * Rows go in steps of bounded size, by a follower that looks at them now and then.
//! * A transaction is as old as its event says; one of an application service that made up a time goes by that.

use std::time::Duration;

use hearth_store::{Commit, Order, StoreError};

use crate::rooms::Rooms;
use crate::tables::{EVENTS, TRANSACTIONS};

/// How long a repeated request finds its event.
pub const TRANSACTIONS_KEPT: Duration = Duration::from_secs(48 * 3600);
/// How often the rows are looked through.
pub(crate) const SWEEP_EVERY: Duration = Duration::from_secs(6 * 3600);
/// Rows that are looked at in one step.
const STEP_ROWS: usize = 200;

impl Rooms {
    /// Removes what is older than [`TRANSACTIONS_KEPT`]. Says how many rows went.
    pub async fn expire_transactions(&self) -> Result<usize, StoreError> {
        let kept = TRANSACTIONS_KEPT.as_millis() as u64;
        let oldest = self.now_ms().saturating_sub(kept);
        let mut range = TRANSACTIONS.all();
        let mut removed = 0;
        loop {
            let rows = self.store().range(&TRANSACTIONS, range.clone(), Order::Forward, STEP_ROWS).await?;
            let events: Vec<_> = rows.iter().map(|(_, row)| (row.room, row.event)).collect();
            let events = self.store().multi_get(&EVENTS, &events).await?;
            let mut commit = Commit::new();
            for ((key, _), event) in rows.iter().zip(events) {
                if event.is_none_or(|event| event.header.origin_server_ts < oldest) {
                    commit.delete(&TRANSACTIONS, key);
                    removed += 1;
                }
            }
            if !commit.is_empty() {
                self.store().commit(commit).await.map_err(|error| StoreError::Engine(error.to_string()))?;
            }
            match rows.last() {
                Some((last, _)) if rows.len() == STEP_ROWS => range = range.after(last),
                _ => return Ok(removed),
            }
        }
    }

    pub(crate) async fn sweep_transactions(&self) {
        match self.expire_transactions().await {
            Ok(removed) => tracing::debug!(removed, "old transaction ids are gone"),
            Err(error) => tracing::warn!(%error, "old transaction ids stay for now"),
        }
    }
}
