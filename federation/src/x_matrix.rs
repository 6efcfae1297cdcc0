//! Request authentication: the `Authorization: X-Matrix` header and what its signature covers.
//! * Method, path with query, origin, destination and body are signed together: none can be exchanged for another.
//! * A header is read as RFC 9110 writes it, and as older servers write it: with colons outside of quotes.

use std::borrow::Cow;

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use hearth_dag::{
    Signer, VerifyKey,
    canonical::{self, NotCanonical, write_string},
};
use ruma::{OwnedServerName, ServerName};

/// The longest header that is looked at.
pub const HEADER_BYTES: usize = 4096;
/// The longest key ID that is looked at.
pub const KEY_ID_BYTES: usize = 256;

const SCHEME: &str = "X-Matrix";

/// Who says to have sent a request, and the signature that is to show it. Nothing of it is checked yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct XMatrix {
    /// The server that says to have sent it.
    pub origin: OwnedServerName,
    /// The server that it is for; older servers do not say.
    pub destination: Option<OwnedServerName>,
    /// The ID of the key that signed it.
    pub key_id: String,
    /// The signature, base64.
    pub signature: String,
}

/// Why a header cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadHeader {
    /// Another scheme than `X-Matrix`.
    #[error("the authorization scheme is not X-Matrix")]
    Scheme,
    /// Longer than [`HEADER_BYTES`].
    #[error("the authorization header is too long")]
    TooLong,
    /// Not a list of `name=value`.
    #[error("the authorization header is not a list of parameters")]
    Syntax,
    /// A parameter that must be there is not.
    #[error("the authorization header lacks the parameter {0}")]
    Missing(&'static str),
    /// A parameter that is there twice.
    #[error("the authorization header has the parameter {0} twice")]
    Twice(&'static str),
    /// A value that its parameter cannot have.
    #[error("the authorization header has a wrong value for the parameter {0}")]
    Value(&'static str),
}

impl XMatrix {
    /// Reads a header's value.
    pub fn parse(header: &str) -> Result<Self, BadHeader> {
        let (mut origin, mut destination, mut key, mut signature) = (None, None, None, None);
        for parameter in parameters(header)? {
            let (name, value) = parameter?;
            let (place, name) = match name.to_ascii_lowercase().as_str() {
                "origin" => (&mut origin, "origin"),
                "destination" => (&mut destination, "destination"),
                "key" => (&mut key, "key"),
                "sig" => (&mut signature, "sig"),
                _ => continue,
            };
            if place.replace(value).is_some() {
                return Err(BadHeader::Twice(name));
            }
        }
        let server = |value: Cow<'_, str>, name| {
            let read = crate::server_name::parse(&value).is_ok().then(|| ServerName::parse(&*value).ok());
            read.flatten().ok_or(BadHeader::Value(name))
        };
        let origin = server(origin.ok_or(BadHeader::Missing("origin"))?, "origin")?;
        let destination = destination.map(|value| server(value, "destination")).transpose()?;
        let key_id = key.ok_or(BadHeader::Missing("key"))?.into_owned();
        if key_id.is_empty() || key_id.len() > KEY_ID_BYTES {
            return Err(BadHeader::Value("key"));
        }
        let signature = signature.ok_or(BadHeader::Missing("sig"))?.into_owned();
        Ok(Self { origin, destination, key_id, signature })
    }

    /// Whether the signature is that key's over this request to `destination`.
    pub fn is_signed_by(&self, key: &VerifyKey, request: &SignedParts<'_>, destination: &ServerName) -> bool {
        key.verifies(request.message(&self.origin, destination).as_bytes(), &self.signature)
    }
}

/// What of a request is signed.
#[derive(Debug, Clone, Copy)]
pub struct SignedParts<'a> {
    /// The method, in capitals.
    pub method: &'a str,
    /// Path and query as they are sent.
    pub target: &'a str,
    /// The body in canonical JSON, if there is one.
    pub content: Option<&'a str>,
}

