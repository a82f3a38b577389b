//! What was checked: how many checks passed, failed and were skipped, with the names of those that did not pass.

use std::fmt;

/// The counts of a run and the names behind them.
#[derive(Default)]
pub(crate) struct Tally {
    passed: usize,
    failed: Vec<String>,
    skipped: Vec<String>,
}

impl Tally {
    /// Counts `count` checks that passed.
    pub(crate) fn pass(&mut self, count: usize) {
        self.passed += count;
    }

    /// Counts one check that failed.
    pub(crate) fn fail(&mut self, name: impl Into<String>) {
        self.failed.push(name.into());
    }

    /// Adds to a failure, of which this is the name, what is known of its cause.
    pub(crate) fn explain(&mut self, name: &str, cause: &str) {
        let known =
            |failed: &str| failed.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with(": "));
        if let Some(failed) = self.failed.iter_mut().rfind(|failed| known(failed)) {
            failed.push_str(cause);
        }
    }

    /// Counts one check that could not be made, and why.
    pub(crate) fn skip(&mut self, reason: impl Into<String>) {
        self.skipped.push(reason.into());
    }

    /// Counts one check by what it said.
    pub(crate) fn check(&mut self, name: &str, passed: bool) {
        if passed {
            self.pass(1);
        } else {
            self.fail(name);
        }
    }

    /// Adds the counts of `other`.
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed.extend(other.failed);
        self.skipped.extend(other.skipped);
    }

    /// Whether nothing failed. A run that checked nothing is not clean.
    pub(crate) fn is_clean(&self) -> bool {
        self.failed.is_empty() && self.passed > 0
    }

    /// The names of the checks that failed.
    pub(crate) fn failures(&self) -> &[String] {
        &self.failed
    }

    /// The reasons of the checks that could not be made.
    pub(crate) fn skips(&self) -> &[String] {
        &self.skipped
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed.len(), self.skipped.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tally_prints_its_counts_in_the_agreed_form() {
        let mut tally = Tally::default();
        tally.pass(3);
        tally.check("good", true);
        tally.check("bad", false);
        tally.skip("no such device");
        assert_eq!(tally.to_string(), "4 passed, 1 failed, 1 skipped");
        assert_eq!(tally.failures(), ["bad"]);
        assert!(!tally.is_clean());
    }

    #[test]
    fn a_run_that_checked_nothing_is_not_clean() {
        assert!(!Tally::default().is_clean());
    }
}
