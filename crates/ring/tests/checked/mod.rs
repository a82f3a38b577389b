//! A lane next to a model of it: every operation is done on both, and every outcome compared.
//!
//! The model is a `VecDeque` of what each reader must still get, a table of what lies in each slot, and the rules of
//! reuse stated in terms of what the readers did, not of how the writer finds out.
// Each test uses a part of it.
#![allow(dead_code)]

use std::collections::VecDeque;
use zcmi_ring::layout::{HOLDS, INLINE_WORDS, UNSET};
use zcmi_ring::reader::descriptor_of;
use zcmi_ring::{
    AddReaderError, Entry, Head, Hold, HoldTable, Kind, LaneControl, LifeMark, Orphan, OwnedBlock, Policy,
    PublishRefused, RawDescriptor, Read, Reader, ReaderBlock, ReaderIndex, Ring, View, Writer, WriterOptions,
};

use std::sync::atomic::Ordering::Relaxed;

/// One thing to do to a lane. Readers and holds are picked modulo how many there are.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Op {
    Inline(u8),
    Slot,
    /// Bit `i` says whether message `i` of the batch carries a slot.
    Batch {
        count: u8,
        slots: u8,
    },
    Read(u8),
    ReadInline(u8),
    ReadBatch(u8, u8),
    ReadInlineBatch(u8, u8),
    DropHold(u8, u8),
    /// Drops a hold of a reader that is gone.
    DropOrphaned(u8),
    MarkInKernel(u8, u8),
    ClearInKernel(u8, u8),
    /// The reader goes over to reading in place, moves its `released`, or goes back to taking holds.
    Release(u8, bool),
    /// With `late` the reader stores its start only at its first read.
    Add {
        reliable: bool,
        history: u8,
        late: bool,
    },
    /// A reader that was granted no holds: its [`Op::Read`] copies what lies in a slot.
    AddCopying {
        reliable: bool,
        history: u8,
    },
    Remove(u8),
    Reclaim,
    /// The end as a message.
    End,
    /// The end without one, which needs no room.
    EndNow,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Sent {
    Inline { words: u8, seed: u64 },
    Slot(u32),
    End,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Free,
    Under(u64),
}

struct Subject {
    index: ReaderIndex,
    policy: Policy,
    copies: bool,
    start: u64,
    view: View<ReaderBlock>,
    block: Option<OwnedBlock>,
    reader: Option<Reader>,
    expected: VecDeque<(u64, Sent)>,
    cursor: u64,
    released: u64,
    delivered: u64,
    lost: u64,
    kept: Vec<(u64, bool, Hold)>,
}

impl Subject {
    fn position(&self) -> u64 {
        self.cursor.min(self.released)
    }
}

/// What freed, and `retired` as a reader would have seen it at that moment.
type Freed = Vec<(u32, u64)>;

pub(crate) struct Checked {
    writer: Writer,
    ring: Ring,
    control: View<LaneControl>,
    capacity: u64,
    first: u64,
    end: u64,
    history: u64,
    past: Vec<Sent>,
    subjects: Vec<Subject>,
    orphaned: Vec<Hold>,
    orphans: Vec<Orphan>,
    places: Vec<Place>,
    free: Vec<u32>,
    quarantined: Vec<u64>,
    retired: u64,
}

fn body(seed: u64) -> [u64; INLINE_WORDS] {
    core::array::from_fn(|at| seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(at as u32 * 8) ^ at as u64)
}

impl Checked {
    pub(crate) fn new(capacity: usize, slots: usize, options: WriterOptions) -> Self {
        let ring = Ring::new(View::heap(capacity, |_| Entry::default())).expect("a power of two");
        let control = View::heap(1, |_| LaneControl::default());
        Self {
            writer: Writer::new(ring.clone(), control.clone(), options),
            ring,
            control,
            capacity: capacity as u64,
            first: options.start,
            end: options.end,
            history: options.history,
            past: Vec::new(),
            subjects: Vec::new(),
            orphaned: Vec::new(),
            orphans: Vec::new(),
            places: vec![Place::Free; slots],
            free: (0..slots as u32).rev().collect(),
            quarantined: Vec::new(),
            retired: options.start,
        }
    }

