//! The publisher's side of a lane.
//!
//! A [`Writer`] owns everything that decides reuse: who reads, what each reader said last, which slot lies under which
//! sequence. It trusts nothing a reader wrote: a cursor that goes back or past the tail, or a hold on a sequence that
//! cannot be held, ends that reader ([`Writer::take_rogues`]).
//!
//! # Invariants
//! - A sequence `s` is written only while `s < retired + capacity`: `retired > q` is stored before `q`'s entry is
//!   overwritten or its slot is freed.
//! - A slot under `q` is freed only when every reliable reader's cursor and `released` are above `q` and no reader
//!   holds `q`.
//!
//! # Edges
//! - P1 (release): a stamp publishes its entry and, through it, the payload. Pairs with C1 in
//!   [`Reader`](crate::Reader).
//! - R1 (release fence): `retired` before the entries overwritten after it. Pairs with C2, a reader's second look.
//! - R2 (`SeqCst` fence): `retired` before the holds are looked at. Pairs with C3, a reader's hold before its second
//!   look.
//! - A1 (acquire): cursors and holds of readers. Pairs with C4 and C5: the last read of a slot happens before its
//!   reuse.
//! - W2, W4 (`SeqCst` fence): `want_room` before the readers are asked once more. Pairs with W1 and W3.
//! - E1 (release): the last stamp before the word that says that the lane ended. Pairs with E2 in
//!   [`Reader`](crate::Reader).

use crate::hold::Notify;
use crate::layout::{
    Entry, HOLD_IN_KERNEL, HOLDS, Head, INLINE_WORDS, Kind, LaneControl, READERS, RawDescriptor, ReaderBlock,
    SEQUENCE_END, UNSET,
};
use crate::raw::{Ring, Single, View};
use crate::sync::{Ordering, fence};
use core::fmt;

/// Marks a ring position that carries no slot.
const NO_SLOT: u32 = u32::MAX;

/// What one reader of a lane may demand of its publisher.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Policy {
    /// The publisher waits for this reader (or refuses the newest message).
    Reliable,
    /// The reader is overtaken: it loses the oldest messages, counted.
    DropOldest,
}

/// Place of a reader in the publisher's table: 0 to 63, also its bit in the wake word.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ReaderIndex(pub u8);

/// What a reader did that no honest reader does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Rogue {
    /// The cursor went back, past the tail, or to "unset" again.
    #[error("its cursor went from {before} to {now} in a lane whose tail is {tail}")]
    Cursor {
        /// What was seen before.
        before: u64,
        /// What is claimed now.
        now: u64,
        /// The lane's tail.
        tail: u64,
    },
    /// A hold on a sequence below the reader's start or not yet published.
    #[error("it holds sequence {sequence} of a lane that it reads from {start} and whose tail is {tail}")]
    Hold {
        /// The sequence that is claimed to be held.
        sequence: u64,
        /// The reader's start.
        start: u64,
        /// The lane's tail.
        tail: u64,
    },
}

/// Why a message could not be published.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublishRefused {
    /// Every entry is still wanted by a reliable reader.
    #[error("the ring of {capacity} entries is full")]
    Full {
        /// Entries in the ring.
        capacity: u64,
    },
    /// The lane came to its last sequence; a new publisher starts a new one.
    #[error("the lane has ended at sequence {sequence}")]
    Ended {
        /// The sequence that would have been next.
        sequence: u64,
    },
}

/// Why a reader could not be added.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AddReaderError {
    /// All places are taken.
    #[error("the lane already has {READERS} readers")]
    TooMany,
    /// The lane takes no new reader once it ended.
    #[error("the lane has ended at sequence {sequence}")]
    Ended {
        /// The sequence at which it ended.
        sequence: u64,
    },
}

/// How a [`Writer`] is set up.
#[derive(Clone, Copy, Debug)]
pub struct WriterOptions {
    /// The first sequence, 0 but in tests.
    pub start: u64,
    /// One past the last sequence, [`SEQUENCE_END`] but in tests.
    pub end: u64,
    /// How many past messages a late reader gets, at most the capacity.
    pub history: u64,
    /// Whether messages may carry slots.
    pub slots: bool,
}

impl Default for WriterOptions {
    fn default() -> Self {
        Self { start: 0, end: SEQUENCE_END, history: 0, slots: true }
    }
}

