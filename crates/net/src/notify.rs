//! Which numbered zero-copy sends the kernel still owes a word about. No I/O.
//!
//! The kernel counts the sends of a socket in 32 bits that wrap, and reports ranges of that count. [`Owed`] gives each
//! send a number of 64 bits, extends what is reported to such numbers, and takes each number back once.
//!
//! ```text
//!  first … completed … │ oldest ░░█░░░░██░ … │ next
//!                      └ at most `capacity`, a bit for each: █ was completed out of order
//! ```
//!
//! # Invariants
//! - A number is completed at most once, and only after it was counted.
//! - A report that names anything else is refused whole and changes nothing.
//! - Memory is a bit for each number of the capacity, taken at the beginning.
//!
//! # What the kernel counts
//! A `sendmsg` with `MSG_ZEROCOPY` that accepted at least one byte counts once, however many bytes it took. One that
//! failed counts nothing: the kernel takes its count back before it returns (`msg_zerocopy_put_abort`). One of no bytes
//! counts nothing either.
//!
//! # Sources
//! Documentation/networking/msg_zerocopy.rst and net/core/skbuff.c of Linux 6.18.

use crate::wire::Notification;

/// The most numbers that may be owed at once: a report of 32 bits must say which of them it means.
pub const CAPACITY_MAX: usize = 1 << 30;
/// How far behind the oldest number a report is taken to speak of the past.
const PAST: u64 = 1 << 31;

/// Why a report of the kernel was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// It names sends that were never made.
    #[error("sends {low} to {high} (modulo 2^32) were reported, but not all of them were made: {made} were")]
    NeverMade {
        /// The first of the range.
        low: u32,
        /// The last of the range.
        high: u32,
        /// How many sends were made.
        made: u64,
    },
    /// It names sends that were reported before.
    #[error("sends {low} to {high} (modulo 2^32) were reported, but not for the first time")]
    Doubled {
        /// The first of the range.
        low: u32,
        /// The last of the range.
        high: u32,
    },
}

/// The sends of one socket that the kernel was given and has not reported.
#[derive(Debug)]
pub struct Owed {
    first: u64,
    oldest: u64,
    next: u64,
    /// How many of `oldest..next` are not completed.
    open: u64,
    /// A bit for each of `oldest..next`, at the number modulo the capacity: it was completed. All others are clear.
    completed: Box<[u64]>,
}

impl Owed {
    /// None yet, and room for `capacity` (at least 64, rounded up to a power of two).
    ///
    /// `first` is the number of the first send, and its lower 32 bits are where the kernel's count stands: 0 for a new
    /// socket.
    ///
    /// # Panics
    /// If the capacity is more than [`CAPACITY_MAX`].
    #[must_use]
    pub fn new(first: u64, capacity: usize) -> Self {
        assert!(capacity <= CAPACITY_MAX, "a capacity of {capacity} is more than {CAPACITY_MAX}");
        let words = capacity.next_power_of_two().max(64) / 64;
        Self { first, oldest: first, next: first, open: 0, completed: vec![0; words].into_boxed_slice() }
    }

