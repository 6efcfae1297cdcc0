//! What our users ask about things of other servers: who is behind an alias, a profile, a list of rooms.
//! * So many questions are open at once and no more. Of the free places each asker has a share, and each server that is
//!   asked ([`Shares`]): neither one client nor one slow server takes all of them. Who finds none waits for a moment,
//!   in a line of which each asker has a share too, and then comes again.
//! * A server that could not be reached is not asked again for a moment, whoever wants to know.
//! * Profiles are remembered for a moment, as clients ask for the same ones again and again. Who waited looks there again:
//!   somebody else may have asked the same.

use std::{net::IpAddr, sync::Arc, time::Duration};

use quick_cache::sync::Cache;
use ruma::{OwnedServerName, OwnedUserId, RoomAliasId, ServerName, UserId};
use serde_json::{Map, Value};
use tokio::time::Instant;

use crate::{
    client::{DirectoryAnswer, Json, RequestError},
    membership::RemoteRooms,
    network::NetworkError,
    shares::{Share, Shares, network_of},
};

/// Questions to other servers that are open at once: each may hold an answer of some mebibytes.
pub const LOOKUPS_AT_ONCE: usize = 64;
/// Questions that wait for a place.
pub const LOOKUPS_WAITING: usize = 256;
/// How long they wait.
pub const LOOKUP_PATIENCE: Duration = Duration::from_secs(5);
/// A server that could not be reached is not asked again for so long: a client asks again and again.
pub const UNREACHABLE_TIME: Duration = Duration::from_secs(20);
/// Servers of which it is remembered that they could not be reached.
const UNREACHABLE_KEPT: usize = 1000;
/// How long a profile is remembered.
pub const PROFILE_TIME: Duration = Duration::from_secs(60);
/// Profiles that are remembered.
const PROFILES_KEPT: usize = 1000;
/// A larger profile is not remembered (and not one that the specification allows).
const PROFILE_BYTES_MAX: usize = 128 * 1024;
/// Servers of a room that an alias may name.
const ALIAS_SERVERS_MAX: usize = 50;

/// Who wants to know something of another server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Asker {
    /// A user of ours.
    User(OwnedUserId),
    /// Nobody known, from this address.
    Address(IpAddr),
}

/// A place for one question.
struct Place {
    _of_asker: Share<Asker>,
    _of_server: Share<OwnedServerName>,
}

/// What is remembered of other servers' answers, and who waits for one.
pub(crate) struct Lookups {
    askers: Shares<Asker>,
    servers: Shares<OwnedServerName>,
    waiting: Shares<Asker>,
    unreachable: Cache<OwnedServerName, (Instant, NetworkError)>,
    profiles: Cache<OwnedUserId, (Instant, Arc<Map<String, Value>>)>,
}

impl Default for Lookups {
    fn default() -> Self {
        Self {
            askers: Shares::new(LOOKUPS_AT_ONCE),
            servers: Shares::new(LOOKUPS_AT_ONCE),
            waiting: Shares::new(LOOKUPS_WAITING),
            unreachable: Cache::new(UNREACHABLE_KEPT),
            profiles: Cache::new(PROFILES_KEPT),
        }
    }
}

impl Lookups {
    /// A place for a question to a server, at once or after a while.
    async fn enter(&self, asker: &Asker, server: &ServerName) -> Result<Place, RequestError> {
        self.check(server)?;
        let asker = match asker {
            Asker::Address(address) => Asker::Address(network_of(*address)),
            user @ Asker::User(_) => user.clone(),
        };
        let server = server.to_owned();
        let is_free = self.askers.has_left(&asker, 1) && self.servers.has_left(&server, 1);
        let _line = match is_free {
            true => None,
            false => Some(self.waiting.take(asker.clone(), 1).ok_or(NetworkError::Busy)?),
        };
        let places = self.askers.wait_for_both(asker, &self.servers, server.clone());
        let places = tokio::time::timeout(LOOKUP_PATIENCE, places).await;
        let (of_asker, of_server) = places.map_err(|_| NetworkError::Busy)?;
        // Whoever had the place before may have found out.
        self.check(&server)?;
        Ok(Place { _of_asker: of_asker, _of_server: of_server })
    }

    /// Refuses questions to a server that could not be reached just now.
    fn check(&self, server: &ServerName) -> Result<(), RequestError> {
        match self.unreachable.get(server) {
            Some((since, error)) if since.elapsed() < UNREACHABLE_TIME => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// A profile that is remembered.
    fn profile(&self, user: &UserId) -> Option<Arc<Map<String, Value>>> {
        let (since, profile) = self.profiles.get(user)?;
        (since.elapsed() < PROFILE_TIME).then_some(profile)
    }

    /// Remembers who cannot be reached.
    fn note<T>(&self, server: &ServerName, answer: Result<T, RequestError>) -> Result<T, RequestError> {
        match &answer {
            Err(RequestError::Network(error)) if *error != NetworkError::Busy => {
                self.unreachable.insert(server.to_owned(), (Instant::now(), error.clone()));
            }
            _ => {
                self.unreachable.remove(server);
            }
        }
        answer
    }
}

impl RemoteRooms {
    /// The room behind an alias of another server, and servers in it, that of the alias first if it is one.
    pub async fn resolve_alias(
        &self,
        asker: &Asker,
        alias: &RoomAliasId,
    ) -> Result<DirectoryAnswer, RequestError> {
        let server = alias.server_name();
        let _place = self.lookups().enter(asker, server).await?;
        let client = self.federation().client().even_if_failing();
        let answer = client.query_directory(server, alias).await;
        let mut answer = self.lookups().note(server, answer)?;
        answer.servers.truncate(ALIAS_SERVERS_MAX);
        if let Some(place) = answer.servers.iter().position(|named| named == server) {
            answer.servers[..=place].rotate_right(1);
        }
        Ok(answer)
    }

    /// The profile of a user of another server.
    pub async fn profile(
        &self,
        asker: &Asker,
        user: &UserId,
    ) -> Result<Arc<Map<String, Value>>, RequestError> {
        let lookups = self.lookups();
        if let Some(profile) = lookups.profile(user) {
            return Ok(profile);
        }
        let server = user.server_name();
        let _place = lookups.enter(asker, server).await?;
        if let Some(profile) = lookups.profile(user) {
            return Ok(profile);
        }
        let answer = self.federation().client().query_profile(server, user, None).await;
        let answer = lookups.note(server, answer)?;
        let profile: Map<String, Value> =
            answer.parse().map_err(|error| RequestError::Malformed(error.to_string()))?;
        let profile = Arc::new(profile);
        if answer.bytes().len() <= PROFILE_BYTES_MAX {
            lookups.profiles.insert(user.to_owned(), (Instant::now(), profile.clone()));
        }
        Ok(profile)
    }

    /// A page of another server's list of public rooms; `filter` is the body of the question.
    pub async fn public_rooms(
        &self,
        asker: &Asker,
        server: &ServerName,
        filter: &str,
    ) -> Result<Json, RequestError> {
        #[derive(serde::Deserialize)]
        struct Page {
            #[serde(rename = "chunk")]
            _chunk: Vec<serde::de::IgnoredAny>,
        }
        let _place = self.lookups().enter(asker, server).await?;
        let client = self.federation().client().even_if_failing();
        let answer = client.public_rooms(server, filter).await;
        let answer = self.lookups().note(server, answer)?;
        answer.parse::<Page>().map_err(|error| RequestError::Malformed(error.to_string()))?;
        Ok(answer)
    }
}
