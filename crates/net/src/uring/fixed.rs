//! Registered buffers: regions that a ring's kernel side has pinned once, so that a send from them pins nothing.
//!
//! The table of a ring has places of at most 1 GiB each; a region takes as many as it needs, cut at multiples of that
//! size from the beginning of its mapping. The header of a region is never registered.
//!
//! # Invariants
//! - A place is free, or belongs to exactly one registration; it is given again only after the kernel took it back.
//! - A registration is undone only when nothing uses it: that is
//!   [`Registrations`](zcmi_mem::registration::Registrations)'s part.
//!
//! # What this does not do
//! It cannot register what this process mapped for reading only: the kernel pins for writing.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rustix::io::Errno;
use zcmi_mem::region::{OutOfRegion, Region};
use zcmi_mem::registration::{Device, Support};

use super::Kernel;

/// The most bytes of one place.
pub(super) const PLACE_BYTES: usize = 1 << 30;

/// Why a region was not registered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FixedError {
    /// The ring has no table of buffers, because the kernel refused one.
    #[error("the ring has no table of buffers: {reason}")]
    NoTable {
        /// Why not.
        reason: String,
    },
    /// The table has not enough free places.
    #[error("{bytes} bytes take {needed} places of 1 GiB, and {free} are free; open the ring with more `buffers`")]
    TableFull {
        /// What was to be registered.
        bytes: usize,
        /// How many places that takes.
        needed: usize,
        /// How many are free.
        free: usize,
    },
    /// The pages would be more locked memory than this user may have.
    #[error(
        "{bytes} bytes are more than may be locked (limit {limit} bytes, for all processes of the user): {source}; \
         raise RLIMIT_MEMLOCK, or send by a path that copies"
    )]
    LockedMemory {
        /// What was to be registered.
        bytes: usize,
        /// The limit of this process, `u64::MAX` for none.
        limit: u64,
        /// What the kernel answered.
        source: io::Error,
    },
    /// The kernel cannot pin these pages for writing, as it must: a mapping of a file on disk, or for reading only.
    #[error("the kernel cannot pin the region's pages: {source}")]
    NotPinnable {
        /// What the kernel answered.
        source: io::Error,
    },
    /// The region cannot be reached.
    #[error(transparent)]
    Region(#[from] OutOfRegion),
    /// The ring is closed, or is a parent's.
    #[error("the ring is closed")]
    Closed,
    /// Any other answer.
    #[error("io_uring_register(IORING_REGISTER_BUFFERS_UPDATE) failed: {source}")]
    System {
        /// What the kernel answered.
        source: io::Error,
    },
}

/// Which places are free.
#[derive(Debug)]
struct Places {
    free: Vec<u16>,
    /// Places that the kernel did not take back; they are not used again.
    stuck: usize,
}

/// The table of registered buffers of a ring, as the device that regions are shown to.
#[derive(Debug)]
pub struct FixedBuffers {
    /// Weak: a registration that is never undone must not keep the ring open.
    kernel: Weak<Kernel>,
    places: Arc<Mutex<Places>>,
    place_bytes: usize,
    refused: Option<String>,
}

impl core::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Kernel").finish_non_exhaustive()
    }
}

impl FixedBuffers {
    /// A table of so many places, or a device that says why there is none.
    pub(super) fn new(kernel: &Arc<Kernel>, places: u16, place_bytes: usize) -> Self {
        let refused = match places {
            0 => Some("it was opened for none".to_owned()),
            _ => kernel
                .buffer_table(u32::from(places))
                .err()
                .map(|error| format!("io_uring_register(IORING_REGISTER_BUFFERS2) failed: {error}")),
        };
        let free = if refused.is_none() { (0..places).rev().collect() } else { Vec::new() };
        let places = Arc::new(Mutex::new(Places { free, stuck: 0 }));
        Self { kernel: Arc::downgrade(kernel), places, place_bytes, refused }
    }

    /// How many places the kernel did not take back.
    #[must_use]
    pub fn stuck(&self) -> usize {
        lock(&self.places).stuck
    }

    /// How many places are free.
    #[must_use]
    pub fn free(&self) -> usize {
        lock(&self.places).free.len()
    }
}

