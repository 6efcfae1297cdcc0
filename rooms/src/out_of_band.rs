//! Memberships that come from outside of the room: invites to rooms in which we are not, knocks on them, and their end.
//! * What came with them is all that is known of the room. They are the user's own; no state of a room changes.
//! * Where we are in the room they are events like others, and refused here.
//! * They end by the user's own leave. Of others the rules ask for power in a state that we do not have: whoever takes an
//!   invite back or turns a knock down has to name it, as the rules ask, and has to be of the inviter's server, or of one
//!   whose users have that power as far as the state shows that came along. Signatures are the caller's.
//! * They are decided in the room's lane, so that a room is not entered at the same moment.

use std::collections::BTreeSet;

use async_trait::async_trait;
use hearth_dag::{Pdu, RoomRules, VerifiedPdu};
use hearth_store::{Commit, Positioned, StoreError, StreamPosition};
use ruma::{OwnedRoomId, OwnedUserId, RoomId, RoomVersionId, UserId};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::content::MemberContent;
use crate::errors::WriteError;
use crate::ids::user_topic;
use crate::lane::{Act, Done};
use crate::membership::MembershipError;
use crate::rooms::Rooms;
use crate::tables::*;
use crate::turn::Turn;

/// Stripped state events that are kept of an invite or a knock.
const STRIPPED_EVENTS_MAX: usize = 100;
/// Bytes of them.
const STRIPPED_BYTES_MAX: usize = 256 * 1024;
/// The power that it takes to kick or ban where the power levels do not say.
const REMOVING_LEVEL: i64 = 50;

/// A membership event for a user of ours, with what came along.
#[derive(Clone, Debug)]
pub struct OutOfBand {
    pub room_id: OwnedRoomId,
    /// As the peer says. For the end of an invite or a knock it is not needed.
    pub version: RoomVersionId,
    pub event: VerifiedPdu,
    /// Stripped state events, or whole ones.
    pub state: Vec<Box<RawValue>>,
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum OutOfBandError {
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("room version {0} is not known")]
    UnsupportedVersion(RoomVersionId),
    #[error("the event is not a membership of a user of this server in this room")]
    NotForUs,
    /// Then it is an event of the room, see [`Rooms::receive`].
    #[error("this server is in the room")]
    InRoom,
    /// Nothing is there that it could end, or it does not say that it ends that.
    #[error("there is no such invite or knock")]
    NothingToEnd,
}

impl From<StoreError> for OutOfBandError {
    fn from(error: StoreError) -> Self {
        OutOfBandError::Write(error.into())
    }
}

impl Rooms {
    /// Keeps an invite of, a knock by, or the end of either for a user of ours, in a room in which we are not.
    pub async fn receive_out_of_band(&self, told: &OutOfBand) -> Result<StreamPosition, OutOfBandError> {
        let event = told.event.pdu();
        let user = event.state_key().and_then(|user| UserId::parse(user).ok());
        let user = user.filter(|user| self.is_local(user) && event.room_id() == told.room_id);
        let (user, membership) = user.zip(Membership::of(event)).ok_or(OutOfBandError::NotForUs)?;
        let room = match membership {
            Membership::Invite => self.outside_room(told).await?,
            Membership::Knock if event.sender() == user => self.outside_room(told).await?,
            Membership::Leave | Membership::Ban => {
                self.room(&told.room_id).await?.ok_or(OutOfBandError::NothingToEnd)?
            }
            Membership::Join | Membership::Knock => return Err(OutOfBandError::NotForUs),
        };
        let state = stripped(&told.state);
        let act = Keep { event, membership, user: &user, state };
        let Done { output: slot, committed } = self.decide(&room, &act, &Commit::new()).await?;
        Ok(committed.map_or(slot, |committed| committed.resolve(slot)))
    }

