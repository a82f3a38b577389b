//! Two sessions over a network that loses, doubles, reorders, delays and goes silent, by a clock of the test's own.
//!
//! The network reads the bytes of some sends late, from the sender's memory as it is then, and says when it is done;
//! the memory of a message that completed is overwritten at once. `ZCMI_SEED=N` runs one seed again.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::FileExt;

use zcmi_mem::pool::PoolPlan;

use super::datagram::{CONTROL_BYTES, HEAD_BYTES, Head, Kind};
use super::pace::{MS, Nanos};
use super::receiver::Landed;
use super::sender::Ready;
use super::session::Session;
use crate::frame::Hello;
use crate::link::{Happened, LinkLimits, Piece};
use crate::outgoing::{QueueLimits, Token};
use crate::slots::{SlotPlan, Slots};

/// A small generator of numbers, so that a seed gives the same run again.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    fn often(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// What a network does, in percent, and how long it takes.
#[derive(Clone, Copy, Debug)]
struct Weather {
    lost: u64,
    doubled: u64,
    late: u64,
    shared: u64,
    silences: bool,
    epochs: bool,
    reliable: bool,
    messages: u64,
    /// Whether the second side sends no messages.
    one_way: bool,
    /// How often in a hundred steps a receiver lets go of what it holds.
    lets_go: u64,
}

#[derive(Clone)]
enum Body {
    Copied(Vec<u8>),
    /// Read when it arrives: so many bytes at that place of the sender's region, for that send.
    Shared {
        offset: u64,
        length: usize,
        flight: u64,
    },
}

struct Flight {
    side: usize,
    copies: usize,
    pieces: Vec<(u64, u32)>,
    numbers: Vec<u64>,
}

struct Side {
    session: Session,
    slots: Slots,
    submitted: u64,
    completed: Vec<bool>,
    /// By stream: the message that is being received, and how much of it came.
    partial: HashMap<u32, (u64, usize)>,
    received: Vec<u64>,
    held: Vec<Piece>,
    streams: HashMap<u32, Vec<u64>>,
    ended: bool,
    /// How often several datagrams were taken at once.
    runs: u64,
}

fn content(number: u64, at: usize) -> u8 {
    (number.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add((at as u64).wrapping_mul(0xd134_2543_de82_ef95)) >> 32)
        as u8
}

const STREAMS: u64 = 3;
const SLOT: u32 = 16 << 10;

impl Side {
    fn new(weather: &Weather) -> Self {
        let plan = SlotPlan {
            small_bytes: 512,
            small_slots: 64,
            slot_bytes: SLOT,
            large_slots: 12,
            headers: 1,
            loans: PoolPlan::doubling(64, 64 << 10, 8).ok(),
        };
        let slots = Slots::new(&plan).expect("memory");
        let queue = QueueLimits { messages: 32, ..QueueLimits::default() };
        let limits = LinkLimits { queue, credits: [16, 4], streams: 8, ..LinkLimits::default() };
        let reliability = if weather.reliable { super::Reliability::Reliable } else { super::Reliability::Unreliable };
        let session = Session::new(7, &limits, reliability, 1216, 1 << 20, &slots, 0);
        Self {
            session,
            slots,
            submitted: 0,
            completed: Vec::new(),
            partial: HashMap::new(),
            received: Vec::new(),
            held: Vec::new(),
            streams: HashMap::new(),
            ended: false,
            runs: 0,
        }
    }

    fn take(&mut self, piece: &Piece) {
        let (tag, at) = self.partial.remove(&piece.stream).unwrap_or((piece.tag, 0));
        assert_eq!((tag, at), (piece.tag, piece.offset as usize), "pieces of a stream come in order");
        for (index, &byte) in piece.lease.iter().enumerate() {
            assert_eq!(byte, content(tag, at + index), "message {tag} is wrong at {}", at + index);
        }
        if piece.is_last() {
            self.received.push(tag);
            self.streams.entry(piece.stream).or_default().push(tag);
        } else {
            self.partial.insert(piece.stream, (tag, at + piece.lease.byte_len()));
        }
    }
}

struct Model {
    weather: Weather,
    dice: Dice,
    now: Nanos,
    order: u64,
    /// What is on its way: when, and in which order of sending; to whom, and what.
    network: BTreeMap<(Nanos, u64), (usize, [u8; HEAD_BYTES], Body)>,
    notices: BTreeMap<(Nanos, u64), u64>,
    flights: HashMap<u64, Flight>,
    silent_until: Nanos,
    sides: [Side; 2],
}

