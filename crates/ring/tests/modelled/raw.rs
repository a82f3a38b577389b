//! Payload slots that loom watches: a read beside a write is a failed model.
//!
//! Every unsafe block here relies on loom: it panics at the start of an access that is not ordered after the last
//! conflicting one, so that the access itself is never a race.
#![allow(unsafe_code)]

use loom::cell::UnsafeCell;

/// Slots of one word each, as plain memory.
#[derive(Debug)]
pub(crate) struct Slots(Box<[UnsafeCell<u64>]>);

// SAFETY: loom checks each access; the words are plain integers.
unsafe impl Sync for Slots {}
// SAFETY: as above.
unsafe impl Send for Slots {}

impl Slots {
    pub(crate) fn new(count: usize) -> Self {
        Self((0..count).map(|_| UnsafeCell::new(0)).collect())
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn write(&self, slot: u32, value: u64) {
        self.0[slot as usize].with_mut(|word| {
            // SAFETY: loom found no access that is not ordered before this one.
            unsafe { *word = value }
        });
    }

    pub(crate) fn read(&self, slot: u32) -> u64 {
        self.0[slot as usize].with(|word| {
            // SAFETY: loom found no write that is not ordered before this read.
            unsafe { *word }
        })
    }
}
