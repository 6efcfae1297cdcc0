//! The auth index: a chain cover of the room's auth graph, written in each state event's own commit.
//! * Every state event has a place (chain, sequence). Whoever reaches a place reaches all before it in its chain.
//! * A link says what else is reached from a place on. Links that follow from others are left out.
//! * Events that are no state events have no place: nothing refers to them; what they reach is what their auth events
//!   reach.

use std::collections::BTreeMap;

use hearth_store::{Order, StoreError};

use crate::errors::WriteError;
use crate::events::StoredEvent;
use crate::ids::RoomSn;
use crate::rooms::Rooms;
use crate::tables::{AUTH_CHAIN_EVENTS, AUTH_CHAIN_LINKS, AUTH_CHAINS, ChainLinks, ChainPlace};
use crate::turn::Turn;

/// Links that are read at once.
const LINKS_AT_ONCE: usize = 1000;

/// For each chain, the largest sequence that is reached. Reaching includes oneself.
pub type Reach = BTreeMap<u32, u32>;

impl Turn {
    /// Gives a state event its place.
    pub(crate) async fn index_auth(&mut self, stored: &StoredEvent) -> Result<(), WriteError> {
        let room = self.head.room.sn;
        let mut auth = Vec::with_capacity(stored.header.auth_events.len());
        for event in &stored.header.auth_events {
            auth.extend(self.get(&AUTH_CHAINS, &(room, *event)).await?);
        }
        // The longest chain that can go on: a chain goes on only from its end.
        auth.sort_unstable_by_key(|place: &ChainPlace| std::cmp::Reverse(place.sequence));
        auth.dedup();
        let mut place = None;
        for at in &auth {
            let next = ChainPlace { chain: at.chain, sequence: at.sequence + 1 };
            if self.get(&AUTH_CHAIN_EVENTS, &(room, next.chain, next.sequence)).await?.is_none() {
                place = Some(next);
                break;
            }
        }
        let place = place.unwrap_or_else(|| {
            let row = &mut self.change_head().row;
            row.next_chain += 1;
            ChainPlace { chain: row.next_chain - 1, sequence: 1 }
        });
        let mut reached = Reach::new();
        if place.sequence > 1 {
            let before = ChainPlace { chain: place.chain, sequence: place.sequence - 1 };
            self.reach(&mut reached, before).await?;
        }
        let mut links = Vec::new();
        for at in auth {
            if reached.get(&at.chain).is_some_and(|sequence| *sequence >= at.sequence) {
                continue;
            }
            self.reach(&mut reached, at).await?;
            links.push(at);
        }
        self.put(&AUTH_CHAINS, &(room, stored.sn), place);
        self.put(&AUTH_CHAIN_EVENTS, &(room, place.chain, place.sequence), stored.sn);
        if !links.is_empty() {
            self.put(&AUTH_CHAIN_LINKS, &(room, place.chain, place.sequence), ChainLinks { to: links });
        }
        Ok(())
    }

    pub(crate) async fn reach(&self, reached: &mut Reach, from: ChainPlace) -> Result<(), WriteError> {
        let room = self.head.room.sn;
        let mut open = vec![from];
        while let Some(ChainPlace { chain, sequence }) = open.pop() {
            let known = reached.get(&chain).copied().unwrap_or(0);
            if known >= sequence {
                continue;
            }
            reached.insert(chain, sequence);
            // Those of this turn first: they are in no store yet.
            let mut end = sequence;
            while end > known && self.has_own(&AUTH_CHAIN_EVENTS, &(room, chain, end)) {
                let links = self.get(&AUTH_CHAIN_LINKS, &(room, chain, end)).await?;
                open.extend(links.into_iter().flat_map(|links| links.to));
                end -= 1;
            }
            let links = links_of(&self.rooms, room, chain, known, sequence).await?;
            open.extend(links.into_iter().flat_map(|links| links.to));
        }
        Ok(())
    }
}

/// The links of a chain behind `known`, up to `sequence`. Those on their way are at the chain's end.
pub(crate) async fn links_of(
    rooms: &Rooms,
    room: RoomSn,
    chain: u32,
    known: u32,
    sequence: u32,
) -> Result<Vec<ChainLinks>, StoreError> {
    let mut found = Vec::new();
    let mut end = sequence;
    while end > known && rooms.overlay().peek(&AUTH_CHAIN_EVENTS, &(room, chain, end)).flatten().is_some() {
        found.extend(rooms.overlay().peek(&AUTH_CHAIN_LINKS, &(room, chain, end)).flatten());
        end -= 1;
    }
    let mut start = known + 1;
    while start <= sequence {
        let range = AUTH_CHAIN_LINKS
            .prefix(&(room, chain))
            .from(&(room, chain, start))
            .up_to(&(room, chain, sequence));
        let rows = rooms.store().range(&AUTH_CHAIN_LINKS, range, Order::Forward, LINKS_AT_ONCE).await?;
        if rows.is_empty() {
            break;
        }
        for ((_, _, at), links) in rows {
            start = at + 1;
            found.push(links);
        }
    }
    Ok(found)
}
