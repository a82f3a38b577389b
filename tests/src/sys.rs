//! Kernel calls and raw memory that tests need and the libraries rightly do not offer.
//!
//! Every unsafe block here relies on its caller being a test that knows what it touches: an address that it took from a
//! live sample or lease of its own process, or a fork whose child does nothing but what the test says.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// What a fork came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forked {
    /// We are the child.
    Child,
    /// We are the parent of this process.
    Parent(i32),
}

/// Forks this process; the child has one thread, this one.
///
/// # Errors
/// What the system answered.
pub fn fork() -> io::Result<Forked> {
    // SAFETY: takes no memory of ours. What the child may do afterwards is the test's business; it calls only what is
    // under test.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Forked::Child),
        pid => Ok(Forked::Parent(pid)),
    }
}

/// Ends this process at once: no handler, no destructor, no buffer.
pub fn end_now(status: u8) -> ! {
    // SAFETY: takes no memory, and does not return.
    unsafe { libc::_exit(status.into()) }
}

/// Waits for a child to end. Returns its status, or 128 and the signal's number.
///
/// # Errors
/// What the system answered.
pub fn wait_for(pid: i32) -> io::Result<i32> {
    let mut status = 0;
    // SAFETY: `status` is a writable int that lives over the call.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    if waited != pid {
        return Err(io::Error::last_os_error());
    }
    if libc::WIFEXITED(status) { Ok(libc::WEXITSTATUS(status)) } else { Ok(128 + libc::WTERMSIG(status)) }
}

/// Writes one byte at an address of this process, whatever lies there.
///
/// # Panics
/// If `/proc/self/maps` names no writable mapping there.
pub fn poke(address: usize, byte: u8) {
    let mapping = crate::look::mapping(std::process::id(), address).expect("a mapping there");
    assert!(mapping.writable, "{mapping:?} is not writable");
    let at = std::ptr::with_exposed_provenance_mut::<u8>(address);
    // SAFETY: the mapping exists and is writable (looked up above); the test gave an address inside a slot of its own
    // pool, which no reference of this process covers at this moment.
    unsafe { at.write_volatile(byte) };
}

/// Reads one byte at an address of this process, so that the compiler keeps no older value.
///
/// # Panics
/// If `/proc/self/maps` names no mapping there.
#[must_use]
pub fn peek(address: usize) -> u8 {
    assert!(crate::look::mapping(std::process::id(), address).is_some(), "no mapping at {address:#x}");
    let at = std::ptr::with_exposed_provenance::<u8>(address);
    // SAFETY: the mapping exists (looked up above), and every mapping that a test asks about is readable.
    unsafe { at.read_volatile() }
}

/// Shuts down every connection of this process to another, as if it had hung up; returns how many those were.
///
/// # Errors
/// What the system answered.
pub fn cut_connections() -> io::Result<usize> {
    let mut cut = 0;
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        let is_socket =
            std::fs::read_link(entry.path()).is_ok_and(|link| link.to_string_lossy().starts_with("socket:"));
        let number = entry.file_name().to_string_lossy().parse::<i32>();
        let Ok(number) = number.map_err(io::Error::other) else { continue };
        if !is_socket {
            continue;
        }
        // SAFETY: it was open when it was listed; should it have been closed since, the calls below fail or concern
        // another socket of this process, which the test cuts too.
        let socket = unsafe { std::os::fd::BorrowedFd::borrow_raw(number) };
        // A listener has no peer.
        if rustix::net::getpeername(socket).is_ok_and(|peer| peer.is_some()) {
            rustix::net::shutdown(socket, rustix::net::Shutdown::Both)?;
            cut += 1;
        }
    }
    Ok(cut)
}

/// Whether the kernel refuses to make a mapping of this process writable. If it does not, it is made read-only again.
#[must_use]
pub fn refuses_to_be_writable(address: usize, bytes: usize) -> bool {
    let at = std::ptr::with_exposed_provenance_mut::<libc::c_void>(address);
    // SAFETY: takes no memory of ours; more rights than before break no reference.
    let changed = unsafe { libc::mprotect(at, bytes, libc::PROT_READ | libc::PROT_WRITE) };
    if changed == 0 {
        // SAFETY: gives back the rights that the mapping had.
        let _as_before = unsafe { libc::mprotect(at, bytes, libc::PROT_READ) };
    }
    changed != 0
}

/// The descriptor of this number, with which this process was started, as its own.
///
/// # Errors
/// If there is none.
pub fn inherited(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes no memory; a number that is not open is an error.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open (the call above), and whoever started this process gave it to be taken here, once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
