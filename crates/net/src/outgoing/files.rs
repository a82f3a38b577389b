//! Frames whose payload lies in a file: each goes alone.

use super::*;
use crate::wire::FileFrame;

impl Outgoing {
    /// What is left to send of the frame at the front, if its payload lies in a file.
    #[must_use]
    pub fn file_frame(&self) -> Option<FileFrame<'_>> {
        let &Queued::Data(sequence) = self.queue.front()? else { return None };
        let piece = self.piece(sequence)?;
        let Payload::File(file) = &self.message(piece.message)?.payload else { return None };
        let header = piece.header.as_ref()?.bytes(HEADER_BYTES);
        let skipped = self.front_sent.saturating_sub(HEADER_BYTES);
        Some(FileFrame {
            header: &header[self.front_sent.min(HEADER_BYTES)..],
            file: file.descriptor(),
            offset: file.offset() + u64::from(piece.offset) + skipped as u64,
            bytes: piece.length as usize - skipped,
        })
    }

    /// Notes that zeros go in the place of bytes of the frame at the front. Returns its message, the first time.
    pub fn spoil_front(&mut self) -> Option<Token> {
        let &Queued::Data(sequence) = self.queue.front()? else { return None };
        let number = self.piece(sequence)?.message;
        let message = self.message_mut(number)?;
        let is_first = !core::mem::replace(&mut message.spoilt, true);
        is_first.then_some(message.token)
    }
}
