//! What a command tells its user: notes, a bar, and a result.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use crate::failure::Failure;

/// How much is told, and in which form.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tell {
    /// The result is one JSON document.
    pub(crate) json: bool,
    /// Only failures are told.
    pub(crate) quiet: bool,
}

impl Tell {
    /// A line for people, on stderr.
    pub(crate) fn note(self, text: impl AsRef<str>) {
        if !self.json && !self.quiet {
            line(format!("zcmi: {}", text.as_ref()));
        }
    }

    fn has_bar(self) -> bool {
        !self.json && !self.quiet && std::io::stderr().is_terminal()
    }

    /// A bar of bytes, on a terminal; without a length it only counts.
    pub(crate) fn bytes_bar(self, length: Option<u64>) -> ProgressBar {
        if !self.has_bar() {
            return ProgressBar::hidden();
        }
        let (bar, template) = match length {
            Some(length) => (
                ProgressBar::new(length),
                "{bar:30} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {elapsed} {msg}",
            ),
            None => (ProgressBar::new_spinner(), "{spinner} {binary_bytes} {binary_bytes_per_sec} {elapsed} {msg}"),
        };
        let style = ProgressStyle::with_template(template).expect("the template is fixed and good");
        bar.enable_steady_tick(Duration::from_millis(200));
        bar.with_style(style)
    }

    /// A bar of steps, on a terminal.
    pub(crate) fn steps_bar(self, steps: u64) -> ProgressBar {
        if !self.has_bar() {
            return ProgressBar::hidden();
        }
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}").expect("the template is fixed and good");
        ProgressBar::new(steps).with_style(style)
    }
}

/// Writes a line on stderr, at once: `eprintln!` writes it in pieces, and the lines of two commands that share a
/// terminal would mix.
pub(crate) fn line(mut text: String) {
    text.push('\n');
    // Where stderr cannot be written, there is nobody to tell; what the command does goes on without.
    let _told = std::io::stderr().write_all(text.as_bytes());
}

/// Prints on stdout.
///
/// # Errors
/// The reader of stdout has gone, or it cannot be written.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|error| Failure::of("the result cannot be written to stdout", &error))
}

/// Prints a document on stdout.
///
/// # Errors
/// As [`print`].
pub(crate) fn print_json(document: &Value) -> Result<(), Failure> {
    print(&format!("{document:#}\n"))
}

/// A number of things for people: `1 file`, `2 files`.
pub(crate) fn counted(count: usize, what: &str) -> String {
    counted_as(count, what, &format!("{what}s"))
}

/// As [`counted`], where the words for one and for many differ by more than an s.
pub(crate) fn counted_as(count: usize, one: &str, many: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {many}") }
}

/// Bytes for people: `3.5 MiB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// Text from elsewhere as it may stand on a terminal: control letters are written as escapes.
pub(crate) fn harmless(text: &str) -> String {
    text.chars()
        .flat_map(|letter| if letter.is_control() { letter.escape_default().collect() } else { vec![letter] })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_written_in_the_unit_that_fits() {
        assert_eq!([bytes(0), bytes(1023), bytes(1536), bytes(1 << 30)], ["0 B", "1023 B", "1.5 KiB", "1.0 GiB"]);
    }

    #[test]
    fn what_a_terminal_would_act_upon_is_escaped() {
        assert_eq!(harmless("a\x1b[2Jb"), "a\\u{1b}[2Jb");
    }
}
