//! Pools in a region of this crate's own.
//!
//! The unsafe block here relies on one fact: the region was made for these pools, and nothing else in this crate makes
//! a view or a span of it to write by.
#![allow(unsafe_code)]

use std::sync::Arc;

use zcmi_mem::pool::{Pool, PoolPlan};
use zcmi_mem::region::{OutOfRegion, Region};
use zcmi_ring::LifeMark;

/// A pool at `offset` of a region, which it keeps.
///
/// The caller gives each byte of the region to one pool at most.
pub(crate) fn pool(region: &Arc<Region>, offset: usize, plan: &PoolPlan, life: LifeMark) -> Result<Pool, OutOfRegion> {
    let span = region.bytes(offset, plan.bytes())?;
    // SAFETY: the span is the pool's alone (see the head of the file); the region is sealed against writers of other
    // processes and outlives the pool by the guard; offsets here are multiples of a page.
    Ok(unsafe { Pool::new(plan, span, life, Box::new(Arc::clone(region))) })
}
