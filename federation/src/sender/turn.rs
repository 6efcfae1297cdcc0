//! One transaction to one destination, from what there is for it to what became of it.
//! * What a destination takes is gone from memory and from the disk; what it does not take is owed to it, as rows.
//! * An event that the peer refuses was delivered: it blocks nothing. A transaction that is refused as a whole is made
//!   smaller, until it is known which event is at fault; that one is dropped.

use std::{collections::BTreeMap, sync::Arc};

use hearth_rooms::serve::Outgoing;
use hearth_store::StoreError;
use http::StatusCode;
use ruma::ServerName;

use super::{
    EDUS_MAX, Inner, STORE_PAUSE, TRANSACTION_BYTES,
    edus::{EduKey, EduValue, edus_of},
    history::Missed,
    lanes::{Lane, Place},
    must_arrive::Messages,
    state::{Destination, Queued},
    transaction::transaction,
};
use crate::{
    client::{RequestError, SendAnswer},
    network::NetworkError,
    tables::{BEHIND, MUST_ARRIVE},
};

/// What there is to send.
#[derive(Default)]
struct Load {
    queued: Vec<Arc<Queued>>,
    missed: Missed,
    messages: Messages,
    taken: BTreeMap<Arc<EduKey>, EduValue>,
    /// What was taken, as it is sent.
    volatile: Vec<String>,
}

impl Load {
    fn pdus(&self) -> Vec<&str> {
        let queued = self.queued.iter().map(|event| event.json());
        let missed = self.missed.events.iter().map(|event: &Outgoing| event.event.pdu.json());
        queued.chain(missed).collect()
    }

    /// What need not arrive waits again. What came meanwhile is newer.
    fn give_back(&self, destination: &mut Destination) {
        for (key, value) in &self.taken {
            destination.volatile.entry(key.clone()).or_insert_with(|| value.clone());
        }
    }

    fn tells_presence(&self) -> bool {
        self.taken.last_key_value().is_some_and(|(key, _)| key.is_presence())
    }

    fn edus(&self) -> Vec<&str> {
        let messages = self.messages.iter().filter_map(|(_, message)| std::str::from_utf8(message).ok());
        messages.chain(self.volatile.iter().map(String::as_str)).collect()
    }
}

impl Inner {
    /// Sends one transaction, if there is something to send.
    pub(super) async fn turn(self: &Arc<Self>, server: &ServerName, place: &mut Place) {
        if let Err(error) = self.try_turn(server, place).await {
            tracing::error!(%server, %error, "the store failed while something was sent");
            if let Some(destination) = self.state.lock().get(server) {
                // It may have failed after they were asked for.
                destination.messages = true;
            }
            tokio::time::sleep(STORE_PAUSE).await;
        }
        {
            let mut state = self.state.lock();
            if let Some(destination) = state.get(server) {
                destination.catching.clear();
                destination.in_flight = 0;
            }
            state.end_turn(server);
        }
        self.start_workers();
    }

    async fn try_turn(self: &Arc<Self>, server: &ServerName, place: &mut Place) -> Result<(), StoreError> {
        let looked_up = self.state.lock().get(server).is_none_or(|destination| destination.looked_up);
        if !looked_up && self.look_up(server).await? {
            return Ok(());
        }
        let load = self.load(server).await?;
        let (pdus, edus) = (load.pdus(), load.edus());
        if pdus.is_empty() && edus.is_empty() {
            return self.settle(server, &load.missed.progress).await;
        }
        let client = self.federation.client();
        let Some(origin) = client.speaker() else { return Ok(()) };
        let text = transaction(origin, self.now_ms(), pdus.iter().copied(), edus.iter().copied());
        let Some(answer) = place.wait(server, self.send(server, &text)).await else {
            self.put_off(server, load).await;
            return Ok(());
        };
        match answer {
            Ok(answer) => {
                for (event_id, refused) in answer.pdus {
                    if let Some(error) = refused.error {
                        tracing::debug!(%server, %event_id, error, "an event was not taken");
                    }
                }
                self.delivered(server, &load).await
            }
            Err(error) => self.failed(server, &load, error).await,
        }
    }

