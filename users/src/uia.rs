//! User-interactive authentication: an operation that wants more proof than a token.
//! * A session belongs to one operation: to its endpoint and user, and to the body without `auth`.
//! * A stage may also be completed beside the operation, in a web page: then the client only names the session.
//! * A session that was completed is used up, by exactly one request.
//! * In memory, bounded in number, lifetime and failed attempts; what is forgotten is begun anew.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use parking_lot::Mutex;
use ruma::{
    OwnedUserId, UserId,
    api::{
        client::uiaa::{AuthData, AuthFlow, AuthType, UiaaInfo, UserIdentifier},
        error::{ErrorKind, StandardErrorBody},
    },
};
use serde_json::{Value as Json, value::RawValue};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use crate::{AccountError, Users, UsersError, tokens::random};

/// Sessions under way.
pub const SESSIONS_MAX: usize = 20_000;
/// Failed stages after which a session ends.
pub const FAILURES_MAX: u8 = 10;

/// An operation that wants authentication.
#[derive(Clone, Debug)]
pub struct UiaRequest<'a> {
    /// The operation, in words that no other one has: usually method and path.
    pub endpoint: &'a str,
    /// The body without `auth`.
    pub body: BodyDigest,
    /// Whose operation it is, where that is known: then a password must be this user's.
    pub user: Option<&'a UserId>,
    /// The ways to authenticate. Never none.
    pub flows: &'a [AuthFlow],
    /// What clients need to know for the stages (`params`).
    pub params: Option<&'a RawValue>,
    /// What the client has to say.
    pub auth: Option<&'a AuthData>,
}

/// A body without its `auth`, so that it is known again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyDigest([u8; 32]);

impl BodyDigest {
    /// Of a JSON body, in whatever order its keys stand.
    pub fn of(body: &Json) -> Self {
        let mut hash = Sha256::new();
        match body {
            Json::Object(fields) => {
                let fields: BTreeMap<_, _> = fields.iter().filter(|(key, _)| *key != "auth").collect();
                for (key, value) in fields {
                    digest_text(key, &mut hash);
                    digest(value, &mut hash);
                }
            }
            other => digest(other, &mut hash),
        }
        Self(hash.finalize().into())
    }
}

/// The operation may go on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UiaDone {
    /// The registration token that was shown, to be used up with what is done.
    pub registration_token: Option<String>,
    /// Whether the terms were accepted.
    pub accepted_terms: bool,
}

/// The operation may not go on yet.
#[derive(Debug, thiserror::Error)]
pub enum UiaError {
    /// More is to be shown: answered with 401.
    #[error("authentication is required")]
    Challenge(Box<UiaaInfo>),
    /// The session belongs to another operation.
    #[error("the operation has changed during its authentication")]
    OtherOperation,
    /// Somebody identified who is not the one whose operation this is.
    #[error("this is for the user to confirm whose session it is")]
    OtherUser,
    /// The password could not be checked.
    #[error(transparent)]
    Account(#[from] AccountError),
    /// The store.
    #[error(transparent)]
    Users(#[from] UsersError),
}

/// A stage of a session, for those who complete it in a web page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UiaStage {
    /// Whose operation waits for it, where that is known.
    pub user: Option<OwnedUserId>,
    /// Whether it has been completed.
    pub completed: bool,
}

/// Why a stage was not completed in a web page.
#[derive(Debug, thiserror::Error)]
pub enum UiaStageError {
    /// The session has ended, or never was.
    #[error("unknown or expired authentication session")]
    UnknownSession,
    /// What was shown is not good enough.
    #[error("{0}")]
    Refused(String),
    /// The password could not be checked.
    #[error(transparent)]
    Account(#[from] AccountError),
}

/// The sessions under way.
pub(crate) struct UiaSessions {
    lifetime: Duration,
    sessions: Mutex<Sessions>,
}

#[derive(Default)]
struct Sessions {
    by_id: HashMap<String, UiaSession>,
    /// By age, for those that are forgotten.
    by_age: BTreeMap<(Instant, String), ()>,
}

#[derive(Clone)]
struct UiaSession {
    endpoint: String,
    body: BodyDigest,
    user: Option<OwnedUserId>,
    flows: Vec<AuthFlow>,
    began: Instant,
    completed: Vec<AuthType>,
    failures: u8,
    done: UiaDone,
}

impl UiaSessions {
    pub(crate) fn new(lifetime: Duration) -> Self {
        Self { lifetime, sessions: Mutex::default() }
    }

    fn begin(&self, request: &UiaRequest<'_>) -> String {
        let id = random::<18>();
        let now = Instant::now();
        let session = UiaSession {
            endpoint: request.endpoint.to_owned(),
            body: request.body,
            user: request.user.map(UserId::to_owned),
            flows: request.flows.to_vec(),
            began: now,
            completed: Vec::new(),
            failures: 0,
            done: UiaDone::default(),
        };
        let mut sessions = self.sessions.lock();
        while let Some(((began, oldest), ())) = sessions.by_age.first_key_value()
            && (now.duration_since(*began) >= self.lifetime || sessions.by_id.len() >= SESSIONS_MAX)
        {
            let oldest = oldest.clone();
            sessions.remove(&oldest);
        }
        sessions.by_age.insert((now, id.clone()), ());
        sessions.by_id.insert(id.clone(), session);
        id
    }

