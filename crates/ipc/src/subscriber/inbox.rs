//! The inbox: what the control thread has to say to a subscriber, until the subscriber looks.
//!
//! # Bounds
//! A subscriber that never looks costs a fixed amount of memory. What is said of a lane (that it is there, ended, cut
//! off, …) is kept once per lane and kind, the newest in place of the one before, and the control thread says it only
//! of lanes that the subscriber has; so no death and no end of such a lane is ever lost. Of refusals and the like the
//! newest [`MAX_REFUSALS`] are kept, and those that had to go are counted.

use core::mem::discriminant;
use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};

use zcmi_mem::fork::{CalmView, CalmWord, ForkGuardError};
use zcmi_mem::ledger::{Counter, SharedCounts};

use super::event::Refusal;
use super::lane::Lane;
use crate::name::Incarnation;
use crate::process::lock;
use crate::sys;

/// Refusals that are kept until the subscriber looks.
const MAX_REFUSALS: usize = 256;

/// What the control thread tells a subscriber.
#[derive(Debug)]
pub(crate) enum Note {
    Lane(Box<Lane>),
    Refused(Refusal),
    Died(Incarnation),
    CutOff(Incarnation),
    Ended {
        peer: Incarnation,
        publisher: u32,
    },
    /// The publisher has ended the lane for us, because of what we claimed.
    Expelled {
        peer: Incarnation,
        publisher: u32,
        reason: String,
    },
    /// A publisher has no descriptor to wake the subscriber by.
    NotWaking {
        publisher: Incarnation,
        endpoint: u32,
        pid: u32,
        reason: String,
    },
    ParkNoted {
        peer: Incarnation,
        publisher: u32,
    },
    RoomWaiter {
        peer: Incarnation,
        publisher: u32,
        eventfd: Arc<OwnedFd>,
    },
}

impl Note {
    /// Whom it concerns: a process, and one lane of it or all. A refusal stands for itself, and so does a lane.
    fn about(&self) -> Option<(Incarnation, Option<u32>)> {
        match *self {
            Self::Lane(_) | Self::Refused(_) => None,
            Self::Died(peer) | Self::CutOff(peer) => Some((peer, None)),
            Self::Ended { peer, publisher }
            | Self::Expelled { peer, publisher, .. }
            | Self::ParkNoted { peer, publisher }
            | Self::RoomWaiter { peer, publisher, .. }
            | Self::NotWaking { publisher: peer, endpoint: publisher, .. } => Some((peer, Some(publisher))),
        }
    }

    /// Whether it says again what the other says.
    fn repeats(&self, other: &Self) -> bool {
        discriminant(self) == discriminant(other) && self.about().is_some() && self.about() == other.about()
    }
}

#[derive(Debug, Default)]
struct Notes {
    kept: VecDeque<Note>,
    refusals: usize,
    lost: u64,
}

/// What the control thread and the subscriber's handle share.
#[derive(Debug)]
pub(crate) struct SubscriberShared {
    notes: Mutex<Notes>,
    /// Disturbed while there are notes.
    calm: CalmWord,
    waiter: Mutex<Option<Arc<OwnedFd>>>,
    /// Where the control thread counts what it does for the subscriber.
    control_counts: SharedCounts,
}

impl SubscriberShared {
    pub(super) fn new(control_counts: SharedCounts) -> Result<Self, ForkGuardError> {
        Ok(Self { notes: Mutex::default(), calm: CalmWord::new()?, waiter: Mutex::default(), control_counts })
    }

    /// Leaves a note and wakes the subscriber if it sleeps.
    pub(crate) fn note(&self, note: Note) {
        lock(&self.notes).put(note);
        self.calm.disturb();
        self.wake();
    }

    /// Wakes the subscriber if it sleeps.
    pub(crate) fn wake(&self) {
        if let Some(waiter) = &*lock(&self.waiter) {
            // Only a full eventfd is possible, and that one is readable.
            let _already_awake = sys::wake(waiter.as_fd());
            self.control_counts.add(Counter::WakesSent, 1);
        }
    }