impl Model {
    fn new(weather: Weather, seed: u64) -> Self {
        let mut model = Self {
            weather,
            dice: Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            now: 0,
            order: 0,
            network: BTreeMap::new(),
            notices: BTreeMap::new(),
            flights: HashMap::new(),
            silent_until: 0,
            sides: [Side::new(&weather), Side::new(&weather)],
        };
        let hello = Hello {
            incarnation: [0; 16],
            session: [7; 16],
            epoch: 0,
            resume_from: 0,
            small_bytes: 512,
            slot_bytes: SLOT,
            streams: 8,
            granted: [0; 2],
            nonce: [0; 32],
            proof: [0; 32],
        };
        for side in &mut model.sides {
            side.session.sender.begin(&hello);
            side.session.sender.ping = true;
        }
        model
    }

    fn put(&mut self, to: usize, head: [u8; HEAD_BYTES], body: &Body) {
        let copies = match self.dice.below(100) {
            _ if self.now < self.silent_until => 0,
            roll if roll < self.weather.lost => 0,
            roll if roll < self.weather.lost + self.weather.doubled => 2,
            _ => 1,
        };
        for _ in 0..copies {
            let late = self.dice.often(self.weather.late);
            let delay = if late { self.dice.below(20 * MS) } else { MS / 2 };
            self.order += 1;
            self.network.insert((self.now + delay, self.order), (to, head, body.clone()));
        }
        if let &Body::Shared { flight, .. } = body
            && let Some(flight) = self.flights.get_mut(&flight)
        {
            flight.copies += copies;
        }
    }

    fn submit(&mut self, index: usize) {
        let messages = if index == 1 && self.weather.one_way { 0 } else { self.weather.messages };
        let (dice, side) = (&mut self.dice, &mut self.sides[index]);
        while side.submitted < messages && dice.often(60) {
            let most = if self.weather.reliable { 60_000 } else { SLOT as u64 };
            let bytes = (dice.below(most) >> dice.below(10)) as usize;
            let Ok(mut lease) = side.slots.loan(bytes) else { break };
            let number = side.submitted;
            lease.iter_mut().enumerate().for_each(|(at, byte)| *byte = content(number, at));
            let stream = (number % STREAMS) as u32;
            if side.session.sender.submit(stream, number, lease.into(), Token(number)).is_err() {
                break;
            }
            side.completed.push(false);
            side.submitted += 1;
        }
        if side.submitted == messages {
            side.session.sender.close();
        }
    }

    fn send(&mut self, index: usize) {
        let now = self.now;
        let mut bytes = [0; CONTROL_BYTES];
        let mut control = |side: &mut Side, flush| {
            let length = side.session.speak(&mut bytes, flush, now)?;
            let mut head = [0; HEAD_BYTES];
            head.copy_from_slice(&bytes[..HEAD_BYTES]);
            Some((head, Body::Copied(bytes[HEAD_BYTES..length].to_vec())))
        };
        let side = &mut self.sides[index];
        side.session.receiver.top_up(&mut side.slots, 1, [false; 2]);
        if side.session.sender.due().is_some_and(|due| due <= now) {
            side.session.sender.time(now);
        }
        if let Some((head, body)) = control(side, true) {
            self.put(1 - index, head, &body);
        }
        for _ in 0..64 {
            let side = &mut self.sides[index];
            if !side.session.sender.has_data() {
                break;
            }
            let Ready::Now(budget) = side.session.sender.ready(now) else { break };
            let Some(train) = side.session.sender.train(1 + self.dice.below(8) as usize, budget) else {
                if let Some((head, body)) = control(side, false) {
                    self.put(1 - index, head, &body);
                }
                break;
            };
            if self.dice.often(3) {
                side.session.sender.put_back(train, 0);
                continue;
            }
            let count = if self.dice.often(5) {
                1 + self.dice.below(train.items.len() as u64) as usize
            } else {
                train.items.len()
            };
            let shared = self.dice.often(self.weather.shared);
            self.order += 1;
            let flight = self.order;
            let mut out = Vec::new();
            let (mut pieces, mut numbers) = (Vec::new(), Vec::new());
            let datagrams = side.session.sender.datagrams(&train, 7, side.session.epoch);
            for (item, (head, payload)) in train.items[..count].iter().zip(datagrams) {
                assert_eq!(payload.len(), item.length as usize, "nothing is sent of a message that is gone");
                let body = match side.slots.home(payload).filter(|_| shared) {
                    Some(home) => Body::Shared { offset: home.offset as u64, length: payload.len(), flight },
                    None => Body::Copied(payload.to_vec()),
                };
                pieces.push((item.sequence, item.length));
                numbers.push(head.tag);
                out.push((head.bytes(), body));
            }
            side.session.sender.sent(train, count, shared, now, &mut side.session.done);
            if shared {
                self.flights.insert(flight, Flight { side: index, copies: 0, pieces, numbers });
            }
            for (head, body) in out {
                self.put(1 - index, head, &body);
            }
            self.look_at_flight(flight);
            self.complete(index, Vec::new());
        }
    }

