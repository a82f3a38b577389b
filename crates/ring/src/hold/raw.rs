//! The pointers behind [`Hold`].
//!
//! Every unsafe block here relies on one fact: a [`Table`] is freed only by [`HoldTable`] or [`Orphan`], each of which
//! owns it alone, and only when every word of `held` is 0; a [`Hold`] exists only while its word is not 0 and touches
//! the table for the last time in the store that clears it.
#![allow(unsafe_code)]

use crate::layout::{HOLD_IN_KERNEL, HOLDS, LaneControl, ReaderBlock};
use crate::life::LifeMark;
use crate::raw::{Keeper, Single, View};
use crate::sync::{AtomicU64, Ordering, fence};
use core::fmt;
use core::ptr::NonNull;
// Not from sync: it decides only whether somebody is told, and orders nothing that a model could miss.
use core::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Called when something happened that somebody waits for: a hold was dropped, or readers were ended.
pub type Notify = Arc<dyn Fn() + Send + Sync>;

/// A reader's block that nothing else in this process writes.
#[derive(Debug)]
pub struct OwnedBlock(Single<ReaderBlock>);

impl OwnedBlock {
    /// Takes over the first block of `view`.
    ///
    /// # Safety
    /// - No other `OwnedBlock` of the same memory exists, nor will while this one or a hold made through it lives.
    /// - Nothing else writes the block.
    ///
    /// # Panics
    /// If the view is empty.
    #[must_use]
    pub unsafe fn new(view: View<ReaderBlock>) -> Self {
        Self(Single::first_of(view))
    }

    /// A block on the heap, for tests and models.
    #[must_use]
    pub fn heap() -> (Self, View<ReaderBlock>) {
        let view = View::heap(1, |_| ReaderBlock::default());
        (Self(Single::first_of(view.clone())), view)
    }

    /// The block.
    #[inline(always)]
    #[must_use]
    pub fn get(&self) -> &ReaderBlock {
        &self.0
    }
}

struct Table {
    block: OwnedBlock,
    control: Single<LaneControl>,
    /// Tells a forked child, whose copy of a hold must do nothing: the memory is not mapped there.
    life: LifeMark,
    /// Whether a drop has more to do than its store: one of the two below is set.
    tells: AtomicBool,
    /// Set where the publisher may wait for a slot: then a drop looks at `want_room`.
    notify: Option<Notify>,
    /// Set once the reader is gone: whoever keeps the orphan wants to know of each drop.
    orphaned: OnceLock<Notify>,
    /// What keeps the payload mapped.
    keep: Mutex<Vec<Keeper>>,
}

/// A reader's table of holds, which outlives the reader if it must. Dropping it leaks; [`retire`](Self::retire) frees.
pub struct HoldTable {
    table: NonNull<Table>,
    block: NonNull<ReaderBlock>,
    /// Words known to be 0, the next one last; they are all looked at again when it runs empty.
    free: [NonNull<AtomicU64>; HOLDS],
    free_count: usize,
    /// How many places may be used: the lowest ones.
    usable: usize,
}

// SAFETY: the table is owned, and everything in it is `Send + Sync`.
unsafe impl Send for HoldTable {}
// SAFETY: as above; `&HoldTable` allows reads of atomics only.
unsafe impl Sync for HoldTable {}

impl fmt::Debug for HoldTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HoldTable").field("free", &self.free_count).finish_non_exhaustive()
    }
}

impl HoldTable {
    /// Makes the table of a block that holds nothing.
    ///
    /// # Panics
    /// If the block holds something.
    #[must_use]
    pub fn new(
        block: OwnedBlock,
        control: View<LaneControl>,
        life: LifeMark,
        notify: Option<Notify>,
        keep: Vec<Keeper>,
    ) -> Self {
        assert!(block.get().holds_nothing(), "a block is reused only when it holds nothing");
        let (control, keep) = (Single::first_of(control), Mutex::new(keep));
        let words = NonNull::from(block.get());
        let free = core::array::from_fn(|index| NonNull::from(&block.get().held[HOLDS - 1 - index]));
        let (tells, orphaned) = (AtomicBool::new(notify.is_some()), OnceLock::new());
        let table = Table { block, control, life, tells, notify, orphaned, keep };
        let table = NonNull::from(Box::leak(Box::new(table)));
        Self { table, block: words, free, free_count: HOLDS, usable: HOLDS }
    }

