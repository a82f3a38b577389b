//! Messages over UDP: into a sink, where only the sender works, and to a receiver on a thread of its own.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use zcmi_mem::lease::Lease;
use zcmi_mem::pool::PoolPlan;
use zcmi_net::link::LinkLimits;
use zcmi_net::outgoing::{QueueLimits, SubmitError, Token};
use zcmi_net::slots::SlotPlan;
use zcmi_net::transport::{ConnectionId, Destination, Event, Transport};
use zcmi_net::udp::{DatagramCounts, Reliability, UdpOptions, UdpTransport};

use super::{Cell, CellError, Measured, PATIENCE, RowKind, SLOT_BYTES, WINDOW_BYTES, WINDOW_MESSAGES};
use crate::cpu::CpuMeter;
use crate::pin;
use crate::wires::{Family, Route, Side, Wire, WireKind};

/// What the receiver has counted, whenever it is asked.
#[derive(Clone, Copy, Debug, Default)]
struct Received {
    bytes: u64,
    copied: u64,
}

/// Measures the cell; the receiver, if there is one, works on that processor.
pub(super) fn throughput(cell: Cell, wire: &Wire, length: Duration, cpu: usize) -> Result<Measured, CellError> {
    let (mut measured, received) = with_sender_and_receiver(cell, wire, cpu, |sender| sender.measure(length))?;
    if cell.wire != WireKind::Ifb {
        measured.copied[0] = received.copied as f64 / received.bytes.max(1) as f64;
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
    work: impl FnOnce(&mut Sender) -> Result<T, CellError> + Send,
) -> Result<T, CellError> {
    with_sender_and_receiver(cell, wire, cpu, work).map(|(done, _)| done)
}

fn with_sender_and_receiver<T: Send>(
    cell: Cell,
    wire: &Wire,
    cpu: usize,
    work: impl FnOnce(&mut Sender) -> Result<T, CellError> + Send,
) -> Result<(T, Received), CellError> {
    let is_sink = cell.wire == WireKind::Ifb;
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
        let sender = hears.recv_timeout(PATIENCE).map_err(|_| CellError::Late("the receiver did not listen"));
        let worked = sender.and_then(|at| at).and_then(|at| {
            wire.enter(Side::Sender, || {
                let mut sender = Sender::connect(cell, at)?;
                connected.store(true, Ordering::Release);
                if is_sink {
                    wire.set_route(Route::Sink)?;
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
    // What is sent once must fit a slot.
    let whole = is_sink || cell.row == RowKind::UdpUnreliable;
    let slot_bytes = if whole { (cell.bytes as u32).max(SLOT_BYTES) } else { SLOT_BYTES };
    UdpOptions {
        slots: SlotPlan {
            slot_bytes,
            large_slots: if is_sink { 2 } else { 64 },
            small_slots: 512,
            headers: 8192,
            loans: PoolPlan::single(cell.bytes, 4).ok(),
            ..SlotPlan::default()
        },
        limits: LinkLimits {
            queue: QueueLimits { messages: WINDOW_MESSAGES, bytes: (WINDOW_BYTES + 2 * cell.bytes) as u64 },
            ..LinkLimits::default()
        },
        path: match cell.row {
            RowKind::Forced(path) => Some(path),
            _ => None,
        },
        reliability: match cell.row {
            RowKind::Udp => Reliability::Reliable,
            RowKind::UdpUnreliable => Reliability::Unreliable,
            _ => Reliability::ConstantRate { bytes_per_s: u64::MAX },
        },
        insecure: true,
        resume_for: Duration::ZERO,
        // In a sink nobody answers.
        silence: if is_sink { Duration::from_secs(600) } else { Duration::from_secs(5) },
        keep_alive: Duration::from_secs(600),
        ..UdpOptions::default()
    }
}

pub(super) struct Sender {
    cell: Cell,
    transport: UdpTransport,
    connections: Vec<ConnectionId>,
    message: Lease<[u8]>,
    window: usize,
    open: Vec<usize>,
    completed: u64,
    events: Vec<Event>,
}

impl Sender {
    fn connect(cell: Cell, at: SocketAddr) -> Result<Self, CellError> {
        let mut transport = UdpTransport::new(options(cell))?;
        let connections: Vec<ConnectionId> =
            (0..cell.streams).map(|_| transport.connect(at)).collect::<Result<_, _>>()?;
        let mut lease = transport.loan(cell.bytes).map_err(|error| CellError::NotTaken(error.to_string()))?;
        lease.fill(0x5a);
        let window = (WINDOW_BYTES / cell.bytes).clamp(2, WINDOW_MESSAGES);
        let (message, open) = (lease.freeze(), vec![0; cell.streams]);
        let mut sender = Self { cell, transport, connections, message, window, open, completed: 0, events: Vec::new() };
        let (mut connected, deadline) = (0, Instant::now() + PATIENCE);
        while connected < cell.streams {
            sender.transport.poll(&mut sender.events, Some(Duration::from_millis(100)))?;
            for event in sender.events.drain(..) {
                match event {
                    Event::Connected { .. } => connected += 1,
                    Event::Closed { reason, .. } => return Err(CellError::Closed(reason.to_string())),
                    _ => {}
                }
            }
            if Instant::now() > deadline {
                return Err(CellError::Late("no greeting came"));
            }
        }
        Ok(sender)
    }

    /// Fills the windows, and waits until something happens.
    fn turn(&mut self) -> Result<(), CellError> {
        for (number, &connection) in self.connections.iter().enumerate() {
            while self.open[number] < self.window {
                let message = self.message.clone().into();
                match self.transport.submit(Destination::new(connection), message, Token(number as u64)) {
                    Ok(()) => self.open[number] += 1,
                    Err(refused) => match refused.reason {
                        SubmitError::Full { .. } | SubmitError::FullBytes { .. } => break,
                        other => return Err(CellError::NotTaken(other.to_string())),
                    },
                }
            }
        }
        if self.transport.poll(&mut self.events, Some(PATIENCE))? == 0 {
            return Err(CellError::Late("no message was completed"));
        }
        for event in self.events.drain(..) {
            match event {
                Event::Completed { token, .. } => {
                    self.open[token.0 as usize] -= 1;
                    self.completed += 1;
                }
                Event::Closed { reason, .. } => return Err(CellError::Closed(reason.to_string())),
                Event::Interrupted { reason, .. } => return Err(CellError::Closed(reason)),
                _ => {}
            }
        }
        Ok(())
    }

    fn counts(&self) -> DatagramCounts {
        let mut all = DatagramCounts::default();
        for facts in self.connections.iter().filter_map(|&connection| self.transport.facts(connection)) {
            all.bytes += facts.socket.bytes;
            all.zero_copy_bytes += facts.socket.zero_copy_bytes;
            all.notified += facts.socket.notified;
            all.copied += facts.socket.copied;
        }
        all
    }

    fn measure(&mut self, length: Duration) -> Result<Measured, CellError> {
        let warm = Instant::now() + length / 4;
        while Instant::now() < warm {
            self.turn()?;
        }
        let meter = CpuMeter::start(&[])?;
        let (begin, before) = (Instant::now(), self.completed);
        while begin.elapsed() < length {
            self.turn()?;
        }
        let (elapsed, cpu_ns) = (begin.elapsed(), meter.read()?.total_ns());
        let bytes = (self.completed - before) * self.cell.bytes as u64;
        let counts = self.counts();
        let said = counts.copied as f64 / counts.notified.max(1) as f64;
        let shared = counts.zero_copy_bytes as f64 * (1.0 - said) / counts.bytes.max(1) as f64;
        let completions = (counts.notified > 0).then_some(said);
        self.connections.iter().for_each(|&connection| self.transport.abort(connection));
        self.transport.poll(&mut self.events, Some(Duration::ZERO))?;
        Ok(Measured { bytes, elapsed, cpu_ns, copied: [0.0, 1.0 - shared], completions, congestion: None })
    }
}

impl super::flips::Watched for Sender {
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
    let (mut events, mut connections) = (Vec::new(), Vec::new());
    while !done.load(Ordering::Acquire) {
        if cell.wire == WireKind::Ifb && connected.load(Ordering::Acquire) {
            // It is only there so that nobody takes it for gone.
            std::thread::park_timeout(Duration::from_millis(10));
            continue;
        }
        transport.poll(&mut events, Some(Duration::from_millis(10)))?;
        for event in events.drain(..) {
            match event {
                Event::Accepted { connection, .. } => connections.push((connection, Received::default())),
                Event::Closed { .. } => {}
                _ => {}
            }
        }
        for (connection, received) in &mut connections {
            if let Some(facts) = transport.facts(*connection) {
                *received = Received { bytes: facts.bytes_received, copied: facts.copied_user };
            }
        }
    }
    let sum = |of: fn(&Received) -> u64| connections.iter().map(|(_, received)| of(received)).sum();
    Ok(Received { bytes: sum(|received| received.bytes), copied: sum(|received| received.copied) })
}
