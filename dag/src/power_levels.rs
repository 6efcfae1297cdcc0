//! Who may do what: the power levels event, read once.
//! * A value to keep: reading it costs microseconds per thousand users, asking it almost nothing. While one is kept, the
//!   same event is not read again for others.
//! * It knows the creators, and what holds in a room without a power levels event.

use std::{collections::BTreeMap, sync::Arc};

use ruma::{OwnedUserId, UserId, events::TimelineEventType};

use crate::{
    Create, Pdu, PowerLevelFormat, Rejection, RoomRules,
    canonical::{Object, Value},
};

/// A user's power. Creators' is infinite since version 12.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// A number.
    Finite(i64),
    /// Above every number.
    Infinite,
}

impl Level {
    /// The number, infinite as the largest integer that JSON can carry.
    pub fn as_integer(self) -> i64 {
        match self {
            Self::Finite(level) => level,
            Self::Infinite => crate::limits::MAX_SAFE_INTEGER,
        }
    }

    /// Whether this suffices where `needed` is needed.
    pub fn reaches(self, needed: i64) -> bool {
        self >= Self::Finite(needed)
    }
}

/// The fields with one number each, in the order of [`PowerLevels::fields`].
pub(crate) const FIELDS: [&str; 7] =
    ["users_default", "events_default", "state_default", "ban", "redact", "kick", "invite"];
const DEFAULTS: [i64; 7] = [0, 0, 50, 50, 50, 50, 0];
/// What "notifications" defaults to, for each of its keys.
const NOTIFICATION_DEFAULT: i64 = 50;
/// What a creator has before there is a power levels event.
const CREATOR_DEFAULT: i64 = 100;

/// The power levels of a room at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PowerLevels {
    listed: Arc<Listed>,
    /// Those whose power is infinite.
    infinite: Vec<OwnedUserId>,
}

/// What a power levels event says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) fields: [Option<i64>; 7],
    pub(crate) events: BTreeMap<String, i64>,
    pub(crate) users: BTreeMap<OwnedUserId, i64>,
    pub(crate) notifications: BTreeMap<String, i64>,
}

impl PowerLevels {
    /// Reads the room's power levels event, or says what holds without one.
    pub fn of(rules: &RoomRules, create: &Create, event: Option<&Pdu>) -> Result<Self, Rejection> {
        let listed = match event {
            Some(event) => event.power_levels(rules)?,
            None => Arc::new(Listed::without_event(rules, create)),
        };
        let infinite = if rules.creators_have_infinite_power { create.creators.clone() } else { Vec::new() };
        Ok(Self { listed, infinite })
    }

    /// What the event says.
    pub(crate) fn listed(&self) -> &Listed {
        &self.listed
    }

    /// A user's power.
    pub fn user(&self, user_id: &UserId) -> Level {
        if self.infinite.iter().any(|creator| creator == user_id) {
            return Level::Infinite;
        }
        Level::Finite(self.listed.users.get(user_id).copied().unwrap_or_else(|| self.users_default()))
    }

    /// What sending an event of this type needs.
    pub fn event(&self, kind: &TimelineEventType, is_state: bool) -> i64 {
        let default = if is_state { self.state_default() } else { self.events_default() };
        self.listed.events.get(&kind.to_string()).copied().unwrap_or(default)
    }

    /// Whether a user's power suffices to send an event of this type.
    pub fn can_send(&self, user_id: &UserId, kind: &TimelineEventType, is_state: bool) -> bool {
        self.user(user_id).reaches(self.event(kind, is_state))
    }

    /// What users have who are not listed.
    pub fn users_default(&self) -> i64 {
        self.field(0)
    }

    /// What sending an event needs whose type is not listed.
    pub fn events_default(&self) -> i64 {
        self.field(1)
    }

    /// What sending a state event needs whose type is not listed.
    pub fn state_default(&self) -> i64 {
        self.field(2)
    }

    /// What banning needs.
    pub fn ban(&self) -> i64 {
        self.field(3)
    }

    /// What redacting events of others needs.
    pub fn redact(&self) -> i64 {
        self.field(4)
    }

    /// What removing someone needs.
    pub fn kick(&self) -> i64 {
        self.field(5)
    }

    /// What inviting needs.
    pub fn invite(&self) -> i64 {
        self.field(6)
    }

    /// What notifying all of a kind needs, such as `room` for `@room`.
    pub fn notification(&self, key: &str) -> i64 {
        self.listed.notifications.get(key).copied().unwrap_or(NOTIFICATION_DEFAULT)
    }

    /// All notification levels that are set.
    pub fn notifications(&self) -> &BTreeMap<String, i64> {
        &self.listed.notifications
    }

    /// The users that are listed, creators of infinite power not among them.
    pub fn users(&self) -> &BTreeMap<OwnedUserId, i64> {
        &self.listed.users
    }

    /// The users whose power is infinite.
    pub fn infinite_users(&self) -> &[OwnedUserId] {
        &self.infinite
    }

    fn field(&self, index: usize) -> i64 {
        self.listed.fields[index].unwrap_or(DEFAULTS[index])
    }
}

impl Listed {
    /// What holds without an event.
    fn without_event(rules: &RoomRules, create: &Create) -> Self {
        let users = match rules.creators_have_infinite_power {
            true => BTreeMap::new(),
            false => create.creators.iter().map(|creator| (creator.clone(), CREATOR_DEFAULT)).collect(),
        };
        Self { users, ..Self::default() }
    }

    /// Reads the content of a power levels event, without the room's creators.
    pub(crate) fn parse(rules: &RoomRules, content: &str) -> Result<Self, Rejection> {
        let malformed = |field| Rejection::MalformedPowerLevels { field };
        let content = Object::parse(content, false).map_err(|_| malformed("content"))?;
        let mut fields = [None; 7];
        for (field, slot) in FIELDS.into_iter().zip(&mut fields) {
            if let Some(value) = content.get(field) {
                *slot = Some(read(rules, value).ok_or(malformed(field))?);
            }
        }
        let map = |field| -> Result<Vec<(&str, i64)>, Rejection> {
            let Some(value) = content.get(field) else { return Ok(Vec::new()) };
            let pairs = value.as_object().ok_or(malformed(field))?.iter();
            pairs.map(|(key, value)| Ok((key, read(rules, value).ok_or(malformed(field))?))).collect()
        };
        let text = |field| -> Result<BTreeMap<String, i64>, Rejection> {
            Ok(map(field)?.into_iter().map(|(key, level)| (key.to_owned(), level)).collect())
        };
        let users = map("users")?
            .into_iter()
            .map(|(user_id, level)| Ok((UserId::parse(user_id).map_err(|_| malformed("users"))?, level)));
        Ok(Self {
            fields,
            events: text("events")?,
            notifications: text("notifications")?,
            users: users.collect::<Result<_, Rejection>>()?,
        })
    }
}

/// One level, in the format of the room version.
fn read(rules: &RoomRules, value: &Value<'_>) -> Option<i64> {
    match (value, rules.power_level_format) {
        (Value::Integer(level), _) => Some(*level),
        (Value::String(text), PowerLevelFormat::IntegerOrString | PowerLevelFormat::Any) => {
            text.trim().parse().ok()
        }
        (Value::Float(level), PowerLevelFormat::Any) if level.abs() < 9e18 => Some(level.trunc() as i64),
        _ => None,
    }
}
