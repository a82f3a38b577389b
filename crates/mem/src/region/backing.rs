//! What is behind a region's mapping, and the names it must not leave behind.
//!
//! Invariants: a name is noted the moment it exists, so that a creation that fails later removes it; a name that means
//! something else by then is not touched; a forked child, which has a copy of these values, removes nothing.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::Mode;
use rustix::io::Errno;

use super::RegionError;
use super::sys::{self, SystemVId, failed};
use crate::fork::ForkGuard;

/// What is behind a region's mapping. Dropping it removes a name and closes the descriptor.
#[derive(Debug)]
pub(super) enum Backing {
    File { fd: OwnedFd, _name: Option<FileName> },
    SystemV { name: SegmentName },
    Private,
}

#[derive(Debug)]
pub(super) enum Place {
    Shm(String),
    Path(PathBuf),
}

/// A name in a file system, removed when this drops, unless the name means another file by then.
#[derive(Debug)]
pub(super) struct FileName {
    place: Place,
    file: Option<(u64, u64)>,
    life: ForkGuard,
}

impl FileName {
    pub(super) fn new(place: Place, fd: BorrowedFd<'_>, life: ForkGuard) -> Result<Self, RegionError> {
        let mut name = Self { place, file: None, life };
        name.file = Some(sys::identity(fd).map_err(failed("fstat"))?);
        Ok(name)
    }

    /// Which file the name means now.
    fn meant(&self) -> rustix::io::Result<(u64, u64)> {
        match &self.place {
            Place::Shm(name) => {
                let fd = rustix::shm::open(name.as_str(), rustix::shm::OFlags::RDWR, Mode::empty())?;
                sys::identity(fd)
            }
            Place::Path(path) => {
                let stat = rustix::fs::lstat(path)?;
                Ok((stat.st_dev, stat.st_ino))
            }
        }
    }
}

impl Drop for FileName {
    fn drop(&mut self) {
        // A forked child has a copy of this value, and the name is not its to remove.
        if !self.life.is_present() {
            return;
        }
        // Nothing can be done about a name that does not go: somebody may have removed it, or its directory.
        match (self.meant(), self.file) {
            (Ok(meant), Some(made)) if meant != made => {}
            (Err(Errno::NOENT), _) => {}
            _ => {
                let _removed = match &self.place {
                    Place::Shm(name) => rustix::shm::unlink(name.as_str()),
                    Place::Path(path) => rustix::fs::unlink(path),
                };
            }
        }
    }
}

/// A System V segment, removed with its last detach when this drops.
#[derive(Debug)]
pub(super) struct SegmentName {
    pub(super) key: i32,
    pub(super) id: Option<SystemVId>,
    pub(super) life: ForkGuard,
}

impl Drop for SegmentName {
    fn drop(&mut self) {
        if let Some(id) = self.id
            && self.life.is_present()
        {
            id.remove();
        }
    }
}
