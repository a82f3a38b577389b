//! Slots and their free lists.
//!
//! Every unsafe block here relies on the pool's bytes being nobody else's (contract of [`Pool::new`]), on a slot's
//! token being in one place only, and on a [`Home`] living until its pool is gone and every slot came back: whoever
//! brings the count of both to zero, under the home's mutex, frees it.
#![allow(unsafe_code)]

use super::{PoolError, PoolPlan};
use crate::region::Span;
use core::fmt;
use core::mem::ManuallyDrop;
use core::ptr::NonNull;
use std::any::Any;
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use zcmi_ring::{LifeMark, RawDescriptor};

struct Returns {
    tokens: Vec<RawDescriptor>,
    pool_lives: bool,
    /// Slots that are still out after the pool is gone.
    out: usize,
}

/// What slots need when they come back, which may be after their pool is gone.
struct Home {
    returns: Mutex<Returns>,
    life: LifeMark,
    _span: Span,
    _guard: Box<dyn Any + Send + Sync>,
}

/// Free slots of one class that are written already: the first of its free list, as long as none is taken otherwise.
#[derive(Debug)]
pub struct Ahead {
    class: usize,
    count: usize,
}

impl Ahead {
    /// How many slots.
    #[inline(always)]
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }
}

struct Class {
    /// Handed out in turn, so that neighbours are written one after the other and the hardware's prefetching works.
    free: VecDeque<RawDescriptor>,
    base: NonNull<u8>,
    slot_bytes: usize,
}

/// The owner of a pool's free lists. See the module's documentation.
pub struct Pool {
    classes: Box<[Class]>,
    home: NonNull<Home>,
    /// How many `Slot`s exist, those in `returns` included.
    out: usize,
}

// SAFETY: owned memory, an address, and a home that is reached under its mutex.
unsafe impl Send for Pool {}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("classes", &self.classes.len()).field("out", &self.out).finish_non_exhaustive()
    }
}

impl Pool {
    /// Carves the plan's slots out of `span`.
    ///
    /// `guard` is dropped once the pool is gone and every slot came back.
    ///
    /// # Safety
    /// - The span is writable and at least as long as the plan; its begin is aligned for the plan's slots.
    /// - Nobody else in this process reads or writes those bytes while the pool, a slot of it, or a published slot
    ///   lives, and no other process can write them.
    #[must_use]
    pub unsafe fn new(plan: &PoolPlan, span: Span, life: LifeMark, guard: Box<dyn Any + Send + Sync>) -> Self {
        assert!(span.is_writable() && span.len() >= plan.bytes(), "the span is too short for its plan");
        let classes = plan.classes().iter().enumerate().map(|(number, class)| {
            let begin = plan.class_offset(number).unwrap_or(0);
            // SAFETY: `begin` is below the plan's bytes, and the span is at least as long (checked above).
            let base = unsafe { span.base().add(begin) };
            let free = (0..class.slots).map(|index| RawDescriptor::new(number as u8, index)).collect();
            Class { free, base, slot_bytes: class.slot_bytes }
        });
        let classes = classes.collect();
        let returns = Mutex::new(Returns { tokens: Vec::new(), pool_lives: true, out: 0 });
        let home = NonNull::from(Box::leak(Box::new(Home { returns, life, _span: span, _guard: guard })));
        Self { classes, home, out: 0 }
    }

    fn home(&self) -> &Home {
        // SAFETY: the home is not freed while its pool lives.
        unsafe { self.home.as_ref() }
    }

    /// Takes a free slot for `bytes` bytes from the smallest class that fits and has one.
    ///
    /// # Errors
    /// [`PoolError`]; the caller reclaims what readers are done with and asks again.
    pub fn take(&mut self, bytes: usize) -> Result<Slot, PoolError> {
        match self.take_at_hand(bytes) {
            Some(slot) => Ok(slot),
            None => self.take_returned(bytes),
        }
    }

