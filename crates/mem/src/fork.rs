//! Knowing that one is a forked child.
//!
//! A child made by `fork` holds copies of its parent's handles: its leases, sockets and files. Used there, or merely
//! dropped, they would speak in the parent's name. So every handle carries a [`ForkGuard`], asks it before each use,
//! and does nothing on drop when it says [`Forked`].
//!
//! ```text
//!  one anonymous page, MADV_WIPEONFORK          a guard
//!  +----------------------------+               +-----------------------+
//!  | word: generation, or 0     | <------------ | word, own generation  |   equal: same process
//!  +----------------------------+               +-----------------------+   else:  forked since
//! ```
//!
//! The kernel hands the child a page of zeros, so the word differs from every guard made before. When the child makes a
//! guard of its own it writes the next generation there: its new handles work, its parent's copies still do not.
//!
//! Invariants: a word once non-zero never changes in a process; generations only grow along a line of descent.
//! The check is one relaxed load of a private word: no other thread writes it after it was armed, and a thread's own
//! fork is ordered by the system call. It tells nothing about `vfork` or `clone(CLONE_VM)`, which share the memory.

mod sys;

// Not from sync: the word is private to the process, and the marks that rings carry are of `core` too.
use core::sync::atomic::{AtomicU64, Ordering};

use std::sync::Mutex;

use rustix::io::Errno;
use zcmi_ring::LifeMark;

/// The last generation given out in this line of descent; a child inherits the value.
static LAST_GENERATION: AtomicU64 = AtomicU64::new(0);

/// The handle belongs to the process that this one was forked from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this handle belongs to the parent process; make a new one after fork")]
pub struct Forked;

/// A guard could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{call} failed: {source}; forks could not be noticed without it")]
pub struct ForkGuardError {
    /// The call that failed.
    pub call: &'static str,
    /// What it answered.
    pub source: Errno,
}

/// Remembers the process it was made in.
#[derive(Clone, Copy, Debug)]
pub struct ForkGuard(LifeMark);

impl ForkGuard {
    /// A guard of this process.
    ///
    /// # Errors
    /// [`ForkGuardError`] when the page cannot be made, which a kernel at or above our floor does only without memory.
    pub fn new() -> Result<Self, ForkGuardError> {
        let word = sys::word_wiped_on_fork().map_err(|(call, source)| ForkGuardError { call, source })?;
        if word.load(Ordering::Relaxed) == 0 {
            let next = LAST_GENERATION.fetch_add(1, Ordering::Relaxed) + 1;
            // Several threads can arm at once; all take the generation of the one that came first.
            let _first_wins = word.compare_exchange(0, next, Ordering::Relaxed, Ordering::Relaxed);
        }
        Ok(Self(LifeMark::new(word)))
    }

    /// The guard in the form that rings and pools carry.
    #[inline]
    #[must_use]
    pub fn life(self) -> LifeMark {
        self.0
    }

    /// Whether this is still the process the guard was made in.
    #[inline]
    #[must_use]
    pub fn is_present(self) -> bool {
        self.0.is_present()
    }

    /// Says [`Forked`] when this is no longer the process the guard was made in.
    ///
    /// # Errors
    /// [`Forked`].
    #[inline]
    pub fn check(self) -> Result<(), Forked> {
        if self.is_present() { Ok(()) } else { Err(Forked) }
    }
}

/// Words that are free for another use, all calm.
static FREE_WORDS: Mutex<Vec<&'static AtomicU64>> = Mutex::new(Vec::new());

/// A word that says "nothing special" with one load: neither has anybody asked for attention, nor has the process
/// forked.
///
/// It lies where a fork wipes it, so that a handle that must look at such a flag anyway learns of a fork for nothing.
#[derive(Debug)]
pub struct CalmWord {
    word: &'static AtomicU64,
    made_in: ForkGuard,
}

const CALM: u64 = 1;

