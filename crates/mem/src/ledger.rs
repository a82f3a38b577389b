//! The ledger: what every endpoint moved, copied, dropped and waited for, readable from outside the process.
//!
//! ```text
//! word   0        1..=8                          16 ..= 31              32 ..= 55            56 ..= 63
//!      +--------+------------------------------+----------------------+--------------------+----------+
//!      |sequence| endpoint service role pid .. | counts, by `Counter` | by `FallbackReason`| reserved |
//!      +--------+------------------------------+----------------------+--------------------+----------+
//!      odd while the rest is reset              one block: 512 bytes, aligned to 128; a ledger is an array of them
//! ```
//!
//! # Invariants
//! - An endpoint's block has one writer, the thread that has the endpoint; its [`LedgerWriter`] is not `Sync`. So a
//!   count is a relaxed load, an addition and a relaxed store; there is no locked instruction.
//! - Two blocks are shared by the threads of the process, by atomic additions: that of the control thread, and that of
//!   the endpoints that found no block of their own.
//! - What follows from the words of a lane is not counted again: a row of the ledger says where they lie ([`lanes`]).
//!   When the lane goes, its counts are added to the block and the row is taken away under one odd sequence.
//! - Counts never go back while the block has the same identity. Closing an endpoint adds its counts to block 0, whose
//!   role is [`Role::Closed`], so that the sums over a process never go back either.
//! - What cannot be known is not zero: a count is a number or the reason why there is none ([`NotKnown`]).
//! - Whoever reads a block of another process reads a claim: every value of every word is accepted and printed.
//!
//! # Edges
//! - **L1**: the identity and all counts are rewritten only while the sequence is odd. The writer stores the odd
//!   sequence, `fence(Release)`, the words, and the even sequence with release; the reader loads an even sequence,
//!   `fence(Acquire)`, the words, `fence(Acquire)`, and the same sequence again. All loads are relaxed, as read-only
//!   memory demands.
//!
//! Counts among themselves need no order: a reader may see a message counted whose bytes are not yet.
//!
//! # Units
//! Messages, bytes and events, all `u64`, from the opening of the endpoint on; they wrap after centuries.
//!
//! # What this does not do
//! It does not say when something is counted: that is for those who count. It takes no part in publishing or receiving.

mod counter;
pub mod lanes;
mod raw;
pub mod region;
mod snapshot;

pub use counter::{COUNTERS, Counter, FallbackReason, NotKnown, REASONS, Role};
pub use lanes::{LaneCounts, LaneRow, LaneSource, Place};
pub use region::{EndpointReading, LedgerClaimError, LedgerReader, LedgerReading, LedgerRegion};
pub use snapshot::{CopiedPerByte, LedgerSnapshot};

use core::cell::Cell;
use core::marker::PhantomData;
use core::mem::offset_of;
use std::sync::{Arc, Mutex, PoisonError};

use crate::region::RegionId;
use zcmi_ring::View;
use zcmi_ring::sync::{AtomicU64, Ordering, fence};

/// How often a reader looks again at a block whose identity is being rewritten, before it says so.
const SNAPSHOT_TRIES: usize = 16;

/// The block with the sums of the endpoints that were closed.
const CLOSED: usize = 0;
/// The block of the control thread.
const CONTROL: usize = 1;
/// The block of the endpoints that found none.
const OVERFLOW: usize = 2;
/// The first block that an endpoint may have.
const FIRST: usize = 3;

/// The counts that follow from the words of lanes.
const DERIVED: [Counter; 4] = [Counter::Messages, Counter::BytesDelivered, Counter::Drops, Counter::Refusals];

impl LaneCounts {
    fn each(&self) -> [(Counter, u64); 4] {
        [
            (Counter::Messages, self.messages),
            (Counter::BytesDelivered, self.bytes),
            (Counter::Drops, self.drops),
            (Counter::Refusals, self.refusals),
        ]
    }
}

