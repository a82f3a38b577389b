//! Transports over a network that loses, doubles, reorders and delays packets, resets connections, and swallows
//! everything for a while: each message arrives once, in the order of its stream, and whole, also when its connection
//! had to be mended.
//!
//! Each slot is overwritten as soon as its message has completed. So whoever reads it later, for instance to send again
//! what was lost, is caught by the receiver, which compares every byte.
//!
//! `ZCMI_SEED` makes the same choices again, `ZCMI_LONG=1` sends more and has the network be away for 30 s.

use std::cell::Cell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::time::{Duration, Instant};

use zcmi_bench::wires::{Family, Faults, Relay, Side, Wire, WireKind};
use zcmi_mem::pool::PoolPlan;
use zcmi_mem::registration::Support;
use zcmi_net::outgoing::Token;
use zcmi_net::path::PathKind;
use zcmi_net::slots::SlotPlan;
use zcmi_net::stream::{Address, StreamOptions, StreamTransport};
use zcmi_net::transport::{Closed, ConnectionId, Destination, Event, Transport};
use zcmi_net::udp::{UdpOptions, UdpTransport};
use zcmi_tests::content;
use zcmi_tests::seed::{Length, Random};
use zcmi_tests::sys::poke;

/// The longest message.
const MESSAGE: usize = 200_000;
/// Slots of the sender.
const LOANS: u32 = 8;
const STREAMS: u64 = 3;
/// What a slot holds that its message does not need any more.
const POISON: u8 = 0xa5;
/// How long nothing may happen.
const PATIENCE: Duration = Duration::from_secs(90);

/// How long after a network came back its connections are mended at the latest: an attempt, and the wait for the next.
const BACK: Duration = Duration::from_secs(9);

/// The paths after whose call the kernel may read the pages.
const SHARING: [PathKind; 5] =
    [PathKind::ZeroCopy, PathKind::UringZeroCopy, PathKind::UringFixed, PathKind::SendFile, PathKind::Splice];

/// Those of them that datagrams have.
const SHARING_DATAGRAMS: [PathKind; 3] = [PathKind::ZeroCopy, PathKind::UringZeroCopy, PathKind::UringFixed];

/// A kind of transport.
trait Kind: Sync {
    type Transport: Transport;

    fn make(&self) -> Self::Transport;
    fn listen(&self, transport: &mut Self::Transport, at: SocketAddr) -> SocketAddr;
    fn connect(&self, transport: &mut Self::Transport, to: SocketAddr) -> ConnectionId;
    /// Bytes that left by the path that is forced, or by any.
    fn sent(&self, transport: &Self::Transport, connection: ConnectionId) -> u64;
    /// The path that is forced.
    fn path(&self) -> Option<PathKind>;
    /// Why the path cannot be used here, as a transport says.
    fn refused(&self, transport: &Self::Transport) -> Option<String> {
        let path = self.path()?;
        let support = transport.capabilities().paths.into_iter().find(|(known, _)| *known == path)?.1;
        (!matches!(support, Support::Yes)).then(|| format!("{path}: {support}"))
    }
    /// Why it cannot be tried here.
    fn unavailable(&self) -> Option<String> {
        self.refused(&self.make())
    }
}

#[derive(Clone, Copy)]
struct Streams {
    path: Option<PathKind>,
}

#[derive(Clone, Copy)]
struct Datagrams {
    path: PathKind,
}

fn slots() -> SlotPlan {
    SlotPlan {
        loans: PoolPlan::single(MESSAGE, LOANS).ok(),
        slot_bytes: 64 << 10,
        large_slots: 32,
        ..SlotPlan::default()
    }
}

impl Kind for Streams {
    type Transport = StreamTransport;

    fn make(&self) -> StreamTransport {
        let options = StreamOptions {
            slots: slots(),
            path: self.path,
            insecure: true,
            keep_alive: Duration::from_secs(1),
            resume_for: PATIENCE,
            ..StreamOptions::default()
        };
        StreamTransport::new(options).expect("a transport")
    }

    fn listen(&self, transport: &mut StreamTransport, at: SocketAddr) -> SocketAddr {
        match transport.listen(&Address::Tcp(at)).expect("a listener").1 {
            Address::Tcp(bound) => bound,
            other => panic!("it listens at {other}"),
        }
    }

