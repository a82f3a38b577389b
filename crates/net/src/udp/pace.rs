//! How much may be under way, how fast it leaves, and when something is late. No I/O, no clock: times are given.
//!
//! The window is that of NewReno: it doubles each round trip until the first loss, is halved at a loss, once for all
//! losses of a round trip, and from then on grows by one datagram a round trip. It does not grow while it is not used.
//! Sending is paced by a bucket of tokens, which fills with 5/4 of the window each round trip, 2 while the window still
//! doubles, and holds no more than a burst.
//!
//! # Units
//! Times are nanoseconds since the transport began, sizes are bytes of datagrams, heads included.
//!
//! # Sources
//! RFC 6298 (round trips), RFC 9002 sections 5 to 7 (times of loss, window, pacing).

/// Nanoseconds since the transport began.
pub(crate) type Nanos = u64;

/// A millisecond.
pub(crate) const MS: Nanos = 1_000_000;
/// What a round trip is taken to be before one was measured.
const FIRST_ROUND_TRIP: Nanos = 50 * MS;
/// Timers are no finer than this.
const GRAIN: Nanos = MS;
/// How long a peer may take to say what came.
const REPORT_DELAY: Nanos = 4 * MS;
/// The longest time until something is sent again.
const LONGEST_PROBE: Nanos = 2_000 * MS;
/// Datagrams of the first window.
const FIRST_WINDOW: u64 = 10;
/// Datagrams of the smallest window.
const LEAST_WINDOW: u64 = 2;
/// The largest window.
const MOST_WINDOW: u64 = 64 << 20;
/// Bytes that leave at once although the bucket would allow fewer.
const BURST: u64 = 128 << 10;

/// Round trips, window and bucket of one connection.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    datagram: u64,
    /// Bytes a second, whatever the network takes.
    rate: Option<u64>,
    latest: Nanos,
    smoothed: Option<Nanos>,
    variation: Nanos,
    least: Nanos,
    window: u64,
    threshold: u64,
    /// Losses of what was sent before are of the round trip that was answered already.
    recovered: Nanos,
    tokens: u64,
    filled: Nanos,
    /// How often in a row nothing was heard in time.
    pub(crate) probes: u32,
}

impl Pace {
    /// A new connection with datagrams of at most so many bytes.
    pub(crate) fn new(datagram: u64, rate: Option<u64>, now: Nanos) -> Self {
        Self {
            datagram,
            rate,
            latest: FIRST_ROUND_TRIP,
            smoothed: None,
            variation: FIRST_ROUND_TRIP / 2,
            least: Nanos::MAX,
            window: FIRST_WINDOW * datagram,
            threshold: u64::MAX,
            recovered: 0,
            tokens: BURST,
            filled: now,
            probes: 0,
        }
    }

    /// Notes that datagrams are smaller from now on.
    pub(crate) fn set_datagram(&mut self, bytes: u64) {
        self.datagram = bytes;
    }

    /// The smoothed round trip.
    pub(crate) fn round_trip(&self) -> Nanos {
        self.smoothed.unwrap_or(FIRST_ROUND_TRIP)
    }

    /// The rate that is kept whatever the network takes, if there is one.
    pub(crate) fn rate(&self) -> Option<u64> {
        self.rate
    }

    /// The window.
    pub(crate) fn window(&self) -> u64 {
        self.window
    }

    /// Notes a round trip, of which the peer says that it took `delay` of it.
    pub(crate) fn sample(&mut self, took: Nanos, delay: Nanos) {
        self.latest = took.max(1);
        self.least = self.least.min(self.latest);
        let Some(smoothed) = self.smoothed else {
            (self.smoothed, self.variation) = (Some(self.latest), self.latest / 2);
            return;
        };
        let delay = delay.min(REPORT_DELAY);
        let adjusted = if self.latest >= self.least + delay { self.latest - delay } else { self.latest };
        self.variation = (3 * self.variation + smoothed.abs_diff(adjusted)) / 4;
        self.smoothed = Some((7 * smoothed + adjusted) / 8);
    }

    /// When a datagram is lost although no later one was heard of three times: so long after it was sent.
    pub(crate) fn late(&self) -> Nanos {
        (self.round_trip().max(self.latest) * 9 / 8).max(GRAIN)
    }

    /// How long nothing is heard until something is sent again.
    pub(crate) fn probe_after(&self) -> Nanos {
        let once = self.round_trip() + (4 * self.variation).max(GRAIN) + REPORT_DELAY;
        (once << self.probes.min(16)).min(LONGEST_PROBE)
    }

    /// Notes that bytes arrived, which were sent at that time; `full` if the window was what held others back.
    pub(crate) fn arrived(&mut self, bytes: u64, sent_at: Nanos, full: bool) {
        if !full || sent_at <= self.recovered {
            return;
        }
        self.window = if self.window < self.threshold {
            self.window + bytes
        } else {
            self.window + (self.datagram * bytes / self.window.max(1)).max(1)
        }
        .min(MOST_WINDOW);
    }

    /// Notes that something that was sent at that time is lost.
    pub(crate) fn lost(&mut self, sent_at: Nanos, now: Nanos) {
        if sent_at <= self.recovered {
            return;
        }
        self.recovered = now;
        self.window = (self.window / 2).max(LEAST_WINDOW * self.datagram);
        self.threshold = self.window;
    }

