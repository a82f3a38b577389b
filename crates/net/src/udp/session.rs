//! One side of a session over datagrams: what it sends and what it receives. No I/O, no clock.

use zcmi_mem::pool::Slot;

use super::Reliability;
use super::datagram::{CONTROL_BYTES, HEAD_BYTES, Head, Kind, RANGES, Report, WANTS_LARGE, WANTS_SMALL};
use super::pace::Nanos;
use super::receiver::{Landed, Receiver, Taken};
use super::sender::Sender;
use crate::frame::FrameFault;
use crate::incoming::PeerFault;
use crate::link::{Happened, LinkLimits};
use crate::outgoing::Token;
use crate::slots::Slots;

/// So many control datagrams that tell the same are told apart.
const TELLING: usize = 8;

/// One side of a session.
pub(crate) struct Session {
    /// The first half of the session's name, which every datagram bears.
    pub(crate) word: u64,
    pub(crate) epoch: u32,
    pub(crate) sender: Sender,
    pub(crate) receiver: Receiver,
    /// Messages that are done.
    pub(crate) done: Vec<Token>,
    /// The first control datagrams that told what credits the peer has now.
    telling: Vec<u64>,
    /// Bytes that our socket takes without being read.
    window_bytes: u32,
}

impl Session {
    /// A session in which nothing was said yet.
    pub(crate) fn new(
        word: u64,
        limits: &LinkLimits,
        reliability: Reliability,
        segment: u32,
        window_bytes: u32,
        slots: &Slots,
        now: Nanos,
    ) -> Self {
        Self {
            word,
            epoch: 0,
            sender: Sender::new(limits.queue, reliability, segment, now),
            receiver: Receiver::new(slots.sizes(), limits.streams, limits.credits),
            done: Vec::new(),
            telling: Vec::new(),
            window_bytes,
        }
    }

