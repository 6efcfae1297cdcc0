//! Values longer than a row may be, in pieces.
//!
//! The row at the key itself holds the number of further pieces (one byte) and the value's beginning. The others
//! stand right behind it, at the key with their number appended. All pieces of one writing end or begin with the
//! same tag, so that a reader who meets an overwriting sees it and reads again.

use crate::VALUE_MAX;

/// How much of the value the first row takes when there are others.
pub(crate) const HEAD: usize = VALUE_MAX - 1 - TAG;
/// How much each further row takes.
pub(crate) const TAIL: usize = VALUE_MAX - TAG;
pub(crate) const TAG: usize = 8;
/// The longest value: what a commit can hold anyway.
pub(crate) const PIECES_MAX: usize = 255;

/// The key of a further piece, counted from 1.
pub(crate) fn piece_key(key: &[u8], piece: u8) -> Vec<u8> {
    let mut out = Vec::with_capacity(key.len() + 1);
    out.extend_from_slice(key);
    out.push(piece);
    out
}

/// Tells writings of the same key apart.
pub(crate) fn tag(value: &[u8]) -> [u8; TAG] {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for &byte in value {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash.to_be_bytes()
}

/// What the row at the key itself says.
pub(crate) struct Head<'a> {
    pub(crate) pieces: u8,
    pub(crate) value: &'a [u8],
    pub(crate) tag: &'a [u8],
}

pub(crate) fn head(row: &[u8]) -> Option<Head<'_>> {
    let (&pieces, rest) = row.split_first()?;
    let at = if pieces == 0 { rest.len() } else { rest.len().checked_sub(TAG)? };
    let (value, tag) = rest.split_at(at);
    Some(Head { pieces, value, tag })
}