    /// Ends an invite, a knock or a membership in a room in which we are not, and that nobody answers for: only this
    /// user sees it.
    pub async fn leave_out_of_band(&self, user: &UserId, room: &RoomId) -> Result<(), MembershipError> {
        let room = self.room(room).await?.ok_or(MembershipError::NeverThere)?;
        self.decide(&room, &LeaveForOneself(user.to_owned()), &Commit::new()).await.map(drop)
    }

    async fn outside_room(
        &self,
        told: &OutOfBand,
    ) -> Result<std::sync::Arc<crate::events::RoomInfo>, OutOfBandError> {
        let unsupported = || OutOfBandError::UnsupportedVersion(told.version.clone());
        let rules = RoomRules::of(&told.version).ok_or_else(unsupported)?;
        match self.room_to_enter(&told.room_id, &told.version, rules).await {
            // What is held of the room says another version.
            Err(WriteError::NotResident) => Err(unsupported()),
            done => Ok(done?),
        }
    }
}

/// The stripped form of state events; what is none is left out.
fn stripped(events: &[Box<RawValue>]) -> Vec<String> {
    #[derive(Serialize, Deserialize)]
    struct Stripped {
        content: Box<RawValue>,
        sender: OwnedUserId,
        state_key: String,
        #[serde(rename = "type")]
        kind: String,
    }
    let mut bytes = 0;
    let mut kept = Vec::new();
    for event in events.iter().take(STRIPPED_EVENTS_MAX) {
        let Ok(event) = serde_json::from_str::<Stripped>(event.get()) else { continue };
        if !event.content.get().starts_with('{') {
            continue;
        }
        let Ok(event) = serde_json::to_string(&event) else { continue };
        bytes += event.len();
        if bytes > STRIPPED_BYTES_MAX {
            break;
        }
        kept.push(event);
    }
    kept
}

struct Keep<'a> {
    event: &'a Pdu,
    membership: Membership,
    user: &'a UserId,
    state: Vec<String>,
}

#[async_trait]
impl Act for Keep<'_> {
    type Output = StreamPosition;
    type Error = OutOfBandError;

    fn anywhere(&self) -> bool {
        true
    }

    async fn decide(&self, turn: &mut Turn) -> Result<StreamPosition, OutOfBandError> {
        if turn.head.is_resident() {
            return Err(OutOfBandError::InRoom);
        }
        let room = turn.head.room.sn;
        let key = (self.user.to_string(), room);
        let before = turn.get(&MEMBERSHIPS, &key).await?;
        let held = turn.get(&OUT_OF_BAND, &key).await?;
        if let (Some(before), Some(held)) = (&before, &held)
            && held.event_id == self.event.event_id()
            && before.value.membership == self.membership
        {
            return Ok(before.position);
        }
        if matches!(self.membership, Membership::Leave | Membership::Ban) {
            let is_open =
                |row: &&MembershipRow| matches!(row.membership, Membership::Invite | Membership::Knock);
            let open = before.as_ref().map(|row| &row.value).filter(is_open);
            if !open.is_some_and(|open| self.may_end(open, held.as_ref())) {
                return Err(OutOfBandError::NothingToEnd);
            }
        }
        let before = before.map(|row| row.value.membership);
        let content = MemberContent::of(self.event);
        let row = MembershipRow {
            membership: self.membership,
            event: None,
            sender: self.event.sender().to_owned(),
            before,
            forgotten: false,
            is_direct: content.is_direct.unwrap_or(false),
        };
        let kept = OutOfBandRow {
            event_id: self.event.event_id().to_owned(),
            pdu: self.event.json().to_owned(),
            stripped_state: self.state.clone(),
        };
        turn.put(&OUT_OF_BAND, &key, kept);
        Ok(turn.change_own_membership(self.user, row))
    }
}

