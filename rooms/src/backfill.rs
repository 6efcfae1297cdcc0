//! Filling a gap of the timeline in: older events that a peer gave, placed before those that follow them.
//! * Each is decided by its auth events and by the state before it, as any event; it is never judged by the current
//!   state, and leaves the current state as it is. Refused ones are kept apart.
//! * First all are decided, the oldest first; then they take their places, the newest first, so that the timeline has
//!   no other gap than the one that moves. Nothing goes into the stream of what is new.
//! * Only what leads to the gap is looked at, whatever else a peer gives.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use async_trait::async_trait;
use hearth_dag::VerifiedPdu;
use hearth_store::Commit;
use ruma::{EventId, OwnedEventId, RoomId};

use crate::append::NewEvent;
use crate::content;
use crate::errors::WriteError;
use crate::events::{RoomInfo, StoredEvent};
use crate::forks::DUMMY_EVENT;
use crate::ids::{SnapshotId, TimelineOrder};
use crate::import::Members;
use crate::judge::is_decided;
use crate::kind::Kind;
use crate::lane::{Act, Waits};
use crate::missing::Gap;
use crate::queue::references_first;
use crate::rooms::Rooms;
use crate::tables::*;
use crate::turn::Turn;

/// Events that are filled in at once.
pub const BACKFILL_MAX: usize = 500;
/// More rows and bytes than the decision of one event has, and than its place has: mostly other gaps that named it. What
/// waited for it comes on top, as far as there is room.
const ROWS_OF_A_DECISION: usize = 40;
const BYTES_OF_A_DECISION: usize = 100_000;
const ROWS_OF_A_PLACE: usize = 250;
const BYTES_OF_A_PLACE: usize = 350_000;
/// Events that are gone through to find what leads to a gap.
const LEADING_MAX: usize = 2000;
/// Events that are gone through to find where the missing history begins, with each part that is placed: the room waits
/// meanwhile. What lies behind is left to the next part.
const FRONTIER_MAX: usize = 200;

/// An event of the past, with the state before it where a peer told that.
#[derive(Clone, Debug)]
pub struct Filling {
    pub event: VerifiedPdu,
    pub state_before: Option<Vec<OwnedEventId>>,
}

/// What became of an attempt to fill a gap in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filled {
    Done {
        /// Events that have a place in the timeline now.
        placed: usize,
        /// The gap that is left, further back.
        gap: Option<Gap>,
    },
    /// Nothing has a place yet: come again with the state before these, or without them.
    NeedsState(Vec<OwnedEventId>),
    /// Nothing has a place yet: come again when these are held as outliers.
    Missing(Vec<OwnedEventId>),
}

impl Rooms {
    /// Fills a gap in with events that a peer gave, in any order.
    pub async fn receive_backfill(
        &self,
        room: &RoomId,
        gap: TimelineOrder,
        events: &[Filling],
    ) -> Result<Filled, WriteError> {
        let room = self.room(room).await?.ok_or(WriteError::UnknownRoom)?;
        let events = &events[..events.len().min(BACKFILL_MAX)];
        let events: Vec<&Filling> =
            events.iter().filter(|filling| filling.event.pdu().room_id() == room.room_id).collect();
        let leading = self.leading(&room, gap, &events).await?;
        let events: Vec<&Filling> =
            events.into_iter().filter(|filling| leading.contains(filling.event.pdu().event_id())).collect();
        let order = references_first(events.len(), |place| events[place].event.pdu());
        let mut fill = Vec::with_capacity(events.len());
        for place in order {
            let Filling { event, state_before } = events[place];
            let mut told = None;
            // Where it was decided before, nothing is to be told.
            let held = self.events().by_id(&room, event.pdu().event_id()).await?;
            if let Some(state) = state_before
                && held.is_none_or(|held| !is_decided(&held))
            {
                match self.hold_state(&room, state, Members::Told).await? {
                    Ok(state) => told = Some(state.snapshot),
                    Err(missing) => return Ok(Filled::Missing(missing)),
                }
            }
            fill.push(FillIn { event, told });
        }
        let mut rest = &fill[..];
        let (mut needs_state, mut missing) = (Vec::new(), BTreeSet::new());
        while !rest.is_empty() {
            let decided = self.decide(&room, &DecideSome(rest), &Commit::new()).await?.output;
            rest = &rest[decided.count..];
            needs_state.extend(decided.needs_state);
            missing.extend(decided.missing);
        }
        let given: HashSet<&EventId> = fill.iter().map(|fill| fill.event.pdu().event_id()).collect();
        missing.retain(|event| !given.contains(&**event));
        if !missing.is_empty() {
            return Ok(Filled::Missing(missing.into_iter().collect()));
        }
        if !needs_state.is_empty() {
            return Ok(Filled::NeedsState(needs_state));
        }
        let mut ids: Vec<OwnedEventId> =
            fill.iter().map(|fill| fill.event.pdu().event_id().to_owned()).collect();
        // The newest first.
        ids.reverse();
        self.place_all(&room, gap, &ids).await
    }

