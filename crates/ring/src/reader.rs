//! The subscriber's side of a lane.
//!
//! A [`Reader`] trusts nothing the publisher wrote: a word is loaded once into a local, checked, and used only as the
//! local. It writes its own block and nothing else.
//!
//! # Edges
//! - C1 (acquire fence): a stamp that matches makes its entry and payload visible. Pairs with P1 in
//!   [`Writer`](crate::Writer).
//! - C2 (acquire fence): a reader that may be overtaken looks at `retired` after it copied the entry. Pairs with R1.
//! - C3 (`SeqCst` fence): a hold is stored before the look at `retired` that confirms it. Pairs with R2.
//! - C4 (release): a hold is visible to whoever sees the cursor past it. Pairs with A1.
//! - W1 (`SeqCst` fence): the cursor moved before `want_room` is looked at. Pairs with W2, the publisher's look after
//!   it stored it.
//! - E2 (acquire fence): the word that says that the lane ended before the stamps up to there. Pairs with E1 in
//!   `Writer::end`.

use crate::hold::{Hold, HoldTable, Orphan};
use crate::layout::{
    Head, INLINE_BYTES, INLINE_WORDS, Kind, LaneControl, Message, RawDescriptor, ReaderBlock, SEQUENCE_END,
};
use crate::raw::{Keeper, Ring, Single, View};
use crate::sync::{Ordering, fence};
use crate::writer::Policy;

/// What a publisher did that no honest publisher does; the lane is abandoned.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaneFault {
    /// A stamp past the reader's cursor on a lane that never overtakes it, or without a matching `retired`.
    #[error("the stamp says {stamp} where sequence {cursor} was due, and only what is below {retired} is retired")]
    Stamp {
        /// The stamp read.
        stamp: u64,
        /// The sequence that was due.
        cursor: u64,
        /// The publisher's `retired`.
        retired: u64,
    },
    /// An inline message longer than an entry, or a kind or length that the caller found impossible.
    #[error("the entry at sequence {sequence} has the impossible head {head:#x}")]
    Head {
        /// Its sequence.
        sequence: u64,
        /// The word.
        head: u64,
    },
    /// A descriptor with bits that must be zero.
    #[error("the descriptor at sequence {sequence} is damaged: {word:#x}")]
    Descriptor {
        /// Its sequence.
        sequence: u64,
        /// The word.
        word: u64,
    },
}

/// What a look at the lane found.
#[derive(Debug)]
pub enum Read {
    /// Nothing new.
    Empty,
    /// A message; if it carries a slot, the slot is held.
    Message {
        /// Its sequence.
        sequence: u64,
        /// Kind, length, and payload or descriptor.
        message: Message,
        /// The hold, for a slot.
        hold: Option<Hold>,
    },
    /// This many messages were overtaken and are lost; look again.
    Overtaken {
        /// How many.
        lost: u64,
    },
    /// There is a message with a slot, but as many as allowed are held already.
    TooManyHeld,
}

/// A message in a slot, as [`Reader::read_slot`] found it.
#[derive(Debug)]
pub struct SlotRead {
    /// Its sequence.
    pub sequence: u64,
    /// Its length; a claim.
    pub bytes: u32,
    /// Its descriptor; a claim.
    pub word: u64,
    /// The hold on it.
    pub hold: Hold,
}

/// The subscriber's side of a lane. See the module's documentation.
///
/// Dropping it leaks what it keeps mapped; [`retire`](Self::retire) frees.
#[derive(Debug)]
pub struct Reader {
    cursor: u64,
    ring: Ring,
    control: Single<LaneControl>,
    holds: HoldTable,
    policy: Policy,
    capacity: u64,
    /// The cursor at which `want_room` is looked at next.
    look_at: u64,
    /// What [`is_to_stop`](Self::is_to_stop) compares the cursor with: `look_at`, or 0 to stop after each message.
    stop_at: u64,
    stops_each: bool,
    /// Whether the straight ways may be used.
    straight: bool,
    look_every: u64,
    wants_room: bool,
}