    fn connect(&self, transport: &mut StreamTransport, to: SocketAddr) -> ConnectionId {
        transport.connect(&Address::Tcp(to)).expect("a connection")
    }

    fn sent(&self, transport: &StreamTransport, connection: ConnectionId) -> u64 {
        let Some(facts) = transport.facts(connection) else { return 0 };
        match self.path {
            Some(path) => facts.counts.paths[path as usize].bytes,
            None => facts.counts.paths.iter().map(|path| path.bytes).sum(),
        }
    }

    fn path(&self) -> Option<PathKind> {
        self.path
    }
}

impl Kind for Datagrams {
    type Transport = UdpTransport;

    fn make(&self) -> UdpTransport {
        let options = UdpOptions {
            slots: slots(),
            path: Some(self.path),
            insecure: true,
            keep_alive: Duration::from_secs(2),
            resume_for: PATIENCE,
            ..UdpOptions::default()
        };
        UdpTransport::new(options).expect("a transport")
    }

    fn listen(&self, transport: &mut UdpTransport, at: SocketAddr) -> SocketAddr {
        transport.listen(at).expect("a listener").1
    }

    fn connect(&self, transport: &mut UdpTransport, to: SocketAddr) -> ConnectionId {
        transport.connect(to).expect("a connection")
    }

    fn sent(&self, transport: &UdpTransport, connection: ConnectionId) -> u64 {
        let Some(facts) = transport.facts(connection) else { return 0 };
        if self.path.shares_pages() { facts.socket.zero_copy_bytes } else { facts.socket.bytes }
    }

    fn path(&self) -> Option<PathKind> {
        Some(self.path)
    }
}

/// What the two ends tell while they work.
#[derive(Debug)]
enum Note {
    /// So many messages were received.
    Received(u64),
    /// The connection broke, as this end noticed.
    Interrupted(Side, String),
    Resumed(Side),
}

fn size(number: u64) -> usize {
    let size = content::mix(number) % MESSAGE as u64;
    if number.is_multiple_of(5) { 8 + size as usize % 500 } else { 8 + size as usize % (MESSAGE - 8) }
}

/// Overwrites every slot that is free.
fn poison(transport: &mut impl Transport) {
    let mut free = Vec::new();
    while let Ok(mut lease) = transport.loan(MESSAGE) {
        lease.fill(POISON);
        free.push(lease);
    }
}

/// What left by the path under test, and why none did if the transport knows.
struct Sent {
    bytes: u64,
    refused: Option<String>,
}

impl Sent {
    /// Whether enough went by this path; a path that is refused once it is used is left out.
    fn check(&self, what: &str) {
        match &self.refused {
            Some(reason) if self.bytes == 0 => println!("SKIP: {what}: {reason}"),
            _ => assert!(self.bytes > 1 << 20, "only {} bytes went by {what}", self.bytes),
        }
    }
}

/// Watches that something goes on.
struct Watch(Instant);

impl Watch {
    fn new() -> Self {
        Self(Instant::now())
    }

    fn look(&mut self, what: &str, happened: bool) {
        if happened {
            self.0 = Instant::now();
        }
        assert!(self.0.elapsed() < PATIENCE, "{what}: nothing happened for {PATIENCE:?}");
    }
}

