//! A sender of datagrams is killed while they wait in the queue of a shaper, by each path: no wrong byte is accepted,
//! nothing that completed is missing, and the receiver goes on at once.
//!
//! A sender overwrites each slot as soon as its message has completed, so that whoever reads it later is caught. When
//! it is dead nobody writes any more, and what waits in the queue leaves as it was.

mod arrivals;

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use arrivals::{Arrivals, MESSAGE, STALL, rounds, slots};
use rustix::process::{Pid, Signal, kill_process};
use zcmi_bench::wires::{Family, Side, Wire, WireKind};
use zcmi_net::outgoing::Token;
use zcmi_net::path::PathKind;
use zcmi_net::transport::{Closed, Destination, Event, Transport};
use zcmi_net::udp::{Reliability, UdpOptions, UdpTransport};
use zcmi_tests::content;
use zcmi_tests::rig::{pause, ready};
use zcmi_tests::sys::{Forked, end_now, fork, wait_for};

/// One test at a time: a child of another would hold on to sockets.
static ALONE: Mutex<()> = Mutex::new(());
const PATHS: [PathKind; 5] =
    [PathKind::Write, PathKind::ZeroCopy, PathKind::UringSend, PathKind::UringZeroCopy, PathKind::UringFixed];
const LOANS: u32 = 8;
/// What a sender says last: that its connection ended well, and how many bytes left without a copy.
const ENDED: u64 = 1 << 63;
/// What it says when it ends its connection.
const CLOSING: u64 = 1 << 62;

fn options(path: PathKind, reliability: Reliability) -> UdpOptions {
    UdpOptions {
        slots: slots(LOANS),
        path: Some(path),
        reliability,
        insecure: true,
        resume_for: Duration::ZERO,
        silence: Duration::from_secs(1),
        keep_alive: Duration::from_secs(1),
        ..UdpOptions::default()
    }
}

/// One that goes in one slot of the receiver where it is sent once.
fn size(number: u64, reliability: Reliability) -> usize {
    let most = if reliability == Reliability::Reliable { MESSAGE } else { 60_000 };
    8 + (number.wrapping_mul(2_654_435_761) % (most as u64 - 8)) as usize
}

/// What a sender does until it is killed, or has sent `end` messages and ended its connection: it says how many
/// completed, each time.
fn send(to: SocketAddr, path: PathKind, reliability: Reliability, mut tell: std::fs::File, end: u64) {
    let mut transport = UdpTransport::new(options(path, reliability)).expect("a transport");
    let connection = transport.connect(to).expect("a connection");
    let (mut next, mut completed, mut shared, mut events) = (0, 0_u64, 0, Vec::new());
    let (mut connected, mut closing) = (false, false);
    loop {
        while connected && next < end {
            let Ok(mut message) = transport.loan(size(next, reliability)) else { break };
            content::fill(&mut message, 0, next);
            if transport.submit(Destination::new(connection).tag(next), message.into(), Token(next)).is_err() {
                break;
            }
            next += 1;
        }
        if next == end && !core::mem::replace(&mut closing, true) {
            transport.close(connection);
            // Nothing of it leaves before the next poll.
            tell.write_all(&CLOSING.to_le_bytes()).expect("the test reads");
        }
        transport.poll(&mut events, Some(Duration::from_millis(1))).expect("the transport goes on");
        shared = transport.facts(connection).map_or(shared, |facts| facts.socket.zero_copy_bytes);
        for event in events.drain(..) {
            match event {
                Event::Connected { .. } => connected = true,
                Event::Completed { .. } => {
                    completed += 1;
                    tell.write_all(&completed.to_le_bytes()).expect("the test reads");
                }
                Event::Closed { reason: Closed::Ended, .. } => {
                    tell.write_all(&(ENDED | shared).to_le_bytes()).expect("the test reads");
                    return;
                }
                Event::Closed { reason, .. } => panic!("the sender's connection was closed: {reason}"),
                Event::Failed { token, .. } => panic!("message {} failed", token.0),
                _ => {}
            }
        }
    }
}

/// What a sender said.
#[derive(Default)]
struct Words {
    completed: u64,
    is_closing: bool,
    /// Bytes that left without a copy, once its connection ended well.
    ended: Option<u64>,
    rest: Vec<u8>,
}

