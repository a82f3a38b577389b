//! What the tests of io_uring need of the kernel, and pools over regions of their own.
//!
//! Every unsafe block here relies on this: a region that a pool is made over is used by nothing else; and a forked
//! child or a filter of system calls lives in a process that the test made for it.
#![allow(unsafe_code)]

use std::io;
use std::sync::Arc;

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
