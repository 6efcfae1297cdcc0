//! A room's state before and after each event, as persistent trees from state keys to events.
//! * Copy on write: a change makes a handful of nodes whatever the room's size; all else is shared.
//! * Nodes never change once written, so that what is cached is never stale.
//! * Memberships have a tree of their own; the other tree is small.

pub mod node;

use std::collections::BTreeMap;
use std::sync::Arc;

use hearth_store::{Blob, Store, StoreError};
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::ids::{EventSn, NodeRef, RecordSn, RoomSn, SnapshotId, StateKeySn};
use crate::tables::STATE_NODES;
use node::{FAN_OUT, LEAF_MAX, Node, NodeRecord, RecordWriter};

/// What a key holds in two states, where they differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StateChange {
    pub key: StateKeySn,
    pub before: Option<EventSn>,
    pub after: Option<EventSn>,
}

/// Reads snapshots. Cheap to clone.
#[derive(Clone)]
pub struct Snapshots {
    store: Store,
    cache: Arc<Cache<(RoomSn, RecordSn), Arc<NodeRecord>, ByBytes>>,
    overlay: crate::view::Overlay,
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<(RoomSn, RecordSn), Arc<NodeRecord>> for ByBytes {
    fn weight(&self, _: &(RoomSn, RecordSn), record: &Arc<NodeRecord>) -> u64 {
        record.weight()
    }
}

/// The records of a cache of this many bytes, for its first allocation.
const TYPICAL_RECORD: u64 = 512;

impl Snapshots {
    pub(crate) fn new(store: Store, overlay: crate::view::Overlay, cache_bytes: u64) -> Self {
        let entries = (cache_bytes / TYPICAL_RECORD) as usize;
        let cache = Arc::new(Cache::with_weighter(entries, cache_bytes, ByBytes));
        Snapshots { store, cache, overlay }
    }

    /// The event that a snapshot holds for a key.
    pub async fn lookup(
        &self,
        room: RoomSn,
        snapshot: SnapshotId,
        key: StateKeySn,
    ) -> Result<Option<EventSn>, StoreError> {
        self.find(room, root_of(snapshot, key), key.index(), &RecordWriter::default()).await
    }

    /// The events for many keys, in their order.
    pub async fn lookup_many(
        &self,
        room: RoomSn,
        snapshot: SnapshotId,
        keys: &[StateKeySn],
    ) -> Result<Vec<Option<EventSn>>, StoreError> {
        let mut found = Vec::with_capacity(keys.len());
        for key in keys {
            found.push(self.lookup(room, snapshot, *key).await?);
        }
        Ok(found)
    }

    /// All memberships of a snapshot, in the order of their keys.
    pub async fn members(
        &self,
        room: RoomSn,
        snapshot: SnapshotId,
    ) -> Result<Vec<(StateKeySn, EventSn)>, StoreError> {
        let entries = self.entries(room, snapshot.members, &RecordWriter::default()).await?;
        Ok(entries.into_iter().map(|(index, event)| (StateKeySn::member(index), event)).collect())
    }

    /// All of a snapshot but memberships, in the order of their keys.
    pub async fn rest(
        &self,
        room: RoomSn,
        snapshot: SnapshotId,
    ) -> Result<Vec<(StateKeySn, EventSn)>, StoreError> {
        let entries = self.entries(room, snapshot.rest, &RecordWriter::default()).await?;
        Ok(entries.into_iter().map(|(index, event)| (StateKeySn::other(index), event)).collect())
    }

    /// All of a snapshot.
    pub async fn all(
        &self,
        room: RoomSn,
        snapshot: SnapshotId,
    ) -> Result<Vec<(StateKeySn, EventSn)>, StoreError> {
        let mut all = self.rest(room, snapshot).await?;
        all.extend(self.members(room, snapshot).await?);
        Ok(all)
    }

    /// Where two snapshots differ. Reads only what is not shared between them.
    pub async fn diff(
        &self,
        room: RoomSn,
        before: SnapshotId,
        after: SnapshotId,
    ) -> Result<Vec<StateChange>, StoreError> {
        self.diff_with(room, before, after, &RecordWriter::default()).await
    }

