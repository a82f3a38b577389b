//! How much a connection carries while a path is in use, and what that takes.

use std::time::{Duration, Instant};

/// After a change of path, for a trial or for good, what is under way by the path before passes for so long at least.
const LEAD_IN: Duration = Duration::from_millis(1);
/// And so many bytes at the most, and in a window.
const LEAD_BYTES: u64 = 4 << 20;
const LEAST_BYTES: u64 = 1 << 20;
/// What passes is counted over so long, and so many calls.
const WINDOW: Duration = Duration::from_micros(1500);
const WINDOW_CALLS: u32 = 8;
/// Windows from which it is known how much is carried.
const WINDOWS: usize = 3;

/// How much passes in each of the last windows since a path is in use. Time in which nothing is under way does not
/// count.
#[derive(Clone, Copy, Debug)]
pub(super) struct Carried {
    /// Until when, and for how many bytes more, what passes is what was under way before.
    leads_in: Instant,
    lead_bytes: u64,
    /// A window carries as much as was under way, so that it is not one burst.
    least_bytes: u64,
    window: Option<Window>,
    /// Bytes a nanosecond in the last windows, and nanoseconds that calls and sleeps of this end took for a KiB.
    recent: [[f64; 2]; WINDOWS],
    windows: u32,
    /// Since when nothing is under way.
    idle_since: Option<Instant>,
}

/// What is counted since then.
#[derive(Clone, Copy, Debug)]
struct Window {
    begin: Instant,
    bytes: u64,
    calls: u32,
    ns: u64,
}

impl Carried {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            leads_in: now,
            lead_bytes: 0,
            least_bytes: 0,
            window: None,
            recent: [[0.0; 2]; WINDOWS],
            windows: 0,
            idle_since: None,
        }
    }

    /// A path comes into use while so many bytes are under way by another.
    pub(super) fn begin(&mut self, now: Instant, under_way: u64) {
        let bytes = under_way.min(LEAD_BYTES);
        *self = Self {
            leads_in: now + LEAD_IN,
            lead_bytes: bytes,
            least_bytes: bytes.min(LEAST_BYTES),
            idle_since: self.idle_since,
            ..Self::new(now)
        };
    }

    /// Whether what passes now was under way before the path came into use.
    pub(super) fn leads_in(&self, now: Instant) -> bool {
        now < self.leads_in || self.lead_bytes > 0
    }

    /// Counts a call, and what it took.
    pub(super) fn count(&mut self, bytes: usize, took: Duration, now: Instant) {
        let bytes = bytes as u64;
        if self.leads_in(now) {
            self.lead_bytes = self.lead_bytes.saturating_sub(bytes);
            return;
        }
        let Some(window) = &mut self.window else {
            // What this call took was under way before.
            self.window = Some(Window { begin: now, bytes: 0, calls: 0, ns: 0 });
            return;
        };
        (window.bytes, window.calls) = (window.bytes + bytes, window.calls + 1);
        window.ns += took.as_nanos() as u64;
        let passed = now.saturating_duration_since(window.begin);
        if passed < WINDOW || window.calls < WINDOW_CALLS || window.bytes < self.least_bytes {
            return;
        }
        let sent = window.bytes as f64;
        self.recent.rotate_right(1);
        self.recent[0] = [sent / passed.as_nanos() as f64, window.ns as f64 * 1024.0 / sent];
        self.windows = self.windows.saturating_add(1);
        self.window = Some(Window { begin: now, bytes: 0, calls: 0, ns: 0 });
    }

    /// Adds what something beside the calls cost.
    pub(super) fn charge(&mut self, ns: u64) {
        if let Some(window) = &mut self.window {
            window.ns += ns;
        }
    }

    /// Notes that nothing is under way any more.
    pub(super) fn idles(&mut self, now: Instant) {
        self.idle_since.get_or_insert(now);
    }

    /// Notes that something is under way again.
    pub(super) fn resumes(&mut self, now: Instant) {
        if let (Some(since), Some(window)) = (self.idle_since.take(), &mut self.window) {
            window.begin += now.saturating_duration_since(since);
        }
    }

    /// How many windows there were.
    pub(super) fn windows(&self) -> u32 {
        self.windows
    }

    /// What was carried in the last window, and what a KiB took.
    pub(super) fn last(&self) -> Option<[f64; 2]> {
        (self.windows > 0).then_some(self.recent[0])
    }

    /// What was carried in each of the last two windows.
    pub(super) fn last_rates(&self) -> Option<[f64; 2]> {
        (self.windows > 1).then(|| [self.recent[0][0], self.recent[1][0]])
    }

    /// What was carried, and what a KiB took, once that is known well: the medians of the last windows.
    pub(super) fn known(&self) -> Option<[f64; 2]> {
        let median = |which: usize| {
            let mut sorted = self.recent.map(|both| both[which]);
            sorted.sort_by(f64::total_cmp);
            sorted[WINDOWS / 2]
        };
        (self.windows as usize >= WINDOWS).then(|| [median(0), median(1)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_under_way_before_and_pauses_do_not_count() {
        let begin = Instant::now();
        let at = |us: u64| begin + Duration::from_micros(us);
        let mut carried = Carried::new(begin);
        carried.begin(begin, 300_000);
        let mut us = 0;
        // 1 ms passes with 100 kB, 2 ms more until what was under way is through.
        for _ in 0..30 {
            us += 100;
            assert!(carried.leads_in(at(us)));
            carried.count(10_000, Duration::from_micros(40), at(us));
        }
        assert!(!carried.leads_in(at(us)));
        assert_eq!(carried.windows(), 0);
        for call in 0..100 {
            if call % 5 == 0 {
                // A pause of 7 ms.
                carried.idles(at(us));
                us += 7000;
                carried.resumes(at(us));
            }
            us += 100;
            carried.count(20_480, Duration::from_micros(40), at(us));
            carried.charge(2000);
        }
        // 204.8 bytes a microsecond, in windows of 300 kB; 42 microseconds for 20 KiB.
        assert!((carried.windows() as usize) > WINDOWS);
        let [rate, cost] = carried.known().expect("enough");
        assert!((rate - 0.2048).abs() < 1e-9 && (cost - 2100.0).abs() < 150.0, "{rate} and {cost}");
    }
}
