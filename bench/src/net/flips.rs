//! Regime flips: a wire changes under a connection, and how long the connection takes until it uses the best path
//! again.
//!
//! What is best after a flip is what the connection itself believes at the end of the time it is watched, with all
//! paths that are nearly as good. Counted are the sends, and the time, from the flip until such a path is in use, and
//! switches from then on.

use core::fmt;
use std::time::{Duration, Instant};

use rustix::process::Pid;
use zcmi_net::path::PathKind;
use zcmi_net::select::Selection;

use super::{Cell, CellError, NetBenchError, RowKind, datagrams};
use crate::pin;
use crate::wires::{Route, Unavailable, Wire, WireKind};

/// The best path must be in use again within so many sends, or so long.
pub const SENDS: u64 = 64;
/// See [`SENDS`].
pub const TIME: Duration = Duration::from_millis(10);
/// A path counts as the best if it costs no more than this share of what the best costs.
const NEAR: f64 = 1.1;
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
    /// What was done, on which wire.
    pub name: String,
    /// The path that was in use before.
    pub before: PathKind,
    /// The path that is in use at the end.
    pub after: PathKind,
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
}

impl fmt::Display for Flipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<32} {} to {}: best path again after {} sends, {:.2} ms (target {SENDS} sends or {} ms); {} switches in \
             {:.1} s from then on (target 1 a second): {}",
            self.name,
            self.before,
            self.after,
            self.sends,
            self.took.as_secs_f64() * 1e3,
            TIME.as_millis(),
            self.switches,
            self.watched.as_secs_f64(),
            if self.is_good() { "met" } else { "missed" },
        )
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
pub fn run(tell: fn(&Flipped)) -> Result<Vec<Flipped>, NetBenchError> {
    let pair = pin::pair().map_err(NetBenchError::of_pin)?;
    let _pinned = pin::pin(pair.near).map_err(NetBenchError::Pin)?;
    let mut all = Vec::new();
    let mut missing = Vec::new();
    for kind in [WireKind::Veth, WireKind::Ifb] {
        let wire = match Wire::make(kind) {
            Ok(wire) => wire,
            Err(unavailable) => {
                missing.push(Unavailable::reason(&unavailable));
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
                let flipped = observe(connection, kind, flip, &wire)?;
                tell(&flipped);
                all.push(flipped);
            }
            Ok(())
        };
        if kind == WireKind::Ifb {
            datagrams::with_sender(cell, &wire, pair.far, |sender| watch(sender))
        } else {
            let (sockets, child) = cell.begin(&wire, false, pair.far, &mut None).map_err(|error| cell.failed(error))?;
            let _alive = Pid::from_raw(child.id() as i32);
            cell.sender(sockets).and_then(|mut sender| {
                watch(&mut sender)?;
                sender.end()
            })
        }
        .map_err(|error| cell.failed(error))?;
    }
    match missing.into_iter().next() {
        Some(reason) if all.is_empty() => Err(NetBenchError::Unavailable { reason }),
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
fn observe(connection: &mut dyn Watched, kind: WireKind, flip: Flip, wire: &Wire) -> Result<Flipped, CellError> {
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
    let cost = |path: PathKind| {
        let model = last.models.iter().find(|model| model.path == path);
        model.map_or(f64::INFINITY, |model| {
            let kib = BYTES as f64 / 1024.0;
            model.piece_ns + (model.kib_ns + model.receiver_kib_ns.unwrap_or(0.0)) * kib
        })
    };
    let good = |path: PathKind| cost(path) <= cost(last.path) * NEAR;
    // From the last time on that it was not good, it is.
    let from = used.iter().rposition(|(path, ..)| !good(*path)).map_or(0, |bad| (bad + 1).min(used.len() - 1));
    let (_, sends, took, switches) = used[from];
    Ok(Flipped {
        name: format!("{kind}: {}", flip.name()),
        before: before.path,
        after: last.path,
        sends,
        took,
        switches: last.switches - switches,
        watched: begin.elapsed().saturating_sub(took),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_time_is_by_sends_or_by_time_and_restlessness_is_not_good() {
        let flipped = Flipped {
            name: "here".into(),
            before: PathKind::Write,
            after: PathKind::Splice,
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
}
