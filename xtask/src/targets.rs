//! What the figures of a suite are to be, and whether they are.
//!
//! A figure is a ratio (or a difference) of two values of the same turn, so that what the machine does meanwhile meets
//! both. It is compared with its target by the median of the turns; the middle half of them is shown beside it.

mod net;

use core::fmt;

use serde_json::Value;

/// The documents of one turn: of `zcmi bench` and of the program with the other systems.
#[derive(Debug)]
pub(crate) struct Turn {
    pub(crate) ours: Value,
    pub(crate) theirs: Value,
}

impl Turn {
    /// A field of a row of the turn, wherever it was measured.
    fn value(&self, row: &str, bytes: u64, field: &str) -> Option<f64> {
        let rows = [&self.ours, &self.theirs].map(|document| document["rows"].as_array());
        let mut rows = rows.into_iter().flatten().flatten();
        rows.find(|found| found["row"] == row && found["bytes"] == bytes)?.get(field)?.as_f64()
    }
}

/// How a figure is bounded.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

impl Bound {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(most) => value <= most,
            Self::AtLeast(least) => value >= least,
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(most) => write!(f, "at most {most}"),
            Self::AtLeast(least) => write!(f, "at least {least}"),
        }
    }
}

/// One value of a row: the row, the bytes of its messages, the field.
type Place = (&'static str, u64, &'static str);

/// A figure with its target.
#[derive(Debug)]
struct Target {
    over: Place,
    under: Place,
    bound: Bound,
    /// Met as well if the difference is below this, in the field's unit.
    or_difference: Option<f64>,
}

impl Target {
    fn new(over: Place, under: Place, bound: Bound) -> Self {
        Self { over, under, bound, or_difference: None }
    }

    /// The figure and the difference in each turn that has both values.
    fn figures(&self, turns: &[Turn]) -> Vec<(f64, f64)> {
        let both = |turn: &Turn| {
            let ((row, bytes, field), (other, other_bytes, other_field)) = (self.over, self.under);
            let (over, under) = (turn.value(row, bytes, field)?, turn.value(other, other_bytes, other_field)?);
            (under > 0.0).then(|| (over / under, over - under))
        };
        turns.iter().filter_map(both).collect()
    }

    /// Whether it was met, and a line that says what came out.
    fn line(&self, turns: &[Turn]) -> (bool, String) {
        let ((row, bytes, field), (other, other_bytes, _)) = (self.over, self.under);
        let of = if bytes == other_bytes { other.to_owned() } else { format!("{other} of {other_bytes} B") };
        let name = format!("{row} {bytes} B {field} / {of}");
        let (mut ratios, mut differences): (Vec<f64>, Vec<f64>) = self.figures(turns).into_iter().unzip();
        if ratios.is_empty() {
            return (false, format!("{name:<44} not measured"));
        }
        let [low, median, high] = quartiles(&mut ratios);
        let [.., difference, _] = quartiles(&mut differences);
        let met = self.bound.holds(median) || self.or_difference.is_some_and(|most| difference < most);
        let verdict = match (met, self.bound.holds(low) || self.bound.holds(high)) {
            (true, _) => "met",
            (false, true) => "missed, within the spread",
            (false, false) => "MISSED",
        };
        let bound = self.bound;
        let or = self.or_difference.map_or(String::new(), |most| format!(" (or below {most}, it is {difference:.1})"));
        let turns = ratios.len();
        (met, format!("{name:<44} {median:>7.3}  {low:.3} to {high:.3} in {turns} turns, {bound}{or}: {verdict}"))
    }
}

/// The quartiles and the median between them.
fn quartiles(values: &mut [f64]) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    let last = values.len() - 1;
    let median = (values[last / 2] + values[values.len() / 2]) / 2.0;
    [values[last / 4], median, values[last - last / 4]]
}

/// The targets of the suite `ipc`.
fn ipc() -> Vec<Target> {
    use Bound::{AtLeast, AtMost};
    const P50: &str = "p50_ns";
    const P99: &str = "p99_ns";
    const RATE: &str = "msgs_per_s";
    let mut targets = Vec::new();
    for bytes in [8, 40] {
        targets.push(Target::new(("pubsub", bytes, P50), ("floor", 8, P50), AtMost(1.5)));
        targets.push(Target::new(("pubsub", bytes, P50), ("iceoryx2", bytes, P50), AtMost(0.4)));
        targets.push(Target::new(("pubsub", bytes, P99), ("iceoryx2", bytes, P99), AtMost(0.5)));
    }
    for bytes in [64, 1 << 10, 8 << 10, 64 << 10, 1 << 20, 4 << 20] {
        targets.push(Target::new(("pubsub", bytes, P50), ("floor", 8, P50), AtMost(2.5)));
        targets.push(Target::new(("pubsub", bytes, P50), ("iceoryx2", bytes, P50), AtMost(0.5)));
    }
    let growth = Target::new(("pubsub", 4 << 20, P50), ("pubsub", 64, P50), AtMost(1.1));
    targets.push(Target { or_difference: Some(20.0), ..growth });
    for bytes in [8, 40, 64, 1 << 10, 8 << 10, 64 << 10, 1 << 20, 4 << 20] {
        targets.push(Target::new(("stream", bytes, RATE), ("bare", bytes, RATE), AtLeast(0.7)));
    }
    for bytes in [8, 40, 64] {
        targets.push(Target::new(("stream", bytes, RATE), ("iceoryx2", bytes, RATE), AtLeast(8.0)));
    }
    targets.push(Target::new(("stream", 4 << 20, RATE), ("threads", 4 << 20, RATE), AtLeast(0.9)));
    let cpu = "cpu_s_per_gb";
    targets.push(Target::new(("readers-64", 8, cpu), ("readers-1", 8, cpu), AtMost(1.1)));
    targets
}

