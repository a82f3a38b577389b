//! The lanes of a ledger: where the words lie from which an endpoint's counts follow.
//!
//! ```text
//! word   0      1..=2    3       4..=5   6       7         8              9      10..=15
//!      +------+--------+-------+-------+-------+---------+--------------+------+---------+
//!      |owner | region | offset| region| offset| entries | message bytes| kind | reserved|    128 bytes, one row a
//!      lane +------+--------+-------+-------+-------+---------+--------------+------+---------+
//!       block   of the counts   of the ring (a publisher's)
//! ```
//!
//! What a lane's own words tell is not counted a second time: an observer reads the publisher's ring and control line,
//! or the subscriber's block. All of a row is a claim to it, and so are those words.
//!
//! # Edges
//! - **L2**: a row's words are stored before its owner (release); the reader loads the owner, `fence(Acquire)`, the
//!   words, what they lead to, `fence(Acquire)`, and the same owner again. So no row is mixed of two lanes.

use std::sync::Arc;

use zcmi_ring::sync::{AtomicU64, Ordering, fence};
use zcmi_ring::{Entry, LaneControl, ReaderBlock, Ring, View};

use crate::region::{PeerRegion, RegionId};

/// One lane of an endpoint, as it lies in memory. All zeros is a row that belongs to nobody.
#[repr(C, align(128))]
#[derive(Debug, Default)]
pub struct LaneRow {
    /// The number of the endpoint's block, plus one; 0 for nobody.
    owner: AtomicU64,
    region: [AtomicU64; 2],
    offset: AtomicU64,
    ring_region: [AtomicU64; 2],
    ring_offset: AtomicU64,
    capacity: AtomicU64,
    /// The size of a message where all have one; 0 where the lane counts bytes.
    message_bytes: AtomicU64,
    kind: AtomicU64,
    reserved: [AtomicU64; 6],
}

const _: () = {
    assert!(size_of::<LaneRow>() == 128 && align_of::<LaneRow>() == 128);
    assert!(core::mem::offset_of!(LaneRow, ring_region) == 32 && core::mem::offset_of!(LaneRow, kind) == 72);
    // Six words behind it, which makes sixteen and no padding.
    assert!(core::mem::offset_of!(LaneRow, reserved) == 80);
};

const PUBLISHES: u64 = 1;
const SUBSCRIBES: u64 = 2;
/// The largest ring that an observer searches.
const MAX_CAPACITY: usize = 1 << 20;
/// At least as many entries as any publisher commits at once: [`committed`] looks no further back for a hole. Whoever
/// commits batches asserts that none is larger.
pub const MAX_BATCH: u64 = 64;

/// Where something lies in a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The region.
    pub region: RegionId,
    /// Bytes from the start of its mapping.
    pub offset: u64,
}

/// Where the words of one lane lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaneSource {
    /// A publisher's: how much was published follows from the stamps of its ring.
    Publisher {
        /// The control line.
        control: Place,
        /// The ring.
        ring: Place,
        /// Its entries.
        capacity: u64,
        /// The size of a message where all have one; 0 where the control line counts bytes.
        message_bytes: u64,
    },
    /// A subscriber's: how much was received follows from its cursor.
    Subscriber {
        /// The block that speaks to the publisher.
        block: Place,
        /// The size of a message where all have one; 0 where the block counts bytes.
        message_bytes: u64,
    },
}

/// What follows from a lane's words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneCounts {
    /// Messages published or received.
    pub messages: u64,
    /// Bytes of payload published or received.
    pub bytes: u64,
    /// Messages overtaken before they were read.
    pub drops: u64,
    /// Messages refused for want of room.
    pub refusals: u64,
}

impl LaneCounts {
    /// What a publisher's control line says after `messages` messages.
    #[must_use]
    pub fn of_publisher(control: &LaneControl, messages: u64, message_bytes: u64) -> Self {
        let bytes = bytes_of(messages, message_bytes, control.published_bytes());
        Self { messages, bytes, drops: 0, refusals: control.refused() }
    }

    /// What a subscriber's block says.
    #[must_use]
    pub fn of_reader(block: &ReaderBlock, message_bytes: u64) -> Self {
        let seen = block.progress();
        let bytes = bytes_of(seen.messages, message_bytes, seen.bytes);
        Self { messages: seen.messages, bytes, drops: seen.lost, refusals: 0 }
    }
}

