//! One publisher's lane, as a subscriber reads it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use zcmi_mem::lease::{Buffers, PeerPool, PeerPoolError, Sample};
use zcmi_mem::ledger::{Counter, FallbackReason, LedgerWriter, ListedLane, Place};
use zcmi_mem::payload::Message;
use zcmi_mem::pool::{PAGE_BYTES, PoolPlan};
use zcmi_mem::region::PeerRegion;
use zcmi_mem::region::received::PeerWakePage;
use zcmi_ring::layout::{HOLDS, INLINE_WORDS};
use zcmi_ring::sync::AtomicU64;
use zcmi_ring::{
    Entry, HoldTable, Kind, LaneControl, LaneFault, LifeMark, Orphan, Policy, Read, Reader, ReaderBlock, Ring, View,
    WakeWord,
};

use super::{Event, raw};
use crate::control::Command;
use crate::name::Incarnation;
use crate::process::Mailbox;
use crate::sys;
use crate::wire::{Accepted, PoolName};

/// What a publisher granted, mapped.
#[derive(Debug)]
pub(crate) struct LaneOffer {
    pub(crate) peer: Incarnation,
    pub(crate) accepted: Accepted,
    pub(crate) lane: Arc<PeerRegion>,
    pub(crate) ring: Arc<PeerRegion>,
    /// None of a stranger's.
    pub(crate) wake: Option<Arc<PeerWakePage>>,
    pub(crate) pool: Option<(Arc<PeerRegion>, PoolName)>,
}

/// What a subscriber brings to a lane.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LaneTerms {
    /// The publisher's process number.
    pub(crate) pid: u32,
    /// The length of the messages, where all have one.
    pub(crate) least_bytes: usize,
    pub(crate) drop_oldest: bool,
    /// Whether the publisher knows already that this subscriber may park.
    pub(crate) parks: bool,
    /// Where the subscriber's block lies.
    pub(crate) block: Place,
    /// Whether the publisher is a stranger, whose messages are copied.
    pub(crate) copies: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LaneState {
    Live,
    /// The publisher hung up: nothing is read until it is known to be dead or to have left.
    Cut,
    /// The publisher left or died: what is there is read, then the lane is closed.
    Draining {
        died: bool,
    },
}

/// One publisher's lane as a subscriber reads it.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(super) reader: Reader,
    pub(super) pool: PeerPool,
    pub(super) state: LaneState,
    pub(super) wake: Option<WakeWord>,
    pub(super) bit: u8,
    pub(super) holds: u8,
    /// Whether the publisher looks at the wake word for us.
    pub(super) parks: bool,
    /// Whether the publisher is a stranger: nothing of its memory is referred to, and nothing in it is held.
    pub(super) copies: bool,
    buffers: Buffers,
    /// The cursor that a stranger was last told at a sleep; it wakes us when that message is there, once.
    told: Option<u64>,
    pub(super) peer: Incarnation,
    pub(super) pid: u32,
    pub(super) publisher: u32,
    pub(super) start: u64,
    pub(super) room: Option<Arc<OwnedFd>>,
    pub(super) mailbox: Arc<Mailbox>,
    /// Where the subscriber's block lies, for observers.
    pub(super) place: Place,
    /// The block, to be read.
    pub(super) words: View<ReaderBlock>,
    /// Once the subscriber has the lane: where its thread counts, and the lane's row in the ledger.
    counts: Option<(LedgerWriter, ListedLane)>,
}

/// What a look at one lane came to.
pub(super) enum Look<M: Message + ?Sized> {
    Empty,
    Sample(Sample<M>),
    Overtaken(u64),
    TooManyHeld,
    Faulty(String),
}

