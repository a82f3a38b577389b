//! What it costs that a facility is denied: the choice beside plain writes, in a process to which the kernel refuses
//! what paths need, one thing after the other and all of them together.
//!
//! Each denial has a process of its own, because most cannot be taken back; its receiver is denied the same. The two
//! rows take turns, and neither is always the first.
//!
//! What makes wires takes rights that some denials take away. So a denied process has two threads: one that keeps its
//! rights and opens streams, and the one that is measured, for filters of system calls and capabilities are a thread's
//! own. What is not to be had there is found out by trying, and told beside the figures, as is the congestion control:
//! both rows must have the same, or there is no figure.

mod sys;

use core::fmt;
use std::io;
use std::sync::mpsc;
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use zcmi_mem::registration::Support;
use zcmi_net::path::PathKind;
use zcmi_net::socket::SocketWire;
use zcmi_net::uring::{self, Ring};

use super::{Cell, CellError, NetBenchError, RowKind};
use crate::child::{Channel, Child, Role, RoleResult};
use crate::host::Host;
use crate::pin;
use crate::report::{self, ReportError};
use crate::wires::{Side, Streams, Wire, WireKind};

/// The name and version of the document.
pub const SCHEMA: &str = "zcmi-bench-denied/1";

/// How much dearer or slower than plain writes it may be.
pub const MOST_OFF: f64 = 0.05;
/// The part that a child plays; the program passes it to [`crate::child::maybe_run_child`].
pub const ROLE: Role = Role { name: "net-denied", run: child };
/// The size of messages.
const BYTES: usize = 64 << 10;
/// How much memory may be locked where that is denied.
const LOCKED_BYTES: u64 = 64 << 10;
/// Where the limit of a network's memory for what sockets note is set.
const OPTION_MEMORY: &str = "/proc/sys/net/core/optmem_max";

/// What is denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Denied {
    /// Nothing, to compare.
    Nothing,
    /// io_uring, by a filter of system calls, as containers do and as the operator's switch does.
    Uring,
    /// `SO_ZEROCOPY`.
    ZeroCopy,
    /// More than 64 KiB of locked memory.
    LockedMemory,
    /// Memory for what sockets note.
    OptionMemory,
    /// A device that gathers scattered pages.
    ScatterGather,
    /// Whatever takes a capability.
    Capabilities,
    /// `sendfile`, `splice` and `vmsplice`.
    Sharing,
    /// All of them at once.
    All,
}

impl Denied {
    const ALL: [Self; 9] = [
        Self::Nothing,
        Self::Uring,
        Self::ZeroCopy,
        Self::LockedMemory,
        Self::OptionMemory,
        Self::ScatterGather,
        Self::Capabilities,
        Self::Sharing,
        Self::All,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Uring => "io_uring",
            Self::ZeroCopy => "SO_ZEROCOPY",
            Self::LockedMemory => "memlock past 64 KiB",
            Self::OptionMemory => "optmem past 1 byte",
            Self::ScatterGather => "scatter-gather",
            Self::Capabilities => "capabilities",
            Self::Sharing => "sendfile, splice, vmsplice",
            Self::All => "all together",
        }
    }

    /// Which wire it is measured on: a loopback device gathers always.
    fn wire_kind(self) -> WireKind {
        if matches!(self, Self::ScatterGather | Self::All) { WireKind::Veth } else { WireKind::Lo }
    }

    /// Whether the denied thread makes the wire itself: without capabilities alone it has what anybody has, the host's
    /// loopback device and the congestion control that the host allows.
    fn has_own_wire(self) -> bool {
        self == Self::Capabilities
    }

    /// The wire, with what is denied there.
    fn wire(self) -> Result<Wire, CellError> {
        let wire = Wire::make(self.wire_kind()).map_err(|unavailable| CellError::NotTaken(unavailable.reason()))?;
        if matches!(self, Self::ScatterGather | Self::All) {
            wire.set_scatter_gather(false)?;
        }
        if matches!(self, Self::OptionMemory | Self::All) {
            if wire.is_of_host() {
                // The host's is everybody's.
                return Err(CellError::NotTaken("a network of its own takes root".into()));
            }
            let limit = || std::fs::write(OPTION_MEMORY, "1");
            let failed = |source| CellError::System { call: "write of optmem_max", source };
            wire.enter(Side::Sender, limit)?.map_err(failed)?;
        }
        Ok(wire)
    }

    /// What is found to be denied on the wire.
    fn found_on(wire: &Wire) -> Result<Vec<String>, CellError> {
        let mut found = Vec::new();
        if !wire.is_of_host() {
            let failed = |source| CellError::System { call: "read of optmem_max", source };
            let limit = wire.enter(Side::Sender, || std::fs::read_to_string(OPTION_MEMORY))?.map_err(failed)?;
            found.extend((limit.trim() == "1").then(|| Self::OptionMemory.name().to_owned()));
        }
        if wire.kind() == WireKind::Veth && !wire.scatter_gather()? {
            found.push(Self::ScatterGather.name().to_owned());
        }
        Ok(found)
    }

    /// Denies this thread, and what it starts, what is denied to threads and processes.
    fn apply(self) -> io::Result<()> {
        let all = self == Self::All;
        if all || self == Self::LockedMemory {
            let maximum = rustix::process::getrlimit(Resource::Memlock).maximum;
            rustix::process::setrlimit(Resource::Memlock, Rlimit { current: Some(LOCKED_BYTES), maximum })?;
        }
        if all || self == Self::Capabilities {
            give_up(CapabilitySet::all())?;
        } else if self == Self::LockedMemory {
            give_up(CapabilitySet::IPC_LOCK)?;
        }
        let calls = [
            (all || self == Self::Uring, vec![sys::URING]),
            (all || self == Self::Sharing, sys::SHARING.to_vec()),
            (all || self == Self::ZeroCopy, vec![sys::ZERO_COPY]),
        ];
        let denials: Vec<_> = calls.into_iter().filter(|(is, _)| *is).flat_map(|(_, denials)| denials).collect();
        if denials.is_empty() { Ok(()) } else { sys::deny(&denials) }
    }
}

