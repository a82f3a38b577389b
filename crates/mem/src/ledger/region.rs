//! A process's ledger as a region, from its owner's side and from an observer's.
//!
//! ```text
//! offset 0        4096            4608                      70144                   102912
//!        | header | LedgerHeader  | 128 blocks of 512 bytes | 256 rows of 128 bytes |
//! ```
//!
//! # Invariants
//! - The region is sealed like every other: its owner writes, everybody else maps it to read. A ledger lies at the
//!   beginning of its region's data; what lies behind it is its process's business, so that it needs no region of its
//!   own.
//! - The numbers of blocks and rows are constants of the layout's version; what the header says of them must agree.
//! - An observer takes nothing on trust: a word that leads nowhere makes a count unknown, with the reason.

use core::mem::offset_of;
use std::sync::Arc;

use zcmi_ring::View;
use zcmi_ring::sync::{AtomicU64, Ordering, fence};

use super::lanes::{self, LaneRow, LaneSource};
use super::{CLOSED, CONTROL, Counter, FIRST, Ledger, LedgerBlock, LedgerSnapshot, NotKnown, OVERFLOW, SNAPSHOT_TRIES};
use crate::region::{HEADER_BYTES, OutOfRegion, PeerRegion, Region, RegionId};

/// Blocks of a process's ledger, the three that belong to no endpoint among them.
pub const BLOCKS: usize = 128;
/// Lanes that a process's ledger can list.
pub const LANES: usize = 256;
/// The version of the ledger's layout.
pub const LEDGER_VERSION: u64 = 1;

const MAGIC: u64 = u64::from_ne_bytes(*b"zcmi-led");
const HEADER_OFFSET: usize = HEADER_BYTES;
const BLOCKS_OFFSET: usize = HEADER_OFFSET + size_of::<LedgerHeader>();
const LANES_OFFSET: usize = BLOCKS_OFFSET + BLOCKS * size_of::<LedgerBlock>();
/// What a ledger takes at the beginning of a region's data.
pub const LEDGER_BYTES: usize = LANES_OFFSET + LANES * size_of::<LaneRow>() - HEADER_OFFSET;

/// What a ledger's region begins with, behind the header of every region.
#[repr(C, align(128))]
#[derive(Debug)]
pub struct LedgerHeader {
    magic: AtomicU64,
    version: AtomicU64,
    incarnation: [AtomicU64; 2],
    pid: AtomicU64,
    blocks: AtomicU64,
    lanes: AtomicU64,
    reserved: [AtomicU64; 57],
}

const _: () = {
    assert!(size_of::<LedgerHeader>() == 512);
    assert!(offset_of!(LedgerHeader, incarnation) == 16 && offset_of!(LedgerHeader, pid) == 32);
    // 57 words behind the first seven, which makes 64 and no padding.
    assert!(offset_of!(LedgerHeader, blocks) == 40 && offset_of!(LedgerHeader, reserved) == 56);
    assert!(BLOCKS_OFFSET == 4608 && LANES_OFFSET == 70_144);
};

/// A process's ledger in the region at whose beginning it lies.
#[derive(Debug)]
pub struct LedgerRegion {
    region: Arc<Region>,
    ledger: Arc<Ledger>,
}

impl LedgerRegion {
    /// Makes the ledger of the process with this incarnation (its lower half first) and number, in the first
    /// [`LEDGER_BYTES`] of a region's data, which nothing else uses.
    ///
    /// # Errors
    /// [`OutOfRegion`] if it does not fit.
    pub fn create(region: Arc<Region>, incarnation: [u64; 2], pid: u32) -> Result<Self, OutOfRegion> {
        let header = region.view::<LedgerHeader>(HEADER_OFFSET, 1)?;
        let blocks = region.view::<LedgerBlock>(BLOCKS_OFFSET, BLOCKS)?;
        let lanes = region.view::<LaneRow>(LANES_OFFSET, LANES)?;
        let ledger = Ledger::new(blocks, lanes, pid).expect("there are blocks for endpoints");
        let header = header.at(0);
        for (word, half) in header.incarnation.iter().zip(incarnation) {
            word.store(half, Ordering::Relaxed);
        }
        header.version.store(LEDGER_VERSION, Ordering::Relaxed);
        header.pid.store(pid.into(), Ordering::Relaxed);
        header.blocks.store(BLOCKS as u64, Ordering::Relaxed);
        header.lanes.store(LANES as u64, Ordering::Relaxed);
        // Last, and with release, for an observer that finds the region while it is being made.
        header.magic.store(MAGIC, Ordering::Release);
        Ok(Self { region, ledger })
    }

