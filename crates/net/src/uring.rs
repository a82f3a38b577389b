//! Sending through io_uring: copied, with zero copy, and from registered buffers; and receiving into slots of a pool.
//!
//! A [`Ring`] belongs to one thread and serves all its sockets. A send is pushed, taken by the kernel and answered
//! within the call: with `MSG_DONTWAIT` in the request it ends at its submission, with a short count or an error where
//! a blocking one would wait, and its first completion is there when `io_uring_enter` returns.
//!
//! ```text
//!  send(socket, key, path, segments)
//!    │  one request after the other                                   notifications(key)
//!    ▼                                                                  ▲
//!  submission queue ──▶ kernel ──▶ completion queue ──▶ first completion: Sent, or an error
//!                         │                        └──▶ notification ──▶ by socket, by number
//!                         └─ reads the pages until then
//! ```
//!
//! # Invariants
//! - The requests of one send are pushed one by one, each after the answer to the one before: behind a short count
//!   nothing is sent, so that no byte leaves behind a gap.
//! - A notification is owed if and only if the first completion of a request carries `F_MORE`, whatever its result. A
//!   refused send may so be owed one: it is waited for, keeps registered memory in use, and is nobody's news.
//! - A request that was pushed is the kernel's, whatever `io_uring_enter` returned. If the kernel did not take it, the
//!   ring stops and never enters with it again, so that its bytes are not read. If the kernel took it and does not
//!   answer within a second, it is cancelled and its socket shut down; if that does not end it either, the ring stops,
//!   and the memory of that send must be kept until the process ends.
//! - Every request has a word of its own, so that an answer that comes twice is not taken for another's.
//! - Every wait is bounded.
//!
//! # Whose memory it is
//! Bytes that are sent with zero copy belong to the kernel until the notification: whoever writes them earlier sends
//! wrong bytes. A ring that is dropped while it owes ([`Ring::owed`]) takes the notifications with it, and the kernel
//! still reads: its user keeps that memory from any further use (or calls [`Ring::settle`] before). Registered regions
//! are kept by the ring itself: a use that never ended pins the region until the process ends.
//!
//! # What this does not do
//! It does not use registered files, which would keep a socket sending after its process was killed, and it does not
//! choose a path.
//!
//! # Sources
//! io_uring_enter(2), io_uring_setup(2), io_uring_register(2), io_uring_prep_send_zc(3).

mod fixed;
#[cfg(test)]
pub(crate) mod model;
mod owed;
mod provided;
mod support;
mod sys;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use zcmi_mem::fork::{ForkGuard, ForkGuardError};
use zcmi_mem::region::Region;
use zcmi_mem::registration::{InFlight, Registered, Registrations, RemoveError, Support};

pub use fixed::{FixedBuffers, FixedError, FixedRegion};
pub use provided::{ReceiveError, Received};
pub use support::{Abilities, support};

use crate::path::{PathKind, Release};
use crate::wire::{Notification, Segment, Sent};
#[cfg(test)]
use model::{BufferRing, Kernel, Queue};
use owed::{Owed, Ticket};
use provided::Provided;
pub(crate) use sys::Envelope;
#[cfg(not(test))]
use sys::{BufferRing, Kernel, Queue};
use sys::{Completion, Mode, Request};

/// The first number of a send: far above all that the error queue of a socket counts, so that one connection can use
/// both and tell their notifications apart.
pub const FIRST_NUMBER: u64 = 1 << 63;

/// Segments up to this size need not be registered for [`PathKind::UringFixed`]: they are copied, as the headers of
/// frames are.
pub const COPIED_BYTES: usize = 64;

/// How often a request is offered to a kernel that says that it is busy, interrupted or short of memory.
const OFFERS: u32 = 1000;
/// How often, and how long each time, the first completion is waited for.
const WAITS: u32 = 50;
const WAIT: Duration = Duration::from_millis(20);

/// What a word in a completion is about.
const COPIED: u8 = 1;
const ZERO_COPY: u8 = 2;
const CANCEL: u8 = 3;
const RECEIVE: u8 = 4;

