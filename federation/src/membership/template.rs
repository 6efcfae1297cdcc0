//! From the template that a resident server gives to an event of our user: what it says is ours, where it stands is
//! theirs to tell.

use std::collections::BTreeMap;

use hearth_dag::{Draft, Pdu, Place, RoomRules};
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedUserId, RoomId, RoomVersionId, UInt, UserId,
    events::TimelineEventType,
};
use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use super::{Parts, Unusable};
use crate::client::Template;

/// Events that a template names, before the limits of events themselves are looked at.
const REFERENCES_MAX: usize = 50;

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    kind: String,
    sender: String,
    state_key: String,
    room_id: String,
    content: Content,
    depth: i64,
    #[serde(borrow)]
    prev_events: &'a RawValue,
    #[serde(borrow)]
    auth_events: &'a RawValue,
}

#[derive(Deserialize)]
struct Content {
    membership: String,
    join_authorised_via_users_server: Option<OwnedUserId>,
}

/// A template that is for what it was asked for.
pub(super) struct CheckedTemplate {
    pub(super) rules: &'static RoomRules,
    /// Who lets the user into a restricted room.
    pub(super) authoriser: Option<OwnedUserId>,
    depth: i64,
    prev_events: Vec<OwnedEventId>,
    auth_events: Vec<OwnedEventId>,
    hashes: BTreeMap<OwnedEventId, String>,
}

impl CheckedTemplate {
    /// Checks that a template is for the membership of this user in this room.
    pub(super) fn check(
        template: &Template,
        room: &RoomId,
        user: &UserId,
        membership: &str,
    ) -> Result<Self, Unusable> {
        let version = template.room_version.clone().unwrap_or(RoomVersionId::V1);
        let rules = RoomRules::of(&version).ok_or(Unusable::Template("of an unknown room version"))?;
        let event: Event<'_> = serde_json::from_str(template.event.get())
            .map_err(|_| Unusable::Template("not the template of a member event"))?;
        let is_member = event.kind == "m.room.member" && event.content.membership == membership;
        if !is_member || event.sender != *user || event.state_key != *user || event.room_id != *room {
            return Err(Unusable::Template("for something else than was asked for"));
        }
        let mut hashes = BTreeMap::new();
        Ok(Self {
            rules,
            authoriser: event
                .content
                .join_authorised_via_users_server
                .filter(|_| rules.restricted_join_rule && membership == "join"),
            depth: event.depth,
            prev_events: references(rules, event.prev_events, &mut hashes)?,
            auth_events: references(rules, event.auth_events, &mut hashes)?,
            hashes,
        })
    }

    /// The event with this content, signed by the user's server.
    pub(super) fn build(
        &self,
        parts: &Parts,
        room: &RoomId,
        user: &UserId,
        mut content: Value,
    ) -> Result<Pdu, Unusable> {
        if let Some(authoriser) = &self.authoriser {
            content["join_authorised_via_users_server"] = Value::String(authoriser.to_string());
        }
        let content = serde_json::value::to_raw_value(&content);
        let draft = Draft {
            sender: user.to_owned(),
            kind: TimelineEventType::RoomMember,
            state_key: Some(user.to_string()),
            content: content.map_err(|_| Unusable::Template("not JSON"))?,
            redacts: None,
        };
        let place = Place {
            room_id: Some(room),
            prev_events: &self.prev_events,
            auth_events: &self.auth_events,
            depth: self.depth,
            origin_server_ts: MilliSecondsSinceUnixEpoch(UInt::new_saturating(parts.rooms.now_ms())),
            hashes: Some(&self.hashes),
        };
        let signer = parts.federation.local_servers().signer_for(user.server_name());
        let signer = signer.ok_or(Unusable::Template("for a user of another server"))?;
        draft.build(self.rules, &place, signer).map_err(|error| {
            tracing::debug!(%error, "no event can be made of a template");
            Unusable::Template("nothing that an event can be made of")
        })
    }
}

