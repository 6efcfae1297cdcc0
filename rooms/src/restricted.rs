//! Restricted rooms: who may come in because they are in another room, and which member of ours says so.
//! * Only rooms that this server is in can be looked into; of all others it cannot tell. Of those whose members it was
//!   not told yet it can tell for its own users.

use hearth_dag::{Level, PowerLevels};
use hearth_store::Order;
use ruma::{OwnedRoomId, OwnedUserId, RoomId, UserId};
use serde::Deserialize;
use serde_json::Value;

use crate::errors::WriteError;
use crate::kind::Kind;
use crate::tables::{MEMBERS, Membership, Residency};
use crate::turn::Turn;

/// Members that are looked through for one who may authorise a restricted join.
const AUTHORISERS_LOOKED_AT: usize = 10_000;
/// Rooms of the `allow` list of a join rule that are looked at.
const ALLOWED_ROOMS_MAX: usize = 50;

/// What a room's restriction says to one user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Restricted {
    /// The room is not restricted, or the user is invited or joined.
    No,
    /// The user is in a room that counts, and this member of ours may let them in.
    By(OwnedUserId),
    /// The user is in a room that counts, but no member of ours may let anybody in.
    NobodyMay,
    /// The user is in no room that counts and that we can look into; there are others.
    CannotTell { join_rule: String },
    /// The user is in no room that counts.
    Forbidden { join_rule: String },
}

#[derive(Deserialize, Default)]
struct JoinRule {
    #[serde(default)]
    join_rule: String,
    #[serde(default)]
    allow: Vec<Value>,
}

/// The rooms that a join rule's content names.
fn rooms_of(rule: &JoinRule) -> Vec<OwnedRoomId> {
    let conditions = rule.allow.iter().filter(|condition| condition["type"] == "m.room_membership");
    let rooms = conditions.filter_map(|condition| RoomId::parse(condition["room_id"].as_str()?).ok());
    rooms.take(ALLOWED_ROOMS_MAX).collect()
}

/// The rooms whose members a join rule lets in. None if the rule is another one.
pub(crate) fn allowing_rooms(
    rules: &hearth_dag::RoomRules,
    join_rules: &hearth_dag::Pdu,
) -> Option<(String, Vec<OwnedRoomId>)> {
    let rule: JoinRule = join_rules.content_as().unwrap_or_default();
    let restricted = match rule.join_rule.as_str() {
        "restricted" => rules.restricted_join_rule,
        "knock_restricted" => rules.knock_restricted_join_rule,
        _ => false,
    };
    restricted.then(|| {
        let rooms = rooms_of(&rule);
        (rule.join_rule, rooms)
    })
}

impl Turn {
    /// Whether and how a user comes into the room because of another one.
    pub(crate) async fn restricted_join(&mut self, user: &UserId) -> Result<Restricted, WriteError> {
        let room = self.room();
        if matches!(self.membership(user).await?, Some(Membership::Invite | Membership::Join)) {
            return Ok(Restricted::No);
        }
        let Some(event) = self.state(&Kind::new("m.room.join_rules"), "").await? else {
            return Ok(Restricted::No);
        };
        let Some((join_rule, allowing)) = allowing_rooms(room.rules, &event.pdu) else {
            return Ok(Restricted::No);
        };
        let mut unknown = false;
        for other in allowing {
            let Some(other) = self.rooms.room(&other).await? else {
                unknown = true;
                continue;
            };
            let head = self.rooms.head(other.sn).await?;
            let is_known = match head.map(|head| head.value.residency) {
                Some(Residency::Resident) => true,
                // Of a partial state it is known which of our own users are joined, not which of the others.
                Some(Residency::Partial) => self.rooms.is_local(user),
                _ => false,
            };
            if !is_known {
                unknown = true;
            } else if self.rooms.is_joined(user, other.sn).await? {
                return Ok(self.authoriser().await?.map_or(Restricted::NobodyMay, Restricted::By));
            }
        }
        Ok(if unknown { Restricted::CannotTell { join_rule } } else { Restricted::Forbidden { join_rule } })
    }

    /// A member of ours who may let others in.
    async fn authoriser(&mut self) -> Result<Option<OwnedUserId>, WriteError> {
        let (create, power, _) = self.facts().await?;
        let rooms = self.rooms.clone();
        let may = |user: &UserId, power: &PowerLevels| {
            rooms.is_local(user) && power.user(user) >= Level::Finite(power.invite())
        };
        let named: Vec<OwnedUserId> = create.creators.iter().chain(power.users().keys()).cloned().collect();
        for user in named {
            if may(&user, &power) && self.membership(&user).await? == Some(Membership::Join) {
                return Ok(Some(user));
            }
        }
        if Level::Finite(power.users_default()) < Level::Finite(power.invite()) {
            return Ok(None);
        }
        // Where everybody may invite, any member does.
        let members = MEMBERS.prefix(&self.head.room.sn);
        let rows = rooms.store().range(&MEMBERS, members, Order::Forward, AUTHORISERS_LOOKED_AT).await?;
        for ((_, user), row) in rows {
            let Ok(user) = UserId::parse(user) else { continue };
            if row.value.membership == Membership::Join
                && may(&user, &power)
                && self.membership(&user).await? == Some(Membership::Join)
            {
                return Ok(Some(user));
            }
        }
        Ok(None)
    }
}
