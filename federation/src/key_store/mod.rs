//! Other servers' signing keys: fetched from them or from notaries, kept, and shown to others as a notary.
//! * An answer is believed if its own keys signed it; a notary's only if the notary signed it too.
//! * What was once known of a key stays known, so that old events can be checked when their server is gone.
//! * One fetch per server at a time. One that has begun goes on when those who waited for it have left; one that still
//!   waits for its turn does not. So many are made at once for what we have to check, of which whoever makes us ask has a
//!   share, and as many for requests of strangers; who waits for the same fetch lends it their share. What notaries are
//!   asked about many servers at once is beside these.
//! * Whoever answered is not asked by us again within [`ASKED_AGAIN_MS`], and whoever did not rests for longer after each
//!   failure.

mod fetch;
mod needs;
mod notary;
mod response;
mod strangers;

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    ops::Deref,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use hearth_dag::{Keypair, ServerKeys, Signer as _, VerifyKey};
use hearth_store::{Blob, Commit, CommitError, Store, StoreError};
use parking_lot::Mutex;
use quick_cache::sync::Cache;
use ruma::{MilliSecondsSinceUnixEpoch, OwnedServerName, ServerName, UInt};

pub use self::{
    needs::{KeyNeeds, SIGNATURES_PER_SERVER},
    notary::{BadQuery, KeyQuery, QUERY_FETCHES_MAX, QUERY_SERVERS_MAX, QUERY_TIME},
    response::{BadKeys, KEY_ID_BYTES, KEY_RESPONSE_BYTES, KEYS_PER_SERVER, KeyResponse, VALID_AT_MOST_MS},
    strangers::STRANGERS_AT_ONCE,
};
use crate::{
    access::Access,
    keys::{OldVerifyKey, server_keys},
    network::Network,
    shares::Shares,
    tables::{KEY_RESPONSES, KnownKey, SERVER_KEYS, ServerKeysRow},
};

/// Tells the time: milliseconds since 1970.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// Servers whose keys are held in memory.
pub const SERVERS_IN_MEMORY: usize = 10_000;
/// A server that has answered is not asked again within this time, whatever is missing.
pub const ASKED_AGAIN_MS: u64 = 10_000;
/// How long a check waits for keys that have to be fetched.
pub const KEYS_TIME: Duration = Duration::from_secs(30);
/// How often a commit is tried that others get ahead of.
const COMMIT_TRIES: usize = 5;

/// Keys of servers. Cheap to clone.
#[derive(Clone)]
pub struct KeyStore(Arc<Inner>);

struct Inner {
    store: Store,
    network: Arc<dyn Network>,
    own: Vec<OwnKeys>,
    access: Access,
    notaries: Vec<OwnedServerName>,
    clock: Clock,
    known: Cache<OwnedServerName, Arc<Known>>,
    fetching: Mutex<HashMap<OwnedServerName, fetch::Fetching>>,
    failed: Cache<OwnedServerName, fetch::Failed>,
    places: Shares<fetch::Cause>,
    strangers: strangers::Strangers,
}

/// The keys of a server that this process is.
#[derive(Debug, Clone)]
pub struct OwnKeys {
    /// The one in use.
    pub key: Arc<Keypair>,
    /// Those of before.
    pub old: Vec<OldVerifyKey>,
}

impl OwnKeys {
    /// Whose they are.
    pub fn server_name(&self) -> &ServerName {
        self.key.server_name()
    }
}

/// What a key store is made of.
pub struct KeyStoreOptions {
    /// Where keys are kept.
    pub store: Store,
    /// How servers are reached.
    pub network: Arc<dyn Network>,
    /// The keys of our own servers, the one that signs as a notary first.
    pub own: Vec<OwnKeys>,
    /// Whom to talk to.
    pub access: Access,
    /// Who is asked about servers that do not answer.
    pub trusted_key_servers: Vec<OwnedServerName>,
    /// The time.
    pub clock: Clock,
}

/// Why there is no key to check a request with.
#[derive(Debug, thiserror::Error)]
pub enum KeyLookupError {
    /// The server does not have such a key now, or cannot be asked.
    #[error("the key {key_id} of {server} is not known or no longer valid")]
    Unknown {
        /// Whose.
        server: OwnedServerName,
        /// Which.
        key_id: String,
    },
    /// Too many are fetched for those who ask from that address already.
    #[error("too many keys are being fetched")]
    Busy,
    /// The keys cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// From whom an answer came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// From the server itself, over TLS.
    Direct,
    /// From somebody who may repeat an old one.
    Notary,
}

impl KeyStore {
    /// A key store of these parts.
    pub fn new(options: KeyStoreOptions) -> Self {
        Self(Arc::new(Inner {
            store: options.store,
            network: options.network,
            own: options.own,
            access: options.access,
            notaries: options.trusted_key_servers,
            clock: options.clock,
            known: Cache::new(SERVERS_IN_MEMORY),
            fetching: Mutex::default(),
            failed: Cache::new(SERVERS_IN_MEMORY),
            places: Shares::new(fetch::FETCHES_AT_ONCE),
            strangers: strangers::Strangers::default(),
        }))
    }

