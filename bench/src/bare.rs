//! Row `bare`: what a specialist would write by hand for one size and one reader, and nothing more.
//!
//! ```text
//! side's region, behind the region's header (one for each side, written by it, mapped read-only by the other):
//!   cursor      64 bytes   how far this side has read the other side's ring
//!   ring        capacity x { stamp: u64, 7 words }    stamp = sequence + 1 once the entry is there
//!   payloads    capacity x slot, only where the payload does not fit the 7 words of an entry
//! ```
//!
//! There is no handshake, no check of what the other side wrote, one reader, and no slot outlives the ring: message `s`
//! lies in slot `s % capacity`. So this row is a floor for the library's, on the same mappings.
//!
//! Edges: P1, the stamp's release store, publishes entry and payload to C1, the acquire fence behind the load of the
//! stamp. C2, the cursor's release store, returns slots to P2, the acquire fence behind the load of the cursor. Credits
//! are refreshed only when the ring looks full, and the reader moves its cursor every quarter of the ring.

mod raw;

use zcmi_ring::View;
use zcmi_ring::sync::{AtomicU64, Ordering, fence};

use crate::link::{Link, LinkError};
use crate::pattern;
use crate::side::{DATA_OFFSET, Side};
use crate::spin::{Patience, Stalled};

use raw::{Source, Target};

/// The bytes of an entry.
const ENTRY_BYTES: usize = 64;
/// The payload that fits an entry beside its stamp.
const INLINE_BYTES: usize = ENTRY_BYTES - 8;
/// Payload slots together stay near this size, so that they live in a cache both sides reach.
const FOOTPRINT_BYTES: usize = 256 << 10;

/// Where everything lies in a side's region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    payload_bytes: usize,
    capacity: usize,
    slot_bytes: usize,
}

impl Geometry {
    /// The geometry for payloads of one size, rounded up to words.
    #[must_use]
    pub fn new(payload_bytes: usize) -> Self {
        let payload_bytes = payload_bytes.next_multiple_of(8).max(8);
        if payload_bytes <= INLINE_BYTES {
            return Self { payload_bytes, capacity: 1024, slot_bytes: 0 };
        }
        let align = if payload_bytes >= 4096 { 4096 } else { 64 };
        let slot_bytes = payload_bytes.next_multiple_of(align);
        let capacity = (FOOTPRINT_BYTES / slot_bytes).clamp(4, 1024).next_power_of_two();
        Self { payload_bytes, capacity, slot_bytes }
    }

    fn ring_offset(self) -> usize {
        DATA_OFFSET + 4096
    }

    fn payload_offset(self) -> usize {
        (self.ring_offset() + self.capacity * ENTRY_BYTES).next_multiple_of(4096)
    }

    /// The bytes that a side's region needs, its header included.
    #[must_use]
    pub fn region_bytes(self) -> usize {
        self.payload_offset() + self.capacity * self.slot_bytes
    }
}

/// One end of the pair of rings. `WORDS` is the payload's length where it is known when compiling, else 0.
#[derive(Debug)]
pub struct Bare<const WORDS: usize> {
    // Towards the other side: our ring, their cursor.
    target: Target,
    tail: u64,
    their_cursor: View<AtomicU64>,
    seen: u64,
    // From the other side: their ring, our cursor.
    source: Source,
    cursor: u64,
    our_cursor: View<AtomicU64>,
    capacity: u64,
    quarter: u64,
}

impl<const WORDS: usize> Bare<WORDS> {
    /// Opens one end: `ours` is written by this side, `theirs` by the other.
    ///
    /// # Errors
    /// A region that is too small for the geometry.
    pub fn open(geometry: Geometry, ours: &Side, theirs: &Side) -> Result<Self, LinkError> {
        let capacity = geometry.capacity as u64;
        Ok(Self {
            target: Target::new(geometry, ours)?,
            tail: 0,
            their_cursor: theirs.view(DATA_OFFSET, 1)?,
            seen: 0,
            source: Source::new(geometry, theirs)?,
            cursor: 0,
            our_cursor: ours.view(DATA_OFFSET, 1)?,
            capacity,
            quarter: (capacity / 4).max(1),
        })
    }