    /// Says that a send is done, some time after its last copy is gone.
    fn look_at_flight(&mut self, flight: u64) {
        if self.flights.get(&flight).is_some_and(|flight| flight.copies == 0) {
            self.order += 1;
            let delay = self.dice.below(4 * MS);
            self.notices.insert((self.now + delay, self.order), flight);
        }
    }

    /// What came is taken; the memory of what completed is overwritten.
    fn complete(&mut self, index: usize, mut happened: Vec<Happened>) {
        let side = &mut self.sides[index];
        happened.extend(side.session.done.drain(..).map(Happened::Completed));
        for happened in happened {
            match happened {
                Happened::Received(piece) if self.weather.lets_go < 20 || self.dice.often(70) => {
                    self.sides[index].held.push(piece)
                }
                Happened::Received(piece) => {
                    let held = core::mem::take(&mut self.sides[index].held);
                    held.iter().chain([&piece]).for_each(|piece| self.sides[index].take(piece));
                }
                Happened::Completed(Token(number)) => {
                    let owed =
                        self.flights.values().any(|flight| flight.side == index && flight.numbers.contains(&number));
                    assert!(!owed, "message {number} is free although a send of it is owed a notification");
                    let done = &mut self.sides[index].completed[number as usize];
                    assert!(!core::mem::replace(done, true), "message {number} completed twice");
                    for bytes in [64, 1024, 8192, 30_000, 60_000] {
                        if let Ok(mut lease) = self.sides[index].slots.loan(bytes) {
                            lease.fill(0xdd);
                        }
                    }
                }
                Happened::Unreadable(..) => unreachable!("nothing is sent from files"),
                Happened::Ended => self.sides[index].ended = true,
            }
        }
    }

    /// Reads what a datagram carries at last.
    fn read(&mut self, to: usize, body: &Body) -> Vec<u8> {
        match body {
            Body::Copied(bytes) => bytes.clone(),
            &Body::Shared { offset, length, flight } => {
                let mut bytes = vec![0; length];
                let region = self.sides[1 - to].slots.regions().next().expect("the region");
                let file =
                    std::fs::File::from(region.descriptor().expect("a file").try_clone_to_owned().expect("one more"));
                file.read_exact_at(&mut bytes, offset).expect("it is there");
                if let Some(flight) = self.flights.get_mut(&flight) {
                    flight.copies -= 1;
                }
                self.look_at_flight(flight);
                bytes
            }
        }
    }

    /// Delivers what comes next, and at times with it what follows on it, as the kernel does.
    fn deliver(&mut self, until: Nanos) -> bool {
        let Some(entry) = self.network.first_entry().filter(|entry| entry.key().0 <= until) else { return false };
        let (to, head, body) = entry.remove();
        let first = Head::decode(&head).expect("a head");
        let mut run = vec![(first, self.read(to, &body))];
        while first.kind == Kind::Data
            && let Some(entry) = self.network.first_entry().filter(|entry| entry.key().0 <= until)
        {
            let (next_to, head, _) = entry.get();
            let next = Head::decode(head).expect("a head");
            let bytes: usize = run.iter().map(|(_, bytes)| bytes.len()).sum();
            let due = Head { number: first.number + run.len() as u64, begin: first.begin + bytes as u32, ..first };
            if *next_to != to || next != due || !self.dice.often(80) {
                break;
            }
            let (_, _, body) = entry.remove();
            let bytes = self.read(to, &body);
            run.push((next, bytes));
        }
        let whole: Vec<u8> = run.iter().flat_map(|(_, bytes)| bytes).copied().collect();
        if run.len() == 1 || !self.take(to, &first, &whole, run.len()) {
            for (head, bytes) in run {
                self.take(to, &head, &bytes, 1);
            }
        }
        true
    }

