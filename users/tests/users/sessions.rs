//! Access tokens, refresh tokens, login tokens, devices.

use std::time::Duration;

use hearth_store::Order;
use hearth_users::{
    AuthenticateError, RefreshError, Session, Volatile,
    tables::{LAST_SEEN, LOGIN_TOKENS},
};
use ruma::{OwnedDeviceId, device_id, presence::PresenceState};

use crate::World;

async fn is_good(world: &World, token: &str) -> bool {
    match world.users.authenticate(token).await {
        Ok(_) => true,
        Err(AuthenticateError::Unknown) => false,
        Err(error) => panic!("{error}"),
    }
}

// A token is refused from the moment its logout is answered, although it was cached.
#[tokio::test]
async fn a_logout_is_in_force_at_once() {
    let world = World::new().await;
    let alice = world.alice().await;
    let (phone, laptop) = (world.log_in(&alice, None, false).await, world.log_in(&alice, None, false).await);
    assert!(is_good(&world, &phone.access_token).await && is_good(&world, &laptop.access_token).await);
    world.users.delete_devices(&alice, std::slice::from_ref(&phone.device_id)).await.unwrap();
    assert!(!is_good(&world, &phone.access_token).await);
    assert!(is_good(&world, &laptop.access_token).await);
    assert!(world.users.device(&alice, &phone.device_id).await.unwrap().is_none());
    assert!(!is_good(&world, "nobody's").await);
}

// The same under load: no request that begins after the answer is served.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_reader_brings_a_revoked_token_back() {
    let world = World::new().await;
    let alice = world.alice().await;
    for _ in 0..30 {
        let session = world.log_in(&alice, Some("PHONE"), false).await;
        let readers: Vec<_> = (0..4)
            .map(|_| {
                let (users, token) = (world.users.clone(), session.access_token.clone());
                tokio::spawn(async move {
                    while users.authenticate(&token).await.is_ok() {
                        // More readers than threads: somebody has to carry out the logout.
                        tokio::task::yield_now().await;
                    }
                })
            })
            .collect();
        world.users.delete_devices(&alice, &[session.device_id]).await.unwrap();
        assert!(!is_good(&world, &session.access_token).await);
        for reader in readers {
            reader.await.unwrap();
        }
        assert!(!is_good(&world, &session.access_token).await);
    }
}

