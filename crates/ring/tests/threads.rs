//! A lane between real threads, with slots that are reused all the time.
#![cfg(not(zcmi_loom))]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use zcmi_ring::layout::HOLDS;
use zcmi_ring::reader::descriptor_of;
use zcmi_ring::{
    Entry, HoldTable, Kind, LaneControl, LifeMark, OwnedBlock, Policy, RawDescriptor, Read, Reader, Ring, View, Writer,
    WriterOptions,
};

const MESSAGES: u64 = 100_000;
const WORDS: usize = 8;

type Slots = Arc<Vec<[AtomicU64; WORDS]>>;

/// Reads to the end; every payload must be whole and its own. Returns how many were delivered and lost.
fn consume(mut reader: Reader, slots: &Slots, keep: usize) -> (u64, u64) {
    let (mut delivered, mut lost, mut kept) = (0, 0, std::collections::VecDeque::new());
    let start = reader.cursor();
    loop {
        match reader.read().expect("an honest publisher") {
            Read::Empty => thread::yield_now(),
            Read::TooManyHeld => panic!("no more than {keep} are kept"),
            Read::Overtaken { lost: now } => lost += now,
            Read::Message { sequence, message, hold } => {
                delivered += 1;
                assert_eq!(delivered + lost, sequence + 1 - start);
                if message.head.kind() == Kind::End {
                    return (delivered, lost);
                }
                let slot = descriptor_of(sequence, &message).expect("an honest descriptor").slot() as usize;
                kept.push_back((sequence, slot, hold));
                if kept.len() > keep {
                    let (sequence, slot, _hold) = kept.pop_front().expect("it has more than `keep`");
                    for (at, word) in slots[slot].iter().enumerate() {
                        assert_eq!(
                            word.load(Relaxed),
                            sequence * 31 + at as u64,
                            "a slot was reused while it was held"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn slots_are_reused_under_readers_that_wait_lag_and_keep() {
    const CAPACITY: usize = 16;
    let ring = Ring::new(View::heap(CAPACITY, |_| Entry::default())).expect("a power of two");
    let control = View::heap(1, |_| LaneControl::default());
    let start = (1 << 32) - MESSAGES / 2;
    let mut writer = Writer::new(ring.clone(), control.clone(), WriterOptions { start, ..WriterOptions::default() });
    let slots: Slots = Arc::new((0..CAPACITY + 40).map(|_| Default::default()).collect());
    let readers = [(Policy::Reliable, 0), (Policy::DropOldest, 3), (Policy::Reliable, 9), (Policy::DropOldest, 0)];
    let threads = readers.map(|(policy, keep)| {
        let (block, view) = OwnedBlock::heap();
        view.at(0).reset([0; 3]);
        let (_, start) = writer.add_reader(view, policy, 0, HOLDS).expect("there is a place");
        let holds = HoldTable::new(block, control.clone(), LifeMark::always(), None, Vec::new());
        let (reader, slots) = (Reader::new(ring.clone(), control.clone(), holds, policy, start), Arc::clone(&slots));
        (policy, thread::spawn(move || consume(reader, &slots, keep)))
    });
    let mut free: Vec<u32> = (0..slots.len() as u32).collect();
    for sequence in start..start + MESSAGES {
        while writer.reserve(&mut |slot| free.push(slot)).is_err() {
            thread::yield_now();
        }
        while free.is_empty() {
            writer.reclaim(&mut |slot| free.push(slot));
            thread::yield_now();
        }
        let slot = free.pop().expect("it is not empty");
        for (at, word) in slots[slot as usize].iter().enumerate() {
            word.store(sequence * 31 + at as u64, Relaxed);
        }
        let descriptor = RawDescriptor::new(0, slot);
        assert_eq!(writer.publish_slot(descriptor, 64), sequence);
    }
    while writer.reserve(&mut |slot| free.push(slot)).is_err() {
        thread::yield_now();
    }
    writer.publish_end();
    for (policy, thread) in threads {
        let (delivered, lost) = thread.join().expect("the reader's checks hold");
        assert_eq!(delivered + lost, MESSAGES + 1);
        assert!(policy == Policy::DropOldest || lost == 0);
    }
    assert!(writer.take_rogues().is_empty());
    assert!(writer.all_received(&mut |slot| free.push(slot)));
}
