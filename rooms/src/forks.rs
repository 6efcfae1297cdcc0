//! Rooms with many forward extremities are healed by an event that says nothing.
//! * Each extremity makes every further event dearer: its state is resolved with all others'.
//! * A head keeps so many extremities. The state of further ones, the oldest, is merged: it stays a part of the room's
//!   state until an event of ours follows all of the head, or events of others follow each of them.
//! * The event stands in no timeline; other servers get it as any other. It has as many prev events as any event of
//!   ours, so that several may be needed.

use std::collections::BTreeSet;

use async_trait::async_trait;
use hearth_dag::Draft;
use hearth_store::{Commit, Order};
use ruma::events::TimelineEventType;
use ruma::{OwnedUserId, RoomId, UserId};
use serde_json::value::RawValue;

use crate::errors::WriteError;
use crate::ids::EventSn;
use crate::lane::{Act, Done};
use crate::rooms::Rooms;
use crate::send::Sent;
use crate::tables::{MEMBERS, MERGED_FORKS, Membership, MergedRow};
use crate::turn::Turn;

/// The type of events that only join forks. Clients are not shown them.
pub const DUMMY_EVENT: &str = "org.matrix.dummy_event";
/// A room with more forward extremities is healed.
pub const EXTREMITIES_LEFT_ALONE: usize = 10;
/// Forward extremities that a head keeps.
const EXTREMITIES_MAX: usize = 100;
/// Merged extremities that are known by name. If there are more, the merged state counts until an event of ours follows.
const MERGED_NAMED: usize = 1_000;
/// Events that are made at once: more than it takes for all extremities of a head.
const DUMMIES_MAX: usize = 10;
/// Members among whom one is looked for who may send it.
const SENDERS_LOOKED_AT: usize = 10_000;

impl Rooms {
    /// Joins the forks of a room if there are too many, in the name of a user of ours who may. Says what was sent last.
    ///
    /// To be called whenever a server's events were taken into a room, after each run of its queue: where nothing is
    /// to be done, it reads nothing but the head in memory.
    pub async fn merge_forks(&self, room: &RoomId) -> Result<Option<Sent>, WriteError> {
        let room = self.room(room).await?.ok_or(WriteError::UnknownRoom)?;
        let Done { output, committed } = self.decide(&room, &MergeForks, &Commit::new()).await?;
        Ok(output.map(|appended| Sent {
            event_id: appended.event_id,
            position: committed.map(|committed| committed.resolve(appended.slot)),
        }))
    }
}

struct MergeForks;

#[async_trait]
impl Act for MergeForks {
    type Output = Option<crate::append::Appended>;
    type Error = WriteError;

    async fn decide(&self, turn: &mut Turn) -> Result<Self::Output, WriteError> {
        if !turn.has_too_many_forks() {
            return Ok(None);
        }
        let Some(sender) = sender(turn).await? else { return Ok(None) };
        let mut sent = None;
        for _ in 0..DUMMIES_MAX {
            if !turn.has_too_many_forks() {
                break;
            }
            let content =
                RawValue::from_string("{}".to_owned()).unwrap_or_else(|_| RawValue::NULL.to_owned());
            let (sender, kind) = (sender.clone(), TimelineEventType::from(DUMMY_EVENT));
            let draft = Draft { sender, kind, state_key: None, content, redacts: None };
            sent = match turn.append(draft.into()).await {
                // The next one waits for its turn with the room's policy server.
                Err(WriteError::Unsigned(_)) if sent.is_some() => break,
                appended => Some(appended?),
            };
        }
        Ok(sent)
    }
}

impl Turn {
    fn has_too_many_forks(&self) -> bool {
        self.head.row.extremities.len() > EXTREMITIES_LEFT_ALONE || self.head.merged.is_some()
    }

    /// Takes the oldest extremities out of a head that has too many, and merges their state.
    pub(crate) async fn merge_surplus(&mut self) -> Result<(), WriteError> {
        let surplus = self.head.row.extremities.len().saturating_sub(EXTREMITIES_MAX);
        if surplus == 0 {
            return Ok(());
        }
        let head = self.change_head();
        head.extremities.drain(..surplus);
        let oldest: Vec<EventSn> = head.row.extremities.drain(..surplus).collect();
        let (mut events, mut has_more, mut forks) = match self.head.merged.take() {
            Some(MergedRow { snapshot, events, has_more }) => (events, has_more, vec![snapshot]),
            None => (Vec::new(), false, Vec::new()),
        };
        for event in oldest {
            let stored = self.event(event).await?;
            forks.push(self.state_after(&stored).await?);
            match events.len() < MERGED_NAMED {
                true => events.push(event),
                false => has_more = true,
            }
        }
        let snapshot = self.resolve(forks).await?;
        self.put_merged(MergedRow { snapshot, events, has_more });
        Ok(())
    }

    fn put_merged(&mut self, merged: MergedRow) {
        let room = self.head.room.sn;
        self.put(&MERGED_FORKS, &room, merged.clone());
        self.change_head().merged = Some(merged);
    }

    /// An event follows these: what was merged of them is in the state after it.
    pub(crate) fn follow_merged(&mut self, prev: &BTreeSet<EventSn>) {
        let Some(merged) = self.head.merged.as_ref() else { return };
        if !merged.events.iter().any(|event| prev.contains(event)) {
            return;
        }
        let mut merged = merged.clone();
        merged.events.retain(|event| !prev.contains(event));
        match merged.events.is_empty() && !merged.has_more {
            true => self.forget_merged(),
            false => self.put_merged(merged),
        }
    }

    /// Nothing is merged any more: what counts of it is in the state otherwise.
    pub(crate) fn forget_merged(&mut self) {
        if self.head.merged.is_some() {
            let room = self.head.room.sn;
            self.delete(&MERGED_FORKS, &room);
            self.change_head().merged = None;
        }
    }
}

/// A joined user of ours who may send such an event.
async fn sender(turn: &mut Turn) -> Result<Option<OwnedUserId>, WriteError> {
    let (create, power, _) = turn.facts().await?;
    let needed = power.event(&TimelineEventType::from(DUMMY_EVENT), false);
    let room = turn.head.room.sn;
    let rows = turn
        .rooms
        .store()
        .range(&MEMBERS, MEMBERS.prefix(&(room,)), Order::Forward, SENDERS_LOOKED_AT)
        .await?;
    let joined = rows.into_iter().filter(|(_, row)| row.value.membership == Membership::Join);
    let named = create.creators.iter().chain(power.users().keys()).cloned();
    let members = joined.filter_map(|((_, user), _)| UserId::parse(user).ok());
    for user in named.chain(members).collect::<Vec<_>>() {
        if turn.rooms.is_local(&user)
            && power.user(&user).reaches(needed)
            && turn.membership(&user).await? == Some(Membership::Join)
        {
            return Ok(Some(user));
        }
    }
    Ok(None)
}