    /// Asks the store what it has for a destination that was not known. Says whether it has to rest.
    async fn look_up(self: &Arc<Self>, server: &ServerName) -> Result<bool, StoreError> {
        let name = server.to_string();
        let failing = self.federation.destinations().failing(server).await?;
        let is_behind = self.store.first(&BEHIND, BEHIND.prefix(&name)).await?.is_some();
        let has_messages = self.store.first(&MUST_ARRIVE, MUST_ARRIVE.prefix(&name)).await?.is_some();
        let now_ms = self.now_ms();
        let mut owed = Vec::new();
        let rests = {
            let mut state = self.state.lock();
            if is_behind || failing.is_some() {
                state.write_down(server, &mut owed);
            }
            let Some(destination) = state.get(server) else { return Ok(true) };
            destination.looked_up = true;
            destination.messages |= has_messages;
            destination.was_down |= failing.is_some();
            // Whoever failed before the start is not tried from a place of others, also if its time has come.
            let rests = failing.filter(|row| row.next_try_ms > now_ms || !destination.is_on_trial());
            if let Some(row) = &rests {
                destination.drop_volatile();
                state.rest(server, row.next_try_ms);
            }
            rests.is_some()
        };
        self.write_rows(owed).await;
        if rests {
            self.sooner.notify_one();
        }
        Ok(rests)
    }

    /// What there is for a destination, as much as fits one transaction.
    async fn load(self: &Arc<Self>, server: &ServerName) -> Result<Load, StoreError> {
        let mut load = Load::default();
        let (behind, was_down, batch, rows_begun, messages) = {
            let mut state = self.state.lock();
            let Some(destination) = state.get(server) else { return Ok(load) };
            if destination.sends_queue() {
                let mut bytes = 0;
                let fits = destination.queue.iter().take(destination.batch).take_while(|event| {
                    let before = bytes;
                    bytes += event.json().len();
                    before < TRANSACTION_BYTES
                });
                load.queued = fits.cloned().collect();
                destination.in_flight = load.queued.len();
            }
            let messages = std::mem::take(&mut destination.messages);
            let Destination { behind, was_down, batch, rows_begun, .. } = *destination;
            (behind, was_down, batch, rows_begun, messages)
        };
        if behind {
            load.missed = self.missed(server, batch, was_down).await?;
            if load.missed.is_empty
                && let Some(destination) = self.state.lock().get(server)
                && destination.rows_begun == rows_begun
                && !destination.rows_under_way()
            {
                destination.behind = false;
                destination.was_down = false;
            }
        }
        // Alone, an event that is refused is known to be at fault.
        if batch == 1 && !(load.queued.is_empty() && load.missed.events.is_empty()) {
            if let Some(destination) = self.state.lock().get(server) {
                destination.messages |= messages;
            }
            return Ok(load);
        }
        let edus_max = if batch < super::PDUS_MAX { batch } else { EDUS_MAX };
        if messages {
            let (mut found, mut more) = self.messages(server).await?;
            more |= found.len() > edus_max;
            found.truncate(edus_max);
            if more && let Some(destination) = self.state.lock().get(server) {
                destination.messages = true;
            }
            load.messages = found;
        }
        let room = edus_max.saturating_sub(load.messages.len());
        let waiting = self.state.lock().get(server).map_or(0, |found| found.volatile_before_presence());
        let missed = self.receipts_missed_by(server, room.saturating_sub(waiting)).await?;
        if let Some(destination) = self.state.lock().get(server) {
            let mut taken = BTreeMap::new();
            while taken.len() + missed.len() < room
                && let Some((key, value)) = destination.volatile.pop_first()
            {
                taken.insert(key, value);
            }
            // These are newer than what was still waiting.
            taken.extend(missed);
            load.volatile = edus_of(&taken);
            load.taken = taken;
        }
        Ok(load)
    }

