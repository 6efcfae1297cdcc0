//! Transactions of other servers: events, and what is not kept.

use axum::extract::State;
use hearth_federation::{Inbound, inbound::TransactionError};
use http::Method;
use std::time::Duration;

use crate::http::{
    Auth, BodyLimit, JsonResult, MatrixError, PathArgs, RawBody, RawJson, RemoteServer, Route, Routes,
    Specimen,
};

/// When a server that has too much under way may come again.
const BUSY: Duration = Duration::from_secs(5);

/// The chapter's endpoints.
pub fn routes(routes: &mut Routes) {
    let send = Route::at(Method::PUT, "/_matrix/federation/v1/send/{txn_id}", Auth::Server);
    let specimen = Specimen::path("$txn").body(r#"{"origin":"$remote","pdus":[]}"#, r#"{"pdus":5}"#);
    routes.add(send.body_limit(BodyLimit::Transaction).specimen(specimen).to(self::send));
}

/// `PUT /_matrix/federation/v1/send/{txnId}`
async fn send(
    State(inbound): State<Inbound>,
    server: RemoteServer,
    PathArgs((txn_id,)): PathArgs<(String,)>,
    RawBody(body): RawBody,
) -> JsonResult {
    Ok(RawJson(inbound.transaction(&server.origin, &txn_id, body).await?))
}

impl From<TransactionError> for MatrixError {
    fn from(error: TransactionError) -> Self {
        let message = error.to_string();
        match error {
            TransactionError::Malformed(_) | TransactionError::OtherOrigin => Self::bad_json(message),
            TransactionError::TooMany => Self::invalid_param(message),
            TransactionError::Busy => Self::limit_exceeded(BUSY),
            TransactionError::Store(error) => error.into(),
        }
    }
}
