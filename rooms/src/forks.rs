//! Rooms with many forward extremities are healed by an event that says nothing.
//! * Each extremity makes every further event dearer: its state is resolved with all others'.
//! * The event stands in no timeline; other servers get it as any other.

use hearth_dag::Draft;
use hearth_store::{Commit, Order};
use ruma::events::TimelineEventType;
use ruma::{OwnedUserId, RoomId, UserId};
use serde_json::value::RawValue;

use crate::errors::WriteError;
use crate::lane::{Act, Done};
use crate::rooms::Rooms;
use crate::send::Sent;
use crate::tables::{MEMBERS, Membership};
use crate::turn::Turn;

/// The type of events that only join forks. Clients are not shown them.
pub const DUMMY_EVENT: &str = "org.matrix.dummy_event";
/// A room with more forward extremities is healed.
pub const EXTREMITIES_LEFT_ALONE: usize = 10;
/// Members among whom one is looked for who may send it.
const SENDERS_LOOKED_AT: usize = 10_000;

impl Rooms {
    /// Joins the forks of a room if there are too many, in the name of a user of ours who may. Says what was sent.
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

impl Act for MergeForks {
    type Output = Option<crate::append::Appended>;
    type Error = WriteError;

    async fn decide(&self, turn: &mut Turn) -> Result<Self::Output, WriteError> {
        if turn.head.row.extremities.len() <= EXTREMITIES_LEFT_ALONE {
            return Ok(None);
        }
        let Some(sender) = sender(turn).await? else { return Ok(None) };
        let content = RawValue::from_string("{}".to_owned()).unwrap_or_else(|_| RawValue::NULL.to_owned());
        let kind = TimelineEventType::from(DUMMY_EVENT);
        let draft = Draft { sender, kind, state_key: None, content, redacts: None };
        turn.append(draft.into()).await.map(Some)
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
