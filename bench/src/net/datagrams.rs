//! Messages over UDP: into a sink, where only the sender works, and to a receiver on a thread of its own.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use zcmi_mem::pool::PoolPlan;
use zcmi_net::link::LinkLimits;
use zcmi_net::outgoing::QueueLimits;
use zcmi_net::slots::SlotPlan;
use zcmi_net::udp::{DatagramCounts, Reliability, UdpOptions, UdpTransport};

use super::receiver::{Received, Receiver};
use super::sender::{Sender, Sends as _};
use super::{Cell, CellError, Measured, PATIENCE, RowKind, SLOT_BYTES, WINDOW_BYTES, WINDOW_MESSAGES};
use crate::pin;
use crate::wires::{Family, Route, Side, Wire, WireKind};

/// Measures the cell; the receiver, if there is one, works on that processor.
pub(super) fn throughput(cell: Cell, wire: &Wire, length: Duration, cpu: usize) -> Result<Measured, CellError> {
    let (mut measured, received) = with_sender_and_receiver(cell, wire, cpu, |sender| measure(sender, length))?;
    if cell.wire != WireKind::Ifb {
        measured.copied[0] = received.copied_per_byte();
        // What is received is copied out of the kernel.
        measured.copied[1] += 1.0;
    }
    Ok(measured)
}

/// Does something with connected senders.
pub(super) fn with_sender<T: Send>(
    cell: Cell,
    wire: &Wire,
    cpu: usize,
    work: impl FnOnce(&mut Sender<UdpTransport>) -> Result<T, CellError> + Send,
) -> Result<T, CellError> {
    with_sender_and_receiver(cell, wire, cpu, work).map(|(done, _)| done)
}

fn with_sender_and_receiver<T: Send>(
    cell: Cell,
    wire: &Wire,
    cpu: usize,
    work: impl FnOnce(&mut Sender<UdpTransport>) -> Result<T, CellError> + Send,
) -> Result<(T, Received), CellError> {
    let is_sink = cell.wire == WireKind::Ifb;
    let route = wire.route();
    if is_sink {
        // The greeting needs an answer.
        wire.set_route(Route::Veth)?;
    }
    let address = wire.address(Side::Receiver, Family::V4).ok_or(CellError::Late("an address was not there"))?;
    let (done, connected) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let (told, hears) = mpsc::channel::<Result<SocketAddr, CellError>>();
        let (done, connected) = (&done, &connected);
        let receiver = scope
            .spawn(move || wire.enter(Side::Receiver, || receive(cell, address, cpu, &told, [connected, done]))?);
        let heard = hears.recv_timeout(PATIENCE).map_err(|_| CellError::Late("the receiver did not listen"));
        let worked = heard.and_then(|at| at).and_then(|at| {
            wire.enter(Side::Sender, || {
                let mut sender = sender(options(cell), at, cell.bytes, cell.streams)?;
                connected.store(true, Ordering::Release);
                if is_sink {
                    wire.set_route(route)?;
                }
                work(&mut sender)
            })?
        });
        done.store(true, Ordering::Release);
        let received = receiver.join().map_err(|_| CellError::Late("the receiver panicked"))?;
        Ok((worked?, received?))
    })
}

fn options(cell: Cell) -> UdpOptions {
    let is_sink = cell.wire == WireKind::Ifb;
    UdpOptions { insecure: true, ..options_of(cell.row, cell.bytes, is_sink) }
}

