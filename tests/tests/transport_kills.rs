//! Transports whose other end is killed while bytes are on their way, by each path and over each kind of wire: no wrong
//! byte is accepted, nothing that completed is missing, a graceful end loses nothing, and survivors go on at once.
//!
//! A sender overwrites each slot as soon as its message has completed, so that whoever reads it later is caught.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use zcmi_bench::wires::{Wire, WireKind};
use zcmi_mem::pool::PoolPlan;
use zcmi_net::outgoing::Token;
use zcmi_net::path::PathKind;
use zcmi_net::slots::SlotPlan;
use zcmi_net::stream::{StreamOptions, StreamTransport};
use zcmi_net::transport::{Closed, ConnectionId, Destination, Event, Transport};
use zcmi_tests::content;
use zcmi_tests::rig::Kept;
use zcmi_tests::sys::{Forked, end_now, fork, wait_for};

/// One test at a time: a child of another would hold on to sockets.
static ALONE: Mutex<()> = Mutex::new(());
const PATIENCE: Duration = Duration::from_secs(30);
const LOANS: u32 = 8;
const MESSAGE: usize = 200_000;
/// How long a survivor may be kept by one call.
const STALL: Duration = Duration::from_millis(100);

const PATHS: [PathKind; 7] = [
    PathKind::Write,
    PathKind::ZeroCopy,
    PathKind::SendFile,
    PathKind::Splice,
    PathKind::UringSend,
    PathKind::UringZeroCopy,
    PathKind::UringFixed,
];

fn transport(path: PathKind) -> StreamTransport {
    let options = StreamOptions {
        slots: SlotPlan {
            loans: PoolPlan::single(MESSAGE, LOANS).ok(),
            slot_bytes: 64 << 10,
            large_slots: 32,
            ..SlotPlan::default()
        },
        path: Some(path),
        resume_for: Duration::ZERO,
        ..StreamOptions::default()
    };
    StreamTransport::new(options).expect("a transport")
}

fn size(number: u64) -> usize {
    let size = number.wrapping_mul(2_654_435_761) % MESSAGE as u64;
    if number.is_multiple_of(5) { 8 + size as usize % 500 } else { 8 + size as usize % (MESSAGE - 8) }
}

/// Submits as many messages as there are slots, up to number `end`.
fn submit(transport: &mut StreamTransport, connection: ConnectionId, next: &mut u64, end: u64) {
    while *next < end {
        let Ok(mut message) = transport.loan(size(*next)) else { return };
        content::fill(&mut message, 0, *next);
        let to = Destination::new(connection).tag(*next);
        if transport.submit(to, message.into(), Token(*next)).is_err() {
            return;
        }
        *next += 1;
    }
}

/// What a sender does until it is killed: it sends, and says what completed.
fn send(socket: OwnedFd, path: PathKind, mut tell: std::fs::File, end: u64, forks: bool) -> ! {
    let mut transport = transport(path);
    let Ok(connection) = transport.adopt_connecting(socket) else { end_now(2) };
    let (mut next, mut events, mut forks, mut closing) = (0, Vec::new(), forks, false);
    loop {
        submit(&mut transport, connection, &mut next, end);
        if next == end && !core::mem::replace(&mut closing, true) {
            transport.close(connection);
            // Nothing of it leaves before the next poll.
            let _ = tell.write_all(&CLOSING.to_le_bytes());
        }
        if transport.poll(&mut events, Some(Duration::from_millis(1))).is_err() {
            end_now(3);
        }
        for event in events.drain(..) {
            match event {
                Event::Completed { token, .. } => {
                    let _ = tell.write_all(&token.0.to_le_bytes());
                    if core::mem::take(&mut forks) {
                        match fork() {
                            // It holds the sockets, does nothing with them, and goes when it is killed.
                            Ok(Forked::Child) => idle(Duration::from_secs(60)),
                            Ok(Forked::Parent(pid)) => {
                                let _ = tell.write_all(&(HOLDER | pid as u64).to_le_bytes());
                                continue;
                            }
                            Err(_) => end_now(4),
                        }
                        end_now(0);
                    }
                }
                Event::Closed { reason: Closed::Ended, .. } => {
                    let _ = tell.write_all(&ENDED.to_le_bytes());
                    end_now(0);
                }
                Event::Closed { .. } | Event::Failed { .. } => end_now(5),
                _ => {}
            }
        }
    }
}

