//! What a connection over datagrams receives: pieces put together in slots, handed out in the order of their streams,
//! each once. No I/O.
//!
//! # Invariants
//! - A datagram is taken once, whatever the network doubles or an onlooker plays back; one whose number is so old that
//!   it is not known any more is dropped, and sent again by an honest peer.
//! - A piece is handed out when all of it and the piece before it on its stream came.
//! - What is open of the credits (given and not used) is the number of slots that this connection may still claim.
//! - Memory is bounded by the credits: pieces under way, gaps between them, and ranges within them.

use std::collections::{HashMap, HashSet};

use zcmi_mem::lease::LeaseMut;
use zcmi_mem::pool::Slot;

use super::datagram::{ELICITS, END, Head, Kind, RANGES, Report, UNRELIABLE, WANTS_LARGE, WANTS_SMALL};
use super::pace::Nanos;
use super::ranges::Ranges;
use crate::frame::{Class, FrameFault, MESSAGE_BYTES};
use crate::incoming::PeerFault;
use crate::link::{GOING_ON_BYTES, Happened, Piece};
use crate::outgoing::MOST_CREDITS;
use crate::slots::{Need, Slots};

/// How many ranges of datagrams are told apart. What lies below them counts as received.
const KNOWN_RANGES: usize = 4 * RANGES;
/// How many stretches of a piece may be there while others are missing.
const STRETCHES: usize = 1024;
/// How far ahead of the first missing piece others may be.
const AHEAD: u64 = 1 << 20;

/// Where the payload of a datagram lies.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Landed<'a> {
    /// In the slot that was expected, where it belongs: so many bytes, of so many datagrams of consecutive numbers.
    InPlace { bytes: usize, datagrams: u64 },
    /// Somewhere else.
    Elsewhere(&'a [u8]),
}

impl Landed<'_> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::InPlace { bytes, .. } => *bytes,
            Self::Elsewhere(bytes) => bytes.len(),
        }
    }

    /// How many datagrams they are.
    pub(crate) fn datagrams(&self) -> u64 {
        match self {
            Self::InPlace { datagrams, .. } => *datagrams,
            Self::Elsewhere(_) => 1,
        }
    }
}

/// What became of a datagram of data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// Its bytes are where they belong.
    Yes,
    /// It came before.
    Known,
    /// There was no room for it.
    Dropped,
}

/// A piece that is not whole, or waits for the one before it.
struct Partial {
    head: Head,
    length: u32,
    slot: Option<Slot>,
    came: Ranges,
    is_whole: bool,
    /// How much of it was there when somebody looked.
    seen: Option<u64>,
    /// Whether it was excused since it went on last.
    excused: bool,
}

/// A credit that the peer was given because it waited, and has not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lent {
    No,
    /// It was given since somebody looked.
    Lately,
    Before,
}

/// A message that was begun on a stream.
#[derive(Clone, Copy)]
struct Begun {
    message_bytes: u32,
    next: u32,
    tag: u64,
}

/// Bytes that will come next, if all goes well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Expected {
    pub(crate) sequence: u64,
    pub(crate) begin: u32,
    pub(crate) end: u32,
    /// Whether the piece has no slot yet.
    pub(crate) is_new: bool,
}

impl Expected {
    /// Whether a datagram with that head lies where its piece will be: the slots of pieces that are expected are large.
    pub(crate) fn is_begun_by(&self, head: &Head, (small_bytes, slot_bytes): (u32, u32)) -> bool {
        let length = head.message_bytes.saturating_sub(head.offset).min(slot_bytes);
        head.kind == Kind::Data
            && (head.sequence, head.begin) == (self.sequence, self.begin)
            && (!self.is_new || length > small_bytes)
    }
}

/// What was counted of one connection's datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ReceiveCounts {
    pub(crate) pieces: u64,
    pub(crate) bytes: u64,
    pub(crate) copied: u64,
    pub(crate) in_place: u64,
    pub(crate) known: u64,
    pub(crate) dropped: u64,
}

