//! Waiting for events: looking for a while before going to sleep, where that is mostly enough, and what it costs.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use crate::select::SLEEP_NS;

/// For how long it is looked, unless somebody says otherwise.
pub(crate) const BUSY_POLL: Duration = Duration::from_micros(30);
/// One sleep in so many is measured: a reading of the thread's clock is a system call.
const MEASURED_EVERY: u32 = 8;
/// What a sleep costs at the most: more is something else.
const MOST_NS: u64 = 100_000;
/// So many waits in a row show whether looking pays.
const RUN: u32 = 64;
/// In them it is looked so many times as long: the other end may sleep before it answers, until it looks as well.
const RUN_LOOKS: u32 = 2;
/// Where it does not, it is seen again after so many waits, each time after more.
const FIRST_REST: u32 = 256;
const LAST_REST: u32 = 4096;
/// It is not looked while more than this is moved between waits: much is moved in fewer steps by who sleeps meanwhile.
const BULK_BYTES: u64 = 16 << 10;
/// What a message counts beside its bytes.
const MESSAGE_BYTES: u64 = 512;
/// What was moved before the last waits counts less at each by this part.
const FADING: u64 = 8;
/// What a wait counts in the mean of how often looking was enough.
const NEW: f64 = 0.1;

/// How one thread waits for events. Going to sleep and being woken costs time at this end, at the one that wakes it,
/// and between the two, on virtual machines several times as much as elsewhere (40 of the 45 µs of a round trip over
/// the loopback of one, and half of the processor time of a stream whose ends wait for each other). Where what is
/// waited for mostly comes soon, looking for it until then is cheaper, and it is seen at once.
#[derive(Debug)]
pub(crate) struct Waits {
    /// For how long it is looked.
    most: Duration,
    /// What a sleep costs in processor time of this thread, on the average, once that was measured.
    sleep_ns: Option<u64>,
    sleeps: u32,
    /// Whether somebody wants to know that well.
    pub wanted: bool,
    /// What was moved of late, in bytes.
    moved: u64,
    /// How often looking was enough of late, from -1 to 1.
    luck: f64,
    /// Waits for which it is looked in any case, and after which that is done again.
    run: u32,
    rest: u32,
    next_rest: u32,
    random: u32,
}

impl Waits {
    /// Looks for so long before going to sleep, where that is mostly enough.
    pub(crate) fn new(most: Duration) -> Self {
        Self {
            most,
            sleep_ns: None,
            sleeps: 0,
            wanted: true,
            moved: 0,
            luck: 0.0,
            run: RUN,
            rest: 0,
            next_rest: FIRST_REST,
            random: thread_ns() as u32 | 1,
        }
    }

    /// Takes the events that an epoll descriptor has, and waits for so long at the most until there are some. Returns
    /// also what waiting cost, in nanoseconds.
    pub(crate) fn epoll(
        &mut self,
        epoll: &OwnedFd,
        wait: Option<Duration>,
        events: &mut Vec<epoll::Event>,
    ) -> (Result<usize, Errno>, u64) {
        let mut look = |wait: Option<Duration>| {
            let wait = wait.map(|wait| Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: wait.subsec_nanos().into() });
            match epoll::wait(epoll, spare_capacity(events), wait.as_ref()) {
                // What interrupts may have been word for a ring, which is there by now.
                Err(Errno::INTR) => epoll::wait(epoll, spare_capacity(events), Some(&Timespec::default())),
                other => other,
            }
        };
        if wait == Some(Duration::ZERO) {
            return (look(wait), 0);
        }
        let now = Some(Duration::ZERO);
        self.wait(wait, |sleeps| look(if sleeps { wait } else { now }), |looked| *looked != Ok(0))
    }

    /// Waits until `look`, which sleeps if it is told to, finds something, or for `most`. Returns also what that cost,
    /// in nanoseconds.
    fn wait<T>(
        &mut self,
        most: Option<Duration>,
        mut look: impl FnMut(bool) -> T,
        found: impl Fn(&T) -> bool,
    ) -> (T, u64) {
        let mut spent = Duration::ZERO;
        let is_bulk = self.moved > BULK_BYTES;
        self.moved -= self.moved.div_ceil(FADING);
        if !is_bulk && most.is_none_or(|most| most > self.most) && self.looks() {
            let begin = Instant::now();
            let patience = if self.run > 0 { self.most * RUN_LOOKS } else { self.most };
            while spent < patience {
                let looked = look(false);
                spent = begin.elapsed();
                if found(&looked) {
                    self.learn(if spent <= self.most { 1.0 } else { -1.0 });
                    return (looked, spent.as_nanos() as u64);
                }
                // Who has something to do on this processor, and be it what is waited for, goes first.
                std::thread::yield_now();
            }
            self.learn(-1.0);
        }
        let (looked, slept_ns) = self.sleep(|| look(true));
        (looked, spent.as_nanos() as u64 + slept_ns)
    }

    /// Notes a message that is to be sent, or a piece that has come.
    pub(crate) fn moved(&mut self, bytes: usize) {
        self.moved = self.moved.saturating_add(bytes as u64 + MESSAGE_BYTES);
    }

    /// Whether this wait begins with looking.
    fn looks(&mut self) -> bool {
        if self.most.is_zero() {
            return false;
        }
        if self.run > 0 {
            self.run -= 1;
            return true;
        }
        if self.luck > 0.0 {
            self.next_rest = FIRST_REST;
            return true;
        }
        if self.rest == 0 {
            // Not in step with the other end, which may do the same: it pays when both look.
            self.random ^= self.random << 13;
            self.random ^= self.random >> 17;
            self.random ^= self.random << 5;
            self.rest = self.next_rest + self.random % self.next_rest;
            self.next_rest = (self.next_rest * 2).min(LAST_REST);
        }
        self.rest -= 1;
        if self.rest == 0 {
            (self.run, self.luck) = (RUN, 0.0);
        }
        false
    }

    fn learn(&mut self, luck: f64) {
        self.luck += (luck - self.luck) * NEW;
    }

    /// Sleeps, and measures it now and then. Returns also what a sleep costs.
    fn sleep<T>(&mut self, sleep: impl FnOnce() -> T) -> (T, u64) {
        let measures = self.sleep_ns.is_none() || (self.wanted && self.sleeps.is_multiple_of(MEASURED_EVERY));
        self.sleeps = self.sleeps.wrapping_add(1);
        if !measures {
            return (sleep(), self.sleep_ns.unwrap_or(SLEEP_NS));
        }
        let begin = thread_ns();
        let slept = sleep();
        let took = thread_ns().saturating_sub(begin).min(MOST_NS);
        let mean = self.sleep_ns.map_or(took, |mean| (mean * 7 + took) / 8);
        self.sleep_ns = Some(mean);
        (slept, mean)
    }
}

