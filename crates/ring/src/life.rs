//! Knowing whether this process is still the one in which a handle was made.

// Not from sync: the word orders nothing, and a loom atomic cannot lie in a page of the kernel's.
use core::sync::atomic::{AtomicU64, Ordering};

/// A word that a fork wipes, and the value it had when the mark was taken.
///
/// The word lies in a private page that the kernel hands to forked children as zeros (`MADV_WIPEONFORK`); `zcmi-mem`
/// makes it. It is a plain `core` atomic even under loom: it orders nothing.
#[derive(Clone, Copy, Debug)]
pub struct LifeMark {
    word: &'static AtomicU64,
    value: u64,
}

static ALWAYS: AtomicU64 = AtomicU64::new(1);

impl LifeMark {
    /// A mark of the present value of `word`.
    #[must_use]
    pub fn new(word: &'static AtomicU64) -> Self {
        Self { word, value: word.load(Ordering::Relaxed) }
    }

    /// A mark that always says "present", for structures that are not shared with anyone.
    #[must_use]
    pub fn always() -> Self {
        Self { word: &ALWAYS, value: 1 }
    }

    /// Whether this is still the process in which the mark was made.
    #[inline(always)]
    #[must_use]
    pub fn is_present(self) -> bool {
        self.word.load(Ordering::Relaxed) == self.value
    }
}
