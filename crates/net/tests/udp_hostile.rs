//! What strangers, onlookers and the dead can do to a session over UDP: nothing.
//!
//! A relay of the test's own stands between the two ends; it can drop, keep and play back what passes.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use zcmi_mem::pool::PoolPlan;
use zcmi_net::key::Key;
use zcmi_net::outgoing::{SubmitError, Token};
use zcmi_net::slots::SlotPlan;
use zcmi_net::transport::{Closed, ConnectionId, Destination, Event, Transport};
use zcmi_net::udp::{Reliability, UdpOptions, UdpTransport};

const PATIENCE: Duration = Duration::from_secs(20);

fn options() -> UdpOptions {
    UdpOptions {
        slots: SlotPlan {
            small_bytes: 1024,
            small_slots: 64,
            slot_bytes: 64 << 10,
            large_slots: 16,
            headers: 1,
            loans: PoolPlan::doubling(64, 64 << 10, 16).ok(),
        },
        silence: Duration::from_millis(100),
        segment_bytes: Some(1408),
        ..UdpOptions::default()
    }
}

/// The bytes of message `tag`, as many as it has.
fn content(tag: u64) -> impl Iterator<Item = u8> {
    (0_u64..).map(move |at| (tag + at / 97).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()[5])
}

/// What stands between two ends.
struct Relay {
    front: UdpSocket,
    back: UdpSocket,
    client: Option<SocketAddr>,
    server: SocketAddr,
    /// Everything that went from the client to the server.
    seen: Vec<Vec<u8>>,
    /// How many of the next datagrams are dropped, either way.
    drops: usize,
    is_dead: bool,
    /// Nothing comes to the client.
    is_mute: bool,
    /// Every so many datagrams one is kept back until the next has passed, and every so many of these is lost.
    mischief: Option<(usize, usize)>,
    kept: Option<Vec<u8>>,
    passed: usize,
}

impl Relay {
    fn new(server: SocketAddr) -> Self {
        let socket = || {
            let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
            socket.set_nonblocking(true).expect("an option");
            socket
        };
        Self {
            front: socket(),
            back: socket(),
            client: None,
            server,
            seen: Vec::new(),
            drops: 0,
            is_dead: false,
            is_mute: false,
            mischief: None,
            kept: None,
            passed: 0,
        }
    }

    fn address(&self) -> SocketAddr {
        self.front.local_addr().expect("it is bound")
    }

    fn passes(&mut self) -> bool {
        let passes = !self.is_dead && self.drops == 0;
        self.drops = self.drops.saturating_sub(1);
        passes
    }

    fn pump(&mut self) {
        let mut bytes = [0; 65_536];
        while let Ok((length, from)) = self.front.recv_from(&mut bytes) {
            self.client = Some(from);
            if self.passes() {
                self.seen.push(bytes[..length].to_vec());
                self.passed += 1;
                if let Some((every, lost)) = self.mischief
                    && self.passed.is_multiple_of(every)
                    && self.kept.is_none()
                {
                    self.kept = (!self.passed.is_multiple_of(every * lost)).then(|| bytes[..length].to_vec());
                    continue;
                }
                let _ = self.back.send_to(&bytes[..length], self.server);
                if let Some(kept) = self.kept.take() {
                    let _ = self.back.send_to(&kept, self.server);
                }
            }
        }
        while let Ok((length, _)) = self.back.recv_from(&mut bytes) {
            if let (true, Some(client)) = (self.passes() && !self.is_mute, self.client) {
                let _ = self.front.send_to(&bytes[..length], client);
            }
        }
    }
}

struct Ends {
    relay: Relay,
    one: UdpTransport,
    two: UdpTransport,
    to: ConnectionId,
    back: Option<ConnectionId>,
    events: [Vec<Event>; 2],
    next: u64,
}

impl Ends {
    fn new(one: UdpOptions, two: UdpOptions) -> Self {
        let mut two = UdpTransport::new(two).expect("a transport");
        let (_, server) = two.listen("127.0.0.1:0".parse().expect("an address")).expect("a listener");
        let mut one = UdpTransport::new(one).expect("a transport");
        let relay = Relay::new(server);
        let to = one.connect(relay.address()).expect("a connection");
        Self { relay, one, two, to, back: None, events: [Vec::new(), Vec::new()], next: 0 }
    }