    /// Takes what there is, and how much was lost since the last time.
    pub(crate) fn take_notes(&self) -> (VecDeque<Note>, u64) {
        self.calm.settle();
        let Notes { kept, lost, .. } = std::mem::take(&mut *lock(&self.notes));
        (kept, lost)
    }

    pub(super) fn is_calm(&self) -> bool {
        self.calm.is_calm()
    }

    /// The word by which the subscriber sees that there is nothing, nearer at hand.
    pub(super) fn calm_view(&self) -> CalmView {
        self.calm.view()
    }

    /// From now on notes wake this descriptor too.
    pub(super) fn wake_by(&self, waiter: Arc<OwnedFd>) {
        *lock(&self.waiter) = Some(waiter);
    }
}

impl Notes {
    fn put(&mut self, note: Note) {
        // The newest goes to the end: it concerns the lanes that came after the one it replaces, too.
        if let Some(at) = self.kept.iter().position(|kept| note.repeats(kept)) {
            self.kept.remove(at);
        }
        if matches!(note, Note::Refused(_)) {
            self.refusals += 1;
            if self.refusals > MAX_REFUSALS
                && let Some(oldest) = self.kept.iter().position(|kept| matches!(kept, Note::Refused(_)))
            {
                self.kept.remove(oldest);
                self.refusals -= 1;
                self.lost += 1;
            }
        }
        self.kept.push_back(note);
    }
}

#[cfg(test)]
mod tests {
    use zcmi_mem::ledger::{LaneRow, Ledger, LedgerBlock};
    use zcmi_ring::View;

    use super::*;

    fn peer(number: u64) -> Incarnation {
        Incarnation::from_u128(number.into())
    }

    #[test]
    fn an_inbox_that_nobody_reads_is_bounded_and_loses_no_end_and_no_death() {
        let blocks = View::heap(16, |_| LedgerBlock::default());
        let ledger = Ledger::new(blocks, View::heap(1, |_| LaneRow::default()), 1).expect("there are blocks");
        let shared = SubscriberShared::new(ledger.control()).expect("an inbox");
        for round in 0..1000 {
            for number in 0..64 {
                let (peer, publisher) = (peer(number % 8), number as u32);
                shared.note(Note::ParkNoted { peer, publisher });
                let eventfd = Arc::new(sys::eventfd().expect("eventfd"));
                shared.note(Note::RoomWaiter { peer, publisher, eventfd });
                shared.note(Note::Ended { peer, publisher });
                shared.note(Note::CutOff(peer));
                if round == 0 {
                    shared.note(Note::Died(peer));
                }
            }
            let text = format!("refusal {round}");
            shared.note(Note::Refused(Refusal { publisher: peer(round), pid: 1, code: None, text }));
        }
        let (notes, lost) = shared.take_notes();
        let count = |is: fn(&Note) -> bool| notes.iter().filter(|note| is(note)).count();
        assert_eq!(count(|note| matches!(note, Note::Ended { .. })), 64);
        assert_eq!(count(|note| matches!(note, Note::RoomWaiter { .. })), 64);
        assert_eq!(count(|note| matches!(note, Note::ParkNoted { .. })), 64);
        assert_eq!(count(|note| matches!(note, Note::Died(_))), 8);
        assert_eq!(count(|note| matches!(note, Note::CutOff(_))), 8);
        let refusals: Vec<&str> = notes
            .iter()
            .filter_map(|note| if let Note::Refused(refusal) = note { Some(&*refusal.text) } else { None })
            .collect();
        assert_eq!((refusals.len(), refusals[MAX_REFUSALS - 1]), (MAX_REFUSALS, "refusal 999"));
        assert_eq!(lost, 1000 - MAX_REFUSALS as u64, "what had to go is counted");
        let (notes, lost) = shared.take_notes();
        assert_eq!((notes.len(), lost), (0, 0));
    }
}
