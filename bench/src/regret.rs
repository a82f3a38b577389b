//! Regret: what the choice of the path loses against the best path that could have been forced.
//!
//! A cell is a wire, a number of connections and a size. Its paths and the choice take turns; the best path is picked
//! by its rounds of odd number and compared by those of even number, so that luck does not pick what it is then
//! compared with. There are two of them, one by throughput and one by processor time.
//!
//! A path that has come out much dearer and much slower in its first rounds than another is not measured further.
//!
//! `write` is measured twice in each round. How often one of the two loses against the other is what the machine makes
//! of paths that are the same, and as much of what the choice loses is not the choice's.
//!
//! Cells are kept in a file as they are measured; a run that is cut off goes on where it was.

use core::fmt;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use zcmi_net::path::PathKind;

use crate::host::Host;
use crate::net::{Cell, NetBenchError, RowKind, SIZES};
use crate::pin;
use crate::report::{self, ReportError};
use crate::stats::{Ratio, Summary};
use crate::wires::{Unavailable, Wire, WireKind};

/// The name and version of the document.
pub const SCHEMA: &str = "zcmi-bench-regret/1";

/// A choice is good when it has this share of what the best path has, or cannot be told from it.
pub const GOOD: f64 = 0.95;
/// The share of cells that must be good.
pub const SHARE: f64 = 0.97;
/// No cell may be below this.
pub const WORST: f64 = 0.85;

/// Rounds after which a path may be left out.
const SEEN: usize = 3;
/// A path is left out that has less than this share of the best's throughput and of its thrift.
const HOPELESS: f64 = 0.75;

/// What to measure, and how long.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RegretOptions {
    /// The wires.
    pub wires: Vec<WireKind>,
    /// The sizes.
    pub sizes: Vec<usize>,
    /// How many connections at a time.
    pub streams: Vec<usize>,
    /// How often each cell is measured.
    pub rounds: usize,
    /// The length of a measurement, after the warm-up.
    pub length: Duration,
    /// Where cells are kept, and taken from if they were measured so before.
    pub file: Option<PathBuf>,
    /// Told each cell as it is measured, how many are done, and how many there are.
    pub progress: Option<fn(&RegretCell, usize, usize)>,
}

impl Default for RegretOptions {
    fn default() -> Self {
        Self {
            wires: vec![WireKind::Lo, WireKind::Veth, WireKind::VethXdp, WireKind::Unix, WireKind::Ifb],
            sizes: SIZES.to_vec(),
            streams: vec![1, 8],
            rounds: 11,
            length: Duration::from_secs(1),
            file: None,
            progress: None,
        }
    }
}

impl RegretOptions {
    /// Options for a look of under three minutes.
    #[must_use]
    pub fn quick() -> Self {
        Self {
            sizes: vec![1 << 10, 64 << 10, 1 << 20],
            rounds: 4,
            length: Duration::from_millis(80),
            ..Self::default()
        }
    }
}

/// What came of one cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegretCell {
    /// The wire.
    pub wire: String,
    /// How many connections.
    pub streams: usize,
    /// The size of messages.
    pub bytes: usize,
    /// Rounds, and milliseconds of each.
    pub rounds: [usize; 2],
    /// The path that was best by throughput in odd rounds.
    pub fastest: String,
    /// The choice's throughput beside that path's in even rounds: the median, and the interval of single rounds.
    pub rate: [f64; 3],
    /// The path that was best by processor time.
    pub thriftiest: String,
    /// That path's processor time beside the choice's: again more is better.
    pub thrift: [f64; 3],
    /// The same of `write` beside `write`, which is measured twice: throughput and processor time. Absent where
    /// `write` was left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<[[f64; 3]; 2]>,
    /// Medians of all rounds by row: bytes a second, and processor seconds per 10^9 bytes.
    pub medians: BTreeMap<String, [f64; 2]>,
}

