//! Pairs of sockets and bytes to send, for the tests of the wire of the kernel's sockets.
#![allow(dead_code, reason = "not every test needs all of it")]

mod sys;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

#[allow(unused_imports, reason = "not every test needs both")]
pub(crate) use sys::{Slab, restore_pipe_signal};

/// What no test waits longer for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The ways to connect two sockets of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pair {
    V4,
    V6,
    /// A socket of IPv6 with an address of IPv4.
    Mapped,
    Unix,
}

impl Pair {
    pub(crate) const ALL: [Self; 4] = [Self::V4, Self::V6, Self::Mapped, Self::Unix];

    /// Two connected sockets, with buffers of that size if one is given.
    pub(crate) fn connect(self, buffer_bytes: Option<usize>) -> (OwnedFd, OwnedFd) {
        let sized = |socket: &OwnedFd| {
            if let Some(bytes) = buffer_bytes {
                rustix::net::sockopt::set_socket_send_buffer_size(socket, bytes).expect("SO_SNDBUF");
                rustix::net::sockopt::set_socket_recv_buffer_size(socket, bytes).expect("SO_RCVBUF");
            }
        };
        if self == Self::Unix {
            let flags = SocketFlags::CLOEXEC;
            let pair = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None);
            let (near, far) = pair.expect("a pair of sockets");
            sized(&near);
            sized(&far);
            return (near, far);
        }
        let far: SocketAddr = match self {
            Self::V6 => SocketAddrV6::new(Ipv6Addr::LOCALHOST, 0, 0, 0).into(),
            _ => SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0).into(),
        };
        let family = |address: &SocketAddr| match address {
            SocketAddr::V4(_) => AddressFamily::INET,
            SocketAddr::V6(_) => AddressFamily::INET6,
        };
        let socket = |family| {
            let made = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None);
            let socket = made.expect("a socket");
            sized(&socket);
            socket
        };
        let listener = socket(family(&far));
        rustix::net::bind(&listener, &far).expect("bind");
        rustix::net::listen(&listener, 1).expect("listen");
        let bound = rustix::net::getsockname(&listener).expect("getsockname");
        let mut to = SocketAddr::try_from(bound).expect("an address");
        if self == Self::Mapped {
            to = SocketAddrV6::new(Ipv4Addr::LOCALHOST.to_ipv6_mapped(), to.port(), 0, 0).into();
        }
        let near = socket(family(&to));
        rustix::net::connect(&near, &to).expect("connect");
        let accepted = rustix::net::accept_with(&listener, SocketFlags::CLOEXEC).expect("accept");
        (near, accepted)
    }
}

/// Waits until one of the descriptors has what is asked of it, and fails after a while.
pub(crate) fn wait(descriptors: &[(&dyn AsFd, PollFlags)]) {
    let deadline = Instant::now() + PATIENCE;
    let mut polled: Vec<PollFd<'_>> =
        descriptors.iter().map(|&(fd, flags)| PollFd::from_borrowed_fd(fd.as_fd(), flags)).collect();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).expect("a time");
        match rustix::event::poll(&mut polled, Some(&left)) {
            Ok(0) => panic!("nothing came in {PATIENCE:?}"),
            Err(rustix::io::Errno::INTR) => {}
            other => {
                other.expect("poll");
                return;
            }
        }
    }
}

/// Waits until `done` says so, and fails after a while.
pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "still waiting after {PATIENCE:?}: {what}");
        std::thread::yield_now();
    }
}

/// Numbers that follow from a seed (xorshift).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}
