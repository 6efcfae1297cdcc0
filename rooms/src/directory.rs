//! Aliases and the list of public rooms: what other rooms and people find a room by.
//! * An alias leads to one room; taking it, losing it and what is said about it in the room are decided in its lane.
//! * Whoever may change the room's canonical alias may also remove any alias of it, and list the room or not.

use async_trait::async_trait;
use hearth_store::{Commit, Order, StoreError};
use ruma::events::TimelineEventType;
use ruma::{OwnedRoomAliasId, OwnedRoomId, OwnedUserId, RoomAliasId, RoomId, UserId};
use serde_json::value::to_raw_value;
use serde_json::{Map, Value};

use crate::errors::WriteError;
use crate::ids::RoomSn;
use crate::lane::Act;
use crate::rooms::Rooms;
use crate::send::{Send, SendError};
use crate::tables::{ALIASES, AliasRow, Membership, PUBLIC_ROOMS, PublicRoomRow, ROOM_ALIASES};
use crate::turn::Turn;

/// Aliases of one room at most.
pub const ALIASES_MAX: usize = 1_000;

#[derive(Debug, Clone, thiserror::Error)]
pub enum AliasError {
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("there is no such alias")]
    Unknown,
    #[error("the alias is taken")]
    Taken,
    #[error("the room has as many aliases as it may have")]
    TooMany,
    #[error("the alias is not one of this server")]
    Elsewhere,
    #[error("only the alias's creator or somebody with power in the room may do this")]
    NotAllowed,
}

impl From<StoreError> for AliasError {
    fn from(error: StoreError) -> Self {
        AliasError::Write(error.into())
    }
}

impl Rooms {
    /// The room that an alias of this server leads to.
    pub async fn resolve_alias(&self, alias: &RoomAliasId) -> Result<Option<OwnedRoomId>, StoreError> {
        let Some(row) = self.store().get(&ALIASES, &alias.to_string()).await? else { return Ok(None) };
        Ok(self.room_of(row.room).await?.map(|room| room.room_id.clone()))
    }

    /// The aliases of this server that lead to a room.
    pub async fn aliases(&self, room: RoomSn) -> Result<Vec<OwnedRoomAliasId>, StoreError> {
        let range = ROOM_ALIASES.prefix(&(room,));
        let rows = self.store().range(&ROOM_ALIASES, range, Order::Forward, ALIASES_MAX).await?;
        Ok(rows.into_iter().filter_map(|((_, alias), ())| RoomAliasId::parse(alias).ok()).collect())
    }

    /// Lets an alias lead to a room.
    pub async fn set_alias(
        &self,
        alias: &RoomAliasId,
        room: &RoomId,
        user: &UserId,
    ) -> Result<(), AliasError> {
        if !self.servers().is_local(alias.server_name()) {
            return Err(AliasError::Elsewhere);
        }
        let room = self.room(room).await?.ok_or(WriteError::UnknownRoom)?;
        let set = SetAlias { alias: alias.to_string(), user: user.to_owned() };
        self.decide(&room, &set, &Commit::new()).await.map(drop)
    }

    /// Removes an alias, also from the room's canonical alias as far as the user may change that.
    pub async fn delete_alias(
        &self,
        alias: &RoomAliasId,
        user: &UserId,
        as_admin: bool,
    ) -> Result<(), AliasError> {
        let row = self.store().get(&ALIASES, &alias.to_string()).await?.ok_or(AliasError::Unknown)?;
        let room = self.room_of(row.room).await?.ok_or(AliasError::Unknown)?;
        let delete = DeleteAlias { alias: alias.to_string(), user: user.to_owned(), as_admin };
        self.decide(&room, &delete, &Commit::new()).await?;
        match self.unname(&room.room_id, alias, user).await {
            // The alias is gone; that the room goes on naming it is for those with power to change.
            Ok(()) | Err(SendError::Write(WriteError::Forbidden(_))) => Ok(()),
            Err(SendError::Write(error)) => Err(error.into()),
            Err(_) => Ok(()),
        }
    }

