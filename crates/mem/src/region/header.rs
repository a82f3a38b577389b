//! The header at the start of every region: what the region is, in words that another process can check.
//!
//! ```text
//! offset  word              value
//!      0  magic             the bytes "zcmi-rgn"
//!      8  byte_order        0x0102030405060708 as the writer stores it
//!     16  layout_version    1
//!     24  layout_hash       FNV-1a of the list of fields below
//!     32  page_bytes        size of the pages behind the region
//!     40  kind              see `RegionKind`
//!     48  bytes             size of the whole mapping, header included
//!     56  data_offset       where data begins: 4096
//!     64  incarnation_low   the region's random identity
//!     72  incarnation_high
//!     80  reserved[6]       zero
//!    128  (to 4096: zero, nothing lies there)
//! ```
//!
//! Invariants: each word is written once, before the region is sealed and its descriptor can be passed on. A reader
//! loads each word once into a local, checks the local against what it knows of its own (the size the kernel reports,
//! the page size, the identity it was told), and never looks at the header again. It says nothing about the data behind
//! it.

use zcmi_ring::View;
use zcmi_ring::sync::{AtomicU64, Ordering};

use super::RegionId;

/// Bytes before the data of a region: one page of the smallest size, so that data begins on a page.
pub const HEADER_BYTES: usize = 4096;
/// The version of the region header's layout.
pub const LAYOUT_VERSION: u64 = 1;

const MAGIC: u64 = u64::from_ne_bytes(*b"zcmi-rgn");
const BYTE_ORDER: u64 = 0x0102_0304_0506_0708;
const LAYOUT_HASH: u64 = fnv1a(
    b"magic@0;byte_order@8;layout_version@16;layout_hash@24;page_bytes@32;kind@40;bytes@48;data_offset@56;\
      incarnation_low@64;incarnation_high@72;reserved@80*6;data@4096",
);

/// The header as it lies in memory.
#[repr(C)]
pub(super) struct RegionHeader {
    magic: AtomicU64,
    byte_order: AtomicU64,
    layout_version: AtomicU64,
    layout_hash: AtomicU64,
    page_bytes: AtomicU64,
    kind: AtomicU64,
    bytes: AtomicU64,
    data_offset: AtomicU64,
    incarnation_low: AtomicU64,
    incarnation_high: AtomicU64,
    reserved: [AtomicU64; 6],
}

const _: () = {
    assert!(core::mem::offset_of!(RegionHeader, magic) == 0);
    assert!(core::mem::offset_of!(RegionHeader, byte_order) == 8);
    assert!(core::mem::offset_of!(RegionHeader, layout_version) == 16);
    assert!(core::mem::offset_of!(RegionHeader, layout_hash) == 24);
    assert!(core::mem::offset_of!(RegionHeader, page_bytes) == 32);
    assert!(core::mem::offset_of!(RegionHeader, kind) == 40);
    assert!(core::mem::offset_of!(RegionHeader, bytes) == 48);
    assert!(core::mem::offset_of!(RegionHeader, data_offset) == 56);
    assert!(core::mem::offset_of!(RegionHeader, incarnation_low) == 64);
    assert!(core::mem::offset_of!(RegionHeader, incarnation_high) == 72);
    assert!(core::mem::offset_of!(RegionHeader, reserved) == 80);
    assert!(size_of::<RegionHeader>() == 128);
    assert!(align_of::<RegionHeader>() == 8 && size_of::<RegionHeader>() <= HEADER_BYTES);
};

const fn fnv1a(text: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut index = 0;
    while index < text.len() {
        hash = (hash ^ text[index] as u64).wrapping_mul(0x100_0000_01b3);
        index += 1;
    }
    hash
}

/// What a header must say, known to the one who asks from elsewhere than the header.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected {
    pub(super) page_bytes: u64,
    /// The kinds that are acceptable, as written in the header.
    pub(super) kinds: &'static [u64],
    pub(super) bytes: u64,
    pub(super) id: RegionId,
}