impl Keep<'_> {
    /// Whether a leave or a ban ends what is open.
    fn may_end(&self, open: &MembershipRow, held: Option<&OutOfBandRow>) -> bool {
        let sender = self.event.sender();
        if sender == self.user {
            return true;
        }
        let is_inviters =
            open.membership == Membership::Invite && open.sender.server_name() == sender.server_name();
        // An event of the room made it, which we have left since.
        let Some(held) = held else { return is_inviters };
        let needed = if self.membership == Membership::Ban { "ban" } else { "kick" };
        let powerful = users_with_power(&held.stripped_state, needed);
        self.event.auth_events().contains(&held.event_id)
            && (is_inviters || powerful.iter().any(|user| user.server_name() == sender.server_name()))
    }
}

/// The users who may remove others, as far as stripped state shows it: where it has no power levels, those who changed
/// the state are taken for such. Nobody needs power to have a membership.
fn users_with_power(stripped: &[String], needed: &str) -> BTreeSet<OwnedUserId> {
    #[derive(Deserialize)]
    struct Shown {
        sender: OwnedUserId,
        #[serde(rename = "type")]
        kind: String,
        content: Value,
    }
    let shown = stripped.iter().filter_map(|event| serde_json::from_str::<Shown>(event).ok());
    let (mut powerful, mut changed) = (BTreeSet::new(), BTreeSet::new());
    let mut levels = None;
    for Shown { sender, kind, content } in shown {
        match kind.as_str() {
            "m.room.member" => {}
            "m.room.create" => {
                let more = content["additional_creators"].as_array().into_iter().flatten();
                powerful.extend(more.filter_map(|user| UserId::parse(user.as_str()?).ok()));
                powerful.insert(sender);
            }
            "m.room.power_levels" => {
                levels = Some(content);
                changed.insert(sender);
            }
            _ => _ = changed.insert(sender),
        }
    }
    // Old rooms have levels as text.
    let level = |value: &Value| value.as_i64().or_else(|| value.as_str()?.trim().parse().ok());
    match levels {
        Some(levels) => {
            let needed = level(&levels[needed]).unwrap_or(REMOVING_LEVEL);
            if level(&levels["users_default"]).unwrap_or(0) >= needed {
                powerful.append(&mut changed);
            }
            let users = levels["users"].as_object().into_iter().flatten();
            let reaching = users.filter(|(_, value)| level(value).is_some_and(|level| level >= needed));
            powerful.extend(reaching.filter_map(|(user, _)| UserId::parse(user.as_str()).ok()));
        }
        None => powerful.append(&mut changed),
    }
    powerful
}

struct LeaveForOneself(OwnedUserId);

#[async_trait]
impl Act for LeaveForOneself {
    type Output = ();
    type Error = MembershipError;

    fn anywhere(&self) -> bool {
        true
    }

    async fn decide(&self, turn: &mut Turn) -> Result<(), MembershipError> {
        if turn.head.is_resident() {
            return Err(MembershipError::InRoom);
        }
        let key = (self.0.to_string(), turn.head.room.sn);
        let row = turn.get(&MEMBERSHIPS, &key).await?.ok_or(MembershipError::NeverThere)?.value;
        if matches!(row.membership, Membership::Leave | Membership::Ban) {
            return Ok(());
        }
        turn.commit.delete(&OUT_OF_BAND, &key);
        let before = Some(row.membership);
        let sender = self.0.clone();
        let left = MembershipRow { membership: Membership::Leave, event: None, sender, before, ..row };
        turn.change_own_membership(&self.0, left);
        Ok(())
    }
}

impl Turn {
    /// The rows of a membership that no event of the room makes.
    fn change_own_membership(&mut self, user: &UserId, row: MembershipRow) -> StreamPosition {
        let room = self.head.room.sn;
        let slot = self.commit.position();
        let change = MembershipChange {
            room,
            membership: row.membership,
            before: row.before,
            forgotten: row.forgotten,
        };
        self.put(&MEMBERSHIPS, &(user.to_string(), room), Positioned { position: slot, value: row });
        self.commit.put(&MEMBERSHIP_CHANGES, &(user.to_string(), slot), &change);
        self.commit.touch(user_topic(user));
        slot
    }
}
