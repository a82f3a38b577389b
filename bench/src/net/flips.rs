//! Regime flips: a wire changes under a connection, and how long the connection takes until it uses the best path
//! again.
//!
//! What is best after a flip is measured then, with other connections that have to use one path each: what is nearest
//! to the best throughput and to the least processor time, by the measure in which it is worse, with all paths that are
//! nearly as good or cannot be told from it. Counted are the sends, and the time, from the flip until such a path is
//! chosen, and switches from then on; calls that look at other paths meanwhile do not count.

use core::fmt;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rustix::process::Pid;
use serde_json::{Value, json};
use zcmi_net::path::PathKind;
use zcmi_net::select::Selection;

use super::{Cell, CellError, NetBenchError, RowKind, datagrams};
use crate::host::Host;
use crate::pin;
use crate::report::{self, ReportError};
use crate::wires::{Route, Unavailable, Wire, WireKind};

/// The name and version of the document.
pub const SCHEMA: &str = "zcmi-bench-flips/1";

/// The best path must be in use again within so many sends, or so long.
pub const SENDS: u64 = 64;
/// See [`SENDS`].
pub const TIME: Duration = Duration::from_millis(10);
/// A path counts as the best if it is worse by no more than this factor.
const NEAR: f64 = 1.1;
/// How each path is measured: so often, in turn, and for so long.
const ROUNDS: usize = 5;
const LENGTH: Duration = Duration::from_millis(120);
/// How long a connection is watched after a flip.
const WATCHED: Duration = Duration::from_millis(1500);
/// The size of messages: each is one packet, or one piece.
const BYTES: usize = 60_000;

/// A change of a wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flip {
    XdpAttached,
    XdpDetached,
    ScatterGatherOff,
    ScatterGatherOn,
    RouteToVeth,
    RouteToSink,
}

impl Flip {
    fn apply(self, wire: &Wire) -> Result<(), CellError> {
        match self {
            Self::XdpAttached => wire.attach_xdp()?,
            Self::XdpDetached => drop(wire.detach_xdp()?),
            Self::ScatterGatherOff => wire.set_scatter_gather(false)?,
            Self::ScatterGatherOn => wire.set_scatter_gather(true)?,
            Self::RouteToVeth => wire.set_route(Route::Veth)?,
            Self::RouteToSink => wire.set_route(Route::Sink)?,
        }
        Ok(())
    }

    fn name(self) -> &'static str {
        match self {
            Self::XdpAttached => "XDP program attached",
            Self::XdpDetached => "XDP program detached",
            Self::ScatterGatherOff => "scatter-gather off",
            Self::ScatterGatherOn => "scatter-gather on",
            Self::RouteToVeth => "route moved to veth",
            Self::RouteToSink => "route moved to ifb",
        }
    }
}

/// What became of a connection after a flip.
#[derive(Clone, Debug, PartialEq)]
pub struct Flipped {
    /// The wire.
    pub wire: WireKind,
    /// What was done to it.
    pub flip: &'static str,
    /// The path that was in use before.
    pub before: PathKind,
    /// The path that is in use at the end.
    pub after: PathKind,
    /// The paths that are the best after the flip.
    pub best: Vec<PathKind>,
    /// Sends from the flip until the best path was in use.
    pub sends: u64,
    /// How long that took.
    pub took: Duration,
    /// How often the path was changed from then on.
    pub switches: u64,
    /// How long it was watched from then on.
    pub watched: Duration,
}

impl Flipped {
    /// Whether the best path was in use in time, and kept.
    #[must_use]
    pub fn is_good(&self) -> bool {
        let seconds = self.watched.as_secs_f64().ceil() as u64;
        (self.sends <= SENDS || self.took <= TIME) && self.switches <= seconds
    }

    /// As it stands in a document.
    fn value(&self) -> Value {
        json!({
            "wire": self.wire.name(),
            "flip": self.flip,
            "before": self.before.name(),
            "after": self.after.name(),
            "best": self.best.iter().map(|path| path.name()).collect::<Vec<_>>(),
            "sends": self.sends,
            "took_ms": self.took.as_secs_f64() * 1e3,
            "switches": self.switches,
            "watched_s": self.watched.as_secs_f64(),
            "met": self.is_good(),
        })
    }
}

impl fmt::Display for Flipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<32} {} to {}: best path ({}) again after {} sends, {:.2} ms (target {SENDS} sends or {} ms); {} \
             switches in {:.1} s from then on (target 1 a second): {}",
            format!("{}: {}", self.wire, self.flip),
            self.before,
            self.after,
            self.best.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
            self.sends,
            self.took.as_secs_f64() * 1e3,
            TIME.as_millis(),
            self.switches,
            self.watched.as_secs_f64(),
            if self.is_good() { "met" } else { "missed" },
        )
    }
}