/// Lets time pass in which this process does nothing.
fn idle(time: Duration) {
    let (nobody, _writes) = rustix::pipe::pipe().expect("a pipe");
    let mut waited = [rustix::event::PollFd::new(&nobody, rustix::event::PollFlags::IN)];
    let time = rustix::event::Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() };
    let _ = rustix::event::poll(&mut waited, Some(&time));
}

/// Bit of a word that is the process that holds on to the sockets.
const HOLDER: u64 = 1 << 62;
/// The word of a sender whose connection ended well.
const ENDED: u64 = 1 << 63;
/// The word of a sender that ends its connection.
const CLOSING: u64 = 1 << 61;

/// What a sender said.
#[derive(Default)]
struct Said {
    completed: u64,
    holder: Option<Pid>,
    closing: bool,
    ended: bool,
    rest: Vec<u8>,
}

impl Said {
    fn hear(&mut self, from: &mut std::fs::File) {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut bytes) {
            self.rest.extend_from_slice(&bytes[..count]);
        }
        let whole = self.rest.len() / 8 * 8;
        for word in self.rest.drain(..whole).collect::<Vec<_>>().chunks_exact(8) {
            let word = u64::from_le_bytes(word.try_into().expect("8 bytes"));
            match word {
                ENDED => self.ended = true,
                CLOSING => self.closing = true,
                _ if word & HOLDER != 0 => self.holder = Pid::from_raw((word & !HOLDER) as i32),
                _ => self.completed = self.completed.max(word + 1),
            }
        }
    }
}

/// A receiver, and what it got.
struct Receiver {
    transport: StreamTransport,
    messages: u64,
    partial: Vec<u8>,
    ended: bool,
    closed: Option<Closed>,
    slowest: Duration,
}

impl Receiver {
    fn new(socket: OwnedFd) -> Self {
        let mut transport = transport(PathKind::Write);
        transport.adopt_accepting(socket).expect("a stream");
        Self { transport, messages: 0, partial: Vec::new(), ended: false, closed: None, slowest: Duration::ZERO }
    }

    /// One turn. How much happened.
    fn poll(&mut self, wait: Duration) -> usize {
        let (mut events, begin) = (Vec::new(), Kept::begin());
        self.transport.poll(&mut events, Some(wait)).expect("the transport goes on");
        self.slowest = self.slowest.max(begin.elapsed().saturating_sub(wait));
        let count = events.len();
        for event in events {
            match event {
                Event::Received { piece, .. } => {
                    assert_eq!((piece.tag, piece.offset as usize), (self.messages, self.partial.len()));
                    self.partial.extend_from_slice(&piece.lease);
                    if piece.is_last() {
                        let bytes = core::mem::take(&mut self.partial);
                        assert_eq!(bytes.len(), size(self.messages));
                        if let Err(wrong) = content::check(&bytes, self.messages) {
                            panic!("message {} was accepted, and is wrong: {wrong}", self.messages);
                        }
                        self.messages += 1;
                    }
                }
                Event::Ended { connection } => {
                    self.ended = true;
                    self.transport.close(connection);
                }
                Event::Closed { reason, .. } => self.closed = Some(reason),
                _ => {}
            }
        }
        count
    }

    fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(Instant::now() < deadline, "{what}: not in {PATIENCE:?}, after {} messages", self.messages);
            self.poll(Duration::from_millis(1));
        }
    }
}

impl Receiver {
    /// Receives from somebody else, with whom it is as ever.
    fn goes_on(&mut self, wire: &Wire, path: PathKind) {
        let streams = wire.streams().expect("a stream");
        self.transport.adopt_accepting(streams.receiver).expect("a stream");
        (self.messages, self.ended, self.closed) = (0, false, None);
        self.partial.clear();
        let (mut sender, mut next, mut events) = (transport(path), 0, Vec::new());
        let connection = sender.adopt_connecting(streams.sender).expect("a stream");
        self.until("the messages of somebody else", |receiver| {
            submit(&mut sender, connection, &mut next, 20);
            if next == 20 {
                sender.close(connection);
            }
            sender.poll(&mut events, Some(Duration::ZERO)).expect("the transport goes on");
            receiver.closed.is_some() && events.iter().any(|event| matches!(event, Event::Closed { .. }))
        });
        assert!(matches!(self.closed, Some(Closed::Ended)), "{:?}", self.closed);
        assert_eq!((self.messages, self.ended), (20, true));
    }
}