    /// Has a side take a datagram, or so many that lie one behind the other where they belong; `false` if they do not.
    fn take(&mut self, to: usize, head: &Head, bytes: &[u8], datagrams: usize) -> bool {
        let side = &mut self.sides[to];
        if head.epoch != side.session.epoch {
            return true;
        }
        let mut ahead = None;
        let mut landed = Landed::Elsewhere(bytes);
        if let Some(expected) = side.session.receiver.expected() {
            if expected.is_new {
                ahead = side.slots.take_ahead();
            }
            let slot = match &mut ahead {
                Some(slot) => Some(slot),
                None => side.session.receiver.slot_of(&expected),
            };
            if let Some(slot) = slot {
                let stretch = &mut slot.bytes_mut(expected.end as usize)[expected.begin as usize..];
                // Whatever came, it lands there first.
                let landing = stretch.len().min(bytes.len());
                stretch[..landing].copy_from_slice(&bytes[..landing]);
                let is_due = expected.is_begun_by(head, side.slots.sizes());
                if is_due && landing == bytes.len() && landing > 0 {
                    landed = Landed::InPlace { bytes: landing, datagrams: datagrams as u64 };
                }
            }
        }
        if datagrams > 1 && matches!(landed, Landed::Elsewhere(_)) {
            ahead.into_iter().for_each(|slot| side.slots.put_back(slot));
            return false;
        }
        side.runs += u64::from(datagrams > 1);
        let mut happened = Vec::new();
        let taken = side.session.take(head, landed, &mut ahead, &mut side.slots, &mut happened, self.now);
        if let Some(slot) = ahead {
            side.slots.put_back(slot);
        }
        taken.expect("an honest peer is believed");
        self.complete(to, happened);
        true
    }

    fn step(&mut self) {
        for index in 0..2 {
            self.submit(index);
            self.send(index);
        }
        let now = self.now;
        let due = self.sides.iter_mut().flat_map(|side| {
            let sender = &mut side.session.sender;
            let paced = match sender.has_data().then(|| sender.ready(now)) {
                Some(Ready::At(at)) => Some(at),
                _ => None,
            };
            [sender.due(), paced]
        });
        let network = self.network.keys().chain(self.notices.keys()).map(|&(at, _)| at).min();
        let next = due.flatten().chain(network).min().unwrap_or(now + MS);
        self.now = next.max(now + 1000).min(now + 50 * MS);
        while let Some(entry) = self.notices.first_entry().filter(|entry| entry.key().0 <= self.now) {
            let Some(flight) = self.flights.remove(&entry.remove()) else { continue };
            for (piece, bytes) in flight.pieces {
                let session = &mut self.sides[flight.side].session;
                session.sender.unpin(piece, bytes, &mut session.done);
            }
            self.complete(flight.side, Vec::new());
        }
        while self.deliver(self.now) {}
        if self.weather.silences && self.dice.below(2000) == 0 {
            self.silent_until = self.now + self.dice.below(3_000 * MS);
        }
        if self.weather.epochs && self.dice.below(1000) == 0 {
            for side in &mut self.sides {
                side.session.epoch += 1;
                side.session.sender.begin_epoch(self.now);
            }
        }
        if self.dice.often(self.weather.lets_go) {
            for side in &mut self.sides {
                let held = core::mem::take(&mut side.held);
                held.iter().for_each(|piece| side.take(piece));
            }
        }
    }

    fn run(mut self, seed: u64) -> [Side; 2] {
        for steps in 0.. {
            let finished = self.sides.iter().all(|side| {
                side.session.sender.is_finished() && side.session.receiver.has_ended() && side.held.is_empty()
            });
            if finished {
                break;
            }
            assert!(
                steps < 400_000 && self.now < 4_000_000 * MS,
                "seed {seed}: no end at {} ms, {} steps; {:#?} {:?} of {} completed, {:?} received",
                self.now / MS,
                steps,
                self.sides.each_ref().map(|side| (&side.session.sender, &side.session.receiver)),
                self.sides.each_ref().map(|side| side.completed.iter().filter(|&&done| done).count()),
                self.weather.messages,
                self.sides.each_ref().map(|side| side.received.len()),
            );
            self.step();
        }
        // What is still on its way changes nothing more.
        while self.deliver(Nanos::MAX) {}
        self.sides
    }
}

