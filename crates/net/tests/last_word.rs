//! A connection whose socket is lost just before its last frame was read: both ends end well all the same.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use zcmi_net::key::Key;
use zcmi_net::outgoing::Token;
use zcmi_net::path::PathKind;
use zcmi_net::stream::{Address, StreamOptions, StreamTransport};
use zcmi_net::transport::{Closed, Destination, Event, Transport};

/// Passes bytes on between sockets, and can keep those for the connecting side to itself.
struct Relay {
    listener: TcpListener,
    server: std::net::SocketAddr,
    pair: Option<[TcpStream; 2]>,
    keeps: bool,
    kept: usize,
}

impl Relay {
    fn new(server: &Address) -> Self {
        let Address::Tcp(server) = *server else { panic!("it listens at {server}") };
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        listener.set_nonblocking(true).expect("an option");
        Self { listener, server, pair: None, keeps: false, kept: 0 }
    }

    fn address(&self) -> Address {
        Address::Tcp(self.listener.local_addr().expect("an address"))
    }

    fn pump(&mut self) {
        if self.pair.is_none()
            && let Ok((client, _)) = self.listener.accept()
        {
            let server = TcpStream::connect(self.server).expect("a connection");
            server.set_nonblocking(true).expect("an option");
            client.set_nonblocking(true).expect("an option");
            self.pair = Some([client, server]);
        }
        let Some([client, server]) = &mut self.pair else { return };
        let (mut bytes, mut over) = ([0; 64 << 10], false);
        let keeps = self.keeps;
        for (from, to, keeps) in [(&*client, &*server, false), (&*server, &*client, keeps)] {
            let (mut from, mut to) = (from, to);
            match from.read(&mut bytes) {
                Ok(0) => over = true,
                Ok(read) if keeps => self.kept += read,
                Ok(read) => to.write_all(&bytes[..read]).expect("it fits the socket"),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => over = true,
            }
        }
        if over && !keeps {
            self.pair = None;
        }
    }
}

fn options(key: Option<Key>) -> StreamOptions {
    StreamOptions { key, resume_for: Duration::from_secs(20), ..StreamOptions::default() }
}

struct Ends {
    one: StreamTransport,
    two: StreamTransport,
    relay: Relay,
    events: [Vec<Event>; 2],
}

impl Ends {
    fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let begin = Instant::now();
        while !holds(self) {
            assert!(begin.elapsed() < Duration::from_secs(10), "{what} takes too long: {:?}", self.events);
            self.relay.pump();
            let pause = Some(Duration::from_millis(1));
            self.one.poll(&mut self.events[0], pause).expect("the transport goes on");
            self.two.poll(&mut self.events[1], pause).expect("the transport goes on");
        }
    }

    fn count(&self, side: usize, of: impl Fn(&Event) -> bool) -> usize {
        self.events[side].iter().filter(|event| of(event)).count()
    }
}

fn is_ended(event: &Event) -> bool {
    matches!(event, Event::Closed { reason: Closed::Ended, .. })
}

/// The last answer of the accepting side is lost together with the socket.
fn the_last_answer_is_lost(key: Option<Key>, path: PathKind) {
    let mut two = StreamTransport::new(options(key.clone())).expect("a transport");
    let (_, bound) = two.listen(&"127.0.0.1:0".parse().expect("an address")).expect("a listener");
    let relay = Relay::new(&bound);
    let one = StreamTransport::new(StreamOptions { path: Some(path), ..options(key) }).expect("a transport");
    let mut ends = Ends { one, two, relay, events: [Vec::new(), Vec::new()] };
    let to = ends.one.connect(&ends.relay.address()).expect("a connection");
    let submit = |ends: &mut Ends, number: u64, bytes: usize| {
        let mut message = ends.one.loan(bytes).expect("a slot");
        message.fill(number as u8);
        let taken = ends.one.submit(Destination::new(to).tag(number), message.into(), Token(number));
        taken.expect("it is taken");
    };
    submit(&mut ends, 1, 100);
    ends.until("the first message", |ends| ends.count(0, |event| matches!(event, Event::Completed { .. })) == 1);
    let Event::Accepted { connection: from, .. } = ends.events[1][0] else { panic!("{:?}", ends.events[1]) };
    // It ends first, so that its end is read before what is kept from there on.
    ends.two.close(from);
    ends.until("the other's end", |ends| ends.count(0, |event| matches!(event, Event::Ended { .. })) == 1);
    ends.relay.keeps = true;
    submit(&mut ends, 2, 5000);
    submit(&mut ends, 3, 0);
    ends.one.close(to);
    ends.until("the end there", |ends| ends.count(1, is_ended) == 1 && ends.relay.kept > 0);
    assert_eq!(ends.count(0, |event| matches!(event, Event::Completed { .. })), 1, "nothing was told");
    // The socket is lost.
    ends.relay.pair = None;
    ends.relay.keeps = false;
    ends.until("the end here", |ends| ends.count(0, |event| matches!(event, Event::Closed { .. })) == 1);
    assert_eq!(ends.count(0, is_ended), 1, "{:?}", ends.events[0]);
    assert_eq!(ends.count(0, |event| matches!(event, Event::Completed { .. })), 3);
    assert_eq!(ends.count(0, |event| matches!(event, Event::Failed { .. })), 0);
    for side in [0, 1] {
        assert_eq!(ends.count(side, |event| matches!(event, Event::Ended { .. })), 1, "an end is told once");
    }
    let received = ends.count(1, |event| matches!(event, Event::Received { .. }));
    assert_eq!(received, 3, "each message came once");
    assert_eq!(ends.one.quarantined_bytes(), 0);
}

#[test]
fn who_did_not_hear_the_last_answer_learns_that_it_is_over() {
    the_last_answer_is_lost(None, PathKind::Write);
    // Slots that only an acknowledgement frees are free as well.
    the_last_answer_is_lost(None, PathKind::SendFile);
}

#[test]
fn and_with_a_key_too() {
    the_last_answer_is_lost(Key::new(b"a key of thirty-two bytes, or so").ok(), PathKind::Write);
}