impl Words {
    /// Reads once, which waits if nothing was said. How much that was; nothing when the sender is gone.
    fn read(&mut self, from: &mut std::fs::File) -> usize {
        let mut bytes = [0; 4096];
        let count = from.read(&mut bytes).expect("a pipe");
        self.rest.extend_from_slice(&bytes[..count]);
        let whole = self.rest.len() / 8 * 8;
        for word in self.rest.drain(..whole).collect::<Vec<_>>().chunks_exact(8) {
            match u64::from_le_bytes(word.try_into().expect("8 bytes")) {
                CLOSING => self.is_closing = true,
                word if word & ENDED != 0 => self.ended = Some(word & !ENDED),
                word => self.completed = word,
            }
        }
        count
    }
}

/// The last word of a sender that is gone.
fn last_word(mut from: std::fs::File) -> (u64, Option<u64>) {
    let mut words = Words::default();
    while words.read(&mut from) > 0 {}
    (words.completed, words.ended)
}

/// Starts a sender, and hands the receiver to `look`, in the namespace of the receiver.
fn cross(
    wire: &Wire,
    path: PathKind,
    reliability: Reliability,
    end: u64,
    look: impl FnOnce(Arrivals<UdpTransport>, SocketAddr, Pid, std::fs::File) -> bool + Send,
) -> bool {
    let crossing = wire.enter(Side::Receiver, || {
        let mut receiver = UdpTransport::new(options(PathKind::Write, Reliability::Reliable)).expect("a transport");
        let at = SocketAddr::new(wire.address(Side::Receiver, Family::V4).expect("an address"), 0);
        let to = receiver.listen(at).expect("a listener").1;
        let (from, tell) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("a pipe");
        let child = match fork().expect("a child") {
            Forked::Child => {
                drop(from);
                let sending = || wire.enter(Side::Sender, || send(to, path, reliability, tell.into(), end)).is_ok();
                let sent = std::panic::catch_unwind(std::panic::AssertUnwindSafe(sending));
                end_now(u8::from(!sent.unwrap_or(false)));
            }
            Forked::Parent(pid) => Pid::from_raw(pid).expect("a process"),
        };
        drop(tell);
        look(Arrivals::new(receiver, reliability == Reliability::Reliable), to, child, from.into())
    });
    crossing.expect("its namespace")
}

/// Does something with each path over a wire that is shaped; whether few of them kept the receiver.
fn each(reliability: Reliability, run: impl Fn(&Wire, PathKind, u64) -> bool) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let wire = match Wire::make(WireKind::Tbf) {
        Ok(wire) => wire,
        Err(unavailable) => {
            println!("SKIP: {}", unavailable.reason());
            return;
        }
    };
    // What was sent waits in the queue of the shaper for some tenths of a second.
    wire.set_rate_kbit_s(100_000).expect("a rate");
    let mut slow = 0;
    for path in PATHS {
        for round in 0..rounds() {
            slow += u32::from(run(&wire, path, round));
        }
    }
    // One call may have waited for a processor.
    assert!(slow <= 2, "{reliability:?}: {slow} receivers were kept for more than {STALL:?}");
}

fn kill(wire: &Wire, path: PathKind, reliability: Reliability, round: u64) -> bool {
    let after = 1 + content::mix(round << 8 | path as u64) % 30;
    cross(wire, path, reliability, u64::MAX, |mut arrivals, _, child, from| {
        arrivals.until("the first messages", |arrivals| arrivals.messages >= after);
        // It goes on into a receiver that does not read.
        pause(Duration::from_millis(after % 8));
        kill_process(child, Signal::KILL).expect("it lives");
        assert_eq!(wait_for(child.as_raw_pid()).expect("it ends"), 128 + 9, "it was killed, and did not end before");
        let (completed, _) = last_word(from);
        arrivals.until("the end", |arrivals| arrivals.closed.is_some());
        assert!(!arrivals.ended, "an end that nobody said");
        if reliability == Reliability::Reliable {
            assert!(arrivals.messages >= completed, "{path}: {completed} completed, {} came", arrivals.messages);
        }
        arrivals.slowest > STALL
    })
}

#[test]
fn nothing_wrong_is_accepted_of_a_sender_of_datagrams_that_is_killed_behind_a_shaper() {
    each(Reliability::Reliable, |wire, path, round| kill(wire, path, Reliability::Reliable, round));
}

