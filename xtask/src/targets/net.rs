//! The targets of the suites `net` and `connections`.
//!
//! Where a figure is compared with the best of several rows, that is the row with the best median over all turns, so
//! that a single lucky turn does not choose it. Processor time for each byte is met too where its middle half overlaps
//! that of the other; everything else has to keep its bound.

use serde_json::Value;

use super::{Bound, Turn, quartiles};

/// The wires on which messages are compared with streams.
const WIRES: [&str; 3] = ["lo", "veth", "unix"];
/// From 64 KiB on.
const LARGE: [u64; 7] = [64 << 10, 128 << 10, 256 << 10, 512 << 10, 1 << 20, 2 << 20, 4 << 20];
/// Streams without messages that a message is compared with.
const STREAMS: [&str; 9] = [
    "iperf3",
    "iperf3-z",
    "c-write",
    "c-zerocopy",
    "c-uring-send",
    "c-uring-zc",
    "c-uring-fixed",
    "c-sendfile",
    "c-splice",
];

/// The figure that is met where it cannot be told from the other's.
const CPU: &str = "cpu_s_per_gb";

/// Where values are found: a row on a wire, over one connection unless it is of the suite `connections`.
#[derive(Clone, Copy)]
struct Place {
    suite: &'static str,
    wire: &'static str,
    bytes: u64,
    field: &'static str,
}

impl Place {
    /// The value of a row in a turn.
    fn value(self, turn: &Turn, row: &str) -> Option<f64> {
        let rows = [&turn.ours, &turn.theirs].map(|document| document["rows"].as_array());
        let is_it = |found: &&Value| {
            found["suite"] == self.suite
                && found["row"] == row
                && found["wire"] == self.wire
                && found["bytes"] == self.bytes
                && (self.suite != "net" || found["streams"] == 1)
        };
        rows.into_iter().flatten().flatten().find(is_it)?.get(self.field)?.as_f64()
    }

    fn values(self, turns: &[Turn], row: &str) -> Vec<f64> {
        turns.iter().filter_map(|turn| self.value(turn, row)).collect()
    }

    /// Whether `row` keeps its bound against the best of `others`, and a line that says what came out.
    fn line(self, turns: &[Turn], row: &str, others: &[&str], bound: Bound) -> (bool, String) {
        let Self { wire, bytes, field, .. } = self;
        let name = |other: &str| format!("{row} {wire} {bytes} B {field} / {other}");
        let lower_is_better = matches!(bound, Bound::AtMost(_));
        let median = |other: &&str| {
            let mut values = self.values(turns, other);
            if values.is_empty() { None } else { Some(quartiles(&mut values)[1]) }
        };
        let mut there: Vec<(f64, &str)> = others.iter().filter_map(|other| Some((median(other)?, *other))).collect();
        there.sort_by(|one, two| one.0.total_cmp(&two.0));
        let best = if lower_is_better { there.first() } else { there.last() };
        let Some(&(_, best)) = best else {
            return (false, format!("{:<60} na: {} not measured", name("?"), others.join(", ")));
        };
        let both = |turn: &Turn| Some(self.value(turn, row)? / self.value(turn, best).filter(|value| *value > 0.0)?);
        let mut ratios: Vec<f64> = turns.iter().filter_map(both).collect();
        if ratios.is_empty() {
            return (false, format!("{:<60} na: {row} not measured", name(best)));
        }
        let [low, middle, high] = quartiles(&mut ratios);
        let [our_low, _, our_high] = quartiles(&mut self.values(turns, row));
        let [their_low, _, their_high] = quartiles(&mut self.values(turns, best));
        // One turn has no spread that could overlap.
        let may_overlap = self.field == CPU && ratios.len() > 1;
        let overlap = may_overlap && our_low <= their_high && their_low <= our_high;
        let met = bound.holds(middle) || overlap;
        let verdict = match (bound.holds(middle), overlap) {
            (true, _) => "met",
            (false, true) => "met, overlapping",
            (false, false) => "MISSED",
        };
        let turns = ratios.len();
        let line =
            format!("{:<60} {middle:>7.3}  {low:.3} to {high:.3} in {turns} turns, {bound}: {verdict}", name(best));
        (met, line)
    }

    /// Whether the values of `row` alone keep a bound.
    fn alone(self, turns: &[Turn], row: &str, bound: Bound) -> (bool, String) {
        let name = format!("{row} {} {} B {}", self.wire, self.bytes, self.field);
        let mut values = self.values(turns, row);
        if values.is_empty() {
            return (false, format!("{name:<60} na: not measured"));
        }
        let [low, middle, high] = quartiles(&mut values);
        let (met, turns) = (bound.holds(middle), values.len());
        let verdict = if met { "met" } else { "MISSED" };
        (met, format!("{name:<60} {middle:>7.0}  {low:.0} to {high:.0} in {turns} turns, {bound}: {verdict}"))
    }
}

