//! Being a notary: others ask us for the keys of servers, and get what those servers published, with our signature.

use std::{collections::BTreeMap, time::Duration};

use hearth_dag::{
    canonical::{Object, Value},
    sign_json,
};
use hearth_store::StoreError;
use ruma::{OwnedServerName, ServerName};

use super::{ASKED_AGAIN_MS, KeyStore, fetch::Cause};
use crate::tables::{KEY_RESPONSES, ServerKeysRow};

/// Servers of one question that are looked at.
pub const QUERY_SERVERS_MAX: usize = 1_000;
/// Servers that are asked because of one question; the others get what is known.
pub const QUERY_FETCHES_MAX: usize = 50;
/// How long who asks has to wait for them.
pub const QUERY_TIME: Duration = Duration::from_secs(15);
/// The largest answer; what does not fit into it is left out.
const ANSWER_BYTES: usize = 4 * 1024 * 1024;

/// What somebody wants to know of servers' keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyQuery(BTreeMap<OwnedServerName, Criteria>);

/// Key IDs, and how long they are to be valid. No key IDs: all keys, valid so long.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Criteria {
    keys: BTreeMap<String, u64>,
    valid_until_ms: u64,
}

/// Why a question cannot be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadQuery {
    /// Not an object of objects of objects.
    #[error("server_keys is not an object of servers with objects of key IDs")]
    Shape,
    /// A name that is none.
    #[error("server_keys has something else than server names")]
    ServerName,
    /// More than [`QUERY_SERVERS_MAX`] servers.
    #[error("more than {QUERY_SERVERS_MAX} servers")]
    TooMany,
}

impl KeyQuery {
    /// All keys of one server.
    pub fn of_server(server: OwnedServerName, minimum_valid_until_ms: Option<u64>) -> Self {
        let valid_until_ms = minimum_valid_until_ms.unwrap_or_default();
        Self(BTreeMap::from([(server, Criteria { keys: BTreeMap::new(), valid_until_ms })]))
    }

    /// The `server_keys` of a `POST`.
    pub fn parse(server_keys: &serde_json::Value) -> Result<Self, BadQuery> {
        let servers = server_keys.as_object().ok_or(BadQuery::Shape)?;
        if servers.len() > QUERY_SERVERS_MAX {
            return Err(BadQuery::TooMany);
        }
        let mut query = BTreeMap::new();
        for (name, wanted) in servers {
            let server = ServerName::parse(name.as_str()).map_err(|_| BadQuery::ServerName)?;
            let mut keys = BTreeMap::new();
            for (key_id, criteria) in wanted.as_object().ok_or(BadQuery::Shape)? {
                let minimum = criteria.as_object().ok_or(BadQuery::Shape)?.get("minimum_valid_until_ts");
                let minimum = match minimum {
                    None | Some(serde_json::Value::Null) => 0,
                    Some(minimum) => minimum.as_u64().ok_or(BadQuery::Shape)?,
                };
                keys.insert(key_id.clone(), minimum);
            }
            query.insert(server, Criteria { keys, valid_until_ms: 0 });
        }
        Ok(Self(query))
    }
}

impl Criteria {
    /// Whether what is known is all that is wanted. Who does not say how long wants keys that are good now.
    fn are_met(&self, known: &ServerKeysRow, now_ms: u64) -> bool {
        if self.keys.is_empty() {
            return known.valid_until_ms >= self.valid_until_ms.max(now_ms);
        }
        self.keys.iter().all(|(key_id, minimum)| {
            let minimum = if *minimum == 0 { now_ms } else { *minimum };
            known.keys.iter().any(|key| key.key_id == *key_id && (key.old || key.valid_until_ms >= minimum))
        })
    }
}

