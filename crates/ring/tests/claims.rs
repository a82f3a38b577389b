//! What a lying reader or publisher achieves: its own end, named, and nothing else.
#![cfg(not(zcmi_loom))]

use std::sync::atomic::Ordering::Relaxed;
use zcmi_ring::layout::{HOLD_IN_KERNEL, HOLDS, SEQUENCE_END, UNSET};
use zcmi_ring::reader::descriptor_of;
use zcmi_ring::writer::Rogue;
use zcmi_ring::{
    Entry, Head, HoldTable, Kind, LaneControl, LaneFault, LifeMark, OwnedBlock, Policy, RawDescriptor, Read, Reader,
    ReaderBlock, ReaderIndex, Ring, View, Writer, WriterOptions,
};

struct Lane {
    ring: Ring,
    control: View<LaneControl>,
    writer: Writer,
    freed: Vec<u32>,
}

impl Lane {
    fn new(start: u64) -> Self {
        Self::of(4, start)
    }

    fn of(capacity: usize, start: u64) -> Self {
        let ring = Ring::new(View::heap(capacity, |_| Entry::default())).expect("a power of two");
        let control = View::heap(1, |_| LaneControl::default());
        let options = WriterOptions { start, history: 4, ..WriterOptions::default() };
        Self { writer: Writer::new(ring.clone(), control.clone(), options), ring, control, freed: Vec::new() }
    }

    fn join(&mut self, policy: Policy) -> (ReaderIndex, View<ReaderBlock>, Reader) {
        let (block, view) = OwnedBlock::heap();
        view.at(0).reset([0; 3]);
        let (index, start) = self.writer.add_reader(view.clone(), policy, 0, HOLDS).expect("there is a place");
        let holds = HoldTable::new(block, self.control.clone(), LifeMark::always(), None, Vec::new());
        (index, view, Reader::new(self.ring.clone(), self.control.clone(), holds, policy, start))
    }

    fn join_with_two_holds(&mut self) -> Reader {
        let (block, view) = OwnedBlock::heap();
        view.at(0).reset([0; 3]);
        let (_, start) = self.writer.add_reader(view, Policy::Reliable, 0, HOLDS).expect("there is a place");
        let holds = HoldTable::new(block, self.control.clone(), LifeMark::always(), None, Vec::new()).limited_to(2);
        Reader::new(self.ring.clone(), self.control.clone(), holds, Policy::Reliable, start)
    }

    fn publish(&mut self, slot: u32) {
        let freed = &mut self.freed;
        self.writer.reserve(&mut |slot| freed.push(slot)).expect("there is room");
        self.writer.publish_slot(RawDescriptor::new(0, slot), 8);
    }

    fn reclaim(&mut self) {
        let freed = &mut self.freed;
        self.writer.reclaim(&mut |slot| freed.push(slot));
    }
}

const START: u64 = 100;

#[test]
fn a_cursor_that_goes_back_or_past_the_tail_or_to_unset_ends_its_reader() {
    for policy in [Policy::Reliable, Policy::DropOldest] {
        for lie in [0, START - 1, START, START + 1, START + 3, SEQUENCE_END, UNSET - 1, UNSET] {
            let mut lane = Lane::new(START);
            let (index, block, mut reader) = lane.join(policy);
            let (honest_index, _, mut honest) = lane.join(Policy::Reliable);
            for slot in 0..2 {
                lane.publish(slot);
            }
            for reader in [&mut reader, &mut honest] {
                assert!(matches!(reader.read(), Ok(Read::Message { .. })));
                assert!(matches!(reader.read(), Ok(Read::Message { .. })));
            }
            lane.reclaim();
            assert_eq!(lane.writer.take_rogues(), []);
            block.at(0).cursor.store(lie, Relaxed);
            lane.reclaim();
            let rogue = Rogue::Cursor { before: START + 2, now: lie, tail: START + 2 };
            assert_eq!(lane.writer.take_rogues(), [(index, rogue)]);
            assert_eq!(lane.writer.reader_count(), 1);
            assert_eq!(lane.writer.slowest(), Some((honest_index, START + 2)));
        }
    }
}

