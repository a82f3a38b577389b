//! A bad network: a thread between two tun devices that loses, doubles, delays and reorders packets, swallows all of
//! them for a while, and resets connections.
//!
//! ```text
//! sender's namespace                    Relay, a thread                       receiver's namespace
//! zcmi-wire ═ tun ─▶ faults of what the sender sends ─▶ packets by due time ─▶ tun ═ zcmi-wire
//!           ═ tun ◀─ packets by due time ◀─ faults of what the receiver sends ◀─ tun ═
//! ```
//!
//! # Invariants
//! - What befalls a packet follows from the seed, the side that sent it and its number among the packets of that side,
//!   and from the [`Faults`] that are in force when it comes. Three numbers are drawn for each, whatever is in force,
//!   so that a change of the faults does not shift later draws.
//! - Each packet is counted by what became of it; see [`RelayCounts`].
//! - Memory is bounded: there are so many places for packets that wait, and what finds none is dropped and counted.
//!
//! # Units
//! Shares are parts of a million. Sizes are bytes of whole IP packets.
//!
//! # What this does not do
//! Damage bytes: checksums would drop the packet, which is a loss. Offloads: each packet is read and written alone, so
//! the thread's processor bounds the rate, at some Gb/s.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

use super::Side;

/// The longest packet that a link between the devices carries.
pub(super) const PACKET_BYTES: usize = 1500;
/// Packets that a device keeps until the relay reads them, so that it loses none unseen.
pub(super) const DEVICE_PACKETS: u32 = 10_000;

/// The room of a packet in the relay.
const PLACE_BYTES: usize = 1536;
/// Packets that may wait in the relay, of both sides.
const PLACES: usize = 16_384;
/// Packets that are read from one side before the other has its turn.
const BATCH: usize = 64;
/// Connections that are known at a time. When there are more, all are forgotten, and known again by their next packet.
const FLOWS: usize = 4096;
/// How many packets of each side a reset that was asked for may answer, until it is taken to have worked.
const RESET_TRIES: u8 = 64;
/// How long a packet may wait for its turn at a limited rate.
const RATE_QUEUE_NS: u64 = 100_000_000;
/// A share of all.
const MILLION: u64 = 1_000_000;

/// What befalls the packets of one side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// The share that is lost.
    pub loss_ppm: u32,
    /// The share of which a second copy follows.
    pub duplicates_ppm: u32,
    /// The share that later packets overtake.
    pub reordered_ppm: u32,
    /// By how much an overtaken packet and a second copy are later, at most.
    pub late: Duration,
    /// How long each packet takes.
    pub delay: Duration,
    /// By how much that varies: a packet takes up to so much longer. It keeps its place all the same.
    pub jitter: Duration,
    /// How much passes in a second, and 100 ms of it wait; zero for no limit.
    pub rate_kbit_s: u32,
    /// Whether nothing passes.
    pub black_hole: bool,
}

impl Faults {
    /// Nothing befalls them.
    pub const NONE: Self = Self {
        loss_ppm: 0,
        duplicates_ppm: 0,
        reordered_ppm: 0,
        late: Duration::ZERO,
        delay: Duration::ZERO,
        jitter: Duration::ZERO,
        rate_kbit_s: 0,
        black_hole: false,
    };
}

/// What became of the packets of one side. `read` is the sum of `passed`, `lost`, `swallowed`, `no_room` and `refused`,
/// and of those that wait; copies are counted by `doubled` alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RelayCounts {
    /// Packets that the side sent.
    pub read: u64,
    /// Of these, handed to the other side.
    pub passed: u64,
    /// Lost, as asked for.
    pub lost: u64,
    /// Swallowed by the black hole.
    pub swallowed: u64,
    /// Dropped because the rate was used up or no place was free.
    pub no_room: u64,
    /// Refused by the other side's device.
    pub refused: u64,
    /// Second copies that were handed over.
    pub doubled: u64,
    /// Packets that were held back so that others overtake them.
    pub reordered: u64,
    /// Packets that were held for a delay or a rate.
    pub delayed: u64,
    /// Resets that were made up in the name of this side.
    pub resets: u64,
}

/// [`RelayCounts`], as the thread counts.
#[derive(Debug, Default)]
struct Counting {
    read: AtomicU64,
    passed: AtomicU64,
    lost: AtomicU64,
    swallowed: AtomicU64,
    no_room: AtomicU64,
    refused: AtomicU64,
    doubled: AtomicU64,
    reordered: AtomicU64,
    delayed: AtomicU64,
    resets: AtomicU64,
}