/// Whose counts a block holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The endpoint's number, unique in its process.
    pub endpoint: u64,
    /// The 128-bit hash of the service's name.
    pub service: [u64; 2],
    /// What the endpoint does.
    pub role: Role,
    /// The process, as it numbers itself; a hint for people, since a number proves nothing across namespaces.
    pub pid: u32,
}

/// The counts of one endpoint, as they lie in memory. All zeros is a block that was never used.
#[repr(C, align(128))]
#[derive(Debug)]
pub struct LedgerBlock {
    /// Odd while the other words are rewritten for another identity.
    sequence: AtomicU64,
    endpoint: AtomicU64,
    service: [AtomicU64; 2],
    role: AtomicU64,
    pid: AtomicU64,
    /// Four bits per counter: 0, or the number of the reason why it is not known.
    not_known: AtomicU64,
    reserved_identity: [AtomicU64; 9],
    counts: [AtomicU64; 16],
    fallbacks: [AtomicU64; REASONS],
    reserved: [AtomicU64; 8],
}

const _: () = {
    assert!(size_of::<LedgerBlock>() == 512);
    assert!(align_of::<LedgerBlock>() == 128);
    assert!(offset_of!(LedgerBlock, sequence) == 0);
    assert!(offset_of!(LedgerBlock, endpoint) == 8);
    assert!(offset_of!(LedgerBlock, service) == 16);
    assert!(offset_of!(LedgerBlock, role) == 32);
    assert!(offset_of!(LedgerBlock, pid) == 40);
    assert!(offset_of!(LedgerBlock, not_known) == 48);
    assert!(offset_of!(LedgerBlock, reserved_identity) == 56);
    assert!(offset_of!(LedgerBlock, counts) == 128);
    assert!(offset_of!(LedgerBlock, fallbacks) == 256);
    assert!(offset_of!(LedgerBlock, reserved) == 448);
    // 7 single words, and the arrays: with 512 bytes in all there is no padding.
    assert!(8 * (1 + 1 + 2 + 1 + 1 + 1 + 9 + 16 + REASONS + 8) == 512);
    assert!(COUNTERS <= 16, "a counter has a word");
    assert!(COUNTERS * 4 <= 64, "a counter has four bits of `not_known`");
};

impl Default for LedgerBlock {
    fn default() -> Self {
        Self {
            sequence: AtomicU64::new(0),
            endpoint: AtomicU64::new(0),
            service: [const { AtomicU64::new(0) }; 2],
            role: AtomicU64::new(0),
            pid: AtomicU64::new(0),
            not_known: AtomicU64::new(0),
            reserved_identity: [const { AtomicU64::new(0) }; 9],
            counts: [const { AtomicU64::new(0) }; 16],
            fallbacks: [const { AtomicU64::new(0) }; REASONS],
            reserved: [const { AtomicU64::new(0) }; 8],
        }
    }
}

impl LedgerBlock {
    /// Reads the block, which may belong to another process.
    ///
    /// None if its identity was being rewritten at every one of a few looks: the endpoint is just opening or closing,
    /// or its process was stopped or killed in the middle of that.
    #[must_use]
    pub fn snapshot(&self) -> Option<LedgerSnapshot> {
        for _ in 0..SNAPSHOT_TRIES {
            let Some(before) = self.begin_look() else {
                zcmi_ring::sync::spin_loop();
                continue;
            };
            let snapshot = self.read();
            if self.is_same_look(before) {
                return Some(snapshot);
            }
        }
        None
    }

    /// The sequence, unless the block is being rewritten.
    fn begin_look(&self) -> Option<u64> {
        let before = self.sequence.load(Ordering::Relaxed);
        // L1 (Acquire): the words read after this are at least as new as this sequence. Pairs with L1 in `rewriting`.
        fence(Ordering::Acquire);
        before.is_multiple_of(2).then_some(before)
    }

    /// Whether nothing was rewritten since.
    fn is_same_look(&self, before: u64) -> bool {
        // L1 (Acquire): if any word read before this came from a later rewriting, the sequence has moved too.
        fence(Ordering::Acquire);
        self.sequence.load(Ordering::Relaxed) == before
    }

