//! Telling code from comments and literals in a Rust file.

/// `source` with every character of a comment or a literal replaced by a blank; line ends stay where they are.
pub(super) fn code_of(source: &str) -> String {
    let bytes = source.as_bytes();
    let mut code = vec![b' '; bytes.len()];
    let mut at = 0;
    while at < bytes.len() {
        let end = literal_end(bytes, at);
        if end == at {
            code[at] = bytes[at];
            at += 1;
        } else {
            (at..end).filter(|&index| bytes[index] == b'\n').for_each(|index| code[index] = b'\n');
            at = end;
        }
    }
    // What was kept is whole characters, because no literal or comment begins or ends inside one.
    String::from_utf8_lossy(&code).into_owned()
}

/// Where the comment or literal that begins at `at` ends, or `at` if none begins there.
fn literal_end(bytes: &[u8], at: usize) -> usize {
    let rest = &bytes[at..];
    let after_word = at > 0 && super::is_word(bytes[at - 1]);
    match rest {
        [b'/', b'/', ..] => at + rest.iter().position(|&byte| byte == b'\n').unwrap_or(rest.len()),
        [b'/', b'*', ..] => block_comment_end(bytes, at),
        [b'"', ..] => quoted_end(bytes, at, b'"'),
        [b'\'', ..] => character_end(bytes, at),
        [b'r', b'"' | b'#', ..] if !after_word => raw_end(bytes, at, at + 1),
        [b'b' | b'c', b'r', b'"' | b'#', ..] if !after_word => raw_end(bytes, at, at + 2),
        _ => at,
    }
}

/// The end of a block comment; they nest.
fn block_comment_end(bytes: &[u8], start: usize) -> usize {
    let (mut at, mut depth) = (start, 0_usize);
    while at < bytes.len() {
        match &bytes[at..] {
            [b'/', b'*', ..] => (at, depth) = (at + 2, depth + 1),
            [b'*', b'/', ..] => (at, depth) = (at + 2, depth - 1),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// The end of a literal between two `quote`s, in which a backslash takes the next character along.
fn quoted_end(bytes: &[u8], start: usize, quote: u8) -> usize {
    let mut at = start + 1;
    while at < bytes.len() && bytes[at] != quote {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(bytes.len())
}

/// The end of a character literal, or `start` where the quote begins a lifetime.
fn character_end(bytes: &[u8], start: usize) -> usize {
    if bytes.get(start + 1) == Some(&b'\\') {
        return quoted_end(bytes, start, b'\'');
    }
    // One character of up to four bytes, then a quote; otherwise it is a lifetime.
    let length = match bytes.get(start + 1) {
        Some(0xF0..) => 4,
        Some(0xE0..) => 3,
        Some(0xC0..) => 2,
        _ => 1,
    };
    let end = start + 1 + length;
    if bytes.get(end) == Some(&b'\'') { end + 1 } else { start }
}

/// The end of a raw string whose hashes begin at `hashes`, or `start` where it is a raw identifier.
fn raw_end(bytes: &[u8], start: usize, hashes: usize) -> usize {
    let count = bytes[hashes..].iter().take_while(|&&byte| byte == b'#').count();
    if bytes.get(hashes + count) != Some(&b'"') {
        return start;
    }
    let mut close = vec![b'"'];
    close.resize(count + 1, b'#');
    let body = hashes + count + 1;
    let length = bytes[body..].windows(close.len()).position(|window| window == close);
    length.map_or(bytes.len(), |length| body + length + close.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_become_blanks() {
        for (source, expected) in [
            ("a // b\nc", "a     \nc"),
            ("a /* b /* c */ d */ e", "a                   e"),
            (r#"f("x\"y", 'z', '\'', b"w")"#, "f(      ,    ,     , b   )"),
            ("r#\"a\"b\"# c", "         c"),
            ("fn f<'a>(x: &'a str) {}", "fn f<'a>(x: &'a str) {}"),
            ("r#type", "r#type"),
            ("'é' x", "     x"),
        ] {
            assert_eq!(code_of(source), expected, "{source}");
        }
    }
}
