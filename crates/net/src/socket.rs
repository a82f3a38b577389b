//! A stream socket of the kernel as a [`Wire`]: TCP and Unix sockets, by system calls that return at once.
//!
//! ```text
//!  path       what is called                                   when the bytes are free
//!  write      sendmsg                                          at once: copied
//!  zerocopy   sendmsg(MSG_ZEROCOPY)                            error queue, by number   (TCP alone)
//!  sendfile   send(MSG_MORE), sendfile from the region's file  the far program says so
//!  splice     send(MSG_MORE), vmsplice, splice                 the far program says so
//! ```
//!
//! # Invariants
//! - Whatever was accepted leaves in the order of the calls: each path ends in the queue of the one socket, and nothing
//!   is left behind on the way to it. What a pipe still holds when the socket is full is thrown away before the call
//!   returns, and was not accepted; the caller sends it again.
//! - A segment without a [`Home`](crate::wire::Home) is copied by `sendfile` and `splice`. The release of the call is
//!   [`Release::Acknowledged`] all the same: one release for one call.
//! - A number is given to a zero-copy send that the kernel accepted bytes of, and to no other; a report that names
//!   anything else is counted and ignored.
//! - The socket's own error is told once, also where the call that met it had accepted bytes before.
//!
//! # What this does not do
//! It chooses no path, retries nothing and waits for nothing. It does not know which process owns a region: who may
//! send from it by a path that shares pages is the caller's business.
//!
//! # Kernel
//! `MSG_ZEROCOPY` on TCP since Linux 4.14; `sendfile` and `splice` share pages on TCP and Unix sockets since 6.5 and
//! copied into the socket on some before. Whether they do is found out by looking, not by version.

mod error_queue;
#[cfg(test)]
mod fault;
#[cfg(test)]
mod model;
mod options;
mod sys;

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, ipproto};
use zcmi_mem::region::{Region, RegionKind};
use zcmi_mem::registration::Support;

use self::error_queue::Entry;
pub use self::options::{
    TcpInfo, abort, congestion, receive_buffer_bytes, send_buffer_bytes, set_congestion, set_keep_alive, set_no_delay,
    set_receive_buffer_bytes, set_send_buffer_bytes, set_user_timeout_ms, tcp_info, unacknowledged_bytes, unsent_bytes,
};
use crate::notify::Owed;
use crate::path::{PathKind, Release};
use crate::wire::{FileFrame, Notification, Segment, Sent, Wire};

/// The most segments of one call (`IOV_MAX`); more are accepted by the next.
const SEGMENTS_MAX: usize = 1024;
/// Segments of a call that need no memory of their own.
const FEW_SEGMENTS: usize = 8;
/// How many zero-copy sends may be owed a notification: 1 KiB of bits, and more than the kernel's default limit on
/// their bookkeeping (`net.core.optmem_max`) allows.
const OWED_MAX: usize = 8192;
/// How many batches of the error queue one call reads at the most.
const BATCHES_MAX: usize = 64;

/// Why a descriptor is no wire.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SocketError {
    /// It is a socket of another kind.
    #[error(
        "a socket of family {family}, type {kind}, protocol {protocol} is neither a TCP nor a Unix stream; give one \
         that is"
    )]
    NotAStream {
        /// The family (`AF_…`).
        family: u16,
        /// The type (`SOCK_…`).
        kind: u32,
        /// The protocol (`IPPROTO_…`); 0 is the usual one of the family.
        protocol: u32,
    },
    /// A system call failed.
    #[error("{call} failed")]
    System {
        /// Which.
        call: &'static str,
        /// How.
        source: io::Error,
    },
}

/// What the error queue said that was of no use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ignored {
    /// Reports about sends that were never made, or for the second time.
    pub reports: u64,
    /// Messages that the kernel cut short; the sends they spoke of stay owed.
    pub cut_short: u64,
    /// Messages that are neither reports nor errors.
    pub others: u64,
}

