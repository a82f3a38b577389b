//! Rows `pubsub` and `stream`: this project's publish/subscribe through its public API, between two processes.
//!
//! Two services, one in each direction. `pubsub` is latency: loan, write the first word, publish; receive in place,
//! read the first word. `stream` is throughput: every word written, read and checked, with the API's forms for many
//! messages. Small sizes are fixed-size types, as a program of that kind would use; larger ones are slices.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use zcmi::directory::RuntimeDirectory;
use zcmi::ledger::{Counter, EndpointReading, Role};
use zcmi::name::ServiceName;
use zcmi::observe::observe;
use zcmi::payload::{Message, Payload};
use zcmi::{Process, Publisher, Service, Subscriber};

use crate::child::{Channel, Child, RoleResult};
use crate::link::{Flow, Link, LinkError, Near, serve};
use crate::pattern;
use crate::pin::{self, Pair};
use crate::spin::Patience;
use crate::stats::Latencies;

/// Slots of the large streams together stay near this size, as in row `bare`.
const FOOTPRINT_BYTES: usize = 256 << 10;
/// How long the two sides wait for each other when they join.
const JOIN: Duration = Duration::from_secs(10);
/// Messages that a batch may have.
const BATCH: u64 = 256;

/// A directory for one measurement, which goes with it.
#[derive(Debug)]
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self, LinkError> {
        let name = format!("zcmi-bench-{}-{:x}", std::process::id(), std::ptr::from_ref(&JOIN) as usize);
        for number in 0..10_000 {
            let path = std::env::temp_dir().join(format!("{name}-{number}"));
            match std::fs::create_dir(&path) {
                Ok(()) => {
                    use std::os::unix::fs::PermissionsExt as _;
                    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700))?;
                    return Ok(Self(path));
                }
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err("no name is free for a runtime directory in the temporary directory".into())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed is found by the tests that look for what is left.
        let _left_behind = std::fs::remove_dir_all(&self.0);
    }
}

/// Words whose number is known when compiling.
#[derive(Debug)]
struct Fixed<const WORDS: usize>;

/// Words whose number is chosen message by message.
#[derive(Debug)]
struct Slice;

/// How a kind of message is loaned.
trait Carrier: Sized {
    type Message: zcmi::payload::Message + ?Sized;

    fn send(
        publisher: &mut Publisher<Self::Message>,
        words: usize,
        write: impl FnOnce(&mut [u64]),
    ) -> Result<(), LinkError>;
    fn words(message: &Self::Message) -> &[u64];
    fn produce_all(publisher: &mut Publisher<Self::Message>, words: usize, messages: u64) -> Result<(), LinkError>;
}

impl<const WORDS: usize> Carrier for Fixed<WORDS>
where
    [u64; WORDS]: Payload,
{
    type Message = [u64; WORDS];

    #[inline]
    fn send(
        publisher: &mut Publisher<[u64; WORDS]>,
        _words: usize,
        write: impl FnOnce(&mut [u64]),
    ) -> Result<(), LinkError> {
        let mut lease = publisher.loan()?;
        write(&mut *lease);
        publisher.publish(lease).map_err(|error| error.reason)?;
        Ok(())
    }

    #[inline]
    fn words(message: &[u64; WORDS]) -> &[u64] {
        message
    }

    #[inline]
    fn produce_all(publisher: &mut Publisher<[u64; WORDS]>, _words: usize, messages: u64) -> Result<(), LinkError> {
        let mut done = 0;
        while done < messages {
            let step = (messages - done).min(BATCH);
            publisher.publish_batch(step, |index, message| pattern::fill(message, done + index))?;
            done += step;
        }
        Ok(())
    }
}

impl Carrier for Slice {
    type Message = [u64];

    #[inline]
    fn send(publisher: &mut Publisher<[u64]>, words: usize, write: impl FnOnce(&mut [u64])) -> Result<(), LinkError> {
        let mut lease = publisher.loan_slice(words)?;
        write(&mut lease);
        publisher.publish(lease).map_err(|error| error.reason)?;
        Ok(())
    }

    #[inline]
    fn words(message: &[u64]) -> &[u64] {
        message
    }

    #[inline]
    fn produce_all(publisher: &mut Publisher<[u64]>, words: usize, messages: u64) -> Result<(), LinkError> {
        for sequence in 0..messages {
            Self::send(publisher, words, |message| pattern::fill(message, sequence))?;
        }
        Ok(())
    }
}

/// One end: what it publishes, and what it receives.
struct PubSub<C: Carrier> {
    publisher: Publisher<C::Message>,
    subscriber: Subscriber<C::Message>,
    words: usize,
    /// Goes last, when both ends of this side are closed.
    scratch: Option<Scratch>,
}

