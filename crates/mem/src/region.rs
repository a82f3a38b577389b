//! Regions: mapped memory with an identity, one writer and one audience.
//!
//! ```text
//! offset 0          4096                                            len()
//!        | header   | data: views and spans lie here                |
//!        +----------+-----------------------------------------------+
//!          checked by whoever receives the descriptor
//! ```
//!
//! A region is created, populated and sealed by its owner ([`Region`]), which alone writes it; a peer that is given the
//! descriptor maps it read-only ([`PeerRegion`]), and the kernel refuses it every way to do more. An [`Arena`] carves
//! extents from a growing set of regions.
//!
//! Invariants: memory is reserved when a region is created, so a shortage is a [`RegionError`] and not a fault later;
//! an offset is checked before it becomes an address; whatever is handed out keeps the mapping; a forked child inherits
//! neither the mapping nor the right to end it.
//!
//! Units: offsets and lengths are bytes, offsets count from the start of the mapping, header included.
//!
//! Not done here: who may have a region (that is the connection's business), and how its bytes are used.

use std::borrow::Cow;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, SealFlags};
use rustix::io::Errno;
use zcmi_ring::{Shared, View};

pub mod arena;
mod backing;
pub mod found;
mod header;
pub mod memory;
mod raw;
pub mod received;
mod sys;

pub use arena::{Arena, Extent};
pub use header::{HEADER_BYTES, HeaderError, LAYOUT_VERSION};
pub use memory::{Available, LimitSource, MemoryError};
pub use raw::Span;
pub use received::{PeerRegion, PeerTrust, PeerWakePage, ReceivedRegionError, RefusedRegion, RegionClaim};

use crate::fork::{ForkGuard, ForkGuardError};
use backing::{Backing, FileName, Place, SegmentName};
use sys::{Access, Mapping, SystemVId, failed};

/// Sealed memfds of more data than this try reserved huge pages first.
pub const RESERVED_HUGE_PAGES_FROM_BYTES: usize = 256 << 20;

/// What the kernel may take for the tables of a small region.
const TABLES_BYTES: u64 = 256 << 10;

/// How many pages of a region are asked for their node.
const SAMPLED_PAGES: usize = 64;

/// The random identity of a region: its incarnation, never used again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RegionId(u128);

impl RegionId {
    /// The identity as two words, the lower half first.
    #[must_use]
    pub fn words(self) -> [u64; 2] {
        [self.0 as u64, (self.0 >> 64) as u64]
    }

    /// The identity of two words, the lower half first.
    #[must_use]
    pub fn from_words([low, high]: [u64; 2]) -> Self {
        Self(u128::from(high) << 64 | u128::from(low))
    }
}

impl core::fmt::Display for RegionId {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl core::fmt::Debug for RegionId {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "RegionId({self})")
    }
}

/// A size of huge pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HugePage {
    /// 2 MiB.
    Mib2,
    /// 1 GiB.
    Gib1,
}

impl HugePage {
    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::Mib2 => 2 << 20,
            Self::Gib1 => 1 << 30,
        }
    }
}

/// Which huge pages a region may take without being asked for them by name. Fewer pages mean fewer misses of the
/// translation cache, whose cost a message of megabytes feels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HugePages {
    /// None.
    Never,
    /// Transparent ones: 2 MiB of free memory in one piece, which the kernel finds or not.
    Transparent,
    /// Reserved ones (`sysctl vm.nr_hugepages`) for a sealed memfd of more than [`RESERVED_HUGE_PAGES_FROM_BYTES`],
    /// else transparent ones.
    #[default]
    Any,
}