/// The seed that `ZCMI_SEED` names, which is made again alone: what only many seeds do together is then not looked for.
fn replayed() -> Option<u64> {
    std::env::var("ZCMI_SEED").ok().and_then(|seed| seed.parse().ok())
}

/// So many seeds, with `ZCMI_LONG` a hundred times as many; the one that is made again.
fn seeds(count: u64) -> impl Iterator<Item = u64> {
    let count = if std::env::var_os("ZCMI_LONG").is_some() { 100 * count } else { count };
    replayed().map_or(1..=count, |seed| seed..=seed)
}

const FAIR: Weather = Weather {
    lost: 0,
    doubled: 0,
    late: 0,
    shared: 50,
    silences: false,
    epochs: false,
    reliable: true,
    messages: 150,
    one_way: false,
    lets_go: 20,
};

fn is_exact(weather: Weather, seed: u64) -> [Side; 2] {
    let sides = Model::new(weather, seed).run(seed);
    for side in &sides {
        assert!(side.completed.iter().all(|&done| done), "seed {seed}: everything completed");
        assert!(side.ended, "seed {seed}: the end was told");
        assert_eq!(side.session.sender.pinned_bytes(), 0, "seed {seed}");
        for stream in 0..STREAMS {
            let due: Vec<u64> = (0..weather.messages).filter(|number| number % STREAMS == stream).collect();
            assert_eq!(side.streams[&(stream as u32)], due, "seed {seed}: once, and in order");
        }
    }
    sides
}

#[test]
fn over_a_fair_network_nothing_is_sent_twice_and_most_is_received_in_place() {
    for seed in seeds(10) {
        for side in is_exact(FAIR, seed) {
            let counts = side.session.receiver.counts;
            assert_eq!((side.session.sender.lost, side.session.sender.again_bytes), (0, 0), "seed {seed}");
            assert!(counts.in_place > counts.copied && side.runs > 10, "seed {seed}: {counts:?}, {} runs", side.runs);
        }
    }
}

#[test]
fn each_message_arrives_once_and_in_order_whatever_the_network_does() {
    let (mut lost, mut known, mut runs) = (0, 0, 0);
    for seed in seeds(60) {
        let dice = &mut Dice(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) | 1);
        let weather = Weather {
            lost: [0, 1, 5, 20][dice.below(4) as usize],
            doubled: [0, 2, 20][dice.below(3) as usize],
            late: [0, 3, 50][dice.below(3) as usize],
            shared: dice.below(101),
            silences: dice.often(50),
            epochs: dice.often(50),
            ..FAIR
        };
        for side in is_exact(weather, seed) {
            lost += side.session.sender.lost;
            known += side.session.receiver.counts.known;
            runs += side.runs;
        }
    }
    assert!(
        replayed().is_some() || lost > 100 && known > 100 && runs > 100,
        "the network did its part: {lost} lost, {known} known, {runs} runs"
    );
}

#[test]
fn credits_that_are_lost_on_the_way_are_given_again() {
    for seed in seeds(20) {
        let weather = Weather { lost: 30, one_way: true, messages: 60, lets_go: 1, ..FAIR };
        let [one, two] = Model::new(weather, seed).run(seed);
        assert!(one.completed.iter().all(|&done| done) && two.received.len() == 60, "seed {seed}");
    }
}

#[test]
fn unreliable_messages_arrive_whole_or_not_at_all_and_always_complete() {
    let (mut sent, mut received) = (0, 0);
    for seed in seeds(40) {
        let weather = Weather { lost: 10, doubled: 10, late: 20, reliable: false, ..FAIR };
        for side in Model::new(weather, seed).run(seed) {
            assert!(side.completed.iter().all(|&done| done), "seed {seed}: everything completed");
            let mut numbers = side.received.clone();
            numbers.sort_unstable();
            numbers.dedup();
            assert_eq!(numbers.len(), side.received.len(), "seed {seed}: none comes twice");
            (sent, received) = (sent + weather.messages, received + side.received.len() as u64);
        }
    }
    assert!(replayed().is_some() || received < sent && received * 2 > sent, "{received} of {sent}");
}