#[test]
fn a_hold_that_cannot_be_ends_its_reader() {
    for (lie, sequence) in [
        (START, START - 1),
        (1, 0),
        (START + 7, START + 6),
        // The writer looks first when its tail is there.
        (START + 5, START + 4),
        (START | HOLD_IN_KERNEL, START - 1),
        (UNSET, UNSET >> 1 ^ 1),
        (UNSET - 1, (UNSET >> 1) - 2),
        (1 << 62, (1 << 62) - 1),
    ] {
        let mut lane = Lane::new(START);
        let (index, block, mut reader) = lane.join(Policy::Reliable);
        for slot in 0..3 {
            lane.publish(slot);
        }
        for _ in 0..3 {
            drop(reader.read());
        }
        block.at(0).held[15].store(lie, Relaxed);
        for slot in 3..6 {
            lane.publish(slot);
        }
        lane.reclaim();
        let rogues = lane.writer.take_rogues();
        let [(rogue, Rogue::Hold { sequence: claimed, start: START, .. })] = rogues[..] else { panic!("{rogues:?}") };
        assert_eq!((rogue, claimed), (index, sequence));
        assert_eq!(lane.writer.reader_count(), 0);
    }
}

#[test]
fn lawful_holds_are_those_from_the_start_to_the_tail() {
    for (held, in_kernel) in [(START + 1, 0), (START + 3, 0), (START + 2, HOLD_IN_KERNEL), (0, HOLD_IN_KERNEL)] {
        let mut lane = Lane::new(START);
        let (_, block, mut reader) = lane.join(Policy::Reliable);
        for slot in 0..3 {
            lane.publish(slot);
        }
        assert_eq!(reader.read_batch(9, |_, _| Ok(())), Ok(3));
        block.at(0).held[15].store(held | in_kernel, Relaxed);
        for slot in 3..6 {
            lane.publish(slot);
        }
        lane.reclaim();
        assert_eq!(lane.writer.take_rogues(), []);
        assert!(held == 0 || !lane.freed.contains(&((held - 1 - START) as u32)));
    }
}

/// A rogue's place went to a newcomer before anybody asked for the rogues, and the newcomer was ended in its stead.
#[test]
fn a_rogue_does_not_drag_along_who_comes_after_it() {
    let mut lane = Lane::new(START);
    let (rogue, block, _reader) = lane.join(Policy::Reliable);
    block.at(0).cursor.store(START + 9, Relaxed);
    lane.reclaim();
    let (newcomer, _, _reader) = lane.join(Policy::Reliable);
    assert_ne!(newcomer, rogue, "the place is free only when its rogue was taken");
    lane.reclaim();
    lane.reclaim();
    assert_eq!(lane.writer.reader_count(), 1);
    assert_eq!(lane.writer.take_rogues().len(), 1);
    let (later, ..) = lane.join(Policy::Reliable);
    assert_eq!(later, rogue);
}

/// The reader's unlawful hold came before its mark in the table; the marked slot was freed in the very pass that found
/// the lie.
#[test]
fn what_a_rogue_marked_for_the_kernel_is_not_freed_when_it_is_found_out() {
    let mut lane = Lane::new(START);
    let (_, block, mut reader) = lane.join(Policy::Reliable);
    for slot in 0..4 {
        lane.publish(slot);
    }
    assert_eq!(reader.read_batch(9, |_, _| Ok(())), Ok(4));
    block.at(0).held[0].store(START - 5, Relaxed);
    block.at(0).held[3].store((START + 1) | HOLD_IN_KERNEL, Relaxed);
    for slot in 4..8 {
        lane.publish(slot);
    }
    lane.reclaim();
    assert_eq!(lane.writer.take_rogues().len(), 1);
    for slot in 8..16 {
        lane.publish(slot);
    }
    assert_eq!(lane.freed, (1..12).collect::<Vec<_>>(), "all but slot 0, which the kernel reads");
}