/// Gives up these capabilities for good: without the second call a program that root starts has them all again.
fn give_up(capabilities: CapabilitySet) -> io::Result<()> {
    let sets = rustix::thread::capabilities(None)?;
    let less = |set: CapabilitySet| set.difference(capabilities);
    let CapabilitySets { effective, permitted, inheritable } = sets;
    let sets =
        CapabilitySets { effective: less(effective), permitted: less(permitted), inheritable: less(inheritable) };
    rustix::thread::set_capabilities(None, sets)?;
    Ok(rustix::thread::set_no_new_privs(true)?)
}

/// What a child is told.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Brief {
    denied: Denied,
    rounds: usize,
    length: Duration,
    near: usize,
    far: usize,
}

/// What a child says.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Answer {
    /// What it found that it cannot have.
    Found(Vec<String>),
    /// What a round gave: throughput and processor time of the choice by those of plain writes, and the congestion
    /// control of both.
    Round([f64; 2], Option<String>),
    /// Why this cannot be measured here.
    Cannot(String),
    /// It was the last round.
    Done,
}

/// What came of a denial.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// What was denied.
    pub denied: &'static str,
    /// The wire.
    pub wire: WireKind,
    /// What the measured process could not have when it tried.
    pub found: Vec<String>,
    /// The congestion control of both rows.
    pub congestion: Option<String>,
    /// Throughput and processor time of the choice by those of plain writes, the medians of all rounds; or why there is
    /// nothing.
    pub ratios: Result<[f64; 2], String>,
}

impl Outcome {
    /// Whether it was at most so much worse than plain writes.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.ratios.as_ref().is_ok_and(|[rate, cost]| *rate >= 1.0 - MOST_OFF && *cost <= 1.0 + MOST_OFF)
    }

    /// As it stands in a document.
    fn value(&self) -> Value {
        let mut value = json!({ "denied": self.denied, "wire": self.wire.name(), "found": self.found });
        if let Some(congestion) = &self.congestion {
            value["congestion"] = json!(congestion);
        }
        match &self.ratios {
            Ok([rate, cost]) => {
                value["throughput_ratio"] = json!(rate);
                value["cpu_ratio"] = json!(cost);
                value["met"] = json!(self.is_good());
            }
            Err(reason) => value["skipped"] = json!(reason),
        }
        value
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "without {:<28} ", self.denied)?;
        match &self.ratios {
            Ok([rate, cost]) => write!(
                f,
                "adaptive by write: throughput {rate:.3}, CPU per GB {cost:.3} (at most {:.0} % worse): {}; {}, both \
                 rows {}",
                MOST_OFF * 100.0,
                if self.is_good() { "met" } else { "missed" },
                self.wire,
                self.congestion.as_deref().unwrap_or("without congestion control"),
            ),
            Err(reason) => write!(f, "SKIP: {reason}"),
        }
    }
}

/// What came of all denials.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcomes {
    /// How often each was measured, and for how long.
    pub rounds: usize,
    /// The length of a measurement.
    pub length: Duration,
    /// The denials, in order.
    pub cases: Vec<Outcome>,
}