fn pipe() -> (std::fs::File, std::fs::File) {
    let (from, to) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC | rustix::pipe::PipeFlags::NONBLOCK).expect("a pipe");
    (from.into(), to.into())
}

/// Kills a sender after some messages.
fn kill_sender(wire: &Wire, path: PathKind, after: u64, forks: bool) -> Duration {
    let streams = wire.streams().expect("a stream");
    let (mut from, to) = pipe();
    let child = match fork().expect("a child") {
        Forked::Child => {
            drop(streams.receiver);
            send(streams.sender, path, to, u64::MAX, forks)
        }
        Forked::Parent(pid) => Pid::from_raw(pid).expect("a process"),
    };
    drop((streams.sender, to));
    let (mut said, mut receiver) = (Said::default(), Receiver::new(streams.receiver));
    receiver.until("the first messages", |receiver| {
        said.hear(&mut from);
        receiver.messages >= after && (said.holder.is_some() || !forks)
    });
    // It goes on into a receiver that does not read, until it is stuck or dead.
    idle(Duration::from_millis(after % 4));
    kill_process(child, Signal::KILL).expect("it lives");
    assert_eq!(wait_for(child.as_raw_pid()).expect("it ends"), 128 + 9, "it was killed, and did not end before");
    said.hear(&mut from);
    if let Some(holder) = said.holder {
        // The sockets are open still. Whatever was on its way comes.
        while receiver.poll(Duration::from_millis(100)) > 0 {}
        assert!(receiver.closed.is_none(), "the sockets are held: {:?}", receiver.closed);
        kill_process(holder, Signal::KILL).expect("it lives");
    }
    receiver.until("the end", |receiver| receiver.closed.is_some());
    assert!(!receiver.ended, "an end that nobody said");
    assert!(
        receiver.messages >= said.completed,
        "{path}: {} messages completed and {} came",
        said.completed,
        receiver.messages
    );
    receiver.slowest
}

fn wire(kind: WireKind) -> Option<Wire> {
    match Wire::make(kind) {
        Ok(wire) => Some(wire),
        Err(unavailable) => {
            println!("SKIP: {}", unavailable.reason());
            None
        }
    }
}

fn rounds() -> u64 {
    if std::env::var_os("ZCMI_LONG").is_some() { 100 } else { 3 }
}

#[test]
fn nothing_wrong_is_accepted_of_a_sender_that_is_killed() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for kind in [WireKind::Lo, WireKind::Unix, WireKind::Tbf] {
        let Some(wire) = wire(kind) else { continue };
        let mut slow = 0;
        for path in PATHS {
            for round in 0..rounds() {
                let after = 1 + content::mix(round << 8 | path as u64) % 40;
                slow += u32::from(kill_sender(&wire, path, after, round % 3 == 2) > STALL);
            }
        }
        // One call may have waited for a processor.
        assert!(slow <= 2, "on {kind} {slow} receivers were kept for more than {STALL:?}");
    }
}

#[test]
fn a_sender_that_ends_in_good_order_and_dies_loses_nothing() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for kind in [WireKind::Lo, WireKind::Unix, WireKind::Tbf] {
        let Some(wire) = wire(kind) else { continue };
        for path in PATHS {
            let streams = wire.streams().expect("a stream");
            let (mut from, to) = pipe();
            let child = match fork().expect("a child") {
                Forked::Child => {
                    drop(streams.receiver);
                    send(streams.sender, path, to, 30, false)
                }
                Forked::Parent(pid) => pid,
            };
            drop((streams.sender, to));
            let (mut said, mut receiver) = (Said::default(), Receiver::new(streams.receiver));
            receiver.until("the end", |receiver| receiver.closed.is_some());
            assert!(matches!(receiver.closed, Some(Closed::Ended)), "{path} on {kind}: {:?}", receiver.closed);
            assert_eq!((receiver.messages, receiver.ended), (30, true));
            assert_eq!(wait_for(child).expect("it ends"), 0, "{path} on {kind}");
            said.hear(&mut from);
            assert_eq!((said.completed, said.ended), (30, true));
        }
    }
}

