//! What all hostile peers are made of: bytes by tag.

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