    pub(crate) fn tail(&self) -> u64 {
        self.first + self.past.len() as u64
    }

    /// Does `op` and checks everything. Returns whether there was anything to do.
    pub(crate) fn apply(&mut self, op: Op) -> bool {
        let did = self.step(op);
        if did {
            self.check();
        }
        did
    }

    fn step(&mut self, op: Op) -> bool {
        match op {
            Op::Inline(words) => self.publish(1, 0, words),
            Op::Slot => self.publish(1, 1, 0),
            Op::Batch { count, slots } => self.publish(u64::from(count), slots, count),
            Op::End => self.end(),
            Op::EndNow => {
                let tail = self.tail();
                assert_eq!(self.writer.end(), tail);
                self.end = tail;
                assert!(
                    self.subjects
                        .iter()
                        .filter_map(|s| s.reader.as_ref())
                        .all(|reader| reader.ended_at() == Some(tail))
                );
                true
            }
            Op::Reclaim => {
                let mut freed = Freed::new();
                let control = self.control.clone();
                self.writer.reclaim(&mut |slot| freed.push((slot, control.at(0).retired.load(Relaxed))));
                self.check_freed(freed);
                self.check_nothing_forgotten();
                true
            }
            Op::Add { reliable, history, late } => self.add(reliable, u64::from(history), late, false),
            Op::AddCopying { reliable, history } => self.add(reliable, u64::from(history), false, true),
            _ if self.subjects.is_empty() => match op {
                Op::DropOrphaned(at) => self.drop_orphaned(at),
                _ => false,
            },
            Op::Read(who) => self.read(who),
            Op::ReadInline(who) => self.read_inline(who),
            Op::ReadBatch(who, most) => self.read_batch(who, u64::from(most)),
            Op::ReadInlineBatch(who, most) => self.read_inline_batch(who, u64::from(most)),
            Op::DropHold(who, which) => self.with_kept(who, which, |subject, at| drop(subject.kept.swap_remove(at))),
            Op::MarkInKernel(who, which) => self.with_kept(who, which, |subject, at| {
                subject.kept[at].2.mark_in_kernel();
                subject.kept[at].1 = true;
            }),
            Op::ClearInKernel(who, which) => self.with_kept(who, which, |subject, at| {
                subject.kept[at].2.clear_in_kernel();
                subject.kept[at].1 = false;
            }),
            Op::DropOrphaned(at) => self.drop_orphaned(at),
            Op::Release(who, holds) => self.release(who, holds),
            Op::Remove(who) => self.remove(who),
        }
    }

    fn subject(&mut self, who: u8) -> &mut Subject {
        let count = self.subjects.len();
        &mut self.subjects[usize::from(who) % count]
    }

    fn with_kept(&mut self, who: u8, which: u8, act: impl FnOnce(&mut Subject, usize)) -> bool {
        let subject = self.subject(who);
        if subject.kept.is_empty() {
            return false;
        }
        let at = usize::from(which) % subject.kept.len();
        act(subject, at);
        true
    }

    /// The rule of room, stated from the readers' side.
    fn expect_room(&self) -> Result<(), PublishRefused> {
        let tail = self.tail();
        if tail >= self.end {
            return Err(PublishRefused::Ended { sequence: tail });
        }
        let reliable = self.subjects.iter().filter(|subject| subject.policy == Policy::Reliable);
        match reliable.map(Subject::position).min() {
            Some(oldest) if oldest + self.capacity <= tail => Err(PublishRefused::Full { capacity: self.capacity }),
            _ => Ok(()),
        }
    }

    fn reserve(&mut self) -> bool {
        let mut freed = Freed::new();
        let control = self.control.clone();
        let reserved = self.writer.reserve(&mut |slot| freed.push((slot, control.at(0).retired.load(Relaxed))));
        assert_eq!(reserved, self.expect_room());
        self.check_freed(freed);
        if matches!(reserved, Err(PublishRefused::Full { .. })) {
            self.check_nothing_forgotten();
        }
        reserved.is_ok()
    }

