//! A room to which the user is joined: its timeline, state, counts, receipts, typing and account data.

use std::sync::Arc;

use hearth_rooms::{
    Membership, RoomSn, TimelineOrder,
    read::{Bundles, Direction, Shown, Stretch, Tail, TimelineToken, Viewer, WalkEnd, push_number, push_str},
};
use hearth_store::StoreError;
use hearth_users::receipt_content;
use ruma::RoomId;

use super::{
    ClientSync, Round,
    room_state::StateBounds,
    tracker::Place,
    unread::{Counted, Counts, Where},
    write::{List, Written, push_content_event, push_events},
};

/// How the client stands to a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// The client holds nothing of the room, or what it holds is cut off from what it is sent.
    pub is_new: bool,
    /// The client has everything up to here.
    pub after: TimelineOrder,
}

/// The end of a room's timeline.
pub(super) struct Timeline {
    /// The oldest first.
    pub events: Vec<Shown>,
    pub limited: bool,
    pub prev: TimelineToken,
}

impl ClientSync {
    /// Writes a joined room's section; whether there was anything to write.
    pub(super) async fn joined(
        &self,
        round: &Round<'_>,
        room: RoomSn,
        room_id: &RoomId,
        place: Place,
        out: &mut Vec<u8>,
    ) -> Result<bool, StoreError> {
        let upto = round.next.position;
        let entry = self.entry(round, room, place).await?;
        let Some(tail) = self.reader.tail(room, place.changed, upto).await? else { return Ok(false) };
        let user = &round.request.user;
        let mut viewer = self.reader.joined_viewer(room, user, round.ignored.clone()).await?;
        let timeline = self.live_timeline(round, &mut viewer, room_id, &tail, entry).await?;
        let bounds = self.bounds(round, room, &tail, entry, &timeline).await?;
        let state = self.room_state(round, room, room_id, bounds, &timeline.events).await?;
        if round.since.is_some() {
            let mut arrivals = round.arrivals.lock();
            if entry.is_new {
                arrivals.enter(room);
            } else {
                let shown = timeline.events.iter().map(|shown| &*shown.event);
                arrivals.note(shown.chain(state.events.iter().map(|event| &**event)));
            }
        }
        let counted = self.unread.count(Where { user, room, room_id, tail: &tail, upto }).await?;
        let read = round.since.is_some_and(|since| counted.read > since.position);
        let start = out.len();
        out.push(b'{');
        let mut list = List::new(out);
        let ephemeral = self.ephemeral(round, room_id, entry, list.key("ephemeral")).await?;
        let account_data = self.room_account_data(round, room_id, entry, list.key("account_data")).await?;
        let is_news = entry.is_new
            || round.request.full_state
            || !timeline.events.is_empty()
            || timeline.limited
            || !state.events.is_empty()
            || ephemeral
            || account_data
            || read;
        if !is_news {
            out.truncate(start);
            return Ok(false);
        }
        self.push_timeline(round, &viewer, entry, &timeline, list.key("timeline")).await?;
        let style = round.style();
        let events = state.events.iter().map(|event| Written { event, membership: None });
        let key = round.request.state.key();
        style.events(&self.reader, room, events, &Bundles::new(), list.key(key)).await?;
        list.key("summary").extend_from_slice(&state.summary);
        push_counts(round, &counted, &mut list);
        if round.request.filter.room.timeline.unread_thread_notifications {
            self.push_threads(room, &counted, list.key("unread_thread_notifications")).await?;
        }
        out.push(b'}');
        Ok(true)
    }

    /// How the client stands to the room.
    async fn entry(&self, round: &Round<'_>, room: RoomSn, place: Place) -> Result<Entry, StoreError> {
        let Some(since) = round.since else {
            return Ok(Entry { is_new: true, after: TimelineOrder::START });
        };
        let after = TimelineOrder::live(since.position);
        if place.since <= since.position {
            return Ok(Entry { is_new: false, after });
        }
        let user = &round.request.user;
        let changes = self.reader.membership_changes(user, since.position, round.next.position).await?;
        let changes: Vec<_> =
            changes.into_iter().map(|(_, change)| change).filter(|change| change.room == room).collect();
        let joined = Some(Membership::Join);
        let was_joined = changes.first().is_some_and(|first| first.before == joined);
        let stayed = was_joined
            && changes.iter().all(|change| change.before == joined && change.membership == Membership::Join);
        // Who left and came back has what was before: only what lies between is cut off.
        let after = if was_joined { after } else { TimelineOrder::START };
        Ok(Entry { is_new: !stayed, after })
    }