/// Counts one. The thread is the only writer; whoever reads sees a count that was true a moment ago.
fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

#[derive(Debug, Default)]
struct Shared {
    faults: Mutex<[Faults; 2]>,
    counts: [Counting; 2],
    /// How often a reset was asked for.
    resets: AtomicU32,
    ends: AtomicBool,
    failure: Mutex<Option<String>>,
}

/// The thread between two tun devices; it ends with this value, and the devices with it.
#[derive(Debug)]
pub struct Relay {
    seed: u64,
    shared: Arc<Shared>,
    wake: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

/// The place of what a side sends among pairs.
fn index(from: Side) -> usize {
    match from {
        Side::Sender => 0,
        Side::Receiver => 1,
    }
}

impl Relay {
    /// Starts the thread between the devices of sender and receiver, which do not block.
    pub(super) fn start(devices: [OwnedFd; 2], seed: u64) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (ours, woken) = (Arc::clone(&shared), Arc::clone(&wake));
        let work = move || {
            let mut work = Work::new(devices, seed, &ours);
            if let Err((call, errno)) = work.run(&woken) {
                let said = format!("{call}: {}", io::Error::from(errno));
                *ours.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(said);
            }
        };
        let thread = std::thread::Builder::new().name("zcmi-relay".into()).spawn(work)?;
        Ok(Self { seed, shared, wake, thread: Some(thread) })
    }

    /// The seed of all choices.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Sets what befalls the packets that one side sends from now on. Those that wait keep their time.
    pub fn set(&self, from: Side, faults: Faults) {
        self.shared.faults.lock().unwrap_or_else(PoisonError::into_inner)[index(from)] = faults;
    }

    /// The same for both sides.
    pub fn set_both(&self, faults: Faults) {
        self.set(Side::Sender, faults);
        self.set(Side::Receiver, faults);
    }

    /// Resets every TCP connection that is known: each end gets a reset in the name of the other, with the sequence
    /// number that it expects. Because that moves on while packets fly, it is repeated with each packet of an end until
    /// that end is silent or says itself that it has no such connection.
    pub fn reset(&self) {
        self.shared.resets.fetch_add(1, Ordering::Relaxed);
        self.wake();
    }

    /// What became of the packets that one side sent.
    #[must_use]
    pub fn counts(&self, from: Side) -> RelayCounts {
        let counting = &self.shared.counts[index(from)];
        let look = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        RelayCounts {
            read: look(&counting.read),
            passed: look(&counting.passed),
            lost: look(&counting.lost),
            swallowed: look(&counting.swallowed),
            no_room: look(&counting.no_room),
            refused: look(&counting.refused),
            doubled: look(&counting.doubled),
            reordered: look(&counting.reordered),
            delayed: look(&counting.delayed),
            resets: look(&counting.resets),
        }
    }

    /// Why the thread gave up, if it did: nothing passes any more then.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.shared.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn wake(&self) {
        // It is full only if the thread is awake already.
        let _ = rustix::io::write(&*self.wake, &1_u64.to_ne_bytes());
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::Relaxed);
        self.wake();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the relay's thread panicked");
        }
    }
}

/// Numbers from a seed: SplitMix64.
#[derive(Debug)]
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let word = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }
}

/// What was drawn for a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Draw {
    is_lost: bool,
    is_doubled: bool,
    is_reordered: bool,
    /// How much of the most that it may be, in parts of 2^16, a packet is late.
    late: u64,
    jitter: u64,
}

impl Draw {
    fn of(dice: &mut Dice, faults: &Faults) -> Self {
        let [fate, order, time] = [dice.next(), dice.next(), dice.next()];
        // The two halves of a word are independent enough.
        let hits = |word: u64, share: u32| ((word & 0xffff_ffff) * MILLION) >> 32 < u64::from(share);
        Self {
            is_lost: hits(fate, faults.loss_ppm),
            is_doubled: hits(fate >> 32, faults.duplicates_ppm),
            is_reordered: hits(order, faults.reordered_ppm),
            late: time & 0xffff,
            jitter: (time >> 16) & 0xffff,
        }
    }
}

