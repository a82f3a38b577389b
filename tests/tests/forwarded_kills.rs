//! A process sends slots that are not its own: a subscriber hands on over a transport what another process published.
//! Whatever path it wants, it goes by one that copies, so that the publisher may have its slots back as soon as the
//! subscriber is dead, and write into them: no byte that is received is one of these.
//!
//! A second subscriber looks on, loses nothing, and is not kept.

mod arrivals;

use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use arrivals::{Arrivals, PATIENCE, STALL, rounds, slots};
use rustix::process::{Pid, Signal, kill_process};
use zcmi_bench::wires::{Family, Side, Wire, WireKind};
use zcmi_net::path::PathKind;
use zcmi_net::stream::{StreamOptions, StreamTransport};
use zcmi_net::transport::{Closed, Transport};
use zcmi_net::udp::{UdpOptions, UdpTransport};
use zcmi_tests::content;
use zcmi_tests::rig::{Scratch, Worker, pause};

/// One test at a time: descriptors are inherited by what is started.
static ALONE: Mutex<()> = Mutex::new(());
/// Bytes of each message.
const BYTES: usize = 60_000;
/// More messages than the publisher has slots.
const MANY: u64 = 300;

/// A wire whose socket outlives no process, or none.
fn wire(kind: WireKind) -> Option<Wire> {
    let wire = Wire::make(kind).map_err(|unavailable| println!("SKIP: {}", unavailable.reason()));
    let wire = wire.ok()?;
    if kind == WireKind::Tbf {
        // What was sent waits in the queue of the shaper for some tenths of a second.
        wire.set_rate_kbit_s(100_000).expect("a rate");
    }
    Some(wire)
}

/// A publisher, a subscriber that forwards, one that looks on, and the far end.
struct Stage<T> {
    publisher: Worker,
    forwarder: Worker,
    onlooker: Worker,
    arrivals: Arrivals<T>,
    scratch: Scratch,
}

impl Stage<StreamTransport> {
    fn of_streams(wire: &Wire, path: PathKind, more: &str) -> Self {
        let streams_of = wire.streams().expect("a stream");
        let scratch = Scratch::new();
        let arrivals = Arrivals::new(accepting(streams_of.receiver), true);
        let socket = streams_of.sender;
        // It is inherited under its number, by this one process.
        rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::empty()).expect("fcntl");
        let forwarder = Worker::start(scratch.path());
        rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC).expect("fcntl");
        let to = format!("fd={}", socket.as_fd().as_raw_fd());
        Self::begin(scratch, forwarder, arrivals, &format!("{to} path={path} {more}"))
    }
}

impl Stage<UdpTransport> {
    /// To be called in the namespace of the receiver.
    fn of_datagrams(wire: &Wire, path: PathKind, more: &str) -> Self {
        let scratch = Scratch::new();
        let at = SocketAddr::new(wire.address(Side::Receiver, Family::V4).expect("an address"), 0);
        let options = UdpOptions {
            slots: slots(1),
            insecure: true,
            resume_for: Duration::ZERO,
            silence: Duration::from_secs(1),
            keep_alive: Duration::from_secs(1),
            ..UdpOptions::default()
        };
        let mut transport = UdpTransport::new(options).expect("a transport");
        let to = transport.listen(at).expect("a listener").1;
        let forwarder = Worker::start_with(scratch.path(), |command| {
            let before = std::mem::replace(command, Command::new(""));
            *command = wire.command_in(Side::Sender, before).expect("a command");
        });
        Self::begin(scratch, forwarder, Arrivals::new(transport, true), &format!("to={to} path={path} {more}"))
    }
}

fn accepting(socket: OwnedFd) -> StreamTransport {
    let options = StreamOptions { slots: slots(1), resume_for: Duration::ZERO, ..StreamOptions::default() };
    let mut transport = StreamTransport::new(options).expect("a transport");
    transport.adopt_accepting(socket).expect("a stream");
    transport
}

