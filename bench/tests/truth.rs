//! What the library says about copies, beside what the oracle finds, on every wire.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use zcmi_bench::oracle::Truth;
use zcmi_bench::truth::{self, TruthError, Verdict};
use zcmi_bench::wires::{Family, Route, Side, Wire, WireKind};
use zcmi_mem::pool::PoolPlan;
use zcmi_net::outgoing::Token;
use zcmi_net::path::PathKind;
use zcmi_net::select::Selection;
use zcmi_net::slots::SlotPlan;
use zcmi_net::stream::{StreamOptions, StreamTransport};
use zcmi_net::transport::{ConnectionId, Destination, Event, Transport};
use zcmi_net::udp::{DatagramCounts, Reliability, UdpOptions, UdpTransport};

const BYTES: usize = 60_000;
/// How often connections are asked what they believe.
const ROUNDS: u32 = 6;
/// In how many of these some class may be wrong: what is found rests on times, and others work on this machine too.
const TOLERATED: u32 = 2;
/// How often they are asked on the sink, where completions tell nothing and all rests on times.
const SINK_ROUNDS: u32 = 24;
/// How often the class of the path in use must be right at the least, and may be wrong at the most.
const SINK_IN_USE: [u32; 2] = [6, 4];
/// How often that of another path may be wrong: what is rarely tried seems dearer than it is.
const SINK_OTHERS: u32 = 16;

/// Makes a wire, or prints why it cannot be made here.
fn make(kind: WireKind) -> Option<Wire> {
    let wire = Wire::make(kind).map_err(|unavailable| {
        assert!(unavailable.is_lasting(), "{unavailable}");
        println!("SKIP: {unavailable}");
    });
    wire.ok()
}

fn verdicts(wire: &Wire) -> BTreeMap<PathKind, Verdict> {
    let mut found = BTreeMap::new();
    for path in PathKind::ALL {
        match truth::ask(wire, path, BYTES) {
            Ok(verdict) => {
                found.insert(path, verdict);
            }
            Err(TruthError::Path { path, reason }) => println!("SKIP: {path}: {reason}"),
            // What a wire refuses is no verdict.
            Err(TruthError::Oracle(error)) => println!("{path} on {}: {error}", wire.kind()),
            Err(error) => panic!("{path} on {}: {error}", wire.kind()),
        }
    }
    found
}

#[test]
fn the_oracle_finds_what_each_path_does_on_honest_wires_and_on_the_one_that_lies() {
    for kind in [WireKind::Lo, WireKind::Veth, WireKind::VethXdp, WireKind::Unix] {
        let Some(wire) = make(kind) else { continue };
        let found = verdicts(&wire);
        let lies = kind == WireKind::VethXdp;
        assert!(found.contains_key(&PathKind::Write) && found.contains_key(&PathKind::Splice), "{kind}: {found:?}");
        for (path, verdict) in found {
            let shares = matches!(path, PathKind::SendFile | PathKind::Splice) && !lies;
            assert_eq!(verdict.truth == Truth::Shared, shares, "{path} on {kind}: {verdict:?}");
            let says = path.is_notified().then_some(!lies);
            assert_eq!(verdict.kernel_says_copied, says, "{path} on {kind}: {verdict:?}");
        }
    }
}

/// Sends messages over a wire by the cheapest path, and returns what is believed of all paths.
fn believed(wire: &Wire, messages: u64) -> Selection {
    let options = || StreamOptions {
        slots: SlotPlan { loans: PoolPlan::single(64 << 10, 4).ok(), ..SlotPlan::default() },
        resume_for: Duration::ZERO,
        ..StreamOptions::default()
    };
    let (mut one, mut two) = (StreamTransport::new(options()).unwrap(), StreamTransport::new(options()).unwrap());
    let pair = wire.streams().unwrap();
    let connection: ConnectionId = one.adopt_connecting(pair.sender).unwrap();
    two.adopt_accepting(pair.receiver).unwrap();
    let mut lease = one.loan(64 << 10).unwrap();
    lease.fill(1);
    let lease = lease.freeze();
    let (mut submitted, mut completed, mut events) = (0, 0, Vec::new());
    let until = Instant::now() + Duration::from_secs(60);
    while completed < messages {
        assert!(Instant::now() < until, "{completed} of {messages} messages came over {}", wire.kind());
        while submitted < messages && submitted < completed + 16 {
            one.submit(Destination::new(connection), lease.clone().into(), Token(submitted)).unwrap();
            submitted += 1;
        }
        for transport in [&mut one, &mut two] {
            transport.poll(&mut events, Some(Duration::ZERO)).unwrap();
            for event in events.drain(..) {
                match event {
                    Event::Completed { .. } => completed += 1,
                    Event::Closed { reason, .. } => panic!("{reason}"),
                    _ => {}
                }
            }
        }
    }
    one.facts(connection).unwrap().selection.unwrap()
}

