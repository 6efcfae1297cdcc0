//! Key codecs: bytes that sort as the data should be read.
//!
//! * The bytes of a key part are never a proper prefix of those of another one of the same type. So tuples sort
//!   by their first part, then the second, and a tuple's beginning names a range.
//! * Position slots are noted while encoding, so that the group commit can fill them in.

use serde::{Deserialize, Serialize};

use crate::{Malformed, StreamPosition};

/// Where a late-bound position lies among the bytes.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Slot {
    pub(crate) at: u32,
    pub(crate) inverted: bool,
}

/// Collects the bytes of keys and values.
#[derive(Clone, Debug, Default)]
pub struct Encoder {
    pub(crate) bytes: Vec<u8>,
    pub(crate) slots: Vec<Slot>,
    pub(crate) fault: Option<Malformed>,
}

impl Encoder {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes as they are. For keys only where their length is fixed or nothing follows.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Bytes of any length, escaped and terminated so that what follows does not disturb their order.
    pub fn escaped(&mut self, bytes: &[u8]) {
        self.escaped_prefix(bytes);
        self.bytes.extend_from_slice(&[0, 1]);
    }

    /// The beginning of escaped bytes: what all longer ones start with.
    pub fn escaped_prefix(&mut self, bytes: &[u8]) {
        if !bytes.contains(&0) {
            self.bytes.extend_from_slice(bytes);
            return;
        }
        for &byte in bytes {
            self.bytes.push(byte);
            if byte == 0 {
                self.bytes.push(0xff);
            }
        }
    }

    /// A stream position in eight bytes, or a slot that becomes one.
    pub fn position(&mut self, position: StreamPosition) {
        if position.is_slot() {
            self.slots.push(Slot { at: self.bytes.len() as u32, inverted: false });
        }
        self.raw(&position.get().to_be_bytes());
    }

    /// Notes that this value cannot be encoded: the commit it belongs to is refused.
    pub fn fail(&mut self, reason: Malformed) {
        self.fault.get_or_insert(reason);
    }

    /// What was written so far.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn invert_from(&mut self, start: usize) {
        for byte in &mut self.bytes[start..] {
            *byte = !*byte;
        }
        for slot in self.slots.iter_mut().rev().take_while(|slot| slot.at as usize >= start) {
            slot.inverted = !slot.inverted;
        }
    }
}

/// Reads bytes back, from the left.
#[derive(Clone, Debug)]
pub struct Decoder<'a> {
    bytes: &'a [u8],
    mask: u8,
}

impl<'a> Decoder<'a> {
    /// Of these bytes.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, mask: 0 }
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, tail) = self.bytes.split_first_chunk::<N>().ok_or(Malformed::new("too short"))?;
        self.bytes = tail;
        Ok(head.map(|byte| byte ^ self.mask))
    }

    /// The next escaped bytes, without their escapes and their end.
    pub fn escaped(&mut self) -> Result<Vec<u8>, Malformed> {
        const UNTERMINATED: Malformed = Malformed::new("bytes without an end");
        let mut out = Vec::with_capacity(self.bytes.len());
        let mut at = 0;
        loop {
            let byte = *self.bytes.get(at).ok_or(UNTERMINATED)? ^ self.mask;
            at += 1;
            if byte != 0 {
                out.push(byte);
                continue;
            }
            let escape = *self.bytes.get(at).ok_or(UNTERMINATED)? ^ self.mask;
            at += 1;
            match escape {
                0xff => out.push(0),
                1 => break,
                _ => return Err(Malformed::new("an unknown escape")),
            }
        }
        self.bytes = &self.bytes[at..];
        Ok(out)
    }

    /// A stream position.
    pub fn position(&mut self) -> Result<StreamPosition, Malformed> {
        Ok(StreamPosition::from_bits(u64::from_be_bytes(self.array()?)))
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.bytes)
    }

    /// How many bytes are left.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Refuses bytes that nobody asked for.
    pub fn finish(&self) -> Result<(), Malformed> {
        if self.bytes.is_empty() { Ok(()) } else { Err(Malformed::new("bytes after the end")) }
    }
}