/// So many parts of 2^16 of a time.
fn part_ns(of: Duration, parts: u64) -> u64 {
    (nanos(of) >> 16).saturating_mul(parts) + (((nanos(of) & 0xffff) * parts) >> 16)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The next packet to hand over: its time, its number, and its place. Numbers keep packets of one time in order.
type Due = Reverse<(u64, u64, u32, u16, bool)>;

/// What the thread knows of one side.
struct Way {
    dice: Dice,
    /// Packets on their way to the other side.
    waiting: BinaryHeap<Due>,
    /// When the last packet that keeps its place is due.
    last_due: u64,
    /// When the rate lets the next packet through.
    rate_free_at: u64,
}

struct Work<'a> {
    devices: [OwnedFd; 2],
    ways: [Way; 2],
    shared: &'a Shared,
    places: Vec<u8>,
    free: Vec<u32>,
    next_number: u64,
    flows: HashMap<Flow, FlowState>,
    resets_done: u32,
    began: Instant,
}

type Failed = (&'static str, Errno);

impl<'a> Work<'a> {
    fn new(devices: [OwnedFd; 2], seed: u64, shared: &'a Shared) -> Self {
        let way = |salt: u64| Way {
            dice: Dice(seed ^ salt),
            waiting: BinaryHeap::with_capacity(PLACES),
            last_due: 0,
            rate_free_at: 0,
        };
        Self {
            devices,
            ways: [way(0), way(0x5851_f42d_4c95_7f2d)],
            shared,
            places: vec![0; (PLACES + 1) * PLACE_BYTES],
            free: (0..PLACES as u32).rev().collect(),
            next_number: 0,
            flows: HashMap::with_capacity(FLOWS),
            resets_done: 0,
            began: Instant::now(),
        }
    }

    fn now(&self) -> u64 {
        nanos(self.began.elapsed())
    }

    fn run(&mut self, woken: &OwnedFd) -> Result<(), Failed> {
        loop {
            if self.shared.ends.load(Ordering::Relaxed) {
                return Ok(());
            }
            let faults = *self.shared.faults.lock().unwrap_or_else(PoisonError::into_inner);
            let mut idle = true;
            for (from, faults) in faults.iter().enumerate() {
                idle &= self.read(from, faults)? == 0;
                idle &= self.hand_over(from) == 0;
            }
            self.begin_resets();
            if idle {
                self.wait(woken)?;
            }
        }
    }

    /// Waits until a packet comes or is due, or somebody wakes the thread.
    fn wait(&self, woken: &OwnedFd) -> Result<(), Failed> {
        let next = self.ways.iter().filter_map(|way| way.waiting.peek()).map(|Reverse((due, ..))| *due).min();
        let left = next.map(|due| {
            let left = Duration::from_nanos(due.saturating_sub(self.now()));
            Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() }
        });
        let mut waited = [
            PollFd::new(&self.devices[0], PollFlags::IN),
            PollFd::new(&self.devices[1], PollFlags::IN),
            PollFd::new(woken, PollFlags::IN),
        ];
        match poll(&mut waited, left.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(("poll", errno)),
        }
        if !waited[2].revents().is_empty() {
            let _emptied = rustix::io::read(woken, &mut [0; 8]);
        }
        Ok(())
    }

    /// Reads some packets of one side and decides about each. Returns how many there were.
    fn read(&mut self, from: usize, faults: &Faults) -> Result<usize, Failed> {
        let now = self.now();
        for done in 0..BATCH {
            // Without a free place it is read all the same, into one that nothing waits in.
            let place = self.free.pop();
            let at = place.unwrap_or(PLACES as u32) as usize * PLACE_BYTES;
            let bytes = match rustix::io::read(&self.devices[from], &mut self.places[at..at + PLACE_BYTES]) {
                Ok(bytes) => bytes,
                Err(errno) => {
                    self.free.extend(place);
                    match errno {
                        Errno::AGAIN => return Ok(done),
                        Errno::INTR => continue,
                        errno => return Err(("read of a tun device", errno)),
                    }
                }
            };
            let counts = &self.shared.counts[from];
            count(&counts.read);
            self.look_at_flow(from, at, bytes);
            let draw = Draw::of(&mut self.ways[from].dice, faults);
            let dropped = if faults.black_hole {
                Some(&counts.swallowed)
            } else if draw.is_lost {
                Some(&counts.lost)
            } else if place.is_none() {
                Some(&counts.no_room)
            } else {
                None
            };
            let due = if dropped.is_none() { self.due(from, faults, &draw, bytes, now) } else { None };
            match (dropped, due, place) {
                (None, Some(due), Some(place)) => self.forward(from, place, bytes, due, now, faults, &draw),
                (dropped, _, place) => {
                    count(dropped.unwrap_or(&counts.no_room));
                    self.free.extend(place);
                }
            }
        }
        Ok(BATCH)
    }

    /// When a packet is to be handed over; none if the rate has no room for it.
    fn due(&mut self, from: usize, faults: &Faults, draw: &Draw, bytes: usize, now: u64) -> Option<u64> {
        let way = &mut self.ways[from];
        let mut due = now;
        if faults.rate_kbit_s > 0 {
            let begin = way.rate_free_at.max(now);
            if begin - now > RATE_QUEUE_NS {
                return None;
            }
            // Bits over thousands of bits a second are milliseconds.
            way.rate_free_at = begin + bytes as u64 * 8 * 1_000_000 / u64::from(faults.rate_kbit_s);
            due = way.rate_free_at;
        }
        due += nanos(faults.delay) + part_ns(faults.jitter, draw.jitter);
        if !draw.is_reordered {
            due = due.max(way.last_due);
            way.last_due = due;
        }
        Some(due)
    }

    /// Hands a packet over, or keeps it until it is due; and so its copy.
    #[expect(clippy::too_many_arguments, reason = "all that was decided about one packet")]
    fn forward(&mut self, from: usize, place: u32, bytes: usize, due: u64, now: u64, faults: &Faults, draw: &Draw) {
        let late = part_ns(faults.late, draw.late);
        let counts = &self.shared.counts[from];
        if due > now {
            count(&counts.delayed);
        }
        let at = place as usize * PLACE_BYTES;
        if draw.is_doubled
            && let Some(copy) = self.free.pop()
        {
            self.places.copy_within(at..at + bytes, copy as usize * PLACE_BYTES);
            self.keep(from, copy, bytes, due + late, true);
        }
        if draw.is_reordered {
            count(&counts.reordered);
            self.keep(from, place, bytes, due + late.max(1), false);
        } else if due <= now {
            self.write(from, at, bytes, false);
            self.free.push(place);
        } else {
            self.keep(from, place, bytes, due, false);
        }
    }

    fn keep(&mut self, from: usize, place: u32, bytes: usize, due: u64, is_copy: bool) {
        self.next_number += 1;
        self.ways[from].waiting.push(Reverse((due, self.next_number, place, bytes as u16, is_copy)));
    }

    /// Hands over what is due. Returns how many packets that were.
    fn hand_over(&mut self, from: usize) -> usize {
        let now = self.now();
        let mut done = 0;
        while let Some(&Reverse((due, _, place, bytes, is_copy))) = self.ways[from].waiting.peek()
            && due <= now
        {
            self.ways[from].waiting.pop();
            self.write(from, place as usize * PLACE_BYTES, bytes.into(), is_copy);
            self.free.push(place);
            done += 1;
        }
        done
    }

    fn write(&self, from: usize, at: usize, bytes: usize, is_copy: bool) {
        let counts = &self.shared.counts[from];
        let written =
            rustix::io::retry_on_intr(|| rustix::io::write(&self.devices[1 - from], &self.places[at..at + bytes]));
        match written {
            Ok(_) if is_copy => count(&counts.doubled),
            Ok(_) => count(&counts.passed),
            // For instance because the device is down. A copy was never counted as read.
            Err(_) if is_copy => {}
            Err(_) => count(&counts.refused),
        }
    }

    /// Notes what a TCP packet says about its connection, and answers it if that is to be reset.
    fn look_at_flow(&mut self, from: usize, at: usize, bytes: usize) {
        let Some(segment) = Segment::parse(&self.places[at..at + bytes]) else { return };
        let flow = Flow::of(&segment, from);
        if self.flows.len() >= FLOWS && !self.flows.contains_key(&flow) {
            self.flows.clear();
        }
        let state = self.flows.entry(flow).or_default();
        if segment.flags & RST != 0 {
            // Whoever says so has no such connection any more.
            state.tries[from] = 0;
            state.expected[from] = None;
            return;
        }
        if segment.flags & ACK != 0 {
            state.expected[from] = Some(segment.acknowledged);
        }
        if state.tries[from] > 0 {
            state.tries[from] -= 1;
            let state = *state;
            self.reset_end(&flow, &state, from);
        }
    }

    /// Begins what was asked for since the last look.
    fn begin_resets(&mut self) {
        let asked = self.shared.resets.load(Ordering::Relaxed);
        if core::mem::replace(&mut self.resets_done, asked) == asked {
            return;
        }
        let flows: Vec<Flow> = self.flows.keys().copied().collect();
        for flow in flows {
            let Some(state) = self.flows.get_mut(&flow) else { continue };
            state.tries = [RESET_TRIES; 2];
            let state = *state;
            self.reset_end(&flow, &state, 0);
            self.reset_end(&flow, &state, 1);
        }
    }

    /// Tells one end of a connection, in the name of the other, that it is no more.
    fn reset_end(&self, flow: &Flow, state: &FlowState, end: usize) {
        let Some(expected) = state.expected[end] else { return };
        let mut packet = [0; RESET_BYTES];
        let bytes = flow.reset_for(end, expected, &mut packet);
        if rustix::io::write(&self.devices[end], &packet[..bytes]).is_ok() {
            count(&self.shared.counts[1 - end].resets);
        }
    }
}

