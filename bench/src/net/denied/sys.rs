//! A filter of system calls.
//!
//! Every unsafe block here relies on this: a filter's program and its instructions live until the call that installs it
//! returns.
#![allow(unsafe_code)]

use std::io;

/// A system call that is refused: its number, the argument that must have a value, and the answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Denial {
    call: i64,
    argument: Option<(u32, u32)>,
    errno: i32,
}

const fn refused(call: i64) -> Denial {
    Denial { call, argument: None, errno: libc::EPERM }
}

/// io_uring.
pub(super) const URING: Denial = refused(libc::SYS_io_uring_setup);
/// The calls that queue pages.
pub(super) const SHARING: [Denial; 3] =
    [refused(libc::SYS_sendfile), refused(libc::SYS_splice), refused(libc::SYS_vmsplice)];
/// The option without which `MSG_ZEROCOPY` copies.
pub(super) const ZERO_COPY: Denial =
    Denial { call: libc::SYS_setsockopt, argument: Some((2, libc::SO_ZEROCOPY as u32)), errno: libc::ENOPROTOOPT };

/// Has the kernel refuse system calls of this process, and of all that it starts, from now on.
pub(super) fn deny(denials: &[Denial]) -> io::Result<()> {
    let load = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    let equal = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    let answer = (libc::BPF_RET | libc::BPF_K) as u16;
    let instruction = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut filter = Vec::new();
    for denial in denials {
        // `seccomp_data` begins with the call's number; the arguments are words of 64 bits from byte 16 on.
        filter.push(instruction(load, 0, 0, 0));
        match denial.argument {
            None => filter.push(instruction(equal, 0, 1, denial.call as u32)),
            Some((argument, value)) => {
                filter.push(instruction(equal, 0, 3, denial.call as u32));
                filter.push(instruction(load, 0, 0, 16 + 8 * argument));
                filter.push(instruction(equal, 0, 1, value));
            }
        }
        filter.push(instruction(answer, 0, 0, libc::SECCOMP_RET_ERRNO | denial.errno as u32));
    }
    filter.push(instruction(answer, 0, 0, libc::SECCOMP_RET_ALLOW));
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: takes no pointer.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the program and its instructions live until the call returns.
    let answer = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    if answer != 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