fn lock(places: &Mutex<Places>) -> MutexGuard<'_, Places> {
    places.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A region in the table of a ring; dropped, its places are free again.
#[derive(Debug)]
pub struct FixedRegion {
    kernel: Weak<Kernel>,
    places: Arc<Mutex<Places>>,
    /// The place of each piece, in order.
    taken: Vec<u16>,
    /// The address of the mapping, from which pieces are counted.
    mapping: usize,
    /// The addresses that are registered.
    begin: usize,
    end: usize,
    place_bytes: usize,
}

impl FixedRegion {
    /// Where these bytes are in the table: the place, and how many of them lie in it. Nothing, if they are not wholly
    /// in the region.
    #[must_use]
    pub fn find(&self, bytes: &[u8]) -> Option<(u16, usize)> {
        let at = bytes.as_ptr().addr();
        let inside = at >= self.begin && at.checked_add(bytes.len())? <= self.end;
        if !inside {
            return None;
        }
        let piece = (at - self.mapping) / self.place_bytes;
        let next = self.mapping + (piece + 1) * self.place_bytes;
        Some((*self.taken.get(piece)?, bytes.len().min(next - at)))
    }

    /// How many places it takes.
    #[must_use]
    pub fn places(&self) -> usize {
        self.taken.len()
    }
}

impl Drop for FixedRegion {
    fn drop(&mut self) {
        // A ring that is closed has no table any more.
        let Some(kernel) = self.kernel.upgrade().filter(|kernel| kernel.life().is_present()) else { return };
        for index in self.taken.drain(..) {
            let answer = kernel.unregister_buffer(index);
            let mut places = lock(&self.places);
            match answer {
                Ok(()) => places.free.push(index),
                Err(_) => places.stuck += 1,
            }
        }
    }
}

impl Device for FixedBuffers {
    type Registration = FixedRegion;
    type Error = FixedError;

    fn support(&self) -> Support {
        match &self.refused {
            None => Support::Yes,
            Some(reason) => Support::No(reason.clone().into()),
        }
    }

    fn register(&self, region: &Region) -> Result<FixedRegion, FixedError> {
        if let Some(reason) = &self.refused {
            return Err(FixedError::NoTable { reason: reason.clone() });
        }
        let kernel = self.kernel.upgrade().filter(|kernel| kernel.life().is_present()).ok_or(FixedError::Closed)?;
        let (from, bytes) = (region.data_offset(), region.len() - region.data_offset());
        let span = region.bytes(from, bytes)?;
        if !span.is_writable() {
            return Err(FixedError::NotPinnable { source: io::ErrorKind::ReadOnlyFilesystem.into() });
        }
        let begin = span.base().as_ptr().addr();
        let pieces = region.len().div_ceil(self.place_bytes);
        let taken = {
            let mut places = lock(&self.places);
            let free = places.free.len();
            let rest = free.checked_sub(pieces).ok_or(FixedError::TableFull { bytes, needed: pieces, free })?;
            places.free.split_off(rest)
        };
        // What was registered before a refusal is undone by the drop of this value.
        let mut all = FixedRegion {
            kernel: Arc::downgrade(&kernel),
            places: Arc::clone(&self.places),
            taken: Vec::with_capacity(pieces),
            mapping: begin - from,
            begin,
            end: begin + bytes,
            place_bytes: self.place_bytes,
        };
        for (piece, &index) in taken.iter().enumerate() {
            let first = (piece * self.place_bytes).max(from);
            let last = ((piece + 1) * self.place_bytes).min(region.len());
            if let Err(source) = kernel.register_buffer(index, &span, first - from, last - first) {
                lock(&self.places).free.extend(&taken[piece..]);
                return Err(refusal(bytes, source));
            }
            all.taken.push(index);
        }
        Ok(all)
    }
}

/// What the kernel's answer to a registration means.
fn refusal(bytes: usize, source: io::Error) -> FixedError {
    match Errno::from_io_error(&source) {
        Some(Errno::NOMEM | Errno::PERM | Errno::AGAIN) => {
            let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current.unwrap_or(u64::MAX);
            FixedError::LockedMemory { bytes, limit, source }
        }
        Some(Errno::FAULT | Errno::OPNOTSUPP) => FixedError::NotPinnable { source },
        _ => FixedError::System { source },
    }
}