    fn session(&self, id: &str) -> Option<UiaSession> {
        let sessions = self.sessions.lock();
        sessions.by_id.get(id).filter(|session| session.began.elapsed() < self.lifetime).cloned()
    }

    /// Notes a completed stage, if there is one; the finished session, once, if none is missing now.
    fn complete(
        &self,
        id: &str,
        flows: &[AuthFlow],
        completed: Option<(AuthType, UiaDone)>,
    ) -> Option<Result<UiaSession, UiaSession>> {
        let mut sessions = self.sessions.lock();
        let session = sessions.by_id.get_mut(id)?;
        if let Some((stage, shown)) = completed {
            session.note(stage, shown);
        }
        let session = session.clone();
        let finished =
            flows.iter().any(|flow| flow.stages.iter().all(|stage| session.completed.contains(stage)));
        if finished {
            sessions.remove(id);
            Some(Ok(session))
        } else {
            Some(Err(session))
        }
    }

    /// Notes a stage that was completed beside the operation, which goes on when it is asked for again.
    fn note(&self, id: &str, stage: AuthType, shown: UiaDone) -> bool {
        let mut sessions = self.sessions.lock();
        let session = sessions.by_id.get_mut(id);
        session.map(|session| session.note(stage, shown)).is_some()
    }

    fn fail(&self, id: &str) {
        let mut sessions = self.sessions.lock();
        if let Some(session) = sessions.by_id.get_mut(id) {
            session.failures += 1;
            if session.failures >= FAILURES_MAX {
                sessions.remove(id);
            }
        }
    }
}

impl Sessions {
    fn remove(&mut self, id: &str) {
        if let Some(session) = self.by_id.remove(id) {
            self.by_age.remove(&(session.began, id.to_owned()));
        }
    }
}

/// What a stage was answered with.
enum Stage {
    Completed(AuthType, UiaDone),
    Failed(StandardErrorBody),
    /// The credentials of a user whose operation this is not.
    OtherUser,
    /// Only asks how far the session is.
    Asked,
}

impl Users {
    /// Whether an operation may go on; else the challenge that says what is missing.
    pub async fn uia(&self, request: UiaRequest<'_>) -> Result<UiaDone, UiaError> {
        let Some(auth) = request.auth else {
            return Err(self.challenge(&request, None, None));
        };
        let session = match auth.session() {
            None => None,
            Some(id) => match self.inner.uia.session(id) {
                Some(session) => Some((id.to_owned(), session)),
                None => {
                    let error = refusal(ErrorKind::Unknown, "unknown or expired authentication session");
                    return Err(self.challenge(&request, None, Some(error)));
                }
            },
        };
        let id = match session {
            Some((id, session)) => {
                if !session.is_of(&request) {
                    return Err(UiaError::OtherOperation);
                }
                id
            }
            // A client that knows what is wanted may begin with the first stage.
            None => self.inner.uia.begin(&request),
        };
        let completed = match self.stage(request.user, request.flows, auth).await? {
            Stage::Asked => None,
            Stage::OtherUser => {
                self.inner.uia.fail(&id);
                return Err(UiaError::OtherUser);
            }
            Stage::Failed(error) => {
                self.inner.uia.fail(&id);
                return Err(self.challenge(&request, Some(id), Some(error)));
            }
            Stage::Completed(stage, shown) => Some((stage, shown)),
        };
        match self.inner.uia.complete(&id, request.flows, completed) {
            Some(Ok(session)) => Ok(session.done),
            Some(Err(_)) => Err(self.challenge(&request, Some(id), None)),
            None => Err(self.challenge(&request, None, None)),
        }
    }

    /// Whose session this is, if it is under way and has this stage in one of its flows.
    pub fn uia_stage(&self, session: &str, stage: &AuthType) -> Option<UiaStage> {
        let session = self.inner.uia.session(session)?;
        let wanted = session.flows.iter().any(|flow| flow.stages.contains(stage));
        wanted.then(|| UiaStage { completed: session.completed.contains(stage), user: session.user })
    }

    /// Completes a stage beside the operation itself. The refusal is for the person in front of the page.
    pub async fn complete_uia_stage(&self, id: &str, auth: &AuthData) -> Result<(), UiaStageError> {
        let session = self.inner.uia.session(id).ok_or(UiaStageError::UnknownSession)?;
        match self.stage(session.user.as_deref(), &session.flows, auth).await? {
            Stage::Completed(stage, shown) => {
                let noted = self.inner.uia.note(id, stage, shown);
                noted.then_some(()).ok_or(UiaStageError::UnknownSession)
            }
            Stage::Asked => Err(UiaStageError::UnknownSession),
            Stage::OtherUser => {
                self.inner.uia.fail(id);
                Err(UiaStageError::Refused("this is another user's operation".to_owned()))
            }
            Stage::Failed(error) => {
                self.inner.uia.fail(id);
                Err(UiaStageError::Refused(error.message))
            }
        }
    }

