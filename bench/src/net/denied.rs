//! What it costs that a facility is denied: the choice beside plain writes, in a process to which the kernel refuses
//! what paths need, one thing after the other and all of them together.
//!
//! Each denial has a process of its own, because most cannot be taken back; its receiver is denied the same. The two
//! rows take turns, and neither is always the first.

mod sys;

use core::fmt;
use std::io;
use std::time::Duration;

use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};
use serde::{Deserialize, Serialize};
use zcmi_net::path::PathKind;

use super::{Cell, CellError, NetBenchError, RowKind};
use crate::child::{Channel, Child, Role, RoleResult};
use crate::pin;
use crate::wires::{Side, Wire, WireKind};

/// How much dearer or slower than plain writes it may be.
pub const MOST_OFF: f64 = 0.05;
/// The part that a child plays; the program passes it to [`crate::child::maybe_run_child`].
pub const ROLE: Role = Role { name: "net-denied", run: child };
/// The size of messages.
const BYTES: usize = 64 << 10;

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
    /// All of them but scatter-gather, which another wire is for.
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

    /// The wire, with what is denied there.
    fn wire(self) -> Result<Wire, CellError> {
        let kind = if self == Self::ScatterGather { WireKind::Veth } else { WireKind::Lo };
        let wire = Wire::make(kind).map_err(|unavailable| CellError::NotTaken(unavailable.reason()))?;
        match self {
            Self::ScatterGather => wire.set_scatter_gather(false)?,
            Self::OptionMemory | Self::All if !wire.is_of_host() => {
                let limit = || std::fs::write("/proc/sys/net/core/optmem_max", "1");
                let failed = |source| CellError::System { call: "write of optmem_max", source };
                wire.enter(Side::Sender, limit)?.map_err(failed)?;
            }
            // The host's is everybody's.
            Self::OptionMemory => return Err(CellError::NotTaken("a network of its own takes root".into())),
            _ => {}
        }
        Ok(wire)
    }

    /// Denies this process what is denied to processes.
    fn apply(self) -> io::Result<()> {
        if matches!(self, Self::LockedMemory | Self::All) {
            let mut sets = rustix::thread::capabilities(None)?;
            sets.effective.remove(CapabilitySet::IPC_LOCK);
            rustix::thread::set_capabilities(None, sets)?;
            let maximum = rustix::process::getrlimit(Resource::Memlock).maximum;
            let limit = Rlimit { current: Some(64 << 10), maximum };
            rustix::process::setrlimit(Resource::Memlock, limit)?;
        }
        if self == Self::Capabilities {
            let none = CapabilitySet::empty();
            let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
            rustix::thread::set_capabilities(None, sets)?;
        }
        let all = self == Self::All;
        let calls = [
            (all || self == Self::Uring, vec![sys::URING]),
            (all || self == Self::Sharing, sys::SHARING.to_vec()),
            (all || self == Self::ZeroCopy, vec![sys::ZERO_COPY]),
        ];
        let denials: Vec<_> = calls.into_iter().filter(|(is, _)| *is).flat_map(|(_, denials)| denials).collect();
        if denials.is_empty() { Ok(()) } else { sys::deny(&denials) }
    }
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

/// What a child found: throughput and processor time of the choice by those of plain writes, for each round; or why
/// this cannot be measured here.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Answer {
    ratios: Vec<[f64; 2]>,
    reason: Option<String>,
}

/// What came of a denial.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// What was denied.
    pub denied: &'static str,
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
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "without {:<28} ", self.denied)?;
        match &self.ratios {
            Ok([rate, cost]) => write!(
                f,
                "adaptive by write: throughput {rate:.3}, CPU per GB {cost:.3} (at most {:.0} % worse): {}",
                MOST_OFF * 100.0,
                if self.is_good() { "met" } else { "missed" },
            ),
            Err(reason) => write!(f, "SKIP: {reason}"),
        }
    }
}

/// All denials, one after the other.
///
/// # Errors
/// Too few processors, and whatever breaks a measurement.
pub fn run(rounds: usize, length: Duration, tell: fn(&Outcome)) -> Result<Vec<Outcome>, NetBenchError> {
    let pair = pin::pair().map_err(NetBenchError::of_pin)?;
    let mut all = Vec::new();
    for denied in Denied::ALL {
        let wire = if denied == Denied::ScatterGather { WireKind::Veth } else { WireKind::Lo };
        let cell = Cell { wire, row: RowKind::Adaptive, bytes: BYTES, streams: 1 };
        let brief = Brief { denied, rounds, length, near: pair.near, far: pair.far };
        let answer = ask(&brief).map_err(|error| cell.failed(error))?;
        let ratios = match answer.reason {
            Some(reason) => Err(reason),
            None => Ok([0, 1].map(|at| median(answer.ratios.iter().map(|ratios| ratios[at]).collect()))),
        };
        let outcome = Outcome { denied: denied.name(), ratios };
        tell(&outcome);
        all.push(outcome);
    }
    Ok(all)
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_unstable_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
}

fn ask(brief: &Brief) -> Result<Answer, CellError> {
    let child = Child::spawn(ROLE.name)?;
    child.channel().send(brief, &[])?;
    let mut ratios = Vec::new();
    // A word for each round, so that the silence of a long measurement is not taken for death.
    loop {
        let answer: Answer = child.channel().receive(0)?.0;
        let last = answer.ratios.is_empty();
        ratios.extend(answer.ratios);
        if last {
            child.finish()?;
            return Ok(Answer { ratios, reason: answer.reason });
        }
    }
}

fn child(channel: &Channel) -> RoleResult {
    let brief: Brief = channel.receive(0)?.0;
    let _pinned = pin::pin(brief.near)?;
    // What takes rights that are about to go comes first; without them it is the host's loopback device.
    let early = if brief.denied == Denied::Capabilities { None } else { Some(brief.denied.wire()) };
    brief.denied.apply()?;
    let wire = match early.unwrap_or_else(|| brief.denied.wire()) {
        Ok(wire) => wire,
        Err(CellError::NotTaken(reason)) => {
            channel.send(&Answer { ratios: Vec::new(), reason: Some(reason) }, &[])?;
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    for round in 0..brief.rounds {
        let mut found = [[0.0; 2]; 2];
        for at in [round % 2, 1 - round % 2] {
            let row = if at == 0 { RowKind::Adaptive } else { RowKind::Forced(PathKind::Write) };
            let cell = Cell { wire: wire.kind(), row, bytes: BYTES, streams: 1 };
            // Both warm up for longer than a choice takes.
            found[at] = cell.throughput(&wire, brief.length, brief.far)?.rate_and_cost();
        }
        let ratios = [found[0][0] / found[1][0], found[0][1] / found[1][1]];
        channel.send(&Answer { ratios: vec![ratios], reason: None }, &[])?;
    }
    channel.send(&Answer { ratios: Vec::new(), reason: None }, &[])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_percent_off_either_way_is_missed_and_what_was_not_measured_is_not_met() {
        let outcome = |ratios| Outcome { denied: "io_uring", ratios };
        assert!(outcome(Ok([0.96, 1.04])).is_good());
        assert!(!outcome(Ok([0.94, 1.0])).is_good() && !outcome(Ok([1.0, 1.06])).is_good());
        let skipped = outcome(Err("no root".into()));
        assert!(!skipped.is_good() && skipped.to_string().contains("SKIP: no root"));
        assert!((median(vec![3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
    }
}
