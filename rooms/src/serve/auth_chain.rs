//! Auth chains from the auth index: the chains that are reached, instead of a walk from event to event.

use std::collections::{BTreeMap, BTreeSet};

use hearth_store::{Order, StoreError};
use ruma::EventId;

use super::QueryError;
use crate::auth_index::{Reach, links_of};
use crate::events::RoomInfo;
use crate::ids::{EventSn, RoomSn};
use crate::rooms::Rooms;
use crate::tables::{AUTH_CHAIN_EVENTS, AUTH_CHAIN_LINKS, AUTH_CHAINS, ChainPlace};

/// Events of one auth chain that an answer may have.
const AUTH_CHAIN_MAX: usize = 200_000;
/// Rows read at a time.
const BATCH: usize = 1_000;

impl Rooms {
    /// The auth chain of some events together, in the order in which we stored it. An event of the list is part of it
    /// only if another one rests on it.
    pub(super) async fn auth_chain(
        &self,
        room: &RoomInfo,
        events: &[EventSn],
    ) -> Result<Vec<EventSn>, QueryError> {
        let mut starts: Vec<ChainPlace> = Vec::new();
        // Of several events in one chain the last rests on all others.
        let mut last: BTreeMap<u32, u32> = BTreeMap::new();
        for events in events.chunks(BATCH) {
            let keys: Vec<(RoomSn, EventSn)> = events.iter().map(|event| (room.sn, *event)).collect();
            let places = self.store().multi_get(&AUTH_CHAINS, &keys).await?;
            for (event, place) in events.iter().zip(places) {
                match place {
                    Some(place) => {
                        let held = last.entry(place.chain).or_default();
                        *held = place.sequence.max(*held);
                    }
                    // It is no state event: what it rests on is what its auth events name.
                    None => starts.extend(self.auth_places(room, *event).await?),
                }
            }
        }
        let tops: Vec<(RoomSn, u32, u32)> =
            last.iter().map(|(chain, sequence)| (room.sn, *chain, *sequence)).collect();
        for tops in tops.chunks(BATCH) {
            let links = self.store().multi_get(&AUTH_CHAIN_LINKS, tops).await?;
            starts.extend(links.into_iter().flatten().flat_map(|links| links.to));
            let before = tops.iter().filter(|(_, _, sequence)| *sequence > 1);
            starts.extend(
                before.map(|(_, chain, sequence)| ChainPlace { chain: *chain, sequence: sequence - 1 }),
            );
        }
        let reached = self.reached(room.sn, starts).await?;
        let mut chain = self.events_reached(room.sn, &reached).await?;
        if let Some(create) = self.implied_create(room).await?
            && events.iter().any(|event| *event != create)
        {
            chain.insert(create);
        }
        Ok(chain.into_iter().collect())
    }

    async fn auth_places(&self, room: &RoomInfo, event: EventSn) -> Result<Vec<ChainPlace>, StoreError> {
        let event = self.events().load(room, event).await?;
        let keys: Vec<(RoomSn, EventSn)> =
            event.header.auth_events.iter().map(|event| (room.sn, *event)).collect();
        Ok(self.store().multi_get(&AUTH_CHAINS, &keys).await?.into_iter().flatten().collect())
    }

    async fn reached(&self, room: RoomSn, mut open: Vec<ChainPlace>) -> Result<Reach, StoreError> {
        let mut reached = Reach::new();
        while let Some(ChainPlace { chain, sequence }) = open.pop() {
            let known = reached.get(&chain).copied().unwrap_or(0);
            if known >= sequence {
                continue;
            }
            reached.insert(chain, sequence);
            let links = links_of(self, room, chain, known, sequence).await?;
            open.extend(links.into_iter().flat_map(|links| links.to));
        }
        Ok(reached)
    }

    async fn events_reached(&self, room: RoomSn, reached: &Reach) -> Result<BTreeSet<EventSn>, QueryError> {
        let mut events = BTreeSet::new();
        for (chain, sequence) in reached {
            let mut range = AUTH_CHAIN_EVENTS.prefix(&(room, *chain)).up_to(&(room, *chain, *sequence));
            loop {
                let rows =
                    self.store().range(&AUTH_CHAIN_EVENTS, range.clone(), Order::Forward, BATCH).await?;
                let complete = rows.len() < BATCH;
                let last = rows.last().map(|(key, _)| *key);
                events.extend(rows.into_iter().map(|(_, event)| event));
                if events.len() > AUTH_CHAIN_MAX {
                    return Err(QueryError::TooLarge);
                }
                match last {
                    Some(last) if !complete => range = range.after(&last),
                    _ => break,
                }
            }
        }
        Ok(events)
    }

    /// The create event where no event names it, because the room's id does.
    async fn implied_create(&self, room: &RoomInfo) -> Result<Option<EventSn>, StoreError> {
        let hash = room.room_id.as_str().strip_prefix('!').filter(|_| room.rules.room_id_is_create_event);
        match hash.and_then(|hash| EventId::parse(format!("${hash}")).ok()) {
            Some(create) => self.events().number(room.sn, &create).await,
            None => Ok(None),
        }
    }
}
