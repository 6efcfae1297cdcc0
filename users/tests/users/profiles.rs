//! Profiles and the user directory.

use hearth_users::{Person, ProfileError};
use ruma::{UserId, user_id};
use serde_json::json;

use crate::World;

// Any field can be set, read and removed; rooms only follow the two that they show.
#[tokio::test]
async fn any_field_is_kept() {
    let world = World::new().await;
    let alice = world.alice().await;
    let set = async |field: &str, value| world.users.set_profile_field(&alice, field, value).await.unwrap();
    assert!(set("displayname", Some(json!("Alice"))).await.rooms_follow);
    assert!(!set("displayname", Some(json!("Alice"))).await.rooms_follow, "nothing changed");
    assert!(set("avatar_url", Some(json!("mxc://a.test/x"))).await.rooms_follow);
    assert!(!set("m.tz", Some(json!("Europe/Vienna"))).await.rooms_follow);
    let profile = world.users.profile(&alice).await.unwrap();
    assert_eq!(profile.displayname(), Some("Alice"));
    assert_eq!(profile.avatar_url(), Some("mxc://a.test/x"));
    assert_eq!(profile.field("m.tz"), Some(&json!("Europe/Vienna")));
    assert!(set("displayname", None).await.rooms_follow);
    assert_eq!(world.users.profile(&alice).await.unwrap().displayname(), None);
    let nobody = world.users.set_profile_field(user_id!("@nobody:a.test"), "m.tz", Some(json!(1))).await;
    assert!(matches!(nobody, Err(ProfileError::Unknown)));
}

// Keys and the whole are bounded, at the bound.
#[tokio::test]
async fn profiles_are_bounded() {
    let world = World::new().await;
    let alice = world.alice().await;
    let set = async |field: &str, value| world.users.set_profile_field(&alice, field, Some(value)).await;
    set(&"k".repeat(255), json!(1)).await.unwrap();
    assert!(matches!(set(&"k".repeat(256), json!(1)).await, Err(ProfileError::KeyTooLarge)));
    let used = serde_json::to_string(world.users.profile(&alice).await.unwrap().fields()).unwrap().len();
    let fits = 64 * 1024 - used - r#","big":"""#.len();
    assert!(matches!(set("big", json!("x".repeat(fits + 1))).await, Err(ProfileError::TooLarge)));
    set("big", json!("x".repeat(fits))).await.unwrap();
    assert!(matches!(set("m", json!(1)).await, Err(ProfileError::TooLarge)));
    assert!(matches!(set("displayname", json!({})).await, Err(ProfileError::Invalid(_))));
}

// Fields that are set at the same time are all kept.
#[tokio::test]
async fn writers_do_not_undo_each_other() {
    let world = World::new().await;
    let alice = world.alice().await;
    let tries = (0..6).map(|n| {
        let (users, alice) = (world.users.clone(), alice.clone());
        tokio::spawn(async move {
            users.set_profile_field(&alice, &format!("org.f{n}"), Some(json!(n))).await.unwrap()
        })
    });
    for one in tries.collect::<Vec<_>>() {
        one.await.unwrap();
    }
    assert_eq!(world.users.profile(&alice).await.unwrap().fields().len(), 6);
}

async fn found(world: &World, term: &str, others: &[Person]) -> Vec<String> {
    let found = world.users.search_people(term, others, 10).await.unwrap();
    found.people.iter().map(|person| person.user_id.to_string()).collect()
}

// People are found by the beginnings of words in name and id, whatever the case, and under their present name only.
#[tokio::test]
async fn people_are_found() {
    let world = World::new().await;
    let (alice, bob) = (world.alice().await, world.user("bob.builder").await);
    for (user, name) in [(&alice, "Alice Ärmel"), (&bob, "Robert")] {
        world.users.set_profile_field(user, "displayname", Some(json!(name))).await.unwrap();
    }
    for term in ["ali", "ÄRM", "alice ärmel", "@alice:a.test", "@ali"] {
        assert_eq!(found(&world, term, &[]).await, ["@alice:a.test"], "{term}");
    }
    assert_eq!(found(&world, "build", &[]).await, ["@bob.builder:a.test"]);
    assert_eq!(found(&world, "bob.bu", &[]).await, ["@bob.builder:a.test"]);
    for term in ["lice", "alice robert", "", "  "] {
        assert!(found(&world, term, &[]).await.is_empty(), "{term}");
    }
    world.users.set_profile_field(&bob, "displayname", Some(json!("Rupert"))).await.unwrap();
    assert!(found(&world, "robert", &[]).await.is_empty());
    let remote = Person {
        user_id: UserId::parse("@alien:b.test").unwrap(),
        display_name: Some("Ali".to_owned()),
        avatar_url: None,
    };
    assert_eq!(
        found(&world, "ali", &[remote]).await,
        ["@alien:b.test", "@alice:a.test"],
        "an exact name first"
    );
}

// More than asked for is said.
#[tokio::test]
async fn a_search_is_limited() {
    let world = World::new().await;
    for n in 0..5 {
        world.user(&format!("ann{n}")).await;
    }
    let some = world.users.search_people("ann", &[], 3).await.unwrap();
    assert_eq!((some.people.len(), some.limited), (3, true));
    let all = world.users.search_people("ann", &[], 5).await.unwrap();
    assert_eq!((all.people.len(), all.limited), (5, false));
}
