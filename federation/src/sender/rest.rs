//! When destinations that failed are tried again: at their time, at a sign of life, and after a start one by one.

use std::{sync::Arc, time::Duration};

use hearth_store::{Range, StoreError};
use ruma::{OwnedServerName, ServerName};
use tokio::sync::broadcast::error::RecvError;

use super::{Inner, STORE_PAUSE, state::Stage};
use crate::tables::{BEHIND, MUST_ARRIVE};

/// After a start, those who are owed something are tried this far apart.
pub(super) const WAKE_SPACING_MS: u64 = 20;
/// How often the store is searched for destinations that did not fit into memory.
const SEARCH_EVERY: Duration = Duration::from_secs(60);
/// The longest sleep: clocks are set.
const SLEEP_MAX: Duration = Duration::from_secs(600);

/// What a destination is owed, and when it is tried.
struct Found {
    is_behind: bool,
    messages: bool,
    is_failing: bool,
    until_ms: u64,
}

impl Inner {
    /// Tries destinations when their time has come.
    pub(super) async fn wait_for_times(self: Arc<Self>) {
        loop {
            let now_ms = self.now_ms();
            let next = {
                let mut state = self.state.lock();
                while let Some((due_ms, server)) = state.timers.first().cloned()
                    && due_ms <= now_ms
                {
                    state.wake(&server);
                    state.timers.remove(&(due_ms, server));
                }
                state.timers.first().map(|(due_ms, _)| *due_ms)
            };
            self.start_workers();
            let wait = next.map_or(SLEEP_MAX, |due_ms| Duration::from_millis(due_ms.saturating_sub(now_ms)));
            tokio::select! {
                biased;
                () = tokio::time::sleep(wait.min(SLEEP_MAX)) => {}
                () = self.sooner.notified() => {}
            }
        }
    }

    /// Tries destinations at once that gave a sign of life.
    pub(super) async fn follow_revivals(self: Arc<Self>) {
        let mut revived = self.federation.destinations().revived();
        loop {
            match revived.recv().await {
                Ok(server) => self.revive(&server).await,
                Err(RecvError::Lagged(_)) => {
                    let resting = self.state.lock().resting();
                    for server in resting {
                        self.revive(&server).await;
                    }
                }
                Err(RecvError::Closed) => return,
            }
        }
    }

    async fn revive(self: &Arc<Self>, server: &ServerName) {
        // It may be that it rests still, for less long than before, or that it failed again meanwhile.
        match self.federation.destinations().not_before(server).await {
            Ok(None) => {
                let mut state = self.state.lock();
                if state.more_in_store
                    && state.get(server).is_none()
                    && let Some(forgotten) = state.remembered(server)
                {
                    // It is looked up.
                    forgotten.messages = true;
                    state.make_ready(server);
                }
                state.wake(server);
                state.returns(server);
            }
            Ok(Some(until_ms)) => self.state.lock().rest_until(server, until_ms),
            Err(_) => return,
        }
        self.sooner.notify_one();
        self.start_workers();
    }

    /// After a start, finds all who are owed something; later, those for whom there was no place.
    pub(super) async fn wake_up(self: Arc<Self>) {
        loop {
            self.state.lock().more_in_store = false;
            if let Err(error) = self.find_owed().await {
                tracing::error!(%error, "which servers are owed something cannot be read");
                self.state.lock().more_in_store = true;
                tokio::time::sleep(STORE_PAUSE).await;
                continue;
            }
            loop {
                tokio::time::sleep(SEARCH_EVERY).await;
                let state = self.state.lock();
                if state.more_in_store && state.has_room() {
                    break;
                }
            }
        }
    }

    async fn find_owed(self: &Arc<Self>) -> Result<(), StoreError> {
        let mut due_ms = self.now_ms();
        let mut after: Option<String> = None;
        loop {
            fn behind<K>(range: Range<K>, after: Option<&String>) -> Range<K> {
                match after {
                    Some(after) => range.after(after),
                    None => range,
                }
            }
            let row = self.store.first(&BEHIND, behind(BEHIND.all(), after.as_ref())).await?;
            let message = self.store.first(&MUST_ARRIVE, behind(MUST_ARRIVE.all(), after.as_ref())).await?;
            let row = row.map(|((server, _), _)| server);
            let message = message.map(|((server, _), _)| server);
            let Some(name) = row.iter().chain(&message).min().cloned() else { return Ok(()) };
            if let Ok(server) = OwnedServerName::try_from(name.as_str())
                && self.federation.access().check(&server).is_ok()
            {
                let failing = self.federation.destinations().failing(&server).await?;
                let found = Found {
                    is_behind: row.as_ref() == Some(&name),
                    messages: message.as_ref() == Some(&name),
                    is_failing: failing.is_some(),
                    until_ms: failing.map_or(due_ms, |failing| failing.next_try_ms.max(due_ms)),
                };
                if !self.found(&server, found).await {
                    return Ok(());
                }
                due_ms += WAKE_SPACING_MS;
            }
            after = Some(name);
        }
    }

    /// A destination is owed something. Says whether there was place for it.
    async fn found(self: &Arc<Self>, server: &ServerName, found: Found) -> bool {
        let Found { is_behind, messages, is_failing, until_ms } = found;
        let mut owed = Vec::new();
        {
            let mut state = self.state.lock();
            let Some(destination) = state.remembered(server) else { return false };
            let is_new = !destination.looked_up;
            destination.messages |= messages;
            if is_behind && !destination.behind {
                // Who is behind without having failed is slow, and is sent everything.
                destination.was_down |= is_new && is_failing;
                state.write_down(server, &mut owed);
            }
            if state.get(server).is_some_and(|found| found.stage == Stage::Idle) {
                // Who is owed something for being slow does not wait among those that are dead.
                match is_failing {
                    true => state.rest(server, until_ms),
                    false => state.wait(server, until_ms),
                }
            }
        }
        self.write_rows(owed).await;
        self.sooner.notify_one();
        true
    }
}