impl RegretCell {
    /// Whether the choice is as good as it must be by throughput and by processor time.
    #[must_use]
    pub fn good(&self) -> [bool; 2] {
        [self.rate, self.thrift].map(is_good)
    }
}

/// Whether that median and that interval are good enough.
fn is_good([median, _, high]: [f64; 3]) -> bool {
    median >= GOOD || high >= 1.0
}

impl fmt::Display for RegretCell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |[median, low, high]: [f64; 3], good: bool| {
            format!("{median:.2} ({low:.2} to {high:.2}){}", if good { "" } else { " LOST" })
        };
        let [rate, thrift] = self.good();
        write!(
            f,
            "{:<9} {} x {:>7} B   rate {} of {}   thrift {} of {}",
            self.wire,
            self.streams,
            self.bytes,
            part(self.rate, rate),
            self.fastest,
            part(self.thrift, thrift),
            self.thriftiest,
        )
    }
}

/// All cells, and which wires could not be had.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Regret {
    /// What was measured.
    pub cells: Vec<RegretCell>,
    /// Why a wire was not measured.
    #[serde(default)]
    pub skipped: BTreeMap<String, String>,
}

impl Regret {
    /// How the cells stand beside what is asked of them, for throughput and processor time: the share that is good,
    /// and the lowest.
    #[must_use]
    pub fn standing(&self) -> [(f64, f64); 2] {
        [0, 1].map(|which| {
            let ratios = self.cells.iter().map(|cell| [cell.rate, cell.thrift][which]);
            standing(&ratios.collect::<Vec<_>>())
        })
    }

    /// The same of `write` beside itself, and in how many cells that was measured; nothing without any.
    #[must_use]
    pub fn control(&self) -> Option<(usize, [(f64, f64); 2])> {
        let controls: Vec<[[f64; 3]; 2]> = self.cells.iter().filter_map(|cell| cell.control).collect();
        let of = |which: usize| standing(&controls.iter().map(|control| control[which]).collect::<Vec<_>>());
        (!controls.is_empty()).then(|| (controls.len(), [of(0), of(1)]))
    }

    /// The document: the shape [`SCHEMA`] of `docs/bench-schema.json`. What is kept to go on from is another.
    ///
    /// # Errors
    /// A figure that is no number.
    pub fn to_json(&self, host: &Host) -> Result<String, ReportError> {
        let mut content = json!({
            "targets": { "good": GOOD, "share": SHARE, "worst": WORST },
            "cells": self.cells,
            "skipped": self.skipped,
        });
        if !self.cells.is_empty() {
            let of = |(share, lowest)| json!({ "good_share": share, "lowest": lowest, "met": is_met(share, lowest) });
            let [throughput, cpu] = self.standing().map(of);
            content["standing"] = json!({ "throughput": throughput, "cpu": cpu });
        }
        if let Some((cells, control)) = self.control() {
            let [throughput, cpu] = control.map(|(share, lowest)| json!({ "good_share": share, "lowest": lowest }));
            content["control"] = json!({ "cells": cells, "throughput": throughput, "cpu": cpu });
        }
        report::document(SCHEMA, host, &content)
    }

    fn of_file(file: &Path) -> Result<Self, NetBenchError> {
        let failed = |source| NetBenchError::File { path: file.to_owned(), source };
        match fs::read(file) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| failed(error.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(failed(error)),
        }
    }

    /// Writes it beside the file and then in its place, so that there is a whole one at any time.
    fn keep(&self, file: &Path) -> Result<(), NetBenchError> {
        let failed = |source| NetBenchError::File { path: file.to_owned(), source };
        let text = serde_json::to_vec_pretty(self).map_err(|error| failed(error.into()))?;
        let mut beside = file.as_os_str().to_owned();
        beside.push(".new");
        fs::write(&beside, text).and_then(|()| fs::rename(&beside, file)).map_err(failed)
    }
}

