//! A hundred connections of one sender, of which one reads slowly: what the kernel may still read of it stays within
//! its budget, the others' messages complete as before, nothing that was accepted is lost or torn, and memory does not
//! grow.
//!
//! Phases with and without messages to the slow one take turns, and what the others noticed of it is asserted: closely
//! with `ZCMI_LONG=1`, which takes more of them, and otherwise with slack, because other work on the machine may weigh
//! more. In a quick run, which has one round, it is printed.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use zcmi_bench::stats::Summary;
use zcmi_bench::wires::{Wire, WireKind};
use zcmi_mem::pool::PoolPlan;
use zcmi_net::link::LinkLimits;
use zcmi_net::outgoing::{QueueLimits, Token};
use zcmi_net::path::PathKind;
use zcmi_net::slots::SlotPlan;
use zcmi_net::stream::{StreamOptions, StreamTransport};
use zcmi_net::transport::{Closed, ConnectionId, Destination, Event, Transport};
use zcmi_tests::content;
use zcmi_tests::seed::Length;

const CONNECTIONS: usize = 100;
/// The place of the one that reads slowly.
const SLOW: usize = 0;
const MESSAGE: usize = 16 << 10;
const SLOW_MESSAGE: usize = 64 << 10;
/// Messages under way to the slow one at the most.
const SLOW_WINDOW: usize = 16;
const SLOW_BYTES_PER_S: f64 = 1e6;
/// What the kernel may read after the call, of each connection.
const PINNED: u64 = 256 << 10;
/// How much the process may grow.
const GROWTH: u64 = 8 << 20;
const PATIENCE: Duration = Duration::from_secs(30);

/// Those by which what is on its way stays pinned: until the far program has it, and until the kernel says so.
const PATHS: [PathKind; 2] = [PathKind::SendFile, PathKind::ZeroCopy];

fn transport(connections: usize, large_slots: u32, path: PathKind) -> StreamTransport {
    let options = StreamOptions {
        slots: SlotPlan {
            // One for each of the others, and the slow one's.
            loans: PoolPlan::single(SLOW_MESSAGE, (CONNECTIONS + SLOW_WINDOW) as u32).ok(),
            slot_bytes: SLOW_MESSAGE as u32,
            large_slots,
            ..SlotPlan::default()
        },
        limits: LinkLimits {
            queue: QueueLimits { messages: SLOW_WINDOW, ..QueueLimits::default() },
            pinned_bytes: PINNED,
            ..LinkLimits::default()
        },
        connections: 2 * connections,
        path: Some(path),
        ..StreamOptions::default()
    };
    StreamTransport::new(options).expect("a transport")
}

/// Receives on all these sockets until they have ended, and returns how many messages came. After each piece `rest` is
/// told its length.
fn receive(sockets: Vec<OwnedFd>, large_slots: u32, mut rest: impl FnMut(usize)) -> u64 {
    let mut transport = transport(sockets.len(), large_slots, PathKind::Write);
    let mut open = sockets.len();
    for socket in sockets {
        transport.adopt_accepting(socket).expect("a stream");
    }
    // The tag of a connection's messages, the number of the next, and what there is of it.
    let mut expected = HashMap::<ConnectionId, (Option<u16>, u64, Vec<u8>)>::new();
    let (mut events, mut received) = (Vec::new(), 0);
    while open > 0 {
        transport.poll(&mut events, Some(PATIENCE)).expect("the transport goes on");
        assert!(!events.is_empty(), "nothing came for {PATIENCE:?}");
        for event in events.drain(..) {
            match event {
                Event::Received { connection, piece } => {
                    let (tag, next, bytes) = expected.entry(connection).or_default();
                    assert_eq!((piece.tag, piece.offset as usize), (*next, bytes.len()), "in order, and once");
                    bytes.extend_from_slice(&piece.lease);
                    if piece.is_last() {
                        let came = content::check(bytes, *next).unwrap_or_else(|wrong| panic!("{wrong}"));
                        assert_eq!(*tag.get_or_insert(came.expect("a tag")), came.expect("a tag"));
                        (*next, received) = (*next + 1, received + 1);
                        bytes.clear();
                    }
                    rest(piece.lease.len());
                }
                Event::Ended { connection } => transport.close(connection),
                Event::Closed { reason: Closed::Ended, .. } => open -= 1,
                Event::Closed { reason, .. } => panic!("a connection was closed: {reason}"),
                _ => {}
            }
        }
    }
    received
}