fn bytes_of(messages: u64, message_bytes: u64, counted: u64) -> u64 {
    if message_bytes == 0 { counted } else { messages.saturating_mul(message_bytes) }
}

/// How many messages a ring that began at 0 was ever given, by its stamps.
///
/// Stamps grow along the ring up to the newest and are a lap older behind it, so the newest is found by halving. Only
/// inside a batch they come last to first: the search may end at the end of one that is not committed, or never will
/// be because its writer died. So the entries that a batch may have are looked at once more, and the first whose stamp
/// is missing ends the count. A writer that goes on meanwhile makes the answer one that was right during the search or
/// is a little short.
#[must_use]
pub fn committed(ring: &Ring) -> u64 {
    let capacity = ring.capacity();
    let stamp = |position: u64| ring.entry(position).stamp.load(Ordering::Relaxed);
    let Some(lap) = stamp(0).checked_sub(1) else { return 0 };
    // A stamp that no writer of this ring stores at that place is a lie, and harms the figure alone.
    let lap = lap - lap % capacity;
    let (mut written, mut end) = (1, capacity);
    while written < end {
        let middle = written + (end - written) / 2;
        if stamp(middle) > lap.saturating_add(middle) {
            written = middle + 1;
        } else {
            end = middle;
        }
    }
    let found = lap.saturating_add(written);
    // An entry of a later lap, written meanwhile, is no hole.
    let mut batch = found.saturating_sub(capacity.min(MAX_BATCH))..found;
    batch.find(|&sequence| stamp(sequence) <= sequence).unwrap_or(found)
}

impl LaneRow {
    /// Fills a row that belongs to nobody.
    pub(super) fn fill(&self, block: usize, source: &LaneSource) {
        let none = Place { region: RegionId::from_words([0; 2]), offset: 0 };
        let (kind, counts, ring, capacity, message_bytes) = match *source {
            LaneSource::Publisher { control, ring, capacity, message_bytes } => {
                (PUBLISHES, control, ring, capacity, message_bytes)
            }
            LaneSource::Subscriber { block, message_bytes } => (SUBSCRIBES, block, none, 0, message_bytes),
        };
        let words = self.region.iter().chain([&self.offset]).chain(&self.ring_region).chain([&self.ring_offset]);
        let [low, high] = counts.region.words();
        let [ring_low, ring_high] = ring.region.words();
        for (word, value) in words.zip([low, high, counts.offset, ring_low, ring_high, ring.offset]) {
            word.store(value, Ordering::Relaxed);
        }
        self.capacity.store(capacity, Ordering::Relaxed);
        self.message_bytes.store(message_bytes, Ordering::Relaxed);
        self.kind.store(kind, Ordering::Relaxed);
        // L2 (Release): whoever sees the owner sees the words. Pairs with L2 in `read`.
        self.owner.store(block as u64 + 1, Ordering::Release);
    }

    /// Makes the row nobody's.
    pub(super) fn clear(&self) {
        self.owner.store(0, Ordering::Relaxed);
        // L2 (Release): whoever sees a word of the next lane sees that the row was nobody's in between.
        fence(Ordering::Release);
    }

    /// Which block the row belongs to, and what it says; a claim.
    pub(super) fn read(&self) -> Option<(u64, LaneSource)> {
        let owner = self.owner.load(Ordering::Relaxed).checked_sub(1)?;
        // L2 (Acquire): the words below are at least as new as the owner. Pairs with L2 in `fill`.
        fence(Ordering::Acquire);
        let load = |word: &AtomicU64| word.load(Ordering::Relaxed);
        let place = |region: &[AtomicU64; 2], offset: &AtomicU64| Place {
            region: RegionId::from_words([load(&region[0]), load(&region[1])]),
            offset: load(offset),
        };
        let counts = place(&self.region, &self.offset);
        let message_bytes = load(&self.message_bytes);
        let source = match load(&self.kind) {
            PUBLISHES => LaneSource::Publisher {
                control: counts,
                ring: place(&self.ring_region, &self.ring_offset),
                capacity: load(&self.capacity),
                message_bytes,
            },
            SUBSCRIBES => LaneSource::Subscriber { block: counts, message_bytes },
            _ => return None,
        };
        Some((owner, source))
    }

