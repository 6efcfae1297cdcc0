//! What our users ask about things of other servers: who is behind an alias, a profile, a list of rooms.
//! * So many questions are open at once and no more: whoever asks in masses waits for their own.
//! * Profiles are remembered for a moment, as clients ask for the same ones again and again.

use std::{sync::Arc, time::Duration};

use quick_cache::sync::Cache;
use ruma::{OwnedUserId, RoomAliasId, ServerName, UserId};
use serde_json::{Map, Value};
use tokio::{sync::Semaphore, time::Instant};

use crate::{
    client::{DirectoryAnswer, Json, RequestError},
    membership::RemoteRooms,
};

/// Questions to other servers that are open at once.
pub const LOOKUPS_AT_ONCE: usize = 64;
/// How long a profile is remembered.
pub const PROFILE_TIME: Duration = Duration::from_secs(60);
/// Profiles that are remembered.
const PROFILES_KEPT: usize = 1000;
/// A larger profile is not remembered (and not one that the specification allows).
const PROFILE_BYTES_MAX: usize = 128 * 1024;
/// Servers of a room that an alias may name.
const ALIAS_SERVERS_MAX: usize = 50;

/// What is remembered of other servers' answers.
pub(crate) struct Lookups {
    places: Semaphore,
    profiles: Cache<OwnedUserId, (Instant, Arc<Map<String, Value>>)>,
}

impl Default for Lookups {
    fn default() -> Self {
        Self { places: Semaphore::new(LOOKUPS_AT_ONCE), profiles: Cache::new(PROFILES_KEPT) }
    }
}

impl RemoteRooms {
    /// The room behind an alias of another server, and servers in it, that of the alias first if it is one.
    pub async fn resolve_alias(&self, alias: &RoomAliasId) -> Result<DirectoryAnswer, RequestError> {
        let _place = self.lookups().places.acquire().await;
        let server = alias.server_name();
        let client = self.federation().client().even_if_failing();
        let mut answer = client.query_directory(server, alias).await?;
        answer.servers.truncate(ALIAS_SERVERS_MAX);
        if let Some(place) = answer.servers.iter().position(|named| named == server) {
            answer.servers[..=place].rotate_right(1);
        }
        Ok(answer)
    }

    /// The profile of a user of another server.
    pub async fn profile(&self, user: &UserId) -> Result<Arc<Map<String, Value>>, RequestError> {
        let lookups = self.lookups();
        let held = |(since, profile): (Instant, Arc<_>)| (since.elapsed() < PROFILE_TIME).then_some(profile);
        if let Some(profile) = lookups.profiles.get(user).and_then(held) {
            return Ok(profile);
        }
        let _place = lookups.places.acquire().await;
        // Who waited here may find the answer of another.
        if let Some(profile) = lookups.profiles.get(user).and_then(held) {
            return Ok(profile);
        }
        let answer = self.federation().client().query_profile(user.server_name(), user, None).await?;
        let profile: Map<String, Value> =
            answer.parse().map_err(|error| RequestError::Malformed(error.to_string()))?;
        let profile = Arc::new(profile);
        if answer.bytes().len() <= PROFILE_BYTES_MAX {
            lookups.profiles.insert(user.to_owned(), (Instant::now(), profile.clone()));
        }
        Ok(profile)
    }

    /// A page of another server's list of public rooms; `filter` is the body of the question.
    pub async fn public_rooms(&self, server: &ServerName, filter: &str) -> Result<Json, RequestError> {
        #[derive(serde::Deserialize)]
        struct Page {
            #[serde(rename = "chunk")]
            _chunk: Vec<serde::de::IgnoredAny>,
        }
        let _place = self.lookups().places.acquire().await;
        let client = self.federation().client().even_if_failing();
        let answer = client.public_rooms(server, filter).await?;
        answer.parse::<Page>().map_err(|error| RequestError::Malformed(error.to_string()))?;
        Ok(answer)
    }
}