/// A number that another process wrote into a file, at this place, and that outlives it; 0 before it does.
fn noted(path: &Path, at: usize) -> u64 {
    let bytes = std::fs::read(path).unwrap_or_default();
    bytes.as_chunks().0.get(at).map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

impl<T: Transport> Stage<T> {
    fn begin(scratch: Scratch, mut forwarder: Worker, arrivals: Arrivals<T>, forward: &str) -> Self {
        let (mut publisher, mut onlooker) = (Worker::start(scratch.path()), Worker::start(scratch.path()));
        publisher.ask(format!("pub id=p service=s max_len={BYTES} capacity=4 reader_slots=16"));
        onlooker.ask("sub id=s service=s holds=2");
        let note = scratch.path().join("forwarded");
        forwarder.ask(format!("forward service=s note={} {forward}", note.display()));
        publisher.ask("wait-subscribers id=p n=2 ms=20000");
        Self { publisher, forwarder, onlooker, arrivals, scratch }
    }

    fn note(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// How many messages are published.
    fn published(&self) -> u64 {
        noted(&self.note("published"), 0)
    }

    fn flood(&mut self) {
        let note = self.note("published");
        self.publisher.ask(format!("flood id=p sizes=fixed:{BYTES} note={}", note.display()));
    }

    /// Reads until so many messages came, then lets the sender go on alone until it is stuck, or for some time.
    fn read(&mut self, messages: u64) {
        self.arrivals.until("the first messages", |arrivals| arrivals.messages >= messages);
        pause(Duration::from_millis(content::mix(messages) % 8));
    }
}

/// When the process that forwards is killed.
#[derive(Clone, Copy)]
enum When {
    /// In the middle.
    Sending,
    /// The same, and a child that it forked lives on.
    Forked,
    /// When it has ended its connection, and most of what it sent last is on its way.
    Ending,
    /// When the receiver has heard of that end, and has not answered.
    Ended,
}

/// Messages after which a forwarder ends.
const FEW: u64 = 25;

/// Kills the process that forwards. How long the publisher was kept, beyond what others were waiting for.
fn kill_forwarder<T: Transport>(mut stage: Stage<T>, what: &str, after: u64, when: When) -> bool {
    stage.onlooker.tell("collect id=s endings=1");
    stage.flood();
    let note = stage.note("forwarded");
    match when {
        When::Sending => stage.read(after),
        When::Forked => {
            stage.arrivals.until("the fork", |_| noted(&note, 2) != 0);
            stage.read(stage.arrivals.messages + after % 4);
        }
        When::Ending => stage.arrivals.until("the forwarder's end", |_| noted(&note, 1) != 0),
        When::Ended => stage.arrivals.until("the forwarder's end", |arrivals| arrivals.ended),
    }
    stage.forwarder.kill();
    let killed = Instant::now();
    let (at, completed) = (stage.published(), noted(&note, 0));
    // The slots that the dead one held come back: many times as many messages pass as there are slots, over whatever
    // it had not sent yet.
    let mut first = None;
    while stage.published() < at + MANY {
        assert!(killed.elapsed() < PATIENCE, "{what}: the publisher is kept at {}", stage.published());
        if first.is_none() && stage.published() > at + 1 {
            first = Some(killed.elapsed());
        }
        pause(Duration::from_micros(200));
    }
    // All of them may have passed between two looks.
    let first = first.unwrap_or_else(|| killed.elapsed());
    // What is on its way is read only now.
    if let When::Forked = when {
        // Who has the sockets besides says nothing by them, and their end is not there before its own.
        while stage.arrivals.poll(Duration::from_millis(100)) > 0 {}
        let child = Pid::from_raw(noted(&note, 2) as i32).expect("a process");
        kill_process(child, Signal::KILL).expect("it lives on");
    }
    stage.arrivals.until("the end", |arrivals| arrivals.closed.is_some());
    let (came, ended) = (stage.arrivals.messages, stage.arrivals.ended);
    assert!(came >= completed, "{what}: {completed} messages completed and {came} came");
    match when {
        When::Sending | When::Forked => assert!(!ended, "{what}: an end that nobody said"),
        // What says that it is the end is behind everything else.
        When::Ending | When::Ended => assert!(!ended || came == FEW, "{what}: an end after {came} messages"),
    }
    stage.publisher.kill();
    let seen = stage.onlooker.hear();
    assert_eq!(seen.number("lost"), 0);
    assert!(seen.tracks()[&0].next >= at + MANY, "{what}: {}", seen.whole());
    first > STALL || stage.arrivals.slowest > STALL
}

/// Kills the publisher, of whose messages the forwarder has some and goes on.
fn kill_publisher<T: Transport>(mut stage: Stage<T>, what: &str, after: u64) -> bool {
    stage.onlooker.tell("collect id=s endings=1");
    stage.flood();
    stage.read(after);
    stage.publisher.kill();
    let published = stage.published();
    stage.arrivals.until("the end", |arrivals| arrivals.ended && arrivals.closed.is_some());
    check_end(&mut stage, what);
    assert!(
        stage.arrivals.messages >= published,
        "{what}: {published} were published, {} came",
        stage.arrivals.messages
    );
    let seen = stage.onlooker.hear();
    assert_eq!((seen.number("lost"), seen.tracks()[&0].next), (0, stage.arrivals.messages), "{what}");
    stage.arrivals.slowest > STALL
}

/// The forwarder ended in good order, and nothing of what it sent went by a path that shares pages.
fn check_end<T: Transport>(stage: &mut Stage<T>, what: &str) {
    let told = stage.forwarder.hear();
    assert!(matches!(stage.arrivals.closed, Some(Closed::Ended)), "{what}: {:?}", stage.arrivals.closed);
    assert_eq!(told.number("forwarded"), stage.arrivals.messages, "{what}");
    assert_eq!(told.number("shared"), 0, "{what}: {}", told.whole());
    // The counts are those before its end, and may lack what completed together with that.
    let least = stage.arrivals.messages.saturating_sub(8) * BYTES as u64;
    assert!(told.number("copied") >= least, "{what}: {}", told.whole());
}

/// The forwarder ends after some messages, and dies.
fn end_well<T: Transport>(mut stage: Stage<T>, what: &str, messages: u64) -> bool {
    stage.onlooker.tell("collect id=s endings=1");
    stage.flood();
    stage.arrivals.until("the end", |arrivals| arrivals.ended && arrivals.closed.is_some());
    assert_eq!(stage.arrivals.messages, messages, "{what}");
    check_end(&mut stage, what);
    stage.forwarder.kill();
    stage.publisher.kill();
    stage.onlooker.hear();
    stage.arrivals.slowest > STALL
}

const KINDS: [WireKind; 3] = [WireKind::Lo, WireKind::Unix, WireKind::Tbf];
const DATAGRAM_PATHS: [PathKind; 5] =
    [PathKind::Write, PathKind::ZeroCopy, PathKind::UringSend, PathKind::UringZeroCopy, PathKind::UringFixed];

/// Does something with each path on each wire; few of them may have kept a survivor, because one call may have waited
/// for a processor.
fn each(what: &str, rounds: u64, streams: impl Fn(Stage<StreamTransport>, &str, u64) -> bool, more: &str) {
    for kind in KINDS {
        let Some(wire) = wire(kind) else { continue };
        let mut slow = 0;
        for path in PathKind::ALL {
            for round in 0..rounds {
                let after = 1 + content::mix(round << 16 | (kind as u64) << 8 | path as u64) % 30;
                let stage = Stage::of_streams(&wire, path, more);
                slow += u32::from(streams(stage, &format!("{what}, {path} on {kind}"), after));
            }
        }
        assert!(slow <= 2, "{what}: on {kind} {slow} survivors were kept for more than {STALL:?}");
    }
}

/// The same over UDP behind a shaper.
fn each_datagram(
    what: &str,
    rounds: u64,
    datagrams: impl Fn(Stage<UdpTransport>, &str, u64) -> bool + Sync,
    more: &str,
) {
    let Some(wire) = wire(WireKind::Tbf) else { return };
    let mut slow = 0;
    for path in DATAGRAM_PATHS {
        for round in 0..rounds {
            let after = 1 + content::mix(round << 8 | path as u64) % 30;
            let run = || datagrams(Stage::of_datagrams(&wire, path, more), &format!("{what}, {path} over UDP"), after);
            slow += u32::from(wire.enter(Side::Receiver, run).expect("its namespace"));
        }
    }
    assert!(slow <= 2, "{what}: over UDP {slow} survivors were kept for more than {STALL:?}");
}

#[test]
fn slots_that_a_killed_process_was_sending_are_written_again_and_nobody_receives_that() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let what = "the sender is killed";
    each(what, rounds(), |stage, what, after| kill_forwarder(stage, what, after, When::Sending), "");
    each_datagram(what, rounds(), |stage, what, after| kill_forwarder(stage, what, after, When::Sending), "");
}

#[test]
fn slots_that_a_killed_process_was_sending_come_back_though_a_child_of_it_lives_on() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let what = "the sender is killed, and not its child";
    each(what, rounds().div_ceil(2), |stage, what, after| kill_forwarder(stage, what, after, When::Forked), "forks=5");
    each_datagram(
        what,
        rounds().div_ceil(2),
        |stage, what, after| kill_forwarder(stage, what, after, When::Forked),
        "forks=5",
    );
}

#[test]
fn a_process_that_is_killed_while_it_ends_in_good_order_has_sent_on_what_completed() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let when = |after: u64| if after.is_multiple_of(2) { When::Ending } else { When::Ended };
    let what = "the sender is killed at its end";
    each(what, rounds().div_ceil(2), |stage, what, after| kill_forwarder(stage, what, after, when(after)), "n=25");
    each_datagram(
        what,
        rounds().div_ceil(2),
        |stage, what, after| kill_forwarder(stage, what, after, when(after)),
        "n=25",
    );
}

#[test]
fn what_a_killed_owner_published_is_sent_on_by_who_holds_it() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    each("the owner is killed", rounds(), kill_publisher, "");
    each_datagram("the owner is killed", rounds(), kill_publisher, "");
}

#[test]
fn what_was_sent_on_for_another_process_before_a_graceful_end_is_not_lost() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    each("a graceful end", rounds(), |stage, what, _| end_well(stage, what, FEW), "n=25");
    each_datagram("a graceful end", rounds(), |stage, what, _| end_well(stage, what, FEW), "n=25");
}
