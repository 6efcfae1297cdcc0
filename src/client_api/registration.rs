//! Registration.
//! * What is wrong with the wanted name is said before anybody authenticates.
//! * The flows follow from the configuration: open, by registration token, or both; each with terms where there are some.

use std::sync::Arc;

use axum::extract::State;
use hearth_users::{NewAccount, NewSession, SessionError, UiaRequest, Users};
use http::{Method, StatusCode};
use ruma::{
    OwnedUserId, UserId,
    api::client::{
        account::{
            check_registration_token_validity, get_username_availability,
            register::{self, RegistrationKind},
        },
        uiaa::{AuthFlow, AuthType},
    },
};
use serde_json::{Map, Value as Json, json};

use super::uia::{UiaRefusal, WithBody, authenticate, params};
use crate::{
    config::Config,
    http::{
        ApiResult, Auth, MatrixError, RateClass, RawJson, RequestFacts, Route, Routes, Ruma, Specimen,
        rate_limit::{Asker, RateLimits},
    },
};

/// Tries for a name that nobody has, where the client leaves it to us.
const NAME_ATTEMPTS: usize = 8;

/// The chapter's endpoints.
pub fn routes(routes: &mut Routes) {
    routes.add(
        // ruma leaves the token to application services, whose registrations come with them.
        Route::at(Method::POST, "/_matrix/client/v3/register", Auth::None)
            .rate(RateClass::Login)
            .specimen(Specimen::path("").body(
                r#"{"username":"u$txn","password":"good","auth":{"type":"m.login.dummy"}}"#,
                r#"{"username":1}"#,
            ))
            .to(register_account),
    );
    routes.add(
        Route::of::<get_username_availability::v3::Request>()
            .rate(RateClass::Login)
            .specimen(Specimen::path("").query("username=free$txn"))
            .to(is_available),
    );
    routes.add(
        Route::of::<check_registration_token_validity::v1::Request>()
            .rate(RateClass::Login)
            .specimen(Specimen::path("").query("token=nobodys"))
            .to(is_valid),
    );
}

/// `POST /_matrix/client/v3/register`
async fn register_account(
    State(users): State<Users>,
    State(config): State<Arc<Config>>,
    State(limits): State<Arc<RateLimits>>,
    facts: RequestFacts,
    WithBody { request, body }: WithBody<register::v3::Request>,
) -> Result<RawJson, UiaRefusal> {
    match request.kind {
        RegistrationKind::User => {}
        RegistrationKind::Guest => {
            return Err(refused("M_GUEST_ACCESS_FORBIDDEN", "this server has no guests"));
        }
        _ => return Err(MatrixError::invalid_param("kind must be user or guest").into()),
    }
    if request.device_id.as_ref().is_some_and(|id| !hearth_users::is_device_id(id)) {
        return Err(SessionError::InvalidDeviceId.into());
    }
    let flows = flows(&users, &config).await?;
    if flows.is_empty() {
        return Err(refused("M_FORBIDDEN", "registration is closed"));
    }
    let wanted = match &request.username {
        Some(name) => Some(free_id(&users, &config, name).await?),
        None => None,
    };
    if request.auth.is_some() && request.password.is_none() {
        return Err(MatrixError::missing_param("password is missing").into());
    }
    let stage_params = params(&stage_params(&config));
    let proof = authenticate(
        &users,
        UiaRequest {
            endpoint: "POST register",
            body,
            user: None,
            flows: &flows,
            params: stage_params.as_deref(),
            auth: request.auth.as_ref(),
        },
    )
    .await?;
    limits.take(RateClass::Registration, Asker::Address(facts.client.0))?;

    let password = users.hash_password(request.password.as_deref().unwrap_or_default()).await?;
    let user_id = match wanted {
        Some(user_id) => user_id,
        None => free_name(&users, &config).await?,
    };
    let account = NewAccount {
        registration_token: proof.registration_token,
        displayname: Some(user_id.localpart().to_owned()),
        ..NewAccount::person(user_id.clone(), Some(password))
    };
    let session = (!request.inhibit_login).then(|| NewSession {
        user_id: user_id.clone(),
        device_id: request.device_id,
        display_name: request.initial_device_display_name,
        refreshable: request.refresh_token,
    });
    let session = users.create_account(account, session).await?;
    // ruma would write fields that are not there as null.
    let mut response = Map::from_iter([("user_id".to_owned(), json!(user_id))]);
    if let Some(session) = session {
        response.insert("access_token".to_owned(), session.access_token.into());
        response.insert("device_id".to_owned(), json!(session.device_id));
        let refreshing = session.refresh_token.map(|token| ("refresh_token".to_owned(), token.into()));
        response.extend(refreshing);
        response.extend(session.expires_in_ms.map(|lifetime| ("expires_in_ms".to_owned(), lifetime.into())));
    }
    Ok(RawJson::of(&response)?)
}

