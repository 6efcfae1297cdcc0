//! Names of media: the address that clients see, and what it may consist of.

use hearth_store::{Decoder, Encoder, KeyPart, Malformed};
use rand::RngCore as _;
use ruma::{OwnedMxcUri, OwnedServerName, ServerName};
use serde::{Deserialize, Serialize};

/// The two parts of an `mxc://` address. Only well-formed ones can be made.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MediaKey {
    server: OwnedServerName,
    id: String,
}

/// An address that no media can have.
#[derive(Debug, thiserror::Error)]
pub enum BadAddress {
    #[error("the media's server name is malformed")]
    Server,
    #[error("a media id consists of letters, digits, `-` and `_`")]
    Id,
}

/// The longest media id that is looked up.
const ID_MAX: usize = 255;

impl MediaKey {
    pub fn parse(server: &str, id: &str) -> Result<Self, BadAddress> {
        let server = ServerName::parse(server).map_err(|_| BadAddress::Server)?;
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if id.is_empty() || id.len() > ID_MAX || !id.bytes().all(allowed) {
            return Err(BadAddress::Id);
        }
        Ok(Self { server, id: id.to_owned() })
    }

    /// A new address on that server, which nobody can guess.
    pub fn random(server: &ServerName) -> Self {
        // Five bits a letter; lower case only, for people who read them out.
        const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
        let bytes: [u8; 24] = random();
        let id = bytes.iter().map(|byte| char::from(LETTERS[usize::from(byte & 31)])).collect();
        Self { server: server.to_owned(), id }
    }

    pub fn server(&self) -> &ServerName {
        &self.server
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// The address as clients write it.
    pub fn uri(&self) -> OwnedMxcUri {
        format!("mxc://{}/{}", self.server, self.id).into()
    }
}

impl KeyPart for MediaKey {
    fn encode(&self, out: &mut Encoder) {
        out.escaped(self.server.as_bytes());
        out.escaped(self.id.as_bytes());
    }

    fn decode(input: &mut Decoder<'_>) -> Result<Self, Malformed> {
        let (server, id) = (String::decode(input)?, String::decode(input)?);
        Self::parse(&server, &id).map_err(|_| Malformed::new("a media address"))
    }
}

/// What stands between the parts of an answer; nobody can put it into a file.
pub fn boundary() -> String {
    random::<16>().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes that nobody can foresee.
#[allow(clippy::disallowed_methods, reason = "the home of chance for media")]
pub(super) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::rng().fill_bytes(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_grammar_of_the_specification_is_taken() {
        assert!(MediaKey::parse("example.org:8448", "aZ09_-").is_ok());
        for (server, id) in [
            ("example.org", ""),
            ("example.org", "../secret"),
            ("example.org", "a.b"),
            ("example.org", "ä"),
            ("", "a"),
            ("exa mple", "a"),
            ("example.org/..", "a"),
        ] {
            assert!(MediaKey::parse(server, id).is_err(), "{server} {id}");
        }
        assert!(MediaKey::parse("example.org", &"x".repeat(256)).is_err());
    }

    #[test]
    fn new_addresses_are_good_ones() {
        let key = MediaKey::random(ruma::server_name!("h.test"));
        assert_eq!(MediaKey::parse("h.test", key.id()).unwrap(), key);
        assert!(key.uri().is_valid());
    }
}
