//! The server's ed25519 signing key: its file and how it is published.
//! * The file has one line, `ed25519 VERSION SEED`, the seed in unpadded base64, as Synapse writes it, and is readable
//!   by its owner only.
//! * Who has it can speak as this server; who loses it cannot go on as the same server in old rooms. So it is written
//!   to the disk before it is used, and never over another.

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use hearth_dag::{
    Keypair, Signer as _, VerifyKey,
    canonical::{Object, Value},
    sign_json,
};
use rand::{Rng as _, distr::Alphanumeric};
use ruma::{OwnedServerName, ServerName};

/// Why the signing key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read or written.
    #[error("the signing key file {} cannot be used: {source}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file holds something else.
    #[error("the signing key file {} is damaged: {problem}", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// A key that this server signed with once. Signatures from before it expired stay valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OldVerifyKey {
    key_id: String,
    public_key: String,
    expired_ts: u64,
}

/// Why something is no old key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OldKeyError {
    /// Its ID is not `ed25519:` and letters, digits and underscores.
    #[error("the old key's ID {0:?} is not \"ed25519:\" with letters, digits and underscores after it")]
    KeyId(String),
    /// It is not 32 bytes in base64, or no point of the curve.
    #[error("the old key {0:?} is not an ed25519 public key in base64")]
    PublicKey(String),
}

impl OldVerifyKey {
    /// A key as the configuration gives it; `expired_ts` in milliseconds since 1970.
    pub fn new(key_id: &str, public_key: &str, expired_ts: u64) -> Result<Self, OldKeyError> {
        let valid = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let version = key_id.strip_prefix("ed25519:").filter(|version| !version.is_empty());
        if !version.is_some_and(|version| version.bytes().all(valid)) {
            return Err(OldKeyError::KeyId(key_id.to_owned()));
        }
        if VerifyKey::from_base64(public_key, None).is_none() {
            return Err(OldKeyError::PublicKey(public_key.to_owned()));
        }
        let public_key = public_key.trim_end_matches('=').to_owned();
        Ok(Self { key_id: key_id.to_owned(), public_key, expired_ts })
    }

    /// Such as `ed25519:a_AbCd`.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// In unpadded base64.
    pub fn public_key(&self) -> &str {
        &self.public_key
    }

    /// Since when it is no longer used, in milliseconds since 1970.
    pub fn expired_ts(&self) -> u64 {
        self.expired_ts
    }
}

/// The key in the file, or a new one that is written there.
pub fn load_or_create_key(path: &Path, server_name: &ServerName) -> Result<Keypair, KeyError> {
    match std::fs::read_to_string(path) {
        Ok(text) => {
            warn_if_others_can_read(path);
            parse(&text, server_name.to_owned())
                .map_err(|problem| KeyError::Damaged { path: path.to_owned(), problem })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => create(path, server_name),
        Err(source) => Err(KeyError::File { path: path.to_owned(), source }),
    }
}

fn parse(text: &str, server_name: OwnedServerName) -> Result<Keypair, String> {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let line = lines.next().ok_or("it is empty")?;
    if lines.next().is_some() {
        return Err("it holds several keys: keep the newest, and publish the others as old keys".to_owned());
    }
    let mut words = line.split_whitespace();
    let (Some("ed25519"), Some(version), Some(seed), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err("its line is not \"ed25519 VERSION SEED\"".to_owned());
    };
    Keypair::from_base64(server_name, version, seed).map_err(|error| error.to_string())
}

#[allow(clippy::disallowed_methods, reason = "a new key is made of chance")]
fn create(path: &Path, server_name: &ServerName) -> Result<Keypair, KeyError> {
    let mut random = rand::rng();
    let suffix: String = (&mut random).sample_iter(Alphanumeric).take(6).map(char::from).collect();
    let version = format!("a_{suffix}");
    let key = Keypair::new(server_name.to_owned(), &version, &random.random())
        .map_err(|error| KeyError::Damaged { path: path.to_owned(), problem: error.to_string() })?;
    let line = format!("ed25519 {version} {}\n", key.seed_base64());
    write_new(path, line.as_bytes()).map_err(|source| KeyError::File { path: path.to_owned(), source })?;
    Ok(key)
}

/// Whole under its name, or not there: a crash in between leaves no half key.
fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let draft = path.with_extension("new");
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    file.write_all(content)?;
    file.sync_all()?;
    // Unlike a rename, a link never replaces a key that another process wrote meanwhile.
    match std::fs::hard_link(&draft, path) {
        Ok(()) => std::fs::remove_file(&draft)?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(error),
        // Not every file system has links.
        Err(_) => std::fs::rename(&draft, path)?,
    }
    std::fs::File::open(folder)?.sync_all()
}