/// `GET /_matrix/client/v3/register/available`
async fn is_available(
    State(users): State<Users>,
    State(config): State<Arc<Config>>,
    Ruma(request): Ruma<get_username_availability::v3::Request>,
) -> ApiResult<get_username_availability::v3::Response> {
    free_id(&users, &config, &request.username).await?;
    Ok(Ruma(get_username_availability::v3::Response::new(true)))
}

/// `GET /_matrix/client/v1/register/m.login.registration_token/validity`
async fn is_valid(
    State(users): State<Users>,
    State(config): State<Arc<Config>>,
    Ruma(request): Ruma<check_registration_token_validity::v1::Request>,
) -> ApiResult<check_registration_token_validity::v1::Response> {
    if flows(&users, &config).await?.is_empty() {
        return Err(MatrixError::forbidden("registration is closed"));
    }
    let valid = users.registration_token_is_valid(&request.token).await?;
    Ok(Ruma(check_registration_token_validity::v1::Response::new(valid)))
}

/// The ways to register; none where registration is closed.
async fn flows(users: &Users, config: &Config) -> Result<Vec<AuthFlow>, MatrixError> {
    let mut flows = Vec::new();
    let terms = config.registration.terms_url.is_some();
    let with_terms = |stage: AuthType| {
        let mut stages = vec![stage];
        if terms {
            stages.push(AuthType::Terms);
        }
        AuthFlow::new(stages)
    };
    if config.registration.open {
        flows.push(with_terms(AuthType::Dummy));
    }
    if !config.registration.tokens.is_empty() || !users.registration_tokens(1).await?.is_empty() {
        flows.push(with_terms(AuthType::RegistrationToken));
    }
    Ok(flows)
}

/// What a client has to know for the terms.
fn stage_params(config: &Config) -> Json {
    let registration = &config.registration;
    match &registration.terms_url {
        None => json!({}),
        Some(url) => json!({ "m.login.terms": { "policies": { "terms": {
            "version": registration.terms_version,
            "en": { "name": registration.terms_name, "url": url },
        } } } }),
    }
}

/// The id that a name becomes; capitals are written small.
async fn free_id(users: &Users, config: &Config, name: &str) -> Result<OwnedUserId, MatrixError> {
    let invalid = || {
        let message = "only a-z, 0-9 and ._=-/+ may be in a user name, 255 bytes with the server's";
        MatrixError::new(StatusCode::BAD_REQUEST, "M_INVALID_USERNAME", message)
    };
    if name.is_empty() || name.starts_with('@') {
        return Err(invalid());
    }
    let user_id =
        UserId::parse_with_server_name(name.to_lowercase(), &config.server_name).map_err(|_| invalid())?;
    users.check_user_id_free(&user_id).await?;
    Ok(user_id)
}

/// A name for those who did not choose one.
async fn free_name(users: &Users, config: &Config) -> Result<OwnedUserId, MatrixError> {
    let mut last = None;
    for _ in 0..NAME_ATTEMPTS {
        match free_id(users, config, &hearth_users::random_name()).await {
            Ok(user_id) => return Ok(user_id),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| MatrixError::unknown("no free user name was found")))
}

fn refused(errcode: &'static str, message: &str) -> UiaRefusal {
    MatrixError::new(StatusCode::FORBIDDEN, errcode, message).into()
}
