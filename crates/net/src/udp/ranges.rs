//! Sets of numbers that come mostly in order: a few ranges.

use std::collections::VecDeque;

/// Disjoint ranges, ascending, with at least one number between any two of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ranges(VecDeque<(u64, u64)>);

impl Ranges {
    /// How many ranges there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// How many numbers there are.
    pub(crate) fn total(&self) -> u64 {
        self.0.iter().map(|(begin, end)| end - begin).sum()
    }

    /// The ranges, each with the number behind its last, the highest first.
    pub(crate) fn newest_first(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0.iter().rev().copied()
    }

    /// Forgets the two lowest ranges by making them one: what lies between counts as contained.
    pub(crate) fn join_lowest(&mut self) {
        if let Some((begin, _)) = self.0.pop_front() {
            match self.0.front_mut() {
                Some(next) => next.0 = begin,
                None => self.0.push_front((begin, begin)),
            }
        }
    }

    /// The first range that ends behind `number`.
    fn place(&self, number: u64) -> usize {
        match self.0.back() {
            // What is new is mostly the highest.
            Some(&(begin, end)) if number >= begin => self.0.len() - usize::from(number < end),
            _ => self.0.partition_point(|&(_, end)| end <= number),
        }
    }

    /// Whether the number is contained.
    pub(crate) fn contains(&self, number: u64) -> bool {
        self.0.get(self.place(number)).is_some_and(|&(begin, _)| begin <= number)
    }

    /// Whether all of `begin..end` is contained.
    pub(crate) fn covers(&self, begin: u64, end: u64) -> bool {
        begin >= end || self.0.get(self.place(begin)).is_some_and(|&(from, to)| from <= begin && end <= to)
    }

    /// Where the first range behind `number` begins.
    pub(crate) fn next_begin(&self, number: u64) -> Option<u64> {
        let at = self.place(number);
        self.0.range(at..).map(|&(begin, _)| begin).find(|&begin| begin >= number)
    }

    /// Adds `begin..end`; how many of these numbers are new.
    pub(crate) fn insert(&mut self, begin: u64, end: u64) -> u64 {
        if begin >= end {
            return 0;
        }
        // The first that touches the new range, and the one behind the last that does.
        let first = match self.0.back() {
            Some(&(_, last)) if last < begin => self.0.len(),
            Some(&(from, _)) if from <= begin => self.0.len() - 1,
            _ => self.0.partition_point(|&(_, to)| to < begin),
        };
        let (mut from, mut to, mut known) = (begin, end, 0);
        let mut behind = first;
        while let Some(&(low, high)) = self.0.get(behind) {
            if low > end {
                break;
            }
            known += high.min(end).saturating_sub(low.max(begin));
            (from, to) = (from.min(low), to.max(high));
            behind += 1;
        }
        if behind == first {
            self.0.insert(first, (from, to));
        } else {
            self.0[first] = (from, to);
            self.0.drain(first + 1..behind);
        }
        end - begin - known
    }

    /// Removes everything below `number`.
    pub(crate) fn remove_below(&mut self, number: u64) {
        while let Some(first) = self.0.front_mut() {
            if first.1 > number {
                first.0 = first.0.max(number);
                break;
            }
            self.0.pop_front();
        }
    }

    /// The number behind the range that begins at or below `number` and contains it, or `number` itself.
    pub(crate) fn end_from(&self, number: u64) -> u64 {
        self.0.get(self.place(number)).filter(|&&(begin, _)| begin <= number).map_or(number, |&(_, end)| end)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn ranges_agree_with_a_set_of_numbers(steps in prop::collection::vec((0..90_u64, 0..20_u64), 1..60)) {
            let (mut ranges, mut oracle) = (Ranges::default(), BTreeSet::new());
            for (begin, count) in steps {
                let new = (begin..begin + count).filter(|&number| oracle.insert(number)).count() as u64;
                prop_assert_eq!(ranges.insert(begin, begin + count), new);
                prop_assert_eq!(ranges.covers(begin, begin + count), true);
                for number in 0..112 {
                    prop_assert_eq!(ranges.contains(number), oracle.contains(&number));
                    let end = (number..).find(|at| !oracle.contains(at)).unwrap_or(0);
                    prop_assert_eq!(ranges.end_from(number), end);
                    let whole = ranges.covers(number, number + 5);
                    prop_assert_eq!(whole, (number..number + 5).all(|at| oracle.contains(&at)));
                    let begins = |at: &u64| oracle.contains(at) && (*at == 0 || !oracle.contains(&(at - 1)));
                    let next = (number..120).find(begins);
                    prop_assert_eq!(ranges.next_begin(number), next);
                }
            }
            let listed: Vec<u64> = ranges.newest_first().flat_map(|(begin, end)| (begin..end).rev()).collect();
            prop_assert!(listed.iter().eq(oracle.iter().rev()));
            ranges.remove_below(40);
            prop_assert!((0..112).all(|at| ranges.contains(at) == (at >= 40 && oracle.contains(&at))));
        }
    }

    #[test]
    fn joining_the_lowest_fills_what_lies_between() {
        let mut ranges = Ranges::default();
        for begin in [0, 10, 20] {
            ranges.insert(begin, begin + 2);
        }
        ranges.join_lowest();
        assert_eq!(ranges.newest_first().collect::<Vec<_>>(), [(20, 22), (0, 12)]);
    }
}
