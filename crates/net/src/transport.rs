//! What every transport does: it takes leases, says when they are free, and hands out what it received.
//!
//! ```text
//! loan ──▶ write in place ──▶ submit(lease, to, token) ──▶ poll ──▶ Completed(token): received there, free here
//!                                    └── refused: the lease is in the error       ├──▶ Received(piece): in a slot of
//!                                                                                 ours └──▶ Connected, Ended, Closed,
//!                                                                                 …
//! ```
//!
//! Nothing here blocks but [`Transport::poll`], and that no longer than it is told to. A transport is driven by one
//! thread; its descriptor tells an event loop when to poll.

use core::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use zcmi_mem::lease::LeaseMut;
use zcmi_mem::pool::PoolError;
use zcmi_mem::region::{OutOfRegion, Region};
use zcmi_mem::registration::Support;

use crate::link::Piece;
use crate::outgoing::{NotTaken, Payload, Token};
use crate::path::PathKind;
use crate::receive_paths::ReceivePath;

/// A connection of a transport; never used again when it is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub(crate) u64);

impl ConnectionId {
    /// A connection that never was.
    pub const NONE: Self = Self(u64::MAX);
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Something that accepts connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ListenerId(pub(crate) u64);

/// Where a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The connection.
    pub connection: ConnectionId,
    /// The stream: messages of one stream arrive in order, those of different streams do not wait for each other.
    pub stream: u32,
    /// A word that arrives with the message.
    pub tag: u64,
}

impl Destination {
    /// Stream 0 of a connection, with a tag of 0.
    #[must_use]
    pub fn new(connection: ConnectionId) -> Self {
        Self { connection, stream: 0, tag: 0 }
    }

    /// The same on another stream.
    #[must_use]
    pub fn stream(self, stream: u32) -> Self {
        Self { stream, ..self }
    }

    /// The same with another tag.
    #[must_use]
    pub fn tag(self, tag: u64) -> Self {
        Self { tag, ..self }
    }
}

/// Why a connection is there no more.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Closed {
    /// Both sides ended it, and everything that was sent is received.
    #[error("both sides ended the connection")]
    Ended,
    /// This side gave it up.
    #[error("this side gave the connection up")]
    Aborted,
    /// The peer could not be reached, or greeted in time.
    #[error("the peer could not be reached: {0}")]
    Unreachable(String),
    /// The connection broke, and was not mended in time.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// The peer does not know the session any more.
    #[error("the peer does not know the session any more; it was started anew, or gave the session up")]
    SessionLost,
    /// The peer broke the protocol, or has not our key.
    #[error(transparent)]
    Peer(#[from] crate::incoming::PeerFault),
}

/// What a transport tells.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// A connection that this side asked for is there.
    Connected {
        /// Which.
        connection: ConnectionId,
    },
    /// Another side connected.
    Accepted {
        /// To which listener; none for a socket that was handed over.
        listener: Option<ListenerId>,
        /// The new connection.
        connection: ConnectionId,
    },
    /// A message, or a piece of one that is longer than a slot.
    Received {
        /// From where.
        connection: ConnectionId,
        /// The piece.
        piece: Piece,
    },
    /// A message is received by the peer, and its lease is free here.
    Completed {
        /// To where it went.
        connection: ConnectionId,
        /// The message.
        token: Token,
    },
    /// Bytes of a message could not be read out of its file, and zeros went in their place. Told once, before the
    /// message completes.
    Unreadable {
        /// To where it goes.
        connection: ConnectionId,
        /// The message.
        token: Token,
        /// Why they could not be read.
        reason: String,
    },
    /// A path was refused by the kernel, or by a limit, and its bytes were copied. Told once for each path of a
    /// connection; how often it happened is counted.
    PathRefused {
        /// Whose bytes.
        connection: ConnectionId,
        /// Which path.
        path: PathKind,
        /// What was said first.
        reason: String,
    },
    /// A message did not complete, and will not: its connection is closed. Its lease is free, or quarantined.
    Failed {
        /// To where it was to go.
        connection: ConnectionId,
        /// The message.
        token: Token,
    },
    /// The connection broke; it is being mended, and messages may still be submitted.
    Interrupted {
        /// Which.
        connection: ConnectionId,
        /// What broke it.
        reason: String,
    },
    /// It is mended: what did not arrive was sent again, what did was not.
    Resumed {
        /// Which.
        connection: ConnectionId,
    },
    /// The peer will send nothing more; this side still may.
    Ended {
        /// Which.
        connection: ConnectionId,
    },
    /// The connection is gone.
    Closed {
        /// Which.
        connection: ConnectionId,
        /// Why.
        reason: Closed,
    },
}

