//! The kernel calls of a socket's wire.
//!
//! Every unsafe block here relies on this: what a call is given lives across it, with the length that it is told; and
//! the kernel only reads the bytes that are sent, also after the call, where a path shares pages. Whether they still
//! mean what they meant is the caller's business, and no matter of memory safety: the kernel holds the pages.
//!
//! In unit tests each call asks the module `fault` first, which can make it fail, do less than it was asked to, or lie.
#![allow(unsafe_code)]

use core::mem::MaybeUninit;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno, Result, retry_on_intr};
use rustix::net::{RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendFlags};
use rustix::pipe::{IoSliceRaw, PipeFlags, SpliceFlags};

/// `SO_ZEROCOPY` of asm-generic/socket.h, which libc does not name for all C libraries.
const SO_ZEROCOPY: libc::c_int = 60;
/// How many messages are taken from the error queue at once. The kernel joins reports that follow each other, so that
/// there are seldom more than two.
pub(super) const BATCH: usize = 8;
/// A report and the offender's address take 64 bytes of control data; the rest is for what else a socket was asked to
/// tell.
const CONTROL_BYTES: usize = 128;
/// How large a wire's pipe is made, where the user's limit allows it.
const PIPE_BYTES: usize = 256 << 10;

/// The calls that tests can make fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    SetZeroCopy,
    SendMessage,
    SendFile,
    MakePipe,
    FillPipe,
    Splice,
    ErrorQueue,
    Receive,
    ShutDown,
}

/// How many bytes the call may be made for; `None` if it is to say that all went well without having been made.
#[cfg(test)]
fn gate(call: Call) -> Result<Option<usize>> {
    use super::fault::Fault;

    match super::fault::take(call) {
        Fault::Errno(errno) => Err(errno),
        Fault::Short(bytes) => Ok(Some(bytes)),
        Fault::Lie => Ok(None),
        Fault::None => Ok(Some(usize::MAX)),
    }
}

#[cfg(not(test))]
#[inline]
fn gate(_call: Call) -> Result<Option<usize>> {
    Ok(Some(usize::MAX))
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Sends at once what fits, or says that nothing does.
pub(super) fn send(socket: BorrowedFd<'_>, bytes: &[IoSlice<'_>], more: bool, zero_copy: bool) -> Result<usize> {
    let mut flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    if more {
        flags |= SendFlags::MORE;
    }
    if zero_copy {
        flags |= SendFlags::from_bits_retain(libc::MSG_ZEROCOPY.cast_unsigned());
    }
    let whole = |bytes: &[IoSlice<'_>]| match bytes {
        // The kernel has less to read and to check.
        [one] => retry_on_intr(|| rustix::net::send(socket, one, flags)),
        _ => retry_on_intr(|| rustix::net::sendmsg(socket, bytes, &mut SendAncillaryBuffer::default(), flags)),
    };
    match gate(Call::SendMessage)? {
        Some(usize::MAX) => whole(bytes),
        Some(limit) => whole(&[IoSlice::new(&bytes[0][..limit.min(bytes[0].len())])]),
        None => Ok(bytes.iter().map(|slice| slice.len()).sum()),
    }
}

/// Receives what is there. Descriptors that a peer on a Unix socket sends along are refused by having no room for them.
pub(super) fn receive(socket: BorrowedFd<'_>, buffers: &mut [IoSliceMut<'_>]) -> Result<usize> {
    gate(Call::Receive)?;
    if let [one] = buffers {
        return retry_on_intr(|| rustix::net::recv(socket, &mut **one, RecvFlags::DONTWAIT)).map(|(_, bytes)| bytes);
    }
    let none = &mut RecvAncillaryBuffer::default();
    retry_on_intr(|| rustix::net::recvmsg(socket, buffers, none, RecvFlags::DONTWAIT)).map(|received| received.bytes)
}

/// Queues the pages of a file behind a socket that does not block.
pub(super) fn send_file(socket: BorrowedFd<'_>, file: BorrowedFd<'_>, offset: u64, bytes: usize) -> Result<usize> {
    let Some(limit) = gate(Call::SendFile)? else { return Ok(bytes) };
    let mut at = offset;
    retry_on_intr(|| rustix::fs::sendfile(socket, file, Some(&mut at), bytes.min(limit)))
}

/// A pipe that does not block, as large as may be: its reading and its writing end.
pub(super) fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    gate(Call::MakePipe)?;
    let (from, to) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    // A user may have so much memory in pipes; one of the usual size moves the same bytes in more calls.
    let _grown = rustix::pipe::fcntl_setpipe_size(&to, PIPE_BYTES);
    Ok((from, to))
}

