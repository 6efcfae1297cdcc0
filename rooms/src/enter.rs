//! Entering a room in which we are not: the answer of a resident server to our user's join becomes our room.
//! * Nothing of the answer is believed without the room's rules: each event by its auth events, the join by the state.
//! * All events come in as outliers first; one last commit makes the room ours, and only then readers see it.
//! * Entering twice, at once or again, changes nothing. A room that we had left goes on where it is now: what happened
//!   meanwhile is a gap.

use std::collections::{BTreeSet, HashMap};
use std::ops::ControlFlow;
use std::sync::Arc;

use async_trait::async_trait;
use hearth_dag::{Pdu, Rejection, RoomRules, StateKey, VerifiedPdu, check};
use hearth_store::{Commit, CommitError, StoreError, StreamPosition};
use ruma::events::StateEventType;
use ruma::{OwnedEventId, OwnedRoomId, OwnedServerName, RoomId, RoomVersionId, UserId};

use crate::append::NewEvent;
use crate::errors::WriteError;
use crate::events::RoomInfo;
use crate::head::Head;
use crate::ids::{RoomSn, TimelineOrder};
use crate::import::{CheckedEvents, HeldEntry, HeldState, Members, TOLD_EVENTS_MAX, by_place};
use crate::lane::{Act, Done, Waits};
use crate::late_members::LOCAL_MEMBERS_AT_ONCE;
use crate::receive::{Receive, Received};
use crate::rooms::Rooms;
use crate::seams::on_a_thread;
use crate::snapshot::StateChange;
use crate::tables::*;
use crate::turn::Turn;

/// Bytes of the names of a room's servers that are kept until its members are known.
const SERVERS_BYTES_MAX: usize = 256 * 1024;
/// How often a room is made again because another entry made it meanwhile.
const TRIES: usize = 4;

/// What a resident server answered to the join of one of our users.
#[derive(Clone, Debug)]
pub struct EnterRoom {
    pub room_id: OwnedRoomId,
    pub version: RoomVersionId,
    /// The join, as the resident server accepted it.
    pub join: VerifiedPdu,
    /// The state before the join.
    pub state: Vec<VerifiedPdu>,
    pub auth_chain: Vec<VerifiedPdu>,
    /// The server that answered.
    pub origin: OwnedServerName,
    /// The servers in the room, if members were left out of the state.
    pub members_omitted: Option<Vec<OwnedServerName>>,
}

/// Our user is in the room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entered {
    pub room: RoomSn,
    pub event_id: OwnedEventId,
    /// None if the join had been accepted before.
    pub position: Option<StreamPosition>,
    /// Events of the answer that were refused, with those that built on them.
    pub dropped: usize,
    /// Members are still to be told, see [`Rooms::complete_state`].
    pub is_partial: bool,
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum EnterError {
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("room version {0} is not known")]
    UnsupportedVersion(RoomVersionId),
    #[error("the event is not the join of a user of this server to this room")]
    NotOurJoin,
    #[error("the state has no create event of this room that is allowed")]
    NoCreateEvent,
    #[error("the state has two events for {0:?}")]
    TwoEventsForOneKey(StateKey),
    #[error("more than {TOLD_EVENTS_MAX} events")]
    TooManyEvents,
    /// The state that was told does not let the user in.
    #[error("the join is not allowed: {0}")]
    Refused(Rejection),
}

impl From<StoreError> for EnterError {
    fn from(error: StoreError) -> Self {
        EnterError::Write(error.into())
    }
}

impl EnterRoom {
    /// All checks that need nothing but the answer itself.
    fn check(&self, rules: &RoomRules) -> Result<CheckedEvents, EnterError> {
        if self.state.len() + self.auth_chain.len() > TOLD_EVENTS_MAX {
            return Err(EnterError::TooManyEvents);
        }
        let told = self.state.iter().chain(&self.auth_chain).cloned().collect();
        let checked = CheckedEvents::of(rules, &self.room_id, told);
        let allowed = self.state.iter().filter_map(|event| checked.get(event.pdu().event_id()));
        let mut state = by_place(allowed).map_err(EnterError::TwoEventsForOneKey)?;
        if !state.contains_key(&(StateEventType::RoomCreate, String::new())) {
            return Err(EnterError::NoCreateEvent);
        }
        let join = self.join.pdu();
        checked.check(rules, join).map_err(EnterError::Refused)?;
        if self.members_omitted.is_some() {
            self.add_named_members(&checked, &mut state);
        }
        let at = |kind: &StateEventType, key: &str| state.get(&(kind.clone(), key.to_owned())).cloned();
        check(rules, join, at).map_err(EnterError::Refused)?;
        Ok(checked)
    }