/// Why there is no ring.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UringError {
    /// The kernel refused to make one.
    #[error("io_uring_setup failed: {source} ({support}); the paths of the socket itself still work")]
    Setup {
        /// What it answered.
        source: io::Error,
        /// What that means.
        support: Support,
    },
    /// The kernel's io_uring is too old.
    #[error("this kernel's io_uring lacks {feature}; the paths of the socket itself still work")]
    Missing {
        /// What is missing.
        feature: &'static str,
    },
    /// Forks could not be noticed.
    #[error(transparent)]
    Guard(#[from] ForkGuardError),
}

/// Why a ring did not send, where it is not the kernel that refused; found inside the [`io::Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The path is not one of io_uring's.
    #[error("{path} is not a path of io_uring")]
    NotOurs {
        /// The path.
        path: PathKind,
    },
    /// A segment lies in no region that this ring knows; another path may send it.
    #[error("a segment of {bytes} bytes does not lie in a registered region{}", Named(*region))]
    NotRegistered {
        /// The region that it says it lies in.
        region: Option<usize>,
        /// How long it is.
        bytes: usize,
    },
    /// The kernel did not take a request, now or earlier, or an earlier one was [lost](Self::Lost); the ring sends
    /// nothing more.
    #[error("io_uring_enter failed: {errno}; the ring has stopped")]
    Stopped {
        /// What it answered last.
        errno: Errno,
    },
    /// The kernel took a request of this send, and did not answer; its socket was shut down, the ring sends nothing
    /// more, and the memory of the whole send must be kept.
    #[error("io_uring did not answer a request within {WAIT:?} times {WAITS}; the ring has stopped")]
    Lost,
}

struct Named(Option<usize>);

impl core::fmt::Display for Named {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.0.map_or(Ok(()), |region| write!(f, " (it names number {region})"))
    }
}

impl From<Refusal> for io::Error {
    fn from(refusal: Refusal) -> Self {
        let kind = match refusal {
            Refusal::NotOurs { .. } | Refusal::NotRegistered { .. } => io::ErrorKind::Unsupported,
            Refusal::Stopped { .. } | Refusal::Lost => io::ErrorKind::Other,
        };
        Self::new(kind, refusal)
    }
}

/// How a ring is to be.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Options {
    sends: u32,
    buffers: u16,
    deferred: bool,
    bundles: bool,
    place_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { sends: 1024, buffers: 256, deferred: false, bundles: true, place_bytes: fixed::PLACE_BYTES }
    }
}

impl Options {
    /// How many sends of all sockets may be owed notifications at a time (1024; 1 to 16384). More are refused with
    /// `ENOBUFS`.
    pub fn sends(self, sends: u32) -> Self {
        Self { sends: sends.clamp(1, 1 << 14), ..self }
    }

    /// How many places of 1 GiB the table of registered buffers has (256; at most 16384, 0 for no table).
    pub fn buffers(self, buffers: u16) -> Self {
        Self { buffers: buffers.min(1 << 14), ..self }
    }

    /// The most bytes of one place (1 GiB, the kernel's limit); a larger region takes several.
    ///
    /// # Panics
    /// If it is not a multiple of 4096 from 8192 up to 1 GiB.
    pub fn place_bytes(self, place_bytes: usize) -> Self {
        // The first place of a region holds more than its header.
        let whole = place_bytes >= 8192 && place_bytes.is_multiple_of(4096);
        assert!(whole && place_bytes <= fixed::PLACE_BYTES, "places of {place_bytes} bytes");
        Self { place_bytes, ..self }
    }

    /// Whether what is received may fill several slots by one completion (yes), where the kernel
    /// [can](Ring::bundles).
    pub fn bundles(self, bundles: bool) -> Self {
        Self { bundles, ..self }
    }

    /// Whether the kernel may put off what it owes the ring until asked (no), where it can. That is a few percent
    /// cheaper, and wakes nobody who waits on the ring's [descriptor](Ring::as_fd): it is for those who ask.
    pub fn deferred(self, deferred: bool) -> Self {
        Self { deferred, ..self }
    }
}

