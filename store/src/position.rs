//! Stream positions: this server's order of everything that a client can see.
//!
//! * They only grow, and none becomes visible after a larger one was. They may have gaps.
//! * The position of a commit is bound late, when its group is written. Until then the commit holds *slots*.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

const SLOT: u64 = 1 << 63;

/// A place in this server's order of changes, or a slot for one that is not yet known.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct StreamPosition(u64);

impl StreamPosition {
    /// Before everything.
    pub const ZERO: Self = Self(0);
    /// After everything that will ever be.
    pub const MAX: Self = Self(SLOT - 1);

    /// The position with this number. The top bit is reserved and dropped.
    pub const fn new(number: u64) -> Self {
        Self(number & !SLOT)
    }

    /// The number of the position (of a slot: with the top bit set).
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The `n`-th position of the commit it is written in. See [`crate::Commit::position`].
    pub const fn slot(n: u32) -> Self {
        Self(SLOT | n as u64)
    }

    /// Whether this stands for a position that the commit will get.
    pub const fn is_slot(self) -> bool {
        self.0 & SLOT != 0
    }

    /// The slot's number, if it is one.
    pub const fn slot_index(self) -> Option<u32> {
        if self.is_slot() { Some(self.0 as u32) } else { None }
    }

    /// The position that follows this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self::new(self.0 + 1)
    }

    pub(crate) const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }
}

impl fmt::Debug for StreamPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.slot_index() {
            Some(n) => write!(f, "slot {n}"),
            None => write!(f, "@{}", self.0),
        }
    }
}

impl fmt::Display for StreamPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&(self.0 & !SLOT), f)
    }
}

// Inside a serialised record a slot could not be found again to fill it in.
impl Serialize for StreamPosition {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.is_slot() {
            return Err(ser::Error::custom("a position slot inside a record; use Positioned"));
        }
        serializer.serialize_u64(self.0)
    }
}

impl<'de> Deserialize<'de> for StreamPosition {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = u64::deserialize(deserializer)?;
        if number & SLOT != 0 {
            return Err(de::Error::custom("not a stream position"));
        }
        Ok(Self(number))
    }
}

/// What a commit got when it became durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The position of slot 0. Without slots: the last position given out before.
    pub first: StreamPosition,
    /// How many slots the commit had.
    pub count: u32,
}

impl Committed {
    /// The position that a slot of this commit became; other positions stay what they are.
    pub fn resolve(&self, slot: StreamPosition) -> StreamPosition {
        match slot.slot_index() {
            Some(n) => StreamPosition::new(self.first.get() + u64::from(n)),
            None => slot,
        }
    }

    /// The largest position of the commit. Without slots: the last position given out before.
    pub fn last(&self) -> StreamPosition {
        StreamPosition::new(self.first.get() + u64::from(self.count.saturating_sub(1)))
    }
}
