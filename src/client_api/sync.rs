//! Synchronisation: `/sync`, and the filters that it takes by their ids.

use std::{borrow::Cow, str::FromStr, sync::Arc, time::Duration};

use axum::extract::{RawQuery, State};
use hearth_rooms::read::{BadToken, FilterDefinition, FilterError};
use hearth_users::Users;
use percent_encoding::percent_decode_str;
use ruma::{UserId, api::client::sync::sync_events, presence::PresenceState};

use crate::{
    http::{JsonResult, LocalUser, MatrixError, RawJson, Route, Routes, Shutdown, Specimen},
    sync::{ClientSync, StateWanted, SyncError, SyncRequest},
};

/// The chapter's endpoints.
pub fn routes(routes: &mut Routes) {
    routes.add(Route::of::<sync_events::v3::Request>().specimen(Specimen::path("")).to(sync));
}

/// The parameters of a sync. Read by hand: it is the request that clients make most, with the longest query.
#[derive(Debug, Default)]
struct Query<'a> {
    /// As it was sent: decoded and parsed only where it is not known yet.
    filter: Option<&'a str>,
    since: Option<Cow<'a, str>>,
    full_state: bool,
    set_presence: Option<PresenceState>,
    timeout: u64,
    use_state_after: bool,
    use_state_after_unstable: bool,
}

impl<'a> Query<'a> {
    /// Reads a query string. An empty value counts as none, and of a repeated parameter the last one.
    fn parse(query: &'a str) -> Result<Self, MatrixError> {
        let mut parsed = Self::default();
        for pair in query.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            if value.is_empty() {
                continue;
            }
            match &*decode(name)? {
                "filter" => parsed.filter = Some(value),
                "since" => parsed.since = Some(decode(value)?),
                "full_state" => parsed.full_state = read(name, value)?,
                "set_presence" => parsed.set_presence = Some(PresenceState::from(&*decode(value)?)),
                "timeout" => parsed.timeout = read(name, value)?,
                "use_state_after" => parsed.use_state_after = read(name, value)?,
                "org.matrix.msc4222.use_state_after" => {
                    parsed.use_state_after_unstable = read(name, value)?;
                }
                _ => {}
            }
        }
        Ok(parsed)
    }
}

/// A part of a query string as it was meant.
fn decode(part: &str) -> Result<Cow<'_, str>, MatrixError> {
    let not_text = |_| MatrixError::invalid_param("the query string is not UTF-8");
    if !part.contains('+') {
        return percent_decode_str(part).decode_utf8().map_err(not_text);
    }
    let spaced = part.replace('+', " ");
    let decoded = percent_decode_str(&spaced).decode_utf8().map_err(not_text)?;
    Ok(Cow::Owned(decoded.into_owned()))
}

fn read<T: FromStr>(name: &str, value: &str) -> Result<T, MatrixError> {
    decode(value)?.parse().map_err(|_| {
        MatrixError::invalid_param(format!("the parameter {name} cannot have the value {value}"))
    })
}

/// `GET /_matrix/client/v3/sync`
async fn sync(
    State(sync): State<ClientSync>,
    State(users): State<Users>,
    State(shutdown): State<Shutdown>,
    user: LocalUser,
    RawQuery(query): RawQuery,
) -> JsonResult {
    let query = Query::parse(query.as_deref().unwrap_or_default())?;
    let since = query.since.as_deref().map(str::parse).transpose().map_err(|BadToken| {
        MatrixError::invalid_param("the parameter since is not a token of this server")
    })?;
    let mut request = SyncRequest {
        filter: filter(&sync, &users, &user.user_id, query.filter).await?,
        user: user.user_id,
        device: user.device_id,
        since,
        full_state: query.full_state,
        set_presence: query.set_presence.unwrap_or(PresenceState::Online),
        timeout: Duration::from_millis(query.timeout),
        state: match (query.use_state_after, query.use_state_after_unstable) {
            (true, _) => StateWanted::After,
            (_, true) => StateWanted::AfterUnstable,
            _ => StateWanted::Before,
        },
        to_device: true,
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

/// A filter given by its id or as JSON, as it stands in the query string.
async fn filter(
    sync: &ClientSync,
    users: &Users,
    user: &UserId,
    given: Option<&str>,
) -> Result<Arc<FilterDefinition>, MatrixError> {
    let Some(given) = given else { return Ok(sync.parse_filter("{}")?) };
    if let Some(filter) = sync.known_filter(given) {
        return Ok(filter);
    }
    let decoded = decode(given)?;
    if decoded.starts_with('{') {
        return Ok(sync.filter_in_query(given, &decoded)?);
    }
    let stored = users.filter(user, &decoded).await.map_err(MatrixError::internal)?;
    let stored = stored.ok_or_else(|| MatrixError::invalid_param("there is no filter of that id"))?;
    Ok(sync.parse_filter(&stored.to_string())?)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_read_as_it_was_meant() {
        let query = "since=s1%5F2&filter=%7B%22a%22%3A1%7D&timeout=30000&full_state=true&set_presence=offline&\
                     org.matrix.msc4222.use_state_after=true&unknown=1&unknown";
        let query = Query::parse(query).unwrap();
        assert_eq!(query.since.as_deref(), Some("s1_2"));
        assert_eq!(query.filter, Some("%7B%22a%22%3A1%7D"));
        assert_eq!(query.timeout, 30_000);
        assert_eq!(query.set_presence, Some(PresenceState::Offline));
        assert!(query.full_state && query.use_state_after_unstable && !query.use_state_after);
        assert_eq!(decode("%7B%22a+b%22%3A+1%7D").unwrap(), "{\"a b\": 1}");
    }

    #[test]
    fn an_empty_parameter_is_none_and_a_wrong_one_refused() {
        let query = Query::parse("since=&filter=&timeout=&full_state=").unwrap();
        assert!(query.since.is_none() && query.filter.is_none() && query.timeout == 0 && !query.full_state);
        for wrong in ["timeout=soon", "timeout=-1", "full_state=1", "use_state_after=yes", "since=%ff"] {
            assert!(Query::parse(wrong).is_err(), "{wrong}");
        }
    }
}
