//! The memory of a transport: one region, and in it the slots for headers, for what is received, and for what is
//! loaned.
//!
//! ```text
//! region │ header │ headers: 64 bytes each │ received: small │ received: large │ loans, by size class │
//! ```
//!
//! # Invariants
//! - A receiving slot is promised (a credit was given for it), or free, or taken; what is promised never exceeds what
//!   is free, so that a piece that had a credit finds its slot. A piece takes a slot of its own class, and no other.
//! - Headers and payload never share a slot.

use std::sync::Arc;

use thiserror::Error;
use zcmi_mem::fork::{ForkGuard, ForkGuardError, Forked};
use zcmi_mem::lease::LeaseMut;
use zcmi_mem::pool::{PAGE_BYTES, Pool, PoolError, PoolPlan, PoolPlanError, SizeClass, Slot, slot_bytes_for};
use zcmi_mem::region::{OutOfRegion, Region, RegionError};

use crate::frame::{Class, HEADER_BYTES, MESSAGE_BYTES};
use crate::outgoing::Kept;
use crate::raw;
use crate::wire::Home;

/// Bytes that are received before it is known where they belong.
pub(crate) const STAGE_BYTES: usize = 64 << 10;
/// Large slots that are kept at hand for pieces that are expected.
const AHEAD: usize = 8;
/// A sixteenth of the headers are few.
const FEW_OF_ALL: usize = 16;

/// How much memory a transport takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotPlan {
    /// The longest piece that takes a small slot, in bytes.
    pub small_bytes: u32,
    /// How many small slots there are for receiving.
    pub small_slots: u32,
    /// The longest piece, in bytes: longer messages arrive as several.
    pub slot_bytes: u32,
    /// How many large slots there are for receiving.
    pub large_slots: u32,
    /// Pieces that may be sent and not acknowledged, over all connections.
    pub headers: u32,
    /// The size classes of what is loaned for sending; none if leases come from elsewhere.
    pub loans: Option<PoolPlan>,
}

impl Default for SlotPlan {
    fn default() -> Self {
        Self {
            small_bytes: 16 << 10,
            small_slots: 1024,
            slot_bytes: 256 << 10,
            large_slots: 128,
            headers: 4096,
            loans: PoolPlan::doubling(4096, 1 << 20, 32).ok(),
        }
    }
}

/// Why there is no memory for a transport.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SlotsError {
    /// Sizes that no receiver has.
    #[error(
        "slots of {small_bytes} and {slot_bytes} bytes cannot be: 1 <= small < large <= {MESSAGE_BYTES}, in whole slots"
    )]
    Sizes {
        /// The small size asked for.
        small_bytes: u32,
        /// The large size asked for.
        slot_bytes: u32,
    },
    /// A class that is impossible.
    #[error(transparent)]
    Plan(#[from] PoolPlanError),
    /// The region could not be made.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// Forks could not be noticed.
    #[error(transparent)]
    Fork(#[from] ForkGuardError),
    /// The region is too small for its plan, which is a defect.
    #[error(transparent)]
    Layout(#[from] OutOfRegion),
}

/// For what slots are promised. The less urgent it is, the more stay back for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Nobody asked for them: half of all stay.
    Ahead,
    /// A peer waits for them that has sent nothing yet: a quarter stays for those that have, unless newcomers have less
    /// than an eighth of all.
    Newcomer,
    /// Nobody asked for them, and half of all are out; but the peer has sent something, and used what it had: an eighth
    /// of all is for such peers, so that what strangers hold does not cost each of their messages a question first.
    Known,
    /// A peer waits for them that has sent something: it gets at most half of what is left, without what is due to
    /// newcomers in line.
    Waiting,
}

/// What somebody waits for in line.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct InLine {
    pub(crate) classes: [bool; 2],
    newcomer: bool,
}

