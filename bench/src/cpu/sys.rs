//! The clock of another process's processor time, which rustix does not name.
//!
//! Every unsafe block here relies on this: the call gets a pointer to a value of its type that lives over the call.
#![allow(unsafe_code)]

use std::io;

use rustix::process::Pid;

/// Processor time that all threads of a process have used, in nanoseconds; `InvalidInput` or `ESRCH` if there is none.
pub(super) fn of_process_ns(process: Pid) -> io::Result<u64> {
    let mut clock: libc::clockid_t = 0;
    let to: *mut libc::clockid_t = &raw mut clock;
    // SAFETY: the call writes one clock's number at `to`, which lives over the call.
    let error = unsafe { libc::clock_getcpuclockid(process.as_raw_nonzero().get(), to) };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let to: *mut libc::timespec = &raw mut time;
    // SAFETY: the kernel writes one `timespec` at `to`, which lives over the call.
    if unsafe { libc::clock_gettime(clock, to) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0))
}
