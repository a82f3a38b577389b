//! Bytes of a file that are sent from where they lie, without being read into a slot.
//!
//! The file is the application's, and others may change it at any time: what is sent is what lies there when the
//! receiving side takes it, which may be later than the call that sent it. Nothing here notices a change; who must
//! know looks at the file again when the message has completed, or sends a hash of what it read itself.
//!
//! # Invariants
//! - The file is read by calls, never by a mapping: one that becomes shorter is an answer, and no SIGBUS.
//! - A message keeps the length that it was submitted with, because its frames have said it. Where the file has no such
//!   bytes any more zeros go in their place, and [`Unreadable`](crate::transport::Event::Unreadable) tells of it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;

/// A part of a file.
#[derive(Clone, Debug)]
pub struct FileBytes {
    file: Arc<OwnedFd>,
    offset: u64,
    bytes: usize,
}

impl FileBytes {
    /// So many bytes from `offset` on. The file must be one that can be read at any place, such as a plain file.
    #[must_use]
    pub fn new(file: Arc<OwnedFd>, offset: u64, bytes: usize) -> Self {
        Self { file, offset, bytes }
    }

    /// Where in the file it begins.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// How many bytes it is.
    #[must_use]
    pub fn byte_len(&self) -> usize {
        self.bytes
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Reads what lies at `offset` until the room is full or the file ends. An error behind bytes that were read is left
/// for the next call, which meets it again.
///
/// # Errors
/// The kernel's own; `UnexpectedEof` if the file ends before `offset`.
pub(crate) fn read_at(file: BorrowedFd<'_>, offset: u64, room: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < room.len() {
        match rustix::io::pread(file, &mut room[filled..], offset + filled as u64) {
            Ok(0) if filled == 0 => {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("it ends before byte {offset}")));
            }
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(Errno::INTR) => {}
            Err(errno) if filled == 0 => return Err(errno.into()),
            Err(_) => break,
        }
    }
    Ok(filled)
}