    #[inline(always)]
    fn table(&self) -> &Table {
        // SAFETY: freed only by `Orphan::try_free`, which `retire` reaches by consuming the owner; the borrow of `self`
        // keeps it.
        unsafe { self.table.as_ref() }
    }

    /// The block.
    #[inline(always)]
    #[must_use]
    pub fn block(&self) -> &ReaderBlock {
        // SAFETY: the block of the table, which is kept as long as the table lives (see `table`); atomics only.
        unsafe { self.block.as_ref() }
    }

    /// Keeps one more mapping alive as long as anything is held.
    pub fn keep(&mut self, keeper: Keeper) {
        self.table().keep.lock().unwrap_or_else(PoisonError::into_inner).push(keeper);
    }

    /// Allows only `limit` holds at a time, as many as the publisher set slots aside for. Called before the first is
    /// taken.
    #[must_use]
    pub fn limited_to(mut self, limit: usize) -> Self {
        self.usable = limit.min(HOLDS);
        self.look_for_free();
        self
    }

    /// Marks `sequence` as held, or says that all places are taken. The caller passes its cursor only afterwards.
    #[inline(always)]
    pub fn take(&mut self, sequence: u64) -> Option<Hold> {
        if self.free_count == 0 {
            self.look_for_free();
        }
        // C5 (release): the use of this place before happened before; the publisher's A1 sees it with the cursor (C4).
        self.take_at_hand(sequence)
    }

    /// As [`take`](Self::take), if a place is known to be free without looking.
    #[inline(always)]
    pub fn take_at_hand(&mut self, sequence: u64) -> Option<Hold> {
        let last = self.free_count.checked_sub(1)?;
        let hold = Hold { table: self.table, word: *self.free.get(last)? };
        self.free_count = last;
        // C5 (release): as in `take`.
        hold.word().store(sequence + 1, Ordering::Release);
        Some(hold)
    }

    /// Looks for free places if none is known: whoever has nothing else to do spares the next [`take`](Self::take)
    /// that.
    #[inline]
    pub fn refill(&mut self) {
        if self.free_count == 0 && self.usable > 0 {
            self.look_for_free();
        }
    }

    #[cold]
    fn look_for_free(&mut self) {
        let mut count = 0;
        for index in (0..self.usable).rev() {
            let word = &self.block().held[index];
            // C5 (acquire): what the hold's dropper did happened before the place is used again.
            if word.load(Ordering::Acquire) == 0 {
                let word = NonNull::from(word);
                self.free[count] = word;
                count += 1;
            }
        }
        self.free_count = count;
    }

    /// Whether nothing is held.
    #[must_use]
    pub fn holds_nothing(&self) -> bool {
        self.block().holds_nothing()
    }

    /// Frees the table, or what must outlive the reader if something is still held.
    #[must_use]
    pub fn retire(self) -> Option<Orphan> {
        Orphan(self.table).try_free().err()
    }
}

/// A table whose reader is gone while something is held. Dropping it leaks; [`try_free`](Self::try_free) frees.
#[derive(Debug)]
#[must_use = "an orphan that is dropped leaks its lane's memory"]
pub struct Orphan(NonNull<Table>);

// SAFETY: as for `HoldTable`.
unsafe impl Send for Orphan {}

