//! The side that asks servers that speak a length of 8 bytes, little-endian, before each message: plain sockets and one
//! epoll descriptor.

use std::io::IoSlice;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;

use super::{ConnectionsOptions, Load, LoadError, Tally, system};

/// The length before a message.
const PREFIX_BYTES: usize = 8;
/// Events of one look, as [`StreamTransport`](zcmi_net::stream::StreamTransport) takes.
const EVENTS: usize = 256;
/// What is read at a time.
const READ_BYTES: usize = 256 << 10;

struct Asked {
    bytes: usize,
    sent: usize,
    received: usize,
    begun: Instant,
}

struct Connection {
    socket: OwnedFd,
    asked: Option<Asked>,
}

/// The side that asks.
pub(super) struct Plain {
    epoll: OwnedFd,
    connections: Vec<Connection>,
    gathered: Vec<epoll::Event>,
    buffer: Vec<u8>,
    tally: Tally,
}

impl Plain {
    pub(super) fn open(address: &str, options: &ConnectionsOptions) -> Result<Self, LoadError> {
        let not_there = |_| LoadError::Closed(format!("{address} is no address"));
        let address: SocketAddr = address.parse().map_err(not_there)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(system("epoll_create"))?;
        let (mut connections, mut tally) = (Vec::new(), Tally::new(options));
        for number in 0..options.connections {
            let failed = |call: &'static str| move |source| LoadError::System { call, source };
            let socket = super::dial(address, &mut tally)?;
            socket.set_nodelay(true).map_err(failed("setsockopt(TCP_NODELAY)"))?;
            socket.set_nonblocking(true).map_err(failed("ioctl(FIONBIO)"))?;
            let socket = OwnedFd::from(socket);
            let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
            epoll::add(&epoll, &socket, EventData::new_u64(number as u64), flags).map_err(system("epoll_ctl"))?;
            connections.push(Connection { socket, asked: None });
        }
        let (gathered, buffer) = (Vec::with_capacity(EVENTS), vec![0; READ_BYTES]);
        Ok(Self { epoll, connections, gathered, buffer, tally })
    }
}

impl Connection {
    /// Notes that it asks, and sends what goes out at once.
    fn ask(&mut self, tally: &mut Tally) -> Result<(), LoadError> {
        let bytes = tally.issue();
        self.asked = Some(Asked { bytes, sent: 0, received: 0, begun: Instant::now() });
        self.send(tally)
    }

    fn send(&mut self, tally: &Tally) -> Result<(), LoadError> {
        let Some(asked) = &mut self.asked else { return Ok(()) };
        let (prefix, all) = ((asked.bytes as u64).to_le_bytes(), PREFIX_BYTES + asked.bytes);
        while asked.sent < all {
            let head = &prefix[asked.sent.min(PREFIX_BYTES)..];
            let body = &tally.pattern[asked.sent.saturating_sub(PREFIX_BYTES)..asked.bytes];
            match rustix::io::writev(&self.socket, &[IoSlice::new(head), IoSlice::new(body)]) {
                Ok(sent) => asked.sent += sent,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(system("writev")(errno)),
            }
        }
        Ok(())
    }

    /// Receives what is there, and says whether that ended the answer.
    fn receive(&mut self, buffer: &mut [u8], tally: &mut Tally) -> Result<bool, LoadError> {
        let Some(asked) = &mut self.asked else { return Ok(false) };
        let (prefix, all) = ((asked.bytes as u64).to_le_bytes(), PREFIX_BYTES + asked.bytes);
        while asked.received < all {
            let room = buffer.len().min(all - asked.received);
            let read = match rustix::io::read(&self.socket, &mut buffer[..room]) {
                Ok(0) => return Err(LoadError::Closed("the server ended it".into())),
                Ok(read) => read,
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(system("read")(errno)),
            };
            let of_prefix = PREFIX_BYTES.saturating_sub(asked.received).min(read);
            if buffer[..of_prefix] != prefix[asked.received.min(PREFIX_BYTES)..][..of_prefix] {
                return Err(LoadError::Wrong { at: 0, bytes: of_prefix });
            }
            tally.check(asked.received.saturating_sub(PREFIX_BYTES), &buffer[of_prefix..read])?;
            asked.received += read;
        }
        tally.answer(asked.bytes, asked.begun);
        self.asked = None;
        Ok(true)
    }
}

impl Load for Plain {
    fn begin(&mut self) -> Result<(), LoadError> {
        for connection in self.connections.iter_mut().filter(|connection| connection.asked.is_none()) {
            connection.ask(&mut self.tally)?;
        }
        Ok(())
    }

    fn turn(&mut self, asks: bool) -> Result<(), LoadError> {
        let wait = Timespec { tv_sec: 0, tv_nsec: Duration::from_millis(100).as_nanos() as i64 };
        self.gathered.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut self.gathered), Some(&wait)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(system("epoll_wait")(errno)),
        }
        for event in &self.gathered {
            let Some(connection) = self.connections.get_mut(event.data.u64() as usize) else { continue };
            connection.send(&self.tally)?;
            if connection.receive(&mut self.buffer, &mut self.tally)? && asks {
                connection.ask(&mut self.tally)?;
            }
        }
        Ok(())
    }

    fn tally(&mut self) -> &mut Tally {
        &mut self.tally
    }
}
