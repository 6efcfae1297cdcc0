//! The path of an event from a peer into a room.
//! * The specification's checks in their order, each giving the next one its type: nothing is skipped.
//! * One commit per event; nothing is visible to readers before it.
//! * A rejected event is stored, to be known again, and is never a forward extremity; nor is a soft-failed one.
//! * Rooms do not fetch: what is missing is said, and the caller comes again. Where it cannot be had, the caller brings
//!   the state before the event instead, and a gap stays in the timeline.

use async_trait::async_trait;
use hearth_dag::{Pdu, Rejection, VerifiedPdu};
use hearth_store::{Commit, StreamPosition};
use parking_lot::Mutex;
use ruma::{EventId, OwnedEventId};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::append::NewEvent;
use crate::content;
use crate::errors::WriteError;
use crate::event_row::SentBy;
use crate::events::StoredEvent;
use crate::ids::{EventSn, SnapshotId, TimelineOrder};
use crate::import::{Members, has_keys};
use crate::lane::{Act, Done, Waits};
use crate::policy::Unsigned;
use crate::rooms::Rooms;
use crate::snapshot::StateChange;
use crate::tables::*;
use crate::turn::Turn;

/// Events that are gone through to find what follows an event, or what a refused one follows. The room waits meanwhile,
/// and little depends on it: an extremity too many stays until the next event follows it.
const FOLLOWERS_LOOKED_AT: usize = 100;
/// How often members are written first because a state differs in more than a commit holds.
const MEMBERS_FIRST_MAX: usize = 8;

/// What became of an event that a peer handed us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    Accepted(StreamPosition),
    /// Held beside the room, because others refer to it.
    Outlier,
    SoftFailed(Option<Rejection>),
    Rejected(Option<Rejection>),
    /// Come again with what the room's policy server says of it.
    NeedsPolicySignature(Box<Unsigned>),
    /// Come again when these are here.
    Missing {
        prev: Vec<OwnedEventId>,
        auth: Vec<OwnedEventId>,
    },
}

impl Rooms {
    /// Takes an event into its room. One that is here already is answered as it was the first time.
    pub async fn receive(&self, pdu: &VerifiedPdu) -> Result<Received, WriteError> {
        self.take_in(&self.on_its_way(pdu), &Commit::new()).await
    }

    /// Keeps an event beside its room: one that others name as an auth event, or as a part of their state.
    pub async fn receive_outlier(&self, pdu: &VerifiedPdu) -> Result<Received, WriteError> {
        self.take_in(&Receive { as_outlier: true, ..self.on_its_way(pdu) }, &Commit::new()).await
    }

    /// Takes an event in whose prev events cannot be had. `state_before` is the state before it as a peer told it; all
    /// its events are held, as outliers at least, or they are named as missing. Of prev events that are here the state
    /// counts too. A gap stays before the event.
    pub async fn receive_with_state(
        &self,
        pdu: &VerifiedPdu,
        state_before: &[OwnedEventId],
    ) -> Result<Received, WriteError> {
        let room = self.room(pdu.pdu().room_id()).await?.ok_or(WriteError::UnknownRoom)?;
        let told = match self.hold_state(&room, state_before, Members::Told).await? {
            Ok(told) => Some(told.snapshot),
            Err(missing) => return Ok(Received::Missing { prev: Vec::new(), auth: missing }),
        };
        self.take_in(&Receive { told, ..self.on_its_way(pdu) }, &Commit::new()).await
    }

    /// Takes an event in that is ours to send to the room's other servers: one that a peer submitted through us, or
    /// one of ours that others had to sign. If it is refused, nothing of it is kept.
    pub(crate) async fn receive_to_send(
        &self,
        pdu: &VerifiedPdu,
        also: &Commit,
    ) -> Result<Received, WriteError> {
        let receive = Receive { ours_to_send: true, ..self.on_its_way(pdu) };
        match self.take_in(&receive, also).await? {
            Received::NeedsPolicySignature(unsigned) => Err(WriteError::Unsigned(unsigned)),
            received => Ok(received),
        }
    }

