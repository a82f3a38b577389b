//! The report: one JSON shape, `zcmi-bench/1`, for every bench of this project and for the systems it is compared with.
//!
//! Invariants, checked by [`Report::check`] and described by `docs/bench-schema.json`:
//! - a figure is either present or named in `na` with a reason, never both, and never 0 in place of "not measured";
//! - times and rates are finite and above 0; copies per byte may be 0, because there 0 is a result.
//!
//! Units: nanoseconds one way (half a round trip), messages and bytes a second, CPU seconds of both processes per
//! 10^9 delivered bytes, bytes copied per byte delivered.
//!
//! A row that stands for several rounds holds medians, with the spread over the rounds in `spread`.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::host::Host;
use crate::stats::Summary;

/// The name and version of the shape.
pub const SCHEMA: &str = "zcmi-bench/1";

/// Every figure that a row has or explains the absence of, in the order of the table and of the JSON.
pub const FIGURES: [&str; 10] = [
    "p50_ns",
    "p99_ns",
    "p999_ns",
    "max_ns",
    "msgs_per_s",
    "bytes_per_s",
    "cpu_s_per_gb",
    "copied_user_per_byte",
    "copied_kernel_per_byte",
    "cache_misses",
];

/// What rows of zero-copy sends have beside the figures, or explain the absence of: the share of completions that came
/// back as copied.
pub const COMPLETIONS: &str = "copied_completions";

/// What a bench measured, and where.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: String,
    /// The machine and the build.
    pub host: Host,
    /// The measurements.
    pub rows: Vec<Row>,
}

/// One measurement: what was run, at which size, and its figures.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// The group of measurements, `ipc` for those between two processes of one host.
    pub suite: String,
    /// What was measured; other systems carry their own names.
    pub row: String,
    /// The payload's size; 0 where nothing is carried.
    pub bytes: u64,
    /// The wire, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wire: Option<String>,
    /// How many connections were used at a time, where there are such.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub streams: Option<u64>,
    /// The congestion control in force, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub congestion: Option<String>,
    /// The share of completions of zero-copy sends that came back as copied, where there were any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copied_completions: Option<f64>,
    /// Messages for each second of the server's processor, where the server alone was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub msgs_per_server_cpu_s: Option<f64>,
    /// Memory of the server for each connection that has sent nothing yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fresh_connection_bytes: Option<f64>,
    /// The same after all have sent, and rest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rested_connection_bytes: Option<f64>,
    /// All memory of the server then, what it has before the first connection included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_bytes: Option<f64>,
    /// How often it was measured; figures are medians over these rounds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rounds: Option<u64>,
    /// How many measured times the percentiles rest on, in all rounds together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub samples: Option<u64>,
    /// Half of the samples took no longer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p50_ns: Option<f64>,
    /// 99 of 100 samples took no longer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99_ns: Option<f64>,
    /// 999 of 1000 samples took no longer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p999_ns: Option<f64>,
    /// The longest sample of all rounds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_ns: Option<f64>,
    /// Messages a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub msgs_per_s: Option<f64>,
    /// Payload bytes a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_s: Option<f64>,
    /// CPU seconds of both processes per 10^9 delivered bytes, spinning included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_s_per_gb: Option<f64>,
    /// Bytes that programs and libraries copied, per byte delivered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub copied_user_per_byte: Option<f64>,
    /// Bytes that the kernel copied, per byte delivered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub copied_kernel_per_byte: Option<f64>,
    /// Cache misses per message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_misses: Option<f64>,
    /// How the figures differed between rounds, by figure.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub spread: BTreeMap<String, Spread>,
    /// Why a figure is absent, by figure.
    #[serde(default)]
    pub na: BTreeMap<String, String>,
}

/// How one figure differed between rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spread {
    /// The lowest round.
    pub min: f64,
    /// A quarter of the rounds was lower.
    pub q1: f64,
    /// A quarter of the rounds was higher.
    pub q3: f64,
    /// The highest round.
    pub max: f64,
}

impl From<&Summary> for Spread {
    fn from(summary: &Summary) -> Self {
        Self { min: summary.min, q1: summary.q1, q3: summary.q3, max: summary.max }
    }
}

impl Row {
    /// A row without figures, to be filled and then closed by [`Row::explain`].
    #[must_use]
    pub fn new(suite: &str, row: &str, bytes: usize) -> Self {
        Self { suite: suite.to_owned(), row: row.to_owned(), bytes: bytes as u64, ..Self::default() }
    }

    /// The figure of that name, if the row has it.
    #[must_use]
    pub fn figure(&self, name: &str) -> Option<f64> {
        match name {
            "p50_ns" => self.p50_ns,
            "p99_ns" => self.p99_ns,
            "p999_ns" => self.p999_ns,
            "max_ns" => self.max_ns,
            "msgs_per_s" => self.msgs_per_s,
            "bytes_per_s" => self.bytes_per_s,
            "cpu_s_per_gb" => self.cpu_s_per_gb,
            "copied_user_per_byte" => self.copied_user_per_byte,
            "copied_kernel_per_byte" => self.copied_kernel_per_byte,
            "cache_misses" => self.cache_misses,
            _ => None,
        }
    }