/// Sends so many messages and ends well.
fn send<K: Kind>(kind: &K, to: SocketAddr, total: u64, notes: &Sender<Note>) -> Sent {
    let mut transport = kind.make();
    let connection = kind.connect(&mut transport, to);
    let (mut next, mut completed, mut sent) = (0, vec![false; total as usize], 0);
    let (mut events, mut watch) = (Vec::new(), Watch::new());
    loop {
        while next < total
            && let Ok(mut message) = transport.loan(size(next))
        {
            content::fill(&mut message, 0, next);
            let to = Destination::new(connection).stream((next % STREAMS) as u32).tag(next);
            if transport.submit(to, message.into(), Token(next)).is_err() {
                break;
            }
            next += 1;
        }
        if next == total {
            transport.close(connection);
        }
        transport.poll(&mut events, Some(Duration::from_millis(50))).expect("the transport goes on");
        watch.look("sending", !events.is_empty());
        for event in events.drain(..) {
            match event {
                Event::Completed { token, .. } => {
                    let before = core::mem::replace(&mut completed[token.0 as usize], true);
                    assert!(!before, "{token:?} completed twice");
                    sent = kind.sent(&transport, connection).max(sent);
                    poison(&mut transport);
                }
                Event::Interrupted { reason, .. } => {
                    let _ = notes.send(Note::Interrupted(Side::Sender, reason));
                }
                Event::Resumed { .. } => {
                    let _ = notes.send(Note::Resumed(Side::Sender));
                }
                Event::Failed { token, .. } => panic!("message {} failed", token.0),
                Event::Closed { reason: Closed::Ended, .. } => {
                    assert!(completed.iter().all(|completed| *completed), "it ended before all was completed");
                    return Sent { bytes: sent, refused: kind.refused(&transport) };
                }
                Event::Closed { reason, .. } => panic!("the sender's connection was closed: {reason}"),
                _ => {}
            }
        }
    }
}

/// Receives so many messages, checks each, ends well, and stays until the sender has gone: what it says last may be
/// lost with its socket, and is then asked for again.
fn receive<T: Transport>(mut transport: T, total: u64, notes: &Sender<Note>, sender: &Receiver<()>) {
    let (mut partial, mut next) = (HashMap::<u64, Vec<u8>>::new(), [0, 1, 2]);
    let (mut received, mut events, mut watch, mut ended) = (0, Vec::new(), Watch::new(), false);
    while !ended || !matches!(sender.try_recv(), Err(TryRecvError::Disconnected)) {
        transport.poll(&mut events, Some(Duration::from_millis(50))).expect("the transport goes on");
        watch.look("receiving", !events.is_empty());
        for event in events.drain(..) {
            match event {
                Event::Received { piece, .. } => {
                    let stream = u64::from(piece.stream);
                    let due = &mut next[stream as usize];
                    let bytes = partial.entry(stream).or_default();
                    let place = (piece.tag, piece.offset as usize);
                    assert_eq!(place, (*due, bytes.len()), "pieces of stream {stream} come once and in order");
                    bytes.extend_from_slice(&piece.lease);
                    if piece.is_last() {
                        assert_eq!(bytes.len(), size(*due));
                        // What was read too late is poison, or already the bytes of a later message.
                        let _whose = content::check(bytes, *due).unwrap_or_else(|wrong| panic!("{wrong}"));
                        bytes.clear();
                        *due += STREAMS;
                        received += 1;
                        let _ = notes.send(Note::Received(received));
                    }
                }
                Event::Interrupted { reason, .. } => {
                    let _ = notes.send(Note::Interrupted(Side::Receiver, reason));
                }
                Event::Resumed { .. } => {
                    let _ = notes.send(Note::Resumed(Side::Receiver));
                }
                Event::Ended { connection } => {
                    assert_eq!(received, total, "the end comes after everything");
                    transport.close(connection);
                }
                Event::Closed { reason: Closed::Ended, .. } => ended = true,
                Event::Closed { reason, .. } => panic!("the receiver's connection was closed: {reason}"),
                _ => {}
            }
        }
    }
}

/// Has one end send to the other, each on a thread in its namespace, while `network` hears what they tell.
fn cross<K: Kind>(kind: &K, wire: &Wire, total: u64, network: impl FnOnce(&Relay, Receiver<Note>)) -> Sent {
    let (notes, heard) = channel();
    let (bound, address) = channel();
    let (stays, sender) = channel::<()>();
    let at = SocketAddr::new(wire.address(Side::Receiver, Family::V4).expect("an address"), 0);
    std::thread::scope(|scope| {
        let told = notes.clone();
        let receiving = scope.spawn(move || {
            wire.enter(Side::Receiver, move || {
                let mut transport = kind.make();
                let _ = bound.send(kind.listen(&mut transport, at));
                receive(transport, total, &told, &sender);
            })
        });
        let sending = scope.spawn(move || {
            let to = address.recv().expect("it listens");
            let sent = wire.enter(Side::Sender, || send(kind, to, total, &notes));
            drop(stays);
            sent
        });
        network(wire.relay().expect("a relay"), heard);
        // A panic there says more than what it led to here.
        let received = receiving.join();
        let sent = sending.join();
        match (received, sent) {
            (Ok(received), Ok(sent)) => {
                received.expect("its namespace");
                sent.expect("its namespace")
            }
            (Err(panic), _) | (_, Err(panic)) => std::panic::resume_unwind(panic),
        }
    })
}

