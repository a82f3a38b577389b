//! The kernel calls of a datagram socket.
//!
//! Every unsafe block here relies on this: what a call is given lives across it, with the length that it is told; and
//! the kernel only reads the bytes that are sent, also after the call, where a path shares pages. Whether they still
//! mean what they meant is the caller's business, and no matter of memory safety: the kernel holds the pages.
#![allow(unsafe_code)]

use core::mem::MaybeUninit;
use std::io::{IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::{Errno, Result, retry_on_intr};
use rustix::net::SocketAddrAny;

/// `UDP_SEGMENT` and `UDP_GRO` of linux/udp.h, which libc does not name for all C libraries.
const UDP_SEGMENT: libc::c_int = 103;
const UDP_GRO: libc::c_int = 104;
/// Control data of a call: one word with its header takes 24 bytes.
const CONTROL_BYTES: usize = 64;

#[repr(C, align(8))]
struct Control([u8; CONTROL_BYTES]);

/// The control data of a send that consists of several datagrams.
#[repr(align(8))]
#[derive(Default)]
pub(crate) struct SegmentControl([u8; SegmentControl::BYTES]);

impl SegmentControl {
    const WORD: usize = size_of::<usize>();
    /// A length, a level and a type.
    const HEAD: usize = (Self::WORD + 8).next_multiple_of(Self::WORD);
    const BYTES: usize = Self::HEAD + Self::WORD;

    /// Says how long each datagram is.
    pub(crate) fn say(&mut self, segment: u16) -> &[u8] {
        let Self(bytes) = self;
        bytes[..Self::WORD].copy_from_slice(&(Self::HEAD + 2).to_ne_bytes());
        bytes[Self::WORD..Self::WORD + 4].copy_from_slice(&libc::SOL_UDP.to_ne_bytes());
        bytes[Self::WORD + 4..Self::WORD + 8].copy_from_slice(&UDP_SEGMENT.to_ne_bytes());
        bytes[Self::HEAD..Self::HEAD + 2].copy_from_slice(&segment.to_ne_bytes());
        bytes
    }
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Sends the slices as one datagram, or, with `segment`, as datagrams of that many bytes of which the last may have
/// fewer. Nothing is accepted in part.
pub(super) fn send(
    socket: BorrowedFd<'_>,
    to: Option<&SocketAddrAny>,
    slices: &[IoSlice<'_>],
    segment: Option<u16>,
    zero_copy: bool,
) -> Result<()> {
    // SAFETY: a header of zeros is a valid one, of a message without parts.
    let mut header: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    if let Some(to) = to {
        header.msg_name = to.as_ptr().cast_mut().cast();
        header.msg_namelen = to.addr_len();
    }
    // An `IoSlice` is an `iovec`, as its documentation promises. The kernel does not write through these.
    header.msg_iov = slices.as_ptr().cast_mut().cast();
    header.msg_iovlen = slices.len() as _;
    let mut control = SegmentControl::default();
    if let Some(segment) = segment {
        // The kernel does not write there.
        let words = control.say(segment);
        header.msg_control = words.as_ptr().cast_mut().cast();
        header.msg_controllen = words.len() as _;
    }
    let zero_copy = if zero_copy { libc::MSG_ZEROCOPY } else { 0 };
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL | zero_copy;
    retry_on_intr(|| {
        // SAFETY: the header's name, slices and control data live across the call and have the lengths it says.
        let answer = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const header, flags) };
        if answer < 0 { Err(last_error()) } else { Ok(()) }
    })
}

/// What a call received.
#[derive(Clone, Copy, Debug)]
pub(super) struct Received {
    /// Bytes of all datagrams.
    pub(super) bytes: usize,
    /// Bytes of each datagram but the last, which may have fewer.
    pub(super) segment: usize,
    /// From where they came.
    pub(super) from: Option<SocketAddr>,
    /// Whether there was not room for all bytes.
    pub(super) was_cut: bool,
}

/// Receives a datagram, or several of one sender that the kernel joined.
pub(super) fn receive(socket: BorrowedFd<'_>, buffers: &mut [IoSliceMut<'_>]) -> Result<Received> {
    let mut name = MaybeUninit::<libc::sockaddr_storage>::zeroed();
    let mut control = Control([0; CONTROL_BYTES]);
    // SAFETY: a header of zeros is a valid one, of a message without parts.
    let mut header: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    header.msg_name = name.as_mut_ptr().cast();
    // An `IoSliceMut` is an `iovec`, as its documentation promises.
    header.msg_iov = buffers.as_mut_ptr().cast();
    header.msg_iovlen = buffers.len() as _;
    header.msg_control = control.0.as_mut_ptr().cast();
    let bytes = retry_on_intr(|| {
        header.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
        header.msg_controllen = CONTROL_BYTES as _;
        // SAFETY: the header's name, slices and control data live across the call, are ours to write, and have the
        // lengths it says.
        let answer = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, libc::MSG_DONTWAIT) };
        usize::try_from(answer).map_err(|_| last_error())
    })?;
    let from = (header.msg_namelen > 0).then(|| {
        // SAFETY: the kernel wrote so many bytes of an address there, and the rest is zeros.
        unsafe { SocketAddrAny::read(name.as_ptr().cast(), header.msg_namelen) }
    });
    #[allow(clippy::unnecessary_cast, reason = "the type differs between C libraries")]
    let length = (header.msg_controllen as usize).min(CONTROL_BYTES);
    Ok(Received {
        bytes,
        segment: segment_of(&control.0[..length]).unwrap_or(bytes),
        from: from.and_then(|from| SocketAddr::try_from(from).ok()),
        was_cut: header.msg_flags & libc::MSG_TRUNC != 0,
    })
}

