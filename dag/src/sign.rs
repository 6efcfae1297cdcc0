//! Signing, and which servers are ours to sign for.

use std::{collections::BTreeMap, fmt, sync::Arc};

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose::STANDARD_NO_PAD},
};
use ed25519_dalek::{Signer as _, SigningKey};
use ruma::{OwnedServerName, ServerName};

use crate::canonical::{Object, Value};

/// Signs in the name of one server.
pub trait Signer: Send + Sync {
    /// The server whose signature it makes.
    fn server_name(&self) -> &ServerName;
    /// The key's ID, such as `ed25519:a_AbCd`.
    fn key_id(&self) -> &str;
    /// The signature of a message.
    fn sign(&self, message: &[u8]) -> [u8; 64];
}

/// An ed25519 key of a server.
pub struct Keypair {
    server_name: OwnedServerName,
    key_id: String,
    key: SigningKey,
}

/// Why something is not a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeypairError {
    /// The version has other characters than `a-z A-Z 0-9 _`, or none.
    #[error("the key's version {0:?} may have only letters, digits and underscores")]
    BadVersion(String),
    /// The seed is not 32 bytes of base64.
    #[error("the key's seed is not 32 bytes in base64")]
    BadSeed,
}

impl Keypair {
    /// A key from its seed. `version` is what follows `ed25519:` in the key's ID.
    pub fn new(server_name: OwnedServerName, version: &str, seed: &[u8; 32]) -> Result<Self, KeypairError> {
        let valid = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        if version.is_empty() || !version.bytes().all(valid) {
            return Err(KeypairError::BadVersion(version.to_owned()));
        }
        Ok(Self { server_name, key_id: format!("ed25519:{version}"), key: SigningKey::from_bytes(seed) })
    }

    /// A key from its seed in base64.
    pub fn from_base64(
        server_name: OwnedServerName,
        version: &str,
        seed: &str,
    ) -> Result<Self, KeypairError> {
        let seed = decode_base64(seed).and_then(|seed| seed.try_into().ok()).ok_or(KeypairError::BadSeed)?;
        Self::new(server_name, version, &seed)
    }

    /// The seed, to be written into a file.
    pub fn seed_base64(&self) -> String {
        STANDARD_NO_PAD.encode(self.key.to_bytes())
    }

    /// The public key.
    pub fn public_key(&self) -> [u8; 32] {
        self.key.verifying_key().to_bytes()
    }

    /// The public key in unpadded base64, as it is published.
    pub fn public_key_base64(&self) -> String {
        STANDARD_NO_PAD.encode(self.public_key())
    }
}

impl Signer for Keypair {
    fn server_name(&self) -> &ServerName {
        &self.server_name
    }

    fn key_id(&self) -> &str {
        &self.key_id
    }

    fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.key.sign(message).to_bytes()
    }
}

impl fmt::Debug for Keypair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keypair({} {})", self.server_name, self.key_id)
    }
}

/// The servers that this process is: whose users are local, whose events we sign.
#[derive(Clone)]
pub struct LocalServers(Arc<BTreeMap<OwnedServerName, Arc<dyn Signer>>>);

impl LocalServers {
    /// One server for each signer.
    pub fn new(signers: impl IntoIterator<Item = Arc<dyn Signer>>) -> Self {
        let servers = signers.into_iter().map(|signer| (signer.server_name().to_owned(), signer));
        Self(Arc::new(servers.collect()))
    }

    /// Whether a server is one of ours.
    pub fn is_local(&self, server_name: &ServerName) -> bool {
        self.0.contains_key(server_name)
    }

    /// Who signs for a server of ours.
    pub fn signer_for(&self, server_name: &ServerName) -> Option<&dyn Signer> {
        self.0.get(server_name).map(|signer| &**signer)
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &ServerName> {
        self.0.keys().map(|name| &**name)
    }
}

impl fmt::Debug for LocalServers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Adds the signer's signature to any JSON object, beside those that it has.
pub fn sign_json(signer: &dyn Signer, object: &mut Object<'_>) {
    let mut message = String::with_capacity(512);
    object.write_without(&["signatures", "unsigned"], &mut message);
    add_signature(signer, message.as_bytes(), object);
}

/// Signs `message` and writes the signature into the object.
pub(crate) fn add_signature(signer: &dyn Signer, message: &[u8], object: &mut Object<'_>) {
    let signature = Value::String(STANDARD_NO_PAD.encode(signer.sign(message)).into());
    let mut signatures = match object.remove("signatures") {
        Some(Value::Object(signatures)) => signatures,
        _ => Object::default(),
    };
    let mut of_server = match signatures.remove(signer.server_name().as_str()) {
        Some(Value::Object(of_server)) => of_server,
        _ => Object::default(),
    };
    of_server.insert(signer.key_id().to_owned(), signature);
    signatures.insert(signer.server_name().to_string(), Value::Object(of_server));
    object.insert("signatures", Value::Object(signatures));
}

/// Reads base64 with or without padding, in the standard alphabet.
pub(crate) fn decode_base64(text: &str) -> Option<Vec<u8>> {
    const ENGINE: GeneralPurpose = GeneralPurpose::new(
        &alphabet::STANDARD,
        GeneralPurposeConfig::new()
            .with_decode_padding_mode(DecodePaddingMode::Indifferent)
            .with_decode_allow_trailing_bits(true),
    );
    ENGINE.decode(text).ok()
}
