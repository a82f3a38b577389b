//! Percentiles within a round, medians and their spread over rounds, and ratios between two things measured in turn.

use std::fmt;

use hdrhistogram::Histogram;

/// Latencies of one or more rounds, recorded as round trips and read as one way.
#[derive(Clone)]
pub struct Latencies {
    trips: Histogram<u64>,
    /// What one recorded value stands for: 2 one-way trips, or 1 call.
    legs: f64,
}

impl fmt::Debug for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Latencies").field("samples", &self.samples()).field("legs", &self.legs).finish_non_exhaustive()
    }
}

impl Latencies {
    /// The longest value told apart from longer ones.
    const LONGEST_NS: u64 = 60_000_000_000;

    fn with_legs(legs: f64) -> Self {
        // The bounds are constants that the histogram accepts, so this cannot fail.
        let trips = Histogram::new_with_bounds(1, Self::LONGEST_NS, 3).expect("constant bounds are valid");
        Self { trips, legs }
    }

    /// For round trips, of which a one-way trip is half.
    #[must_use]
    pub fn of_round_trips() -> Self {
        Self::with_legs(2.0)
    }

    /// For calls that are their own unit.
    #[must_use]
    pub fn of_calls() -> Self {
        Self::with_legs(1.0)
    }

    /// For batches of `calls` calls, each recorded as one value.
    #[must_use]
    pub fn of_batches(calls: u32) -> Self {
        Self::with_legs(f64::from(calls))
    }

    /// Records one value; what is below 1 ns or above a minute counts as that.
    #[inline]
    pub fn record_ns(&mut self, ns: u64) {
        self.trips.saturating_record(ns.max(1));
    }

    /// How many values were recorded.
    #[must_use]
    pub fn samples(&self) -> u64 {
        self.trips.len()
    }

    /// The one-way time that `share` of the samples did not exceed, as 0.5 or 0.999; nothing without samples.
    #[must_use]
    pub fn quantile_ns(&self, share: f64) -> Option<f64> {
        (self.samples() > 0).then(|| self.trips.value_at_quantile(share) as f64 / self.legs)
    }

    /// The longest one-way time; nothing without samples.
    #[must_use]
    pub fn max_ns(&self) -> Option<f64> {
        (self.samples() > 0).then(|| self.trips.max() as f64 / self.legs)
    }

    /// Adds the samples of another round of the same thing.
    ///
    /// # Panics
    /// If the other counts in another unit, which is a mistake of the caller.
    pub fn pool(&mut self, other: &Self) {
        assert!(self.legs == other.legs, "values of {} and {} legs do not mix", self.legs, other.legs);
        self.trips.add(&other.trips).expect("both have the same bounds");
    }
}

/// The median of some rounds with its spread.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// How many rounds.
    pub rounds: usize,
    /// The lowest.
    pub min: f64,
    /// The first quartile.
    pub q1: f64,
    /// The median.
    pub median: f64,
    /// The third quartile.
    pub q3: f64,
    /// The highest.
    pub max: f64,
}

impl Summary {
    /// Summarises the values; nothing for none, or if one is not a number.
    #[must_use]
    pub fn of(values: &[f64]) -> Option<Self> {
        if values.is_empty() || values.iter().any(|value| value.is_nan()) {
            return None;
        }
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        Some(Self {
            rounds: sorted.len(),
            min: sorted[0],
            q1: quantile(&sorted, 0.25),
            median: quantile(&sorted, 0.5),
            q3: quantile(&sorted, 0.75),
            max: sorted[sorted.len() - 1],
        })
    }
}

/// The quantile of sorted values, linear between the two nearest.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    below + (above - below) * (place - place.floor())
}

/// How two things measured in turn compare.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio {
    /// The ratio of the medians.
    pub median: f64,
    /// Where the interval begins.
    pub low: f64,
    /// Where the interval ends.
    pub high: f64,
    /// How surely the interval holds the true median of the ratios of single rounds.
    pub coverage: f64,
}

