//! Relations between events: lists of them, and what is bundled with their target.
//! * Bundled are the edit in force, the summary of a thread, and references; not annotations, which clients count.
//! * A redacted event relates to nothing and has nothing bundled. What ignored users did is left out.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use hearth_store::{Order, StoreError};
use ruma::EventId;

use super::{
    client_event::{Copy, push_number, push_str},
    events::{Reader, RoomEvent},
    timeline::{Direction, Shown},
    token::TimelineToken,
    viewer::Viewer,
};
use crate::{
    ids::{EventSn, RoomSn, TimelineOrder},
    tables::{RELATIONS, RelType, RelationRow, THREAD_PARTICIPANTS, THREADS, ThreadRow},
};

/// How deep `recurse` goes.
const MAX_DEPTH: u64 = 3;
/// Relations read for the bundles of one answer, and of one event.
const MAX_BUNDLED: usize = 2_000;
const MAX_BUNDLED_EACH: usize = 200;
/// Relations read for one list that recurses.
const MAX_RECURSED: usize = 5_000;

type Relations = HashMap<EventSn, Vec<(TimelineOrder, RelationRow)>>;

/// Which relations are asked for.
#[derive(Clone, Debug)]
pub struct RelationsRequest {
    pub rel_type: Option<String>,
    pub kind: Option<String>,
    pub from: Option<TimelineToken>,
    pub to: Option<TimelineToken>,
    pub direction: Direction,
    pub limit: usize,
    pub recurse: bool,
}

/// A page of relations.
#[derive(Debug)]
pub struct RelationsPage {
    pub events: Vec<Shown>,
    /// Where the page began, if it was told where to.
    pub prev: Option<TimelineToken>,
    pub next: Option<TimelineToken>,
    /// How deep it went, when it was to recurse.
    pub depth: Option<u64>,
}

/// What is bundled with events: the value of `m.relations` of each that has one.
pub type Bundles = HashMap<EventSn, Vec<u8>>;

impl Reader {
    /// `/relations`: a page of the events that relate to another. None if the viewer may not see that one.
    pub async fn relations(
        &self,
        viewer: &mut Viewer,
        target: &EventId,
        request: &RelationsRequest,
    ) -> Result<Option<RelationsPage>, StoreError> {
        let Some(target) = self.visible_event(viewer, target).await? else { return Ok(None) };
        let (found, depth) = self.related(viewer.room, target.event.sn, request).await?;
        let mut page = RelationsPage { events: Vec::new(), prev: request.from, next: None, depth: None };
        page.depth = request.recurse.then_some(depth);
        let mut last = None;
        for (order, row) in found {
            if page.events.len() == request.limit {
                page.next = last;
                break;
            }
            last = Some(match request.direction {
                Direction::Backward => TimelineToken::before(order),
                Direction::Forward => TimelineToken::after(order),
            });
            let wanted = request.kind.as_deref().is_none_or(|kind| row.kind == *kind)
                && (request.recurse || request.wants(&row.rel_type));
            if wanted && let Some(shown) = self.visible(viewer, row.event).await? {
                // What was redacted since has lost its relation.
                if shown.event.client.relation.is_some() {
                    page.events.push(Shown { order, ..shown });
                }
            }
        }
        Ok(Some(page))
    }

    /// The relations of an event in the direction asked for, and how deep they go.
    async fn related(
        &self,
        room: RoomSn,
        target: EventSn,
        request: &RelationsRequest,
    ) -> Result<(Vec<(TimelineOrder, RelationRow)>, u64), StoreError> {
        let mut found = Vec::new();
        let mut level = vec![target];
        let mut seen = HashSet::from([target]);
        let mut depth = 0;
        while !level.is_empty() && depth < MAX_DEPTH {
            let mut next = Vec::new();
            for target in level {
                let rows = self.relation_rows(room, target, request).await?;
                // Below the first level everything counts that hangs on a wanted relation.
                let wanted = rows
                    .into_iter()
                    .filter(|(_, row)| depth > 0 || !request.recurse || request.wants(&row.rel_type));
                for (order, row) in wanted {
                    if found.len() < MAX_RECURSED && seen.insert(row.event) {
                        next.push(row.event);
                        found.push((order, row));
                    }
                }
            }
            if !next.is_empty() {
                depth += 1;
            }
            level = if request.recurse { next } else { Vec::new() };
        }
        found.sort_unstable_by_key(|(order, _)| *order);
        if request.direction == Direction::Backward {
            found.reverse();
        }
        Ok((found, depth))
    }