    fn publish(&mut self, count: u64, slots: u8, words: u8) -> bool {
        if !self.reserve() {
            // A refusal changed nothing but what is retired; there is something to check only if it freed.
            return true;
        }
        let tail = self.tail();
        let count = count.clamp(1, self.writer.room());
        let mut staged = Vec::new();
        if (0..count).all(|ahead| slots >> (ahead % 8) & 1 != 0) && self.free.len() as u64 >= count {
            let mut written = Vec::new();
            for sequence in tail..tail + count {
                let slot = self.free.pop().expect("they were counted");
                assert_eq!(std::mem::replace(&mut self.places[slot as usize], Place::Under(sequence)), Place::Free);
                written.push(RawDescriptor::new(0, slot));
                staged.push(Sent::Slot(slot));
            }
            assert_eq!(self.writer.publish_slots(&written, 64), tail);
            self.deliver(&staged);
            return true;
        }
        for ahead in 0..count {
            let sequence = tail + ahead;
            let wants_slot = slots >> (ahead % 8) & 1 != 0;
            if wants_slot && self.free.is_empty() {
                self.step(Op::Reclaim);
            }
            if wants_slot && let Some(slot) = self.free.pop() {
                assert_eq!(self.writer.stage_slot(ahead, RawDescriptor::new(0, slot), 64), sequence);
                assert_eq!(std::mem::replace(&mut self.places[slot as usize], Place::Under(sequence)), Place::Free);
                staged.push(Sent::Slot(slot));
            } else {
                let words = words % (INLINE_WORDS as u8 + 1);
                let b = body(sequence);
                let bytes = u32::from(words) * 8;
                match words {
                    0 => self.writer.stage_inline(ahead, bytes, &[]),
                    1 => self.writer.stage_inline(ahead, bytes, &[b[0]]),
                    2 => self.writer.stage_inline(ahead, bytes, &[b[0], b[1]]),
                    3 => self.writer.stage_inline(ahead, bytes, &[b[0], b[1], b[2]]),
                    4 => self.writer.stage_inline(ahead, bytes, &[b[0], b[1], b[2], b[3]]),
                    _ => self.writer.stage_inline(ahead, bytes, &b),
                };
                staged.push(Sent::Inline { words, seed: sequence });
            }
        }
        for subject in &self.subjects {
            let unseen = subject.reader.as_ref().is_none_or(|reader| subject.cursor < tail || !reader.has_message());
            assert!(unseen, "a staged message is visible before its commit");
        }
        self.writer.commit(count);
        self.deliver(&staged);
        true
    }

    fn deliver(&mut self, staged: &[Sent]) {
        for &sent in staged {
            let sequence = self.tail();
            self.past.push(sent);
            for subject in &mut self.subjects {
                subject.expected.push_back((sequence, sent));
            }
        }
        assert_eq!(self.writer.tail(), self.tail());
    }

    fn end(&mut self) -> bool {
        if !self.reserve() {
            return true;
        }
        let sequence = self.writer.publish_end();
        assert_eq!(sequence, self.tail());
        self.deliver(&[Sent::End]);
        self.end = self.tail();
        let readers = || self.subjects.iter().filter_map(|subject| subject.reader.as_ref());
        assert!(readers().all(|reader| reader.ended_at() == Some(sequence + 1)));
        true
    }

    fn add(&mut self, reliable: bool, history: u64, late: bool, copies: bool) -> bool {
        if self.subjects.len() >= 4 {
            return false;
        }
        let (block, view) = OwnedBlock::heap();
        view.at(0).reset([1, 2, 3]);
        let policy = if reliable { Policy::Reliable } else { Policy::DropOldest };
        let added = self.writer.add_reader(view.clone(), policy, history, if copies { 0 } else { HOLDS });
        let tail = self.tail();
        if tail >= self.end {
            assert_eq!(added, Err(AddReaderError::Ended { sequence: tail }));
            return true;
        }
        let (index, start) = added.expect("there is a place");
        assert_eq!(start, tail.saturating_sub(history.min(self.history)).max(self.retired));
        assert!(self.subjects.iter().all(|subject| subject.index != index), "the place is taken");
        let expected = (start..tail).map(|sequence| (sequence, self.past[(sequence - self.first) as usize])).collect();
        self.subjects.push(Subject {
            index,
            policy,
            copies,
            start,
            view,
            block: Some(block),
            reader: None,
            expected,
            cursor: start,
            released: UNSET,
            delivered: 0,
            lost: 0,
            kept: Vec::new(),
        });
        if !late {
            let at = self.subjects.len() - 1;
            self.started(at);
        }
        true
    }

