//! Receipts and read markers.
//! * One receipt per (room, user, type, thread); it never moves backwards in the order that the caller gives.
//! * Private receipts are shown to their user only.
//! * A change has a position and one index row of its room, so that "what changed in this room after t" is one range.

use std::collections::HashSet;

use bytes::Bytes;
use hearth_store::{Commit, CommitError, Order, Positioned, StoreError, StreamPosition};
use ruma::{EventId, OwnedEventId, OwnedUserId, RoomId, UserId, events::receipt::ReceiptThread};
use serde_json::json;

use crate::{
    FULLY_READ, Users, UsersError,
    tables::{RECEIPT_CHANGES, RECEIPTS, ReceiptRecord},
    users::ATTEMPTS,
};

/// Receipts read of one room at a time.
const PAGE: usize = 1_000;

/// Where an event stands in its room: larger is later. Whatever the rooms order by.
pub type ReceiptOrder = (u64, u64);

/// Who sees a receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ReceiptKind {
    /// `m.read`: everybody in the room.
    Read,
    /// `m.read.private`: only the user.
    ReadPrivate,
}

impl ReceiptKind {
    /// The type in the words of the specification.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "m.read",
            Self::ReadPrivate => "m.read.private",
        }
    }

    fn code(self) -> u8 {
        match self {
            Self::Read => 0,
            Self::ReadPrivate => 1,
        }
    }

    fn of(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Read),
            1 => Some(Self::ReadPrivate),
            _ => None,
        }
    }
}

/// A receipt to be set.
#[derive(Clone, Debug)]
pub struct NewReceipt {
    /// Who sees it.
    pub kind: ReceiptKind,
    /// Up to which event.
    pub event_id: OwnedEventId,
    /// Of which thread.
    pub thread: ReceiptThread,
    /// When, in milliseconds since 1970.
    pub ts: u64,
    /// Where the event stands; without it (an event that is not held) the receipt replaces any.
    pub order: Option<ReceiptOrder>,
}

/// A receipt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Whose.
    pub user_id: OwnedUserId,
    /// Who sees it.
    pub kind: ReceiptKind,
    /// Up to which event.
    pub event_id: OwnedEventId,
    /// Of which thread.
    pub thread: ReceiptThread,
    /// When, in milliseconds since 1970.
    pub ts: u64,
    /// Where the event stands, if it was known.
    pub order: Option<ReceiptOrder>,
    /// When it was set.
    pub position: StreamPosition,
}

type Key = (String, String, u8, String);
type Row = Positioned<ReceiptRecord>;

impl Users {
    /// Sets receipts and, with `fully_read`, the read marker of a room, in one commit.
    /// The position of the change, or `None` where nothing moved.
    pub async fn set_receipts(
        &self,
        room: &RoomId,
        user: &UserId,
        receipts: &[NewReceipt],
        fully_read: Option<&EventId>,
    ) -> Result<Option<StreamPosition>, UsersError> {
        let keys: Vec<Key> = receipts.iter().map(|receipt| key(room, user, receipt)).collect();
        for _ in 0..ATTEMPTS {
            let mut commit = Commit::new();
            let mut receipts_moved = false;
            let rows = self.inner.store.multi_get(&RECEIPTS, &keys).await?;
            for ((receipt, key), before) in receipts.iter().zip(&keys).zip(rows) {
                if moves(before.as_ref(), receipt) {
                    write(key, before.as_ref(), receipt, &mut commit);
                    receipts_moved = true;
                }
            }
            let mut marker_moved = false;
            if let Some(event) = fully_read {
                let before = self.read_account_data(user, Some(room), FULLY_READ).await?;
                let after = Bytes::from(json!({ "event_id": event }).to_string());
                if before.as_ref().is_none_or(|before| before.value.0 != after) {
                    self.write_account_data(
                        user,
                        Some(room),
                        FULLY_READ,
                        before.as_ref(),
                        after,
                        &mut commit,
                    );
                    marker_moved = true;
                }
            }
            if !receipts_moved && !marker_moved {
                return Ok(None);
            }
            let of_user = marker_moved.then_some(user);
            let of_room = receipts_moved.then_some(room);
            match self.commit_changes(of_user, of_room, commit, |_| ()).await {
                Ok(committed) => return Ok(Some(committed.last())),
                Err(CommitError::Conflict) => {}
                Err(CommitError::Store(error)) => return Err(error.into()),
            }
        }
        Err(UsersError::Busy)
    }