    async fn relation_rows(
        &self,
        room: RoomSn,
        target: EventSn,
        request: &RelationsRequest,
    ) -> Result<Vec<(TimelineOrder, RelationRow)>, StoreError> {
        let newest = TimelineOrder::live(self.now());
        let mut range = RELATIONS.prefix(&(room, target)).up_to(&(room, target, newest));
        // A level in between may lie outside of the page: only the list as a whole is cut when recursing.
        let (after, up_to) = match request.direction {
            Direction::Backward => (request.to, request.from),
            Direction::Forward => (request.from, request.to),
        };
        if let Some(after) = after {
            range = range.after(&(room, target, after.0));
        }
        if let Some(up_to) = up_to {
            range = range.up_to(&(room, target, up_to.0));
        }
        let order = match request.direction {
            Direction::Backward => Order::Backward,
            Direction::Forward => Order::Forward,
        };
        let rows = self.store().range(&RELATIONS, range, order, MAX_RECURSED).await?;
        Ok(rows.into_iter().map(|((_, _, order), row)| (order, row)).collect())
    }

    /// What is bundled with some events, for a viewer. `copy` says for whom the events therein are written.
    pub async fn bundles(
        &self,
        viewer: &Viewer,
        events: &[Arc<RoomEvent>],
        copy: Copy<'_>,
    ) -> Result<Bundles, StoreError> {
        let targets: Vec<&Arc<RoomEvent>> = events
            .iter()
            .filter(|event| !event.client.redacted && event.client.state_key.is_none())
            .collect();
        let (Some(first), Some(last)) =
            (targets.iter().map(|event| event.sn).min(), targets.iter().map(|event| event.sn).max())
        else {
            return Ok(Bundles::new());
        };
        let relations = self.relations_between(viewer.room, first, last).await?;
        if relations.is_empty() {
            return Ok(Bundles::new());
        }
        let mut bundles = Bundles::new();
        for target in targets {
            let Some(rows) = relations.get(&target.sn) else { continue };
            let bundle = self.bundle(viewer, target, rows, copy).await?;
            if !bundle.is_empty() {
                bundles.insert(target.sn, bundle);
            }
        }
        Ok(bundles)
    }

    /// The relations whose targets lie between two numbers: one range for a whole page.
    async fn relations_between(
        &self,
        room: RoomSn,
        first: EventSn,
        last: EventSn,
    ) -> Result<Relations, StoreError> {
        let range = RELATIONS.prefix(&(room,)).from(&(room, first)).up_to(&(room, last));
        let rows = self.store().range(&RELATIONS, range, Order::Forward, MAX_BUNDLED).await?;
        let cut = (rows.len() == MAX_BUNDLED).then(|| rows[rows.len() - 1].0.1);
        let newest = TimelineOrder::live(self.now());
        let mut relations = Relations::new();
        for ((_, target, order), row) in rows {
            if order <= newest {
                relations.entry(target).or_default().push((order, row));
            }
        }
        // Beyond the bound each event is read by itself, its latest relations only.
        let Some(cut) = cut else { return Ok(relations) };
        for target in cut.0..=last.0 {
            let target = EventSn(target);
            let range = RELATIONS.prefix(&(room, target)).up_to(&(room, target, newest));
            let rows = self.store().range(&RELATIONS, range, Order::Backward, MAX_BUNDLED_EACH).await?;
            if !rows.is_empty() {
                let rows = rows.into_iter().rev().map(|((_, _, order), row)| (order, row));
                relations.insert(target, rows.collect());
            }
        }
        Ok(relations)
    }

    async fn bundle(
        &self,
        viewer: &Viewer,
        target: &RoomEvent,
        rows: &[(TimelineOrder, RelationRow)],
        copy: Copy<'_>,
    ) -> Result<Vec<u8>, StoreError> {
        let rows: Vec<&RelationRow> = rows
            .iter()
            .map(|(_, row)| row)
            .filter(|row| !viewer.ignores_sender(row.sender.as_str()))
            .collect();
        let mut out = Vec::new();
        if let Some(edit) = self.edit(viewer.room, target, &rows).await? {
            out.extend_from_slice(b"\"m.replace\":");
            edit.client.write(&mut out, Copy { relations: None, membership: None, ..copy });
            out.push(b',');
        }
        if rows.iter().any(|row| row.rel_type == RelType::Thread) {
            self.push_thread(viewer, target, &rows, copy, &mut out).await?;
        }
        let references: Vec<EventSn> =
            rows.iter().filter(|row| row.rel_type == RelType::Reference).map(|row| row.event).collect();
        if !references.is_empty() {
            self.push_references(viewer.room, references, &mut out).await?;
        }
        if out.pop().is_some() {
            out.insert(0, b'{');
            out.push(b'}');
        }
        Ok(out)
    }

