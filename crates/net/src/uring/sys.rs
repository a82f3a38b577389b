//! The kernel calls of io_uring.
//!
//! Every unsafe block here relies on these facts: a [`Kernel`] owns its ring and is closed only in the process that
//! opened it; a [`Queue`] is the only holder of its queues (there is one for each kernel, it is neither `Send` nor
//! `Clone`, and each borrow of a queue is made from `&mut self` and ends inside the method); and requests that are
//! pushed here make the kernel read memory and never write it, so that a request that outlives the bytes it names can
//! send wrong bytes and not break memory. Receiving is the exception: what it writes lies in buffers of a
//! [`BufferRing`], whose user keeps them until a completion names them, or one before them and as many bytes as reach
//! into them, or until [`BufferRing::end`] has taken the queue from the kernel.
#![allow(unsafe_code)]

use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::ptr::{NonNull, null, null_mut};
// Not from sync: the word is shared with the kernel.
use core::sync::atomic::{AtomicU16, Ordering};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use io_uring::types::{BufRingEntry, Fd, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, Probe, cqueue, opcode, squeue};
use rustix::mm::{Advice, MapFlags, ProtFlags};
use rustix::net::SocketAddrAny;
use zcmi_mem::fork::ForkGuard;
use zcmi_mem::region::Span;
use zcmi_mem::registration::Support;

use super::support;
use crate::udp::SegmentControl;
use crate::wire::Segment;

/// The most segments of one request.
pub(super) const PARTS: usize = 256;
/// The number of the one queue of buffers that a ring has.
const GROUP: u16 = 0;
/// Requests in the submission queue; they are pushed one by one.
const ENTRIES: u32 = 8;

// io_uring.h of the kernel: IORING_RECVSEND_FIXED_BUF, IORING_SEND_ZC_REPORT_USAGE and IORING_NOTIF_USAGE_ZC_COPIED;
// the io-uring crate does not name the last two.
const FIXED_BUFFER: u16 = 1 << 2;
const REPORT_USAGE: u16 = 1 << 3;
const USAGE_COPIED: u32 = 1 << 31;

/// Where `buf_index` lies in a submission entry: byte 40 of 64 (io_uring.h); the crate sets it for some requests only.
const BUFFER_INDEX_AT: usize = 40;
const _: () = assert!(size_of::<squeue::Entry>() == 64 && align_of::<squeue::Entry>() == 8);

/// How the kernel runs what it owes a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Only when the ring's thread asks for it, and nobody else may use the ring.
    Deferred,
    /// When the ring's thread enters the kernel anyway, or is woken for it where it sleeps there.
    Cooperative,
    /// At once, by interrupting the thread.
    Plain,
}

/// An io_uring.
pub(super) struct Kernel {
    ring: ManuallyDrop<IoUring>,
    life: ForkGuard,
}

impl Drop for Kernel {
    fn drop(&mut self) {
        if !self.life.is_present() {
            // In a forked child the queues are not mapped: what lies at their addresses is somebody else's.
            return;
        }
        // SAFETY: dropped once, here, and not used afterwards.
        unsafe { ManuallyDrop::drop(&mut self.ring) };
    }
}

impl Kernel {
    pub(super) fn open(mode: Mode, completions: u32, life: ForkGuard) -> io::Result<Self> {
        let mut builder = IoUring::builder();
        builder.dontfork().setup_clamp().setup_cqsize(completions.max(2 * ENTRIES));
        match mode {
            Mode::Deferred => {
                builder.setup_single_issuer().setup_coop_taskrun().setup_defer_taskrun().setup_taskrun_flag();
            }
            Mode::Cooperative => {
                builder.setup_coop_taskrun().setup_taskrun_flag();
            }
            Mode::Plain => {}
        }
        Ok(Self { ring: ManuallyDrop::new(builder.build(ENTRIES)?), life })
    }

    pub(super) fn life(&self) -> ForkGuard {
        self.life
    }

