//! Stages of user-interactive authentication as web pages, for clients that do not know a stage themselves.
//! * A page only completes its stage; the operation goes on when the client asks for it again with the session alone.

use std::{fmt::Write as _, sync::Arc};

use axum::{extract::State, response::Response};
use hearth_users::{AccountError, PasswordError, UiaStageError, Users};
use http::{Method, StatusCode};
use ruma::{
    OwnedUserId,
    api::client::uiaa::{
        AuthData, AuthType, Dummy, MatrixUserIdentifier, Password, RegistrationToken, Terms, UserIdentifier,
    },
};
use serde::Deserialize;

use super::pages::{escaped, page};
use crate::{
    config::Config,
    http::{Auth, MatrixError, PathArgs, Query, RateClass, RawBody, Route, Routes, Specimen},
};

/// The chapter's endpoints.
pub fn routes(routes: &mut Routes) {
    const PATH: &str = "/_matrix/client/v3/auth/{auth_type}/fallback/web";
    let page = Specimen::path("m.login.terms").query("session=nobodys");
    routes.add(Route::at(Method::GET, PATH, Auth::None).rate(RateClass::Login).specimen(page).to(ask));
    routes.add(Route::at(Method::POST, PATH, Auth::None).rate(RateClass::Login).specimen(page).to(take));
}

const TITLE: &str = "Authentication";
/// Tells the client, in the words of the specification, that the stage is done.
const DONE_SCRIPT: &str = "if (window.onAuthDone) { window.onAuthDone(); } \
    else if (window.opener && window.opener.postMessage) { window.opener.postMessage(\"authDone\", \"*\"); }";

#[derive(Deserialize)]
struct Asked {
    session: String,
}

/// What a page sends back.
#[derive(Default, Deserialize)]
struct Form {
    session: Option<String>,
    #[serde(default)]
    token: String,
    #[serde(default)]
    password: String,
}

/// The stages that there are pages for.
#[derive(Clone, Copy)]
enum Stage {
    Dummy,
    Password,
    RegistrationToken,
    Terms,
}

impl Stage {
    fn of(kind: &AuthType) -> Result<Self, MatrixError> {
        match kind {
            AuthType::Dummy => Ok(Self::Dummy),
            AuthType::Password => Ok(Self::Password),
            AuthType::RegistrationToken => Ok(Self::RegistrationToken),
            AuthType::Terms => Ok(Self::Terms),
            _ => Err(MatrixError::unrecognized("there is no page for this authentication type")),
        }
    }

    /// What the page asks for.
    fn question(self, config: &Config, user: Option<&OwnedUserId>) -> String {
        match self {
            Self::Dummy => "<p>Go on?</p>".to_owned(),
            Self::Password => {
                let user = escaped(user.map_or("", |user| user.as_str()));
                format!(
                    "<p>The password of <b>{user}</b>:</p>\
                     <p><input type=\"password\" name=\"password\" autocomplete=\"current-password\" autofocus></p>"
                )
            }
            Self::RegistrationToken => "<p>A registration token is needed here:</p>\
                 <p><input type=\"text\" name=\"token\" autocomplete=\"off\" autofocus></p>"
                .to_owned(),
            Self::Terms => {
                let registration = &config.registration;
                let url = escaped(registration.terms_url.as_deref().unwrap_or_default());
                let name = escaped(&registration.terms_name);
                format!(
                    "<p>Please read and accept: <a href=\"{url}\" target=\"_blank\" rel=\"noopener\">{name}</a></p>"
                )
            }
        }
    }

