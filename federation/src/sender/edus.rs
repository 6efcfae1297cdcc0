//! Messages that need not arrive: typing, receipts, presence. Of each kind only the newest is worth sending.

use std::{collections::BTreeMap, sync::Arc};

use ruma::{OwnedRoomId, OwnedUserId};
use serde_json::{Value, json};

/// Users whose presence is told in one message.
const PRESENCES_MAX: usize = 50;

/// What a message is about: a newer one replaces it. Presence is last in the order, and waits for the others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum EduKey {
    /// A user types in a room, or not.
    Typing(OwnedRoomId, OwnedUserId),
    /// How far a user has read, in a thread or in all.
    Receipt(OwnedRoomId, OwnedUserId, Option<String>),
    /// Whether a user is there.
    Presence(OwnedUserId),
}

impl EduKey {
    pub(super) fn is_presence(&self) -> bool {
        matches!(self, EduKey::Presence(_))
    }
}

/// What it says.
pub(super) type EduValue = Arc<Value>;

/// The messages of a transaction: several receipts and presences go into one.
pub(super) fn edus_of(items: &BTreeMap<Arc<EduKey>, EduValue>) -> Vec<String> {
    let mut edus = Vec::new();
    // A user has one receipt for a room in a message; those of further threads go into further messages.
    let mut receipts: Vec<Value> = Vec::new();
    let mut presences: Vec<&Value> = Vec::new();
    for (key, value) in items {
        match &**key {
            EduKey::Typing(room, user) => {
                let content = json!({ "room_id": room, "user_id": user, "typing": **value });
                edus.push(edu("m.typing", &content));
            }
            EduKey::Receipt(room, user, _) => {
                let (room, user) = (room.as_str(), user.as_str());
                let free = receipts.iter().position(|receipts| receipts[room]["m.read"][user].is_null());
                let index = free.unwrap_or_else(|| {
                    receipts.push(json!({}));
                    receipts.len() - 1
                });
                receipts[index][room]["m.read"][user] = Value::clone(value);
            }
            EduKey::Presence(_) => presences.push(value),
        }
    }
    edus.extend(receipts.iter().map(|content| edu("m.receipt", content)));
    edus.extend(presences.chunks(PRESENCES_MAX).map(|push| edu("m.presence", &json!({ "push": push }))));
    edus
}

fn edu(kind: &str, content: &Value) -> String {
    json!({ "edu_type": kind, "content": content }).to_string()
}

#[cfg(test)]
mod tests {
    use ruma::{room_id, user_id};

    use super::*;

    fn receipt(room: &str, user: &str, thread: Option<&str>, event: &str) -> (Arc<EduKey>, EduValue) {
        let key =
            EduKey::Receipt(room.try_into().unwrap(), user.try_into().unwrap(), thread.map(str::to_owned));
        (Arc::new(key), Arc::new(json!({ "data": { "ts": 1 }, "event_ids": [event] })))
    }

    #[test]
    fn messages_of_a_kind_go_together() {
        let mut items = BTreeMap::from([
            receipt("!a:x", "@u:x", None, "$1"),
            receipt("!a:x", "@u:x", Some("main"), "$2"),
            receipt("!a:x", "@v:x", None, "$3"),
            receipt("!b:x", "@u:x", None, "$4"),
        ]);
        let typing = EduKey::Typing(room_id!("!a:x").to_owned(), user_id!("@u:x").to_owned());
        items.insert(Arc::new(typing), Arc::new(json!(true)));
        for user in 0..=PRESENCES_MAX {
            let user = ruma::UserId::parse(format!("@u{user}:x")).unwrap();
            items.insert(Arc::new(EduKey::Presence(user.clone())), Arc::new(json!({ "user_id": user })));
        }
        let edus: Vec<Value> = edus_of(&items).iter().map(|edu| serde_json::from_str(edu).unwrap()).collect();
        let kinds: Vec<&str> = edus.iter().map(|edu| edu["edu_type"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["m.typing", "m.receipt", "m.receipt", "m.presence", "m.presence"]);
        assert_eq!(edus[0]["content"], json!({ "room_id": "!a:x", "user_id": "@u:x", "typing": true }));
        assert_eq!(edus[1]["content"]["!a:x"]["m.read"]["@u:x"]["event_ids"][0], "$1");
        assert_eq!(edus[1]["content"]["!a:x"]["m.read"]["@v:x"]["event_ids"][0], "$3");
        assert_eq!(edus[1]["content"]["!b:x"]["m.read"]["@u:x"]["event_ids"][0], "$4");
        assert_eq!(edus[2]["content"]["!a:x"]["m.read"]["@u:x"]["event_ids"][0], "$2");
        let told = edus[3..].iter().map(|edu| edu["content"]["push"].as_array().unwrap().len());
        assert_eq!(told.collect::<Vec<_>>(), [PRESENCES_MAX, 1]);
    }
}
