//! Account data, tags, push rules, ignored users, filters.

use hearth_store::StreamPosition;
use hearth_users::{AccountDataError, PUSH_RULES, PushRuleError};
use ruma::{
    UserId,
    push::{NewPatternedPushRule, NewPushRule, RuleKind},
    room_id, user_id,
};
use serde_json::{Value as Json, json, value::RawValue};

use crate::World;

fn raw(content: &Json) -> Box<RawValue> {
    serde_json::value::to_raw_value(content).unwrap()
}

fn value(content: &RawValue) -> Json {
    serde_json::from_str(content.get()).unwrap()
}

async fn set(world: &World, user: &UserId, kind: &str, content: Json) -> StreamPosition {
    world.users.set_account_data(user, None, kind, &raw(&content)).await.unwrap()
}

// What changed after a position is shown once, with its newest content; what did not change is not read.
#[tokio::test]
async fn changes_since_a_position() {
    let world = World::new().await;
    let (alice, bob) = (world.alice().await, world.user("bob").await);
    let room = room_id!("!r:a.test");
    let start = world.store.watermark();
    set(&world, &alice, "a", json!({ "n": 1 })).await;
    set(&world, &alice, "b", json!({})).await;
    let middle = world.store.watermark();
    set(&world, &alice, "a", json!({ "n": 2 })).await;
    world.users.set_account_data(&alice, Some(room), "c", &raw(&json!({ "n": 3 }))).await.unwrap();
    let end = world.store.watermark();
    assert!(!world.users.changed_since(&bob, start));
    assert!(world.users.changed_since(&alice, middle) && !world.users.changed_since(&alice, end));

    let changes = world.users.account_data_changes(&alice, Some(middle), end).await.unwrap();
    assert_eq!(changes.global.keys().collect::<Vec<_>>(), ["a"]);
    assert_eq!(value(&changes.global["a"])["n"], 2);
    assert_eq!(value(&changes.rooms[room]["c"])["n"], 3);
    let changes = world.users.account_data_changes(&alice, Some(start), middle).await.unwrap();
    assert_eq!(changes.global.keys().collect::<Vec<_>>(), ["b"], "a is told with its newer change");
    let all = world.users.account_data_changes(&alice, None, end).await.unwrap();
    assert_eq!(all.global.keys().collect::<Vec<_>>(), ["a", "b", PUSH_RULES]);
    assert!(world.users.account_data_changes(&alice, Some(end), end).await.unwrap().is_empty());
    let of_room = world.users.room_account_data(&alice, room).await.unwrap();
    assert_eq!(of_room.len(), 1);
}

// After a restart it is not known what changed: then the store is asked, and knows.
#[tokio::test]
async fn a_restart_forgets_nothing() {
    let world = World::new().await;
    let alice = world.alice().await;
    let start = world.store.watermark();
    set(&world, &alice, "a", json!({ "n": 1 })).await;
    let end = world.store.watermark();
    let world = World::on(world.store.clone());
    assert!(world.users.changed_since(&alice, start) && !world.users.changed_since(&alice, end));
    assert_eq!(world.users.account_data_changes(&alice, Some(start), end).await.unwrap().global.len(), 1);
}

// Some types belong to other endpoints, and a content is an object of bounded size.
#[tokio::test]
async fn what_cannot_be_written() {
    let world = World::new().await;
    let alice = world.alice().await;
    let room = room_id!("!r:a.test");
    let write = async |room, kind: &str, content: Json| {
        world.users.set_account_data(&alice, room, kind, &raw(&content)).await.unwrap_err()
    };
    assert!(matches!(write(None, PUSH_RULES, json!({})).await, AccountDataError::Reserved(_)));
    assert!(matches!(write(Some(room), "m.fully_read", json!({})).await, AccountDataError::Reserved(_)));
    assert!(matches!(write(None, "a", json!([])).await, AccountDataError::NotAnObject));
    let large = json!({ "a": "x".repeat(300_000) });
    assert!(matches!(write(None, "a", large).await, AccountDataError::TooLarge));
}

// Tags of a room are edited one by one, also at the same time.
#[tokio::test]
async fn tags_are_edited_one_by_one() {
    let world = World::new().await;
    let alice = world.alice().await;
    let room = room_id!("!r:a.test");
    let tries = (0..5).map(|n| {
        let (users, alice) = (world.users.clone(), alice.clone());
        let info = json!({ "order": 0.5 }).as_object().cloned().unwrap();
        tokio::spawn(async move { users.set_tag(&alice, room, &format!("u.{n}"), info).await.unwrap() })
    });
    for one in tries.collect::<Vec<_>>() {
        one.await.unwrap();
    }
    world.users.remove_tag(&alice, room, "u.3").await.unwrap();
    world.users.remove_tag(&alice, room, "u.unknown").await.unwrap();
    let tags = world.users.tags(&alice, room).await.unwrap();
    assert_eq!(tags.keys().collect::<Vec<_>>(), ["u.0", "u.1", "u.2", "u.4"]);
    let content = world.users.account_data(&alice, Some(room), "m.tag").await.unwrap().unwrap();
    assert_eq!(value(&content)["tags"]["u.0"]["order"], 0.5);
}