/// Whether `MSG_ZEROCOPY` is in use.
#[derive(Debug)]
enum ZeroCopy {
    Untried,
    On(Owed),
    /// Why it never will be.
    Refused(Cow<'static, str>),
}

/// A pipe through which pages go to the socket; empty whenever no call is under way.
#[derive(Debug)]
pub(crate) struct Pipe {
    from: OwnedFd,
    to: OwnedFd,
}

/// A TCP or Unix stream socket.
///
/// Dropping it closes the socket. What was accepted is sent still, but a notification that is owed never comes then,
/// while the kernel may go on reading the bytes; who wants them back keeps the wire until none is
/// [owed](Self::owed_notifications).
pub struct SocketWire {
    socket: OwnedFd,
    is_tcp: bool,
    zero_copy: ZeroCopy,
    pipe: Option<Pipe>,
    regions: Vec<Arc<Region>>,
    /// An error that the socket told while bytes were accepted; it tells it once.
    untold: Option<Errno>,
    ignored: Ignored,
    /// Kept for its allocation; empty between calls.
    slices: Vec<IoSlice<'static>>,
    ignores_pipe_signal: bool,
}

impl fmt::Debug for SocketWire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { socket, is_tcp, zero_copy, regions, ignored, .. } = self;
        f.debug_struct("SocketWire")
            .field("socket", socket)
            .field("is_tcp", is_tcp)
            .field("zero_copy", zero_copy)
            .field("regions", &regions.len())
            .field("ignored", ignored)
            .finish_non_exhaustive()
    }
}

/// The same allocation for slices of another lifetime.
fn recycled<'to>(mut slices: Vec<IoSlice<'_>>) -> Vec<IoSlice<'to>> {
    slices.clear();
    // Collected in place, because the elements are of one size.
    slices.into_iter().map(|_| IoSlice::new(&[])).collect()
}

/// Whether an error is the socket's own, which it tells once, and not one of the path or of the moment.
fn is_told_once(errno: Errno) -> bool {
    let own = [
        Errno::PIPE,
        Errno::CONNRESET,
        Errno::CONNABORTED,
        Errno::CONNREFUSED,
        Errno::TIMEDOUT,
        Errno::HOSTUNREACH,
        Errno::HOSTDOWN,
        Errno::NETUNREACH,
        Errno::NETDOWN,
        Errno::NOTCONN,
        Errno::PROTO,
    ];
    own.contains(&errno)
}

fn unsupported(path: PathKind, reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, format!("{path} is not possible: {reason}"))
}

fn invalid(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, reason)
}

/// Where a pipe is emptied into; `None` where there is no such device.
fn nowhere() -> Option<BorrowedFd<'static>> {
    static NOWHERE: OnceLock<Option<File>> = OnceLock::new();
    let file = NOWHERE.get_or_init(|| File::options().write(true).open("/dev/null").ok());
    file.as_ref().map(AsFd::as_fd)
}

impl Pipe {
    /// Throws away `bytes` bytes; `None` if that did not work, and the pipe is gone with what is in it.
    fn emptied(self, mut bytes: usize) -> Option<Self> {
        while bytes > 0 {
            match sys::splice(self.from.as_fd(), nowhere()?, bytes, false) {
                Ok(moved) if moved > 0 => bytes = bytes.checked_sub(moved)?,
                _ => return None,
            }
        }
        Some(self)
    }
}

