//! What transports tell of their connections: who shows what, for how long, and to whom it belongs after a fork.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use zcmi_mem::registration::Support;
use zcmi_net::links::{LinkFacts, LinkSocket, LinkStage, ROWS, all_links};
use zcmi_net::outgoing::Token;
use zcmi_net::path::PathKind;
use zcmi_net::select::Reason;
use zcmi_net::slots::SlotPlan;
use zcmi_net::stream::{Address, StreamOptions, StreamTransport};
use zcmi_net::transport::{ConnectionId, Destination, Event, Transport};
use zcmi_net::udp::{UdpOptions, UdpTransport};
use zcmi_tests::content;
use zcmi_tests::rig::wait_until;
use zcmi_tests::sys::{Forked, end_now, fork, wait_for};

/// One test at a time: all of them look at this process.
static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
const PATIENCE: Duration = Duration::from_secs(30);

/// Two transports of this process.
struct Pair {
    near: StreamTransport,
    far: StreamTransport,
    address: Address,
}

impl Pair {
    fn new(path: Option<PathKind>) -> Self {
        let slots = SlotPlan { loans: zcmi_mem::pool::PoolPlan::single(65_536, 4).ok(), ..SlotPlan::default() };
        let options = StreamOptions { slots, path, ..StreamOptions::default() };
        let [near, mut far] = [0, 1].map(|_| StreamTransport::new(options.clone()).expect("a transport"));
        let (_, address) = far.listen(&"127.0.0.1:0".parse().expect("an address")).expect("a listener");
        Self { near, far, address }
    }

    /// Polls both until the near one tells this.
    fn until(&mut self, what: &str, mut is_it: impl FnMut(&Event) -> bool) {
        let begin = Instant::now();
        let mut events = Vec::new();
        while !events.iter().any(&mut is_it) {
            assert!(begin.elapsed() < PATIENCE, "{what}");
            events.clear();
            self.far.poll(&mut Vec::new(), Some(Duration::ZERO)).expect("it goes on");
            self.near.poll(&mut events, Some(Duration::from_millis(1))).expect("it goes on");
        }
    }

    fn connected(&mut self) -> ConnectionId {
        let connection = self.near.connect(&self.address).expect("a connection");
        self.until("it connects", |event| matches!(event, Event::Connected { .. }));
        connection
    }

    /// Sends one message, and waits until it is received.
    fn send(&mut self, connection: ConnectionId) {
        let mut message = self.near.loan(60_000).expect("a slot");
        content::fill(&mut message, 0, 0);
        self.near.submit(Destination::new(connection), message.into(), Token(0)).expect("it is taken");
        self.until("it arrives", |event| matches!(event, Event::Completed { .. }));
    }
}

/// What this process shows of the connections that it began, or of those that it accepted.
fn shown(accepted: bool) -> Vec<LinkFacts> {
    let all = all_links().expect("/proc can be read");
    let ours = all.processes.iter().filter(|process| process.pid == std::process::id());
    let links = ours.flat_map(|process| &process.boards).flat_map(|board| board.links.clone());
    links.filter(|link| link.accepted == accepted).collect()
}

/// What this process shows of the connections that it began.
fn near() -> Vec<LinkFacts> {
    shown(false)
}

