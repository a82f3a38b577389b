//! Typed views over memory that other processes may write.
//!
//! Every unsafe block here relies on two facts: a [`View`]'s memory stays mapped while its keeper lives (the caller of
//! [`View::from_raw`] promised it), and its element type consists of atomics alone ([`Shared`]), so that a racing peer
//! causes a wrong value and never undefined behaviour.
#![allow(unsafe_code)]

use crate::layout::Entry;
use core::any::Any;
use core::ptr::NonNull;
use std::sync::Arc;

/// A type that may lie in memory shared with other processes.
///
/// # Safety
/// - The type is `#[repr(C)]` (or a plain atomic) and consists of atomics only, padding named as atomics too.
/// - Every bit pattern is a valid value, and it has no drop glue.
pub unsafe trait Shared: Sync + Send + 'static {}

// SAFETY: a plain atomic; every bit pattern is valid.
unsafe impl Shared for crate::sync::AtomicU64 {}
// SAFETY: a plain atomic; every bit pattern is valid.
unsafe impl Shared for crate::sync::AtomicU32 {}

// SAFETY: `repr(C)`, atomics only, padding named; every bit pattern is valid.
unsafe impl Shared for crate::layout::Entry {}
// SAFETY: as above.
unsafe impl Shared for crate::layout::LaneControl {}
// SAFETY: as above.
unsafe impl Shared for crate::layout::ReaderBlock {}

/// What keeps a view's memory mapped.
pub type Keeper = Arc<dyn Any + Send + Sync>;

/// A bounds-checked array of shared elements inside a mapping that it keeps alive.
///
/// A view is handed out for read-only mappings too. Then only relaxed loads are allowed through it (Rust guarantees no
/// more on read-only memory); a store would be a fault, as with any read-only page.
pub struct View<T: Shared> {
    base: NonNull<T>,
    len: usize,
    keep: Keeper,
}

// SAFETY: the elements are `Sync` atomics and the keeper is `Send + Sync`.
unsafe impl<T: Shared> Send for View<T> {}
// SAFETY: as above.
unsafe impl<T: Shared> Sync for View<T> {}

impl<T: Shared> Clone for View<T> {
    fn clone(&self) -> Self {
        Self { base: self.base, len: self.len, keep: Arc::clone(&self.keep) }
    }
}

impl<T: Shared> core::fmt::Debug for View<T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("View").field("base", &self.base).field("len", &self.len).finish_non_exhaustive()
    }
}

impl<T: Shared> View<T> {
    /// Makes a view of `len` elements at `base`, alive as long as `keep`.
    ///
    /// # Safety
    /// - `base` is aligned for `T`, and `len` elements from it lie inside one mapping.
    /// - The mapping is readable and stays mapped at that address while `keep` lives.
    /// - Whoever else accesses that memory does so atomically.
    #[must_use]
    pub unsafe fn from_raw(base: NonNull<T>, len: usize, keep: Keeper) -> Self {
        Self { base, len, keep }
    }

    /// Makes a view of `len` elements on the heap; tests and models use it in place of a mapping.
    #[must_use]
    pub fn heap(len: usize, make: impl FnMut(usize) -> T) -> Self {
        let boxed: Arc<Box<[T]>> = Arc::new((0..len).map(make).collect());
        let base = NonNull::new(boxed.as_ptr().cast_mut()).unwrap_or(NonNull::dangling());
        Self { base, len, keep: boxed }
    }

    /// The number of elements.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the view has no element.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The element at `index`.
    ///
    /// # Panics
    /// If `index` is past the end: indices are the caller's own, never a peer's claim.
    #[inline(always)]
    #[must_use]
    pub fn at(&self, index: usize) -> &T {
        assert!(index < self.len, "element {index} is past the end of a view of {}", self.len);
        // SAFETY: `index < self.len` (checked above), so the address lies in the mapping that `keep` keeps.
        let element = unsafe { self.base.add(index) };
        // SAFETY: aligned and mapped (contract of `from_raw`), shared atomics (`Shared`), and the borrow of `self`
        // keeps it.
        unsafe { element.as_ref() }
    }
}

/// One shared element inside a mapping that it keeps alive: a view that needs no index and no check.
pub struct Single<T: Shared> {
    element: NonNull<T>,
    keep: Keeper,
}

// SAFETY: as for `View`.
unsafe impl<T: Shared> Send for Single<T> {}
// SAFETY: as for `View`.
unsafe impl<T: Shared> Sync for Single<T> {}

impl<T: Shared> Clone for Single<T> {
    fn clone(&self) -> Self {
        Self { element: self.element, keep: Arc::clone(&self.keep) }
    }
}

impl<T: Shared> core::fmt::Debug for Single<T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_tuple("Single").field(&self.element).finish()
    }
}

impl<T: Shared> Single<T> {
    /// The first element of a view.
    ///
    /// # Panics
    /// If the view is empty.
    #[must_use]
    pub fn first_of(view: View<T>) -> Self {
        assert!(!view.is_empty(), "an empty view has no first element");
        Self { element: view.base, keep: view.keep }
    }
}

impl<T: Shared> core::ops::Deref for Single<T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: aligned and mapped (contract of `View::from_raw`, and the view was not empty), kept by `keep`, which
        // the borrow of `self` keeps; atomics only.
        unsafe { self.element.as_ref() }
    }
}

/// A view of a power of two of entries, indexed by sequence number.
#[derive(Clone, Debug)]
pub struct Ring {
    view: View<Entry>,
    mask: usize,
}

impl Ring {
    /// Makes a ring of the view, or nothing if its length is no power of two or below 2.
    #[must_use]
    pub fn new(view: View<Entry>) -> Option<Self> {
        if view.len() < 2 || !view.len().is_power_of_two() {
            return None;
        }
        let mask = view.len() - 1;
        Some(Self { view, mask })
    }

    /// The number of entries.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.view.len as u64
    }

    /// Where in the ring `sequence` lies.
    #[inline(always)]
    #[must_use]
    pub fn position(&self, sequence: u64) -> usize {
        sequence as usize & self.mask
    }

    /// The entry in which `sequence` lies.
    #[inline(always)]
    #[must_use]
    pub fn entry(&self, sequence: u64) -> &Entry {
        let index = sequence as usize & self.mask;
        // SAFETY: `index <= mask == len - 1` (established in `new`), so the address lies in the view's mapping.
        let entry = unsafe { self.view.base.add(index) };
        // SAFETY: aligned and mapped (contract of `View::from_raw`), atomics only, and the borrow of `self` keeps it.
        unsafe { entry.as_ref() }
    }
}
