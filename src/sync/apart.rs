//! Rooms to which the user is not joined: invites, knocks, and those that were left.

use std::{collections::BTreeSet, sync::Arc};

use hearth_rooms::{
    Membership, RoomSn, TimelineOrder,
    read::{Bundles, ClientEvent, RoomEvent, Shown, Stretch, TimelineToken, push_str},
    tables::MembershipRow,
};
use hearth_store::{StoreError, StreamPosition};
use ruma::{RoomId, UserId};

use super::{
    ClientSync, Round,
    joined::{Entry, Timeline},
    room_state::StateBounds,
    tracker::Place,
    write::{List, Written},
};

/// The state that those see who are invited or knock.
const STRIPPED: [&str; 8] = [
    "m.room.create",
    "m.room.join_rules",
    "m.room.name",
    "m.room.canonical_alias",
    "m.room.avatar",
    "m.room.topic",
    "m.room.encryption",
    "m.room.history_visibility",
];

impl ClientSync {
    /// Writes an invite or a knock; whether there was any to write.
    pub(super) async fn outside(
        &self,
        round: &Round<'_>,
        room: RoomSn,
        place: Place,
        out: &mut Vec<u8>,
    ) -> Result<bool, StoreError> {
        if round.since.is_some_and(|since| place.since <= since.position && !round.request.full_state) {
            return Ok(false);
        }
        let user = &round.request.user;
        let Some(row) = self.reader.membership_of(user, room).await? else { return Ok(false) };
        // What became of it comes with the next answer, and is all that there is to know.
        if row.value.membership != place.membership {
            return Ok(false);
        }
        let is_invite = place.membership == Membership::Invite;
        if is_invite && (round.ignored.contains(&row.value.sender) || self.users.blocks_invites(user).await?)
        {
            return Ok(false);
        }
        out.extend_from_slice(if is_invite { b"{\"invite_state\":" } else { b"{\"knock_state\":" });
        out.extend_from_slice(b"{\"events\":[");
        let mut events = List::new(out);
        match row.value.event {
            Some(_) => {
                for event in self.stripped_state(round, room, place, &row.value.sender).await? {
                    event.client.write_stripped(events.next());
                }
            }
            None => {
                if let Some(row) = self.reader.out_of_band(user, room).await? {
                    for event in &row.stripped_state {
                        events.next().extend_from_slice(event.as_bytes());
                    }
                    if let Ok(event) = self.reader.event_out_of_band(&row) {
                        event.write_stripped(events.next());
                    }
                }
            }
        }
        out.extend_from_slice(b"]}}");
        Ok(true)
    }

    /// What someone who is not in the room is shown of its state.
    async fn stripped_state(
        &self,
        round: &Round<'_>,
        room: RoomSn,
        place: Place,
        sender: &UserId,
    ) -> Result<Vec<Arc<RoomEvent>>, StoreError> {
        let at = place.since.min(round.next.position);
        let Some(snapshot) = self.reader.snapshot_at(room, at).await? else { return Ok(Vec::new()) };
        let mut events = Vec::new();
        for kind in STRIPPED {
            events.extend(self.reader.state_event(room, snapshot, kind, "").await?);
        }
        let me = round.request.user.as_str();
        let who = [sender.as_str(), me];
        let who = if sender.as_str() == me { &who[1..] } else { &who[..] };
        for user in who {
            events.extend(self.reader.state_event(room, snapshot, "m.room.member", user).await?);
        }
        Ok(events)
    }

    /// Rooms that were left after a position and are forgotten already, or will be behind what the answer covers.
    //
    // NOTSPEC: the specification has forgotten rooms in no sync at all. Then the other devices of who forgets a room as
    // soon as it is left would show it for ever as one that the user is in.
    pub(super) async fn forgotten(
        &self,
        round: &Round<'_>,
        since: StreamPosition,
    ) -> Result<Vec<(RoomSn, Place)>, StoreError> {
        if !round.active.own_changed_after(since) {
            return Ok(Vec::new());
        }
        let user = &round.request.user;
        let changes = self.reader.membership_changes(user, since, StreamPosition::MAX).await?;
        let rooms: BTreeSet<RoomSn> = changes.iter().map(|(_, change)| change.room).collect();
        let gone = rooms.into_iter().filter(|room| round.active.place(*room).is_none());
        let there = gone.filter_map(|room| Some((room, round.stood(&changes, room)?)));
        let is_told = |place: &Place| {
            matches!(place.membership, Membership::Join | Membership::Leave | Membership::Ban)
        };
        Ok(there.filter(|(_, place)| is_told(place)).collect())
    }

