//! The conformance suite over TCP and Unix sockets, by each path.

mod conformance;
mod denied;
mod forked;
mod refused;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use conformance::{End, Rig, Wish};
use zcmi_mem::pool::PoolPlan;
use zcmi_net::link::LinkLimits;
use zcmi_net::outgoing::Token;
use zcmi_net::path::PathKind;
use zcmi_net::slots::SlotPlan;
use zcmi_net::stream::{Address, StreamOptions, StreamTransport};
use zcmi_net::transport::{Closed, Destination, Event, Transport};

/// Streams over one kind of socket, by one path.
struct Streams {
    unix: bool,
    /// Forced; none for the cheapest.
    path: Option<PathKind>,
}

/// A path that no other test uses, gone with this.
pub(crate) struct SocketPath(pub(crate) PathBuf);

impl SocketPath {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(std::env::temp_dir().join(format!("zcmi-net-{}-{number}", std::process::id())))
    }
}

impl Drop for SocketPath {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn options(wish: Wish) -> StreamOptions {
    StreamOptions {
        slots: SlotPlan {
            small_bytes: 1024,
            small_slots: wish.small_slots,
            slot_bytes: wish.slot_bytes,
            large_slots: wish.large_slots,
            headers: 256,
            // Of the largest messages the classes below them would be too many.
            loans: PoolPlan::doubling(
                wish.message_bytes.min(64).max(wish.message_bytes >> 20),
                wish.message_bytes,
                wish.loans,
            )
            .ok(),
        },
        limits: wish.limits(),
        resume_for: wish.resume_for,
        ..StreamOptions::default()
    }
}

impl Rig for Streams {
    type Transport = StreamTransport;

    fn pair(&self, wish: Wish) -> (End<StreamTransport>, End<StreamTransport>) {
        let path = SocketPath::new();
        let address =
            if self.unix { Address::Unix(path.0.clone()) } else { "127.0.0.1:0".parse().expect("an address") };
        let mut two = StreamTransport::new(StreamOptions { path: self.path, ..options(wish) }).expect("a transport");
        let (_, bound) = two.listen(&address).expect("a listener");
        let mut one = StreamTransport::new(StreamOptions { path: self.path, ..options(wish) }).expect("a transport");
        let connection = one.connect(&bound).expect("a connection");
        let mut one = End { transport: one, connection, seen: Vec::new(), keep: Some(Box::new(path)) };
        let mut accepted = None;
        let (mut seen, deadline) = (Vec::new(), std::time::Instant::now() + conformance::PATIENCE);
        while accepted.is_none() || one.seen.is_empty() {
            assert!(std::time::Instant::now() < deadline, "no connection");
            one.poll();
            two.poll(&mut seen, Some(Duration::ZERO)).expect("the transport goes on");
            accepted = seen.iter().find_map(|event| match event {
                Event::Accepted { connection, .. } => Some(*connection),
                _ => None,
            });
        }
        assert!(matches!(one.events()[..], [Event::Connected { .. }]));
        (one, End { transport: two, connection: accepted.expect("it is there"), seen: Vec::new(), keep: None })
    }

    fn break_off(&self, end: &mut End<StreamTransport>) {
        end.transport.break_off(end.connection);
    }