#[test]
fn both_ends_of_a_session_over_udp_are_shown_with_their_path_and_counts_until_it_is_gone() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let slots = SlotPlan { loans: zcmi_mem::pool::PoolPlan::single(65_536, 4).ok(), ..SlotPlan::default() };
    let begin = Instant::now();
    for path in [None, Some(PathKind::ZeroCopy), Some(PathKind::UringSend)] {
        let options = UdpOptions { slots: slots.clone(), path, ..UdpOptions::default() };
        let [mut one, mut two] = [0, 1].map(|_| UdpTransport::new(options.clone()).expect("a transport"));
        let supports = one.capabilities().paths;
        if let Some((path, Support::No(reason))) = supports.iter().find(|(known, _)| Some(*known) == path) {
            println!("SKIP: {path}: {reason}");
            continue;
        }
        let (_, address) = two.listen("127.0.0.1:0".parse().expect("an address")).expect("a listener");
        let connection = one.connect(address).expect("a connection");
        one.poll(&mut Vec::new(), Some(Duration::ZERO)).expect("it goes on");
        let [link] = &near()[..] else { panic!("one connection: {:#?}", near()) };
        // Nobody answers yet.
        assert_eq!((link.stage, link.socket), (LinkStage::Greeting, Some(LinkSocket::Udp)));
        let until = |one: &mut UdpTransport, two: &mut UdpTransport, what: &str, is_it: &dyn Fn(&Event) -> bool| {
            let mut events = Vec::new();
            while !events.iter().any(is_it) {
                assert!(begin.elapsed() < PATIENCE, "{what}");
                two.poll(&mut Vec::new(), Some(Duration::ZERO)).expect("it goes on");
                one.poll(&mut events, Some(Duration::from_millis(1))).expect("it goes on");
            }
        };
        until(&mut one, &mut two, "it connects", &|event| matches!(event, Event::Connected { .. }));
        assert_eq!((near()[0].stage, shown(true)[0].stage), (LinkStage::Open, LinkStage::Open));
        // What paths cost is known after some messages.
        let messages = if path.is_none() { 200 } else { 1 };
        for _ in 0..messages {
            let mut message = one.loan(60_000).expect("a slot");
            content::fill(&mut message, 0, 0);
            one.submit(Destination::new(connection), message.into(), Token(0)).expect("it is taken");
            until(&mut one, &mut two, "it arrives", &|event| matches!(event, Event::Completed { .. }));
        }
        // They have nothing to do, and wait for longer than rows may be old.
        for transport in [&mut one, &mut two] {
            transport.poll(&mut Vec::new(), Some(Duration::from_millis(400))).expect("it goes on");
        }
        let ([link], [other]) = (&near()[..], &shown(true)[..]) else { panic!("a connection: {:#?}", near()) };
        assert_eq!((&link.local, &link.remote), (&other.remote, &other.local));
        assert_eq!((link.counts.submitted, link.counts.unfinished, link.counts.mended), (messages, 0, 0), "{link:#?}");
        assert_eq!(
            (other.counts.pieces_received, other.counts.bytes_received),
            (messages, messages * 60_000),
            "{other:#?}"
        );
        assert!(other.counts.receives > 0);
        let sent: u64 = link.paths.iter().map(|path| path.bytes).sum();
        assert!(sent > 60_000, "{link:#?}");
        match path {
            Some(path) => {
                assert_eq!((link.path, link.reason), (Some(path), Some(Reason::Forced)));
                let notified = path.is_notified();
                let path = &link.paths[path as usize];
                assert!(path.sends > 0 && path.bytes > 60_000 && path.refused == 0, "{link:#?}");
                assert_eq!(path.notified, if notified { path.sends } else { 0 }, "{link:#?}");
            }
            None => {
                let write = &link.paths[PathKind::Write as usize];
                assert!(write.kib_ns.is_some() && write.samples > 0, "{link:#?}");
                assert!(link.reason.is_some_and(|reason| reason != Reason::Forced), "{link:#?}");
            }
        }
        // Nothing is heard any more.
        one.break_off(connection);
        one.abort(connection);
        assert_eq!(near(), []);
        drop((one, two));
        assert_eq!(shown(true), []);
    }
    let silent = UdpTransport::new(UdpOptions { told: false, ..UdpOptions::default() }).expect("a transport");
    let regions = || zcmi_tests::look::memfds(&[std::process::id()]);
    let before = regions();
    drop(silent);
    assert_eq!(before - regions(), 1, "one that tells nothing has no board");
}