    async fn live_timeline(
        &self,
        round: &Round<'_>,
        viewer: &mut Viewer,
        room_id: &RoomId,
        tail: &Tail,
        entry: Entry,
    ) -> Result<Timeline, StoreError> {
        let filter = &round.request.filter.room.timeline;
        let newest = TimelineOrder::live(round.next.position);
        let mut timeline =
            Timeline { events: Vec::new(), limited: false, prev: TimelineToken::at(round.next.position) };
        if !filter.wants_room(room_id.as_str()) || filter.passes_none() {
            return Ok(timeline);
        }
        let limit = filter.limit_or(hearth_rooms::read::DEFAULT_TIMELINE_LIMIT);
        for placed in tail.events.iter().rev().filter(|placed| placed.order <= newest) {
            if placed.order <= entry.after {
                break;
            }
            if timeline.events.len() == limit {
                timeline.limited = true;
                break;
            }
            timeline.prev = TimelineToken::before(placed.order);
            timeline.events.extend(self.reader.show(viewer, placed.clone(), filter).await?);
        }
        let before_tail = tail.complete_after.min(newest);
        if !timeline.limited && before_tail > entry.after {
            if tail.gap {
                timeline.limited = true;
            } else {
                let stretch = Stretch { after: entry.after, up_to: before_tail };
                let rest = limit - timeline.events.len();
                self.walk_back(viewer, stretch, rest, round, &mut timeline).await?;
            }
        }
        timeline.finish();
        // What the client holds of a room that it left does not go on here.
        timeline.limited |= entry.is_new && round.since.is_some();
        Ok(timeline)
    }

    /// Adds up to `limit` older events, the newest first.
    pub(super) async fn walk_back(
        &self,
        viewer: &mut Viewer,
        stretch: Stretch,
        limit: usize,
        round: &Round<'_>,
        timeline: &mut Timeline,
    ) -> Result<(), StoreError> {
        let filter = &round.request.filter.room.timeline;
        let walked = self.reader.walk(viewer, stretch, Direction::Backward, limit, filter).await?;
        timeline.limited = walked.end != WalkEnd::Exhausted;
        timeline.prev = walked.last.map_or(timeline.prev, TimelineToken::before);
        timeline.events.extend(walked.events);
        Ok(())
    }

    async fn bounds(
        &self,
        round: &Round<'_>,
        room: RoomSn,
        tail: &Arc<Tail>,
        entry: Entry,
        timeline: &Timeline,
    ) -> Result<StateBounds, StoreError> {
        let upto = round.next.position;
        let end = match tail.state_changed <= upto {
            true => tail.snapshot,
            false => self.reader.snapshot_at(room, upto).await?.unwrap_or(tail.snapshot),
        };
        let first = timeline.events.first();
        let start = first.and_then(|shown| shown.event.snapshot_before).unwrap_or(end);
        let held = match round.since {
            Some(since) if !entry.is_new && !round.request.full_state => {
                Some(match tail.state_changed <= since.position {
                    // Nothing changed: what the client holds is what there is.
                    true => end,
                    false => self.reader.snapshot_at(room, since.position).await?.unwrap_or(end),
                })
            }
            _ => None,
        };
        Ok(StateBounds { held, start, end, joined: tail.joined, invited: tail.invited })
    }

    pub(super) async fn push_timeline(
        &self,
        round: &Round<'_>,
        viewer: &Viewer,
        entry: Entry,
        timeline: &Timeline,
        out: &mut Vec<u8>,
    ) -> Result<(), StoreError> {
        let style = round.style();
        // A client that has everything before sees relations come; only behind a gap it must be told of them.
        let mut bundles = Bundles::new();
        if timeline.limited || entry.is_new {
            let events: Vec<_> = timeline.events.iter().map(|shown| shown.event.clone()).collect();
            bundles = self.reader.bundles(viewer, &events, style.copy()).await?;
        }
        let events = timeline
            .events
            .iter()
            .map(|shown| Written { event: &shown.event, membership: Some(shown.membership) });
        style.events(&self.reader, viewer.room, events, &bundles, out).await?;
        out.pop();
        timeline.push_end(out);
        Ok(())
    }