/// The protocol number of TCP, and bits of its flags.
const TCP: u8 = 6;
const RST: u8 = 4;
const ACK: u8 = 16;
/// The longest reset: a header of version 6 and one of TCP.
const RESET_BYTES: usize = 60;

/// An address and a port; addresses of version 4 have the first four bytes.
type End = ([u8; 16], u16);

/// What is read of a TCP segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    is_v6: bool,
    source: End,
    destination: End,
    acknowledged: u32,
    flags: u8,
}

impl Segment {
    /// The segment in an IP packet; none if it is something else, a fragment, or cut short.
    fn parse(packet: &[u8]) -> Option<Self> {
        let is_v6 = match packet.first()? >> 4 {
            4 => false,
            6 => true,
            _ => return None,
        };
        let (protocol, header, addresses, width) = if is_v6 {
            (*packet.get(6)?, 40, 8, 16)
        } else {
            // Bits of the fragment's offset, and that more fragments follow.
            if u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]) & 0x3fff != 0 {
                return None;
            }
            (*packet.get(9)?, usize::from(packet[0] & 15) * 4, 12, 4)
        };
        if protocol != TCP {
            return None;
        }
        let address = |at: usize| -> Option<[u8; 16]> {
            let mut address = [0; 16];
            address[..width].copy_from_slice(packet.get(at..at + width)?);
            Some(address)
        };
        let tcp = packet.get(header..header + 20)?;
        let port = |at: usize| u16::from_be_bytes([tcp[at], tcp[at + 1]]);
        Some(Self {
            is_v6,
            source: (address(addresses)?, port(0)),
            destination: (address(addresses + width)?, port(2)),
            acknowledged: u32::from_be_bytes([tcp[8], tcp[9], tcp[10], tcp[11]]),
            flags: tcp[13],
        })
    }
}