    /// The events from which a gap's last missing events are reached, as far as they are given or were refused.
    async fn leading(
        &self,
        room: &Arc<RoomInfo>,
        gap: TimelineOrder,
        given: &[&Filling],
    ) -> Result<HashSet<OwnedEventId>, WriteError> {
        self.settled(room.sn).await;
        let Some((_, row)) = self.gap_of(room.sn, gap.anchor).await? else { return Ok(HashSet::new()) };
        let given: HashMap<&EventId, &VerifiedPdu> =
            given.iter().map(|filling| (filling.event.pdu().event_id(), &filling.event)).collect();
        let mut leads: HashSet<OwnedEventId> = row.missing.iter().cloned().collect();
        let mut open = row.missing;
        let mut steps = 0;
        while let Some(id) = open.pop() {
            steps += 1;
            if steps > LEADING_MAX {
                break;
            }
            let prev = match given.get(&*id) {
                Some(event) => event.pdu().prev_events().to_vec(),
                None => match self.events().by_id(room, &id).await? {
                    Some(held) if is_decided(&held) && held.order().is_none() => {
                        held.pdu.prev_events().to_vec()
                    }
                    _ => continue,
                },
            };
            open.extend(prev.into_iter().filter(|event| leads.insert(event.clone())));
        }
        Ok(leads)
    }

    async fn place_all(
        &self,
        room: &Arc<RoomInfo>,
        gap: TimelineOrder,
        events: &[OwnedEventId],
    ) -> Result<Filled, WriteError> {
        let mut rest = events;
        let mut count = 0;
        loop {
            let act = PlaceSome { gap, events: rest };
            let placed = self.decide(room, &act, &Commit::new()).await?.output;
            count += placed.count;
            self.reader().forget_tail(room.sn);
            rest = &rest[placed.taken..];
            if rest.is_empty() {
                return Ok(Filled::Done { placed: count, gap: placed.gap });
            }
        }
    }
}

struct FillIn<'a> {
    event: &'a VerifiedPdu,
    told: Option<SnapshotId>,
}

/// Decides as many events as fit into a commit.
struct DecideSome<'a>(&'a [FillIn<'a>]);

#[derive(Default)]
struct Decided {
    count: usize,
    needs_state: Vec<OwnedEventId>,
    missing: Vec<OwnedEventId>,
}

#[async_trait]
impl Act for DecideSome<'_> {
    type Output = Decided;
    type Error = WriteError;

    fn waits(&self) -> Waits {
        Waits::ForItsKind
    }

    async fn decide(&self, turn: &mut Turn) -> Result<Decided, WriteError> {
        let mut decided = Decided::default();
        for fill in self.0 {
            if !turn.commit.has_room_for(ROWS_OF_A_DECISION, BYTES_OF_A_DECISION) {
                break;
            }
            decided.count += 1;
            self.fill_in(turn, fill, &mut decided).await?;
        }
        Ok(decided)
    }
}