/// What a region's memory is, and how others come to it.
///
/// The named kinds are for programs that expect them. Their names must be free, are made with the mode asked for, and
/// are removed when the region drops. Whoever may open them may also truncate them (System V segments excepted), and
/// then the owner's next access ends in SIGBUS: name them only among processes of one user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum RegionKind {
    /// A memfd that only its owner writes, handed on by descriptor.
    #[default]
    SealedMemfd,
    /// The same of huge pages, which must have been reserved (`sysctl vm.nr_hugepages`).
    Hugetlb(HugePage),
    /// Memory of this process alone.
    Anonymous,
    /// POSIX shared memory under this name (with or without the leading slash).
    PosixShm {
        /// The name.
        name: String,
    },
    /// A System V segment with this key; 0 (`IPC_PRIVATE`) finds a free one.
    SystemV {
        /// The key.
        key: i32,
    },
    /// A file at this path, which must not exist.
    MappedFile {
        /// The path.
        path: PathBuf,
    },
    /// A memfd that peers of the same user write too; it holds wake words and nothing else.
    WakePage,
}

impl RegionKind {
    const SEALED_MEMFD_WORD: u64 = 1;
    const HUGETLB_WORD: u64 = 2;
    const WAKE_PAGE_WORD: u64 = 7;

    /// The kind as the header writes it.
    fn word(&self) -> u64 {
        match self {
            Self::SealedMemfd => Self::SEALED_MEMFD_WORD,
            Self::Hugetlb(_) => Self::HUGETLB_WORD,
            Self::Anonymous => 3,
            Self::PosixShm { .. } => 4,
            Self::SystemV { .. } => 5,
            Self::MappedFile { .. } => 6,
            Self::WakePage => Self::WAKE_PAGE_WORD,
        }
    }

    /// Whether every page must exist at creation, whatever the options say.
    fn must_be_filled(&self) -> bool {
        matches!(self, Self::SealedMemfd | Self::Hugetlb(_) | Self::WakePage | Self::SystemV { .. })
    }

    fn is_named(&self) -> bool {
        matches!(self, Self::PosixShm { .. } | Self::SystemV { .. } | Self::MappedFile { .. })
    }
}

/// One of three answers to a question about a region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is so.
    Yes,
    /// It is not so, because of this.
    No(Cow<'static, str>),
    /// It could not be told, because of this.
    Unknown(Cow<'static, str>),
}

impl Outcome {
    /// Whether the answer is yes.
    #[must_use]
    pub fn is_yes(&self) -> bool {
        *self == Self::Yes
    }

    const fn no(reason: &'static str) -> Self {
        Self::No(Cow::Borrowed(reason))
    }

    fn of_call(call: &str, result: Result<(), impl Into<std::io::Error>>) -> Self {
        match result {
            Ok(()) => Self::Yes,
            Err(error) => Self::No(format!("{call}: {}", error.into()).into()),
        }
    }
}

impl core::fmt::Display for Outcome {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Yes => f.write_str("yes"),
            Self::No(reason) => write!(f, "no: {reason}"),
            Self::Unknown(reason) => write!(f, "unknown: {reason}"),
        }
    }
}

/// What became of all that was asked of a region.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RegionFacts {
    /// The size of the pages in which the region is counted: that of transparent huge pages is not seen here.
    pub page_bytes: usize,
    /// Whether the available memory was compared with the region's size.
    pub compared: Outcome,
    /// Whether all memory (or disk) was set aside at creation, so that no later access can fail.
    pub reserved: Outcome,
    /// Whether the page tables were filled at creation, so that first accesses take no fault.
    pub populated: Outcome,
    /// Whether the memory is locked against being swapped out.
    pub locked: Outcome,
    /// Whether the pages lie on the node that was asked for.
    pub numa: Outcome,
    /// Whether huge pages were taken: reserved ones, or a transparent one for each whole 2 MiB.
    pub huge_pages: Outcome,
    /// Whether the kernel refuses others to change the region (a wake page: its size).
    pub sealed: Outcome,
    /// Whether forked children are kept from it.
    pub dont_fork: Outcome,
    /// Whether it stays out of core dumps.
    pub dont_dump: Outcome,
}