    /// Which of the features that we cannot do without the kernel lacks.
    pub(super) fn missing(&self) -> Option<&'static str> {
        let params = self.ring.params();
        [
            (params.is_feature_nodrop(), "IORING_FEAT_NODROP"),
            (params.is_feature_ext_arg(), "IORING_FEAT_EXT_ARG"),
            (params.is_feature_submit_stable(), "IORING_FEAT_SUBMIT_STABLE"),
        ]
        .into_iter()
        .find_map(|(there, name)| (!there).then_some(name))
    }

    /// Whether one completion can fill several buffers.
    pub(super) fn bundles(&self) -> Support {
        let release = rustix::system::uname();
        support::bundles(self.ring.params().is_feature_recvsend_bundle(), &release.release().to_string_lossy())
    }

    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring is open as long as `self` is.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }

    /// Which requests the kernel knows.
    pub(super) fn probe(&self) -> io::Result<Probe> {
        let mut probe = Probe::new();
        self.ring.submitter().register_probe(&mut probe)?;
        Ok(probe)
    }

    /// Makes room for registered buffers.
    pub(super) fn buffer_table(&self, entries: u32) -> io::Result<()> {
        self.ring.submitter().register_buffers_sparse(entries)
    }

    /// Registers `len` bytes at `begin` of a span.
    pub(super) fn register_buffer(&self, index: u16, span: &Span, begin: usize, len: usize) -> io::Result<()> {
        assert!(span.is_writable() && begin.checked_add(len).is_some_and(|end| end <= span.len()));
        let base = span.base().as_ptr().wrapping_add(begin);
        self.update_buffer(index, libc::iovec { iov_base: base.cast(), iov_len: len })
    }

    /// Makes the place of a registered buffer free again.
    pub(super) fn unregister_buffer(&self, index: u16) -> io::Result<()> {
        self.update_buffer(index, libc::iovec { iov_base: null_mut(), iov_len: 0 })
    }

    fn update_buffer(&self, index: u16, buffer: libc::iovec) -> io::Result<()> {
        // One by one, for the crate does not say how many of several were taken.
        //
        // SAFETY: the range is empty, or lies in a span (checked by the callers) that is mapped now. The kernel pins
        // its pages; should it be unmapped later, they stay what they are.
        unsafe { self.ring.submitter().register_buffers_update(u32::from(index), &[buffer], None) }
    }
}

/// What the kernel said about a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Completion {
    pub(super) word: u64,
    pub(super) result: i32,
    flags: u32,
}

impl Completion {
    /// What a model of the kernel says.
    #[cfg(test)]
    pub(super) fn new(word: u64, result: i32, flags: u32) -> Self {
        Self { word, result, flags }
    }

    /// Whether another one follows.
    pub(super) fn more(&self) -> bool {
        cqueue::more(self.flags)
    }

    /// Whether this is word that bytes are not read any more.
    pub(super) fn is_notification(&self) -> bool {
        cqueue::notif(self.flags)
    }

    /// The number of the first buffer that was filled.
    pub(super) fn buffer(&self) -> Option<u16> {
        cqueue::buffer_select(self.flags)
    }

    /// Whether a notification says that the bytes were copied after all.
    pub(super) fn copied(&self) -> bool {
        self.result as u32 & USAGE_COPIED != 0
    }
}

/// What is asked of the kernel.
#[derive(Clone, Copy)]
pub(super) enum Request<'a> {
    /// `SEND`: bytes that are copied.
    Copied { socket: BorrowedFd<'a>, bytes: &'a [u8] },
    /// `SEND_ZC` of bytes that lie in a registered buffer.
    Fixed { socket: BorrowedFd<'a>, bytes: &'a [u8], buffer: u16 },
    /// `SENDMSG`, or `SENDMSG_ZC`, then perhaps of segments that all lie in one registered buffer.
    Message {
        socket: BorrowedFd<'a>,
        envelope: Envelope<'a>,
        segments: &'a [Segment<'a>],
        zero_copy: bool,
        buffer: Option<u16>,
    },
    /// `RECV`, again and again, into buffers of the queue, several at a time if there are bundles.
    Receive { socket: BorrowedFd<'a>, bundles: bool },
    /// Cancels the request with this word.
    Cancel { word: u64 },
}

