//! Redaction: what remains of an event, and who may ask for it.

use bytes::Bytes;

use crate::{
    Level, Pdu, PowerLevels, RoomRules,
    canonical::{Object, Value},
};

/// The redacted form of an event. Its ID, hashes and signatures stay valid.
pub fn redact(rules: &RoomRules, pdu: &Pdu) -> Pdu {
    let mut object = pdu.to_object();
    redact_object(rules, &mut object);
    let json = Bytes::from(object.to_canonical());
    Pdu::from_stored(rules, pdu.event_id().to_owned(), json)
        .expect("redaction keeps all that an event must have")
}

/// Whether a redaction that was accepted takes effect on its target, by the power levels at the redaction.
pub fn redaction_applies(rules: &RoomRules, redaction: &Pdu, target: &Pdu, power: &PowerLevels) -> bool {
    if redaction.redacts() != Some(target.event_id()) || redaction.room_id() != target.room_id() {
        return false;
    }
    if power.user(redaction.sender()) >= Level::Finite(power.redact()) {
        return true;
    }
    if rules.redaction_auth_rule {
        return redaction.event_id().server_name() == target.event_id().server_name();
    }
    redaction.sender().server_name() == target.sender().server_name()
}

/// Removes from an event all that redaction removes, hashes and signatures stay.
pub fn redact_object(rules: &RoomRules, event: &mut Object<'_>) {
    let kind = event.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    event.retain(|key, value| match key {
        "content" => {
            if let Value::Object(content) = value {
                redact_content(rules, &kind, content);
            }
            true
        }
        "auth_events" | "depth" | "event_id" | "hashes" | "origin_server_ts" | "prev_events" | "room_id"
        | "sender" | "signatures" | "state_key" | "type" => true,
        "membership" | "origin" | "prev_state" => rules.inner.redaction.keep_origin_membership_prev_state,
        _ => false,
    });
}

/// Removes from the content of an event of type `kind` all that redaction removes.
pub fn redact_content(rules: &RoomRules, kind: &str, content: &mut Object<'_>) {
    let keep = &rules.inner.redaction;
    content.retain(|key, value| match (kind, key) {
        ("m.room.member", "membership") => true,
        ("m.room.member", "join_authorised_via_users_server") => {
            keep.keep_room_member_join_authorised_via_users_server
        }
        ("m.room.member", "third_party_invite") if keep.keep_room_member_third_party_invite_signed => {
            match value {
                Value::Object(invite) => {
                    invite.retain(|key, _| key == "signed");
                    true
                }
                _ => false,
            }
        }
        ("m.room.create", key) => keep.keep_room_create_content || key == "creator",
        ("m.room.join_rules", "join_rule") => true,
        ("m.room.join_rules", "allow") => keep.keep_room_join_rules_allow,
        (
            "m.room.power_levels",
            "ban" | "events" | "events_default" | "kick" | "redact" | "state_default" | "users"
            | "users_default",
        ) => true,
        ("m.room.power_levels", "invite") => keep.keep_room_power_levels_invite,
        ("m.room.history_visibility", "history_visibility") => true,
        ("m.room.redaction", "redacts") => keep.keep_room_redaction_redacts,
        ("m.room.aliases", "aliases") => keep.keep_room_aliases_aliases,
        _ => false,
    });
}

/// Whether redaction leaves nothing of the content of such an event.
pub(crate) fn empties_content(kind: &str) -> bool {
    !matches!(
        kind,
        "m.room.member"
            | "m.room.create"
            | "m.room.join_rules"
            | "m.room.power_levels"
            | "m.room.history_visibility"
            | "m.room.redaction"
            | "m.room.aliases"
    )
}