    /// Rewrites words so that an observer sees all of it or nothing.
    fn rewriting(&self, rewrite: impl FnOnce()) {
        // A process that died in here left an odd sequence; going on from it keeps the parity right.
        let odd = self.sequence.load(Ordering::Relaxed) | 1;
        self.sequence.store(odd, Ordering::Relaxed);
        // L1 (Release): whoever sees a word stored below sees the odd sequence. Pairs with L1 in `begin_look`.
        fence(Ordering::Release);
        rewrite();
        // L1 (Release): whoever sees the even sequence sees all words stored above.
        self.sequence.store(odd.wrapping_add(1), Ordering::Release);
    }

    fn read(&self) -> LedgerSnapshot {
        let identity = Identity {
            endpoint: self.endpoint.load(Ordering::Relaxed),
            service: [self.service[0].load(Ordering::Relaxed), self.service[1].load(Ordering::Relaxed)],
            role: Role::from_number(self.role.load(Ordering::Relaxed)),
            // A process number is 32 bits wide; a claim that is wider is no process.
            pid: u32::try_from(self.pid.load(Ordering::Relaxed)).unwrap_or(0),
        };
        let not_known = self.not_known.load(Ordering::Relaxed);
        let mut counts = [Ok(0); COUNTERS];
        for counter in Counter::ALL {
            let index = counter as usize;
            counts[index] = match NotKnown::from_number(not_known >> (4 * index) & 0xf) {
                None => Ok(self.counts[index].load(Ordering::Relaxed)),
                Some(reason) => Err(reason),
            };
        }
        let mut fallbacks = [0; REASONS];
        for (read, word) in fallbacks.iter_mut().zip(&self.fallbacks) {
            *read = word.load(Ordering::Relaxed);
        }
        LedgerSnapshot::new(identity, counts, fallbacks)
    }

    /// Gives the block another identity, all counts starting from zero.
    fn rewrite(&self, identity: Option<Identity>) {
        let identity = identity.unwrap_or(Identity { endpoint: 0, service: [0; 2], role: Role::Unused, pid: 0 });
        self.rewriting(|| {
            self.endpoint.store(identity.endpoint, Ordering::Relaxed);
            for (word, half) in self.service.iter().zip(identity.service) {
                word.store(half, Ordering::Relaxed);
            }
            self.role.store(identity.role.number(), Ordering::Relaxed);
            self.pid.store(identity.pid.into(), Ordering::Relaxed);
            self.not_known.store(0, Ordering::Relaxed);
            for word in self.counts.iter().chain(&self.fallbacks) {
                word.store(0, Ordering::Relaxed);
            }
        });
    }

    /// Says that a count cannot be known, and why; none says that it can.
    fn set_not_known(&self, counter: Counter, reason: Option<NotKnown>) {
        let shift = 4 * counter as usize;
        let others = self.not_known.load(Ordering::Relaxed) & !(0xf << shift);
        self.not_known.store(others | (reason.map_or(0, NotKnown::number) << shift), Ordering::Relaxed);
    }
}

