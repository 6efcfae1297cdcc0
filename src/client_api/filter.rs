//! Filters that clients keep on the server. Users touch only their own.

use axum::extract::State;
use hearth_users::Users;
use ruma::{
    OwnedUserId,
    api::client::filter::{FilterDefinition, create_filter, get_filter},
};
use serde::Deserialize as _;
use serde_json::{Value as Json, json};

use super::account_data::only_own;
use crate::http::{JsonBody, JsonResult, LocalUser, MatrixError, PathArgs, RawJson, Route, Routes, Specimen};

/// The chapter's endpoints.
pub fn routes(routes: &mut Routes) {
    let own = Specimen::path("$me").outsider(403, "M_FORBIDDEN");
    routes.add(
        Route::of::<create_filter::v3::Request>()
            .specimen(
                own.body(r#"{"room":{"timeline":{"limit":5}}}"#, r#"{"room":{"timeline":{"limit":"x"}}}"#),
            )
            .to(create),
    );
    routes.add(
        Route::of::<get_filter::v3::Request>()
            .specimen(Specimen::path("$me nonesuch").outsider(403, "M_FORBIDDEN"))
            .to(read),
    );
}

/// `POST /_matrix/client/v3/user/{userId}/filter`
async fn create(
    State(users): State<Users>,
    user: LocalUser,
    PathArgs((whose,)): PathArgs<(OwnedUserId,)>,
    JsonBody(filter): JsonBody<Json>,
) -> JsonResult {
    only_own(&user, &whose)?;
    if !filter.is_object() {
        return Err(MatrixError::bad_json("a filter is a JSON object"));
    }
    FilterDefinition::deserialize(&filter)
        .map_err(|error| MatrixError::bad_json(format!("not a filter: {error}")))?;
    let filter_id = users.add_filter(&whose, &filter).await?;
    RawJson::of(&json!({ "filter_id": filter_id }))
}

/// `GET /_matrix/client/v3/user/{userId}/filter/{filterId}`
async fn read(
    State(users): State<Users>,
    user: LocalUser,
    PathArgs((whose, filter_id)): PathArgs<(OwnedUserId, String)>,
) -> JsonResult {
    only_own(&user, &whose)?;
    let filter = users.filter(&whose, &filter_id).await?;
    RawJson::of(&*filter.ok_or_else(|| MatrixError::not_found("there is no such filter"))?)
}
