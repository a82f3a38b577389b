//! Why publishers, leases and messages are refused.

use core::fmt;

use zcmi_mem::lease::LeaseMut;
use zcmi_mem::payload::Message;
use zcmi_mem::pool::PoolPlanError;
use zcmi_mem::region::RegionError;

use crate::name::ServiceName;
use crate::process::MemoryForError;

/// Why there is no publisher.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublisherError {
    /// An option is out of range.
    #[error("{option} is {value}, but must be {range}")]
    Option {
        /// Which.
        option: &'static str,
        /// What was asked for.
        value: u64,
        /// What is possible.
        range: String,
    },
    /// The pool cannot be.
    #[error(transparent)]
    Pool(#[from] PoolPlanError),
    /// There is no memory for it.
    #[error(transparent)]
    Memory(#[from] RegionError),
    /// As many publish already as may.
    #[error("`{service}` already has {limit} publisher(s), process {pid} among them; end one, or use another name")]
    TooManyPublishers {
        /// The service.
        service: ServiceName,
        /// How many may publish.
        limit: u32,
        /// One of them.
        pid: u32,
    },
    /// This process takes part in as many services as it may.
    #[error("this process takes part in {limit} services already; drop an endpoint, or use another process")]
    TooManyServices {
        /// How many it may take part in.
        limit: usize,
    },
    /// Somebody publishes something else under this name.
    #[error("`{service}` carries another layout than `{ours}` (process {pid} publishes it); use another name")]
    OtherLayout {
        /// The service.
        service: ServiceName,
        /// Who publishes it.
        pid: u32,
        /// The type that was to be published.
        ours: String,
    },
    /// It was to be shared with other users, in a directory that they cannot reach.
    #[error(
        "{directory} is reached by its owner alone, so nothing in it can be shared with other users; have an operator \
         make a directory of mode 0711 (or 0750 and a group), and set ZCMI_RUNTIME_DIR to it on all sides"
    )]
    NotShared {
        /// The runtime directory.
        directory: std::path::PathBuf,
    },
    /// This process's socket could not be opened for other users.
    #[error("other users cannot be let in: {0}")]
    Rights(String),
    /// As many sets of other users share memory of this process as may.
    #[error("{0}; end a publisher of another audience")]
    Audiences(String),
    /// The runtime directory refused.
    #[error("the service could not be written down: {0}")]
    Directory(String),
    /// The control thread is gone.
    #[error("the control thread of this process has ended")]
    NoControl,
    /// This handle belongs to the process that this one was forked from.
    #[error(transparent)]
    Forked(#[from] zcmi_mem::fork::Forked),
    /// A system call failed.
    #[error("{call} failed: {source}")]
    System {
        /// The call.
        call: &'static str,
        /// What it answered.
        source: std::io::Error,
    },
}

impl From<MemoryForError> for PublisherError {
    fn from(error: MemoryForError) -> Self {
        match error {
            MemoryForError::Region(error) => Self::Memory(error),
            MemoryForError::TooManyAudiences => Self::Audiences(error.to_string()),
        }
    }
}

/// Why a message was not loaned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LoanError {
    /// The message does not fit the pool's slots.
    #[error("a message of {bytes} bytes is larger than the {largest} this publisher was made for")]
    TooLarge {
        /// The message.
        bytes: usize,
        /// The largest possible.
        largest: usize,
    },
    /// As many leases as were agreed on are out.
    #[error("{loans} leases of this publisher are out already; publish or drop one, or ask for more `loans`")]
    TooManyLoans {
        /// How many may be out.
        loans: u32,
    },
    /// No room.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// This handle belongs to the process that this one was forked from.
    #[error(transparent)]
    Forked(#[from] zcmi_mem::fork::Forked),
}

/// Every entry or slot is still wanted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoRoom {
    /// A reliable subscriber is a whole ring behind.
    #[error("no room: subscriber process {pid} is {behind} messages behind in a ring of {capacity}")]
    WaitingFor {
        /// The slowest subscriber's process.
        pid: u32,
        /// How far behind it is.
        behind: u64,
        /// Entries of the ring.
        capacity: u64,
    },
    /// The lane came to its last sequence.
    #[error("the lane has ended at sequence {sequence}; make a new publisher")]
    Ended {
        /// The sequence that would have been next.
        sequence: u64,
    },
}

/// Why a message was not published; it comes back with the reason.
pub struct PublishError<M: Message + ?Sized> {
    /// The message.
    pub lease: LeaseMut<M>,
    /// The reason.
    pub reason: PublishRefusal,
}

/// The reason in a [`PublishError`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PublishRefusal {
    /// No room.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// The lease was loaned by another publisher.
    #[error("the lease was loaned by another publisher; a message is published where it was loaned")]
    OtherPublisher,
    /// This handle belongs to the process that this one was forked from.
    #[error(transparent)]
    Forked(#[from] zcmi_mem::fork::Forked),
}

impl<M: Message + ?Sized> fmt::Debug for PublishError<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PublishError").field("reason", &self.reason).finish_non_exhaustive()
    }
}

impl<M: Message + ?Sized> fmt::Display for PublishError<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reason.fmt(f)
    }
}

impl<M: Message + ?Sized> std::error::Error for PublishError<M> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.reason)
    }
}

/// Why a copy was not published.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// There was nothing to write it to.
    #[error(transparent)]
    Loan(#[from] LoanError),
    /// It could not be published.
    #[error(transparent)]
    Publish(#[from] PublishRefusal),
}