    fn started(&mut self, at: usize) -> &mut Subject {
        let subject = &mut self.subjects[at];
        if let Some(block) = subject.block.take() {
            let holds = HoldTable::new(block, self.control.clone(), LifeMark::always(), None, Vec::new());
            let reader = Reader::new(self.ring.clone(), self.control.clone(), holds, subject.policy, subject.start);
            subject.reader = Some(reader);
        }
        subject
    }

    fn reading(&mut self, who: u8) -> (&mut Subject, u64, u64) {
        let at = usize::from(who) % self.subjects.len();
        let (retired, tail) = (self.retired, self.tail());
        (self.started(at), retired, tail)
    }

    fn read(&mut self, who: u8) -> bool {
        // What a copy finds: under which sequence each slot lies.
        let there: Vec<Place> = self.places.clone();
        let mut copied = None;
        let (subject, retired, tail) = self.reading(who);
        let reader = subject.reader.as_mut().expect("it was started");
        assert_eq!(reader.has_message(), subject.cursor < tail);
        let copies = subject.copies;
        let read = if copies {
            reader.read_copying(|sequence, message| {
                let slot = descriptor_of(sequence, message).expect("not even a torn one").slot();
                assert_eq!(copied.replace(there[slot as usize]), None, "a slot is copied once");
                Ok(())
            })
        } else {
            reader.read()
        };
        let read = read.expect("an honest publisher");
        let mut slot_read = None;
        match subject.expected.front().copied() {
            None => assert!(matches!(read, Read::Empty), "{read:?} where nothing was published"),
            Some(_) if subject.policy == Policy::DropOldest && retired > subject.cursor => {
                let Read::Overtaken { lost } = read else { panic!("{read:?} below {retired}") };
                assert_eq!(lost, retired - subject.cursor);
                subject.expected.drain(..lost as usize);
                subject.lost += lost;
                subject.cursor = retired;
            }
            Some((_, Sent::Slot(_))) if subject.kept.len() == HOLDS => {
                assert!(matches!(read, Read::TooManyHeld), "{read:?} with all holds taken");
            }
            Some((expected, sent)) => {
                let Read::Message { sequence, message, hold } = read else { panic!("{read:?} instead of {sent:?}") };
                assert_eq!(sequence, expected);
                match sent {
                    Sent::Inline { words, seed } => {
                        let words = usize::from(words);
                        assert_eq!(message.head, Head::new(Kind::Inline, words as u32 * 8));
                        assert_eq!(message.body[..words], body(seed)[..words]);
                        assert!(hold.is_none());
                    }
                    Sent::Slot(slot) => {
                        let descriptor = descriptor_of(sequence, &message).expect("an honest descriptor");
                        assert_eq!((message.head, descriptor.slot()), (Head::new(Kind::Slot, 64), slot));
                        slot_read = Some((slot, sequence));
                        assert_eq!(hold.is_none(), copies, "a slot is held or copied");
                        assert_eq!(copied, copies.then_some(Place::Under(sequence)), "a copy of another message");
                        subject.kept.extend(hold.map(|hold| (sequence, false, hold)));
                    }
                    Sent::End => assert_eq!(message.head.kind(), Kind::End),
                }
                subject.expected.pop_front();
                subject.cursor += 1;
                subject.delivered += 1;
            }
        }
        assert!(copied.is_none() || slot_read.is_some(), "a slot was copied of which no message came");
        if let Some((slot, sequence)) = slot_read {
            assert_eq!(self.places[slot as usize], Place::Under(sequence), "a reader got a slot that was given away");
        }
        true
    }

