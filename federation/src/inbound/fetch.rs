//! What waiting events lack, from other servers: the events between, or else the state behind the gap.
//! * Whoever handed us the events is asked first, then a few others of the room.
//! * First the events that lie between (`get_missing_events`). What is still lacking then, or where the gap is too
//!   deep, comes with the state before it (`state_ids`, and `event` or `state` for what of it is not held).
//! * Whatever comes is checked like everything else, and is of this room or dropped.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use futures_util::{StreamExt as _, stream};
use hearth_dag::VerifiedPdu;
use hearth_rooms::{Kind, Received, RoomInfo, WriteError};
use hearth_store::StoreError;
use parking_lot::Mutex;
use ruma::{EventId, OwnedEventId, OwnedRoomId, OwnedServerName, ServerName};

use super::{
    Inbound,
    efforts::{Fetched, Lacking, Turn},
    events::{auth_events_first, receive_all, receive_outliers},
    place::Place,
    silence::Silence,
    workers::Bell,
};
use crate::client::{Json, RequestError};

/// Servers that are asked in one turn.
const SERVERS_MAX: usize = 4;
/// Events that are asked for at once where a gap is to be closed.
const GAP_EVENTS: usize = 50;
/// Events whose state is asked for in one turn.
const STATES_PER_TURN: usize = 5;
/// Of a state, so many missing events are asked for one by one; if more are missing, for all of it.
const SINGLE_EVENTS_MAX: usize = 100;
/// Single events that are asked for at once.
const ASKED_AT_ONCE: usize = 10;

/// What is to be fetched, and what came of it so far.
pub(super) struct Fetch {
    pub(super) room: OwnedRoomId,
    pub(super) turn: Turn,
    pub(super) fetched: Mutex<Fetched>,
    pub(super) silence: Arc<Mutex<Silence>>,
    pub(super) bell: Arc<Bell>,
}

impl Fetch {
    /// Something came: what waited for it can be decided, while this goes on.
    fn came(&self) {
        self.fetched.lock().came = true;
        self.bell.ring();
    }
}

impl Inbound {
    /// Fetches what the events lack whose turn it is.
    pub(super) async fn fetch(&self, fetch: &Fetch, place: &mut Place<'_>) -> Result<(), WriteError> {
        let Some(room) = self.0.rooms.room(&fetch.room).await? else { return Ok(()) };
        let servers = self.servers_to_ask(&room, &fetch.turn.origin).await?;
        let gaps = &fetch.turn.gaps;
        if !gaps.is_empty() && !servers.is_empty() {
            fetch.fetched.lock().gaps = gaps.iter().map(|(event, _)| event.event_id().to_owned()).collect();
            for server in &servers {
                if self.close_gap(&room, server, gaps, fetch).await? {
                    return Ok(());
                }
            }
        }
        for event in fetch.turn.events.iter().take(STATES_PER_TURN) {
            fetch.fetched.lock().states.push(event.event_id().to_owned());
            if self.with_state(&room, &servers, event, place, fetch).await? {
                fetch.came();
            }
        }
        Ok(())
    }

    /// The one that handed us what waits, then others of the room; none that failed lately.
    async fn servers_to_ask(
        &self,
        room: &RoomInfo,
        origin: &ServerName,
    ) -> Result<Vec<OwnedServerName>, StoreError> {
        let mut servers: Vec<OwnedServerName> = Vec::new();
        let of_room = self.0.rooms.servers_in_room(room).await?;
        let others = of_room.iter().filter(|server| **server != *origin);
        for server in std::iter::once(origin).chain(others) {
            if servers.len() >= SERVERS_MAX {
                break;
            }
            if self.0.federation.client().may_ask(server).await.is_ok() {
                servers.push(server.to_owned());
            }
        }
        Ok(servers)
    }

