//! What going to sleep costs.

use rustix::time::{ClockId, clock_gettime};

/// One wait in so many is measured: a reading of the thread's clock is a system call.
const MEASURED_EVERY: u32 = 8;
/// What a wait costs at the most: more is something else.
const MOST_NS: u64 = 200_000;

/// What waiting for events costs in processor time of this thread, on the average: the way into the kernel, to sleep,
/// and back. On virtual machines that is several times what it is elsewhere.
#[derive(Debug)]
pub(crate) struct SleepMeter {
    mean_ns: Option<u64>,
    waits: u32,
}

impl SleepMeter {
    pub(crate) fn new() -> Self {
        Self { mean_ns: None, waits: 0 }
    }

    /// Waits, and measures it now and then. Returns also what a wait costs, in nanoseconds.
    pub(crate) fn wait<T>(&mut self, wait: impl FnOnce() -> T) -> (T, u64) {
        let measures = self.mean_ns.is_none() || self.waits.is_multiple_of(MEASURED_EVERY);
        self.waits = self.waits.wrapping_add(1);
        if !measures {
            return (wait(), self.mean_ns.unwrap_or(0));
        }
        let begin = thread_ns();
        let waited = wait();
        let took = thread_ns().saturating_sub(begin).min(MOST_NS);
        let mean = self.mean_ns.map_or(took, |mean| (mean * 7 + took) / 8);
        self.mean_ns = Some(mean);
        (waited, mean)
    }
}

/// The processor time of this thread.
fn thread_ns() -> u64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

#[cfg(test)]
mod tests {
    use rustix::event::{Timespec, poll};

    use super::*;

    #[test]
    fn sleeping_costs_what_the_thread_does_and_not_what_passes() {
        let mut meter = SleepMeter::new();
        let mut cost = 0;
        for _ in 0..20 {
            let waited;
            (waited, cost) = meter.wait(|| poll(&mut [], Some(&Timespec { tv_sec: 0, tv_nsec: 3_000_000 })));
            assert_eq!(waited, Ok(0));
        }
        assert!((100..1_000_000).contains(&cost), "{cost} ns");
    }
}