/// How the slots of a transport stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotCounts {
    /// Receiving slots that hold nothing, by class.
    pub free: [u32; 2],
    /// Of these, or of those that are being filled, how many a peer has a credit for.
    pub promised: [u32; 2],
    /// Headers that belong to no piece.
    pub free_headers: u32,
}

/// A region whose pages this process may let the kernel read.
struct Known {
    region: Arc<Region>,
    base: usize,
    len: usize,
}

/// The slots of a transport.
pub struct Slots {
    regions: Vec<Known>,
    headers: Pool,
    received: Pool,
    loans: Option<Pool>,
    all: [u32; 2],
    all_headers: usize,
    promised: [u32; 2],
    /// Of these, how many for [`Need::Known`].
    known: [u32; 2],
    /// And how many for [`Need::Newcomer`].
    newcomers: [u32; 2],
    /// How many wait in line that are known, by class, and how many newcomers.
    in_line: [[u32; 2]; 2],
    ahead: Vec<Slot>,
    stage: Box<[u8]>,
    /// Bytes of leases that somebody may read for ever, those that would be if all peers died, and how many may be.
    quarantined: u64,
    at_risk: u64,
    quarantine_bytes: u64,
    guard: ForkGuard,
    small_bytes: u32,
    slot_bytes: u32,
}

impl core::fmt::Debug for Slots {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Slots").field("promised", &self.promised).finish_non_exhaustive()
    }
}

impl Slots {
    /// Makes the region and carves it.
    ///
    /// # Errors
    /// [`SlotsError`]; nothing was taken then.
    pub fn new(plan: &SlotPlan) -> Result<Self, SlotsError> {
        let &SlotPlan { small_bytes, slot_bytes, .. } = plan;
        let (small, large) = (slot_bytes_for(small_bytes as usize), slot_bytes_for(slot_bytes as usize));
        if small_bytes == 0 || slot_bytes > MESSAGE_BYTES || small >= large {
            return Err(SlotsError::Sizes { small_bytes, slot_bytes });
        }
        let headers = PoolPlan::single(HEADER_BYTES, plan.headers)?;
        let received = PoolPlan::new(vec![
            SizeClass { slot_bytes: small, slots: plan.small_slots },
            SizeClass { slot_bytes: large, slots: plan.large_slots },
        ])?;
        let pages = |plan: &PoolPlan| plan.bytes().next_multiple_of(PAGE_BYTES);
        let loans = plan.loans.as_ref().map_or(0, pages);
        let region = Arc::new(Region::options(pages(&headers) + pages(&received) + loans).create()?);
        let guard = ForkGuard::new()?;
        let life = guard.life();
        let begin = region.data_offset();
        let base = region.bytes(begin, 1)?.base().as_ptr().addr() - begin;
        let second = begin + pages(&headers);
        let third = second + pages(&received);
        Ok(Self {
            headers: raw::pool(&region, begin, &headers, life)?,
            received: raw::pool(&region, second, &received, life)?,
            loans: plan.loans.as_ref().map(|plan| raw::pool(&region, third, plan, life)).transpose()?,
            regions: vec![Known { base, len: region.len(), region }],
            all: [plan.small_slots, plan.large_slots],
            all_headers: plan.headers as usize,
            promised: [0; 2],
            known: [0; 2],
            newcomers: [0; 2],
            in_line: [[0; 2]; 2],
            ahead: Vec::new(),
            stage: vec![0; STAGE_BYTES].into(),
            quarantined: 0,
            at_risk: 0,
            quarantine_bytes: u64::MAX,
            guard,
            small_bytes,
            slot_bytes,
        })
    }

    /// Refuses to go on in a forked child, where the memory and the sockets are the parent's.
    pub(crate) fn check_fork(&self) -> Result<(), Forked> {
        self.guard.check()
    }

    /// The regions whose pages may be shared, in the order of their numbers.
    pub fn regions(&self) -> impl Iterator<Item = &Arc<Region>> {
        self.regions.iter().map(|known| &known.region)
    }

