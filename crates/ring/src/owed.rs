//! Owed wakes: how a publisher hands the waking of its readers over to another thread of its process.
//!
//! One word in private memory, one bit per reader. The publisher adds bits, the other thread takes them all and sends
//! the wakes.
//!
//! # Edges
//! - W7 (acquire and release): whoever takes a bit sees what the publisher did before it added it.
//!
//! # Why no wake is lost
//! The publisher adds its bits and then, if the word was 0 before, wakes the other thread. That thread, whenever it is
//! woken, first takes the wake (reads its eventfd) and then takes the word. All this adding and taking is
//! read-modify-writes of one word, so it has one order. If the word was 0, the publisher's wake comes after its bits,
//! and whoever takes that wake sees them. If it was not 0, bits added before have not been taken yet; they were added
//! by the same publisher, whose wake for them is on its way or was taken by a turn that has not come to the word yet:
//! the turn that takes them takes ours too.

use crate::sync::{AtomicU64, Ordering};

/// The readers that another thread is to wake.
#[derive(Debug, Default)]
pub struct OwedWakes(AtomicU64);

impl OwedWakes {
    /// The publisher's side: hands these readers over. Returns whether the other thread is to be woken now.
    #[must_use]
    pub fn hand_over(&self, readers: u64) -> bool {
        // W7 (acquire and release): see the module's head.
        self.0.fetch_or(readers, Ordering::AcqRel) == 0
    }

    /// The other side, after it took its wake: the readers to wake.
    #[must_use]
    pub fn take(&self) -> u64 {
        // A look is enough when nothing is there, since whoever adds to 0 wakes us after that.
        if self.0.load(Ordering::Relaxed) == 0 {
            return 0;
        }
        // W7 (acquire and release): see the module's head.
        self.0.swap(0, Ordering::AcqRel)
    }
}
