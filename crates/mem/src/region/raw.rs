//! From a mapping to typed views and raw spans.
//!
//! Every unsafe block here relies on two facts: a [`Mapping`] stays mapped at its address until it drops, and whatever
//! is made here holds an `Arc` of it; and offsets were checked against its length by [`check`].
#![allow(unsafe_code)]

use core::ptr::NonNull;
use std::sync::Arc;

use zcmi_ring::raw::Keeper;
use zcmi_ring::{Shared, View};

use super::OutOfRegion;
use super::header::{HEADER_BYTES, RegionHeader};
use super::sys::Mapping;

// SAFETY: `#[repr(C)]`, atomics of 64 bits and nothing else (its const assertions leave no room for padding).
unsafe impl Shared for RegionHeader {}

/// A checked range of a region's bytes, with what keeps it mapped.
///
/// Holding a span is safe; it offers no way to reach the bytes. The files that may hold `unsafe` turn [`Span::base`]
/// into an access and owe the reasons: nobody else writes there, or the access is atomic, and a span that is not
/// [writable](Span::is_writable) is not written.
#[derive(Clone)]
pub struct Span {
    base: NonNull<u8>,
    len: usize,
    writable: bool,
    keep: Keeper,
}

// SAFETY: an address and a keeper that is `Send + Sync`; the bytes are not reached through this type.
unsafe impl Send for Span {}
// SAFETY: as above.
unsafe impl Sync for Span {}

impl core::fmt::Debug for Span {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Self { base, len, writable, .. } = self;
        f.debug_struct("Span").field("base", base).field("len", len).field("writable", writable).finish_non_exhaustive()
    }
}

impl Span {
    /// The address of the first byte, valid for [`len`](Span::len) bytes while a clone of [`keeper`](Span::keeper)
    /// lives.
    #[inline]
    #[must_use]
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// The number of bytes, never 0.
    #[inline]
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a span is never empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether this process mapped the bytes for writing.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// What keeps the bytes mapped.
    #[must_use]
    pub fn keeper(&self) -> &Keeper {
        &self.keep
    }
}

/// Checks that `bytes` bytes from `offset` lie in the mapping, at or past `floor`, aligned, and in this process's life.
fn check(mapping: &Mapping, offset: usize, bytes: usize, align: usize, floor: usize) -> Result<(), OutOfRegion> {
    if !mapping.is_present() {
        return Err(OutOfRegion::Forked);
    }
    if bytes == 0 {
        return Err(OutOfRegion::Empty { offset });
    }
    if offset < floor {
        return Err(OutOfRegion::InHeader { offset, data_offset: floor });
    }
    if offset.checked_add(bytes).is_none_or(|end| end > mapping.len()) {
        return Err(OutOfRegion::PastEnd { offset, bytes, region_bytes: mapping.len() });
    }
    // The base is page-aligned, so that an aligned offset is an aligned address for every alignment up to a page.
    if !(mapping.base().as_ptr().addr() + offset).is_multiple_of(align) {
        return Err(OutOfRegion::Misaligned { offset, align });
    }
    Ok(())
}

fn view_from<T: Shared>(
    mapping: &Arc<Mapping>,
    offset: usize,
    count: usize,
    floor: usize,
) -> Result<View<T>, OutOfRegion> {
    let bytes = count.checked_mul(size_of::<T>()).ok_or(OutOfRegion::PastEnd {
        offset,
        bytes: usize::MAX,
        region_bytes: mapping.len(),
    })?;
    check(mapping, offset, bytes, align_of::<T>(), floor)?;
    // SAFETY: `offset + bytes <= len` (checked above), so the address lies in the mapping.
    let base = unsafe { mapping.base().add(offset) }.cast::<T>();
    let keep: Keeper = Arc::<Mapping>::clone(mapping);
    // SAFETY: aligned and in bounds (checked above); the keeper holds the mapping, and with it the address; what others
    // reach of these bytes they reach by views of atomics too, or by a span whose user owes the reasons.
    Ok(unsafe { View::from_raw(base, count, keep) })
}

/// `count` elements at `offset`, behind the header.
pub(super) fn view<T: Shared>(mapping: &Arc<Mapping>, offset: usize, count: usize) -> Result<View<T>, OutOfRegion> {
    view_from(mapping, offset, count, HEADER_BYTES)
}

/// The header of a region.
pub(super) fn header(mapping: &Arc<Mapping>) -> Result<View<RegionHeader>, OutOfRegion> {
    view_from(mapping, 0, 1, 0)
}

/// `bytes` bytes at `offset`, behind the header.
pub(super) fn span(mapping: &Arc<Mapping>, offset: usize, bytes: usize) -> Result<Span, OutOfRegion> {
    check(mapping, offset, bytes, 1, HEADER_BYTES)?;
    // SAFETY: `offset + bytes <= len` (checked above), so the address lies in the mapping.
    let base = unsafe { mapping.base().add(offset) };
    Ok(Span { base, len: bytes, writable: mapping.is_writable(), keep: Arc::<Mapping>::clone(mapping) })
}