    async fn stage(
        &self,
        user: Option<&UserId>,
        flows: &[AuthFlow],
        auth: &AuthData,
    ) -> Result<Stage, AccountError> {
        let Some(kind) = auth.auth_type() else { return Ok(Stage::Asked) };
        if !flows.iter().any(|flow| flow.stages.contains(&kind)) {
            return Ok(Stage::Failed(refusal(ErrorKind::Unrecognized, "this stage is not in any flow")));
        }
        let done = UiaDone::default();
        match auth {
            AuthData::Dummy(_) => Ok(Stage::Completed(kind, done)),
            AuthData::Terms(_) => Ok(Stage::Completed(kind, UiaDone { accepted_terms: true, ..done })),
            AuthData::RegistrationToken(shown) => {
                let valid = self.registration_token_is_valid(&shown.token).await.map_err(UsersError::from)?;
                if !valid {
                    return Ok(Stage::Failed(refusal(ErrorKind::Forbidden, "invalid registration token")));
                }
                Ok(Stage::Completed(kind, UiaDone { registration_token: Some(shown.token.clone()), ..done }))
            }
            AuthData::Password(shown) => {
                let Some(user) = user else {
                    return Ok(Stage::Failed(refusal(ErrorKind::Forbidden, "nobody has that password")));
                };
                let named = match &shown.identifier {
                    UserIdentifier::Matrix(id) if id.user.starts_with('@') => id.user == user.as_str(),
                    UserIdentifier::Matrix(id) => id.user == user.localpart(),
                    _ => false,
                };
                if !named {
                    return Ok(Stage::OtherUser);
                }
                let right = match self.verify_password(user, &shown.password).await {
                    Ok(right) => right,
                    Err(AccountError::Password(crate::PasswordError::TooLong)) => false,
                    Err(error) => return Err(error),
                };
                if !right {
                    return Ok(Stage::Failed(refusal(ErrorKind::Forbidden, "invalid password")));
                }
                Ok(Stage::Completed(kind, done))
            }
            _ => Ok(Stage::Failed(refusal(ErrorKind::Unrecognized, "this stage is not supported"))),
        }
    }

    fn challenge(
        &self,
        request: &UiaRequest<'_>,
        session: Option<String>,
        error: Option<StandardErrorBody>,
    ) -> UiaError {
        let known = session.and_then(|id| self.inner.uia.session(&id).map(|session| (id, session.completed)));
        let (id, completed) = known.unwrap_or_else(|| (self.inner.uia.begin(request), Vec::new()));
        let mut info = UiaaInfo::new(request.flows.to_vec());
        info.completed = completed;
        info.session = Some(id);
        info.params = Some(request.params.map_or_else(|| RawValue::NULL.to_owned(), RawValue::to_owned))
            .filter(|params| params.get() != "null")
            .or_else(|| RawValue::from_string("{}".to_owned()).ok());
        info.auth_error = error.map(Box::new);
        UiaError::Challenge(Box::new(info))
    }
}

impl UiaSession {
    fn note(&mut self, stage: AuthType, shown: UiaDone) {
        if !self.completed.contains(&stage) {
            self.completed.push(stage);
        }
        let done = &mut self.done;
        done.registration_token = done.registration_token.take().or(shown.registration_token);
        done.accepted_terms |= shown.accepted_terms;
    }

    fn is_of(&self, request: &UiaRequest<'_>) -> bool {
        self.endpoint == request.endpoint && self.body == request.body && self.user.as_deref() == request.user
    }
}

fn refusal(kind: ErrorKind, message: &str) -> StandardErrorBody {
    StandardErrorBody::new(kind, message.to_owned())
}

fn digest(value: &Json, hash: &mut Sha256) {
    match value {
        Json::Object(fields) => {
            let fields: BTreeMap<_, _> = fields.iter().collect();
            hash.update([b'{']);
            hash.update(fields.len().to_be_bytes());
            for (key, value) in fields {
                digest_text(key, hash);
                digest(value, hash);
            }
        }
        Json::Array(items) => {
            hash.update([b'[']);
            hash.update(items.len().to_be_bytes());
            items.iter().for_each(|item| digest(item, hash));
        }
        Json::String(text) => digest_text(text, hash),
        other => {
            hash.update([b'#']);
            digest_text(&other.to_string(), hash);
        }
    }
}

fn digest_text(text: &str, hash: &mut Sha256) {
    hash.update([b'"']);
    hash.update(text.len().to_be_bytes());
    hash.update(text.as_bytes());
}
