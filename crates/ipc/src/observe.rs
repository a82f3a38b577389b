//! Looking at a process from outside: what it says of itself, and what its ledger counted.
//!
//! ```text
//!  observer ── Hello, Observe ──▶ control thread        within the patience: regions and a report come back
//!           ◀─ Ledger, Report ──
//!           ── /proc/PID/fd ────▶ the same regions      of one that is stopped, silent, or not to be asked
//! ```
//!
//! The counts are read by the observer itself, from memory that the process wrote. So a process that is stopped, or
//! whose control thread is busy, costs nothing but the report's words, and one that dies later can still be read by
//! whoever mapped its ledger before.
//!
//! # Invariants
//! - Whatever comes from the other process is a claim: a report is bounded in bytes, messages and time, a region is
//!   checked like any that arrives, and the ledger must bear the incarnation that was asked for.
//! - What is read through `/proc` belongs to the process that its pidfd stands for, which is asked after the
//!   descriptors were opened: a number that was used again is noticed.
//! - A descriptor of a strange file system is never asked anything that the file system could answer late.

use std::collections::HashMap;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use zcmi_mem::ledger::{LedgerReader, LedgerReading};
use zcmi_mem::region::found::{OpenRegion, OpenRegions, is_stopped, open_regions};
use zcmi_mem::region::{PeerRegion, PeerTrust, RegionClaim, RegionId};

use crate::directory::RuntimeDirectory;
use crate::name::Incarnation;
use crate::report::ProcessReport;
use crate::socket::{ConnectError, Connection, MAX_MESSAGE_BYTES, Received, SendOutcome, is_same_user};
use crate::sys;
use crate::wire::{Hello, Message, VERSION, VERSION_MIN};

/// The most bytes of a report; it has a line of some 300 for each endpoint.
const MAX_REPORT_BYTES: usize = 2 << 20;
/// The most messages that an observer reads.
const MAX_MESSAGES: usize = 4096;
/// The most regions that an observer maps of one process.
pub(crate) const MAX_REGIONS: usize = 64;
/// The most memory that an observer maps of one process.
const MAX_MAPPED_BYTES: u64 = 4 << 30;
/// What the data of a region begins with that is a ledger.
const LEDGER: &[u8; 8] = b"zcmi-led";
/// How long a process's descriptors are looked at, beyond the patience with its answer.
const SEARCH: Duration = Duration::from_millis(400);

/// How a process was found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProcessState {
    /// It answered.
    Running,
    /// It is stopped: by a signal, or by a debugger.
    Stopped,
    /// It lives and did not answer in time, or does not answer us.
    Silent,
    /// It is gone.
    Dead,
    /// It could not be asked, for this reason.
    Unknown(String),
}

/// What was found of a process.
#[derive(Debug)]
#[non_exhaustive]
pub struct Observed {
    /// How it was found.
    pub state: ProcessState,
    /// Whether its socket took us. One that keeps us out does so when its process is dead, too.
    pub reached: bool,
    /// Its process number as we see it; 0 where it is of another namespace.
    pub pid: u32,
    /// What it says of itself, if it answered.
    pub report: Option<ProcessReport>,
    /// Its counts, if they can be read.
    pub ledger: Option<ObservedLedger>,
    /// Why there is no ledger.
    pub no_ledger: Option<String>,
    /// Memory objects of ours that it has open, and their bytes, where that was looked at.
    pub open_regions: Option<(u64, u64)>,
}

impl Observed {
    fn without_counts(state: ProcessState, pid: u32, reason: &str) -> Self {
        let no_ledger = Some(reason.to_owned());
        Self { state, reached: true, pid, report: None, ledger: None, no_ledger, open_regions: None }
    }

    fn not_reached(state: ProcessState, reason: &str) -> Self {
        Self { reached: false, ..Self::without_counts(state, 0, reason) }
    }
}