#[derive(Debug)]
struct ReaderState {
    index: ReaderIndex,
    block: View<ReaderBlock>,
    policy: Policy,
    start: u64,
    /// The last cursor seen, or the start.
    seen: u64,
    /// What the reader was last seen done with: below its cursor where it reads in place.
    done: u64,
    started: bool,
    may_park: bool,
    /// How many of its hold words count: as many as it was granted, from the first on.
    holds: usize,
}

#[derive(Clone, Copy, Debug)]
struct Kept {
    sequence: u64,
    slot: u32,
}

/// Whom to tell of rogues.
struct OnRogue(Option<Notify>);

impl fmt::Debug for OnRogue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OnRogue").field(&self.0.is_some()).finish()
    }
}

/// The publisher's side of a lane. See the module's documentation.
#[derive(Debug)]
pub struct Writer {
    ring: Ring,
    tail: u64,
    /// Messages may be written below this.
    limit: u64,
    /// The tail at which the readers are asked before there is need; see [`ask_is_due`](Self::ask_is_due).
    ask_at: u64,
    control: Single<LaneControl>,
    retired: u64,
    /// Everything below was freed or is in `kept`.
    reclaimed: u64,
    end: u64,
    history: u64,
    /// Slot under each ring position; empty when the lane carries none.
    slots: Box<[u32]>,
    kept: Vec<Kept>,
    /// Sequences whose slots the kernel may still read for a reader that is gone.
    quarantined: Vec<u64>,
    readers: Vec<ReaderState>,
    rogues: Vec<(ReaderIndex, Rogue)>,
    on_rogue: OnRogue,
    drop_oldest: usize,
    parkers: u64,
    held: Vec<u64>,
    first: u64,
}

impl Writer {
    /// Begins a lane on a fresh ring and control line of the caller's own region.
    ///
    /// # Panics
    /// If the options contradict each other: they are the caller's own.
    #[must_use]
    pub fn new(ring: Ring, control: View<LaneControl>, options: WriterOptions) -> Self {
        let capacity = ring.capacity();
        assert!(options.end <= SEQUENCE_END && options.start <= options.end, "sequences {options:?} are out of range");
        assert!(options.history <= capacity, "history {} exceeds capacity {capacity}", options.history);
        let slots = if options.slots { vec![NO_SLOT; capacity as usize].into() } else { Box::default() };
        let control = Single::first_of(control);
        control.retired.store(options.start, Ordering::Relaxed);
        Self {
            ring,
            tail: options.start,
            limit: (options.start + capacity).min(options.end),
            ask_at: ask_at(options.start, (options.start + capacity).min(options.end)),
            control,
            retired: options.start,
            reclaimed: options.start,
            end: options.end,
            history: options.history,
            slots,
            kept: Vec::with_capacity(READERS * HOLDS),
            quarantined: Vec::new(),
            readers: Vec::with_capacity(READERS),
            rogues: Vec::with_capacity(READERS),
            on_rogue: OnRogue(None),
            drop_oldest: 0,
            parkers: 0,
            held: Vec::with_capacity(READERS * HOLDS),
            first: options.start,
        }
    }

    /// The next sequence to be published.
    #[inline(always)]
    #[must_use]
    pub fn tail(&self) -> u64 {
        self.tail
    }