/// The share of ratios that is good, and the lowest median.
fn standing(ratios: &[[f64; 3]]) -> (f64, f64) {
    let good = ratios.iter().filter(|ratio| is_good(**ratio)).count();
    let lowest = ratios.iter().map(|ratio| ratio[0]).fold(f64::INFINITY, f64::min);
    (good as f64 / ratios.len().max(1) as f64, lowest)
}

/// Whether that share of good cells, and that lowest one, are what is asked for.
fn is_met(share: f64, lowest: f64) -> bool {
    share >= SHARE && lowest >= WORST
}

impl fmt::Display for Regret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (wire, reason) in &self.skipped {
            writeln!(f, "SKIP: {wire}: {reason}")?;
        }
        if self.cells.is_empty() {
            return writeln!(f, "no cell was measured");
        }
        for (name, (share, lowest)) in ["throughput", "processor time"].into_iter().zip(self.standing()) {
            writeln!(
                f,
                "{name}: {:.1} % of {} cells have {GOOD} of the best path or cannot be told from it (target {:.0} %), \
                 the lowest {lowest:.2} (target {WORST}): {}",
                share * 100.0,
                self.cells.len(),
                SHARE * 100.0,
                if is_met(share, lowest) { "met" } else { "missed" }
            )?;
        }
        if let Some((cells, [throughput, cpu])) = self.control() {
            writeln!(
                f,
                "control: `write` beside `write` is so good in {:.1} % and {:.1} % of {cells} cells, the lowest \
                 {:.2} and {:.2}: so much the machine makes of what is the same",
                throughput.0 * 100.0,
                cpu.0 * 100.0,
                throughput.1,
                cpu.1
            )?;
        }
        Ok(())
    }
}

/// Measures the cells that are not in the file yet. The calling thread is pinned meanwhile.
///
/// # Errors
/// [`NetBenchError::Unavailable`] where nothing can be measured, and whatever breaks a cell.
pub fn run(options: &RegretOptions) -> Result<Regret, NetBenchError> {
    let pair = pin::pair().map_err(NetBenchError::of_pin)?;
    let _pinned = pin::pin(pair.near).map_err(NetBenchError::Pin)?;
    let measured = options.file.as_deref().map_or_else(|| Ok(Regret::default()), Regret::of_file)?;
    let (mut regret, mut done) = (Regret::default(), 0);
    let all = cells(options);
    for &kind in &options.wires {
        let mut wire = None;
        for &(_, streams, bytes) in all.iter().filter(|(wire, _, _)| *wire == kind) {
            done += 1;
            let is_it = |cell: &&RegretCell| {
                (cell.wire.as_str(), cell.streams, cell.bytes) == (kind.name(), streams, bytes)
                    && cell.rounds == [options.rounds, options.length.as_millis() as usize]
            };
            let cell = match measured.cells.iter().find(is_it) {
                Some(cell) => cell.clone(),
                None => {
                    let wire = match &mut wire {
                        Some(wire) => wire,
                        none => match Wire::make(kind) {
                            Ok(made) => none.insert(made),
                            Err(unavailable) => {
                                let reason = Unavailable::reason(&unavailable);
                                regret.skipped.insert(kind.name().to_owned(), reason);
                                break;
                            }
                        },
                    };
                    measure(wire, streams, bytes, options, pair.far)?
                }
            };
            if let Some(tell) = options.progress {
                tell(&cell, done, all.len());
            }
            regret.cells.push(cell);
            if let Some(file) = &options.file {
                // Those of other wires and lengths stay in the file.
                let mut kept = regret.clone();
                let others = measured.cells.iter().filter(|cell| {
                    !regret.cells.iter().any(|new| {
                        (&new.wire, new.streams, new.bytes, new.rounds)
                            == (&cell.wire, cell.streams, cell.bytes, cell.rounds)
                    })
                });
                kept.cells.extend(others.cloned());
                kept.keep(file)?;
            }
        }
    }
    Ok(regret)
}