fn make(random: &mut Random) -> Option<Wire> {
    match Wire::make_seeded(WireKind::Relay, random.below(u64::MAX)) {
        Ok(wire) => Some(wire),
        Err(unavailable) => {
            assert!(unavailable.is_lasting(), "{unavailable}");
            println!("SKIP: {unavailable}");
            None
        }
    }
}

const LATE: Duration = Duration::from_millis(2);
const LOSS: Faults = Faults { loss_ppm: 10_000, ..Faults::NONE };
const DUPLICATES: Faults = Faults { duplicates_ppm: 50_000, late: LATE, ..Faults::NONE };
const REORDERING: Faults = Faults { reordered_ppm: 50_000, late: LATE, ..Faults::NONE };
const DELAY: Faults = Faults { delay: LATE, jitter: LATE, ..Faults::NONE };
const EVERYTHING: Faults = Faults {
    loss_ppm: 5_000,
    duplicates_ppm: 20_000,
    reordered_ppm: 20_000,
    late: LATE,
    delay: Duration::from_millis(1),
    jitter: LATE,
    ..Faults::NONE
};

/// Crosses a network with these faults, which resets all connections now and then if asked for.
fn under<K: Kind>(kind: &K, wire: &Wire, total: u64, faults: Faults, resets: u64) -> Sent {
    let broken = Cell::new([0; 2]);
    let sent = cross(kind, wire, total, |relay, notes| {
        relay.set_both(faults);
        // Not with the last message: whoever has ended does not notice.
        let every = (total * 9 / 10).checked_div(resets).unwrap_or(u64::MAX);
        let mut done = 0;
        for note in notes {
            match note {
                Note::Received(count) if count.is_multiple_of(every) && done < resets => {
                    relay.reset();
                    done += 1;
                }
                Note::Interrupted(side, _) => {
                    let mut count = broken.get();
                    count[usize::from(side == Side::Receiver)] += 1;
                    broken.set(count);
                }
                _ => {}
            }
        }
    });
    let relay = wire.relay().expect("a relay");
    assert_eq!(relay.failure(), None);
    for side in [Side::Sender, Side::Receiver] {
        let counts = relay.counts(side);
        println!("  {side:?}: broken {} times, {counts:?}", broken.get()[usize::from(side == Side::Receiver)]);
        let happened = |share: u32, count: u64| share == 0 || count > 0;
        // What the receiver sends is little; what it does not meet the sender's packets do.
        if side == Side::Sender {
            assert!(happened(faults.loss_ppm, counts.lost), "nothing was lost");
            assert!(happened(faults.duplicates_ppm, counts.doubled), "nothing came twice");
            assert!(happened(faults.reordered_ppm, counts.reordered), "nothing was overtaken");
            assert!(faults.delay.is_zero() || counts.delayed > 0, "nothing was late");
        }
    }
    if resets > 0 {
        // The next may come before the last was noticed.
        assert!(broken.get()[0] * 2 >= resets, "{resets} resets broke the connection {:?} times", broken.get());
    }
    sent
}

fn each_fault<K: Kind>(kind: &K, resets: u64) {
    let mut random = Random::of_this_run();
    let total = Length::of_this_run().pick(60, 150, 2000);
    let faults =
        [("loss", LOSS), ("duplicates", DUPLICATES), ("reordering", REORDERING), ("delay", DELAY), ("all", EVERYTHING)];
    for (name, faults) in faults {
        let Some(wire) = make(&mut random) else { return };
        let begin = Instant::now();
        under(kind, &wire, total, faults, if name == "all" { resets } else { 0 });
        println!("{name}: {total} messages in {:?}", begin.elapsed());
    }
    if resets > 0 {
        let Some(wire) = make(&mut random) else { return };
        under(kind, &wire, total, Faults::NONE, 2 * resets);
    }
}

#[test]
fn streams_bring_each_message_once_whatever_the_network_does() {
    each_fault(&Streams { path: None }, 5);
}

