//! What becomes of the bytes of a send by a path of the library on a wire: the oracle asks, beside what the kernel
//! says.
//!
//! The oracle needs a receiver, so that a sink has no verdict: there the kernel's word has to do, and that a sink never
//! reads what it is sent.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::net::sockopt;
use zcmi_mem::lease::LeaseMut;
use zcmi_mem::pool::PoolPlan;
use zcmi_net::path::{PathKind, Release};
use zcmi_net::slots::{SlotPlan, Slots};
use zcmi_net::socket::SocketWire;
use zcmi_net::uring::{Options, Ring};
use zcmi_net::wire::{Home, Notification, Segment, Wire as _};

use crate::oracle::{self, OracleError, RawPath, Truth, Word};
use crate::wires::{Wire, WireError};

/// How long the kernel's word may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Room in the receiver's socket: with XDP each packet takes a page of it, however short it is.
const ROOM_BYTES: usize = 4 << 20;
/// The ring's name for the socket.
const KEY: u32 = 1;

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What became of the bytes on their way to the receiver's socket.
    pub truth: Truth,
    /// Whether the kernel says that it copied; none by paths that it says nothing of.
    pub kernel_says_copied: Option<bool>,
}

impl Verdict {
    /// The share of bytes that were copied before the receiver read them.
    #[must_use]
    pub fn copied_share(&self, bytes: usize) -> f64 {
        match self.truth {
            Truth::Copied => 1.0,
            Truth::Shared => 0.0,
            Truth::Mixed { copied_bytes } => copied_bytes as f64 / bytes as f64,
        }
    }
}

/// Why there is no verdict.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TruthError {
    /// The wire refused.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The oracle has none.
    #[error(transparent)]
    Oracle(#[from] OracleError),
    /// The path cannot be set up.
    #[error("{path} cannot be set up: {reason}")]
    Path {
        /// The path.
        path: PathKind,
        /// Why not.
        reason: String,
    },
    /// The kernel did not say in time that it is done.
    #[error("no completion of {path} came in {PATIENCE:?}")]
    Late {
        /// The path.
        path: PathKind,
    },
}

/// A message in memory of the library's own, and the ring that sends it if the path has one.
struct Message {
    lease: LeaseMut<[u8]>,
    home: Option<Home>,
    ring: Option<Ring>,
    slots: Slots,
}

impl Message {
    fn for_path(path: PathKind, bytes: usize) -> Result<Self, TruthError> {
        let failed = refused(path);
        let loans = PoolPlan::single(bytes, 1).map_err(|error| failed(&error))?;
        let plan = SlotPlan { large_slots: 1, small_slots: 1, headers: 1, loans: Some(loans), ..SlotPlan::default() };
        let mut slots = Slots::new(&plan).map_err(|error| failed(&error))?;
        let lease = slots.loan(bytes).map_err(|error| failed(&error))?;
        let mut ring =
            if path.is_uring() { Some(Ring::open(Options::default()).map_err(|error| failed(&error))?) } else { None };
        if let Some(ring) = ring.as_mut().filter(|_| path == PathKind::UringFixed) {
            for (number, region) in slots.regions().enumerate() {
                ring.register(number, region).map_err(|error| failed(&error))?;
            }
        }
        Ok(Self { home: slots.home(&lease), lease, ring, slots })
    }
}

/// Names the path that cannot be set up.
fn refused(path: PathKind) -> impl Fn(&dyn core::fmt::Display) -> TruthError {
    move |reason| TruthError::Path { path, reason: reason.to_string() }
}

