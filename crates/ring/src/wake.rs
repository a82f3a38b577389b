//! The wake word: how a publisher learns which readers sleep.
//!
//! One word, one bit per reader. It is the one word of a lane that several processes of one user write; a lie in it
//! costs a needless or a missed wake of that user's own, and nothing else.
//!
//! # Why no wake is lost
//! A reader sets its bit (W5, a `SeqCst` read-modify-write followed by a `SeqCst` fence), looks at every lane once
//! more, and only then waits. A publisher stores its stamps, fences (W6), and loads the word. If the reader did not see
//! the stamp, then its fence came before the publisher's, so the publisher sees the bit. The publisher takes the bits
//! by a swap before it sends the wakes: a bit set after the swap belongs to a reader that looks at the lanes after
//! that, and sees the stamp.

use crate::raw::View;
use crate::sync::{AtomicU64, Ordering, fence};

/// A publisher's wake word, seen from either side.
#[derive(Clone, Debug)]
pub struct WakeWord(View<AtomicU64>);

impl WakeWord {
    /// Takes the first word of the view.
    ///
    /// # Panics
    /// If the view is empty.
    #[must_use]
    pub fn new(view: View<AtomicU64>) -> Self {
        assert!(!view.is_empty(), "a wake word needs a word");
        Self(view)
    }

    /// The reader's side: announces that the reader is about to sleep. The caller looks at its lanes once more before
    /// it does. Only once the publisher has noted that this reader may park: until then it does not look, or takes the
    /// bit for nobody's.
    pub fn announce(&self, bit: u8) {
        // W5 (SeqCst): see the module's head. The fence orders the second look after it.
        self.0.at(0).fetch_or(1 << bit, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// The reader's side: takes the announcement back after waking.
    pub fn withdraw(&self, bit: u8) {
        self.0.at(0).fetch_and(!(1 << bit), Ordering::Relaxed);
    }

    /// Who has announced that it sleeps and was not taken yet: a hint.
    #[must_use]
    pub fn announced(&self) -> u64 {
        self.0.at(0).load(Ordering::Relaxed)
    }

    /// The publisher's side, after the stamps: the readers to wake, among the `living`. Takes their announcements.
    #[inline]
    #[must_use]
    pub fn take(&self, living: u64) -> u64 {
        // W6 (SeqCst): the stamps are before this load. Pairs with W5.
        fence(Ordering::SeqCst);
        if self.0.at(0).load(Ordering::Relaxed) == 0 { 0 } else { self.take_slow(living) }
    }

    #[cold]
    fn take_slow(&self, living: u64) -> u64 {
        // W6 (SeqCst): taken before the wakes are sent; a bit set after this belongs to a reader that looks again.
        self.0.at(0).swap(0, Ordering::SeqCst) & living
    }
}
