//! Buffers that files are read into. Fresh memory costs more than the copying, so they are used again.
//! * At most [`KEPT`] lie idle; how many are in use is up to those who read.

use std::{mem, sync::Arc};

use parking_lot::Mutex;

/// The bytes of a buffer.
pub const PIECE: usize = 256 * 1024;
/// Buffers that wait for their next use.
const KEPT: usize = 16;
/// What needs less than this gets memory of its own size.
const SMALL: usize = 32 * 1024;

/// Where buffers wait.
#[derive(Debug, Default)]
pub struct Buffers(Mutex<Vec<Vec<u8>>>);

impl Buffers {
    /// A buffer of `length` bytes, at most [`PIECE`], with anything in them.
    pub fn take(self: &Arc<Self>, length: usize) -> Buffer {
        let length = length.min(PIECE);
        let bytes = match length < SMALL {
            true => vec![0; length],
            false => self.0.lock().pop().unwrap_or_else(|| vec![0; PIECE]),
        };
        Buffer { bytes, length, home: self.clone() }
    }
}

/// Bytes that go back to where they came from.
#[derive(Debug)]
pub struct Buffer {
    bytes: Vec<u8>,
    length: usize,
    home: Arc<Buffers>,
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl AsMut<[u8]> for Buffer {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.length]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.bytes.len() == PIECE {
            let mut waiting = self.home.0.lock();
            if waiting.len() < KEPT {
                waiting.push(mem::take(&mut self.bytes));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_large_buffers_are_kept() {
        let buffers = Arc::new(Buffers::default());
        drop(buffers.take(SMALL - 1));
        assert_eq!(buffers.0.lock().len(), 0);
        let taken: Vec<Buffer> = (0..KEPT + 5).map(|_| buffers.take(PIECE + 1)).collect();
        assert!(taken.iter().all(|buffer| buffer.as_ref().len() == PIECE));
        drop(taken);
        assert_eq!(buffers.0.lock().len(), KEPT);
        let mut short = buffers.take(SMALL);
        assert_eq!((short.as_mut().len(), buffers.0.lock().len()), (SMALL, KEPT - 1));
    }
}
