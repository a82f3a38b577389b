//! The kernel calls of regions.
//!
//! Every unsafe block here relies on one of these facts: a [`Mapping`] owns its range of addresses alone, from the call
//! that made it to its drop, so that unmapping or advising the range touches nobody else's memory; and no reference
//! into the range exists, only atomics behind a keeper that holds the mapping.
#![allow(unsafe_code)]

use core::ffi::c_void;
use core::ptr::{NonNull, null_mut};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FallocateFlags, MemfdFlags, Mode, SealFlags, SeekFrom};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};

use super::{HugePage, RegionError};
use crate::fork::ForkGuard;

/// `fallocate` works in steps of this many bytes: a signal undoes one step and not the whole.
const RESERVE_STEP_BYTES: u64 = 16 << 20;
/// How often one step is tried again after a signal, before the signal is reported.
const INTERRUPTS_PER_STEP: u32 = 1000;

/// How often an address for huge pages is looked for again that another thread took meanwhile.
const HINTS_LOST: u32 = 8;

/// Names the call of a system error.
pub(super) fn failed(call: &'static str) -> impl FnOnce(Errno) -> RegionError {
    move |errno| RegionError::System { call, source: errno.into() }
}

/// Two random words from the kernel.
pub(super) fn random_words() -> Result<[u64; 2], RegionError> {
    let mut bytes = [0_u8; 16];
    // Sixteen bytes come whole or not at all once the kernel's generator is seeded (getrandom(2)).
    let got = rustix::io::retry_on_intr(|| rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()))
        .map_err(failed("getrandom"))?;
    if got != bytes.len() {
        return Err(RegionError::System { call: "getrandom", source: io::ErrorKind::UnexpectedEof.into() });
    }
    let number = u128::from_ne_bytes(bytes);
    Ok([number as u64, (number >> 64) as u64])
}

/// What this process may do to a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    ReadOnly,
    ReadWrite,
}

/// Transparent huge pages came to an end before the mapping did.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("madvise(MADV_COLLAPSE) of 2 MiB number {block} of {blocks}: {errno}")]
pub(super) struct NotCollapsed {
    block: usize,
    blocks: usize,
    errno: Errno,
}

/// How a mapping ends.
#[derive(Clone, Copy, Debug)]
enum Ending {
    Unmap,
    Detach,
}

/// A range of addresses that this value alone owns, unmapped when it drops.
///
/// Dropped in a forked child it does nothing: the range was not inherited (`MADV_DONTFORK`), and whatever lies at those
/// addresses there belongs to somebody else.
#[derive(Debug)]
pub(super) struct Mapping {
    base: NonNull<u8>,
    len: usize,
    access: Access,
    ending: Ending,
    life: ForkGuard,
}

/// An address at a huge page's multiple where `len` bytes were free just now: a hint, null where no huge page fits or
/// no address was found.
///
/// Whoever maps there meanwhile is not harmed, for the hint is not `MAP_FIXED`: the mapping then lies elsewhere,
/// perhaps not aligned, which [`Mapping::collapse`] tells.
fn aligned_hint(len: usize) -> *mut c_void {
    let page = HugePage::Mib2.bytes();
    let Some(spare) = len.checked_add(page).filter(|_| len >= page) else { return null_mut() };
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let found = unsafe { rustix::mm::mmap_anonymous(null_mut(), spare, ProtFlags::empty(), flags) };
    let Ok(found) = found else { return null_mut() };
    // SAFETY: what was mapped above, and nothing else; nobody knows of it.
    match unsafe { rustix::mm::munmap(found, spare) } {
        Ok(()) => found.map_addr(|address| address.next_multiple_of(page)),
        // It stays mapped: never, for unmapping a whole mapping splits none (munmap(2)).
        Err(_) => null_mut(),
    }
}