impl Reader {
    /// Begins to read at `start`, and says so in the block.
    ///
    /// # Panics
    /// If `start` is past [`SEQUENCE_END`]: it comes from the publisher, and the caller refuses such a claim before.
    #[must_use]
    pub fn new(ring: Ring, control: View<LaneControl>, holds: HoldTable, policy: Policy, start: u64) -> Self {
        assert!(start <= SEQUENCE_END, "a lane cannot start at {start}");
        let capacity = ring.capacity();
        let look_every = (capacity / 4).max(1);
        let block = holds.block();
        block.start.store(start, Ordering::Relaxed);
        // C4 (release): the start is visible to whoever sees the cursor.
        block.cursor.store(start, Ordering::Release);
        Self {
            cursor: start,
            ring,
            control: Single::first_of(control),
            holds,
            policy,
            capacity,
            look_at: start + look_every,
            stop_at: start + look_every,
            stops_each: false,
            straight: policy == Policy::Reliable,
            look_every,
            wants_room: false,
        }
    }

    /// The next sequence this reader looks at.
    #[inline]
    #[must_use]
    pub fn cursor(&self) -> u64 {
        self.cursor
    }

    /// Whether this reader may be overtaken.
    #[inline]
    #[must_use]
    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// Allows or forbids the straight ways, [`read_slot`](Self::read_slot) and [`read_words`](Self::read_words):
    /// forbidden, they find nothing. A reader that may be overtaken never has them.
    pub fn set_straight(&mut self, allowed: bool) {
        self.straight = allowed && self.policy == Policy::Reliable;
    }

    /// This reader's own block.
    #[must_use]
    pub fn block(&self) -> &ReaderBlock {
        self.holds.block()
    }

    /// Keeps one more mapping alive as long as the reader or anything it holds lives.
    pub fn keep(&mut self, keeper: Keeper) {
        self.holds.keep(keeper);
    }

    /// Whether a message is there.
    #[inline(always)]
    #[must_use]
    pub fn has_message(&self) -> bool {
        self.ring.entry(self.cursor).stamp.load(Ordering::Relaxed) > self.cursor
    }

    /// Looks for places for holds while there is nothing to read, so that the next message need not wait for that.
    #[inline]
    pub fn refill_holds(&mut self) {
        self.holds.refill();
    }

    /// Looks for the next message. A message with a slot is held until its [`Hold`] is dropped.
    ///
    /// # Errors
    /// [`LaneFault`] if the publisher wrote what cannot be.
    #[inline]
    pub fn read(&mut self) -> Result<Read, LaneFault> {
        let sequence = self.cursor;
        let message = match self.copy_entry(sequence) {
            Ok(message) => message,
            Err(stamp) => return self.read_other(stamp),
        };
        if self.policy == Policy::DropOldest {
            // C2 (acquire): if a word above was overwritten, `retired` is seen past it. Pairs with R1.
            fence(Ordering::Acquire);
            let retired = self.control.retired.load(Ordering::Relaxed);
            if retired > sequence {
                return self.overtaken(retired);
            }
        }
        check_head(sequence, message.head)?;
        let mut hold = None;
        if message.head.kind() == Kind::Slot {
            let Some(taken) = self.holds.take(sequence) else { return Ok(Read::TooManyHeld) };
            if self.policy == Policy::DropOldest {
                // C3 (SeqCst): either the publisher sees the hold, or we see that the sequence was retired. Pairs with
                // R2.
                fence(Ordering::SeqCst);
                let retired = self.control.retired.load(Ordering::Relaxed);
                if retired > sequence {
                    drop(taken);
                    return self.overtaken(retired);
                }
            }
            hold = Some(taken);
        }
        self.advance(sequence + 1);
        Ok(Read::Message { sequence, message, hold })
    }