/// Adds to a word that nobody else writes.
#[inline]
fn add(word: &AtomicU64, more: u64) {
    word.store(word.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
}

/// The right to count in one block.
///
/// One thread at a time counts:
/// ```compile_fail
/// fn share<T: Sync>() {}
/// share::<zcmi_mem::ledger::LedgerWriter>();
/// ```
/// ```
/// fn send<T: Send>() {}
/// send::<zcmi_mem::ledger::LedgerWriter>();
/// ```
///
/// A clone counts in the same block and stays with the same endpoint: its owner keeps all of them on one thread, else
/// counts are wrong, and nothing else. Dropping one stores nothing, since after a fork the memory is not there any
/// more; the counts simply stay. Give the block back with [`Ledger::close`].
#[derive(Clone, Debug)]
pub struct LedgerWriter {
    view: View<LedgerBlock>,
    index: usize,
    /// Whether other endpoints count in this block too.
    shared: bool,
    /// Keeps the writer `Send` and not `Sync`: the additions are not atomic.
    single: PhantomData<Cell<()>>,
}

impl LedgerWriter {
    /// Takes over block `index` of `view` for an endpoint, all counts starting from zero.
    ///
    /// The caller sees to it that a block has one writer; a second one makes counts wrong and harms nothing else.
    /// [`Ledger`] does this for a table of blocks.
    ///
    /// # Panics
    /// If `index` is past the end of `view`.
    #[must_use]
    pub fn new(view: View<LedgerBlock>, index: usize, identity: Identity) -> Self {
        view.at(index).rewrite(Some(identity));
        Self { view, index, shared: false, single: PhantomData }
    }

    /// The block written to.
    #[inline]
    #[must_use]
    pub fn block(&self) -> &LedgerBlock {
        self.view.at(self.index)
    }

    /// The block's place in the ledger.
    #[must_use]
    pub fn index(&self) -> usize {
        self.index
    }

    /// Whether the block is that of all endpoints that found none of their own.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.shared
    }

    #[inline]
    fn add_to(&self, word: &AtomicU64, more: u64) {
        if self.shared {
            word.fetch_add(more, Ordering::Relaxed);
        } else {
            add(word, more);
        }
    }

    /// Counts `more` of something.
    #[inline]
    pub fn add(&self, counter: Counter, more: u64) {
        self.add_to(&self.block().counts[counter as usize], more);
    }

    /// Counts one message that was delivered without a copy.
    #[inline]
    pub fn delivered(&self, bytes: u64) {
        self.delivered_batch(1, bytes);
    }

    /// Counts messages that were delivered, and the bytes of all of them.
    #[inline]
    pub fn delivered_batch(&self, messages: u64, bytes: u64) {
        self.add(Counter::Messages, messages);
        self.add(Counter::BytesDelivered, bytes);
    }

    /// Counts one retreat from the best path.
    #[inline]
    pub fn fallback(&self, reason: FallbackReason) {
        self.add_to(&self.block().fallbacks[reason as usize], 1);
    }

    /// Says that a count cannot be known, and why; none says that it can.
    pub fn set_not_known(&self, counter: Counter, reason: Option<NotKnown>) {
        self.block().set_not_known(counter, reason);
    }
}

/// The right of every thread of the process to count in a block that they share, by atomic additions.
#[derive(Clone, Debug)]
pub struct SharedCounts {
    view: View<LedgerBlock>,
    index: usize,
}

impl SharedCounts {
    /// Counts `more` of something.
    pub fn add(&self, counter: Counter, more: u64) {
        self.view.at(self.index).counts[counter as usize].fetch_add(more, Ordering::Relaxed);
    }

    /// Counts one retreat from the best path.
    pub fn fallback(&self, reason: FallbackReason) {
        self.view.at(self.index).fallbacks[reason as usize].fetch_add(1, Ordering::Relaxed);
    }
}

/// Why there is no ledger.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LedgerError {
    /// The memory has no room for any endpoint.
    #[error("a ledger of {blocks} blocks has no room for an endpoint; it takes {least} or more")]
    TooSmall {
        /// The number of blocks in the view.
        blocks: usize,
        /// The smallest number.
        least: usize,
    },
}

/// A lane that an endpoint counts: listed for observers, or not if there was no row left.
#[derive(Debug)]
#[must_use = "a lane that goes unsettled leaves its row behind"]
pub struct ListedLane {
    row: Option<usize>,
}

/// A process's table of blocks: block 0 holds the sums of the endpoints that were closed, block 1 is the control
/// thread's, block 2 that of the endpoints that found none, and the others are one endpoint's each.
#[derive(Debug)]
pub struct Ledger {
    view: View<LedgerBlock>,
    lanes: View<LaneRow>,
    table: Mutex<Table>,
}

/// The private bookkeeping; its lock also makes the writer of block 0 a single one.
#[derive(Debug)]
struct Table {
    free: Vec<usize>,
    free_rows: Vec<usize>,
    /// By block: lanes that found no row, so that what follows from them is not known.
    unlisted: Vec<usize>,
}

