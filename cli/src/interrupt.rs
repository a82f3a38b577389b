//! Ctrl-C and SIGTERM, as a descriptor that becomes readable.
//!
//! The handler writes a byte into a socket; nothing else happens in it. Whoever waits for something waits for this too,
//! so that a command ends by going back the way it came, and tidies up on that way.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

use crate::failure::Failure;

/// Whether somebody wants this process to end.
#[derive(Debug)]
pub(crate) struct Interrupt {
    said: UnixStream,
}

impl Interrupt {
    /// From now on SIGINT and SIGTERM no longer kill this process, but are noticed here.
    pub(crate) fn install() -> Result<Self, Failure> {
        let install = || -> io::Result<Self> {
            let (said, say) = UnixStream::pair()?;
            pipe::register(SIGINT, say.try_clone()?)?;
            pipe::register(SIGTERM, say)?;
            Ok(Self { said })
        };
        install().map_err(|error| Failure::of("signals cannot be caught", &error))
    }

    /// An interrupt that was said, or none.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        self.wait(&[], Some(Duration::ZERO)).map(|_| ())
    }

    /// Waits until one of the descriptors is ready or the time is over; whether one is ready.
    ///
    /// # Errors
    /// [`Failure::Interrupted`], and a `poll` that failed.
    pub(crate) fn wait(
        &self,
        others: &[(BorrowedFd<'_>, PollFlags)],
        timeout: Option<Duration>,
    ) -> Result<bool, Failure> {
        let timeout = timeout.map(|time| Timespec {
            tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(time.subsec_nanos()),
        });
        loop {
            let mut polled = vec![PollFd::from_borrowed_fd(self.said.as_fd(), PollFlags::IN)];
            polled.extend(others.iter().map(|&(fd, flags)| PollFd::from_borrowed_fd(fd, flags)));
            match poll(&mut polled, timeout.as_ref()) {
                // The signal that broke it off is in the socket now, if it is one of ours.
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(Failure::of("poll failed", &errno)),
                Ok(_) if !polled[0].revents().is_empty() => return Err(Failure::Interrupted),
                Ok(ready) => return Ok(ready > 0),
            }
        }
    }
}