    /// Copies the entry of this sequence, if it is there; else its stamp is the error.
    #[inline(always)]
    fn copy_entry(&self, sequence: u64) -> Result<Message, u64> {
        let entry = self.ring.entry(sequence);
        let stamp = entry.stamp.load(Ordering::Relaxed);
        if stamp != sequence + 1 {
            return Err(stamp);
        }
        // C1 (acquire): the entry and its payload are visible. Pairs with P1 in `Writer`.
        fence(Ordering::Acquire);
        let head = Head(entry.head.load(Ordering::Relaxed));
        let mut body = [0; INLINE_WORDS];
        for (to, from) in body.iter_mut().zip(&entry.body) {
            *to = from.load(Ordering::Relaxed);
        }
        Ok(Message { head, body })
    }

    /// Looks for the next message, and has `copy` copy what lies in a slot: no hold is taken, and nothing of the
    /// publisher's memory is used after this returns. For lanes of strangers, whose word is no protection.
    ///
    /// `copy` gets the sequence and the message, of which all is a claim, and loads the slot by atomic words: the
    /// publisher may write it meanwhile.
    ///
    /// # Why no torn message is given out
    /// The publisher stores `retired` above a sequence and fences (R1) before its slot is free, for whatever is written
    /// there next. So if a word that `copy` loaded was of a later use of the slot, then after the acquire fence (C2)
    /// `retired` is seen above the sequence, and the copy is thrown away. A reliable reader's slot is not retired
    /// before its cursor moved, which is after the copy. A publisher that keeps to none of this makes its own message
    /// wrong.
    ///
    /// # Errors
    /// [`LaneFault`] if the publisher wrote what cannot be, or what `copy` says.
    pub fn read_copying(
        &mut self,
        copy: impl FnOnce(u64, &Message) -> Result<(), LaneFault>,
    ) -> Result<Read, LaneFault> {
        let sequence = self.cursor;
        let message = match self.copy_entry(sequence) {
            Ok(message) => message,
            Err(stamp) => return self.read_other(stamp),
        };
        // Before the descriptor is used: a torn one is no fault of the publisher's.
        if let Some(overtaken) = self.second_look(sequence)? {
            return Ok(overtaken);
        }
        check_head(sequence, message.head)?;
        if message.head.kind() == Kind::Slot {
            copy(sequence, &message)?;
            if let Some(overtaken) = self.second_look(sequence)? {
                return Ok(overtaken);
            }
        }
        self.advance(sequence + 1);
        Ok(Read::Message { sequence, message, hold: None })
    }

    /// After something was copied: whether it was overtaken meanwhile, and then what is lost.
    fn second_look(&mut self, sequence: u64) -> Result<Option<Read>, LaneFault> {
        if self.policy != Policy::DropOldest {
            return Ok(None);
        }
        // C2 (acquire): if a word that was copied was overwritten, `retired` is seen past it. Pairs with R1.
        fence(Ordering::Acquire);
        let retired = self.control.retired.load(Ordering::Relaxed);
        if retired > sequence { self.overtaken(retired).map(Some) } else { Ok(None) }
    }

    /// Looks for the next message that lies in a slot, and holds it: the straight way through what [`read`](Self::read)
    /// does for one.
    ///
    /// Returns `None` when the next thing is anything else (also of another length, where one is given), for a reader
    /// that may be overtaken, when it has no place for a hold at hand, or when a look for a waiting publisher is due:
    /// `read` then tells.
    #[inline(always)]
    pub fn read_slot(&mut self, exactly: Option<u32>) -> Option<SlotRead> {
        let sequence = self.cursor;
        let next = sequence + 1;
        let entry = self.ring.entry(sequence);
        if entry.stamp.load(Ordering::Relaxed) != next || !self.straight {
            return None;
        }
        // C1 (acquire): as in `copy_entry`.
        fence(Ordering::Acquire);
        let head = Head(entry.head.load(Ordering::Relaxed));
        if exactly.map_or(head.kind() != Kind::Slot, |bytes| head != Head::new(Kind::Slot, bytes)) {
            return None;
        }
        let word = entry.body[0].load(Ordering::Relaxed);
        let hold = self.holds.take_at_hand(sequence)?;
        self.cursor = next;
        // C4 (release): as in `advance`.
        self.holds.block().cursor.store(next, Ordering::Release);
        Some(SlotRead { sequence, bytes: head.bytes(), word, hold })
    }