/// Why a region's header was refused. All numbers are what the header claimed, and beside it what was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// The first word is not the mark of a region.
    #[error("this is no zcmi region: it begins with {found:#018x}")]
    Magic {
        /// The first word.
        found: u64,
    },
    /// The region was written on a machine of another byte order.
    #[error("the region was written in another byte order (mark {found:#018x})")]
    ByteOrder {
        /// The mark as read here.
        found: u64,
    },
    /// The layout's version is not known here.
    #[error("the region has layout version {found}, this program knows {known}; use the same release at both ends")]
    Version {
        /// The version claimed.
        found: u64,
        /// The version of this program.
        known: u64,
    },
    /// The version is known, the fields are not.
    #[error("the region's header has other fields (layout hash {found:#018x}, here {known:#018x})")]
    Layout {
        /// The hash claimed.
        found: u64,
        /// The hash of this program.
        known: u64,
    },
    /// The page size is not the one that the kernel reports.
    #[error("the header claims pages of {found} bytes, the kernel says {actual}")]
    PageBytes {
        /// The size claimed.
        found: u64,
        /// The size reported by the kernel.
        actual: u64,
    },
    /// The kind is unknown, or not one that may be received this way.
    #[error("the header claims kind {found}, which is not acceptable here")]
    Kind {
        /// The kind claimed.
        found: u64,
    },
    /// The size is not the one that the kernel reports.
    #[error("the header claims {found} bytes, the kernel says {actual}")]
    Bytes {
        /// The size claimed.
        found: u64,
        /// The size reported by the kernel.
        actual: u64,
    },
    /// Data begins elsewhere than in this layout.
    #[error("the header claims that data begins at {found} and not at {HEADER_BYTES}")]
    DataOffset {
        /// The offset claimed.
        found: u64,
    },
    /// Another region than the one that was announced.
    #[error("the region is {found}, but {announced} was announced")]
    Identity {
        /// The identity claimed by the header.
        found: RegionId,
        /// The identity announced.
        announced: RegionId,
    },
    /// A reserved word is not zero.
    #[error("reserved word {index} of the header is {found:#x} and not zero")]
    Reserved {
        /// Which of the reserved words.
        index: usize,
        /// What it holds.
        found: u64,
    },
}

/// Writes the header of a new region.
pub(super) fn write(view: &View<RegionHeader>, page_bytes: usize, kind: u64, bytes: usize, id: RegionId) {
    let header = view.at(0);
    // Relaxed suffices: the descriptor reaches others by a system call after this.
    header.byte_order.store(BYTE_ORDER, Ordering::Relaxed);
    header.layout_version.store(LAYOUT_VERSION, Ordering::Relaxed);
    header.layout_hash.store(LAYOUT_HASH, Ordering::Relaxed);
    header.page_bytes.store(page_bytes as u64, Ordering::Relaxed);
    header.kind.store(kind, Ordering::Relaxed);
    header.bytes.store(bytes as u64, Ordering::Relaxed);
    header.data_offset.store(HEADER_BYTES as u64, Ordering::Relaxed);
    let [low, high] = id.words();
    header.incarnation_low.store(low, Ordering::Relaxed);
    header.incarnation_high.store(high, Ordering::Relaxed);
    for word in &header.reserved {
        word.store(0, Ordering::Relaxed);
    }
    // Last, and with release, for those who open a named region while it is being made (they load it with acquire).
    header.magic.store(MAGIC, Ordering::Release);
}

/// Checks a header that another process may write: each word is loaded once.
pub(super) fn validate(view: &View<RegionHeader>, expected: &Expected) -> Result<(), HeaderError> {
    let header = view.at(0);
    let load = |word: &AtomicU64| word.load(Ordering::Relaxed);

    let found = load(&header.magic);
    if found != MAGIC {
        return Err(HeaderError::Magic { found });
    }
    let found = load(&header.byte_order);
    if found != BYTE_ORDER {
        return Err(HeaderError::ByteOrder { found });
    }
    let found = load(&header.layout_version);
    if found != LAYOUT_VERSION {
        return Err(HeaderError::Version { found, known: LAYOUT_VERSION });
    }
    let found = load(&header.layout_hash);
    if found != LAYOUT_HASH {
        return Err(HeaderError::Layout { found, known: LAYOUT_HASH });
    }
    let found = load(&header.page_bytes);
    if found != expected.page_bytes {
        return Err(HeaderError::PageBytes { found, actual: expected.page_bytes });
    }
    let found = load(&header.kind);
    if !expected.kinds.contains(&found) {
        return Err(HeaderError::Kind { found });
    }
    let found = load(&header.bytes);
    if found != expected.bytes {
        return Err(HeaderError::Bytes { found, actual: expected.bytes });
    }
    let found = load(&header.data_offset);
    if found != HEADER_BYTES as u64 {
        return Err(HeaderError::DataOffset { found });
    }
    let found = RegionId::from_words([load(&header.incarnation_low), load(&header.incarnation_high)]);
    if found != expected.id {
        return Err(HeaderError::Identity { found, announced: expected.id });
    }
    for (index, word) in header.reserved.iter().enumerate() {
        let found = load(word);
        if found != 0 {
            return Err(HeaderError::Reserved { index, found });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The layout's hash as a number, so that a changed list of fields is a decision and not an accident.
    #[test]
    fn layout_hash_is_the_one_documented() {
        assert_eq!(
            format!("{LAYOUT_HASH:#018x}"),
            include_str!("../../../../docs/layout/region.md")
                .lines()
                .find_map(|line| line.strip_prefix("Layout hash of version 1: "))
                .unwrap_or("missing from docs/layout/region.md")
        );
    }
}
