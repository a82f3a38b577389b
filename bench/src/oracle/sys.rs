//! The kernel calls of the oracle: pages that the kernel may read while they change, and the plainest ways to send
//! them.
//!
//! Every unsafe block here relies on one of these facts: a [`Mapping`] owns its range of addresses from the call that
//! made it to its drop; its bytes are reached by a reference only inside a single call, while `&mut` on the source
//! keeps them from being changed through the file; and a call gets pointers into values that live over the call.
#![allow(unsafe_code)]

use core::ffi::{c_int, c_void};
use core::ptr::{NonNull, null_mut};
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// `SIOCOUTQNSD`, include/uapi/linux/sockios.h: what TCP has not sent yet.
const SIOCOUTQNSD: libc::c_ulong = 0x894b;
/// The origin of notices of `MSG_ZEROCOPY`, include/uapi/linux/errqueue.h.
const SO_EE_ORIGIN_ZEROCOPY: u8 = 5;

/// A shared mapping of a whole file.
#[derive(Debug)]
pub(super) struct Mapping {
    at: NonNull<c_void>,
    bytes: usize,
}

// SAFETY: it owns its range, and nothing in it belongs to a thread.
unsafe impl Send for Mapping {}
// SAFETY: through a shared reference the range is only read.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first bytes of a file, which must be as long and never shrink.
    pub(super) fn of(file: BorrowedFd<'_>, bytes: usize) -> io::Result<Self> {
        let rights = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: at an address of the kernel's choice, so that nothing is replaced.
        let at = unsafe { mmap(null_mut(), bytes, rights, MapFlags::SHARED, file, 0) }?;
        NonNull::new(at).map(|at| Self { at, bytes }).ok_or_else(|| io::Error::other("mmap at address 0"))
    }

    /// The bytes, which nobody changes while this reference lives.
    pub(super) fn as_slice(&self) -> &[u8] {
        // SAFETY: the range is mapped, readable, as long as `self`, and lies in a memfd of that length; who changes it
        // needs `&mut` on the source that owns `self`.
        unsafe { core::slice::from_raw_parts(self.at.as_ptr().cast::<u8>(), self.bytes) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is owned by `self`, and no reference into it outlives `self`.
        let unmapped = unsafe { munmap(self.at.as_ptr(), self.bytes) };
        // It fails only for a range that is none.
        debug_assert!(unmapped.is_ok(), "munmap: {unmapped:?}");
    }
}

/// Lets a socket send with `MSG_ZEROCOPY`.
pub(super) fn allow_zero_copy(socket: BorrowedFd<'_>) -> io::Result<()> {
    let on: c_int = 1;
    let at: *const c_int = &raw const on;
    let bytes = size_of::<c_int>() as libc::socklen_t;
    // SAFETY: the kernel reads one int at `at`, which lives over the call.
    let set = unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ZEROCOPY, at.cast(), bytes) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sends with `MSG_ZEROCOPY`, without waiting for room.
pub(super) fn send_zero_copy(socket: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_ZEROCOPY | libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the kernel reads `bytes.len()` bytes there. It goes on reading the pages after the call, which is what is
    // looked at: it holds them itself, and a change of them makes wrong bytes on the wire and no wrong access.
    let sent = unsafe { libc::send(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Puts pages into a pipe, without waiting for room.
pub(super) fn vmsplice(pipe: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    let pages = IoSlice::new(bytes);
    let at: *const IoSlice<'_> = &raw const pages;
    // SAFETY: an `IoSlice` has the layout of an iovec, and this one lives over the call; of the pages holds what is
    // said at `send_zero_copy`. No pages are given away.
    let put = unsafe { libc::vmsplice(pipe.as_raw_fd(), at.cast(), 1, libc::SPLICE_F_NONBLOCK) };
    usize::try_from(put).map_err(|_| io::Error::last_os_error())
}

/// How many bytes a TCP socket was given and has not sent.
pub(super) fn unsent(socket: BorrowedFd<'_>) -> io::Result<usize> {
    let mut bytes: c_int = 0;
    let at: *mut c_int = &raw mut bytes;
    // SAFETY: the kernel writes one int at `at`, which lives over the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), SIOCOUTQNSD, at) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `at` points to `bytes`, which is alive, and the call is over.
    let bytes = unsafe { at.read() };
    usize::try_from(bytes).map_err(io::Error::other)
}

/// A message of the error queue: the extended error, and room for the address that may follow it.
#[repr(C, align(8))]
struct Control([u8; 256]);

/// Takes one notice of `MSG_ZEROCOPY` from the error queue: the numbers of the first and last send, and the code.
/// `WouldBlock` if there is none.
pub(super) fn zero_copy_notice(socket: BorrowedFd<'_>) -> io::Result<Option<(u32, u32, u8)>> {
    let mut control = Control([0; 256]);
    // SAFETY: all-zero bytes are a message header without name, buffers and control.
    let mut message: libc::msghdr = unsafe { core::mem::zeroed() };
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len();
    let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
    // SAFETY: the header points to nothing but `control`, of which it tells the length; both live over the call.
    if unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the header is as the kernel left it, and `control` is alive.
    let mut at = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !at.is_null() {
        // SAFETY: the macros give only headers that lie whole in `control`, which is aligned for them.
        let header = unsafe { at.read() };
        // SAFETY: as above.
        let data = unsafe { libc::CMSG_DATA(at) };
        let is_error = (header.cmsg_level == libc::SOL_IP && header.cmsg_type == libc::IP_RECVERR)
            || (header.cmsg_level == libc::SOL_IPV6 && header.cmsg_type == libc::IPV6_RECVERR);
        let room = control.0.as_ptr().addr() + control.0.len() - data.addr();
        if is_error && room >= size_of::<libc::sock_extended_err>() {
            // SAFETY: that many bytes of `control` lie there (looked at above), and any bytes are such a value.
            let error = unsafe { data.cast::<libc::sock_extended_err>().read_unaligned() };
            let notice = (error.ee_info, error.ee_data, error.ee_code);
            return Ok((error.ee_errno == 0 && error.ee_origin == SO_EE_ORIGIN_ZEROCOPY).then_some(notice));
        }
        // SAFETY: as above.
        at = unsafe { libc::CMSG_NXTHDR(&raw const message, at) };
    }
    Ok(None)
}
