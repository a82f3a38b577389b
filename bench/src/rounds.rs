//! Rounds in turn: A, B, C, A, B, C, and so on, then the medians of each.
//!
//! Machines drift. Things that are to be compared are measured beside each other in every round, never one after all
//! rounds of the other, and each figure of a merged row is the median of its rounds with the spread beside it. Where
//! the samples of a row are at hand, p99 and beyond come from the samples of all rounds pooled; else they are medians
//! of the rounds' own.

use std::collections::BTreeMap;

use crate::report::{COMPLETIONS, FIGURES, Row, Spread};
use crate::stats::{Latencies, Summary};

/// One row of one round.
#[derive(Clone, Debug)]
pub struct Observation {
    /// The figures of this round.
    pub row: Row,
    /// The samples behind the row, if they are at hand; `merge` then fills the percentiles from them.
    pub latencies: Option<Latencies>,
}

impl From<Row> for Observation {
    fn from(row: Row) -> Self {
        Self { row, latencies: None }
    }
}

impl Observation {
    /// A row that gets its percentiles from samples.
    #[must_use]
    pub fn of_latencies(mut row: Row, latencies: Latencies) -> Self {
        row.p50_ns = latencies.quantile_ns(0.5);
        row.max_ns = latencies.max_ns();
        row.samples = Some(latencies.samples());
        fill_tail(&mut row, &latencies);
        Self { row, latencies: Some(latencies) }
    }

    /// A row without percentiles.
    #[must_use]
    pub fn of_row(row: Row) -> Self {
        Self { row, latencies: None }
    }

    /// Gives `reason` for every figure that is absent and has none yet, see [`Row::explain`].
    #[must_use]
    pub fn explained(mut self, reason: &str) -> Self {
        self.row = self.row.explain(reason);
        self
    }
}

/// One of the things measured in turn; it is called once a round.
pub type Contender<'a, E> = Box<dyn FnMut() -> Result<Vec<Observation>, E> + 'a>;