    /// Where members were left out of the state, those that the join names stand in for them.
    fn add_named_members(&self, checked: &CheckedEvents, state: &mut HashMap<StateKey, Pdu>) {
        for event in self.join.pdu().auth_events() {
            let Some(pdu) = checked.get(event) else { continue };
            if let Some(place) = pdu.state_entry().filter(|(kind, _)| *kind == StateEventType::RoomMember) {
                state.entry(place).or_insert_with(|| pdu.clone());
            }
        }
    }

    /// The state before the join, the user's own membership too if it was left out.
    fn state_ids(&self, checked: &CheckedEvents) -> Vec<OwnedEventId> {
        let told = self.state.iter().map(|event| event.pdu().event_id());
        let mut ids: Vec<OwnedEventId> =
            told.filter(|event| checked.get(event).is_some()).map(ToOwned::to_owned).collect();
        if self.members_omitted.is_some() {
            let join = self.join.pdu();
            let own = join.auth_events().iter().filter(|event| {
                checked.get(event).is_some_and(|pdu| pdu.state_entry() == join.state_entry())
            });
            ids.extend(own.cloned());
        }
        ids
    }

    fn user(&self, rooms: &Rooms) -> Result<ruma::OwnedUserId, EnterError> {
        let join = self.join.pdu();
        let user = join.state_key().and_then(|user| UserId::parse(user).ok());
        let is_join = Membership::of(join) == Some(Membership::Join) && join.room_id() == self.room_id;
        user.filter(|user| is_join && user == join.sender() && rooms.is_local(user))
            .ok_or(EnterError::NotOurJoin)
    }
}

impl Rooms {
    /// Makes a room ours that a resident server let one of our users into.
    pub async fn enter_room(&self, enter: EnterRoom) -> Result<Entered, EnterError> {
        let rules = RoomRules::of(&enter.version)
            .ok_or_else(|| EnterError::UnsupportedVersion(enter.version.clone()))?;
        let user = enter.user(self)?;
        let enter = Arc::new(enter);
        let answer = enter.clone();
        let checked = on_a_thread(move || answer.check(rules)).await??;
        let _entry = self.entries().of(&enter.room_id).await;
        let room = self.room_to_enter(&enter.room_id, &enter.version, rules).await?;
        let join = enter.join.pdu();
        let entered = |position, is_partial| Entered {
            room: room.sn,
            event_id: join.event_id().to_owned(),
            position,
            dropped: checked.dropped,
            is_partial,
        };
        if let Some(held) = self.events().by_id(&room, join.event_id()).await?
            && held.status() == Status::Accepted
        {
            self.settled(room.sn).await;
            let head = self.head(room.sn).await?;
            return Ok(entered(None, head.is_some_and(|head| head.value.partial_state)));
        }
        self.import(&room, &checked.events).await?;
        let ids = enter.state_ids(&checked);
        let state = self.hold_state(&room, &ids, Members::Told).await?;
        let state = state.map_err(|_| EnterError::NoCreateEvent)?;
        self.make_members(&room, &state).await?;
        let act = Enter { enter: &enter, user: &user, state: &state };
        let Done { output, committed } = self.decide(&room, &act, &Commit::new()).await?;
        let (slot, is_partial) = match output {
            Entry::Made { slot, is_partial } => (slot, is_partial),
            Entry::Resident => {
                // Another of our users was faster: this is an event like others.
                let position = self.join_as_others(&room, &enter, &ids).await?;
                let head = self.head(room.sn).await?;
                let is_partial = head.is_some_and(|head| head.value.partial_state);
                return Ok(entered(Some(position), is_partial));
            }
        };
        self.tell_late_members(&room).await;
        Ok(entered(committed.map(|committed| committed.resolve(slot)), is_partial))
    }

