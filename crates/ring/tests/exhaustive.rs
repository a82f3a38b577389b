//! Small lanes, whole: every start, tail, cursor and capacity of eight bits, and every sequence of operations up to a
//! depth.
#![cfg(not(zcmi_loom))]

mod checked;

use checked::{Checked, Op};
use std::sync::atomic::Ordering::Relaxed;
use zcmi_ring::layout::{HOLDS, SEQUENCE_END};
use zcmi_ring::{
    Entry, HoldTable, LaneControl, LifeMark, OwnedBlock, Policy, PublishRefused, RawDescriptor, Read, Reader, Ring,
    View, Writer, WriterOptions,
};

const END: u64 = 255;

/// A reliable reader keeps `backlog` messages behind the tail, from `start` to the end of the lane: so every state of
/// (start, tail, cursor) is met, and room, reading, freeing and the end are checked in each. One that copies holds
/// nothing, and copies each slot once, before it comes back.
fn walk(capacity: u64, start: u64, backlog: u64, policy: Policy, copies: bool) -> u64 {
    let ring = Ring::new(View::heap(capacity as usize, |_| Entry::default())).expect("a power of two");
    let control = View::heap(1, |_| LaneControl::default());
    let options = WriterOptions { start, end: END, history: 0, slots: true };
    let mut writer = Writer::new(ring.clone(), control.clone(), options);
    let (block, view) = OwnedBlock::heap();
    view.at(0).reset([0; 3]);
    let (_, begin) =
        writer.add_reader(view, policy, 0, if copies { 0 } else { HOLDS }).expect("a fresh lane has places");
    assert_eq!(begin, start);
    let holds = HoldTable::new(block, control.clone(), LifeMark::always(), None, Vec::new());
    let mut reader = Reader::new(ring, control.clone(), holds, policy, start);
    let (mut freed, mut lost, mut states) = (start, 0, 0);
    for sequence in start..END {
        // The tail is `sequence`; the cursor follows at the backlog, which may exceed the ring.
        while reader.cursor() + backlog < sequence {
            let cursor = reader.cursor();
            let retired = control.at(0).retired.load(Relaxed);
            let mut copied = None;
            let read = if copies {
                reader.read_copying(|sequence, message| {
                    assert!(message.body[0] >= freed, "the slot came back before it was copied");
                    assert_eq!(copied.replace(sequence), None, "a slot is copied once");
                    Ok(())
                })
            } else {
                reader.read()
            };
            match read.expect("an honest publisher") {
                Read::Message { sequence, message, hold } => {
                    assert_eq!((sequence, message.body[0], hold.is_none()), (cursor, cursor, copies));
                    assert_eq!(copied, copies.then_some(cursor));
                    assert!(policy == Policy::Reliable || cursor >= retired);
                }
                Read::Overtaken { lost: now } => {
                    assert_eq!((now, policy, copied), (retired - cursor, Policy::DropOldest, None));
                    lost += now;
                }
                other => panic!("{other:?} at {cursor} of {sequence}"),
            }
        }
        states += 1;
        let cursor = reader.cursor();
        assert_eq!(reader.has_message(), cursor < sequence);
        let mut free = |slot: u32| {
            assert_eq!(u64::from(slot), freed, "slots come back once each and in order");
            assert!(policy == Policy::DropOldest || freed < cursor);
            freed += 1;
        };
        let reserved = writer.reserve(&mut free);
        if policy == Policy::Reliable && sequence - cursor >= capacity {
            assert_eq!(reserved, Err(PublishRefused::Full { capacity }));
            return states;
        }
        assert_eq!(reserved, Ok(()));
        assert!(freed + capacity > sequence, "an entry is overwritten before its slot came back");
        assert_eq!(writer.publish_slot(RawDescriptor::from_token(sequence as u32), 8), sequence);
    }
    assert_eq!(writer.reserve(&mut |_| {}), Err(PublishRefused::Ended { sequence: END }));
    assert!(writer.add_reader(View::heap(1, |_| Default::default()), policy, 0, HOLDS).is_err());
    let mut delivered = 0;
    while !matches!(reader.read(), Ok(Read::Empty)) {
        delivered += 1;
        assert!(delivered <= capacity + 1);
    }
    assert_eq!(reader.cursor(), END);
    assert!(reader.block().lost.load(Relaxed) >= lost);
    states
}

