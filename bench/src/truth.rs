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
use zcmi_net::path::PathKind;
use zcmi_net::slots::{SlotPlan, Slots};
use zcmi_net::socket::SocketWire;
use zcmi_net::uring::{Options, Ring};
use zcmi_net::wire::{Home, Segment, Wire as _};

use crate::oracle::{self, OracleError, Truth};
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

/// A sender of the library's own, with one message.
struct Source {
    lease: LeaseMut<[u8]>,
    home: Option<Home>,
    socket: SocketWire,
    ring: Option<Ring>,
}

/// Finds out what a path does with so many bytes on a connection of that wire.
///
/// # Errors
/// [`TruthError`]; on a sink in any case.
pub fn ask(wire: &Wire, path: PathKind, bytes: usize) -> Result<Verdict, TruthError> {
    let failed = |reason: &dyn core::fmt::Display| TruthError::Path { path, reason: reason.to_string() };
    let pair = wire.streams()?;
    // Without the right to more there is what the host allows.
    if sockopt::set_socket_recv_buffer_size_force(&pair.receiver, ROOM_BYTES).is_err() {
        sockopt::set_socket_recv_buffer_size(&pair.receiver, ROOM_BYTES).map_err(|error| failed(&error))?;
    }
    let loans = PoolPlan::single(bytes, 1).map_err(|error| failed(&error))?;
    let plan = SlotPlan { large_slots: 1, small_slots: 1, headers: 1, loans: Some(loans), ..SlotPlan::default() };
    let mut slots = Slots::new(&plan).map_err(|error| failed(&error))?;
    let lease = slots.loan(bytes).map_err(|error| failed(&error))?;
    let sender = pair.sender.try_clone().map_err(|error| failed(&error))?;
    let mut socket = SocketWire::new(pair.sender).map_err(|error| failed(&error))?;
    let mut ring =
        if path.is_uring() { Some(Ring::open(Options::default()).map_err(|error| failed(&error))?) } else { None };
    for (number, region) in slots.regions().enumerate() {
        socket.add_region(region.clone());
        if let Some(ring) = ring.as_mut().filter(|_| path == PathKind::UringFixed) {
            ring.register(number, region).map_err(|error| failed(&error))?;
        }
    }
    let mut source = Source { home: slots.home(&lease), lease, socket, ring };
    let fill = |source: &mut Source, byte: u8| -> io::Result<()> {
        source.lease.fill(byte);
        Ok(())
    };
    let mut owed = false;
    let send = |source: &mut Source| {
        let segments = [Segment { bytes: &source.lease, home: source.home }];
        let sent = match &mut source.ring {
            Some(ring) => ring.send(source.socket.as_fd(), KEY, path, &segments)?,
            None => source.socket.send(path, &segments)?,
        };
        owed = matches!(sent.release, zcmi_net::path::Release::Notified(_));
        Ok(sent.bytes)
    };
    let truth = oracle::ask(sender.as_fd(), pair.receiver.as_fd(), &mut source, fill, send)?;
    let (mut says, until) = (None, Instant::now() + PATIENCE);
    while owed && says.is_none() {
        let mut told = |notification: zcmi_net::wire::Notification| says = Some(notification.copied);
        match &mut source.ring {
            Some(ring) => ring.notifications(KEY, &mut told),
            None => source.socket.notifications(&mut told),
        }
        .map_err(|error| failed(&error))?;
        if Instant::now() > until {
            return Err(TruthError::Late { path });
        }
        std::thread::yield_now();
    }
    Ok(Verdict { truth, kernel_says_copied: says })
}