// SAFETY: the range is the process's, not a thread's, and is reached only through atomics or by kernel calls.
unsafe impl Send for Mapping {}
// SAFETY: as above; no method writes through `&self`.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(
        base: *mut c_void,
        len: usize,
        access: Access,
        ending: Ending,
        life: ForkGuard,
    ) -> Result<Self, RegionError> {
        // No kernel maps page zero unless asked to; the check costs nothing and keeps `NonNull` honest.
        let base = NonNull::new(base.cast::<u8>())
            .ok_or_else(|| RegionError::System { call: "mmap", source: io::ErrorKind::InvalidData.into() })?;
        Ok(Self { base, len, access, ending, life })
    }

    /// Maps the first `len` bytes of a file, shared. Never `MAP_NORESERVE`: a shortage of huge pages is then refused
    /// here.
    ///
    /// The address is aligned for [huge pages](Self::collapse), except for a file of such pages, for which the kernel
    /// knows best.
    pub(super) fn file(fd: BorrowedFd<'_>, len: usize, access: Access, is_hugetlb: bool) -> Result<Self, RegionError> {
        let life = ForkGuard::new()?;
        let rights = match access {
            Access::ReadOnly => ProtFlags::READ,
            Access::ReadWrite => ProtFlags::READ | ProtFlags::WRITE,
        };
        let map = |hint| {
            // SAFETY: a new mapping at an address of the kernel's choice, near a hint.
            let base = unsafe { rustix::mm::mmap(hint, len, rights, MapFlags::SHARED, fd, 0) };
            Self::new(base.map_err(failed("mmap"))?, len, access, Ending::Unmap, life)
        };
        if is_hugetlb { map(null_mut()) } else { Self::aligned(len, map) }
    }

    /// Maps `len` bytes of anonymous memory, this process's alone, aligned for [huge pages](Self::collapse).
    pub(super) fn anonymous(len: usize) -> Result<Self, RegionError> {
        let life = ForkGuard::new()?;
        let rights = ProtFlags::READ | ProtFlags::WRITE;
        Self::aligned(len, |hint| {
            // SAFETY: a new mapping at an address of the kernel's choice, near a hint.
            let base = unsafe { rustix::mm::mmap_anonymous(hint, len, rights, MapFlags::PRIVATE) };
            Self::new(base.map_err(failed("mmap"))?, len, Access::ReadWrite, Ending::Unmap, life)
        })
    }

    /// Maps at a hint, and again where it was lost to another thread.
    fn aligned(len: usize, map: impl Fn(*mut c_void) -> Result<Self, RegionError>) -> Result<Self, RegionError> {
        let mut mapping = map(aligned_hint(len))?;
        for _ in 0..HINTS_LOST {
            if len < HugePage::Mib2.bytes() || mapping.is_aligned() {
                break;
            }
            drop(mapping);
            mapping = map(aligned_hint(len))?;
        }
        Ok(mapping)
    }

    fn is_aligned(&self) -> bool {
        self.base.addr().get().is_multiple_of(HugePage::Mib2.bytes())
    }

    /// Attaches a System V segment of `len` bytes.
    pub(super) fn system_v(id: SystemVId, len: usize) -> Result<Self, RegionError> {
        let life = ForkGuard::new()?;
        // SAFETY: attaches at an address of the kernel's choice.
        let base = unsafe { libc::shmat(id.0, core::ptr::null(), 0) };
        // `shmat` answers its failures by the address -1.
        if base.addr() == usize::MAX {
            return Err(RegionError::System { call: "shmat", source: io::Error::last_os_error() });
        }
        Self::new(base, len, Access::ReadWrite, Ending::Detach, life)
    }

    pub(super) fn base(&self) -> NonNull<u8> {
        self.base
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_writable(&self) -> bool {
        self.access == Access::ReadWrite
    }

    pub(super) fn is_present(&self) -> bool {
        self.life.is_present()
    }

    fn advise(&self, advice: Advice) -> rustix::io::Result<()> {
        // SAFETY: the range is this mapping's own, and none of the advices used in this file discards or moves memory.
        unsafe { rustix::mm::madvise(self.base.as_ptr().cast(), self.len, advice) }
    }

    /// Keeps the range out of forked children.
    pub(super) fn forbid_fork(&self) -> rustix::io::Result<()> {
        self.advise(Advice::LinuxDontFork)
    }

    /// Keeps the range out of core dumps.
    pub(super) fn forbid_dump(&self) -> rustix::io::Result<()> {
        self.advise(Advice::LinuxDontDump)
    }

    /// Fills the page tables, for writing where the mapping is writable.
    pub(super) fn populate(&self) -> rustix::io::Result<()> {
        let advice = match self.access {
            Access::ReadOnly => Advice::LinuxPopulateRead,
            Access::ReadWrite => Advice::LinuxPopulateWrite,
        };
        rustix::io::retry_on_intr(|| self.advise(advice))
    }

    /// Has the kernel put transparent huge pages behind each whole 2 MiB, before the rest is filled: zeroed huge pages
    /// come faster than as many small ones. Stops at the first that it cannot have, because the next ones would cost
    /// time and fail too.
    ///
    /// `MADV_COLLAPSE` (Linux 6.1) needs no setting of the system; it wants at least one page of each block to be
    /// there, and zeroes what was not (madvise(2)).
    pub(super) fn collapse(&self) -> Result<(), NotCollapsed> {
        let page = HugePage::Mib2.bytes();
        let blocks = self.len / page;
        if !self.is_aligned() {
            // The kernel would take the aligned part of each block, which is none, and say that all is well.
            return Err(NotCollapsed { block: 0, blocks, errno: Errno::INVAL });
        }
        for block in 0..blocks {
            let base = self.base.as_ptr().wrapping_add(block * page).cast::<c_void>();
            let failed = |errno| NotCollapsed { block, blocks, errno };
            let touch = || {
                // SAFETY: the block's first page, which is this mapping's own; nothing is discarded.
                unsafe { rustix::mm::madvise(base, rustix::param::page_size(), Advice::LinuxPopulateWrite) }
            };
            let collapse = || {
                // SAFETY: a block of this mapping's own; its bytes stay what they are.
                match unsafe { libc::madvise(base, page, libc::MADV_COLLAPSE) } {
                    0 => Ok(()),
                    _ => Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)),
                }
            };
            rustix::io::retry_on_intr(touch).map_err(failed)?;
            match rustix::io::retry_on_intr(collapse) {
                // Pages that are on their way through the kernel's lists: once more.
                Err(Errno::AGAIN) => rustix::io::retry_on_intr(collapse).map_err(failed)?,
                done => done.map_err(failed)?,
            }
        }
        Ok(())
    }

    /// Locks the range into memory.
    pub(super) fn lock(&self) -> rustix::io::Result<()> {
        // SAFETY: the range is this mapping's own; locking changes no byte of it.
        unsafe { rustix::mm::mlock(self.base.as_ptr().cast(), self.len) }
    }

    /// Asks that pages of the range come from `node`, others where that one has none left.
    ///
    /// Preferred and not bound: a bound range on a full node is answered by the kernel's OOM killer.
    pub(super) fn prefer_node(&self, node: u32) -> io::Result<()> {
        let mut mask = [0_u64; 16];
        let bit = node as usize;
        let word = mask.get_mut(bit / 64).ok_or(io::ErrorKind::InvalidInput)?;
        *word |= 1 << (bit % 64);
        // The kernel takes the number of bits plus one (set_mempolicy(2), notes).
        let bits = mask.len() * 64 + 1;
        // Whole words, because the call takes its arguments untyped.
        let policy = libc::c_long::from(libc::MPOL_PREFERRED);
        let none: libc::c_long = 0;
        // SAFETY: the range is this mapping's own, `mask` lives across the call and has `bits - 1` bits.
        let answer =
            unsafe { libc::syscall(libc::SYS_mbind, self.base.as_ptr(), self.len, policy, mask.as_ptr(), bits, none) };
        if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// The nodes of up to `pages.len()` pages, evenly spread; a negative entry is an errno for that page.
    pub(super) fn nodes(&self, page_bytes: usize, status: &mut [i32]) -> io::Result<usize> {
        let pages = self.len / page_bytes;
        let count = status.len().min(pages);
        let mut addresses: Vec<*const u8> = Vec::with_capacity(count);
        for index in 0..count {
            let page = index * pages / count;
            addresses.push(self.base.as_ptr().wrapping_add(page * page_bytes).cast_const());
        }
        // Whole words, because the call takes its arguments untyped; process 0 is this one.
        let none: libc::c_long = 0;
        // SAFETY: asks only (`nodes` is null); both arrays have `count` elements and live across the call.
        let answer = unsafe {
            libc::syscall(
                libc::SYS_move_pages,
                none,
                count,
                addresses.as_ptr(),
                core::ptr::null::<i32>(),
                status.as_mut_ptr(),
                none,
            )
        };
        if answer == 0 { Ok(count) } else { Err(io::Error::last_os_error()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if !self.is_present() {
            return;
        }
        let ended = match self.ending {
            // SAFETY: the range is this mapping's own, and whoever could reach it kept this value alive.
            Ending::Unmap => unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) }.is_ok(),
            // SAFETY: as above, for the address that `shmat` gave.
            Ending::Detach => unsafe { libc::shmdt(self.base.as_ptr().cast()) == 0 },
        };
        debug_assert!(ended, "a mapping of our own could not be unmapped");
    }
}