impl SignedParts<'_> {
    /// The bytes that are signed: canonical JSON.
    fn message(&self, origin: &ServerName, destination: &ServerName) -> String {
        let content = self.content.unwrap_or_default();
        let mut out = String::with_capacity(content.len() + self.target.len() + 256);
        out.push('{');
        if self.content.is_some() {
            out.push_str("\"content\":");
            out.push_str(content);
            out.push(',');
        }
        for (index, (name, value)) in [
            ("\"destination\":", destination.as_str()),
            ("\"method\":", self.method),
            ("\"origin\":", origin.as_str()),
            ("\"uri\":", self.target),
        ]
        .into_iter()
        .enumerate()
        {
            if index > 0 {
                out.push(',');
            }
            out.push_str(name);
            write_string(value, &mut out);
        }
        out.push('}');
        out
    }

    /// The value of the `Authorization` header, signed.
    pub fn sign(&self, signer: &dyn Signer, destination: &ServerName) -> String {
        let origin = signer.server_name();
        let signature = signer.sign(self.message(origin, destination).as_bytes());
        let signature = STANDARD_NO_PAD.encode(signature);
        let key_id = signer.key_id();
        format!(
            "{SCHEME} origin=\"{origin}\",destination=\"{destination}\",key=\"{key_id}\",sig=\"{signature}\""
        )
    }
}

/// A request's body as it is signed: none if it is empty.
pub fn signed_content(body: &[u8]) -> Result<Option<String>, NotCanonical> {
    if body.is_empty() {
        return Ok(None);
    }
    let text = std::str::from_utf8(body).map_err(|error| NotCanonical::Syntax(error.to_string()))?;
    canonical::to_canonical(text, false).map(Some)
}

/// Whether a header's value is of our scheme at all.
pub fn is_x_matrix(header: &str) -> bool {
    scheme_and_rest(header).is_some()
}

fn scheme_and_rest(header: &str) -> Option<&str> {
    let (scheme, rest) = header.trim_start().split_once(' ')?;
    scheme.eq_ignore_ascii_case(SCHEME).then_some(rest)
}

type Parameter<'a> = Result<(&'a str, Cow<'a, str>), BadHeader>;

/// The parameters in their order, up to the first that cannot be read.
fn parameters(header: &str) -> Result<impl Iterator<Item = Parameter<'_>>, BadHeader> {
    if header.len() > HEADER_BYTES {
        return Err(BadHeader::TooLong);
    }
    let mut rest = scheme_and_rest(header).ok_or(BadHeader::Scheme)?;
    Ok(std::iter::from_fn(move || {
        // Empty items of a list are skipped.
        rest = rest.trim_start_matches([' ', '\t', ',']);
        if rest.is_empty() {
            return None;
        }
        let parameter = next_parameter(&mut rest);
        if parameter.is_err() {
            rest = "";
        }
        Some(parameter)
    }))
}

fn next_parameter<'a>(rest: &mut &'a str) -> Parameter<'a> {
    const BLANKS: [char; 2] = [' ', '\t'];
    let (name, after) = rest.split_once('=').ok_or(BadHeader::Syntax)?;
    let name = name.trim_end_matches(BLANKS);
    if name.is_empty() || !name.bytes().all(is_token) {
        return Err(BadHeader::Syntax);
    }
    let after = after.trim_start_matches(BLANKS);
    let (value, after) = match after.strip_prefix('"') {
        Some(quoted) => unquote(quoted)?,
        None => {
            let end = after.find(|c: char| !c.is_ascii_graphic() || "\",;\\".contains(c));
            let (value, after) = after.split_at(end.unwrap_or(after.len()));
            if value.is_empty() {
                return Err(BadHeader::Syntax);
            }
            (Cow::Borrowed(value), after)
        }
    };
    let after = after.trim_start_matches(BLANKS);
    if !after.is_empty() && !after.starts_with(',') {
        return Err(BadHeader::Syntax);
    }
    *rest = after;
    Ok((name, value))
}

