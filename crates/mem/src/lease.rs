//! Leases and samples: a process's right to the bytes of a message.
//!
//! ```text
//! publisher:   pool ──loan──▶ LeaseMut ──publish──▶ the lane        LeaseMut ──freeze──▶ Lease (clone, clone, …)
//! subscriber:  the lane ──receive──▶ Sample ──share──▶ Lease (clone, clone, …)
//! ```
//!
//! - A [`LeaseMut`] is unique and writable; dropping it gives the slot back.
//! - A [`Sample`] is what a subscriber received: unique, read in place; dropping it is one plain store.
//! - A [`Lease`] is shared, counted and read-only, whichever of the two it came from; transports take leases.
//!
//! A message of at most 40 bytes travels inside the lane's entry; then a lease or sample carries the bytes itself, and
//! no slot is involved. A forgotten lease or sample leaks its slot and never frees it.

mod copied;
mod raw;

pub use copied::{Buffers, Copied, Line};
pub use raw::{Located, PeerPool, PeerPoolError};

use crate::payload::Message;
use crate::pool::Slot;
use core::fmt;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use raw::HeldBytes;
use std::sync::Arc;
use zcmi_ring::layout::{INLINE_BYTES, INLINE_WORDS};
use zerocopy::IntoBytes;

/// Whether a message of this size and alignment travels inside the entry.
#[inline]
#[must_use]
pub const fn is_inline(bytes: usize, align: usize) -> bool {
    bytes <= INLINE_BYTES && align <= 8
}

/// Where the bytes of a writable lease are.
#[derive(Debug)]
pub enum Loaned {
    /// In the lease itself.
    Inline([u64; INLINE_WORDS]),
    /// In a slot.
    Slot(Slot),
}

/// The unique, writable right to a message that was not published yet. In a forked child it must not be touched, as a
/// [`Sample`](Sample#forks) must not be read.
pub struct LeaseMut<M: Message + ?Sized> {
    loaned: Loaned,
    bytes: u32,
    message: PhantomData<fn(&M) -> &M>,
}

impl<M: Message + ?Sized> LeaseMut<M> {
    /// A lease whose bytes travel in the entry, zeroed.
    ///
    /// # Panics
    /// If so many bytes do not fit an entry, or are no message of this type.
    #[inline(always)]
    #[must_use]
    pub fn inline(bytes: usize) -> Self {
        assert!(is_inline(bytes, M::ELEMENT_ALIGN) && bytes.is_multiple_of(M::ELEMENT_BYTES));
        Self { loaned: Loaned::Inline([0; INLINE_WORDS]), bytes: bytes as u32, message: PhantomData }
    }

    /// A lease of the first `bytes` bytes of a slot, which keep what they held before.
    ///
    /// # Panics
    /// If they do not fit the slot, or are no message of this type.
    #[inline(always)]
    #[must_use]
    pub fn slot(slot: Slot, bytes: usize) -> Self {
        assert!(bytes <= slot.capacity() && bytes.is_multiple_of(M::ELEMENT_BYTES));
        Self { loaned: Loaned::Slot(slot), bytes: bytes as u32, message: PhantomData }
    }

    /// The message's length in bytes.
    #[inline(always)]
    #[must_use]
    pub fn byte_len(&self) -> usize {
        self.bytes as usize
    }

    /// Takes the lease apart: where its bytes are, and how many.
    #[inline(always)]
    #[must_use]
    pub fn into_parts(self) -> (Loaned, u32) {
        (self.loaned, self.bytes)
    }

    /// Where the bytes are.
    #[inline(always)]
    #[must_use]
    pub fn loaned(&self) -> &Loaned {
        &self.loaned
    }

    /// The slot in which the bytes are, if they are in one.
    #[inline(always)]
    #[must_use]
    pub fn as_slot(&self) -> Option<&Slot> {
        match &self.loaned {
            Loaned::Inline(_) => None,
            Loaned::Slot(slot) => Some(slot),
        }
    }

    /// Puts a lease together again; the inverse of [`into_parts`](Self::into_parts).
    #[inline(always)]
    #[must_use]
    pub fn from_parts(loaned: Loaned, bytes: u32) -> Self {
        match loaned {
            Loaned::Inline(words) => {
                assert!(is_inline(bytes as usize, M::ELEMENT_ALIGN));
                Self { loaned: Loaned::Inline(words), bytes, message: PhantomData }
            }
            Loaned::Slot(slot) => Self::slot(slot, bytes as usize),
        }
    }

    /// The message's bytes, for writing.
    #[inline(always)]
    #[must_use]
    pub fn as_mut_message_bytes(&mut self) -> &mut [u8] {
        match &mut self.loaned {
            Loaned::Inline(words) => &mut words.as_mut_bytes()[..self.bytes as usize],
            Loaned::Slot(slot) => slot.bytes_mut(self.bytes as usize),
        }
    }

    /// Gives up writing, so that the message can be shared.
    #[must_use]
    pub fn freeze(self) -> Lease<M> {
        Lease { source: Arc::new(Source::Own(self)) }
    }

    #[inline(always)]
    fn as_bytes(&self) -> &[u8] {
        match &self.loaned {
            Loaned::Inline(words) => &words.as_bytes()[..self.bytes as usize],
            Loaned::Slot(slot) => slot.bytes(self.bytes as usize),
        }
    }
}

impl<M: Message + ?Sized> Deref for LeaseMut<M> {
    type Target = M;

    #[inline(always)]
    fn deref(&self) -> &M {
        M::from_bytes(self.as_bytes()).expect("a lease's length and alignment fit its type")
    }
}

