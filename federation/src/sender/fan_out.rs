//! The follower of the rooms' stream, and the cursor that says how far everything was sent.
//! * The cursor is written while there is something to be lost, not with each event: a crash sends some events again.

use std::{sync::Arc, time::Duration};

use hearth_rooms::serve::OutgoingPage;
use hearth_store::{Commit, CommitError, StoreError, StreamPosition};
use ruma::{OwnedServerName, RoomId};

use super::{
    Inner, STORE_PAUSE,
    edus::{EduKey, EduValue},
};
use crate::tables::SENT_UP_TO;

/// Changes of rooms that are read at a time.
const PAGE: usize = 200;
/// How often the cursor is written at most.
const CURSOR_EVERY: Duration = Duration::from_secs(1);
/// Changes that concerned no other server, after which the cursor is written too.
const CURSOR_LAG: u64 = 5_000;

impl Inner {
    /// Fans out what happens in rooms, from where the last run ended.
    pub(super) async fn follow_rooms(self: Arc<Self>) {
        let mut watch = self.store.watch();
        let mut after = loop {
            match self.store.get(&SENT_UP_TO, &()).await {
                Ok(Some(row)) => break row,
                // The first start: what was before has no server that waits for it.
                Ok(None) => match self.begin().await {
                    Ok(begin) => break begin,
                    Err(error) => self.pause(&error).await,
                },
                Err(error) => self.pause(&error).await,
            }
        };
        {
            let mut state = self.state.lock();
            state.fanned_out = after;
            state.written = after;
        }
        loop {
            loop {
                match self.rooms.stream_after(after, PAGE).await {
                    Ok(page) => {
                        let more = page.more;
                        after = page.upto;
                        self.fan_out(page).await;
                        if !more {
                            break;
                        }
                    }
                    Err(error) => self.pause(&error).await,
                }
            }
            loop {
                match watch.next().await {
                    None => return,
                    Some(Ok(wake)) if wake.upto <= after => {}
                    Some(_) => break,
                }
            }
        }
    }

    /// Notes where a sender without a cursor begins, so that it is the same after a crash.
    async fn begin(&self) -> Result<StreamPosition, StoreError> {
        let begin = self.store.watermark();
        let mut commit = Commit::new();
        commit.expect_absent(&SENT_UP_TO, &());
        commit.put(&SENT_UP_TO, &(), &begin);
        match self.store.commit(commit).await {
            Ok(_) => Ok(begin),
            Err(CommitError::Conflict) => Ok(self.store.get(&SENT_UP_TO, &()).await?.unwrap_or(begin)),
            Err(CommitError::Store(error)) => Err(error),
        }
    }

    async fn pause(&self, error: &StoreError) {
        tracing::error!(%error, "what is to be sent cannot be read");
        tokio::time::sleep(STORE_PAUSE).await;
    }

    async fn fan_out(self: &Arc<Self>, page: OutgoingPage) {
        let mut owed = Vec::new();
        let local = self.federation.local_servers();
        let access = self.federation.access();
        for outgoing in page.events {
            let event = self.state.lock().share(outgoing);
            let mut state = self.state.lock();
            let wanted = event.destinations(local).filter(|server| access.check(server).is_ok());
            for server in wanted {
                state.push(server, &event, &mut owed);
                state.touched = true;
            }
        }
        // Those who are in order do not wait for the rows of those who are not.
        self.start_workers();
        if !owed.is_empty() {
            self.write_rows(owed).await;
            self.start_workers();
        }
        self.state.lock().fanned_out = page.upto;
    }

    /// Writes the cursor down from time to time.
    pub(super) async fn keep_cursor(self: Arc<Self>) {
        loop {
            tokio::time::sleep(CURSOR_EVERY).await;
            let wanted = {
                let mut state = self.state.lock();
                let lag = state.settled().get().saturating_sub(state.written.get());
                lag > 0 && (std::mem::take(&mut state.touched) || lag >= CURSOR_LAG)
            };
            if wanted {
                self.write_cursor().await;
            }
        }
    }

    /// Writes the cursor down, if it moved.
    pub(super) async fn write_cursor(&self) {
        let (settled, written) = {
            let state = self.state.lock();
            (state.settled(), state.written)
        };
        if settled <= written {
            return;
        }
        let mut commit = Commit::new();
        commit.put(&SENT_UP_TO, &(), &settled);
        match self.store.commit(commit).await {
            Ok(_) => self.state.lock().written = settled,
            Err(error) => tracing::error!(%error, "how far was sent cannot be written"),
        }
    }

    /// Sends to servers what need not arrive.
    pub(super) fn tell(self: &Arc<Self>, servers: &[OwnedServerName], items: &[(Arc<EduKey>, EduValue)]) {
        for server in servers {
            let mut state = self.state.lock();
            for (key, value) in items {
                state.push_volatile(server, key, value);
            }
        }
        if !servers.is_empty() {
            self.start_workers();
        }
    }

    /// The other servers in a room; none if it is not known.
    pub(super) async fn servers_of(&self, room: &RoomId) -> Result<Vec<OwnedServerName>, StoreError> {
        match self.rooms.room(room).await? {
            Some(info) => self.others_in(&info).await,
            None => Ok(Vec::new()),
        }
    }

    /// The other servers in a room, with which we talk.
    pub(super) async fn others_in(
        &self,
        room: &hearth_rooms::RoomInfo,
    ) -> Result<Vec<OwnedServerName>, StoreError> {
        let (local, access) = (self.federation.local_servers(), self.federation.access());
        let servers = self.rooms.servers_in_room(room).await?;
        let others = servers.iter().filter(|server| !local.is_local(server) && access.check(server).is_ok());
        Ok(others.map(ToOwned::to_owned).collect())
    }
}
