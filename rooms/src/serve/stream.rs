//! The stream that the sender to peers follows: events that are ours to send, and where they go.
//! * Read up to what is durable, in the order of positions; what others sent is passed over.
//! * One room can be read by itself, for a server that missed some of it.
//! * An event goes to the servers that are in the room after it, and to that of a user whom it removes.
//! * Of a room that is ours alone no event is read, but those that change its state.

use std::collections::BTreeSet;
use std::sync::Arc;

use hearth_dag::LocalServers;
use hearth_store::{Order, Range, StoreError, StreamPosition};
use ruma::{OwnedServerName, ServerName, UserId};

use super::RoomServers;
use crate::events::{RoomInfo, StoredEvent};
use crate::ids::{RoomSn, TimelineOrder};
use crate::rooms::Rooms;
use crate::tables::{Membership, STREAM, StreamRow, StreamWhat, TIMELINE};

/// Rows of the stream that are read for one page.
const ROWS_MAX: usize = 1_000;

/// An event that is ours to send.
#[derive(Clone, Debug)]
pub struct Outgoing {
    pub position: StreamPosition,
    pub room: Arc<RoomInfo>,
    pub event: Arc<StoredEvent>,
    /// Those of the room, ours among them. One list is shared by all events between two changes of it.
    pub servers: RoomServers,
    /// Servers beside those of the room.
    pub also_to: Vec<OwnedServerName>,
    /// The server that submitted it.
    pub from: Option<OwnedServerName>,
    /// The room's state was not fully known: there may be more servers.
    pub partial: bool,
}

/// A stretch of the stream.
#[derive(Clone, Debug)]
pub struct OutgoingPage {
    pub events: Vec<Outgoing>,
    /// Everything up to here was looked at: where the next page begins.
    pub upto: StreamPosition,
    /// There is more already.
    pub more: bool,
}

impl Outgoing {
    /// The servers to send it to.
    pub fn destinations<'a>(&'a self, local: &'a LocalServers) -> impl Iterator<Item = &'a ServerName> {
        let more = self.also_to.iter().map(|server| &**server);
        let more = more.filter(|server| !self.servers.contains(server));
        self.servers
            .iter()
            .chain(more)
            .filter(|server| !local.is_local(server) && self.from.as_deref() != Some(*server))
    }
}

impl Rooms {
    /// The events after a position that are ours to send, out of the next `limit` changes of rooms.
    pub async fn stream_after(
        &self,
        after: StreamPosition,
        limit: usize,
    ) -> Result<OutgoingPage, StoreError> {
        let limit = limit.clamp(1, ROWS_MAX);
        let watermark = self.store().watermark();
        let range = STREAM.all().after(&after).up_to(&watermark);
        let rows = match after < watermark {
            true => self.store().range(&STREAM, range, Order::Forward, limit).await?,
            false => Vec::new(),
        };
        let more = rows.len() == limit;
        let upto = match rows.last() {
            Some((last, _)) if more => *last,
            _ => watermark.max(after),
        };
        let mut events = Vec::new();
        for (position, row) in rows {
            if row.what == StreamWhat::Local {
                events.extend(self.outgoing(position, row).await?);
            }
        }
        Ok(OutgoingPage { events, upto, more })
    }

    /// The events of one room's timeline from a position on that are ours to send, out of the next `limit` in it.
    pub async fn room_stream_from(
        &self,
        room: RoomSn,
        from: StreamPosition,
        limit: usize,
    ) -> Result<OutgoingPage, StoreError> {
        let limit = limit.clamp(1, ROWS_MAX);
        let watermark = self.store().watermark();
        let mut range = room_range(room, from, watermark);
        let mut positions: Vec<StreamPosition> = Vec::new();
        // One more than is wanted says whether there is more.
        while positions.len() <= limit {
            let wanted = limit + 1 - positions.len();
            let rows = self.store().range(&TIMELINE, range.clone(), Order::Forward, wanted).await?;
            // Of what was filled in later nothing is in the stream: only live events have a row at their position.
            positions.extend(
                rows.iter()
                    .map(|((_, order), _)| order)
                    .filter(|order| order.is_live())
                    .map(|order| order.anchor),
            );
            match rows.last() {
                Some((last, _)) if rows.len() == wanted => range = range.after(last),
                _ => break,
            }
        }
        let more = positions.len() > limit;
        positions.truncate(limit);
        let upto = positions.last().copied().filter(|_| more).unwrap_or(watermark);
        let found = self.store().multi_get(&STREAM, &positions).await?;
        let mut events = Vec::new();
        for (position, row) in positions.into_iter().zip(found) {
            if let Some(row) = row.filter(|row| row.what == StreamWhat::Local && row.room == room) {
                events.extend(self.outgoing(position, row).await?);
            }
        }
        Ok(OutgoingPage { events, upto, more })
    }