/// What stands before the closing quote, unescaped, and what comes after it.
fn unquote(text: &str) -> Result<(Cow<'_, str>, &str), BadHeader> {
    let end = text.find(['"', '\\']).ok_or(BadHeader::Syntax)?;
    if text[end..].starts_with('"') {
        return Ok((Cow::Borrowed(&text[..end]), &text[end + 1..]));
    }
    let mut value = String::with_capacity(text.len());
    let mut characters = text.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return Ok((Cow::Owned(value), &text[at + 1..])),
            '\\' => value.push(characters.next().ok_or(BadHeader::Syntax)?.1),
            c => value.push(c),
        }
    }
    Err(BadHeader::Syntax)
}

/// RFC 9110, section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use hearth_dag::Keypair;
    use ruma::server_name;

    use super::*;

    fn header() -> XMatrix {
        XMatrix {
            origin: server_name!("origin.hs.example.com").to_owned(),
            destination: Some(server_name!("destination.hs.example.com").to_owned()),
            key_id: "ed25519:key1".to_owned(),
            signature: "ABCDEF...".to_owned(),
        }
    }

    #[test]
    fn the_header_is_read_in_every_form() {
        for text in [
            // The specification's own.
            r#"X-Matrix origin="origin.hs.example.com",destination="destination.hs.example.com",key="ed25519:key1",sig="ABCDEF...""#,
            // Without quotes, as the values are tokens but for the colon.
            "X-Matrix origin=origin.hs.example.com,destination=destination.hs.example.com,key=ed25519:key1,sig=ABCDEF...",
            // Case, blanks, tabs, order, and parameters that nobody knows.
            "x-mATRIX   Key=\"ed25519:key1\" \t,\t SIG=\"ABCDEF...\" , new=1, other=\"a,b\",Origin=origin.hs.example.com,,destination=\"destination.hs.example.com\" ,",
            // Backslashes.
            r#"X-Matrix origin="origin\.hs.example.com",destination="destination.hs.example.com",key="ed25519\:key1",sig="ABC\DEF...""#,
            // Blanks around the equals sign are bad, and read.
            r#"X-Matrix origin = "origin.hs.example.com",destination="destination.hs.example.com",key="ed25519:key1",sig="ABCDEF...""#,
        ] {
            assert_eq!(XMatrix::parse(text), Ok(header()), "{text}");
        }
        let without = "X-Matrix origin=origin.hs.example.com,key=ed25519:key1,sig=ABCDEF...";
        assert_eq!(XMatrix::parse(without), Ok(XMatrix { destination: None, ..header() }));
        let address = XMatrix::parse("X-Matrix origin=[::1]:8448,key=ed25519:1,sig=a+/b==").unwrap();
        assert_eq!((address.origin.as_str(), &*address.signature), ("[::1]:8448", "a+/b=="));
        assert!(is_x_matrix("x-matrix a") && !is_x_matrix("Bearer a") && !is_x_matrix("X-Matrix"));
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        use BadHeader::*;
        for (text, why) in [
            ("", Scheme),
            ("X-Matrix", Scheme),
            ("Bearer abc", Scheme),
            ("X-Matrix ", Missing("origin")),
            ("X-Matrix origin=a.test,sig=x", Missing("key")),
            ("X-Matrix origin=a.test,key=ed25519:1", Missing("sig")),
            ("X-Matrix origin=a.test,origin=b.test,key=ed25519:1,sig=x", Twice("origin")),
            ("X-Matrix origin=\"a test\",key=ed25519:1,sig=x", Value("origin")),
            ("X-Matrix origin=a.test,destination=\"\",key=ed25519:1,sig=x", Value("destination")),
            ("X-Matrix origin=a.test,key=\"\",sig=x", Value("key")),
            ("X-Matrix origin", Syntax),
            ("X-Matrix origin=", Syntax),
            ("X-Matrix =a", Syntax),
            ("X-Matrix origin=\"a.test", Syntax),
            ("X-Matrix origin=\"a.test\\", Syntax),
            ("X-Matrix origin=a.test key=ed25519:1", Syntax),
            ("X-Matrix origin=\"a.test\"key=ed25519:1", Syntax),
            ("X-Matrix ori gin=a.test", Syntax),
            ("X-Matrix origin=ä.test", Syntax),
            (&format!("X-Matrix origin=a.test,x={}", "a".repeat(HEADER_BYTES)), TooLong),
            (&format!("X-Matrix origin=a.test,sig=x,key={}", "a".repeat(KEY_ID_BYTES + 1)), Value("key")),
        ] {
            assert_eq!(XMatrix::parse(text), Err(why), "{text}");
        }
    }

    fn pair(name: &str) -> (Keypair, VerifyKey) {
        let key = Keypair::new(ServerName::parse(name).unwrap(), "1", &[5; 32]).unwrap();
        let public = VerifyKey::new(&key.public_key(), None).unwrap();
        (key, public)
    }

    #[test]
    fn what_is_signed_is_canonical_json() {
        let content = signed_content(br#"{ "b": 1, "a": "\u00e9" }"#).unwrap();
        let parts = SignedParts { method: "PUT", target: "/a?b=\"", content: content.as_deref() };
        assert_eq!(
            parts.message(server_name!("o.test"), server_name!("d.test")),
            r#"{"content":{"a":"é","b":1},"destination":"d.test","method":"PUT","origin":"o.test","uri":"/a?b=\""}"#
        );
        let parts = SignedParts { method: "GET", target: "/a", content: None };
        assert_eq!(
            parts.message(server_name!("o.test"), server_name!("d.test")),
            r#"{"destination":"d.test","method":"GET","origin":"o.test","uri":"/a"}"#
        );
        assert!(signed_content(b"{").is_err() && signed_content(b"\"\xff\"").is_err());
        assert_eq!(signed_content(b""), Ok(None));
    }

    #[test]
    fn a_signature_holds_for_one_request_only() {
        let (key, public) = pair("o.test");
        let here = server_name!("d.test");
        let good = SignedParts { method: "PUT", target: "/a?b=c", content: Some(r#"{"a":1}"#) };
        let header = XMatrix::parse(&good.sign(&key, here)).unwrap();
        assert_eq!(header.destination.as_deref(), Some(here));
        assert!(header.is_signed_by(&public, &good, here));
        for other in [
            SignedParts { method: "POST", ..good },
            SignedParts { target: "/a?b=d", ..good },
            SignedParts { content: Some(r#"{"a":2}"#), ..good },
            SignedParts { content: None, ..good },
        ] {
            assert!(!header.is_signed_by(&public, &other, here), "{other:?}");
        }
        assert!(!header.is_signed_by(&public, &good, server_name!("other.test")));
        let forged = XMatrix { origin: server_name!("p.test").to_owned(), ..header.clone() };
        assert!(!forged.is_signed_by(&public, &good, here));
        let other = VerifyKey::new(&Keypair::new(here.to_owned(), "1", &[6; 32]).unwrap().public_key(), None);
        assert!(!header.is_signed_by(&other.unwrap(), &good, here));
    }

    // The specification's test vectors (appendices, "Signing JSON") sign with this seed and key ID.
    #[test]
    fn the_key_of_the_test_vectors_signs_as_others_do() {
        let seed = "YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1";
        let key = Keypair::from_base64(server_name!("domain").to_owned(), "1", seed).unwrap();
        let signature = STANDARD_NO_PAD.encode(key.sign(b"{}"));
        assert_eq!(
            signature,
            "K8280/U9SSy9IVtjBuVeLr+HpOB4BQFWbg+UZaADMtTdGYI7Geitb76LTrr5QV/7Xg4ahLwYGYZzuHGZKM5ZAQ"
        );
    }
}
