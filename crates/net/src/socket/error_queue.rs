//! What lies in the control data of a message from a socket's error queue. No I/O.
//!
//! ```text
//! │ length: word │ level: 32 bits │ type: 32 bits │ errno │ origin type code pad │ info │ data │ offender …
//! └ a message's header, padded to a word         └ sock_extended_err, 16 bytes
//! ```
//!
//! All in the machine's byte order. Several messages follow each other, each beginning at a multiple of a word.
//!
//! # Sources
//! recvmsg(2), ip(7), `struct sock_extended_err` in include/uapi/linux/errqueue.h.

/// The origin of a report about zero-copy sends.
const ORIGIN_ZEROCOPY: u8 = 5;
/// In its code: the bytes were copied after all.
const CODE_COPIED: u8 = 1;

/// A message of the error queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// Zero-copy sends are done.
    Done {
        /// The first, in the kernel's count.
        low: u32,
        /// The last.
        high: u32,
        /// Whether they were copied.
        copied: bool,
    },
    /// Something else, from this origin.
    Other {
        /// The error's number; 0 if it is none.
        errno: u32,
    },
}

/// The control data ended in the midst of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CutShort;

const WORD: usize = size_of::<usize>();
/// A message's header, and with it where its data begin.
const HEADER_BYTES: usize = (WORD + 8).next_multiple_of(WORD);
const EXTENDED_ERR_BYTES: usize = 16;

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Gives each report in `control` to `each`, and skips messages of other kinds.
///
/// # Errors
/// [`CutShort`], after what came before was given.
pub(super) fn parse(control: &[u8], mut each: impl FnMut(Entry)) -> Result<(), CutShort> {
    let mut rest = control;
    while !rest.is_empty() {
        let header = rest.get(..HEADER_BYTES).ok_or(CutShort)?;
        let length: [u8; WORD] = header[..WORD].try_into().map_err(|_| CutShort)?;
        let length = usize::from_ne_bytes(length);
        let level = u32_at(header, WORD).ok_or(CutShort)?;
        let kind = u32_at(header, WORD + 4).ok_or(CutShort)?;
        let data = rest.get(HEADER_BYTES..length).ok_or(CutShort)?;
        let reports = [(libc::SOL_IP, libc::IP_RECVERR), (libc::SOL_IPV6, libc::IPV6_RECVERR)];
        if reports.contains(&(level.cast_signed(), kind.cast_signed())) {
            let report = data.get(..EXTENDED_ERR_BYTES).ok_or(CutShort)?;
            let [Some(errno), Some(info), Some(high)] = [0, 8, 12].map(|at| u32_at(report, at)) else {
                return Err(CutShort);
            };
            let (origin, code) = (report[4], report[6]);
            each(if origin == ORIGIN_ZEROCOPY && errno == 0 {
                Entry::Done { low: info, high, copied: code & CODE_COPIED != 0 }
            } else {
                Entry::Other { errno }
            });
        }
        let next = length.checked_next_multiple_of(WORD).ok_or(CutShort)?;
        rest = rest.get(next..).unwrap_or(&[]);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(level: i32, kind: i32, data: &[u8]) -> Vec<u8> {
        let mut bytes = (HEADER_BYTES + data.len()).to_ne_bytes().to_vec();
        bytes.extend(level.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(data);
        bytes.resize(bytes.len().next_multiple_of(WORD), 0);
        bytes
    }

    fn report(errno: u32, origin: u8, code: u8, info: u32, data: u32) -> Vec<u8> {
        let mut bytes = errno.to_ne_bytes().to_vec();
        bytes.extend([origin, 0, code, 0]);
        bytes.extend(info.to_ne_bytes());
        bytes.extend(data.to_ne_bytes());
        // The offender's address follows.
        bytes.extend([0xee; 28]);
        bytes
    }

    fn entries(control: &[u8]) -> (Vec<Entry>, Result<(), CutShort>) {
        let mut found = Vec::new();
        let end = parse(control, |entry| found.push(entry));
        (found, end)
    }

    #[test]
    fn reports_of_both_families_are_read_and_others_skipped() {
        let mut control = message(libc::SOL_IP, libc::IP_RECVERR, &report(0, 5, 1, 3, 9));
        control.extend(message(libc::SOL_SOCKET, libc::SO_TIMESTAMP, &[1; 16]));
        control.extend(message(libc::SOL_IPV6, libc::IPV6_RECVERR, &report(0, 5, 0, u32::MAX, 1)));
        control.extend(message(libc::SOL_IP, libc::IP_RECVERR, &report(113, 2, 1, 0, 0)));
        let expected = vec![
            Entry::Done { low: 3, high: 9, copied: true },
            Entry::Done { low: u32::MAX, high: 1, copied: false },
            Entry::Other { errno: 113 },
        ];
        assert_eq!(entries(&control), (expected, Ok(())));
    }

    #[test]
    fn a_report_that_is_cut_short_is_no_report() {
        let whole = message(libc::SOL_IP, libc::IP_RECVERR, &report(0, 5, 0, 3, 9));
        for end in 1..HEADER_BYTES + EXTENDED_ERR_BYTES {
            assert_eq!(entries(&whole[..end]), (vec![], Err(CutShort)), "cut at {end}");
        }
        // A length that is too short for what it says, and ones that lead nowhere.
        for length in [0, 1, HEADER_BYTES - 1, HEADER_BYTES + 15, usize::MAX] {
            let mut lying = whole.clone();
            lying[..WORD].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(entries(&lying), (vec![], Err(CutShort)), "length {length}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic_and_to_an_end(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let (found, _end) = entries(&bytes);
            prop_assert!(found.len() <= bytes.len() / HEADER_BYTES);
        }
    }
}