/// A process's ledger, mapped; it can be read whatever becomes of the process.
#[derive(Debug)]
pub struct ObservedLedger {
    reader: LedgerReader,
    regions: HashMap<RegionId, Arc<PeerRegion>>,
}

impl ObservedLedger {
    /// What the process counted until now. Endpoints that came after the ledger was mapped can lie in regions that were
    /// not; what follows from those is unknown, and says so.
    #[must_use]
    pub fn read(&self) -> LedgerReading {
        self.reader.read(|id| self.regions.get(&id).map(Arc::clone))
    }
}

/// Looks at a process without being a participant, and waits for its answer at most `patience`.
///
/// `said_pid` is the number by which its participant's file calls it; it is used where the socket does not tell one,
/// and only for a process whose ledger bears the incarnation.
///
/// # Kernel
/// One that does not answer is read through `/proc/PID/fd`, which takes the same user or root, and no restriction on
/// tracing it (`ptrace_may_access`).
#[must_use]
pub fn observe(
    directory: &RuntimeDirectory,
    incarnation: Incarnation,
    said_pid: Option<u32>,
    patience: Duration,
) -> Observed {
    let deadline = Instant::now() + patience;
    let connection = match Connection::connect(directory, incarnation) {
        Ok(connection) => connection,
        Err(ConnectError::Dead(_)) => return Observed::not_reached(ProcessState::Dead, "the process is gone"),
        // Its queue is full because it does not take from it.
        Err(ConnectError::Busy(_)) => return look(incarnation, said_pid.unwrap_or(0), None, "it accepts nobody"),
        Err(error) => return Observed::not_reached(ProcessState::Unknown(error.to_string()), "it was not asked"),
    };
    let (pid, same_user) = match connection.credentials() {
        Ok(credentials) => (credentials.pid, is_same_user(credentials.uid, rustix::process::geteuid().as_raw())),
        Err(error) => return Observed::without_counts(ProcessState::Unknown(error.to_string()), 0, "it was not asked"),
    };
    let pidfd = connection.pidfd().ok().map(|(pidfd, _)| pidfd);
    if pidfd.as_ref().is_some_and(|pidfd| sys::is_dead(pidfd.as_fd()).unwrap_or(false)) {
        return Observed::without_counts(ProcessState::Dead, pid, "the process is gone");
    }
    match Answer::of(&connection, incarnation, same_user, deadline) {
        Ok(answer) => {
            let (ledger, no_ledger) = match answer.ledger {
                Ok(ledger) => (Some(ledger), None),
                Err(reason) => (None, Some(reason)),
            };
            let (state, report) = (ProcessState::Running, Some(answer.report));
            Observed { state, reached: true, pid, report, ledger, no_ledger, open_regions: None }
        }
        Err(reason) => {
            let seen = look(incarnation, pid, pidfd, &reason);
            // Another user's process need not answer us, so that its silence says nothing about it.
            let is_silent = seen.state == ProcessState::Silent && seen.ledger.is_none();
            if is_silent && !same_user { Observed { state: ProcessState::Unknown(reason), ..seen } } else { seen }
        }
    }
}

/// What a process answered.
struct Answer {
    report: ProcessReport,
    ledger: Result<ObservedLedger, String>,
}

