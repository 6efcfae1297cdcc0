//! What waiting events lack, from other servers: the events between, or else the state behind the gap.
//! * Those who handed us the events are asked first, then a few others of the room.
//! * First the events that lie between (`get_missing_events`). What is still lacking then, or where the gap is too
//!   deep, comes with the state before it (`state_ids`, and `event` or `state` for what of it is not held).
//! * Whatever comes is checked like everything else, and is of this room or dropped.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use futures_util::{StreamExt as _, stream};
use hearth_dag::VerifiedPdu;
use hearth_rooms::{Kind, Received, RoomInfo, Wanted, WriteError};
use hearth_store::StoreError;
use ruma::{EventId, OwnedEventId, OwnedServerName, RoomId, ServerName};

use super::{
    Inbound,
    events::{auth_events_first, receive_all, receive_outliers},
    rounds::{Efforts, Place},
};
use crate::client::{Json, RequestError};

/// Servers that are asked in one round.
const SERVERS_MAX: usize = 4;
/// Events that are asked for at once where a gap is to be closed.
const GAP_EVENTS: usize = 50;
/// Events whose state is asked for in one round.
const STATES_PER_ROUND: usize = 5;
/// Of a state, so many missing events are asked for one by one; if more are missing, for all of it.
const SINGLE_EVENTS_MAX: usize = 100;
/// Single events that are asked for at once.
const ASKED_AT_ONCE: usize = 10;

impl Inbound {
    /// Fetches what a room's queue wants. Says whether anything came that was not here.
    pub(super) async fn fetch(
        &self,
        room: &RoomId,
        wanted: &[Wanted],
        deep: bool,
        place: &mut Place<'_>,
        efforts: &mut Efforts,
    ) -> Result<bool, WriteError> {
        let Some(room) = self.0.rooms.room(room).await? else { return Ok(false) };
        let servers = self.servers_to_ask(&room, wanted).await?;
        let mut came = false;
        if !deep && wanted.iter().any(|wanted| wanted.as_prev) {
            for server in &servers {
                came |= self.close_gap(&room, server, wanted).await?;
                if came {
                    return Ok(true);
                }
            }
        }
        let waiting: BTreeSet<&OwnedEventId> = wanted.iter().flat_map(|wanted| &wanted.by).collect();
        let mut waiting: Vec<&OwnedEventId> = waiting.into_iter().collect();
        // What was looked for in vain before stands in nobody's way.
        waiting.sort_by_key(|event| efforts.fetched(event));
        for event in waiting.into_iter().take(STATES_PER_ROUND) {
            efforts.fetches(event);
            came |= self.with_state(&room, &servers, event, place, efforts).await?;
        }
        Ok(came)
    }

    /// Those that handed us what waits, then others of the room; none that failed lately.
    async fn servers_to_ask(
        &self,
        room: &RoomInfo,
        wanted: &[Wanted],
    ) -> Result<Vec<OwnedServerName>, StoreError> {
        let mut servers: Vec<OwnedServerName> = Vec::new();
        let of_room = self.0.rooms.servers_in_room(room).await?;
        let origins = wanted.iter().flat_map(|wanted| &wanted.origins).map(|server| &**server);
        let mut asked = HashSet::new();
        for server in origins.chain(of_room.iter()) {
            if servers.len() >= SERVERS_MAX {
                break;
            }
            if asked.insert(server.to_owned()) && self.0.federation.client().may_ask(server).await.is_ok() {
                servers.push(server.to_owned());
            }
        }
        Ok(servers)
    }