/// Why a region could not be created.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegionError {
    /// No region has that size.
    #[error(
        "a region of {bytes} bytes cannot be: it takes at least 1, and header and pages must fit the address space"
    )]
    Size {
        /// The bytes asked for.
        bytes: usize,
    },
    /// A wake page holds wake words and nothing else, so that peers map no large one.
    #[error("a wake page of {bytes} bytes is more than the {most} that peers map")]
    WakePageSize {
        /// The bytes it would take, header included.
        bytes: usize,
        /// The most it may.
        most: usize,
    },
    /// There is too little memory. Nothing was taken.
    #[error("{needed} bytes are needed, but {limit_source} leaves {available}; ask for less, or raise the limit")]
    NotEnoughMemory {
        /// The bytes the region takes, with its header and the kernel's tables for it.
        needed: u64,
        /// What is available.
        available: u64,
        /// What bounds it.
        limit_source: LimitSource,
    },
    /// The process may not make files of that size (`RLIMIT_FSIZE`), and would be sent SIGXFSZ for trying.
    #[error("{needed} bytes are needed, but files are limited to {limit}; raise it with `ulimit -f`")]
    FileSizeLimit {
        /// The bytes the region takes.
        needed: u64,
        /// The limit.
        limit: u64,
    },
    /// The name is none.
    #[error("{name:?} cannot name shared memory: 1 to 254 bytes, without a slash or a zero byte")]
    Name {
        /// The name asked for.
        name: String,
    },
    /// An arena makes many regions, and a named kind has one name.
    #[error("an arena cannot be made of regions with a name")]
    NamedArena,
    /// Forks could not be noticed.
    #[error(transparent)]
    Fork(#[from] ForkGuardError),
    /// A system call failed.
    #[error("{call} failed")]
    System {
        /// The call.
        call: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
}

/// Why an offset names no bytes of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OutOfRegion {
    /// The range ends past the end.
    #[error("{bytes} bytes at {offset} end past the region's {region_bytes}")]
    PastEnd {
        /// Where the range begins.
        offset: usize,
        /// Its length.
        bytes: usize,
        /// The region's length.
        region_bytes: usize,
    },
    /// The range begins in the header.
    #[error("offset {offset} lies in the region's header; data begins at {data_offset}")]
    InHeader {
        /// Where the range begins.
        offset: usize,
        /// Where data begins.
        data_offset: usize,
    },
    /// The element type needs another alignment.
    #[error("offset {offset} is not a multiple of {align}")]
    Misaligned {
        /// Where the range begins.
        offset: usize,
        /// The alignment needed.
        align: usize,
    },
    /// Nothing was asked for.
    #[error("an empty range at {offset} names no memory")]
    Empty {
        /// Where the range would begin.
        offset: usize,
    },
    /// The process forked, and the region stayed with the parent.
    #[error("this process is a fork of the one that mapped the region, which a fork does not inherit")]
    Forked,
}

/// What a region shall be; made by [`Region::options`].
#[derive(Clone, Debug)]
#[must_use = "options make no region until `create`"]
pub struct RegionOptions {
    bytes: usize,
    kind: RegionKind,
    populate: bool,
    lock: bool,
    numa_node: Option<u32>,
    huge_pages: HugePages,
    mode: u32,
}

impl RegionOptions {
    /// What its memory is. Default: a sealed memfd.
    pub fn kind(self, kind: RegionKind) -> Self {
        Self { kind, ..self }
    }

    /// Whether the page tables are filled at creation. Default: yes.
    ///
    /// Without it files and POSIX shared memory are still reserved by `fallocate`, so that only faults come later;
    /// anonymous memory is not reserved then. Memfds and System V segments are filled in any case: peers refuse a memfd
    /// with pages that were never filled, because they could not tell them from holes, and nothing else reserves a
    /// segment.
    pub fn populate(self, populate: bool) -> Self {
        Self { populate, ..self }
    }

    /// Whether the memory is locked (`mlock`). Default: no. What came of it is in [`RegionFacts::locked`].
    pub fn lock(self, lock: bool) -> Self {
        Self { lock, ..self }
    }

    /// The NUMA node to take pages from, if possible. What came of it is in [`RegionFacts::numa`].
    pub fn numa_node(self, node: Option<u32>) -> Self {
        Self { numa_node: node, ..self }
    }