// The list of ignored users follows the account data that names them.
#[tokio::test]
async fn ignored_users_follow_the_account_data() {
    let world = World::new().await;
    let alice = world.alice().await;
    assert!(world.users.ignored_users(&alice).await.unwrap().is_empty());
    set(&world, &alice, "m.ignored_user_list", json!({ "ignored_users": { "@spam:b.test": {}, "odd": {} } }))
        .await;
    let ignored = world.users.ignored_users(&alice).await.unwrap();
    assert!(ignored.contains(user_id!("@spam:b.test")) && ignored.len() == 1);
    set(&world, &alice, "m.ignored_user_list", json!({})).await;
    assert!(world.users.ignored_users(&alice).await.unwrap().is_empty());
}

fn about(pattern: &str) -> NewPushRule {
    NewPushRule::Content(NewPatternedPushRule::new(pattern.to_owned(), pattern.to_owned(), vec![]))
}

// Push rules are the predefined ones until they are changed; a change shows as account data.
#[tokio::test]
async fn push_rules_are_edited() {
    let world = World::new().await;
    let alice = world.alice().await;
    let rules = world.users.push_rules(&alice).await.unwrap();
    assert!(rules.is_default);
    assert_eq!(rules.ruleset.override_.first().unwrap().rule_id, ".m.rule.master");
    let start = world.store.watermark();

    for pattern in ["tea", "cake"] {
        world.users.put_push_rule(&alice, about(pattern), None, None).await.unwrap();
    }
    world.users.put_push_rule(&alice, about("milk"), None, Some("cake")).await.unwrap();
    let own = |rules: &hearth_users::PushRules| -> Vec<String> {
        let own = rules.ruleset.content.iter().filter(|rule| !rule.default);
        own.map(|rule| rule.rule_id.clone()).collect()
    };
    let rules = world.users.push_rules(&alice).await.unwrap();
    assert!(!rules.is_default);
    assert_eq!(own(&rules), ["cake", "milk", "tea"]);

    world.users.remove_push_rule(&alice, RuleKind::Content, "milk").await.unwrap();
    world.users.enable_push_rule(&alice, RuleKind::Override, ".m.rule.master", true).await.unwrap();
    world.users.set_push_rule_actions(&alice, RuleKind::Underride, ".m.rule.message", vec![]).await.unwrap();
    let rules = world.users.push_rules(&alice).await.unwrap();
    assert_eq!(own(&rules), ["cake", "tea"]);
    assert!(rules.ruleset.override_.first().unwrap().enabled);
    let message = rules.ruleset.get(RuleKind::Underride, ".m.rule.message").unwrap();
    assert!(message.actions().is_empty());

    let changes =
        world.users.account_data_changes(&alice, Some(start), world.store.watermark()).await.unwrap();
    assert_eq!(changes.global.len(), 1);
    let content = value(&changes.global[PUSH_RULES]);
    assert_eq!(content["global"]["override"][0]["enabled"], true);
    let read = world.users.account_data(&alice, None, PUSH_RULES).await.unwrap().unwrap();
    assert_eq!(value(&read), content);
}

// What the specification forbids of push rules.
#[tokio::test]
async fn push_rules_that_cannot_be() {
    let world = World::new().await;
    let alice = world.alice().await;
    let users = &world.users;
    let dotted = users.put_push_rule(&alice, about(".mine"), None, None).await;
    assert!(matches!(dotted, Err(PushRuleError::Invalid(_))));
    let lost = users.put_push_rule(&alice, about("tea"), Some("nonesuch"), None).await;
    assert!(matches!(lost, Err(PushRuleError::UnknownNeighbour)), "{lost:?}");
    let predefined = users.remove_push_rule(&alice, RuleKind::Override, ".m.rule.master").await;
    assert!(matches!(predefined, Err(PushRuleError::Predefined)));
    let unknown = users.enable_push_rule(&alice, RuleKind::Room, "!r:a.test", false).await;
    assert!(matches!(unknown, Err(PushRuleError::NotFound)));
    assert!(users.push_rules(&alice).await.unwrap().is_default, "nothing was stored");
}

// The same filter has the same id; another user's is not found; the oldest of too many makes room.
#[tokio::test]
async fn filters_are_kept_by_content() {
    let world = World::new().await;
    let (alice, bob) = (world.alice().await, world.user("bob").await);
    let filter = |n: usize| json!({ "room": { "timeline": { "limit": n } } });
    let id = world.users.add_filter(&alice, &filter(1)).await.unwrap();
    assert_eq!(world.users.add_filter(&alice, &filter(1)).await.unwrap(), id);
    assert_eq!(*world.users.filter(&alice, &id).await.unwrap().unwrap(), filter(1));
    assert!(world.users.filter(&bob, &id).await.unwrap().is_none());
    for n in 2..=hearth_users::FILTERS_PER_USER + 1 {
        world.users.add_filter(&alice, &filter(n)).await.unwrap();
    }
    assert!(world.users.filter(&alice, &id).await.unwrap().is_none());
    assert_eq!(world.users.add_filter(&alice, &filter(1)).await.unwrap(), id);
}
