//! How a link stands: what it has, lacks and owes.

use super::*;

/// How many bytes must come in the time that a peer has to go on, where it does not end what it began.
pub(crate) const GOING_ON_BYTES: u64 = 4096;

/// Who has so many bytes to send, or to have acknowledged, has them in long slots.
const LONG_BYTES: u32 = 64 << 10;

/// How far a peer has come.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// The piece that is expected.
    pub piece: u64,
    bytes: u64,
    lent: [u32; 2],
}

impl Progress {
    /// Whether the peer went on since `before`: it ended a piece and holds no slot since then that it waited for, or
    /// enough came. (Who sends other pieces, of no bytes, would hold such a slot for ever.)
    #[must_use]
    pub fn goes_on(&self, before: &Self) -> bool {
        let holds = self.lent.iter().zip(&before.lent).any(|(now, before)| *now != 0 && now == before);
        self.piece != before.piece && !holds || self.bytes >= before.bytes + GOING_ON_BYTES
    }
}

impl<W: Wire> Link<W> {
    /// The path that is forced, if one is.
    #[must_use]
    pub fn forced(&self) -> Option<PathKind> {
        match self.choosing {
            Choosing::Forced(path) => Some(path),
            Choosing::Cheapest { .. } => None,
        }
    }

    /// Ends well without a wire: the peer did so after our end, with this many of our pieces received, and only its
    /// last frame was lost.
    ///
    /// # Errors
    /// [`PeerFault`] if that cannot be: it claims what was never sent, or ended before us; what it has is settled all
    /// the same.
    pub fn ended(&mut self, theirs: &Hello, happened: &mut Vec<Happened>) -> Result<(), PeerFault> {
        debug_assert!(self.wire.is_none(), "the wire before was released");
        self.outgoing.ended(theirs.resume_from, &mut self.tokens)?;
        self.complete(happened);
        if self.incoming.tell_end() {
            happened.push(Happened::Ended);
        }
        Ok(())
    }

    /// Whether both sides have ended, and everything that was sent is received and free.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.outgoing.is_finished() && self.incoming.is_ended() && self.incoming.untold().0 == 0
    }

    /// How many messages were taken and have not completed.
    #[must_use]
    pub fn unfinished(&self) -> usize {
        self.outgoing.unfinished()
    }

    /// Bytes whose pages the kernel may read after the call.
    #[must_use]
    pub fn pinned_bytes(&self) -> u64 {
        self.outgoing.pinned_bytes()
    }

    /// Whether it could go on sending at once: its turn ended for the sake of others.
    #[must_use]
    pub fn has_turn(&self) -> bool {
        self.has_turn
    }

    /// Whether frames wait for the socket to take them.
    #[must_use]
    pub fn has_queued(&self) -> bool {
        self.outgoing.has_queued()
    }

    /// Whether the peer will send nothing more.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.incoming.is_ended()
    }

    /// Whether the peer does not know yet of everything that was received.
    #[must_use]
    pub fn owes_note(&self) -> bool {
        self.incoming.untold().0 > 0
    }

    /// Whether the peer waits for credits that could not be given.
    #[must_use]
    pub fn is_short(&self) -> bool {
        self.lacking() != [false; 2]
    }

    /// The classes of these credits.
    #[must_use]
    pub fn lacking(&self) -> [bool; 2] {
        let (wants, open) = (self.incoming.wants(), self.incoming.open());
        [0, 1].map(|class| self.wire.is_some() && wants[class] && open[class] == 0)
    }

    /// Whether pieces wait for headers that other connections have.
    #[must_use]
    pub fn lacks_header(&self) -> bool {
        self.lacks_header
    }

    /// Whether the rest of a long piece is to come.
    pub(super) fn fills_long(&self) -> bool {
        self.filling.as_ref().is_some_and(|filling| self.incoming.class_of(filling.header.length) == Class::Large)
    }

    /// Whether it holds a slot for long pieces, here or at the peer, or waits for one at the peer with what it has.
    pub(crate) fn holds_long(&self) -> bool {
        self.fills_long() || self.lent[1] != 0 || self.outgoing.waiting_bytes() > u64::from(LONG_BYTES)
    }

    /// Whether a piece came that has no slot.
    #[must_use]
    pub fn lacks_slot(&self) -> bool {
        self.lacks_slot
    }

    /// Whether the peer has not sent one whole piece.
    #[must_use]
    pub fn is_newcomer(&self) -> bool {
        self.counts.pieces_received == 0
    }

    /// Whether it is the peer's turn to go on: it has begun a frame, or was given credits because it waited for them.
    #[must_use]
    pub fn is_due(&self) -> bool {
        let begun = self.header_filled > 0 || self.filling.is_some();
        self.wire.is_some() && !self.lacks_slot() && (begun || self.lent != [0; 2])
    }

    /// How far the peer has come.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let filled = self.filling.as_ref().map_or(0, |filling| filling.filled as u64);
        Progress { piece: self.expected(), bytes: self.counts.bytes_received + filled, lent: self.lent }
    }

    /// Whether a notification is owed.
    #[must_use]
    pub fn is_owed(&self) -> bool {
        self.outgoing.is_owed()
    }

    /// How many credits of a class are kept open for the peer.
    pub(super) fn aim(&self, class: usize) -> u32 {
        FIRST_CREDITS[class].saturating_add(self.whole[class]).min(self.limits.credits[class])
    }

    /// Gives the peer credits again, as far as there are slots, when half of them are used, or it waits for some.
    ///
    /// Of those that are not given ahead, but for the few for peers that are known, a peer gets one at a time: it waits
    /// for that one, so that none is left over with a peer that has nothing more to send, while others wait for it.
    ///
    /// Others who wait for some come before it, unless it stands at the front of their line.
    pub fn top_up(&mut self, slots: &mut Slots, at_front: bool) {
        for class in Class::ALL {
            let index = class.index();
            let (open, aim) = (self.incoming.open()[index], self.aim(index));
            if open * 2 > aim {
                continue;
            }
            let waits = open == 0 && self.incoming.wants()[index];
            let mut got = slots.promise(class, aim - open, Need::Ahead);
            if got == 0 && !self.is_newcomer() {
                got = slots.promise(class, aim - open, Need::Known);
                self.known[index] += got;
            }
            if got == 0 && waits {
                got = match self.is_newcomer() {
                    true => {
                        let got = slots.promise(class, 1, Need::Newcomer);
                        self.newcomer[index] += got;
                        got
                    }
                    false if at_front || !slots.has_line(class) => slots.promise(class, 1, Need::Waiting),
                    false => 0,
                };
            }
            if got > 0 && waits && self.lent[index] == 0 {
                self.loan = self.loan.wrapping_add(1).max(1);
                self.lent[index] = self.loan;
            }
            self.incoming.grant(class, got);
        }
    }
}