/// An answer of the kernel.
#[derive(Clone, Copy, Debug)]
struct First {
    result: Result<usize, Errno>,
    /// Whether a notification is owed.
    more: bool,
}

/// An io_uring of one thread.
pub struct Ring {
    /// First: its slots are taken from the kernel while the ring is open.
    provided: Option<Provided>,
    /// Then the ring is closed, before anything that it was shown is let go.
    queue: Queue,
    mode: Mode,
    bundles: Support,
    owed: Owed<InFlight<FixedRegion>>,
    sends: u32,
    fixed: Registrations<FixedBuffers>,
    regions: Vec<Option<Registered<FixedRegion>>>,
    /// Whether several segments can go from one registered buffer in one request; nothing, before it was tried.
    vectors: Option<bool>,
    /// The word of the request whose first completion is looked for.
    awaited: Option<u64>,
    first: Option<Completion>,
    /// Tells copied sends from each other.
    copied: u32,
    /// The word of the copied send that was not answered: the ring stops at the first.
    lost: Option<u64>,
    stopped: Option<Refusal>,
    strays: u64,
    life: ForkGuard,
}

impl core::fmt::Debug for Ring {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Self { mode, stopped, .. } = self;
        f.debug_struct("Ring").field("mode", mode).field("owed", &self.owed()).field("stopped", stopped).finish()
    }
}

impl AsFd for Ring {
    /// The descriptor to wait on: it is readable when there may be notifications, or what was received.
    ///
    /// Word for the ring interrupts the calls of its thread: `epoll_wait(2)` may say `EINTR`, after which it is
    /// readable. A ring that may [put off](Options::deferred) what it is owed wakes nobody.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queue.kernel().descriptor()
    }
}

impl Ring {
    /// A ring for this thread, the only one that can use it.
    ///
    /// # Errors
    /// [`UringError`]. A table of registered buffers that the kernel refuses is none of them: see
    /// [`fixed_support`](Self::fixed_support).
    ///
    /// # Kernel
    /// io_uring with `IORING_FEAT_EXT_ARG` (5.11). `COOP_TASKRUN` (5.19) is used where it is, and `SINGLE_ISSUER` and
    /// `DEFER_TASKRUN` (6.1) in its place where they are asked for ([`Options::deferred`]). The queues count as locked
    /// memory before 5.12 only.
    pub fn open(options: Options) -> Result<Self, UringError> {
        let life = ForkGuard::new()?;
        let Options { sends, buffers, deferred, bundles, place_bytes } = options;
        let modes = [Mode::Deferred, Mode::Cooperative, Mode::Plain];
        let mut refused = None;
        for mode in modes.into_iter().skip(usize::from(!deferred)) {
            // A send in flight can have its first completion and its notification in the queue.
            let kernel = match Kernel::open(mode, sends * 2, life) {
                Ok(kernel) => kernel,
                // Flags that the kernel does not know.
                Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => {
                    refused = Some(error);
                    continue;
                }
                Err(source) => {
                    refused = Some(source);
                    break;
                }
            };
            if let Some(feature) = kernel.missing() {
                return Err(UringError::Missing { feature });
            }
            let queue = Queue::new(kernel);
            let bundles = match bundles {
                true => queue.kernel().bundles(),
                false => Support::No("Options::bundles says so".into()),
            };
            let fixed = FixedBuffers::new(queue.kernel(), buffers, place_bytes);
            return Ok(Self {
                provided: None,
                queue,
                mode,
                bundles,
                owed: Owed::new(sends, FIRST_NUMBER),
                sends,
                fixed: Registrations::new(fixed),
                regions: Vec::new(),
                vectors: None,
                awaited: None,
                first: None,
                copied: 0,
                lost: None,
                stopped: None,
                strays: 0,
                life,
            });
        }
        let source = refused.unwrap_or_else(|| Errno::INVAL.into());
        Err(UringError::Setup { support: support::refusal(&source), source })
    }

    /// Whether regions can be registered with this ring.
    #[must_use]
    pub fn fixed_support(&self) -> Support {
        zcmi_mem::registration::Device::support(self.fixed.device())
    }

