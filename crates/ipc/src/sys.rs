//! The kernel calls of this crate.
//!
//! Most are made through rustix and are safe. The unsafe blocks are the ones rustix has no safe form for: the three
//! socket options that say who a peer is. They rely on these facts: a socket option is read into a buffer of the size
//! that is passed along, and the kernel writes no more than that; a descriptor the kernel returned belongs to nobody
//! else.
//!
//! Every error here is the errno of one call; the caller names the call and the object.
#![allow(unsafe_code)]

use core::mem::size_of;
use core::ptr::NonNull;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::io::{Errno, ReadWriteFlags};
use rustix::thread::{MembarrierCommand, MembarrierQuery};

/// Sixteen bytes of the kernel's random numbers.
pub(crate) fn random_bytes() -> io::Result<[u8; 16]> {
    let mut bytes = [0; 16];
    // Up to 256 bytes come in one piece once the generator is seeded; before that the call can be interrupted.
    let filled =
        rustix::io::retry_on_intr(|| rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty()))?;
    if filled == bytes.len() { Ok(bytes) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

// ---------------------------------------------------------------------------------------------------------------------
// Who is at the other end
// ---------------------------------------------------------------------------------------------------------------------

/// `SO_PEERPIDFD` as in asm-generic/socket.h (Linux 6.5); the libc crate has no name for it.
const SO_PEERPIDFD: libc::c_int = 77;

/// The peer's process number, user and group, as the kernel noted them at `connect` or `listen`.
///
/// The process number is 0 when the peer is in another PID namespace, which is why rustix's form, whose number is never
/// 0, is not used.
pub(crate) fn peer_credentials(socket: BorrowedFd<'_>) -> Result<(u32, u32, u32), Errno> {
    let mut credentials = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    socket_option(socket, libc::SO_PEERCRED, NonNull::from(&mut credentials).cast(), size_of::<libc::ucred>())?;
    Ok((u32::try_from(credentials.pid).unwrap_or(0), credentials.uid, credentials.gid))
}

/// A descriptor of the peer's process.
///
/// # Kernel
/// Since 6.5; `ENOPROTOOPT` before. `ESRCH` when the peer was reaped already (until 6.16).
pub(crate) fn peer_pidfd(socket: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let mut number: libc::c_int = -1;
    socket_option(socket, SO_PEERPIDFD, NonNull::from(&mut number).cast(), size_of::<libc::c_int>())?;
    if number < 0 {
        return Err(Errno::BADF);
    }
    // SAFETY: the kernel has just installed this descriptor for us (the call succeeded), close-on-exec, and nobody else
    // knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// `SO_PEERGROUPS` as in asm-generic/socket.h (Linux 4.13); the libc crate has no name for it.
const SO_PEERGROUPS: libc::c_int = 59;

/// The peer's supplementary groups, as the kernel noted them at `connect` or `listen`.
///
/// # Kernel
/// Since 4.13. `ERANGE` tells how many bytes are needed; a process has at most 65,536 groups.
pub(crate) fn peer_groups(socket: BorrowedFd<'_>) -> Result<Vec<u32>, Errno> {
    let mut groups = vec![0_u32; 64];
    for _ in 0..2 {
        let mut length = (groups.len() * size_of::<u32>()) as libc::socklen_t;
        // SAFETY: the buffer is ours, and the kernel writes at most `length` bytes to it: numbers of 32 bits, of which
        // every pattern is one.
        let answer = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        let count = length as usize / size_of::<u32>();
        match answer {
            0 => {
                groups.truncate(count);
                return Ok(groups);
            }
            _ => match Errno::from_io_error(&io::Error::last_os_error()) {
                Some(Errno::RANGE) => groups.resize(count.min(1 << 16), 0),
                errno => return Err(errno.unwrap_or(Errno::IO)),
            },
        }
    }
    Err(Errno::RANGE)
}

/// Reads a socket option of exactly `bytes` bytes into `value`, which the caller holds exclusively.
fn socket_option(
    socket: BorrowedFd<'_>,
    option: libc::c_int,
    value: NonNull<libc::c_void>,
    bytes: usize,
) -> Result<(), Errno> {
    let mut length = bytes as libc::socklen_t;
    // SAFETY: both callers pass a live local of theirs and its own size; the kernel writes at most `length` bytes to
    // it, and both are plain integers, valid whatever is written.
    let answer =
        unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, value.as_ptr(), &raw mut length) };
    match answer {
        0 if length as usize == bytes => Ok(()),
        0 => Err(Errno::INVAL),
        _ => Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)),
    }
}