    fn went_by_the_path(&self, end: &End<StreamTransport>) -> bool {
        let counts = end.transport.facts(end.connection).expect("it is there").counts;
        counts.paths[self.path.unwrap_or(PathKind::Write) as usize].bytes > 0
    }
}

conformance!(tcp_write, Streams { unix: false, path: Some(PathKind::Write) });
conformance!(tcp_zero_copy, Streams { unix: false, path: Some(PathKind::ZeroCopy) });
conformance!(tcp_send_file, Streams { unix: false, path: Some(PathKind::SendFile) });
conformance!(tcp_splice, Streams { unix: false, path: Some(PathKind::Splice) });
conformance!(tcp_uring_send, Streams { unix: false, path: Some(PathKind::UringSend) });
conformance!(tcp_uring_zero_copy, Streams { unix: false, path: Some(PathKind::UringZeroCopy) });
conformance!(tcp_uring_fixed, Streams { unix: false, path: Some(PathKind::UringFixed) });
conformance!(unix_uring_send, Streams { unix: true, path: Some(PathKind::UringSend) });
conformance!(tcp_adaptive, Streams { unix: false, path: None });
conformance!(unix_adaptive, Streams { unix: true, path: None });
conformance!(unix_write, Streams { unix: true, path: Some(PathKind::Write) });
conformance!(unix_send_file, Streams { unix: true, path: Some(PathKind::SendFile) });
conformance!(unix_splice, Streams { unix: true, path: Some(PathKind::Splice) });

#[test]
fn a_message_of_a_gibibyte_passes_through_few_slots() {
    if std::env::var_os("ZCMI_QUICK").is_some() {
        println!("SKIP: a message of 1 GiB is left out of a quick run");
        return;
    }
    // By a path that copies, and by one that shares pages, of which as much is pinned as there is room for.
    for (unix, path) in [(false, PathKind::Write), (true, PathKind::SendFile)] {
        let begin = Instant::now();
        conformance::a_message_of_a_gibibyte_passes_through_few_slots(&Streams { unix, path: Some(path) });
        println!("{path}: {:.1?}", begin.elapsed());
    }
}

#[test]
fn an_end_that_comes_together_with_the_last_bytes_is_noticed() {
    let rig = Streams { unix: true, path: Some(PathKind::Write) };
    let (mut one, two) = rig.pair(Wish { resume_for: Duration::from_secs(1), ..Wish::default() });
    let End { transport: mut far, .. } = two;
    one.submit(1, 100, 0);
    one.poll();
    let (mut seen, deadline) = (Vec::new(), std::time::Instant::now() + conformance::PATIENCE);
    while !seen.iter().any(|event| matches!(event, Event::Received { .. })) {
        assert!(std::time::Instant::now() < deadline, "the message never came");
        far.poll(&mut seen, Some(Duration::ZERO)).expect("the transport goes on");
    }
    // Its acknowledgement and its end are there before this side looks: one edge tells of both.
    far.poll(&mut seen, Some(Duration::ZERO)).expect("the transport goes on");
    drop(far);
    let mut events = Vec::new();
    while !events.iter().any(|event| matches!(event, Event::Interrupted { .. })) {
        assert!(std::time::Instant::now() < deadline, "only this was noticed: {events:?}");
        one.transport.poll(&mut events, Some(Duration::from_secs(1))).expect("the transport goes on");
    }
    assert!(events.iter().any(|event| matches!(event, Event::Completed { .. })), "{events:?}");
}

#[test]
fn what_the_kernel_may_read_stays_within_its_budget_however_much_goes_by_one_call() {
    const BUDGET: u64 = 200_000;
    let wish = Wish { loans: 32, large_slots: 64, ..Wish::default() };
    let mut far = StreamTransport::new(options(wish)).expect("a transport");
    let limits = LinkLimits { pinned_bytes: BUDGET, ..LinkLimits::default() };
    let mut one = StreamTransport::new(StreamOptions { limits, path: Some(PathKind::SendFile), ..options(wish) })
        .expect("a transport");
    let (near, other) = std::os::unix::net::UnixStream::pair().expect("a pair");
    for socket in [&near, &other] {
        socket.set_nonblocking(true).expect("it may");
    }
    far.adopt_accepting(other.into()).expect("a stream");
    let connection = one.adopt_connecting(near.into()).expect("a stream");
    let mut one = End { transport: one, connection, seen: Vec::new(), keep: None };
    let (mut seen, mut sent, mut most) = (Vec::new(), 0, 0);
    let (deadline, mut done) = (std::time::Instant::now() + conformance::PATIENCE, 0);
    while done < 200 {
        assert!(std::time::Instant::now() < deadline, "{done} messages completed");
        // All that there are slots for, so that one call could take them all.
        while sent < 200
            && let Some(lease) = one.written(sent, 50_000)
        {
            let to = one.to().tag(sent);
            one.transport.submit(to, lease.into(), zcmi_net::outgoing::Token(sent)).expect("it is taken");
            sent += 1;
        }
        one.poll();
        most = most.max(one.transport.facts(connection).expect("it is there").pinned_bytes);
        far.poll(&mut seen, Some(Duration::ZERO)).expect("the transport goes on");
        seen.clear();
        done += one.events().iter().filter(|event| matches!(event, Event::Completed { .. })).count();
    }
    let counts = one.transport.facts(connection).expect("it is there").counts;
    assert!(most > 0 && most <= BUDGET, "{most} bytes were pinned");
    assert!(counts.over_budget > 0, "{counts:?}");
}

#[test]
fn a_path_that_is_refused_is_told_of_once_with_the_reason_and_everything_arrives() {
    let mut one = StreamTransport::new(StreamOptions { path: Some(PathKind::ZeroCopy), ..options(Wish::default()) })
        .expect("a transport");
    let mut far = StreamTransport::new(options(Wish::default())).expect("a transport");
    // Unix sockets have no `MSG_ZEROCOPY`.
    let (near, other) = std::os::unix::net::UnixStream::pair().expect("a pair");
    for socket in [&near, &other] {
        socket.set_nonblocking(true).expect("it may");
    }
    far.adopt_accepting(other.into()).expect("a stream");
    let connection = one.adopt_connecting(near.into()).expect("a stream");
    let (mut events, mut seen, mut told, mut done) = (Vec::new(), Vec::new(), Vec::new(), 0);
    let deadline = Instant::now() + conformance::PATIENCE;
    for number in 0..5 {
        let lease = one.loan(50_000).expect("a slot");
        one.submit(Destination::new(connection), lease.into(), Token(number)).expect("it is taken");
    }
    while done < 5 {
        assert!(Instant::now() < deadline, "{done} messages completed");
        one.poll(&mut events, Some(Duration::ZERO)).expect("the transport goes on");
        far.poll(&mut seen, Some(Duration::ZERO)).expect("the transport goes on");
        seen.clear();
        for event in events.drain(..) {
            match event {
                Event::Completed { .. } => done += 1,
                Event::PathRefused { connection: of, path, reason } => told.push((of, path, reason)),
                _ => {}
            }
        }
    }
    let facts = one.facts(connection).expect("it is there");
    let refused = facts.counts.paths[PathKind::ZeroCopy as usize].refused;
    let reason = facts.refusals[PathKind::ZeroCopy as usize].clone().expect("it was refused");
    assert!(refused > 1, "it is tried more than once: {:?}", facts.counts);
    assert_eq!(told, [(connection, PathKind::ZeroCopy, reason)]);
}

/// A sender by that path and a number of peers that greet, are sent two messages each, and die before they have said a
/// word of them, again and again: what is quarantined stays within its bound, and the rest comes back.
fn peers_die(path: PathKind, at_once: usize, slot_bytes: u32) {
    const BYTES: usize = 50_000;
    let quarantine_bytes = 3 * BYTES as u64;
    let wish = Wish { loans: 16, large_slots: 64, slot_bytes, ..Wish::default() };
    let loans = |one: &mut StreamTransport| std::iter::from_fn(|| one.loan(BYTES).ok()).collect::<Vec<_>>().len();
    let mut one =
        StreamTransport::new(StreamOptions { quarantine_bytes, path: Some(path), ..options(wish) }).expect("memory");
    let all = loans(&mut one);
    let (mut over_budget, mut refusal, mut events) = (0, None, Vec::new());
    for round in 0..20 {
        let mut fars = Vec::new();
        for _ in 0..at_once {
            let mut far = StreamTransport::new(options(wish)).expect("a transport");
            let (near, other) = std::os::unix::net::UnixStream::pair().expect("a pair");
            for socket in [&near, &other] {
                socket.set_nonblocking(true).expect("it may");
            }
            far.adopt_accepting(other.into()).expect("a stream");
            let connection = one.adopt_connecting(near.into()).expect("a stream");
            for stream in 0..2 {
                let quarantined = one.quarantined_bytes();
                let lease = one.loan(BYTES).unwrap_or_else(|_| panic!("round {round}: {quarantined} bytes"));
                let to = Destination::new(connection).stream(stream);
                one.submit(to, lease.into(), Token(round)).expect("it is taken");
            }
            fars.push((far, connection));
        }
        let deadline = Instant::now() + conformance::PATIENCE;
        for (far, connection) in &mut fars {
            while one.facts(*connection).is_some_and(|facts| facts.counts.paths.iter().all(|path| path.bytes == 0)) {
                assert!(Instant::now() < deadline, "nothing was sent");
                one.poll(&mut events, Some(Duration::ZERO)).expect("the transport goes on");
                if !one.facts(*connection).is_some_and(|facts| facts.is_open) {
                    far.poll(&mut Vec::new(), Some(Duration::ZERO)).expect("the transport goes on");
                }
            }
            let facts = one.facts(*connection).expect("it is there");
            over_budget += facts.counts.over_budget;
            refusal = facts.refusals[path as usize].clone().or(refusal);
        }
        drop(fars);
        let is_closed = |event: &&Event| matches!(event, Event::Closed { .. });
        while events.iter().filter(is_closed).count() < at_once {
            assert!(Instant::now() < deadline, "only this was noticed: {events:?}");
            one.poll(&mut events, Some(Duration::from_millis(100))).expect("the transport goes on");
        }
        events.clear();
    }
    let quarantined = one.quarantined_bytes();
    assert!(quarantined > 0 && quarantined <= quarantine_bytes, "{path}, {at_once}: {quarantined} bytes");
    assert!(over_budget > 0 && refusal.is_some(), "{path}: {over_budget}, {refusal:?}");
    assert_eq!(loans(&mut one), all - quarantined as usize / BYTES, "{path}: the others come back");
}

#[test]
fn peers_that_die_again_and_again_cost_no_more_slots_than_may_be_quarantined() {
    for path in [PathKind::SendFile, PathKind::Splice] {
        peers_die(path, 1, 64 << 10);
        // At the same time, and with a part of each message under way.
        peers_die(path, 6, 64 << 10);
        peers_die(path, 6, 8 << 10);
    }
}

#[test]
fn a_message_from_a_file_is_copied_by_nobody_here_unless_a_path_that_copies_is_forced() {
    for unix in [false, true] {
        for path in [None, Some(PathKind::SendFile), Some(PathKind::Write), Some(PathKind::ZeroCopy)] {
            let rig = Streams { unix, path };
            let (mut one, mut two) = rig.pair(Wish::default());
            one.submit_file(1, 0, 3 << 20, 0);
            let mut collector = conformance::Collector::default();
            conformance::until("the message", [&mut one, &mut two], |one, two| {
                collector.sift(two.events());
                one.events().iter().any(|event| matches!(event, Event::Completed { .. }))
            });
            assert_eq!(collector.messages, 1);
            let facts = one.transport.facts(one.connection).expect("it is there");
            let (counts, by_file) = (&facts.counts, facts.counts.paths[PathKind::SendFile as usize].bytes);
            if path.is_none_or(|path| path == PathKind::SendFile) {
                assert!(counts.copied_user == 0 && by_file > 3 << 20, "{path:?}: {counts:?}");
            } else {
                assert!(counts.copied_user == 3 << 20 && by_file == 0, "{path:?}: {counts:?}");
            }
            assert_eq!((facts.pinned_bytes, facts.refusals), (0, Default::default()), "the file's pages are no slots");
        }
    }
}

#[test]
fn where_nobody_listens_is_given_up_in_time_however_many_attempts_there_are() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let nobody = Address::Tcp(listener.local_addr().expect("it has one"));
    drop(listener);
    let resume_for = Duration::from_millis(400);
    let mut transport = StreamTransport::new(StreamOptions { resume_for, ..StreamOptions::default() }).expect("memory");
    let begin = Instant::now();
    let connection = transport.connect(&nobody).expect("it is tried");
    let mut events = Vec::new();
    while events.is_empty() && begin.elapsed() < Duration::from_secs(4) {
        transport.poll(&mut events, Some(Duration::from_secs(1))).expect("it works");
    }
    assert!(
        matches!(&events[..], [Event::Closed { connection: of, reason: Closed::Unreachable(_) }] if *of == connection),
        "{events:?}"
    );
    assert!(begin.elapsed() >= resume_for, "it was given up after {:?}", begin.elapsed());
}
