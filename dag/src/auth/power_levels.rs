//! The rules for changing power levels: nobody hands out, or takes away, more than they have.

use std::collections::{BTreeMap, BTreeSet};

use ruma::{OwnedUserId, UserId};

use crate::{Create, Level, Pdu, PowerLevels, Rejection, RoomRules, power_levels::FIELDS};

/// `current` is what the state's power levels event says, if there is one; `level` the sender's power by it.
pub(super) fn check_power_levels(
    rules: &RoomRules,
    pdu: &Pdu,
    create: &Create,
    current: Option<&PowerLevels>,
    level: Level,
) -> Result<(), Rejection> {
    // If any of the levels are not integers (or, before version 10, strings that are integers), or users has a key
    // that is not a valid user ID, reject.
    let new = pdu.power_levels(rules)?;
    // If the users property contains the sender of the create event or any of the additional creators, reject.
    if rules.creators_have_infinite_power && new.users.keys().any(|user_id| create.is_creator(user_id)) {
        return Err(Rejection::PowerLevelForCreator);
    }
    // If there is no previous m.room.power_levels event in the room, allow.
    let Some(current) = current.map(PowerLevels::listed) else { return Ok(()) };

    // For users_default, events_default, state_default, ban, redact, kick, invite: if they were added, changed or
    // removed and the current or the new value is higher than the sender's power level, reject.
    for (index, field) in FIELDS.into_iter().enumerate() {
        change(field, current.fields[index], new.fields[index], level)?;
    }
    maps(&current.events, &new.events, level)?;
    if rules.inner.authorization.limit_notifications_power_levels {
        maps(&current.notifications, &new.notifications, level)?;
    }
    users(&current.users, &new.users, level, pdu.sender())
}

/// For each entry being added, changed or removed: if the current or the new value is higher than the sender's
/// power level, reject.
fn maps(current: &BTreeMap<String, i64>, new: &BTreeMap<String, i64>, level: Level) -> Result<(), Rejection> {
    let keys: BTreeSet<&String> = current.keys().chain(new.keys()).collect();
    keys.into_iter().try_for_each(|key| change(key, current.get(key).copied(), new.get(key).copied(), level))
}

fn users(
    current: &BTreeMap<OwnedUserId, i64>,
    new: &BTreeMap<OwnedUserId, i64>,
    level: Level,
    sender: &UserId,
) -> Result<(), Rejection> {
    let keys: BTreeSet<&OwnedUserId> = current.keys().chain(new.keys()).collect();
    for user_id in keys {
        let (old, new) = (current.get(user_id).copied(), new.get(user_id).copied());
        // For each entry being changed or removed other than the sender's own: if the current value is greater
        // than or equal to the sender's power level, reject.
        if old != new && user_id != sender && old.is_some_and(|old| Level::Finite(old) >= level) {
            return Err(Rejection::PowerLevelAboveSender { what: user_id.to_string() });
        }
        // For each entry being added or changed: if the new value is greater than the sender's power level, reject.
        if old != new && new.is_some_and(|new| !level.reaches(new)) {
            return Err(Rejection::PowerLevelAboveSender { what: user_id.to_string() });
        }
    }
    Ok(())
}

/// A value that is not there is not higher than anything.
fn change(what: &str, old: Option<i64>, new: Option<i64>, level: Level) -> Result<(), Rejection> {
    let above = |value: Option<i64>| value.is_some_and(|value| !level.reaches(value));
    if old != new && (above(old) || above(new)) {
        return Err(Rejection::PowerLevelAboveSender { what: what.to_owned() });
    }
    Ok(())
}
