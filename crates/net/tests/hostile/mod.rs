//! What all hostile peers are made of: numbers from a seed, and bytes by tag.

/// A small generator of numbers, so that a seed gives the same run again.
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// True `percent` times in a hundred.
    pub(crate) fn often(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

fn byte(tag: u64, at: u32) -> u8 {
    (tag as u8).wrapping_mul(31).wrapping_add(at as u8).wrapping_add((at >> 8) as u8)
}

/// Writes the bytes of a message from `offset` on.
pub(crate) fn content(tag: u64, offset: u32, into: &mut [u8]) {
    for (at, to) in (offset..).zip(into) {
        *to = byte(tag, at);
    }
}

/// Whether these are the bytes of a message from `offset` on.
pub(crate) fn is_content(tag: u64, offset: u32, bytes: &[u8]) -> bool {
    (offset..).zip(bytes).all(|(at, &is)| is == byte(tag, at))
}
