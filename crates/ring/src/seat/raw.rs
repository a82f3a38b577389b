//! The cell behind the seat.
//!
//! Every unsafe block here relies on the protocol of `seat.rs`: the value is touched either by the one [`Sitting`] of
//! the one [`Occupant`] while `busy` is 1 and `wanted` was seen 0 after that, or by the one controller that holds the
//! mutex while `wanted` is 1 and `busy` was seen 0 after that.
#![allow(unsafe_code)]

use super::Barrier;
use crate::sync::{AtomicU32, Ordering, compiler_fence, fence, spin_loop};
use core::cell::UnsafeCell;
use core::fmt;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

/// Bit of `wanted`: a controller asks for the seat.
const WANTED: u32 = 1;
/// Bit of `wanted` that never changes: the occupant must fence, since no controller does it for both. It lies here so
/// that the occupant's one look tells it too.
const FENCE: u32 = 2;

struct Inner<T> {
    busy: AtomicU32,
    wanted: AtomicU32,
    barrier: Barrier,
    controllers: Mutex<()>,
    value: UnsafeCell<T>,
}

// SAFETY: the protocol gives one thread at a time access to the value, which may move between threads (`T: Send`).
unsafe impl<T: Send> Sync for Inner<T> {}

/// Makes a seat's two sides.
#[derive(Debug)]
pub struct Seat;

impl Seat {
    /// Puts a value into a new seat.
    #[must_use]
    #[allow(clippy::new_ret_no_self)]
    pub fn new<T: Send>(value: T, barrier: Barrier) -> (Occupant<T>, Controller<T>) {
        let inner = Arc::new(Inner {
            busy: AtomicU32::new(0),
            wanted: AtomicU32::new(if matches!(barrier, Barrier::Symmetric) { FENCE } else { 0 }),
            barrier,
            controllers: Mutex::new(()),
            value: UnsafeCell::new(value),
        });
        (Occupant { inner: Arc::clone(&inner), not_sync: PhantomData }, Controller { inner })
    }
}

/// The one that sits: its operations cost two stores and a load.
pub struct Occupant<T> {
    inner: Arc<Inner<T>>,
    not_sync: PhantomData<core::cell::Cell<()>>,
}

/// The one that may ask for the seat.
pub struct Controller<T> {
    inner: Arc<Inner<T>>,
}

impl<T> Clone for Controller<T> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<T> fmt::Debug for Occupant<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Occupant")
    }
}

impl<T> fmt::Debug for Controller<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Controller")
    }
}

impl<T> Occupant<T> {
    /// Sits down, waiting while a controller has the seat.
    #[inline(always)]
    pub fn sit(&mut self) -> Sitting<'_, T> {
        let inner = &*self.inner;
        inner.busy.store(1, Ordering::Relaxed);
        // S1: the controller's `membarrier` is the other half; where there is none, `sit_slow` fences.
        compiler_fence(Ordering::SeqCst);
        // S3 (acquire): sees the controller's change. Pairs with the store in `change`.
        if inner.wanted.load(Ordering::Acquire) != 0 {
            inner.sit_slow();
        }
        Sitting { inner, not_send: PhantomData }
    }
}

impl<T> Inner<T> {
    #[cold]
    #[inline(never)]
    fn sit_slow(&self) {
        loop {
            // S1: the controller's fence, or `membarrier`, is the other half.
            fence(Ordering::SeqCst);
            // S3 (acquire): as in `sit`.
            if self.wanted.load(Ordering::Acquire) & WANTED == 0 {
                return;
            }
            // S2 (release): we are out of the seat. Pairs with the load in `change`.
            self.busy.store(0, Ordering::Release);
            while self.wanted.load(Ordering::Relaxed) & WANTED != 0 {
                relax();
            }
            self.busy.store(1, Ordering::Relaxed);
        }
    }
}

/// Spins politely: on a machine with few processors the other side may need this one.
fn relax() {
    spin_loop();
    #[cfg(not(zcmi_loom))]
    std::thread::yield_now();
}

/// Access to the value while sitting.
pub struct Sitting<'a, T> {
    inner: &'a Inner<T>,
    not_send: PhantomData<*const ()>,
}

impl<T> fmt::Debug for Sitting<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sitting")
    }
}

impl<T> Deref for Sitting<'_, T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: `busy` is 1 and `wanted` was seen 0 since; no controller touches the value (module head).
        unsafe { &*self.inner.value.get() }
    }
}

impl<T> DerefMut for Sitting<'_, T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`; `&mut self` makes the reference unique, and there is one `Sitting` at a time (`sit`
        // takes `&mut`).
        unsafe { &mut *self.inner.value.get() }
    }
}

impl<T> Drop for Sitting<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        // S2 (release): the controller that sees 0 sees what we did.
        self.inner.busy.store(0, Ordering::Release);
    }
}

impl<T> Controller<T> {
    /// Changes the value while nobody sits. Waits for the occupant's current operation, which is short.
    ///
    /// If `change` panics the seat is given back first, so that the occupant does not wait for ever. Not to be called
    /// by a thread that sits: it would wait for itself.
    pub fn change<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        struct GiveBack<'a>(&'a AtomicU32, u32);
        impl Drop for GiveBack<'_> {
            fn drop(&mut self) {
                // S3 (release): pairs with the occupant's acquire load.
                self.0.store(self.1, Ordering::Release);
            }
        }
        let inner = &*self.inner;
        let _only = inner.controllers.lock().unwrap_or_else(PoisonError::into_inner);
        let resting = inner.wanted.load(Ordering::Relaxed) & FENCE;
        inner.wanted.store(resting | WANTED, Ordering::Relaxed);
        let _give_back = GiveBack(&inner.wanted, resting);
        match inner.barrier {
            // S1: a full barrier on every running thread of this process.
            Barrier::Asymmetric(membarrier) => membarrier(),
            // S1: the occupant's fence is the other half.
            Barrier::Symmetric => fence(Ordering::SeqCst),
        }
        // S2 (acquire): sees what the occupant did.
        while inner.busy.load(Ordering::Acquire) != 0 {
            relax();
        }
        // SAFETY: `wanted` is 1 and `busy` was seen 0 since, and the mutex keeps other controllers out (module head).
        let value = unsafe { &mut *inner.value.get() };
        change(value)
    }
}