    fn on_its_way(&self, pdu: &VerifiedPdu) -> Receive {
        Receive::judged(pdu, self.verdicts().map(|verdicts| &**verdicts))
    }

    pub(crate) async fn take_in(&self, receive: &Receive, also: &Commit) -> Result<Received, WriteError> {
        let room = self.room(receive.pdu.room_id()).await?.ok_or(WriteError::UnknownRoom)?;
        if !has_keys(&receive.pdu) {
            return Err(WriteError::Unstorable);
        }
        for _ in 0..MEMBERS_FIRST_MAX {
            let done = self.decide(&room, receive, also).await;
            let members = std::mem::take(&mut *receive.members_first.lock());
            match done {
                Err(WriteError::Busy) if !members.is_empty() => {
                    self.write_members(&room, &members, false).await?;
                }
                done => {
                    let Done { output, committed } = done?;
                    if receive.leaves_late_members.load(Ordering::Relaxed) {
                        self.tell_late_members(&room).await;
                    }
                    return Ok(match (output, committed) {
                        (Received::Accepted(slot), Some(committed)) => {
                            Received::Accepted(committed.resolve(slot))
                        }
                        // It was on its way when it came again; by now it is in the store.
                        (Received::Accepted(slot), None) if slot.is_slot() => {
                            let stored = self.events().by_id(&room, receive.pdu.event_id()).await?;
                            Received::Accepted(stored.map_or(slot, |stored| stored.position))
                        }
                        (output, _) => output,
                    });
                }
            }
        }
        Err(WriteError::Busy)
    }
}

/// An event on its way into a room.
pub(crate) struct Receive {
    pub(crate) pdu: Pdu,
    pub(crate) hash_failed: bool,
    pub(crate) as_outlier: bool,
    /// It goes on from here to the room's other servers.
    pub(crate) ours_to_send: bool,
    /// Of an event of ours, the device and transaction that it came from.
    pub(crate) sent_by: Option<SentBy>,
    /// The room's policy server was asked about it already: it does not recommend it.
    pub(crate) is_refused: bool,
    /// It is in the room for others already, whatever a policy server says.
    pub(crate) is_let_in: bool,
    /// The state before it as a peer told it, where prev events are missing.
    pub(crate) told: Option<SnapshotId>,
    /// What has to be written before this event changes the state.
    pub(crate) members_first: Mutex<Vec<StateChange>>,
    /// Members of ours are to be told after it.
    pub(crate) leaves_late_members: AtomicBool,
}

impl Receive {
    pub(crate) fn of(pdu: &VerifiedPdu) -> Self {
        Receive {
            pdu: pdu.pdu().clone(),
            hash_failed: pdu.is_redacted(),
            as_outlier: false,
            ours_to_send: false,
            sent_by: None,
            is_refused: false,
            is_let_in: false,
            told: None,
            members_first: Mutex::default(),
            leaves_late_members: AtomicBool::new(false),
        }
    }
}

/// All events that it refers to are here, or a peer told the state before it.
struct Connected {
    prev: Vec<Arc<StoredEvent>>,
    missing_prev: Vec<OwnedEventId>,
    auth: Vec<Arc<StoredEvent>>,
}

/// The state before it is known.
struct Placed {
    prev: Vec<EventSn>,
    missing_prev: Vec<OwnedEventId>,
    auth: Vec<Arc<StoredEvent>>,
    before: Option<SnapshotId>,
}

/// Allowed by its auth events, and by the state before it.
struct Allowed {
    placed: Placed,
    before: SnapshotId,
}

/// What a check says: go on, or what becomes of the event.
enum Checked<T> {
    Ok(T),
    Refused(Rejection, Placed),
}

#[async_trait]
impl Act for Receive {
    type Output = Received;
    type Error = WriteError;

    fn anywhere(&self) -> bool {
        self.as_outlier
    }

    fn waits(&self) -> Waits {
        Waits::ForItsKind
    }

    fn looks_for(&self) -> Option<&EventId> {
        Some(self.pdu.event_id())
    }

