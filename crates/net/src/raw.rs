//! Pools in a region of this crate's own, and a hint to the processor.
//!
//! The unsafe blocks here rely on two facts: the region was made for these pools, and nothing else in this crate makes
//! a view or a span of it to write by; and a prefetch reads nothing that a program could see.
#![allow(unsafe_code)]

use std::sync::Arc;

use zcmi_mem::pool::{Pool, PoolPlan};
use zcmi_mem::region::{OutOfRegion, Region};
use zcmi_ring::LifeMark;

/// Bytes of a line of the cache.
#[cfg(target_arch = "x86_64")]
const LINE_BYTES: usize = 64;

/// A pool at `offset` of a region, which it keeps.
///
/// The caller gives each byte of the region to one pool at most.
pub(crate) fn pool(region: &Arc<Region>, offset: usize, plan: &PoolPlan, life: LifeMark) -> Result<Pool, OutOfRegion> {
    let span = region.bytes(offset, plan.bytes())?;
    // SAFETY: the span is the pool's alone (see the head of the file); the region is sealed against writers of other
    // processes and outlives the pool by the guard; offsets here are multiples of a page.
    Ok(unsafe { Pool::new(plan, span, life, Box::new(Arc::clone(region))) })
}

/// Has the processor bring something into its caches, without waiting for it.
pub(crate) fn prefetch<T>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..size_of::<T>()).step_by(LINE_BYTES) {
        let address = core::ptr::from_ref(value).cast::<i8>().wrapping_add(line);
        // SAFETY: every processor of this architecture has the instruction, which faults for no address.
        unsafe { core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(address) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}