impl Orphan {
    /// Has `notify` called whenever a hold is dropped from now on, by whoever drops it; only the first call counts.
    ///
    /// A thread that is in the middle of a drop just now may tell nobody: dropping is one plain store, and what it
    /// would take to rule this out is a fence in each. So the caller [tries](Self::try_free) at once after this, and a
    /// few times more.
    pub fn tell_of_drops(&self, notify: Notify) {
        // SAFETY: not freed yet: freeing consumes the orphan.
        let table = unsafe { self.0.as_ref() };
        if table.life.is_present() && table.orphaned.set(notify).is_ok() {
            // O1 (release): whoever sees it sees the one to tell.
            table.tells.store(true, Ordering::Release);
            // O1 (SeqCst): what the caller looks at next, it looks at after that.
            fence(Ordering::SeqCst);
        }
    }

    /// Frees the table if nothing is held any more.
    ///
    /// # Errors
    /// The orphan itself, while something is held, and for ever in a forked child.
    pub fn try_free(self) -> Result<(), Orphan> {
        // SAFETY: not freed yet: freeing consumes the orphan.
        let table = unsafe { self.0.as_ref() };
        // In a forked child the block is not mapped; what the child inherited is left alone.
        if !table.life.is_present() || !table.block.get().holds_nothing() {
            return Err(self);
        }
        // SAFETY: made by `Box::leak` in `HoldTable::new`, owned by `self` alone; no hold exists (all words are 0, read
        // with acquire, and clearing its word is the last thing a hold does with the table).
        let table = unsafe { Box::from_raw(self.0.as_ptr()) };
        drop(table);
        Ok(())
    }
}

/// One kept message: its slot is not reused before this is dropped.
pub struct Hold {
    table: NonNull<Table>,
    /// This hold's word in the table's block.
    word: NonNull<AtomicU64>,
}

// SAFETY: a hold reads and writes atomics only, and clones an `Arc` that is `Send + Sync`.
unsafe impl Send for Hold {}
// SAFETY: as above; `&Hold` allows only an atomic load and store of a word this hold owns.
unsafe impl Sync for Hold {}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hold").field("word", &self.word).finish_non_exhaustive()
    }
}

impl Hold {
    #[inline(always)]
    fn table(&self) -> &Table {
        // SAFETY: this hold's word is not 0 while it lives, so nobody freed the table.
        unsafe { self.table.as_ref() }
    }

    #[inline(always)]
    fn word(&self) -> &AtomicU64 {
        // SAFETY: the word lies in the block of a table that lives while this hold does; atomics only.
        unsafe { self.word.as_ref() }
    }

    /// Marks that the kernel may read the slot even after this process's death.
    pub fn mark_in_kernel(&self) {
        let word = self.word();
        // C5 (release): the mark is seen no earlier than the hold itself.
        word.store(word.load(Ordering::Relaxed) | HOLD_IN_KERNEL, Ordering::Release);
    }

    /// Takes the mark back, when the kernel is done.
    pub fn clear_in_kernel(&self) {
        let word = self.word();
        // C5 (release): the kernel was done with the slot before.
        word.store(word.load(Ordering::Relaxed) & !HOLD_IN_KERNEL, Ordering::Release);
    }

    #[cold]
    fn drop_and_tell(&self) {
        let table = self.table();
        // O1 (acquire): pairs with `Orphan::tell_of_drops`.
        fence(Ordering::Acquire);
        let (orphaned, waited_for, control) =
            (table.orphaned.get().map(Arc::clone), table.notify.clone(), table.control.clone());
        // C5 (release): pairs with A1. The table is not touched after this.
        self.word().store(0, Ordering::Release);
        if let Some(notify) = waited_for {
            // W3 (SeqCst): either the publisher's second look sees the slot free, or we see that it waits. Pairs with
            // W4.
            fence(Ordering::SeqCst);
            if control.want_room.load(Ordering::Relaxed) != 0 {
                notify();
            }
        }
        if let Some(notify) = orphaned {
            notify();
        }
    }
}

impl Drop for Hold {
    #[inline(always)]
    fn drop(&mut self) {
        if !self.table().life.is_present() {
            return;
        }
        if self.table().tells.load(Ordering::Relaxed) {
            self.drop_and_tell();
        } else {
            // C5 (release): the last read of the slot happens before. Pairs with A1 in `Writer`. Nothing follows.
            self.word().store(0, Ordering::Release);
        }
    }
}