impl Outcomes {
    /// The document: the shape [`SCHEMA`] of `docs/bench-schema.json`.
    ///
    /// # Errors
    /// A figure that is no number.
    pub fn to_json(&self, host: &Host) -> Result<String, ReportError> {
        let content = json!({
            "rounds": self.rounds,
            "length_ms": self.length.as_millis() as u64,
            "bytes": BYTES,
            "most_off": MOST_OFF,
            "cases": self.cases.iter().map(Outcome::value).collect::<Vec<_>>(),
        });
        report::document(SCHEMA, host, &content)
    }
}

/// All denials, one after the other.
///
/// # Errors
/// Too few processors, and whatever breaks a measurement.
pub fn run(rounds: usize, length: Duration, tell: fn(&Outcome)) -> Result<Outcomes, NetBenchError> {
    let pair = pin::pair().map_err(NetBenchError::of_pin)?;
    let mut cases = Vec::new();
    for denied in Denied::ALL {
        let cell = Cell { wire: denied.wire_kind(), row: RowKind::Adaptive, bytes: BYTES, streams: 1 };
        let brief = Brief { denied, rounds, length, near: pair.near, far: pair.far };
        let outcome = ask(&brief).map_err(|error| cell.failed(error))?;
        tell(&outcome);
        cases.push(outcome);
    }
    Ok(Outcomes { rounds, length, cases })
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_unstable_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
}

fn ask(brief: &Brief) -> Result<Outcome, CellError> {
    let child = Child::spawn(ROLE.name)?;
    child.channel().send(brief, &[])?;
    let mut rounds: Vec<([f64; 2], Option<String>)> = Vec::new();
    let (mut found, mut reason) = (Vec::new(), None);
    // A word for each round, so that the silence of a long measurement is not taken for death.
    loop {
        match child.channel().receive(0)?.0 {
            Answer::Found(all) => found = all,
            Answer::Round(ratios, congestion) => {
                if let Some((_, before)) = rounds.first() {
                    must_be_alike(before.as_deref(), congestion.as_deref())?;
                }
                rounds.push((ratios, congestion));
            }
            Answer::Cannot(why) => reason = Some(why),
            Answer::Done => break,
        }
    }
    child.finish()?;
    let ratios = match reason {
        Some(reason) => Err(reason),
        None => Ok([0, 1].map(|at| median(rounds.iter().map(|(ratios, _)| ratios[at]).collect()))),
    };
    let congestion = rounds.into_iter().next().and_then(|(_, congestion)| congestion);
    let (denied, wire) = (brief.denied.name(), brief.denied.wire_kind());
    Ok(Outcome { denied, wire, found, congestion, ratios })
}

/// Refuses to compare what had another congestion control: two rows, or two rounds.
fn must_be_alike(one: Option<&str>, other: Option<&str>) -> Result<(), CellError> {
    if one == other {
        return Ok(());
    }
    let [one, other] = [one, other].map(|name| name.unwrap_or("none"));
    Err(CellError::NotTaken(format!("its congestion control was {one} and {other}, which do not compare")))
}

fn child(channel: &Channel) -> RoleResult {
    let brief: Brief = channel.receive(0)?.0;
    let _pinned = pin::pin(brief.near)?;
    let made = if brief.denied.has_own_wire() { None } else { Some(brief.denied.wire()) };
    let wire = match made.transpose() {
        Ok(wire) => wire,
        Err(CellError::NotTaken(reason)) => {
            channel.send(&Answer::Cannot(reason), &[])?;
            return Ok(channel.send(&Answer::Done, &[])?);
        }
        Err(error) => return Err(error.into()),
    };
    let on_wire = wire.as_ref().map_or(Ok(Vec::new()), Denied::found_on)?;
    let (asks, asked) = mpsc::channel::<()>();
    let (gives, given) = mpsc::channel();
    let denied = std::thread::scope(|scope| {
        let denied = scope.spawn(move || {
            brief.denied.apply().map_err(|source| CellError::System { call: "denying", source })?;
            let own = if brief.denied.has_own_wire() { Some(brief.denied.wire()?) } else { None };
            let open = || match &own {
                Some(wire) => Ok(wire.streams()?),
                None => {
                    // Who opens is there as long as this thread asks.
                    let _or_gone = asks.send(());
                    given.recv().unwrap_or(Err(CellError::Late("who opens streams was gone")))
                }
            };
            channel.send(&Answer::Found([on_wire, found(open()?)?].concat()), &[])?;
            measure(channel, &brief, open)
        });
        // Ends when the thread has ended, and with it its end of the channel.
        for () in asked {
            let streams = match &wire {
                Some(wire) => wire.streams().map_err(CellError::from),
                None => Err(CellError::Late("a wire was not there")),
            };
            let _or_gone = gives.send(streams);
        }
        denied.join()
    });
    denied.map_err(|_| CellError::Late("the measuring thread panicked"))??;
    Ok(())
}

