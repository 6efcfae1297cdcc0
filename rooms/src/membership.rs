//! Joining, inviting, leaving, removing, banning, knocking, forgetting.
//! * What is so already is success without a new event.
//! * A membership that came from outside of the room (`OUT_OF_BAND`) can be left when nobody else answers.

use async_trait::async_trait;
use hearth_dag::{Draft, Rejection};
use hearth_store::{Commit, CommitError, Order, Positioned, StoreError, StreamPosition};
use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, UserId};
use serde_json::value::to_raw_value;
use serde_json::{Map, Value, json};

use crate::append::Sending;
use crate::errors::WriteError;
use crate::ids::{RoomSn, user_topic};
use crate::kind::Kind;
use crate::lane::{Act, Done};
use crate::restricted::Restricted;
use crate::rooms::Rooms;
use crate::send::Sent;
use crate::tables::*;
use crate::turn::Turn;

/// Memberships of one user that are looked at.
const MEMBERSHIPS_MAX: usize = 1_000_000;
/// How often an out-of-band change is tried again.
const TRIES: usize = 8;
/// What a member event's content says to servers and clients: no user writes these as they please when they join.
const WITH_A_MEANING: [&str; 8] = [
    "membership",
    "displayname",
    "avatar_url",
    "reason",
    "is_direct",
    "third_party_invite",
    "third_party_signed",
    "join_authorised_via_users_server",
];

/// What a member event says of its user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    pub display_name: Option<String>,
    pub avatar_url: Option<String>,
}

impl Profile {
    /// The content of the user's member event.
    pub fn member_content(&self, membership: &str, reason: Option<&str>) -> Value {
        let mut content = json!({ "membership": membership });
        let fields = [
            ("displayname", self.display_name.as_deref()),
            ("avatar_url", self.avatar_url.as_deref()),
            ("reason", reason),
        ];
        for (field, value) in fields {
            if let Some(value) = value {
                content[field] = json!(value);
            }
        }
        content
    }
}

#[derive(Clone, Debug)]
pub struct Join {
    pub room: OwnedRoomId,
    pub user: OwnedUserId,
    pub profile: Profile,
    pub reason: Option<String>,
    /// What the client adds, for whoever understands it.
    pub custom: Map<String, Value>,
}

impl Join {
    /// What the join says, but for who lets the user in.
    pub fn content(&self) -> Value {
        let mut content = self.custom.clone();
        content.retain(|key, _| !WITH_A_MEANING.contains(&key.as_str()));
        if let Value::Object(known) = self.profile.member_content("join", self.reason.as_deref()) {
            content.extend(known);
        }
        Value::Object(content)
    }
}

/// What became of a join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Joined {
    /// The user is in the room.
    Here(OwnedRoomId),
    /// None of our users is in that room, or none of them may let others in: a resident server has to.
    NotResident,
}

#[derive(Clone, Debug)]
pub struct Invite {
    pub room: OwnedRoomId,
    pub sender: OwnedUserId,
    pub user: OwnedUserId,
    pub profile: Profile,
    pub reason: Option<String>,
    pub is_direct: bool,
}

/// What becomes of another user, or of oneself when leaving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// Leaving, rejecting an invite, retracting a knock: `user` is `sender`.
    Leave,
    Kick,
    Ban,
    Unban,
}

#[derive(Clone, Debug)]
pub struct Remove {
    pub room: OwnedRoomId,
    pub sender: OwnedUserId,
    pub user: OwnedUserId,
    pub removal: Removal,
    pub reason: Option<String>,
}