    /// Which huge pages a sealed memfd or anonymous memory may take. Default: [`HugePages::Any`]. What came of it is in
    /// [`RegionFacts::huge_pages`].
    ///
    /// Transparent at most for a region whose audience is other users: they refuse reserved ones, in which holes cannot
    /// be seen.
    pub fn huge_pages(self, allowed: HugePages) -> Self {
        Self { huge_pages: allowed, ..self }
    }

    /// The mode of a named kind, of which the lowest nine bits are taken. Default: 0600.
    pub fn mode(self, mode: u32) -> Self {
        Self { mode: mode & 0o777, ..self }
    }

    /// Creates the region.
    ///
    /// # Errors
    /// [`RegionError`]; whatever was made until then is gone again.
    ///
    /// # Kernel
    /// `memfd_create` with `F_SEAL_FUTURE_WRITE` (5.1). `MFD_NOEXEC_SEAL` (6.3), `MADV_POPULATE_WRITE` (5.14) and
    /// `MADV_COLLAPSE` (6.1) are used where they exist; the absence of the latter two is told by
    /// [`RegionFacts::populated`] and [`RegionFacts::huge_pages`].
    ///
    /// # Sources
    /// memfd_create(2), fcntl(2) "File Sealing", fallocate(2), madvise(2), mbind(2), shm_open(3), shmget(2).
    pub fn create(self) -> Result<Region, RegionError> {
        let Some(page) = self.reserved_page() else { return self.build(None) };
        match self.build(Some(page)) {
            // Asked for by name: its absence is the caller's error, and not a reason for other pages.
            Err(error) if !matches!(self.kind, RegionKind::Hugetlb(_)) => {
                let mut region = self.build(None)?;
                if let Outcome::No(reason) = &mut region.facts.huge_pages {
                    *reason = format!("{}; {reason}", describe(&error)).into();
                }
                Ok(region)
            }
            result => result,
        }
    }

    /// The reserved huge pages to try.
    fn reserved_page(&self) -> Option<HugePage> {
        let is_large = self.bytes > RESERVED_HUGE_PAGES_FROM_BYTES;
        match self.kind {
            RegionKind::Hugetlb(page) => Some(page),
            RegionKind::SealedMemfd if is_large && self.huge_pages == HugePages::Any => Some(HugePage::Mib2),
            _ => None,
        }
    }

    /// Has transparent huge pages put behind an empty mapping, where they may be.
    fn take_transparent_pages(&self, mapping: &Mapping, will_be_filled: bool) -> Outcome {
        if !matches!(self.kind, RegionKind::SealedMemfd | RegionKind::Anonymous) {
            return Outcome::no("not tried for memory of this kind");
        }
        if self.huge_pages == HugePages::Never {
            return Outcome::no("the options rule them out");
        }
        if mapping.len() < HugePage::Mib2.bytes() {
            return Outcome::no("the region is smaller than one");
        }
        if !will_be_filled {
            return Outcome::no("its pages are to come at the first access");
        }
        mapping.collapse().map_or_else(|error| Outcome::No(error.to_string().into()), |()| Outcome::Yes)
    }