impl<C: Carrier> PubSub<C> {
    fn open(directory: &Path, words: usize, stream: bool, out: &str, back: &str) -> Result<Self, LinkError> {
        let process = Process::open(RuntimeDirectory::at(directory)?)?;
        let bytes = words * 8;
        let service = |name: &str| Ok::<_, LinkError>(Service::with(ServiceName::new(name)?, process.clone())?);
        let mut options = service(out)?.publisher();
        if <C::Message as Message>::SLICE {
            options = options.max_len(words.max(1));
        }
        let mut joining = service(back)?.subscriber();
        if stream {
            // The slots of a stream stay in a cache that both sides reach, as in row `bare`; one slot to write into and
            // one that a reader may hold belong to them.
            let slots = (FOOTPRINT_BYTES / bytes.next_multiple_of(64)).clamp(4, 1024).next_power_of_two() as u64;
            options = options.capacity(if slots > 8 { slots } else { slots / 2 }).loans(1).reader_slots(1);
            joining = joining.holds(1);
        }
        let publisher = options.create()?;
        let mut subscriber = joining.join()?;
        if publisher.wait_for_subscribers(1, JOIN) == 0 {
            return Err("the other side did not join".into());
        }
        let mut patience = Patience::new();
        while subscriber.publishers() == 0 {
            patience.turn()?;
        }
        Ok(Self { publisher, subscriber, words, scratch: None })
    }
}

impl<C: Carrier> Link for PubSub<C> {
    #[inline]
    fn send_word(&mut self, word: u64) -> Result<(), LinkError> {
        C::send(&mut self.publisher, self.words, |words| words[0] = word)
    }

    #[inline]
    fn receive_word(&mut self) -> Result<u64, LinkError> {
        let mut patience = Patience::new();
        loop {
            if let Some(sample) = self.subscriber.try_receive()? {
                return Ok(C::words(&sample)[0]);
            }
            patience.turn()?;
        }
    }

    fn produce(&mut self, sequence: u64) -> Result<(), LinkError> {
        C::send(&mut self.publisher, self.words, |words| pattern::fill(words, sequence))
    }

    fn consume(&mut self, sequence: u64) -> Result<(), LinkError> {
        self.consume_all(sequence, sequence + 1)
    }

    fn produce_all(&mut self, messages: u64) -> Result<(), LinkError> {
        C::produce_all(&mut self.publisher, self.words, messages)
    }

    fn consume_all(&mut self, first: u64, messages: u64) -> Result<(), LinkError> {
        let mut next = first;
        let mut patience = Patience::new();
        let mut result = Ok(());
        while next < messages {
            let mut sequence = next;
            let read = self.subscriber.receive_batch((messages - next).min(BATCH), |_, message| {
                if result.is_ok() {
                    result = pattern::check(C::words(message), sequence);
                }
                sequence += 1;
            })?;
            result?;
            if read == 0 {
                patience.turn()?;
            } else {
                next += read;
                patience = Patience::new();
            }
        }
        Ok(())
    }
}

/// What the near side tells the child.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Setup {
    cpu: usize,
    payload_bytes: usize,
    /// Whether a stream is to be measured, else latency.
    stream: bool,
    directory: PathBuf,
}

/// Messages of a round of rows `readers-1` and `readers-64`, and the entries of their ring.
const MANY: u64 = 1 << 20;
const READERS: &str = "bench/readers";

/// What the near side tells the child of the rows `readers-1` and `readers-64`.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct ReadersSetup {
    cpu: usize,
    directory: PathBuf,
    readers: usize,
}

/// What a publisher's messages cost it with that many readers, of which one reads and the others never look.
pub(crate) fn readers(readers: usize, pair: Pair) -> Result<Flow, LinkError> {
    let scratch = Scratch::new()?;
    let child = Child::spawn("readers")?;
    let setup = ReadersSetup { cpu: pair.far, directory: scratch.0.clone(), readers };
    let process = Process::open(RuntimeDirectory::at(&scratch.0)?)?;
    let service = Service::<u64>::with(ServiceName::new(READERS)?, process)?;
    let mut publisher = service.publisher().capacity(MANY).create()?;
    child.channel().send(&setup, &[])?;
    child.channel().receive::<()>(0)?;
    if publisher.wait_for_subscribers(readers, JOIN) < readers {
        return Err("the readers did not join".into());
    }
    let (before, start) = (pin::process_cpu_ns(), std::time::Instant::now());
    for number in 0..MANY {
        publisher.publish_copy(&number)?;
    }
    let elapsed_ns = crate::clock::between_ns(start, std::time::Instant::now());
    let cpu_ns = pin::process_cpu_ns() - before;
    child.channel().receive::<()>(0)?;
    Ok(Flow { messages: MANY, elapsed_ns, cpu_ns })
}