impl CalmWord {
    /// A calm word of its own cache line.
    ///
    /// # Errors
    /// [`ForkGuardError`], as [`ForkGuard::new`].
    pub fn new() -> Result<Self, ForkGuardError> {
        let made_in = ForkGuard::new()?;
        // A fork can leave the lock taken by a thread that the child does not have; it then uses a page of its own.
        let mut free = FREE_WORDS.try_lock().ok();
        let known = free.as_mut().and_then(|free| free.pop());
        let word = match known {
            Some(word) => word,
            None => {
                let mut words = sys::words_wiped_on_fork().map_err(|(call, source)| ForkGuardError { call, source })?;
                let word = words.pop().expect("a page has more than one line");
                if let Some(free) = &mut free {
                    free.append(&mut words);
                }
                word
            }
        };
        word.store(CALM, Ordering::Relaxed);
        Ok(Self { word, made_in })
    }

    /// Whether nobody asked for attention, in the process in which the word was made.
    #[inline(always)]
    #[must_use]
    pub fn is_calm(&self) -> bool {
        self.word.load(Ordering::Relaxed) == CALM
    }

    /// The word for reading alone. It outlives this one harmlessly: then it says what another use of the word says.
    #[must_use]
    pub fn view(&self) -> CalmView {
        CalmView(self.word)
    }

    /// Asks for attention; what the caller did before is seen by whoever then looks behind a lock.
    pub fn disturb(&self) {
        self.word.store(0, Ordering::Release);
    }

    /// Makes the word calm again; the caller looks after what may have been asked for, afterwards.
    pub fn settle(&self) {
        // In a forked child it stays disturbed: nothing there is calm.
        if !self.made_in.is_present() {
            return;
        }
        self.word.store(CALM, Ordering::Relaxed);
    }
}

/// A [`CalmWord`] for reading.
#[derive(Clone, Copy, Debug)]
pub struct CalmView(&'static AtomicU64);

impl CalmView {
    /// As [`CalmWord::is_calm`].
    #[inline(always)]
    #[must_use]
    pub fn is_calm(self) -> bool {
        self.0.load(Ordering::Relaxed) == CALM
    }
}

impl Drop for CalmWord {
    fn drop(&mut self) {
        if self.made_in.is_present()
            && let Ok(mut free) = FREE_WORDS.lock()
        {
            free.push(self.word);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::sys::testing::status_in_forked_child;
    use super::*;

    #[test]
    fn a_forked_child_is_told_and_the_parent_goes_on() {
        let guard = ForkGuard::new().expect("a guard");
        assert_eq!(guard.check(), Ok(()));
        let status = status_in_forked_child(|| u8::from(guard.check() == Err(Forked)));
        assert_eq!(status, 1);
        assert_eq!(guard.check(), Ok(()));
    }

    #[test]
    fn a_calm_word_is_calm_until_somebody_asks_or_the_process_forks() {
        let (one, other) = (CalmWord::new().expect("a word"), CalmWord::new().expect("a word"));
        assert!(one.is_calm() && other.is_calm());
        one.disturb();
        assert!(!one.is_calm() && other.is_calm());
        one.settle();
        assert_eq!(status_in_forked_child(|| u8::from(one.is_calm()) | u8::from(other.is_calm()) << 1), 0);
        assert!(one.is_calm() && other.is_calm());
    }

    #[test]
    fn a_child_that_starts_anew_has_working_guards_and_keeps_its_parents_dead() {
        let parents = ForkGuard::new().expect("a guard");
        let status = status_in_forked_child(|| {
            let Ok(own) = ForkGuard::new() else { return 100 };
            let grandchild = || u8::from(own.check().is_err() && parents.check().is_err());
            let below = status_in_forked_child(grandchild);
            u8::from(own.check().is_ok()) | u8::from(parents.check().is_err()) << 1 | below << 2
        });
        assert_eq!(status, 7);
        assert_eq!(parents.check(), Ok(()));
    }
}