impl DecideSome<'_> {
    async fn fill_in(
        &self,
        turn: &mut Turn,
        fill: &FillIn<'_>,
        decided: &mut Decided,
    ) -> Result<(), WriteError> {
        let pdu = fill.event.pdu();
        let held = turn.held(pdu.event_id()).await?;
        if held.as_ref().is_some_and(|held| is_decided(held)) {
            return Ok(());
        }
        let auth = match turn.auth_events(pdu).await? {
            Ok(auth) => auth,
            Err(missing) => {
                decided.missing.extend(missing);
                return Ok(());
            }
        };
        let prev = turn.prev_events_that(pdu, is_decided).await?;
        if !prev.missing.is_empty() && fill.told.is_none() {
            // One that follows another of the same answer waits for that one only.
            let mut waits = false;
            for event in &prev.missing {
                waits |= decided.needs_state.contains(event) || self.is_open(event, decided);
            }
            if !waits {
                decided.needs_state.push(pdu.event_id().to_owned());
            }
            return Ok(());
        }
        let verdict = turn.judge_by_auth_events(pdu, &auth).await?;
        let told = fill.told.filter(|_| !prev.missing.is_empty());
        let before = turn.state_before(&prev.held, told).await?;
        let verdict = match verdict {
            Ok(()) => turn.judge_at(pdu, before, &auth).await?,
            refused => refused,
        };
        if let Err(why) = &verdict {
            tracing::debug!(event_id = %pdu.event_id(), %why, "an event of the past is refused");
        }
        let new = NewEvent {
            pdu: pdu.clone(),
            known: held.map(|held| held.sn),
            status: if verdict.is_ok() { Status::Accepted } else { Status::Rejected },
            live: false,
            is_ours: false,
            partial: false,
            hash_failed: fill.event.is_redacted(),
            prev_events: prev.held.iter().map(|event| event.sn).collect(),
            auth_events: auth.iter().map(|event| event.sn).collect(),
            snapshot_before: Some(before),
            replaces: turn.replaced_by(pdu, before).await?,
            sent_by: None,
            also_to: Vec::new(),
            mentions_room_allowed: false,
        };
        turn.store_event(new).await.map(drop)
    }

    /// Whether an event is part of this answer and could not be decided.
    fn is_open(&self, event: &EventId, decided: &Decided) -> bool {
        let given = self.0[..decided.count].iter().any(|fill| fill.event.pdu().event_id() == event);
        given && !decided.needs_state.iter().any(|open| open == event)
    }
}

/// Gives events their places right before a gap, the newest first.
struct PlaceSome<'a> {
    gap: TimelineOrder,
    events: &'a [OwnedEventId],
}

struct PlacedSome {
    taken: usize,
    count: usize,
    gap: Option<Gap>,
}

#[async_trait]
impl Act for PlaceSome<'_> {
    type Output = PlacedSome;
    type Error = WriteError;

    fn waits(&self) -> Waits {
        Waits::ForItsKind
    }

    async fn decide(&self, turn: &mut Turn) -> Result<PlacedSome, WriteError> {
        let room = turn.head.room.sn;
        let mut placed = PlacedSome { taken: self.events.len(), count: 0, gap: None };
        let Some((at, row)) = turn.gap_of(self.gap.anchor).await? else { return Ok(placed) };
        let mut lowest = at;
        // What leads to the gap, as far as it is known: a newer event comes before those that it names.
        let mut leads: HashSet<OwnedEventId> = row.missing.iter().cloned().collect();
        self.add_refused(turn, &mut leads).await?;
        placed.taken = 0;
        for id in self.events {
            if !turn.commit.has_room_for(ROWS_OF_A_PLACE, BYTES_OF_A_PLACE) {
                break;
            }
            placed.taken += 1;
            if !leads.contains(id) {
                continue;
            }
            let Some(event) = turn.held(id).await? else { continue };
            if event.status() == Status::Outlier || event.order().is_some() {
                continue;
            }
            leads.extend(event.pdu.prev_events().iter().cloned());
            if event.status() != Status::Accepted {
                continue;
            }
            let Some(sub) = lowest.sub.checked_sub(1) else { break };
            lowest = TimelineOrder { anchor: at.anchor, sub };
            turn.place(&event, lowest).await?;
            placed.count += 1;
        }
        let missing = turn.frontier(leads).await?;
        // Also where nothing was placed, what came meanwhile is not missing any more.
        turn.delete(&GAPS, &(room, at));
        if !missing.is_empty() {
            turn.open_gap(lowest, &missing);
            placed.gap = Some(Gap { at: lowest, missing });
        }
        Ok(placed)
    }
}

