//! Receipts of our users, told to the servers of the room. Private ones never leave.
//! * The first of a room goes at once. What follows waits, the longer the more servers there are, and goes together: all
//!   receipts of a room cost about the same number of transactions a second, however large it is.
//! * Of what waits only the position is held from which on it is to be told: the store knows each user's newest receipt.
//! * What cannot be read is read later, what cannot wait because too much does is told at once, and what finds no place at a
//!   destination is told it later: none is lost but where a destination fails.

use std::{collections::HashMap, sync::Arc, time::Duration};

use hearth_store::{StoreError, StreamPosition};
use hearth_users::{Receipt, ReceiptKind};
use ruma::{OwnedRoomId, RoomId};
use serde_json::json;
use tokio::time::Instant;

use super::{
    Inner, STORE_PAUSE,
    edus::{EduKey, EduValue},
};

/// Receipts of this long go together.
const RECEIPTS_EVERY: Duration = Duration::from_millis(200);
/// For each server that was told of a room's receipts, the next ones wait this long: 50 transactions a second for a room.
const WAIT_PER_SERVER: Duration = Duration::from_millis(20);
/// They wait no longer than this.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// Rooms whose receipts changed since the last look. Where there are more, each room is asked.
pub(super) const ROOMS_MAX: usize = 50_000;
/// Rooms that are asked at a time.
const ROOMS_AT_ONCE: usize = 1_000;
/// Rooms whose receipts wait, or would. Where there are more, theirs are told at once.
const PACED_ROOMS_MAX: usize = 10_000;

/// Of one room: what was told, and when the next is.
#[derive(Debug)]
struct Pace {
    told: StreamPosition,
    next: Instant,
    waits: bool,
}

/// Which rooms' receipts are to be told, and when.
#[derive(Debug, Default)]
struct Pacing(HashMap<OwnedRoomId, Pace>);

impl Pacing {
    /// A room's receipts changed after a position. False: there is no place for them to wait.
    fn changed(&mut self, room: &RoomId, since: StreamPosition, now: Instant) -> bool {
        if let Some(pace) = self.0.get_mut(room) {
            pace.waits = true;
            return true;
        }
        let has_place = self.0.len() < PACED_ROOMS_MAX;
        if has_place {
            self.0.insert(room.to_owned(), Pace { told: since, next: now, waits: true });
        }
        has_place
    }

    /// The rooms whose time has come, with the position after which receipts are to be told.
    fn due(&self, now: Instant) -> Vec<(OwnedRoomId, StreamPosition)> {
        let due = self.0.iter().filter(|(_, pace)| pace.waits && pace.next <= now);
        due.map(|(room, pace)| (room.clone(), pace.told)).collect()
    }

    /// A room's receipts were told to so many servers.
    fn told(&mut self, room: &RoomId, upto: StreamPosition, servers: usize, now: Instant) {
        if let Some(pace) = self.0.get_mut(room) {
            let wait = WAIT_PER_SERVER.saturating_mul(u32::try_from(servers).unwrap_or(u32::MAX));
            *pace = Pace { told: upto, next: now + wait.min(WAIT_MAX), waits: false };
        }
    }

    /// A room's receipts could not be read: they wait a little more.
    fn failed(&mut self, room: &RoomId, now: Instant) {
        if let Some(pace) = self.0.get_mut(room) {
            pace.next = now + STORE_PAUSE;
        }
    }

    fn forget_quiet(&mut self, now: Instant) {
        self.0.retain(|_, pace| pace.waits || pace.next > now);
    }

    /// When the next room's time comes.
    fn next(&self) -> Option<Instant> {
        self.0.values().filter(|pace| pace.waits).map(|pace| pace.next).min()
    }
}

impl Inner {
    /// Tells of receipts as they change.
    pub(super) async fn follow_receipts(self: Arc<Self>) {
        // Receipts touch their room by its ID.
        let mut watch = self.store.watch_for(|wake| wake.touches(b'c'));
        let mut since = self.store.watermark();
        let mut pacing = Pacing::default();
        let mut is_behind = false;
        loop {
            let next = pacing.next();
            tokio::select! {
                change = watch.next() => match change {
                    // Some come together.
                    Some(_) => tokio::time::sleep(RECEIPTS_EVERY).await,
                    None => return,
                },
                () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
                () = tokio::time::sleep(STORE_PAUSE), if is_behind => {}
            }
            let upto = self.store.watermark();
            let noted = self.note_changes(&mut pacing, since, upto).await;
            is_behind = noted.is_err();
            match noted {
                Ok(()) => since = upto,
                Err(error) => tracing::warn!(%error, "whose receipts changed cannot be read"),
            }
            let now = Instant::now();
            for (room, told) in pacing.due(now) {
                match self.tell_receipts(&room, told, upto).await {
                    Ok(servers) => pacing.told(&room, upto, servers, now),
                    Err(error) => {
                        tracing::warn!(%error, %room, "receipts cannot be read");
                        pacing.failed(&room, now);
                    }
                }
            }
            pacing.forget_quiet(now);
        }
    }