    fn turn(&mut self) {
        self.relay.pump();
        self.one.poll(&mut self.events[0], Some(Duration::ZERO)).expect("it goes on");
        self.two.poll(&mut self.events[1], Some(Duration::ZERO)).expect("it goes on");
    }

    fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(self) {
            let facts = self.back.and_then(|back| self.two.facts(back));
            assert!(Instant::now() < deadline, "{what} {}: {:?} {facts:?}", self.next, self.one.facts(self.to));
            self.turn();
        }
    }

    fn connect(&mut self) {
        self.until("a connection", |ends| {
            ends.back = ends.events[1].iter().find_map(|event| match event {
                Event::Accepted { connection, .. } => Some(*connection),
                _ => None,
            });
            ends.back.is_some() && ends.events[0].iter().any(|event| matches!(event, Event::Connected { .. }))
        });
        self.events = [Vec::new(), Vec::new()];
    }

    fn submit(&mut self, bytes: usize) -> Result<(), SubmitError> {
        let mut lease = self.one.loan(bytes).expect("a slot");
        lease.iter_mut().zip(content(self.next)).for_each(|(to, from)| *to = from);
        let to = Destination::new(self.to).tag(self.next);
        self.one.submit(to, lease.into(), Token(self.next)).map_err(|refused| refused.reason)?;
        self.next += 1;
        Ok(())
    }

    /// Sends one message and waits until it is there and completed.
    fn exchange(&mut self, bytes: usize) {
        let tag = self.next;
        self.submit(bytes).expect("it is taken");
        let (mut came, mut done) = (false, false);
        self.until("a message", |ends| {
            for event in ends.events[1].drain(..) {
                match event {
                    Event::Received { piece, .. } => {
                        assert_eq!((piece.tag, piece.lease.byte_len()), (tag, bytes));
                        assert!(piece.lease.iter().copied().eq(content(tag).take(bytes)), "message {tag} is wrong");
                        assert!(!core::mem::replace(&mut came, true), "it came once");
                    }
                    Event::Interrupted { .. } | Event::Resumed { .. } | Event::PathRefused { .. } => {}
                    other => panic!("{other:?}"),
                }
            }
            for event in ends.events[0].drain(..) {
                match event {
                    Event::Completed { .. } => done = true,
                    Event::Interrupted { .. } | Event::Resumed { .. } | Event::PathRefused { .. } => {}
                    other => panic!("{other:?}"),
                }
            }
            came && done
        });
    }
}

fn closed(events: &[Event]) -> Option<&Closed> {
    events.iter().find_map(|event| match event {
        Event::Closed { reason, .. } => Some(reason),
        _ => None,
    })
}

#[test]
fn a_greeting_of_which_much_is_lost_is_repeated() {
    let mut ends = Ends::new(options(), options());
    ends.relay.drops = 5;
    ends.connect();
    ends.exchange(30_000);
}

#[test]
fn what_comes_in_another_order_or_late_is_put_where_it_belongs() {
    let mut ends = Ends::new(options(), options());
    ends.connect();
    ends.exchange(60_000);
    for every in [2, 3, 7, 10] {
        ends.relay.mischief = Some((every, 3));
        for bytes in [60_000, 64 << 10, 5000, 30_001] {
            ends.exchange(bytes);
        }
    }
    let facts = ends.two.facts(ends.back.expect("it is there")).expect("it is open");
    assert!(facts.copied_user > 0 && facts.in_place > 0, "{facts:?}");
}

#[test]
fn what_is_played_back_changes_nothing_from_the_same_address_or_another() {
    let mut ends = Ends::new(options(), options());
    ends.connect();
    for bytes in [10, 40_000, 1] {
        ends.exchange(bytes);
    }
    let seen = ends.relay.seen.clone();
    let stranger = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let before = ends.two.strays().unknown + ends.two.strays().unproved;
    for datagram in &seen {
        ends.relay.back.send_to(datagram, ends.relay.server).expect("it is sent");
        stranger.send_to(datagram, ends.relay.server).expect("it is sent");
        ends.turn();
    }
    ends.exchange(5000);
    let back = ends.back.expect("it is there");
    let facts = ends.two.facts(back).expect("it is open");
    assert!(facts.known as usize >= seen.len() - 2, "those from the same address are known: {facts:?}");
    let strays = ends.two.strays();
    assert!(
        (strays.unknown + strays.unproved - before) as usize >= seen.len() - 1,
        "the others are strays: {strays:?}"
    );
    // After the end the same greeting begins nothing.
    ends.one.close(ends.to);
    ends.two.close(back);
    ends.until("the end", |ends| ends.events.iter().all(|events| closed(events).is_some()));
    assert!(ends.events.iter().all(|events| matches!(closed(events), Some(Closed::Ended))), "{:?}", ends.events);
    ends.events = [Vec::new(), Vec::new()];
    for datagram in &seen {
        ends.relay.back.send_to(datagram, ends.relay.server).expect("it is sent");
        ends.turn();
    }
    assert!(ends.events[1].is_empty(), "{:?}", ends.events[1]);
}