    /// Looks for the next inline message of exactly `WORDS` words and `bytes` bytes: the straight way, as
    /// [`read_slot`](Self::read_slot).
    #[inline(always)]
    pub fn read_words<const WORDS: usize>(&mut self, bytes: u32) -> Option<(u64, [u64; WORDS])> {
        let sequence = self.cursor;
        let next = sequence + 1;
        if !self.straight {
            return None;
        }
        let words = self.peek_inline::<WORDS>(sequence, bytes)?;
        self.cursor = next;
        // C4 (release): as in `advance`.
        self.holds.block().cursor.store(next, Ordering::Release);
        Some((sequence, words))
    }

    /// Looks for the next inline message of exactly `WORDS` words and `bytes` bytes, without copying more than those
    /// words.
    ///
    /// Returns `None` when the next thing is anything else (nothing, another kind, an overtake): [`read`](Self::read)
    /// then tells.
    #[inline(always)]
    pub fn read_inline<const WORDS: usize>(&mut self, bytes: u32) -> Option<(u64, [u64; WORDS])> {
        const { assert!(WORDS <= INLINE_WORDS) };
        let sequence = self.cursor;
        let words = self.peek_inline::<WORDS>(sequence, bytes)?;
        self.advance(sequence + 1);
        Some((sequence, words))
    }

    #[inline(always)]
    fn peek_inline<const WORDS: usize>(&self, sequence: u64, bytes: u32) -> Option<[u64; WORDS]> {
        let entry = self.ring.entry(sequence);
        if entry.stamp.load(Ordering::Relaxed) != sequence + 1 {
            return None;
        }
        // C1 (acquire): as in `copy_entry`.
        fence(Ordering::Acquire);
        if entry.head.load(Ordering::Relaxed) != Head::new(Kind::Inline, bytes).0 {
            return None;
        }
        let mut words = [0; WORDS];
        for (to, from) in words.iter_mut().zip(&entry.body) {
            *to = from.load(Ordering::Relaxed);
        }
        if self.policy == Policy::DropOldest {
            // C2 (acquire): as in `read`.
            fence(Ordering::Acquire);
            if self.control.retired.load(Ordering::Relaxed) > sequence {
                return None;
            }
        }
        Some(words)
    }

    /// Reads up to `most` messages in order and in place: neither entry nor slot is reused before this returns, and no
    /// hold is taken.
    ///
    /// The cursor moves once, at the end; if `each` panics it does not move. Returns how many were read. Only for
    /// reliable readers: what may be overtaken must be held.
    ///
    /// # Errors
    /// [`LaneFault`] if the publisher wrote what cannot be; messages before that were read.
    ///
    /// # Panics
    /// If the reader may be overtaken.
    #[inline]
    pub fn read_batch(
        &mut self,
        most: u64,
        mut each: impl FnMut(u64, &Message) -> Result<(), LaneFault>,
    ) -> Result<u64, LaneFault> {
        assert!(self.policy == Policy::Reliable, "a reader that may be overtaken cannot read in place");
        let begin = self.cursor;
        let mut sequence = begin;
        let mut result = Ok(());
        while sequence - begin < most {
            let message = match self.copy_entry(sequence) {
                Ok(message) => message,
                Err(stamp) => {
                    if stamp > sequence {
                        result = Err(self.stamp_fault(stamp, sequence));
                    }
                    break;
                }
            };
            result = check_head(sequence, message.head).and_then(|()| each(sequence, &message));
            if result.is_err() {
                break;
            }
            sequence += 1;
        }
        if sequence != begin {
            self.advance(sequence);
        }
        result.map(|()| sequence - begin)
    }