    /// As [`take`](Self::take), if a fitting slot is in a free list: without asking what was dropped on other threads.
    #[inline(always)]
    #[must_use]
    pub fn take_at_hand(&mut self, bytes: usize) -> Option<Slot> {
        for class in &mut self.classes {
            if class.slot_bytes >= bytes
                && let Some(token) = class.free.pop_front()
            {
                self.out += 1;
                // SAFETY: the index is below the class's slots (it came from its free list), so the slot lies in the
                // span.
                let base = unsafe { class.base.add(token.slot() as usize * class.slot_bytes) };
                return Some(Slot { base, bytes: class.slot_bytes, token, home: self.home });
            }
        }
        None
    }

    /// Has free slots written that are taken next for `bytes` bytes: `write` gets the number of each, from 0, and its
    /// first `bytes` bytes. Returns which they are, at most `most`.
    ///
    /// The slots stay free until [`take_ahead`](Self::take_ahead) or [`drop_ahead`](Self::drop_ahead), so that nothing
    /// is lost if `write` panics. What comes back to the pool in between does not come before them.
    #[inline(always)]
    pub fn write_ahead(&mut self, bytes: usize, most: usize, mut write: impl FnMut(usize, &mut [u8])) -> Ahead {
        for (number, class) in self.classes.iter_mut().enumerate() {
            let (free, _) = class.free.as_slices();
            if class.slot_bytes < bytes || free.is_empty() {
                continue;
            }
            let count = most.min(free.len());
            for (index, token) in free[..count].iter().enumerate() {
                // SAFETY: the index is below the class's slots (it came from its free list), so the slot lies in the
                // span.
                let base = unsafe { class.base.add(token.slot() as usize * class.slot_bytes) };
                // SAFETY: inside the slot (its class has at least `bytes`); a free slot is nobody's, and the pool is
                // borrowed uniquely.
                write(index, unsafe { core::slice::from_raw_parts_mut(base.as_ptr(), bytes) });
            }
            return Ahead { class: number, count };
        }
        Ahead { class: 0, count: 0 }
    }

    /// The descriptors of slots that were written ahead, the first to be published first.
    #[inline(always)]
    #[must_use]
    pub fn ahead(&self, ahead: &Ahead) -> &[RawDescriptor] {
        &self.classes[ahead.class].free.as_slices().0[..ahead.count]
    }

    /// Takes the first `count` slots that were written ahead out of the free list: they are published by their
    /// descriptors, and come back by [`restore`](Self::restore).
    #[inline(always)]
    pub fn drop_ahead(&mut self, ahead: &mut Ahead, count: usize) {
        let count = count.min(ahead.count);
        self.classes[ahead.class].free.drain(..count);
        ahead.count -= count;
    }

    /// Takes the first slot that was written ahead, as [`take`](Self::take) would.
    pub fn take_ahead(&mut self, ahead: &mut Ahead) -> Option<Slot> {
        ahead.count = ahead.count.checked_sub(1)?;
        let class = &mut self.classes[ahead.class];
        let token = class.free.pop_front()?;
        self.out += 1;
        // SAFETY: as in `take_at_hand`.
        let base = unsafe { class.base.add(token.slot() as usize * class.slot_bytes) };
        Some(Slot { base, bytes: class.slot_bytes, token, home: self.home })
    }

    #[cold]
    #[inline(never)]
    fn take_returned(&mut self, bytes: usize) -> Result<Slot, PoolError> {
        let largest = self.classes.last().map_or(0, |class| class.slot_bytes);
        if bytes > largest {
            return Err(PoolError::TooLarge { bytes, largest });
        }
        let tokens = core::mem::take(&mut self.home().returns.lock().unwrap_or_else(PoisonError::into_inner).tokens);
        if tokens.is_empty() {
            return Err(PoolError::Exhausted { bytes });
        }
        for token in tokens {
            self.out -= 1;
            self.classes[token.class()].free.push_back(token);
        }
        self.take(bytes)
    }

