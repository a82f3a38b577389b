//! Where the lane's private records and the pool's free lists meet.
//!
//! Every unsafe block here relies on one fact: a [`Writer`] hands a token to its closure only after every reader is
//! done with the slot, once, and only tokens that it was given by `publish_slot` or `stage_slot`, which this crate
//! calls with tokens of the publisher's own pool.
#![allow(unsafe_code)]

use std::sync::Arc;

use zcmi_mem::lease::{LeaseMut, Loaned};
use zcmi_mem::payload::Message;
use zcmi_mem::pool::{Pool, PoolPlan, Slot};
use zcmi_ring::{LifeMark, PublishRefused, RawDescriptor, Writer};

use super::{BATCH, publish_words};
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

/// Slots of one pool that are filled and not yet published: their descriptors alone, since moving more costs more than
/// filling. Dropped with slots in it, it leaks them; see [`give_back`].
pub(super) struct Filled {
    slots: [RawDescriptor; BATCH],
    first: usize,
    end: usize,
}

impl Filled {
    pub(super) fn none() -> Self {
        Self { slots: [RawDescriptor::from_token(0); BATCH], first: 0, end: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.first == self.end
    }

    pub(super) fn len(&self) -> usize {
        self.end - self.first
    }
}

/// Takes up to `most` slots that are at hand and has each filled with a message. If `fill` panics, they all go back.
#[inline(always)]
pub(super) fn fill_slots<M: Message>(pool: &mut Pool, most: usize, mut fill: impl FnMut(u64, &mut M)) -> Filled {
    /// Gives back what was filled when `fill` does not return.
    struct Unfinished<'a>(&'a mut Pool, Filled);
    impl Drop for Unfinished<'_> {
        fn drop(&mut self) {
            give_back(self.0, &mut self.1);
        }
    }
    let mut unfinished = Unfinished(pool, Filled::none());
    for index in 0..most.min(BATCH) {
        let Some(mut slot) = unfinished.0.take_at_hand(M::ELEMENT_BYTES) else { break };
        let message = M::from_bytes_mut(slot.bytes_mut(M::ELEMENT_BYTES)).expect("a slot fits and is aligned");
        // While this runs, the slot is its own owner: it goes back by itself.
        fill(index as u64, message);
        unfinished.1.slots[index] = slot.descriptor();
        core::mem::forget(slot);
        unfinished.1.end = index + 1;
    }
    core::mem::replace(&mut unfinished.1, Filled::none())
}

/// Gives slots back that were filled and will not be published.
#[cold]
pub(super) fn give_back(pool: &mut Pool, filled: &mut Filled) {
    while let Some(slot) = take_first(pool, filled) {
        drop(slot);
    }
}

/// Stages and commits filled slots, as many as there is room for, and returns how many.
#[inline(always)]
pub(super) fn stage_slots(writer: &mut Writer, pool: &mut Pool, filled: &mut Filled, bytes: u32) -> usize {
    if reserve(writer, pool).is_err() {
        return 0;
    }
    let room = (writer.room() as usize).min(filled.len());
    for (ahead, slot) in filled.slots[filled.first..filled.first + room].iter().enumerate() {
        writer.stage_slot(ahead as u64, *slot, bytes);
    }
    // SAFETY: `fill_slots` took these slots from this pool and forgot them; they are committed below.
    unsafe { pool.forget_published(room) };
    filled.first += room;
    writer.commit(room as u64);
    room
}

/// Takes one slot out, to be published alone.
pub(super) fn take_first(pool: &mut Pool, filled: &mut Filled) -> Option<Slot> {
    let slot = *filled.slots[..filled.end].get(filled.first)?;
    filled.first += 1;
    // SAFETY: `fill_slots` took the slot from this pool and forgot it, and it was not published.
    Some(unsafe { pool.remember(slot) })
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
