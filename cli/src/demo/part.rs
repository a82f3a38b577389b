//! The parts that the demo's processes play, each in a process of its own, and what they report.

use std::path::PathBuf;
use std::time::Duration;

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;
use zcmi::ledger::Counter;
use zcmi::observe::observe;

use super::content::{Content, Frames, Tree};
use super::road::{Receiver, Road, Sender, now_ns};
use crate::code::Fault;
use crate::failure::Failure;

/// How long a process of the demo may take to hand over its own ledger.
const LEDGER_PATIENCE: Duration = Duration::from_secs(10);

/// What is handed over.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Load {
    /// Frames; as fast as it goes, or so many a second.
    Frames { count: usize, per_second: Option<u32> },
    /// A directory tree as a tar stream of at most so many bytes.
    Tree { root: PathBuf, limit: u64 },
}

impl Load {
    fn content(&self) -> Result<Box<dyn Content>, Failure> {
        Ok(match self {
            Self::Frames { count, .. } => Box::new(Frames::new(*count)),
            Self::Tree { root, limit } => Box::new(Tree::new(root, *limit).map_err(|error| {
                Failure::of(format_args!("the directory {} cannot be read", root.display()), &error)
            })?),
        })
    }

    fn per_second(&self) -> Option<u32> {
        match self {
            Self::Frames { per_second, .. } => *per_second,
            Self::Tree { .. } => None,
        }
    }
}

/// A part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Role {
    /// Produces and hashes, without handing anything over.
    Alone,
    Send,
    Receive,
}

/// All that a process of the demo is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) role: Role,
    pub(super) road: Road,
    pub(super) load: Load,
    /// Where the report shall be written.
    pub(super) report: PathBuf,
    /// The process that this one must not outlive.
    pub(super) parent: i32,
}

/// What a process of the demo did.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Report {
    pub(super) messages: u64,
    pub(super) bytes: u64,
    /// When the first piece was begun, or the last was done with.
    pub(super) at_ns: u64,
    pub(super) cpu_s: f64,
    /// Alone: the part of hashing in it.
    pub(super) hash_cpu_s: f64,
    /// Bytes that passed through `read` or `write` to or from the other process, as the kernel counts them.
    pub(super) through_kernel: Option<u64>,
    /// Bytes that zcmi copied in this process, by its ledger; nothing where another road was taken.
    pub(super) copied_user: Option<u64>,
    pub(super) in_place: u64,
    pub(super) hash: String,
    pub(super) p50_ns: u64,
    pub(super) p99_ns: u64,
}

/// Runs a part, from the words of the hidden command.
pub(super) fn run(order: &str) -> Result<(), Failure> {
    let order: Order = serde_json::from_str(order).map_err(|error| Failure::usage(format!("no part: {error}")))?;
    let dies_with_parent = set_parent_process_death_signal(Some(Signal::KILL));
    dies_with_parent.map_err(|errno| Failure::of("prctl failed", &errno))?;
    if getppid() != Pid::from_raw(order.parent) {
        return Err(Failure::new(Fault::Demo, "the demo has ended"));
    }
    let report = match order.role {
        Role::Alone => alone(&order.load)?,
        Role::Send => send(order.road, &order.load)?,
        Role::Receive => receive(order.road, &order.load)?,
    };
    let text = serde_json::to_vec(&report).map_err(|error| Failure::of("the report", &error))?;
    std::fs::write(&order.report, text).map_err(|error| Failure::of("the report cannot be written", &error))
}

/// CPU time of this process, all its threads.
fn cpu_s() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// Bytes that this process passed through `read` (`rchar`) or `write` (`wchar`).
fn counted(key: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/io").ok()?;
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(": ")?.parse().ok())
}

/// Bytes that zcmi copied in this process, as any observer reads them from its ledger.
fn copied_by_zcmi(road: Road) -> Result<Option<u64>, Failure> {
    if road != Road::Zcmi {
        return Ok(None);
    }
    let process = zcmi::Process::current().map_err(|error| Failure::of("the demo's process is gone", &error))?;
    let observed = observe(process.directory(), process.incarnation(), None, LEDGER_PATIENCE);
    let ledger = observed.ledger.ok_or_else(|| {
        let reason = observed.no_ledger.unwrap_or_default();
        Failure::new(Fault::Demo, format!("the demo's ledger cannot be read: {reason}"))
    })?;
    Ok(ledger.read().total().count(Counter::CopiedUser).ok())
}

