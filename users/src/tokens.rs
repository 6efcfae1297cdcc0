//! Secrets that a bearer shows: made at random, kept as SHA-256.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use hearth_store::{Decoder, Encoder, KeyPart, Malformed};
use rand::RngCore;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// 192 bits of randomness behind a prefix that says what it is, for those who find one in a log.
const RANDOM_BYTES: usize = 24;

/// What is kept of a token: from it the token cannot be had.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TokenHash([u8; 32]);

impl TokenHash {
    /// Of the token as the bearer shows it.
    pub fn of(token: &str) -> Self {
        Self(Sha256::digest(token.as_bytes()).into())
    }

    /// As random as all of it.
    pub(crate) fn first_byte(&self) -> u8 {
        self.0[0]
    }

    /// Its bytes.
    pub fn to_bytes(self) -> [u8; 32] {
        self.0
    }
}

impl std::fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenHash(..)")
    }
}

impl KeyPart for TokenHash {
    fn encode(&self, out: &mut Encoder) {
        out.raw(&self.0);
    }
    fn decode(input: &mut Decoder<'_>) -> Result<Self, Malformed> {
        input.array().map(Self)
    }
}

/// A new token with its hash.
pub(crate) fn new_token(prefix: &str) -> (String, TokenHash) {
    let token = format!("{prefix}{}", random::<RANDOM_BYTES>());
    let hash = TokenHash::of(&token);
    (token, hash)
}

/// Bytes that nobody can foresee.
#[allow(clippy::disallowed_methods, reason = "the home of chance for users")]
pub(crate) fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::rng().fill_bytes(&mut bytes);
    bytes
}

/// `N` random bytes in URL-safe base64.
pub(crate) fn random<const N: usize>() -> String {
    URL_SAFE_NO_PAD.encode(random_bytes::<N>())
}

/// A device id as clients like to show it: ten capital letters.
pub(crate) fn random_device_id() -> String {
    random_bytes::<10>().iter().map(|byte| char::from(b'A' + byte % 26)).collect()
}

/// A local part for somebody who did not choose one: twelve small letters.
pub fn random_name() -> String {
    random_bytes::<12>().iter().map(|byte| char::from(b'a' + byte % 26)).collect()
}