    /// Entries in the ring.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.ring.capacity()
    }

    /// The control line.
    #[must_use]
    pub fn control(&self) -> &LaneControl {
        &self.control
    }

    /// How many readers are live.
    #[must_use]
    pub fn reader_count(&self) -> usize {
        self.readers.len()
    }

    /// The bits of readers that may be parked; 0 means that no fence and no look at the wake word is due.
    #[inline]
    #[must_use]
    pub fn parkers(&self) -> u64 {
        self.parkers
    }

    /// Whether this is the time to [`reclaim`](Self::reclaim) before there is need: half of the room that was known is
    /// used up. Whoever does so behind a message, when its readers have it already, spares a later message the wait for
    /// the readers' answer.
    ///
    /// Due once for each answer, and not where the answer left room for fewer than 16 messages: it would come with
    /// every few of them.
    #[inline(always)]
    #[must_use]
    pub fn ask_is_due(&self) -> bool {
        self.tail == self.ask_at
    }

    /// Whether the next message can be written now, after asking the readers if need be; freed slots go to `free`.
    ///
    /// # Errors
    /// [`PublishRefused`] when a reliable reader is a whole ring behind, or the lane is at its end.
    #[inline(always)]
    pub fn reserve(&mut self, free: &mut impl FnMut(u32)) -> Result<(), PublishRefused> {
        if self.tail < self.limit { Ok(()) } else { self.reserve_slow(free) }
    }

    #[cold]
    #[inline(never)]
    fn reserve_slow(&mut self, free: &mut impl FnMut(u32)) -> Result<(), PublishRefused> {
        if self.tail >= self.end {
            return Err(PublishRefused::Ended { sequence: self.tail });
        }
        self.reclaim(free);
        if self.tail < self.limit { Ok(()) } else { Err(PublishRefused::Full { capacity: self.capacity() }) }
    }

    /// Publishes `WORDS` words that lie in the entry itself. Room must have been [reserved](Self::reserve).
    ///
    /// # Panics
    /// If no room was reserved.
    #[inline(always)]
    pub fn publish_inline<const WORDS: usize>(&mut self, bytes: u32, words: &[u64; WORDS]) -> u64 {
        const { assert!(WORDS <= INLINE_WORDS) };
        let sequence = self.stage_inline(0, bytes, words);
        self.commit(1);
        sequence
    }

    /// Publishes a slot by its descriptor. Room must have been [reserved](Self::reserve).
    ///
    /// # Panics
    /// If no room was reserved, or the lane was made without slots.
    #[inline(always)]
    pub fn publish_slot(&mut self, slot: RawDescriptor, bytes: u32) -> u64 {
        self.publish_slots(&[slot], bytes)
    }

    /// Publishes a slot if there is room without asking the readers: [`reserve`](Self::reserve) and
    /// [`publish_slot`](Self::publish_slot) in one straight step. `None` says that nothing was done.
    #[inline(always)]
    pub fn publish_slot_at_once(&mut self, slot: RawDescriptor, bytes: u32) -> Option<u64> {
        let sequence = self.tail;
        if sequence >= self.limit {
            return None;
        }
        let place = self.slots.get_mut(self.ring.position(sequence))?;
        *place = slot.token();
        Some(self.write_and_stamp(sequence, Head::new(Kind::Slot, bytes), &[u64::from(slot.token())]))
    }

    /// As [`publish_slot_at_once`](Self::publish_slot_at_once), for words that lie in the entry itself.
    #[inline(always)]
    pub fn publish_inline_at_once<const WORDS: usize>(&mut self, bytes: u32, words: &[u64; WORDS]) -> Option<u64> {
        const { assert!(WORDS <= INLINE_WORDS) };
        let sequence = self.tail;
        if sequence >= self.limit {
            return None;
        }
        Some(self.write_and_stamp(sequence, Head::new(Kind::Inline, bytes), words))
    }

    #[inline(always)]
    fn write_and_stamp<const WORDS: usize>(&mut self, sequence: u64, head: Head, words: &[u64; WORDS]) -> u64 {
        self.tail = sequence + 1;
        let entry = self.ring.entry(sequence);
        for (to, from) in entry.body.iter().zip(words) {
            to.store(*from, Ordering::Relaxed);
        }
        entry.head.store(head.0, Ordering::Relaxed);
        // P1 (release): publishes the entry and the payload written before. Pairs with C1 in `Reader`.
        entry.stamp.store(sequence + 1, Ordering::Release);
        sequence
    }

    /// Writes the entry of the `ahead`-th message after the tail without its stamp: nobody sees it before
    /// [`commit`](Self::commit).
    ///
    /// # Panics
    /// If that entry is not free.
    #[inline(always)]
    pub fn stage_inline<const WORDS: usize>(&mut self, ahead: u64, bytes: u32, words: &[u64; WORDS]) -> u64 {
        const { assert!(WORDS <= INLINE_WORDS) };
        let sequence = self.tail + ahead;
        assert!(sequence < self.limit, "entry {sequence} was not reserved");
        // The position carries no slot: reclaiming cleared it before the entry became free.
        self.write(sequence, Head::new(Kind::Inline, bytes), words);
        sequence
    }

    /// As [`stage_inline`](Self::stage_inline), for a slot.
    ///
    /// # Panics
    /// If that entry is not free, or the lane was made without slots.
    #[inline(always)]
    pub fn stage_slot(&mut self, ahead: u64, slot: RawDescriptor, bytes: u32) -> u64 {
        let sequence = self.tail + ahead;
        assert!(sequence < self.limit, "entry {sequence} was not reserved");
        self.set_slot(sequence, slot.token());
        self.write(sequence, Head::new(Kind::Slot, bytes), &[u64::from(slot.token())]);
        sequence
    }

    /// Publishes slots of `bytes` bytes each by their descriptors, all or none: stamps are stored last to first, so
    /// that whoever sees the first sees all. Returns the sequence of the first.
    ///
    /// # Panics
    /// If there is no [room](Self::room) for so many, or the lane was made without slots.
    #[inline(always)]
    pub fn publish_slots(&mut self, slots: &[RawDescriptor], bytes: u32) -> u64 {
        let (first, count) = (self.tail, slots.len() as u64);
        assert!(count <= self.room(), "{count} entries from {first} on were not reserved");
        let head = Head::new(Kind::Slot, bytes);
        for (ahead, slot) in slots.iter().enumerate().rev() {
            let sequence = first + ahead as u64;
            self.set_slot(sequence, slot.token());
            self.write(sequence, head, &[u64::from(slot.token())]);
            // P1 (release): publishes the entry and the payload written before. Pairs with C1 in `Reader`.
            self.ring.entry(sequence).stamp.store(sequence + 1, Ordering::Release);
        }
        self.tail = first + count;
        first
    }

    /// Says to the readers that the publisher waits for room. It asks them once more after this, and only then waits.
    pub fn want_room(&self) {
        self.control.want_room.store(self.tail + 1, Ordering::Relaxed);
        // W2 (SeqCst): the want is stored before the readers' cursors are asked again. Pairs with W1 in
        // `Reader::look_for_want`. W4 (SeqCst): and before their holds are. Pairs with W3 in `Hold`.
        fence(Ordering::SeqCst);
    }

    /// Takes [`want_room`](Self::want_room) back.
    pub fn withdraw_want(&self) {
        self.control.want_room.store(0, Ordering::Relaxed);
    }

    /// Counts a message that was refused because there was no room.
    pub fn count_refused(&self) {
        let counter = &self.control.refused;
        counter.store(counter.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// How many messages can be staged without asking the readers again.
    #[inline(always)]
    #[must_use]
    pub fn room(&self) -> u64 {
        self.limit - self.tail
    }

    /// Makes `count` staged messages visible, all or none: stamps are stored last to first, so that whoever sees the
    /// first sees all.
    #[inline(always)]
    pub fn commit(&mut self, count: u64) {
        debug_assert!(count <= self.room());
        for ahead in (0..count).rev() {
            let sequence = self.tail + ahead;
            // P1 (release): publishes the entry and the payload written before. Pairs with C1 in `Reader`.
            self.ring.entry(sequence).stamp.store(sequence + 1, Ordering::Release);
        }
        self.tail += count;
    }

    /// Adds to the lane's count of published bytes; once a batch is enough.
    #[inline]
    pub fn count_bytes(&self, bytes: u64) {
        let counter = &self.control.published_bytes;
        counter.store(counter.load(Ordering::Relaxed).wrapping_add(bytes), Ordering::Relaxed);
    }

    /// Publishes the graceful end as a message of its own, and [ends](Self::end) the lane after it. Room must have been
    /// [reserved](Self::reserve). Returns the message's sequence.
    ///
    /// # Panics
    /// If no room was reserved.
    pub fn publish_end(&mut self) -> u64 {
        let sequence = self.tail;
        assert!(sequence < self.limit, "entry {sequence} was not reserved");
        if !self.slots.is_empty() {
            self.set_slot(sequence, NO_SLOT);
        }
        self.write(sequence, Head::new(Kind::End, 0), &[]);
        self.commit(1);
        self.end();
        sequence
    }

    /// Ends the lane in good order: what is published stays readable, nothing follows, and every reader can see so even
    /// after this process is gone. Returns the sequence at which it ended.
    pub fn end(&mut self) -> u64 {
        self.end = self.tail;
        self.limit = self.tail;
        // E1 (release): whoever sees the end sees every stamp before it. Pairs with E2 in `Reader::ended_at`.
        self.control.ended.store(self.tail + 1, Ordering::Release);
        self.tail
    }

    #[inline(always)]
    fn set_slot(&mut self, sequence: u64, slot: u32) {
        let position = self.ring.position(sequence);
        self.slots[position] = slot;
    }

    #[inline(always)]
    fn write<const WORDS: usize>(&self, sequence: u64, head: Head, words: &[u64; WORDS]) {
        let entry: &Entry = self.ring.entry(sequence);
        for (to, from) in entry.body.iter().zip(words) {
            to.store(*from, Ordering::Relaxed);
        }
        entry.head.store(head.0, Ordering::Relaxed);
    }

    /// Asks the readers how far they are, retires what all are done with, and hands every slot that nobody may read any
    /// more to `free`.
    ///
    /// Costs a few loads per reader; the hot path calls it only when room or slots ran out.
    #[inline(never)]
    pub fn reclaim(&mut self, free: &mut impl FnMut(u32)) {
        let mut oldest = self.tail;
        let mut rogues = core::mem::take(&mut self.rogues);
        let known = rogues.len();
        for reader in &mut self.readers {
            match reader.look(self.tail) {
                Ok(position) if reader.policy == Policy::Reliable => oldest = oldest.min(position),
                Ok(_) => {}
                Err(rogue) => rogues.push((reader.index, rogue)),
            }
        }
        self.rogues = rogues;
        self.drop_rogues(known);
        self.retire(oldest);
        self.free_below_retired(free);
    }

    /// Chooses what to retire and says so before anything below is overwritten or freed.
    fn retire(&mut self, oldest: u64) {
        let capacity = self.capacity();
        // Readers that may be overtaken keep as much of the ring as leaves room for a batch; history is a reader that
        // never blocks.
        let batch = if self.drop_oldest > 0 { (capacity / 16).max(1) } else { 1 };
        let keep = if self.drop_oldest > 0 { self.history.max(capacity - batch) } else { self.history };
        let mut target = oldest.min(self.tail.saturating_sub(keep).max(self.first));
        if target + capacity <= self.tail {
            target = oldest.min(self.tail - capacity + batch);
        }
        if target <= self.retired {
            return;
        }
        self.retired = target;
        self.control.retired.store(target, Ordering::Relaxed);
        // R1 (release): whoever reads a word of an entry written after this reads `retired` at least as large. Pairs
        // with C2.
        fence(Ordering::Release);
        if self.drop_oldest > 0 {
            // R2 (SeqCst): either the reader's second look sees this `retired`, or we see its hold below. Pairs with
            // C3.
            fence(Ordering::SeqCst);
        }
        self.limit = (target + capacity).min(self.end).max(self.tail);
        self.ask_at = ask_at(self.tail, self.limit);
    }

    fn free_below_retired(&mut self, free: &mut impl FnMut(u32)) {
        if self.slots.is_empty() || (self.reclaimed == self.retired && self.kept.is_empty()) {
            self.reclaimed = self.retired;
            return;
        }
        self.collect_holds();
        let held = &self.held;
        self.kept.retain(|kept| {
            let stays = held.binary_search(&kept.sequence).is_ok();
            if !stays {
                free(kept.slot);
            }
            stays
        });
        // At most one ring, in the two parts in which it lies in memory.
        while self.reclaimed < self.retired {
            let first = self.reclaimed;
            let position = self.ring.position(first);
            let end = (position + (self.retired - first) as usize).min(self.slots.len());
            let part = &mut self.slots[position..end];
            if held.is_empty() {
                for slot in part.iter_mut() {
                    let slot = core::mem::replace(slot, NO_SLOT);
                    if slot != NO_SLOT {
                        free(slot);
                    }
                }
            } else {
                for (sequence, slot) in (first..).zip(part.iter_mut()) {
                    let slot = core::mem::replace(slot, NO_SLOT);
                    if slot == NO_SLOT {
                        continue;
                    }
                    if held.binary_search(&sequence).is_err() {
                        free(slot);
                    } else {
                        self.kept.push(Kept { sequence, slot });
                    }
                }
            }
            self.reclaimed += (end - position) as u64;
        }
    }

    /// Gathers every sequence held by a live reader or quarantined, sorted.
    fn collect_holds(&mut self) {
        self.held.clear();
        let mut rogues = core::mem::take(&mut self.rogues);
        let known = rogues.len();
        for reader in &self.readers {
            match reader.holds(self.tail, &mut self.held) {
                Ok(()) => {}
                Err(rogue) => rogues.push((reader.index, rogue)),
            }
        }
        self.rogues = rogues;
        self.drop_rogues(known);
        // Last, because a rogue that was just dropped may have left something in quarantine.
        self.held.extend(&self.quarantined);
        self.held.sort_unstable();
    }

    /// Ends the rogues from `known` on; those before were ended when they were found.
    fn drop_rogues(&mut self, known: usize) {
        for at in known..self.rogues.len() {
            let (index, _) = self.rogues[at];
            self.remove_reader(index);
        }
        if self.rogues.len() > known
            && let Some(notify) = &self.on_rogue.0
        {
            notify();
        }
    }

    /// Has `notify` called whenever readers were ended because of what they claimed: [`take_rogues`](Self::take_rogues)
    /// is due then. It is called by whoever asks the readers, in the seat, so it must not take the seat itself.
    pub fn tell_of_rogues(&mut self, notify: Notify) {
        self.on_rogue = OnRogue(Some(notify));
    }

    /// The readers that were ended because of what they claimed, since the last call. Their places are given to new
    /// readers only after this call, so that an index means one reader at a time.
    pub fn take_rogues(&mut self) -> Vec<(ReaderIndex, Rogue)> {
        core::mem::take(&mut self.rogues)
    }

    /// Adds a reader, which begins with the retained history. In the seat only.
    ///
    /// Of its words for holds the first `holds` count, as many as slots were set aside for it; what it marks in the
    /// others keeps nothing, so that a reader that holds more than it was granted harms itself alone.
    ///
    /// # Errors
    /// [`AddReaderError`] when all places are taken or the lane ended.
    pub fn add_reader(
        &mut self,
        block: View<ReaderBlock>,
        policy: Policy,
        history: u64,
        holds: usize,
    ) -> Result<(ReaderIndex, u64), AddReaderError> {
        if self.tail >= self.end {
            return Err(AddReaderError::Ended { sequence: self.tail });
        }
        let live = self.readers.iter().fold(0u64, |bits, reader| bits | 1 << reader.index.0);
        let used = self.rogues.iter().fold(live, |bits, (index, _)| bits | 1 << index.0);
        let index = (!used).trailing_zeros() as u8;
        if usize::from(index) >= READERS {
            return Err(AddReaderError::TooMany);
        }
        let index = ReaderIndex(index);
        let wanted = self.tail.saturating_sub(history.min(self.history));
        let start = wanted.max(self.retired);
        self.drop_oldest += usize::from(policy == Policy::DropOldest);
        self.readers.push(ReaderState {
            index,
            block,
            policy,
            start,
            seen: start,
            done: start,
            started: false,
            may_park: false,
            holds: holds.min(HOLDS),
        });
        Ok((index, start))
    }

    /// Forgets a reader that left or died: its cursor and holds no longer count, except holds marked *in kernel*. In
    /// the seat only.
    ///
    /// Returns whether it was there.
    pub fn remove_reader(&mut self, index: ReaderIndex) -> bool {
        let Some(at) = self.readers.iter().position(|reader| reader.index == index) else { return false };
        let reader = self.readers.swap_remove(at);
        self.drop_oldest -= usize::from(reader.policy == Policy::DropOldest);
        self.parkers &= !(1 << index.0);
        let block = reader.block.at(0);
        for hold in &block.held[..reader.holds] {
            let hold = hold.load(Ordering::Relaxed);
            let sequence = (hold & !HOLD_IN_KERNEL).wrapping_sub(1);
            let lawful = hold & HOLD_IN_KERNEL != 0 && (reader.start..self.tail).contains(&sequence);
            if lawful && self.carries_slot(sequence) && !self.quarantined.contains(&sequence) {
                self.quarantined.push(sequence);
            }
        }
        true
    }

    /// How many slots are kept for the lane's life because the kernel may still read them for a reader that is gone.
    #[must_use]
    pub fn quarantined(&self) -> usize {
        self.quarantined.len()
    }

    /// Whether a slot lies under this published sequence and was not freed. So the quarantine never outgrows the pool.
    fn carries_slot(&self, sequence: u64) -> bool {
        if sequence < self.reclaimed {
            return self.kept.iter().any(|kept| kept.sequence == sequence);
        }
        self.slots.get(sequence as usize & self.slots.len().wrapping_sub(1)).is_some_and(|&slot| slot != NO_SLOT)
    }

    /// Notes that the reader may park from now on, so that each publish looks at the wake word. In the seat only.
    pub fn set_may_park(&mut self, index: ReaderIndex) -> bool {
        let Some(reader) = self.readers.iter_mut().find(|reader| reader.index == index) else { return false };
        reader.may_park = true;
        self.parkers |= 1 << index.0;
        true
    }

    /// Notes that the reader is awake and is not looked for until it [parks](Self::set_may_park) again. In the seat
    /// only.
    pub fn clear_may_park(&mut self, index: ReaderIndex) {
        if let Some(reader) = self.readers.iter_mut().find(|reader| reader.index == index) {
            reader.may_park = false;
            self.parkers &= !(1 << index.0);
        }
    }

    /// Notes that the reader reads no more and only keeps what it holds: nobody waits for its cursor from now on. In
    /// the seat only.
    ///
    /// Returns whether it was there.
    pub fn stop_reading(&mut self, index: ReaderIndex) -> bool {
        let Some(reader) = self.readers.iter_mut().find(|reader| reader.index == index) else { return false };
        // What it holds counts as that of any reader that is passed by.
        if reader.policy == Policy::Reliable {
            reader.policy = Policy::DropOldest;
            self.drop_oldest += 1;
        }
        reader.may_park = false;
        self.parkers &= !(1 << index.0);
        true
    }

    /// The reliable reader that was last seen furthest behind, and below which sequence it was done with everything:
    /// whom a full ring waits for.
    #[must_use]
    pub fn slowest(&self) -> Option<(ReaderIndex, u64)> {
        self.readers
            .iter()
            .filter(|reader| reader.policy == Policy::Reliable)
            .map(|reader| (reader.index, reader.done))
            .min_by_key(|&(_, done)| done)
    }

    /// Whether every reliable reader has received everything, after asking them.
    pub fn all_received(&mut self, free: &mut impl FnMut(u32)) -> bool {
        self.reclaim(free);
        self.readers.iter().all(|reader| reader.policy != Policy::Reliable || reader.seen >= self.tail)
    }
}

/// The tail at which half of the room between a tail and its limit is left; none where there is little.
fn ask_at(tail: u64, limit: u64) -> u64 {
    const LITTLE: u64 = 16;
    let room = limit - tail;
    if room < LITTLE { u64::MAX } else { limit - room / 2 }
}

impl ReaderState {
    /// Loads how far the reader is, and checks the claim. Returns the sequence below which it wants nothing more.
    fn look(&mut self, tail: u64) -> Result<u64, Rogue> {
        let block = self.block.at(0);
        let claim = block.cursor.load(Ordering::Relaxed);
        // A1 (acquire): the reader's last read of what lies below its cursor happened before we reuse it. Pairs with
        // C4.
        fence(Ordering::Acquire);
        let cursor = if claim == UNSET && !self.started { self.start } else { claim };
        if cursor < self.seen || cursor > tail {
            return Err(Rogue::Cursor { before: self.seen, now: claim, tail });
        }
        self.started |= claim != UNSET;
        self.seen = cursor;
        let released = block.released.load(Ordering::Relaxed);
        // A1 (acquire): as above, for what an in-place reader released.
        fence(Ordering::Acquire);
        // A `released` below the start can only be a lie that blocks; it is taken at its word and named as the slowest.
        self.done = cursor.min(released);
        Ok(self.done)
    }

    /// Adds the sequences this reader holds. The cursor was looked at before, so no hold below it is missed.
    fn holds(&self, tail: u64, held: &mut Vec<u64>) -> Result<(), Rogue> {
        for hold in &self.block.at(0).held[..self.holds] {
            let claim = hold.load(Ordering::Relaxed) & !HOLD_IN_KERNEL;
            // A1 (acquire): a hold that is gone was dropped after the last read of its slot. Pairs with C5.
            fence(Ordering::Acquire);
            if claim == 0 {
                continue;
            }
            let sequence = claim - 1;
            if sequence < self.start || sequence >= tail {
                return Err(Rogue::Hold { sequence, start: self.start, tail });
            }
            held.push(sequence);
        }
        Ok(())
    }
}