    /// Asks for the events between those we have and those that wait. Says whether anything came.
    async fn close_gap(
        &self,
        room: &Arc<RoomInfo>,
        server: &ServerName,
        gaps: &[(Lacking, u32)],
        fetch: &Fetch,
    ) -> Result<bool, WriteError> {
        let rooms = &self.0.rooms;
        let Some(head) = rooms.head(room.sn).await? else { return Ok(false) };
        let extremities = rooms.events().load_many(room, &head.value.extremities).await?;
        let earliest: Vec<OwnedEventId> =
            extremities.iter().map(|event| event.header.event_id.clone()).collect();
        let latest: Vec<OwnedEventId> = gaps.iter().map(|(event, _)| event.event_id().to_owned()).collect();
        let client = self.0.federation.client();
        let answer = client.missing_events(server, &room.room_id, &earliest, &latest, GAP_EVENTS, 0).await;
        let Some(events) = given(answer, room, server)? else { return Ok(false) };
        let pdus = self.checked(room, events, server).await?;
        let (new, tried): (Vec<_>, Vec<_>) = self.in_the_gaps(room, gaps, pdus).await?.into_iter().unzip();
        let mut came = false;
        for ((pdu, tried), received) in new.iter().zip(tried).zip(receive_all(rooms, &new).await) {
            came |= match received {
                Ok(Received::Missing { .. } | Received::NeedsPolicySignature(_)) => {
                    // As deep as the gap in which it was found.
                    fetch.fetched.lock().found.push((pdu.pdu().event_id().to_owned(), tried + 1));
                    rooms.enqueue(pdu, server).await?
                }
                // It will never be here; what follows it does without it.
                Err(error) if error.is_about_one_event() => false,
                received => received.map(|_| true)?,
            };
        }
        if came {
            fetch.came();
        }
        Ok(came)
    }

    /// Those of some events that lie behind events that wait and before all that have a place in the room, and how often
    /// it was tried to close the gap in which they lie. Where the room forks, a server tells more: what came long before
    /// we did would be a new end of the room, with its state.
    async fn in_the_gaps(
        &self,
        room: &Arc<RoomInfo>,
        gaps: &[(Lacking, u32)],
        told: Vec<VerifiedPdu>,
    ) -> Result<Vec<(VerifiedPdu, u32)>, StoreError> {
        let places: HashMap<&EventId, usize> =
            told.iter().enumerate().map(|(place, pdu)| (pdu.pdu().event_id(), place)).collect();
        let mut lies_there: Vec<Option<u32>> = vec![None; told.len()];
        let mut gaps: Vec<(&VerifiedPdu, u32)> =
            gaps.iter().map(|(event, tried)| (&event.pdu, *tried)).collect();
        // What lies in two gaps is as deep as the one that was tried less.
        gaps.sort_by_key(|(_, tried)| *tried);
        for (behind, tried) in gaps {
            let mut open = vec![behind];
            while let Some(next) = open.pop() {
                for prev in next.pdu().prev_events() {
                    let place = places.get(&**prev).copied();
                    let Some(place) = place.filter(|place| lies_there[*place].is_none()) else { continue };
                    // What is only held beside the room is to be received too.
                    let held = self.0.rooms.events().by_id(room, prev).await?;
                    if held.is_none_or(|held| held.snapshot_before().is_none()) {
                        lies_there[place] = Some(tried);
                        open.push(&told[place]);
                    }
                }
            }
        }
        let told = told.into_iter().zip(lies_there);
        Ok(told.filter_map(|(pdu, tried)| Some((pdu, tried?))).collect())
    }