    /// Writes one message in place.
    #[inline]
    fn publish(&mut self, write: impl FnOnce(&mut [u64])) -> Result<(), Stalled> {
        if self.tail - self.seen >= self.capacity {
            self.wait_for_room()?;
        }
        write(self.target.words::<WORDS>(self.tail));
        // P1
        self.target.stamp(self.tail).store(self.tail + 1, Ordering::Release);
        self.tail += 1;
        Ok(())
    }

    #[cold]
    fn wait_for_room(&mut self) -> Result<(), Stalled> {
        let mut patience = Patience::new();
        loop {
            self.seen = self.their_cursor.at(0).load(Ordering::Relaxed);
            if self.tail - self.seen < self.capacity {
                // P2
                fence(Ordering::Acquire);
                return Ok(());
            }
            patience.turn()?;
        }
    }

    /// Reads one message in place.
    #[inline]
    fn receive<R>(&mut self, read: impl FnOnce(&[u64]) -> R) -> Result<R, Stalled> {
        let mut patience = Patience::new();
        while self.source.stamp(self.cursor).load(Ordering::Relaxed) != self.cursor + 1 {
            patience.turn()?;
        }
        // C1
        fence(Ordering::Acquire);
        let result = read(self.source.words::<WORDS>(self.cursor));
        self.cursor += 1;
        if self.cursor & (self.quarter - 1) == 0 {
            // C2
            self.our_cursor.at(0).store(self.cursor, Ordering::Release);
        }
        Ok(result)
    }
}

impl<const WORDS: usize> Link for Bare<WORDS> {
    #[inline]
    fn send_word(&mut self, word: u64) -> Result<(), LinkError> {
        Ok(self.publish(|words| words[0] = word)?)
    }

    #[inline]
    fn receive_word(&mut self) -> Result<u64, LinkError> {
        Ok(self.receive(|words| words[0])?)
    }

    #[inline]
    fn produce(&mut self, sequence: u64) -> Result<(), LinkError> {
        Ok(self.publish(|words| pattern::fill(words, sequence))?)
    }

    #[inline]
    fn consume(&mut self, sequence: u64) -> Result<(), LinkError> {
        Ok(self.receive(|words| pattern::check(words, sequence))??)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_payloads_lie_in_the_entry() {
        assert_eq!(Geometry::new(8), Geometry { payload_bytes: 8, capacity: 1024, slot_bytes: 0 });
        assert_eq!(Geometry::new(56).slot_bytes, 0);
        assert_eq!(Geometry::new(57).slot_bytes, 64);
    }

    #[test]
    fn slots_are_a_power_of_two_and_lie_behind_the_ring() {
        for bytes in [64, 1000, 1 << 10, 8 << 10, 64 << 10, 1 << 20, 4 << 20] {
            let geometry = Geometry::new(bytes);
            assert!(geometry.capacity.is_power_of_two() && geometry.capacity >= 4, "{geometry:?}");
            assert!(geometry.slot_bytes >= bytes && geometry.slot_bytes.is_multiple_of(64));
            assert!(geometry.payload_offset() >= geometry.ring_offset() + geometry.capacity * ENTRY_BYTES);
        }
    }

    #[test]
    fn both_directions_carry_every_word() {
        for bytes in [8, 40, 64, 1000, 8192] {
            let geometry = Geometry::new(bytes);
            let (left, right) = Side::two_anonymous(geometry.region_bytes()).unwrap();
            let mut near = Bare::<0>::open(geometry, &left, &right.peer()).unwrap();
            let mut far = Bare::<0>::open(geometry, &right, &left.peer()).unwrap();
            // Past the ring's end several times.
            for sequence in 0..5 * geometry.capacity as u64 {
                near.produce(sequence).unwrap();
                far.consume(sequence).unwrap();
                far.send_word(sequence).unwrap();
                assert_eq!(near.receive_word().unwrap(), sequence);
            }
        }
    }
}