#[test]
fn reliable_datagrams_bring_each_message_once_whatever_the_network_does() {
    each_fault(&Datagrams { path: PathKind::Write }, 0);
}

#[test]
fn reliable_datagrams_that_share_pages_bring_each_message_once_whatever_the_network_does() {
    let kind = Datagrams { path: PathKind::UringZeroCopy };
    match kind.unavailable() {
        Some(reason) => println!("SKIP: {reason}"),
        None => each_fault(&kind, 0),
    }
}

#[test]
fn no_path_sends_again_what_was_given_back() {
    let mut random = Random::of_this_run();
    let total = Length::of_this_run().pick(30, 60, 1000);
    for path in SHARING {
        let kind = Streams { path: Some(path) };
        if let Some(reason) = kind.unavailable() {
            println!("SKIP: {reason}");
            continue;
        }
        let Some(wire) = make(&mut random) else { return };
        let begin = Instant::now();
        let sent = under(&kind, &wire, total, EVERYTHING, 3);
        println!("{path}: {} bytes by this path in {:?}", sent.bytes, begin.elapsed());
        sent.check(path.name());
    }
    for path in SHARING_DATAGRAMS {
        let kind = Datagrams { path };
        if let Some(reason) = kind.unavailable() {
            println!("SKIP: over UDP: {reason}");
            continue;
        }
        let Some(wire) = make(&mut random) else { return };
        let begin = Instant::now();
        let sent = under(&kind, &wire, total, EVERYTHING, 0);
        println!("{path} over UDP: {} bytes by this path in {:?}", sent.bytes, begin.elapsed());
        sent.check(&format!("{path} over UDP"));
    }
}

