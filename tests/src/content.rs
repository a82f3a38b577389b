//! What test messages consist of, so that a receiver can tell whose they are, which they are, and that they are intact.
//!
//! ```text
//!  8 bytes or more:   tag (u16) << 48 | index (u48), then bytes that follow from that word and their place
//!  fewer:             bytes that follow from the index, which the receiver expects by the sequence
//! ```

/// Mixes a word so that close inputs give unrelated outputs (the finaliser of SplitMix64).
#[must_use]
pub fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// Writes message number `index` of the publisher `tag`.
pub fn fill(bytes: &mut [u8], tag: u16, index: u64) {
    let Some((head, rest)) = bytes.split_first_chunk_mut::<8>() else {
        let word = mix(index).to_le_bytes();
        bytes.copy_from_slice(&word[..bytes.len()]);
        return;
    };
    let first = u64::from(tag) << 48 | index & ((1 << 48) - 1);
    *head = first.to_le_bytes();
    let mut word = mix(first);
    let mut chunks = rest.chunks_exact_mut(8);
    for chunk in &mut chunks {
        chunk.copy_from_slice(&word.to_le_bytes());
        word = word.rotate_left(5).wrapping_add(first | 1);
    }
    let last = chunks.into_remainder();
    last.copy_from_slice(&word.to_le_bytes()[..last.len()]);
}

/// Reads a message: the tag if it is long enough to have one, or what is wrong with it. `sequence` is what it must be.
///
/// # Errors
/// In words, where the bytes are not those that were written.
pub fn check(bytes: &[u8], sequence: u64) -> Result<Option<u16>, String> {
    let Some((head, rest)) = bytes.split_first_chunk::<8>() else {
        let word = mix(sequence).to_le_bytes();
        let same = bytes == &word[..bytes.len()];
        return if same { Ok(None) } else { Err(format!("{} bytes at sequence {sequence} are damaged", bytes.len())) };
    };
    let first = u64::from_le_bytes(*head);
    let (tag, index) = ((first >> 48) as u16, first & ((1 << 48) - 1));
    if index != sequence {
        return Err(format!("sequence {sequence} of publisher {tag} brought message {index}"));
    }
    let mut word = mix(first);
    let mut chunks = rest.chunks_exact(8);
    for (place, chunk) in (&mut chunks).enumerate() {
        if *chunk != word.to_le_bytes() {
            return Err(format!("message {index} of publisher {tag} is damaged at byte {}", 8 + place * 8));
        }
        word = word.rotate_left(5).wrapping_add(first | 1);
    }
    let last = chunks.remainder();
    if *last != word.to_le_bytes()[..last.len()] {
        return Err(format!("message {index} of publisher {tag} is damaged in its last bytes"));
    }
    Ok(Some(tag))
}

/// How long messages are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sizes {
    /// All alike.
    Fixed(usize),
    /// From a list of awkward lengths up to this one, in an order that follows from the index.
    Mixed(usize),
    /// The same, but none too short to carry its publisher's tag.
    Tagged(usize),
}

/// Lengths around every boundary there is: words, inline entries, cache lines, pages.
const AWKWARD: [usize; 22] = [
    0,
    1,
    7,
    8,
    24,
    39,
    40,
    41,
    63,
    64,
    65,
    127,
    1000,
    4095,
    4096,
    4097,
    65_535,
    65_536,
    65_537,
    1 << 20,
    (4 << 20) - 1,
    4 << 20,
];

impl Sizes {
    /// The length of message number `index`.
    #[must_use]
    pub fn of(self, index: u64) -> usize {
        let (least, most) = match self {
            Self::Fixed(bytes) => return bytes,
            Self::Mixed(most) => (0, most),
            Self::Tagged(most) => (8, most),
        };
        let fitting = AWKWARD.iter().copied().filter(|bytes| (least..=most).contains(bytes));
        let fitting: Vec<usize> = fitting.collect();
        // Every length comes once in each round, in an order of its own.
        fitting[(index as usize * 7 + mix(index / fitting.len() as u64) as usize % fitting.len()) % fitting.len()]
    }
}

impl std::fmt::Display for Sizes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fixed(bytes) => write!(f, "fixed:{bytes}"),
            Self::Mixed(most) => write!(f, "mixed:{most}"),
            Self::Tagged(most) => write!(f, "tagged:{most}"),
        }
    }
}

impl std::str::FromStr for Sizes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, bytes) = text.split_once(':').ok_or_else(|| format!("`{text}` is no size"))?;
        let bytes = bytes.parse().map_err(|_| format!("`{text}` is no size"))?;
        match kind {
            "fixed" => Ok(Self::Fixed(bytes)),
            "mixed" => Ok(Self::Mixed(bytes)),
            "tagged" => Ok(Self::Tagged(bytes)),
            _ => Err(format!("`{text}` is no size")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_damage_is_noticed() {
        for len in [1, 7, 8, 24, 41, 1000] {
            let mut bytes = vec![0; len];
            fill(&mut bytes, 3, 77);
            let tag = (len >= 8).then_some(3);
            assert_eq!(check(&bytes, 77), Ok(tag));
            assert!(check(&bytes, 78).is_err(), "length {len}");
            // The tag itself is not protected: another one is another publisher, with other bytes after it.
            for at in (0..len).filter(|at| !(len == 8 && (6..8).contains(at))) {
                bytes[at] ^= 0x10;
                assert!(check(&bytes, 77).is_err(), "length {len}, byte {at}");
                bytes[at] ^= 0x10;
            }
        }
    }

    #[test]
    fn every_length_comes_once_in_each_round() {
        let mut lengths: Vec<usize> = (22..44).map(|index| Sizes::Mixed(4 << 20).of(index)).collect();
        lengths.sort_unstable();
        assert_eq!(lengths, AWKWARD);
    }
}
