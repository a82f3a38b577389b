//! A report for people: one line a row, figures with units, a dash where a figure is absent.

use std::collections::{BTreeMap, BTreeSet};

use comfy_table::{CellAlignment, Table, presets};

use crate::report::{COMPLETIONS, Report, Row};

/// Rows without figures that are named with a reason that many have.
const NAMED: usize = 4;

/// The table of a report, with a line about the host above and the reasons for dashes below it.
#[must_use]
pub fn render(report: &Report) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let completions = report.rows.iter().any(tells_of_completions);
    let mut header =
        vec!["row", "wire", "bytes", "p50", "p99", "p99.9", "max", "messages/s", "bytes/s", "CPU s/GB", "copies/byte"];
    header.extend(completions.then_some("said copied"));
    table.set_header(header);
    for row in &report.rows {
        let mut cells = cells(row).to_vec();
        cells.extend(completions.then(|| said_copied(row)));
        table.add_row(cells);
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let host = &report.host;
    let cpu = host.cpu.as_deref().unwrap_or("unknown processor");
    let mut text = format!(
        "{cpu}, {} cores, Linux {}, {}; one reading of the clock costs {}\n{table}\n",
        host.cores,
        host.kernel,
        host.date,
        time(Some(host.clock_ns)),
    );
    let congestion: BTreeSet<&str> = report.rows.iter().filter_map(|row| row.congestion.as_deref()).collect();
    if !congestion.is_empty() {
        text += &format!("congestion control: {}\n", congestion.into_iter().collect::<Vec<_>>().join("; "));
    }
    let is_empty = |row: &&Row| row.p50_ns.is_none() && row.bytes_per_s.is_none();
    let empty = report.rows.iter().filter(is_empty);
    text += &by_reason("not measured", empty, |row| row.na.get("bytes_per_s").or_else(|| row.na.get("p50_ns")));
    if completions {
        text += "said copied: the share of completions of zero-copy sends that came back as copied\n";
        let silent = report.rows.iter().filter(|row| !is_empty(row) && row.copied_completions.is_none());
        text += &by_reason("said copied is na", silent, |row| row.na.get(COMPLETIONS));
    }
    for row in &report.rows {
        if let (Some(rate), Some(fresh), Some(rested), Some(all)) =
            (row.msgs_per_server_cpu_s, row.fresh_connection_bytes, row.rested_connection_bytes, row.server_bytes)
        {
            text += &format!(
                "{}: {rate:.0} requests a second of the server's processor; a connection takes {fresh:.0} B of its \
                 memory, {rested:.0} B after it was used; the server has {:.1} MB\n",
                row.row,
                all / 1e6,
            );
        }
    }
    text
}

/// Whether a row has a share of completions, or a reason for none.
fn tells_of_completions(row: &Row) -> bool {
    row.copied_completions.is_some() || row.na.contains_key(COMPLETIONS)
}

fn said_copied(row: &Row) -> String {
    row.copied_completions.map_or("na".to_owned(), |share| format!("{:.1} %", share * 100.0))
}

/// A line for each reason, with some of the rows that have it.
fn by_reason<'a>(
    what: &str,
    rows: impl Iterator<Item = &'a Row>,
    reason: impl Fn(&'a Row) -> Option<&'a String>,
) -> String {
    let mut absent: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for row in rows {
        let name = format!("{} ({}, {})", row.row, wire(row), size(row.bytes));
        absent.entry(reason(row).map_or("no reason is known", String::as_str)).or_default().insert(name);
    }
    let mut text = String::new();
    for (reason, rows) in absent {
        let named: Vec<&str> = rows.iter().take(NAMED).map(String::as_str).collect();
        let more = if rows.len() > NAMED { format!(" and {} more", rows.len() - NAMED) } else { String::new() };
        text += &format!("{what}: {}{more}: {reason}\n", named.join(", "));
    }
    text
}

fn cells(row: &Row) -> [String; 11] {
    let copies = match (row.copied_user_per_byte, row.copied_kernel_per_byte) {
        (Some(user), Some(kernel)) => format!("{user:.1} + {kernel:.1}"),
        _ => "-".to_owned(),
    };
    [
        row.row.clone(),
        wire(row),
        size(row.bytes),
        time(row.p50_ns),
        time(row.p99_ns),
        time(row.p999_ns),
        time(row.max_ns),
        rate(row.msgs_per_s),
        rate(row.bytes_per_s),
        row.cpu_s_per_gb.map_or("-".to_owned(), |seconds| format!("{seconds:.3}")),
        copies,
    ]
}