    /// Asks for the events between those we have and those that wait.
    async fn close_gap(
        &self,
        room: &Arc<RoomInfo>,
        server: &ServerName,
        wanted: &[Wanted],
    ) -> Result<bool, WriteError> {
        let rooms = &self.0.rooms;
        let Some(head) = rooms.head(room.sn).await? else { return Ok(false) };
        let extremities = rooms.events().load_many(room, &head.value.extremities).await?;
        let earliest: Vec<OwnedEventId> =
            extremities.iter().map(|event| event.header.event_id.clone()).collect();
        let latest: BTreeSet<&OwnedEventId> =
            wanted.iter().filter(|wanted| wanted.as_prev).flat_map(|wanted| &wanted.by).collect();
        let waiting = rooms.queued_events(&room.room_id).await?.into_iter().map(|(pdu, _)| pdu);
        let waiting: Vec<VerifiedPdu> =
            waiting.filter(|pdu| latest.iter().any(|event| **event == pdu.pdu().event_id())).collect();
        let latest: Vec<OwnedEventId> = latest.into_iter().cloned().collect();
        let client = self.0.federation.client();
        let answer = client.missing_events(server, &room.room_id, &earliest, &latest, GAP_EVENTS, 0).await;
        let Some(events) = given(answer, room, server)? else { return Ok(false) };
        let pdus = self.checked(room, events, server).await?;
        let new = self.in_the_gap(room, &waiting, pdus).await?;
        let mut came = false;
        for (pdu, received) in new.iter().zip(receive_all(rooms, &new).await) {
            came |= match received {
                Ok(Received::Missing { .. } | Received::NeedsPolicySignature(_)) => {
                    rooms.enqueue(pdu, server).await?
                }
                // It will never be here; what follows it does without it.
                Err(error) if error.is_about_one_event() => false,
                received => received.map(|_| true)?,
            };
        }
        Ok(came)
    }

    /// Those of some events that lie behind events that wait and before all that have a place in the room. Where the
    /// room forks, a server tells more: what came long before we did would be a new end of the room, with its state.
    async fn in_the_gap(
        &self,
        room: &Arc<RoomInfo>,
        waiting: &[VerifiedPdu],
        told: Vec<VerifiedPdu>,
    ) -> Result<Vec<VerifiedPdu>, StoreError> {
        let places: HashMap<&EventId, usize> =
            told.iter().enumerate().map(|(place, pdu)| (pdu.pdu().event_id(), place)).collect();
        let mut lies_there = vec![false; told.len()];
        let mut open: Vec<&VerifiedPdu> = waiting.iter().collect();
        while let Some(next) = open.pop() {
            for prev in next.pdu().prev_events() {
                let Some(place) = places.get(&**prev).copied().filter(|place| !lies_there[*place]) else {
                    continue;
                };
                // What is only held beside the room is to be received too.
                let held = self.0.rooms.events().by_id(room, prev).await?;
                if held.is_none_or(|held| held.snapshot_before().is_none()) {
                    lies_there[place] = true;
                    open.push(&told[place]);
                }
            }
        }
        let told = told.into_iter().zip(lies_there);
        Ok(told.filter(|(_, lies_there)| *lies_there).map(|(pdu, _)| pdu).collect())
    }

    /// Takes an event that waits in with the state before it, as one of the servers tells it.
    async fn with_state(
        &self,
        room: &Arc<RoomInfo>,
        servers: &[OwnedServerName],
        event: &EventId,
        place: &mut Place<'_>,
        efforts: &mut Efforts,
    ) -> Result<bool, WriteError> {
        let rooms = &self.0.rooms;
        let waiting = rooms.queued_events(&room.room_id).await?;
        let Some((waiting, _)) = waiting.into_iter().find(|(pdu, _)| pdu.pdu().event_id() == event) else {
            // It was decided meanwhile, or made room for others.
            return Ok(false);
        };
        for server in servers {
            // What it rests on itself, which is what authorises it.
            let mut came = self.hold(room, server, waiting.pdu().auth_events(), Some(event)).await?;
            match rooms.receive(&waiting).await? {
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
                let _place = self.0.workers.states.wait(server.clone(), 1).await;
                let answer = self.0.federation.client().state(server, &room.room_id, event).await;
                let Some(state) = given(answer, room, server)? else { continue };
                came |= self.hold_all(room, server, [state.auth_chain, state.pdus].concat()).await?;
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
            let mut received = rooms.receive_with_state(&waiting, &state).await?;
            if let Received::NeedsPolicySignature(unsigned) = &received {
                let event = waiting.pdu();
                let (ready, queue) = ([event], [(event, event.json().len())]);
                let judging = efforts.silence.judge(&self.0.policy, unsigned, &ready, &queue);
                let judged = rooms.with_verdicts(place.outside(judging).await.verdicts);
                received = judged.receive_with_state(&waiting, &state).await?;
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
