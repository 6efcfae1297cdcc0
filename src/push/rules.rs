//! A user's push rules, ready to judge events.

use std::cell::OnceCell;

use futures_util::FutureExt as _;
use ruma::{
    OwnedRoomId, OwnedUserId, UInt, UserId,
    push::{Action, FlattenedJson, PushConditionPowerLevelsCtx, PushConditionRoomCtx, Ruleset},
    serde::Raw,
};
use serde_json::value::RawValue;

use super::{Decision, Summary};

/// An event that is to be judged, for as many users as need it.
pub struct Event<'a> {
    summary: &'a Summary,
    json: &'a RawValue,
    flattened: OnceCell<FlattenedJson>,
}

impl<'a> Event<'a> {
    /// `json` is the event as clients get it; it is only read for users who changed their rules.
    pub fn new(summary: &'a Summary, json: &'a RawValue) -> Self {
        Self { summary, json, flattened: OnceCell::new() }
    }

    fn flattened(&self) -> &FlattenedJson {
        self.flattened.get_or_init(|| FlattenedJson::from_raw(&Raw::<()>::from_json(self.json.to_owned())))
    }
}

/// The room around the event, as one user sees it.
pub struct Room(PushConditionRoomCtx);

impl Room {
    /// `display_name` is the user's in this room (the localpart where it has none); `power_levels` are those
    /// in force. `RoomPowerLevels` of ruma converts into the latter.
    pub fn new(
        room_id: OwnedRoomId,
        joined_members: u64,
        user: OwnedUserId,
        display_name: String,
        power_levels: Option<PushConditionPowerLevelsCtx>,
    ) -> Self {
        let joined_members = UInt::try_from(joined_members).unwrap_or(UInt::MAX);
        let mut context = PushConditionRoomCtx::new(room_id, joined_members, user, display_name);
        context.power_levels = power_levels;
        Self(context)
    }

    pub fn user(&self) -> &UserId {
        &self.0.user_id
    }

    fn may_notify_room(&self, sender: &str) -> bool {
        let (Some(levels), Ok(sender)) = (&self.0.power_levels, <&UserId>::try_from(sender)) else {
            return false;
        };
        levels.has_sender_notification_permission(sender, &"room".into())
    }
}

/// The push rules of one user.
#[derive(Clone, Debug, Default)]
pub enum Rules {
    /// They decide as the predefined ones do: nothing was ever changed, or nothing that counts here.
    #[default]
    Predefined,
    Own(Box<Ruleset>),
}

impl Rules {
    /// `ruleset` is what `m.push_rules` holds for `user`.
    pub fn of(user: &UserId, ruleset: Ruleset) -> Self {
        if outcome(&ruleset) == outcome(&Ruleset::server_default(user)) {
            Self::Predefined
        } else {
            Self::Own(Box::new(ruleset))
        }
    }

    /// Judges `event` for the user of `room`. A user's own event is silent.
    pub fn decide(&self, event: &Event<'_>, room: &Room) -> Decision {
        let own = match self {
            Self::Predefined => {
                let sender = &event.summary.sender;
                return event.summary.decide(room.user(), || room.may_notify_room(sender));
            }
            Self::Own(own) => own,
        };
        if *event.summary.sender == *room.user().as_str() {
            return Decision::SILENT;
        }
        let flattened = event.flattened();
        for rule in own.iter() {
            // Ruma's conditions wait for nothing, but for thread subscriptions, which are not compiled in.
            if rule.applies(flattened, &room.0).now_or_never().unwrap_or(false) {
                return decision(rule.actions());
            }
        }
        Decision::SILENT
    }
}

fn decision(actions: &[Action]) -> Decision {
    let notify = actions.iter().any(Action::should_notify);
    Decision { notify, highlight: notify && actions.iter().any(Action::is_highlight) }
}

/// All of a ruleset that bears on a [`Decision`], in order; the sounds do not.
fn outcome(ruleset: &Ruleset) -> Vec<(String, bool, Decision)> {
    let rules = ruleset.iter().filter(|rule| rule.enabled() || rule.is_server_default());
    rules.map(|rule| (rule.rule_id().to_owned(), rule.enabled(), decision(rule.actions()))).collect()
}

#[cfg(test)]
mod tests {
    use ruma::{
        owned_room_id, owned_user_id,
        power_levels::NotificationPowerLevels,
        push::{HighlightTweakValue, NewPushRule, Tweak},
    };
    use serde_json::{Value as JsonValue, json, value::to_raw_value};

    use super::*;

    fn levels() -> PushConditionPowerLevelsCtx {
        let rules = ruma::RoomVersionId::V11.rules().unwrap().authorization;
        PushConditionPowerLevelsCtx::new(
            [(owned_user_id!("@admin:h"), 100.into())].into(),
            0.into(),
            NotificationPowerLevels::new(),
            ruma::room_version_rules::RoomPowerLevelsRules::new(&rules, None),
        )
    }

