//! The server's ed25519 signing key: its file and how it is published.
//! * The file has one line, `ed25519 VERSION SEED`, the seed in unpadded base64, and is readable by its owner only.
//! * Who has it can speak as this server; who loses it cannot go on as the same server in old rooms. So it is written
//!   to the disk before it is used, and never over another.

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use hearth_dag::{
    Keypair, Signer as _,
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

/// The key in the file, or a new one that is written there.
pub fn load_or_create_key(path: &Path, server_name: &ServerName) -> Result<Keypair, KeyError> {
    match std::fs::read_to_string(path) {
        Ok(text) => parse(&text, server_name.to_owned())
            .map_err(|problem| KeyError::Damaged { path: path.to_owned(), problem }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => create(path, server_name),
        Err(source) => Err(KeyError::File { path: path.to_owned(), source }),
    }
}

fn parse(text: &str, server_name: OwnedServerName) -> Result<Keypair, String> {
    let line = text.lines().find(|line| !line.trim().is_empty()).ok_or("it is empty")?;
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
    std::fs::hard_link(&draft, path)?;
    std::fs::remove_file(&draft)?;
    std::fs::File::open(folder)?.sync_all()
}

/// How long other servers may rely on the published keys.
const VALID_FOR_MS: u64 = 24 * 60 * 60 * 1000;

/// The answer to `/_matrix/key/v2/server`, signed with the key that it publishes.
pub fn published_keys(key: &Keypair, now_ms: u64) -> String {
    let valid_until_ms = i64::try_from(now_ms + VALID_FOR_MS).unwrap_or(i64::MAX);
    let mut public = Object::default();
    public.insert("key", Value::String(key.public_key_base64().into()));
    let mut verify_keys = Object::default();
    verify_keys.insert(key.key_id(), Value::Object(public));
    let mut published = Object::default();
    published.insert("server_name", Value::String(key.server_name().as_str().into()));
    published.insert("valid_until_ts", Value::Integer(valid_until_ms));
    published.insert("verify_keys", Value::Object(verify_keys));
    published.insert("old_verify_keys", Value::Object(Object::default()));
    sign_json(key, &mut published);
    published.to_canonical()
}

#[cfg(test)]
mod tests {
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
}