/// Everything that is received from one peer.
pub(crate) struct Receiver {
    small_bytes: u32,
    slot_bytes: u32,
    streams: u32,
    credits: [u32; 2],
    numbers: Ranges,
    newest: Option<(u64, Nanos)>,
    granted: [u32; 2],
    told: [u32; 2],
    used: [u32; 2],
    wants: [bool; 2],
    /// Of the credits that are open, how many were given ahead because the peer is known, and how many to a newcomer.
    known: [u32; 2],
    newcomer: [u32; 2],
    lent: [Lent; 2],
    /// Whether the peer was excused since it was lent something.
    excused: [bool; 2],
    /// How much had come when somebody looked.
    landed: u64,
    partial: HashMap<u64, Partial>,
    /// Whole pieces that wait for another one: that one, and they.
    waiting: HashMap<u64, u64>,
    /// Pieces of peers that do not send again, by their order of coming.
    loose: Vec<u64>,
    /// Every piece below is handed out.
    floor: u64,
    handed: Ranges,
    begun: HashMap<u32, Begun>,
    end: Option<u64>,
    has_ended: bool,
    /// Something came that the peer waits to hear of.
    pub(crate) owes: bool,
    /// The piece and the place behind the bytes that came last.
    last: Option<(u64, u32)>,
    last_length: u32,
    pub(crate) counts: ReceiveCounts,
}

impl core::fmt::Debug for Receiver {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Receiver")
            .field("floor", &self.floor)
            .field("under_way", &self.partial.len())
            .field("credits", &(self.used, self.granted, self.told, self.wants))
            .field("end", &self.end)
            .field("counts", &self.counts)
            .finish_non_exhaustive()
    }
}

impl Receiver {
    /// Nothing received yet, by a receiver with these sizes.
    pub(crate) fn new(sizes: (u32, u32), streams: u32, credits: [u32; 2]) -> Self {
        Self {
            small_bytes: sizes.0,
            slot_bytes: sizes.1,
            streams,
            credits,
            numbers: Ranges::default(),
            newest: None,
            granted: [0; 2],
            told: [0; 2],
            used: [0; 2],
            wants: [false; 2],
            known: [0; 2],
            newcomer: [0; 2],
            lent: [Lent::No; 2],
            excused: [false; 2],
            landed: 0,
            partial: HashMap::new(),
            waiting: HashMap::new(),
            loose: Vec::new(),
            floor: 0,
            handed: Ranges::default(),
            begun: HashMap::new(),
            end: None,
            has_ended: false,
            owes: false,
            last: None,
            last_length: 0,
            counts: ReceiveCounts::default(),
        }
    }

    fn class_of(&self, length: u32) -> Class {
        if length <= self.small_bytes { Class::Small } else { Class::Large }
    }

    /// Credits given and not used, by class.
    pub(crate) fn open(&self) -> [u32; 2] {
        [0, 1].map(|class| self.granted[class].wrapping_sub(self.used[class]))
    }

    /// Whether the peer will send nothing more, and everything that it sent was handed out.
    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Whether the peer has not sent one whole piece.
    pub(crate) fn is_newcomer(&self) -> bool {
        self.counts.pieces == 0
    }

    /// Gives the peer credits again, as far as there are slots, when half of them are used, or it waits for some.
    ///
    /// Of those that are given ahead each of so many `peers` may have its part. Of the others, but for the few for
    /// peers that are known, it gets one at a time: it waits for that one, so that none is left over with a peer that
    /// has nothing more to send. Others who wait for some come before it, unless it stood in their line for that class.
    pub(crate) fn top_up(&mut self, slots: &mut Slots, peers: usize, stood_in_line: [bool; 2]) {
        for class in Class::ALL {
            let index = class.index();
            let most = self.credits[index].min(MOST_CREDITS);
            let share = most.min(slots.share_ahead(class, peers));
            let open = self.open()[index];
            if open * 2 > share || open >= most {
                continue;
            }
            let waits = self.wants[index] && open == 0;
            let mut got = slots.promise(class, share.saturating_sub(open), Need::Ahead);
            if !self.is_newcomer() && (got == 0 || share < most) {
                let known = slots.promise(class, most - open - got, Need::Known);
                self.known[index] += known;
                got += known;
            }
            if got == 0 && waits {
                got = self.promise_one(class, slots, stood_in_line[index]);
            }
            if got > 0 && waits && self.lent[index] == Lent::No {
                (self.lent[index], self.excused[index]) = (Lent::Lately, false);
            }
            self.granted[index] = self.granted[index].wrapping_add(got);
        }
    }

    /// Promises one slot of those that are not given ahead.
    fn promise_one(&mut self, class: Class, slots: &mut Slots, stood_in_line: bool) -> u32 {
        if self.is_newcomer() {
            let got = slots.promise(class, 1, Need::Newcomer);
            self.newcomer[class.index()] += got;
            got
        } else if stood_in_line || !slots.has_line(class) {
            slots.promise(class, 1, Need::Waiting)
        } else {
            0
        }
    }