/// A reader in place blocks the ring with `released`, not with its cursor; the one to name is the one that blocks.
#[test]
fn the_slowest_reader_is_the_one_that_blocks() {
    let mut lane = Lane::new(START);
    let (in_place, block, mut first) = lane.join(Policy::Reliable);
    let (_, _, mut second) = lane.join(Policy::Reliable);
    block.at(0).released.store(START, Relaxed);
    for slot in 0..4 {
        lane.publish(slot);
    }
    assert_eq!(first.read_batch(9, |_, _| Ok(())), Ok(4));
    assert_eq!(second.read_batch(1, |_, _| Ok(())), Ok(1));
    lane.writer.reserve(&mut |_| {}).expect_err("the ring is full");
    assert_eq!(lane.writer.slowest(), Some((in_place, START)));
}

#[test]
fn sixty_four_readers_have_places_and_no_more() {
    let mut lane = Lane::new(START);
    let readers: Vec<_> = (0..64).map(|_| lane.join(Policy::Reliable)).collect();
    assert_eq!(readers.iter().map(|reader| reader.0.0).collect::<Vec<_>>(), (0..64).collect::<Vec<_>>());
    let refused = lane.writer.add_reader(View::heap(1, |_| ReaderBlock::default()), Policy::Reliable, 0, HOLDS);
    assert_eq!(refused, Err(zcmi_ring::AddReaderError::TooMany));
    assert!(lane.writer.remove_reader(ReaderIndex(17)));
    assert_eq!(lane.join(Policy::DropOldest).0, ReaderIndex(17));
}

#[test]
fn a_stamp_that_cannot_be_is_a_fault() {
    for policy in [Policy::Reliable, Policy::DropOldest] {
        let mut lane = Lane::new(START);
        let (_, _, mut reader) = lane.join(policy);
        lane.ring.entry(START).stamp.store(START + 5, Relaxed);
        let fault = LaneFault::Stamp { stamp: START + 5, cursor: START, retired: START };
        assert_eq!(reader.read().expect_err("nothing was retired"), fault);
        assert_eq!(reader.read_inline::<1>(8), None);
        if policy == Policy::Reliable {
            assert_eq!(reader.read_batch(1, |_, _| Ok(())), Err(fault));
            lane.control.at(0).retired.store(START + 2, Relaxed);
            assert!(reader.read().is_err(), "a reliable reader is never overtaken");
        }
        assert_eq!(reader.cursor(), START);
    }
}

#[test]
fn a_retired_past_the_end_of_all_lanes_is_a_fault() {
    let mut lane = Lane::new(START);
    let (_, _, mut reader) = lane.join(Policy::DropOldest);
    lane.publish(0);
    for lie in [SEQUENCE_END + 1, UNSET] {
        lane.control.at(0).retired.store(lie, Relaxed);
        assert!(matches!(reader.read(), Err(LaneFault::Stamp { retired, .. }) if retired == lie));
    }
    lane.control.at(0).retired.store(SEQUENCE_END, Relaxed);
    assert!(matches!(reader.read(), Ok(Read::Overtaken { lost }) if lost == SEQUENCE_END - START));
    assert!(matches!(reader.read(), Ok(Read::Empty)));
}

