//! Whether a path copied: the bytes are changed after they were sent, and the receiver is asked which it got.
//!
//! ```text
//! fill(OLD)   send   wait until nothing is unsent and all is there   fill(NEW)   receive
//!                                                                                 OLD: copied
//!                                                                                 NEW: shared
//! ```
//!
//! The kernel's own word, the flag of a completion, is not asked: on some wires it is wrong. The oracle needs a
//! receiver. On a sink, which has none, there is only the kernel's word, and that the sink counts what it freed; that
//! the word is true there follows from the device, which never reads a packet, and shows in the processor time of
//! sends.
//!
//! # Invariants
//! - The bytes change only when the receiver's queue holds everything that was accepted, so that a copy that is
//!   made on the way is made before. What is not there in time is an error and no verdict.
//! - A byte that is neither the old nor the new one is an error.
//!
//! # What this does not do
//! It cannot see a copy that is made after the bytes were changed, when the receiver reads: that one every path makes.

mod sys;

use core::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::fs::{MemfdFlags, OFlags, fcntl_getfl, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, recv, send, sockopt};
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

use crate::wires::wait_for;

/// What the bytes are when they are sent.
const OLD: u8 = 0xa5;
/// What they are after that.
const NEW: u8 = 0x3c;

/// How long bytes and notices may take to arrive.
const PATIENCE: Duration = Duration::from_secs(10);

/// What became of the bytes of one send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truth {
    /// All of them were copied when they were sent or on the way.
    Copied,
    /// None were: the receiver reads the sender's own pages.
    Shared,
    /// Some were.
    Mixed {
        /// How many.
        copied_bytes: usize,
    },
}

impl Truth {
    /// Reads the truth from what was received: [`OLD`] or [`NEW`] in each place.
    fn of(received: &[u8]) -> Result<Self, OracleError> {
        let neither = received.iter().position(|&byte| byte != OLD && byte != NEW);
        if let Some(at) = neither {
            return Err(OracleError::Foreign { at, byte: received[at] });
        }
        Ok(match received.iter().filter(|&&byte| byte == OLD).count() {
            0 => Self::Shared,
            copied if copied == received.len() => Self::Copied,
            copied_bytes => Self::Mixed { copied_bytes },
        })
    }
}

impl fmt::Display for Truth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Copied => f.pad("copied"),
            Self::Shared => f.pad("shared"),
            Self::Mixed { copied_bytes } => write!(f, "mixed ({copied_bytes} bytes copied)"),
        }
    }
}