/// All lines, with whether they are met.
pub(super) fn lines(turns: &[Turn]) -> Vec<(bool, String)> {
    let mut lines = Vec::new();
    let net = |wire, bytes, field| Place { suite: "net", wire, bytes, field };
    for wire in WIRES {
        for bytes in LARGE {
            lines.push(net(wire, bytes, CPU).line(turns, "adaptive", &STREAMS, Bound::AtMost(1.03)));
        }
    }
    for wire in WIRES {
        for (field, most) in [("p50_ns", 1.05), ("p999_ns", 1.2)] {
            lines.push(net(wire, 64, field).line(turns, "adaptive", &["c-round-trip"], Bound::AtMost(most)));
        }
    }
    for wire in ["lo", "veth"] {
        for row in ["udp", "udp-unreliable"] {
            lines.push(net(wire, 2 << 20, "bytes_per_s").line(turns, row, &["c-udp"], Bound::AtLeast(0.9)));
        }
    }
    let many = |field| Place { suite: "connections", wire: "lo", bytes: 1 << 10, field };
    lines.push(many("msgs_per_server_cpu_s").line(turns, "zcmi", &["tokio-echo"], Bound::AtLeast(1.3)));
    lines.push(many("fresh_connection_bytes").alone(turns, "zcmi", Bound::AtMost(4096.0)));
    lines.push(many("rested_connection_bytes").alone(turns, "zcmi", Bound::AtMost(4096.0)));
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn turn(adaptive: f64, write: f64, sendfile: f64) -> Turn {
        let row = |row: &str, cpu: f64| {
            let (suite, wire, bytes, streams) = ("net", "lo", 65536, 1);
            json!({ "suite": suite, "row": row, "wire": wire, "bytes": bytes, "streams": streams, "cpu_s_per_gb": cpu })
        };
        let mut many = row("c-sendfile", 0.01);
        many["streams"] = json!(8);
        Turn {
            ours: json!({ "rows": [row("adaptive", adaptive)] }),
            theirs: json!({ "rows": [many, row("c-write", write), row("c-sendfile", sendfile)] }),
        }
    }

    fn line(turns: &[Turn]) -> (bool, String) {
        lines(turns).into_iter().find(|(_, line)| line.starts_with("adaptive lo 65536 B")).expect("a line")
    }

    #[test]
    fn the_best_row_by_its_median_is_compared_with() {
        // Once `write` was lucky; `sendfile` is the better one.
        let turns = [turn(0.21, 0.05, 0.2), turn(0.2, 0.3, 0.2), turn(0.22, 0.3, 0.2)];
        let (met, line) = line(&turns);
        assert!(
            line.contains("/ c-sendfile") && line.contains("  1.050  ") && line.ends_with("met, overlapping"),
            "{line}"
        );
        assert!(met);
    }

    #[test]
    fn what_costs_more_in_every_turn_is_missed_and_what_is_absent_is_na() {
        let turns = [turn(0.3, 0.3, 0.2), turn(0.31, 0.3, 0.2)];
        let (met, line) = line(&turns);
        assert!(!met && line.ends_with("at most 1.03: MISSED"), "{line}");
        let absent: Vec<_> = lines(&turns).into_iter().filter(|(_, line)| line.contains(" na: ")).collect();
        assert!(absent.iter().all(|(met, _)| !met));
        assert!(absent.iter().any(|(_, line)| line.starts_with("udp lo ")), "{absent:#?}");
    }

    #[test]
    fn requests_that_overlap_those_of_the_other_and_are_too_few_are_missed() {
        let row = |row: &str, rate: f64| {
            let (suite, wire, bytes) = ("connections", "lo", 1024);
            json!({ "suite": suite, "row": row, "wire": wire, "bytes": bytes, "msgs_per_server_cpu_s": rate })
        };
        let turn = |ours: f64, theirs: f64| Turn {
            ours: json!({ "rows": [row("zcmi", ours)] }),
            theirs: json!({ "rows": [row("tokio-echo", theirs)] }),
        };
        let of = |turns: &[Turn]| lines(turns).into_iter().find(|(_, line)| line.starts_with("zcmi lo 1024 B msgs"));
        let (met, line) = of(&[turn(40.0, 50.0), turn(60.0, 50.0), turn(50.0, 40.0)]).expect("a line");
        assert!(!met && line.ends_with("at least 1.3: MISSED"), "{line}");
        let (met, line) = of(&[turn(70.0, 50.0), turn(71.0, 50.0)]).expect("a line");
        assert!(met, "{line}");
    }
}