impl SocketWire {
    /// Makes a wire of a connected socket, and the socket one that does not block.
    ///
    /// Nobody else may send on the socket with `MSG_ZEROCOPY`: the kernel's count of such sends would no longer be
    /// ours. Where this process does not ignore SIGPIPE at this moment, the wire holds it back in each call that would
    /// raise it; a process that stops ignoring it must do so before.
    ///
    /// # Errors
    /// [`SocketError::NotAStream`] for sockets of other kinds, [`SocketError::System`] if the kernel does not tell.
    pub fn new(socket: OwnedFd) -> Result<Self, SocketError> {
        let failed = |call| move |errno: Errno| SocketError::System { call, source: errno.into() };
        let family = rustix::net::sockopt::socket_domain(&socket).map_err(failed("getsockopt(SO_DOMAIN)"))?;
        let kind = rustix::net::sockopt::socket_type(&socket).map_err(failed("getsockopt(SO_TYPE)"))?;
        let protocol = rustix::net::sockopt::socket_protocol(&socket).map_err(failed("getsockopt(SO_PROTOCOL)"))?;
        let is_inet = family == AddressFamily::INET || family == AddressFamily::INET6;
        let is_tcp = is_inet && protocol == Some(ipproto::TCP);
        if kind != SocketType::STREAM || !(is_tcp || family == AddressFamily::UNIX) {
            let protocol = protocol.map_or(0, |protocol| protocol.as_raw().get());
            return Err(SocketError::NotAStream { family: family.as_raw(), kind: kind.as_raw(), protocol });
        }
        // `sendfile` has no flag for it.
        rustix::io::ioctl_fionbio(&socket, true).map_err(failed("ioctl(FIONBIO)"))?;
        Ok(Self {
            socket,
            is_tcp,
            zero_copy: ZeroCopy::Untried,
            pipe: None,
            regions: Vec::new(),
            untold: None,
            ignored: Ignored::default(),
            slices: Vec::new(),
            ignores_pipe_signal: sys::ignores_pipe_signal(),
        })
    }

    /// Adds a region that segments may lie in, and says its number in the wire's table, counted from 0.
    pub fn add_region(&mut self, region: Arc<Region>) -> usize {
        self.regions.push(region);
        self.regions.len() - 1
    }

    /// Whether a path can be used. May try it on the socket, without sending anything.
    pub fn supports(&mut self, path: PathKind) -> Support {
        match path {
            PathKind::Write => Support::Yes,
            PathKind::ZeroCopy => match self.owed() {
                Ok(_) => Support::Yes,
                Err(reason) => Support::No(reason),
            },
            PathKind::SendFile => {
                if self.regions.is_empty() {
                    return Support::Unknown("no region was added to the wire yet".into());
                }
                match self.regions.iter().find_map(|region| file_of(region).ok()) {
                    // Nothing is sent, and a process that must not make the call is told so.
                    Some(file) => answer("sendfile", sys::send_file(self.socket.as_fd(), file, 0, 0)),
                    None => Support::No("no region of the wire is a file that can be sent".into()),
                }
            }
            PathKind::Splice => match self.try_pipe() {
                Ok(()) => Support::Yes,
                Err((call, errno)) => answer(call, Err(errno)),
            },
            PathKind::UringSend | PathKind::UringZeroCopy | PathKind::UringFixed => Support::No(NO_URING.into()),
        }
    }

    /// How many zero-copy sends are owed a notification.
    #[must_use]
    pub fn owed_notifications(&self) -> u64 {
        if let ZeroCopy::On(owed) = &self.zero_copy { owed.open() } else { 0 }
    }

    /// What the error queue said that was of no use.
    #[must_use]
    pub fn ignored(&self) -> Ignored {
        self.ignored
    }

