//! Pools: slots of a few sizes carved out of a region, handed out by their one owner.
//!
//! A [`PoolPlan`] says how many slots of which sizes; a [`Pool`] keeps the free lists in private memory and hands out
//! [`Slot`]s. Nothing of a pool's bookkeeping lies in shared memory, so that no peer can damage it.
//!
//! ```text
//! the pool's bytes    │ class 0: slot 0 │ slot 1 │ … │ class 1: slot 0 │ …   classes ascend, each begins on its own
//! alignment
//! ```
//!
//! Sizes are bytes. A slot is aligned to 64 bytes, from one page up to a page.
//!
//! # Invariants
//! - A slot is at any instant in exactly one place: a free list, a [`Slot`], or the publisher's record of what it
//!   published.
//! - A [`Slot`] that is dropped on any thread returns to its pool; one that is forgotten leaks.

mod raw;

pub use raw::{Ahead, Pool, Slot};

/// The alignment of slots below one page.
pub const SLOT_ALIGN: usize = 64;
/// Slots of a page or more begin on a page.
pub const PAGE_BYTES: usize = 4096;
/// Slots from this size on are an odd number of pages, so that their first lines do not all compete for one set of a
/// cache.
pub const COLOUR_FROM_BYTES: usize = 256 << 10;
/// The largest slot: one for 1 GiB.
pub const LARGEST_SLOT_BYTES: usize = (1 << 30) + PAGE_BYTES;
/// The most size classes of a pool.
pub const CLASSES: usize = 24;
/// The most slots of one class.
pub const CLASS_SLOTS: u32 = 1 << 26;

/// One size class of a plan.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SizeClass {
    /// Bytes of each slot, a multiple of its alignment.
    pub slot_bytes: usize,
    /// How many.
    pub slots: u32,
}

/// Why a plan is none.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PoolPlanError {
    /// No class, or too many.
    #[error("a pool has 1 to {CLASSES} size classes, not {0}")]
    Classes(usize),
    /// A class without slots or with too many.
    #[error("class {class} has {slots} slots; 1 to {CLASS_SLOTS} are possible")]
    Slots {
        /// Which class.
        class: usize,
        /// How many slots it asked for.
        slots: u32,
    },
    /// A size that is 0, misaligned, not larger than the one before, or past 1 GiB.
    #[error(
        "class {class} has slots of {slot_bytes} bytes: sizes ascend, are multiples of 64 (of 4096 from there up) and \
         end at 1 GiB"
    )]
    SlotBytes {
        /// Which class.
        class: usize,
        /// The size it asked for.
        slot_bytes: usize,
    },
    /// More bytes than an address space has.
    #[error("the pool's size overflows")]
    Overflow,
}

/// How many slots of which sizes a pool has, and where each class begins.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PoolPlan {
    classes: Vec<SizeClass>,
    offsets: Vec<usize>,
    bytes: usize,
}

impl PoolPlan {
    /// Checks the classes and lays them out.
    ///
    /// # Errors
    /// [`PoolPlanError`], naming the class.
    pub fn new(classes: Vec<SizeClass>) -> Result<Self, PoolPlanError> {
        if classes.is_empty() || classes.len() > CLASSES {
            return Err(PoolPlanError::Classes(classes.len()));
        }
        let mut offsets = Vec::with_capacity(classes.len());
        let (mut at, mut before) = (0usize, 0usize);
        for (class, &SizeClass { slot_bytes, slots }) in classes.iter().enumerate() {
            let align = slot_align(slot_bytes);
            if slot_bytes <= before || slot_bytes % align != 0 || slot_bytes > LARGEST_SLOT_BYTES {
                return Err(PoolPlanError::SlotBytes { class, slot_bytes });
            }
            if slots == 0 || slots > CLASS_SLOTS {
                return Err(PoolPlanError::Slots { class, slots });
            }
            let begin = at.checked_next_multiple_of(align).ok_or(PoolPlanError::Overflow)?;
            let bytes = slot_bytes.checked_mul(slots as usize).ok_or(PoolPlanError::Overflow)?;
            offsets.push(begin);
            at = begin.checked_add(bytes).ok_or(PoolPlanError::Overflow)?;
            before = slot_bytes;
        }
        Ok(Self { classes, offsets, bytes: at })
    }