    /// The region, to be handed to observers.
    #[must_use]
    pub fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// The ledger in it.
    #[must_use]
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }
}

/// Why a region is no ledger. The numbers are what it claims.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LedgerClaimError {
    /// It is another region.
    #[error("the region is no ledger: its data begins with {found:#018x}")]
    Magic {
        /// The first word.
        found: u64,
    },
    /// It has another layout.
    #[error("the ledger has version {found}, this program knows {LEDGER_VERSION}; use the same release at both ends")]
    Version {
        /// The version claimed.
        found: u64,
    },
    /// Its size is not that of its version.
    #[error("the ledger claims {blocks} blocks and {lanes} lanes")]
    Shape {
        /// Blocks claimed.
        blocks: u64,
        /// Lanes claimed.
        lanes: u64,
    },
    /// It is too small.
    #[error("the ledger's region is too small: {0}")]
    Size(#[from] OutOfRegion),
}

/// Another process's ledger.
#[derive(Debug)]
pub struct LedgerReader {
    header: View<LedgerHeader>,
    blocks: View<LedgerBlock>,
    lanes: View<LaneRow>,
}

/// What one endpoint counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointReading {
    /// Its counts, with those that follow from its lanes.
    pub snapshot: LedgerSnapshot,
    /// Lanes that are listed for it.
    pub lanes: usize,
    /// Messages that may be under way in a publisher's lane; 0 for a subscriber.
    pub capacity: u64,
}

/// What a process counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerReading {
    /// The endpoints that have a block of their own.
    pub endpoints: Vec<EndpointReading>,
    /// The endpoints that were closed.
    pub closed: EndpointReading,
    /// The control thread.
    pub control: EndpointReading,
    /// The endpoints without a block of their own, together.
    pub overflow: EndpointReading,
    /// Blocks that were being rewritten at every look: their process stopped or died in the middle of that.
    pub unsettled: usize,
}

impl LedgerReading {
    /// Everything together; unknown where a part is.
    #[must_use]
    pub fn total(&self) -> LedgerSnapshot {
        let mut total = self.closed.snapshot.clone();
        for part in self.endpoints.iter().chain([&self.control, &self.overflow]) {
            total.add(&part.snapshot);
        }
        if self.unsettled > 0 {
            Counter::ALL.into_iter().for_each(|counter| total.forget(counter, NotKnown::NotReadable));
        }
        total
    }
}

impl LedgerReader {
    /// Checks that a region is a ledger.
    ///
    /// # Errors
    /// [`LedgerClaimError`].
    pub fn new(region: &PeerRegion) -> Result<Self, LedgerClaimError> {
        let header = region.view::<LedgerHeader>(HEADER_OFFSET, 1)?;
        let load = |word: &AtomicU64| word.load(Ordering::Relaxed);
        let found = load(&header.at(0).magic);
        if found != MAGIC {
            return Err(LedgerClaimError::Magic { found });
        }
        fence(Ordering::Acquire);
        let found = load(&header.at(0).version);
        if found != LEDGER_VERSION {
            return Err(LedgerClaimError::Version { found });
        }
        let (blocks, lanes) = (load(&header.at(0).blocks), load(&header.at(0).lanes));
        if (blocks, lanes) != (BLOCKS as u64, LANES as u64) {
            return Err(LedgerClaimError::Shape { blocks, lanes });
        }
        let blocks = region.view::<LedgerBlock>(BLOCKS_OFFSET, BLOCKS)?;
        let lanes = region.view::<LaneRow>(LANES_OFFSET, LANES)?;
        Ok(Self { header, blocks, lanes })
    }