/// Puts references to the pages of the bytes into a pipe.
pub(super) fn fill_pipe(to: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize> {
    let Some(limit) = gate(Call::FillPipe)? else { return Ok(bytes.len()) };
    let bytes = &bytes[..limit.min(bytes.len())];
    retry_on_intr(|| {
        let slices = [IoSliceRaw::from_slice(bytes)];
        // SAFETY: `to` is the writing end (the callers have no other), so that the bytes are read; and nothing is given
        // as a gift.
        unsafe { rustix::pipe::vmsplice(to, &slices, SpliceFlags::NONBLOCK) }
    })
}

/// Moves up to so many bytes from a pipe to a descriptor.
pub(super) fn splice(from: BorrowedFd<'_>, to: BorrowedFd<'_>, bytes: usize, more: bool) -> Result<usize> {
    let Some(limit) = gate(Call::Splice)? else { return Ok(bytes) };
    let flags = if more { SpliceFlags::NONBLOCK | SpliceFlags::MORE } else { SpliceFlags::NONBLOCK };
    retry_on_intr(|| rustix::pipe::splice(from, None, to, None, bytes.min(limit), flags))
}

/// Says that nothing more will be sent.
pub(super) fn shut_down(socket: BorrowedFd<'_>) -> Result<()> {
    gate(Call::ShutDown)?;
    rustix::net::shutdown(socket, rustix::net::Shutdown::Write)
}

/// Whether the socket takes `MSG_ZEROCOPY` at its word.
pub(super) fn zero_copy(socket: BorrowedFd<'_>) -> Result<bool> {
    let mut value: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the value is as long as `length` says.
    let answer = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_ZEROCOPY, (&raw mut value).cast(), &raw mut length)
    };
    if answer == 0 { Ok(value != 0) } else { Err(last_error()) }
}

/// Has the socket take `MSG_ZEROCOPY` at its word. Without it the kernel copies, and says nothing.
pub(super) fn set_zero_copy(socket: BorrowedFd<'_>) -> Result<()> {
    if gate(Call::SetZeroCopy)?.is_none() {
        return Ok(());
    }
    let value: libc::c_int = 1;
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the value is as long as `length` says.
    let answer = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_ZEROCOPY, (&raw const value).cast(), length)
    };
    if answer == 0 { Ok(()) } else { Err(last_error()) }
}

#[repr(C, align(8))]
struct Control([u8; CONTROL_BYTES]);

/// Messages taken from an error queue: the control data of each, and whether the kernel had to cut them short.
pub(super) struct Batch {
    control: [Control; BATCH],
    lengths: [(usize, bool); BATCH],
    count: usize,
}

impl Batch {
    /// Room for messages.
    pub(super) fn new() -> Self {
        Self { control: [const { Control([0; CONTROL_BYTES]) }; BATCH], lengths: [(0, false); BATCH], count: 0 }
    }

    /// Takes what is there, up to [`BATCH`] messages, and says how many it took: none if there was none.
    pub(super) fn fill(&mut self, socket: BorrowedFd<'_>) -> Result<usize> {
        self.count = 0;
        let Some(limit) = gate(Call::ErrorQueue)? else { return Ok(0) };
        #[cfg(test)]
        if let Some(messages) = super::fault::messages(BATCH) {
            self.count = messages.len();
            for (at, (bytes, was_cut)) in messages.into_iter().enumerate() {
                self.control[at].0[..bytes.len()].copy_from_slice(&bytes);
                self.lengths[at] = (bytes.len(), was_cut);
            }
            return Ok(self.count);
        }
        // SAFETY: a header of zeros is a valid one, of a message without parts.
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { MaybeUninit::zeroed().assume_init() };
        for (header, control) in headers.iter_mut().zip(&mut self.control) {
            header.msg_hdr.msg_control = control.0.as_mut_ptr().cast();
            // The type differs between C libraries.
            header.msg_hdr.msg_controllen = CONTROL_BYTES.min(limit) as _;
        }
        // The type of the flags differs between C libraries.
        let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
        let taken = retry_on_intr(|| {
            // SAFETY: as many headers as are named, each with control data of the length that it says.
            let answer = unsafe {
                libc::recvmmsg(
                    socket.as_raw_fd(),
                    headers.as_mut_ptr(),
                    BATCH as libc::c_uint,
                    flags as _,
                    core::ptr::null_mut(),
                )
            };
            usize::try_from(answer).map_err(|_| last_error())
        });
        self.count = match taken {
            Err(Errno::AGAIN) => 0,
            other => other?.min(BATCH),
        };
        for (header, length) in headers[..self.count].iter().zip(&mut self.lengths) {
            #[allow(clippy::unnecessary_cast, reason = "the type differs between C libraries")]
            let bytes = (header.msg_hdr.msg_controllen as usize).min(CONTROL_BYTES);
            *length = (bytes, header.msg_hdr.msg_flags & libc::MSG_CTRUNC != 0);
        }
        Ok(self.count)
    }

