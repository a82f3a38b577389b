//! Reading from and writing to descriptors of others, so that Ctrl-C is noticed meanwhile.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::fs::{FileType, Mode, OFlags, fstat};
use rustix::io::Errno;

use crate::failure::Failure;
use crate::interrupt::Interrupt;

/// What a pipe shall hold, so that a chunk takes few system calls.
pub(crate) const PIPE_BYTES: usize = 1 << 20;
/// How often a wait looks around.
pub(crate) const LOOK: Duration = Duration::from_millis(100);

fn is_fifo(fd: BorrowedFd<'_>) -> bool {
    fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo)
}

/// Where data comes from.
#[derive(Debug)]
pub(crate) struct Inlet {
    fd: OwnedFd,
}

impl Inlet {
    /// Reads what `fd` gives.
    pub(crate) fn new(fd: OwnedFd) -> Self {
        if is_fifo(fd.as_fd()) {
            // A larger pipe is quicker; a user whose pipes may take no more keeps the size there is.
            let _as_it_was = rustix::pipe::fcntl_setpipe_size(&fd, PIPE_BYTES);
        }
        Self { fd }
    }

    /// Reads until the room is full, the end has come, or nothing more is there at once; 0 only at the end.
    ///
    /// The bytes are read into `room` itself. While nothing comes, `meanwhile` is asked now and then whether to go on
    /// waiting.
    pub(crate) fn read(
        &self,
        room: &mut [u8],
        interrupt: &Interrupt,
        meanwhile: impl Fn() -> Result<(), Failure>,
    ) -> Result<usize, ReadError> {
        let mut filled = 0;
        while filled < room.len() {
            let patience = if filled == 0 { LOOK } else { Duration::ZERO };
            if !interrupt.wait(&[(self.fd.as_fd(), PollFlags::IN)], Some(patience))? {
                if filled > 0 {
                    break;
                }
                meanwhile()?;
                continue;
            }
            match rustix::io::read(&self.fd, &mut room[filled..]) {
                Ok(0) => break,
                Ok(bytes) => filled += bytes,
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(errno) if filled == 0 => return Err(ReadError::Read(errno.into())),
                // It will be there again, after what was read has been passed on.
                Err(_) => break,
            }
        }
        Ok(filled)
    }
}

/// Why nothing was read.
#[derive(Debug)]
pub(crate) enum ReadError {
    /// The wait for it was interrupted or failed.
    Wait(Failure),
    /// The read failed.
    Read(io::Error),
}

impl From<Failure> for ReadError {
    fn from(failure: Failure) -> Self {
        Self::Wait(failure)
    }
}

/// Where data goes to.
#[derive(Debug)]
pub(crate) struct Outlet {
    fd: OwnedFd,
}

impl Outlet {
    /// Writes to `fd`.
    ///
    /// A pipe is opened once more, without waiting, so that a reader who stopped reading cannot keep this process in
    /// `write`; the flag of the original stays as it was, because others share it.
    pub(crate) fn new(fd: OwnedFd) -> Self {
        if is_fifo(fd.as_fd()) {
            // As in `Inlet::new`.
            let _as_it_was = rustix::pipe::fcntl_setpipe_size(&fd, PIPE_BYTES);
            let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
            let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
            if let Ok(opened) = rustix::fs::open(path, flags, Mode::empty()) {
                return Self { fd: opened };
            }
        }
        Self { fd }
    }

    /// Writes all of it, from where it lies.
    pub(crate) fn write_all(&self, mut bytes: &[u8], interrupt: &Interrupt) -> Result<(), WriteError> {
        let all = bytes.len();
        while !bytes.is_empty() {
            interrupt.wait(&[(self.fd.as_fd(), PollFlags::OUT)], None).map_err(WriteError::Wait)?;
            match rustix::io::write(&self.fd, bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(errno) => return Err(WriteError::Write { done: all - bytes.len(), errno }),
            }
        }
        Ok(())
    }
}

/// Why not everything was written.
#[derive(Debug)]
pub(crate) enum WriteError {
    /// The wait for room was interrupted or failed.
    Wait(Failure),
    /// The write failed.
    Write {
        /// Bytes that were written before.
        done: usize,
        /// Why.
        errno: Errno,
    },
}
