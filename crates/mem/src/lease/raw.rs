//! From a publisher's descriptor to bytes that can be read in place.
//!
//! Every unsafe block here relies on two facts: the slot named by a descriptor lies inside a mapping that the hold's
//! table keeps (checked against private geometry in [`PeerPool::resolve`]), and while the hold exists the publisher, of
//! our own user, does not write there (contract of [`PeerPool::sample`]).
#![allow(unsafe_code)]

use super::{Line, Received, Sample, fits};
use crate::payload::Message;
use crate::pool::PoolPlan;
use crate::region::Span;
use core::fmt;
use core::marker::PhantomData;
use core::ptr::NonNull;
use zcmi_ring::sync::{AtomicU64, Ordering};
use zcmi_ring::{Hold, RawDescriptor};

/// Bytes in a publisher's slot, under a hold.
pub(super) struct HeldBytes {
    base: NonNull<u8>,
    _hold: Hold,
}

// SAFETY: nobody writes the bytes while the hold lives, and the hold itself is `Send + Sync`.
unsafe impl Send for HeldBytes {}
// SAFETY: as above.
unsafe impl Sync for HeldBytes {}

impl fmt::Debug for HeldBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeldBytes").field("base", &self.base).finish_non_exhaustive()
    }
}

impl HeldBytes {
    /// # Safety
    /// `len` is the length with which the slot was resolved.
    #[inline(always)]
    pub(super) unsafe fn bytes(&self, len: u32) -> &[u8] {
        // SAFETY: inside a slot of a mapping that the hold keeps, and not written while it lives (contract of
        // `sample`).
        unsafe { core::slice::from_raw_parts(self.base.as_ptr(), len as usize) }
    }
}

/// A descriptor that names nothing: a class, slot or length that the publisher's pool does not have, or a length that
/// is none of the type's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("message {sequence} has the impossible descriptor {word:#x} with {bytes} bytes")]
pub struct PeerPoolError {
    /// The message's sequence.
    pub sequence: u64,
    /// The descriptor.
    pub word: u64,
    /// The length.
    pub bytes: u32,
}

#[derive(Clone, Copy)]
struct PeerClass {
    base: NonNull<u8>,
    slot_bytes: u32,
    slots: u32,
}

/// Where a message's bytes are: inside a slot that was checked against the pool.
#[derive(Clone, Copy, Debug)]
pub struct Located(NonNull<u8>);

impl Located {
    /// The message itself, read in place.
    ///
    /// # Safety
    /// As [`PeerPool::in_place`], for as long as the reference is used.
    #[inline(always)]
    #[must_use]
    pub unsafe fn message<'a, M: Message + ?Sized>(self, bytes: u32) -> Option<&'a M> {
        // SAFETY: inside a slot of a mapped pool, which the publisher does not reuse meanwhile (the caller's promise).
        M::from_bytes(unsafe { core::slice::from_raw_parts(self.0.as_ptr(), bytes as usize) })
    }

    /// Makes the sample of a held message of `bytes` bytes.
    ///
    /// # Safety
    /// As [`PeerPool::sample`], for the message whose word and length were [located](PeerPool::locate).
    #[inline(always)]
    #[must_use]
    pub unsafe fn sample<M: Message + ?Sized>(self, sequence: u64, bytes: u32, hold: Hold) -> Sample<M> {
        let received = Received::Held(HeldBytes { base: self.0, _hold: hold });
        Sample { received, bytes, sequence, message: PhantomData }
    }
}

/// A publisher's pool as a subscriber knows it: private geometry that every descriptor is checked against.
pub struct PeerPool {
    /// The first class once more, where it is at hand: most pools have no other.
    first: PeerClass,
    classes: Box<[PeerClass]>,
    span: Option<Span>,
}

// SAFETY: addresses and a span; the bytes are reached only under a hold.
unsafe impl Send for PeerPool {}
// SAFETY: as above.
unsafe impl Sync for PeerPool {}