/// All cells: wire, connections, size.
fn cells(options: &RegretOptions) -> Vec<(WireKind, usize, usize)> {
    let mut cells = Vec::new();
    for &wire in &options.wires {
        for &streams in &options.streams {
            cells.extend(options.sizes.iter().map(|&bytes| (wire, streams, bytes)));
        }
    }
    cells
}

/// What the rounds of one row gave: bytes a second and processor seconds per 10^9 bytes, by round.
type Rounds = Vec<Option<[f64; 2]>>;

fn measure(
    wire: &Wire,
    streams: usize,
    bytes: usize,
    options: &RegretOptions,
    cpu: usize,
) -> Result<RegretCell, NetBenchError> {
    let cell = |row| Cell { wire: wire.kind(), row, bytes, streams };
    let mut rows: Vec<(RowKind, Rounds)> = Vec::new();
    let judged = |row: &RowKind| matches!(row, RowKind::Forced(_) | RowKind::Adaptive);
    for row in RowKind::all().into_iter().filter(judged) {
        if cell(row).makes_no_sense().is_none() {
            rows.push((row, Vec::new()));
        }
    }
    rows.push((RowKind::Forced(PathKind::Write), Vec::new()));
    for round in 0..options.rounds {
        let left_out: Vec<bool> = rows.iter().map(|(row, seen)| is_hopeless(*row, seen, &rows)).collect();
        // Who is first in a round is another each time.
        let count = rows.len();
        for turn in 0..count {
            let index = (turn + round) % count;
            let seen = if left_out[index] {
                None
            } else {
                {
                    let cell = cell(rows[index].0);
                    let (measured, _) =
                        cell.throughput(wire, options.length, cpu).map_err(|error| cell.failed(error))?;
                    Some(measured.rate_and_cost())
                }
            };
            rows[index].1.push(seen);
        }
    }
    let again = rows.pop().map_or_else(Vec::new, |(_, again)| again);
    let mut judged = judge(wire.kind().name(), streams, bytes, options, &rows);
    judged.control = control(&again, &rows);
    Ok(judged)
}

/// `write` as it was measured the second time, beside itself; nothing if one of them was left out.
fn control(again: &Rounds, rows: &[(RowKind, Rounds)]) -> Option<[[f64; 3]; 2]> {
    let (_, once) = rows.iter().find(|(row, _)| *row == RowKind::Forced(PathKind::Write))?;
    (is_whole(once) && is_whole(again)).then(|| [0, 1].map(|which| beside(again, once, which)))
}

/// Whether a row was measured in all rounds.
fn is_whole(seen: &Rounds) -> bool {
    seen.iter().all(Option::is_some)
}

/// One row beside another in rounds of even number, by throughput (0) or by processor time (1): more is better.
fn beside(ours: &Rounds, theirs: &Rounds, which: usize) -> [f64; 3] {
    // The first round is number 1.
    let even =
        |seen: &Rounds| -> Vec<f64> { seen.iter().skip(1).step_by(2).flatten().map(|both| both[which]).collect() };
    let (ours, theirs) = (even(ours), even(theirs));
    let ratio = if which == 0 { Ratio::of(&ours, &theirs) } else { Ratio::of(&theirs, &ours) };
    ratio.map_or([0.0; 3], |ratio| [ratio.median, ratio.low, ratio.high])
}

/// Whether a path is so much worse than another by both measures that it will not be the best of either.
fn is_hopeless(row: RowKind, seen: &Rounds, rows: &[(RowKind, Rounds)]) -> bool {
    if row == RowKind::Adaptive || seen.len() < SEEN {
        return false;
    }
    let Some([rate, cost]) = medians(seen) else { return true };
    let mut others = rows.iter().filter(|(other, _)| *other != RowKind::Adaptive).filter_map(|(_, seen)| medians(seen));
    seen.last().is_some_and(Option::is_none)
        || others.any(|[other_rate, other_cost]| rate < other_rate * HOPELESS && other_cost < cost * HOPELESS)
}