    /// Whether several segments of one registered buffer go in one request.
    #[must_use]
    pub fn vectors(&self) -> Support {
        match self.vectors {
            Some(true) => Support::Yes,
            Some(false) => Support::No("this kernel's SENDMSG_ZC takes no registered buffer (before 6.15)".into()),
            None => Support::Unknown("no send has tried it yet".into()),
        }
    }

    /// Shows the ring a region, under the number that the [`Home`](crate::wire::Home) of its segments has; once.
    ///
    /// # Errors
    /// [`FixedError`]. Nothing is kept then, and segments of the region go by other paths.
    pub fn register(&mut self, number: usize, region: &Arc<Region>) -> Result<(), FixedError> {
        self.life.check().map_err(|_| FixedError::Closed)?;
        let registered = self.fixed.get(region)?;
        if self.regions.len() <= number {
            self.regions.resize_with(number + 1, || None);
        }
        self.regions[number] = Some(registered);
        Ok(())
    }

    /// Takes a region back, if nothing of it is in flight.
    ///
    /// # Errors
    /// [`RemoveError::InUse`], and everything stays as it was: try again after further notifications.
    pub fn unregister(&mut self, region: &Arc<Region>) -> Result<(), RemoveError> {
        self.look();
        let of = |place: &Option<Registered<FixedRegion>>| {
            place.as_ref().is_some_and(|registered| registered.region().id() == region.id())
        };
        let numbers: Vec<usize> = (0..self.regions.len()).filter(|&number| of(&self.regions[number])).collect();
        let handles: Vec<_> = numbers.iter().filter_map(|&number| self.regions[number].take()).collect();
        let in_flight = handles.first().map_or(0, Registered::in_flight);
        if in_flight > 0 {
            for (number, handle) in numbers.into_iter().zip(handles) {
                self.regions[number] = Some(handle);
            }
            return Err(RemoveError::InUse { region: region.id(), in_flight, handles: 1 });
        }
        drop(handles);
        self.fixed.remove(region.id())
    }

    /// The table of registered buffers.
    #[must_use]
    pub fn buffers(&self) -> &FixedBuffers {
        self.fixed.device()
    }

    /// How many answers of the kernel are outstanding: its notifications, whoever they are for.
    #[must_use]
    pub fn owed(&self) -> usize {
        self.owed.requests() + usize::from(self.lost.is_some())
    }

    /// How many sends by a socket are not done with: owed, or notified and not taken by
    /// [`notifications`](Self::notifications).
    #[must_use]
    pub fn owed_to(&self, key: u32) -> usize {
        self.owed.calls(key)
    }

    /// How many answers the kernel gave that nobody waited for; never any, if it keeps its word.
    #[must_use]
    pub fn strays(&self) -> u64 {
        self.strays
    }