/// What is said of datagrams beside their bytes; nothing of it for streams.
#[derive(Clone, Copy, Default)]
pub(crate) struct Envelope<'a> {
    /// Where to, on a socket that is not connected.
    pub(crate) to: Option<&'a SocketAddrAny>,
    /// The bytes of each datagram but the last, if there are several.
    pub(crate) segment: Option<u16>,
}

/// What a message is described by; the kernel has read it when it has taken the request (`IORING_FEAT_SUBMIT_STABLE`).
struct Message {
    header: libc::msghdr,
    name: Option<SocketAddrAny>,
    control: SegmentControl,
    parts: [libc::iovec; PARTS],
}

/// The queues of a ring; they belong to the thread that opened it.
pub(super) struct Queue {
    kernel: Arc<Kernel>,
    message: Box<Message>,
    _of_one_thread: PhantomData<*mut ()>,
}

impl Queue {
    pub(super) fn new(kernel: Kernel) -> Self {
        // SAFETY: all zeros is a value of `msghdr` (null pointers and lengths of 0).
        let header: libc::msghdr = unsafe { core::mem::zeroed() };
        let parts = [libc::iovec { iov_base: null_mut(), iov_len: 0 }; PARTS];
        let message = Box::new(Message { header, name: None, control: SegmentControl::default(), parts });
        Self { kernel: Arc::new(kernel), message, _of_one_thread: PhantomData }
    }

    pub(super) fn kernel(&self) -> &Arc<Kernel> {
        &self.kernel
    }