    /// How many of the next messages `read_inline::<2>(16)` and its batch form must find.
    fn inline_ahead(subject: &Subject, retired: u64) -> usize {
        if subject.policy == Policy::DropOldest && retired > subject.cursor {
            return 0;
        }
        subject.expected.iter().take_while(|(_, sent)| matches!(sent, Sent::Inline { words: 2, .. })).count()
    }

    fn read_inline(&mut self, who: u8) -> bool {
        let (subject, retired, _) = self.reading(who);
        let found = subject.reader.as_mut().expect("it was started").read_inline::<2>(16);
        if Self::inline_ahead(subject, retired) == 0 {
            assert_eq!(found, None);
            return true;
        }
        let b = body(subject.cursor);
        assert_eq!(found, Some((subject.cursor, [b[0], b[1]])));
        subject.expected.pop_front();
        subject.cursor += 1;
        subject.delivered += 1;
        true
    }

    fn read_inline_batch(&mut self, who: u8, most: u64) -> bool {
        let (subject, retired, _) = self.reading(who);
        let ahead = (Self::inline_ahead(subject, retired) as u64).min(most);
        let mut due = subject.cursor;
        let count =
            subject.reader.as_mut().expect("it was started").read_inline_batch::<2>(most, 16, |sequence, words| {
                let b = body(sequence);
                assert_eq!((sequence, *words), (due, [b[0], b[1]]));
                due += 1;
            });
        assert_eq!((count, due - subject.cursor), (ahead, ahead));
        subject.expected.drain(..count as usize);
        subject.cursor += count;
        subject.delivered += count;
        true
    }

    fn read_batch(&mut self, who: u8, most: u64) -> bool {
        let (subject, _, _) = self.reading(who);
        if subject.policy != Policy::Reliable {
            return false;
        }
        let mut seen = Vec::new();
        let read = subject.reader.as_mut().expect("it was started").read_batch(most, |sequence, message| {
            seen.push((sequence, *message));
            Ok(())
        });
        assert_eq!(read, Ok(most.min(subject.expected.len() as u64)));
        for (sequence, message) in seen {
            let (expected, sent) = subject.expected.pop_front().expect("it was counted");
            assert_eq!(sequence, expected);
            match sent {
                Sent::Inline { words, .. } => assert_eq!(message.head, Head::new(Kind::Inline, u32::from(words) * 8)),
                Sent::Slot(slot) => assert_eq!(descriptor_of(sequence, &message).expect("honest").slot(), slot),
                Sent::End => assert_eq!(message.head.kind(), Kind::End),
            }
            subject.cursor += 1;
            subject.delivered += 1;
        }
        true
    }

    fn release(&mut self, who: u8, holds: bool) -> bool {
        let (subject, ..) = self.reading(who);
        if subject.policy != Policy::Reliable || !subject.kept.is_empty() {
            return false;
        }
        subject.released = if holds { UNSET } else { subject.cursor };
        subject.view.at(0).released.store(subject.released, Relaxed);
        true
    }

    fn remove(&mut self, who: u8) -> bool {
        let at = usize::from(who) % self.subjects.len();
        let subject = self.subjects.swap_remove(at);
        assert!(self.writer.remove_reader(subject.index));
        assert!(!self.writer.remove_reader(subject.index), "it is gone");
        let holds_nothing = subject.kept.is_empty();
        for (sequence, in_kernel, hold) in subject.kept {
            if in_kernel {
                self.quarantined.push(sequence);
            }
            self.orphaned.push(hold);
        }
        if let Some(reader) = subject.reader {
            let orphan = reader.retire();
            assert_eq!(orphan.is_none(), holds_nothing, "memory outlives the reader iff something is held");
            self.orphans.extend(orphan);
        }
        true
    }

    fn drop_orphaned(&mut self, at: u8) -> bool {
        if self.orphaned.is_empty() {
            return false;
        }
        let at = usize::from(at) % self.orphaned.len();
        drop(self.orphaned.swap_remove(at));
        self.orphans =
            std::mem::take(&mut self.orphans).into_iter().filter_map(|orphan| orphan.try_free().err()).collect();
        assert_eq!(self.orphans.is_empty(), self.orphaned.is_empty());
        true
    }

