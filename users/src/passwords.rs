//! Passwords: argon2id, by default with 19 MiB, two passes, one lane.
//! * Hashing runs on blocking threads, at most `hashing_threads` at a time, and at most `WAITING_MAX` wait.
//! * Checking a password of nobody takes as long as checking one of somebody.
//! * The memory is used again while there is work, and given back `KEPT_FOR` after it.

use std::{sync::Arc, time::Duration};

use argon2::{
    Algorithm, Argon2, Block, Params, Version,
    password_hash::{self, Output, ParamsString, Salt, SaltString},
};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::tokens::random_bytes;

/// What a new hash costs. Kept hashes are checked at the cost they were made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PasswordCost {
    /// KiB of memory.
    pub memory_kib: u32,
    /// Passes over the memory.
    pub passes: u32,
    /// Lanes.
    pub lanes: u32,
}

impl Default for PasswordCost {
    fn default() -> Self {
        Self { memory_kib: 19 * 1024, passes: 2, lanes: 1 }
    }
}

/// Hashes that wait for a thread.
pub const WAITING_MAX: usize = 4096;
/// Longer passwords are refused: they would only cost time.
pub const PASSWORD_MAX: usize = 512;
const KEPT_FOR: Duration = Duration::from_secs(2);
const HASH_BYTES: usize = 32;
const SALT_BYTES: usize = 16;

/// Why a password could not be hashed or checked.
#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    /// Longer than `PASSWORD_MAX`.
    #[error("the password is longer than {PASSWORD_MAX} bytes")]
    TooLong,
    /// Too many wait already.
    #[error("too many passwords are being checked")]
    Busy,
    /// The kept hash is not one, or there was no memory.
    #[error("the password hash failed: {0}")]
    Broken(String),
}

/// A password that was hashed, in PHC form.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordHash(String);

impl PasswordHash {
    /// One that was made elsewhere (argon2 in any strength).
    pub fn from_phc(phc: impl Into<String>) -> Self {
        Self(phc.into())
    }

    pub(crate) fn into_phc(self) -> String {
        self.0
    }
}

impl std::fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PasswordHash(..)")
    }
}

pub(crate) struct Hasher {
    threads: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    memory: Arc<Memory>,
    cost: PasswordCost,
}

/// Memory between two hashes.
#[derive(Default)]
struct Memory {
    free: Mutex<Vec<Vec<Block>>>,
}

impl Hasher {
    pub(crate) fn new(threads: usize, cost: PasswordCost) -> Self {
        Self {
            threads: Arc::new(Semaphore::new(threads.max(1))),
            waiting: Arc::new(Semaphore::new(WAITING_MAX)),
            memory: Arc::default(),
            cost,
        }
    }

    pub(crate) async fn hash(&self, password: &str) -> Result<PasswordHash, PasswordError> {
        let (password, cost) = (checked(password)?, self.cost);
        self.run(move |memory| {
            let salt = SaltString::encode_b64(&random_bytes::<SALT_BYTES>()).map_err(broken)?;
            let params = params(cost)?;
            let output = derive(&params, &password, salt.as_salt(), HASH_BYTES, memory)?;
            let phc = password_hash::PasswordHash {
                algorithm: Algorithm::Argon2id.ident(),
                version: Some(Version::V0x13.into()),
                params: ParamsString::try_from(&params).map_err(broken)?,
                salt: Some(salt.as_salt()),
                hash: Some(output),
            };
            Ok(PasswordHash(phc.to_string()))
        })
        .await
    }