/// Why there is no verdict.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OracleError {
    /// A system call failed.
    #[error("{call}: {source}")]
    System {
        /// The call.
        call: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The path did not send.
    #[error("the path did not send: {0}")]
    Send(#[source] io::Error),
    /// The path accepted nothing.
    #[error("the path accepted no bytes")]
    Nothing,
    /// Not everything arrived in time.
    #[error("{arrived} of {accepted} bytes arrived in {seconds} s; send less than the receiver's buffer holds")]
    Missing {
        /// How many arrived.
        arrived: usize,
        /// How many the path accepted.
        accepted: usize,
        /// How long they were waited for.
        seconds: u64,
    },
    /// A byte that was never sent.
    #[error("byte {at} is {byte:#04x}, which is neither what was sent nor what it was changed to")]
    Foreign {
        /// Where it is.
        at: usize,
        /// What it is.
        byte: u8,
    },
}

fn failed<E: Into<io::Error>>(call: &'static str) -> impl Fn(E) -> OracleError {
    move |error| OracleError::System { call, source: error.into() }
}

/// Finds out what a path does between a connected pair of sockets with nothing under way.
///
/// `fill` gives all bytes that may be sent this value; `send` sends a prefix of them and says how many it is. Both are
/// called in turn: `fill`, `send`, `fill`. For datagrams `send` sends one.
///
/// # Errors
/// If there is no verdict; the pair is then of no use any more.
pub fn ask<S>(
    sender: BorrowedFd<'_>,
    receiver: BorrowedFd<'_>,
    source: &mut S,
    fill: impl Fn(&mut S, u8) -> io::Result<()>,
    send: impl FnOnce(&mut S) -> io::Result<usize>,
) -> Result<Truth, OracleError> {
    fill(source, OLD).map_err(failed("filling"))?;
    let accepted = send(source).map_err(OracleError::Send)?;
    if accepted == 0 {
        return Err(OracleError::Nothing);
    }
    arrive(sender, receiver, accepted, PATIENCE)?;
    fill(source, NEW).map_err(failed("filling"))?;
    Truth::of(&take(receiver, accepted)?)
}

/// Waits until nothing is unsent and the receiver's queue holds `accepted` bytes.
fn arrive(
    sender: BorrowedFd<'_>,
    receiver: BorrowedFd<'_>,
    accepted: usize,
    patience: Duration,
) -> Result<(), OracleError> {
    let of_tcp = is_tcp(sender)?;
    let start = Instant::now();
    loop {
        let unsent = if of_tcp { sys::unsent(sender).map_err(failed("ioctl(SIOCOUTQNSD)"))? } else { 0 };
        let arrived = rustix::io::ioctl_fionread(receiver).map_err(failed("ioctl(SIOCINQ)"))? as usize;
        if unsent == 0 && arrived >= accepted {
            return Ok(());
        }
        if start.elapsed() > patience {
            return Err(OracleError::Missing { arrived, accepted, seconds: patience.as_secs() });
        }
        // A socket with something to read is readable whether or not it is everything, so there is nothing to wait for
        // but the rest itself, and that takes no longer than the wire.
        std::thread::yield_now();
    }
}

/// Receives that many bytes.
fn take(receiver: BorrowedFd<'_>, bytes: usize) -> Result<Vec<u8>, OracleError> {
    let mut received = vec![0; bytes];
    let mut got = 0;
    while got < bytes {
        match recv(receiver, &mut received[got..], RecvFlags::DONTWAIT) {
            Ok((0, _)) => return Err(OracleError::Missing { arrived: got, accepted: bytes, seconds: 0 }),
            Ok((more, _)) => got += more,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(failed("recv")(errno)),
        }
    }
    Ok(received)
}

fn is_tcp(socket: BorrowedFd<'_>) -> Result<bool, OracleError> {
    let domain = sockopt::socket_domain(socket).map_err(failed("getsockopt(SO_DOMAIN)"))?;
    let kind = sockopt::socket_type(socket).map_err(failed("getsockopt(SO_TYPE)"))?;
    Ok(domain != AddressFamily::UNIX && kind == SocketType::STREAM)
}

/// The plainest form of a way to send, without anything of the libraries in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RawPath {
    /// `send`.
    Write,
    /// `send` with `MSG_ZEROCOPY`.
    ZeroCopy,
    /// `sendfile` from a memfd.
    SendFile,
    /// `vmsplice` into a pipe, and `splice` from there.
    Splice,
}

impl RawPath {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Write, Self::ZeroCopy, Self::SendFile, Self::Splice];
}

/// What the kernel says about sends with `MSG_ZEROCOPY`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// That it copied.
    Copied,
    /// That it did not.
    NotCopied,
}

/// Bytes to send by a [`RawPath`]: a memfd and a mapping of it.
#[derive(Debug)]
pub struct Source {
    file: OwnedFd,
    mapping: sys::Mapping,
    bytes: usize,
}

impl Source {
    /// Makes one of that many bytes.
    ///
    /// # Errors
    /// What the system answered.
    pub fn of_bytes(bytes: usize) -> io::Result<Self> {
        let file = memfd_create("zcmi-oracle", MemfdFlags::CLOEXEC)?;
        ftruncate(&file, bytes as u64)?;
        let mapping = sys::Mapping::of(file.as_fd(), bytes)?;
        Ok(Self { file, mapping, bytes })
    }

    /// Gives all bytes this value, in the pages where they lie.
    ///
    /// # Errors
    /// What the system answered.
    pub fn fill(&mut self, byte: u8) -> io::Result<()> {
        // Through the file, because who else reads these pages now is not told by any reference.
        let page = [byte; 4096];
        let mut at = 0;
        while at < self.bytes {
            let some = page.len().min(self.bytes - at);
            at += rustix::io::pwrite(&self.file, &page[..some], at as u64)?;
        }
        Ok(())
    }