    fn room(user: &str) -> Room {
        let user = OwnedUserId::try_from(user).unwrap();
        Room::new(owned_room_id!("!r:h"), 3, user, "Bob B".to_owned(), Some(levels()))
    }

    fn judge(rules: &Rules, event: &JsonValue, user: &str) -> Decision {
        let json = to_raw_value(event).unwrap();
        rules.decide(&Event::new(&Summary::of(&json), &json), &room(user))
    }

    fn message(sender: &str, content: JsonValue) -> JsonValue {
        json!({ "type": "m.room.message", "sender": sender, "event_id": "$e", "content": content })
    }

    #[test]
    fn the_shared_summary_decides_as_the_predefined_rules_do() {
        let member = |membership: &str| {
            json!({ "type": "m.room.member", "sender": "@eve:h", "state_key": "@bob:h",
                    "content": { "membership": membership, "m.mentions": { "user_ids": ["@bob:h"] } } })
        };
        let events = [
            message("@eve:h", json!({ "msgtype": "m.text", "body": "hello" })),
            message("@bob:h", json!({ "msgtype": "m.text", "body": "hello" })),
            message("@eve:h", json!({ "msgtype": "m.notice", "m.mentions": { "user_ids": ["@bob:h"] } })),
            message("@eve:h", json!({ "body": "x", "m.mentions": { "user_ids": ["@bob:h", 7, "@carl:h"] } })),
            message("@eve:h", json!({ "body": "x", "m.mentions": { "user_ids": "@bob:h", "room": 1 } })),
            message("@eve:h", json!({ "body": "@room", "m.mentions": { "room": true } })),
            message("@admin:h", json!({ "body": "@room", "m.mentions": { "room": true } })),
            message("@eve:h", json!({ "m.relates_to": { "rel_type": "m.replace", "event_id": "$x" } })),
            message(
                "@eve:h",
                json!({ "m.relates_to": { "rel_type": "m.replace" }, "m.mentions": { "user_ids": ["@bob:h"] } }),
            ),
            member("invite"),
            member("join"),
            json!({ "type": "m.reaction", "sender": "@eve:h", "content": {} }),
            json!({ "type": "m.room.tombstone", "state_key": "", "sender": "@eve:h", "content": {} }),
            json!({ "type": "m.room.tombstone", "state_key": "x", "sender": "@eve:h", "content": {} }),
            json!({ "type": "m.room.server_acl", "state_key": "", "sender": "@eve:h", "content": {} }),
            json!({ "type": "m.room.encrypted", "sender": "@eve:h", "content": {} }),
            json!({ "type": "m.call.invite", "sender": "@eve:h", "content": {} }),
            json!({ "type": "m.room.topic", "state_key": "", "sender": "@eve:h", "content": { "topic": "t" } }),
            json!({ "type": "org.example", "sender": "@eve:h", "content": { "m.mentions": { "user_ids": ["@bob:h"] } } }),
        ];
        for event in &events {
            for user in ["@bob:h", "@carl:h"] {
                let full =
                    Rules::Own(Box::new(Ruleset::server_default(&OwnedUserId::try_from(user).unwrap())));
                assert_eq!(
                    judge(&Rules::Predefined, event, user),
                    judge(&full, event, user),
                    "{user} and {event}"
                );
            }
        }
    }

    #[test]
    fn unchanged_rules_are_recognised_and_changed_ones_obeyed() {
        let bob = owned_user_id!("@bob:h");
        let mut ruleset = Ruleset::server_default(&bob);
        assert!(matches!(Rules::of(&bob, ruleset.clone()), Rules::Predefined));

        let hello = message("@eve:h", json!({ "msgtype": "m.text", "body": "a cake for you" }));
        ruleset
            .insert(
                NewPushRule::Content(ruma::push::NewPatternedPushRule::new(
                    "cake".to_owned(),
                    "cake".to_owned(),
                    vec![Action::Notify, Action::SetTweak(Tweak::Highlight(HighlightTweakValue::Yes))],
                )),
                None,
                None,
            )
            .unwrap();
        let rules = Rules::of(&bob, ruleset.clone());
        assert_eq!(judge(&rules, &hello, "@bob:h"), Decision::HIGHLIGHT);
        let pancake = message("@eve:h", json!({ "msgtype": "m.text", "body": "a pancake" }));
        assert_eq!(judge(&rules, &pancake, "@bob:h"), Decision::NOTIFY);

        ruleset
            .insert(
                NewPushRule::Room(ruma::push::NewSimplePushRule::new(owned_room_id!("!r:h"), vec![])),
                None,
                None,
            )
            .unwrap();
        ruleset.remove(ruma::push::RuleKind::Content, "cake").unwrap();
        assert_eq!(judge(&Rules::of(&bob, ruleset.clone()), &hello, "@bob:h"), Decision::SILENT);

        ruleset.set_enabled(ruma::push::RuleKind::Override, ".m.rule.master", true).unwrap();
        assert_eq!(judge(&Rules::of(&bob, ruleset), &hello, "@bob:h"), Decision::SILENT);
    }
}