impl Ratio {
    /// Compares rounds of `over` with the rounds of `under` that ran beside them.
    ///
    /// The interval is that of the ratios of single rounds, between two of them counted from both ends so that it holds
    /// their true median with 95 % where the rounds suffice (six or more), else from the lowest to the highest. It
    /// assumes nothing about how the values are distributed.
    ///
    /// Nothing where there is no round, where the counts differ, or where a value is not above 0.
    #[must_use]
    pub fn of(over: &[f64], under: &[f64]) -> Option<Self> {
        let positive = |values: &[f64]| values.iter().all(|value| value.is_finite() && *value > 0.0);
        if over.len() != under.len() || !positive(over) || !positive(under) {
            return None;
        }
        let median = Summary::of(over)?.median / Summary::of(under)?.median;
        let mut ratios: Vec<f64> = over.iter().zip(under).map(|(over, under)| over / under).collect();
        ratios.sort_by(f64::total_cmp);
        let (skip, coverage) = median_interval(ratios.len());
        Some(Self { median, low: ratios[skip], high: ratios[ratios.len() - 1 - skip], coverage })
    }
}

/// How many of `rounds` sorted values to leave out at both ends, and the coverage that remains.
fn median_interval(rounds: usize) -> (usize, f64) {
    // The true median has `k` values below it with binomial probability; leaving out `skip` values at each end misses
    // it when fewer than `skip + 1` lie on one side.
    let mut weight = 0.5_f64.powi(i32::try_from(rounds).unwrap_or(i32::MAX));
    let (mut tail, mut best) = (weight, (0, 1.0 - 2.0 * weight));
    for below in 1..rounds.div_ceil(2) {
        weight *= (rounds - below + 1) as f64 / below as f64;
        tail += weight;
        if 1.0 - 2.0 * tail < 0.95 {
            break;
        }
        best = (below, 1.0 - 2.0 * tail);
    }
    best
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3} ({:.3} to {:.3})", self.median, self.low, self.high)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_are_read_as_one_way() {
        let mut trips = Latencies::of_round_trips();
        for ns in 1..=1000 {
            trips.record_ns(2 * ns);
        }
        assert_eq!(trips.samples(), 1000);
        assert!((trips.quantile_ns(0.5).unwrap() - 500.0).abs() <= 1.0);
        assert!((trips.quantile_ns(0.999).unwrap() - 999.0).abs() <= 1.0);
        assert!((trips.max_ns().unwrap() - 1000.0).abs() <= 1.0);
        let mut pooled = Latencies::of_round_trips();
        pooled.pool(&trips);
        pooled.pool(&trips);
        assert_eq!(pooled.samples(), 2000);
    }

    #[test]
    fn no_samples_give_no_figure() {
        assert_eq!(Latencies::of_calls().quantile_ns(0.5), None);
        assert_eq!(Latencies::of_calls().max_ns(), None);
        assert_eq!(Summary::of(&[]), None);
        assert_eq!(Summary::of(&[1.0, f64::NAN]), None);
    }

    #[test]
    fn a_summary_holds_the_five_numbers() {
        let summary = Summary::of(&[5.0, 1.0, 3.0, 2.0, 4.0]).unwrap();
        assert_eq!(summary, Summary { rounds: 5, min: 1.0, q1: 2.0, median: 3.0, q3: 4.0, max: 5.0 });
        assert!((Summary::of(&[1.0, 2.0]).unwrap().median - 1.5).abs() < 1e-12);
    }

    #[test]
    fn a_median_of_ten_rounds_lies_between_the_second_and_the_ninth() {
        let (skip, coverage) = median_interval(10);
        assert_eq!(skip, 1);
        assert!((coverage - 0.978_515_625).abs() < 1e-9, "{coverage}");
        assert_eq!(median_interval(6).0, 0);
        assert_eq!(median_interval(1), (0, 0.0));
    }

    #[test]
    fn a_ratio_compares_rounds_that_ran_beside_each_other() {
        // The machine slowed down by half over the rounds; the ratio of neighbours does not see it.
        let under: Vec<f64> = (0..10).map(|round| 100.0 + 10.0 * f64::from(round)).collect();
        let over: Vec<f64> = under.iter().map(|value| value * 2.0).collect();
        let ratio = Ratio::of(&over, &under).unwrap();
        assert!((ratio.median - 2.0).abs() < 1e-12 && (ratio.low - 2.0).abs() < 1e-12);
        assert!((ratio.high - 2.0).abs() < 1e-12);
        assert_eq!(Ratio::of(&over, &under[1..]), None);
        assert_eq!(Ratio::of(&[1.0], &[0.0]), None);
    }
}
