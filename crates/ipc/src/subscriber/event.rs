//! What happens to a subscriber, and why it is refused.

use crate::name::{Incarnation, ServiceName};
use crate::wire::RefusalCode;

/// Why there is no subscriber.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SubscriberError {
    /// A publisher refused, and there is no other.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// As many subscribe already as may.
    #[error("`{service}` already has {limit} subscribers, process {pid} among them; end one, or use another name")]
    TooManySubscribers {
        /// The service.
        service: ServiceName,
        /// How many may subscribe.
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
    /// It was to read what other users publish, in a directory that they cannot reach.
    #[error(
        "{directory} is reached by its owner alone, so nobody else publishes in it; have an operator make a directory \
         of mode 0711 (or 0750 and a group), and set ZCMI_RUNTIME_DIR to it on all sides"
    )]
    NotShared {
        /// The runtime directory.
        directory: std::path::PathBuf,
    },
    /// This process's socket could not be opened for other users.
    #[error("other users cannot be let in: {0}")]
    Rights(String),
    /// The runtime directory refused.
    #[error("the service could not be written down: {0}")]
    Directory(String),
    /// The control thread is gone.
    #[error("the control thread of this process has ended")]
    NoControl,
    /// Forks could not be noticed.
    #[error(transparent)]
    Fork(#[from] zcmi_mem::fork::ForkGuardError),
    /// This handle belongs to the process that this one was forked from.
    #[error(transparent)]
    Forked(#[from] zcmi_mem::fork::Forked),
}

/// A publisher's no.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("publisher process {pid} refused: {text}")]
pub struct Refusal {
    /// The publisher's process.
    pub publisher: Incarnation,
    /// Its process number.
    pub pid: u32,
    pub(crate) code: Option<RefusalCode>,
    /// The reason in words.
    pub text: String,
}

impl Refusal {
    /// Whether the payloads differ.
    #[must_use]
    pub fn is_layout(&self) -> bool {
        self.code == Some(RefusalCode::Layout)
    }

    /// Whether this user may not subscribe, or not hold the publisher up.
    #[must_use]
    pub fn is_rights(&self) -> bool {
        matches!(self.code, Some(RefusalCode::Rights | RefusalCode::Reliable))
    }

    /// Whether the stream had begun already, and takes no late subscribers.
    #[must_use]
    pub fn is_late(&self) -> bool {
        self.code == Some(RefusalCode::Late)
    }
}

/// Something that happened to a publisher.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A publisher's lane is read from now on.
    Joined {
        /// Its process.
        publisher: Incarnation,
        /// Its process number.
        pid: u32,
        /// The first sequence that will be received.
        start: u64,
    },
    /// A publisher refused this subscriber.
    Refused(Refusal),
    /// A publisher ended in good order, and everything it published has been received.
    Ended {
        /// Its process.
        publisher: Incarnation,
        /// How many messages it published.
        sequence: u64,
    },
    /// A publisher's process died, and everything it had published has been received.
    Died {
        /// Its process.
        publisher: Incarnation,
        /// Its process number.
        pid: u32,
        /// How many messages it had published.
        sequence: u64,
    },
    /// A publisher hung up and lives: nothing more is received from it until it is known to have died.
    CutOff {
        /// Its process.
        publisher: Incarnation,
        /// Its process number.
        pid: u32,
    },
    /// This many messages of a publisher were overtaken and are lost.
    Overtaken {
        /// Its process.
        publisher: Incarnation,
        /// How many.
        lost: u64,
    },
    /// A publisher could not be given the descriptor by which it wakes this subscriber. Until it can, which is tried
    /// ten times a second, a sleep of the subscriber lasts a millisecond at most: nothing is missed, and it costs
    /// processor time. Raise the limit of open files.
    NotWaking {
        /// Its process.
        publisher: Incarnation,
        /// Its process number.
        pid: u32,
        /// What the system answered.
        reason: String,
    },
    /// A publisher found that this subscriber wrote what cannot be, and has ended the lane for it: what was not
    /// received is lost. Something in this process writes where it should not.
    Expelled {
        /// Its process.
        publisher: Incarnation,
        /// Its process number.
        pid: u32,
        /// What it found.
        reason: String,
    },
    /// A publisher wrote what cannot be, and was given up.
    Faulty {
        /// Its process.
        publisher: Incarnation,
        /// Its process number.
        pid: u32,
        /// What it wrote.
        fault: String,
    },
}

/// Why nothing was received.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiveError {
    /// As many samples of one publisher are kept as may be.
    #[error("{held} samples of publisher process {pid} are kept already; drop one first")]
    TooManyHeld {
        /// The publisher's process number.
        pid: u32,
        /// How many may be kept.
        held: u8,
    },
    /// This handle belongs to the process that this one was forked from.
    #[error(transparent)]
    Forked(#[from] zcmi_mem::fork::Forked),
    /// No eventfd could be made to sleep on.
    #[error("eventfd failed: errno {errno}; raise the limit of open files, or wait by spinning")]
    NoEventfd {
        /// What the system answered.
        errno: i32,
    },
}
