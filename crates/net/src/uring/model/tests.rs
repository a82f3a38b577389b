//! The ring's own code over the model: whatever the kernel does, no byte is free that it may still read, whatever is
//! owed comes once, nothing is waited for that is not owed, and what is lost is kept for ever.

use std::os::unix::net::UnixStream;

use zcmi_mem::pool::{Pool, PoolPlan, Slot};
use zcmi_mem::region::Region;
use zcmi_mem::registration::RemoveError;

use super::super::{Envelope, Options, Received, Refusal, Ring};
use super::*;
use crate::path::{PathKind, Release};
use crate::raw;
use crate::wire::{Home, Segment, Sent};

const KEYS: u32 = 4;
/// Regions, and how many slots each has.
const REGIONS: usize = 2;
const SLOTS: u32 = 14;
/// So that slots lie across the places of the table.
const SLOT_BYTES: usize = 6000;
const PLACE_BYTES: usize = 8192;
/// Slots to receive into.
const RECEIVED: u32 = 24;
/// Steps of one ring.
const STEPS: u32 = 2000;

/// Who has some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    /// A send that is named by this number.
    Held(u64),
    /// The kernel, for ever.
    Lost,
}

/// Bytes to send, and where they lie.
struct Buffer {
    bytes: Bytes,
    home: Option<Home>,
    state: State,
}

enum Bytes {
    Slot(Slot),
    Own(Vec<u8>),
}

impl Buffer {
    fn bytes(&self, most: usize) -> &[u8] {
        match &self.bytes {
            Bytes::Slot(slot) => slot.bytes(most),
            Bytes::Own(bytes) => &bytes[..most.min(bytes.len())],
        }
    }

    fn range(&self) -> Range<usize> {
        range(self.bytes(SLOT_BYTES))
    }
}

/// A send that is owed a notification.
struct Flight {
    key: u32,
    buffers: Vec<usize>,
}

/// What is sent from and received into, by one ring after the other: what a ring pins for ever is not lost with it.
struct Memory {
    regions: [Arc<Region>; REGIONS],
    buffers: Vec<Buffer>,
    pool: Pool,
    socket: UnixStream,
}

/// A ring over a model, and what its user knows.
struct Rig<'a> {
    ring: Ring,
    model: Handle,
    dice: Dice,
    memory: &'a mut Memory,
    registered: [bool; REGIONS],
    /// How many held each region before.
    holders: [usize; REGIONS],
    flights: HashMap<u64, Flight>,
    /// What came and was not given back.
    delivered: Vec<Slot>,
    stopped: bool,
    /// Whether the kernel keeps its word, so that the ring has nothing to wonder at.
    faithful: bool,
}

fn region(plan: &PoolPlan) -> (Arc<Region>, Pool) {
    let region = Arc::new(Region::options(plan.bytes()).create().expect("a region"));
    let life = ForkGuard::new().expect("a guard").life();
    let pool = raw::pool(&region, region.data_offset(), plan, life).expect("the plan fits");
    (region, pool)
}

impl Memory {
    fn new() -> Self {
        let mut buffers = Vec::new();
        let plan = PoolPlan::single(SLOT_BYTES, SLOTS).expect("a plan");
        let regions = [0, 1].map(|number| {
            let (region, mut pool) = region(&plan);
            let begin = region.data_offset();
            let base = region.bytes(begin, 1).expect("data").base().as_ptr().addr() - begin;
            for _ in 0..SLOTS {
                let slot = pool.take(SLOT_BYTES).expect("as many as planned");
                let offset = slot.bytes(1).as_ptr().addr() - base;
                let home = Some(Home { region: number, offset });
                buffers.push(Buffer { bytes: Bytes::Slot(slot), home, state: State::Free });
            }
            region
        });
        for bytes in [0, 1, 40, 64, 65, 300, 64, 64] {
            buffers.push(Buffer { bytes: Bytes::Own(vec![0; bytes]), home: None, state: State::Free });
        }
        let (_, pool) = region(&PoolPlan::single(500, RECEIVED).expect("a plan"));
        Self { regions, buffers, pool, socket: UnixStream::pair().expect("a pair").0 }
    }
}

