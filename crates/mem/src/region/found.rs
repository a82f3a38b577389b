//! Regions that another process has open, found through `/proc`.
//!
//! This takes the same user or root, and no restriction on tracing. What is found are claims: a descriptor and what the
//! header behind it says, for [`PeerRegion::receive`](super::PeerRegion::receive) to check.
//!
//! # Invariants
//! - A descriptor of a strange file system is never asked anything that the file system could answer late.
//! - Descriptors that are looked at, and the time that takes, are bounded.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

use rustix::fs::{AtFlags, MemfdFlags, Mode, OFlags, StatxFlags};

use super::{HEADER_BYTES, RegionClaim, RegionId};

/// The most descriptors of a process that are looked at.
const MAX_DESCRIPTORS: usize = 4096;

/// A region that a process has open.
#[derive(Debug)]
pub struct OpenRegion {
    /// It, opened to be read.
    pub descriptor: OwnedFd,
    /// What its header says.
    pub claim: RegionClaim,
}

impl OpenRegion {
    /// Whether its data begins with these bytes.
    #[must_use]
    pub fn begins_with(&self, magic: &[u8; 8]) -> bool {
        let mut word = [0; 8];
        rustix::io::pread(&self.descriptor, &mut word[..], HEADER_BYTES as u64) == Ok(8) && &word == magic
    }
}

/// What a process has open.
#[derive(Debug, Default)]
pub struct OpenRegions {
    /// The regions whose header could be read, each once.
    pub regions: Vec<OpenRegion>,
    /// How many memory objects there are that bear a region's name.
    pub count: u64,
    /// How many bytes these have.
    pub bytes: u64,
}

/// Looks at what process `pid` has open, until `deadline` at the latest.
///
/// # Errors
/// What the system answered; the process may be gone, or may not be looked at.
pub fn open_regions(pid: u32, deadline: Instant) -> io::Result<OpenRegions> {
    let devices = memfd_devices();
    let (mut inodes, mut ids, mut open) = (HashSet::new(), HashSet::new(), OpenRegions::default());
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))?.flatten().take(MAX_DESCRIPTORS) {
        if Instant::now() >= deadline {
            break;
        }
        let name = fs::read_link(entry.path()).unwrap_or_default();
        if !name.to_string_lossy().starts_with("/memfd:zcmi-region") {
            continue;
        }
        let Some((descriptor, inode, size)) = open_memfd(&entry.path(), &devices) else { continue };
        if !inodes.insert(inode) {
            continue;
        }
        open.bytes += size;
        if let Some(claim) = claim_of(&descriptor).filter(|claim| ids.insert(claim.id)) {
            open.regions.push(OpenRegion { descriptor, claim });
        }
    }
    open.count = inodes.len() as u64;
    Ok(open)
}

/// The devices on which memfds lie, of ordinary and of huge pages: nothing else has their numbers.
fn memfd_devices() -> Vec<(u32, u32)> {
    let device = |flags| {
        let own = rustix::fs::memfd_create("zcmi-look", flags | MemfdFlags::CLOEXEC).ok()?;
        let stat = rustix::fs::statx(&own, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS).ok()?;
        Some((stat.stx_dev_major, stat.stx_dev_minor))
    };
    let huge = MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    [device(MemfdFlags::empty()), device(huge)].into_iter().flatten().collect()
}

/// Opens another process's memfd to be read; with its inode and size. None for whatever is no memfd.
fn open_memfd(path: &Path, devices: &[(u32, u32)]) -> Option<(OwnedFd, u64, u64)> {
    // A path alone asks no file system; what it is, the kernel then tells from what it has cached.
    let named = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let cached = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let stat = rustix::fs::statx(&named, "", cached, StatxFlags::BASIC_STATS).ok()?;
    if !devices.contains(&(stat.stx_dev_major, stat.stx_dev_minor)) {
        return None;
    }
    let again = format!("/proc/self/fd/{}", named.as_raw_fd());
    let opened = rustix::fs::open(again, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    Some((opened, stat.stx_ino, stat.stx_size))
}

/// What a region's own header claims; checked when it is mapped.
fn claim_of(descriptor: &OwnedFd) -> Option<RegionClaim> {
    let mut header = [0; 80];
    let read = rustix::io::pread(descriptor, &mut header[..], 0).ok()?;
    let word = |index: usize| Some(u64::from_ne_bytes(header.get(8 * index..8 * index + 8)?.try_into().ok()?));
    (read == header.len()).then_some(())?;
    Some(RegionClaim { id: RegionId::from_words([word(8)?, word(9)?]), bytes: word(6)? })
}

/// Whether a process is stopped, by its state in `/proc/PID/stat`; none if it is gone.
#[must_use]
pub fn is_stopped(pid: u32) -> Option<bool> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before the state may hold anything, blanks and parentheses included.
    let state = stat.rsplit_once(')')?.1.trim_start().chars().next()?;
    Some(matches!(state, 'T' | 't'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::region::Region;

    #[test]
    fn an_own_region_is_found_with_what_its_data_begins_with() {
        let region = Region::options(1).create().expect("a region");
        let deadline = Instant::now() + std::time::Duration::from_secs(60);
        let open = open_regions(std::process::id(), deadline).expect("our own descriptors");
        let found = open.regions.iter().find(|open| open.claim.id == region.id()).expect("it is open");
        assert_eq!(found.claim, region.claim());
        assert!(found.begins_with(&[0; 8]) && !found.begins_with(b"zcmi-led"));
        assert!(open.count >= 1 && open.bytes >= region.len() as u64);
        assert_eq!(is_stopped(std::process::id()), Some(false));
    }
}