impl Answer {
    /// Asks, and reads the answer; the error is why there is none.
    fn of(
        connection: &Connection,
        incarnation: Incarnation,
        same_user: bool,
        deadline: Instant,
    ) -> Result<Self, String> {
        let own = Incarnation::random().map_err(|error| error.to_string())?;
        let hello = Hello { version_min: VERSION_MIN, version: VERSION, incarnation: own };
        for message in [Message::Hello(hello), Message::Observe] {
            match connection.send(&message.encode(), &[]) {
                Ok(SendOutcome::Sent) => {}
                Ok(SendOutcome::WouldBlock) => return Err("it reads nothing".into()),
                Err(error) => return Err(error.to_string()),
            }
        }
        let mut found = Found::new(if same_user { PeerTrust::SameUser } else { PeerTrust::Stranger });
        let (mut text, mut buffer) = (Vec::new(), [0; MAX_MESSAGE_BYTES]);
        for _ in 0..MAX_MESSAGES {
            let left = deadline.saturating_duration_since(Instant::now());
            match connection.receive(&mut buffer).map_err(|error| error.to_string())? {
                Received::Message { len, descriptors } => {
                    match Message::decode(&buffer[..len]).map_err(|error| error.to_string())? {
                        Message::Ledger { regions } => {
                            for (name, descriptor) in regions.iter().zip(descriptors) {
                                found.take(descriptor, RegionClaim { id: name.id, bytes: name.bytes });
                            }
                        }
                        Message::Report { last, text: part } => {
                            text.extend(part);
                            if text.len() > MAX_REPORT_BYTES {
                                return Err(format!("its report is longer than {MAX_REPORT_BYTES} bytes"));
                            }
                            if last {
                                let report = ProcessReport::decode(&String::from_utf8_lossy(&text));
                                let report = report.ok_or("its report is unreadable")?;
                                return Ok(Self { report, ledger: found.ledger(incarnation) });
                            }
                        }
                        _ => {}
                    }
                }
                Received::HungUp => {
                    return Err("it hung up: it describes itself to its own user and to root alone".into());
                }
                Received::Rejected(rejection, _) => return Err(rejection.to_string()),
                Received::Empty => {
                    let mut polled = [PollFd::from_borrowed_fd(connection.as_fd(), PollFlags::IN)];
                    sys::poll(&mut polled, Some(left)).map_err(|errno| format!("poll failed: {errno}"))?;
                }
            }
            // However much it sends, its time is over.
            if left.is_zero() {
                return Err("it did not answer in time".into());
            }
        }
        Err(format!("it sent {MAX_MESSAGES} messages and no end of its report"))
    }
}

/// Regions of one process that were checked and mapped.
struct Found {
    regions: HashMap<RegionId, Arc<PeerRegion>>,
    bytes: u64,
    trust: PeerTrust,
    ledger: Option<LedgerReader>,
    refused: Option<String>,
}

impl Found {
    fn new(trust: PeerTrust) -> Self {
        Self { regions: HashMap::new(), bytes: 0, trust, ledger: None, refused: None }
    }

    /// Whether one more of this size may be mapped.
    fn has_room(&self, bytes: u64) -> bool {
        self.regions.len() < MAX_REGIONS && self.bytes.saturating_add(bytes) <= MAX_MAPPED_BYTES
    }

    /// Takes a region if it is one; the first that is a ledger is the ledger.
    fn take(&mut self, descriptor: OwnedFd, claim: RegionClaim) {
        if !self.has_room(claim.bytes) || self.regions.contains_key(&claim.id) {
            return;
        }
        match PeerRegion::receive(descriptor, &claim, self.trust) {
            Ok(region) => {
                if self.ledger.is_none() {
                    self.ledger = LedgerReader::new(&region).ok();
                }
                self.bytes += claim.bytes;
                self.regions.insert(claim.id, Arc::new(region));
            }
            Err(error) => {
                self.refused = Some(error.to_string());
                if self.trust == PeerTrust::Stranger {
                    // A file of a strange file system may hang in `close`; the observer ends soon, and this with it.
                    std::mem::forget(error.into_descriptor());
                }
            }
        }
    }

    /// The ledger, if it is that process's.
    fn ledger(self, incarnation: Incarnation) -> Result<ObservedLedger, String> {
        let none = || self.refused.clone().unwrap_or_else(|| "it has no ledger".to_owned());
        let reader = self.ledger.ok_or_else(none)?;
        if !is_of(&reader, incarnation) {
            return Err("its ledger bears another incarnation".to_owned());
        }
        Ok(ObservedLedger { reader, regions: self.regions })
    }
}

