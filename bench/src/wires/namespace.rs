//! Network namespaces without names: each is kept by descriptors alone, so the kernel takes it down, with all its
//! links, when the last process that has one ends, however it ends.
//!
//! A socket stays in the namespace of the thread that made it. So threads are sent into a namespace to make sockets,
//! and end there; no thread that goes on with other work ever changes its namespace.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{WireError, failed, sockets, sys};

/// How long one call of `ip` or `tc` may take; they wait for other changes to the kernel's network tables.
const TOOL_PATIENCE: Duration = Duration::from_secs(30);

/// A network namespace, kept by a descriptor.
#[derive(Debug)]
pub(super) struct Namespace {
    fd: OwnedFd,
}

impl Namespace {
    /// Makes one with nothing in it but a loopback device that is up.
    pub(super) fn make() -> Result<Self, WireError> {
        let open = || {
            sys::unshare_network().map_err(failed("unshare(CLONE_NEWNET)"))?;
            // For children that set no congestion control themselves; sockets made here do, and say what they got.
            let _as_reported = std::fs::write("/proc/sys/net/ipv4/tcp_congestion_control", sockets::CONGESTION);
            // The namespace would go with this thread if it were not open elsewhere.
            std::fs::File::open("/proc/thread-self/ns/net").map_err(failed("open of /proc/thread-self/ns/net"))
        };
        let namespace = Self { fd: on_a_thread(open).map_err(failed("clone"))??.into() };
        namespace.ip("link set lo up\n")?;
        Ok(namespace)
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Runs a closure on a thread in this namespace, and waits for it.
    pub(super) fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, WireError> {
        let inside = || {
            move_into_link_name_space(self.fd.as_fd(), Some(LinkNameSpaceType::Network))
                .map_err(|errno| failed("setns")(errno.into()))?;
            Ok(work())
        };
        on_a_thread(inside).map_err(failed("clone"))?
    }

    /// Makes a command start in this namespace.
    pub(super) fn put(&self, command: &mut Command) -> Result<(), WireError> {
        sys::start_in(command, self.fd.try_clone().map_err(failed("dup"))?);
        Ok(())
    }

    /// Runs lines of `ip -batch` in this namespace.
    pub(super) fn ip(&self, lines: &str) -> Result<(), WireError> {
        self.tool("ip", &["-batch", "-"], lines).map(|_| ())
    }

    /// Runs `tc` in this namespace.
    pub(super) fn tc(&self, arguments: &[&str]) -> Result<(), WireError> {
        self.tool("tc", arguments, "").map(|_| ())
    }

    /// Runs a program in this namespace, with an input that fits into a pipe; what it printed comes back.
    pub(super) fn tool(&self, program: &'static str, arguments: &[&str], input: &str) -> Result<String, WireError> {
        let mut command = Command::new(program);
        self.put(&mut command)?;
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => WireError::Missing { program },
            _ => failed("starting ip or tc")(source),
        })?;
        // It may end without having read everything; its status and its message say why.
        let _broken_pipe = child.stdin.take().map(|mut stdin| stdin.write_all(input.as_bytes()));
        let ended = Pid::from_raw(child.id().cast_signed())
            .map_or(Err(rustix::io::Errno::SRCH), |pid| pidfd_open(pid, PidfdFlags::empty()))
            .and_then(|pidfd| wait_for(pidfd.as_fd(), PollFlags::IN, TOOL_PATIENCE));
        if !matches!(ended, Ok(true)) {
            // Killed or dead already; either way it is collected below.
            let _dead_already = child.kill();
        }
        let status = child.wait().map_err(failed("wait4"))?;
        let mut text = [String::new(), String::new()];
        let mut read = |from: &mut dyn Read, index: usize| from.read_to_string(&mut text[index]);
        if let Some(mut stdout) = child.stdout.take() {
            read(&mut stdout, 0).map_err(failed("read"))?;
        }
        if let Some(mut stderr) = child.stderr.take() {
            read(&mut stderr, 1).map_err(failed("read"))?;
        }
        match ended {
            Ok(true) if status.success() => Ok(std::mem::take(&mut text[0])),
            Ok(true) => {
                let said: Vec<&str> = text[1].lines().map(str::trim).filter(|line| !line.is_empty()).collect();
                Err(WireError::Refused { program, said: said.join("; ") })
            }
            Ok(false) => Err(WireError::Slow { what: program, seconds: TOOL_PATIENCE.as_secs() }),
            Err(errno) => Err(failed("pidfd_open or poll")(errno.into())),
        }
    }
}

/// Runs a closure on a new thread and waits for it; a panic goes on in the caller.
fn on_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("zcmi-wire".into()).spawn_scoped(scope, work)?;
        Ok(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

/// Waits until one of these events is there, and says whether it came in time.
pub(crate) fn wait_for(fd: BorrowedFd<'_>, events: PollFlags, patience: Duration) -> rustix::io::Result<bool> {
    let deadline = std::time::Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        let mut polled = [PollFd::from_borrowed_fd(fd, events)];
        match poll(&mut polled, Some(&left)) {
            Ok(count) => return Ok(count > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}