/// Kills a sender between its `close` and the end of its connection: as soon as it has called that, when most of what
/// it sent last is on its way, or when the receiver has heard of the end and has not answered.
fn kill_ending(wire: &Wire, path: PathKind, is_late: bool) -> Duration {
    const TOTAL: u64 = 30;
    let streams = wire.streams().expect("a stream");
    let (mut from, to) = pipe();
    let child = match fork().expect("a child") {
        Forked::Child => {
            drop(streams.receiver);
            send(streams.sender, path, to, TOTAL, false)
        }
        Forked::Parent(pid) => Pid::from_raw(pid).expect("a process"),
    };
    drop((streams.sender, to));
    let (mut said, mut receiver) = (Said::default(), Receiver::new(streams.receiver));
    let what = format!("{path}, {}", if is_late { "late" } else { "early" });
    receiver.until("the sender's end", |receiver| {
        said.hear(&mut from);
        if is_late { receiver.ended } else { said.closing }
    });
    // What it answers would leave at its next poll, which comes when the sender is dead.
    assert!(receiver.closed.is_none(), "{what}: {:?}", receiver.closed);
    kill_process(child, Signal::KILL).expect("it lives");
    assert_eq!(wait_for(child.as_raw_pid()).expect("it ends"), 128 + 9, "{what}: it was killed, and had not ended");
    said.hear(&mut from);
    assert!(said.closing && !said.ended, "{what}");
    receiver.until("the end", |receiver| receiver.closed.is_some());
    assert!(receiver.messages >= said.completed, "{what}: {} completed, {} came", said.completed, receiver.messages);
    // What says that it is the end is behind everything else.
    assert!(!receiver.ended || receiver.messages == TOTAL, "{what}: an end after {} messages", receiver.messages);
    assert!(!is_late || receiver.ended, "{what}");
    receiver.goes_on(wire, path);
    receiver.slowest
}

#[test]
fn a_sender_that_is_killed_while_it_ends_in_good_order_has_lost_nothing_that_completed() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for kind in [WireKind::Lo, WireKind::Unix, WireKind::Tbf] {
        let Some(wire) = wire(kind) else { continue };
        let mut slow = 0;
        for path in PATHS {
            for round in 0..2 * rounds().div_ceil(3) {
                slow += u32::from(kill_ending(&wire, path, round % 2 == 1) > STALL);
            }
        }
        assert!(slow <= 2, "on {kind} {slow} receivers were kept for more than {STALL:?}");
    }
}

/// What a receiver does until it is killed.
fn receive(socket: OwnedFd) -> ! {
    let mut receiver = Receiver::new(socket);
    loop {
        receiver.poll(Duration::from_millis(10));
        if receiver.closed.is_some() {
            end_now(6);
        }
    }
}

#[test]
fn a_sender_whose_receiver_is_killed_goes_on_with_all_its_slots_but_those_somebody_may_read() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for kind in [WireKind::Lo, WireKind::Unix, WireKind::Tbf] {
        let Some(wire) = wire(kind) else { continue };
        let mut slow = 0;
        for path in PATHS {
            let shares = matches!(path, PathKind::SendFile | PathKind::Splice);
            let (mut kept, mut round) = (0, 0);
            // A receiver that dies when it has said of everything that it was received leaves nothing to be kept.
            while round < rounds() || (shares && kept == 0 && round < 10 * rounds()) {
                round += 1;
                let (slowest, quarantined) = kill_receiver(&wire, path, 1 + content::mix(round) % 40);
                slow += u32::from(slowest > STALL);
                kept += quarantined;
            }
            assert_eq!(kept > 0, shares, "{path} on {kind}: {kept} bytes are quarantined");
        }
        assert!(slow <= 2, "on {kind} {slow} senders were kept for more than {STALL:?}");
    }
}

