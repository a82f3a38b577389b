//! The kernel calls by which ways of receiving are asked for.
//!
//! Every unsafe block here relies on this: a mapping is made at an address of the kernel's choice, is known to its call
//! alone, and is unmapped before that returns; and a ring is asked through its own open descriptor, with words that
//! live over the call.
#![allow(unsafe_code)]

use std::io;
use std::net::TcpStream;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr::{NonNull, null_mut};

use io_uring::{IoUring, cqueue, squeue};

/// `TCP_ZEROCOPY_RECEIVE` of linux/tcp.h.
const ZEROCOPY_RECEIVE: libc::c_int = 35;
/// `IORING_REGISTER_PBUF_RING` and `IORING_REGISTER_ZCRX_IFQ` of linux/io_uring.h.
const REGISTER_BUFFER_RING: libc::c_uint = 22;
const REGISTER_QUEUE: libc::c_uint = 32;
/// `IOU_PBUF_RING_MMAP` (the kernel has the memory) and `IOU_PBUF_RING_INC`.
const MEMORY_OF_KERNEL: u16 = 1;
const INCREMENTAL: u16 = 2;
/// Bytes of the memory that a card would fill, and of the ring by which that is given back.
const AREA_BYTES: usize = 64 << 10;
const RING_BYTES: usize = 16 << 10;

/// `struct tcp_zerocopy_receive` of linux/tcp.h, as long as it was at first.
#[repr(C)]
struct Mapping {
    address: u64,
    /// In: bytes that may be mapped; out: bytes that were.
    length: u32,
    skip: u32,
}
const _: () = assert!(size_of::<Mapping>() == 16);

/// `struct io_uring_buf_reg`.
#[repr(C)]
#[derive(Default)]
struct BufferRing {
    address: u64,
    entries: u32,
    group: u16,
    flags: u16,
    reserved: [u64; 3],
}
const _: () = assert!(size_of::<BufferRing>() == 40);

/// `struct io_uring_zcrx_area_reg`.
#[repr(C)]
#[derive(Default)]
struct Area {
    address: u64,
    bytes: u64,
    token: u64,
    flags: u32,
    dmabuf: u32,
    reserved: [u64; 2],
}
const _: () = assert!(size_of::<Area>() == 48);

/// `struct io_uring_region_desc`.
#[repr(C)]
#[derive(Default)]
struct Memory {
    address: u64,
    bytes: u64,
    flags: u32,
    id: u32,
    offset: u64,
    reserved: [u64; 4],
}
const _: () = assert!(size_of::<Memory>() == 64);

/// `struct io_uring_zcrx_ifq_reg`.
#[repr(C)]
#[derive(Default)]
struct Queue {
    interface: u32,
    queue: u32,
    entries: u32,
    flags: u32,
    area: u64,
    memory: u64,
    offsets: [u64; 4],
    id: u32,
    reserved: u32,
    more: [u64; 3],
}
const _: () = assert!(size_of::<Queue>() == 96);

/// Memory that is gone with this.
struct Mapped {
    at: NonNull<libc::c_void>,
    bytes: usize,
}

impl Mapped {
    /// Of a socket for reading, or else of nothing, for writing too.
    fn new(bytes: usize, of: Option<RawFd>) -> io::Result<Self> {
        let (rights, kind) = match of {
            Some(_) => (libc::PROT_READ, libc::MAP_SHARED),
            None => (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE),
        };
        // SAFETY: at an address of the kernel's choice it replaces nothing.
        let at = unsafe { libc::mmap(null_mut(), bytes, rights, kind, of.unwrap_or(-1), 0) };
        match NonNull::new(at).filter(|_| at != libc::MAP_FAILED) {
            Some(at) => Ok(Self { at, bytes }),
            None => Err(io::Error::last_os_error()),
        }
    }

    fn address(&self) -> u64 {
        self.at.as_ptr().expose_provenance() as u64
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: a mapping of our own, to which nothing refers any more.
        let _gone = unsafe { libc::munmap(self.at.as_ptr(), self.bytes) };
    }
}

/// How many bytes of what a socket received the kernel maps, of `bytes` at most; these are taken from the socket.
pub(super) fn map_received(socket: &TcpStream, bytes: usize) -> io::Result<usize> {
    let place = Mapped::new(bytes, Some(socket.as_raw_fd()))?;
    let mut mapping = Mapping { address: place.address(), length: bytes as u32, skip: 0 };
    let mut length = size_of::<Mapping>() as libc::socklen_t;
    let option = (&raw mut mapping).cast::<libc::c_void>();
    // SAFETY: an open socket, and as many bytes to write as are said; the pages that it maps lie in `place`, whose
    // memory nobody reads.
    let answer =
        unsafe { libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, ZEROCOPY_RECEIVE, option, &raw mut length) };
    if answer != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(mapping.length as usize)
}

/// Makes a ring of buffers of the kernel's own memory, which goes with the io_uring.
pub(super) fn make_buffer_ring(ring: &IoUring, incremental: bool) -> io::Result<()> {
    let flags = MEMORY_OF_KERNEL | if incremental { INCREMENTAL } else { 0 };
    let mut asked = BufferRing { entries: 4, group: u16::from(incremental), flags, ..BufferRing::default() };
    register(ring.as_raw_fd(), REGISTER_BUFFER_RING, (&raw mut asked).cast())
}

/// Asks for the first queue of an interface; with none, asks for nothing, by an argument that the kernel cannot read.
pub(super) fn ask_for_queue(ring: &IoUring<squeue::Entry, cqueue::Entry32>, interface: Option<u32>) -> io::Result<()> {
    // No argument at all is refused before it is known whether there is such a request.
    let nowhere = std::ptr::without_provenance_mut(size_of::<u64>());
    let Some(interface) = interface else { return register(ring.as_raw_fd(), REGISTER_QUEUE, nowhere) };
    let (memory, own) = (Mapped::new(AREA_BYTES, None)?, Mapped::new(RING_BYTES, None)?);
    let mut area = Area { address: memory.address(), bytes: AREA_BYTES as u64, ..Area::default() };
    // IORING_MEM_REGION_TYPE_USER
    let mut given = Memory { address: own.address(), bytes: RING_BYTES as u64, flags: 1, ..Memory::default() };
    let mut queue = Queue {
        interface,
        entries: 64,
        area: (&raw mut area).expose_provenance() as u64,
        memory: (&raw mut given).expose_provenance() as u64,
        ..Queue::default()
    };
    // Should it be given, nothing is received into it: the caller closes the ring, and the kernel keeps the pages so
    // long.
    register(ring.as_raw_fd(), REGISTER_QUEUE, (&raw mut queue).cast())
}

fn register(ring: RawFd, what: libc::c_uint, argument: *mut libc::c_void) -> io::Result<()> {
    // SAFETY: an open ring, and an argument that lives over the call and has the form that this request has, or lies
    // in the first page, which is never mapped, so that the kernel refuses it.
    let answer = unsafe { libc::syscall(libc::SYS_io_uring_register, ring, what, argument, 1) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
