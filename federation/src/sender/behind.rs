//! The rows of what servers were not sent, and their end.
//! * A row says where the oldest missing event of a room is; what comes later is behind it and needs no row.
//! * Who adds and who removes rows may meet: each commit expects the rows as they were read, and is tried again.

use std::{collections::BTreeMap, sync::Arc};

use hearth_rooms::RoomSn;
use hearth_store::{Commit, CommitError, Order, Store, StoreError, StreamPosition};
use ruma::{OwnedServerName, ServerName};

use super::{Inner, STORE_PAUSE};
use crate::tables::{BEHIND, BehindRow};

/// Rows of a server that are counted.
const COUNTED_MAX: usize = 10_000;
/// Rows written in one commit.
const ROWS_AT_ONCE: usize = 300;

/// A row that is to be written: a server was not sent an event of a room.
#[derive(Clone, Debug)]
pub(super) struct Owed {
    pub(super) server: OwnedServerName,
    pub(super) room: RoomSn,
    pub(super) oldest: StreamPosition,
    pub(super) removed_at: Option<StreamPosition>,
    /// The row that is there is being removed: this one is to stay, whoever comes first.
    pub(super) anew: bool,
    /// The destination is remembered, and told when the row is there.
    pub(super) counted: bool,
}

/// How far a server was caught up in a room.
#[derive(Clone, Copy, Debug)]
pub(super) struct Progress {
    pub(super) room: RoomSn,
    /// Where its row began.
    pub(super) oldest: StreamPosition,
    pub(super) upto: StreamPosition,
    /// There was nothing more when it was read.
    pub(super) complete: bool,
}

type Key = (String, RoomSn);

/// In how many rooms a server was not sent something, at most 10,000.
pub async fn rooms_behind(store: &Store, server: &str) -> Result<usize, StoreError> {
    let range = BEHIND.prefix(&server.to_owned());
    Ok(store.range(&BEHIND, range, Order::Forward, COUNTED_MAX).await?.len())
}

impl Inner {
    /// Writes rows down, for as long as it takes: until then nobody forgets what they stand for.
    pub(super) async fn write_rows(self: &Arc<Self>, owed: Vec<Owed>) {
        if owed.is_empty() {
            return;
        }
        let mut rows: BTreeMap<Key, Owed> = BTreeMap::new();
        for new in &owed {
            let key = (new.server.to_string(), new.room);
            rows.entry(key)
                .and_modify(|row| {
                    row.oldest = row.oldest.min(new.oldest);
                    row.removed_at = row.removed_at.max(new.removed_at);
                    row.anew |= new.anew;
                })
                .or_insert_with(|| new.clone());
        }
        let rows: Vec<(Key, Owed)> = rows.into_iter().collect();
        for rows in rows.chunks(ROWS_AT_ONCE) {
            while let Err(error) = self.try_to_write(rows).await {
                tracing::error!(%error, "what servers are owed cannot be written");
                tokio::time::sleep(STORE_PAUSE).await;
            }
        }
        let mut state = self.state.lock();
        for written in owed.iter().filter(|owed| owed.counted) {
            state.rows_written(&written.server);
        }
    }

    async fn try_to_write(&self, rows: &[(Key, Owed)]) -> Result<(), StoreError> {
        let keys: Vec<Key> = rows.iter().map(|(key, _)| key.clone()).collect();
        loop {
            let found = self.store.multi_get(&BEHIND, &keys).await?;
            let mut commit = Commit::new();
            for ((key, owed), found) in rows.iter().zip(found) {
                match found {
                    None => {
                        commit.expect_absent(&BEHIND, key);
                        let row = BehindRow { oldest: owed.oldest, removed_at: owed.removed_at };
                        commit.put(&BEHIND, key, &row);
                    }
                    Some(_) if owed.anew => {
                        let row = BehindRow { oldest: owed.oldest, removed_at: owed.removed_at };
                        commit.put(&BEHIND, key, &row);
                    }
                    Some(row) => {
                        let oldest = row.oldest.min(owed.oldest);
                        let merged = BehindRow { oldest, removed_at: row.removed_at.max(owed.removed_at) };
                        if merged != row {
                            commit.expect(&BEHIND, key, &row);
                            commit.put(&BEHIND, key, &merged);
                        }
                    }
                }
            }
            if commit.is_empty() {
                return Ok(());
            }
            match self.store.commit(commit).await {
                Ok(_) => return Ok(()),
                Err(CommitError::Conflict) => {}
                Err(CommitError::Store(error)) => return Err(error),
            }
        }
    }

    /// A server was sent all of some rooms up to some place: their rows move on, or end.
    pub(super) async fn settle(&self, server: &ServerName, progress: &[Progress]) -> Result<(), StoreError> {
        if progress.is_empty() {
            return Ok(());
        }
        let keys: Vec<Key> = progress.iter().map(|room| (server.to_string(), room.room)).collect();
        loop {
            let ends = self.close_rooms(server, progress);
            let found = self.store.multi_get(&BEHIND, &keys).await?;
            let mut commit = Commit::new();
            for (((key, room), found), ends) in keys.iter().zip(progress).zip(found).zip(ends) {
                // A row that begins later was written while this one was being sent; so was one that begins earlier, for
                // what is read from the stream again after a start.
                let is_meant = |row: &BehindRow| (room.oldest..=room.upto).contains(&row.oldest);
                let Some(row) = found.filter(is_meant) else { continue };
                let removed_at = row.removed_at.filter(|removed_at| *removed_at > room.upto);
                commit.expect(&BEHIND, key, &row);
                if ends && removed_at.is_none() {
                    commit.delete(&BEHIND, key);
                } else {
                    commit.put(&BEHIND, key, &BehindRow { oldest: room.upto.next(), removed_at });
                }
            }
            if commit.is_empty() {
                return Ok(());
            }
            match self.store.commit(commit).await {
                Ok(_) => return Ok(()),
                Err(CommitError::Conflict) => {}
                Err(CommitError::Store(error)) => return Err(error),
            }
        }
    }

    /// Says of each room whether its row ends: nothing came while it was being sent.
    fn close_rooms(&self, server: &ServerName, progress: &[Progress]) -> Vec<bool> {
        let mut state = self.state.lock();
        let mut ends = Vec::with_capacity(progress.len());
        for room in progress {
            let catching = state.get(server).and_then(|found| found.catching.get_mut(&room.room));
            let newest = catching.as_ref().and_then(|catching| catching.newest);
            let end = room.complete && newest.is_none_or(|newest| newest <= room.upto);
            if let Some(catching) = catching
                && end
            {
                catching.closing = true;
                state.forget_row(server, room.room);
            }
            ends.push(end);
        }
        ends
    }
}