/// The events that a template names, with their hashes where the version has them.
fn references(
    rules: &RoomRules,
    json: &RawValue,
    hashes: &mut BTreeMap<OwnedEventId, String>,
) -> Result<Vec<OwnedEventId>, Unusable> {
    #[derive(Deserialize)]
    struct Hashes {
        sha256: Option<String>,
    }
    let malformed = |_| Unusable::Template("without a list of events that it refers to");
    let events: Vec<OwnedEventId> = if rules.event_references_have_hashes {
        let pairs: Vec<(OwnedEventId, Hashes)> = serde_json::from_str(json.get()).map_err(malformed)?;
        pairs
            .into_iter()
            .map(|(event, Hashes { sha256 })| {
                // Only what is base64 goes into an event of ours.
                let is_hash = |hash: &String| {
                    hash.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte))
                };
                if let Some(hash) = sha256.filter(is_hash) {
                    hashes.insert(event.clone(), hash);
                }
                event
            })
            .collect()
    } else {
        serde_json::from_str(json.get()).map_err(malformed)?
    };
    match events.len() {
        0..=REFERENCES_MAX => Ok(events),
        _ => Err(Unusable::Template("one that refers to too many events")),
    }
}

#[cfg(test)]
mod tests {
    use ruma::{room_id, user_id};
    use serde_json::json;

    use super::*;

    fn check(version: &str, change: impl FnOnce(&mut Value)) -> Result<CheckedTemplate, String> {
        let mut event = json!({
            "type": "m.room.member",
            "sender": "@alice:here.test",
            "state_key": "@alice:here.test",
            "room_id": "!r:there.test",
            "content": { "membership": "join", "join_authorised_via_users_server": "@bob:there.test" },
            "depth": 7,
            "prev_events": ["$a"],
            "auth_events": ["$b", "$c"],
            "origin": "there.test",
        });
        change(&mut event);
        let template = Template {
            room_version: Some(version.try_into().unwrap()),
            event: RawValue::from_string(event.to_string()).unwrap(),
        };
        let user = user_id!("@alice:here.test");
        CheckedTemplate::check(&template, room_id!("!r:there.test"), user, "join")
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_template_is_for_what_was_asked_for() {
        let good = check("11", |_| ()).unwrap();
        assert_eq!((good.depth, good.prev_events.len(), good.auth_events.len()), (7, 1, 2));
        assert_eq!(good.authoriser.as_deref(), Some(user_id!("@bob:there.test")));
        assert_eq!(check("7", |_| ()).unwrap().authoriser, None, "version 7 has no restricted rooms");
        for (key, value) in [
            ("type", json!("m.room.topic")),
            ("sender", json!("@bob:here.test")),
            ("state_key", json!("@bob:here.test")),
            ("state_key", json!(null)),
            ("room_id", json!("!other:there.test")),
            ("content", json!({ "membership": "leave" })),
            ("content", json!(1)),
            ("depth", json!("7")),
            ("prev_events", json!([["$a", {}]])),
            ("prev_events", json!(["no id"])),
            ("auth_events", json!({})),
            ("auth_events", json!(vec!["$a"; REFERENCES_MAX + 1])),
        ] {
            assert!(check("11", |event| event[key] = value.clone()).is_err(), "{key} {value}");
        }
        assert!(check("org.example.unheard", |_| ()).is_err());
    }

    #[test]
    fn old_versions_refer_with_hashes() {
        let old = |event: &mut Value| {
            event["prev_events"] = json!([["$a:there.test", { "sha256": "abc" }]]);
            event["auth_events"] = json!([["$b:there.test", { "sha256": "\"}evil" }], ["$c:there.test", {}]]);
        };
        let good = check("1", old).unwrap();
        assert_eq!(good.prev_events, ["$a:there.test"]);
        assert_eq!(good.hashes.values().collect::<Vec<_>>(), ["abc"]);
        assert!(check("1", |_| ()).is_err());
    }
}