    /// Builds the region of these pages. Whatever fails, the values made so far undo their part when they drop.
    fn build(&self, huge: Option<HugePage>) -> Result<Region, RegionError> {
        let page_bytes = huge.map_or_else(rustix::param::page_size, HugePage::bytes);
        let len = self.mapping_bytes(page_bytes)?;
        if self.kind == RegionKind::WakePage && len > received::WAKE_PAGE_BYTES {
            return Err(RegionError::WakePageSize { bytes: len, most: received::WAKE_PAGE_BYTES });
        }
        let life = ForkGuard::new()?;
        let id = RegionId::from_words(sys::random_words()?);

        // Before anything is made, except for files: there the file system decides whether its bytes are memory.
        let is_path = matches!(self.kind, RegionKind::MappedFile { .. });
        let mut compared = if is_path { Outcome::no("its pages go to disk") } else { compare(len as u64, huge)? };
        let mut backing = self.open(huge, life)?;
        if let Backing::File { fd, .. } = &backing
            && is_path
            && sys::is_tmpfs(fd.as_fd()).map_err(failed("fstatfs"))?
        {
            compared = compare(len as u64, huge)?;
        }
        let mapping = Arc::new(match &mut backing {
            Backing::File { fd, .. } => {
                refuse_long_file(len as u64)?;
                sys::set_size(fd.as_fd(), len)?;
                Mapping::file(fd.as_fd(), len, Access::ReadWrite, huge.is_some())?
            }
            Backing::SystemV { name } => {
                let segment = SystemVId::create(name.key, len, self.mode)?;
                name.id = Some(segment);
                Mapping::system_v(segment, len)?
            }
            Backing::Private => Mapping::anonymous(len)?,
        });
        let dont_fork = Outcome::of_call("madvise(MADV_DONTFORK)", mapping.forbid_fork());
        let dont_dump = Outcome::of_call("madvise(MADV_DONTDUMP)", mapping.forbid_dump());

        // The node is chosen before the first page is.
        let preferred = self.numa_node.map(|node| (node, mapping.prefer_node(node)));
        let must_fill = self.kind.must_be_filled();
        let huge_pages = match huge {
            Some(_) => Outcome::Yes,
            None => self.take_transparent_pages(&mapping, self.populate || must_fill),
        };
        let by_file = if let Backing::File { fd, .. } = &backing {
            sys::reserve(fd.as_fd(), len, page_bytes)?;
            true
        } else {
            false
        };
        let populated = match fill(&mapping, self.populate || must_fill) {
            Err(Errno::INVAL) if !must_fill => Outcome::no("the kernel does not know MADV_POPULATE_WRITE"),
            other => other.map_err(failed("madvise(MADV_POPULATE_WRITE)"))?,
        };
        let reserved = if by_file || populated.is_yes() {
            Outcome::Yes
        } else {
            Outcome::no("nothing but filling it reserves such memory")
        };
        let locked = if self.lock { Outcome::of_call("mlock", mapping.lock()) } else { Outcome::no("not asked for") };

        let view = raw::header(&mapping).map_err(|_| RegionError::Size { bytes: self.bytes })?;
        header::write(&view, page_bytes, self.kind.word(), len, id);
        let sealed = self.seal(&backing)?;
        let numa = match preferred {
            None => Outcome::no("not asked for"),
            Some((_, Err(error))) => Outcome::No(format!("mbind: {error}").into()),
            Some((node, Ok(()))) => placed(&mapping, page_bytes, node),
        };

        let facts = RegionFacts {
            page_bytes,
            compared,
            reserved,
            populated,
            locked,
            numa,
            huge_pages,
            sealed,
            dont_fork,
            dont_dump,
        };
        Ok(Region { mapping, backing, id, kind: self.kind.clone(), facts })
    }

    /// Header and data, rounded up to whole pages.
    fn mapping_bytes(&self, page_bytes: usize) -> Result<usize, RegionError> {
        self.bytes
            .checked_add(HEADER_BYTES)
            .filter(|_| self.bytes > 0)
            .and_then(|bytes| bytes.checked_next_multiple_of(page_bytes))
            .filter(|&bytes| isize::try_from(bytes).is_ok())
            .ok_or(RegionError::Size { bytes: self.bytes })
    }