    async fn diff_with(
        &self,
        room: RoomSn,
        before: SnapshotId,
        after: SnapshotId,
        fresh: &RecordWriter,
    ) -> Result<Vec<StateChange>, StoreError> {
        let mut changes = Vec::new();
        for (key, before, after) in [
            (StateKeySn::other as fn(u32) -> StateKeySn, before.rest, after.rest),
            (StateKeySn::member as fn(u32) -> StateKeySn, before.members, after.members),
        ] {
            let differing = self.diff_trees(room, before, after, fresh).await?;
            changes.extend(differing.into_iter().map(|(index, before, after)| StateChange {
                key: key(index),
                before,
                after,
            }));
        }
        Ok(changes)
    }

    async fn find(
        &self,
        room: RoomSn,
        root: NodeRef,
        index: u32,
        fresh: &RecordWriter,
    ) -> Result<Option<EventSn>, StoreError> {
        let (mut at, mut depth) = (root, 0);
        while !at.is_empty() {
            let record;
            let node = match fresh.node(at) {
                Some(node) => node,
                None => {
                    record = self.record(room, at.record).await?;
                    node_of(&record, at)?
                }
            };
            match node {
                Node::Leaf(entries) => {
                    let found = entries.binary_search_by_key(&index, |(index, _)| *index);
                    return Ok(found.ok().map(|place| entries[place].1));
                }
                Node::Branch(children) => at = children[Node::turn(index, depth)],
            }
            depth += 1;
        }
        Ok(None)
    }

    /// All entries below some nodes. Goes down level by level, each level's records in one batch.
    async fn entries(
        &self,
        room: RoomSn,
        root: NodeRef,
        fresh: &RecordWriter,
    ) -> Result<Vec<(u32, EventSn)>, StoreError> {
        let mut found = Vec::new();
        let mut level = vec![root];
        while !level.is_empty() {
            let records = self.records(room, &level, fresh).await?;
            let mut next = Vec::new();
            for at in &level {
                match node_among(&records, *at, fresh)? {
                    Some(Node::Leaf(entries)) => found.extend_from_slice(entries),
                    Some(Node::Branch(children)) => {
                        next.extend(children.iter().copied().filter(|child| !child.is_empty()));
                    }
                    None => {}
                }
            }
            level = next;
        }
        found.sort_unstable_by_key(|(index, _)| *index);
        Ok(found)
    }

    async fn diff_trees(
        &self,
        room: RoomSn,
        before: NodeRef,
        after: NodeRef,
        fresh: &RecordWriter,
    ) -> Result<Vec<(u32, Option<EventSn>, Option<EventSn>)>, StoreError> {
        let (mut old, mut new) = (BTreeMap::new(), BTreeMap::new());
        let mut level = vec![(before, after)];
        while !level.is_empty() {
            level.retain(|(before, after)| before != after);
            let wanted: Vec<_> = level.iter().flat_map(|(a, b)| [*a, *b]).collect();
            let records = self.records(room, &wanted, fresh).await?;
            let node = |at: NodeRef| node_among(&records, at, fresh);
            let mut next = Vec::new();
            for (before, after) in &level {
                match (node(*before)?, node(*after)?) {
                    (Some(Node::Branch(a)), Some(Node::Branch(b))) => {
                        next.extend((0..FAN_OUT).map(|turn| (a[turn], b[turn])));
                    }
                    (a, b) => {
                        // A leaf against a branch: what is below the branch goes on alone.
                        for (node, entries, is_old) in [(a, &mut old, true), (b, &mut new, false)] {
                            match node {
                                Some(Node::Leaf(leaf)) => entries.extend(leaf.iter().copied()),
                                Some(Node::Branch(children)) => next.extend(children.iter().map(|child| {
                                    if is_old { (*child, NodeRef::EMPTY) } else { (NodeRef::EMPTY, *child) }
                                })),
                                None => {}
                            }
                        }
                    }
                }
            }
            level = next;
        }
        let mut differing = Vec::new();
        for (index, was) in &old {
            match new.get(index) {
                Some(is) if is == was => {}
                is => differing.push((*index, Some(*was), is.copied())),
            }
        }
        let added = new.iter().filter(|(index, _)| !old.contains_key(*index));
        differing.extend(added.map(|(index, is)| (*index, None, Some(*is))));
        differing.sort_unstable_by_key(|(index, ..)| *index);
        Ok(differing)
    }

    async fn record(&self, room: RoomSn, record: RecordSn) -> Result<Arc<NodeRecord>, StoreError> {
        if let Some(held) = self.held(room, record)? {
            return Ok(held);
        }
        let row = self.store.get(&STATE_NODES, &(room, record)).await?;
        self.keep(room, record, row)
    }

