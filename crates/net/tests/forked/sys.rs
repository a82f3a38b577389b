//! Forks, and filters of system calls.
//!
//! Every unsafe block here relies on this: a forked child runs its closure and `_exit`, and glibc keeps its allocator
//! usable across a fork; a filter is put on such a child alone, and namespaces are left by such a child alone.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A system call that is refused: its number, the argument that must have a value, and the answer.
#[derive(Clone, Copy, Debug)]
#[allow(dead_code, reason = "not every test denies something")]
pub(crate) struct Denial {
    pub(crate) call: i64,
    pub(crate) argument: Option<(u32, u32)>,
    pub(crate) errno: i32,
}

/// Has the kernel refuse system calls of this process from now on.
#[allow(dead_code, reason = "not every test denies something")]
pub(crate) fn deny(denials: &[Denial]) -> io::Result<()> {
    let load = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    let equal = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    let answer = (libc::BPF_RET | libc::BPF_K) as u16;
    let instruction = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut filter = Vec::new();
    for denial in denials {
        let refused = instruction(answer, 0, 0, libc::SECCOMP_RET_ERRNO | denial.errno as u32);
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
        filter.push(refused);
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

/// Whether this process may lock so many bytes; they are not locked any more afterwards.
#[allow(dead_code, reason = "not every test locks memory")]
pub(crate) fn locks(bytes: usize) -> bool {
    let memory = vec![1_u8; bytes];
    // SAFETY: memory of our own, which lives until the end of this function.
    let locked = unsafe { libc::mlock(memory.as_ptr().cast(), bytes) } == 0;
    if locked {
        // SAFETY: as above, and it is locked.
        unsafe { libc::munlock(memory.as_ptr().cast(), bytes) };
    }
    locked
}

/// Forks: 0 in the child.
pub(crate) fn fork() -> io::Result<i32> {
    // SAFETY: see the head of the file.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(pid),
    }
}

/// Ends this process at once, running nothing of the test program's.
pub(crate) fn end_now(code: i32) -> ! {
    // SAFETY: takes no memory, and does not return.
    unsafe { libc::_exit(code) }
}

/// Waits for a child to end: its exit code, or 128 and its signal's number.
pub(crate) fn wait_for(pid: i32) -> io::Result<i32> {
    let mut status = 0;
    // SAFETY: our own child, and a place for its status.
    if unsafe { libc::waitpid(pid, &raw mut status, 0) } != pid {
        return Err(io::Error::last_os_error());
    }
    Ok(if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 128 + libc::WTERMSIG(status) })
}

/// Runs `child` in a forked process and returns its exit code (a signal's number plus 128).
pub(crate) fn in_fork(child: impl FnOnce() -> i32) -> io::Result<i32> {
    match fork()? {
        0 => end_now(child()),
        pid => wait_for(pid),
    }
}

/// Gives this process a network of its own, with nothing but a loopback device, which is up.
#[allow(dead_code, reason = "not every test needs one")]
pub(crate) fn own_network() -> io::Result<()> {
    // SAFETY: takes no memory; what this process has open stays as it is.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: all zeros are a request.
    let mut request: libc::ifreq = unsafe { core::mem::zeroed() };
    request.ifr_name[..2].copy_from_slice(&[b'l' as libc::c_char, b'o' as libc::c_char]);
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    let number = std::os::fd::AsRawFd::as_raw_fd(&socket);
    // SAFETY: an open socket, and a request that lives over the call.
    if unsafe { libc::ioctl(number, libc::SIOCSIFFLAGS as _, &raw const request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Shows this process, and nobody else, the file `shown` in the place of `file`.
#[allow(dead_code, reason = "not every test shows something")]
pub(crate) fn show(shown: &Path, file: &Path) -> io::Result<()> {
    // SAFETY: takes no memory; what this process has open stays as it is.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
        return Err(io::Error::last_os_error());
    }
    mount(None, Path::new("/"), libc::MS_REC | libc::MS_PRIVATE)?;
    mount(Some(shown), file, libc::MS_BIND)
}

fn mount(from: Option<&Path>, to: &Path, flags: libc::c_ulong) -> io::Result<()> {
    let from = from.map(|from| CString::new(from.as_os_str().as_bytes())).transpose()?;
    let to = CString::new(to.as_os_str().as_bytes())?;
    let source = from.as_ref().map_or(core::ptr::null(), |from| from.as_ptr());
    // SAFETY: both strings end with 0 and live over the call; the flags need neither a kind nor data.
    let answer = unsafe { libc::mount(source, to.as_ptr(), core::ptr::null(), flags, core::ptr::null()) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
