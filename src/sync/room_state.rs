//! The state that goes with a timeline: all of it, or what changed, and of lazily loaded members those who are seen.
//! * What changed is the difference of two snapshots, so that state which never showed in a timeline (after a fork, a
//!   resolution) still reaches the client.
//! * Members whose membership changed are sent also when members are loaded lazily: the client may hold the old one.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use hearth_rooms::{
    EventSn, RoomSn, SnapshotId, StateKeySn,
    read::{RoomEvent, Shown, push_number, push_str},
};
use hearth_store::StoreError;
use ruma::RoomId;

use super::{ClientSync, Round, write::List};

/// Between which states of a room an answer lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct StateBounds {
    /// What the client holds; none if it is to be sent everything.
    pub held: Option<SnapshotId>,
    /// Before the first event of the timeline.
    pub start: SnapshotId,
    /// Behind the last one.
    pub end: SnapshotId,
    pub joined: u32,
    pub invited: u32,
}

/// State to be sent.
#[derive(Default)]
pub(super) struct RoomState {
    pub events: Vec<Arc<RoomEvent>>,
    /// The value of `summary`.
    pub summary: Vec<u8>,
}

type Entries = BTreeMap<StateKeySn, EventSn>;

impl ClientSync {
    /// The state that goes with a timeline, and the room's summary.
    pub(super) async fn room_state(
        &self,
        round: &Round<'_>,
        room: RoomSn,
        room_id: &RoomId,
        bounds: StateBounds,
        timeline: &[Shown],
    ) -> Result<RoomState, StoreError> {
        let filter = &round.request.filter.room.state;
        let lazy = filter.lazy_load_members || round.request.filter.room.timeline.lazy_load_members;
        let wanted = filter.wants_room(room_id.as_str()) && !filter.passes_none();
        let is_after = round.request.state.is_after();
        let target = if is_after { bounds.end } else { bounds.start };

        let mut entries = Entries::new();
        let mut summarised = bounds.held.is_none();
        match bounds.held {
            Some(held) if held != bounds.end || held != bounds.start => {
                let to_end = self.reader.state_between(room, held, bounds.end).await?;
                summarised = self.concerns_summary(room, &to_end).await?;
                if !is_after {
                    entries.extend(self.reader.state_between(room, held, bounds.start).await?);
                }
                add_unseen(&mut entries, to_end, timeline, is_after);
            }
            Some(_) => {}
            None if wanted => {
                entries.extend(self.reader.rest_of(room, target).await?);
                if !lazy {
                    entries.extend(self.reader.members_of(room, target).await?);
                }
                let later = self.reader.state_between(room, target, bounds.end).await?;
                let later = later.into_iter().filter(|(key, _)| !lazy || !key.is_member()).collect();
                add_unseen(&mut entries, later, timeline, is_after);
            }
            None => {}
        }
        let mut heroes = Vec::new();
        let mut summary = b"{}".to_vec();
        if summarised {
            heroes = self.reader.heroes(room, bounds.end, &round.request.user).await?;
            summary = write_summary(&heroes, bounds);
        }
        if !wanted {
            return Ok(RoomState { events: Vec::new(), summary });
        }
        if lazy {
            let mut users: BTreeSet<&str> =
                timeline.iter().map(|shown| &*shown.event.client.sender).collect();
            if bounds.held.is_none() {
                users.insert(round.request.user.as_str());
                users.extend(heroes.iter().map(String::as_str));
            }
            self.add_members(round, room, target, users, &mut entries).await?;
        }
        let events: Vec<EventSn> = entries.into_values().collect();
        let mut events: Vec<Arc<RoomEvent>> =
            self.reader.events(room, &events).await?.into_iter().flatten().collect();
        events.retain(|event| filter.wants(event.client.facts()));
        Ok(RoomState { events, summary })
    }

    /// Adds the member events of those who are seen, unless the device has them.
    async fn add_members(
        &self,
        round: &Round<'_>,
        room: RoomSn,
        target: SnapshotId,
        users: BTreeSet<&str>,
        entries: &mut Entries,
    ) -> Result<(), StoreError> {
        let redundant = round.request.filter.room.state.include_redundant_members;
        for (key, event) in entries.iter().filter(|(key, _)| key.is_member()) {
            round.sent.is_new(room, *key, *event);
        }
        for (key, event) in self.reader.members_named(room, target, users).await? {
            if !entries.contains_key(&key) && (round.sent.is_new(room, key, event) || redundant) {
                entries.insert(key, event);
            }
        }
        Ok(())
    }

    /// Whether changed state shows in a summary: members, or what names the room.
    async fn concerns_summary(
        &self,
        room: RoomSn,
        changed: &[(StateKeySn, EventSn)],
    ) -> Result<bool, StoreError> {
        if changed.iter().any(|(key, _)| key.is_member()) {
            return Ok(true);
        }
        for kind in ["m.room.name", "m.room.canonical_alias"] {
            if let Some(key) = self.reader.state_key(room, kind, "").await?
                && changed.iter().any(|(changed, _)| *changed == key)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Adds state that the timeline does not show.
fn add_unseen(
    entries: &mut Entries,
    changed: Vec<(StateKeySn, EventSn)>,
    timeline: &[Shown],
    is_after: bool,
) {
    let shown: HashSet<EventSn> = timeline.iter().map(|shown| shown.event.sn).collect();
    entries.extend(changed.into_iter().filter(|(_, event)| is_after || !shown.contains(event)));
}

fn write_summary(heroes: &[String], bounds: StateBounds) -> Vec<u8> {
    let mut out = vec![b'{'];
    let mut list = List::new(&mut out);
    if !heroes.is_empty() {
        let out = list.key("m.heroes");
        out.push(b'[');
        let mut users = List::new(out);
        for hero in heroes {
            push_str(users.next(), hero);
        }
        out.push(b']');
    }
    push_number(list.key("m.joined_member_count"), i64::from(bounds.joined));
    push_number(list.key("m.invited_member_count"), i64::from(bounds.invited));
    out.push(b'}');
    out
}