fn warn_if_others_can_read(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    if let Ok(metadata) = std::fs::metadata(path)
        && metadata.permissions().mode() & 0o077 != 0
    {
        tracing::warn!(path = %path.display(), "other users of this machine can read the signing key");
    }
}

/// How long other servers may rely on the published keys.
const VALID_FOR_MS: u64 = 24 * 60 * 60 * 1000;
/// The largest time that canonical JSON can carry.
const LAST_MS: u64 = hearth_dag::limits::MAX_SAFE_INTEGER as u64;

/// The answer to `/_matrix/key/v2/server`, signed with the key that it publishes.
pub fn published_keys(key: &Keypair, now_ms: u64) -> String {
    server_keys(key, &[], now_ms)
}

/// The same with keys that were in use before.
pub fn server_keys(key: &Keypair, old: &[OldVerifyKey], now_ms: u64) -> String {
    let time = |ms: u64| Value::Integer(ms.min(LAST_MS).cast_signed());
    let public = |text: &str| {
        let mut public = Object::default();
        public.insert("key", Value::String(text.to_owned().into()));
        public
    };
    let mut verify_keys = Object::default();
    verify_keys.insert(key.key_id(), Value::Object(public(&key.public_key_base64())));
    let mut old_verify_keys = Object::default();
    for old in old.iter().filter(|old| old.key_id != key.key_id()) {
        let mut entry = public(&old.public_key);
        entry.insert("expired_ts", time(old.expired_ts));
        old_verify_keys.insert(old.key_id.clone(), Value::Object(entry));
    }
    let mut published = Object::default();
    published.insert("server_name", Value::String(key.server_name().as_str().into()));
    published.insert("valid_until_ts", time(now_ms.saturating_add(VALID_FOR_MS)));
    published.insert("verify_keys", Value::Object(verify_keys));
    published.insert("old_verify_keys", Value::Object(old_verify_keys));
    sign_json(key, &mut published);
    published.to_canonical()
}

#[cfg(test)]
mod tests {
    use hearth_dag::ServerKeys;
    use ruma::server_name;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/signing.key");
        let first = load_or_create_key(&path, server_name!("a.test")).unwrap();
        let second = load_or_create_key(&path, server_name!("a.test")).unwrap();
        assert_eq!(first.key_id(), second.key_id());
        assert_eq!(first.public_key(), second.public_key());
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_damaged_key_file_is_refused_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("signing.key");
        std::fs::write(&path, "ed25519 a_1 nonsense").unwrap();
        let error = load_or_create_key(&path, server_name!("a.test")).unwrap_err();
        assert!(error.to_string().contains("signing.key"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "ed25519 a_1 nonsense");
    }

