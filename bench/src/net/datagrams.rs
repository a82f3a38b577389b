//! Messages over UDP: into a sink, where only the sender works, and to a receiver on a thread of its own.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use zcmi_mem::pool::PoolPlan;
use zcmi_net::link::LinkLimits;
use zcmi_net::outgoing::QueueLimits;
use zcmi_net::path::PathKind;
use zcmi_net::slots::SlotPlan;
use zcmi_net::udp::{DatagramCounts, Reliability, UdpOptions, UdpTransport};

use super::place::Place;
use super::receiver::{Received, Receiver};
use super::sender::{Sender, Sends as _};
use super::{Cell, CellError, Measured, PATIENCE, RowKind, SLOT_BYTES, Sent, WINDOW_BYTES, WINDOW_MESSAGES};
use crate::pin;
use crate::wires::{Family, Route, Side, Wire, WireKind};

/// Measures the cell; the receiver, if there is one, works on that processor.
pub(super) fn throughput(cell: Cell, wire: &Wire, length: Duration, cpu: usize) -> Result<(Measured, Sent), CellError> {
    throughput_with(options(cell), cell, wire, length, cpu)
}

fn throughput_with(
    options: UdpOptions,
    cell: Cell,
    wire: &Wire,
    length: Duration,
    cpu: usize,
) -> Result<(Measured, Sent), CellError> {
    let forced = options.path;
    let work = |sender: &mut Sender<UdpTransport>| measure(sender, length, cell.bytes, forced);
    let ((mut measured, asked), received) = with_sender_and_receiver(options, cell, wire, cpu, work)?;
    if cell.wire == WireKind::Ifb {
        return Ok((measured, Sent::Unread));
    }
    // What is received is copied out of the kernel.
    measured.copied = [received.copied_per_byte(), 1.0];
    Ok((measured, Sent::Datagrams(asked)))
}

/// Does something with connected senders.
pub(super) fn with_sender<T: Send>(
    cell: Cell,
    wire: &Wire,
    cpu: usize,
    work: impl FnOnce(&mut Sender<UdpTransport>) -> Result<T, CellError> + Send,
) -> Result<T, CellError> {
    with_sender_and_receiver(options(cell), cell, wire, cpu, work).map(|(done, _)| done)
}

