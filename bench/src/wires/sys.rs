//! The kernel calls of wires that rustix lacks: a new namespace for a thread, a way into one for a child, XDP, and tun
//! devices.
//!
//! Every unsafe block here relies on one of these facts: a call gets pointers into values that live over the call, of
//! the sizes that are told; a number that became an owned descriptor was returned by the call right before, so that
//! nobody else owns it; and what runs between fork and exec does one system call and nothing else.
#![allow(unsafe_code)]

use core::ffi::{c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

/// `BPF_PROG_LOAD`, `BPF_LINK_CREATE` and `BPF_LINK_DETACH` of `enum bpf_cmd`, include/uapi/linux/bpf.h.
const BPF_PROG_LOAD: c_int = 5;
const BPF_LINK_CREATE: c_int = 28;
const BPF_LINK_DETACH: c_int = 34;
/// `BPF_PROG_TYPE_XDP` of `enum bpf_prog_type`.
const BPF_PROG_TYPE_XDP: u32 = 6;
/// `BPF_XDP` of `enum bpf_attach_type`.
const BPF_XDP: u32 = 37;
/// In the driver itself and not in the generic hook, include/uapi/linux/if_link.h.
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// `SIOCETHTOOL`, include/uapi/linux/sockios.h, and its commands, include/uapi/linux/ethtool.h.
const SIOCETHTOOL: libc::c_ulong = 0x8946;
const ETHTOOL_GSG: u32 = 0x18;
const ETHTOOL_SSG: u32 = 0x19;

/// Gives the calling thread a network namespace of its own.
pub(super) fn unshare_network() -> io::Result<()> {
    // SAFETY: only the flag for the network is given, so the thread goes on sharing descriptors and memory.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.map_err(io::Error::from)
}

/// Makes the command start in a network namespace.
pub(super) fn start_in(command: &mut Command, namespace: OwnedFd) {
    let enter = move || {
        move_into_link_name_space(rustix::fd::AsFd::as_fd(&namespace), Some(LinkNameSpaceType::Network))
            .map_err(io::Error::from)
    };
    // SAFETY: between fork and exec the closure does one system call, `setns`, and neither allocates nor locks.
    unsafe { command.pre_exec(enter) };
}

/// The beginning of `union bpf_attr` for `BPF_PROG_LOAD`; the kernel takes what is past it as zero.
#[repr(C)]
struct LoadProgram {
    kind: u32,
    instructions: u32,
    first_instruction: u64,
    license: u64,
    log_level: u32,
    log_bytes: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

/// The beginning of `union bpf_attr` for `BPF_LINK_CREATE`.
#[repr(C)]
struct CreateLink {
    program: u32,
    interface: u32,
    attach: u32,
    flags: u32,
}

/// The beginning of `union bpf_attr` for `BPF_LINK_DETACH`.
#[repr(C)]
struct DetachLink {
    link: u32,
}

fn bpf<T>(command: c_int, attributes: &T) -> io::Result<c_int> {
    let at: *const T = attributes;
    // SAFETY: the commands used here read `size_of::<T>()` bytes at `at`, which live over the call, and write none.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, at, size_of::<T>()) };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    c_int::try_from(answer).map_err(io::Error::other)
}

fn bpf_descriptor<T>(command: c_int, attributes: &T) -> io::Result<OwnedFd> {
    let number = bpf(command, attributes)?;
    // SAFETY: the commands for which this is used return a descriptor that the kernel just opened for the call.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Loads the XDP program that lets everything pass.
pub(super) fn load_xdp_pass() -> io::Result<OwnedFd> {
    // `mov r0, XDP_PASS` and `exit`: opcode, registers, offset, and the 32-bit value in the upper half.
    const PROGRAM: [u64; 2] = [0xb7 | (2 << 32), 0x95];
    let license = c"MIT";
    bpf_descriptor(
        BPF_PROG_LOAD,
        &LoadProgram {
            kind: BPF_PROG_TYPE_XDP,
            instructions: 2,
            first_instruction: PROGRAM.as_ptr().expose_provenance() as u64,
            license: license.as_ptr().expose_provenance() as u64,
            log_level: 0,
            log_bytes: 0,
            log: 0,
            kernel_version: 0,
            flags: 0,
        },
    )
}

/// Attaches an XDP program to an interface of the calling thread's namespace, in the driver; closing the link detaches.
pub(super) fn attach_xdp(program: BorrowedFd<'_>, interface: u32) -> io::Result<OwnedFd> {
    let program = program.as_raw_fd().cast_unsigned();
    bpf_descriptor(BPF_LINK_CREATE, &CreateLink { program, interface, attach: BPF_XDP, flags: XDP_FLAGS_DRV_MODE })
}

/// Detaches a program, whoever has its link open.
pub(super) fn detach(link: BorrowedFd<'_>) -> io::Result<()> {
    bpf(BPF_LINK_DETACH, &DetachLink { link: link.as_raw_fd().cast_unsigned() }).map(|_| ())
}

/// `struct ethtool_value`.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

fn ethtool(socket: BorrowedFd<'_>, interface: &str, mut value: EthtoolValue) -> io::Result<u32> {
    let at: *mut EthtoolValue = &raw mut value;
    let mut request =
        libc::ifreq { ifr_name: name_of(interface)?, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_data: at.cast() } };
    let request: *mut c_void = (&raw mut request).cast();
    // SAFETY: the request lives over the call and points to a `struct ethtool_value`, which lives as long and is as
    // long as both commands used here read and write.
    if unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `at` points to `value`, which is alive; only the kernel wrote to it, and the call is over.
    Ok(unsafe { at.read() }.data)
}

/// Whether an interface gathers scattered pages; the socket tells the namespace.
pub(super) fn scatter_gather(socket: BorrowedFd<'_>, interface: &str) -> io::Result<bool> {
    ethtool(socket, interface, EthtoolValue { command: ETHTOOL_GSG, data: 0 }).map(|data| data != 0)
}

/// Switches the gathering of scattered pages.
pub(super) fn set_scatter_gather(socket: BorrowedFd<'_>, interface: &str, on: bool) -> io::Result<()> {
    ethtool(socket, interface, EthtoolValue { command: ETHTOOL_SSG, data: on.into() }).map(|_| ())
}

/// Makes a tun device of that name in the calling thread's namespace, for IP packets without a header before them. It
/// is there as long as the descriptor, which does not block.
pub(super) fn open_tun(interface: &str) -> io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let device = rustix::fs::open("/dev/net/tun", flags, Mode::empty())?;
    // The kernel knows these two flags as the low half of a word.
    let flags = libc::c_short::try_from(libc::IFF_TUN | libc::IFF_NO_PI).map_err(io::Error::other)?;
    let mut request =
        libc::ifreq { ifr_name: name_of(interface)?, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags } };
    let at: *mut libc::ifreq = &raw mut request;
    // SAFETY: the command reads and writes one `struct ifreq` at `at`, which lives over the call.
    if unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF as _, at) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(device)
}

/// The name of an interface as the kernel takes it.
fn name_of(interface: &str) -> io::Result<[libc::c_char; libc::IFNAMSIZ]> {
    let mut name = [0; libc::IFNAMSIZ];
    if interface.len() >= name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in name.iter_mut().zip(interface.bytes()) {
        *to = from.cast_signed();
    }
    Ok(name)
}

/// Makes a UDP socket cut what it is given into datagrams of so many bytes.
pub(super) fn set_segment_bytes(socket: BorrowedFd<'_>, bytes: u16) -> io::Result<()> {
    let bytes = c_int::from(bytes);
    let at: *const c_int = &raw const bytes;
    let length = size_of::<c_int>() as libc::socklen_t;
    let socket = socket.as_raw_fd();
    // SAFETY: the kernel reads one int at `at`, which lives over the call.
    let set = unsafe { libc::setsockopt(socket, libc::SOL_UDP, libc::UDP_SEGMENT, at.cast(), length) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