    fn is_kept(&self, sequence: u64) -> bool {
        self.quarantined.contains(&sequence)
            || self.subjects.iter().any(|subject| subject.kept.iter().any(|kept| kept.0 == sequence))
    }

    /// What was freed could be freed.
    fn check_freed(&mut self, freed: Freed) {
        for (slot, retired) in freed {
            let Place::Under(sequence) = self.places[slot as usize] else { panic!("slot {slot} was freed twice") };
            assert!(sequence < retired, "slot under {sequence} was freed while only {retired} was retired");
            assert!(!self.is_kept(sequence), "slot under {sequence} was freed while it is held");
            for subject in self.subjects.iter().filter(|subject| subject.policy == Policy::Reliable) {
                assert!(
                    subject.position() > sequence,
                    "slot under {sequence} was freed before a reliable reader was done"
                );
            }
            self.places[slot as usize] = Place::Free;
            self.free.push(slot);
        }
    }

    /// After the writer asked its readers: what could be freed was.
    fn check_nothing_forgotten(&self) {
        let retired = self.control.at(0).retired.load(Relaxed);
        for (slot, place) in self.places.iter().enumerate() {
            if let Place::Under(sequence) = place {
                let kept = *sequence >= retired || self.is_kept(*sequence);
                assert!(kept, "slot {slot} under {sequence} was forgotten below {retired}");
            }
        }
    }

    fn check(&mut self) {
        let tail = self.tail();
        let retired = self.control.at(0).retired.load(Relaxed);
        assert!(
            retired >= self.retired && retired <= tail,
            "retired went from {} to {retired} of {tail}",
            self.retired
        );
        assert!(tail - retired <= self.capacity, "{tail} was reached before {retired} was retired far enough");
        let batch = (self.capacity / 16).max(1);
        let remembered = tail.saturating_sub(self.history.min(self.capacity - batch)).max(self.first);
        assert!(retired <= remembered.max(self.retired), "{retired} was retired, but history reaches to {remembered}");
        self.retired = retired;
        for subject in &self.subjects {
            assert!(subject.policy != Policy::Reliable || retired <= subject.position());
            assert_eq!(subject.delivered + subject.lost, subject.cursor - subject.start);
            assert_eq!(subject.expected.len() as u64, tail - subject.cursor);
            let block = subject.view.at(0);
            let Some(reader) = &subject.reader else {
                assert_eq!(block.cursor.load(Relaxed), UNSET);
                continue;
            };
            assert_eq!(block.cursor.load(Relaxed), subject.cursor);
            assert_eq!(reader.cursor(), subject.cursor);
            assert_eq!(block.lost.load(Relaxed), subject.lost);
            assert_eq!(reader.holds_nothing(), subject.kept.is_empty());
        }
        assert_eq!(self.writer.reader_count(), self.subjects.len());
        assert!(self.writer.take_rogues().is_empty(), "an honest reader was called a rogue");
        let under = self.places.iter().filter(|place| **place != Place::Free).count();
        assert_eq!(under + self.free.len(), self.places.len(), "a slot was lost");
    }

    /// Lets everybody go, fills the ring with inline messages, and counts the slots: all must be back but the
    /// quarantined.
    pub(crate) fn finish(mut self) {
        while !self.subjects.is_empty() {
            self.apply(Op::Remove(0));
        }
        while self.apply(Op::DropOrphaned(0)) {}
        for _ in 0..2 * self.capacity {
            if self.tail() < self.end {
                self.apply(Op::Inline(1));
            }
        }
        self.apply(Op::Reclaim);
        let mut left: Vec<u64> = Vec::new();
        for place in &self.places {
            if let Place::Under(sequence) = place {
                left.push(*sequence);
            }
        }
        if self.tail() < self.end {
            assert!(
                left.iter().all(|sequence| self.quarantined.contains(sequence)),
                "slots under {left:?} never came back"
            );
        } else {
            let all = |sequence: &u64| *sequence >= self.retired || self.quarantined.contains(sequence);
            assert!(left.iter().all(all), "slots under {left:?} never came back");
        }
        assert!(self.orphans.is_empty());
    }
}