    #[test]
    fn what_synapse_writes_can_be_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.test.signing.key");
        std::fs::write(&path, "ed25519 a_AbCd YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1\n").unwrap();
        let key = load_or_create_key(&path, server_name!("a.test")).unwrap();
        assert_eq!(key.key_id(), "ed25519:a_AbCd");
        // The seed and the public key of the specification's test vectors.
        assert_eq!(key.public_key_base64(), "XGX0JRS2Af3be3knz2fBiRbApjm2Dh61gXDJA8kcJNI");
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("signing.key");
        let seed = "YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1";
        for (text, problem) in [
            (String::new(), "empty"),
            ("\n\n".to_owned(), "empty"),
            ("ed25519 a_1".to_owned(), "VERSION SEED"),
            (format!("curve25519 a_1 {seed}"), "VERSION SEED"),
            (format!("ed25519 a_1 {seed} more"), "VERSION SEED"),
            (format!("ed25519 a:1 {seed}"), "letters, digits and underscores"),
            (format!("ed25519 a_1 {}", &seed[..40]), "32 bytes"),
            (format!("ed25519 a_1 {seed}\ned25519 a_2 {seed}\n"), "several keys"),
        ] {
            std::fs::write(&path, &text).unwrap();
            let error = load_or_create_key(&path, server_name!("a.test")).unwrap_err().to_string();
            assert!(error.contains("signing.key") && error.contains(problem), "{text:?}: {error}");
            assert!(!error.contains(seed), "the seed does not belong into messages");
        }
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        let error = load_or_create_key(&path, server_name!("a.test")).unwrap_err();
        assert!(matches!(error, KeyError::File { .. }), "{error}");
    }

    #[test]
    fn two_first_starts_at_once_make_one_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("signing.key");
        write_new(&path, b"ed25519 a_1 YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1\n").unwrap();
        let late = write_new(&path, b"ed25519 a_2 AAAA\n").unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::AlreadyExists);
        assert!(load_or_create_key(&path, server_name!("a.test")).unwrap().key_id().ends_with("a_1"));
    }

    #[test]
    fn the_published_keys_are_signed_by_the_key_that_they_name() {
        let key = Keypair::new(server_name!("a.test").to_owned(), "a_1", &[3; 32]).unwrap();
        let old = OldVerifyKey::new("ed25519:a_0", &key.public_key_base64(), 1_000).unwrap();
        let current = OldVerifyKey::new("ed25519:a_1", &key.public_key_base64(), 1_000).unwrap();
        let json = server_keys(&key, &[old, current], 1_700_000_000_000);
        let object = Object::parse(&json, true).unwrap();
        let mut keys = ServerKeys::default();
        let public = VerifyKey::from_base64(&key.public_key_base64(), None).unwrap();
        keys.insert(server_name!("a.test").to_owned(), "ed25519:a_1".to_owned(), public);
        keys.verify_json(server_name!("a.test"), &object).unwrap();
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["valid_until_ts"], 1_700_000_000_000_u64 + VALID_FOR_MS);
        assert_eq!(value["verify_keys"]["ed25519:a_1"]["key"], key.public_key_base64());
        assert_eq!(value["old_verify_keys"]["ed25519:a_0"]["expired_ts"], 1_000);
        assert_eq!(value["old_verify_keys"].as_object().unwrap().len(), 1, "a key in use is not old");
        // ruma reads it as a peer would.
        let read: ruma::api::federation::discovery::ServerSigningKeys = serde_json::from_str(&json).unwrap();
        assert_eq!(read.server_name, "a.test");
        assert!(Object::parse(&published_keys(&key, u64::MAX), true).is_ok(), "even at the end of time");
    }

    #[test]
    fn old_keys_are_checked() {
        let good =
            Keypair::new(server_name!("a.test").to_owned(), "a", &[3; 32]).unwrap().public_key_base64();
        for bad in ["a_0", "ed25519:", "ed25519:a b", "rsa:a_0"] {
            assert_eq!(OldVerifyKey::new(bad, &good, 0), Err(OldKeyError::KeyId(bad.to_owned())));
        }
        for bad in ["", "nonsense", &good[..20]] {
            assert_eq!(OldVerifyKey::new("ed25519:a", bad, 0), Err(OldKeyError::PublicKey(bad.to_owned())));
        }
        assert!(OldVerifyKey::new("ed25519:a", &format!("{good}="), 0).is_ok());
    }
}