    /// Writes a room that was left or from which the user was banned, up to then; whether there was anything.
    pub(super) async fn left(
        &self,
        round: &Round<'_>,
        room: RoomSn,
        room_id: &RoomId,
        place: Place,
        out: &mut Vec<u8>,
    ) -> Result<bool, StoreError> {
        let is_old = round.since.is_none_or(|since| place.since <= since.position);
        let everything = round.since.is_none() || round.request.full_state;
        if is_old && !(everything && round.request.filter.room.include_leave) {
            return Ok(false);
        }
        let user = &round.request.user;
        let mut viewer = self.reader.viewer(room, user, round.ignored.clone()).await?;
        let end = TimelineOrder::live(place.since);
        let since = round.since.filter(|_| !round.request.full_state);
        let after = since.map_or(TimelineOrder::START, |since| TimelineOrder::live(since.position));
        let mut timeline = Timeline { events: Vec::new(), limited: false, prev: TimelineToken::after(end) };
        let held = match since {
            Some(since) => self.reader.snapshot_at(room, since.position).await?,
            None => None,
        };
        if viewer.was_joined() {
            let filter = &round.request.filter.room.timeline;
            if filter.wants_room(room_id.as_str()) && !filter.passes_none() {
                let limit = filter.limit_or(hearth_rooms::read::DEFAULT_TIMELINE_LIMIT);
                let stretch = Stretch { after, up_to: end };
                self.walk_back(&mut viewer, stretch, limit, round, &mut timeline).await?;
                timeline.finish();
            }
        } else if let Some(event) = self.own_member_event(room, user, place).await? {
            // Who turns down an invite sees that, and nothing else of the room.
            let order = event.order.unwrap_or(end);
            timeline.events.push(Shown { order, event, membership: place.membership.as_str() });
        }
        if timeline.events.is_empty()
            && !viewer.was_joined()
            && let Some(event) = self.leave_out_of_band(room, user, place).await?
        {
            // What ended an invite of a room that is held elsewhere.
            let style = round.style();
            out.extend_from_slice(b"{\"timeline\":{\"events\":[");
            style.event(&event, style.copy(), out);
            out.push(b']');
            timeline.push_end(out);
            out.push(b',');
            push_str(out, round.request.state.key());
            out.extend_from_slice(b":{\"events\":[]}}");
            return Ok(true);
        }
        out.push(b'{');
        let mut list = List::new(out);
        let entry = Entry { is_new: since.is_none(), after };
        self.push_timeline(round, &viewer, entry, &timeline, list.key("timeline")).await?;
        let end = match viewer.was_joined() {
            true => self.reader.snapshot_at(room, place.since).await?,
            false => None,
        };
        let state: Vec<Arc<RoomEvent>> = match end {
            Some(end) => {
                let first = timeline.events.first();
                let start = first.and_then(|shown| shown.event.snapshot_before).unwrap_or(end);
                let bounds = StateBounds { held, start, end, joined: 0, invited: 0 };
                self.room_state(round, room, room_id, bounds, &timeline.events).await?.events
            }
            // Behind the timeline, the state that who was never there may see is their own leaving.
            None if round.request.state.is_after() && !viewer.was_joined() => {
                timeline.events.iter().map(|shown| shown.event.clone()).collect()
            }
            None => Vec::new(),
        };
        // Written also where it is empty: clients take a left room without its state for a broken one.
        let events = state.iter().map(|event| Written { event, membership: None });
        let key = round.request.state.key();
        round.style().events(&self.reader, room, events, &Bundles::new(), list.key(key)).await?;
        out.push(b'}');
        Ok(true)
    }

    /// The event by which the user left a room that nobody here is in.
    async fn leave_out_of_band(
        &self,
        room: RoomSn,
        user: &UserId,
        place: Place,
    ) -> Result<Option<ClientEvent>, StoreError> {
        if self.member_row(room, user, place).await?.is_none() {
            return Ok(None);
        }
        let row = self.reader.out_of_band(user, room).await?;
        Ok(row.and_then(|row| self.reader.event_out_of_band(&row).ok()))
    }

    async fn own_member_event(
        &self,
        room: RoomSn,
        user: &UserId,
        place: Place,
    ) -> Result<Option<Arc<RoomEvent>>, StoreError> {
        match self.member_row(room, user, place).await?.and_then(|row| row.event) {
            Some(event) => self.reader.event(room, event).await,
            None => Ok(None),
        }
    }

    /// The user's row, unless it speaks of something that came later.
    async fn member_row(
        &self,
        room: RoomSn,
        user: &UserId,
        place: Place,
    ) -> Result<Option<MembershipRow>, StoreError> {
        let row = self.reader.membership_of(user, room).await?;
        Ok(row.map(|row| row.value).filter(|row| row.membership == place.membership))
    }
}
