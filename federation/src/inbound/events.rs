//! The events of a transaction: sorted by room, checked, and each decided or left to wait.
//! * The room's ACL is asked for each event; an event of a room in which we are not is refused, but for the end of an
//!   invite or a knock of a user of ours. Where we are being let in just now, it waits for that.
//! * First all events of a room are handed to it at once, in their order. What then lacks something is tried again, as
//!   it may have come with the others; what still does waits in the room's queue.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use futures_util::future::{join_all, try_join_all};
use hearth_dag::{ReceivedPdu, VerifiedPdu};
use hearth_rooms::{
    EXTREMITIES_LEFT_ALONE, OutOfBand, OutOfBandError, Received, RoomInfo, RoomSn, Rooms, WriteError,
};
use hearth_store::StoreError;
use ruma::{EventId, OwnedEventId, OwnedRoomId, ServerName, UserId};
use serde::Deserialize;

use super::{Inbound, TransactionError, transactions::Results};
use crate::{client::Json, verify::BadPdu};

/// Events of one room that are handed to it at once.
const HANDED_AT_ONCE: usize = 50;

/// To which room an event says to belong.
#[derive(Deserialize)]
struct Named<'a> {
    #[serde(borrow)]
    room_id: Cow<'a, str>,
}

/// Events that were taken in or refused, and those that nobody can judge at the moment.
pub(super) struct Judged {
    pub(super) results: Results,
    pub(super) unsure: Vec<(Arc<RoomInfo>, OwnedEventId, Json)>,
}

impl Inbound {
    /// The events of a transaction.
    pub(super) async fn take_events(
        &self,
        origin: &ServerName,
        pdus: Vec<Json>,
    ) -> Result<Results, TransactionError> {
        let Judged { mut results, unsure } = self.judge(origin, pdus).await?;
        for (room, event, pdu) in unsure {
            let kept = self.keep_unchecked(origin, &room.room_id, &event, &pdu).await?;
            let why = || "the keys to check the event with cannot be had at the moment".to_owned();
            results.insert(event, (!kept).then(why));
        }
        Ok(results)
    }

    /// Takes events in as far as their signatures can be judged.
    pub(super) async fn judge(
        &self,
        origin: &ServerName,
        pdus: Vec<Json>,
    ) -> Result<Judged, TransactionError> {
        let (mut results, mut unsure) = (Results::new(), Vec::new());
        let mut places = Vec::with_capacity(pdus.len());
        let mut raw = Vec::with_capacity(pdus.len());
        for pdu in pdus {
            let Some(named) = room_named(&pdu) else { continue };
            let room = self.0.rooms.room(&named).await?;
            if self.keep_early(origin, &named, room.as_deref(), &pdu).await? {
                continue;
            }
            // A join that was under way may just have ended.
            let room = match room {
                Some(room) => Some(room),
                None => self.0.rooms.room(&named).await?,
            };
            // Without a room that we know, its version and so its id are not known either.
            let Some(room) = room else { continue };
            if self.0.rooms.acl(&room).await?.allows(origin) {
                raw.push((room.rules, pdu.clone()));
                places.push((room, pdu));
            } else if let Ok(denied) = ReceivedPdu::parse(room.rules, pdu.get()) {
                let why = "the room's server ACL keeps that server out".to_owned();
                results.insert(denied.pdu().event_id().to_owned(), Some(why));
            }
        }
        let mut by_room: BTreeMap<RoomSn, (Arc<RoomInfo>, Vec<VerifiedPdu>)> = BTreeMap::new();
        let verified = self.0.federation.verify_each_of(origin, raw).await?;
        for ((room, raw), verified) in places.into_iter().zip(verified) {
            match verified {
                Ok(pdu) if pdu.pdu().room_id() == room.room_id => {
                    by_room.entry(room.sn).or_insert_with(|| (room, Vec::new())).1.push(pdu);
                }
                Ok(pdu) => {
                    let why = "the event belongs to another room".to_owned();
                    results.insert(pdu.pdu().event_id().to_owned(), Some(why));
                }
                Err(BadPdu { event_id: Some(event), unsure: true, .. }) => unsure.push((room, event, raw)),
                Err(bad) => {
                    tracing::debug!(%origin, room_id = %room.room_id, %bad, "an event of a peer is refused");
                    results.extend(bad.event_id.map(|event| (event, Some(bad.why.to_string()))));
                }
            }
        }
        let taken = by_room
            .into_values()
            .map(|(room, pdus)| async move { self.take_events_of_room(origin, &room, pdus).await });
        for of_room in try_join_all(taken).await? {
            results.extend(of_room);
        }
        Ok(Judged { results, unsure })
    }