    /// Makes what is behind the region, still empty.
    fn open(&self, huge: Option<HugePage>, life: ForkGuard) -> Result<Backing, RegionError> {
        Ok(match &self.kind {
            RegionKind::SealedMemfd | RegionKind::Hugetlb(_) | RegionKind::WakePage => {
                let fd = sys::memfd(huge)?;
                // A memfd is made readable and writable for everybody. Peers map the descriptor that they are given;
                // opening it anew is for observers, of our user and to read.
                let mode = if self.kind == RegionKind::WakePage { 0o600 } else { 0o400 };
                sys::set_mode(fd.as_fd(), mode)?;
                Backing::File { fd, _name: None }
            }
            RegionKind::Anonymous => Backing::Private,
            RegionKind::SystemV { key } => Backing::SystemV { name: SegmentName { key: *key, id: None, life } },
            RegionKind::PosixShm { name } => {
                let bare = name.strip_prefix('/').unwrap_or(name);
                if bare.is_empty() || bare.len() > 254 || bare == "." || bare == ".." || bare.contains(['/', '\0']) {
                    return Err(RegionError::Name { name: name.clone() });
                }
                let posix = format!("/{bare}");
                let flags = rustix::shm::OFlags::CREATE | rustix::shm::OFlags::EXCL | rustix::shm::OFlags::RDWR;
                let fd = rustix::shm::open(posix.as_str(), flags, Mode::RUSR).map_err(failed("shm_open"))?;
                let name = FileName::new(Place::Shm(posix), fd.as_fd(), life)?;
                sys::set_mode(fd.as_fd(), self.mode)?;
                Backing::File { fd, _name: Some(name) }
            }
            RegionKind::MappedFile { path } => {
                let new = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let fd = rustix::fs::open(path, new, Mode::RUSR).map_err(failed("open"))?;
                let name = FileName::new(Place::Path(path.clone()), fd.as_fd(), life)?;
                sys::set_mode(fd.as_fd(), self.mode)?;
                Backing::File { fd, _name: Some(name) }
            }
        })
    }

    /// Seals what can be sealed. From here on the owner's mapping is the only one that can write.
    fn seal(&self, backing: &Backing) -> Result<Outcome, RegionError> {
        let seals: SealFlags = match self.kind {
            RegionKind::SealedMemfd | RegionKind::Hugetlb(_) => received::REGION_SEALS,
            RegionKind::WakePage => received::WAKE_PAGE_SEALS,
            RegionKind::Anonymous => return Ok(Outcome::no("nobody else can map it")),
            _ => return Ok(Outcome::no("named memory takes no seals; its mode alone guards it")),
        };
        let Backing::File { fd, .. } = backing else { return Ok(Outcome::no("it is no file")) };
        rustix::fs::fcntl_add_seals(fd, seals).map_err(failed("fcntl(F_ADD_SEALS)"))?;
        Ok(Outcome::Yes)
    }
}

/// An error and its sources in one line.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// Compares a size with what is available.
fn compare(bytes: u64, huge: Option<HugePage>) -> Result<Outcome, RegionError> {
    // Ordinary pages need tables too, charged to the same control group: 8 bytes a page where it is mapped and about 9
    // in the file's index. That is 1/240 of the region; 1/128 leaves a margin.
    let needed = if huge.is_some() { bytes } else { bytes.saturating_add(bytes / 128).saturating_add(TABLES_BYTES) };
    let available = match huge {
        None => memory::available(),
        Some(page) => memory::free_huge_pages(page).map(|pages| Available {
            bytes: pages.saturating_mul(page.bytes() as u64),
            source: LimitSource::HugePages(page),
        }),
    };
    match available {
        Ok(Available { bytes, source }) if bytes < needed => {
            Err(RegionError::NotEnoughMemory { needed, available: bytes, limit_source: source })
        }
        Ok(_) => Ok(Outcome::Yes),
        Err(error) => Ok(Outcome::Unknown(describe(&error).into())),
    }
}

/// Refuses a file longer than this process may make one, which would be answered by a signal.
fn refuse_long_file(needed: u64) -> Result<(), RegionError> {
    match rustix::process::getrlimit(rustix::process::Resource::Fsize).current {
        Some(limit) if limit < needed => Err(RegionError::FileSizeLimit { needed, limit }),
        _ => Ok(()),
    }
}

/// Fills the page tables, where that is wanted.
fn fill(mapping: &Mapping, wanted: bool) -> rustix::io::Result<Outcome> {
    if wanted { mapping.populate().map(|()| Outcome::Yes) } else { Ok(Outcome::no("not asked for")) }
}

