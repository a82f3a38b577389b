//! What the tests of io_uring share: sockets with small buffers, a seeded source of numbers, children that are this
//! very test program, and a sender that keeps every slot until the ring says that it is free.
#![allow(dead_code, reason = "each test program uses its part")]

pub(crate) mod sys;

use std::collections::HashMap;
use std::io::{self, Read};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use zcmi_mem::pool::{Pool, PoolPlan, Slot};
use zcmi_mem::region::Region;
use zcmi_mem::registration::Support;
use zcmi_net::path::{PathKind, Release};
use zcmi_net::uring::{self, FIRST_NUMBER, Ring};
use zcmi_net::wire::{Home, Segment};

/// Whether there is io_uring here; says so if not.
pub(crate) fn is_there() -> bool {
    let support = uring::support();
    if support != Support::Yes {
        println!("SKIP: io_uring: {support}");
    }
    support == Support::Yes
}

/// Numbers that look random and come again with the same seed (xorshift64*).
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() >> 16) as usize % end
    }
}

/// Bytes of a small buffer. Smaller ones make the receiver put off its acknowledgements.
const SMALL: usize = 32 << 10;

/// A connected pair over loopback, with small buffers at both ends if asked.
pub(crate) fn tcp(small: bool) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    if small {
        // Before the connection, for it decides the window.
        rustix::net::sockopt::set_socket_recv_buffer_size(&listener, SMALL).expect("SO_RCVBUF");
    }
    let sender = TcpStream::connect(listener.local_addr().expect("an address")).expect("a connection");
    let (receiver, _) = listener.accept().expect("a connection");
    if small {
        send_little_ahead(&sender);
    }
    receiver.set_nonblocking(true).expect("a socket");
    (sender, receiver)
}

/// Gives a socket a small send buffer.
pub(crate) fn send_little_ahead(sender: &TcpStream) {
    rustix::net::sockopt::set_socket_send_buffer_size(sender, SMALL).expect("SO_SNDBUF");
}

/// A connected pair of Unix sockets.
pub(crate) fn unix() -> (UnixStream, UnixStream) {
    let (sender, receiver) = UnixStream::pair().expect("a pair");
    receiver.set_nonblocking(true).expect("a socket");
    (sender, receiver)
}

