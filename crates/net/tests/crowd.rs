//! Among many connections a link reads a long piece on while something comes, where one among few leaves that to its
//! next turn, and who holds a long slot has its turn first.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::time::{Duration, Instant};

use zcmi_mem::pool::PoolPlan;
use zcmi_net::frame::{HEADER_BYTES, Header, Hello, Kind};
use zcmi_net::link::{Happened, Link, LinkLimits, Readiness};
use zcmi_net::outgoing::Token;
use zcmi_net::path::{PathKind, Release};
use zcmi_net::slots::{SlotPlan, Slots};
use zcmi_net::stream::{Address, StreamOptions, StreamTransport};
use zcmi_net::transport::{ConnectionId, Destination, Event, Transport};
use zcmi_net::wire::{Notification, Segment, Sent, Wire};

/// Bytes of the piece.
const LENGTH: u32 = 300_000;
/// Bytes that come at a time: the window opens when they are read.
const WINDOW: usize = 50_000;

/// A wire where a window comes for each call.
struct Windows(VecDeque<Vec<u8>>);

impl Wire for Windows {
    fn send(&mut self, _path: PathKind, segments: &[Segment<'_>]) -> io::Result<Sent> {
        Ok(Sent { bytes: segments.iter().map(|segment| segment.bytes.len()).sum(), release: Release::Now })
    }

    fn receive(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let window = self.0.pop_front().ok_or(io::ErrorKind::WouldBlock)?;
        let mut rest = &window[..];
        for buffer in buffers {
            let (into, behind) = rest.split_at(rest.len().min(buffer.len()));
            buffer[..into.len()].copy_from_slice(into);
            rest = behind;
        }
        assert!(rest.is_empty(), "there is room for a window");
        Ok(window.len())
    }

    fn notifications(&mut self, _each: &mut dyn FnMut(Notification)) -> io::Result<()> {
        Ok(())
    }

    fn owed(&self) -> u64 {
        0
    }

    fn end(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn abort(&mut self) {}
}

/// How many turns a piece takes among so many connections.
fn turns(connections: usize) -> usize {
    let plan = SlotPlan {
        small_bytes: 1000,
        small_slots: 16,
        slot_bytes: LENGTH,
        large_slots: 4,
        headers: 16,
        loans: PoolPlan::single(64, 1).ok(),
    };
    let mut slots = Slots::new(&plan).expect("memory");
    let limits = LinkLimits::default();
    let mut link = Link::new(limits, &slots);
    let granted = limits.first_credits(&mut slots);
    assert!(granted[1] > 0);
    let ours = Hello {
        incarnation: [1; 16],
        session: [2; 16],
        epoch: 0,
        resume_from: 0,
        small_bytes: 1000,
        slot_bytes: LENGTH,
        streams: limits.streams,
        granted,
        nonce: [0; 32],
        proof: [0; 32],
    };
    let mut bytes = vec![7; HEADER_BYTES + LENGTH as usize];
    let header = Header { message_bytes: LENGTH, length: LENGTH, ..Header::empty(Kind::Data) };
    header.encode(bytes.first_chunk_mut().expect("it is longer"));
    let windows = Windows(bytes.chunks(WINDOW).map(<[u8]>::to_vec).collect());
    let mut happened = Vec::new();
    let theirs = Hello { granted: [0; 2], ..ours };
    assert!(link.connect(windows, &ours, &theirs, &mut happened).is_ok());
    for turn in 1.. {
        let read = link.receive_beside(connections, &mut slots, &mut happened).expect("an honest peer");
        assert_eq!(read, Readiness::Drained);
        if let Some(Happened::Received(piece)) = happened.pop() {
            assert!(piece.lease.len() == LENGTH as usize && piece.lease.iter().all(|byte| *byte == 7));
            return turn;
        }
        assert!(turn < 100, "the piece does not come");
    }
    unreachable!("it is bounded")
}

#[test]
fn a_long_piece_among_many_connections_is_read_in_one_turn() {
    assert_eq!(turns(1000), 1);
}

#[test]
fn among_few_each_window_has_a_turn() {
    assert_eq!(turns(1), 7);
}

/// Bytes that need a long slot.
const LONG: usize = 200 << 10;
/// How long anything may take.
const BOUND: Duration = Duration::from_secs(20);

fn transport(small_slots: u32, large_slots: u32, resume_for: Duration) -> StreamTransport {
    let slots = SlotPlan {
        small_bytes: 1024,
        small_slots,
        slot_bytes: LONG as u32,
        large_slots,
        headers: 4096,
        loans: PoolPlan::single(LONG, 128).ok(),
    };
    StreamTransport::new(StreamOptions { slots, resume_for, ..StreamOptions::default() }).expect("a transport")
}

/// A server with a crowd, and one more that is sent what takes a long slot.
struct Crowd {
    server: StreamTransport,
    address: Address,
    crowd: StreamTransport,
    /// The crowd's connections.
    quiet: Vec<ConnectionId>,
    holder: StreamTransport,
    /// The holder's connection, at the server and there.
    connection: ConnectionId,
    there: ConnectionId,
    events: Vec<Event>,
    seen: Vec<Event>,
}

impl Crowd {
    /// How many are a crowd, and a few more.
    const CONNECTIONS: usize = 80;

    /// A holder has so many long slots, and a server that remembers who broke off so long.
    fn new(long_slots: u32, resume_for: Duration) -> Self {
        let mut server = transport(8192, 16, resume_for);
        let (_, address) = server.listen(&"127.0.0.1:0".parse::<Address>().expect("an address")).expect("a listener");
        let crowd = transport(1024, 4, resume_for);
        let holder = transport(1024, long_slots, resume_for);
        let (quiet, there, connection) = (Vec::new(), ConnectionId::NONE, ConnectionId::NONE);
        let mut all =
            Self { server, address, crowd, quiet, holder, connection, there, events: Vec::new(), seen: Vec::new() };
        all.quiet = Self::connect(&mut all.server, &all.address, &mut all.crowd, Self::CONNECTIONS).0;
        all.join();
        all
    }

    /// The holder connects.
    fn join(&mut self) {
        let (ours, theirs) = Self::connect(&mut self.server, &self.address, &mut self.holder, 1);
        (self.there, self.connection) = (ours[0], theirs[0]);
    }

    /// New connections, as the client knows them and as the server does.
    fn connect(
        server: &mut StreamTransport,
        address: &Address,
        client: &mut StreamTransport,
        count: usize,
    ) -> (Vec<ConnectionId>, Vec<ConnectionId>) {
        let ours: Vec<_> = (0..count).map(|_| client.connect(address).expect("a connection")).collect();
        let (deadline, mut told, mut theirs, mut connected) = (Instant::now() + BOUND, Vec::new(), Vec::new(), 0);
        while theirs.len() < count || connected < count {
            server.poll(&mut told, Some(Duration::ZERO)).expect("the server goes on");
            client.poll(&mut told, Some(Duration::ZERO)).expect("the client goes on");
            for event in told.drain(..) {
                match event {
                    Event::Accepted { connection, .. } => theirs.push(connection),
                    event => connected += usize::from(matches!(event, Event::Connected { .. })),
                }
            }
            assert!(Instant::now() < deadline, "{connected} of {count} connected");
        }
        (ours, theirs)
    }

    /// The server sends the holder a long message, as far as it can.
    fn send_long(&mut self) {
        let lease = self.server.loan(LONG).expect("a lease");
        self.server.submit(Destination::new(self.connection), lease.into(), Token(7)).expect("it is taken");
        self.server.poll(&mut self.events, Some(Duration::ZERO)).expect("the server goes on");
    }

    /// Each of the crowd sends a short message.
    fn send_short(&mut self) {
        for &connection in &self.quiet {
            let lease = self.crowd.loan(100).expect("a lease");
            self.crowd.submit(Destination::new(connection), lease.freeze().into(), Token(0)).expect("it is taken");
        }
        self.crowd.poll(&mut Vec::new(), Some(Duration::ZERO)).expect("the crowd goes on");
    }

    /// The holder reads the long message, and acknowledges it; the server does nothing meanwhile.
    fn hear_long(&mut self) -> Vec<Event> {
        let deadline = Instant::now() + BOUND;
        while !self.seen.iter().any(|event| matches!(event, Event::Received { .. })) {
            self.holder.poll(&mut self.seen, Some(Duration::ZERO)).expect("the holder goes on");
            assert!(Instant::now() < deadline, "the long message does not come: {:?}", self.seen);
        }
        self.holder.poll(&mut self.seen, Some(Duration::ZERO)).expect("the holder goes on");
        core::mem::take(&mut self.seen)
    }

    /// What one poll of the server tells of the holder, and of how many others.
    fn poll(&mut self) -> (Vec<Event>, usize) {
        self.events.clear();
        self.server.poll(&mut self.events, Some(Duration::ZERO)).expect("the server goes on");
        let is_holder = |event: &Event| match event {
            Event::Received { connection, .. }
            | Event::Completed { connection, .. }
            | Event::Interrupted { connection, .. }
            | Event::PathRefused { connection, .. }
            | Event::Failed { connection, .. }
            | Event::Ended { connection }
            | Event::Closed { connection, .. } => *connection == self.connection,
            event => panic!("{event:?}"),
        };
        let (told, others): (Vec<_>, Vec<_>) = self.events.drain(..).partition(is_holder);
        (told, others.len())
    }

    /// How many of the others were told before the holder's message completed.
    fn others_before(&mut self) -> usize {
        let (deadline, mut others) = (Instant::now() + BOUND, 0);
        loop {
            let (told, more) = self.poll();
            if told.iter().any(|event| matches!(event, Event::Completed { token: Token(7), .. })) {
                return others;
            }
            others += more;
            assert!(Instant::now() < deadline, "it does not complete");
        }
    }
}

#[test]
fn in_a_crowd_who_holds_a_long_slot_has_its_turn_first() {
    let mut crowd = Crowd::new(4, Duration::ZERO);
    for _ in 0..3 {
        crowd.send_long();
        crowd.send_short();
        crowd.hear_long();
        assert_eq!(crowd.others_before(), 0, "it was last, and its turn is first");
        let (mut others, deadline) = (0, Instant::now() + BOUND);
        while others < Crowd::CONNECTIONS - 8 {
            others += crowd.poll().1;
            assert!(Instant::now() < deadline, "the others have their turn");
        }
    }
}

#[test]
fn who_holds_a_long_slot_sends_its_short_messages_no_sooner_than_others() {
    // The second message waits for the slot that the first has.
    let mut crowd = Crowd::new(1, Duration::ZERO);
    crowd.send_long();
    crowd.send_long();
    let held = crowd.hear_long();
    crowd.others_before();
    crowd.send_short();
    let (mut own, mut others, deadline) = (0, 0, Instant::now() + BOUND);
    while others < Crowd::CONNECTIONS {
        for _ in 0..2 {
            let lease = crowd.holder.loan(100).expect("a lease");
            let to = Destination::new(crowd.there);
            crowd.holder.submit(to, lease.freeze().into(), Token(0)).expect("it is taken");
        }
        crowd.holder.poll(&mut crowd.seen, Some(Duration::ZERO)).expect("the holder goes on");
        let (told, more) = crowd.poll();
        own += told.len();
        others += more;
        assert!(Instant::now() < deadline, "{others} of the others were served");
    }
    // A few turns: its own among all, and one before each of those. With each poll there were 32.
    assert!(own <= 10, "{own} of its messages came before one of each other");
    drop(held);
}

#[test]
fn a_holder_that_goes_is_forgotten_and_the_next_one_has_its_turn_first() {
    type Going = fn(&mut Crowd);
    let goings: [(&str, Duration, Going); 4] = [
        ("aborts", Duration::ZERO, |crowd| crowd.holder.abort(crowd.there)),
        ("breaks off and does not come again", Duration::from_millis(50), |crowd| {
            crowd.holder = transport(1024, 4, Duration::ZERO);
        }),
        ("ends", Duration::ZERO, |crowd| {
            crowd.holder.close(crowd.there);
            crowd.server.close(crowd.connection);
        }),
        ("is given up", Duration::ZERO, |crowd| crowd.server.abort(crowd.connection)),
    ];
    for (what, resume_for, goes) in goings {
        let mut crowd = Crowd::new(4, resume_for);
        crowd.send_long();
        goes(&mut crowd);
        let deadline = Instant::now() + BOUND;
        while !crowd.poll().0.iter().any(|event| matches!(event, Event::Closed { .. })) {
            crowd.holder.poll(&mut Vec::new(), Some(Duration::ZERO)).expect("the holder goes on");
            assert!(Instant::now() < deadline, "one that {what} is not closed: {:?}", crowd.server);
        }
        crowd.join();
        crowd.send_long();
        crowd.send_short();
        crowd.hear_long();
        assert_eq!(crowd.others_before(), 0, "after one that {what} the next one was last, and its turn is first");
    }
}