    /// Whether it is the peer's turn to go on: it has begun a piece, or left out the one before, or was given credits
    /// because it waited for them.
    pub(crate) fn is_due(&self) -> bool {
        !self.partial.is_empty() || self.lent != [Lent::No; 2]
    }

    /// Looks what the peer went on with since the last look, and lets go of pieces that nobody sends again. Returns the
    /// first piece that it did not go on with, or the next one if it did not use a credit while others waited for some.
    pub(crate) fn stalled(&mut self, slots: &mut Slots) -> Option<u64> {
        let mut stalled: Option<u64> = None;
        let mut let_go = Vec::new();
        let begun: HashSet<u64> = self.partial.keys().copied().collect();
        for (&sequence, partial) in &mut self.partial {
            let came = partial.came.total();
            let seen = partial.seen.replace(came);
            let goes_on = seen.is_none_or(|seen| came >= seen + GOING_ON_BYTES);
            partial.excused &= seen.is_none() || !goes_on;
            let after = u64::from(partial.head.after);
            // One that is whole waits for another, which is judged itself if some of it came.
            if goes_on || partial.is_whole && after > 0 && begun.contains(&(sequence - after)) {
            } else if partial.head.has(UNRELIABLE) {
                let_go.push(sequence);
            } else {
                stalled = Some(stalled.map_or(sequence, |least| least.min(sequence)));
            }
        }
        for sequence in let_go {
            // Whatever still comes of it begins it anew.
            let slot = self.partial.remove(&sequence).and_then(|partial| partial.slot);
            slot.into_iter().for_each(|slot| slots.put_back(slot));
            self.loose.retain(|&loose| loose != sequence);
            self.counts.dropped += 1;
        }
        let landed = self.counts.copied + self.counts.in_place;
        let is_busy = landed >= core::mem::replace(&mut self.landed, landed) + GOING_ON_BYTES;
        for class in Class::ALL {
            let others_wait = slots.has_line(class) || slots.newcomers_wait()[class.index()];
            let lent = &mut self.lent[class.index()];
            match *lent {
                Lent::Before if others_wait && !is_busy => stalled = stalled.or(Some(self.floor)),
                Lent::Lately => *lent = Lent::Before,
                Lent::Before | Lent::No => {}
            }
        }
        stalled
    }

    /// The peer could not go on: for each piece, and each credit, that excuses it once.
    pub(crate) fn excuse(&mut self) {
        for partial in self.partial.values_mut().filter(|partial| !partial.excused) {
            (partial.seen, partial.excused) = (None, true);
        }
        for (lent, excused) in self.lent.iter_mut().zip(&mut self.excused) {
            if *lent == Lent::Before && !core::mem::replace(excused, true) {
                *lent = Lent::Lately;
            }
        }
    }

    /// How many pieces are not whole, or wait for another.
    #[cfg(test)]
    pub(crate) fn under_way(&self) -> usize {
        self.partial.len()
    }

    /// The classes of the credits that the peer waits for and that could not be given.
    pub(crate) fn lacking(&self) -> [bool; 2] {
        let open = self.open();
        [0, 1].map(|class| self.wants[class] && open[class] == 0)
    }

    /// Whether credits were given of which the peer was not told.
    pub(crate) fn has_untold(&self) -> bool {
        self.granted != self.told
    }

    /// Whether the peer waits for credits, and some were given of which it does not know.
    pub(crate) fn owes_credits(&self) -> bool {
        [0, 1].into_iter().any(|class| {
            let untold = self.granted[class].wrapping_sub(self.told[class]);
            untold > 0 && (self.wants[class] || self.open()[class] == untold)
        })
    }

    /// Whether one of so many datagrams from that number on came before.
    pub(crate) fn knows_any(&self, number: u64, datagrams: u64) -> bool {
        let next = self.numbers.next_begin(number);
        self.numbers.contains(number) || next.is_some_and(|next| next - number < datagrams)
    }

    /// Notes that so many datagrams, of which this is the first, came and were used.
    pub(crate) fn note(&mut self, head: &Head, datagrams: u64, now: Nanos) {
        let end = head.number.saturating_add(datagrams);
        self.numbers.insert(head.number, end);
        if self.numbers.len() > KNOWN_RANGES {
            self.numbers.join_lowest();
        }
        if self.newest.is_none_or(|(newest, _)| end > newest + 1) {
            self.newest = Some((end - 1, now));
        }
        self.owes |= head.has(ELICITS);
    }

