//! Waking readers, with a bound on what it costs the publisher's thread and on how often one reader is woken.
//!
//! A few sleepers are woken by the publisher itself. When there are more, or when a reader was woken more often than
//! its budget allows, the publisher [hands them over](OwedWakes) to its process's control thread, which costs it one
//! wake at most. The control thread sends the wakes, those over a budget when their time has come: delayed, never
//! dropped. A reader that waits for its wake is not announced as sleeping, so the publisher spends nothing on it
//! meanwhile.
//!
//! Budgets are kept as the time from which the next wake is paid for (`due`): each wake moves it on by one interval,
//! and it may run ahead of the clock by a burst. Times are nanoseconds since the publisher was made. Publisher and
//! control thread may both spend at the same moment; then one wake is not counted, which harms nobody.

use std::sync::Arc;
use std::time::{Duration, Instant};

use zcmi_ring::layout::READERS;
use zcmi_ring::owed::OwedWakes;
use zcmi_ring::sync::{AtomicU64, Ordering};

use crate::process::Mailbox;

/// How many sleepers a publisher wakes itself.
pub(super) const DIRECT: u32 = 4;

/// How often one reader is woken by one publisher.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WakeRate {
    /// Between two wakes, when they never end.
    pub(crate) interval: Duration,
    /// How many may come at once.
    pub(crate) burst: u32,
}

impl Default for WakeRate {
    /// 20,000 a second, and 200 at once.
    fn default() -> Self {
        Self { interval: Duration::from_micros(50), burst: 200 }
    }
}

/// What a publisher and its control thread share about wakes.
#[derive(Debug)]
pub(crate) struct Wakes {
    owed: OwedWakes,
    due: [AtomicU64; READERS],
    interval_ns: u64,
    burst_ns: u64,
    epoch: Instant,
    mailbox: Arc<Mailbox>,
}

impl Wakes {
    pub(crate) fn new(rate: WakeRate, mailbox: Arc<Mailbox>) -> Self {
        let interval_ns = u64::try_from(rate.interval.as_nanos()).unwrap_or(u64::MAX);
        Self {
            owed: OwedWakes::default(),
            due: [const { AtomicU64::new(0) }; READERS],
            interval_ns,
            burst_ns: interval_ns.saturating_mul(u64::from(rate.burst.saturating_sub(1))),
            epoch: Instant::now(),
            mailbox,
        }
    }

    pub(crate) fn now_ns(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    pub(crate) fn instant_of(&self, ns: u64) -> Instant {
        self.epoch + Duration::from_nanos(ns)
    }

    /// A new reader has a whole budget.
    pub(super) fn begin(&self, reader: usize) {
        self.due[reader].store(0, Ordering::Relaxed);
    }

    /// Spends one wake of this reader's budget.
    ///
    /// # Errors
    /// When the next one is paid for.
    pub(crate) fn spend(&self, reader: usize, now_ns: u64) -> Result<(), u64> {
        let due = self.due[reader].load(Ordering::Relaxed);
        let earliest = due.saturating_sub(self.burst_ns);
        if now_ns < earliest {
            return Err(earliest);
        }
        self.due[reader].store(due.max(now_ns) + self.interval_ns, Ordering::Relaxed);
        Ok(())
    }

    /// Has the control thread wake these readers. Returns whether there is one.
    pub(super) fn hand_over(&self, readers: u64) -> bool {
        !self.owed.hand_over(readers) || self.mailbox.nudge()
    }

    /// The control thread's side, in every turn: the readers to wake.
    pub(crate) fn take_owed(&self) -> u64 {
        self.owed.take()
    }
}

/// The readers whose bits are set.
pub(crate) fn each(mut readers: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let index = (readers != 0).then(|| readers.trailing_zeros() as usize)?;
        readers &= readers - 1;
        Some(index)
    })
}