/// The targets of the suite `send`, for the size of file that was sent.
fn send(turns: &[Turn]) -> Vec<Target> {
    let bytes = turns.first().and_then(|turn| turn.theirs["rows"][0]["bytes"].as_u64()).unwrap_or(0);
    let cpu = "cpu_s_per_gb";
    [("zcmi-null", "iperf3-z"), ("zcmi-file", "iperf3-z-file")]
        .map(|(ours, theirs)| Target::new((ours, bytes, cpu), (theirs, bytes, cpu), Bound::AtMost(1.05)))
        .into()
}

/// The lines that compare a suite's figures with their targets, and how many were not met, be it for want of a row.
///
/// What a bench does not measure is not here: instructions (`cargo xtask xray`), descriptors, and the number of
/// samples.
pub(crate) fn compare(suite: &str, turns: &[Turn]) -> (Vec<String>, usize) {
    let lines: Vec<(bool, String)> = match suite {
        "ipc" => ipc().iter().map(|target| target.line(turns)).collect(),
        "net" => net::lines(turns),
        "send" => send(turns).iter().map(|target| target.line(turns)).collect(),
        _ => Vec::new(),
    };
    let missed = lines.iter().filter(|(met, _)| !met).count();
    (lines.into_iter().map(|(_, line)| line).collect(), missed)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn turn(floor: f64, ours: f64, large: f64, theirs: f64) -> Turn {
        let row = |row: &str, bytes: u64, p50: f64| json!({ "row": row, "bytes": bytes, "p50_ns": p50 });
        Turn {
            ours: json!({ "rows": [row("floor", 8, floor), row("pubsub", 64, ours), row("pubsub", 4 << 20, large)] }),
            theirs: json!({ "rows": [row("iceoryx2", 64, theirs)] }),
        }
    }

    #[test]
    fn each_turn_is_compared_with_itself() {
        // The machine is three times as slow in every second turn; the ratios do not see it.
        let turns: Vec<Turn> = (0..10)
            .map(|n| f64::from(1 + n % 2 * 2))
            .map(|k| turn(80.0 * k, 160.0 * k, 170.0 * k, 400.0 * k))
            .collect();
        let (lines, missed) = compare("ipc", &turns);
        let measured: Vec<&String> = lines.iter().filter(|line| !line.ends_with(" not measured")).collect();
        // What has no row is not met either.
        assert_eq!((measured.len(), missed), (4, lines.len() - 4), "{lines:#?}");
        let [first, second, ..] = measured[..] else { panic!("{measured:?}") };
        assert!(first.contains("pubsub 64 B p50_ns / floor of 8 B") && first.contains("  2.000  2.000 to 2.000"));
        assert!(second.contains("  0.400  ") && second.ends_with("met"), "{second}");
    }

    #[test]
    fn a_target_is_missed_by_the_median_and_the_spread_is_told() {
        let slow = |count: usize| {
            let turns: Vec<Turn> =
                (0..10).map(|n| turn(80.0, if n < count { 250.0 } else { 160.0 }, 160.0, 1e3)).collect();
            let (lines, _) = compare("ipc", &turns);
            let line = lines.into_iter().find(|line| line.contains("pubsub 64 B p50_ns / floor")).expect("a line");
            line.rsplit(": ").next().expect("a verdict").to_owned()
        };
        assert_eq!([4, 6, 10].map(slow), ["met", "missed, within the spread", "MISSED"]);
    }

    #[test]
    fn a_sent_file_is_compared_with_iperf3_of_the_same_size() {
        let row = |row: &str, cpu: f64| json!({ "row": row, "bytes": 7, "cpu_s_per_gb": cpu });
        let rows = [row("iperf3-z", 0.2), row("zcmi-null", 0.3), row("iperf3-z-file", 0.5), row("zcmi-file", 0.4)];
        let (lines, missed) = compare("send", &[Turn { ours: json!({ "rows": [] }), theirs: json!({ "rows": rows }) }]);
        assert_eq!((lines.len(), missed), (2, 1));
        assert!(lines[0].contains("zcmi-null 7 B") && lines[0].ends_with("MISSED"), "{lines:?}");
        assert!(lines[1].contains("  0.800  ") && lines[1].ends_with("met"), "{lines:?}");
    }

    #[test]
    fn growth_is_allowed_in_parts_or_in_nanoseconds() {
        let verdict = |small: f64, large: f64| {
            let turns = [turn(large, small, large, 1e4)];
            compare("ipc", &turns).0.into_iter().find(|line| line.contains("/ pubsub")).expect("a line")
        };
        assert!(verdict(100.0, 119.0).ends_with("it is 19.0): met"));
        assert!(verdict(1000.0, 1090.0).ends_with("it is 90.0): met"));
        assert!(verdict(100.0, 121.0).ends_with("it is 21.0): MISSED"));
    }
}
