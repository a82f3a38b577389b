//! What the models share: a lane with watched payload slots, its publisher, and its readers.
// Each file of models uses a part of it.
#![allow(dead_code)]

mod raw;

pub(crate) use raw::Slots;

use loom::sync::{Condvar, Mutex};
use std::sync::Arc;
use zcmi_ring::layout::HOLDS;
use zcmi_ring::reader::descriptor_of;
use zcmi_ring::sync::{AtomicU64, Ordering};
use zcmi_ring::{
    Entry, Hold, HoldTable, LaneControl, LifeMark, Notify, OwnedBlock, Policy, PublishRefused, RawDescriptor, Read,
    Reader, ReaderIndex, Ring, View, Writer, WriterOptions,
};

/// Runs a model with at most `preemptions` forced switches, or all of them.
pub(crate) fn explore(preemptions: Option<usize>, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = preemptions;
    builder.max_branches = 20_000;
    let runs = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = Arc::clone(&runs);
    builder.check(move || {
        count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        model();
    });
    println!("{} executions", runs.load(std::sync::atomic::Ordering::Relaxed));
}

/// Whether the long bounds were asked for.
pub(crate) fn long() -> bool {
    std::env::var_os("ZCMI_LONG").is_some_and(|value| value == "1")
}

/// What the publisher writes into the slot of a sequence.
pub(crate) fn payload(sequence: u64) -> u64 {
    sequence * 1000 + 7
}

/// The publisher with its free slots.
pub(crate) struct Publisher {
    pub(crate) writer: Writer,
    pub(crate) free: Vec<u32>,
    pub(crate) slots: Arc<Slots>,
    pub(crate) ring: Ring,
    pub(crate) control: View<LaneControl>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stuck {
    Ring,
    Slots,
}

impl Publisher {
    pub(crate) fn new(capacity: usize, slots: usize) -> Self {
        let ring = Ring::new(View::heap(capacity, |_| Entry::default())).expect("a power of two");
        let control = View::heap(1, |_| LaneControl::default());
        let writer = Writer::new(ring.clone(), control.clone(), WriterOptions::default());
        let slots = Arc::new(Slots::new(slots));
        Self { writer, free: (0..slots.len() as u32).collect(), slots, ring, control }
    }

    /// Adds a reader and hands out its side.
    pub(crate) fn join(&mut self, policy: Policy, notify: Option<Notify>) -> (ReaderIndex, Subscriber) {
        self.join_with(policy, notify, HOLDS)
    }

    /// As [`join`](Self::join), for a reader that was granted so many holds.
    pub(crate) fn join_with(
        &mut self,
        policy: Policy,
        notify: Option<Notify>,
        granted: usize,
    ) -> (ReaderIndex, Subscriber) {
        let (block, view) = OwnedBlock::heap();
        view.at(0).reset([0; 3]);
        let (index, start) = self.writer.add_reader(view, policy, 0, granted).expect("there is a place");
        let holds = HoldTable::new(block, self.control.clone(), LifeMark::always(), notify, Vec::new());
        let reader = Reader::new(self.ring.clone(), self.control.clone(), holds, policy, start);
        (index, Subscriber { reader, slots: Arc::clone(&self.slots), start, delivered: 0, lost: 0 })
    }

    pub(crate) fn reclaim(&mut self) {
        let free = &mut self.free;
        self.writer.reclaim(&mut |slot| free.push(slot));
    }

    /// Publishes one slot, if there are room and a slot.
    pub(crate) fn publish(&mut self) -> Result<u64, Stuck> {
        self.publish_batch(1)
    }

    /// Publishes a batch with one commit. Returns the first sequence.
    pub(crate) fn publish_batch(&mut self, count: u64) -> Result<u64, Stuck> {
        let free = &mut self.free;
        match self.writer.reserve(&mut |slot| free.push(slot)) {
            Ok(()) => {}
            Err(PublishRefused::Full { .. }) => return Err(Stuck::Ring),
            Err(other) => panic!("{other}"),
        }
        if self.writer.room() < count {
            return Err(Stuck::Ring);
        }
        if (self.free.len() as u64) < count {
            self.reclaim();
        }
        if (self.free.len() as u64) < count {
            return Err(Stuck::Slots);
        }
        let first = self.writer.tail();
        let mut written = Vec::new();
        for sequence in first..first + count {
            let slot = self.free.pop().expect("they were counted");
            self.slots.write(slot, payload(sequence));
            written.push(RawDescriptor::new(0, slot));
        }
        assert_eq!(self.writer.publish_slots(&written, 8), first);
        Ok(first)
    }

    /// Publishes one slot that readers copy.
    pub(crate) fn publish_words(&mut self, words: &Words) -> Result<u64, Stuck> {
        let free = &mut self.free;
        if self.writer.reserve(&mut |slot| free.push(slot)).is_err() {
            return Err(Stuck::Ring);
        }
        if self.free.is_empty() {
            self.reclaim();
        }
        let slot = self.free.pop().ok_or(Stuck::Slots)?;
        let sequence = self.writer.tail();
        words.write(slot, payload(sequence));
        Ok(self.writer.publish_slot(RawDescriptor::new(0, slot), 16))
    }

