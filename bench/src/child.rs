//! The second side of a measurement: a real process, started from the executable that is running.
//!
//! A program that measures calls [`maybe_run_child`] first in its `main`. [`Child::spawn`] then starts the same
//! executable with a hidden argument that names a role, and with one end of a socket pair as its standard input; the
//! child runs that role and ends. Over the pair, a [`Channel`], go messages as JSON and file descriptors beside them.
//!
//! A child never outlives its parent: dropping [`Child`] kills it, the kernel kills it when the *thread* that started
//! it ends (so spawn from a thread that lives as long as the measurement), and its channel breaks when the parent is
//! gone. Its standard output leads nowhere, so that it cannot get between the lines of a report.

use std::error::Error;
use std::ffi::OsStr;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::process::{Pid, Signal, getpid, getppid, set_parent_process_death_signal};
use serde::{Serialize, de::DeserializeOwned};

/// The hidden first argument of a child.
const MARK: &str = "--zcmi-bench-child";
/// The longest message.
const MESSAGE_BYTES: usize = 64 << 10;
/// The most descriptors beside one message.
const MESSAGE_FDS: usize = 8;
/// How long a side waits for a message before it takes the other for stuck.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a role returns; any error is printed and ends the child with 1.
pub type RoleResult = Result<(), Box<dyn Error + Send + Sync>>;

/// A part that a child can play.
#[derive(Clone, Copy, Debug)]
pub struct Role {
    /// Its name, as [`Child::spawn`] takes it.
    pub name: &'static str,
    /// What it does; it returns when its parent is done with it.
    pub run: fn(&Channel) -> RoleResult,
}

/// Why a child or its channel failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChildError {
    /// A system call failed.
    #[error("{call} failed")]
    System {
        /// The call.
        call: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The other side is gone.
    #[error("the other process ended; see its message above, if it left one")]
    Gone,
    /// The other side is silent.
    #[error("the other process said nothing for {seconds} s")]
    Silent {
        /// How long it was waited for.
        seconds: u64,
    },
    /// A message that is not of the expected form.
    #[error("the other process sent a message that is not {expected}")]
    Message {
        /// The expected type.
        expected: &'static str,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A message that does not fit.
    #[error("a message of {bytes} bytes and {fds} descriptors exceeds {MESSAGE_BYTES} and {MESSAGE_FDS}")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// Its descriptors.
        fds: usize,
    },
    /// Another number of descriptors than agreed.
    #[error("a message carried {found} descriptors where {expected} were due")]
    Descriptors {
        /// How many were due.
        expected: usize,
        /// How many came.
        found: usize,
    },
}

fn system(call: &'static str) -> impl Fn(rustix::io::Errno) -> ChildError {
    move |source| ChildError::System { call, source: source.into() }
}

/// One end of the socket between parent and child.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
}

