//! OpenID tokens and how many of them there may be.

use hearth_users::{OPENID_TOKEN_LIFETIME, OPENID_TOKENS_MAX, OPENID_TOKENS_OF_USER};
use ruma::{OwnedUserId, UserId};

use crate::World;

async fn is_good(world: &World, token: &str) -> bool {
    world.users.user_of_openid_token(token).await.unwrap().is_some()
}

fn stranger(number: usize) -> OwnedUserId {
    UserId::parse(format!("@stranger{number}:a.test")).unwrap()
}

#[tokio::test]
async fn a_token_names_its_user_for_an_hour() {
    let world = World::new().await;
    let alice = world.alice().await;
    let token = world.users.issue_openid_token(&alice);
    assert_eq!(world.users.user_of_openid_token(&token).await.unwrap(), Some(alice));
    assert!(!is_good(&world, "hoi_made_up").await);
    world.pass_ms(OPENID_TOKEN_LIFETIME.as_millis() as u64 - 1);
    assert!(is_good(&world, &token).await);
    world.pass_ms(1);
    assert!(!is_good(&world, &token).await);
}

#[tokio::test]
async fn the_oldest_of_a_user_makes_room_and_nobody_elses() {
    let world = World::new().await;
    let (alice, bob) = (world.alice().await, world.user("bob").await);
    let of_bob = world.users.issue_openid_token(&bob);
    let mut tokens = Vec::new();
    for _ in 0..OPENID_TOKENS_MAX + 2 {
        tokens.push(world.users.issue_openid_token(&alice));
    }
    assert!(is_good(&world, &of_bob).await);
    let (old, new) = tokens.split_at(tokens.len() - OPENID_TOKENS_OF_USER);
    for token in new {
        assert!(is_good(&world, token).await);
    }
    for token in &old[old.len() - 20..] {
        assert!(!is_good(&world, token).await);
    }
}

#[tokio::test]
async fn who_has_most_makes_room_for_others() {
    let world = World::new().await;
    let (alice, bob) = (world.alice().await, world.user("bob").await);
    let (of_bob, of_alice) = (world.users.issue_openid_token(&bob), world.users.issue_openid_token(&alice));
    let second_of_alice = world.users.issue_openid_token(&alice);
    for number in 0..OPENID_TOKENS_MAX - 4 {
        world.users.issue_openid_token(&stranger(number));
    }
    assert!(is_good(&world, &of_alice).await);
    world.users.issue_openid_token(&stranger(OPENID_TOKENS_MAX));
    assert!(is_good(&world, &of_alice).await, "there was still room for one");
    world.users.issue_openid_token(&stranger(OPENID_TOKENS_MAX + 1));
    assert!(is_good(&world, &of_bob).await && !is_good(&world, &of_alice).await);
    assert!(is_good(&world, &second_of_alice).await);
    // What is no good any more makes room first.
    world.pass_ms(OPENID_TOKEN_LIFETIME.as_millis() as u64);
    let again = world.users.issue_openid_token(&alice);
    for number in 0..OPENID_TOKENS_MAX - 1 {
        world.users.issue_openid_token(&stranger(number));
    }
    assert!(is_good(&world, &again).await && !is_good(&world, &of_bob).await);
}