/// The number of a System V segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SystemVId(i32);

impl SystemVId {
    /// Makes a segment that did not exist.
    pub(super) fn create(key: i32, len: usize, mode: u32) -> Result<Self, RegionError> {
        let flags = libc::IPC_CREAT | libc::IPC_EXCL | (mode & 0o777) as i32;
        // SAFETY: a call without pointers.
        let id = unsafe { libc::shmget(key, len, flags) };
        if id < 0 {
            return Err(RegionError::System { call: "shmget", source: io::Error::last_os_error() });
        }
        Ok(Self(id))
    }

    /// The number, for other programs.
    pub(super) fn number(self) -> i32 {
        self.0
    }

    /// Marks the segment for removal with its last detach. One that is gone already is as good.
    pub(super) fn remove(self) {
        // SAFETY: `IPC_RMID` uses no pointer.
        let _gone = unsafe { libc::shmctl(self.0, libc::IPC_RMID, null_mut()) };
    }
}

/// Makes an empty memfd that takes seals, of ordinary or huge pages, and not executable where the kernel knows how.
pub(super) fn memfd(page: Option<HugePage>) -> Result<OwnedFd, RegionError> {
    let mut flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    flags |= match page {
        None => MemfdFlags::empty(),
        Some(HugePage::Mib2) => MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB,
        Some(HugePage::Gib1) => MemfdFlags::HUGETLB | MemfdFlags::HUGE_1GB,
    };
    match rustix::fs::memfd_create("zcmi-region", flags | MemfdFlags::NOEXEC_SEAL) {
        // Kernels before 6.3 do not know the flag; without it the memfd may be executed by who holds it, no more.
        Err(Errno::INVAL) => rustix::fs::memfd_create("zcmi-region", flags).map_err(failed("memfd_create")),
        other => other.map_err(failed("memfd_create")),
    }
}

