//! The ledger: what every endpoint moved, copied, dropped and waited for, readable from outside the process.
//!
//! ```text
//! word   0        1..=8                          16 ..= 31              32 ..= 47            48 ..= 63
//!      +--------+------------------------------+----------------------+--------------------+----------+
//!      |sequence| endpoint service role pid .. | counts, by `Counter` | by `FallbackReason`| reserved |
//!      +--------+------------------------------+----------------------+--------------------+----------+
//!      odd while the rest is reset              one block: 512 bytes, aligned to 128; a ledger is an array of them
//! ```
//!
//! # Invariants
//! - A block has one writer, the [`LedgerWriter`] of one endpoint, which is neither `Sync` nor `Clone`. So a count is a
//!   relaxed load, an addition and a relaxed store; there is no locked instruction.
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
//! It does not create the memory (a region is given as a view), and it derives nothing: what follows from cursors is
//! read from the lane, so that a kill between two stores cannot unbalance it.

mod counter;
mod raw;
mod snapshot;

pub use counter::{COUNTERS, Counter, FallbackReason, NotKnown, REASONS, Role};
pub use snapshot::{CopiedPerByte, LedgerSnapshot};

use core::cell::Cell;
use core::marker::PhantomData;
use core::mem::offset_of;
use std::sync::{Arc, Mutex, PoisonError};

use zcmi_ring::View;
use zcmi_ring::sync::{AtomicU64, Ordering, fence};

/// How often a reader looks again at a block whose identity is being rewritten, before it says so.
const SNAPSHOT_TRIES: usize = 16;

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
    reserved: [AtomicU64; 16],
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
    assert!(offset_of!(LedgerBlock, reserved) == 384);
    // 7 single words, and the arrays: with 512 bytes in all there is no padding.
    assert!(8 * (1 + 1 + 2 + 1 + 1 + 1 + 9 + 16 + REASONS + 16) == 512);
    assert!(COUNTERS <= 16, "a counter has a word");
    assert!(COUNTERS * 4 <= 64, "a counter has four bits of `not_known`");
};