/// Where a sample of the pages lies.
fn placed(mapping: &Mapping, page_bytes: usize, node: u32) -> Outcome {
    let mut status = [0_i32; SAMPLED_PAGES];
    let count = match mapping.nodes(page_bytes, &mut status) {
        Ok(count) => count,
        Err(error) => return Outcome::Unknown(format!("move_pages: {error}").into()),
    };
    let absent = status[..count].iter().filter(|&&found| found < 0).count();
    let elsewhere = status[..count].iter().filter(|&&found| found >= 0 && found as u32 != node).count();
    if elsewhere > 0 {
        Outcome::No(format!("{elsewhere} of {count} sampled pages lie on another node").into())
    } else if absent > 0 {
        Outcome::Unknown(format!("{absent} of {count} sampled pages are not mapped yet").into())
    } else {
        Outcome::Yes
    }
}

/// A region of our own, writable.
///
/// ```
/// use std::sync::atomic::{AtomicU64, Ordering};
/// use zcmi_mem::region::Region;
///
/// let region = Region::options(1 << 20).create()?;
/// let words = region.view::<AtomicU64>(region.data_offset(), 1024)?;
/// words.at(7).store(7, Ordering::Relaxed);
/// assert!(region.facts().sealed.is_yes());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Region {
    mapping: Arc<Mapping>,
    backing: Backing,
    id: RegionId,
    kind: RegionKind,
    facts: RegionFacts,
}

impl Region {
    /// Begins the options of a region for `bytes` bytes of data.
    pub fn options(bytes: usize) -> RegionOptions {
        RegionOptions {
            bytes,
            kind: RegionKind::default(),
            populate: true,
            lock: false,
            numa_node: None,
            huge_pages: HugePages::default(),
            mode: 0o600,
        }
    }

    /// The size of the whole mapping: header and data, rounded up to whole pages.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a region is never empty")]
    pub fn len(&self) -> usize {
        self.mapping.len()
    }

    /// Where data begins: [`HEADER_BYTES`].
    #[must_use]
    pub fn data_offset(&self) -> usize {
        HEADER_BYTES
    }

    /// The region's identity.
    #[must_use]
    pub fn id(&self) -> RegionId {
        self.id
    }

    /// What its memory is.
    #[must_use]
    pub fn kind(&self) -> &RegionKind {
        &self.kind
    }

    /// The size of the pages behind it.
    #[must_use]
    pub fn page_bytes(&self) -> usize {
        self.facts.page_bytes
    }

    /// What became of all that was asked of it.
    #[must_use]
    pub fn facts(&self) -> &RegionFacts {
        &self.facts
    }

    /// Whether this process is a fork of the one that made the region. Its memory is not there then.
    #[must_use]
    pub fn is_forked(&self) -> bool {
        !self.mapping.is_present()
    }

    /// The descriptor to hand to a peer, for kinds that have one.
    #[must_use]
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match &self.backing {
            Backing::File { fd, .. } => Some(fd.as_fd()),
            Backing::SystemV { .. } | Backing::Private => None,
        }
    }

    /// The number of a System V segment, by which other programs attach it.
    #[must_use]
    pub fn system_v_id(&self) -> Option<i32> {
        match &self.backing {
            Backing::SystemV { name } => name.id.map(SystemVId::number),
            Backing::File { .. } | Backing::Private => None,
        }
    }

    /// What a peer is told beside the descriptor.
    #[must_use]
    pub fn claim(&self) -> RegionClaim {
        RegionClaim { id: self.id, bytes: self.len() as u64 }
    }

    /// `count` elements at `offset` from the start of the mapping.
    ///
    /// # Errors
    /// [`OutOfRegion`] for what does not lie behind the header and before the end, aligned, and not empty.
    pub fn view<T: Shared>(&self, offset: usize, count: usize) -> Result<View<T>, OutOfRegion> {
        raw::view(&self.mapping, offset, count)
    }

    /// The bytes at `offset` from the start of the mapping, as a checked address.
    ///
    /// # Errors
    /// [`OutOfRegion`], as for [`view`](Self::view).
    pub fn bytes(&self, offset: usize, len: usize) -> Result<Span, OutOfRegion> {
        raw::span(&self.mapping, offset, len)
    }
}