    /// Whether the row still belongs to that block, after what it leads to was read.
    pub(super) fn still_of(&self, block: u64) -> bool {
        // L2 (Acquire): if anything read before came from another lane, the owner read below has changed too.
        fence(Ordering::Acquire);
        self.owner.load(Ordering::Relaxed) == block + 1
    }
}

impl LaneSource {
    /// The regions in which the words lie.
    pub fn regions(&self) -> impl Iterator<Item = RegionId> {
        let (first, second) = match self {
            Self::Publisher { control, ring, .. } => (control.region, Some(ring.region)),
            Self::Subscriber { block, .. } => (block.region, None),
        };
        [Some(first), second].into_iter().flatten()
    }

    /// Reads the words in another process's memory. None if the claim leads nowhere.
    #[must_use]
    pub fn counts(&self, find: &impl Fn(RegionId) -> Option<Arc<PeerRegion>>) -> Option<LaneCounts> {
        match *self {
            Self::Publisher { control, ring, capacity, message_bytes } => {
                let capacity = usize::try_from(capacity).ok().filter(|&capacity| capacity <= MAX_CAPACITY)?;
                let control: View<LaneControl> = view(control, 1, find)?;
                let ring: View<Entry> = view(ring, capacity, find)?;
                Some(LaneCounts::of_publisher(control.at(0), committed(&Ring::new(ring)?), message_bytes))
            }
            Self::Subscriber { block, message_bytes } => {
                let block: View<ReaderBlock> = view(block, 1, find)?;
                Some(LaneCounts::of_reader(block.at(0), message_bytes))
            }
        }
    }
}

/// The regions in which the words of all these lanes lie, each once.
pub(super) fn regions_of(rows: &View<LaneRow>) -> Vec<RegionId> {
    let mut regions = Vec::new();
    for (_, source) in (0..rows.len()).filter_map(|row| rows.at(row).read()) {
        regions.extend(source.regions());
    }
    regions.sort_unstable();
    regions.dedup();
    regions
}

fn view<T: zcmi_ring::Shared>(
    place: Place,
    count: usize,
    find: &impl Fn(RegionId) -> Option<Arc<PeerRegion>>,
) -> Option<View<T>> {
    find(place.region)?.view(usize::try_from(place.offset).ok()?, count).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ring(capacity: usize, published: u64) -> Ring {
        let ring = Ring::new(View::heap(capacity, |_| Entry::default())).expect("a power of two");
        for sequence in 0..published {
            ring.entry(sequence).stamp.store(sequence + 1, Ordering::Relaxed);
        }
        ring
    }

    #[test]
    fn the_number_of_messages_follows_from_the_stamps_at_every_place_of_the_ring() {
        for capacity in [2, 4, 8, 16] {
            for published in 0..=5 * capacity {
                assert_eq!(committed(&ring(capacity as usize, published)), published, "of {capacity} entries");
            }
        }
    }

    /// Stores what a writer of `ring(8, before)` stored that was killed in a batch when `stored` stamps were there.
    fn cut_off(before: u64, batch: u64, stored: u64) -> Ring {
        let ring = ring(8, before);
        for sequence in (before..before + batch).rev().take(stored as usize) {
            ring.entry(sequence).stamp.store(sequence + 1, Ordering::Relaxed);
        }
        ring
    }

    #[test]
    fn a_batch_whose_writer_died_in_it_does_not_count() {
        let ring = cut_off(3, 3, 2);
        let stamps: Vec<u64> = (0..8).map(|at| ring.entry(at).stamp.load(Ordering::Relaxed)).collect();
        assert_eq!(stamps, [1, 2, 3, 0, 5, 6, 0, 0]);
        assert_eq!(committed(&ring), 3);
        for before in 0..=24 {
            for batch in 1..=8 {
                for stored in 0..batch {
                    assert_eq!(committed(&cut_off(before, batch, stored)), before, "{stored} of {batch}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn arbitrary_stamps_give_some_number_and_never_a_panic(
            stamps in proptest::collection::vec(prop_oneof![any::<u64>(), 0_u64..40], 16)
        ) {
            let ring = Ring::new(View::heap(16, |_| Entry::default())).expect("a power of two");
            for (position, stamp) in stamps.iter().enumerate() {
                ring.entry(position as u64).stamp.store(*stamp, Ordering::Relaxed);
            }
            prop_assert!(committed(&ring) == 0 || stamps[0] > 0);
        }
    }
}
