//! Which calls are measured while nothing is looked at, and what is believed of the others.

use core::mem;
use std::time::{Duration, Instant};

/// Of calls that take less than this only one in so many is measured: the two looks at the clock are a few hundredths
/// of what such a call takes.
const SHORT: Duration = Duration::from_micros(6);
const MEASURED_EVERY: u32 = 4;
/// Calls are alike whose bytes differ by this part at the most: much of what a short call takes is no matter of bytes.
const ALIKE: usize = 8;
/// A call so long after the last that was measured is measured.
const RECENT: Duration = Duration::from_millis(10);

/// The calls by the path in use.
#[derive(Clone, Debug)]
pub(super) struct Sampling {
    /// What the last measured one took, for how many bytes, and when.
    last: Option<(Duration, usize, Instant)>,
    /// How many were not measured since, and their bytes.
    passed: (u32, u64),
}

impl Sampling {
    /// Nothing is known of the calls to come.
    pub(super) const NONE: Self = Self { last: None, passed: (0, 0) };

    /// Whether a call of so many bytes needs not be measured.
    pub(super) fn may_pass(&self, bytes: usize, at: Instant) -> bool {
        self.passed.0 + 1 < MEASURED_EVERY
            && self.last.is_some_and(|(took, _, when)| took < SHORT && at.saturating_duration_since(when) < RECENT)
            && self.is_alike(bytes)
    }

    fn is_alike(&self, bytes: usize) -> bool {
        self.last.is_some_and(|(_, last, _)| bytes.abs_diff(last) <= last / ALIKE)
    }

    /// Notes a call that was not measured.
    pub(super) fn pass(&mut self, bytes: usize) {
        self.passed.0 += 1;
        self.passed.1 += bytes as u64;
    }

    /// The bytes of the calls that passed since the last that was measured, and what they took: as much as the one that
    /// is measured now if that is like them, and else as that before them.
    pub(super) fn take_passed(&mut self, now: Option<(Duration, usize)>) -> Option<(u64, Duration)> {
        let (_, passed) = mem::take(&mut self.passed);
        let (took, bytes, _) = self.last?;
        let (took, bytes) = now.filter(|&(_, bytes)| self.is_alike(bytes)).unwrap_or((took, bytes));
        (passed > 0).then(|| (passed, took.mul_f64(passed as f64 / bytes.max(1) as f64)))
    }

    /// Notes a call that was measured.
    pub(super) fn measured(&mut self, took: Duration, bytes: usize, now: Instant) {
        self.last = Some((took, bytes, now));
    }
}