    /// Takes an alias out of the canonical alias event.
    async fn unname(&self, room_id: &RoomId, alias: &RoomAliasId, user: &UserId) -> Result<(), SendError> {
        let Some(room) = self.room(room_id).await? else { return Ok(()) };
        let Some(head) = self.head(room.sn).await? else { return Ok(()) };
        let kind = "m.room.canonical_alias";
        let event = self.reader().state_event(room.sn, head.value.snapshot, kind, "").await?;
        let Some(mut content) = event.and_then(|event| event.client.content_as::<Map<String, Value>>())
        else {
            return Ok(());
        };
        let before = content.clone();
        content.retain(|field, value| field != "alias" || value.as_str() != Some(alias.as_str()));
        if let Some(Value::Array(others)) = content.get_mut("alt_aliases") {
            others.retain(|other| other.as_str() != Some(alias.as_str()));
        }
        if content == before {
            return Ok(());
        }
        let Ok(content) = to_raw_value(&content) else { return Ok(()) };
        let send = Send {
            room: room_id.to_owned(),
            sender: user.to_owned(),
            kind: TimelineEventType::from(kind),
            state_key: Some(String::new()),
            content,
            redacts: None,
            txn: None,
            timestamp_ms: None,
        };
        self.send(&send, Commit::new()).await.map(drop)
    }

    /// Whether a room is in the list of public rooms.
    pub async fn is_listed(&self, room: RoomSn) -> Result<bool, StoreError> {
        self.store().contains(&PUBLIC_ROOMS, &room).await
    }

    /// Puts a room into the list of public rooms, or takes it out.
    pub async fn set_listed(
        &self,
        room: &RoomId,
        listed: bool,
        user: &UserId,
        as_admin: bool,
    ) -> Result<(), AliasError> {
        let room = self.room(room).await?.ok_or(WriteError::UnknownRoom)?;
        let set = SetListed { listed, user: user.to_owned(), as_admin };
        self.decide(&room, &set, &Commit::new()).await.map(drop)
    }
}

/// Whether a user is in the room and has the power to change its canonical alias.
async fn may_name(turn: &mut Turn, user: &UserId) -> Result<bool, WriteError> {
    let (_, power, _) = turn.facts().await?;
    let joined = turn.membership(user).await? == Some(Membership::Join);
    Ok(joined && power.can_send(user, &TimelineEventType::RoomCanonicalAlias, true))
}

struct SetAlias {
    alias: String,
    user: OwnedUserId,
}

#[async_trait]
impl Act for SetAlias {
    type Output = ();
    type Error = AliasError;

    async fn decide(&self, turn: &mut Turn) -> Result<(), AliasError> {
        if turn.get(&ALIASES, &self.alias).await?.is_some() {
            return Err(AliasError::Taken);
        }
        let room = turn.head.room.sn;
        if turn.rooms.aliases(room).await?.len() >= ALIASES_MAX {
            return Err(AliasError::TooMany);
        }
        turn.commit.expect_absent(&ALIASES, &self.alias);
        turn.put(&ALIASES, &self.alias, AliasRow { room, creator: self.user.clone() });
        turn.put(&ROOM_ALIASES, &(room, self.alias.clone()), ());
        Ok(())
    }
}

struct DeleteAlias {
    alias: String,
    user: OwnedUserId,
    as_admin: bool,
}

#[async_trait]
impl Act for DeleteAlias {
    type Output = ();
    type Error = AliasError;

    async fn decide(&self, turn: &mut Turn) -> Result<(), AliasError> {
        let room = turn.head.room.sn;
        let row = turn.get(&ALIASES, &self.alias).await?.filter(|row| row.room == room);
        let row = row.ok_or(AliasError::Unknown)?;
        if row.creator != self.user && !self.as_admin && !may_name(turn, &self.user).await? {
            return Err(AliasError::NotAllowed);
        }
        turn.delete(&ALIASES, &self.alias);
        turn.delete(&ROOM_ALIASES, &(room, self.alias.clone()));
        Ok(())
    }
}

struct SetListed {
    listed: bool,
    user: OwnedUserId,
    as_admin: bool,
}

#[async_trait]
impl Act for SetListed {
    type Output = ();
    type Error = AliasError;

    async fn decide(&self, turn: &mut Turn) -> Result<(), AliasError> {
        if !self.as_admin && !may_name(turn, &self.user).await? {
            return Err(AliasError::NotAllowed);
        }
        let room = turn.head.room.sn;
        let is_listed = turn.get(&PUBLIC_ROOMS, &room).await?.is_some();
        if self.listed && !is_listed {
            turn.put(&PUBLIC_ROOMS, &room, PublicRoomRow { published_by: Some(self.user.clone()) });
        } else if !self.listed && is_listed {
            turn.delete(&PUBLIC_ROOMS, &room);
        }
        Ok(())
    }
}
