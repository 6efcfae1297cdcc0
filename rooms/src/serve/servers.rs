//! The servers that have joined users in a room.
//! * Counted once per room, then carried from one state to the next by the difference of their members: while the
//!   members stay the same, nothing is read but the room's latest state.
//! * Exact: a count belongs to one tree of members, and every answer says for which state it was asked.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use hearth_store::{StoreError, StreamPosition};
use quick_cache::{Weighter, sync::Cache};
use ruma::{OwnedServerName, ServerName, UserId};
use tokio::sync::Mutex;

use crate::events::RoomInfo;
use crate::ids::{EventSn, NodeRef, RoomSn, SnapshotId};
use crate::rooms::Rooms;
use crate::tables::{HEAD_SNAPSHOTS, Membership, PARTIAL_ROOMS, SnapshotRow};

/// Bytes of lists of servers that are kept, and about how much a server takes in one.
const CACHE_BYTES: u64 = 8 * 1024 * 1024;
const BYTES_OF_A_SERVER: u64 = 120;
/// A cache that expects no more is not divided; it holds as many as its bytes allow.
const ROOMS_OF_ONE_PIECE: usize = 32;
/// How often the members are read again because they changed meanwhile.
const TRIES: usize = 4;
/// Changes of members whose events are read at a time.
const CHANGES_AT_ONCE: usize = 2_000;

/// The servers of a room, sorted. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoomServers(Arc<[OwnedServerName]>);

impl RoomServers {
    pub fn contains(&self, server: &ServerName) -> bool {
        self.0.binary_search_by(|held| held.as_str().cmp(server.as_str())).is_ok()
    }

