//! A transport that listens, a good peer that goes on talking to it, and strangers on sockets of their own.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use zcmi_net::frame::{HELLO_BYTES, Header, Hello, Kind};
use zcmi_net::outgoing::Token;
use zcmi_net::stream::{Address, StreamOptions, StreamTransport};
use zcmi_net::transport::{ConnectionId, Destination, Event, Transport};

use crate::dice::Dice;
use crate::hostile::{content, is_content};

/// How long a test waits for what must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A good peer: what it sends arrives once and in order, whatever others do.
pub(crate) struct Good {
    pub(crate) transport: StreamTransport,
    pub(crate) connection: ConnectionId,
    pub(crate) sent: u64,
    pub(crate) completed: u64,
    session: u64,
}

/// A listening transport, and what came to it.
pub(crate) struct Stage {
    pub(crate) server: StreamTransport,
    pub(crate) address: Address,
    pub(crate) options: StreamOptions,
    /// How many whole messages came of each good peer, which their tags name.
    pub(crate) received: HashMap<u64, u64>,
    partial: HashMap<ConnectionId, (u64, usize)>,
    /// Whatever else the server was told.
    pub(crate) told: Vec<Event>,
    events: Vec<Event>,
    next_session: u64,
}

/// Bit 63 of a tag says that a good peer sent it; then come its number, and the message's.
const GOOD: u64 = 1 << 63;

impl Stage {
    pub(crate) fn new(options: &StreamOptions) -> Self {
        let mut server = StreamTransport::new(options.clone()).expect("a transport");
        let (_, address) = server.listen(&"127.0.0.1:0".parse().expect("an address")).expect("a listener");
        Self {
            server,
            address,
            options: options.clone(),
            received: HashMap::new(),
            partial: HashMap::new(),
            told: Vec::new(),
            events: Vec::new(),
            next_session: 0,
        }
    }

    /// A good peer that connects.
    pub(crate) fn good(&mut self) -> Good {
        let mut transport = StreamTransport::new(self.options.clone()).expect("a transport");
        let connection = transport.connect(&self.address).expect("a connection");
        self.next_session += 1;
        Good { transport, connection, sent: 0, completed: 0, session: self.next_session }
    }

    /// One turn of the server.
    pub(crate) fn poll(&mut self) {
        self.server.poll(&mut self.events, Some(Duration::ZERO)).expect("the transport goes on");
        for event in core::mem::take(&mut self.events) {
            let Event::Received { connection, piece } = event else {
                self.told.push(event);
                continue;
            };
            if piece.tag & GOOD == 0 {
                continue;
            }
            let (tag, at) = self.partial.remove(&connection).unwrap_or((piece.tag, 0));
            assert_eq!((tag, at), (piece.tag, piece.offset as usize), "pieces come in order");
            assert!(is_content(tag, piece.offset, &piece.lease), "message {tag:#x} is wrong");
            if piece.is_last() {
                let session = (tag & !GOOD) >> 40;
                let received = self.received.entry(session).or_default();
                assert_eq!(*received, tag & ((1 << 40) - 1), "messages of {session} come once and in order");
                *received += 1;
            } else {
                self.partial.insert(connection, (tag, at + piece.lease.byte_len()));
            }
        }
    }

    /// Turns of both until `done`.
    pub(crate) fn until(&mut self, what: &str, good: &mut Good, mut done: impl FnMut(&mut Self, &mut Good) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(self, good) {
            assert!(Instant::now() < deadline, "{what}: not in {PATIENCE:?}; {:?}", self.server);
            self.poll();
            good.poll();
        }
    }

    /// Sends one message and waits until it is received and completed. How long that took.
    pub(crate) fn round(&mut self, good: &mut Good, bytes: usize) -> Duration {
        let begin = Instant::now();
        good.submit(bytes);
        self.until("a round", good, |_, good| good.completed == good.sent);
        assert_eq!(self.received[&good.session], good.sent, "completed is received");
        begin.elapsed()
    }
}

impl Good {
    /// Submits the next message.
    pub(crate) fn submit(&mut self, bytes: usize) {
        let tag = GOOD | self.session << 40 | self.sent;
        let mut lease = self.transport.loan(bytes).expect("a slot");
        content(tag, 0, &mut lease);
        let to = Destination::new(self.connection).tag(tag);
        self.transport.submit(to, lease.into(), Token(self.sent)).expect("the message is taken");
        self.sent += 1;
    }

    /// One turn; a good connection never breaks.
    pub(crate) fn poll(&mut self) {
        let mut events = Vec::new();
        self.transport.poll(&mut events, Some(Duration::ZERO)).expect("the transport goes on");
        for event in events {
            match event {
                Event::Connected { .. } => {}
                Event::Completed { token, .. } => {
                    assert_eq!(token, Token(self.completed), "messages complete in order");
                    self.completed += 1;
                }
                Event::PathRefused { .. } => {}
                other => panic!("a good peer was told {other:?}"),
            }
        }
    }
}

/// A hello that an honest peer might send.
pub(crate) fn hello(dice: &mut Dice, granted: [u32; 2]) -> Hello {
    let mut bytes = || core::array::from_fn::<u8, 16, _>(|_| dice.next() as u8);
    Hello {
        incarnation: bytes(),
        session: bytes(),
        epoch: 0,
        resume_from: 0,
        small_bytes: 1000,
        slot_bytes: 50_000,
        streams: 4,
        granted,
        nonce: [7; 32],
        proof: [0; 32],
    }
}

/// A frame of `length` bytes, all of a message, as the first of an epoch.
pub(crate) fn first_frame(length: u32) -> Header {
    Header { message_bytes: length, length, ..Header::empty(Kind::Data) }
}

/// A socket of somebody whom nobody knows.
pub(crate) fn stranger(address: &Address) -> TcpStream {
    let Address::Tcp(address) = address else { panic!("{address} is no TCP address") };
    let address: SocketAddr = *address;
    let stream = TcpStream::connect(address).expect("the listener's queue has room");
    stream.set_nodelay(true).expect("an option");
    stream
}

/// Breaks a connection off with a reset.
pub(crate) fn reset(stream: TcpStream) {
    rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).expect("an option");
    drop(stream);
}

/// A stranger that has greeted, and the server's hello.
pub(crate) fn greeted(stage: &mut Stage, good: &mut Good, hello: &Hello) -> (TcpStream, Hello) {
    let mut stream = stranger(&stage.address);
    stream.write_all(&hello.encode()).expect("room");
    stream.set_nonblocking(true).expect("an option");
    let (mut answer, mut read) = ([0; HELLO_BYTES], 0);
    stage.until("an answer to a hello", good, |_, _| {
        match stream.read(&mut answer[read..]) {
            Ok(0) => panic!("the server hung up"),
            Ok(bytes) => read += bytes,
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "{error}"),
        }
        read == HELLO_BYTES
    });
    (stream, Hello::decode(&answer).expect("the server speaks the protocol"))
}

/// How many descriptors this process has.
pub(crate) fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("procfs").count()
}