impl KeyStore {
    /// The answer to a question, JSON. Servers of which nothing is known, and nothing can be had, are left out.
    pub async fn answer(&self, query: &KeyQuery) -> Result<String, StoreError> {
        let now_ms = (self.0.clock)();
        let mut to_ask = Vec::new();
        for (server, criteria) in &query.0 {
            let known = self.0.known(server).await?;
            let rested = now_ms >= known.fetched_ms.saturating_add(ASKED_AGAIN_MS);
            if rested && !criteria.are_met(&known, now_ms) && to_ask.len() < QUERY_FETCHES_MAX {
                to_ask.push(server.clone());
            }
        }
        // Not by way of other notaries: two that trust each other would ask in circles. Late ones are left out.
        let _ = tokio::time::timeout(QUERY_TIME, self.fetch_all(&to_ask, false, &Cause::Notary)).await;
        let mut answer = String::from("{\"server_keys\":[");
        let mut first = true;
        for server in query.0.keys() {
            let Some(json) = self.countersigned(server).await? else { continue };
            if answer.len() + json.len() > ANSWER_BYTES {
                break;
            }
            if !first {
                answer.push(',');
            }
            first = false;
            answer.push_str(&json);
        }
        answer.push_str("]}");
        Ok(answer)
    }

    /// What a server published, with our signature beside its own.
    async fn countersigned(&self, server: &ServerName) -> Result<Option<String>, StoreError> {
        if let Some(published) = self.published(server) {
            return Ok(Some(published));
        }
        let (Some(own), Some(response)) =
            (self.0.own.first(), self.0.store.get(&KEY_RESPONSES, &server.to_string()).await?)
        else {
            return Ok(None);
        };
        let Ok(text) = std::str::from_utf8(&response.0) else { return Ok(None) };
        let Ok(mut object) = Object::parse(text, false) else { return Ok(None) };
        // Only the server's own signature goes on: others are nothing to do with us.
        if let Some(Value::Object(mut signatures)) = object.remove("signatures") {
            signatures.retain(|name, _| name == server.as_str());
            object.insert("signatures", Value::Object(signatures));
        }
        sign_json(&*own.key, &mut object);
        Ok(Some(object.to_canonical()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn questions_are_read_and_bounded() {
        let query = json!({ "a.test": { "ed25519:1": { "minimum_valid_until_ts": 5 }, "ed25519:2": {} }, "b.test": {} });
        let query = KeyQuery::parse(&query).unwrap();
        let a = &query.0[<&ServerName>::try_from("a.test").unwrap()];
        assert_eq!(a.keys, BTreeMap::from([("ed25519:1".to_owned(), 5), ("ed25519:2".to_owned(), 0)]));
        for (wrong, why) in [
            (json!([]), BadQuery::Shape),
            (json!({ "a.test": [] }), BadQuery::Shape),
            (json!({ "a.test": { "ed25519:1": 1 } }), BadQuery::Shape),
            (json!({ "a.test": { "ed25519:1": { "minimum_valid_until_ts": "x" } } }), BadQuery::Shape),
            (json!({ "a test": {} }), BadQuery::ServerName),
        ] {
            assert_eq!(KeyQuery::parse(&wrong), Err(why), "{wrong}");
        }
        let many = (0..=QUERY_SERVERS_MAX).map(|n| (format!("s{n}.test"), json!({}))).collect();
        assert_eq!(KeyQuery::parse(&serde_json::Value::Object(many)), Err(BadQuery::TooMany));
    }

    #[test]
    fn a_key_of_before_is_good_enough_for_who_names_it() {
        let key = |key_id: &str, valid_until_ms, old| crate::tables::KnownKey {
            key_id: key_id.to_owned(),
            public_key: [0; 32],
            valid_until_ms,
            old,
        };
        let known = ServerKeysRow {
            fetched_ms: 1,
            valid_until_ms: 100,
            keys: vec![key("ed25519:1", 100, false), key("ed25519:0", 10, true)],
        };
        let criteria = |ids: &[(&str, u64)], valid_until_ms| Criteria {
            keys: ids.iter().map(|(id, minimum)| ((*id).to_owned(), *minimum)).collect(),
            valid_until_ms,
        };
        for (criteria, now_ms, met) in [
            (criteria(&[], 0), 100, true),
            (criteria(&[], 0), 101, false),
            (criteria(&[], 101), 1, false),
            (criteria(&[("ed25519:1", 0)], 0), 100, true),
            (criteria(&[("ed25519:1", 101)], 0), 1, false),
            (criteria(&[("ed25519:1", 50)], 0), 101, true),
            (criteria(&[("ed25519:0", 0)], 0), 100, true),
            (criteria(&[("ed25519:2", 0)], 0), 100, false),
        ] {
            assert_eq!(criteria.are_met(&known, now_ms), met, "{criteria:?} {now_ms}");
        }
    }
}