    /// The keys of a server of ours, as it publishes them.
    pub fn published(&self, server: &ServerName) -> Option<String> {
        self.0.own(server).map(|own| server_keys(&own.key, &own.old, (self.0.clock)()))
    }

    /// The key that a request of a server is signed with: one in use now. It came from this address, of whose requests
    /// only some are fetched for at a time.
    pub async fn request_key(
        &self,
        from: IpAddr,
        server: &ServerName,
        key_id: &str,
    ) -> Result<VerifyKey, KeyLookupError> {
        let now_ms = (self.0.clock)();
        let mut needs = KeyNeeds::new();
        needs.add(server, vec![key_id.to_owned()], now_ms);
        self.fetch_for_stranger(from, server, &needs).await?;
        let known = self.0.known(server).await?;
        let key = known.points().find(|(key, _)| key.key_id == key_id);
        let key = key.filter(|(key, _)| !key.old && key.valid_until_ms >= now_ms);
        let unknown = || KeyLookupError::Unknown { server: server.to_owned(), key_id: key_id.to_owned() };
        key.map(|(_, point)| point.clone()).ok_or_else(unknown)
    }

    /// What is known of these keys, after what is missing was asked for; at most [`KEYS_TIME`] is waited. A key that
    /// nobody gave is not among them, and the check that needs it will fail.
    pub async fn keys_for(&self, needs: &KeyNeeds) -> Result<ServerKeys, StoreError> {
        self.fetch_missing(needs, KEYS_TIME).await?;
        let mut keys = ServerKeys::default();
        for server in needs.servers() {
            if let Some(own) = self.0.own(server) {
                add_own(&mut keys, own);
                continue;
            }
            let known = self.0.known(server).await?;
            for (key, point) in known.points() {
                keys.insert(server.clone(), key.key_id.clone(), point.clone());
            }
        }
        Ok(keys)
    }

    /// Takes over keys that were had in another way, such as from a peer under test. They are checked all the same.
    pub async fn learn(&self, server: &ServerName, json: &str) -> Result<(), LearnError> {
        let response = KeyResponse::read(json, server, (self.0.clock)())?;
        Ok(self.0.learn(server, response, Source::Direct).await?)
    }
}

/// Why keys were not taken over.
#[derive(Debug, thiserror::Error)]
pub enum LearnError {
    /// They are not believable.
    #[error(transparent)]
    Keys(#[from] BadKeys),
    /// They cannot be written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn add_own(keys: &mut ServerKeys, own: &OwnKeys) {
    let server = own.key.server_name();
    if let Some(public) = VerifyKey::new(&own.key.public_key(), None) {
        keys.insert(server.to_owned(), own.key.key_id().to_owned(), public);
    }
    for old in own.old.iter().filter(|old| old.key_id() != own.key.key_id()) {
        let until = UInt::new(old.expired_ts()).map(MilliSecondsSinceUnixEpoch);
        if let Some(public) = VerifyKey::from_base64(old.public_key(), until) {
            keys.insert(server.to_owned(), old.key_id().to_owned(), public);
        }
    }
}

/// What is known of a server, and its keys as points of the curve: to find the point takes longer than half of a check.
struct Known {
    row: ServerKeysRow,
    /// As many as there are keys.
    points: OnceLock<Vec<Option<VerifyKey>>>,
}

impl From<ServerKeysRow> for Known {
    fn from(row: ServerKeysRow) -> Self {
        Self { row, points: OnceLock::new() }
    }
}

impl Deref for Known {
    type Target = ServerKeysRow;

    fn deref(&self) -> &ServerKeysRow {
        &self.row
    }
}

impl Known {
    /// Its keys, and each to check with; what is no point is left out.
    fn points(&self) -> impl Iterator<Item = (&KnownKey, &VerifyKey)> {
        let points = self.points.get_or_init(|| {
            let until = |key: &KnownKey| UInt::new(key.valid_until_ms).map(MilliSecondsSinceUnixEpoch);
            self.keys.iter().map(|key| VerifyKey::new(&key.public_key, until(key))).collect()
        });
        self.keys.iter().zip(points).filter_map(|(key, point)| Some((key, point.as_ref()?)))
    }
}

impl Inner {
    fn own(&self, server: &ServerName) -> Option<&OwnKeys> {
        self.own.iter().find(|own| own.key.server_name() == server)
    }

    /// What is known of a server; nothing is an empty row.
    async fn known(&self, server: &ServerName) -> Result<Arc<Known>, StoreError> {
        if let Some(known) = self.known.get(server) {
            return Ok(known);
        }
        let row = self.store.get(&SERVER_KEYS, &server.to_string()).await?;
        let known = Arc::new(Known::from(row.unwrap_or_default()));
        if known.fetched_ms > 0 {
            self.remember(server, known.clone());
        }
        Ok(known)
    }

