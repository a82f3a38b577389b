//! Memory of our own into which the messages of strangers are copied.
//!
//! A lane has a few buffers, which its samples give back when they drop, so that a reader in step with its publisher
//! allocates nothing. What a buffer held before stays in it: it is this process's own.

use std::sync::{Arc, Mutex, PoisonError};

use zerocopy::{FromZeros, Immutable, IntoBytes, KnownLayout};

/// Buffers that a lane keeps for the next messages; a reader that keeps more samples allocates for them.
const KEPT: usize = 4;

/// 64 bytes, aligned as the slots are, so that every message that fits a slot may be copied.
#[derive(Clone, Copy, Debug, Default, FromZeros, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
pub struct Line(pub [u64; 8]);

/// The buffers of one lane.
#[derive(Clone, Debug, Default)]
pub struct Buffers(Arc<Mutex<Vec<Box<[Line]>>>>);

impl Buffers {
    /// A buffer for at least so many bytes, with whatever it held before.
    #[must_use]
    pub fn take(&self, bytes: usize) -> Copied {
        let lines = bytes.div_ceil(size_of::<Line>());
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let lines = match kept {
            Some(kept) if kept.len() >= lines => kept,
            _ => vec![Line::default(); lines].into(),
        };
        Copied { lines, home: self.clone() }
    }
}

/// A message's bytes in memory of our own; the buffer goes back to its lane when this drops.
#[derive(Debug)]
pub struct Copied {
    lines: Box<[Line]>,
    home: Buffers,
}

impl Copied {
    /// All bytes of the buffer.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.lines.as_bytes()
    }

    /// The buffer's lines, to be written.
    #[must_use]
    pub fn lines_mut(&mut self) -> &mut [Line] {
        &mut self.lines
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        let mut kept = self.home.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT {
            kept.push(core::mem::take(&mut self.lines));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_and_is_used_again_where_it_is_large_enough() {
        let buffers = Buffers::default();
        let first = buffers.take(100);
        let (address, bytes) = (first.bytes().as_ptr(), first.bytes().len());
        assert_eq!((bytes, address.addr() % 64), (128, 0));
        drop(first);
        assert_eq!(buffers.take(128).bytes().as_ptr(), address);
        assert!(buffers.take(129).bytes().len() >= 129);
    }

    #[test]
    fn a_reader_that_keeps_many_leaves_few_behind() {
        let buffers = Buffers::default();
        drop((0..20).map(|_| buffers.take(64)).collect::<Vec<_>>());
        assert_eq!(buffers.0.lock().expect("nobody panicked").len(), KEPT);
    }
}