    /// Notes that a datagram came that was not to be used, but is to be heard of.
    pub(crate) fn note_again(&mut self, head: &Head) {
        self.counts.known += 1;
        self.owes |= head.has(ELICITS);
    }

    /// What to tell the peer. It counts as told.
    pub(crate) fn report(&mut self, window_bytes: u32, now: Nanos) -> Report {
        let mut report =
            Report { granted: self.granted, window_bytes, delay_us: 0, ranges: [(0, 0); RANGES], count: 0 };
        for (place, range) in report.ranges.iter_mut().zip(self.numbers.newest_first()) {
            *place = range;
            report.count += 1;
        }
        let delay = self.newest.map_or(0, |(_, came)| now.saturating_sub(came)) / 1000;
        report.delay_us = u32::try_from(delay).unwrap_or(u32::MAX);
        for class in [0, 1] {
            self.wants[class] &= self.granted[class] == self.told[class];
        }
        self.told = self.granted;
        self.owes = false;
        report
    }

    /// How many pieces had come when the peer's end was reached.
    pub(crate) fn ended_at(&self) -> Option<u64> {
        self.end.filter(|_| self.has_ended)
    }

    /// Takes what a control datagram says to the receiving half. What the peer waits for is nothing if it has not heard
    /// yet what it was given: it says so again if it still waits then.
    pub(crate) fn control(
        &mut self,
        head: &Head,
        has_heard: bool,
        happened: &mut Vec<Happened>,
    ) -> Result<(), PeerFault> {
        self.wants[0] |= has_heard && head.has(WANTS_SMALL);
        self.wants[1] |= has_heard && head.has(WANTS_LARGE);
        if head.has(END) {
            let count = if head.has(UNRELIABLE) { self.floor } else { head.sequence };
            let fault = |fault| PeerFault::End { sequence: count, fault };
            if self.end.is_some_and(|end| end != count && !head.has(UNRELIABLE)) {
                return Err(fault("it had ended it at another"));
            }
            let behind = self.partial.iter().any(|(&piece, partial)| piece >= count && !partial.head.has(UNRELIABLE));
            if behind || self.handed.next_begin(count).is_some() || count < self.floor {
                return Err(fault("a piece came after it"));
            }
            self.end = Some(count);
            self.look_at_end(happened)?;
        }
        Ok(())
    }

    fn look_at_end(&mut self, happened: &mut Vec<Happened>) -> Result<(), PeerFault> {
        if self.has_ended || self.end != Some(self.floor) {
            return Ok(());
        }
        if !self.begun.is_empty() {
            return Err(PeerFault::End { sequence: self.floor, fault: "a message was not finished" });
        }
        self.has_ended = true;
        happened.push(Happened::Ended);
        Ok(())
    }

    /// Where the next bytes will go, if the peer goes on as it did.
    pub(crate) fn expected(&self) -> Option<Expected> {
        if self.last_length <= self.small_bytes {
            return None;
        }
        let (sequence, at) = self.last?;
        if let Some(partial) = self.partial.get(&sequence).filter(|partial| !partial.is_whole && partial.slot.is_some())
        {
            let begin = partial.came.end_from(at.into());
            let end = partial.came.next_begin(begin).unwrap_or(partial.length.into());
            if begin < end {
                return Some(Expected { sequence, begin: begin as u32, end: end as u32, is_new: false });
            }
        }
        // No peer may have come to the last of all numbers, and one that lies says so.
        let sequence = sequence.checked_add(1)?;
        let is_free =
            !self.partial.contains_key(&sequence) && sequence >= self.floor && !self.handed.contains(sequence);
        (is_free && self.open()[Class::Large.index()] > 0).then_some(Expected {
            sequence,
            begin: 0,
            end: self.last_length,
            is_new: true,
        })
    }

    /// The slot of a piece that is expected.
    pub(crate) fn slot_of(&mut self, expected: &Expected) -> Option<&mut Slot> {
        self.partial.get_mut(&expected.sequence)?.slot.as_mut()
    }