#[test]
fn an_inline_message_longer_than_an_entry_is_a_fault() {
    for (bytes, fits) in [(40, true), (41, false), (u32::MAX, false)] {
        let mut lane = Lane::new(START);
        let (_, _, mut reader) = lane.join(Policy::Reliable);
        lane.publish(0);
        lane.ring.entry(START).head.store(Head::new(Kind::Inline, bytes).0, Relaxed);
        let mut seen = 0;
        let batch = reader.read_batch(1, |_, _| {
            seen += 1;
            Err(LaneFault::Descriptor { sequence: START, word: 0 })
        });
        let fault = LaneFault::Head { sequence: START, head: Head::new(Kind::Inline, bytes).0 };
        assert_eq!((batch == Err(fault), seen), (!fits, u32::from(fits)));
        assert_eq!(reader.cursor(), START, "what was refused is not passed");
        match reader.read() {
            Ok(Read::Message { .. }) => assert!(fits),
            other => assert_eq!(other.expect_err("too long"), fault),
        }
    }
}

#[test]
fn a_descriptor_with_stray_bits_is_a_fault() {
    let mut lane = Lane::new((1 << 32) - 1);
    let (_, _, mut reader) = lane.join(Policy::Reliable);
    lane.publish(0);
    let Ok(Read::Message { sequence, message, .. }) = reader.read() else { panic!("it was published") };
    assert!(descriptor_of(sequence, &message).is_ok());
    for bit in 0..64u32 {
        let mut damaged = message;
        damaged.body[0] ^= 1 << bit;
        assert_eq!(descriptor_of(sequence, &damaged).is_err(), bit >= 32, "bit {bit}");
    }
}

#[test]
fn a_reader_notices_a_waiting_publisher_within_a_quarter_of_the_ring() {
    for capacity in [2, 4, 8, 64] {
        let ring = Ring::new(View::heap(capacity, |_| Entry::default())).expect("a power of two");
        let control = View::heap(1, |_| LaneControl::default());
        let mut writer = Writer::new(ring.clone(), control.clone(), WriterOptions::default());
        let (block, view) = OwnedBlock::heap();
        view.at(0).reset([0; 3]);
        let (_, start) = writer.add_reader(view, Policy::Reliable, 0, HOLDS).expect("there is a place");
        let holds = HoldTable::new(block, control.clone(), LifeMark::always(), None, Vec::new());
        let mut reader = Reader::new(ring, control.clone(), holds, Policy::Reliable, start);
        control.at(0).want_room.store(1, Relaxed);
        let quarter = (capacity / 4).max(1);
        for round in 0..4 * capacity {
            writer.reserve(&mut |_| {}).expect("there is room");
            writer.publish_inline(8, &[1]);
            assert!(matches!(reader.read(), Ok(Read::Message { .. })));
            assert_eq!(reader.take_wants_room(), (round + 1) % quarter == 0);
        }
    }
}

#[test]
fn a_reader_holds_as_much_as_its_table_has_and_finds_dropped_places_again() {
    let mut lane = Lane::new(START);
    let mut reader = lane.join_with_two_holds();
    for slot in 0..4 {
        lane.publish(slot);
    }
    let mut kept = Vec::new();
    for _ in 0..2 {
        let Ok(Read::Message { hold, .. }) = reader.read() else { panic!("there is a place") };
        kept.push(hold.expect("a slot is held"));
    }
    assert!(matches!(reader.read(), Ok(Read::TooManyHeld)));
    drop(kept.remove(0));
    let Ok(Read::Message { sequence, hold, .. }) = reader.read() else { panic!("a place was given back") };
    assert_eq!(sequence, START + 2);
    let orphan = reader.retire().expect("two are held");
    let orphan = orphan.try_free().expect_err("two are held");
    drop((hold, kept));
    orphan.try_free().expect("nothing is held");
}

#[test]
fn a_reader_with_nothing_to_read_finds_places_for_holds_ahead() {
    let mut lane = Lane::new(START);
    let mut reader = lane.join_with_two_holds();
    reader.set_straight(true);
    for slot in 0..3 {
        lane.publish(slot);
    }
    let kept = [0, 1].map(|_| reader.read_slot(None).expect("two places are known"));
    reader.refill_holds();
    assert!(reader.read_slot(None).is_none(), "both places are taken");
    drop(kept);
    assert!(reader.read_slot(None).is_none(), "nobody looked whether they are free again");
    reader.refill_holds();
    assert_eq!(reader.read_slot(None).map(|read| read.sequence), Some(START + 2));
}