/// What a transport can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Each path, and whether it can be used.
    pub paths: Vec<(PathKind, Support)>,
    /// Each way of receiving, and why one that is there is not used; none of a transport that has but one.
    pub receiving: Vec<ReceivePath>,
    /// The longest message.
    pub message_bytes: u32,
    /// The longest piece received: longer messages come as several.
    pub piece_bytes: u32,
}

/// Why an address is not talked with.
pub(crate) const UNTRUSTED: &str =
    "without a key only loopback addresses are served; give both ends one, or trust whoever answers (`insecure`)";

/// Why a transport could not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// A system call failed that is not one connection's.
    #[error("{call} failed")]
    System {
        /// The call.
        call: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The memory could not be had.
    #[error(transparent)]
    Slots(#[from] crate::slots::SlotsError),
    /// This is a forked child: the transport is its parent's.
    #[error(transparent)]
    Forked(#[from] zcmi_mem::fork::Forked),
    /// The address is none that this transport can use.
    #[error("{address} cannot be used: {reason}")]
    Address {
        /// The address.
        address: String,
        /// Why.
        reason: &'static str,
    },
    /// As many connections exist as may.
    #[error("{connections} connections exist, as many as the transport was made for; close some, or raise the limit")]
    TooMany {
        /// How many.
        connections: usize,
    },
}

/// A way to send leases and to receive into slots.
pub trait Transport {
    /// A lease to write a message into.
    ///
    /// # Errors
    /// [`PoolError`] if no slot that fits is free: poll, and try again.
    fn loan(&mut self, bytes: usize) -> Result<LeaseMut<[u8]>, PoolError>;

    /// Lets leases of a region that this process owns be sent by paths that share pages. Leases of other regions are
    /// sent by paths that copy.
    ///
    /// # Errors
    /// [`OutOfRegion`] for a region that a fork left behind.
    fn register(&mut self, region: &Arc<Region>) -> Result<(), OutOfRegion>;

    /// Takes a message for sending. It goes out at the next [`poll`](Self::poll).
    ///
    /// # Errors
    /// [`NotTaken`] with the lease in it.
    fn submit(&mut self, to: Destination, payload: Payload, token: Token) -> Result<(), NotTaken>;

    /// Sends, receives, and appends what happened to `events`; waits until something does, at most `timeout` (`None`:
    /// for ever). Returns how many events were appended.
    ///
    /// # Errors
    /// [`TransportError`] if the transport as a whole cannot go on; what befalls one connection is an event.
    fn poll(&mut self, events: &mut Vec<Event>, timeout: Option<Duration>) -> Result<usize, TransportError>;

    /// Ends this side of a connection: what was submitted still arrives, nothing more is taken. When the other side has
    /// ended too, the connection is closed.
    fn close(&mut self, connection: ConnectionId);

    /// Gives a connection up at once. The next poll says what became of its messages, and that it is closed.
    fn abort(&mut self, connection: ConnectionId);

    /// What can be done here.
    fn capabilities(&self) -> Capabilities;

    /// The descriptor that becomes readable when [`poll`](Self::poll) has something new to do. A poll that told
    /// something may have left more for the next: before waiting for the descriptor, poll until nothing is told.
    ///
    /// Word of io_uring interrupts calls in which the transport's thread sleeps, as a signal without a handler does: of
    /// signal(7)'s calls those that are never restarted, such as `epoll_wait` and socket calls with a timeout, may say
    /// `EINTR`.
    fn descriptor(&self) -> BorrowedFd<'_>;
}