/// What came of all flips.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Flips {
    /// The flips, in order.
    pub flips: Vec<Flipped>,
    /// Why a wire was not measured.
    pub skipped: BTreeMap<String, String>,
}

impl Flips {
    /// The document: the shape [`SCHEMA`] of `docs/bench-schema.json`.
    ///
    /// # Errors
    /// A figure that is no number.
    pub fn to_json(&self, host: &Host) -> Result<String, ReportError> {
        let content = json!({
            "bytes": BYTES,
            "targets": { "sends": SENDS, "took_ms": TIME.as_secs_f64() * 1e3, "switches_per_s": 1 },
            "flips": self.flips.iter().map(Flipped::value).collect::<Vec<_>>(),
            "skipped": self.skipped,
        });
        report::document(SCHEMA, host, &content)
    }
}

/// A connection that can be watched.
pub(super) trait Watched {
    /// Sends some messages.
    fn turn(&mut self) -> Result<(), CellError>;
    /// How many calls of the system sent something.
    fn sends(&self) -> u64;
    /// What is chosen.
    fn selection(&self) -> Option<Selection>;
}

/// The flips of all wires that can be had, and why the others cannot.
///
/// # Errors
/// Whatever breaks a connection.
pub fn run(tell: fn(&Flipped)) -> Result<Flips, NetBenchError> {
    let pair = pin::pair().map_err(NetBenchError::of_pin)?;
    let _pinned = pin::pin(pair.near).map_err(NetBenchError::Pin)?;
    let mut all = Flips::default();
    for kind in [WireKind::Veth, WireKind::Ifb] {
        let wire = match Wire::make(kind) {
            Ok(wire) => wire,
            Err(unavailable) => {
                all.skipped.insert(kind.name().to_owned(), Unavailable::reason(&unavailable));
                continue;
            }
        };
        let cell = Cell { wire: kind, row: RowKind::Adaptive, bytes: BYTES, streams: 1 };
        let flips: &[Flip] = match kind {
            WireKind::Ifb => &[Flip::RouteToVeth, Flip::RouteToSink, Flip::ScatterGatherOff, Flip::ScatterGatherOn],
            _ => &[Flip::XdpAttached, Flip::XdpDetached, Flip::ScatterGatherOff, Flip::ScatterGatherOn],
        };
        let mut watch = |connection: &mut dyn Watched| -> Result<(), CellError> {
            settle(connection, WATCHED)?;
            for &flip in flips {
                let flipped = observe(connection, cell, flip, &wire, pair.far)?;
                tell(&flipped);
                all.flips.push(flipped);
            }
            Ok(())
        };
        if kind == WireKind::Ifb {
            datagrams::with_sender(cell, &wire, pair.far, |sender| watch(sender))
        } else {
            let (sockets, child) = cell.begin(&wire, false, pair.far).map_err(|error| cell.failed(error))?;
            let _alive = Pid::from_raw(child.id() as i32);
            cell.sender(sockets).and_then(|mut sender| {
                watch(&mut sender)?;
                sender.end()
            })
        }
        .map_err(|error| cell.failed(error))?;
    }
    match all.skipped.values().next() {
        Some(reason) if all.flips.is_empty() => Err(NetBenchError::Unavailable { reason: reason.clone() }),
        _ => Ok(all),
    }
}

/// Sends for a while.
fn settle(connection: &mut dyn Watched, length: Duration) -> Result<(), CellError> {
    let until = Instant::now() + length;
    while Instant::now() < until {
        connection.turn()?;
    }
    Ok(())
}