/// The processor time of this thread.
fn thread_ns() -> u64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

#[cfg(test)]
mod tests {
    use rustix::event::poll;

    use super::*;

    /// A wait for what comes soon, or does not. Returns whether it was looked for.
    fn looked(waits: &mut Waits, soon: bool) -> bool {
        let looks = waits.looks();
        if looks {
            waits.learn(if soon { 1.0 } else { -1.0 });
        }
        looks
    }

    /// Whether a wait, for so long at the most, sleeps at once.
    fn sleeps(waits: &mut Waits, most: Option<Duration>) -> bool {
        waits.wait(most, |sleeps| sleeps, |_| true).0
    }

    fn waits() -> Waits {
        Waits { sleep_ns: Some(20_000), wanted: false, ..Waits::new(Duration::from_micros(20)) }
    }

    #[test]
    fn sleeping_costs_what_the_thread_does_and_not_what_passes() {
        let mut waits = Waits::new(Duration::ZERO);
        let mut cost = 0;
        for _ in 0..20 {
            let nap = Timespec { tv_sec: 0, tv_nsec: 3_000_000 };
            let waited;
            (waited, cost) = waits.wait(None, |_| poll(&mut [], Some(&nap)), |_| true);
            assert_eq!(waited, Ok(0));
        }
        assert!((100..1_000_000).contains(&cost), "{cost} ns");
    }

    #[test]
    fn it_is_looked_where_that_pays_and_only_there() {
        // What is waited for comes soon.
        let mut soon = waits();
        assert!((0..2000).all(|_| looked(&mut soon, true)));
        // It never does.
        let mut late = waits();
        let times = (0..4000).filter(|_| looked(&mut late, false)).count() as u32;
        assert!((RUN..=5 * RUN).contains(&times), "it looked in {times} of 4,000 waits");
        // It comes soon again, which is found out after a while.
        let times = (0..20_000).filter(|_| looked(&mut late, true)).count();
        assert!(times > 10_000, "it looked in {times} of 20,000 waits");
        // It comes soon half of the time, and a little less.
        let mut seldom = waits();
        let times = (0..20_000).filter(|wait| looked(&mut seldom, wait % 5 < 2)).count();
        assert!(times < 6000, "it looked in {times} of 20,000 waits");
        assert!(!sleeps(&mut waits(), None));
        // Much is moved between the waits, and then no more.
        let mut bulk = waits();
        for _ in 0..100 {
            bulk.moved(64 << 10);
            assert!(sleeps(&mut bulk, None));
        }
        let times = (0..100).filter(|_| sleeps(&mut bulk, None)).count();
        assert!((5..40).contains(&times), "{times} waits were as before");
        // Nobody wants it, or there is no time.
        assert!(sleeps(&mut Waits { most: Duration::ZERO, ..waits() }, None));
        assert!(sleeps(&mut waits(), Some(Duration::from_micros(10))));
    }
}
