//! Rows `pipe` and `unix`: bytes through the kernel, with blocking calls as programs make them.
//!
//! Both copy every byte twice: the writer's call into the kernel, the reader's call out of it. Buffers are 1 MiB, the
//! largest that an unprivileged process gets by default.

use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair, sockopt};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use serde::{Deserialize, Serialize};
use zcmi_bench::child::{Channel, Child, RoleResult};
use zcmi_bench::link::{Link, LinkError, Near, serve};
use zcmi_bench::pattern;
use zcmi_bench::pin::{self, Pair};
use zerocopy::IntoBytes;

/// The size of the kernel's buffers.
const BUFFER_BYTES: usize = 1 << 20;

/// One end: two descriptors, which may be the same socket, and a buffer for each direction.
#[derive(Debug)]
pub(crate) struct Descriptors {
    read: OwnedFd,
    write: OwnedFd,
    incoming: Vec<u64>,
    outgoing: Vec<u64>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Setup {
    cpu: usize,
    payload_bytes: usize,
}

impl Descriptors {
    fn new(read: OwnedFd, write: OwnedFd, payload_bytes: usize) -> Self {
        let buffer = vec![0; payload_bytes / 8];
        Self { read, write, incoming: buffer.clone(), outgoing: buffer }
    }

    fn send(&self) -> Result<(), LinkError> {
        let mut rest = self.outgoing.as_bytes();
        while !rest.is_empty() {
            let written = rustix::io::write(&self.write, rest)?;
            rest = &rest[written..];
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<(), LinkError> {
        let mut rest = self.incoming.as_mut_bytes();
        while !rest.is_empty() {
            let read = rustix::io::read(&self.read, &mut *rest)?;
            if read == 0 {
                return Err("the other process closed the connection".into());
            }
            rest = &mut rest[read..];
        }
        Ok(())
    }
}

impl Link for Descriptors {
    fn send_word(&mut self, word: u64) -> Result<(), LinkError> {
        self.outgoing[0] = word;
        self.send()
    }

    fn receive_word(&mut self) -> Result<u64, LinkError> {
        self.receive()?;
        Ok(self.incoming[0])
    }

    fn produce(&mut self, sequence: u64) -> Result<(), LinkError> {
        pattern::fill(&mut self.outgoing, sequence);
        self.send()
    }

    fn consume(&mut self, sequence: u64) -> Result<(), LinkError> {
        self.receive()?;
        Ok(pattern::check(&self.incoming, sequence)?)
    }
}

/// Both ends of a pair of pipes, the far one in a child.
pub(crate) fn near_pipe(payload_bytes: usize, pair: Pair) -> Result<Near<Descriptors, Child>, LinkError> {
    let one = || {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        fcntl_setpipe_size(&write, BUFFER_BYTES)?;
        Ok::<_, LinkError>((read, write))
    };
    let ((far_read, near_write), (near_read, far_write)) = (one()?, one()?);
    start("pipe", payload_bytes, pair, (near_read, near_write), (far_read, far_write))
}

/// Both ends of a socket pair, the far one in a child.
pub(crate) fn near_unix(payload_bytes: usize, pair: Pair) -> Result<Near<Descriptors, Child>, LinkError> {
    let (near, far) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    for socket in [&near, &far] {
        sockopt::set_socket_send_buffer_size(socket, BUFFER_BYTES)?;
    }
    let twice = |socket: OwnedFd| Ok::<_, LinkError>((socket.try_clone()?, socket));
    start("unix", payload_bytes, pair, twice(near)?, twice(far)?)
}

fn start(
    role: &str,
    payload_bytes: usize,
    pair: Pair,
    near: (OwnedFd, OwnedFd),
    far: (OwnedFd, OwnedFd),
) -> Result<Near<Descriptors, Child>, LinkError> {
    let child = Child::spawn(role)?;
    child.channel().send(&Setup { cpu: pair.far, payload_bytes }, &[far.0.as_fd(), far.1.as_fd()])?;
    // The far end's descriptors close here, so that its death is an end of file for this side.
    Ok(Near::new(Descriptors::new(near.0, near.1, payload_bytes), child, payload_bytes))
}

/// The far side of both rows.
pub(crate) fn far(channel: &Channel) -> RoleResult {
    let (setup, fds) = channel.receive::<Setup>(2)?;
    let _pinned = pin::pin(setup.cpu)?;
    let [read, write] = <[OwnedFd; 2]>::try_from(fds).map_err(|_| "two descriptors were counted")?;
    serve(channel, &mut Descriptors::new(read, write, setup.payload_bytes))
}