    fn submissions(&mut self) -> squeue::SubmissionQueue<'_> {
        // SAFETY: no other borrow of this queue exists (module head).
        unsafe { self.kernel.ring.submission_shared() }
    }

    fn completions(&mut self) -> cqueue::CompletionQueue<'_> {
        // SAFETY: no other borrow of this queue exists (module head).
        unsafe { self.kernel.ring.completion_shared() }
    }

    /// Pushes a request, with `more` if further bytes of the same send follow. Returns whether there was room.
    pub(super) fn push(&mut self, request: Request<'_>, more: bool, word: u64) -> bool {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL | if more { libc::MSG_MORE } else { 0 };
        let at = |socket: BorrowedFd<'_>| Fd(socket.as_raw_fd());
        let entry = match request {
            Request::Copied { socket, bytes } => {
                opcode::Send::new(at(socket), bytes.as_ptr(), request_len(bytes)).flags(flags).build()
            }
            Request::Fixed { socket, bytes, buffer } => {
                opcode::SendZc::new(at(socket), bytes.as_ptr(), request_len(bytes))
                    .buf_index(Some(buffer))
                    .zc_flags(REPORT_USAGE)
                    .flags(flags)
                    .build()
            }
            Request::Message { socket, envelope, segments, zero_copy, buffer } => {
                let message = self.describe(envelope, segments);
                match (zero_copy, buffer) {
                    (false, _) => opcode::SendMsg::new(at(socket), message).flags(flags as u32).build(),
                    (true, None) => {
                        opcode::SendMsgZc::new(at(socket), message).ioprio(REPORT_USAGE).flags(flags as u32).build()
                    }
                    (true, Some(buffer)) => {
                        let fixed = REPORT_USAGE | FIXED_BUFFER;
                        let entry = opcode::SendMsgZc::new(at(socket), message).ioprio(fixed).flags(flags as u32);
                        with_buffer(entry.build(), buffer)
                    }
                }
            }
            Request::Receive { socket, bundles: false } => opcode::RecvMulti::new(at(socket), GROUP).build(),
            Request::Receive { socket, bundles: true } => opcode::RecvMultiBundle::new(at(socket), GROUP).build(),
            Request::Cancel { word } => opcode::AsyncCancel::new(word).build(),
        };
        let entry = entry.user_data(word);
        // SAFETY: what the entry points to is there now, and the kernel only reads it (module head).
        unsafe { self.submissions().push(&entry) }.is_ok()
    }

    fn describe(&mut self, envelope: Envelope<'_>, segments: &[Segment<'_>]) -> *const libc::msghdr {
        let Message { header, name, control, parts } = &mut *self.message;
        *name = envelope.to.cloned();
        let (at, length) = name.as_ref().map_or((null(), 0), |name| (name.as_ptr(), name.addr_len()));
        // Sending writes neither there nor to the control data.
        (header.msg_name, header.msg_namelen) = (at.cast_mut().cast(), length);
        let words = envelope.segment.map_or(&[][..], |segment| control.say(segment));
        (header.msg_control, header.msg_controllen) = (words.as_ptr().cast_mut().cast(), words.len() as _);
        let count = segments.len().min(PARTS);
        for (part, segment) in parts.iter_mut().zip(segments) {
            // Sending does not write through the pointer.
            *part = libc::iovec { iov_base: segment.bytes.as_ptr().cast_mut().cast(), iov_len: segment.bytes.len() };
        }
        header.msg_iov = parts.as_mut_ptr();
        header.msg_iovlen = count as _;
        header
    }

    /// How many requests the kernel has not taken.
    pub(super) fn unsubmitted(&mut self) -> usize {
        self.submissions().len()
    }

    /// Whether the kernel has something for this ring that it posts only when asked.
    pub(super) fn has_work(&mut self) -> bool {
        let queue = self.submissions();
        queue.taskrun() || queue.cq_overflow()
    }

    /// Submits what was pushed, has the kernel post what it has, and waits for a completion if `patience` is given.
    pub(super) fn enter(&mut self, submit: bool, patience: Option<Duration>) -> io::Result<()> {
        let count = if submit { self.unsubmitted() as u32 } else { 0 };
        // Always with GETEVENTS: word that a send is done with is often there before the call that made it returns, and
        // would take a call of its own.
        let flags = EnterFlags::EXT_ARG | EnterFlags::GETEVENTS;
        let time = patience.map(Timespec::from);
        let args = match &time {
            Some(time) => SubmitArgs::new().timespec(time),
            None => SubmitArgs::new(),
        };
        let submitter = self.kernel.ring.submitter();
        // SAFETY: the argument is what EXT_ARG says that it is, and lives until the call returns.
        let answer = unsafe { submitter.enter(count, u32::from(patience.is_some()), flags.bits(), Some(&args)) };
        answer.map(drop)
    }

    /// The next completion that is there.
    pub(super) fn pop(&mut self) -> Option<Completion> {
        let entry = self.completions().next()?;
        Some(Completion { word: entry.user_data(), result: entry.result(), flags: entry.flags() })
    }
}

/// A queue of buffers to receive into, shared with the kernel: entries of 16 bytes, the tail in the last two bytes of
/// the first.
pub(super) struct BufferRing {
    kernel: Arc<Kernel>,
    entries: NonNull<BufRingEntry>,
    count: u16,
    tail: u16,
    ended: bool,
    _of_one_thread: PhantomData<*mut ()>,
}