impl<'a> Rig<'a> {
    fn new(seed: u64, temper: Temper, memory: &'a mut Memory) -> Self {
        let mut dice = Dice::new(seed ^ 0x1234);
        let model = Arc::new(Mutex::new(Model::new(seed, temper)));
        NEXT.set(Some(Arc::clone(&model)));
        let sends = [3, 8, 64][dice.below(3) as usize];
        let options = Options::default().deferred(true).sends(sends).buffers(64).place_bytes(PLACE_BYTES);
        let mut ring = Ring::open(options).expect("a model opens");
        ring.receiving(16).expect("a queue of slots");
        memory.buffers.iter_mut().for_each(|buffer| buffer.state = State::Free);
        let holders = [0, 1].map(|number: usize| Arc::strong_count(&memory.regions[number]));
        Self {
            ring,
            model,
            dice,
            memory,
            registered: [false; REGIONS],
            holders,
            flights: HashMap::new(),
            delivered: Vec::new(),
            stopped: false,
            faithful: temper.doubled == 0 && temper.reordered == 0,
        }
    }

    /// Somebody else may write these bytes now.
    fn free(&mut self, buffer: usize) -> Result<(), String> {
        let bytes = self.memory.buffers[buffer].range();
        if lock(&self.model).is_reading(&bytes) {
            return Err(format!("buffer {buffer} is free, and the kernel reads it"));
        }
        self.memory.buffers[buffer].state = State::Free;
        Ok(())
    }

    /// Some free buffers, and how many bytes of each.
    fn choose(&mut self) -> Vec<(usize, usize)> {
        let count = 1 + self.dice.below(if self.dice.clone().often(10) { 12 } else { 4 });
        let mut chosen: Vec<(usize, usize)> = Vec::new();
        let near = self.dice.below(self.memory.buffers.len() as u64) as usize;
        for _ in 0..count {
            let at = if self.dice.often(50) { near + chosen.len() } else { self.dice.next() as usize };
            let at = at % self.memory.buffers.len();
            if self.memory.buffers[at].state == State::Free && chosen.iter().all(|&(other, _)| other != at) {
                chosen.push((at, 1 + self.dice.below(SLOT_BYTES as u64) as usize));
            }
        }
        chosen
    }

