//! An arena: a process's growing set of regions of one kind and one audience, from which extents are carved.
//!
//! ```text
//! region 0   | header | extent | free      | extent | free            |
//! region 1   | header | free                                          |   dropped when wholly free
//! region 2   | header | extent                               | free   |
//! ```
//!
//! Invariants: extents never overlap; free ranges are sorted, never touch each other, and with the extents make up all
//! data of a region; the first region stays for the arena's life. A new region is at least as large as all before it
//! together (up to 64 MiB), so n equal extents take O(log n) regions until that, and O(bytes / 64 MiB) after it.
//!
//! Not done here: what lies in an extent, and when it may be reused. An extent that is forgotten is a leak.

use std::collections::BTreeMap;
use std::sync::Arc;

use zcmi_ring::{Shared, View};

use super::{HEADER_BYTES, HugePages, OutOfRegion, Region, RegionError, RegionKind, Span};

/// Every extent begins at a multiple of this and is as long as one: a cache line.
pub const EXTENT_UNIT_BYTES: usize = 64;
/// A new region is not made larger than this for the sake of growth alone.
const GROWTH_CAP_BYTES: usize = 64 << 20;

/// A growing set of regions of one kind.
#[derive(Debug)]
pub struct Arena {
    kind: RegionKind,
    first_bytes: usize,
    huge_pages: HugePages,
    shelves: Vec<Shelf>,
}

/// A region and what is free of it, by offset.
#[derive(Debug)]
struct Shelf {
    region: Arc<Region>,
    free: BTreeMap<usize, usize>,
}

/// A part of a region, ours until it is given back to its arena.
///
/// Dropping it does not free it: its memory may still be read by others, and only who knows that they do not gives it
/// back.
#[derive(Debug)]
#[must_use = "an extent that is dropped and not freed is a leak"]
pub struct Extent {
    region: Arc<Region>,
    offset: usize,
    bytes: usize,
}

impl Extent {
    /// The region it lies in.
    #[must_use]
    pub fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// Where it begins, from the start of the region's mapping.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Its size: what was asked for, rounded up to [`EXTENT_UNIT_BYTES`].
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// `count` elements at `offset` from the extent's start.
    ///
    /// # Errors
    /// [`OutOfRegion`] for what does not lie in the extent.
    pub fn view<T: Shared>(&self, offset: usize, count: usize) -> Result<View<T>, OutOfRegion> {
        let bytes = count.saturating_mul(size_of::<T>());
        self.region.view(self.inside(offset, bytes)?, count)
    }

    /// The bytes at `offset` from the extent's start.
    ///
    /// # Errors
    /// [`OutOfRegion`] for what does not lie in the extent.
    pub fn span(&self, offset: usize, len: usize) -> Result<Span, OutOfRegion> {
        self.region.bytes(self.inside(offset, len)?, len)
    }

    fn inside(&self, offset: usize, bytes: usize) -> Result<usize, OutOfRegion> {
        if offset.checked_add(bytes).is_none_or(|end| end > self.bytes) {
            return Err(OutOfRegion::PastEnd { offset, bytes, region_bytes: self.bytes });
        }
        Ok(self.offset + offset)
    }
}

impl Shelf {
    fn new(region: Region) -> Self {
        let free = BTreeMap::from([(HEADER_BYTES, region.len() - HEADER_BYTES)]);
        Self { region: Arc::new(region), free }
    }

    /// Takes the first free range that fits.
    fn take(&mut self, bytes: usize, align: usize) -> Option<usize> {
        let (start, length, offset) = self.free.iter().find_map(|(&start, &length)| {
            let offset = start.checked_next_multiple_of(align)?;
            let end = offset.checked_add(bytes)?;
            (end <= start + length).then_some((start, length, offset))
        })?;
        self.free.remove(&start);
        if offset > start {
            self.free.insert(start, offset - start);
        }
        let (end, range_end) = (offset + bytes, start + length);
        if end < range_end {
            self.free.insert(end, range_end - end);
        }
        Some(offset)
    }

