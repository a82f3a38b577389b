//! A pool in a region of its own.
//!
//! The unsafe block here relies on one fact: the region was made for this pool, and nothing else makes a view or a span
//! of it to write by.
#![allow(unsafe_code)]

use std::sync::Arc;

use zcmi_mem::fork::ForkGuard;
use zcmi_mem::pool::{Pool, PoolPlan};
use zcmi_mem::region::Region;

use super::super::CellError;

/// A pool that fills a region of its own.
pub(super) fn pool(plan: &PoolPlan) -> Result<Pool, CellError> {
    let region = Region::options(plan.bytes()).create().map_err(no_slots)?;
    let span = region.bytes(region.data_offset(), plan.bytes()).map_err(no_slots)?;
    let life = ForkGuard::new().map_err(no_slots)?.life();
    // SAFETY: the span is the pool's alone (see the head of the file), and the pool keeps the region.
    Ok(unsafe { Pool::new(plan, span, life, Box::new(Arc::new(region))) })
}

pub(super) fn no_slots(error: impl core::fmt::Display) -> CellError {
    CellError::NoSlots(error.to_string())
}
