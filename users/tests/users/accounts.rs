//! Accounts, passwords, registration tokens, deactivation.

use hearth_store::Store;
use hearth_users::{
    AuthenticateError, CreateAccountError, Deactivation, Kind, NewAccount, RegistrationToken,
};
use ruma::{UserId, user_id};

use crate::World;

// A name is given to one of those who want it at the same time, and never again, not even after deactivation.
#[tokio::test]
async fn a_name_is_given_out_once() {
    let world = World::new().await;
    let alice = user_id!("@alice:a.test");
    let tries = (0..8).map(|_| {
        let users = world.users.clone();
        tokio::spawn(
            async move { users.create_account(NewAccount::person(alice.to_owned(), None), None).await },
        )
    });
    let mut made = 0;
    for one in tries.collect::<Vec<_>>() {
        match one.await.unwrap() {
            Ok(_) => made += 1,
            Err(CreateAccountError::InUse) => {}
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(made, 1);
    world.users.deactivate(alice, true).await.unwrap();
    world.users.clear_account(alice).await.unwrap();
    let again = world.users.create_account(NewAccount::person(alice.to_owned(), None), None).await;
    assert!(matches!(again, Err(CreateAccountError::InUse)));
}

// New ids keep to today's grammar and 255 bytes; application services may hold historical ones.
#[tokio::test]
async fn new_ids_keep_to_the_grammar() {
    let world = World::new().await;
    let long = format!("@{}:a.test", "a".repeat(255 - "@:a.test".len()));
    for (id, kind, allowed) in [
        ("@a.b_c=d-e/f+0:a.test", Kind::Person, true),
        ("@Alice:a.test", Kind::Person, false),
        ("@al!ce:a.test", Kind::Person, false),
        ("@Alice:a.test", Kind::Appservice, true),
        (&*long, Kind::Person, true),
        (&*long.replace(':', "a:"), Kind::Person, false),
    ] {
        let Ok(user_id) = UserId::parse(id) else {
            assert!(!allowed, "{id}");
            continue;
        };
        let new = NewAccount { kind, ..NewAccount::person(user_id, None) };
        let made = world.users.create_account(new, None).await;
        assert_eq!(made.is_ok(), allowed, "{id}: {made:?}");
    }
}

// Only the right password of somebody who is there is accepted.
#[tokio::test]
async fn passwords_are_checked() {
    let world = World::new().await;
    let alice = user_id!("@alice:a.test");
    let hash = world.users.hash_password("first").await.unwrap();
    world.users.create_account(NewAccount::person(alice.to_owned(), Some(hash)), None).await.unwrap();
    assert!(world.users.verify_password(alice, "first").await.unwrap());
    assert!(!world.users.verify_password(alice, "other").await.unwrap());
    assert!(!world.users.verify_password(user_id!("@nobody:a.test"), "first").await.unwrap());
    let hash = world.users.hash_password("second").await.unwrap();
    world.users.set_password(alice, hash).await.unwrap();
    assert!(!world.users.verify_password(alice, "first").await.unwrap());
    assert!(world.users.verify_password(alice, "second").await.unwrap());
    let bob = world.user("bob").await;
    assert!(!world.users.verify_password(&bob, "").await.unwrap(), "no password is no empty password");
}

// Of many that want the last use of a registration token, one gets it.
#[tokio::test]
async fn a_registration_token_is_used_as_often_as_it_says() {
    let world = World::new().await;
    let twice = RegistrationToken { uses_allowed: Some(2), ..RegistrationToken::default() };
    assert!(world.users.add_registration_token("welcome", &twice).await.unwrap());
    assert!(!world.users.add_registration_token("welcome", &twice).await.unwrap(), "it exists");
    assert!(!world.users.add_registration_token("not a token", &twice).await.unwrap());
    let tries = (0..6).map(|n| {
        let users = world.users.clone();
        tokio::spawn(async move {
            let user_id = UserId::parse(format!("@u{n}:a.test")).unwrap();
            let token = Some("welcome".to_owned());
            let new = NewAccount { registration_token: token, ..NewAccount::person(user_id, None) };
            users.create_account(new, None).await.is_ok()
        })
    });
    let mut made = 0;
    for one in tries.collect::<Vec<_>>() {
        made += usize::from(one.await.unwrap());
    }
    assert_eq!(made, 2);
    assert!(!world.users.registration_token_is_valid("welcome").await.unwrap());
    assert_eq!(world.users.registration_tokens(10).await.unwrap()[0].1.completed, 2);
}

// A registration token ends when it says; those of the configuration do not.
#[tokio::test]
async fn registration_tokens_expire() {
    let world = World::with(Store::memory().await, |options| {
        options.registration_tokens = vec!["from the file".to_owned()];
    });
    let short = RegistrationToken { expires_at_ms: Some(crate::NOON + 1_000), ..Default::default() };
    world.users.add_registration_token("short", &short).await.unwrap();
    assert!(world.users.registration_token_is_valid("short").await.unwrap());
    world.pass_ms(1_000);
    assert!(!world.users.registration_token_is_valid("short").await.unwrap());
    assert!(world.users.registration_token_is_valid("from the file").await.unwrap());
    assert!(!world.users.registration_token_is_valid("nobody's").await.unwrap());
}

// After deactivation nothing of the user works or is shown any more.
#[tokio::test]
async fn deactivation_removes_what_the_user_had() {
    let world = World::new().await;
    let alice = world.alice().await;
    let session = world.log_in(&alice, None, true).await;
    world.users.set_profile_field(&alice, "displayname", Some("Alice".into())).await.unwrap();
    let settings = serde_json::value::to_raw_value(&serde_json::json!({ "a": 1 })).unwrap();
    world.users.set_account_data(&alice, None, "org.example", &settings).await.unwrap();
    world.users.deactivate(&alice, true).await.unwrap();
    // No token works from here on, whatever becomes of the rest.
    let token = world.users.authenticate(&session.access_token).await;
    assert!(matches!(token, Err(AuthenticateError::Unknown)));
    let unfinished = world.users.unfinished_deactivations(None, 10).await.unwrap();
    assert_eq!(unfinished, [Deactivation { user: alice.clone(), erase: true }]);
    // Each step may be taken again.
    world.users.clear_account(&alice).await.unwrap();
    world.users.clear_account(&alice).await.unwrap();
    world.users.deactivated(&alice).await.unwrap();
    assert_eq!(world.users.unfinished_deactivations(None, 10).await.unwrap(), []);
    let token = world.users.authenticate(&session.access_token).await;
    assert!(matches!(token, Err(AuthenticateError::Unknown)));
    assert!(world.users.refresh(&session.refresh_token.unwrap()).await.is_err());
    assert!(world.users.devices(&alice).await.unwrap().is_empty());
    assert!(world.users.profile(&alice).await.unwrap().fields().is_empty());
    assert!(world.users.search_people("alice", &[], 10).await.unwrap().people.is_empty());
    world.store.jobs_finished().await.unwrap();
    assert!(world.users.account_data(&alice, None, "org.example").await.unwrap().is_none());
    assert!(world.users.account(&alice).await.unwrap().unwrap().erased);
}

// A change of an account is in force for the sessions that are cached.
#[tokio::test]
async fn locking_is_in_force_at_once() {
    let world = World::new().await;
    let alice = world.alice().await;
    let session = world.log_in(&alice, None, false).await;
    let locked = async || world.users.authenticate(&session.access_token).await.unwrap().account().locked;
    assert!(!locked().await);
    world.users.set_locked(&alice, true).await.unwrap();
    assert!(locked().await);
    world.users.set_locked(&alice, false).await.unwrap();
    world.users.set_admin(&alice, true).await.unwrap();
    world.users.set_suspended(&alice, true).await.unwrap();
    let who = world.users.authenticate(&session.access_token).await.unwrap();
    assert!(!who.account().locked && who.account().admin && who.account().suspended);
}

// Accounts are listed in pages.
#[tokio::test]
async fn accounts_are_listed() {
    let world = World::new().await;
    assert!(!world.users.has_accounts().await.unwrap());
    for name in ["carol", "alice", "bob"] {
        world.user(name).await;
    }
    assert!(world.users.has_accounts().await.unwrap());
    let first = world.users.accounts(None, 2).await.unwrap();
    let rest = world.users.accounts(Some(&first[1].0), 2).await.unwrap();
    let names: Vec<_> = first.iter().chain(&rest).map(|(id, _)| id.localpart()).collect();
    assert_eq!(names, ["alice", "bob", "carol"]);
}
