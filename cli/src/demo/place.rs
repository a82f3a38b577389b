//! The directory of one run of the demo, and what runs that were killed left of theirs.
//!
//! A run holds a lock (`flock`) on its directory as long as it lives, and the kernel takes it from the dead. So the
//! next run knows which directories are nobody's, whatever their names say.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::code::Fault;
use crate::failure::Failure;
use crate::say;

/// How the names begin.
const PREFIX: &str = "zcmi-demo-";
/// Directories of killed runs that one run removes at most.
const MAX_SWEPT: usize = 64;
/// How often a directory is made anew that was swept before its lock was taken.
const MAX_TRIES: usize = 8;

/// A directory for this run; dropping it removes it with all that is in it.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    _lock: OwnedFd,
}

impl Place {
    /// Makes the directory, and removes those of runs that were killed.
    pub(super) fn new() -> Result<Self, Failure> {
        let parent = std::env::temp_dir();
        sweep(&parent);
        for _ in 0..MAX_TRIES {
            let mut random = [0; 8];
            let flags = rustix::rand::GetRandomFlags::empty();
            rustix::rand::getrandom(&mut random, flags).map_err(|errno| Failure::of("getrandom failed", &errno))?;
            let path = parent.join(format!("{PREFIX}{:016x}", u64::from_ne_bytes(random)));
            let made = fs::DirBuilder::new().mode(0o700).create(&path);
            made.map_err(|error| {
                let text = format!("{} cannot be made; set TMPDIR to a directory of yours", path.display());
                Failure::of(text, &error)
            })?;
            // Another run may take it for nobody's before it is locked: then there is nothing left to lock.
            match lock(&path) {
                Ok(lock) => return Ok(Self { path, _lock: lock }),
                Err(Errno::NOENT | Errno::AGAIN) => {}
                Err(errno) => {
                    let _nothing_in_it = fs::remove_dir(&path);
                    return Err(Failure::of(format_args!("{} cannot be locked", path.display()), &errno));
                }
            }
        }
        Err(Failure::new(Fault::Demo, format!("no directory in {} stays; somebody removes them", parent.display())))
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            say::line(format!("zcmi: {} could not be removed: {error}", self.path.display()));
        }
    }
}

/// Takes the lock of a directory that is still there under its name, if nobody has it.
fn lock(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::open(path, flags, Mode::empty())?;
    rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive)?;
    let (ours, there) = (rustix::fs::fstat(&directory)?, rustix::fs::lstat(path)?);
    if (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino) { Ok(directory) } else { Err(Errno::NOENT) }
}

/// Removes what killed runs of this user left. What cannot be removed is left alone: it is in nobody's way.
fn sweep(parent: &Path) {
    let ours = rustix::process::geteuid().as_raw();
    let Ok(entries) = fs::read_dir(parent) else { return };
    let left = entries.flatten().filter(|entry| {
        let name = entry.file_name();
        let digits = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        digits.is_some_and(|digits| digits.len() == 16 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
            && entry.metadata().is_ok_and(|metadata| metadata.is_dir() && metadata.uid() == ours)
    });
    for entry in left.take(MAX_SWEPT) {
        if let Ok(_lock) = lock(&entry.path()) {
            let _in_nobodys_way = fs::remove_dir_all(entry.path());
        }
    }
}