/// Sets the mode of a file, whatever the umask is.
pub(super) fn set_mode(fd: BorrowedFd<'_>, mode: u32) -> Result<(), RegionError> {
    rustix::fs::fchmod(fd, Mode::from_raw_mode(mode)).map_err(failed("fchmod"))
}

/// Sets the size of an empty file.
pub(super) fn set_size(fd: BorrowedFd<'_>, len: usize) -> Result<(), RegionError> {
    rustix::io::retry_on_intr(|| rustix::fs::ftruncate(fd, len as u64)).map_err(failed("ftruncate"))
}

/// Reserves memory (or disk) for the first `len` bytes, so that a shortage is an error here and not a SIGBUS later.
pub(super) fn reserve(fd: BorrowedFd<'_>, len: usize, page_bytes: usize) -> Result<(), RegionError> {
    let len = len as u64;
    let step = RESERVE_STEP_BYTES.max(page_bytes as u64);
    let mut done = 0;
    while done < len {
        let bytes = step.min(len - done);
        let mut interrupts = 0;
        loop {
            match rustix::fs::fallocate(fd, FallocateFlags::empty(), done, bytes) {
                Ok(()) => break,
                Err(Errno::INTR) if interrupts < INTERRUPTS_PER_STEP => interrupts += 1,
                Err(errno) => return Err(failed("fallocate")(errno)),
            }
        }
        done += bytes;
    }
    Ok(())
}

/// Where the first hole of a file is; its size where it has none.
pub(super) fn first_hole(fd: BorrowedFd<'_>) -> rustix::io::Result<u64> {
    rustix::fs::seek(fd, SeekFrom::Hole(0))
}

/// The seals of a descriptor, or the error of one that cannot have any. Asks no file system but tmpfs and hugetlbfs.
pub(super) fn seals(fd: BorrowedFd<'_>) -> rustix::io::Result<SealFlags> {
    rustix::fs::fcntl_get_seals(fd)
}

/// Whether a file lies on hugetlbfs.
pub(super) fn is_hugetlb(fd: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    // The width of `f_type` differs between architectures; the number fits in 32 bits (statfs(2)).
    const HUGETLBFS_MAGIC: u32 = 0x9584_58f6;
    Ok(rustix::fs::fstatfs(fd)?.f_type as u32 == HUGETLBFS_MAGIC)
}

/// Whether a file lies on tmpfs, where its bytes are memory.
pub(super) fn is_tmpfs(fd: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    const TMPFS_MAGIC: u32 = 0x0102_1994;
    Ok(rustix::fs::fstatfs(fd)?.f_type as u32 == TMPFS_MAGIC)
}

/// Which file a descriptor names: its device and inode.
pub(super) fn identity(fd: impl AsFd) -> rustix::io::Result<(u64, u64)> {
    let stat = rustix::fs::fstat(fd)?;
    Ok((stat.st_dev, stat.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_that_is_not_aligned_has_no_huge_pages_and_says_so() {
        let len = 3 * HugePage::Mib2.bytes();
        let whole = Mapping::anonymous(len).expect("a mapping");
        // A part of it, which the whole unmaps.
        let life = ForkGuard::new().expect("a guard");
        let odd =
            Mapping::new(whole.base.as_ptr().wrapping_add(4096).cast(), len - 4096, whole.access, whole.ending, life);
        let odd = core::mem::ManuallyDrop::new(odd.expect("an address"));
        // One of the two is not aligned, whatever became of the hint.
        let odd: &Mapping = if whole.is_aligned() { &odd } else { &whole };
        assert_eq!(odd.collapse().expect_err("not aligned").errno, Errno::INVAL);
    }
}