/// What the denied thread does.
fn measure(channel: &Channel, brief: &Brief, open: impl Fn() -> Result<Streams, CellError>) -> Result<(), CellError> {
    for round in 0..brief.rounds {
        let (mut found, mut congestion) = ([[0.0; 2]; 2], [None, None]);
        for at in [round % 2, 1 - round % 2] {
            let row = if at == 0 { RowKind::Adaptive } else { RowKind::Forced(PathKind::Write) };
            let cell = Cell { wire: brief.denied.wire_kind(), row, bytes: BYTES, streams: 1 };
            // Both warm up for longer than a choice takes.
            let (measured, _) = cell.throughput_over(vec![open()?], brief.length, brief.far)?;
            (found[at], congestion[at]) = (measured.rate_and_cost(), measured.congestion);
        }
        let [ours, theirs] = congestion;
        must_be_alike(ours.as_deref(), theirs.as_deref())?;
        let ratios = [found[0][0] / found[1][0], found[0][1] / found[1][1]];
        channel.send(&Answer::Round(ratios, ours), &[])?;
    }
    Ok(channel.send(&Answer::Done, &[])?)
}

/// What this thread cannot have, by trying; what is denied on a wire is known to who made it.
fn found(streams: Streams) -> Result<Vec<String>, CellError> {
    let mut found = Vec::new();
    let mut is = |denied: Denied, is_denied: bool| {
        if is_denied {
            found.push(denied.name().to_owned());
        }
    };
    is(Denied::Uring, Ring::open(uring::Options::default()).is_err());
    let mut socket = SocketWire::new(streams.sender).map_err(|error| CellError::NotTaken(error.to_string()))?;
    is(Denied::ZeroCopy, matches!(socket.supports(PathKind::ZeroCopy), Support::No(_)));
    let limit = rustix::process::getrlimit(Resource::Memlock).current;
    let sets = rustix::thread::capabilities(None).map_err(super::system("capget"))?;
    let locks = sets.effective.contains(CapabilitySet::IPC_LOCK);
    is(Denied::LockedMemory, !locks && limit.is_some_and(|limit| limit <= LOCKED_BYTES));
    is(Denied::Capabilities, sets.effective.is_empty() && sets.permitted.is_empty());
    let file = memfd_create("zcmi-denied", MemfdFlags::CLOEXEC).map_err(super::system("memfd_create"))?;
    let sendfile = rustix::fs::sendfile(&socket, &file, None, 0);
    is(Denied::Sharing, sendfile.is_err() && matches!(socket.supports(PathKind::Splice), Support::No(_)));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn what_a_thread_without_capabilities_starts_has_none_either() {
        let status = std::thread::spawn(|| {
            Denied::Capabilities.apply().expect("it gives up what it has");
            Command::new("cat").arg("/proc/self/status").output().expect("it starts")
        });
        let status = String::from_utf8(status.join().expect("a status").stdout).expect("text");
        for set in ["CapInh:", "CapPrm:", "CapEff:"] {
            let bits = status.lines().find_map(|line| line.strip_prefix(set)).map(str::trim);
            assert!(bits.is_some_and(|bits| bits.bytes().all(|digit| digit == b'0')), "{set} {bits:?}");
        }
    }

    #[test]
    fn rows_of_another_congestion_control_are_not_compared() {
        assert!(must_be_alike(Some("bbr"), Some("bbr")).is_ok() && must_be_alike(None, None).is_ok());
        let refused = must_be_alike(Some("cubic"), Some("bbr")).expect_err("they differ").to_string();
        assert!(refused.contains("cubic and bbr"), "{refused}");
        assert!(must_be_alike(None, Some("bbr")).is_err());
    }

    #[test]
    fn five_percent_off_either_way_is_missed_and_what_was_not_measured_is_not_met() {
        let (found, wire) = (vec!["io_uring".into()], WireKind::Lo);
        let outcome = |ratios| Outcome { denied: "io_uring", wire, found: found.clone(), congestion: None, ratios };
        assert!(outcome(Ok([0.96, 1.04])).is_good());
        assert!(!outcome(Ok([0.94, 1.0])).is_good() && !outcome(Ok([1.0, 1.06])).is_good());
        let skipped = outcome(Err("no root".into()));
        assert!(!skipped.is_good() && skipped.to_string().contains("SKIP: no root"));
        assert!((median(vec![3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
    }
}