    /// How many slots of one class are free now, what was dropped on other threads included; 0 for no class.
    #[must_use]
    pub fn free_in(&mut self, class: usize) -> usize {
        self.collect();
        self.classes.get(class).map_or(0, |class| class.free.len())
    }

    /// Puts what was dropped into the free lists, the last behind all others.
    fn collect(&mut self) {
        let home = self.home;
        // SAFETY: the home is not freed while its pool lives.
        let mut returns = unsafe { home.as_ref() }.returns.lock().unwrap_or_else(PoisonError::into_inner);
        for token in returns.tokens.drain(..) {
            self.out -= 1;
            self.classes[token.class()].free.push_back(token);
        }
    }

    /// As [`take`](Self::take), but the slot that came back last: its bytes are the likeliest to be in a cache.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub fn take_recent(&mut self, bytes: usize) -> Result<Slot, PoolError> {
        self.collect();
        for class in &mut self.classes {
            if class.slot_bytes >= bytes
                && let Some(token) = class.free.pop_back()
            {
                self.out += 1;
                // SAFETY: the index is below the class's slots (it came from its free list), so the slot lies in the
                // span.
                let base = unsafe { class.base.add(token.slot() as usize * class.slot_bytes) };
                return Ok(Slot { base, bytes: class.slot_bytes, token, home: self.home });
            }
        }
        let largest = self.classes.last().map_or(0, |class| class.slot_bytes);
        Err(if bytes > largest { PoolError::TooLarge { bytes, largest } } else { PoolError::Exhausted { bytes } })
    }

    /// Whether the slot is one of this pool's.
    #[inline(always)]
    #[must_use]
    pub fn owns(&self, slot: &Slot) -> bool {
        slot.home == self.home
    }

    /// Turns a slot into what is published: its descriptor.
    ///
    /// # Panics
    /// If the slot is another pool's.
    #[inline(always)]
    pub fn publish(&mut self, slot: Slot) -> RawDescriptor {
        assert!(self.owns(&slot), "a slot goes back to its own pool");
        self.out -= 1;
        ManuallyDrop::new(slot).token
    }

    /// Notes that `count` slots were published by their [descriptors](Slot::descriptor).
    ///
    /// # Safety
    /// The slots are this pool's, and their owner forgets them: they are not dropped.
    #[inline(always)]
    pub unsafe fn forget_published(&mut self, count: usize) {
        self.out -= count;
    }

    /// Takes back what was published.
    ///
    /// # Safety
    /// The token came from [`publish`](Self::publish) of this pool, was not restored since, and nobody reads its slot
    /// any more.
    #[inline(always)]
    pub unsafe fn restore(&mut self, token: u32) {
        let token = RawDescriptor::from_token(token);
        self.classes[token.class()].free.push_back(token);
    }

    /// How many slots are leased now.
    #[must_use]
    pub fn out(&self) -> usize {
        self.out - self.home().returns.lock().unwrap_or_else(PoisonError::into_inner).tokens.len()
    }

    /// How many slots are free now, over all classes.
    #[must_use]
    pub fn free_slots(&self) -> usize {
        let returned = self.home().returns.lock().unwrap_or_else(PoisonError::into_inner).tokens.len();
        self.classes.iter().map(|class| class.free.len()).sum::<usize>() + returned
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let out = {
            let mut returns = self.home().returns.lock().unwrap_or_else(PoisonError::into_inner);
            returns.pool_lives = false;
            returns.out = self.out - returns.tokens.len();
            returns.out
        };
        if out == 0 {
            // SAFETY: made by `Box::leak` in `new`; the pool is going and no slot is out, so nobody else reaches it.
            drop(unsafe { Box::from_raw(self.home.as_ptr()) });
        }
    }
}

/// The right to write one slot. Dropped, it returns to its pool; the bytes in it are whatever was there before.
pub struct Slot {
    base: NonNull<u8>,
    bytes: usize,
    home: NonNull<Home>,
    token: RawDescriptor,
}