    /// Puts a range back, joined with its free neighbours.
    fn put(&mut self, offset: usize, bytes: usize) {
        let (mut start, mut end) = (offset, offset + bytes);
        let before = self.free.range(..offset).next_back().map(|(&at, &length)| (at, at + length));
        let after = self.free.range(offset..).next().map(|(&at, &length)| (at, at + length));
        // Only an extent's owner can free it, once: anything else is this module's own mistake.
        assert!(before.is_none_or(|(_, until)| until <= start), "a free range overlaps the one before it");
        assert!(after.is_none_or(|(at, _)| at >= end), "a free range overlaps the one behind it");
        if let Some((at, until)) = before
            && until == start
        {
            start = at;
        }
        if let Some((at, until)) = after
            && at == end
        {
            self.free.remove(&at);
            end = until;
        }
        self.free.insert(start, end - start);
    }

    fn is_unused(&self) -> bool {
        self.free.get(&HEADER_BYTES).is_some_and(|&length| length == self.region.len() - HEADER_BYTES)
    }
}

impl Arena {
    /// An arena whose first region, made with the first extent, has `first_bytes` of data (or more if that extent needs
    /// it).
    #[must_use]
    pub fn new(kind: RegionKind, first_bytes: usize) -> Self {
        Self { kind, first_bytes, huge_pages: HugePages::default(), shelves: Vec::new() }
    }

    /// Which huge pages its regions may take, see [`RegionOptions::huge_pages`](super::RegionOptions::huge_pages).
    #[must_use]
    pub fn huge_pages(self, allowed: HugePages) -> Self {
        Self { huge_pages: allowed, ..self }
    }

    /// Carves `bytes` bytes (at least one; rounded up to [`EXTENT_UNIT_BYTES`]) whose offset is a multiple of `align`.
    ///
    /// The address is aligned as well, for alignments up to the size of a page. First fit; where nothing fits, a new
    /// region.
    ///
    /// # Errors
    /// [`RegionError`] if a new region is needed and cannot be made.
    ///
    /// # Panics
    /// If `align` is no power of two.
    pub fn allocate(&mut self, bytes: usize, align: usize) -> Result<Extent, RegionError> {
        assert!(align.is_power_of_two(), "an alignment of {align} is no power of two");
        let align = align.max(EXTENT_UNIT_BYTES);
        let too_large = RegionError::Size { bytes };
        let Some(bytes) = bytes.max(1).checked_next_multiple_of(EXTENT_UNIT_BYTES) else { return Err(too_large) };
        for shelf in &mut self.shelves {
            if let Some(offset) = shelf.take(bytes, align) {
                return Ok(Extent { region: Arc::clone(&shelf.region), offset, bytes });
            }
        }
        // The first aligned offset behind the header may be up to `align - HEADER_BYTES` bytes into the data.
        let Some(need) = bytes.checked_add(align.saturating_sub(HEADER_BYTES)) else { return Err(too_large) };
        let mut shelf = Shelf::new(self.grow(need)?);
        let Some(offset) = shelf.take(bytes, align) else { return Err(too_large) };
        let region = Arc::clone(&shelf.region);
        self.shelves.push(shelf);
        Ok(Extent { region, offset, bytes })
    }

    /// Gives an extent back. A region that is wholly free then is dropped, unless it is the first.
    ///
    /// # Panics
    /// If the extent is another arena's.
    pub fn free(&mut self, extent: Extent) {
        let Extent { region, offset, bytes } = extent;
        let index = self.shelves.iter().position(|shelf| Arc::ptr_eq(&shelf.region, &region));
        let index = index.expect("an extent is freed by the arena that carved it");
        let shelf = &mut self.shelves[index];
        shelf.put(offset, bytes);
        if index > 0 && shelf.is_unused() {
            self.shelves.remove(index);
        }
    }

    /// The regions, the oldest first.
    pub fn regions(&self) -> impl Iterator<Item = &Arc<Region>> {
        self.shelves.iter().map(|shelf| &shelf.region)
    }

    /// The bytes of all regions' mappings.
    #[must_use]
    pub fn total_bytes(&self) -> usize {
        self.regions().map(|region| region.len()).sum()
    }

    /// The bytes that are free, in however many pieces.
    #[must_use]
    pub fn free_bytes(&self) -> usize {
        self.shelves.iter().flat_map(|shelf| shelf.free.values()).sum()
    }

    fn grow(&self, need: usize) -> Result<Region, RegionError> {
        if self.kind.is_named() {
            return Err(RegionError::NamedArena);
        }
        let wish = if self.shelves.is_empty() { self.first_bytes } else { self.total_bytes().min(GROWTH_CAP_BYTES) };
        Region::options(need.max(wish)).kind(self.kind.clone()).huge_pages(self.huge_pages).create()
    }
}