    /// The records of some nodes, the missing ones read in one batch; sorted and without repeats.
    async fn records(
        &self,
        room: RoomSn,
        nodes: &[NodeRef],
        fresh: &RecordWriter,
    ) -> Result<Vec<(RecordSn, Arc<NodeRecord>)>, StoreError> {
        let stored = nodes.iter().filter(|node| !node.is_empty() && fresh.node(**node).is_none());
        let mut wanted: Vec<RecordSn> = stored.map(|node| node.record).collect();
        wanted.sort_unstable();
        wanted.dedup();
        let mut records = Vec::with_capacity(wanted.len());
        let mut missing = Vec::new();
        for record in wanted {
            match self.held(room, record)? {
                Some(nodes) => records.push((record, nodes)),
                None => missing.push((room, record)),
            }
        }
        let rows = if missing.is_empty() {
            Vec::new()
        } else {
            self.store.multi_get(&STATE_NODES, &missing).await?
        };
        for ((_, record), row) in missing.into_iter().zip(rows) {
            records.push((record, self.keep(room, record, row)?));
        }
        records.sort_unstable_by_key(|(record, _)| *record);
        Ok(records)
    }

    /// A record that is cached, or on its way to the store. The latter is not cached: its commit may be refused, and
    /// its number given to another.
    fn held(&self, room: RoomSn, record: RecordSn) -> Result<Option<Arc<NodeRecord>>, StoreError> {
        if let Some(held) = self.cache.get(&(room, record)) {
            return Ok(Some(held));
        }
        match self.overlay.peek(&STATE_NODES, &(room, record)) {
            Some(Some(Blob(bytes))) => decode(record, &bytes).map(|nodes| Some(Arc::new(nodes))),
            _ => Ok(None),
        }
    }

    fn keep(&self, room: RoomSn, record: RecordSn, row: Option<Blob>) -> Result<Arc<NodeRecord>, StoreError> {
        let Some(Blob(bytes)) = row else {
            return Err(damaged(record, "it is missing"));
        };
        let nodes = Arc::new(decode(record, &bytes)?);
        self.cache.insert((room, record), nodes.clone());
        Ok(nodes)
    }
}

fn decode(record: RecordSn, bytes: &[u8]) -> Result<NodeRecord, StoreError> {
    NodeRecord::from_bytes(bytes).map_err(|malformed| damaged(record, &malformed.to_string()))
}

fn root_of(snapshot: SnapshotId, key: StateKeySn) -> NodeRef {
    if key.is_member() { snapshot.members } else { snapshot.rest }
}

fn record_of(records: &[(RecordSn, Arc<NodeRecord>)], at: NodeRef) -> Result<&NodeRecord, StoreError> {
    match records.binary_search_by_key(&at.record, |(record, _)| *record) {
        Ok(place) => Ok(&records[place].1),
        Err(_) => Err(damaged(at.record, "it was not read")),
    }
}

fn node_among<'a>(
    records: &'a [(RecordSn, Arc<NodeRecord>)],
    at: NodeRef,
    fresh: &'a RecordWriter,
) -> Result<Option<&'a Node>, StoreError> {
    if at.is_empty() {
        return Ok(None);
    }
    match fresh.node(at) {
        Some(node) => Ok(Some(node)),
        None => node_of(record_of(records, at)?, at).map(Some),
    }
}

fn node_of(record: &NodeRecord, at: NodeRef) -> Result<&Node, StoreError> {
    record.nodes.get(usize::from(at.index)).ok_or_else(|| damaged(at.record, "a node is missing"))
}

fn damaged(record: RecordSn, reason: &str) -> StoreError {
    StoreError::Corrupt { table: STATE_NODES.name(), key: record.to_string(), reason: reason.to_owned() }
}

/// Makes new snapshots out of held ones. What it makes is readable through it at once, by others when committed.
pub struct SnapshotWriter {
    snapshots: Snapshots,
    room: RoomSn,
    records: RecordWriter,
    /// The room's next record number.
    pub next_record: u32,
}

impl SnapshotWriter {
    pub fn new(snapshots: Snapshots, room: RoomSn, next_record: u32) -> Self {
        SnapshotWriter { snapshots, room, records: RecordWriter::default(), next_record }
    }

    pub async fn lookup(&self, snapshot: SnapshotId, key: StateKeySn) -> Result<Option<EventSn>, StoreError> {
        self.snapshots.find(self.room, root_of(snapshot, key), key.index(), &self.records).await
    }

