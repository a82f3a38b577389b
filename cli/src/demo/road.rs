//! The three ways between the demo's processes, so that everything else is the same code for all of them.
//!
//! ```text
//! one message   | head: 64 bytes (time, length) | a frame, or up to 1 MiB of the tree |
//! ```

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use zcmi::{Event, LeaseMut, Publisher, Service, Subscriber};

use crate::code::Fault;
use crate::failure::Failure;

/// Bytes before the data, which stays aligned to cache lines.
const HEAD_BYTES: usize = 64;
/// The name on which the demo publishes, in a runtime directory of its own.
const SERVICE: &str = "demo";
/// How long one side waits for the other.
const PATIENCE: Duration = Duration::from_secs(30);

/// A way from one process to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Road {
    Pipe,
    Socket,
    Zcmi,
}

impl Road {
    pub(super) const ALL: [Self; 3] = [Self::Pipe, Self::Socket, Self::Zcmi];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Pipe => "pipe",
            Self::Socket => "socket",
            Self::Zcmi => "zcmi",
        }
    }
}

/// Now, in nanoseconds; the same clock in all processes of the host.
pub(super) fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

fn failed(what: &'static str) -> impl Fn(Errno) -> Failure {
    move |errno| Failure::of(format_args!("the demo's {what} failed"), &errno)
}

/// The side that sends.
pub(super) enum Sender {
    /// Through a pipe or socket: from a buffer, by `write`.
    Descriptor { fd: OwnedFd, buffer: Vec<u8> },
    /// In the slot.
    Zcmi { publisher: Box<Publisher<[u8]>>, lease: Option<LeaseMut<[u8]>>, most: usize },
}

impl Sender {
    /// Makes the side that sends pieces of up to `piece_bytes`, and waits until the other is there.
    pub(super) fn new(road: Road, piece_bytes: usize) -> Result<Self, Failure> {
        let most = HEAD_BYTES + piece_bytes;
        if road != Road::Zcmi {
            let fd = std::io::stdout().as_fd().try_clone_to_owned();
            let fd = fd.map_err(|error| Failure::of("the demo's pipe is missing", &error))?;
            // Written once, so that no page of it is missing later.
            let buffer = vec![1; most];
            return Ok(Self::Descriptor { fd, buffer });
        }
        let cannot = |error: &(dyn std::error::Error + 'static)| Failure::of("the demo cannot publish", error);
        let service = Service::<[u8]>::new(SERVICE).map_err(|error| cannot(&error))?;
        let options = service.publisher().max_len(most).max_publishers(1).late_joiners(false).loans(1);
        let options = if piece_bytes > 1 << 20 { options.capacity(2).reader_slots(2) } else { options };
        let publisher = Box::new(options.create().map_err(|error| cannot(&error))?);
        if publisher.wait_for_subscribers(1, PATIENCE) == 0 {
            return Err(Failure::new(Fault::Demo, "the demo's receiving process did not come"));
        }
        Ok(Self::Zcmi { publisher, lease: None, most })
    }

    /// Room for the next piece.
    pub(super) fn room(&mut self) -> Result<&mut [u8], Failure> {
        match self {
            Self::Descriptor { buffer, .. } => Ok(&mut buffer[HEAD_BYTES..]),
            Self::Zcmi { publisher, lease, most } => {
                let loaned = publisher.loan_slice(*most);
                let loaned = loaned.map_err(|error| Failure::of("the demo has no room", &error))?;
                Ok(&mut lease.insert(loaned).as_mut_message_bytes()[HEAD_BYTES..])
            }
        }
    }

    /// Hands over what was written into the room, stamped with the time.
    pub(super) fn send(&mut self, bytes: usize) -> Result<(), Failure> {
        let stamp = |message: &mut [u8]| {
            message[..8].copy_from_slice(&now_ns().to_ne_bytes());
            message[8..16].copy_from_slice(&(bytes as u64).to_ne_bytes());
        };
        match self {
            Self::Descriptor { fd, buffer } => {
                let message = &mut buffer[..HEAD_BYTES + bytes];
                stamp(message);
                let mut rest = &*message;
                while !rest.is_empty() {
                    match rustix::io::write(&*fd, rest) {
                        Ok(written) => rest = &rest[written..],
                        Err(Errno::INTR) => {}
                        Err(errno) => return Err(failed("write")(errno)),
                    }
                }
                Ok(())
            }
            Self::Zcmi { publisher, lease, .. } => {
                let lease = lease.take().ok_or_else(|| Failure::new(Fault::Demo, "nothing was written to be sent"))?;
                let (loaned, _) = lease.into_parts();
                let length = u32::try_from(HEAD_BYTES + bytes).map_err(|error| Failure::of("a length", &error))?;
                let mut lease = LeaseMut::<[u8]>::from_parts(loaned, length);
                stamp(lease.as_mut_message_bytes());
                publisher.publish(lease).map_err(|error| Failure::of("the demo cannot publish", &error))?;
                Ok(())
            }
        }
    }

    /// Waits until everything was received, and ends.
    pub(super) fn finish(self) -> Result<(), Failure> {
        match self {
            Self::Descriptor { .. } => Ok(()),
            Self::Zcmi { mut publisher, .. } => {
                if publisher.wait_until_received(PATIENCE) && publisher.subscribers() > 0 {
                    return Ok(());
                }
                Err(Failure::new(Fault::Demo, "the demo's receiving process did not receive everything"))
            }
        }
    }
}

/// A piece as it was received.
pub(super) struct Piece<'a> {
    /// When it was sent.
    pub(super) sent_ns: u64,
    pub(super) data: &'a [u8],
    /// Whether the bytes lie where the sender wrote them.
    pub(super) in_place: bool,
}