impl Lane {
    /// Checks a publisher's grant against what it mapped, and begins to read.
    pub(crate) fn new(
        offer: LaneOffer,
        block: View<ReaderBlock>,
        terms: LaneTerms,
        life: LifeMark,
        mailbox: Arc<Mailbox>,
    ) -> Result<Self, String> {
        let LaneOffer { peer, accepted, lane, ring, wake, pool } = offer;
        let LaneTerms { pid, least_bytes, drop_oldest, parks, block: place, copies } = terms;
        let at = |what: &str, claim: u64| usize::try_from(claim).map_err(|_| format!("{what} is at {claim}"));
        let text = |error: zcmi_mem::region::OutOfRegion| error.to_string();
        let control = lane.view::<LaneControl>(at("the lane", accepted.control)?, 1).map_err(text)?;
        let capacity = at("the ring's end", accepted.capacity)?;
        let ring_view = ring.view::<Entry>(at("the ring", accepted.ring)?, capacity).map_err(text)?;
        let entries = Ring::new(ring_view).ok_or_else(|| format!("a ring of {capacity} entries cannot be"))?;
        let wake = match (wake, &accepted.wake) {
            (Some(page), Some((_, offset))) => {
                let word = page.view::<AtomicU64>(at("the wake word", *offset)?, 1).map_err(text)?;
                Some(WakeWord::new(word))
            }
            _ => None,
        };
        if accepted.index >= 64 || usize::from(accepted.holds) > HOLDS || accepted.start >= 1 << 62 {
            return Err(format!(
                "index {}, holds {} or start {} cannot be",
                accepted.index, accepted.holds, accepted.start
            ));
        }
        let mut keep = Vec::new();
        let pool = match pool {
            None => PeerPool::none(),
            Some((region, name)) => {
                let plan = PoolPlan::new(name.classes).map_err(|error| error.to_string())?;
                let span = region.bytes(at("the pool", name.offset)?, plan.bytes()).map_err(text)?;
                if !name.offset.is_multiple_of(PAGE_BYTES as u64) {
                    return Err(format!("a pool at {} is not aligned to {PAGE_BYTES}", name.offset));
                }
                let least = plan.classes()[0].slot_bytes;
                if least < least_bytes {
                    return Err(format!("slots of {least} bytes are too small for messages of {least_bytes}"));
                }
                let pool = PeerPool::new(&plan, span, least_bytes);
                keep.extend(pool.keeper());
                pool
            }
        };
        let policy = if drop_oldest { Policy::DropOldest } else { Policy::Reliable };
        let words = block.clone();
        // A stranger counts none of our holds, so that we take none.
        let granted = if copies { 0 } else { accepted.holds };
        let block = raw::own(block);
        let holds = HoldTable::new(block, control.clone(), life, None, keep).limited_to(granted.into());
        let reader = Reader::new(entries, control, holds, policy, accepted.start);
        Ok(Self {
            reader,
            pool,
            state: LaneState::Live,
            wake,
            bit: accepted.index,
            holds: granted,
            parks,
            copies,
            buffers: Buffers::default(),
            told: None,
            peer,
            pid,
            publisher: accepted.publisher,
            start: accepted.start,
            room: None,
            mailbox,
            place,
            words,
            counts: None,
        })
    }

    pub(crate) fn peer(&self) -> Incarnation {
        self.peer
    }

    pub(super) fn set_state(&mut self, state: LaneState) {
        self.state = state;
        self.reader.set_straight(state == LaneState::Live);
    }

    pub(crate) fn publisher(&self) -> u32 {
        self.publisher
    }

    /// Ends the reader; what samples still keep is returned.
    pub(crate) fn retire(self) -> Option<Orphan> {
        self.reader.retire()
    }

    /// Looks for the next message, and tells whatever else there is.
    pub(super) fn look<M: Message + ?Sized>(&mut self) -> Look<M> {
        if self.copies {
            return self.look_copying();
        }
        let read = self.reader.read();
        match read {
            Ok(Read::Empty) => Look::Empty,
            Ok(Read::Message { sequence, message, hold }) => {
                self.look_after();
                let bytes = message.head.bytes();
                if M::SLICE {
                    self.reader.count(0, bytes.into());
                }
                let sample = match (message.head.kind(), hold) {
                    (Kind::Inline, _) => Sample::inline(sequence, message.body, bytes)
                        .ok_or_else(|| format!("{bytes} bytes in an entry are no message of this service")),
                    (Kind::Slot, Some(hold)) => raw::sample(&self.pool, sequence, &message, hold),
                    _ => Err(format!("the head {:#x} is impossible", message.head.0)),
                };
                sample.map_or_else(Look::Faulty, Look::Sample)
            }
            Ok(Read::Overtaken { lost }) => Look::Overtaken(lost),
            Ok(Read::TooManyHeld) => Look::TooManyHeld,
            Err(fault) => Look::Faulty(fault.to_string()),
        }
    }

    /// As [`look`](Self::look), for a stranger's lane: the message is copied before the cursor moves.
    fn look_copying<M: Message + ?Sized>(&mut self) -> Look<M> {
        let (pool, buffers) = (&self.pool, &self.buffers);
        let (mut copied, mut refused) = (None, None);
        let read = self.reader.read_copying(|sequence, message| {
            let (word, bytes) = (message.body[0], message.head.bytes());
            // The length is a claim until the pool has such a slot: nothing is allocated for it before.
            let result = pool.check(sequence, word, bytes).and_then(|bytes_checked| {
                let buffer = copied.insert(buffers.take(bytes_checked));
                pool.copy_out(sequence, word, bytes, buffer.lines_mut())
            });
            result.map_err(|error| {
                refused = Some(pool_fault(error));
                LaneFault::Descriptor { sequence, word }
            })
        });
        match read {
            Ok(Read::Message { sequence, message, .. }) => {
                self.look_after();
                let bytes = message.head.bytes();
                if M::SLICE {
                    self.reader.count(0, bytes.into());
                }
                let sample = match (message.head.kind(), copied) {
                    (Kind::Inline, _) => Sample::inline(sequence, message.body, bytes),
                    (Kind::Slot, Some(copied)) => {
                        if let Some((counts, _)) = &self.counts {
                            counts.add(Counter::CopiedUser, bytes.into());
                        }
                        Sample::copied(sequence, copied, bytes)
                    }
                    _ => None,
                };
                let fault = || Look::Faulty(format!("the head {:#x} is none of this service's", message.head.0));
                sample.map_or_else(fault, Look::Sample)
            }
            Ok(Read::Overtaken { lost }) => Look::Overtaken(lost),
            Ok(_) => Look::Empty,
            Err(fault) => Look::Faulty(refused.unwrap_or_else(|| fault.to_string())),
        }
    }

