//! Regions that a peer made: its descriptor is a claim until it was checked, and then mapped without the right to
//! write.
//!
//! Invariants: no call that a strange file system could answer late is made before the seals were read (they exist on
//! tmpfs and hugetlbfs alone); nothing is mapped before its seals, size and pages are known to stay as they are; the
//! header is loaded once. A refused descriptor is handed back, because closing one of a strange file system may hang.
//!
//! Not done here: who the peer is. Its credentials belong to the connection that the descriptor came over.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::SealFlags;
use zcmi_ring::{Shared, View};

use super::header::{self, Expected, HEADER_BYTES, HeaderError};
use super::sys::{self, Access, Mapping};
use super::{OutOfRegion, RegionError, RegionId, RegionKind, Span, raw};

/// The seals of a region that only its owner writes.
pub(super) const REGION_SEALS: SealFlags =
    SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::FUTURE_WRITE).union(SealFlags::SEAL);
/// The seals of a wake page, which peers of the same user write too.
pub(super) const WAKE_PAGE_SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);
/// The largest wake page that is mapped: a header and far more words than waiters exist.
pub(super) const WAKE_PAGE_BYTES: usize = 1 << 20;

/// What a peer says of a region beside handing over its descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionClaim {
    /// The region's identity.
    pub id: RegionId,
    /// The size of the whole mapping.
    pub bytes: u64,
}

/// Whose region it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerTrust {
    /// A process of our own user, which may be buggy, stopped or dead.
    SameUser,
    /// A process of another user, which may be hostile.
    Stranger,
}