    async fn decide(&self, turn: &mut Turn) -> Result<Received, WriteError> {
        let held = turn.held(self.pdu.event_id()).await?;
        if let Some(held) = &held {
            self.take_good_copy(turn, held).await?;
            match held.status() {
                Status::Outlier if !self.as_outlier => {}
                Status::Outlier => return Ok(Received::Outlier),
                // Decided with others of the past, and left without a place among them: it has one at the end.
                Status::Accepted if !self.as_outlier && held.order().is_none() => {}
                Status::Accepted => return Ok(Received::Accepted(held.position)),
                Status::SoftFailed => return Ok(Received::SoftFailed(None)),
                // Refused beside the room: the state before it is still to be found, for what follows it.
                Status::Rejected if !self.as_outlier && held.snapshot_before().is_none() => {}
                Status::Rejected => return Ok(Received::Rejected(None)),
            }
        }
        let known = held.map(|held| held.sn);
        let connected = match self.connect(turn).await? {
            Ok(connected) => connected,
            Err(missing) => return Ok(missing),
        };
        if self.as_outlier {
            return self.keep_outlier(turn, connected).await;
        }
        let done = self.go_on(turn, known, connected).await;
        *self.members_first.lock() = std::mem::take(&mut turn.members_first);
        self.leaves_late_members.store(turn.leaves_late_members, Ordering::Relaxed);
        done
    }
}

impl Receive {
    async fn go_on(
        &self,
        turn: &mut Turn,
        known: Option<EventSn>,
        connected: Connected,
    ) -> Result<Received, WriteError> {
        let authorised = match self.authorise(turn, connected).await? {
            Checked::Ok(authorised) => authorised,
            Checked::Refused(why, refused) => return self.reject(turn, known, why, refused).await,
        };
        let allowed = match self.allow(turn, authorised).await? {
            Checked::Ok(allowed) => allowed,
            Checked::Refused(why, refused) => return self.reject(turn, known, why, refused).await,
        };
        // Otherwise, passes authorization rules based on the current state of the room, otherwise it is soft failed.
        let current = turn.head.row.snapshot;
        if current != allowed.before
            && let Err(why) = turn.judge_at(&self.pdu, current, &allowed.placed.auth).await?
        {
            return self.soft_fail(turn, known, why, allowed).await;
        }
        // Is validated by the policy server, if the room is using one, otherwise it is soft failed.
        if !self.is_let_in
            && let Some(unsigned) = turn.lacks_signature(&self.pdu).await?
        {
            return match self.is_refused {
                true => self.soft_fail(turn, known, Rejection::NotRecommended, allowed).await,
                false => Ok(Received::NeedsPolicySignature(Box::new(unsigned))),
            };
        }
        self.accept(turn, known, allowed).await
    }

    /// Finds all that the event refers to, or says what is missing.
    async fn connect(&self, turn: &mut Turn) -> Result<Result<Connected, Received>, WriteError> {
        let (prev, missing_prev) = match self.as_outlier {
            true => (Vec::new(), Vec::new()),
            false => {
                let prev = turn.prev_events(&self.pdu).await?;
                (prev.held, prev.missing)
            }
        };
        let auth = turn.auth_events(&self.pdu).await?;
        let is_placed = missing_prev.is_empty() || self.told.is_some();
        match auth {
            Ok(auth) if is_placed => Ok(Ok(Connected { prev, missing_prev, auth })),
            auth => {
                let prev = if is_placed { Vec::new() } else { missing_prev };
                Ok(Err(Received::Missing { prev, auth: auth.err().unwrap_or_default() }))
            }
        }
    }

    /// Passes authorization rules based on the event's auth events, otherwise it is rejected.
    async fn authorise(&self, turn: &mut Turn, connected: Connected) -> Result<Checked<Placed>, WriteError> {
        let Connected { prev, missing_prev, auth } = connected;
        let verdict = turn.judge_by_auth_events(&self.pdu, &auth).await?;
        // Also of a refused event: it is the state before what follows it.
        let told = self.told.filter(|_| !missing_prev.is_empty());
        let before = turn.state_before(&prev, told).await?;
        let prev = prev.iter().map(|event| event.sn).collect();
        let placed = Placed { prev, missing_prev, auth, before: Some(before) };
        Ok(match verdict {
            Ok(()) => Checked::Ok(placed),
            Err(why) => Checked::Refused(why, placed),
        })
    }