impl Ledger {
    /// Makes the ledger of process `pid` in memory that only this process writes; every block starts unused.
    ///
    /// # Errors
    /// [`LedgerError::TooSmall`] if the view has no block for an endpoint.
    pub fn new(view: View<LedgerBlock>, lanes: View<LaneRow>, pid: u32) -> Result<Arc<Self>, LedgerError> {
        if view.len() <= FIRST {
            return Err(LedgerError::TooSmall { blocks: view.len(), least: FIRST + 1 });
        }
        for index in FIRST..view.len() {
            view.at(index).rewrite(None);
        }
        for (index, role) in [(CLOSED, Role::Closed), (CONTROL, Role::Control), (OVERFLOW, Role::Overflow)] {
            view.at(index).rewrite(Some(Identity { endpoint: 0, service: [0; 2], role, pid }));
        }
        (0..lanes.len()).for_each(|row| lanes.at(row).clear());
        let table = Table {
            free: (FIRST..view.len()).rev().collect(),
            free_rows: (0..lanes.len()).rev().collect(),
            unlisted: vec![0; view.len()],
        };
        Ok(Arc::new(Self { view, lanes, table: Mutex::new(table) }))
    }

    /// Gives an endpoint a block of its own, or a part in the one of those that found none.
    #[must_use]
    pub fn open(&self, identity: Identity) -> LedgerWriter {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        match table.free.pop() {
            Some(index) => LedgerWriter::new(self.view.clone(), index, identity),
            None => LedgerWriter { view: self.view.clone(), index: OVERFLOW, shared: true, single: PhantomData },
        }
    }

    /// The control thread's block.
    #[must_use]
    pub fn control(&self) -> SharedCounts {
        SharedCounts { view: self.view.clone(), index: CONTROL }
    }

    /// Lists a lane of an endpoint, so that observers find the words that its counts follow from. Without a row for it
    /// the endpoint's derived counts are not known until the lane is settled.
    pub fn list(&self, writer: &LedgerWriter, source: &LaneSource) -> ListedLane {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let row = table.free_rows.pop();
        match row {
            Some(row) => self.lanes.at(row).fill(writer.index, source),
            None => {
                table.unlisted[writer.index] += 1;
                for counter in DERIVED {
                    writer.set_not_known(counter, Some(NotKnown::NotCounted));
                }
            }
        }
        ListedLane { row }
    }

    /// Takes a lane off the list and adds what it came to; observers see both or neither.
    pub fn settle(&self, writer: &LedgerWriter, lane: ListedLane, counts: &LaneCounts) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let block = writer.block();
        block.rewriting(|| {
            for (counter, more) in counts.each() {
                writer.add(counter, more);
            }
            match lane.row {
                Some(row) => {
                    self.lanes.at(row).clear();
                    table.free_rows.push(row);
                }
                None => {
                    table.unlisted[writer.index] -= 1;
                    if table.unlisted[writer.index] == 0 {
                        DERIVED.into_iter().for_each(|counter| block.set_not_known(counter, None));
                    }
                }
            }
        });
    }

    /// Takes an endpoint's block back and keeps its counts in the sums of the closed ones. Its lanes were settled.
    ///
    /// # Panics
    /// If `writer` is not of this ledger.
    pub fn close(&self, writer: LedgerWriter) {
        if writer.shared {
            // What it counted is among the counts of all that found no block, and stays there.
            return;
        }
        assert!(
            writer.index >= FIRST && core::ptr::eq(writer.block(), self.view.at(writer.index)),
            "the writer of block {} belongs to another ledger",
            writer.index
        );
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let (from, to) = (writer.block(), self.view.at(CLOSED));
        // Under the sums' sequence, so that a process which dies in here has no sums and never wrong ones.
        to.rewriting(|| {
            let words = from.counts.iter().chain(&from.fallbacks);
            for (word, sum) in words.zip(to.counts.iter().chain(&to.fallbacks)) {
                add(sum, word.load(Ordering::Relaxed));
            }
            // A sum with an unknown part is unknown.
            let not_known = merge_reasons(to.not_known.load(Ordering::Relaxed), from.not_known.load(Ordering::Relaxed));
            to.not_known.store(not_known, Ordering::Relaxed);
            from.rewrite(None);
        });
        table.unlisted[writer.index] = 0;
        table.free.push(writer.index);
    }

    /// The regions in which the words of listed lanes lie, each once.
    #[must_use]
    pub fn listed_regions(&self) -> Vec<RegionId> {
        lanes::regions_of(&self.lanes)
    }

    /// The blocks, for handing to an observer or reading here.
    #[must_use]
    pub fn view(&self) -> &View<LedgerBlock> {
        &self.view
    }

    /// What was counted together, by the endpoints that were closed too; without what follows from lanes that live.
    #[must_use]
    pub fn total(&self) -> LedgerSnapshot {
        // Under the lock no block changes hands, so that nothing is counted twice or missed.
        let _table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let mut total = self.view.at(CLOSED).read();
        for index in 1..self.view.len() {
            total.add(&self.view.at(index).read());
        }
        total
    }
}