    /// Sends a prefix of the segments through a connected stream socket, without waiting.
    ///
    /// `key` is the caller's name for the socket, by which [`notifications`](Self::notifications) are asked for. What
    /// was sent is to be kept until then where the answer says [`Release::Notified`].
    ///
    /// # Errors
    /// The kernel's own, and nothing was sent: `WouldBlock`; `ENOBUFS` or `ENOMEM` when memory may not be locked or too
    /// much is in flight; `EOPNOTSUPP` where the socket cannot do it. A [`Refusal`] inside the error: the path is not
    /// ours, a segment is not registered, or the ring has stopped. Nothing is owed to the caller in any of these cases;
    /// after [`Refusal::Lost`] alone the bytes may still be read, and some of them may have been sent.
    pub fn send(
        &mut self,
        socket: BorrowedFd<'_>,
        key: u32,
        path: PathKind,
        segments: &[Segment<'_>],
    ) -> io::Result<Sent> {
        self.life.check().map_err(io::Error::other)?;
        if let Some(refusal) = self.stopped {
            return Err(refusal.into());
        }
        if !matches!(path, PathKind::UringSend | PathKind::UringZeroCopy | PathKind::UringFixed) {
            return Err(Refusal::NotOurs { path }.into());
        }
        if segments.iter().all(|segment| segment.bytes.is_empty()) {
            return Ok(Sent { bytes: 0, release: Release::Now });
        }
        let envelope = Envelope::default();
        match path {
            PathKind::UringSend => {
                let request = Request::Message { socket, envelope, segments, zero_copy: false, buffer: None };
                let bytes = self.copied(socket, request, false)?;
                Ok(Sent { bytes, release: Release::Now })
            }
            PathKind::UringZeroCopy => self.zero_copy(key, |ring, call| {
                let request = Request::Message { socket, envelope, segments, zero_copy: true, buffer: None };
                let first = ring.shared(socket, call, request, false, None)?;
                call.count(first).map(drop)
            }),
            _ => self.fixed(socket, key, segments),
        }
    }

    /// Sends the segments as one datagram, or as several, through a datagram socket, without waiting: all or nothing.
    /// From registered buffers only if all segments lie in one.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub(crate) fn send_datagrams(
        &mut self,
        socket: BorrowedFd<'_>,
        key: u32,
        path: PathKind,
        envelope: Envelope<'_>,
        segments: &[Segment<'_>],
    ) -> io::Result<Release> {
        self.life.check().map_err(io::Error::other)?;
        if let Some(refusal) = self.stopped {
            return Err(refusal.into());
        }
        if segments.len() > sys::PARTS {
            return Err(Errno::MSGSIZE.into());
        }
        let place = match path {
            PathKind::UringSend => {
                let request = Request::Message { socket, envelope, segments, zero_copy: false, buffer: None };
                self.copied(socket, request, false)?;
                return Ok(Release::Now);
            }
            PathKind::UringZeroCopy => None,
            PathKind::UringFixed => {
                let fits = self.vector(segments) == segments.len();
                let place = segments.first().and_then(|segment| self.place(segment, segment.bytes));
                let bytes = segments.iter().map(|segment| segment.bytes.len()).sum();
                let region = segments.first().and_then(|segment| segment.home).map(|home| home.region);
                Some(place.filter(|_| fits).ok_or(Refusal::NotRegistered { region, bytes })?)
            }
            _ => return Err(Refusal::NotOurs { path }.into()),
        };
        let sent = self.zero_copy(key, |ring, call| {
            let buffer = place.map(|place| place.index);
            let request = Request::Message { socket, envelope, segments, zero_copy: true, buffer };
            let used = place.and_then(|place| ring.used(place));
            let first = ring.shared(socket, call, request, false, used)?;
            if place.is_some() && first.result == Err(Errno::INVAL) && ring.vectors.is_none() {
                ring.vectors = Some(false);
            }
            call.count(first).map(drop)
        })?;
        Ok(sent.release)
    }

    /// Gives each notification that has come for a socket to `each`.
    ///
    /// # Errors
    /// In a forked child.
    pub fn notifications(&mut self, key: u32, each: &mut dyn FnMut(Notification)) -> io::Result<()> {
        self.life.check().map_err(io::Error::other)?;
        self.look();
        self.owed.take(key, each);
        Ok(())
    }

    /// Whether a notification was taken from the kernel already, so that waiting for the descriptor would not tell of
    /// it: to be asked before each wait.
    pub fn has_news(&mut self) -> bool {
        self.reap();
        self.owed.with_news().is_some()
    }

    /// The key of a socket for which a notification has come, if there is one.
    pub fn notified(&mut self) -> Option<u32> {
        self.life.check().ok()?;
        self.look();
        self.owed.with_news()
    }

    /// Waits until nothing is owed, but not longer than `timeout`; returns what is still [`owed`](Self::owed) then.
    ///
    /// The notifications stay to be taken.
    pub fn settle(&mut self, timeout: Duration) -> usize {
        let until = Instant::now() + timeout;
        if self.life.check().is_err() {
            return self.owed();
        }
        loop {
            self.look();
            let left = until.saturating_duration_since(Instant::now());
            if self.owed() == 0 || left.is_zero() {
                return self.owed();
            }
            match self.queue.enter(false, Some(left)) {
                Ok(()) => {}
                Err(error) if is_passing(&error) => {}
                Err(_) => return self.owed(),
            }
        }
    }

    /// Takes what the kernel has for us, without waiting.
    fn look(&mut self) {
        if self.life.check().is_err() {
            return;
        }
        if self.queue.has_work() {
            // What it refuses now comes with a later call.
            let _later = self.queue.enter(false, None);
        }
        self.reap();
    }

    fn reap(&mut self) {
        while let Some(completion) = self.queue.pop() {
            let (ticket, mark) = Ticket::from_word(completion.word);
            let notification = completion.is_notification();
            if !notification && self.awaited == Some(completion.word) {
                self.awaited = None;
                self.first = Some(completion);
                continue;
            }
            let expected = match mark {
                // The first completion of a request that was given up.
                ZERO_COPY if !notification && completion.more() => true,
                ZERO_COPY => self.owed.settled(ticket, notification && completion.copied(), InFlight::completed),
                COPIED if self.lost == Some(completion.word) => {
                    self.lost = None;
                    true
                }
                RECEIVE => self.provided.as_mut().is_some_and(|provided| provided.completed(completion)),
                CANCEL => true,
                _ => false,
            };
            self.strays += u64::from(!expected);
        }
    }

    /// Pushes a request and takes the kernel's first answer.
    fn exchange(
        &mut self,
        socket: BorrowedFd<'_>,
        request: Request<'_>,
        more: bool,
        word: u64,
    ) -> Result<First, Refusal> {
        // An earlier request of the same send may have been the last.
        self.stopped.map_or(Ok(()), Err)?;
        self.first = None;
        self.awaited = Some(word);
        let answer = self.submit(request, more, word).and_then(|()| {
            if self.wait_first(word) {
                return Ok(());
            }
            // Never seen to happen: a request that must not wait did. No byte of it may leave later.
            let _shut = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
            let ticket = Ticket { index: 0, stamp: 0 };
            if let Err(refusal) = self.submit(Request::Cancel { word }, false, ticket.word(CANCEL)) {
                // Whether or not the kernel takes the cancel, it has the request, and may read its bytes.
                self.stopped = Some(refusal);
            }
            if self.wait_first(word) { Ok(()) } else { Err(Refusal::Lost) }
        });
        self.awaited = None;
        match (answer, self.first.take()) {
            (Ok(()), Some(first)) => {
                let result = usize::try_from(first.result);
                let result = result.map_err(|_| Errno::from_raw_os_error(first.result.wrapping_neg()));
                Ok(First { result, more: first.more() })
            }
            (answer, _) => {
                let refusal = answer.err().unwrap_or(Refusal::Lost);
                // This request is lost; those that are refused from now on were never begun.
                self.stopped =
                    Some(if refusal == Refusal::Lost { Refusal::Stopped { errno: Errno::TIME } } else { refusal });
                Err(refusal)
            }
        }
    }

    /// Has the kernel take a request; whether it did is told by its head of the queue, and not by what it returned.
    fn submit(&mut self, request: Request<'_>, more: bool, word: u64) -> Result<(), Refusal> {
        if !self.queue.push(request, more, word) {
            return Err(Refusal::Stopped { errno: Errno::NOSPC });
        }
        let mut last = Errno::AGAIN;
        for _ in 0..OFFERS {
            let answer = self.queue.enter(true, None);
            self.reap();
            if self.queue.unsubmitted() == 0 {
                return Ok(());
            }
            match answer {
                Ok(()) => {}
                Err(error) => {
                    last = Errno::from_io_error(&error).unwrap_or(Errno::IO);
                    if !is_passing(&error) {
                        break;
                    }
                    std::thread::yield_now();
                }
            }
        }
        Err(Refusal::Stopped { errno: last })
    }

    /// Waits for the first completion, a bounded time; almost always it is there already.
    fn wait_first(&mut self, word: u64) -> bool {
        self.awaited = self.first.is_none().then_some(word);
        self.reap();
        for _ in 0..WAITS {
            if self.first.is_some() {
                return true;
            }
            let answer = self.queue.enter(false, Some(WAIT));
            self.reap();
            if answer.is_err_and(|error| !is_passing(&error)) {
                break;
            }
        }
        self.first.is_some()
    }

    /// A request that copies.
    fn copied(&mut self, socket: BorrowedFd<'_>, request: Request<'_>, more: bool) -> io::Result<usize> {
        self.copied = self.copied.wrapping_add(1);
        let word = Ticket { index: self.copied, stamp: 0 }.word(COPIED);
        let first = self.exchange(socket, request, more, word).inspect_err(|refusal| {
            self.lost = (*refusal == Refusal::Lost).then_some(word).or(self.lost);
        })?;
        Ok(first.result?)
    }

    /// A request after which the kernel may read the bytes; `used` is what it uses of registered regions.
    fn shared(
        &mut self,
        socket: BorrowedFd<'_>,
        call: &mut Call,
        request: Request<'_>,
        more: bool,
        used: Option<InFlight<FixedRegion>>,
    ) -> io::Result<First> {
        if self.owed.requests() >= self.sends as usize || !self.owed.has_room_for(call.ticket, 1) {
            if let Some(used) = used {
                used.completed();
            }
            return Err(Errno::NOBUFS.into());
        }
        let ticket = self.owed.pushed(call.ticket, used);
        let first = match self.exchange(socket, request, more, ticket.word(ZERO_COPY)) {
            // No notification will come: the kernel never reads it.
            Err(refusal @ Refusal::Stopped { .. }) => {
                self.owed.settled(ticket, false, InFlight::completed);
                return Err(refusal.into());
            }
            Err(refusal) => {
                call.lost = true;
                return Err(refusal.into());
            }
            Ok(first) => first,
        };
        let owes = first.more;
        #[cfg(test)]
        let owes = owes && (first.result.is_ok() || !model::is_planted(model::Mutant::ErrorOwesNothing));
        if !owes {
            self.owed.settled(ticket, false, InFlight::completed);
        } else if !matches!(first.result, Ok(1..)) {
            self.owed.took_nothing(ticket);
        }
        Ok(first)
    }

    /// A send that may be owed notifications; `requests` makes its requests, and an error after some bytes were
    /// accepted is no error: it comes again with the rest.
    fn zero_copy(
        &mut self,
        key: u32,
        requests: impl FnOnce(&mut Self, &mut Call) -> io::Result<()>,
    ) -> io::Result<Sent> {
        // What the kernel still has for us comes with the call that submits.
        self.reap();
        let ticket = self.owed.begin(key).ok_or(Errno::NOBUFS)?;
        let mut call = Call { ticket, bytes: 0, shared: false, lost: false };
        let outcome = requests(self, &mut call);
        // A send of which a request was lost is lost as a whole, whatever was accepted of it: nobody may be told that
        // the bytes behind those are free.
        let number = self.owed.end(ticket, call.shared && !call.lost, InFlight::completed);
        let release = number.map_or(Release::Now, Release::Notified);
        match outcome {
            Err(error) if call.bytes == 0 || call.lost => Err(error),
            _ => Ok(Sent { bytes: call.bytes, release }),
        }
    }

    /// Where the bytes of a segment lie in the table of registered buffers.
    fn place(&self, segment: &Segment<'_>, bytes: &[u8]) -> Option<Place> {
        let region = segment.home?.region;
        let (index, fits) = self.regions.get(region)?.as_ref()?.registration().find(bytes)?;
        Some(Place { region, index, fits })
    }

    /// How many segments from the first on lie wholly in one place of the table, so that they can go in one request.
    fn vector(&self, segments: &[Segment<'_>]) -> usize {
        let place = |segment: &Segment<'_>| {
            let place = self.place(segment, segment.bytes)?;
            (place.fits == segment.bytes.len()).then_some(place.index)
        };
        let Some(first) = segments.first().and_then(place).filter(|_| self.vectors != Some(false)) else { return 0 };
        segments.iter().take(sys::PARTS).take_while(|segment| place(segment) == Some(first)).count()
    }

    fn used(&self, place: Place) -> Option<InFlight<FixedRegion>> {
        Some(self.regions.get(place.region)?.as_ref()?.begin())
    }

    fn fixed(&mut self, socket: BorrowedFd<'_>, key: u32, segments: &[Segment<'_>]) -> io::Result<Sent> {
        for segment in segments {
            let bytes = segment.bytes.len();
            if bytes > COPIED_BYTES && self.place(segment, segment.bytes).is_none() {
                return Err(Refusal::NotRegistered { region: segment.home.map(|home| home.region), bytes }.into());
            }
        }
        self.zero_copy(key, |ring, call| ring.fixed_requests(socket, segments, call))
    }