/// The child's part: it joins as often as it is told, and reads with the first.
pub(crate) fn far_readers(channel: &Channel) -> RoleResult {
    let (setup, _) = channel.receive::<ReadersSetup>(0)?;
    let _pinned = pin::pin(setup.cpu)?;
    let process = Process::open(RuntimeDirectory::at(&setup.directory)?)?;
    let service = Service::<u64>::with(ServiceName::new(READERS)?, process)?;
    let mut joined = (0..setup.readers).map(|_| service.subscriber().join()).collect::<Result<Vec<_>, _>>()?;
    channel.send(&(), &[])?;
    let (mut next, mut patience, mut right) = (0, Patience::new(), true);
    while next < MANY {
        let read = joined[0].receive_batch(BATCH, |_, number| {
            right &= *number == next;
            next += 1;
        })?;
        if read == 0 {
            patience.turn()?;
        } else {
            patience = Patience::new();
        }
    }
    if !right {
        return Err("a message came out of order".into());
    }
    channel.send(&(), &[])?;
    Ok(())
}

const OUT: &str = "bench/out";
const BACK: &str = "bench/back";

/// Calls `$body` with `Carrier` as the type for messages of that size.
macro_rules! with_carrier {
    ($bytes:expr, $Carrier:ident => $body:expr) => {
        match $bytes {
            8 => {
                type $Carrier = Fixed<1>;
                $body
            }
            40 => {
                type $Carrier = Fixed<5>;
                $body
            }
            64 => {
                type $Carrier = Fixed<8>;
                $body
            }
            _ => {
                type $Carrier = Slice;
                $body
            }
        }
    };
}

/// How long a process of a measurement may take to hand over its ledger.
const LEDGER_PATIENCE: Duration = Duration::from_secs(5);

/// Bytes that the processes of a measurement copied for each byte that arrived, as an observer reads them from the
/// ledgers of all who take part.
pub(crate) fn copied_user_per_byte(directory: &Path) -> Result<f64, LinkError> {
    let directory = RuntimeDirectory::at(directory)?;
    let services = directory.services()?;
    let all = services.iter().flat_map(|service| &service.participants);
    let processes: BTreeSet<_> = all.map(|participant| participant.incarnation).collect();
    let (mut copied, mut delivered) = (0, 0);
    for process in processes {
        let observed = observe(&directory, process, None, LEDGER_PATIENCE);
        let ledger = observed.ledger.ok_or_else(|| observed.no_ledger.unwrap_or_default())?.read();
        copied += ledger.total().count(Counter::CopiedUser)?;
        let subscribers = |of: &&EndpointReading| of.snapshot.identity().role == Role::Subscriber;
        for subscriber in ledger.endpoints.iter().filter(subscribers) {
            delivered += subscriber.snapshot.count(Counter::BytesDelivered)?;
        }
    }
    if delivered == 0 { Err("nothing was delivered".into()) } else { Ok(copied as f64 / delivered as f64) }
}

/// What the two rows need of a near side, whatever its messages are.
pub(crate) trait Measured {
    /// Measures round trips.
    fn latency(&mut self, samples: u64) -> Result<Latencies, LinkError>;
    /// Measures a stream.
    fn stream(&mut self, target: Duration) -> Result<Flow, LinkError>;
    /// Bytes copied for each byte that was delivered until now, by the ledgers of both sides.
    fn copied_user_per_byte(&self) -> Result<f64, LinkError>;
}

/// A near side and the directory in which both sides are found.
struct Found<L> {
    near: Near<L, Child>,
    directory: PathBuf,
}

impl<L: Link> Measured for Found<L> {
    fn latency(&mut self, samples: u64) -> Result<Latencies, LinkError> {
        self.near.latency(samples)
    }

    fn stream(&mut self, target: Duration) -> Result<Flow, LinkError> {
        self.near.stream(target)
    }

    fn copied_user_per_byte(&self) -> Result<f64, LinkError> {
        copied_user_per_byte(&self.directory)
    }
}

/// Starts the far side and joins it.
pub(crate) fn near(payload_bytes: usize, stream: bool, pair: Pair) -> Result<Box<dyn Measured>, LinkError> {
    let scratch = Scratch::new()?;
    let child = Child::spawn("pubsub")?;
    let setup = Setup { cpu: pair.far, payload_bytes, stream, directory: scratch.0.clone() };
    child.channel().send(&setup, &[])?;
    with_carrier!(payload_bytes, Words => {
        let mut link = PubSub::<Words>::open(&scratch.0, payload_bytes / 8, stream, OUT, BACK)?;
        child.channel().receive::<()>(0)?;
        let directory = scratch.0.clone();
        link.scratch = Some(scratch);
        Ok(Box::new(Found { near: Near::new(link, child, payload_bytes), directory }))
    })
}

/// The child's part.
pub(crate) fn far(channel: &Channel) -> RoleResult {
    let (setup, _) = channel.receive::<Setup>(0)?;
    let _pinned = pin::pin(setup.cpu)?;
    with_carrier!(setup.payload_bytes, Words => {
        let mut link = PubSub::<Words>::open(&setup.directory, setup.payload_bytes / 8, setup.stream, BACK, OUT)?;
        channel.send(&(), &[])?;
        serve(channel, &mut link)
    })
}