    fn button(self) -> &'static str {
        match self {
            Self::Terms => "Accept",
            Self::Dummy | Self::Password | Self::RegistrationToken => "Continue",
        }
    }

    /// What the client would have sent.
    fn shown(self, session: String, form: Form, user: Option<OwnedUserId>) -> AuthData {
        let session = Some(session);
        match self {
            Self::Dummy => {
                let mut dummy = Dummy::new();
                dummy.session = session;
                AuthData::Dummy(dummy)
            }
            Self::Password => {
                let user = user.map(String::from).unwrap_or_default();
                let user = UserIdentifier::Matrix(MatrixUserIdentifier::new(user));
                let mut password = Password::new(user, form.password);
                password.session = session;
                AuthData::Password(password)
            }
            Self::RegistrationToken => {
                let mut token = RegistrationToken::new(form.token.trim().to_owned());
                token.session = session;
                AuthData::RegistrationToken(token)
            }
            Self::Terms => {
                let mut terms = Terms::new();
                terms.session = session;
                AuthData::Terms(terms)
            }
        }
    }
}

/// `GET /_matrix/client/v3/auth/{authType}/fallback/web`
async fn ask(
    State(users): State<Users>,
    State(config): State<Arc<Config>>,
    PathArgs((kind,)): PathArgs<(AuthType,)>,
    Query(Asked { session }): Query<Asked>,
) -> Result<Response, MatrixError> {
    let stage = Stage::of(&kind)?;
    let Some(known) = users.uia_stage(&session, &kind) else { return Ok(ended()) };
    if known.completed {
        return Ok(done());
    }
    let question = stage.question(&config, known.user.as_ref());
    Ok(question_page(StatusCode::OK, &session, &question, stage.button(), None))
}

/// `POST /_matrix/client/v3/auth/{authType}/fallback/web`: the page, filled in.
async fn take(
    State(users): State<Users>,
    State(config): State<Arc<Config>>,
    PathArgs((kind,)): PathArgs<(AuthType,)>,
    Query(asked): Query<Form>,
    RawBody(body): RawBody,
) -> Result<Response, MatrixError> {
    let stage = Stage::of(&kind)?;
    let form: Form =
        serde_html_form::from_bytes(&body).map_err(|error| MatrixError::from_query(&error.to_string()))?;
    let session = form.session.clone().or(asked.session);
    let session = session.ok_or_else(|| MatrixError::missing_param("session is missing"))?;
    let Some(known) = users.uia_stage(&session, &kind) else { return Ok(ended()) };
    let question = stage.question(&config, known.user.as_ref());
    let shown = stage.shown(session.clone(), form, known.user);
    match users.complete_uia_stage(&session, &shown).await {
        Ok(()) => Ok(done()),
        Err(UiaStageError::UnknownSession) => Ok(ended()),
        Err(UiaStageError::Refused(why)) => {
            let unauthorized = StatusCode::UNAUTHORIZED;
            Ok(question_page(unauthorized, &session, &question, stage.button(), Some(&why)))
        }
        Err(UiaStageError::Account(AccountError::Password(PasswordError::TooLong))) => {
            Err(MatrixError::invalid_param("the password is too long"))
        }
        Err(UiaStageError::Account(error)) => Err(error.into()),
    }
}

fn question_page(
    status: StatusCode,
    session: &str,
    question: &str,
    button: &str,
    error: Option<&str>,
) -> Response {
    let mut form = String::from("<form method=\"post\">");
    if let Some(error) = error {
        // Writing to a string cannot fail.
        let _ = write!(form, "<p><strong>{}</strong></p>", escaped(error));
    }
    let session = escaped(session);
    let _ = write!(
        form,
        "{question}<p><input type=\"hidden\" name=\"session\" value=\"{session}\">\
         <button type=\"submit\">{button}</button></p></form>"
    );
    page(status, TITLE, &form, None)
}

fn done() -> Response {
    page(StatusCode::OK, TITLE, "<p>Thank you. This window may be closed now.</p>", Some(DONE_SCRIPT))
}

fn ended() -> Response {
    let body = "<p>This authentication has ended. Close this window and begin again in your client.</p>";
    page(StatusCode::NOT_FOUND, TITLE, body, None)
}
