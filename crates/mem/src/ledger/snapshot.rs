//! What a block said at one moment, and the figures that follow from it.

use core::fmt;

use super::counter::{COUNTERS, Counter, FallbackReason, NotKnown, REASONS};
use super::lanes::LaneCounts;
use super::{Identity, Role};

/// The counts of one block, or sums over several, as ordinary numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerSnapshot {
    identity: Identity,
    counts: [Result<u64, NotKnown>; COUNTERS],
    fallbacks: [u64; REASONS],
}

/// Bytes copied for each byte delivered, by who copied them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CopiedPerByte {
    /// By this program.
    pub user: Result<f64, NotKnown>,
    /// By the kernel, known and presumed.
    pub kernel: Result<f64, NotKnown>,
    /// The part of `kernel` that is only presumed.
    pub presumed: Result<f64, NotKnown>,
}

impl LedgerSnapshot {
    pub(super) fn new(
        identity: Identity,
        counts: [Result<u64, NotKnown>; COUNTERS],
        fallbacks: [u64; REASONS],
    ) -> Self {
        Self { identity, counts, fallbacks }
    }

    /// Whose counts these are.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Whether the block belonged to anybody.
    #[must_use]
    pub fn is_used(&self) -> bool {
        self.identity.role != Role::Unused
    }

    /// One count.
    ///
    /// # Errors
    /// [`NotKnown`] if the endpoint cannot know it.
    pub fn count(&self, counter: Counter) -> Result<u64, NotKnown> {
        self.counts[counter as usize]
    }

    /// How often the endpoint left the best path for this reason.
    #[must_use]
    pub fn fallbacks(&self, reason: FallbackReason) -> u64 {
        self.fallbacks[reason as usize]
    }

    /// Adds another block's counts; a sum with an unknown part is unknown. The identity stays.
    pub fn add(&mut self, other: &Self) {
        for (sum, more) in self.counts.iter_mut().zip(other.counts) {
            *sum = sum.and_then(|sum| more.map(|more| sum.wrapping_add(more)));
        }
        for (sum, more) in self.fallbacks.iter_mut().zip(other.fallbacks) {
            *sum = sum.wrapping_add(more);
        }
    }

    /// Adds what follows from a lane's own words.
    pub(super) fn add_lane(&mut self, lane: &LaneCounts) {
        for (counter, more) in lane.each() {
            let count = &mut self.counts[counter as usize];
            *count = count.map(|count| count.wrapping_add(more));
        }
    }

    /// Makes a count unknown.
    pub(super) fn forget(&mut self, counter: Counter, reason: NotKnown) {
        self.counts[counter as usize] = Err(reason);
    }

    /// What was counted after `earlier`, a snapshot of the same blocks.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut later = self.clone();
        for (count, before) in later.counts.iter_mut().zip(earlier.counts) {
            *count = count.and_then(|count| before.map(|before| count.wrapping_sub(before)));
        }
        for (count, before) in later.fallbacks.iter_mut().zip(earlier.fallbacks) {
            *count = count.wrapping_sub(before);
        }
        later
    }

    /// Bytes copied for each byte delivered.
    #[must_use]
    pub fn copied_per_byte(&self) -> CopiedPerByte {
        let per_byte = |copied: Result<u64, NotKnown>| match (copied?, self.count(Counter::BytesDelivered)?) {
            (_, 0) => Err(NotKnown::NothingDelivered),
            (copied, delivered) => Ok(copied as f64 / delivered as f64),
        };
        let (known, presumed) = (self.count(Counter::CopiedKernelKnown), self.count(Counter::CopiedKernelPresumed));
        CopiedPerByte {
            user: per_byte(self.count(Counter::CopiedUser)),
            kernel: per_byte(known.and_then(|known| presumed.map(|presumed| known.saturating_add(presumed)))),
            presumed: per_byte(presumed),
        }
    }
}

/// One line per figure, `n/a` with its reason where there is none; fallbacks only where there were some.
impl fmt::Display for LedgerSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Identity { endpoint, service: [high, low], role, pid } = self.identity;
        writeln!(f, "{role} {endpoint} of service {high:016x}{low:016x}, process {pid}")?;
        for counter in Counter::ALL {
            match self.count(counter) {
                Ok(count) => writeln!(f, "  {counter:<24}{count:>20}")?,
                Err(reason) => writeln!(f, "  {counter:<24}{:>20} ({reason})", "n/a")?,
            }
        }
        let CopiedPerByte { user, kernel, presumed } = self.copied_per_byte();
        for (name, ratio) in
            [("copied_user_per_byte", user), ("copied_kernel_per_byte", kernel), ("of that presumed", presumed)]
        {
            match ratio {
                Ok(ratio) => writeln!(f, "  {name:<24}{ratio:>20.3}")?,
                Err(reason) => writeln!(f, "  {name:<24}{:>20} ({reason})", "n/a")?,
            }
        }
        for reason in FallbackReason::ALL {
            if self.fallbacks(reason) > 0 {
                writeln!(f, "  fallback {reason:<15}{:>20}", self.fallbacks(reason))?;
            }
        }
        Ok(())
    }
}