    /// Notes that nothing at all arrives.
    pub(crate) fn collapsed(&mut self) {
        self.window = LEAST_WINDOW * self.datagram;
    }

    fn burst(&self) -> u64 {
        // A timer wakes us a grain late at the worst; what would have left meanwhile may leave then.
        BURST.max(4 * self.datagram).max(self.fill(GRAIN))
    }

    /// What flows into the bucket in that time.
    fn fill(&self, time: Nanos) -> u64 {
        if let Some(rate) = self.rate {
            let filled = u128::from(rate) * u128::from(time) / 1_000_000_000;
            return u64::try_from(filled).unwrap_or(u64::MAX);
        }
        let gain = if self.window < self.threshold { 8 } else { 5 };
        let filled = u128::from(self.window) * u128::from(time) * gain / 4 / u128::from(self.round_trip().max(1));
        u64::try_from(filled).unwrap_or(u64::MAX)
    }

    /// How many bytes may leave now, as far as the bucket goes.
    pub(crate) fn allowed(&mut self, now: Nanos) -> u64 {
        let filled = self.fill(now.saturating_sub(self.filled));
        if filled > 0 {
            self.tokens = self.tokens.saturating_add(filled).min(self.burst());
            self.filled = now;
        }
        self.tokens
    }

    /// Notes that bytes left.
    pub(crate) fn left(&mut self, bytes: u64) {
        self.tokens = self.tokens.saturating_sub(bytes);
    }

    /// When so many bytes may leave.
    pub(crate) fn when_allowed(&self, bytes: u64, now: Nanos) -> Nanos {
        let lacking = u128::from(bytes.saturating_sub(self.tokens));
        if let Some(rate) = self.rate {
            let wait = lacking * 1_000_000_000 / u128::from(rate.max(1));
            return now + u64::try_from(wait).unwrap_or(LONGEST_PROBE).clamp(1, LONGEST_PROBE);
        }
        let gain = if self.window < self.threshold { 8 } else { 5 };
        let wait = lacking * 4 * u128::from(self.round_trip()) / (u128::from(self.window.max(1)) * gain);
        now + u64::try_from(wait).unwrap_or(LONGEST_PROBE).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_doubles_until_a_loss_and_is_halved_once_for_a_round_trip() {
        let mut pace = Pace::new(1000, None, 0);
        assert_eq!(pace.window(), 10_000);
        pace.arrived(10_000, 1, true);
        assert_eq!(pace.window(), 20_000);
        pace.arrived(10_000, 1, false);
        assert_eq!(pace.window(), 20_000, "it does not grow while it is not used");
        pace.lost(5, 10);
        pace.lost(6, 11);
        assert_eq!(pace.window(), 10_000, "both were sent before the first was answered");
        pace.arrived(10_000, 9, true);
        assert_eq!(pace.window(), 10_000);
        pace.arrived(10_000, 12, true);
        assert_eq!(pace.window(), 11_000, "one datagram a round trip");
        pace.collapsed();
        assert_eq!(pace.window(), 2000);
    }

    #[test]
    fn what_is_late_follows_the_round_trips_and_doubles_with_silence() {
        let mut pace = Pace::new(1000, None, 0);
        for _ in 0..100 {
            pace.sample(8 * MS, 0);
        }
        assert_eq!((pace.round_trip(), pace.late()), (8 * MS, 9 * MS));
        assert_eq!(pace.probe_after(), 13 * MS);
        pace.probes = 2;
        assert_eq!(pace.probe_after(), 52 * MS);
        pace.probes = 60;
        assert_eq!(pace.probe_after(), LONGEST_PROBE);
        // What the peer took for itself does not count, as far as that is possible.
        pace.sample(11 * MS, 3 * MS);
        assert_eq!(pace.round_trip(), 8 * MS);
    }

    #[test]
    fn a_constant_rate_is_kept_whatever_is_lost() {
        let mut pace = Pace::new(1000, Some(50_000_000), 0);
        let (mut now, mut sent) = (0, 0_u64);
        while now < 100 * MS {
            while pace.allowed(now) >= 1000 {
                pace.left(1000);
                sent += 1000;
            }
            pace.lost(now, now);
            let next = pace.when_allowed(1000, now);
            assert!(next > now && next - now <= 20_000, "1,000 bytes take 20 us, not {} ns", next - now);
            now = next;
        }
        // What the rate lets pass in 100 ms, and the first burst.
        assert!((5_000_000..=5_000_000 + BURST + 1000).contains(&sent), "{sent} bytes");
    }

    #[test]
    fn the_bucket_lets_a_burst_leave_and_then_the_window_in_a_round_trip() {
        let mut pace = Pace::new(1000, None, 0);
        pace.sample(10 * MS, 0);
        pace.lost(1, 1);
        pace.left(BURST);
        assert_eq!(pace.allowed(0), 0);
        // A window of 5000 bytes and a quarter of it more in 10 ms.
        assert_eq!(pace.allowed(10 * MS), 6250);
        pace.left(6250);
        assert_eq!(pace.when_allowed(6250, 10 * MS), 20 * MS);
        assert_eq!(pace.allowed(100_000 * MS), BURST);
    }
}