/// A descriptor of the process with this number, which must be one of our PID namespace and not 0.
pub(crate) fn open_pidfd(pid: u32) -> Result<OwnedFd, Errno> {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw).ok_or(Errno::SRCH)?;
    rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())
}

/// Whether the process behind `pidfd` is dead: all its threads are gone, whether or not it was reaped.
pub(crate) fn is_dead(pidfd: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(ready(pidfd, PollFlags::IN)?.contains(PollFlags::IN))
}

/// What is ready on one descriptor now.
pub(crate) fn ready(descriptor: BorrowedFd<'_>, wanted: PollFlags) -> Result<PollFlags, Errno> {
    let mut polled = [PollFd::from_borrowed_fd(descriptor, wanted)];
    poll(&mut polled, Some(Duration::ZERO))?;
    Ok(polled[0].revents())
}

/// Waits until one of the descriptors is ready or the time is over, and returns how many are ready.
///
/// An interrupted wait returns 0, as a finished one does: the caller looks again anyway, and only it knows its
/// deadline.
pub(crate) fn poll(descriptors: &mut [PollFd<'_>], timeout: Option<Duration>) -> Result<usize, Errno> {
    let timeout = timeout.map(|timeout| Timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(timeout.subsec_nanos()),
    });
    match rustix::event::poll(descriptors, timeout.as_ref()) {
        Err(Errno::INTR) => Ok(0),
        other => other,
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Waking
// ---------------------------------------------------------------------------------------------------------------------

/// A new eventfd: count 0, close-on-exec, non-blocking.
pub(crate) fn eventfd() -> Result<OwnedFd, Errno> {
    rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
}

/// What a wake came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wake {
    /// The count went up by one.
    Sent,
    /// The count was at its limit, so the descriptor is readable and its waiter awake anyway.
    AlreadyFull,
}

/// Adds one to an eventfd that a peer shares, without waiting for that peer.
///
/// An eventfd's flags belong to all who share it: a peer can clear `O_NONBLOCK` and fill the count, and a plain `write`
/// would then wait until somebody reads. The kernel offers no write that cannot wait: `pwritev2` with `RWF_NOWAIT` is
/// refused with `EOPNOTSUPP`, since eventfds implement `write` and not `write_iter` (a test here watches for the day
/// this changes), an eventfd cannot be opened a second time to get flags of its own (`ENXIO`), and `MSG_DONTWAIT` is
/// for sockets. So this asks first: `POLLOUT` means that one can be added without waiting, and a full count needs no
/// wake.
///
/// What remains: a peer that has cleared `O_NONBLOCK` and adds 2^64 - 2 between our `poll` and our `write`, on purpose
/// or by an astonishing accident. Only peers of our own user are given an eventfd, and they could as well stop us with
/// a signal; a mistake of theirs (flags cleared, count filled and left) cannot hold us up. A signal to the thread ends
/// even that wait.
pub(crate) fn wake(eventfd: BorrowedFd<'_>) -> Result<Wake, Errno> {
    #[cfg(test)]
    testing::WAKES.set(testing::WAKES.get() + 1);
    if !ready(eventfd, PollFlags::OUT)?.contains(PollFlags::OUT) {
        return Ok(Wake::AlreadyFull);
    }
    match rustix::io::retry_on_intr(|| rustix::io::write(eventfd, &1_u64.to_ne_bytes())) {
        Ok(_) => Ok(Wake::Sent),
        Err(Errno::AGAIN) => Ok(Wake::AlreadyFull),
        Err(errno) => Err(errno),
    }
}

/// Takes the count of an eventfd, 0 when there is none, and never waits, whatever its flags are.
///
/// # Kernel
/// `RWF_NOWAIT` on eventfds, since 5.8; it holds whatever a peer did to the shared flags.
pub(crate) fn take_wakes(eventfd: BorrowedFd<'_>) -> Result<u64, Errno> {
    /// The offset that means "none", as eventfds need it.
    const NO_OFFSET: u64 = u64::MAX;
    let mut count = [0; 8];
    let taken = rustix::io::retry_on_intr(|| {
        rustix::io::preadv2(eventfd, &mut [IoSliceMut::new(&mut count)], NO_OFFSET, ReadWriteFlags::NOWAIT)
    });
    match taken {
        Ok(_) => Ok(u64::from_ne_bytes(count)),
        Err(Errno::AGAIN) => Ok(0),
        Err(errno) => Err(errno),
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Barriers in other threads
// ---------------------------------------------------------------------------------------------------------------------

/// A fence in every running thread of this process, made by one thread for all.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProcessBarrier(());

/// Why there is no [`ProcessBarrier`]; the fallback is a fence on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoProcessBarrier {
    /// The kernel does not know the command, or a seccomp filter hides the call.
    #[error("the kernel does not offer membarrier(PRIVATE_EXPEDITED); both sides fence instead")]
    NotOffered,
    /// The kernel offers it and refused the registration.
    #[error("membarrier(REGISTER_PRIVATE_EXPEDITED) failed: {0}; both sides fence instead")]
    Refused(#[source] Errno),
}

impl ProcessBarrier {
    /// Registers this process, once and for all threads; doing so again is harmless.
    ///
    /// A forked child is not registered: it registers anew.
    ///
    /// # Kernel
    /// Since 4.14, `CONFIG_MEMBARRIER`.
    pub(crate) fn register() -> Result<Self, NoProcessBarrier> {
        let needed = MembarrierQuery::PRIVATE_EXPEDITED | MembarrierQuery::REGISTER_PRIVATE_EXPEDITED;
        if !rustix::thread::membarrier_query().contains(needed) {
            return Err(NoProcessBarrier::NotOffered);
        }
        rustix::thread::membarrier(MembarrierCommand::RegisterPrivateExpedited).map_err(NoProcessBarrier::Refused)?;
        Ok(Self(()))
    }

    /// Makes the fence: what any thread of the process did before is ordered before what it does after.
    ///
    /// # Errors
    /// Only in a forked child that did not register anew (`EPERM`).
    pub(crate) fn fence(self) -> Result<(), Errno> {
        rustix::thread::membarrier(MembarrierCommand::PrivateExpedited)
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! What only tests do: make children by a real `fork`.

    use std::io::IoSlice;
    use std::os::fd::AsFd;

    use super::*;

    thread_local! {
        /// How many wakes this thread has sent; each is two system calls.
        pub(crate) static WAKES: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
    }

    /// Runs `child` in a forked child and returns its exit status: what it answered, or 255 when it was killed.
    ///
    /// The child must only do what is allowed after a fork of a process with threads: no locks, no allocation.
    pub(crate) fn status_in_forked_child(child: impl FnOnce() -> u8) -> u8 {
        // SAFETY: the child runs `child`, which its callers keep to loads, stores and system calls, and then leaves by
        // `_exit` below; it never returns into the test.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "fork: {}", io::Error::last_os_error());
        if pid == 0 {
            let status = child();
            // SAFETY: ends the child at once, running no handlers and no destructors.
            unsafe { libc::_exit(i32::from(status)) }
        }
        let pid = rustix::process::Pid::from_raw(pid).expect("a child's number");
        let (_, status) = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty())
            .expect("waitpid")
            .expect("the child ended");
        status.exit_status().map_or(255, |status| u8::try_from(status).unwrap_or(255))
    }

    /// A descriptor flag that a peer can change: whether the shared description waits.
    pub(crate) fn let_it_wait(descriptor: BorrowedFd<'_>) {
        rustix::fs::fcntl_setfl(descriptor, rustix::fs::OFlags::empty()).expect("fcntl(F_SETFL)");
    }

    /// Tries to get the right to write shared memory, and to take pages out of it, by mappings: one that shall be
    /// writable, and one that is made so. Returns what the kernel allowed.
    pub(crate) fn allowed_by_mapping(descriptor: BorrowedFd<'_>, len: usize) -> Vec<&'static str> {
        let map = |rights| {
            let number = descriptor.as_raw_fd();
            // SAFETY: a mapping at an address of the kernel's choice, which no reference of this process covers.
            unsafe { libc::mmap(core::ptr::null_mut(), len, rights, libc::MAP_SHARED, number, 0) }
        };
        let mut allowed = Vec::new();
        let (writable, readable) = (map(libc::PROT_READ | libc::PROT_WRITE), map(libc::PROT_READ));
        assert_ne!(readable, libc::MAP_FAILED, "it may be read: {}", io::Error::last_os_error());
        if writable != libc::MAP_FAILED {
            allowed.push("map writable");
        }
        // SAFETY: takes no memory; more rights to a mapping of our own break no reference.
        if unsafe { libc::mprotect(readable, len, libc::PROT_READ | libc::PROT_WRITE) } == 0 {
            allowed.push("make writable");
        }
        // SAFETY: the mapping was made above, and nothing of this process refers to it.
        if unsafe { libc::madvise(readable, len, libc::MADV_REMOVE) } == 0 {
            allowed.push("take pages out by madvise");
        }
        for mapping in [writable, readable].into_iter().filter(|&mapping| mapping != libc::MAP_FAILED) {
            // SAFETY: the mapping was made above, and nothing of this process refers to it.
            assert_eq!(unsafe { libc::munmap(mapping, len) }, 0, "munmap");
        }
        allowed
    }

    /// Tries the write that cannot wait.
    pub(crate) fn write_without_waiting(eventfd: impl AsFd) -> Result<usize, Errno> {
        rustix::io::pwritev2(eventfd, &[IoSlice::new(&1_u64.to_ne_bytes())], u64::MAX, ReadWriteFlags::NOWAIT)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn wakes_are_counted_and_taken_at_once() {
        let eventfd = eventfd().expect("eventfd");
        assert_eq!(take_wakes(eventfd.as_fd()), Ok(0));
        assert_eq!(wake(eventfd.as_fd()), Ok(Wake::Sent));
        assert_eq!(wake(eventfd.as_fd()), Ok(Wake::Sent));
        assert_eq!(take_wakes(eventfd.as_fd()), Ok(2));
        assert_eq!(take_wakes(eventfd.as_fd()), Ok(0));
    }

    #[test]
    fn a_filled_eventfd_whose_flags_a_peer_cleared_holds_nobody_up() {
        let ours = eventfd().expect("eventfd");
        let peers = ours.try_clone().expect("dup");
        testing::let_it_wait(peers.as_fd());
        assert_eq!(take_wakes(ours.as_fd()), Ok(0), "an empty one does not hold up its reader");
        rustix::io::write(&peers, &(u64::MAX - 1).to_ne_bytes()).expect("filling");
        assert_eq!(wake(ours.as_fd()), Ok(Wake::AlreadyFull));
        assert_eq!(take_wakes(ours.as_fd()), Ok(u64::MAX - 1));
        assert_eq!(wake(ours.as_fd()), Ok(Wake::Sent));
    }

    #[test]
    fn the_kernel_has_no_write_to_an_eventfd_that_cannot_wait() {
        let eventfd = eventfd().expect("eventfd");
        // When this fails, the kernel has learned it: `wake` can then use it and lose what its documentation says
        // remains.
        assert_eq!(testing::write_without_waiting(&eventfd), Err(Errno::OPNOTSUPP));
    }

    #[test]
    fn a_poll_tells_which_descriptor_is_ready() {
        let (quiet, raised) = (eventfd().expect("eventfd"), eventfd().expect("eventfd"));
        wake(raised.as_fd()).expect("wake");
        let mut polled = [PollFd::new(&quiet, PollFlags::IN), PollFd::new(&raised, PollFlags::IN)];
        assert_eq!(poll(&mut polled, None), Ok(1));
        assert!(polled[0].revents().is_empty());
        assert!(polled[1].revents().contains(PollFlags::IN));
        assert_eq!(poll(&mut polled[..1], Some(Duration::from_millis(1))), Ok(0));
    }

    #[test]
    fn a_pidfd_says_dead_only_of_the_dead() {
        let own = open_pidfd(std::process::id()).expect("pidfd_open");
        assert_eq!(is_dead(own.as_fd()), Ok(false));
        let mut child = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().expect("cat");
        let childs = open_pidfd(child.id()).expect("pidfd_open");
        assert_eq!(is_dead(childs.as_fd()), Ok(false));
        child.kill().expect("kill");
        let mut polled = [PollFd::new(&childs, PollFlags::IN)];
        assert_eq!(poll(&mut polled, Some(Duration::from_secs(10))), Ok(1));
        assert_eq!(is_dead(childs.as_fd()), Ok(true), "dead before it was reaped");
        child.wait().expect("wait");
        assert_eq!(is_dead(childs.as_fd()), Ok(true), "dead after it was reaped");
        assert_eq!(open_pidfd(0).err(), Some(Errno::SRCH), "0 is a process of another namespace");
    }

    #[test]
    fn a_registered_process_can_fence_all_its_threads() {
        match ProcessBarrier::register() {
            Ok(barrier) => assert_eq!(barrier.fence(), Ok(())),
            Err(reason) => println!("SKIP: {reason}"),
        }
    }
}