    /// Whether `password` is the one that was hashed; never for `None`, which takes as long.
    pub(crate) async fn verify(&self, password: &str, phc: Option<String>) -> Result<bool, PasswordError> {
        let (password, cost) = (checked(password)?, self.cost);
        self.run(move |memory| {
            let Some(phc) = phc else {
                let salt = Salt::from_b64("bm9ib2R5IGlzIGhlcmU").map_err(broken)?;
                derive(&params(cost)?, &password, salt, HASH_BYTES, memory)?;
                return Ok(false);
            };
            let kept = password_hash::PasswordHash::new(&phc).map_err(broken)?;
            let (Some(salt), Some(expected)) = (kept.salt, kept.hash) else {
                return Err(PasswordError::Broken("no salt or no hash".to_owned()));
            };
            if Algorithm::try_from(kept.algorithm).map_err(broken)? != Algorithm::Argon2id {
                return Err(PasswordError::Broken(format!("algorithm {}", kept.algorithm)));
            }
            let params = Params::try_from(&kept).map_err(broken)?;
            // `Output` compares in constant time.
            Ok(derive(&params, &password, salt, expected.len(), memory)? == expected)
        })
        .await
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Vec<Block>) -> Result<T, PasswordError> + Send + 'static,
    ) -> Result<T, PasswordError> {
        let _waiting = self.waiting.clone().try_acquire_owned().map_err(|_| PasswordError::Busy)?;
        let permit = self.threads.clone().acquire_owned().await.map_err(broken)?;
        let memory = self.memory.clone();
        let kept = memory.clone();
        let outcome = tokio::task::spawn_blocking(move || {
            let mut blocks = memory.free.lock().pop().unwrap_or_default();
            let outcome = work(&mut blocks);
            memory.free.lock().push(blocks);
            drop(permit);
            outcome
        })
        .await
        .map_err(broken)?;
        if Arc::strong_count(&kept) <= 2 {
            tokio::spawn(async move {
                tokio::time::sleep(KEPT_FOR).await;
                kept.free.lock().clear();
            });
        }
        outcome
    }
}

fn checked(password: &str) -> Result<String, PasswordError> {
    if password.len() > PASSWORD_MAX { Err(PasswordError::TooLong) } else { Ok(password.to_owned()) }
}

fn params(cost: PasswordCost) -> Result<Params, PasswordError> {
    Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(HASH_BYTES)).map_err(broken)
}

fn derive(
    params: &Params,
    password: &str,
    salt: Salt<'_>,
    length: usize,
    memory: &mut Vec<Block>,
) -> Result<Output, PasswordError> {
    let mut salt_bytes = [0; Salt::MAX_LENGTH];
    let salt = salt.decode_b64(&mut salt_bytes).map_err(broken)?;
    if memory.len() < params.block_count() {
        memory.resize(params.block_count(), Block::default());
    }
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params.clone());
    Output::init_with(length, |out| {
        argon2
            .hash_password_into_with_memory(password.as_bytes(), salt, out, memory.as_mut_slice())
            .map_err(|_| password_hash::Error::Crypto)
    })
    .map_err(broken)
}

fn broken(error: impl std::fmt::Display) -> PasswordError {
    PasswordError::Broken(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    // The right password is accepted, another one and nobody's are not.
    #[tokio::test]
    async fn a_password_is_checked() {
        let hasher = Hasher::new(2, PasswordCost::default());
        let hash = hasher.hash("correct horse").await.unwrap().into_phc();
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
        assert!(hasher.verify("correct horse", Some(hash.clone())).await.unwrap());
        assert!(!hasher.verify("wrong horse", Some(hash)).await.unwrap());
        assert!(!hasher.verify("correct horse", None).await.unwrap());
    }

    // What another program hashed with argon2id is understood, whatever its strength.
    #[tokio::test]
    async fn foreign_strengths_are_checked() {
        use argon2::PasswordHasher;
        let salt = SaltString::encode_b64(b"somesaltsomesalt").unwrap();
        let weak = Argon2::new(Algorithm::Argon2id, Version::V0x13, Params::new(64, 1, 1, None).unwrap());
        let phc = weak.hash_password(b"pw", &salt).unwrap().to_string();
        assert!(Hasher::new(1, PasswordCost::default()).verify("pw", Some(phc)).await.unwrap());
    }

    // The memory does not stay when there is nothing to hash.
    #[tokio::test]
    async fn memory_is_given_back() {
        let hasher = Hasher::new(1, PasswordCost::default());
        hasher.verify("x", None).await.unwrap();
        assert_eq!(hasher.memory.free.lock().len(), 1);
        tokio::time::sleep(KEPT_FOR + Duration::from_millis(200)).await;
        assert_eq!(hasher.memory.free.lock().len(), 0);
    }

    #[tokio::test]
    async fn a_password_without_end_is_refused() {
        let long = "x".repeat(PASSWORD_MAX + 1);
        assert!(matches!(
            Hasher::new(1, PasswordCost::default()).hash(&long).await,
            Err(PasswordError::TooLong)
        ));
    }
}