    /// Sends a transaction. A connection that breaks may have been closed while nobody used it: once more, at once.
    async fn send(&self, server: &ServerName, text: &str) -> Result<SendAnswer, RequestError> {
        let number = {
            let mut state = self.state.lock();
            state.transactions += 1;
            state.transactions
        };
        let txn_id = format!("{}-{number}", self.boot);
        let client = self.federation.client();
        match client.send_transaction(server, &txn_id, text).await {
            Err(RequestError::Network(NetworkError::Broken(_))) => {
                client.even_if_failing().send_transaction(server, &txn_id, text).await
            }
            answer => answer,
        }
    }

    /// What was to be sent is sent later, and nothing of it is held in memory but what is only there.
    async fn put_off(self: &Arc<Self>, server: &ServerName, load: Load) {
        tracing::debug!(%server, "a transaction makes way for others");
        let mut owed = Vec::new();
        {
            let mut state = self.state.lock();
            let Some(destination) = state.get(server) else { return };
            destination.messages |= !load.messages.is_empty();
            load.give_back(destination);
            if !destination.queue.is_empty() {
                state.write_down(server, &mut owed);
            }
        }
        self.write_rows(owed).await;
    }

    async fn delivered(self: &Arc<Self>, server: &ServerName, load: &Load) -> Result<(), StoreError> {
        {
            let mut state = self.state.lock();
            state.delivered(server);
            if let Some(destination) = state.get(server) {
                destination.batch = super::PDUS_MAX;
            }
        }
        self.forget_messages(server, &load.messages).await?;
        self.settle(server, &load.missed.progress).await
    }

    async fn failed(
        self: &Arc<Self>,
        server: &ServerName,
        load: &Load,
        error: RequestError,
    ) -> Result<(), StoreError> {
        let until_ms = match error {
            RequestError::Store(error) => return Err(error),
            RequestError::Access(_) | RequestError::Local(_) => {
                self.state.lock().give_up(server);
                return Ok(());
            }
            RequestError::Resting { next_try_ms } => next_try_ms,
            error => {
                let size = load.pdus().len() + load.edus().len();
                let at_fault = is_about_content(&error);
                if at_fault && size > 1 {
                    tracing::debug!(%server, %error, size, "a transaction was refused, a smaller one is tried");
                    if let Some(destination) = self.state.lock().get(server) {
                        // Of events and of other messages alike: a batch is so many of each.
                        let size = load.pdus().len().max(load.edus().len());
                        destination.batch = (size / 2).clamp(1, super::PDUS_MAX / 2);
                        destination.messages |= !load.messages.is_empty();
                        load.give_back(destination);
                    }
                    // It is there, and answers.
                    return self.federation.destinations().alive(server).await;
                }
                if at_fault {
                    tracing::warn!(%server, %error, "what the server refuses is not sent to it again");
                    self.delivered(server, load).await?;
                }
                self.federation.destinations().failed(server, &error.to_string()).await?
            }
        };
        let mut owed = Vec::new();
        {
            let mut state = self.state.lock();
            state.belongs_to(server, Lane::Trial);
            let Some(destination) = state.get(server) else { return Ok(()) };
            destination.drop_volatile();
            if load.tells_presence() {
                destination.misses_presence();
            }
            destination.messages |= !load.messages.is_empty();
            if !destination.queue.is_empty() || destination.behind {
                destination.was_down = true;
                state.write_down(server, &mut owed);
            }
            if state.get(server).is_some_and(|destination| destination.has_work()) {
                state.rest(server, until_ms);
            }
        }
        self.write_rows(owed).await;
        self.sooner.notify_one();
        Ok(())
    }
}

/// Whether a refusal is about what was sent, not about who sent it or when.
fn is_about_content(error: &RequestError) -> bool {
    let Some(error) = error.remote() else { return false };
    let code = error.errcode.as_deref().unwrap_or_default();
    error.status == StatusCode::PAYLOAD_TOO_LARGE
        || (error.status == StatusCode::BAD_REQUEST
            && ["M_BAD_JSON", "M_NOT_JSON", "M_TOO_LARGE"].contains(&code))
}