/// The medians of all rounds there are.
fn medians(seen: &Rounds) -> Option<[f64; 2]> {
    let of = |which: usize| {
        let values: Vec<f64> = seen.iter().flatten().map(|both| both[which]).collect();
        Summary::of(&values).map(|summary| summary.median)
    };
    Some([of(0)?, of(1)?])
}

fn judge(wire: &str, streams: usize, bytes: usize, options: &RegretOptions, rows: &[(RowKind, Rounds)]) -> RegretCell {
    let odd = |seen: &Rounds| -> Rounds { seen.iter().copied().step_by(2).collect() };
    let paths: Vec<&(RowKind, Rounds)> =
        rows.iter().filter(|(row, seen)| *row != RowKind::Adaptive && is_whole(seen)).collect();
    let best = |which: usize| {
        let key = |seen: &Rounds| medians(&odd(seen)).map_or(0.0, |both| if which == 0 { -both[0] } else { both[1] });
        paths.iter().min_by(|one, other| key(&one.1).total_cmp(&key(&other.1)))
    };
    let ours = rows.iter().find(|(row, _)| *row == RowKind::Adaptive);
    let compare = |which: usize| -> (String, [f64; 3]) {
        let (Some((row, theirs)), Some((_, ours))) = (best(which), ours) else {
            return (String::new(), [0.0; 3]);
        };
        (row.name().to_owned(), beside(ours, theirs, which))
    };
    let ((fastest, rate), (thriftiest, thrift)) = (compare(0), compare(1));
    let medians = rows.iter().filter_map(|(row, seen)| Some((row.name().to_owned(), medians(seen)?))).collect();
    let rounds = [options.rounds, options.length.as_millis() as usize];
    let (wire, control) = (wire.to_owned(), None);
    RegretCell { wire, streams, bytes, rounds, fastest, rate, thriftiest, thrift, control, medians }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(rounds: usize) -> RegretOptions {
        RegretOptions { rounds, ..RegretOptions::default() }
    }

    fn rounds(values: &[[f64; 2]]) -> Rounds {
        values.iter().copied().map(Some).collect()
    }

    #[test]
    fn the_best_path_is_picked_on_odd_rounds_and_compared_on_even_ones() {
        // One path is lucky in odd rounds only, which makes it the best, but not what the choice is measured by.
        let lucky = rounds(&[[9.0, 1.0], [2.0, 4.0], [9.0, 1.0], [2.0, 4.0]]);
        let steady = rounds(&[[4.0, 2.0]; 4]);
        let ours = rounds(&[[1.0, 9.0], [4.0, 2.0], [1.0, 9.0], [4.0, 2.0]]);
        let rows = [
            (RowKind::Forced(PathKind::Write), lucky),
            (RowKind::Forced(PathKind::Splice), steady),
            (RowKind::Adaptive, ours),
        ];
        let cell = judge("lo", 1, 64, &options(4), &rows);
        assert_eq!((cell.fastest.as_str(), cell.thriftiest.as_str()), ("write", "write"));
        assert_eq!((cell.rate[0], cell.thrift[0]), (2.0, 2.0));
        assert_eq!(cell.good(), [true, true]);
    }

    #[test]
    fn a_choice_that_loses_is_said_to_lose() {
        let rows = [
            (RowKind::Forced(PathKind::Write), rounds(&[[10.0, 1.0]; 6])),
            (RowKind::Adaptive, rounds(&[[8.0, 1.02]; 6])),
        ];
        let cell = judge("lo", 1, 64, &options(6), &rows);
        assert_eq!(cell.good(), [false, true]);
        assert!(cell.to_string().contains("LOST"), "{cell}");
        let regret = Regret { cells: vec![cell], ..Regret::default() };
        assert_eq!(regret.standing()[0], (0.0, 0.8));
        let said = regret.to_string();
        assert!(said.contains("throughput: 0.0 %") && said.matches("missed").count() == 1, "{said}");
    }

    #[test]
    fn what_the_machine_makes_of_a_path_beside_itself_is_told() {
        let of = |rate: f64| {
            let write = rounds(&[[8.0, 1.0], [10.0, 2.0], [8.0, 1.0], [10.0, 2.0]]);
            let again = rounds(&[[1.0, 9.0], [rate, 2.5], [1.0, 9.0], [rate, 2.5]]);
            let rows = [(RowKind::Forced(PathKind::Write), write.clone()), (RowKind::Adaptive, write)];
            let cell = judge("lo", 1, 64, &options(4), &rows);
            RegretCell { control: control(&again, &rows), ..cell }
        };
        let cells = vec![of(9.0), of(10.0)];
        assert_eq!(cells[0].control, Some([[0.9; 3], [0.8; 3]]));
        let regret = Regret { cells, ..Regret::default() };
        assert_eq!(regret.standing(), [(1.0, 1.0); 2]);
        assert_eq!(regret.control(), Some((2, [(0.5, 0.9), (0.0, 0.8)])));
        let said = regret.to_string();
        assert!(said.contains("in 50.0 % and 0.0 % of 2 cells, the lowest 0.90 and 0.80"), "{said}");
        // A row that was not measured in all rounds is nothing to compare with.
        let rows = [(RowKind::Forced(PathKind::Write), vec![Some([1.0, 1.0]), None])];
        assert_eq!(control(&rounds(&[[1.0, 1.0]; 2]), &rows), None);
    }

    #[test]
    fn a_path_is_left_out_only_if_it_loses_by_both_measures() {
        let rows = [
            (RowKind::Forced(PathKind::Write), rounds(&[[10.0, 1.0]; 3])),
            (RowKind::Forced(PathKind::Splice), rounds(&[[5.0, 0.9]; 3])),
            (RowKind::Forced(PathKind::SendFile), rounds(&[[5.0, 2.0]; 3])),
            (RowKind::Adaptive, rounds(&[[5.0, 2.0]; 3])),
        ];
        let left_out: Vec<bool> = rows.iter().map(|(row, seen)| is_hopeless(*row, seen, &rows)).collect();
        assert_eq!(left_out, [false, false, true, false]);
        // It must be one path that is better by both: of these one is the fastest, and one the cheapest.
        let rows = [
            (RowKind::Forced(PathKind::Write), rounds(&[[10.0, 2.0]; 3])),
            (RowKind::Forced(PathKind::Splice), rounds(&[[5.0, 1.0]; 3])),
            (RowKind::Forced(PathKind::SendFile), rounds(&[[7.0, 1.5]; 3])),
        ];
        assert!(!rows.iter().any(|(row, seen)| is_hopeless(*row, seen, &rows)));
    }

    #[test]
    fn cells_outlive_a_run_that_is_cut_off() {
        let directory = std::env::temp_dir().join(format!("zcmi-regret-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("a directory");
        let file = directory.join("cells.json");
        assert_eq!(Regret::of_file(&file).expect("none yet"), Regret::default());
        let rows = [
            (RowKind::Forced(PathKind::Write), rounds(&[[10.0, 1.0]; 2])),
            (RowKind::Adaptive, rounds(&[[10.0, 1.0]; 2])),
        ];
        let regret = Regret { cells: vec![judge("lo", 8, 64, &options(2), &rows)], ..Regret::default() };
        regret.keep(&file).expect("it is written");
        assert_eq!(Regret::of_file(&file).expect("it is whole"), regret);
        fs::write(&file, "{").expect("it is written");
        assert!(matches!(Regret::of_file(&file), Err(NetBenchError::File { .. })));
        fs::remove_dir_all(&directory).expect("it goes");
    }
}