impl fmt::Debug for PeerPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerPool").field("classes", &self.classes.len()).finish_non_exhaustive()
    }
}

impl<M: Message + ?Sized> Sample<M> {
    /// The bytes that lie in a slot.
    #[inline(always)]
    pub(super) fn held_bytes<'a>(&self, held: &'a HeldBytes) -> &'a [u8] {
        // SAFETY: a sample's length is the one with which its slot was resolved, and never changes.
        unsafe { held.bytes(self.bytes) }
    }
}

impl PeerPool {
    /// The pool that lies in `span`.
    ///
    /// Every slot takes at least `least_bytes`: the length of the messages, where all have one.
    ///
    /// # Panics
    /// If the span is shorter than the plan, or a slot is too small; the caller checked both.
    #[must_use]
    pub fn new(plan: &PoolPlan, span: Span, least_bytes: usize) -> Self {
        assert!(span.len() >= plan.bytes(), "the span is too short for its plan");
        assert!(plan.classes()[0].slot_bytes >= least_bytes, "a slot is too small for its message");
        let classes = plan.classes().iter().enumerate().map(|(number, class)| {
            let begin = plan.class_offset(number).unwrap_or(0);
            // SAFETY: `begin` is below the plan's bytes, and the span is at least as long (checked above).
            let base = unsafe { span.base().add(begin) };
            PeerClass { base, slot_bytes: class.slot_bytes as u32, slots: class.slots }
        });
        let classes: Box<[PeerClass]> = classes.collect();
        Self { first: classes[0], classes, span: Some(span) }
    }

    /// The pool of a lane that has none: every descriptor is outside.
    #[must_use]
    pub fn none() -> Self {
        let first = PeerClass { base: NonNull::dangling(), slot_bytes: 0, slots: 0 };
        Self { first, classes: Box::default(), span: None }
    }

    /// The smallest slot, bytes; `None` for a lane without a pool.
    #[must_use]
    pub fn smallest(&self) -> Option<usize> {
        self.classes.first().map(|class| class.slot_bytes as usize)
    }

    /// What keeps the pool mapped; to be given to the reader's table of holds.
    #[must_use]
    pub fn keeper(&self) -> Option<zcmi_ring::Keeper> {
        self.span.as_ref().map(|span| span.keeper().clone())
    }

    /// Checks a claim against the pool: `word` is a descriptor's, `bytes` the length that came with it.
    #[inline(always)]
    fn resolve(&self, sequence: u64, word: u64, bytes: u32) -> Result<NonNull<u8>, PeerPoolError> {
        let class = (word >> RawDescriptor::SLOT_BITS) as usize;
        let slot = RawDescriptor::from_token(word as u32).slot();
        let known = self.classes.get(class).filter(|class| slot < class.slots && bytes <= class.slot_bytes);
        let Some(class) = known else { return Err(PeerPoolError { sequence, word, bytes }) };
        // SAFETY: `slot < slots`, so the slot lies in the class, which lies in the span (checked in `new`).
        Ok(unsafe { class.base.add(slot as usize * class.slot_bytes as usize) })
    }