    /// Passes authorization rules based on the state before the event, otherwise it is rejected.
    async fn allow(&self, turn: &mut Turn, placed: Placed) -> Result<Checked<Allowed>, WriteError> {
        let before = placed.before.unwrap_or(SnapshotId::EMPTY);
        Ok(match turn.judge_at(&self.pdu, before, &placed.auth).await? {
            Ok(()) => Checked::Ok(Allowed { placed, before }),
            Err(why) => Checked::Refused(why, placed),
        })
    }

    async fn accept(
        &self,
        turn: &mut Turn,
        known: Option<EventSn>,
        allowed: Allowed,
    ) -> Result<Received, WriteError> {
        let Allowed { placed, before } = allowed;
        let prev = turn.through_refused(&placed.prev).await?;
        let missing = placed.missing_prev.clone();
        let replaces = turn.replaced_by(&self.pdu, before).await?;
        let mentions_room_allowed = turn.may_mention_room(&self.pdu).await?;
        let is_decided_again = match known {
            Some(known) => turn.status(known).await?.snapshot_before.is_some(),
            None => false,
        };
        let new = NewEvent {
            status: Status::Accepted,
            live: true,
            replaces,
            mentions_room_allowed,
            ..self.new_event(turn, known, placed)
        };
        let (stored, slot) = turn.store_event(new).await?;
        let is_followed =
            turn.arrived(&stored, None).await? || (is_decided_again && turn.is_behind_head(&stored).await?);
        if !missing.is_empty() {
            turn.note_missing(stored.sn, &missing);
            turn.open_gap(TimelineOrder::live(slot), &missing);
        }
        turn.move_head(&stored, &prev, is_followed);
        turn.follow_merged(&prev);
        turn.resolve_head(slot).await?;
        turn.apply_waiting_redactions(&stored).await?;
        turn.connect_relations(&stored).await?;
        if stored.header.kind == "m.room.redaction" {
            turn.apply_redaction(&stored).await?;
        }
        turn.settle_residency().await?;
        Ok(Received::Accepted(slot))
    }

    async fn soft_fail(
        &self,
        turn: &mut Turn,
        known: Option<EventSn>,
        why: Rejection,
        allowed: Allowed,
    ) -> Result<Received, WriteError> {
        if self.ours_to_send {
            return Ok(Received::SoftFailed(Some(why)));
        }
        let new = NewEvent { status: Status::SoftFailed, ..self.new_event(turn, known, allowed.placed) };
        let (stored, _) = turn.store_event(new).await?;
        turn.arrived(&stored, None).await?;
        Ok(Received::SoftFailed(Some(why)))
    }

    async fn reject(
        &self,
        turn: &mut Turn,
        known: Option<EventSn>,
        why: Rejection,
        refused: Placed,
    ) -> Result<Received, WriteError> {
        if self.ours_to_send {
            return Ok(Received::Rejected(Some(why)));
        }
        let new = NewEvent { status: Status::Rejected, ..self.new_event(turn, known, refused) };
        let (stored, _) = turn.store_event(new).await?;
        turn.arrived(&stored, None).await?;
        Ok(Received::Rejected(Some(why)))
    }

    async fn keep_outlier(&self, turn: &mut Turn, connected: Connected) -> Result<Received, WriteError> {
        let verdict = turn.judge_by_auth_events(&self.pdu, &connected.auth).await?;
        let beside =
            Placed { prev: Vec::new(), missing_prev: Vec::new(), auth: connected.auth, before: None };
        let new = self.new_event(turn, None, beside);
        match verdict {
            Ok(()) => {
                turn.store_event(new).await?;
                Ok(Received::Outlier)
            }
            Err(why) => {
                turn.store_event(NewEvent { status: Status::Rejected, ..new }).await?;
                Ok(Received::Rejected(Some(why)))
            }
        }
    }