    /// Before a sleep: the publisher is told, by the wake word or, a stranger, by a message.
    #[cold]
    pub(super) fn announce_sleep(&mut self, endpoint: u32) {
        let cursor = self.reader.cursor();
        if self.copies {
            // It was told this cursor already: its wake is under way or to come.
            if self.state == LaneState::Live && self.told != Some(cursor) {
                self.told = Some(cursor);
                let (peer, publisher) = (self.peer, self.publisher);
                self.mailbox.send(Command::Park { endpoint, peer, publisher, cursor });
            }
        } else if let (true, Some(wake)) = (self.parks, &self.wake) {
            wake.announce(self.bit);
        }
    }

    /// After the cursor moved: wakes the publisher if it was seen waiting for room.
    #[inline(always)]
    pub(super) fn look_after(&mut self) {
        if self.reader.wants_room() {
            self.wake_publisher();
        }
    }

    /// A quarter of the ring after the last look, whether the publisher waits is looked at again.
    #[inline(always)]
    pub(super) fn look_if_due(&mut self) {
        if self.reader.look_is_due() {
            self.look_for_want();
        }
    }

    #[cold]
    fn wake_publisher(&mut self) {
        let _wanted = self.reader.take_wants_room();
        let counts = self.counts.as_ref().map(|(writer, _)| writer);
        match &self.room {
            // A full eventfd is readable, so the publisher is awake; a closed one's publisher is gone.
            Some(eventfd) => {
                let _awake_or_gone = sys::wake(eventfd.as_fd());
                counts.inspect(|counts| counts.add(Counter::WakesSent, 1));
            }
            None => {
                counts.inspect(|counts| counts.fallback(FallbackReason::NoEventfd));
                self.mailbox.send(Command::Room { peer: self.peer, publisher: self.publisher });
            }
        }
    }

    /// Notes where the subscriber's thread counts, and the lane's row in the ledger.
    pub(super) fn list(&mut self, writer: LedgerWriter, listed: ListedLane) {
        if self.copies {
            writer.fallback(FallbackReason::Stranger);
        }
        self.counts = Some((writer, listed));
    }

    /// The lane's row, to be settled; from here on the lane counts nothing.
    pub(super) fn unlist(&mut self) -> Option<ListedLane> {
        self.counts.take().map(|(_, listed)| listed)
    }

    /// Looks once more whether the publisher waits, before the reader sleeps or when it found nothing.
    #[cold]
    pub(super) fn look_for_want(&mut self) {
        self.reader.look_for_want();
        self.look_after();
    }

    pub(super) fn is_readable(&self) -> bool {
        self.state != LaneState::Cut
    }

    /// If nothing is left to read of a lane whose publisher is gone: how it ended.
    pub(super) fn ending(&self) -> Option<Event> {
        let LaneState::Draining { died } = self.state else { return None };
        let sequence = self.reader.cursor();
        let graceful = self.reader.ended_at() == Some(sequence);
        if !graceful && self.reader.has_message() {
            return None;
        }
        let publisher = self.peer;
        if graceful || !died {
            Some(Event::Ended { publisher, sequence })
        } else {
            Some(Event::Died { publisher, pid: self.pid, sequence })
        }
    }
}

/// The length that the straight way asks for: that of a type whose messages all have one.
#[inline(always)]
pub(super) fn exactly<M: Message + ?Sized>() -> Option<u32> {
    if M::SLICE { None } else { Some(M::ELEMENT_BYTES as u32) }
}

/// Reads an inline message of the type's own size, as five words of which the message needs the first.
#[inline(always)]
pub(super) fn read_words<M: Message + ?Sized>(reader: &mut Reader) -> Option<(u64, [u64; INLINE_WORDS])> {
    fn widen<const N: usize>((sequence, words): (u64, [u64; N])) -> (u64, [u64; INLINE_WORDS]) {
        let mut wide = [0; INLINE_WORDS];
        wide[..N].copy_from_slice(&words);
        (sequence, wide)
    }
    let bytes = M::ELEMENT_BYTES as u32;
    match M::ELEMENT_BYTES.div_ceil(8) {
        1 => reader.read_words::<1>(bytes).map(widen),
        2 => reader.read_words::<2>(bytes).map(widen),
        3 => reader.read_words::<3>(bytes).map(widen),
        4 => reader.read_words::<4>(bytes).map(widen),
        _ => reader.read_words::<5>(bytes),
    }
}

/// A fault of a pool's claim, in words.
pub(super) fn pool_fault(error: PeerPoolError) -> String {
    error.to_string()
}

/// A fault of a lane, in words.
pub(super) fn lane_fault(fault: LaneFault) -> String {
    fault.to_string()
}
