//! Value codecs: what stands behind a key.

use bytes::Bytes;
use postcard::ser_flavors::Flavor;
use serde::{Serialize, de::DeserializeOwned};

use crate::{Decoder, Encoder, Malformed, StreamPosition};

/// What a table holds behind a key.
pub trait Value: Sized {
    /// Writes the value behind what is there.
    fn encode(&self, out: &mut Encoder);
    /// Reads it back from exactly these bytes.
    fn decode(bytes: &[u8]) -> Result<Self, Malformed>;
}

/// A value of a fixed shape: a version byte, then the fields, compact (postcard).
pub trait Record: Serialize + DeserializeOwned {
    /// Raised when the fields change; [`Record::upgrade`] then reads the older ones.
    const VERSION: u8 = 1;

    /// Reads fields that an older version wrote.
    fn upgrade(version: u8, fields: &[u8]) -> Result<Self, Malformed> {
        let _ = fields;
        Err(Malformed(format!("a record of version {version}, this one reads {}", Self::VERSION).into()))
    }
}

impl<T: Record> Value for T {
    fn encode(&self, out: &mut Encoder) {
        out.raw(&[T::VERSION]);
        let done = postcard::serialize_with_flavor::<T, Appender<'_>, ()>(self, Appender(&mut out.bytes));
        if let Err(error) = done {
            out.fail(Malformed(format!("a record that cannot be written: {error}").into()));
        }
    }

    fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let (&version, fields) = bytes.split_first().ok_or(Malformed::new("an empty record"))?;
        if version != T::VERSION {
            return T::upgrade(version, fields);
        }
        postcard::from_bytes(fields).map_err(|error| Malformed(format!("not a record: {error}").into()))
    }
}

struct Appender<'a>(&'a mut Vec<u8>);

impl Flavor for Appender<'_> {
    type Output = ();

    fn try_push(&mut self, data: u8) -> postcard::Result<()> {
        self.0.push(data);
        Ok(())
    }

    fn try_extend(&mut self, data: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(data);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

macro_rules! plain {
    ($($plain:ty),*) => { $(impl Record for $plain {})* };
}
plain!(u8, u32, u64, i64, bool, String, (u64, u64));

/// Nothing: the key says it all.
impl Value for () {
    fn encode(&self, _: &mut Encoder) {}
    fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        Decoder::new(bytes).finish()
    }
}

/// Bytes as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Blob(pub Bytes);

impl Value for Blob {
    fn encode(&self, out: &mut Encoder) {
        out.raw(&self.0);
    }
    // A copy, because the engine's own buffer would keep its whole page in memory.
    fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        Ok(Self(Bytes::copy_from_slice(bytes)))
    }
}

impl Value for StreamPosition {
    fn encode(&self, out: &mut Encoder) {
        out.position(*self);
    }
    fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut input = Decoder::new(bytes);
        let position = input.position()?;
        input.finish()?;
        Ok(position)
    }
}

/// A value with the position of the commit that wrote it, which may be a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Positioned<V> {
    /// When it was written.
    pub position: StreamPosition,
    /// What was written.
    pub value: V,
}

impl<V: Value> Value for Positioned<V> {
    fn encode(&self, out: &mut Encoder) {
        out.position(self.position);
        self.value.encode(out);
    }
    fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut input = Decoder::new(bytes);
        let position = input.position()?;
        Ok(Self { position, value: V::decode(input.rest())? })
    }
}