/// A part of a key, whose bytes sort as its values do.
pub trait KeyPart: Sized {
    /// Writes the part behind what is there.
    fn encode(&self, out: &mut Encoder);
    /// Reads it back.
    fn decode(input: &mut Decoder<'_>) -> Result<Self, Malformed>;
}

macro_rules! unsigned {
    ($($number:ty),*) => {$(
        impl KeyPart for $number {
            fn encode(&self, out: &mut Encoder) {
                out.raw(&self.to_be_bytes());
            }
            fn decode(input: &mut Decoder<'_>) -> Result<Self, Malformed> {
                Ok(Self::from_be_bytes(input.array()?))
            }
        }
    )*};
}
unsigned!(u8, u16, u32, u64);

impl KeyPart for i64 {
    fn encode(&self, out: &mut Encoder) {
        (self.cast_unsigned() ^ (1 << 63)).encode(out);
    }
    fn decode(input: &mut Decoder<'_>) -> Result<Self, Malformed> {
        Ok((u64::decode(input)? ^ (1 << 63)).cast_signed())
    }
}

impl KeyPart for bool {
    fn encode(&self, out: &mut Encoder) {
        out.raw(&[u8::from(*self)]);
    }
    fn decode(input: &mut Decoder<'_>) -> Result<Self, Malformed> {
        match u8::decode(input)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed::new("neither false nor true")),
        }
    }
}

impl KeyPart for () {
    fn encode(&self, _: &mut Encoder) {}
    fn decode(_: &mut Decoder<'_>) -> Result<Self, Malformed> {
        Ok(())
    }
}

impl KeyPart for StreamPosition {
    fn encode(&self, out: &mut Encoder) {
        out.position(*self);
    }
    fn decode(input: &mut Decoder<'_>) -> Result<Self, Malformed> {
        input.position()
    }
}

impl KeyPart for String {
    fn encode(&self, out: &mut Encoder) {
        out.escaped(self.as_bytes());
    }
    fn decode(input: &mut Decoder<'_>) -> Result<Self, Malformed> {
        Self::from_utf8(input.escaped()?).map_err(|_| Malformed::new("not UTF-8"))
    }
}

impl KeyPart for Vec<u8> {
    fn encode(&self, out: &mut Encoder) {
        out.escaped(self);
    }
    fn decode(input: &mut Decoder<'_>) -> Result<Self, Malformed> {
        input.escaped()
    }
}

impl<const N: usize> KeyPart for [u8; N] {
    fn encode(&self, out: &mut Encoder) {
        out.raw(self);
    }
    fn decode(input: &mut Decoder<'_>) -> Result<Self, Malformed> {
        input.array()
    }
}

/// A part that sorts from the largest to the smallest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Desc<T>(pub T);

impl<T: KeyPart> KeyPart for Desc<T> {
    fn encode(&self, out: &mut Encoder) {
        let start = out.len();
        self.0.encode(out);
        out.invert_from(start);
    }
    fn decode(input: &mut Decoder<'_>) -> Result<Self, Malformed> {
        input.mask = !input.mask;
        let part = T::decode(input);
        input.mask = !input.mask;
        part.map(Self)
    }
}

/// The beginning of a key, to name a range with; borrows what the key itself owns.
pub trait KeyPrefix {
    /// Writes the bytes that all keys of the range begin with.
    fn encode_prefix(&self, out: &mut Encoder);
}

impl<T: KeyPart> KeyPrefix for T {
    fn encode_prefix(&self, out: &mut Encoder) {
        self.encode(out);
    }
}

/// Strings that begin with this one: the last part of a [`KeyPrefix`], after `parts`.
#[derive(Clone, Copy, Debug)]
pub struct StartingWith<'a, P>(pub P, pub &'a str);

impl<P: KeyPart> KeyPrefix for StartingWith<'_, P> {
    fn encode_prefix(&self, out: &mut Encoder) {
        self.0.encode(out);
        out.escaped_prefix(self.1.as_bytes());
    }
}

macro_rules! tuple {
    ($($part:ident $index:tt),+) => {
        impl<$($part: KeyPart),+> KeyPart for ($($part,)+) {
            fn encode(&self, out: &mut Encoder) {
                $(self.$index.encode(out);)+
            }
            fn decode(input: &mut Decoder<'_>) -> Result<Self, Malformed> {
                Ok(($($part::decode(input)?,)+))
            }
        }
    };
}
tuple!(A 0);
tuple!(A 0, B 1);
tuple!(A 0, B 1, C 2);
tuple!(A 0, B 1, C 2, D 3);
tuple!(A 0, B 1, C 2, D 3, E 4);

/// For error messages.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