#[test]
fn nothing_wrong_is_accepted_of_one_that_sends_them_once() {
    each(Reliability::Unreliable, |wire, path, round| kill(wire, path, Reliability::Unreliable, round));
}

/// Has the receiver receive from somebody else, with whom it is as ever.
fn goes_on(arrivals: &mut Arrivals<UdpTransport>, to: SocketAddr, path: PathKind) {
    arrivals.begin_anew();
    let mut sender = UdpTransport::new(options(path, Reliability::Reliable)).expect("a transport");
    let connection = sender.connect(to).expect("a connection");
    let (mut next, mut seen) = (None, Vec::new());
    arrivals.until("the messages of somebody else", |arrivals| {
        sender.poll(&mut seen, Some(Duration::ZERO)).expect("the transport goes on");
        if next.is_none() && seen.iter().any(|event| matches!(event, Event::Connected { .. })) {
            next = Some(0);
        }
        while let Some(number @ ..20) = next
            && let Ok(mut message) = sender.loan(size(number, Reliability::Reliable))
        {
            content::fill(&mut message, 0, number);
            sender.submit(Destination::new(connection).tag(number), message.into(), Token(number)).expect("room");
            next = Some(number + 1);
        }
        if next == Some(20) {
            sender.close(connection);
        }
        arrivals.closed.is_some() && seen.iter().any(|event| matches!(event, Event::Closed { .. }))
    });
    assert!(matches!(arrivals.closed, Some(Closed::Ended)), "{path}: {:?}", arrivals.closed);
    assert_eq!((arrivals.messages, arrivals.ended), (20, true), "{path}");
}

/// Kills a sender between its `close` and the end of its connection: as soon as it has called that, or when the
/// receiver has heard of the end and has not answered.
fn kill_ending(wire: &Wire, path: PathKind, is_late: bool) -> bool {
    const TOTAL: u64 = 30;
    cross(wire, path, Reliability::Reliable, TOTAL, |mut arrivals, to, child, mut from| {
        let what = format!("{path}, {}", if is_late { "late" } else { "early" });
        let mut words = Words::default();
        arrivals.until("the sender's end", |arrivals| {
            if ready(from.as_fd(), Duration::ZERO) {
                words.read(&mut from);
            }
            if is_late { arrivals.ended } else { words.is_closing }
        });
        // What it answers would leave at its next poll, which comes when the sender is dead.
        assert!(arrivals.closed.is_none(), "{what}: {:?}", arrivals.closed);
        kill_process(child, Signal::KILL).expect("it lives");
        assert_eq!(wait_for(child.as_raw_pid()).expect("it ends"), 128 + 9, "{what}: it was killed, and had not ended");
        while words.read(&mut from) > 0 {}
        assert!(words.is_closing && words.ended.is_none(), "{what}");
        arrivals.until("the end", |arrivals| arrivals.closed.is_some());
        let (completed, came) = (words.completed, arrivals.messages);
        assert!(came >= completed, "{what}: {completed} completed, {came} came");
        // What says that it is the end is behind everything else.
        assert!(!arrivals.ended || came == TOTAL, "{what}: an end after {came} messages");
        assert!(!is_late || arrivals.ended, "{what}");
        goes_on(&mut arrivals, to, path);
        arrivals.slowest > STALL
    })
}

#[test]
fn a_sender_of_datagrams_that_is_killed_while_it_ends_has_lost_nothing_that_completed() {
    each(Reliability::Reliable, |wire, path, round| kill_ending(wire, path, round % 2 == 1));
}

#[test]
fn a_sender_of_datagrams_that_ends_in_good_order_and_dies_loses_nothing() {
    each(Reliability::Reliable, |wire, path, _| {
        cross(wire, path, Reliability::Reliable, 30, |mut arrivals, _, child, from| {
            arrivals.until("the end", |arrivals| arrivals.ended && arrivals.closed.is_some());
            assert_eq!(arrivals.messages, 30, "{path}");
            assert_eq!(wait_for(child.as_raw_pid()).expect("it ends"), 0, "{path}");
            let (completed, shared) = last_word(from);
            assert_eq!((completed, shared.is_some()), (30, true), "{path}");
            // The test is of the path that it names.
            assert_eq!(shared > Some(0), path.shares_pages(), "{path}: {shared:?} bytes without a copy");
            arrivals.slowest > STALL
        })
    });
}