    fn send(&mut self) -> Result<(), String> {
        let chosen = self.choose();
        let segments: Vec<Segment<'_>> = chosen
            .iter()
            .map(|&(at, bytes)| Segment {
                bytes: self.memory.buffers[at].bytes(bytes),
                home: self.memory.buffers[at].home,
            })
            .collect();
        let lengths: Vec<usize> = segments.iter().map(|segment| segment.bytes.len()).collect();
        let wanted: Vec<Range<usize>> = segments.iter().map(|segment| range(segment.bytes)).collect();
        let key = self.dice.below(u64::from(KEYS)) as u32;
        let path = [PathKind::UringSend, PathKind::UringZeroCopy, PathKind::UringFixed, PathKind::UringFixed]
            [self.dice.below(4) as usize];
        let datagrams = self.dice.often(15);
        let answer = if datagrams {
            let sent = self.ring.send_datagrams(self.memory.socket.as_fd(), key, path, Envelope::default(), &segments);
            sent.map(|release| (lengths.iter().sum(), release))
        } else {
            self.ring.send(self.memory.socket.as_fd(), key, path, &segments).map(|sent| (sent.bytes, sent.release))
        };
        drop(segments);
        let accepted = core::mem::take(&mut lock(&self.model).accepted);
        let (bytes, release) = match answer {
            Ok(sent) => sent,
            Err(error) => {
                let refusal = error.get_ref().and_then(|inner| inner.downcast_ref::<Refusal>()).copied();
                let were_stopped = core::mem::replace(&mut self.stopped, self.ring.stopped.is_some());
                match refusal {
                    Some(Refusal::Lost) if were_stopped => return Err("a send is lost that was never begun".into()),
                    Some(Refusal::Lost) => {
                        if lock(&self.model).unanswered.is_empty() {
                            return Err("a send is lost that was answered".into());
                        }
                        chosen.iter().for_each(|&(at, _)| self.memory.buffers[at].state = State::Lost);
                        return Ok(());
                    }
                    Some(Refusal::Stopped { .. } | Refusal::NotRegistered { .. }) | None => {}
                    Some(other) => return Err(format!("{path} was refused: {other}")),
                }
                if accepted.iter().any(|range| !range.is_empty()) {
                    return Err(format!("{path} failed ({error}), and bytes were accepted"));
                }
                return chosen.iter().try_for_each(|&(at, _)| self.free(at));
            }
        };
        self.stopped = self.ring.stopped.is_some();
        let taken: usize = accepted.iter().map(Range::len).sum();
        if !datagrams && taken != bytes && !self.stopped {
            return Err(format!("{path} says {bytes} bytes, and {taken} were accepted"));
        }
        if !datagrams && !is_prefix(&accepted, &wanted) {
            return Err(format!("{path}: a gap in {accepted:?} of {wanted:?}"));
        }
        let mut left = bytes;
        let mut held = Vec::new();
        for (&(at, _), length) in chosen.iter().zip(lengths) {
            match release {
                Release::Notified(number) if left > 0 && length > 0 => {
                    self.memory.buffers[at].state = State::Held(number);
                    held.push(at);
                }
                _ => self.free(at)?,
            }
            left = left.saturating_sub(length);
        }
        if let Release::Notified(number) = release
            && self.flights.insert(number, Flight { key, buffers: held }).is_some()
        {
            return Err(format!("number {number} was given twice"));
        }
        Ok(())
    }

    fn notifications(&mut self, key: u32) -> Result<(), String> {
        let mut came = Vec::new();
        self.ring.notifications(key, &mut |news| came.push(news)).map_err(|error| error.to_string())?;
        for news in came {
            for number in news.first..=news.last {
                let flight = self.flights.remove(&number).ok_or(format!("{number} is notified and not owed"))?;
                if flight.key != key {
                    return Err(format!("{number} of {} was told to {key}", flight.key));
                }
                for at in flight.buffers {
                    if self.memory.buffers[at].state != State::Held(number) {
                        return Err(format!("buffer {at} is {:?} and not of {number}", self.memory.buffers[at].state));
                    }
                    self.free(at)?;
                }
            }
        }
        Ok(())
    }