    /// Takes the payload of a datagram that is [not known](Self::knows_any). `ahead` is the slot in which a new piece
    /// was expected; it is taken if the bytes are there.
    pub(crate) fn data(
        &mut self,
        head: &Head,
        landed: Landed<'_>,
        ahead: &mut Option<Slot>,
        slots: &mut Slots,
        happened: &mut Vec<Happened>,
    ) -> Result<Taken, PeerFault> {
        let &Head { sequence, message_bytes, offset, begin, .. } = head;
        let length = message_bytes.saturating_sub(offset).min(self.slot_bytes);
        let bytes = u32::try_from(landed.len()).unwrap_or(u32::MAX);
        let no_piece = FrameFault::Piece { message_bytes, offset, length: bytes };
        let fits = message_bytes <= MESSAGE_BYTES
            && offset.is_multiple_of(self.slot_bytes)
            && (offset < message_bytes || message_bytes == 0 && offset == 0)
            && begin <= length
            && bytes <= length - begin
            && (bytes > 0 || message_bytes == 0)
            && u64::from(head.after) <= sequence;
        if !fits {
            return Err(no_piece.into());
        }
        let reliable = !head.has(UNRELIABLE);
        if reliable {
            if sequence < self.floor || self.handed.contains(sequence) {
                self.counts.known += 1;
                return Ok(Taken::Known);
            }
            if let Some(end) = self.end.filter(|&end| sequence >= end) {
                return Err(PeerFault::End { sequence: end, fault: "a piece came after it" });
            }
            if sequence >= self.floor + AHEAD {
                return Err(PeerFault::Sequence { claimed: sequence, expected: self.floor });
            }
        }
        if !self.partial.contains_key(&sequence) && !self.begin_piece(head, length, &landed, ahead, slots)? {
            self.counts.dropped += 1;
            return Ok(Taken::Dropped);
        }
        let Some(partial) = self.partial.get_mut(&sequence) else { return Ok(Taken::Dropped) };
        let same = |head: &Head| {
            let flags = head.flags & UNRELIABLE;
            (head.stream, head.tag, head.message_bytes, head.offset, head.after, flags)
        };
        if same(&partial.head) != same(head) {
            let (due, due_bytes) = (partial.head.offset, partial.head.message_bytes);
            return Err(PeerFault::Continuation { stream: head.stream, offset, message_bytes, due, due_bytes });
        }
        if partial.came.len() >= STRETCHES && !partial.came.contains(begin.into()) {
            self.counts.dropped += 1;
            return Ok(Taken::Dropped);
        }
        match landed {
            Landed::InPlace { bytes, .. } => self.counts.in_place += bytes as u64,
            Landed::Elsewhere(bytes) => {
                if let Some(slot) = &mut partial.slot {
                    slot.bytes_mut(length as usize)[begin as usize..][..bytes.len()].copy_from_slice(bytes);
                    self.counts.copied += bytes.len() as u64;
                }
            }
        }
        partial.came.insert(begin.into(), (begin + bytes).into());
        (self.last, self.last_length) = (Some((sequence, begin + bytes)), length);
        if partial.came.covers(0, length.into()) && !core::mem::replace(&mut partial.is_whole, true) {
            self.hand_out(sequence, happened)?;
        }
        Ok(Taken::Yes)
    }

    /// Finds the slot for a piece of which these are the first bytes; `false` if there is none for one without credit.
    fn begin_piece(
        &mut self,
        head: &Head,
        length: u32,
        landed: &Landed<'_>,
        ahead: &mut Option<Slot>,
        slots: &mut Slots,
    ) -> Result<bool, PeerFault> {
        let (class, sequence) = (self.class_of(length), head.sequence);
        let index = class.index();
        let reliable = !head.has(UNRELIABLE);
        if !reliable && self.loose.len() >= (self.credits[index].max(2) / 2) as usize {
            // The oldest has waited longest for what probably is lost.
            let oldest = self.loose.remove(0);
            if let Some(slot) = self.partial.remove(&oldest).and_then(|partial| partial.slot) {
                slots.put_back(slot);
            }
            self.counts.dropped += 1;
        }
        if self.open()[index] == 0 {
            if reliable {
                return Err(PeerFault::NoCredit { class, granted: self.granted[index] });
            }
            // Who does not send again does not wait for credits either: they only say which slots are set aside.
            let got = if self.credits[index] > 0 { self.promise_one(class, slots, false) } else { 0 };
            self.granted[index] = self.granted[index].wrapping_add(got);
            if got == 0 {
                return Ok(false);
            }
        }
        if reliable {
            let most = self.credits[0].saturating_add(self.credits[1]) as usize;
            if self.handed.len() > most {
                return Err(PeerFault::Sequence { claimed: sequence, expected: self.floor });
            }
        }
        let slot = match landed {
            _ if length == 0 => None,
            Landed::InPlace { .. } => ahead.take(),
            Landed::Elsewhere(_) => slots.take(class),
        };
        if slot.is_none() && length > 0 {
            return Ok(false);
        }
        self.used[index] = self.used[index].wrapping_add(1);
        let mut promise = [0; 2];
        promise[index] = 1;
        slots.unpromise(promise);
        // The credits of a class are alike: those that it has for being known are used first.
        if self.known[index] > 0 {
            self.known[index] -= 1;
            slots.forget_known(promise);
        } else if self.newcomer[index] > 0 {
            self.newcomer[index] -= 1;
            slots.forget_newcomer(promise);
        }
        self.lent[index] = Lent::No;
        if !reliable {
            self.loose.push(sequence);
        }
        let partial =
            Partial { head: *head, length, slot, came: Ranges::default(), is_whole: false, seen: None, excused: false };
        self.partial.insert(sequence, partial);
        Ok(true)
    }