#[test]
fn a_connection_is_shown_while_it_lives_and_what_it_did_before_its_transport_waited() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut pair = Pair::new(Some(PathKind::ZeroCopy));
    let connection = pair.connected();
    let [link] = &near()[..] else { panic!("one connection: {:#?}", near()) };
    assert_eq!((link.stage, link.path, link.reason), (LinkStage::Open, Some(PathKind::ZeroCopy), Some(Reason::Forced)));
    assert_eq!(link.remote, pair.address.to_string());
    pair.send(connection);
    // It has nothing to do, and waits for longer than rows may be old.
    pair.near.poll(&mut Vec::new(), Some(Duration::from_millis(400))).expect("it goes on");
    let [link] = &near()[..] else { panic!("one connection: {:#?}", near()) };
    let path = &link.paths[PathKind::ZeroCopy as usize];
    assert!(link.counts.submitted == 1 && link.counts.unfinished == 0, "{link:#?}");
    assert!(path.sends >= 1 && path.bytes > 60_000 && path.notified == path.sends, "{link:#?}");
    pair.near.abort(connection);
    assert_eq!(near(), []);
}

#[test]
fn a_transport_that_tells_nothing_is_not_shown_and_costs_no_descriptor() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let regions = || zcmi_tests::look::memfds(&[std::process::id()]);
    let before = regions();
    let silent = StreamTransport::new(StreamOptions { told: false, ..StreamOptions::default() }).expect("a transport");
    let one = regions() - before;
    let telling = StreamTransport::new(StreamOptions::default()).expect("a transport");
    assert_eq!(regions() - before, 2 * one + 1);
    drop((silent, telling));
    assert_eq!(regions(), before);
}

#[test]
fn connections_beyond_the_rows_are_counted() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut pair = Pair::new(None);
    // Nobody accepts them here, so that they stay as they are.
    let all: Vec<_> = (0..ROWS + 5).map(|_| pair.near.connect(&pair.address).expect("a connection")).collect();
    let unlisted = || {
        let all = all_links().expect("/proc can be read");
        let ours = all.processes.into_iter().filter(|process| process.pid == std::process::id());
        ours.flat_map(|process| process.boards).map(|board| board.unlisted).sum::<u64>()
    };
    assert_eq!(unlisted(), 5);
    wait_until("every row is written", || {
        pair.near.poll(&mut Vec::new(), Some(Duration::from_millis(10))).expect("it goes on");
        near().len() == ROWS
    });
    all.into_iter().for_each(|connection| pair.near.abort(connection));
    assert_eq!((unlisted(), near()), (0, vec![]));
}

#[test]
fn a_forked_child_does_not_show_the_connections_of_its_parent_who_is_gone() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let ((stays, end), (mut hears, mut says)) = (io::pipe().expect("a pipe"), io::pipe().expect("a pipe"));
    let parent = match fork().expect("a process") {
        Forked::Parent(parent) => parent,
        Forked::Child => {
            drop((end, hears));
            let mut pair = Pair::new(None);
            pair.connected();
            if let Ok(Forked::Child) = fork() {
                let _told = says.write_all(&std::process::id().to_le_bytes());
                // Until the test has looked, or is gone.
                let _end = rustix::io::read(&stays, &mut [0; 1]);
            }
            end_now(0);
        }
    };
    drop((stays, says));
    assert_eq!(wait_for(parent).expect("it ends"), 0);
    let mut child = [0; 4];
    hears.read_exact(&mut child).expect("its child says who it is");
    let child = u32::from_le_bytes(child);
    assert!(zcmi_tests::look::memfds(&[child]) > 0, "it has its parent's memory open");
    let shown: Vec<u32> = all_links().expect("/proc can be read").processes.iter().map(|process| process.pid).collect();
    assert!(!shown.contains(&child) && !shown.contains(&parent.cast_unsigned()), "{shown:?}");
    drop(end);
}
