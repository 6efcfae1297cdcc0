//! User-interactive authentication.

use hearth_users::{BodyDigest, NewAccount, RegistrationToken, UiaDone, UiaError, UiaRequest};
use ruma::{
    UserId,
    api::client::uiaa::{AuthData, AuthFlow, AuthType, UiaaInfo},
    user_id,
};
use serde_json::{Value as Json, json};

use crate::World;

fn auth(value: Json) -> AuthData {
    serde_json::from_value(value).unwrap()
}

struct Ask<'a> {
    endpoint: &'a str,
    body: Json,
    user: Option<&'a UserId>,
    flows: Vec<AuthFlow>,
}

impl Ask<'_> {
    async fn with(&self, world: &World, shown: Option<Json>) -> Result<UiaDone, UiaError> {
        let auth = shown.map(auth);
        let request = UiaRequest {
            endpoint: self.endpoint,
            body: BodyDigest::of(&self.body),
            user: self.user,
            flows: &self.flows,
            params: None,
            auth: auth.as_ref(),
        };
        world.users.uia(request).await
    }

    async fn challenge(&self, world: &World, shown: Option<Json>) -> UiaaInfo {
        match self.with(world, shown).await {
            Err(UiaError::Challenge(info)) => *info,
            other => panic!("{other:?}"),
        }
    }
}

fn registration(stages: &[AuthType]) -> Ask<'static> {
    let body = json!({ "username": "alice", "password": "x", "auth": { "left": "out" } });
    Ask { endpoint: "POST register", body, user: None, flows: vec![AuthFlow::new(stages.to_vec())] }
}

// Without proof, the ways to give it; then each stage in turn, and what is completed is told.
#[tokio::test]
async fn stages_complete_one_after_the_other() {
    let world = World::new().await;
    world.users.add_registration_token("welcome", &RegistrationToken::default()).await.unwrap();
    let ask = registration(&[AuthType::RegistrationToken, AuthType::Terms]);
    let first = ask.challenge(&world, None).await;
    assert_eq!(first.flows[0].stages.len(), 2);
    assert!(first.completed.is_empty());
    let session = first.session.unwrap();
    let wrong = json!({ "type": "m.login.registration_token", "token": "other", "session": session });
    let refused = ask.challenge(&world, Some(wrong)).await;
    assert!(refused.auth_error.is_some() && refused.completed.is_empty());
    assert_eq!(refused.session.as_ref(), Some(&session));
    let right = json!({ "type": "m.login.registration_token", "token": "welcome", "session": session });
    let half = ask.challenge(&world, Some(right)).await;
    assert_eq!(half.completed, [AuthType::RegistrationToken]);
    let terms = json!({ "type": "m.login.terms", "session": session });
    let done = ask.with(&world, Some(terms.clone())).await.unwrap();
    assert_eq!(done.registration_token.as_deref(), Some("welcome"));
    assert!(done.accepted_terms);
    let again = ask.challenge(&world, Some(terms)).await;
    assert_ne!(again.session.unwrap(), session, "a completed session is used up");
}

// A session cannot be carried over to another operation, body or user.
#[tokio::test]
async fn a_session_belongs_to_one_operation() {
    let world = World::new().await;
    let ask = registration(&[AuthType::Dummy]);
    let session = ask.challenge(&world, None).await.session.unwrap();
    let shown = || Some(json!({ "type": "m.login.dummy", "session": session }));
    let others = [
        Ask { endpoint: "POST other", ..registration(&[AuthType::Dummy]) },
        Ask { body: json!({ "username": "mallory", "password": "x" }), ..registration(&[AuthType::Dummy]) },
        Ask { user: Some(user_id!("@mallory:a.test")), ..registration(&[AuthType::Dummy]) },
    ];
    for other in others {
        assert!(matches!(other.with(&world, shown()).await, Err(UiaError::OtherOperation)));
    }
    let reordered =
        Ask { body: json!({ "password": "x", "username": "alice" }), ..registration(&[AuthType::Dummy]) };
    reordered.with(&world, shown()).await.unwrap();
}

// A client that knows what is wanted completes a single stage at once.
#[tokio::test]
async fn one_stage_needs_no_session() {
    let world = World::new().await;
    registration(&[AuthType::Dummy]).with(&world, Some(json!({ "type": "m.login.dummy" }))).await.unwrap();
}

// Of several requests that complete the last stage at the same time, one goes on.
#[tokio::test]
async fn a_session_is_used_up_by_one_request() {
    let world = std::sync::Arc::new(World::new().await);
    let session = registration(&[AuthType::Dummy]).challenge(&world, None).await.session.unwrap();
    let tries = (0..8).map(|_| {
        let (world, session) = (world.clone(), session.clone());
        tokio::spawn(async move {
            let shown = json!({ "type": "m.login.dummy", "session": session });
            registration(&[AuthType::Dummy]).with(&world, Some(shown)).await.is_ok()
        })
    });
    let mut passed = 0;
    for one in tries.collect::<Vec<_>>() {
        passed += usize::from(one.await.unwrap());
    }
    assert_eq!(passed, 1);
}

// The password is that of the user whose operation it is, named in either way.
#[tokio::test]
async fn the_password_is_the_own_one() {
    let world = World::new().await;
    for (name, password) in [("alice", "a"), ("mallory", "m")] {
        let hash = world.users.hash_password(password).await.unwrap();
        let user_id = UserId::parse(format!("@{name}:a.test")).unwrap();
        world.users.create_account(NewAccount::person(user_id, Some(hash)), None).await.unwrap();
    }
    let ask = Ask {
        endpoint: "DELETE devices/X",
        body: json!({}),
        user: Some(user_id!("@alice:a.test")),
        flows: vec![AuthFlow::new(vec![AuthType::Password])],
    };
    let shown = |user: &str, password: &str| {
        let identifier = json!({ "type": "m.id.user", "user": user });
        Some(json!({ "type": "m.login.password", "identifier": identifier, "password": password }))
    };
    ask.challenge(&world, shown("alice", "m")).await;
    for password in ["m", "a"] {
        let other = ask.with(&world, shown("mallory", password)).await;
        assert!(matches!(other, Err(UiaError::OtherUser)), "{other:?}");
    }
    ask.with(&world, shown("alice", "a")).await.unwrap();
    ask.with(&world, shown("@alice:a.test", "a")).await.unwrap();
}

// Guessing ends the session, and time does.
#[tokio::test(start_paused = true)]
async fn sessions_end() {
    let world = World::new().await;
    let ask = registration(&[AuthType::RegistrationToken]);
    let mut session = ask.challenge(&world, None).await.session.unwrap();
    let guess =
        |session: &str| json!({ "type": "m.login.registration_token", "token": "x", "session": session });
    let mut guesses = 0;
    loop {
        let next = ask.challenge(&world, Some(guess(&session))).await.session.unwrap();
        guesses += 1;
        if next != session {
            session = next;
            break;
        }
    }
    assert_eq!(guesses, 10);
    tokio::time::advance(std::time::Duration::from_secs(3600)).await;
    assert_ne!(ask.challenge(&world, Some(guess(&session))).await.session.unwrap(), session);
}