    /// A join through another server to a room in which we are.
    async fn join_as_others(
        &self,
        room: &Arc<RoomInfo>,
        enter: &EnterRoom,
        state: &[OwnedEventId],
    ) -> Result<StreamPosition, EnterError> {
        let members = if enter.members_omitted.is_some() { Members::Omitted } else { Members::Told };
        let held = self.hold_state(room, state, members).await?.map_err(|_| EnterError::NoCreateEvent)?;
        // A server of the room has let the user in.
        let told = Some(held.snapshot);
        let join = Receive { told, is_let_in: true, ..Receive::of(&enter.join) };
        match self.take_in(&join, &Commit::new()).await? {
            Received::Accepted(position) => Ok(position),
            Received::Rejected(Some(why)) | Received::SoftFailed(Some(why)) => Err(EnterError::Refused(why)),
            _ => Err(EnterError::Write(WriteError::Busy)),
        }
    }

    /// The room of an id, made if nothing is held of it. A version that only an invite told is corrected.
    pub(crate) async fn room_to_enter(
        &self,
        room_id: &RoomId,
        version: &RoomVersionId,
        rules: &'static RoomRules,
    ) -> Result<Arc<RoomInfo>, WriteError> {
        for _ in 0..TRIES {
            if let Some(room) = self.room(room_id).await? {
                if room.version == *version {
                    return Ok(room);
                }
                let right =
                    RoomInfo { sn: room.sn, room_id: room.room_id.clone(), version: version.clone(), rules };
                let right = Arc::new(right);
                self.decide(&room, &CorrectVersion(right.clone()), &Commit::new()).await?;
                self.forget_room(room.sn);
                return Ok(right);
            }
            let sn = self.new_room_number().await?;
            let info = RoomInfo { sn, room_id: room_id.to_owned(), version: version.clone(), rules };
            let mut turn = Turn::new(self.clone(), Head::new(Arc::new(info)));
            turn.change_head();
            let id = room_id.to_string();
            turn.commit.expect_absent(&ROOM_NUMBERS, &id);
            turn.put(&ROOM_NUMBERS, &id, sn);
            turn.put(&ROOMS, &sn, RoomRow { room_id: room_id.to_owned(), version: version.clone() });
            match self.found(turn, Commit::new()).await {
                Ok(_) | Err(CommitError::Conflict) => {}
                Err(CommitError::Store(error)) => return Err(error.into()),
            }
        }
        Err(WriteError::Busy)
    }

    /// Brings the rows of other servers' members to a state, before the room is ours.
    async fn make_members(&self, room: &Arc<RoomInfo>, state: &HeldState) -> Result<(), WriteError> {
        let members = state.entries.iter().filter(|entry| entry.key.is_member());
        let mut changes: HashMap<_, StateChange> = members
            .map(|entry| (entry.key, StateChange { key: entry.key, before: None, after: Some(entry.event) }))
            .collect();
        let walked = self.each_member(room.sn, |_, row| {
            let (key, before) = (row.value.key, Some(row.value.event));
            changes.entry(key).or_insert(StateChange { key, before, after: None });
            ControlFlow::Continue(())
        });
        let _: ControlFlow<()> = walked.await?;
        let mut changes: Vec<StateChange> = changes.into_values().collect();
        changes.sort_unstable();
        self.write_members(room, &changes, true).await
    }
}

struct CorrectVersion(Arc<RoomInfo>);

#[async_trait]
impl Act for CorrectVersion {
    type Output = ();
    type Error = WriteError;

    fn anywhere(&self) -> bool {
        true
    }

    async fn decide(&self, turn: &mut Turn) -> Result<(), WriteError> {
        // Where events are held, they say which version the room has.
        if turn.head.row.residency != Residency::Outside || turn.head.row.next_event > 1 {
            return Err(WriteError::NotResident);
        }
        let row = RoomRow { room_id: self.0.room_id.clone(), version: self.0.version.clone() };
        turn.put(&ROOMS, &self.0.sn, row);
        turn.change_head().room = self.0.clone();
        Ok(())
    }
}

enum Entry {
    Made {
        slot: StreamPosition,
        is_partial: bool,
    },
    /// We are in the room already.
    Resident,
}