impl Channel {
    /// Sends a message with descriptors beside it; the other side gets duplicates.
    ///
    /// # Errors
    /// A message that is too long, or whose receiver is gone.
    pub fn send<M: Serialize>(&self, message: &M, fds: &[BorrowedFd<'_>]) -> Result<(), ChildError> {
        let text = serde_json::to_vec(message)
            .map_err(|source| ChildError::Message { expected: std::any::type_name::<M>(), source })?;
        if text.len() > MESSAGE_BYTES || fds.len() > MESSAGE_FDS {
            return Err(ChildError::TooLong { bytes: text.len(), fds: fds.len() });
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MESSAGE_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            // The space is that of the most descriptors, so this cannot be refused.
            let fits = control.push(SendAncillaryMessage::ScmRights(fds));
            assert!(fits, "{} descriptors do not fit the control buffer", fds.len());
        }
        match sendmsg(&self.socket, &[IoSlice::new(&text)], &mut control, SendFlags::NOSIGNAL) {
            Ok(_) => Ok(()),
            Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => Err(ChildError::Gone),
            Err(errno) => Err(system("sendmsg")(errno)),
        }
    }

    /// Waits for a message and the `expected` descriptors beside it.
    ///
    /// # Errors
    /// The other side ended, was silent for a minute, or sent something else.
    pub fn receive<M: DeserializeOwned>(&self, expected: usize) -> Result<(M, Vec<OwnedFd>), ChildError> {
        self.wait(PATIENCE)?;
        let mut text = vec![0; MESSAGE_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MESSAGE_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(&self.socket, &mut [IoSliceMut::new(&mut text)], &mut control, RecvFlags::CMSG_CLOEXEC);
        let received = match received {
            Ok(received) if received.bytes == 0 => return Err(ChildError::Gone),
            Ok(received) => received,
            Err(rustix::io::Errno::CONNRESET) => return Err(ChildError::Gone),
            Err(errno) => return Err(system("recvmsg")(errno)),
        };
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        if received.flags.contains(ReturnFlags::TRUNC) {
            return Err(ChildError::TooLong { bytes: received.bytes, fds: fds.len() });
        }
        if fds.len() != expected {
            return Err(ChildError::Descriptors { expected, found: fds.len() });
        }
        let message = serde_json::from_slice(&text[..received.bytes])
            .map_err(|source| ChildError::Message { expected: std::any::type_name::<M>(), source })?;
        Ok((message, fds))
    }

    /// Waits for the next message and ignores how long that takes; `None` when the other side is done.
    ///
    /// # Errors
    /// As [`Channel::receive`], without the silence.
    pub fn next<M: DeserializeOwned>(&self, expected: usize) -> Result<Option<(M, Vec<OwnedFd>)>, ChildError> {
        loop {
            match self.wait(PATIENCE) {
                Ok(()) => break,
                Err(ChildError::Silent { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        match self.receive(expected) {
            Err(ChildError::Gone) => Ok(None),
            other => other.map(Some),
        }
    }

    /// Whether the other side has hung up; costs one system call.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        let mut set = [PollFd::new(&self.socket, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut set, Some(&now)).is_ok() && set[0].revents().contains(PollFlags::HUP)
    }

    fn wait(&self, patience: Duration) -> Result<(), ChildError> {
        let limit = Timespec {
            tv_sec: i64::try_from(patience.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(patience.subsec_nanos()),
        };
        loop {
            let mut set = [PollFd::new(&self.socket, PollFlags::IN)];
            match poll(&mut set, Some(&limit)) {
                Ok(0) => return Err(ChildError::Silent { seconds: patience.as_secs() }),
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(system("poll")(errno)),
            }
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A running child; dropping it kills it and waits for its end.
#[derive(Debug)]
pub struct Child {
    process: std::process::Child,
    channel: Channel,
}

impl Child {
    /// Starts this executable once more, in a role that it passes to [`maybe_run_child`].
    ///
    /// # Errors
    /// The system refused a socket pair or a process.
    pub fn spawn(role: &str) -> Result<Self, ChildError> {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).map_err(system("socketpair"))?;
        // The link of the process itself, since the file may have been replaced by a later build.
        let mut command = Command::new("/proc/self/exe");
        command.arg(MARK).arg(role).arg(getpid().as_raw_nonzero().to_string());
        command.stdin(Stdio::from(theirs)).stdout(Stdio::null());
        let process = command.spawn().map_err(|source| ChildError::System { call: "spawn", source })?;
        Ok(Self { process, channel: Channel { socket: ours } })
    }

    /// The parent's end of the channel.
    #[must_use]
    pub fn channel(&self) -> &Channel {
        &self.channel
    }

    /// The child's process number.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Sends a message and waits for the answer, without descriptors.
    ///
    /// # Errors
    /// As [`Channel::send`] and [`Channel::receive`].
    pub fn ask<M: Serialize, A: DeserializeOwned>(&self, message: &M) -> Result<A, ChildError> {
        self.channel.send(message, &[])?;
        self.channel.receive(0).map(|(answer, _)| answer)
    }

    /// Closes the channel and waits until the child ends by itself, so that it can tidy up.
    ///
    /// # Errors
    /// The child ended with another code than 0, or the system refused to say.
    pub fn finish(mut self) -> Result<(), ChildError> {
        rustix::net::shutdown(&self.channel, rustix::net::Shutdown::Both).map_err(system("shutdown"))?;
        let status = self.process.wait().map_err(|source| ChildError::System { call: "wait", source })?;
        if status.success() { Ok(()) } else { Err(ChildError::Gone) }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Both fail only for a child that has ended and was waited for, and then there is nothing left to do.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Runs the child's role and exits, if this process was started as a child; else returns at once.
///
/// Call it first in `main`, before the arguments are read and before any thread exists.
pub fn maybe_run_child(roles: &[Role]) {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().as_deref() != Some(OsStr::new(MARK)) {
        return;
    }
    let name = arguments.next().unwrap_or_default().to_string_lossy().into_owned();
    let parent = arguments.next().and_then(|number| number.to_str()?.parse().ok()).and_then(Pid::from_raw);
    let code = match roles.iter().find(|role| role.name == name) {
        None => {
            eprintln!("error: no role {name:?} for a child of this program");
            2
        }
        Some(role) => match enter(role, parent) {
            Ok(()) => 0,
            Err(error) => {
                eprintln!("error: child {name}: {}", chain(&*error));
                1
            }
        },
    };
    std::process::exit(code);
}

fn enter(role: &Role, parent: Option<Pid>) -> RoleResult {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // The parent may have died before the line above; then another process has adopted this one.
    if getppid() != parent {
        return Ok(());
    }
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    match (role.run)(&Channel { socket }) {
        Err(error) if matches!(error.downcast_ref(), Some(ChildError::Gone)) => Ok(()),
        other => other,
    }
}

/// An error with all its sources on one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}