    /// Takes an event that waits in with the state before it, as one of the servers tells it.
    async fn with_state(
        &self,
        room: &Arc<RoomInfo>,
        servers: &[OwnedServerName],
        waiting: &Lacking,
        place: &mut Place<'_>,
        fetch: &Fetch,
    ) -> Result<bool, WriteError> {
        let (rooms, waiting, event) = (&self.0.rooms, &waiting.pdu, waiting.event_id());
        let queue = rooms.queued_events(&room.room_id).await?;
        if !queue.iter().any(|(pdu, _)| pdu.pdu().event_id() == event) {
            // It was decided meanwhile, or made room for others.
            return Ok(false);
        }
        for server in servers {
            // What it rests on itself, which is what authorises it.
            let mut came = self.hold(room, server, waiting.pdu().auth_events(), Some(event)).await?;
            match rooms.receive(waiting).await? {
                Received::Missing { prev, .. } if !prev.is_empty() => {}
                Received::Missing { .. } if came => return Ok(true),
                Received::Missing { .. } => continue,
                _ => return Ok(true),
            }
            let answer = self.0.federation.client().state_ids(server, &room.room_id, event).await;
            let Some(ids) = given(answer, room, server)? else { continue };
            if !self.begins_with(room, &ids.pdu_ids).await? {
                tracing::debug!(%server, room_id = %room.room_id, "a told state is not one of this room");
                continue;
            }
            let all: Vec<OwnedEventId> = ids.auth_chain_ids.iter().chain(&ids.pdu_ids).cloned().collect();
            let missing = self.not_held(room, &all).await?;
            if missing.len() > SINGLE_EVENTS_MAX {
                let turn = self.0.workers.states.wait(server.clone(), 1);
                match place.elsewhere(turn, self.hold_state(room, server, event)).await? {
                    Some(any) => came |= any,
                    None => continue,
                }
            } else {
                came |= self.hold_each(room, server, &missing).await?;
            }
            // What could not be had, or is refused, is no part of the state: it could not have been in force.
            let missing: HashSet<OwnedEventId> =
                self.not_held(room, &ids.pdu_ids).await?.into_iter().collect();
            let most = ids.pdu_ids.len();
            if missing.len() * 10 > most {
                continue;
            }
            let state: Vec<OwnedEventId> =
                ids.pdu_ids.into_iter().filter(|event| !missing.contains(event)).collect();
            let mut received = rooms.receive_with_state(waiting, &state).await?;
            if let Received::NeedsPolicySignature(unsigned) = &received {
                let event = waiting.pdu();
                let (ready, queue) = ([event], [(event, event.json().len())]);
                let judging = Silence::judge(&fetch.silence, &self.0.policy, unsigned, &ready, &queue);
                if let Some(verdicts) = place.outside(judging).await {
                    let judged = rooms.with_verdicts(verdicts);
                    received = judged.receive_with_state(waiting, &state).await?;
                }
            }
            match received {
                // The policy server says nothing for the moment; no other server makes a difference to that.
                Received::NeedsPolicySignature(_) => return Ok(came),
                Received::Missing { .. } if came => return Ok(true),
                Received::Missing { .. } => {}
                _ => return Ok(true),
            }
        }
        Ok(false)
    }

    /// Fetches the whole state before an event, with what it rests on. Says whether anything came of it, if it was given.
    async fn hold_state(
        &self,
        room: &Arc<RoomInfo>,
        server: &ServerName,
        event: &EventId,
    ) -> Result<Option<bool>, WriteError> {
        let answer = self.0.federation.client().state(server, &room.room_id, event).await;
        let Some(state) = given(answer, room, server)? else { return Ok(None) };
        self.hold_all(room, server, [state.auth_chain, state.pdus].concat()).await.map(Some)
    }

    /// Fetches those of some events that are not held, with the auth chain of the event that names them.
    async fn hold(
        &self,
        room: &Arc<RoomInfo>,
        server: &ServerName,
        events: &[OwnedEventId],
        of: Option<&EventId>,
    ) -> Result<bool, WriteError> {
        let missing = self.not_held(room, events).await?;
        if missing.is_empty() {
            return Ok(false);
        }
        let mut came = false;
        if let Some(event) = of {
            let answer = self.0.federation.client().event_auth(server, &room.room_id, event).await;
            if let Some(chain) = given(answer, room, server)? {
                came = self.hold_all(room, server, chain).await?;
            }
        }
        let missing = self.not_held(room, &missing).await?;
        Ok(self.hold_each(room, server, &missing).await? || came)
    }

