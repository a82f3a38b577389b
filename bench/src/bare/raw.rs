//! The payload words of the hand-written ring, as plain slices.
//!
//! Relaxed atomic words would be safe, but the compiler does not make vector instructions of them, and this row is to
//! be as fast as memory. Every unsafe block here relies on three facts:
//! - `new` got a span of exactly the ring and one of exactly the slots, and `sequence & mask` is below the capacity, so
//!   that every address lies in the mapping, which the kept spans keep;
//! - the ring's protocol gives a slot to one side at a time: the producer has it from P2 (or from the start) to P1, the
//!   consumer from C1 to C2, and these edges order all accesses (see the parent module);
//! - stamps are only ever accessed as atomics, and lie beside the words, never among them.
//!
//! The second fact is a promise of the other side. It is kept because both sides are this program, started by itself.
#![allow(unsafe_code)]

use std::ptr::NonNull;

use zcmi_ring::sync::AtomicU64;

use super::{ENTRY_BYTES, Geometry};
use crate::side::{Side, SideError, Span};

/// The addresses of one ring, for either side.
#[derive(Debug)]
struct Ring {
    /// The first entry's stamp.
    stamps: NonNull<u64>,
    /// The first message's words, and how many words further the next one's are.
    payloads: NonNull<u64>,
    stride: usize,
    words: usize,
    mask: u64,
    // These keep the addresses mapped.
    _ring: Span,
    _slots: Option<Span>,
}

// SAFETY: the addresses stay valid on any thread while the spans live, and the protocol orders all accesses.
unsafe impl Send for Ring {}

impl Ring {
    fn new(geometry: Geometry, side: &Side) -> Result<Self, SideError> {
        let ring = side.span(geometry.ring_offset(), geometry.capacity * ENTRY_BYTES)?;
        let stamps = ring.base().cast::<u64>();
        let slots = (geometry.slot_bytes > 0)
            .then(|| side.span(geometry.payload_offset(), geometry.capacity * geometry.slot_bytes))
            .transpose()?;
        let (payloads, stride) = match &slots {
            Some(slots) => (slots.base().cast::<u64>(), geometry.slot_bytes / 8),
            // SAFETY: the ring has at least one entry of 8 words, so the second word of the first lies in it.
            None => (unsafe { stamps.add(1) }, ENTRY_BYTES / 8),
        };
        let (words, mask) = (geometry.payload_bytes / 8, geometry.capacity as u64 - 1);
        Ok(Self { stamps, payloads, stride, words, mask, _ring: ring, _slots: slots })
    }

    #[inline]
    fn stamp(&self, sequence: u64) -> &AtomicU64 {
        let index = (sequence & self.mask) as usize * (ENTRY_BYTES / 8);
        // SAFETY: `sequence & mask` is below the capacity, so the entry lies in the ring.
        let stamp = unsafe { self.stamps.add(index) };
        // SAFETY: mapped while `self` lives, aligned as the ring is page-aligned, and accessed as an atomic only.
        unsafe { AtomicU64::from_ptr(stamp.as_ptr()) }
    }

    /// The address and number of a message's words.
    #[inline]
    fn words<const WORDS: usize>(&self, sequence: u64) -> (NonNull<u64>, usize) {
        let index = (sequence & self.mask) as usize * self.stride;
        // SAFETY: `sequence & mask` is below the capacity, so the slot lies in the span of slots, or of entries.
        let first = unsafe { self.payloads.add(index) };
        // The two are equal where `WORDS` is given (checked when opening); the constant lets loops over it unroll.
        (first, if WORDS == 0 { self.words } else { WORDS })
    }
}

/// The ring that this side writes.
#[derive(Debug)]
pub(super) struct Target(Ring);

impl Target {
    /// Takes the ring of a side's own region.
    pub(super) fn new(geometry: Geometry, ours: &Side) -> Result<Self, SideError> {
        assert!(ours.is_writable(), "a ring is written through its owner's mapping");
        Ring::new(geometry, ours).map(Self)
    }

    #[inline]
    pub(super) fn stamp(&self, sequence: u64) -> &AtomicU64 {
        self.0.stamp(sequence)
    }

    /// The words of a message that is not stamped yet and whose slot the reader has returned.
    #[inline]
    pub(super) fn words<const WORDS: usize>(&mut self, sequence: u64) -> &mut [u64] {
        let (first, len) = self.0.words::<WORDS>(sequence);
        // SAFETY: mapped for writing (asserted in `new`), in bounds, aligned, and this side has the slot from P2 to P1.
        unsafe { std::slice::from_raw_parts_mut(first.as_ptr(), len) }
    }
}

/// The ring that the other side writes.
#[derive(Debug)]
pub(super) struct Source(Ring);

impl Source {
    /// Takes the ring of the other side's region.
    pub(super) fn new(geometry: Geometry, theirs: &Side) -> Result<Self, SideError> {
        Ring::new(geometry, theirs).map(Self)
    }

    #[inline]
    pub(super) fn stamp(&self, sequence: u64) -> &AtomicU64 {
        self.0.stamp(sequence)
    }

    /// The words of a message whose stamp was seen and that is not returned yet.
    #[inline]
    pub(super) fn words<const WORDS: usize>(&self, sequence: u64) -> &[u64] {
        let (first, len) = self.0.words::<WORDS>(sequence);
        // SAFETY: mapped, in bounds, aligned, and this side has the slot from C1 to C2.
        unsafe { std::slice::from_raw_parts(first.as_ptr(), len) }
    }
}