    pub fn iter(&self) -> impl Iterator<Item = &ServerName> {
        self.0.iter().map(|server| &**server)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

pub(super) type ServersCache = Cache<RoomSn, Arc<Entry>, ByBytes>;

/// In one piece: of several, each would be too small for the list of a large room, which would then never be kept.
pub(super) fn new_cache() -> ServersCache {
    Cache::with_weighter(ROOMS_OF_ONE_PIECE, CACHE_BYTES, ByBytes)
}

#[derive(Clone)]
pub(super) struct ByBytes;

impl Weighter<RoomSn, Arc<Entry>> for ByBytes {
    fn weight(&self, _: &RoomSn, entry: &Arc<Entry>) -> u64 {
        300 + entry.servers * BYTES_OF_A_SERVER
    }
}

/// What is kept of a room.
pub(super) struct Entry {
    /// When it was put in. A room with other servers gets a new entry.
    servers: u64,
    counted: Mutex<Counted>,
}

impl Entry {
    fn new(counted: Counted) -> Arc<Self> {
        Arc::new(Entry { servers: counted.counts.len() as u64, counted: Mutex::new(counted) })
    }
}

/// How many joined users each server has, in one state.
#[derive(Clone)]
struct Counted {
    members: Option<NodeRef>,
    counts: BTreeMap<OwnedServerName, u32>,
    list: RoomServers,
}

impl Default for Counted {
    fn default() -> Self {
        Counted { members: None, counts: BTreeMap::new(), list: RoomServers(Arc::new([])) }
    }
}

impl Counted {
    fn set(&mut self, members: NodeRef, counts: BTreeMap<OwnedServerName, u32>) {
        self.list = RoomServers(counts.keys().cloned().collect());
        self.counts = counts;
        self.members = Some(members);
    }

    /// Goes on to another state. Says whether a server came or went.
    fn apply(&mut self, members: NodeRef, changes: Vec<(OwnedServerName, i32)>) -> bool {
        let mut other = false;
        for (server, change) in changes {
            let count = self.counts.get(&server).copied().unwrap_or(0);
            match count.saturating_add_signed(change) {
                0 => other |= self.counts.remove(&server).is_some(),
                now => other |= self.counts.insert(server, now).is_none(),
            }
        }
        if other {
            self.list = RoomServers(self.counts.keys().cloned().collect());
        }
        self.members = Some(members);
        other
    }
}

impl Rooms {
    /// The servers with joined users in a room now, ours among them.
    pub async fn servers_in_room(&self, room: &RoomInfo) -> Result<RoomServers, StoreError> {
        self.servers_at(room, StreamPosition::MAX).await
    }

    /// Whether a server has joined users in a room now.
    pub async fn is_server_in_room(&self, room: &RoomInfo, server: &ServerName) -> Result<bool, StoreError> {
        Ok(self.servers_in_room(room).await?.contains(server))
    }

    /// The servers with joined users in a room as it was at a position.
    pub(crate) async fn servers_at(
        &self,
        room: &RoomInfo,
        position: StreamPosition,
    ) -> Result<RoomServers, StoreError> {
        match self.state_at(room.sn, position).await? {
            Some((_, row)) => self.servers_in(room, &row).await,
            None => Ok(RoomServers(Arc::new([]))),
        }
    }

    /// The servers with joined users in a state of a room. Of a partial state also those that we were told of when we
    /// joined, and once the members are known, those that are there now.
    pub(crate) async fn servers_in(
        &self,
        room: &RoomInfo,
        state: &SnapshotRow,
    ) -> Result<RoomServers, StoreError> {
        let known = self.servers_of(room, state.snapshot).await?;
        if !state.partial {
            return Ok(known);
        }
        let mut all: BTreeSet<OwnedServerName> = known.iter().map(ToOwned::to_owned).collect();
        if let Some(told) = self.store().get(&PARTIAL_ROOMS, &room.sn).await? {
            all.extend(told.servers);
        } else if let Some((_, now)) = self.state_at(room.sn, StreamPosition::MAX).await?
            && !now.partial
        {
            all.extend(self.servers_of(room, now.snapshot).await?.iter().map(ToOwned::to_owned));
        }
        Ok(RoomServers(all.into_iter().collect()))
    }

    /// The room's state at a position, and since when.
    pub(super) async fn state_at(
        &self,
        room: RoomSn,
        position: StreamPosition,
    ) -> Result<Option<(StreamPosition, SnapshotRow)>, StoreError> {
        let range = HEAD_SNAPSHOTS.prefix(&(room,)).up_to(&(room, position));
        let row = self.store().last(&HEAD_SNAPSHOTS, range).await?;
        Ok(row.map(|((_, since), row)| (since, row)))
    }

    /// The servers with joined users in a state of a room.
    pub(crate) async fn servers_of(
        &self,
        room: &RoomInfo,
        snapshot: SnapshotId,
    ) -> Result<RoomServers, StoreError> {
        let cache = &self.serving().servers;
        let entry = match cache.get(&room.sn) {
            Some(entry) => entry,
            None => {
                let entry = Entry::new(Counted::default());
                cache.insert(room.sn, entry.clone());
                entry
            }
        };
        let mut counted = entry.counted.lock().await;
        let is_new = counted.members.is_none();
        if is_new {
            let (members, counts) = self.count_servers(room).await?;
            counted.set(members, counts);
        }
        let other = match counted.members {
            Some(members) if members != snapshot.members => {
                let changes = self.changes_of_servers(room, members, snapshot.members).await?;
                counted.apply(snapshot.members, changes)
            }
            _ => false,
        };
        if is_new || other {
            cache.insert(room.sn, Entry::new(counted.clone()));
        }
        Ok(counted.list.clone())
    }

    /// Counts the joined users of each server, and says of which tree of members.
    async fn count_servers(
        &self,
        room: &RoomInfo,
    ) -> Result<(NodeRef, BTreeMap<OwnedServerName, u32>), StoreError> {
        for _ in 0..TRIES {
            let Some((since, row)) = self.state_at(room.sn, StreamPosition::MAX).await? else {
                return Ok((NodeRef::EMPTY, BTreeMap::new()));
            };
            let Some(counts) = self.count_current(room.sn, since).await? else { break };
            // The list of members is of this state only if the state was the same before and after.
            let after = self.state_at(room.sn, StreamPosition::MAX).await?;
            if after.is_some_and(|(still, _)| still == since) {
                return Ok((row.snapshot.members, counts));
            }
        }
        // A room that never rests, or is about to change in many members: from its events.
        let Some((_, row)) = self.state_at(room.sn, StreamPosition::MAX).await? else {
            return Ok((NodeRef::EMPTY, BTreeMap::new()));
        };
        let mut counts = BTreeMap::new();
        for (server, _) in self.changes_of_servers(room, NodeRef::EMPTY, row.snapshot.members).await? {
            *counts.entry(server).or_default() += 1;
        }
        Ok((row.snapshot.members, counts))
    }

    /// Counts the list of members, if it is that of the state since a position: of a change that is too large for one
    /// commit, rows of members come first.
    async fn count_current(
        &self,
        room: RoomSn,
        since: StreamPosition,
    ) -> Result<Option<BTreeMap<OwnedServerName, u32>>, StoreError> {
        let mut counts: BTreeMap<OwnedServerName, u32> = BTreeMap::new();
        let walked = self.each_member(room, |user, row| {
            if row.position > since {
                return ControlFlow::Break(());
            }
            if row.value.membership == Membership::Join
                && let Ok(user) = <&UserId>::try_from(&*user)
            {
                match counts.get_mut(user.server_name()) {
                    Some(count) => *count += 1,
                    None => drop(counts.insert(user.server_name().to_owned(), 1)),
                }
            }
            ControlFlow::Continue(())
        });
        let is_of_it = walked.await?.is_continue();
        Ok(is_of_it.then_some(counts))
    }

    /// By how much the number of each server's joined users differs between two trees of members.
    async fn changes_of_servers(
        &self,
        room: &RoomInfo,
        before: NodeRef,
        after: NodeRef,
    ) -> Result<Vec<(OwnedServerName, i32)>, StoreError> {
        let of = |members| SnapshotId { members, rest: NodeRef::EMPTY };
        let changes = self.snapshots().diff(room.sn, of(before), of(after)).await?;
        let mut servers = Vec::new();
        for changes in changes.chunks(CHANGES_AT_ONCE) {
            let numbers: BTreeSet<EventSn> =
                changes.iter().flat_map(|change| [change.before, change.after]).flatten().collect();
            let numbers: Vec<EventSn> = numbers.into_iter().collect();
            let events = self.events().load_many(room, &numbers).await?;
            let joined = |event: Option<EventSn>| {
                let place = numbers.binary_search(&event?).ok()?;
                let pdu = &events[place].pdu;
                let user = <&UserId>::try_from(pdu.state_key()?).ok()?;
                (Membership::of(pdu) == Some(Membership::Join)).then(|| user.server_name().to_owned())
            };
            for change in changes {
                match (joined(change.before), joined(change.after)) {
                    (None, Some(server)) => servers.push((server, 1)),
                    (Some(server), None) => servers.push((server, -1)),
                    _ => {}
                }
            }
        }
        Ok(servers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_rooms_are_kept_beside_many_small_ones() {
        let cache = new_cache();
        let entry = |servers| Arc::new(Entry { servers, counted: Mutex::default() });
        cache.insert(RoomSn(0), entry(30_000));
        for room in 1..1_000 {
            cache.insert(RoomSn(room), entry(3));
            assert!(cache.get(&RoomSn(0)).is_some() && cache.get(&RoomSn(room)).is_some(), "{room}");
        }
    }
}