/// The side that receives.
pub(super) enum Receiver {
    /// From a pipe or socket: into a buffer, by `read`.
    Descriptor { fd: OwnedFd, buffer: Vec<u8> },
    /// In place.
    Zcmi(Box<Subscriber<[u8]>>),
}

impl Receiver {
    /// Makes the side that receives pieces of up to `piece_bytes`.
    pub(super) fn new(road: Road, piece_bytes: usize) -> Result<Self, Failure> {
        if road != Road::Zcmi {
            let fd = std::io::stdin().as_fd().try_clone_to_owned();
            let fd = fd.map_err(|error| Failure::of("the demo's pipe is missing", &error))?;
            return Ok(Self::Descriptor { fd, buffer: vec![1; HEAD_BYTES + piece_bytes] });
        }
        let cannot = |error: &(dyn std::error::Error + 'static)| Failure::of("the demo cannot subscribe", error);
        let service = Service::<[u8]>::new(SERVICE).map_err(|error| cannot(&error))?;
        let subscriber = service.subscriber().join().map_err(|error| cannot(&error))?;
        Ok(Self::Zcmi(Box::new(subscriber)))
    }

    /// Receives the next piece and gives it to `each`; `false` when there is no more.
    pub(super) fn receive(&mut self, each: impl FnOnce(Piece<'_>)) -> Result<bool, Failure> {
        let split = |message: &[u8]| -> Option<(u64, usize)> {
            let word = |at: usize| message.get(at..at + 8)?.try_into().ok().map(u64::from_ne_bytes);
            Some((word(0)?, usize::try_from(word(8)?).ok()?))
        };
        let no_message = || Failure::new(Fault::Demo, "the demo received what it had not sent");
        match self {
            Self::Descriptor { fd, buffer } => {
                if !read_whole(fd, &mut buffer[..HEAD_BYTES])? {
                    return Ok(false);
                }
                let (sent_ns, length) = split(buffer).ok_or_else(no_message)?;
                let room = buffer.get_mut(HEAD_BYTES..HEAD_BYTES.saturating_add(length)).ok_or_else(no_message)?;
                if !read_whole(fd, room)? {
                    return Err(Failure::new(Fault::Demo, "the demo's sending process ended within a message"));
                }
                each(Piece { sent_ns, data: room, in_place: false });
                Ok(true)
            }
            Self::Zcmi(subscriber) => loop {
                let sample = subscriber.receive().map_err(|error| Failure::of("the demo cannot receive", &error))?;
                if let Some(sample) = sample {
                    let (sent_ns, length) = split(&sample).ok_or_else(no_message)?;
                    let data = sample.get(HEAD_BYTES..HEAD_BYTES.saturating_add(length)).ok_or_else(no_message)?;
                    each(Piece { sent_ns, data, in_place: sample.is_in_place() });
                    return Ok(true);
                }
                match subscriber.next_event() {
                    None | Some(Event::Joined { .. } | Event::CutOff { .. } | Event::NotWaking { .. }) => {}
                    Some(Event::Ended { .. }) => return Ok(false),
                    Some(event) => {
                        return Err(Failure::new(
                            Fault::Demo,
                            format!("the demo's sending process is gone: {event:?}"),
                        ));
                    }
                }
            },
        }
    }
}

/// Fills the room; `false` when the other side ended before its first byte.
fn read_whole(fd: &OwnedFd, room: &mut [u8]) -> Result<bool, Failure> {
    let mut filled = 0;
    while filled < room.len() {
        match rustix::io::read(fd, &mut room[filled..]) {
            Ok(0) if filled == 0 => return Ok(false),
            Ok(0) => return Err(Failure::new(Fault::Demo, "the demo's sending process ended within a message")),
            Ok(read) => filled += read,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(failed("read")(errno)),
        }
    }
    Ok(true)
}