    /// As [`Snapshots::diff`], also for what was made here.
    pub async fn diff(&self, before: SnapshotId, after: SnapshotId) -> Result<Vec<StateChange>, StoreError> {
        self.snapshots.diff_with(self.room, before, after, &self.records).await
    }

    /// As [`Snapshots::all`], also for what was made here.
    pub async fn all(&self, snapshot: SnapshotId) -> Result<Vec<(StateKeySn, EventSn)>, StoreError> {
        let rest = self.snapshots.entries(self.room, snapshot.rest, &self.records).await?;
        let members = self.snapshots.entries(self.room, snapshot.members, &self.records).await?;
        let rest = rest.into_iter().map(|(index, event)| (StateKeySn::other(index), event));
        Ok(rest.chain(members.into_iter().map(|(index, event)| (StateKeySn::member(index), event))).collect())
    }

    /// The state that differs from `base` by these entries; none as a value removes the key.
    pub async fn apply(
        &mut self,
        base: SnapshotId,
        changes: &[(StateKeySn, Option<EventSn>)],
    ) -> Result<SnapshotId, StoreError> {
        let mut result = base;
        for is_member in [false, true] {
            let of_tree: BTreeMap<u32, Option<EventSn>> = changes
                .iter()
                .filter(|(key, _)| key.is_member() == is_member)
                .map(|(key, event)| (key.index(), *event))
                .collect();
            let root = if is_member { &mut result.members } else { &mut result.rest };
            if !of_tree.is_empty() {
                *root = self.change(*root, of_tree.into_iter().collect(), 0).await?;
            }
        }
        Ok(result)
    }

    /// How many records are to be written.
    pub fn records_made(&self) -> usize {
        self.records.count()
    }

    /// All records made so far, to be written; the writer goes on with a new one.
    pub fn take_records(&mut self) -> Vec<(RecordSn, NodeRecord)> {
        self.records.close();
        std::mem::take(&mut self.records.done)
    }

    async fn node(&self, at: NodeRef) -> Result<Node, StoreError> {
        if at.is_empty() {
            return Ok(Node::Leaf(Vec::new()));
        }
        if let Some(node) = self.records.node(at) {
            return Ok(node.clone());
        }
        let record = self.snapshots.record(self.room, at.record).await?;
        node_of(&record, at).cloned()
    }

    async fn change(
        &mut self,
        at: NodeRef,
        changes: Vec<(u32, Option<EventSn>)>,
        depth: u32,
    ) -> Result<NodeRef, StoreError> {
        match self.node(at).await? {
            Node::Leaf(entries) => {
                let mut entries: BTreeMap<u32, EventSn> = entries.into_iter().collect();
                let mut changed = false;
                for (index, event) in changes {
                    changed |= match event {
                        Some(event) => entries.insert(index, event) != Some(event),
                        None => entries.remove(&index).is_some(),
                    };
                }
                if !changed { Ok(at) } else { Ok(self.build(entries.into_iter().collect(), depth)) }
            }
            Node::Branch(mut children) => {
                let mut changed = false;
                for turn in 0..FAN_OUT {
                    let below: Vec<_> = changes
                        .iter()
                        .copied()
                        .filter(|(index, _)| Node::turn(*index, depth) == turn)
                        .collect();
                    if below.is_empty() {
                        continue;
                    }
                    let child = Box::pin(self.change(children[turn], below, depth + 1)).await?;
                    changed |= child != children[turn];
                    children[turn] = child;
                }
                if !changed {
                    Ok(at)
                } else if children.iter().all(|child| child.is_empty()) {
                    Ok(NodeRef::EMPTY)
                } else {
                    Ok(self.records.add(Node::Branch(children), &mut self.next_record))
                }
            }
        }
    }

    /// A tree of these entries, which are in order.
    fn build(&mut self, entries: Vec<(u32, EventSn)>, depth: u32) -> NodeRef {
        if entries.is_empty() {
            return NodeRef::EMPTY;
        }
        if entries.len() <= LEAF_MAX {
            return self.records.add(Node::Leaf(entries), &mut self.next_record);
        }
        let mut below: [Vec<(u32, EventSn)>; FAN_OUT] = Default::default();
        for (index, event) in entries {
            below[Node::turn(index, depth)].push((index, event));
        }
        let mut children = Box::new([NodeRef::EMPTY; FAN_OUT]);
        for (child, entries) in children.iter_mut().zip(below) {
            *child = self.build(entries, depth + 1);
        }
        self.records.add(Node::Branch(children), &mut self.next_record)
    }
}

#[cfg(test)]
mod tests;