    /// The rooms (ids) behind `after` that have receipts, at most `limit`, in the order of their ids.
    pub async fn rooms_with_receipts(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<String>, StoreError> {
        let (mut rooms, mut after) = (Vec::new(), after.map(str::to_owned));
        while rooms.len() < limit {
            let all = RECEIPT_CHANGES.all();
            let rest = match &after {
                Some(room) => all.after(room),
                None => all,
            };
            let Some(((room, ..), ())) = self.inner.store.first(&RECEIPT_CHANGES, rest).await? else { break };
            rooms.push(room.clone());
            after = Some(room);
        }
        Ok(rooms)
    }

    /// The receipts of a room that changed after `since` up to `upto`, as `viewer` may see them; without `since` all.
    pub async fn receipts_since(
        &self,
        room: &RoomId,
        viewer: &UserId,
        since: Option<StreamPosition>,
        upto: StreamPosition,
    ) -> Result<Vec<Receipt>, StoreError> {
        match since {
            Some(since) if !self.receipts_changed_since(room, since) => Ok(Vec::new()),
            Some(since) => self.changed_receipts(room, Some(viewer), since, upto, usize::MAX).await,
            None => self.all_receipts(room, viewer).await,
        }
    }

    /// The receipts of a room that changed after `since` up to `upto` and that everybody may see, at least the first
    /// `limit` of them, in the order of their positions.
    pub async fn public_receipts_since(
        &self,
        room: &RoomId,
        since: StreamPosition,
        upto: StreamPosition,
        limit: usize,
    ) -> Result<Vec<Receipt>, StoreError> {
        match self.receipts_changed_since(room, since) {
            true => self.changed_receipts(room, None, since, upto, limit).await,
            false => Ok(Vec::new()),
        }
    }

    /// The user's own receipts in a room, of all threads.
    pub async fn own_receipts(&self, room: &RoomId, user: &UserId) -> Result<Vec<Receipt>, StoreError> {
        let range = RECEIPTS.prefix(&(room.as_str().to_owned(), user.as_str().to_owned()));
        let rows = self.inner.store.range(&RECEIPTS, range, Order::Forward, PAGE).await?;
        Ok(rows.into_iter().filter_map(|(key, row)| receipt(key, row)).collect())
    }

    async fn changed_receipts(
        &self,
        room: &RoomId,
        viewer: Option<&UserId>,
        since: StreamPosition,
        upto: StreamPosition,
        limit: usize,
    ) -> Result<Vec<Receipt>, StoreError> {
        let id = room.as_str().to_owned();
        let mut range = RECEIPT_CHANGES.prefix(&id).after(&(id.clone(), since)).up_to(&(id.clone(), upto));
        let (mut changed, mut done) = (Vec::new(), HashSet::new());
        loop {
            let store = &self.inner.store;
            let rows = store.range(&RECEIPT_CHANGES, range.clone(), Order::Forward, PAGE).await?;
            let Some((last, ())) = rows.last() else { break };
            range = range.after(last);
            let full = rows.len() == PAGE;
            let keys: Vec<Key> = rows
                .into_iter()
                .map(|((room, _, user, kind, thread), ())| (room, user, kind, thread))
                .filter(|key| is_for(key, viewer) && done.insert((key.1.clone(), key.2, key.3.clone())))
                .collect();
            let contents = store.multi_get(&RECEIPTS, &keys).await?;
            let receipts = keys.into_iter().zip(contents);
            changed.extend(receipts.filter_map(|(key, row)| receipt(key, row?)));
            if !full || changed.len() >= limit {
                break;
            }
        }
        Ok(changed)
    }

    async fn all_receipts(&self, room: &RoomId, viewer: &UserId) -> Result<Vec<Receipt>, StoreError> {
        let mut range = RECEIPTS.prefix(&room.as_str().to_owned());
        let mut all = Vec::new();
        loop {
            let rows = self.inner.store.range(&RECEIPTS, range.clone(), Order::Forward, PAGE).await?;
            let Some((last, _)) = rows.last() else { break };
            range = range.after(last);
            let full = rows.len() == PAGE;
            let visible = rows.into_iter().filter(|(key, _)| is_for(key, Some(viewer)));
            all.extend(visible.filter_map(|(key, row)| receipt(key, row)));
            if !full {
                break;
            }
        }
        Ok(all)
    }
}

/// Receipts as the content of an `m.receipt` event.
pub fn receipt_content(receipts: &[Receipt]) -> serde_json::Value {
    let mut content = serde_json::Map::new();
    for receipt in receipts {
        let mut details = json!({ "ts": receipt.ts });
        if let Some(thread) = receipt.thread.as_str() {
            details["thread_id"] = thread.into();
        }
        let event = content.entry(receipt.event_id.as_str()).or_insert_with(|| json!({}));
        let place = &mut event[receipt.kind.as_str()][receipt.user_id.as_str()];
        // There is room for one receipt of a user for an event: the one for all threads says more than one for a thread.
        if place.is_null() || receipt.thread.as_str().is_none() {
            *place = details;
        }
    }
    content.into()
}

fn key(room: &RoomId, user: &UserId, receipt: &NewReceipt) -> Key {
    let thread = receipt.thread.as_str().unwrap_or_default().to_owned();
    (room.as_str().to_owned(), user.as_str().to_owned(), receipt.kind.code(), thread)
}

fn is_for((_, user, kind, _): &Key, viewer: Option<&UserId>) -> bool {
    *kind == ReceiptKind::Read.code() || viewer.is_some_and(|viewer| user == viewer.as_str())
}

/// Whether a receipt is ahead of the one that is there.
fn moves(before: Option<&Row>, new: &NewReceipt) -> bool {
    let Some(before) = before.map(|row| &row.value) else { return true };
    match (before.order, new.order) {
        (Some(before), Some(new)) => new > before,
        _ => before.event_id != new.event_id.as_str(),
    }
}

fn write(key: &Key, before: Option<&Row>, new: &NewReceipt, commit: &mut Commit) {
    let index = |at| (key.0.clone(), at, key.1.clone(), key.2, key.3.clone());
    let position = commit.position();
    match before {
        Some(before) => {
            commit.expect(&RECEIPTS, key, before);
            commit.delete(&RECEIPT_CHANGES, &index(before.position));
        }
        None => commit.expect_absent(&RECEIPTS, key),
    }
    let value = ReceiptRecord { event_id: new.event_id.as_str().to_owned(), ts: new.ts, order: new.order };
    commit.put(&RECEIPTS, key, &Positioned { position, value });
    commit.put(&RECEIPT_CHANGES, &index(position), &());
}

fn receipt((_, user, kind, thread): Key, row: Row) -> Option<Receipt> {
    let thread = match &*thread {
        "" => ReceiptThread::Unthreaded,
        thread => ReceiptThread::try_from(Some(thread)).ok()?,
    };
    Some(Receipt {
        user_id: UserId::parse(user).ok()?,
        kind: ReceiptKind::of(kind)?,
        event_id: EventId::parse(row.value.event_id).ok()?,
        thread,
        ts: row.value.ts,
        order: row.value.order,
        position: row.position,
    })
}