// Whoever asks may go away at any moment: what has ended on the disk is not served from memory.
#[tokio::test]
async fn a_logout_whose_client_goes_away_is_whole_or_nothing() {
    let world = World::new().await;
    let alice = world.alice().await;
    let mut ended = 0;
    for polls in 0..40 {
        let session = world.log_in(&alice, None, false).await;
        assert!(is_good(&world, &session.access_token).await);
        let devices = [session.device_id.clone()];
        let mut logout = Box::pin(world.users.delete_devices(&alice, &devices));
        for _ in 0..polls {
            if futures_util::poll!(&mut logout).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(logout);
        // What was submitted is done by the time that a later commit is.
        world.log_in(&alice, Some("LATER"), false).await;
        tokio::task::yield_now().await;
        let is_there = world.users.device(&alice, &session.device_id).await.unwrap().is_some();
        assert_eq!(is_good(&world, &session.access_token).await, is_there);
        ended += usize::from(!is_there);
    }
    assert!(ended > 0);
}

// Logging in on a device that is there replaces its token and keeps its name.
#[tokio::test]
async fn the_same_device_gets_a_new_token() {
    let world = World::new().await;
    let alice = world.alice().await;
    let first = world.log_in(&alice, Some("PHONE"), true).await;
    world.users.rename_device(&alice, device_id!("PHONE"), Some("my phone")).await.unwrap();
    assert!(is_good(&world, &first.access_token).await);
    let second = world.log_in(&alice, Some("PHONE"), false).await;
    assert!(!is_good(&world, &first.access_token).await);
    assert!(world.users.refresh(&first.refresh_token.unwrap()).await.is_err());
    assert!(is_good(&world, &second.access_token).await);
    let devices = world.users.devices(&alice).await.unwrap();
    assert_eq!(devices.len(), 1);
    assert_eq!(devices[0].display_name.as_deref(), Some("my phone"));
}

// A password change keeps the session in which it was made.
#[tokio::test]
async fn all_other_sessions_end() {
    let world = World::new().await;
    let alice = world.alice().await;
    let mut others = Vec::new();
    for _ in 0..120 {
        others.push(world.log_in(&alice, None, false).await);
    }
    let kept = world.log_in(&alice, None, false).await;
    world.users.delete_devices_except(&alice, Some(&kept.device_id)).await.unwrap();
    assert!(is_good(&world, &kept.access_token).await);
    for other in &others {
        assert!(!is_good(&world, &other.access_token).await);
    }
    assert_eq!(world.users.devices(&alice).await.unwrap().len(), 1);
}

// An access token that can be refreshed expires, and its client is told to keep its data.
#[tokio::test]
async fn a_short_lived_token_expires() {
    let world = World::new().await;
    let alice = world.alice().await;
    let session = world.log_in(&alice, None, true).await;
    assert!(is_good(&world, &session.access_token).await);
    world.pass_ms(session.expires_in_ms.unwrap());
    let expired = world.users.authenticate(&session.access_token).await;
    assert!(matches!(expired, Err(AuthenticateError::Expired)));
    let next = world.users.refresh(&session.refresh_token.unwrap()).await.unwrap();
    assert!(is_good(&world, &next.access_token).await);
    assert_eq!(next.device_id, session.device_id);
}

async fn refresh(world: &World, session: &Session) -> Result<Session, RefreshError> {
    world.users.refresh(session.refresh_token.as_ref().unwrap()).await
}

// A client that lost the answer refreshes again with the old token; once the new one was used, the old one is void.
#[tokio::test]
async fn the_old_refresh_token_is_good_until_the_new_one_is_used() {
    let world = World::new().await;
    let alice = world.alice().await;
    let first = world.log_in(&alice, None, true).await;
    let lost = refresh(&world, &first).await.unwrap();
    let second = refresh(&world, &first).await.unwrap();
    assert!(!is_good(&world, &lost.access_token).await, "what was lost is replaced");
    assert!(refresh(&world, &lost).await.is_err());
    assert!(is_good(&world, &first.access_token).await, "nothing new was used yet");
    assert!(is_good(&world, &second.access_token).await);
    assert!(refresh(&world, &first).await.is_err(), "the new access token was used");
    assert!(!is_good(&world, &first.access_token).await);
    let third = refresh(&world, &second).await.unwrap();
    let fourth = refresh(&world, &third).await.unwrap();
    assert!(refresh(&world, &second).await.is_err(), "the new refresh token was used");
    assert!(is_good(&world, &fourth.access_token).await);
    assert_eq!(world.users.devices(&alice).await.unwrap().len(), 1);
}

// Using the old pair after a refresh does not end the new one.
#[tokio::test]
async fn the_old_access_token_ends_nothing() {
    let world = World::new().await;
    let alice = world.alice().await;
    let first = world.log_in(&alice, None, true).await;
    let second = refresh(&world, &first).await.unwrap();
    let third = refresh(&world, &second).await.unwrap();
    assert!(is_good(&world, &second.access_token).await);
    assert!(is_good(&world, &third.access_token).await);
}

// A login token is good once, soon, and for one of those who show it.
#[tokio::test]
async fn a_login_token_is_good_once() {
    let world = World::new().await;
    let alice = world.alice().await;
    let (token, _) = world.users.issue_login_token(&alice).await.unwrap();
    let tries = (0..6).map(|_| {
        let (users, token) = (world.users.clone(), token.clone());
        tokio::spawn(async move { users.redeem_login_token(&token).await.unwrap() })
    });
    let mut redeemed = 0;
    for one in tries.collect::<Vec<_>>() {
        redeemed += usize::from(one.await.unwrap().is_some());
    }
    assert_eq!(redeemed, 1);
    let (token, lifetime_ms) = world.users.issue_login_token(&alice).await.unwrap();
    world.pass_ms(lifetime_ms);
    assert_eq!(world.users.redeem_login_token(&token).await.unwrap(), None);
}

// Where a device was last seen is shown at once and written later.
#[tokio::test]
async fn devices_show_when_they_were_last_seen() {
    let world = World::new().await;
    let alice = world.alice().await;
    let session = world.log_in(&alice, Some("PHONE"), false).await;
    let who = world.users.authenticate(&session.access_token).await.unwrap();
    world.users.seen(&who, [192, 0, 2, 1].into());
    world.pass_ms(1);
    world.users.seen(&who, [192, 0, 2, 2].into());
    let check = async || {
        let device = world.users.device(&alice, device_id!("PHONE")).await.unwrap().unwrap();
        assert_eq!(device.last_seen_ip.as_deref(), Some("192.0.2.1"));
        assert_eq!(device.last_seen_ts, Some(crate::NOON));
        assert_eq!(device.display_name.as_deref(), Some("a phone"));
    };
    check().await;
    world.users.close().await.unwrap();
    check().await;
}

// A device that is removed while its last request is still to be written leaves nothing behind.
#[tokio::test]
async fn what_is_noted_of_a_device_goes_with_it() {
    let world = World::new().await;
    let alice = world.alice().await;
    for number in 0..20 {
        let session = world.log_in(&alice, Some("PHONE"), false).await;
        let who = world.users.authenticate(&session.access_token).await.unwrap();
        world.users.seen(&who, [192, 0, 2, 1].into());
        // Written and removed at the same time, in either order.
        let (written, removed) = tokio::join!(world.users.close(), async {
            for _ in 0..number % 5 {
                tokio::task::yield_now().await;
            }
            world.users.delete_devices(&alice, &["PHONE".into()]).await
        });
        written.unwrap();
        removed.unwrap();
        let rows = world.store.range(&LAST_SEEN, LAST_SEEN.all(), Order::Forward, 10).await.unwrap();
        assert_eq!(rows, [], "round {number}");
    }
}

// While it is written, what was noted last is what is shown.
#[tokio::test]
async fn writing_shows_nothing_older() {
    let world = World::new().await;
    let alice = world.alice().await;
    let session = world.log_in(&alice, Some("PHONE"), false).await;
    for minute in 1..20 {
        world.pass_ms(60_000);
        let who = world.users.authenticate(&session.access_token).await.unwrap();
        world.users.seen(&who, [192, 0, 2, minute].into());
        let shown = async {
            for _ in 0..minute % 5 {
                tokio::task::yield_now().await;
            }
            world.users.device(&alice, device_id!("PHONE")).await.unwrap().unwrap().last_seen_ip
        };
        let (written, shown) = tokio::join!(world.users.close(), shown);
        written.unwrap();
        assert_eq!(shown, Some(format!("192.0.2.{minute}")));
    }
}

// A login token that nobody uses is removed when its time is over.
#[tokio::test(start_paused = true)]
async fn unused_login_tokens_are_swept() {
    let world = World::new().await;
    let alice = world.alice().await;
    world.users.issue_login_token(&alice).await.unwrap();
    let kept = async || {
        world.store.range(&LOGIN_TOKENS, LOGIN_TOKENS.all(), Order::Forward, 10).await.unwrap().len()
    };
    tokio::time::sleep(Duration::from_secs(301)).await;
    assert_eq!(kept().await, 1, "it is still good");
    world.pass_ms(10 * 60_000);
    let (token, _) = world.users.issue_login_token(&alice).await.unwrap();
    tokio::time::sleep(Duration::from_secs(301)).await;
    while kept().await > 1 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(world.users.redeem_login_token(&token).await.unwrap(), Some(alice));
}

// Who logs out everywhere is offline at once, and those who see them are told.
#[tokio::test(start_paused = true)]
async fn without_a_device_nobody_is_online() {
    let world = World::new().await;
    let alice = world.alice().await;
    world.log_in(&alice, Some("DESK"), false).await;
    world.log_in(&alice, Some("PHONE"), false).await;
    let presence = world.users.presence();
    drop(presence.syncing(&alice, &PresenceState::Online));
    world.users.delete_devices(&alice, &["PHONE".into()]).await.unwrap();
    assert_eq!(presence.of(&alice).presence, PresenceState::Online);
    let seen = presence.counter();
    let mut changes = world.users.volatile_changes();
    world.users.delete_devices_except(&alice, None).await.unwrap();
    assert_eq!(presence.of(&alice).presence, PresenceState::Offline);
    assert_eq!(presence.changes_since(seen, 10, |_| true).0.len(), 1);
    assert_eq!(changes.try_recv().unwrap(), Volatile::Presence(alice));
}

// Device ids that cannot be are refused, and unknown ones to be removed are passed over.
#[tokio::test]
async fn odd_device_ids() {
    let world = World::new().await;
    let alice = world.alice().await;
    for odd in [String::new(), "x".repeat(256)] {
        let new = hearth_users::NewSession {
            user_id: alice.clone(),
            device_id: Some(OwnedDeviceId::from(odd)),
            display_name: None,
            refreshable: false,
        };
        assert!(world.users.start_session(new).await.is_err());
    }
    world.users.delete_devices(&alice, &["NOBODYS".into()]).await.unwrap();
    let none = world.users.rename_device(&alice, device_id!("NOBODYS"), None).await;
    assert!(none.is_err());
}