fn is_of(reader: &LedgerReader, incarnation: Incarnation) -> bool {
    let number = incarnation.as_u128();
    reader.incarnation() == [number as u64, (number >> 64) as u64]
}

/// Looks at a process that does not answer through `/proc`.
fn look(incarnation: Incarnation, pid: u32, pidfd: Option<OwnedFd>, reason: &str) -> Observed {
    let nobody = |why: &str| Observed::without_counts(ProcessState::Silent, pid, &format!("{reason}; {why}"));
    if pid == 0 {
        return nobody("its process number is not known here");
    }
    let pidfd = match pidfd.map_or_else(|| sys::open_pidfd(pid), Ok) {
        Ok(pidfd) => pidfd,
        Err(rustix::io::Errno::SRCH) => {
            return Observed::without_counts(ProcessState::Dead, pid, "the process is gone");
        }
        Err(errno) => return nobody(&format!("pidfd_open failed: {errno}")),
    };
    let state = if is_stopped(pid).unwrap_or(false) { ProcessState::Stopped } else { ProcessState::Silent };
    let searched = search(pid, incarnation);
    // Only now is it certain that the number meant this process all the while.
    if sys::is_dead(pidfd.as_fd()).unwrap_or(true) {
        return Observed::without_counts(ProcessState::Dead, pid, "the process is gone");
    }
    let (ledger, no_ledger, open_regions) = match searched {
        Ok((Ok(ledger), open)) => (Some(ledger), None, Some(open)),
        Ok((Err(why), open)) => (None, Some(format!("{reason}; {why}")), Some(open)),
        Err(why) => (None, Some(format!("{reason}; {why}")), None),
    };
    Observed { state, reached: true, pid, report: None, ledger, no_ledger, open_regions }
}

type Searched = (Result<ObservedLedger, String>, (u64, u64));

/// Finds a process's ledger and the regions that it names among its open descriptors.
fn search(pid: u32, incarnation: Incarnation) -> Result<Searched, String> {
    let deadline = Instant::now() + SEARCH;
    let cannot = |error: std::io::Error| format!("/proc/{pid}/fd cannot be read: {error}");
    let owner = fs::metadata(format!("/proc/{pid}")).map_err(cannot)?;
    let ours = rustix::process::geteuid().as_raw();
    let is_ours = crate::socket::is_same_user(std::os::unix::fs::MetadataExt::uid(&owner), ours);
    let trust = if is_ours { PeerTrust::SameUser } else { PeerTrust::Stranger };
    let OpenRegions { regions, count, bytes } = open_regions(pid, deadline).map_err(cannot)?;
    let mut candidates: HashMap<RegionId, OpenRegion> =
        regions.into_iter().map(|region| (region.claim.id, region)).collect();
    let mut found = Found::new(trust);
    // The ledger is the smallest of its kind; it names the regions that are worth mapping.
    let mut by_size: Vec<RegionId> = candidates.keys().copied().collect();
    by_size.sort_unstable_by_key(|id| candidates[id].claim.bytes);
    for id in by_size {
        let Some(candidate) = candidates.get(&id) else { continue };
        if Instant::now() >= deadline || !candidate.begins_with(LEDGER) {
            continue;
        }
        if let Some(OpenRegion { descriptor, claim }) = candidates.remove(&id) {
            found.take(descriptor, claim);
        }
        // A process can have another participant's ledger open, in the middle of answering an observer.
        match &found.ledger {
            Some(reader) if is_of(reader, incarnation) => break,
            _ => found.ledger = None,
        }
    }
    for id in found.ledger.as_ref().map(LedgerReader::regions).unwrap_or_default() {
        if Instant::now() < deadline
            && let Some(OpenRegion { descriptor, claim }) = candidates.remove(&id)
        {
            found.take(descriptor, claim);
        }
    }
    Ok((found.ledger(incarnation), (count, bytes)))
}
