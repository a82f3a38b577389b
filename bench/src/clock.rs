//! The clock of all benches, and what reading it costs.
//!
//! A latency is half of a round trip. The end of one round trip is the start of the next, so that a round trip contains
//! exactly one reading of the clock. It is reported beside the figures and not subtracted: a peer measured with the
//! same clock carries the same cost.

use std::time::Instant;

use crate::stats::Summary;

/// The cost of one reading of the clock in nanoseconds: the median of some batches.
#[must_use]
pub fn cost_ns() -> f64 {
    const READINGS: u32 = 1000;
    let batches: Vec<f64> = (0..31)
        .map(|_| {
            let start = Instant::now();
            for _ in 0..READINGS {
                std::hint::black_box(Instant::now());
            }
            start.elapsed().as_nanos() as f64 / f64::from(READINGS)
        })
        .collect();
    Summary::of(&batches).map_or(f64::NAN, |summary| summary.median)
}

/// Nanoseconds from `start` to `end`, capped where a `u64` ends.
#[inline]
#[must_use]
pub fn between_ns(start: Instant, end: Instant) -> u64 {
    u64::try_from(end.duration_since(start).as_nanos()).unwrap_or(u64::MAX)
}
