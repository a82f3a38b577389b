//! What the tests of io_uring need of the kernel, and pools over regions of their own.
//!
//! Every unsafe block here relies on this: a region that a pool is made over is used by nothing else; memory that two
//! processes share is mapped until the end and touched by atomics alone; and a forked child or a filter of system calls
//! lives in a process that the test made for it.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use io_uring::{IoUring, opcode, types};

use zcmi_mem::fork::ForkGuard;
use zcmi_mem::pool::{Pool, PoolPlan};
use zcmi_mem::region::Region;

/// A region and a pool that fills it.
pub(crate) fn pool(plan: &PoolPlan) -> (Arc<Region>, Pool) {
    let region = Arc::new(Region::options(plan.bytes()).create().expect("a region"));
    let span = region.bytes(region.data_offset(), plan.bytes()).expect("the plan fits");
    let life = ForkGuard::new().expect("a guard").life();
    // SAFETY: a region of our own, which nothing else uses.
    let pool = unsafe { Pool::new(plan, span, life, Box::new(Arc::clone(&region))) };
    (region, pool)
}

/// Has the kernel answer the system call `number` of this process with `errno` from now on.
pub(crate) fn deny(number: i64, errno: i32) -> io::Result<()> {
    let load = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    let equal = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    let answer = (libc::BPF_RET | libc::BPF_K) as u16;
    let instruction = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    // The number of the call is the first word of `seccomp_data`.
    let mut filter = [
        instruction(load, 0, 0, 0),
        instruction(equal, 0, 1, number as u32),
        instruction(answer, 0, 0, libc::SECCOMP_RET_ERRNO | errno as u32),
        instruction(answer, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: takes no pointer.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the program and its instructions live until the call returns.
    let answer = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    if answer != 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The number of `io_uring_setup`.
pub(crate) const SETUP: i64 = libc::SYS_io_uring_setup;
/// The number of `io_uring_enter`.
pub(crate) const ENTER: i64 = libc::SYS_io_uring_enter;

/// Runs `child` in a forked process and returns its exit code (a signal's number plus 128).
pub(crate) fn in_fork(child: impl FnOnce() -> i32) -> io::Result<i32> {
    // SAFETY: the child runs the closure and `_exit`; glibc keeps its allocator usable across a fork.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let code = child();
            // SAFETY: ends the child at once, running nothing of the test program's.
            unsafe { libc::_exit(code) }
        }
        pid => {
            let mut status = 0;
            // SAFETY: our own child, and a place for its status.
            if unsafe { libc::waitpid(pid, &raw mut status, 0) } != pid {
                return Err(io::Error::last_os_error());
            }
            Ok(if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 128 + libc::WTERMSIG(status) })
        }
    }
}

/// Memory that a process and its forked children share and may all write, mapped until the process ends.
#[derive(Clone, Copy)]
pub(crate) struct Common(&'static [AtomicU8]);

impl Common {
    pub(crate) fn new(bytes: usize) -> io::Result<Self> {
        let (rights, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: a mapping at an address of the kernel's choice replaces nothing.
        let at = unsafe { libc::mmap(core::ptr::null_mut(), bytes, rights, kind, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: as many zeroed bytes lie there (the call above), nobody unmaps them, and all access is atomic.
        Ok(Self(unsafe { core::slice::from_raw_parts(at.cast::<AtomicU8>(), bytes) }))
    }

    pub(crate) fn fill(self, byte: impl Fn(u64) -> u8) {
        self.0.iter().enumerate().for_each(|(at, place)| place.store(byte(at as u64), Ordering::Relaxed));
    }
}

/// Sends the memory by `SEND_ZC` through a ring that has the socket registered, and leaves the ring open. Returns how
/// many bytes the kernel took.
pub(crate) fn send_by_registered_socket(socket: BorrowedFd<'_>, memory: Common) -> io::Result<usize> {
    let mut ring = IoUring::new(8)?;
    ring.submitter().register_files(&[socket.as_raw_fd()])?;
    let send = opcode::SendZc::new(types::Fixed(0), memory.0.as_ptr().cast(), memory.0.len() as u32);
    let entry = send.flags(libc::MSG_DONTWAIT).build();
    // SAFETY: the memory is mapped until the process ends, and so is the ring (below).
    unsafe { ring.submission().push(&entry) }.map_err(io::Error::other)?;
    ring.submit_and_wait(1)?;
    let result = ring.completion().next().map_or(-libc::EIO, |completion| completion.result());
    core::mem::forget(ring);
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}

/// Runs `child` in a forked process and returns at once; the child ends when it returns, or is killed.
pub(crate) fn fork(child: impl FnOnce()) -> io::Result<i32> {
    // SAFETY: as in `in_fork`.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            child();
            // SAFETY: ends the child at once, running nothing of the test program's.
            unsafe { libc::_exit(0) }
        }
        pid => Ok(pid),
    }
}

/// Kills a child, and returns when it is dead.
pub(crate) fn kill(pid: i32) -> io::Result<()> {
    // SAFETY: takes no memory; the child has not been waited for, so that the number is its own.
    if unsafe { libc::kill(pid, libc::SIGKILL) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: our own child, whose status nobody asks for.
    if unsafe { libc::waitpid(pid, core::ptr::null_mut(), 0) } != pid {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