    /// Shows the ring a region, or takes it back.
    fn turn(&mut self, number: usize) -> Result<(), String> {
        let region = Arc::clone(&self.memory.regions[number]);
        if !self.registered[number] {
            self.registered[number] = self.ring.register(number, &region).is_ok();
            return Ok(());
        }
        match self.ring.unregister(&region) {
            Ok(()) => self.registered[number] = false,
            Err(RemoveError::InUse { in_flight, .. }) if in_flight > 0 => {}
            Err(error) => return Err(format!("region {number}: {error}")),
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<(), String> {
        let key = self.dice.below(u64::from(KEYS)) as u32;
        match self.dice.below(10) {
            0..4 => {
                let Ok(slot) = self.memory.pool.take(1) else { return Ok(()) };
                if lock(&self.model).is_writing(&range(slot.bytes(1))) {
                    return Err("a slot is free, and the kernel writes into it".into());
                }
                // It comes back if there are enough.
                let _back = self.ring.provide(slot);
            }
            4..6 => drop(self.ring.arm(self.memory.socket.as_fd(), key)),
            6 => drop(self.ring.disarm(key)),
            7 => self.delivered.clear(),
            _ => {
                if let Some((_, Received::Bytes { slot, bytes })) = self.ring.received() {
                    let written = lock(&self.model).written.remove(&range(slot.bytes(1)).start);
                    if written != Some(bytes) {
                        return Err(format!("{bytes} bytes of a slot were delivered, and {written:?} written"));
                    }
                    if lock(&self.model).is_writing(&range(slot.bytes(1))) {
                        return Err("a slot was delivered, and the kernel writes into it".into());
                    }
                    self.delivered.push(slot);
                }
            }
        }
        Ok(())
    }

    fn step(&mut self) -> Result<(), String> {
        {
            let mut model = lock(&self.model);
            (model.pushes, model.enters, model.storms) = (0, 0, 0);
            model.accepted.clear();
        }
        match self.dice.below(100) {
            0..45 => self.send()?,
            45..70 => {
                let key = self.dice.below(u64::from(KEYS)) as u32;
                self.notifications(key)?;
            }
            70..76 => {
                if let Some(key) = self.ring.notified() {
                    let before = self.flights.len();
                    self.notifications(key)?;
                    if self.flights.len() == before {
                        return Err(format!("{key} was said to have news, and had none"));
                    }
                }
            }
            76..80 => drop(self.ring.has_news()),
            80..84 => drop(self.ring.settle(Duration::ZERO)),
            84 => self.settle()?,
            85..88 => {
                let number = self.dice.below(REGIONS as u64) as usize;
                self.turn(number)?;
            }
            _ => self.receive()?,
        }
        self.check()
    }

    /// Waits for all that is owed, if the kernel has not forgotten some of it.
    fn settle(&mut self) -> Result<(), String> {
        if lock(&self.model).endless() > 0 || self.stopped {
            return Ok(());
        }
        let left = self.ring.settle(Duration::from_secs(5));
        let model = lock(&self.model);
        // It gives up when the kernel refuses to wait.
        if left > 0 && model.temper.broken == 0 {
            return Err(format!("{left} are owed after all came: {model:?}"));
        }
        Ok(())
    }

    /// What holds after every step.
    fn check(&mut self) -> Result<(), String> {
        let model = lock(&self.model);
        if let Some(wrong) = &model.wrong {
            return Err(wrong.clone());
        }
        for read in model.tasks.iter().flat_map(|task| &task.reads) {
            let at = self.memory.buffers.iter().position(|buffer| overlap(&buffer.range(), read));
            if at.is_none_or(|at| self.memory.buffers[at].state == State::Free) {
                return Err(format!("the kernel reads {read:?}, buffer {at:?}, which is free"));
            }
        }
        let provided = self.ring.provided();
        if let Some(unfilled) = model.unfilled().filter(|&unfilled| unfilled != provided) {
            return Err(format!("the ring says that {provided} slots are with the kernel, which has {unfilled}"));
        }
        let (says, owes) = (self.ring.owed(), model.unsettled.len());
        if says != owes {
            return Err(format!("the ring says that {says} answers are owed, and the kernel owes {owes}"));
        }
        // A send can be busy for long only if the kernel is; every other call enters once.
        let most = model.pushes * 40 + 110 + model.storms * 1500;
        let settled = u64::from(model.pushes == 0) * 4 * model.temper.delay;
        if model.enters > most + settled {
            return Err(format!("{} calls of the kernel for {} requests", model.enters, model.pushes));
        }
        if self.faithful && self.ring.strays() > 0 {
            return Err("the ring did not expect what the kernel owed it".into());
        }
        Ok(())
    }

    /// The end: everything owed has come, or it never will; then the ring goes.
    fn finish(mut self) -> Result<Tally, String> {
        if self.dice.often(70) {
            // The lock is not held across the loop.
            let most = 6 * lock(&self.model).temper.delay + 1000;
            for _ in 0..most {
                if self.ring.settle(Duration::ZERO) <= lock(&self.model).endless() {
                    break;
                }
            }
            (0..KEYS).try_for_each(|key| self.notifications(key))?;
            self.check()?;
            let (owed, endless) = (self.ring.owed(), lock(&self.model).endless());
            if owed != endless {
                return Err(format!("{owed} are owed at the end, and {endless} will never come"));
            }
            if endless == 0 && !self.flights.is_empty() {
                return Err(format!("{} sends were never told of", self.flights.len()));
            }
            if let Some(key) = (0..KEYS).find(|&key| endless == 0 && self.ring.owed_to(key) > 0) {
                return Err(format!("{key} is owed something, and nothing is"));
            }
        }
        let Self { ring, model, memory, holders, delivered, .. } = self;
        drop(ring);
        drop(delivered);
        let mut model = lock(&model);
        for (region, holders) in memory.regions.iter().zip(holders) {
            let begin = region.data_offset();
            let at = region.bytes(begin, 1).expect("data").base().as_ptr().addr();
            let used = model.uses(&(at..at + region.len() - begin));
            match (used, Arc::strong_count(region) > holders) {
                (true, false) => return Err("a region is let go that the kernel uses".into()),
                (false, true) if model.unsettled.is_empty() => return Err("a region is kept for nothing".into()),
                _ => {}
            }
        }
        let free: Vec<Slot> = core::iter::from_fn(|| memory.pool.take(1).ok()).collect();
        if free.len() < RECEIVED as usize {
            return Err(format!("{} of {RECEIVED} slots to receive into came back", free.len()));
        }
        Ok(core::mem::take(&mut model.tally))
    }
}

/// Whether these ranges are the first bytes of those, in order.
fn is_prefix(some: &[Range<usize>], all: &[Range<usize>]) -> bool {
    let mut rest = all.iter().filter(|range| !range.is_empty()).cloned().collect::<VecDeque<_>>();
    some.iter().filter(|range| !range.is_empty()).all(|range| {
        let Some(first) = rest.front_mut() else { return false };
        if first.start != range.start || first.end < range.end {
            return false;
        }
        first.start = range.end;
        if first.start == first.end {
            rest.pop_front();
        }
        true
    })
}

/// Kernels of all kinds, by the seed.
fn temper(seed: u64) -> Temper {
    let mut dice = Dice::new(seed ^ 0x9999);
    let word = dice.often(25);
    let mut some = |most: u64| if dice.often(30) { 0 } else { dice.below(most) };
    // Rings that stop early are many, for what can go wrong then goes wrong once for each.
    let grim = if seed.is_multiple_of(3) { 20 } else { 1 };
    Temper {
        deferred: seed.is_multiple_of(2),
        vectors: some(2) > 0,
        bundles: some(2) > 0,
        completions: 2 + some(30) as usize,
        delay: 1 + some(200),
        busy: some(200),
        broken: grim * some(1000),
        storm: some(300),
        late: some(100),
        stuck: grim * some(5000),
        uncancelled: some(300),
        silent: some(100),
        doubled: if word { 0 } else { some(if grim > 1 { 1000 } else { 300 }) },
        reordered: if word { 0 } else { some(300) },
        failed: some(200),
        short: some(300),
        bare: some(100),
    }
}

/// One ring, from its beginning to its end.
fn run(seed: u64, memory: &mut Memory) -> Result<(Tally, u64), String> {
    let mut rig = Rig::new(seed, temper(seed), memory);
    let (mut steps, mut after) = (0, 0);
    // A ring that has stopped still takes what comes.
    while steps < STEPS && after < 50 {
        rig.step()?;
        steps += 1;
        after += u32::from(rig.stopped);
    }
    Ok((rig.finish()?, u64::from(steps)))
}

/// How many steps in all.
fn operations() -> u64 {
    if std::env::var_os("ZCMI_LONG").is_some() {
        20_000_000
    } else if std::env::var_os("ZCMI_QUICK").is_some() {
        100_000
    } else {
        1_000_000
    }
}

#[test]
fn whatever_the_kernel_does_nothing_is_free_too_early_and_all_that_is_owed_comes_once() {
    let first = std::env::var("ZCMI_SEED").ok().and_then(|seed| seed.parse().ok());
    let (mut done, mut seed, mut memory) = (0, first.unwrap_or(1), Memory::new());
    let mut all = Vec::new();
    while done < operations() {
        match run(seed, &mut memory) {
            Ok((tally, steps)) => {
                all.push(tally);
                done += steps;
            }
            Err(wrong) => panic!("ZCMI_SEED={seed}: {wrong}"),
        }
        if first.is_some() {
            return;
        }
        seed += 1;
    }
    println!("{done} steps, seeds 1 to {}", seed - 1);
    type Count = fn(&Tally) -> u64;
    let counts: [(&str, Count); 19] = [
        ("taken", |tally| tally.taken),
        ("short", |tally| tally.short),
        ("refused_owing", |tally| tally.refused_owing),
        ("refused_owing_nothing", |tally| tally.refused_owing_nothing),
        ("notified", |tally| tally.notified),
        ("overtaken", |tally| tally.overtaken),
        ("doubled", |tally| tally.doubled),
        ("silent", |tally| tally.silent),
        ("overflowed", |tally| tally.overflowed),
        ("busy", |tally| tally.busy),
        ("storms", |tally| tally.storms),
        ("broken", |tally| tally.broken),
        ("stuck", |tally| tally.stuck),
        ("cancelled", |tally| tally.cancelled),
        ("not_cancelled", |tally| tally.not_cancelled),
        ("uncancelled", |tally| tally.uncancelled),
        ("received", |tally| tally.received),
        ("bundled", |tally| tally.bundled),
        ("shortened", |tally| tally.shortened),
    ];
    for (name, count) in counts {
        let sum: u64 = all.iter().map(count).sum();
        println!("{name}: {sum}");
        assert!(sum > 0, "{name} never happened");
    }
}

#[test]
fn a_ring_that_lets_go_too_early_is_caught() {
    for mutant in [Mutant::ReleasedAtFirst, Mutant::ErrorOwesNothing] {
        let mut memory = Memory::new();
        PLANTED.set(Some(mutant));
        let caught = (1..=10).find_map(|seed| run(seed, &mut memory).err());
        PLANTED.set(None);
        println!("{mutant:?}: {caught:?}");
        assert!(caught.is_some(), "{mutant:?} was not noticed");
    }
}

#[test]
fn what_names_slots_that_are_not_there_releases_none_and_ends_the_stream() {
    let mut memory = Memory::new();
    for bundles in [false, true] {
        let mut rig = Rig::new(1, Temper { bundles, ..CALM }, &mut memory);
        for _ in 0..2 {
            let slot = rig.memory.pool.take(1).expect("a slot");
            rig.ring.provide(slot).expect("room");
        }
        let bytes = lock(&rig.model).buffers[0].1.len() as i32;
        // Of a slot that is not there; of two that hold less; and of one that is not told of alone.
        let most = if bundles { 2 * bytes } else { bytes };
        for (number, bytes) in [(9, 1), (0, most + 1), (1, bytes + 1)] {
            rig.ring.arm(rig.memory.socket.as_fd(), 0).expect("a request");
            let mut model = lock(&rig.model);
            let armed = model.tasks.iter().position(|task| task.kind == Kind::Receive).expect("a request");
            let word = model.tasks.remove(armed).word;
            let completion = Completion::new(word, bytes, BUFFER | number << BUFFER_SHIFT | MORE);
            model.completions.push_back(Posted { completion, settles: None, answers: None });
            drop(model);
            let ended = rig.ring.received();
            assert!(
                matches!(ended, Some((0, Received::Ended { error: Some(Errno::PROTO) }))),
                "{bytes} bytes of {number}: {ended:?}"
            );
            assert_eq!((rig.ring.provided(), lock(&rig.model).buffers.len()), (2, 2));
        }
    }
}

/// Sends these buffers, whole, and says what came of it.
fn send(rig: &mut Rig<'_>, path: PathKind, buffers: &[usize]) -> Result<Sent, Option<Refusal>> {
    let segment = |&at: &usize| {
        let Buffer { home, .. } = rig.memory.buffers[at];
        Segment { bytes: rig.memory.buffers[at].bytes(SLOT_BYTES), home }
    };
    let segments: Vec<Segment<'_>> = buffers.iter().map(segment).collect();
    let sent = rig.ring.send(rig.memory.socket.as_fd(), 1, path, &segments);
    sent.map_err(|error| error.get_ref().and_then(|inner| inner.downcast_ref()).copied())
}

#[test]
fn a_request_whose_cancel_is_not_taken_is_lost_and_pins_what_it_uses() {
    let mut memory = Memory::new();
    let rig = &mut Rig::new(1, Temper { uncancelled: 1000, ..CALM }, &mut memory);
    rig.turn(0).expect("a region is registered");
    lock(&rig.model).mute = Some(1);
    // The kernel has the request, although it refuses whatever comes behind it.
    assert_eq!(send(rig, PathKind::UringFixed, &[0]), Err(Some(Refusal::Lost)));
    assert!(lock(&rig.model).is_reading(&rig.memory.buffers[0].range()));
    assert_eq!(rig.ring.owed(), 1);
    let region = Arc::clone(&rig.memory.regions[0]);
    assert!(matches!(rig.ring.unregister(&region), Err(RemoveError::InUse { in_flight: 1, .. })));
}

#[test]
fn a_loss_is_told_to_the_send_that_it_befell_and_to_no_other() {
    for path in [PathKind::UringSend, PathKind::UringZeroCopy] {
        let mut memory = Memory::new();
        let rig = &mut Rig::new(1, CALM, &mut memory);
        lock(&rig.model).mute = Some(1);
        assert_eq!(send(rig, path, &[0]), Err(Some(Refusal::Lost)));
        let pushed = lock(&rig.model).pushes;
        // Who takes its bytes for sent as far as they ever will be would leave a gap in another stream.
        assert_eq!(send(rig, path, &[1]), Err(Some(Refusal::Stopped { errno: Errno::TIME })));
        assert_eq!((lock(&rig.model).pushes, rig.ring.owed()), (pushed, 1));
    }
}

#[test]
fn a_send_of_which_a_part_is_lost_is_lost_as_a_whole() {
    let mut memory = Memory::new();
    let rig = &mut Rig::new(1, CALM, &mut memory);
    rig.turn(0).expect("a region is registered");
    // The first request is accepted; whoever is told so takes the bytes of the second for his own again.
    let first = requests_for(rig, 0);
    lock(&rig.model).mute = Some(first + 1);
    assert_eq!(send(rig, PathKind::UringFixed, &[0, 2]), Err(Some(Refusal::Lost)));
    assert!(lock(&rig.model).is_reading(&rig.memory.buffers[2].range()));
    assert_eq!((0..20).map(|_| rig.ring.settle(Duration::ZERO)).last(), Some(1));
    let mut told = 0;
    rig.ring.notifications(1, &mut |_| told += 1).expect("this is no forked child");
    assert_eq!(told, 0, "of a send that is lost nothing is told");
}

/// How many requests it takes to send a buffer, which may lie across places of the table.
fn requests_for(rig: &Rig<'_>, at: usize) -> u64 {
    let offset = rig.memory.buffers[at].home.expect("in a region").offset;
    ((offset + SLOT_BYTES - 1) / PLACE_BYTES - offset / PLACE_BYTES + 1) as u64
}

#[test]
fn what_comes_twice_for_one_request_is_not_taken_for_the_next() {
    let mut memory = Memory::new();
    for seed in 1..=20 {
        // The answers are late, so that the one before comes again while they are waited for.
        let rig = &mut Rig::new(seed, Temper { doubled: 1000, late: 900, short: 500, ..CALM }, &mut memory);
        rig.turn(0).expect("a region is registered");
        let sent = send(rig, PathKind::UringFixed, &[0, 2, 4]).expect("some bytes are accepted");
        let accepted: usize = lock(&rig.model).accepted.iter().map(Range::len).sum();
        assert_eq!(sent.bytes, accepted, "seed {seed}");
    }
}