    /// Lets leases in `region`, which this process owns, be sent by paths that share pages. Returns its number.
    ///
    /// # Errors
    /// [`OutOfRegion`] for a region that a fork left behind.
    pub fn add_region(&mut self, region: &Arc<Region>) -> Result<usize, OutOfRegion> {
        if let Some(number) = self.regions.iter().position(|known| known.region.id() == region.id()) {
            return Ok(number);
        }
        let begin = region.data_offset();
        let base = region.bytes(begin, 1)?.base().as_ptr().addr() - begin;
        self.regions.push(Known { base, len: region.len(), region: Arc::clone(region) });
        Ok(self.regions.len() - 1)
    }

    /// Where bytes lie, if in one of these regions.
    #[must_use]
    pub fn home(&self, bytes: &[u8]) -> Option<Home> {
        let address = bytes.as_ptr().addr();
        self.regions.iter().enumerate().find_map(|(region, known)| {
            let offset = address.checked_sub(known.base)?;
            (offset + bytes.len() <= known.len && !bytes.is_empty()).then_some(Home { region, offset })
        })
    }

    /// How many slots are free and promised now.
    pub fn counts(&mut self) -> SlotCounts {
        let at_hand = [0, self.ahead.len()];
        SlotCounts {
            free: [0, 1].map(|class| (self.received.free_in(class) + at_hand[class]) as u32),
            promised: self.promised,
            free_headers: self.headers.free_in(0) as u32,
        }
    }

    /// The longest small piece, and the longest of all.
    #[must_use]
    pub fn sizes(&self) -> (u32, u32) {
        (self.small_bytes, self.slot_bytes)
    }

    /// A lease to write a message into.
    ///
    /// # Errors
    /// [`PoolError`] if all slots that fit are out, as they are in a forked child, or the message is longer than any.
    pub fn loan(&mut self, bytes: usize) -> Result<LeaseMut<[u8]>, PoolError> {
        if self.check_fork().is_err() {
            return Err(PoolError::Exhausted { bytes });
        }
        match &mut self.loans {
            Some(pool) => Ok(LeaseMut::slot(pool.take_recent(bytes)?, bytes)),
            None => Err(PoolError::TooLarge { bytes, largest: 0 }),
        }
    }

    /// A slot for a header of a connection that has `held` of them: one whose peer acknowledges nothing takes no more
    /// than it leaves to the others.
    pub(crate) fn header(&mut self, held: usize) -> Option<Slot> {
        // Whoever has few need not ask how many there are.
        if held * FEW_OF_ALL > self.all_headers && held > self.headers.free_in(0) {
            return None;
        }
        self.headers.take_recent(HEADER_BYTES).ok()
    }

    /// Promises up to `count` slots of a class; how many were.
    ///
    /// What is promised ahead may be held for ever by peers that never use it, so that half of the slots are given to
    /// those only that wait for them, and for a bounded time.
    pub fn promise(&mut self, class: Class, count: u32, need: Need) -> u32 {
        let index = class.index();
        let at_hand = if class == Class::Large { self.ahead.len() } else { 0 };
        let free = (self.received.free_in(index) + at_hand) as u32;
        let rest = free.saturating_sub(self.promised[index]);
        // Those that are known always use what they get, so that some wait for more all the time: without a share of
        // their own newcomers would wait for as long as there is much to do.
        let share = (self.all[index] / 8).saturating_sub(self.newcomers[index]).min(rest);
        let left = if self.in_line[1][index] > 0 { rest - share } else { rest };
        let room = match need {
            Need::Ahead => rest.saturating_sub(self.all[index] / 2),
            // What peers were given that are known is none of what newcomers leave to them.
            Need::Newcomer => (rest + self.known[index]).saturating_sub(self.all[index] / 4).min(rest).max(share),
            // Several of them share it.
            Need::Known => (self.all[index] / 8).saturating_sub(self.known[index]).div_ceil(2).min(left / 2),
            Need::Waiting => left.div_ceil(2),
        };
        let count = count.min(room);
        self.promised[index] += count;
        match need {
            Need::Known => self.known[index] += count,
            Need::Newcomer => self.newcomers[index] += count,
            Need::Ahead | Need::Waiting => {}
        }
        count
    }