    /// The control data of each message, and whether it was cut short.
    pub(super) fn messages(&self) -> impl Iterator<Item = (&[u8], bool)> {
        self.control[..self.count].iter().zip(&self.lengths).map(|(control, &(len, cut))| (&control.0[..len], cut))
    }
}

/// Whether this process ignores SIGPIPE, as programs in Rust do unless they say otherwise.
pub(super) fn ignores_pipe_signal() -> bool {
    let mut now = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: asks only, and `now` has room for the answer.
    let answer = unsafe { libc::sigaction(libc::SIGPIPE, core::ptr::null(), now.as_mut_ptr()) };
    // SAFETY: zeros are a valid value too.
    let now = unsafe { now.assume_init() };
    answer == 0 && now.sa_sigaction == libc::SIG_IGN
}

/// Makes a call that raises SIGPIPE where it meets a closed stream, and sees to it that the signal does nothing.
///
/// Neither `sendfile` nor `splice` has a flag against it. The signal is raised for the thread, so it is enough to hold
/// it back here, and to take it away if it was not pending before.
pub(super) fn without_pipe_signal(call: impl FnOnce() -> Result<usize>) -> Result<usize> {
    let mut pipe_signal = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: room for a set.
    unsafe { libc::sigemptyset(pipe_signal.as_mut_ptr()) };
    // SAFETY: a set, made empty above.
    unsafe { libc::sigaddset(pipe_signal.as_mut_ptr(), libc::SIGPIPE) };
    let was_pending = is_pipe_signal_pending();
    let mut before = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: a set to block, and room for the one before.
    let blocked = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, pipe_signal.as_ptr(), before.as_mut_ptr()) };
    if blocked != 0 {
        return Err(Errno::from_raw_os_error(blocked));
    }
    let answer = call();
    // Also after a success: where a part was accepted and the rest failed, the signal was raised all the same.
    if !was_pending {
        let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: a set, no room for what is not wanted, and a time that lives across the call.
        let _taken = unsafe { libc::sigtimedwait(pipe_signal.as_ptr(), core::ptr::null_mut(), &raw const now) };
    }
    // SAFETY: the set that `pthread_sigmask` filled above.
    let _restored = unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), core::ptr::null_mut()) };
    answer
}

fn is_pipe_signal_pending() -> bool {
    let mut pending = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: room for a set.
    let answer = unsafe { libc::sigpending(pending.as_mut_ptr()) };
    // SAFETY: a set: zeros, or what was pending.
    let is_member = unsafe { libc::sigismember(pending.as_ptr(), libc::SIGPIPE) };
    answer == 0 && is_member == 1
}

fn queued(socket: BorrowedFd<'_>, request: libc::c_ulong) -> Result<u64> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the requests given here write one int. Their type differs between C libraries.
    let answer = unsafe { libc::ioctl(socket.as_raw_fd(), request as _, &raw mut bytes) };
    if answer == 0 { Ok(u64::try_from(bytes).unwrap_or(0)) } else { Err(last_error()) }
}

/// `SIOCOUTQ`.
pub(super) fn unacknowledged(socket: BorrowedFd<'_>) -> Result<u64> {
    queued(socket, libc::TIOCOUTQ as libc::c_ulong)
}

/// `SIOCOUTQNSD`.
pub(super) fn unsent(socket: BorrowedFd<'_>) -> Result<u64> {
    queued(socket, libc::SIOCOUTQNSD)
}

/// `TCP_INFO`; what an older kernel does not tell is 0.
pub(super) fn tcp_info(socket: impl AsFd) -> Result<libc::tcp_info> {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the room is as long as `length` says.
    let answer = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if answer != 0 {
        return Err(last_error());
    }
    // SAFETY: integers alone; zeros where the kernel wrote nothing.
    Ok(unsafe { info.assume_init() })
}