/// Memory of this process that is there, in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a process has memory");
    1024 * line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number")
}

struct Sender {
    transport: StreamTransport,
    connections: Vec<ConnectionId>,
    /// Messages submitted to each.
    submitted: Vec<u64>,
    under_way: Vec<usize>,
    /// When the last message to each was submitted.
    since: Vec<Instant>,
    most_pinned: u64,
    events: Vec<Event>,
}

impl Sender {
    fn submit(&mut self, to: usize) -> bool {
        let bytes = if to == SLOW { SLOW_MESSAGE } else { MESSAGE };
        let mut message = self.transport.loan(bytes).expect("there are enough");
        let number = self.submitted[to];
        content::fill(&mut message, to as u16, number);
        self.since[to] = Instant::now();
        let destination = Destination::new(self.connections[to]).tag(number);
        let taken = self.transport.submit(destination, message.into(), Token(to as u64)).is_ok();
        self.submitted[to] += u64::from(taken);
        self.under_way[to] += usize::from(taken);
        taken
    }

    /// One look; how long what completed had taken on the connections that are not slow is appended.
    fn turn(&mut self, took: &mut Vec<f64>) {
        self.transport.poll(&mut self.events, Some(PATIENCE)).expect("the transport goes on");
        assert!(!self.events.is_empty(), "nothing happened for {PATIENCE:?}");
        for event in self.events.drain(..) {
            match event {
                Event::Completed { token, .. } => {
                    let to = token.0 as usize;
                    self.under_way[to] -= 1;
                    if to != SLOW {
                        took.push(self.since[to].elapsed().as_secs_f64());
                    }
                }
                Event::Failed { .. } | Event::Closed { .. } => panic!("{event:?}"),
                _ => {}
            }
        }
        if let Some(facts) = self.transport.facts(self.connections[SLOW]) {
            self.most_pinned = self.most_pinned.max(facts.pinned_bytes);
        }
    }

    /// Keeps one message under way to each of the others, and as many as may be to the slow one if `with` says so, for
    /// that long. Returns the time within which 99 of 100 messages to the others completed.
    fn phase(&mut self, with: bool, length: Duration) -> f64 {
        let (begin, mut took) = (Instant::now(), Vec::new());
        while begin.elapsed() < length {
            while with && self.under_way[SLOW] < SLOW_WINDOW {
                assert!(self.submit(SLOW), "the slow one always has as many as may wait");
            }
            for to in (0..CONNECTIONS).filter(|to| *to != SLOW) {
                if self.under_way[to] == 0 {
                    assert!(self.submit(to), "a connection takes one message");
                }
            }
            self.turn(&mut took);
        }
        took.sort_by(f64::total_cmp);
        assert!(took.len() > 1000, "only {} messages completed", took.len());
        took[took.len() * 99 / 100]
    }

    /// Waits until nothing is under way.
    fn settle(&mut self) {
        let begin = Instant::now();
        while self.under_way.iter().any(|count| *count > 0) {
            assert!(begin.elapsed() < PATIENCE, "messages do not complete");
            self.turn(&mut Vec::new());
        }
    }
}

#[test]
fn one_that_reads_slowly_costs_the_others_nothing() {
    let wire = match Wire::make(WireKind::Lo) {
        Ok(wire) => wire,
        Err(unavailable) => {
            println!("SKIP: {unavailable}");
            return;
        }
    };
    PATHS.into_iter().for_each(|path| beside_a_slow_one(&wire, path));
}