    /// Hands out a piece that is whole, if it is its turn, and those that waited for it.
    fn hand_out(&mut self, sequence: u64, happened: &mut Vec<Happened>) -> Result<(), PeerFault> {
        let mut next = Some(sequence);
        while let Some(sequence) = next.take() {
            let Some(head) = self.partial.get(&sequence).map(|partial| partial.head) else { break };
            let reliable = !head.has(UNRELIABLE);
            let before = sequence - u64::from(head.after);
            if reliable && head.after > 0 && before >= self.floor && !self.handed.contains(before) {
                if self.waiting.insert(before, sequence).is_some_and(|other| other != sequence) {
                    return Err(PeerFault::Sequence { claimed: sequence, expected: before });
                }
                break;
            }
            let Some(Partial { slot, length, .. }) = self.partial.remove(&sequence) else { break };
            if reliable {
                self.check_continuation(&head, length)?;
                self.handed.insert(sequence, sequence + 1);
                self.floor = self.handed.end_from(self.floor);
                self.handed.remove_below(self.floor);
            } else {
                self.loose.retain(|&loose| loose != sequence);
            }
            self.counts.pieces += 1;
            self.counts.bytes += u64::from(length);
            let lease = match slot {
                Some(slot) => LeaseMut::slot(slot, length as usize),
                None => LeaseMut::inline(0),
            };
            let Head { stream, tag, message_bytes, offset, .. } = head;
            happened.push(Happened::Received(Piece { stream, tag, message_bytes, offset, lease }));
            next = self.waiting.remove(&sequence);
        }
        self.look_at_end(happened)
    }

    /// Refuses a piece that does not continue the message of its stream.
    fn check_continuation(&mut self, head: &Head, length: u32) -> Result<(), PeerFault> {
        let &Head { stream, message_bytes, offset, tag, .. } = head;
        let due = self.begun.get(&stream).copied();
        if due.is_none() && self.begun.len() >= self.streams as usize && length < message_bytes {
            return Err(PeerFault::Streams { streams: self.streams });
        }
        let due = due.unwrap_or(Begun { message_bytes, next: 0, tag });
        if (message_bytes, offset, tag) != (due.message_bytes, due.next, due.tag) {
            let (due, due_bytes) = (due.next, due.message_bytes);
            return Err(PeerFault::Continuation { stream, offset, message_bytes, due, due_bytes });
        }
        let next = offset + length;
        if next == message_bytes {
            self.begun.remove(&stream);
        } else {
            self.begun.insert(stream, Begun { message_bytes, next, tag });
        }
        Ok(())
    }