/// The size of segments that the control data of a receive names.
fn segment_of(control: &[u8]) -> Option<usize> {
    const WORD: usize = size_of::<usize>();
    let header = (WORD + 8).next_multiple_of(WORD);
    let int = |at: usize| Some(i32::from_ne_bytes(control.get(at..at + 4)?.try_into().ok()?));
    let is_ours = int(WORD)? == libc::SOL_UDP && int(WORD + 4)? == UDP_GRO;
    is_ours.then(|| int(header)).flatten().and_then(|bytes| usize::try_from(bytes).ok()).filter(|&bytes| bytes > 0)
}

fn get(socket: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int) -> Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the value is as long as `length` says.
    let answer = unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut length) };
    if answer == 0 { Ok(value) } else { Err(last_error()) }
}

fn set(socket: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> Result<()> {
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the value is as long as `length` says.
    let answer = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), length) };
    if answer == 0 { Ok(()) } else { Err(last_error()) }
}

/// Has the kernel join datagrams of one sender and size.
pub(super) fn set_gro(socket: BorrowedFd<'_>) -> Result<()> {
    set(socket, libc::SOL_UDP, UDP_GRO, 1)
}

/// Whether the kernel cuts what it is given into datagrams: it knows the option.
pub(super) fn knows_gso(socket: BorrowedFd<'_>) -> Result<()> {
    get(socket, libc::SOL_UDP, UDP_SEGMENT).map(|_| ())
}

/// Has the kernel refuse what does not fit the path instead of cutting it into fragments.
pub(super) fn set_no_fragments(socket: BorrowedFd<'_>, is_ipv6: bool) -> Result<()> {
    if is_ipv6 {
        set(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO)
    } else {
        set(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO)
    }
}

/// The largest packet that the path of a connected socket takes, as far as the kernel knows.
pub(super) fn path_mtu(socket: BorrowedFd<'_>, is_ipv6: bool) -> Result<usize> {
    let mtu = if is_ipv6 {
        get(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU)
    } else {
        get(socket, libc::IPPROTO_IP, libc::IP_MTU)
    };
    mtu.map(|mtu| usize::try_from(mtu).unwrap_or(0))
}

/// Asks for room for what is received and sent, past the limit where that is allowed.
pub(super) fn set_buffers(socket: BorrowedFd<'_>, bytes: usize) {
    let bytes = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    for (force, plain) in [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)] {
        // Only an administrator may force it; whoever may not gets what the limit allows, and the facts say how much.
        let _ = set(socket, libc::SOL_SOCKET, force, bytes).or_else(|_| set(socket, libc::SOL_SOCKET, plain, bytes));
    }
}