/// How often what a connection believed of a path was right, left open, and wrong.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    right: u32,
    open: u32,
    wrong: u32,
}

impl Tally {
    /// One more answer to whether a path copies.
    fn add(&mut self, believed: Option<bool>, copies: bool) {
        match believed {
            None => self.open += 1,
            Some(believed) if believed == copies => self.right += 1,
            Some(_) => self.wrong += 1,
        }
    }
}

impl core::fmt::Display for Tally {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Self { right, open, wrong } = self;
        let rate = 100.0 * f64::from(*right) / f64::from((right + open + wrong).max(1));
        write!(f, "{rate:.0} % ({right} right, {open} left open, {wrong} wrong)")
    }
}

/// Prints the rate of right classes of a wire, by path and of all paths.
fn print(wire: WireKind, tallies: &BTreeMap<PathKind, Tally>) {
    let mut all = Tally::default();
    for (path, tally) in tallies {
        println!("right class on {wire}: {path} {tally}");
        all = Tally { right: all.right + tally.right, open: all.open + tally.open, wrong: all.wrong + tally.wrong };
    }
    println!("right class on {wire}: all paths {all}");
}

#[test]
fn a_connection_finds_out_itself_which_paths_copy() {
    for kind in [WireKind::Lo, WireKind::Veth, WireKind::VethXdp, WireKind::Unix] {
        let Some(wire) = make(kind) else { continue };
        let truths = verdicts(&wire);
        let (mut tallies, mut wrong_rounds) = (BTreeMap::<PathKind, Tally>::new(), 0);
        for _ in 0..ROUNDS {
            let mut is_wrong = false;
            let selection = believed(&wire, if kind == WireKind::VethXdp { 1000 } else { 3000 });
            for model in selection.models.iter().filter(|model| model.refused == 0) {
                let Some(verdict) = truths.get(&model.path) else { continue };
                let copies = verdict.truth != Truth::Shared;
                tallies.entry(model.path).or_default().add(model.copies, copies);
                is_wrong |= model.copies == Some(!copies);
            }
            wrong_rounds += u32::from(is_wrong);
        }
        print(kind, &tallies);
        assert!(
            wrong_rounds <= TOLERATED,
            "{wrong_rounds} of {ROUNDS} rounds on {kind} with a wrong class: {tallies:?}"
        );
        let right = |wanted: fn(PathKind) -> bool| -> u32 {
            tallies.iter().filter(|(path, _)| wanted(**path)).map(|(_, tally)| tally.right).sum()
        };
        assert!(right(|path| !path.shares_pages()) > 0, "no class of a path that copies by its nature on {kind}");
        // Where completions admit a copy, it is known that there is one.
        if matches!(kind, WireKind::Lo | WireKind::Veth) {
            for path in truths.keys().filter(|path| path.is_notified()) {
                let tally = tallies.get(path).copied().unwrap_or_default();
                assert!(
                    tally.right >= ROUNDS / 2,
                    "{path} copies on {kind}, and this was hardly believed: {tallies:?}"
                );
            }
        }
    }
}

