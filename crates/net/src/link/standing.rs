//! How a link stands: what it has, lacks and owes.

use super::*;

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
        self.wire.is_some() && !self.lacks_slot() && (begun || self.lent != [false; 2])
    }

    /// How far the peer has come: the piece that is expected, and how much of it is there.
    #[must_use]
    pub fn progress(&self) -> (u64, usize) {
        (self.expected(), self.filling.as_ref().map_or(0, |filling| filling.filled))
    }

    /// Whether a notification is owed.
    #[must_use]
    pub fn is_owed(&self) -> bool {
        self.outgoing.is_owed()
    }
}