fn with_sender_and_receiver<T: Send>(
    options: UdpOptions,
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
                let mut sender = sender(options, at, cell.bytes, cell.streams)?;
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

/// What all connections of a sender sent.
fn counts(sender: &Sender<UdpTransport>) -> DatagramCounts {
    let mut all = DatagramCounts::default();
    for facts in sender.connections.iter().filter_map(|&connection| sender.transport.facts(connection)) {
        all.bytes += facts.socket.bytes;
        all.zero_copy_bytes += facts.socket.zero_copy_bytes;
        all.notified += facts.socket.notified;
        all.copied += facts.socket.copied;
    }
    all
}

/// What the kernel says that it copied at the sender, for each byte, and which share of completions said so.
pub(super) fn copied(sender: &Sender<UdpTransport>) -> (f64, Option<f64>) {
    let all = counts(sender);
    let said = all.copied as f64 / all.notified.max(1) as f64;
    let shared = all.zero_copy_bytes as f64 * (1.0 - said) / all.bytes.max(1) as f64;
    (1.0 - shared, (all.notified > 0).then_some(said))
}

/// What was sent as datagrams by paths of which only the oracle knows whether they copied.
pub(crate) struct Asked {
    /// Its share of all bytes.
    share: f64,
    /// Those paths.
    paths: Vec<PathKind>,
    /// The length of a datagram.
    datagram_bytes: usize,
}

impl Asked {
    fn of(sender: &Sender<UdpTransport>, bytes: usize, forced: Option<PathKind>) -> Self {
        let all = counts(sender);
        let mut paths = Vec::new();
        for selection in sender.connections.iter().filter_map(|&connection| sender.transport.selection(connection)) {
            paths.extend(selection.models.iter().filter(|model| model.calls > 0).map(|model| model.path));
        }
        paths.extend(forced);
        paths.retain(|path| path.is_notified());
        if paths.is_empty() {
            // Sent before a change of the wire, of which nothing is remembered.
            paths.extend(PathKind::ALL.into_iter().filter(|path| path.is_notified()));
        }
        paths.sort_unstable();
        paths.dedup();
        let facts = sender.connections.first().and_then(|&connection| sender.transport.facts(connection));
        let segment_bytes = facts.map_or(bytes, |facts| facts.segment_bytes as usize);
        let share = all.zero_copy_bytes as f64 / all.bytes.max(1) as f64;
        Self { share, paths, datagram_bytes: bytes.min(segment_bytes) }
    }

    /// How much went by each path is not known of datagrams, so that what copies most speaks for all.
    pub(super) fn copied_share(&self, place: &Place) -> Result<f64, CellError> {
        if self.share == 0.0 {
            return Ok(1.0);
        }
        let mut copied = 0.0_f64;
        for &path in &self.paths {
            copied = copied.max(place.copied_of_datagrams(path, self.datagram_bytes)?);
        }
        Ok(1.0 - self.share * (1.0 - copied))
    }
}

fn measure(
    sender: &mut Sender<UdpTransport>,
    length: Duration,
    message_bytes: usize,
    forced: Option<PathKind>,
) -> Result<(Measured, Asked), CellError> {
    let (bytes, elapsed, cpu_ns) = sender.measure(length, &[])?;
    let (copied, completions) = copied(sender);
    let asked = Asked::of(sender, message_bytes, forced);
    sender.give_up()?;
    let copied = [0.0, copied];
    Ok((Measured { bytes, elapsed, cpu_ns, copied, completions, congestion: None }, asked))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Messages over that wire by a path that is forced: bytes copied in the kernel for each byte, and the share of
    /// completions that said so.
    fn measured(wire: WireKind, path: PathKind) -> Option<(f64, Option<f64>)> {
        let (made, pair) = match (Wire::make(wire), pin::pair()) {
            (Ok(wire), Ok(pair)) => (wire, pair),
            (Err(unavailable), _) => {
                println!("SKIP: {unavailable}");
                return None;
            }
            (_, Err(error)) => {
                println!("SKIP: {error}");
                return None;
            }
        };
        let cell = Cell { wire, row: RowKind::Udp, bytes: 64 << 10, streams: 1 };
        let options = UdpOptions { path: Some(path), ..options(cell) };
        let place = Place::on(made);
        let length = Duration::from_millis(60);
        let (measured, sent) = throughput_with(options, cell, place.wire(), length, pair.far).expect("figures");
        let copied = measured.copied[1] + sent.copied_share(&place).expect("a verdict");
        println!("udp by {path} over {wire}: {copied} copied, {:?} said so", measured.completions);
        Some((copied, measured.completions))
    }

    #[test]
    fn datagrams_count_as_copied_by_a_path_that_copies_whatever_completions_say() {
        for (wire, word) in [(WireKind::VethXdp, 0.0), (WireKind::Veth, 1.0), (WireKind::Lo, 1.0)] {
            for path in PathKind::ALL.into_iter().filter(|path| path.is_notified()) {
                let Some((copied, completions)) = measured(wire, path) else { continue };
                // Where the kernel refuses the path, everything was written, and nobody is told.
                let Some(said) = completions else {
                    assert!(path.is_uring(), "every kernel has {path} on {wire}");
                    println!("SKIP: {path} is not to be had here");
                    continue;
                };
                assert!((said - word).abs() < 1e-9, "{said} of the completions of {path} on {wire} say that it copied");
                assert!((copied - 2.0).abs() < 1e-9, "{copied} by {path} on {wire}, at either end 1");
            }
        }
    }
}