    /// Sends as much as is accepted at once by this path.
    ///
    /// # Errors
    /// What the system answered; `WouldBlock` if there is no room.
    pub fn send(&mut self, socket: BorrowedFd<'_>, path: RawPath) -> io::Result<usize> {
        let bytes = self.mapping.as_slice();
        match path {
            RawPath::Write => Ok(send(socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?),
            RawPath::ZeroCopy => {
                sys::allow_zero_copy(socket)?;
                sys::send_zero_copy(socket, bytes)
            }
            RawPath::SendFile => without_waiting(socket, || {
                let mut from = 0;
                Ok(rustix::fs::sendfile(socket, &self.file, Some(&mut from), self.bytes)?)
            }),
            RawPath::Splice => without_waiting(socket, || {
                let (out, into) = pipe_with(PipeFlags::CLOEXEC)?;
                // A pipe has a place for each page.
                fcntl_setpipe_size(&into, self.bytes.max(4096))?;
                let put = sys::vmsplice(into.as_fd(), bytes)?;
                let mut sent = 0;
                while sent < put {
                    match splice(&out, None, socket, None, put - sent, SpliceFlags::NONBLOCK) {
                        Ok(0) => break,
                        Ok(more) => sent += more,
                        Err(Errno::AGAIN) if sent > 0 => break,
                        Err(errno) => return Err(errno.into()),
                    }
                }
                Ok(sent)
            }),
        }
    }

    /// Finds out what a path does between a connected pair with nothing under way.
    ///
    /// # Errors
    /// As [`ask`].
    pub fn ask(
        &mut self,
        sender: BorrowedFd<'_>,
        receiver: BorrowedFd<'_>,
        path: RawPath,
    ) -> Result<Truth, OracleError> {
        ask(sender, receiver, self, Self::fill, |source| source.send(sender, path))
    }
}

/// Does something with a socket that does not block meanwhile; these calls have no flag for that.
fn without_waiting<T>(socket: BorrowedFd<'_>, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let blocks = !fcntl_getfl(socket)?.contains(OFlags::NONBLOCK);
    rustix::io::ioctl_fionbio(socket, true)?;
    let done = work();
    if blocks {
        rustix::io::ioctl_fionbio(socket, false)?;
    }
    done
}

/// Waits for the notice of one send with `MSG_ZEROCOPY`, the only one whose notice is owed.
///
/// # Errors
/// If none comes in time, or the queue holds something else.
pub fn word_of_kernel(sender: BorrowedFd<'_>) -> Result<Word, OracleError> {
    let start = Instant::now();
    loop {
        match sys::zero_copy_notice(sender) {
            // `SO_EE_CODE_ZEROCOPY_COPIED`, include/uapi/linux/errqueue.h.
            Ok(Some((_, _, code))) => return Ok(if code & 1 == 1 { Word::Copied } else { Word::NotCopied }),
            Ok(None) => return Err(failed("recvmsg(MSG_ERRQUEUE)")(io::Error::other("no notice of a send"))),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(failed("recvmsg(MSG_ERRQUEUE)")(error)),
        }
        let left = PATIENCE.saturating_sub(start.elapsed());
        // An error in the queue is always reported, whatever is asked for.
        if left.is_zero() || !wait_for(sender, PollFlags::empty(), left).map_err(failed("poll"))? {
            return Err(OracleError::Missing { arrived: 0, accepted: 1, seconds: PATIENCE.as_secs() });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn what_is_received_tells_the_truth() {
        assert_eq!(Truth::of(&[OLD; 9]).unwrap(), Truth::Copied);
        assert_eq!(Truth::of(&[NEW; 9]).unwrap(), Truth::Shared);
        assert_eq!(Truth::of(&[OLD, NEW, OLD]).unwrap(), Truth::Mixed { copied_bytes: 2 });
        assert!(matches!(Truth::of(&[OLD, 0]), Err(OracleError::Foreign { at: 1, byte: 0 })));
    }

    #[test]
    fn no_path_waits_for_room() {
        let (sender, _receiver) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut source = Source::of_bytes(1 << 16).unwrap();
        for path in [RawPath::Write, RawPath::SendFile, RawPath::Splice] {
            let full = (0..1000).find_map(|_| source.send(sender.as_fd(), path).err());
            assert_eq!(full.map(|error| error.kind()), Some(io::ErrorKind::WouldBlock), "{path:?}");
        }
        assert!(!fcntl_getfl(&sender).unwrap().contains(OFlags::NONBLOCK), "it blocks again");
    }

    #[test]
    fn bytes_that_do_not_arrive_give_no_verdict() {
        let (mut sender, receiver) = std::os::unix::net::UnixStream::pair().unwrap();
        sender.write_all(&[OLD; 99]).unwrap();
        let missing = arrive(sender.as_fd(), receiver.as_fd(), 100, Duration::from_millis(10));
        assert!(matches!(missing, Err(OracleError::Missing { arrived: 99, accepted: 100, .. })), "{missing:?}");
        arrive(sender.as_fd(), receiver.as_fd(), 99, Duration::from_millis(10)).unwrap();
    }
}