/// Swallows everything in the middle of a transfer, for as long as asked for and until the receiver has noticed.
fn black_hole<K: Kind>(kind: &K, away: Duration) {
    let mut random = Random::of_this_run();
    let Some(wire) = make(&mut random) else { return };
    let total = 60;
    cross(kind, &wire, total, |relay, notes| {
        for note in &notes {
            if matches!(note, Note::Received(20)) {
                break;
            }
        }
        relay.set_both(Faults { black_hole: true, ..Faults::NONE });
        let begin = Instant::now();
        let mut noticed = [None, None];
        let mut received = 20;
        let is_missing = |noticed: &[Option<Duration>; 2]| noticed.iter().any(Option::is_none);
        while begin.elapsed() < away || is_missing(&noticed) {
            let left = away.saturating_sub(begin.elapsed()).max(Duration::from_millis(10));
            match notes.recv_timeout(left) {
                Ok(Note::Interrupted(side, reason)) => {
                    println!("  {side:?} noticed after {:?}: {reason}", begin.elapsed());
                    noticed[usize::from(side == Side::Receiver)] = Some(begin.elapsed());
                }
                Ok(Note::Resumed(side)) => panic!("{side:?} resumed while nothing passed"),
                Ok(Note::Received(count)) => received = count,
                Err(RecvTimeoutError::Timeout) => assert!(begin.elapsed() < PATIENCE, "only {noticed:?} noticed"),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
        assert!(received < total, "there was something left to send");
        relay.set_both(Faults::NONE);
        let back = Instant::now();
        for note in notes {
            match note {
                Note::Resumed(side) => {
                    println!("  {side:?} resumed {:?} after the network came back", back.elapsed());
                    assert!(back.elapsed() < BACK, "an attempt from before held up the next");
                }
                Note::Interrupted(side, reason) => println!("  {side:?} noticed late: {reason}"),
                Note::Received(_) => {}
            }
        }
    });
    let swallowed = wire.relay().expect("a relay").counts(Side::Sender).swallowed;
    println!("  {swallowed} packets were swallowed");
    assert!(swallowed > 0);
}

fn away() -> Duration {
    Duration::from_secs(Length::of_this_run().pick(1, 2, 30))
}

#[test]
fn streams_go_on_where_they_were_after_the_network_was_away() {
    black_hole(&Streams { path: None }, away());
}

#[test]
fn reliable_datagrams_go_on_where_they_were_after_the_network_was_away() {
    black_hole(&Datagrams { path: PathKind::Write }, away());
}

/// Writes to a message that is on its way but swallowed, and says whether the receiver sees that.
fn a_late_write_is_seen<K: Kind>(kind: &K, wire: &Wire) -> bool {
    let at = SocketAddr::new(wire.address(Side::Receiver, Family::V4).expect("an address"), 0);
    let (bound, address) = channel();
    let bytes = 20_000;
    std::thread::scope(|scope| {
        let receiving = scope.spawn(move || {
            wire.enter(Side::Receiver, move || {
                let mut transport = kind.make();
                let _ = bound.send(kind.listen(&mut transport, at));
                let (mut events, mut seen, mut watch) = (Vec::new(), None, Watch::new());
                loop {
                    transport.poll(&mut events, Some(Duration::from_millis(50))).expect("the transport goes on");
                    watch.look("receiving", !events.is_empty());
                    for event in events.drain(..) {
                        match event {
                            Event::Received { piece, .. } if piece.tag == 1 => {
                                assert!(piece.is_whole() && piece.lease.len() == bytes);
                                seen = Some(content::check(&piece.lease, 1).is_err());
                            }
                            Event::Ended { connection } => transport.close(connection),
                            Event::Closed { .. } => return seen.expect("it came"),
                            _ => {}
                        }
                    }
                }
            })
        });
        let sending = move || {
            let (mut transport, relay) = (kind.make(), wire.relay().expect("a relay"));
            let connection = kind.connect(&mut transport, address.recv().expect("it listens"));
            let (mut events, mut watch) = (Vec::new(), Watch::new());
            let submit = |transport: &mut K::Transport, number: u64| {
                let mut message = transport.loan(bytes).expect("a slot");
                content::fill(&mut message, 0, number);
                let address = message.as_ptr().expose_provenance();
                let to = Destination::new(connection).tag(number);
                transport.submit(to, message.into(), Token(number)).expect("it is taken");
                address
            };
            submit(&mut transport, 0);
            while !events.iter().any(|event| matches!(event, Event::Completed { .. })) {
                transport.poll(&mut events, Some(Duration::from_millis(50))).expect("the transport goes on");
                watch.look("the first message", false);
            }
            relay.set_both(Faults { black_hole: true, ..Faults::NONE });
            let (before, swallowed) = (kind.sent(&transport, connection), relay.counts(Side::Sender).swallowed);
            let address = submit(&mut transport, 1);
            events.clear();
            while kind.sent(&transport, connection) == before || relay.counts(Side::Sender).swallowed < swallowed + 8 {
                transport.poll(&mut events, Some(Duration::from_millis(1))).expect("the transport goes on");
                watch.look("the second message", false);
            }
            for at in (1000..8000).step_by(500) {
                poke(address + at, POISON);
            }
            relay.set_both(Faults::NONE);
            transport.close(connection);
            while !events.iter().any(|event| matches!(event, Event::Closed { .. })) {
                transport.poll(&mut events, Some(Duration::from_millis(50))).expect("the transport goes on");
                watch.look("the end", false);
            }
        };
        wire.enter(Side::Sender, sending).expect("its namespace");
        receiving.join().expect("no panic").expect("its namespace")
    })
}

#[test]
fn a_slot_that_is_written_too_early_shows_at_the_receiver_wherever_pages_are_shared() {
    let mut random = Random::of_this_run();
    for path in [&[PathKind::Write, PathKind::UringSend], &SHARING[..]].concat() {
        let kind = Streams { path: Some(path) };
        if let Some(reason) = kind.unavailable() {
            println!("SKIP: {reason}");
            continue;
        }
        let Some(wire) = make(&mut random) else { return };
        assert_eq!(a_late_write_is_seen(&kind, &wire), path.shares_pages(), "{path}");
    }
    // Datagrams are kept by nobody else: what is sent again is read again.
    for path in [&[PathKind::Write, PathKind::UringSend], &SHARING_DATAGRAMS[..]].concat() {
        let kind = Datagrams { path };
        if let Some(reason) = kind.unavailable() {
            println!("SKIP: over UDP: {reason}");
            continue;
        }
        let Some(wire) = make(&mut random) else { return };
        assert!(a_late_write_is_seen(&kind, &wire), "{path} over UDP");
    }
}
