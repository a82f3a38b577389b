//! What can go wrong with sockets, one type per operation.

use rustix::io::Errno;

use super::{MAX_DESCRIPTORS, MAX_MESSAGE_BYTES};
use crate::name::Incarnation;
use zcmi_mem::fork::ForkGuardError;

/// A system call on a socket failed in a way that nobody planned for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SocketError {
    /// A system call failed.
    #[error("{call} on a control socket failed: {source}")]
    System {
        /// The call.
        call: &'static str,
        /// What it answered.
        source: Errno,
    },
    /// No descriptors are left, in this process or on the machine.
    #[error("no descriptor is left for {call}: {source}; raise the limit (ulimit -n) or close some")]
    NoDescriptors {
        /// The call.
        call: &'static str,
        /// `EMFILE` or `ENFILE`.
        source: Errno,
    },
    /// Binding was disturbed again and again.
    #[error("the socket of process {incarnation} was removed {tries} times while it was being made")]
    Disturbed {
        /// The process.
        incarnation: Incarnation,
        /// How often it was tried.
        tries: u32,
    },
    /// Users and groups can be let in only by an access list.
    #[error(
        "setxattr(system.posix_acl_access) of this process's socket failed: {source}; put the runtime directory on a \
         file system with access lists (tmpfs, ext4), or allow everybody"
    )]
    AccessList {
        /// What it answered.
        source: Errno,
    },
    /// The runtime directory takes no new entry.
    #[error("no room for a socket in the runtime directory: {source}; free space or inodes there")]
    Full {
        /// `ENOSPC` or `EDQUOT`.
        source: Errno,
    },
    /// `/proc` is not there, by which sockets are reached.
    #[error("/proc is not mounted, and sockets are reached through /proc/self/fd; mount it")]
    NoProc,
    /// Forks could not be noticed.
    #[error(transparent)]
    Fork(#[from] ForkGuardError),
}

impl SocketError {
    /// The error of a failed call.
    pub(super) fn of(call: &'static str) -> impl FnOnce(Errno) -> Self {
        move |source| match source {
            Errno::MFILE | Errno::NFILE => Self::NoDescriptors { call, source },
            Errno::NOSPC | Errno::DQUOT => Self::Full { source },
            _ => Self::System { call, source },
        }
    }
}

/// Why a process could not be reached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// Nobody listens there, or nothing is there: that process is dead, and its entries can be removed.
    #[error("process {0} is dead")]
    Dead(Incarnation),
    /// It has too many connections waiting to be accepted.
    #[error("process {0} does not accept connections at the moment; try again")]
    Busy(Incarnation),
    /// It belongs to somebody who does not let us in.
    #[error("process {0} does not let this user in; ask its owner to grant it")]
    Denied(Incarnation),
    /// Something else went wrong.
    #[error(transparent)]
    Socket(#[from] SocketError),
}

/// Why a message was not sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    /// The message is empty or longer than 8192 bytes.
    #[error("a control message has {len} bytes; it must have 1 to {MAX_MESSAGE_BYTES}")]
    Length {
        /// Its length in bytes.
        len: usize,
    },
    /// There are more than 8 descriptors.
    #[error("a control message carries {count} descriptors; it can carry {MAX_DESCRIPTORS}")]
    Descriptors {
        /// How many there are.
        count: usize,
    },
    /// The other side is gone.
    #[error("the peer hung up")]
    HungUp,
    /// Too many descriptors of this user are on their way.
    #[error("too many descriptors of this user are in flight between processes; raise the limit (ulimit -n)")]
    InFlight,
    /// Something else went wrong.
    #[error(transparent)]
    Socket(#[from] SocketError),
}

/// Why there is no pidfd of the peer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PidfdError {
    /// It is dead and reaped already.
    #[error("the peer is dead already")]
    Dead,
    /// The kernel is older than 6.5 and the peer is in another PID namespace, where its number means nothing to us.
    #[error("the peer's process cannot be watched: it is in another PID namespace and the kernel is older than 6.5")]
    OtherNamespace,
    /// Something else went wrong.
    #[error(transparent)]
    Socket(#[from] SocketError),
}