impl PlaceSome<'_> {
    /// Through an event that was refused, those before it lead to the gap too.
    async fn add_refused(&self, turn: &Turn, leads: &mut HashSet<OwnedEventId>) -> Result<(), WriteError> {
        let mut open: Vec<OwnedEventId> = leads.iter().cloned().collect();
        let mut seen = 0;
        while let Some(id) = open.pop() {
            seen += 1;
            if seen > FRONTIER_MAX || leads.len() > 2 * FRONTIER_MAX {
                break;
            }
            let Some(event) = turn.held(&id).await? else { continue };
            let is_known = event.status() == Status::Outlier || event.order().is_some();
            if is_known {
                continue;
            }
            for prev in event.pdu.prev_events() {
                if leads.insert(prev.clone()) {
                    open.push(prev.clone());
                }
            }
        }
        Ok(())
    }
}

impl Turn {
    /// An event of the past gets its place in the timeline, and everything that goes with a place.
    async fn place(&mut self, event: &StoredEvent, order: TimelineOrder) -> Result<(), WriteError> {
        let room = self.head.room.sn;
        let mut status = self.status(event.sn).await?;
        status.order = Some(order);
        self.put_status(event.sn, status);
        let placed = self.event(event.sn).await?;
        let missing = self.prev_events_that(&placed.pdu, is_decided).await?.missing;
        self.note_missing(placed.sn, &missing);
        self.arrived(&placed, Some(order.anchor)).await?;
        if placed.header.kind == DUMMY_EVENT {
            return Ok(());
        }
        let minute = (placed.header.origin_server_ts / 60_000) as u32;
        self.commit.put(&MINUTES, &(room, minute, placed.sn), &());
        let sender = self.intern(&(Kind::new("m.room.member"), placed.header.sender.to_string())).await?;
        let facts = content::facts(placed.header.kind.as_str(), placed.pdu.content_json());
        let placed = self.with_target(placed, &facts).await?;
        self.index_at(&placed, order, sender, &facts, false).await?;
        self.apply_waiting_redactions(&placed).await?;
        self.connect_relations(&placed).await?;
        if placed.header.kind == "m.room.redaction" {
            self.apply_redaction(&placed).await?;
        }
        Ok(())
    }

    /// The event that it relates to may have come between its decision and its place.
    async fn with_target(
        &self,
        event: Arc<StoredEvent>,
        facts: &content::ContentFacts,
    ) -> Result<Arc<StoredEvent>, WriteError> {
        let Some(relates) = &facts.relation else { return Ok(event) };
        let Some(target) = self.event_number(&relates.event_id).await? else { return Ok(event) };
        let mut event = StoredEvent::clone(&event);
        event.header.relation =
            Some(crate::event_row::Relation { rel_type: relates.rel_type.clone(), target: Some(target) });
        Ok(Arc::new(event))
    }

    /// Those of some events that are missing. Through refused events it goes on to the ones before them; such as it does
    /// not come to count as missing.
    async fn frontier(&self, leads: HashSet<OwnedEventId>) -> Result<Vec<OwnedEventId>, WriteError> {
        let mut missing = Vec::new();
        let mut seen = leads.clone();
        let mut open: Vec<OwnedEventId> = leads.into_iter().collect();
        let (mut steps, steps_max) = (0, open.len() + FRONTIER_MAX);
        while let Some(id) = open.pop() {
            steps += 1;
            if steps > steps_max {
                missing.push(id);
                continue;
            }
            let Some(held) = self.held(&id).await? else {
                missing.push(id);
                continue;
            };
            match held.status() {
                Status::Accepted if held.order().is_some() => {}
                // Not in the timeline: one that is accepted is decided, and placed by the next part.
                Status::Accepted | Status::Outlier => missing.push(id),
                Status::Rejected | Status::SoftFailed => {
                    let prev = held.pdu.prev_events().iter().cloned();
                    open.extend(prev.filter(|event| seen.insert(event.clone())));
                }
            }
        }
        missing.sort_unstable();
        Ok(missing)
    }
}