    /// Notes the rooms whose receipts changed after a position.
    async fn note_changes(
        self: &Arc<Self>,
        pacing: &mut Pacing,
        since: StreamPosition,
        upto: StreamPosition,
    ) -> Result<(), StoreError> {
        if let Some(rooms) = self.users.rooms_with_receipts_since(since, ROOMS_MAX) {
            for room in rooms {
                self.note_change(pacing, &room, since, upto).await?;
            }
            return Ok(());
        }
        let mut after: Option<String> = None;
        loop {
            let rooms = self.users.rooms_with_receipts(after.as_deref(), ROOMS_AT_ONCE).await?;
            for room in &rooms {
                self.note_change(pacing, room, since, upto).await?;
            }
            after = rooms.last().cloned();
            if after.is_none() {
                return Ok(());
            }
        }
    }

    /// Notes a room whose receipts may have changed, or tells them where too many rooms wait.
    async fn note_change(
        self: &Arc<Self>,
        pacing: &mut Pacing,
        room: &str,
        since: StreamPosition,
        upto: StreamPosition,
    ) -> Result<(), StoreError> {
        let Ok(room) = <&RoomId>::try_from(room) else { return Ok(()) };
        if self.users.receipts_changed_since(room, since) && !pacing.changed(room, since, Instant::now()) {
            self.tell_receipts(room, since, upto).await?;
        }
        Ok(())
    }

    /// Says to how many servers there was something to tell.
    async fn tell_receipts(
        self: &Arc<Self>,
        room: &RoomId,
        since: StreamPosition,
        upto: StreamPosition,
    ) -> Result<usize, StoreError> {
        let servers = self.servers_of(room).await?;
        if servers.is_empty() {
            return Ok(0);
        }
        let receipts = self.users.public_receipts_since(room, since, upto, usize::MAX).await?;
        let told = receipts.into_iter().filter_map(|receipt| self.told_as(room, receipt));
        let items: Vec<(Arc<EduKey>, EduValue)> = told.collect();
        if items.is_empty() {
            return Ok(0);
        }
        for server in &servers {
            self.state.lock().push_receipts(server, &items, since);
        }
        self.start_workers();
        Ok(servers.len())
    }

    /// A receipt as other servers are told it; nothing for those that are not ours to tell.
    pub(super) fn told_as(&self, room: &RoomId, receipt: Receipt) -> Option<(Arc<EduKey>, EduValue)> {
        let is_ours = self.federation.local_servers().is_local(receipt.user_id.server_name());
        if receipt.kind != ReceiptKind::Read || !is_ours {
            return None;
        }
        let mut data = json!({ "ts": receipt.ts });
        if let Some(thread) = receipt.thread.as_str() {
            data["thread_id"] = thread.into();
        }
        let thread = receipt.thread.as_str().map(str::to_owned);
        let key = EduKey::Receipt(room.to_owned(), receipt.user_id, thread);
        Some((Arc::new(key), Arc::new(json!({ "data": data, "event_ids": [receipt.event_id] }))))
    }
}

#[cfg(test)]
mod tests {
    use ruma::room_id;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_more_servers_the_longer_the_wait() {
        let (mut pacing, room, start) = (Pacing::default(), room_id!("!a:x"), Instant::now());
        let at = StreamPosition::new;
        pacing.changed(room, at(5), start);
        assert_eq!(pacing.due(start), [(room.to_owned(), at(5))], "the first at once");
        pacing.told(room, at(6), 100, start);
        assert_eq!((pacing.due(start).len(), pacing.next()), (0, None));
        for position in 7..10 {
            pacing.changed(room, at(position), start);
        }
        let next = start + Duration::from_secs(2);
        assert_eq!((pacing.due(start).len(), pacing.next()), (0, Some(next)));
        assert_eq!(pacing.due(next), [(room.to_owned(), at(6))], "all that came meanwhile");
        pacing.told(room, at(10), 1_000_000, next);
        pacing.changed(room, at(11), next);
        assert_eq!(pacing.next(), Some(next + WAIT_MAX));
        // A room whose servers were all told long ago costs nothing.
        pacing.told(room, at(12), 1, next);
        pacing.forget_quiet(next);
        assert_eq!(pacing.0.len(), 1);
        pacing.forget_quiet(next + WAIT_PER_SERVER);
        assert!(pacing.0.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn only_so_many_rooms_wait() {
        let (mut pacing, now) = (Pacing::default(), Instant::now());
        let room = |n: usize| OwnedRoomId::try_from(format!("!{n}:x")).unwrap();
        for n in 0..PACED_ROOMS_MAX {
            assert!(pacing.changed(&room(n), StreamPosition::ZERO, now));
        }
        assert!(!pacing.changed(&room(PACED_ROOMS_MAX), StreamPosition::ZERO, now), "told at once");
        assert!(pacing.changed(&room(0), StreamPosition::ZERO, now), "has its place");
        assert_eq!(pacing.due(now).len(), PACED_ROOMS_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_read_goes_on_waiting() {
        let (mut pacing, room, now) = (Pacing::default(), room_id!("!a:x"), Instant::now());
        pacing.changed(room, StreamPosition::new(5), now);
        pacing.failed(room, now);
        assert_eq!((pacing.due(now).len(), pacing.next()), (0, Some(now + STORE_PAUSE)));
        pacing.forget_quiet(now + WAIT_MAX);
        assert_eq!(pacing.due(now + STORE_PAUSE), [(room.to_owned(), StreamPosition::new(5))]);
    }
}