/// Makes the room ours.
struct Enter<'a> {
    enter: &'a EnterRoom,
    user: &'a UserId,
    state: &'a HeldState,
}

#[async_trait]
impl Act for Enter<'_> {
    type Output = Entry;
    type Error = WriteError;

    fn anywhere(&self) -> bool {
        true
    }

    fn waits(&self) -> Waits {
        Waits::ForItsKind
    }

    async fn decide(&self, turn: &mut Turn) -> Result<Entry, WriteError> {
        if turn.head.is_resident() {
            return Ok(Entry::Resident);
        }
        let join = self.enter.join.pdu();
        let is_partial = self.enter.members_omitted.is_some();
        let snapshot = self.state.snapshot;
        let known = turn.event_number(join.event_id()).await?;
        let prev = turn.prev_events(join).await?;
        let mut auth_events = Vec::new();
        for event in join.auth_events() {
            auth_events.extend(turn.event_number(event).await?);
        }
        let head = turn.change_head();
        head.row.residency = if is_partial { Residency::Partial } else { Residency::Resident };
        head.row.partial_state = is_partial;
        head.row.snapshot = snapshot;
        head.row.depth = 0;
        (head.row.extremities, head.extremities) = (Vec::new(), Vec::new());
        head.forget_state();
        let replaces = turn.replaced_by(join, snapshot).await?;
        let new = NewEvent {
            pdu: join.clone(),
            known,
            status: Status::Accepted,
            live: true,
            // The server that let us in sends it to all others.
            is_ours: false,
            partial: is_partial,
            hash_failed: self.enter.join.is_redacted(),
            prev_events: prev.held.iter().map(|event| event.sn).collect(),
            auth_events,
            snapshot_before: Some(snapshot),
            replaces,
            sent_by: None,
            also_to: Vec::new(),
            mentions_room_allowed: false,
        };
        let (stored, slot) = turn.store_event(new).await?;
        if !prev.missing.is_empty() {
            turn.note_missing(stored.sn, &prev.missing);
            turn.open_gap(TimelineOrder::live(slot), &prev.missing);
        }
        turn.arrived(&stored, None).await?;
        let mut local = local_members(self.state, self.user);
        for (user, entry) in local.by_ref().take(LOCAL_MEMBERS_AT_ONCE) {
            turn.tell_local_member(user, entry.key, entry.event, slot).await?;
        }
        turn.add_late_members(local.map(|(_, entry)| entry.key).collect()).await?;
        let count =
            |membership| self.state.entries.iter().filter(|e| e.membership == Some(membership)).count();
        let row = &mut turn.change_head().row;
        row.joined = count(Membership::Join) as u32;
        row.invited = count(Membership::Invite) as u32;
        let replaced = match replaces {
            Some(event) => Some(turn.event(event).await?),
            None => None,
        };
        if let Some(key) = stored.header.state_key {
            turn.set_state_event(key, &stored, replaced.as_deref(), slot).await?;
        }
        turn.move_head(&stored, &BTreeSet::new(), false);
        turn.joins_changed = false;
        let room = turn.head.room.sn;
        turn.commit.delete(&OUT_OF_BAND, &(self.user.to_string(), room));
        turn.forget_merged();
        if let Some(servers) = &self.enter.members_omitted {
            let mut bytes = 0;
            let fits = |server: &&OwnedServerName| {
                bytes += server.as_str().len() + 2;
                bytes <= SERVERS_BYTES_MAX
            };
            let servers = servers.iter().take_while(fits).cloned().collect();
            let row = PartialRoomRow { join: stored.sn, origin: self.enter.origin.clone(), servers };
            turn.commit.put(&PARTIAL_ROOMS, &room, &row);
        }
        Ok(Entry::Made { slot, is_partial })
    }
}

/// Users of ours beside the one who enters whom a state speaks of.
fn local_members<'a>(
    state: &'a HeldState,
    user: &'a UserId,
) -> impl Iterator<Item = (&'a UserId, &'a HeldEntry)> {
    let local = state.entries.iter().filter_map(|entry| Some((&**entry.local_user.as_ref()?, entry)));
    local.filter(move |(local, _)| *local != user)
}
