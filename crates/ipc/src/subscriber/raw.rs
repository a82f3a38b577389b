//! Where holds and cursors meet the bytes they protect.
//!
//! Every unsafe block here relies on the publisher being of our own user (the control thread accepts no other), on a
//! lane's block having been carved for it alone, and on the lane's table of holds keeping its pool mapped
//! (`Lane::new`).
#![allow(unsafe_code)]

use zcmi_mem::lease::{Located, PeerPool, PeerPoolError, Sample, is_inline};
use zcmi_mem::payload::Message;
use zcmi_ring::layout::INLINE_WORDS;
use zcmi_ring::reader::SlotRead;
use zcmi_ring::{Hold, Kind, LaneFault, OwnedBlock, Policy, Reader, ReaderBlock, View};
use zerocopy::IntoBytes;

use super::lane::{Lane, exactly, lane_fault, pool_fault};

/// Takes over a block that was allocated for one lane.
pub(super) fn own(block: View<ReaderBlock>) -> OwnedBlock {
    // SAFETY: the control thread allocated the extent for this lane, gives it to one `Lane`, and frees it only after
    // the lane's orphan is free.
    unsafe { OwnedBlock::new(block) }
}

/// The sample of a message that was read under a hold.
#[inline]
pub(super) fn sample<M: Message + ?Sized>(
    pool: &PeerPool,
    sequence: u64,
    message: &zcmi_ring::Message,
    hold: Hold,
) -> Result<Sample<M>, String> {
    let word = message.body[0];
    // SAFETY: the hold was taken by `Reader::read` for this very message (and confirmed there where it may be
    // overtaken), and its table keeps the pool.
    let sample = unsafe { pool.sample(sequence, word, message.head.bytes(), hold) };
    sample.map_err(pool_fault)
}

/// Where the message is that [`Reader::read_slot`] found, if the pool's first class has it.
#[inline(always)]
pub(super) fn locate<M: Message + ?Sized>(pool: &PeerPool, read: &SlotRead) -> Option<Located> {
    // SAFETY: `Lane::new` made the pool for the length of the service's messages, which the join compared with `M`'s.
    unsafe { pool.locate::<M>(read.word, read.bytes) }
}

/// The sample of a located message that [`Reader::read_slot`] found.
#[inline(always)]
pub(super) fn sample_at<M: Message + ?Sized>(located: Located, read: SlotRead) -> Sample<M> {
    // SAFETY: as in `sample_of`; the message was located with this word and length.
    unsafe { located.sample(read.sequence, read.bytes, read.hold) }
}

/// As [`sample`], for what [`Reader::read_slot`] found.
#[inline(always)]
pub(super) fn sample_of<M: Message + ?Sized>(pool: &PeerPool, read: SlotRead) -> Result<Sample<M>, PeerPoolError> {
    // SAFETY: the hold was taken by `Reader::read_slot` for this very message of a reader that is not overtaken, and
    // its table keeps the pool.
    unsafe { pool.sample(read.sequence, read.word, read.bytes, read.hold) }
}

/// Whether the reader is never overtaken.
#[inline]
pub(super) fn is_reliable(reader: &Reader) -> bool {
    reader.policy() == Policy::Reliable
}

/// Reads messages in place, up to `most`.
#[inline]
pub(super) fn read_batch<M: Message + ?Sized>(
    lane: &mut Lane,
    most: u64,
    each: &mut impl FnMut(u64, &M),
) -> Result<u64, String> {
    if !M::SLICE && is_inline(M::ELEMENT_BYTES, M::ELEMENT_ALIGN) {
        let read = read_inline_batch(&mut lane.reader, most, each);
        if read > 0 {
            lane.look_if_due();
            return Ok(read);
        }
    }
    let (pool, mut bytes) = (&lane.pool, 0);
    let read = lane.reader.read_slot_batch(most, exactly::<M>(), |sequence, word, len| {
        // SAFETY: as in `locate`.
        let located = unsafe { pool.locate::<M>(word, len) };
        // SAFETY: called by `Reader::read_slot_batch`, which moves the cursor of a reader that is not overtaken only
        // after this returned.
        let Some(message) = located.and_then(|located| unsafe { located.message(len) }) else { return false };
        each(sequence, message);
        bytes += u64::from(len);
        true
    });
    if read > 0 {
        if M::SLICE {
            lane.reader.count(0, bytes);
        }
        lane.look_if_due();
        return Ok(read);
    }
    let mut fault = None;
    let read = lane.reader.read_batch(most, |sequence, message| {
        let result = one_in_place(pool, sequence, message, each);
        bytes += u64::from(message.head.bytes());
        result.map_err(|text| {
            fault = Some(text);
            LaneFault::Head { sequence, head: message.head.0 }
        })
    });
    if M::SLICE {
        lane.reader.count(0, bytes);
    }
    lane.look_after();
    match (read, fault) {
        (Ok(read), _) => Ok(read),
        (Err(_), Some(text)) => Err(text),
        (Err(fault), None) => Err(lane_fault(fault)),
    }
}

#[inline]
fn one_in_place<M: Message + ?Sized>(
    pool: &PeerPool,
    sequence: u64,
    message: &zcmi_ring::Message,
    each: &mut impl FnMut(u64, &M),
) -> Result<(), String> {
    let bytes = message.head.bytes();
    match message.head.kind() {
        Kind::Slot => {
            let word = message.body[0];
            // SAFETY: called by `Reader::read_batch`, which refuses readers that may be overtaken and moves the cursor
            // only after this returned.
            unsafe { pool.in_place(sequence, word, bytes, |message: &M| each(sequence, message)) }.map_err(pool_fault)
        }
        Kind::Inline if bytes as usize <= INLINE_WORDS * 8 => {
            match M::from_bytes(&message.body.as_bytes()[..bytes as usize]) {
                Some(message) => {
                    each(sequence, message);
                    Ok(())
                }
                None => Err(format!("{bytes} bytes in an entry are no message of this service")),
            }
        }
        _ => Err(format!("the head {:#x} is impossible", message.head.0)),
    }
}

#[inline]
fn read_inline_batch<M: Message + ?Sized>(reader: &mut Reader, most: u64, each: &mut impl FnMut(u64, &M)) -> u64 {
    fn batch<const N: usize, M: Message + ?Sized>(
        reader: &mut Reader,
        most: u64,
        each: &mut impl FnMut(u64, &M),
    ) -> u64 {
        let bytes = M::ELEMENT_BYTES;
        reader.read_inline_batch::<N>(most, bytes as u32, |sequence, words| {
            if let Some(message) = M::from_bytes(&words.as_bytes()[..bytes]) {
                each(sequence, message);
            }
        })
    }
    match M::ELEMENT_BYTES.div_ceil(8) {
        1 => batch::<1, M>(reader, most, each),
        2 => batch::<2, M>(reader, most, each),
        3 => batch::<3, M>(reader, most, each),
        4 => batch::<4, M>(reader, most, each),
        _ => batch::<5, M>(reader, most, each),
    }
}