impl<M: Message + ?Sized> DerefMut for LeaseMut<M> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut M {
        M::from_bytes_mut(self.as_mut_message_bytes()).expect("a lease's length and alignment fit its type")
    }
}

impl<M: Message + ?Sized + fmt::Debug> fmt::Debug for LeaseMut<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LeaseMut").field(&&**self).finish()
    }
}

/// Where the bytes of a sample are.
#[derive(Debug)]
enum Received {
    /// In the sample itself: they travelled in the entry.
    Inline([u64; INLINE_WORDS]),
    /// In the publisher's slot, under a hold.
    Held(HeldBytes),
    /// In memory of our own: copied, because whoever wrote them is not of our user.
    Copied(Copied),
}

/// A message as a subscriber received it, read in place. Dropping it lets the publisher reuse the slot.
///
/// # Forks
/// Regions are not mapped in a forked child. There a sample that lies in place can be dropped, which does nothing, and
/// must not be read: its bytes are gone, and touching them ends the child with SIGSEGV. The handles that samples come
/// from answer `Forked` instead; a sample has nobody to ask at each read. Copy what a child needs before the fork.
pub struct Sample<M: Message + ?Sized> {
    received: Received,
    bytes: u32,
    sequence: u64,
    message: PhantomData<fn() -> Box<M>>,
}

impl<M: Message + ?Sized> Sample<M> {
    /// A message that travelled in the entry, or nothing if its length is none of this type's.
    #[inline(always)]
    #[must_use]
    pub fn inline(sequence: u64, words: [u64; INLINE_WORDS], bytes: u32) -> Option<Self> {
        let fits = is_inline(bytes as usize, M::ELEMENT_ALIGN) && fits::<M>(bytes);
        fits.then_some(Self { received: Received::Inline(words), bytes, sequence, message: PhantomData })
    }

    /// A message of the type's own size that travelled in the entry.
    #[inline(always)]
    #[must_use]
    pub fn inline_whole(sequence: u64, words: [u64; INLINE_WORDS]) -> Self {
        assert!(!M::SLICE && is_inline(M::ELEMENT_BYTES, M::ELEMENT_ALIGN), "the type does not travel in entries");
        let bytes = M::ELEMENT_BYTES as u32;
        Self { received: Received::Inline(words), bytes, sequence, message: PhantomData }
    }

    /// A message copied out of a stranger's memory, or nothing if its length is none of this type's.
    #[must_use]
    pub fn copied(sequence: u64, copied: Copied, bytes: u32) -> Option<Self> {
        let holds = bytes as usize <= copied.bytes().len() && M::ELEMENT_ALIGN <= align_of::<Line>();
        let received = Received::Copied(copied);
        (holds && fits::<M>(bytes)).then_some(Self { received, bytes, sequence, message: PhantomData })
    }

    /// The message's place in its publisher's order: 0 for the first.
    #[inline(always)]
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The message's length in bytes.
    #[inline(always)]
    #[must_use]
    pub fn byte_len(&self) -> usize {
        self.bytes as usize
    }

    /// Whether the bytes lie in the publisher's memory, so that reading them is reading what it wrote.
    #[must_use]
    pub fn is_in_place(&self) -> bool {
        matches!(self.received, Received::Held(_))
    }

    /// Turns the sample into its shared, counted form. The slot is free for reuse when the last clone is dropped.
    #[must_use]
    pub fn share(self) -> Lease<M> {
        Lease { source: Arc::new(Source::Received(self)) }
    }

    #[inline(always)]
    fn as_bytes(&self) -> &[u8] {
        match &self.received {
            Received::Inline(words) => &words.as_bytes()[..self.bytes as usize],
            Received::Held(held) => self.held_bytes(held),
            Received::Copied(copied) => &copied.bytes()[..self.bytes as usize],
        }
    }
}

/// Whether so many bytes make a message of this type.
#[inline(always)]
fn fits<M: Message + ?Sized>(bytes: u32) -> bool {
    if M::SLICE { (bytes as usize).is_multiple_of(M::ELEMENT_BYTES) } else { bytes as usize == M::ELEMENT_BYTES }
}

impl<M: Message + ?Sized> Deref for Sample<M> {
    type Target = M;

    #[inline(always)]
    fn deref(&self) -> &M {
        M::from_bytes(self.as_bytes()).expect("a sample's length and alignment were checked when it was made")
    }
}

impl<M: Message + ?Sized + fmt::Debug> fmt::Debug for Sample<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sample").field("sequence", &self.sequence).field("message", &&**self).finish()
    }
}

#[derive(Debug)]
enum Source<M: Message + ?Sized> {
    Own(LeaseMut<M>),
    Received(Sample<M>),
}

/// The shared, counted, read-only right to a message. In a forked child it must not be read, as a
/// [`Sample`](Sample#forks) must not.
pub struct Lease<M: Message + ?Sized> {
    source: Arc<Source<M>>,
}

impl<M: Message + ?Sized> Clone for Lease<M> {
    fn clone(&self) -> Self {
        Self { source: Arc::clone(&self.source) }
    }
}

impl<M: Message + ?Sized> Deref for Lease<M> {
    type Target = M;

    fn deref(&self) -> &M {
        match &*self.source {
            Source::Own(lease) => lease,
            Source::Received(sample) => sample,
        }
    }
}

impl<M: Message + ?Sized + fmt::Debug> fmt::Debug for Lease<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lease").field(&&**self).finish()
    }
}
