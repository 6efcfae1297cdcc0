//! Synchronisation: `/sync`, and the filters that it takes by their ids.

use std::{sync::Arc, time::Duration};

use axum::extract::{RawQuery, State};
use hearth_rooms::read::{BadToken, FilterDefinition, FilterError};
use hearth_users::Users;
use ruma::{UserId, api::client::sync::sync_events, presence::PresenceState};
use serde::Deserialize;

use crate::{
    http::{JsonResult, LocalUser, MatrixError, RawJson, Route, Routes, Shutdown, Specimen},
    sync::{ClientSync, StateWanted, SyncError, SyncRequest},
};

/// The chapter's endpoints.
pub fn routes(routes: &mut Routes) {
    routes.add(Route::of::<sync_events::v3::Request>().specimen(Specimen::path("")).to(sync));
}

#[derive(Debug, Deserialize)]
struct Query {
    filter: Option<String>,
    since: Option<String>,
    full_state: Option<bool>,
    set_presence: Option<PresenceState>,
    timeout: Option<u64>,
    use_state_after: Option<bool>,
    #[serde(rename = "org.matrix.msc4222.use_state_after")]
    use_state_after_unstable: Option<bool>,
}

/// `GET /_matrix/client/v3/sync`
async fn sync(
    State(sync): State<ClientSync>,
    State(users): State<Users>,
    State(shutdown): State<Shutdown>,
    user: LocalUser,
    RawQuery(query): RawQuery,
) -> JsonResult {
    let query: Query = serde_html_form::from_str(query.as_deref().unwrap_or_default())
        .map_err(|error| MatrixError::from_query(&error.to_string()))?;
    let since = query.since.as_deref().filter(|since| !since.is_empty());
    let since = since.map(str::parse).transpose().map_err(|BadToken| {
        MatrixError::invalid_param("the parameter since is not a token of this server")
    })?;
    let mut request = SyncRequest {
        filter: filter(&sync, &users, &user.user_id, query.filter.as_deref()).await?,
        user: user.user_id,
        device: user.device_id,
        since,
        full_state: query.full_state.unwrap_or(false),
        set_presence: query.set_presence.unwrap_or(PresenceState::Online),
        timeout: Duration::from_millis(query.timeout.unwrap_or(0)),
        state: match (query.use_state_after, query.use_state_after_unstable) {
            (Some(true), _) => StateWanted::After,
            (_, Some(true)) => StateWanted::AfterUnstable,
            _ => StateWanted::Before,
        },
    };
    tokio::select! {
        biased;
        answer = sync.sync(&request) => return Ok(RawJson::from(answer?)),
        end = users.session_end(&user.session) => return Err(end.into()),
        () = shutdown.begun() => {}
    }
    // The server is going down: the client gets what there is, and its next request finds the server again.
    request.timeout = Duration::ZERO;
    Ok(RawJson::from(sync.sync(&request).await?))
}

/// A filter given by its id, or as JSON.
async fn filter(
    sync: &ClientSync,
    users: &Users,
    user: &UserId,
    given: Option<&str>,
) -> Result<Arc<FilterDefinition>, MatrixError> {
    match given {
        None | Some("") => Ok(sync.parse_filter("{}")?),
        Some(json) if json.starts_with('{') => Ok(sync.parse_filter(json)?),
        Some(id) => {
            let filter = users.filter(user, id).await.map_err(MatrixError::internal)?;
            let filter = filter.ok_or_else(|| MatrixError::invalid_param("there is no filter of that id"))?;
            Ok(sync.parse_filter(&filter.to_string())?)
        }
    }
}

impl From<FilterError> for MatrixError {
    fn from(error: FilterError) -> Self {
        match error {
            FilterError::NotJson => Self::not_json(error.to_string()),
            FilterError::BadJson(_) => Self::bad_json(error.to_string()),
        }
    }
}

impl From<SyncError> for MatrixError {
    fn from(error: SyncError) -> Self {
        match error {
            SyncError::FutureToken => Self::invalid_param(error.to_string()),
            SyncError::Store(error) => Self::internal(error),
        }
    }
}