    /// As [`read_batch`](Self::read_batch) for inline messages of exactly `WORDS` words and `bytes` bytes; stops at
    /// anything else.
    #[inline]
    pub fn read_inline_batch<const WORDS: usize>(
        &mut self,
        most: u64,
        bytes: u32,
        mut each: impl FnMut(u64, &[u64; WORDS]),
    ) -> u64 {
        const { assert!(WORDS <= INLINE_WORDS) };
        let begin = self.cursor;
        let mut sequence = begin;
        while sequence - begin < most {
            let Some(words) = self.peek_inline::<WORDS>(sequence, bytes) else { break };
            each(sequence, &words);
            sequence += 1;
        }
        if sequence != begin {
            self.advance(sequence);
        }
        sequence - begin
    }

    #[inline(always)]
    fn advance(&mut self, cursor: u64) {
        self.cursor = cursor;
        // C4 (release): whoever sees the cursor sees the holds below it, and our reads happened before. Pairs with A1.
        self.holds.block().cursor.store(cursor, Ordering::Release);
        if cursor >= self.look_at {
            self.look_for_want();
        }
    }

    /// Has [`is_to_stop`](Self::is_to_stop) say yes after each message, for a caller with something to do then.
    pub fn set_stops_each(&mut self, each: bool) {
        self.stops_each = each;
        self.stop_at = if each { 0 } else { self.look_at };
    }

    /// Whether the caller of a straight way has something to do: a [look](Self::look_is_due), or what it
    /// [asked for](Self::set_stops_each).
    #[inline(always)]
    #[must_use]
    pub fn is_to_stop(&self) -> bool {
        self.cursor >= self.stop_at
    }

    /// Whether [`look_for_want`](Self::look_for_want) is due, a quarter of the ring after the last.
    #[inline(always)]
    #[must_use]
    pub fn look_is_due(&self) -> bool {
        self.cursor >= self.look_at
    }

    /// Reads up to `most` messages that lie in slots, in order and in place, by the straight way: stops at anything
    /// else.
    ///
    /// The cursor moves once, at the end, so nothing is reused before this returns; if `each` panics it does not move.
    /// `each` gets sequence, descriptor and length, both claims, and says whether they were lawful; at an unlawful one
    /// it stops. Afterwards as for [`read_slot`](Self::read_slot).
    #[inline(always)]
    pub fn read_slot_batch(
        &mut self,
        most: u64,
        exactly: Option<u32>,
        mut each: impl FnMut(u64, u64, u32) -> bool,
    ) -> u64 {
        let begin = self.cursor;
        let mut sequence = begin;
        while self.straight && sequence - begin < most {
            let entry = self.ring.entry(sequence);
            if entry.stamp.load(Ordering::Relaxed) != sequence + 1 {
                break;
            }
            // C1 (acquire): as in `copy_entry`.
            fence(Ordering::Acquire);
            let head = Head(entry.head.load(Ordering::Relaxed));
            if exactly.map_or(head.kind() != Kind::Slot, |bytes| head != Head::new(Kind::Slot, bytes))
                || !each(sequence, entry.body[0].load(Ordering::Relaxed), head.bytes())
            {
                break;
            }
            sequence += 1;
        }
        if sequence != begin {
            self.cursor = sequence;
            // C4 (release): as in `advance`.
            self.holds.block().cursor.store(sequence, Ordering::Release);
        }
        sequence - begin
    }

    /// Looks whether the publisher waits for room; [`take_wants_room`](Self::take_wants_room) then says so.
    ///
    /// # Why no wake is lost
    /// A publisher stores `want_room`, fences (W2), and asks every reader once more before it waits. A reader moves its
    /// cursor, fences (W1), and loads `want_room`. So if the publisher did not see the cursor, the reader sees the
    /// want. A publisher waits for ring room only while its slowest reader has a whole ring unread, and a reader looks
    /// every quarter ring, so it comes by here before it runs dry. A publisher may also wait for slots, where the pool
    /// is smaller than all that may be kept: then a reader also looks before it reports empty or parks, and a dropped
    /// hold looks too.
    #[cold]
    pub fn look_for_want(&mut self) {
        self.look_at = self.cursor + self.look_every;
        self.set_stops_each(self.stops_each);
        // W1 (SeqCst): the cursor's store is before this load. Pairs with W2.
        fence(Ordering::SeqCst);
        self.wants_room |= self.control.want_room.load(Ordering::Relaxed) != 0;
    }