/// What the others notice of the slow one when all messages go by this path.
fn beside_a_slow_one(wire: &Wire, path: PathKind) {
    let length = Length::of_this_run();
    let (rounds, phase) = (length.pick(1, 5, 11), Duration::from_millis(length.pick(300, 1000, 3000)));
    let (mut near, mut far): (Vec<OwnedFd>, Vec<OwnedFd>) = (0..CONNECTIONS)
        .map(|_| wire.streams().expect("a stream"))
        .map(|streams| (streams.sender, streams.receiver))
        .unzip();
    let slow = far.remove(SLOW);
    // Whether the slow one makes haste, so that a phase without it begins without it.
    let hurries = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let others = scope.spawn(move || receive(far, 256, |_| ()));
        let (nobody, _writes) = rustix::pipe::pipe().expect("a pipe");
        let hurries = &hurries;
        let slow = scope.spawn(move || {
            receive(vec![slow], 32, |bytes| {
                if !hurries.load(Ordering::Relaxed) {
                    // This is its work: it takes time, and waits for nothing.
                    let time = Duration::from_secs_f64(bytes as f64 / SLOW_BYTES_PER_S);
                    let time = rustix::event::Timespec { tv_sec: 0, tv_nsec: time.subsec_nanos().into() };
                    let mut waited = [rustix::event::PollFd::new(&nobody, rustix::event::PollFlags::IN)];
                    let _ = rustix::event::poll(&mut waited, Some(&time));
                }
            })
        });
        let mut transport = transport(CONNECTIONS, 64, path);
        let connections =
            near.drain(..).map(|socket| transport.adopt_connecting(socket).expect("a stream")).collect::<Vec<_>>();
        let mut sender = Sender {
            transport,
            connections,
            submitted: vec![0; CONNECTIONS],
            under_way: vec![0; CONNECTIONS],
            since: vec![Instant::now(); CONNECTIONS],
            most_pinned: 0,
            events: Vec::new(),
        };
        // What is made at first is no growth.
        hurries.store(true, Ordering::Relaxed);
        sender.phase(true, phase);
        sender.settle();
        let before = (resident(), sender.transport.slot_counts().free_headers);
        let (mut ratios, mut quantiles) = (Vec::new(), [Vec::new(), Vec::new()]);
        for round in 0..rounds {
            let mut p99 = [0.0; 2];
            for with in if round % 2 == 0 { [false, true] } else { [true, false] } {
                hurries.store(false, Ordering::Relaxed);
                let done = sender.submitted[SLOW];
                p99[usize::from(with)] = sender.phase(with, phase);
                if with {
                    let bytes = (sender.submitted[SLOW] - done) * SLOW_MESSAGE as u64;
                    let most = phase.as_secs_f64() * SLOW_BYTES_PER_S + 4.0 * (SLOW_WINDOW * SLOW_MESSAGE) as f64;
                    assert!((bytes as f64) < most, "{bytes} bytes in {phase:?} are not slow");
                }
                hurries.store(true, Ordering::Relaxed);
                sender.settle();
            }
            ratios.push(p99[1] / p99[0]);
            quantiles.iter_mut().zip(p99).for_each(|(all, p99)| all.push(p99 * 1e6));
        }
        let after = (resident(), sender.transport.slot_counts().free_headers);
        for connection in &sender.connections {
            sender.transport.close(*connection);
        }
        let (mut open, submitted) = (CONNECTIONS, sender.submitted.clone());
        while open > 0 {
            sender.transport.poll(&mut sender.events, Some(PATIENCE)).expect("the transport goes on");
            assert!(!sender.events.is_empty(), "no end came for {PATIENCE:?}");
            for event in sender.events.drain(..) {
                match event {
                    Event::Closed { reason: Closed::Ended, .. } => open -= 1,
                    Event::Closed { reason, .. } => panic!("a connection was closed: {reason}"),
                    _ => {}
                }
            }
        }
        assert_eq!(slow.join().expect("no panic"), submitted[SLOW], "each message to the slow one came");
        let sent: u64 = submitted.iter().enumerate().filter(|(to, _)| *to != SLOW).map(|(_, count)| count).sum();
        assert_eq!(others.join().expect("no panic"), sent, "each message to the others came");
        assert!(sender.most_pinned > 0, "something was pinned");
        assert!(sender.most_pinned <= PINNED, "{} bytes were pinned", sender.most_pinned);
        assert_eq!(after.1, before.1, "all headers are free again");
        assert!(after.0 < before.0 + GROWTH, "the process grew from {} to {} bytes", before.0, after.0);
        let ratio = Summary::of(&ratios).expect("rounds");
        println!("{path}: 99 of 100 within {quantiles:.0?} us without and with the slow one, {sent} messages");
        println!("{path}: ratios {ratio:.2?}");
        println!("{path}: most pinned {} bytes; memory {} -> {} bytes", sender.most_pinned, before.0, after.0);
        let most = match length {
            Length::Quick => return,
            Length::Normal => 2.0,
            Length::Long => 1.2,
        };
        assert!(ratio.median <= most, "by {path} the others notice the slow one: {ratio:?}");
    });
}