/// Changes the wire and watches what the connection makes of it.
fn observe(
    connection: &mut dyn Watched,
    cell: Cell,
    flip: Flip,
    wire: &Wire,
    cpu: usize,
) -> Result<Flipped, CellError> {
    let none = CellError::Late("nothing was chosen");
    let Some(before) = connection.selection() else { return Err(none) };
    flip.apply(wire)?;
    let (begin, first) = (Instant::now(), connection.sends());
    // Which path was in use from when on, and how often it had been changed by then.
    let mut used = vec![(before.path, 0, Duration::ZERO, before.switches)];
    while begin.elapsed() < WATCHED {
        connection.turn()?;
        let Some(now) = connection.selection() else { return Err(none) };
        if used.last().is_none_or(|(path, _, _, switches)| *path != now.path || *switches != now.switches) {
            used.push((now.path, connection.sends() - first, begin.elapsed(), now.switches));
        }
    }
    let Some(last) = connection.selection() else { return Err(none) };
    let watched = begin.elapsed();
    let best = best_paths(cell, wire, cpu)?;
    let good = |path: PathKind| best.contains(&path);
    // From the last time on that it was not good, it is.
    let from = used.iter().rposition(|(path, ..)| !good(*path)).map_or(0, |bad| bad + 1);
    // If it never came to that, it took longer than it was watched.
    let never = (last.path, connection.sends() - first, watched, last.switches);
    let (_, sends, took, switches) = used.get(from).copied().unwrap_or(never);
    Ok(Flipped {
        wire: cell.wire,
        flip: flip.name(),
        before: before.path,
        after: last.path,
        best,
        sends,
        took,
        switches: last.switches - switches,
        watched: watched.saturating_sub(took),
    })
}

/// The paths that are the best on this wire as it is now.
fn best_paths(cell: Cell, wire: &Wire, cpu: usize) -> Result<Vec<PathKind>, CellError> {
    let usable: Vec<Cell> = PathKind::ALL
        .iter()
        .map(|&path| Cell { row: RowKind::Forced(path), ..cell })
        .filter(|cell| cell.makes_no_sense().is_none())
        .collect();
    let mut found: Vec<(PathKind, [Vec<f64>; 2])> = Vec::new();
    for round in 0..ROUNDS {
        for (index, cell) in usable.iter().enumerate() {
            let RowKind::Forced(path) = cell.row else { continue };
            let [rate, cost] = cell.throughput(wire, LENGTH, cpu)?.0.rate_and_cost();
            if round == 0 {
                found.push((path, [Vec::new(), Vec::new()]));
            }
            let (_, measures) = &mut found[index];
            measures[0].push(1.0 / rate);
            measures[1].push(cost);
        }
    }
    Ok(nearest(&mut found))
}

/// The paths that are nearest to the least of both measures, of which there are some of each.
fn nearest(found: &mut [(PathKind, [Vec<f64>; 2])]) -> Vec<PathKind> {
    found.iter_mut().flat_map(|(_, measures)| measures).for_each(|all| all.sort_by(f64::total_cmp));
    let median = |all: &Vec<f64>| all[all.len() / 2];
    let best =
        [0, 1].map(|which| found.iter().map(|(_, measures)| median(&measures[which])).fold(f64::INFINITY, f64::min));
    let score = |measures: [f64; 2]| (measures[0] / best[0]).max(measures[1] / best[1]);
    let medians = found.iter().map(|(_, measures)| score(measures.each_ref().map(median)));
    let least = medians.fold(f64::INFINITY, f64::min);
    // What was as good once cannot be told from it.
    let near = found.iter().filter(|(_, measures)| score(measures.each_ref().map(|all| all[0])) <= least * NEAR);
    near.map(|(path, _)| *path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_time_is_by_sends_or_by_time_and_restlessness_is_not_good() {
        let flipped = Flipped {
            wire: WireKind::Veth,
            flip: Flip::XdpAttached.name(),
            before: PathKind::Write,
            after: PathKind::Splice,
            best: vec![PathKind::Splice],
            sends: 500,
            took: Duration::from_millis(9),
            switches: 1,
            watched: Duration::from_millis(900),
        };
        assert!(flipped.is_good());
        assert!(Flipped { sends: 60, took: Duration::from_millis(90), ..flipped.clone() }.is_good());
        assert!(!Flipped { took: Duration::from_millis(11), ..flipped.clone() }.is_good());
        assert!(!Flipped { switches: 2, ..flipped.clone() }.is_good());
        assert!(Flipped { switches: 2, ..flipped }.to_string().contains("missed"));
    }

    #[test]
    fn the_best_are_those_nearest_to_the_best_of_both_measures() {
        let of = |path, rate: f64, cost| (path, [vec![1.0 / rate; 5], vec![cost; 5]]);
        let mut found = [
            of(PathKind::Write, 1.0, 1.0),
            of(PathKind::ZeroCopy, 2.0, 1.3),
            of(PathKind::UringZeroCopy, 1.9, 1.2),
            of(PathKind::Splice, 2.0, 1.6),
        ];
        assert_eq!(nearest(&mut found), [PathKind::ZeroCopy, PathKind::UringZeroCopy]);
        // It was as good once.
        found[3].1[1][2] = 1.3;
        assert_eq!(nearest(&mut found), [PathKind::ZeroCopy, PathKind::UringZeroCopy, PathKind::Splice]);
    }
}