fn writing(error: std::io::Error) -> Failure {
    Failure::of("the demo's content cannot be read", &error)
}

fn alone(load: &Load) -> Result<Report, Failure> {
    if matches!(load, Load::Tree { .. }) {
        // Once beforehand, so that the files are in memory for everybody.
        let mut content = load.content()?;
        let mut room = vec![0; content.piece_bytes()];
        while content.write(&mut room).map_err(writing)? > 0 {}
    }
    let mut content = load.content()?;
    let mut room = vec![1; content.piece_bytes()];
    let mut hash = Xxh3::new();
    let mut report = Report::default();
    loop {
        let begin = cpu_s();
        let bytes = content.write(&mut room).map_err(writing)?;
        let produced = cpu_s();
        if bytes == 0 {
            report.hash = format!("{:032x}", hash.digest128());
            return Ok(report);
        }
        hash.update(&room[..bytes]);
        let hashed = cpu_s();
        report.messages += 1;
        report.bytes += bytes as u64;
        report.cpu_s += hashed - begin;
        report.hash_cpu_s += hashed - produced;
    }
}

fn send(road: Road, load: &Load) -> Result<Report, Failure> {
    let mut content = load.content()?;
    let mut sender = Sender::new(road, content.piece_bytes())?;
    let mut report = Report { at_ns: now_ns(), ..Report::default() };
    let (cpu, through) = (cpu_s(), counted("wchar"));
    loop {
        if let Some(per_second) = load.per_second() {
            let due = report.at_ns + report.messages * 1_000_000_000 / u64::from(per_second.max(1));
            std::thread::sleep(Duration::from_nanos(due.saturating_sub(now_ns())));
        }
        let bytes = content.write(sender.room()?).map_err(writing)?;
        if bytes == 0 {
            break;
        }
        sender.send(bytes)?;
        report.messages += 1;
        report.bytes += bytes as u64;
    }
    report.cpu_s = cpu_s() - cpu;
    report.through_kernel = counted("wchar").zip(through).map(|(now, before)| now - before);
    report.copied_user = copied_by_zcmi(road)?;
    sender.finish()?;
    Ok(report)
}

fn receive(road: Road, load: &Load) -> Result<Report, Failure> {
    let piece_bytes = load.content()?.piece_bytes();
    let mut receiver = Receiver::new(road, piece_bytes)?;
    let mut report = Report::default();
    let mut hash = Xxh3::new();
    let mut waits = Vec::new();
    let (cpu, through) = (cpu_s(), counted("rchar"));
    let each = |report: &mut Report, receiver: &mut Receiver, hash: &mut Xxh3, waits: &mut Vec<u64>| {
        receiver.receive(|piece| {
            waits.push(now_ns().saturating_sub(piece.sent_ns));
            hash.update(piece.data);
            report.messages += 1;
            report.bytes += piece.data.len() as u64;
            report.in_place += u64::from(piece.in_place);
        })
    };
    while each(&mut report, &mut receiver, &mut hash, &mut waits)? {
        report.at_ns = now_ns();
    }
    report.cpu_s = cpu_s() - cpu;
    report.through_kernel = counted("rchar").zip(through).map(|(now, before)| now - before);
    report.copied_user = copied_by_zcmi(road)?;
    report.hash = format!("{:032x}", hash.digest128());
    waits.sort_unstable();
    report.p50_ns = percentile(&waits, 50);
    report.p99_ns = percentile(&waits, 99);
    Ok(report)
}

/// The smallest value that at least so many of a hundred do not exceed.
fn percentile(sorted: &[u64], percent: usize) -> u64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::percentile;

    #[test]
    fn percentiles_are_values_that_occurred() {
        let values: Vec<u64> = (1..=200).collect();
        assert_eq!((percentile(&values, 50), percentile(&values, 99)), (100, 198));
        assert_eq!((percentile(&[7], 99), percentile(&[], 50)), (7, 0));
    }
}