    /// One class of `slots` slots, each large enough for `payload_bytes`.
    ///
    /// # Errors
    /// [`PoolPlanError`] when the size or the number is impossible.
    pub fn single(payload_bytes: usize, slots: u32) -> Result<Self, PoolPlanError> {
        Self::new(vec![SizeClass { slot_bytes: slot_bytes_for(payload_bytes), slots }])
    }

    /// Classes doubling from `smallest` to the one that takes `largest`, each of `slots` slots.
    ///
    /// # Errors
    /// [`PoolPlanError`] when a size or the number is impossible.
    pub fn doubling(smallest: usize, largest: usize, slots: u32) -> Result<Self, PoolPlanError> {
        let last = slot_bytes_for(largest);
        let mut classes = Vec::new();
        let mut size = smallest.max(SLOT_ALIGN).next_power_of_two();
        while size < last {
            classes.push(SizeClass { slot_bytes: size, slots });
            size *= 2;
        }
        classes.push(SizeClass { slot_bytes: last, slots });
        Self::new(classes)
    }

    /// The classes, ascending.
    #[must_use]
    pub fn classes(&self) -> &[SizeClass] {
        &self.classes
    }

    /// Where a class begins, bytes from the pool's beginning.
    #[must_use]
    pub fn class_offset(&self, class: usize) -> Option<usize> {
        self.offsets.get(class).copied()
    }

    /// Bytes of the whole pool.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The largest payload that fits a slot.
    #[must_use]
    pub fn largest(&self) -> usize {
        self.classes.last().map_or(0, |class| class.slot_bytes)
    }
}

/// The size of a slot for a payload of this many bytes.
#[must_use]
pub fn slot_bytes_for(payload_bytes: usize) -> usize {
    let bytes = payload_bytes.max(1);
    match bytes.checked_next_multiple_of(slot_align(bytes)) {
        Some(bytes) if bytes >= COLOUR_FROM_BYTES => bytes | PAGE_BYTES,
        Some(bytes) => bytes,
        None => usize::MAX,
    }
}

/// The alignment of a slot of this size.
#[must_use]
pub fn slot_align(slot_bytes: usize) -> usize {
    if slot_bytes >= PAGE_BYTES { PAGE_BYTES } else { SLOT_ALIGN }
}

/// Every slot that could hold the message is taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// Every slot of the classes that fit is leased, published or held.
    #[error("no slot for {bytes} bytes is free: all are leased, published or held by readers")]
    Exhausted {
        /// The size asked for.
        bytes: usize,
    },
    /// No class is that large.
    #[error("{bytes} bytes are more than the pool's largest slot of {largest} bytes")]
    TooLarge {
        /// The size asked for.
        bytes: usize,
        /// The largest class.
        largest: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_take_their_payload_and_large_ones_are_an_odd_number_of_pages() {
        for (payload, slot) in [(0, 64), (1, 64), (65, 128), (4095, 4096), (4097, 8192), (65_536, 65_536)] {
            assert_eq!(slot_bytes_for(payload), slot);
        }
        for payload in [COLOUR_FROM_BYTES, 1 << 20, (1 << 20) + 1, (4 << 20) + 4096, 1 << 30] {
            let slot = slot_bytes_for(payload);
            assert!(slot >= payload && slot - payload <= 2 * PAGE_BYTES && slot / PAGE_BYTES % 2 == 1, "{payload}");
            assert_eq!(PoolPlan::single(payload, 2).map(|plan| plan.largest()), Ok(slot));
        }
        assert!(PoolPlan::single((1 << 30) + 8192, 2).is_err());
    }

    #[test]
    fn impossible_plans_are_refused_by_the_class_that_is_wrong() {
        let class = |slot_bytes, slots| SizeClass { slot_bytes, slots };
        let plan = |classes: &[SizeClass]| PoolPlan::new(classes.to_vec());
        assert_eq!(plan(&[]), Err(PoolPlanError::Classes(0)));
        assert_eq!(plan(&[class(64, 0)]), Err(PoolPlanError::Slots { class: 0, slots: 0 }));
        assert_eq!(plan(&[class(64, 1), class(96, 1)]), Err(PoolPlanError::SlotBytes { class: 1, slot_bytes: 96 }));
        assert_eq!(plan(&[class(128, 1), class(64, 1)]), Err(PoolPlanError::SlotBytes { class: 1, slot_bytes: 64 }));
        let two = plan(&[class(64, 3), class(4096, 2)]).expect("a plan");
        assert_eq!((two.class_offset(1), two.bytes()), (Some(4096), 3 * 4096));
    }
}