    /// The incarnation of the process, its lower half first; a claim.
    #[must_use]
    pub fn incarnation(&self) -> [u64; 2] {
        [0, 1].map(|half: usize| self.header.at(0).incarnation[half].load(Ordering::Relaxed))
    }

    /// The process as it numbers itself; a claim.
    #[must_use]
    pub fn pid(&self) -> u32 {
        u32::try_from(self.header.at(0).pid.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// The regions in which the words of the listed lanes lie, each once; claims.
    #[must_use]
    pub fn regions(&self) -> Vec<RegionId> {
        lanes::regions_of(&self.lanes)
    }

    /// Reads everything, with the regions that were handed over or found.
    pub fn read(&self, find: impl Fn(RegionId) -> Option<Arc<PeerRegion>>) -> LedgerReading {
        let closed = self.blocks.at(CLOSED);
        for _ in 0..SNAPSHOT_TRIES {
            // L1: an endpoint that closes meanwhile would be counted twice or not at all.
            let before = closed.begin_look();
            let reading = self.read_once(&find);
            if before.is_some_and(|before| closed.is_same_look(before)) {
                return reading;
            }
        }
        let mut reading = self.read_once(&find);
        reading.unsettled += 1;
        reading
    }

    fn read_once(&self, find: &impl Fn(RegionId) -> Option<Arc<PeerRegion>>) -> LedgerReading {
        let mut unsettled = 0;
        let mut block = |index: usize| {
            self.block(index, find).unwrap_or_else(|| {
                unsettled += 1;
                let mut snapshot = self.blocks.at(index).read();
                Counter::ALL.into_iter().for_each(|counter| snapshot.forget(counter, NotKnown::NotReadable));
                EndpointReading { snapshot, lanes: 0, capacity: 0 }
            })
        };
        let (closed, control, overflow) = (block(CLOSED), block(CONTROL), block(OVERFLOW));
        let endpoints = (FIRST..BLOCKS).map(&mut block).filter(|endpoint| endpoint.snapshot.is_used()).collect();
        LedgerReading { endpoints, closed, control, overflow, unsettled }
    }

    /// One block with its lanes, at a moment at which neither was being rewritten.
    fn block(&self, index: usize, find: &impl Fn(RegionId) -> Option<Arc<PeerRegion>>) -> Option<EndpointReading> {
        let block = self.blocks.at(index);
        for _ in 0..SNAPSHOT_TRIES {
            // L1: as in `LedgerBlock::snapshot`; the lanes are settled under the same sequence.
            let Some(before) = block.begin_look() else {
                zcmi_ring::sync::spin_loop();
                continue;
            };
            let mut reading = EndpointReading { snapshot: block.read(), lanes: 0, capacity: 0 };
            for row in (0..self.lanes.len()).map(|row| self.lanes.at(row)) {
                if let Some((owner, source)) = row.read()
                    && owner == index as u64
                {
                    let counts = source.counts(find);
                    if row.still_of(owner) {
                        reading.add(&source, counts);
                    }
                }
            }
            if block.is_same_look(before) {
                return Some(reading);
            }
        }
        None
    }
}

impl EndpointReading {
    fn add(&mut self, source: &LaneSource, counts: Option<super::lanes::LaneCounts>) {
        self.lanes += 1;
        if let LaneSource::Publisher { capacity, .. } = source {
            self.capacity = self.capacity.saturating_add(*capacity);
        }
        match counts {
            Some(counts) => self.snapshot.add_lane(&counts),
            None => super::DERIVED.into_iter().for_each(|counter| self.snapshot.forget(counter, NotKnown::NotReadable)),
        }
    }
}
