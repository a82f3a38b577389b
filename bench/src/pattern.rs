//! The bytes that every throughput row sends: written word by word, read word by word, and checked.
//!
//! Message `s` of `n` words holds `seed(s), seed(s) + 1, ...`, so its words have a sum that is known without memory.
//! The reader adds all of them up, which needs every byte, and compares. All rows, of this project and of others, use
//! these two loops, so that they differ in how the bytes travel and in nothing else.

/// The first word of message `sequence`: an odd multiple, so that neighbours differ in many bits.
#[inline]
#[must_use]
pub fn seed(sequence: u64) -> u64 {
    sequence.wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// Writes the words of message `sequence`.
#[inline]
pub fn fill(words: &mut [u64], sequence: u64) {
    let first = seed(sequence);
    for (index, word) in words.iter_mut().enumerate() {
        *word = first.wrapping_add(index as u64);
    }
}

/// Adds up the words of a message.
#[inline]
#[must_use]
pub fn sum(words: &[u64]) -> u64 {
    words.iter().fold(0, |sum, word| sum.wrapping_add(*word))
}

/// What [`sum`] gives for message `sequence` of `words` words.
#[inline]
#[must_use]
pub fn expected(sequence: u64, words: usize) -> u64 {
    let n = words as u64;
    // One of two neighbours is even, so the division loses nothing even where the product wraps a u64.
    let (half, other) = if n.is_multiple_of(2) { (n / 2, n.wrapping_sub(1)) } else { (n.wrapping_sub(1) / 2, n) };
    seed(sequence).wrapping_mul(n).wrapping_add(half.wrapping_mul(other))
}

/// A message whose bytes are not those that were sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("message {sequence} has the sum {found:#x} where {expected:#x} was due")]
pub struct Corrupt {
    /// The message.
    pub sequence: u64,
    /// The sum of its words.
    pub found: u64,
    /// The sum that was sent.
    pub expected: u64,
}

/// Reads all words of message `sequence` and compares.
///
/// # Errors
/// The message is not the one that was sent.
#[inline]
pub fn check(words: &[u64], sequence: u64) -> Result<(), Corrupt> {
    let (found, expected) = (sum(words), expected(sequence, words.len()));
    if found == expected { Ok(()) } else { Err(Corrupt { sequence, found, expected }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_expected_sum_is_that_of_the_written_words() {
        for words in [0, 1, 2, 3, 8, 511, 512] {
            for sequence in [0, 1, u64::MAX / 3, u64::MAX] {
                let mut message = vec![0; words];
                fill(&mut message, sequence);
                assert_eq!(sum(&message), expected(sequence, words), "{words} words, message {sequence}");
            }
        }
    }

    #[test]
    fn a_changed_word_and_a_stale_message_are_found() {
        let mut message = [0; 8];
        fill(&mut message, 7);
        assert_eq!(check(&message, 7), Ok(()));
        assert!(check(&message, 8).is_err());
        message[3] ^= 1 << 40;
        assert_eq!(check(&message, 7).unwrap_err().sequence, 7);
    }
}