/// The wire, and over how many connections.
fn wire(row: &Row) -> String {
    match (&row.wire, row.streams) {
        (Some(wire), Some(streams)) if streams > 1 => format!("{wire} x{streams}"),
        (Some(wire), _) => wire.clone(),
        (None, _) => "-".to_owned(),
    }
}

fn size(bytes: u64) -> String {
    match bytes {
        0 => "-".to_owned(),
        bytes if bytes >= 1 << 20 && bytes.is_multiple_of(1 << 20) => format!("{} MiB", bytes >> 20),
        bytes if bytes >= 1 << 10 && bytes.is_multiple_of(1 << 10) => format!("{} KiB", bytes >> 10),
        bytes => format!("{bytes} B"),
    }
}

fn time(ns: Option<f64>) -> String {
    match ns {
        None => "-".to_owned(),
        Some(ns) if ns < 1e4 => format!("{ns:.0} ns"),
        Some(ns) if ns < 1e7 => format!("{:.1} µs", ns / 1e3),
        Some(ns) => format!("{:.1} ms", ns / 1e6),
    }
}

fn rate(per_second: Option<f64>) -> String {
    match per_second {
        None => "-".to_owned(),
        Some(rate) if rate >= 1e9 => format!("{:.2} G", rate / 1e9),
        Some(rate) if rate >= 1e6 => format!("{:.2} M", rate / 1e6),
        Some(rate) if rate >= 1e3 => format!("{:.2} k", rate / 1e3),
        Some(rate) => format!("{rate:.1}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Host;

    #[test]
    fn the_table_shows_figures_with_units_and_dashes() {
        let mut row = Row::new("ipc", "pubsub", 8192);
        row.p50_ns = Some(71.4);
        row.max_ns = Some(2_500_000.0);
        row.bytes_per_s = Some(2.1e10);
        let text = render(&Report::new(Host::here(), vec![row.explain("not here")]));
        let line = text.lines().find(|line| line.contains("pubsub")).unwrap();
        for part in ["8 KiB", "71 ns", "2500.0 µs", "21.00 G", " - "] {
            assert!(line.contains(part), "{part:?} is not in {line:?}");
        }
        assert!(!text.contains("not measured"), "{text}");
    }

    #[test]
    fn rows_without_any_figure_are_named_below_with_their_reason() {
        let rows = (0..6).map(|row| Row::new("net", "udp", 64_usize << row).explain("run as root"));
        let text = render(&Report::new(Host::here(), rows.collect()));
        let line = text.lines().find(|line| line.starts_with("not measured: udp (-, ")).expect("a line");
        assert!(line.ends_with(" and 2 more: run as root"), "{line}");
    }
    #[test]
    fn completions_have_a_column_where_some_row_tells_of_them() {
        let row = |name: &str, said: Option<f64>, bytes_per_s: Option<f64>| {
            let mut row = Row::new("net", name, 64);
            (row.copied_completions, row.bytes_per_s) = (said, bytes_per_s);
            row.explain_completions("the kernel completes no sends by this path");
            row.explain("not here")
        };
        let rows = vec![row("zerocopy", Some(0.125), Some(1e9)), row("write", None, Some(2e9)), row("raw", None, None)];
        let text = render(&Report::new(Host::here(), rows));
        let line = |name: &str| text.lines().find(|line| line.trim_start().starts_with(name)).expect("a line");
        assert!(line("row ").contains("said copied") && line("zerocopy").contains("12.5 %"), "{text}");
        assert!(line("write").trim_end().ends_with(" na"), "{text}");
        let reason = "said copied is na: write (-, 64 B): the kernel completes no sends by this path";
        assert!(text.lines().any(|line| line == reason), "{text}");
        let text = render(&Report::new(Host::here(), vec![Row::new("ipc", "pubsub", 64).explain("not here")]));
        assert!(!text.contains("said copied"), "{text}");
    }
}