/// What a connection over UDP believes after messages into the sink, and how many of its completions said so.
fn believed_of_sink(wire: &Wire, messages: u64) -> (Selection, DatagramCounts) {
    const DATAGRAMS: usize = 60_000;
    // Together more than the caches hold: to copy what lies in a cache costs hardly more than not to copy it.
    const LEASES: u64 = 256;
    let options = || UdpOptions {
        slots: SlotPlan { loans: PoolPlan::single(DATAGRAMS, LEASES as u32).ok(), ..SlotPlan::default() },
        reliability: Reliability::ConstantRate { bytes_per_s: u64::MAX },
        insecure: true,
        // In a sink nobody answers.
        silence: Duration::from_secs(600),
        keep_alive: Duration::from_secs(600),
        resume_for: Duration::ZERO,
        ..UdpOptions::default()
    };
    let until = Instant::now() + Duration::from_secs(60);
    // The greeting needs an answer.
    wire.set_route(Route::Veth).unwrap();
    let at = SocketAddr::new(wire.address(Side::Receiver, Family::V4).unwrap(), 0);
    let greeted = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (told, heard) = std::sync::mpsc::channel();
        let (sending_ends, sent) = std::sync::mpsc::channel::<()>();
        let greeted = &greeted;
        scope.spawn(move || {
            let listening = wire.enter(Side::Receiver, move || {
                let mut transport = UdpTransport::new(options()).unwrap();
                told.send(transport.listen(at).unwrap().1).unwrap();
                while !greeted.load(Ordering::Acquire) && Instant::now() < until {
                    transport.poll(&mut Vec::new(), Some(Duration::from_millis(1))).unwrap();
                }
                // It says nothing any more, not even that it goes.
                let _ended = sent.recv();
            });
            listening.unwrap();
        });
        let to = heard.recv().unwrap();
        let sending = wire.enter(Side::Sender, || {
            let mut transport = UdpTransport::new(options()).unwrap();
            let connection = transport.connect(to).unwrap();
            let fill = |_| {
                let mut lease = transport.loan(DATAGRAMS).unwrap();
                lease.fill(1);
                lease.freeze()
            };
            let leases: Vec<_> = (0..LEASES).map(fill).collect();
            let mut events = Vec::new();
            let (mut connected, mut submitted, mut completed) = (false, 0, 0);
            while completed < messages {
                assert!(Instant::now() < until, "{completed} of {messages} messages were sent");
                while connected && submitted < messages && submitted < completed + 16 {
                    let lease = leases[(submitted % LEASES) as usize].clone();
                    transport.submit(Destination::new(connection), lease.into(), Token(submitted)).unwrap();
                    submitted += 1;
                }
                transport.poll(&mut events, Some(Duration::from_millis(1))).unwrap();
                for event in events.drain(..) {
                    match event {
                        Event::Connected { .. } => {
                            connected = true;
                            wire.set_route(Route::Sink).unwrap();
                            greeted.store(true, Ordering::Release);
                        }
                        Event::Completed { .. } => completed += 1,
                        Event::Closed { reason, .. } => panic!("{reason}"),
                        _ => {}
                    }
                }
            }
            (transport.selection(connection).unwrap(), transport.facts(connection).unwrap().socket)
        });
        greeted.store(true, Ordering::Release);
        drop(sending_ends);
        sending.unwrap()
    })
}

#[test]
fn a_connection_over_udp_finds_out_that_a_sink_does_not_copy() {
    let Some(wire) = make(WireKind::Ifb) else { return };
    let (mut tallies, mut in_use) = (BTreeMap::<PathKind, Tally>::new(), Tally::default());
    for _ in 0..SINK_ROUNDS {
        let (selection, counts) = believed_of_sink(&wire, 3000);
        // The kernel says so, and on this wire it is true.
        assert!(counts.notified > 0 && counts.copied == 0, "{counts:?}");
        for model in selection.models.iter().filter(|model| model.refused == 0) {
            let copies = !model.path.is_notified();
            tallies.entry(model.path).or_default().add(model.copies, copies);
            if model.path == selection.path {
                in_use.add(model.copies, copies);
            }
        }
    }
    print(wire.kind(), &tallies);
    println!("right class on {}: the path in use {in_use}", wire.kind());
    let [right, wrong] = SINK_IN_USE;
    assert!(in_use.right >= right && in_use.wrong <= wrong, "the path in use: {in_use}");
    for (path, tally) in &tallies {
        assert!(tally.wrong <= SINK_OTHERS, "{path}: {tally}");
    }
    let write = tallies.get(&PathKind::Write).copied().unwrap_or_default();
    assert!(write.wrong == 0 && write.right > 0, "a write copies: {write:?}");
}
