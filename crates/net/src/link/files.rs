//! Sending messages that lie in files.

use super::*;
use crate::file;
use crate::path::Release;
use crate::wire::Segment;

impl<W: Wire> Link<W> {
    /// Sends of the frame at the front, whose payload lies in a file: out of the file's pages, or where that cannot be
    /// by reading, counted.
    pub(super) fn send_file_frame(&mut self, slots: &mut Slots) -> io::Result<usize> {
        let Some(wire) = &mut self.wire else { return Err(io::ErrorKind::NotConnected.into()) };
        let Some(frame) = self.outgoing.file_frame() else { return Ok(0) };
        let (path, mut refusal) = (PathKind::SendFile, None);
        if !matches!(self.choosing, Choosing::Forced(forced) if forced != path) {
            let sent = wire.send_file(&frame);
            match sent {
                Ok(0) => {}
                Ok(bytes) => {
                    self.outgoing.sent(path, bytes, Release::Now);
                    self.counts.paths[path as usize].sends += 1;
                    self.counts.paths[path as usize].bytes += bytes as u64;
                    return Ok(bytes);
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                    return Err(error);
                }
                Err(error) => {
                    // Whether the file or the connection is at fault, reading and a plain send find out.
                    self.counts.paths[path as usize].refused += 1;
                    refusal = Some(error);
                }
            }
        }
        let mut stage = slots.take_stage();
        let sent = self.copy_file_frame(&mut stage);
        slots.return_stage(stage);
        if let Some(error) = refusal
            && sent.as_ref().map_or_else(|error| error.kind() == io::ErrorKind::WouldBlock, |_| true)
        {
            self.refused.note(path, &error);
        }
        sent
    }

    /// Reads of the frame at the front what fits the stage, and sends it from there.
    fn copy_file_frame(&mut self, stage: &mut [u8]) -> io::Result<usize> {
        let Some(wire) = &mut self.wire else { return Err(io::ErrorKind::NotConnected.into()) };
        let Some(frame) = self.outgoing.file_frame() else { return Ok(0) };
        let room = frame.bytes.min(stage.len());
        let (filled, trouble) = match file::read_at(frame.file, frame.offset, &mut stage[..room]) {
            Ok(filled) => (filled, None),
            Err(error) => {
                // The frame has said its length, and the peer waits for so many bytes.
                stage[..room].fill(0);
                (room, Some(error))
            }
        };
        let header = frame.header.len();
        let segments = [frame.header, &stage[..filled]].map(|bytes| Segment { bytes, home: None });
        let path = PathKind::Write;
        let sent = wire.send(path, &segments)?.bytes;
        if let Some(error) = trouble.filter(|_| sent > header)
            && let Some(token) = self.outgoing.spoil_front()
        {
            self.unreadable.push((token, error.to_string()));
        }
        self.outgoing.sent(path, sent, Release::Now);
        self.counts.copied_user += sent.saturating_sub(header) as u64;
        self.counts.paths[path as usize].sends += 1;
        self.counts.paths[path as usize].bytes += sent as u64;
        Ok(sent)
    }
}