// SAFETY: a slot is the only way to its bytes, and its home is reached under a mutex.
unsafe impl Send for Slot {}
// SAFETY: `&Slot` gives only shared reads of the bytes.
unsafe impl Sync for Slot {}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl Slot {
    /// Its descriptor, by which it is published.
    #[inline(always)]
    #[must_use]
    pub fn descriptor(&self) -> RawDescriptor {
        self.token
    }

    /// How many bytes fit.
    #[inline(always)]
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.bytes
    }

    /// The first `len` bytes.
    ///
    /// # Panics
    /// If the slot is shorter.
    #[inline(always)]
    #[must_use]
    pub fn bytes(&self, len: usize) -> &[u8] {
        assert!(len <= self.bytes);
        // SAFETY: inside the slot (checked); the token is ours alone, so nobody writes while `self` is borrowed.
        unsafe { core::slice::from_raw_parts(self.base.as_ptr(), len) }
    }

    /// The first `len` bytes, for writing.
    ///
    /// # Panics
    /// If the slot is shorter.
    #[inline(always)]
    #[must_use]
    pub fn bytes_mut(&mut self, len: usize) -> &mut [u8] {
        assert!(len <= self.bytes);
        // SAFETY: inside the slot (checked); the token is ours alone and `self` is borrowed uniquely.
        unsafe { core::slice::from_raw_parts_mut(self.base.as_ptr(), len) }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // SAFETY: the home is not freed while a slot is out.
        let home = unsafe { self.home.as_ref() };
        if !home.life.is_present() {
            return;
        }
        let last = {
            let mut returns = home.returns.lock().unwrap_or_else(PoisonError::into_inner);
            if returns.pool_lives {
                returns.tokens.push(self.token);
                false
            } else {
                returns.out -= 1;
                returns.out == 0
            }
        };
        if last {
            // SAFETY: made by `Box::leak` in `Pool::new`; the pool is gone and this was the last slot that was out.
            drop(unsafe { Box::from_raw(self.home.as_ptr()) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::region::Region;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    struct Flag(Arc<AtomicBool>);
    impl Drop for Flag {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    fn pool(plan: &PoolPlan) -> (Pool, Arc<AtomicBool>) {
        let region = Region::options(plan.bytes()).create().expect("a region");
        let span = region.bytes(region.data_offset(), plan.bytes()).expect("the plan fits");
        let gone = Arc::new(AtomicBool::new(false));
        // SAFETY: a region of our own, which nothing else uses.
        let pool = unsafe { Pool::new(plan, span, LifeMark::always(), Box::new(Flag(Arc::clone(&gone)))) };
        (pool, gone)
    }

    #[test]
    fn every_slot_is_handed_out_once_and_comes_back() {
        let plan = PoolPlan::doubling(64, 256, 3).expect("a plan");
        let (mut pool, _) = pool(&plan);
        let mut slots: Vec<Slot> = (0..9).map(|_| pool.take(1).expect("a slot")).collect();
        assert_eq!(pool.take(1).err(), Some(PoolError::Exhausted { bytes: 1 }));
        assert_eq!(pool.take(257).err(), Some(PoolError::TooLarge { bytes: 257, largest: 256 }));
        for (number, slot) in slots.iter_mut().enumerate() {
            let capacity = slot.capacity();
            slot.bytes_mut(capacity).fill(number as u8);
        }
        for (number, slot) in slots.iter().enumerate() {
            assert!(
                slot.bytes(slot.capacity()).iter().all(|&byte| byte == number as u8),
                "slot {number} was overwritten"
            );
        }
        std::thread::scope(|scope| scope.spawn(|| drop(slots)).join()).expect("slots drop on another thread");
        assert_eq!(pool.free_slots(), 9);
        assert_eq!([0, 1, 2, 3].map(|class| pool.free_in(class)), [3, 3, 3, 0]);
        assert_eq!(pool.take(200).expect("a slot again").capacity(), 256);
    }

    #[test]
    fn the_slot_that_came_back_last_is_taken_first_if_asked_for() {
        let plan = PoolPlan::doubling(64, 256, 3).expect("a plan");
        let (mut pool, _) = pool(&plan);
        let one = pool.take_recent(65).expect("a slot");
        let two = pool.take_recent(65).expect("a slot");
        let (first, second) = (one.descriptor(), two.descriptor());
        assert_eq!((one.capacity(), first == second), (128, false));
        drop(two);
        drop(one);
        let again = [(); 2].map(|()| pool.take_recent(65).expect("a slot"));
        assert_eq!(again.each_ref().map(Slot::descriptor), [first, second]);
        assert_eq!(pool.take_recent(300).err(), Some(PoolError::TooLarge { bytes: 300, largest: 256 }));
        let all: Vec<Slot> = core::iter::from_fn(|| pool.take_recent(1).ok()).collect();
        assert_eq!((all.len(), pool.take_recent(1).err()), (7, Some(PoolError::Exhausted { bytes: 1 })));
    }

    #[test]
    fn slots_written_ahead_stay_free_until_they_are_taken() {
        let plan = PoolPlan::doubling(64, 256, 3).expect("a plan");
        let (mut pool, _) = pool(&plan);
        let first = pool.take(100).expect("a slot of 128 bytes");
        let mut ahead = pool.write_ahead(100, 8, |index, bytes| bytes.fill(index as u8 + 1));
        assert_eq!((ahead.count(), pool.free_slots(), pool.out()), (2, 8, 1));
        // What comes back, also to a smaller class, comes behind them.
        drop(first);
        assert!(pool.take(256).is_ok());
        let tokens: Vec<RawDescriptor> = pool.ahead(&ahead).to_vec();
        let slot = pool.take_ahead(&mut ahead).expect("the first");
        assert_eq!((slot.descriptor(), slot.bytes(100)), (tokens[0], &[1; 100][..]));
        pool.drop_ahead(&mut ahead, 1);
        assert_eq!((ahead.count(), pool.take_ahead(&mut ahead).is_none()), (0, true));
        // SAFETY: the token is this pool's, and nobody reads its slot.
        unsafe { pool.restore(tokens[1].token()) };
        drop(slot);
        assert_eq!((pool.free_slots(), pool.out()), (9, 0));
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            pool.write_ahead(64, 3, |index, _| {
                if index == 2 {
                    std::panic::resume_unwind(Box::new("on purpose"));
                }
            })
        }));
        assert!(panicked.is_err());
        assert_eq!(pool.free_slots(), 9, "a panic while writing loses no slot");
    }

    #[test]
    fn memory_outlives_the_pool_until_the_last_slot_is_back() {
        let plan = PoolPlan::single(100, 2).expect("a plan");
        let (mut pool, gone) = pool(&plan);
        let (one, two) = (pool.take(1).expect("a slot"), pool.take(1).expect("a slot"));
        drop(one);
        drop(pool);
        assert!(!gone.load(Ordering::SeqCst));
        assert_eq!(two.bytes(128).len(), 128);
        drop(two);
        assert!(gone.load(Ordering::SeqCst));
    }

    #[test]
    fn a_published_slot_is_free_only_after_it_is_restored() {
        let plan = PoolPlan::single(64, 1).expect("a plan");
        let (mut pool, gone) = pool(&plan);
        let slot = pool.take(64).expect("a slot");
        let descriptor = pool.publish(slot);
        assert_eq!((descriptor.slot(), descriptor.class()), (0, 0));
        assert!(pool.take(64).is_err());
        // SAFETY: the token is this pool's, and nobody reads its slot.
        unsafe { pool.restore(descriptor.token()) };
        assert!(pool.take(64).is_ok());
        drop(pool);
        assert!(gone.load(Ordering::SeqCst));
    }
}
