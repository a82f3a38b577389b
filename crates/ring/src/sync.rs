//! The atomics of this crate: those of `core`, or under `--cfg zcmi_loom` those of loom.
//!
//! Every atomic operation of the workspace's protocols goes through these names, so that the models run the very
//! code that ships.

#[cfg(not(zcmi_loom))]
pub use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, compiler_fence, fence};

#[cfg(zcmi_loom)]
pub use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering, fence};
#[cfg(zcmi_loom)]
pub use mortal::{AtomicU64, die_before};

/// Under loom a compiler fence is nothing: loom runs no compiler reorderings of its own accord.
#[cfg(zcmi_loom)]
pub fn compiler_fence(_order: Ordering) {}

/// Tells the processor (or loom's scheduler) that this thread spins.
#[inline]
pub fn spin_loop() {
    #[cfg(not(zcmi_loom))]
    core::hint::spin_loop();
    #[cfg(zcmi_loom)]
    loom::thread::yield_now();
}

/// A word whose user can be killed: models count the accesses of a thread and end it before the one they choose.
///
/// The end is an unwinding, because a loom thread cannot be stopped otherwise. What the unwinding would still store is
/// not stored: a killed process runs no destructors.
#[cfg(zcmi_loom)]
mod mortal {
    use core::cell::Cell;
    use loom::sync::atomic::Ordering;

    #[derive(Clone, Copy)]
    enum Life {
        Unbounded,
        Left(usize),
        Dead,
    }

    loom::thread_local! {
        static LIFE: Cell<Life> = Cell::new(Life::Unbounded);
    }

    /// Runs `life`, ended before its access number `accesses` (from 0). Returns `None` if that came, else what `life`
    /// returned.
    pub fn die_before<R>(accesses: usize, life: impl FnOnce() -> R) -> Option<R> {
        LIFE.with(|state| state.set(Life::Left(accesses)));
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(life));
        let died = LIFE.with(|state| matches!(state.replace(Life::Unbounded), Life::Dead));
        match result {
            Ok(result) => Some(result),
            Err(_) if died => None,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Counts one access. Returns whether the thread is dead already.
    fn count() -> bool {
        // A thread that is past its end has no life to count; it only tears down.
        let life = LIFE.try_with(Cell::get).unwrap_or(Life::Unbounded);
        match life {
            Life::Unbounded => false,
            Life::Left(0) => {
                LIFE.with(|state| state.set(Life::Dead));
                std::panic::resume_unwind(Box::new("killed by the model"));
            }
            Life::Left(left) => {
                LIFE.with(|state| state.set(Life::Left(left - 1)));
                false
            }
            Life::Dead => true,
        }
    }

    /// As loom's `AtomicU64`, mortal.
    #[derive(Debug, Default)]
    pub struct AtomicU64(loom::sync::atomic::AtomicU64);

    impl AtomicU64 {
        /// Makes a word.
        #[must_use]
        pub fn new(value: u64) -> Self {
            Self(loom::sync::atomic::AtomicU64::new(value))
        }

        /// Loads.
        pub fn load(&self, order: Ordering) -> u64 {
            count();
            self.0.load(order)
        }

        /// Stores.
        pub fn store(&self, value: u64, order: Ordering) {
            if !count() {
                self.0.store(value, order);
            }
        }

        /// Swaps.
        pub fn swap(&self, value: u64, order: Ordering) -> u64 {
            if count() { 0 } else { self.0.swap(value, order) }
        }

        /// Sets bits.
        pub fn fetch_or(&self, value: u64, order: Ordering) -> u64 {
            if count() { 0 } else { self.0.fetch_or(value, order) }
        }

        /// Clears bits not in `value`.
        pub fn fetch_and(&self, value: u64, order: Ordering) -> u64 {
            if count() { 0 } else { self.0.fetch_and(value, order) }
        }
    }
}