    /// Copies a message of a stranger's into memory of our own, by atomic words: whoever writes there meanwhile makes
    /// the copy wrong, and nothing else.
    ///
    /// # Errors
    /// [`PeerPoolError`] when the claim is outside the pool.
    ///
    /// # Panics
    /// If `to` is shorter than the message.
    pub fn copy_out(&self, sequence: u64, word: u64, bytes: u32, to: &mut [Line]) -> Result<(), PeerPoolError> {
        const WORDS: usize = size_of::<Line>() / size_of::<u64>();
        let base = self.resolve(sequence, word, bytes)?.cast::<AtomicU64>();
        // A slot is a multiple of 64 bytes and begins at one (`PoolPlan`), if its pool does.
        if !base.is_aligned() {
            return Err(PeerPoolError { sequence, word, bytes });
        }
        let lines = (bytes as usize).div_ceil(size_of::<Line>());
        assert!(lines <= to.len(), "{bytes} bytes do not fit {} lines", to.len());
        for (line, Line(words)) in to[..lines].iter_mut().enumerate() {
            for (index, to) in words.iter_mut().enumerate() {
                // SAFETY: `line < bytes / 64` rounded up, and the slot holds `bytes` and is a multiple of 64 bytes: the
                // word lies in the slot, which lies in the span (`resolve`).
                let word = unsafe { base.add(line * WORDS + index) };
                // SAFETY: aligned (checked above) and in a mapping that `self.span` keeps; every pattern is a word.
                let word = unsafe { word.as_ref() };
                *to = word.load(Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// The smallest buffer that takes a message that [`copy_out`](Self::copy_out) would copy, or its refusal.
    ///
    /// # Errors
    /// [`PeerPoolError`] when the claim is outside the pool.
    pub fn check(&self, sequence: u64, word: u64, bytes: u32) -> Result<usize, PeerPoolError> {
        self.resolve(sequence, word, bytes).map(|_| bytes as usize)
    }

    /// Where the bytes of a message are, if they are in the first class: the straight way through
    /// [`sample`](Self::sample).
    ///
    /// # Safety
    /// If all messages of `M` have one length, the pool was [made](Self::new) for at least that.
    #[inline(always)]
    #[must_use]
    pub unsafe fn locate<M: Message + ?Sized>(&self, word: u64, bytes: u32) -> Option<Located> {
        // One comparison says that the zero bits are zero, the class is the first, and the slot is one of its. Slots of
        // a type whose messages all have one length are large enough (contract of `new`).
        let fits = fits::<M>(bytes) && (!M::SLICE || bytes <= self.first.slot_bytes);
        if word >= u64::from(self.first.slots) || !fits {
            return None;
        }
        // SAFETY: `word` is below the first class's slots, so the slot lies in the class, which lies in the span.
        Some(Located(unsafe { self.first.base.add(word as usize * self.first.slot_bytes as usize) }))
    }

    /// Makes the sample of a held message.
    ///
    /// # Errors
    /// [`PeerPoolError`] when the claim is outside the pool, or its length is none of this type's.
    ///
    /// # Safety
    /// - `hold` was taken, and confirmed where the reader may be overtaken, for the message that carried `word`.
    /// - Its table of holds keeps this pool's [keeper](Self::keeper).
    /// - The publisher is of our own user, which we trust not to write a slot that is held.
    #[inline(always)]
    pub unsafe fn sample<M: Message + ?Sized>(
        &self,
        sequence: u64,
        word: u64,
        bytes: u32,
        hold: Hold,
    ) -> Result<Sample<M>, PeerPoolError> {
        let base = self.resolve(sequence, word, bytes)?;
        if !fits::<M>(bytes) {
            return Err(PeerPoolError { sequence, word, bytes });
        }
        // SAFETY: the caller's promise; the slot was resolved above.
        Ok(unsafe { Located(base).sample(sequence, bytes, hold) })
    }

    /// Gives the bytes of a message to `each` in place, without a hold.
    ///
    /// # Errors
    /// [`PeerPoolError`], as [`sample`](Self::sample).
    ///
    /// # Safety
    /// - The reader is reliable and its cursor does not pass the message that carried `word` before this returns.
    /// - The publisher is of our own user.
    #[inline(always)]
    pub unsafe fn in_place<M: Message + ?Sized, R>(
        &self,
        sequence: u64,
        word: u64,
        bytes: u32,
        each: impl FnOnce(&M) -> R,
    ) -> Result<R, PeerPoolError> {
        let base = self.resolve(sequence, word, bytes)?;
        // SAFETY: inside a slot of a span that `self` keeps, which the publisher does not reuse before the cursor
        // passes.
        let slice = unsafe { core::slice::from_raw_parts(base.as_ptr(), bytes as usize) };
        match M::from_bytes(slice) {
            Some(message) => Ok(each(message)),
            None => Err(PeerPoolError { sequence, word, bytes }),
        }
    }
}