#[derive(Clone, Debug)]
pub struct Knock {
    pub room: OwnedRoomId,
    pub user: OwnedUserId,
    pub profile: Profile,
    pub reason: Option<String>,
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum MembershipError {
    #[error(transparent)]
    Write(#[from] WriteError),
    /// Invites to users of other servers are signed by these.
    #[error("the user's server has to sign this")]
    NeedsOtherServer,
    #[error("{0} is in the room already")]
    AlreadyJoined(OwnedUserId),
    #[error("{0} is banned from the room")]
    Banned(OwnedUserId),
    #[error("{0} is not in the room")]
    NotInRoom(OwnedUserId),
    #[error("the user is still in the room")]
    StillJoined,
    /// The room itself decides who is in it.
    #[error("this server is in the room")]
    InRoom,
    #[error("the user never had to do with this room")]
    NeverThere,
}

impl From<StoreError> for MembershipError {
    fn from(error: StoreError) -> Self {
        MembershipError::Write(error.into())
    }
}

impl From<Rejection> for MembershipError {
    fn from(rejection: Rejection) -> Self {
        MembershipError::Write(rejection.into())
    }
}

type Written = Option<(OwnedEventId, StreamPosition)>;

impl Rooms {
    pub async fn join(&self, join: &Join, also: Commit) -> Result<Joined, MembershipError> {
        let Some(room) = self.room(&join.room).await? else { return Ok(Joined::NotResident) };
        match self.decide(&room, join, &also).await {
            Ok(_) => Ok(Joined::Here(room.room_id.clone())),
            Err(MembershipError::Write(WriteError::NotResident | WriteError::UnknownRoom)) => {
                Ok(Joined::NotResident)
            }
            Err(refusal) => Err(refusal),
        }
    }

    pub async fn invite(&self, invite: &Invite, also: Commit) -> Result<Option<Sent>, MembershipError> {
        self.change(&invite.room, invite, also).await
    }

    /// Leaves, kicks, bans or lifts a ban.
    pub async fn remove(&self, remove: &Remove, also: Commit) -> Result<Option<Sent>, MembershipError> {
        let done = self.change(&remove.room, remove, also.clone()).await;
        let elsewhere =
            matches!(done, Err(MembershipError::Write(WriteError::NotResident | WriteError::UnknownRoom)));
        if elsewhere && remove.removal == Removal::Leave {
            return Err(MembershipError::NeedsOtherServer);
        }
        done
    }

    pub async fn knock(&self, knock: &Knock, also: Commit) -> Result<Option<Sent>, MembershipError> {
        self.change(&knock.room, knock, also).await
    }

    async fn change<A>(
        &self,
        room: &OwnedRoomId,
        act: &A,
        also: Commit,
    ) -> Result<Option<Sent>, MembershipError>
    where
        A: Act<Output = Written, Error = MembershipError>,
    {
        let room = self.room(room).await?.ok_or(WriteError::UnknownRoom)?;
        let Done { output, committed } = self.decide(&room, act, &also).await?;
        Ok(output.map(|(event_id, slot)| Sent {
            event_id,
            position: committed.map(|committed| committed.resolve(slot)),
        }))
    }

    /// The user does not want to see the room any more.
    pub async fn forget(&self, user: &UserId, room: &ruma::RoomId) -> Result<(), MembershipError> {
        let room = self.room(room).await?.ok_or(MembershipError::NeverThere)?;
        self.change_row(user, room.sn, |row| match row.membership {
            Membership::Leave | Membership::Ban if row.forgotten => Ok(None),
            Membership::Leave | Membership::Ban => Ok(Some(MembershipRow { forgotten: true, ..row })),
            _ => Err(MembershipError::StillJoined),
        })
        .await
    }

    /// Changes a membership row outside of the room's lane.
    async fn change_row(
        &self,
        user: &UserId,
        room: RoomSn,
        change: impl Fn(MembershipRow) -> Result<Option<MembershipRow>, MembershipError>,
    ) -> Result<(), MembershipError> {
        let key = (user.to_string(), room);
        for _ in 0..TRIES {
            self.settled(room).await;
            let held = self.store().get(&MEMBERSHIPS, &key).await?.ok_or(MembershipError::NeverThere)?;
            let Some(row) = change(held.value.clone())? else { return Ok(()) };
            let mut commit = Commit::new();
            let position = commit.position();
            commit.expect(&MEMBERSHIPS, &key, &held);
            let changed = MembershipChange {
                room,
                membership: row.membership,
                before: row.before,
                forgotten: row.forgotten,
            };
            commit.put(&MEMBERSHIPS, &key, &Positioned { position, value: row });
            commit.put(&MEMBERSHIP_CHANGES, &(user.to_string(), position), &changed);
            commit.touch(user_topic(user));
            match self.store().commit(commit).await {
                Ok(_) => return Ok(()),
                Err(CommitError::Conflict) => {}
                Err(CommitError::Store(error)) => return Err(error.into()),
            }
        }
        Err(WriteError::Busy.into())
    }

    /// Writes a user's new profile into one room that they are joined to. Nothing if it says so already.
    pub async fn update_profile(
        &self,
        user: &UserId,
        room: RoomSn,
        profile: &Profile,
    ) -> Result<Option<Sent>, MembershipError> {
        let room = self.room_of(room).await?.ok_or(WriteError::UnknownRoom)?;
        let update = UpdateProfile { user: user.to_owned(), profile: profile.clone() };
        let Done { output, committed } = self.decide(&room, &update, &Commit::new()).await?;
        Ok(output.map(|(event_id, slot)| Sent {
            event_id,
            position: committed.map(|committed| committed.resolve(slot)),
        }))
    }

    /// The rooms that a user is joined to.
    pub async fn joined_rooms(&self, user: &UserId) -> Result<Vec<RoomSn>, StoreError> {
        let rows = self.memberships(user).await?;
        let joined = rows.into_iter().filter(|(_, row)| row.value.membership == Membership::Join);
        Ok(joined.map(|(room, _)| room).collect())
    }

    /// All of a user's memberships, forgotten ones too.
    pub async fn memberships(
        &self,
        user: &UserId,
    ) -> Result<Vec<(RoomSn, Positioned<MembershipRow>)>, StoreError> {
        let range = MEMBERSHIPS.prefix(&user.to_string());
        let rows = self.store().range(&MEMBERSHIPS, range, Order::Forward, MEMBERSHIPS_MAX).await?;
        Ok(rows.into_iter().map(|((_, room), row)| (room, row)).collect())
    }
}

/// Makes a member event.
async fn send_member(
    turn: &mut Turn,
    sender: &UserId,
    user: &UserId,
    content: &Value,
) -> Result<Written, MembershipError> {
    let content = to_raw_value(content).map_err(|_| Rejection::MalformedMember)?;
    let appended = turn.append(Sending::from(Draft::member(sender, user, content))).await?;
    Ok(Some((appended.event_id, appended.slot)))
}

#[async_trait]
impl Act for Join {
    type Output = ();
    type Error = MembershipError;

    async fn decide(&self, turn: &mut Turn) -> Result<(), MembershipError> {
        let membership = turn.membership(&self.user).await?;
        match membership {
            Some(Membership::Join) => return Ok(()),
            Some(Membership::Ban) => return Err(MembershipError::Banned(self.user.clone())),
            _ => {}
        }
        let mut content = self.content();
        match turn.restricted_join(&self.user).await? {
            Restricted::No => {}
            Restricted::By(authoriser) => content["join_authorised_via_users_server"] = json!(authoriser),
            Restricted::NobodyMay => return Err(WriteError::NotResident.into()),
            // Into the rooms of our own users we can look: whatever else counts, they are not there.
            Restricted::CannotTell { join_rule } | Restricted::Forbidden { join_rule } => {
                return Err(Rejection::JoinRuleForbids { join_rule }.into());
            }
        }
        send_member(turn, &self.user, &self.user, &content).await.map(drop)
    }
}

impl Invite {
    /// What the invite says, if the user can be invited at all.
    pub(crate) async fn content(&self, turn: &mut Turn) -> Result<Value, MembershipError> {
        if turn.membership(&self.sender).await? != Some(Membership::Join) {
            return Err(Rejection::SenderNotJoined(self.sender.clone()).into());
        }
        match turn.membership(&self.user).await? {
            Some(Membership::Join) => return Err(MembershipError::AlreadyJoined(self.user.clone())),
            Some(Membership::Ban) => return Err(MembershipError::Banned(self.user.clone())),
            _ => {}
        }
        let mut content = self.profile.member_content("invite", self.reason.as_deref());
        if self.is_direct {
            content["is_direct"] = Value::Bool(true);
        }
        Ok(content)
    }
}

#[async_trait]
impl Act for Invite {
    type Output = Written;
    type Error = MembershipError;

    async fn decide(&self, turn: &mut Turn) -> Result<Written, MembershipError> {
        let content = self.content(turn).await?;
        if !turn.rooms.is_local(&self.user) {
            return Err(MembershipError::NeedsOtherServer);
        }
        send_member(turn, &self.sender, &self.user, &content).await
    }
}

#[async_trait]
impl Act for Remove {
    type Output = Written;
    type Error = MembershipError;

    async fn decide(&self, turn: &mut Turn) -> Result<Written, MembershipError> {
        let membership = turn.membership(&self.user).await?;
        let itself = self.sender == self.user;
        if !itself && turn.membership(&self.sender).await? != Some(Membership::Join) {
            return Err(Rejection::SenderNotJoined(self.sender.clone()).into());
        }
        let target = match (self.removal, membership) {
            (Removal::Leave, Some(Membership::Leave)) => return Ok(None),
            (Removal::Leave, None) => return Err(MembershipError::NeverThere),
            (Removal::Leave, Some(Membership::Ban)) => {
                return Err(MembershipError::Banned(self.user.clone()));
            }
            (Removal::Leave, Some(_)) => "leave",
            // Kicking whoever is not there, banned ones included, is an error; lifting a ban that is none too.
            (Removal::Kick, Some(Membership::Join | Membership::Invite | Membership::Knock)) => "leave",
            (Removal::Kick, _) => return Err(MembershipError::NotInRoom(self.user.clone())),
            (Removal::Unban, Some(Membership::Ban)) => "leave",
            (Removal::Unban, _) => return Err(MembershipError::NotInRoom(self.user.clone())),
            (Removal::Ban, Some(Membership::Ban)) => return Ok(None),
            (Removal::Ban, _) => "ban",
        };
        let content = Profile::default().member_content(target, self.reason.as_deref());
        send_member(turn, &self.sender, &self.user, &content).await
    }
}

#[async_trait]
impl Act for Knock {
    type Output = Written;
    type Error = MembershipError;

    async fn decide(&self, turn: &mut Turn) -> Result<Written, MembershipError> {
        match turn.membership(&self.user).await? {
            Some(Membership::Knock) => return Ok(None),
            Some(Membership::Join) => return Err(MembershipError::AlreadyJoined(self.user.clone())),
            Some(Membership::Ban) => return Err(MembershipError::Banned(self.user.clone())),
            _ => {}
        }
        let content = self.profile.member_content("knock", self.reason.as_deref());
        send_member(turn, &self.user, &self.user, &content).await
    }
}

struct UpdateProfile {
    user: OwnedUserId,
    profile: Profile,
}

#[async_trait]
impl Act for UpdateProfile {
    type Output = Written;
    type Error = MembershipError;

    async fn decide(&self, turn: &mut Turn) -> Result<Written, MembershipError> {
        let member = turn.state(&Kind::new("m.room.member"), self.user.as_str()).await?;
        let Some(member) = member else { return Ok(None) };
        if Membership::of(&member.pdu) != Some(Membership::Join) {
            return Ok(None);
        }
        let mut content: serde_json::Map<String, Value> = member.pdu.content_as().unwrap_or_default();
        let before = content.clone();
        for (field, value) in
            [("displayname", &self.profile.display_name), ("avatar_url", &self.profile.avatar_url)]
        {
            match value {
                Some(value) => drop(content.insert(field.to_owned(), json!(value))),
                None => drop(content.remove(field)),
            }
        }
        if content == before {
            return Ok(None);
        }
        // These speak of the join, which is past.
        for field in ["reason", "join_authorised_via_users_server", "is_direct", "third_party_invite"] {
            content.remove(field);
        }
        send_member(turn, &self.user, &self.user, &Value::Object(content)).await
    }
}