/// Finds out what a path does with so many bytes on a connection of that wire.
///
/// # Errors
/// [`TruthError`]; on a sink in any case.
pub fn ask(wire: &Wire, path: PathKind, bytes: usize) -> Result<Verdict, TruthError> {
    let failed = refused(path);
    let pair = wire.streams()?;
    // Without the right to more there is what the host allows.
    if sockopt::set_socket_recv_buffer_size_force(&pair.receiver, ROOM_BYTES).is_err() {
        sockopt::set_socket_recv_buffer_size(&pair.receiver, ROOM_BYTES).map_err(|error| failed(&error))?;
    }
    let message = Message::for_path(path, bytes)?;
    let sender = pair.sender.try_clone().map_err(|error| failed(&error))?;
    let mut socket = SocketWire::new(pair.sender).map_err(|error| failed(&error))?;
    for region in message.slots.regions() {
        socket.add_region(region.clone());
    }
    let mut source = (message, socket);
    let fill = |(message, _): &mut (Message, SocketWire), byte: u8| -> io::Result<()> {
        message.lease.fill(byte);
        Ok(())
    };
    let mut owed = false;
    let send = |(message, socket): &mut (Message, SocketWire)| {
        let segments = [Segment { bytes: &message.lease, home: message.home }];
        let sent = match &mut message.ring {
            Some(ring) => ring.send(socket.as_fd(), KEY, path, &segments)?,
            None => socket.send(path, &segments)?,
        };
        owed = matches!(sent.release, Release::Notified(_));
        Ok(sent.bytes)
    };
    let truth = oracle::ask(sender.as_fd(), pair.receiver.as_fd(), &mut source, fill, send)?;
    let (message, socket) = &mut source;
    let kernel_says_copied = word(path, owed, |told| match &mut message.ring {
        Some(ring) => ring.notifications(KEY, told),
        None => socket.notifications(told),
    })?;
    Ok(Verdict { truth, kernel_says_copied })
}

/// The same for one datagram of so many bytes. It must fit into a packet of the wire.
///
/// # Errors
/// [`TruthError`]; on a sink in any case, and where the datagram is lost on the way.
pub fn ask_of_datagram(wire: &Wire, path: PathKind, bytes: usize) -> Result<Verdict, TruthError> {
    let pair = wire.datagrams()?;
    let (sender, receiver) = (pair.sender.as_fd(), pair.receiver.as_fd());
    let raw = match path {
        PathKind::Write => Some(RawPath::Write),
        PathKind::ZeroCopy => Some(RawPath::ZeroCopy),
        PathKind::SendFile => Some(RawPath::SendFile),
        PathKind::Splice => Some(RawPath::Splice),
        _ => None,
    };
    if let Some(raw) = raw {
        let mut source = oracle::Source::of_bytes(bytes).map_err(|error| refused(path)(&error))?;
        let truth = source.ask(sender, receiver, raw)?;
        let is_told = raw == RawPath::ZeroCopy;
        let word = if is_told { Some(oracle::word_of_kernel(sender)? == Word::Copied) } else { None };
        return Ok(Verdict { truth, kernel_says_copied: word });
    }
    let mut message = Message::for_path(path, bytes)?;
    let fill = |message: &mut Message, byte: u8| -> io::Result<()> {
        message.lease.fill(byte);
        Ok(())
    };
    let mut owed = false;
    let send = |message: &mut Message| {
        let segments = [Segment { bytes: &message.lease, home: message.home }];
        let Some(ring) = &mut message.ring else { return Err(io::ErrorKind::Unsupported.into()) };
        let sent = ring.send(sender, KEY, path, &segments)?;
        owed = matches!(sent.release, Release::Notified(_));
        Ok(sent.bytes)
    };
    let truth = oracle::ask(sender, receiver, &mut message, fill, send)?;
    let kernel_says_copied = word(path, owed, |told| match &mut message.ring {
        Some(ring) => ring.notifications(KEY, told),
        None => Ok(()),
    })?;
    Ok(Verdict { truth, kernel_says_copied })
}

/// Waits until the kernel said whether it copied, if it owes that.
fn word(
    path: PathKind,
    owed: bool,
    mut notifications: impl FnMut(&mut dyn FnMut(Notification)) -> io::Result<()>,
) -> Result<Option<bool>, TruthError> {
    let (mut says, until) = (None, Instant::now() + PATIENCE);
    while owed && says.is_none() {
        notifications(&mut |notification| says = Some(notification.copied)).map_err(|error| refused(path)(&error))?;
        if Instant::now() > until {
            return Err(TruthError::Late { path });
        }
        std::thread::yield_now();
    }
    Ok(says)
}