/// Takes each counter's first reason, where it has one.
fn merge_reasons(first: u64, second: u64) -> u64 {
    (0..COUNTERS).fold(0, |merged, index| {
        let reason = |word: u64| word & (0xf << (4 * index));
        merged | if reason(first) != 0 { reason(first) } else { reason(second) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn identity() -> Identity {
        Identity { endpoint: 9, service: [1, 2], role: Role::Subscriber, pid: 3 }
    }

    #[test]
    fn a_writer_that_died_while_rewriting_leaves_no_snapshot_and_the_next_one_does() {
        let block = LedgerBlock::default();
        block.rewrite(Some(identity()));
        let odd = block.sequence.load(Ordering::Relaxed) + 1;
        block.sequence.store(odd, Ordering::Relaxed);
        block.endpoint.store(77, Ordering::Relaxed);
        assert_eq!(block.snapshot(), None);
        block.rewrite(Some(identity()));
        assert_eq!(block.snapshot().map(|snapshot| *snapshot.identity()), Some(identity()));
        assert_eq!(block.sequence.load(Ordering::Relaxed), odd + 1);
    }

    #[test]
    fn the_sequence_keeps_its_parity_at_the_end_of_its_range() {
        let block = LedgerBlock::default();
        block.sequence.store(u64::MAX - 1, Ordering::Relaxed);
        block.rewrite(Some(identity()));
        assert_eq!(block.sequence.load(Ordering::Relaxed), 0);
        assert!(block.snapshot().is_some());
    }

    proptest! {
        #[test]
        fn a_block_of_arbitrary_words_is_read_and_printed_without_a_panic(
            words in proptest::collection::vec(any::<u64>(), 64),
            other in proptest::collection::vec(any::<u64>(), 64),
        ) {
            let block = |words: &[u64]| {
                let block = LedgerBlock::default();
                block.sequence.store(words[0] & !1, Ordering::Relaxed);
                block.endpoint.store(words[1], Ordering::Relaxed);
                block.role.store(words[2], Ordering::Relaxed);
                block.pid.store(words[3], Ordering::Relaxed);
                block.not_known.store(words[4], Ordering::Relaxed);
                for (word, value) in block.counts.iter().chain(&block.fallbacks).zip(&words[16..]) {
                    word.store(*value, Ordering::Relaxed);
                }
                block.snapshot().expect("an even sequence")
            };
            let (first, mut second) = (block(&words), block(&other));
            for counter in Counter::ALL {
                let nibble = words[4] >> (4 * counter as usize) & 0xf;
                prop_assert_eq!(first.count(counter).is_err(), nibble != 0);
                prop_assert_eq!(first.count(counter).map_or_else(NotKnown::number, |_| 0), nibble);
            }
            second.add(&first);
            prop_assert!(!second.since(&first).to_string().is_empty());
        }
    }
}
