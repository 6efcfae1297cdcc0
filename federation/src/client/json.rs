//! JSON in the buffer that it came in: the events of a large answer are slices of it, not copies.

use bytes::Bytes;
use serde::{Deserialize, de::Error as _};
use serde_json::value::RawValue;

/// A JSON value as text, somewhere in a shared buffer.
#[derive(Clone, PartialEq, Eq)]
pub struct Json(Bytes);

impl Json {
    /// Checks that a buffer holds one JSON value and nothing else.
    pub fn read(body: Bytes) -> Result<Self, serde_json::Error> {
        let value: &RawValue = serde_json::from_slice(&body)?;
        let slice = body.slice_ref(value.get().as_bytes());
        Ok(Self(slice))
    }

    /// The text.
    pub fn get(&self) -> &str {
        std::str::from_utf8(&self.0).expect("it was a str when it was sliced out")
    }

    /// The text as shared bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// Reads the text.
    pub fn parse<'a, T: Deserialize<'a>>(&'a self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(&self.0)
    }

    /// A value that was read out of this text, as a slice of it.
    pub(crate) fn part(&self, part: &RawValue) -> Self {
        Self(self.0.slice_ref(part.get().as_bytes()))
    }

    /// The same of several; more than `max` are refused.
    pub(super) fn parts(&self, parts: &[&RawValue], max: usize) -> Result<Vec<Self>, serde_json::Error> {
        if parts.len() > max {
            return Err(serde_json::Error::custom(format!("more than {max} values")));
        }
        Ok(parts.iter().map(|part| self.part(part)).collect())
    }
}

impl From<Box<RawValue>> for Json {
    fn from(value: Box<RawValue>) -> Self {
        Self(Bytes::from(String::from(Box::<str>::from(value))))
    }
}

impl std::fmt::Debug for Json {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(self.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_slices_of_the_whole() {
        let json = Json::read(Bytes::from_static(b" {\"a\":[1, {\"b\": 2}]} ")).unwrap();
        #[derive(Deserialize)]
        struct A<'a> {
            #[serde(borrow)]
            a: Vec<&'a RawValue>,
        }
        let a: A<'_> = json.parse().unwrap();
        let parts = json.parts(&a.a, 2).unwrap();
        assert_eq!(parts[1].get(), "{\"b\": 2}");
        let whole = json.bytes().as_ptr_range();
        assert!(whole.contains(&parts[1].bytes().as_ptr()), "no copy");
        assert!(json.parts(&a.a, 1).is_err());
    }

    #[test]
    fn only_whole_json_is_read() {
        for bad in [&b""[..], b"{", b"{} {}", b"\"\xff\"", b"nul"] {
            assert!(Json::read(Bytes::copy_from_slice(bad)).is_err(), "{bad:?}");
        }
    }
}
