//! When pieces, and the messages that they belong to, are free.

use super::*;

impl Outgoing {
    /// Gives back what nobody needs of a piece whose bytes the socket has copied.
    pub(super) fn let_go(&mut self, sequence: u64) {
        let Some(piece) = self.piece_mut(sequence).filter(|piece| piece.pins == 0 && !piece.shared) else { return };
        piece.header = None;
        let number = piece.message;
        let Some(message) = self.message_mut(number) else { return };
        message.unsent_pieces -= 1;
        if message.unsent_pieces == 0 && message.whole_framed {
            message.payload = Payload::Unique(LeaseMut::inline(0));
        }
    }

    /// Notes that the kernel is done with sends, and says by which path each was made. What names none that is owed is
    /// ignored.
    pub fn notified(&mut self, notification: Notification, done: &mut Vec<Token>, each: &mut dyn FnMut(PathKind)) {
        let kind = usize::from(notification.first >= URING_NUMBERS);
        let begin = self.flights[kind].partition_point(|flight| flight.number < notification.first);
        for index in begin..self.flights[kind].len() {
            let flight = &mut self.flights[kind][index];
            if flight.number > notification.last {
                break;
            }
            if core::mem::take(&mut flight.open) {
                each(flight.path);
                let (first, last) = (flight.first, flight.last);
                (first..=last).for_each(|sequence| self.unpin(sequence, done));
            }
        }
        while self.flights[kind].front().is_some_and(|flight| !flight.open) {
            self.flights[kind].pop_front();
        }
        self.pop_finished();
    }

    fn unpin(&mut self, sequence: u64, done: &mut Vec<Token>) {
        let acknowledged = sequence < self.acknowledged;
        let Some(piece) = self.piece_mut(sequence) else { return };
        piece.pins -= 1;
        if piece.pins == 0 {
            let length = u64::from(piece.length);
            self.pinned_bytes -= length;
            if acknowledged {
                self.finish_piece(sequence, done);
            }
        }
    }

    /// Refuses that the peer has every piece below `upto`, where so many were `sent`.
    pub(super) fn check_acknowledged(&self, upto: u64, sent: u64) -> Result<(), PeerFault> {
        if upto < self.acknowledged || upto > sent {
            return Err(PeerFault::Acknowledged { claimed: upto, before: self.acknowledged, sent });
        }
        Ok(())
    }

    /// Notes that the peer received every piece below `upto`.
    ///
    /// # Errors
    /// [`PeerFault`] if that is less than before, or more than was sent since the epoch began.
    pub fn acknowledged(&mut self, upto: u64, done: &mut Vec<Token>) -> Result<(), PeerFault> {
        if upto == self.acknowledged {
            return Ok(());
        }
        // Pieces that it lacked in the greeting, and that are not sent again yet, it cannot have.
        self.check_acknowledged(upto, self.sent_here)?;
        self.settle(upto, done);
        Ok(())
    }

    /// Notes that the peer received every piece below `upto`, which is [possible](Self::check_acknowledged).
    pub(super) fn settle(&mut self, upto: u64, done: &mut Vec<Token>) {
        let from = core::mem::replace(&mut self.acknowledged, upto);
        for sequence in from..upto {
            let Some(piece) = self.piece_mut(sequence) else { continue };
            let (pins, length) = (piece.pins, u64::from(piece.length));
            if core::mem::take(&mut piece.shared) {
                let number = piece.message;
                self.pinned_bytes = self.pinned_bytes.saturating_sub(length);
                self.note_settled(number);
            }
            if pins == 0 {
                self.finish_piece(sequence, done);
            }
        }
        self.pop_finished();
    }

    /// Bytes of the messages of which pieces wait for the peer's word that nobody reads them any more: if it dies, no
    /// one ever says it, and they are out of use for ever.
    #[must_use]
    pub fn at_risk(&self) -> u64 {
        self.at_risk
    }

    /// How many bytes more would be at risk if the piece were sent so.
    pub(super) fn risk_of(&self, sequence: u64) -> u64 {
        let message = self.piece(sequence).and_then(|piece| self.message(piece.message));
        message.filter(|message| message.shared_pieces == 0).map_or(0, |message| u64::from(message.bytes))
    }

    /// The same of the frame at the front.
    #[must_use]
    pub fn risk_of_front(&self) -> u64 {
        match self.queue.front() {
            Some(&Queued::Data(sequence)) => self.risk_of(sequence),
            Some(Queued::Control(_)) | None => 0,
        }
    }

    /// A piece of the message waits for the peer's word.
    pub(super) fn note_shared(&mut self, number: u64) {
        let Some(message) = self.message_mut(number) else { return };
        message.shared_pieces += 1;
        if message.shared_pieces == 1 {
            let bytes = u64::from(message.bytes);
            self.at_risk += bytes;
        }
    }

    /// A piece of the message has got it.
    fn note_settled(&mut self, number: u64) {
        let Some(message) = self.message_mut(number) else { return };
        message.shared_pieces -= 1;
        if message.shared_pieces == 0 {
            let bytes = u64::from(message.bytes);
            self.at_risk -= bytes;
        }
    }

    /// The piece is neither to be sent again nor read by the kernel any more.
    pub(super) fn finish_piece(&mut self, sequence: u64, done: &mut Vec<Token>) {
        let Some(piece) = self.piece_mut(sequence) else { return };
        if core::mem::replace(&mut piece.finished, true) {
            return;
        }
        piece.header = None;
        let number = piece.message;
        let Some(message) = self.message_mut(number) else { return };
        message.open_pieces -= 1;
        if message.open_pieces == 0 && message.whole_framed {
            let index = (number - self.first_message) as usize;
            if let Some(message) = self.messages[index].take() {
                self.live_messages -= 1;
                self.waiting_bytes -= u64::from(message.bytes);
                done.push(message.token);
            }
            while self.messages.front().is_some_and(Option::is_none) {
                self.messages.pop_front();
                self.first_message += 1;
            }
        }
    }

    pub(super) fn pop_finished(&mut self) {
        while self.pieces.front().is_some_and(|piece| piece.finished) {
            self.pieces.pop_front();
            self.first_piece += 1;
        }
    }
}