    /// How many slots of a class so many peers may each be given ahead.
    pub(crate) fn share_ahead(&self, class: Class, peers: usize) -> u32 {
        (self.all[class.index()] as usize / 2 / peers.max(1)).max(1) as u32
    }

    /// Notes that somebody waits in line for these classes.
    pub(crate) fn join_line(&mut self, classes: [bool; 2], newcomer: bool) -> InLine {
        let line = &mut self.in_line[usize::from(newcomer)];
        line.iter_mut().zip(classes).for_each(|(count, waits)| *count += u32::from(waits));
        InLine { classes, newcomer }
    }

    /// The opposite.
    pub(crate) fn leave_line(&mut self, InLine { classes, newcomer }: InLine) {
        let line = &mut self.in_line[usize::from(newcomer)];
        line.iter_mut().zip(classes).for_each(|(count, waits)| *count -= u32::from(waits));
    }

    /// Whether newcomers wait in line, by class.
    pub(crate) fn newcomers_wait(&self) -> [bool; 2] {
        self.in_line[1].map(|count| count > 0)
    }

    /// Whether somebody who is known waits in line for slots of a class, and comes before all that do not.
    pub(crate) fn has_line(&self, class: Class) -> bool {
        self.in_line[0][class.index()] > 0
    }

    /// Takes promises back that nobody can claim any more.
    pub fn unpromise(&mut self, open: [u32; 2]) {
        for (promised, open) in self.promised.iter_mut().zip(open) {
            *promised -= open;
        }
    }

    /// Notes that so many promises for [`Need::Known`] were used, or can be used no more; whoever has them takes the
    /// promises themselves back as all others.
    pub fn forget_known(&mut self, known: [u32; 2]) {
        for (all, known) in self.known.iter_mut().zip(known) {
            *all -= known;
        }
    }

    /// The same of promises for [`Need::Newcomer`].
    pub fn forget_newcomer(&mut self, newcomer: [u32; 2]) {
        for (all, newcomer) in self.newcomers.iter_mut().zip(newcomer) {
            *all -= newcomer;
        }
    }

    /// Takes the slot for a piece that had a credit; the promise goes when the piece is whole.
    pub(crate) fn take(&mut self, class: Class) -> Option<Slot> {
        match class {
            Class::Small => {
                let is_small = |slot: &Slot| slot.capacity() < self.slot_bytes as usize;
                match self.received.take_recent(1).ok().filter(is_small) {
                    // A pool gives a larger slot when it has no smaller one at hand, and that one is promised to
                    // somebody else. It may have one that was given back meanwhile.
                    None if self.received.free_in(Class::Small.index()) > 0 => self.received.take_recent(1).ok(),
                    taken => taken,
                }
            }
            Class::Large => self.ahead.pop().or_else(|| self.received.take_recent(self.slot_bytes as usize).ok()),
        }
    }

    /// Takes a large slot for a piece that is expected, if that breaks no promise.
    pub(crate) fn take_ahead(&mut self) -> Option<Slot> {
        self.take(Class::Large)
    }

    /// Gives back a slot that was not used.
    pub(crate) fn put_back(&mut self, slot: Slot) {
        if self.ahead.len() < AHEAD && slot.capacity() >= self.slot_bytes as usize {
            self.ahead.push(slot);
        }
    }

    /// Bounds the bytes that are quarantined.
    pub(crate) fn limit_quarantine(&mut self, bytes: u64) {
        self.quarantine_bytes = bytes;
    }