/// How a transport for that row is made; in a sink nobody answers.
pub(super) fn options_of(row: RowKind, bytes: usize, is_sink: bool) -> UdpOptions {
    // What is sent once must fit a slot.
    let whole = is_sink || row == RowKind::UdpUnreliable;
    let usual = UdpOptions::default().slots.slot_bytes;
    let slot_bytes = if whole { (bytes as u32).max(SLOT_BYTES) } else { usual };
    UdpOptions {
        slots: SlotPlan {
            slot_bytes,
            large_slots: if is_sink { 2 } else { 64 },
            small_slots: 512,
            headers: 8192,
            loans: PoolPlan::single(bytes, 4).ok(),
            ..UdpOptions::default().slots
        },
        limits: LinkLimits {
            queue: QueueLimits { messages: WINDOW_MESSAGES, bytes: (WINDOW_BYTES + 2 * bytes) as u64 },
            ..LinkLimits::default()
        },
        path: match row {
            RowKind::Forced(path) => Some(path),
            _ => None,
        },
        reliability: match row {
            RowKind::Udp => Reliability::Reliable,
            RowKind::UdpUnreliable => Reliability::Unreliable,
            _ => Reliability::ConstantRate { bytes_per_s: u64::MAX },
        },
        resume_for: Duration::ZERO,
        silence: if is_sink { Duration::from_secs(600) } else { Duration::from_secs(5) },
        keep_alive: Duration::from_secs(600),
        ..UdpOptions::default()
    }
}

/// So many connections to that address.
pub(super) fn sender(
    options: UdpOptions,
    at: SocketAddr,
    bytes: usize,
    streams: usize,
) -> Result<Sender<UdpTransport>, CellError> {
    let mut transport = UdpTransport::new(options)?;
    let connections = (0..streams).map(|_| transport.connect(at)).collect::<Result<_, _>>()?;
    Sender::new(transport, connections, bytes)
}

/// What the kernel says that it copied at the sender, for each byte, and which share of completions said so.
pub(super) fn copied(sender: &Sender<UdpTransport>) -> (f64, Option<f64>) {
    let mut all = DatagramCounts::default();
    for facts in sender.connections.iter().filter_map(|&connection| sender.transport.facts(connection)) {
        all.bytes += facts.socket.bytes;
        all.zero_copy_bytes += facts.socket.zero_copy_bytes;
        all.notified += facts.socket.notified;
        all.copied += facts.socket.copied;
    }
    let said = all.copied as f64 / all.notified.max(1) as f64;
    let shared = all.zero_copy_bytes as f64 * (1.0 - said) / all.bytes.max(1) as f64;
    (1.0 - shared, (all.notified > 0).then_some(said))
}

fn measure(sender: &mut Sender<UdpTransport>, length: Duration) -> Result<Measured, CellError> {
    let (bytes, elapsed, cpu_ns) = sender.measure(length, &[])?;
    let (copied, completions) = copied(sender);
    sender.give_up()?;
    Ok(Measured { bytes, elapsed, cpu_ns, copied: [0.0, copied], completions, congestion: None })
}

impl super::flips::Watched for Sender<UdpTransport> {
    fn turn(&mut self) -> Result<(), CellError> {
        Self::turn(self)
    }

    fn sends(&self) -> u64 {
        self.transport.facts(self.connections[0]).map_or(0, |facts| facts.socket.sends)
    }

    fn selection(&self) -> Option<zcmi_net::select::Selection> {
        self.transport.selection(self.connections[0])
    }
}

/// Answers greetings, and on a wire with a receiver takes what comes, until the measurement is done.
fn receive(
    cell: Cell,
    address: std::net::IpAddr,
    cpu: usize,
    told: &mpsc::Sender<Result<SocketAddr, CellError>>,
    [connected, done]: [&AtomicBool; 2],
) -> Result<Received, CellError> {
    let _pinned = pin::pin(cpu).map_err(|error| CellError::NotTaken(error.to_string()))?;
    let mut transport = UdpTransport::new(options(Cell { row: RowKind::Udp, ..cell }))?;
    let (_, at) = transport.listen(SocketAddr::new(address, 0))?;
    // Nobody who hears it is a sender that has failed, which says so itself.
    let _ = told.send(Ok(at));
    let mut receiver = Receiver::new(transport, false);
    while !done.load(Ordering::Acquire) {
        if cell.wire == WireKind::Ifb && connected.load(Ordering::Acquire) {
            // It is only there so that nobody takes it for gone.
            std::thread::park_timeout(Duration::from_millis(10));
            continue;
        }
        receiver.turn(Duration::from_millis(10))?;
    }
    Ok(receiver.received())
}