    async fn take_events_of_room(
        &self,
        origin: &ServerName,
        room: &Arc<RoomInfo>,
        pdus: Vec<VerifiedPdu>,
    ) -> Result<Results, TransactionError> {
        let mut results = Results::new();
        let mut handed = receive_all(&self.0.rooms, &pdus).await;
        let mut waits = false;
        for (pdu, received) in pdus.iter().zip(&mut handed) {
            if let Ok(Received::Missing { prev, auth }) = received {
                let given: HashSet<&EventId> = pdus.iter().map(|pdu| pdu.pdu().event_id()).collect();
                if prev.iter().chain(&*auth).any(|event| given.contains(&**event)) {
                    *received = self.0.rooms.receive(pdu).await;
                }
            }
        }
        for (pdu, received) in pdus.iter().zip(handed) {
            let error = match received {
                // Nor is a policy server waited for here: its room would hold up those of the other events.
                Ok(Received::Missing { .. } | Received::NeedsPolicySignature(_)) => {
                    match self.0.rooms.enqueue(pdu, origin).await {
                        Ok(_) => {
                            waits = true;
                            None
                        }
                        Err(error) => Some(unless_again(error)?),
                    }
                }
                Ok(Received::Rejected(why)) => {
                    Some(why.map_or("the event was refused before".to_owned(), |why| why.to_string()))
                }
                // Whoever wrote it need not know that it came too late.
                Ok(Received::Accepted(_) | Received::Outlier | Received::SoftFailed(_)) => None,
                Err(WriteError::NotResident | WriteError::UnknownRoom) => {
                    self.take_from_outside(room, pdu).await?
                }
                Err(error) => Some(unless_again(error)?),
            };
            results.insert(pdu.pdu().event_id().to_owned(), error);
        }
        if waits || self.is_worked_on(&room.room_id) || self.has_many_forks(room).await? {
            self.wake(&room.room_id);
        }
        Ok(results)
    }

    /// An event of a room in which we are not: it may end an invite or a knock of a user of ours.
    async fn take_from_outside(
        &self,
        room: &RoomInfo,
        pdu: &VerifiedPdu,
    ) -> Result<Option<String>, TransactionError> {
        let not_here = || Some("this server is not in that room".to_owned());
        let user = pdu.pdu().state_key().and_then(|user| <&UserId>::try_from(user).ok());
        if !user.is_some_and(|user| self.0.rooms.is_local(user)) {
            return Ok(not_here());
        }
        let told = OutOfBand {
            room_id: room.room_id.clone(),
            version: room.version.clone(),
            event: pdu.clone(),
            state: Vec::new(),
        };
        // An invite is to be signed by us first, which is another request.
        if pdu.pdu().membership() == Some(ruma::events::room::member::MembershipState::Invite) {
            return Ok(not_here());
        }
        match self.0.rooms.receive_out_of_band(&told).await {
            Ok(_) => Ok(None),
            Err(OutOfBandError::Write(WriteError::Store(error))) => Err(error.into()),
            Err(error) => Ok(Some(error.to_string())),
        }
    }

    /// Whether a room has so many forward extremities that they are to be joined.
    pub(super) async fn has_many_forks(&self, room: &RoomInfo) -> Result<bool, StoreError> {
        let head = self.0.rooms.head(room.sn).await?;
        Ok(head.is_some_and(|head| head.value.extremities.len() > EXTREMITIES_LEFT_ALONE))
    }
}

/// Hands events of one room to it in their order, many at once: each is decided on what those before it left, and all
/// are on their way to the disk together.
pub(super) async fn receive_all(rooms: &Rooms, pdus: &[VerifiedPdu]) -> Vec<Result<Received, WriteError>> {
    let mut all = Vec::with_capacity(pdus.len());
    for some in pdus.chunks(HANDED_AT_ONCE) {
        all.extend(join_all(some.iter().map(|pdu| rooms.receive(pdu))).await);
    }
    all
}

/// The same for events that are only to be held beside their room.
pub(super) async fn receive_outliers(
    rooms: &Rooms,
    pdus: &[&VerifiedPdu],
) -> Vec<Result<Received, WriteError>> {
    let mut all = Vec::with_capacity(pdus.len());
    for some in pdus.chunks(HANDED_AT_ONCE) {
        all.extend(join_all(some.iter().map(|pdu| rooms.receive_outlier(pdu))).await);
    }
    all
}

/// The order in which events are to be handed over: each after those of the list that it names as auth events.
pub(super) fn auth_events_first(pdus: &[VerifiedPdu]) -> Vec<&VerifiedPdu> {
    let places: BTreeMap<&EventId, usize> =
        pdus.iter().enumerate().map(|(place, pdu)| (pdu.pdu().event_id(), place)).collect();
    let (mut order, mut seen) = (Vec::with_capacity(pdus.len()), vec![false; pdus.len()]);
    for start in 0..pdus.len() {
        let mut open = vec![(start, false)];
        while let Some((place, is_done)) = open.pop() {
            if is_done {
                order.push(&pdus[place]);
            } else if !std::mem::replace(&mut seen[place], true) {
                open.push((place, true));
                let auth = pdus[place].pdu().auth_events().iter();
                let auth = auth.filter_map(|event| places.get(&**event));
                open.extend(auth.filter(|place| !seen[**place]).map(|place| (*place, false)));
            }
        }
    }
    order
}

/// The room to which an event says to belong.
fn room_named(pdu: &Json) -> Option<OwnedRoomId> {
    let named = pdu.parse::<Named<'_>>().ok()?;
    OwnedRoomId::try_from(&*named.room_id).ok()
}

/// What is said about an event that cannot be taken; an error if it can be when it comes again.
fn unless_again(error: WriteError) -> Result<String, TransactionError> {
    match error {
        // Again and again, with everything else of its sender behind it.
        error if error.is_about_one_event() => Ok(error.to_string()),
        WriteError::Store(error) => Err(error.into()),
        WriteError::Busy => Err(TransactionError::Busy),
        other => Ok(other.to_string()),
    }
}
