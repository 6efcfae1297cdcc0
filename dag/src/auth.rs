//! The authorization rules: may this event stand, given that state?
//! * [`check_auth_events`] looks at the event's own auth events, once, when the event arrives.
//! * [`check`] looks at a state: that of the auth events, the one before the event, the room's current one.
//! * Every refusal is a [`Rejection`]; above each stands what the specification says.

mod member;
mod power_levels;

use ruma::{
    EventId, UserId,
    events::{StateEventType, TimelineEventType, room::member::MembershipState},
};

use crate::{
    Create, Level, Pdu, PowerAction, PowerLevels, Rejection, RoomRules, StateKey,
    canonical::{Object, Value},
    pdu::create_event_of_room,
};

/// What a state is asked for during a check: the event at a type and a state key.
pub trait State {
    /// The event at this place of the state.
    fn event(&self, kind: &StateEventType, state_key: &str) -> Option<Pdu>;
}

impl<F: Fn(&StateEventType, &str) -> Option<Pdu>> State for F {
    fn event(&self, kind: &StateEventType, state_key: &str) -> Option<Pdu> {
        self(kind, state_key)
    }
}

/// The state events that an event's auth events are chosen from.
pub fn auth_keys(
    rules: &RoomRules,
    kind: &TimelineEventType,
    sender: &UserId,
    state_key: Option<&str>,
    content: &str,
) -> Result<Vec<StateKey>, Rejection> {
    if *kind == TimelineEventType::RoomCreate {
        return Ok(Vec::new());
    }
    let mut keys = Vec::with_capacity(5);
    if !rules.room_id_is_create_event {
        keys.push((StateEventType::RoomCreate, String::new()));
    }
    keys.push((StateEventType::RoomPowerLevels, String::new()));
    keys.push((StateEventType::RoomMember, sender.to_string()));
    if *kind != TimelineEventType::RoomMember {
        return Ok(keys);
    }
    let target = state_key.ok_or(Rejection::MalformedMember)?;
    if target != sender {
        keys.push((StateEventType::RoomMember, target.to_owned()));
    }
    let content = Object::parse(content, false).map_err(|_| Rejection::MalformedMember)?;
    let membership = content.get("membership").and_then(Value::as_str).ok_or(Rejection::MalformedMember)?;
    if matches!(membership, "join" | "invite" | "knock") {
        keys.push((StateEventType::RoomJoinRules, String::new()));
    }
    if membership == "invite"
        && let Some(invite) = content.get("third_party_invite")
    {
        let token = member::third_party_token(invite)?;
        keys.push((StateEventType::RoomThirdPartyInvite, token.to_owned()));
    }
    if membership == "join"
        && rules.restricted_join_rule
        && let Some(authorising) = content.get("join_authorised_via_users_server")
    {
        let authorising = authorising.as_str().ok_or(Rejection::MalformedMember)?;
        let key = (StateEventType::RoomMember, authorising.to_owned());
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    Ok(keys)
}

/// The rules that do not depend on any state: those for the create event, and those for the list of auth events.
/// `fetch` gives an event of the room and whether it was rejected.
pub fn check_auth_events(
    rules: &RoomRules,
    pdu: &Pdu,
    fetch: impl Fn(&EventId) -> Option<(Pdu, bool)>,
) -> Result<(), Rejection> {
    if *pdu.kind() == TimelineEventType::RoomCreate {
        return check_create(rules, pdu);
    }
    let expected = auth_keys(rules, pdu.kind(), pdu.sender(), pdu.state_key(), pdu.content_json())?;
    let mut seen: Vec<StateKey> = Vec::with_capacity(expected.len());
    for event_id in pdu.auth_events() {
        let (auth_event, rejected) =
            fetch(event_id).ok_or_else(|| Rejection::UnknownAuthEvent(event_id.clone()))?;
        // If any event in auth_events has a room_id which does not match that of the event, reject.
        if auth_event.room_id() != pdu.room_id() {
            return Err(Rejection::AuthEventOfOtherRoom(event_id.clone()));
        }
        // If there are entries whose type and state_key don't match those specified by the auth events selection
        // algorithm, reject.
        let key = auth_event
            .state_entry()
            .filter(|key| expected.contains(key))
            .ok_or_else(|| Rejection::UnexpectedAuthEvent(event_id.clone()))?;
        // If there are duplicate entries for a given type and state_key pair, reject.
        if seen.contains(&key) {
            return Err(Rejection::DuplicateAuthEvent(event_id.clone()));
        }
        // If there are entries which were themselves rejected under the checks performed on receipt of a PDU, reject.
        if rejected {
            return Err(Rejection::RejectedAuthEvent(event_id.clone()));
        }
        seen.push(key);
    }
    if rules.room_id_is_create_event {
        // The room_id must be the reference hash of an accepted m.room.create event.
        let create = create_event_of_room(pdu.room_id()).ok_or(Rejection::NoCreateEvent)?;
        let (create, rejected) = fetch(&create).ok_or(Rejection::NoCreateEvent)?;
        if *create.kind() != TimelineEventType::RoomCreate {
            return Err(Rejection::NoCreateEvent);
        }
        if rejected {
            return Err(Rejection::RejectedCreateEvent);
        }
    } else if !seen.iter().any(|(kind, _)| *kind == StateEventType::RoomCreate) {
        // If there is no m.room.create event among the entries, reject.
        return Err(Rejection::NoCreateEvent);
    }
    Ok(())
}

/// The rules for the create event.
fn check_create(rules: &RoomRules, pdu: &Pdu) -> Result<(), Rejection> {
    // If it has any prev_events, reject.
    if !pdu.prev_events().is_empty() {
        return Err(Rejection::CreateWithPrevEvents);
    }
    // If the domain of the room_id does not match the domain of the sender, reject. (Since version 12 there is
    // no room_id, which the event's format shows.)
    if !rules.room_id_is_create_event && pdu.room_id().server_name() != Some(pdu.sender().server_name()) {
        return Err(Rejection::CreateForOtherServer);
    }
    let content = Object::parse(pdu.content_json(), false).map_err(|_| Rejection::MalformedCreate)?;
    // If content.room_version is present and is not a recognised version, reject.
    let version = content.get("room_version").map_or(Some("1"), Value::as_str);
    if version != Some(rules.version.as_str()) {
        return Err(Rejection::WrongRoomVersion);
    }
    // If content has no creator property, reject.
    if !rules.inner.authorization.use_room_create_sender && content.get("creator").is_none() {
        return Err(Rejection::NoCreator);
    }
    // If additional_creators is present and is not an array of strings where each is a valid user ID, reject.
    Create::of(rules, pdu).map(drop)
}

/// The rules that depend on a state.
pub fn check(rules: &RoomRules, pdu: &Pdu, state: impl State) -> Result<(), Rejection> {
    if *pdu.kind() == TimelineEventType::RoomCreate {
        return Ok(());
    }
    let create = state.event(&StateEventType::RoomCreate, "").ok_or(Rejection::NoCreateEvent)?;
    let create = Create::of(rules, &create)?;
    let power_levels = state.event(&StateEventType::RoomPowerLevels, "");
    let power = PowerLevels::of(rules, &create, power_levels.as_ref())?;
    check_with(rules, pdu, &create, &power, power_levels.is_some(), state)
}

/// The same for callers that keep what the create event and the power levels event say. `state` is then asked for
/// members, the join rules and third-party invites only; `has_power_levels` says whether it has a power levels event.
pub fn check_with(
    rules: &RoomRules,
    pdu: &Pdu,
    create: &Create,
    power: &PowerLevels,
    has_power_levels: bool,
    state: impl State,
) -> Result<(), Rejection> {
    if *pdu.kind() == TimelineEventType::RoomCreate {
        return Ok(());
    }
    let sender = pdu.sender();
    // If the create event's content has m.federate set to false, and the domain of the sender does not match the
    // domain of the create event's sender, reject.
    if !create.federate && create.sender.server_name() != sender.server_name() {
        return Err(Rejection::NotFederated);
    }
    // If type is m.room.aliases: if event has no state_key or the sender's domain doesn't match it, reject;
    // otherwise allow.
    if rules.inner.authorization.special_case_room_aliases && *pdu.kind() == "m.room.aliases".into() {
        let matches = pdu.state_key() == Some(sender.server_name().as_str());
        return if matches { Ok(()) } else { Err(Rejection::AliasesOfOtherServer) };
    }
    if *pdu.kind() == TimelineEventType::RoomMember {
        return member::check_member(rules, pdu, create, power, &state);
    }
    // If the sender's current membership state is not join, reject.
    if membership_of(&state, sender) != MembershipState::Join {
        return Err(Rejection::SenderNotJoined(sender.to_owned()));
    }
    let level = power.user(sender);
    // If type is m.room.third_party_invite: allow if and only if the sender's power level is at least the invite level.
    if *pdu.kind() == TimelineEventType::RoomThirdPartyInvite {
        return need(PowerAction::Invite, level, power.invite());
    }
    // If the event type's required power level is greater than the sender's power level, reject.
    let needed = power.event(pdu.kind(), pdu.state_key().is_some());
    if !level.reaches(needed) {
        return need(PowerAction::Send(pdu.kind().to_string()), level, needed);
    }
    // If the event has a state_key that starts with an @ and does not match the sender, reject.
    if pdu.state_key().is_some_and(|key| key.starts_with('@') && key != sender) {
        return Err(Rejection::StateKeyOfOtherUser);
    }
    if *pdu.kind() == TimelineEventType::RoomPowerLevels {
        return power_levels::check_power_levels(
            rules,
            pdu,
            create,
            has_power_levels.then_some(power),
            level,
        );
    }
    // If type is m.room.redaction: if the sender's power level is at least the redact level, or the domains of both
    // event IDs are the same, allow; otherwise reject.
    if rules.redaction_auth_rule && *pdu.kind() == TimelineEventType::RoomRedaction {
        let same_server = pdu.redacts().is_some_and(|id| id.server_name() == pdu.event_id().server_name());
        if !level.reaches(power.redact()) && !same_server {
            return Err(Rejection::CannotRedact);
        }
    }
    Ok(())
}

/// A user's membership in a state: `leave` where nothing is known of them.
fn membership_of(state: &impl State, user_id: &UserId) -> MembershipState {
    let member = state.event(&StateEventType::RoomMember, user_id.as_str());
    member.and_then(|member| member.membership()).unwrap_or(MembershipState::Leave)
}

fn need(action: PowerAction, level: Level, needed: i64) -> Result<(), Rejection> {
    if level.reaches(needed) {
        Ok(())
    } else {
        Err(Rejection::NotEnoughPower { action, needed, actual: level.as_integer() })
    }
}