#[test]
fn noise_and_mangled_datagrams_are_counted_and_nothing_else() {
    let mut ends = Ends::new(options(), options());
    ends.connect();
    ends.exchange(20_000);
    let seen = ends.relay.seen.clone();
    let stranger = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let total = if cfg!(debug_assertions) { 20_000 } else { 200_000 };
    let mut dice = 0x1234_5678_9abc_def1_u64;
    let mut next = || {
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        dice
    };
    let mut bytes = [0; 2048];
    for number in 0..total {
        let length = if number % 2 == 0 {
            let length = next() as usize % 1500;
            bytes[..length].iter_mut().for_each(|byte| *byte = next() as u8);
            length
        } else {
            let datagram = &seen[next() as usize % seen.len()];
            bytes[..datagram.len()].copy_from_slice(datagram);
            bytes[next() as usize % 64] ^= 1 << (next() % 8);
            if next() % 2 == 0 { datagram.len() } else { next() as usize % datagram.len() }
        };
        // From the session's own address too: an onlooker can do that.
        let socket = if number % 3 == 0 { &ends.relay.back } else { &stranger };
        let _ = socket.send_to(&bytes[..length], ends.relay.server);
        if number % 64 == 0 {
            ends.turn();
        }
        if number % 5000 == 0 {
            ends.exchange(20_000);
        }
    }
    ends.exchange(60_000);
    assert!(ends.two.strays().foreign > 1000, "{:?}", ends.two.strays());
}

#[test]
fn a_flood_of_hellos_leaves_nothing_behind_and_is_answered_with_no_more_than_it_brought() {
    let mut ends = Ends::new(options(), UdpOptions { connections: 2, ..options() });
    ends.connect();
    let hello = ends.relay.seen[0].clone();
    let flood = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    flood.set_nonblocking(true).expect("an option");
    let (mut brought, mut answered) = (0, 0);
    let mut bytes = [0; 2048];
    for number in 0..2000_u32 {
        // The session's name is not under a checksum that others could not make; a new one each time would be better,
        // and is no different to who is asked.
        brought += flood.send_to(&hello, ends.relay.server).unwrap_or(0);
        if number % 16 == 0 {
            ends.turn();
        }
        while let Ok(length) = flood.recv(&mut bytes) {
            answered += length;
        }
    }
    ends.turn();
    assert!(answered > 0 && answered <= brought, "{answered} for {brought}");
    assert!(format!("{:?}", ends.two).contains("connections: 1"), "{:?}", ends.two);
    ends.exchange(100);
}

#[test]
fn a_reset_from_another_address_ends_nothing() {
    let mut ends = Ends::new(options(), options());
    ends.connect();
    ends.exchange(100);
    // The true reset of another end, for a session: what a transport says that does not know it.
    let mut other = UdpTransport::new(options()).expect("a transport");
    let (_, elsewhere) = other.listen("127.0.0.1:0".parse().expect("an address")).expect("a listener");
    let asks = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    asks.set_nonblocking(true).expect("an option");
    let datagram = ends.relay.seen.last().expect("some passed").clone();
    let (mut reset, mut bytes, deadline) = (None, [0; 256], Instant::now() + PATIENCE);
    while reset.is_none() {
        assert!(Instant::now() < deadline, "no reset");
        asks.send_to(&datagram, elsewhere).expect("it is sent");
        other.poll(&mut Vec::new(), Some(Duration::from_millis(5))).expect("it goes on");
        reset = asks.recv(&mut bytes).ok().map(|length| bytes[..length].to_vec());
    }
    let reset = reset.expect("it came");
    assert_eq!(reset.len(), 64, "no longer than what it answers");
    asks.send_to(&reset, ends.relay.server).expect("it is sent");
    ends.exchange(100);
    assert!(ends.two.strays().unknown > 0);
    // From the session's own address it does.
    ends.relay.back.send_to(&reset, ends.relay.server).expect("it is sent");
    ends.until("the news", |ends| closed(&ends.events[1]).is_some());
    assert!(matches!(closed(&ends.events[1]), Some(Closed::SessionLost)));
}

