//! What a connection needs of the kernel, as a trait, so that a model which delays, doubles, reorders and refuses can
//! stand in for it.
//!
//! A [`Wire`] is one connected stream of bytes. Every call returns at once. What it accepts leaves in the order of the
//! calls, whichever paths were used.
//!
//! # Invariants
//! - A send that was accepted in part took the first bytes of its segments; the caller sends the rest later.
//! - A send whose release is [`Release::Notified`] is notified exactly once if the kernel keeps its word. Who listens
//!   must not rely on it: a notification may come twice, late, out of order, or never.
//! - A send that was refused owes no notification, and its bytes are not read any more.

use std::io::{self, IoSliceMut};
use std::os::fd::BorrowedFd;

use crate::path::{PathKind, Release};

/// Where a segment lies in memory that the kernel may read by other means than its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Home {
    /// The region's number in the table that the wire and its user share.
    pub region: usize,
    /// Where the segment begins, bytes from the beginning of the region's mapping.
    pub offset: usize,
}

/// Consecutive bytes to send.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// The bytes.
    pub bytes: &'a [u8],
    /// Where they lie, if in a region of this process's own.
    pub home: Option<Home>,
}

/// A frame whose payload lies in a file.
#[derive(Clone, Copy, Debug)]
pub struct FileFrame<'a> {
    /// The rest of its header; empty if that was sent.
    pub header: &'a [u8],
    /// The file.
    pub file: BorrowedFd<'a>,
    /// Where in the file the rest of the payload begins.
    pub offset: u64,
    /// How many bytes that is.
    pub bytes: usize,
}

/// What became of a send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// How many bytes were accepted, from the front of the first segment on.
    pub bytes: usize,
    /// When these bytes may be written again.
    pub release: Release,
}

/// Word from the kernel that it is done with the bytes of sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notification {
    /// The number of the first send.
    pub first: u64,
    /// The number of the last send.
    pub last: u64,
    /// Whether the kernel says that it copied the bytes after all.
    pub copied: bool,
}

/// One connected stream of bytes.
pub trait Wire {
    /// Sends a prefix of the segments by a path.
    ///
    /// # Errors
    /// The kernel's own. `WouldBlock`: nothing was accepted, try again when the socket is writable. `ENOBUFS`: the
    /// path is short of memory that it may lock; another path may still send.
    fn send(&mut self, path: PathKind, segments: &[Segment<'_>]) -> io::Result<Sent>;

    /// Sends a prefix of a frame, its payload out of the file's own pages; says how many bytes were accepted. Nothing
    /// is to be released: the pages are the file's. 0 if the file ends before them.
    ///
    /// # Errors
    /// As [`send`](Self::send). `Unsupported` if the wire, or the file, has no such path.
    fn send_file(&mut self, frame: &FileFrame<'_>) -> io::Result<usize> {
        let _unread = frame;
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Receives into the buffers, in their order; 0 is the end of the stream.
    ///
    /// # Errors
    /// The kernel's own; `WouldBlock` if nothing is there.
    fn receive(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize>;

    /// Gives each notification that has come to `each`.
    ///
    /// # Errors
    /// The kernel's own.
    fn notifications(&mut self, each: &mut dyn FnMut(Notification)) -> io::Result<()>;

    /// How many sends are owed a notification.
    fn owed(&self) -> u64;

    /// Says that nothing more will be sent; what was accepted still arrives.
    ///
    /// # Errors
    /// The kernel's own.
    fn end(&mut self) -> io::Result<()>;

    /// Ends the connection at once: what the kernel has not sent yet is thrown away where the kernel can, so that the
    /// notifications that are owed come soon.
    fn abort(&mut self);
}
