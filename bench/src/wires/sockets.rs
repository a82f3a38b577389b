//! Connected sockets across a wire.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, acceptfrom_with, bind, connect, getsockname, listen, socket_with,
    socketpair, sockopt,
};

use super::{Family, Route, Side, Wire, WireError, WireKind, failed, sys, wait_for};

/// The congestion control of every connection that may have it.
pub(super) const CONGESTION: &str = "cubic";

/// How long a connection may take to come about.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connected stream.
#[derive(Debug)]
pub struct Streams {
    /// The sender's end; it blocks.
    pub sender: OwnedFd,
    /// The receiver's end; it blocks.
    pub receiver: OwnedFd,
    /// The congestion control of the sender's end and of the receiver's, to be printed beside figures; none on Unix.
    pub congestion: Option<[String; 2]>,
}

/// Two datagram sockets, each connected to the other.
#[derive(Debug)]
pub struct Datagrams {
    /// The sender's end; it blocks.
    pub sender: OwnedFd,
    /// The receiver's end; it blocks. While a wire leads into a sink, nothing comes.
    pub receiver: OwnedFd,
}

impl Datagrams {
    /// Makes the sender cut what it is given into datagrams of so many bytes (GSO); 0 ends that.
    ///
    /// # Errors
    /// If it is no UDP socket.
    pub fn set_segment_bytes(&self, bytes: u16) -> Result<(), WireError> {
        sys::set_segment_bytes(self.sender.as_fd(), bytes).map_err(failed("setsockopt(UDP_SEGMENT)"))
    }
}

impl Wire {
    /// A connected stream over IPv4: TCP, or a pair of Unix sockets on [`WireKind::Unix`].
    ///
    /// # Errors
    /// If the wire leads into a sink, the system refuses, or no connection comes about in some seconds.
    pub fn streams(&self) -> Result<Streams, WireError> {
        self.streams_over(Family::V4)
    }

    /// The same over this version of the Internet protocol.
    ///
    /// # Errors
    /// As [`streams`](Self::streams).
    pub fn streams_over(&self, family: Family) -> Result<Streams, WireError> {
        let Some(far) = self.address(Side::Receiver, family) else {
            let (sender, receiver) = unix(SocketType::STREAM)?;
            return Ok(Streams { sender, receiver, congestion: None });
        };
        if self.kind() == WireKind::Ifb && self.regime().route == Route::Sink {
            return Err(self.has_no("receiver for streams while its route leads into the sink"));
        }
        let (listener, at) = self.enter(Side::Receiver, || {
            let listener = tcp(far)?;
            bind(&listener, &SocketAddr::new(far, 0)).map_err(call("bind"))?;
            listen(&listener, 16).map_err(call("listen"))?;
            let at = local(&listener)?;
            Ok::<_, WireError>((listener, at))
        })??;
        let sender = self.enter(Side::Sender, || {
            let sender = tcp(far)?;
            match connect(&sender, &at) {
                Ok(()) | Err(Errno::INPROGRESS) => Ok(sender),
                Err(errno) => Err(call("connect")(errno)),
            }
        })??;
        let slow = || WireError::Slow { what: "connecting", seconds: PATIENCE.as_secs() };
        if !wait_for(sender.as_fd(), PollFlags::OUT, PATIENCE).map_err(call("poll"))? {
            return Err(slow());
        }
        sockopt::socket_error(&sender).map_err(call("getsockopt(SO_ERROR)"))?.map_err(call("connect"))?;
        let ours = local(&sender)?;
        let deadline = Instant::now() + PATIENCE;
        let receiver = loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || !wait_for(listener.as_fd(), PollFlags::IN, left).map_err(call("poll"))? {
                return Err(slow());
            }
            match acceptfrom_with(&listener, SocketFlags::CLOEXEC) {
                Ok((receiver, peer)) => {
                    // On the host's loopback anybody may have connected.
                    if peer.and_then(|peer| SocketAddr::try_from(peer).ok()) == Some(ours) {
                        break receiver;
                    }
                }
                Err(Errno::INTR | Errno::AGAIN | Errno::CONNABORTED) => {}
                Err(errno) => return Err(call("accept4")(errno)),
            }
        };
        rustix::io::ioctl_fionbio(&sender, false).map_err(call("ioctl(FIONBIO)"))?;
        let control = |socket: &OwnedFd| sockopt::tcp_congestion(socket).map_err(call("getsockopt(TCP_CONGESTION)"));
        let congestion = Some([control(&sender)?, control(&receiver)?]);
        Ok(Streams { sender, receiver, congestion })
    }

    /// Two connected datagram sockets over IPv4: UDP, or a pair of Unix sockets on [`WireKind::Unix`].
    ///
    /// # Errors
    /// If the system refuses.
    pub fn datagrams(&self) -> Result<Datagrams, WireError> {
        self.datagrams_over(Family::V4)
    }

    /// The same over this version of the Internet protocol.
    ///
    /// # Errors
    /// As [`datagrams`](Self::datagrams).
    pub fn datagrams_over(&self, family: Family) -> Result<Datagrams, WireError> {
        let addresses = (self.address(Side::Sender, family), self.address(Side::Receiver, family));
        let (Some(near), Some(far)) = addresses else {
            let (sender, receiver) = unix(SocketType::DGRAM)?;
            return Ok(Datagrams { sender, receiver });
        };
        let open = |at: IpAddr| {
            let socket = socket_with(domain(at), SocketType::DGRAM, SocketFlags::CLOEXEC, None)
                .map_err(call("socket(SOCK_DGRAM)"))?;
            bind(&socket, &SocketAddr::new(at, 0)).map_err(call("bind"))?;
            let at = local(&socket)?;
            Ok::<_, WireError>((socket, at))
        };
        let (receiver, far) = self.enter(Side::Receiver, || open(far))??;
        let (sender, near) = self.enter(Side::Sender, || open(near))??;
        connect(&sender, &far).map_err(call("connect"))?;
        connect(&receiver, &near).map_err(call("connect"))?;
        Ok(Datagrams { sender, receiver })
    }
}

fn unix(kind: SocketType) -> Result<(OwnedFd, OwnedFd), WireError> {
    socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).map_err(call("socketpair"))
}

/// A socket for TCP that does not block, with the congestion control of all connections if it may have it.
fn tcp(address: IpAddr) -> Result<OwnedFd, WireError> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(domain(address), SocketType::STREAM, flags, None).map_err(call("socket(SOCK_STREAM)"))?;
    match sockopt::set_tcp_congestion(&socket, CONGESTION) {
        // A host may keep it from users, or not have it. What is in force is read back and handed out.
        Ok(()) | Err(Errno::PERM | Errno::NOENT) => Ok(socket),
        Err(errno) => Err(call("setsockopt(TCP_CONGESTION)")(errno)),
    }
}

fn domain(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 }
}

fn local(socket: &OwnedFd) -> Result<SocketAddr, WireError> {
    let address = getsockname(socket).map_err(call("getsockname"))?;
    SocketAddr::try_from(address).map_err(call("getsockname"))
}

/// Names the call of a system error.
fn call(name: &'static str) -> impl Fn(Errno) -> WireError {
    move |errno| failed(name)(io::Error::from(errno))
}