    /// Publishes its sequence in the entry itself.
    pub(crate) fn publish_inline(&mut self) -> Result<u64, Stuck> {
        let free = &mut self.free;
        match self.writer.reserve(&mut |slot| free.push(slot)) {
            Ok(()) => {}
            Err(PublishRefused::Full { .. }) => return Err(Stuck::Ring),
            Err(other) => panic!("{other}"),
        }
        let sequence = self.writer.tail();
        Ok(self.writer.publish_inline(16, &[payload(sequence), !payload(sequence)]))
    }

    /// When every reader is done and gone: all slots come back.
    pub(crate) fn check_all_slots_return(&mut self) {
        self.reclaim();
        let mut free = self.free.clone();
        free.sort_unstable();
        assert_eq!(free, (0..self.slots.len() as u32).collect::<Vec<_>>(), "slots were lost or freed twice");
    }
}

/// A reader that checks what it gets.
pub(crate) struct Subscriber {
    pub(crate) reader: Reader,
    slots: Arc<Slots>,
    start: u64,
    pub(crate) delivered: u64,
    pub(crate) lost: u64,
}

/// Slots of two words that are read while they may be written, as a stranger's reader does.
#[derive(Debug)]
pub(crate) struct Words(Vec<[AtomicU64; 2]>);

impl Words {
    pub(crate) fn new(count: usize) -> Arc<Self> {
        Arc::new(Self((0..count).map(|_| [AtomicU64::new(0), AtomicU64::new(0)]).collect()))
    }

    pub(crate) fn write(&self, slot: u32, value: u64) {
        let [first, second] = &self.0[slot as usize];
        first.store(value, Ordering::Relaxed);
        second.store(!value, Ordering::Relaxed);
    }

    fn read(&self, slot: u32) -> [u64; 2] {
        let [first, second] = &self.0[slot as usize];
        [first.load(Ordering::Relaxed), second.load(Ordering::Relaxed)]
    }
}

/// A kept message.
pub(crate) struct Sample {
    pub(crate) sequence: u64,
    slot: u32,
    slots: Arc<Slots>,
    pub(crate) hold: Hold,
}

impl Sample {
    /// Reads the payload, under loom's eyes.
    pub(crate) fn check(&self) {
        assert_eq!(self.slots.read(self.slot), payload(self.sequence), "payload of another message");
    }
}

impl Subscriber {
    /// Takes the next message, if there is one.
    pub(crate) fn receive(&mut self) -> Option<Sample> {
        let before = self.reader.cursor();
        let read = self.reader.read().expect("an honest publisher");
        let sample = match read {
            Read::Empty | Read::TooManyHeld => None,
            Read::Overtaken { lost } => {
                assert!(lost > 0);
                self.lost += lost;
                None
            }
            Read::Message { sequence, message, hold } => {
                assert_eq!(sequence, before);
                self.delivered += 1;
                match hold {
                    Some(hold) => {
                        let slot = descriptor_of(sequence, &message).expect("an honest descriptor").slot();
                        Some(Sample { sequence, slot, slots: Arc::clone(&self.slots), hold })
                    }
                    None => {
                        assert_eq!(message.body[..2], [payload(sequence), !payload(sequence)], "a torn message");
                        None
                    }
                }
            }
        };
        assert_eq!(self.delivered + self.lost, self.reader.cursor() - self.start, "a message is unaccounted for");
        sample
    }

    /// Takes the next message of a slot by copying it, without a hold. Returns whether one came.
    pub(crate) fn copy(&mut self, slots: &Words) -> bool {
        let before = self.reader.cursor();
        let mut copied = [0; 2];
        let read = self.reader.read_copying(|sequence, message| {
            let slot = descriptor_of(sequence, message).expect("an honest descriptor, not a torn one").slot();
            copied = slots.read(slot);
            Ok(())
        });
        match read.expect("an honest publisher") {
            Read::Empty => return false,
            Read::Overtaken { lost } => self.lost += lost,
            Read::Message { sequence, hold, .. } => {
                assert!(hold.is_none() && sequence == before);
                assert_eq!(copied, [payload(sequence), !payload(sequence)], "a torn copy");
                self.delivered += 1;
            }
            Read::TooManyHeld => panic!("it holds nothing"),
        }
        assert_eq!(self.delivered + self.lost, self.reader.cursor() - self.start, "a message is unaccounted for");
        true
    }

    /// Receives and checks until nothing is there; afterwards the cursor is at `tail`.
    pub(crate) fn drain(&mut self, tail: u64) {
        while self.reader.cursor() < tail {
            let before = self.reader.cursor();
            if let Some(sample) = self.receive() {
                sample.check();
            }
            assert!(self.reader.cursor() > before, "sequence {before} of {tail} is missing");
        }
        assert!(matches!(self.reader.read(), Ok(Read::Empty)));
    }
}

/// Stands for an eventfd: a count that stays until it is read.
#[derive(Debug)]
pub(crate) struct Event {
    set: Mutex<bool>,
    changed: Condvar,
}

impl Event {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { set: Mutex::new(false), changed: Condvar::new() })
    }

    pub(crate) fn signal(&self) {
        *self.set.lock().expect("no panic under the lock") = true;
        self.changed.notify_one();
    }

    /// Waits for a signal and takes it. If none ever comes, loom reports a deadlock.
    pub(crate) fn wait(&self) {
        let mut set = self.set.lock().expect("no panic under the lock");
        while !*set {
            set = self.changed.wait(set).expect("no panic under the lock");
        }
        *set = false;
    }
}