#[test]
fn a_peer_that_dies_is_noticed_and_what_was_under_way_fails() {
    let mut ends = Ends::new(UdpOptions { resume_for: Duration::from_millis(300), ..options() }, options());
    ends.connect();
    ends.exchange(100);
    ends.relay.is_dead = true;
    ends.submit(50_000).expect("it is taken");
    ends.submit(10).expect("it is taken");
    ends.until("the news", |ends| closed(&ends.events[0]).is_some());
    assert!(matches!(closed(&ends.events[0]), Some(Closed::Broken(_))), "{:?}", ends.events[0]);
    let failed = ends.events[0].iter().filter(|event| matches!(event, Event::Failed { .. })).count();
    assert_eq!(failed, 2);
    let lease = ends.one.loan(64 << 10).expect("their slots are free");
    let late = ends.one.submit(Destination::new(ends.to), lease.into(), Token(9));
    assert!(matches!(late.map_err(|refused| refused.reason), Err(SubmitError::NoConnection(_))));
}

#[test]
fn who_begins_a_piece_and_does_not_go_on_is_closed_and_its_slot_is_free_again() {
    let stall_timeout = Duration::from_millis(50);
    let mut ends = Ends::new(options(), UdpOptions { stall_timeout, ..options() });
    ends.connect();
    ends.exchange(100);
    ends.submit(64 << 10).expect("it is taken");
    // As much as may be under way without an answer; then the peer does nothing.
    ends.one.poll(&mut ends.events[0], Some(Duration::ZERO)).expect("it goes on");
    ends.relay.pump();
    let deadline = Instant::now() + PATIENCE;
    let mut least = u32::MAX;
    while closed(&ends.events[1]).is_none() {
        ends.two.poll(&mut ends.events[1], Some(Duration::from_millis(1))).expect("it goes on");
        least = least.min(ends.two.slot_counts().free[1]);
        assert!(Instant::now() < deadline, "{:?}", ends.events[1]);
    }
    let Some(Closed::Broken(reason)) = closed(&ends.events[1]) else { panic!("{:?}", ends.events[1]) };
    assert!(reason.contains("did not go on"), "{reason}");
    assert_eq!((least, ends.two.slot_counts().free[1]), (15, 16), "it held one");
    assert_eq!(ends.two.slot_counts().promised, [0, 0]);
}

#[test]
fn a_silent_peer_is_asked_whether_it_is_there() {
    let keep_alive = Duration::from_millis(50);
    let resume_for = Duration::from_millis(100);
    let mut ends = Ends::new(UdpOptions { keep_alive, resume_for, ..options() }, options());
    ends.connect();
    let begin = Instant::now();
    ends.until("a while", |_| begin.elapsed() > 4 * keep_alive);
    assert!(closed(&ends.events[0]).is_none(), "it answers");
    ends.relay.is_dead = true;
    ends.until("the news", |ends| closed(&ends.events[0]).is_some());
}

#[test]
fn a_path_that_comes_back_is_gone_on_with() {
    let mut ends = Ends::new(options(), options());
    ends.connect();
    ends.submit(30_000).expect("it is taken");
    ends.relay.is_dead = true;
    ends.until("an interruption", |ends| ends.events[0].iter().any(|event| matches!(event, Event::Interrupted { .. })));
    ends.relay.is_dead = false;
    ends.until("the message", |ends| ends.events[1].iter().any(|event| matches!(event, Event::Received { .. })));
    ends.until("its completion", |ends| ends.events[0].iter().any(|event| matches!(event, Event::Completed { .. })));
    assert!(ends.events[0].iter().any(|event| matches!(event, Event::Resumed { .. })));
    assert_eq!(ends.one.facts(ends.to).expect("it is open").epoch, 1);
}