#[test]
fn the_readers_are_asked_ahead_once_for_each_half_of_the_room() {
    let mut lane = Lane::of(64, START);
    let (_, _, mut reader) = lane.join(Policy::Reliable);
    let mut due = Vec::new();
    for sequence in START..START + 130 {
        lane.publish(0);
        if lane.writer.ask_is_due() {
            due.push(sequence + 1 - START);
            lane.reclaim();
        }
        assert!(matches!(reader.read(), Ok(Read::Message { .. })));
    }
    // The first room is the ring; then four entries of history are kept.
    assert_eq!(due, [32, 62, 92, 122]);
    // Whoever reads nothing is asked once: the answer changes nothing.
    let mut lane = Lane::of(64, START);
    let _idle = lane.join(Policy::Reliable);
    let due = (1..=64).filter(|_| {
        lane.publish(0);
        let due = lane.writer.ask_is_due();
        if due {
            lane.reclaim();
        }
        due
    });
    assert_eq!(due.collect::<Vec<_>>(), [32]);
    // Where there is little room it never pays.
    let mut lane = Lane::of(8, START);
    for _ in 0..40 {
        lane.reclaim();
        lane.publish(0);
        assert!(!lane.writer.ask_is_due());
    }
}

#[test]
fn a_hold_that_was_not_granted_keeps_nothing_and_harms_nobody() {
    let mut lane = Lane::new(START);
    let (block, view) = OwnedBlock::heap();
    view.at(0).reset([0; 3]);
    let (index, start) = lane.writer.add_reader(view.clone(), Policy::DropOldest, 0, 1).expect("there is a place");
    view.at(0).start.store(start, Relaxed);
    view.at(0).cursor.store(start, Relaxed);
    for slot in 0..4 {
        lane.publish(slot);
    }
    // The first word was granted. The second holds lawfully and the third cannot be: neither is looked at.
    view.at(0).held[0].store(START + 1, Relaxed);
    view.at(0).held[1].store((START + 2) | HOLD_IN_KERNEL, Relaxed);
    view.at(0).held[2].store(7, Relaxed);
    view.at(0).cursor.store(START + 4, Relaxed);
    for slot in 4..8 {
        lane.publish(slot);
    }
    lane.reclaim();
    assert!(lane.writer.take_rogues().is_empty());
    assert!(!lane.freed.contains(&0) && lane.freed.contains(&1), "{:?}", lane.freed);
    // Nor is a slot in quarantine for the second word's mark.
    assert!(lane.writer.remove_reader(index));
    drop(block);
    lane.reclaim();
    assert!(lane.freed.contains(&0));
}

#[test]
fn a_copying_reader_calls_a_publisher_faulty_that_lies_and_keeps_its_place_otherwise() {
    let mut lane = Lane::new(START);
    let (_, _, mut reader) = lane.join(Policy::DropOldest);
    lane.publish(3);
    // What the caller finds wrong with the claim comes back, and the cursor stays.
    let fault = LaneFault::Descriptor { sequence: START, word: 3 };
    assert_eq!(reader.read_copying(|_, _| Err(fault)).expect_err("refused"), fault);
    assert_eq!(reader.cursor(), START);
    // Retired while it was copied: thrown away, and counted.
    let control = lane.control.clone();
    let read = reader.read_copying(|_, _| {
        control.at(0).retired.store(START + 1, Relaxed);
        Ok(())
    });
    assert!(matches!(read, Ok(Read::Overtaken { lost: 1 })), "{read:?}");
    // An end of all sequences is no place to go to.
    lane.publish(4);
    let read = reader.read_copying(|_, _| {
        control.at(0).retired.store(u64::MAX, Relaxed);
        Ok(())
    });
    assert!(matches!(read, Err(LaneFault::Stamp { .. })), "{read:?}");
}