/// The byte at a position of the stream; never [`POISON`].
pub(crate) fn byte_at(position: u64) -> u8 {
    (position.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u8 & 0x7f
}

/// What a slot holds that the ring gave back.
pub(crate) const POISON: u8 = 0xee;

/// A receiver that knows what must come.
pub(crate) struct Sink<R> {
    pub(crate) from: R,
    pub(crate) position: u64,
}

impl<R: Read> Sink<R> {
    /// Reads up to `most` bytes and compares them; returns how many came.
    pub(crate) fn read(&mut self, most: usize) -> usize {
        let mut buffer = vec![0; most.max(1)];
        match self.from.read(&mut buffer) {
            Ok(got) => {
                for (at, &byte) in buffer[..got].iter().enumerate() {
                    let position = self.position + at as u64;
                    assert_eq!(byte, byte_at(position), "byte {position} of the stream (poison is {POISON:#x})");
                }
                self.position += got as u64;
                got
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => panic!("read: {error}"),
        }
    }
}

/// A sender over a pool: it fills slots with what comes next in the stream, and poisons and frees each slot when the
/// ring says that its bytes are free.
pub(crate) struct Source {
    pub(crate) region: Arc<Region>,
    pool: Pool,
    base: usize,
    /// Filled and not yet accepted, with the place where each begins and ends.
    pending: Vec<(Slot, usize, usize)>,
    /// What the kernel may still read, by the number of the send.
    in_flight: HashMap<u64, Vec<Slot>>,
    position: u64,
    pub(crate) owed: u64,
    pub(crate) notified: u64,
    pub(crate) copied: u64,
}

impl Source {
    pub(crate) fn new(slot_bytes: usize, slots: u32) -> Self {
        let (region, pool) = sys::pool(&PoolPlan::single(slot_bytes, slots).expect("a plan"));
        let base = region.bytes(region.data_offset(), 1).expect("data").base().as_ptr().addr() - region.data_offset();
        let (pending, in_flight) = (Vec::new(), HashMap::new());
        Self { region, pool, base, pending, in_flight, position: 0, owed: 0, notified: 0, copied: 0 }
    }

    /// Fills a slot with the next `bytes` bytes of the stream; nothing, if all are in use.
    pub(crate) fn fill(&mut self, bytes: usize) -> bool {
        let Ok(mut slot) = self.pool.take(bytes) else { return false };
        for (at, byte) in slot.bytes_mut(bytes).iter_mut().enumerate() {
            *byte = byte_at(self.position + at as u64);
        }
        self.position += bytes as u64;
        self.pending.push((slot, 0, bytes));
        true
    }

    /// How many bytes were filled.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// How many bytes were filled and not accepted.
    pub(crate) fn pending_bytes(&self) -> usize {
        self.pending.iter().map(|(_, begin, end)| end - begin).sum()
    }

    pub(crate) fn is_sent(&self) -> bool {
        self.pending.is_empty()
    }

    /// Sends what is pending; slots that were sent wholly wait for their release, as does one that was sent in part:
    /// its rest is filled into another slot. While there is none for that it would block, as on a socket that is full.
    pub(crate) fn send(
        &mut self,
        ring: &mut Ring,
        socket: BorrowedFd<'_>,
        key: u32,
        path: PathKind,
        region: usize,
    ) -> io::Result<usize> {
        let spare = self.pool.take(1).map_err(|_| io::ErrorKind::WouldBlock)?;
        let segments: Vec<Segment<'_>> = self
            .pending
            .iter()
            .map(|(slot, begin, end)| {
                let bytes = &slot.bytes(*end)[*begin..];
                let offset = bytes.as_ptr().addr() - self.base;
                Segment { bytes, home: Some(Home { region, offset }) }
            })
            .collect();
        let sent = ring.send(socket, key, path, &segments)?;
        drop(segments);
        let (mut left, mut spare) = (sent.bytes, Some(spare));
        let mut gone = Vec::new();
        while let Some((_, begin, end)) = self.pending.first_mut() {
            let bytes = *end - *begin;
            if left < bytes {
                if left > 0 {
                    // The sent part may still be read, so the rest goes from a slot of its own.
                    let (first, last) = (*begin + left, *end);
                    let mut rest = spare.take().expect("one slot is sent in part");
                    let (slot, _, _) = &mut self.pending[0];
                    rest.bytes_mut(last)[first..].copy_from_slice(&slot.bytes(last)[first..]);
                    gone.push(core::mem::replace(slot, rest));
                    self.pending[0].1 = first;
                }
                break;
            }
            left -= bytes;
            gone.push(self.pending.remove(0).0);
        }
        match sent.release {
            Release::Now => gone.into_iter().for_each(poison),
            Release::Notified(number) => {
                assert!(number >= FIRST_NUMBER && sent.bytes > 0);
                self.owed += 1;
                assert!(self.in_flight.insert(number, gone).is_none(), "a number is given once");
            }
            Release::Acknowledged => panic!("no path of io_uring waits for the far program"),
        }
        Ok(sent.bytes)
    }

    /// Takes notifications, and poisons what they release.
    pub(crate) fn notifications(&mut self, ring: &mut Ring, key: u32) {
        let Self { in_flight, notified, copied, .. } = self;
        let taken = ring.notifications(key, &mut |news| {
            assert_eq!(news.first, news.last);
            let slots = in_flight.remove(&news.first).expect("a notification is owed, and comes once");
            slots.into_iter().for_each(poison);
            *notified += 1;
            *copied += u64::from(news.copied);
        });
        taken.expect("this is no forked child");
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }
}

fn poison(mut slot: Slot) {
    let capacity = slot.capacity();
    slot.bytes_mut(capacity).fill(POISON);
}

/// Waits until the receiver can be read, or the sender, if one is given, be written; a bounded time.
pub(crate) fn wait(receiver: impl AsFd, sender: Option<BorrowedFd<'_>>) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = vec![PollFd::new(&receiver, PollFlags::IN)];
    fds.extend(sender.as_ref().map(|sender| PollFd::new(sender, PollFlags::OUT)));
    let limit = Timespec { tv_sec: 10, tv_nsec: 0 };
    assert!(poll(&mut fds, Some(&limit)).expect("poll") > 0, "nothing came, and nothing could be sent, for 10 s");
}

/// Waits until the sender can be written; a bounded time.
pub(crate) fn wait_for_room(sender: impl AsFd) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let limit = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
    let mut fds = [PollFd::new(&sender, PollFlags::OUT)];
    assert!(poll(&mut fds, Some(&limit)).expect("poll") > 0, "nothing could be sent for {PATIENCE:?}");
}

pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Says in a child that it is one: the name of its test.
const CHILD: &str = "ZCMI_URING_CHILD";

/// Whether this process is the child of the test `name`.
pub(crate) fn is_child(name: &str) -> bool {
    std::env::var(CHILD).is_ok_and(|child| child == name)
}

/// Runs the test `name` of this program as its child, behind the words of `prefix`, and returns what it printed.
pub(crate) fn run_child(prefix: &[&str], program: &std::path::Path, name: &str) -> String {
    let mut command = match prefix.split_first() {
        None => Command::new(program),
        Some((first, rest)) => {
            let mut command = Command::new(first);
            command.args(rest).arg(program);
            command
        }
    };
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]).env(CHILD, name);
    let output = command.stdin(Stdio::null()).output().expect("the child starts");
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("1 passed"), "{}:\n{text}", output.status);
    text
}

/// This test program.
pub(crate) fn this_program() -> PathBuf {
    std::env::current_exe().expect("/proc")
}

/// Whether a program can be found.
pub(crate) fn has_program(name: &str) -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths).any(|directory| directory.join(name).is_file())
}

/// A copy of this test program that every user may run, removed when it drops.
pub(crate) struct Program(PathBuf);

impl Program {
    pub(crate) fn copy(name: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("zcmi-{name}-{}", std::process::id()));
        std::fs::create_dir(&directory).expect("a temporary directory");
        let program = Self(directory);
        let all = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&program.0, all).expect("our own directory");
        // By another process: a program that a forked child of this one still holds open to write cannot be started.
        let copied = Command::new("cp").args([this_program(), program.path()]).status();
        assert!(copied.expect("cp starts").success(), "room for the test program");
        program
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.0.join("program")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).expect("our own directory");
    }
}