    /// How many numbers may lie between the oldest that is owed and the next.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.completed.len() * 64
    }

    /// How many sends are owed a report.
    #[must_use]
    pub fn open(&self) -> u64 {
        self.open
    }

    /// How many sends were counted.
    #[must_use]
    pub fn made(&self) -> u64 {
        self.next - self.first
    }

    /// Whether one more can be counted; asked before the send, which cannot be undone.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.next - self.oldest < self.capacity() as u64
    }

    /// Counts a send that the kernel accepted, and says its number.
    ///
    /// # Panics
    /// If there was no [room](Self::has_room).
    pub fn count(&mut self) -> u64 {
        assert!(self.has_room(), "a send was made without room for its number");
        let number = self.next;
        self.next += 1;
        self.open += 1;
        number
    }

    /// Takes a report of the sends `low` to `high`, both included, in the kernel's count.
    ///
    /// # Errors
    /// [`ReportError`]; nothing has changed then.
    pub fn complete(&mut self, low: u32, high: u32, copied: bool) -> Result<Notification, ReportError> {
        let never_made = ReportError::NeverMade { low, high, made: self.made() };
        let count = u64::from(high.wrapping_sub(low)) + 1;
        let width = self.next - self.oldest;
        // The lower half of a number is what the kernel counts.
        let oldest = self.oldest as u32;
        let ahead = u64::from(low.wrapping_sub(oldest));
        if ahead + count > width {
            let behind = u64::from(oldest.wrapping_sub(low));
            let is_past = (1..=PAST.min(self.oldest - self.first)).contains(&behind) && count <= behind + width;
            return Err(if is_past { ReportError::Doubled { low, high } } else { never_made });
        }
        let first = self.oldest + ahead;
        let last = first + (count - 1);
        if (first..=last).any(|number| self.is_completed(number)) {
            return Err(ReportError::Doubled { low, high });
        }
        for number in first..=last {
            let (word, bit) = self.place(number);
            self.completed[word] |= bit;
        }
        self.open -= count;
        while self.oldest < self.next && self.is_completed(self.oldest) {
            let (word, bit) = self.place(self.oldest);
            self.completed[word] &= !bit;
            self.oldest += 1;
        }
        Ok(Notification { first, last, copied })
    }

    fn place(&self, number: u64) -> (usize, u64) {
        // The number of words is a power of two.
        let word = (number / 64) & (self.completed.len() as u64 - 1);
        (word as usize, 1 << (number % 64))
    }

    fn is_completed(&self, number: u64) -> bool {
        let (word, bit) = self.place(number);
        self.completed[word] & bit != 0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_come_out_of_order_and_each_number_once() {
        let mut owed = Owed::new(0, 64);
        for number in 0..5 {
            assert_eq!(owed.count(), number);
        }
        assert_eq!(owed.complete(3, 4, true), Ok(Notification { first: 3, last: 4, copied: true }));
        assert_eq!(owed.complete(4, 4, true), Err(ReportError::Doubled { low: 4, high: 4 }));
        assert_eq!(owed.complete(0, 2, false), Ok(Notification { first: 0, last: 2, copied: false }));
        assert_eq!(owed.complete(0, 0, false), Err(ReportError::Doubled { low: 0, high: 0 }));
        assert_eq!(owed.complete(5, 5, false), Err(ReportError::NeverMade { low: 5, high: 5, made: 5 }));
        assert_eq!(owed.open(), 0);
    }

    #[test]
    fn a_report_that_is_wrong_in_part_changes_nothing() {
        let mut owed = Owed::new(0, 64);
        for _ in 0..4 {
            owed.count();
        }
        assert_eq!(owed.complete(2, 4, false), Err(ReportError::NeverMade { low: 2, high: 4, made: 4 }));
        assert_eq!(owed.complete(3, 2, false), Err(ReportError::NeverMade { low: 3, high: 2, made: 4 }));
        assert_eq!(owed.open(), 4);
        assert_eq!(owed.complete(2, 2, false).map(|done| done.first), Ok(2));
        assert_eq!(owed.complete(0, 3, false), Err(ReportError::Doubled { low: 0, high: 3 }));
        assert_eq!(owed.open(), 3);
    }

    #[test]
    fn numbers_go_on_where_the_count_of_the_kernel_wraps() {
        let first = u64::from(u32::MAX) - 1;
        let mut owed = Owed::new(first, 64);
        for _ in 0..4 {
            owed.count();
        }
        let whole = owed.complete(u32::MAX - 1, 1, false);
        assert_eq!(whole, Ok(Notification { first, last: first + 3, copied: false }));
    }

    #[test]
    fn there_is_room_for_the_capacity_and_no_more() {
        let mut owed = Owed::new(0, 64);
        for _ in 0..64 {
            assert!(owed.has_room());
            owed.count();
        }
        assert!(!owed.has_room());
        // The oldest is what holds the window, whatever came after it.
        owed.complete(1, 63, false).expect("made");
        assert!(!owed.has_room());
        owed.complete(0, 0, false).expect("made");
        assert!(owed.has_room());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Count(u8),
        /// A range from a number relative to the first, and how long it is.
        Report(i64, u8),
        /// The same beginning at the n-th that is owed.
        ReportOwed(usize, u8),
        Anything(u32, u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (1..40_u8).prop_map(Step::Count),
            2 => (-5..400_i64, 0..30_u8).prop_map(|(at, len)| Step::Report(at, len)),
            6 => (0..200_usize, 0..10_u8).prop_map(|(at, len)| Step::ReportOwed(at, len)),
            1 => (any::<u32>(), any::<u32>()).prop_map(|(low, high)| Step::Anything(low, high)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn it_agrees_with_a_map_of_all_sends(
            first in prop_oneof![Just(0_u64), (1_u64 << 32) - 200..(1 << 32) + 5, (7_u64 << 32) - 100..(7 << 32)],
            steps in prop::collection::vec(step(), 1..80),
        ) {
            let mut owed = Owed::new(first, 128);
            // Each send that was made, by the kernel's count, and whether it was completed.
            let mut oracle: BTreeMap<u64, bool> = BTreeMap::new();
            let by_count = |oracle: &BTreeMap<u64, bool>, count: u32| {
                oracle.keys().copied().find(|&number| number as u32 == count)
            };
            for step in steps {
                let (low, high) = match step {
                    Step::Count(times) => {
                        for _ in 0..times {
                            let open = oracle.iter().find(|&(_, &done)| !done).map(|(&number, _)| number);
                            let next = first + oracle.len() as u64;
                            let has_room = open.is_none_or(|open| next - open < 128);
                            prop_assert_eq!(owed.has_room(), has_room);
                            if has_room {
                                prop_assert_eq!(owed.count(), next);
                                oracle.insert(next, false);
                            }
                        }
                        continue;
                    }
                    Step::Report(at, len) => {
                        let low = first.wrapping_add_signed(at) as u32;
                        (low, low.wrapping_add(u32::from(len)))
                    }
                    Step::ReportOwed(at, len) => {
                        let open: Vec<u64> = oracle.iter().filter(|&(_, &done)| !done).map(|(&n, _)| n).collect();
                        if open.is_empty() {
                            continue;
                        }
                        let low = open[at % open.len()];
                        let fits = (0..=u64::from(len)).take_while(|&more| oracle.get(&(low + more)) == Some(&false));
                        (low as u32, (low as u32).wrapping_add(fits.last().unwrap_or(0) as u32))
                    }
                    Step::Anything(low, high) => (low, high),
                };
                let count = u64::from(high.wrapping_sub(low)) + 1;
                let named = by_count(&oracle, low).map(|first| first..first + count);
                let expected = match named {
                    Some(range) if count <= oracle.len() as u64 && range.clone().all(|n| oracle.contains_key(&n)) => {
                        if range.clone().any(|number| oracle[&number]) {
                            Err(ReportError::Doubled { low, high })
                        } else {
                            Ok(Notification { first: range.start, last: range.end - 1, copied: count % 2 == 0 })
                        }
                    }
                    _ => Err(ReportError::NeverMade { low, high, made: oracle.len() as u64 }),
                };
                prop_assert_eq!(owed.complete(low, high, count % 2 == 0), expected);
                if let Ok(Notification { first, last, .. }) = expected {
                    for number in first..=last {
                        oracle.insert(number, true);
                    }
                }
                prop_assert_eq!(owed.open(), oracle.values().filter(|&&done| !done).count() as u64);
            }
        }
    }
}