    /// Writes receipts and who types; whether there was any.
    async fn ephemeral(
        &self,
        round: &Round<'_>,
        room_id: &RoomId,
        entry: Entry,
        out: &mut Vec<u8>,
    ) -> Result<bool, StoreError> {
        let filter = &round.request.filter.room.ephemeral;
        let wants = |kind| filter.wants_room(room_id.as_str()) && filter.wants_type(kind);
        let mut receipts = Vec::new();
        if wants("m.receipt") {
            let since = round.since.filter(|_| !entry.is_new).map(|since| since.position);
            let user = &round.request.user;
            receipts = self.users.receipts_since(room_id, user, since, round.next.position).await?;
            receipts.retain(|receipt| !round.ignored.contains(&receipt.user_id));
        }
        Ok(push_events(out, |list| {
            if !receipts.is_empty() {
                push_content_event(list.next(), "m.receipt", &receipt_content(&receipts).to_string());
            }
            if wants("m.typing") {
                self.push_typing(round, room_id, entry, list);
            }
        }))
    }

    fn push_typing(&self, round: &Round<'_>, room_id: &RoomId, entry: Entry, list: &mut List<'_>) {
        let typing = self.users.typing();
        let seen = round.since.filter(|since| !entry.is_new && since.boot == self.boot);
        if let Some(seen) = seen
            && !typing.changed_since(room_id, seen.typing)
        {
            return;
        }
        let users = typing.users(room_id);
        if users.is_empty() && seen.is_none() {
            return;
        }
        let users: Vec<&str> =
            users.iter().filter(|user| !round.ignored.contains(*user)).map(|user| user.as_str()).collect();
        let content = serde_json::json!({ "user_ids": users });
        push_content_event(list.next(), "m.typing", &content.to_string());
    }

    async fn room_account_data(
        &self,
        round: &Round<'_>,
        room_id: &RoomId,
        entry: Entry,
        out: &mut Vec<u8>,
    ) -> Result<bool, StoreError> {
        let filter = &round.request.filter.room.account_data;
        let all;
        let data = match filter.wants_room(room_id.as_str()) && !filter.passes_none() {
            false => None,
            true if entry.is_new && round.since.is_some() => {
                all = self.users.room_account_data(&round.request.user, room_id).await?;
                Some(&all)
            }
            true => round.own.rooms.get(room_id),
        };
        Ok(push_events(out, |list| {
            for (kind, content) in data.into_iter().flatten() {
                if filter.wants_type(kind) {
                    push_content_event(list.next(), kind, content.get());
                }
            }
        }))
    }

    async fn push_threads(
        &self,
        room: RoomSn,
        counted: &Counted,
        out: &mut Vec<u8>,
    ) -> Result<(), StoreError> {
        let threads = counted.threads.iter().filter(|(_, counts)| counts.notifications > 0);
        let (roots, counts): (Vec<_>, Vec<_>) = threads.map(|(root, counts)| (*root, *counts)).unzip();
        let events = self.reader.events(room, &roots).await?;
        out.push(b'{');
        let mut list = List::new(out);
        for (event, counts) in events.into_iter().zip(counts) {
            if let Some(event) = event {
                push_count(list.key(&event.client.event_id), counts);
            }
        }
        out.push(b'}');
        Ok(())
    }
}

impl Timeline {
    /// Writes what stands behind the events, up to the end of the section.
    pub(super) fn push_end(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(if self.limited { b",\"limited\":true" } else { b",\"limited\":false" });
        out.extend_from_slice(b",\"prev_batch\":");
        push_str(out, &self.prev.to_string());
        out.push(b'}');
    }

    /// Turns what was found backwards into the order of the timeline.
    pub(super) fn finish(&mut self) {
        self.events.reverse();
        // Further back there may be what was looked at and not wanted: the next page goes on from what was shown.
        if let Some(first) = self.events.first()
            && self.limited
        {
            self.prev = TimelineToken::before(first.order);
        }
    }
}

fn push_counts(round: &Round<'_>, counted: &Counted, list: &mut List<'_>) {
    let by_thread = round.request.filter.room.timeline.unread_thread_notifications;
    let counts = if by_thread { counted.main } else { counted.total() };
    push_count(list.key("unread_notifications"), counts);
}

fn push_count(out: &mut Vec<u8>, counts: Counts) {
    out.extend_from_slice(b"{\"highlight_count\":");
    push_number(out, i64::from(counts.highlights));
    out.extend_from_slice(b",\"notification_count\":");
    push_number(out, i64::from(counts.notifications));
    out.push(b'}');
}