/// A TCP connection: its ends, the sender's first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Flow {
    is_v6: bool,
    ends: [End; 2],
}

/// What was seen of a connection.
#[derive(Clone, Copy, Debug, Default)]
struct FlowState {
    /// The sequence number that each end expects, as it last said.
    expected: [Option<u32>; 2],
    /// How many more packets of each end are answered with a reset.
    tries: [u8; 2],
}

impl Flow {
    fn of(segment: &Segment, from: usize) -> Self {
        let ends =
            if from == 0 { [segment.source, segment.destination] } else { [segment.destination, segment.source] };
        Self { is_v6: segment.is_v6, ends }
    }

    /// Writes the reset that `end` is told, in the name of the other, and returns its length.
    fn reset_for(&self, end: usize, sequence: u32, packet: &mut [u8; RESET_BYTES]) -> usize {
        let (from, to) = (self.ends[1 - end], self.ends[end]);
        let (header, width) = if self.is_v6 { (40, 16) } else { (20, 4) };
        let bytes = header + 20;
        let addresses = header - 2 * width;
        packet[addresses..addresses + width].copy_from_slice(&from.0[..width]);
        packet[addresses + width..header].copy_from_slice(&to.0[..width]);
        if self.is_v6 {
            packet[0] = 6 << 4;
            packet[4..6].copy_from_slice(&20_u16.to_be_bytes());
            packet[6] = TCP;
            packet[7] = 64;
        } else {
            packet[0] = 4 << 4 | 5;
            packet[2..4].copy_from_slice(&40_u16.to_be_bytes());
            packet[8] = 64;
            packet[9] = TCP;
            let sum = checksum(&packet[..header], 0);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        packet[header..header + 2].copy_from_slice(&from.1.to_be_bytes());
        packet[header + 2..header + 4].copy_from_slice(&to.1.to_be_bytes());
        packet[header + 4..header + 8].copy_from_slice(&sequence.to_be_bytes());
        // The length of a TCP header without options, in words.
        packet[header + 12] = 5 << 4;
        packet[header + 13] = RST;
        // The sum also covers the addresses, the protocol and the length.
        let sum = checksum(&packet[addresses..bytes], u32::from(TCP) + 20);
        packet[header + 16..header + 18].copy_from_slice(&sum.to_be_bytes());
        bytes
    }
}

/// The Internet checksum of bytes, of which there is an even number, and of a word beside them.
///
/// # Sources
/// RFC 1071.
fn checksum(bytes: &[u8], beside: u32) -> u16 {
    let words = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let mut sum = words.sum::<u32>() + beside;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(is_v6: bool) -> Flow {
        let mut ends = [([0; 16], 4000), ([0; 16], 80)];
        ends[0].0[..4].copy_from_slice(&[10, 77, 0, 1]);
        ends[1].0[..4].copy_from_slice(&[10, 77, 0, 2]);
        Flow { is_v6, ends }
    }

    #[test]
    fn a_reset_reads_back_as_a_segment_of_its_flow_with_right_sums() {
        for is_v6 in [false, true] {
            let flow = flow(is_v6);
            for end in [0, 1] {
                let mut packet = [0; RESET_BYTES];
                let bytes = flow.reset_for(end, 0xdead_beef, &mut packet);
                let segment = Segment::parse(&packet[..bytes]).unwrap();
                assert_eq!(Flow::of(&segment, 1 - end), flow);
                assert_eq!((segment.flags, segment.is_v6), (RST, is_v6));
                // Whoever adds up a packet together with its sum gets none.
                let header = if is_v6 { 40 } else { 20 };
                let addresses = if is_v6 { 8 } else { 12 };
                assert_eq!(checksum(&packet[addresses..bytes], u32::from(TCP) + 20), 0);
                assert!(is_v6 || checksum(&packet[..header], 0) == 0);
                assert_eq!(packet[header + 4..header + 8], 0xdead_beef_u32.to_be_bytes());
            }
        }
    }

    #[test]
    fn what_is_no_whole_tcp_segment_is_no_segment() {
        let mut packet = [0; RESET_BYTES];
        let bytes = flow(false).reset_for(0, 1, &mut packet);
        for cut in 0..bytes {
            assert_eq!(Segment::parse(&packet[..cut]), None, "{cut} bytes");
        }
        packet[6] = 0x20;
        assert_eq!(Segment::parse(&packet[..bytes]), None, "a fragment");
        packet[6] = 0;
        packet[9] = 17;
        assert_eq!(Segment::parse(&packet[..bytes]), None, "a datagram");
    }

    #[test]
    fn a_seed_decides_alike_whatever_was_in_force_before() {
        let bad = Faults { loss_ppm: 100_000, duplicates_ppm: 50_000, reordered_ppm: 20_000, ..Faults::NONE };
        let draws = |before: &Faults| -> Vec<Draw> {
            let mut dice = Dice(7);
            for _ in 0..1000 {
                let _passed = Draw::of(&mut dice, before);
            }
            (0..100_000).map(|_| Draw::of(&mut dice, &bad)).collect()
        };
        let drawn = draws(&Faults::NONE);
        assert_eq!(drawn, draws(&bad));
        let share = |of: fn(&Draw) -> bool| drawn.iter().filter(|draw| of(draw)).count();
        let (lost, doubled) = (share(|draw| draw.is_lost), share(|draw| draw.is_doubled));
        let reordered = share(|draw| draw.is_reordered);
        assert!((9_500..10_500).contains(&lost), "{lost} lost");
        assert!((4_700..5_300).contains(&doubled), "{doubled} doubled");
        assert!((1_800..2_200).contains(&reordered), "{reordered} reordered");
    }

    #[test]
    fn parts_of_a_time_are_below_it() {
        let most = Duration::from_millis(20);
        assert_eq!(part_ns(most, 0), 0);
        assert!((19_999_000..20_000_000).contains(&part_ns(most, 0xffff)));
        assert!((9_999_000..=10_000_000).contains(&part_ns(most, 0x8000)));
    }
}