impl BufferRing {
    pub(super) fn new(kernel: &Arc<Kernel>, count: u16) -> Result<Self, (&'static str, io::Error)> {
        assert!(count.is_power_of_two());
        let bytes = Self::bytes_for(count);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe {
            rustix::mm::mmap_anonymous(null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
        };
        let base = base.map_err(|errno| ("mmap", errno.into()))?;
        let entries = NonNull::new(base.cast()).ok_or(("mmap", io::ErrorKind::InvalidData.into()))?;
        let (kernel, ended) = (Arc::clone(kernel), true);
        let mut ring = Self { kernel, entries, count, tail: 0, ended, _of_one_thread: PhantomData };
        // A forked child that wrote its copy would do no harm, but has no use for it.
        //
        // SAFETY: our own mapping, made above.
        unsafe { rustix::mm::madvise(base, bytes, Advice::LinuxDontFork) }
            .map_err(|errno| ("madvise", errno.into()))?;
        let submitter = ring.kernel.ring.submitter();
        let address = base.addr() as u64;
        // SAFETY: the mapping holds `count` entries, all zeros, and stays until the queue was taken from the kernel.
        let answer = unsafe { submitter.register_buf_ring_with_flags(address, count, GROUP, 0) };
        answer.map_err(|source| ("io_uring_register(IORING_REGISTER_PBUF_RING)", source))?;
        ring.ended = false;
        Ok(ring)
    }

    fn bytes_for(count: u16) -> usize {
        (usize::from(count) * size_of::<BufRingEntry>()).next_multiple_of(rustix::param::page_size())
    }

    /// Lets the kernel write into a buffer, which the caller keeps until a completion names its number, or says that it
    /// was filled after another one. Returns the place of its entry.
    ///
    /// There are never more than `count` buffers with the kernel: their numbers are below it, and each is there once.
    pub(super) fn push(&mut self, buffer: &mut [u8], number: u16) -> u16 {
        assert!(number < self.count && !self.ended);
        let at = usize::from(self.tail & (self.count - 1));
        // SAFETY: `at` is below `count`, so this is an entry of the mapping.
        let entry = unsafe { self.entries.add(at) };
        // SAFETY: the kernel does not read an entry past the tail, and reads of the first one's tail do not write.
        let entry = unsafe { &mut *entry.as_ptr() };
        entry.set_addr(buffer.as_mut_ptr().expose_provenance() as u64);
        entry.set_len(buffer.len().min(u32::MAX as usize) as u32);
        entry.set_bid(number);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the first entry of the mapping.
        let tail = unsafe { BufRingEntry::tail(self.entries.as_ptr()) }.cast_mut();
        // SAFETY: inside the mapping, aligned to 2, written by this thread alone; the kernel reads it as an atomic.
        let tail = unsafe { AtomicU16::from_ptr(tail) };
        // Publishes the entry; pairs with the kernel's acquiring load of the tail.
        tail.store(self.tail, Ordering::Release);
        at as u16
    }

    /// The bytes of the buffer whose entry is there, as the kernel left them; to be asked when it has filled it.
    pub(super) fn len(&self, place: u16) -> usize {
        assert!(place < self.count);
        // SAFETY: below `count`, so this is an entry of the mapping.
        let entry = unsafe { self.entries.add(usize::from(place)) };
        // SAFETY: a copy of an entry that the kernel is done with; every value is one of its fields'.
        unsafe { entry.read_volatile() }.len() as usize
    }

    /// Takes the queue from the kernel; whether its buffers are now written no more.
    pub(super) fn end(&mut self) -> bool {
        if !self.ended && self.kernel.life().is_present() {
            self.ended = self.kernel.ring.submitter().unregister_buf_ring(GROUP).is_ok();
        }
        self.ended
    }
}

impl Drop for BufferRing {
    fn drop(&mut self) {
        if self.end() && self.kernel.life().is_present() {
            // SAFETY: our own mapping, which the kernel does not use any more; no reference into it is left.
            let _unmapped = unsafe { rustix::mm::munmap(self.entries.as_ptr().cast(), Self::bytes_for(self.count)) };
        }
    }
}

/// The length of one request; what is beyond it is sent by the next.
fn request_len(bytes: &[u8]) -> u32 {
    bytes.len().min(1 << 30) as u32
}

/// The entry, with the index of a registered buffer.
fn with_buffer(mut entry: squeue::Entry, buffer: u16) -> squeue::Entry {
    let at = (&raw mut entry).cast::<u8>().wrapping_add(BUFFER_INDEX_AT).cast::<u16>();
    // SAFETY: inside the entry, which has the kernel's layout (`repr(C)`, 64 bytes, asserted above), aligned to 2, and
    // ours alone; every value is one of the field's union.
    unsafe { at.write(buffer) };
    entry
}