    /// The place of the figure of that name; nothing for a name that is none of [`FIGURES`].
    pub fn figure_mut(&mut self, name: &str) -> Option<&mut Option<f64>> {
        Some(match name {
            "p50_ns" => &mut self.p50_ns,
            "p99_ns" => &mut self.p99_ns,
            "p999_ns" => &mut self.p999_ns,
            "max_ns" => &mut self.max_ns,
            "msgs_per_s" => &mut self.msgs_per_s,
            "bytes_per_s" => &mut self.bytes_per_s,
            "cpu_s_per_gb" => &mut self.cpu_s_per_gb,
            "copied_user_per_byte" => &mut self.copied_user_per_byte,
            "copied_kernel_per_byte" => &mut self.copied_kernel_per_byte,
            "cache_misses" => &mut self.cache_misses,
            _ => return None,
        })
    }

    /// Gives `reason` for every figure that is absent and has none yet.
    #[must_use]
    pub fn explain(mut self, reason: &str) -> Self {
        for name in FIGURES {
            if self.figure(name).is_none() && !self.na.contains_key(name) {
                let reason = if name == "cache_misses" { "not counted: needs hardware counters" } else { reason };
                self.na.insert(name.to_owned(), reason.to_owned());
            }
        }
        self
    }

    /// Gives `reason` for the absence of [`COMPLETIONS`], if it is absent and has none yet.
    pub fn explain_completions(&mut self, reason: &str) {
        if self.copied_completions.is_none() {
            self.na.entry(COMPLETIONS.to_owned()).or_insert_with(|| reason.to_owned());
        }
    }

    fn check(&self, index: usize) -> Result<(), ReportError> {
        let wrong = |name: &str, what: &'static str| {
            Err(ReportError::Row { index, row: self.row.clone(), figure: name.to_owned(), what })
        };
        for name in FIGURES {
            match (self.figure(name), self.na.get(name)) {
                (None, None) => return wrong(name, "is absent without a reason in `na`"),
                (Some(_), Some(_)) => return wrong(name, "is present and also explained away in `na`"),
                (None, Some(reason)) if reason.is_empty() => return wrong(name, "has an empty reason in `na`"),
                (Some(value), None) if !value.is_finite() => return wrong(name, "is not finite"),
                (Some(value), None) if value < 0.0 => return wrong(name, "is below 0"),
                (Some(value), None) if value == 0.0 && !name.starts_with("copied_") && name != "cache_misses" => {
                    return wrong(name, "is 0, which stands for nothing measured");
                }
                _ => {}
            }
        }
        match (self.copied_completions, self.na.get(COMPLETIONS)) {
            (Some(_), Some(_)) => return wrong(COMPLETIONS, "is present and also explained away in `na`"),
            (Some(share), None) if !(0.0..=1.0).contains(&share) => return wrong(COMPLETIONS, "is no share"),
            (None, Some(reason)) if reason.is_empty() => return wrong(COMPLETIONS, "has an empty reason in `na`"),
            _ => {}
        }
        let named = |name: &&String| !FIGURES.contains(&name.as_str());
        let odd = self.na.keys().filter(|name| *name != COMPLETIONS).find(named);
        if let Some(name) = odd.or_else(|| self.spread.keys().find(named)) {
            return wrong(name, "is not a figure");
        }
        Ok(())
    }
}

impl Report {
    /// A report of this machine and these rows.
    #[must_use]
    pub fn new(host: Host, rows: Vec<Row>) -> Self {
        Self { schema: SCHEMA.to_owned(), host, rows }
    }

    /// Whether the report keeps the invariants of its shape.
    ///
    /// # Errors
    /// The first figure that breaks one, or a shape of another name.
    pub fn check(&self) -> Result<(), ReportError> {
        if self.schema != SCHEMA {
            return Err(ReportError::Schema { found: self.schema.clone() });
        }
        self.rows.iter().enumerate().try_for_each(|(index, row)| row.check(index))
    }

    /// The report as JSON, indented, with a line feed at its end.
    ///
    /// # Errors
    /// A report that breaks its invariants is not written.
    pub fn to_json(&self) -> Result<String, ReportError> {
        self.check()?;
        let mut text = serde_json::to_string_pretty(self).map_err(ReportError::Json)?;
        text.push('\n');
        Ok(text)
    }

    /// Reads a report back.
    ///
    /// # Errors
    /// Text that is not a report, or a report that breaks its invariants.
    pub fn from_json(text: &str) -> Result<Self, ReportError> {
        let report: Self = serde_json::from_str(text).map_err(ReportError::Json)?;
        report.check()?;
        Ok(report)
    }

