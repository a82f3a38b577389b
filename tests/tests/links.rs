//! What transports tell of their connections: who shows what, for how long, and to whom it belongs after a fork.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use zcmi_net::links::{LinkFacts, LinkStage, ROWS, all_links};
use zcmi_net::outgoing::Token;
use zcmi_net::path::PathKind;
use zcmi_net::select::Reason;
use zcmi_net::slots::SlotPlan;
use zcmi_net::stream::{Address, StreamOptions, StreamTransport};
use zcmi_net::transport::{ConnectionId, Destination, Event, Transport};
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

/// What this process shows of the connections that it began.
fn near() -> Vec<LinkFacts> {
    let all = all_links().expect("/proc can be read");
    let ours = all.processes.iter().filter(|process| process.pid == std::process::id());
    let links = ours.flat_map(|process| &process.boards).flat_map(|board| board.links.clone());
    links.filter(|link| !link.accepted).collect()
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
