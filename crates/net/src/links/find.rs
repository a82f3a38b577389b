//! The boards of all processes of this user, found through `/proc`.
//!
//! # Invariants
//! - A board counts for the process that made it: a forked child has its parent's open, and is passed over.
//! - Processes, descriptors and time are bounded; what could not be looked at is counted.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use zcmi_mem::region::found::{is_stopped, open_regions};
use zcmi_mem::region::{PeerRegion, PeerTrust};

use super::reader::{BoardClaimError, BoardReader, BoardReading};
use super::{BOARD_BYTES, MAGIC_BYTES};

/// How long one process's descriptors are looked at.
const PATIENCE: Duration = Duration::from_millis(400);
/// A board's region is not larger than this, its header and a page or two more included.
const MOST_BYTES: u64 = 2 * BOARD_BYTES as u64;

/// What one process says of its connections.
#[derive(Clone, Debug, PartialEq)]
pub struct ProcessLinks {
    /// The process, as we number it.
    pub pid: u32,
    /// Whether it is stopped.
    pub is_stopped: bool,
    /// What each of its transports says.
    pub boards: Vec<BoardReading>,
}

/// All that could be found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AllLinks {
    /// The processes that have transports, by number.
    pub processes: Vec<ProcessLinks>,
    /// Processes of this user that may not be looked at.
    pub unreadable: usize,
    /// Boards that this program cannot read, and why.
    pub refused: Vec<(u32, String)>,
}

/// Looks at all processes of this user.
///
/// # Errors
/// What the system answered about `/proc`.
pub fn all_links() -> io::Result<AllLinks> {
    let ours = rustix::process::geteuid().as_raw();
    let mut all = AllLinks::default();
    let mut pids: Vec<u32> = fs::read_dir("/proc")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| fs::metadata(format!("/proc/{pid}")).is_ok_and(|process| process.uid() == ours))
        .collect();
    pids.sort_unstable();
    let mut seen = HashSet::new();
    for pid in pids {
        let open = match open_regions(pid, Instant::now() + PATIENCE) {
            Ok(open) => open,
            Err(error) => {
                // One that is gone is nobody's loss.
                all.unreadable += usize::from(error.kind() == io::ErrorKind::PermissionDenied);
                continue;
            }
        };
        let Some(number) = own_number(pid) else { continue };
        let mut boards = Vec::new();
        for region in open.regions {
            if region.claim.bytes > MOST_BYTES || !region.begins_with(MAGIC_BYTES) || seen.contains(&region.claim.id) {
                continue;
            }
            match PeerRegion::receive(region.descriptor, &region.claim, PeerTrust::SameUser) {
                Ok(mapped) => match BoardReader::new(&mapped) {
                    Ok(reader) if reader.pid() == number => {
                        seen.insert(region.claim.id);
                        boards.push(reader.read());
                    }
                    Ok(_) | Err(BoardClaimError::Magic { .. }) => {}
                    Err(error) => all.refused.push((pid, error.to_string())),
                },
                Err(error) => all.refused.push((pid, error.to_string())),
            }
        }
        if !boards.is_empty() {
            let is_stopped = is_stopped(pid).unwrap_or(false);
            all.processes.push(ProcessLinks { pid, is_stopped, boards });
        }
    }
    Ok(all)
}

/// The number that a process has for itself, which differs from ours if it lives in a namespace of its own.
fn own_number(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    numbers.split_whitespace().last()?.parse().ok()
}