    /// Never frees what nobody will ever say is free.
    pub(crate) fn quarantine(&mut self, kept: Vec<Kept>) {
        self.quarantined += kept.iter().map(|kept| kept.payload.byte_len() as u64).sum::<u64>();
        core::mem::forget(kept);
    }

    /// Bytes that are quarantined.
    pub(crate) fn quarantined_bytes(&self) -> u64 {
        self.quarantined
    }

    /// How many more may ever be.
    pub(crate) fn quarantine_left(&self) -> u64 {
        self.quarantine_bytes.saturating_sub(self.quarantined)
    }

    /// How many more may be put at risk now, and whether none are: then one lease may be longer than that.
    pub(crate) fn risk_left(&self) -> (u64, bool) {
        (self.quarantine_left().saturating_sub(self.at_risk), self.quarantined == 0 && self.at_risk == 0)
    }

    /// Notes that a connection has so many bytes at risk, where it had others before.
    pub(crate) fn note_risk(&mut self, before: u64, now: u64) {
        self.at_risk = self.at_risk - before + now;
    }

    /// The bytes that are received before it is known where they belong.
    pub(crate) fn take_stage(&mut self) -> Box<[u8]> {
        core::mem::take(&mut self.stage)
    }

    /// Puts the stage back.
    pub(crate) fn return_stage(&mut self, stage: Box<[u8]>) {
        self.stage = stage;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_that_are_known_have_some_ahead_when_half_are_out_and_newcomers_lose_nothing_by_it() {
        let plan = SlotPlan { small_slots: 64, large_slots: 16, loans: None, ..SlotPlan::default() };
        let mut slots = Slots::new(&plan).unwrap();
        assert_eq!(slots.promise(Class::Small, 100, Need::Ahead), 32);
        assert_eq!(slots.promise(Class::Small, 1, Need::Ahead), 0);
        let shared: Vec<u32> = (0..6).map(|_| slots.promise(Class::Small, 100, Need::Known)).collect();
        assert_eq!(shared, [4, 2, 1, 1, 0, 0], "an eighth, shared");
        assert_eq!(slots.promise(Class::Small, 100, Need::Newcomer), 16, "a quarter stays for others than newcomers");
        assert_eq!(slots.promise(Class::Small, 100, Need::Waiting), 4);
        // What was used can be given again.
        slots.forget_known([8, 0]);
        slots.unpromise([8, 0]);
        assert_eq!(slots.promise(Class::Small, 100, Need::Known), 4);
        assert_eq!(slots.counts().promised, [56, 0]);
    }

    #[test]
    fn newcomers_have_a_share_that_those_who_are_known_leave_while_some_wait() {
        let plan = SlotPlan { small_slots: 64, large_slots: 16, loans: None, ..SlotPlan::default() };
        let mut slots = Slots::new(&plan).unwrap();
        let waiting = |slots: &mut Slots| {
            std::iter::from_fn(|| Some(slots.promise(Class::Small, 1, Need::Waiting)).filter(|got| *got > 0)).count()
        };
        assert_eq!(waiting(&mut slots), 64, "where no newcomer waits, all of them go to those that are known");
        slots.unpromise([10, 0]);
        let place = slots.join_line([true, false], true);
        assert_eq!(waiting(&mut slots), 2);
        assert_eq!(slots.promise(Class::Small, 100, Need::Known), 0);
        assert_eq!(slots.promise(Class::Small, 100, Need::Newcomer), 8, "an eighth");
        slots.unpromise([20, 0]);
        assert_eq!(slots.promise(Class::Small, 100, Need::Newcomer), 4, "more only where a quarter stays");
        slots.leave_line(place);
        assert_eq!(waiting(&mut slots), 16);
        // Another newcomer has the share again when those before it were heard.
        slots.forget_newcomer([12, 0]);
        slots.unpromise([12, 0]);
        slots.leave_line(InLine::default());
        let _place = slots.join_line([true, false], true);
        assert_eq!(waiting(&mut slots), 4);
    }
}
