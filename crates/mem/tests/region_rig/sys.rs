//! The kernel calls with which the tests of regions attack them.
//!
//! Every unsafe block here relies on this: what it maps it unmaps before it returns, without having touched it, or
//! copies out of it while it is mapped; and a forked child runs one closure and leaves by `_exit`.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::null_mut;

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags};

/// Maps one page of `fd`, shared, for reading and writing, and takes it away again.
pub(crate) fn map_writable(fd: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let page = rustix::param::page_size();
    let rights = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let base = unsafe { rustix::mm::mmap(null_mut(), page, rights, MapFlags::SHARED, fd, 0) }?;
    // SAFETY: mapped just now, never touched.
    unsafe { rustix::mm::munmap(base, page) }
}

/// Maps one page of `fd`, shared, for reading, and tries to get the right to write by `mprotect`.
pub(crate) fn protect_writable(fd: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let page = rustix::param::page_size();
    // SAFETY: a new mapping at an address of the kernel's choice.
    let base = unsafe { rustix::mm::mmap(null_mut(), page, ProtFlags::READ, MapFlags::SHARED, fd, 0) }?;
    // SAFETY: mapped just now, and nobody holds a reference into it.
    let answer = unsafe { rustix::mm::mprotect(base, page, MprotectFlags::READ | MprotectFlags::WRITE) };
    // SAFETY: mapped above, never touched.
    unsafe { rustix::mm::munmap(base, page) }?;
    answer
}

/// Attaches a System V segment for reading and copies `count` words at `offset` out of it.
pub(crate) fn read_system_v(id: i32, offset: usize, count: usize) -> io::Result<Vec<u64>> {
    // SAFETY: attaches at an address of the kernel's choice.
    let base = unsafe { libc::shmat(id, std::ptr::null(), libc::SHM_RDONLY) };
    if base.addr() == usize::MAX {
        return Err(io::Error::last_os_error());
    }
    let mut words = vec![0_u64; count];
    // SAFETY: the caller names words of the segment; nobody writes them meanwhile.
    unsafe {
        std::ptr::copy_nonoverlapping(base.cast::<u8>().wrapping_add(offset).cast::<u64>(), words.as_mut_ptr(), count)
    };
    // SAFETY: attached above, no reference left.
    unsafe { libc::shmdt(base) };
    Ok(words)
}

/// Runs `child` in a forked process and returns its exit code (a signal's number plus 128).
pub(crate) fn in_fork(child: impl FnOnce() -> i32) -> io::Result<i32> {
    // SAFETY: the child runs the closure and `_exit`; glibc keeps its allocator usable across a fork.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child)).unwrap_or(99);
        // SAFETY: ends the child without running what the parent will run.
        unsafe { libc::_exit(code) };
    }
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut status = 0;
    // SAFETY: waits for the child of ours; `status` lives across the call.
    let waited = unsafe { libc::waitpid(pid, &mut status, 0) };
    if waited != pid {
        return Err(io::Error::last_os_error());
    }
    Ok(if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 128 + libc::WTERMSIG(status) })
}
