//! Looks at processes from outside, as the kernel shows them: mappings and descriptors.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// One line of `/proc/PID/maps`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Its first address.
    pub begin: usize,
    /// One past its last.
    pub end: usize,
    /// Whether it may be written.
    pub writable: bool,
    /// Where in the file it begins.
    pub offset: usize,
    /// The file's inode; 0 for none.
    pub inode: u64,
    /// What it is called.
    pub name: String,
}

/// The mapping that holds an address of a process.
#[must_use]
pub fn mapping(pid: u32, address: usize) -> Option<Mapping> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
    maps.lines().filter_map(parse).find(|mapping| (mapping.begin..mapping.end).contains(&address))
}

fn parse(line: &str) -> Option<Mapping> {
    let mut fields = line.split_whitespace();
    let (begin, end) = fields.next()?.split_once('-')?;
    let rights = fields.next()?;
    let offset = fields.next()?;
    let inode = fields.nth(1)?;
    Some(Mapping {
        begin: usize::from_str_radix(begin, 16).ok()?,
        end: usize::from_str_radix(end, 16).ok()?,
        writable: rights.contains('w'),
        offset: usize::from_str_radix(offset, 16).ok()?,
        inode: inode.parse().ok()?,
        name: fields.collect::<Vec<_>>().join(" "),
    })
}

/// The names behind a process's descriptors.
#[must_use]
pub fn descriptors(pid: u32) -> Vec<String> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    let links = entries.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
    links.map(|link| link.display().to_string()).collect()
}

/// How many memfds these processes have among them, each counted once: those open and those only mapped.
#[must_use]
pub fn memfds(pids: &[u32]) -> usize {
    let mut inodes = BTreeSet::new();
    for &pid in pids {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        inodes.extend(maps.lines().filter_map(parse).filter(|map| is_memfd(&map.name)).map(|map| map.inode));
        let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        for entry in entries.flatten() {
            let names_one = fs::read_link(entry.path()).is_ok_and(|link| is_memfd(&link.display().to_string()));
            if names_one && let Ok(facts) = fs::metadata(entry.path()) {
                inodes.insert(std::os::unix::fs::MetadataExt::ino(&facts));
            }
        }
    }
    inodes.len()
}

/// The mappings of memfds that this process has.
#[must_use]
pub fn shared_mappings() -> Vec<Mapping> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    maps.lines().filter_map(parse).filter(|map| is_memfd(&map.name)).collect()
}

/// The memfds of others that a process has mapped: those that it may only read.
#[must_use]
pub fn foreign_memfds(pid: u32) -> BTreeSet<u64> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let foreign = maps.lines().filter_map(parse).filter(|map| is_memfd(&map.name) && !map.writable);
    foreign.map(|map| map.inode).collect()
}

/// The memfds that a process made: those that it may write.
#[must_use]
pub fn own_memfds(pid: u32) -> BTreeSet<u64> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let own = maps.lines().filter_map(parse).filter(|map| is_memfd(&map.name) && map.writable);
    own.map(|map| map.inode).collect()
}

fn is_memfd(name: &str) -> bool {
    name.starts_with("/memfd:")
}

/// How many mappings a process has of memory that others wrote: memfds that it may only read.
#[must_use]
pub fn foreign_mappings(pid: u32) -> usize {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    maps.lines().filter_map(parse).filter(|map| is_memfd(&map.name) && !map.writable).count()
}

/// Resident memory of a process in bytes.
#[must_use]
pub fn resident_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes = line.and_then(|line| line.split_whitespace().next()).and_then(|number| number.parse::<u64>().ok());
    kibibytes.unwrap_or(0) << 10
}

/// The state letter of a process (`R`, `S`, `T`, `Z`, …), or nothing when it is gone.
#[must_use]
pub fn state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

/// Everything below a directory, as paths relative to it.
#[must_use]
pub fn below(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![directory.to_owned()];
    while let Some(next) = open.pop() {
        let Ok(entries) = fs::read_dir(&next) else { continue };
        for entry in entries.flatten() {
            let path = entry.path();
            if let Ok(relative) = path.strip_prefix(directory) {
                found.push(relative.to_owned());
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                open.push(path);
            }
        }
    }
    found.sort();
    found
}

/// How often the threads of this name have gone to sleep of their own accord; nothing when there is none.
#[must_use]
pub fn sleeps(pid: u32, thread: &str) -> Option<u64> {
    let mut count = None;
    for task in fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
        let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        if name.trim_end() == thread
            && let Some(sleeps) = line.and_then(|text| text.trim().parse::<u64>().ok())
        {
            *count.get_or_insert(0) += sleeps;
        }
    }
    count
}