    /// The count of zero-copy sends, once the kernel takes them at their word; else why it does not.
    fn owed(&mut self) -> Result<&mut Owed, Cow<'static, str>> {
        if let ZeroCopy::Untried = self.zero_copy {
            let tried = if self.is_tcp {
                enable_zero_copy(self.socket.as_fd())
            } else {
                Err("a Unix socket has no MSG_ZEROCOPY".into())
            };
            self.zero_copy = match tried {
                Ok(()) => ZeroCopy::On(Owed::new(0, OWED_MAX)),
                Err(reason) => ZeroCopy::Refused(reason),
            };
        }
        match &mut self.zero_copy {
            ZeroCopy::On(owed) => Ok(owed),
            ZeroCopy::Refused(reason) => Err(reason.clone()),
            ZeroCopy::Untried => Err("it was not tried".into()),
        }
    }

    /// Sends what the segments' slices hold by one call.
    fn send_slices(&mut self, segments: &[Segment<'_>], zero_copy: bool) -> io::Result<usize> {
        if segments.len() <= FEW_SEGMENTS {
            // A connection that never has more to send at a time needs no memory for that.
            let mut slices = [IoSlice::new(&[]); FEW_SEGMENTS];
            let mut count = 0;
            for segment in segments.iter().filter(|segment| !segment.bytes.is_empty()) {
                slices[count] = IoSlice::new(segment.bytes);
                count += 1;
            }
            return Ok(sys::send(self.socket.as_fd(), &slices[..count], false, zero_copy)?);
        }
        let mut slices = recycled(core::mem::take(&mut self.slices));
        slices
            .extend(segments.iter().filter(|s| !s.bytes.is_empty()).take(SEGMENTS_MAX).map(|s| IoSlice::new(s.bytes)));
        let answer = sys::send(self.socket.as_fd(), &slices, false, zero_copy);
        self.slices = recycled(slices);
        Ok(answer?)
    }

    fn send_zero_copy(&mut self, segments: &[Segment<'_>]) -> io::Result<Sent> {
        let owed = self.owed().map_err(|reason| unsupported(PathKind::ZeroCopy, &reason))?;
        // The kernel has such limits of its own, with the same answer.
        if !owed.has_room() {
            return Err(Errno::NOBUFS.into());
        }
        let bytes = self.send_slices(segments, true)?;
        let owed = self.owed().map_err(|reason| unsupported(PathKind::ZeroCopy, &reason))?;
        // The kernel counts calls that accepted bytes, and those alone.
        let release = if bytes > 0 { Release::Notified(owed.count()) } else { Release::Now };
        Ok(Sent { bytes, release })
    }

    /// Makes calls that together send something, of which TCP makes packets only when the last one was made. Otherwise
    /// an acknowledgement that comes between two of them sends a header, or the rest of a payload, as a packet of its
    /// own: `MSG_MORE` holds it back from the call alone. (tcp(7), TCP_CORK: for 200 ms at the most.)
    fn corked<T>(&mut self, calls: impl FnOnce(&mut Self) -> T) -> T {
        // Refused, it costs packets and nothing else.
        let is_corked = self.is_tcp && options::set_cork(&self.socket, true).is_ok();
        let answer = calls(self);
        if is_corked {
            let _ = options::set_cork(&self.socket, false);
        }
        answer
    }

    /// Sends one segment after the other, those with a home by `share`, until one is not accepted whole.
    fn send_each(
        &mut self,
        segments: &[Segment<'_>],
        mut share: impl FnMut(&mut Self, &Segment<'_>, bool) -> (usize, io::Result<()>),
    ) -> io::Result<Sent> {
        let Some(last) = segments.iter().rposition(|segment| !segment.bytes.is_empty()) else {
            return Ok(Sent { bytes: 0, release: Release::Now });
        };
        let mut accepted = 0;
        for (index, segment) in segments[..=last].iter().enumerate().filter(|(_, s)| !s.bytes.is_empty()) {
            let more = index < last;
            let (bytes, answer) = if segment.home.is_some() {
                share(self, segment, more)
            } else {
                match sys::send(self.socket.as_fd(), &[IoSlice::new(segment.bytes)], more, false) {
                    Ok(bytes) => (bytes, Ok(())),
                    Err(errno) => (0, Err(errno.into())),
                }
            };
            accepted += bytes;
            if let Err(error) = answer {
                if accepted == 0 {
                    return Err(error);
                }
                // What is refused for another reason than the socket's own is refused again when it comes first.
                self.untold = Errno::from_io_error(&error).filter(|&errno| is_told_once(errno));
                break;
            }
            if bytes < segment.bytes.len() {
                break;
            }
        }
        Ok(Sent { bytes: accepted, release: Release::Acknowledged })
    }

    fn send_header_and_file(&mut self, frame: &FileFrame<'_>) -> io::Result<usize> {
        let mut accepted = 0;
        if !frame.header.is_empty() {
            accepted = sys::send(self.socket.as_fd(), &[IoSlice::new(frame.header)], frame.bytes > 0, false)?;
        }
        if accepted < frame.header.len() || frame.bytes == 0 {
            return Ok(accepted);
        }
        match self.quietly(|| sys::send_file(self.socket.as_fd(), frame.file, frame.offset, frame.bytes)) {
            Ok(bytes) => Ok(accepted + bytes),
            Err(errno) if accepted == 0 => Err(errno.into()),
            Err(errno) => {
                // What the file or the moment refuses is refused again; the socket's own error is told once.
                self.untold = is_told_once(errno).then_some(errno);
                Ok(accepted)
            }
        }
    }

    /// Makes a call that may raise SIGPIPE.
    fn quietly(&self, call: impl FnOnce() -> rustix::io::Result<usize>) -> rustix::io::Result<usize> {
        if self.ignores_pipe_signal { call() } else { sys::without_pipe_signal(call) }
    }

    /// Queues the pages of a segment by its region's file.
    fn share_by_file(&mut self, segment: &Segment<'_>) -> (usize, io::Result<()>) {
        let (region, offset) = match self.home_of(segment) {
            Ok(home) => home,
            Err(error) => return (0, Err(error)),
        };
        let file = match file_of(region) {
            Ok(file) => file,
            Err(reason) => return (0, Err(unsupported(PathKind::SendFile, reason))),
        };
        let len = segment.bytes.len();
        match self.quietly(|| sys::send_file(self.socket.as_fd(), file, offset as u64, len)) {
            // Nothing is behind the offset: the file is shorter than its mapping, which a sealed one cannot be.
            Ok(0) => (0, Err(invalid(format!("the region's file ends before offset {offset}")))),
            Ok(bytes) => (bytes, Ok(())),
            Err(errno) => (0, Err(errno.into())),
        }
    }

    /// The region a segment lies in and where, if it is true that it lies there.
    fn home_of(&self, segment: &Segment<'_>) -> io::Result<(&Region, usize)> {
        let home = segment.home.ok_or_else(|| invalid("a segment has no home".into()))?;
        let region = self.regions.get(home.region).ok_or_else(|| {
            invalid(format!("region {} was not added to the wire, which knows {}", home.region, self.regions.len()))
        })?;
        let span = region
            .bytes(home.offset, segment.bytes.len())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        if !std::ptr::eq(span.base().as_ptr(), segment.bytes.as_ptr()) {
            return Err(invalid(format!(
                "the segment's bytes do not lie at offset {} of region {}",
                home.offset, home.region
            )));
        }
        Ok((region, home.offset))
    }

    /// Gives the wire a pipe, or takes it away: wires of one thread can share one, because it is empty between calls.
    pub(crate) fn swap_pipe(&mut self, pipe: &mut Option<Pipe>) {
        core::mem::swap(&mut self.pipe, pipe);
    }

    /// Makes the pipe and tries whether pages can be put into it.
    fn try_pipe(&mut self) -> Result<(), (&'static str, Errno)> {
        let pipe = self.take_pipe().map_err(|errno| ("pipe2", errno))?;
        let probe = [0_u8];
        let bytes = sys::fill_pipe(pipe.to.as_fd(), &probe).map_err(|errno| ("vmsplice", errno))?;
        self.pipe = pipe.emptied(bytes);
        Ok(())
    }

    /// The wire's pipe, empty. Whoever takes it puts it back empty, or not at all.
    fn take_pipe(&mut self) -> rustix::io::Result<Pipe> {
        if let Some(pipe) = self.pipe.take() {
            return Ok(pipe);
        }
        let (from, to) = sys::pipe()?;
        Ok(Pipe { from, to })
    }

    /// Queues the pages of a segment by way of the pipe, one pipe full after the other.
    ///
    /// The socket may take less than the pipe holds. The rest is not accepted then, and must not reach the stream later
    /// by itself: the caller may send something else next, or by another path. So it is thrown away.
    fn share_by_pipe(&mut self, segment: &Segment<'_>, more: bool) -> (usize, io::Result<()>) {
        let mut accepted = 0;
        while accepted < segment.bytes.len() {
            let rest = &segment.bytes[accepted..];
            let pipe = match self.take_pipe() {
                Ok(pipe) => pipe,
                Err(errno) => return (accepted, Err(errno.into())),
            };
            let filled = match sys::fill_pipe(pipe.to.as_fd(), rest) {
                Ok(0) => return (accepted, Err(Errno::IO.into())),
                Ok(filled) => filled,
                // The pipe holds nothing, and is not kept either, in case that it holds something after all.
                Err(errno) => return (accepted, Err(errno.into())),
            };
            let more = more || filled < rest.len();
            let mut moved = 0;
            let mut refused = None;
            while moved < filled && refused.is_none() {
                let socket = self.socket.as_fd();
                match self.quietly(|| sys::splice(pipe.from.as_fd(), socket, filled - moved, more)) {
                    Ok(0) => refused = Some(Errno::IO),
                    Ok(bytes) => moved += bytes,
                    Err(errno) => refused = Some(errno),
                }
            }
            self.pipe = pipe.emptied(filled - moved);
            accepted += moved;
            if let Some(errno) = refused {
                return (accepted, Err(errno.into()));
            }
        }
        (accepted, Ok(()))
    }
}

/// What the answer of a call that was tried says of a path.
fn answer(call: &str, tried: rustix::io::Result<usize>) -> Support {
    match tried {
        Ok(_) => Support::Yes,
        Err(errno @ (Errno::NOSYS | Errno::PERM | Errno::ACCESS | Errno::INVAL)) => {
            Support::No(format!("{call} failed: {errno}").into())
        }
        // Short of something at this moment, perhaps.
        Err(errno) => Support::Unknown(format!("{call} failed: {errno}").into()),
    }
}

const NO_URING: &str = "this wire makes plain system calls and has no io_uring";

/// The file that a region's bytes can be sent from.
fn file_of(region: &Region) -> Result<BorrowedFd<'_>, &'static str> {
    if matches!(region.kind(), RegionKind::Hugetlb(_)) {
        return Err("files of hugetlbfs cannot be spliced");
    }
    region.descriptor().ok_or("the region has no file")
}

/// Has the kernel take `MSG_ZEROCOPY` at its word, and makes sure of it: otherwise it would copy, tell nothing, and the
/// sender would wait for ever.
pub(crate) fn enable_zero_copy(socket: BorrowedFd<'_>) -> Result<(), Cow<'static, str>> {
    let failed = |call: &str, errno: Errno| Cow::Owned(format!("{call}(SO_ZEROCOPY) failed: {errno}"));
    if sys::zero_copy(socket).map_err(|errno| failed("getsockopt", errno))? {
        // A notification of somebody else's send would be taken for one of ours, and free bytes too early.
        return Err("SO_ZEROCOPY was set before, so that the kernel's count of sends is not known".into());
    }
    sys::set_zero_copy(socket).map_err(|errno| failed("setsockopt", errno))?;
    if !sys::zero_copy(socket).map_err(|errno| failed("getsockopt", errno))? {
        return Err("the kernel did not keep SO_ZEROCOPY".into());
    }
    Ok(())
}

/// Takes a message of the error queue: completes what it reports, and counts what it says in vain.
///
/// # Errors
/// The one that the message is about.
fn heed(
    control: &[u8],
    was_cut: bool,
    owed: &mut Owed,
    ignored: &mut Ignored,
    each: &mut dyn FnMut(Notification),
) -> io::Result<()> {
    let mut answer = Ok(());
    let parsed = error_queue::parse(control, |entry| match entry {
        #[cfg(test)]
        Entry::Done { low, high, copied } if fault::is_planted(fault::Mutant::WrongRange) => {
            if let Ok(notification) = owed.complete(low.wrapping_add(1), high.wrapping_add(1), copied) {
                each(notification);
            }
        }
        Entry::Done { low, high, copied } => match owed.complete(low, high, copied) {
            Ok(notification) => each(notification),
            Err(_) => ignored.reports += 1,
        },
        Entry::Other { errno: 0 } => ignored.others += 1,
        Entry::Other { errno } => answer = Err(io::Error::from_raw_os_error(errno.cast_signed())),
    });
    if was_cut || parsed.is_err() {
        ignored.cut_short += 1;
    }
    answer
}

/// Takes what the error queue of a socket of any kind holds.
///
/// # Errors
/// The first error that the queue held, after everything else in it was given.
pub(crate) fn read_reports(
    socket: BorrowedFd<'_>,
    owed: &mut Owed,
    ignored: &mut Ignored,
    each: &mut dyn FnMut(Notification),
) -> io::Result<()> {
    let mut failed: Option<io::Error> = None;
    let mut batch = sys::Batch::new();
    for _ in 0..BATCHES_MAX {
        let count = match batch.fill(socket) {
            Ok(count) => count,
            Err(errno) => {
                failed.get_or_insert(errno.into());
                break;
            }
        };
        for (control, was_cut) in batch.messages() {
            if let Err(error) = heed(control, was_cut, owed, ignored, each) {
                failed.get_or_insert(error);
                #[cfg(test)]
                if fault::is_planted(fault::Mutant::SkippedOnError) {
                    break;
                }
            }
        }
        if count < sys::BATCH {
            break;
        }
    }
    failed.map_or(Ok(()), Err)
}

impl AsFd for SocketWire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Wire for SocketWire {
    /// Sends a prefix of the segments by a path, see [`Wire::send`].
    ///
    /// # Errors
    /// The kernel's own. `Unsupported` for a path that this socket or the segment's region does not have; nothing is
    /// owed then. `InvalidInput` for a [`Home`](crate::wire::Home) that is not where the bytes are.
    fn send(&mut self, path: PathKind, segments: &[Segment<'_>]) -> io::Result<Sent> {
        if let Some(errno) = self.untold.take() {
            return Err(errno.into());
        }
        if segments.iter().all(|segment| segment.bytes.is_empty()) {
            return Ok(Sent { bytes: 0, release: Release::Now });
        }
        match path {
            PathKind::Write => {
                let bytes = self.send_slices(segments, false)?;
                Ok(Sent { bytes, release: Release::Now })
            }
            PathKind::ZeroCopy => self.send_zero_copy(segments),
            PathKind::SendFile => {
                self.corked(|wire| wire.send_each(segments, |wire, segment, _more| wire.share_by_file(segment)))
            }
            PathKind::Splice => self.corked(|wire| wire.send_each(segments, Self::share_by_pipe)),
            PathKind::UringSend | PathKind::UringZeroCopy | PathKind::UringFixed => Err(unsupported(path, NO_URING)),
        }
    }

    fn send_file(&mut self, frame: &FileFrame<'_>) -> io::Result<usize> {
        if let Some(errno) = self.untold.take() {
            return Err(errno.into());
        }
        self.corked(|wire| wire.send_header_and_file(frame))
    }

    /// Receives into the buffers, see [`Wire::receive`].
    ///
    /// # Errors
    /// The kernel's own; `InvalidInput` if the buffers have no room, because 0 would say that the stream has ended.
    fn receive(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let most = buffers.len().min(SEGMENTS_MAX);
        let buffers = &mut buffers[..most];
        if buffers.iter().all(|buffer| buffer.is_empty()) {
            return Err(invalid("no room to receive into".into()));
        }
        Ok(sys::receive(self.socket.as_fd(), buffers)?)
    }

    /// Reads the error queue, see [`Wire::notifications`]. At most 512 messages a call: if there were more, the
    /// descriptor still polls as erroneous.
    ///
    /// The kernel joins reports that follow each other, and the joined one says of all its sends that they were copied
    /// or were not, as the first of them was.
    ///
    /// # Errors
    /// The first error that the queue held, after everything else in it was given.
    fn notifications(&mut self, each: &mut dyn FnMut(Notification)) -> io::Result<()> {
        let ZeroCopy::On(owed) = &mut self.zero_copy else {
            // Nothing is owed, and nothing else was asked for.
            return Ok(());
        };
        read_reports(self.socket.as_fd(), owed, &mut self.ignored, each)
    }

    fn owed(&self) -> u64 {
        self.owed_notifications()
    }

    fn end(&mut self) -> io::Result<()> {
        Ok(sys::shut_down(self.socket.as_fd())?)
    }

    fn abort(&mut self) {
        // A Unix socket has no such call; there, as where it fails, the socket's end does what it can.
        if !self.is_tcp || abort(&self.socket).is_err() {
            let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
        }
    }
}

#[cfg(test)]
mod tests;