/// Runs each contender once in each of `rounds` rounds, in the given order, and merges what they return.
///
/// `done` is told after every single run how many of how many are done.
///
/// # Errors
/// The first error of a contender ends all.
pub fn alternate<E>(
    rounds: usize,
    contenders: &mut [Contender<'_, E>],
    mut done: impl FnMut(usize, usize),
) -> Result<Vec<Row>, E> {
    let total = rounds * contenders.len();
    let mut observations = Vec::new();
    for round in 0..rounds {
        let before = round * contenders.len();
        for (index, contender) in contenders.iter_mut().enumerate() {
            observations.extend(contender()?);
            done(before + index + 1, total);
        }
    }
    Ok(merge(observations))
}

/// What tells one row from another.
type Key = (String, String, u64, Option<String>, Option<u64>);

/// Merges the observations of the same suite, row, size, wire and number of streams into one row each, in the order of
/// their first appearance.
#[must_use]
pub fn merge(observations: Vec<Observation>) -> Vec<Row> {
    let mut order: Vec<Key> = Vec::new();
    let mut groups: BTreeMap<Key, Vec<Observation>> = BTreeMap::new();
    for observation in observations {
        let Row { suite, row, bytes, wire, streams, .. } = observation.row.clone();
        let key = (suite, row, bytes, wire, streams);
        if !groups.contains_key(&key) {
            order.push(key.clone());
        }
        groups.entry(key).or_default().push(observation);
    }
    order.iter().filter_map(|key| groups.remove(key)).filter_map(merge_one).collect()
}

/// Fills the percentiles beyond the median, those that so many samples have.
fn fill_tail(row: &mut Row, latencies: &Latencies) {
    for (name, share, least) in [("p99_ns", 0.99, 100), ("p999_ns", 0.999, 1000)] {
        let value = if latencies.samples() < least { None } else { latencies.quantile_ns(share) };
        if value.is_some() {
            row.na.remove(name);
        } else {
            row.na.insert(name.to_owned(), format!("it takes {least} samples"));
        }
        if let Some(place) = row.figure_mut(name) {
            *place = value;
        }
    }
}

fn merge_one(group: Vec<Observation>) -> Option<Row> {
    let mut row = group.first()?.row.clone();
    row.rounds = Some(group.iter().map(|one| one.row.rounds.unwrap_or(1)).sum());
    row.samples = group.iter().map(|one| one.row.samples).sum();
    row.spread.clear();
    for name in FIGURES {
        let values: Vec<f64> = group.iter().filter_map(|one| one.row.figure(name)).collect();
        // A figure that one round lacks is a figure that the row lacks: its reason is in that round's `na`.
        let summary = if values.len() == group.len() { Summary::of(&values) } else { None };
        if let Some(place) = row.figure_mut(name) {
            *place = summary.map(|summary| if name == "max_ns" { summary.max } else { summary.median });
        }
        if let Some(summary) = summary {
            row.na.remove(name);
            if values.len() > 1 && summary.min < summary.max {
                row.spread.insert(name.to_owned(), Spread::from(&summary));
            }
        } else if let Some(reason) = group.iter().find_map(|one| one.row.na.get(name)) {
            row.na.insert(name.to_owned(), reason.clone());
        }
    }
    // What is chosen may make zero-copy sends in one round and none in another: those that had some tell.
    let said: Vec<f64> = group.iter().filter_map(|one| one.row.copied_completions).collect();
    row.copied_completions = Summary::of(&said).map(|summary| summary.median);
    if row.copied_completions.is_some() {
        row.na.remove(COMPLETIONS);
    }
    let mut samples = group.iter().map(|one| one.latencies.as_ref());
    if let Some(mut pooled) = samples.next().flatten().cloned() {
        let rest: Option<Vec<&Latencies>> = samples.collect();
        if let Some(rest) = rest {
            rest.into_iter().for_each(|one| pooled.pool(one));
            fill_tail(&mut row, &pooled);
            row.max_ns = pooled.max_ns();
        }
    }
    Some(row)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::convert::Infallible;

    use super::*;

    fn rated(name: &str, rate: f64) -> Observation {
        let mut row = Row::new("ipc", name, 8);
        row.msgs_per_s = Some(rate);
        row.explain("not part of this test").into()
    }

    #[test]
    fn contenders_take_turns_and_become_medians() {
        let order = RefCell::new(String::new());
        let mut rates = [1.0, 5.0, 3.0].into_iter();
        let mut contenders: Vec<Contender<'_, Infallible>> = vec![
            Box::new(|| {
                order.borrow_mut().push('a');
                Ok(vec![rated("a", rates.next().unwrap())])
            }),
            Box::new(|| {
                order.borrow_mut().push('b');
                Ok(vec![rated("b", 7.0)])
            }),
        ];
        let mut told = Vec::new();
        let rows = alternate(3, &mut contenders, |done, total| told.push((done, total))).unwrap();
        drop(contenders);
        assert_eq!(order.into_inner(), "ababab");
        assert_eq!(told.last(), Some(&(6, 6)));
        assert_eq!(rows.len(), 2);
        assert_eq!((rows[0].msgs_per_s, rows[0].rounds), (Some(3.0), Some(3)));
        assert_eq!(rows[0].spread["msgs_per_s"], Spread { min: 1.0, q1: 2.0, q3: 4.0, max: 5.0 });
        assert!(rows[1].spread.is_empty());
    }

    #[test]
    fn completions_are_those_of_the_rounds_that_had_some() {
        let round = |said: Option<f64>| {
            let mut one = rated("adaptive", 1.0);
            one.row.copied_completions = said;
            one.row.explain_completions("no completion came");
            one
        };
        let rows = merge(vec![round(None), round(Some(1.0)), round(Some(0.5))]);
        assert_eq!((rows[0].copied_completions, rows[0].na.get(COMPLETIONS)), (Some(0.75), None));
        let rows = merge(vec![round(None), round(None)]);
        assert_eq!(rows[0].copied_completions, None);
        assert_eq!(rows[0].na[COMPLETIONS], "no completion came");
    }

    #[test]
    fn pooled_samples_give_the_tail() {
        let round = |slow: u64| {
            let mut latencies = Latencies::of_calls();
            (0..100).for_each(|_| latencies.record_ns(10));
            latencies.record_ns(slow);
            Observation::of_latencies(Row::new("ipc", "x", 8), latencies)
        };
        let rows = merge(vec![round(1000), round(2000)]);
        assert_eq!((rows[0].p50_ns, rows[0].samples), (Some(10.0), Some(202)));
        assert!(rows[0].max_ns.unwrap() >= 1999.0);
        // Of fewer than 1000 samples the slowest is no 99.9th percentile.
        let tail = |row: &Row| (row.p999_ns, row.na.get("p999_ns").cloned());
        assert_eq!(tail(&rows[0]), (None, Some("it takes 1000 samples".to_owned())));
        assert!(rows[0].p99_ns.is_some());
        let rows = merge((0..10).map(|_| round(1000)).collect());
        assert_eq!(tail(&rows[0]), (Some(1000.0), None));
    }

    #[test]
    fn a_figure_that_one_round_lacks_keeps_its_reason() {
        let mut lacking = rated("a", 1.0);
        lacking.row.msgs_per_s = None;
        lacking.row.na.insert("msgs_per_s".to_owned(), "interrupted".to_owned());
        let rows = merge(vec![rated("a", 2.0), lacking]);
        assert_eq!(rows[0].msgs_per_s, None);
        assert_eq!(rows[0].na["msgs_per_s"], "interrupted");
    }
}
