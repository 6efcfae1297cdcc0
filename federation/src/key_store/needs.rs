//! Which keys a signature check needs, gathered from what is to be checked.

use std::collections::BTreeMap;

use hearth_dag::{
    POLICY_KEY_ID, ReceivedPdu, RoomRules,
    canonical::{Object, Value},
    required_signatures,
};
use ruma::{OwnedServerName, ServerName};

use super::fetch::Cause;
use crate::tables::{KnownKey, ServerKeysRow};

/// Signatures of one server on one object that are looked at.
pub const SIGNATURES_PER_SERVER: usize = 4;

/// Keys that are needed: of each server sets of key IDs, of which one must be valid up to a time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyNeeds {
    keys: BTreeMap<OwnedServerName, BTreeMap<Vec<String>, u64>>,
    cause: Option<Cause>,
}

impl KeyNeeds {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// It is this server that makes us need them, by what it sent. Of the keys that are fetched at once, only a part is
    /// fetched because of one server.
    #[must_use]
    pub fn because_of(self, server: &ServerName) -> Self {
        Self { cause: Some(Cause::Server(server.to_owned())), ..self }
    }

    /// This server gave us what they are needed for when we asked it: a part of its own, so that what it sends on its own
    /// account does not wait for that.
    #[must_use]
    pub fn asked_of(self, server: &ServerName) -> Self {
        Self { cause: Some(Cause::Asked(server.to_owned())), ..self }
    }

    /// Who makes us need them.
    pub(super) fn cause(&self) -> Cause {
        self.cause.clone().unwrap_or(Cause::Us)
    }

    /// What an event's signatures need, by the rules of its room's version.
    pub fn add_pdu(&mut self, rules: &RoomRules, pdu: &ReceivedPdu) {
        let pdu = pdu.pdu();
        // Before version 5 a key is good whenever it was valid.
        let at_ms = match rules.inner.enforce_key_validity {
            true => u64::from(pdu.origin_server_ts().0),
            false => 0,
        };
        let object = pdu.to_object();
        for server in required_signatures(rules, pdu) {
            self.add_signed(&server, &object, at_ms);
        }
    }

    /// What the signature of a server on a JSON object needs.
    pub fn add_signed(&mut self, server: &ServerName, object: &Object<'_>, at_ms: u64) {
        let signatures = object.get("signatures").and_then(Value::as_object);
        let of_server = signatures.and_then(|all| all.get(server.as_str())).and_then(Value::as_object);
        let ids = of_server.into_iter().flat_map(Object::iter).map(|(key_id, _)| key_id);
        let ids: Vec<String> = ids
            .filter(|key_id| key_id.starts_with("ed25519:") && key_id.len() <= super::KEY_ID_BYTES)
            // That key is published nowhere: it stands in the room's state.
            .filter(|key_id| *key_id != POLICY_KEY_ID)
            .take(SIGNATURES_PER_SERVER)
            .map(str::to_owned)
            .collect();
        // Without a signature there is nothing to be had: the check will say so.
        if !ids.is_empty() {
            self.add(server, ids, at_ms);
        }
    }

    /// One of these keys, valid up to that time.
    pub fn add(&mut self, server: &ServerName, key_ids: Vec<String>, at_ms: u64) {
        let of_server = match self.keys.get_mut(server) {
            Some(of_server) => of_server,
            None => self.keys.entry(server.to_owned()).or_default(),
        };
        let until = of_server.entry(key_ids).or_default();
        *until = at_ms.max(*until);
    }

    /// The servers whose keys are needed.
    pub fn servers(&self) -> impl Iterator<Item = &OwnedServerName> {
        self.keys.keys()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether what is known of a server is all that is needed.
    pub(super) fn are_met(&self, server: &ServerName, known: &ServerKeysRow) -> bool {
        self.of(server).all(|(ids, at_ms)| known_of(known, ids).any(|key| key.valid_until_ms >= at_ms))
    }

    /// Whether asking the server again could bring what is needed: an unknown key, or a longer validity.
    pub(super) fn could_be_met(&self, server: &ServerName, known: &ServerKeysRow, now_ms: u64) -> bool {
        let latest = now_ms.saturating_add(super::VALID_AT_MOST_MS);
        self.of(server).any(|(ids, at_ms)| {
            let met = known_of(known, ids).any(|key| key.valid_until_ms >= at_ms);
            let unknown = ids.iter().any(|id| !known.keys.iter().any(|key| key.key_id == *id));
            !met && at_ms <= latest && (unknown || known_of(known, ids).any(|key| !key.old))
        })
    }

    fn of(&self, server: &ServerName) -> impl Iterator<Item = (&[String], u64)> {
        self.keys.get(server).into_iter().flatten().map(|(ids, at_ms)| (ids.as_slice(), *at_ms))
    }
}

fn known_of<'a>(known: &'a ServerKeysRow, ids: &'a [String]) -> impl Iterator<Item = &'a KnownKey> {
    known.keys.iter().filter(move |key| ids.contains(&key.key_id))
}

#[cfg(test)]
mod tests {
    use ruma::server_name;

    use super::*;

    fn known(key_id: &str, valid_until_ms: u64, old: bool) -> ServerKeysRow {
        let key = KnownKey { key_id: key_id.to_owned(), public_key: [0; 32], valid_until_ms, old };
        ServerKeysRow { fetched_ms: 0, valid_until_ms, keys: vec![key] }
    }

    #[test]
    fn one_of_several_signatures_is_enough_and_the_latest_time_counts() {
        let server = server_name!("a.test");
        let mut needs = KeyNeeds::new();
        let object =
            Object::parse(r#"{"signatures":{"a.test":{"ed25519:1":"x","ed25519:2":"y"},"b.test":{}}}"#, true);
        let object = object.unwrap();
        needs.add_signed(server, &object, 10);
        needs.add_signed(server, &object, 5);
        needs.add_signed(server_name!("b.test"), &object, 5);
        needs.add_signed(server_name!("c.test"), &object, 5);
        assert_eq!(needs.servers().collect::<Vec<_>>(), [server], "who did not sign needs no key");
        assert!(needs.are_met(server, &known("ed25519:2", 10, false)));
        assert!(!needs.are_met(server, &known("ed25519:2", 9, false)));
        assert!(!needs.are_met(server, &known("ed25519:3", 99, false)));
    }

    #[test]
    fn what_cannot_help_is_not_asked_for() {
        let server = server_name!("a.test");
        let mut needs = KeyNeeds::new();
        needs.add(server, vec!["ed25519:1".to_owned()], 1_000);
        assert!(needs.could_be_met(server, &ServerKeysRow::default(), 0), "an unknown key");
        assert!(
            needs.could_be_met(server, &known("ed25519:1", 10, false), 500),
            "one that may be good for longer"
        );
        assert!(!needs.could_be_met(server, &known("ed25519:1", 10, true), 500), "one that has ended");
        assert!(!needs.could_be_met(server, &known("ed25519:1", 1_000, false), 500), "one that does");
        let mut needs = KeyNeeds::new();
        needs.add(server, vec!["ed25519:1".to_owned()], super::super::VALID_AT_MOST_MS + 501);
        assert!(!needs.could_be_met(server, &ServerKeysRow::default(), 500), "no key is good for so long");
    }
}