    /// Asks for single events, and holds them beside the room.
    async fn hold_each(
        &self,
        room: &Arc<RoomInfo>,
        server: &ServerName,
        events: &[OwnedEventId],
    ) -> Result<bool, WriteError> {
        let client = self.0.federation.client();
        let mut asked = Vec::new();
        for event in events.iter().take(SINGLE_EVENTS_MAX) {
            let (client, server, event) = (client.clone(), server.to_owned(), event.clone());
            asked.push(async move { client.event(&server, &event).await });
        }
        let answers: Vec<_> = stream::iter(asked).buffer_unordered(ASKED_AT_ONCE).collect().await;
        let mut got = Vec::new();
        for answer in answers {
            got.extend(given(answer, room, server)?);
        }
        self.hold_all(room, server, got).await
    }

    /// Holds events beside the room, each after those that it names as auth events.
    async fn hold_all(
        &self,
        room: &Arc<RoomInfo>,
        server: &ServerName,
        events: Vec<Json>,
    ) -> Result<bool, WriteError> {
        let pdus = self.checked(room, events, server).await?;
        let mut new = Vec::new();
        for pdu in auth_events_first(&pdus) {
            if !self.is_held(room, pdu.pdu().event_id()).await? {
                new.push(pdu);
            }
        }
        let mut came = false;
        for received in receive_outliers(&self.0.rooms, &new).await {
            came |= match received {
                Err(error) if error.is_about_one_event() => false,
                received => !matches!(received?, Received::Missing { .. }),
            };
        }
        Ok(came)
    }

    /// Those of some events that are of this room and whose signatures hold.
    async fn checked(
        &self,
        room: &RoomInfo,
        events: Vec<Json>,
        server: &ServerName,
    ) -> Result<Vec<VerifiedPdu>, StoreError> {
        let mut good = Vec::with_capacity(events.len());
        for verified in self.0.federation.verify_answer(server, room.rules, events).await? {
            match verified {
                Ok(pdu) if pdu.pdu().room_id() == room.room_id => good.push(pdu),
                Ok(_) => {
                    tracing::debug!(%server, room_id = %room.room_id, "a fetched event is of another room")
                }
                Err(bad) => {
                    tracing::debug!(%server, room_id = %room.room_id, %bad, "a fetched event is refused")
                }
            }
        }
        Ok(good)
    }

    /// Whether a state has the room's create event. One that has not would have every event refused.
    async fn begins_with(&self, room: &RoomInfo, state: &[OwnedEventId]) -> Result<bool, StoreError> {
        let rooms = &self.0.rooms;
        let Some(head) = rooms.head(room.sn).await? else { return Ok(false) };
        let Some(key) = rooms.state_key(room.sn, &Kind::new("m.room.create"), "").await? else {
            return Ok(false);
        };
        let create = rooms.snapshots().lookup(room.sn, head.value.snapshot, key).await?;
        let Some(create) = create else { return Ok(false) };
        let create = rooms.events().load(room, create).await?;
        Ok(state.contains(&create.header.event_id))
    }

    async fn is_held(&self, room: &RoomInfo, event: &EventId) -> Result<bool, StoreError> {
        Ok(self.0.rooms.events().number(room.sn, event).await?.is_some())
    }

    async fn not_held(
        &self,
        room: &RoomInfo,
        events: &[OwnedEventId],
    ) -> Result<Vec<OwnedEventId>, StoreError> {
        let mut missing = Vec::new();
        for event in events {
            if !self.is_held(room, event).await? {
                missing.push(event.clone());
            }
        }
        Ok(missing)
    }
}

/// What a server gave; nothing if it did not. Only a failure of our own store is one.
fn given<T>(
    answer: Result<T, RequestError>,
    room: &RoomInfo,
    server: &ServerName,
) -> Result<Option<T>, StoreError> {
    match answer {
        Ok(given) => Ok(Some(given)),
        Err(RequestError::Store(error)) => Err(error),
        Err(error) => {
            tracing::debug!(%server, room_id = %room.room_id, %error, "a server did not give what was asked for");
            Ok(None)
        }
    }
}
