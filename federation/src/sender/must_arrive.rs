//! Messages that must arrive: each is a row until the destination has taken it.

use std::sync::Arc;

use bytes::Bytes;
use hearth_store::{Blob, Commit, Order, StoreError, StreamPosition, Topic};
use ruma::ServerName;

use super::{EDUS_MAX, Inner, TRANSACTION_BYTES};
use crate::tables::MUST_ARRIVE;

/// The kind of the topics that name a destination.
const TOPIC: u8 = b'd';

/// Adds a message to a server to a commit: once that is durable, the message will arrive. `edu` is the whole of it as
/// JSON, with `edu_type` and `content`.
pub fn must_arrive(commit: &mut Commit, server: &ServerName, edu: &str) {
    let position = commit.position();
    let row = Blob(Bytes::copy_from_slice(edu.as_bytes()));
    commit.put_new(&MUST_ARRIVE, &(server.to_string(), position), &row);
    commit.touch(Topic::new(TOPIC, server.as_bytes()));
}

/// Messages out of the store.
pub(super) type Messages = Vec<(StreamPosition, Bytes)>;

impl Inner {
    /// Wakes destinations for which messages were left.
    pub(super) async fn follow_messages(self: Arc<Self>) {
        let mut watch = self.store.watch_for(|wake| wake.touches(TOPIC));
        while let Some(wake) = watch.next().await {
            let Ok(wake) = wake else {
                // Too much happened to know who was meant.
                self.state.lock().more_in_store = true;
                continue;
            };
            let mut state = self.state.lock();
            let mut some = false;
            for (topic, _) in wake.touched.iter().filter(|(topic, _)| topic.tag() == TOPIC) {
                let name = std::str::from_utf8(topic.id()).ok();
                let Some(server) = name.and_then(|name| <&ServerName>::try_from(name).ok()) else { continue };
                if let Some(destination) = state.remembered(server) {
                    destination.messages = true;
                    state.make_ready(server);
                    some = true;
                }
            }
            drop(state);
            if some {
                self.start_workers();
            }
        }
    }

    /// The oldest messages for a server, and whether there may be more.
    pub(super) async fn messages(&self, server: &ServerName) -> Result<(Messages, bool), StoreError> {
        let range = MUST_ARRIVE.prefix(&server.to_string());
        let rows = self.store.range(&MUST_ARRIVE, range, Order::Forward, EDUS_MAX).await?;
        let (count, mut bytes, mut messages) = (rows.len(), 0, Vec::new());
        for ((_, position), Blob(message)) in rows {
            if bytes >= TRANSACTION_BYTES / 2 {
                break;
            }
            bytes += message.len();
            messages.push((position, message));
        }
        let more = messages.len() < count || count == EDUS_MAX;
        Ok((messages, more))
    }

    /// The messages were taken.
    pub(super) async fn forget_messages(
        &self,
        server: &ServerName,
        messages: &Messages,
    ) -> Result<(), StoreError> {
        let mut commit = Commit::new();
        for (position, _) in messages {
            commit.delete(&MUST_ARRIVE, &(server.to_string(), *position));
        }
        if commit.is_empty() {
            return Ok(());
        }
        match self.store.commit(commit).await {
            Ok(_) => Ok(()),
            Err(hearth_store::CommitError::Store(error)) => Err(error),
            // It has no preconditions.
            Err(hearth_store::CommitError::Conflict) => Ok(()),
        }
    }
}