    /// Whether the publisher was seen waiting for room: [`take_wants_room`](Self::take_wants_room) is due.
    #[inline(always)]
    #[must_use]
    pub fn wants_room(&self) -> bool {
        self.wants_room
    }

    /// Whether the publisher was seen waiting for room since the last call: the caller wakes it.
    #[inline(always)]
    pub fn take_wants_room(&mut self) -> bool {
        core::mem::take(&mut self.wants_room)
    }

    #[cold]
    fn read_other(&mut self, stamp: u64) -> Result<Read, LaneFault> {
        let cursor = self.cursor;
        if stamp <= cursor {
            return Ok(Read::Empty);
        }
        // C2 (acquire): a stamp beyond ours comes after a `retired` beyond ours. Pairs with R1.
        fence(Ordering::Acquire);
        let retired = self.control.retired.load(Ordering::Relaxed);
        if self.policy == Policy::Reliable || retired <= cursor {
            return Err(self.stamp_fault(stamp, cursor));
        }
        self.overtaken(retired)
    }

    #[cold]
    fn stamp_fault(&self, stamp: u64, cursor: u64) -> LaneFault {
        LaneFault::Stamp { stamp, cursor, retired: self.control.retired.load(Ordering::Relaxed) }
    }

    #[cold]
    fn overtaken(&mut self, retired: u64) -> Result<Read, LaneFault> {
        if retired > SEQUENCE_END {
            return Err(LaneFault::Stamp { stamp: self.cursor + 1, cursor: self.cursor, retired });
        }
        let lost = retired - self.cursor;
        let counter = &self.holds.block().lost;
        counter.store(counter.load(Ordering::Relaxed) + lost, Ordering::Relaxed);
        self.advance(retired);
        Ok(Read::Overtaken { lost })
    }

    /// Adds to this reader's counts; once a batch is enough.
    #[inline(always)]
    pub fn count(&self, messages: u64, bytes: u64) {
        let block = self.holds.block();
        block.received.store(block.received.load(Ordering::Relaxed) + messages, Ordering::Relaxed);
        block.received_bytes.store(block.received_bytes.load(Ordering::Relaxed) + bytes, Ordering::Relaxed);
    }

    /// Entries in the ring.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Whether nothing read from this lane is still held.
    #[must_use]
    pub fn holds_nothing(&self) -> bool {
        self.holds.holds_nothing()
    }

    /// The sequence at which the publisher ended the lane in good order, if it has. A claim: it may lie below the
    /// cursor.
    #[must_use]
    pub fn ended_at(&self) -> Option<u64> {
        let ended = self.control.ended.load(Ordering::Relaxed);
        // E2 (acquire): every stamp before the end is visible. Pairs with E1 in `Writer::end`.
        fence(Ordering::Acquire);
        ended.checked_sub(1)
    }

    /// Ends the reader; what it still holds stays valid, and is returned as an orphan to be freed later.
    #[must_use]
    pub fn retire(self) -> Option<Orphan> {
        self.holds.retire()
    }
}

/// Refuses an inline message that is longer than an entry, so that nobody slices past its body.
#[inline]
fn check_head(sequence: u64, head: Head) -> Result<(), LaneFault> {
    if head.kind() == Kind::Inline && head.bytes() as usize > INLINE_BYTES {
        return Err(LaneFault::Head { sequence, head: head.0 });
    }
    Ok(())
}

/// Reads a slot's descriptor out of a message.
///
/// # Errors
/// [`LaneFault::Descriptor`] if bits that must be zero are not.
#[inline(always)]
pub fn descriptor_of(sequence: u64, message: &Message) -> Result<RawDescriptor, LaneFault> {
    let word = message.body[0];
    RawDescriptor::from_word(word).ok_or(LaneFault::Descriptor { sequence, word })
}
