//! Keys: this server's own, and as a notary those of others. Nobody signs to ask for them: with what, before they are
//! known?

use std::sync::Arc;

use axum::extract::State;
use hearth_federation::{AccessDenied, BadQuery, Federation, KeyQuery};
use http::Method;
use ruma::OwnedServerName;
use serde::Deserialize;

use crate::{
    config::Config,
    http::{Auth, JsonBody, JsonResult, MatrixError, PathArgs, Query, RateClass, Route, Routes, Specimen},
};

/// The chapter's endpoints.
pub fn routes(routes: &mut Routes) {
    let keys = Route::at(Method::GET, "/_matrix/key/v2/server", Auth::None);
    routes.add(keys.also_at("/_matrix/key/v2/server/{key_id}").specimen(Specimen::path("")).to(own));
    routes.add(
        Route::at(Method::GET, "/_matrix/key/v2/query/{server_name}", Auth::None)
            .rate(RateClass::Other)
            .specimen(Specimen::path("$server"))
            .to(of_one),
    );
    routes.add(
        Route::at(Method::POST, "/_matrix/key/v2/query", Auth::None)
            .rate(RateClass::Other)
            .specimen(Specimen::path("").body(r#"{"server_keys":{"$server":{}}}"#, r#"{"server_keys":[]}"#))
            .to(of_many),
    );
}

/// `GET /_matrix/key/v2/server`; the key id in the old form of the path was never more than a hint.
async fn own(State(federation): State<Federation>, State(config): State<Arc<Config>>) -> JsonResult {
    let published = federation.keys().published(&config.server_name);
    published.map(Into::into).ok_or_else(|| MatrixError::not_found("this server has no keys"))
}

#[derive(Debug, Deserialize)]
struct Minimum {
    minimum_valid_until_ts: Option<u64>,
}

/// `GET /_matrix/key/v2/query/{serverName}`
async fn of_one(
    State(federation): State<Federation>,
    PathArgs((server,)): PathArgs<(OwnedServerName,)>,
    Query(minimum): Query<Minimum>,
) -> JsonResult {
    answer(&federation, KeyQuery::of_server(server, minimum.minimum_valid_until_ts)).await
}

#[derive(Debug, Deserialize)]
struct Question {
    server_keys: serde_json::Value,
}

/// `POST /_matrix/key/v2/query`
async fn of_many(State(federation): State<Federation>, JsonBody(question): JsonBody<Question>) -> JsonResult {
    answer(&federation, KeyQuery::parse(&question.server_keys)?).await
}

async fn answer(federation: &Federation, query: KeyQuery) -> JsonResult {
    if !federation.access().is_on() {
        return Err(MatrixError::forbidden(AccessDenied::Off.to_string()));
    }
    Ok(federation.keys().answer(&query).await?.into())
}

impl From<BadQuery> for MatrixError {
    fn from(error: BadQuery) -> Self {
        match error {
            BadQuery::Shape => Self::bad_json(error.to_string()),
            BadQuery::ServerName | BadQuery::TooMany => Self::invalid_param(error.to_string()),
        }
    }
}