#[test]
fn a_key_is_needed_at_both_ends_and_the_same_one() {
    let key = |byte| Some(Key::new(&[byte; 16]).expect("a key"));
    for (one, two, works) in
        [(key(1), key(1), true), (key(1), key(2), false), (None, key(1), false), (key(1), None, false)]
    {
        let greeting_timeout = if works { PATIENCE } else { Duration::from_millis(200) };
        let mut ends =
            Ends::new(UdpOptions { key: one, greeting_timeout, ..options() }, UdpOptions { key: two, ..options() });
        if works {
            ends.connect();
            ends.exchange(5000);
        } else {
            ends.until("a refusal", |ends| closed(&ends.events[0]).is_some());
            assert!(matches!(closed(&ends.events[0]), Some(Closed::Unreachable(_))));
            assert!(ends.events[1].is_empty(), "{:?}", ends.events[1]);
        }
    }
}

#[test]
fn other_hosts_are_not_talked_with_without_a_key() {
    let mut transport = UdpTransport::new(options()).expect("a transport");
    let far = "192.0.2.1:9".parse().expect("an address");
    assert!(transport.connect(far).is_err());
    let mut transport = UdpTransport::new(UdpOptions { insecure: true, ..options() }).expect("a transport");
    let tried = transport.connect(far);
    // There may be no route; there is no refusal of ours.
    assert!(!matches!(tried, Err(zcmi_net::transport::TransportError::Address { .. })), "{tried:?}");
}

#[test]
fn unreliable_messages_complete_when_they_are_sent_and_are_no_longer_than_a_slot() {
    let mut ends = Ends::new(UdpOptions { reliability: Reliability::Unreliable, ..options() }, options());
    assert!(matches!(ends.submit(1), Err(SubmitError::LongerThanSlot { bytes: 1, slot_bytes: 0 })));
    ends.connect();
    for bytes in [0, 10, 30_000, 64 << 10] {
        ends.exchange(bytes);
    }
    // While nothing passes, what fits the window completes all the same, and does not come later.
    ends.relay.is_dead = true;
    ends.submit(5_000).expect("it is taken");
    ends.until("its completion", |ends| ends.events[0].iter().any(|event| matches!(event, Event::Completed { .. })));
    // What was sent just now is dropped too.
    ends.relay.pump();
    ends.relay.is_dead = false;
    ends.events[0].clear();
    ends.exchange(7);
}

/// The accepting side ends, and what it says last is lost; the other asks again, at once or, when it has given up,
/// with a greeting.
fn last_words_are_lost(gives_up: bool, key: Option<Key>) {
    let silence = Duration::from_millis(if gives_up { 100 } else { 15_000 });
    let options = || UdpOptions { key: key.clone(), silence, ..options() };
    let mut ends = Ends::new(options(), options());
    ends.connect();
    ends.exchange(3000);
    let back = ends.back.expect("it is connected");
    ends.two.close(back);
    ends.until("the server's end", |ends| ends.events[0].iter().any(|event| matches!(event, Event::Ended { .. })));
    ends.events[0].clear();
    // It has heard that its end was heard.
    ends.exchange(100);
    ends.relay.is_mute = true;
    // No more than goes without an answer.
    ends.submit(500).expect("it is taken");
    ends.submit(0).expect("it is taken");
    ends.one.close(ends.to);
    ends.until("the end there", |ends| closed(&ends.events[1]).is_some());
    assert!(matches!(closed(&ends.events[1]), Some(Closed::Ended)), "{:?}", ends.events[1]);
    let is_interrupted =
        |ends: &mut Ends| ends.events[0].iter().any(|event| matches!(event, Event::Interrupted { .. }));
    if gives_up {
        ends.until("that nothing is heard", is_interrupted);
    }
    // What was said last is lost too.
    ends.relay.pump();
    ends.relay.is_mute = false;
    ends.until("the end here", |ends| closed(&ends.events[0]).is_some());
    assert!(matches!(closed(&ends.events[0]), Some(Closed::Ended)), "{:?}", ends.events[0]);
    let completed = ends.events[0].iter().filter(|event| matches!(event, Event::Completed { .. })).count();
    assert_eq!(completed, 2, "{:?}", ends.events[0]);
    let received = ends.events[1].iter().filter(|event| matches!(event, Event::Received { .. })).count();
    assert_eq!(received, 2, "each came once");
}

#[test]
fn who_did_not_hear_the_last_words_learns_how_it_ended() {
    for gives_up in [false, true] {
        last_words_are_lost(gives_up, None);
        last_words_are_lost(gives_up, Key::new(b"a key of thirty-two bytes, or so").ok());
    }
}
