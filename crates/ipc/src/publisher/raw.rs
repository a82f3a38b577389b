//! Where the lane's private records and the pool's free lists meet.
//!
//! Every unsafe block here relies on one fact: a [`Writer`] hands a token to its closure only after every reader is
//! done with the slot, once, and only tokens that it was given by `publish_slot` or `publish_slots`, which this
//! crate calls with tokens of the publisher's own pool.
#![allow(unsafe_code)]

use std::sync::Arc;

use zcmi_mem::lease::{LeaseMut, Loaned};
use zcmi_mem::payload::Message;
use zcmi_mem::pool::{Ahead, Pool, PoolPlan};
use zcmi_ring::{LifeMark, PublishRefused, Writer};

use super::publish_words;
use crate::process::ExtentGuard;

/// The pool of a lane, in an extent that nothing else uses.
pub(super) fn pool(guard: &Arc<ExtentGuard>, plan: &PoolPlan, life: LifeMark) -> Pool {
    let extent = guard.extent();
    let span = extent.span(0, plan.bytes()).expect("the extent was allocated for the plan");
    // SAFETY: the extent was allocated for this pool alone and goes back to its arena only when the guard is dropped;
    // the region is sealed against writers of other processes; its begin is aligned to 4,096.
    unsafe { Pool::new(plan, span, life, Box::new(Arc::clone(guard))) }
}

/// Publishes a lease if that is possible in one straight step: room is known, and the slot is the pool's own.
///
/// If so, the caller forgets the lease: its slot belongs to the lane from now on.
#[inline(always)]
pub(super) fn publish_at_once<M: Message + ?Sized>(
    writer: &mut Writer,
    pool: Option<&mut Pool>,
    lease: &LeaseMut<M>,
) -> Option<u64> {
    let bytes = if M::SLICE { lease.byte_len() } else { M::ELEMENT_BYTES } as u32;
    match lease.loaned() {
        Loaned::Inline(words) => publish_words(writer, bytes, words),
        Loaned::Slot(slot) => {
            let pool = pool.filter(|pool| pool.owns(slot))?;
            let sequence = writer.publish_slot_at_once(slot.descriptor(), bytes)?;
            // SAFETY: the slot is this pool's, its descriptor was published just now, and the caller
            // forgets the lease.
            unsafe { pool.forget_published(1) };
            Some(sequence)
        }
    }
}

/// Publishes slots that were written ahead, as many as there is room for, and returns how many.
#[inline(always)]
pub(super) fn publish_ahead(writer: &mut Writer, pool: &mut Pool, ahead: &mut Ahead, bytes: u32) -> usize {
    if reserve(writer, pool).is_err() {
        return 0;
    }
    let count = (writer.room() as usize).min(ahead.count());
    writer.publish_slots(&pool.ahead(ahead)[..count], bytes);
    pool.drop_ahead(ahead, count);
    count
}

/// Room for one more message; slots that are free again go back to the pool.
#[inline(always)]
pub(super) fn reserve(writer: &mut Writer, pool: &mut Pool) -> Result<(), PublishRefused> {
    // SAFETY: see the module's head.
    writer.reserve(&mut |token| unsafe { pool.restore(token) })
}

/// As [`reserve`], and at least one slot is free.
pub(super) fn reserve_with_slot(writer: &mut Writer, pool: &mut Pool) -> Result<(), PublishRefused> {
    reclaim(writer, pool);
    reserve(writer, pool)?;
    if pool.free_slots() > 0 { Ok(()) } else { Err(PublishRefused::Full { capacity: writer.capacity() }) }
}

/// Takes back every slot that nobody may read any more.
pub(super) fn reclaim(writer: &mut Writer, pool: &mut Pool) {
    // SAFETY: see the module's head.
    writer.reclaim(&mut |token| unsafe { pool.restore(token) });
}

/// Whether every reliable reader is at the tail.
pub(super) fn all_received(writer: &mut Writer, pool: &mut Pool) -> bool {
    // SAFETY: see the module's head.
    writer.all_received(&mut |token| unsafe { pool.restore(token) })
}