    /// The edit in force: of the same sender and type, the latest by its timestamp, then by its event ID.
    async fn edit(
        &self,
        room: RoomSn,
        target: &RoomEvent,
        rows: &[&RelationRow],
    ) -> Result<Option<Arc<RoomEvent>>, StoreError> {
        let is_edit = |event: &RoomEvent| {
            event.client.relation.as_ref().is_some_and(|relation| &*relation.rel_type == "m.replace")
        };
        if is_edit(target) {
            return Ok(None);
        }
        let edits: Vec<EventSn> = rows
            .iter()
            .filter(|row| row.rel_type == RelType::Replace)
            .filter(|row| *row.sender == *target.client.sender && row.kind == *target.client.kind)
            .map(|row| row.event)
            .collect();
        if edits.is_empty() {
            return Ok(None);
        }
        let events = self.existing(room, edits).await?;
        let valid = events.into_iter().filter(|event| is_edit(event) && event.client.state_key.is_none());
        Ok(valid.max_by(|a, b| {
            let key = |event: &RoomEvent| (event.client.origin_server_ts, event.client.event_id.clone());
            key(a).cmp(&key(b))
        }))
    }

    async fn push_thread(
        &self,
        viewer: &Viewer,
        root: &RoomEvent,
        rows: &[&RelationRow],
        copy: Copy<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), StoreError> {
        let Some(thread) = self.thread(viewer, root.sn, rows).await? else { return Ok(()) };
        let Some(latest) = self.event(viewer.room, thread.latest).await? else { return Ok(()) };
        let edits = self.relations_between(viewer.room, latest.sn, latest.sn).await?;
        let edits: Vec<&RelationRow> = edits.values().flatten().map(|(_, row)| row).collect();
        let edit = self.edit(viewer.room, &latest, &edits).await?.map(|edit| {
            let mut bundle = b"{\"m.replace\":".to_vec();
            edit.client.write(&mut bundle, Copy { relations: None, membership: None, ..copy });
            bundle.push(b'}');
            bundle
        });
        out.extend_from_slice(b"\"m.thread\":{\"count\":");
        push_number(out, i64::from(thread.count));
        out.extend_from_slice(b",\"current_user_participated\":");
        let participated = self.took_part(viewer, root).await?;
        out.extend_from_slice(if participated { b"true" } else { b"false" });
        out.extend_from_slice(b",\"latest_event\":");
        latest.client.write(out, Copy { relations: edit.as_deref(), membership: None, ..copy });
        out.extend_from_slice(b"},");
        Ok(())
    }

    /// A thread's summary. Without the ignored users' replies it is counted anew.
    async fn thread(
        &self,
        viewer: &Viewer,
        root: EventSn,
        rows: &[&RelationRow],
    ) -> Result<Option<ThreadRow>, StoreError> {
        if !viewer.ignores_anyone() {
            let row = self.store().get(&THREADS, &(viewer.room, root)).await?;
            return Ok(row.map(|row| row.value).filter(|row| row.count > 0));
        }
        let replies =
            rows.iter().filter(|row| row.rel_type == RelType::Thread).map(|row| row.event).collect();
        let mut replies = self.existing(viewer.room, replies).await?;
        replies.retain(|event| !event.client.redacted);
        let count = u32::try_from(replies.len()).unwrap_or(u32::MAX);
        Ok(replies.last().map(|latest| ThreadRow { latest: latest.sn, count }))
    }

    /// Whether the viewer wrote a thread's root or one of its replies.
    pub(super) async fn took_part(&self, viewer: &Viewer, root: &RoomEvent) -> Result<bool, StoreError> {
        if *root.client.sender == *viewer.user.as_str() {
            return Ok(true);
        }
        let key = (viewer.room, root.sn, viewer.user.to_string());
        Ok(self.store().get(&THREAD_PARTICIPANTS, &key).await?.is_some())
    }

    async fn push_references(
        &self,
        room: RoomSn,
        references: Vec<EventSn>,
        out: &mut Vec<u8>,
    ) -> Result<(), StoreError> {
        let mut events = self.existing(room, references).await?;
        events.retain(|event| !event.client.redacted);
        if events.is_empty() {
            return Ok(());
        }
        out.extend_from_slice(b"\"m.reference\":{\"chunk\":[");
        for (place, event) in events.iter().enumerate() {
            if place > 0 {
                out.push(b',');
            }
            out.extend_from_slice(b"{\"event_id\":");
            push_str(out, &event.client.event_id);
            out.push(b'}');
        }
        out.extend_from_slice(b"]},");
        Ok(())
    }
}

impl RelationsRequest {
    fn wants(&self, rel_type: &RelType) -> bool {
        self.rel_type.as_deref().is_none_or(|wanted| rel_type.as_str() == wanted)
    }
}