/// Kills a receiver after some messages. How long the sender was kept, and how many bytes it can never reuse.
fn kill_receiver(wire: &Wire, path: PathKind, after: u64) -> (Duration, u64) {
    let streams = wire.streams().expect("a stream");
    let child = match fork().expect("a child") {
        Forked::Child => {
            drop(streams.sender);
            receive(streams.receiver)
        }
        Forked::Parent(pid) => Pid::from_raw(pid).expect("a process"),
    };
    drop(streams.receiver);
    let mut transport = transport(path);
    let connection = transport.adopt_connecting(streams.sender).expect("a stream");
    let (mut next, mut events, mut slowest) = (0, Vec::new(), Duration::ZERO);
    let (mut done, mut failed, mut closed, mut killed) = (0, 0, false, false);
    let deadline = Instant::now() + PATIENCE;
    while !closed {
        assert!(Instant::now() < deadline, "{path}: not told of the end in {PATIENCE:?}");
        let begin = Kept::begin();
        submit(&mut transport, connection, &mut next, u64::MAX);
        transport.poll(&mut events, Some(Duration::ZERO)).expect("the transport goes on");
        slowest = slowest.max(begin.elapsed());
        for event in events.drain(..) {
            match event {
                Event::Completed { .. } => done += 1,
                Event::Failed { .. } => failed += 1,
                Event::Closed { reason, .. } => {
                    assert!(matches!(reason, Closed::Broken(_)), "{reason:?}");
                    closed = true;
                }
                _ => {}
            }
        }
        if done >= after && !killed {
            kill_process(child, Signal::KILL).expect("it lives");
            killed = true;
        }
    }
    assert_eq!(wait_for(child.as_raw_pid()).expect("it ends"), 128 + 9);
    assert_eq!(done + failed, next, "each message completed or failed");
    // What the kernel may read comes back when it says that it is done; what only the peer could have freed does not.
    let quarantined = transport.quarantined_bytes();
    let mut free = Vec::new();
    let due = if quarantined == 0 { LOANS as usize } else { 0 };
    while free.len() < due {
        assert!(Instant::now() < deadline, "{path}: {} slots of {LOANS} came back", free.len());
        free.extend(transport.loan(MESSAGE));
        let begin = Kept::begin();
        transport.poll(&mut events, Some(Duration::ZERO)).expect("the transport goes on");
        slowest = slowest.max(begin.elapsed());
    }
    if quarantined > 0 {
        while let Ok(lease) = transport.loan(MESSAGE) {
            free.push(lease);
        }
        let kept = LOANS as usize - free.len();
        assert!(kept > 0 && kept <= failed as usize, "{path}: {kept} slots are kept, {failed} messages failed");
    }
    (slowest, quarantined)
}

#[test]
fn a_forked_child_is_told_so_and_its_drop_disturbs_nobody() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(wire) = wire(WireKind::Unix) else { return };
    let lo = Wire::make(WireKind::Lo);
    for (wire, paths) in [(Some(&wire), &PATHS[..]), (lo.as_ref().ok(), &PATHS[..])] {
        let Some(wire) = wire else { continue };
        for &path in paths {
            let streams = wire.streams().expect("a stream");
            let mut sender = transport(path);
            let connection = sender.adopt_connecting(streams.sender).expect("a stream");
            let mut receiver = Receiver::new(streams.receiver);
            let (mut next, mut completed, mut forks) = (0, 0, 0);
            let mut held = Vec::new();
            while completed < 60 {
                submit(&mut sender, connection, &mut next, 60);
                let mut events = Vec::new();
                sender.poll(&mut events, Some(Duration::ZERO)).expect("the transport goes on");
                for event in events {
                    match event {
                        Event::Completed { .. } => completed += 1,
                        Event::Connected { .. } | Event::PathRefused { .. } => {}
                        other => panic!("the parent was told {other:?}"),
                    }
                }
                receiver.poll(Duration::ZERO);
                assert!(receiver.closed.is_none(), "{:?}", receiver.closed);
                if completed > forks * 10 {
                    forks += 1;
                    held.extend(sender.loan(8));
                    match fork().expect("a child") {
                        Forked::Child => {
                            let told = |transport: &mut StreamTransport| {
                                let polled = transport.poll(&mut Vec::new(), Some(Duration::ZERO));
                                matches!(polled, Err(zcmi_net::transport::TransportError::Forked(_)))
                            };
                            let good = told(&mut sender) && told(&mut receiver.transport);
                            // Who does not ask first does no harm either.
                            sender.close(connection);
                            sender.abort(connection);
                            let dials = sender.connect(&"127.0.0.1:1".parse().expect("an address"));
                            let good = good && dials.is_err() && sender.loan(8).is_err();
                            drop((held, sender, receiver));
                            end_now(u8::from(!good));
                        }
                        Forked::Parent(pid) => {
                            assert_eq!(wait_for(pid).expect("it ends"), 0, "{path}: the child was not told");
                        }
                    }
                    held.clear();
                }
            }
            assert!(forks >= 5);
            receiver.until("all messages", |receiver| receiver.messages == 60);
        }
    }
}