    /// Requests for the segments, as few as the kernel allows.
    fn fixed_requests(&mut self, socket: BorrowedFd<'_>, segments: &[Segment<'_>], call: &mut Call) -> io::Result<()> {
        let (mut number, mut skip) = (0, 0);
        while let Some(segment) = segments.get(number) {
            let rest = &segment.bytes[skip..];
            if rest.is_empty() {
                (number, skip) = (number + 1, 0);
                continue;
            }
            let together = if skip == 0 { self.vector(&segments[number..]) } else { 0 };
            // Behind MSG_MORE the kernel keeps what is no full packet for 200 ms, so it must not be said where nothing
            // more may be in flight.
            let room = self.owed.requests() + 1 < self.sends as usize && self.owed.has_room_for(call.ticket, 2);
            let more = |next: usize| room && segments[next..].iter().any(|segment| !segment.bytes.is_empty());
            let (wanted, first) = match self.place(segment, rest) {
                Some(place) if together > 1 => {
                    let segments = &segments[number..number + together];
                    let wanted = segments.iter().map(|segment| segment.bytes.len()).sum();
                    let envelope = Envelope::default();
                    let buffer = Some(place.index);
                    let request = Request::Message { socket, envelope, segments, zero_copy: true, buffer };
                    let first = self.shared(socket, call, request, more(number + together), self.used(place))?;
                    if first.result == Err(Errno::INVAL) && self.vectors.is_none() {
                        // An older kernel; the same bytes go one by one.
                        self.vectors = Some(false);
                        continue;
                    }
                    self.vectors = Some(true);
                    (wanted, first)
                }
                Some(place) if rest.len() > COPIED_BYTES => {
                    let more = (room && place.fits < rest.len()) || more(number + 1);
                    let request = Request::Fixed { socket, bytes: &rest[..place.fits], buffer: place.index };
                    (place.fits, self.shared(socket, call, request, more, self.used(place))?)
                }
                _ => {
                    let request = Request::Copied { socket, bytes: rest };
                    let result = self.copied(socket, request, more(number + 1));
                    call.lost = self.lost.is_some();
                    let result = Ok(result?);
                    (rest.len(), First { result, more: false })
                }
            };
            if call.count(first)? < wanted {
                // Behind a gap nothing may follow.
                break;
            }
            (number, skip) = if together > 1 { (number + together, 0) } else { (number, skip + wanted) };
        }
        Ok(())
    }
}

/// Where bytes lie in the table of registered buffers.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// The number of the region.
    region: usize,
    /// The index in the table.
    index: u16,
    /// How many of the bytes are at that index.
    fits: usize,
}

/// A call of `send` that may be owed notifications.
#[derive(Debug)]
struct Call {
    ticket: Ticket,
    /// How many bytes were accepted.
    bytes: usize,
    /// Whether the kernel may still read some of them.
    shared: bool,
    /// Whether the kernel took a request and did not answer it.
    lost: bool,
}

impl Call {
    /// Counts what a request sent.
    fn count(&mut self, first: First) -> io::Result<usize> {
        let bytes = first.result?;
        self.bytes += bytes;
        let shared = first.more && bytes > 0;
        #[cfg(test)]
        let shared = shared && !model::is_planted(model::Mutant::ReleasedAtFirst);
        self.shared |= shared;
        Ok(bytes)
    }
}

/// Whether an answer of `io_uring_enter` may be another one soon.
fn is_passing(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::INTR | Errno::AGAIN | Errno::BUSY | Errno::TIME))
}