    /// Where the last `kept` events of a stretch of a room's timeline begin, if it has more than `many` of them.
    pub async fn last_of_room(
        &self,
        room: RoomSn,
        (from, upto): (StreamPosition, StreamPosition),
        many: usize,
        kept: usize,
    ) -> Result<Option<StreamPosition>, StoreError> {
        let range = room_range(room, from, upto.min(self.store().watermark()));
        let rows = self.store().range(&TIMELINE, range, Order::Backward, many.saturating_add(1)).await?;
        let first = rows.get(kept.saturating_sub(1)).filter(|_| rows.len() > many);
        Ok(first.map(|((_, order), _)| order.anchor))
    }

    /// None if nobody else is concerned.
    async fn outgoing(
        &self,
        position: StreamPosition,
        row: StreamRow,
    ) -> Result<Option<Outgoing>, StoreError> {
        let Some(room) = self.room_of(row.room).await? else { return Ok(None) };
        let Some((since, state)) = self.state_at(row.room, position).await? else { return Ok(None) };
        let servers = self.servers_in(&room, &state).await?;
        let all = servers.iter().chain(row.also_to.iter().map(|server| &**server));
        let others = all.into_iter().any(|server| !self.servers().is_local(server));
        // Who is put out by it is not among them; then it changed the state.
        if !others && !state.partial && since < position {
            return Ok(None);
        }
        let event = self.events().load(&room, row.event).await?;
        let mut also_to: BTreeSet<OwnedServerName> = row.also_to.into_iter().collect();
        also_to.extend(self.server_removed(&room, &event).await?);
        let sender = event.header.sender.server_name();
        let from = (!self.servers().is_local(sender)).then(|| sender.to_owned());
        let also_to = also_to.into_iter().collect();
        let partial = state.partial;
        let outgoing = Outgoing { position, room, event, servers, also_to, from, partial };
        let concerned = outgoing.partial || outgoing.destinations(self.servers()).next().is_some();
        Ok(concerned.then_some(outgoing))
    }

    /// The server of a user whom an event puts out of the room, out of an invite, or off its door.
    async fn server_removed(
        &self,
        room: &RoomInfo,
        event: &StoredEvent,
    ) -> Result<Option<OwnedServerName>, StoreError> {
        let out = matches!(Membership::of(&event.pdu), Some(Membership::Leave | Membership::Ban));
        let (Some(key), Some(before)) = (event.header.state_key.filter(|_| out), event.snapshot_before())
        else {
            return Ok(None);
        };
        let Some(member) = self.snapshots().lookup(room.sn, before, key).await? else { return Ok(None) };
        let was = Membership::of(&self.events().load(room, member).await?.pdu);
        let concerned = matches!(was, Some(Membership::Join | Membership::Invite | Membership::Knock));
        let user = event.pdu.state_key().filter(|_| concerned);
        Ok(user.and_then(|user| <&UserId>::try_from(user).ok()).map(|user| user.server_name().to_owned()))
    }
}

/// A room's timeline from one position to another, both included.
fn room_range(room: RoomSn, from: StreamPosition, upto: StreamPosition) -> Range<(RoomSn, TimelineOrder)> {
    TIMELINE.prefix(&room).from(&(room, from)).up_to(&(room, upto))
}