#[test]
fn every_start_tail_cursor_and_capacity_of_eight_bits_behaves() {
    let mut states = 0;
    for capacity in [2, 4, 8, 16, 32, 64] {
        for start in 0..END {
            for backlog in 0..=capacity {
                states += walk(capacity, start, backlog, Policy::Reliable, false);
            }
            for backlog in [0, 1, capacity / 2, capacity - 1, capacity, capacity + 1, 2 * capacity] {
                states += walk(capacity, start, backlog, Policy::DropOldest, false);
                states += walk(capacity, start, backlog, Policy::DropOldest, true);
                if backlog <= capacity {
                    states += walk(capacity, start, backlog, Policy::Reliable, true);
                }
            }
        }
    }
    assert!(states > 3_000_000, "only {states} states");
}

/// Runs every sequence of `depth` operations out of `ops`, each from a fresh lane. Sequences in which an operation
/// finds nothing to do are cut there: the same without it is met elsewhere.
fn every_sequence(
    capacity: usize,
    slots: usize,
    options: WriterOptions,
    begin: &[Op],
    ops: &[Op],
    depth: usize,
) -> u64 {
    let mut digits = vec![0; depth];
    let mut runs = 0;
    loop {
        let mut lane = Checked::new(capacity, slots, options);
        for op in begin {
            assert!(lane.apply(*op));
        }
        let stopped = digits.iter().position(|digit| !lane.apply(ops[*digit]));
        if stopped.is_none() {
            lane.finish();
        }
        runs += 1;
        // Counts on, from the digit that was of no use.
        let mut at = stopped.unwrap_or(depth - 1);
        digits[at + 1..].fill(0);
        loop {
            digits[at] += 1;
            if digits[at] < ops.len() {
                break;
            }
            digits[at] = 0;
            if at == 0 {
                return runs;
            }
            at -= 1;
        }
    }
}

const RELIABLE: Op = Op::Add { reliable: true, history: 2, late: false };
const OVERTAKEN: Op = Op::Add { reliable: false, history: 2, late: false };
const COPYING: Op = Op::AddCopying { reliable: false, history: 2 };
const COPYING_RELIABLE: Op = Op::AddCopying { reliable: true, history: 2 };

#[test]
fn every_sequence_of_operations_on_two_entries_behaves() {
    let ops = [
        Op::Inline(2),
        Op::Slot,
        Op::Read(0),
        Op::Read(1),
        Op::DropHold(0, 0),
        Op::DropHold(1, 0),
        Op::Reclaim,
        Op::Remove(0),
    ];
    let mut runs = 0;
    for history in [0, 2] {
        for first in [
            [RELIABLE, OVERTAKEN],
            [OVERTAKEN, OVERTAKEN],
            [RELIABLE, RELIABLE],
            [RELIABLE, COPYING],
            [COPYING_RELIABLE, OVERTAKEN],
        ] {
            let options = WriterOptions { start: 0, end: SEQUENCE_END, history, slots: true };
            runs += every_sequence(2, 3, options, &first, &ops, 6);
        }
    }
    assert!(runs > 50_000, "only {runs} runs");
}

#[test]
fn every_sequence_of_operations_on_four_entries_behaves() {
    let late = Op::Add { reliable: true, history: 4, late: true };
    let ops = [
        Op::Batch { count: 3, slots: 0b101 },
        Op::Slot,
        Op::Read(0),
        Op::ReadBatch(1, 2),
        Op::DropHold(0, 0),
        Op::Reclaim,
        late,
        Op::Remove(0),
    ];
    let mut runs = 0;
    for first in [[OVERTAKEN, RELIABLE], [RELIABLE, RELIABLE], [COPYING, COPYING_RELIABLE]] {
        let options = WriterOptions { start: (1 << 32) - 4, end: SEQUENCE_END, history: 3, slots: true };
        runs += every_sequence(4, 5, options, &first, &ops, 6);
    }
    assert!(runs > 50_000, "only {runs} runs");
}

#[test]
fn every_sequence_of_operations_at_the_end_of_a_lane_behaves() {
    let late = Op::Add { reliable: true, history: 2, late: true };
    let ops = [
        Op::Slot,
        Op::Inline(1),
        Op::Read(0),
        Op::DropHold(0, 0),
        Op::End,
        Op::EndNow,
        late,
        Op::Remove(0),
        Op::Reclaim,
    ];
    for first in [OVERTAKEN, RELIABLE, COPYING] {
        let options = WriterOptions { start: SEQUENCE_END - 3, end: SEQUENCE_END, history: 1, slots: true };
        let runs = every_sequence(2, 3, options, &[first], &ops, 6);
        assert!(runs > 10_000, "only {runs} runs");
    }
}