    fn new_event(&self, turn: &Turn, known: Option<EventSn>, placed: Placed) -> NewEvent {
        NewEvent {
            pdu: self.pdu.clone(),
            known,
            status: Status::Outlier,
            live: false,
            is_ours: self.ours_to_send,
            partial: turn.head.row.partial_state && placed.before.is_some(),
            hash_failed: self.hash_failed,
            prev_events: placed.prev,
            auth_events: placed.auth.iter().map(|event| event.sn).collect(),
            snapshot_before: placed.before,
            replaces: None,
            sent_by: self.sent_by.clone(),
            also_to: Vec::new(),
            mentions_room_allowed: false,
        }
    }

    /// A copy whose content hash holds takes the place of one whose did not.
    async fn take_good_copy(&self, turn: &mut Turn, held: &StoredEvent) -> Result<(), WriteError> {
        if !held.header.hash_failed || self.hash_failed || held.is_redacted() {
            return Ok(());
        }
        turn.replace_body(held, &self.pdu).await
    }
}

impl Turn {
    /// The state event whose place an event takes.
    pub(crate) async fn replaced_by(
        &mut self,
        pdu: &Pdu,
        before: SnapshotId,
    ) -> Result<Option<EventSn>, WriteError> {
        let Some(state_key) = pdu.state_key() else { return Ok(None) };
        match self.key_number(&(pdu.kind().into(), state_key.to_owned())).await? {
            Some(key) => Ok(self.snapshots.lookup(before, key).await?),
            None => Ok(None),
        }
    }

    /// Events, and those before them of each that was refused: whatever follows a refused event follows these.
    async fn through_refused(&self, events: &[EventSn]) -> Result<BTreeSet<EventSn>, WriteError> {
        let mut all: BTreeSet<EventSn> = events.iter().copied().collect();
        let mut open = events.to_vec();
        while let Some(next) = open.pop() {
            let next = self.event(next).await?;
            if next.status() != Status::Accepted && all.len() < FOLLOWERS_LOOKED_AT {
                open.extend(next.header.prev_events.iter().filter(|event| all.insert(**event)));
            }
        }
        Ok(all)
    }

    /// Whether an extremity follows an event that was held before it came into the room.
    async fn is_behind_head(&self, event: &StoredEvent) -> Result<bool, WriteError> {
        let mut open = self.head.row.extremities.clone();
        let mut seen: BTreeSet<EventSn> = open.iter().copied().collect();
        while let Some(next) = open.pop() {
            let next = self.event(next).await?;
            if next.header.prev_events.contains(&event.sn) {
                return Ok(true);
            }
            if next.header.depth > event.header.depth && seen.len() < FOLLOWERS_LOOKED_AT {
                open.extend(next.header.prev_events.iter().filter(|event| seen.insert(**event)));
            }
        }
        Ok(false)
    }

    /// Whether an event mentions the whole room and its sender may.
    async fn may_mention_room(&mut self, pdu: &Pdu) -> Result<bool, WriteError> {
        let kind = pdu.kind().to_string();
        if !content::facts(&kind, pdu.content_json()).mentions_room {
            return Ok(false);
        }
        let (_, power, _) = self.facts().await?;
        Ok(power.user(pdu.sender()).reaches(power.notification("room")))
    }

    /// An event takes its place at the head: its prev events are no extremities any more, and it is one, unless
    /// something follows it already.
    pub(crate) fn move_head(&mut self, stored: &StoredEvent, prev: &BTreeSet<EventSn>, is_followed: bool) {
        let head = self.change_head();
        let mut kept: Vec<(EventSn, OwnedEventId)> = head
            .row
            .extremities
            .iter()
            .copied()
            .zip(head.extremities.iter().cloned())
            .filter(|(event, _)| !prev.contains(event))
            .collect();
        if !is_followed || kept.is_empty() {
            kept.push((stored.sn, stored.header.event_id.clone()));
        }
        (head.row.extremities, head.extremities) = kept.into_iter().unzip();
        head.row.depth = head.row.depth.max(stored.header.depth);
    }
}