impl Default for LedgerBlock {
    fn default() -> Self {
        let zeros = || [const { AtomicU64::new(0) }; 16];
        Self {
            sequence: AtomicU64::new(0),
            endpoint: AtomicU64::new(0),
            service: [const { AtomicU64::new(0) }; 2],
            role: AtomicU64::new(0),
            pid: AtomicU64::new(0),
            not_known: AtomicU64::new(0),
            reserved_identity: [const { AtomicU64::new(0) }; 9],
            counts: zeros(),
            fallbacks: zeros(),
            reserved: zeros(),
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
            let before = self.sequence.load(Ordering::Relaxed);
            if before % 2 == 1 {
                zcmi_ring::sync::spin_loop();
                continue;
            }
            // L1 (Acquire): the words read below are at least as new as this sequence. Pairs with L1 in `rewrite`.
            fence(Ordering::Acquire);
            let snapshot = self.read();
            // L1 (Acquire): if any word read above came from a later rewriting, the sequence read below has moved too.
            fence(Ordering::Acquire);
            if self.sequence.load(Ordering::Relaxed) == before {
                return Some(snapshot);
            }
        }
        None
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
        // A process that died in here left an odd sequence; going on from it keeps the parity right.
        let odd = self.sequence.load(Ordering::Relaxed) | 1;
        self.sequence.store(odd, Ordering::Relaxed);
        // L1 (Release): whoever sees a word stored below sees the odd sequence. Pairs with L1 in `snapshot`.
        fence(Ordering::Release);
        let identity = identity.unwrap_or(Identity { endpoint: 0, service: [0; 2], role: Role::Unused, pid: 0 });
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
        // L1 (Release): whoever sees the even sequence sees all words stored above.
        self.sequence.store(odd.wrapping_add(1), Ordering::Release);
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
/// Dropping it stores nothing, since after a fork the memory is not there any more; the counts simply stay. Give the
/// block back with [`Ledger::close`].
#[derive(Debug)]
pub struct LedgerWriter {
    view: View<LedgerBlock>,
    index: usize,
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
        Self { view, index, single: PhantomData }
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

    /// Counts `more` of something.
    #[inline]
    pub fn add(&self, counter: Counter, more: u64) {
        add(&self.block().counts[counter as usize], more);
    }

    /// Counts one message that was delivered without a copy.
    #[inline]
    pub fn delivered(&self, bytes: u64) {
        self.delivered_batch(1, bytes);
    }

    /// Counts messages that were delivered, and the bytes of all of them.
    #[inline]
    pub fn delivered_batch(&self, messages: u64, bytes: u64) {
        let block = self.block();
        add(&block.counts[Counter::Messages as usize], messages);
        add(&block.counts[Counter::BytesDelivered as usize], bytes);
    }

    /// Counts one retreat from the best path.
    #[inline]
    pub fn fallback(&self, reason: FallbackReason) {
        add(&self.block().fallbacks[reason as usize], 1);
    }

    /// Says that a count cannot be known, and why; none says that it can.
    pub fn set_not_known(&self, counter: Counter, reason: Option<NotKnown>) {
        let word = &self.block().not_known;
        let shift = 4 * counter as usize;
        let others = word.load(Ordering::Relaxed) & !(0xf << shift);
        word.store(others | (reason.map_or(0, NotKnown::number) << shift), Ordering::Relaxed);
    }
}

/// Why an endpoint got no block.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LedgerError {
    /// Every block is in use.
    #[error("all {blocks} blocks of the ledger are in use; create it with more or close an endpoint")]
    Full {
        /// The number of blocks that endpoints may have.
        blocks: usize,
    },
    /// The memory has no room for any endpoint.
    #[error("a ledger of {blocks} blocks has no room for an endpoint; it takes 2 or more")]
    TooSmall {
        /// The number of blocks in the view.
        blocks: usize,
    },
}

/// A process's table of blocks: block 0 holds the sums of the endpoints that were closed, the others one endpoint each.
#[derive(Debug)]
pub struct Ledger {
    view: View<LedgerBlock>,
    table: Mutex<Table>,
}

/// The private bookkeeping; its lock also makes the writer of block 0 a single one.
#[derive(Debug)]
struct Table {
    free: Vec<usize>,
    closed: LedgerWriter,
}

impl Ledger {
    /// Makes the ledger of process `pid` in memory that only this process writes; every block starts unused.
    ///
    /// # Errors
    /// [`LedgerError::TooSmall`] if the view has fewer than two blocks.
    pub fn new(view: View<LedgerBlock>, pid: u32) -> Result<Arc<Self>, LedgerError> {
        if view.len() < 2 {
            return Err(LedgerError::TooSmall { blocks: view.len() });
        }
        for index in 1..view.len() {
            view.at(index).rewrite(None);
        }
        let sums = Identity { endpoint: 0, service: [0; 2], role: Role::Closed, pid };
        let closed = LedgerWriter::new(view.clone(), 0, sums);
        let free = (1..view.len()).rev().collect();
        Ok(Arc::new(Self { view, table: Mutex::new(Table { free, closed }) }))
    }

    /// Gives an endpoint a block of its own.
    ///
    /// # Errors
    /// [`LedgerError::Full`] if there is none left.
    pub fn open(&self, identity: Identity) -> Result<LedgerWriter, LedgerError> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let index = table.free.pop().ok_or(LedgerError::Full { blocks: self.view.len() - 1 })?;
        Ok(LedgerWriter::new(self.view.clone(), index, identity))
    }

    /// Takes an endpoint's block back and keeps its counts in the sums of the closed ones.
    ///
    /// An observer that looks between the two stores of a count sees it twice for a moment, never less than before.
    ///
    /// # Panics
    /// If `writer` is not of this ledger.
    pub fn close(&self, writer: LedgerWriter) {
        assert!(
            writer.index > 0 && core::ptr::eq(writer.block(), self.view.at(writer.index)),
            "the writer of block {} belongs to another ledger",
            writer.index
        );
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let (from, to) = (writer.block(), table.closed.block());
        let words = from.counts.iter().chain(&from.fallbacks);
        for (word, sum) in words.zip(to.counts.iter().chain(&to.fallbacks)) {
            add(sum, word.load(Ordering::Relaxed));
        }
        // A sum with an unknown part is unknown.
        let not_known = merge_reasons(to.not_known.load(Ordering::Relaxed), from.not_known.load(Ordering::Relaxed));
        to.not_known.store(not_known, Ordering::Relaxed);
        from.rewrite(None);
        table.free.push(writer.index);
    }

    /// The blocks, for handing to an observer or reading here.
    #[must_use]
    pub fn view(&self) -> &View<LedgerBlock> {
        &self.view
    }

    /// What all endpoints counted together, those closed included.
    #[must_use]
    pub fn total(&self) -> LedgerSnapshot {
        // Under the lock no block changes hands, so that nothing is counted twice or missed.
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let mut total = table.closed.block().read();
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
