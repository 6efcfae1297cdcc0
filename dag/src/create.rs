//! What a room's create event says once and for all.

use ruma::{OwnedEventId, OwnedUserId, UserId};

use crate::{
    Pdu, Rejection, RoomRules,
    canonical::{Object, Value},
};

/// The facts of a create event that authorization needs. Callers keep it beside the room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Create {
    /// The create event.
    pub event_id: OwnedEventId,
    /// Who sent it.
    pub sender: OwnedUserId,
    /// Who joins first: `content.creator` before version 11, since then the sender. `None` if an old room's
    /// creator is not a user ID.
    pub creator: Option<OwnedUserId>,
    /// All creators: the one above, and since version 12 the additional ones.
    pub creators: Vec<OwnedUserId>,
    /// Whether users of other servers than the sender's may take part.
    pub federate: bool,
}

impl Create {
    /// Reads a create event.
    pub fn of(rules: &RoomRules, pdu: &Pdu) -> Result<Self, Rejection> {
        let content = Object::parse(pdu.content_json(), false).map_err(|_| Rejection::MalformedCreate)?;
        let creator = if rules.inner.authorization.use_room_create_sender {
            Some(pdu.sender().to_owned())
        } else {
            content.get("creator").and_then(Value::as_str).and_then(|creator| UserId::parse(creator).ok())
        };
        let mut creators: Vec<OwnedUserId> = creator.iter().cloned().collect();
        if rules.inner.authorization.additional_room_creators
            && let Some(additional) = content.get("additional_creators")
        {
            let additional = additional.as_array().ok_or(Rejection::BadAdditionalCreators)?;
            for user_id in additional {
                let user_id = user_id
                    .as_str()
                    .and_then(|user_id| UserId::parse(user_id).ok())
                    .ok_or(Rejection::BadAdditionalCreators)?;
                if !creators.contains(&user_id) {
                    creators.push(user_id);
                }
            }
        }
        Ok(Self {
            event_id: pdu.event_id().to_owned(),
            sender: pdu.sender().to_owned(),
            creator,
            creators,
            federate: content.get("m.federate") != Some(&Value::Bool(false)),
        })
    }

    /// Whether a user is one of the creators.
    pub fn is_creator(&self, user_id: &UserId) -> bool {
        self.creators.iter().any(|creator| creator == user_id)
    }
}