/// Why a received descriptor was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RefusedRegion {
    /// The descriptor is of a kind that has no seals: no memfd.
    #[error("the descriptor is no sealable memory")]
    NotSealable {
        /// The system's answer to `fcntl(F_GET_SEALS)`.
        source: std::io::Error,
    },
    /// A seal is missing.
    #[error("the descriptor has seals {found:#x}, of which {missing:#x} are missing")]
    Unsealed {
        /// The seals it has.
        found: u32,
        /// Those it lacks.
        missing: u32,
    },
    /// A wake page that nobody else may write would never wake anybody.
    #[error("the wake page is sealed against writing (seals {found:#x})")]
    NotWritable {
        /// The seals it has.
        found: u32,
    },
    /// A wake page is shared with processes of the same user only.
    #[error("a wake page of another user is not mapped")]
    WakePageOfStranger,
    /// The size is not what was claimed, or no possible size of a region.
    #[error("the descriptor has {actual} bytes, {claimed} were claimed, of which at least {least} are needed")]
    Size {
        /// The size the kernel reports.
        actual: u64,
        /// The size the peer claimed.
        claimed: u64,
        /// The smallest possible size.
        least: u64,
    },
    /// The size is right but no whole number of pages, or more than is allowed here.
    #[error("a region of {actual} bytes cannot be mapped here (pages of {page_bytes} bytes, at most {most} bytes)")]
    Shape {
        /// The size the kernel reports.
        actual: u64,
        /// The size of its pages.
        page_bytes: u64,
        /// The largest size allowed.
        most: u64,
    },
    /// Pages are missing, which our own control group would pay for.
    #[error("the descriptor has a hole at byte {first_hole} of {bytes}: its owner did not populate it")]
    Sparse {
        /// Where the first hole is.
        first_hole: u64,
        /// The size.
        bytes: u64,
    },
    /// Holes in huge pages cannot be seen, so those of a stranger are not mapped.
    #[error("huge pages of another user are not mapped")]
    HugePagesOfStranger,
    /// The header does not say what it must.
    #[error("the region's header is refused")]
    Header(#[from] HeaderError),
    /// A system call failed.
    #[error("{call} failed")]
    System {
        /// The call.
        call: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The region could not be mapped.
    #[error("the region cannot be mapped")]
    Map(#[source] Box<RegionError>),
}

impl RefusedRegion {
    /// Whether the reason lies with this process (a limit of mappings or memory, a call that failed), and not with what
    /// was sent.
    #[must_use]
    pub fn is_our_own(&self) -> bool {
        matches!(self, Self::System { .. } | Self::Map(_))
    }
}

/// A refused descriptor and the reason.
///
/// Dropping this closes the descriptor. Where a hang would do harm, take it out
/// ([`into_descriptor`](Self::into_descriptor)) and close it elsewhere: a file of a strange file system may hang in
/// `close`.
#[derive(Debug, thiserror::Error)]
#[error("a received region is refused: {reason}")]
pub struct ReceivedRegionError {
    #[source]
    reason: RefusedRegion,
    descriptor: OwnedFd,
}

impl ReceivedRegionError {
    /// Why it was refused.
    #[must_use]
    pub fn reason(&self) -> &RefusedRegion {
        &self.reason
    }

    /// The descriptor, to be closed where a hang does no harm.
    #[must_use]
    pub fn into_descriptor(self) -> OwnedFd {
        self.descriptor
    }

    /// Both parts.
    #[must_use]
    pub fn into_parts(self) -> (RefusedRegion, OwnedFd) {
        (self.reason, self.descriptor)
    }
}

/// A peer's region, mapped read-only.
///
/// Views of it are loaded from with relaxed order and never stored to (a store would be a fault, as with any read-only
/// page). The memory stays as long as a view does, whatever becomes of the peer.
#[derive(Debug)]
pub struct PeerRegion {
    mapping: Arc<Mapping>,
    id: RegionId,
    page_bytes: usize,
    trust: PeerTrust,
}

impl PeerRegion {
    /// Checks a descriptor that came from a peer, and maps it.
    ///
    /// The descriptor is closed when the region was mapped, which keeps the memory.
    ///
    /// # Errors
    /// [`ReceivedRegionError`], with the descriptor in it, for whatever is not exactly a populated, sealed region of
    /// the claimed size and identity.
    ///
    /// # Kernel
    /// `MADV_POPULATE_READ` (5.14) fills the page tables; where it is missing, first accesses take a fault each.
    pub fn receive(fd: OwnedFd, claim: &RegionClaim, trust: PeerTrust) -> Result<Self, ReceivedRegionError> {
        let kinds = &[RegionKind::SEALED_MEMFD_WORD, RegionKind::HUGETLB_WORD];
        match map_claimed(fd.as_fd(), claim, &Rules { trust, seals: REGION_SEALS, access: Access::ReadOnly, kinds }) {
            Ok((mapping, page_bytes)) => Ok(Self { mapping, id: claim.id, page_bytes, trust }),
            Err(reason) => Err(ReceivedRegionError { reason, descriptor: fd }),
        }
    }

    /// Whose region it is.
    #[must_use]
    pub fn trust(&self) -> PeerTrust {
        self.trust
    }

    /// The region's identity.
    #[must_use]
    pub fn id(&self) -> RegionId {
        self.id
    }

    /// The size of the whole mapping, header included.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a region is never empty")]
    pub fn len(&self) -> usize {
        self.mapping.len()
    }

    /// Where data begins.
    #[must_use]
    pub fn data_offset(&self) -> usize {
        HEADER_BYTES
    }

    /// The size of the pages behind it.
    #[must_use]
    pub fn page_bytes(&self) -> usize {
        self.page_bytes
    }

    /// `count` elements at `offset` from the start of the mapping; loads only.
    ///
    /// # Errors
    /// [`OutOfRegion`], because offsets usually come from the peer.
    pub fn view<T: Shared>(&self, offset: usize, count: usize) -> Result<View<T>, OutOfRegion> {
        raw::view(&self.mapping, offset, count)
    }

    /// The bytes at `offset` from the start of the mapping, as a checked address that is not writable.
    ///
    /// # Errors
    /// [`OutOfRegion`], because offsets usually come from the peer.
    pub fn bytes(&self, offset: usize, len: usize) -> Result<Span, OutOfRegion> {
        raw::span(&self.mapping, offset, len)
    }
}

/// A peer's wake page, mapped for reading and writing: hints, a lie in which costs its own user.
#[derive(Debug)]
pub struct PeerWakePage {
    mapping: Arc<Mapping>,
    id: RegionId,
}

impl PeerWakePage {
    /// Checks a descriptor that came from a peer of our own user, and maps it.
    ///
    /// # Errors
    /// [`ReceivedRegionError`], with the descriptor in it; a stranger's is always refused.
    pub fn receive(fd: OwnedFd, claim: &RegionClaim, trust: PeerTrust) -> Result<Self, ReceivedRegionError> {
        let kinds = &[RegionKind::WAKE_PAGE_WORD];
        match map_claimed(fd.as_fd(), claim, &Rules { trust, seals: WAKE_PAGE_SEALS, access: Access::ReadWrite, kinds })
        {
            Ok((mapping, _page_bytes)) => Ok(Self { mapping, id: claim.id }),
            Err(reason) => Err(ReceivedRegionError { reason, descriptor: fd }),
        }
    }

    /// The page's identity.
    #[must_use]
    pub fn id(&self) -> RegionId {
        self.id
    }

    /// The size of the whole mapping, header included.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a wake page is never empty")]
    pub fn len(&self) -> usize {
        self.mapping.len()
    }

    /// Where data begins.
    #[must_use]
    pub fn data_offset(&self) -> usize {
        HEADER_BYTES
    }

    /// `count` elements at `offset` from the start of the mapping.
    ///
    /// # Errors
    /// [`OutOfRegion`].
    pub fn view<T: Shared>(&self, offset: usize, count: usize) -> Result<View<T>, OutOfRegion> {
        raw::view(&self.mapping, offset, count)
    }
}

/// What is asked of a descriptor.
struct Rules {
    trust: PeerTrust,
    seals: SealFlags,
    access: Access,
    kinds: &'static [u64],
}

fn system(call: &'static str) -> impl FnOnce(rustix::io::Errno) -> RefusedRegion {
    move |errno| RefusedRegion::System { call, source: errno.into() }
}

/// The checks, in the order in which they are safe to make.
fn map_claimed(fd: BorrowedFd<'_>, claim: &RegionClaim, rules: &Rules) -> Result<(Arc<Mapping>, usize), RefusedRegion> {
    let writable = rules.access == Access::ReadWrite;
    if writable && rules.trust == PeerTrust::Stranger {
        return Err(RefusedRegion::WakePageOfStranger);
    }

    // First the seals: only tmpfs and hugetlbfs answer, at once, so that what follows cannot hang in a strange file
    // system.
    let seals = sys::seals(fd).map_err(|errno| RefusedRegion::NotSealable { source: errno.into() })?;
    let missing = rules.seals.difference(seals);
    if !missing.is_empty() {
        return Err(RefusedRegion::Unsealed { found: seals.bits(), missing: missing.bits() });
    }
    if writable && seals.intersects(SealFlags::WRITE.union(SealFlags::FUTURE_WRITE)) {
        return Err(RefusedRegion::NotWritable { found: seals.bits() });
    }

    // From here on its size cannot change.
    let stat = rustix::fs::fstat(fd).map_err(system("fstat"))?;
    let actual = u64::try_from(stat.st_size).unwrap_or(0);
    let least = HEADER_BYTES as u64 + 1;
    if actual != claim.bytes || actual < least {
        return Err(RefusedRegion::Size { actual, claimed: claim.bytes, least });
    }
    let is_hugetlb = sys::is_hugetlb(fd).map_err(system("fstatfs"))?;
    if is_hugetlb && rules.trust == PeerTrust::Stranger {
        return Err(RefusedRegion::HugePagesOfStranger);
    }
    // The block size of hugetlbfs is its page; tmpfs may report a larger block than its pages are.
    let page_bytes = if is_hugetlb { stat.st_blksize as u64 } else { rustix::param::page_size() as u64 };
    let most = if writable { WAKE_PAGE_BYTES as u64 } else { isize::MAX as u64 };
    if page_bytes == 0 || !actual.is_multiple_of(page_bytes) || actual > most {
        return Err(RefusedRegion::Shape { actual, page_bytes, most });
    }
    if !is_hugetlb {
        // `st_blocks` would count blocks past the end, and pages that were allocated and never filled count as holes. A
        // wake page can be punched later: by its own user, for a page.
        let first_hole = sys::first_hole(fd).map_err(system("lseek(SEEK_HOLE)"))?;
        if first_hole != actual {
            return Err(RefusedRegion::Sparse { first_hole, bytes: actual });
        }
    }

    let map_error = |error| RefusedRegion::Map(Box::new(error));
    let mapping = Arc::new(Mapping::file(fd, actual as usize, rules.access, is_hugetlb).map_err(map_error)?);
    mapping.forbid_fork().map_err(system("madvise(MADV_DONTFORK)"))?;
    mapping.forbid_dump().map_err(system("madvise(MADV_DONTDUMP)"))?;
    // A stranger's is mapped page by page as it is read: to do it at once would cost us what it chooses.
    let populated = if rules.trust == PeerTrust::Stranger { Ok(()) } else { mapping.populate() };
    match populated {
        // Unknown to the kernel: pages that are all there (holes were refused above) are mapped at the first touch.
        Err(rustix::io::Errno::INVAL) if !is_hugetlb => {}
        // For huge pages this is what proves that no access ends in SIGBUS.
        populated => populated.map_err(system("madvise(MADV_POPULATE)"))?,
    }

    let view = raw::header(&mapping).map_err(|_| RefusedRegion::Size { actual, claimed: claim.bytes, least })?;
    let expected = Expected { page_bytes, kinds: rules.kinds, bytes: actual, id: claim.id };
    header::validate(&view, &expected)?;
    Ok((mapping, page_bytes as usize))
}