    /// Puts a row into memory, unless a newer one is there.
    fn remember(&self, server: &ServerName, known: Arc<Known>) {
        if self.known.get(server).is_none_or(|there| there.fetched_ms <= known.fetched_ms) {
            self.known.insert(server.to_owned(), known);
        }
    }

    /// Writes a believable answer down beside what is known.
    async fn learn(
        &self,
        server: &ServerName,
        response: KeyResponse,
        source: Source,
    ) -> Result<(), StoreError> {
        let name = server.to_string();
        let mut last = StoreError::Invalid("others got ahead of every try".to_owned());
        for _ in 0..COMMIT_TRIES {
            let before = self.store.get(&SERVER_KEYS, &name).await?;
            let mut commit = Commit::new();
            match &before {
                Some(before) => commit.expect(&SERVER_KEYS, &name, before),
                None => commit.expect_absent(&SERVER_KEYS, &name),
            }
            let newest = is_newest(before.as_ref(), &response.row, source);
            let row = merged(before.unwrap_or_default(), &response.row, newest);
            commit.put(&SERVER_KEYS, &name, &row);
            if newest {
                commit.put(&KEY_RESPONSES, &name, &Blob(Bytes::copy_from_slice(response.json.as_bytes())));
            }
            match self.store.commit(commit).await {
                Ok(_) => {
                    self.remember(server, Arc::new(row.into()));
                    return Ok(());
                }
                Err(CommitError::Conflict) => {}
                Err(CommitError::Store(error)) => last = error,
            }
        }
        Err(last)
    }
}

/// Whether an answer says what holds now. A notary may repeat one that has been overtaken.
fn is_newest(before: Option<&ServerKeysRow>, answer: &ServerKeysRow, source: Source) -> bool {
    source == Source::Direct || before.is_none_or(|before| answer.valid_until_ms >= before.valid_until_ms)
}

/// What is known after an answer: its keys, and those that were known before it. One that is not the newest adds keys
/// and changes none.
fn merged(before: ServerKeysRow, answer: &ServerKeysRow, newest: bool) -> ServerKeysRow {
    let mut keys = BTreeMap::new();
    let (first, second) = match newest {
        true => (&before.keys, &answer.keys),
        false => (&answer.keys, &before.keys),
    };
    for key in first.iter().chain(second) {
        keys.insert(key.key_id.clone(), key.clone());
    }
    if newest {
        // A key that the server names no longer is not in use, though what it signed in its time stays signed.
        for key in &before.keys {
            if !answer.keys.iter().any(|named| named.key_id == key.key_id)
                && let Some(gone) = keys.get_mut(&key.key_id)
            {
                gone.old = true;
                gone.valid_until_ms = gone.valid_until_ms.min(answer.fetched_ms);
            }
        }
    }
    let mut keys: Vec<_> = keys.into_values().collect();
    response::limit(&mut keys);
    let valid_until_ms = if newest { answer.valid_until_ms } else { before.valid_until_ms };
    ServerKeysRow { fetched_ms: answer.fetched_ms.max(before.fetched_ms), valid_until_ms, keys }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::KnownKey;

    fn row(fetched_ms: u64, valid_until_ms: u64, keys: &[(&str, u64, bool)]) -> ServerKeysRow {
        let key = |&(id, valid_until_ms, old): &(&str, u64, bool)| KnownKey {
            key_id: id.to_owned(),
            public_key: [0; 32],
            valid_until_ms,
            old,
        };
        ServerKeysRow { fetched_ms, valid_until_ms, keys: keys.iter().map(key).collect() }
    }

    #[test]
    fn a_newer_answer_changes_keys_and_forgets_none() {
        let before = row(1, 100, &[("ed25519:1", 100, false), ("ed25519:2", 100, false)]);
        let answer = row(2, 200, &[("ed25519:3", 200, false), ("ed25519:1", 50, true)]);
        let expected =
            row(2, 200, &[("ed25519:3", 200, false), ("ed25519:1", 50, true), ("ed25519:2", 2, true)]);
        assert_eq!(merged(before, &answer, true), expected);
    }

    #[test]
    fn an_older_answer_only_adds_keys() {
        let before = row(2, 200, &[("ed25519:1", 50, true)]);
        let answer = row(3, 100, &[("ed25519:1", 100, false), ("ed25519:0", 100, false)]);
        assert!(!is_newest(Some(&before), &answer, Source::Notary));
        assert!(is_newest(Some(&before), &answer, Source::Direct));
        let expected = row(3, 200, &[("ed25519:0", 100, false), ("ed25519:1", 50, true)]);
        assert_eq!(merged(before, &answer, false), expected);
    }
}