    /// Writes the report to a file.
    ///
    /// # Errors
    /// As [`Report::to_json`], and whatever hinders the file.
    pub fn write(&self, path: &Path) -> Result<(), ReportError> {
        let text = self.to_json()?;
        let file = |source| ReportError::File { path: path.display().to_string(), source };
        let mut out = fs::File::create(path).map_err(file)?;
        out.write_all(text.as_bytes()).map_err(file)
    }

    /// Reads a report from a file.
    ///
    /// # Errors
    /// As [`Report::from_json`], and whatever hinders the file.
    pub fn read(path: &Path) -> Result<Self, ReportError> {
        let text = fs::read_to_string(path)
            .map_err(|source| ReportError::File { path: path.display().to_string(), source })?;
        Self::from_json(&text)
    }
}

/// A document of another shape than a report, which has no rows: with the name of its shape, the machine, and its own
/// members. It is indented, with a line feed at its end.
///
/// # Errors
/// Content that is no object of JSON.
pub fn document<C: Serialize>(schema: &str, host: &Host, content: &C) -> Result<String, ReportError> {
    #[derive(Serialize)]
    struct Document<'a, C> {
        schema: &'a str,
        host: &'a Host,
        #[serde(flatten)]
        content: &'a C,
    }
    let mut text = serde_json::to_string_pretty(&Document { schema, host, content }).map_err(ReportError::Json)?;
    text.push('\n');
    Ok(text)
}

/// Why a report is not one, or cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// Another shape, or another version of it.
    #[error("the report's shape is {found:?}, this program reads {SCHEMA:?}")]
    Schema {
        /// The name found.
        found: String,
    },
    /// A row breaks an invariant.
    #[error("row {index} ({row}): {figure} {what}")]
    Row {
        /// Its place in the report.
        index: usize,
        /// Its name.
        row: String,
        /// The figure concerned.
        figure: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Not JSON, or not of this shape.
    #[error("not a report of shape {SCHEMA}")]
    Json(#[source] serde_json::Error),
    /// The file.
    #[error("{path}: cannot be read or written")]
    File {
        /// Its path.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> Row {
        let mut row = Row::new("ipc", "pubsub", 64);
        row.p50_ns = Some(70.5);
        row.copied_user_per_byte = Some(0.0);
        row.explain("a latency row")
    }

    #[test]
    fn a_report_reads_back_as_it_was_written() {
        let report = Report::new(Host::here(), vec![row()]);
        let text = report.to_json().unwrap();
        assert_eq!(Report::from_json(&text).unwrap(), report);
    }

    #[test]
    fn absent_figures_are_omitted_and_explained() {
        let value = serde_json::to_value(row()).unwrap();
        assert!(value.get("p99_ns").is_none());
        assert_eq!(value["na"]["p99_ns"], "a latency row");
        assert_eq!(value["copied_user_per_byte"], 0.0);
        assert!(value["na"].get("p50_ns").is_none());
    }

    #[test]
    fn a_figure_without_value_and_reason_is_refused() {
        let mut broken = row();
        broken.na.remove("p99_ns");
        let refused = Report::new(Host::here(), vec![broken]).to_json().unwrap_err();
        assert_eq!(refused.to_string(), "row 0 (pubsub): p99_ns is absent without a reason in `na`");
    }

    #[test]
    fn completions_are_a_share_or_have_a_reason_and_never_both() {
        let check = |row: &Row| Report::new(Host::here(), vec![row.clone()]).check();
        let mut row = row();
        row.explain_completions("no completion tells of sends by this path");
        assert!(check(&row).is_ok() && row.na.contains_key(COMPLETIONS));
        row.copied_completions = Some(1.0);
        assert!(check(&row).unwrap_err().to_string().contains("copied_completions is present and also"));
        row.na.remove(COMPLETIONS);
        assert!(check(&row).is_ok());
        row.explain_completions("there are some");
        assert!(!row.na.contains_key(COMPLETIONS), "a reason for what is there");
        row.copied_completions = Some(1.5);
        assert!(check(&row).unwrap_err().to_string().contains("copied_completions is no share"));
    }

    #[test]
    fn zero_never_stands_for_a_time() {
        let mut broken = row();
        broken.p50_ns = Some(0.0);
        let refused = Report::new(Host::here(), vec![broken]).check().unwrap_err();
        assert!(refused.to_string().contains("p50_ns is 0"), "{refused}");
    }

    #[test]
    fn another_shape_is_refused() {
        let mut report = Report::new(Host::here(), vec![]);
        report.schema = "zcmi-bench/2".to_owned();
        assert!(matches!(report.check(), Err(ReportError::Schema { .. })));
        assert!(Report::from_json("{}").is_err());
    }

    #[test]
    fn every_figure_has_a_place() {
        let mut row = Row::new("ipc", "x", 0);
        for name in FIGURES {
            *row.figure_mut(name).unwrap() = Some(1.0);
            assert_eq!(row.figure(name), Some(1.0), "{name}");
        }
        assert!(row.figure_mut("other").is_none());
    }
}