    /// Takes a datagram of the session and its epoch, or several that lie in place, with the first one's head; what is
    /// left of `ahead` was not needed. Says whether it was used.
    ///
    /// # Errors
    /// [`PeerFault`] for what no honest peer sends.
    pub(crate) fn take(
        &mut self,
        head: &Head,
        landed: Landed<'_>,
        ahead: &mut Option<Slot>,
        slots: &mut Slots,
        happened: &mut Vec<Happened>,
        now: Nanos,
    ) -> Result<bool, PeerFault> {
        // Of several in a row some may count as known that did not come: all are sent again.
        if self.receiver.knows_any(head.number, landed.datagrams()) {
            self.receiver.note_again(head);
            return Ok(false);
        }
        match (head.kind, landed) {
            (Kind::Data, landed) => {
                let taken = self.receiver.data(head, landed, ahead, slots, happened)?;
                if taken != Taken::Dropped {
                    self.receiver.note(head, landed.datagrams(), now);
                }
                self.sender.alive();
                Ok(taken == Taken::Yes)
            }
            (Kind::Control, Landed::Elsewhere(bytes)) => {
                let report = Report::decode(bytes).map_err(|_| FrameFault::Kind(2))?;
                // Only who wishes for something is asked what it has heard: reports are many.
                let wishes = head.has(WANTS_SMALL) || head.has(WANTS_LARGE);
                self.receiver.control(head, wishes && self.has_heard(&report), happened)?;
                self.receiver.note(head, 1, now);
                self.sender.report(&report, now, &mut self.done)?;
                happened.extend(self.done.drain(..).map(Happened::Completed));
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Whether a peer that reports this knows what credits it has. Where that cannot be seen it is taken to know.
    fn has_heard(&self, report: &Report) -> bool {
        let Some(&first) = self.telling.first() else { return true };
        let ranges = &report.ranges[..report.count];
        if ranges.first().is_none_or(|&(_, end)| end <= first) {
            return false;
        }
        let is_cut = ranges.len() == RANGES && ranges.iter().all(|&(begin, _)| begin > first);
        let names = |number: &u64| ranges.iter().any(|(begin, end)| (begin..end).contains(&number));
        self.telling.len() == TELLING || is_cut || self.telling.iter().any(names)
    }

    /// Writes the next control datagram, if one is due, and says how long it is. With `flush`, what came is told though
    /// nothing else is due.
    pub(crate) fn speak(&mut self, bytes: &mut [u8; CONTROL_BYTES], flush: bool, now: Nanos) -> Option<usize> {
        let owes_credits = self.receiver.owes_credits();
        if !(self.sender.must_speak() || owes_credits || (flush && self.receiver.owes)) {
            return None;
        }
        let tells_more = self.receiver.has_untold();
        let report = self.receiver.report(self.window_bytes, now);
        let length = HEAD_BYTES + report.encode(&mut bytes[HEAD_BYTES..]);
        // Credits that somebody waits for must not be lost.
        let (number, flags, sequence) = self.sender.speak(owes_credits, length as u64, now);
        if tells_more {
            self.telling.clear();
        }
        // Who was given nothing yet has nothing to hear of.
        if tells_more || (1..TELLING).contains(&self.telling.len()) {
            self.telling.push(number);
        }
        let head = Head { number, flags, sequence, epoch: self.epoch, ..Head::empty(Kind::Control, self.word) };
        bytes[..HEAD_BYTES].copy_from_slice(&head.bytes());
        Some(length)
    }

    /// The peer says that both sides had ended the session, with so many of our pieces received.
    ///
    /// # Errors
    /// [`PeerFault`] if that cannot be.
    pub(crate) fn ended_there(&mut self, pieces: u64) -> Result<(), PeerFault> {
        if !self.receiver.has_ended() {
            return Err(PeerFault::End { sequence: pieces, fault: "we had not heard its own end" });
        }
        self.sender.ended_there(pieces, &mut self.done)?;
        // Nobody is left to hear what we owe.
        self.receiver.owes = false;
        Ok(())
    }

    /// Whether the peer knows that everything came, as far as that can be known.
    pub(crate) fn is_finished(&self) -> bool {
        self.sender.is_finished() && self.receiver.has_ended() && !self.receiver.owes
    }

    /// Whether a peer that forgot the session may have done so because both sides had ended it.
    pub(crate) fn may_be_finished(&self) -> bool {
        self.sender.has_ended() && self.receiver.has_ended()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slots::SlotPlan;

    #[test]
    fn who_has_not_heard_of_its_credits_does_not_wait_for_more() {
        let plan =
            SlotPlan { small_bytes: 512, small_slots: 8, slot_bytes: 4096, large_slots: 8, headers: 1, loans: None };
        let mut slots = Slots::new(&plan).expect("memory");
        let limits = LinkLimits { credits: [2, 2], ..LinkLimits::default() };
        let mut session = Session::new(7, &limits, Reliability::Reliable, 1216, 1 << 20, &slots, 0);
        let asks = |session: &mut Session, slots: &mut Slots, number, heard: bool| {
            let head = Head { number, flags: WANTS_LARGE, ..Head::empty(Kind::Control, 7) };
            let mut report =
                Report { granted: [0; 2], window_bytes: 0, delay_us: 0, ranges: [(0, 0); RANGES], count: heard.into() };
            report.ranges[0] = (0, 1);
            let mut bytes = [0; CONTROL_BYTES];
            let length = report.encode(&mut bytes);
            let landed = Landed::Elsewhere(&bytes[..length]);
            session.take(&head, landed, &mut None, slots, &mut Vec::new(), 0).expect("an honest peer");
        };
        let uses_two = |session: &mut Session, slots: &mut Slots, from| {
            for sequence in from..from + 2 {
                let head = Head { number: 100 + sequence, sequence, message_bytes: 4096, ..Head::empty(Kind::Data, 7) };
                let landed = Landed::Elsewhere(&[0; 4096]);
                session.take(&head, landed, &mut None, slots, &mut Vec::new(), 0).expect("an honest peer");
            }
        };
        // The first datagram tells of two credits, the second of two more.
        for (told, heard) in [(0, false), (1, true)] {
            session.receiver.top_up(&mut slots, 1, [false; 2]);
            assert_eq!(session.receiver.open(), [2, 2]);
            session.speak(&mut [0; CONTROL_BYTES], true, 0).expect("credits are told");
            asks(&mut session, &mut slots, 1 + told, heard);
            uses_two(&mut session, &mut slots, 2 * told);
            assert_eq!(session.receiver.lacking(), [false; 2], "it asked before it had heard of the last two credits");
        }
        session.telling = vec![0];
        asks(&mut session, &mut slots, 200, true);
        assert_eq!(session.receiver.lacking(), [false, true], "it has heard of all, used them, and asks");
    }
}