    /// Lets go of all slots and promises.
    pub(crate) fn forget(&mut self, slots: &mut Slots) {
        slots.unpromise(self.open());
        slots.forget_known(core::mem::take(&mut self.known));
        slots.forget_newcomer(core::mem::take(&mut self.newcomer));
        (self.used, self.lent) = (self.granted, [Lent::No; 2]);
        for partial in self.partial.drain().map(|(_, partial)| partial) {
            partial.slot.into_iter().for_each(|slot| slots.put_back(slot));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slots::SlotPlan;
    use crate::udp::datagram::Kind;

    const SMALL: u32 = 512;

    fn receiver(credits: [u32; 2]) -> (Receiver, Slots) {
        let plan =
            SlotPlan { small_bytes: SMALL, small_slots: 64, slot_bytes: 4096, large_slots: 4, headers: 1, loans: None };
        let mut slots = Slots::new(&plan).expect("memory");
        let mut receiver = Receiver::new(slots.sizes(), 8, credits);
        receiver.top_up(&mut slots, 1, [false; 2]);
        (receiver, slots)
    }

    fn take(receiver: &mut Receiver, slots: &mut Slots, head: &Head) -> Result<Taken, PeerFault> {
        receiver.top_up(slots, 1, [false; 2]);
        let bytes = &[7; 4096][..head.message_bytes as usize];
        receiver.data(head, Landed::Elsewhere(bytes), &mut None, slots, &mut Vec::new())
    }

    fn piece(sequence: u64, message_bytes: u32) -> Head {
        Head { sequence, message_bytes, ..Head::empty(Kind::Data, 7) }
    }

    #[test]
    fn a_piece_without_a_credit_is_refused_by_name() {
        let (mut receiver, mut slots) = receiver([8, 0]);
        assert_eq!(take(&mut receiver, &mut slots, &piece(0, SMALL)), Ok(Taken::Yes));
        let refused = take(&mut receiver, &mut slots, &piece(1, SMALL + 1));
        assert_eq!(refused, Err(PeerFault::NoCredit { class: Class::Large, granted: 0 }));
        // Who does not send again goes without one, and without the slot.
        let loose = Head { flags: UNRELIABLE, ..piece(1, SMALL + 1) };
        assert_eq!(take(&mut receiver, &mut slots, &loose), Ok(Taken::Dropped));
        assert_eq!(receiver.counts.dropped, 1);
    }

    #[test]
    fn more_gaps_than_there_are_credits_are_a_lie() {
        let (mut receiver, mut slots) = receiver([8, 2]);
        let mut sequence = 1;
        let refused = loop {
            match take(&mut receiver, &mut slots, &piece(sequence, 10)) {
                Ok(taken) => assert_eq!(taken, Taken::Yes),
                Err(fault) => break fault,
            }
            sequence += 2;
            assert!(sequence < 1000, "gaps without an end");
        };
        assert_eq!(refused, PeerFault::Sequence { claimed: 23, expected: 0 });
    }

    #[test]
    fn a_piece_that_stands_or_waits_for_one_that_does_not_come_is_noticed_at_the_second_look() {
        let part = |sequence, begin: u32, bytes: usize| {
            let head = Head { after: (sequence > 0).into(), message_bytes: 4096, begin, ..piece(sequence, 4096) };
            (head, vec![7; bytes])
        };
        let begun = || {
            let (mut receiver, mut slots) = receiver([8, 4]);
            let come = move |receiver: &mut Receiver, slots: &mut Slots, sequence, begin, bytes| {
                let (head, bytes) = part(sequence, begin, bytes);
                receiver.data(&head, Landed::Elsewhere(&bytes), &mut None, slots, &mut Vec::new())
            };
            assert_eq!(come(&mut receiver, &mut slots, 0, 0, 100), Ok(Taken::Yes));
            assert!(receiver.is_due());
            assert_eq!(receiver.stalled(&mut slots), None, "it came lately");
            (receiver, slots, come)
        };
        let (mut receiver, mut slots, come) = begun();
        assert_eq!(come(&mut receiver, &mut slots, 0, 100, 100), Ok(Taken::Yes));
        assert_eq!(receiver.stalled(&mut slots), Some(0), "a few bytes do not make it go on");

        let (mut receiver, mut slots, _) = begun();
        receiver.excuse();
        assert_eq!(receiver.stalled(&mut slots), None, "it could not go on");
        receiver.excuse();
        assert_eq!(receiver.stalled(&mut slots), Some(0), "that excuses it once");
        let (mut receiver, mut slots, come) = begun();
        receiver.excuse();
        // The next one waits for it, and is not to blame.
        assert_eq!(come(&mut receiver, &mut slots, 1, 0, 4096), Ok(Taken::Yes));
        assert_eq!(receiver.stalled(&mut slots), None);
        assert_eq!(receiver.stalled(&mut slots), Some(0));
        assert_eq!(come(&mut receiver, &mut slots, 0, 100, 3996), Ok(Taken::Yes));
        assert!(!receiver.is_due(), "both are whole");
        assert_eq!(receiver.stalled(&mut slots), None);

        let (mut receiver, mut slots) = self::receiver([8, 4]);
        assert_eq!(come(&mut receiver, &mut slots, 1, 0, 4096), Ok(Taken::Yes));
        assert!(receiver.is_due(), "the one before it is to come");
        assert_eq!(receiver.stalled(&mut slots), None);
        assert_eq!(receiver.stalled(&mut slots), Some(1));
    }

    #[test]
    fn pieces_that_are_not_sent_again_are_let_go_when_nothing_more_comes_of_them() {
        let (mut receiver, mut slots) = receiver([8, 4]);
        let before = slots.counts();
        let head = Head { flags: UNRELIABLE, ..piece(0, 4096) };
        let take = receiver.data(&head, Landed::Elsewhere(&[7; 100]), &mut None, &mut slots, &mut Vec::new());
        assert_eq!(take, Ok(Taken::Yes));
        assert_eq!((receiver.stalled(&mut slots), receiver.under_way()), (None, 1));
        assert_eq!((receiver.stalled(&mut slots), receiver.under_way()), (None, 0));
        assert_eq!((slots.counts().free, receiver.counts.dropped, receiver.is_due()), (before.free, 1, false));
    }

    #[test]
    fn who_waits_is_given_one_at_a_time_and_has_to_use_it_while_others_wait() {
        let (mut first, mut slots) = receiver([0, 4]);
        assert_eq!(first.open(), [0, 2], "half is given ahead");
        let peer = |slots: &mut Slots, wants| {
            let mut peer = Receiver::new(slots.sizes(), 8, [0, 4]);
            let head = Head { flags: wants, ..Head::empty(Kind::Control, 7) };
            peer.control(&head, true, &mut Vec::new()).expect("it may wait");
            peer
        };
        let mut second = peer(&mut slots, WANTS_LARGE);
        second.top_up(&mut slots, 1, [false; 2]);
        assert_eq!((second.open(), second.is_due()), ([0, 1], true));
        assert_eq!((second.stalled(&mut slots), second.stalled(&mut slots)), (None, None), "nobody else waits");
        let mut third = peer(&mut slots, WANTS_LARGE);
        third.top_up(&mut slots, 1, [false; 2]);
        assert_eq!(third.lacking(), [false, true], "the last quarter is not for those that have sent nothing");
        let place = slots.join_line(third.lacking(), true);
        assert_eq!(second.stalled(&mut slots), Some(0), "another one waits");
        slots.leave_line(place);
        assert_eq!(take(&mut first, &mut slots, &piece(0, 4096)), Ok(Taken::Yes));
        assert_eq!(take(&mut first, &mut slots, &piece(1, 4096)), Ok(Taken::Yes));
        let head = Head { flags: WANTS_LARGE, ..Head::empty(Kind::Control, 7) };
        first.control(&head, true, &mut Vec::new()).expect("it may wait");
        first.top_up(&mut slots, 1, [false; 2]);
        assert_eq!(first.open(), [0, 1], "who has sent something is given of the last quarter");
        let place = slots.join_line(third.lacking(), true);
        let used = second.data(&piece(0, 4096), Landed::Elsewhere(&[7; 4096]), &mut None, &mut slots, &mut Vec::new());
        assert_eq!(used, Ok(Taken::Yes));
        assert_eq!((second.stalled(&mut slots), second.is_due()), (None, false), "it has used it");
        slots.leave_line(place);
        for mut receiver in [first, second, third] {
            receiver.forget(&mut slots);
        }
        let counts = slots.counts();
        assert_eq!((counts.promised, slots.promise(Class::Large, 4, Need::Newcomer)), ([0, 0], 3));
    }

    #[test]
    fn who_does_not_send_again_is_not_shut_out_by_what_others_have_ahead() {
        let (other, mut slots) = receiver([8, 4]);
        assert_eq!(other.open(), [8, 2]);
        let mut receiver = Receiver::new(slots.sizes(), 8, [8, 4]);
        receiver.top_up(&mut slots, 2, [false; 2]);
        assert_eq!(receiver.open(), [8, 0], "half is out");
        let head = Head { flags: UNRELIABLE, ..piece(0, 4096) };
        assert_eq!(take(&mut receiver, &mut slots, &head), Ok(Taken::Yes));
    }

    #[test]
    fn each_of_many_peers_has_its_part_of_what_is_given_ahead() {
        let (_, mut slots) = receiver([0, 0]);
        let mut peers: Vec<_> = (0..8).map(|_| Receiver::new(slots.sizes(), 8, [64, 4])).collect();
        peers.iter_mut().for_each(|peer| peer.top_up(&mut slots, 8, [false; 2]));
        assert!(peers.iter().all(|peer| peer.open()[0] == 4), "of 64 slots 32 are given ahead");
    }
}
